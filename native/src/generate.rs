//! `mgm generate`: pictures from words.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use indicatif::ProgressBar;
use mgm::diffusion::pipeline::{Diffusion, Event, LoadOptions, Request, Start};
use mgm::diffusion::random::NoiseType;
use mgm::diffusion::settings::Settings;
use mgm::gpu::Gpu;
use mgm::image::Rgb8;
use mgm::tensor::Precision;
use mgm::weights::bundle::read::Bundle;
use mgm::weights::checkpoint::Checkpoint;
use mgm::weights::sdxl::{Lora, OpenOptions, SdxlCheckpoint};
use mgm::weights::source::{ByteSource, Folder};
use mgm::{Error, Result};
use mgm_native::files::{DiskFile, DiskFolder, io_error};
use serde::Serialize;

use crate::args::{GenerateArgs, LoraFile, ModelArgs, PictureArgs};
use crate::chat::{install_interrupt, random_seed, read_image};
use crate::picture::{Screen, save};
use crate::{Failure, kept, progress, shipped};

/// How much of a picture is painted over where nothing is said.
const STRENGTH: f32 = 0.6;

pub async fn run(arguments: GenerateArgs) -> std::result::Result<(), Failure> {
    // What can be wrong without a device is looked at before one is opened.
    let outputs = outputs(&arguments.out, arguments.batch)?;
    let checkpoint = arguments.model.open().await?;
    let init = arguments.init_image.as_deref().map(read_image).transpose()?;
    let latents = match &arguments.latents {
        Some(path) => Some(Latents::read(path, arguments.batch).await?),
        None => None,
    };
    let latent_size = latents.as_ref().map(|latents| (latents.width, latents.height));
    let unit = checkpoint.vae.1.pixels_per_latent();
    let size = arguments.picture.size.or(latent_size.map(|(width, height)| (width * unit, height * unit)));
    let size = size.or_else(|| init.as_ref().map(|image| whole_size(image, unit)));
    let size = size.unwrap_or_else(|| checkpoint.default_size());
    let strength = arguments.strength.unwrap_or(STRENGTH);
    let init = init.map(|image| Start::image(image, size, strength));

    let started = Instant::now();
    let gpu = kept::open_noting(&arguments.device.options()).await?;
    let stop = Arc::new(AtomicBool::new(false));
    install_interrupt(&stop)?;
    let mut painter = Painter::new(&gpu, checkpoint, &arguments.model, &arguments.picture, stop)?;
    let seed = arguments.seed.unwrap_or_else(|| random_seed() >> 32);
    let mut pictures = Vec::new();
    for (index, file) in outputs.iter().enumerate() {
        let start = match (&latents, &init) {
            (Some(latents), _) => latents.of(index),
            (None, Some(image)) => image.clone(),
            (None, None) => Start::Noise,
        };
        let seed = seed.wrapping_add(index as u64);
        let painting = Painting { prompt: &arguments.prompt, negative: arguments.negative.as_deref(), start, seed };
        let painted = painter.paint(painting, size).await?;
        save(file, &painted.image, &painted.settings)?;
        painter.show(&painted.image)?;
        if !arguments.json {
            writeln!(std::io::stdout(), "{}", file.display())?;
        }
        pictures.push(PictureReport::new(file, painted));
    }
    if arguments.json {
        let memory = gpu.memory();
        let report = Report {
            pictures,
            adapter: &gpu.adapter().name,
            total_ms: started.elapsed().as_secs_f64() * 1000.0,
            peak_memory_bytes: memory.peak,
        };
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&report).map_err(std::io::Error::other)?)?;
    }
    if arguments.device.profile {
        note!("{}", gpu.take_profile().await?);
    }
    Ok(())
}

#[derive(Serialize)]
struct Report<'a> {
    pictures: Vec<PictureReport>,
    adapter: &'a str,
    total_ms: f64,
    peak_memory_bytes: u64,
}

/// What is told of a picture.
#[derive(Serialize)]
pub struct PictureReport {
    file: String,
    settings: Settings,
    steps_ms: f64,
    total_ms: f64,
}

impl PictureReport {
    pub fn new(file: &Path, painted: Painted) -> Self {
        let Painted { settings, steps_ms, total_ms, .. } = painted;
        Self { file: file.display().to_string(), settings, steps_ms, total_ms }
    }
}

impl ModelArgs {
    /// Opens the model and what is merged into it.
    pub async fn open(&self) -> Result<SdxlCheckpoint> {
        let Some(model) = &self.model else {
            let why = shipped::missing(shipped::PAINTS);
            return Err(Error::InvalidArgument(format!("name a Stable Diffusion XL model to paint with: {why}")));
        };
        let mut checkpoint = open(model, self.tokenizer.as_deref(), self.precision).await?;
        for LoraFile { path, scale } in &self.lora {
            checkpoint.merge(&Lora::open(open_file(path)?, *scale).await?)?;
        }
        checkpoint.check()?;
        Ok(checkpoint)
    }
}

