//! The index of a sharded checkpoint.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mgm::io::MemoryFolder;
use mgm::weights::checkpoint::Checkpoint;

fuzz_target!(|bytes: &[u8]| {
    const INDEX: &str = "model.safetensors.index.json";
    let _ = mgm::weights::index::parse_index(INDEX, bytes);
    let folder = MemoryFolder::new([(INDEX, bytes)]);
    let _ = pollster::block_on(Checkpoint::open(&folder, &[INDEX]));
});
