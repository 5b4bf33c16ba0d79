//! Continuous batching: sequences join and leave between steps.

use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use web_time::Instant;

use super::blocks::{BLOCK_ROWS, BlockCopy, BlockPool, BlockTable};
use super::digest::CachedPosition;
use super::encoder::{Encoder, ImageFigures};
use super::job::{Event, Job, JobId};
use super::lookup::{Candidate, DraftCost};
use super::queue::Queue;
use super::recovery::Unfinished;
use super::request::Request;
use super::sampler::{LogprobsRead, Sampler, token_logprobs};
use super::sequence::{AnswerState, Sequence};
use super::slice::{self, Slices};
use crate::generation::{FinishReason, StopReason};
use crate::gpu::{Gpu, Readback, Recorder};
use crate::language::{LanguageModel, PagedCache, PagedStep, Position, RowControls, StepRows};
use crate::ops::{NO_ROW, PagedSequence};
use crate::tensor::Tensor;
use crate::text::stop::StopIds;
use crate::text::tokenizer::Tokenizer;
use crate::vision::Vision;
use crate::{Error, Result};

/// Steps that are submitted before the first one is read, as of one sequence.
const STEPS_AHEAD: usize = 3;
/// A prompt waits for at most this number of slices of others.
const MAX_WAIT: usize = 3;
/// In deterministic mode, positions of a slice: products of other row counts may be computed by other kernels.
const DETERMINISTIC_SLICE: usize = 64;

/// Rows of a step at most.
const MOST_ROWS: usize = 16;
/// Tokens of a draft by default: a step of eight rows is little slower than one of a row on most GPUs.
const PROMPT_LOOKUP: usize = 7;
/// On a software adapter eight rows take 2.6 to 3 times as long as one.
const SOFTWARE_DRAFTS: DraftCost = DraftCost { row: 0.27, wait: 0.0 };
/// On a GPU most of a step is reading the weights, but it is idle while the host reads the tokens.
const GPU_DRAFTS: DraftCost = DraftCost { row: 0.05, wait: 0.15 };

/// Bytes of the cache of visual tokens by default: 54 images of MGM-7B.
const IMAGE_CACHE: u64 = 512 << 20;

