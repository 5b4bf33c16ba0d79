//! SentencePiece models. What parses encodes too, with a text cut from the file itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mgm::text::sentencepiece::Model;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(model) = Model::parse(bytes) {
        let text = String::from_utf8_lossy(bytes);
        let known = model.pieces().len() as u32;
        assert!(model.encode(&text).iter().all(|&id| id < known));
        assert!(model.encode_without_prefix(&text).iter().all(|&id| id < known));
    }
});
