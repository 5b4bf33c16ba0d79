//! A language model in a GGUF file: its configuration, and its tensors under the names of safetensors checkpoints.
//!
//! This reverses llama.cpp's conversion: rows of queries and keys of `llama` models have their order recorded
//! ([`RowOrder`]), and fused matrices and stacked experts become separate tensors. Gemma's norms keep the 1 that the
//! converter added.

use std::collections::HashSet;
use std::ops::Range;
use std::rc::Rc;

use super::checkpoint::Checkpoint;
use super::config::{LanguageConfig, MAX_EXPERTS};
use super::expected;
use super::gguf::Header;
use super::gguf_config::Metadata;
use super::row_order::RowOrder;
use super::stored_tensor::StoredTensor;
use super::view::Weights;
use crate::io::ByteSource;
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
            place(&reader, &config, stored, &mut tensors)?;
        }
        check_known(&reader, &config, &tensors)?;
        let checkpoint = Checkpoint::from_tensors(source, tensors);
        reader.set_rope(&mut config, &checkpoint).await?;
        Ok(Self { header: Rc::new(header), config, weights: Weights::new(Rc::new(checkpoint)) })
    }
}

/// The tables of RoPE that a file may have.
const ROPE_TENSORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

fn unsupported(reader: &Metadata<'_>, name: &str) -> Error {
    Error::Unsupported {
        what: format!("tensor of {}", reader.header.file),
        found: name.to_owned(),
        supported: format!("those of plain {} models", reader.architecture()),
    }
}

/// Fails on a tensor that the model would have no use for: it would not compute what the file means.
fn check_known(reader: &Metadata<'_>, config: &LanguageConfig, tensors: &[(String, StoredTensor)]) -> Result<()> {
    let expected = expected::language(config);
    let known: HashSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).chain(ROPE_TENSORS).collect();
    match tensors.iter().find(|(name, _)| !known.contains(name.as_str())) {
        Some((_, stored)) => Err(unsupported(reader, &stored.name)),
        None => Ok(()),
    }
}

/// The rows `range` of a tensor, which are stored in `order`.
fn rows_of(stored: &StoredTensor, range: Range<usize>, order: RowOrder) -> StoredTensor {
    let rows = stored.info.shape.first().copied().unwrap_or(1).max(1);
    let row_bytes = stored.info.bytes().unwrap_or(0) / rows as u64;
    let mut part = StoredTensor { rows: order, ..stored.clone() };
    part.offset += range.start as u64 * row_bytes;
    if let Some(rows) = part.info.shape.first_mut() {
        *rows = range.len();
    }
    part
}