/// How an engine divides the device.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Sequences that decode together, 1 to 16.
    pub parallel: usize,
    /// Positions of a sequence at most.
    pub context: usize,
    /// Positions of all sequences and of the prefix cache.
    pub capacity: usize,
    /// The time of a slice of a prompt or of an image's encoding, for which running sequences wait.
    pub slice: Duration,
    /// Bytes of visual tokens that are cached.
    pub image_cache: u64,
    /// Tokens of a prompt-lookup draft at most, up to 15; 0 for none. Rows of a step that no sequence needs verify what
    /// followed an earlier occurrence of a sequence's last tokens, where that is often right. The tokens of an answer
    /// do not depend on it, but for near ties, of which there are none in deterministic mode.
    pub prompt_lookup: usize,
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
            image_cache: IMAGE_CACHE,
            prompt_lookup: PROMPT_LOOKUP,
            deterministic: false,
        }
    }

    /// Rows of a step, those of drafts included. In deterministic mode all steps have as many, and drafts must not
    /// change them.
    fn rows(&self) -> usize {
        match self.deterministic {
            true => self.parallel,
            false => self.parallel.max((1 + self.prompt_lookup).min(MOST_ROWS)),
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
    /// Rows of all of them, without those of drafts.
    pub rows: u64,
    /// Tokens of drafts that were verified.
    pub drafted: u64,
    /// Those of them that were right.
    pub accepted: u64,
    /// Slices of prompts.
    pub slices: u64,
    /// Positions of prompts that were computed.
    pub prefilled: u64,
    /// Positions of prompts that were in the cache.
    pub cached: u64,
    /// Jobs that gave their blocks up.
    pub preempted: u64,
    /// Images.
    pub images: ImageFigures,
}

/// A submission whose tokens are not read yet.
#[derive(Debug)]
struct InFlight {
    read: Readback,
    logprobs: Option<LogprobsRead>,
    tokens: Vec<StepToken>,
}

/// A token that is chosen by a submission.
#[derive(Debug, Clone, Copy)]
struct StepToken {
    /// The admission of its sequence.
    admission: u64,
    position: usize,
    /// The token before it, if that is one of a draft.
    draft: Option<u32>,
    /// Its place among the chosen tokens.
    slot: usize,
}

/// Many sequences on one model. The host submits jobs and calls [`Self::turn`] until the engine is idle.
#[derive(Debug)]
pub struct Engine<'a> {
    gpu: Gpu,
    language: &'a LanguageModel,
    /// What decodes answers and ends them.
    text: Option<(&'a Tokenizer, &'a StopIds)>,
    options: EngineOptions,
    cache: PagedCache,
    pool: BlockPool,
    /// Blocks for rows of no sequence, after those of the pool.
    spare: Vec<u32>,
    prefill_step: PagedStep,
    decode_step: PagedStep,
    /// Tokens that the device chose: rings of steps, then one for each seat, the first after a prompt; then those of
    /// drafts, which the host writes.
    chosen: Tensor,
    ring: usize,
    /// The first tokens of a prompt's answers, before each has its place in `chosen`.
    first_tokens: Tensor,
    sampler: Sampler,
    encoder: Encoder<'a>,
    queue: Queue,
    /// In the order of their admission.
    sequences: Vec<Sequence<'a>>,
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
        if !(1..=MOST_ROWS).contains(&parallel) || context < 2 || capacity < context {
            return Err(Error::InvalidArgument(format!(
                "{parallel} sequences of {context} positions in a cache of {capacity}, expected 1 to {MOST_ROWS} sequences, 2 positions or more, and a cache for one sequence"
            )));
        }
        if options.prompt_lookup >= MOST_ROWS {
            return Err(Error::InvalidArgument(format!(
                "prompt_lookup is {}, expected 0 to {} tokens",
                options.prompt_lookup,
                MOST_ROWS - 1
            )));
        }
        let blocks = capacity.div_ceil(BLOCK_ROWS);
        let spare = slice::MOST.div_ceil(BLOCK_ROWS);
        let of_sequence = context.div_ceil(BLOCK_ROWS);
        let rows = options.rows();
        let slots = rows * (STEPS_AHEAD + 1) + parallel + rows;
        Ok(Self {
            gpu: gpu.clone(),
            language,
            text: None,
            options,
            // Slices of deterministic mode have positions that no sequence has.
            cache: language.paged_cache(gpu, blocks + spare, context.max(DETERMINISTIC_SLICE))?,
            pool: BlockPool::new(blocks),
            spare: (blocks as u32..).take(spare).collect(),
            prefill_step: language.paged_step(gpu, slice::MOST, 2, of_sequence + spare)?,
            decode_step: language.paged_step(gpu, rows, rows, rows * of_sequence)?,
            chosen: Tensor::zeros(gpu, &[slots], "chosen tokens")?,
            ring: 0,
            first_tokens: Tensor::zeros(gpu, &[parallel], "first tokens")?,
            sampler: Sampler::new(gpu, language.config().vocab_size, parallel, slots)?,
            encoder: Encoder::new(gpu, options.image_cache, options.slice),
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

    /// Decodes answers to text, which stop strings need, and ends them with the model's stop tokens too.
    pub fn with_text(self, tokenizer: &'a Tokenizer, stop_ids: &'a StopIds) -> Self {
        Self { text: Some((tokenizer, stop_ids)), ..self }
    }

    /// Takes jobs with images, which `vision` encodes.
    #[must_use]
    pub fn with_vision(mut self, vision: &'a Vision) -> Self {
        self.encoder.set_vision(vision);
        self
    }

    /// Adds a job. It is computed by the turns that follow.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`] if a sequence cannot hold the prompt; [`Error::InvalidArgument`] if the job can never
    /// be computed for another reason: an empty prompt, no tokens to generate, more positions than a sequence may have,
    /// options out of range, more answers than sequences, stop strings without [`Self::with_text`], tokens outside the
    /// vocabulary, an image that is not among the job's.
    pub fn submit(&mut self, job: Job) -> Result<JobId> {
        self.check(&job)?;
        let id = JobId(self.next_id);
        self.next_id += 1;
        let (n, job) = (job.options.n, Rc::new(job));
        if job.options.resume_from.iter().all(Vec::is_empty) {
            self.queue.push(Request::new(id, job, 0, n - 1, Vec::new()));
            return Ok(id);
        }
        for choice in 0..n {
            let begun = job.options.resume_from.get(choice).cloned().unwrap_or_default();
            self.resume(Request::new(id, job.clone(), choice, 0, begun));
        }
        Ok(id)
    }

    /// Whether a job can be computed.
    fn check(&self, job: &Job) -> Result<()> {
        let context = self.options.context;
        let (prompt, options) = (job.prompt.len(), &job.options);
        if prompt >= context {
            return Err(Error::PromptTooLong { tokens: prompt, limit: context });
        }
        options.check(self.language.config().vocab_size)?;
        let most = options.max_new_tokens;
        let begun = |choice: usize| options.resume_from.get(choice).map_or(&[] as &[u32], Vec::as_slice);
        let is_complete = (0..options.n).all(|choice| begun(choice).len() >= most);
        if prompt == 0 || is_complete || prompt + most > context {
            return Err(Error::InvalidArgument(format!(
                "a prompt of {prompt} positions and {} of {most} new tokens; a sequence has at most {context} positions",
                begun(0).len(),
            )));
        }
        if options.n > self.options.parallel {
            return Err(Error::InvalidArgument(format!(
                "n is {}, expected at most {} answers, the sequences that are computed at once",
                options.n, self.options.parallel
            )));
        }
        if self.text.is_none() && !options.stop.is_empty() {
            return Err(Error::InvalidArgument("stop strings need an engine with a tokenizer".to_owned()));
        }
        let text = job.prompt.iter().filter_map(|position| match position {
            CachedPosition::Text(id) => Some(id),
            CachedPosition::Visual { .. } => None,
        });
        let resumed = options.resume_from.iter().flatten();
        let tokens: Vec<Position> = text.chain(resumed).map(|id| Position::Text(*id)).collect();
        self.language.check_tokens(&tokens)?;
        self.encoder.check(job)
    }

    /// Queues an answer that exists in part, unless it has ended.
    fn resume(&mut self, request: Request) {
        let state = AnswerState::new(self.text, &request);
        let generated = request.begun.len();
        let done = match state.text.end() {
            Some(reason) => request.done(FinishReason::Stop, reason.as_ref(), generated),
            None if state.is_terminated() => request.done(FinishReason::Stop, None, generated),
            None if generated >= request.job.options.max_new_tokens => {
                request.done(FinishReason::Length, None, generated)
            }
            None => return self.queue.push(request),
        };
        self.events.extend(done);
    }

    /// Ends a job at the next turn.
    pub fn cancel(&mut self, id: JobId) {
        self.cancelled.insert(id);
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.sequences.is_empty() && self.in_flight.is_empty() && self.events.is_empty()
    }

    /// What it has done.
    pub fn figures(&self) -> Figures {
        Figures {
            waiting: self.queue.len(),
            running: self.sequences.len(),
            blocks: self.pool.count(),
            available_blocks: self.pool.available(),
            evicted_blocks: self.pool.evicted(),
            images: self.encoder.figures(),
            ..self.figures
        }
    }

    /// One slice of work: at most one part of a prompt or an image, and one decoding step. Returns what happened to the
    /// jobs.
    ///
    /// # Errors
    /// [Device errors](crate::gpu). The engine cannot be used afterwards, but for [`Self::into_unfinished`].
    pub async fn turn(&mut self) -> Result<Vec<(JobId, Event)>> {
        self.end_cancelled();
        self.admit()?;
        self.end_failed();
        self.slice().await?;
        let submitted = self.decode().await?;
        self.end_failed();
        self.read(submitted).await?;
        self.end_failed();
        Ok(std::mem::take(&mut self.events))
    }

    /// The jobs that did not end, for another engine ([`Self::take_over`]). After a lost device no token that was
    /// reported is computed again, and later draws are the same.
    pub fn into_unfinished(mut self) -> Unfinished {
        // Those that were admitted first are the first to be admitted again.
        while let Some(sequence) = self.sequences.pop() {
            let request = sequence.release(&mut self.pool);
            self.queue.push_front(request);
        }
        let Self { events, queue, cancelled, next_id, .. } = self;
        Unfinished { events, queue, cancelled, next_id }
    }

    /// Continues the jobs of an engine whose device was lost, under the same ids. The next turn reports what happened
    /// before; a job that this engine cannot compute fails.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if this engine has been given jobs already.
    pub fn take_over(&mut self, unfinished: Unfinished) -> Result<()> {
        if self.next_id > 0 {
            let reason = "an engine takes over the jobs of another before it has its own";
            return Err(Error::InvalidArgument(reason.to_owned()));
        }
        Unfinished { events: self.events, queue: self.queue, cancelled: self.cancelled, next_id: self.next_id } =
            unfinished;
        let failed = |request: &Request| Some((request.id, self.check(&request.job).err()?));
        let failed: Vec<(JobId, Error)> = self.queue.requests().filter_map(failed).collect();
        for (id, error) in failed {
            for request in self.queue.remove(id) {
                self.events.extend(request.failed(&error));
            }
        }
        Ok(())
    }

    fn end_cancelled(&mut self) {
        for id in std::mem::take(&mut self.cancelled) {
            for request in self.queue.remove(id) {
                self.events.extend(request.done(FinishReason::Cancelled, None, request.begun.len()));
            }
            while let Some(index) = self.sequences.iter().position(|sequence| sequence.request.id == id) {
                self.end(index, FinishReason::Cancelled, None);
            }
        }
        let sequences = self.sequences.iter().map(|sequence| &sequence.images);
        self.encoder.stop_unwanted(sequences, self.queue.requests().map(|request| &*request.job));
    }

    fn end(&mut self, index: usize, reason: FinishReason, stop_reason: Option<&StopReason>) {
        let mut sequence = self.sequences.remove(index);
        let (generated, choice) = (sequence.generated(), sequence.request.choice);
        let rest = sequence.text.finish();
        let request = sequence.release(&mut self.pool);
        if let Some(text) = rest {
            self.events.push((request.id, Event::Delta { choice, ids: Vec::new(), text, logprobs: Vec::new() }));
        }
        self.events.extend(request.done(reason, stop_reason, generated));
    }

    /// Gives blocks to jobs that wait, while there are blocks for their prompts.
    fn admit(&mut self) -> Result<()> {
        loop {
            let taken: usize = self.sequences.iter().map(Sequence::count).sum();
            if taken >= self.options.parallel {
                break;
            }
            let Some(mut request) = self.queue.pop() else { break };
            let (job, positions) = (request.job.clone(), request.positions());
            // In deterministic mode tokens of an answer are no prefix of a prompt.
            let known = if self.options.deterministic { &job.prompt } else { &positions };
            let mut hit = self.pool.find_prefix(&job.salt, known);
            let needed = (positions.len() + 1).div_ceil(BLOCK_ROWS) + request.forks;
            let fits = self.pool.available() > needed - hit.table.blocks().len()
                && taken + 1 + request.forks <= self.options.parallel;
            if !fits && !self.sequences.is_empty() || !self.pool.extend(&mut hit.table, positions.len()) {
                self.pool.release(hit.table, &[]);
                self.queue.push_front(request);
                break;
            }
            if let Some(copy) = hit.copy
                && let Err(error) = self.copy_block(copy)
            {
                // The job is not lost with the device.
                self.pool.release(hit.table, &[]);
                self.queue.push_front(request);
                return Err(error);
            }
            let images = self.encoder.admit(&job, &positions[hit.rows..]);
            self.figures.cached += hit.rows as u64;
            self.events.push((request.id, Event::Started { cached: hit.rows }));
            request.cached.get_or_insert(hit.rows.min(job.prompt.len()));
            request.times.admitted.get_or_insert_with(Instant::now);
            let admission = self.take_seat();
            self.seat(request, admission, (hit.table, hit.rows))?;
            if let Some(sequence) = self.sequences.last_mut() {
                sequence.images = images;
            }
        }
        Ok(())
    }

    fn copy_block(&self, copy: BlockCopy) -> Result<()> {
        let mut recorder = self.gpu.record();
        self.cache.copy_rows(&mut recorder, copy.from, copy.to, copy.rows)?;
        recorder.submit()
    }

    /// The number of an admission, and a seat that no sequence has.
    fn take_seat(&mut self) -> (u64, usize) {
        let seat = (0..).find(|seat| self.sequences.iter().all(|other| other.seat != *seat)).unwrap_or(0);
        self.admissions += 1;
        (self.admissions - 1, seat)
    }

    /// Adds a sequence whose first `cached` positions are in `table`.
    fn seat(&mut self, request: Request, admission: (u64, usize), (table, cached): (BlockTable, usize)) -> Result<()> {
        let options = &request.job.options;
        if options.sampling.has_penalties()
            && let Err(error) = self.sampler.set_counts(admission.1, &request.job.prompt, &request.begun)
        {
            self.pool.release(table, &[]);
            self.queue.push_front(request);
            return Err(error);
        }
        let state = AnswerState::new(self.text, &request);
        let (deterministic, vocab) = (self.options.deterministic, self.language.config().vocab_size);
        self.sequences.push(Sequence::new(request, admission, (table, cached), deterministic, (state, vocab)));
        Ok(())
    }

    /// Computes a part of one prompt or of its image: the one with the fewest positions left, unless another has waited
    /// too long. Prompts without images go first. A prompt whose next positions are being computed for another waits
    /// for them.
    async fn slice(&mut self) -> Result<()> {
        let waits: Vec<bool> = (0..self.sequences.len()).map(|index| self.waits_for_prefix(index)).collect();
        for (sequence, waits) in self.sequences.iter_mut().zip(&waits) {
            sequence.shares_prefix |= waits;
        }
        let prefilling = self.sequences.iter().enumerate();
        let prefilling = prefilling.filter(|(index, sequence)| !sequence.is_running() && !waits[*index]);
        let order = |sequence: &Sequence<'_>| {
            (sequence.waited < MAX_WAIT, sequence.images.are_missing(), sequence.prefill - sequence.written)
        };
        let Some((index, _)) = prefilling.min_by_key(|(_, sequence)| order(sequence)) else { return Ok(()) };
        for (other, sequence) in self.sequences.iter_mut().enumerate() {
            sequence.waited = if other == index { 0 } else { sequence.waited + 1 };
        }
        if std::mem::take(&mut self.sequences[index].shares_prefix) && !self.take_shared_prefix(index)? {
            return Ok(());
        }
        if self.sequences[index].images.are_missing() {
            self.encode_slice(index).await
        } else {
            self.prefill_slice(index).await
        }
    }

    /// Whether another sequence is computing blocks that this one begins with too.
    fn waits_for_prefix(&self, index: usize) -> bool {
        let sequence = &self.sequences[index];
        let is_ahead = |(other_index, other): (usize, &Sequence<'_>)| {
            let is_first = other.written > sequence.written || other.written == sequence.written && other_index < index;
            if other_index == index || other.is_running() || !is_first {
                return false;
            }
            let shared = sequence.common_prefix(other) / BLOCK_ROWS * BLOCK_ROWS;
            shared > other.written
        };
        !sequence.is_running() && self.sequences.iter().enumerate().any(is_ahead)
    }

    /// Takes what was computed of a sequence's prompt for others since its admission. Returns false if it has to wait
    /// for blocks instead.
    fn take_shared_prefix(&mut self, index: usize) -> Result<bool> {
        let sequence = &mut self.sequences[index];
        let job = sequence.request.job.clone();
        let before = sequence.written;
        let stored = sequence.stored().to_vec();
        let table = std::mem::replace(&mut sequence.table, BlockTable::new(job.salt.clone()));
        self.pool.release(table, &stored);
        let known = if self.options.deterministic { &job.prompt } else { &sequence.positions };
        let mut hit = self.pool.find_prefix(&job.salt, known);
        let fits = self.pool.extend(&mut hit.table, sequence.positions.len());
        (sequence.table, sequence.written) = (hit.table, hit.rows);
        if !fits {
            // It had more blocks than it needs now, so this does not happen.
            let request = self.sequences.remove(index).release(&mut self.pool);
            self.queue.push_front(request);
            return Ok(false);
        }
        sequence.images.keep_named(&job, &sequence.positions[hit.rows..]);
        if sequence.request.times.first_token.is_none() {
            sequence.request.cached = Some(hit.rows.min(job.prompt.len()));
        }
        let (id, all) = (sequence.request.id, sequence.prefill);
        if let Some(copy) = hit.copy {
            self.copy_block(copy)?;
        }
        self.figures.cached += hit.rows.saturating_sub(before) as u64;
        self.events.push((id, Event::Prefill { done: hit.rows, all }));
        Ok(true)
    }

    /// Computes a part of an image: of one that is being encoded, or of the first one that a sequence misses.
    async fn encode_slice(&mut self, index: usize) -> Result<()> {
        let Sequence { request, images, .. } = &self.sequences[index];
        let user = request.job.user;
        let ended = self.encoder.slice(&request.job, images).await?;
        match ended {
            None => {}
            Some((image, Ok(tokens))) => {
                // As its positions in a prompt cost, whose computation it takes about as long as.
                self.queue.charge(user, tokens.rows(), 0);
                self.sequences.iter_mut().for_each(|sequence| sequence.images.receive(&image, &tokens));
            }
            Some((image, Err(error))) => {
                for sequence in self.sequences.iter_mut().filter(|sequence| sequence.images.miss(&image)) {
                    sequence.error = Some(error.clone());
                }
                self.end_failed();
            }
        }
        for Sequence { request, images, .. } in &mut self.sequences {
            if let Some((done, all)) = self.encoder.progress(images) {
                self.events.push((request.id, Event::Encoding { done, all }));
            }
        }
        Ok(())
    }

    async fn prefill_slice(&mut self, index: usize) -> Result<()> {
        let deterministic = self.options.deterministic;
        let most = if deterministic { DETERMINISTIC_SLICE } else { self.slices.positions() };
        let started = Instant::now();
        let sequence = &self.sequences[index];
        let (from, to) = (sequence.written, sequence.prefill.min(sequence.written + most));
        let (mut inputs, images) = sequence.images.inputs(&sequence.request.job, &sequence.positions[from..to])?;
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
            self.sequences[index].written = to;
            self.begin_answers(&mut recorder, index, &logits)?;
        }
        recorder.finish().await?;
        recorder.submit()?;
        self.slices.measured(to - from, started.elapsed());
        let sequence = &mut self.sequences[index];
        sequence.written = to;
        sequence.register(&mut self.pool);
        if sequence.is_running() {
            sequence.images.drop_tokens();
        }
        self.figures.slices += 1;
        self.figures.prefilled += (to - from) as u64;
        self.queue.charge(sequence.request.job.user, to - from, 0);
        self.events.push((sequence.request.id, Event::Prefill { done: to, all: sequence.prefill }));
        Ok(())
    }

    /// Records the choice of the first tokens after a prompt, whose last position has `logits` [1, vocab]. Each answer
    /// becomes a sequence, which shares the prompt's full blocks.
    fn begin_answers(&mut self, recorder: &mut Recorder, index: usize, logits: &Tensor) -> Result<()> {
        let mut answers = vec![index];
        let forks = self.sequences[index].request.forks;
        let rows = self.sequences[index].written;
        // From the last: if the device is lost meanwhile, those before are still to begin.
        for fork in (1..=forks).rev() {
            let leader = &self.sequences[index];
            let request = leader.request.fork(leader.request.choice + fork);
            let Some((table, copy)) = self.pool.fork(&leader.table, rows) else {
                // It begins later, from the cached prompt.
                self.queue.push_front(request);
                self.sequences[index].request.forks = fork - 1;
                continue;
            };
            if let Some(copy) = copy {
                self.cache.copy_rows(recorder, copy.from, copy.to, copy.rows)?;
            }
            let admission = self.take_seat();
            self.sequences[index].request.forks = fork - 1;
            self.seat(request, admission, (table, rows))?;
            answers.push(self.sequences.len() - 1);
        }
        let mut all = logits.clone();
        if answers.len() > 1 {
            all = Tensor::temporary(&self.gpu, &[answers.len(), logits.columns()], "logits of answers")?;
            (0..answers.len()).for_each(|row| logits.copy_to(recorder, &all, row));
        }
        let position = self.sequences[index].positions.len();
        let token = |answer: &usize| {
            let Sequence { admission, seat, .. } = self.sequences[*answer];
            StepToken { admission, position, draft: None, slot: self.seat_slot(seat) }
        };
        let tokens: Vec<StepToken> = answers.iter().map(token).collect();
        self.set_masks(&tokens)?;
        let (controls, top) = self.controls(&tokens);
        let logprobs = self.sampler.record(recorder, &all, &controls, (&self.first_tokens, 0), top)?;
        let read = self.first_tokens.slice_elements(0..answers.len()).read_back(recorder);
        let chosen = self.chosen.reshape(&[self.chosen.len(), 1]);
        for (row, answer) in answers.into_iter().enumerate() {
            let slot = tokens[row].slot;
            self.first_tokens.slice_elements(row..row + 1).copy_to(recorder, &chosen, slot);
            self.sequences[answer].token = slot as u32;
        }
        self.in_flight.push_back(InFlight { read, logprobs, tokens });
        Ok(())
    }

    /// The place of a seat's first token among the chosen ones.
    fn seat_slot(&self, seat: usize) -> usize {
        self.options.rows() * (STEPS_AHEAD + 1) + seat
    }

    /// Submits a step of all running sequences. Returns whether there was one. If a sequence is constrained, the layers
    /// are submitted first: they run while the host reads the tokens before and computes what may come next. With
    /// drafts, the tokens are read at once: what the next step computes depends on them.
    async fn decode(&mut self) -> Result<bool> {
        if self.in_flight.len() >= self.steps_ahead() {
            return Ok(false);
        }
        if self.expects_drafts() {
            self.read_all().await?;
            self.end_failed();
        }
        self.make_room();
        let is_next = |sequence: &Sequence<'_>| sequence.is_running() && !sequence.is_submitted();
        let next: Vec<usize> = (0..self.sequences.len()).filter(|index| is_next(&self.sequences[*index])).collect();
        if next.is_empty() {
            return Ok(false);
        }
        let drafts = self.drafts(&next);
        for index in &next {
            let slot = self.seat_slot(self.sequences[*index].seat);
            let sequence = &mut self.sequences[*index];
            if let Some(CachedPosition::Text(id)) = sequence.positions.get(sequence.written)
                && sequence.token == NO_ROW
            {
                // A token that is known, and was not chosen since the sequence was admitted.
                self.chosen.write(&self.gpu, 4 * slot as u64, &id.to_ne_bytes());
                sequence.token = slot as u32;
            }
        }
        let first = self.options.rows() * self.ring;
        let draft_slot = self.seat_slot(self.options.parallel);
        let drafted: Vec<u32> = drafts.concat();
        if !drafted.is_empty() {
            self.chosen.write(&self.gpu, 4 * draft_slot as u64, bytemuck::cast_slice(&drafted));
        }
        let (mut rows, tokens) = step_rows(&self.sequences, &next, &drafts, (first, draft_slot));
        if self.options.deterministic {
            // The kernels of a product depend on the number of rows.
            let sequence = PagedSequence { queries: 1, keys: 1, blocks: &self.spare };
            rows.resize(self.options.rows(), StepRows { sequence, token: rows[0].token });
        }
        let rows_in_all = rows.len();
        let mut recorder = self.gpu.record();
        let (cache, step, chosen) = (&self.cache, &mut self.decode_step, &self.chosen);
        let x = self.language.decode_paged(&mut recorder, cache, step, chosen, &rows)?;
        let logits = self.language.logits(&mut recorder, &x)?;
        self.figures.steps += 1;
        self.figures.rows += next.len() as u64;
        self.figures.drafted += drafted.len() as u64;
        let is_constrained = next.iter().any(|index| self.sequences[*index].constraint.is_some());
        for index in next {
            let sequence = &mut self.sequences[index];
            sequence.written += 1;
            self.queue.charge(sequence.request.job.user, 0, 1);
        }
        if is_constrained {
            recorder.submit()?;
            self.read_all().await?;
            self.set_masks(&tokens)?;
            recorder = self.gpu.record();
        }
        let (mut controls, top) = self.controls(&tokens);
        controls.resize(rows_in_all, RowControls::default());
        let logprobs = self.sampler.record(&mut recorder, &logits, &controls, (&self.chosen, first), top)?;
        let read = self.chosen.slice_elements(first..first + tokens.len()).read_back(&mut recorder);
        recorder.submit()?;
        for StepToken { admission, position, slot, .. } in tokens.iter().filter(|token| token.draft.is_none()) {
            if let Some(sequence) = self.sequences.iter_mut().find(|sequence| sequence.admission == *admission) {
                // If the token is known, the one that was chosen is not needed.
                let is_known = *position < sequence.positions.len();
                sequence.token = if is_known { NO_ROW } else { *slot as u32 };
            }
        }
        self.in_flight.push_back(InFlight { read, logprobs, tokens });
        self.ring = (self.ring + 1) % (STEPS_AHEAD + 1);
        if !drafted.is_empty() {
            self.read_all().await?;
        }
        Ok(true)
    }

    /// What a row of a draft costs. In deterministic mode steps have all rows anyway.
    fn draft_cost(&self) -> DraftCost {
        let cost = if self.gpu.is_software() { SOFTWARE_DRAFTS } else { GPU_DRAFTS };
        if self.options.deterministic { DraftCost { row: 0.0, ..cost } } else { cost }
    }

    /// Whether the next step may have drafts, so that the tokens before it should be read first.
    fn expects_drafts(&mut self) -> bool {
        if self.options.prompt_lookup == 0 {
            return false;
        }
        self.sequences.iter_mut().for_each(Sequence::update_lookup);
        let running = self.sequences.iter().filter(|sequence| sequence.is_running()).count();
        let free = self.options.rows().saturating_sub(running);
        let candidates: Vec<Candidate> = self.sequences.iter().map(|sequence| self.candidate(sequence)).collect();
        self.draft_cost().divide(running.max(1), free, &candidates).iter().any(|length| *length > 0)
    }

    fn candidate(&self, sequence: &Sequence<'_>) -> Candidate {
        let length = self.options.prompt_lookup.min(sequence.most_drafts());
        match sequence.lookup.confidence() {
            Some(confidence) => Candidate { confidence, length },
            None => Candidate { confidence: 0.0, length: 0 },
        }
    }

    /// Drafts for the rows of a step that the sequences `next` leave free.
    fn drafts(&mut self, next: &[usize]) -> Vec<Vec<u32>> {
        let mut drafts = vec![Vec::new(); next.len()];
        if self.options.prompt_lookup == 0 {
            return drafts;
        }
        for index in next {
            self.sequences[*index].update_lookup();
        }
        let candidate = |index: &usize| {
            let sequence = &self.sequences[*index];
            let is_known = sequence.positions.len() == sequence.written + 1;
            let Candidate { confidence, length } = self.candidate(sequence);
            Candidate { confidence, length: if is_known { length } else { 0 } }
        };
        let candidates: Vec<Candidate> = next.iter().map(candidate).collect();
        let lengths = self.draft_cost().divide(next.len(), self.options.rows() - next.len(), &candidates);
        for ((index, length), draft) in next.iter().zip(lengths).zip(&mut drafts) {
            let sequence = &mut self.sequences[*index];
            if length > 0 && self.pool.extend(&mut sequence.table, sequence.written + 1 + length) {
                *draft = sequence.lookup.draft(&sequence.positions, length);
            }
        }
        drafts
    }

    /// How the tokens at positions of sequences are chosen, and the number of best tokens to report, if any. Sequences
    /// that ended meanwhile, and no one's rows, may have any token.
    fn controls(&self, tokens: &[StepToken]) -> (Vec<RowControls<'_>>, Option<usize>) {
        let find = |admission: u64| self.sequences.iter().find(|sequence| sequence.admission == admission);
        let mut controls = Vec::with_capacity(tokens.len());
        let mut top = None;
        for StepToken { admission, position, .. } in tokens {
            let sequence = find(*admission);
            controls.push(sequence.map_or_else(RowControls::default, |sequence| sequence.controls(*position)));
            top = top.max(sequence.and_then(|sequence| sequence.top_logprobs(*position)));
        }
        (controls, top)
    }

    /// Uploads the allowed tokens of constrained sequences, of which all tokens before those positions are known.
    fn set_masks(&mut self, tokens: &[StepToken]) -> Result<()> {
        let vocab = self.language.config().vocab_size;
        for StepToken { admission, position, .. } in tokens {
            let sequence = self.sequences.iter_mut().find(|sequence| sequence.admission == *admission);
            let Some(sequence) = sequence.filter(|sequence| *position >= sequence.positions.len()) else { continue };
            let Some(constraint) = &mut sequence.constraint else { continue };
            let mut mask = vec![0; vocab.div_ceil(32)];
            match constraint.fill_mask(&mut mask) {
                Ok(()) if (0..vocab).any(|id| mask[id / 32] >> (id % 32) & 1 == 1) => {
                    self.sampler.set_mask(sequence.seat, &mask)?;
                }
                Ok(()) => {
                    let reason = format!("a constraint allows no token after {} of an answer", sequence.generated());
                    sequence.error = Some(Error::InvalidArgument(reason));
                }
                Err(error) => sequence.error = Some(error),
            }
        }
        Ok(())
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
            let request = last.release(&mut self.pool);
            self.queue.push_front(request);
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
        self.read_oldest().await
    }

    async fn read_all(&mut self) -> Result<()> {
        while !self.in_flight.is_empty() {
            self.read_oldest().await?;
        }
        Ok(())
    }

    async fn read_oldest(&mut self) -> Result<()> {
        let Some(InFlight { read, logprobs, tokens }) = self.in_flight.pop_front() else { return Ok(()) };
        let ids: Vec<u32> = read.values().await?;
        let logprobs = match logprobs {
            Some(read) => read.rows().await?,
            None => Vec::new(),
        };
        for (row, (token, id)) in tokens.into_iter().zip(ids).enumerate() {
            self.accept(token, id, logprobs.get(row).map_or(&[], Vec::as_slice));
        }
        Ok(())
    }

    /// The token that was chosen for a position of a sequence, if that is still running. After a draft it counts only
    /// if the draft was right so far.
    fn accept(&mut self, StepToken { admission, position, draft, slot }: StepToken, id: u32, logprobs: &[u32]) {
        let Some(index) = self.sequences.iter().position(|sequence| sequence.admission == admission) else {
            return;
        };
        let sequence = &mut self.sequences[index];
        if let Some(draft) = draft {
            if position != sequence.positions.len() || sequence.positions.last() != Some(&CachedPosition::Text(draft)) {
                return;
            }
            // The row of the cache is that of the right token.
            sequence.written = position;
            sequence.token = slot as u32;
            self.figures.accepted += 1;
            self.queue.charge(sequence.request.job.user, 0, 1);
        }
        if position < sequence.positions.len() || sequence.error.is_some() {
            return;
        }
        if id as usize >= self.language.config().vocab_size {
            let reason =
                format!("the device sampled token {id}, which is outside the vocabulary: the logits are probably NaN");
            sequence.error = Some(Error::Gpu(reason));
            return;
        }
        let top = sequence.top_logprobs(position);
        sequence.positions.push(CachedPosition::Text(id));
        sequence.register(&mut self.pool);
        sequence.request.times.first_token.get_or_insert_with(Instant::now);
        let delta = Event::Delta {
            choice: sequence.request.choice,
            ids: vec![id],
            text: sequence.text.push(id).unwrap_or_default(),
            logprobs: top.and_then(|top| token_logprobs(id, logprobs, top)).into_iter().collect(),
        };
        self.events.push((sequence.request.id, delta));
        if let Some(reason) = sequence.text.end().cloned() {
            return self.end(index, FinishReason::Stop, reason.as_ref());
        }
        let is_terminated = match &mut sequence.constraint {
            Some(constraint) => constraint.accept(id).map(|()| constraint.is_terminated()),
            None => Ok(false),
        };
        if let Err(error) = is_terminated {
            sequence.error = Some(error);
        } else if is_terminated == Ok(true) {
            self.end(index, FinishReason::Stop, None);
        } else if sequence.generated() >= sequence.request.job.options.max_new_tokens {
            self.end(index, FinishReason::Length, None);
        }
    }

    /// Ends answers that cannot be continued.
    fn end_failed(&mut self) {
        while let Some(index) = self.sequences.iter().position(|sequence| sequence.error.is_some()) {
            let mut sequence = self.sequences.remove(index);
            let error = sequence.error.take();
            let request = sequence.release(&mut self.pool);
            self.events.extend(error.iter().flat_map(|error| request.failed(error)));
        }
    }
}

