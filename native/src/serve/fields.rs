//! Fields of a request, checked one by one.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// Nesting of a body at most.
const MAX_DEPTH: usize = 64;

/// The fields of a JSON object. Those that nobody takes are ignored and named in the answer's header. `null` is the
/// same as absent.
#[derive(Debug)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Parses a body.
    ///
    /// # Errors
    /// `invalid_json` if it is no JSON object, or nested too deeply.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let depth = depth(body);
        if depth > MAX_DEPTH {
            return Err(ApiError::invalid_json(format!(
                "the body is nested {depth} deep, expected at most {MAX_DEPTH}"
            )));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::invalid_json("the body is not a JSON object")),
            Err(error) => Err(ApiError::invalid_json(format!("the body is not JSON: {error}"))),
        }
    }

    /// Fields that were read otherwise.
    pub fn new(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    /// A field's value.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// A number that `accepts` takes.
    ///
    /// # Errors
    /// `invalid_value`: anything else.
    pub fn number(
        &mut self,
        name: &str,
        accepts: impl Fn(f64) -> bool,
        expected: &str,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64().filter(|value| accepts(*value)) {
            Some(value) => Ok(Some(value as f32)),
            None => Err(unexpected(name, &value, expected)),
        }
    }

    /// A whole number in a range.
    ///
    /// # Errors
    /// `invalid_value`: anything else.
    pub fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_i64().filter(|value| range.contains(value)) {
            Some(value) => Ok(Some(value)),
            None => {
                let expected = match (*range.start(), *range.end()) {
                    (i64::MIN, i64::MAX) => "a whole number".to_owned(),
                    (start, i64::MAX) => format!("a whole number from {start}"),
                    (start, end) => format!("a whole number from {start} to {end}"),
                };
                Err(unexpected(name, &value, &expected))
            }
        }
    }

    /// A text.
    ///
    /// # Errors
    /// `invalid_value`: anything else.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(unexpected(name, &value, "a text")),
        }
    }

    /// `true` or `false`; `false` if absent.
    ///
    /// # Errors
    /// `invalid_value`: anything else.
    pub fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(value) => Err(unexpected(name, &value, "true or false")),
        }
    }

    /// Takes fields that have no effect.
    pub fn accept(&mut self, names: &[&str]) {
        for name in names {
            self.0.remove(*name);
        }
    }

    /// Fails for fields that would change the answer. Each is named with what to do instead.
    ///
    /// # Errors
    /// `unsupported_field`.
    pub fn refuse(&mut self, fields: &[(&str, &str)]) -> Result<(), ApiError> {
        for (name, instead) in fields {
            let has_effect = |value: &Value| match value {
                Value::Bool(flag) => *flag,
                Value::Array(list) => !list.is_empty(),
                _ => true,
            };
            if self.take(name).is_some_and(|value| has_effect(&value)) {
                return Err(ApiError::unsupported_field(*name, format!("{name} is not supported: {instead}")));
            }
        }
        Ok(())
    }

    /// Sets a field.
    pub fn insert(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// The names of all fields that were not taken.
    pub fn rest(self) -> Vec<String> {
        self.0.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name).collect()
    }
}

/// The error of a field whose value is of another type or out of range.
pub fn unexpected(param: &str, value: &Value, expected: &str) -> ApiError {
    let found = match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.len() > 40 => "a text".to_owned(),
        value => value.to_string(),
    };
    ApiError::invalid_value(param, format!("{param} is {found}, expected {expected}"))
}

/// The deepest nesting of lists and objects, without parsing: outside of strings only brackets count.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'[' | b'{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(body: &str) -> Option<&'static str> {
        Fields::parse(body.as_bytes()).err().map(|error| error.code())
    }

    #[test]
    fn bodies_are_objects_of_bounded_depth() {
        let nested = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(code(&nested(63)), None);
        assert_eq!(code(&nested(64)), Some("invalid_json"));
        assert_eq!(code(r#"{"a": "[[[[\"[[[[{{{{"}"#), None);
        for body in ["", "[]", "{", "nul", "{\"a\":NaN}", "{} {}", "\"\\"] {
            assert_eq!(code(body), Some("invalid_json"), "{body}");
        }
        assert_eq!(Fields::parse(&[b'{', 0xff, b'}']).expect_err("not UTF-8").code(), "invalid_json");
    }

    #[test]
    fn values_are_checked_and_null_is_absent() {
        let body = br#"{"a": 1.5, "b": null, "c": "x", "d": 3, "e": [], "f": true}"#;
        let mut fields = Fields::parse(body).expect("an object");
        assert_eq!(fields.number("a", |a| a < 2.0, "less"), Ok(Some(1.5)));
        assert_eq!(fields.number("b", |_| false, "nothing"), Ok(None));
        assert_eq!(fields.integer("c", 0..=1).expect_err("a text").code(), "invalid_value");
        assert_eq!(fields.integer("d", 0..=2).expect_err("too large").code(), "invalid_value");
        assert_eq!(fields.refuse(&[("e", "")]), Ok(()));
        assert_eq!(fields.refuse(&[("f", "")]).expect_err("true").code(), "unsupported_field");
    }
}
