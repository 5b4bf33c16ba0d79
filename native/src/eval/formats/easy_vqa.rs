//! easy-vqa as the PyPI package of that name has it: `SPLIT/questions.json` with rows [question, answer, image], pictures
//! `SPLIT/images/IMAGE.png`, and all answers that there are in `answers.txt`.

use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;

use mgm::Result;
use serde_json::Value;

use super::{SHORT_ANSWER, Source, beside, read_json, read_text, wrong};
use crate::eval::dataset::{Dataset, Picture, Question, Truth};

pub fn open(source: &Source) -> Result<Dataset> {
    // The whole package's folder means its test split.
    let folder = &source.data;
    let test = folder.join("test");
    let split = if test.join("questions.json").is_file() { test } else { folder.clone() };
    let file = split.join("questions.json");
    let rows: Vec<Value> = read_json(&file)?;
    let answers_file =
        [split.join("answers.txt"), beside(&split, "answers.txt")].into_iter().find(|file| file.is_file());
    let answers_file = answers_file.unwrap_or_else(|| folder.join("answers.txt"));
    let vocabulary: HashSet<String> = read_text(&answers_file)?
        .lines()
        .map(|line| line.trim().to_lowercase())
        .filter(|line| !line.is_empty())
        .collect();
    let vocabulary = Rc::new(vocabulary);
    let images = source.images.clone().unwrap_or_else(|| split.join("images"));
    let questions = rows.iter().enumerate().map(|(index, row)| {
        let place = format!("row {index}");
        let Some((question, answer, image)) = parts(row) else {
            let reason = format!("{place} is {row:.80}, expected [question, answer, number of the image]");
            return Err(wrong(&file, reason));
        };
        if !vocabulary.contains(&answer.to_lowercase()) {
            return Err(wrong(&file, format!("{place}: {answer:?} is not in {}", answers_file.display())));
        }
        Ok(Question {
            id: index.to_string(),
            place: place_in(&file, &place),
            picture: Some(Picture::File(images.join(format!("{image}.png")))),
            history: Vec::new(),
            prompt: source.instructed(question, SHORT_ANSWER),
            kind: Some(kind(question, answer).to_owned()),
            truth: Truth::Word { answer: answer.to_owned(), vocabulary: vocabulary.clone() },
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

fn place_in(file: &Path, place: &str) -> String {
    format!("{place} of {}", file.display())
}
