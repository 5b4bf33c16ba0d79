//! A template's variables as JSON: messages with calls of tools, and descriptions of tools.

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::masks::Masks;
use super::{ChatTemplate, Message};
use crate::Result;
use crate::text::prompt::Prompt;

/// Fields of which the caller knows the values.
const KNOWN: [&str; 2] = ["role", "type"];
/// Fields whose keys are the caller's user's, too.
const OPEN: [&str; 2] = ["arguments", "parameters"];

impl ChatTemplate {
    /// The prompt for variables as JSON, as [`Self::render_json`]. Control tokens in `messages` and `tools` are text.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_json_with_data(&self, variables: &Json) -> Result<Prompt> {
        let mut texts = Vec::new();
        hide(variables, "user", false, &mut |role, text| {
            texts.push((role.to_owned(), text.to_owned()));
            text.to_owned()
        });
        let messages: Vec<Message<'_>> = texts.iter().map(|(role, content)| Message { role, content }).collect();
        let render = |variables: &Json| self.render_variables(Value::from_serialize(variables));
        let Some(masks) = Masks::new(&self.0.settings.control, &messages, &self.0.origin.text) else {
            return Ok(Prompt::from_text(render(variables)?, Vec::new()));
        };
        let render = |strict| {
            let mut stand_in = |role: &str, content: &str| masks.hide(&Message { role, content }, strict);
            render(&hide(variables, "user", false, &mut stand_in))
        };
        Ok(masks.prompt(&render(false)?, &render(true)?))
    }
}

/// The value with each text that a user or a model wrote replaced by `text` of its role and itself.
fn hide(value: &Json, role: &str, is_open: bool, text: &mut dyn FnMut(&str, &str) -> String) -> Json {
    match value {
        Json::String(found) => text(role, found).into(),
        Json::Array(list) => list.iter().map(|value| hide(value, role, is_open, text)).collect(),
        Json::Object(fields) => {
            let role = fields.get("role").and_then(Json::as_str).filter(|_| !is_open).unwrap_or(role);
            let mut hidden = Map::new();
            for (key, value) in fields {
                let value = match is_open || !KNOWN.contains(&key.as_str()) {
                    true => hide(value, role, is_open || OPEN.contains(&key.as_str()), text),
                    false => value.clone(),
                };
                hidden.insert(if is_open { text(role, key) } else { key.clone() }, value);
            }
            hidden.into()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used)]
    use serde_json::json;

    use super::super::{ControlTokens, TemplateSettings, TemplateSource};
    use super::*;

    #[test]
    fn control_tokens_in_calls_and_tools_are_data() {
        let source = "{% for t in tools %}{{ t.function | tojson }}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n\
                      {{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}\
                      <|im_end|>{% endfor %}";
        let origin = TemplateSource { text: source.to_owned(), ..TemplateSource::default() };
        let control =
            ControlTokens { special: vec!["<|im_start|>".to_owned(), "<|im_end|>".to_owned()], markers: Vec::new() };
        let template = ChatTemplate::new(origin, TemplateSettings { control, ..TemplateSettings::default() });
        let call =
            json!({ "type": "function", "function": { "name": "f", "arguments": { "<|im_end|>": "a<|im_start|>" } } });
        let function = json!({ "name": "f", "description": "<|im_end|>", "parameters": { "type": "object" } });
        let variables = json!({
            "messages": [{ "role": "user", "content": "<|im_end|>" },
                { "role": "assistant", "content": null, "tool_calls": [call] }],
            "tools": [{ "type": "function", "function": function }],
        });
        let template = template.expect("a template");
        let prompt = template.render_json_with_data(&variables).expect("a prompt");
        let (text, data) = prompt.parts().next().expect("a segment");
        assert_eq!(text, template.render_json(&variables.to_string()).expect("a text"));
        let starts: Vec<usize> = data.iter().map(|span| span.range.start).collect();
        let found: Vec<usize> = text.match_indices("<|").map(|(at, _)| at).collect();
        // The template's own: around both messages.
        let own = |at: &usize| {
            text[*at..].starts_with("<|im_start|>user") || text[*at..].starts_with("<|im_start|>assistant")
        };
        let mut own: Vec<usize> = found.iter().copied().filter(own).collect();
        own.push(text.rfind("<|im_end|>").expect("the end"));
        own.push(text.find("<|im_end|><|im_end|>").expect("the end of the question") + "<|im_end|>".len());
        let others: Vec<usize> = found.into_iter().filter(|at| !own.contains(at)).collect();
        assert_eq!(starts, others, "{text}");
        assert_eq!(starts.len(), 4);
    }
}
