//! Small language models of every supported kind, with ids, logits, chat texts and greedy tokens by other programs.
//!
//! `cargo test --test family qwen3` runs the checks whose names contain `qwen3`. Cases are the folders in `MGM_FAMILY`
//! (default: `tests/data/family`), at any depth, that have an `expected.json`; a folder with a `pre.json` has texts for
//! every pre-tokenizer. A check that mgm cannot pass yet is in [`NOT_YET`], and fails once it passes.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libtest_mimic::{Arguments, Failed, Trial};
use mgm::gpu::Gpu;
use mgm::io::DiskFile;
use mgm::language::{LanguageModel, Position, StepRows, TokenGenerator};
use mgm::loader::Loader;
use mgm::ops::{BLOCK_ROWS, NO_ROW, PagedSequence, Sampling};
use mgm::tensor::{Precision, Tensor};
use mgm::text::Prompt;
use mgm::text::chat_template::{ChatTemplate, TemplateSource};
use mgm::text::stop::StopIds;
use mgm::text::tokenizer::Tokenizer;
use mgm::weights::gguf::Value;
use mgm::weights::gguf_model::GgufModel;
use safetensors::SafeTensors;
use serde_json::json;

use common::open_gpu;

/// How far logits may be from the expected ones, as a part of the largest magnitude: f32 arithmetic in another order.
const BOUND: f32 = 1e-3;
/// When the cases' templates were rendered: 2025-03-09 14:05:07.
const CLOCK: i64 = 1_741_529_107;

/// Checks that are not supported yet, by name: `KIND::CASE` or `KIND::CASE::CHECK`.
const NOT_YET: &[&str] = &["gguf::split", "pre::deepseek-coder", "pre::deepseek-llm", "pre::minicpm5", "pre::superbpe"];
/// Kinds of cases that are not supported yet, by the folder that they are in.
const KINDS_NOT_YET: [&str; 5] = ["blocks", "llava", "lora", "ocr", "eval"];

type Check = fn(&Case) -> Result<(), Failed>;
const CHECKS: [(&str, Check); 6] = [
    ("logits", Case::logits),
    ("paged", Case::paged),
    ("texts", Case::texts),
    ("chats", Case::chats),
    ("prompt", Case::prompt),
    ("ends", Case::ends),
];

