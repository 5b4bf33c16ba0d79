//! The thread that owns the device, the model and the engine. Everything else talks to it by channels.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mgm::engine::blocks::BLOCK_ROWS;
use mgm::engine::images::ImageFormat;
use mgm::engine::{Constraint, Engine, EngineOptions, Event, Job, JobId};
use mgm::gpu::Gpu;
use mgm::memory_plan::MemoryPlan;
use mgm::ops::Sampling;
use mgm::session::{LoadOptions, Model, ModelText};
use mgm::tensor::Activation;
use mgm::weights::model_files::ModelFiles;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::command::{Command, Submission};
use super::embedder::{Embedder, EmbeddingJob};
use super::error::ApiError;
use super::mailbox::Mailbox;
use super::options::{EngineArgs, ServeArgs};
use super::reply::unix_time;
use super::served::Served;
use super::slots::Slots;
use super::state::Server;
use crate::load::{load_model, load_options, open_checkpoint};
use crate::recovery::Recovery;
use crate::tools::ToolStyle;
use crate::{CliError, bundled_models, device_cache, load};

/// Devices that may be lost in [`LOSSES_TIME`] before the server gives up: the work itself probably resets them.
const MAX_LOSSES: usize = 2;
const LOSSES_TIME: Duration = Duration::from_secs(600);
/// The weight of a new measurement of the speed.
const RATE_WEIGHT: f64 = 0.2;

/// Starts the thread. `ended` receives how it ended: with the error of a model that cannot be loaded.
///
/// # Errors
/// [`CliError::Output`] if the system refuses a thread.
pub fn start(
    arguments: ServeArgs,
    server: Arc<Server>,
    commands: Receiver<Command>,
    stop: Arc<AtomicBool>,
    ended: oneshot::Sender<Result<(), CliError>>,
) -> Result<JoinHandle<()>, CliError> {
    let thread = move || {
        let result = pollster::block_on(run(&arguments, &server, &commands, &stop));
        // The receiver is gone if the program ends.
        let _ = ended.send(result);
    };
    Ok(std::thread::Builder::new().name("engine".to_owned()).spawn(thread)?)
}

async fn run(
    arguments: &ServeArgs,
    server: &Arc<Server>,
    commands: &Receiver<Command>,
    stop: &Arc<AtomicBool>,
) -> Result<(), CliError> {
    let mut loader = Loader::open(arguments, server, stop).await?;
    let gpu = device_cache::open_with_note(&arguments.device.options()).await?;
    let mut model = loader.load(gpu).await?;
    let mut options = engine_options(&arguments.engine, &model);
    let (mut host, mut unfinished) = (None::<Host<'_>>, None);
    let error = loop {
        let (engine, fitting) = match new_engine(&model, options, arguments.engine.kv.is_some()) {
            Ok(opened) => opened,
            Err(error) if host.is_some() => break error,
            Err(error) => return Err(error.into()),
        };
        options = fitting;
        let mut engine = engine.with_text(model.tokenizer(), model.stop_ids());
        if let Some(vision) = model.vision() {
            engine = engine.with_vision(vision);
        }
        let host = host.get_or_insert_with(|| {
            let served = Arc::new(describe(arguments, server, &loader, &model, options));
            server.set_served(served.clone());
            Host {
                server,
                served,
                requests: HashMap::new(),
                jobs: HashMap::new(),
                embeddings: VecDeque::new(),
                rate: 0.0,
            }
        });
        let served = match unfinished.take() {
            Some(unfinished) => engine.take_over(unfinished),
            None => Ok(()),
        };
        server.set_recovering(false);
        let served = match served {
            Ok(()) => {
                let embedder = Embedder::new(&model, options.slice);
                host.serve(&mut engine, embedder, commands).await
            }
            error => error,
        };
        let Err(error) = served else { return Ok(()) };
        let Some(gpu) = loader.reopen(&error).await else { break error };
        // What the answers need is on the host; everything of the lost device goes before the model is loaded again.
        unfinished = Some(engine.into_unfinished());
        drop(model);
        model = match loader.load(gpu).await {
            Ok(model) => model,
            Err(CliError::Core(error)) => break error,
            Err(error) => return Err(error),
        };
    };
    note!("mgm: error: {error}");
    server.fail(error.to_string());
    if let Some(host) = &mut host {
        host.fail_all(&ApiError::of_engine(&error));
    }
    if arguments.settings.exit_on_loss {
        return Err(CliError::Loss(error));
    }
    refuse(commands, &error);
    Ok(())
}

/// Loads the model: again, if a device is lost.
struct Loader<'a> {
    arguments: &'a ServeArgs,
    server: Arc<Server>,
    stop: Arc<AtomicBool>,
    files: ModelFiles,
    options: LoadOptions,
    text: ModelText,
    /// When devices were lost.
    losses: Vec<Instant>,
}

