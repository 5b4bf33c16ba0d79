//! The configuration of a language model in a GGUF file: a row of [`ARCHITECTURES`] says what an architecture computes,
//! the metadata has the sizes, and the tensors tell what is optional.

use super::checkpoint::Checkpoint;
use super::config::json::ConfigFile;
use super::config::{
    Architecture, Biases, ExpertsConfig, LanguageConfig, LayerConfig, LongRope, MAX_EXPERTS, MAX_HEAD_DIM, MAX_HEADS,
    MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, OtherLayers, QueryKeyNormKind, SharedExpert,
};
use super::gguf::{Array, Header, Value};
use crate::tensor::{Activation, QueryFactor, Rope, Scores};
use crate::{Error, Result};

/// What an architecture computes, besides what its tensors tell: biases, a head of its own, experts.
#[derive(Debug, Clone, Copy)]
pub(super) struct ArchitectureRow {
    /// `general.architecture`
    name: &'static str,
    /// Rows of queries and keys are in the order of `RowOrder::RopeInterleaved`.
    pub(super) interleaved: bool,
    layer_norm: bool,
    pre_norm: bool,
    post_norm: bool,
    /// Attention and the feed-forward layer are parallel in a file without `ffn_norm`.
    may_be_parallel: bool,
    query_key_norm: Option<QueryKeyNormKind>,
    gate: bool,
    activation: Activation,
    /// Embeddings are multiplied by sqrt(width).
    scaled_embedding: bool,
    /// The file has factors of embeddings, scores, residuals and logits.
    multipliers: bool,
    /// Default soft cap of scores.
    score_cap: Option<f64>,
    /// Whether the file may have a soft cap of logits, and its default.
    logit_cap: Option<Option<f64>>,
    /// Scores are divided by sqrt(width / heads) in a model with this number of layers.
    wide_scale_layers: Option<usize>,
    windows: Option<WindowRow>,
    /// The last of every N layers is not rotated.
    unrotated: Option<usize>,
    /// Queries have a factor that grows with their position.
    query_factor: bool,
    /// The shares of the chosen experts are divided by their sum.
    normalised: bool,
}

/// Layers with a window.
#[derive(Debug, Clone, Copy)]
struct WindowRow {
    /// The window if the file has none; `None` for no windows.
    default: Option<usize>,
    /// Of every N layers, all but the last have a window.
    pattern: usize,
    rope: WindowRope,
}

/// RoPE of layers with a window.
#[derive(Debug, Clone, Copy)]
enum WindowRope {
    /// That of the others.
    Same,
    /// Without scaling.
    Unscaled,
    /// Without scaling, with a base of its own; the default of `rope.freq_base_swa`.
    Own(f64),
}

const LLAMA: ArchitectureRow = ArchitectureRow {
    name: "llama",
    interleaved: true,
    layer_norm: false,
    pre_norm: true,
    post_norm: false,
    may_be_parallel: false,
    query_key_norm: None,
    gate: true,
    activation: Activation::Silu,
    scaled_embedding: false,
    multipliers: false,
    score_cap: None,
    logit_cap: None,
    wide_scale_layers: None,
    windows: None,
    unrotated: None,
    query_factor: false,
    normalised: true,
};
const QWEN2: ArchitectureRow = ArchitectureRow { name: "qwen2", interleaved: false, ..LLAMA };
const QWEN3: ArchitectureRow = ArchitectureRow { name: "qwen3", query_key_norm: Some(QueryKeyNormKind::Head), ..QWEN2 };
const GEMMA: ArchitectureRow =
    ArchitectureRow { name: "gemma", activation: Activation::GeluTanh, scaled_embedding: true, ..QWEN2 };
