//! A checkpoint: the tensors of one or several files, by name.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use super::dtype::{Dtype, FLOAT_TYPES, decode_f32, first_non_finite};
use super::index::parse_index;
use super::row_order::RowOrder;
use super::stored_tensor::{StoredTensor, TensorInfo};
use super::{safetensors, torch_bin};
use crate::io::{ByteSource, Folder, LocalFuture, read_file, read_range, refuse_lfs_pointer};
use crate::tensor::GROUP_SIZE;
use crate::{Error, Result};

/// File names of a language model's weights, in the order of preference of transformers.
pub const MODEL_FILES: &[&str] = &[
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.fp16.safetensors",
    "model.safetensors.index.fp16.json",
];

/// File names of an OpenCLIP model's weights, in order of preference.
pub const OPEN_CLIP_FILES: &[&str] = &[
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// Largest index file that is read.
const MAX_INDEX: u64 = 64 << 20;

/// Names of the scales of an 8-bit float tensor: what replaces the end of its name, such as `weight`.
const SCALES: [(&str, &str); 3] = [("weight", "scale_weight"), ("", "_scale"), ("", "_scale_inv")];

/// Maximum number of bytes of rows per call.
const MAX_ROWS: u64 = 1 << 30;

/// Bytes of a tensor per read: enough to be fast, small next to the decoded values.
const CHUNK_BYTES: u64 = 8 << 20;

#[derive(Clone)]
struct Located {
    stored: Rc<StoredTensor>,
    file: usize,
    /// Multiplied with the tensor whenever it is read.
    scale: Option<Rc<Scale>>,
    /// Applied in this order whenever the tensor is read.
    deltas: Vec<Rc<dyn Delta>>,
}

/// The scales of an 8-bit float tensor: one for all of it, or one per block of rows and columns.
#[derive(Clone)]
struct Scale {
    stored: Rc<StoredTensor>,
    source: Rc<dyn ByteSource>,
    /// Columns of the scales.
    across: usize,
    /// Rows and columns of the tensor's values that share a scale; `None` if the scales do not fit the tensor.
    block: Option<[usize; 2]>,
    /// The tensor's row that is the first one of the view.
    first_row: usize,
    /// Whether the view is the transposed tensor.
    transposed: bool,
}

impl Located {
    fn new(stored: StoredTensor, file: usize) -> Self {
        Self { stored: Rc::new(stored), file, scale: None, deltas: Vec::new() }
    }
}

/// A view of a stored tensor. No view copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// The tensor itself.
    Whole,
    /// Some of its rows.
    Rows(Range<usize>),
    /// The tensor in another shape with the same number of elements.
    Reshaped(Vec<usize>),
    /// The transposed matrix.
    Transposed,
}

impl View {
    /// The view of `stored`; `None` if the tensor has no such view.
    fn apply(&self, stored: &StoredTensor) -> Option<StoredTensor> {
        let mut view = stored.clone();
        let plain = stored.rows == RowOrder::Plain;
        match self {
            Self::Whole => {}
            Self::Rows(rows) => {
                let count = *stored.info.shape.first()?;
                if !plain || rows.start > rows.end || rows.end > count {
                    return None;
                }
                view.offset += stored.info.bytes()?.checked_div(count as u64)? * rows.start as u64;
                *view.info.shape.first_mut()? = rows.len();
            }
            Self::Reshaped(shape) => {
                view.info.shape.clone_from(shape);
                if !plain || view.info.elements() != stored.info.elements() {
                    return None;
                }
            }
            Self::Transposed => {
                if !plain || stored.info.shape.len() != 2 || stored.info.dtype.unit().0 != 1 {
                    return None;
                }
                view.info.shape.reverse();
                view.rows = RowOrder::Transposed;
            }
        }
        Some(view)
    }
}

/// A change of a tensor whenever it is read, such as adding the product of a LoRA file's matrices.
pub trait Delta {
    /// Changes `values`, whole rows of the tensor with all earlier changes.
    ///
    /// # Errors
    /// Those of reading the files that the change needs.
    fn apply<'a>(&'a self, rows: Range<usize>, values: &'a mut [f32]) -> LocalFuture<'a, Result<()>>;
}

/// Named tensors in one or several files. Only headers are in memory.
#[derive(Clone)]
pub struct Checkpoint {
    name: String,
    files: Vec<Rc<dyn ByteSource>>,
    tensors: BTreeMap<String, Located>,
    /// Tensors that an index lists and that are not there.
    absent: BTreeMap<String, Absent>,
}

/// A tensor that is not where an index lists it.
#[derive(Clone)]
struct Absent {
    shard: String,
    /// For [`Error::MissingTensor`].
    hint: String,
    /// Whether the whole shard is missing: the model has the tensor then.
    with_shard: bool,
}

impl Checkpoint {
    /// Opens the first of `candidates` that is complete in the folder; of an index, all shards. Without any of them,
    /// opens shards that have no index. Of an index without some of its shards, only reading one of their
    /// tensors is an error.
    ///
    /// # Errors
    /// [`Error::MissingFile`] if the folder has none of them, or no shard of an index, or lacks a shard without an
    /// index; the errors of [`Self::open_file`].
    pub async fn open(folder: &dyn Folder, candidates: &[&str]) -> Result<Self> {
        Self::find(folder, candidates).await?.ok_or_else(|| {
            let single = candidates.iter().find(|name| !name.ends_with(".json")).unwrap_or(&"model.safetensors");
            Error::MissingFile {
                file: format!("{}/{single}", folder.name()),
                hint: format!("no weights here; looked for {}", candidates.join(", ")),
            }
        })
    }

