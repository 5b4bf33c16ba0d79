//! `mgm generate`: images from text.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use mgm::diffusion::InitialLatents;
use mgm::diffusion::limits::{DEFAULT_INPAINTING_STRENGTH, DEFAULT_STRENGTH, check_strength};
use mgm::image::ImageDecoding;
use mgm::weights::checkpoint::Checkpoint;
use mgm::{Error, Result};
use serde::Serialize;

use crate::args::{ProfiledDeviceArgs, parse_checked, parse_number};
use crate::image_model::{ImageArgs, ImageModel, ImageReport, ImageRequest};
use crate::images::{check_space, output_files, read_image, save_png};
use crate::output::print_json;
use crate::recovery::Recovery;
use crate::sdxl::{SdxlArgs, open_file};
use crate::{CliError, device_cache, interrupt, sdxl, seed};

#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: SdxlArgs,
    /// What the image should show
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// What the image should not show
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    #[command(flatten)]
    image: ImageArgs,
    /// Random seed for the noise; the images of a batch use SEED, SEED + 1, … [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Number of images
    #[arg(long, visible_alias = "num-images-per-prompt", value_name = "N", default_value = "1", value_parser = parse_batch, allow_hyphen_values = true)]
    batch: usize,
    /// Image to start from instead of noise; without --size it is scaled down to about as many pixels as the model's
    /// images have, with --size to cover it, and cropped
    #[arg(long, visible_alias = "image", value_name = "FILE")]
    init_image: Option<PathBuf>,
    /// Image whose white areas are regenerated in the initial image (inpainting); scaled and cropped like that image
    #[arg(long, visible_alias = "mask-image", value_name = "FILE", requires = "init_image")]
    mask: Option<PathBuf>,
    /// How much to change the initial image, above 0 and up to 1 [default: 0.6; 0.9999 with --mask, as in diffusers]
    #[arg(long, requires = "init_image", value_parser = parse_strength, allow_hyphen_values = true)]
    strength: Option<f32>,
    /// Noise to start from instead of a seed's: a safetensors file with one tensor, or one named latents, of unit
    /// variance and shape [1, 4, H / 8, W / 8]
    #[arg(long, value_name = "FILE", conflicts_with = "init_image")]
    latents: Option<PathBuf>,
    /// Print one JSON object and nothing else on standard output
    #[arg(long)]
    json: bool,
    /// PNG file to write; the images of a batch are numbered
    #[arg(long, value_name = "FILE", default_value = "image.png")]
    out: PathBuf,
    #[command(flatten)]
    device: ProfiledDeviceArgs,
}

fn parse_batch(text: &str) -> std::result::Result<usize, String> {
    parse_number(text, |count| (1..=1000).contains(count), "a batch of 1 to 1000 images")
}

fn parse_strength(text: &str) -> std::result::Result<f32, String> {
    parse_checked(text, check_strength, "a strength above 0, up to 1")
}

