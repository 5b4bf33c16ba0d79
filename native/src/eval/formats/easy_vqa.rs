//! easy-vqa in the layout of its PyPI package: `SPLIT/questions.json` with rows [question, answer, image], images
//! `SPLIT/images/IMAGE.png`, and all possible answers in `answers.txt`.

use std::collections::HashSet;
use std::rc::Rc;

use mgm::Result;
use serde_json::Value;

use super::{SHORT_ANSWER, Source, data_error, read_json, read_text, sibling};
use crate::eval::dataset::{Dataset, GroundTruth, ImageSource, Question};

pub fn open(source: &Source) -> Result<Dataset> {
    // The package's folder stands for its test split.
    let folder = &source.data;
    let test = folder.join("test");
    let split = if test.join("questions.json").is_file() { test } else { folder.clone() };
    let file = split.join("questions.json");
    let rows: Vec<Value> = read_json(&file)?;
    let answers_file =
        [split.join("answers.txt"), sibling(&split, "answers.txt")].into_iter().find(|file| file.is_file());
    let answers_file = answers_file.unwrap_or_else(|| folder.join("answers.txt"));
    let vocabulary: HashSet<String> = read_text(&answers_file)?
        .lines()
        .map(|line| line.trim().to_lowercase())
        .filter(|line| !line.is_empty())
        .collect();
    let vocabulary = Rc::new(vocabulary);
    let images = source.images.clone().unwrap_or_else(|| split.join("images"));
    let questions = rows.iter().enumerate().map(|(index, row)| {
        let row_number = format!("row {index}");
        let Some((question, answer, image)) = parts(row) else {
            let reason = format!("{row_number} is {row:.80}, expected [question, answer, number of the image]");
            return Err(data_error(&file, reason));
        };
        if !vocabulary.contains(&answer.to_lowercase()) {
            return Err(data_error(&file, format!("{row_number}: {answer:?} is not in {}", answers_file.display())));
        }
        Ok(Question {
            id: index.to_string(),
            location: format!("{row_number} of {}", file.display()),
            image: Some(ImageSource::File(images.join(format!("{image}.png")))),
            history: Vec::new(),
            prompt: source.with_instruction(question, SHORT_ANSWER),
            kind: Some(kind(question, answer).to_owned()),
            truth: GroundTruth::Word { answer: answer.to_owned(), vocabulary: vocabulary.clone() },
        })
    });
    Ok(Dataset { questions: questions.collect::<Result<_>>()?, max_new_tokens: 128 })
}

fn parts(row: &Value) -> Option<(&str, &str, u64)> {
    match row.as_array()?.as_slice() {
        [question, answer, image] => Some((question.as_str()?, answer.as_str()?, image.as_u64()?)),
        _ => None,
    }
}

fn kind(question: &str, answer: &str) -> &'static str {
    match answer {
        "yes" | "no" => "yes/no",
        _ if question.contains("color") => "color",
        _ => "shape",
    }
}
