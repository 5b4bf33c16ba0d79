//! Log-probabilities in the two forms of OpenAI's API.

use mgm::engine::{TokenLogprob, TokenLogprobs};
use mgm::text::Tokenizer;
use serde_json::{Map, Value, json};

/// OpenAI's value for a probability of 0: JSON has no infinity.
const LOWEST: f32 = -9999.0;

/// `logprobs` of a choice of a chat completion. Special tokens add nothing to the text and have no entry.
pub fn chat_logprobs(tokens: &[TokenLogprobs], tokenizer: &Tokenizer) -> Value {
    let entry = |token: &TokenLogprob| {
        let bytes = tokenizer.token_bytes(token.id).map(|bytes| bytes.into_owned());
        let text = tokenizer.token_text(token.id);
        json!({ "token": text, "logprob": token.logprob.max(LOWEST), "bytes": bytes })
    };
    let content = of_text(tokens, tokenizer).map(|token| {
        let mut chosen = entry(&token.chosen);
        chosen["top_logprobs"] = token.top.iter().map(entry).collect();
        chosen
    });
    json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
}

/// `logprobs` of a choice of a completion. `offset`: bytes of the text before these tokens.
pub fn text_logprobs(tokens: &[TokenLogprobs], tokenizer: &Tokenizer, offset: usize) -> Value {
    let (mut texts, mut logprobs, mut top, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut next = offset;
    for token in of_text(tokens, tokenizer) {
        let text = tokenizer.token_text(token.chosen.id);
        offsets.push(next);
        next += text.len();
        texts.push(text);
        logprobs.push(token.chosen.logprob.max(LOWEST));
        let best = token.top.iter().map(|token| (tokenizer.token_text(token.id), token.logprob.max(LOWEST).into()));
        top.push(best.collect::<Map<String, Value>>());
    }
    json!({ "tokens": texts, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets })
}

fn of_text<'a>(tokens: &'a [TokenLogprobs], tokenizer: &Tokenizer) -> impl Iterator<Item = &'a TokenLogprobs> {
    tokens.iter().filter(|token| tokenizer.token_bytes(token.chosen.id).is_some())
}
