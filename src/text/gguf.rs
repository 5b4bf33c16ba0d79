//! The tokenizer that a GGUF file carries.

use serde_json::json;

use super::sentencepiece::{Model, Normalizer, Piece, PieceKind};
use super::tokenizer::Tokenizer;
use super::tokenizer_config::{AddedToken, TokenizerConfig};
use crate::weights::gguf::{Header, Value};
use crate::{Error, Result};

/// How byte-level BPE cuts text before merging, by `tokenizer.ggml.pre` (llama.cpp's `llm_tokenizer_bpe`).
struct PreTokenizer {
    names: &'static [&'static str],
    /// Each cuts further what the ones before it left; none: the pattern of GPT-2.
    patterns: &'static [&'static str],
    /// GPT-2's pattern comes last.
    gpt2: bool,
    /// A piece that is a token as a whole is not merged.
    ignore_merges: bool,
    /// Starts with the beginning token if the file does not say.
    add_bos: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PRE_TOKENIZERS: [PreTokenizer; 6] = [
    PreTokenizer {
        names: &["default", "gpt-2", "gpt2", "phi-2", "jina-es", "jina-de", "mpt", "olmo"],
        patterns: &[],
        gpt2: true,
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"],
        patterns: &[r"\p{N}"],
        gpt2: true,
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3"],
        patterns: &[LLAMA3],
        gpt2: false,
        ignore_merges: true,
        add_bos: true,
    },
    PreTokenizer { names: &["smaug-bpe"], patterns: &[LLAMA3], gpt2: false, ignore_merges: false, add_bos: false },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2"],
        patterns: &[QWEN2],
        gpt2: false,
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer { names: &["tekken"], patterns: &[TEKKEN], gpt2: false, ignore_merges: true, add_bos: true },
];

/// Tokens that end a turn whatever the file says of them.
pub const END_OF_TURN: [&str; 9] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "</s>",
];

/// Tokens that begin or end turns: control tokens, though some converters made them ordinary or user-defined ones. llama.cpp
/// knows them by their texts too.
const TURN_MARKERS: [&str; 11] = [
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
];

