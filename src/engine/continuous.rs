//! Continuous batching: sequences join and leave between steps.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use web_time::Instant;

use super::blocks::{BLOCK_ROWS, BlockPool};
use super::digest::{CachedPosition, ImageDigest};
use super::job::{End, Event, Job, JobId};
use super::queue::Queue;
use super::sequence::Sequence;
use super::slice::{self, Slices};
use crate::gpu::{Gpu, Readback, Recorder};
use crate::language::{ImageId, LanguageModel, PagedCache, PagedStep, Position, StepRows};
use crate::ops::{self, NO_ROW, PagedSequence, Sampling};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Steps that are submitted before the first one is read, as of one sequence.
const STEPS_AHEAD: usize = 3;
/// A prompt waits for at most this number of slices of others.
const MAX_WAIT: usize = 3;
/// In deterministic mode, positions of a slice: products of other row counts may be computed by other kernels.
const DETERMINISTIC_SLICE: usize = 64;

/// How an engine divides the device.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Sequences that decode together, 1 to 16.
    pub parallel: usize,
    /// Positions of a sequence at most.
    pub context: usize,
    /// Positions of all sequences and of the prefix cache.
    pub capacity: usize,
    /// The time of a slice of a prompt, for which running sequences wait.
    pub slice: Duration,
    /// A job's tokens are the same alone, in any batch, from the cache or not, and after a preemption. It is slower.
    pub deterministic: bool,
}

impl EngineOptions {
    /// The defaults for a device and a model.
    pub fn new(gpu: &Gpu, language: &LanguageModel) -> Self {
        let software = gpu.is_software();
        let (parallel, context) = (if software { 4 } else { 8 }, language.config().max_positions.min(8192));
        Self {
            parallel,
            context,
            capacity: (parallel * context.min(2048)).max(context),
            slice: Duration::from_millis(if software { 1000 } else { 100 }),
            deterministic: false,
        }
    }
}

/// What an engine has done, and what it holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Jobs that wait.
    pub waiting: usize,
    /// Jobs that have blocks.
    pub running: usize,
    /// Blocks in all.
    pub blocks: usize,
    /// Blocks that are free or hold only cached prefixes.
    pub available_blocks: usize,
    /// Cached blocks that were dropped for want of room.
    pub evicted_blocks: u64,
    /// Decoding steps.
    pub steps: u64,
    /// Rows of all of them.
    pub rows: u64,
    /// Slices of prompts.
    pub slices: u64,
    /// Positions of prompts that were computed.
    pub prefilled: u64,
    /// Positions of prompts that were in the cache.
    pub cached: u64,
    /// Jobs that gave their blocks up.
    pub preempted: u64,
}

/// A submission whose tokens are not read yet.
#[derive(Debug)]
struct InFlight {
    read: Readback,
    /// For each token read the admission of its sequence and its position. [`NO_ADMISSION`] for tokens of no one.
    tokens: Vec<(u64, usize)>,
}

const NO_ADMISSION: u64 = u64::MAX;

/// Positions as the language model takes them, and the visual tokens of their images.
type Inputs = (Vec<Position>, Vec<(ImageId, Tensor)>);

/// Many sequences on one model. The host submits jobs and calls [`Self::turn`] until the engine is idle.
#[derive(Debug)]
pub struct Engine<'a> {
    gpu: Gpu,
    language: &'a LanguageModel,
    options: EngineOptions,
    cache: PagedCache,
    pool: BlockPool,
    /// Blocks for rows of no sequence, after those of the pool.
    spare: Vec<u32>,
    prefill_step: PagedStep,
    decode_step: PagedStep,
    /// Tokens that the device chose: rings of steps, then one for each seat, the first after a prompt.
    chosen: Tensor,
    ring: usize,
    queue: Queue,
    /// In the order of their admission.
    sequences: Vec<Sequence>,
    in_flight: VecDeque<InFlight>,
    cancelled: HashSet<JobId>,
    slices: Slices,
    events: Vec<(JobId, Event)>,
    next_id: u64,
    admissions: u64,
    figures: Figures,
}

