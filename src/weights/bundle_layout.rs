//! The layout of a bundle: the shard and the encoding of every tensor. The host writes the files of a [`Layout`].

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::rc::Rc;

use safetensors::tensor::TensorInfo;

use super::blocks::BlockType;
use super::bundle::{CLIP_CONFIG, FORMAT, GGUF_HEADER, Manifest, VERSION};
use super::dtype::Dtype;
use super::expected::{self, ExpectedTensor, Storage};
use super::gguf_model::GgufModel;
use super::mgm::{MgmCheckpoint, VisionWeights};
use super::safetensors::write_header;
use super::sdxl::{self, SdxlCheckpoint, VAE};
use super::stored_tensor::StoredTensor;
use super::view::Weights;
use crate::io::{ByteSource, Folder, read_file, read_range};
use crate::tensor::{GROUP_SIZE, Precision, pack_rows};
use crate::{Error, Result, json};

/// The header takes at most this fraction of a shard: 1/64.
const HEADER_FRACTION: u64 = 64;
/// Most bytes of a tensor's entry in the header.
const DESCRIPTION_BYTES: u64 = 512;
/// Bytes that are encoded at a time.
const CHUNK_BYTES: u64 = 4 << 20;
/// Configurations that go into the manifest, if they exist.
const CONFIGS: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];
/// Files that are copied unchanged, if they exist.
const FILES: [&str; 4] = ["tokenizer.json", "tokenizer.model", "chat_template.jinja", "chat_template.json"];
/// Largest file that is copied.
const MAX_FILE: u64 = 1 << 30;

/// A bundle to be written.
pub struct Layout {
    /// The manifest without its lists of files: the host that writes the files adds them with their checksums.
    pub manifest: Manifest,
    /// Files to copy: names and contents.
    pub files: Vec<(String, Vec<u8>)>,
    /// Shards to write.
    pub shards: Vec<BundleShard>,
}

/// A shard to be written.
pub struct BundleShard {
    /// The part of the model that it belongs to.
    pub part: &'static str,
    tensors: Vec<Placed>,
    bytes: u64,
}

/// Rows of a tensor in a shard.
struct Placed {
    tensor: Rc<BundleTensor>,
    rows: Range<usize>,
}

/// A tensor of the bundle and where its bytes come from.
struct BundleTensor {
    name: String,
    /// Element type in the shard's header.
    dtype: safetensors::Dtype,
    /// Shape in the shard's header.
    shape: Vec<usize>,
    row_bytes: u64,
    origin: Origin,
}

/// The origin of a tensor's bytes.
enum Origin {
    /// A checkpoint's tensor, to be written in this encoding.
    Values { weights: Weights, name: String, encoding: Encoding, columns: usize },
    /// Bytes of a file, copied.
    Bytes { source: Rc<dyn ByteSource>, offset: u64 },
}

/// How values are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    F32,
    F16,
    Block(BlockType),
}

impl Encoding {
    /// The encoding of a matrix with `columns` at a precision; f16 if the columns do not divide into groups.
    fn for_matrix(precision: Precision, columns: usize) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Q8 if columns.is_multiple_of(GROUP_SIZE) => Self::Block(BlockType::Q8_0),
            Precision::Q4 if columns.is_multiple_of(GROUP_SIZE) => Self::Block(BlockType::Q4_1),
            _ => Self::F16,
        }
    }
}

/// A manifest of the current format without configurations and shards.
fn new_manifest(name: &str, precision: impl ToString) -> Manifest {
    Manifest {
        format: FORMAT.to_owned(),
        version: VERSION,
        name: name.to_owned(),
        precision: precision.to_string(),
        ..Manifest::default()
    }
}

impl Layout {
    /// The bundle of a checkpoint, its language model at `precision`. `conversation` is the name of its template,
    /// if it has none of its own. No shard is larger than `shard_bytes`.
    ///
    /// # Errors
    /// The errors of reading the checkpoint's files.
    pub async fn from_checkpoint(
        checkpoint: &MgmCheckpoint,
        name: &str,
        precision: Precision,
        conversation: Option<&str>,
        shard_bytes: u64,
    ) -> Result<Self> {
        let mut manifest = Manifest { conversation: conversation.map(str::to_owned), ..new_manifest(name, precision) };
        let folder = &*checkpoint.folder;
        manifest.configs = read_configs(folder, &CONFIGS).await?;
        let files = read_files(folder, &FILES).await?;
        let mut layout = LayoutBuilder::new(shard_bytes);
        if let Some(vision) = &checkpoint.vision {
            manifest.configs.insert(CLIP_CONFIG.to_owned(), vision.clip_config.to_json());
            layout.part("vision");
            // As in the reference, the vision side is never quantised.
            let hidden = checkpoint.config.language.hidden_size;
            layout.vision(vision, hidden, precision.min(Precision::F16))?;
        }
        layout.part("language");
        let expected = expected::language(&checkpoint.config.language);
        layout.part_values(&checkpoint.language, &expected, precision, str::to_owned)?;
        Ok(layout.finish(manifest, files))
    }

