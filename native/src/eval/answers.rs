//! The answers file: JSON lines, with the settings first and then one line per answer. An interrupted run resumes after
//! them.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use fs4::{FileExt, TryLockError};
use mgm::Result;
use mgm::image::ImageDecoding;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::dataset::Question;
use super::formats::{BYTE_ORDER_MARK, Id, data_error, parse_line, to_text};
use crate::files::{io_error, read, refuse_special};

/// Everything that answers depend on besides the questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub format: String,
    /// Name of the model's folder or file.
    pub model: String,
    /// Hash of the model's files.
    pub fingerprint: String,
    pub precision: String,
    pub conversation: String,
    pub high_resolution: bool,
    #[serde(default = "reference")]
    pub image_decoding: String,
    pub max_new_tokens: u32,
}

/// The image decoding of files without this setting.
fn reference() -> String {
    ImageDecoding::Reference.to_string()
}

/// An answer. The aliases are the field names of VQA's and LLaVA's files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    #[serde(deserialize_with = "id", alias = "question_id")]
    pub id: String,
    /// The question's prompt, which detects changed data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    #[serde(alias = "answer")]
    pub text: String,
    /// Why there is no answer: the question doesn't fit into the model's context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

fn id<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Id::deserialize(deserializer).map(|id| id.to_string())
}

/// The first line of an answers file.
#[derive(Serialize, Deserialize)]
struct Header {
    mgm_eval: Settings,
}

/// Answers by question id.
#[derive(Debug, Default)]
pub struct Answers {
    pub settings: Option<Settings>,
    by_id: HashMap<String, Answer>,
}

impl Answers {
    /// Reads an answers file. Its last line may be incomplete.
    ///
    /// # Errors
    /// [`mgm::Error::Io`]; [`mgm::Error::Config`] with the line that is malformed or answers another question.
    pub fn read(file: &Path, questions: &[Question]) -> Result<Self> {
        Self::parse(file, &read_lines(file)?, questions).map(|(answers, _)| answers)
    }

    /// The answers in a text, and the length of its complete lines in bytes.
    fn parse(file: &Path, text: &str, questions: &[Question]) -> Result<(Self, usize)> {
        let prompts: HashMap<&str, &str> =
            questions.iter().map(|question| (question.id.as_str(), question.prompt.as_str())).collect();
        let mut answers = Self::default();
        let mut complete = 0;
        for (index, line) in text.split_inclusive('\n').enumerate() {
            let fail = |reason: String| data_error(file, format!("line {}: {reason}", index + 1));
            let length = line.len();
            let line = if index == 0 { line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line) } else { line };
            let ended = line.ends_with('\n');
            if index == 0 && line.contains("\"mgm_eval\"") && ended {
                answers.settings = Some(parse_line::<Header>(line).map_err(fail)?.mgm_eval);
            } else if !line.trim().is_empty() {
                let answer: Answer = match parse_line(line) {
                    Ok(answer) => answer,
                    // The run was killed while writing this line.
                    Err(_) if !ended => break,
                    Err(reason) => return Err(fail(reason)),
                };
                let Some(prompt) = prompts.get(answer.id.as_str()) else {
                    return Err(fail(format!(
                        "the data has no question {:?}; these answers belong to other data",
                        answer.id
                    )));
                };
                if let Some(asked) = answer.prompt.as_deref().filter(|asked| asked != prompt) {
                    let reason = format!("question {} was {asked:?} and is now {prompt:?}", answer.id);
                    return Err(fail(format!("{reason}: the data or --instruction has changed")));
                }
                if answers.by_id.contains_key(&answer.id) {
                    return Err(fail(format!("question {} is answered twice", answer.id)));
                }
                answers.by_id.insert(answer.id.clone(), answer);
            }
            complete += length;
        }
        Ok((answers, complete))
    }

    pub fn get(&self, question: &Question) -> Option<&Answer> {
        self.by_id.get(&question.id)
    }
}

/// An answers file that is open for appending.
pub struct AnswersFile {
    file: File,
    path: PathBuf,
    pub answers: Answers,
}

impl AnswersFile {
    /// Opens a file to resume it, or creates it.
    ///
    /// # Errors
    /// [`mgm::Error::Config`] if the file's answers were generated with other settings or for other questions, or if
    /// another process writes to it; [`mgm::Error::Io`].
    pub fn open(path: &Path, settings: &Settings, questions: &[Question]) -> Result<Self> {
        let io = |error| io_error(path, error);
        refuse_special(path).map_err(io)?;
        let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        // Until this process ends. Some file systems of networks have no locks.
        if matches!(FileExt::try_lock(&file), Err(TryLockError::WouldBlock)) {
            let reason = "another mgm eval writes to it; wait for that to end, or name another file with --out";
            return Err(data_error(path, reason));
        }
        let text = read_lines(path)?;
        let (answers, complete) = Answers::parse(path, &text, questions)?;
        match &answers.settings {
            Some(before) => check(path, before, settings)?,
            None if answers.by_id.is_empty() && text[..complete].trim().is_empty() => {}
            None => {
                let reason = "line 1: expected {\"mgm_eval\": settings}: --out resumes only files of mgm eval (use --answers to score \
                              other files)";
                return Err(data_error(path, reason));
            }
        }
        let mut answers = Self { answers, path: path.to_owned(), file: file.try_clone().map_err(io)? };
        file.set_len(complete as u64).map_err(io)?;
        if complete > 0 && !text[..complete].ends_with('\n') {
            file.write_all(b"\n").map_err(io)?;
        }
        if answers.answers.settings.is_none() {
            answers.write(&Header { mgm_eval: settings.clone() })?;
            answers.answers.settings = Some(settings.clone());
        }
        Ok(answers)
    }

    /// Appends an answer and writes it to the file.
    ///
    /// # Errors
    /// [`mgm::Error::Io`].
    pub fn add(&mut self, answer: Answer) -> Result<()> {
        self.write(&answer)?;
        self.answers.by_id.insert(answer.id.clone(), answer);
        Ok(())
    }

    fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(line).map_err(|error| io_error(&self.path, error))?;
        line.push(b'\n');
        // One write per line, so that concurrent readers see complete lines.
        self.file.write_all(&line).map_err(|error| io_error(&self.path, error))
    }
}

/// A file of lines. The last one is omitted if it was cut inside a character.
fn read_lines(file: &Path) -> Result<String> {
    let mut bytes = read(file)?;
    let complete = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if std::str::from_utf8(&bytes[complete..]).is_err() {
        bytes.truncate(complete);
    }
    to_text(file, bytes)
}

/// Compares the settings of a file with those of this run.
fn check(path: &Path, before: &Settings, now: &Settings) -> Result<()> {
    let fields = |settings: &Settings| match serde_json::to_value(settings) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (before, now) = (fields(before), fields(now));
    // The fingerprint identifies the model; its folder may have moved.
    let changed = now.iter().find(|(name, value)| *name != "model" && before.get(*name) != Some(value));
    let Some((name, value)) = changed else { return Ok(()) };
    let before = before.get(name).unwrap_or(&Value::Null);
    let reason = if name == "fingerprint" {
        format!("line 1: these answers are from another model (fingerprint {before}, not {value})")
    } else {
        format!("line 1: these answers were generated with {name} {before}, this run has {value}")
    };
    Err(data_error(path, format!("{reason}; name another file with --out, or use the same settings")))
}