/// The rows of a step that computes the last known position of the sequences `next` and the positions of their drafts,
/// and the tokens that the rows choose, from slot `first` on. The tokens of drafts are in the slots from `draft_slot`
/// on. For attention each row is a sequence of its own, so that its result is the same whether it is one of a draft or
/// not.
fn step_rows<'s>(
    sequences: &'s [Sequence<'_>],
    next: &[usize],
    drafts: &[Vec<u32>],
    (first, mut draft_slot): (usize, usize),
) -> (Vec<StepRows<'s>>, Vec<StepToken>) {
    let (mut rows, mut tokens) = (Vec::new(), Vec::new());
    for (index, draft) in next.iter().zip(drafts) {
        let sequence = &sequences[*index];
        let blocks = sequence.table.blocks();
        let inputs = std::iter::once(None).chain(draft.iter().copied().map(Some));
        for (keys, draft) in (sequence.written + 1..).zip(inputs) {
            let mut token = sequence.token;
            if draft.is_some() {
                token = draft_slot as u32;
                draft_slot += 1;
            }
            rows.push(StepRows { sequence: PagedSequence { queries: 1, keys, blocks }, token });
            let (admission, slot) = (sequence.admission, first + tokens.len());
            tokens.push(StepToken { admission, position: keys, draft, slot });
        }
    }
    (rows, tokens)
}
