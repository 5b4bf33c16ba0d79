//! One or many files of tensors as one set of names.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use super::dtype::{Dtype, FLOAT_TYPES, decode_f32, first_non_finite};
use super::source::{ByteSource, Folder, read_file, read_range};
use super::{safetensors, torch_bin};
use crate::tensor::{GROUP_SIZE, Packed};
use crate::{Error, Result};

/// Where the weights of a language model may be in its folder, best first.
pub const MODEL_FILES: &[&str] =
    &["model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin"];

/// Where the weights of an OpenCLIP model may be in its folder, best first.
pub const OPEN_CLIP_FILES: &[&str] = &[
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
];

/// Largest index file that is read.
const MAX_INDEX: u64 = 64 << 20;

/// Bytes of rows that are read at once at most, when asked to.
const MAX_ROWS: u64 = 1 << 30;

/// Bytes of a tensor that are read at once: enough to be fast, little beside what they become.
const PIECE: u64 = 8 << 20;

/// What a tensor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Type of its elements.
    pub dtype: Dtype,
    /// Sizes of its dimensions, slowest first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// How many elements; `None` if more than 2^64.
    pub fn elements(&self) -> Option<u64> {
        // A zero anywhere makes it empty, whatever the product of the others is.
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size as u64))
    }

    /// How many bytes in the file; `None` if more than 2^64.
    pub fn bytes(&self) -> Option<u64> {
        self.dtype.bytes(self.elements()?)
    }
}

/// A tensor in a file: its bytes are known to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its name in the file.
    pub name: String,
    /// What it is.
    pub info: TensorInfo,
    /// Where its elements start, in bytes from the start of the file.
    pub offset: u64,
    /// Whether its elements are stored with the highest byte first.
    pub big_endian: bool,
    /// In which order its rows are stored.
    pub rows: RowOrder,
}

impl StoredTensor {
    /// A tensor with the lowest byte first and its rows in order.
    pub fn new(name: String, info: TensorInfo, offset: u64) -> Self {
        Self { name, info, offset, big_endian: false, rows: RowOrder::InOrder }
    }
}

/// An order of a matrix's rows, as stored or as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// As they are numbered.
    InOrder,
    /// The rows of each of so many heads taken in turn from the head's first and second half, so that those that the rotary
    /// embedding turns together are neighbours. llama.cpp stores queries and keys so.
    HalvesInTurn {
        /// Heads that the rows are divided into.
        heads: usize,
    },
    /// The matrix is stored transposed, its columns one after another.
    Transposed,
}

impl RowOrder {
    /// Where row `row` of `rows` is stored.
    fn stored(self, row: usize, rows: usize) -> usize {
        match self {
            // A transposed matrix has no rows to find; it is read as a whole.
            Self::InOrder | Self::Transposed => row,
            Self::HalvesInTurn { heads } => {
                let head_rows = (rows / heads.max(1)).max(1);
                let half = (head_rows / 2).max(1);
                let (head, within) = (row / head_rows, row % head_rows);
                head * head_rows + 2 * (within % half) + within / half
            }
        }
    }

