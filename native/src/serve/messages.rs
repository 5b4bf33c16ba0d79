//! Messages of a conversation, and the prompts that they become.

use mgm::session::ModelText;
use mgm::text::chat_template::{ChatTemplate, Message as TemplateMessage};
use mgm::text::conversation::{Conversation, PromptFormat, Turn};
use mgm::text::{Prompt, PromptToken};
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::unexpected;
use super::image_url::ImageUrl;

use crate::tools::{description, python_json};

/// Whose message it is. `developer` is the same as `system`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    System,
    User,
    Assistant,
    Tool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    role: Role,
    text: String,
    images: Vec<ImageUrl>,
    /// Calls of tools: objects with a function, whose arguments are JSON.
    calls: Vec<Value>,
    /// `tool_call_id` and `name`, for templates.
    more: Map<String, Value>,
}

/// The tools in a prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PromptTools<'a> {
    /// The model's template describes tools and calls. Otherwise the system text does.
    pub is_native: bool,
    /// As the request has them.
    pub described: &'a [Value],
}

/// The messages of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Messages(Vec<Message>);

impl Messages {
    /// Reads the field `messages`. Also returns parts that have no effect.
    ///
    /// # Errors
    /// `invalid_value` with the place of what is wrong; `unsupported_field` for audio and files.
    pub fn parse(value: Option<Value>) -> Result<(Self, Vec<String>), ApiError> {
        let list = match value {
            Some(Value::Array(list)) => list,
            Some(value) => return Err(unexpected("messages", &value, "a list of messages")),
            None => {
                return Err(ApiError::invalid_value("messages", "messages is missing, expected a list of messages"));
            }
        };
        let mut ignored = Vec::new();
        let messages = list.into_iter().enumerate().map(|(index, value)| {
            let param = format!("messages[{index}]");
            match value {
                Value::Object(fields) => parse_message(fields, &param, &mut ignored),
                value => Err(unexpected(&param, &value, "an object")),
            }
        });
        let messages: Vec<Message> = messages.collect::<Result<_, _>>()?;
        if messages.iter().all(|message| message.role == Role::System) {
            let message = "messages has no message of a user, expected at least one";
            return Err(ApiError::invalid_value("messages", message));
        }
        ignored.sort();
        ignored.dedup();
        Ok((Self(messages), ignored))
    }

    /// The first image.
    pub fn first_image(&self) -> Option<&ImageUrl> {
        self.0.iter().find_map(|message| message.images.first())
    }

    /// Takes the images, in the order in which they are in the prompt.
    pub fn take_images(&mut self) -> Vec<ImageUrl> {
        self.0.iter_mut().flat_map(|message| std::mem::take(&mut message.images)).collect()
    }

    /// The tokens of the prompt for the assistant's next message, or for the rest of the last one, if that is the
    /// assistant's.
    ///
    /// # Errors
    /// `invalid_value` if the template refuses the conversation.
    pub fn tokens(&self, text: &ModelText, tools: PromptTools<'_>) -> Result<Vec<PromptToken>, ApiError> {
        let prompt = self.prompt(text.prompt_format(), tools)?;
        text.tokenizer().encode_prompt(&prompt).map_err(|error| ApiError::invalid_value("messages", error.to_string()))
    }

    /// The prompt for the assistant's next message, or for the rest of the last one, if that is the assistant's.
    ///
    /// # Errors
    /// `invalid_value` if the template refuses the conversation.
    fn prompt(&self, format: &PromptFormat, tools: PromptTools<'_>) -> Result<Prompt, ApiError> {
        let refused = |error: mgm::Error| ApiError::invalid_value("messages", error.to_string());
        if let PromptFormat::Jinja(template) = format {
            if tools.is_native && (!tools.described.is_empty() || self.have_tools()) {
                match self.prompt_with_tools(template, tools.described) {
                    Ok(prompt) => return Ok(prompt),
                    // Without its descriptions, a model does not know the tools.
                    Err(error) if !tools.described.is_empty() => return Err(error),
                    Err(_) => {}
                }
            }
            if let (true, Some(prompt)) = (tools.described.is_empty(), self.own_prompt(template)) {
                return Ok(prompt);
            }
        }
        let (mut conversation, begun) = self.conversation(format);
        if !tools.described.is_empty() {
            let default = match format {
                PromptFormat::Builtin(template) => template.default_system(),
                _ => None,
            };
            let system = conversation.system.take().or(default.map(str::to_owned));
            conversation.system = Some(joined(system, &description(tools.described)));
        }
        match begun {
            Some(begun) => conversation.prompt_to_continue(&begun).map_err(refused),
            None => conversation.prompt().map_err(refused),
        }
    }

