//! What the `config.json` beside each network's weights says, in the layout of diffusers and transformers.
//!
//! Settings that would change the arithmetic and that no released Stable Diffusion XL has are refused by name.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::tensor::Activation;
use crate::weights::config::{File, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH};
use crate::{Error, Result};

/// Levels of a UNet or an autoencoder, at most.
const MAX_LEVELS: usize = 8;
/// The widest a picture's or latent's pixel may be.
const MAX_PIXEL_CHANNELS: usize = 64;

/// The sizes and constants of a conditional UNet.
#[derive(Debug, Clone, PartialEq)]
pub struct UnetConfig {
    /// Channels of the latents that go in.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Levels, the one with the largest maps first.
    pub levels: Vec<UnetLevel>,
    /// Transformer layers of the middle block; none if it has no attention.
    pub mid_depth: Option<usize>,
    /// Width of the text encoders' states, side by side.
    pub cross_attention_dim: usize,
    /// Sines and cosines for each of the six numbers that tell sizes and crops.
    pub addition_time_embed_dim: usize,
    /// Width of what is embedded beside the timestep: the pooled text and the six numbers' sines and cosines.
    pub projection_class_embeddings_input_dim: usize,
    /// Groups of channels that are normalised together.
    pub norm_num_groups: usize,
    /// Added to their variance.
    pub norm_eps: f32,
    /// Cosines before sines in the timestep's embedding.
    pub flip_sin_to_cos: bool,
    /// What the frequencies' number is lessened by in their exponent.
    pub freq_shift: f32,
    /// Side of the latents that the model was trained on.
    pub sample_size: usize,
}

/// One level of a UNet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnetLevel {
    /// Channels of its maps.
    pub channels: usize,
    /// Attention heads of its transformers.
    pub heads: usize,
    /// On the way down: for each residual block the layers of the transformer behind it, if there is one.
    pub down: Vec<Option<usize>>,
    /// On the way up, where there is a residual block more.
    pub up: Vec<Option<usize>>,
}

/// The sizes and constants of an autoencoder between pictures and latents.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of a picture.
    pub in_channels: usize,
    /// Channels of the picture that comes out.
    pub out_channels: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Channels of each level, the one of pictures first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of a level on the way to latents; one more on the way back.
    pub layers_per_block: usize,
    /// Groups of channels that are normalised together.
    pub norm_num_groups: usize,
    /// Latents are the encoder's multiplied by this.
    pub scaling_factor: f32,
    /// Subtracted from the encoder's latents before, 0 in Stable Diffusion XL.
    pub shift_factor: f32,
    /// Means of the latents' channels, where latents are normalised by channel.
    pub latents_mean: Option<Vec<f32>>,
    /// Their standard deviations.
    pub latents_std: Option<Vec<f32>>,
    /// A 1 x 1 convolution behind the encoder.
    pub use_quant_conv: bool,
    /// A 1 x 1 convolution before the decoder.
    pub use_post_quant_conv: bool,
    /// Attention between the middle's residual blocks.
    pub mid_block_attention: bool,
    /// The reference computes in f32 even where the rest is f16.
    pub force_upcast: bool,
    /// Side of the pictures that it was trained on.
    pub sample_size: usize,
}

/// The sizes and constants of a CLIP text encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct TextEncoderConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Encoder layers.
    pub num_layers: usize,
    /// Attention heads, a divisor of `hidden_size`.
    pub num_heads: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Positions of a prompt, 77.
    pub max_positions: usize,
    /// The feed-forward layers' activation.
    pub activation: Activation,
    /// LayerNorm's epsilon.
    pub layer_norm_eps: f32,
    /// Width of the pooled text, where there is a projection behind the encoder.
    pub projection_dim: Option<usize>,
    /// The id whose first place is pooled. 2, which old configurations say wrongly, means the place of the largest id.
    pub eos_token: u32,
}

