//! The tokenizer in a GGUF header, with a text. The header needs no tensors, so a fuzzer spends its time here rather
//! than on a model's configuration. What opens encodes the text, and the ids are tokens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mgm::io::MemorySource;
use mgm::text::tokenizer::Tokenizer;
use mgm::weights::gguf::Header;

fuzz_target!(|parts: (&str, &[u8])| {
    let (text, file) = parts;
    let source = MemorySource::new("fuzz.gguf", file);
    let Ok(header) = pollster::block_on(Header::read(&source)) else { return };
    let Ok(tokenizer) = Tokenizer::from_gguf(&header) else { return };
    if let Ok(ids) = tokenizer.encode(text) {
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()), "{ids:?} of {}", tokenizer.vocab_size());
        let _ = tokenizer.decode(&ids, false);
        let _ = tokenizer.answer(&ids);
    }
});