impl<'a> Engine<'a> {
    /// An engine with a cache of its own.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the options are out of range; [device errors](crate::gpu) if the cache does not
    /// fit.
    pub fn new(gpu: &Gpu, language: &'a LanguageModel, options: EngineOptions) -> Result<Self> {
        let EngineOptions { parallel, context, capacity, .. } = options;
        if !(1..=16).contains(&parallel) || context < 2 || capacity < context {
            return Err(Error::InvalidArgument(format!(
                "{parallel} sequences of {context} positions in a cache of {capacity}, expected 1 to 16 sequences, 2 positions or more, and a cache for one sequence"
            )));
        }
        let blocks = capacity.div_ceil(BLOCK_ROWS);
        let spare = slice::MOST.div_ceil(BLOCK_ROWS);
        let of_sequence = context.div_ceil(BLOCK_ROWS);
        Ok(Self {
            gpu: gpu.clone(),
            language,
            options,
            cache: language.paged_cache(gpu, blocks + spare, context)?,
            pool: BlockPool::new(blocks),
            spare: (blocks as u32..).take(spare).collect(),
            prefill_step: language.paged_step(gpu, slice::MOST, 2, of_sequence + spare)?,
            decode_step: language.paged_step(gpu, parallel, parallel, parallel * of_sequence)?,
            chosen: Tensor::zeros(gpu, &[parallel * (STEPS_AHEAD + 2)], "chosen tokens")?,
            ring: 0,
            queue: Queue::default(),
            sequences: Vec::new(),
            in_flight: VecDeque::new(),
            cancelled: HashSet::new(),
            slices: Slices::new(options.slice),
            events: Vec::new(),
            next_id: 0,
            admissions: 0,
            figures: Figures::default(),
        })
    }

    /// Adds a job. It is computed by the turns that follow.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it can never be computed: an empty prompt, no tokens to generate, more positions
    /// than a sequence may have, tokens outside the vocabulary, an image without visual tokens.
    pub fn submit(&mut self, job: Job) -> Result<JobId> {
        let length = job.prompt.len() + job.max_new;
        if job.prompt.is_empty() || job.max_new <= job.begun.len() || length > self.options.context {
            return Err(Error::InvalidArgument(format!(
                "a prompt of {} positions and {} new tokens of {}; a sequence has at most {} positions",
                job.prompt.len(),
                job.begun.len(),
                job.max_new,
                self.options.context
            )));
        }
        let begun: Vec<Position> = job.begun.iter().map(|id| Position::Text(*id)).collect();
        self.language.check_tokens(&begun)?;
        self.language.check_tokens(&self.inputs(&job, &job.prompt)?.0)?;
        let id = JobId(self.next_id);
        self.next_id += 1;
        self.queue.push(id, job);
        Ok(id)
    }

    /// Ends a job at the next turn.
    pub fn cancel(&mut self, id: JobId) {
        self.cancelled.insert(id);
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.sequences.is_empty() && self.in_flight.is_empty()
    }

    /// What it has done.
    pub fn figures(&self) -> Figures {
        Figures {
            waiting: self.queue.len(),
            running: self.sequences.len(),
            blocks: self.pool.count(),
            available_blocks: self.pool.available(),
            evicted_blocks: self.pool.evicted(),
            ..self.figures
        }
    }

    /// One slice of work: at most one part of a prompt and one decoding step. Returns what happened to the jobs.
    ///
    /// # Errors
    /// [Device errors](crate::gpu). The engine cannot be used afterwards.
    pub async fn turn(&mut self) -> Result<Vec<(JobId, Event)>> {
        self.end_cancelled();
        self.admit()?;
        self.prefill_slice().await?;
        let submitted = self.decode()?;
        self.read(submitted).await?;
        Ok(std::mem::take(&mut self.events))
    }

    fn end_cancelled(&mut self) {
        for id in std::mem::take(&mut self.cancelled) {
            let sequence = self.sequences.iter().position(|sequence| sequence.id == id);
            if let Some(sequence) = sequence {
                self.end(sequence, End::Cancelled);
            } else if self.queue.remove(id) {
                self.events.push((id, Event::Done(End::Cancelled)));
            }
        }
    }

    fn end(&mut self, sequence: usize, end: End) {
        let (id, _) = self.sequences.remove(sequence).release(&mut self.pool);
        self.events.push((id, Event::Done(end)));
    }

