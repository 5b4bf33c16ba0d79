//! POPE: JSON lines `{"question_id", "image", "text", "label"}`, a file for each way of choosing what is asked for
//! (`coco_pope_random.json`, `..._popular.json`, `..._adversarial.json`); also LLaVA's one file with `category` in the rows.

use std::path::Path;

use mgm::Result;
use serde::Deserialize;

use super::{Id, SHORT_ANSWER, Source, read_json_lines, wrong};
use crate::eval::dataset::{Dataset, Picture, Question, Truth};

#[derive(Deserialize)]
struct Row {
    question_id: Id,
    image: String,
    text: String,
    label: Option<String>,
    category: Option<String>,
}

pub fn open(source: &Source) -> Result<Dataset> {
    let files = source.files(&["json", "jsonl"])?;
    let mut questions = Vec::new();
    for file in &files {
        let of_file = category(file);
        for (line, row) in read_json_lines::<Row>(file)? {
            let truth = match row.label.as_deref().map(str::trim) {
                None => Truth::Hidden,
                Some(label) if label.eq_ignore_ascii_case("yes") => Truth::YesNo(true),
                Some(label) if label.eq_ignore_ascii_case("no") => Truth::YesNo(false),
                Some(label) => {
                    return Err(wrong(file, format!("line {line}: label is {label:?}, expected \"yes\" or \"no\"")));
                }
            };
            questions.push(Question {
                // Every file counts from 1.
                id: if files.len() > 1 {
                    format!("{of_file}/{}", row.question_id)
                } else {
                    row.question_id.to_string()
                },
                place: format!("line {line} of {}", file.display()),
                picture: Some(Picture::File(source.image(&row.image))),
                history: Vec::new(),
                prompt: source.instructed(&row.text, SHORT_ANSWER),
                kind: Some(row.category.unwrap_or_else(|| of_file.clone())),
                truth,
            });
        }
    }
    Ok(Dataset { questions, max_new_tokens: 128 })
}

/// "adversarial" of "coco_pope_adversarial.json".
fn category(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    stem.rsplit('_').next().unwrap_or(&stem).to_owned()
}
