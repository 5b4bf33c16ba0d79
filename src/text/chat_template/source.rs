//! Rewrites of a template's source for what minijinja has no syntax for, or computes differently from Python.

/// Names of the functions that compute operators.
pub(super) const TUPLE: &str = "_mgm_tuple";
pub(super) const CONCATENATE: &str = "_mgm_concatenate";
pub(super) const MODULO: &str = "_mgm_modulo";
pub(super) const FLOOR_DIVIDE: &str = "_mgm_floor_divide";
pub(super) const POWER: &str = "_mgm_power";
pub(super) const SLICE: &str = "_mgm_slice";
/// Returns its argument: keeps minijinja from computing `0 and 1` when it compiles.
pub(super) const SAME: &str = "_mgm_same";

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
        let (code, after) = inside.split_at(length);
        rest = &after[2..];
        // White space control is no operator.
        let marks: &[char] = &['-', '+'];
        let (first, last) = (code.starts_with(marks), code.len() > 1 && code.ends_with(marks));
        let (first, code) = code.split_at(usize::from(first));
        let (code, last) = code.split_at(code.len() - usize::from(last && !code.is_empty()));
        let code = match open {
            "{#" => code.to_owned(),
            "{%" => statement(code),
            _ => Code::new(code).value(),
        };
        output.extend([open, first, &code, last, close]);
        if open == "{%" && code.trim() == "raw" {
            let length = rest.find("endraw").unwrap_or(rest.len());
            output.push_str(&rest[..length]);
            rest = &rest[length..];
        }
    }
    output + rest
}

#[inline(never)]
fn statement(code: &str) -> String {
    let name = code.trim_start();
    let name = &name[..word_length(name)];
    // transformers marks the assistant's part with `{% generation %}` for training. It prints nothing, but like any
    // block it trims the white space around it.
    match code.trim() {
        "endgeneration" => return code.replace("endgeneration", "endif"),
        "generation" => return code.replace("generation", "if true"),
        _ => {}
    }
    let mut rest = Code::new(code);
    let mut output = rest.take_space() + rest.take(name.len());
    // What is assigned to stays as it is.
    let end = match name {
        "for" => Some("in"),
        "set" => Some("="),
        "call" => Some(")"),
        _ => None,
    };
    while let Some(end) = end.filter(|_| !rest.text.is_empty()) {
        output += &rest.take_space();
        if name == "call" && !output.contains('(') && !rest.text.starts_with('(') {
            break;
        }
        let token = rest.take(rest.token());
        output += token;
        if token == end {
            break;
        }
    }
    output + &if name == "set" { rest.value() } else { rest.all() }
}

