//! A check of BPE merges that the `tokenizers` crate lacks: it joins both sides of a merge in a buffer as long as the
//! longest token, and panics if they do not fit.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Fails if a merge is longer than every token, in bytes.
pub(super) fn check(longest_merge: usize, longest_token: usize) -> Result<(), String> {
    if longest_merge <= longest_token {
        return Ok(());
    }
    Err(format!("a merge has {longest_merge} bytes, but the longest token has {longest_token}: it cannot be a token"))
}

/// The parts of a `tokenizer.json`'s `model` that [`check`] needs.
#[derive(Default, Deserialize)]
pub(super) struct Model {
    /// Of the vocabulary's keys.
    #[serde(default)]
    pub vocab: Longest,
    /// Of the merges, both sides together.
    #[serde(default)]
    pub merges: Longest,
}

/// Length in bytes of the longest key of an object, or of the longest merge of an array. Anything else is 0, and the
/// library refuses it.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Longest(pub usize);

impl<'de> Deserialize<'de> for Longest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Texts)
    }
}

/// A merge, in either notation.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Line(String),
    Pair(String, String),
    Other(IgnoredAny),
}

struct Texts;

impl<'de> Visitor<'de> for Texts {
    type Value = Longest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary or merges")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Longest, A::Error> {
        let mut longest = 0;
        while let Some((key, IgnoredAny)) = map.next_entry::<String, _>()? {
            longest = longest.max(key.len());
        }
        Ok(Longest(longest))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Longest, A::Error> {
        let mut longest = 0;
        while let Some(merge) = list.next_element::<Merge>()? {
            longest = longest.max(match merge {
                Merge::Line(line) => line.len().saturating_sub(1), // the space
                Merge::Pair(left, right) => left.len() + right.len(),
                Merge::Other(_) => 0,
            });
        }
        Ok(Longest(longest))
    }

    fn visit_unit<E: Error>(self) -> Result<Longest, E> {
        Ok(Longest(0))
    }
}
