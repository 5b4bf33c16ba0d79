//! What the JSON files beside the weights say: `config.json` of the model and of CLIP, `generation_config.json`.
//!
//! Everything is checked for sense here, so that no later code divides by zero or multiplies beyond its integers:
//! every size is at least 1 and within a generous bound.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::tensor::Activation;
use crate::{Error, Result};

/// Largest JSON file that is read.
pub const MAX_CONFIG: u64 = 4 << 20;

/// The families of language models, which differ in arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Gemma: embeddings scaled by the root of the width, RMS weights stored less one, GELU gate.
    Gemma,
    /// Llama and those built like it: Vicuna, Llama-3, Yi, Mistral.
    Llama,
    /// Llama with experts for feed-forward layers.
    Mixtral,
}

/// Feed-forward layers made of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertsConfig {
    /// Experts in a layer.
    pub count: usize,
    /// How many of them a token passes through.
    pub per_token: usize,
}

/// The language model's sizes and constants.
#[derive(Debug, Clone, PartialEq)]
pub struct LanguageConfig {
    /// Which family's arithmetic.
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
    /// RMS weights are stored less one (Gemma's, but not in GGUF files).
    pub norm_unit_offset: bool,
    /// Base of the rotary angles.
    pub rope_theta: f32,
    /// Divisors of the rotary frequencies, one a pair; none if empty.
    pub rope_freq_factors: Vec<f32>,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// The gate's activation.
    pub activation: Activation,
    /// Experts, if there are.
    pub experts: Option<ExpertsConfig>,
    /// Id that starts a sequence, if configured.
    pub bos_token: Option<u32>,
    /// Ids that end a sequence as configured, which releases get wrong; see the conversation templates.
    pub eos_tokens: Vec<u32>,
}

/// What is done to a picture's shape before it is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AspectRatio {
    /// Padded to a square.
    Pad,
    /// The shortest edge is resized, the middle cut out.
    Crop,
}

/// The projector from features to embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projector {
    /// None: features are as wide as embeddings.
    Identity,
    /// This many linear layers (1 or more) with GELU between them.
    Mlp(usize),
}

/// The vision side's settings in the model's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Where the low-resolution tower is, relative to a root that only its author knew.
    pub tower: Option<String>,
    /// Where the high-resolution tower is.
    pub high_tower: Option<String>,
    /// Width of the low-resolution features.
    pub hidden_size: usize,
    /// Width of the high-resolution features: the sum of the four stages' widths.
    pub high_hidden_size: usize,
    /// Which of CLIP's hidden states is the feature: from the end if negative.
    pub select_layer: i32,
    /// The projector.
    pub projector: Projector,
    /// Side of the high-resolution view in pixels.
    pub high_image_size: usize,
    /// Low-resolution tiles a side.
    pub grid: usize,
    /// Whether the whole picture is one more tile.
    pub global: bool,
    /// How pictures become squares.
    pub aspect_ratio: AspectRatio,
    /// Whether the high-resolution tower was trained, so that its weights are the checkpoint's own.
    pub optimize_high_tower: bool,
}

/// A Mini-Gemini model's `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct MgmConfig {
    /// `model_type` as found.
    pub model_type: String,
    /// The language model.
    pub language: LanguageConfig,
    /// The vision side; `None` in a language model of its own.
    pub vision: Option<VisionConfig>,
    /// Where the reference cuts a prompt (visual tokens included) off.
    pub tokenizer_max_length: Option<usize>,
}

/// The keys of `config.json` that matter.
#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    vocab_size: Option<u64>,
    max_position_embeddings: Option<u64>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Option<u64>,
    num_local_experts: Option<u64>,
    num_experts_per_tok: Option<u64>,
    bos_token_id: Option<Value>,
    eos_token_id: Option<Value>,
    mm_vision_tower: Option<String>,
    mm_vision_tower_aux: Option<String>,
    mm_hidden_size: Option<u64>,
    mm_hidden_size_aux: Option<u64>,
    mm_vision_select_layer: Option<i32>,
    mm_vision_select_feature: Option<String>,
    mm_projector_type: Option<String>,
    mm_use_im_start_end: Option<bool>,
    image_size_aux: Option<u64>,
    image_grid: Option<u64>,
    image_global: Option<bool>,
    image_aspect_ratio: Option<String>,
    optimize_vision_tower_aux: Option<bool>,
    tokenizer_model_max_length: Option<u64>,
}

