//! What transformers' templates get from Python: the text of values, methods of strings, lists and dictionaries,
//! `tojson`, `strftime_now`.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Adds everything to an environment. `clock` returns the seconds since 1970.
pub(super) fn add(environment: &mut Environment<'_>, clock: fn() -> i64) {
    environment.set_formatter(|output, _, value| {
        // Of a string that a block or macro made, too.
        output.write_str(&text(value)).map_err(|_| invalid("the prompt cannot be written"))
    });
    environment.set_unknown_method_callback(|state, value, method, arguments| match value.as_str() {
        Some(text) => string_method(state, value, text, method, arguments),
        None => other_method(state, value, method, arguments),
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| text(value));
    environment.add_filter("trim", |value: &Value, characters: Option<String>| {
        let text = text(value);
        match characters {
            Some(characters) => text.trim_matches(|c| characters.contains(c)).to_owned(),
            None => text.trim().to_owned(),
        }
    });
    environment.add_filter("round", |value: f64, precision: Option<usize>, method: Option<String>| {
        let precision = precision.unwrap_or(0).min(17);
        let scale = 10f64.powi(precision as i32);
        match method.as_deref() {
            Some("ceil") => (value * scale).ceil() / scale,
            Some("floor") => (value * scale).floor() / scale,
            // Of the exact value, ties to even, as Python rounds.
            _ => format!("{value:.precision$}").parse().unwrap_or(value),
        }
    });
    environment.add_filter("capitalize", |text: String| capitalize(&text));
    environment.add_filter("join", |values: &Value, separator: Option<String>, options: Kwargs| {
        let attribute: Option<String> = options.get("attribute")?;
        options.assert_all_used()?;
        let separator = separator.unwrap_or_default();
        let mut parts = Vec::new();
        for value in values.try_iter()? {
            parts.push(text(&attribute.as_deref().map_or(Ok(value.clone()), |name| value.get_attr(name))?));
        }
        Ok::<_, Error>(parts.join(&separator))
    });
    // Python's strings are sequences of characters.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment.add_test("iterable", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::String | ValueKind::Map)
    });
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> { Err(invalid(message)) });
    environment.add_function("strftime_now", move |format: &str| strftime(format, clock()));
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Seconds since 1970, in UTC.
pub(super) fn utc_seconds() -> i64 {
    #[cfg(feature = "gpu")]
    use web_time::{SystemTime, UNIX_EPOCH};

    #[cfg(not(feature = "gpu"))]
    use std::time::{SystemTime, UNIX_EPOCH};

    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A time in seconds since 1970, in C's notation. A directive that no template uses stays as it is.
fn strftime(format: &str, seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years from March, so that the leap day is the last one.
    let (era, day_of_era) = ((days + 719_468).div_euclid(146_097), (days + 719_468).rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let day_in_year = if month > 2 { day_of_year + 60 + i64::from(leap) } else { day_of_year - 305 };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let month_name = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
    let week_day = (days + 4).rem_euclid(7);
    let day_name = DAYS.get(week_day as usize).copied().unwrap_or_default();
    let short = |name: &'static str| name.get(..3).unwrap_or(name);
    let half = if hour % 12 == 0 { 12 } else { hour % 12 };

    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = characters.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = characters.next();
        }
        let number = |value: i64, width: usize| {
            if unpadded { value.to_string() } else { format!("{value:0width$}") }
        };
        out.push_str(&match directive {
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('m') => number(month, 2),
            Some('b' | 'h') => short(month_name).to_owned(),
            Some('B') => month_name.to_owned(),
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('j') => number(day_in_year, 3),
            Some('a') => short(day_name).to_owned(),
            Some('A') => day_name.to_owned(),
            Some('w') => number(week_day, 1),
            Some('u') => number((week_day + 6) % 7 + 1, 1),
            Some('H') => number(hour, 2),
            Some('I') => number(half, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('F') => format!("{year:04}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year % 100),
            Some('z') => "+0000".to_owned(),
            Some('Z') => "UTC".to_owned(),
            Some('s') => seconds.to_string(),
            Some('%') => "%".to_owned(),
            Some('n') => "\n".to_owned(),
            Some('t') => "\t".to_owned(),
            Some(other) => format!("%{}{other}", if unpadded { "-" } else { "" }),
            None => "%".to_owned(),
        });
    }
    out
}

/// Python's `str`.
fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_undefined() => String::new(),
        None => repr(value),
    }
}

