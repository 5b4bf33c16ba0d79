//! Many sequences at once, on Pocket: the answers are those of each alone, whatever else is in a step.

use std::collections::HashMap;
use std::time::Duration;

use mgm::Image;
use mgm::engine::digest::{CachedPosition, ImageDigest, Salt};
use mgm::engine::{End, Engine, EngineOptions, Event, Job, JobId};
use mgm::gpu::Gpu;
use mgm::language::{LanguageModel, Position, TokenGenerator};
use mgm::ops::{Sampling, cases::Random};
use mgm::session::Model;
use mgm::tensor::Tensor;

use crate::common::open_gpu;

fn with_pocket(test: impl AsyncFnOnce(&Gpu, &LanguageModel)) {
    let gpu = open_gpu();
    pollster::block_on(async {
        let model = Model::from_path(&gpu, "models/pocket").await.expect("the bundled model");
        test(&gpu, model.language()).await;
    });
}

/// Few positions, so that sequences compete for blocks; small slices.
fn options(capacity: usize, deterministic: bool) -> EngineOptions {
    EngineOptions { parallel: 8, context: 256, capacity, slice: Duration::from_millis(5), deterministic }
}

/// Prompts of 3 to 120 tokens, some of which begin as others do, and answers of 1 to 40.
fn jobs(count: usize, vocab: usize) -> Vec<Job> {
    let mut random = Random::new("jobs");
    let prefixes: Vec<Vec<CachedPosition>> =
        [90, 33].iter().map(|length| (0..*length).map(|_| token(&mut random, vocab)).collect()).collect();
    let job = |index: usize| {
        let mut prompt = if index.is_multiple_of(3) { prefixes[index % 2].clone() } else { Vec::new() };
        let suffix = 3 + random.below(28);
        prompt.extend((0..suffix).map(|_| token(&mut random, vocab)));
        Job { user: index as u64 % 3, seed: index as u64, ..Job::new(prompt, 1 + random.below(40)) }
    };
    (0..count).map(job).collect()
}

fn token(random: &mut Random, vocab: usize) -> CachedPosition {
    CachedPosition::Text(3 + random.below(vocab - 3) as u32)
}

#[derive(Debug, Default, Clone)]
struct Answer {
    ids: Vec<u32>,
    cached: usize,
    end: Option<End>,
}

/// One turn.
async fn turn(engine: &mut Engine<'_>, answers: &mut HashMap<JobId, Answer>) {
    for (id, event) in engine.turn().await.expect("a turn") {
        let answer = answers.entry(id).or_default();
        assert_eq!(answer.end, None, "an event after the end");
        match event {
            Event::Started { cached } => answer.cached = cached,
            Event::Prefill { done, all } => assert!(done <= all),
            Event::Token(id) => answer.ids.push(id),
            Event::Done(end) => answer.end = Some(end),
        }
    }
}

async fn run(engine: &mut Engine<'_>, jobs: &[Job]) -> Vec<Answer> {
    let mut answers = HashMap::new();
    let ids: Vec<JobId> = jobs.iter().map(|job| engine.submit(job.clone()).expect("a job")).collect();
    while !engine.is_idle() {
        turn(engine, &mut answers).await;
    }
    ids.iter().map(|id| answers[id].clone()).collect()
}

fn ids(answers: &[Answer]) -> Vec<&[u32]> {
    answers.iter().map(|answer| answer.ids.as_slice()).collect()
}

/// The likeliest tokens, by the path of a single conversation.
async fn alone(gpu: &Gpu, language: &LanguageModel, job: &Job) -> Vec<u32> {
    let mut cache = language.cache();
    let mut recorder = gpu.record();
    let x = language.embed(&mut recorder, &positions(&job.prompt), &[]).expect("embeddings");
    let x = language.forward(&mut recorder, &x, &mut cache).expect("a pass");
    let end = Tensor::zeros(gpu, &[1, x.columns()], "end").expect("a tensor");
    x.slice_rows(x.rows() - 1..x.rows()).copy_to(&mut recorder, &end, 0);
    recorder.submit().expect("a submission");
    let mut generator = TokenGenerator::new(language, gpu, &mut cache, end, job.max_new, Sampling::GREEDY, || 0.0)
        .expect("a generator");
    let mut ids = Vec::new();
    while let Some(id) = generator.next().await.expect("a token") {
        ids.push(id);
    }
    ids
}