/// The length of the code before `close`, which may be in a string, but not of a comment.
fn end_of(code: &str, close: &str) -> Option<usize> {
    if close == "#}" {
        return code.find(close);
    }
    let (mut at, mut depth) = (0, 0usize);
    while let Some(c) = code[at..].chars().next() {
        match c {
            '"' | '\'' => {
                at += string_length(&code[at..])?;
                continue;
            }
            _ if depth == 0 && code[at..].starts_with(close) => return Some(at),
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += c.len_utf8();
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

/// Replaces the escape sequences of a string literal that minijinja lacks.
#[inline(never)]
fn escapes(literal: &str) -> String {
    let mut output = String::with_capacity(literal.len());
    let mut rest = literal;
    while let Some((before, after)) = rest.split_once('\\') {
        output.push_str(before);
        let code = after.get(1..9).filter(|_| after.starts_with('U'));
        let long = code.and_then(|code| char::from_u32(u32::from_str_radix(code, 16).ok()?));
        let (c, length) = match (after.chars().next(), long) {
            (_, Some(c)) => (Some(c).filter(|c| !"\"'\\".contains(*c)), 9),
            (Some('a'), _) => (Some('\x07'), 1),
            (Some('v'), _) => (Some('\x0b'), 1),
            (next, _) => (None, next.map_or(0, char::len_utf8)),
        };
        match c {
            Some(c) => output.push(c),
            None => output.extend(["\\", &after[..length]]),
        }
        rest = &after[length..];
    }
    output + rest
}

#[inline(never)]
fn word_length(code: &str) -> usize {
    code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len())
}

/// Words between operands.
const KEYWORDS: [&str; 9] = ["and", "or", "not", "in", "is", "if", "else", "elif", "recursive"];

/// Deepest brackets, and longest chain of operators, that are rewritten. minijinja refuses deeper ones.
const DEPTH: usize = 100;

/// A part of a tag, parsed with the precedences of Jinja. Each method returns the rewritten text of what it consumes.
struct Code<'a> {
    text: &'a str,
    depth: usize,
}

impl<'a> Code<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, depth: 0 }
    }

    #[inline(never)]
    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.text.split_at(length);
        self.text = rest;
        taken
    }

    #[inline(never)]
    fn take_space(&mut self) -> String {
        self.take(self.text.len() - self.text.trim_start().len()).to_owned()
    }

    fn next(&self) -> &'a str {
        self.text.trim_start()
    }

    /// Bytes of the next token, without white space before it.
    #[inline(never)]
    fn token(&self) -> usize {
        let text = self.text;
        let Some(first) = text.chars().next() else { return 0 };
        match first {
            '"' | '\'' => string_length(text).unwrap_or(text.len()),
            c if c.is_ascii_digit() => {
                let mut length = word_length(text);
                if text[length..].starts_with('.') && text[length + 1..].starts_with(|c: char| c.is_ascii_digit()) {
                    length += 1 + word_length(&text[length + 1..]);
                }
                if text[..length].ends_with(['e', 'E']) && text[length..].starts_with(['-', '+']) {
                    length += 1 + word_length(&text[length + 1..]);
                }
                length
            }
            c if c.is_alphanumeric() || c == '_' => word_length(text),
            _ if ["==", "!=", "<=", ">=", "**", "//"].iter().any(|operator| text.starts_with(operator)) => 2,
            c => c.len_utf8(),
        }
    }

    #[inline(never)]
    fn keyword(&self) -> Option<&'static str> {
        let word = self.next();
        let word = &word[..word_length(word)];
        KEYWORDS.into_iter().find(|keyword| *keyword == word)
    }

    fn all(mut self) -> String {
        self.list().0 + self.text
    }

    /// Of one value: commas make it a tuple.
    fn value(mut self) -> String {
        let (value, comma) = self.list();
        if comma { call(TUPLE, [value]) } else { value + self.text }
    }

    fn list(&mut self) -> (String, bool) {
        self.list_until(")]}")
    }

    /// Operands and what stands between them, up to a closing bracket, and whether there is a comma.
    #[inline(never)]
    fn list_until(&mut self, ends: &str) -> (String, bool) {
        let (mut output, mut comma, mut operand) = (String::new(), false, false);
        self.depth += 1;
        while let Some(c) = self.next().chars().next().filter(|c| !ends.contains(*c)) {
            let begins = c.is_alphanumeric() || "_\"'([{".contains(c) || (!operand && "-+".contains(c));
            operand = begins && self.keyword().is_none() && self.depth < DEPTH;
            if operand {
                let part = self.concatenation();
                let start = part.trim_start();
                let name = !start.starts_with(|c: char| !c.is_alphabetic() && c != '_')
                    && !["true", "false", "none"].contains(&start[..word_length(start)].to_lowercase().as_str());
                let folded = !name && matches!(self.keyword(), Some("and" | "or"));
                output += &if folded { call(SAME, [part]) } else { part };
            } else {
                output += &self.take_space();
                comma |= c == ',';
                output += self.take(self.token());
            }
        }
        self.depth -= 1;
        (output + &self.take_space(), comma)
    }

    #[inline(never)]
    fn concatenation(&mut self) -> String {
        let mut parts = vec![self.product()];
        while self.next().starts_with('~') {
            self.take_space();
            self.take(1);
            parts.push(self.product());
        }
        if parts.len() > 1 { call(CONCATENATE, parts) } else { parts.remove(0) }
    }

    #[inline(never)]
    fn product(&mut self) -> String {
        let mut left = self.power();
        for _ in 0..DEPTH {
            let next = self.next();
            let (function, length) = match next.chars().next() {
                Some('/') if next.starts_with("//") => (FLOOR_DIVIDE, 2),
                Some('%') => (MODULO, 1),
                Some('*' | '/') => ("", 1),
                _ => break,
            };
            let space = self.take_space();
            let operator = self.take(length);
            let right = self.power();
            left = if function.is_empty() { left + &space + operator + &right } else { call(function, [left, right]) };
        }
        left
    }

    #[inline(never)]
    fn power(&mut self) -> String {
        let mut left = self.unary();
        for _ in 0..DEPTH {
            if !self.next().starts_with("**") {
                break;
            }
            self.take_space();
            self.take(2);
            left = call(POWER, [left, self.unary()]);
        }
        left
    }

    /// An operand with its signs, filters and tests.
    #[inline(never)]
    fn unary(&mut self) -> String {
        let mut output = self.take_space();
        let mut signed = false;
        while self.text.starts_with(['-', '+']) {
            // minijinja has no `+` before a number.
            output += if self.take(1) == "-" { "-" } else { "" };
            output += &self.take_space();
            signed = true;
        }
        let operand = self.operand();
        // minijinja takes attributes of `-x`, Jinja takes the negative of attributes.
        output += &if signed && operand.contains(['.', '[', '(']) { format!("({operand})") } else { operand };
        loop {
            let next = self.next();
            if next.starts_with('|') {
                output += &self.take_space();
                output += self.take(1);
                output += &self.names();
                output += &self.brackets("(");
            } else if self.keyword() == Some("is") {
                output += &self.take_space();
                output += self.take(2);
                if self.keyword() == Some("not") {
                    output += &self.take_space();
                    output += self.take(3);
                }
                output += &self.names();
                let next = self.next();
                if next.starts_with('(') {
                    output += &self.brackets("(");
                } else if next.starts_with(|c: char| c.is_alphanumeric() || "_\"'[{".contains(c))
                    && self.keyword().is_none()
                {
                    output += &self.take_space();
                    output += &self.operand();
                }
            } else {
                return output;
            }
        }
    }

    /// The name of a filter or test.
    #[inline(never)]
    fn names(&mut self) -> String {
        let mut output = self.take_space() + self.take(word_length(self.text));
        while self.text.starts_with('.') {
            output += self.take(1);
            output += self.take(word_length(self.text));
        }
        output
    }

    /// A bracketed list, if one follows that begins with one of `open`.
    #[inline(never)]
    fn brackets(&mut self, open: &str) -> String {
        if !self.next().starts_with(|c| open.contains(c)) {
            return String::new();
        }
        let mut output = self.take_space() + self.take(1);
        output += &self.list().0;
        if self.text.starts_with([')', ']', '}']) {
            output += self.take(1);
        }
        output
    }

    /// A literal, a name or a bracketed expression, with attributes, subscripts and calls.
    #[inline(never)]
    fn operand(&mut self) -> String {
        let mut output = String::new();
        match self.text.chars().next() {
            Some('(') => {
                self.take(1);
                let (inside, comma) = self.list();
                if self.text.starts_with(')') {
                    self.take(1);
                    let tuple = comma || inside.trim().is_empty();
                    output += if tuple { TUPLE } else { "" };
                    output += &format!("({inside})");
                } else {
                    output += &format!("({inside}");
                }
            }
            Some('[' | '{') => output += &self.brackets("[{"),
            Some('"' | '\'') => output += &escapes(self.take(self.token())),
            _ => output += self.take(self.token()),
        }
        while output.ends_with(['"', '\'']) && self.next().starts_with(['"', '\'']) {
            output += &self.take_space();
            output += &escapes(self.take(self.token()));
        }
        for _ in 0..DEPTH {
            let next = self.next();
            if next.starts_with('.') {
                output += &self.take_space();
                output += self.take(1);
                output += &self.take_space();
                output += self.take(word_length(self.text));
            } else if next.starts_with('(') {
                output += &self.brackets("(");
            } else if next.starts_with('[') {
                output += &self.take_space();
                self.take(1);
                let mut parts = vec![self.list_until(")]}:").0];
                while self.text.starts_with(':') {
                    self.take(1);
                    parts.push(self.list_until(")]}:").0);
                }
                let close = if self.text.starts_with(']') { self.take(1) } else { "" };
                output = if parts.len() > 1 {
                    let none = |part: String| if part.trim().is_empty() { part + "none" } else { part };
                    call(SLICE, [vec![output], parts.into_iter().map(none).collect()].concat())
                } else {
                    output + "[" + &parts.concat() + close
                };
            } else {
                break;
            }
        }
        output
    }
}

/// White space before the first argument stays before the call.
#[inline(never)]
fn call(function: &str, arguments: impl AsRef<[String]>) -> String {
    let arguments = arguments.as_ref().join(",");
    let space = arguments.len() - arguments.trim_start().len();
    let (space, arguments) = arguments.split_at(space);
    format!("{space}{function}({arguments})")
}
