//! `mgm chat`: one-shot or interactive.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use mgm::diffusion::answer::{NEGATIVE_PROMPT, REQUEST, asking_for_picture, picture_prompt, wants_picture};
use mgm::diffusion::pipeline::Start;
use mgm::gpu::Gpu;
use mgm::image::{Rgb8, decode};
use mgm::load::LoadOptions;
use mgm::ops::Sampling;
use mgm::plan::Plan;
use mgm::session::{Answer, AnswerOptions, Chat, Event, FinishReason, pictures};
use mgm::tensor::Activation;
use mgm::text::Turn;
use mgm::weights::model_files::ModelFiles;
use mgm_native::files::io_error;
use rustyline::error::ReadlineError;
use serde::Serialize;

use crate::args::ChatArgs;
use crate::generate::{Painter, Painting, PictureReport, numbered, outputs};
use crate::picture::save;
use crate::{Failure, kept, load, progress};

pub async fn run(arguments: ChatArgs) -> Result<(), Failure> {
    // Images first: a wrong file name should not cost a load.
    let images = arguments.image.iter().map(|path| read_image(path)).collect::<mgm::Result<Vec<_>>>()?;
    let drawing = match arguments.drawing.model()? {
        Some((model, out)) => {
            outputs(&out, 1)?;
            Some((model.open().await?, model, out))
        }
        None => None,
    };
    let mut opened = arguments.checkpoint.open().await?;
    let gelu = match arguments.gelu.as_deref() {
        Some("erf") => Some(Activation::GeluErf),
        Some(_) => Some(Activation::GeluTanh),
        None => None,
    };
    if let Some(gelu) = gelu {
        match &mut opened {
            ModelFiles::Mgm(checkpoint) => checkpoint.config.language.activation = gelu,
            ModelFiles::Gguf(model) => model.config.activation = gelu,
        }
    }
    let started = Instant::now();
    let gpu = kept::open_noting(&arguments.device.options()).await?;
    let stop = Arc::new(AtomicBool::new(false));
    install_interrupt(&stop)?;
    let options = LoadOptions {
        template: arguments.conversation,
        high_resolution: !arguments.no_high_resolution,
        ..arguments.checkpoint.load_options(&opened, arguments.precision)
    };
    let mut language = Language::new(&gpu, opened, options, arguments.system, &stop)?;
    let chat = language.load().await?;
    let (sees, top_p) = (chat.model().sees(), chat.model().generation().top_p);
    let load_ms = started.elapsed().as_secs_f64() * 1000.0;
    // Loading is not measured as a kernel.
    gpu.take_profile().await?;

    let seed = arguments.seed.unwrap_or_else(random_seed);
    let drawing = match drawing {
        Some((checkpoint, model, out)) => Some(Drawing {
            painter: Painter::new(&gpu, checkpoint, &model, &arguments.drawing.picture, stop.clone())?,
            out,
            // Shorter, since it is told and may be given to other programs.
            seed: arguments.seed.unwrap_or(seed >> 32),
            pictures: 0,
            always: arguments.drawing.always,
        }),
        None => None,
    };
    let options = AnswerOptions {
        sampling: Sampling {
            temperature: arguments.temperature,
            top_k: arguments.top_k,
            top_p: arguments.top_p.or(top_p).unwrap_or(1.0),
        },
        seed,
        max_new_tokens: arguments.max_new_tokens as usize,
        begun: Vec::new(),
    };
    let mut talk = Talk { language, drawing, options, stop, quiet: arguments.json };
    let result = if arguments.prompt.is_empty() {
        talk.interactive(sees, images).await
    } else {
        talk.one_shot(&arguments.prompt, images, load_ms, &gpu).await
    };
    if arguments.device.profile {
        note!("{}", gpu.take_profile().await?);
    }
    result
}

/// A language model with a conversation, on the device or, for a while, only in its files: it may have to make room for a model
/// that paints.
struct Language {
    gpu: Gpu,
    opened: ModelFiles,
    options: LoadOptions,
    system: Option<String>,
    weights: u64,
    stop: Arc<AtomicBool>,
    chat: Option<Chat>,
    /// The conversation, while there is no chat.
    turns: Vec<Turn>,
    /// All pictures of the conversation's turns.
    images: Vec<Rgb8>,
}

impl Language {
    fn new(
        gpu: &Gpu,
        opened: ModelFiles,
        options: LoadOptions,
        system: Option<String>,
        stop: &Arc<AtomicBool>,
    ) -> mgm::Result<Self> {
        let weights = Plan::of_files(&opened, &options)?.weights();
        Ok(Self {
            gpu: gpu.clone(),
            opened,
            options,
            system,
            weights,
            stop: stop.clone(),
            chat: None,
            turns: Vec::new(),
            images: Vec::new(),
        })
    }

