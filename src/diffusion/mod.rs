//! Stable Diffusion XL (Podell et al., 2023): text encoders, UNet, and the autoencoder (VAE).
//!
//! The networks run on the device. The CPU computes schedules, step coefficients and noise. Feature maps are
//! channels-last.

pub mod gen_protocol;
#[cfg(feature = "gpu")]
mod generate;
#[cfg(feature = "gpu")]
pub mod pipeline;
#[cfg(feature = "gpu")]
mod pixel_attention;
pub mod png_metadata;
#[doc(hidden)]
pub mod preview;
#[cfg(feature = "gpu")]
mod request;
#[cfg(feature = "gpu")]
mod resnet;
#[doc(hidden)]
pub mod scheduler;
#[cfg(feature = "gpu")]
mod statistics;
#[cfg(feature = "gpu")]
mod text_encoder;
#[cfg(feature = "gpu")]
mod tiles;
#[doc(hidden)]
pub mod torch_rng;
#[cfg(feature = "gpu")]
mod transformer;
#[cfg(feature = "gpu")]
mod unet;
#[cfg(feature = "gpu")]
mod vae;

#[cfg(feature = "gpu")]
#[doc(hidden)]
pub use text_encoder::{TextEncoder, TextEncoding};
#[cfg(feature = "gpu")]
#[doc(hidden)]
pub use unet::{Condition, Unet};
#[cfg(feature = "gpu")]
#[doc(hidden)]
pub use vae::{VaeDecoder, VaeEncoder};