/// Opens a folder in diffusers' layout or a single file.
pub async fn open(model: &Path, beside: Option<&Path>, precision: Option<Precision>) -> Result<SdxlCheckpoint> {
    let folder = |path: &Path| Rc::new(DiskFolder::new(path)) as Rc<dyn Folder>;
    let prefer_f16 = precision.is_some_and(|precision| precision != Precision::F32);
    if !model.is_file() {
        if let Some(bundle) = Bundle::find(&folder(model)).await? {
            return SdxlCheckpoint::open_bundle(&bundle).await;
        }
        return SdxlCheckpoint::open(folder(model), &OpenOptions { prefer_f16, beside: None }).await;
    }
    let near = || {
        let around = model.parent().unwrap_or(Path::new("."));
        // The folder that diffusers' layout would be, or a vocabulary by itself.
        ["tokenizer", "vocab.json"].iter().any(|name| around.join(name).exists()).then(|| around.to_owned())
    };
    let beside = beside.map(Path::to_owned).or_else(near);
    let options = OpenOptions { prefer_f16, beside: beside.as_deref().map(folder) };
    SdxlCheckpoint::open_file(open_file(model)?, &options).await
}

fn open_file(path: &Path) -> Result<Rc<dyn ByteSource>> {
    let file = DiskFile::open(path).map_err(|error| io_error(path, error))?;
    Ok(Rc::new(file))
}

/// The files that so many pictures go to.
pub fn outputs(out: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let bad = |reason: String| Err(Error::InvalidArgument(reason));
    if !out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        return bad(format!("--out {}: pictures are written as PNG files, expected a name with .png", out.display()));
    }
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return bad(format!("--out {}: there is no folder {}", out.display(), folder.display()));
    }
    if count == 1 {
        return Ok(vec![out.to_owned()]);
    }
    Ok((1..=count).map(|number| numbered(out, number)).collect())
}

/// `picture.png` as `picture-3.png`.
pub fn numbered(out: &Path, number: usize) -> PathBuf {
    let stem = out.file_stem().unwrap_or_default().to_string_lossy();
    let extension = out.extension().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!("{stem}-{number}.{extension}"))
}

/// A picture's size without the pixels that make no whole latent.
fn whole_size(image: &Rgb8, unit: usize) -> (usize, usize) {
    let whole = |side: usize| (side / unit).max(1) * unit;
    (whole(image.width()), whole(image.height()))
}

/// Noise from a file: [pictures, channels, height, width].
struct Latents {
    values: Vec<f32>,
    pictures: usize,
    height: usize,
    width: usize,
}

/// Names of the tensor, where a file has several.
const LATENTS: [&str; 2] = ["latents", "latents_initial"];

impl Latents {
    async fn read(path: &Path, pictures: usize) -> Result<Self> {
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
        if found != pictures || height == 0 || width == 0 {
            return Err(Error::WrongShape {
                name: (*name).to_owned(),
                found: shape,
                expected: format!("[{pictures}, 4, height / 8, width / 8], one for each picture"),
            });
        }
        Ok(Self { values: file.read(name).await?, pictures: found, height, width })
    }

    fn of(&self, picture: usize) -> Start {
        let length = self.values.len() / self.pictures;
        let values = self.values[picture * length..(picture + 1) * length].to_vec();
        Start::Latents { values, width: self.width, height: self.height }
    }
}

/// What is painted.
#[derive(Clone)]
pub struct Painting<'a> {
    pub prompt: &'a str,
    pub negative: Option<&'a str>,
    pub start: Start,
    pub seed: u64,
}

/// What came of it.
pub struct Painted {
    pub image: Rgb8,
    pub settings: Settings,
    pub steps_ms: f64,
    pub total_ms: f64,
}

/// A model that paints with these settings, showing on standard error how it gets on.
pub struct Painter {
    diffusion: Diffusion,
    arguments: PictureArgs,
    model: String,
    precision: Precision,
    lora: Vec<(String, f32)>,
    stop: Arc<AtomicBool>,
    /// Of the part that is being loaded.
    loading: Rc<RefCell<Option<ProgressBar>>>,
    screen: Option<Screen>,
    /// A preview is on the screen, right above the cursor.
    shown: bool,
}

impl Painter {
    pub fn new(
        gpu: &Gpu,
        checkpoint: SdxlCheckpoint,
        model: &ModelArgs,
        picture: &PictureArgs,
        stop: Arc<AtomicBool>,
    ) -> Result<Self> {
        let precision = model.precision.unwrap_or_else(|| checkpoint.stored_precision());
        let loading: Rc<RefCell<Option<ProgressBar>>> = Rc::default();
        let (bar, stopping) = (Rc::clone(&loading), Arc::clone(&stop));
        let on_progress = Rc::new(move |bytes| {
            if let Some(bar) = &*bar.borrow() {
                bar.inc(bytes);
            }
            !stopping.load(Ordering::Relaxed)
        });
        let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let options = LoadOptions { precision, on_progress: Some(on_progress) };
        Ok(Self {
            diffusion: Diffusion::new(gpu, checkpoint, options)?,
            arguments: picture.clone(),
            model: model.model.as_deref().map(name).unwrap_or_default(),
            precision,
            lora: model.lora.iter().map(|lora| (name(&lora.path), lora.scale)).collect(),
            stop,
            loading,
            screen: if picture.no_preview { None } else { Screen::detect() },
            shown: false,
        })
    }

