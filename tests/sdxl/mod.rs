//! A golden case of Stable Diffusion XL: from the prompt's ids to the image, step by step.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use mgm::diffusion::scheduler::Schedule;
use mgm::diffusion::{TextEncoder, Unet, VaeDecoder};
use mgm::gpu::{Gpu, Recorder};
use mgm::io::DiskFolder;
use mgm::loader::Loader;
use mgm::ops::{self, Denoise, FeatureMap};
use mgm::tensor::{Precision, Tensor};
use mgm::text::clip::ClipTokenizer;
use mgm::weights::sdxl::{OpenOptions, SdxlCheckpoint};
use mgm::weights::view::Weights;
use safetensors::SafeTensors;

use crate::Report;

/// The widest bounds that a right runtime needs: of a step's latents as a part of their scale, and of the image. The
/// bound that [`Report::compare`] holds everything to is a tenth of the first.
const LEAST_PSNR: f64 = 45.0;

/// `expected.json`.
#[derive(Debug, serde::Deserialize)]
struct ExpectedJson {
    prompt: String,
    negative_prompt: String,
    height: usize,
    width: usize,
    steps: usize,
    guidance_scale: f32,
    input_ids: Vec<u32>,
    input_ids_2: Vec<u32>,
}

struct Case {
    json: ExpectedJson,
    tensors: HashMap<String, Vec<f32>>,
}

impl Case {
    fn read(folder: &Path) -> Self {
        let json = std::fs::read_to_string(folder.join("expected.json")).expect("expected.json");
        let bytes = std::fs::read(folder.join("expected.safetensors")).expect("expected.safetensors");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensors = file
            .iter()
            .map(|(name, tensor)| (name.to_owned(), bytemuck::pod_collect_to_vec::<u8, f32>(tensor.data())))
            .collect();
        Self { json: serde_json::from_str(&json).expect("the format of expected.json"), tensors }
    }

    fn values(&self, name: &str) -> &[f32] {
        self.tensors.get(name).unwrap_or_else(|| panic!("{name} is not in expected.safetensors"))
    }

    /// Maps of `images`, whose channels are first in the file, with their channels last.
    fn map(&self, name: &str, images: usize, channels: usize) -> Vec<f32> {
        let values = self.values(name);
        let pixels = values.len() / images / channels;
        let mut last = Vec::new();
        for image in values.chunks_exact(pixels * channels) {
            last.extend((0..pixels * channels).map(|at| image[at % channels * pixels + at / channels]));
        }
        last
    }
}

/// A prompt's states, both encoders' side by side, and its pooled state.
struct Prompt {
    states: Vec<f32>,
    pooled: Vec<f32>,
}

pub async fn check_case(gpu: &Gpu, folder: &Path, report: &mut Report) -> mgm::Result<()> {
    let case = Case::read(folder);
    let checkpoint =
        SdxlCheckpoint::open(Rc::new(DiskFolder::new(folder.join("sdxl"))), &OpenOptions::default()).await?;
    let loader = |weights: &Weights| Loader::new(gpu, weights.clone(), Precision::F32, None);
    let json = &case.json;

    let mut encoders = Vec::new();
    for (weights, config) in &checkpoint.text {
        encoders.push(TextEncoder::load(&loader(weights), config).await?);
    }
    let mut tokenizers = Vec::new();
    for tokenizer in &checkpoint.tokenizers {
        tokenizers.push(ClipTokenizer::load(&*tokenizer.folder, tokenizer.pad_token).await?);
    }
    let encode = async |text: &str, expected_ids: Option<[&[u32]; 2]>, report: &mut Report| -> mgm::Result<Prompt> {
        let mut recorder = gpu.record();
        let mut reads = Vec::new();
        for (index, (encoder, tokenizer)) in encoders.iter().zip(&tokenizers).enumerate() {
            let ids = tokenizer.window(text, checkpoint.text[index].1.max_positions)?.ids;
            if expected_ids.is_some_and(|expected| expected[index] != ids) {
                report.failures.push(format!("ids of encoder {}: {ids:?}", index + 1));
            }
            let encoding = encoder.forward(&mut recorder, &ids)?;
            let columns = encoding.hidden.columns();
            let pooled = encoding.pooled.map(|pooled| pooled.read_back(&mut recorder));
            reads.push((columns, encoding.hidden.read_back(&mut recorder), pooled));
        }
        recorder.submit()?;
        let mut parts = Vec::new();
        let mut pooled = Vec::new();
        for (columns, hidden, last) in reads {
            parts.push((columns, hidden.values::<f32>().await?));
            if let Some(last) = last {
                pooled = last.values().await?;
            }
        }
        let rows = parts[0].1.len() / parts[0].0;
        let row =
            |row: usize| parts.iter().flat_map(move |(columns, values)| &values[row * columns..(row + 1) * columns]);
        Ok(Prompt { states: (0..rows).flat_map(row).copied().collect(), pooled })
    };
    let positive = encode(&json.prompt, Some([&json.input_ids, &json.input_ids_2]), report).await?;
    report.compare("prompt_embeds", &positive.states, case.values("prompt_embeds"));
    report.compare("pooled", &positive.pooled, case.values("pooled"));
    let guided = json.guidance_scale > 1.0;
    let mut prompts = Vec::new();
    if guided {
        let negative = encode(&json.negative_prompt, None, report).await?;
        report.compare("negative_embeds", &negative.states, case.values("negative_embeds"));
        report.compare("negative_pooled", &negative.pooled, case.values("negative_pooled"));
        prompts.push(negative);
    }
    prompts.push(positive);

    let schedule = Schedule::new(&checkpoint.scheduler(None)?, json.steps)?;
    report.compare("sigmas", &schedule.sigmas, case.values("sigmas"));
    let unet = Unet::load(&loader(&checkpoint.unet.0), &checkpoint.unet.1).await?;
    let latents = denoise(gpu, &case, &unet, &schedule, &prompts, report).await?;

    let decoder = VaeDecoder::load(&loader(&checkpoint.vae.0), &checkpoint.vae.1).await?;
    let side = checkpoint.vae.1.pixels_per_latent();
    let (height, width) = (json.height / side, json.width / side);
    let expected: Vec<f32> = case.values("image").to_vec();
    let mut images = Vec::new();
    // As a whole, and in tiles of about a quarter of the image.
    for largest in [u64::MAX, (json.height * json.width * checkpoint.vae.1.block_out_channels[0]) as u64] {
        let mut recorder = gpu.record();
        let channels = checkpoint.vae.1.latent_channels;
        let pixels = Tensor::upload(&mut recorder, &[height * width, channels], &latents, "latents")?;
        let map = FeatureMap { height, width, values: pixels };
        let image = decoder.decode_within(&mut recorder, &map, largest)?;
        images.push(pixels_of(recorder, &image).await?);
    }
    let psnr = |found: &[f32], expected: &[f32]| {
        let squares: f64 = found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        -10.0 * (squares / expected.len() as f64).log10()
    };
    let [whole, tiled] = &images[..] else { return Ok(()) };
    let (found, in_tiles) = (psnr(whole, &expected), psnr(tiled, whole));
    report.note(format!("   image: {found:.1} dB; in tiles {in_tiles:.1} dB from the whole"));
    if in_tiles < LEAST_PSNR {
        report.failures.push(format!("in tiles the image is {in_tiles:.1} dB from the whole, {LEAST_PSNR} wanted"));
    }
    if whole.len() != expected.len() || found < LEAST_PSNR {
        report.failures.push(format!("the image is {found:.1} dB from the expected one, at least {LEAST_PSNR} wanted"));
    }
    report.compare("image", whole, &expected);
    Ok(())
}

