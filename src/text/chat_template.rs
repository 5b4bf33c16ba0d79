//! A model's own conversation template: Jinja, rendered as by transformers' `apply_chat_template`.

use std::fmt;
use std::rc::Rc;

use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;

use crate::{Error, Result};

/// A compiled template.
#[derive(Clone)]
pub struct ChatTemplate(Rc<Inner>);

struct Inner {
    file: String,
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// One message of a conversation.
#[derive(Debug, Clone, Serialize)]
pub struct Message<'a> {
    /// `system`, `user` or `assistant`.
    pub role: &'a str,
    /// Its text.
    pub content: &'a str,
}

/// Most instructions of a rendering; a turn takes some tens.
const FUEL: u64 = 1_000_000;

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles a template found in `file`; `bos` and `eos` are the texts of those tokens.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not Jinja.
    pub fn new(file: &str, source: &str, bos: &str, eos: &str) -> Result<Self> {
        let mut environment = Environment::new();
        // As transformers configures Jinja.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        // Templates come from files: bound their run time.
        environment.set_recursion_limit(64);
        environment.set_fuel(Some(FUEL));
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<String, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_template_owned(NAME, without_generation_marks(source)).map_err(|error| failed(file, &error))?;
        let (file, bos, eos) = (file.to_owned(), bos.to_owned(), eos.to_owned());
        Ok(Self(Rc::new(Inner { file, environment, bos, eos })))
    }

    /// The prompt for the assistant's next message.
    ///
    /// # Errors
    /// [`Error::Config`] with the template's own message if it refuses the conversation.
    pub fn render(&self, messages: &[Message<'_>]) -> Result<String> {
        let Inner { file, environment, bos, eos } = &*self.0;
        environment
            .get_template(NAME)
            .and_then(|template| {
                template.render(context! {
                    messages, add_generation_prompt => true, bos_token => bos, eos_token => eos,
                })
            })
            .map_err(|error| failed(file, &error))
    }
}

/// transformers marks the assistant's part with `{% generation %}` for training. It prints nothing, but like any block
/// it trims the white space around it.
fn without_generation_marks(source: &str) -> String {
    let mut rest = source;
    let mut output = String::with_capacity(source.len());
    while let Some(start) = rest.find("{%") {
        let inside = start + 2;
        let Some(end) = rest[inside..].find("%}").map(|end| inside + end) else { break };
        let block = &rest[inside..end];
        output.push_str(&rest[..inside]);
        output.push_str(&match block.trim_matches(['-', '+', ' ']) {
            "endgeneration" => block.replace("endgeneration", "endif"),
            "generation" => block.replace("generation", "if true"),
            _ => block.to_owned(),
        });
        rest = &rest[end..];
    }
    output + rest
}

fn failed(file: &str, error: &minijinja::Error) -> Error {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let line = error.line().map_or(String::new(), |line| format!(" in line {line}"));
    Error::Config { file: file.to_owned(), reason: format!("tokenizer.chat_template{line}: {detail}") }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("file", &self.0.file).finish()
    }
}

impl PartialEq for ChatTemplate {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}
impl Eq for ChatTemplate {}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> String {
        let messages = [Message { role: "user", content: "one" }, Message { role: "user", content: "two" }];
        ChatTemplate::new("test", source, "<s>", "</s>").and_then(|template| template.render(&messages)).expect(source)
    }

    /// Expectations: transformers 4.49 `apply_chat_template` (Jinja 3.1, trim_blocks, lstrip_blocks, loopcontrols).
    #[test]
    fn templates_render_as_in_transformers() {
        assert_eq!(render("{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}\n"), "<s>onetwo");
        assert_eq!(render("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}"), "one");
        assert_eq!(
            render("{%- for m in messages %}{%- generation -%} {{ m.content }}{% endgeneration %}{% endfor %}"),
            "onetwo"
        );
        assert_eq!(
            render("{%- for m in messages %} {% generation %}\n {{ m.content }}{% endgeneration %}\n.{% endfor %}"),
            "  one.  two."
        );
        assert_eq!(
            render("{% for m in messages %}{% if loop.previtem %}<{{ loop.previtem.content }}{% endif %}{% endfor %}"),
            "<one"
        );
        assert_eq!(render("{{ messages[-1]['content'].strip().upper() }}"), "TWO");
    }

    #[test]
    fn malformed_templates_are_refused() {
        for source in ["{%}", "{%", "{% if %}", "{%%}", "a {%} b %}", "{{", "{% generation"] {
            let error = ChatTemplate::new("test", source, "", "").expect_err(source);
            assert!(matches!(error, Error::Config { .. }), "{source}: {error}");
        }
    }

    #[test]
    fn endless_templates_are_stopped() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}";
        let error =
            ChatTemplate::new("test", source, "", "").and_then(|template| template.render(&[])).expect_err("fuel");
        assert!(error.to_string().contains("fuel"), "{error}");
    }
}
