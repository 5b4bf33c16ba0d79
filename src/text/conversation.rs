//! Conversation templates: the exact strings that the models were trained on, and the positions of images in them.

use std::fmt;
use std::str::FromStr;

use super::chat_template::{ChatTemplate, Message};
use super::prompt::{Author, Prompt};
use super::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The conversation template that a model was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Template {
    /// `vicuna_v1`: MGM-7B, 13B.
    Vicuna,
    /// `gemma`: MGM-2B.
    Gemma,
    /// `mistral_instruct`: MGM-8x7B.
    Mistral,
    /// `chatml_direct`: MGM-34B.
    ChatMl,
    /// `llama_3`: MGM-8B. The assistant's header is `system`, as in training.
    Llama3,
}

/// Every template with its reference name and the short names that are accepted too.
const NAMES: [(Template, &str, &[&str]); 5] = [
    (Template::Vicuna, "vicuna_v1", &["vicuna", "v1"]),
    (Template::Gemma, "gemma", &[]),
    (Template::Mistral, "mistral_instruct", &["mistral", "mixtral"]),
    (Template::ChatMl, "chatml_direct", &["chatml", "yi"]),
    (Template::Llama3, "llama_3", &["llama3", "llama-3"]),
];

/// What [`Template::detect`] uses in addition to the tokenizer.
#[derive(Debug, Clone, Copy, Default)]
#[doc(hidden)]
pub struct TemplateFacts<'a> {
    /// `model_type` of `config.json`.
    pub model_type: &'a str,
    /// Experts of a layer (`num_local_experts`); 0 or 1 for dense models.
    pub num_experts: usize,
    /// The checkpoint's folder name.
    pub checkpoint: &'a str,
}

impl Template {
    /// The reference's name.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(template, ..)| *template == self).map_or("", |(_, name, _)| name)
    }

    /// The system text of the training; `None` if the template has no system part.
    pub fn default_system(self) -> Option<&'static str> {
        match self {
            Self::Vicuna => Some(
                "A chat between a curious user and an artificial intelligence assistant. \
                 The assistant gives helpful, detailed, and polite answers to the user's questions.",
            ),
            Self::ChatMl => Some("Answer the questions."),
            Self::Llama3 => Some(
                "You are a helpful language and vision assistant. You are able to understand the visual content that \
                 the user provides, and assist the user with a variety of tasks using natural language.",
            ),
            Self::Gemma | Self::Mistral => None,
        }
    }

    /// The template's own text: two turns without questions and answers.
    pub(crate) fn markers(self) -> String {
        let turns = vec![Turn::new("", 0).with_answer(""), Turn::new("", 0)];
        Conversation { system: Some(String::new()), turns, ..Conversation::new(self) }.builtin_prompt(self).to_string()
    }

    /// The template of a checkpoint. The architecture and the tokenizer's turn markers decide, then the folder's name,
    /// with Vicuna as the default. (The reference uses the folder's name alone, and so takes 8B for a Vicuna.)
    pub fn detect(facts: TemplateFacts<'_>, tokenizer: &Tokenizer) -> Self {
        let has = |token| tokenizer.token_id(token).is_some();
        let model_type = facts.model_type.to_lowercase();
        if facts.num_experts > 1 || model_type.contains("mixtral") {
            return Self::Mistral;
        }
        if has("<|start_header_id|>") {
            return Self::Llama3;
        }
        if has("<|im_start|>") {
            return Self::ChatMl;
        }
        if has("<start_of_turn>") || model_type.contains("gemma") {
            return Self::Gemma;
        }
        let name = facts.checkpoint.to_lowercase();
        if name.contains("8x7b") {
            Self::Mistral
        } else if name.contains("34b") {
            Self::ChatMl
        } else {
            Self::Vicuna
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Template {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let wanted = name.to_lowercase();
        NAMES
            .iter()
            .find(|(_, own, aliases)| *own == wanted || aliases.contains(&wanted.as_str()))
            .map(|(template, ..)| *template)
            .ok_or_else(|| Error::Unsupported {
                what: "conversation template".to_owned(),
                found: name.to_owned(),
                supported: NAMES.map(|(_, name, _)| name).join(", "),
            })
    }
}

/// One question and, once there is one, its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Turn {
    /// What the user wrote.
    pub question: String,
    /// Number of images in the turn.
    pub images: usize,
    /// The model's answer; `None` before it.
    pub answer: Option<String>,
}

impl Turn {
    /// A question with `images` images, without an answer.
    pub fn new(question: impl Into<String>, images: usize) -> Self {
        Self { question: question.into(), images, answer: None }
    }

