//! Images in the engine: they are encoded once, in slices between the steps of running sequences, and a lost device
//! loses nothing. On golden models the answers are the reference's.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mgm::engine::digest::{CachedPosition, ImageDigest, Salt};
use mgm::engine::images::{ImageFormat, JobImage};
use mgm::engine::{Engine, EngineOptions, Event, FinishReason, Job, JobId};
use mgm::gpu::{Gpu, GpuOptions, TestOptions};
use mgm::image::{Image, decode, encode_png};
use mgm::io::DiskFolder;
use mgm::ops::Sampling;
use mgm::session::{LoadOptions, Model};
use mgm::tensor::Precision;
use mgm::vision::Vision;
use mgm::weights::mgm::{MgmCheckpoint, TowerOptions};
use mgm::{Error, Result};

use crate::common::{Expected, case, open_gpu, open_gpu_with};

fn options(context: usize) -> EngineOptions {
    EngineOptions {
        parallel: 4,
        context,
        capacity: 6 * context,
        slice: Duration::from_millis(5),
        image_cache: 64 << 20,
        prompt_lookup: 7,
        deterministic: true,
    }
}

fn engine(model: &Model, options: EngineOptions) -> Engine<'_> {
    Engine::new(model.gpu(), model.language(), options).expect("an engine").with_vision(vision(model))
}

fn vision(model: &Model) -> &Vision {
    model.vision().expect("vision networks")
}

async fn pocket(gpu: &Gpu) -> Model {
    Model::from_path(gpu, "models/pocket").await.expect("the bundled model")
}

async fn golden(gpu: &Gpu, case: &Path, expected: &Expected) -> Model {
    let folder = DiskFolder::new(case.join(&expected.json.checkpoint));
    let checkpoint = MgmCheckpoint::open(Rc::new(folder), TowerOptions::default()).await.expect("a golden checkpoint");
    Model::load(gpu, &checkpoint, &LoadOptions::new(Precision::F32)).await.expect("a golden model")
}

fn read(path: &Path) -> Image {
    decode("an image", &std::fs::read(path).expect("a file")).expect("an image")
}

/// An image of coloured cells that depend on `seed`.
fn cells(seed: u32) -> Image {
    let side = 48;
    let pixel = |index: u32| {
        let (x, y) = (index % side / 8, index / side / 8);
        let colour = (x + 6 * y + 37 * seed).wrapping_mul(0x9e37_79b9);
        [colour as u8, (colour >> 8) as u8, (colour >> 16) as u8]
    };
    Image::new(side as usize, side as usize, (0..side * side).flat_map(pixel).collect()).expect("an image")
}

/// A question of `text` after an image, with a few tokens before both.
fn ask(model: &Model, image: &JobImage, before: u32, text: u32, max_new: usize) -> Job {
    let mut prompt = vec![CachedPosition::Text(1), CachedPosition::Text(before)];
    prompt.extend(ImageFormat::new(vision(model)).positions(image.digest));
    prompt.extend([5, text, 7].map(CachedPosition::Text));
    Job { images: vec![image.clone()], ..Job::new(prompt, max_new) }
}

fn text(first: u32, max_new: usize) -> Job {
    Job::new((first..first + 9).map(CachedPosition::Text).collect(), max_new)
}

/// What was reported of a job.
#[derive(Debug, Default, Clone)]
struct Answer {
    ids: Vec<u32>,
    /// The tokens of other answers to the job.
    others: BTreeMap<usize, Vec<u32>>,
    cached: usize,
    /// Stages of encodings that were done, in order of their reports.
    encoded: Vec<usize>,
    end: Option<FinishReason>,
    error: Option<Error>,
}

type Answers = HashMap<JobId, Answer>;

async fn turn(engine: &mut Engine<'_>, answers: &mut Answers) -> Result<()> {
    for (id, event) in engine.turn().await? {
        let answer = answers.entry(id).or_default();
        match event {
            Event::Started { cached } => {
                answer.cached = cached;
                answer.encoded.clear();
            }
            Event::Encoding { done, all } => {
                assert!(done <= all && answer.encoded.last().is_none_or(|before| *before < done));
                answer.encoded.push(done);
            }
            Event::Prefill { done, all } => assert!(done <= all),
            Event::Delta { choice: 0, ids, .. } => {
                assert_eq!((answer.end, &answer.error), (None, &None), "tokens after the end");
                answer.ids.extend(ids);
            }
            Event::Delta { choice, ids, .. } => answer.others.entry(choice).or_default().extend(ids),
            Event::Done { choice: 0, reason, .. } => answer.end = Some(reason),
            Event::Done { .. } => {}
            Event::Failed { error, .. } => answer.error = Some(error),
        }
    }
    Ok(())
}

