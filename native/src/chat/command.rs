//! The turns of a conversation: streaming, images in answers, and the interactive loop.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mgm::diffusion::gen_protocol::{REQUEST, image_prompt, wants_image, with_image_request};
use mgm::gpu::Gpu;
use mgm::image::{Image, ImageDecoding};
use mgm::session::{Answer, AnswerOptions, Event, FinishReason, TokenLogprobs};

use super::answer_images::AnswerImages;
use super::lines::{Line, Lines};
use super::report::{Report, TurnReport};
use super::resident::ResidentChat;
use super::words::file_names;
use crate::constraint::AnswerConstraint;
use crate::image_model::ImageReport;
use crate::images::read_image;
use crate::interrupt::continue_unless;
use crate::output::print_json;
use crate::recovery::Recovery;
use crate::{CliError, progress};

/// What of the answers to a question was printed, on devices that were lost meanwhile.
struct Started {
    /// Of each answer.
    token_ids: Vec<Vec<u32>>,
    logprobs: Vec<Vec<TokenLogprobs>>,
    /// The answer in progress.
    choice: usize,
    /// Nothing but white space of the answer in progress.
    at_start: bool,
}

/// A conversation in a terminal or for a program.
pub struct ChatCommand {
    chat: ResidentChat,
    images: Option<AnswerImages>,
    options: AnswerOptions,
    stop: Arc<AtomicBool>,
    recovery: Recovery,
    /// Don't print answers as they are generated.
    quiet: bool,
    /// How `/image` reads files.
    decoding: ImageDecoding,
    /// What answers must look like. They describe no images then.
    pub constraint: Option<AnswerConstraint>,
}

impl ChatCommand {
    pub fn new(
        chat: ResidentChat,
        images: Option<AnswerImages>,
        options: AnswerOptions,
        stop: Arc<AtomicBool>,
        recovery: Recovery,
        quiet: bool,
        decoding: ImageDecoding,
    ) -> Self {
        Self { chat, images, options, stop, recovery, quiet, decoding, constraint: None }
    }

    pub fn gpu(&self) -> &Gpu {
        self.chat.gpu()
    }

    /// Asks all prompts and reports the answers.
    pub async fn one_shot(&mut self, prompts: &[String], images: Vec<Image>, load_ms: f64) -> Result<(), CliError> {
        let gpu = self.chat.gpu().clone();
        let mut report = Report { turns: Vec::new(), adapter: &gpu.adapter().name, load_ms, vision_ms: 0.0 };
        let mut images = Some(images);
        let mut result = Ok(());
        for prompt in prompts {
            let finished = self.turn_with_report(prompt, &images.take().unwrap_or_default(), &mut report).await;
            result = match finished {
                Ok(FinishReason::Stop | FinishReason::Length) => continue,
                // A program that asks for several answers must learn that some are missing.
                Ok(_) => Err(mgm::Error::Cancelled.into()),
                Err(error) => Err(error),
            };
            break;
        }
        // The report includes the answers before a failure.
        if self.quiet && (result.is_ok() || !report.turns.is_empty()) {
            print_json(&report)?;
        }
        result
    }

    /// Asks a question, generates the image that the answer describes, and adds both to the report.
    async fn turn_with_report(
        &mut self,
        prompt: &str,
        images: &[Image],
        report: &mut Report<'_>,
    ) -> Result<FinishReason, CliError> {
        let answer = self.ask(&self.with_image_request(prompt, false), images).await?;
        if !self.quiet {
            writeln!(std::io::stdout())?;
        }
        let finish_reason = last_finish_reason(&answer);
        let (text, vision_ms) = (answer.text.clone(), answer.vision_ms);
        let turn = TurnReport::new(answer, self.chat.load().await?.model().tokenizer());
        let (image, error) = match finish_reason {
            FinishReason::Cancelled => (None, None),
            _ => match self.generate_image(&text).await {
                Ok(image) => (image, None),
                Err(error) => (None, Some(error)),
            },
        };
        report.vision_ms += vision_ms;
        report.turns.push(turn.with_image(image, error.as_ref()));
        error.map_or(Ok(finish_reason), Err)
    }

    /// Asks a question of the interactive conversation and generates the image that the answer describes.
    async fn turn(&mut self, line: &str, images: &[Image]) -> Result<(), CliError> {
        let draw = line.strip_prefix("/draw").map(str::trim);
        let line = if line.starts_with("//") { &line[1..] } else { line };
        let question = self.with_image_request(draw.unwrap_or(line), draw.is_some());
        let answer = self.ask(&question, images).await?;
        let stopped = last_finish_reason(&answer) == FinishReason::Cancelled;
        writeln!(std::io::stdout(), "{}", if stopped { " [stopped]" } else { "" })?;
        if !stopped {
            let image = self.generate_image(&answer.text).await?;
            if image.is_none() && self.images.is_some() && question.ends_with(REQUEST) {
                note!("mgm: note: the answer describes no image (nothing between <h> and </h>)");
            }
        }
        Ok(())
    }