/// A file's name and what is being read from it, for messages.
#[derive(Clone, Copy)]
pub(crate) struct File<'a>(pub(crate) &'a str);

impl File<'_> {
    pub(crate) fn error(self, reason: impl Into<String>) -> Error {
        Error::Config { file: self.0.to_owned(), reason: reason.into() }
    }

    pub(crate) fn parse<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|error| self.error(format!("not the JSON it should be: {error}")))
    }

    /// A size that must be there, from 1 to `limit`.
    pub(crate) fn size(self, key: &str, value: Option<u64>, limit: usize) -> Result<usize> {
        let value = value.ok_or_else(|| self.error(format!("{key} is missing")))?;
        match usize::try_from(value) {
            Ok(size) if (1..=limit).contains(&size) => Ok(size),
            _ => Err(self.error(format!("{key} is {value}, expected 1 to {limit}"))),
        }
    }

    pub(crate) fn positive(self, key: &str, value: f64, limit: f64) -> Result<f32> {
        let narrow = value as f32;
        if narrow > 0.0 && value <= limit {
            Ok(narrow)
        } else {
            Err(self.error(format!("{key} is {value}, expected above 0 to {limit}")))
        }
    }

    pub(crate) fn activation(self, key: &str, name: &str) -> Result<Activation> {
        Activation::from_name(name).ok_or_else(|| Error::Unsupported {
            what: format!("{}: {key}", self.0),
            found: name.to_owned(),
            supported: "silu, gelu, gelu_pytorch_tanh and quick_gelu".to_owned(),
        })
    }
}

pub(crate) const MAX_WIDTH: usize = 1 << 17;
pub(crate) const MAX_LAYERS: usize = 1 << 10;
pub(crate) const MAX_HEADS: usize = 1 << 10;
const MAX_HEAD_DIM: usize = 1 << 10;
pub(crate) const MAX_VOCABULARY: usize = 1 << 24;
pub(crate) const MAX_POSITIONS: usize = 1 << 24;
const MAX_EXPERTS: usize = 64;
pub(crate) const MAX_IMAGE_SIZE: usize = 1 << 13;
const MAX_GRID: usize = 8;

impl MgmConfig {
    /// Reads `config.json`; `file` is its name for messages.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not JSON, lacks a key or holds a senseless value; [`Error::Unsupported`] if it asks for
    /// something this program cannot do.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let file = File(file);
        let raw: Raw = file.parse(bytes)?;
        let architecture = raw.architecture(file)?;
        Ok(Self {
            model_type: raw.model_type.clone().unwrap_or_default(),
            language: raw.language(file, architecture)?,
            vision: raw.vision(file)?,
            tokenizer_max_length: match raw.tokenizer_model_max_length {
                // Tokenizers without a limit say so with a number of thirty digits or so.
                Some(length) if length <= MAX_POSITIONS as u64 => {
                    Some(file.size("tokenizer_model_max_length", Some(length), MAX_POSITIONS)?)
                }
                _ => None,
            },
        })
    }
}

impl Raw {
    /// Names were changed, and may be the base family's: keys say more.
    fn architecture(&self, file: File) -> Result<Architecture> {
        let model_type = self.model_type.as_deref().unwrap_or_default();
        let classes = self.architectures.iter().flatten().map(String::as_str);
        let names: Vec<String> =
            classes.chain([model_type]).map(|name| name.to_lowercase().replace(['_', '-'], "")).collect();
        let named = |parts: &[&str]| names.iter().any(|name| parts.iter().any(|part| name.contains(part)));
        let multimodal = self.mm_vision_tower.is_some() || self.image_size_aux.is_some();
        // "mllama" is in "mgmllama" too, and only the one that starts with it is another architecture.
        let different = named(&["gemma2", "gemma3", "recurrentgemma", "llama4"])
            || names.iter().any(|name| name.starts_with("mllama"));
        let known = named(&["mgm", "minigemini", "llama", "gemma", "mixtral", "mistral"]) || named_yi(&names);
        if different || !(known || multimodal) {
            return Err(Error::Unsupported {
                what: format!("{}: the model type", file.0),
                found: if model_type.is_empty() { names.join(", ") } else { model_type.to_owned() },
                supported: "Mini-Gemini (mgm, mgm_gemma, mgm_mixtral, mini_gemini and so on) over Gemma, Llama, \
                            Vicuna, Yi or Mixtral, and those language models themselves"
                    .to_owned(),
            });
        }
        Ok(if self.num_local_experts.is_some() || named(&["mixtral"]) {
            Architecture::Mixtral
        } else if named(&["gemma"])
            || self.head_dim == Some(256)
            || self.vocab_size == Some(256_000)
            || self.hidden_activation.is_some()
        {
            Architecture::Gemma
        } else {
            Architecture::Llama
        })
    }

