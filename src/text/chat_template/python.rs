//! What transformers' templates get from Python and Jinja: methods, filters, tests and functions.

use minijinja::value::{Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

use super::format::percent;
use super::json_style::to_json;
use super::strftime::strftime;
use super::strings::{self, Arguments, space};
use super::values::{Sequence, floor_divide, invalid, items, missing, modulo, pairs, power, repr, slice, text, tuple};
use super::{source, strings::split};

/// Adds everything to an environment. `clock` returns the seconds since 1970.
pub(super) fn add(environment: &mut Environment<'_>, clock: fn() -> i64) {
    environment.set_formatter(|output, state, value| {
        // Also for strings that a block or a macro made.
        let mut text = text(value);
        if state.auto_escape() != AutoEscape::None && !value.is_safe() {
            text = escape(&text);
        }
        output.write_str(&text).map_err(|_| invalid("the prompt cannot be written"))
    });
    environment.set_unknown_method_callback(|_, value, method, arguments| match value.as_str() {
        Some(text) => strings::method(text, method, arguments),
        None => other_method(value, method, arguments),
    });
    environment.add_function(source::SAME, |value: Value| value);
    environment.add_function(source::TUPLE, |items: Rest<Value>| tuple(items.to_vec()));
    environment.add_function(source::CONCATENATE, |parts: Rest<Value>| parts.iter().map(text).collect::<String>());
    environment.add_function(source::FLOOR_DIVIDE, |a: &Value, b: &Value| floor_divide(a, b));
    environment.add_function(source::SLICE, |value: &Value, bounds: Rest<Value>| slice(value, &bounds));
    environment.add_function(source::POWER, |a: &Value, b: &Value| power(a, b));
    environment.add_function(source::MODULO, |a: &Value, b: &Value| match a.as_str() {
        Some(format) => percent(format, b).map(Value::from),
        None => modulo(a, b),
    });
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> { Err(invalid(message)) });
    environment.add_function("strftime_now", move |format: &str| strftime(format, clock()));
    // Not the notation of Python.
    environment.remove_filter("pprint");
    environment.add_filter("tojson", to_json);
    for (name, arguments, filter) in FILTERS {
        environment.add_filter(*name, move |value: &Value, given: Rest<Value>| {
            filter(value, &Arguments::new(&given, arguments)?)
        });
    }
    environment.add_filter("format", |format: &Value, given: Rest<Value>| {
        let (positional, named) = split(&given);
        let values = if positional.is_empty() { named } else { tuple(positional.to_vec()) };
        percent(&text(format), &values)
    });
    // Python's strings are sequences of characters.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment.add_test("iterable", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::String | ValueKind::Map)
    });
    environment.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}

type Filter = fn(&Value, &Arguments) -> Result<Value, Error>;

