//! Laying out a bundle: which tensor goes where and in which form. The host writes what [`Plan`] says.

use std::ops::Range;
use std::rc::Rc;

use serde_json::{Map, Value, json};

use super::super::blocks::BlockType;
use super::super::checkpoint::StoredTensor;
use super::super::dtype::Dtype;
use super::super::gguf_model::GgufModel;
use super::super::mgm::{MgmCheckpoint, VisionWeights};
use super::super::sdxl::{self, SdxlCheckpoint};
use super::super::source::{ByteSource, Folder, read_file, read_range};
use super::super::view::Weights;
use super::{CLIP_CONFIG, FORMAT, GGUF_HEADER, Manifest, VERSION};
use crate::tensor::{GROUP_SIZE, Precision, pack_rows};
use crate::{Error, Result};

/// One part in so many of a shard is room for the header.
const HEADER_PART: u64 = 64;
/// Bytes of a tensor's description in the header at most.
const DESCRIPTION_BYTES: u64 = 512;
/// Bytes that are made at a time.
const PIECE_BYTES: u64 = 4 << 20;
/// Configurations that go into the manifest, where they exist.
const CONFIGS: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];
/// Files that are taken as they are, where they exist.
const FILES: [&str; 2] = ["tokenizer.json", "tokenizer.model"];
/// Largest file that is taken as it is.
const MAX_FILE: u64 = 1 << 30;

/// A bundle to be written.
pub struct Plan {
    /// The manifest, without its lists of files: they have checksums, which only the host that writes them knows.
    pub manifest: Manifest,
    /// Files to write as they are: names and contents.
    pub files: Vec<(String, Vec<u8>)>,
    /// Shards to write.
    pub shards: Vec<Shard>,
}

/// A shard to be written.
pub struct Shard {
    /// The part of the model that it belongs to.
    pub part: &'static str,
    tensors: Vec<Placed>,
    bytes: u64,
}

/// Rows of a tensor in a shard.
struct Placed {
    tensor: Rc<Item>,
    rows: Range<usize>,
}

/// A tensor of the bundle.
struct Item {
    name: String,
    /// Type in the shard's header.
    dtype: &'static str,
    /// Shape in the shard's header.
    shape: Vec<usize>,
    row_bytes: u64,
    origin: Origin,
}

/// Where the bytes come from.
enum Origin {
    /// A checkpoint's tensor, to be written in this form.
    Values { weights: Weights, name: String, form: Form, columns: usize },
    /// Bytes of a file, as they are.
    Bytes { source: Rc<dyn ByteSource>, offset: u64 },
}

/// What a checkpoint's weights become.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    F32,
    F16,
    Block(BlockType),
}

impl Form {
    /// The form of a matrix with `columns` at a precision. What does not divide into groups stays f16.
    fn of(precision: Precision, columns: usize) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Q8 if columns.is_multiple_of(GROUP_SIZE) => Self::Block(BlockType::Q8_0),
            Precision::Q4 if columns.is_multiple_of(GROUP_SIZE) => Self::Block(BlockType::Q4_1),
            _ => Self::F16,
        }
    }
}