impl<'a> Loader<'a> {
    async fn open(arguments: &'a ServeArgs, server: &Arc<Server>, stop: &Arc<AtomicBool>) -> Result<Self, CliError> {
        let mut files = open_checkpoint(&arguments.checkpoint).await?;
        if let Some(gelu) = &arguments.gelu {
            let activation = if gelu == "erf" { Activation::GeluErf } else { Activation::GeluTanh };
            files.language_config_mut().activation = activation;
        }
        let options =
            load_options(&arguments.checkpoint, &files, arguments.precision).with_template(arguments.conversation);
        let text = load::check(&files, &options).await?;
        if let Some(note) = text.note() {
            note!("mgm: note: {note}");
        }
        Ok(Self { arguments, server: server.clone(), stop: stop.clone(), files, options, text, losses: Vec::new() })
    }

    /// Loads the model to a device, or to the next one if that is lost meanwhile.
    async fn load(&mut self, mut gpu: Gpu) -> Result<Model, CliError> {
        let Self { arguments, files, options, text, stop, .. } = self;
        let mut recovery = Recovery::new(arguments.device.options());
        let total = MemoryPlan::for_files(files, options)?.weights().max(1);
        loop {
            let (server, loaded) = (self.server.clone(), Cell::new(0));
            let on_progress = move |bytes| {
                loaded.set(loaded.get() + bytes);
                server.set_progress(loaded.get() as f64 / total as f64);
                ControlFlow::Continue(())
            };
            let options = options.clone().with_progress(Rc::new(on_progress));
            match load_model(&gpu, files, &options, text, !arguments.no_tune, stop).await {
                Ok(model) => return Ok(model),
                Err(error) => gpu = recovery.reopen(error).await?,
            }
        }
    }

    /// The next device, if `error` is the loss of one and not too many were lost.
    async fn reopen(&mut self, error: &mgm::Error) -> Option<Gpu> {
        if !matches!(error, mgm::Error::DeviceLost(_)) {
            return None;
        }
        self.server.metrics.device_lost();
        self.losses.retain(|time| time.elapsed() < LOSSES_TIME);
        if self.losses.len() == MAX_LOSSES {
            return None;
        }
        self.losses.push(Instant::now());
        self.server.set_recovering(true);
        let mut recovery = Recovery::new(self.arguments.device.options());
        recovery.reopen(error.clone()).await.ok()
    }
}

fn engine_options(arguments: &EngineArgs, model: &Model) -> EngineOptions {
    let defaults = EngineOptions::new(model.gpu(), model.language());
    let parallel = arguments.parallel.map_or(defaults.parallel, |parallel| parallel as usize);
    let context = arguments.ctx.map_or(defaults.context, |context| context as usize);
    let context = context.min(model.language().config().max_positions);
    let block = model.language().paged_block_bytes().max(1);
    let capacity = match arguments.kv {
        Some(bytes) => usize::try_from(bytes / block).unwrap_or(usize::MAX).saturating_mul(BLOCK_ROWS),
        None => parallel * context.min(2048),
    };
    EngineOptions {
        parallel,
        context,
        capacity: capacity.max(context),
        slice: arguments.slice.map_or(defaults.slice, |slice| Duration::from_millis(slice.into())),
        deterministic: arguments.deterministic,
        image_cache: arguments.image_cache,
        prompt_lookup: arguments.prompt_lookup.map_or(defaults.prompt_lookup, |tokens| tokens as usize),
    }
}