    /// Gives blocks to jobs that wait, while there are blocks for their prompts.
    fn admit(&mut self) -> Result<()> {
        while self.sequences.len() < self.options.parallel {
            let Some((id, job)) = self.queue.pop() else { break };
            let mut positions = job.prompt.clone();
            positions.extend(job.begun.iter().map(|id| CachedPosition::Text(*id)));
            // In deterministic mode tokens of an answer are no prefix of a prompt.
            let known = if self.options.deterministic { &job.prompt } else { &positions };
            let mut hit = self.pool.find_prefix(&job.salt, known);
            let fits = self.pool.available() > (positions.len() + 1).div_ceil(BLOCK_ROWS) - hit.table.blocks().len();
            if !fits && !self.sequences.is_empty() || !self.pool.extend(&mut hit.table, positions.len()) {
                self.pool.release(hit.table, &[]);
                self.queue.push_front(id, job);
                break;
            }
            if let Some(copy) = hit.copy {
                let mut recorder = self.gpu.record();
                self.cache.copy_rows(&mut recorder, copy.from, copy.to, copy.rows)?;
                recorder.submit()?;
            }
            self.figures.cached += hit.rows as u64;
            self.events.push((id, Event::Started { cached: hit.rows }));
            let seat = (0..).find(|seat| self.sequences.iter().all(|other| other.seat != *seat)).unwrap_or(0);
            let admission = (self.admissions, seat);
            self.admissions += 1;
            let deterministic = self.options.deterministic;
            self.sequences.push(Sequence::new((id, job), admission, (hit.table, hit.rows), deterministic));
        }
        Ok(())
    }

    /// Computes a part of one prompt: the one with the fewest positions left, unless another has waited too long.
    async fn prefill_slice(&mut self) -> Result<()> {
        let prefilling = self.sequences.iter().enumerate().filter(|(_, sequence)| !sequence.is_running());
        let left = |sequence: &Sequence| sequence.prefill - sequence.written;
        let next = prefilling.min_by_key(|(_, sequence)| (sequence.waited < MAX_WAIT, left(sequence)));
        let Some((index, _)) = next else { return Ok(()) };
        for (other, sequence) in self.sequences.iter_mut().enumerate() {
            sequence.waited = if other == index { 0 } else { sequence.waited + 1 };
        }
        let deterministic = self.options.deterministic;
        let most = if deterministic { DETERMINISTIC_SLICE } else { self.slices.positions() };
        let started = Instant::now();
        let sequence = &self.sequences[index];
        let (from, to) = (sequence.written, sequence.prefill.min(sequence.written + most));
        let (mut inputs, images) = self.inputs(&sequence.job, &sequence.positions[from..to])?;
        let blocks = sequence.table.blocks();
        let mut rows =
            vec![StepRows { sequence: PagedSequence { queries: to - from, keys: to, blocks }, token: NO_ROW }];
        // The kernels of a product depend on the number of rows.
        let padding = if deterministic { most - (to - from) } else { 0 };
        if padding > 0 {
            let sequence = PagedSequence { queries: padding, keys: padding, blocks: &self.spare };
            rows.push(StepRows { sequence, token: NO_ROW });
            inputs.extend(std::iter::repeat_n(Position::Text(0), padding));
        }
        let mut recorder = self.gpu.record();
        let x = self.language.embed(&mut recorder, &inputs, &images)?;
        let (cache, step, chosen) = (&self.cache, &mut self.prefill_step, &self.chosen);
        self.language.prefill_paged(&mut recorder, &x, cache, step, chosen, &rows)?;
        // In deterministic mode a preempted answer's tokens follow, by decoding steps.
        let is_end = to == sequence.positions.len();
        if is_end {
            let last = Tensor::temporary(&self.gpu, &[1, x.columns()], "last position")?;
            x.slice_rows(to - from - 1..to - from).copy_to(&mut recorder, &last, 0);
            let logits = self.language.logits(&mut recorder, &last)?;
            let slot = self.options.parallel * (STEPS_AHEAD + 1) + sequence.seat;
            let draw = draw(sequence.job.seed, sequence.generated());
            ops::sample(&mut recorder, &logits, sequence.job.sampling, draw, &self.chosen, slot)?;
            let read = self.chosen.slice_elements(slot..slot + 1).read_back(&mut recorder);
            self.in_flight.push_back(InFlight { read, tokens: vec![(sequence.admission, to)] });
            self.sequences[index].token = slot as u32;
        }
        recorder.finish().await?;
        recorder.submit()?;
        self.slices.measured(to - from, started.elapsed());
        let sequence = &mut self.sequences[index];
        sequence.written = to;
        sequence.register(&mut self.pool);
        self.figures.slices += 1;
        self.figures.prefilled += (to - from) as u64;
        self.queue.charge(sequence.job.user, to - from, 0);
        self.events.push((sequence.id, Event::Prefill { done: to, all: sequence.prefill }));
        Ok(())
    }

