//! `mgm eval`: a benchmark's questions to a model, its answers to a file, and what they are worth.

mod answers;
mod asking;
mod dataset;
mod fingerprint;
mod formats;
mod report;
mod scoring;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use mgm::Error;
use mgm::load::LoadOptions;
use mgm_native::files::io_error;

use crate::args::EvalArgs;
use crate::chat::install_interrupt;
use crate::{Failure, kept, load, progress};
use answers::{Answers, AnswersFile, Settings};
use asking::Asker;
use dataset::{Dataset, Question, batches, check_pictures, select};
pub use formats::Format;
use formats::Source;
use report::{Figures, Report, Run, by_kind};
use scoring::{Mark, Marker};

/// How often it is told how far a run is, where there is no terminal to draw a bar on.
const NOTES: Duration = Duration::from_secs(30);

pub async fn run(arguments: EvalArgs) -> Result<(), Failure> {
    let source = Source {
        data: arguments.data.clone(),
        annotations: arguments.annotations.clone(),
        images: arguments.images.clone(),
        instruction: arguments.instruction.clone(),
    };
    let dataset = source.open(arguments.format)?;
    let selected = select(&dataset.questions, arguments.limit.map(|limit| limit as usize), arguments.seed);
    let (answers, run) = match (&arguments.answers, &arguments.out) {
        (Some(file), _) => (Answers::read(file, &dataset.questions)?, None),
        (None, Some(out)) => ask(&arguments, out, &dataset, &selected).await?,
        (None, None) => return Err(Error::InvalidArgument("--out or --answers is needed".to_owned()).into()),
    };
    let report = marked(&arguments, answers, &selected, run);
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let text = serde_json::to_string(&report).map_err(std::io::Error::other)?;
        writeln!(out, "{text}")?;
    } else {
        report.print(&mut out)?;
    }
    Ok(())
}

/// Asks what is not yet answered.
async fn ask(
    arguments: &EvalArgs,
    out: &Path,
    dataset: &Dataset,
    selected: &[&Question],
) -> Result<(Answers, Option<Run>), Failure> {
    let files = arguments.checkpoint.open().await?;
    let options = LoadOptions {
        template: arguments.conversation,
        high_resolution: !arguments.no_high_resolution,
        ..arguments.checkpoint.load_options(&files, arguments.precision)
    };
    let max_new_tokens = arguments.max_new_tokens.unwrap_or(dataset.max_new_tokens);
    let settings = settings(arguments, &options, max_new_tokens)?;
    let mut answers = AnswersFile::open(out, &settings, &dataset.questions)?;
    let left = selected.iter().copied().filter(|question| answers.answers.get(question).is_none());
    let left: Vec<&Question> = left.collect();
    check_pictures(&left)?;
    if left.is_empty() {
        return Ok((answers.answers, None));
    }
    if left.len() < selected.len() {
        note!(
            "mgm: note: {} of {} questions are answered in {}",
            selected.len() - left.len(),
            selected.len(),
            out.display()
        );
    }

    let started = Instant::now();
    let gpu = kept::open_noting(&arguments.device.options()).await?;
    let stop = Arc::new(AtomicBool::new(false));
    install_interrupt(&stop)?;
    let model = load::model(&gpu, &files, &options, &stop).await?;
    let load_ms = started.elapsed().as_secs_f64() * 1000.0;
    gpu.take_profile().await?;

    let started = Instant::now();
    let mut told = Told::new(left.len());
    let mut asker = Asker::new(model.chat(None), max_new_tokens, &stop);
    let mut done = 0;
    for batch in batches(&left, arguments.batch as usize) {
        let answered = match asker.ask(&batch).await {
            Err(Error::Cancelled) => {
                told.finish();
                note!("mgm: note: {done} of {} answered; the same command goes on from here", left.len());
                return Err(Error::Cancelled.into());
            }
            answered => answered?,
        };
        done += answered.len();
        answered.into_iter().try_for_each(|answer| answers.add(answer))?;
        told.tell(done);
    }
    told.finish();
    if arguments.device.profile {
        note!("{}", gpu.take_profile().await?);
    }
    let seconds = started.elapsed().as_secs_f64();
    let run = Run {
        adapter: gpu.adapter().name.clone(),
        load_ms,
        questions: left.len(),
        total_ms: seconds * 1000.0,
        questions_per_s: left.len() as f64 / seconds,
    };
    Ok((answers.answers, Some(run)))
}

fn settings(arguments: &EvalArgs, options: &LoadOptions, max_new_tokens: u32) -> mgm::Result<Settings> {
    let own = &arguments.checkpoint;
    let parts = [&own.checkpoint, &own.vision_tower, &own.vision_tower_hr, &own.language];
    let parts: Vec<&Path> = parts.into_iter().flatten().map(|path| path.as_path()).collect();
    let model = parts.first().map(std::path::absolute).transpose().map_err(|error| io_error(parts[0], error))?;
    let name = model.as_deref().and_then(Path::file_name).unwrap_or_default();
    Ok(Settings {
        format: arguments.format.to_string(),
        model: name.to_string_lossy().into_owned(),
        fingerprint: fingerprint::of(&parts)?,
        precision: if options.keep_stored { "as stored".to_owned() } else { options.precision.to_string() },
        conversation: options.template.map_or_else(|| "the model's".to_owned(), |template| template.to_string()),
        high_resolution: options.high_resolution,
        max_new_tokens,
    })
}

/// What the answers are worth.
fn marked(arguments: &EvalArgs, answers: Answers, selected: &[&Question], run: Option<Run>) -> Report {
    let mut marker = Marker::new();
    let answered: Vec<_> = selected.iter().filter_map(|question| Some((*question, answers.get(question)?))).collect();
    let marks: Vec<(&Question, Mark)> =
        answered.iter().filter_map(|(question, answer)| Some((*question, marker.mark(question, answer)?))).collect();
    Report {
        format: arguments.format.to_string(),
        data: arguments.data.display().to_string(),
        asked: selected.len(),
        answered: answered.len(),
        failed: answered.iter().filter(|(_, answer)| answer.error.is_some()).count(),
        figures: Figures::of(marks.iter().map(|(_, mark)| mark)),
        kinds: by_kind(&marks),
        settings: answers.settings,
        run,
    }
}

/// How far a run is, on standard error: a bar on a terminal, else a line now and then.
struct Told {
    bar: indicatif::ProgressBar,
    all: usize,
    started: Instant,
    last: Option<Instant>,
}

impl Told {
    fn new(all: usize) -> Self {
        let started = Instant::now();
        let last = (!std::io::stderr().is_terminal()).then_some(started);
        Self { bar: progress::count(all as u64, "asking"), all, started, last }
    }

    fn tell(&mut self, done: usize) {
        self.bar.set_position(done as u64);
        if self.last.is_some_and(|last| last.elapsed() >= NOTES) {
            self.last = Some(Instant::now());
            let rate = done as f64 / self.started.elapsed().as_secs_f64();
            let left = (self.all - done) as f64 / rate;
            note!("mgm: note: {done} of {} answered, {rate:.1} a second, {:.0} minutes left", self.all, left / 60.0);
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
