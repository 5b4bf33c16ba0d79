//! Options of `mgm serve`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use mgm::Error;
use mgm::ops::Sampling;
use mgm::tensor::Precision;
use mgm::text::conversation::Template;

use crate::args::{CheckpointArgs, DeviceArgs, parse_number, parse_size};
use crate::bundled_models;
use crate::sdxl::{ImageModelArgs, SdxlArgs};

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub checkpoint: CheckpointArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Don't measure kernels before a model's first load on this GPU, which takes up to 2 seconds
    #[arg(long)]
    pub no_tune: bool,
    /// Weight precision: f32, f16, q8, q4 [default: f16; the file's own for GGUF and bundles]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Conversation template: vicuna_v1, gemma, mistral_instruct, chatml_direct, llama_3 [default: the checkpoint's]
    #[arg(long, value_name = "NAME")]
    pub conversation: Option<Template>,
    /// GELU variant for Gemma: tanh or erf [default: the checkpoint's]
    #[arg(long, value_parser = ["tanh", "erf"])]
    pub gelu: Option<String>,
    #[command(flatten)]
    pub image_model: ImageModelArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub settings: Settings,
}

impl ServeArgs {
    /// The image model: the one that is named, or the bundled one if the bundled language model is served.
    pub fn image_model(&self) -> Option<SdxlArgs> {
        let mut model = self.image_model.clone();
        if self.checkpoint.checkpoint.is_none() {
            model.image_model = model.image_model.or_else(|| bundled_models::find(bundled_models::POCKET_SDXL));
        }
        model.sdxl()
    }
}

/// How the device is divided.
#[derive(Debug, Clone, Args)]
pub struct EngineArgs {
    /// Sequences that decode together, 1 to 16 [default: 8; 4 on software adapters]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub parallel: Option<u32>,
    /// Positions of a sequence: prompt and answer [default: the model's, at most 8192]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub ctx: Option<u32>,
    /// Memory for keys and values of all sequences and of the prefix cache, such as 2G [default: --parallel times --ctx
    /// positions, of which at most 2048 count]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub kv: Option<u64>,
    /// Memory for encoded images, which later questions about them use, such as 2G
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    pub image_cache: u64,
    /// Time of a slice of a prompt or an image in milliseconds, for which running answers wait [default: 100; 1000 on
    /// software adapters]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub slice: Option<u32>,
    /// Tokens of a prompt-lookup draft at most, 0 to 15; 0 for none. Answers that repeat their prompt are faster,
    /// others have no drafts [default: 7]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=15))]
    pub prompt_lookup: Option<u32>,
    /// Compute the same tokens for a request alone and in any batch. It is slower
    #[arg(long)]
    pub deterministic: bool,
}

/// What concerns requests.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// Address to listen on. Other than loopback addresses need a key
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes a free one. The address is the first line on standard output
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Key that requests must send; repeat for several. Also in MGM_API_KEY
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    pub api_key: Vec<String>,
    /// File with a key on each line
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Listen on other than loopback addresses without a key
    #[arg(long)]
    pub insecure: bool,
    /// Origin of pages that may use the server (scheme, host and port), or * for all; repeat for several
    #[arg(long, value_name = "ORIGIN")]
    pub cors: Vec<String>,
    /// Host name that requests may have on a loopback address, besides localhost; repeat for several
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
    /// Further name of the model in requests, or * for any; repeat for several
    #[arg(long, value_name = "NAME")]
    pub alias: Vec<String>,
    /// Requests that wait at most; more are refused with status 429
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub queue: u32,
    /// Seconds from a request's arrival to the end of its answer
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub timeout: u64,
    /// Let users share cached prompts. Response times then reveal what others asked
    #[arg(long)]
    pub share_cache: bool,
    /// Maximum size of a request's body, such as 32M
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = parse_body_size)]
    pub max_body: u64,
    /// Maximum number of images in a request
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub max_images: u32,
    /// Maximum number of pixels in an image, such as 40M for 40 million
    #[arg(long, value_name = "N", default_value = "40M", value_parser = parse_pixels)]
    pub max_pixels: u64,
    /// Maximum number of tokens in an answer, and the default
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_new_tokens: u32,
    /// Sampling temperature of requests without one; 0 is greedy
    #[arg(long, value_name = "X", default_value_t = Sampling::REFERENCE.temperature, value_parser = parse_temperature)]
    pub temperature: f32,
    /// top_k of requests without one; 0 for all tokens
    #[arg(long, value_name = "N", default_value_t = Sampling::REFERENCE.top_k)]
    pub top_k: u32,
    /// top_p of requests without one [default: the model's, else 1]
    #[arg(long, value_name = "X", value_parser = parse_probability)]
    pub top_p: Option<f32>,
    /// End with exit code 3 if the GPU device fails for good, rather than answer with errors
    #[arg(long)]
    pub exit_on_loss: bool,
    /// After a signal to end: seconds for answers to finish
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub drain_timeout: u64,
    /// After a signal to end: seconds during which new requests are still taken, until load balancers know
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub drain_delay: u64,
}

