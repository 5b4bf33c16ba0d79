//! `response_format`, and vLLM's fields of the same meaning: what an answer must look like.

use mgm_grammar::Format;
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, unexpected};
use super::served::Served;
use crate::constraint::AnswerConstraint;

/// The field of an answer's form.
const RESPONSE_FORMAT: &str = "response_format";
const KINDS: &str =
    "an object with the type \"text\", \"json_object\", \"json_schema\", \"regex\", \"choice\" or \"grammar\"";

/// What the fields ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The field.
    param: &'static str,
    pub format: Format,
}

/// Compiles what an answer, or a text that continues the prompt, must look like. Appends what is left out of a schema
/// that is not strict to `ignored`.
///
/// # Errors
/// `invalid_schema`, `invalid_value`, `grammar_too_complex`, `unsupported_field`.
pub fn constraint(
    wanted: Wanted,
    served: &Served,
    is_continuation: bool,
    ignored: &mut Vec<String>,
) -> Result<AnswerConstraint, ApiError> {
    let Wanted { param, format } = wanted;
    let constraints = served.constraints().map_err(|error| ApiError::unsupported_field(param, error.to_string()))?;
    let (matcher, left_out) =
        constraints.matcher(format, is_continuation).map_err(|error| ApiError::of_grammar(param, &error))?;
    ignored.extend(left_out.iter().flat_map(|what| keywords(what)).map(|keyword| format!("{param}.{keyword}")));
    Ok(AnswerConstraint::Grammar(Box::new(matcher)))
}

/// The keywords in a note about what is left out, such as `Unimplemented keys: ["not"]` or `oneOf not fully supported`.
pub fn keywords(note: &str) -> Vec<&str> {
    let quoted: Vec<&str> = note.split('"').skip(1).step_by(2).collect();
    if quoted.is_empty() { note.split(' ').take(1).collect() } else { quoted }
}

/// Reads the fields.
///
/// # Errors
/// `invalid_value`, `unsupported_field`.
pub fn parse(fields: &mut Fields) -> Result<Option<Wanted>, ApiError> {
    let mut found = Vec::new();
    if let Some(value) = fields.take(RESPONSE_FORMAT) {
        found.extend(response_format(&value)?.map(|format| (RESPONSE_FORMAT, format)));
    }
    for (name, kind) in
        [("guided_json", "json"), ("guided_regex", "regex"), ("guided_choice", "choice"), ("guided_grammar", "grammar")]
    {
        if let Some(value) = fields.take(name) {
            found.push((name, structured(name, kind, value)?));
        }
    }
    match fields.take("structured_outputs") {
        None => {}
        Some(Value::Object(object)) => {
            for (kind, value) in object.into_iter().filter(|(_, value)| !value.is_null()) {
                found.push(("structured_outputs", structured("structured_outputs", &kind, value)?));
            }
        }
        Some(value) => return Err(unexpected("structured_outputs", &value, "an object")),
    }
    if let [_, (param, _), ..] = found[..] {
        return Err(ApiError::invalid_value(param, "an answer has one form: several fields ask for one"));
    }
    Ok(found.pop().map(|(param, format)| Wanted { param, format }))
}

/// OpenAI's field; further types as other servers have them.
fn response_format(value: &Value) -> Result<Option<Format>, ApiError> {
    let invalid = |expected: &str| unexpected(RESPONSE_FORMAT, value, expected);
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    Ok(Some(match value.get("type").and_then(Value::as_str) {
        Some("text") => return Ok(None),
        Some("json_object") => Format::JsonObject,
        Some("json_schema") => {
            let described = value.get("json_schema").ok_or_else(|| invalid("an object json_schema with a schema"))?;
            let schema = described.get("schema").filter(|schema| schema.is_object() || schema.is_boolean());
            let schema = schema.ok_or_else(|| invalid("an object json_schema with a schema"))?;
            let strict = match described.get("strict") {
                None | Some(Value::Null) => false,
                Some(Value::Bool(strict)) => *strict,
                Some(_) => return Err(invalid("json_schema.strict: true or false")),
            };
            Format::JsonSchema { schema: schema.clone(), strict }
        }
        Some("regex") => Format::Regex(text("pattern").ok_or_else(|| invalid("a text pattern"))?),
        Some("choice") => {
            Format::Choice(texts(value.get("choices")).ok_or_else(|| invalid("a list of texts, choices"))?)
        }
        Some("grammar") => match value.get("syntax").and_then(Value::as_str) {
            None | Some("lark") => Format::Lark(text("grammar").ok_or_else(|| invalid("a text grammar"))?),
            Some(_) => return Err(invalid("the syntax \"lark\"")),
        },
        _ => return Err(invalid(KINDS)),
    }))
}

/// vLLM's forms. Their schemas are strict.
fn structured(param: &str, kind: &str, value: Value) -> Result<Format, ApiError> {
    match (kind, value) {
        ("json", Value::String(text)) => match serde_json::from_str(&text) {
            Ok(schema) => Ok(Format::JsonSchema { schema, strict: true }),
            Err(error) => Err(ApiError::invalid_value(param, format!("{param} is not JSON: {error}"))),
        },
        ("json", schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Format::JsonSchema { schema, strict: true }),
        ("json_object", Value::Bool(true)) => Ok(Format::JsonObject),
        ("regex", Value::String(pattern)) => Ok(Format::Regex(pattern)),
        ("grammar", Value::String(grammar)) => Ok(Format::Lark(grammar)),
        ("choice", value) => match texts(Some(&value)) {
            Some(choices) => Ok(Format::Choice(choices)),
            None => Err(unexpected(param, &value, "a list of texts")),
        },
        (kind, value) => {
            Err(unexpected(param, &value, &format!("json, json_object, regex, choice or grammar instead of {kind}")))
        }
    }
}

fn texts(value: Option<&Value>) -> Option<Vec<String>> {
    value?.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
}
