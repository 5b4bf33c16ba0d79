//! A tokenizer around a SentencePiece model that behaves as transformers' slow and fast classes do.

use std::collections::HashSet;

use super::added_tokens::{AddedTokens, Segment};
use super::{AffixTokens, Encoder, Family, Tokenizer};
use crate::Result;
use crate::text::decode::{Decoder, DecoderKind, SentencePieceRules, TokenTable, TokenText};
use crate::text::prompt::DataSpan;
use crate::text::sentencepiece::{Model, PieceKind, SPACE};
use crate::text::tokenizer_config::{AddedToken, TokenizerConfig};

/// The three ways in which transformers uses a SentencePiece model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Slow, `legacy=true`, and Gemma: SentencePiece encodes each segment between special tokens by itself.
    PerSegment,
    /// Slow, `legacy=false`: one leading space for the whole text, none after a special token.
    Once {
        /// `add_prefix_space`.
        prefix: bool,
    },
    /// Fast, converted from the model: every segment gets a leading space; spaces are replaced, never dropped.
    Converted,
}

#[derive(Debug)]
pub(super) struct SentencePiece {
    model: Model,
    mode: Mode,
    affixes: AffixTokens,
    pub(super) added: AddedTokens,
    /// The model's user-defined pieces that are not added tokens: SentencePiece finds them.
    user_defined: AddedTokens,
    /// The unknown token's text and the number of ids that it encodes to by itself (for [`Mode::Once`]).
    guard: (String, usize),
    /// Special tokens: a text that begins with one gets no leading space.
    special: HashSet<u32>,
}

impl Tokenizer {
    /// A SentencePiece tokenizer from a GGUF file: each segment between special tokens is encoded by itself, as in
    /// llama.cpp.
    pub(in crate::text) fn from_pieces(model: Model, config: &TokenizerConfig) -> Result<Self> {
        Self::from_model(model, config, Family::Gguf)
    }

    pub(super) fn from_model(mut model: Model, config: &TokenizerConfig, family: Family) -> Result<Self> {
        let piece = |id: Option<u32>| id.and_then(|id| model.pieces().get(id as usize)).map(|piece| piece.text.clone());
        let unknown = piece(Some(model.unknown()));
        let role = |role: &str, default: Option<String>| config.role(role).map(str::to_owned).or(default);
        let (bos, eos, unknown) = (
            role("bos_token", piece(model.bos())),
            role("eos_token", piece(model.eos())),
            role("unk_token", unknown).unwrap_or_default(),
        );

        // The added tokens with their ids: the listed ones, then special tokens without an id, at the end.
        let mut added = config.added.clone();
        let mut special_texts: Vec<&str> = Vec::new();
        special_texts.extend(bos.as_deref());
        special_texts.extend(eos.as_deref());
        special_texts.push(&unknown);
        special_texts.extend(config.special_texts());
        if family == Family::Mixtral {
            // The conversion to a fast tokenizer makes control and user-defined pieces added tokens.
            for (id, piece) in model.pieces().iter().enumerate() {
                if matches!(piece.kind, PieceKind::Control | PieceKind::UserDefined) {
                    let token =
                        AddedToken { special: piece.kind == PieceKind::Control, ..AddedToken::special(&*piece.text) };
                    added.entry(id as u32).or_insert(token);
                }
            }
        }
        let mut next = model.pieces().len() as u32;
        next = next.max(added.keys().next_back().map_or(0, |last| last.saturating_add(1)));
        let mut special = HashSet::new();
        for text in special_texts {
            if text.is_empty() {
                continue;
            }
            let listed = added.iter().find(|(_, token)| token.content == text).map(|(&id, _)| id);
            let id = listed.or_else(|| model.id(text)).unwrap_or_else(|| {
                next = next.saturating_add(1);
                next - 1
            });
            added.entry(id).or_insert_with(|| AddedToken::special(text));
            special.insert(id);
        }
        if matches!(family, Family::Mixtral | Family::Gguf) {
            special.extend(added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id));
        }

