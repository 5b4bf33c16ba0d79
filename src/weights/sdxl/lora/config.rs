//! Alphas and ranks that are stored outside of the tensors: PEFT's `adapter_config.json`, and the same settings in the
//! metadata of diffusers' files.

use std::fmt;
use std::marker::PhantomData;

use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::{Error, Result};

/// Maximum number of regular expressions in a configuration, and maximum size of each, compiled, in bytes.
const MAX_EXPRESSIONS: usize = 256;
const EXPRESSION_BYTES: usize = 1 << 18;

/// The key of diffusers' metadata.
pub(super) const METADATA_KEY: &str = "lora_adapter_metadata";

/// Settings of the adapters of one model.
#[derive(Debug, Default)]
pub(super) struct AdapterConfig {
    alpha: Option<f64>,
    rank: Option<f64>,
    alpha_pattern: Vec<(Pattern, f64)>,
    rank_pattern: Vec<(Pattern, f64)>,
    use_rslora: bool,
}

impl AdapterConfig {
    /// Reads a JSON object in which PEFT's settings have a prefix, such as `unet.` or none; `None` if it has no alpha.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is not a JSON object; [`Error::Config`] with the setting that has another type than
    /// PEFT gives it.
    pub fn parse(file: &str, bytes: &[u8], prefix: &str) -> Result<Option<Self>> {
        let settings: Entries<Setting> = crate::json::from_slice(bytes).map_err(|error| Error::Malformed {
            file: file.to_owned(),
            offset: 0,
            reason: format!("not the JSON of an adapter's configuration: {error}"),
        })?;
        let bad = |reason: String| Error::Config { file: file.to_owned(), reason: format!("{prefix}{reason}") };
        let get = |key: &str| {
            let mut found = settings.0.iter().rev();
            found.find(|(name, _)| name.strip_prefix(prefix) == Some(key)).map(|(_, setting)| setting)
        };
        let number = |key: &str| match get(key) {
            None | Some(Setting::Null(())) => Ok(None),
            Some(Setting::Number(number)) => Ok(Some(*number)),
            Some(Setting::Text(text)) => match crate::json::number(text) {
                // An error of the modules that need it.
                Some(number) => Ok(Some(number)),
                None => Err(bad(format!("{key} is not a number"))),
            },
            Some(_) => Err(bad(format!("{key} is not a number"))),
        };
        let mut expressions = 0;
        let mut patterns = |key: &str| match get(key) {
            None | Some(Setting::Null(())) => Ok(Vec::new()),
            Some(Setting::Pattern(Entries(entries))) => {
                let pattern = |(text, value): &(String, f64)| {
                    let pattern = Pattern::new(text)
                        .ok_or_else(|| bad(format!("{key} has {text:?}, expected a regular expression")))?;
                    expressions += usize::from(matches!(pattern, Pattern::Expression(_)));
                    match expressions > MAX_EXPRESSIONS {
                        true => Err(bad(format!("{key} has more than {MAX_EXPRESSIONS} regular expressions"))),
                        false => Ok((pattern, *value)),
                    }
                };
                entries.iter().map(pattern).collect::<Result<Vec<_>>>()
            }
            Some(_) => Err(bad(format!("{key} is not an object of numbers"))),
        };
        let (alpha_pattern, rank_pattern) = (patterns("alpha_pattern")?, patterns("rank_pattern")?);
        // LoRA's key, and that of LoHa and LoKr.
        let alpha = number("lora_alpha")?.or(number("alpha")?);
        let use_rslora = match get("use_rslora") {
            None | Some(Setting::Null(())) => false,
            Some(Setting::Bool(value)) => *value,
            Some(_) => return Err(bad("use_rslora is neither true nor false".to_owned())),
        };
        let config = Self { alpha, rank: number("r")?, alpha_pattern, rank_pattern, use_rslora };
        Ok((alpha.is_some() || !config.alpha_pattern.is_empty()).then_some(config))
    }

    /// PEFT's scaling of a module: alpha over the rank, or over its square root with rsLoRA. `rank` is that of the
    /// module's matrices, if it has any. `None` if the configuration has no alpha for the module.
    pub fn scaling(&self, module: &str, rank: Option<usize>) -> Option<f32> {
        let of = |patterns: &[(Pattern, f64)]| {
            patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
        };
        let alpha = of(&self.alpha_pattern).or(self.alpha)?;
        let rank = match rank {
            Some(rank) => rank as f64,
            None => of(&self.rank_pattern).or(self.rank)?,
        };
        let rank = if self.use_rslora { rank.sqrt() } else { rank };
        (rank > 0.0).then(|| (alpha / rank) as f32)
    }
}

/// A value of a configuration.
#[derive(Deserialize)]
#[serde(untagged)]
enum Setting {
    Null(()),
    Bool(bool),
    Number(f64),
    Pattern(Entries<f64>),
    /// Perhaps a number that is not finite.
    Text(serde_json::Value),
}

/// The entries of a JSON object in their order, which decides between patterns.
struct Entries<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Object<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
            type Value = Entries<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Object(PhantomData))
    }
}