    /// As [`Self::open`]; `None` if the folder has none of `candidates`.
    ///
    /// # Errors
    /// As [`Self::open`], except for the first.
    pub async fn find(folder: &dyn Folder, candidates: &[&str]) -> Result<Option<Self>> {
        let mut incomplete = None;
        for file in candidates {
            if file.ends_with(".json") {
                if let Some(index) = read_file(folder, file, MAX_INDEX).await? {
                    match Self::open_index(folder, file, &index).await {
                        // An index whose shards were removed.
                        Err(error @ Error::MissingFile { .. }) => incomplete = incomplete.or(Some(Err(error))),
                        Ok(opened) if opened.absent.values().any(|absent| absent.with_shard) => {
                            incomplete = incomplete.filter(Result::is_ok).or(Some(Ok(opened)));
                        }
                        opened => return opened.map(Some),
                    }
                }
            } else if let Some(source) = folder.open(file).await? {
                return Self::open_file(source).await.map(Some);
            }
        }
        // Browsers cannot list a folder.
        let shards = if cfg!(feature = "fs") { Self::find_shards(folder, candidates).await } else { Ok(None) };
        match (incomplete, shards) {
            // An index of other shards than those that are there.
            (Some(_), Ok(Some(found))) => Ok(Some(found)),
            (Some(opened), _) => opened.map(Some),
            (None, shards) => shards,
        }
    }

    /// Opens shards without an index: `model-00001-of-00002.safetensors` and so on for `model.safetensors`.
    async fn find_shards(folder: &dyn Folder, candidates: &[&str]) -> Result<Option<Self>> {
        let entries = folder.entries().await;
        let mut missing = None;
        for (stem, extension) in candidates.iter().filter_map(|name| name.rsplit_once('.')) {
            // By their number.
            let mut sets: BTreeMap<usize, BTreeMap<usize, &String>> = BTreeMap::new();
            for name in &entries {
                if let Some((count, number)) = shard_numbers(name, stem, extension) {
                    sets.entry(count).or_default().insert(number, name);
                }
            }
            for (count, shards) in sets {
                if let Some(number) = (1..=count).find(|number| !shards.contains_key(number)) {
                    missing.get_or_insert(format!("{stem}-{number:05}-of-{count:05}.{extension}"));
                    continue;
                }
                let mut checkpoint = Self::empty(folder);
                for name in shards.values() {
                    let Some(source) = folder.open(name).await? else { continue };
                    for stored in read_tensors(&*source).await? {
                        let located = Located::new(stored, checkpoint.files.len());
                        checkpoint.tensors.insert(located.stored.name.clone(), located);
                    }
                    checkpoint.files.push(source);
                }
                return Ok(Some(checkpoint.with_scales()));
            }
        }
        match missing {
            None => Ok(None),
            Some(file) => Err(Error::MissingFile {
                file: format!("{}/{file}", folder.name()),
                hint: "other shards of these weights are there; is the download complete?".to_owned(),
            }),
        }
    }

    fn empty(folder: &dyn Folder) -> Self {
        Self { name: folder.name().to_owned(), files: Vec::new(), tensors: BTreeMap::new(), absent: BTreeMap::new() }
    }

    /// Opens one file. Its content decides the format: a torch archive, or safetensors.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it follows neither format; [`Error::Unsupported`] for a torch file that is too old or
    /// has tensors that are not contiguous; [`Error::Io`].
    pub async fn open_file(source: Rc<dyn ByteSource>) -> Result<Self> {
        let stored = read_tensors(&*source).await?;
        Ok(Self::from_tensors(source, stored.into_iter().map(|stored| (stored.name.clone(), stored)).collect()))
    }

    /// A checkpoint of one file with known tensors, each under the name before it.
    pub(super) fn from_tensors(source: Rc<dyn ByteSource>, tensors: Vec<(String, StoredTensor)>) -> Self {
        let located = |(name, stored)| (name, Located::new(stored, 0));
        Self {
            name: source.name().to_owned(),
            files: vec![source],
            tensors: tensors.into_iter().map(located).collect(),
            absent: BTreeMap::new(),
        }
        .with_scales()
    }

    /// Gives 8-bit float tensors the scales next to them.
    fn with_scales(mut self) -> Self {
        let names: Vec<String> =
            self.tensors().filter(|(_, info)| info.dtype.is_f8()).map(|(name, _)| name.to_owned()).collect();
        for name in names {
            let scaled = |(end, scale): &(&str, &str)| self.tensors.get(&format!("{}{scale}", name.strip_suffix(end)?));
            let found = SCALES.iter().find_map(scaled).cloned();
            let lost = |(end, scale): &(&str, &str)| self.absent.get(&format!("{}{scale}", name.strip_suffix(end)?));
            // Without its scales a tensor would have other values.
            if let Some(absent) = SCALES.iter().find_map(lost).filter(|_| found.is_none()).cloned() {
                self.tensors.remove(&name);
                self.absent.insert(name, absent);
                continue;
            }
            if let Some(located) = self.tensors.get_mut(&name)
                && let Some(found) = found
                && let Some(source) = self.files.get(found.file)
            {
                located.scale = Some(Rc::new(Scale::new(found.stored, Rc::clone(source), &located.stored.info.shape)));
            }
        }
        self
    }

    async fn open_index(folder: &dyn Folder, index_file: &str, index: &[u8]) -> Result<Self> {
        let index_name = format!("{}/{index_file}", folder.name());
        let mut checkpoint = Self::empty(folder);
        let mut missing = None;
        for (shard, names) in parse_index(&index_name, index)? {
            let Some(source) = folder.open(&shard).await? else {
                let file = format!("{}/{shard}", folder.name());
                missing.get_or_insert_with(|| Error::MissingFile {
                    file: file.clone(),
                    hint: format!("{index_file} lists it as the shard of {}; is the download complete?", first(&names)),
                });
                let hint = format!(", which is not there although {index_file} lists it (is the download complete?)");
                let absent = Absent { shard: file, hint, with_shard: true };
                checkpoint.absent.extend(names.into_iter().map(|name| (name, absent.clone())));
                continue;
            };
            let stored = read_tensors(&*source).await?;
            let mut stored: BTreeMap<_, _> = stored.into_iter().map(|stored| (stored.name.clone(), stored)).collect();
            for name in names {
                let Some(stored) = stored.remove(&name) else {
                    // An error only if something needs it.
                    let hint = format!(", although {index_file} lists it there");
                    let absent = Absent { shard: source.name().to_owned(), hint, with_shard: false };
                    checkpoint.absent.insert(name, absent);
                    continue;
                };
                let located = Located::new(stored, checkpoint.files.len());
                checkpoint.tensors.insert(name, located);
            }
            checkpoint.files.push(source);
        }
        match missing.filter(|_| checkpoint.files.is_empty()) {
            Some(error) => Err(error),
            None => Ok(checkpoint.with_scales()),
        }
    }

