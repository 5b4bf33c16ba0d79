//! The parts of image generation that need no device, compared with torch and diffusers
//! (`tests/reference/make_diffusion.py`); the pipeline stops on request and respects the memory limit.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;

use mgm::Error;
use mgm::diffusion::NoiseType;
use mgm::diffusion::scheduler::Schedule;
use mgm::diffusion::torch_rng::TorchRng;
use mgm::diffusion::{DiffusionEvent, DiffusionOptions, DiffusionPipeline, DiffusionRequest, InitialLatents};
use mgm::gpu::{Gpu, GpuOptions};
use mgm::image::Image;
use mgm::io::DiskFolder;
use mgm::tensor::Precision;
use mgm::text::clip::ClipTokenizer;
use mgm::weights::sdxl::config::SchedulerConfig;
use mgm::weights::sdxl::{OpenOptions, SdxlCheckpoint};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use crate::common;

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

/// Seeds give torch's numbers. Those of 16 elements and more are equal to the last bit: the same operations in the same
/// order. Those of fewer go through the C library's `log1p`, `sin` and `cos` in f64 and are then rounded to f32
/// (or f16), where its last bits are lost.
#[test]
fn seeds_give_torchs_numbers() {
    let bytes = data("random.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (name, _) in file.iter() {
        let expected = values(&file, name).unwrap();
        let [seed, shape, kind] = name.split(':').collect::<Vec<_>>().try_into().unwrap();
        let kind = if kind == "f16" { NoiseType::F16 } else { NoiseType::F32 };
        let mut generator = TorchRng::new(seed.parse().unwrap());
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

/// Every scheduler step by step. diffusers computes in f32 with tables in f32, so every step has a rounding error of a
/// few 2^-24 of the scale of the sample before or after it (up to 4096 where the first step has almost no image); its
/// times and sigmas are rounded alike here, but for the last bit of a `pow` or `log`. 1e-6 is sixteen such errors.
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

        let mut generator = TorchRng::new(case.steps as u64);
        let noise = generator.randn(16, NoiseType::F32);
        let mut x: Vec<f64> = match (case.strength, schedule.steps[0].start) {
            (None, _) => noise.iter().map(|noise| f64::from(noise * schedule.initial_scale)).collect(),
            (Some(_), [image, scale]) => noise
                .iter()
                .enumerate()
                .map(|(index, noise)| {
                    f64::from(image) * (-2.0 + index as f64 * 4.0 / 15.0) + f64::from(scale) * f64::from(*noise)
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
    let folder = mgm_test_support::goldens().join("sdxl-base/sdxl");
    let options = OpenOptions::default();
    pollster::block_on(SdxlCheckpoint::open(Rc::new(DiskFolder::new(folder)), &options)).expect("a model")
}

fn pipeline(gpu: &Gpu) -> mgm::Result<DiffusionPipeline> {
    let options = DiffusionOptions::default().with_precision(Precision::F32);
    pollster::block_on(DiffusionPipeline::open(gpu, open(), options))
}

fn request(num_inference_steps: usize) -> DiffusionRequest {
    let scheduler = SchedulerConfig::released(None).expect("a scheduler");
    let mut request = DiffusionRequest::new("a gold mine", scheduler, (64, 64)).with_previews(true);
    (request.num_inference_steps, request.seed, request.noise) = (num_inference_steps, 1, NoiseType::F32);
    request
}

#[test]
fn generation_can_be_cancelled_between_steps_and_started_again() {
    let gpu = common::open_gpu();
    let mut pipeline = pipeline(&gpu).unwrap();
    let mut steps = Vec::new();
    let cancelled = pollster::block_on(pipeline.run(&request(9), &mut |event| match event {
        DiffusionEvent::Step { done, total } => {
            steps.push((done, total));
            if done < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        }
        _ => ControlFlow::Continue(()),
    }));
    assert_eq!((cancelled, steps), (Err(Error::Cancelled), vec![(0, 9), (1, 9), (2, 9)]));

    let generate = |pipeline: &mut DiffusionPipeline| {
        let mut events = Vec::new();
        let image = pollster::block_on(pipeline.run(&request(3), &mut |event| {
            events.push(match event {
                DiffusionEvent::Loading { part } => part.to_owned(),
                DiffusionEvent::Step { done, .. } => done.to_string(),
                DiffusionEvent::Preview { image } => format!("{} x {}", image.width(), image.height()),
                DiffusionEvent::Decoding => "decoding".to_owned(),
                other => format!("{other:?}"),
            });
            ControlFlow::Continue(())
        }));
        (image.unwrap(), events)
    };
    let ((first, events), (second, events_again)) = (generate(&mut pipeline), generate(&mut pipeline));
    assert_eq!(first, second);
    // The prompt's embeddings are cached and the UNet is still loaded; of the autoencoder only the decoder is loaded,
    // once.
    let steps = ["0", "1", "8 x 8", "2", "8 x 8", "3", "8 x 8"];
    assert_eq!(events, [&steps[..], &["VAE", "decoding"]].concat());
    assert_eq!(events_again, [&steps[..], &["decoding"]].concat());
    pipeline.release();
    assert_eq!(generate(&mut pipeline).0, first);
}

/// What loading reports, against the plan: the golden model's UNet and autoencoder have layers with a least precision
/// and convolutions of 3 channels, which the device pads to 4.
#[test]
fn the_memory_of_the_networks_is_as_planned() {
    let gpu = common::open_gpu();
    for precision in Precision::CHOICES {
        let loaded: Rc<RefCell<BTreeMap<&str, u64>>> = Rc::default();
        let part = Rc::new(Cell::new(""));
        let (bytes_of, current) = (Rc::clone(&loaded), Rc::clone(&part));
        let on_progress = Rc::new(move |bytes| {
            *bytes_of.borrow_mut().entry(current.get()).or_default() += bytes;
            ControlFlow::Continue(())
        });
        let options = DiffusionOptions::default().with_precision(precision).with_progress(on_progress);
        let mut pipeline = pollster::block_on(DiffusionPipeline::open(&gpu, open(), options)).unwrap();
        let planned: BTreeMap<&str, u64> = pipeline.plan().parts.iter().copied().collect();
        let image = Image::new(64, 64, vec![128; 64 * 64 * 3]).unwrap();
        // Image to image loads both halves of the autoencoder.
        let generate =
            pipeline.generate("a gold mine").size(64, 64).num_inference_steps(2).image(image).on_event(|event| {
                if let DiffusionEvent::Loading { part: name } = event {
                    part.set(name);
                }
                ControlFlow::Continue(())
            });
        pollster::block_on(async { generate.await }).unwrap();
        let loaded = loaded.borrow();
        for network in ["UNet", "VAE"] {
            assert_eq!(loaded[network], planned[network], "{network} at {precision}");
        }
    }
}

#[test]
fn the_builder_generates_the_image_of_the_request() {
    let gpu = common::open_gpu();
    let mut pipeline = pipeline(&gpu).unwrap();
    let expected = pollster::block_on(pipeline.run(&request(2), &mut |_| ControlFlow::Continue(()))).unwrap();
    let generate = pipeline.generate("a gold mine").size(64, 64).num_inference_steps(2).seed(1).noise(NoiseType::F32);
    let generated = pollster::block_on(async { generate.await }).unwrap();
    let settings = &generated.settings;
    assert_eq!((settings.num_inference_steps, settings.guidance_scale, settings.seed), (2, 5.0, Some(1)));
    if pipeline.checkpoint().scheduler(None).unwrap() == SchedulerConfig::released(None).unwrap() {
        assert_eq!(generated.image, expected);
    }
}

/// A size whose feature maps exceed a binding is refused before anything is loaded.
#[test]
fn sizes_beyond_the_bindings_are_refused() {
    let mut options = GpuOptions::default();
    options.test.max_binding_bytes = Some(1 << 20);
    let mut pipeline = pipeline(&common::open_gpu_with(options)).unwrap();
    let mut generate = |side: usize, scale: f32| {
        let generate = pipeline.generate("x").size(side, side).num_inference_steps(1).guidance_scale(scale);
        let mut loaded = false;
        let result = pollster::block_on(async {
            generate
                .on_event(|event| {
                    loaded |= matches!(event, DiffusionEvent::Loading { .. });
                    ControlFlow::Continue(())
                })
                .await
        });
        (result, loaded)
    };
    // 64 x 64 latents: 4096 pixels of 32 + 32 channels for two prompts are 2 MiB.
    let (refused, loaded) = generate(512, 5.0);
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("feature maps of 2 MiB") && error.contains("about 360 x 360 pixels") && !loaded, "{error}");
    assert!(generate(64, 5.0).0.is_ok());
}

/// Networks make room for each other, and the image is the same as where all of them stay.
#[test]
fn generation_stays_within_its_memory_limit() {
    let gpu = common::open_gpu();
    let run = &mut |_: DiffusionEvent<'_>| ControlFlow::Continue(());
    let expected = pollster::block_on(pipeline(&gpu).unwrap().run(&request(2), run)).unwrap();
    // Room for the UNet (6 MiB) and the activations, but not for the other networks next to them.
    let limit = 12 << 20;
    let limited = common::open_gpu_with(GpuOptions::default().with_memory_limit(Some(limit)));
    let mut pipeline = pipeline(&limited).unwrap();
    for round in 0..2 {
        let mut loaded = Vec::new();
        let image = pollster::block_on(pipeline.run(&request(2), &mut |event| {
            if let DiffusionEvent::Loading { part } = event {
                loaded.push(part.to_owned());
            }
            ControlFlow::Continue(())
        }));
        assert_eq!(image.as_ref(), Ok(&expected));
        println!("loaded {loaded:?}; {:?}", limited.memory());
        // The UNet made room for the autoencoder. The prompt's embeddings are cached, so the text encoders stay out.
        let expected: &[&str] =
            if round == 0 { &["first text encoder", "second text encoder", "UNet", "VAE"] } else { &["UNet"] };
        assert_eq!(loaded, expected);
    }
    assert!(limited.memory().peak <= limit, "{:?}", limited.memory());

    let small = common::open_gpu_with(GpuOptions::default().with_memory_limit(Some(1 << 20)));
    let refused = self::pipeline(&small);
    let error = refused.err().expect("no room").to_string();
    assert!(error.contains("UNet") && error.contains("MiB needed"), "{error}");
}

/// Image to image, which runs every network: both text encoders, both halves of the autoencoder, the UNet.
fn image_to_image(num_inference_steps: usize) -> DiffusionRequest {
    let pixels = (0..64 * 64 * 3).map(|at| (at * 7 % 251) as u8).collect();
    let image = Image::new(64, 64, pixels).expect("an image");
    let mut request = request(num_inference_steps);
    request.initial_latents = InitialLatents::image(image, (64, 64), 0.6);
    request
}

/// Every allocation of a load and an image fails once, and all after it, as on a device that is full.
#[test]
fn out_of_memory_at_any_allocation_is_an_error_and_leaves_nothing_behind() {
    let gpu = common::open_gpu();
    let request = image_to_image(3);
    let generate = |pipeline: &mut DiffusionPipeline| {
        pollster::block_on(pipeline.run(&request, &mut |_| ControlFlow::Continue(())))
    };
    let run = || {
        let mut pipeline = pipeline(&gpu)?;
        let first = generate(&mut pipeline);
        // Whatever happened to the first image, the next one is generated as soon as there is memory.
        gpu.set_full_after(None);
        Ok::<_, Error>((first, generate(&mut pipeline)?))
    };
    let start = gpu.created_buffers();
    let expected = generate(&mut pipeline(&gpu).unwrap()).expect("an image");
    let allocations = gpu.created_buffers() - start;
    gpu.trim();
    let baseline = gpu.memory().allocated;
    let (mut refused, mut generated) = (0, 0);
    // A prime step visits all networks and steps: weights come in groups.
    for after in (0..=allocations).step_by(37) {
        gpu.set_full_after(Some(after));
        match run() {
            Ok((Ok(image), again)) => {
                assert!(image == expected && again == expected, "{after}");
                generated += 1;
            }
            Ok((Err(Error::OutOfMemory { .. }), again)) => {
                assert!(again == expected, "{after}");
                refused += 1;
            }
            Ok((Err(error), _)) | Err(error) => panic!("allocation {after} of {allocations}: {error}"),
        }
        gpu.set_full_after(None);
        gpu.trim();
        assert!(gpu.memory().allocated <= baseline, "allocation {after}: {:?}, {baseline} before", gpu.memory());
    }
    println!("{allocations} allocations: {refused} refused, {generated} generated");
    assert!(refused > 5, "{refused} refused of {allocations} allocations");
}

/// Every submission of an image is the last one of its device: the text encoders', the autoencoder's, every step's.
#[test]
fn a_device_lost_at_any_submission_is_an_error_and_another_gives_the_same_image() {
    let request = image_to_image(5);
    let generate = |lost_after| {
        let mut options = GpuOptions::default();
        options.test.lost_after = lost_after;
        let gpu = common::open_gpu_with(options);
        let mut pipeline = pipeline(&gpu)?;
        let mut last = String::new();
        let image = pollster::block_on(pipeline.run(&request, &mut |event| {
            match event {
                DiffusionEvent::Loading { part } => last = format!("loading the {part}"),
                DiffusionEvent::Step { done, .. } => last = format!("step {done}"),
                DiffusionEvent::Decoding => last = "decoding".to_owned(),
                _ => {}
            }
            ControlFlow::Continue(())
        }));
        println!("lost after {lost_after:?}: {last}: {:?}", image.as_ref().err());
        if lost_after.is_some() && image.is_err() {
            let again = pollster::block_on(pipeline.run(&request, &mut |_| ControlFlow::Continue(())));
            assert!(matches!(again, Err(Error::DeviceLost(_))), "{lost_after:?}: {:?}", again.err());
        }
        image
    };
    let expected = generate(None).expect("an image");
    let mut lost = 0;
    for submission in 0.. {
        match generate(Some(submission)) {
            Err(Error::DeviceLost(_)) => lost += 1,
            Err(error) => panic!("submission {submission}: {error}"),
            Ok(image) => {
                assert!(image == expected, "submission {submission}");
                break;
            }
        }
    }
    assert!(lost >= 5, "{lost}");
}