/// A key of `alpha_pattern` or `rank_pattern`. PEFT matches `(.*\.)?(KEY)$` at the start of a module's name.
#[derive(Debug)]
enum Pattern {
    /// A name, or its last parts. A dot stands for any character, unless a backslash precedes it.
    Name {
        characters: Vec<Option<u8>>,
        whole: bool,
    },
    Expression(Regex),
}

impl Pattern {
    fn new(key: &str) -> Option<Self> {
        let (rest, whole) = key.strip_prefix('^').map_or((key, false), |rest| (rest, true));
        let rest = rest.strip_suffix('$').unwrap_or(rest);
        let mut characters = Vec::with_capacity(rest.len());
        let mut bytes = rest.bytes();
        let plain = loop {
            match bytes.next() {
                None => break true,
                Some(b'.') => characters.push(None),
                Some(b'\\') if bytes.clone().next() == Some(b'.') => {
                    bytes.next();
                    characters.push(Some(b'.'));
                }
                Some(byte) if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' => {
                    characters.push(Some(byte));
                }
                Some(_) => break false,
            }
        };
        if plain {
            return Some(Self::Name { characters, whole });
        }
        let expression = RegexBuilder::new(&format!(r"^(.*\.)?({key})$")).size_limit(EXPRESSION_BYTES).build();
        expression.ok().map(Self::Expression)
    }

    fn is_match(&self, module: &str) -> bool {
        match self {
            Self::Expression(expression) => expression.is_match(module),
            Self::Name { characters, whole } => {
                let Some(start) = module.len().checked_sub(characters.len()) else { return false };
                let (before, end) = module.as_bytes().split_at(start);
                let fits = characters.iter().zip(end).all(|(expected, byte)| expected.is_none_or(|one| one == *byte));
                fits && (before.is_empty() || (!whole && before.ends_with(b".")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str, prefix: &str) -> Result<Option<AdapterConfig>> {
        AdapterConfig::parse("adapter_config.json", text.as_bytes(), prefix)
    }

    #[test]
    fn patterns_match_as_in_peft() {
        let text = r#"{"r": 8, "lora_alpha": 16, "use_rslora": false,
            "alpha_pattern": {"to_q": 4, "^mid_block.attentions.0.proj_in": 2, "attn2\\.to_[kv]": 1, "a.*\\.ff": 32}}"#;
        let found = config(text, "").unwrap().unwrap();
        for (module, alpha) in [
            ("down.attn1.to_q", 4.0),
            ("to_q", 4.0),
            ("down.attn1.into_q", 16.0),
            ("mid_block.attentions.0.proj_in", 2.0),
            ("x.mid_block.attentions.0.proj_in", 16.0),
            ("down.attn2.to_k", 1.0),
            ("down.attn2xto_k", 16.0),
            ("down.attentions.0.ff", 32.0),
            ("down.attn1.to_k", 16.0),
            ("", 16.0),
        ] {
            assert_eq!(found.scaling(module, Some(4)), Some(alpha / 4.0), "{module}");
            assert_eq!(found.scaling(module, None), Some(alpha / 8.0), "{module}");
        }
        let text = r#"{"unet.r": 8, "unet.lora_alpha": 16, "unet.use_rslora": true, "text_encoder.lora_alpha": 2}"#;
        assert_eq!(config(text, "unet.").unwrap().unwrap().scaling("x", Some(16)), Some(4.0));
        assert_eq!(config(text, "text_encoder.").unwrap().unwrap().scaling("x", None), None);
        assert!(config(text, "").unwrap().is_none());
        // The first pattern that matches counts, in the file's order.
        let text = r#"{"lora_alpha": 8, "alpha_pattern": {"to_q": 1, "attn1.to_q": 2}, "target_modules": ["to_q"]}"#;
        assert_eq!(config(text, "").unwrap().unwrap().scaling("attn1.to_q", Some(1)), Some(1.0));
        let text = r#"{"lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 2, "to_q": 1}, "layers_pattern": null}"#;
        assert_eq!(config(text, "").unwrap().unwrap().scaling("attn1.to_q", Some(1)), Some(2.0));
    }

    #[test]
    fn settings_of_other_types_are_named() {
        let many: Vec<String> = (0..300).map(|index| format!(r#""[a]{index}": 1"#)).collect();
        for (text, reason) in [
            (r#"{"lora_alpha": "x"}"#.to_owned(), "lora_alpha is not a number"),
            (r#"{"alpha_pattern": 3}"#.to_owned(), "alpha_pattern is not an object of numbers"),
            (r#"{"alpha_pattern": {"x": "3"}}"#.to_owned(), "alpha_pattern is not an object of numbers"),
            (r#"{"alpha_pattern": {"(": 3}}"#.to_owned(), r#"alpha_pattern has "(", expected a regular expression"#),
            (r#"{"alpha_pattern": {"(a{9}){9999}": 3}}"#.to_owned(), "expected a regular expression"),
            (format!(r#"{{"rank_pattern": {{{}}}}}"#, many.join(",")), "more than 256 regular expressions"),
            (r#"{"use_rslora": 1}"#.to_owned(), "use_rslora is neither true nor false"),
            ("[]".to_owned(), "not the JSON of an adapter's configuration"),
            ("{".to_owned(), "not the JSON of an adapter's configuration"),
        ] {
            let error = config(&text, "").unwrap_err().to_string();
            assert!(error.contains(reason), "{error:?} lacks {reason:?}");
        }
    }
}