async fn finish(engine: &mut Engine<'_>, answers: &mut Answers) {
    while !engine.is_idle() {
        turn(engine, answers).await.expect("a turn");
    }
}

async fn run(engine: &mut Engine<'_>, jobs: &[Job]) -> Vec<Answer> {
    let mut answers = Answers::new();
    let ids: Vec<JobId> = jobs.iter().map(|job| engine.submit(job.clone()).expect("a job")).collect();
    finish(engine, &mut answers).await;
    ids.iter().map(|id| answers[id].clone()).collect()
}

/// Waits until an image is being encoded: some of its slices are done, and not all.
async fn begin_encoding(engine: &mut Engine<'_>, answers: &mut Answers) {
    let before = engine.figures().images;
    while engine.figures().images.slices < before.slices + 3 {
        turn(engine, answers).await.expect("a turn");
    }
    assert_eq!(engine.figures().images.encoded, before.encoded);
}

/// The job of a golden turn.
fn golden_job(model: &Model, expected: &Expected, turn: usize, images: &[JobImage]) -> Job {
    let turn = &expected.json.turns[turn];
    let format = ImageFormat::new(vision(model));
    let mut next = images.iter();
    let mut prompt = Vec::new();
    for id in &turn.input_ids {
        match u32::try_from(*id) {
            Ok(id) => prompt.push(CachedPosition::Text(id)),
            Err(_) => prompt.extend(format.positions(next.next().expect("an image").digest)),
        }
    }
    assert_eq!(prompt.len(), turn.n_embeds);
    Job { images: images.to_vec(), ..Job::new(prompt, turn.greedy_ids.len()) }
}

/// Greedy ids by the reference, whatever else is computed between the slices of an encoding. Every other image is
/// resized by the engine.
#[test]
fn answers_about_images_are_those_of_the_reference() {
    for (name, deterministic, as_hardware) in
        [("two-images", false, false), ("vicuna-7b-hd", true, false), ("vicuna-7b", false, true)]
    {
        let case = case(name);
        let expected = Expected::read(&case);
        let test = TestOptions { software_adapter: as_hardware.then_some(false), ..Default::default() };
        let gpu = open_gpu_with(GpuOptions::default().with_test(test));
        pollster::block_on(async {
            let model = golden(&gpu, &case, &expected).await;
            let format = ImageFormat::new(vision(&model));
            let images = expected.json.images.iter().enumerate().map(|(index, file)| {
                let image = read(&case.join(file));
                if index == 0 { format.prepare(&image).expect("views") } else { format.unprepared(Arc::new(image)) }
            });
            let images: Vec<JobImage> = images.collect();
            let turns = expected.json.turns.len();
            let questions: Vec<Job> = (0..turns).map(|turn| golden_job(&model, &expected, turn, &images)).collect();
            let slice = Duration::from_millis(200);
            let mut engine = engine(&model, EngineOptions { deterministic, slice, ..options(4000) });
            // An answer that continues meanwhile.
            let neighbour = engine.submit(text(20, 200)).expect("a job");
            let mut answers = Answers::new();
            while answers.get(&neighbour).is_none_or(|answer| answer.ids.is_empty()) {
                turn(&mut engine, &mut answers).await.expect("a turn");
            }
            let asked: Vec<JobId> = questions.iter().map(|job| engine.submit(job.clone()).expect("a job")).collect();
            while asked.iter().any(|id| answers.get(id).is_none_or(|answer| answer.end.is_none())) {
                turn(&mut engine, &mut answers).await.expect("a turn");
            }
            for (turn, id) in asked.iter().enumerate() {
                assert_eq!(answers[id].ids, expected.json.turns[turn].greedy_ids, "{name}, turn {turn}");
                assert_eq!(answers[id].encoded.last(), Some(&(images.len() * vision(&model).stages())));
            }
            assert_eq!(engine.figures().images.encoded, images.len() as u64, "{name}: once for all turns");
            assert!(answers[&neighbour].ids.len() > 6, "{name}: it stopped");
        });
    }
}

