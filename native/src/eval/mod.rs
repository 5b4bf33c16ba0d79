//! `mgm eval`: asks a model a benchmark's questions, writes its answers to a file, and scores them.

mod answers;
mod batch_runner;
mod dataset;
mod fingerprint;
mod formats;
mod progress_log;
mod report;
mod scoring;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use mgm::Error;
use mgm::gpu::Gpu;
use mgm::image::ImageDecoding;
use mgm::session::LoadOptions;
use mgm::tensor::Precision;
use mgm::text::conversation::Template;

use crate::args::{CheckpointArgs, ProfiledDeviceArgs};
use crate::files::io_error;
use crate::load::{checkpoint_path, load_model, load_options, open_checkpoint};
use crate::output::print_json;
use crate::recovery::Recovery;
use crate::{CliError, device_cache, interrupt, load, pull};
use answers::{Answers, AnswersFile, Settings};
use batch_runner::BatchRunner;
use dataset::{Dataset, Question, batches, check_images, select};
use formats::{Format, Source};
use progress_log::ProgressLog;
use report::{Figures, Report, Run, by_kind};
use scoring::{Score, Scorer};

#[derive(Debug, Args)]
#[command(after_long_help = EVAL_HELP)]
pub struct EvalArgs {
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    #[command(flatten)]
    device: ProfiledDeviceArgs,
    /// Don't measure kernels before a model's first load on this GPU, which takes up to 2 seconds
    #[arg(long)]
    no_tune: bool,
    /// Benchmark format of the data
    #[arg(long)]
    format: Format,
    /// The benchmark's file or folder
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// For vqa and textvqa: JSON file with the annotators' answers
    #[arg(long, value_name = "FILE")]
    annotations: Option<PathBuf>,
    /// Folder of the images [default: the folder of the data; for easy-vqa its subfolder images]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// JSON lines file to append answers to. Run the same command again to resume an interrupted run
    #[arg(long, value_name = "FILE", required_unless_present = "answers")]
    out: Option<PathBuf>,
    /// Score the answers in this file instead of asking a model (JSON lines with "id" or "question_id", and "text" or
    /// "answer")
    #[arg(long, value_name = "FILE", conflicts_with_all = ["out", "checkpoint"])]
    answers: Option<PathBuf>,
    /// Ask only the first N questions
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// With --limit: ask N random questions of this seed instead of the first N
    #[arg(long, requires = "limit")]
    seed: Option<u64>,
    /// Maximum number of questions to answer at once; reduced if memory is short. Questions about one image share its
    /// encoding
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    batch: u32,
    /// Line to append to every question instead of the benchmark's own; empty for none
    #[arg(long, value_name = "TEXT")]
    instruction: Option<String>,
    /// Weight precision: f32, f16, q8, q4 [default: f16; the file's own for GGUF and bundles]
    #[arg(long)]
    precision: Option<Precision>,
    /// Conversation template: vicuna_v1, gemma, mistral_instruct, chatml_direct, llama_3 [default: the checkpoint's]
    #[arg(long, value_name = "NAME")]
    conversation: Option<Template>,
    /// Maximum number of tokens in an answer [default: the benchmark's, 128 or 1024]
    #[arg(long, visible_aliases = ["max-tokens", "max-completion-tokens"], value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: Option<u32>,
    /// Encode images at low resolution only, without the high-resolution tower and patch info mining
    #[arg(long)]
    no_high_resolution: bool,
    /// How image files are read: reference (as Mini-Gemini's code reads them: EXIF orientation ignored, transparency
    /// dropped, 16-bit grey clipped), or corrected (as viewers show them)
    #[arg(long, value_name = "MODE", default_value_t = ImageDecoding::Reference)]
    image_decoding: ImageDecoding,
    /// Print one JSON object and nothing else on standard output
    #[arg(long)]
    json: bool,
}

const EVAL_HELP: &str = "\
Decoding is greedy. Prompts and scores follow the evaluation scripts that Mini-Gemini uses:
  easy-vqa   exact match, ignoring case and a final period
  jsonl      match with one of the answers, both normalised as for textvqa; no instruction is appended
  vqa        min(1, agreeing annotators / 3), averaged over leaving out each annotator; VQAEval's normalisation
  textvqa    the same with EvalAI's normalisation; LLaVA's prompts include words from an OCR system
  pope       \"no\" if the first sentence contains \"No\", \"no\" or \"not\", else \"yes\"; precision, recall, F1, yes ratio
  mmbench    the named letter, else wrong (official scores come from a server); single round, not circular
  mmmu       the named letter, else a random one (seed 42); for open questions the conclusion, numbers to two decimals
Intervals are 95 % Wilson intervals. Ctrl-C stops; run the same command with the same --out to resume.";

pub async fn run(arguments: EvalArgs) -> Result<(), CliError> {
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
        (None, Some(out)) => answer(&arguments, out, &dataset, &selected).await?,
        (None, None) => return Err(Error::InvalidArgument("--out or --answers is required".to_owned()).into()),
    };
    let report = score_all(&arguments, answers, &selected, run);
    if arguments.json {
        return print_json(&report);
    }
    Ok(report.print(&mut std::io::stdout().lock())?)
}

