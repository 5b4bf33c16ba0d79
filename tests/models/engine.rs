//! Many sequences at once, on Pocket: the answers are those of each alone, whatever else is in a step.

use std::collections::HashMap;
use std::time::Duration;

use mgm::engine::digest::{CachedPosition, Salt};
use mgm::engine::{
    AnswerOptions, Constraint, Engine, EngineOptions, Event, Figures, FinishReason, Job, JobId, StopReason,
    TokenLogprobs,
};
use mgm::gpu::Gpu;
use mgm::language::{LanguageModel, Position, TokenGenerator};
use mgm::ops::{Sampling, cases::Random};
use mgm::session::Model;
use mgm::tensor::Tensor;
use mgm::text::PromptToken;
use mgm::text::conversation::Conversation;

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
    EngineOptions {
        parallel: 8,
        context: 256,
        capacity,
        slice: Duration::from_millis(5),
        image_cache: 0,
        prompt_lookup: 7,
        deterministic,
    }
}

/// Prompts of 3 to 120 tokens, some of which begin as others do, and answers of 1 to 40.
pub fn jobs(count: usize, vocab: usize) -> Vec<Job> {
    let mut random = Random::new("jobs");
    let prefixes: Vec<Vec<CachedPosition>> =
        [90, 33].iter().map(|length| (0..*length).map(|_| token(&mut random, vocab)).collect()).collect();
    let job = |index: usize| {
        let mut prompt = if index.is_multiple_of(3) { prefixes[index % 2].clone() } else { Vec::new() };
        let suffix = 3 + random.below(28);
        prompt.extend((0..suffix).map(|_| token(&mut random, vocab)));
        let options = AnswerOptions::default().with_max_new_tokens(1 + random.below(40)).with_seed(index as u64);
        Job { user: index as u64 % 3, options, ..Job::new(prompt, 1) }
    };
    (0..count).map(job).collect()
}

fn token(random: &mut Random, vocab: usize) -> CachedPosition {
    CachedPosition::Text(3 + random.below(vocab - 3) as u32)
}

#[derive(Debug, Default, Clone)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    logprobs: Vec<TokenLogprobs>,
    cached: usize,
    end: Option<FinishReason>,
    stop_reason: Option<StopReason>,
    error: Option<mgm::Error>,
    /// The other answers to the job.
    others: Vec<Answer>,
}

impl Answer {
    fn choice(&mut self, choice: usize) -> &mut Self {
        if choice == 0 {
            return self;
        }
        self.others.resize(self.others.len().max(choice), Self::default());
        &mut self.others[choice - 1]
    }

    /// Tokens and log-probabilities of all answers to the job.
    fn outputs(&self) -> Vec<(Vec<u32>, Vec<TokenLogprobs>)> {
        [self].into_iter().chain(&self.others).map(|answer| (answer.ids.clone(), answer.logprobs.clone())).collect()
    }
}

