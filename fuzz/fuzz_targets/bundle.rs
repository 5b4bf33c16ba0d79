//! The manifest of a bundle, and the bytes of every file that it lists. What opens is read too.
#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use mgm::io::{Folder, MemoryFolder};
use mgm::weights::bundle::read::Bundle;
use mgm::weights::bundle::{MANIFEST, Manifest};

fuzz_target!(|parts: (&str, &[u8])| {
    let (manifest, shard) = parts;
    let Ok(parsed) = Manifest::parse(MANIFEST, manifest.as_bytes()) else { return };
    let listed = parsed.all_files().map(|entry| (entry.file.as_str(), shard));
    let folder: Rc<dyn Folder> = Rc::new(MemoryFolder::new(listed.chain([(MANIFEST, manifest.as_bytes())])));
    let Ok(Some(bundle)) = pollster::block_on(Bundle::find(&folder)) else { return };
    if let Ok(checkpoint) = pollster::block_on(bundle.checkpoint()) {
        for name in checkpoint.names() {
            let _ = pollster::block_on(checkpoint.read_rows(name, 0..1));
        }
    }
    let _ = pollster::block_on(bundle.gguf());
});
