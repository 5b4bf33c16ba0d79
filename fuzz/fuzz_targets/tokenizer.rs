//! A tokenizer in JSON (`tokenizer.json`) and its settings (`tokenizer_config.json`). What opens encodes a text too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mgm::io::MemoryFolder;
use mgm::text::tokenizer::Tokenizer;

fuzz_target!(|parts: (&str, &[u8])| {
    let (config, tokenizer) = parts;
    let folder = MemoryFolder::new([("tokenizer_config.json", config.as_bytes()), ("tokenizer.json", tokenizer)]);
    if let Ok(tokenizer) = pollster::block_on(Tokenizer::load(&folder)) {
        let _ = tokenizer.encode("the 42 é<s>").map(|ids| tokenizer.decode(&ids, true));
    }
});
