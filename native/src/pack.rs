//! `mgm pack`: writes a model as a bundle.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use clap::Args;
use fs4::{FileExt, TryLockError};
use mgm::Error;
use mgm::io::{ByteSource, DiskFile, DiskFolder, Folder};
use mgm::session::{LoadOptions, ModelText};
use mgm::tensor::Precision;
use mgm::text::conversation::Template;
use mgm::weights::bundle::{BundleFile, MANIFEST, SHARD_BYTES};
use mgm::weights::bundle_layout::{BundleShard, Layout};
use mgm::weights::mgm::MgmCheckpoint;
use mgm::weights::model_files::ModelFiles;
use mgm::weights::report::PartReport;
use mgm::weights::sdxl::SdxlCheckpoint;
use sha2::{Digest, Sha256};

use crate::args::{CheckpointArgs, parse_size};
use crate::files::{hex, io_error, refuse_special};
use crate::load::{checkpoint_path, open_checkpoint};
use crate::{CliError, progress, pull, sdxl};

#[derive(Debug, Args)]
pub struct PackArgs {
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    /// Folder to write the bundle to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Weight precision: f32, f16, q8, q4 for a language model, f32, f16, q8 for an image model [default: q4; f16 for
    /// an image model; the file's own for GGUF]
    #[arg(long)]
    precision: Option<Precision>,
    /// Maximum size of a shard, such as 16M; at most 64M [default: 64M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    shard_size: Option<u64>,
    /// Name of the model in the bundle [default: the name of the checkpoint's folder or file]
    #[arg(long)]
    name: Option<String>,
    /// Conversation template: vicuna_v1, gemma, mistral_instruct, chatml_direct, llama_3 [default: the checkpoint's]
    #[arg(long, value_name = "NAME")]
    conversation: Option<Template>,
}

/// Smaller shards would be mostly header.
const MIN_SHARD: u64 = 64 << 10;

pub async fn run(arguments: PackArgs) -> Result<(), CliError> {
    if arguments.checkpoint.llm.is_some() {
        let reason = "--llm is not supported here; pack the GGUF file on its own".to_owned();
        return Err(Error::InvalidArgument(reason).into());
    }
    let path = checkpoint_path(&arguments.checkpoint)?;
    if sdxl::is_sdxl(&path).await? {
        return pack_sdxl(&path, &arguments).await;
    }
    let files = open_checkpoint(&arguments.checkpoint).await?;
    let shard_bytes = shard_bytes(&arguments)?;
    let name = arguments.name.unwrap_or_else(|| default_name(&path));
    let layout = match &files {
        ModelFiles::Mgm(checkpoint) => {
            if let Some(packed) = checkpoint.packed {
                let reason = format!("{} is already a bundle ({packed}); pack the original checkpoint", path.display());
                return Err(Error::InvalidArgument(reason).into());
            }
            refuse_incomplete(checkpoint)?;
            // The model's own is in its files, in the bundle, too.
            let template = check_text(&files, arguments.conversation).await?.template();
            let precision = arguments.precision.unwrap_or(Precision::Q4);
            Layout::from_checkpoint(checkpoint, &name, precision, template.map(Template::name), shard_bytes).await?
        }
        ModelFiles::Gguf(_) if arguments.precision.is_some() || !path.is_file() => {
            let reason = "a GGUF file keeps its precision: pass the file itself and omit --precision".to_owned();
            return Err(Error::InvalidArgument(reason).into());
        }
        ModelFiles::Gguf(model) => {
            if model.header.text("tokenizer.chat_template").is_some() {
                check_text(&files, arguments.conversation).await?;
            }
            let source: Rc<dyn ByteSource> = Rc::new(DiskFile::open(&path)?);
            Layout::from_gguf(&source, model, &name, shard_bytes).await?
        }
    };
    write(layout, &arguments.out).await
}

/// Reads the tokenizer and the conversation template, and renders the template, as `mgm chat` does.
async fn check_text(files: &ModelFiles, template: Option<Template>) -> mgm::Result<ModelText> {
    let text = ModelText::read(files, &LoadOptions::new(Precision::F16).with_template(template)).await?;
    if let Some(note) = text.note() {
        note!("mgm: note: {note}");
    }
    Ok(text)
}

fn shard_bytes(arguments: &PackArgs) -> Result<u64, Error> {
    let shard_bytes = arguments.shard_size.unwrap_or(SHARD_BYTES);
    if (MIN_SHARD..=SHARD_BYTES).contains(&shard_bytes) {
        return Ok(shard_bytes);
    }
    let reason = format!("--shard-size is {shard_bytes} bytes, expected {MIN_SHARD} to {SHARD_BYTES}");
    Err(Error::InvalidArgument(reason))
}

