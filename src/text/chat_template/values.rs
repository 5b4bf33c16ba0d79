//! Python's values: their text, tuples and views of dictionaries, the operators that minijinja computes differently.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// A sequence that Python does not print as a list.
#[derive(Debug)]
pub(super) struct Sequence {
    /// `dict_items` and so on; empty for a tuple.
    name: &'static str,
    items: Vec<Value>,
}

impl Sequence {
    #[inline(never)]
    pub(super) fn value(name: &'static str, items: Vec<Value>) -> Value {
        Value::from_object(Self { name, items })
    }

    /// The items, if this is a tuple.
    pub(super) fn of_tuple(value: &Value) -> Option<&[Value]> {
        value.downcast_object_ref::<Self>().filter(|sequence| sequence.name.is_empty()).map(|tuple| &*tuple.items)
    }
}

#[inline(never)]
pub(super) fn tuple(items: Vec<Value>) -> Value {
    Sequence::value("", items)
}

impl Object for Sequence {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        if self.name.is_empty() { ObjectRepr::Seq } else { ObjectRepr::Iterable }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.items.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items = list(&self.items);
        match (self.name, self.items.len()) {
            ("", 1) => write!(f, "({items},)"),
            ("", _) => write!(f, "({items})"),
            (name, _) => write!(f, "{name}([{items}])"),
        }
    }
}

pub(super) fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
    // Once for all callers: the browser's module has a limit.
    #[inline(never)]
    fn error(message: Cow<'static, str>) -> Error {
        Error::new(ErrorKind::InvalidOperation, message)
    }
    error(message.into())
}

#[inline(never)]
pub(super) fn missing() -> Error {
    Error::from(ErrorKind::MissingArgument)
}

/// Python's `str`.
#[inline(never)]
pub(super) fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_undefined() => String::new(),
        None => repr(value),
    }
}

/// Python's `repr`.
#[inline(never)]
pub(super) fn repr(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => "Undefined".to_owned(),
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::Number => number(value),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable if value.downcast_object_ref::<Sequence>().is_none() => {
            format!("[{}]", list(&items(value)))
        }
        ValueKind::Map => {
            let pairs = pairs(value).into_iter().map(|(key, value)| format!("{}: {}", repr(&key), repr(&value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        _ => value.to_string(),
    }
}

#[inline(never)]
fn list(items: &[Value]) -> String {
    items.iter().map(repr).collect::<Vec<_>>().join(", ")
}

#[inline(never)]
pub(super) fn items(value: &Value) -> Vec<Value> {
    value.try_iter().map(Iterator::collect).unwrap_or_default()
}

#[inline(never)]
pub(super) fn pairs(value: &Value) -> Vec<(Value, Value)> {
    let pair = |key: Value| value.get_item(&key).map(|value| (key, value));
    items(value).into_iter().filter_map(|key| pair(key).ok()).collect()
}

/// An integer, or a float as Python writes it: with an exponent from 1e16 and below 1e-4.
#[inline(never)]
pub(super) fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else { return value.to_string() };
    if !float.is_finite() {
        return if float.is_nan() {
            "nan"
        } else if float > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if float != 0.0 && !(-4..16).contains(&exponent) => {
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        _ => format!("{float:?}"),
    }
}

/// Python's `str.isprintable`, of one character.
#[inline(never)]
pub(super) fn printable(c: char) -> bool {
    // Characters for private use stand for those of control tokens. Of the others, Rust escapes the same categories;
    // after a letter, marks stay as they are.
    matches!(c, ' '..='~' | '\u{f0000}'..) || (c > '~' && format!("a{c}").escape_debug().count() == 2)
}

#[inline(never)]
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        _ = match (c, u32::from(c)) {
            ('\n', _) => out.write_str("\\n"),
            ('\r', _) => out.write_str("\\r"),
            ('\t', _) => out.write_str("\\t"),
            ('\\', _) => out.write_str("\\\\"),
            (c, _) if c == quote => write!(out, "\\{c}"),
            (c, _) if printable(c) => out.write_char(c),
            (_, code @ ..0x100) => write!(out, "\\x{code:02x}"),
            (_, code @ ..0x1_0000) => write!(out, "\\u{code:04x}"),
            (_, code) => write!(out, "\\U{code:08x}"),
        };
    }
    out.push(quote);
    out
}

/// Python's `//`, which rounds down.
#[inline(never)]
pub(super) fn floor_divide(a: &Value, b: &Value) -> Result<Value, Error> {
    if let Some((a, b)) = integers(a, b) {
        let quotient = a.checked_div(b).ok_or_else(zero)?;
        return Ok(Value::from(quotient - i64::from(a % b != 0 && (a < 0) != (b < 0))));
    }
    let (a, b) = floats(a, b)?;
    Ok(Value::from((a / b).floor()))
}

/// Python's `%` of numbers: the sign is the divisor's.
#[inline(never)]
pub(super) fn modulo(a: &Value, b: &Value) -> Result<Value, Error> {
    if let Some((a, b)) = integers(a, b) {
        let rest = a.checked_rem(b).ok_or_else(zero)?;
        return Ok(Value::from(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }));
    }
    let (a, b) = floats(a, b)?;
    let rest = a % b;
    Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }))
}