    fn language(&self, file: File, architecture: Architecture) -> Result<LanguageConfig> {
        let gemma = architecture == Architecture::Gemma;
        let mixtral = architecture == Architecture::Mixtral;
        let hidden_size = file.size("hidden_size", self.hidden_size, MAX_WIDTH)?;
        let num_heads = file.size("num_attention_heads", self.num_attention_heads, MAX_HEADS)?;
        let num_kv_heads = match self.num_key_value_heads {
            None => num_heads,
            count => file.size("num_key_value_heads", count, num_heads)?,
        };
        if !num_heads.is_multiple_of(num_kv_heads) {
            let reason = format!("{num_heads} attention heads cannot share {num_kv_heads} key and value heads evenly");
            return Err(file.error(reason));
        }
        let head_dim = match self.head_dim {
            None if gemma => 256,
            None if hidden_size.is_multiple_of(num_heads) => {
                file.size("head_dim", Some((hidden_size / num_heads) as u64), MAX_HEAD_DIM)?
            }
            None => return Err(file.error(format!("hidden_size {hidden_size} does not divide into {num_heads} heads"))),
            dim => file.size("head_dim", dim, MAX_HEAD_DIM)?,
        };
        if !head_dim.is_multiple_of(2) {
            return Err(file.error(format!("head_dim is {head_dim}, rotary embedding needs an even number")));
        }
        let max_positions = match self.max_position_embeddings {
            None if gemma => 8192,
            None => 2048,
            positions => file.size("max_position_embeddings", positions, MAX_POSITIONS)?,
        };
        let unsupported = |what: &str, found: String, supported: &str| {
            Err(Error::Unsupported { what: format!("{}: {what}", file.0), found, supported: supported.to_owned() })
        };
        match self.sliding_window {
            Some(window) if window < max_positions as u64 => {
                return unsupported("sliding_window", window.to_string(), "null, or no less than the context");
            }
            _ => {}
        }
        for (what, bias) in [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)] {
            if bias == Some(true) {
                return unsupported(what, "true".to_owned(), "false");
            }
        }
        Ok(LanguageConfig {
            architecture,
            hidden_size,
            intermediate_size: file.size("intermediate_size", self.intermediate_size, MAX_WIDTH)?,
            num_layers: file.size("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?,
            num_heads,
            num_kv_heads,
            head_dim,
            rms_norm_eps: file.positive(
                "rms_norm_eps",
                self.rms_norm_eps.unwrap_or(if mixtral { 1e-5 } else { 1e-6 }),
                1.0,
            )?,
            norm_unit_offset: gemma,
            rope_theta: self.rope_theta(file, if mixtral { 1e6 } else { 1e4 })?,
            rope_freq_factors: Vec::new(),
            vocab_size: file.size("vocab_size", self.vocab_size, MAX_VOCABULARY)?,
            max_positions,
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(gemma),
            activation: self.activation(file, gemma)?,
            experts: if mixtral {
                let count = file.size("num_local_experts", Some(self.num_local_experts.unwrap_or(8)), MAX_EXPERTS)?;
                let per_token = file.size("num_experts_per_tok", Some(self.num_experts_per_tok.unwrap_or(2)), count)?;
                Some(ExpertsConfig { count, per_token })
            } else {
                None
            },
            bos_token: token_ids(file, "bos_token_id", self.bos_token_id.as_ref())?.first().copied(),
            eos_tokens: token_ids(file, "eos_token_id", self.eos_token_id.as_ref())?,
        })
    }

    /// The gate's activation. Releases of transformers disagree about Gemma's, whose `hidden_act` says "gelu" (with erf):
    /// 4.38 and those since 4.45 take it at its word, those between read `hidden_activation` and take the tanh form where
    /// it is missing. Here `hidden_act` counts where both keys are there, as the golden cases have it; where only
    /// `hidden_act` is, as in the release of MGM-2B, the tanh form is what Gemma was trained with (spec, 1.3).
    fn activation(&self, file: File, gemma: bool) -> Result<Activation> {
        match (&self.hidden_act, &self.hidden_activation) {
            (Some(name), Some(_)) => file.activation("hidden_act", name),
            (None, Some(name)) => file.activation("hidden_activation", name),
            (_, None) if gemma => Ok(Activation::GeluTanh),
            (Some(name), None) => file.activation("hidden_act", name),
            (None, None) => Ok(Activation::Silu),
        }
    }

