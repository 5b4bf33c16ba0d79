//! `mgm chat`: one-shot or interactive.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use mgm::gpu::Gpu;
use mgm::image::{Rgb8, decode};
use mgm::load::LoadOptions;
use mgm::ops::Sampling;
use mgm::plan::Plan;
use mgm::session::{Answer, AnswerOptions, Chat, Event, FinishReason, Model};
use mgm::weights::config::Activation;
use mgm::weights::model_files::ModelFiles;
use mgm_native::files::io_error;
use rustyline::error::ReadlineError;
use serde::Serialize;

use crate::args::ChatArgs;
use crate::{Failure, progress};

pub async fn run(arguments: ChatArgs) -> Result<(), Failure> {
    // Images first: a wrong file name should not cost a load.
    let images = arguments.image.iter().map(|path| read_image(path)).collect::<mgm::Result<Vec<_>>>()?;
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
    let gpu = Gpu::open(&arguments.device.options()).await?;
    if gpu.adapter().is_software() {
        note!("mgm: note: {} is a software adapter: right, but slow", gpu.adapter().name);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (precision, stored) = opened.default_precision();
    let mut options = LoadOptions {
        precision: arguments.precision.unwrap_or(precision),
        keep_stored: arguments.precision.is_none() && (stored || arguments.checkpoint.language.is_some()),
        template: arguments.conversation,
        on_progress: None,
    };
    let plan = Plan::of_files(&opened, &options)?;
    let bar = progress::bytes(plan.weights(), "loading");
    let (counter, stopping) = (bar.clone(), stop.clone());
    options.on_progress = Some(Rc::new(move |bytes| {
        counter.inc(bytes);
        !stopping.load(Ordering::Relaxed)
    }));
    install_interrupt(&stop)?;
    let model = Rc::new(Model::open(&gpu, &opened, &options).await?);
    bar.finish_and_clear();
    drop(opened);
    let load_ms = started.elapsed().as_secs_f64() * 1000.0;
    // Loading is not measured as a kernel.
    gpu.take_profile().await?;

    let seed = arguments.seed.unwrap_or_else(random_seed);
    let options = AnswerOptions {
        sampling: Sampling {
            temperature: arguments.temperature,
            top_k: arguments.top_k,
            top_p: arguments.top_p.or(model.generation().top_p).unwrap_or(1.0),
        },
        seed,
        max_new_tokens: arguments.max_new_tokens as usize,
        begun: Vec::new(),
    };
    let mut talk = Talk { chat: model.chat(arguments.system), options, stop, quiet: arguments.json };
    let result = if arguments.prompt.is_empty() {
        talk.interactive(model.sees(), images).await
    } else {
        talk.one_shot(&arguments.prompt, images, load_ms, &gpu).await
    };
    if arguments.device.profile {
        note!("{}", gpu.take_profile().await?);
    }
    result
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
    chat: Chat,
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
        self.stop.store(false, Ordering::Relaxed);
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
        let answer = self.chat.ask(question, images, &self.options, &mut on_event).await;
        bar.finish_and_clear();
        output?;
        Ok(answer?)
    }

    async fn one_shot(
        &mut self,
        prompts: &[String],
        images: Vec<Rgb8>,
        load_ms: f64,
        gpu: &Gpu,
    ) -> Result<(), Failure> {
        let mut turns = Vec::new();
        let mut vision_ms = 0.0;
        let mut images = Some(images);
        for prompt in prompts {
            let answer = self.ask(prompt, &images.take().unwrap_or_default()).await?;
            if !self.quiet {
                writeln!(std::io::stdout())?;
            }
            vision_ms += answer.vision_ms;
            let cancelled = answer.finish_reason == FinishReason::Cancelled;
            turns.push(TurnReport {
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
            });
            if cancelled {
                break;
            }
        }
        if self.quiet {
            let report = Report { turns, adapter: &gpu.adapter().name, load_ms, vision_ms };
            let text = serde_json::to_string(&report).map_err(std::io::Error::other)?;
            writeln!(std::io::stdout(), "{text}")?;
        }
        Ok(())
    }

    /// Questions line by line until the end of input.
    async fn interactive(&mut self, sees: bool, mut images: Vec<Rgb8>) -> Result<(), Failure> {
        let terminal = std::io::stdin().is_terminal();
        let mut lines = Lines::open(terminal)?;
        if terminal {
            note!(
                "/image FILE adds an image to the next question, /reset starts over, /quit leaves; Ctrl-C stops an answer"
            );
        }
        while let Some(line) = lines.next()? {
            let line = line.trim();
            let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            match word {
                "" => continue,
                "/quit" | "/exit" => break,
                "/reset" => {
                    self.chat.reset();
                    images.clear();
                    note!("a new conversation");
                }
                "/image" if rest.trim().is_empty() => note!("mgm: error: /image needs a file's name"),
                "/image" if !sees => note!("mgm: error: this checkpoint cannot look at images"),
                "/image" => match read_image(Path::new(rest.trim())) {
                    Ok(image) => images.push(image),
                    Err(error) => note!("mgm: error: {error}"),
                },
                command if command.starts_with('/') => {
                    note!("mgm: error: unknown command {command}; there are /image FILE, /reset and /quit");
                }
                _ => match self.ask(line, &std::mem::take(&mut images)).await {
                    Ok(answer) => {
                        let stopped = answer.finish_reason == FinishReason::Cancelled;
                        writeln!(std::io::stdout(), "{}", if stopped { " [stopped]" } else { "" })?;
                    }
                    // A lost device will not answer again; all else is this question's problem.
                    Err(Failure::Core(error @ mgm::Error::DeviceLost(_))) => return Err(error.into()),
                    Err(Failure::Core(mgm::Error::Cancelled)) => note!("stopped before the answer began"),
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