    /// The bundle of a GGUF file, with its blocks unchanged.
    ///
    /// # Errors
    /// The errors of reading the file.
    pub async fn from_gguf(
        source: &Rc<dyn ByteSource>,
        model: &GgufModel,
        name: &str,
        shard_bytes: u64,
    ) -> Result<Self> {
        let tensors = &model.header.tensors;
        let data = tensors.iter().map(|tensor| tensor.offset).min().unwrap_or(source.len());
        let header = read_range(&**source, 0, data, MAX_FILE).await?;
        let mut layout = LayoutBuilder::new(shard_bytes);
        layout.part("language");
        for tensor in tensors {
            layout.copy(tensor, source)?;
        }
        let manifest = Manifest { gguf_bytes: Some(source.len()), ..new_manifest(name, commonest_precision(tensors)) };
        Ok(layout.finish(manifest, vec![(GGUF_HEADER.to_owned(), header)]))
    }

    /// The bundle of an image model in diffusers' layout in `folder`, its matrices at `precision`.
    ///
    /// # Errors
    /// The errors of reading the model's files.
    pub async fn from_diffusion(
        folder: &Rc<dyn Folder>,
        checkpoint: &SdxlCheckpoint,
        name: &str,
        precision: Precision,
        shard_bytes: u64,
    ) -> Result<Self> {
        let mut manifest = new_manifest(name, precision);
        manifest.configs = read_configs(&**folder, &sdxl::CONFIGS).await?;
        let mut files = read_files(&**folder, &sdxl::FILES).await?;
        files.iter_mut().for_each(|(name, _)| *name = sdxl::flat_name(name));
        let mut layout = LayoutBuilder::new(shard_bytes);
        for (part, (name, weights, expected)) in checkpoint.parts() {
            layout.part("diffusion");
            // The autoencoder is not quantised.
            let precision = if name == VAE { precision.min(Precision::F16) } else { precision };
            layout.part_values(weights, &expected, precision, |name| format!("{part}.{name}"))?;
        }
        Ok(layout.finish(manifest, files))
    }

    /// Bytes that [`BundleShard::write`] reads for all shards.
    pub fn source_bytes(&self) -> u64 {
        self.shards.iter().map(BundleShard::source_bytes).sum()
    }

    /// Bytes of all files except the manifest.
    pub fn bytes(&self) -> u64 {
        let files: u64 = self.files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        files + self.shards.iter().map(|shard| shard.bytes).sum::<u64>()
    }
}

/// The configurations of `names` that the folder has.
async fn read_configs(folder: &dyn Folder, names: &[&str]) -> Result<BTreeMap<String, serde_json::Value>> {
    let mut configs = BTreeMap::new();
    for (name, bytes) in read_files(folder, names).await? {
        let config = json::from_slice(&bytes)
            .map_err(|error| Error::Config { file: format!("{}/{name}", folder.name()), reason: error.to_string() })?;
        configs.insert(name, config);
    }
    Ok(configs)
}

/// Names and contents of the files of `names` that the folder has.
async fn read_files(folder: &dyn Folder, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for name in names {
        if let Some(bytes) = read_file(folder, name, MAX_FILE).await? {
            files.push(((*name).to_owned(), bytes));
        }
    }
    Ok(files)
}

/// The precision of the largest part of the weights.
fn commonest_precision(tensors: &[StoredTensor]) -> Precision {
    let bytes_at = |precision| {
        let of = |tensor: &&StoredTensor| tensor.info.dtype.precision() == precision;
        tensors.iter().filter(of).filter_map(|tensor| tensor.info.bytes()).sum::<u64>()
    };
    Precision::ALL.into_iter().max_by_key(|precision| bytes_at(*precision)).unwrap_or(Precision::F32)
}

impl BundleShard {
    /// File name of shard `index` of `count`.
    pub fn file(index: usize, count: usize) -> String {
        format!("model-{:05}-of-{count:05}.safetensors", index + 1)
    }

    /// Bytes of data, without the header.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that [`Self::write`] reads.
    pub fn source_bytes(&self) -> u64 {
        self.tensors.iter().map(|placed| placed.tensor.source_row_bytes() * placed.rows.len() as u64).sum()
    }