/// An engine with the largest cache that fits: the wanted one, or a half, a quarter and so on, unless the user chose.
fn new_engine(model: &Model, mut options: EngineOptions, is_chosen: bool) -> mgm::Result<(Engine<'_>, EngineOptions)> {
    loop {
        match Engine::new(model.gpu(), model.language(), options) {
            Err(mgm::Error::OutOfMemory { .. }) if !is_chosen && options.capacity > options.context => {
                options.capacity = (options.capacity / 2).max(options.context);
            }
            result => return result.map(|engine| (engine, options)),
        }
    }
}

/// What requests need to know about the model.
fn describe(
    arguments: &ServeArgs,
    server: &Server,
    loader: &Loader<'_>,
    model: &Model,
    options: EngineOptions,
) -> Served {
    let Loader { text, options: LoadOptions { precision, .. }, .. } = loader;
    let settings = &server.settings;
    let id = model_id(arguments.checkpoint.checkpoint.as_deref());
    let top_p = settings.top_p.or(model.generation().top_p).unwrap_or(1.0);
    let sampling =
        Sampling::default().with_temperature(settings.temperature).with_top_k(settings.top_k).with_top_p(top_p);
    let (adapter, version) = (&model.gpu().adapter().name, env!("CARGO_PKG_VERSION"));
    let facts = format!("{version} {id} {precision} {adapter} {}", options.deterministic);
    let digest: String = Sha256::digest(facts).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Served {
        id,
        created: unix_time(),
        text: text.clone(),
        vocab: model.language().config().vocab_size,
        hidden: model.language().config().hidden_size,
        context: options.context,
        max_prompt: model.max_prompt_tokens().min(options.context - 1),
        image_format: model.vision().map(ImageFormat::new),
        precision: precision.to_string(),
        gpu_bytes: model.gpu().memory().allocated,
        sampling,
        fingerprint: format!("mgm_{digest}"),
        parallel: options.parallel,
        slots: Slots::new(options.parallel, settings.queue),
        constraints: OnceLock::new(),
        tool_style: ToolStyle::of(text.prompt_format(), text.tokenizer()),
    }
}

/// The model's name in requests: the name of the cached model, or of the folder or file.
fn model_id(named: Option<&Path>) -> String {
    let Some(path) = named else { return bundled_models::POCKET.to_owned() };
    let resolved = path.canonicalize();
    let name = match &resolved {
        Ok(found) if found.extension().is_some_and(|end| end == "gguf") => found.file_stem(),
        // A file of a checkpoint stands for its folder.
        Ok(found) if found.is_file() => found.parent().and_then(Path::file_name),
        Ok(found) => found.file_name(),
        // Not a path: the name of a cached model.
        Err(_) => None,
    };
    name.unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Answers requests after the engine failed.
fn refuse(commands: &Receiver<Command>, error: &mgm::Error) {
    while let Ok(command) = commands.recv() {
        match command {
            Command::Submit(_, _, mailbox) => mailbox.fail(ApiError::of_engine(error)),
            Command::Embed(job) => drop(job.reply.send(Err(ApiError::of_engine(error)))),
            Command::Cancel(_) => {}
            Command::Stop => return,
        }
    }
}

/// A request that is computed or waits.
struct Running {
    job: JobId,
    mailbox: Arc<Mailbox>,
    /// Answers that have not ended.
    open: usize,
    /// Tokens that it will take at most, while it waits.
    waiting_tokens: u64,
}

/// Drives the engine.
struct Host<'a> {
    server: &'a Server,
    served: Arc<Served>,
    requests: HashMap<u64, Running>,
    jobs: HashMap<JobId, u64>,
    embeddings: VecDeque<EmbeddingJob>,
    /// Tokens per second.
    rate: f64,
}

