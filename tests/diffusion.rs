//! The parts of drawing that need no device, against what torch and diffusers made (`tests/reference/make_diffusion.py`), and
//! the pipeline's manners: it stops when it is told, and keeps to its memory.

mod common;

use std::path::Path;
use std::rc::Rc;

use mgm::Error;
use mgm::diffusion::pipeline::{Diffusion, Event, LoadOptions, Request, Start};

use mgm::diffusion::scheduler::Schedule;
use mgm::diffusion::torch_rng::{Generator, NoiseType};
use mgm::gpu::{Gpu, GpuOptions};
use mgm::io::DiskFolder;
use mgm::tensor::Precision;
use mgm::text::clip::ClipTokenizer;
use mgm::weights::sdxl::config::SchedulerConfig;
use mgm::weights::sdxl::{OpenOptions, SdxlCheckpoint};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

fn data(file: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/diffusion").join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn values(file: &SafeTensors<'_>, name: &str) -> Option<Vec<f32>> {
    let tensor = file.tensor(name).ok()?;
    Some(match tensor.dtype() {
        Dtype::F16 => {
            bytemuck::pod_collect_to_vec::<u8, half::f16>(tensor.data()).iter().map(|value| value.to_f32()).collect()
        }
        _ => bytemuck::pod_collect_to_vec(tensor.data()),
    })
}

/// Seeds give torch's numbers. Those of 16 elements and more are equal to the last bit: the same operations in the same order.
/// Those of fewer go through the C library's `log1p`, `sin` and `cos` in f64 and are then rounded to f32 (or f16), where its
/// last bits are lost.
#[test]
fn seeds_give_torchs_numbers() {
    let bytes = data("random.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (name, _) in file.iter() {
        let expected = values(&file, name).unwrap();
        let [seed, shape, kind] = name.split(':').collect::<Vec<_>>().try_into().unwrap();
        let kind = if kind == "f16" { NoiseType::F16 } else { NoiseType::F32 };
        let mut generator = Generator::new(seed.parse().unwrap());
        let counts = shape.split('+').map(|part| part.split('x').map(|n| n.parse::<usize>().unwrap()).product());
        let found: Vec<f32> = counts.flat_map(|count: usize| generator.randn(count, kind)).collect();
        let differing = found.iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!((found.len(), differing), (expected.len(), 0), "{name}: {found:?}, expected {expected:?}");
    }
}

#[derive(serde::Deserialize)]
struct Case {
    settings: serde_json::Value,
    steps: usize,
    strength: Option<f32>,
}

/// The model that the fixtures were made with.
fn model(x: f64, index: usize, timestep: f64) -> f64 {
    0.6 * x.tanh() + 0.4 * (index as f64 + timestep / 100.0).sin()
}