    /// The shard's header. The data is written after it in chunks: the crate's `serialize` wants all of it in memory.
    ///
    /// # Errors
    /// [`Error::Internal`] if the layout does not fit the format.
    pub fn header(&self) -> Result<Vec<u8>> {
        let mut entries = Vec::with_capacity(self.tensors.len());
        let mut start = 0;
        for Placed { tensor, rows } in &self.tensors {
            let mut shape = tensor.shape.clone();
            if let Some(first) = shape.first_mut() {
                *first = rows.len();
            }
            let end = start + rows.len() * tensor.row_bytes as usize;
            entries.push((tensor.name.clone(), TensorInfo { dtype: tensor.dtype, shape, data_offsets: (start, end) }));
            start = end;
        }
        write_header(entries)
    }

    /// Passes the data to `write`, in order and in chunks of a few MiB.
    ///
    /// # Errors
    /// The errors of reading the checkpoint's files, and those of `write`.
    pub async fn write<E: From<Error>>(&self, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        for Placed { tensor, rows } in &self.tensors {
            let step = (CHUNK_BYTES / tensor.row_bytes.max(1)).max(1) as usize;
            for first in rows.clone().step_by(step) {
                write(&tensor.read(first..(first + step).min(rows.end)).await?)?;
            }
        }
        Ok(())
    }
}

impl BundleTensor {
    /// Bytes of a row where it is read.
    fn source_row_bytes(&self) -> u64 {
        match &self.origin {
            Origin::Bytes { .. } => self.row_bytes,
            Origin::Values { weights, name, .. } => {
                let rows = self.shape.first().copied().unwrap_or(1).max(1) as u64;
                weights.info(name).ok().and_then(|info| info.bytes()).unwrap_or_default() / rows
            }
        }
    }

    async fn read(&self, rows: Range<usize>) -> Result<Vec<u8>> {
        match &self.origin {
            Origin::Bytes { source, offset } => {
                let length = rows.len() as u64 * self.row_bytes;
                read_range(&**source, offset + rows.start as u64 * self.row_bytes, length, u64::MAX).await
            }
            Origin::Values { weights, name, encoding, columns } => {
                let values = weights.read_rows(name, rows).await?;
                Ok(match encoding {
                    Encoding::F32 => bytemuck::cast_slice(&values).to_vec(),
                    // Packing pads a row to a multiple of 4 values; the padding is dropped.
                    Encoding::F16 => {
                        let packed = pack_rows(Precision::F16, (*columns).max(1), &values).data;
                        let padded = packed.len() / (values.len() / (*columns).max(1)).max(1);
                        packed.chunks(padded.max(1)).flat_map(|row| row.iter().take(2 * columns)).copied().collect()
                    }
                    Encoding::Block(kind) => kind.quantize(&values),
                })
            }
        }
    }
}

/// Places tensors into shards, one after the other.
struct LayoutBuilder {
    shard_bytes: u64,
    part: &'static str,
    shards: Vec<BundleShard>,
    quantised: Vec<(String, BlockType)>,
}

impl LayoutBuilder {
    fn new(shard_bytes: u64) -> Self {
        Self { shard_bytes, part: "", shards: Vec::new(), quantised: Vec::new() }
    }

    /// Starts a part, in shards of its own.
    fn part(&mut self, part: &'static str) {
        self.part = part;
        self.shards.push(BundleShard { part, tensors: Vec::new(), bytes: 0 });
    }

    /// Places all tensors of a part: matrices at `precision`, the others as `expected` stores them.
    fn part_values(
        &mut self,
        weights: &Weights,
        expected: &[ExpectedTensor],
        precision: Precision,
        bundle_name: impl Fn(&str) -> String,
    ) -> Result<()> {
        let storage: HashMap<&str, Storage> =
            expected.iter().map(|tensor| (tensor.name.as_str(), tensor.storage)).collect();
        for name in weights.names() {
            // Tensors without use are stored like those with the same number of dimensions.
            let unexpected = if weights.shape(name)?.len() < 2 { Storage::F32 } else { Storage::Matrix };
            let storage = storage.get(name).copied().unwrap_or(unexpected);
            self.values(bundle_name(name), weights, name, storage.in_bundle(precision))?;
        }
        Ok(())
    }

    fn vision(&mut self, vision: &VisionWeights, hidden: usize, precision: Precision) -> Result<()> {
        for (part, expected) in vision.parts().into_iter().zip(vision.expected(hidden)) {
            let (to_checkpoint, weights) = part;
            self.part_values(weights, &expected, precision, to_checkpoint)?;
        }
        Ok(())
    }

