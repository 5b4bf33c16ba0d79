//! The networks of Stable Diffusion XL: text encoders, UNet, and the autoencoder (VAE).

mod pixel_attention;
mod resnet;
mod statistics;
mod text_encoder;
mod tiles;
mod transformer;
mod unet;
mod vae;

pub use text_encoder::{TextEncoder, TextEncoding};
pub use unet::{Condition, Unet};
pub(in crate::diffusion) use vae::MAX_MAP;
pub use vae::{VaeDecoder, VaeEncoder};
