//! The fields that say how tokens are chosen, and where answers end.

use mgm::ops::{MAX_TOP_LOGPROBS, Sampling};
use mgm::session::{AnswerOptions, MAX_BIASES};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, unexpected};
use super::served::Served;
use super::state::Server;
use crate::seed;

/// Stop strings at most, and bytes of each.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 256;

/// Reads the fields that both kinds of completions have. `max_new_tokens` is what the request asks for, before the
/// context limits it.
///
/// # Errors
/// `invalid_value`.
pub fn parse(fields: &mut Fields, server: &Server, served: &Served) -> Result<AnswerOptions, ApiError> {
    let defaults = served.sampling;
    let unit = |value: f64| (0.0..=1.0).contains(&value);
    let penalty = |value: f64| (-2.0..=2.0).contains(&value);
    let temperature = fields.number("temperature", |value| (0.0..=2.0).contains(&value), "a number from 0 to 2")?;
    let top_p = fields.number("top_p", |value| value > 0.0 && value <= 1.0, "a number above 0, up to 1")?;
    let top_k = match fields.integer("top_k", -1..=i64::from(u32::MAX))? {
        // vLLM's notation of all tokens.
        Some(top_k) => u32::try_from(top_k).unwrap_or(0),
        None => defaults.top_k,
    };
    let min_p = fields.number("min_p", unit, "a number from 0 to 1")?;
    let presence = fields.number("presence_penalty", penalty, "a number from -2 to 2")?;
    let frequency = fields.number("frequency_penalty", penalty, "a number from -2 to 2")?;
    let mut repetition = |name| fields.number(name, |value| value > 0.0 && value <= 2.0, "a number above 0, up to 2");
    let repetition = repetition("repetition_penalty")?.or(repetition("repeat_penalty")?);
    let sampling = Sampling::default()
        .with_temperature(temperature.unwrap_or(defaults.temperature))
        .with_top_k(top_k)
        .with_top_p(top_p.unwrap_or(defaults.top_p))
        .with_min_p(min_p.unwrap_or(0.0))
        .with_repetition_penalty(repetition.unwrap_or(1.0))
        .with_presence_penalty(presence.unwrap_or(0.0))
        .with_frequency_penalty(frequency.unwrap_or(0.0));

    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?.map_or_else(seed::random, |seed| seed as u64);
    let n = fields.integer("n", 1..=served.parallel as i64)?.unwrap_or(1) as usize;
    let asked = fields.integer("max_completion_tokens", 1..=i64::MAX)?;
    let max_tokens = asked.or(fields.integer("max_tokens", 1..=i64::MAX)?);
    let limit = i64::from(server.settings.max_new_tokens);
    let max_new_tokens = max_tokens.unwrap_or(limit).min(limit) as usize;
    let min_tokens = fields.integer("min_tokens", 0..=max_new_tokens as i64)?.unwrap_or(0) as usize;
    let options = AnswerOptions::default()
        .with_sampling(sampling)
        .with_seed(seed)
        .with_n(n)
        .with_max_new_tokens(max_new_tokens)
        .with_min_tokens(min_tokens)
        .with_stop(stop_strings(fields.take("stop"))?)
        .with_stop_token_ids(ids("stop_token_ids", fields.take("stop_token_ids"), served.vocab)?)
        .with_ignore_eos(fields.flag("ignore_eos")?)
        .with_logit_bias(logit_bias(fields.take("logit_bias"), served.vocab)?);
    options.check(served.vocab).map_err(|error| ApiError::invalid_value("body", error.to_string()))?;
    Ok(options)
}

/// `logprobs` and `top_logprobs` of chat completions.
///
/// # Errors
/// `invalid_value`.
pub fn chat_logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.flag("logprobs")?;
    match (wanted, fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS as i64)?) {
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::invalid_value("top_logprobs", "top_logprobs needs logprobs: true")),
    }
}

fn stop_strings(value: Option<Value>) -> Result<Vec<String>, ApiError> {
    let expected = format!("a text, or up to {MAX_STOPS} texts, of 1 to {MAX_STOP_BYTES} bytes each");
    let list = match value {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= MAX_STOPS => list,
        Some(value @ Value::String(_)) => vec![value],
        Some(value) => return Err(unexpected("stop", &value, &expected)),
    };
    let text = |value| match value {
        Value::String(text) if (1..=MAX_STOP_BYTES).contains(&text.len()) => Ok(text),
        value => Err(unexpected("stop", &value, &expected)),
    };
    list.into_iter().map(text).collect()
}

/// A list of ids below `vocab`.
///
/// # Errors
/// `invalid_value`.
pub fn ids(name: &str, value: Option<Value>, vocab: usize) -> Result<Vec<u32>, ApiError> {
    let list = match value {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(value) => return Err(unexpected(name, &value, "a list of token ids")),
    };
    let id = |value: Value| {
        let id = value.as_u64().filter(|id| *id < vocab as u64);
        id.map(|id| id as u32).ok_or_else(|| unexpected(name, &value, &format!("token ids below {vocab}")))
    };
    list.into_iter().map(id).collect()
}

fn logit_bias(value: Option<Value>, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let map = match value {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) if map.len() <= MAX_BIASES => map,
        Some(value) => {
            return Err(unexpected("logit_bias", &value, &format!("an object of at most {MAX_BIASES} token ids")));
        }
    };
    let entry = |(id, bias): (String, Value)| {
        let number = id.parse::<u32>().ok().filter(|id| (*id as usize) < vocab);
        let bias_found = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        match (number, bias_found) {
            (Some(id), Some(bias)) => Ok((id, bias as f32)),
            (None, _) => Err(unexpected("logit_bias", &id.into(), &format!("token ids below {vocab}"))),
            (_, None) => Err(unexpected("logit_bias", &bias, "numbers from -100 to 100")),
        }
    };
    map.into_iter().map(entry).collect()
}
