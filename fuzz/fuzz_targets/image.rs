//! Image files of all formats. An image that decodes has the pixels that its size says.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(image) = mgm::image::decode("fuzz", bytes) {
        assert_eq!(image.data().len(), 3 * image.width() * image.height());
    }
});
