//! Configurations in the JSON files next to the weights: `config.json` of the model and of CLIP,
//! `generation_config.json`.
//!
//! Parsing checks every value: each size is at least 1 and within a generous limit, so that later code neither divides
//! by zero nor overflows.

mod clip;
mod convnext;
mod generation;
pub(crate) mod json;
mod language;
mod vision;

pub use clip::ClipConfig;
pub use convnext::ConvNextConfig;
pub use generation::GenerationConfig;
pub use language::{
    Architecture, Biases, ExpertsConfig, LanguageConfig, LayerConfig, LongRope, OtherLayers, QueryKeyNormKind,
    SharedExpert,
};
pub use vision::{AspectRatio, ProjectorKind, VisionConfig};

use crate::Result;
use json::Settings;

/// Largest JSON file that is read.
pub const MAX_CONFIG: u64 = 4 << 20;

pub(crate) const MAX_WIDTH: usize = 1 << 17;
pub(crate) const MAX_LAYERS: usize = 1 << 10;
pub(crate) const MAX_HEADS: usize = 1 << 10;
pub(crate) const MAX_HEAD_DIM: usize = 1 << 10;
pub(crate) const MAX_VOCABULARY: usize = 1 << 24;
pub(crate) const MAX_POSITIONS: usize = 1 << 24;
pub(crate) const MAX_EXPERTS: usize = 256;
pub(crate) const MAX_IMAGE_SIZE: usize = 1 << 13;
pub(crate) const MAX_GRID: usize = 8;

/// A Mini-Gemini model's `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct MgmConfig {
    /// `model_type` as found.
    pub model_type: String,
    /// The language model.
    pub language: LanguageConfig,
    /// The vision side; `None` for a language model alone.
    pub vision: Option<VisionConfig>,
    /// Length at which the reference truncates a prompt (visual tokens included).
    pub tokenizer_max_length: Option<usize>,
}

impl MgmConfig {
    /// Reads `config.json`; `file` is its name for messages.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if it is not JSON, a key is missing or a value is out of range;
    /// [`Error::Unsupported`](crate::Error::Unsupported) if it configures something that this program cannot run.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let settings = Settings::parse(file, bytes)?;
        // Tokenizers without a limit have a number of about thirty digits here.
        let limit = |value: &serde_json::Value| value.as_u64().filter(|length| *length <= MAX_POSITIONS as u64);
        let tokenizer_max_length = match settings.value("tokenizer_model_max_length").and_then(limit) {
            Some(length) => Some(settings.file.size("tokenizer_model_max_length", length, MAX_POSITIONS)?),
            None => None,
        };
        Ok(Self {
            model_type: settings.text("model_type")?.unwrap_or_default().to_owned(),
            language: LanguageConfig::read(&settings)?,
            vision: VisionConfig::read(&settings)?,
            tokenizer_max_length,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Error;
    use crate::tensor::Activation;

    /// A configuration of Llama's sizes in small, with keys changed (null takes one away).
    pub(in super::super) fn with(changes: Value) -> Value {
        let mut config = json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 512
        });
        for (key, value) in changes.as_object().unwrap() {
            if value.is_null() {
                drop(config.as_object_mut().unwrap().remove(key))
            } else {
                config[key] = value.clone()
            }
        }
        config
    }

    fn parse(changes: Value) -> Result<MgmConfig> {
        MgmConfig::parse("config.json", with(changes).to_string().as_bytes())
    }