#[test]
fn an_image_is_encoded_once_whatever_file_it_is_in() {
    let gpu = open_gpu();
    pollster::block_on(async {
        let model = pocket(&gpu).await;
        let format = ImageFormat::new(vision(&model));
        let rows = format.tokens();
        let image = cells(1);
        let png = decode("a.png", &encode_png(&image, &[]).expect("a PNG")).expect("an image");
        let bmp = decode("a.bmp", &bmp(&image)).expect("an image");
        let mut data = image.data().to_vec();
        data[1000] ^= 1;
        let changed = Image::new(image.width(), image.height(), data).expect("an image");
        let other_user = Salt(vec![1]);

        let mut engine = engine(&model, options(256));
        // [the image, the token before it, whose, images encoded, found in the cache of images, positions cached]
        let questions = [
            (&png, 20, Salt::default(), 1, 0, 0),
            // Its keys and values are in the prefix cache: nothing of the image is needed.
            (&bmp, 20, Salt::default(), 0, 0, rows + 4),
            // They are not, but its visual tokens are.
            (&bmp, 21, Salt::default(), 0, 1, 1),
            (&changed, 20, Salt::default(), 1, 0, 2),
            (&png, 20, other_user.clone(), 1, 0, 0),
            (&png, 21, other_user, 0, 1, 1),
        ];
        let mut answers = Vec::new();
        for (index, (image, before, salt, encoded, found, cached)) in questions.into_iter().enumerate() {
            let figures = engine.figures().images;
            let job = ask(&model, &format.prepare(image).expect("views"), before, 30, 6);
            answers.push(run(&mut engine, &[Job { salt, ..job }]).await.remove(0));
            let after = engine.figures().images;
            assert_eq!(
                (after.encoded - figures.encoded, after.cached - figures.cached, answers[index].cached),
                (encoded, found, cached),
                "question {index}"
            );
        }
        // The same image is the same, wherever its tokens come from.
        assert_eq!([&answers[1].ids, &answers[4].ids], [&answers[0].ids; 2]);
        assert_eq!(answers[5].ids, answers[2].ids);
        assert_eq!(engine.figures().available_blocks, engine.figures().blocks);

        // The size is a part of an image, and so is the way it is encoded.
        let (wide, tall) = ([(2, 8), (8, 2)]).map(|(width, height)| Image::new(width, height, vec![9; 48])).into();
        assert_ne!(format.digest(&wide.expect("an image")), format.digest(&tall.expect("an image")));
        assert_ne!(format.digest(&image), ImageDigest::new(&image, ""));
    });
}

/// As a BMP file: 24 bits, from the bottom up, lines of a multiple of 4 bytes.
fn bmp(image: &Image) -> Vec<u8> {
    let (width, height) = (image.width(), image.height());
    let line = (3 * width).next_multiple_of(4);
    let mut file = b"BM".to_vec();
    let size = 54 + line * height;
    for value in [size, 0, 54, 40, width, height] {
        file.extend((value as u32).to_le_bytes());
    }
    file.extend([1, 0, 24, 0]);
    for value in [0, line * height, 2835, 2835, 0, 0] {
        file.extend((value as u32).to_le_bytes());
    }
    for row in image.data().chunks_exact(3 * width).rev() {
        let start = file.len();
        file.extend(row.chunks_exact(3).flat_map(|pixel| [pixel[2], pixel[1], pixel[0]]));
        file.resize(start + line, 0);
    }
    file
}

#[test]
fn jobs_that_wait_for_one_image_share_its_encoding() {
    let gpu = open_gpu();
    pollster::block_on(async {
        let model = pocket(&gpu).await;
        let image = ImageFormat::new(vision(&model)).prepare(&cells(2)).expect("views");
        // Six questions: two of them wait for a place. Other tokens before the image, so that no prefix is cached.
        let jobs: Vec<Job> = (0..6).map(|index| ask(&model, &image, 20 + index, 30, 4)).collect();
        // One after the other: only the first encodes the image.
        let (mut single, mut alone) = (engine(&model, options(256)), Vec::new());
        for job in &jobs {
            alone.push(run(&mut single, std::slice::from_ref(job)).await.remove(0).ids);
        }
        let mut engine = engine(&model, options(256));
        let together = run(&mut engine, &jobs).await;
        let figures = engine.figures().images;
        assert_eq!((figures.encoded, figures.cached), (1, 2));
        for (index, (answer, alone)) in together.iter().zip(&alone).enumerate() {
            assert_eq!(&answer.ids, alone, "question {index}");
            // Those that wait for it hear of it.
            assert_eq!(answer.encoded.last(), (index < 4).then_some(&vision(&model).stages()), "question {index}");
        }
    });
}

