//! The command line.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use clap::{Args, Parser, Subcommand};
use mgm::diffusion::pipeline::MAX_SIDE;
use mgm::diffusion::scheduler::Override;
use mgm::gpu::{AdapterChoice, GpuOptions};
use mgm::load::LoadOptions;
use mgm::tensor::Precision;
use mgm::text::conversation::Template;
use mgm::weights::gguf_model::GgufModel;
use mgm::weights::mgm::TowerOptions;
use mgm::weights::model_files::ModelFiles;
use mgm::weights::source::Folder;
use mgm_native::files::{DiskFile, DiskFolder, io_error};

use crate::eval::Format;
use crate::shipped;

/// Mini-Gemini vision-language models on any GPU.
#[derive(Debug, Parser)]
#[command(name = "mgm", version)]
pub struct Options {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask a model about images, once (--prompt) or in a conversation
    Chat(ChatArgs),
    /// Ask a model the questions of a benchmark, and mark its answers as the benchmark does
    Eval(EvalArgs),
    /// Paint pictures from words with Stable Diffusion XL
    Generate(GenerateArgs),
    /// List GPU adapters with what matters for this program
    Info,
    /// Check every kernel on a GPU against a reference on the CPU
    Doctor(DeviceArgs),
    /// Show a checkpoint's parts, sizes and memory needs, and what is missing or unexpected
    Inspect(CheckpointArgs),
    /// Write a model as a bundle: one folder for native programs and browsers
    Pack(PackArgs),
    /// Download a model and its towers from the Hugging Face Hub, or from the mirror in HF_ENDPOINT
    Pull(PullArgs),
    /// Measure a model at its released size, with random weights made on the device
    Bench(BenchArgs),
    /// Find the fastest kernels for a model on this device, for all later runs
    Tune(TuneArgs),
}

/// Which device, and how.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// GPU adapter: a number of `mgm info`, or a part of its name [default: the best]
    #[arg(long, value_name = "N|NAME")]
    pub adapter: Option<AdapterChoice>,
    /// The most GPU memory to use, such as 512M or 8G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub gpu_memory: Option<u64>,
}

impl DeviceArgs {
    pub fn options(&self) -> GpuOptions {
        GpuOptions {
            adapter: self.adapter.clone().unwrap_or_default(),
            memory_limit: self.gpu_memory,
            ..Default::default()
        }
    }
}

/// The same, where what runs can be timed by kernel.
#[derive(Debug, Args)]
pub struct TimedDeviceArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print a table of GPU time by kernel on standard error
    #[arg(long)]
    pub profile: bool,
}

impl TimedDeviceArgs {
    pub fn options(&self) -> GpuOptions {
        GpuOptions { profile: self.profile, ..self.device.options() }
    }
}

/// Where a checkpoint and its towers are.
#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// Folder of a Mini-Gemini checkpoint (config.json, weights, tokenizer) or of a bundle, or a GGUF file of a language model
    /// [default: pocket, where it came with this program]
    pub checkpoint: Option<PathBuf>,
    /// Folder of the low-resolution tower (CLIP ViT) [default: beside or inside the checkpoint]
    #[arg(long, value_name = "DIR")]
    pub vision_tower: Option<PathBuf>,
    /// Folder of the high-resolution tower (OpenCLIP ConvNeXt) [default: beside or inside the checkpoint]
    #[arg(long, value_name = "DIR")]
    pub vision_tower_hr: Option<PathBuf>,
    /// GGUF file to take the language model of the checkpoint from
    #[arg(long, value_name = "FILE")]
    pub language: Option<PathBuf>,
}

impl CheckpointArgs {
    /// Takes the model that came with the program, if there is one and none is named.
    pub fn or_shipped(&mut self) {
        self.checkpoint = self.checkpoint.take().or_else(|| shipped::find(shipped::ANSWERS));
    }

    pub async fn open(&self) -> mgm::Result<ModelFiles> {
        let Some(checkpoint) = &self.checkpoint else {
            return Err(mgm::Error::InvalidArgument(format!(
                "name the folder of a checkpoint, such as MGM-2B: {}",
                shipped::missing(shipped::ANSWERS)
            )));
        };
        if checkpoint.is_file() {
            return open_gguf(checkpoint).await.map(ModelFiles::Gguf);
        }
        let folder = |path: &PathBuf| Rc::new(DiskFolder::new(path)) as Rc<dyn Folder>;
        let towers = TowerOptions {
            clip: self.vision_tower.as_ref().map(folder),
            convnext: self.vision_tower_hr.as_ref().map(folder),
        };
        let mut files = ModelFiles::open(folder(checkpoint), towers).await?;
        match (&self.language, &mut files) {
            (None, _) => {}
            (Some(language), ModelFiles::Mgm(checkpoint)) => {
                checkpoint.replace_language(&open_gguf(language).await?)?;
            }
            (Some(_), ModelFiles::Gguf(_)) => {
                return Err(mgm::Error::InvalidArgument("--language is for Mini-Gemini checkpoints".to_owned()));
            }
        }
        Ok(files)
    }