    /// The folder's or file's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether there are no tensors, and no index lists any.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty() && self.absent.is_empty()
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, located)| (name.as_str(), &located.stored.info))
    }

    /// Element type and shape of a tensor, if the checkpoint has it.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|located| &located.stored.info)
    }

    /// Whether the checkpoint has a tensor, or lists it in a shard that is missing: reading it is an error then.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.absent.get(name).is_some_and(|absent| absent.with_shard)
    }

    /// The tensors for which `rename` returns a name, under that name. Messages about their contents use the name in
    /// the file.
    pub fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let tensors =
            self.tensors.iter().filter_map(|(name, located)| Some((rename(name)?, located.clone()))).collect();
        let absent = self.absent.iter().filter_map(|(name, hint)| Some((rename(name)?, hint.clone()))).collect();
        Self { name: self.name.clone(), files: self.files.clone(), tensors, absent }
    }

    /// Views of tensors: for each tensor, `view` returns the views to include and their names.
    ///
    /// # Errors
    /// [`Error::WrongShape`] if a tensor has no such view.
    pub fn with_views(&self, view: impl Fn(&str, &TensorInfo) -> Vec<(String, View)>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, located) in &self.tensors {
            for (view_name, view) in view(name, &located.stored.info) {
                let stored = view.apply(&located.stored).ok_or_else(|| Error::WrongShape {
                    name: name.clone(),
                    found: located.stored.info.shape.clone(),
                    expected: format!("one with the view {view:?} for {view_name}"),
                })?;
                let scale = match &located.scale {
                    Some(scale) => Some(Rc::new(scale.view(&view, &located.stored.info.shape)?)),
                    None => None,
                };
                tensors.insert(view_name, Located { scale, ..Located::new(stored, located.file) });
            }
        }
        Ok(Self { name: self.name.clone(), files: self.files.clone(), tensors, absent: self.absent.clone() })
    }

    /// Applies `delta` to a tensor, after earlier ones, whenever it is read from now on.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] if there is no such tensor; [`Error::Unsupported`] if it is quantised.
    pub fn add_delta(&mut self, name: &str, delta: Rc<dyn Delta>) -> Result<()> {
        let dtype = self.locate(name)?.stored.info.dtype;
        if matches!(dtype, Dtype::Block(_)) {
            return Err(Error::Unsupported {
                what: format!("adding to tensor {name} of type"),
                found: dtype.name().to_owned(),
                supported: "F32, F16 and BF16: merge before quantising".to_owned(),
            });
        }
        if let Some(located) = self.tensors.get_mut(name) {
            located.deltas.push(delta);
        }
        Ok(())
    }

    /// This checkpoint's tensors, plus those of `fallback` under names that this one lacks.
    pub fn with_fallback(&self, fallback: &Self) -> Self {
        let mut result = self.clone();
        let shift = result.files.len();
        result.files.extend(fallback.files.iter().cloned());
        for (name, located) in &fallback.tensors {
            let moved = Located { file: located.file + shift, ..located.clone() };
            result.absent.remove(name);
            result.tensors.entry(name.clone()).or_insert(moved);
        }
        result
    }

    /// Reads a whole tensor as `f32`, row-major.
    ///
    /// # Errors
    /// As [`Self::read_rows`].
    pub async fn read(&self, name: &str) -> Result<Vec<f32>> {
        let rows = self.locate(name)?.stored.info.shape.first().copied().unwrap_or(1);
        self.read_rows(name, 0..rows).await
    }

    /// Reads a tensor of one element, of any type.
    ///
    /// # Errors
    /// [`Error::WrongShape`] if it has another number of elements; otherwise as [`Self::read_rows`].
    pub async fn read_number(&self, name: &str) -> Result<f32> {
        let located = self.locate(name)?;
        let TensorInfo { shape, dtype } = &located.stored.info;
        if located.stored.info.elements() != Some(1) {
            let (found, expected) = (shape.clone(), "one element".to_owned());
            return Err(Error::WrongShape { name: name.to_owned(), found, expected });
        }
        if dtype.is_float() {
            return Ok(self.read(name).await?.first().copied().unwrap_or_default());
        }
        let source = self.files.get(located.file).ok_or_else(|| self.missing(name))?;
        let mut bytes = read_range(&**source, located.stored.offset, dtype.unit().1 as u64, 8).await?;
        if located.stored.big_endian {
            bytes.reverse();
        }
        dtype.integer(&bytes).map(|value| value as f32).ok_or_else(|| not_floats(&located.stored))
    }

    /// Reads rows along the first dimension as `f32`, row-major. A scalar has one row.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::WrongDtype`] if elements are not floats; [`Error::BadValue`] at the first NaN
    /// or infinity; [`Error::InvalidArgument`] if the tensor has fewer rows; [`Error::Io`].
    pub async fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        self.read_rows_in(name, rows, RowOrder::Plain).await
    }

    /// Reads the rows at positions `rows` of the tensor with its rows in `order`; otherwise as [`Self::read_rows`].
    ///
    /// # Errors
    /// As [`Self::read_rows`].
    pub async fn read_rows_in(&self, name: &str, rows: Range<usize>, order: RowOrder) -> Result<Vec<f32>> {
        let located = self.locate(name)?;
        let TensorInfo { shape, .. } = &located.stored.info;
        let count = shape.first().copied().unwrap_or(1);
        if rows.start > rows.end || rows.end > count {
            return Err(Error::InvalidArgument(format!("rows {rows:?} of tensor {name}, which has {count}")));
        }
        let mut values = self.read_stored_rows(located, rows.clone(), order).await?;
        if let Some(scale) = &located.scale {
            scale.multiply(&mut values, rows.clone().map(|position| order.row_at(position, count))).await?;
        }
        for delta in &located.deltas {
            delta.apply(rows.clone(), &mut values).await?;
        }
        Ok(values)
    }

    /// As [`Self::read_rows_in`], without the deltas.
    async fn read_stored_rows(&self, located: &Located, rows: Range<usize>, order: RowOrder) -> Result<Vec<f32>> {
        let TensorInfo { shape, .. } = &located.stored.info;
        let count = shape.first().copied().unwrap_or(1);
        if located.stored.rows == RowOrder::Transposed {
            let stored = self.read_elements(located, 0..located.stored.info.elements().unwrap_or(0)).await?;
            let columns = shape.get(1).copied().unwrap_or(1);
            let row = |row: usize| (0..columns).map(move |column| column * count + row);
            return Ok(rows.flat_map(row).filter_map(|place| stored.get(place).copied()).collect());
        }
        if located.stored.rows != order && !rows.is_empty() {
            let columns = shape.iter().skip(1).fold(1u64, |columns, size| columns.saturating_mul(*size as u64));
            let first = (rows.start as u64).saturating_mul(columns);
            let mut bytes = self.read_row_bytes(located, rows, order).await?;
            if located.stored.big_endian {
                bytes.chunks_exact_mut(located.stored.info.dtype.unit().1).for_each(<[u8]>::reverse);
            }
            let mut values = Vec::new();
            if !decode_f32(located.stored.info.dtype, &bytes, &mut values) {
                return Err(not_floats(&located.stored));
            }
            check_finite(&located.stored.name, &values, first)?;
            return Ok(values);
        }
        let elements = located.stored.info.elements().unwrap_or(0);
        let row = elements.checked_div(count as u64).unwrap_or(0);
        self.read_elements(located, rows.start as u64 * row..rows.end as u64 * row).await
    }

    fn locate(&self, name: &str) -> Result<&Located> {
        self.tensors.get(name).ok_or_else(|| self.missing(name))
    }

    /// The shard in which an index lists a tensor that is not there, and the hint for [`Error::MissingTensor`].
    pub(super) fn missing_from(&self, name: &str) -> Option<(String, String)> {
        self.absent.get(name).map(|absent| (absent.shard.clone(), absent.hint.clone()))
    }

    pub(super) fn missing(&self, name: &str) -> Error {
        if let Some((file, hint)) = self.missing_from(name) {
            return Error::MissingTensor { name: name.to_owned(), file, hint };
        }
        let hint = match self.tensors.len() {
            0 => ", which has no tensors".to_owned(),
            count => format!(" (it has {count} others, such as {})", first(&self.tensors.keys().collect::<Vec<_>>())),
        };
        Error::MissingTensor { name: name.to_owned(), file: self.name.clone(), hint }
    }

    /// A tensor's name in its file.
    pub(super) fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.tensors.get(name).map_or(name, |located| &located.stored.name)
    }

    /// Reads the blocks of a quantised tensor's rows, and checks that the device's format holds their scales: the rows
    /// at positions `rows` of the tensor with its rows in `order`.
    ///
    /// # Errors
    /// As [`Self::read_rows`]; [`Error::WrongDtype`] if the tensor is not quantised.
    pub async fn read_blocks(&self, name: &str, rows: Range<usize>, order: RowOrder) -> Result<Vec<u8>> {
        let located = self.locate(name)?;
        let TensorInfo { shape, dtype } = &located.stored.info;
        let Dtype::Block(kind) = *dtype else {
            let (found, expected) = (dtype.name().to_owned(), "a quantised type".to_owned());
            return Err(Error::WrongDtype { name: name.to_owned(), found, expected });
        };
        let first = (rows.start as u64).saturating_mul(shape.last().copied().unwrap_or(0) as u64);
        let bytes = self.read_row_bytes(located, rows, order).await?;
        kind.check(&bytes).map_err(|(group, value)| Error::BadValue {
            name: located.stored.name.clone(),
            value,
            index: first.saturating_add((group * GROUP_SIZE) as u64),
        })?;
        Ok(bytes)
    }

    /// The bytes of the rows at positions `rows` of the tensor with its rows in `order`.
    async fn read_row_bytes(&self, located: &Located, rows: Range<usize>, order: RowOrder) -> Result<Vec<u8>> {
        let StoredTensor { name, info, offset, rows: stored, .. } = &*located.stored;
        let count = info.shape.first().copied().unwrap_or(1);
        if rows.start >= rows.end || rows.end > count {
            return Err(Error::InvalidArgument(format!("rows {rows:?} of tensor {name}, which has {count}")));
        }
        let source = self.files.get(located.file).ok_or_else(|| self.missing(name))?;
        let row_bytes = info.bytes().unwrap_or(0) / count as u64;
        let as_stored = order == *stored;
        let place = |position| if as_stored { position } else { stored.stored(order.row_at(position, count), count) };
        let places: Vec<usize> = rows.map(place).collect();
        let first = places.iter().copied().min().unwrap_or(0);
        let span = places.iter().copied().max().unwrap_or(0) + 1 - first;
        let bytes = read_range(&**source, offset + first as u64 * row_bytes, span as u64 * row_bytes, MAX_ROWS).await?;
        if as_stored {
            return Ok(bytes);
        }
        let row_bytes = row_bytes as usize;
        let row = |place: &usize| bytes.get((place - first) * row_bytes..(place - first + 1) * row_bytes);
        Ok(places.iter().filter_map(row).collect::<Vec<_>>().concat())
    }

    /// Reads elements `range`, which is inside the tensor.
    async fn read_elements(&self, located: &Located, range: Range<u64>) -> Result<Vec<f32>> {
        let StoredTensor { name, info, offset, big_endian, rows: _ } = &*located.stored;
        if !info.dtype.is_float() {
            return Err(not_floats(&located.stored));
        }
        let source = self.files.get(located.file).ok_or_else(|| self.missing(name))?;
        let (length, size) = info.dtype.unit();
        let too_large = || Error::Io {
            file: source.name().to_owned(),
            kind: std::io::ErrorKind::OutOfMemory,
            reason: format!("no memory for {} elements of tensor {name}", range.end - range.start),
        };
        let count = usize::try_from(range.end - range.start).map_err(|_| too_large())?;
        let mut values = Vec::new();
        values.try_reserve_exact(count).map_err(|_| too_large())?;
        let mut bytes = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + CHUNK_BYTES / size as u64 * length as u64);
            let before = info.dtype.bytes(start).unwrap_or(u64::MAX);
            bytes.resize(info.dtype.bytes(end - start).map_or(0, |bytes| bytes as usize), 0);
            source.read(offset.saturating_add(before), &mut bytes).await?;
            if *big_endian {
                bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
            }
            let decoded = values.len();
            // `is_float` was checked above.
            let _ = decode_f32(info.dtype, &bytes, &mut values);
            check_finite(name, values.get(decoded..).unwrap_or_default(), start)?;
            start = end;
        }
        Ok(values)
    }
}

