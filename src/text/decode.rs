//! Decoding ids to text, one id at a time. Decoding a list and streaming share this code, so they cannot differ.
//!
//! The decoders of the `tokenizers` crate are not used: none decodes as transformers' slow tokenizers do.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::sentencepiece::SPACE;

/// Replacements of transformers' `clean_up_tokenization`, in its order.
const CLEAN_UP: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// How the tokens of a vocabulary are joined to text.
#[derive(Debug)]
pub(super) enum DecoderKind {
    /// As transformers' slow tokenizers decode through SentencePiece.
    SentencePiece(SentencePieceRules),
    /// Every token is a string of bytes.
    ByteLevel,
    /// As the `tokenizers` crate's Replace, ByteFallback, Fuse, Strip: a run of byte tokens is text if the whole run is
    /// UTF-8.
    ByteFallback {
        /// The character to drop from the start of the text, and at most how often.
        strip: Option<(char, usize)>,
    },
}

/// The rules of [`DecoderKind::SentencePiece`].
#[derive(Debug)]
pub(super) struct SentencePieceRules {
    /// Llama's slow tokenizer drops the space that it added...
    pub drop_first_space: bool,
    /// ...and SentencePiece drops its own.
    pub drop_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    /// Added tokens that are not special are surrounded by spaces (all models except Gemma).
    pub space_around_added: bool,
    /// `legacy` of the slow tokenizer: a space before special tokens.
    pub legacy: bool,
    /// Text of the unknown piece.
    pub unknown_surface: String,
}

