//! Python's methods of strings.

use std::ops::Range;

use minijinja::{Error, ErrorKind, Value};

use super::format::braces;
use super::values::{Sequence, invalid, items, missing, printable, text, tuple};

/// The arguments of a call, by position or name.
pub(super) struct Arguments {
    values: Vec<Option<Value>>,
}

impl Arguments {
    #[inline(never)]
    pub(super) fn new(given: &[Value], names: &[&str]) -> Result<Self, Error> {
        let (positional, named) = split(given);
        if positional.len() > names.len() {
            return Err(invalid(format!("{} arguments, but at most {} are expected", positional.len(), names.len())));
        }
        let mut values: Vec<_> = positional.iter().cloned().map(Some).collect();
        values.resize(names.len(), None);
        for key in items(&named) {
            let place = names.iter().position(|name| key.as_str() == Some(name));
            let value = place.and_then(|place| values.get_mut(place));
            *value.ok_or_else(|| invalid(format!("unknown argument {key}")))? = Some(named.get_item(&key)?);
        }
        Ok(Self { values })
    }

    /// `None` if it is missing or none.
    #[inline(never)]
    pub(super) fn get(&self, at: usize) -> Option<&Value> {
        self.values.get(at)?.as_ref().filter(|value| !value.is_none() && !value.is_undefined())
    }

    #[inline(never)]
    pub(super) fn text(&self, at: usize) -> Result<Option<&str>, Error> {
        let Some(value) = self.get(at) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| invalid(format!("a string is required, not {}", value.kind())))
    }

    #[inline(never)]
    pub(super) fn integer(&self, at: usize) -> Result<Option<i64>, Error> {
        self.get(at).cloned().map(i64::try_from).transpose()
    }

    #[inline(never)]
    pub(super) fn flag(&self, at: usize) -> bool {
        self.get(at).is_some_and(Value::is_true)
    }

    /// The text of a required argument.
    #[inline(never)]
    fn needed(&self, at: usize) -> Result<&str, Error> {
        self.text(at)?.ok_or_else(missing)
    }

    /// The bytes of `text` between a start and an end that count characters, as in Python's slices; how many characters
    /// come before.
    #[inline(never)]
    fn range(&self, at: usize, text: &str) -> Result<Option<(Range<usize>, usize)>, Error> {
        let length = text.chars().count();
        let place =
            |place: i64| if place < 0 { length.saturating_sub(place.unsigned_abs() as usize) } else { place as usize };
        let start = self.integer(at)?.map_or(0, place);
        let end = self.integer(at + 1)?.map_or(length, place).min(length);
        Ok((start <= end).then(|| (byte(text, start)..byte(text, end), start)))
    }
}

#[inline(never)]
fn byte(text: &str, character: usize) -> usize {
    text.char_indices().nth(character).map_or(text.len(), |(byte, _)| byte)
}

/// Positional and keyword arguments.
pub(super) fn split(given: &[Value]) -> (&[Value], Value) {
    match given {
        [positional @ .., last] if last.is_kwargs() => (positional, last.clone()),
        _ => (given, Value::from(())),
    }
}

/// Python's white space, of which Rust's lacks four separators.
#[inline(never)]
pub(super) fn space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

#[inline(never)]
fn cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase()
}

/// Characters of the Unicode property `Numeric_Type=Digit` that are no decimal numbers.
const DIGITS: [(u32, u32); 20] = [
    (0xb2, 0xb3),
    (0xb9, 0xb9),
    (0x1369, 0x1371),
    (0x19da, 0x19da),
    (0x2070, 0x2070),
    (0x2074, 0x2079),
    (0x2080, 0x2089),
    (0x2460, 0x2468),
    (0x2474, 0x247c),
    (0x2488, 0x2490),
    (0x24ea, 0x24ea),
    (0x24f5, 0x24fd),
    (0x24ff, 0x24ff),
    (0x2776, 0x277e),
    (0x2780, 0x2788),
    (0x278a, 0x2792),
    (0x10a40, 0x10a43),
    (0x10e60, 0x10e68),
    (0x11052, 0x1105a),
    (0x1f100, 0x1f10a),
];