impl Scale {
    /// The scales of a tensor of this shape.
    fn new(stored: Rc<StoredTensor>, source: Rc<dyn ByteSource>, shape: &[usize]) -> Self {
        let (across, block) = scale_blocks(&stored.info.shape, shape).unzip();
        Self { stored, source, across: across.unwrap_or(1), block, first_row: 0, transposed: false }
    }

    /// The scales of a view of the tensor, which has this shape.
    fn view(&self, view: &View, shape: &[usize]) -> Result<Self> {
        let one = self.stored.info.elements() == Some(1);
        match view {
            View::Whole => Ok(self.clone()),
            View::Rows(rows) => Ok(Self { first_row: self.first_row + rows.start, ..self.clone() }),
            View::Transposed if one || self.first_row == 0 => Ok(Self { transposed: true, ..self.clone() }),
            View::Reshaped(view) if one || view.first() == shape.first() => Ok(self.clone()),
            View::Transposed | View::Reshaped(_) => Err(self.unsupported("one number")),
        }
    }

    /// Multiplies rows of the view.
    async fn multiply(&self, values: &mut [f32], rows: impl ExactSizeIterator<Item = usize> + Clone) -> Result<()> {
        let Some([height, width]) = self.block else {
            return Err(self.unsupported("one number, one per row, or one per block of rows and columns"));
        };
        let columns = (values.len() / rows.len().max(1)).max(1);
        let rows = rows.map(|row| row + self.first_row);
        if self.transposed {
            let scales = self.read(0..usize::MAX).await?;
            for (values, row) in values.chunks_exact_mut(columns).zip(rows) {
                for (index, values) in values.chunks_mut(height).enumerate() {
                    let scale = scales.get(index * self.across + row / width).copied().unwrap_or(1.0);
                    values.iter_mut().for_each(|value| *value *= scale);
                }
            }
            return Ok(());
        }
        let first = rows.clone().min().unwrap_or(0) / height;
        let scales = self.read(first..rows.clone().max().unwrap_or(0) / height + 1).await?;
        for (values, row) in values.chunks_exact_mut(columns).zip(rows) {
            for (index, values) in values.chunks_mut(width).enumerate() {
                let scale = scales.get((row / height - first) * self.across + index).copied().unwrap_or(1.0);
                values.iter_mut().for_each(|value| *value *= scale);
            }
        }
        Ok(())
    }

