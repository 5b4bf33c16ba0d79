//! `mgm tune`: which kernels are the fastest for a model on this device.

use std::io::Write;

use mgm::ops::{TuneOptions, tune};
use mgm::session::Model;

use crate::args::TuneArgs;
use crate::{Failure, kept};

pub async fn run(arguments: TuneArgs) -> Result<(), Failure> {
    let files = arguments.checkpoint.open().await?;
    let gpu = kept::open(&arguments.device.options()).await?;
    let options = arguments.checkpoint.load_options(&files, arguments.precision);
    let model = Model::open(&gpu, &files, &options).await?;
    let products = model.list()?.products;
    drop(model);
    gpu.trim();
    let mut out = std::io::stdout().lock();
    let mut output = writeln!(out, "{}", gpu.adapter().name);
    let done = tune(&gpu, products, TuneOptions { int8: arguments.int8 }, |timing| {
        let (shape, form) = (timing.shape, &timing.form);
        let product = format!("{} {} x {} x {}", shape.precision, shape.m, shape.n, shape.k);
        let time = match timing.microseconds {
            Some(time) => format!("{time:.0} us"),
            None if timing.right => "too slow".to_owned(),
            None => "wrong here".to_owned(),
        };
        if output.is_ok() {
            output = writeln!(out, "{product:<28} {time:>12}  {form}");
        }
        output.is_ok()
    })
    .await;
    // Also what was measured before it ended early.
    let tuning = gpu.tuning();
    let path = kept::write_tuning(&gpu, &tuning);
    output?;
    done?;
    let path = path?;
    writeln!(out, "{} products are measured; kept in {}", tuning.len(), path.display())?;
    Ok(())
}