/// A JSON object under a file's name, with the words that tell what is wrong with it.
struct Settings<'a> {
    file: File<'a>,
    object: Map<String, Value>,
}

impl Settings<'_> {
    /// A setting that may be missing or null.
    fn get<T: for<'d> Deserialize<'d>>(&self, key: &str) -> Result<Option<T>> {
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                T::deserialize(value).map(Some).map_err(|error| self.file.error(format!("{key} is {value}: {error}")))
            }
        }
    }

    fn size(&self, key: &str, default: u64, limit: usize) -> Result<usize> {
        self.file.size(key, Some(self.get(key)?.unwrap_or(default)), limit)
    }

    fn needed_size(&self, key: &str, limit: usize) -> Result<usize> {
        self.file.size(key, self.get(key)?, limit)
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.get(key)?.unwrap_or(default))
    }

    fn unsupported<T>(&self, key: &str, found: &Value, supported: &str) -> Result<T> {
        let found = match found {
            Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        Err(Error::Unsupported { what: format!("{}: {key}", self.file.0), found, supported: supported.to_owned() })
    }

    /// Checks that a setting is missing, null or one of these.
    fn only(&self, key: &str, allowed: &[Value]) -> Result<()> {
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(found) => {
                let same = |allowed: &Value| {
                    allowed == found || allowed.as_f64().is_some_and(|number| found.as_f64() == Some(number))
                };
                if allowed.iter().any(same) {
                    return Ok(());
                }
                let names: Vec<_> = allowed.iter().map(Value::to_string).collect();
                let names = if names.is_empty() { "null".to_owned() } else { names.join(", ") };
                self.unsupported(key, found, &names)
            }
        }
    }

    /// A size for each level: a list of as many, or one number for all.
    fn per_level(&self, key: &str, levels: usize, default: Option<u64>, limit: usize) -> Result<Vec<usize>> {
        let values = match self.object.get(key) {
            None | Some(Value::Null) => match default {
                Some(default) => vec![default; levels],
                None => return Err(self.file.error(format!("{key} is missing"))),
            },
            Some(Value::Array(_)) => self.get::<Vec<u64>>(key)?.unwrap_or_default(),
            Some(_) => vec![self.get::<u64>(key)?.unwrap_or_default(); levels],
        };
        if values.len() != levels {
            return Err(self.file.error(format!("{key} has {} values for {levels} levels", values.len())));
        }
        values.into_iter().map(|value| self.file.size(key, Some(value), limit)).collect()
    }

    /// Names of the levels' blocks: whether each is the one with attention.
    fn block_types(&self, key: &str, levels: usize, plain: &str, attention: &str) -> Result<Vec<bool>> {
        let names: Vec<String> = self.get(key)?.ok_or_else(|| self.file.error(format!("{key} is missing")))?;
        if names.len() != levels {
            return Err(self.file.error(format!("{key} has {} values for {levels} levels", names.len())));
        }
        names
            .into_iter()
            .map(|name| match name {
                name if name == plain => Ok(false),
                name if name == attention => Ok(true),
                name => self.unsupported(key, &Value::String(name), &format!("{plain} and {attention}")),
            })
            .collect()
    }

    /// Channels of the levels, all divisible into the groups of the norms.
    fn channels(&self) -> Result<(Vec<usize>, usize)> {
        let key = "block_out_channels";
        let levels: Vec<u64> = self.get(key)?.ok_or_else(|| self.file.error(format!("{key} is missing")))?;
        if levels.is_empty() || levels.len() > MAX_LEVELS {
            return Err(self.file.error(format!("{key} has {} levels, expected 1 to {MAX_LEVELS}", levels.len())));
        }
        let groups = self.size("norm_num_groups", 32, MAX_WIDTH)?;
        let channels = levels
            .into_iter()
            .map(|width| match self.file.size(key, Some(width), MAX_WIDTH)? {
                width if width.is_multiple_of(groups) && width.is_multiple_of(4) => Ok(width),
                width => Err(self.file.error(format!("{width} channels do not make {groups} groups, and fours"))),
            })
            .collect::<Result<_>>()?;
        Ok((channels, groups))
    }
}