    #[test]
    fn the_architecture_is_recognised_in_all_spellings() {
        use Architecture::*;
        let cases = [
            (json!({}), Llama),
            (json!({"model_type": "mgm", "architectures": ["MGMLlamaForCausalLM"]}), Llama),
            (json!({"model_type": "mini_gemini", "architectures": ["MiniGeminiLlamaForCausalLM"]}), Llama),
            (json!({"model_type": "Yi"}), Llama),
            (json!({"model_type": "mistral"}), Llama),
            (json!({"model_type": null, "architectures": ["LlamaForCausalLM"]}), Llama),
            (
                json!({"model_type": "something", "image_size_aux": 768, "mm_hidden_size": 4, "mm_hidden_size_aux": 8}),
                Llama,
            ),
            (json!({"model_type": "mgm_gemma"}), Gemma),
            (json!({"model_type": "mini_gemini_gemma"}), Gemma),
            (json!({"model_type": "mgm", "head_dim": 256}), Gemma),
            (json!({"model_type": "mgm", "vocab_size": 256000}), Gemma),
            (json!({"model_type": "mgm", "hidden_activation": "gelu_pytorch_tanh"}), Gemma),
            (json!({"model_type": "mgm_mixtral"}), Mixtral),
            (json!({"model_type": "mgm", "num_local_experts": 4}), Mixtral),
            (json!({"model_type": "mgm", "architectures": ["MiniGeminiMixtralForCausalLM"]}), Mixtral),
        ];
        for (changes, architecture) in cases {
            assert_eq!(parse(changes.clone()).unwrap().language.architecture, architecture, "{changes}");
        }
        for model_type in ["bert", "gemma2", "qwen2", ""] {
            let error = parse(json!({"model_type": model_type})).unwrap_err();
            assert!(matches!(&error, Error::Unsupported { found, .. } if found == model_type), "{error}");
        }
    }

    #[test]
    fn defaults_are_the_family_s() {
        let llama = parse(json!({})).unwrap();
        assert_eq!(llama.vision, None);
        let llama = llama.language;
        assert_eq!((llama.num_kv_heads, llama.head_dim, llama.tie_word_embeddings), (4, 16, false));
        assert_eq!((llama.rms_norm_eps, llama.rope.theta, llama.activation), (1e-6, 1e4, Activation::Silu));
        let gemma = parse(json!({"model_type": "gemma", "hidden_act": "gelu"})).unwrap().language;
        assert_eq!((gemma.head_dim, gemma.tie_word_embeddings, gemma.activation), (256, true, Activation::GeluTanh));
        let erf = parse(json!({"model_type": "gemma", "hidden_activation": "gelu"})).unwrap().language;
        assert_eq!(erf.activation, Activation::GeluErf);
        let mixtral =
            parse(json!({"model_type": "mixtral", "bos_token_id": 1, "eos_token_id": [2, 7]})).unwrap().language;
        assert_eq!(mixtral.experts, Some(ExpertsConfig::new(8, 2)));
        assert_eq!((mixtral.rope.theta, mixtral.bos_token, mixtral.eos_tokens), (1e6, Some(1), vec![2, 7]));
    }

    #[test]
    fn the_vision_side_is_read() {
        let vision = json!({
            "image_size_aux": 768, "mm_hidden_size": 64, "mm_hidden_size_aux": 132, "mm_projector_type": "mlp2x_gelu",
            "image_aspect_ratio": "pad", "mm_vision_tower": "a/b", "tokenizer_model_max_length": 2048
        });
        let config = parse(vision).unwrap();
        assert_eq!(config.tokenizer_max_length, Some(2048));
        let vision = config.vision.unwrap();
        assert_eq!((vision.grid, vision.global, vision.select_layer), (1, false, -2));
        assert_eq!((vision.projector, vision.aspect_ratio), (ProjectorKind::Mlp(2), AspectRatio::Pad));
        let huge = parse(json!({"tokenizer_model_max_length": 1000000000000000019u64})).unwrap();
        assert_eq!(huge.tokenizer_max_length, None);
    }

