//! `mgm bench`: measures a released model's shapes with random weights (`--synthetic`), a GGUF file (`--gguf`), several
//! sequences at once (`--engine`), or single kernels (`--roofline`), or predicts the times on another GPU
//! (`--predict`).

mod engine;
mod gguf;
mod llm;
mod predict;
mod report;
mod roofline;
mod sdxl;
mod synthetic;

use std::path::PathBuf;

use clap::Args;
use mgm::tensor::Precision;

use crate::CliError;
use crate::args::{ProfiledDeviceArgs, parse_image_size};

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Released model whose shapes to fill with random weights, such as mgm-2b, mgm-7b-hd or sdxl
    #[arg(long, value_name = "MODEL", required_unless_present_any = ["gguf", "engine", "roofline", "predict"])]
    synthetic: Option<String>,
    /// GGUF file of a language model to measure instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["synthetic", "dry_run"])]
    gguf: Option<PathBuf>,
    /// Measure several sequences at once, relative to one, with the file of --gguf or with Pocket: tokens per second,
    /// the time to the first token of a second question, cancellation, answers of mixed lengths, prompt-lookup drafts
    #[arg(long, conflicts_with_all = ["synthetic", "roofline", "predict", "dry_run", "profile"])]
    engine: bool,
    /// Measure single kernels instead, relative to the adapter's peak bandwidth and arithmetic throughput
    #[arg(long, conflicts_with_all = ["synthetic", "gguf", "dry_run", "profile"])]
    roofline: bool,
    /// Predict the times on another GPU from its published figures and its compiler's instruction counts. DEVICE is a
    /// device or `all`; omit it to list the devices
    #[arg(long, value_name = "DEVICE", num_args = 0..=1, default_missing_value = predict::LIST)]
    #[arg(conflicts_with_all = ["gguf", "roofline", "dry_run", "tune"])]
    predict: Option<String>,
    /// Weight precision: f32, f16, q8, q4, or one that holds GGUF's blocks: q6, q5k, q5, q5_0, q4k, q4_0 [default: q4;
    /// f16 for sdxl; the file's own for GGUF]
    #[arg(long, value_parser = parse_precision)]
    precision: Option<Precision>,
    /// Image size for sdxl, in pixels [default: 1024x1024]
    #[arg(long, value_name = "WxH", value_parser = parse_image_size)]
    size: Option<(usize, usize)>,
    /// Prompt length in tokens, visual tokens included [default: 640; 128 for a GGUF file]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    prefill: Option<u32>,
    /// Number of tokens to generate
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    decode: u32,
    /// Timed runs of a GGUF file; the median is reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// With --roofline: measure only kernels whose name contains TEXT
    #[arg(long, value_name = "TEXT", requires = "roofline")]
    only: Option<String>,
    /// Tune the matmuls of the language model (all kernels with --roofline) before measuring, as `mgm tune` does
    #[arg(long, conflicts_with = "dry_run")]
    tune: bool,
    /// Only print the memory that would be allocated
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: ProfiledDeviceArgs,
}

/// Any precision, also those that only GGUF files have.
fn parse_precision(text: &str) -> Result<Precision, String> {
    let found = Precision::ALL.into_iter().find(|precision| precision.to_string() == text);
    found.ok_or_else(|| format!("expected {}", Precision::ALL.map(|precision| precision.to_string()).join(", ")))
}

pub async fn run(arguments: BenchArgs) -> Result<(), CliError> {
    if let Some(device) = &arguments.predict {
        return predict::run(device, &arguments).await;
    }
    if arguments.roofline {
        return roofline::run(&arguments).await;
    }
    if arguments.engine {
        return engine::run(&arguments).await;
    }
    if let Some(path) = &arguments.gguf {
        return gguf::run(path, &arguments).await;
    }
    match arguments.synthetic.as_deref().unwrap_or_default() {
        sdxl::NAME => sdxl::run(&arguments).await,
        name => synthetic::run(name, &arguments).await,
    }
}