/// Packs an image model.
async fn pack_sdxl(path: &Path, arguments: &PackArgs) -> Result<(), CliError> {
    let precision = arguments.precision.unwrap_or(Precision::F16);
    let folder: Rc<dyn Folder> = Rc::new(DiskFolder::new(path));
    let refused = if path.is_file() || !SdxlCheckpoint::is_in(&*folder).await? {
        Some(format!(
            "{}: expected a folder in diffusers' layout, as save_pretrained of diffusers writes it",
            path.display()
        ))
    } else if let Err(expected) = sdxl::parse_image_precision(&precision.to_string()) {
        Some(format!("--precision {precision}: {expected}"))
    } else if arguments.conversation.is_some() {
        Some("--conversation needs a language model".to_owned())
    } else {
        None
    };
    if let Some(reason) = refused {
        return Err(Error::InvalidArgument(reason).into());
    }
    let checkpoint = sdxl::open(path).await?;
    checkpoint.check()?;
    let name = arguments.name.clone().unwrap_or_else(|| default_name(path));
    let layout = Layout::from_diffusion(&folder, &checkpoint, &name, precision, shard_bytes(arguments)?).await?;
    write(layout, &arguments.out).await
}

/// Refuses a checkpoint with missing tensors or wrong shapes, because its bundle could not be loaded.
fn refuse_incomplete(checkpoint: &MgmCheckpoint) -> Result<(), Error> {
    checkpoint.report().iter().try_for_each(PartReport::check)
}

async fn write(layout: Layout, out: &Path) -> Result<(), CliError> {
    std::fs::create_dir_all(out).map_err(|error| io_error(out, error))?;
    let refuse = |reason: &str| Err(Error::InvalidArgument(format!("{} {reason}", out.display())));
    let holds_a_bundle = || match out.join(MANIFEST).exists() {
        true => refuse("already holds a bundle: choose another folder, or remove the bundle"),
        false => Ok(()),
    };
    holds_a_bundle()?;
    // Renamed when it is complete, so that every folder with a manifest is a complete bundle.
    let part = out.join(format!("{MANIFEST}.part"));
    refuse_special(&part).map_err(|error| io_error(&part, error))?;
    let manifest_file = File::options().create(true).write(true).truncate(false).open(&part);
    let manifest_file = manifest_file.map_err(|error| io_error(&part, error))?;
    if matches!(FileExt::try_lock(&manifest_file), Err(TryLockError::WouldBlock)) {
        refuse("is being written to by another mgm pack: choose another folder")?;
    }
    // Another one may have finished before the lock.
    holds_a_bundle()?;
    let bar = progress::bytes(layout.bytes(), "packing");
    let mut manifest = layout.manifest;
    for (file, bytes) in &layout.files {
        let mut target = HashingFile::create(out.join(file))?;
        target.write(bytes)?;
        bar.inc(bytes.len() as u64);
        manifest.files.push(target.finish(file, "tokenizer")?);
    }
    for (index, shard) in layout.shards.iter().enumerate() {
        let file = BundleShard::file(index, layout.shards.len());
        let mut target = HashingFile::create(out.join(&file))?;
        target.write(&shard.header()?)?;
        shard
            .write(|bytes| {
                bar.inc(bytes.len() as u64);
                target.write(bytes)
            })
            .await?;
        manifest.shards.push(target.finish(&file, shard.part)?);
    }
    let text = serde_json::to_string_pretty(&manifest).map_err(std::io::Error::from)?;
    write_manifest(manifest_file, text.as_bytes())
        .and_then(|()| std::fs::rename(&part, out.join(MANIFEST)))
        .map_err(|error| io_error(&part, error))?;
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

fn write_manifest(mut file: File, text: &[u8]) -> std::io::Result<()> {
    file.write_all(text)?;
    // What an earlier run left.
    file.set_len(text.len() as u64)?;
    // The system may report a full disk only here.
    file.sync_all()
}

fn default_name(path: &Path) -> String {
    // A folder of the Hub's cache has a commit for a name.
    if let Some(repo) = pull::repo_of(path).filter(|_| path.is_dir()) {
        return repo.rsplit('/').next().unwrap_or(&repo).to_owned();
    }
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let name = if path.is_file() { path.file_stem() } else { path.file_name() };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Hashes a file while writing it.
struct HashingFile {
    path: PathBuf,
    file: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl HashingFile {
    fn create(path: PathBuf) -> Result<Self, CliError> {
        let created = refuse_special(&path).and_then(|()| File::create(&path));
        let file = created.map_err(|error| io_error(&path, error))?;
        Ok(Self { path, file: BufWriter::new(file), hash: Sha256::new(), bytes: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(self.file.write_all(bytes).map_err(|error| io_error(&self.path, error))?)
    }

    fn finish(self, file: &str, part: &str) -> Result<BundleFile, CliError> {
        let written = self.file.into_inner().map_err(std::io::IntoInnerError::into_error);
        // The system may report a full disk only here.
        written.and_then(|file| file.sync_all()).map_err(|error| io_error(&self.path, error))?;
        let sha256 = hex(&self.hash.finalize());
        Ok(BundleFile { file: file.to_owned(), bytes: self.bytes, sha256, part: part.to_owned() })
    }
}