fn main() {
    let arguments = Arguments::from_args();
    let root = std::env::var_os("MGM_FAMILY")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/family"), PathBuf::from);
    let mut folders = Vec::new();
    find(&root, &mut folders);
    folders.sort();
    assert!(!folders.is_empty(), "no cases in {}", root.display());
    let mut trials = Vec::new();
    for folder in folders {
        let part = |path: Option<&Path>| {
            path.and_then(Path::file_name).map_or_else(String::new, |name| name.to_string_lossy().into_owned())
        };
        let (kind, name) = (part(folder.parent()), part(Some(&folder)));
        if folder.join("pre.json").is_file() {
            trials.extend(pre_tokenizers(&folder));
            continue;
        }
        let case = format!("{kind}::{name}");
        if KINDS_NOT_YET.contains(&kind.as_str()) || KINDS_NOT_YET.contains(&name.as_str()) {
            trials.push(Trial::test(case, || Ok(())).with_ignored_flag(true));
            continue;
        }
        for (check, run) in CHECKS {
            let (full, folder) = (format!("{case}::{check}"), folder.clone());
            let later = [&case, &full].iter().any(|name| NOT_YET.contains(&name.as_str()));
            trials.push(trial(full, later, move || run(&Case::open(&folder)?)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// The check, or that it fails if it is not supported yet.
fn trial(name: String, later: bool, run: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    Trial::test(name, move || match (run(), later) {
        (Ok(()), true) => Err("it passes: take it out of NOT_YET".into()),
        (Err(_), true) => Ok(()),
        (result, false) => result,
    })
}

/// All folders of cases under a folder.
fn find(folder: &Path, found: &mut Vec<PathBuf>) {
    if folder.join("expected.json").is_file() || folder.join("pre.json").is_file() {
        found.push(folder.to_owned());
        return;
    }
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()) {
        find(&path, found);
    }
}

#[derive(serde::Deserialize)]
struct Expected {
    files: Vec<String>,
    prompt: Vec<u32>,
    runs: Vec<Run>,
    texts: Vec<Text>,
    #[serde(default)]
    chats: Vec<Chat>,
    eog: Vec<u32>,
}

#[derive(serde::Deserialize)]
struct Run {
    context: usize,
    positions: Vec<usize>,
    logits: String,
    greedy: Vec<u32>,
    scale: f32,
}

#[derive(serde::Deserialize)]
struct Text {
    text: String,
    special: bool,
    ids: Vec<u32>,
}

#[derive(serde::Deserialize)]
struct Chat {
    messages: serde_json::Value,
    options: serde_json::Map<String, serde_json::Value>,
    text: Option<String>,
    ids: Option<Vec<u32>>,
    error: Option<String>,
}

struct Case {
    folder: PathBuf,
    expected: Expected,
    model: GgufModel,
}

fn failed(error: impl ToString) -> Failed {
    Failed::from(error.to_string())
}

fn open(path: &Path) -> Result<GgufModel, Failed> {
    pollster::block_on(GgufModel::open(Rc::new(DiskFile::open(path).map_err(failed)?))).map_err(failed)
}

/// Fails unless the two are equal.
fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<(), Failed> {
    if found == expected { Ok(()) } else { Err(failed(format!("{what}: {found:?}, expected {expected:?}"))) }
}

impl Case {
    fn open(folder: &Path) -> Result<Self, Failed> {
        let text = std::fs::read_to_string(folder.join("expected.json")).map_err(failed)?;
        let expected: Expected = serde_json::from_str(&text).map_err(failed)?;
        let file = expected.files.first().ok_or("the case has no file")?;
        Ok(Self { model: open(&folder.join(file))?, folder: folder.to_owned(), expected })
    }

    fn tokenizer(&self) -> Result<Tokenizer, Failed> {
        Tokenizer::from_gguf(&self.model.header).map_err(failed)
    }

    /// The model with f32 keys and values and exactly the file's weights.
    fn language(&self, gpu: &Gpu) -> Result<LanguageModel, Failed> {
        let loader = Loader::new(gpu, self.model.weights.clone(), Precision::F32, None).keep_quantization();
        pollster::block_on(LanguageModel::load(&loader, &self.model.config)).map_err(failed)
    }

    fn positions(&self) -> Vec<Position> {
        self.expected.prompt.iter().map(|id| Position::Text(*id)).collect()
    }

    /// Compares the logits [prompt, vocabulary] with a run's.
    fn compare(&self, run: &Run, logits: &[f32]) -> Result<(), Failed> {
        let bytes = std::fs::read(self.folder.join("expected.safetensors")).map_err(failed)?;
        let file = SafeTensors::deserialize(&bytes).map_err(failed)?;
        let expected: Vec<f32> = bytemuck::pod_collect_to_vec(file.tensor(&run.logits).map_err(failed)?.data());
        let vocabulary = logits.len() / self.expected.prompt.len();
        equal("values", expected.len(), vocabulary * run.positions.len())?;
        let mut worst = 0.0f32;
        for (position, expected) in run.positions.iter().zip(expected.chunks_exact(vocabulary)) {
            for (found, expected) in logits[position * vocabulary..].iter().zip(expected) {
                let error = (found - expected).abs() / run.scale;
                if error.is_nan() || error > BOUND {
                    return Err(failed(format!(
                        "context {}, position {position}: {found}, expected {expected}: {error:.1e} of the scale",
                        run.context
                    )));
                }
                worst = worst.max(error);
            }
        }
        println!("{}: {} within {worst:.1e} of the scale", self.folder.display(), run.logits);
        Ok(())
    }

    /// Logits and greedy tokens of every run.
    fn logits(&self) -> Result<(), Failed> {
        let gpu = open_gpu();
        let language = self.language(&gpu)?;
        for run in &self.expected.runs {
            let mut cache = language.cache();
            cache.expect_length(run.context);
            let mut recorder = gpu.record();
            let x = language.embed(&mut recorder, &self.positions(), &[]).map_err(failed)?;
            let x = language.forward(&mut recorder, &x, &mut cache).map_err(failed)?;
            let logits = language.logits(&mut recorder, &x).map_err(failed)?.read_back(&mut recorder);
            recorder.submit().map_err(failed)?;
            self.compare(run, &pollster::block_on(logits.values()).map_err(failed)?)?;

            let (end, room) = (x.slice_rows(x.rows() - 1..x.rows()), run.greedy.len());
            let mut generator = TokenGenerator::new(&language, &gpu, &mut cache, end, room, Sampling::GREEDY, || 0.0)
                .map_err(failed)?;
            let mut ids = Vec::new();
            while let Some(id) = pollster::block_on(generator.next()).map_err(failed)? {
                ids.push(id);
            }
            equal("greedy tokens", &ids, &run.greedy)?;
        }
        Ok(())
    }

    /// The same logits with keys and values in blocks, half of the prompt at a time.
    fn paged(&self) -> Result<(), Failed> {
        let gpu = open_gpu();
        let language = self.language(&gpu)?;
        let positions = self.positions();
        let blocks: Vec<u32> = (0..positions.len().div_ceil(BLOCK_ROWS) as u32).rev().collect();
        for run in &self.expected.runs {
            let cache = language.paged_cache(&gpu, blocks.len(), run.context).map_err(failed)?;
            let mut logits: Vec<f32> = Vec::new();
            for range in [0..positions.len() / 2, positions.len() / 2..positions.len()] {
                let mut step = language.paged_step(&gpu, range.len(), 1, blocks.len()).map_err(failed)?;
                let chosen = Tensor::zeros(&gpu, &[1], "tokens").map_err(failed)?;
                let mut recorder = gpu.record();
                let x = language.embed(&mut recorder, &positions[range.clone()], &[]).map_err(failed)?;
                let sequence = PagedSequence { queries: range.len(), keys: range.end, blocks: &blocks };
                let rows = [StepRows { sequence, token: NO_ROW }];
                language.prefill_paged(&mut recorder, &x, &cache, &mut step, &chosen, &rows).map_err(failed)?;
                let read = language.logits(&mut recorder, &x).map_err(failed)?.read_back(&mut recorder);
                recorder.submit().map_err(failed)?;
                logits.extend(pollster::block_on(read.values::<f32>()).map_err(failed)?);
            }
            self.compare(run, &logits)?;
        }
        Ok(())
    }

    /// Ids of texts.
    fn texts(&self) -> Result<(), Failed> {
        let tokenizer = self.tokenizer()?;
        for Text { text, special, ids } in &self.expected.texts {
            let found = match special {
                true => tokenizer.encode(text).map_err(failed)?,
                false => {
                    let tokens = tokenizer.encode_prompt(&Prompt::from_user_text(text)).map_err(failed)?;
                    let id = |token| match token {
                        mgm::text::PromptToken::Text(id) => id,
                        mgm::text::PromptToken::Image => u32::MAX,
                    };
                    tokens.into_iter().map(id).collect()
                }
            };
            equal(&format!("ids of {text:?}"), &found, ids)?;
        }
        Ok(())
    }

    fn template(&self, tokenizer: &mut Tokenizer) -> Result<ChatTemplate, Failed> {
        let text = self.model.header.text("tokenizer.chat_template").ok_or("the file has no template")?.to_owned();
        let mut settings = tokenizer.template_settings(&text);
        settings.clock = || CLOCK;
        let source = TemplateSource { file: self.model.header.file.clone(), key: "tokenizer.chat_template", text };
        ChatTemplate::new(source, settings).map_err(failed)
    }

    /// A rendered text's ids, without the beginning token that the tokenizer adds.
    fn ids_of(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, Failed> {
        let added = tokenizer.encode("").map_err(failed)?.len();
        Ok(tokenizer.encode(text).map_err(failed)?.split_off(added))
    }

    /// Texts and ids of conversations.
    fn chats(&self) -> Result<(), Failed> {
        if self.expected.chats.is_empty() {
            return Ok(());
        }
        let mut tokenizer = self.tokenizer()?;
        let template = self.template(&mut tokenizer)?;
        for (index, chat) in self.expected.chats.iter().enumerate() {
            let mut variables = chat.options.clone();
            variables.insert("messages".to_owned(), chat.messages.clone());
            match (template.render_json(&json!(variables).to_string()), &chat.text, &chat.error) {
                (Ok(found), Some(text), _) => {
                    equal(&format!("text {index}"), &found, text)?;
                    if let Some(ids) = &chat.ids {
                        equal(&format!("ids of text {index}"), &Self::ids_of(&tokenizer, text)?, ids)?;
                    }
                }
                (Err(error), None, Some(message)) => {
                    if !error.to_string().contains(message) {
                        return Err(failed(format!("text {index}: {error}, expected {message}")));
                    }
                }
                (found, ..) => return Err(failed(format!("text {index}: {found:?}, expected {:?}", chat.error))),
            }
        }
        Ok(())
    }

    /// The case's prompt begins with the first conversation.
    fn prompt(&self) -> Result<(), Failed> {
        let Some(ids) = self.expected.chats.first().and_then(|chat| chat.ids.as_ref()) else { return Ok(()) };
        let tokenizer = self.tokenizer()?;
        let text = self.expected.chats[0].text.as_deref().unwrap_or_default();
        let found = tokenizer.encode_prompt(&Prompt::with_placeholders(text)).map_err(failed)?;
        let found: Vec<u32> = found
            .into_iter()
            .filter_map(|token| match token {
                mgm::text::PromptToken::Text(id) => Some(id),
                mgm::text::PromptToken::Image => None,
            })
            .collect();
        // One beginning token, whether the template or the tokenizer writes it.
        let skipped = found.len() - ids.len().min(found.len());
        equal("the prompt", &found[skipped..], ids.as_slice())?;
        if skipped > 1 || skipped == 1 && Some(found[0]) != tokenizer.bos() {
            return Err(failed(format!("{skipped} tokens before the prompt")));
        }
        Ok(())
    }

    /// The ids that end an answer.
    fn ends(&self) -> Result<(), Failed> {
        let stop = StopIds::for_jinja_template(&self.model.config.eos_tokens, &self.tokenizer()?);
        let mut expected = self.expected.eog.clone();
        expected.sort_unstable();
        equal("end tokens", stop.ids(), expected.as_slice())
    }
}

#[derive(serde::Deserialize)]
struct PreTokenizers {
    texts: Vec<String>,
    ids: BTreeMap<String, Vec<Vec<u32>>>,
    own: BTreeMap<String, Vec<Vec<u32>>>,
}

/// A check for each name of `tokenizer.ggml.pre`.
fn pre_tokenizers(folder: &Path) -> Vec<Trial> {
    let text = std::fs::read_to_string(folder.join("pre.json")).expect("pre.json");
    let PreTokenizers { texts, mut ids, own } = serde_json::from_str(&text).expect("the format of pre.json");
    // Those of the models' own patterns are right where the two differ.
    ids.extend(own);
    let trials = ids.into_iter().map(|(name, ids)| {
        let (full, path, texts) = (format!("pre::{name}"), folder.join("pre.gguf"), texts.clone());
        let later = NOT_YET.contains(&full.as_str());
        trial(full, later, move || {
            let source = DiskFile::open(&path).map_err(failed)?;
            let mut header = pollster::block_on(mgm::weights::gguf::Header::read(&source)).map_err(failed)?;
            header.metadata.insert("tokenizer.ggml.pre".to_owned(), Value::Text(name));
            header.metadata.insert("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(false));
            let tokenizer = Tokenizer::from_gguf(&header).map_err(failed)?;
            for (text, ids) in texts.iter().zip(&ids) {
                equal(&format!("ids of {text:?}"), &tokenizer.encode(text).map_err(failed)?, ids)?;
            }
            Ok(())
        })
    });
    trials.collect()
}
