//! Pictures of a page.

use mgm::image::Rgb8;
use wasm_bindgen::prelude::*;

#[wasm_bindgen]
extern "C" {
    /// `ImageData`, or anything with its properties.
    pub type Pixels;
    #[wasm_bindgen(method, getter)]
    fn width(this: &Pixels) -> u32;
    #[wasm_bindgen(method, getter)]
    fn height(this: &Pixels) -> u32;
    #[wasm_bindgen(method, getter)]
    fn data(this: &Pixels) -> js_sys::Uint8ClampedArray;
}

/// The colours of a picture.
pub fn to_rgb(image: &Pixels) -> mgm::Result<Rgb8> {
    // In strips: this memory can grow, and never shrinks.
    const STRIP: u32 = 4 << 18;
    let rgba = image.data();
    let mut rgb = Vec::with_capacity(rgba.length() as usize / 4 * 3);
    for start in (0..rgba.length()).step_by(STRIP as usize) {
        let strip = rgba.subarray(start, (start + STRIP).min(rgba.length())).to_vec();
        // Alpha is dropped, not composited: so does the reference.
        rgb.extend(strip.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]));
    }
    Rgb8::new(image.width() as usize, image.height() as usize, rgb)
}
