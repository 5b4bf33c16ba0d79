//! Chat templates, with a message of any text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mgm::text::chat_template::{ChatTemplate, ControlTokens, Message};

fuzz_target!(|parts: (&str, &str)| {
    let (content, template) = parts;
    if let Ok(template) = ChatTemplate::new("fuzz", template, "<s>", "</s>", ControlTokens::default()) {
        let _ = template.render(&[Message { role: "user", content }]);
    }
});
