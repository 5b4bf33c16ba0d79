//! A safetensors file. The length of its header is put right, which a fuzzer would not find. What opens is read too.
#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use mgm::io::MemorySource;
use mgm::weights::checkpoint::Checkpoint;

fuzz_target!(|parts: (&str, &[u8])| {
    let (header, data) = parts;
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    let source = Rc::new(MemorySource::new("model.safetensors", file));
    if let Ok(checkpoint) = pollster::block_on(Checkpoint::open_file(source)) {
        for (name, info) in checkpoint.tensors() {
            let rows = info.shape.first().copied().unwrap_or(1);
            let _ = pollster::block_on(checkpoint.read_rows(name, rows / 2..rows));
        }
    }
});
