//! Calls of tools in OpenAI's form.

use serde::Serialize;
use serde_json::{Value, json};

use super::format::{CallFormat, Marker, ToolStyle};
use super::parser::{CallParser, Part};

/// A call that begins, or more of its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CallDelta {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionDelta,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

/// Reads the calls in an answer.
#[derive(Debug)]
pub struct CallReader {
    style: ToolStyle,
    parser: CallParser,
    calls: usize,
    /// Makes a random id after a prefix.
    random_id: fn(&str) -> String,
}

impl CallReader {
    /// `random_id` makes an id of letters and digits after a prefix, 9 at least.
    pub fn new(style: ToolStyle, random_id: fn(&str) -> String) -> Self {
        Self { style, parser: CallParser::new(style.format), calls: 0, random_id }
    }

    /// Adds tokens and their text. Returns the text outside of calls that is certain now, and appends calls.
    pub fn push(&mut self, ids: &[u32], text: &str, calls: &mut Vec<CallDelta>) -> String {
        let ToolStyle { format, opening, closing, .. } = self.style;
        let mut all = String::new();
        for (marker, text) in [(opening, format.opening()), (closing, format.closing())] {
            // A text that was decoded lacks special tokens.
            if matches!(marker, Some(Marker { id, is_hidden: true }) if ids.contains(&id)) {
                all += text;
            }
        }
        all += text;
        let parts = self.parser.push(&all);
        self.read(parts, calls)
    }

    /// Ends the answer. Returns the rest of its text, and appends calls.
    pub fn finish(&mut self, calls: &mut Vec<CallDelta>) -> String {
        let parts = self.parser.finish();
        self.read(parts, calls)
    }

    /// Whether there are calls, and the last one is whole.
    pub fn has_called(&self) -> bool {
        self.parser.has_called()
    }

    fn new_id(&self) -> String {
        match self.style.format {
            // Mistral's templates refuse ids of another length.
            CallFormat::Mistral => (self.random_id)("").chars().take(9).collect(),
            CallFormat::Hermes | CallFormat::Llama => (self.random_id)("call_"),
        }
    }

    fn read(&mut self, parts: Vec<Part>, calls: &mut Vec<CallDelta>) -> String {
        let mut text = String::new();
        for part in parts {
            match part {
                Part::Text(more) => text += &more,
                Part::Call { name } => {
                    self.calls += 1;
                    calls.push(CallDelta {
                        index: self.calls - 1,
                        id: Some(self.new_id()),
                        kind: Some("function"),
                        function: FunctionDelta { name: Some(name), arguments: String::new() },
                    });
                }
                Part::Arguments(arguments) => {
                    let index = self.calls.saturating_sub(1);
                    calls.push(CallDelta {
                        index,
                        id: None,
                        kind: None,
                        function: FunctionDelta { name: None, arguments },
                    });
                }
            }
        }
        text
    }
}

/// The calls of a message that is whole.
pub fn whole_calls(deltas: Vec<CallDelta>) -> Value {
    let mut calls: Vec<Value> = Vec::new();
    let mut arguments = String::new();
    let end = |calls: &mut Vec<Value>, arguments: &mut String| {
        if let Some(call) = calls.last_mut() {
            call["function"]["arguments"] = std::mem::take(arguments).into();
        }
    };
    for CallDelta { id, kind, function: FunctionDelta { name, arguments: more }, .. } in deltas {
        if name.is_some() {
            end(&mut calls, &mut arguments);
            calls.push(json!({ "id": id, "type": kind, "function": { "name": name, "arguments": "" } }));
        }
        arguments += &more;
    }
    end(&mut calls, &mut arguments);
    calls.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(prefix: &str) -> String {
        format!("{prefix}0123456789")
    }

    #[test]
    fn calls_have_openais_form() {
        let style = ToolStyle { format: CallFormat::Hermes, is_native: true, opening: None, closing: None };
        let mut reader = CallReader::new(style, id);
        let mut calls = Vec::new();
        let answer =
            "Well.<tool_call>{\"name\": \"f\", \"arguments\": {\"x\": 1}}</tool_call><tool_call>{\"name\": \"g\"}";
        let text: String = answer.split_inclusive(' ').map(|text| reader.push(&[], text, &mut calls)).collect();
        assert_eq!(text + &reader.finish(&mut calls), "Well.");
        assert!(reader.has_called());
        let json = serde_json::to_value(&calls).expect("JSON");
        let id = json[0]["id"].as_str().filter(|id| id.starts_with("call_")).expect("an id");
        assert_eq!(
            json[0],
            json!({ "index": 0, "id": id, "type": "function", "function": { "name": "f", "arguments": "" } })
        );
        assert_eq!(json[1], json!({ "index": 0, "function": { "arguments": "{\"x\": " } }));
        let whole = whole_calls(calls);
        assert_eq!(whole[0]["function"], json!({ "name": "f", "arguments": "{\"x\": 1}" }));
        assert_eq!(whole[1]["function"], json!({ "name": "g", "arguments": "{}" }));
    }

    #[test]
    fn hidden_tokens_open_calls() {
        let opening = Some(Marker { id: 5, is_hidden: true });
        let style = ToolStyle { format: CallFormat::Mistral, is_native: true, opening, closing: None };
        let mut reader = CallReader::new(style, id);
        let mut calls = Vec::new();
        assert_eq!(reader.push(&[5], "", &mut calls), "");
        assert_eq!(reader.push(&[9], " [{\"name\": \"f\", \"arguments\": {}}]", &mut calls), "");
        assert!(reader.has_called());
        assert_eq!(whole_calls(calls)[0]["id"].as_str().map(str::len), Some(9));
    }
}