    /// How to load what was opened: at this precision, or else as the files are best.
    pub fn load_options(&self, files: &ModelFiles, precision: Option<Precision>) -> LoadOptions {
        let (default, stored) = files.default_precision();
        LoadOptions {
            keep_stored: precision.is_none() && (stored || self.language.is_some()),
            ..LoadOptions::at(precision.unwrap_or(default))
        }
    }
}

/// Opens a GGUF file.
pub async fn open_gguf(path: &Path) -> mgm::Result<GgufModel> {
    let file = DiskFile::open(path).map_err(|error| io_error(path, error))?;
    GgufModel::open(Rc::new(file)).await
}

#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub checkpoint: CheckpointArgs,
    #[command(flatten)]
    pub device: TimedDeviceArgs,
    /// A question; repeat it for several turns. Without it the conversation is interactive
    #[arg(long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// An image for the first turn (PNG, JPEG, WebP, GIF, BMP); repeat it for several
    #[arg(long, value_name = "FILE")]
    pub image: Vec<PathBuf>,
    /// How weights are stored: f32, f16, q8, q4 [default: f16; what is in a GGUF file as it is there]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Randomness: 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.2, value_parser = parse_temperature)]
    pub temperature: f32,
    /// Sample only from the likeliest tokens that together have this probability [default: the model's, else 1]
    #[arg(long, value_parser = parse_probability)]
    pub top_p: Option<f32>,
    /// Sample only from this many of the likeliest tokens; 0 for all
    #[arg(long, default_value_t = 50)]
    pub top_k: u32,
    /// Seed of the sampling [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// The most tokens to generate for an answer
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_new_tokens: u32,
    /// Conversation template: vicuna_v1, gemma, mistral_instruct, chatml_direct, llama_3 [default: the checkpoint's]
    #[arg(long, value_name = "NAME")]
    pub conversation: Option<Template>,
    /// Replace the template's system text
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Look at images in low resolution alone: without the high-resolution tower and patch info mining
    #[arg(long)]
    pub no_high_resolution: bool,
    /// The form of Gemma's GELU: tanh or erf [default: as the configuration says]
    #[arg(long, value_parser = ["tanh", "erf"])]
    pub gelu: Option<String>,
    /// Print one JSON object and nothing else on standard output
    #[arg(long, requires = "prompt")]
    pub json: bool,
    #[command(flatten)]
    pub drawing: DrawingArgs,
}

impl ChatArgs {
    /// Takes the models that came with the program, if there are any and none is named.
    pub fn or_shipped(&mut self) {
        if self.checkpoint.checkpoint.is_none() {
            self.checkpoint.or_shipped();
            self.drawing.generate = self.drawing.generate.take().or_else(|| shipped::find(shipped::PAINTS));
        }
    }
}

#[derive(Debug, Args)]
#[command(after_long_help = EVAL_HELP)]
pub struct EvalArgs {
    #[command(flatten)]
    pub checkpoint: CheckpointArgs,
    #[command(flatten)]
    pub device: TimedDeviceArgs,
    /// The form of the data
    #[arg(long)]
    pub format: Format,
    /// The benchmark's file or folder
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// For vqa and textvqa: JSON file with the annotators' answers
    #[arg(long, value_name = "FILE")]
    pub annotations: Option<PathBuf>,
    /// Folder of the images [default: where the data are; for easy-vqa their folder images]
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// JSON lines to append every answer to. A run that was stopped goes on behind the answers in it
    #[arg(long, value_name = "FILE", required_unless_present = "answers")]
    pub out: Option<PathBuf>,
    /// Ask nothing: mark the answers in this file (JSON lines with "id" or "question_id", and "text" or "answer")
    #[arg(long, value_name = "FILE", conflicts_with_all = ["out", "checkpoint"])]
    pub answers: Option<PathBuf>,
    /// Ask only the first N questions
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Ask N questions that this seed draws from all, instead of the first
    #[arg(long, requires = "limit")]
    pub seed: Option<u64>,
    /// Questions to answer at the same time (fewer where memory is short). Those about one image share what is common to them
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub batch: u32,
    /// Line to put behind every question instead of the benchmark's own; empty for none
    #[arg(long, value_name = "TEXT")]
    pub instruction: Option<String>,
    /// How weights are stored: f32, f16, q8, q4 [default: f16; what is in a GGUF file or a bundle as it is there]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Conversation template: vicuna_v1, gemma, mistral_instruct, chatml_direct, llama_3 [default: the checkpoint's]
    #[arg(long, value_name = "NAME")]
    pub conversation: Option<Template>,
    /// The most tokens to generate for an answer [default: the benchmark's, 128 or 1024]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_new_tokens: Option<u32>,
    /// Look at images in low resolution alone: without the high-resolution tower and patch info mining
    #[arg(long)]
    pub no_high_resolution: bool,
    /// Print one JSON object and nothing else on standard output
    #[arg(long)]
    pub json: bool,
}