    /// Reads rows of the scales.
    async fn read(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let StoredTensor { name, info, offset, big_endian, .. } = &*self.stored;
        let count = info.elements().unwrap_or(0);
        let [first, end] = [rows.start, rows.end].map(|row| count.min((row as u64).saturating_mul(self.across as u64)));
        let size = info.dtype.unit().1;
        let start = offset.saturating_add(first.saturating_mul(size as u64));
        let length = (end - first).saturating_mul(size as u64);
        let mut bytes = read_range(&*self.source, start, length, MAX_ROWS).await?;
        if *big_endian {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        // Integers of 8 bits are exponents, in files from before safetensors had a type for them.
        let dtype = if info.dtype == Dtype::U8 { Dtype::F8E8M0 } else { info.dtype };
        let mut scales = Vec::new();
        if !decode_f32(dtype, &bytes, &mut scales) {
            return Err(not_floats(&self.stored));
        }
        check_finite(name, &scales, first)?;
        Ok(scales)
    }

    fn unsupported(&self, supported: &str) -> Error {
        let StoredTensor { name, info, .. } = &*self.stored;
        let found = format!("{:?}", info.shape);
        Error::Unsupported { what: format!("{name}: shape of the scales"), found, supported: supported.to_owned() }
    }
}

/// Columns of scales of shape `scales`, and the rows and columns of a tensor of shape `tensor` that share a scale;
/// `None` if they do not fit.
fn scale_blocks(scales: &[usize], tensor: &[usize]) -> Option<(usize, [usize; 2])> {
    let dimensions = scales.iter().rposition(|size| *size != 1).map_or(0, |last| last + 1);
    let [down, across] = match scales.get(..dimensions)? {
        [] => [1, 1],
        &[down] => [down, 1],
        &[down, across] => [down, across],
        _ => return None,
    };
    let (rows, rest) = tensor.split_first().unwrap_or((&1, &[]));
    let columns = rest.iter().try_fold(1usize, |columns, size| columns.checked_mul(*size))?;
    Some((across, [scale_block(*rows, down)?, scale_block(columns, across)?]))
}

/// Values along a dimension of `length` that share one of `count` scales. The last block may be smaller: the sides of
/// blocks are powers of two, if one fits.
fn scale_block(length: usize, count: usize) -> Option<usize> {
    if count <= 1 {
        // Also of a view with another shape.
        return (count == 1).then_some(usize::MAX);
    }
    let powers = (0..usize::BITS).map(|bits| 1usize << bits);
    let power = powers.take_while(|block| *block < length).find(|block| length.div_ceil(*block) == count);
    power.or_else(|| length.is_multiple_of(count).then(|| length / count).filter(|block| *block > 0))
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Checkpoint")
            .field("name", &self.name)
            .field("files", &self.files.iter().map(|file| file.name()).collect::<Vec<_>>())
            .field("tensors", &self.tensors.len())
            .finish()
    }
}

