//! A checkpoint's tokenizer: text to ids and back, with the same ids as the reference.
//!
//! Checkpoints have `tokenizer.json`, `tokenizer.model`, or both, and the two do not always agree. The reference uses
//! transformers' slow (SentencePiece) tokenizer for Llama-type models and the fast one for the others.
//! [`Tokenizer::load`] follows the same rules:
//!
//! | checkpoint | files | used |
//! | --- | --- | --- |
//! | Gemma (2B) | both | `tokenizer.json` |
//! | Mixtral (8x7B) | both | `tokenizer.json` |
//! | Mixtral | `tokenizer.model` | that, as the fast tokenizer converted from it: every segment gets a leading space |
//! | Llama, Yi (7B, 13B, 34B) | both | `tokenizer.model`, `legacy` as `tokenizer_config.json` says |
//! | any | one of them | that one |

mod added_tokens;
mod json;
mod sentencepiece_mode;

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::chat_template::{ControlTokens, TemplateSettings};
use super::decode::Decoder;
use super::prompt::{DataSpan, Prompt};
use super::sentencepiece::Model;
use super::tokenizer_config::{TokenizerConfig, read};
use crate::io::Folder;
use crate::{Error, Result};
use json::Json;
use sentencepiece_mode::SentencePiece;

const JSON: &str = "tokenizer.json";
const MODEL: &str = "tokenizer.model";

/// One position of a prompt before the images are spliced in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptToken {
    /// A token of the vocabulary.
    Text(u32),
    /// The position of one image's embeddings.
    Image,
}

/// A tokenizer read from a checkpoint's folder.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: Encoder,
    decoder: Decoder,
    bos: Option<u32>,
    eos: Option<u32>,
    /// By role.
    special_tokens: BTreeMap<&'static str, String>,
    additional_special_tokens: Vec<String>,
    vocab_size: usize,
}

#[derive(Debug)]
enum Encoder {
    SentencePiece(Box<SentencePiece>),
    Json(Box<Json>),
}

/// Tokens before and after every encoded text.
#[derive(Debug, Default)]
struct AffixTokens {
    before: Option<u32>,
    after: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Gemma,
    Mixtral,
    /// SentencePiece models in GGUF files, as llama.cpp treats them.
    Gguf,
}

impl Tokenizer {
    /// Reads the tokenizer of the checkpoint in `folder`, by the rules above.
    ///
    /// # Errors
    /// [`Error::MissingFile`] if the folder has no tokenizer; [`Error::Malformed`], [`Error::Config`] or
    /// [`Error::Unsupported`] if it cannot be read.
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
                "the folder has neither {MODEL} nor {JSON}, and tokenizing text needs one of them. Copy it from the model's \
                 page (quantised or partial copies often omit it)"
            ),
        })
    }

    /// The ids of a text, with the BOS token if this tokenizer adds one.
    ///
    /// # Errors
    /// [`Error::Config`] if the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_segment(text, &[])
    }

    /// As [`Self::encode`]; control tokens in `data` are ordinary text.
    fn encode_segment(&self, text: &str, data: &[DataSpan]) -> Result<Vec<u32>> {
        match &self.encoder {
            Encoder::SentencePiece(encoder) => Ok(encoder.encode(text, data)),
            Encoder::Json(encoder) => encoder.encode(text, data).map_err(|error| Error::Config {
                file: JSON.to_owned(),
                reason: format!("the tokenizer cannot encode this text: {error}"),
            }),
        }
    }

    /// The ids of a prompt with images. As in the reference, each segment between images is encoded by itself, and its
    /// BOS token is dropped except for the first. So a Llama-type tokenizer adds its leading space after every image
    /// too.
    ///
    /// Control tokens take effect only in the template's own text: `</s>` in a question is encoded as four characters
    /// are. These are the special tokens, and those of the model's conversation template.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_prompt(&self, prompt: &Prompt) -> Result<Vec<PromptToken>> {
        let mut tokens = Vec::new();
        let mut drop_first = false;
        for (index, (segment, data)) in prompt.parts().enumerate() {
            let mut ids = self.encode_segment(segment, data)?;
            if index == 0 {
                // Some templates write the BOS token themselves; one is enough.
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

    /// The text of `ids`, as transformers decodes it. Ids outside the vocabulary decode to nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.decoder.decode(ids, skip_special)
    }

    /// The text of generated ids as the reference shows it: without special tokens, trimmed.
    pub fn answer(&self, ids: &[u32]) -> String {
        self.decode(ids, true).trim().to_owned()
    }

    /// The bytes that a token adds to a text, exactly: half of a character too, and a space that a decoder drops at a
    /// text's beginning. `None` for special, control, unknown and added tokens, and for ids outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        self.decoder.token_bytes(id)
    }

    /// A token's text: its bytes, with U+FFFD for parts of characters, or the name of a special token. Empty outside
    /// the vocabulary.
    pub fn token_text(&self, id: u32) -> String {
        self.decoder.token_text(id)
    }

    /// The id of a token by its text, in the vocabulary's spelling.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.encoder {
            Encoder::SentencePiece(encoder) => encoder.id(token),
            Encoder::Json(encoder) => encoder.tokenizer.token_to_id(token),
        }
    }

    /// The settings of a Jinja template of this tokenizer. From then on, its control tokens take effect only in the
    /// template's own text.
    #[doc(hidden)]
    pub fn template_settings(&mut self, template: &str) -> TemplateSettings {
        let control = self.control_tokens(template);
        let mut special_tokens = self.special_tokens.clone();
        for (role, id) in [("bos_token", self.bos), ("eos_token", self.eos)] {
            if let Some(id) = id {
                special_tokens.entry(role).or_insert_with(|| self.decode(&[id], false));
            }
        }
        let additional = self.additional_special_tokens.clone();
        TemplateSettings { special_tokens, additional, control, ..TemplateSettings::default() }
    }

    /// The tokens that structure the conversations of a template. From then on, they take effect only in the template's
    /// own text.
    #[doc(hidden)]
    pub fn control_tokens(&mut self, template: &str) -> ControlTokens {
        let texts = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
        match &mut self.encoder {
            Encoder::SentencePiece(encoder) => {
                let markers = texts(encoder.add_markers(template));
                ControlTokens { special: texts(encoder.added.special_texts().collect()), markers }
            }
            Encoder::Json(encoder) => {
                let Json { added, normalized, .. } = &mut **encoder;
                normalized.add_markers(template);
                let markers = texts(added.add_markers(template));
                ControlTokens { special: texts(added.special_texts().collect()), markers }
            }
        }
    }

    /// The BOS token, whether or not [`Tokenizer::encode`] adds it.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The EOS token.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Number of tokens, added ones included (`len(tokenizer)` in transformers). A `tokenizer.json` may skip ids, so
    /// the largest id can be this number or more.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Whether answers omit this token.
    pub fn is_special(&self, id: u32) -> bool {
        self.decoder.special.contains(&id)
    }

    pub(super) fn decoder(&self) -> &Decoder {
        &self.decoder
    }
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