/// Chinese numerals, which Unicode counts as letters.
const NUMERALS: &str = "㐅㒃㠪㭍一七万三九二五亖亿什仟仨伍佰億兆兩八六十千卄卅卌叁参參叄四壱壹幺廾廿弌弍弎弐拾捌柒漆玖百肆萬貮貳贰阡陆陌陸\
                        零\u{f96b}\u{f973}\u{f978}\u{f9b2}\u{f9d1}\u{f9d3}\u{f9fd}𠀁𠁤𠃢𠄡𠤪𠦃𠦌𠦜𠫪𠫽𠬙𢎐𢦘𣬛𦉭\u{2f890}";

/// Whether all characters are digits, of decimal numbers only or of others, too.
#[inline(never)]
fn digits(s: &str, others: bool) -> bool {
    let other = |c: char| others && DIGITS.iter().any(|(first, last)| (*first..=*last).contains(&u32::from(c)));
    let decimals: String = s.chars().filter(|c| !other(*c)).collect();
    !s.is_empty() && regex::Regex::new(r"^\d*$").is_ok_and(|decimal| decimal.is_match(&decimals))
}

#[inline(never)]
pub(super) fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(initial).unwrap_or_default() + &characters.as_str().to_lowercase()
}

/// A letter at the start of a word: of several, such as those of ß, one is upper case.
#[inline(never)]
fn initial(c: char) -> String {
    let mut upper = String::new();
    for c in c.to_uppercase() {
        let lower = upper.chars().any(cased);
        upper += &if lower { c.to_lowercase().to_string() } else { c.to_string() };
    }
    upper
}

#[inline(never)]
pub(super) fn trim<'a>(s: &'a str, characters: Option<&str>, [left, right]: [bool; 2]) -> &'a str {
    let removed = |c: char| characters.map_or_else(|| space(c), |characters| characters.contains(c));
    let s = if left { s.trim_start_matches(removed) } else { s };
    if right { s.trim_end_matches(removed) } else { s }
}

/// In the middle of `width` characters, as Python and Jinja do.
#[inline(never)]
pub(super) fn center(s: &str, width: i64, fill: char) -> String {
    let missing = (width.clamp(0, 4096) as usize).saturating_sub(s.chars().count());
    let left = missing / 2 + (missing & width as usize & 1);
    repeat(fill, left) + s + &repeat(fill, missing - left)
}

#[inline(never)]
fn repeat(fill: char, count: usize) -> String {
    std::iter::repeat_n(fill, count).collect()
}

/// The parts between white space, at most `limit` times, from the left or the right.
#[inline(never)]
fn words(s: &str, limit: usize, right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = trim(s, None, [!right, right]);
    while !rest.is_empty() && parts.len() < limit {
        let at = if right { rest.rfind(space) } else { rest.find(space) };
        let Some(at) = at else { break };
        // Trimmed below.
        let (before, after) = rest.split_at(at);
        parts.push(if right { trim(after, None, [true, false]) } else { before });
        rest = if right { trim(before, None, [false, true]) } else { trim(after, None, [true, false]) };
    }
    parts.extend((!rest.is_empty()).then_some(rest));
    parts
}

#[inline(never)]
fn lines(s: &str, keep: bool) -> Vec<&str> {
    let ends = |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = s;
    while let Some(end) = rest.find(ends) {
        let length =
            if rest[end..].starts_with("\r\n") { 2 } else { rest[end..].chars().next().map_or(1, char::len_utf8) };
        lines.push(&rest[..if keep { end + length } else { end }]);
        rest = &rest[end + length..];
    }
    lines.extend((!rest.is_empty()).then_some(rest));
    lines
}