const ARCHITECTURES: [ArchitectureRow; 17] = [
    LLAMA,
    ArchitectureRow { name: "mixtral", ..LLAMA },
    ArchitectureRow { name: "mistral3", query_factor: true, ..LLAMA },
    ArchitectureRow { name: "granite", multipliers: true, ..LLAMA },
    ArchitectureRow { name: "granitemoe", multipliers: true, ..LLAMA },
    ArchitectureRow { name: "smollm3", unrotated: Some(4), ..LLAMA },
    QWEN2,
    ArchitectureRow { name: "qwen2moe", normalised: false, ..QWEN2 },
    QWEN3,
    ArchitectureRow { name: "qwen3moe", ..QWEN3 },
    ArchitectureRow { name: "phi3", ..QWEN2 },
    GEMMA,
    ArchitectureRow {
        name: "gemma2",
        post_norm: true,
        score_cap: Some(50.0),
        logit_cap: Some(Some(30.0)),
        wide_scale_layers: Some(46),
        windows: Some(WindowRow { default: Some(4096), pattern: 2, rope: WindowRope::Same }),
        ..GEMMA
    },
    ArchitectureRow {
        name: "gemma3",
        post_norm: true,
        query_key_norm: Some(QueryKeyNormKind::Head),
        logit_cap: Some(None),
        wide_scale_layers: Some(62),
        windows: Some(WindowRow { default: None, pattern: 6, rope: WindowRope::Own(10000.0) }),
        ..GEMMA
    },
    ArchitectureRow {
        name: "stablelm",
        layer_norm: true,
        may_be_parallel: true,
        query_key_norm: Some(QueryKeyNormKind::EachHead),
        ..QWEN2
    },
    ArchitectureRow {
        name: "olmo2",
        pre_norm: false,
        post_norm: true,
        query_key_norm: Some(QueryKeyNormKind::Whole),
        windows: Some(WindowRow { default: None, pattern: 4, rope: WindowRope::Unscaled }),
        ..QWEN2
    },
    ArchitectureRow { name: "starcoder2", layer_norm: true, gate: false, activation: Activation::GeluTanh, ..QWEN2 },
];

