//! MMMU as its data set is published: a folder for each subject with Parquet files (`Accounting/validation-00000-of-00001.parquet`),
//! columns id, question, options, answer, question_type and image_1. As in the reference's script, only the first image is
//! shown. `options`, and some answers, are texts that hold a Python list.

use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use mgm::Result;
use mgm_native::files::io_error;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;

use super::{LETTER, SHORT_ANSWER, Source, wrong};
use crate::eval::dataset::{Dataset, Picture, Question, Truth};

const COLUMNS: [&str; 6] = ["id", "question", "options", "answer", "question_type", "image_1"];

pub fn open(source: &Source) -> Result<Dataset> {
    let mut questions = Vec::new();
    for file in source.files(&["parquet"])? {
        for (index, row) in held(&file, || rows(&file))?.into_iter().enumerate() {
            let place = format!("row {index}");
            let question = row.question(source, &place, &file);
            questions.push(question.map_err(|reason| wrong(&file, format!("{place}: {reason}")))?);
        }
    }
    Ok(Dataset { questions, max_new_tokens: 128 })
}

fn rows(file: &Path) -> Result<Vec<Values>> {
    let damaged = |error: ParquetError| wrong(file, format!("this is no Parquet file that can be read: {error}"));
    let opened = File::open(file).map_err(|error| io_error(file, error))?;
    let reader = SerializedFileReader::new(opened).map_err(damaged)?;
    let columns = columns(file, reader.metadata().file_metadata().schema())?;
    let rows = reader.get_row_iter(Some(columns)).map_err(damaged)?;
    rows.map(|row| Ok(Values::of(&row.map_err(damaged)?))).collect()
}

/// The crate that reads Parquet files asserts some of what a damaged one can break: such a panic is an error like any other.
fn held<T>(file: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    std::panic::set_hook(told);
    result.unwrap_or_else(|_| Err(wrong(file, "this is no Parquet file that can be read: it is damaged")))
}

/// The schema of what is needed of a file.
fn columns(file: &Path, schema: &Type) -> Result<Type> {
    let mut fields = Vec::new();
    for name in COLUMNS {
        let field: Option<&Arc<Type>> = schema.get_fields().iter().find(|field| field.name() == name);
        fields.push(field.ok_or_else(|| wrong(file, format!("there is no column {name:?}")))?.clone());
    }
    let schema = Type::group_type_builder(schema.name()).with_fields(fields).build();
    schema.map_err(|error| wrong(file, error.to_string()))
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
                // A picture is {bytes, path}.
                Field::Group(picture) => {
                    let bytes = picture.get_column_iter().find_map(|(name, field)| match field {
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
        value.ok_or_else(|| format!("{column} has no text"))
    }

    fn question(self, source: &Source, place: &str, file: &Path) -> Result<Question, String> {
        let (id, text, answer) = (self.text("id")?, self.text("question")?, self.text("answer")?);
        // Answers of the test split are "?".
        let hidden = answer == "?" || answer.is_empty();
        let (prompt, truth) = match self.text("question_type")? {
            "multiple-choice" => {
                let options = self.text("options")?;
                let options = python_list(options)
                    .filter(|options| (1..=26).contains(&options.len()))
                    .ok_or_else(|| format!("options is {options:?}, expected a list of texts as Python writes it"))?;
                let letters = ('A'..='Z').zip(&options);
                let lines: String = letters.map(|(letter, option)| format!("({letter}) {option}\n")).collect();
                let known = ('A'..='Z').take(options.len()).any(|letter| answer == letter.to_string());
                if !hidden && !known {
                    return Err(format!("the answer is {answer:?}, but there are {} options", options.len()));
                }
                let truth = Truth::Choice { options, answer: answer.to_owned(), drawn: true };
                (source.instructed(&format!("{text}\n{lines}"), LETTER), truth)
            }
            "open" => {
                let answers = python_list(answer).unwrap_or_else(|| vec![answer.to_owned()]);
                (source.instructed(text, SHORT_ANSWER), Truth::Open(answers))
            }
            other => return Err(format!("question_type is {other:?}, expected \"multiple-choice\" or \"open\"")),
        };
        Ok(Question {
            id: id.to_owned(),
            place: format!("{place} of {}", file.display()),
            picture: self.image.clone().map(Picture::Bytes),
            history: Vec::new(),
            prompt,
            kind: Some(subject(id).to_owned()),
            truth: if hidden { Truth::Hidden } else { truth },
        })
    }
}

/// "Art_Theory" of "validation_Art_Theory_12".
fn subject(id: &str) -> &str {
    let rest = id.split_once('_').map_or(id, |(_, rest)| rest);
    rest.rsplit_once('_').map_or(rest, |(subject, _)| subject)
}

/// A list of texts as Python writes one: ['a', "it's", 'b\n'].
fn python_list(text: &str) -> Option<Vec<String>> {
    let mut rest = text.trim().strip_prefix('[')?.strip_suffix(']')?.trim_start();
    let mut items = Vec::new();
    while !rest.is_empty() {
        let quote = rest.chars().next().filter(|quote| ['\'', '"'].contains(quote))?;
        let (item, after) = python_text(&rest[1..], quote)?;
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

/// A text up to its closing quote, and what follows.
fn python_text(text: &str, quote: char) -> Option<(String, &str)> {
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
                // Python keeps the backslash of what is no escape.
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

    /// What Python 3.11's ast.literal_eval makes of the same texts.
    #[test]
    fn lists_are_read_as_python_writes_them() {
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
    fn subjects_are_in_the_ids() {
        assert_eq!(subject("validation_Art_Theory_12"), "Art_Theory");
        assert_eq!(subject("test_Math_3"), "Math");
        assert_eq!(subject("odd"), "odd");
    }
}
