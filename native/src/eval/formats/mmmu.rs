//! MMMU as its dataset is published: a folder per subject with Parquet files
//! (`Accounting/validation-00000-of-00001.parquet`) and the columns id, question, options, answer, question_type and
//! image_1. As in the reference's script, only the first image is used. `options` and some answers are strings that
//! contain a Python list.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use mgm::Result;
use mgm::io::refuse_lfs_pointer_in;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;

use super::{LETTER, SHORT_ANSWER, Source, data_error};
use crate::eval::dataset::{Dataset, GroundTruth, ImageSource, Question};
use crate::files::io_error;

const COLUMNS: [&str; 6] = ["id", "question", "options", "answer", "question_type", "image_1"];

pub fn open(source: &Source) -> Result<Dataset> {
    let mut questions = Vec::new();
    for file in source.files(&["parquet"])? {
        for (index, row) in catching_panics(&file, || rows(&file))?.into_iter().enumerate() {
            let location = format!("row {index} of {}", file.display());
            let question = row.question(source, location);
            questions.push(question.map_err(|reason| data_error(&file, format!("row {index}: {reason}")))?);
        }
    }
    Ok(Dataset { questions, max_new_tokens: 128 })
}

fn rows(file: &Path) -> Result<Vec<Values>> {
    let damaged = |error: ParquetError| data_error(file, format!("not a readable Parquet file: {error}"));
    let mut opened = File::open(file).map_err(|error| io_error(file, error))?;
    let mut start = Vec::new();
    opened.by_ref().take(1024).read_to_end(&mut start).map_err(|error| io_error(file, error))?;
    refuse_lfs_pointer_in(&file.display().to_string(), &start)?;
    let reader = SerializedFileReader::new(opened).map_err(damaged)?;
    let columns = columns(file, reader.metadata().file_metadata().schema())?;
    let rows = reader.get_row_iter(Some(columns)).map_err(damaged)?;
    rows.map(|row| Ok(Values::of(&row.map_err(damaged)?))).collect()
}

/// Converts panics to errors: the parquet crate panics on some damaged files.
fn catching_panics<T>(file: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    std::panic::set_hook(hook);
    result.unwrap_or_else(|_| Err(data_error(file, "not a readable Parquet file: it is damaged")))
}

/// The part of the file's schema that has the needed columns.
fn columns(file: &Path, schema: &Type) -> Result<Type> {
    let mut fields = Vec::new();
    for name in COLUMNS {
        let field: Option<&Arc<Type>> = schema.get_fields().iter().find(|field| field.name() == name);
        fields.push(field.ok_or_else(|| data_error(file, format!("no column {name:?}")))?.clone());
    }
    let schema = Type::group_type_builder(schema.name()).with_fields(fields).build();
    schema.map_err(|error| data_error(file, error.to_string()))
}

/// A row's values.
#[derive(Default)]
struct Values {
    texts: Vec<(String, String)>,
    image: Option<Rc<[u8]>>,
}

impl Values {
    fn of(row: &Row) -> Self {
        let mut values = Self::default();
        for (name, field) in row.get_column_iter() {
            match field {
                Field::Str(text) => values.texts.push((name.clone(), text.clone())),
                // An image is {bytes, path}.
                Field::Group(image) => {
                    let bytes = image.get_column_iter().find_map(|(name, field)| match field {
                        Field::Bytes(bytes) if name == "bytes" => Some(Rc::from(bytes.data())),
                        _ => None,
                    });
                    values.image = values.image.or(bytes);
                }
                _ => {}
            }
        }
        values
    }

    fn text(&self, column: &str) -> Result<&str, String> {
        let value = self.texts.iter().find(|(name, _)| name == column).map(|(_, text)| text.as_str());
        value.ok_or_else(|| format!("{column} is not a string"))
    }

