//! `mgm bench --engine`: many sequences at once, as ratios within one run.

use std::cell::Cell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mgm::engine::digest::CachedPosition;
use mgm::engine::images::{ImageFormat, JobImage};
use mgm::engine::{AnswerOptions, Engine, EngineOptions, Event, Figures, Job, JobId};
use mgm::gpu::Gpu;
use mgm::image::Image;
use mgm::io::DiskFolder;
use mgm::language::{BatchGenerator, LanguageModel, Position, TokenGenerator};
use mgm::ops::Sampling;
use mgm::session::{LoadOptions, Model};
use mgm::tensor::Tensor;
use mgm::vision::Vision;
use mgm::weights::mgm::TowerOptions;
use mgm::weights::model_files::ModelFiles;
use serde::Serialize;

use super::{BenchArgs, llm};
use crate::load::open_gguf;
use crate::output::print_json;
use crate::{CliError, bundled_models, device_cache};

/// Sequences that decode together.
const STREAMS: usize = 8;
/// Tokens of a short prompt.
const PROMPT: usize = 16;
/// Tokens of a prompt that is asked about twice, where none is given.
const LONG_PROMPT: u32 = 256;
/// Answers of mixed lengths, and the shortest and longest of them.
const MIXED: usize = 24;
const LENGTHS: [usize; 2] = [8, 128];
/// Tokens of a draft at most.
const DRAFT: usize = 7;

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    adapter: String,
    /// Tokens per second of one conversation without the engine, of one sequence in it, and of eight.
    conversation_tokens_per_s: f64,
    one_tokens_per_s: f64,
    eight_tokens_per_s: f64,
    dispatches_per_step: f64,
    /// Eight sequences to one, in tokens per second.
    batching: f64,
    /// One sequence to a conversation without the engine, in tokens per second.
    single: f64,
    /// First token of a second question after the same prompt, to that of the first.
    second_question: f64,
    /// The same for two questions about an image, and for two prompts of which only the image is the same.
    second_question_about_image: Option<f64>,
    same_image_in_other_prompt: Option<f64>,
    /// From a cancellation until the sequence's place is free, in steps.
    cancellation_steps: f64,
    /// Tokens per second of answers of mixed lengths, to those of static batches of eight.
    continuous: f64,
    /// Tokens per second with prompt-lookup drafts to those without, of an answer that repeats its prompt and of a
    /// random one.
    drafts_copying: f64,
    drafts_random: f64,
    /// The part of the drafts' tokens that was right, in the answer that repeats its prompt.
    drafts_accepted: f64,
}

/// A row of the table: its ratio, and what the specification of the engine expects of SmolLM2 on a software adapter.
struct Row {
    name: &'static str,
    value: Option<f64>,
    expected: &'static str,
    meaning: String,
}

impl Report {
    fn rows(&self) -> Vec<Row> {
        let row = |name, value: f64, expected, meaning: &str| Row {
            name,
            value: Some(value),
            expected,
            meaning: meaning.to_owned(),
        };
        let speeds = format!(
            "tokens/s of {STREAMS} sequences to one: {:.2} to {:.2}, {:.0} dispatches a step",
            self.eight_tokens_per_s, self.one_tokens_per_s, self.dispatches_per_step
        );
        let single = format!("tokens/s to a conversation without the engine: {:.2}", self.conversation_tokens_per_s);
        let copying =
            format!("tokens/s of a repeated answer to those without drafts; {:.2} accepted", self.drafts_accepted);
        vec![
            row("batching", self.batching, "3.0 or more", &speeds),
            row("single", self.single, "0.98 or more", &single),
            row("second question", self.second_question, "", "first token after a cached prompt, to the first time"),
            Row {
                value: self.second_question_about_image,
                ..row("about an image", 0.0, "0.15 or less", "the same for a prompt with an image")
            },
            Row {
                value: self.same_image_in_other_prompt,
                ..row("same image", 0.0, "", "the same if only the image is cached")
            },
            row("cancellation", self.cancellation_steps, "4 or less", "steps until its place is free"),
            row("mixed lengths", self.continuous, "1.5 or more", "tokens/s to static batches of eight"),
            row("drafts, copying", self.drafts_copying, "above 1", &copying),
            row("drafts, random", self.drafts_random, "1", "the same for an answer that repeats nothing"),
        ]
    }
}

