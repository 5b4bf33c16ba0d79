//! Pixels that the page passes in.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hasher};

use mgm::image::Image;
use mgm::session::ImageSource;
use wasm_bindgen::prelude::*;

#[wasm_bindgen]
extern "C" {
    /// `ImageData`, or an object with the same properties.
    pub type Pixels;
    #[wasm_bindgen(method, getter)]
    fn width(this: &Pixels) -> u32;
    #[wasm_bindgen(method, getter)]
    fn height(this: &Pixels) -> u32;
    #[wasm_bindgen(method, getter)]
    fn data(this: &Pixels) -> js_sys::Uint8ClampedArray;
}

/// Pixels stay outside the wasm heap, which grows and never shrinks, until the model encodes them.
impl ImageSource for Pixels {
    fn content_hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write_u32(self.width());
        for_strips(self, |strip| hasher.write(strip));
        hasher.finish()
    }

    fn pixels(&self) -> mgm::Result<Cow<'_, Image>> {
        to_rgb(self).map(Cow::Owned)
    }
}

/// Copies the colours into the wasm heap. All pixels are opaque: `toPixels` in `ts/messages.ts` has put them over
/// white.
pub fn to_rgb(image: &Pixels) -> mgm::Result<Image> {
    let mut rgb = Vec::with_capacity(image.data().length() as usize / 4 * 3);
    for_strips(image, |strip| rgb.extend(strip.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])));
    Image::new(image.width() as usize, image.height() as usize, rgb)
}

fn for_strips(image: &Pixels, mut act: impl FnMut(&[u8])) {
    const STRIP: u32 = 4 << 18;
    let rgba = image.data();
    let mut strip = Vec::new();
    for start in (0..rgba.length()).step_by(STRIP as usize) {
        let part = rgba.subarray(start, (start + STRIP).min(rgba.length()));
        strip.resize(part.length() as usize, 0);
        part.copy_to(&mut strip);
        act(&strip);
    }
}
