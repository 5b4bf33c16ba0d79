//! Stable Diffusion XL (Podell et al., 2023): text encoders, UNet, and the autoencoder (VAE).
//!
//! The networks run on the device. The CPU computes schedules, step coefficients and noise. Feature maps are
//! channels-last.

pub mod gen_protocol;
pub mod limits;
#[cfg(feature = "gpu")]
mod networks;
#[cfg(feature = "gpu")]
mod pipeline;
pub mod png_metadata;
#[doc(hidden)]
pub mod preview;
#[doc(hidden)]
pub mod scheduler;
#[doc(hidden)]
pub mod torch_rng;

#[cfg(feature = "gpu")]
#[doc(hidden)]
pub use networks::{Condition, TextEncoder, TextEncoding, Unet, VaeDecoder, VaeEncoder};
#[cfg(feature = "gpu")]
pub use pipeline::{
    DiffusionEvent, DiffusionOptions, DiffusionPipeline, DiffusionRequest, GenerateImage, GeneratedImage,
    InitialLatents, Mask, OnDiffusionEvent, PromptEmbeds,
};
#[doc(inline)]
pub use torch_rng::NoiseType;