/// One turn.
async fn turn(engine: &mut Engine<'_>, answers: &mut HashMap<JobId, Answer>) {
    for (id, event) in engine.turn().await.expect("a turn") {
        let answer = answers.entry(id).or_default();
        match event {
            Event::Started { cached } => answer.cached = cached,
            Event::Encoding { .. } => panic!("an image in {event:?}"),
            Event::Prefill { done, all } => assert!(done <= all),
            Event::Delta { choice, ids, text, logprobs } => {
                let answer = answer.choice(choice);
                assert_eq!(answer.end, None, "an event after the end");
                answer.ids.extend(ids);
                answer.text.push_str(&text);
                answer.logprobs.extend(logprobs);
            }
            Event::Done { choice, reason, stop_reason, usage, .. } => {
                let answer = answer.choice(choice);
                assert_eq!((answer.end, usage.generated), (None, answer.ids.len()));
                (answer.end, answer.stop_reason, answer.cached) = (Some(reason), stop_reason, usage.cached);
            }
            Event::Failed { choice, error } => answer.choice(choice).error = Some(error),
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

fn outputs(answers: &[Answer]) -> Vec<Vec<(Vec<u32>, Vec<TokenLogprobs>)>> {
    answers.iter().map(Answer::outputs).collect()
}

/// Gives every job other controls.
pub fn with_controls(mut jobs: Vec<Job>) -> Vec<Job> {
    for (index, job) in jobs.iter_mut().enumerate() {
        let CachedPosition::Text(token) = job.prompt[0] else { continue };
        let options = std::mem::take(&mut job.options);
        let max_new = options.max_new_tokens;
        let (base, warm) = (options.sampling, options.sampling.with_temperature(0.8));
        job.options = match index % 8 {
            0 => options,
            1 => options.with_sampling(warm.with_top_k(40)).with_top_logprobs(Some(2)),
            2 => options.with_sampling(base.with_repetition_penalty(1.3)).with_top_logprobs(Some(0)),
            3 => options.with_sampling(warm.with_presence_penalty(0.9).with_frequency_penalty(0.7)),
            4 => options.with_sampling(warm.with_top_p(0.9)).with_n(3).with_top_logprobs(Some(20)),
            5 => options
                .with_logit_bias(vec![(token, 3.0), (token - 1, -100.0)])
                .with_min_tokens(max_new / 2)
                .with_stop_token_ids((3..300).collect()),
            6 => options.with_sampling(warm.with_min_p(0.05).with_repetition_penalty(1.2)).with_n(2),
            _ => options.with_sampling(base.with_frequency_penalty(-0.5)).with_top_logprobs(Some(5)),
        };
    }
    jobs
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
    let mut generator =
        TokenGenerator::new(language, gpu, &mut cache, end, job.options.max_new_tokens, Sampling::GREEDY, || 0.0)
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

/// In any batch the likeliest answers are those of a conversation, but for near ties.
pub async fn check_near_ties(gpu: &Gpu, language: &LanguageModel, jobs: &[Job], rounds: usize) {
    let mut expected = Vec::new();
    for job in jobs {
        expected.push(alone(gpu, language, job).await);
    }
    for round in 0..rounds {
        let mut engine = Engine::new(gpu, language, options(1024, false)).expect("an engine");
        let answers = join_at_random(&mut engine, jobs, &format!("round {round}")).await;
        let mut ties = 0;
        for (index, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
            assert_eq!((answer.end, answer.ids.len()), (Some(FinishReason::Length), expected.len()), "job {index}");
            let differs = answer.ids.iter().zip(expected).position(|(a, b)| a != b);
            if let Some(at) = differs {
                let margin = margin(gpu, language, &jobs[index].prompt, &expected[..at]).await;
                assert!(margin < 0.02, "job {index} differs at {at}, where the best logits are {margin} apart");
                ties += 1;
            }
        }
        assert!(ties <= jobs.len() / 4, "{ties} of {} answers differ", jobs.len());
    }
}

/// Bit for bit, tokens and log-probabilities: alone, in batches, in slices, from the cache and after preemptions.
pub async fn check_deterministic(gpu: &Gpu, language: &LanguageModel, jobs: &[Job], rounds: usize) {
    let mut expected = Vec::new();
    for job in jobs {
        let mut engine = Engine::new(gpu, language, options(1024, true)).expect("an engine");
        expected.push(run(&mut engine, std::slice::from_ref(job)).await.remove(0).outputs());
    }
    for (job, expected) in jobs.iter().zip(&expected) {
        assert_eq!(expected.len(), job.options.n);
        for (ids, logprobs) in expected {
            let wanted = job.options.top_logprobs.map_or(0, |_| ids.len());
            assert_eq!(logprobs.len(), wanted);
            assert!(logprobs.iter().all(|token| Some(token.top.len()) == job.options.top_logprobs));
            assert!(ids.len() >= job.options.min_tokens);
        }
    }
    let mut preempted = 0;
    // With room for all, and for few.
    for (round, capacity) in [2048, 256].into_iter().cycle().take(rounds).enumerate() {
        let mut engine = Engine::new(gpu, language, options(capacity, true)).expect("an engine");
        let answers = join_at_random(&mut engine, jobs, &format!("round {round}")).await;
        assert_eq!(outputs(&answers), expected, "{capacity} rows");
        preempted += engine.figures().preempted;
        if round == 0 {
            let again = run(&mut engine, jobs).await;
            assert_eq!(outputs(&again), expected, "from the cache");
            for (answer, job) in again.iter().zip(jobs) {
                assert_eq!(answer.cached, job.prompt.len() - 1);
            }
        }
        let figures = engine.figures();
        assert_eq!((figures.running, figures.available_blocks), (0, figures.blocks));
    }
    assert!(preempted > 0, "nothing was preempted");
}

#[test]
fn answers_are_those_of_each_alone_but_for_near_ties() {
    with_pocket(async |gpu, language| {
        check_near_ties(gpu, language, &jobs(16, language.config().vocab_size), 2).await;
    });
}

#[test]
fn deterministic_answers_depend_on_nothing_else() {
    with_pocket(async |gpu, language| {
        check_deterministic(gpu, language, &with_controls(jobs(16, language.config().vocab_size)), 2).await;
    });
}

#[test]
#[ignore = "takes many minutes: `cargo test --release --test models engine:: -- --ignored`"]
fn answers_of_200_rounds() {
    with_pocket(async |gpu, language| {
        let jobs = jobs(16, language.config().vocab_size);
        check_near_ties(gpu, language, &jobs, 200).await;
        check_deterministic(gpu, language, &with_controls(jobs), 200).await;
    });
}

/// The logits after a prompt and after each of the tokens that follow, by one plain pass: [ids, vocab].
async fn logits_after(gpu: &Gpu, language: &LanguageModel, prompt: &[CachedPosition], ids: &[u32]) -> Vec<Vec<f64>> {
    let mut all = positions(prompt);
    all.extend(ids[..ids.len() - 1].iter().map(|id| Position::Text(*id)));
    let mut recorder = gpu.record();
    let x = language.embed(&mut recorder, &all, &[]).expect("embeddings");
    let x = language.forward(&mut recorder, &x, &mut language.cache()).expect("a pass");
    let rows = Tensor::zeros(gpu, &[ids.len(), x.columns()], "positions").expect("a tensor");
    x.slice_rows(x.rows() - ids.len()..x.rows()).copy_to(&mut recorder, &rows, 0);
    let read = language.logits(&mut recorder, &rows).expect("logits").read_back(&mut recorder);
    recorder.submit().expect("a submission");
    let logits: Vec<f32> = read.values().await.expect("logits");
    logits.chunks(logits.len() / ids.len()).map(|row| row.iter().copied().map(f64::from).collect()).collect()
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::MIN, f64::max);
    let total = logits.iter().map(|logit| (logit - largest).exp()).sum::<f64>().ln() + largest;
    logits.iter().map(|logit| logit - total).collect()
}

/// Logits after bias and penalties, as transformers defines them.
fn adjusted(logits: &[f64], job: &Job, answer: &[u32]) -> Vec<f64> {
    let mut logits = logits.to_vec();
    for (id, bias) in &job.options.logit_bias {
        logits[*id as usize] += if *bias <= -100.0 { f64::NEG_INFINITY } else { f64::from(*bias) };
    }
    let sampling = job.options.sampling;
    for (id, logit) in logits.iter_mut().enumerate() {
        let count = answer.iter().filter(|other| **other as usize == id).count() as f64;
        if count > 0.0 || job.prompt.contains(&CachedPosition::Text(id as u32)) {
            let repetition = f64::from(sampling.repetition_penalty);
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        }
        if count > 0.0 {
            *logit -= f64::from(sampling.frequency_penalty) * count + f64::from(sampling.presence_penalty);
        }
    }
    logits
}

/// Greedy rows of one batch, each with other controls: every token is the best of the adjusted logits, and
/// log-probabilities are those of the logits before, in f64 from a plain pass.
#[test]
fn controls_of_each_row_are_those_of_plain_logits() {
    with_pocket(async |gpu, language| {
        let base = Sampling::GREEDY;
        let samplings = [
            base,
            base.with_repetition_penalty(1.5),
            base.with_presence_penalty(1.5),
            base.with_frequency_penalty(0.8),
            base.with_repetition_penalty(1.2).with_presence_penalty(-0.5).with_frequency_penalty(1.0),
            base,
            base.with_repetition_penalty(0.7),
        ];
        let mut jobs = jobs(samplings.len(), language.config().vocab_size);
        for (index, (job, sampling)) in jobs.iter_mut().zip(samplings).enumerate() {
            let bias = (0..40).map(|id| (7 * id + 3, [4.0, -100.0, -2.5][id as usize % 3])).collect();
            let options = std::mem::take(&mut job.options).with_max_new_tokens(24).with_sampling(sampling);
            let options = options.with_top_logprobs((index != 3).then_some(3 * index));
            job.options = if index >= 4 { options.with_logit_bias(bias) } else { options };
        }
        let mut engine = Engine::new(gpu, language, options(2048, false)).expect("an engine");
        let answers = run(&mut engine, &jobs).await;
        let (mut changed, mut worst) = (0, 0.0f64);
        for (index, (job, answer)) in jobs.iter().zip(&answers).enumerate() {
            let rows = logits_after(gpu, language, &job.prompt, &answer.ids).await;
            let best = |logits: &[f64]| logits.iter().copied().fold(f64::MIN, f64::max);
            for (at, logits) in rows.iter().enumerate() {
                let id = answer.ids[at] as usize;
                let expected = adjusted(logits, job, &answer.ids[..at]);
                let difference = best(&expected) - expected[id];
                assert!(difference < 0.02, "job {index}: token {at} is {difference} below the best");
                changed += usize::from(best(logits) - logits[id] > 0.02);
                let Some(top) = job.options.top_logprobs else { continue };
                let (token, expected) = (&answer.logprobs[at], log_softmax(logits));
                assert_eq!((token.chosen.id as usize, token.top.len()), (id, top));
                for other in token.top.iter().chain([&token.chosen]) {
                    worst = worst.max((f64::from(other.logprob) - expected[other.id as usize]).abs());
                }
                // The best, in order: none of the rest is better than the last of them.
                assert!(token.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
                let last = token.top.last().map_or(f64::MAX, |last| expected[last.id as usize]);
                let better = (0..expected.len() as u32)
                    .filter(|id| expected[*id as usize] > last + 0.02 && token.top.iter().all(|top| top.id != *id));
                assert_eq!(better.count(), 0, "job {index}: tokens better than the best of token {at}");
            }
        }
        assert!(changed > 20, "{changed} tokens differ from the likeliest");
        assert!(worst < 0.02, "a log-probability differs by {worst}");
    });
}

/// Answers of one job share the blocks of its prompt, and each is what its own random numbers make it.
#[test]
fn several_answers_share_the_prompt() {
    with_pocket(async |gpu, language| {
        let mut random = Random::new("choices");
        let prompt: Vec<_> = (0..40).map(|_| token(&mut random, language.config().vocab_size)).collect();
        let sampling = Sampling::GREEDY.with_temperature(1.0).with_frequency_penalty(0.5);
        let job = Job::new(prompt, 5);
        let options_of = |seed: u64| job.options.clone().with_sampling(sampling).with_seed(seed);
        let several = Job { options: options_of(7).with_n(6), ..job.clone() };
        let mut engine = Engine::new(gpu, language, options(1024, true)).expect("an engine");
        let id = engine.submit(several.clone()).expect("a job");
        let (mut answers, mut used) = (HashMap::new(), 0);
        while !engine.is_idle() {
            turn(&mut engine, &mut answers).await;
            used = used.max(engine.figures().blocks - engine.figures().available_blocks);
        }
        // Two full blocks, and one for each answer.
        assert_eq!((used, engine.figures().prefilled), (2 + 6, 40));
        let outputs = answers[&id].outputs();
        assert_eq!(outputs.len(), 6);
        assert!(outputs.iter().any(|output| *output != outputs[0]), "all answers are the same");
        // A choice's sequence of numbers is that of another seed.
        let alone =
            |choice: u64| Job { options: options_of(7 ^ choice.wrapping_mul(0xaef1_7502_b3bf_5a6d)), ..job.clone() };
        let alone: Vec<Job> = (0..6).map(alone).collect();
        let alone: Vec<_> = run(&mut engine, &alone).await.iter().flat_map(Answer::outputs).collect();
        assert_eq!(outputs, alone);
        // Interrupted answers continue with the same tokens; one that was complete ends at once.
        let resume = outputs.iter().enumerate().map(|(choice, (ids, _))| ids[..choice].to_vec()).collect();
        let resumed = Job { options: options_of(7).with_n(6).with_resume_from(resume), ..job.clone() };
        let mut answers = HashMap::new();
        let id = engine.submit(resumed).expect("a job");
        while !engine.is_idle() {
            for (_, event) in engine.turn().await.expect("a turn") {
                if let Event::Delta { choice, ids, .. } = event {
                    answers.entry((id, choice)).or_insert_with(Vec::new).extend(ids);
                }
            }
        }
        for (choice, (ids, _)) in outputs.iter().enumerate() {
            let rest = answers.get(&(id, choice)).map_or(&[] as &[u32], Vec::as_slice);
            assert_eq!(rest, &ids[choice..], "choice {choice}");
        }
        assert!(engine.submit(Job { options: options_of(7).with_n(9), ..job.clone() }).is_err());
        let stop = job.options.clone().with_stop(vec!["x".to_owned()]);
        assert!(engine.submit(Job { options: stop, ..job.clone() }).is_err(), "stop strings without a tokenizer");
    });
}

/// Text, ends and log-probabilities are those of a conversation.
#[test]
fn answers_have_the_text_and_the_ends_of_a_conversation() {
    let gpu = open_gpu();
    pollster::block_on(async {
        let model = Model::from_path(&gpu, "models/pocket").await.expect("the bundled model");
        let engine = Engine::new(&gpu, model.language(), options(2048, false)).expect("an engine");
        let mut engine = engine.with_text(model.tokenizer(), model.stop_ids());
        let greedy = AnswerOptions::default().with_max_new_tokens(24);
        let plain = model.chat().ask("What can you do?").options(&greedy).await.expect("an answer");
        let stop: String = plain.text.chars().skip(4).take(3).collect();
        let end = plain.token_ids.last().copied().expect("a token");
        let warm = Sampling::GREEDY.with_temperature(0.7);
        let all = [
            greedy.clone(),
            greedy.clone().with_stop(vec!["no such text".to_owned(), stop.clone()]),
            greedy.clone().with_min_tokens(12).with_stop(vec![stop]),
            greedy.clone().with_ignore_eos(true),
            greedy.clone().with_stop_token_ids(vec![plain.token_ids[2]]).with_ignore_eos(true),
            greedy.clone().with_min_tokens((plain.token_ids.len() + 2).min(24)).with_stop_token_ids(vec![end]),
            greedy.clone().with_sampling(warm).with_seed(5).with_n(3).with_top_logprobs(Some(4)),
            greedy.clone().with_sampling(Sampling::GREEDY.with_presence_penalty(2.0)).with_top_logprobs(Some(0)),
        ];
        let mut conversation = Conversation::new(model.prompt_format().clone());
        conversation.ask("What can you do?", 0);
        let prompt = model.tokenizer().encode_prompt(&conversation.prompt().expect("a prompt")).expect("ids");
        let prompt: Vec<CachedPosition> = prompt
            .into_iter()
            .map(|token| match token {
                PromptToken::Text(id) => CachedPosition::Text(id),
                PromptToken::Image => panic!("a prompt of text"),
            })
            .collect();
        let jobs = all.clone().map(|options| Job { options, ..Job::new(prompt.clone(), 1) });
        let answers = run(&mut engine, &jobs).await;
        for (index, (answer, options)) in answers.iter().zip(&all).enumerate() {
            let expected = model.chat().ask("What can you do?").options(options).await.expect("an answer");
            assert_eq!(answer.ids, expected.token_ids, "job {index}");
            assert_eq!(answer.text.trim(), expected.text, "job {index}");
            assert_eq!(answer.end, Some(expected.finish_reason), "job {index}");
            assert_eq!(answer.stop_reason, expected.stop_reason, "job {index}");
            for (token, expected) in answer.logprobs.iter().zip(&expected.logprobs) {
                assert!((token.chosen.logprob - expected.chosen.logprob).abs() < 0.02, "job {index}");
            }
            assert_eq!(answer.logprobs.len(), expected.logprobs.len());
            assert_eq!(answer.others.len(), expected.alternatives.len());
            for (other, expected) in answer.others.iter().zip(&expected.alternatives) {
                assert_eq!((&other.ids, other.text.trim()), (&expected.token_ids, expected.text.as_str()));
            }
        }
    });
}

/// Allows some tokens at each place of an answer, and ends it after the last.
#[derive(Debug, Clone)]
struct Script {
    allowed: Vec<Vec<u32>>,
    at: usize,
}

impl Constraint for Script {
    fn fill_mask(&mut self, mask: &mut [u32]) -> mgm::Result<()> {
        let allowed = self.allowed.get(self.at).ok_or_else(|| mgm::Error::InvalidArgument("the end".to_owned()))?;
        allowed.iter().for_each(|id| mask[*id as usize / 32] |= 1 << (id % 32));
        Ok(())
    }

    fn accept(&mut self, id: u32) -> mgm::Result<()> {
        assert!(self.allowed[self.at].contains(&id), "token {id} at {}", self.at);
        self.at += 1;
        Ok(())
    }

    fn is_terminated(&self) -> bool {
        self.at == self.allowed.len()
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// Constrained rows take the best of the allowed tokens; rows without a constraint notice nothing; a constraint that
/// allows nothing fails its own job.
#[test]
fn constrained_rows_choose_among_the_allowed_tokens() {
    with_pocket(async |gpu, language| {
        let vocab = language.config().vocab_size;
        let mut random = Random::new("constraints");
        let mut jobs = jobs(6, vocab);
        let mut scripts = Vec::new();
        for (index, job) in jobs.iter_mut().enumerate() {
            job.options.max_new_tokens = 20;
            if index % 2 == 1 {
                let length = 8 + 3 * index;
                let some = |_| (0..30).map(|_| random.below(vocab) as u32).collect();
                let script = Script { allowed: (0..length).map(some).collect(), at: 0 };
                scripts.push(script.clone());
                job.constraint = Some(Box::new(script));
            }
        }
        jobs[5].options.sampling = Sampling::GREEDY.with_temperature(1.0).with_repetition_penalty(1.3);
        jobs[5].options.n = 2;
        let free: Vec<Job> = jobs.iter().step_by(2).cloned().collect();
        let mut engine = Engine::new(gpu, language, options(2048, true)).expect("an engine");
        let expected = outputs(&run(&mut engine, &free).await);
        let mut first = None;
        for capacity in [2048, 256] {
            let mut engine = Engine::new(gpu, language, options(capacity, true)).expect("an engine");
            let answers = join_at_random(&mut engine, &jobs, "constraints").await;
            let of_free: Vec<Answer> = answers.iter().step_by(2).cloned().collect();
            assert_eq!(outputs(&of_free), expected);
            assert_eq!(first.get_or_insert_with(|| outputs(&answers)), &outputs(&answers), "{capacity} rows");
            for (index, script) in scripts.iter().enumerate() {
                let (job, answer) = (&jobs[2 * index + 1], &answers[2 * index + 1]);
                for (ids, _) in answer.outputs() {
                    assert_eq!(ids.len(), script.allowed.len().min(20));
                    let is_allowed = |(id, allowed): (&u32, &Vec<u32>)| allowed.contains(id);
                    assert!(ids.iter().zip(&script.allowed).all(is_allowed));
                }
                let reason = if script.allowed.len() <= 20 { FinishReason::Stop } else { FinishReason::Length };
                assert_eq!(answer.end, Some(reason));
                if job.options.sampling.temperature == 0.0 {
                    for (at, logits) in logits_after(gpu, language, &job.prompt, &answer.ids).await.iter().enumerate() {
                        let best = script.allowed[at].iter().map(|id| logits[*id as usize]).fold(f64::MIN, f64::max);
                        assert!(best - logits[answer.ids[at] as usize] < 0.02, "token {at} of job {}", 2 * index + 1);
                    }
                }
            }
        }
        let broken = Script { allowed: vec![vec![5], vec![6], vec![]], at: 0 };
        jobs[1].constraint = Some(Box::new(broken));
        let answers = run(&mut engine, &jobs).await;
        assert_eq!((answers[1].ids.as_slice(), answers[1].end), (&[5, 6][..], None));
        assert!(answers[1].error.as_ref().is_some_and(|error| error.to_string().contains("allows no token")));
        assert!(answers.iter().enumerate().all(|(index, answer)| index == 1 || answer.end.is_some()));
        assert_eq!(engine.figures().available_blocks, engine.figures().blocks);
    });
}

#[test]
fn a_cancelled_sequence_leaves_at_the_next_turn_and_others_go_on() {
    with_pocket(async |gpu, language| {
        let vocab = language.config().vocab_size;
        let mut jobs = jobs(4, vocab);
        for job in &mut jobs {
            job.options.max_new_tokens = 30;
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
        assert_eq!(answers[&submitted[1]].end, Some(FinishReason::Cancelled));
        assert_eq!(answers[&waiting].end, Some(FinishReason::Cancelled));
        while !engine.is_idle() {
            turn(&mut engine, &mut answers).await;
        }
        for index in [0, 2, 3] {
            assert_eq!(answers[&submitted[index]].ids, expected[index].ids, "job {index}");
        }
        assert_eq!(engine.figures().available_blocks, engine.figures().blocks);
    });
}

/// A context shorter than the slices of deterministic mode.
#[test]
fn short_contexts_have_the_same_answers() {
    with_pocket(async |gpu, language| {
        let mut jobs = jobs(6, language.config().vocab_size);
        jobs.retain(|job| job.prompt.len() + job.options.max_new_tokens <= 48);
        assert!(jobs.len() > 1);
        let mut engine = Engine::new(gpu, language, options(256, true)).expect("an engine");
        let expected = outputs(&run(&mut engine, &jobs).await);
        for context in [48, 63] {
            let options = EngineOptions { context, ..options(128, true) };
            let mut engine = Engine::new(gpu, language, options).expect("an engine");
            assert_eq!(outputs(&run(&mut engine, &jobs).await), expected, "{context} positions");
        }
    });
}

/// Without drafts and with them, one after the other: the answers and what the engine did.
async fn with_and_without_drafts(
    gpu: &Gpu,
    language: &LanguageModel,
    jobs: &[Job],
    options: EngineOptions,
) -> [(Vec<Answer>, Figures); 2] {
    let mut both = Vec::new();
    for prompt_lookup in [0, 7] {
        let mut engine = Engine::new(gpu, language, EngineOptions { prompt_lookup, ..options }).expect("an engine");
        let mut answers = Vec::new();
        for job in jobs {
            answers.extend(run(&mut engine, std::slice::from_ref(job)).await);
        }
        let figures = engine.figures();
        assert_eq!(figures.available_blocks, figures.blocks);
        assert!(figures.accepted <= figures.drafted && (prompt_lookup > 0 || figures.drafted == 0));
        both.push((answers, figures));
    }
    both.try_into().expect("two runs")
}

/// Tokens and log-probabilities are the same bits with drafts, whatever the controls, alone and with others.
#[test]
fn drafts_change_no_answer() {
    with_pocket(async |gpu, language| {
        let vocab = language.config().vocab_size;
        let mut all = with_controls(jobs(8, vocab));
        for job in &mut all {
            // Prompts that repeat themselves, and longer answers.
            let prompt = job.prompt.clone();
            job.prompt.extend(prompt.into_iter().take(40));
            job.options.max_new_tokens += 20;
        }
        let [(expected, plain), (answers, figures)] =
            with_and_without_drafts(gpu, language, &all, options(1024, true)).await;
        assert_eq!(outputs(&answers), outputs(&expected));
        assert!(figures.accepted > 0 && figures.steps < plain.steps, "{figures:?}, without drafts {plain:?}");
        // With others, and with room for few of them.
        let mut engine = Engine::new(gpu, language, options(320, true)).expect("an engine");
        let answers = join_at_random(&mut engine, &all, "drafts").await;
        assert_eq!(outputs(&answers), outputs(&expected));
    });
}

/// An answer that was given before is copied from the prompt in a fraction of the steps; in free text, drafts do not
/// cost more than they gain. Both by the cost of a row that the engine assumes of software adapters.
#[test]
fn drafts_gain_where_answers_repeat_their_prompt() {
    let gpu = open_gpu();
    pollster::block_on(async {
        let model = Model::from_path(&gpu, "models/pocket").await.expect("the bundled model");
        let language = model.language();
        let ids = |text: &str| -> Vec<u32> {
            let mut conversation = Conversation::new(model.prompt_format().clone());
            conversation.ask(text, 0);
            let prompt = model.tokenizer().encode_prompt(&conversation.prompt().expect("a prompt")).expect("ids");
            let text = |token: PromptToken| match token {
                PromptToken::Text(id) => id,
                PromptToken::Image => panic!("a prompt of text"),
            };
            prompt.into_iter().map(text).collect()
        };
        let question = ids("What can you do?");
        let text = |ids: &[u32]| ids.iter().map(|id| CachedPosition::Text(*id)).collect::<Vec<_>>();
        let first = alone(&gpu, language, &Job::new(text(&question), 40)).await;
        // The same question again: most of the answer is the one before.
        let copying = Job::new(text(&[question.clone(), first, question.clone()].concat()), 40);
        let cost = |figures: &Figures| figures.steps as f64 + 0.27 * figures.drafted as f64;
        let [(expected, plain), (answers, figures)] =
            with_and_without_drafts(&gpu, language, &[copying], options(512, false)).await;
        eprintln!("copying: {plain:?} {figures:?}");
        assert_eq!(answers[0].ids.len(), expected[0].ids.len());
        assert!(cost(&figures) < 0.7 * cost(&plain), "{figures:?}, without drafts {plain:?}");
        let free: Vec<Job> = (0..4)
            .map(|seed| {
                let options = AnswerOptions::default().with_max_new_tokens(60).with_seed(seed).with_ignore_eos(true);
                let options = options.with_sampling(Sampling::GREEDY.with_temperature(1.0));
                Job { options, ..Job::new(text(&question), 1) }
            })
            .collect();
        let [(_, plain), (_, figures)] = with_and_without_drafts(&gpu, language, &free, options(512, false)).await;
        eprintln!("free: {plain:?} {figures:?}");
        assert!(cost(&figures) <= 1.02 * cost(&plain), "{figures:?}, without drafts {plain:?}");
    });
}

/// Jobs that come together compute a prefix that they share once: the others wait for it.
#[test]
fn a_shared_prefix_is_computed_once() {
    with_pocket(async |gpu, language| {
        let mut random = Random::new("shared prefix");
        let vocab = language.config().vocab_size;
        let prefix: Vec<_> = (0..96).map(|_| token(&mut random, vocab)).collect();
        let mut job = |length| {
            let own = (0..5).map(|_| token(&mut random, vocab));
            Job::new(prefix[..length].iter().copied().chain(own).collect(), 6)
        };
        // The last two leave the prefix after a block and after a part of one.
        let mut jobs: Vec<Job> = [96, 96, 96, 96, 96, 96, 32, 40].map(&mut job).into();
        for deterministic in [true, false] {
            let mut engine = Engine::new(gpu, language, options(2048, true)).expect("an engine");
            let mut expected = Vec::new();
            for job in &jobs {
                expected.extend(run(&mut engine, std::slice::from_ref(job)).await);
            }
            let mut engine = Engine::new(gpu, language, options(2048, deterministic)).expect("an engine");
            let answers = run(&mut engine, &jobs).await;
            if deterministic {
                assert_eq!(outputs(&answers), outputs(&expected));
            }
            let figures = engine.figures();
            // All compute their own five tokens; the last also what is no whole block, unless a part is found.
            assert!((96 + 8 * 5..=96 + 8 * 5 + 8).contains(&(figures.prefilled as usize)), "{figures:?}");
            let positions: usize = jobs.iter().map(|job| job.prompt.len()).sum();
            assert_eq!((figures.prefilled + figures.cached) as usize, positions);
            let cached: usize = answers.iter().map(|answer| answer.cached).sum();
            assert_eq!(cached as u64, figures.cached);
            // Users do not wait for each other: they share nothing.
            if !deterministic {
                for (index, job) in jobs.iter_mut().enumerate() {
                    job.salt = Salt(vec![index as u8]);
                }
                let mut engine = Engine::new(gpu, language, options(2048, true)).expect("an engine");
                let answers = run(&mut engine, &jobs).await;
                assert_eq!(outputs(&answers), outputs(&expected));
                assert_eq!(engine.figures().cached, 0);
            }
        }
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
        let options = EngineOptions { prompt_lookup: 16, ..options(256, false) };
        assert!(Engine::new(gpu, language, options).is_err(), "more rows than a step has");
    });
}

/// Six dispatches a layer with eight sequences, two of them for attention. Controls add a few for all rows together.
#[test]
fn steps_have_few_dispatches() {
    with_pocket(async |gpu, language| {
        let vocab = language.config().vocab_size;
        let layers = language.config().num_layers as u64;
        let mut random = Random::new("dispatches");
        let plain = AnswerOptions::default().with_max_new_tokens(24);
        let every = plain
            .clone()
            .with_sampling(Sampling::GREEDY.with_temperature(0.7).with_min_p(0.1).with_frequency_penalty(0.1))
            .with_logit_bias(vec![(5, 1.0)])
            .with_top_logprobs(Some(20));
        let mut dispatches = Vec::new();
        for controlled in [0, 1, 8] {
            let mut engine = Engine::new(gpu, language, options(1024, false)).expect("an engine");
            let mut answers = HashMap::new();
            for index in 0..8 {
                let prompt = (0..9).map(|_| token(&mut random, vocab)).collect();
                let options = if index < controlled { every.clone() } else { plain.clone() };
                engine.submit(Job { options, ..Job::new(prompt, 1) }).expect("a job");
            }
            let mut most = None;
            while !engine.is_idle() {
                let (before, figures) = (gpu.dispatch_count(), engine.figures());
                turn(&mut engine, &mut answers).await;
                let after = engine.figures();
                if after.rows - figures.rows == 8 && after.slices == figures.slices {
                    most = most.max(Some(gpu.dispatch_count() - before));
                }
            }
            dispatches.push(most.expect("a step of eight rows"));
        }
        assert!(dispatches[0] <= 6 * layers + 4, "{dispatches:?} dispatches of {layers} layers");
        // Bias, penalties, their counts and two for log-probabilities; on a GPU the draw is two more.
        assert!(dispatches[1] <= dispatches[0] + 7, "{dispatches:?} dispatches");
        assert_eq!(dispatches[2], dispatches[1], "as many for eight rows with controls as for one");
    });
}

/// Blocks, memory and device objects stay the same over many short requests, some cancelled. `controlled`: some also
/// have controls.
async fn make_short_requests(gpu: &Gpu, language: &LanguageModel, count: usize, controlled: bool) {
    let vocab = language.config().vocab_size;
    let mut engine = Engine::new(gpu, language, options(1024, false)).expect("an engine");
    let mut random = Random::new("short requests");
    let mut answers = HashMap::new();
    let mut objects = None;
    for index in 0..count {
        let length = 1 + random.below(12);
        let prompt = (0..length).map(|_| token(&mut random, vocab)).collect();
        let mut job = Job::new(prompt, 1 + index % 3);
        let kind = if controlled { index / 8 % 8 } else { 0 };
        let options = std::mem::take(&mut job.options);
        job.options = match kind {
            1 => options.with_top_logprobs(Some(5)),
            2 => options.with_logit_bias(vec![(3, -100.0)]).with_n(1 + index % 3),
            3 => options.with_sampling(Sampling::GREEDY.with_temperature(0.8).with_frequency_penalty(0.5)),
            4 => options.with_sampling(Sampling::GREEDY.with_temperature(0.8).with_min_p(0.1)),
            _ => options,
        };
        if kind == 5 {
            let all = (0..vocab as u32).collect();
            job.constraint = Some(Box::new(Script { allowed: vec![all; 3], at: 0 }));
        }
        let id = engine.submit(job).expect("a job");
        if index % 5 == 4 {
            turn(&mut engine, &mut answers).await;
            engine.cancel(id);
        }
        if index % 8 == 7 {
            while !engine.is_idle() {
                turn(&mut engine, &mut answers).await;
            }
            answers.clear();
        }
        // By then, every row count and every control has been seen.
        if index == count / 2 - 1 {
            objects = Some((gpu.objects_made(), gpu.memory().allocated));
        }
    }
    while !engine.is_idle() {
        turn(&mut engine, &mut answers).await;
    }
    assert_eq!(Some((gpu.objects_made(), gpu.memory().allocated)), objects);
    assert_eq!(engine.figures().available_blocks, engine.figures().blocks);
}

#[test]
fn short_requests_leave_nothing_behind() {
    with_pocket(async |gpu, language| make_short_requests(gpu, language, 240, false).await);
}

#[test]
#[ignore = "takes minutes: `cargo test --release --test models engine:: -- --ignored`"]
fn ten_thousand_short_requests_leave_nothing_behind() {
    with_pocket(async |gpu, language| make_short_requests(gpu, language, 10_000, true).await);
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
