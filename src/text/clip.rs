//! The tokenizer of CLIP's text towers, as diffusion models come with it: lower case, byte-level BPE whose pieces tell the end of a
//! word, and windows of fixed length.
//!
//! It gives the ids of transformers' `CLIPTokenizerFast`. The slow `CLIPTokenizer` differs where no `ftfy` is installed: it puts
//! spaces around Chinese characters and drops control characters. With `ftfy` it mends broken encodings first.

use serde_json::{Value, json};

use super::tokenizer::Tokenizer;
use super::tokenizer_config::{TokenizerConfig, read};
use crate::io::Folder;
use crate::{Error, Result};

/// Where words, numbers and the rest part; whatever this does not match is left out.
const PIECES: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The mark of a word's last piece.
const END_OF_WORD: &str = "</w>";

/// A tokenizer of windows.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
}

/// What a text tower gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// As many ids as the tower has positions: beginning, text, end, padding.
    pub ids: Vec<u32>,
    /// The end of the text that found no room.
    pub dropped: Option<String>,
}

impl ClipTokenizer {
    /// Reads a folder with `vocab.json` and `merges.txt`, or with `tokenizer.json`. `pad` is the token that fills windows, where
    /// it is not the folder's own.
    ///
    /// # Errors
    /// [`Error::MissingFile`] where there are neither, [`Error::Malformed`] and [`Error::Config`] for what they hold.
    pub async fn load(folder: &dyn Folder, pad: Option<&str>) -> Result<Self> {
        let mut config = TokenizerConfig::load(folder).await?;
        if let Some(pad) = pad {
            config.roles.insert("pad_token", pad.to_owned());
        }
        let name = |file: &str| format!("{}/{file}", folder.name());
        let json = match (read(folder, "vocab.json").await?, read(folder, "merges.txt").await?) {
            (Some(vocabulary), Some(merges)) => {
                of_lists(&name("vocab.json"), &vocabulary, &name("merges.txt"), &merges)?
            }
            (vocabulary, merges) => match read(folder, "tokenizer.json").await? {
                Some(bytes) => without_frame(&name("tokenizer.json"), &bytes)?,
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

    /// The ids of a text for a tower of `length` positions.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn window(&self, text: &str, length: usize) -> Result<Window> {
        let room = length.saturating_sub(2);
        let text = self.tokenizer.encode(text)?;
        let (kept, rest) = text.split_at(room.min(text.len()));
        let mut ids = Vec::with_capacity(length);
        ids.push(self.bos);
        ids.extend(kept);
        ids.push(self.eos);
        ids.resize(length, self.pad);
        let dropped = self.tokenizer.decode(rest, false).replace(END_OF_WORD, " ").trim().to_owned();
        Ok(Window { ids, dropped: (!rest.is_empty()).then_some(dropped) })
    }

    /// The id that ends a text, whose position tells the meaning of the whole.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// One more than the largest id, for the tower's table.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }
}

/// `vocab.json` and `merges.txt` as the `tokenizer.json` that transformers makes of them.
fn of_lists(vocabulary_file: &str, vocabulary: &[u8], merges_file: &str, merges: &[u8]) -> Result<Value> {
    let malformed = |file: &str, reason: String| Error::Malformed { file: file.to_owned(), offset: 0, reason };
    let vocabulary: serde_json::Map<String, Value> = serde_json::from_slice(vocabulary)
        .map_err(|error| malformed(vocabulary_file, format!("not a vocabulary: {error}")))?;
    let merges = std::str::from_utf8(merges).map_err(|error| malformed(merges_file, error.to_string()))?;
    // The first line is a comment. A word of the list that is no merge at the very end is ignored, as in CLIP's own list.
    let merges: Vec<Value> = merges
        .trim()
        .lines()
        .skip(1)
        .enumerate()
        .map(|(index, line)| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            [first, second] => Ok(json!([first, second])),
            _ => Err(malformed(merges_file, format!("line {} is {line:?}, expected two pieces", index + 2))),
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

/// A `tokenizer.json` without what frames its output: [`ClipTokenizer::window`] does that.
fn without_frame(file: &str, bytes: &[u8]) -> Result<Value> {
    let mut json: Value = serde_json::from_slice(bytes).map_err(|error| Error::Malformed {
        file: file.to_owned(),
        offset: 0,
        reason: format!("not a tokenizer: {error}"),
    })?;
    if let Some(frame) = json.get_mut("post_processor") {
        *frame = Value::Null;
    }
    Ok(json)
}
