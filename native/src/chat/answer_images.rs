//! Images in answers: the text between `<h>` and `</h>` is the image model's prompt.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use mgm::diffusion::InitialLatents;
use mgm::diffusion::gen_protocol::NEGATIVE_PROMPT;
use mgm::gpu::Gpu;

use crate::CliError;
use crate::image_model::{GeneratedImage, ImageArgs, ImageModel, ImageReport, ImageRequest};
use crate::images::{numbered, save_png};
use crate::sdxl::{CheckedModel, ImageModelArgs, SdxlArgs};

/// Images in answers.
#[derive(Debug, Args)]
pub struct AnswerImageArgs {
    #[command(flatten)]
    pub model: ImageModelArgs,
    /// Request an image with every --prompt [default: only if it contains the word "generate"]
    #[arg(long)]
    pub draw: bool,
    /// PNG file for the image; further images are numbered [default: image.png]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub image: ImageArgs,
}

impl AnswerImageArgs {
    /// The image model, and the file for the first image. `None` if answers have no images.
    ///
    /// # Errors
    /// [`mgm::Error::InvalidArgument`] if images are requested without an image model.
    pub fn named_model(&self) -> mgm::Result<Option<(SdxlArgs, PathBuf)>> {
        match self.model.sdxl() {
            Some(model) => Ok(Some((model, self.out.clone().unwrap_or_else(|| "image.png".into())))),
            None if self.draw || self.out.is_some() => {
                let reason = "--draw and --out need an image model: pass one with --image-model".to_owned();
                Err(mgm::Error::InvalidArgument(reason))
            }
            None => Ok(None),
        }
    }
}

/// Generates the images of a conversation and writes them to files.
pub struct AnswerImages {
    model: ImageModel,
    out: PathBuf,
    seed: u64,
    /// Images generated so far.
    count: u64,
    /// Request an image with every question.
    pub always: bool,
}

impl AnswerImages {
    pub async fn new(
        gpu: &Gpu,
        checkpoint: CheckedModel,
        model: &SdxlArgs,
        arguments: &AnswerImageArgs,
        out: PathBuf,
        seed: u64,
        stop: Arc<AtomicBool>,
    ) -> mgm::Result<Self> {
        let model = ImageModel::open(gpu, checkpoint, model, &arguments.image, stop).await?;
        Ok(Self { model, out, seed, count: 0, always: arguments.draw })
    }

    /// Uses another device.
    ///
    /// # Errors
    /// As [`ImageModel::move_to`].
    pub async fn move_to(&mut self, gpu: &Gpu) -> mgm::Result<()> {
        self.model.move_to(gpu).await
    }

    /// Device memory that the unloaded parts will need, in bytes.
    pub fn missing_bytes(&self) -> u64 {
        self.model.missing_bytes()
    }

    /// Drops the image model's weights from the device. The next image loads them again.
    pub fn release(&mut self) {
        self.model.release();
    }

    /// Generates an image.
    ///
    /// # Errors
    /// As [`ImageModel::generate`].
    pub async fn generate(&mut self, prompt: &str) -> mgm::Result<GeneratedImage> {
        let size = self.model.default_size();
        let (negative_prompt, seed) = (Some(NEGATIVE_PROMPT), self.seed.wrapping_add(self.count));
        self.model
            .generate(ImageRequest { prompt, negative_prompt, initial_latents: InitialLatents::Noise, seed, size })
            .await
    }

    /// Writes an image to the next file. Also shows it if the terminal can display images.
    pub fn save(&mut self, generated: GeneratedImage) -> Result<ImageReport, CliError> {
        self.count += 1;
        let file = match self.count {
            1 => self.out.clone(),
            number => numbered(&self.out, number as usize),
        };
        save_png(&file, &generated.image, &generated.settings)?;
        self.model.show(&generated.image)?;
        Ok(ImageReport::new(&file, generated))
    }
}
