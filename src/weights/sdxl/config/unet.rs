use serde_json::Value;

use super::{MAX_PIXEL_CHANNELS, block_types, channels, per_level};
use crate::Result;
use crate::weights::config::json::Settings;
use crate::weights::config::{MAX_HEADS, MAX_LAYERS, MAX_WIDTH};

/// The sizes and constants of a conditional UNet.
#[derive(Debug, Clone, PartialEq)]
pub struct UnetConfig {
    /// Channels of the input latents.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Levels, from the largest maps to the smallest.
    pub levels: Vec<UnetLevel>,
    /// Transformer layers of the middle block; `None` without attention.
    pub mid_depth: Option<usize>,
    /// Width of the text states: those of both encoders concatenated.
    pub cross_attention_dim: usize,
    /// Width of the sinusoidal embedding of each of the six size and crop conditions (`time_ids`).
    pub addition_time_embed_dim: usize,
    /// Width of the added condition: pooled text embedding plus six sinusoidal embeddings.
    pub projection_class_embeddings_input_dim: usize,
    /// Groups of GroupNorm.
    pub norm_num_groups: usize,
    /// GroupNorm's epsilon.
    pub norm_eps: f32,
    /// The timestep embedding has cosines before sines.
    pub flip_sin_to_cos: bool,
    /// Subtracted from the number of frequencies in the exponent of the timestep embedding.
    pub freq_shift: f32,
    /// Side of the latents in training.
    pub sample_size: usize,
}

/// One level of a UNet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnetLevel {
    /// Channels of its maps.
    pub channels: usize,
    /// Attention heads of its transformers.
    pub heads: usize,
    /// Down path: for each residual block, the layers of the transformer after it, if there is one.
    pub down: Vec<Option<usize>>,
    /// Up path, with one more residual block.
    pub up: Vec<Option<usize>>,
}