/// Adds a tensor under the name or names that it has in this project.
fn place(
    reader: &Metadata<'_>,
    config: &LanguageConfig,
    stored: &StoredTensor,
    tensors: &mut Vec<(String, StoredTensor)>,
) -> Result<()> {
    let unsupported = || unsupported(reader, &stored.name);
    let top = match stored.name.as_str() {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output_norm.bias" => Some("model.norm.bias"),
        "output.weight" => Some("lm_head.weight"),
        "output.bias" => Some("lm_head.bias"),
        name => ROPE_TENSORS.into_iter().find(|rope| *rope == name),
    };
    if let Some(name) = top {
        tensors.push((name.to_owned(), stored.clone()));
        return Ok(());
    }
    // Scales of quantised activations, which nothing here has, and factors of 1.
    let is_scale =
        stored.name.ends_with(".input_scale") || (stored.name.ends_with(".scale") && stored.info.elements() == Some(1));
    if is_scale {
        return Ok(());
    }
    let (layer, part) =
        stored.name.strip_prefix("blk.").and_then(|name| name.split_once('.')).ok_or_else(unsupported)?;
    let layer: usize = layer.parse().map_err(|_| unsupported())?;
    let (part, end) = part.rsplit_once('.').ok_or_else(unsupported)?;
    if !matches!(end, "weight" | "bias") {
        return Err(unsupported());
    }
    let mut add = |name: &str, stored: StoredTensor| {
        tensors.push((format!("model.layers.{layer}.{name}.{end}"), stored));
    };
    let order = |heads| match reader.row.interleaved {
        true => RowOrder::RopeInterleaved { heads, fixed: 0 },
        false => RowOrder::Plain,
    };
    let (queries, keys) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    let rows = stored.info.shape.first().copied().unwrap_or(0);
    let simple = match part {
        "attn_norm" => "input_layernorm",
        // As in transformers: where there are norms after attention, that name is theirs.
        "ffn_norm" if config.layer.post_norm => "pre_feedforward_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "post_attention_norm" if config.layer.post_norm => "post_attention_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" if config.layer.gate && rows == 2 * config.intermediate_size => {
            let width = config.intermediate_size;
            add("mlp.gate_proj", rows_of(stored, 0..width, RowOrder::Plain));
            add("mlp.up_proj", rows_of(stored, width..2 * width, RowOrder::Plain));
            return Ok(());
        }
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "ffn_gate_inp" => "block_sparse_moe.gate",
        "ffn_gate_shexp" => "block_sparse_moe.shared.gate_proj",
        "ffn_up_shexp" => "block_sparse_moe.shared.up_proj",
        "ffn_down_shexp" => "block_sparse_moe.shared.down_proj",
        "ffn_gate_inp_shexp" => {
            let mut row = stored.clone();
            if let &[columns] = row.info.shape.as_slice() {
                row.info.shape = vec![1, columns];
            }
            add("block_sparse_moe.shared_gate", row);
            return Ok(());
        }
        "attn_q" => {
            add("self_attn.q_proj", StoredTensor { rows: order(config.num_heads), ..stored.clone() });
            return Ok(());
        }
        "attn_k" => {
            add("self_attn.k_proj", StoredTensor { rows: order(config.num_kv_heads), ..stored.clone() });
            return Ok(());
        }
        "attn_qkv" if rows == queries + 2 * keys => {
            add("self_attn.q_proj", rows_of(stored, 0..queries, order(config.num_heads)));
            add("self_attn.k_proj", rows_of(stored, queries..queries + keys, order(config.num_kv_heads)));
            add("self_attn.v_proj", rows_of(stored, queries + keys..rows, RowOrder::Plain));
            return Ok(());
        }
        // Tables of RoPE angles, which are computed here.
        "attn_rot_embd" | "rope_freqs" => return Ok(()),
        part => {
            for (name, stored) in expert_tensors(config, part, stored).ok_or_else(unsupported)? {
                add(&name, stored);
            }
            return Ok(());
        }
    };
    add(simple, stored.clone());
    Ok(())
}

/// The tensors of experts in a stack of all of them, or in a tensor of one. `None` if it is neither.
fn expert_tensors(config: &LanguageConfig, part: &str, stored: &StoredTensor) -> Option<Vec<(String, StoredTensor)>> {
    let name = |expert: usize, matrix: &str| format!("block_sparse_moe.experts.{expert}.{matrix}");
    let matrix = |stack: &str| match stack {
        "ffn_gate" => Some("w1"),
        "ffn_up" => Some("w3"),
        "ffn_down" => Some("w2"),
        _ => None,
    };
    let Some(stack) = part.strip_suffix("_exps") else {
        let (stack, number) = part.rsplit_once('.')?;
        return Some(vec![(name(number.parse().ok()?, matrix(stack)?), stored.clone())]);
    };
    let &[experts, rows, columns] = stored.info.shape.as_slice() else { return None };
    if experts > MAX_EXPERTS {
        return None;
    }
    let of_expert = |expert: usize| {
        let mut one = rows_of(stored, expert..expert + 1, RowOrder::Plain);
        one.info.shape = vec![rows, columns];
        one
    };
    let width = config.intermediate_size;
    if stack == "ffn_gate_up" && rows == 2 * width {
        let halves = |expert| {
            let one = of_expert(expert);
            let [gate, up] = [0..width, width..rows].map(|range| rows_of(&one, range, RowOrder::Plain));
            [(name(expert, "w1"), gate), (name(expert, "w3"), up)]
        };
        return Some((0..experts).flat_map(halves).collect());
    }
    let matrix = matrix(stack)?;
    Some((0..experts).map(|expert| (name(expert, matrix), of_expert(expert))).collect())
}
