//! The binary `mgm`.

/// Writes a line to standard error. Where that is closed or full, there is nobody to tell.
macro_rules! note {
    ($($what:tt)*) => {{
        let _ = ::std::io::Write::write_fmt(&mut ::std::io::stderr(), format_args!("{}\n", format_args!($($what)*)));
    }};
}

mod args;
mod bench;
mod bench_gguf;
mod bench_roofline;
mod bench_sdxl;
mod chat;
mod doctor;
mod eval;
mod generate;
mod info;
mod inspect;
mod kept;
mod load;
mod pack;
mod picture;
mod progress;
mod pull;
mod shipped;
mod tune;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use args::{Command, Options};

/// What a command can fail with: an error of the core, or of the terminal and files around it.
#[derive(Debug)]
enum Failure {
    Core(mgm::Error),
    Output(std::io::Error),
}

impl From<mgm::Error> for Failure {
    fn from(error: mgm::Error) -> Self {
        Self::Core(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Core(error) => error.fmt(f),
            Self::Output(error) => write!(f, "writing the output: {error}"),
        }
    }
}

/// Exit code of every failure: bad arguments, bad files, no device, no room.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            // clap knows which of its messages are help (standard output, 0) and which are errors.
            let code = if error.use_stderr() { FAILED } else { 0 };
            return if error.print().is_err() { ExitCode::from(FAILED) } else { ExitCode::from(code) };
        }
    };
    let result = pollster::block_on(run(options)).and_then(|()| Ok(std::io::stdout().flush()?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough (`mgm info | head -1`).
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            note!("mgm: error: {failure}");
            ExitCode::from(FAILED)
        }
    }
}

async fn run(options: Options) -> Result<(), Failure> {
    match options.command {
        Command::Chat(mut arguments) => {
            arguments.or_shipped();
            chat::run(arguments).await
        }
        Command::Eval(mut arguments) => {
            arguments.checkpoint.or_shipped();
            eval::run(arguments).await
        }
        Command::Generate(mut arguments) => {
            arguments.model.or_shipped();
            generate::run(arguments).await
        }
        Command::Info => info::run().await,
        Command::Doctor(arguments) => doctor::run(arguments).await,
        Command::Inspect(mut arguments) => {
            arguments.or_shipped();
            inspect::run(arguments).await
        }
        Command::Pack(mut arguments) => {
            arguments.checkpoint.or_shipped();
            pack::run(arguments).await
        }
        Command::Pull(arguments) => pull::run(arguments),
        Command::Bench(arguments) => bench::run(arguments).await,
        Command::Tune(mut arguments) => {
            arguments.checkpoint.or_shipped();
            tune::run(arguments).await
        }
    }
}
