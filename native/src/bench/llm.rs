//! Language model steps that several benches measure.

use std::ops::ControlFlow;

use mgm::gpu::Gpu;
use mgm::language::{Cache, ImageId, LanguageModel, Position, prefill_chunk};
use mgm::ops::products;
use mgm::tensor::Tensor;
use mgm::tuning::{TuneOptions, tune};

/// Token ids for a prompt of random content, in a fixed order.
pub fn token_id(index: usize, vocab_size: usize) -> u32 {
    (index * 7919 % vocab_size) as u32
}

/// Tunes the matmuls of a model for this run.
pub async fn tune_matmuls(gpu: &Gpu, language: &LanguageModel) -> mgm::Result<()> {
    note!("mgm: measuring kernels …");
    let products = products(&language.dry_run(&gpu.plan())?);
    tune(gpu, products.into_keys(), TuneOptions::default(), |_| ControlFlow::Continue(())).await?;
    Ok(())
}

/// Runs a prompt through the model and reserves room for `steps` more tokens. Returns the hidden state of the last
/// position.
pub fn prefill(
    gpu: &Gpu,
    language: &LanguageModel,
    positions: &[Position],
    images: &[(ImageId, Tensor)],
    cache: &mut Cache,
    steps: usize,
) -> mgm::Result<Tensor> {
    let mut end = None;
    for portion in positions.chunks(prefill_chunk(gpu, positions.len())) {
        let mut recorder = gpu.record();
        cache.reserve(&mut recorder, positions.len() + steps)?;
        let x = language.embed(&mut recorder, portion, images)?;
        end = Some(language.forward(&mut recorder, &x, cache)?);
        recorder.submit()?;
    }
    end.ok_or_else(|| mgm::Error::InvalidArgument("the prompt is empty".to_owned()))
}
