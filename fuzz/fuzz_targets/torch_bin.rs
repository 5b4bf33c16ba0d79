//! A torch archive: zip, pickle and storages. What opens is read too.
#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use mgm::io::MemorySource;
use mgm::weights::checkpoint::Checkpoint;

fuzz_target!(|bytes: &[u8]| {
    let source = Rc::new(MemorySource::new("pytorch_model.bin", bytes));
    if let Ok(checkpoint) = pollster::block_on(Checkpoint::open_file(source)) {
        for name in checkpoint.names() {
            let _ = pollster::block_on(checkpoint.read(name));
        }
    }
});
