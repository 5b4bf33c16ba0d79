//! Arguments that several commands share, and parsers of values.

use std::path::PathBuf;

use clap::Args;
use mgm::diffusion::limits::check_size;
use mgm::gpu::{AdapterChoice, GpuOptions};

/// The device to run on.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// GPU adapter: its number in `mgm info`, or part of its name [default: the best one]
    #[arg(long, value_name = "N|NAME")]
    pub adapter: Option<AdapterChoice>,
    /// Maximum GPU memory to use, such as 512M or 8G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub gpu_memory: Option<u64>,
    /// Never round activations to 8 bits. By default mgm does so for q8, q4 and GGUF weights on GPUs with fast 8-bit
    /// dot products and no matrix units
    #[arg(long)]
    pub no_int8: bool,
}

impl DeviceArgs {
    pub fn options(&self) -> GpuOptions {
        GpuOptions::default()
            .with_adapter(self.adapter.clone().unwrap_or_default())
            .with_memory_limit(self.gpu_memory)
            .with_int8(!self.no_int8)
    }
}

/// The device to run on, and whether to time its kernels.
#[derive(Debug, Args)]
pub struct ProfiledDeviceArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print a table of GPU time per kernel on standard error
    #[arg(long)]
    pub profile: bool,
}

impl ProfiledDeviceArgs {
    pub fn options(&self) -> GpuOptions {
        self.device.options().with_profile(self.profile)
    }
}

/// Where a checkpoint and its vision towers are.
#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// Folder of a Mini-Gemini checkpoint (config.json, weights, tokenizer) or of a bundle, a GGUF file of a language
    /// model, or the name of a model that `mgm pull` downloaded [default: the bundled model, pocket]
    pub checkpoint: Option<PathBuf>,
    /// Folder of the low-resolution tower (CLIP ViT) [default: next to or inside the checkpoint]
    #[arg(long, value_name = "DIR")]
    pub vision_tower: Option<PathBuf>,
    /// Folder of the high-resolution tower (OpenCLIP ConvNeXt) [default: next to or inside the checkpoint]
    #[arg(long, value_name = "DIR")]
    pub vision_tower_hr: Option<PathBuf>,
    /// GGUF file that replaces the checkpoint's language model
    #[arg(long, value_name = "FILE")]
    pub llm: Option<PathBuf>,
}

/// Parses a size in bytes, with units of powers of 1024: `8G` is 8 GiB. The crate `bytesize` reads it as 8e9 bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let shift = match unit.to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err(format!("unknown unit {unit:?}; expected a size such as 512M or 8G")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a size; expected one such as 512M or 8G"))?;
    let bytes = number * f64::from(1u32 << shift);
    if bytes.is_finite() && bytes >= 1.0 { Ok(bytes as u64) } else { Err("a size is at least one byte".to_owned()) }
}

pub fn parse_image_size(text: &str) -> Result<(usize, usize), String> {
    let wrong = || format!("{text:?} is not an image size; expected one such as 1024x768");
    let (width, height) = text.split_once(['x', 'X', '×']).ok_or_else(wrong)?;
    let side = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
    let size = (side(width)?, side(height)?);
    // Models have at least this many pixels per latent; those with more check again.
    check_size(size, 8).map_err(|error| error.to_string())?;
    Ok(size)
}

/// Parses a number that the library checks, with the library's message. `expected` names the kind of number.
pub fn parse_checked<T: std::str::FromStr + Copy>(
    text: &str,
    check: impl Fn(T) -> mgm::Result<()>,
    expected: &str,
) -> Result<T, String> {
    let value = text.parse().map_err(|_| format!("expected {expected}"))?;
    check(value).map_err(|error| error.to_string())?;
    Ok(value)
}

/// A parser for numbers in a range, with an error that names the value and the range.
pub fn parse_number<T: std::str::FromStr>(
    text: &str,
    accepts: impl Fn(&T) -> bool,
    expected: &str,
) -> Result<T, String> {
    text.parse().ok().filter(accepts).ok_or_else(|| format!("expected {expected}"))
}