        let legacy = config.legacy.unwrap_or(true);
        let prefix = config.add_prefix_space.unwrap_or(true);
        let mode = match family {
            Family::Mixtral => Mode::Converted,
            Family::Llama if !legacy => Mode::Once { prefix },
            Family::Llama | Family::Gemma | Family::Gguf => Mode::PerSegment,
        };

        let mut units = TokenTable::with_capacity(model.pieces().len());
        for (id, piece) in model.pieces().iter().enumerate() {
            let text = &*piece.text;
            let unit = match &piece.kind {
                PieceKind::Byte(byte) => TokenText::Bytes(std::slice::from_ref(byte)),
                _ if mode == Mode::Converted => TokenText::Text { text: &with_spaces(text), unprefixed_is_piece: true },
                PieceKind::Control => TokenText::Control(text),
                PieceKind::Unknown => TokenText::Unknown(text),
                PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused => {
                    let unprefixed_is_piece = text.strip_prefix(SPACE).is_some_and(|rest| model.id(rest).is_some());
                    TokenText::Text { text, unprefixed_is_piece }
                }
            };
            units.insert(id as u32, unit);
        }
        for (&id, token) in &added {
            // User-defined tokens of GGUF files (Gemma's runs of spaces) decode as ordinary text.
            let text = &*token.content;
            let plain = family == Family::Gguf && !token.special;
            units.insert(
                id,
                if plain { TokenText::Text { text, unprefixed_is_piece: true } } else { TokenText::Added(text) },
            );
        }
        let style = match mode {
            Mode::Converted => DecoderKind::ByteFallback { strip: Some((' ', 1)) },
            mode => DecoderKind::SentencePiece(SentencePieceRules {
                drop_first_space: matches!(family, Family::Llama | Family::Gguf) && prefix,
                drop_dummy_prefix: mode == Mode::PerSegment && model.normalizer.add_dummy_prefix,
                remove_extra_whitespaces: model.normalizer.remove_extra_whitespaces,
                space_around_added: family == Family::Llama,
                legacy: matches!(family, Family::Llama | Family::Gguf) && legacy,
                unknown_surface: model.unknown_surface().to_owned(),
            }),
        };

        // Control tokens are found in the template's text before the model encodes the rest.
        special.iter().for_each(|&id| model.reserve(id));
        let user_defined = model
            .pieces()
            .iter()
            .enumerate()
            .filter(|(id, piece)| piece.kind == PieceKind::UserDefined && !added.contains_key(&(*id as u32)));
        let ordinary = |text: &str| AddedToken { special: false, ..AddedToken::special(text) };
        let user_defined = AddedTokens::new(user_defined.map(|(id, piece)| (id as u32, ordinary(&piece.text))));
        let added = AddedTokens::new(added.into_iter().map(|(id, token)| {
            let special = token.special || special.contains(&id);
            (id, AddedToken { special, ..token })
        }));
        let id_of = |text: &String| added.id(text).or_else(|| model.id(text));
        let (bos, eos) = (bos.as_ref().and_then(id_of), eos.as_ref().and_then(id_of));
        let affixes = AffixTokens {
            before: bos.filter(|_| config.add_bos_token.unwrap_or(true)),
            after: eos.filter(|_| config.add_eos_token.unwrap_or(false)),
        };
        let guard = match mode {
            Mode::Once { .. } => (unknown.clone(), model.encode_without_prefix(&unknown).len()),
            _ => Default::default(),
        };
        let encoder = SentencePiece { added, user_defined, model, mode, affixes, guard, special: special.clone() };
        Ok(Self {
            encoder: Encoder::SentencePiece(Box::new(encoder)),
            decoder: Decoder { units, special, kind: style, clean_up: config.clean_up_tokenization_spaces },
            bos,
            eos,
            special_tokens: config.roles.clone(),
            additional_special_tokens: config.additional.clone(),
            vocab_size: next as usize,
        })
    }
}

