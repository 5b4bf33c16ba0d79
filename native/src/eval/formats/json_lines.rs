//! The user's own questions: JSON lines with `image`, `question`, `answer` or `answers`, and optionally `kind`, `id`
//! and `history`.

use mgm::Result;
use serde::Deserialize;

use super::{Id, Source, data_error, read_json_lines};
use crate::eval::dataset::{Dataset, GroundTruth, ImageSource, Question};

#[derive(Deserialize)]
struct Row {
    id: Option<Id>,
    image: Option<String>,
    question: String,
    answer: Option<String>,
    answers: Option<Vec<String>>,
    kind: Option<String>,
    #[serde(default)]
    history: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    question: String,
    answer: String,
}

pub fn open(source: &Source) -> Result<Dataset> {
    let file = &source.data;
    let questions = read_json_lines::<Row>(file)?.into_iter().map(|(line, row)| {
        let answers = match (row.answer, row.answers) {
            (Some(answer), None) => vec![answer],
            (None, Some(answers)) if !answers.is_empty() => answers,
            _ => {
                return Err(data_error(file, format!("line {line}: expected \"answer\" or \"answers\", not empty")));
            }
        };
        Ok(Question {
            id: row.id.map_or_else(|| line.to_string(), |id| id.to_string()),
            location: format!("line {line} of {}", file.display()),
            image: row.image.map(|name| ImageSource::File(source.image(&name))),
            history: row.history.into_iter().map(|turn| (turn.question, turn.answer)).collect(),
            prompt: source.with_instruction(&row.question, ""),
            kind: row.kind,
            truth: GroundTruth::AnyOf(answers),
        })
    });
    Ok(Dataset { questions: questions.collect::<Result<_>>()?, max_new_tokens: 128 })
}
