//! A checkpoint's tokenizer: from text to ids and back, exactly as the reference does it.
//!
//! Checkpoints come with `tokenizer.json`, with `tokenizer.model`, or with both, and the two do not always agree: the
//! reference runs Llama-type models through transformers' slow (SentencePiece) tokenizer and the others through the fast
//! one. [`Tokenizer::load`] follows the same rules:
//!
//! | checkpoint | files there | used |
//! | --- | --- | --- |
//! | Gemma (2B) | both | `tokenizer.json` |
//! | Mixtral (8x7B) | both | `tokenizer.json` |
//! | Mixtral | `tokenizer.model` | it, as the fast tokenizer converted from it: every segment gets a leading space |
//! | Llama, Yi (7B, 13B, 34B) | both | `tokenizer.model`, `legacy` as `tokenizer_config.json` says |
//! | any | one of them | that one |

use serde::Deserialize;
use std::collections::{HashMap, HashSet};

use super::decode::{Decoder, DecoderKind, SentencePieceRules, TokenTable, TokenText};
use super::merges;
use super::prompt::Prompt;
use super::sentencepiece::{Model, PieceKind, SPACE};
use super::tokenizer_config::{AddedToken, TokenizerConfig, read};
use crate::io::Folder;
use crate::{Error, Result};

const JSON: &str = "tokenizer.json";
const MODEL: &str = "tokenizer.model";

/// One position of a prompt before the images are spliced in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptToken {
    /// A token of the vocabulary.
    Text(u32),
    /// The place of one image's embeddings.
    Image,
}

/// A tokenizer read from a checkpoint's folder.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: Encoder,
    decoder: Decoder,
    bos: Option<u32>,
    eos: Option<u32>,
    vocab_size: usize,
}

#[derive(Debug)]
enum Encoder {
    SentencePiece(Box<SentencePiece>),
    Json {
        tokenizer: Box<tokenizers::Tokenizer>,
        /// For Llama and Gemma, whose fast classes overrule the file: what to put before and after.
        affixes: Option<AffixTokens>,
    },
}

/// What stands affixes every encoded text.
#[derive(Debug, Default)]
struct AffixTokens {
    before: Option<u32>,
    after: Option<u32>,
}

/// The three ways transformers has used a SentencePiece model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Slow, `legacy=true` and Gemma: each segment between special tokens goes through SentencePiece as it is.
    PerSegment,
    /// Slow, `legacy=false`: one leading space for the whole text, none after a special token.
    Once {
        /// `add_prefix_space`.
        prefix: bool,
    },
    /// Fast, converted from the model: a leading space for every segment, and spaces are only replaced, never dropped.
    Converted,
}

#[derive(Debug)]
struct SentencePiece {
    model: Model,
    mode: Mode,
    affixes: AffixTokens,
    added: AddedTokens,
    /// The unknown token's text and the number of ids it encodes to by itself (only for [`Mode::Once`]).
    guard: (String, usize),
    /// Tokens with a special role: a text that begins with one gets no leading space.
    special: HashSet<u32>,
}

impl Tokenizer {
    /// Reads the tokenizer of the checkpoint in `folder`; which files count is told above.
    pub async fn load(folder: &dyn Folder) -> Result<Self> {
        let config = TokenizerConfig::load(folder).await?;
        let class = config.class.as_deref().unwrap_or_default();
        let mixtral = config.model_type.contains("mixtral") || config.model_type.contains("mistral");
        let gemma = class.contains("Gemma") || config.model_type.contains("gemma");
        let slow_llama =
            !mixtral && !gemma && matches!(class, "LlamaTokenizer" | "CodeLlamaTokenizer" | "YiTokenizer" | "");

        let order = if slow_llama { [MODEL, JSON] } else { [JSON, MODEL] };
        for name in order {
            let Some(bytes) = read(folder, name).await? else { continue };
            let in_folder = |error| name_folder(error, folder);
            return if name == JSON {
                Self::from_json(&bytes, &config, gemma).map_err(in_folder)
            } else {
                let model = Model::parse(&bytes).map_err(in_folder)?;
                Self::from_model(
                    model,
                    &config,
                    if mixtral {
                        Family::Mixtral
                    } else if gemma {
                        Family::Gemma
                    } else {
                        Family::Llama
                    },
                )
            };
        }
        Err(Error::MissingFile {
            file: format!("{}/{MODEL}", folder.name()),
            hint: format!(
                "neither {MODEL} nor {JSON} is in the folder; text cannot be turned into tokens without one of them. \
                 Copy it from the model's page (a quantised or partial copy often leaves it out)"
            ),
        })
    }