/// Filters that minijinja lacks, or that differ: the names of their arguments. Browsers have those that templates use.
const FILTERS: &[(&str, &[&str], Filter)] = &[
    ("string", &[], |value, _| Ok(text(value).into())),
    ("trim", &["chars"], |value, given| Ok(strings::trim(&text(value), given.text(0)?, [true, true]).into())),
    ("round", &["precision", "method"], round),
    ("capitalize", &[], |value, _| Ok(strings::capitalize(&text(value)).into())),
    ("upper", &[], |value, _| Ok(text(value).to_uppercase().into())),
    ("lower", &[], |value, _| Ok(text(value).to_lowercase().into())),
    ("title", &[], |value, _| Ok(title(&text(value)).into())),
    #[cfg(not(target_arch = "wasm32"))]
    ("center", &["width"], |value, given| {
        Ok(strings::center(&text(value), given.integer(0)?.unwrap_or(80), ' ').into())
    }),
    ("replace", &["old", "new", "count"], |value, given| {
        let argument = |at| given.get(at).map(text).ok_or_else(missing);
        Ok(strings::replace(&text(value), &argument(0)?, &argument(1)?, given.integer(2)?).into())
    }),
    #[cfg(not(target_arch = "wasm32"))]
    ("truncate", &["length", "killwords", "end", "leeway"], truncate),
    #[cfg(not(target_arch = "wasm32"))]
    ("wordcount", &[], |value, _| {
        let words =
            text(value).split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count();
        Ok(words.into())
    }),
    ("indent", &["width", "first", "blank"], indent),
    ("length", &[], length),
    ("count", &[], length),
    #[cfg(not(target_arch = "wasm32"))]
    ("int", &["default", "base"], integer),
    ("float", &["default"], |value, given| {
        let number = match value.as_str() {
            Some(text) => strings::trim(text, None, [true, true]).replace('_', "").parse::<f64>().ok(),
            None => float(value),
        };
        Ok(number.map_or_else(|| given.get(0).cloned().unwrap_or(0.0.into()), Value::from))
    }),
    ("escape", &[], |value, _| Ok(escaped(value))),
    ("e", &[], |value, _| Ok(escaped(value))),
    #[cfg(not(target_arch = "wasm32"))]
    ("forceescape", &[], |value, _| Ok(Value::from_safe_string(escape(&text(value))))),
    ("join", &["d", "attribute"], |values, given| {
        let attribute = given.text(1)?;
        let mut parts = Vec::new();
        for value in values.try_iter()? {
            parts.push(text(&attribute.map_or(Ok(value.clone()), |name| value.get_attr(name))?));
        }
        Ok(parts.join(&given.get(0).map(text).unwrap_or_default()).into())
    }),
    ("items", &[], |value, _| {
        Ok(if value.is_undefined() { Value::from(Vec::<Value>::new()) } else { views(value, "")? })
    }),
    ("dictsort", &["case_sensitive", "by", "reverse"], |value, given| {
        let by_value = given.text(1)? == Some("value");
        let mut sorted: Vec<(Value, Value)> = Vec::new();
        for (key, value) in pairs(value) {
            let by = if by_value { &value } else { &key };
            let by =
                by.as_str().filter(|_| !given.flag(0)).map_or_else(|| by.clone(), |text| text.to_lowercase().into());
            // Less code than a sort.
            let at = sorted.partition_point(|(other, _)| other <= &by);
            sorted.insert(at, (by, tuple(vec![key, value])));
        }
        if given.flag(2) {
            sorted.reverse();
        }
        Ok(sorted.into_iter().map(|(_, pair)| pair).collect())
    }),
];

fn length(value: &Value, _: &Arguments) -> Result<Value, Error> {
    match value.len() {
        Some(length) => Ok(length.into()),
        None if value.is_undefined() => Ok(0.into()),
        None => Err(invalid(format!("a value of type {} has no length", value.kind()))),
    }
}

fn round(value: &Value, given: &Arguments) -> Result<Value, Error> {
    if value.is_integer() && given.get(1).is_none() && given.integer(0)?.unwrap_or(0) >= 0 {
        return Ok(value.clone());
    }
    let number: f64 = value.clone().try_into()?;
    let precision = given.integer(0)?.unwrap_or(0).clamp(-17, 17) as i32;
    let scale = 10f64.powi(precision);
    Ok(Value::from(match given.text(1)? {
        Some("ceil") => (number * scale).ceil() / scale,
        Some("floor") => (number * scale).floor() / scale,
        _ if precision < 0 => (number * scale).round_ties_even() / scale,
        // Of the exact value, ties to even, as Python rounds.
        _ => format!("{number:.*}", precision as usize).parse().unwrap_or(number),
    }))
}

fn float(value: &Value) -> Option<f64> {
    if value.kind() == ValueKind::Bool { Some(f64::from(value.is_true())) } else { value.clone().try_into().ok() }
}

#[cfg(not(target_arch = "wasm32"))]
fn integer(value: &Value, given: &Arguments) -> Result<Value, Error> {
    let base = given.integer(1)?.unwrap_or(10);
    let number = match value.as_str() {
        Some(text) => {
            let digits = strings::trim(text, None, [true, true]).to_lowercase().replace('_', "");
            let digits = match base {
                16 => digits.trim_start_matches("0x"),
                8 => digits.trim_start_matches("0o"),
                2 => digits.trim_start_matches("0b"),
                _ => &digits,
            };
            let radix = u32::try_from(base).ok().filter(|base| (2..=36).contains(base));
            let radix = radix.ok_or_else(|| invalid("int: the base must be from 2 to 36"))?;
            i128::from_str_radix(digits, radix).ok().or_else(|| finite(digits.parse().ok()?))
        }
        None if value.is_integer() => return Ok(value.clone()),
        None => finite(float(value).unwrap_or(f64::NAN)),
    };
    Ok(number.map_or_else(|| given.get(0).cloned().unwrap_or(0.into()), Value::from))
}

#[cfg(not(target_arch = "wasm32"))]
fn finite(number: f64) -> Option<i128> {
    number.is_finite().then_some(number as i128)
}

/// Jinja's own, which differs from Python's: words begin after white space, hyphens and brackets.
fn title(text: &str) -> String {
    let words = text.split_inclusive(|c: char| space(c) || "-({[<".contains(c));
    words.map(strings::capitalize).collect()
}

