//! Calls of tools in an answer, while it is generated.

use super::format::CallFormat;

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text outside of calls.
    Text(String),
    /// A call begins.
    Call { name: String },
    /// More of the last call's arguments: together they are JSON, as the model wrote it.
    Arguments(String),
}

/// Finds the calls in an answer. The parts, joined, do not depend on how the text is divided.
#[derive(Debug)]
pub struct CallParser {
    format: CallFormat,
    state: State,
    /// Text that was not used yet.
    buffer: String,
    calls: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The text before a call. Llama's format has none.
    Text,
    /// From a call's beginning to its arguments. `is_first`: after [`CallFormat::opening`].
    Head {
        is_first: bool,
    },
    Arguments(Json),
    /// From the arguments to the call's end.
    Tail(Json),
    /// From a call's end to the next call or text.
    After,
    /// Text until the end.
    Plain,
}

/// Scans JSON for a value's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Json {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

/// What a text begins with.
enum Found<T> {
    /// More text decides.
    Undecided,
    /// It, and its length.
    Yes(T, usize),
    No,
}

impl CallParser {
    pub fn new(format: CallFormat) -> Self {
        Self { format, state: State::Text, buffer: String::new(), calls: 0 }
    }

    /// Adds text. Returns the parts that are certain now.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.buffer += text;
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    /// Ends the answer. Returns the last parts.
    pub fn finish(&mut self) -> Vec<Part> {
        let rest = std::mem::take(&mut self.buffer);
        let mut parts = Vec::new();
        match self.state {
            State::Text | State::Plain => push_text(&mut parts, &rest),
            // A call that is cut off before its name is known.
            State::Head { is_first: true } => push_text(&mut parts, &self.unread_head(&rest)),
            State::Head { is_first: false } | State::Arguments(_) | State::Tail(_) | State::After => {}
        }
        parts
    }

    /// Whether there are calls, and the last one is whole.
    pub fn has_called(&self) -> bool {
        self.calls > 0 && !matches!(self.state, State::Arguments(_) | State::Tail(_))
    }

    /// Reads a part of the buffer. Returns whether the rest may have more.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.state {
            State::Plain => {
                push_text(parts, &std::mem::take(&mut self.buffer));
                false
            }
            State::Text if self.format == CallFormat::Llama => self.step_llama(parts),
            State::Text => {
                let opening = self.format.opening();
                if let Some(at) = self.buffer.find(opening) {
                    push_text(parts, &self.buffer[..at]);
                    self.take(at + opening.len());
                    self.state = State::Head { is_first: true };
                    return true;
                }
                // What may become the opening is held back.
                let held = (1..opening.len()).rev().find(|length| self.buffer.ends_with(&opening[..*length]));
                let sent = self.buffer.len() - held.unwrap_or(0);
                push_text(parts, &self.buffer[..sent]);
                self.take(sent);
                false
            }
            State::Head { is_first } => match self.head(is_first) {
                Found::Undecided => false,
                Found::Yes((name, has_arguments), length) => {
                    self.take(length);
                    self.calls += 1;
                    parts.push(Part::Call { name });
                    if has_arguments {
                        self.state = State::Arguments(Json::default());
                    } else {
                        parts.push(Part::Arguments("{}".to_owned()));
                        self.state = State::After;
                    }
                    true
                }
                Found::No => {
                    // Not a call: text.
                    let rest = std::mem::take(&mut self.buffer);
                    if is_first && self.format != CallFormat::Llama {
                        push_text(parts, self.format.opening());
                        self.buffer = rest;
                        self.state = State::Text;
                    } else {
                        self.buffer = if is_first { self.unread_head(&rest) } else { rest };
                        self.state = State::Plain;
                    }
                    true
                }
            },
            State::Arguments(mut json) => {
                let end = json.end_of_value(&self.buffer);
                let length = end.unwrap_or(self.buffer.len());
                if length > 0 {
                    parts.push(Part::Arguments(self.buffer[..length].to_owned()));
                    self.take(length);
                }
                self.state = if end.is_some() { State::Tail(Json::default()) } else { State::Arguments(json) };
                end.is_some()
            }
            State::Tail(mut json) => {
                let end = json.end_of_object(&self.buffer);
                self.take(end.unwrap_or(self.buffer.len()));
                self.state = if end.is_some() { State::After } else { State::Tail(json) };
                end.is_some()
            }
            State::After => self.step_after(),
        }
    }

    /// Llama's format: an answer that begins with an object is a call.
    fn step_llama(&mut self, parts: &mut Vec<Part>) -> bool {
        let opening = self.format.opening();
        let text = self.buffer.trim_start();
        if text.is_empty() || text.len() < opening.len() && opening.starts_with(text) {
            return false;
        }
        if text.starts_with('{') || text.starts_with(opening) {
            self.state = State::Head { is_first: true };
            return true;
        }
        push_text(parts, &std::mem::take(&mut self.buffer));
        self.state = State::Plain;
        false
    }

    /// After a call: the closing text, or another call of the same list.
    fn step_after(&mut self) -> bool {
        let rest = self.buffer.trim_start();
        let skipped = self.buffer.len() - rest.len();
        if rest.is_empty() {
            return false;
        }
        let (state, length) = match self.format {
            CallFormat::Hermes => {
                let closing = self.format.closing();
                if rest.len() < closing.len() && closing.starts_with(rest) {
                    return false;
                }
                if rest.starts_with(closing) { (State::Text, skipped + closing.len()) } else { (State::Text, 0) }
            }
            CallFormat::Mistral => match rest.as_bytes()[0] {
                b',' => (State::Head { is_first: false }, skipped + 1),
                b']' => (State::Text, skipped + 1),
                _ => (State::Text, 0),
            },
            CallFormat::Llama => (State::Plain, 0),
        };
        self.take(length);
        self.state = state;
        true
    }

    /// A call's beginning as it was written, after `rest` could not be read.
    fn unread_head(&self, rest: &str) -> String {
        let opening = if self.format == CallFormat::Llama { "" } else { self.format.opening() };
        format!("{opening}{rest}")
    }

    /// The name of a call, and whether it has arguments, up to their beginning.
    fn head(&self, is_first: bool) -> Found<(String, bool)> {
        let mut head = Head { text: &self.buffer, at: 0 };
        let is_llama = self.format == CallFormat::Llama;
        if is_first && is_llama {
            head.skip_space();
            if head.rest().starts_with(self.format.opening()) {
                head.at += self.format.opening().len();
            }
        }
        let read = |head: &mut Head<'_>| -> Result<(String, bool), bool> {
            if is_first && self.format == CallFormat::Mistral {
                head.expect("[")?;
            }
            head.expect("{")?;
            head.expect("\"name\"")?;
            head.expect(":")?;
            let name = head.string()?;
            if head.expect("}").is_ok() {
                return Ok((name, false));
            }
            head.expect(",")?;
            match head.string()?.as_str() {
                "arguments" | "parameters" => {}
                _ => return Err(false),
            }
            head.expect(":")?;
            head.skip_space();
            if head.rest().is_empty() { Err(true) } else { Ok((name, true)) }
        };
        match read(&mut head) {
            Ok(found) => Found::Yes(found, head.at),
            Err(true) => Found::Undecided,
            Err(false) => Found::No,
        }
    }

    /// Drops the beginning of the buffer.
    fn take(&mut self, length: usize) {
        self.buffer.drain(..length);
    }
}

