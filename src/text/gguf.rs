//! The tokenizer in a GGUF file.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizer::SplitDelimiterBehavior;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use super::merges;
use super::sentencepiece::{Model, Normalizer, Piece, PieceKind};
use super::tokenizer::Tokenizer;
use super::tokenizer_config::{AddedToken, TokenizerConfig};
use crate::weights::gguf::{Array, Header, Texts};
use crate::{Error, Result};

/// How byte-level BPE splits text before merging, by `tokenizer.ggml.pre` (llama.cpp's `llm_tokenizer_bpe`).
struct PreTokenizer {
    names: &'static [&'static str],
    /// Each splits the results of the one before it.
    patterns: &'static [&'static str],
    /// A word that is itself a token is not merged.
    ignore_merges: bool,
    /// Default of `tokenizer.ggml.add_bos_token`.
    add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

const PRE_TOKENIZERS: [PreTokenizer; 13] = [
    PreTokenizer {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "granite-docling",
            "modern-bert",
        ],
        patterns: &[GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        patterns: &[r"\p{N}", GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "glm4"],
        patterns: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    PreTokenizer {
        names: &["smaug-bpe", "dbrx", "chatglm-bpe"],
        patterns: &[LLAMA3],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "stablelm2",
            "megrez",
            "kormo",
            "hunyuan",
            "solar-open",
            "f2llmv2",
            "grok-2",
        ],
        patterns: &[QWEN2],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer { names: &["tekken"], patterns: &[TEKKEN], ignore_merges: true, add_bos: true },
    PreTokenizer { names: &["gpt-4o", "llama4", "kanana2"], patterns: &[GPT4O], ignore_merges: false, add_bos: false },
    PreTokenizer { names: &["qwen35"], patterns: &[QWEN35], ignore_merges: false, add_bos: false },
    PreTokenizer { names: &["seed-coder"], patterns: &[SEED_CODER], ignore_merges: false, add_bos: false },
    PreTokenizer {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        patterns: &[BAILING],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["deepseek-v3", "hunyuan-dense"],
        patterns: &[r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["falcon"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"],
        ignore_merges: false,
        add_bos: false,
    },
];

/// Tokens that end a turn whatever their type in the file.
pub const END_OF_TURN: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "</s>",
    "<eos>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_utterance>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Tokens that begin or end turns. They are control tokens even if a converter made them ordinary or user-defined ones,
/// as in llama.cpp.
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
    /// [`Error::Config`] if a key is missing or has another type or length than its model needs; [`Error::Unsupported`]
    /// for another kind of tokenizer or pre-tokenizer.
    pub fn from_gguf(header: &Header) -> Result<Self> {
        let bad = |reason: String| Error::Config { file: header.file.clone(), reason };
        let tokens = header
            .texts("tokenizer.ggml.tokens")
            .ok_or_else(|| bad("tokenizer.ggml.tokens is missing or not a list of texts".to_owned()))?;
        let mut kinds: Vec<i64> = match header.array("tokenizer.ggml.token_type") {
            None => vec![1; tokens.len()],
            Some(Array::Integers(values)) if values.len() == tokens.len() => values.clone(),
            Some(_) => return Err(bad("tokenizer.ggml.token_type must have one type per token".to_owned())),
        };
        for (token, kind) in tokens.iter().zip(&mut kinds) {
            if matches!(*kind, 1 | 4) && TURN_MARKERS.contains(&token) {
                *kind = 3;
            }
        }
        let sentencepiece = header.text("tokenizer.ggml.model") == Some("llama");
        // Defaults of llama.cpp for SentencePiece models.
        let id = |name: &str, default: u32| {
            let id = header.integer::<u32>(&format!("tokenizer.ggml.{name}_token_id"));
            id.or(sentencepiece.then_some(default)).filter(|id| (*id as usize) < tokens.len())
        };
        let [bos, eos, unknown] = [id("bos", 1), id("eos", 2), id("unknown", 0)];
        // Some converters mark the unknown token as a control token.
        if sentencepiece
            && !kinds.contains(&2)
            && let Some(kind) = unknown.and_then(|id| kinds.get_mut(id as usize))
        {
            *kind = 2;
        }
        let mut config = TokenizerConfig {
            add_bos_token: header.flag("tokenizer.ggml.add_bos_token"),
            // Some files request EOS after every text; after a prompt it would end the conversation.
            add_eos_token: Some(false),
            model_type: "llama".to_owned(),
            ..TokenizerConfig::default()
        };
        for (role, id) in [("bos_token", bos), ("eos_token", eos), ("unk_token", unknown)] {
            if let Some(text) = id.and_then(|id| tokens.get(id as usize)) {
                config.roles.insert(role, text.to_owned());
            }
        }
        // Phi-3's, which the file does not say.
        let strips = sentencepiece && header.text("general.architecture") == Some("phi3");
        for (id, (token, kind)) in tokens.iter().zip(&kinds).enumerate() {
            // Control and user-defined tokens are matched in text first.
            if matches!(kind, 3 | 4) && !token.is_empty() {
                let added = AddedToken {
                    special: *kind == 3,
                    rstrip: strips && !matches!(token, "<unk>" | "<s>" | "<|endoftext|>"),
                    ..AddedToken::special(token)
                };
                config.added.insert(id as u32, added);
            }
        }
        match header.text("tokenizer.ggml.model") {
            Some("llama") => {
                let scores = match header.array("tokenizer.ggml.scores") {
                    Some(Array::Floats(values)) if values.len() == tokens.len() => values,
                    _ => return Err(bad("tokenizer.ggml.scores must have one score per token".to_owned())),
                };
                let pieces = tokens
                    .iter()
                    .zip(&kinds)
                    .zip(scores)
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
                    // The first conversions of Llama 3 have no name.
                    "default" if tokens.iter().any(|token| token == "<|begin_of_text|>") => "llama-bpe",
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
                // As for Llama's class, the metadata decides the BOS and EOS tokens.
                config.class = Some("LlamaTokenizerFast".to_owned());
                let tokenizer = byte_level(tokens, merges, pre).map_err(|error| bad(error.to_string()))?;
                Self::from_byte_level(tokenizer, tokens.len() as u32, &config)
            }
            other => Err(Error::Unsupported {
                what: format!("tokenizer.ggml.model of {}", header.file),
                found: format!("{other:?}"),
                supported: "llama (SentencePiece), gpt2 (byte-level BPE)".to_owned(),
            }),
        }
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

/// A byte-level BPE tokenizer, without added tokens.
fn byte_level(tokens: &Texts, lines: &Texts, pre: &PreTokenizer) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut vocab = Vocab::with_capacity(tokens.len());
    vocab.extend(tokens.iter().enumerate().map(|(id, token)| (token.to_owned(), id as u32)));
    let pairs = lines.iter().map(|merge| {
        let (left, right) = merge.split_once(' ').ok_or_else(|| format!("the merge {merge:?} is not a pair"))?;
        Ok((left.to_owned(), right.to_owned()))
    });
    let pairs = pairs.collect::<tokenizers::Result<Vec<_>>>()?;
    let joined = pairs.iter().map(|(left, right)| left.len() + right.len());
    merges::check(joined.max().unwrap_or(0), tokens.iter().map(str::len).max().unwrap_or(0))?;
    let model = BPE::builder().vocab_and_merges(vocab, pairs).ignore_merges(pre.ignore_merges).build()?;
    let split = |pattern: &&str| {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map(Into::into)
    };
    let mut steps = pre.patterns.iter().map(split).collect::<tokenizers::Result<Vec<PreTokenizerWrapper>>>()?;
    steps.push(ByteLevel::new(false, true, false).into());
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    Ok(tokenizer)
}
