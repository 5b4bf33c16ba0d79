//! JSON as Python writes it. What strict JSON reads must come out the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    let lenient: Result<Value, _> = mgm::json::from_slice(bytes);
    if let Ok(strict) = serde_json::from_slice::<Value>(bytes) {
        assert_eq!(lenient.expect("strict JSON"), strict);
    }
});