/// The metadata of a language model.
pub(super) struct Metadata<'a> {
    pub(super) header: &'a Header,
    pub(super) row: &'static ArchitectureRow,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(header: &'a Header) -> Result<Self> {
        let architecture = header.text("general.architecture").unwrap_or_default();
        if let Some(row) = ARCHITECTURES.iter().find(|row| row.name == architecture) {
            return Ok(Self { header, row });
        }
        Err(Error::Unsupported {
            what: format!("general.architecture of {}", header.file),
            found: format!("{architecture:?}"),
            supported: ARCHITECTURES.map(|row| row.name).join(", "),
        })
    }

    /// `general.architecture`
    pub(super) fn architecture(&self) -> &'static str {
        self.row.name
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.row.name)
    }

    /// The checks of single values, whose errors name the file.
    fn file(&self) -> ConfigFile<'_> {
        ConfigFile(&self.header.file)
    }

    fn bad(&self, reason: String) -> Error {
        self.file().error(reason)
    }

    fn unsupported(&self, name: &str, found: impl Into<String>, supported: &str) -> Error {
        self.file().unsupported(&self.key(name), found, supported)
    }

    /// A size, or one for each layer, all the same. Zero counts as absent where `zero_is_none`.
    fn optional(&self, name: &str, limit: usize, zero_is_none: bool) -> Result<Option<usize>> {
        let key = self.key(name);
        let Some(value) = self.header.metadata.get(&key) else { return Ok(None) };
        let value = match value {
            Value::Array(Array::Integers(values)) => match values.as_slice() {
                [first, rest @ ..] if rest.iter().all(|value| value == first) => u64::try_from(*first).ok(),
                _ => return Err(self.unsupported(name, "layers of several sizes", "one size for all layers")),
            },
            _ => self.header.integer::<u64>(&key),
        };
        match value {
            Some(0) if zero_is_none => Ok(None),
            Some(size) => self.file().size(&key, size, limit).map(Some),
            None => {
                let found = self.header.metadata.get(&key);
                Err(self.bad(format!("{key} is {found:?}, expected 1 to {limit}")))
            }
        }
    }

    fn size(&self, name: &str, limit: usize) -> Result<usize> {
        self.optional(name, limit, false)?.ok_or_else(|| self.bad(format!("{} is missing", self.key(name))))
    }

    fn positive(&self, name: &str, default: Option<f64>, limit: f64) -> Result<f32> {
        let key = self.key(name);
        let value = self.header.number(&key).or(default).ok_or_else(|| self.bad(format!("{key} is missing")))?;
        self.file().positive(&key, value, limit)
    }

    /// A positive number; `default` if it is absent or 0.
    fn factor(&self, name: &str, default: f64) -> Result<f32> {
        let key = self.key(name);
        let value = self.header.number(&key).filter(|value| *value != 0.0).unwrap_or(default);
        self.file().positive(&key, value, 1e6)
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        let tensor = self.header.tensors.iter().find(|tensor| tensor.name == name)?;
        Some(&tensor.info.shape)
    }

    fn has(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// Whether the first layer has one of these tensors.
    fn has_in_layer(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.has(&format!("blk.0.{name}")))
    }

    /// The configuration; [`Self::set_rope`] adds what is in tensors.
    pub(super) fn config(&self) -> Result<LanguageConfig> {
        let row = self.row;
        let hidden_size = self.size("embedding_length", MAX_WIDTH)?;
        let num_heads = self.size("attention.head_count", MAX_HEADS)?;
        let num_kv_heads = self.optional("attention.head_count_kv", num_heads, false)?.unwrap_or(num_heads);
        let head_dim = self.head_dim(hidden_size, num_heads)?;
        let rotated = self.optional("rope.dimension_count", MAX_HEAD_DIM, false)?.unwrap_or(head_dim);
        let fits = rotated <= head_dim && (rotated == head_dim || !row.interleaved);
        if !fits || !head_dim.is_multiple_of(2) || !rotated.is_multiple_of(2) {
            return Err(self.unsupported(
                "rope.dimension_count",
                format!("{rotated} with heads of {head_dim}"),
                if row.interleaved { "the whole head, of even size" } else { "an even number, at most the head's" },
            ));
        }
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(self.bad(format!("{num_heads} heads do not divide into {num_kv_heads} key/value heads")));
        }
        let experts = self.experts()?;
        let vocab_size = self.vocab_size(hidden_size)?;
        let num_layers = self.size("block_count", MAX_LAYERS)?;
        let token = |name: &str| {
            let id = self.header.integer::<u32>(&format!("tokenizer.ggml.{name}_token_id"));
            id.filter(|id| (*id as usize) < vocab_size)
        };
        let ends = ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"];
        let eps = if row.layer_norm { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
        let theta = self.positive("rope.freq_base", Some(10000.0), 1e12)?;
        let (embedding_scale, logit_scale) = match row.multipliers {
            true => (self.factor("embedding_scale", 1.0)?, self.factor("logit_scale", 1.0)?),
            false if row.scaled_embedding => ((hidden_size as f32).sqrt(), 1.0),
            false => (1.0, 1.0),
        };
        let intermediate_size = match &experts {
            Some((_, width)) => *width,
            None => self.size("feed_forward_length", MAX_WIDTH)?,
        };
        Ok(LanguageConfig {
            architecture: match (row.name, &experts) {
                ("gemma", _) => Architecture::Gemma,
                ("llama" | "mixtral", Some(_)) => Architecture::Mixtral,
                ("llama" | "mixtral", None) => Architecture::Llama,
                (name, _) => Architecture::Other(name),
            },
            hidden_size,
            intermediate_size,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            layer: self.layer(hidden_size, num_heads, num_layers)?,
            other_layers: None,
            rms_norm_eps: self.positive(eps, None, 1.0)?,
            norm_unit_offset: false,
            rope: Rope { rotated, ..Rope::new(theta, head_dim) },
            long_rope: None,
            embedding_scale,
            logit_scale,
            logit_cap: self.cap("final_logit_softcapping", row.logit_cap)?,
            vocab_size,
            max_positions: self.size("context_length", MAX_POSITIONS)?,
            tie_word_embeddings: !self.has("output.weight"),
            activation: row.activation,
            experts: experts.map(|(experts, _)| experts),
            bos_token: token("bos"),
            eos_tokens: ends.into_iter().filter_map(token).collect(),
        })
    }

    fn head_dim(&self, hidden_size: usize, num_heads: usize) -> Result<usize> {
        let length = self.optional("attention.key_length", MAX_HEAD_DIM, false)?;
        let head_dim = match length {
            Some(length) => length,
            None if hidden_size.is_multiple_of(num_heads) => {
                self.file().size("the width of a head", (hidden_size / num_heads) as u64, MAX_HEAD_DIM)?
            }
            None => return Err(self.bad(format!("a width of {hidden_size} does not divide into {num_heads} heads"))),
        };
        match self.optional("attention.value_length", MAX_HEAD_DIM, false)? {
            Some(values) if values != head_dim => Err(self.unsupported(
                "attention.value_length",
                format!("{values} with keys of {head_dim}"),
                "values as long as keys",
            )),
            _ => Ok(head_dim),
        }
    }

    fn vocab_size(&self, hidden_size: usize) -> Result<usize> {
        match self.shape("token_embd.weight") {
            Some(&[rows, columns]) if columns == hidden_size => {
                self.file().size("the number of rows of token_embd.weight", rows as u64, MAX_VOCABULARY)
            }
            Some(other) => {
                Err(self.bad(format!("token_embd.weight has shape {other:?}, expected [vocabulary, {hidden_size}]")))
            }
            None if self.header.tensors.is_empty() => Err(self
                .bad("it has no tensors, only metadata (a file of a vocabulary); expected a model's file".to_owned())),
            None => Err(self.bad("the tensor token_embd.weight is missing".to_owned())),
        }
    }

    fn layer(&self, hidden_size: usize, num_heads: usize, num_layers: usize) -> Result<LayerConfig> {
        let row = self.row;
        let scale = if row.multipliers {
            let key = self.key("attention.scale");
            let value = self.header.number(&key).filter(|value| *value != 0.0);
            value.map(|value| self.file().positive(&key, value, 1e6)).transpose()?
        } else if row.wide_scale_layers == Some(num_layers) {
            Some(1.0 / (hidden_size as f32 / num_heads as f32).sqrt())
        } else {
            None
        };
        let has_norms = self.has_in_layer(&["attn_q_norm.weight"]);
        Ok(LayerConfig {
            layer_norm: row.layer_norm,
            pre_norm: row.pre_norm,
            post_norm: row.post_norm,
            parallel: row.may_be_parallel && !self.has_in_layer(&["ffn_norm.weight"]),
            biases: Biases {
                qkv: self.has_in_layer(&["attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_qkv.bias"]),
                out: self.has_in_layer(&["attn_output.bias"]),
                up: self.has_in_layer(&["ffn_up.bias", "ffn_gate.bias"]),
                down: self.has_in_layer(&["ffn_down.bias"]),
                head: self.has("output.bias"),
            },
            query_key_norm: row.query_key_norm.filter(|kind| *kind != QueryKeyNormKind::EachHead || has_norms),
            gate: row.gate,
            scores: Scores {
                scale,
                cap: self.cap("attn_logit_softcapping", row.score_cap.map(Some))?,
                // Windows are those of other layers.
                window: None,
            },
            residual_scale: if row.multipliers { self.factor("residual_scale", 1.0)? } else { 1.0 },
        })
    }

    /// A soft cap, if the architecture may have one; 0 means none.
    fn cap(&self, name: &str, default: Option<Option<f64>>) -> Result<Option<f32>> {
        let Some(default) = default else { return Ok(None) };
        let key = self.key(name);
        let value = self.header.number(&key).or(default).filter(|value| *value != 0.0);
        value.map(|value| self.file().positive(&key, value, 1e6)).transpose()
    }

    /// The experts and their width.
    fn experts(&self) -> Result<Option<(ExpertsConfig, usize)>> {
        // Some converters write 0 for dense models.
        let Some(count) = self.optional("expert_count", MAX_EXPERTS, true)? else { return Ok(None) };
        let per_token = self.size("expert_used_count", count)?;
        let columns = |name: &str| self.shape(name).and_then(|shape| shape.last().copied());
        let width = columns("blk.0.ffn_down_exps.weight").or_else(|| columns("blk.0.ffn_down.0.weight"));
        let width = match (width, self.optional("expert_feed_forward_length", MAX_WIDTH, true)?) {
            (Some(width), _) => self.file().size("the width of an expert", width as u64, MAX_WIDTH)?,
            (None, Some(width)) => width,
            (None, None) => self.size("feed_forward_length", MAX_WIDTH)?,
        };
        let shared = self.shape("blk.0.ffn_up_shexp.weight").and_then(|shape| shape.first().copied());
        let shared = match shared {
            Some(rows) => Some(SharedExpert {
                intermediate_size: self.file().size("the width of the shared expert", rows as u64, MAX_WIDTH)?,
                gated: self.has_in_layer(&["ffn_gate_inp_shexp.weight"]),
            }),
            None => None,
        };
        let scale = self.factor("expert_weights_scale", 1.0)?;
        let experts = ExpertsConfig { count, per_token, normalised: self.row.normalised, scale, shared };
        Ok(Some((experts, width)))
    }

    /// Sets RoPE's scaling, which may be in tensors, and the layers that differ.
    pub(super) async fn set_rope(&self, config: &mut LanguageConfig, checkpoint: &Checkpoint) -> Result<()> {
        let plain = config.rope.clone();
        let pairs = plain.rotated / 2;
        let number = |name: &str| self.header.number(&self.key(name));
        let kind = self.header.text(&self.key("rope.scaling.type"));
        let context = self.optional("rope.scaling.original_context_length", MAX_POSITIONS, true)?;
        let has_long = checkpoint.info("rope_factors_long.weight").is_some();
        // Older files have `rope.scale_linear` instead of a type. 0 means none.
        let factor = number("rope.scaling.factor").or_else(|| number("rope.scale_linear")).filter(|f| *f != 0.0);
        let factor = self.file().positive("the rope scaling factor", factor.unwrap_or(1.0), 1e6)?;
        match kind {
            _ if has_long || kind == Some("longrope") => {
                config.rope.freq_factors = self.read_factors(checkpoint, "rope_factors_short.weight", pairs).await?;
                config.rope.magnitude = self.factor("rope.scaling.attn_factor", 1.0)?;
                config.long_rope = Some(LongRope {
                    beyond: context.unwrap_or(config.max_positions),
                    freq_factors: self.read_factors(checkpoint, "rope_factors_long.weight", pairs).await?,
                });
            }
            _ if checkpoint.info("rope_freqs.weight").is_some() => {
                config.rope.freq_factors = self.read_factors(checkpoint, "rope_freqs.weight", pairs).await?;
            }
            Some("none") => {}
            None | Some("linear") if factor == 1.0 => {}
            None | Some("linear") => config.rope.freq_factors = vec![factor; pairs],
            Some("yarn") => {
                let original = context.unwrap_or(config.max_positions);
                let betas = [
                    self.positive("rope.scaling.yarn_beta_fast", Some(32.0), 1e6)?,
                    self.positive("rope.scaling.yarn_beta_slow", Some(1.0), 1e6)?,
                ];
                config.rope.freq_factors = yarn_freq_factors(&plain, f64::from(factor), original, betas.map(f64::from));
                let log = 0.1 * f64::from(factor).ln();
                let multiplier = number("rope.scaling.yarn_log_multiplier").unwrap_or(0.0);
                let magnitude = (1.0 + log) / (1.0 + multiplier * log);
                let magnitude = magnitude * f64::from(self.factor("rope.scaling.attn_factor", 1.0)?);
                config.rope.magnitude = self.file().positive("the magnitude of rope scaling", magnitude, 1e6)?;
            }
            Some(other) => {
                let supported = "none, linear, yarn, longrope, or a tensor rope_freqs.weight";
                return Err(self.unsupported("rope.scaling.type", other, supported));
            }
        }
        if self.row.multipliers && self.header.flag(&self.key("rope.scaling.finetuned")) == Some(false) {
            config.rope.rotated = 0;
        }
        if self.row.query_factor
            && let Some(scale) = number("attention.temperature_scale").filter(|scale| *scale != 0.0)
        {
            let Some(period) = context else {
                let name = "rope.scaling.original_context_length";
                return Err(self.bad(format!("{} is missing, which attention.temperature_scale needs", self.key(name))));
            };
            config.rope.query_factor = Some(QueryFactor { scale: scale as f32, period });
        }
        config.other_layers = self.other_layers(config, &plain)?;
        Ok(())
    }

    fn other_layers(&self, config: &LanguageConfig, plain: &Rope) -> Result<Option<OtherLayers>> {
        let layers = config.num_layers;
        if let Some(every) = self.row.unrotated {
            let rope = Rope { rotated: 0, ..config.rope.clone() };
            let layers = (0..layers).map(|layer| (layer + 1).is_multiple_of(every)).collect();
            return Ok(Some(OtherLayers { layers, window: None, rope: Some(rope) }));
        }
        let Some(windows) = self.row.windows else { return Ok(None) };
        let window = self.optional("attention.sliding_window", MAX_POSITIONS, true)?.or(windows.default);
        let Some(window) = window else { return Ok(None) };
        let every = |every: usize| (0..layers).map(|layer| layer % every < every - 1).collect();
        let key = self.key("attention.sliding_window_pattern");
        let layers = match self.header.metadata.get(&key) {
            None => every(windows.pattern),
            Some(Value::Array(Array::Bools(pattern))) if pattern.len() == layers => pattern.clone(),
            Some(Value::Integer(_)) => every(self.size("attention.sliding_window_pattern", MAX_LAYERS)?),
            Some(other) => {
                return Err(self.bad(format!("{key} is {other:?}, expected a number or {layers} booleans")));
            }
        };
        let rope = match windows.rope {
            WindowRope::Same => None,
            WindowRope::Unscaled => Some(plain.clone()),
            WindowRope::Own(theta) => {
                let theta = self.positive("rope.freq_base_swa", Some(theta), 1e12)?;
                Some(Rope { theta, ..plain.clone() })
            }
        };
        Ok(Some(OtherLayers { layers, window: Some(window), rope }))
    }

    async fn read_factors(&self, checkpoint: &Checkpoint, name: &str, pairs: usize) -> Result<Vec<f32>> {
        let factors = checkpoint.read(name).await?;
        if factors.len() == pairs && factors.iter().all(|factor| *factor > 0.0) {
            return Ok(factors);
        }
        Err(self.bad(format!("{name} has {} values, expected {pairs} positive ones", factors.len())))
    }
}

/// YaRN's divisors: 1 for frequencies that rotate more than `betas[0]` times within the original context, `factor` for
/// those that rotate less than `betas[1]` times, and a ramp between.
fn yarn_freq_factors(rope: &Rope, factor: f64, original: usize, betas: [f64; 2]) -> Vec<f32> {
    let (rotated, theta) = (rope.rotated as f64, f64::from(rope.theta));
    let [low, high] = betas.map(|beta| {
        let turns = original as f64 / (2.0 * std::f64::consts::PI * beta);
        rotated * turns.ln() / (2.0 * theta.ln())
    });
    let (low, high) = (low.floor().max(0.0), high.ceil().min(rotated - 1.0));
    let divisor = |pair: usize| {
        let ramp = 1.0 - ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        1.0 / ((1.0 - ramp) / factor + ramp)
    };
    (0..rope.rotated / 2).map(|pair| divisor(pair) as f32).collect()
}