    /// A SentencePiece tokenizer whose segments between special tokens are encoded each by itself, as llama.cpp does.
    pub(super) fn from_pieces(model: Model, config: &TokenizerConfig) -> Result<Self> {
        Self::from_model(model, config, Family::Gguf)
    }

    fn from_model(model: Model, config: &TokenizerConfig, family: Family) -> Result<Self> {
        let piece = |id: Option<u32>| id.and_then(|id| model.pieces().get(id as usize)).map(|piece| piece.text.clone());
        let unknown = piece(Some(model.unknown()));
        let role = |role: &str, default: Option<String>| config.role(role).map(str::to_owned).or(default);
        let (bos, eos, unknown) = (
            role("bos_token", piece(model.bos())),
            role("eos_token", piece(model.eos())),
            role("unk_token", unknown).unwrap_or_default(),
        );

        // The added tokens with their ids: the listed ones, then special ones that have no place yet, at the end.
        let mut added = config.added.clone();
        let mut special_texts: Vec<&str> = Vec::new();
        special_texts.extend(bos.as_deref());
        special_texts.extend(eos.as_deref());
        special_texts.push(&unknown);
        special_texts.extend(config.special_texts());
        if family == Family::Mixtral {
            // The conversion to a fast tokenizer turns control and user-defined pieces into added tokens.
            for (id, piece) in model.pieces().iter().enumerate() {
                if matches!(piece.kind, PieceKind::Control | PieceKind::UserDefined) {
                    let token =
                        AddedToken { special: piece.kind == PieceKind::Control, ..AddedToken::special(&*piece.text) };
                    added.entry(id as u32).or_insert(token);
                }
            }
        }
        let mut next = model.pieces().len() as u32;
        next = next.max(added.keys().next_back().map_or(0, |last| last.saturating_add(1)));
        let mut special = HashSet::new();
        for text in special_texts {
            if text.is_empty() {
                continue;
            }
            let listed = added.iter().find(|(_, token)| token.content == text).map(|(&id, _)| id);
            let id = listed.or_else(|| model.id(text)).unwrap_or_else(|| {
                next = next.saturating_add(1);
                next - 1
            });
            added.entry(id).or_insert_with(|| AddedToken::special(text));
            special.insert(id);
        }
        if matches!(family, Family::Mixtral | Family::Gguf) {
            special.extend(added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id));
        }

        let legacy = config.legacy.unwrap_or(true);
        let prefix = config.add_prefix_space.unwrap_or(true);
        let mode = match family {
            Family::Mixtral => Mode::Converted,
            Family::Llama if !legacy => Mode::Once { prefix },
            Family::Llama | Family::Gemma | Family::Gguf => Mode::PerSegment,
        };

        let mut units = TokenTable::with_capacity(model.pieces().len());
        for (id, piece) in model.pieces().iter().enumerate() {
            let text = &*piece.text;
            let unit = match &piece.kind {
                PieceKind::Byte(byte) => TokenText::Bytes(std::slice::from_ref(byte)),
                _ if mode == Mode::Converted => TokenText::Text { text: &with_spaces(text), unprefixed_is_piece: true },
                PieceKind::Control => TokenText::Control(text),
                PieceKind::Unknown => TokenText::Unknown(text),
                PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused => {
                    let unprefixed_is_piece = text.strip_prefix(SPACE).is_some_and(|rest| model.id(rest).is_some());
                    TokenText::Text { text, unprefixed_is_piece }
                }
            };
            units.insert(id as u32, unit);
        }
        for (&id, token) in &added {
            // GGUF's user-defined tokens (Gemma's runs of white space) are text like any other when they are printed.
            let text = &*token.content;
            let plain = family == Family::Gguf && !token.special;
            units.insert(
                id,
                if plain { TokenText::Text { text, unprefixed_is_piece: true } } else { TokenText::Added(text) },
            );
        }
        let style = match mode {
            Mode::Converted => DecoderKind::ByteFallback { strip: Some((' ', 1)) },
            mode => DecoderKind::SentencePiece(SentencePieceRules {
                drop_first_space: matches!(family, Family::Llama | Family::Gguf) && prefix,
                drop_dummy_prefix: mode == Mode::PerSegment && model.normalizer.add_dummy_prefix,
                remove_extra_whitespaces: model.normalizer.remove_extra_whitespaces,
                space_around_added: family == Family::Llama,
                legacy: matches!(family, Family::Llama | Family::Gguf) && legacy,
                unknown_surface: model.unknown_surface().to_owned(),
            }),
        };

