//! JSON schemas: their limits, and which part of one is not supported.

use serde_json::{Map, Value};

use crate::Error;

/// Schemas within schemas.
const MOST_DEPTH: usize = 64;
/// Parts of a schema that are compiled by themselves to find the one that is not supported.
const MOST_PARTS: usize = 200;
/// White space between the tokens of JSON. Without a limit a model can write blank lines until its answer is cut off.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,16}";
/// Keywords with a schema.
const SCHEMA: [&str; 12] = [
    "additionalProperties",
    "items",
    "contains",
    "propertyNames",
    "unevaluatedProperties",
    "unevaluatedItems",
    "additionalItems",
    "not",
    "if",
    "then",
    "else",
    "contentSchema",
];
/// Keywords with a list of schemas.
const SCHEMAS: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];
/// Keywords with schemas by name.
const NAMED_SCHEMAS: [&str; 5] = ["properties", "patternProperties", "dependentSchemas", "$defs", "definitions"];

/// Refuses schemas that are longer than `most_bytes` or too deep.
pub(crate) fn check_size(schema: &Value, most_bytes: usize) -> Result<(), Error> {
    let bytes = schema.to_string().len();
    if bytes > most_bytes {
        return Err(Error::TooComplex(format!("the schema has {bytes} bytes of at most {most_bytes}")));
    }
    // Without recursion: a depth is what is to be found.
    let mut level = vec![schema];
    for _ in 0..MOST_DEPTH {
        level = level.into_iter().flat_map(values).collect();
        if level.is_empty() {
            return Ok(());
        }
    }
    Err(Error::TooComplex(format!("the schema is nested more than {MOST_DEPTH} levels deep")))
}

/// The values in a value.
fn values(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(values) => values.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    }
}

/// A schema with llguidance's options in it.
pub(crate) fn with_options(schema: &Value, strict: bool) -> Value {
    let mut fields = match schema {
        Value::Object(fields) => fields.clone(),
        // `false` describes nothing, and `true` anything.
        other => Map::from_iter([("allOf".to_owned(), Value::Array(vec![other.clone()]))]),
    };
    fields.insert(
        "x-guidance".to_owned(),
        serde_json::json!({"whitespace_pattern": WHITE_SPACE, "lenient": !strict, "coerce_one_of": !strict}),
    );
    Value::Object(fields)
}

/// JSON pointer to the smallest part of a schema that `fails` by itself, and what it fails with. Empty if only the
/// whole does.
pub(crate) fn failing_part(schema: &Value, fails: impl Fn(&Value) -> Option<String>) -> Option<(String, String)> {
    let mut parts = Vec::new();
    collect(schema, String::new(), &mut parts);
    let definitions: Vec<(&str, &Value)> =
        ["$defs", "definitions"].iter().filter_map(|name| Some((*name, schema.get(name)?))).collect();
    // Definitions come first: what refers to one fails with it. The smallest parts come last.
    let is_definition = |pointer: &str| ["/$defs/", "/definitions/"].iter().any(|name| pointer.starts_with(name));
    let (referred, others): (Vec<_>, Vec<_>) = parts.iter().rev().partition(|(pointer, _)| is_definition(pointer));
    for (pointer, part) in referred.into_iter().chain(others).take(MOST_PARTS) {
        let mut alone = match part {
            Value::Object(fields) => fields.clone(),
            _ => continue,
        };
        for (name, definition) in &definitions {
            // References look from the root. A definition that fails is found as a part of its own.
            alone.entry(*name).or_insert_with(|| (*definition).clone());
        }
        if let Some(reason) = fails(&Value::Object(alone)) {
            return Some((pointer.clone(), reason));
        }
    }
    None
}

/// All schemas in a schema, with their pointers, each before those in it.
fn collect<'a>(schema: &'a Value, pointer: String, parts: &mut Vec<(String, &'a Value)>) {
    let Value::Object(fields) = schema else { return };
    if parts.len() >= 4 * MOST_PARTS {
        return;
    }
    parts.push((pointer.clone(), schema));
    for (keyword, value) in fields {
        let keyword = keyword.as_str();
        let below = |name: &str| format!("{pointer}/{keyword}{name}");
        match value {
            Value::Object(named) if NAMED_SCHEMAS.contains(&keyword) => {
                for (name, part) in named {
                    collect(part, below(&format!("/{}", name.replace('~', "~0").replace('/', "~1"))), parts);
                }
            }
            Value::Array(list) if SCHEMAS.contains(&keyword) => {
                for (index, part) in list.iter().enumerate() {
                    collect(part, below(&format!("/{index}")), parts);
                }
            }
            Value::Object(_) if SCHEMA.contains(&keyword) => collect(value, below(""), parts),
            _ => {}
        }
    }
}