    /// The number of the row that is at place `place` of `rows`.
    fn number(self, place: usize, rows: usize) -> usize {
        match self {
            Self::InOrder | Self::Transposed => place,
            Self::HalvesInTurn { heads } => {
                let head_rows = (rows / heads.max(1)).max(1);
                let (head, within) = (place / head_rows, place % head_rows);
                head * head_rows + within % 2 * (head_rows / 2) + within / 2
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Located {
    stored: Rc<StoredTensor>,
    file: usize,
    /// Added whenever the tensor is read.
    added: Vec<Rc<LowRank>>,
}

impl Located {
    fn new(stored: StoredTensor, file: usize) -> Self {
        Self { stored: Rc::new(stored), file, added: Vec::new() }
    }
}

/// What a tensor of a checkpoint is to be seen as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// Some of its rows.
    Rows(Range<usize>),
    /// All of it under another shape of as many elements.
    Shaped(Vec<usize>),
    /// The transposed matrix.
    Transposed,
}

impl Part {
    /// The stored tensor that the part is; `None` where the tensor has no such part.
    fn of(&self, stored: &StoredTensor) -> Option<StoredTensor> {
        let mut part = stored.clone();
        let in_order = stored.rows == RowOrder::InOrder;
        match self {
            Self::Whole => {}
            Self::Rows(rows) => {
                let count = *stored.info.shape.first()?;
                if !in_order || rows.start > rows.end || rows.end > count {
                    return None;
                }
                part.offset += stored.info.bytes()?.checked_div(count as u64)? * rows.start as u64;
                *part.info.shape.first_mut()? = rows.len();
            }
            Self::Shaped(shape) => {
                part.info.shape.clone_from(shape);
                if !in_order || part.info.elements() != stored.info.elements() {
                    return None;
                }
            }
            Self::Transposed => {
                if !in_order || stored.info.shape.len() != 2 || stored.info.dtype.unit().0 != 1 {
                    return None;
                }
                part.info.shape.reverse();
                part.rows = RowOrder::Transposed;
            }
        }
        Some(part)
    }
}

/// The product of two thin matrices, to be added to a larger one: a low-rank adaptation (LoRA, Hu and others, 2021).
#[derive(Debug, Clone)]
pub struct LowRank {
    /// Where the two are.
    pub checkpoint: Rc<Checkpoint>,
    /// The name of the matrix [rows, rank].
    pub up: String,
    /// The name of the matrix [rank, columns].
    pub down: String,
    /// The product is multiplied by this.
    pub scale: f32,
}

impl LowRank {
    /// Adds rows of the product to `values`, which are the same rows of the larger matrix.
    async fn add(&self, rows: Range<usize>, values: &mut [f32]) -> Result<()> {
        let up = self.checkpoint.read_rows(&self.up, rows.clone()).await?;
        let down = self.checkpoint.read(&self.down).await?;
        let columns = values.len() / rows.len().max(1);
        let rank = up.len() / rows.len().max(1);
        for (row, up) in values.chunks_exact_mut(columns.max(1)).zip(up.chunks_exact(rank.max(1))) {
            for (up, down) in up.iter().zip(down.chunks_exact(columns.max(1))) {
                let weight = up * self.scale;
                row.iter_mut().zip(down).for_each(|(value, down)| *value += weight * down);
            }
        }
        Ok(())
    }
}

/// A set of named tensors in one or many files. Cheap next to the tensors: only headers are in memory.
#[derive(Clone)]
pub struct Checkpoint {
    name: String,
    files: Vec<Rc<dyn ByteSource>>,
    tensors: BTreeMap<String, Located>,
}

impl Checkpoint {
    /// Opens the first of `candidates` that is in the folder, with all shards if it is an index.
    ///
    /// # Errors
    /// [`Error::MissingFile`] if there is none of them, or not every shard that the index names;
    /// [`Error::MissingTensor`] if a shard lacks a tensor that the index says it has; whatever is wrong with the files.
    pub async fn open(folder: &dyn Folder, candidates: &[&str]) -> Result<Self> {
        Self::find(folder, candidates).await?.ok_or_else(|| Error::MissingFile {
            file: format!("{}/{}", folder.name(), candidates.first().unwrap_or(&"model.safetensors")),
            hint: format!("no weights here; looked for {}", candidates.join(", ")),
        })
    }

    /// As [`Self::open`], but `None` if there is none of `candidates`.
    ///
    /// # Errors
    /// As [`Self::open`] otherwise.
    pub async fn find(folder: &dyn Folder, candidates: &[&str]) -> Result<Option<Self>> {
        for file in candidates {
            if file.ends_with(".json") {
                if let Some(index) = read_file(folder, file, MAX_INDEX).await? {
                    return Self::open_index(folder, file, &index).await.map(Some);
                }
            } else if let Some(source) = folder.open(file).await? {
                return Self::open_file(source).await.map(Some);
            }
        }
        Ok(None)
    }

    /// Opens one file, by what its content is: a torch archive or pickle, or else safetensors.
    ///
    /// # Errors
    /// Whatever is wrong with the file.
    pub async fn open_file(source: Rc<dyn ByteSource>) -> Result<Self> {
        let stored = read_tensors(&*source).await?;
        Ok(Self::of_tensors(source, stored.into_iter().map(|stored| (stored.name.clone(), stored)).collect()))
    }

    /// A checkpoint of one file whose tensors are known.
    pub(super) fn of_tensors(source: Rc<dyn ByteSource>, tensors: Vec<(String, StoredTensor)>) -> Self {
        let located = |(name, stored)| (name, Located::new(stored, 0));
        Self {
            name: source.name().to_owned(),
            files: vec![source],
            tensors: tensors.into_iter().map(located).collect(),
        }
    }

    async fn open_index(folder: &dyn Folder, index_file: &str, index: &[u8]) -> Result<Self> {
        let index_name = format!("{}/{index_file}", folder.name());
        let mut checkpoint = Self { name: folder.name().to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        for (shard, names) in parse_index(&index_name, index)? {
            let Some(source) = folder.open(&shard).await? else {
                return Err(Error::MissingFile {
                    file: format!("{}/{shard}", folder.name()),
                    hint: format!("{index_file} says that it holds {}; is the download complete?", first(&names)),
                });
            };
            let stored = read_tensors(&*source).await?;
            let mut stored: BTreeMap<_, _> = stored.into_iter().map(|stored| (stored.name.clone(), stored)).collect();
            for name in names {
                let Some(stored) = stored.remove(&name) else {
                    let hint = format!(", though {index_file} says that it is there");
                    return Err(Error::MissingTensor { name, file: source.name().to_owned(), hint });
                };
                let located = Located::new(stored, checkpoint.files.len());
                checkpoint.tensors.insert(name, located);
            }
            checkpoint.files.push(source);
        }
        Ok(checkpoint)
    }

    /// The folder or file, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// All tensors' names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors in order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, located)| (name.as_str(), &located.stored.info))
    }

    /// What a tensor is, if it is here.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|located| &located.stored.info)
    }

    /// The tensors that `rename` gives a name to, under that name, in the same files. Messages about their contents
    /// keep the name in the file.
    pub fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let tensors =
            self.tensors.iter().filter_map(|(name, located)| Some((rename(name)?, located.clone()))).collect();
        Self { name: self.name.clone(), files: self.files.clone(), tensors }
    }

    /// Parts of tensors under names of their own, in the same files: `view` says of a tensor which.
    ///
    /// # Errors
    /// [`Error::WrongShape`] if a tensor has no such part.
    pub fn viewed(&self, view: impl Fn(&str, &TensorInfo) -> Vec<(String, Part)>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, located) in &self.tensors {
            for (seen, part) in view(name, &located.stored.info) {
                let stored = part.of(&located.stored).ok_or_else(|| Error::WrongShape {
                    name: name.clone(),
                    found: located.stored.info.shape.clone(),
                    expected: format!("one that {seen} can be {part:?} of"),
                })?;
                tensors.insert(seen, Located::new(stored, located.file));
            }
        }
        Ok(Self { name: self.name.clone(), files: self.files.clone(), tensors })
    }