pub async fn run(arguments: &BenchArgs) -> Result<(), CliError> {
    if arguments.decode < 2 {
        let reason = "--engine measures the tokens after the first: --decode must be 2 or more";
        return Err(mgm::Error::InvalidArgument(reason.to_owned()).into());
    }
    let gpu = device_cache::open(&arguments.device.options()).await?;
    let (path, files) = open(arguments.gguf.as_deref()).await?;
    let options = match arguments.precision {
        Some(precision) => LoadOptions::new(precision),
        None => LoadOptions::as_stored(&files),
    };
    let model = Model::open(&gpu, &files, &options).await?;
    let language = model.language();
    if arguments.tune {
        llm::tune_matmuls(&gpu, language).await?;
    }
    let bench = Bench { gpu: &gpu, language, vision: model.vision(), variants: Cell::new(0) };
    let decode = arguments.decode as usize;
    // Pipelines are created first.
    bench.streams(STREAMS, 4).await?;
    bench.streams(1, 4).await?;
    bench.conversation(4).await?;
    bench.static_batch(&[4; STREAMS]).await?;

    let conversation = bench.conversation(decode).await?;
    let one = bench.streams(1, decode).await?;
    let eight = bench.streams(STREAMS, decode).await?;
    note!("tokens/s: {conversation:.2} alone, {:.2} as one sequence, {:.2} as {STREAMS}", one.0, eight.0);
    let length = arguments.prefill.unwrap_or(LONG_PROMPT) as usize;
    let second_question = bench.second_question(length).await?;
    let images = bench.second_image_question().await?;
    let cancellation_steps = bench.cancellation().await?;
    note!("second question {second_question:.3}, cancellation {cancellation_steps:.2} steps; drafts follow");
    let copying = bench.drafts(&bench.copying(decode).await?).await?;
    let random = bench.drafts(&bench.random(decode)).await?;
    note!("drafts: {:.2} copying, {:.2} random; answers of mixed lengths follow", copying.0, random.0);
    let report = Report {
        model: path.display().to_string(),
        adapter: gpu.adapter().name.clone(),
        conversation_tokens_per_s: conversation,
        one_tokens_per_s: one.0,
        eight_tokens_per_s: eight.0,
        dispatches_per_step: eight.1,
        batching: eight.0 / one.0,
        single: one.0 / conversation,
        second_question,
        second_question_about_image: images.map(|(question, _)| question),
        same_image_in_other_prompt: images.map(|(_, other)| other),
        cancellation_steps,
        drafts_copying: copying.0,
        drafts_random: random.0,
        drafts_accepted: copying.1,
        continuous: bench.mixed_lengths().await?,
    };
    if arguments.json {
        return print_json(&report);
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} on {}", report.model, report.adapter)?;
    writeln!(out, "{:<16}{:>8}  {:<14}what it is", "", "ratio", "expected")?;
    for Row { name, value, expected, meaning } in report.rows() {
        let value = value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        writeln!(out, "{name:<16}{value:>8}  {expected:<14}{meaning}")?;
    }
    Ok(())
}

/// A GGUF file, or Pocket.
async fn open(gguf: Option<&Path>) -> mgm::Result<(PathBuf, ModelFiles)> {
    if let Some(path) = gguf {
        return Ok((path.to_owned(), ModelFiles::Gguf(Box::new(open_gguf(path).await?))));
    }
    let path = bundled_models::find(bundled_models::POCKET);
    let path = path.ok_or_else(|| bundled_models::missing(bundled_models::POCKET))?;
    let files = ModelFiles::open(std::rc::Rc::new(DiskFolder::new(&path)), TowerOptions::default()).await?;
    Ok((path, files))
}

