//! Finding added tokens in text.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::text::prompt::{Author, DataSpan};
use crate::text::tokenizer_config::AddedToken;

/// Added tokens, indexed by their first byte.
#[derive(Debug)]
pub(super) struct AddedTokens {
    tokens: Vec<(u32, AddedToken)>,
    /// By first byte, longest first.
    by_first: HashMap<u8, Vec<usize>>,
    /// Ordinary added tokens in the text of the model's conversation template (DeepSeek's `<｜User｜>`, Qwen's
    /// `<tool_call>`).
    markers: HashSet<u32>,
}

pub(super) enum Segment<'a> {
    Text(&'a str),
    Token(u32),
}

impl AddedTokens {
    pub(super) fn new(tokens: impl Iterator<Item = (u32, AddedToken)>) -> Self {
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
        Self { tokens, by_first, markers: HashSet::new() }
    }

    /// The id of the token with this text.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.tokens.iter().rev().find(|(_, token)| token.content == text).map(|(id, _)| *id)
    }

    /// The texts of the special tokens.
    pub(super) fn special_texts(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().filter(|(_, token)| token.special).map(|(_, token)| token.content.as_str())
    }

    /// Makes the tokens in the text of a conversation template control tokens for questions, if they look like markers:
    /// `<…>`, `[…]`. Answers may contain them: the model wrote them as tokens. Returns their texts.
    pub(super) fn add_markers(&mut self, template: &str) -> Vec<&str> {
        let marker = |(_, token): &&(u32, AddedToken)| {
            let content = &*token.content;
            let bracket = |c: Option<char>| c.is_some_and(|c| !c.is_alphanumeric() && !c.is_whitespace());
            !token.special
                && content.chars().count() > 2
                && bracket(content.chars().next())
                && bracket(content.chars().next_back())
                && template.contains(content)
        };
        self.markers = self.tokens.iter().filter(marker).map(|(id, _)| *id).collect();
        self.tokens.iter().filter(marker).map(|(_, token)| &*token.content).collect()
    }

    /// Whether the token at `place` takes effect: control tokens do not where they touch `data`.
    fn takes_effect(&self, id: u32, token: &AddedToken, place: &Range<usize>, data: &[DataSpan]) -> bool {
        if !token.special && !self.markers.contains(&id) {
            return true;
        }
        // The spans are sorted, and a prompt has thousands of characters: find the first that ends after the start.
        let first = data.partition_point(|span| span.range.end <= place.start);
        let mut touching = data[first..].iter().take_while(|span| span.range.start < place.end);
        !touching.any(|span| token.special || span.author == Author::User)
    }

    /// The longest token that `text[at..]` begins with and that `accepts`.
    fn at(
        &self,
        text: &str,
        at: usize,
        accepts: impl Fn(u32, &AddedToken, &Range<usize>) -> bool,
    ) -> Option<&(u32, AddedToken)> {
        let rest = text.get(at..)?;
        let list = self.by_first.get(rest.as_bytes().first()?)?;
        list.iter().filter_map(|&index| self.tokens.get(index)).find(|(id, token)| {
            rest.starts_with(&token.content) && accepts(*id, token, &(at..at + token.content.len()))
        })
    }

    /// Where control tokens in `data` begin, and so take no effect.
    pub(super) fn in_data(&self, text: &str, data: &[DataSpan]) -> Vec<usize> {
        let longest = self.tokens.iter().map(|(_, token)| token.content.len()).max().unwrap_or(0);
        let mut found = Vec::new();
        for span in data {
            // A token may begin before the data.
            let start = span.range.start.saturating_sub(longest).max(found.last().map_or(0, |last| last + 1));
            found.extend((start..span.range.end).filter(|&at| {
                text.is_char_boundary(at)
                    && self.at(text, at, |id, token, place| !self.takes_effect(id, token, place, data)).is_some()
            }));
        }
        found
    }

    /// Splits a text into tokens, with their ids, and the texts between them; the ranges cover the text. Control tokens
    /// in `data` are text, and so are tokens that `accepts` rejects.
    pub(super) fn find(
        &self,
        text: &str,
        data: &[DataSpan],
        accepts: impl Fn(&AddedToken) -> bool,
    ) -> Vec<(Range<usize>, Option<u32>)> {
        let (mut start, mut at) = (0, 0);
        let mut parts = Vec::new();
        let accepts = |id, token: &AddedToken, place: &Range<usize>| {
            accepts(token) && (!token.single_word || is_word(text, place)) && self.takes_effect(id, token, place, data)
        };
        while let Some(first) = text[at..].chars().next() {
            let Some((id, token)) = self.at(text, at, accepts) else {
                at += first.len_utf8();
                continue;
            };
            let before = if token.lstrip { start + text[start..at].trim_end().len() } else { at };
            if start < before {
                parts.push((start..before, None));
            }
            at += token.content.len();
            if token.rstrip {
                at = text.len() - text[at..].trim_start().len();
            }
            parts.push((before..at, Some(*id)));
            start = at;
        }
        if start < text.len() {
            parts.push((start..text.len(), None));
        }
        parts
    }

    /// Calls `each` for the tokens and the (never empty) texts between them, in order, with their offsets. Control
    /// tokens in `data` are text.
    pub(super) fn split<'a>(&self, text: &'a str, data: &[DataSpan], mut each: impl FnMut(usize, Segment<'a>)) {
        for (range, id) in self.find(text, data, |_| true) {
            each(range.start, id.map_or(Segment::Text(&text[range]), Segment::Token));
        }
    }
}

/// Whether no letter, digit or underscore touches the range.
fn is_word(text: &str, range: &Range<usize>) -> bool {
    let in_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    !in_word(text[..range.start].chars().next_back()) && !in_word(text[range.end..].chars().next())
}