    /// Submits a step of all running sequences. Returns whether there was one.
    fn decode(&mut self) -> Result<bool> {
        if self.in_flight.len() >= self.steps_ahead() {
            return Ok(false);
        }
        self.make_room();
        let parallel = self.options.parallel;
        let is_next = |sequence: &Sequence| sequence.is_running() && !sequence.is_submitted();
        let next: Vec<usize> = (0..self.sequences.len()).filter(|index| is_next(&self.sequences[*index])).collect();
        if next.is_empty() {
            return Ok(false);
        }
        let first = parallel * self.ring;
        let mut rows = Vec::with_capacity(parallel);
        let mut tokens = Vec::with_capacity(parallel);
        let mut samplings = Vec::with_capacity(parallel);
        for index in &next {
            let sequence = &mut self.sequences[*index];
            if let Some(CachedPosition::Text(id)) = sequence.positions.get(sequence.written)
                && sequence.token == NO_ROW
            {
                // A token that is known, and was not chosen since the sequence was admitted.
                let slot = parallel * (STEPS_AHEAD + 1) + sequence.seat;
                self.chosen.write(&self.gpu, 4 * slot as u64, &id.to_ne_bytes());
                sequence.token = slot as u32;
            }
        }
        for index in &next {
            let sequence = &self.sequences[*index];
            let keys = sequence.written + 1;
            let blocks = sequence.table.blocks();
            rows.push(StepRows { sequence: PagedSequence { queries: 1, keys, blocks }, token: sequence.token });
            tokens.push((sequence.admission, keys));
            samplings.push((sequence.job.sampling, draw(sequence.job.seed, keys - sequence.job.prompt.len())));
        }
        if self.options.deterministic {
            // The kernels of a product depend on the number of rows.
            let sequence = PagedSequence { queries: 1, keys: 1, blocks: &self.spare };
            rows.resize(parallel, StepRows { sequence, token: rows[0].token });
            tokens.resize(parallel, (NO_ADMISSION, 0));
            samplings.resize(parallel, (Sampling::GREEDY, 0.0));
        }
        let mut recorder = self.gpu.record();
        let (cache, step, chosen) = (&self.cache, &mut self.decode_step, &self.chosen);
        let x = self.language.decode_paged(&mut recorder, cache, step, chosen, &rows)?;
        let logits = self.language.logits(&mut recorder, &x)?;
        sample_rows(&mut recorder, &logits, &samplings, &self.chosen, first)?;
        let read = self.chosen.slice_elements(first..first + rows.len()).read_back(&mut recorder);
        recorder.submit()?;
        self.in_flight.push_back(InFlight { read, tokens });
        self.figures.steps += 1;
        self.figures.rows += next.len() as u64;
        for (row, index) in next.into_iter().enumerate() {
            let sequence = &mut self.sequences[index];
            sequence.written += 1;
            // If the token is known, the one that was chosen is not needed.
            let is_known = sequence.written < sequence.positions.len();
            sequence.token = if is_known { NO_ROW } else { (first + row) as u32 };
            self.queue.charge(sequence.job.user, 0, 1);
        }
        self.ring = (self.ring + 1) % (STEPS_AHEAD + 1);
        Ok(true)
    }

    /// A row for each running sequence. If there are too few blocks, the sequences that were admitted last give theirs
    /// up.
    fn make_room(&mut self) {
        let mut index = 0;
        while index < self.sequences.len() {
            let sequence = &mut self.sequences[index];
            let is_next = sequence.is_running() && !sequence.is_submitted();
            if !is_next || self.pool.extend(&mut sequence.table, sequence.written + 1) {
                index += 1;
                continue;
            }
            let Some(last) = self.sequences.pop() else { break };
            let (id, job) = last.release(&mut self.pool);
            self.queue.push_front(id, job);
            self.figures.preempted += 1;
        }
    }

