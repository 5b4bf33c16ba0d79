//! Opening a bundle.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::checkpoint::Checkpoint;
use super::super::dtype::Dtype;
use super::super::safetensors::read_header;
use super::super::stored_tensor::{StoredTensor, TensorInfo};
use super::{GGUF_HEADER, MANIFEST, MAX_MANIFEST, Manifest, block_type};
use crate::io::{ByteSource, Folder, LocalFuture, read_file};
use crate::{Error, Result};

/// An opened bundle.
#[derive(Clone)]
pub struct Bundle {
    /// What `bundle.json` says.
    pub manifest: Manifest,
    folder: Rc<dyn Folder>,
}

impl Bundle {
    /// The bundle in `folder`, if it holds one.
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

    /// The bundle's configurations and other files, without a way to anything around it.
    pub fn folder(&self) -> Rc<dyn Folder> {
        let configs = self.manifest.configs.iter();
        let configs = configs.map(|(name, config)| (name.clone(), config.to_string().into_bytes().into())).collect();
        Rc::new(Overlay { inner: Rc::clone(&self.folder), configs })
    }

    /// The tensors of a packed checkpoint.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::Malformed`], [`Error::WrongShape`].
    pub async fn checkpoint(&self) -> Result<Checkpoint> {
        let mut joined = Joined::new(self.folder.name());
        let mut tensors: Vec<(String, StoredTensor)> = Vec::new();
        for (name, pieces) in self.pieces().await? {
            let offset = joined.length;
            let mut info: Option<TensorInfo> = None;
            for piece in pieces {
                match &mut info {
                    None => info = Some(piece.info.clone()),
                    Some(info) => append_rows(&name, info, &piece.info)?,
                }
                joined.push(joined.length, piece);
            }
            let Some(info) = info else { continue };
            let info = self.unpacked(&name, info)?;
            tensors.push((name.clone(), StoredTensor::new(name, info, offset)));
        }
        Ok(Checkpoint::from_tensors(Rc::new(joined), tensors))
    }

    /// The GGUF file that was packed, as one source; `None` if it was a checkpoint.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::MissingTensor`], [`Error::Malformed`].
    pub async fn gguf(&self) -> Result<Option<Rc<dyn ByteSource>>> {
        let Some(length) = self.manifest.gguf_bytes else { return Ok(None) };
        let header = self.file(GGUF_HEADER, "it holds the model's configuration").await?;
        let mut joined = Joined::new(self.folder.name());
        let whole = |source: Rc<dyn ByteSource>| Segment { start: 0, length: source.len(), source, offset: 0 };
        joined.segments.push(whole(header));
        joined.length = length;
        let mut pieces = self.pieces().await?;
        for tensor in super::super::gguf::Header::read(&joined).await?.tensors {
            let Some(pieces) = pieces.remove(&tensor.name) else {
                let (name, file) = (tensor.name, self.folder.name().to_owned());
                return Err(Error::MissingTensor { name, file, hint: format!(", though {GGUF_HEADER} names it") });
            };
            let found = pieces.iter().map(|piece| piece.length).sum::<u64>();
            if Some(found) != tensor.info.bytes() {
                let (name, expected) = (tensor.name, format!("{:?} bytes", tensor.info.bytes()));
                return Err(Error::WrongShape { name, found: vec![found as usize], expected });
            }
            let mut start = tensor.offset;
            for piece in pieces {
                let length = piece.length;
                joined.push(start, piece);
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

    /// The pieces of every tensor, in the order of its rows.
    async fn pieces(&self) -> Result<BTreeMap<String, Vec<Piece>>> {
        let mut pieces: BTreeMap<String, Vec<Piece>> = BTreeMap::new();
        for shard in &self.manifest.shards {
            let source = self.file(&shard.file, "it is a shard of weights").await?;
            if source.len() != shard.bytes {
                return Err(Error::Malformed {
                    file: source.name().to_owned(),
                    offset: source.len().min(shard.bytes),
                    reason: format!("it has {} bytes, {MANIFEST} says {}", source.len(), shard.bytes),
                });
            }
            for stored in read_header(&*source).await? {
                let length = stored.info.bytes().unwrap_or(0);
                let piece = Piece { info: stored.info, source: Rc::clone(&source), offset: stored.offset, length };
                pieces.entry(stored.name).or_default().push(piece);
            }
        }
        Ok(pieces)
    }

    /// What a tensor is: bytes that hold blocks are so many weights.
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

/// Adds the rows of a piece to what is known of its tensor.
fn append_rows(name: &str, info: &mut TensorInfo, piece: &TensorInfo) -> Result<()> {
    let rows = match (info.shape.first(), piece.shape.first()) {
        (Some(above), Some(more)) if info.shape[1..] == piece.shape[1..] && info.dtype == piece.dtype => {
            above.checked_add(*more)
        }
        _ => None,
    };
    let Some(rows) = rows else {
        let expected = format!("{:?} of {}, as in the shard before", info.shape, info.dtype.name());
        return Err(Error::WrongShape { name: name.to_owned(), found: piece.shape.clone(), expected });
    };
    info.shape[0] = rows;
    Ok(())
}

/// A part of a tensor in a shard.
struct Piece {
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

/// Parts of several sources as one. What lies between them reads as zeros.
struct Joined {
    name: String,
    length: u64,
    /// In order of their starts, without overlap.
    segments: Vec<Segment>,
}

impl Joined {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), length: 0, segments: Vec::new() }
    }

    fn push(&mut self, start: u64, piece: Piece) {
        let Piece { source, offset, length, .. } = piece;
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

/// A bundle's folder, with the manifest's configurations as files in it and no other folder to be reached.
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
