//! A language model in a GGUF file: its configuration, and its tensors under the names of safetensors checkpoints.
//!
//! This reverses llama.cpp's conversion: rows of queries and keys of `llama` models have their order recorded
//! ([`RowOrder`]), and stacked experts become separate tensors. Gemma's norms keep the 1 that the converter added.

use std::rc::Rc;

use super::checkpoint::Checkpoint;
use super::config::json::ConfigFile;
use super::config::{
    Architecture, ExpertsConfig, LanguageConfig, MAX_EXPERTS, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS,
    MAX_VOCABULARY, MAX_WIDTH,
};
use super::gguf::Header;
use super::row_order::RowOrder;
use super::stored_tensor::StoredTensor;
use super::view::Weights;
use crate::io::ByteSource;
use crate::tensor::Activation;
use crate::{Error, Result};

/// An opened GGUF file. Only its header is in memory.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GgufModel {
    /// The file's header, with the tokenizer and the chat template.
    pub header: Rc<Header>,
    /// The model's configuration.
    pub config: LanguageConfig,
    /// `model.embed_tokens.weight`, `model.layers.0.…`, `model.norm.weight`, `lm_head.weight`.
    pub weights: Weights,
}

impl GgufModel {
    /// Opens a file.
    ///
    /// # Errors
    /// As [`Header::read`]; [`Error::Unsupported`] for another architecture, an unknown tensor or one part of a split
    /// file; [`Error::Config`] if a size is missing or out of range.
    pub async fn open(source: Rc<dyn ByteSource>) -> Result<Self> {
        let header = Header::read(&*source).await?;
        if let Some(parts @ 2..) = header.integer::<usize>("split.count") {
            return Err(Error::Unsupported {
                what: header.file.clone(),
                found: format!("one of {parts} parts of a model"),
                supported: "whole files: join them with llama.cpp's `llama-gguf-split --merge`".to_owned(),
            });
        }
        let reader = Metadata::new(&header)?;
        let mut config = reader.config()?;
        let mut tensors = Vec::new();
        for stored in &header.tensors {
            reader.place(&config, stored, &mut tensors)?;
        }
        let checkpoint = Checkpoint::from_tensors(source, tensors);
        config.rope_freq_factors = reader.rope_freq_factors(&config, &checkpoint).await?;
        Ok(Self { header: Rc::new(header), config, weights: Weights::new(Rc::new(checkpoint)) })
    }
}

struct Metadata<'a> {
    header: &'a Header,
    architecture: &'a str,
}

impl<'a> Metadata<'a> {
    fn new(header: &'a Header) -> Result<Self> {
        let architecture = header.text("general.architecture").unwrap_or_default();
        if matches!(architecture, "llama" | "mixtral" | "gemma") {
            return Ok(Self { header, architecture });
        }
        Err(Error::Unsupported {
            what: format!("general.architecture of {}", header.file),
            found: format!("{architecture:?}"),
            supported: "llama (dense or with experts), gemma".to_owned(),
        })
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// The checks of single values, whose errors name the file.
    fn file(&self) -> ConfigFile<'_> {
        ConfigFile(&self.header.file)
    }

    fn bad(&self, reason: String) -> Error {
        self.file().error(reason)
    }

    fn optional(&self, name: &str, limit: usize) -> Result<Option<usize>> {
        let key = self.key(name);
        let Some(value) = self.header.metadata.get(&key) else { return Ok(None) };
        match self.header.integer::<u64>(&key) {
            // Some converters write 0 for dense models.
            Some(0) if name == "expert_count" => Ok(None),
            Some(size) => self.file().size(&key, size, limit).map(Some),
            None => Err(self.bad(format!("{key} is {value:?}, expected 1 to {limit}"))),
        }
    }

    fn size(&self, name: &str, limit: usize) -> Result<usize> {
        self.optional(name, limit)?.ok_or_else(|| self.bad(format!("{} is missing", self.key(name))))
    }

    fn positive(&self, name: &str, default: Option<f64>, limit: f64) -> Result<f32> {
        let key = self.key(name);
        let value = self.header.number(&key).or(default).ok_or_else(|| self.bad(format!("{key} is missing")))?;
        self.file().positive(&key, value, limit)
    }

