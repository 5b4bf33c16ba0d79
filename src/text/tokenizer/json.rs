//! A tokenizer from `tokenizer.json`, through the `tokenizers` crate.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::normalizer::Range;
use tokenizers::{Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer, Token};

use super::added_tokens::AddedTokens;
use super::{AffixTokens, Encoder, JSON, Tokenizer};
use crate::text::decode::{Decoder, DecoderKind, TokenTable, TokenText};
use crate::text::merges;
use crate::text::prompt::DataSpan;
use crate::text::tokenizer_config::{AddedToken, TokenizerConfig};
use crate::{Error, Result, json};

/// The keys of `tokenizer.json` that are used.
const USED: [&str; 7] =
    ["version", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"];

impl Tokenizer {
    pub(in crate::text) fn from_json(bytes: &[u8], config: &TokenizerConfig, gemma: bool) -> Result<Self> {
        let bad = |reason: String| Error::Config { file: JSON.to_owned(), reason };
        // The library reads the text that was checked.
        let read = |bytes: &[u8]| {
            let file: JsonFile = serde_json::from_slice(bytes).map_err(|error| bad(format!("not JSON: {error}")))?;
            // A model whose vocabulary is not an object is not BPE.
            if file.model.vocab.0 > 0 {
                merges::check(file.model.merges.0, file.model.vocab.0).map_err(bad)?;
            }
            let tokenizer = tokenizers::Tokenizer::from_bytes(bytes)
                .map_err(|error| bad(format!("the tokenizer cannot be read: {error}")))?;
            Ok((file.decoder, tokenizer))
        };
        let (decoder, tokenizer) = json::read_with(bytes, read).or_else(|error| {
            // The library refuses unknown keys, and values of keys that are not used here.
            let Ok(Value::Object(mut file)) = json::from_slice(bytes) else { return Err(error) };
            let keys = file.len();
            file.retain(|key, _| USED.contains(&key.as_str()));
            if file.len() == keys { Err(error) } else { read(Value::Object(file).to_string().as_bytes()) }
        })?;
        let style = json_decoder(&decoder)?;
        Self::from_library(tokenizer, style, config, gemma, |tokenizer| {
            tokenizer.get_vocab(true).into_values().collect()
        })
    }

    /// A byte-level BPE tokenizer of the library with `tokens` tokens.
    pub(in crate::text) fn from_byte_level(
        tokenizer: tokenizers::Tokenizer,
        tokens: u32,
        config: &TokenizerConfig,
    ) -> Result<Self> {
        // The library copies its vocabulary when asked for it.
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

        // As in transformers, tokens that only the configuration has are added.
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

        let added: BTreeMap<u32, AddedToken> =
            tokenizer.get_added_tokens_decoder().into_iter().map(|(id, token)| (id, token.into())).collect();
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
        let normalized = added.iter().filter(|(_, token)| token.normalized).map(|(id, token)| {
            let content =
                normalize(&tokenizer, token.content.as_str().into()).map_err(|error| bad(error.to_string()))?;
            Ok((*id, AddedToken { content: content.get().to_owned(), ..token.clone() }))
        });
        let normalized = AddedTokens::new(normalized.collect::<Result<Vec<_>>>()?.into_iter());
        Ok(Self {
            vocab_size: ids.len(),
            decoder: Decoder {
                units,
                special: added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect(),
                kind: style.into(),
                clean_up: config.clean_up_tokenization_spaces,
            },
            encoder: Encoder::Json(Box::new(Json {
                added: AddedTokens::new(added.into_iter()),
                normalized,
                tokenizer,
                affixes,
            })),
            bos,
            eos,
            special_tokens: config.roles.clone(),
            additional_special_tokens: config.additional.clone(),
        })
    }
}

/// A tokenizer of the library, and its added tokens for finding them in a part of a text.
#[derive(Debug)]
pub(super) struct Json {
    pub(super) tokenizer: tokenizers::Tokenizer,
    /// For Llama and Gemma, whose fast classes override the file: the tokens before and after a text.
    affixes: Option<AffixTokens>,
    pub(super) added: AddedTokens,
    /// Those that are found in the normalised text, normalised.
    pub(super) normalized: AddedTokens,
}

impl Json {
    /// The ids of a text. Control tokens in `data` are text.
    pub(super) fn encode(&self, text: &str, data: &[DataSpan]) -> tokenizers::Result<Vec<u32>> {
        let add_special_tokens = self.affixes.is_none();
        let encoding = if self.added.in_data(text, data).is_empty() {
            self.tokenizer.encode_fast(text, add_special_tokens)?
        } else {
            self.tokenizer.post_process(self.encode_with_data(text, data)?, None, add_special_tokens)?
        };
        let ids = encoding.get_ids();
        Ok(match &self.affixes {
            Some(affixes) => affixes.before.iter().chain(ids).chain(&affixes.after).copied().collect(),
            None => ids.to_vec(),
        })
    }

    /// The library's steps, except that it cannot leave out tokens in a part of the text.
    fn encode_with_data(&self, text: &str, data: &[DataSpan]) -> tokenizers::Result<tokenizers::Encoding> {
        let mut parts = PreTokenizedString::from(text);
        parts.split(|_, part| split(&part, self.added.find(part.get(), data, |token| !token.normalized)))?;
        parts.split(|_, part| {
            let part = normalize(&self.tokenizer, part)?;
            let start = part.offsets_original().0;
            let data: Vec<DataSpan> = data
                .iter()
                .filter_map(|DataSpan { range, author }| {
                    let range = range.start.saturating_sub(start)..range.end.saturating_sub(start);
                    let range =
                        part.convert_offsets(Range::Original(range.start..range.end.min(part.len_original())))?;
                    (!range.is_empty()).then_some(DataSpan { range, author: *author })
                })
                .collect();
            split(&part, self.normalized.find(part.get(), &data, |_| true))
        })?;
        if let Some(steps) = self.tokenizer.get_pre_tokenizer() {
            steps.pre_tokenize(&mut parts)?;
        }
        parts.tokenize(|part| self.tokenizer.get_model().tokenize(part.get()))?;
        parts.into_encoding(None, 0, OffsetType::None)
    }
}

fn normalize(tokenizer: &tokenizers::Tokenizer, mut text: NormalizedString) -> tokenizers::Result<NormalizedString> {
    if let Some(normalizer) = tokenizer.get_normalizer() {
        normalizer.normalize(&mut text)?;
    }
    Ok(text)
}

type Part = (NormalizedString, Option<Vec<Token>>);

fn split(text: &NormalizedString, parts: Vec<(std::ops::Range<usize>, Option<u32>)>) -> tokenizers::Result<Vec<Part>> {
    let part = |(range, id): (std::ops::Range<usize>, Option<u32>)| {
        let length = range.len();
        let part = text.slice(Range::Normalized(range)).ok_or("a token is outside the text")?;
        Ok((part, id.map(|id| vec![Token::new(id, String::new(), (0, length))])))
    };
    parts.into_iter().map(part).collect()
}

impl From<tokenizers::AddedToken> for AddedToken {
    fn from(token: tokenizers::AddedToken) -> Self {
        let tokenizers::AddedToken { content, single_word, lstrip, rstrip, normalized, special } = token;
        Self { content, lstrip, rstrip, single_word, normalized, special }
    }
}

/// The decoders of `tokenizer.json` that Mini-Gemini's language models use.
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

/// The parts of `tokenizer.json` that are read here in addition to the library.
#[derive(Deserialize)]
struct JsonFile {
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    model: merges::Model,
}

/// Reads the `decoder` of a `tokenizer.json`.
fn json_decoder(decoder: &Value) -> Result<JsonDecoder> {
    let kind = |value: &Value| value.get("type").and_then(|kind| kind.as_str()).unwrap_or("none").to_owned();
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
            other => return Err(unsupported(format!("Sequence with {other} in this position"))),
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