/// Asks the selected questions that the answers file doesn't answer yet.
async fn answer(
    arguments: &EvalArgs,
    out: &Path,
    dataset: &Dataset,
    selected: &[&Question],
) -> Result<(Answers, Option<Run>), CliError> {
    let files = open_checkpoint(&arguments.checkpoint).await?;
    let options = load_options(&arguments.checkpoint, &files, arguments.precision)
        .with_template(arguments.conversation)
        .with_high_resolution(!arguments.no_high_resolution);
    let max_new_tokens = arguments.max_new_tokens.unwrap_or(dataset.max_new_tokens);
    let text = load::check(&files, &options).await?;
    let settings = settings(arguments, &options, max_new_tokens)?;
    let mut answers = AnswersFile::open(out, &settings, &dataset.questions)?;
    let open = selected.iter().copied().filter(|question| answers.answers.get(question).is_none());
    let open: Vec<&Question> = open.collect();
    check_images(&open)?;
    if open.is_empty() {
        return Ok((answers.answers, None));
    }
    if open.len() < selected.len() {
        let (done, all, file) = (selected.len() - open.len(), selected.len(), out.display());
        note!("mgm: note: {done} of {all} questions are already answered in {file}");
    }

    let started = Instant::now();
    let stop = interrupt::install()?;
    let mut gpu = device_cache::open_with_note(&arguments.device.options()).await?;
    let mut recovery = Recovery::new(arguments.device.options());
    let load = async |mut gpu: Gpu, recovery: &mut Recovery| loop {
        match load_model(&gpu, &files, &options, &text, !arguments.no_tune, &stop).await {
            Err(error @ Error::DeviceLost(_)) => gpu = recovery.reopen(error).await?,
            model => {
                let mut chat = model?.chat();
                // As the reference does, so that figures are comparable.
                chat.allow_special_tokens(true);
                return Ok::<_, Error>((gpu, chat));
            }
        }
    };
    let chat;
    (gpu, chat) = load(gpu, &mut recovery).await?;
    let load_ms = started.elapsed().as_secs_f64() * 1000.0;
    gpu.take_profile().await?;

    let started = Instant::now();
    let mut log = ProgressLog::new(open.len());
    let mut runner = BatchRunner::new(chat, max_new_tokens, arguments.image_decoding, &stop);
    let mut done = 0;
    for batch in batches(&open, arguments.batch as usize) {
        let answered = loop {
            match runner.answer(&batch).await {
                Err(Error::Cancelled) => {
                    log.finish();
                    note!("mgm: note: {done} of {} answered; run the same command again to resume", open.len());
                    return Err(Error::Cancelled.into());
                }
                Err(error @ Error::DeviceLost(_)) => {
                    let reopened = recovery.reopen(error).await?;
                    let chat;
                    (gpu, chat) = load(reopened, &mut recovery).await?;
                    runner.move_to(chat);
                }
                answered => break answered?,
            }
        };
        recovery.note_result();
        done += answered.len();
        answered.into_iter().try_for_each(|answer| answers.add(answer))?;
        log.update(done);
    }
    log.finish();
    if arguments.device.profile {
        note!("{}", gpu.take_profile().await?);
    }
    let seconds = started.elapsed().as_secs_f64();
    let run = Run {
        adapter: gpu.adapter().name.clone(),
        load_ms,
        questions: open.len(),
        total_ms: seconds * 1000.0,
        questions_per_s: open.len() as f64 / seconds,
    };
    Ok((answers.answers, Some(run)))
}

fn settings(arguments: &EvalArgs, options: &LoadOptions, max_new_tokens: u32) -> mgm::Result<Settings> {
    let checkpoint = checkpoint_path(&arguments.checkpoint)?;
    let CheckpointArgs { vision_tower, vision_tower_hr, llm, .. } = &arguments.checkpoint;
    let replacements = [vision_tower, vision_tower_hr, llm].into_iter().flatten().map(PathBuf::as_path);
    let paths: Vec<&Path> = std::iter::once(checkpoint.as_path()).chain(replacements).collect();
    let model = std::path::absolute(&checkpoint).map_err(|error| io_error(&checkpoint, error))?;
    Ok(Settings {
        format: arguments.format.to_string(),
        // A folder of the Hub's cache has a commit for a name.
        model: pull::repo_of(&model)
            .unwrap_or_else(|| model.file_name().unwrap_or_default().to_string_lossy().into_owned()),
        fingerprint: fingerprint::of(&paths)?,
        precision: if options.keep_quantization { "as stored".to_owned() } else { options.precision.to_string() },
        conversation: options.template.map_or_else(|| "the model's".to_owned(), |template| template.to_string()),
        high_resolution: options.high_resolution,
        image_decoding: arguments.image_decoding.to_string(),
        max_new_tokens,
    })
}

/// Scores the answers to the selected questions.
fn score_all(arguments: &EvalArgs, answers: Answers, selected: &[&Question], run: Option<Run>) -> Report {
    let mut scorer = Scorer::new();
    let answered: Vec<_> = selected.iter().filter_map(|question| Some((*question, answers.get(question)?))).collect();
    let scores: Vec<(&Question, Score)> =
        answered.iter().filter_map(|(question, answer)| Some((*question, scorer.score(question, answer)?))).collect();
    Report {
        format: arguments.format.to_string(),
        data: arguments.data.display().to_string(),
        asked: selected.len(),
        answered: answered.len(),
        failed: answered.iter().filter(|(_, answer)| answer.error.is_some()).count(),
        figures: Figures::from_scores(scores.iter().map(|(_, score)| score)),
        kinds: by_kind(&scores),
        settings: answers.settings,
        run,
    }
}
