use crate::Result;
use crate::tensor::Activation;
use crate::weights::config::json::Settings;
use crate::weights::config::{MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH};

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
    /// Width of the pooled text embedding, if the encoder has a projection.
    pub projection_dim: Option<usize>,
    /// The state at the first position of this id is pooled. 2, an error of old configurations, means the position of
    /// the largest id.
    pub eos_token: u32,
}

impl TextEncoderConfig {
    /// Reads a text encoder's `config.json`; `file` is its name for messages.
    ///
    /// # Errors
    /// As [`UnetConfig::parse`](super::UnetConfig::parse).
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let settings = Settings::parse(file, bytes)?;
        settings.only("model_type", &["clip_text_model".into(), "clip".into()])?;
        let file = settings.file;
        let architectures: Vec<String> = settings.get("architectures")?.unwrap_or_default();
        let projected = architectures.iter().any(|name| name == "CLIPTextModelWithProjection");
        let hidden_size = settings.size("hidden_size", 512, MAX_WIDTH)?;
        let num_heads = settings.size("num_attention_heads", 8, MAX_HEADS)?;
        if !hidden_size.is_multiple_of(4 * num_heads) {
            return Err(file.error(format!(
                "hidden_size {hidden_size} does not divide into {num_heads} heads of a multiple of 4"
            )));
        }
        let eos_token: u64 = settings.get("eos_token_id")?.unwrap_or(49407);
        Ok(Self {
            hidden_size,
            intermediate_size: settings.size("intermediate_size", 2048, MAX_WIDTH)?,
            // The UNet is conditioned on the output of the second to last layer.
            num_layers: settings.size("num_hidden_layers", 12, MAX_LAYERS)?,
            num_heads,
            vocab_size: settings.size("vocab_size", 49408, MAX_VOCABULARY)?,
            max_positions: settings.size("max_position_embeddings", 77, MAX_POSITIONS)?,
            activation: settings.activation("hidden_act")?.unwrap_or(Activation::QuickGelu),
            layer_norm_eps: settings.positive("layer_norm_eps", 1e-5, 1.0)?,
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

    /// The second text encoder of Stable Diffusion XL: OpenCLIP ViT-bigG's.
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
