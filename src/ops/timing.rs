//! How long what is recorded takes on the device.

use std::time::Duration;

use web_time::Instant;

use crate::Result;
use crate::gpu::{Gpu, Recorder};
use crate::tensor::Tensor;

/// From the submission of `repeat` times what `record` records to their end.
pub(crate) async fn time(
    gpu: &Gpu,
    repeat: usize,
    record: &mut impl FnMut(&mut Recorder) -> Result<Tensor>,
) -> Result<Duration> {
    let mut recorder = gpu.record();
    let mut y = record(&mut recorder)?;
    for _ in 1..repeat {
        y = record(&mut recorder)?;
    }
    let read = y.reshape(&[y.len()]).slice_elements(0..1).read_back(&mut recorder);
    let started = Instant::now();
    recorder.submit()?;
    read.bytes().await?;
    Ok(started.elapsed())
}

/// How often something short is to be recorded for a submission to last that long, so that its own cost does not count: `most`
/// at most, or up to twice as often.
pub(crate) async fn repeats(
    gpu: &Gpu,
    lasting: Duration,
    most: usize,
    record: &mut impl FnMut(&mut Recorder) -> Result<Tensor>,
) -> Result<usize> {
    let mut repeat = 1;
    while repeat < most && time(gpu, repeat, record).await? < lasting {
        repeat *= 2;
    }
    Ok(repeat)
}
