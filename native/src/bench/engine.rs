//! `mgm bench --gguf FILE --engine`: many sequences at once, as ratios within one run.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use mgm::engine::digest::CachedPosition;
use mgm::engine::{Engine, EngineOptions, Event, Job, JobId};
use mgm::gpu::Gpu;
use mgm::language::{BatchGenerator, LanguageModel, Position, TokenGenerator};
use mgm::ops::Sampling;
use mgm::tensor::Tensor;
use serde::Serialize;

use super::{BenchArgs, gguf, llm};
use crate::load::open_gguf;
use crate::output::print_json;
use crate::{CliError, device_cache};

/// Sequences that decode together.
const STREAMS: usize = 8;
/// Tokens of a short prompt.
const PROMPT: usize = 16;
/// Tokens of a prompt that is asked about twice, where none is given.
const LONG_PROMPT: u32 = 256;
/// Answers of mixed lengths, and the shortest and longest of them.
const MIXED: usize = 24;
const LENGTHS: [usize; 2] = [8, 128];

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    adapter: String,
    /// Tokens per second of one conversation without the engine, of one sequence in it, and of eight.
    conversation_tokens_per_s: f64,
    one_tokens_per_s: f64,
    eight_tokens_per_s: f64,
    /// Eight sequences to one.
    batching: f64,
    /// One sequence to a conversation without the engine.
    single: f64,
    dispatches_per_step: f64,
    /// First token of a second question after the same prompt, to that of the first.
    second_question: f64,
    /// From a cancellation until the sequence's place is free, in steps.
    cancellation_steps: f64,
    /// Tokens per second of answers of mixed lengths, to those of static batches of eight.
    continuous: f64,
}

pub async fn run(path: &Path, arguments: &BenchArgs) -> Result<(), CliError> {
    let gpu = device_cache::open(&arguments.device.options()).await?;
    mgm::tuning::check_rounding_kernels(&gpu).await?;
    let model = open_gguf(path).await?;
    let language = gguf::load(&gpu, &model, arguments.precision).await?;
    if arguments.tune {
        llm::tune_matmuls(&gpu, &language).await?;
    }
    let bench = Bench { gpu: &gpu, language: &language };
    let decode = arguments.decode as usize;
    // Pipelines are created first.
    bench.streams(STREAMS, 4).await?;
    bench.streams(1, 4).await?;
    bench.conversation(4).await?;
    bench.static_batch(&[4; STREAMS]).await?;

    let conversation = bench.conversation(decode).await?;
    let one = bench.streams(1, decode).await?;
    let eight = bench.streams(STREAMS, decode).await?;
    note!(
        "tokens/s: {conversation:.2} alone, {:.2} as one sequence, {:.2} as {STREAMS}",
        one.tokens_per_s,
        eight.tokens_per_s
    );
    let second_question = bench.second_question(arguments.prefill.unwrap_or(LONG_PROMPT) as usize).await?;
    let cancellation_steps = bench.cancellation().await?;
    note!(
        "second question {second_question:.3}, cancellation {cancellation_steps:.2} steps; answers of mixed lengths follow"
    );
    let report = Report {
        model: path.display().to_string(),
        adapter: gpu.adapter().name.clone(),
        conversation_tokens_per_s: conversation,
        one_tokens_per_s: one.tokens_per_s,
        eight_tokens_per_s: eight.tokens_per_s,
        batching: eight.tokens_per_s / one.tokens_per_s,
        single: one.tokens_per_s / conversation,
        dispatches_per_step: eight.dispatches_per_step,
        second_question,
        cancellation_steps,
        continuous: bench.mixed_lengths().await?,
    };
    if arguments.json {
        return print_json(&report);
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} on {}", report.model, report.adapter)?;
    writeln!(
        out,
        "one sequence      {:>8.2} tokens/s, {:.2} of a conversation",
        report.one_tokens_per_s, report.single
    )?;
    writeln!(
        out,
        "{STREAMS} sequences       {:>8.2} tokens/s, {:.2} times one; {:.0} dispatches a step",
        report.eight_tokens_per_s, report.batching, report.dispatches_per_step
    )?;
    writeln!(out, "second question   {:>8.2} of the first one's time to the first token", report.second_question)?;
    writeln!(out, "cancellation      {:>8.2} steps", report.cancellation_steps)?;
    writeln!(out, "mixed lengths     {:>8.2} times static batches of {STREAMS}", report.continuous)?;
    Ok(())
}

struct Bench<'a> {
    gpu: &'a Gpu,
    language: &'a LanguageModel,
}

struct Streams {
    tokens_per_s: f64,
    dispatches_per_step: f64,
}

impl Bench<'_> {
    fn engine(&self) -> mgm::Result<Engine<'_>> {
        let options = EngineOptions { parallel: STREAMS, ..EngineOptions::new(self.gpu, self.language) };
        Engine::new(self.gpu, self.language, EngineOptions { capacity: options.context.max(4096), ..options })
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

    /// Decoding of `count` sequences, from the first token of the last one on.
    async fn streams(&self, count: usize, decode: usize) -> mgm::Result<Streams> {
        let mut engine = self.engine()?;
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
        Ok(Streams {
            tokens_per_s: rate(tokens, elapsed),
            dispatches_per_step: (self.gpu.dispatch_count() - dispatches) as f64 / steps.max(1) as f64,
        })
    }

    /// Time to the first token of a question after a long prompt, the second time to the first.
    async fn second_question(&self, length: usize) -> mgm::Result<f64> {
        let mut engine = self.engine()?;
        let mut times = Vec::new();
        for question in 0..2 {
            let mut prompt = self.prompt(length, 0);
            prompt.extend(self.prompt(4, 100 + question));
            let id = engine.submit(Job::new(prompt, 2))?;
            let started = Instant::now();
            while tokens_of(&engine.turn().await?, id) == 0 {}
            times.push(started.elapsed().as_secs_f64());
            while !engine.is_idle() {
                engine.turn().await?;
            }
        }
        Ok(times[1] / times[0])
    }

    /// Time from a cancellation to the end of the sequence, in steps of the others.
    async fn cancellation(&self) -> mgm::Result<f64> {
        let mut engine = self.engine()?;
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
        let mut engine = self.engine()?;
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