fn positions(prompt: &[CachedPosition]) -> Vec<Position> {
    let text = |position: &CachedPosition| match position {
        CachedPosition::Text(id) => Position::Text(*id),
        CachedPosition::Visual { .. } => panic!("a prompt of text"),
    };
    prompt.iter().map(text).collect()
}

/// The difference of the two largest logits after a prompt and tokens.
async fn margin(gpu: &Gpu, language: &LanguageModel, prompt: &[CachedPosition], ids: &[u32]) -> f32 {
    let mut all = positions(prompt);
    all.extend(ids.iter().map(|id| Position::Text(*id)));
    let mut recorder = gpu.record();
    let x = language.embed(&mut recorder, &all, &[]).expect("embeddings");
    let x = language.forward(&mut recorder, &x, &mut language.cache()).expect("a pass");
    let logits = language.logits(&mut recorder, &x.slice_rows(x.rows() - 1..x.rows()));
    let read = logits.expect("logits").read_back(&mut recorder);
    recorder.submit().expect("a submission");
    let mut logits: Vec<f32> = read.values().await.expect("logits");
    logits.sort_by(f32::total_cmp);
    logits[logits.len() - 1] - logits[logits.len() - 2]
}

/// Jobs come at random times.
async fn join_at_random(engine: &mut Engine<'_>, jobs: &[Job], seed: &str) -> Vec<Answer> {
    let mut random = Random::new(seed);
    let mut answers = HashMap::new();
    let mut ids = vec![None; jobs.len()];
    while ids.contains(&None) || !engine.is_idle() {
        for (id, job) in ids.iter_mut().zip(jobs) {
            if id.is_none() && random.below(12) == 0 {
                *id = Some(engine.submit(job.clone()).expect("a job"));
            }
        }
        turn(engine, &mut answers).await;
    }
    ids.iter().map(|id| answers[&id.expect("submitted")].clone()).collect()
}

#[test]
fn answers_are_those_of_each_alone_but_for_near_ties() {
    with_pocket(async |gpu, language| {
        let jobs = jobs(16, language.config().vocab_size);
        let mut expected = Vec::new();
        for job in &jobs {
            expected.push(alone(gpu, language, job).await);
        }
        for round in 0..2 {
            let mut engine = Engine::new(gpu, language, options(1024, false)).expect("an engine");
            let answers = join_at_random(&mut engine, &jobs, &format!("round {round}")).await;
            let mut ties = 0;
            for (index, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
                assert_eq!((answer.end, answer.ids.len()), (Some(End::Length), expected.len()), "job {index}");
                let differs = answer.ids.iter().zip(expected).position(|(a, b)| a != b);
                if let Some(at) = differs {
                    let margin = margin(gpu, language, &jobs[index].prompt, &expected[..at]).await;
                    assert!(margin < 0.02, "job {index} differs at {at}, where the best logits are {margin} apart");
                    ties += 1;
                }
            }
            assert!(ties <= 4, "{ties} of 16 answers differ");
        }
    });
}

/// Bit for bit: alone, in batches, in slices, from the cache and after preemptions, greedy and drawn.
#[test]
fn deterministic_answers_depend_on_nothing_else() {
    with_pocket(async |gpu, language| {
        let mut jobs = jobs(16, language.config().vocab_size);
        for job in jobs.iter_mut().step_by(4) {
            job.sampling = Sampling::GREEDY.with_temperature(0.8).with_top_k(40);
        }
        let mut expected = Vec::new();
        for job in &jobs {
            let mut engine = Engine::new(gpu, language, options(1024, true)).expect("an engine");
            expected.push(run(&mut engine, std::slice::from_ref(job)).await.remove(0).ids);
        }
        let mut preempted = 0;
        for (round, capacity) in [2048, 256].into_iter().enumerate() {
            let mut engine = Engine::new(gpu, language, options(capacity, true)).expect("an engine");
            let answers = join_at_random(&mut engine, &jobs, &format!("round {round}")).await;
            assert_eq!(ids(&answers), expected, "{capacity} rows");
            preempted += engine.figures().preempted;
            if capacity == 2048 {
                let again = run(&mut engine, &jobs).await;
                assert_eq!(ids(&again), expected, "from the cache");
                for (answer, job) in again.iter().zip(&jobs) {
                    assert_eq!(answer.cached, job.prompt.len() - 1);
                }
            }
            let figures = engine.figures();
            assert_eq!((figures.running, figures.available_blocks), (0, figures.blocks));
        }
        assert!(preempted > 0, "nothing was preempted");
    });
}