        let added = AddedTokens::new(added.into_iter());
        let id_of = |text: &String| added.id(text).or_else(|| model.id(text));
        let (bos, eos) = (bos.as_ref().and_then(id_of), eos.as_ref().and_then(id_of));
        let affixes = AffixTokens {
            before: bos.filter(|_| config.add_bos_token.unwrap_or(true)),
            after: eos.filter(|_| config.add_eos_token.unwrap_or(false)),
        };
        let guard = match mode {
            Mode::Once { .. } => (unknown.clone(), model.encode_without_prefix(&unknown).len()),
            _ => Default::default(),
        };
        let encoder = SentencePiece { added, model, mode, affixes, guard, special: special.clone() };
        Ok(Self {
            encoder: Encoder::SentencePiece(Box::new(encoder)),
            decoder: Decoder { units, special, kind: style, clean_up: config.clean_up_tokenization_spaces },
            bos,
            eos,
            vocab_size: next as usize,
        })
    }

    pub(super) fn from_json(bytes: &[u8], config: &TokenizerConfig, gemma: bool) -> Result<Self> {
        let bad = |reason: String| Error::Config { file: JSON.to_owned(), reason };
        let file: JsonFile = serde_json::from_slice(bytes).map_err(|error| bad(format!("not JSON: {error}")))?;
        let style = json_decoder(&file.decoder)?;
        // A model without a vocabulary of keys is none of byte pairs.
        if file.model.vocab.0 > 0 {
            merges::check(file.model.merges.0, file.model.vocab.0).map_err(bad)?;
        }
        let tokenizer = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| bad(format!("not a tokenizer that is understood: {error}")))?;
        Self::from_library(tokenizer, style, config, gemma, |tokenizer| {
            tokenizer.get_vocab(true).into_values().collect()
        })
    }

    /// A byte-level BPE tokenizer as the library has it, of so many tokens, with `config` beside it.
    pub(super) fn from_byte_level(
        tokenizer: tokenizers::Tokenizer,
        tokens: u32,
        config: &TokenizerConfig,
    ) -> Result<Self> {
        // Asking the library for its vocabulary would copy it.
        Self::from_library(tokenizer, JsonDecoder::ByteLevel, config, false, |_| (0..tokens).collect())
    }

    fn from_library(
        mut tokenizer: tokenizers::Tokenizer,
        style: JsonDecoder,
        config: &TokenizerConfig,
        gemma: bool,
        ids: impl FnOnce(&tokenizers::Tokenizer) -> Vec<u32>,
    ) -> Result<Self> {
        let bad = |reason: String| Error::Config { file: JSON.to_owned(), reason };
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| bad(error.to_string()))?;

        // As transformers: tokens that only the configuration knows are added to the file's.
        let mut seen: HashSet<String> =
            tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        let listed = config.added.values().cloned();
        let roles = config.special_texts().map(AddedToken::special);
        let new = listed.chain(roles).filter(|token| !token.content.is_empty() && seen.insert(token.content.clone()));
        let new: Vec<_> = new
            .map(|token| {
                tokenizers::AddedToken::from(token.content, token.special)
                    .lstrip(token.lstrip)
                    .rstrip(token.rstrip)
                    .single_word(token.single_word)
                    .normalized(token.normalized)
            })
            .collect();
        tokenizer.add_tokens(new).map_err(|error| bad(error.to_string()))?;

        let added = tokenizer.get_added_tokens_decoder();
        let ids = ids(&tokenizer);
        let byte_level = matches!(style, JsonDecoder::ByteLevel);
        let byte_of = byte_level.then(byte_level_alphabet);
        let mut units = TokenTable::with_capacity(ids.len());
        for id in &ids {
            if let Some(text) = tokenizer.id_to_token(*id) {
                style.add_unit(&mut units, *id, &text, byte_of.as_ref());
            }
        }
        let id_of = |role: &str| config.role(role).and_then(|text| tokenizer.token_to_id(text));
        let (bos, eos) = (id_of("bos_token"), id_of("eos_token"));
        let class = config.class.as_deref().unwrap_or_default();
        let overruled = gemma || class.contains("Llama");
        let affixes = (overruled && config.class.is_some()).then(|| AffixTokens {
            before: bos.filter(|_| config.add_bos_token.unwrap_or(true)),
            after: eos.filter(|_| config.add_eos_token.unwrap_or(false)),
        });
        Ok(Self {
            vocab_size: ids.len(),
            decoder: Decoder {
                units,
                special: added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect(),
                kind: style.into(),
                clean_up: config.clean_up_tokenization_spaces,
            },
            encoder: Encoder::Json { tokenizer: Box::new(tokenizer), affixes },
            bos,
            eos,
        })
    }

    /// The ids of a text, with the beginning token where this tokenizer puts one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.encoder {
            Encoder::SentencePiece(encoder) => Ok(encoder.encode(text)),
            Encoder::Json { tokenizer, affixes } => {
                let encoding = tokenizer.encode_fast(text, affixes.is_none()).map_err(|error| Error::Config {
                    file: JSON.to_owned(),
                    reason: format!("the tokenizer cannot encode this text: {error}"),
                })?;
                let ids = encoding.get_ids();
                Ok(match affixes {
                    Some(affixes) => affixes.before.iter().chain(ids).chain(&affixes.after).copied().collect(),
                    None => ids.to_vec(),
                })
            }
        }
    }

    /// The ids of a prompt with images: every piece between images is encoded by itself, each with its beginning token,
    /// and only the first of those is kept. So a Llama-type tokenizer puts its leading space after every image too.
    pub fn encode_prompt(&self, prompt: &Prompt) -> Result<Vec<PromptToken>> {
        let mut tokens = Vec::new();
        let mut drop_first = false;
        for (index, segment) in prompt.segments().iter().enumerate() {
            let mut ids = self.encode(segment)?;
            if index == 0 {
                // Some templates write the beginning token themselves; one is enough.
                if self.bos.is_some() && ids.first().copied() == self.bos && ids.get(1).copied() == self.bos {
                    ids.remove(0);
                }
                drop_first = self.bos.is_some() && ids.first().copied() == self.bos;
            } else {
                tokens.push(PromptToken::Image);
            }
            let skipped = usize::from(drop_first && index > 0);
            tokens.extend(ids.into_iter().skip(skipped).map(PromptToken::Text));
        }
        Ok(tokens)
    }

    /// The text of `ids`, as transformers decodes it. Ids outside the vocabulary print nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.decoder.decode(ids, skip_special)
    }

    /// The answer that generated ids stand for: without special tokens, trimmed, as the reference shows it.
    pub fn answer(&self, ids: &[u32]) -> String {
        self.decode(ids, true).trim().to_owned()
    }

    /// The id of a token by its text (in the vocabulary's own spelling).
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.encoder {
            Encoder::SentencePiece(encoder) => encoder.added.id(token).or_else(|| encoder.model.id(token)),
            Encoder::Json { tokenizer, .. } => tokenizer.token_to_id(token),
        }
    }

    /// The beginning token, whether or not [`Tokenizer::encode`] adds it.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends an answer.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// How many tokens there are, added ones included (`len(tokenizer)` in transformers). A `tokenizer.json` may leave out an
    /// id, so the largest id can be this number and more.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Whether a token is left out of answers.
    pub fn is_special(&self, id: u32) -> bool {
        self.decoder.special.contains(&id)
    }

    pub(super) fn decoder(&self) -> &Decoder {
        &self.decoder
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Gemma,
    Mixtral,
    /// Of GGUF files, as llama.cpp treats them all.
    Gguf,
}

