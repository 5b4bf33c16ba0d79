//! VQA v2: `v2_OpenEnded_mscoco_val2014_questions.json` and `v2_mscoco_val2014_annotations.json`, and data in the same
//! format.

use std::collections::HashMap;

use mgm::{Error, Result};
use serde::Deserialize;

use super::{Id, SHORT_ANSWER, Source, data_error, read_json};
use crate::eval::dataset::{Dataset, GroundTruth, ImageSource, Question};

#[derive(Deserialize)]
struct Questions {
    #[serde(default)]
    data_subtype: String,
    questions: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    question_id: Id,
    image_id: Id,
    question: String,
    /// The file name, in data other than COCO's.
    image: Option<String>,
}

#[derive(Deserialize)]
struct Annotations {
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    question_id: Id,
    answer_type: Option<String>,
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    answer: String,
}

pub fn open(source: &Source) -> Result<Dataset> {
    let file = &source.data;
    let Some(annotations_file) = &source.annotations else {
        return Err(Error::InvalidArgument("--format vqa needs --annotations, the file with the answers".to_owned()));
    };
    let Questions { data_subtype, questions } = read_json(file)?;
    let annotations: Annotations = read_json(annotations_file)?;
    let mut answers: HashMap<Id, Annotation> =
        annotations.annotations.into_iter().map(|annotation| (annotation.question_id.clone(), annotation)).collect();
    let questions = questions.into_iter().map(|asked| {
        let id = asked.question_id.to_string();
        let Some(annotation) = answers.remove(&asked.question_id) else {
            let reason = format!("question {id} of {} is not annotated, or occurs twice there", file.display());
            return Err(data_error(annotations_file, reason));
        };
        if annotation.answers.is_empty() {
            return Err(data_error(annotations_file, format!("question {id} has no answers")));
        }
        let name = asked.image.unwrap_or_else(|| match &asked.image_id {
            Id::Number(number) if data_subtype.is_empty() => format!("{number:012}.jpg"),
            Id::Number(number) => format!("COCO_{data_subtype}_{number:012}.jpg"),
            Id::Text(name) => name.clone(),
        });
        Ok(Question {
            location: format!("question {id} of {}", file.display()),
            id,
            image: Some(ImageSource::File(source.image(&name))),
            history: Vec::new(),
            prompt: source.with_instruction(&asked.question, SHORT_ANSWER),
            kind: annotation.answer_type,
            truth: GroundTruth::VqaV2(annotation.answers.into_iter().map(|answer| answer.answer).collect()),
        })
    });
    Ok(Dataset { questions: questions.collect::<Result<_>>()?, max_new_tokens: 128 })
}
