//! `mgm pack`: writes a model as a bundle.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use mgm::Error;
use mgm::session::template_of;
use mgm::tensor::Precision;
use mgm::text::tokenizer::Tokenizer;
use mgm::weights::bundle::plan::{Plan, Shard};
use mgm::weights::bundle::{BundleFile, MANIFEST, SHARD_BYTES};
use mgm::weights::mgm::MgmCheckpoint;
use mgm::weights::model_files::ModelFiles;
use mgm::weights::sdxl::SdxlCheckpoint;
use mgm::weights::source::{ByteSource, Folder};
use mgm_native::files::{DiskFile, DiskFolder, hex, io_error};
use sha2::{Digest, Sha256};

use crate::args::PackArgs;
use crate::inspect::is_diffusion;
use crate::{Failure, generate, progress};

/// Smaller ones would be all header.
const SMALLEST_SHARD: u64 = 64 << 10;

pub async fn run(arguments: PackArgs) -> Result<(), Failure> {
    if arguments.checkpoint.language.is_some() {
        let reason = "--language cannot be packed into a checkpoint: pack the GGUF file by itself".to_owned();
        return Err(Error::InvalidArgument(reason).into());
    }
    if let Some(path) = arguments.checkpoint.checkpoint.as_deref()
        && is_diffusion(path).await?
    {
        return pack_diffusion(path, &arguments).await;
    }
    let opened = arguments.checkpoint.open().await?;
    let shard_bytes = shard_bytes(&arguments)?;
    let path = arguments.checkpoint.checkpoint.as_deref().unwrap_or(Path::new("model"));
    let name = match arguments.name {
        Some(name) => name,
        None => name_of(path),
    };
    let plan = match &opened {
        ModelFiles::Mgm(checkpoint) => {
            if let Some(packed) = checkpoint.packed {
                let reason = format!("{} is a bundle at {packed} already: pack the checkpoint", path.display());
                return Err(Error::InvalidArgument(reason).into());
            }
            refuse_incomplete(checkpoint)?;
            let tokenizer = Tokenizer::load(&*checkpoint.folder).await?;
            let template = match arguments.conversation {
                Some(template) => template,
                None => template_of(checkpoint, &tokenizer)?,
            };
            let precision = arguments.precision.unwrap_or(Precision::Q4);
            Plan::of_checkpoint(checkpoint, &name, precision, template.name(), shard_bytes).await?
        }
        ModelFiles::Gguf(_) if arguments.precision.is_some() || !path.is_file() => {
            let reason = "a GGUF file is packed as it is: leave --precision away, and name the file".to_owned();
            return Err(Error::InvalidArgument(reason).into());
        }
        ModelFiles::Gguf(model) => {
            let file = DiskFile::open(path).map_err(|error| io_error(path, error))?;
            let source: Rc<dyn ByteSource> = Rc::new(file);
            Plan::of_gguf(&source, model, &name, shard_bytes).await?
        }
    };
    write(plan, &arguments.out).await
}

fn shard_bytes(arguments: &PackArgs) -> Result<u64, Error> {
    let shard_bytes = arguments.shard_size.unwrap_or(SHARD_BYTES);
    if (SMALLEST_SHARD..=SHARD_BYTES).contains(&shard_bytes) {
        return Ok(shard_bytes);
    }
    let reason = format!("--shard-size is {shard_bytes} bytes, expected {SMALLEST_SHARD} to {SHARD_BYTES}");
    Err(Error::InvalidArgument(reason))
}

