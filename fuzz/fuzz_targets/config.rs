//! The JSON configurations.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mgm::weights::config::{ClipConfig, GenerationConfig, MgmConfig};

fuzz_target!(|bytes: &[u8]| {
    let _ = MgmConfig::parse("config.json", bytes);
    let _ = ClipConfig::parse("config.json", bytes);
    let _ = GenerationConfig::parse("generation_config.json", bytes);
});
