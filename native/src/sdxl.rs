//! Opens Stable Diffusion XL models.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use clap::Args;
use mgm::Result;
use mgm::diffusion::DiffusionPipeline;
use mgm::io::{ByteSource, DiskFile, DiskFolder, Folder};
use mgm::tensor::Precision;
use mgm::text::clip::ClipTokenizer;
use mgm::weights::bundle::read::Bundle;
use mgm::weights::sdxl::config::SchedulerOverride;
use mgm::weights::sdxl::{Lora, OpenOptions, SdxlCheckpoint, Vae};

use crate::pull::LocalModel;
use crate::{bundled_models, pull};

/// An image model and how to load it.
#[derive(Debug, Clone, Args)]
pub struct SdxlArgs {
    /// Folder of a Stable Diffusion XL model in diffusers' layout or of a bundle, a single .safetensors file, or the
    /// name of a model that `mgm pull` downloaded [default: the bundled model, pocket-sdxl]
    #[arg(value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// For a single file: folder with CLIP's vocab.json and merges.txt, or a folder in diffusers' layout, whose
    /// tokenizers, configurations and scheduler are used [default: the file's folder]
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Autoencoder in place of the model's own: a .safetensors file, a folder with config.json and weights, a folder of
    /// a whole model in diffusers' layout, or the name of one that `mgm pull` downloaded
    #[arg(long, value_name = "FILE|DIR|NAME")]
    pub vae: Option<PathBuf>,
    /// LoRA to merge into the weights, and its scale: a file, a folder of PEFT's or diffusers', or the name of one that
    /// `mgm pull` downloaded, such as OWNER/NAME or OWNER/NAME:FILE; repeat for several
    #[arg(long, value_name = "FILE[:SCALE]", value_parser = parse_lora)]
    pub lora: Vec<LoraFile>,
    /// Weight precision: f32, f16, q8 [default: the file's own]
    #[arg(long, value_parser = parse_image_precision)]
    pub precision: Option<Precision>,
}

/// The image model of a command that has a language model too.
#[derive(Debug, Clone, Args)]
pub struct ImageModelArgs {
    /// Stable Diffusion XL model (folder or single file) that generates images: in a chat, what an answer describes
    /// between <h> and </h> [default: the bundled one, if the chat model is the bundled one]
    #[arg(long, value_name = "MODEL")]
    pub image_model: Option<PathBuf>,
    /// Weight precision of the image model: f32, f16, q8 [default: the file's own]
    #[arg(long, value_name = "PRECISION", value_parser = parse_image_precision, requires = "image_model")]
    pub image_precision: Option<Precision>,
    /// For a single-file image model: folder with its tokenizers (see mgm generate)
    #[arg(long, value_name = "DIR", requires = "image_model")]
    pub tokenizer: Option<PathBuf>,
    /// Autoencoder in place of the image model's own (see mgm generate)
    #[arg(long, value_name = "FILE|DIR|NAME", requires = "image_model")]
    pub vae: Option<PathBuf>,
    /// LoRA for the image model, and its scale: a file, folder or OWNER/NAME:FILE; repeat for several
    #[arg(long, value_name = "FILE[:SCALE]", value_parser = parse_lora, requires = "image_model")]
    pub lora: Vec<LoraFile>,
}

impl ImageModelArgs {
    /// The image model, if there is one.
    pub fn sdxl(&self) -> Option<SdxlArgs> {
        let Self { image_model, image_precision, tokenizer, vae, lora } = self.clone();
        Some(SdxlArgs { model: Some(image_model?), tokenizer, vae, lora, precision: image_precision })
    }
}

/// A LoRA file and its scale.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraFile {
    pub path: PathBuf,
    pub scale: f32,
}

pub fn parse_lora(text: &str) -> std::result::Result<LoraFile, String> {
    // The last colon counts, and only before a number: paths may contain colons.
    let split = text.rsplit_once(':').and_then(|(path, scale)| Some((path, scale.parse::<f32>().ok()?)));
    let (path, scale) = split.unwrap_or((text, 1.0));
    if path.is_empty() || !scale.is_finite() {
        return Err("expected a file, or a file and its scale such as style.safetensors:0.8".to_owned());
    }
    Ok(LoraFile { path: PathBuf::from(path), scale })
}

/// A precision of image models.
pub fn parse_image_precision(text: &str) -> std::result::Result<Precision, String> {
    let known = Precision::IMAGE_CHOICES.map(|precision| precision.to_string());
    let found = Precision::IMAGE_CHOICES.into_iter().find(|precision| precision.to_string() == text);
    let [others @ .., last] = &known;
    found.ok_or_else(|| format!("expected {} or {last} for an image model", others.join(", ")))
}

impl SdxlArgs {
    /// The model that the arguments name, or the bundled one.
    ///
    /// # Errors
    /// [`mgm::Error::InvalidArgument`] if none is named and none is bundled; those of [`pull::locate`].
    fn local(&self) -> Result<LocalModel> {
        if let Some(path) = &self.model {
            return pull::locate(path);
        }
        let path = bundled_models::find(bundled_models::POCKET_SDXL);
        let path = path.ok_or_else(|| bundled_models::missing(bundled_models::POCKET_SDXL))?;
        Ok(LocalModel { path, ..LocalModel::default() })
    }