    /// Whether tools were called.
    fn have_tools(&self) -> bool {
        self.0.iter().any(|message| message.role == Role::Tool || !message.calls.is_empty())
    }

    /// The prompt of the model's own template for the messages as they are. `None` if it refuses them.
    fn own_prompt(&self, template: &ChatTemplate) -> Option<Prompt> {
        let last_is_users = self.0.last().is_some_and(|message| message.role == Role::User);
        if !last_is_users || self.have_tools() || self.first_image().is_some() {
            return None;
        }
        let messages = self.0.iter().map(|message| {
            let role = match message.role {
                Role::System => "system",
                Role::Assistant => "assistant",
                Role::User | Role::Tool => "user",
            };
            TemplateMessage { role, content: &message.text }
        });
        template.render_with_data(&messages.collect::<Vec<_>>()).ok()
    }

    /// The prompt of a template that describes tools and calls.
    ///
    /// # Errors
    /// `invalid_value`.
    fn prompt_with_tools(&self, template: &ChatTemplate, tools: &[Value]) -> Result<Prompt, ApiError> {
        let refused = |reason: String| ApiError::invalid_value("messages", reason);
        if self.first_image().is_some() {
            return Err(refused("this model's own conversation template does not support images".to_owned()));
        }
        if self.0.last().is_some_and(|message| message.role == Role::Assistant) {
            return Err(refused("with tools, the last message cannot be the assistant's".to_owned()));
        }
        let messages = self.0.iter().map(|message| {
            let role = match message.role {
                Role::System => "system",
                Role::User => "user",
                Role::Assistant => "assistant",
                Role::Tool => "tool",
            };
            let mut fields = json!({ "role": role, "content": message.text });
            if !message.calls.is_empty() {
                fields["tool_calls"] = message.calls.clone().into();
            }
            for (key, value) in &message.more {
                fields[key] = value.clone();
            }
            fields
        });
        let mut variables = json!({ "messages": messages.collect::<Vec<_>>(), "add_generation_prompt": true });
        if !tools.is_empty() {
            variables["tools"] = tools.into();
        }
        template.render_json_with_data(&variables).map_err(|error| refused(error.to_string()))
    }

    /// The messages as turns: system messages first, later ones before the next question, neighbours of one role
    /// joined. Also the beginning of the answer, if the last message is the assistant's.
    fn conversation(&self, format: &PromptFormat) -> (Conversation, Option<String>) {
        let mut conversation = Conversation::new(format.clone());
        let leading = self.0.iter().take_while(|message| message.role == Role::System);
        let leading: Vec<&str> = leading.map(|message| message.text.as_str()).collect();
        conversation.system = (!leading.is_empty()).then(|| leading.join("\n\n"));
        // System messages that wait for a question.
        let mut waiting: Vec<&str> = Vec::new();
        for message in &self.0[leading.len()..] {
            let turns = &mut conversation.turns;
            match message.role {
                Role::System => waiting.push(&message.text),
                Role::Assistant => {
                    if turns.is_empty() {
                        turns.push(Turn::new("", 0));
                    }
                    if let Some(turn) = turns.last_mut() {
                        let answer = turn.answer.take();
                        turn.answer = Some(joined(answer, &message.text_with_calls()));
                    }
                }
                Role::User | Role::Tool => {
                    let text = match message.role {
                        Role::Tool => format!("<tool_response>\n{}\n</tool_response>", message.text),
                        _ => message.text.clone(),
                    };
                    let text = waiting.drain(..).map(str::to_owned).chain([text]).collect::<Vec<_>>().join("\n\n");
                    match turns.last_mut().filter(|turn| turn.answer.is_none()) {
                        Some(turn) => {
                            turn.question = joined(Some(std::mem::take(&mut turn.question)), &text);
                            turn.images += message.images.len();
                        }
                        None => turns.push(Turn::new(text, message.images.len())),
                    }
                }
            }
        }
        if !waiting.is_empty() {
            // A system message at the end, after which the assistant is to answer.
            let text = waiting.join("\n\n");
            match conversation.turns.last_mut().filter(|turn| turn.answer.is_none()) {
                Some(turn) => turn.question = joined(Some(std::mem::take(&mut turn.question)), &text),
                None => conversation.turns.push(Turn::new(text, 0)),
            }
        }
        let begun = conversation.turns.last_mut().and_then(|turn| turn.answer.take());
        (conversation, begun)
    }
}