    /// The conversation, its model on the device.
    async fn load(&mut self) -> mgm::Result<&mut Chat> {
        let chat = match self.chat.take() {
            Some(chat) => chat,
            None => {
                let model = load::model(&self.gpu, &self.opened, &self.options, &self.stop).await?;
                let mut chat = model.chat(self.system.clone());
                if !self.turns.is_empty() {
                    let images = pictures(&self.images);
                    chat.restore(self.system.clone(), self.turns.clone(), &images, &mut |_| true).await?;
                }
                chat
            }
        };
        Ok(self.chat.insert(chat))
    }

    /// Gives the device's memory back; the conversation stays.
    fn release(&mut self) {
        if let Some(chat) = self.chat.take() {
            self.turns.clone_from(&chat.conversation().turns);
        }
        self.gpu.trim();
    }

    fn reset(&mut self) {
        self.turns.clear();
        self.images.clear();
        if let Some(chat) = &mut self.chat {
            chat.reset();
        }
    }
}

/// A model that paints what answers describe.
struct Drawing {
    painter: Painter,
    out: PathBuf,
    seed: u64,
    pictures: u64,
    /// Ask for a picture with every question.
    always: bool,
}

/// Ctrl-C asks to stop what is going on; a second one, when that was not heard, ends the program.
pub fn install_interrupt(stop: &Arc<AtomicBool>) -> Result<(), Failure> {
    let stop = stop.clone();
    ctrlc::set_handler(move || {
        if stop.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .map_err(|error| Failure::Output(std::io::Error::other(error)))
}

pub fn read_image(path: &Path) -> mgm::Result<Rgb8> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|error| io_error(path, error))?;
    decode(&name, &bytes)
}

fn without_controls(text: &str) -> Cow<'_, str> {
    let control = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(control) { text.replace(control, "").into() } else { text.into() }
}

pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u8)
}

/// A conversation in a terminal or for a program.
struct Talk {
    language: Language,
    drawing: Option<Drawing>,
    options: AnswerOptions,
    stop: Arc<AtomicBool>,
    /// Print nothing while answers are made.
    quiet: bool,
}

#[derive(Serialize)]
struct TurnReport {
    prompt_tokens: usize,
    token_ids: Vec<u32>,
    text: String,
    finish_reason: &'static str,
    timings: Timings,
    #[serde(skip_serializing_if = "Option::is_none")]
    picture: Option<PictureReport>,
    /// Why there is no picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    picture_error: Option<String>,
}

#[derive(Serialize)]
struct Timings {
    prefill_ms: f64,
    decode_ms: f64,
    decode_tokens_per_s: f64,
    cached_tokens: usize,
}

#[derive(Serialize)]
struct Report<'a> {
    turns: Vec<TurnReport>,
    adapter: &'a str,
    load_ms: f64,
    vision_ms: f64,
}

impl Talk {
    /// Asks, streaming the answer to standard output unless quiet.
    async fn ask(&mut self, question: &str, images: &[Rgb8]) -> Result<Answer, Failure> {
        match self.try_ask(question, images).await {
            // Text is told only when there was room for all that it needs.
            Err(Failure::Core(mgm::Error::OutOfMemory { .. })) if self.drawing.is_some() => {
                self.put_painter_away();
                self.try_ask(question, images).await
            }
            answer => answer,
        }
    }

    fn put_painter_away(&mut self) {
        if let Some(drawing) = &mut self.drawing {
            drawing.painter.diffusion().release();
        }
    }