/// The text of one token.
#[derive(Debug, Clone, Copy)]
pub(super) enum TokenText<'a> {
    /// Text. With SentencePiece rules, spaces are still U+2581.
    Text {
        text: &'a str,
        /// Whether the text without its leading U+2581 is a piece too.
        unprefixed_is_piece: bool,
    },
    /// Bytes, not necessarily whole characters.
    Bytes(&'a [u8]),
    /// Decodes to nothing.
    Control(&'a str),
    /// The unknown piece.
    Unknown(&'a str),
    /// An added token: decodes to its text.
    Added(&'a str),
}

/// The token texts of a vocabulary in one buffer. One `String` per token would take several times the memory.
#[derive(Debug, Default)]
pub(super) struct TokenTable {
    bytes: Vec<u8>,
    places: HashMap<u32, Place>,
}

/// A token's range in the buffer.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: u32,
    end: u32,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Text { unprefixed_is_piece: bool },
    Bytes,
    Control,
    Unknown,
    Added,
}

impl TokenTable {
    pub fn with_capacity(tokens: usize) -> Self {
        Self { bytes: Vec::new(), places: HashMap::with_capacity(tokens) }
    }

    /// Sets a token's text, replacing an earlier one.
    pub fn insert(&mut self, id: u32, unit: TokenText<'_>) {
        let (kind, bytes) = match unit {
            TokenText::Text { text, unprefixed_is_piece } => (Kind::Text { unprefixed_is_piece }, text.as_bytes()),
            TokenText::Bytes(bytes) => (Kind::Bytes, bytes),
            TokenText::Control(text) => (Kind::Control, text.as_bytes()),
            TokenText::Unknown(text) => (Kind::Unknown, text.as_bytes()),
            TokenText::Added(text) => (Kind::Added, text.as_bytes()),
        };
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(bytes);
        self.places.insert(id, Place { start, end: self.bytes.len() as u32, kind });
    }

    pub fn get(&self, id: u32) -> Option<TokenText<'_>> {
        let Place { start, end, kind } = *self.places.get(&id)?;
        let bytes = self.bytes.get(start as usize..end as usize)?;
        let text = || std::str::from_utf8(bytes).ok();
        Some(match kind {
            Kind::Text { unprefixed_is_piece } => TokenText::Text { text: text()?, unprefixed_is_piece },
            Kind::Bytes => TokenText::Bytes(bytes),
            Kind::Control => TokenText::Control(text()?),
            Kind::Unknown => TokenText::Unknown(text()?),
            Kind::Added => TokenText::Added(text()?),
        })
    }
}

/// Everything that decoding needs.
#[derive(Debug)]
pub(super) struct Decoder {
    pub units: TokenTable,
    pub special: HashSet<u32>,
    pub kind: DecoderKind,
    pub clean_up: bool,
}

impl Decoder {
    /// The bytes that a token adds to a text, those of an incomplete character included. `None` for special, control,
    /// unknown and added tokens.
    pub fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        if self.special.contains(&id) {
            return None;
        }
        let spaces = matches!(self.kind, DecoderKind::SentencePiece(_));
        match self.units.get(id)? {
            TokenText::Bytes(bytes) => Some(Cow::Borrowed(bytes)),
            TokenText::Text { text, .. } if spaces => Some(Cow::Owned(text.replace(SPACE, " ").into_bytes())),
            TokenText::Text { text, .. } => Some(Cow::Borrowed(text.as_bytes())),
            TokenText::Control(_) | TokenText::Unknown(_) | TokenText::Added(_) => None,
        }
    }

    /// A token's text as a label: its bytes, with U+FFFD for incomplete characters, or the name of a special token.
    pub fn token_text(&self, id: u32) -> String {
        match (self.token_bytes(id), self.units.get(id)) {
            (Some(bytes), _) => String::from_utf8_lossy(&bytes).into_owned(),
            (None, Some(TokenText::Bytes(bytes))) => String::from_utf8_lossy(bytes).into_owned(),
            (None, Some(unit)) => unit.text().to_owned(),
            (None, None) => String::new(),
        }
    }

    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        if let (DecoderKind::SentencePiece(rules), false) = (&self.kind, skip_special) {
            return self.decode_with_special(rules, ids);
        }
        let mut state = self.start(skip_special);
        let mut text = String::new();
        for &id in ids {
            state.push(id, &mut text);
        }
        state.finish(&mut text);
        text
    }

    /// Starts a text.
    pub fn start(&self, skip_special: bool) -> State<'_> {
        let clean_up = if self.clean_up { CLEAN_UP.iter().map(Replacer::new).collect() } else { Vec::new() };
        State { decoder: self, skip_special, joiner: Joiner::default(), raw: String::new(), clean_up }
    }

    /// Slow Llama tokenizers write special tokens with spaces that depend on the text after them, so this cannot be
    /// streamed. It need not be: answers omit special tokens.
    fn decode_with_special(&self, rules: &SentencePieceRules, ids: &[u32]) -> String {
        let mut parts: Vec<String> = Vec::new();
        let mut run: Vec<u32> = Vec::new();
        for &id in ids {
            match self.units.get(id) {
                Some(TokenText::Added(text)) if !self.special.contains(&id) => {
                    if !run.is_empty() {
                        parts.push(self.join_with_special(rules, &run));
                        parts.retain(|part| !part.is_empty());
                        run.clear();
                    }
                    parts.push(text.to_owned());
                }
                Some(_) => run.push(id),
                None => {}
            }
        }
        if !run.is_empty() {
            parts.push(self.join_with_special(rules, &run));
        }
        let mut text = parts.join(if rules.space_around_added { " " } else { "" });
        if self.clean_up {
            for (from, to) in CLEAN_UP {
                text = text.replace(from, to);
            }
        }
        text
    }

    /// `convert_tokens_to_string` of transformers' slow Llama tokenizer.
    fn join_with_special(&self, rules: &SentencePieceRules, ids: &[u32]) -> String {
        let mut text = String::new();
        let mut piece = String::new();
        let mut joiner = Joiner::default();
        let mut special_before = false;
        for (index, id) in ids.iter().enumerate() {
            let Some(unit) = self.units.get(*id) else { continue };
            if self.special.contains(id) {
                if !special_before && index != 0 && rules.legacy {
                    text.push(' ');
                }
                joiner.flush_sentencepiece(&mut piece);
                text.push_str(&std::mem::take(&mut piece));
                text.push_str(unit.text());
                joiner = Joiner { first_token_seen: true, ..Joiner::default() };
                special_before = true;
            } else {
                if special_before && index == 1 && rules.drop_first_space && !unit.text().starts_with(SPACE) {
                    text.push(' ');
                }
                joiner.push_sentencepiece(rules, unit, &mut piece);
                special_before = false;
            }
        }
        joiner.flush_sentencepiece(&mut piece);
        text + &piece
    }
}

impl<'a> TokenText<'a> {
    fn text(self) -> &'a str {
        match self {
            TokenText::Text { text, .. }
            | TokenText::Control(text)
            | TokenText::Unknown(text)
            | TokenText::Added(text) => text,
            TokenText::Bytes(_) => "",
        }
    }
}

/// A text being decoded.
#[derive(Debug)]
pub(super) struct State<'a> {
    decoder: &'a Decoder,
    skip_special: bool,
    joiner: Joiner,
    raw: String,
    clean_up: Vec<Replacer>,
}

