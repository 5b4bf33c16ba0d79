use super::{MAX_PIXEL_CHANNELS, block_types, channels};
use crate::Result;
use crate::weights::config::json::Settings;
use crate::weights::config::{MAX_LAYERS, MAX_WIDTH};

/// The sizes and constants of an autoencoder between images and latents.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of an input image.
    pub in_channels: usize,
    /// Channels of an output image.
    pub out_channels: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Channels of each level, from the image side.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of GroupNorm.
    pub norm_num_groups: usize,
    /// Latents are the encoder's output multiplied by this.
    pub scaling_factor: f32,
    /// Subtracted from the encoder's output before scaling; 0 in Stable Diffusion XL.
    pub shift_factor: f32,
    /// Mean of each latent channel, if latents are normalised per channel.
    pub latents_mean: Option<Vec<f32>>,
    /// Standard deviation of each latent channel.
    pub latents_std: Option<Vec<f32>>,
    /// A 1 x 1 convolution after the encoder.
    pub use_quant_conv: bool,
    /// A 1 x 1 convolution before the decoder.
    pub use_post_quant_conv: bool,
    /// Attention in the middle block.
    pub mid_block_attention: bool,
    /// diffusers computes it in f32 even if the rest is f16.
    pub force_upcast: bool,
    /// Side of the images in training.
    pub sample_size: usize,
}

impl VaeConfig {
    /// Reads an autoencoder's `config.json`; `file` is its name for messages.
    ///
    /// # Errors
    /// As [`UnetConfig::parse`](super::UnetConfig::parse).
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let settings = Settings::parse(file, bytes)?;
        settings.only("_class_name", &["AutoencoderKL".into()])?;
        settings.only("act_fn", &["silu".into(), "swish".into()])?;
        let file = settings.file;
        let (block_out_channels, norm_num_groups) = channels(&settings)?;
        for (key, name) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            block_types(&settings, key, block_out_channels.len(), name, name)?;
        }
        let latent_channels = settings.size("latent_channels", 4, MAX_PIXEL_CHANNELS)?;
        let by_channel = |key: &str| match settings.get::<Vec<f32>>(key)? {
            Some(values) if values.len() != latent_channels || values.iter().any(|value| !value.is_finite()) => {
                Err(file.error(format!("{key} is {values:?}, expected {latent_channels} numbers")))
            }
            values => Ok(values),
        };
        Ok(Self {
            in_channels: settings.size("in_channels", 3, MAX_PIXEL_CHANNELS)?,
            out_channels: settings.size("out_channels", 3, MAX_PIXEL_CHANNELS)?,
            latent_channels,
            latents_mean: by_channel("latents_mean")?,
            latents_std: by_channel("latents_std")?,
            block_out_channels,
            layers_per_block: settings.size("layers_per_block", 1, MAX_LAYERS)?,
            norm_num_groups,
            scaling_factor: settings.positive("scaling_factor", 0.18215, 1e6)?,
            shift_factor: settings.get("shift_factor")?.unwrap_or(0.0),
            use_quant_conv: settings.flag("use_quant_conv", true)?,
            use_post_quant_conv: settings.flag("use_post_quant_conv", true)?,
            mid_block_attention: settings.flag("mid_block_add_attention", true)?,
            force_upcast: settings.flag("force_upcast", true)?,
            sample_size: settings.suggested_size("sample_size", 1024, MAX_WIDTH),
        })
    }

    /// The released autoencoder of Stable Diffusion XL.
    pub fn sdxl() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            scaling_factor: 0.13025,
            shift_factor: 0.0,
            latents_mean: None,
            latents_std: None,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_attention: true,
            force_upcast: true,
            sample_size: 1024,
        }
    }

    /// Pixels per latent along a side: 2 for each level except the last.
    pub fn pixels_per_latent(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}