pub async fn run(arguments: GenerateArgs) -> std::result::Result<(), CliError> {
    // Everything that can be checked without a device comes first.
    let files = output_files(&arguments.out, arguments.batch)?;
    let checked = sdxl::check(arguments.model.open().await?, arguments.image.scheduler.as_ref()).await?;
    let (checkpoint, _) = &checked;
    let read = |path: &PathBuf| read_image(path, ImageDecoding::Corrected);
    let init = arguments.init_image.as_ref().map(read).transpose()?;
    let mask = arguments.mask.as_ref().map(read).transpose()?;
    let latents = match &arguments.latents {
        Some(path) => Some(Latents::read(path, arguments.batch).await?),
        None => None,
    };
    let scale = checkpoint.vae.1.pixels_per_latent();
    let size_of_latents = latents.as_ref().map(|latents| (latents.width * scale, latents.height * scale));
    let size_of_init = init.as_ref().map(|image| checkpoint.size_for(image));
    let size = arguments.image.size().or(size_of_latents).or(size_of_init);
    let size = size.unwrap_or_else(|| checkpoint.default_size());
    check_space(&files, size)?;
    let strength = |default| arguments.strength.unwrap_or(default);
    let init = init.map(|image| match mask {
        Some(mask) => InitialLatents::inpaint(image, mask, size, strength(DEFAULT_INPAINTING_STRENGTH)),
        None => InitialLatents::image(image, size, strength(DEFAULT_STRENGTH)),
    });

    let started = Instant::now();
    let stop = interrupt::install()?;
    let mut gpu = device_cache::open_with_note(&arguments.device.options()).await?;
    let mut recovery = Recovery::new(arguments.device.options());
    let mut model = ImageModel::open(&gpu, checked, &arguments.model, &arguments.image, stop).await?;
    // 32 bits: the seed is printed, and other programs' seeds are that short.
    let seed = arguments.seed.unwrap_or_else(|| seed::random() >> 32);
    let mut images = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let initial_latents = match (&latents, &init) {
            (Some(latents), _) => latents.of_image(index),
            (None, Some(image)) => image.clone(),
            (None, None) => InitialLatents::Noise,
        };
        let (prompt, negative_prompt) = (arguments.prompt.as_str(), arguments.negative_prompt.as_deref());
        let seed = seed.wrapping_add(index as u64);
        let request = ImageRequest { prompt, negative_prompt, initial_latents, seed, size };
        let generated = loop {
            match model.generate(request.clone()).await {
                Err(error @ Error::DeviceLost(_)) => {
                    gpu = recovery.reopen(error).await?;
                    model.move_to(&gpu).await?;
                }
                generated => break generated?,
            }
        };
        recovery.note_result();
        save_png(file, &generated.image, &generated.settings)?;
        model.show(&generated.image)?;
        if !arguments.json {
            writeln!(std::io::stdout(), "{}", file.display())?;
        }
        images.push(ImageReport::new(file, generated));
    }
    if arguments.json {
        print_json(&Report {
            images,
            adapter: &gpu.adapter().name,
            total_ms: started.elapsed().as_secs_f64() * 1000.0,
            peak_memory_bytes: gpu.memory().peak,
        })?;
    }
    if arguments.device.profile {
        note!("{}", gpu.take_profile().await?);
    }
    Ok(())
}

#[derive(Serialize)]
struct Report<'a> {
    images: Vec<ImageReport>,
    adapter: &'a str,
    total_ms: f64,
    peak_memory_bytes: u64,
}

/// Initial noise from a file: [batch, channels, height, width].
struct Latents {
    values: Vec<f32>,
    batch: usize,
    height: usize,
    width: usize,
}

/// Names of the tensor in a file with several.
const LATENTS: [&str; 2] = ["latents", "latents_initial"];

impl Latents {
    async fn read(path: &Path, batch: usize) -> Result<Self> {
        let file = Checkpoint::open_file(open_file(path)?).await?;
        let names: Vec<&str> = file.names().collect();
        let bad = |reason: String| Error::Config { file: path.display().to_string(), reason };
        let name = match names.as_slice() {
            [name] => name,
            _ => LATENTS
                .iter()
                .find(|name| names.contains(name))
                .ok_or_else(|| bad(format!("{} tensors, none of them called {}", names.len(), LATENTS.join(" or "))))?,
        };
        let shape = file.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        let (found, height, width) = match *shape.as_slice() {
            [_, height, width] => (1, height, width),
            [found, _, height, width] => (found, height, width),
            _ => (0, 0, 0),
        };
        if found != batch || height == 0 || width == 0 {
            return Err(Error::WrongShape {
                name: (*name).to_owned(),
                found: shape,
                expected: format!("[{batch}, 4, height / 8, width / 8], one for each image"),
            });
        }
        Ok(Self { values: file.read(name).await?, batch, height, width })
    }

    /// The initial latents of one image of the batch.
    fn of_image(&self, index: usize) -> InitialLatents {
        let length = self.values.len() / self.batch;
        let values = self.values[index * length..(index + 1) * length].to_vec();
        InitialLatents::latents(values, (self.width, self.height))
    }
}