impl SentencePiece {
    fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        ids.extend(self.affixes.before);
        match self.mode {
            Mode::PerSegment => {
                self.added.split(text, |segment| match segment {
                    Segment::Token(id) => ids.push(id),
                    Segment::Text(text) => ids.extend(self.model.encode(text)),
                });
            }
            Mode::Converted => {
                self.added.split(text, |segment| match segment {
                    Segment::Token(id) => ids.push(id),
                    Segment::Text(text) => {
                        let mut normalized = String::with_capacity(text.len() + 8);
                        normalized.push(SPACE);
                        normalized.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
                        ids.extend(self.model.encode_normalized(&normalized));
                    }
                });
            }
            Mode::Once { prefix } => self.encode_once(text, prefix, &mut ids),
        }
        ids.extend(self.affixes.after);
        ids
    }

    fn encode_once(&self, text: &str, prefix: bool, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let mut prepared = String::with_capacity(text.len() + 3);
        if prefix {
            prepared.push(SPACE);
        }
        prepared.extend(text.chars().map(|c| if c == SPACE { ' ' } else { c }));
        let lone_space = self.model.id("\u{2581}");
        let start = ids.len();
        self.added.split(&prepared, |segment| match segment {
            Segment::Token(id) => {
                // The space was put before the text; if the text begins with a special token it goes again.
                if self.special.contains(&id) && ids.len() == start + 1 && ids.last().copied() == lone_space {
                    ids.truncate(start);
                }
                ids.push(id);
            }
            Segment::Text(text) if text.starts_with([SPACE, ' ']) => {
                // SentencePiece would drop a leading space; behind the unknown token's text it stays.
                let (unknown, length) = &self.guard;
                let encoded = self.model.encode_without_prefix(&format!("{unknown}{text}"));
                ids.extend(encoded.get(*length..).unwrap_or(&encoded));
            }
            Segment::Text(text) => ids.extend(self.model.encode_without_prefix(text)),
        });
    }
}

