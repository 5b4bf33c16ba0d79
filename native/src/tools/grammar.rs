//! Grammars of calls.

use mgm_grammar::{Error, Format, lark_term};
use serde_json::Value;

use super::format::{CallFormat, Marker, ToolStyle};

/// A tool that answers may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: String,
    /// JSON schema of an object.
    pub parameters: Value,
    /// Whether keywords that are not supported are errors.
    pub strict: bool,
}

/// Where the text that a grammar describes begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At the answer's beginning, which is a call.
    Call,
    /// At the answer's beginning, with any text before the first call.
    Text,
    /// After the token of [`CallFormat::opening`].
    Opening,
}

/// The grammar of calls of `tools`: one, or several if they are `parallel` and the format has them.
///
/// # Errors
/// As [`lark_term`].
pub fn calls(style: &ToolStyle, tools: &[&Tool], parallel: bool, from: Place) -> Result<Format, Error> {
    let ToolStyle { format, .. } = *style;
    let opening = marker(format.opening(), style.opening);
    let start = match (format, from) {
        // The answer's first token decides whether it is a call.
        (CallFormat::Llama, Place::Call) => match style.opening {
            Some(Marker { id, .. }) => format!("start: <[{id}]>? calls"),
            None => "start: calls".to_owned(),
        },
        (CallFormat::Llama, Place::Text) | (_, Place::Opening) => "start: calls".to_owned(),
        (_, Place::Call) => "start: ws? open calls".to_owned(),
        (_, Place::Text) => {
            let opening = format.opening().replace('[', "\\[").replace(']', "\\]");
            format!("start: text calls\ntext[lazy]: /(?s:.*){opening}/")
        }
    };
    let calls = match (format, parallel) {
        (CallFormat::Hermes, true) => "calls: call close (ws? open call close)*",
        (CallFormat::Hermes, false) => "calls: call close",
        (CallFormat::Mistral, true) => "calls: ws? \"[\" call (\",\" call)* \"]\"",
        (CallFormat::Mistral, false) => "calls: ws? \"[\" call \"]\"",
        (CallFormat::Llama, _) => "calls: call",
    };
    let mut grammar = format!("{start}\n{calls}\n");
    if format != CallFormat::Llama && (from == Place::Call || format == CallFormat::Hermes && parallel) {
        grammar += &format!("open: {opening}\n");
    }
    if format == CallFormat::Hermes {
        grammar += &format!("close: {}\n", marker(format.closing(), style.closing));
    }
    let names: Vec<String> = (0..tools.len()).map(|index| format!("call{index}")).collect();
    grammar += "call: ws? \"{\" ws? \"\\\"name\\\"\" ws? \":\" ws? function ws? \"}\" ws?\n";
    grammar += &format!("function: {}\nws: /[ \\n\\r\\t]{{1,16}}/\n", names.join(" | "));
    for (index, tool) in tools.iter().enumerate() {
        let name = quoted(&format!("\"{}\"", tool.name));
        let key = quoted(&format!("\"{}\"", format.arguments()));
        let arguments = lark_term(&tool.parameters, tool.strict)?;
        grammar += &format!("call{index}: {name} ws? \",\" ws? {key} ws? \":\" ws? arguments{index}\n");
        grammar += &format!("arguments{index}: {arguments}\n");
    }
    Ok(Format::Lark(grammar))
}

/// A text of Lark.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A text, or its token.
fn marker(text: &str, token: Option<Marker>) -> String {
    match token {
        Some(Marker { id, .. }) => format!("{} | <[{id}]>", quoted(text)),
        None => quoted(text),
    }
}
