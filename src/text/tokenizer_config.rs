//! `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`, and `model_type` of `config.json`: the
//! settings that decide how text becomes ids.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::io::{Folder, read_file};
use crate::{Error, Result};

/// Largest tokenizer file that is read (the largest released `tokenizer.json` has 35 MB).
const MAX_FILE: u64 = 256 << 20;

/// Roles of special tokens.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token added to the vocabulary, matched in text before anything else.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct AddedToken {
    pub content: String,
    /// Removes white space before it.
    #[serde(default)]
    pub lstrip: bool,
    /// Removes white space after it.
    #[serde(default)]
    pub rstrip: bool,
    /// Matches whole words only. Only `tokenizer.json` supports it: no released model with a `tokenizer.model` sets it.
    #[serde(default)]
    pub single_word: bool,
    /// Matched in the normalised text.
    #[serde(default)]
    pub normalized: bool,
    /// Omitted from answers.
    #[serde(default)]
    pub special: bool,
}

impl AddedToken {
    /// A special token known only by its text.
    pub fn special(content: impl Into<String>) -> Self {
        Self {
            content: content.into(),
            lstrip: false,
            rstrip: false,
            single_word: false,
            normalized: false,
            special: true,
        }
    }
}

/// The settings of these files. Absent files leave the defaults.
#[derive(Debug, Default)]
pub(super) struct TokenizerConfig {
    pub class: Option<String>,
    pub legacy: Option<bool>,
    pub add_bos_token: Option<bool>,
    pub add_eos_token: Option<bool>,
    pub add_prefix_space: Option<bool>,
    pub clean_up_tokenization_spaces: bool,
    /// `bos_token`, `eos_token` and so on, by role.
    pub roles: BTreeMap<&'static str, String>,
    /// `additional_special_tokens`.
    pub additional: Vec<String>,
    /// By id.
    pub added: BTreeMap<u32, AddedToken>,
    /// `model_type` of `config.json`.
    pub model_type: String,
}

#[derive(Deserialize)]
struct TokenizerFile {
    tokenizer_class: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    legacy: Option<bool>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    add_prefix_space: Option<bool>,
    #[serde(default, deserialize_with = "flag")]
    clean_up_tokenization_spaces: Option<bool>,
    added_tokens_decoder: Option<BTreeMap<u32, AddedToken>>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

impl TokenizerConfig {
    /// Reads `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and `config.json`, as far as the
    /// folder has them.
    ///
    /// # Errors
    /// [`Error::Config`] if one of them is not JSON of the expected form; the errors of [`read_file`].
    pub async fn load(folder: &dyn Folder) -> Result<Self> {
        let mut config = Self::default();
        let mut added_listed = false;
        if let Some(file) = read_json::<TokenizerFile>(folder, "tokenizer_config.json").await? {
            config.class = file.tokenizer_class;
            config.legacy = file.legacy;
            config.add_bos_token = file.add_bos_token;
            config.add_eos_token = file.add_eos_token;
            config.add_prefix_space = file.add_prefix_space;
            config.clean_up_tokenization_spaces = file.clean_up_tokenization_spaces.unwrap_or(false);
            config.read_roles(&file.rest);
            if let Some(added) = file.added_tokens_decoder {
                config.added = added;
                added_listed = true;
            }
        }
        // As in transformers, the two older files count only if the newer list is absent.
        if !added_listed {
            if let Some(map) = read_json::<serde_json::Map<String, Value>>(folder, "special_tokens_map.json").await? {
                config.read_roles(&map);
            }
            if let Some(ids) = read_json::<BTreeMap<String, u32>>(folder, "added_tokens.json").await? {
                for (content, id) in ids {
                    let special = config.special_texts().any(|text| text == content);
                    config
                        .added
                        .insert(id, AddedToken { special, normalized: !special, ..AddedToken::special(content) });
                }
            }
        }
        if let Some(file) = read_json::<Value>(folder, "config.json").await? {
            config.model_type = file.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
        }
        Ok(config)
    }

    /// Reads special tokens from a map of role to string, object or (additional tokens) list. Earlier values are kept.
    fn read_roles(&mut self, map: &serde_json::Map<String, Value>) {
        for role in ROLES {
            if let Some(text) = map.get(role).and_then(token_text) {
                self.roles.entry(role).or_insert_with(|| text.to_owned());
            }
        }
        if self.additional.is_empty()
            && let Some(list) = map.get("additional_special_tokens").and_then(Value::as_array)
        {
            self.additional = list.iter().filter_map(token_text).map(str::to_owned).collect();
        }
    }

    pub fn role(&self, role: &str) -> Option<&str> {
        self.roles.get(role).map(String::as_str)
    }

    /// All special tokens.
    pub fn special_texts(&self) -> impl Iterator<Item = &str> {
        self.roles.values().chain(&self.additional).map(String::as_str)
    }
}

/// A setting that is true or false, also as the text "true" ("false" would be true in Python). NaN is none.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<bool>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::Bool(value) => Ok(Some(value)),
        Value::String(text) if text == "NaN" => Ok(None),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
        other => Err(D::Error::custom(format!("{other}, expected true or false"))),
    }
}

/// The text of a token, written as a string or as an object with `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

async fn read_json<T: serde::de::DeserializeOwned>(folder: &dyn Folder, name: &str) -> Result<Option<T>> {
    let Some(bytes) = read(folder, name).await? else { return Ok(None) };
    crate::json::from_slice(&bytes).map(Some).map_err(|error| Error::Config {
        file: format!("{}/{name}", folder.name()),
        reason: format!("unexpected JSON: {error}"),
    })
}

/// A whole file of `folder`; `None` if there is no such file.
pub(super) async fn read(folder: &dyn Folder, name: &str) -> Result<Option<Vec<u8>>> {
    read_file(folder, name, MAX_FILE).await
}