    /// The model's name, for the settings in an image: that of its file or folder.
    ///
    /// # Errors
    /// As when the model is opened.
    pub fn name(&self) -> Result<String> {
        let path = self.local()?.path;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // A folder of the Hub's cache has a commit for a name.
        Ok(pull::repo_of(&path).filter(|_| path.is_dir()).unwrap_or(name))
    }

    /// Opens the model and merges the LoRA files. Notes on unused parts of these go to standard error.
    ///
    /// # Errors
    /// Those of [`pull::locate`] and of the reader.
    pub async fn open(&self) -> Result<SdxlCheckpoint> {
        let LocalModel { path, tokenizer, .. } = self.local()?;
        let tokenizer = self.tokenizer.as_deref().or(tokenizer.as_deref());
        let vae = self.vae.as_deref().map(pull::locate).transpose()?.map(|vae| vae.path);
        let mut checkpoint = open_with(&path, tokenizer, vae.as_deref(), self.precision).await?;
        for LoraFile { path, scale } in &self.lora {
            let lora = open_lora(&pull::locate(path)?.path, *scale).await?;
            for note in checkpoint.merge_lora(&lora)?.notes() {
                note!("mgm: note: {note}");
            }
        }
        checkpoint.check()?;
        Ok(checkpoint)
    }
}

/// Opens a LoRA file with the configuration next to it, or the one in a folder.
async fn open_lora(path: &Path, scale: f32) -> Result<Lora> {
    if path.is_dir() {
        return Lora::open_folder(&DiskFolder::new(path), scale).await;
    }
    let lora = Lora::open(open_file(path)?, scale).await?;
    lora.with_config_in(&DiskFolder::new(path.parent().unwrap_or(Path::new(".")))).await
}

/// Opens a folder in diffusers' layout, a bundle, or a single file.
///
/// # Errors
/// The reader's.
pub async fn open(model: &Path) -> Result<SdxlCheckpoint> {
    open_with(model, None, None, None).await
}

async fn open_with(
    model: &Path,
    tokenizer: Option<&Path>,
    vae: Option<&Path>,
    precision: Option<Precision>,
) -> Result<SdxlCheckpoint> {
    let folder = |path: &Path| Rc::new(DiskFolder::new(path)) as Rc<dyn Folder>;
    let prefer_f16 = precision.is_some_and(|precision| precision != Precision::F32);
    let vae = match vae {
        Some(path) if path.is_dir() => Some(Vae::open(folder(path)).await?),
        Some(path) => Some(Vae::open_file(open_file(path)?).await?),
        None => None,
    };
    let options = OpenOptions::default().with_prefer_f16(prefer_f16).with_vae(vae.clone());
    if !model.is_file() {
        if let Some(bundle) = Bundle::find(&folder(model)).await? {
            let mut checkpoint = SdxlCheckpoint::open_bundle(&bundle).await?;
            if let Some(vae) = vae {
                checkpoint.replace_vae(vae);
            }
            return Ok(checkpoint);
        }
        return SdxlCheckpoint::open(folder(model), &options).await;
    }
    let own_folder = || {
        let around = model.parent().unwrap_or(Path::new("."));
        // A folder in diffusers' layout, or CLIP's vocabulary alone.
        ["tokenizer", "vocab.json"].iter().any(|name| around.join(name).exists()).then(|| around.to_owned())
    };
    let components = tokenizer.map(Path::to_owned).or_else(own_folder);
    let options = options.with_components_dir(components.as_deref().map(folder));
    SdxlCheckpoint::open_file(open_file(model)?, &options).await
}

/// An opened model and its tokenizers.
pub type CheckedModel = (SdxlCheckpoint, Rc<[ClipTokenizer; 2]>);

/// Reads what [`SdxlCheckpoint::check`] does not, before a device is opened: the scheduler and the tokenizers.
///
/// # Errors
/// Those of the readers.
pub async fn check(checkpoint: SdxlCheckpoint, scheduler: Option<&SchedulerOverride>) -> Result<CheckedModel> {
    checkpoint.scheduler(scheduler)?;
    let tokenizers = DiffusionPipeline::tokenizers(&checkpoint).await?;
    Ok((checkpoint, tokenizers))
}

/// Whether a path is a Stable Diffusion XL model: a folder in diffusers' layout, a bundle of one, or a single file.
///
/// # Errors
/// The reader's.
pub async fn is_sdxl(path: &Path) -> Result<bool> {
    if path.is_file() {
        return Ok(path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors")));
    }
    let folder: Rc<dyn Folder> = Rc::new(DiskFolder::new(path));
    let bundle = Bundle::find(&folder).await?;
    Ok(SdxlCheckpoint::is_in(&*folder).await? || bundle.is_some_and(|bundle| SdxlCheckpoint::is_packed(&bundle)))
}

/// Opens a file to read at offsets.
///
/// # Errors
/// [`mgm::Error::Io`].
pub fn open_file(path: &Path) -> Result<Rc<dyn ByteSource>> {
    let file = DiskFile::open(path)?;
    Ok(Rc::new(file))
}