impl UnetConfig {
    /// Reads a UNet's `config.json`; `file` is its name for messages.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if it is not JSON, a key is missing or a value is out of range;
    /// [`Error::Unsupported`](crate::Error::Unsupported) for a setting that Stable Diffusion XL does not have.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let settings = Settings::parse(file, bytes)?;
        settings.only("_class_name", &["UNet2DConditionModel".into()])?;
        settings.only("addition_embed_type", &["text_time".into()])?;
        if !settings.contains("addition_embed_type") {
            return Err(settings.file.unsupported("addition_embed_type", "null", "text_time (Stable Diffusion XL)"));
        }
        for (key, allowed) in [
            ("act_fn", &[Value::from("silu"), "swish".into()][..]),
            ("attention_type", &["default".into()]),
            ("center_input_sample", &[false.into()]),
            ("class_embed_type", &[]),
            ("class_embeddings_concat", &[false.into()]),
            ("conv_in_kernel", &[3.into()]),
            ("conv_out_kernel", &[3.into()]),
            ("cross_attention_norm", &[]),
            ("downsample_padding", &[1.into()]),
            ("dual_cross_attention", &[false.into()]),
            ("encoder_hid_dim", &[]),
            ("encoder_hid_dim_type", &[]),
            ("mid_block_only_cross_attention", &[false.into()]),
            ("mid_block_scale_factor", &[1.into()]),
            ("mid_block_type", &["UNetMidBlock2DCrossAttn".into(), "UNetMidBlock2D".into()]),
            ("num_class_embeds", &[]),
            ("only_cross_attention", &[false.into()]),
            ("resnet_out_scale_factor", &[1.into()]),
            ("resnet_skip_time_act", &[false.into()]),
            ("resnet_time_scale_shift", &["default".into()]),
            ("reverse_transformer_layers_per_block", &[]),
            ("time_cond_proj_dim", &[]),
            ("time_embedding_act_fn", &[]),
            ("time_embedding_dim", &[]),
            ("time_embedding_type", &["positional".into()]),
            ("timestep_post_act", &[]),
        ] {
            settings.only(key, allowed)?;
        }
        let file = settings.file;
        let (channels, norm_num_groups) = channels(&settings)?;
        let count = channels.len();
        let layers = per_level(&settings, "layers_per_block", count, 2, MAX_LAYERS)?;
        let depths = per_level(&settings, "transformer_layers_per_block", count, 1, MAX_LAYERS)?;
        // These files store the number of heads under `attention_head_dim`; newer ones have `num_attention_heads`.
        let key = if settings.contains("num_attention_heads") { "num_attention_heads" } else { "attention_head_dim" };
        let heads = per_level(&settings, key, count, 8, MAX_HEADS)?;
        let down = block_types(&settings, "down_block_types", count, "DownBlock2D", "CrossAttnDownBlock2D")?;
        let mut up = block_types(&settings, "up_block_types", count, "UpBlock2D", "CrossAttnUpBlock2D")?;
        // `up_block_types` starts at the smallest maps.
        up.reverse();
        let levels: Vec<_> = (0..count)
            .map(|level| UnetLevel {
                channels: channels[level],
                heads: heads[level],
                down: vec![down[level].then_some(depths[level]); layers[level]],
                up: vec![up[level].then_some(depths[level]); layers[level] + 1],
            })
            .collect();
        let mid = settings.get::<String>("mid_block_type")?;
        let mid_depth = (mid.as_deref() != Some("UNetMidBlock2D")).then(|| depths[count - 1]);
        for (index, level) in levels.iter().enumerate() {
            let attends =
                level.down.iter().chain(&level.up).any(Option::is_some) || (index + 1 == count && mid_depth.is_some());
            if attends && !level.channels.is_multiple_of(4 * level.heads) {
                let reason =
                    format!("{} channels do not divide into {} heads of a multiple of 4", level.channels, level.heads);
                return Err(file.error(reason));
            }
        }
        let addition_time_embed_dim = settings.required_size("addition_time_embed_dim", MAX_WIDTH)?;
        let added = settings.required_size("projection_class_embeddings_input_dim", MAX_WIDTH)?;
        if added <= 6 * addition_time_embed_dim || !addition_time_embed_dim.is_multiple_of(2) {
            return Err(file.error(format!(
                "projection_class_embeddings_input_dim is {added}, expected the width of the pooled text plus six times \
                 addition_time_embed_dim, an even number ({addition_time_embed_dim})"
            )));
        }
        Ok(Self {
            in_channels: settings.size("in_channels", 4, MAX_PIXEL_CHANNELS)?,
            out_channels: settings.size("out_channels", 4, MAX_PIXEL_CHANNELS)?,
            levels,
            mid_depth,
            cross_attention_dim: settings.required_size("cross_attention_dim", MAX_WIDTH)?,
            addition_time_embed_dim,
            projection_class_embeddings_input_dim: added,
            norm_num_groups,
            norm_eps: settings.positive("norm_eps", 1e-5, 1.0)?,
            flip_sin_to_cos: settings.flag("flip_sin_to_cos", true)?,
            freq_shift: settings.get("freq_shift")?.unwrap_or(0.0),
            sample_size: settings.suggested_size("sample_size", 128, MAX_WIDTH),
        })
    }

    /// The released UNet of Stable Diffusion XL.
    pub fn sdxl() -> Self {
        let level = |channels, depth: Option<usize>| UnetLevel {
            channels,
            heads: channels / 64,
            down: vec![depth; 2],
            up: vec![depth; 3],
        };
        Self {
            in_channels: 4,
            out_channels: 4,
            levels: vec![level(320, None), level(640, Some(2)), level(1280, Some(10))],
            mid_depth: Some(10),
            cross_attention_dim: 2048,
            addition_time_embed_dim: 256,
            projection_class_embeddings_input_dim: 2816,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            sample_size: 128,
        }
    }

    /// Width of the pooled text embedding.
    pub fn pooled_width(&self) -> usize {
        self.projection_class_embeddings_input_dim - 6 * self.addition_time_embed_dim
    }
}
