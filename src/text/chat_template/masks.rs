//! Keeps control tokens in users' texts from taking effect in a rendered template.
//!
//! A template can trim, split and cut its messages, so positions of their text in the output are unknown. Instead, the
//! first character of every control token in a message is replaced by a private-use character before the template runs.
//! It marks the place in the output, where the original character is restored. Other text is rendered as before.

use std::collections::{BTreeMap, BTreeSet};

use super::Message;
use crate::text::prompt::{Author, DataSpan, Prompt};

/// The texts of the tokens that structure a conversation.
#[derive(Debug, Clone, Default)]
pub struct ControlTokens {
    /// Special tokens: neither questions nor answers may contain them.
    pub special: Vec<String>,
    /// Ordinary added tokens in the template's text: questions may not contain them.
    pub markers: Vec<String>,
}

/// First code point of the private-use planes.
const PRIVATE_USE: u32 = 0xf_0000;

/// Stand-ins of the first characters of control tokens.
pub(super) struct Masks<'a> {
    tokens: &'a ControlTokens,
    /// By first character. Neither the messages nor the template contain the stand-ins.
    stand_ins: BTreeMap<char, char>,
}

impl ControlTokens {
    fn all(&self) -> impl Iterator<Item = &str> {
        self.special.iter().chain(&self.markers).map(String::as_str).filter(|token| !token.is_empty())
    }

    /// The tokens in `text`, the longest at each place.
    fn found_in<'a>(&'a self, text: &str) -> Vec<&'a str> {
        let firsts: BTreeSet<char> = self.all().filter_map(|token| token.chars().next()).collect();
        let mut found = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let begins = firsts.contains(&first);
            let candidates = self.all().take_while(|_| begins).filter(|token| rest.starts_with(token));
            let token = candidates.max_by_key(|token| token.len());
            found.extend(token);
            rest = &rest[token.map_or(first.len_utf8(), str::len)..];
        }
        found
    }
}

impl<'a> Masks<'a> {
    /// `None` if no control token can begin in the messages.
    pub(super) fn new(tokens: &'a ControlTokens, messages: &[Message<'_>], template: &str) -> Option<Self> {
        let mut stand_ins: BTreeMap<char, char> =
            tokens.all().filter_map(|token| token.chars().next()).map(|first| (first, '\0')).collect();
        if !messages.iter().any(|message| message.content.contains(|c| stand_ins.contains_key(&c))) {
            return None;
        }
        let used = |c: char| template.contains(c) || messages.iter().any(|message| message.content.contains(c));
        let mut free = (PRIVATE_USE..).map_while(char::from_u32).filter(|c| !used(*c));
        for stand_in in stand_ins.values_mut() {
            *stand_in = free.next()?;
        }
        Some(Self { tokens, stand_ins })
    }

    /// A message's text with stand-ins. `strict` replaces, in users' texts, every character with which a control token
    /// can begin.
    pub(super) fn hide(&self, message: &Message<'_>, strict: bool) -> String {
        let author = if message.role == "assistant" { Author::Model } else { Author::User };
        let text = message.content;
        let hidden = |(at, c): (usize, char)| {
            let begins = |tokens: &[String]| tokens.iter().any(|token| text[at..].starts_with(token));
            let hide = self.stand_ins.contains_key(&c)
                && ((strict && author == Author::User)
                    || begins(&self.tokens.special)
                    || (author == Author::User && begins(&self.tokens.markers)));
            hide.then(|| self.stand_ins.get(&c)).flatten().copied().unwrap_or(c)
        };
        text.char_indices().map(hidden).collect()
    }

    /// The prompt of a rendering and of a strict one.
    pub(super) fn prompt(&self, rendered: &str, strict: &str) -> Prompt {
        // A template that cuts a part out of a message can join the rest to a control token. In the strict rendering no
        // token begins in a user's text, but it may differ in other ways. So it is used only if the tokens differ.
        let equal = self.tokens.found_in(rendered) == self.tokens.found_in(strict);
        let (text, data) = self.reveal(if equal { rendered } else { strict });
        Prompt::from_text(text, data)
    }

    /// Replaces the stand-ins of a rendering by their characters, which are data.
    fn reveal(&self, rendered: &str) -> (String, Vec<DataSpan>) {
        let mut text = String::with_capacity(rendered.len());
        let mut data = Vec::new();
        for c in rendered.chars() {
            let original = self.stand_ins.iter().find(|(_, stand_in)| **stand_in == c).map(|(original, _)| *original);
            let start = text.len();
            text.push(original.unwrap_or(c));
            if original.is_some() {
                data.push(DataSpan { range: start..text.len(), author: Author::User });
            }
        }
        (text, data)
    }
}