    async fn try_ask(&mut self, question: &str, images: &[Rgb8]) -> Result<Answer, Failure> {
        self.stop.store(false, Ordering::Relaxed);
        if let (None, Some(limit)) = (&self.language.chat, self.language.gpu.memory().limit)
            && self.language.gpu.memory().allocated + self.language.weights > limit
        {
            self.put_painter_away();
        }
        let chat = self.language.load().await?;
        let bar = progress::count(0, "reading");
        let mut output = Ok(());
        let (stop, quiet) = (self.stop.clone(), self.quiet);
        let mut at_start = true;
        let terminal = std::io::stdout().is_terminal();
        let mut on_event = |event: Event<'_>| {
            match event {
                Event::DroppedTurns(count) => {
                    note!("mgm: note: the context is full; the {count} oldest turns were left out");
                }
                Event::Token(_) => {}
                Event::Looking(done, all) => {
                    bar.set_message("looking");
                    bar.set_length(all as u64);
                    bar.set_position(done as u64);
                }
                Event::Prefill(done, all) => {
                    bar.set_message("reading");
                    bar.set_length(all as u64);
                    bar.set_position(done as u64);
                    if done == all {
                        bar.finish_and_clear();
                    }
                }
                Event::Text(text) if !quiet => {
                    // Models like to begin with a space.
                    let text = if at_start { text.trim_start() } else { text };
                    at_start &= text.is_empty();
                    // A model must not move the cursor or ring the bell.
                    let text = if terminal { without_controls(text) } else { Cow::Borrowed(text) };
                    let mut out = std::io::stdout().lock();
                    output = out.write_all(text.as_bytes()).and_then(|()| out.flush());
                }
                Event::Text(_) => {}
            }
            output.is_ok() && !stop.load(Ordering::Relaxed)
        };
        let answer = chat.ask(question, images, &self.options, &mut on_event).await;
        bar.finish_and_clear();
        output?;
        let answer = answer?;
        if self.drawing.is_some() {
            self.language.images.extend_from_slice(images);
        }
        Ok(answer)
    }

    /// The question as it is put to the model: with a request for a picture behind it, where one is wanted and can be painted.
    fn worded(&self, question: &str, wanted: bool) -> String {
        match &self.drawing {
            Some(drawing) if wanted || drawing.always || wants_picture(question) => asking_for_picture(question),
            _ => question.to_owned(),
        }
    }

    /// Paints what an answer describes; `None` if it describes nothing, or nobody paints.
    async fn draw(&mut self, answer: &str) -> Result<Option<PictureReport>, Failure> {
        let Some(drawing) = &mut self.drawing else { return Ok(None) };
        let Some(prompt) = picture_prompt(answer) else { return Ok(None) };
        let gpu = self.language.gpu.clone();
        if let Some(limit) = gpu.memory().limit
            && gpu.memory().allocated + drawing.painter.diffusion().missing_bytes() > limit
        {
            self.language.release();
        }
        let size = drawing.painter.size();
        let seed = drawing.seed.wrapping_add(drawing.pictures);
        let painting = Painting { prompt, negative: Some(NEGATIVE_PROMPT), start: Start::Noise, seed };
        let painted = match drawing.painter.paint(painting.clone(), size).await {
            Err(mgm::Error::OutOfMemory { .. }) if self.language.chat.is_some() => {
                self.language.release();
                drawing.painter.paint(painting, size).await?
            }
            painted => painted?,
        };
        drawing.pictures += 1;
        let file = match drawing.pictures {
            1 => drawing.out.clone(),
            number => numbered(&drawing.out, number as usize),
        };
        save(&file, &painted.image, &painted.settings)?;
        drawing.painter.show(&painted.image)?;
        if !self.quiet {
            note!("mgm: note: the picture is in {}", file.display());
        }
        Ok(Some(PictureReport::new(&file, painted)))
    }

    async fn one_shot(
        &mut self,
        prompts: &[String],
        images: Vec<Rgb8>,
        load_ms: f64,
        gpu: &Gpu,
    ) -> Result<(), Failure> {
        let mut report = Report { turns: Vec::new(), adapter: &gpu.adapter().name, load_ms, vision_ms: 0.0 };
        let mut images = Some(images);
        let mut result = Ok(());
        for prompt in prompts {
            result = self.told_turn(prompt, &images.take().unwrap_or_default(), &mut report).await;
            let stopped = report.turns.last().is_some_and(|turn| turn.finish_reason == "cancelled");
            if result.is_err() || stopped {
                break;
            }
        }
        // What was answered before something failed is told too.
        if self.quiet && (result.is_ok() || !report.turns.is_empty()) {
            let text = serde_json::to_string(&report).map_err(std::io::Error::other)?;
            writeln!(std::io::stdout(), "{text}")?;
        }
        result
    }

    /// A question, its answer and what is painted for it, told in a report.
    async fn told_turn(&mut self, prompt: &str, images: &[Rgb8], report: &mut Report<'_>) -> Result<(), Failure> {
        let answer = self.ask(&self.worded(prompt, false), images).await?;
        if !self.quiet {
            writeln!(std::io::stdout())?;
        }
        let picture = match answer.finish_reason {
            FinishReason::Cancelled => Ok(None),
            _ => self.draw(&answer.text).await,
        };
        report.vision_ms += answer.vision_ms;
        let (picture, failure) = match picture {
            Ok(picture) => (picture, None),
            Err(failure) => (None, Some(failure)),
        };
        report.turns.push(TurnReport {
            prompt_tokens: answer.prompt_tokens,
            timings: Timings {
                prefill_ms: answer.prefill_ms,
                decode_ms: answer.decode_ms,
                decode_tokens_per_s: answer.decode_tokens_per_s(),
                cached_tokens: answer.cached_tokens,
            },
            token_ids: answer.token_ids,
            text: answer.text,
            finish_reason: match answer.finish_reason {
                FinishReason::Stop => "stop",
                FinishReason::Length => "length",
                FinishReason::Cancelled => "cancelled",
            },
            picture,
            picture_error: failure.as_ref().map(ToString::to_string),
        });
        failure.map_or(Ok(()), Err)
    }

    /// A question, its answer and what is painted for it.
    async fn turn(&mut self, line: &str, images: &[Rgb8]) -> Result<(), Failure> {
        let asked = line.strip_prefix("/gen").map(str::trim);
        let question = self.worded(asked.unwrap_or(line), asked.is_some());
        let answer = self.ask(&question, images).await?;
        let stopped = answer.finish_reason == FinishReason::Cancelled;
        writeln!(std::io::stdout(), "{}", if stopped { " [stopped]" } else { "" })?;
        if !stopped {
            let picture = self.draw(&answer.text).await?;
            if picture.is_none() && self.drawing.is_some() && question.ends_with(REQUEST) {
                note!("mgm: note: the answer describes no picture (nothing between <h> and </h>)");
            }
        }
        Ok(())
    }

    /// Questions line by line until the end of input.
    async fn interactive(&mut self, sees: bool, mut images: Vec<Rgb8>) -> Result<(), Failure> {
        let terminal = std::io::stdin().is_terminal();
        let mut lines = Lines::open(terminal)?;
        if terminal {
            note!(
                "/image FILE adds an image to the next question, {}/reset starts over, /quit leaves; Ctrl-C stops an answer",
                if self.drawing.is_some() { "/gen TEXT asks for a picture, " } else { "" }
            );
        }
        while let Some(line) = lines.next()? {
            let line = line.trim();
            let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            match word {
                "" => continue,
                "/quit" | "/exit" => break,
                "/reset" => {
                    self.language.reset();
                    images.clear();
                    note!("a new conversation");
                }
                "/image" if rest.trim().is_empty() => note!("mgm: error: /image needs a file's name"),
                "/image" if !sees => note!("mgm: error: this checkpoint cannot look at images"),
                "/image" => match read_image(Path::new(rest.trim())) {
                    Ok(image) => images.push(image),
                    Err(error) => note!("mgm: error: {error}"),
                },
                "/gen" if self.drawing.is_none() => {
                    note!("mgm: error: nothing to paint with: start with --generate MODEL")
                }
                "/gen" if rest.trim().is_empty() => note!("mgm: error: /gen needs words"),
                command if command.starts_with('/') && command != "/gen" => {
                    note!("mgm: error: unknown command {command}; there are /image FILE, /gen TEXT, /reset and /quit");
                }
                _ => match self.turn(line, &std::mem::take(&mut images)).await {
                    Ok(()) => {}
                    // A lost device will not answer again; all else is this question's problem.
                    Err(Failure::Core(error @ mgm::Error::DeviceLost(_))) => return Err(error.into()),
                    Err(Failure::Core(mgm::Error::Cancelled)) => note!("stopped"),
                    Err(Failure::Core(error)) => note!("mgm: error: {error}"),
                    Err(failure) => return Err(failure),
                },
            }
        }
        Ok(())
    }
}

