//! MMBench: a TSV file with the columns index, question, hint, A to D, answer, category and image (base64, or the index
//! of the row that has the image).

use std::collections::HashMap;
use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mgm::Result;

use super::{LETTER, Source, data_error, read_text, tsv};
use crate::eval::dataset::{Dataset, GroundTruth, ImageSource, Question};

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];
/// Strings that pandas reads as a missing value.
const MISSING: [&str; 19] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
];

pub fn open(source: &Source) -> Result<Dataset> {
    let file = &source.data;
    let rows = tsv::rows(&read_text(file)?).map_err(|reason| data_error(file, reason))?;
    let mut rows = rows.into_iter();
    let header = rows.next().map_or_else(Vec::new, |(_, header)| header);
    let column = |name: &str| header.iter().position(|column| column == name);
    let required = |name: &str| {
        column(name)
            .ok_or_else(|| data_error(file, format!("line 1: no column {name:?} (columns are separated by tabs)")))
    };
    let (index, question, image, a) = (required("index")?, required("question")?, required("image")?, required("A")?);
    let (hint, answer, category) = (column("hint"), column("answer"), column("category"));
    let letters = [Some(a), column("B"), column("C"), column("D")];

    let mut images: HashMap<String, ImageSource> = HashMap::new();
    let mut questions = Vec::new();
    for (line, row) in rows {
        if row.len() != header.len() {
            let reason = format!("line {line}: {} columns, expected {} as in line 1", row.len(), header.len());
            return Err(data_error(file, reason));
        }
        let value = |column: Option<usize>| column.map(|column| row[column].as_str()).filter(|text| !is_missing(text));
        // As in the reference, the first missing option ends the list.
        let options: Vec<String> = letters.iter().map_while(|letter| value(*letter)).map(str::to_owned).collect();
        let mut text = match value(hint) {
            Some(hint) => format!("{hint}\n{}", row[question]),
            None => row[question].clone(),
        };
        for (letter, option) in LETTERS.iter().zip(&options) {
            text.push_str(&format!("\n{letter}. {option}"));
        }
        let truth = match value(answer) {
            None => GroundTruth::Unknown,
            Some(answer) if LETTERS[..options.len()].contains(&answer) => {
                GroundTruth::Choice { options, answer: answer.to_owned(), random_fallback: false }
            }
            Some(answer) => {
                let reason = format!("line {line}: the answer is {answer:?}, but there are {} options", options.len());
                return Err(data_error(file, reason));
            }
        };
        let encoded = row[image].trim();
        let source_of_row = match images.get(encoded) {
            Some(source) => source.clone(),
            None => {
                let bytes = STANDARD.decode(encoded).map_err(|error| {
                    let reason =
                        format!("line {line}: the image is neither base64 ({error}) nor the index of an earlier row");
                    data_error(file, reason)
                })?;
                ImageSource::Bytes(Rc::from(bytes))
            }
        };
        images.insert(row[index].clone(), source_of_row.clone());
        questions.push(Question {
            id: row[index].clone(),
            location: format!("line {line} of {}", file.display()),
            image: Some(source_of_row),
            history: Vec::new(),
            prompt: source.with_instruction(&text, LETTER),
            kind: value(category).map(str::to_owned),
            truth,
        });
    }
    Ok(Dataset { questions, max_new_tokens: 1024 })
}

fn is_missing(text: &str) -> bool {
    // The reference script checks the last two regardless of case.
    MISSING.contains(&text) || ["nan", "none"].contains(&text.to_lowercase().as_str())
}
