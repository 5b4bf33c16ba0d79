//! The pickle of a torch archive by itself, where a fuzzer gets further than through a zip's checks.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = mgm::weights::pickle::read_state_dict(bytes);
});