/// Lines of a terminal, with editing and history, or of a pipe.
enum Lines {
    Terminal(Box<rustyline::DefaultEditor>, Option<PathBuf>),
    Pipe(std::io::Lines<std::io::StdinLock<'static>>),
}

impl Lines {
    fn open(terminal: bool) -> Result<Self, Failure> {
        if !terminal {
            return Ok(Self::Pipe(std::io::stdin().lines()));
        }
        let mut editor = rustyline::DefaultEditor::new().map_err(std::io::Error::other)?;
        let history = history_file();
        if let Some(file) = &history {
            // The first time there is none.
            let _ = editor.load_history(file);
        }
        Ok(Self::Terminal(Box::new(editor), history))
    }

    fn next(&mut self) -> Result<Option<String>, Failure> {
        match self {
            Self::Pipe(lines) => Ok(lines.next().transpose()?),
            Self::Terminal(editor, history) => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        // History is a comfort: without it the conversation goes on.
                        let _ = editor.add_history_entry(&line);
                        if let Some(file) = history {
                            let _ = editor.save_history(file);
                        }
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => continue,
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(Failure::Output(std::io::Error::other(error))),
                }
            },
        }
    }
}

/// `$XDG_STATE_HOME/mgm/history`, or below the home folder; `None` where neither is set.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE")).map(PathBuf::from);
    let folder = state.or_else(|| home().map(|home| home.join(".local").join("state")))?.join("mgm");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}