    /// The same with the model's answer.
    #[must_use]
    pub fn with_answer(mut self, answer: impl Into<String>) -> Self {
        self.answer = Some(answer.into());
        self
    }
}

/// How a conversation is written as a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PromptFormat {
    /// One of the templates of Mini-Gemini models.
    Builtin(Template),
    /// The model's own Jinja template, without images.
    Jinja(ChatTemplate),
}

impl From<Template> for PromptFormat {
    fn from(template: Template) -> Self {
        Self::Builtin(template)
    }
}

/// A conversation so far.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Conversation {
    /// How it is written.
    pub format: PromptFormat,
    /// Replaces the template's system text; an empty text removes the system part. Gemma's and Mistral's templates have
    /// no system part: there the text goes before the first question, followed by an empty line.
    pub system: Option<String>,
    /// The turns, oldest first; only the last may lack its answer.
    pub turns: Vec<Turn>,
    /// Control tokens in questions, answers and the system text take effect, as in the reference. By default they are
    /// encoded as ordinary text.
    pub allow_special_tokens: bool,
}

impl Conversation {
    /// An empty conversation with the template's system text.
    pub fn new(format: impl Into<PromptFormat>) -> Self {
        Self { format: format.into(), system: None, turns: Vec::new(), allow_special_tokens: false }
    }

    /// Adds the user's question with `images` new images.
    pub fn ask(&mut self, question: impl Into<String>, images: usize) {
        self.turns.push(Turn::new(question, images));
    }

    /// Sets the model's answer to the last question.
    pub fn answer(&mut self, answer: impl Into<String>) {
        if let Some(turn) = self.turns.last_mut() {
            turn.answer = Some(answer.into());
        }
    }

    /// Number of images in all turns.
    pub fn images(&self) -> usize {
        self.turns.iter().map(|turn| turn.images).sum()
    }

    /// The prompt for the model's next answer. Each turn's images precede its question, one per line, numbered if the
    /// conversation has two or more. The prompt has exactly [`Conversation::images`] images: a literal `<image>` in a
    /// question or answer is ordinary text.
    ///
    /// # Errors
    /// [`Error::Config`] if a Jinja template fails; [`Error::InvalidArgument`] for images with a Jinja template.
    pub fn prompt(&self) -> Result<Prompt> {
        match &self.format {
            PromptFormat::Builtin(template) => Ok(self.builtin_prompt(*template)),
            PromptFormat::Jinja(template) => self.jinja_prompt(template),
        }
    }

    /// The prompt for the rest of an answer to the last question, which has none: `answer` is its beginning.
    ///
    /// # Errors
    /// As [`Self::prompt`].
    pub fn prompt_to_continue(&self, answer: &str) -> Result<Prompt> {
        let mut prompt = self.prompt()?;
        // The templates that separate the assistant's header from the answer by a space.
        if matches!(self.format, PromptFormat::Builtin(Template::Vicuna | Template::Mistral)) {
            prompt.push_text(" ");
        }
        if self.allow_special_tokens {
            prompt.push_text(answer);
        } else {
            prompt.push_data(answer, Author::Model);
        }
        Ok(prompt)
    }

    fn jinja_prompt(&self, template: &ChatTemplate) -> Result<Prompt> {
        if self.images() > 0 {
            return Err(Error::InvalidArgument(
                "this model's own conversation template does not support images".to_owned(),
            ));
        }
        // `first` replaces the first question.
        let render = |system: Option<&str>, first: Option<&str>| {
            let mut messages: Vec<_> = system.iter().map(|content| Message { role: "system", content }).collect();
            for (index, turn) in self.turns.iter().enumerate() {
                let question = first.filter(|_| index == 0).unwrap_or(&turn.question);
                messages.push(Message { role: "user", content: question });
                messages.extend(turn.answer.as_deref().map(|content| Message { role: "assistant", content }));
            }
            if self.allow_special_tokens {
                return Ok(Prompt::from_text(template.render(&messages)?, Vec::new()));
            }
            template.render_with_data(&messages)
        };
        let system = self.system.as_deref().filter(|text| !text.is_empty());
        render(system, None).or_else(|error| match (system, self.turns.first()) {
            // Gemma's and Mistral's templates refuse system messages: put the text before the first question.
            (Some(system), Some(turn)) => render(None, Some(&format!("{system}\n\n{}", turn.question))),
            _ => Err(error),
        })
    }