    #[test]
    fn bad_values_are_refused() {
        let vision = |key: &str, value: Value| {
            let mut vision = json!({"image_size_aux": 768, "mm_hidden_size": 64, "mm_hidden_size_aux": 132});
            vision[key] = value;
            vision
        };
        let cases = [
            (json!({"hidden_size": null}), "hidden_size is missing"),
            (json!({"hidden_size": 0}), "hidden_size is 0, expected 1 to"),
            (json!({"hidden_size": u64::MAX}), "hidden_size is 18446744073709551615"),
            (json!({"hidden_size": -1}), "hidden_size is -1, expected 1 to"),
            (json!({"num_attention_heads": 0}), "num_attention_heads is 0"),
            (json!({"num_attention_heads": 5}), "64 does not divide into 5 heads"),
            (json!({"num_attention_heads": 128}), "does not divide into 128 heads"),
            (json!({"num_key_value_heads": 3}), "4 attention heads cannot share 3"),
            (json!({"num_key_value_heads": 0}), "num_key_value_heads is 0"),
            (json!({"head_dim": 7}), "even"),
            (json!({"rms_norm_eps": 0.0}), "rms_norm_eps is 0"),
            (json!({"rope_theta": -1.0}), "rope_theta is -1"),
            (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), "\"factor\\\":2.0"),
            (json!({"rope_scaling": {"factor": 2.0}}), "rope_scaling"),
            (json!({"sliding_window": 511}), "sliding_window"),
            (json!({"attention_bias": true}), "attention_bias"),
            (json!({"hidden_act": "relu"}), "hidden_act \"relu\" is not supported"),
            (json!({"eos_token_id": "x"}), "eos_token_id holds \"x\""),
            (json!({"num_local_experts": 2, "num_experts_per_tok": 3}), "num_experts_per_tok is 3, expected 1 to 2"),
            (json!({"mm_vision_tower": "openai/clip"}), "this looks like LLaVA"),
            (vision("image_grid", json!(0)), "image_grid is 0"),
            (vision("image_size_aux", json!(1_000_000)), "image_size_aux is 1000000"),
            (vision("mm_projector_type", json!("mlp0x_gelu")), "mm_projector_type"),
            (vision("mm_vision_select_layer", json!(i32::MIN)), "mm_vision_select_layer"),
            (vision("mm_vision_select_feature", json!("all")), "mm_vision_select_feature"),
        ];
        for (changes, reason) in cases {
            let error = parse(changes).unwrap_err().to_string();
            assert!(error.contains("config.json") && error.contains(reason), "{error:?} lacks {reason:?}");
        }
        for allowed in [json!({"sliding_window": 512}), json!({"rope_scaling": {"rope_type": "default"}})] {
            assert!(parse(allowed).is_ok());
        }
    }

    #[test]
    fn generation_and_clip_configurations_are_read() {
        let generation =
            GenerationConfig::parse("g", br#"{"eos_token_id": [1, 107], "top_p": 0.9, "do_sample": true}"#);
        let expected = GenerationConfig { eos_tokens: vec![1, 107], top_p: Some(0.9) };
        assert_eq!(generation.unwrap(), expected);
        assert!(GenerationConfig::parse("g", br#"{"top_p": 2.0}"#).is_err());
        let clip = json!({"hidden_size": 64, "num_attention_heads": 4, "image_size": 336, "patch_size": 14});
        let flat = ClipConfig::parse("c", clip.to_string().as_bytes()).unwrap();
        assert_eq!((flat.grid(), flat.activation, flat.layer_norm_eps), (24, Activation::QuickGelu, 1e-5));
        let nested = json!({"model_type": "clip", "hidden_size": 9, "vision_config": clip});
        assert_eq!(ClipConfig::parse("c", nested.to_string().as_bytes()).unwrap(), flat);
        for bad in [json!({"patch_size": 0}), json!({"patch_size": 13}), json!({"num_attention_heads": 7}), json!([])] {
            assert!(ClipConfig::parse("c", bad.to_string().as_bytes()).is_err(), "{bad}");
        }
        let other = ClipConfig::parse("c", br#"{"model_type": "siglip"}"#).unwrap_err();
        assert!(other.to_string().contains("siglip"));
    }
}