fn not_floats(tensor: &StoredTensor) -> Error {
    let found = tensor.info.dtype.name().to_owned();
    Error::WrongDtype { name: tensor.name.clone(), found, expected: FLOAT_TYPES.to_owned() }
}

/// Fails on NaN and infinity. `first` is the index of the first value in its tensor.
fn check_finite(name: &str, values: &[f32], first: u64) -> Result<()> {
    match first_non_finite(values) {
        None => Ok(()),
        Some(bad) => {
            let value = values.get(bad).copied().unwrap_or(f32::NAN);
            Err(Error::BadValue { name: name.to_owned(), value, index: first.saturating_add(bad as u64) })
        }
    }
}

/// Reads the header of whichever format the content has, so that safetensors files called `.bin` work. The name decides
/// only if the content does not.
async fn read_tensors(source: &dyn ByteSource) -> Result<Vec<StoredTensor>> {
    refuse_lfs_pointer(source).await?;
    let mut start = [0; 9];
    if source.len() >= start.len() as u64 {
        source.read(0, &mut start).await?;
    }
    // Byte 8 is the opening brace of a safetensors header; in a zip archive it is the compression method.
    if start.ends_with(b"{") || source.name().to_ascii_lowercase().ends_with(".safetensors") {
        safetensors::read_header(source).await
    } else {
        torch_bin::read_state_dict(source).await
    }
}

/// Number of shards and the number of this one, if the file `name` is a shard of `stem.extension`.
fn shard_numbers(name: &str, stem: &str, extension: &str) -> Option<(usize, usize)> {
    let name = name.to_ascii_lowercase();
    let numbers = name.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(extension)?.strip_suffix('.')?;
    let (number, count) = numbers.split_once("-of-")?;
    Some((count.parse().ok().filter(|count| *count > 0)?, number.parse().ok()?))
}