    fn question(self, source: &Source, location: String) -> Result<Question, String> {
        let (id, text, answer) = (self.text("id")?, self.text("question")?, self.text("answer")?);
        // Answers of the test split are "?".
        let unknown = answer == "?" || answer.is_empty();
        let (prompt, truth) = match self.text("question_type")? {
            "multiple-choice" => {
                let options = self.text("options")?;
                let options = python_list(options)
                    .filter(|options| (1..=26).contains(&options.len()))
                    .ok_or_else(|| format!("options is {options:?}, expected a Python list of strings"))?;
                let letters = ('A'..='Z').zip(&options);
                let lines: String = letters.map(|(letter, option)| format!("({letter}) {option}\n")).collect();
                let valid = ('A'..='Z').take(options.len()).any(|letter| answer == letter.to_string());
                if !unknown && !valid {
                    return Err(format!("the answer is {answer:?}, but there are {} options", options.len()));
                }
                let truth = GroundTruth::Choice { options, answer: answer.to_owned(), random_fallback: true };
                (source.with_instruction(&format!("{text}\n{lines}"), LETTER), truth)
            }
            "open" => {
                let answers = python_list(answer).unwrap_or_else(|| vec![answer.to_owned()]);
                (source.with_instruction(text, SHORT_ANSWER), GroundTruth::Open(answers))
            }
            other => return Err(format!("question_type is {other:?}, expected \"multiple-choice\" or \"open\"")),
        };
        Ok(Question {
            id: id.to_owned(),
            location,
            image: self.image.clone().map(ImageSource::Bytes),
            history: Vec::new(),
            prompt,
            kind: Some(subject(id).to_owned()),
            truth: if unknown { GroundTruth::Unknown } else { truth },
        })
    }
}

/// "Art_Theory" of "validation_Art_Theory_12".
fn subject(id: &str) -> &str {
    let rest = id.split_once('_').map_or(id, |(_, rest)| rest);
    rest.rsplit_once('_').map_or(rest, |(subject, _)| subject)
}

/// Parses a Python list of strings: ['a', "it's", 'b\n']. A whole Python parser would be a large dependency for one
/// literal.
fn python_list(text: &str) -> Option<Vec<String>> {
    let mut rest = text.trim().strip_prefix('[')?.strip_suffix(']')?.trim_start();
    let mut items = Vec::new();
    while !rest.is_empty() {
        let quote = rest.chars().next().filter(|quote| ['\'', '"'].contains(quote))?;
        let (item, after) = python_string(&rest[1..], quote)?;
        items.push(item);
        rest = after.trim_start();
        rest = match rest.strip_prefix(',') {
            Some(after) => after.trim_start(),
            None if rest.is_empty() => rest,
            None => return None,
        };
    }
    Some(items)
}

/// Parses a string up to its closing quote. Returns it and the rest of the text.
fn python_string(text: &str, quote: char) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            end if end == quote => return Some((out, chars.as_str())),
            '\\' => match chars.next()? {
                '\n' => {}
                'n' => out.push('\n'),
                't' => out.push('\t'),
                'r' => out.push('\r'),
                'x' => out.push(code(&mut chars, 2)?),
                'u' => out.push(code(&mut chars, 4)?),
                'U' => out.push(code(&mut chars, 8)?),
                same @ ('\\' | '\'' | '"') => out.push(same),
                // Python keeps the backslash of an unknown escape.
                other => out.extend(['\\', other]),
            },
            other => out.push(other),
        }
    }
}

fn code(chars: &mut std::str::Chars<'_>, digits: usize) -> Option<char> {
    let code = chars.as_str().get(..digits)?;
    *chars = chars.as_str()[digits..].chars();
    char::from_u32(u32::from_str_radix(code, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are from Python 3.11's ast.literal_eval.
    #[test]
    fn python_lists_are_parsed() {
        let list = |text: &str| python_list(text).map(|items| items.join("|"));
        assert_eq!(list(r#"['$6', "it's", 'a\'b"c']"#).unwrap(), r#"$6|it's|a'b"c"#);
        assert_eq!(list(r"['\\frac{1}{2}', 'a\nb', '\u00b0C', '\d']").unwrap(), "\\frac{1}{2}|a\nb|°C|\\d");
        assert_eq!(list("[]").unwrap(), "");
        assert_eq!(list("['a',]").unwrap(), "a");
        for bad in ["", "a", "['a'", "['a' 'b", "[a]", r"['\x']", r"['\u12']", "['a'; 'b']", "['é\\x"] {
            assert_eq!(python_list(bad), None, "{bad}");
        }
    }

    #[test]
    fn ids_contain_the_subject() {
        assert_eq!(subject("validation_Art_Theory_12"), "Art_Theory");
        assert_eq!(subject("test_Math_3"), "Math");
        assert_eq!(subject("odd"), "odd");
    }
}