    /// The question, followed by a request for an image if one is wanted and there is an image model.
    fn with_image_request(&self, question: &str, wanted: bool) -> String {
        match &self.images {
            Some(_) if self.constraint.is_some() => question.to_owned(),
            Some(images) if wanted || images.always || wants_image(question) => with_image_request(question),
            _ => question.to_owned(),
        }
    }

    /// Asks a question and streams the answer to standard output unless `quiet`. Releases the image model and tries
    /// again if the device is out of memory. If the device is lost, opens another and continues the answer.
    async fn ask(&mut self, question: &str, images: &[Image]) -> Result<Answer, CliError> {
        let mut started =
            Started { token_ids: vec![Vec::new()], logprobs: vec![Vec::new()], choice: 0, at_start: true };
        let mut evicted = false;
        loop {
            match self.try_ask(question, images, &mut started).await {
                // No text has been printed: memory is reserved before the first token.
                Err(CliError::Core(mgm::Error::OutOfMemory { .. })) if self.images.is_some() && !evicted => {
                    evicted = true;
                    self.evict_image_model();
                }
                Err(CliError::Core(error @ mgm::Error::DeviceLost(_))) => self.recover(error).await?,
                answer => return answer,
            }
        }
    }

    /// Replaces the device.
    ///
    /// # Errors
    /// As [`Recovery::reopen`].
    async fn recover(&mut self, error: mgm::Error) -> mgm::Result<()> {
        let gpu = self.recovery.reopen(error).await?;
        self.chat.move_to(&gpu);
        match &mut self.images {
            Some(images) => images.move_to(&gpu).await,
            None => Ok(()),
        }
    }

    fn evict_image_model(&mut self) {
        if let Some(images) = &mut self.images {
            images.release();
        }
    }