impl SentencePiece {
    /// The id of an added token or a piece by its text.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.added.id(text).or_else(|| self.model.id(text))
    }

    /// As [`AddedTokens::add_markers`].
    pub(super) fn add_markers(&mut self, template: &str) -> Vec<&str> {
        let markers = self.added.add_markers(template);
        for text in &markers {
            if let Some(id) = self.model.id(text) {
                self.model.reserve(id);
            }
        }
        markers.into_iter().chain(self.user_defined.add_markers(template)).collect()
    }

    /// The ids of a text. Control tokens in `data` are text.
    pub(super) fn encode(&self, text: &str, data: &[DataSpan]) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        ids.extend(self.affixes.before);
        match self.mode {
            Mode::PerSegment => {
                self.added.split(text, data, |offset, segment| match segment {
                    Segment::Token(id) => ids.push(id),
                    Segment::Text(text) => {
                        self.encode_part(text, offset, data, &mut ids, |text| self.model.encode(text))
                    }
                });
            }
            Mode::Converted => {
                self.added.split(text, data, |offset, segment| match segment {
                    Segment::Token(id) => ids.push(id),
                    Segment::Text(text) => self.encode_part(text, offset, data, &mut ids, |text| {
                        let mut normalized = String::with_capacity(text.len() + 8);
                        normalized.push(SPACE);
                        normalized.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
                        self.model.encode_normalized(&normalized)
                    }),
                });
            }
            Mode::Once { prefix } => self.encode_once(text, data, prefix, &mut ids),
        }
        ids.extend(self.affixes.after);
        ids
    }

    fn encode_once(&self, text: &str, data: &[DataSpan], prefix: bool, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let mut prepared = String::with_capacity(text.len() + 3);
        if prefix {
            prepared.push(SPACE);
        }
        prepared.extend(text.chars().map(|c| if c == SPACE { ' ' } else { c }));
        // A replaced character becomes shorter.
        let shift = |at: usize| {
            let replaced = text[..at].matches(SPACE).count() * (SPACE.len_utf8() - 1);
            at - replaced + if prefix { SPACE.len_utf8() } else { 0 }
        };
        let data: Vec<DataSpan> = data
            .iter()
            .map(|span| DataSpan { range: shift(span.range.start)..shift(span.range.end), author: span.author })
            .collect();
        let lone_space = self.model.id("\u{2581}");
        let start = ids.len();
        self.added.split(&prepared, &data, |offset, segment| match segment {
            Segment::Token(id) => {
                // A text that begins with a special token loses the leading space again.
                if self.special.contains(&id) && ids.len() == start + 1 && ids.last().copied() == lone_space {
                    ids.truncate(start);
                }
                ids.push(id);
            }
            Segment::Text(text) => self.encode_part(text, offset, &data, ids, |text| {
                if !text.starts_with([SPACE, ' ']) {
                    return self.model.encode_without_prefix(text);
                }
                // SentencePiece would drop a leading space; after the unknown token's text it stays.
                let (unknown, length) = &self.guard;
                let mut encoded = self.model.encode_without_prefix(&format!("{unknown}{text}"));
                encoded.drain(..*length.min(&encoded.len()));
                encoded
            }),
        });
    }

    /// Encodes a part of a text at `offset`, by `encode`. Cuts markers in data, so that SentencePiece does not find
    /// them.
    fn encode_part(
        &self,
        text: &str,
        offset: usize,
        data: &[DataSpan],
        ids: &mut Vec<u32>,
        encode: impl Fn(&str) -> Vec<u32>,
    ) {
        let here = |span: &DataSpan| {
            let range = span.range.start.saturating_sub(offset)..span.range.end.saturating_sub(offset).min(text.len());
            (!range.is_empty()).then_some(DataSpan { range, author: span.author })
        };
        let data: Vec<DataSpan> = data.iter().filter_map(here).collect();
        let mut start = 0;
        for at in self.user_defined.in_data(text, &data) {
            let cut = at + text[at..].chars().next().map_or(0, char::len_utf8);
            let part = &text[start..cut];
            ids.extend(if start == 0 { encode(part) } else { self.model.encode_without_prefix(part) });
            start = cut;
        }
        let rest = &text[start..];
        ids.extend(if start == 0 { encode(rest) } else { self.model.encode_without_prefix(rest) });
    }
}

fn with_spaces(text: &str) -> String {
    text.chars().map(|c| if c == SPACE { ' ' } else { c }).collect()
}