    fn builtin_prompt(&self, template: Template) -> Prompt {
        let (numbered, allow_special_tokens) = (self.images() > 1, self.allow_special_tokens);
        let mut prompt = PromptWriter { prompt: Prompt::default(), numbered, allow_special_tokens };
        let own = self.system.as_deref();
        let system = own.or(template.default_system()).filter(|text| !text.is_empty());
        let last = self.turns.len().saturating_sub(1);
        match template {
            Template::Vicuna => {
                if let Some(system) = system {
                    prompt.data(system, Author::User).text(" ");
                }
                for turn in &self.turns {
                    prompt.text("USER: ").question(turn).text(" ASSISTANT:");
                    if let Some(answer) = &turn.answer {
                        prompt.text(" ").data(answer, Author::Model).text("</s>");
                    }
                }
            }
            Template::Gemma => {
                for (index, turn) in self.turns.iter().enumerate() {
                    prompt.text("<start_of_turn>user\n");
                    if let (0, Some(system)) = (index, system) {
                        prompt.data(system, Author::User).text("\n\n");
                    }
                    prompt.question(turn).text("<end_of_turn>\n<start_of_turn>model\n");
                    if let Some(answer) = &turn.answer {
                        prompt.data(answer, Author::Model).text("<end_of_turn>\n<eos>");
                    }
                }
            }
            Template::Mistral => {
                for (index, turn) in self.turns.iter().enumerate() {
                    prompt.text("[INST] ");
                    if let (0, Some(system)) = (index, system) {
                        prompt.data(system, Author::User).text("\n\n");
                    }
                    prompt.question(turn).text(" [/INST]");
                    if let Some(answer) = &turn.answer {
                        prompt.text(" ").data(answer, Author::Model).text(" </s>");
                        if index < last {
                            prompt.text("<s>");
                        }
                    }
                }
            }
            Template::ChatMl => {
                if let Some(system) = system {
                    prompt.text("<|im_start|>system\n").data(system, Author::User).text("<|im_end|>");
                }
                for turn in &self.turns {
                    prompt.text("<|im_start|>user\n").question(turn).text("<|im_end|><|im_start|>assistant\n");
                    if let Some(answer) = &turn.answer {
                        prompt.data(answer, Author::Model).text("<|im_end|>");
                    }
                }
            }
            Template::Llama3 => {
                if let Some(system) = system {
                    prompt
                        .text("<|start_header_id|>system<|end_header_id|>\n\n")
                        .data(system, Author::User)
                        .text("<|eot_id|>");
                }
                for turn in &self.turns {
                    prompt.text("<|start_header_id|>user<|end_header_id|>\n\n").question(turn);
                    prompt.text("<|eot_id|><|start_header_id|>system<|end_header_id|>\n\n");
                    if let Some(answer) = &turn.answer {
                        prompt.data(answer, Author::Model).text("<|eot_id|>");
                    }
                }
            }
        }
        prompt.prompt
    }
}

struct PromptWriter {
    prompt: Prompt,
    numbered: bool,
    allow_special_tokens: bool,
}

impl PromptWriter {
    fn text(&mut self, text: &str) -> &mut Self {
        self.prompt.push_text(text);
        self
    }

    fn data(&mut self, text: &str, author: Author) -> &mut Self {
        if self.allow_special_tokens {
            return self.text(text);
        }
        self.prompt.push_data(text, author);
        self
    }