    fn config(&self) -> Result<LanguageConfig> {
        let gemma = self.architecture == "gemma";
        let hidden_size = self.size("embedding_length", MAX_WIDTH)?;
        let num_heads = self.size("attention.head_count", MAX_HEADS)?;
        let num_kv_heads = self.optional("attention.head_count_kv", num_heads)?.unwrap_or(num_heads);
        let rotated = self.optional("rope.dimension_count", MAX_HEAD_DIM)?;
        let head_dim = match self.optional("attention.key_length", MAX_HEAD_DIM)? {
            Some(length) => length,
            None if hidden_size.is_multiple_of(num_heads) => {
                self.file().size("the width of a head", (hidden_size / num_heads) as u64, MAX_HEAD_DIM)?
            }
            None => return Err(self.bad(format!("a width of {hidden_size} does not divide into {num_heads} heads"))),
        };
        if rotated.is_some_and(|rotated| rotated != head_dim) || !head_dim.is_multiple_of(2) {
            return Err(Error::Unsupported {
                what: format!("{} of {}", self.key("rope.dimension_count"), self.header.file),
                found: format!("{rotated:?} with heads of {head_dim}"),
                supported: "the whole head, of even size".to_owned(),
            });
        }
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(self.bad(format!("{num_heads} heads do not divide into {num_kv_heads} key/value heads")));
        }
        let experts = match self.optional("expert_count", MAX_EXPERTS)? {
            None => None,
            Some(count) => Some(ExpertsConfig { count, per_token: self.size("expert_used_count", count)? }),
        };
        let shape =
            |name: &str| self.header.tensors.iter().find(|tensor| tensor.name == name).map(|tensor| &tensor.info.shape);
        let vocab_size = match shape("token_embd.weight").map(Vec::as_slice) {
            Some(&[rows, columns]) if columns == hidden_size => {
                self.file().size("the number of rows of token_embd.weight", rows as u64, MAX_VOCABULARY)?
            }
            Some(other) => {
                return Err(
                    self.bad(format!("token_embd.weight has shape {other:?}, expected [vocabulary, {hidden_size}]"))
                );
            }
            None if self.header.tensors.is_empty() => {
                return Err(self.bad(
                    "it has no tensors, only metadata (a file of a vocabulary); expected a model's file".to_owned(),
                ));
            }
            None => return Err(self.bad("the tensor token_embd.weight is missing".to_owned())),
        };
        let token = |name: &str| {
            let id = self.header.integer::<u32>(&format!("tokenizer.ggml.{name}_token_id"));
            id.filter(|id| (*id as usize) < vocab_size)
        };
        Ok(LanguageConfig {
            architecture: match (gemma, experts) {
                (true, _) => Architecture::Gemma,
                (false, Some(_)) => Architecture::Mixtral,
                (false, None) => Architecture::Llama,
            },
            hidden_size,
            intermediate_size: self.size("feed_forward_length", MAX_WIDTH)?,
            num_layers: self.size("block_count", MAX_LAYERS)?,
            num_heads,
            num_kv_heads,
            head_dim,
            rms_norm_eps: self.positive("attention.layer_norm_rms_epsilon", None, 1.0)?,
            norm_unit_offset: false,
            rope_theta: self.positive("rope.freq_base", Some(10000.0), 1e12)?,
            rope_freq_factors: Vec::new(),
            vocab_size,
            max_positions: self.size("context_length", MAX_POSITIONS)?,
            tie_word_embeddings: shape("output.weight").is_none(),
            activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
            experts,
            bos_token: token("bos"),
            eos_tokens: ["eos", "eot", "eom"].into_iter().filter_map(token).collect(),
        })
    }

    /// The factors that RoPE frequencies are divided by: linear scaling, or a tensor (Llama 3.1).
    async fn rope_freq_factors(&self, config: &LanguageConfig, checkpoint: &Checkpoint) -> Result<Vec<f32>> {
        let half = config.head_dim / 2;
        if checkpoint.info("rope_freqs.weight").is_some() {
            let freq_factors = checkpoint.read("rope_freqs.weight").await?;
            if freq_factors.len() == half && freq_factors.iter().all(|factor| *factor > 0.0) {
                return Ok(freq_factors);
            }
            return Err(
                self.bad(format!("rope_freqs.weight has {} values, expected {half} positive ones", freq_factors.len()))
            );
        }
        match self.header.text(&self.key("rope.scaling.type")) {
            Some("none") => Ok(Vec::new()),
            // Older files have `rope.scale_linear` instead of a type. 0 means none.
            None | Some("linear") => {
                let factor = |name: &str| self.header.number(&self.key(name));
                match factor("rope.scaling.factor").or_else(|| factor("rope.scale_linear")) {
                    None | Some(0.0 | 1.0) => Ok(Vec::new()),
                    Some(factor) if factor.is_finite() && factor > 0.0 => Ok(vec![factor as f32; half]),
                    Some(factor) => {
                        Err(self.bad(format!("a rope scaling factor of {factor}, expected a positive one")))
                    }
                }
            }
            Some(other) => Err(Error::Unsupported {
                what: format!("{} of {}", self.key("rope.scaling.type"), self.header.file),
                found: other.to_owned(),
                supported: "none, linear, or a tensor rope_freqs.weight".to_owned(),
            }),
        }
    }

    /// Adds a tensor under the name or names that it has in this project.
    fn place(
        &self,
        config: &LanguageConfig,
        stored: &StoredTensor,
        tensors: &mut Vec<(String, StoredTensor)>,
    ) -> Result<()> {
        let top = match stored.name.as_str() {
            "token_embd.weight" => Some("model.embed_tokens.weight"),
            "output_norm.weight" => Some("model.norm.weight"),
            "output.weight" => Some("lm_head.weight"),
            "rope_freqs.weight" => Some("rope_freqs.weight"),
            _ => None,
        };
        if let Some(name) = top {
            tensors.push((name.to_owned(), stored.clone()));
            return Ok(());
        }
        let unsupported = || Error::Unsupported {
            what: format!("tensor of {}", self.header.file),
            found: stored.name.clone(),
            supported: format!("those of plain {} models", self.architecture),
        };
        let (layer, part) =
            stored.name.strip_prefix("blk.").and_then(|name| name.split_once('.')).ok_or_else(unsupported)?;
        let layer: usize = layer.parse().map_err(|_| unsupported())?;
        let part = part.strip_suffix(".weight").ok_or_else(unsupported)?;
        let permuted = self.architecture != "gemma";
        let mut add = |name: &str, stored: StoredTensor| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), stored));
        };
        let rows = |heads| if permuted { RowOrder::RopeInterleaved { heads } } else { RowOrder::Plain };
        let simple = match part {
            "attn_norm" => "input_layernorm",
            "ffn_norm" => "post_attention_layernorm",
            "attn_v" => "self_attn.v_proj",
            "attn_output" => "self_attn.o_proj",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            "ffn_gate_inp" => "block_sparse_moe.gate",
            "attn_q" => {
                add("self_attn.q_proj", StoredTensor { rows: rows(config.num_heads), ..stored.clone() });
                return Ok(());
            }
            "attn_k" => {
                add("self_attn.k_proj", StoredTensor { rows: rows(config.num_kv_heads), ..stored.clone() });
                return Ok(());
            }
            // The table of RoPE angles, which is computed here.
            "attn_rot_embd" => return Ok(()),
            part => {
                let (stack, number) = match part.strip_suffix("_exps") {
                    Some(stack) => (stack, None),
                    None => {
                        let (stack, number) = part.rsplit_once('.').ok_or_else(unsupported)?;
                        (stack, Some(number.parse::<usize>().map_err(|_| unsupported())?))
                    }
                };
                let matrix = match stack {
                    "ffn_gate" => "w1",
                    "ffn_up" => "w3",
                    "ffn_down" => "w2",
                    _ => return Err(unsupported()),
                };
                let expert_name = |expert: usize| format!("block_sparse_moe.experts.{expert}.{matrix}");
                match (number, stored.info.shape.as_slice()) {
                    (Some(expert), _) => add(&expert_name(expert), stored.clone()),
                    (None, &[experts, rows, columns]) if experts <= MAX_EXPERTS => {
                        let each = stored.info.bytes().unwrap_or(0) / experts.max(1) as u64;
                        for expert in 0..experts {
                            let mut one = stored.clone();
                            one.info.shape = vec![rows, columns];
                            one.offset += expert as u64 * each;
                            add(&expert_name(expert), one);
                        }
                    }
                    _ => return Err(unsupported()),
                }
                return Ok(());
            }
        };
        add(simple, stored.clone());
        Ok(())
    }
}
