//! Opening a bundle.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::checkpoint::Checkpoint;
use super::super::dtype::Dtype;
use super::super::safetensors::read_header;
use super::super::stored_tensor::{StoredTensor, TensorInfo};
use super::{GGUF_HEADER, MANIFEST, MAX_MANIFEST, Manifest, block_type};
use crate::io::{ByteSource, Folder, LocalFuture, read_file, refuse_lfs_pointer};
use crate::{Error, Result};

/// An opened bundle.
#[derive(Clone)]
pub struct Bundle {
    /// `bundle.json`.
    pub manifest: Manifest,
    folder: Rc<dyn Folder>,
}

impl Bundle {
    /// The bundle in `folder`, if there is one.
    ///
    /// # Errors
    /// As [`Manifest::parse`].
    pub async fn find(folder: &Rc<dyn Folder>) -> Result<Option<Self>> {
        let Some(bytes) = read_file(&**folder, MANIFEST, MAX_MANIFEST).await? else { return Ok(None) };
        let manifest = Manifest::parse(&format!("{}/{MANIFEST}", folder.name()), &bytes)?;
        Ok(Some(Self { manifest, folder: Rc::clone(folder) }))
    }

    /// The bundle's folder, for messages.
    pub fn name(&self) -> String {
        self.folder.name().to_owned()
    }

    /// The bundle's configurations and other files, without access to other folders.
    pub fn folder(&self) -> Rc<dyn Folder> {
        let configs = self.manifest.configs.iter();
        let configs = configs.map(|(name, config)| (name.clone(), config.to_string().into_bytes().into())).collect();
        Rc::new(Overlay { inner: Rc::clone(&self.folder), configs })
    }

    /// The tensors of a packed checkpoint.
    ///
    /// # Errors
    /// [`Error::MissingFile`] without a shard that the manifest lists; [`Error::Malformed`] if a shard has another size
    /// or is not safetensors; [`Error::WrongShape`] if the parts of a tensor do not fit together;
    /// [`Error::Unsupported`] for an unknown block type.
    pub async fn checkpoint(&self) -> Result<Checkpoint> {
        let mut joined = Joined::new(self.folder.name());
        let mut tensors: Vec<(String, StoredTensor)> = Vec::new();
        for (name, blocks) in self.row_blocks().await? {
            let offset = joined.length;
            let mut info: Option<TensorInfo> = None;
            for block in blocks {
                match &mut info {
                    None => info = Some(block.info.clone()),
                    Some(info) => append_rows(&name, info, &block.info)?,
                }
                joined.push(joined.length, block);
            }
            let Some(info) = info else { continue };
            let info = self.unpacked(&name, info)?;
            tensors.push((name.clone(), StoredTensor::new(name, info, offset)));
        }
        Ok(Checkpoint::from_tensors(Rc::new(joined), tensors))
    }

    /// The packed GGUF file as one source; `None` for a checkpoint.
    ///
    /// # Errors
    /// [`Error::MissingFile`] without the header or a shard; [`Error::MissingTensor`] or [`Error::WrongShape`] if the
    /// shards lack a tensor of the header or a part of it; [`Error::Malformed`] if a file is damaged.
    pub async fn gguf(&self) -> Result<Option<Rc<dyn ByteSource>>> {
        let Some(length) = self.manifest.gguf_bytes else { return Ok(None) };
        let header = self.file(GGUF_HEADER, "it holds the model's configuration").await?;
        let mut joined = Joined::new(self.folder.name());
        let whole = |source: Rc<dyn ByteSource>| Segment { start: 0, length: source.len(), source, offset: 0 };
        joined.segments.push(whole(header));
        joined.length = length;
        let mut blocks = self.row_blocks().await?;
        for tensor in super::super::gguf::Header::read(&joined).await?.tensors {
            let Some(blocks) = blocks.remove(&tensor.name) else {
                let (name, file) = (tensor.name, self.folder.name().to_owned());
                return Err(Error::MissingTensor { name, file, hint: format!(", although {GGUF_HEADER} lists it") });
            };
            let found = blocks.iter().map(|block| block.length).sum::<u64>();
            if Some(found) != tensor.info.bytes() {
                let (name, expected) = (tensor.name, format!("{:?} bytes", tensor.info.bytes()));
                return Err(Error::WrongShape { name, found: vec![found as usize], expected });
            }
            let mut start = tensor.offset;
            for block in blocks {
                let length = block.length;
                joined.push(start, block);
                start += length;
            }
        }
        joined.length = joined.length.max(length);
        joined.segments.sort_by_key(|segment| segment.start);
        Ok(Some(Rc::new(joined)))
    }

    async fn file(&self, file: &str, why: &str) -> Result<Rc<dyn ByteSource>> {
        self.folder.open(file).await?.ok_or_else(|| Error::MissingFile {
            file: format!("{}/{file}", self.folder.name()),
            hint: format!("{why}; is the bundle complete?"),
        })
    }