    async fn try_ask(&mut self, question: &str, images: &[Image], started: &mut Started) -> Result<Answer, CliError> {
        let memory = self.chat.gpu().memory();
        let missing = self.chat.missing_bytes();
        if missing > 0 && memory.limit.is_some_and(|limit| memory.allocated + missing > limit) {
            self.evict_image_model();
        }
        let chat = self.chat.load().await?;
        let bar = progress::count(0, "reading");
        let mut output = Ok(());
        let (stop, quiet) = (self.stop.clone(), self.quiet);
        let options = self.options.clone().with_resume_from(started.token_ids.clone());
        started.choice = 0;
        let terminal = std::io::stdout().is_terminal();
        let mut on_event = |event: Event<'_>| {
            let show = |message: &'static str, done: usize, total: usize| {
                bar.set_message(message);
                bar.set_length(total as u64);
                bar.set_position(done as u64);
            };
            match event {
                Event::DroppedTurns { count } => {
                    note!("mgm: note: the context is full; the {count} oldest turns were dropped");
                }
                Event::EncodingImage { done, total } => show("encoding", done, total),
                Event::Prefill { done, total } => {
                    show("prefill", done, total);
                    if done == total {
                        bar.finish_and_clear();
                    }
                }
                Event::Choice { index } => {
                    started.choice = index;
                    if index == started.token_ids.len() {
                        started.token_ids.push(Vec::new());
                        started.logprobs.push(Vec::new());
                        started.at_start = true;
                        if !quiet {
                            output = std::io::stdout().lock().write_all(b"\n\n");
                        }
                    }
                }
                Event::Token { id } => started.token_ids[started.choice].push(id),
                Event::Logprobs { logprobs } => started.logprobs[started.choice].push(logprobs.clone()),
                Event::Text { text } if !quiet => {
                    // Answers often start with a space.
                    let text = if started.at_start { text.trim_start() } else { text };
                    started.at_start &= text.is_empty();
                    let text = if terminal { without_controls(text) } else { Cow::Borrowed(text) };
                    let mut out = std::io::stdout().lock();
                    output = out.write_all(text.as_bytes()).and_then(|()| out.flush());
                }
                _ => {}
            }
            if output.is_err() { ControlFlow::Break(()) } else { continue_unless(&stop) }
        };
        let mut ask = chat.ask(question).images(images).options(&options).on_event(&mut on_event);
        if let Some(constraint) = &self.constraint {
            ask = ask.constraint(constraint.clone());
        }
        let answer = ask.await;
        bar.finish_and_clear();
        output?;
        let mut answer = answer?;
        // Those of lost devices too.
        let mut logprobs = std::mem::take(&mut started.logprobs).into_iter();
        answer.logprobs = logprobs.next().unwrap_or_default();
        answer.alternatives.iter_mut().zip(logprobs).for_each(|(choice, logprobs)| choice.logprobs = logprobs);
        self.chat.keep_images(images);
        self.recovery.note_result();
        Ok(answer)
    }

    /// Generates the image that an answer describes. `None` if it describes none, or there is no image model.
    async fn generate_image(&mut self, answer: &str) -> Result<Option<ImageReport>, CliError> {
        let Some(prompt) = image_prompt(answer).filter(|_| self.constraint.is_none()) else { return Ok(None) };
        let report = loop {
            let Some(images) = &mut self.images else { return Ok(None) };
            let memory = self.chat.gpu().memory();
            if memory.limit.is_some_and(|limit| memory.allocated + images.missing_bytes() > limit) {
                self.chat.release();
            }
            match images.generate(prompt).await {
                Err(mgm::Error::OutOfMemory { .. }) if self.chat.is_loaded() => self.chat.release(),
                Err(error @ mgm::Error::DeviceLost(_)) => self.recover(error).await.map_err(CliError::Image)?,
                generated => break images.save(generated.map_err(CliError::Image)?)?,
            }
        };
        self.recovery.note_result();
        if !self.quiet {
            note!("mgm: note: wrote the image to {}", report.file());
        }
        Ok(Some(report))
    }

    /// Reads questions and commands line by line until the end of input.
    pub async fn interactive(&mut self, has_vision: bool, mut images: Vec<Image>) -> Result<(), CliError> {
        let terminal = std::io::stdin().is_terminal();
        let mut lines = Lines::open(terminal)?;
        if terminal {
            let draw = if self.images.is_some() { "/draw TEXT requests an image, " } else { "" };
            note!(
                "/image FILE… adds images to the next question, {draw}/reset starts over, /help lists all commands; Ctrl-C stops an answer"
            );
        }
        while let Some(line) = lines.next()? {
            let Line::Text(line) = line else {
                note!("mgm: error: the line is not UTF-8, so it was ignored");
                continue;
            };
            let line = line.trim();
            let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            match word {
                "" => continue,
                "/quit" | "/exit" => break,
                "/help" => note!("{HELP}"),
                "/reset" => {
                    self.chat.reset();
                    images.clear();
                    note!("started a new conversation");
                }
                "/image" if rest.trim().is_empty() => note!("mgm: error: /image needs a file name"),
                "/image" if !has_vision => note!("mgm: error: this model has no vision towers"),
                "/image" => match read_images(rest, self.decoding) {
                    Ok(read) => images.extend(read),
                    Err(error) => note!("mgm: error: {error}"),
                },
                "/draw" if self.images.is_none() => {
                    note!("mgm: error: there is no image model: start with --image-model MODEL")
                }
                "/draw" if rest.trim().is_empty() => note!("mgm: error: /draw needs a text"),
                command if command.starts_with('/') && !command.starts_with("//") && command != "/draw" => {
                    note!(
                        "mgm: error: unknown command {command}; /help lists the commands, and // begins a question with /"
                    );
                }
                _ => match self.turn(line, &std::mem::take(&mut images)).await {
                    Ok(()) => {}
                    // A lost device fails every further question; other errors concern only this one.
                    Err(
                        error
                        @ (CliError::Core(mgm::Error::DeviceLost(_)) | CliError::Image(mgm::Error::DeviceLost(_))),
                    ) => {
                        return Err(error);
                    }
                    Err(CliError::Core(mgm::Error::Cancelled) | CliError::Image(mgm::Error::Cancelled)) => {
                        note!("stopped");
                    }
                    Err(error @ (CliError::Core(_) | CliError::Image(_))) => note!("mgm: error: {error}"),
                    Err(error) => return Err(error),
                },
            }
            // A stop concerned this line.
            self.stop.store(false, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Why the last of the answers ended: a stop concerns the one in progress.
fn last_finish_reason(answer: &Answer) -> FinishReason {
    answer.alternatives.last().map_or(answer.finish_reason, |choice| choice.finish_reason)
}

const HELP: &str = "\
/image FILE…  adds images to the next question; quote names with spaces, ~ is the home folder
/draw TEXT    asks a question and requests an image with the answer
/reset        starts a new conversation
/quit, /exit  leaves, as the end of input does
/help         shows this list
//TEXT        asks a question that begins with /
Ctrl-C stops an answer.";

/// Reads all images that a text names, or none.
fn read_images(names: &str, decoding: ImageDecoding) -> Result<Vec<Image>, String> {
    file_names(names)?.iter().map(|path| read_image(path, decoding).map_err(|error| error.to_string())).collect()
}

/// Removes control characters: a model must not move the terminal's cursor or ring its bell.
fn without_controls(text: &str) -> Cow<'_, str> {
    let control = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(control) { text.replace(control, "").into() } else { text.into() }
}