const EVAL_HELP: &str = "\
Answers are the likeliest tokens (no sampling). Prompts and marks are those of the benchmarks' own evaluations, as Mini-Gemini's
scripts use them:
  easy-vqa   the word itself, but for case and a period at its end
  jsonl      one of the answers, both sides normalised as for textvqa; the question is put as it is
  vqa        min(1, annotators who agree / 3), averaged over leaving out each; VQAEval's normalisation
  textvqa    the same with EvalAI's normalisation; prompts of LLaVA's file hold words that an OCR system read
  pope       no if the first sentence has \"No\", \"no\" or \"not\", else yes; precision, recall, F1, yes ratio
  mmbench    the letter named, else wrong (the official marks are a server's); one round, not circular
  mmmu       the letter named, or drawn (seed 42) if none is; for open questions the conclusion, numbers to two decimals
Confidence intervals are Wilson's. Ctrl-C stops; the same command with the same --out goes on.";

/// Pictures in answers.
#[derive(Debug, Args)]
pub struct DrawingArgs {
    /// Stable Diffusion XL model (folder or single file) that paints what an answer describes between <h> and </h>
    /// [default: the one that came with this program, where the model that answers did too]
    #[arg(long, value_name = "MODEL")]
    pub generate: Option<PathBuf>,
    /// Ask for a picture with every --prompt [default: with those that contain the word "generate"]
    #[arg(long = "gen")]
    pub always: bool,
    /// PNG file for the picture; further ones are numbered [default: picture.png]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// How the painting model's weights are stored: f32, f16, q8 [default: as in the file]
    #[arg(long, value_name = "PRECISION", requires = "generate")]
    pub generate_precision: Option<Precision>,
    /// For a single file: folder with its tokenizers (see mgm generate)
    #[arg(long, value_name = "DIR", requires = "generate")]
    pub tokenizer: Option<PathBuf>,
    /// LoRA file for the painting model; repeat it for several
    #[arg(long, value_name = "FILE[:SCALE]", value_parser = parse_lora, requires = "generate")]
    pub lora: Vec<LoraFile>,
    #[command(flatten)]
    pub picture: PictureArgs,
}

impl DrawingArgs {
    /// The painting model and the first file, if there is to be one.
    ///
    /// # Errors
    /// [`mgm::Error::InvalidArgument`] if pictures are asked for and nothing can paint them.
    pub fn model(&self) -> mgm::Result<Option<(ModelArgs, PathBuf)>> {
        if self.generate.is_none() {
            if self.always || self.out.is_some() {
                let reason = "there is nothing to paint with: --generate names a Stable Diffusion XL model";
                return Err(mgm::Error::InvalidArgument(reason.to_owned()));
            }
            return Ok(None);
        }
        let arguments = ModelArgs {
            model: self.generate.clone(),
            tokenizer: self.tokenizer.clone(),
            lora: self.lora.clone(),
            precision: self.generate_precision,
        };
        Ok(Some((arguments, self.out.clone().unwrap_or_else(|| "picture.png".into()))))
    }
}

/// Which model paints, and how it is kept.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Folder of a Stable Diffusion XL model in diffusers' layout or of a bundle, or a single .safetensors file of one
    /// [default: pocket-sdxl, where it came with this program]
    #[arg(value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// For a single file: folder with CLIP's vocab.json and merges.txt, or one in diffusers' layout, whose tokenizers,
    /// configurations and scheduler are taken [default: what lies beside the file]
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// LoRA file to merge into the weights, and how much it counts; repeat it for several
    #[arg(long, value_name = "FILE[:SCALE]", value_parser = parse_lora)]
    pub lora: Vec<LoraFile>,
    /// How weights are stored: f32, f16, q8 [default: as in the file]
    #[arg(long)]
    pub precision: Option<Precision>,
}