    /// Places a checkpoint's tensor.
    fn values(&mut self, bundle_name: String, weights: &Weights, name: &str, precision: Precision) -> Result<()> {
        let shape = weights.shape(name)?.to_vec();
        let columns: usize = shape.iter().skip(1).product();
        let encoding = if shape.len() == 2 || precision <= Precision::F16 {
            Encoding::for_matrix(precision, columns)
        } else {
            Encoding::for_matrix(precision.min(Precision::F16), columns)
        };
        let (dtype, stored_shape, row_bytes) = match encoding {
            Encoding::F32 => (safetensors::Dtype::F32, shape, columns * 4),
            Encoding::F16 => (safetensors::Dtype::F16, shape, columns * 2),
            Encoding::Block(kind) => {
                self.quantised.push((bundle_name.clone(), kind));
                let bytes = columns / kind.block_len() * kind.block_bytes();
                (safetensors::Dtype::U8, vec![shape.first().copied().unwrap_or(1), bytes], bytes)
            }
        };
        let origin = Origin::Values { weights: weights.clone(), name: name.to_owned(), encoding, columns };
        let row_bytes = row_bytes as u64;
        self.place(BundleTensor { name: bundle_name, dtype, shape: stored_shape, row_bytes, origin });
        Ok(())
    }

    /// Places a tensor of a file with its bytes unchanged.
    fn copy(&mut self, tensor: &StoredTensor, source: &Rc<dyn ByteSource>) -> Result<()> {
        let too_large =
            || Error::Config { file: source.name().to_owned(), reason: format!("{} is too large", tensor.name) };
        let bytes = tensor.info.bytes().ok_or_else(too_large)?;
        let shape = &tensor.info.shape;
        // All dimensions but the last are rows.
        let rows: usize = shape.split_last().map_or(1, |(_, above)| above.iter().product());
        let row_bytes = bytes / rows.max(1) as u64;
        let (dtype, shape) = match tensor.info.dtype {
            Dtype::Block(kind) => {
                self.quantised.push((tensor.name.clone(), kind));
                (safetensors::Dtype::U8, vec![rows, row_bytes as usize])
            }
            dtype => {
                let shape = match shape.as_slice() {
                    [] => vec![1],
                    &[columns] => vec![columns],
                    &[.., columns] => vec![rows, columns],
                };
                let dtype = dtype
                    .to_safetensors()
                    .ok_or_else(|| Error::Internal(format!("no safetensors type for {}", dtype.name())))?;
                (dtype, shape)
            }
        };
        let row_bytes = if shape.len() < 2 { bytes / shape[0].max(1) as u64 } else { row_bytes };
        let origin = Origin::Bytes { source: Rc::clone(source), offset: tensor.offset };
        self.place(BundleTensor { name: tensor.name.clone(), dtype, shape, row_bytes, origin });
        Ok(())
    }

    fn place(&mut self, tensor: BundleTensor) {
        let header = self.shard_bytes / HEADER_FRACTION;
        let room = self.shard_bytes - header;
        let most = (header / DESCRIPTION_BYTES).max(1) as usize;
        let tensor = Rc::new(tensor);
        let rows = tensor.shape.first().copied().unwrap_or(1);
        let whole = rows as u64 * tensor.row_bytes;
        let mut first = 0;
        while first < rows {
            let free = self
                .shards
                .last()
                .map_or(0, |shard| if shard.tensors.len() < most { room - shard.bytes.min(room) } else { 0 });
            let fits = (free / tensor.row_bytes.max(1)) as usize;
            let empty = self.shards.last().is_some_and(|shard| shard.tensors.is_empty());
            // Only tensors larger than a shard are split.
            let enough = if whole <= room { fits >= rows } else { fits > 0 };
            if !enough && !empty {
                self.shards.push(BundleShard { part: self.part, tensors: Vec::new(), bytes: 0 });
                continue;
            }
            let count = fits.max(1).min(rows - first);
            if let Some(shard) = self.shards.last_mut() {
                shard.tensors.push(Placed { tensor: Rc::clone(&tensor), rows: first..first + count });
                shard.bytes += count as u64 * tensor.row_bytes;
            }
            first += count;
        }
    }

    fn finish(self, mut manifest: Manifest, files: Vec<(String, Vec<u8>)>) -> Layout {
        manifest.quantised = self.quantised.into_iter().map(|(name, kind)| (name, kind.name().to_owned())).collect();
        let shards = self.shards.into_iter().filter(|shard| !shard.tensors.is_empty()).collect();
        Layout { manifest, files, shards }
    }
}