#[test]
fn the_image_cache_is_limited_in_bytes() {
    let gpu = open_gpu();
    pollster::block_on(async {
        let model = pocket(&gpu).await;
        let format = ImageFormat::new(vision(&model));
        let images = [3, 4, 5].map(|seed| format.prepare(&cells(seed)).expect("views"));
        let bytes = (4 * format.tokens() * model.language().config().hidden_size) as u64;
        // Two and a half images.
        let mut engine = engine(&model, EngineOptions { image_cache: bytes * 5 / 2, ..options(256) });
        let (mut encoded, mut most) = (Vec::new(), 0);
        for (question, image) in [0, 1, 0, 2, 0, 1].into_iter().enumerate() {
            let before = engine.figures().images.encoded;
            run(&mut engine, &[ask(&model, &images[image], 20 + question as u32, 30, 2)]).await;
            encoded.push(engine.figures().images.encoded - before);
            most = most.max(engine.figures().images.cached_bytes);
        }
        // The third image evicts the second, which was used less recently than the first.
        assert_eq!(encoded, [1, 1, 0, 1, 0, 1]);
        assert_eq!((engine.figures().images.evicted, most), (2, 2 * bytes));
        // Without a cache every question encodes its image.
        let mut engine = self::engine(&model, EngineOptions { image_cache: 0, ..options(256) });
        for question in 0..2 {
            run(&mut engine, &[ask(&model, &images[0], 20 + question, 30, 2)]).await;
        }
        assert_eq!((engine.figures().images.encoded, engine.figures().images.cached_bytes), (2, 0));
    });
}

/// After each slice of an encoding there is a step of the running sequence, and after a few a slice of a short prompt.
#[test]
fn running_sequences_go_on_while_an_image_is_encoded() {
    let case = case("vicuna-7b");
    let expected = Expected::read(&case);
    let gpu = open_gpu();
    pollster::block_on(async {
        let model = golden(&gpu, &case, &expected).await;
        let image = ImageFormat::new(vision(&model)).prepare(&read(&case.join("image0.png"))).expect("views");
        let (running, short) = (text(20, 150), text(40, 3));
        let alone = run(&mut engine(&model, options(1000)), &[running.clone(), short.clone()]).await;

        let mut engine = engine(&model, options(1000));
        let mut answers = Answers::new();
        let running = engine.submit(running).expect("a job");
        while answers.get(&running).is_none_or(|answer| answer.ids.len() < 2) {
            turn(&mut engine, &mut answers).await.expect("a turn");
        }
        let before = answers[&running].ids.len();
        let asked = engine.submit(golden_job(&model, &expected, 0, &[image])).expect("a job");
        begin_encoding(&mut engine, &mut answers).await;
        let late = engine.submit(short).expect("a job");
        let slices = engine.figures().images.slices;
        while answers.get(&late).is_none_or(|answer| answer.ids.is_empty()) {
            turn(&mut engine, &mut answers).await.expect("a turn");
        }
        assert!(engine.figures().images.slices - slices <= 2, "a short prompt waited for an image");
        while engine.figures().images.encoded == 0 {
            turn(&mut engine, &mut answers).await.expect("a turn");
        }
        let (slices, tokens) = (engine.figures().images.slices, answers[&running].ids.len() - before);
        assert!(slices >= vision(&model).stages() as u64, "{slices} slices");
        assert!(tokens as u64 + 1 >= slices, "{tokens} tokens in {slices} slices");
        finish(&mut engine, &mut answers).await;
        assert_eq!(answers[&asked].ids, expected.json.turns[0].greedy_ids);
        assert_eq!([&answers[&running].ids, &answers[&late].ids], [&alone[0].ids, &alone[1].ids]);
    });
}

