//! Images: decode, pad, resize, normalise, encode as PNG.

mod buffer;
#[cfg(feature = "decode")]
mod container;
#[cfg(feature = "decode")]
mod decode;
#[cfg(feature = "decode")]
mod png;
mod preprocess;
mod resize;
#[cfg(feature = "decode")]
mod tiff_kinds;

pub use buffer::Image;
#[cfg(feature = "decode")]
pub use decode::{ImageDecoding, decode, decode_as, decode_mask_within, decode_within};
#[cfg(feature = "decode")]
pub use png::encode_png;
#[doc(hidden)]
pub use preprocess::{CLIP_MEAN, CLIP_STD, Preprocess, Views};
#[doc(hidden)]
pub use resize::{Canvas, Window, bicubic, bilinear};