/// Visual tokens are found by their image's digest, and by nothing else.
#[test]
fn a_second_question_about_an_image_starts_after_it() {
    with_pocket(async |gpu, language| {
        let width = language.config().hidden_size;
        let image = |colour: u8| {
            let pixels = Image::new(1, 1, vec![colour; 3]).expect("an image");
            let tokens = Random::new(&format!("image {colour}")).values(40 * width, 1.0);
            (ImageDigest::new(&pixels, "test"), Tensor::new(gpu, &[40, width], &tokens, "tokens").expect("a tensor"))
        };
        let ask = |(digest, tokens): (ImageDigest, Tensor), question: u32, salt: u8| {
            let mut prompt = vec![CachedPosition::Text(1)];
            prompt.extend((0..40).map(|row| CachedPosition::Visual { image: digest, row }));
            prompt.extend([5, question, 7].map(CachedPosition::Text));
            Job { images: vec![(digest, tokens)], salt: Salt(vec![salt]), ..Job::new(prompt, 6) }
        };
        let mut engine = Engine::new(gpu, language, options(1024, true)).expect("an engine");
        let questions = [(1, 20, 0), (1, 21, 0), (2, 20, 0), (1, 20, 9), (1, 20, 0)];
        let mut answers = Vec::new();
        for (colour, question, salt) in questions {
            answers.push(run(&mut engine, &[ask(image(colour), question, salt)]).await.remove(0));
        }
        let cached: Vec<usize> = answers.iter().map(|answer| answer.cached).collect();
        assert_eq!(cached, [0, 42, 1, 0, 43], "another image, another user");
        assert_eq!((&answers[3].ids, &answers[4].ids), (&answers[0].ids, &answers[0].ids));
        assert_ne!(answers[2].ids, answers[0].ids);
        // An image that is not there is an error at once.
        let missing = Job { images: Vec::new(), ..ask(image(1), 20, 0) };
        assert!(engine.submit(missing).is_err());
    });
}

#[test]
fn a_cancelled_sequence_leaves_at_the_next_turn_and_others_go_on() {
    with_pocket(async |gpu, language| {
        let vocab = language.config().vocab_size;
        let mut jobs = jobs(4, vocab);
        for job in &mut jobs {
            job.max_new = 30;
        }
        let mut engine = Engine::new(gpu, language, options(1024, true)).expect("an engine");
        let expected = run(&mut engine, &jobs).await;
        let submitted: Vec<JobId> = jobs.iter().map(|job| engine.submit(job.clone()).expect("a job")).collect();
        let mut answers = HashMap::new();
        while answers.get(&submitted[1]).is_none_or(|answer: &Answer| answer.ids.len() < 5) {
            turn(&mut engine, &mut answers).await;
        }
        engine.cancel(submitted[1]);
        // One that waits.
        let waiting = engine.submit(jobs[0].clone()).expect("a job");
        engine.cancel(waiting);
        turn(&mut engine, &mut answers).await;
        assert_eq!(answers[&submitted[1]].end, Some(End::Cancelled));
        assert_eq!(answers[&waiting].end, Some(End::Cancelled));
        while !engine.is_idle() {
            turn(&mut engine, &mut answers).await;
        }
        for index in [0, 2, 3] {
            assert_eq!(answers[&submitted[index]].ids, expected[index].ids, "job {index}");
        }
        assert_eq!(engine.figures().available_blocks, engine.figures().blocks);
    });
}