/// The bodies under way together take 256 MiB at most.
pub const MAX_BODIES: u64 = 256 << 20;

fn parse_body_size(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    if size <= MAX_BODIES { Ok(size) } else { Err("a body has at most 256M".to_owned()) }
}

/// Parses a number of pixels: `40M` is 40 million.
fn parse_pixels(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 1e3),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1e6),
        _ => (text, 1.0),
    };
    let pixels = number.parse::<f64>().ok().map(|number| number * unit);
    let pixels = pixels.filter(|pixels| pixels.is_finite() && *pixels >= 1.0);
    pixels.map(|pixels| pixels as u64).ok_or_else(|| "expected a number of pixels such as 40M".to_owned())
}

fn parse_key(text: &str) -> Result<String, String> {
    let is_valid = !text.is_empty() && text.bytes().all(|c| c.is_ascii_graphic());
    if is_valid {
        Ok(text.to_owned())
    } else {
        Err("expected a key of printable ASCII characters without spaces".to_owned())
    }
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    parse_number(text, |value| (0.0..=2.0).contains(value), "a temperature from 0 to 2")
}

fn parse_probability(text: &str) -> Result<f32, String> {
    parse_number(text, |value| *value > 0.0 && *value <= 1.0, "a probability above 0, up to 1")
}

impl Settings {
    /// All keys: of the options, of the file and of the environment.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::InvalidArgument`] for a line or a variable that is no key.
    pub fn keys(&self) -> mgm::Result<Vec<String>> {
        let mut keys = self.api_key.clone();
        if let Some(file) = &self.api_key_file {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(file).map_err(|error| Error::Io {
                file: name.clone(),
                kind: error.kind(),
                reason: error.to_string(),
            })?;
            for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                let key = parse_key(line.trim());
                keys.push(
                    key.map_err(|reason| Error::InvalidArgument(format!("{name}, line {}: {reason}", index + 1)))?,
                );
            }
        }
        if let Some(key) = std::env::var_os("MGM_API_KEY").filter(|key| !key.is_empty()) {
            let key = parse_key(&key.to_string_lossy());
            keys.push(key.map_err(|reason| Error::InvalidArgument(format!("MGM_API_KEY: {reason}")))?);
        }
        Ok(keys)
    }

    /// The addresses of `--host`, and whether all of them are loopback addresses.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the name has none, or if one is no loopback address and there is no key.
    pub fn addresses(&self, has_keys: bool) -> mgm::Result<(Vec<SocketAddr>, bool)> {
        let Self { host, port, .. } = self;
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let found = (name, *port).to_socket_addrs();
        let addresses: Vec<SocketAddr> =
            found.map_err(|error| Error::InvalidArgument(format!("--host {host}: {error}")))?.collect();
        let is_loopback = addresses.iter().all(|address| address.ip().is_loopback());
        if !is_loopback && !has_keys && !self.insecure {
            return Err(Error::InvalidArgument(format!(
                "--host {host} is not a loopback address: others could use this server. Set a key with --api-key, \
                 --api-key-file or MGM_API_KEY, or pass --insecure"
            )));
        }
        Ok((addresses, is_loopback))
    }

    /// The time from arrival to the end of an answer.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}