    fn question(&mut self, turn: &Turn) -> &mut Self {
        for _ in 0..turn.images {
            if self.numbered {
                let number = self.prompt.images() + 1;
                self.text(&format!("Image {number}:"));
            }
            self.prompt.push_image();
            self.text("\n");
        }
        self.data(&turn.question, Author::User)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used)]
    use super::super::chat_template::{TemplateSettings, TemplateSource};
    use super::*;

    fn prompts(template: Template, system: Option<&str>) -> (String, String) {
        let mut talk = Conversation::new(template);
        talk.system = system.map(str::to_owned);
        talk.ask("Why?", 1);
        let first = talk.prompt().expect("a prompt").to_string();
        talk.answer("So.");
        talk.ask("And?", 0);
        (first, talk.prompt().expect("a prompt").to_string())
    }

    #[test]
    fn an_answer_is_continued_as_it_was_written() {
        for (template, ..) in NAMES {
            let mut talk = Conversation::new(template);
            talk.ask("Why?", 1);
            let continued = talk.prompt_to_continue("So </s>").expect("a prompt");
            talk.answer("So </s> it is.");
            let whole = talk.prompt().expect("a prompt").to_string();
            assert!(whole.starts_with(&continued.to_string()), "{continued} in {whole}");
            let spans: Vec<_> = continued.parts().flat_map(|(_, data)| data.to_vec()).collect();
            assert!(spans.iter().any(|span| span.author == Author::Model), "control tokens take no effect");
        }
    }

    /// Expected strings from the reference's table of templates.
    #[test]
    fn templates_write_the_reference_strings() {
        let vicuna = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, \
                      detailed, and polite answers to the user's questions. USER: <image>\nWhy? ASSISTANT:";
        let llama = "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are \
                     able to understand the visual content that the user provides, and assist the user with a variety of \
                     tasks using natural language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<image>\nWhy?<|eot_id|>\
                     <|start_header_id|>system<|end_header_id|>\n\n";
        let cases = [
            (Template::Vicuna, vicuna, " So.</s>USER: And? ASSISTANT:"),
            (
                Template::Gemma,
                "<start_of_turn>user\n<image>\nWhy?<end_of_turn>\n<start_of_turn>model\n",
                "So.<end_of_turn>\n<eos><start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n",
            ),
            (Template::Mistral, "[INST] <image>\nWhy? [/INST]", " So. </s><s>[INST] And? [/INST]"),
            (
                Template::ChatMl,
                "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nWhy?<|im_end|>\
                 <|im_start|>assistant\n",
                "So.<|im_end|><|im_start|>user\nAnd?<|im_end|><|im_start|>assistant\n",
            ),
            (
                Template::Llama3,
                llama,
                "So.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|>\
                 <|start_header_id|>system<|end_header_id|>\n\n",
            ),
        ];
        for (template, first, more) in cases {
            assert_eq!(prompts(template, None), (first.to_owned(), format!("{first}{more}")), "{template}");
        }
    }

    #[test]
    fn system_text_that_a_template_refuses_goes_before_the_first_question() {
        let source = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}\
                      [{{ m.content }}]{% endfor %}";
        let origin = TemplateSource { text: source.to_owned(), ..TemplateSource::default() };
        let template = ChatTemplate::new(origin, TemplateSettings::default()).expect("a template");
        let mut talk = Conversation::new(PromptFormat::Jinja(template));
        talk.system = Some("Be brief.".to_owned());
        for question in ["Why?", "And?"] {
            talk.ask(question, 0);
            talk.answer("So.");
        }
        assert_eq!(talk.prompt().expect("a prompt").to_string(), "[Be brief.\n\nWhy?][So.][And?][So.]");
    }

    #[test]
    fn system_text_is_replaced_or_left_out() {
        let first = |template, system| prompts(template, Some(system)).0;
        assert_eq!(first(Template::Vicuna, "Be brief."), "Be brief. USER: <image>\nWhy? ASSISTANT:");
        assert_eq!(first(Template::Vicuna, ""), "USER: <image>\nWhy? ASSISTANT:");
        assert_eq!(first(Template::Mistral, "Be brief."), "[INST] Be brief.\n\n<image>\nWhy? [/INST]");
        assert!(first(Template::Gemma, "Be brief.").starts_with("<start_of_turn>user\nBe brief.\n\n<image>\nWhy?"));
        assert!(first(Template::ChatMl, "").starts_with("<|im_start|>user\n"));
        assert!(first(Template::Llama3, "S").starts_with("<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"));
    }

    #[test]
    fn several_images_are_numbered_across_turns() {
        let mut talk = Conversation::new(Template::Mistral);
        talk.ask("Compare.", 2);
        assert_eq!(
            talk.prompt().expect("a prompt").to_string(),
            "[INST] Image 1:<image>\nImage 2:<image>\nCompare. [/INST]"
        );
        talk.answer("Same.");
        talk.ask("And this?", 1);
        let prompt = talk.prompt().expect("a prompt");
        assert!(prompt.to_string().ends_with("<s>[INST] Image 3:<image>\nAnd this? [/INST]"));
        assert_eq!((prompt.images(), prompt.segments().len()), (3, 4));
    }

    #[test]
    fn a_typed_placeholder_is_text() {
        let mut talk = Conversation::new(Template::Mistral);
        talk.ask("What does <image> mean?", 1);
        let prompt = talk.prompt().expect("a prompt");
        assert_eq!(prompt.segments(), ["[INST] ", "\nWhat does <image> mean? [/INST]"]);
        assert_eq!(Prompt::with_placeholders(&prompt.to_string()).images(), 2);
    }

    #[test]
    fn names_are_parsed() {
        for (template, name, aliases) in NAMES {
            for name in [name].iter().chain(aliases) {
                assert_eq!(name.parse::<Template>().expect(name), template);
            }
        }
        let error = "alpaca".parse::<Template>().expect_err("unknown").to_string();
        assert!(error.contains("alpaca") && error.contains("chatml_direct"), "{error}");
    }
}