    /// The model.
    pub fn diffusion(&mut self) -> &mut Diffusion {
        &mut self.diffusion
    }

    /// The size of pictures where none is given with each.
    pub fn size(&self) -> (usize, usize) {
        self.arguments.size.unwrap_or_else(|| self.diffusion.checkpoint().default_size())
    }

    /// Paints a picture of so many pixels.
    pub async fn paint(&mut self, painting: Painting<'_>, (width, height): (usize, usize)) -> Result<Painted> {
        let choice = self.arguments.scheduler.as_ref();
        let scheduler = self.diffusion.checkpoint().scheduler(choice.map(|(_, choice)| choice))?;
        let strength = match &painting.start {
            Start::Image(_, strength) => Some(*strength),
            _ => None,
        };
        let settings = Settings {
            prompt: painting.prompt.to_owned(),
            negative_prompt: painting.negative.map(str::to_owned),
            steps: self.arguments.steps,
            guidance: self.arguments.guidance,
            width,
            height,
            scheduler: choice.map_or_else(|| scheduler.class.to_string(), |(name, _)| name.clone()),
            seed: (!matches!(painting.start, Start::Latents { .. })).then_some(painting.seed),
            strength,
            model: self.model.clone(),
            precision: self.precision.to_string(),
            lora: self.lora.clone(),
        };
        let noise = match self.arguments.noise.as_deref() {
            Some("f16") => NoiseType::F16,
            Some(_) => NoiseType::F32,
            None => NoiseType::of(self.precision),
        };
        let request = Request {
            prompt: settings.prompt.clone(),
            negative: settings.negative_prompt.clone(),
            scheduler,
            steps: settings.steps,
            guidance: settings.guidance,
            width,
            height,
            start: painting.start,
            seed: painting.seed,
            noise,
            previews: self.screen.is_some(),
        };
        let started = Instant::now();
        let (first, last) = (Cell::new(None), Cell::new(None));
        let mut bar = ProgressBar::hidden();
        let plan = self.diffusion.plan().clone();
        let Self { diffusion, stop, loading, screen, shown, .. } = self;
        stop.store(false, Ordering::Relaxed);
        let finish_loading = || {
            if let Some(bar) = loading.borrow_mut().take() {
                bar.finish_and_clear();
            }
        };
        let mut failed = Ok(());
        let image = diffusion
            .generate(&request, &mut |event| {
                match event {
                    Event::PromptCut(dropped) => {
                        note!("mgm: note: the prompt is too long for the text encoders; left out: {dropped:?}");
                    }
                    Event::Loading(part) => {
                        finish_loading();
                        let bytes = plan.parts.iter().find(|(name, _)| *name == part).map_or(0, |(_, bytes)| *bytes);
                        *loading.borrow_mut() = Some(progress::bytes(bytes, "loading"));
                    }
                    Event::Step(done, all) => {
                        finish_loading();
                        if done == 0 {
                            bar = progress::count(all as u64, "painting");
                        } else {
                            first.set(first.get().or(Some((done, Instant::now()))));
                            last.set(Some((done, Instant::now())));
                        }
                        bar.set_position(done as u64);
                    }
                    Event::Preview(image) => {
                        if let Some(screen) = *screen {
                            let again = std::mem::replace(shown, true);
                            failed = bar.suspend(|| screen.show(&mut std::io::stderr().lock(), image, again));
                        }
                    }
                    Event::Decoding => finish_loading(),
                }
                failed.is_ok() && !stop.load(Ordering::Relaxed)
            })
            .await;
        finish_loading();
        bar.finish_and_clear();
        failed.map_err(|error| Error::Io { file: "standard error".to_owned(), reason: error.to_string() })?;
        // The time of the first step ends with its report; the others' is what a step takes.
        let steps_ms = match (first.get(), last.get()) {
            (Some((begun, from)), Some((done, to))) if done > begun => {
                to.duration_since(from).as_secs_f64() * 1000.0 / (done - begun) as f64
            }
            _ => 0.0,
        };
        Ok(Painted { image: image?, settings, steps_ms, total_ms: started.elapsed().as_secs_f64() * 1000.0 })
    }

    /// Shows a finished picture, where the terminal can.
    pub fn show(&mut self, image: &Rgb8) -> std::io::Result<()> {
        if let Some(screen) = self.screen {
            screen.show(&mut std::io::stderr().lock(), image, self.shown)?;
            self.shown = false;
        }
        Ok(())
    }
}