/// Every scheduler step by step. diffusers computes in f32 with tables in f32, so every step has a rounding error of a few
/// 2^-24 of the scale of the sample before or after it (up to 4096 where the first step has almost no picture); its times and
/// sigmas are rounded alike here, but for the last bit of a `pow` or `log`. 1e-6 is sixteen such errors.
#[test]
fn every_scheduler_steps_as_in_diffusers() {
    let cases: Vec<Case> = serde_json::from_slice(&data("schedulers.json")).unwrap();
    let bytes = data("schedulers.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut worst = (0.0f64, String::new());
    for (number, case) in cases.iter().enumerate() {
        let tensor = |name: &str| values(&file, &format!("{number}.{name}"));
        let what = format!("case {number}: {} in {} steps, strength {:?}", case.settings, case.steps, case.strength);
        let config = SchedulerConfig::parse("case", case.settings.to_string().as_bytes(), None).expect(&what);
        let schedule = match case.strength {
            None => Schedule::new(&config, case.steps),
            Some(strength) => Schedule::for_image(&config, case.steps, strength),
        }
        .expect(&what);
        let close = |name: &str, found: &[f64], expected: &[f32], bound: f64| {
            assert_eq!(found.len(), expected.len(), "{what}: {name}");
            let scale = expected.iter().fold(1e-3, |scale: f64, value| scale.max(f64::from(value.abs())));
            let error = found.iter().zip(expected).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max) / scale;
            assert!(error <= bound, "{what}: {name}: error {error:.1e}: {found:?}, expected {expected:?}");
            error
        };
        let timesteps: Vec<f64> = schedule.steps.iter().map(|step| f64::from(step.timestep)).collect();
        close("timesteps", &timesteps, &tensor("timesteps").unwrap(), 1e-6);
        if let Some(sigmas) = tensor("sigmas") {
            let found: Vec<f64> = schedule.sigmas.iter().map(|sigma| f64::from(*sigma)).collect();
            close("sigmas", &found, &sigmas, 1e-6);
        }

        let mut generator = Generator::new(case.steps as u64);
        let noise = generator.randn(16, NoiseType::F32);
        let mut x: Vec<f64> = match (case.strength, schedule.steps[0].start) {
            (None, _) => noise.iter().map(|noise| f64::from(noise * schedule.initial_scale)).collect(),
            (Some(_), [picture, scale]) => noise
                .iter()
                .enumerate()
                .map(|(index, noise)| {
                    f64::from(picture) * (-2.0 + index as f64 * 4.0 / 15.0) + f64::from(scale) * f64::from(*noise)
                })
                .collect(),
        };
        close("start", &x, &tensor("start").unwrap(), 1e-6);
        let (samples, denoised_samples) = (tensor("samples").unwrap(), tensor("denoised"));
        let mut previous = vec![0.0; 16];
        for (index, step) in schedule.steps.iter().enumerate() {
            let noise = if step.draws_noise { generator.randn(16, NoiseType::F32) } else { vec![0.0; 16] };
            let (mut next, mut denoised) = (Vec::new(), Vec::new());
            for (element, sample) in x.iter().copied().enumerate() {
                let output = model(sample * f64::from(step.input_scale), element, f64::from(step.timestep));
                let clamp = f64::from(step.denoised.clamp);
                let x0 = f64::from(step.denoised.sample) * sample + f64::from(step.denoised.output) * output;
                let x0 = x0.clamp(-clamp, clamp);
                let weights = step.next;
                next.push(
                    f64::from(weights.sample) * sample
                        + f64::from(weights.output) * output
                        + f64::from(weights.denoised) * x0
                        + f64::from(weights.previous) * previous[element]
                        + f64::from(weights.noise) * f64::from(noise[element]),
                );
                denoised.push(x0);
            }
            let before = x.iter().fold(0.0f64, |scale, value| scale.max(value.abs()));
            let range = 16 * index..16 * (index + 1);
            let bound = |expected: &[f32]| {
                let scale = expected.iter().fold(1e-3, |scale: f64, value| scale.max(f64::from(value.abs())));
                1e-6 * (before / scale).max(1.0)
            };
            if let Some(expected) = &denoised_samples {
                let expected = &expected[range.clone()];
                close(&format!("denoised {index}"), &denoised, expected, bound(expected));
            }
            let expected = &samples[range];
            let error = close(&format!("sample {index}"), &next, expected, bound(expected));
            if error > worst.0 {
                worst = (error, what.clone());
            }
            // From where diffusers is, so that its rounding errors are not carried along.
            (x, previous) = (expected.iter().map(|x| f64::from(*x)).collect(), denoised);
        }
    }
    println!("{} cases; the largest error {:.1e} is in {}", cases.len(), worst.0, worst.1);
}

#[derive(serde::Deserialize)]
struct ClipCase {
    text: String,
    ids: [Vec<u32>; 2],
    length: usize,
}

/// Windows of both tokenizers against transformers' fast one (`tests/reference/make_clip_ids.py`).
#[test]
fn prompts_become_clips_windows() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/diffusion");
    let load = |name: &str, pad: Option<&str>| {
        pollster::block_on(ClipTokenizer::load(&DiskFolder::new(folder.join(name)), pad)).unwrap()
    };
    let cases: Vec<ClipCase> = serde_json::from_slice(&data("clip_ids.json")).unwrap();
    // The second one from the first one's files too, as for single files.
    for (index, tokenizer) in
        [(0, load("tokenizer", None)), (1, load("tokenizer_2", None)), (1, load("tokenizer", Some("!")))]
    {
        for case in &cases {
            let window = tokenizer.window(&case.text, 77).unwrap();
            assert_eq!(window.ids, case.ids[index], "{:?}", case.text);
            assert_eq!(window.dropped.is_some(), case.length > 77, "{:?}", case.text);
        }
    }
    let tokenizer = load("tokenizer", None);
    let window = tokenizer.window("a b c d", 4).unwrap();
    assert_eq!((window.ids.len(), window.dropped.as_deref()), (4, Some("c d")));
}

