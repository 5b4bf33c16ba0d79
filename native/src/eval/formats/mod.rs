//! The files that benchmarks come in.

mod easy_vqa;
mod json_lines;
mod mmbench;
mod mmmu;
mod pope;
mod text_vqa;
mod tsv;
mod vqa;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use mgm::{Error, Result};
use mgm_native::files::io_error;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::dataset::Dataset;

/// LLaVA's line behind questions with short answers.
pub const SHORT_ANSWER: &str = "Answer the question using a single word or phrase.";
/// The same behind questions with options.
pub const LETTER: &str = "Answer with the option's letter from the given choices directly.";

/// Which benchmark's files to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The folder `data` of the PyPI package easy-vqa (or one split's folder in it): questions.json, answers.txt, images
    EasyVqa,
    /// JSON lines {"image": FILE, "question": TEXT, "answer": TEXT}; or "answers": [TEXT, ...], any of which is right. May have
    /// "kind", "id", and "history": [{"question", "answer"}, ...]
    Jsonl,
    /// VQA v2: its questions' JSON file, with its --annotations
    Vqa,
    /// POPE: JSON lines {"question_id", "image", "text", "label"}, one file or a folder of them
    Pope,
    /// MMBench: its TSV file
    Mmbench,
    /// MMMU: the Parquet files of its data set, one or a folder of them
    Mmmu,
    /// TextVQA: LLaVA's JSON lines with TextVQA's --annotations, or TextVQA's JSON file alone
    Textvqa,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.to_possible_value() {
            Some(value) => f.write_str(value.get_name()),
            None => Ok(()),
        }
    }
}

/// Where data lie.
#[derive(Debug)]
pub struct Source {
    pub data: PathBuf,
    pub annotations: Option<PathBuf>,
    pub images: Option<PathBuf>,
    /// What to put behind questions instead of the format's own line; empty for nothing.
    pub instruction: Option<String>,
}

impl Source {
    pub fn open(&self, format: Format) -> Result<Dataset> {
        if self.annotations.is_some() && !matches!(format, Format::Vqa | Format::Textvqa) {
            let reason = format!("--annotations goes with --format vqa and textvqa; {format} has its answers with it");
            return Err(Error::InvalidArgument(reason));
        }
        let dataset = match format {
            Format::EasyVqa => easy_vqa::open(self)?,
            Format::Jsonl => json_lines::open(self)?,
            Format::Vqa => vqa::open(self)?,
            Format::Pope => pope::open(self)?,
            Format::Mmbench => mmbench::open(self)?,
            Format::Mmmu => mmmu::open(self)?,
            Format::Textvqa => text_vqa::open(self)?,
        };
        dataset.check(&self.data)?;
        Ok(dataset)
    }

    /// A question with the line behind it that asks for the wanted form of answer: the user's, or else the format's own.
    fn instructed(&self, question: &str, own: &str) -> String {
        let line = self.instruction.as_deref().unwrap_or(own);
        let bare = question.strip_suffix(own).and_then(|before| before.strip_suffix('\n')).unwrap_or(question);
        if line.is_empty() { bare.to_owned() } else { format!("{bare}\n{line}") }
    }

    /// The file of a picture: in --images, or in the folder of the data.
    fn image(&self, name: &str) -> PathBuf {
        match &self.images {
            Some(folder) => folder.join(name),
            None if self.data.is_dir() => self.data.join(name),
            None => beside(&self.data, name),
        }
    }

    /// Files of a folder with one of these endings, sorted, or the one file that the data are.
    fn files(&self, endings: &[&str]) -> Result<Vec<PathBuf>> {
        if !self.data.is_dir() {
            return Ok(vec![self.data.clone()]);
        }
        let mut files = Vec::new();
        find_files(&self.data, endings, &mut files).map_err(|error| io_error(&self.data, error))?;
        if files.is_empty() {
            return Err(wrong(&self.data, format!("there is no {} file in this folder", endings.join(" or "))));
        }
        files.sort();
        Ok(files)
    }
}

fn find_files(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        // Links to files are followed (as caches of downloads have them), links to folders are not: they could go in circles.
        if kind.is_dir() {
            find_files(&path, endings, found)?;
        } else if endings.iter().any(|ending| path.extension().is_some_and(|own| own == *ending)) {
            found.push(path);
        }
    }
    Ok(())
}

fn beside(file: &Path, name: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(name)
}

/// A file that is not what it should be.
pub fn wrong(file: &Path, reason: impl Into<String>) -> Error {
    Error::Config { file: file.display().to_string(), reason: reason.into() }
}

pub fn read_text(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).map_err(|error| io_error(file, error))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
        wrong(file, format!("line {line}: this is not text (UTF-8)"))
    })
}

/// A file that is one JSON value.
fn read_json<T: DeserializeOwned>(file: &Path) -> Result<T> {
    // serde_json's messages have the line.
    serde_json::from_str(&read_text(file)?).map_err(|error| wrong(file, error.to_string()))
}

/// The JSON values of a file that has one in each line, with the lines' numbers.
fn read_json_lines<T: DeserializeOwned>(file: &Path) -> Result<Vec<(usize, T)>> {
    let mut rows = Vec::new();
    for (index, line) in read_text(file)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        rows.push((
            index + 1,
            parse_line(line).map_err(|reason| wrong(file, format!("line {}: {reason}", index + 1)))?,
        ));
    }
    Ok(rows)
}

/// One line of JSON; what is wrong with it, without a line number.
pub fn parse_line<T: DeserializeOwned>(line: &str) -> Result<T, String> {
    serde_json::from_str(line).map_err(|error| {
        let (text, column) = (error.to_string(), error.column());
        let text = text.split(" at line ").next().unwrap_or(&text);
        format!("{text} (column {column})")
    })
}

/// A number or a text that names something.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq, Hash)]
#[serde(untagged, expecting = "expected a number or a text as an id")]
pub enum Id {
    Number(i64),
    Text(String),
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}