fn settings<'a>(file: &'a str, bytes: &[u8]) -> Result<Settings<'a>> {
    let file = File(file);
    Ok(Settings { object: file.parse(bytes)?, file })
}

impl UnetConfig {
    /// Reads a UNet's `config.json`; `file` is its name for messages.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not JSON, lacks a key or holds a senseless value; [`Error::Unsupported`] if it asks for
    /// something that Stable Diffusion XL does not have.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let settings = settings(file, bytes)?;
        settings.only("_class_name", &["UNet2DConditionModel".into()])?;
        settings.only("addition_embed_type", &["text_time".into()])?;
        if settings.object.get("addition_embed_type").is_none_or(Value::is_null) {
            return settings.unsupported("addition_embed_type", &Value::Null, "text_time (Stable Diffusion XL)");
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
        let (channels, norm_num_groups) = settings.channels()?;
        let count = channels.len();
        let layers = settings.per_level("layers_per_block", count, Some(2), MAX_LAYERS)?;
        let depths = settings.per_level("transformer_layers_per_block", count, Some(1), MAX_LAYERS)?;
        // What is called the heads' width in these files is their number; a later key says so.
        let key = if settings.get::<Value>("num_attention_heads")?.is_some() {
            "num_attention_heads"
        } else {
            "attention_head_dim"
        };
        let heads = settings.per_level(key, count, Some(8), MAX_HEADS)?;
        let down = settings.block_types("down_block_types", count, "DownBlock2D", "CrossAttnDownBlock2D")?;
        let mut up = settings.block_types("up_block_types", count, "UpBlock2D", "CrossAttnUpBlock2D")?;
        // The way up is told from the smallest maps on.
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
                let reason = format!("{} channels do not make {} heads, and fours", level.channels, level.heads);
                return Err(file.error(reason));
            }
        }
        let addition_time_embed_dim = settings.needed_size("addition_time_embed_dim", MAX_WIDTH)?;
        let added = settings.needed_size("projection_class_embeddings_input_dim", MAX_WIDTH)?;
        if added <= 6 * addition_time_embed_dim || !addition_time_embed_dim.is_multiple_of(2) {
            return Err(file.error(format!(
                "projection_class_embeddings_input_dim is {added}, which leaves no room for pooled text beside six \
                 embeddings of addition_time_embed_dim {addition_time_embed_dim}, an even number"
            )));
        }
        Ok(Self {
            in_channels: settings.size("in_channels", 4, MAX_PIXEL_CHANNELS)?,
            out_channels: settings.size("out_channels", 4, MAX_PIXEL_CHANNELS)?,
            levels,
            mid_depth,
            cross_attention_dim: settings.needed_size("cross_attention_dim", MAX_WIDTH)?,
            addition_time_embed_dim,
            projection_class_embeddings_input_dim: added,
            norm_num_groups,
            norm_eps: file.positive("norm_eps", settings.get("norm_eps")?.unwrap_or(1e-5), 1.0)?,
            flip_sin_to_cos: settings.flag("flip_sin_to_cos", true)?,
            freq_shift: settings.get("freq_shift")?.unwrap_or(0.0),
            sample_size: settings.size("sample_size", 128, MAX_WIDTH)?,
        })
    }

    /// The UNet of Stable Diffusion XL as released.
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

    /// Width of the pooled text.
    pub fn pooled_width(&self) -> usize {
        self.projection_class_embeddings_input_dim - 6 * self.addition_time_embed_dim
    }

    /// What the sides of latents must be multiples of: 2 for each level but the last.
    pub fn side_multiple(&self) -> usize {
        1 << (self.levels.len() - 1)
    }
}

