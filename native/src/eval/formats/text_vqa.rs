//! TextVQA: `TextVQA_0.5.1_val.json` has the questions and ten answers to each. LLaVA's `llava_textvqa_val_v051_ocr.jsonl` has the
//! questions with words that an OCR system read in the pictures; released Mini-Gemini figures are with these.

use std::collections::{HashMap, VecDeque};

use mgm::Result;
use serde::Deserialize;

use super::{Id, SHORT_ANSWER, Source, read_json, read_json_lines, wrong};
use crate::eval::dataset::{Dataset, Picture, Question, Truth};

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

/// A row of LLaVA's file, whose question_id is the image's.
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
            // The same may be asked twice about a picture, of other people.
            let mut known: HashMap<(String, String), VecDeque<Annotation>> = HashMap::new();
            for annotation in read_json::<Annotations>(annotations)?.data {
                let key = (annotation.image_id.clone(), annotation.question.to_lowercase());
                known.entry(key).or_default().push_back(annotation);
            }
            let rows = read_json_lines::<Row>(file)?.into_iter();
            let question = |(line, row): (usize, Row)| {
                let Some(asked) = question_line(&row.text) else {
                    let reason = format!(
                        "line {line}: text is {:?}, expected the lines: question, Reference OCR token: ..., and an instruction",
                        row.text
                    );
                    return Err(wrong(file, reason));
                };
                // LLaVA's evaluation finds annotations by the same two.
                let key = (row.question_id, asked.to_lowercase());
                let Some(annotation) = known.get_mut(&key).and_then(VecDeque::pop_front) else {
                    let reason = format!(
                        "line {line} of {} asks {:?} about image {}: that is not in it, or less often",
                        file.display(),
                        key.1,
                        key.0
                    );
                    return Err(wrong(annotations, reason));
                };
                let place = format!("line {line} of {}", file.display());
                Ok(self::question(source, annotation, &row.image, &row.text, place))
            };
            rows.map(question).collect::<Result<_>>()?
        }
        None => {
            let annotations: Annotations = read_json(&source.data)?;
            let question = |annotation: Annotation| {
                let place = format!("question {} of {}", annotation.question_id, source.data.display());
                let (name, text) = (format!("{}.jpg", annotation.image_id), annotation.question.clone());
                question(source, annotation, &name, &text, place)
            };
            annotations.data.into_iter().map(question).collect()
        }
    };
    Ok(Dataset { questions, max_new_tokens: 128 })
}

fn question(source: &Source, annotation: Annotation, image: &str, text: &str, place: String) -> Question {
    Question {
        id: annotation.question_id.to_string(),
        place,
        picture: Some(Picture::File(source.image(image))),
        history: Vec::new(),
        prompt: source.instructed(text, SHORT_ANSWER),
        kind: None,
        truth: if annotation.answers.is_empty() { Truth::Hidden } else { Truth::Readers(annotation.answers) },
    }
}

/// The question of a text of LLaVA's: of three lines with OCR words, or of two without.
fn question_line(text: &str) -> Option<&str> {
    match text.split('\n').collect::<Vec<_>>().as_slice() {
        [words, question, _] if words.starts_with("Reference OCR token:") => Some(question),
        [question, words, _] if words.starts_with("Reference OCR token:") => Some(question),
        [question, _] => Some(question),
        _ => None,
    }
}