/// An image's values from 0 to 1.
async fn pixels_of(mut recorder: Recorder, image: &FeatureMap) -> mgm::Result<Vec<f32>> {
    let read = image.values.read_back(&mut recorder);
    recorder.submit()?;
    Ok(read.values::<f32>().await?.iter().map(|value| (value / 2.0 + 0.5).clamp(0.0, 1.0)).collect())
}

/// The latents after all steps, channels last.
async fn denoise(
    gpu: &Gpu,
    case: &Case,
    unet: &Unet,
    schedule: &Schedule,
    prompts: &[Prompt],
    report: &mut Report,
) -> mgm::Result<Vec<f32>> {
    let json = &case.json;
    let channels = unet.config().in_channels;
    let start: Vec<f32> =
        case.map("latents_initial", 1, channels).iter().map(|noise| noise * schedule.initial_scale).collect();
    let pixels = start.len() / channels;
    let width = (pixels * json.width / json.height).isqrt();
    let height = pixels / width;
    let images = prompts.len();

    let mut recorder = gpu.record();
    let upload = |recorder: &mut Recorder, part: fn(&Prompt) -> &Vec<f32>, what: &str| {
        let values: Vec<f32> = prompts.iter().flat_map(part).copied().collect();
        let columns = if what == "pooled" { values.len() / images } else { unet.config().cross_attention_dim };
        Tensor::upload(recorder, &[values.len() / columns, columns], &values, what)
    };
    let context = upload(&mut recorder, |prompt| &prompt.states, "context")?;
    let pooled = upload(&mut recorder, |prompt| &prompt.pooled, "pooled")?;
    let (tall, wide) = (json.height as f32, json.width as f32);
    let ids = vec![[tall, wide, 0.0, 0.0, tall, wide]; images];
    let condition = unet.condition(&mut recorder, &context, &pooled, &ids)?;

    let sample = Tensor::new(gpu, &[pixels, channels], &start, "latents")?;
    let previous = Tensor::zeros(gpu, &[pixels, channels], "denoised latents")?;
    let scale = schedule.steps[0].input_scale;
    let scaled: Vec<f32> = start.iter().map(|value| value * scale).collect();
    let input = Tensor::new(gpu, &[images * pixels, channels], &scaled.repeat(images), "model input")?;
    let mut latents = Vec::new();
    for (index, step) in schedule.steps.iter().enumerate() {
        let map = FeatureMap { height, width, values: input.clone() };
        let output = unet.forward(&mut recorder, &map, step.timestep, &condition)?;
        let output_read = output.values.read_back(&mut recorder);
        let next = step.next;
        let numbers = Denoise {
            guidance_scale: (images > 1).then_some(json.guidance_scale),
            denoised: [step.denoised.sample, step.denoised.output],
            limit: step.denoised.clamp,
            next: [next.sample, next.output, next.denoised, next.previous, next.noise],
            input_scale: schedule.steps.get(index + 1).map_or(1.0, |next| next.input_scale),
        };
        ops::denoise(&mut recorder, &numbers, &output.values, None, [&sample, &previous, &input])?;
        let read = sample.read_back(&mut recorder);
        std::mem::replace(&mut recorder, gpu.record()).submit()?;
        if index == 0 {
            let expected = case.map("noise_pred_0", images, channels);
            report.compare("noise_pred_0", &output_read.values().await?, &expected);
        }
        latents = read.values().await?;
        let name = format!("latents_{index}");
        report.compare(&name, &latents, &case.map(&name, 1, channels));
    }
    Ok(latents)
}