impl VaeConfig {
    /// Reads an autoencoder's `config.json`; `file` is its name for messages.
    ///
    /// # Errors
    /// As [`UnetConfig::parse`].
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let settings = settings(file, bytes)?;
        settings.only("_class_name", &["AutoencoderKL".into()])?;
        settings.only("act_fn", &["silu".into(), "swish".into()])?;
        let file = settings.file;
        let (block_out_channels, norm_num_groups) = settings.channels()?;
        for (key, name) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            settings.block_types(key, block_out_channels.len(), name, name)?;
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
            scaling_factor: file.positive("scaling_factor", settings.get("scaling_factor")?.unwrap_or(0.18215), 1e6)?,
            shift_factor: settings.get("shift_factor")?.unwrap_or(0.0),
            use_quant_conv: settings.flag("use_quant_conv", true)?,
            use_post_quant_conv: settings.flag("use_post_quant_conv", true)?,
            mid_block_attention: settings.flag("mid_block_add_attention", true)?,
            force_upcast: settings.flag("force_upcast", true)?,
            sample_size: settings.size("sample_size", 1024, MAX_WIDTH)?,
        })
    }

    /// The autoencoder of Stable Diffusion XL as released.
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

    /// Pixels along a latent's side: 2 for each level but the last.
    pub fn pixels_per_latent(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

impl TextEncoderConfig {
    /// Reads a text encoder's `config.json`; `file` is its name for messages.
    ///
    /// # Errors
    /// As [`UnetConfig::parse`].
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let settings = settings(file, bytes)?;
        settings.only("model_type", &["clip_text_model".into(), "clip".into()])?;
        let file = settings.file;
        let architectures: Vec<String> = settings.get("architectures")?.unwrap_or_default();
        let projected = architectures.iter().any(|name| name == "CLIPTextModelWithProjection");
        let hidden_size = settings.size("hidden_size", 512, MAX_WIDTH)?;
        let num_heads = settings.size("num_attention_heads", 8, MAX_HEADS)?;
        if !hidden_size.is_multiple_of(4 * num_heads) {
            return Err(file.error(format!("hidden_size {hidden_size} does not make {num_heads} heads, and fours")));
        }
        let activation: Option<String> = settings.get("hidden_act")?;
        let eos_token: u64 = settings.get("eos_token_id")?.unwrap_or(49407);
        Ok(Self {
            hidden_size,
            intermediate_size: settings.size("intermediate_size", 2048, MAX_WIDTH)?,
            // The last layer but one is what is wanted.
            num_layers: settings.size("num_hidden_layers", 12, MAX_LAYERS)?,
            num_heads,
            vocab_size: settings.size("vocab_size", 49408, MAX_VOCABULARY)?,
            max_positions: settings.size("max_position_embeddings", 77, MAX_POSITIONS)?,
            activation: file.activation("hidden_act", activation.as_deref().unwrap_or("quick_gelu"))?,
            layer_norm_eps: file.positive("layer_norm_eps", settings.get("layer_norm_eps")?.unwrap_or(1e-5), 1.0)?,
            projection_dim: match projected {
                true => Some(settings.size("projection_dim", 512, MAX_WIDTH)?),
                false => None,
            },
            eos_token: u32::try_from(eos_token)
                .map_err(|_| file.error(format!("eos_token_id is {eos_token}, expected a token id")))?,
        })
    }

    /// The first text encoder of Stable Diffusion XL: CLIP ViT-L's.
    pub fn sdxl_1() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_layers: 12,
            num_heads: 12,
            vocab_size: 49408,
            max_positions: 77,
            activation: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: None,
            eos_token: 2,
        }
    }

    /// The second: OpenCLIP ViT-bigG's.
    pub fn sdxl_2() -> Self {
        Self {
            hidden_size: 1280,
            intermediate_size: 5120,
            num_layers: 32,
            num_heads: 20,
            activation: Activation::GeluErf,
            projection_dim: Some(1280),
            ..Self::sdxl_1()
        }
    }
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
        assert_eq!((config.mid_depth, config.pooled_width(), config.side_multiple()), (Some(3), 40, 2));
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