/// Reads the beginning of a call. Errors are whether more text could mend them.
struct Head<'t> {
    text: &'t str,
    at: usize,
}

impl Head<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn expect(&mut self, wanted: &str) -> Result<(), bool> {
        self.skip_space();
        let rest = self.rest();
        if rest.starts_with(wanted) {
            self.at += wanted.len();
            return Ok(());
        }
        Err(wanted.starts_with(rest))
    }

    fn string(&mut self) -> Result<String, bool> {
        self.skip_space();
        let rest = self.rest();
        if !rest.is_empty() && !rest.starts_with('"') {
            return Err(false);
        }
        let mut json = Json::default();
        let end = json.end_of_value(rest).ok_or(true)?;
        let name = serde_json::from_str(&rest[..end]).map_err(|_| false)?;
        self.at += end;
        Ok(name)
    }
}

impl Json {
    /// The place after the value that has begun before `text` or begins with it, if it ends there.
    fn end_of_value(&mut self, text: &str) -> Option<usize> {
        for (at, byte) in text.bytes().enumerate() {
            let was_string = self.in_string;
            if self.depth == 0 && !was_string && matches!(byte, b',' | b'}' | b']') {
                // After a number or a word.
                return Some(at);
            }
            self.read(byte);
            let closes = matches!(byte, b'}' | b']') && !was_string || was_string && !self.in_string;
            if closes && self.depth == 0 {
                return Some(at + 1);
            }
        }
        None
    }

    /// The place after the end of the object whose inside `text` continues.
    fn end_of_object(&mut self, text: &str) -> Option<usize> {
        for (at, byte) in text.bytes().enumerate() {
            if self.depth == 0 && !self.in_string && byte == b'}' {
                return Some(at + 1);
            }
            self.read(byte);
        }
        None
    }

