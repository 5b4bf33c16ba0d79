//! Python's formats: `'…' % values`, `'…'.format(…)`.

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::values::{Sequence, invalid, repr, text};

/// Widest field and most digits.
const WIDEST: usize = 4096;

/// How a value is written.
#[derive(Debug, Default, Clone, Copy)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    /// `#`
    alternate: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    /// Its letter; `None` is Python's `str`, of a number its own format.
    kind: Option<char>,
}

impl Spec {
    fn integer(self, value: i128) -> Result<String, Error> {
        let digits = value.unsigned_abs();
        let (prefix, digits) = match self.kind {
            Some('x') => ("0x", format!("{digits:x}")),
            Some('X') => ("0X", format!("{digits:X}")),
            Some('o') => ("0o", format!("{digits:o}")),
            Some('b') => ("0b", format!("{digits:b}")),
            Some('c') => {
                let c = u32::try_from(value).ok().and_then(char::from_u32);
                return self.pad("", c.ok_or_else(|| invalid("%c needs a character"))?.to_string(), '<');
            }
            Some('d' | 'n') | None => ("", digits.to_string()),
            Some(kind) => return Err(unknown(kind)),
        };
        let digits = format!("{digits:0>width$}", width = self.precision.unwrap_or(0));
        let prefix = if self.alternate { prefix } else { "" };
        self.pad(&(self.sign_of(value < 0) + prefix), digits, '>')
    }

    fn float(self, value: f64) -> Result<String, Error> {
        let precision = self.precision.unwrap_or(6);
        let kind = self.kind.unwrap_or('g');
        let (magnitude, digits) = (value.abs(), precision.max(1));
        let exponent = || {
            let text = format!("{magnitude:.*e}", digits - 1);
            text.rsplit_once('e').and_then(|(_, exponent)| exponent.parse::<i64>().ok()).unwrap_or(0)
        };
        let scientific = |decimals: usize| {
            let text = format!("{magnitude:.decimals$e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
            (digits.to_owned(), format!("e{sign}{exponent:0>2}"))
        };
        let trim = |text: String| match text.contains('.') && !self.alternate {
            true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            false => text,
        };
        let written = match kind.to_ascii_lowercase() {
            _ if !magnitude.is_finite() => if magnitude.is_nan() { "nan" } else { "inf" }.to_owned(),
            'f' => format!("{magnitude:.precision$}"),
            '%' => format!("{:.precision$}%", magnitude * 100.0),
            'e' => {
                let (digits, exponent) = scientific(precision);
                digits + &exponent
            }
            'g' | 'n' => match exponent() {
                exponent if (-4..digits as i64).contains(&exponent) => {
                    let fixed = trim(format!("{magnitude:.*}", (digits as i64 - 1 - exponent) as usize));
                    if self.kind.is_none() && !fixed.contains('.') { fixed + ".0" } else { fixed }
                }
                _ => {
                    let (digits, exponent) = scientific(digits - 1);
                    trim(digits) + &exponent
                }
            },
            _ => return Err(unknown(kind)),
        };
        let written = if kind.is_ascii_uppercase() { written.to_uppercase() } else { written };
        self.pad(&self.sign_of(value.is_sign_negative()), written, '>')
    }

    fn sign_of(self, negative: bool) -> String {
        if negative {
            "-".to_owned()
        } else {
            self.sign.filter(|sign| *sign != '-').map(String::from).unwrap_or_default()
        }
    }

    /// `prefix`: sign and base.
    fn pad(self, prefix: &str, mut body: String, align: char) -> Result<String, Error> {
        let align = self.align.unwrap_or(align);
        let fill = self.fill.unwrap_or(' ');
        if let Some(comma) = self.grouping {
            let end = body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len());
            let group = |digits: &str| {
                let mut grouped = String::new();
                for (at, digit) in digits.chars().enumerate() {
                    grouped.extend((at > 0 && (digits.len() - at).is_multiple_of(3)).then_some(comma));
                    grouped.push(digit);
                }
                grouped
            };
            let (digits, rest) = body.split_at(end);
            let mut digits = digits.to_owned();
            // Zeros are grouped, too.
            let full = |digits: &str| prefix.len() + group(digits).len() + rest.len() >= self.width;
            while align == '=' && fill == '0' && !full(&digits) {
                digits.insert(0, '0');
            }
            body = group(&digits) + rest;
        }
        let missing = self.width.saturating_sub(prefix.chars().count() + body.chars().count());
        let pad = |count: usize| String::from_iter(std::iter::repeat_n(fill, count));
        Ok(match align {
            '<' => format!("{prefix}{body}{}", pad(missing)),
            '^' => format!("{}{prefix}{body}{}", pad(missing / 2), pad(missing - missing / 2)),
            '=' => format!("{prefix}{}{body}", pad(missing)),
            _ => format!("{}{prefix}{body}", pad(missing)),
        })
    }

