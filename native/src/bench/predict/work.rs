//! The dispatches of a model, from dry runs of the code that records them.

use std::collections::HashMap;

use mgm::diffusion::{Unet, VaeDecoder};
use mgm::gpu::{AdapterChoice, Capabilities, DryRunReport, Gpu, GpuOptions, Kernel};
use mgm::language::{LanguageModel, Position, prefill_chunk};
use mgm::loader::{Loader, vision_precision};
use mgm::ops::{FeatureMap, Sampling, kernel_name};
use mgm::tensor::{Precision, Tensor};
use mgm::variants::Variant;
use mgm::vision::Vision;
use mgm::weights::config::ExpertsConfig;
use mgm::weights::sdxl::config::{TextEncoderConfig, UnetConfig, VaeConfig};

use super::devices::Kernels;
use super::model::Work;
use crate::bench::llm;

/// A part of a model's run.
pub struct Part {
    pub name: &'static str,
    /// Tokens, visual tokens or images that it computes.
    pub units: usize,
    pub works: Vec<Work>,
}

/// A device that is only planned.
pub async fn open(kernels: Kernels, adapter: AdapterChoice) -> mgm::Result<Gpu> {
    let sizes = if kernels.matrices { vec![16] } else { Vec::new() };
    let capabilities = Capabilities {
        subgroup_min_size: kernels.subgroup_min_size,
        native_dots: kernels.native_dots,
        packed_f16: kernels.packed_f16,
        local_memory: kernels.decodes_whole.then_some(16 << 30),
        ..Capabilities::of_hardware(kernels.subgroup_max_size, sizes)
    };
    Gpu::open(&GpuOptions::planned(capabilities).with_adapter(adapter)).await
}

/// The dispatches of a dry run.
pub fn works(report: &DryRunReport) -> mgm::Result<Vec<Work>> {
    let mut known: HashMap<&Kernel, (String, f64)> = HashMap::new();
    let mut works = Vec::with_capacity(report.launches.len());
    for launch in &report.launches {
        let (name, invocations) = match known.get(&launch.kernel) {
            Some(found) => found.clone(),
            None => {
                let found = (kernel_name(&launch.kernel), f64::from(launch.kernel.workgroup_invocations()?));
                known.entry(&launch.kernel).or_insert(found).clone()
            }
        };
        works.push(Work {
            kernel: Some(name),
            bytes: launch.cost.bytes,
            flops: launch.cost.flops,
            workgroups: launch.grid.into_iter().map(f64::from).product(),
            invocations,
            waits: true,
        });
    }
    Ok(works)
}

/// Encoding one image, prefilling `tokens`, and the token after them.
pub async fn chat(gpu: &Gpu, variant: &Variant, precision: Precision, tokens: usize) -> mgm::Result<Vec<Part>> {
    let loader = Loader::random(gpu, 1, precision, None);
    let sizes = &variant.vision;
    let towers = loader.at(vision_precision(precision));
    let hidden = variant.language.hidden_size;
    let vision = Vision::random(&towers, sizes.config.clone(), &sizes.clip, &sizes.convnext, hidden).await?;
    let language = LanguageModel::load(&loader, &variant.language).await?;

    let image = Part { name: "image", units: 1, works: works(&vision.dry_run(gpu).await?)? };

    let mut recorder = gpu.dry_run();
    let mut cache = language.cache();
    let sampled = Tensor::zeros(gpu, &[2], "sampled tokens")?;
    let id = |index| Position::Text(llm::token_id(index, variant.language.vocab_size));
    let positions: Vec<Position> = (0..tokens).map(id).collect();
    let mut end = Tensor::temporary(gpu, &[1, hidden], "end of the prompt")?;
    for portion in positions.chunks(prefill_chunk(gpu, tokens)) {
        let x = language.embed(&mut recorder, portion, &[])?;
        end = language.forward(&mut recorder, &x, &mut cache)?;
    }
    language.sample_next(&mut recorder, &end, Sampling::GREEDY, 0.0, &sampled, 0)?;
    let prefill = Part { name: "prefill", units: tokens, works: works(&recorder.into_report())? };

    let mut recorder = gpu.dry_run();
    let x = language.embed_sampled(&mut recorder, &sampled, 0, 1)?;
    let end = language.forward(&mut recorder, &x, &mut cache)?;
    language.sample_next(&mut recorder, &end, Sampling::GREEDY, 0.0, &sampled, 1)?;
    let token = Part { name: "token", units: 1, works: works(&recorder.into_report())? };
    let mut parts = vec![image, prefill, token];
    if let Some(ExpertsConfig { count, per_token, .. }) = variant.language.experts {
        let share = per_token as f64 / count as f64;
        for part in &mut parts {
            part.works.iter_mut().for_each(|work| route(work, share, part.units));
        }
    }
    Ok(parts)
}

/// A product with one expert's weights is recorded for all tokens, since the device routes them: each expert gets a
/// share on average. One token runs through a share of the experts; of many, every expert gets some.
fn route(work: &mut Work, share: f64, tokens: usize) {
    if work.kernel.as_ref().is_some_and(|name| name.contains("routed")) {
        work.flops *= share;
        work.workgroups = (work.workgroups * share).ceil();
        work.bytes *= if tokens == 1 { share } else { 1.0 };
    }
}

/// A step of Stable Diffusion XL with guidance, and the decoding of the image.
pub async fn sdxl(gpu: &Gpu, precision: Precision, (width, height): (usize, usize)) -> mgm::Result<Vec<Part>> {
    const PROMPTS: usize = 2;
    const TOKENS: usize = 77;
    let loader = Loader::random(gpu, 1, precision, None);
    let (config, vae) = (UnetConfig::sdxl(), VaeConfig::sdxl());
    let unet = Unet::load(&loader.pp("unet"), &config).await?;
    let decoder = VaeDecoder::load(&loader.at(vision_precision(precision)).pp("vae"), &vae).await?;
    let (rows, columns) = (height / vae.pixels_per_latent(), width / vae.pixels_per_latent());
    let map = |batch: usize, channels: usize| -> mgm::Result<FeatureMap> {
        let values = Tensor::temporary(gpu, &[batch * rows * columns, channels], "latents")?;
        Ok(FeatureMap { height: rows, width: columns, values })
    };

    // The condition is computed once an image.
    let context = Tensor::temporary(gpu, &[PROMPTS * TOKENS, config.cross_attention_dim], "states")?;
    let pooled = Tensor::temporary(gpu, &[PROMPTS, TextEncoderConfig::sdxl_2().hidden_size], "pooled")?;
    let condition = unet.condition(&mut gpu.dry_run(), &context, &pooled, &[[1024.0; 6]; PROMPTS])?;
    let mut recorder = gpu.dry_run();
    unet.forward(&mut recorder, &map(PROMPTS, config.in_channels)?, 500.0, &condition)?;
    let step = Part { name: "step", units: 1, works: works(&recorder.into_report())? };

    let mut recorder = gpu.dry_run();
    decoder.decode(&mut recorder, &map(1, vae.latent_channels)?)?;
    let decode = Part { name: "decode", units: 1, works: works(&recorder.into_report())? };
    Ok(vec![step, decode])
}