/// Two texts of one role.
fn joined(first: Option<String>, second: &str) -> String {
    match first {
        Some(first) if !first.is_empty() && !second.is_empty() => format!("{first}\n\n{second}"),
        Some(first) if second.is_empty() => first,
        _ => second.to_owned(),
    }
}

fn parse_message(mut fields: Map<String, Value>, param: &str, ignored: &mut Vec<String>) -> Result<Message, ApiError> {
    let role = match fields.remove("role") {
        Some(Value::String(role)) => match role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            _ => {
                let expected = "\"system\", \"developer\", \"user\", \"assistant\" or \"tool\"";
                return Err(unexpected(&format!("{param}.role"), &role.into(), expected));
            }
        },
        found => {
            return Err(unexpected(&format!("{param}.role"), &found.unwrap_or_default(), "the role as a text"));
        }
    };
    let calls = match fields.remove("tool_calls") {
        Some(Value::Array(calls)) if role == Role::Assistant => calls,
        None | Some(Value::Null) => Vec::new(),
        Some(value) => {
            return Err(unexpected(&format!("{param}.tool_calls"), &value, "a list, in a message of the assistant"));
        }
    };
    let content = format!("{param}.content");
    let mut more = Map::new();
    for (key, of) in [("tool_call_id", Some(Role::Tool)), ("name", None)] {
        match fields.remove(key) {
            Some(Value::String(text)) if of.is_none_or(|of| of == role) => {
                drop(more.insert(key.to_owned(), text.into()))
            }
            None | Some(Value::Null) => {}
            Some(value) => return Err(unexpected(&format!("{param}.{key}"), &value, "a text")),
        }
    }
    let parsed = calls.iter().enumerate().map(|(index, call)| {
        parse_call(call).ok_or_else(|| {
            let place = format!("{param}.tool_calls[{index}]");
            unexpected(&place, call, "an object with a function that has a name and arguments")
        })
    });
    let parsed: Vec<Value> = parsed.collect::<Result<_, _>>()?;
    let mut message = Message { role, text: String::new(), images: Vec::new(), calls: parsed, more };
    match fields.remove("content") {
        Some(Value::String(text)) => message.text = text,
        Some(Value::Array(parts)) => {
            let mut texts = Vec::new();
            for (index, part) in parts.into_iter().enumerate() {
                parse_part(part, &format!("{content}[{index}]"), &mut message, &mut texts, ignored)?;
            }
            message.text = texts.join("\n");
        }
        None | Some(Value::Null) if role == Role::Assistant && !calls.is_empty() => {}
        found => return Err(unexpected(&content, &found.unwrap_or_default(), "a text or a list of parts")),
    }
    Ok(message)
}

impl Message {
    /// The text, followed by the calls as models of the Hermes format write them.
    fn text_with_calls(&self) -> String {
        let mut text = self.text.clone();
        for call in &self.calls {
            let function = &call["function"];
            let (name, arguments) = (&function["name"], python_json(&function["arguments"]));
            let call = format!("<tool_call>\n{{\"name\": {name}, \"arguments\": {arguments}}}\n</tool_call>");
            text = joined(Some(text), &call);
        }
        text
    }
}

/// A call of a tool, with its arguments as JSON.
fn parse_call(call: &Value) -> Option<Value> {
    let function = call.get("function")?;
    let name = function.get("name").filter(|name| name.is_string())?;
    // Arguments are a text with JSON, which templates want as values.
    let arguments = match function.get("arguments")? {
        Value::String(text) if text.trim().is_empty() => json!({}),
        Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into()),
        arguments => arguments.clone(),
    };
    let mut parsed = json!({ "type": "function", "function": { "name": name, "arguments": arguments } });
    if let Some(id) = call.get("id").filter(|id| id.is_string()) {
        parsed["id"] = id.clone();
    }
    Some(parsed)
}