impl State<'_> {
    /// Takes one id and appends the text that is certain now to `out`. Unknown ids decode to nothing.
    pub fn push(&mut self, id: u32, out: &mut String) {
        if self.skip_special && self.decoder.special.contains(&id) {
            return;
        }
        let Some(unit) = self.decoder.units.get(id) else { return };
        self.joiner.push(&self.decoder.kind, unit, &mut self.raw);
        self.drain(false, out);
    }

    /// Appends the text that was held back.
    pub fn finish(&mut self, out: &mut String) {
        self.joiner.finish(&self.decoder.kind, &mut self.raw);
        self.drain(true, out);
    }

    fn drain(&mut self, last: bool, out: &mut String) {
        let mut text = std::mem::take(&mut self.raw);
        for replacer in &mut self.clean_up {
            text = replacer.push(&text, last);
        }
        out.push_str(&text);
    }
}

/// Joins token texts.
#[derive(Debug, Default)]
struct Joiner {
    /// Bytes of an incomplete character (with [`DecoderKind::ByteFallback`], of an incomplete run).
    bytes: Vec<u8>,
    /// A token of this segment has been seen. The first one loses the space that the tokenizer added.
    first_token_seen: bool,
    /// This segment has printed something.
    printed: bool,
    /// SentencePiece has dropped its dummy prefix.
    prefix_dropped: bool,
    /// Past the position where the dummy prefix can be.
    past_start: bool,
    /// Text was printed before this segment: a space separates them.
    part_before: bool,
    /// Characters dropped so far by `strip`; `None` once it is over.
    stripped: Option<usize>,
    started: bool,
}

impl Joiner {
    fn push(&mut self, kind: &DecoderKind, unit: TokenText<'_>, out: &mut String) {
        match kind {
            DecoderKind::SentencePiece(rules) => match unit {
                TokenText::Added(text) => {
                    self.end_segment(rules, out);
                    if (self.part_before || self.printed) && rules.space_around_added {
                        out.push(' ');
                    }
                    out.push_str(text);
                    *self = Self { part_before: true, ..Self::default() };
                }
                unit => {
                    let mut text = String::new();
                    self.push_sentencepiece(rules, unit, &mut text);
                    self.print(rules, &text, out);
                }
            },
            DecoderKind::ByteLevel => match unit {
                TokenText::Bytes(bytes) => {
                    self.bytes.extend_from_slice(bytes);
                    self.drain_bytes(Invalid::Sequence, out);
                }
                unit => {
                    self.bytes.extend_from_slice(unit.text().as_bytes());
                    self.drain_bytes(Invalid::Sequence, out);
                }
            },
            DecoderKind::ByteFallback { strip } => match unit {
                TokenText::Bytes(bytes) => self.bytes.extend_from_slice(bytes),
                unit => {
                    let run = self.end_run();
                    self.print_stripped(*strip, &run, out);
                    self.print_stripped(*strip, unit.text(), out);
                }
            },
        }
    }

    fn finish(&mut self, kind: &DecoderKind, out: &mut String) {
        match kind {
            DecoderKind::SentencePiece(rules) => {
                self.end_segment(rules, out);
                // A last part is joined even if it is empty.
                if self.first_token_seen && !self.printed && self.part_before && rules.space_around_added {
                    out.push(' ');
                }
            }
            DecoderKind::ByteLevel => {
                if !self.bytes.is_empty() {
                    self.bytes.clear();
                    out.push(char::REPLACEMENT_CHARACTER);
                }
            }
            DecoderKind::ByteFallback { strip } => {
                let run = self.end_run();
                self.print_stripped(*strip, &run, out);
            }
        }
    }

    /// Ends a segment: incomplete bytes stay incomplete.
    fn end_segment(&mut self, rules: &SentencePieceRules, out: &mut String) {
        let mut text = String::new();
        self.flush_sentencepiece(&mut text);
        self.print(rules, &text, out);
    }

    fn print(&mut self, rules: &SentencePieceRules, text: &str, out: &mut String) {
        if text.is_empty() {
            return;
        }
        if !std::mem::replace(&mut self.printed, true) && self.part_before && rules.space_around_added {
            out.push(' ');
        }
        out.push_str(text);
    }