/// The names of a method's arguments.
fn names(method: &str) -> Option<&'static [&'static str]> {
    Some(match method {
        "upper" | "lower" | "title" | "capitalize" | "swapcase" | "casefold" => &[],
        method if method.starts_with("is") => &[],
        "strip" | "lstrip" | "rstrip" => &["chars"],
        "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith" => &["sub", "start", "end"],
        "replace" => &["old", "new", "count"],
        "removeprefix" | "removesuffix" | "partition" | "rpartition" => &["sub"],
        "split" | "rsplit" => &["sep", "maxsplit"],
        "splitlines" => &["keepends"],
        "expandtabs" => &["tabsize"],
        "ljust" | "rjust" | "center" => &["width", "fillchar"],
        "zfill" => &["width"],
        "join" | "format_map" => &["values"],
        _ => return None,
    })
}

/// A method of a string.
pub(super) fn method(s: &str, method: &str, given: &[Value]) -> Result<Value, Error> {
    if method == "format" {
        let (positional, named) = split(given);
        return braces(s, positional, &named).map(Value::from);
    }
    let names = names(method).ok_or_else(|| Error::from(ErrorKind::UnknownMethod))?;
    let arguments = Arguments::new(given, names)?;
    let all = |test: fn(char) -> bool| !s.is_empty() && s.chars().all(test);
    let right = method.starts_with('r');
    Ok(match method {
        "upper" => Value::from(s.to_uppercase()),
        "lower" => Value::from(s.to_lowercase()),
        "isspace" => Value::from(all(space)),
        "isalpha" => Value::from(all(|c| c.is_alphabetic() && !c.is_numeric())),
        "isalnum" => Value::from(all(char::is_alphanumeric)),
        "isdigit" => Value::from(digits(s, true)),
        "isdecimal" => Value::from(digits(s, false)),
        "isnumeric" => Value::from(all(|c| c.is_numeric() || NUMERALS.contains(c))),
        "isascii" => Value::from(s.is_ascii()),
        "isprintable" => Value::from(s.chars().all(printable)),
        "isidentifier" => {
            let first = s.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
            Value::from(first && all(|c| c.is_alphanumeric() || c == '_'))
        }
        "islower" | "isupper" => {
            let (upper, lower) = (s.chars().any(char::is_uppercase), s.chars().any(char::is_lowercase));
            Value::from(if method == "isupper" { upper && !lower } else { lower && !upper })
        }
        "istitle" => Value::from(s.chars().any(cased) && title(s) == s),
        "title" => Value::from(title(s)),
        "capitalize" => Value::from(capitalize(s)),
        "swapcase" => {
            let swap =
                |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
            Value::from(s.chars().map(swap).collect::<String>())
        }
        "casefold" => {
            // Such as ß, which is two letters.
            let fold =
                |c: char| if c.to_uppercase().count() > 1 { c.to_uppercase().to_string() } else { c.to_string() };
            Value::from(s.chars().map(fold).collect::<String>().to_lowercase())
        }
        "strip" => Value::from(trim(s, arguments.text(0)?, [true, true])),
        "lstrip" => Value::from(trim(s, arguments.text(0)?, [true, false])),
        "rstrip" => Value::from(trim(s, arguments.text(0)?, [false, true])),
        "find" | "rfind" | "index" | "rindex" => {
            let what = arguments.needed(0)?;
            let found = arguments.range(1, s)?.and_then(|(range, before)| {
                let part = &s[range];
                let at = if right { part.rfind(what) } else { part.find(what) }?;
                Some(before + part[..at].chars().count())
            });
            match found {
                Some(place) => Value::from(place),
                None if method.ends_with("index") => return Err(invalid("substring not found")),
                None => Value::from(-1),
            }
        }
        "count" => {
            let what = arguments.needed(0)?;
            Value::from(arguments.range(1, s)?.map_or(0, |(range, _)| s[range].matches(what).count()))
        }
        "startswith" | "endswith" => {
            let wanted = arguments.get(0).ok_or_else(missing)?;
            let alternatives = Sequence::of_tuple(wanted).unwrap_or(std::slice::from_ref(wanted));
            let part = arguments.range(1, s)?.map(|(range, _)| &s[range]);
            let mut found = false;
            for affix in alternatives {
                let affix = affix.as_str().ok_or_else(|| invalid(format!("{method} needs a string or a tuple")))?;
                found |= part.is_some_and(|part| match method {
                    "startswith" => part.starts_with(affix),
                    _ => part.ends_with(affix),
                });
            }
            Value::from(found)
        }
        "replace" => {
            let (old, new) = (arguments.needed(0)?, arguments.needed(1)?);
            Value::from(replace(s, old, new, arguments.integer(2)?))
        }
        "removeprefix" => Value::from(s.strip_prefix(arguments.needed(0)?).unwrap_or(s)),
        "removesuffix" => Value::from(s.strip_suffix(arguments.needed(0)?).unwrap_or(s)),
        "partition" | "rpartition" => {
            let at = arguments.needed(0)?;
            let texts = |texts: [&str; 3]| tuple(texts.map(Value::from).to_vec());
            let parts = if right { s.rsplit_once(at) } else { s.split_once(at) };
            match parts {
                Some((before, after)) => texts([before, at, after]),
                None if right => texts(["", "", s]),
                None => texts([s, "", ""]),
            }
        }
        "split" | "rsplit" => {
            let limit = arguments.integer(1)?.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
            let mut parts: Vec<&str> = match arguments.text(0)? {
                Some("") => return Err(invalid("empty separator")),
                None => words(s, limit, right),
                Some(separator) if right => s.rsplitn(limit.saturating_add(1), separator).collect(),
                Some(separator) => s.splitn(limit.saturating_add(1), separator).collect(),
            };
            if right {
                parts.reverse();
            }
            Value::from_iter(parts)
        }
        "splitlines" => Value::from_iter(lines(s, arguments.flag(0))),
        "expandtabs" => {
            let size = arguments.integer(0)?.unwrap_or(8).clamp(0, 64) as usize;
            let mut output = String::new();
            let mut column = 0;
            for c in s.chars() {
                let width = if c == '\t' { size - column % size.max(1) } else { 1 };
                output += &if c == '\t' { repeat(' ', width.min(size)) } else { c.to_string() };
                column = if matches!(c, '\n' | '\r') { 0 } else { column + width };
            }
            Value::from(output)
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let width = arguments.integer(0)?.ok_or_else(missing)?;
            let fill = arguments.text(1)?.and_then(|fill| fill.chars().next()).unwrap_or(' ');
            let missing = (width.clamp(0, 4096) as usize).saturating_sub(s.chars().count());
            Value::from(match method {
                "center" => center(s, width, fill),
                "ljust" => s.to_owned() + &repeat(fill, missing),
                "rjust" => repeat(fill, missing) + s,
                _ => {
                    let (sign, digits) = s.split_at(usize::from(s.starts_with(['-', '+'])));
                    sign.to_owned() + &repeat('0', missing) + digits
                }
            })
        }
        "join" => {
            let values = arguments.get(0).ok_or_else(missing)?;
            Value::from(values.try_iter()?.map(|value| text(&value)).collect::<Vec<_>>().join(s))
        }
        "format_map" => Value::from(braces(s, &[], arguments.get(0).unwrap_or(&Value::UNDEFINED))?),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

#[inline(never)]
pub(super) fn replace(s: &str, old: &str, new: &str, count: Option<i64>) -> String {
    match count.and_then(|count| usize::try_from(count).ok()) {
        Some(count) => s.replacen(old, new, count),
        None => s.replace(old, new),
    }
}

#[inline(never)]
fn title(s: &str) -> String {
    let mut in_word = false;
    let letter = |c: char| {
        let letter = if in_word { c.to_lowercase().to_string() } else { initial(c) };
        in_word = cased(c);
        letter
    };
    s.chars().map(letter).collect()
}