fn parse_part(
    part: Value,
    param: &str,
    message: &mut Message,
    texts: &mut Vec<String>,
    ignored: &mut Vec<String>,
) -> Result<(), ApiError> {
    let Value::Object(mut part) = part else { return Err(unexpected(param, &part, "an object with a type")) };
    let kind = part.remove("type").unwrap_or_default();
    let mut text = |name: &str| match part.remove(name) {
        Some(Value::String(text)) => Ok(text),
        found => Err(unexpected(&format!("{param}.{name}"), &found.unwrap_or_default(), "a text")),
    };
    match kind.as_str() {
        Some("text") => texts.push(text("text")?),
        Some("refusal") => texts.push(text("refusal")?),
        Some("image_url") => {
            let place = format!("{param}.image_url");
            if message.role != Role::User {
                return Err(ApiError::invalid_value(place, "only messages of users have images"));
            }
            let url = match part.remove("image_url") {
                Some(Value::Object(mut image)) => {
                    if image.get("detail").is_some_and(|detail| !detail.is_null()) {
                        ignored.push("image_url.detail".to_owned());
                    }
                    image.remove("url")
                }
                url => url,
            };
            let Some(Value::String(url)) = url else {
                return Err(unexpected(&place, &url.unwrap_or_default(), "a data URL, or an object with one as url"));
            };
            message.images.push(ImageUrl { param: place, url });
        }
        Some(kind @ ("input_audio" | "file")) => {
            let message = format!("parts of the type {kind} are not supported: send texts and images");
            return Err(ApiError::unsupported_field(param, message));
        }
        _ => return Err(unexpected(&format!("{param}.type"), &kind, "\"text\" or \"image_url\"")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mgm::text::chat_template::{ControlTokens, TemplateSettings, TemplateSource};
    use mgm::text::conversation::Template;

    use super::*;

    fn prompt(messages: Value) -> String {
        let (messages, _) = Messages::parse(Some(messages)).expect("messages");
        messages.prompt(&Template::ChatMl.into(), PromptTools::default()).expect("a prompt").to_string()
    }

    /// ChatML's text, with each role's messages in order.
    fn chatml(system: &str, turns: &[(&str, &str)]) -> String {
        let mut text = match system {
            "" => String::new(),
            system => format!("<|im_start|>system\n{system}<|im_end|>"),
        };
        for (question, answer) in turns {
            text += &format!("<|im_start|>user\n{question}<|im_end|><|im_start|>assistant\n{answer}");
        }
        text
    }

    #[test]
    fn conversations_become_turns() {
        let message = |role: &str, content: &str| json!({ "role": role, "content": content });
        let question = prompt(json!([message("user", "a")]));
        assert_eq!(question, chatml("Answer the questions.", &[("a", "")]));
        let system = prompt(json!([message("system", "s"), message("developer", "t"), message("user", "a")]));
        assert_eq!(system, chatml("s\n\nt", &[("a", "")]));
        assert_eq!(prompt(json!([message("system", ""), message("user", "a")])), chatml("", &[("a", "")]));
        let later = prompt(json!([
            message("system", "s"),
            message("user", "a"),
            message("assistant", "b"),
            message("system", "t"),
            message("user", "c"),
        ]));
        assert_eq!(later, chatml("s", &[("a", "b<|im_end|>"), ("t\n\nc", "")]));
        let neighbours = prompt(json!([message("system", ""), message("user", "a"), message("user", "b")]));
        assert_eq!(neighbours, chatml("", &[("a\n\nb", "")]));
        let first = prompt(json!([message("system", ""), message("assistant", "a"), message("user", "b")]));
        assert_eq!(first, chatml("", &[("", "a<|im_end|>"), ("b", "")]));
        let continued = prompt(json!([message("system", ""), message("user", "a"), message("assistant", "b c")]));
        assert_eq!(continued, chatml("", &[("a", "b c")]));
    }

    #[test]
    fn tools_are_text_where_the_template_has_none() {
        let call =
            json!({ "id": "call_1", "type": "function", "function": { "name": "f", "arguments": "{\"x\": 1}" } });
        let found = prompt(json!([
            { "role": "system", "content": "" },
            { "role": "user", "content": "a" },
            { "role": "assistant", "content": null, "tool_calls": [call] },
            { "role": "tool", "tool_call_id": "call_1", "content": "2" },
        ]));
        let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call><|im_end|>";
        let response = "<tool_response>\n2\n</tool_response>";
        assert_eq!(found, chatml("", &[("a", call), (response, "")]));
    }

    #[test]
    fn tools_are_described_where_the_template_has_none() {
        let (messages, _) = Messages::parse(Some(json!([{ "role": "user", "content": "a" }]))).expect("messages");
        let tools = [json!({ "type": "function", "function": { "name": "f" } })];
        let tools = PromptTools { is_native: false, described: &tools };
        let prompt = messages.prompt(&Template::ChatMl.into(), tools).expect("a prompt").to_string();
        let tool = "<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"f\"}}\n</tools>";
        assert!(prompt.starts_with("<|im_start|>system\nAnswer the questions.\n\n# Tools\n"), "{prompt}");
        assert!(prompt.contains(tool), "{prompt}");
    }

    /// Expectations: transformers' `apply_chat_template`, in templates/expected.json.
    #[test]
    fn templates_get_calls_and_tools_as_values() {
        type Case = (String, String, String, Map<String, Value>);
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../../tests/data/text/templates/expected.json")).expect("cases");
        let mut tested = 0;
        for (name, source) in [
            ("qwen25", include_str!("../../../tests/data/text/templates/qwen25.jinja")),
            ("mistral3", include_str!("../../../tests/data/text/templates/mistral3.jinja")),
            ("llama31", include_str!("../../../tests/data/text/templates/llama31.jinja")),
        ] {
            for (_, case, variables, expected) in cases.iter().filter(|case| case.0 == name) {
                let variables: Value = serde_json::from_str(variables).expect("JSON");
                let (Some(tools), Some(text)) =
                    (variables["tools"].as_array(), expected.get("text").and_then(Value::as_str))
                else {
                    continue;
                };
                if variables["add_generation_prompt"] != true || variables.as_object().map(Map::len) != Some(3) {
                    continue;
                }
                // As clients send calls: arguments are texts.
                let mut messages = variables["messages"].clone();
                for call in
                    messages.as_array_mut().into_iter().flatten().filter_map(|message| message.get_mut("tool_calls"))
                {
                    for call in call.as_array_mut().into_iter().flatten() {
                        let arguments = call["function"]["arguments"].to_string();
                        call["function"]["arguments"] = arguments.into();
                    }
                }
                let Ok((messages, _)) = Messages::parse(Some(messages)) else { continue };
                let settings = TemplateSettings {
                    special_tokens: [("bos_token", "<s>".to_owned()), ("eos_token", "</s>".to_owned())].into(),
                    control: ControlTokens::default(),
                    ..TemplateSettings::default()
                };
                let origin = TemplateSource { file: name.to_owned(), key: "", text: source.to_owned() };
                let template = PromptFormat::Jinja(ChatTemplate::new(origin, settings).expect(name));
                let tools = PromptTools { is_native: true, described: tools };
                let prompt =
                    messages.prompt(&template, tools).unwrap_or_else(|error| panic!("{name} {case}: {error:?}"));
                assert_eq!(prompt.to_string(), text, "{name}, {case}");
                tested += 1;
            }
        }
        assert!(tested >= 3, "{tested} cases have tools");
    }

    #[test]
    fn parts_are_joined_and_images_come_first() {
        let parts = json!([
            { "type": "text", "text": "a" },
            { "type": "image_url", "image_url": { "url": "data:x", "detail": "low" } },
            { "type": "text", "text": "b <image>" },
        ]);
        let (messages, ignored) =
            Messages::parse(Some(json!([{ "role": "user", "content": parts }]))).expect("messages");
        assert_eq!(ignored, ["image_url.detail"]);
        let image = ImageUrl { param: "messages[0].content[1].image_url".to_owned(), url: "data:x".to_owned() };
        assert_eq!(messages.first_image(), Some(&image));
        let prompt = messages.prompt(&Template::ChatMl.into(), PromptTools::default()).expect("a prompt");
        assert_eq!(prompt.images(), 1, "a literal <image> is text");
        assert!(prompt.segments()[1].contains("a\nb <image>"), "{prompt}");
    }

    #[test]
    fn malformed_messages_are_named() {
        let param = |value: Value| {
            let error = Messages::parse(Some(value)).expect_err("an error").to_json();
            let error: Value = serde_json::from_str(&error).expect("JSON");
            error["error"]["param"].as_str().map(str::to_owned)
        };
        assert_eq!(param(json!("a")).as_deref(), Some("messages"));
        assert_eq!(param(json!([])).as_deref(), Some("messages"));
        assert_eq!(param(json!([1])).as_deref(), Some("messages[0]"));
        assert_eq!(param(json!([{ "role": "system", "content": "a" }])).as_deref(), Some("messages"));
        assert_eq!(param(json!([{ "role": "king", "content": "a" }])).as_deref(), Some("messages[0].role"));
        assert_eq!(param(json!([{ "role": "user" }])).as_deref(), Some("messages[0].content"));
        assert_eq!(param(json!([{ "role": "assistant", "content": null }])).as_deref(), Some("messages[0].content"));
        let image = json!([{ "type": "image_url", "image_url": "data:x" }]);
        let place = "messages[0].content[0].image_url";
        assert_eq!(param(json!([{ "role": "assistant", "content": image }])).as_deref(), Some(place));
        let audio = json!([{ "type": "input_audio", "input_audio": {} }]);
        assert_eq!(param(json!([{ "role": "user", "content": audio }])).as_deref(), Some("messages[0].content[0]"));
    }
}
