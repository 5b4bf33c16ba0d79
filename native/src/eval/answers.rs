//! The file of answers: JSON lines, the settings first, then every answer as it comes. A run that was stopped goes on behind
//! them.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use mgm::Result;
use mgm_native::files::io_error;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::dataset::Question;
use super::formats::{Id, parse_line, read_text, wrong};

/// What answers depend on beside their questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub format: String,
    /// The model's folder or file.
    pub model: String,
    /// Of the files in it.
    pub fingerprint: String,
    pub precision: String,
    pub conversation: String,
    pub high_resolution: bool,
    pub max_new_tokens: u32,
}

/// An answer. Files of other programs may call these question_id and answer, as VQA's and LLaVA's do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    #[serde(deserialize_with = "id", alias = "question_id")]
    pub id: String,
    /// What was asked; to notice when the data have changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    #[serde(alias = "answer")]
    pub text: String,
    /// Why there is no answer: the question does not fit the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

fn id<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Id::deserialize(deserializer).map(|id| id.to_string())
}

/// The first line of a file of this program's.
#[derive(Serialize, Deserialize)]
struct Header {
    mgm_eval: Settings,
}

/// Answers so far, by the questions' ids.
#[derive(Debug, Default)]
pub struct Answers {
    pub settings: Option<Settings>,
    by_id: HashMap<String, Answer>,
}

impl Answers {
    /// Reads a file whose last line may be half written.
    pub fn read(file: &Path, questions: &[Question]) -> Result<Self> {
        Self::parse(file, &read_text(file)?, questions).map(|(answers, _)| answers)
    }

    /// The answers in a text, and how many of its bytes are whole lines.
    fn parse(file: &Path, text: &str, questions: &[Question]) -> Result<(Self, usize)> {
        let prompts: HashMap<&str, &str> =
            questions.iter().map(|question| (question.id.as_str(), question.prompt.as_str())).collect();
        let mut answers = Self::default();
        let mut whole = 0;
        for (index, line) in text.split_inclusive('\n').enumerate() {
            let fail = |reason: String| wrong(file, format!("line {}: {reason}", index + 1));
            let ended = line.ends_with('\n');
            if index == 0 && line.contains("\"mgm_eval\"") && ended {
                answers.settings = Some(parse_line::<Header>(line).map_err(fail)?.mgm_eval);
            } else if !line.trim().is_empty() {
                let answer: Answer = match parse_line(line) {
                    Ok(answer) => answer,
                    // A run was ended in the middle of it.
                    Err(_) if !ended => break,
                    Err(reason) => return Err(fail(reason)),
                };
                let Some(prompt) = prompts.get(answer.id.as_str()) else {
                    return Err(fail(format!(
                        "the data have no question {:?}: these are answers to others",
                        answer.id
                    )));
                };
                if let Some(asked) = answer.prompt.as_deref().filter(|asked| asked != prompt) {
                    let reason = format!("question {} was {asked:?} and is now {prompt:?}", answer.id);
                    return Err(fail(format!("{reason}: other data, or another --instruction")));
                }
                if answers.by_id.contains_key(&answer.id) {
                    return Err(fail(format!("question {} is answered twice", answer.id)));
                }
                answers.by_id.insert(answer.id.clone(), answer);
            }
            whole += line.len();
        }
        Ok((answers, whole))
    }

    pub fn get(&self, question: &Question) -> Option<&Answer> {
        self.by_id.get(&question.id)
    }
}

/// A file that answers are appended to.
pub struct AnswersFile {
    file: File,
    path: PathBuf,
    pub answers: Answers,
}

impl AnswersFile {
    /// Opens a file to go on with it, or begins one.
    ///
    /// # Errors
    /// If what is in it was made with other settings or to other questions.
    pub fn open(path: &Path, settings: &Settings, questions: &[Question]) -> Result<Self> {
        let io = |error| io_error(path, error);
        let text = if path.exists() { read_text(path)? } else { String::new() };
        let (answers, whole) = Answers::parse(path, &text, questions)?;
        match &answers.settings {
            Some(before) => check(path, before, settings)?,
            None if answers.by_id.is_empty() && text[..whole].trim().is_empty() => {}
            None => {
                let reason = "line 1: expected {\"mgm_eval\": settings}: --out goes on with files of mgm eval alone (--answers \
                              marks others)";
                return Err(wrong(path, reason));
            }
        }
        let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        let mut answers = Self { answers, path: path.to_owned(), file: file.try_clone().map_err(io)? };
        file.set_len(whole as u64).map_err(io)?;
        if whole > 0 && !text[..whole].ends_with('\n') {
            file.write_all(b"\n").map_err(io)?;
        }
        if answers.answers.settings.is_none() {
            answers.write(&Header { mgm_eval: settings.clone() })?;
            answers.answers.settings = Some(settings.clone());
        }
        Ok(answers)
    }

    /// Appends an answer. It is in the file when this returns.
    pub fn add(&mut self, answer: Answer) -> Result<()> {
        self.write(&answer)?;
        self.answers.by_id.insert(answer.id.clone(), answer);
        Ok(())
    }

    fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let failed = |error: &dyn std::fmt::Display| io_error(&self.path, error);
        let mut line = serde_json::to_vec(line).map_err(|error| failed(&error))?;
        line.push(b'\n');
        // Whole lines at once: whoever reads along sees no halves.
        self.file.write_all(&line).map_err(|error| failed(&error))
    }
}

/// Tells the settings that are not as before.
fn check(path: &Path, before: &Settings, now: &Settings) -> Result<()> {
    let fields = |settings: &Settings| match serde_json::to_value(settings) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (before, now) = (fields(before), fields(now));
    // Where the model lies does not matter, but what is in it.
    let other = now.iter().find(|(name, value)| *name != "model" && before.get(*name) != Some(value));
    let Some((name, value)) = other else { return Ok(()) };
    let before = before.get(name).unwrap_or(&Value::Null);
    let reason = if name == "fingerprint" {
        format!("line 1: these answers are of another model ({before}, not {value})")
    } else {
        format!("line 1: these answers were made with {name} {before}, this run has {value}")
    };
    Err(wrong(path, format!("{reason}; name another file with --out, or go on with the same settings")))
}
