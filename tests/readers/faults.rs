//! Faults of files: flipped bits, cut ends, reads that fail, files that shrink while they are read. Each is an error
//! that names the file, or a valid load; nothing panics, hangs or takes long.
#![allow(missing_docs, clippy::unwrap_used)]

use std::cell::Cell;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use mgm::Error;
use mgm::io::{ByteSource, DiskFile, DiskFolder, Folder, LocalFuture, MemoryFolder, MemorySource};
use mgm::text::tokenizer::Tokenizer;
use mgm::weights::bundle::read::Bundle;
use mgm::weights::checkpoint::Checkpoint;
use mgm::weights::gguf_model::GgufModel;
use mgm::weights::mgm::{MgmCheckpoint, TowerOptions};
use mgm::weights::sdxl::{Lora, OpenOptions, SdxlCheckpoint};
use mgm::weights::view::Weights;
use pollster::block_on;

/// Longest that one damaged file may take.
const LONGEST: Duration = Duration::from_secs(5);

/// A file with a flipped bit, or without its end.
struct Damaged {
    name: String,
    bytes: Rc<[u8]>,
    length: usize,
    flip: Option<(usize, u8)>,
}

impl ByteSource for Damaged {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.length as u64
    }

    fn read<'a>(&'a self, offset: u64, buffer: &'a mut [u8]) -> LocalFuture<'a, mgm::Result<()>> {
        Box::pin(async move {
            let start = usize::try_from(offset).unwrap();
            let range = start..start.saturating_add(buffer.len());
            let Some(bytes) = self.bytes[..self.length].get(range.clone()) else {
                let reason = "read beyond the end".to_owned();
                return Err(Error::Io { file: self.name.clone(), kind: ErrorKind::UnexpectedEof, reason });
            };
            buffer.copy_from_slice(bytes);
            if let Some((at, bit)) = self.flip.filter(|(at, _)| range.contains(at)) {
                buffer[at - start] ^= 1 << bit;
            }
            Ok(())
        })
    }
}

type Files = Vec<(String, Rc<[u8]>)>;

/// The files below a folder, with their paths in it.
fn read_all(folder: &Path) -> Files {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in next.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().replace('\\', "/");
                files.push((name, std::fs::read(&path).unwrap().into()));
            }
        }
    }
    files
}

