//! GGUF files: the header, the tokenizer and the conversation template in it, and the first rows of every tensor.
#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use mgm::io::MemorySource;
use mgm::text::chat_template::{ChatTemplate, Message, TemplateSource};
use mgm::text::tokenizer::Tokenizer;
use mgm::weights::gguf_model::GgufModel;
use mgm::weights::row_order::RowOrder;

fuzz_target!(|bytes: &[u8]| {
    let source = Rc::new(MemorySource::new("fuzz.gguf", bytes));
    let Ok(model) = pollster::block_on(GgufModel::open(source)) else { return };
    for name in model.weights.names() {
        let _ = pollster::block_on(model.weights.read_rows(name, 0..1));
        let _ = pollster::block_on(model.weights.read_blocks(name, 0..1, RowOrder::Plain));
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(&model.header) {
        let _ = tokenizer.encode("the 42 é<s>");
    }
    if let Some(template) = model.header.text("tokenizer.chat_template")
        && let Ok(template) = ChatTemplate::new(TemplateSource { text: template.to_owned(), ..Default::default() }, Default::default())
    {
        let _ = template.render(&[Message { role: "user", content: "hello" }]);
    }
});
