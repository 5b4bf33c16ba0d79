//! How long recorded work takes on the device.

use std::time::Duration;

use web_time::Instant;

use crate::Result;
use crate::gpu::{Gpu, Recorder};
use crate::tensor::Tensor;

/// The time from submitting `repeat` times what `record` records until all of it is done.
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

/// How often to record something short so that a submission takes at least `duration` and its own cost does not count:
/// a power of two below 2 `most`.
pub(crate) async fn repeats(
    gpu: &Gpu,
    duration: Duration,
    most: usize,
    record: &mut impl FnMut(&mut Recorder) -> Result<Tensor>,
) -> Result<usize> {
    let mut repeat = 1;
    while repeat < most && time(gpu, repeat, record).await? < duration {
        repeat *= 2;
    }
    Ok(repeat)
}
