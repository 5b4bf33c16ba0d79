//! Python's formats in browsers: minijinja's, which the module contains anyway. What it lacks is refused.

use minijinja::value::ValueKind;
use minijinja::{Error, FormatStyle, Value, format_filter};

use super::values::{Sequence, invalid, items, text};

/// Python's `format % values`. A tuple has several values.
pub(super) fn percent(format: &str, values: &Value) -> Result<String, Error> {
    let values = Sequence::of_tuple(values).unwrap_or(std::slice::from_ref(values));
    format_filter(FormatStyle::Printf, format, &values.iter().map(plain).collect::<Vec<_>>())
}

/// Python's `format.format(…)`.
pub(super) fn braces(format: &str, positional: &[Value], named: &Value) -> Result<String, Error> {
    let mut values: Vec<Value> = positional.iter().map(plain).collect();
    if named.is_kwargs() {
        if items(named).iter().any(|key| named.get_item(key).is_ok_and(|value| !is_plain(&value))) {
            return Err(invalid("in browsers, named values of formats are strings or numbers"));
        }
        values.push(named.clone());
    }
    format_filter(FormatStyle::StrFormat, format, &values)
}

fn is_plain(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::String)
}

/// minijinja has its own notation of other values.
fn plain(value: &Value) -> Value {
    if is_plain(value) { value.clone() } else { Value::from(text(value)) }
}