impl Plan {
    /// The bundle of a checkpoint, its language model at `precision`. `conversation` names its template;
    /// no shard is larger than `shard_bytes`.
    ///
    /// # Errors
    /// Whatever is wrong with the checkpoint's files.
    pub async fn of_checkpoint(
        checkpoint: &MgmCheckpoint,
        name: &str,
        precision: Precision,
        conversation: &str,
        shard_bytes: u64,
    ) -> Result<Self> {
        let mut manifest = Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            name: name.to_owned(),
            precision: precision.to_string(),
            conversation: Some(conversation.to_owned()),
            ..Manifest::default()
        };
        let folder = &*checkpoint.folder;
        for file in CONFIGS {
            if let Some(bytes) = read_file(folder, file, MAX_FILE).await? {
                let config = serde_json::from_slice(&bytes).map_err(|error| Error::Config {
                    file: format!("{}/{file}", folder.name()),
                    reason: error.to_string(),
                })?;
                manifest.configs.insert(file.to_owned(), config);
            }
        }
        let mut files = Vec::new();
        for file in FILES {
            if let Some(bytes) = read_file(folder, file, MAX_FILE).await? {
                files.push((file.to_owned(), bytes));
            }
        }
        let mut layout = Layout::new(shard_bytes);
        if let Some(vision) = &checkpoint.vision {
            manifest.configs.insert(CLIP_CONFIG.to_owned(), vision.clip_config.to_json());
            layout.part("vision");
            // As in the reference, the vision side is never quantised.
            layout.vision(vision, precision.min(Precision::F16))?;
        }
        layout.part("language");
        layout.language(&checkpoint.language, precision)?;
        Ok(layout.finish(manifest, files))
    }

    /// The bundle of a GGUF file, whose blocks stay as they are.
    ///
    /// # Errors
    /// Whatever is wrong with the file.
    pub async fn of_gguf(source: &Rc<dyn ByteSource>, model: &GgufModel, name: &str, shard_bytes: u64) -> Result<Self> {
        let tensors = &model.header.tensors;
        let data = tensors.iter().map(|tensor| tensor.offset).min().unwrap_or(source.len());
        let header = read_range(&**source, 0, data, MAX_FILE).await?;
        let mut layout = Layout::new(shard_bytes);
        layout.part("language");
        for tensor in tensors {
            layout.copy(tensor, source)?;
        }
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            name: name.to_owned(),
            precision: commonest_precision(tensors).to_string(),
            gguf_bytes: Some(source.len()),
            ..Manifest::default()
        };
        Ok(layout.finish(manifest, vec![(GGUF_HEADER.to_owned(), header)]))
    }

    /// The bundle of a model that paints, in diffusers' layout in `folder`, its matrices at `precision`.
    ///
    /// # Errors
    /// Whatever is wrong with the model's files.
    pub async fn of_diffusion(
        folder: &Rc<dyn Folder>,
        checkpoint: &SdxlCheckpoint,
        name: &str,
        precision: Precision,
        shard_bytes: u64,
    ) -> Result<Self> {
        let mut manifest = Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            name: name.to_owned(),
            precision: precision.to_string(),
            ..Manifest::default()
        };
        for file in sdxl::CONFIGS {
            if let Some(bytes) = read_file(&**folder, file, MAX_FILE).await? {
                let config = serde_json::from_slice(&bytes).map_err(|error| Error::Config {
                    file: format!("{}/{file}", folder.name()),
                    reason: error.to_string(),
                })?;
                manifest.configs.insert(file.to_owned(), config);
            }
        }
        let mut files = Vec::new();
        for file in sdxl::FILES {
            if let Some(bytes) = read_file(&**folder, file, MAX_FILE).await? {
                files.push((sdxl::flat_name(file), bytes));
            }
        }
        let mut layout = Layout::new(shard_bytes);
        for (part, weights) in checkpoint.parts() {
            layout.part("diffusion");
            layout.diffusion(part, weights, precision)?;
        }
        Ok(layout.finish(manifest, files))
    }

    /// Bytes of all that is to be written but the manifest.
    pub fn bytes(&self) -> u64 {
        let files: u64 = self.files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        files + self.shards.iter().map(|shard| shard.bytes).sum::<u64>()
    }
}

/// The precision that most of the weights have.
fn commonest_precision(tensors: &[StoredTensor]) -> Precision {
    let bytes_at = |precision| {
        let of = |tensor: &&StoredTensor| tensor.info.dtype.precision() == precision;
        tensors.iter().filter(of).filter_map(|tensor| tensor.info.bytes()).sum::<u64>()
    };
    Precision::ALL.into_iter().max_by_key(|precision| bytes_at(*precision)).unwrap_or(Precision::F32)
}

impl Shard {
    /// The shard's name as number `index` of `count`.
    pub fn file(index: usize, count: usize) -> String {
        format!("model-{:05}-of-{count:05}.safetensors", index + 1)
    }

    /// Bytes of data, without the header.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The header: a length and JSON.
    pub fn header(&self) -> Vec<u8> {
        let mut entries = Map::new();
        let mut at = 0;
        for Placed { tensor, rows } in &self.tensors {
            let mut shape = tensor.shape.clone();
            if let Some(first) = shape.first_mut() {
                *first = rows.len();
            }
            let end = at + rows.len() as u64 * tensor.row_bytes;
            entries.insert(
                tensor.name.clone(),
                json!({ "dtype": tensor.dtype, "shape": shape, "data_offsets": [at, end] }),
            );
            at = end;
        }
        let mut json = Value::Object(entries).to_string().into_bytes();
        // The data starts at a multiple of 8, as the reference implementation has it.
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend(json);
        header
    }

    /// Writes the data, in order and in pieces of a few MiB.
    ///
    /// # Errors
    /// Whatever is wrong with the checkpoint's files, and what `write` fails with.
    pub async fn write<E: From<Error>>(&self, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        for Placed { tensor, rows } in &self.tensors {
            let step = (PIECE_BYTES / tensor.row_bytes.max(1)).max(1) as usize;
            for first in rows.clone().step_by(step) {
                write(&tensor.read(first..(first + step).min(rows.end)).await?)?;
            }
        }
        Ok(())
    }
}

impl Item {
    async fn read(&self, rows: Range<usize>) -> Result<Vec<u8>> {
        match &self.origin {
            Origin::Bytes { source, offset } => {
                let length = rows.len() as u64 * self.row_bytes;
                read_range(&**source, offset + rows.start as u64 * self.row_bytes, length, u64::MAX).await
            }
            Origin::Values { weights, name, form, columns } => {
                let values = weights.read_rows(name, rows).await?;
                Ok(match form {
                    Form::F32 => bytemuck::cast_slice(&values).to_vec(),
                    // Padded only where a row is no multiple of 4, which is taken back.
                    Form::F16 => {
                        let packed = pack_rows(Precision::F16, (*columns).max(1), &values).data;
                        let padded = packed.len() / (values.len() / (*columns).max(1)).max(1);
                        packed.chunks(padded.max(1)).flat_map(|row| row.iter().take(2 * columns)).copied().collect()
                    }
                    Form::Block(kind) => kind.quantize(&values),
                })
            }
        }
    }
}

