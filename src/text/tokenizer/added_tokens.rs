//! Finding added tokens in text.

use std::collections::HashMap;

use crate::text::tokenizer_config::AddedToken;

/// Added tokens, indexed by their first byte.
#[derive(Debug)]
pub(super) struct AddedTokens {
    tokens: Vec<(u32, AddedToken)>,
    /// By first byte, longest first.
    by_first: HashMap<u8, Vec<usize>>,
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
        Self { tokens, by_first }
    }

    /// The id of the token with this text.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.tokens.iter().rev().find(|(_, token)| token.content == text).map(|(id, _)| *id)
    }

    /// The longest token that `text` begins with.
    fn at_start(&self, text: &str) -> Option<&(u32, AddedToken)> {
        let list = self.by_first.get(text.as_bytes().first()?)?;
        list.iter().filter_map(|&index| self.tokens.get(index)).find(|(_, token)| text.starts_with(&token.content))
    }

    /// Calls `each` for the tokens and the (never empty) texts between them, in order.
    pub(super) fn split<'a>(&self, text: &'a str, mut each: impl FnMut(Segment<'a>)) {
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