    fn text(self, text: &str, align: char) -> Result<String, Error> {
        self.pad("", text.chars().take(self.precision.unwrap_or(usize::MAX)).collect(), align)
    }
}

fn unknown(kind: char) -> Error {
    invalid(format!("unknown format {kind:?}"))
}

fn limited(number: Option<usize>) -> Result<usize, Error> {
    number.filter(|number| *number <= WIDEST).ok_or_else(|| invalid("a format is too wide"))
}

fn float_of(value: &Value) -> Result<f64, Error> {
    if value.kind() == ValueKind::Bool { Ok(f64::from(value.is_true())) } else { value.clone().try_into() }
}

fn integer_of(value: &Value) -> Result<i128, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(i128::from(value.is_true())),
        ValueKind::Number if !value.is_integer() => Ok(float_of(value)? as i128),
        ValueKind::Number => value.clone().try_into(),
        kind => Err(invalid(format!("a number is required, not {kind}"))),
    }
}

/// Python's `format % values`. A tuple has several values, a dictionary names them.
pub(super) fn percent(format: &str, values: &Value) -> Result<String, Error> {
    let one = [values.clone()];
    let mut unused = Sequence::of_tuple(values).unwrap_or(&one).iter();
    let mut next = || unused.next().ok_or_else(|| invalid("not enough arguments for format string"));
    let mut output = String::new();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        output.push_str(before);
        rest = after;
        let mut named = None;
        if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            named = Some(values.get_item(&Value::from(name))?);
            rest = after;
        }
        let mut spec = Spec::default();
        let mut zero = false;
        while let Some(flag) = rest.chars().next().filter(|c| "-0+ #".contains(*c)) {
            match flag {
                '-' => spec.align = Some('<'),
                '0' => zero = true,
                '#' => spec.alternate = true,
                sign => spec.sign = spec.sign.filter(|found| *found == '+').or(Some(sign)),
            }
            rest = &rest[1..];
        }
        let mut count = |rest: &mut &str| {
            if let Some(after) = rest.strip_prefix('*') {
                *rest = after;
                return Ok::<_, Error>(next()?.as_i64());
            }
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let number = if digits == 0 { Some(0) } else { rest[..digits].parse().ok() };
            *rest = &rest[digits..];
            Ok(number)
        };
        let width = count(&mut rest)?;
        if width < Some(0) {
            spec.align = Some('<');
        }
        spec.width = limited(width.map(|width| width.unsigned_abs() as usize))?;
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            let precision = count(&mut rest)?;
            spec.precision = Some(limited(precision.map(|precision| precision.max(0) as usize))?);
        }
        let Some(kind) = rest.chars().next() else { return Err(invalid("incomplete format")) };
        rest = &rest[kind.len_utf8()..];
        if kind == '%' {
            output.push('%');
            continue;
        }
        let value = named.map_or_else(|| next().cloned(), Ok)?;
        if zero && spec.align.is_none() && !"srac".contains(kind) {
            (spec.fill, spec.align) = (Some('0'), Some('='));
        }
        spec.kind = Some(kind);
        output += &match kind {
            's' => spec.text(&text(&value), '>'),
            'r' | 'a' => spec.text(&repr(&value), '>'),
            'c' if value.as_str().is_some() => spec.text(&text(&value), '>'),
            'd' | 'i' | 'u' => Spec { kind: None, ..spec }.integer(integer_of(&value)?),
            'x' | 'X' | 'o' | 'c' => spec.integer(integer_of(&value)?),
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => spec.float(float_of(&value)?),
            kind => Err(unknown(kind)),
        }?;
    }
    if unused.next().is_some() && values.kind() == ValueKind::Seq && Sequence::of_tuple(values).is_some() {
        return Err(invalid("not all arguments converted during string formatting"));
    }
    Ok(output + rest)
}