    /// The row blocks of every tensor, in order.
    async fn row_blocks(&self) -> Result<BTreeMap<String, Vec<RowBlock>>> {
        let mut blocks: BTreeMap<String, Vec<RowBlock>> = BTreeMap::new();
        for shard in &self.manifest.shards {
            let source = self.file(&shard.file, "it is a shard of weights").await?;
            refuse_lfs_pointer(&*source).await?;
            if source.len() != shard.bytes {
                return Err(Error::Malformed {
                    file: source.name().to_owned(),
                    offset: source.len().min(shard.bytes),
                    reason: format!("it has {} bytes, {MANIFEST} says {}", source.len(), shard.bytes),
                });
            }
            for stored in read_header(&*source).await? {
                let length = stored.info.bytes().unwrap_or(0);
                let block = RowBlock { info: stored.info, source: Rc::clone(&source), offset: stored.offset, length };
                blocks.entry(stored.name).or_default().push(block);
            }
        }
        Ok(blocks)
    }

    /// Type and shape of a tensor: the weights of its blocks if it is quantised, instead of their bytes.
    fn unpacked(&self, name: &str, info: TensorInfo) -> Result<TensorInfo> {
        let Some(kind) = self.manifest.quantised.get(name) else { return Ok(info) };
        let Some(kind) = block_type(kind) else {
            return Err(Error::Unsupported {
                what: format!("tensor {name}: block type"),
                found: kind.clone(),
                supported: super::super::blocks::BlockType::ALL.map(|kind| kind.name()).join(", "),
            });
        };
        match info.shape.as_slice() {
            &[rows, bytes] if info.dtype == Dtype::U8 && bytes.is_multiple_of(kind.block_bytes()) => {
                let columns = (bytes / kind.block_bytes()).saturating_mul(kind.block_len());
                Ok(TensorInfo { dtype: Dtype::Block(kind), shape: vec![rows, columns] })
            }
            _ => Err(Error::WrongShape {
                name: name.to_owned(),
                found: info.shape,
                expected: format!(
                    "[rows, bytes] of U8 with whole {} blocks of {} bytes",
                    kind.name(),
                    kind.block_bytes()
                ),
            }),
        }
    }
}

/// Adds the rows of a block to its tensor's shape.
fn append_rows(name: &str, info: &mut TensorInfo, block: &TensorInfo) -> Result<()> {
    let rows = match (info.shape.first(), block.shape.first()) {
        (Some(above), Some(more)) if info.shape[1..] == block.shape[1..] && info.dtype == block.dtype => {
            above.checked_add(*more)
        }
        _ => None,
    };
    let Some(rows) = rows else {
        let expected = format!("{:?} of {}, as in the shard before", info.shape, info.dtype.name());
        return Err(Error::WrongShape { name: name.to_owned(), found: block.shape.clone(), expected });
    };
    info.shape[0] = rows;
    Ok(())
}

/// Rows of a tensor in a shard.
struct RowBlock {
    info: TensorInfo,
    source: Rc<dyn ByteSource>,
    offset: u64,
    length: u64,
}

struct Segment {
    start: u64,
    length: u64,
    source: Rc<dyn ByteSource>,
    offset: u64,
}

/// Segments of several sources as one source. Gaps read as zeros.
struct Joined {
    name: String,
    length: u64,
    /// Sorted by start, without overlap.
    segments: Vec<Segment>,
}

impl Joined {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), length: 0, segments: Vec::new() }
    }

    fn push(&mut self, start: u64, block: RowBlock) {
        let RowBlock { source, offset, length, .. } = block;
        self.length = self.length.max(start.saturating_add(length));
        self.segments.push(Segment { start, length, source, offset });
    }
}

impl ByteSource for Joined {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.length
    }

    fn read<'a>(&'a self, offset: u64, buffer: &'a mut [u8]) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            buffer.fill(0);
            let end = offset.saturating_add(buffer.len() as u64);
            let first = self.segments.partition_point(|segment| segment.start + segment.length <= offset);
            for segment in self.segments.iter().skip(first).take_while(|segment| segment.start < end) {
                let from = offset.max(segment.start);
                let to = end.min(segment.start + segment.length);
                if from >= to {
                    continue;
                }
                let target = &mut buffer[(from - offset) as usize..(to - offset) as usize];
                segment.source.read(segment.offset + (from - segment.start), target).await?;
            }
            Ok(())
        })
    }
}

/// A bundle's folder with the manifest's configurations as files, without access to other folders.
struct Overlay {
    inner: Rc<dyn Folder>,
    configs: BTreeMap<String, Rc<[u8]>>,
}

impl Folder for Overlay {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn open<'a>(&'a self, file: &'a str) -> LocalFuture<'a, Result<Option<Rc<dyn ByteSource>>>> {
        match self.configs.get(file) {
            Some(bytes) => {
                let name = format!("{}/{MANIFEST}: {file}", self.name());
                let source = crate::io::MemorySource::new(name, Rc::clone(bytes));
                Box::pin(async move { Ok(Some(Rc::new(source) as Rc<dyn ByteSource>)) })
            }
            None => self.inner.open(file),
        }
    }

    fn child(&self, _: &str) -> Rc<dyn Folder> {
        Rc::new(crate::io::MemoryFolder::default())
    }
}
