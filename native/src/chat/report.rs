//! The JSON report of `mgm chat --json`.

use mgm::session::Answer;
use serde::Serialize;

use crate::CliError;
use crate::image_model::ImageReport;

#[derive(Serialize)]
pub struct Report<'a> {
    pub turns: Vec<TurnReport>,
    pub adapter: &'a str,
    pub load_ms: f64,
    pub vision_ms: f64,
}

#[derive(Serialize)]
pub struct TurnReport {
    prompt_tokens: usize,
    token_ids: Vec<u32>,
    text: String,
    finish_reason: &'static str,
    timings: Timings,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<ImageReport>,
    /// Why there is no image.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_error: Option<String>,
}

#[derive(Serialize)]
struct Timings {
    prefill_ms: f64,
    decode_ms: f64,
    decode_tokens_per_s: f64,
    cached_tokens: usize,
}

impl TurnReport {
    pub fn new(answer: Answer, image: Option<ImageReport>, image_error: Option<&CliError>) -> Self {
        Self {
            prompt_tokens: answer.prompt_tokens,
            timings: Timings {
                prefill_ms: answer.prefill_ms,
                decode_ms: answer.decode_ms,
                decode_tokens_per_s: answer.decode_tokens_per_s(),
                cached_tokens: answer.cached_tokens,
            },
            token_ids: answer.token_ids,
            text: answer.text,
            finish_reason: answer.finish_reason.as_str(),
            image,
            image_error: image_error.map(ToString::to_string),
        }
    }
}
