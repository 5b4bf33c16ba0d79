//! MMBench: a TSV file with the columns index, question, hint, A to D, answer, category and image (base64, or the index of
//! the row whose image it is).

use std::collections::HashMap;
use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mgm::Result;

use super::{LETTER, Source, read_text, tsv, wrong};
use crate::eval::dataset::{Dataset, Picture, Question, Truth};

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];
/// What pandas takes for no value, and, in lower case, what the reference's script does.
const NONE: [&str; 19] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
];

pub fn open(source: &Source) -> Result<Dataset> {
    let file = &source.data;
    let rows = tsv::rows(&read_text(file)?).map_err(|reason| wrong(file, reason))?;
    let mut rows = rows.into_iter();
    let header = rows.next().map_or_else(Vec::new, |(_, header)| header);
    let column = |name: &str| header.iter().position(|column| column == name);
    let needed = |name: &str| {
        column(name).ok_or_else(|| wrong(file, format!("line 1: there is no column {name:?} (tabs between columns)")))
    };
    let (index, question, image, a) = (needed("index")?, needed("question")?, needed("image")?, needed("A")?);
    let (hint, answer, category) = (column("hint"), column("answer"), column("category"));
    let letters = [Some(a), column("B"), column("C"), column("D")];

    let mut pictures: HashMap<String, Picture> = HashMap::new();
    let mut questions = Vec::new();
    for (line, row) in rows {
        if row.len() != header.len() {
            let reason = format!("line {line}: {} columns, expected {} as in line 1", row.len(), header.len());
            return Err(wrong(file, reason));
        }
        let value = |column: Option<usize>| column.map(|column| row[column].as_str()).filter(|text| !is_none(text));
        // As the reference reads them: the first option that is not there ends them.
        let options: Vec<String> = letters.iter().map_while(|letter| value(*letter)).map(str::to_owned).collect();
        let mut text = match value(hint) {
            Some(hint) => format!("{hint}\n{}", row[question]),
            None => row[question].clone(),
        };
        for (letter, option) in LETTERS.iter().zip(&options) {
            text.push_str(&format!("\n{letter}. {option}"));
        }
        let truth = match value(answer) {
            None => Truth::Hidden,
            Some(answer) if LETTERS[..options.len()].contains(&answer) => {
                Truth::Choice { options, answer: answer.to_owned(), drawn: false }
            }
            Some(answer) => {
                let reason = format!("line {line}: the answer is {answer:?}, but there are {} options", options.len());
                return Err(wrong(file, reason));
            }
        };
        let encoded = row[image].trim();
        let picture = match pictures.get(encoded) {
            Some(picture) => picture.clone(),
            None => {
                let bytes = STANDARD.decode(encoded).map_err(|error| {
                    wrong(
                        file,
                        format!("line {line}: the image is neither base64 ({error}) nor the index of a row before"),
                    )
                })?;
                Picture::Bytes(Rc::from(bytes))
            }
        };
        pictures.insert(row[index].clone(), picture.clone());
        questions.push(Question {
            id: row[index].clone(),
            place: format!("line {line} of {}", file.display()),
            picture: Some(picture),
            history: Vec::new(),
            prompt: source.instructed(&text, LETTER),
            kind: value(category).map(str::to_owned),
            truth,
        });
    }
    Ok(Dataset { questions, max_new_tokens: 1024 })
}

fn is_none(text: &str) -> bool {
    NONE.contains(&text) || ["nan", "none"].contains(&text.to_lowercase().as_str())
}
