//! Chat templates, with a message of any text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mgm::text::chat_template::{ChatTemplate, ControlTokens, TemplateSettings, TemplateSource};
use mgm::text::{Conversation, PromptFormat};

fuzz_target!(|parts: (&str, &str)| {
    let (content, template) = parts;
    let control = ControlTokens { special: vec!["</s>".to_owned()], markers: vec!["<think>".to_owned()] };
    let source = TemplateSource { text: template.to_owned(), ..TemplateSource::default() };
    if let Ok(template) = ChatTemplate::new(source, TemplateSettings { control, ..TemplateSettings::default() }) {
        let mut talk = Conversation::new(PromptFormat::Jinja(template));
        talk.ask(content, 0);
        let _ = talk.prompt();
    }
});
