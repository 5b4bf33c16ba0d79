//! JSON schemas by the words of draft 2020-12, for the keywords of the tests. It shares no code with llguidance.

use regex::Regex;
use serde_json::{Map, Value};

const KEYWORDS: [&str; 26] = [
    "$defs",
    "$ref",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "enum",
    "exclusiveMinimum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "multipleOf",
    "oneOf",
    "pattern",
    "patternProperties",
    "prefixItems",
    "properties",
    "required",
    "type",
    "title",
];

fn number(schema: &Map<String, Value>, keyword: &str) -> Option<f64> {
    schema.get(keyword).and_then(Value::as_f64)
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        other => panic!("type {other}"),
    }
}

fn format(name: &str) -> Regex {
    let expression = match name {
        "date" => r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$",
        "uuid" => r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
        "ipv4" => r"^((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(\.|$)){4}$",
        other => panic!("format {other}"),
    };
    Regex::new(expression).expect("an expression")
}

fn matches(expression: &str, text: &str) -> bool {
    Regex::new(expression).expect("an expression").is_match(text)
}

/// Whether a value has the form that a schema in `root` describes.
pub fn is_valid(root: &Value, schema: &Value, value: &Value) -> bool {
    let fields = match schema {
        Value::Bool(allowed) => return *allowed,
        Value::Object(fields) => fields,
        other => panic!("{other} is no schema"),
    };
    assert!(fields.keys().all(|keyword| KEYWORDS.contains(&keyword.as_str())), "{schema}");
    let valid = |schema: &Value, value: &Value| is_valid(root, schema, value);
    let count = |keyword: &str, of: &Value| {
        fields
            .get(keyword)
            .map_or(0, |list| list.as_array().expect("a list").iter().filter(|part| valid(part, of)).count())
    };
    let length = |keyword: &str| fields.get(keyword).map_or(0, |list| list.as_array().expect("a list").len());
    let within = |size: usize, least: &str, most: &str| {
        number(fields, least).is_none_or(|least| size as f64 >= least)
            && number(fields, most).is_none_or(|most| size as f64 <= most)
    };
    let general = fields.get("type").is_none_or(|names| match names {
        Value::Array(names) => names.iter().any(|name| has_type(value, name.as_str().expect("a name"))),
        name => has_type(value, name.as_str().expect("a name")),
    }) && fields.get("const").is_none_or(|only| only == value)
        && fields.get("enum").is_none_or(|values| values.as_array().expect("a list").contains(value))
        && count("allOf", value) == length("allOf")
        && (length("anyOf") == 0 || count("anyOf", value) > 0)
        && (length("oneOf") == 0 || count("oneOf", value) == 1)
        && fields.get("$ref").is_none_or(|to| {
            let pointer = to.as_str().and_then(|to| to.strip_prefix('#')).expect("a pointer");
            valid(root.pointer(pointer).expect("a definition"), value)
        });
    general
        && match value {
            Value::Number(number_value) => {
                let found = number_value.as_f64().expect("a number");
                number(fields, "minimum").is_none_or(|least| found >= least)
                    && number(fields, "maximum").is_none_or(|most| found <= most)
                    && number(fields, "exclusiveMinimum").is_none_or(|least| found > least)
                    && number(fields, "multipleOf").is_none_or(|step| found % step == 0.0)
            }
            Value::String(text) => {
                within(text.chars().count(), "minLength", "maxLength")
                    && fields.get("pattern").is_none_or(|pattern| matches(pattern.as_str().expect("a pattern"), text))
                    && fields.get("format").is_none_or(|name| format(name.as_str().expect("a name")).is_match(text))
            }
            Value::Array(items) => {
                let first = length("prefixItems");
                within(items.len(), "minItems", "maxItems")
                    && items.iter().enumerate().all(|(index, item)| match fields.get("prefixItems") {
                        Some(schemas) if index < first => valid(&schemas[index], item),
                        _ => fields.get("items").is_none_or(|schema| valid(schema, item)),
                    })
            }
            Value::Object(members) => {
                let named = fields.get("properties").and_then(Value::as_object);
                let patterns = fields.get("patternProperties").and_then(Value::as_object);
                within(members.len(), "minProperties", "maxProperties")
                    && fields.get("required").is_none_or(|names| {
                        names
                            .as_array()
                            .expect("a list")
                            .iter()
                            .all(|name| members.contains_key(name.as_str().expect("a name")))
                    })
                    && members.iter().all(|(name, member)| {
                        let own = named.and_then(|named| named.get(name));
                        let by_pattern: Vec<&Value> = patterns
                            .into_iter()
                            .flatten()
                            .filter_map(|(pattern, schema)| matches(pattern, name).then_some(schema))
                            .collect();
                        let other =
                            fields.get("additionalProperties").filter(|_| own.is_none() && by_pattern.is_empty());
                        own.into_iter().chain(by_pattern).chain(other).all(|schema| valid(schema, member))
                    })
            }
            Value::Null | Value::Bool(_) => true,
        }
}
