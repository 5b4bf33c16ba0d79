//! Stable Diffusion XL (Podell et al., 2023): text encoders, UNet, and the autoencoder between pictures and latents.
//!
//! The three networks take tensors and give tensors; what goes on between them (schedules, guidance, seeds) is the host of
//! numbers' business, not the device's. All maps have their channels last, from the first convolution to the last pixel.

pub mod answer;
pub mod config;
#[cfg(feature = "gpu")]
pub mod pipeline;
#[cfg(feature = "gpu")]
mod pixel_attention;
pub mod preview;
pub mod random;
#[cfg(feature = "gpu")]
mod resnet;
pub mod scheduler;
pub mod settings;
#[cfg(feature = "gpu")]
mod statistics;
#[cfg(feature = "gpu")]
mod text_encoder;
#[cfg(feature = "gpu")]
mod tiles;
#[cfg(feature = "gpu")]
mod transformer;
pub mod twister;
#[cfg(feature = "gpu")]
mod unet;
#[cfg(feature = "gpu")]
mod vae;

#[cfg(feature = "gpu")]
pub use text_encoder::{TextEncoder, TextEncoding};
#[cfg(feature = "gpu")]
pub use unet::{Condition, Unet};
#[cfg(feature = "gpu")]
pub use vae::{VaeDecoder, VaeEncoder};

pub use config::{TextEncoderConfig, UnetConfig, UnetLevel, VaeConfig};