#[test]
fn a_cancelled_encoding_stops_unless_another_job_waits_for_it() {
    let gpu = open_gpu();
    pollster::block_on(async {
        let model = pocket(&gpu).await;
        let format = ImageFormat::new(vision(&model));
        let [first, second] = [6, 7].map(|seed| format.prepare(&cells(seed)).expect("views"));
        for parallel in [1, 4] {
            // A slice is a stage, however long that takes.
            let slice = Duration::from_secs(3600);
            let mut engine = engine(&model, EngineOptions { parallel, slice, ..options(256) });
            let mut answers = Answers::new();
            // Alone: it stops.
            let asked = engine.submit(ask(&model, &first, 20, 30, 4)).expect("a job");
            begin_encoding(&mut engine, &mut answers).await;
            let slices = engine.figures().images.slices;
            engine.cancel(asked);
            let other = engine.submit(text(40, 12)).expect("a job");
            finish(&mut engine, &mut answers).await;
            assert_eq!(
                [answers[&asked].end, answers[&other].end],
                [Some(FinishReason::Cancelled), Some(FinishReason::Length)]
            );
            let figures = engine.figures().images;
            assert_eq!((figures.encoded, figures.slices, figures.cached_bytes), (0, slices, 0));

            // Another waits, for a place too if there is but one: it continues.
            let jobs = [ask(&model, &second, 21, 30, 4), ask(&model, &second, 22, 30, 4)];
            let [asked, waiting] = jobs.map(|job| engine.submit(job).expect("a job"));
            begin_encoding(&mut engine, &mut answers).await;
            engine.cancel(asked);
            finish(&mut engine, &mut answers).await;
            assert_eq!(
                [answers[&asked].end, answers[&waiting].end],
                [Some(FinishReason::Cancelled), Some(FinishReason::Length)]
            );
            let after = engine.figures().images;
            // It did not begin again.
            assert_eq!((after.encoded, after.slices - slices), (1, vision(&model).stages() as u64));
            assert_eq!(engine.figures().available_blocks, engine.figures().blocks);
        }
    });
}

#[test]
fn images_that_do_not_fit_the_model_are_refused() {
    let gpu = open_gpu();
    pollster::block_on(async {
        let model = pocket(&gpu).await;
        let format = ImageFormat::new(vision(&model));
        let image = format.prepare(&cells(8)).expect("views");
        let job = ask(&model, &image, 20, 30, 4);
        let mut engine = engine(&model, options(256));
        let mut beyond = job.clone();
        beyond.prompt.push(CachedPosition::Visual { image: image.digest, row: format.tokens() as u32 });
        let large = mgm::image::Preprocess { size_high: 64, size_low: 32, ..Default::default() };
        let views = Arc::new(large.views(&cells(8)).expect("views"));
        let other = JobImage { data: mgm::engine::images::ImageData::Views(views), ..image };
        for (job, what) in [
            (Job { images: Vec::new(), ..job.clone() }, "no image"),
            (beyond, "too many rows"),
            (Job { images: vec![other], ..job.clone() }, "views of another model"),
        ] {
            assert!(matches!(engine.submit(job), Err(Error::InvalidArgument(_))), "{what}");
        }
        let mut blind = Engine::new(&gpu, model.language(), options(256)).expect("an engine");
        let error = blind.submit(job).expect_err("no vision").to_string();
        assert!(error.contains("no vision networks"), "{error}");
    });
}

/// Too little memory for an image ends the jobs that need it, and no others.
#[test]
fn an_image_without_memory_fails_alone() {
    let gpu = open_gpu();
    pollster::block_on(async {
        let model = pocket(&gpu).await;
        let image = ImageFormat::new(vision(&model)).prepare(&cells(9)).expect("views");
        let mut engine = engine(&model, EngineOptions { parallel: 1, ..options(256) });
        let mut answers = Answers::new();
        let asked = engine.submit(ask(&model, &image, 20, 30, 4)).expect("a job");
        let waiting = engine.submit(text(20, 6)).expect("a job");
        while answers.get(&asked).is_none_or(|answer| answer.error.is_none()) {
            gpu.set_full_after(Some(0));
            turn(&mut engine, &mut answers).await.expect("a turn");
            gpu.set_full_after(None);
        }
        assert!(matches!(answers[&asked].error, Some(Error::OutOfMemory { .. })), "{:?}", answers[&asked]);
        let again = engine.submit(ask(&model, &image, 20, 30, 4)).expect("a job");
        finish(&mut engine, &mut answers).await;
        assert_eq!([answers[&waiting].ids.len(), answers[&again].ids.len()], [6, 4]);
        assert_eq!(engine.figures().available_blocks, engine.figures().blocks);
    });
}