    /// Has a product added to a tensor whenever it is read.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongShape`] where the three do not go together; [`Error::Unsupported`] if the tensor is
    /// quantised.
    pub fn add_low_rank(&mut self, name: &str, product: LowRank) -> Result<()> {
        let TensorInfo { shape, dtype } = self.locate(name)?.stored.info.clone();
        if matches!(dtype, Dtype::Block(_)) {
            return Err(Error::Unsupported {
                what: format!("adding to tensor {name} of type"),
                found: dtype.name().to_owned(),
                supported: "F32, F16, BF16: add before quantising".to_owned(),
            });
        }
        let columns = |shape: &[usize]| shape.iter().skip(1).product::<usize>();
        let up = self.shape_in(&product, &product.up)?;
        let down = self.shape_in(&product, &product.down)?;
        let wrong = |tensor: &str, found: &[usize], expected: String| Error::WrongShape {
            name: tensor.to_owned(),
            found: found.to_vec(),
            expected: format!("{expected}, since {name} has {shape:?}"),
        };
        if down.is_empty() || columns(&down) != columns(&shape) {
            return Err(wrong(&product.down, &down, format!("{} elements a row", columns(&shape))));
        }
        if up.first() != shape.first() || columns(&up) != down[0] {
            return Err(wrong(&product.up, &up, format!("{:?} rows of {}", shape.first(), down[0])));
        }
        if let Some(located) = self.tensors.get_mut(name) {
            located.added.push(Rc::new(product));
        }
        Ok(())
    }