#[cfg(not(target_arch = "wasm32"))]
fn truncate(value: &Value, given: &Arguments) -> Result<Value, Error> {
    let text = text(value);
    let length = given.integer(0)?.unwrap_or(255).max(0) as usize;
    let end = given.text(2)?.unwrap_or("...");
    let leeway = given.integer(3)?.unwrap_or(5).max(0) as usize;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.into());
    }
    let kept =
        length.checked_sub(end.chars().count()).ok_or_else(|| invalid("truncate: the end is longer than the text"))?;
    let kept: String = text.chars().take(kept).collect();
    let kept = kept.rsplit_once(' ').filter(|_| !given.flag(1)).map_or(&*kept, |(words, _)| words);
    Ok(format!("{kept}{end}").into())
}

fn indent(value: &Value, given: &Arguments) -> Result<Value, Error> {
    let prefix = match given.get(0) {
        Some(width) if width.as_str().is_none() => " ".repeat(i64::try_from(width.clone())?.clamp(0, 4096) as usize),
        text => text.and_then(Value::as_str).unwrap_or("    ").to_owned(),
    };
    let mut output = String::new();
    for (index, line) in (text(value) + "\n").lines().enumerate() {
        let indented = if index == 0 { given.flag(1) } else { given.flag(2) || !line.is_empty() };
        output.push_str(if index == 0 { "" } else { "\n" });
        output.push_str(if indented { &prefix } else { "" });
        output.push_str(line);
    }
    Ok(output.into())
}

fn escape(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => output.push_str("&amp;"),
            '<' => output.push_str("&lt;"),
            '>' => output.push_str("&gt;"),
            '"' => output.push_str("&#34;"),
            '\'' => output.push_str("&#39;"),
            c => output.push(c),
        }
    }
    output
}

fn escaped(value: &Value) -> Value {
    if value.is_safe() { value.clone() } else { Value::from_safe_string(escape(&text(value))) }
}

/// The pairs of a dictionary.
fn views(value: &Value, name: &'static str) -> Result<Value, Error> {
    if value.kind() != ValueKind::Map {
        return Err(invalid(format!("a value of type {} has no items", value.kind())));
    }
    Ok(Sequence::value(name, pairs(value).into_iter().map(|(key, value)| tuple(vec![key, value])).collect()))
}

/// A method of a list or a dictionary.
fn other_method(value: &Value, method: &str, given: &[Value]) -> Result<Value, Error> {
    let arguments = |names| Arguments::new(given, names);
    match (value.kind(), method) {
        (ValueKind::Seq, "index") => {
            let (arguments, items) = (arguments(&["value", "start"])?, items(value));
            let wanted = given.first().ok_or_else(missing)?;
            let start = arguments.integer(1)?.unwrap_or(0);
            let start =
                if start < 0 { items.len().saturating_sub(start.unsigned_abs() as usize) } else { start as usize };
            let place = (start..items.len()).find(|place| items.get(*place) == Some(wanted));
            place.map(Value::from).ok_or_else(|| invalid(format!("{} is not in the list", repr(wanted))))
        }
        (ValueKind::Seq, "count") => {
            let [wanted] = given else { return Err(missing()) };
            Ok(items(value).iter().filter(|item| *item == wanted).count().into())
        }
        (ValueKind::Map, "items") => arguments(&[]).and_then(|_| views(value, "dict_items")),
        (ValueKind::Map, "keys") => arguments(&[]).map(|_| Sequence::value("dict_keys", items(value))),
        (ValueKind::Map, "values") => arguments(&[])
            .map(|_| Sequence::value("dict_values", pairs(value).into_iter().map(|(_, value)| value).collect())),
        (ValueKind::Map, "get") => {
            arguments(&["key", "default"])?;
            let key = given.first().ok_or_else(missing)?;
            let found = value.get_item(key)?;
            Ok(if found.is_undefined() { given.get(1).cloned().unwrap_or(().into()) } else { found })
        }
        (ValueKind::Seq | ValueKind::Map, "copy") => Ok(value.clone()),
        // transformers' environment is sandboxed: templates cannot change lists and dictionaries.
        (
            ValueKind::Seq | ValueKind::Map,
            "append" | "pop" | "extend" | "insert" | "remove" | "clear" | "update" | "setdefault" | "popitem" | "sort"
            | "reverse",
        ) => Err(invalid(format!("{method} would change a value, which templates may not do"))),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}
