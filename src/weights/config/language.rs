use serde_json::Value;

use super::json::Settings;
use super::{MAX_EXPERTS, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH};
use crate::Result;
use crate::tensor::Activation;

/// The families of language models, which differ in arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Gemma: embeddings scaled by sqrt(hidden_size), RMSNorm weights stored minus 1, GELU gate.
    Gemma,
    /// Llama and models with its layers: Vicuna, Llama-3, Yi, Mistral.
    Llama,
    /// Llama with mixture-of-experts feed-forward layers.
    Mixtral,
}

/// Mixture-of-experts feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertsConfig {
    /// Experts in a layer.
    pub count: usize,
    /// Experts that the router selects for a token.
    pub per_token: usize,
}

/// The language model's sizes and constants.
#[derive(Debug, Clone, PartialEq)]
pub struct LanguageConfig {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers (of one expert).
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads, a divisor of `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// RMSNorm's epsilon.
    pub rms_norm_eps: f32,
    /// RMSNorm weights are stored minus 1 (Gemma's, except in GGUF files).
    pub norm_unit_offset: bool,
    /// Base of the RoPE angles.
    pub rope_theta: f32,
    /// Divisors of the RoPE frequencies, one per rotated pair (llama.cpp's `freq_factors`); empty for none.
    pub rope_freq_factors: Vec<f32>,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// The gate's activation.
    pub activation: Activation,
    /// The experts; `None` for dense layers.
    pub experts: Option<ExpertsConfig>,
    /// Id that starts a sequence, if configured.
    pub bos_token: Option<u32>,
    /// Configured ids that end a sequence. Some releases are incomplete; the stop rules add the template's.
    pub eos_tokens: Vec<u32>,
}

impl LanguageConfig {
    pub(super) fn read(settings: &Settings<'_>) -> Result<Self> {
        let file = settings.file;
        let architecture = architecture(settings)?;
        let gemma = architecture == Architecture::Gemma;
        let mixtral = architecture == Architecture::Mixtral;
        let hidden_size = settings.required_size("hidden_size", MAX_WIDTH)?;
        let num_heads = settings.required_size("num_attention_heads", MAX_HEADS)?;
        let num_kv_heads = settings.size("num_key_value_heads", num_heads, num_heads)?;
        if !num_heads.is_multiple_of(num_kv_heads) {
            let reason = format!("{num_heads} attention heads cannot share {num_kv_heads} key and value heads evenly");
            return Err(file.error(reason));
        }
        let head_dim = match settings.optional_size("head_dim", MAX_HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None if gemma => 256,
            None if hidden_size.is_multiple_of(num_heads) => {
                file.size("head_dim", (hidden_size / num_heads) as u64, MAX_HEAD_DIM)?
            }
            None => return Err(file.error(format!("hidden_size {hidden_size} does not divide into {num_heads} heads"))),
        };
        if !head_dim.is_multiple_of(2) {
            return Err(file.error(format!("head_dim is {head_dim}, RoPE needs an even number")));
        }
        let max_positions = settings.size("max_position_embeddings", if gemma { 8192 } else { 2048 }, MAX_POSITIONS)?;
        // NaN and infinity limit nothing.
        match settings.any_number("sliding_window")? {
            Some(window) if window < max_positions as f64 => {
                return Err(file.unsupported("sliding_window", window.to_string(), "null, or at least the context"));
            }
            _ => {}
        }
        for bias in ["attention_bias", "mlp_bias"] {
            settings.only(bias, &[false.into()])?;
        }
        let experts = if mixtral {
            let count = settings.size("num_local_experts", 8, MAX_EXPERTS)?;
            Some(ExpertsConfig { count, per_token: settings.size("num_experts_per_tok", 2, count)? })
        } else {
            None
        };
        Ok(Self {
            architecture,
            hidden_size,
            intermediate_size: settings.required_size("intermediate_size", MAX_WIDTH)?,
            num_layers: settings.required_size("num_hidden_layers", MAX_LAYERS)?,
            num_heads,
            num_kv_heads,
            head_dim,
            rms_norm_eps: settings.positive("rms_norm_eps", if mixtral { 1e-5 } else { 1e-6 }, 1.0)?,
            norm_unit_offset: gemma,
            rope_theta: rope_theta(settings, if mixtral { 1e6 } else { 1e4 })?,
            rope_freq_factors: Vec::new(),
            vocab_size: settings.required_size("vocab_size", MAX_VOCABULARY)?,
            max_positions,
            tie_word_embeddings: settings.flag("tie_word_embeddings", gemma)?,
            activation: activation(settings, gemma)?,
            experts,
            bos_token: settings.token_ids("bos_token_id", MAX_VOCABULARY)?.first().copied(),
            eos_tokens: settings.token_ids("eos_token_id", MAX_VOCABULARY)?,
        })
    }
}

/// The family. Checkpoints spell `model_type` in many ways, some as the base model's; other keys decide where they can.
fn architecture(settings: &Settings<'_>) -> Result<Architecture> {
    let model_type = settings.text("model_type")?.unwrap_or_default();
    // Other types name no class.
    let classes: Vec<String> = settings.get("architectures").ok().flatten().unwrap_or_default();
    let names: Vec<String> = classes
        .iter()
        .map(String::as_str)
        .chain([model_type])
        .map(|name| name.to_lowercase().replace(['_', '-'], ""))
        .collect();
    let named = |parts: &[&str]| names.iter().any(|name| parts.iter().any(|part| name.contains(part)));
    let multimodal = settings.contains("mm_vision_tower") || settings.contains("image_size_aux");
    // "mgmllama" contains "mllama", but only names that start with "mllama" are that other architecture.
    let different =
        named(&["gemma2", "gemma3", "recurrentgemma", "llama4"]) || names.iter().any(|name| name.starts_with("mllama"));
    // "yi" is too short to search for inside a name.
    let yi = names.iter().any(|name| name == "yi" || name == "yiforcausallm");
    let known = yi || named(&["mgm", "minigemini", "llama", "gemma", "mixtral", "mistral"]);
    if different || !(known || multimodal) {
        let found = if model_type.is_empty() { names.join(", ") } else { model_type.to_owned() };
        let supported = "Mini-Gemini (mgm, mgm_gemma, mgm_mixtral, mini_gemini and so on) over Gemma, Llama, Vicuna, Yi \
                         or Mixtral, and those language models themselves";
        return Err(settings.file.unsupported("the model type", found, supported));
    }
    Ok(if settings.contains("num_local_experts") || named(&["mixtral"]) {
        Architecture::Mixtral
    } else if named(&["gemma"])
        || settings.get("head_dim")? == Some(256u64)
        || settings.get("vocab_size")? == Some(256_000u64)
        || settings.contains("hidden_activation")
    {
        Architecture::Gemma
    } else {
        Architecture::Llama
    })
}

/// The gate's activation. Releases of transformers disagree about Gemma, whose `hidden_act` is "gelu" (with erf): 4.38
/// and those since 4.45 use it; those between read `hidden_activation` and use the tanh form if it is absent. Here
/// `hidden_act` counts if both keys are present, as in the golden cases. If only `hidden_act` is present, as in the
/// release of MGM-2B, the tanh form is the one that Gemma was trained with.
fn activation(settings: &Settings<'_>, gemma: bool) -> Result<Activation> {
    if gemma && !settings.contains("hidden_activation") {
        return Ok(Activation::GeluTanh);
    }
    let activation = match settings.activation("hidden_act")? {
        Some(activation) => Some(activation),
        None => settings.activation("hidden_activation")?,
    };
    Ok(activation.unwrap_or(Activation::Silu))
}

fn rope_theta(settings: &Settings<'_>, default: f64) -> Result<f32> {
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(scaling) = settings.value(key) else { continue };
        let unscaled = match (scaling, scaling.get("rope_type").or_else(|| scaling.get("type"))) {
            (_, Some(Value::String(kind))) => kind == "default",
            (Value::Object(map), None) => map.keys().all(|key| key == "rope_theta"),
            _ => false,
        };
        if !unscaled {
            let supported =
                "null or the type default; in a GGUF file of a language model also linear and Llama 3.1's scaling";
            return Err(settings.file.unsupported(key, scaling.to_string(), supported));
        }
    }
    let nested = || settings.value("rope_parameters")?.get("rope_theta")?.as_f64();
    let theta = settings.number("rope_theta")?.or_else(nested).unwrap_or(default);
    settings.file.positive("rope_theta", theta, 1e12)
}
