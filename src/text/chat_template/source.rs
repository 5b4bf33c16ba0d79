//! Rewrites of a template's source for what minijinja has no syntax for.

use std::borrow::Cow;

/// A template that minijinja compiles. Lines keep their numbers.
pub(super) fn adapt(source: &str) -> String {
    let mut rest = source;
    let mut output = String::with_capacity(source.len());
    while let Some(start) = rest.find(['{']) {
        let (before, tag) = rest.split_at(start);
        output.push_str(before);
        let Some((open, close)) =
            [("{{", "}}"), ("{%", "%}"), ("{#", "#}")].into_iter().find(|(o, _)| tag.starts_with(o))
        else {
            output.push('{');
            rest = &tag[1..];
            continue;
        };
        let inside = &tag[2..];
        let Some(length) = end_of(inside, close) else {
            rest = tag;
            break;
        };
        let code = &inside[..length];
        output.push_str(open);
        output.push_str(&match open {
            "{#" => Cow::Borrowed(code),
            "{%" => Cow::Owned(generation_mark(code).unwrap_or_else(|| formats(code))),
            _ => Cow::Owned(formats(code)),
        });
        output.push_str(close);
        rest = &inside[length + 2..];
    }
    output + rest
}

/// The length of the code before `close`, which may be in a string, but not of a comment.
fn end_of(code: &str, close: &str) -> Option<usize> {
    if close == "#}" {
        return code.find(close);
    }
    let mut at = 0;
    while let Some(c) = code[at..].chars().next() {
        match c {
            '"' | '\'' => at += string_length(&code[at..])?,
            _ if code[at..].starts_with(close) => return Some(at),
            _ => at += c.len_utf8(),
        }
    }
    None
}

/// Bytes of the string literal that `code` begins with.
fn string_length(code: &str) -> Option<usize> {
    let quote = code.chars().next()?;
    let mut escaped = false;
    for (at, c) in code.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// transformers marks the assistant's part with `{% generation %}` for training. It prints nothing, but like any block
/// it trims the white space around it.
fn generation_mark(code: &str) -> Option<String> {
    match code.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace()) {
        "endgeneration" => Some(code.replace("endgeneration", "endif")),
        "generation" => Some(code.replace("generation", "if true")),
        _ => None,
    }
}

/// Replaces Python's `'…' % value` by `'…'|format(value)`.
fn formats(code: &str) -> String {
    let mut output = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(start) = rest.find(['"', '\'']) {
        let Some(length) = string_length(&rest[start..]) else { break };
        let (before, after) = rest.split_at(start + length);
        output.push_str(before);
        rest = after;
        let Some(value) = after.trim_start().strip_prefix('%') else { continue };
        let value = value.trim_start();
        let Some(length) = operand_length(value).filter(|length| *length > 0) else { continue };
        let (value, after) = value.split_at(length);
        // A tuple's items are the arguments.
        let arguments = value.strip_prefix('(').and_then(|value| value.strip_suffix(')'));
        let arguments = arguments.filter(|_| bracket_length(value) == Some(value.len())).unwrap_or(value);
        output.push_str(&format!("|format({})", formats(arguments)));
        rest = after;
    }
    output + rest
}

/// Bytes of a literal, a name or a bracketed expression, with attributes, subscripts, calls and filters.
fn operand_length(code: &str) -> Option<usize> {
    let name = |code: &str| code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len());
    let mut at = match code.chars().next()? {
        '(' | '[' | '{' => bracket_length(code)?,
        '"' | '\'' => string_length(code)?,
        _ => name(code),
    };
    loop {
        let rest = &code[at..];
        at += match rest.chars().next() {
            Some('(' | '[') => bracket_length(rest)?,
            Some('.') => 1 + name(&rest[1..]),
            _ => match rest.trim_start().strip_prefix('|') {
                Some(filter) => {
                    let filter = filter.trim_start();
                    rest.len() - filter.len() + name(filter)
                }
                None => return Some(at),
            },
        };
    }
}

/// Bytes of the bracketed expression that `code` begins with.
fn bracket_length(code: &str) -> Option<usize> {
    let (mut at, mut depth) = (0, 0usize);
    while let Some(c) = code[at..].chars().next() {
        match c {
            '"' | '\'' => {
                at += string_length(&code[at..])?;
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        at += c.len_utf8();
        if depth == 0 {
            return Some(at);
        }
    }
    None
}
