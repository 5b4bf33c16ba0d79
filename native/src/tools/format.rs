//! How a model writes calls of tools.

use mgm::text::Tokenizer;
use mgm::text::chat_template::ChatTemplate;
use mgm::text::conversation::PromptFormat;
use serde_json::{Value, json};

/// How calls are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, once or several times: Hermes, Qwen.
    Hermes,
    /// `[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`: Mistral.
    Mistral,
    /// `{"name": …, "parameters": {…}}` as the whole answer, or after `<|python_tag|>`: Llama 3.1.
    Llama,
}

impl CallFormat {
    /// The text before a call.
    pub fn opening(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Mistral => "[TOOL_CALLS]",
            Self::Llama => "<|python_tag|>",
        }
    }

    /// The text after a call.
    pub fn closing(self) -> &'static str {
        match self {
            Self::Hermes => "</tool_call>",
            Self::Mistral | Self::Llama => "",
        }
    }

    /// The key of a call's arguments.
    pub fn arguments(self) -> &'static str {
        match self {
            Self::Hermes | Self::Mistral => "arguments",
            Self::Llama => "parameters",
        }
    }
}

/// How a model learns about tools, and how it calls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToolStyle {
    pub format: CallFormat,
    /// The model's template describes tools and calls. Otherwise the system text does.
    pub is_native: bool,
    /// The tokens of [`CallFormat::opening`] and [`CallFormat::closing`], if there are any.
    pub opening: Option<Marker>,
    pub closing: Option<Marker>,
}

/// A token that stands before or after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marker {
    pub id: u32,
    /// Whether a decoded text lacks it.
    pub is_hidden: bool,
}

impl ToolStyle {
    /// The style of a model: that of its template, if it describes tools and writes calls in a known format.
    pub fn of(format: &PromptFormat, tokenizer: &Tokenizer) -> Self {
        let own = match format {
            PromptFormat::Jinja(template) => own_format(template),
            _ => None,
        };
        let format = own.unwrap_or(CallFormat::Hermes);
        let marker = |text: &str| {
            let id = tokenizer.token_id(text).filter(|id| !text.is_empty() && tokenizer.token_bytes(*id).is_none());
            id.map(|id| Marker { id, is_hidden: tokenizer.is_special(id) })
        };
        Self { format, is_native: own.is_some(), opening: marker(format.opening()), closing: marker(format.closing()) }
    }
}

/// The format that a template writes calls in. `None` if it ignores tools, or writes calls otherwise.
fn own_format(template: &ChatTemplate) -> Option<CallFormat> {
    let question = json!({ "role": "user", "content": "Hello" });
    let tool = |name: &str| {
        let parameters = json!({ "type": "object", "properties": { "x": { "type": "integer" } } });
        json!({ "type": "function", "function": { "name": name, "description": "A tool.", "parameters": parameters } })
    };
    let render = |variables: &Value| template.render_json(&variables.to_string()).ok();
    let described = json!({ "messages": [question], "tools": [tool("probe_tool")], "add_generation_prompt": true });
    if !render(&described)?.contains("probe_tool") {
        return None;
    }
    let function = json!({ "name": "probe_call", "arguments": { "x": 1 } });
    // Mistral's templates want ids of nine characters.
    let call = json!({ "id": "abcdef123", "type": "function", "function": function });
    let called = json!({ "messages": [
        question,
        { "role": "assistant", "content": "", "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "abcdef123", "name": "probe_call", "content": "2" },
    ], "tools": [tool("probe_tool")], "add_generation_prompt": true });
    let text = render(&called)?;
    let (before, after) = text.split_once("\"probe_call\"")?;
    let before: String = before.chars().filter(|c| !c.is_whitespace()).collect();
    let after: String = after.chars().filter(|c| !c.is_whitespace()).collect();
    let [hermes, mistral] =
        [CallFormat::Hermes, CallFormat::Mistral].map(|format| (format.opening(), format.arguments()));
    if before.ends_with(&format!("{}{{\"name\":", hermes.0))
        && after.starts_with(",\"arguments\":{\"x\":1}}</tool_call>")
    {
        Some(CallFormat::Hermes)
    } else if before.ends_with(&format!("{}[{{\"name\":", mistral.0)) && after.starts_with(",\"arguments\":{\"x\":1}") {
        Some(CallFormat::Mistral)
    } else if before.ends_with("{\"name\":") && after.starts_with(",\"parameters\":{\"x\":1}}") {
        Some(CallFormat::Llama)
    } else {
        None
    }
}

/// The description of tools for a model whose template has none, in Qwen's words.
pub fn description(tools: &[Value]) -> String {
    let tools: Vec<String> = tools.iter().map(python_json).collect();
    format!(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function \
         signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\nFor each function call, return a json \
         object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{{\"name\": \
         <function-name>, \"arguments\": <args-json-object>}}\n</tool_call>",
        tools.join("\n")
    )
}

/// JSON as Python's `json.dumps` writes it: with a space after commas and colons.
pub fn python_json(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("[{}]", list.iter().map(python_json).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let field =
                |(key, value): (&String, &Value)| format!("{}: {}", Value::from(key.as_str()), python_json(value));
            format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use mgm::text::chat_template::{TemplateSettings, TemplateSource};

    use super::*;

    #[test]
    fn formats_are_those_that_templates_write() {
        let of = |name: &str, text: &str| {
            let settings = TemplateSettings {
                special_tokens: [("bos_token", "<s>".to_owned()), ("eos_token", "</s>".to_owned())].into(),
                ..TemplateSettings::default()
            };
            let origin = TemplateSource { file: name.to_owned(), key: "", text: text.to_owned() };
            own_format(&ChatTemplate::new(origin, settings).expect(name))
        };
        macro_rules! template {
            ($name:literal) => {
                of($name, include_str!(concat!("../../../tests/data/text/templates/", $name, ".jinja")))
            };
        }
        assert_eq!(template!("qwen25"), Some(CallFormat::Hermes));
        assert_eq!(template!("mistral3"), Some(CallFormat::Mistral));
        assert_eq!(template!("llama31"), Some(CallFormat::Llama));
        assert_eq!(template!("llama33"), Some(CallFormat::Llama));
        for found in [template!("chatml"), template!("gemma2"), template!("granite3"), template!("llama3")] {
            assert_eq!(found, None);
        }
    }

    #[test]
    fn json_is_spaced_as_in_python() {
        let value = json!({ "a": [1, 2.5, null, true], "b\"": { "c": "é\n" }, "d": {}, "e": [] });
        assert_eq!(
            python_json(&value),
            "{\"a\": [1, 2.5, null, true], \"b\\\"\": {\"c\": \"é\\n\"}, \"d\": {}, \"e\": []}"
        );
    }
}
