//! The command line.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use clap::{Args, Parser, Subcommand};
use mgm::gpu::{AdapterChoice, GpuOptions};
use mgm::tensor::Precision;
use mgm::text::conversation::Template;
use mgm::weights::gguf_model::GgufModel;
use mgm::weights::mgm::TowerOptions;
use mgm::weights::model_files::ModelFiles;
use mgm::weights::source::Folder;
use mgm_native::files::{DiskFile, DiskFolder, io_error};

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
    pub async fn open(&self) -> mgm::Result<ModelFiles> {
        let Some(checkpoint) = &self.checkpoint else {
            return Err(mgm::Error::InvalidArgument(
                "name the folder of a checkpoint, such as MGM-2B: no trained model ships with mgm yet".to_owned(),
            ));
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
    /// The form of Gemma's GELU: tanh or erf [default: as the configuration says]
    #[arg(long, value_parser = ["tanh", "erf"])]
    pub gelu: Option<String>,
    /// Print one JSON object and nothing else on standard output
    #[arg(long, requires = "prompt")]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct PackArgs {
    #[command(flatten)]
    pub checkpoint: CheckpointArgs,
    /// Folder to write the bundle to
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How the language model's weights are stored: f32, f16, q8, q4 [default: q4; a GGUF file's stay as they are]
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
    /// The released model whose shapes to fill with random weights, such as mgm-2b or mgm-7b-hd
    #[arg(long, value_name = "MODEL", required_unless_present_any = ["gguf", "roofline"])]
    pub synthetic: Option<String>,
    /// A GGUF file of a language model to measure instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["synthetic", "dry_run"])]
    pub gguf: Option<PathBuf>,
    /// Measure the kernels instead, beside what the adapter can do at best
    #[arg(long, conflicts_with_all = ["synthetic", "gguf", "dry_run", "profile"])]
    pub roofline: bool,
    /// How weights are stored: f32, f16, q8, q4 [default: q4; what is in a GGUF file as it is there]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Positions to prefill (visual tokens included) [default: 640, 128 with a GGUF file]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub prefill: Option<u32>,
    /// Tokens to generate
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub decode: u32,
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
