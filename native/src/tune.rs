//! `mgm tune`: measures the kernels for a model's matmuls and caches the fastest.

use std::io::Write;
use std::ops::ControlFlow;

use clap::Args;
use mgm::ops::{self, MatmulShape};
use mgm::session::Model;
use mgm::tensor::Precision;
use mgm::tuning::{TuneOptions, tune};

use crate::args::{CheckpointArgs, DeviceArgs};
use crate::interrupt::{self, continue_unless};
use crate::load::{load_options, open_checkpoint};
use crate::{CliError, device_cache};

#[derive(Debug, Args)]
pub struct TuneArgs {
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Weight precision: f32, f16, q8, q4 [default: f16; the file's own for GGUF and bundles]
    #[arg(long)]
    precision: Option<Precision>,
    /// Also try kernels that round activations to 8 bits, as llama.cpp does: less accurate (none exist for software
    /// adapters)
    #[arg(long, conflicts_with = "no_int8")]
    int8: bool,
}

pub async fn run(arguments: TuneArgs) -> Result<(), CliError> {
    let files = open_checkpoint(&arguments.checkpoint).await?;
    let gpu = device_cache::open(&arguments.device.options()).await?;
    // A minute of measurements must not be lost.
    device_cache::check_tuning_file(&gpu)?;
    let stop = interrupt::install()?;
    let options = load_options(&arguments.checkpoint, &files, arguments.precision);
    let products = Model::products(&gpu, &files, &options).await?.into_keys();
    let mut out = std::io::stdout().lock();
    let mut output = writeln!(out, "{}", gpu.adapter().name);
    let mut cached = Ok(());
    let mut shape = None;
    let done = tune(&gpu, products, TuneOptions::default().with_int8(arguments.int8), |timing| {
        if shape.replace(timing.shape).is_some_and(|before| before != timing.shape) {
            // The shapes before this one are complete: whatever ends the program, they are not measured in vain.
            cached = device_cache::write_tuning(&gpu, &ops::tuning(&gpu)).map(drop);
        }
        let MatmulShape { precision, m, n, k } = timing.shape;
        let matmul = format!("{precision} {m} x {n} x {k}");
        let time = match timing.microseconds {
            Some(time) => format!("{time:.0} us"),
            None if timing.correct => "too slow".to_owned(),
            None => "wrong result".to_owned(),
        };
        if output.is_ok() {
            output = writeln!(out, "{matmul:<28} {time:>12}  {}", timing.kernel.name());
        }
        if output.is_ok() && cached.is_ok() { continue_unless(&stop) } else { ControlFlow::Break(()) }
    })
    .await;
    // Results from before an early end are cached too.
    let tuning = ops::tuning(&gpu);
    let path = device_cache::write_tuning(&gpu, &tuning);
    output?;
    cached?;
    let path = path?;
    let stopped = match done {
        Err(mgm::Error::Cancelled) => "stopped; ",
        done => done.map(|_| "")?,
    };
    writeln!(out, "{stopped}measured {} matmul shapes; cached in {}", tuning.len(), path.display())?;
    if stopped.is_empty() { Ok(()) } else { Err(mgm::Error::Cancelled.into()) }
}