/// Tensors put one after the other into shards.
struct Layout {
    shard_bytes: u64,
    part: &'static str,
    shards: Vec<Shard>,
    quantised: Vec<(String, BlockType)>,
}

impl Layout {
    fn new(shard_bytes: u64) -> Self {
        Self { shard_bytes, part: "", shards: Vec::new(), quantised: Vec::new() }
    }

    /// What follows belongs to this part, in shards of its own.
    fn part(&mut self, part: &'static str) {
        self.part = part;
        self.shards.push(Shard { part, tensors: Vec::new(), bytes: 0 });
    }

    fn language(&mut self, weights: &Weights, precision: Precision) -> Result<()> {
        for name in weights.names() {
            let dims = weights.shape(name)?.len();
            // As the loader has it: both tables at q8 at least, routers whole, vectors whole.
            let precision = match name {
                "model.embed_tokens.weight" | "lm_head.weight" => precision.min(Precision::Q8),
                name if name.ends_with("block_sparse_moe.gate.weight") || dims < 2 => Precision::F32,
                _ => precision,
            };
            self.values(name.to_owned(), weights, name, precision)?;
        }
        Ok(())
    }

    fn vision(&mut self, vision: &VisionWeights, precision: Precision) -> Result<()> {
        for (prefix, weights) in vision.parts() {
            for name in weights.names() {
                let shape = weights.shape(name)?;
                // What the device holds as f32, and what is computed with before it is rounded.
                let vectors = shape.len() < 2 || matches!(shape, [_, 1, _, _]) || name.contains("position_embedding");
                let folded = name.starts_with("aux.") || name.starts_with("val.");
                let precision = if vectors || folded { Precision::F32 } else { precision };
                self.values(prefix(name), weights, name, precision)?;
            }
        }
        Ok(())
    }

    fn diffusion(&mut self, part: &str, weights: &Weights, precision: Precision) -> Result<()> {
        for name in weights.names() {
            // As the loaders have it: vectors whole, the autoencoder and the text encoders' tables not below f16.
            let precision = match weights.shape(name)?.len() {
                0 | 1 => Precision::F32,
                _ if part == "vae" || name.contains("embeddings.") => precision.min(Precision::F16),
                _ => precision,
            };
            self.values(format!("{part}.{name}"), weights, name, precision)?;
        }
        Ok(())
    }

    /// Places a checkpoint's tensor.
    fn values(&mut self, bundle_name: String, weights: &Weights, name: &str, precision: Precision) -> Result<()> {
        let shape = weights.shape(name)?.to_vec();
        let columns: usize = shape.iter().skip(1).product();
        let form = if shape.len() == 2 || precision <= Precision::F16 {
            Form::of(precision, columns)
        } else {
            Form::of(precision.min(Precision::F16), columns)
        };
        let (dtype, stored_shape, row_bytes) = match form {
            Form::F32 => ("F32", shape, columns * 4),
            Form::F16 => ("F16", shape, columns * 2),
            Form::Block(kind) => {
                self.quantised.push((bundle_name.clone(), kind));
                let bytes = columns / kind.block_len() * kind.block_bytes();
                ("U8", vec![shape.first().copied().unwrap_or(1), bytes], bytes)
            }
        };
        let origin = Origin::Values { weights: weights.clone(), name: name.to_owned(), form, columns };
        let row_bytes = row_bytes as u64;
        self.place(Item { name: bundle_name, dtype, shape: stored_shape, row_bytes, origin });
        Ok(())
    }

    /// Places a tensor of a file with its bytes as they are.
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
                ("U8", vec![rows, row_bytes as usize])
            }
            dtype if shape.len() < 2 => (dtype.name(), vec![shape.first().copied().unwrap_or(1)]),
            dtype => (dtype.name(), vec![rows, shape.last().copied().unwrap_or(1)]),
        };
        let row_bytes = if shape.len() < 2 { bytes / shape[0].max(1) as u64 } else { row_bytes };
        let origin = Origin::Bytes { source: Rc::clone(source), offset: tensor.offset };
        self.place(Item { name: tensor.name.clone(), dtype, shape, row_bytes, origin });
        Ok(())
    }

    fn place(&mut self, tensor: Item) {
        let header = self.shard_bytes / HEADER_PART;
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
            // Only what is larger than a shard is split.
            let enough = if whole <= room { fits >= rows } else { fits > 0 };
            if !enough && !empty {
                self.shards.push(Shard { part: self.part, tensors: Vec::new(), bytes: 0 });
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

    fn finish(self, mut manifest: Manifest, files: Vec<(String, Vec<u8>)>) -> Plan {
        manifest.quantised = self.quantised.into_iter().map(|(name, kind)| (name, kind.name().to_owned())).collect();
        let shards = self.shards.into_iter().filter(|shard| !shard.tensors.is_empty()).collect();
        Plan { manifest, files, shards }
    }
}
