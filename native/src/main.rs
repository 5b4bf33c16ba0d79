//! The binary `mgm`.

/// Writes a line to standard error. Ignores errors: standard error may be closed.
macro_rules! note {
    ($($what:tt)*) => {{
        let _ = ::std::io::Write::write_fmt(&mut ::std::io::stderr(), format_args!("{}\n", format_args!($($what)*)));
    }};
}

mod args;
mod bench;
mod bundled_models;
mod chat;
mod constraint;
mod device_cache;
mod doctor;
mod error;
mod eval;
mod files;
mod generate;
mod image_model;
mod images;
mod info;
mod inspect;
mod interrupt;
mod load;
mod lock;
mod output;
mod pack;
mod progress;
mod pull;
mod recovery;
mod sdxl;
mod seed;
mod serve;
mod terminal_image;
mod tools;
mod tune;
mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use error::CliError;

/// Run Mini-Gemini vision-language models and Stable Diffusion XL on any GPU
#[derive(Debug, Parser)]
#[command(name = "mgm", version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Chat with a model about images: interactive, or one answer per --prompt
    Chat(Box<chat::ChatArgs>),
    /// Ask a model the questions of a benchmark and score its answers
    Eval(eval::EvalArgs),
    /// Generate images from text with Stable Diffusion XL
    Generate(generate::GenerateArgs),
    /// List the GPU adapters and their capabilities
    Info,
    /// Check every kernel on the GPU against a CPU reference
    Doctor(args::DeviceArgs),
    /// Show a checkpoint's parts, sizes, memory needs, and missing or unexpected tensors
    Inspect(inspect::InspectArgs),
    /// Pack a model into a bundle: one folder for native programs and browsers
    Pack(pack::PackArgs),
    /// Download a model from the Hugging Face Hub, or from the mirror in HF_ENDPOINT: a checkpoint with its vision
    /// towers, a bundle, a GGUF file, or Stable Diffusion XL
    Pull(pull::PullArgs),
    /// Measure the speed of a model or of single kernels
    Bench(bench::BenchArgs),
    /// Serve a model with OpenAI's HTTP API, to many clients at once
    Serve(serve::ServeArgs),
    /// Find the fastest kernels for a model on this device and cache the result
    Tune(tune::TuneArgs),
}

/// Exit code of every failure but Ctrl-C: wrong arguments, bad files, no device, not enough memory.
const FAILED: u8 = 2;
/// Exit code of `mgm serve --exit-on-loss` after a lost device.
const LOST: u8 = 3;

fn main() -> ExitCode {
    interrupt::ignore_file_size_signal();
    let options = match Options::try_parse_from(with_hyphens(std::env::args_os())) {
        Ok(options) => options,
        Err(error) => {
            // Help and version go to standard output with exit code 0, errors to standard error.
            let code = if error.use_stderr() { FAILED } else { 0 };
            return if error.print().is_err() { ExitCode::from(FAILED) } else { ExitCode::from(code) };
        }
    };
    let result = pollster::block_on(run(options.command)).and_then(|()| Ok(std::io::stdout().flush()?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output closed it, as in `mgm info | head -1`.
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            note!("mgm: error: {error}");
            ExitCode::from(match error {
                CliError::Loss(_) => LOST,
                error if error.is_stop() => interrupt::INTERRUPTED,
                _ => FAILED,
            })
        }
    }
}

/// Replaces underscores in the names of long options: diffusers and OpenAI write `num_inference_steps`, `max_tokens`.
/// Values stay as they are, and so do all arguments after `--`.
fn with_hyphens(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut only_values = false;
    arguments.map(move |argument| {
        only_values |= argument == "--";
        match argument.to_str() {
            Some(text) if !only_values && text.starts_with("--") => {
                let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
                format!("{}{value}", name.replace('_', "-")).into()
            }
            _ => argument,
        }
    })
}

async fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Chat(arguments) => chat::run(*arguments).await,
        Command::Eval(arguments) => eval::run(arguments).await,
        Command::Generate(arguments) => generate::run(arguments).await,
        Command::Info => info::run().await,
        Command::Doctor(arguments) => doctor::run(arguments).await,
        Command::Inspect(arguments) => inspect::run(arguments).await,
        Command::Pack(arguments) => pack::run(arguments).await,
        Command::Pull(arguments) => pull::run(arguments).await,
        Command::Bench(arguments) => bench::run(arguments).await,
        Command::Serve(arguments) => serve::run(arguments),
        Command::Tune(arguments) => tune::run(arguments).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn underscores_in_option_names_become_hyphens() {
        let given = ["mgm", "a_b", "--max_new_tokens", "3", "--out=a_b=c_d", "--no_preview", "-x_y", "--", "--a_b"];
        let expected = ["mgm", "a_b", "--max-new-tokens", "3", "--out=a_b=c_d", "--no-preview", "-x_y", "--", "--a_b"];
        let found: Vec<OsString> = with_hyphens(given.into_iter().map(OsString::from)).collect();
        assert_eq!(found, expected);
    }
}
