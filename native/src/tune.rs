//! `mgm tune`: which kernels are the fastest for a model on this device.

use std::io::Write;
use std::ops::ControlFlow;

use mgm::ops::{self, MatmulShape};
use mgm::session::Model;
use mgm::tuning::{TuneOptions, tune};

use crate::args::TuneArgs;
use crate::{Failure, kept};

pub async fn run(arguments: TuneArgs) -> Result<(), Failure> {
    let files = arguments.checkpoint.open().await?;
    let gpu = kept::open(&arguments.device.options()).await?;
    let options = arguments.checkpoint.load_options(&files, arguments.precision);
    let model = Model::open(&gpu, &files, &options).await?;
    let products = ops::products(&model.dry_run()?);
    drop(model);
    gpu.trim();
    let mut out = std::io::stdout().lock();
    let mut output = writeln!(out, "{}", gpu.adapter().name);
    let done = tune(&gpu, products, TuneOptions::default().with_int8(arguments.int8), |timing| {
        let MatmulShape { precision, m, n, k } = timing.shape;
        let product = format!("{precision} {m} x {n} x {k}");
        let time = match timing.microseconds {
            Some(time) => format!("{time:.0} us"),
            None if timing.correct => "too slow".to_owned(),
            None => "wrong here".to_owned(),
        };
        if output.is_ok() {
            output = writeln!(out, "{product:<28} {time:>12}  {}", timing.kernel.name());
        }
        if output.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
    .await;
    // Also what was measured before it ended early.
    let tuning = ops::tuning(&gpu);
    let path = kept::write_tuning(&gpu, &tuning);
    output?;
    done?;
    let path = path?;
    writeln!(out, "{} products are measured; kept in {}", tuning.len(), path.display())?;
    Ok(())
}