fn first_rows(weights: &Checkpoint) -> mgm::Result<()> {
    for (name, info) in weights.tensors() {
        let rows = info.shape.first().copied().unwrap_or(1).min(1);
        match block_on(weights.read_rows(name, 0..rows)) {
            // Integers, such as position ids, are not read.
            Ok(_) | Err(Error::WrongDtype { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn open_mgm(folder: Rc<dyn Folder>) -> mgm::Result<()> {
    let checkpoint = block_on(MgmCheckpoint::open(folder.child("MGM-2B"), TowerOptions::default()))?;
    first_rows(checkpoint.language.checkpoint())?;
    if let Some(vision) = &checkpoint.vision {
        first_rows(vision.clip.checkpoint())?;
        first_rows(vision.convnext.checkpoint())?;
    }
    block_on(Tokenizer::load(&*checkpoint.folder)).map(drop)
}

fn open_sdxl(folder: Rc<dyn Folder>) -> mgm::Result<()> {
    let checkpoint = block_on(SdxlCheckpoint::open(folder, &OpenOptions::default()))?;
    checkpoint.check()?;
    let [first, second] = &checkpoint.text;
    let networks: [&Weights; 4] = [&checkpoint.unet.0, &checkpoint.vae.0, &first.0, &second.0];
    networks.iter().try_for_each(|weights| first_rows(weights.checkpoint()))
}

fn open_bundle(folder: Rc<dyn Folder>) -> mgm::Result<()> {
    let bundle = block_on(Bundle::find(&folder))?;
    let Some(bundle) = bundle else { return Ok(()) };
    let checkpoint = block_on(MgmCheckpoint::open_bundle(&bundle))?;
    first_rows(checkpoint.language.checkpoint())?;
    block_on(Tokenizer::load(&*bundle.folder())).map(drop)
}

fn file_in(folder: &dyn Folder) -> Rc<dyn ByteSource> {
    let entries = block_on(folder.entries());
    block_on(folder.open(&entries[0])).unwrap().unwrap()
}

fn open_gguf(folder: Rc<dyn Folder>) -> mgm::Result<()> {
    let model = block_on(GgufModel::open(file_in(&*folder)))?;
    first_rows(model.weights.checkpoint())?;
    let _ = Tokenizer::from_gguf(&model.header)?.encode("the 42 é<s>");
    Ok(())
}

fn open_file(folder: Rc<dyn Folder>) -> mgm::Result<()> {
    first_rows(&block_on(Checkpoint::open_file(file_in(&*folder)))?)
}

fn open_lora(folder: Rc<dyn Folder>) -> mgm::Result<()> {
    block_on(Lora::open(file_in(&*folder), 0.5)).map(drop)
}

fn golden(path: &str) -> PathBuf {
    mgm_test_support::goldens().join(path)
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// One file, as a folder.
fn alone(path: &Path) -> Files {
    vec![(path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap().into())]
}

/// Length of the header of a file; of files without one the whole.
fn head(file: &str, bytes: &[u8]) -> usize {
    let length = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    if file.ends_with(".safetensors") { 8 + length(0) } else { bytes.len() }
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// Every bit of the first 24 bytes of each file, and bits and ends everywhere in its header.
#[test]
fn flipped_bits_and_cut_ends_are_errors_that_name_the_file() {
    type Open = fn(Rc<dyn Folder>) -> mgm::Result<()>;
    let gguf = mgm_test_support::data("gguf");
    let sharded = "MGM-2B/model-00002-of-00002.safetensors";
    let rows: [(Files, &[&str], Open); 7] = [
        (
            read_all(&golden("gemma-2b")),
            &[
                sharded,
                "MGM-2B/model.safetensors.index.json",
                "MGM-2B/config.json",
                "MGM-2B/tokenizer.json",
                "OpenAI/clip-vit-large-patch14-336/config.json",
                "OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup/open_clip_pytorch_model.bin",
            ],
            open_mgm,
        ),
        (
            read_all(&golden("sdxl-base/sdxl")),
            &["unet/diffusion_pytorch_model.safetensors", "unet/config.json", "vae/config.json", "model_index.json"],
            open_sdxl,
        ),
        (
            read_all(&root("models/pocket")),
            &["bundle.json", "model-00001-of-00002.safetensors", "tokenizer.model"],
            open_bundle,
        ),
        (alone(&gguf.join("llama.gguf")), &["llama.gguf"], open_gguf),
        (alone(&gguf.join("gemma.gguf")), &["gemma.gguf"], open_gguf),
        (alone(&root("tests/data/weights/types.bin")), &["types.bin"], open_file),
        (alone(&root("tests/data/diffusion/lora/peft-dora.safetensors")), &["peft-dora.safetensors"], open_lora),
    ];
    let mut random = Random(1);
    let (mut failures, mut refused, mut valid) = (Vec::new(), 0, 0);
    for (files, damaged, open) in rows {
        open(Rc::new(MemoryFolder::new(files.clone()))).expect("an undamaged folder");
        for name in damaged {
            let bytes = &files.iter().find(|(file, _)| file == name).unwrap_or_else(|| panic!("no {name}")).1;
            // The random weights of a GGUF file's tensors follow its header.
            let header = if name.ends_with(".gguf") { 5600 } else { head(name, bytes) };
            let flips = (0..24.min(header)).flat_map(|byte| (0..8).map(move |bit| (byte, bit)));
            let mut cases: Vec<_> = flips.map(|flip| (bytes.len(), Some(flip))).collect();
            cases.extend((0..100).map(|_| (bytes.len(), Some((random.below(header), random.below(8) as u8)))));
            cases.extend((0..16.min(header)).map(|length| (length, None)));
            cases.extend((0..30).map(|_| (random.below(header), None)));
            cases.push((bytes.len() - 1, None));
            for (length, flip) in cases {
                let source = Damaged { name: (*name).to_owned(), bytes: Rc::clone(bytes), length, flip };
                let others = files.iter().map(|(file, bytes)| {
                    let source: Rc<dyn ByteSource> = Rc::new(MemorySource::new(file.clone(), Rc::clone(bytes)));
                    (file.clone(), source)
                });
                let damaged: (String, Rc<dyn ByteSource>) = ((*name).to_owned(), Rc::new(source));
                let folder = MemoryFolder::from_sources(others.filter(|(file, _)| file != name).chain([damaged]));
                let started = Instant::now();
                let opened = open(Rc::new(folder));
                let what = format!("{name}, {length} bytes, flip {flip:?}");
                assert!(started.elapsed() < LONGEST, "{what}: {:?}", started.elapsed());
                match opened {
                    Ok(()) => valid += 1,
                    // A name or a size that changed may only be noticed at another file.
                    Err(error) if error.to_string().len() < 10 => failures.push(format!("{what}: {error}")),
                    Err(_) => refused += 1,
                }
            }
        }
    }
    println!("{refused} refused, {valid} valid");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(refused > 1500, "{refused} refused, {valid} valid");
}

/// Counts reads of files, and fails one of them.
#[derive(Default)]
struct Reads {
    count: Cell<usize>,
    failing: Cell<Option<usize>>,
    failed: Cell<Option<String>>,
}

struct FailingFolder(Rc<dyn Folder>, Rc<Reads>);
struct FailingSource(Rc<dyn ByteSource>, Rc<Reads>);

impl Folder for FailingFolder {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn open<'a>(&'a self, file: &'a str) -> LocalFuture<'a, mgm::Result<Option<Rc<dyn ByteSource>>>> {
        Box::pin(async move {
            let source = self.0.open(file).await?;
            Ok(source.map(|source| Rc::new(FailingSource(source, Rc::clone(&self.1))) as Rc<dyn ByteSource>))
        })
    }

    fn entries(&self) -> LocalFuture<'_, Vec<String>> {
        self.0.entries()
    }

    fn child(&self, name: &str) -> Rc<dyn Folder> {
        Rc::new(Self(self.0.child(name), Rc::clone(&self.1)))
    }
}

impl ByteSource for FailingSource {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read<'a>(&'a self, offset: u64, buffer: &'a mut [u8]) -> LocalFuture<'a, mgm::Result<()>> {
        let read = self.1.count.replace(self.1.count.get() + 1);
        if self.1.failing.get() != Some(read) {
            return self.0.read(offset, buffer);
        }
        self.1.failed.set(Some(self.name().to_owned()));
        // EIO, as of a disk with a bad block.
        let error = Error::io(self.name(), &std::io::Error::from_raw_os_error(5));
        Box::pin(async move { Err(error) })
    }
}

/// No file is taken for absent, and nothing is loaded without it, because it could not be read.
#[test]
fn a_read_that_fails_is_an_error_that_names_the_file() {
    type Open = fn(Rc<dyn Folder>) -> mgm::Result<()>;
    let gguf = tempfile();
    std::fs::copy(mgm_test_support::data("gguf").join("llama.gguf"), gguf.join("llama.gguf")).unwrap();
    let rows: [(PathBuf, Open); 4] = [
        (golden("gemma-2b"), open_mgm),
        (golden("sdxl-base/sdxl"), open_sdxl),
        (root("models/pocket"), open_bundle),
        (gguf.clone(), open_gguf),
    ];
    for (path, open) in rows {
        let reads = Rc::new(Reads::default());
        let folder = || -> Rc<dyn Folder> {
            reads.count.set(0);
            Rc::new(FailingFolder(Rc::new(DiskFolder::new(&path)), Rc::clone(&reads)))
        };
        open(folder()).expect("a model");
        let count = reads.count.get();
        println!("{}: {count} reads", path.display());
        assert!(count > 10, "{count} reads");
        for failing in 0..count {
            reads.failing.set(Some(failing));
            let error = open(folder()).err();
            let file = reads.failed.take().expect("the read");
            assert!(
                matches!(&error, Some(Error::Io { file: named, .. }) if *named == file),
                "read {failing} of {count}, of {file}: {error:?}"
            );
        }
    }
    std::fs::remove_dir_all(gguf).unwrap();
}

/// A folder of this test.
fn tempfile() -> PathBuf {
    let path = std::env::temp_dir().join(format!("mgm-faults-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let path = std::env::temp_dir().join(format!("mgm-shrinks-{}.safetensors", std::process::id()));
    std::fs::copy(golden("gemma-2b/MGM-2B/model-00002-of-00002.safetensors"), &path).unwrap();
    let checkpoint = block_on(Checkpoint::open_file(Rc::new(DiskFile::open(&path).unwrap()))).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(20_000).unwrap();
    let error = first_rows(&checkpoint).expect_err("the end is gone");
    assert!(
        matches!(&error, Error::Io { file, kind: ErrorKind::UnexpectedEof, .. } if *file == path.display().to_string()),
        "{error}"
    );
    std::fs::remove_file(path).unwrap();
}