impl ModelArgs {
    /// Takes the model that came with the program, if there is one and none is named.
    pub fn or_shipped(&mut self) {
        self.model = self.model.take().or_else(|| shipped::find(shipped::PAINTS));
    }
}

/// A LoRA file and how much it counts.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraFile {
    pub path: PathBuf,
    pub scale: f32,
}

/// What pictures are to be like.
#[derive(Debug, Clone, Args)]
pub struct PictureArgs {
    /// Steps of the scheduler
    #[arg(long, default_value_t = 50, value_parser = parse_steps, allow_hyphen_values = true)]
    pub steps: usize,
    /// How closely to follow the prompt; 1 leaves the negative prompt out and takes half the time
    #[arg(long, default_value_t = 5.0, value_parser = parse_guidance, allow_hyphen_values = true)]
    pub guidance: f32,
    /// Pixels across and down, multiples of 8 [default: what the model was trained on, 1024x1024]
    #[arg(long, value_name = "WxH", value_parser = parse_picture_size)]
    pub size: Option<(usize, usize)>,
    /// Scheduler: euler, euler-a, ddim, dpm++-2m, dpm++-2m-sde, lcm, turbo, and behind it -karras, -exponential, -leading,
    /// -trailing or -linspace [default: the model's]
    #[arg(long, value_name = "NAME", value_parser = parse_scheduler)]
    pub scheduler: Option<(String, Override)>,
    /// Type that noise is drawn in, which decides what a seed gives: f32, f16 [default: f32 at precision f32, else f16, as diffusers]
    #[arg(long, value_parser = ["f32", "f16"])]
    pub noise: Option<String>,
    /// Show no previews, even in a terminal that can
    #[arg(long)]
    pub no_preview: bool,
}

#[derive(Debug, Args)]
pub struct TuneArgs {
    #[command(flatten)]
    pub checkpoint: CheckpointArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// How weights are stored: f32, f16, q8, q4 [default: f16; what is in a GGUF file as it is there]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Also try kernels that round activations to 8 bits, as llama.cpp does: less exact (there are none for software adapters)
    #[arg(long)]
    pub int8: bool,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// What is to be seen
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// What is not to be seen
    #[arg(long, value_name = "TEXT")]
    pub negative: Option<String>,
    #[command(flatten)]
    pub picture: PictureArgs,
    /// Seed of the noise; the pictures of a batch count on from it [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// How many pictures
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_batch, allow_hyphen_values = true)]
    pub batch: usize,
    /// Picture to begin with instead of noise
    #[arg(long, value_name = "FILE")]
    pub init_image: Option<PathBuf>,
    /// How much of it to paint over, above 0 up to 1 [default: 0.6]
    #[arg(long, requires = "init_image", value_parser = parse_strength, allow_hyphen_values = true)]
    pub strength: Option<f32>,
    /// Noise to begin with instead of a seed's: a safetensors file whose only tensor, or the one called latents, is of unit variance
    /// and [1, 4, H / 8, W / 8]
    #[arg(long, value_name = "FILE", conflicts_with = "init_image")]
    pub latents: Option<PathBuf>,
    /// Print one JSON object and nothing else on standard output
    #[arg(long)]
    pub json: bool,
    /// PNG file to write; a batch's are numbered
    #[arg(long, value_name = "FILE", default_value = "picture.png")]
    pub out: PathBuf,
    #[command(flatten)]
    pub device: TimedDeviceArgs,
}