struct Bench<'a> {
    gpu: &'a Gpu,
    language: &'a LanguageModel,
    vision: Option<&'a Vision>,
    /// Numbers images and prompts that must not be cached yet.
    variants: Cell<usize>,
}

impl Bench<'_> {
    fn engine(&self, prompt_lookup: usize) -> mgm::Result<Engine<'_>> {
        let options = EngineOptions { parallel: STREAMS, prompt_lookup, ..EngineOptions::new(self.gpu, self.language) };
        let options = EngineOptions { capacity: options.context.max(4096), ..options };
        let engine = Engine::new(self.gpu, self.language, options)?;
        Ok(match self.vision {
            Some(vision) => engine.with_vision(vision),
            None => engine,
        })
    }

    /// A number that was not returned before.
    fn variant(&self) -> usize {
        self.variants.set(self.variants.get() + 1);
        1000 + self.variants.get()
    }

    fn prompt(&self, length: usize, variant: usize) -> Vec<CachedPosition> {
        let vocab = self.language.config().vocab_size;
        (0..length).map(|index| CachedPosition::Text(llm::token_id(index + 31 * variant, vocab))).collect()
    }

    fn positions(&self, length: usize, variant: usize) -> Vec<Position> {
        let vocab = self.language.config().vocab_size;
        (0..length).map(|index| Position::Text(llm::token_id(index + 31 * variant, vocab))).collect()
    }

    /// Tokens per second of a single conversation, after the first token.
    async fn conversation(&self, decode: usize) -> mgm::Result<f64> {
        let mut cache = self.language.cache();
        let end = llm::prefill(self.gpu, self.language, &self.positions(PROMPT, 0), &[], &mut cache, decode)?;
        let mut generator =
            TokenGenerator::new(self.language, self.gpu, &mut cache, end, decode, Sampling::GREEDY, || 0.0)?;
        generator.next().await?;
        let started = Instant::now();
        while generator.next().await?.is_some() {}
        Ok(rate(decode - 1, started.elapsed()))
    }

    /// Tokens per second of `count` sequences without drafts, from the first token of the last one on, and dispatches
    /// of a step.
    async fn streams(&self, count: usize, decode: usize) -> mgm::Result<(f64, f64)> {
        let mut engine = self.engine(0)?;
        let mut waiting = Vec::new();
        for index in 0..count {
            // Other prompts: nothing is shared. Earlier ones generate until the last one begins.
            waiting.push(engine.submit(Job::new(self.prompt(PROMPT, index), decode + 4 * STREAMS))?);
        }
        while !waiting.is_empty() {
            let events = engine.turn().await?;
            waiting.retain(|id| tokens_of(&events, *id) == 0);
        }
        let (before, dispatches) = (engine.figures(), self.gpu.dispatch_count());
        let started = Instant::now();
        let mut tokens = 0;
        while tokens < count * (decode - 1) {
            tokens += engine.turn().await?.iter().map(|(_, event)| new_tokens(event)).sum::<usize>();
        }
        let elapsed = started.elapsed();
        let steps = engine.figures().steps - before.steps;
        let dispatches = (self.gpu.dispatch_count() - dispatches) as f64;
        Ok((rate(tokens, elapsed), dispatches / steps.max(1) as f64))
    }

    /// Time to the first token of a question after a long prompt, the second time to the first.
    async fn second_question(&self, length: usize) -> mgm::Result<f64> {
        let mut engine = self.engine(0)?;
        // The first prompt creates pipelines.
        let mut times = Vec::new();
        for (variant, question) in [(self.variant(), 0), (0, 1), (0, 2)] {
            let mut prompt = self.prompt(length, variant);
            prompt.extend(self.prompt(4, 100 + question));
            times.push(first_token(&mut engine, Job::new(prompt, 2)).await?);
        }
        Ok(times[2] / times[1])
    }

    /// The same for two questions about an image, and for two prompts of which only the image is the same. `None` for a
    /// model without vision.
    async fn second_image_question(&self) -> mgm::Result<Option<(f64, f64)>> {
        let Some(vision) = self.vision else { return Ok(None) };
        let format = ImageFormat::new(vision);
        let mut engine = self.engine(0)?;
        let mut times = Vec::new();
        let [other, image] = [self.variant(), self.variant()];
        let [prefix, other_prefix] = [self.variant(), self.variant()];
        // The first prompt creates pipelines.
        for (image, prefix, question) in
            [(other, other, 0), (image, prefix, 1), (image, prefix, 2), (image, other_prefix, 3)]
        {
            let image = format.unprepared(Arc::new(gradient(image)?));
            let mut prompt = self.prompt(PROMPT, prefix);
            prompt.extend(format.positions(image.digest));
            prompt.extend(self.prompt(4, 100 + question));
            times.push(first_token(&mut engine, with_image(prompt, image)).await?);
        }
        Ok(Some((times[2] / times[1], times[3] / times[1])))
    }

    /// A prompt that the model has answered before, and that it continues with the same answer: the prompt, its most
    /// likely answer, and both once more but for the last part of the answer.
    async fn copying(&self, decode: usize) -> mgm::Result<Job> {
        let mut engine = self.engine(0)?;
        let mut prompt = self.prompt(PROMPT, self.variant());
        let answer = Job::new(prompt.clone(), 2 * decode);
        engine.submit(answer)?;
        let first = prompt.clone();
        while !engine.is_idle() {
            for (_, event) in engine.turn().await? {
                if let Event::Delta { ids, .. } = event {
                    prompt.extend(ids.into_iter().map(CachedPosition::Text));
                }
            }
        }
        prompt.extend(first);
        Ok(Job::new(prompt, decode))
    }

    /// A prompt that is answered by tokens that are drawn at random.
    fn random(&self, decode: usize) -> Job {
        let options = AnswerOptions::default().with_max_new_tokens(decode);
        let options = options.with_sampling(Sampling::GREEDY.with_temperature(2.0)).with_seed(1);
        Job { options, ..Job::new(self.prompt(PROMPT, self.variant()), decode) }
    }

    /// Tokens per second of an answer with drafts to those without, and the part of the drafts' tokens that was right.
    async fn drafts(&self, job: &Job) -> mgm::Result<(f64, f64)> {
        let mut times = Vec::new();
        let mut figures = Figures::default();
        for prompt_lookup in [0, DRAFT] {
            let mut engine = self.engine(prompt_lookup)?;
            // The first time creates pipelines.
            for _ in 0..2 {
                first_token(&mut engine, job.clone()).await?;
                let before = engine.figures();
                let id = engine.submit(job.clone())?;
                while tokens_of(&engine.turn().await?, id) == 0 {}
                let started = Instant::now();
                while !engine.is_idle() {
                    engine.turn().await?;
                }
                let after = engine.figures();
                figures.drafted = after.drafted - before.drafted;
                figures.accepted = after.accepted - before.accepted;
                times.push(started.elapsed().as_secs_f64());
            }
        }
        Ok((times[1] / times[3], figures.accepted as f64 / figures.drafted.max(1) as f64))
    }

    /// Time from a cancellation to the end of the sequence, in steps of the others.
    async fn cancellation(&self) -> mgm::Result<f64> {
        let mut engine = self.engine(0)?;
        let mut ids = Vec::new();
        for index in 0..STREAMS {
            ids.push(engine.submit(Job::new(self.prompt(PROMPT, index), 64))?);
        }
        while running(&engine) < STREAMS || engine.figures().steps < 16 {
            engine.turn().await?;
        }
        let (started, steps) = (Instant::now(), engine.figures().steps);
        for _ in 0..4 {
            engine.turn().await?;
        }
        let step = started.elapsed().as_secs_f64() / (engine.figures().steps - steps).max(1) as f64;
        engine.cancel(ids[3]);
        let started = Instant::now();
        while running(&engine) == STREAMS {
            engine.turn().await?;
        }
        Ok(started.elapsed().as_secs_f64() / step)
    }

    /// Tokens per second of answers of mixed lengths, to those of static batches.
    async fn mixed_lengths(&self) -> mgm::Result<f64> {
        let [least, most] = LENGTHS;
        // Multiples of 7 modulo the range visit it without order.
        let lengths: Vec<usize> = (0..MIXED).map(|index| least + 7 * 13 * index % (most - least + 1)).collect();
        let tokens = lengths.iter().sum();
        let started = Instant::now();
        for batch in lengths.chunks(STREAMS) {
            self.static_batch(batch).await?;
        }
        let fixed = rate(tokens, started.elapsed());
        let mut engine = self.engine(0)?;
        let started = Instant::now();
        for (index, length) in lengths.iter().enumerate() {
            engine.submit(Job::new(self.prompt(PROMPT, index), *length))?;
        }
        while !engine.is_idle() {
            engine.turn().await?;
        }
        Ok(rate(tokens, started.elapsed()) / fixed)
    }

    /// Answers that are computed together until the longest ends, without the engine.
    async fn static_batch(&self, lengths: &[usize]) -> mgm::Result<()> {
        let mut cache = self.language.batch_cache(0, &vec![PROMPT; lengths.len()])?;
        let mut recorder = self.gpu.record();
        let prompts: Vec<Position> = (0..lengths.len()).flat_map(|index| self.positions(PROMPT, index)).collect();
        let x = self.language.embed(&mut recorder, &prompts, &[])?;
        let x = self.language.forward_batch(&mut recorder, &x, &mut cache)?;
        let ends = Tensor::zeros(self.gpu, &[lengths.len(), x.columns()], "ends of prompts")?;
        for index in 0..lengths.len() {
            x.slice_rows((index + 1) * PROMPT - 1..(index + 1) * PROMPT).copy_to(&mut recorder, &ends, index);
        }
        recorder.submit()?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut generator = BatchGenerator::new(self.language, self.gpu, &mut cache, ends, longest)?;
        while generator.next().await?.is_some() {}
        Ok(())
    }
}

