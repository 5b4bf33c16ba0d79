//! Python's formats in browsers: minijinja's, which the module contains anyway. It refuses what it lacks.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, FormatStyle, Value, format_filter};

use super::values::{Sequence, pairs, text};

/// Python's `format % values`. A tuple has several values, a dictionary names them.
pub(super) fn percent(format: &str, values: &Value) -> Result<String, Error> {
    match Sequence::of_tuple(values) {
        Some(tuple) => write(FormatStyle::Printf, format, tuple, &Value::UNDEFINED),
        None if format.contains("%(") => write(FormatStyle::Printf, format, &[], values),
        None => write(FormatStyle::Printf, format, std::slice::from_ref(values), &Value::UNDEFINED),
    }
}

/// Python's `format.format(…)`.
pub(super) fn braces(format: &str, positional: &[Value], named: &Value) -> Result<String, Error> {
    write(FormatStyle::StrFormat, format, positional, named)
}

fn write(style: FormatStyle, format: &str, positional: &[Value], named: &Value) -> Result<String, Error> {
    // minijinja has its own notation of other values.
    let plain = |value: &Value| match value.kind() {
        ValueKind::Number | ValueKind::String => value.clone(),
        _ => Value::from(text(value)),
    };
    let mut values: Vec<Value> = positional.iter().map(plain).collect();
    let named: Kwargs = pairs(named).iter().map(|(key, value)| (text(key), plain(value))).collect();
    // minijinja writes an empty one for a missing value.
    values.extend(named.args().next().is_some().then(|| named.clone().into()));
    format_filter(style, format, &values)
}