/// Finds added tokens in text.
#[derive(Debug)]
struct AddedTokens {
    tokens: Vec<(u32, AddedToken)>,
    /// By first byte, longest first.
    by_first: HashMap<u8, Vec<usize>>,
}

enum Segment<'a> {
    Text(&'a str),
    Token(u32),
}

impl AddedTokens {
    fn new(tokens: impl Iterator<Item = (u32, AddedToken)>) -> Self {
        let tokens: Vec<_> = tokens.filter(|(_, token)| !token.content.is_empty()).collect();
        let mut by_first: HashMap<u8, Vec<usize>> = HashMap::new();
        for (index, (_, token)) in tokens.iter().enumerate() {
            if let Some(&first) = token.content.as_bytes().first() {
                by_first.entry(first).or_default().push(index);
            }
        }
        for list in by_first.values_mut() {
            list.sort_by_key(|&index| std::cmp::Reverse(tokens.get(index).map_or(0, |(_, token)| token.content.len())));
        }
        Self { tokens, by_first }
    }

    /// The id of the token with this text.
    fn id(&self, text: &str) -> Option<u32> {
        self.tokens.iter().rev().find(|(_, token)| token.content == text).map(|(id, _)| *id)
    }

    /// The longest token that `text` begins with.
    fn at_start(&self, text: &str) -> Option<&(u32, AddedToken)> {
        let list = self.by_first.get(text.as_bytes().first()?)?;
        list.iter().filter_map(|&index| self.tokens.get(index)).find(|(_, token)| text.starts_with(&token.content))
    }

    /// Calls `each` for the tokens and the (never empty) texts between them, in order.
    fn split<'a>(&self, text: &'a str, mut each: impl FnMut(Segment<'a>)) {
        let (mut start, mut at) = (0, 0);
        while let Some(first) = text[at..].chars().next() {
            let Some((id, token)) = self.at_start(&text[at..]) else {
                at += first.len_utf8();
                continue;
            };
            let before = &text[start..at];
            let before = if token.lstrip { before.trim_end() } else { before };
            if !before.is_empty() {
                each(Segment::Text(before));
            }
            each(Segment::Token(*id));
            at += token.content.len();
            if token.rstrip {
                at = text.len() - text[at..].trim_start().len();
            }
            start = at;
        }
        if start < text.len() {
            each(Segment::Text(&text[start..]));
        }
    }
}

/// The decoders of `tokenizer.json` that language models of this family use.
enum JsonDecoder {
    ByteLevel,
    Fallback { replace: Vec<(String, String)>, bytes: bool, strip: Option<(char, usize)> },
}

