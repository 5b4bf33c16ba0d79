//! Images in answers: the text between `<h>` and `</h>` is the image model's prompt.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use mgm::diffusion::InitialLatents;
use mgm::diffusion::gen_protocol::NEGATIVE_PROMPT;
use mgm::gpu::Gpu;
use mgm::tensor::Precision;

use crate::CliError;
use crate::image_model::{GeneratedImage, ImageArgs, ImageModel, ImageReport, ImageRequest};
use crate::images::{numbered, save_png};
use crate::sdxl::{CheckedModel, LoraFile, SdxlArgs, parse_image_precision, parse_lora};

/// Images in answers.
#[derive(Debug, Args)]
pub struct AnswerImageArgs {
    /// Stable Diffusion XL model (folder or single file) that generates the image an answer describes between <h> and
    /// </h> [default: the bundled one, if the chat model is the bundled one]
    #[arg(long, value_name = "MODEL")]
    pub image_model: Option<PathBuf>,
    /// Request an image with every --prompt [default: only if it contains the word "generate"]
    #[arg(long)]
    pub draw: bool,
    /// PNG file for the image; further images are numbered [default: image.png]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
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
    #[command(flatten)]
    pub image: ImageArgs,
}

impl AnswerImageArgs {
    /// The image model, and the file for the first image. `None` if answers have no images.
    ///
    /// # Errors
    /// [`mgm::Error::InvalidArgument`] if images are requested without an image model.
    pub fn model(&self) -> mgm::Result<Option<(SdxlArgs, PathBuf)>> {
        if self.image_model.is_none() {
            if self.draw || self.out.is_some() {
                let reason = "--draw and --out need an image model: pass one with --image-model".to_owned();
                return Err(mgm::Error::InvalidArgument(reason));
            }
            return Ok(None);
        }
        let model = SdxlArgs {
            model: self.image_model.clone(),
            tokenizer: self.tokenizer.clone(),
            vae: self.vae.clone(),
            lora: self.lora.clone(),
            precision: self.image_precision,
        };
        Ok(Some((model, self.out.clone().unwrap_or_else(|| "image.png".into()))))
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
