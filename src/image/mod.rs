//! Input images: decode, pad, resize, normalize.

#[cfg(feature = "decode")]
mod decode;
mod preprocess;
mod resize;
mod rgb8;

#[cfg(feature = "decode")]
pub use decode::decode;
pub use preprocess::{CLIP_MEAN, CLIP_STD, Preprocess, Views};
pub use resize::{Canvas, Window, bicubic, bilinear};
pub use rgb8::Rgb8;