fn first<Name: ToString>(names: &[Name]) -> String {
    names.first().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::io::MemoryFolder;

    /// A safetensors file of `f32` values, written by the `safetensors` crate.
    pub(in super::super) fn file(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
        use ::safetensors::tensor::{Dtype, TensorView, serialize};
        let views = tensors.iter().map(|(name, shape, values)| {
            (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytemuck::cast_slice(values)).unwrap())
        });
        serialize(views, None).unwrap()
    }

    const INDEX: &str = "model.safetensors.index.json";

    fn open(files: Vec<(&str, Vec<u8>)>) -> Result<Checkpoint> {
        pollster::block_on(Checkpoint::open(&MemoryFolder::new(files), MODEL_FILES))
    }

    fn index(entries: &str) -> (&'static str, Vec<u8>) {
        (INDEX, format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{{{entries}}}}}"#).into_bytes())
    }

    #[test]
    fn shards_are_merged() {
        let one = file(&[("a", &[2], &[1.0, 2.0]), ("not in the index", &[1], &[9.0])]);
        let two = file(&[("b", &[3, 1], &[3.0, 4.0, 5.0])]);
        let files =
            vec![index(r#""a":"1.safetensors","b":"2.safetensors""#), ("1.safetensors", one), ("2.safetensors", two)];
        let checkpoint = open(files).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(pollster::block_on(checkpoint.read("a")).unwrap(), [1.0, 2.0]);
        assert_eq!(pollster::block_on(checkpoint.read_rows("b", 1..3)).unwrap(), [4.0, 5.0]);
        assert!(pollster::block_on(checkpoint.read_rows("b", 1..4)).is_err());
    }

    #[test]
    fn renaming_and_merging_keep_the_contents() {
        let open = |bytes| open(vec![("model.safetensors", bytes)]).unwrap();
        let one = open(file(&[("x.a", &[1], &[1.0]), ("x.b", &[1], &[2.0])]));
        let two = open(file(&[("a", &[1], &[3.0]), ("c", &[1], &[f32::INFINITY])]));
        let both = one.renamed(|name| name.strip_prefix("x.").map(str::to_owned)).with_fallback(&two);
        let read = |name| pollster::block_on(both.read(name));
        assert_eq!((read("a"), read("b")), (Ok(vec![1.0]), Ok(vec![2.0])));
        assert_eq!(read("c"), Err(Error::BadValue { name: "c".into(), value: f32::INFINITY, index: 0 }));
    }

    #[test]
    fn a_bad_value_is_reported_by_its_index_in_the_whole_tensor() {
        // More than one chunk is read.
        let rows = CHUNK_BYTES as usize / 4 / 1000 + 10;
        let mut values = vec![0.5; rows * 1000];
        values[rows * 1000 - 1234] = f32::NEG_INFINITY;
        let checkpoint = open(vec![("model.safetensors", file(&[("w", &[rows, 1000], &values)]))]).unwrap();
        let index = rows as u64 * 1000 - 1234;
        let error = Error::BadValue { name: "w".into(), value: f32::NEG_INFINITY, index };
        assert_eq!(pollster::block_on(checkpoint.read("w")).unwrap_err(), error);
        assert_eq!(pollster::block_on(checkpoint.read_rows("w", rows - 3..rows)).unwrap_err(), error);
        assert_eq!(pollster::block_on(checkpoint.read_rows("w", 1..rows - 2)).unwrap().len(), (rows - 3) * 1000);
    }

    /// Scaled 8-bit floats as ComfyUI (one scale) and compressed-tensors (one per row) write them.
    #[test]
    fn scales_of_8_bit_floats_are_multiplied() {
        use ::safetensors::tensor::{Dtype, TensorView, serialize};
        // 1, 1.125, -2, 448.
        let data = [0x38, 0x39, 0xc0, 0x7e];
        let f8 = |shape: &[usize]| TensorView::new(Dtype::F8_E4M3, shape.to_vec(), &data).unwrap();
        let floats = [3f32, 0.5];
        let bytes: &[u8] = bytemuck::cast_slice(&floats);
        let one = || TensorView::new(Dtype::F32, vec![], &bytes[..4]).unwrap();
        let two = || TensorView::new(Dtype::F32, vec![2, 1], bytes).unwrap();
        let thirds: &[u8] = bytemuck::cast_slice(&[1f32; 3]);
        let tensors = [
            ("plain.weight", f8(&[2, 2])),
            ("one.weight", f8(&[2, 2])),
            ("one.scale_weight", one()),
            ("rows.weight", f8(&[2, 2])),
            ("rows.weight_scale", two()),
            ("other.weight", f8(&[4, 1])),
            ("other.weight_scale_inv", TensorView::new(Dtype::F32, vec![3, 1], thirds).unwrap()),
        ];
        let checkpoint = open(vec![("model.safetensors", serialize(tensors, None).unwrap())]).unwrap();
        let read = |name| pollster::block_on(checkpoint.read(name));
        assert_eq!(read("plain.weight").unwrap(), [1.0, 1.125, -2.0, 448.0]);
        assert_eq!(read("one.weight").unwrap(), [3.0, 3.375, -6.0, 1344.0]);
        assert_eq!(read("rows.weight").unwrap(), [3.0, 3.375, -1.0, 224.0]);
        assert_eq!(pollster::block_on(checkpoint.read_rows("rows.weight", 1..2)).unwrap(), [-1.0, 224.0]);
        let error = read("other.weight").unwrap_err().to_string();
        assert!(error.contains("other.weight_scale_inv: shape of the scales") && error.contains("[3, 1]"), "{error}");
        let view = |name: &str, view: View| {
            let one = checkpoint.renamed(|other| (other == name).then(|| name.to_owned()));
            one.with_views(|name, _| vec![(name.to_owned(), view.clone())])
        };
        let read = |name: &str, of: View| pollster::block_on(view(name, of).unwrap().read(name)).unwrap();
        assert_eq!(read("rows.weight", View::Rows(1..2)), [-1.0, 224.0]);
        assert_eq!(read("rows.weight", View::Transposed), [3.0, -1.0, 3.375, 224.0]);
        assert_eq!(read("one.weight", View::Transposed), [3.0, -6.0, 3.375, 1344.0]);
        assert_eq!(read("one.weight", View::Reshaped(vec![4])), [3.0, 3.375, -6.0, 1344.0]);
        assert!(view("rows.weight", View::Reshaped(vec![4])).unwrap_err().to_string().contains("weight_scale"));
    }

    /// Blocks of every form, multiplied by torch (`tests/reference/make_float8.py`).
    #[test]
    fn scales_of_blocks_are_multiplied_as_in_torch() {
        let bytes = include_bytes!("../../tests/data/weights/scaled_float8.safetensors").to_vec();
        let checkpoint = open(vec![("model.safetensors", bytes)]).unwrap();
        let names: Vec<_> = checkpoint.names().filter_map(|name| name.strip_suffix(".expected")).collect();
        assert_eq!(names.len(), 7, "{names:?}");
        for name in names {
            let read = |name: &str| pollster::block_on(checkpoint.read(name)).unwrap();
            let expected = read(&format!("{name}.expected"));
            let weight = checkpoint
                .names()
                .find(|other| [format!("{name}.weight"), name.to_owned()].contains(&(*other).to_owned()));
            let weight = weight.unwrap();
            assert_eq!(read(weight), expected, "{name}");
            // Rows one by one, and the transposed tensor.
            let shape = checkpoint.info(weight).unwrap().shape.clone();
            let (rows, columns) = (shape[0], expected.len() / shape[0]);
            for (row, expected) in expected.chunks(columns).enumerate() {
                let found = pollster::block_on(checkpoint.read_rows(weight, row..row + 1)).unwrap();
                assert_eq!(found, expected, "{name}, row {row}");
            }
            if shape.len() == 2 {
                let view = |other: &str, _: &TensorInfo| {
                    (other == weight).then(|| (other.to_owned(), View::Transposed)).into_iter().collect()
                };
                let transposed = pollster::block_on(checkpoint.with_views(view).unwrap().read(weight)).unwrap();
                let place = |index: usize| expected[index % rows * columns + index / rows];
                assert_eq!(transposed, (0..expected.len()).map(place).collect::<Vec<_>>(), "{name}");
            }
        }
    }

    #[test]
    fn missing_files_and_tensors_are_named() {
        let one = file(&[("a", &[1], &[1.0])]);
        let cases = [
            (vec![], "model.safetensors is missing: no weights here"),
            (
                vec![index(r#""a":"1.safetensors""#)],
                "1.safetensors is missing: model.safetensors.index.json lists it as the shard of a",
            ),
            (vec![("model-00001-of-00002.safetensors", one.clone())], "model-00002-of-00002.safetensors is missing"),
            (vec![("pytorch_model-00002-of-00002.bin", one.clone())], "pytorch_model-00001-of-00002.bin is missing"),
            // Never the file outside.
            (
                vec![index(r#""a":"../secret""#), ("../secret", one.clone())],
                "/secret is missing: model.safetensors.index",
            ),
            (vec![index(r#""a":"/etc/passwd""#)], "/passwd is missing"),
            (vec![index(r#""a":"../.ssh""#)], "\"../.ssh\", which is not a file in the same folder"),
            (vec![index(r#""a":"""#)], "not a file in the same folder"),
            (vec![index(r#""a":".""#)], "not a file in the same folder"),
            (vec![index(r#""a":3"#)], "not an index"),
            (vec![(INDEX, b"{}".to_vec())], "missing field `weight_map`"),
            (vec![("model.safetensors", b"short".to_vec())], "truncated"),
        ];
        for (files, reason) in cases {
            let error = open(files).unwrap_err().to_string();
            assert!(error.contains(reason), "{error:?} lacks {reason:?}");
        }
        // A shard that nobody reads is no error.
        let files = vec![index(r#""a":"1.safetensors","b":"2.safetensors""#), ("1.safetensors", one.clone())];
        let checkpoint = Rc::new(open(files).unwrap());
        assert_eq!(pollster::block_on(checkpoint.read("a")).unwrap(), [1.0]);
        let error = pollster::block_on(checkpoint.read("b")).unwrap_err().to_string();
        let reason = "tensor b is missing from (memory)/2.safetensors, which is not there although \
                      model.safetensors.index.json lists it (is the download complete?)";
        assert!(error.contains(reason), "{error}");
        // The model has its tensors: reading one, even an optional one, is an error.
        let weights = crate::weights::view::Weights::new(checkpoint);
        assert!(weights.contains("b") && !weights.contains("c"));
        // Nor is a name.
        let checkpoint = open(vec![index(r#""a":"1.safetensors","b":"1.safetensors""#), ("1.safetensors", one)]);
        let checkpoint = checkpoint.unwrap();
        assert_eq!(pollster::block_on(checkpoint.read("a")).unwrap(), [1.0]);
        let error = pollster::block_on(checkpoint.read("b")).unwrap_err().to_string();
        let reason = "tensor b is missing from 1.safetensors, although model.safetensors.index.json lists";
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn folders_open_as_they_get_left() {
        let weights = |value: f32| file(&[("a", &[1], &[value])]);
        let stale = index(r#""a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors""#);
        let half = ("model-00001-of-00002.safetensors", weights(3.0));
        let bins = [
            ("pytorch_model-00001-of-00002.bin", weights(4.0)),
            ("pytorch_model-00002-of-00002.bin", file(&[("b", &[1], &[5.0])])),
        ];
        for (files, expected) in [
            // An index next to a newer single file, with and without its shards.
            (vec![stale.clone(), ("model.safetensors", weights(1.0))], 1.0),
            (
                vec![
                    index(r#""a":"x.safetensors""#),
                    ("x.safetensors", weights(3.0)),
                    ("model.safetensors", weights(1.0)),
                ],
                1.0,
            ),
            (vec![stale.clone(), half.clone(), ("pytorch_model.bin", weights(2.0))], 2.0),
            // An index of other shards, and shards of an earlier download.
            (vec![stale.clone(), half.clone(), ("model-00001-of-00001.safetensors", weights(7.0))], 7.0),
            // An index with the paths of the machine where it was written, and with a folder.
            (vec![index(r#""a":"/home/me/x.safetensors""#), ("x.safetensors", weights(8.0))], 8.0),
            (vec![index(r#""a":"./shards/x.safetensors""#), ("shards/x.safetensors", weights(9.0))], 9.0),
            // Shards without an index, next to other files.
            (
                [bins.to_vec(), vec![("model-card.md", b"x".to_vec()), ("training_args.bin", b"x".to_vec())]].concat(),
                4.0,
            ),
            (vec![("model-1-of-1.safetensors", weights(6.0))], 6.0),
            (vec![("Model-00001-of-00001.SafeTensors", weights(6.5))], 6.5),
            // Paths of shards in an index.
            (vec![index(r#""a":"./x.safetensors""#), ("x.safetensors", weights(7.0))], 7.0),
            (vec![index(r#""a":"sub/x.safetensors""#), ("sub/x.safetensors", weights(8.0))], 8.0),
            (vec![index(r#""a":"sub\\x.safetensors""#), ("sub/x.safetensors", weights(9.0))], 9.0),
            // The f16 variant.
            (vec![("model.fp16.safetensors", weights(10.0))], 10.0),
            (vec![("model.fp16-00001-of-00001.safetensors", weights(11.0))], 11.0),
            (
                vec![
                    ("model.safetensors.index.fp16.json", index(r#""a":"model.fp16-00001-of-00001.safetensors""#).1),
                    ("model.fp16-00001-of-00001.safetensors", weights(12.0)),
                ],
                12.0,
            ),
        ] {
            let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
            let checkpoint = open(files.clone()).unwrap_or_else(|error| panic!("{names:?}: {error}"));
            assert_eq!(pollster::block_on(checkpoint.read("a")).unwrap(), [expected], "{names:?}");
        }
    }

    #[test]
    fn git_lfs_pointers_are_named() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n".to_vec();
        for name in ["model.safetensors", "pytorch_model.bin", INDEX, "model-00001-of-00001.safetensors"] {
            let error = open(vec![(name, pointer.clone())]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("git lfs pull"), "{error}");
        }
    }

    #[test]
    fn the_content_decides_the_format() {
        assert!(open(vec![("pytorch_model.bin", file(&[("a", &[1], &[1.0])]))]).unwrap().info("a").is_some());
        // A header of 0x4b50 bytes makes safetensors start with "PK".
        let mut bytes = vec![b'P', b'K', 0, 0, 0, 0, 0, 0, b'{'];
        bytes.resize(8 + 0x4b50 - 1, b' ');
        bytes.push(b'}');
        assert!(open(vec![("pytorch_model.bin", bytes)]).unwrap().is_empty());
    }
}
