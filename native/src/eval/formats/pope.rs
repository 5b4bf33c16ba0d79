//! POPE: JSON lines `{"question_id", "image", "text", "label"}`, one file per sampling strategy
//! (`coco_pope_random.json`, `..._popular.json`, `..._adversarial.json`), or LLaVA's single file with `category` in its
//! rows.

use std::path::Path;

use mgm::Result;
use serde::Deserialize;

use super::{Id, SHORT_ANSWER, Source, data_error, read_json_lines};
use crate::eval::dataset::{Dataset, GroundTruth, ImageSource, Question};

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
        let file_category = category(file);
        for (line, row) in read_json_lines::<Row>(file)? {
            let truth = match row.label.as_deref().map(str::trim) {
                None => GroundTruth::Unknown,
                Some(label) if label.eq_ignore_ascii_case("yes") => GroundTruth::YesNo(true),
                Some(label) if label.eq_ignore_ascii_case("no") => GroundTruth::YesNo(false),
                Some(label) => {
                    return Err(data_error(
                        file,
                        format!("line {line}: label is {label:?}, expected \"yes\" or \"no\""),
                    ));
                }
            };
            questions.push(Question {
                // Ids start at 1 in every file, so they are prefixed.
                id: if files.len() > 1 {
                    format!("{file_category}/{}", row.question_id)
                } else {
                    row.question_id.to_string()
                },
                location: format!("line {line} of {}", file.display()),
                image: Some(ImageSource::File(source.image(&row.image))),
                history: Vec::new(),
                prompt: source.with_instruction(&row.text, SHORT_ANSWER),
                kind: Some(row.category.unwrap_or_else(|| file_category.clone())),
                truth,
            });
        }
    }
    Ok(Dataset { questions, max_new_tokens: 128 })
}

/// The category in a file name: "adversarial" in "coco_pope_adversarial.json".
fn category(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    stem.rsplit('_').next().unwrap_or(&stem).to_owned()
}