/// Four streams, and jobs that wait; one asks about an image that is being encoded, another draws. The device is lost
/// twice, in the encoding and in the answers.
#[test]
fn a_lost_device_loses_no_token_of_any_stream() {
    pollster::block_on(async {
        let image = |model: &Model| ImageFormat::new(vision(model)).prepare(&cells(10)).expect("views");
        let jobs = |model: &Model| {
            let drawn = Sampling::GREEDY.with_temperature(0.9).with_top_k(50);
            let mut jobs: Vec<Job> = (0..6).map(|index| text(20 + 10 * index, 20 + index as usize)).collect();
            jobs.insert(1, ask(model, &image(model), 20, 30, 16));
            jobs[2].options = jobs[2].options.clone().with_sampling(drawn).with_seed(7);
            jobs[3].options = jobs[3].options.clone().with_sampling(drawn).with_seed(8).with_n(2);
            jobs
        };
        let undisturbed = {
            let gpu = open_gpu();
            let model = pocket(&gpu).await;
            run(&mut engine(&model, options(256)), &jobs(&model)).await
        };

        let mut answers = Answers::new();
        let mut unfinished = None;
        let mut ids = Vec::new();
        for loss in 0..3 {
            let gpu = open_gpu();
            let model = pocket(&gpu).await;
            let mut engine = engine(&model, options(256));
            match unfinished.take() {
                None => ids = jobs(&model).into_iter().map(|job| engine.submit(job).expect("a job")).collect(),
                Some(unfinished) => {
                    engine.take_over(unfinished).expect("a new engine");
                    assert!(engine.submit(text(20, 4)).is_ok(), "later jobs have later ids");
                }
            }
            let tokens = |answers: &Answers| answers.values().map(|answer| answer.ids.len()).sum::<usize>();
            let before = tokens(&answers);
            let error = loop {
                let is_time = match loss {
                    0 => engine.figures().images.slices == 3,
                    1 => tokens(&answers) >= before + 40,
                    _ => false,
                };
                if is_time {
                    gpu.destroy();
                }
                match turn(&mut engine, &mut answers).await {
                    Ok(()) if engine.is_idle() => break None,
                    Ok(()) => {}
                    Err(error) => break Some(error),
                }
            };
            assert_eq!(matches!(error, Some(Error::DeviceLost(_))), loss < 2, "{error:?}");
            if loss < 2 {
                let jobs = engine.into_unfinished();
                let begun = jobs.answers().filter(|(.., begun)| !begun.is_empty()).count();
                assert!(begun >= 2, "{begun} answers were begun");
                unfinished = Some(jobs);
            }
        }
        for (index, (id, expected)) in ids.iter().zip(&undisturbed).enumerate() {
            assert_eq!((&answers[id].ids, answers[id].end), (&expected.ids, expected.end), "job {index}");
            assert_eq!(answers[id].others, expected.others, "job {index}");
        }
    });
}

/// A smaller cache on the next device refuses what does not fit, and computes the rest.
#[test]
fn jobs_that_do_not_fit_the_next_engine_fail() {
    let gpu = open_gpu();
    pollster::block_on(async {
        let model = pocket(&gpu).await;
        let mut first = engine(&model, options(256));
        let [long, short] = [text(20, 100), text(20, 8)].map(|job| first.submit(job).expect("a job"));
        let mut second = engine(&model, options(64));
        second.take_over(first.into_unfinished()).expect("a new engine");
        let mut answers = Answers::new();
        finish(&mut second, &mut answers).await;
        turn(&mut second, &mut answers).await.expect("a turn");
        assert!(matches!(answers[&long].error, Some(Error::InvalidArgument(_))));
        assert_eq!(answers[&short].ids.len(), 8);
        let mut third = engine(&model, options(256));
        third.submit(text(20, 4)).expect("a job");
        assert!(third.take_over(second.into_unfinished()).is_err());
    });
}
