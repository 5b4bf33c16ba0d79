//! VQA v2: `v2_OpenEnded_mscoco_val2014_questions.json` and `v2_mscoco_val2014_annotations.json`, and data in their form.

use std::collections::HashMap;

use mgm::{Error, Result};
use serde::Deserialize;

use super::{Id, SHORT_ANSWER, Source, read_json, wrong};
use crate::eval::dataset::{Dataset, Picture, Question, Truth};

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
    /// The file's name, in data that are not COCO's.
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
        return Err(Error::InvalidArgument(
            "VQA's answers are in a file of their own: name it with --annotations".to_owned(),
        ));
    };
    let Questions { data_subtype, questions } = read_json(file)?;
    let annotations: Annotations = read_json(annotations_file)?;
    let mut answers: HashMap<Id, Annotation> =
        annotations.annotations.into_iter().map(|annotation| (annotation.question_id.clone(), annotation)).collect();
    let questions = questions.into_iter().map(|asked| {
        let id = asked.question_id.to_string();
        let Some(annotation) = answers.remove(&asked.question_id) else {
            let reason = format!("question {id} of {} is not in it, or twice there", file.display());
            return Err(wrong(annotations_file, reason));
        };
        if annotation.answers.is_empty() {
            return Err(wrong(annotations_file, format!("question {id} has no answers")));
        }
        let name = asked.image.unwrap_or_else(|| match &asked.image_id {
            Id::Number(number) if data_subtype.is_empty() => format!("{number:012}.jpg"),
            Id::Number(number) => format!("COCO_{data_subtype}_{number:012}.jpg"),
            Id::Text(name) => name.clone(),
        });
        Ok(Question {
            place: format!("question {id} of {}", file.display()),
            id,
            picture: Some(Picture::File(source.image(&name))),
            history: Vec::new(),
            prompt: source.instructed(&asked.question, SHORT_ANSWER),
            kind: annotation.answer_type,
            truth: Truth::Annotators(annotation.answers.into_iter().map(|answer| answer.answer).collect()),
        })
    });
    Ok(Dataset { questions: questions.collect::<Result<_>>()?, max_new_tokens: 128 })
}