/// Python's `**`.
#[inline(never)]
pub(super) fn power(a: &Value, b: &Value) -> Result<Value, Error> {
    if let Some((base, exponent @ 0..)) = integers(a, b) {
        let power = u32::try_from(exponent).ok().and_then(|exponent| i128::from(base).checked_pow(exponent));
        return power.map(Value::from).ok_or_else(|| invalid("the power is too large"));
    }
    let number = |value: &Value| f64::try_from(value.clone());
    Ok(Value::from(number(a)?.powf(number(b)?)))
}

/// Python's `value[start:stop:step]`.
#[inline(never)]
pub(super) fn slice(value: &Value, bounds: &[Value]) -> Result<Value, Error> {
    let bound = |at: usize| match bounds.get(at) {
        Some(bound) if !bound.is_none() => i64::try_from(bound.clone()).map(Some),
        _ => Ok(None),
    };
    let items: Vec<Value> = match value.as_str() {
        Some(text) => text.chars().map(Value::from).collect(),
        None => value.try_iter()?.collect(),
    };
    let (length, step) = (items.len() as i64, bound(2)?.unwrap_or(1));
    // The first and the last place, and what is before and after them.
    let (low, high) = if step < 0 { (-1, length - 1) } else { (0, length) };
    let place = |place: i64| (if place < 0 { place.saturating_add(length) } else { place }).clamp(low, high);
    let (first, end) = if step < 0 { (high, low) } else { (low, high) };
    let (mut at, end) = (bound(0)?.map_or(first, place), bound(1)?.map_or(end, place));
    if step == 0 {
        return Err(invalid("slice step cannot be zero"));
    }
    let mut found = Vec::new();
    while if step < 0 { at > end } else { at < end } {
        found.extend(usize::try_from(at).ok().and_then(|at| items.get(at)).cloned());
        at = at.saturating_add(step);
    }
    Ok(match value.as_str() {
        Some(_) => found.iter().filter_map(Value::as_str).collect::<String>().into(),
        None if Sequence::of_tuple(value).is_some() => tuple(found),
        None => found.into(),
    })
}

#[inline(never)]
fn integers(a: &Value, b: &Value) -> Option<(i64, i64)> {
    let integer = |value: &Value| match value.kind() {
        ValueKind::Bool => Some(i64::from(value.is_true())),
        _ => value.as_i64().filter(|_| value.is_integer()),
    };
    Some((integer(a)?, integer(b)?))
}

#[inline(never)]
fn floats(a: &Value, b: &Value) -> Result<(f64, f64), Error> {
    let (a, b): (f64, f64) = (a.clone().try_into()?, b.clone().try_into()?);
    if b == 0.0 { Err(zero()) } else { Ok((a, b)) }
}

fn zero() -> Error {
    invalid("division by zero")
}