/// Python's `format(value, spec)`.
fn formatted(value: &Value, spec: &str) -> Result<String, Error> {
    let mut found = Spec::default();
    let mut rest = spec;
    let is_align = |c: &char| "<>=^".contains(*c);
    let mut start = rest.chars();
    match (start.next(), start.next()) {
        (fill, Some(align)) if is_align(&align) => {
            (found.fill, found.align) = (fill, Some(align));
            rest = start.as_str();
        }
        (Some(align), _) if is_align(&align) => {
            found.align = Some(align);
            rest = &rest[1..];
        }
        _ => {}
    }
    let flag = |rest: &mut &str, flags: &str| {
        let flag = rest.chars().next().filter(|c| flags.contains(*c));
        *rest = &rest[flag.map_or(0, char::len_utf8)..];
        flag
    };
    let number = |rest: &mut &str| {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number = limited(if digits == 0 { Some(0) } else { rest[..digits].parse().ok() });
        *rest = &rest[digits..];
        number
    };
    found.sign = flag(&mut rest, "+- ");
    found.alternate = flag(&mut rest, "#").is_some();
    let is_number = matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if flag(&mut rest, "0").is_some() {
        found.fill = found.fill.or(Some('0'));
        found.align = found.align.or(Some(if is_number { '=' } else { '<' }));
    }
    found.width = number(&mut rest)?;
    found.grouping = flag(&mut rest, ",_");
    if flag(&mut rest, ".").is_some() {
        found.precision = Some(number(&mut rest)?);
    }
    let mut kinds = rest.chars();
    found.kind = kinds.next();
    if kinds.next().is_some() {
        return Err(invalid(format!("invalid format {spec:?}")));
    }
    match (value.kind(), found.kind) {
        (ValueKind::Number | ValueKind::Bool, Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')) => {
            found.float(float_of(value)?)
        }
        (ValueKind::Bool, None) if spec.is_empty() => Ok(text(value)),
        (ValueKind::Bool, _) => found.integer(integer_of(value)?),
        (ValueKind::Number, _) if value.is_integer() => found.integer(integer_of(value)?),
        (ValueKind::Number, None) if found.precision.is_none() => {
            let written = text(value);
            let digits = written.trim_start_matches('-');
            found.pad(&found.sign_of(digits.len() < written.len()), digits.to_owned(), '>')
        }
        (ValueKind::Number, None) => found.float(float_of(value)?),
        (ValueKind::String, None | Some('s')) => found.text(&text(value), '<'),
        (_, None) if spec.is_empty() => Ok(text(value)),
        (kind, _) => Err(invalid(format!("invalid format {spec:?} for a value of type {kind}"))),
    }
}

/// Python's `format.format(…)`.
pub(super) fn braces(format: &str, positional: &[Value], named: &Value) -> Result<String, Error> {
    Fields { positional, named, next: 0 }.fill(format, 2)
}

struct Fields<'a> {
    positional: &'a [Value],
    named: &'a Value,
    next: usize,
}

impl Fields<'_> {
    /// `depth`: a field's format may have fields, but theirs may not.
    fn fill(&mut self, format: &str, depth: usize) -> Result<String, Error> {
        let mut output = String::new();
        let mut rest = format;
        while let Some(at) = rest.find(['{', '}']) {
            output.push_str(&rest[..at]);
            let (brace, after) = rest[at..].split_at(1);
            if after.starts_with(brace) {
                output.push_str(brace);
                rest = &after[1..];
                continue;
            }
            let mut open = 1usize;
            let end = after.find(|c| {
                open = match c {
                    '{' => open + 1,
                    '}' => open - 1,
                    _ => open,
                };
                open == 0
            });
            let end = end.filter(|_| brace == "{" && depth > 0).ok_or_else(|| invalid("a single brace in a format"))?;
            let (field, spec) = after[..end].split_once(':').unwrap_or((&after[..end], ""));
            rest = &after[end + 1..];
            let (name, conversion) = field.split_once('!').unwrap_or((field, ""));
            let value = self.value(name)?;
            let spec = self.fill(spec, depth - 1)?;
            let converted = match conversion {
                "" => value,
                "s" => Value::from(text(&value)),
                "r" | "a" => Value::from(repr(&value)),
                _ => return Err(invalid(format!("unknown conversion {conversion:?}"))),
            };
            output += &formatted(&converted, &spec)?;
        }
        Ok(output + rest)
    }

    fn value(&mut self, name: &str) -> Result<Value, Error> {
        let (first, mut rest) = name.split_at(name.find(['.', '[']).unwrap_or(name.len()));
        let index = if first.is_empty() { Some(self.next) } else { first.parse::<usize>().ok() };
        self.next += usize::from(first.is_empty());
        let found = match index {
            Some(index) => self.positional.get(index).cloned(),
            None => self.named.get_item(&Value::from(first)).ok().filter(|value| !value.is_undefined()),
        };
        let mut value = found.ok_or_else(|| invalid(format!("the format's field {name:?} has no value")))?;
        while let Some(step) = rest.get(1..) {
            let end = step.find(if rest.starts_with('[') { &[']'] as &[char] } else { &['.', '['] });
            let (key, after) = step.split_at(end.unwrap_or(step.len()));
            value = match key.parse::<usize>() {
                Ok(index) => value.get_item(&Value::from(index))?,
                Err(_) => value.get_item(&Value::from(key))?,
            };
            rest = after.strip_prefix(']').unwrap_or(after);
        }
        Ok(value)
    }
}
