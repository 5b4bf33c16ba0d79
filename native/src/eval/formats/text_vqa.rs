//! TextVQA: `TextVQA_0.5.1_val.json` has the questions and ten answers to each. LLaVA's
//! `llava_textvqa_val_v051_ocr.jsonl` adds words that an OCR system read in the images; published Mini-Gemini figures
//! use this file.

use std::collections::{HashMap, VecDeque};

use mgm::Result;
use serde::Deserialize;

use super::{Id, SHORT_ANSWER, Source, data_error, read_json, read_json_lines};
use crate::eval::dataset::{Dataset, GroundTruth, ImageSource, Question};

#[derive(Deserialize)]
struct Annotations {
    data: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    question_id: Id,
    image_id: String,
    question: String,
    #[serde(default)]
    answers: Vec<String>,
}

/// A row of LLaVA's file. Its question_id is the image's id.
#[derive(Deserialize)]
struct Row {
    question_id: String,
    image: String,
    text: String,
}

pub fn open(source: &Source) -> Result<Dataset> {
    let questions = match &source.annotations {
        Some(annotations) => {
            let file = &source.data;
            // A question can occur twice for an image, with other annotators.
            let mut by_question: HashMap<(String, String), VecDeque<Annotation>> = HashMap::new();
            for annotation in read_json::<Annotations>(annotations)?.data {
                let key = (annotation.image_id.clone(), annotation.question.to_lowercase());
                by_question.entry(key).or_default().push_back(annotation);
            }
            let rows = read_json_lines::<Row>(file)?.into_iter();
            let question = |(line, row): (usize, Row)| {
                let Some(asked) = question_line(&row.text) else {
                    let reason = format!(
                        "line {line}: text is {:?}, expected the lines: question, Reference OCR token: ..., and an instruction",
                        row.text
                    );
                    return Err(data_error(file, reason));
                };
                // LLaVA's evaluation matches annotations by the same key.
                let key = (row.question_id, asked.to_lowercase());
                let Some(annotation) = by_question.get_mut(&key).and_then(VecDeque::pop_front) else {
                    let reason = format!(
                        "line {line} of {} asks {:?} about image {}, which is not annotated, or not often enough",
                        file.display(),
                        key.1,
                        key.0
                    );
                    return Err(data_error(annotations, reason));
                };
                let location = format!("line {line} of {}", file.display());
                Ok(self::question(source, annotation, &row.image, &row.text, location))
            };
            rows.map(question).collect::<Result<_>>()?
        }
        None => {
            let annotations: Annotations = read_json(&source.data)?;
            let question = |annotation: Annotation| {
                let location = format!("question {} of {}", annotation.question_id, source.data.display());
                let (name, text) = (format!("{}.jpg", annotation.image_id), annotation.question.clone());
                question(source, annotation, &name, &text, location)
            };
            annotations.data.into_iter().map(question).collect()
        }
    };
    Ok(Dataset { questions, max_new_tokens: 128 })
}

fn question(source: &Source, annotation: Annotation, image: &str, text: &str, location: String) -> Question {
    Question {
        id: annotation.question_id.to_string(),
        location,
        image: Some(ImageSource::File(source.image(image))),
        history: Vec::new(),
        prompt: source.with_instruction(text, SHORT_ANSWER),
        kind: None,
        truth: if annotation.answers.is_empty() {
            GroundTruth::Unknown
        } else {
            GroundTruth::TextVqa(annotation.answers)
        },
    }
}

/// The question in LLaVA's prompt of three lines (with OCR words) or two (without).
fn question_line(text: &str) -> Option<&str> {
    match text.split('\n').collect::<Vec<_>>().as_slice() {
        [words, question, _] if words.starts_with("Reference OCR token:") => Some(question),
        [question, words, _] if words.starts_with("Reference OCR token:") => Some(question),
        [question, _] => Some(question),
        _ => None,
    }
}