    fn shape_in(&self, product: &LowRank, name: &str) -> Result<Vec<usize>> {
        Ok(product.checkpoint.locate(name)?.stored.info.shape.clone())
    }

    /// This checkpoint's tensors, and those of `other` under names that this one has not.
    pub fn extended(&self, other: &Self) -> Self {
        let mut result = self.clone();
        let shift = result.files.len();
        result.files.extend(other.files.iter().cloned());
        for (name, located) in &other.tensors {
            let moved = Located { file: located.file + shift, ..located.clone() };
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

    /// Reads rows along the first dimension as `f32`, row-major, so that a large tensor can be taken in pieces. (A tensor
    /// without dimensions has one row.)
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::WrongDtype`] if it is not of floats; [`Error::BadValue`] at the first NaN or
    /// infinity; [`Error::InvalidArgument`] if it has fewer rows; [`Error::Io`].
    pub async fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        self.read_rows_in(name, rows, RowOrder::InOrder).await
    }

    /// The rows that are at places `rows` when a tensor's rows are in `order`, otherwise as [`Self::read_rows`].
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
        for product in &located.added {
            Box::pin(product.add(rows.clone(), &mut values)).await?;
        }
        Ok(values)
    }

    /// Rows as they are in the file.
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

    pub(super) fn missing(&self, name: &str) -> Error {
        let hint = match self.tensors.len() {
            0 => ", which holds no such tensors at all".to_owned(),
            count => format!(" (one of {count} tensors there is {})", first(&self.tensors.keys().collect::<Vec<_>>())),
        };
        Error::MissingTensor { name: name.to_owned(), file: self.name.clone(), hint }
    }

    /// The name that a tensor has in its file.
    pub(super) fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.tensors.get(name).map_or(name, |located| &located.stored.name)
    }

    /// The rows of a tensor of blocks, in the device's format that holds the same weights: those that are at places `rows`
    /// when all are in `order`.
    ///
    /// # Errors
    /// As [`Self::read_rows`]; [`Error::WrongDtype`] if it is not of blocks.
    pub async fn read_packed(&self, name: &str, rows: Range<usize>, order: RowOrder) -> Result<Packed> {
        let located = self.locate(name)?;
        let TensorInfo { shape, dtype } = &located.stored.info;
        let Dtype::Block(kind) = *dtype else {
            let (found, expected) = (dtype.name().to_owned(), "a type of blocks".to_owned());
            return Err(Error::WrongDtype { name: name.to_owned(), found, expected });
        };
        let first = (rows.start as u64).saturating_mul(shape.last().copied().unwrap_or(0) as u64);
        let bytes = self.read_row_bytes(located, rows, order).await?;
        kind.repack(&bytes).map_err(|(group, value)| Error::BadValue {
            name: located.stored.name.clone(),
            value,
            index: first.saturating_add((group * GROUP_SIZE) as u64),
        })
    }

    /// The bytes of the rows along the first dimension that are at places `rows` when all are in `order`.
    async fn read_row_bytes(&self, located: &Located, rows: Range<usize>, order: RowOrder) -> Result<Vec<u8>> {
        let StoredTensor { name, info, offset, rows: stored, .. } = &*located.stored;
        let count = info.shape.first().copied().unwrap_or(1);
        if rows.start >= rows.end || rows.end > count {
            return Err(Error::InvalidArgument(format!("rows {rows:?} of tensor {name}, which has {count}")));
        }
        let source = self.files.get(located.file).ok_or_else(|| self.missing(name))?;
        let row_bytes = info.bytes().unwrap_or(0) / count as u64;
        let as_stored = order == *stored;
        let place = |place| if as_stored { place } else { stored.stored(order.number(place, count), count) };
        let places: Vec<usize> = rows.map(place).collect();
        let first = places.iter().copied().min().unwrap_or(0);
        let span = places.iter().copied().max().unwrap_or(0) + 1 - first;
        let bytes = read_range(&**source, offset + first as u64 * row_bytes, span as u64 * row_bytes, MAX_ROWS).await?;
        if as_stored {
            return Ok(bytes);
        }
        let row_bytes = row_bytes as usize;
        let row = |place: &usize| bytes.get((place - first) * row_bytes..(place - first + 1) * row_bytes);
        Ok(places.iter().filter_map(row).flatten().copied().collect())
    }

    /// Reads elements `range` of a tensor; the range is inside it.
    async fn read_elements(&self, located: &Located, range: Range<u64>) -> Result<Vec<f32>> {
        let StoredTensor { name, info, offset, big_endian, rows: _ } = &*located.stored;
        if !info.dtype.is_float() {
            return Err(not_floats(&located.stored));
        }
        let source = self.files.get(located.file).ok_or_else(|| self.missing(name))?;
        let (length, size) = info.dtype.unit();
        let too_large = || Error::Io {
            file: source.name().to_owned(),
            reason: format!("no memory for {} elements of tensor {name}", range.end - range.start),
        };
        let count = usize::try_from(range.end - range.start).map_err(|_| too_large())?;
        let mut values = Vec::new();
        values.try_reserve_exact(count).map_err(|_| too_large())?;
        let mut bytes = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + PIECE / size as u64 * length as u64);
            let before = info.dtype.bytes(start).unwrap_or(u64::MAX);
            bytes.resize(info.dtype.bytes(end - start).map_or(0, |bytes| bytes as usize), 0);
            source.read(offset.saturating_add(before), &mut bytes).await?;
            if *big_endian {
                bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
            }
            let decoded = values.len();
            // Floats all: checked above.
            let _ = decode_f32(info.dtype, &bytes, &mut values);
            check_finite(name, values.get(decoded..).unwrap_or_default(), start)?;
            start = end;
        }
        Ok(values)
    }
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

/// Refuses NaN and infinity; `first` is the number of the first value in its tensor.
fn check_finite(name: &str, values: &[f32], first: u64) -> Result<()> {
    match first_non_finite(values) {
        None => Ok(()),
        Some(bad) => {
            let value = values.get(bad).copied().unwrap_or(f32::NAN);
            Err(Error::BadValue { name: name.to_owned(), value, index: first.saturating_add(bad as u64) })
        }
    }
}

/// Goes by content, so that safetensors called `.bin` work, and by name only where the content says nothing.
async fn read_tensors(source: &dyn ByteSource) -> Result<Vec<StoredTensor>> {
    let mut start = [0; 9];
    if source.len() >= start.len() as u64 {
        source.read(0, &mut start).await?;
    }
    // The byte where safetensors have the brace of their header is the compression method in a zip archive.
    if start.ends_with(b"{") || source.name().ends_with(".safetensors") {
        safetensors::read_header(source).await
    } else {
        torch_bin::read_state_dict(source).await
    }
}

fn first<Name: ToString>(names: &[Name]) -> String {
    names.first().map(ToString::to_string).unwrap_or_default()
}

/// Reads an index file: the names of the tensors in each shard.
///
/// # Errors
/// [`Error::Malformed`] if it is not an index, or if it names a file outside its folder.
pub fn parse_index(file: &str, bytes: &[u8]) -> Result<BTreeMap<String, Vec<String>>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let malformed = |reason| Error::Malformed { file: file.to_owned(), offset: 0, reason };
    let index: Index =
        serde_json::from_slice(bytes).map_err(|error| malformed(format!("not an index of tensors: {error}")))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, shard) in index.weight_map {
        // An index speaks of files beside it; a path elsewhere is a mistake or an attack.
        if shard.is_empty() || shard.contains(['/', '\\', ':', '\0']) || shard.starts_with('.') {
            return Err(malformed(format!("tensor {name} is said to be in {shard:?}, which is not a file beside it")));
        }
        shards.entry(shard).or_default().push(name);
    }
    Ok(shards)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::source::MemoryFolder;
    use super::*;

    /// A safetensors file of `f32`, made by the reference library.
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
    fn shards_become_one() {
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
    fn renaming_and_extending_keep_the_contents() {
        let open = |bytes| open(vec![("model.safetensors", bytes)]).unwrap();
        let one = open(file(&[("x.a", &[1], &[1.0]), ("x.b", &[1], &[2.0])]));
        let two = open(file(&[("a", &[1], &[3.0]), ("c", &[1], &[f32::INFINITY])]));
        let both = one.renamed(|name| name.strip_prefix("x.").map(str::to_owned)).extended(&two);
        let read = |name| pollster::block_on(both.read(name));
        assert_eq!((read("a"), read("b")), (Ok(vec![1.0]), Ok(vec![2.0])));
        assert_eq!(read("c"), Err(Error::BadValue { name: "c".into(), value: f32::INFINITY, index: 0 }));
    }

    #[test]
    fn a_bad_value_is_found_by_its_place_in_the_whole_tensor() {
        // More than one piece is read.
        let rows = PIECE as usize / 4 / 1000 + 10;
        let mut values = vec![0.5; rows * 1000];
        values[rows * 1000 - 1234] = f32::NEG_INFINITY;
        let checkpoint = open(vec![("model.safetensors", file(&[("w", &[rows, 1000], &values)]))]).unwrap();
        let index = rows as u64 * 1000 - 1234;
        let error = Error::BadValue { name: "w".into(), value: f32::NEG_INFINITY, index };
        assert_eq!(pollster::block_on(checkpoint.read("w")).unwrap_err(), error);
        assert_eq!(pollster::block_on(checkpoint.read_rows("w", rows - 3..rows)).unwrap_err(), error);
        assert_eq!(pollster::block_on(checkpoint.read_rows("w", 1..rows - 2)).unwrap().len(), (rows - 3) * 1000);
    }

    #[test]
    fn what_is_missing_is_named() {
        let one = file(&[("a", &[1], &[1.0])]);
        let cases = [
            (vec![], "model.safetensors.index.json is missing: no weights here"),
            (
                vec![index(r#""a":"1.safetensors""#)],
                "1.safetensors is missing: model.safetensors.index.json says that it holds a",
            ),
            (
                vec![index(r#""b":"1.safetensors""#), ("1.safetensors", one)],
                "tensor b is missing from 1.safetensors, though model.safetensors.index.json says",
            ),
            (vec![index(r#""a":"../secret""#)], "\"../secret\", which is not a file beside it"),
            (vec![index(r#""a":"/etc/passwd""#)], "not a file beside it"),
            (vec![index(r#""a":3"#)], "not an index"),
            (vec![(INDEX, b"{}".to_vec())], "missing field `weight_map`"),
            (vec![("model.safetensors", b"short".to_vec())], "truncated"),
        ];
        for (files, reason) in cases {
            let error = open(files).unwrap_err().to_string();
            assert!(error.contains(reason), "{error:?} lacks {reason:?}");
        }
    }

    #[test]
    fn formats_are_told_apart_by_content() {
        assert!(open(vec![("pytorch_model.bin", file(&[("a", &[1], &[1.0])]))]).unwrap().info("a").is_some());
        // A header of 0x4b50 bytes makes safetensors start with "PK".
        let mut bytes = vec![b'P', b'K', 0, 0, 0, 0, 0, 0, b'{'];
        bytes.resize(8 + 0x4b50 - 1, b' ');
        bytes.push(b'}');
        assert!(open(vec![("pytorch_model.bin", bytes)]).unwrap().is_empty());
    }
}