/// Python's `repr`.
fn repr(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::Number => number(value),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq => format!("[{}]", items(value).iter().map(repr).collect::<Vec<_>>().join(", ")),
        ValueKind::Map => {
            let pairs = pairs(value).into_iter().map(|(key, value)| format!("{}: {}", repr(&key), repr(&value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        _ => value.to_string(),
    }
}

fn items(value: &Value) -> Vec<Value> {
    value.try_iter().map(Iterator::collect).unwrap_or_default()
}

fn pairs(value: &Value) -> Vec<(Value, Value)> {
    let pair = |key: Value| value.get_item(&key).map(|value| (key, value));
    items(value).into_iter().filter_map(|key| pair(key).ok()).collect()
}

/// An integer, or a float as Python writes it: with an exponent from 1e16 and below 1e-4.
fn number(value: &Value) -> String {
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

fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => _ = write!(out, "\\x{:02x}", c as u32),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// Python's `json.dumps` with the defaults of transformers' `tojson`.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let indent: Option<Value> = options.get("indent")?;
    let indent = indent.filter(|indent| !indent.is_none()).map(|indent| match indent.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(indent.as_usize().unwrap_or(0).min(64)),
    });
    let [item, key] = match separators.as_deref() {
        Some([item, key]) => [item.clone(), key.clone()],
        Some(_) => return Err(invalid("tojson: separators must be two strings")),
        None => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
    };
    let style = Style {
        item,
        key,
        indent,
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(out)
}

struct Style {
    item: String,
    key: String,
    indent: Option<String>,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Style {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > 64 {
            return Err(invalid("tojson: values are nested more than 64 deep"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&match number(value).as_str() {
                "nan" => "NaN".to_owned(),
                "inf" => "Infinity".to_owned(),
                "-inf" => "-Infinity".to_owned(),
                number => number.to_owned(),
            }),
            ValueKind::String => self.string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.list(out, ['[', ']'], items(value), depth, |out, value| self.write(out, value, depth + 1))?;
            }
            ValueKind::Map => {
                let mut pairs = pairs(value);
                if self.sort_keys {
                    pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.list(out, ['{', '}'], pairs, depth, |out, (key, value)| {
                    match key.as_str() {
                        Some(key) => self.string(out, key),
                        None => {
                            let mut text = String::new();
                            self.write(&mut text, key, depth + 1)?;
                            self.string(out, &text);
                        }
                    }
                    out.push_str(&self.key);
                    self.write(out, value, depth + 1)
                })?;
            }
            kind => return Err(invalid(format!("tojson: a value of type {kind} is not JSON"))),
        }
        Ok(())
    }

    fn list<T>(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        values: Vec<T>,
        depth: usize,
        each: impl Fn(&mut String, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = self.indent.as_ref().filter(|_| !values.is_empty()) {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(open);
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.item);
            }
            line(out, depth + 1);
            each(out, value)?;
        }
        line(out, depth);
        out.push(close);
        Ok(())
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map_or(String::new(), |first| first.to_uppercase().chain(characters.as_str().to_lowercase().chars()).collect())
}

/// Methods of strings that `minijinja_contrib` lacks or that it has for bytes; the others are its own.
fn string_method(state: &State, value: &Value, s: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let all = |test: fn(char) -> bool| !s.is_empty() && s.chars().all(test);
    // Python counts characters.
    let place = |byte: Option<usize>| byte.map_or(-1, |byte| s[..byte].chars().count() as i64);
    let three = |before: &str, separator: &str, after: &str| Value::from_iter([before, separator, after]);
    Ok(match method {
        "isspace" | "isalpha" | "isalnum" | "isdigit" | "isdecimal" | "isnumeric" => {
            let () = from_args(arguments)?;
            Value::from(all(match method {
                "isspace" => char::is_whitespace,
                "isalpha" => char::is_alphabetic,
                "isalnum" => char::is_alphanumeric,
                _ => char::is_numeric,
            }))
        }
        "islower" | "isupper" => {
            let () = from_args(arguments)?;
            let (upper, lower) = (s.chars().any(char::is_uppercase), s.chars().any(char::is_lowercase));
            Value::from(if method == "isupper" { upper && !lower } else { lower && !upper })
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (what,): (&str,) = from_args(arguments)?;
            let found = place(if method.starts_with('r') { s.rfind(what) } else { s.find(what) });
            if found < 0 && method.ends_with("index") {
                return Err(invalid("substring not found"));
            }
            Value::from(found)
        }
        "removeprefix" | "removesuffix" => {
            let (what,): (&str,) = from_args(arguments)?;
            let rest = if method == "removeprefix" { s.strip_prefix(what) } else { s.strip_suffix(what) };
            Value::from(rest.unwrap_or(s))
        }
        "partition" => {
            let (at,): (&str,) = from_args(arguments)?;
            s.split_once(at).map_or_else(|| three(s, "", ""), |(before, after)| three(before, at, after))
        }
        "rpartition" => {
            let (at,): (&str,) = from_args(arguments)?;
            s.rsplit_once(at).map_or_else(|| three("", "", s), |(before, after)| three(before, at, after))
        }
        "rsplit" => {
            let (separator, limit, options): (Option<&str>, Option<i64>, Kwargs) = from_args(arguments)?;
            let limit = options.get::<Option<i64>>("maxsplit")?.or(limit);
            options.assert_all_used()?;
            let count = limit.filter(|limit| *limit >= 0).map_or(usize::MAX, |limit| limit as usize + 1);
            let mut parts: Vec<&str> = match separator {
                Some("") => return Err(invalid("empty separator")),
                Some(separator) => s.rsplitn(count, separator).collect(),
                None if count == usize::MAX => s.split_whitespace().rev().collect(),
                None => return Err(invalid("rsplit with maxsplit needs a separator")),
            };
            parts.reverse();
            Value::from_iter(parts)
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(arguments)?;
            let mut lines = Vec::new();
            let mut rest = s;
            while let Some(end) = rest.find(['\n', '\r']) {
                let after = end + if rest[end..].starts_with("\r\n") { 2 } else { 1 };
                lines.push(&rest[..if keep == Some(true) { after } else { end }]);
                rest = &rest[after..];
            }
            lines.extend((!rest.is_empty()).then_some(rest));
            Value::from_iter(lines)
        }
        "title" => {
            let () = from_args(arguments)?;
            let mut in_word = false;
            let letter = |c: char| {
                let letter = if in_word { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
                in_word = c.is_alphabetic();
                letter
            };
            Value::from(s.chars().map(letter).collect::<String>())
        }
        "capitalize" => {
            let () = from_args(arguments)?;
            Value::from(capitalize(s))
        }
        "swapcase" | "casefold" => {
            let () = from_args(arguments)?;
            let swap =
                |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
            Value::from(if method == "casefold" { s.to_lowercase() } else { s.chars().map(swap).collect() })
        }
        "ljust" | "rjust" | "center" | "zfill" => {
            let (width, fill): (usize, Option<char>) = from_args(arguments)?;
            let missing = width.min(4096).saturating_sub(s.chars().count());
            let fill = fill.unwrap_or(if method == "zfill" { '0' } else { ' ' });
            let pad = |count: usize| String::from_iter(std::iter::repeat_n(fill, count));
            Value::from(match (method, s.strip_prefix(['-', '+'])) {
                ("ljust", _) => s.to_owned() + &pad(missing),
                ("zfill", Some(digits)) => s[..1].to_owned() + &pad(missing) + digits,
                ("center", _) => {
                    let left = missing / 2 + (missing & width & 1);
                    pad(left) + s + &pad(missing - left)
                }
                _ => pad(missing) + s,
            })
        }
        "join" => {
            let (values,): (&Value,) = from_args(arguments)?;
            Value::from(values.try_iter()?.map(|value| text(&value)).collect::<Vec<_>>().join(s))
        }
        _ => return minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments),
    })
}

fn other_method(state: &State, value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    match (value.kind(), method) {
        (ValueKind::Seq, "index") => {
            let (wanted,): (&Value,) = from_args(arguments)?;
            let place = items(value).iter().position(|item| item == wanted);
            place.map(Value::from).ok_or_else(|| invalid(format!("{} is not in the list", repr(wanted))))
        }
        (ValueKind::Seq | ValueKind::Map, "copy") => Ok(value.clone()),
        // transformers' environment is sandboxed: templates cannot change lists and dictionaries.
        (
            ValueKind::Seq | ValueKind::Map,
            "append" | "pop" | "extend" | "insert" | "remove" | "clear" | "update" | "setdefault" | "popitem" | "sort"
            | "reverse",
        ) => Err(invalid(format!("{method} would change a value, which templates may not do"))),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments),
    }
}