    fn rope_theta(&self, file: File, default: f64) -> Result<f32> {
        for (key, scaling) in [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)] {
            let kind = |scaling: &Value| scaling.get("rope_type").or_else(|| scaling.get("type")).cloned();
            match scaling.as_ref().map(|scaling| (scaling, kind(scaling))) {
                None | Some((Value::Null, _)) => {}
                Some((_, Some(Value::String(kind)))) if kind == "default" => {}
                Some((Value::Object(map), None)) if map.keys().all(|key| key == "rope_theta") => {}
                Some((found, _)) => {
                    return Err(Error::Unsupported {
                        what: format!("{}: {key}", file.0),
                        found: found.to_string(),
                        supported: "null or the type default".to_owned(),
                    });
                }
            }
        }
        let nested = || self.rope_parameters.as_ref()?.get("rope_theta")?.as_f64();
        file.positive("rope_theta", self.rope_theta.or_else(nested).unwrap_or(default), 1e12)
    }

    fn vision(&self, file: File) -> Result<Option<VisionConfig>> {
        let unsupported = |what: &str, found: &str, supported: &str| {
            let (what, found) = (format!("{}: {what}", file.0), found.to_owned());
            Err(Error::Unsupported { what, found, supported: supported.to_owned() })
        };
        if self.image_size_aux.is_none() {
            return match &self.mm_vision_tower {
                None => Ok(None),
                Some(tower) => unsupported(
                    "a vision tower without image_size_aux",
                    tower,
                    "models with two towers (this looks like LLaVA)",
                ),
            };
        }
        if self.mm_use_im_start_end == Some(true) {
            return unsupported("mm_use_im_start_end", "true", "false");
        }
        // The class token has no window to mine.
        if let Some(other) = self.mm_vision_select_feature.as_deref().filter(|feature| *feature != "patch") {
            return unsupported("mm_vision_select_feature", other, "patch");
        }
        let projector = self.mm_projector_type.as_deref().unwrap_or("linear");
        let projector = match projector {
            "identity" => Projector::Identity,
            "linear" => Projector::Mlp(1),
            mlp => {
                let depth = mlp.strip_prefix("mlp").and_then(|mlp| mlp.strip_suffix("x_gelu"));
                match depth.and_then(|depth| depth.parse().ok()) {
                    Some(depth @ 1..=16) => Projector::Mlp(depth),
                    _ => return unsupported("mm_projector_type", mlp, "linear, identity and mlpNx_gelu"),
                }
            }
        };
        let select_layer = self.mm_vision_select_layer.unwrap_or(-2);
        if select_layer.unsigned_abs() as usize > MAX_LAYERS {
            return Err(file.error(format!("mm_vision_select_layer is {select_layer}")));
        }
        Ok(Some(VisionConfig {
            tower: self.mm_vision_tower.clone(),
            high_tower: self.mm_vision_tower_aux.clone(),
            hidden_size: file.size("mm_hidden_size", self.mm_hidden_size, MAX_WIDTH)?,
            high_hidden_size: file.size("mm_hidden_size_aux", self.mm_hidden_size_aux, MAX_WIDTH)?,
            select_layer,
            projector,
            high_image_size: file.size("image_size_aux", self.image_size_aux, MAX_IMAGE_SIZE)?,
            grid: file.size("image_grid", Some(self.image_grid.unwrap_or(1)), MAX_GRID)?,
            global: self.image_global.unwrap_or(false),
            aspect_ratio: match self.image_aspect_ratio.as_deref() {
                Some("pad") => AspectRatio::Pad,
                _ => AspectRatio::Crop,
            },
            optimize_high_tower: self.optimize_vision_tower_aux.unwrap_or(false),
        }))
    }
}

/// Yi is too short a name to look for anywhere in another.
fn named_yi(names: &[String]) -> bool {
    names.iter().any(|name| name == "yi" || name == "yiforcausallm")
}