impl Tokenizer {
    /// The tokenizer in a GGUF file's metadata: SentencePiece (`llama`) or byte-level BPE (`gpt2`).
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Unsupported`].
    pub fn from_gguf(header: &Header) -> Result<Self> {
        let bad = |reason: String| Error::Config { file: header.file.clone(), reason };
        let tokens = header
            .texts("tokenizer.ggml.tokens")
            .ok_or_else(|| bad("tokenizer.ggml.tokens is missing or not a list of texts".to_owned()))?;
        let mut kinds: Vec<i64> = match header.array("tokenizer.ggml.token_type") {
            None => vec![1; tokens.len()],
            Some(values) if values.len() == tokens.len() => values.iter().map(integer).collect(),
            Some(values) => {
                return Err(bad(format!("{} token types for {} tokens", values.len(), tokens.len())));
            }
        };
        for (token, kind) in tokens.iter().zip(&mut kinds) {
            if matches!(*kind, 1 | 4) && TURN_MARKERS.contains(token) {
                *kind = 3;
            }
        }
        let sentencepiece = header.text("tokenizer.ggml.model") == Some("llama");
        // What llama.cpp takes for SentencePiece models that do not say.
        let id = |name: &str, default: u32| {
            let id = header.integer::<u32>(&format!("tokenizer.ggml.{name}_token_id"));
            id.or(sentencepiece.then_some(default)).filter(|id| (*id as usize) < tokens.len())
        };
        let [bos, eos, unknown] = [id("bos", 1), id("eos", 2), id("unknown", 0)];
        // Some converters call the unknown token a control token.
        if let Some(kind) = unknown.and_then(|id| kinds.get(id as usize)).copied()
            && sentencepiece
            && kind != 2
            && !kinds.contains(&2)
            && let Some(kind) = unknown.and_then(|id| kinds.get_mut(id as usize))
        {
            *kind = 2;
        }
        let mut config = TokenizerConfig {
            add_bos_token: header.flag("tokenizer.ggml.add_bos_token"),
            // Some files ask for an end after every text; after a prompt it would be the end of the conversation.
            add_eos_token: Some(false),
            model_type: "llama".to_owned(),
            ..TokenizerConfig::default()
        };
        for (role, id) in [("bos_token", bos), ("eos_token", eos), ("unk_token", unknown)] {
            if let Some(text) = id.and_then(|id| tokens.get(id as usize)) {
                config.roles.insert(role, (*text).to_owned());
            }
        }
        for (id, (token, kind)) in tokens.iter().zip(&kinds).enumerate() {
            // Control and user-defined tokens are found in text before anything else.
            if matches!(kind, 3 | 4) && !token.is_empty() {
                config.added.insert(id as u32, AddedToken { special: *kind == 3, ..AddedToken::special(*token) });
            }
        }
        match header.text("tokenizer.ggml.model") {
            Some("llama") => {
                let scores: Vec<f32> = match header.array("tokenizer.ggml.scores") {
                    Some(values) if values.len() == tokens.len() => values.iter().map(number).collect(),
                    _ => return Err(bad("tokenizer.ggml.scores has not one score for each token".to_owned())),
                };
                let pieces = tokens
                    .iter()
                    .zip(&kinds)
                    .zip(&scores)
                    .map(|((text, kind), score)| piece(text, *kind, *score))
                    .collect::<Option<Vec<_>>>()
                    .ok_or_else(|| bad("a byte token is not of the form <0xFF>".to_owned()))?;
                let normalizer = Normalizer {
                    add_dummy_prefix: header.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true),
                    remove_extra_whitespaces: false,
                    escape_whitespaces: true,
                    space_as_suffix: false,
                };
                let model = Model::from_pieces(pieces, normalizer, bos, eos).map_err(|error| bad(error.to_string()))?;
                config.add_prefix_space = Some(normalizer.add_dummy_prefix);
                Self::from_pieces(model, &config)
            }
            Some("gpt2") => {
                let name = match header.text("tokenizer.ggml.pre").unwrap_or("default") {
                    // The first conversions of Llama 3 did not say.
                    "default" if tokens.contains(&"<|begin_of_text|>") => "llama-bpe",
                    name => name,
                };
                let Some(pre) = PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name)) else {
                    return Err(Error::Unsupported {
                        what: format!("tokenizer.ggml.pre of {}", header.file),
                        found: name.to_owned(),
                        supported: PRE_TOKENIZERS
                            .iter()
                            .flat_map(|pre| pre.names)
                            .copied()
                            .collect::<Vec<_>>()
                            .join(", "),
                    });
                };
                let merges = header
                    .texts("tokenizer.ggml.merges")
                    .ok_or_else(|| bad("tokenizer.ggml.merges is missing or not a list of texts".to_owned()))?;
                config.add_bos_token = config.add_bos_token.or(Some(pre.add_bos));
                // What stands around a text is for the metadata to say, as it is for Llama's class.
                config.class = Some("LlamaTokenizerFast".to_owned());
                let file = byte_level(&tokens, &merges, &config, pre);
                Self::from_tokenizer_json(&serde_json::to_vec(&file).map_err(|error| bad(error.to_string()))?, &config)
            }
            other => Err(Error::Unsupported {
                what: format!("tokenizer.ggml.model of {}", header.file),
                found: format!("{other:?}"),
                supported: "llama (SentencePiece), gpt2 (byte-level BPE)".to_owned(),
            }),
        }
    }
}

fn integer(value: &Value) -> i64 {
    match value {
        Value::Integer(value) => i64::try_from(*value).unwrap_or(0),
        _ => 0,
    }
}

fn number(value: &Value) -> f32 {
    match value {
        Value::Float(value) => *value as f32,
        Value::Integer(value) => *value as f32,
        _ => 0.0,
    }
}

fn piece(text: &str, kind: i64, score: f32) -> Option<Piece> {
    let kind = match kind {
        2 => PieceKind::Unknown,
        3 => PieceKind::Control,
        4 => PieceKind::UserDefined,
        5 => PieceKind::Unused,
        6 => PieceKind::Byte(u8::from_str_radix(text.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()?),
        _ => PieceKind::Normal,
    };
    Some(Piece { text: text.to_owned(), score, kind })
}

/// The `tokenizer.json` of a byte-level BPE model.
fn byte_level(tokens: &[&str], merges: &[&str], config: &TokenizerConfig, pre: &PreTokenizer) -> serde_json::Value {
    let vocab: serde_json::Map<String, serde_json::Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect();
    let added: Vec<_> = config
        .added
        .iter()
        .map(|(id, token)| {
            json!({
                "id": id, "content": token.content, "special": token.special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let mut steps: Vec<_> = pre
        .patterns
        .iter()
        .map(|pattern| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}))
        .collect();
    steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": pre.gpt2}));
    json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.ignore_merges, "vocab": vocab, "merges": merges,
        },
    })
}
