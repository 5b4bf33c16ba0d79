//! Readers for the benchmarks' file formats.

mod easy_vqa;
mod json_lines;
mod mmbench;
#[cfg(feature = "parquet")]
mod mmmu;
mod pope;
mod text_vqa;
mod tsv;
mod vqa;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use mgm::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::dataset::Dataset;
use crate::files::{io_error, read};

/// LLaVA's instruction after questions with short answers.
pub const SHORT_ANSWER: &str = "Answer the question using a single word or phrase.";
/// LLaVA's instruction after multiple-choice questions.
pub const LETTER: &str = "Answer with the option's letter from the given choices directly.";

/// What editors and spreadsheets on Windows put before UTF-8.
pub const BYTE_ORDER_MARK: char = '\u{feff}';

/// The benchmark whose files to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Folder `data` of the PyPI package easy-vqa, or one split's folder in it: questions.json, answers.txt, images
    EasyVqa,
    /// Your own questions: JSON lines {"image": FILE, "question": TEXT, "answer": TEXT}, or "answers": [TEXT, ...] if
    /// several are correct. Optional: "kind", "id", and "history": [{"question", "answer"}, ...]
    Jsonl,
    /// VQA v2: its JSON file of questions, with --annotations
    Vqa,
    /// POPE: JSON lines {"question_id", "image", "text", "label"}, one file or a folder of them
    Pope,
    /// MMBench: its TSV file
    Mmbench,
    /// MMMU: a Parquet file of its dataset, or a folder of them (needs a build with the feature parquet)
    Mmmu,
    /// TextVQA: LLaVA's JSON lines with TextVQA's --annotations, or only TextVQA's JSON file
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

/// Where the data is, and how to ask.
#[derive(Debug)]
pub struct Source {
    pub data: PathBuf,
    pub annotations: Option<PathBuf>,
    pub images: Option<PathBuf>,
    /// Line to append to questions instead of the format's own; empty for none.
    pub instruction: Option<String>,
}

impl Source {
    pub fn open(&self, format: Format) -> Result<Dataset> {
        if self.annotations.is_some() && !matches!(format, Format::Vqa | Format::Textvqa) {
            let reason = format!("--annotations is for --format vqa and textvqa; {format} includes its answers");
            return Err(Error::InvalidArgument(reason));
        }
        let dataset = match format {
            Format::EasyVqa => easy_vqa::open(self)?,
            Format::Jsonl => json_lines::open(self)?,
            Format::Vqa => vqa::open(self)?,
            Format::Pope => pope::open(self)?,
            Format::Mmbench => mmbench::open(self)?,
            #[cfg(feature = "parquet")]
            Format::Mmmu => mmmu::open(self)?,
            #[cfg(not(feature = "parquet"))]
            Format::Mmmu => {
                let reason =
                    "--format mmmu needs a build that reads Parquet files: cargo install mgm-cli --features parquet";
                return Err(Error::InvalidArgument(reason.to_owned()));
            }
            Format::Textvqa => text_vqa::open(self)?,
        };
        dataset.check(&self.data)?;
        Ok(dataset)
    }

    /// Appends the instruction on the form of the answer: the user's, or else the format's default. A default that the
    /// question already ends with is replaced.
    fn with_instruction(&self, question: &str, default: &str) -> String {
        let line = self.instruction.as_deref().unwrap_or(default);
        let bare = question.strip_suffix(default).and_then(|before| before.strip_suffix('\n')).unwrap_or(question);
        if line.is_empty() { bare.to_owned() } else { format!("{bare}\n{line}") }
    }

    /// The file of an image: in --images, or in the folder of the data.
    fn image(&self, name: &str) -> PathBuf {
        match &self.images {
            Some(folder) => folder.join(name),
            None if self.data.is_dir() => self.data.join(name),
            None => sibling(&self.data, name),
        }
    }

    /// All files with one of these extensions if the data is a folder, sorted; otherwise the data file itself.
    fn files(&self, extensions: &[&str]) -> Result<Vec<PathBuf>> {
        if !self.data.is_dir() {
            return Ok(vec![self.data.clone()]);
        }
        let mut files = Vec::new();
        find_files(&self.data, extensions, &mut files).map_err(|error| io_error(&self.data, error))?;
        if files.is_empty() {
            return Err(data_error(&self.data, format!("the folder has no {} file", extensions.join(" or "))));
        }
        files.sort();
        Ok(files)
    }
}

fn find_files(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        // Links to files are followed, since download caches contain them. Links to folders are not: they could form a
        // cycle.
        if kind.is_dir() {
            find_files(&path, extensions, found)?;
        } else if path.extension().is_some_and(|own| extensions.iter().any(|extension| own == *extension)) {
            found.push(path);
        }
    }
    Ok(())
}

fn sibling(file: &Path, name: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(name)
}

/// An error in a data file.
pub fn data_error(file: &Path, reason: impl Into<String>) -> Error {
    Error::Config { file: file.display().to_string(), reason: reason.into() }
}

/// Reads a text file without its byte-order mark.
pub fn read_text(file: &Path) -> Result<String> {
    let mut text = to_text(file, read(file)?)?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    Ok(text)
}

/// The text in a file's bytes.
///
/// # Errors
/// [`Error::Config`] with the line that is not UTF-8.
pub fn to_text(file: &Path, bytes: Vec<u8>) -> Result<String> {
    if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = bytes[..] {
        return Err(data_error(file, "this is UTF-16, expected UTF-8: save it with that encoding"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
        data_error(file, format!("line {line}: not valid UTF-8"))
    })
}

/// Reads a file that is one JSON value.
fn read_json<T: DeserializeOwned>(file: &Path) -> Result<T> {
    // serde_json's messages include the line.
    mgm::json::from_slice(&read(file)?).map_err(|error| data_error(file, error.to_string()))
}

/// Reads a file with one JSON value per line. Returns the values with their line numbers.
fn read_json_lines<T: DeserializeOwned>(file: &Path) -> Result<Vec<(usize, T)>> {
    let mut rows = Vec::new();
    for (index, line) in read_text(file)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        rows.push((
            index + 1,
            parse_line(line).map_err(|reason| {
                data_error(file, format!("line {}: {reason}; expected one JSON object per line", index + 1))
            })?,
        ));
    }
    Ok(rows)
}

/// Parses one line of JSON. The error has a column but no line number.
pub fn parse_line<T: DeserializeOwned>(line: &str) -> Result<T, String> {
    mgm::json::from_slice(line.as_bytes()).map_err(|error| {
        let (text, column) = (error.to_string(), error.column());
        let text = text.split(" at line ").next().unwrap_or(&text);
        format!("{text} (column {column})")
    })
}

/// An id: a number or a string.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq, Hash)]
#[serde(untagged, expecting = "expected a number or a string as an id")]
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