fn open() -> SdxlCheckpoint {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/sdxl-base/sdxl");
    let options = OpenOptions::default();
    pollster::block_on(SdxlCheckpoint::open(Rc::new(DiskFolder::new(folder)), &options)).expect("a model")
}

fn painter(gpu: &Gpu) -> mgm::Result<Diffusion> {
    let options = LoadOptions { precision: Precision::F32, on_progress: None };
    pollster::block_on(Diffusion::open(gpu, open(), options))
}

fn request(steps: usize) -> Request {
    Request {
        prompt: "a gold mine".to_owned(),
        negative: None,
        scheduler: SchedulerConfig::released(None).expect("a scheduler"),
        steps,
        guidance: 5.0,
        width: 64,
        height: 64,
        start: Start::Noise,
        seed: 1,
        noise: NoiseType::F32,
        previews: true,
    }
}

#[test]
fn painting_stops_between_steps_and_starts_again() {
    let gpu = common::open_gpu();
    let mut painter = painter(&gpu).unwrap();
    let mut told = Vec::new();
    let stopped = pollster::block_on(painter.generate(&request(9), &mut |event| match event {
        Event::Step(done, all) => {
            told.push((done, all));
            done < 2
        }
        _ => true,
    }));
    assert_eq!((stopped, told), (Err(Error::Cancelled), vec![(0, 9), (1, 9), (2, 9)]));

    let paint = |painter: &mut Diffusion| {
        let mut seen = Vec::new();
        let picture = pollster::block_on(painter.generate(&request(3), &mut |event| {
            seen.push(match event {
                Event::Loading(part) => part.to_owned(),
                Event::Step(done, _) => done.to_string(),
                Event::Preview(image) => format!("{} x {}", image.width(), image.height()),
                Event::Decoding => "decoding".to_owned(),
                Event::PromptCut(_) => "cut".to_owned(),
            });
            true
        }));
        (picture.unwrap(), seen)
    };
    let ((first, seen), (second, seen_again)) = (paint(&mut painter), paint(&mut painter));
    assert_eq!(first, second);
    // The prompt is remembered and the UNet still there; of the autoencoder only the decoder is loaded, once.
    let steps = ["0", "1", "8 x 8", "2", "8 x 8", "3", "8 x 8"];
    assert_eq!(seen, [&steps[..], &["VAE", "decoding"]].concat());
    assert_eq!(seen_again, [&steps[..], &["decoding"]].concat());
    painter.release();
    assert_eq!(paint(&mut painter).0, first);
}

/// Parts make room for each other, and the picture is the same as where all stay.
#[test]
fn painting_keeps_to_its_memory() {
    let gpu = common::open_gpu();
    let expected = pollster::block_on(painter(&gpu).unwrap().generate(&request(2), &mut |_| true)).unwrap();
    // Room for the UNet (6 MiB) and the work of a picture, but not for the other parts beside them.
    let limit = 12 << 20;
    let limited = common::open_gpu_with(GpuOptions::default().with_memory_limit(Some(limit)));
    let mut painter = painter(&limited).unwrap();
    for round in 0..2 {
        let mut loaded = Vec::new();
        let picture = pollster::block_on(painter.generate(&request(2), &mut |event| {
            if let Event::Loading(part) = event {
                loaded.push(part.to_owned());
            }
            true
        }));
        assert_eq!(picture.as_ref(), Ok(&expected));
        println!("loaded {loaded:?}; {:?}", limited.memory());
        // The UNet made room for the autoencoder. The prompt's states are remembered: the text encoders do not come again.
        let expected: &[&str] =
            if round == 0 { &["first text encoder", "second text encoder", "UNet", "VAE"] } else { &["UNet"] };
        assert_eq!(loaded, expected);
    }
    assert!(limited.memory().peak <= limit, "{:?}", limited.memory());

    let small = common::open_gpu_with(GpuOptions::default().with_memory_limit(Some(1 << 20)));
    let refused = self::painter(&small);
    let error = refused.err().expect("no room").to_string();
    assert!(error.contains("UNet") && error.contains("bytes needed"), "{error}");
}