    /// Submissions before the first is read. While a prompt is computed, running sequences are only one step ahead, so
    /// that the next prompt waits less.
    fn steps_ahead(&self) -> usize {
        let prefilling = self.sequences.iter().any(|sequence| !sequence.is_running());
        if self.gpu.is_software() || prefilling { 1 } else { STEPS_AHEAD }
    }

    /// Reads the oldest tokens in flight, unless more steps can be submitted first.
    async fn read(&mut self, submitted: bool) -> Result<()> {
        if submitted && self.in_flight.len() < self.steps_ahead() {
            return Ok(());
        }
        let Some(InFlight { read, tokens }) = self.in_flight.pop_front() else { return Ok(()) };
        let ids: Vec<u32> = read.values().await?;
        tokens.into_iter().zip(ids).try_for_each(|((admission, position), id)| self.accept(admission, position, id))
    }

    /// The token that was chosen for a position of a sequence, if that is still running.
    fn accept(&mut self, admission: u64, position: usize, id: u32) -> Result<()> {
        let Some(index) = self.sequences.iter().position(|sequence| sequence.admission == admission) else {
            return Ok(());
        };
        let sequence = &mut self.sequences[index];
        if position < sequence.positions.len() {
            return Ok(());
        }
        if id as usize >= self.language.config().vocab_size {
            return Err(Error::Gpu(format!(
                "the device sampled token {id}, which is outside the vocabulary: the logits are probably NaN"
            )));
        }
        sequence.positions.push(CachedPosition::Text(id));
        sequence.register(&mut self.pool);
        self.events.push((sequence.id, Event::Token(id)));
        if sequence.job.stop.contains(&id) {
            self.end(index, End::Stop);
        } else if sequence.generated() >= sequence.job.max_new {
            self.end(index, End::Length);
        }
        Ok(())
    }

    /// Positions as the language model takes them, and the visual tokens of their images.
    fn inputs(&self, job: &Job, positions: &[CachedPosition]) -> Result<Inputs> {
        let number = |digest: &ImageDigest| job.images.iter().position(|(other, _)| other == digest);
        let mut inputs = Vec::with_capacity(positions.len());
        for position in positions {
            inputs.push(match position {
                CachedPosition::Text(id) => Position::Text(*id),
                CachedPosition::Visual { image, row } => {
                    let found = number(image).filter(|index| (*row as usize) < job.images[*index].1.rows());
                    let index = found.ok_or_else(|| {
                        Error::InvalidArgument(format!("visual token {row} of an image is missing in a job"))
                    })?;
                    Position::Visual { image: ImageId(index as u32), row: *row }
                }
            });
        }
        let images = job.images.iter().enumerate().map(|(index, (_, tokens))| (ImageId(index as u32), tokens.clone()));
        Ok((inputs, images.collect()))
    }
}

/// Chooses a token from each row of logits [rows, vocab].
fn sample_rows(
    recorder: &mut Recorder,
    logits: &Tensor,
    samplings: &[(Sampling, f32)],
    chosen: &Tensor,
    first: usize,
) -> Result<()> {
    if samplings.iter().all(|(sampling, _)| sampling.temperature <= 0.0) {
        return ops::sample(recorder, logits, Sampling::GREEDY, 0.0, chosen, first);
    }
    for (row, (sampling, draw)) in samplings.iter().enumerate() {
        let one = Tensor::temporary(recorder.gpu(), &[1, logits.columns()], "logits of a row")?;
        logits.slice_rows(row..row + 1).copy_to(recorder, &one, 0);
        ops::sample(recorder, &one, *sampling, *draw, chosen, first + row)?;
    }
    Ok(())
}

/// The uniform number in [0, 1) for an answer's token number `index`: the same whenever it is chosen. SplitMix64
/// (Steele, Lea and Flood, 2014) can begin anywhere in its sequence.
fn draw(seed: u64, index: usize) -> f32 {
    let mut z = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // An f32 holds 24 bits exactly.
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
}