#[test]
fn jobs_that_can_never_run_are_refused() {
    with_pocket(async |gpu, language| {
        let mut engine = Engine::new(gpu, language, options(256, false)).expect("an engine");
        let text = |ids: &[u32]| ids.iter().map(|id| CachedPosition::Text(*id)).collect::<Vec<_>>();
        for (prompt, max_new) in [(text(&[]), 5), (text(&[1]), 0), (text(&[1; 250]), 7), (text(&[1, 1397]), 5)] {
            assert!(engine.submit(Job::new(prompt.clone(), max_new)).is_err(), "{} and {max_new}", prompt.len());
        }
        assert!(engine.submit(Job::new(text(&[1; 250]), 6)).is_ok());
        for (parallel, context, capacity) in [(0, 16, 16), (17, 16, 16), (1, 1, 16), (1, 32, 16)] {
            let options = EngineOptions { parallel, context, capacity, ..options(256, false) };
            assert!(Engine::new(gpu, language, options).is_err(), "{options:?}");
        }
    });
}

/// Six dispatches a layer with eight sequences, two of them for attention. Memory, blocks and device objects stay the
/// same over many short requests.
#[test]
fn steps_have_few_dispatches_and_short_requests_leave_nothing_behind() {
    with_pocket(async |gpu, language| {
        let vocab = language.config().vocab_size;
        let mut engine = Engine::new(gpu, language, options(1024, false)).expect("an engine");
        let mut random = Random::new("short requests");
        let mut answers = HashMap::new();
        for _ in 0..8 {
            engine.submit(Job::new((0..9).map(|_| token(&mut random, vocab)).collect(), 24)).expect("a job");
        }
        let mut counted = 0;
        while !engine.is_idle() {
            let (before, figures) = (gpu.dispatch_count(), engine.figures());
            turn(&mut engine, &mut answers).await;
            let after = engine.figures();
            if after.rows - figures.rows == 8 && after.slices == figures.slices {
                let dispatches = gpu.dispatch_count() - before;
                let layers = language.config().num_layers as u64;
                assert!(dispatches <= 6 * layers + 4, "{dispatches} dispatches of {layers} layers");
                counted += 1;
            }
        }
        assert!(counted > 5, "{counted} steps of eight rows");
        let mut objects = None;
        for index in 0..240 {
            let length = 1 + random.below(12);
            let id = engine.submit(Job::new((0..length).map(|_| token(&mut random, vocab)).collect(), 1 + index % 3));
            if index % 5 == 4 {
                turn(&mut engine, &mut answers).await;
                engine.cancel(id.expect("a job"));
            }
            if index % 8 == 7 {
                while !engine.is_idle() {
                    turn(&mut engine, &mut answers).await;
                }
                answers.clear();
            }
            // After some, every row count has been seen.
            if index == 119 {
                objects = Some((gpu.objects_made(), gpu.memory().allocated));
            }
        }
        while !engine.is_idle() {
            turn(&mut engine, &mut answers).await;
        }
        assert_eq!(Some((gpu.objects_made(), gpu.memory().allocated)), objects);
        assert_eq!(engine.figures().available_blocks, engine.figures().blocks);
    });
}

/// A user with many jobs does not keep another waiting.
#[test]
fn users_share_the_device() {
    with_pocket(async |gpu, language| {
        let vocab = language.config().vocab_size;
        let options = EngineOptions { parallel: 2, ..options(512, false) };
        let mut engine = Engine::new(gpu, language, options).expect("an engine");
        let mut random = Random::new("users");
        let mut job = |user| Job { user, ..Job::new((0..30).map(|_| token(&mut random, vocab)).collect(), 20) };
        let first: Vec<JobId> = (0..12).map(|_| engine.submit(job(1)).expect("a job")).collect();
        let mut answers = HashMap::new();
        turn(&mut engine, &mut answers).await;
        let second = engine.submit(job(2)).expect("a job");
        while answers.get(&second).is_none_or(|answer: &Answer| answer.ids.is_empty()) {
            turn(&mut engine, &mut answers).await;
        }
        let begun = first.iter().filter(|id| answers.contains_key(id)).count();
        assert!(begun <= 4, "{begun} jobs of the first user began before the second's first token");
    });
}
