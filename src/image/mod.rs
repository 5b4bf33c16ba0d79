//! Pictures in: decode, pad, resize, normalise.

mod decode;
mod preprocess;
mod resize;

pub use decode::{Rgb8, decode};
pub use preprocess::{CLIP_MEAN, CLIP_STD, Preprocess, Views};
pub use resize::{Canvas, Window, bicubic, bilinear};