    /// `SentencePieceProcessor::Decode`, one piece.
    fn push_sentencepiece(&mut self, rules: &SentencePieceRules, unit: TokenText<'_>, out: &mut String) {
        let first = !std::mem::replace(&mut self.first_token_seen, true);
        let before = out.len();
        if let TokenText::Bytes(bytes) = unit {
            self.bytes.extend_from_slice(bytes);
            self.drain_bytes(Invalid::Byte, out);
            self.past_start |= out.len() > before;
            return;
        }
        self.flush_sentencepiece(out);
        self.past_start |= self.prefix_dropped || out.len() > before;
        let written = out.len();
        match unit {
            TokenText::Control(_) => self.prefix_dropped = false,
            TokenText::Unknown(_) => {
                self.prefix_dropped = false;
                out.push_str(&rules.unknown_surface);
            }
            _ => {
                let mut piece = unit.text();
                let mut known = true;
                if first
                    && rules.drop_first_space
                    && let Some(rest) = piece.strip_prefix(SPACE)
                {
                    piece = rest;
                    known = matches!(unit, TokenText::Text { unprefixed_is_piece: true, .. });
                }
                if !known {
                    // Not a piece: SentencePiece prints it unchanged.
                    self.prefix_dropped = false;
                    out.push_str(piece);
                } else {
                    let mut dropped = false;
                    if !self.past_start
                        && (rules.drop_dummy_prefix || rules.remove_extra_whitespaces)
                        && let Some(rest) = piece.strip_prefix(SPACE)
                    {
                        piece = rest;
                        dropped = !rules.remove_extra_whitespaces;
                    }
                    self.prefix_dropped = dropped;
                    out.extend(piece.chars().map(|c| if c == SPACE { ' ' } else { c }));
                }
            }
        }
        self.past_start |= out.len() > written;
    }

    fn flush_sentencepiece(&mut self, out: &mut String) {
        self.drain_bytes(Invalid::Byte, out);
        for _ in self.bytes.drain(..) {
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }

    /// Prints complete characters, and U+FFFD for bytes that cannot start one.
    fn drain_bytes(&mut self, invalid: Invalid, out: &mut String) {
        let mut rest = self.bytes.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, tail) = rest.split_at(error.valid_up_to());
            out.push_str(&String::from_utf8_lossy(valid));
            rest = tail;
            let Some(length) = error.error_len() else { break };
            out.push(char::REPLACEMENT_CHARACTER);
            let skipped = match invalid {
                Invalid::Byte => 1,
                Invalid::Sequence => length,
            };
            rest = rest.get(skipped..).unwrap_or_default();
        }
        let done = self.bytes.len() - rest.len();
        self.bytes.drain(..done);
    }

    /// Ends a run of byte tokens: its text, or one U+FFFD for each of its bytes.
    fn end_run(&mut self) -> String {
        let bytes = std::mem::take(&mut self.bytes);
        let length = bytes.len();
        String::from_utf8(bytes).unwrap_or_else(|_| "\u{fffd}".repeat(length))
    }

    fn print_stripped(&mut self, strip: Option<(char, usize)>, text: &str, out: &mut String) {
        let mut text = text;
        if let Some((character, most)) = strip {
            if !std::mem::replace(&mut self.started, true) {
                self.stripped = Some(0);
            }
            while let Some(count) = self.stripped {
                match text.strip_prefix(character) {
                    Some(rest) if count < most => {
                        text = rest;
                        self.stripped = Some(count + 1);
                    }
                    None if text.is_empty() => break,
                    _ => self.stripped = None,
                }
            }
        }
        out.push_str(text);
    }
}

/// The bytes that one U+FFFD replaces.
#[derive(Clone, Copy)]
enum Invalid {
    /// One byte (SentencePiece).
    Byte,
    /// The longest prefix of a character (Rust, the `tokenizers` crate).
    Sequence,
}

/// `str::replace` on streamed text: a possible start of a match is held back.
#[derive(Debug)]
struct Replacer {
    from: &'static str,
    to: &'static str,
    held: String,
}

impl Replacer {
    fn new(&(from, to): &(&'static str, &'static str)) -> Self {
        Self { from, to, held: String::new() }
    }

    fn push(&mut self, text: &str, last: bool) -> String {
        self.held.push_str(text);
        // The end of the last match that a scan from the left makes.
        let replaced_to = self.held.match_indices(self.from).last().map_or(0, |(start, found)| start + found.len());
        let tail = self.held.get(replaced_to..).unwrap_or_default();
        let keep = if last {
            0
        } else {
            (1..self.from.len()).rev().find(|&length| tail.ends_with(&self.from[..length])).unwrap_or(0)
        };
        let held = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, held).replace(self.from, self.to)
    }
}