    fn read(&mut self, byte: u8) {
        match (self.in_string, byte) {
            (true, _) if self.is_escaped => self.is_escaped = false,
            (true, b'\\') => self.is_escaped = true,
            (_, b'"') => self.in_string = !self.in_string,
            (false, b'{' | b'[') => self.depth += 1,
            (false, b'}' | b']') => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

fn push_text(parts: &mut Vec<Part>, text: &str) {
    if !text.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(parts: Vec<Part>) -> Vec<Part> {
        let mut joined: Vec<Part> = Vec::new();
        for part in parts {
            match (joined.last_mut(), part) {
                (Some(Part::Text(text)), Part::Text(more)) => *text += &more,
                (Some(Part::Arguments(text)), Part::Arguments(more)) => *text += &more,
                (_, part) => joined.push(part),
            }
        }
        joined
    }

    /// The parts of an answer, and whether it has called. They are the same for every division into three pieces, and
    /// for single characters.
    fn parse(format: CallFormat, text: &str) -> (Vec<Part>, bool) {
        let of = |pieces: &[&str]| {
            let mut parser = CallParser::new(format);
            let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
            parts.extend(parser.finish());
            (joined(parts), parser.has_called())
        };
        let whole = of(&[text]);
        let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        for (index, first) in ends.iter().enumerate() {
            for second in &ends[index..] {
                let pieces = [&text[..*first], &text[*first..*second], &text[*second..]];
                assert_eq!(of(&pieces), whole, "{pieces:?}");
            }
        }
        let characters: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(of(&characters.iter().map(String::as_str).collect::<Vec<_>>()), whole);
        whole
    }

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    fn call(name: &str, arguments: &str) -> [Part; 2] {
        [Part::Call { name: name.to_owned() }, Part::Arguments(arguments.to_owned())]
    }

    #[test]
    fn hermes_calls_are_found() {
        let answer = "Let me look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>\n\
                      <tool_call>{\"name\":\"time\",\"arguments\":{}}</tool_call>";
        let (parts, has_called) = parse(CallFormat::Hermes, answer);
        let [weather, paris] = call("weather", "{\"city\": \"Paris\"}");
        let [time, nothing] = call("time", "{}");
        assert_eq!(parts, [text("Let me look.\n"), weather, paris, text("\n"), time, nothing]);
        assert!(has_called);
    }

    #[test]
    fn braces_and_quotes_in_arguments_are_text() {
        let arguments =
            "{\"code\": \"if (x) { \\\"</tool_call>\\\" } \\\\\", \"list\": [{\"a\": [1, 2]}, -1.5e3], \"é\": null}";
        let answer = format!("<tool_call>{{\"name\": \"run\", \"arguments\": {arguments}}}</tool_call>");
        assert_eq!(parse(CallFormat::Hermes, &answer), (call("run", arguments).into(), true));
    }

    #[test]
    fn mistral_calls_are_a_list() {
        let answer = "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"x\": 1}, \"id\": \"abcdef123\"}, {\"name\": \"g\", \
                      \"arguments\": {\"y\": [2]}}]";
        let [f, x] = call("f", "{\"x\": 1}");
        let [g, y] = call("g", "{\"y\": [2]}");
        assert_eq!(parse(CallFormat::Mistral, answer), (vec![f, x, g, y], true));
    }

    #[test]
    fn llama_calls_are_whole_answers() {
        for opening in ["", " \n", "<|python_tag|>"] {
            let answer = format!("{opening}{{\"name\": \"f\", \"parameters\": {{\"x\": \"a\"}}}}");
            assert_eq!(parse(CallFormat::Llama, &answer), (call("f", "{\"x\": \"a\"}").into(), true));
        }
        let answer = "A call is {\"name\": \"f\", \"parameters\": {}}.";
        assert_eq!(parse(CallFormat::Llama, answer), (vec![text(answer)], false));
        let answer = "{\"names\": [\"f\"]}";
        assert_eq!(parse(CallFormat::Llama, answer), (vec![text(answer)], false));
    }

    #[test]
    fn what_is_no_call_is_text() {
        let hermes = |answer: &str| parse(CallFormat::Hermes, answer);
        for answer in [
            "",
            "Hello <tool",
            "a <tool_call",
            "<tool_call>",
            "<tool_call>{\"name\": \"f",
            "<tool_call>[1]</tool_call>",
            "x < y",
        ] {
            let parts: Vec<Part> = (!answer.is_empty()).then(|| text(answer)).into_iter().collect();
            assert_eq!(hermes(answer), (parts, false), "{answer}");
        }
        let answer = "<tool_call> no <tool_call>{\"name\": \"f\"}</tool_call> end";
        let [f, nothing] = call("f", "{}");
        assert_eq!(hermes(answer), (vec![text("<tool_call> no "), f, nothing, text(" end")], true));
    }

    #[test]
    fn calls_that_are_cut_off_are_not_whole() {
        let whole = "<tool_call>{\"name\": \"f\", \"arguments\": {\"x\": [1, \"}\"]}}</tool_call>";
        let arguments = whole.find("{\"x\"").expect("arguments");
        let end = whole.find("}}</").expect("the end") + 2;
        for length in arguments + 1..whole.len() {
            let (parts, has_called) = parse(CallFormat::Hermes, &whole[..length]);
            assert_eq!(parts[0], Part::Call { name: "f".to_owned() });
            assert_eq!(has_called, length >= end, "{}", &whole[..length]);
        }
    }
}