/// Seconds to the first token of a job, which is then computed to its end.
async fn first_token(engine: &mut Engine<'_>, job: Job) -> mgm::Result<f64> {
    let started = Instant::now();
    let id = engine.submit(job)?;
    while tokens_of(&engine.turn().await?, id) == 0 {}
    let time = started.elapsed().as_secs_f64();
    while !engine.is_idle() {
        engine.turn().await?;
    }
    Ok(time)
}

/// A job of few tokens about an image.
fn with_image(prompt: Vec<CachedPosition>, image: JobImage) -> Job {
    Job { images: vec![image], ..Job::new(prompt, 2) }
}

/// An image that differs for each `variant`.
fn gradient(variant: usize) -> mgm::Result<Image> {
    const SIZE: usize = 256;
    let pixel = |index: usize| [index % SIZE, index / SIZE, variant].map(|value| value as u8);
    Image::new(SIZE, SIZE, (0..SIZE * SIZE).flat_map(pixel).collect())
}

fn rate(tokens: usize, time: Duration) -> f64 {
    tokens as f64 / time.as_secs_f64()
}

fn running(engine: &Engine<'_>) -> usize {
    engine.figures().running
}

/// Tokens of a job among events.
fn tokens_of(events: &[(JobId, Event)], id: JobId) -> usize {
    events.iter().filter(|(other, _)| *other == id).map(|(_, event)| new_tokens(event)).sum()
}

fn new_tokens(event: &Event) -> usize {
    match event {
        Event::Delta { ids, .. } => ids.len(),
        _ => 0,
    }
}
