//! The JSON report of `mgm chat --json`.

use mgm::session::{Answer, Choice, StopReason, TokenLogprob, TokenLogprobs};
use mgm::text::Tokenizer;
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
    #[serde(flatten)]
    answer: ChoiceReport,
    /// The other answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    alternatives: Vec<ChoiceReport>,
    timings: Timings,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<ImageReport>,
    /// Why there is no image.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_error: Option<String>,
}

#[derive(Serialize)]
struct ChoiceReport {
    token_ids: Vec<u32>,
    text: String,
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReasonReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<LogprobsReport>>,
}

/// What ended an answer: a stop string, or the id of a stop token.
#[derive(Serialize)]
#[serde(untagged)]
enum StopReasonReport {
    String(String),
    Token(u32),
}

impl StopReasonReport {
    fn new(reason: StopReason) -> Option<Self> {
        match reason {
            StopReason::String(text) => Some(Self::String(text)),
            StopReason::Token(id) => Some(Self::Token(id)),
            _ => None,
        }
    }
}

/// An entry of `logprobs.content` in OpenAI's API, and the token's id.
#[derive(Serialize)]
struct LogprobsReport {
    #[serde(flatten)]
    chosen: TokenReport,
    top_logprobs: Vec<TokenReport>,
}

#[derive(Serialize)]
struct TokenReport {
    id: u32,
    token: String,
    logprob: f32,
    /// `null` for special tokens, which add nothing to the text.
    bytes: Option<Vec<u8>>,
}

impl TokenReport {
    fn new(TokenLogprob { id, logprob, .. }: TokenLogprob, tokenizer: &Tokenizer) -> Self {
        let bytes = tokenizer.token_bytes(id).map(|bytes| bytes.into_owned());
        Self { id, token: tokenizer.token_text(id), logprob, bytes }
    }
}

fn logprobs_report(logprobs: Vec<TokenLogprobs>, tokenizer: &Tokenizer) -> Option<Vec<LogprobsReport>> {
    let entry = |TokenLogprobs { chosen, top, .. }| LogprobsReport {
        chosen: TokenReport::new(chosen, tokenizer),
        top_logprobs: top.into_iter().map(|token| TokenReport::new(token, tokenizer)).collect(),
    };
    (!logprobs.is_empty()).then(|| logprobs.into_iter().map(entry).collect())
}

#[derive(Serialize)]
struct Timings {
    prefill_ms: f64,
    decode_ms: f64,
    decode_tokens_per_s: f64,
    cached_tokens: usize,
}

impl TurnReport {
    pub fn new(answer: Answer, tokenizer: &Tokenizer) -> Self {
        let alternative = |choice: Choice| ChoiceReport {
            token_ids: choice.token_ids,
            text: choice.text,
            finish_reason: choice.finish_reason.as_str(),
            stop_reason: choice.stop_reason.and_then(StopReasonReport::new),
            logprobs: logprobs_report(choice.logprobs, tokenizer),
        };
        Self {
            prompt_tokens: answer.prompt_tokens,
            timings: Timings {
                prefill_ms: answer.prefill_ms,
                decode_ms: answer.decode_ms,
                decode_tokens_per_s: answer.decode_tokens_per_s(),
                cached_tokens: answer.cached_tokens,
            },
            answer: ChoiceReport {
                token_ids: answer.token_ids,
                text: answer.text,
                finish_reason: answer.finish_reason.as_str(),
                stop_reason: answer.stop_reason.and_then(StopReasonReport::new),
                logprobs: logprobs_report(answer.logprobs, tokenizer),
            },
            alternatives: answer.alternatives.into_iter().map(alternative).collect(),
            image: None,
            image_error: None,
        }
    }

    /// Adds the image that the answer describes, or why there is none.
    pub fn with_image(self, image: Option<ImageReport>, error: Option<&CliError>) -> Self {
        Self { image, image_error: error.map(ToString::to_string), ..self }
    }
}