/// Packs a model that paints.
async fn pack_diffusion(path: &Path, arguments: &PackArgs) -> Result<(), Failure> {
    let precision = arguments.precision.unwrap_or(Precision::F16);
    let folder: Rc<dyn Folder> = Rc::new(DiskFolder::new(path));
    let refused = if path.is_file() || !SdxlCheckpoint::is_in(&*folder).await? {
        Some(format!("{}: a model that paints is packed from its folder in diffusers' layout", path.display()))
    } else if !matches!(precision, Precision::F32 | Precision::F16 | Precision::Q8) {
        Some(format!("--precision {precision}: a model that paints is packed at f32, f16 or q8"))
    } else if arguments.conversation.is_some() {
        Some("--conversation is for language models".to_owned())
    } else {
        None
    };
    if let Some(reason) = refused {
        return Err(Error::InvalidArgument(reason).into());
    }
    let checkpoint = generate::open(path, None, None).await?;
    checkpoint.check()?;
    let name = arguments.name.clone().unwrap_or_else(|| name_of(path));
    let plan = Plan::of_diffusion(&folder, &checkpoint, &name, precision, shard_bytes(arguments)?).await?;
    write(plan, &arguments.out).await
}

/// What could not be loaded is not packed either.
fn refuse_incomplete(checkpoint: &MgmCheckpoint) -> Result<(), Error> {
    for part in checkpoint.report() {
        if let Some((name, found, expected)) = part.misshapen.into_iter().next() {
            return Err(Error::WrongShape { name, found, expected: format!("{expected:?}") });
        }
        if let Some(name) = part.missing.into_iter().next() {
            let hint = format!(", and the {} needs it", part.name);
            return Err(Error::MissingTensor { name, file: part.origin, hint });
        }
    }
    Ok(())
}

async fn write(plan: Plan, out: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(out).map_err(|error| io_error(out, error))?;
    if out.join(MANIFEST).exists() {
        let reason = format!("{} holds a bundle already: name another folder, or remove it", out.display());
        return Err(Error::InvalidArgument(reason).into());
    }
    let bar = progress::bytes(plan.bytes(), "packing");
    let mut manifest = plan.manifest;
    for (file, bytes) in &plan.files {
        let mut target = HashingFile::create(out.join(file))?;
        target.write(bytes)?;
        bar.inc(bytes.len() as u64);
        manifest.files.push(target.finish(file, "tokenizer")?);
    }
    for (index, shard) in plan.shards.iter().enumerate() {
        let file = Shard::file(index, plan.shards.len());
        let mut target = HashingFile::create(out.join(&file))?;
        target.write(&shard.header())?;
        shard
            .write(|bytes| {
                bar.inc(bytes.len() as u64);
                target.write(bytes)
            })
            .await?;
        manifest.shards.push(target.finish(&file, shard.part)?);
    }
    // Last, so that a folder with a manifest is a whole bundle.
    let text = serde_json::to_string_pretty(&manifest).map_err(std::io::Error::from)?;
    let mut target = HashingFile::create(out.join(MANIFEST))?;
    target.write(text.as_bytes())?;
    target.finish(MANIFEST, "")?;
    bar.finish_and_clear();
    let mut stdout = std::io::stdout().lock();
    let [shards, megabytes] = [manifest.shards.len() as u64, manifest.bytes() / 1_000_000];
    writeln!(
        stdout,
        "{}: {} at {}, {shards} shards, {megabytes} MB",
        out.display(),
        manifest.name,
        manifest.precision
    )?;
    Ok(())
}

fn name_of(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let name = if path.is_file() { path.file_stem() } else { path.file_name() };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// A file that is hashed while it is written.
struct HashingFile {
    path: PathBuf,
    file: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl HashingFile {
    fn create(path: PathBuf) -> Result<Self, Failure> {
        let file = File::create(&path).map_err(|error| io_error(&path, error))?;
        Ok(Self { path, file: BufWriter::new(file), hash: Sha256::new(), bytes: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(self.file.write_all(bytes).map_err(|error| io_error(&self.path, error))?)
    }

    fn finish(self, file: &str, part: &str) -> Result<BundleFile, Failure> {
        let written = self.file.into_inner().map_err(std::io::IntoInnerError::into_error);
        // A full disk may show itself only here.
        written.and_then(|file| file.sync_all()).map_err(|error| io_error(&self.path, error))?;
        let sha256 = hex(&self.hash.finalize());
        Ok(BundleFile { file: file.to_owned(), bytes: self.bytes, sha256, part: part.to_owned() })
    }
}