/// One id or a list of them; -1 and null mean none.
fn token_ids(file: File, key: &str, value: Option<&Value>) -> Result<Vec<u32>> {
    let values = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(values)) => values.as_slice(),
        Some(value) => std::slice::from_ref(value),
    };
    let mut ids = Vec::new();
    for value in values {
        match value.as_i64() {
            Some(-1) => {}
            Some(id) if (0..MAX_VOCABULARY as i64).contains(&id) => ids.push(id as u32),
            _ => return Err(file.error(format!("{key} holds {value}, expected token ids"))),
        }
    }
    Ok(ids)
}

/// A model's `generation_config.json`: how its makers would sample from it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Ids that end an answer.
    pub eos_tokens: Vec<u32>,
    /// Probability that the kept tokens share.
    pub top_p: Option<f32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`; `file` is its name for messages.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not JSON or holds a senseless value.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Raw {
            eos_token_id: Option<Value>,
            top_p: Option<f32>,
        }
        let file = File(file);
        let raw: Raw = file.parse(bytes)?;
        if let Some(top_p) = raw.top_p.filter(|top_p| !(0.0..=1.0).contains(top_p)) {
            return Err(file.error(format!("top_p is {top_p}, expected 0 to 1")));
        }
        Ok(Self { eos_tokens: token_ids(file, "eos_token_id", raw.eos_token_id.as_ref())?, top_p: raw.top_p })
    }
}

/// The low-resolution tower's sizes and constants.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Encoder layers.
    pub num_layers: usize,
    /// Attention heads, a divisor of `hidden_size`.
    pub num_heads: usize,
    /// Side of the picture in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// The feed-forward layers' activation.
    pub activation: Activation,
    /// LayerNorm's epsilon.
    pub layer_norm_eps: f32,
}

impl ClipConfig {
    /// Reads a CLIP model's `config.json`, or the part of it under `vision_config`; `file` is its name for messages.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not JSON or holds a senseless value, [`Error::Unsupported`] if it is not CLIP's.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Raw {
            model_type: Option<String>,
            hidden_size: Option<u64>,
            intermediate_size: Option<u64>,
            num_hidden_layers: Option<u64>,
            num_attention_heads: Option<u64>,
            image_size: Option<u64>,
            patch_size: Option<u64>,
            hidden_act: Option<String>,
            layer_norm_eps: Option<f64>,
        }
        let file = File(file);
        let mut object: Map<String, Value> = file.parse(bytes)?;
        let object = match object.remove("vision_config") {
            Some(Value::Object(nested)) => nested,
            _ => object,
        };
        let raw: Raw = serde_json::from_value(Value::Object(object)).map_err(|error| file.error(error.to_string()))?;
        if let Some(other) = raw.model_type.filter(|name| !name.starts_with("clip")) {
            return Err(Error::Unsupported {
                what: format!("{}: the low-resolution tower's model type", file.0),
                found: other,
                supported: "clip and clip_vision_model".to_owned(),
            });
        }
        // Absent keys mean the defaults of the reference's configuration class.
        let activation = raw.hidden_act.as_deref().unwrap_or("quick_gelu");
        Self {
            hidden_size: file.size("hidden_size", Some(raw.hidden_size.unwrap_or(768)), MAX_WIDTH)?,
            intermediate_size: file.size(
                "intermediate_size",
                Some(raw.intermediate_size.unwrap_or(3072)),
                MAX_WIDTH,
            )?,
            num_layers: file.size("num_hidden_layers", Some(raw.num_hidden_layers.unwrap_or(12)), MAX_LAYERS)?,
            num_heads: file.size("num_attention_heads", Some(raw.num_attention_heads.unwrap_or(12)), MAX_HEADS)?,
            image_size: file.size("image_size", Some(raw.image_size.unwrap_or(224)), MAX_IMAGE_SIZE)?,
            patch_size: file.size("patch_size", Some(raw.patch_size.unwrap_or(32)), MAX_IMAGE_SIZE)?,
            activation: file.activation("hidden_act", activation)?,
            layer_norm_eps: file.positive("layer_norm_eps", raw.layer_norm_eps.unwrap_or(1e-5), 1.0)?,
        }
        .checked(file)
    }

    /// What the shapes of a tower's tensors say, where there is no configuration: heads of width 64 and the constants that
    /// every released CLIP has.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongShape`]; [`Error::Config`] if the sizes do not fit together.
    pub fn from_weights(clip: &super::view::Weights) -> Result<Self> {
        const HEAD_DIM: usize = 64;
        let file = File("the shapes of the low-resolution tower's tensors");
        let model = clip.pp("vision_model");
        let [hidden_size, _, patch_size, _] = model.dims("embeddings.patch_embedding.weight")?;
        let [positions, _] = model.dims("embeddings.position_embedding.weight")?;
        let [intermediate_size, _] = model.dims("encoder.layers.0.mlp.fc1.weight")?;
        let size = |key, value: usize, limit| file.size(key, Some(value as u64), limit);
        let side = positions.saturating_sub(1).isqrt();
        Self {
            hidden_size: size("hidden_size", hidden_size, MAX_WIDTH)?,
            intermediate_size: size("intermediate_size", intermediate_size, MAX_WIDTH)?,
            num_layers: size("num_hidden_layers", model.count("encoder.layers"), MAX_LAYERS)?,
            num_heads: size("num_attention_heads", hidden_size / HEAD_DIM, MAX_HEADS)?,
            image_size: size("image_size", side.saturating_mul(patch_size), MAX_IMAGE_SIZE)?,
            patch_size: size("patch_size", patch_size, MAX_IMAGE_SIZE)?,
            activation: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
        .checked(file)
    }

    /// The configuration as [`ClipConfig::parse`] reads it.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "model_type": "clip_vision_model",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "hidden_act": self.activation.name(),
            "layer_norm_eps": self.layer_norm_eps,
        })
    }

    fn checked(self, file: File) -> Result<Self> {
        if !self.hidden_size.is_multiple_of(self.num_heads) {
            let (width, heads) = (self.hidden_size, self.num_heads);
            return Err(file.error(format!("hidden_size {width} does not divide into {heads} heads")));
        }
        if !self.image_size.is_multiple_of(self.patch_size) {
            let (image, patch) = (self.image_size, self.patch_size);
            return Err(file.error(format!("image_size {image} does not divide into patches of {patch}")));
        }
        Ok(self)
    }

    /// The layers that hidden state `select_layer` takes: counted from the end if negative; 0 is the embedding.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such state.
    pub fn layers_before(&self, select_layer: i32) -> Result<usize> {
        let states = self.num_layers as i64 + 1;
        let state = if select_layer < 0 { states + i64::from(select_layer) } else { i64::from(select_layer) };
        if (0..states).contains(&state) {
            return Ok(state as usize);
        }
        Err(Error::Config {
            file: "config.json".to_owned(),
            reason: format!("mm_vision_select_layer is {select_layer}, the tower has {states} hidden states"),
        })
    }

    /// Patches a side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

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
    fn the_architecture_is_told_by_keys_under_all_spellings() {
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
        assert_eq!((llama.rms_norm_eps, llama.rope_theta, llama.activation), (1e-6, 1e4, Activation::Silu));
        let gemma = parse(json!({"model_type": "gemma", "hidden_act": "gelu"})).unwrap().language;
        assert_eq!((gemma.head_dim, gemma.tie_word_embeddings, gemma.activation), (256, true, Activation::GeluTanh));
        let erf = parse(json!({"model_type": "gemma", "hidden_activation": "gelu"})).unwrap().language;
        assert_eq!(erf.activation, Activation::GeluErf);
        let mixtral =
            parse(json!({"model_type": "mixtral", "bos_token_id": 1, "eos_token_id": [2, 7]})).unwrap().language;
        assert_eq!(mixtral.experts, Some(ExpertsConfig { count: 8, per_token: 2 }));
        assert_eq!((mixtral.rope_theta, mixtral.bos_token, mixtral.eos_tokens), (1e6, Some(1), vec![2, 7]));
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
        assert_eq!((vision.projector, vision.aspect_ratio), (Projector::Mlp(2), AspectRatio::Pad));
        let huge = parse(json!({"tokenizer_model_max_length": 1000000000000000019u64})).unwrap();
        assert_eq!(huge.tokenizer_max_length, None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let vision = |key: &str, value: Value| {
            let mut vision = json!({"image_size_aux": 768, "mm_hidden_size": 64, "mm_hidden_size_aux": 132});
            vision[key] = value;
            vision
        };
        let cases = [
            (json!({"hidden_size": null}), "hidden_size is missing"),
            (json!({"hidden_size": 0}), "hidden_size is 0, expected 1 to"),
            (json!({"hidden_size": u64::MAX}), "hidden_size is 18446744073709551615"),
            (json!({"hidden_size": -1}), "not the JSON it should be"),
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
