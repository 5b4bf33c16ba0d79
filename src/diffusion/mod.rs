//! Stable Diffusion XL (Podell et al., 2023): text encoders, UNet, and the autoencoder between pictures and latents.
//!
//! The three networks take tensors and give tensors; what goes on between them (schedules, guidance, seeds) is the host of
//! numbers' business, not the device's. All maps have their channels last, from the first convolution to the last pixel.

pub mod config;

pub use config::{TextEncoderConfig, UnetConfig, UnetLevel, VaeConfig};
