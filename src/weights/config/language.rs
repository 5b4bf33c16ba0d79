use serde_json::Value;

use super::json::Settings;
use super::{MAX_EXPERTS, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH};
use crate::Result;
use crate::tensor::{Activation, Rope, Scores};

/// The families of language models, which differ in arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Gemma: embeddings scaled by sqrt(hidden_size), RMSNorm weights stored minus 1, GELU gate.
    Gemma,
    /// Llama and models with its layers: Vicuna, Llama-3, Yi, Mistral.
    Llama,
    /// Llama with mixture-of-experts feed-forward layers.
    Mixtral,
    /// Another one, by its name in GGUF files. [`LanguageConfig::layer`] has what it computes.
    Other(&'static str),
}

/// Mixture-of-experts feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertsConfig {
    /// Experts in a layer.
    pub count: usize,
    /// Experts that the router selects for a token.
    pub per_token: usize,
    /// Whether the shares of the selected experts are divided by their sum.
    pub normalised: bool,
    /// Factor of the shares.
    pub scale: f32,
    /// An expert that serves every token.
    pub shared: Option<SharedExpert>,
}

impl ExpertsConfig {
    /// Mixtral's: normalised shares, no shared expert.
    pub fn new(count: usize, per_token: usize) -> Self {
        Self { count, per_token, normalised: true, scale: 1.0, shared: None }
    }
}

/// The expert that serves every token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedExpert {
    /// Its width.
    pub intermediate_size: usize,
    /// Whether its output is multiplied by a sigmoid of the token.
    pub gated: bool,
}

/// What a decoder layer computes. The default is Llama's:
/// ```text
/// a = norm x;     x += out attention(rope(q a), rope(k a), v a)
/// m = norm x;     x += down(activation(gate m) * up m)
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerConfig {
    /// Layer norms with an offset instead of RMS norms.
    pub layer_norm: bool,
    /// Norms before attention and before the feed-forward layer.
    pub pre_norm: bool,
    /// Norms of their results, before these are added to x.
    pub post_norm: bool,
    /// Both read the same norm of x.
    pub parallel: bool,
    /// Which linear layers have a bias.
    pub biases: Biases,
    /// Norms of queries and keys, before RoPE.
    pub query_key_norm: Option<QueryKeyNormKind>,
    /// The feed-forward layer has a gate; else it is down(activation(up m)).
    pub gate: bool,
    /// What happens to attention's scores. Windows are in [`LanguageConfig::other_layers`].
    pub scores: Scores,
    /// Factor of what is added to x.
    pub residual_scale: f32,
}

impl Default for LayerConfig {
    fn default() -> Self {
        Self {
            layer_norm: false,
            pre_norm: true,
            post_norm: false,
            parallel: false,
            biases: Biases::default(),
            query_key_norm: None,
            gate: true,
            scores: Scores::default(),
            residual_scale: 1.0,
        }
    }
}

impl LayerConfig {
    /// Names of the norms of x before attention and before the feed-forward layer, and of the norms of their results:
    /// transformers'.
    pub fn norm_names(&self) -> [Option<&'static str>; 4] {
        let before = if self.post_norm { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        [
            self.pre_norm.then_some("input_layernorm"),
            (self.pre_norm && !self.parallel).then_some(before),
            self.post_norm.then_some("post_attention_layernorm"),
            self.post_norm.then_some("post_feedforward_layernorm"),
        ]
    }
}

/// Which linear layers have a bias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// Attention's output projection.
    pub out: bool,
    /// Gate and up projections.
    pub up: bool,
    /// Down projection.
    pub down: bool,
    /// The head.
    pub head: bool,
}

/// Norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKeyNormKind {
    /// RMS norms of each head, with one gain for all heads.
    Head,
    /// Layer norms of each head without offsets, with a gain for each head.
    EachHead,
    /// RMS norms of all queries and of all keys of a token.
    Whole,
}

/// Layers that differ from the others.
#[derive(Debug, Clone, PartialEq)]
pub struct OtherLayers {
    /// Which layers these are, one value a layer.
    pub layers: Vec<bool>,
    /// Their window: keys that a query attends to, at most.
    pub window: Option<usize>,
    /// Their RoPE; `None` for that of the others.
    pub rope: Option<Rope>,
}

/// RoPE for sequences longer than the model was first trained for (LongRoPE).
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// Positions from which on sequences are long.
    pub beyond: usize,
    /// [`Rope::freq_factors`] of long sequences.
    pub freq_factors: Vec<f32>,
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
    /// What a layer computes.
    pub layer: LayerConfig,
    /// Layers that differ from the others in position encoding or window.
    pub other_layers: Option<OtherLayers>,
    /// Epsilon of the norms.
    pub rms_norm_eps: f32,
    /// RMSNorm weights are stored minus 1 (Gemma's, except in GGUF files).
    pub norm_unit_offset: bool,
    /// RoPE's angles.
    pub rope: Rope,
    /// Those of long sequences, if they differ.
    pub long_rope: Option<LongRope>,
    /// Factor of embeddings.
    pub embedding_scale: f32,
    /// Divisor of logits.
    pub logit_scale: f32,
    /// Soft cap of logits.
    pub logit_cap: Option<f32>,
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
    /// The RoPE of most layers and, if it differs, of [`Self::other_layers`], for sequences of up to `positions`.
    pub fn ropes(&self, positions: usize) -> Vec<Rope> {
        let mut rope = self.rope.clone();
        if let Some(long) = self.long_rope.as_ref().filter(|long| positions > long.beyond) {
            rope.freq_factors.clone_from(&long.freq_factors);
        }
        [Some(rope), self.other_layers.as_ref().and_then(|other| other.rope.clone())].into_iter().flatten().collect()
    }

    /// Whether a layer is one of [`Self::other_layers`].
    pub fn is_other(&self, layer: usize) -> bool {
        self.other_layers.as_ref().is_some_and(|other| other.layers.get(layer).copied().unwrap_or(false))
    }

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
            Some(ExpertsConfig::new(count, settings.size("num_experts_per_tok", 2, count)?))
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
            layer: LayerConfig::default(),
            other_layers: None,
            rms_norm_eps: settings.positive("rms_norm_eps", if mixtral { 1e-5 } else { 1e-6 }, 1.0)?,
            norm_unit_offset: gemma,
            rope: Rope::new(rope_theta(settings, if mixtral { 1e6 } else { 1e4 })?, head_dim),
            long_rope: None,
            embedding_scale: if gemma { (hidden_size as f32).sqrt() } else { 1.0 },
            logit_scale: 1.0,
            logit_cap: None,
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
