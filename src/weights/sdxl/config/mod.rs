//! Configurations of Stable Diffusion XL's networks and of its scheduler, in the layout of diffusers and transformers.
//!
//! A setting that would change the arithmetic and that no released Stable Diffusion XL has is refused by name.

mod scheduler;
mod text_encoder;
mod unet;
mod vae;

pub use scheduler::{
    BetaSchedule, DpmSettings, EdmSettings, LcmSettings, PredictionType, SchedulerClass, SchedulerConfig,
    SchedulerOverride, SigmaSchedule, TimestepSpacing, TrainingMarkers,
};
pub use text_encoder::TextEncoderConfig;
pub use unet::{UnetConfig, UnetLevel};
pub use vae::VaeConfig;

use serde_json::Value;

use crate::Result;
use crate::weights::config::MAX_WIDTH;
use crate::weights::config::json::Settings;

/// Most levels of a UNet or an autoencoder.
const MAX_LEVELS: usize = 8;
/// Most channels of an image or of latents.
const MAX_PIXEL_CHANNELS: usize = 64;

/// A size for each level: a list of `levels` numbers, or one number for all.
fn per_level(settings: &Settings<'_>, key: &str, levels: usize, default: u64, limit: usize) -> Result<Vec<usize>> {
    let values = match settings.value(key) {
        None => vec![default; levels],
        Some(Value::Array(_)) => settings.required::<Vec<u64>>(key)?,
        Some(_) => vec![settings.required::<u64>(key)?; levels],
    };
    if values.len() != levels {
        return Err(settings.file.error(format!("{key} has {} values for {levels} levels", values.len())));
    }
    values.into_iter().map(|value| settings.file.size(key, value, limit)).collect()
}

/// For each level, whether its block type is `attention` (true) or `plain` (false).
fn block_types(settings: &Settings<'_>, key: &str, levels: usize, plain: &str, attention: &str) -> Result<Vec<bool>> {
    let names: Vec<String> = settings.required(key)?;
    if names.len() != levels {
        return Err(settings.file.error(format!("{key} has {} values for {levels} levels", names.len())));
    }
    let supported = || format!("{plain} and {attention}");
    let attends = |name: String| match name {
        name if name == plain => Ok(false),
        name if name == attention => Ok(true),
        name => Err(settings.file.unsupported(key, name, supported())),
    };
    names.into_iter().map(attends).collect()
}

/// Channels of the levels, each divisible by the groups of GroupNorm and by 4; and the number of groups.
fn channels(settings: &Settings<'_>) -> Result<(Vec<usize>, usize)> {
    let key = "block_out_channels";
    let file = settings.file;
    let levels: Vec<u64> = settings.required(key)?;
    if levels.is_empty() || levels.len() > MAX_LEVELS {
        return Err(file.error(format!("{key} has {} levels, expected 1 to {MAX_LEVELS}", levels.len())));
    }
    let groups = settings.size("norm_num_groups", 32, MAX_WIDTH)?;
    let check = |width| match file.size(key, width, MAX_WIDTH)? {
        width if width.is_multiple_of(groups) && width.is_multiple_of(4) => Ok(width),
        width => Err(file.error(format!("{width} channels are not divisible by {groups} groups and by 4"))),
    };
    Ok((levels.into_iter().map(check).collect::<Result<_>>()?, groups))
}

#[cfg(test)]
mod tests {
    use super::{TextEncoderConfig, UnetConfig, UnetLevel, VaeConfig};

    const UNET: &str = r#"{"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time",
        "addition_time_embed_dim": 16, "attention_head_dim": [2, 4], "block_out_channels": [32, 64],
        "cross_attention_dim": 80, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "layers_per_block": [1, 2], "norm_num_groups": 32, "projection_class_embeddings_input_dim": 136,
        "transformer_layers_per_block": [1, 3], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]"#;

    fn unet(more: &str) -> crate::Result<UnetConfig> {
        UnetConfig::parse("unet/config.json", format!("{UNET}{more}}}").as_bytes())
    }

    #[test]
    fn levels_are_read_from_lists_and_single_numbers() {
        let config = unet("").expect("a UNet");
        let [first, second] = &config.levels[..] else { panic!("{config:?}") };
        assert_eq!(*first, UnetLevel { channels: 32, heads: 2, down: vec![None], up: vec![None; 2] });
        assert_eq!(*second, UnetLevel { channels: 64, heads: 4, down: vec![Some(3); 2], up: vec![Some(3); 3] });
        assert_eq!((config.mid_depth, config.pooled_width()), (Some(3), 40));
        let config = unet(r#", "num_attention_heads": 8"#).expect("a UNet");
        assert_eq!(config.levels.iter().map(|level| level.heads).collect::<Vec<_>>(), [8, 8]);
    }

    #[test]
    fn other_arithmetic_is_refused_by_name() {
        for (more, words) in [
            (r#", "class_embed_type": "timestep""#, "class_embed_type"),
            (r#", "resnet_time_scale_shift": "scale_shift""#, "resnet_time_scale_shift"),
            (r#", "conv_in_kernel": 5"#, "conv_in_kernel"),
            (r#", "addition_embed_type": "text""#, "addition_embed_type"),
            (r#", "norm_num_groups": 7"#, "groups"),
            (r#", "attention_head_dim": [2, 5]"#, "5 heads"),
            (r#", "layers_per_block": [1]"#, "layers_per_block has 1 values for 2 levels"),
            (r#", "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]"#, "AttnUpBlock2D"),
            (r#", "layers_per_block": "two""#, "layers_per_block"),
        ] {
            let error = unet(more).expect_err(more).to_string();
            assert!(error.contains(words) && error.contains("unet/config.json"), "{error}");
        }
        assert!(UnetConfig::parse("c", b"[]").is_err() && VaeConfig::parse("c", b"{").is_err());
    }

    #[test]
    fn pooling_follows_the_architecture() {
        let plain = TextEncoderConfig::parse("c", br#"{"hidden_size": 32, "num_attention_heads": 2}"#).expect("a CLIP");
        assert_eq!((plain.projection_dim, plain.eos_token), (None, 49407));
        let text = br#"{"architectures": ["CLIPTextModelWithProjection"], "projection_dim": 40, "hidden_act": "gelu"}"#;
        assert_eq!(TextEncoderConfig::parse("c", text).expect("a CLIP").projection_dim, Some(40));
        assert!(TextEncoderConfig::parse("c", br#"{"hidden_size": 32, "num_attention_heads": 3}"#).is_err());
    }
}