impl Host<'_> {
    /// Computes until it is stopped.
    ///
    /// # Errors
    /// [Device errors](mgm::gpu).
    async fn serve(
        &mut self,
        engine: &mut Engine<'_>,
        mut embedder: Embedder<'_>,
        commands: &Receiver<Command>,
    ) -> mgm::Result<()> {
        loop {
            if self.take_commands(engine, commands).is_break() {
                self.fail_all(&ApiError::draining());
                return Ok(());
            }
            let started = Instant::now();
            let events = engine.turn().await?;
            let tokens = events.into_iter().map(|(job, event)| self.send(engine, job, event)).sum();
            self.measure(tokens, started.elapsed());
            embedder.slice(&mut self.embeddings).await?;
            self.beat(engine);
        }
    }

    /// Takes commands. Without work it waits for one.
    fn take_commands(&mut self, engine: &mut Engine<'_>, commands: &Receiver<Command>) -> ControlFlow<()> {
        loop {
            let command = if engine.is_idle() && self.embeddings.is_empty() {
                self.beat(engine);
                let command = commands.recv().map_err(|_| TryRecvError::Disconnected);
                self.beat(engine);
                command
            } else {
                commands.try_recv()
            };
            match command {
                Ok(Command::Submit(ticket, submission, mailbox)) => self.submit(engine, ticket, *submission, mailbox),
                Ok(Command::Embed(job)) => self.embeddings.push_back(job),
                Ok(Command::Cancel(ticket)) => self.cancel(engine, ticket),
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return ControlFlow::Break(()),
                Err(TryRecvError::Empty) => return ControlFlow::Continue(()),
            }
        }
    }

    fn submit(&mut self, engine: &mut Engine<'_>, ticket: u64, submission: Submission, mailbox: Arc<Mailbox>) {
        let Submission { prompt, options, constraint, salt, user } = submission;
        let constraint = constraint.map(|constraint| Box::new(constraint) as Box<dyn Constraint>);
        let (prompt, images) = prompt.into_job(&self.served);
        let (positions, open, most) = (prompt.len() as u64, options.n, options.max_new_tokens as u64);
        match engine.submit(Job { prompt, images, options, constraint, salt, user }) {
            Ok(job) => {
                // The engine counts a position of a prompt as an eighth of a token too.
                let waiting_tokens = positions / 8 + open as u64 * most;
                self.jobs.insert(job, ticket);
                self.requests.insert(ticket, Running { job, mailbox, open, waiting_tokens });
            }
            Err(error) => mailbox.fail(ApiError::of_engine(&error)),
        }
    }

    fn cancel(&mut self, engine: &mut Engine<'_>, ticket: u64) {
        if let Some(Running { job, .. }) = self.requests.remove(&ticket) {
            self.jobs.remove(&job);
            engine.cancel(job);
        }
    }

    /// Sends an event to its request. Returns its tokens.
    fn send(&mut self, engine: &mut Engine<'_>, job: JobId, event: Event) -> usize {
        let Some(ticket) = self.jobs.get(&job).copied() else { return 0 };
        let Some(request) = self.requests.get_mut(&ticket) else { return 0 };
        let mut tokens = 0;
        match &event {
            Event::Started { .. } => request.waiting_tokens = 0,
            Event::Delta { ids, .. } => tokens = ids.len(),
            Event::Done { .. } | Event::Failed { .. } => request.open -= 1,
            Event::Encoding { .. } | Event::Prefill { .. } => {}
        }
        if !request.mailbox.send(event) {
            request.mailbox.fail(ApiError::slow_reader());
            self.cancel(engine, ticket);
        } else if request.open == 0 {
            self.requests.remove(&ticket);
            self.jobs.remove(&job);
        }
        tokens
    }

    fn fail_all(&mut self, error: &ApiError) {
        for request in self.requests.values() {
            request.mailbox.fail(error.clone());
        }
        for job in self.embeddings.drain(..) {
            // Without a receiver nobody waits for it.
            let _ = job.reply.send(Err(error.clone()));
        }
        self.requests.clear();
        self.jobs.clear();
    }

    fn measure(&mut self, tokens: usize, time: Duration) {
        if tokens > 0 {
            let rate = tokens as f64 / time.as_secs_f64().max(1e-6);
            let weight = if self.rate == 0.0 { 1.0 } else { RATE_WEIGHT };
            self.rate += weight * (rate - self.rate);
        }
    }

    fn beat(&self, engine: &Engine<'_>) {
        let waiting_tokens = self.requests.values().map(|request| request.waiting_tokens).sum();
        self.server.metrics.set_figures(engine.figures());
        self.server.beat(!engine.is_idle() || !self.embeddings.is_empty(), waiting_tokens, self.rate);
    }
}
