//! The tokenizer of CLIP's text encoders in diffusion models: lower case, byte-level BPE with an end-of-word suffix,
//! and windows of fixed length.
//!
//! Its ids are those of transformers' `CLIPTokenizerFast`. The slow `CLIPTokenizer` differs: without `ftfy` it puts
//! spaces around Chinese characters and drops control characters; with `ftfy` it repairs broken encodings first.

use serde_json::{Value, json};

use super::prompt_weights::{Fragment, WeightedPrompt};
use super::tokenizer::Tokenizer;
use super::tokenizer_config::{TokenizerConfig, read};
use crate::io::Folder;
use crate::{Error, Result};

/// Splits words, numbers and the rest; text that does not match is dropped.
const PIECES: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Suffix of a word's last token.
const END_OF_WORD: &str = "</w>";

/// A tokenizer with windows of fixed length.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
}

/// The input of a text encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// BOS, text, EOS and padding: one id per position of the encoder.
    pub ids: Vec<u32>,
    /// The end of the text that was truncated.
    pub dropped: Option<String>,
}

impl ClipTokenizer {
    /// Reads a folder with `vocab.json` and `merges.txt`, or with `tokenizer.json`. `pad` replaces the folder's padding
    /// token.
    ///
    /// # Errors
    /// [`Error::MissingFile`] if the folder has neither; [`Error::Malformed`], [`Error::Config`] if they cannot be
    /// read.
    pub async fn load(folder: &dyn Folder, pad: Option<&str>) -> Result<Self> {
        let mut config = TokenizerConfig::load(folder).await?;
        if let Some(pad) = pad {
            config.roles.insert("pad_token", pad.to_owned());
        }
        let name = |file: &str| format!("{}/{file}", folder.name());
        let json = match (read(folder, "vocab.json").await?, read(folder, "merges.txt").await?) {
            (Some(vocabulary), Some(merges)) => {
                from_lists(&name("vocab.json"), &vocabulary, &name("merges.txt"), &merges)?
            }
            (vocabulary, merges) => match read(folder, "tokenizer.json").await? {
                Some(bytes) => without_post_processor(&name("tokenizer.json"), &bytes)?,
                None => {
                    let file = if vocabulary.is_some() && merges.is_none() { "merges.txt" } else { "vocab.json" };
                    return Err(Error::MissingFile {
                        file: name(file),
                        hint: "a CLIP tokenizer is vocab.json and merges.txt, or tokenizer.json".to_owned(),
                    });
                }
            },
        };
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), &config, false)?;
        let id = |role: &str, usual: &str| {
            let text = config.role(role).unwrap_or(usual);
            tokenizer.token_id(text).ok_or_else(|| Error::Config {
                file: folder.name().to_owned(),
                reason: format!("the {role} {text:?} is not in the vocabulary: is this a CLIP tokenizer?"),
            })
        };
        let (bos, eos) = (id("bos_token", "<|startoftext|>")?, id("eos_token", "<|endoftext|>")?);
        let pad = if config.role("pad_token").is_some() { id("pad_token", "")? } else { eos };
        Ok(Self { tokenizer, bos, eos, pad })
    }

    /// The ids of a text for an encoder with `length` positions.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn window(&self, text: &str, length: usize) -> Result<Window> {
        let room = length.saturating_sub(2);
        let text = self.tokenizer.encode(text)?;
        let (prompt, rest) = text.split_at(room.min(text.len()));
        let mut ids = Vec::with_capacity(length);
        ids.push(self.bos);
        ids.extend(prompt);
        ids.push(self.eos);
        ids.resize(length, self.pad);
        let dropped = self.tokenizer.decode(rest, false).replace(END_OF_WORD, " ").trim().to_owned();
        Ok(Window { ids, dropped: (!rest.is_empty()).then_some(dropped) })
    }

    /// The ids and weights of a prompt in windows for an encoder with `length` positions. A window has at most
    /// `length` - 2 tokens of the prompt; a section starts a new one. BOS, EOS and padding have weight 1.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn weighted_windows(&self, prompt: &WeightedPrompt, length: usize) -> Result<Vec<(Vec<u32>, Vec<f32>)>> {
        let room = length.saturating_sub(2).max(1);
        let mut windows = Vec::new();
        let sections = prompt.sections.len();
        for (index, section) in prompt.sections.iter().enumerate() {
            let mut tokens = Vec::new();
            for Fragment { text, weight } in section {
                tokens.extend(self.tokenizer.encode(text)?.into_iter().map(|id| (id, *weight as f32)));
            }
            // Nothing follows a BREAK at the end.
            if tokens.is_empty() && index + 1 == sections && !windows.is_empty() {
                continue;
            }
            for start in (0..tokens.len().max(1)).step_by(room) {
                let part = tokens[start..].iter().take(room);
                let (mut ids, mut weights) = (vec![self.bos], vec![1.0]);
                ids.extend(part.clone().map(|(id, _)| *id));
                weights.extend(part.map(|(_, weight)| *weight));
                ids.push(self.eos);
                ids.resize(length, self.pad);
                weights.resize(length, 1.0);
                windows.push((ids, weights));
            }
        }
        Ok(windows)
    }

    /// The EOS id: the text encoder pools the state at its position.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The largest id plus one: rows of the encoder's embedding.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }
}

/// The `tokenizer.json` that transformers makes of `vocab.json` and `merges.txt`.
fn from_lists(vocabulary_file: &str, vocabulary: &[u8], merges_file: &str, merges: &[u8]) -> Result<Value> {
    let malformed = |file: &str, reason: String| Error::Malformed { file: file.to_owned(), offset: 0, reason };
    let vocabulary: serde_json::Map<String, Value> = crate::json::from_slice(vocabulary)
        .map_err(|error| malformed(vocabulary_file, format!("not a vocabulary: {error}")))?;
    let merges = std::str::from_utf8(merges).map_err(|error| malformed(merges_file, error.to_string()))?;
    // The first line is a comment.
    let merges: Vec<Value> = merges
        .trim()
        .lines()
        .skip(1)
        .enumerate()
        .map(|(index, line)| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            [first, second] => Ok(json!([first, second])),
            _ => Err(malformed(merges_file, format!("line {} is {line:?}, expected two tokens", index + 2))),
        })
        .collect::<Result<_>>()?;
    Ok(json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": PIECES }, "behavior": "Removed", "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ] },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "unk_token": "<|endoftext|>", "end_of_word_suffix": END_OF_WORD,
            "continuing_subword_prefix": "", "fuse_unk": false, "vocab": vocabulary, "merges": merges,
        },
    }))
}

/// A `tokenizer.json` without its post-processor, which adds BOS and EOS: [`ClipTokenizer::window`] does that.
fn without_post_processor(file: &str, bytes: &[u8]) -> Result<Value> {
    let mut json: Value = crate::json::from_slice(bytes).map_err(|error| Error::Malformed {
        file: file.to_owned(),
        offset: 0,
        reason: format!("not a tokenizer: {error}"),
    })?;
    if let Some(post_processor) = json.get_mut("post_processor") {
        *post_processor = Value::Null;
    }
    Ok(json)
}