#[derive(Debug, Args)]
pub struct PackArgs {
    #[command(flatten)]
    pub checkpoint: CheckpointArgs,
    /// Folder to write the bundle to
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How the language model's weights are stored: f32, f16, q8, q4 [default: q4; a GGUF file's stay as they are]; a painting
    /// model's: f32, f16, q8 [default: f16]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// The most bytes of a shard, such as 16M [default: 64M, which is also the most]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub shard_size: Option<u64>,
    /// The model's name in the bundle [default: the name of the checkpoint's folder or file]
    #[arg(long)]
    pub name: Option<String>,
    /// Conversation template: vicuna_v1, gemma, mistral_instruct, chatml_direct, llama_3 [default: the checkpoint's]
    #[arg(long, value_name = "NAME")]
    pub conversation: Option<Template>,
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// The repository, such as YanweiLi/MGM-2B (HF_TOKEN opens private and gated ones)
    #[arg(value_name = "OWNER/NAME")]
    pub repo: String,
    /// Only these files, such as a GGUF file; repeat it for several [default: all that a checkpoint or bundle needs]
    #[arg(long, value_name = "NAME")]
    pub file: Vec<String>,
    /// Branch, tag or commit
    #[arg(long, value_name = "REVISION", default_value = "main")]
    pub revision: String,
    /// Folder for the model's folder and the towers'
    #[arg(long, value_name = "DIR", default_value = "models")]
    pub out: PathBuf,
    /// Leave away the towers that the model names
    #[arg(long)]
    pub no_towers: bool,
    /// Files downloaded at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub connections: u16,
    /// Seconds to wait for a connection, an answer, or 16 MiB of a file, before trying again
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The released model whose shapes to fill with random weights, such as mgm-2b, mgm-7b-hd or sdxl
    #[arg(long, value_name = "MODEL", required_unless_present_any = ["gguf", "roofline"])]
    pub synthetic: Option<String>,
    /// A GGUF file of a language model to measure instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["synthetic", "dry_run"])]
    pub gguf: Option<PathBuf>,
    /// Measure the kernels instead, beside what the adapter can do at best
    #[arg(long, conflicts_with_all = ["synthetic", "gguf", "dry_run", "profile"])]
    pub roofline: bool,
    /// How weights are stored: f32, f16, q8, q4 [default: q4, for sdxl f16; what is in a GGUF file as it is there]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Pixels of sdxl's picture [default: 1024x1024]
    #[arg(long, value_name = "WxH", value_parser = parse_picture_size)]
    pub size: Option<(usize, usize)>,
    /// Positions to prefill (visual tokens included) [default: 640, 128 with a GGUF file]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub prefill: Option<u32>,
    /// Tokens to generate
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub decode: u32,
    /// Timed runs of a GGUF file, of which the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// With --roofline: only kernels with this in their names
    #[arg(long, value_name = "TEXT", requires = "roofline")]
    pub only: Option<String>,
    /// Have the language model's products, or with --roofline all, computed by the kernels that are the fastest here, as after `mgm tune`
    #[arg(long, conflicts_with = "dry_run")]
    pub tune: bool,
    /// Only say what would be allocated
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub device: TimedDeviceArgs,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let shift = match unit.to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err(format!("unknown unit {unit:?}; sizes look like 512M or 8G")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a size; sizes look like 512M or 8G"))?;
    let bytes = number * f64::from(1u32 << shift);
    if bytes.is_finite() && bytes >= 1.0 { Ok(bytes as u64) } else { Err("a size is at least one byte".to_owned()) }
}

fn parse_lora(text: &str) -> Result<LoraFile, String> {
    // The last colon, where a number follows it: paths may have colons too.
    let split = text.rsplit_once(':').and_then(|(path, scale)| Some((path, scale.parse::<f32>().ok()?)));
    let (path, scale) = split.unwrap_or((text, 1.0));
    if path.is_empty() || !scale.is_finite() {
        return Err("a LoRA is a file, and behind a colon how much it counts, such as style.safetensors:0.8".to_owned());
    }
    Ok(LoraFile { path: PathBuf::from(path), scale })
}

fn parse_steps(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(steps) if (1..=1000).contains(&steps) => Ok(steps),
        _ => Err("steps are a number from 1 to 1000".to_owned()),
    }
}

fn parse_batch(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=1000).contains(&count) => Ok(count),
        _ => Err("a batch is a number from 1 to 1000".to_owned()),
    }
}

fn parse_guidance(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(value) if (0.0..=1000.0).contains(&value) => Ok(value),
        _ => Err("guidance is a number from 0 to 1000".to_owned()),
    }
}

fn parse_strength(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("strength is a number above 0, up to 1".to_owned()),
    }
}

fn parse_picture_size(text: &str) -> Result<(usize, usize), String> {
    let wrong = || format!("{text:?} is not a size; sizes look like 1024x768");
    let (width, height) = text.split_once(['x', 'X', '×']).ok_or_else(wrong)?;
    let side = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
    let (width, height) = (side(width)?, side(height)?);
    match [width, height].into_iter().find(|side| *side == 0 || side % 8 != 0 || *side > MAX_SIDE) {
        Some(side) => Err(format!("a side of {side} pixels, expected a multiple of 8, up to {MAX_SIDE}")),
        None => Ok((width, height)),
    }
}

fn parse_scheduler(text: &str) -> Result<(String, Override), String> {
    text.parse().map(|choice| (text.to_owned(), choice)).map_err(|error: mgm::Error| error.to_string())
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(value) if (0.0..=100.0).contains(&value) => Ok(value),
        _ => Err("a temperature is a number from 0 to 100".to_owned()),
    }
}

fn parse_probability(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("a probability is a number above 0, up to 1".to_owned()),
    }
}