impl From<JsonDecoder> for DecoderKind {
    fn from(style: JsonDecoder) -> Self {
        match style {
            JsonDecoder::ByteLevel => DecoderKind::ByteLevel,
            JsonDecoder::Fallback { strip, .. } => DecoderKind::ByteFallback { strip },
        }
    }
}

impl JsonDecoder {
    fn add_unit(&self, units: &mut TokenTable, id: u32, text: &str, byte_of: Option<&HashMap<char, u8>>) {
        match self {
            Self::ByteLevel => {
                let bytes =
                    byte_of.and_then(|map| text.chars().map(|c| map.get(&c).copied()).collect::<Option<Vec<u8>>>());
                units.insert(id, TokenText::Bytes(bytes.as_deref().unwrap_or(text.as_bytes())));
            }
            Self::Fallback { replace, bytes, .. } => {
                let text = replace.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
                match byte_token(&text) {
                    Some(byte) if *bytes => units.insert(id, TokenText::Bytes(&[byte])),
                    _ => units.insert(id, TokenText::Text { text: &text, unprefixed_is_piece: true }),
                }
            }
        }
    }
}

/// The part of a tokenizer.json that is read here, beside what the library reads.
#[derive(Deserialize)]
struct JsonFile {
    #[serde(default)]
    decoder: serde_json::Value,
    #[serde(default)]
    model: merges::Model,
}

/// Reads the `decoder` of a `tokenizer.json`.
fn json_decoder(decoder: &serde_json::Value) -> Result<JsonDecoder> {
    let kind =
        |value: &serde_json::Value| value.get("type").and_then(|kind| kind.as_str()).unwrap_or("none").to_owned();
    let unsupported = |found: String| Error::Unsupported {
        what: format!("{JSON} decoder"),
        found,
        supported: "ByteLevel; Sequence of Replace, ByteFallback, Fuse, Strip (from the left)".to_owned(),
    };
    let steps = match kind(decoder).as_str() {
        "ByteLevel" => return Ok(JsonDecoder::ByteLevel),
        "Sequence" => decoder.get("decoders").and_then(|list| list.as_array()).cloned().unwrap_or_default(),
        other => return Err(unsupported(other.to_owned())),
    };
    let (mut replace, mut bytes, mut fused, mut strip) = (Vec::new(), false, false, None);
    for step in &steps {
        match kind(step).as_str() {
            "ByteLevel" if steps.len() == 1 => return Ok(JsonDecoder::ByteLevel),
            "Replace" if !bytes && !fused => {
                let from = step.pointer("/pattern/String").and_then(|text| text.as_str());
                let to = step.get("content").and_then(|text| text.as_str());
                let (Some(from), Some(to)) = (from, to) else {
                    return Err(unsupported("Replace of a regular expression".to_owned()));
                };
                replace.push((from.to_owned(), to.to_owned()));
            }
            "ByteFallback" if !fused => bytes = true,
            "Fuse" => fused = true,
            "Strip" if fused && strip.is_none() && step.get("stop").and_then(|n| n.as_u64()) == Some(0) => {
                let content = step.get("content").and_then(|text| text.as_str()).and_then(|text| text.chars().next());
                let start = step.get("start").and_then(|n| n.as_u64()).and_then(|n| usize::try_from(n).ok());
                strip = content.zip(start);
            }
            other => return Err(unsupported(format!("Sequence with {other} at this place"))),
        }
    }
    Ok(JsonDecoder::Fallback { replace, bytes, strip })
}

/// `<0x41>` as the `tokenizers` crate reads it (either case of digits).
fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2's alphabet of printable characters for bytes.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let mut free = 0x100u32;
    let mut map = HashMap::with_capacity(256);
    for byte in 0..=u8::MAX {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable {
            u32::from(byte)
        } else {
            free += 1;
            free - 1
        };
        if let Some(character) = char::from_u32(code) {
            map.insert(character, byte);
        }
    }
    map
}

fn with_spaces(text: &str) -> String {
    text.chars().map(|c| if c == SPACE { ' ' } else { c }).collect()
}

/// Puts the folder's name before the file's.
fn name_folder(error: Error, folder: &dyn Folder) -> Error {
    let name = |file: String| format!("{}/{file}", folder.name());
    match error {
        Error::Malformed { file, offset, reason } => Error::Malformed { file: name(file), offset, reason },
        Error::Config { file, reason } => Error::Config { file: name(file), reason },
        other => other,
    }
}
