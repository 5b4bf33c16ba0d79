//! Weights in image prompts, as AUTOMATIC1111's web UI and diffusers' long-prompt community pipelines read them:
//!
//! ```text
//! (word)  1.1 times the weight       (word:1.3)  1.3 times       [word]  1 / 1.1 times
//! \( \) \[ \] \\  the character      BREAK       the next word starts a new chunk of the text encoders' window
//! ```
//!
//! Brackets nest, and an open bracket without its partner extends to the end.

use std::str::FromStr;

use serde::Serialize;

use crate::{Error, Result};

/// The factor of a round bracket without a number. A square bracket divides by it.
const BRACKET: f64 = 1.1;

/// Whether prompts are read with weights, and encoded in chunks if they are long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptWeights {
    /// As in diffusers' own pipelines: brackets are text, and the end of a long prompt is cut off.
    Off,
    /// Brackets are weights, and a long prompt is encoded in chunks.
    On,
    /// On if a prompt has a bracket with a number: `(word:1.3)`.
    #[default]
    Auto,
}

impl FromStr for PromptWeights {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::On),
            "auto" => Ok(Self::Auto),
            _ => Err(Error::Unsupported {
                what: "prompt weights".to_owned(),
                found: text.to_owned(),
                supported: "on, off, auto".to_owned(),
            }),
        }
    }
}

/// A part of a prompt with one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Fragment {
    /// The text, without brackets and escapes.
    pub text: String,
    /// Its weight.
    pub weight: f64,
}

/// A prompt in parts.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedPrompt {
    /// The parts of each section. `BREAK` separates sections.
    pub sections: Vec<Vec<Fragment>>,
    /// Whether a bracket has a number.
    pub has_numbers: bool,
}

/// A fragment, or the end of a section.
enum Piece {
    Text(Fragment),
    Break,
}

impl Piece {
    /// Whether the text has a character that is not a digit.
    fn has_words(&self) -> bool {
        matches!(self, Self::Text(fragment) if fragment.text.contains(|c: char| !c.is_ascii_digit()))
    }
}

impl WeightedPrompt {
    /// Parses a prompt. Every text is valid.
    pub fn parse(prompt: &str) -> Self {
        let mut pieces: Vec<Piece> = Vec::new();
        // The first piece inside each open bracket.
        let (mut round, mut square) = (Vec::new(), Vec::new());
        let mut has_numbers = false;
        let mut rest = prompt;
        while let Some(first) = rest.chars().next() {
            let after = &rest[first.len_utf8()..];
            let mut text = &rest[..first.len_utf8()];
            match first {
                '\\' => {
                    let escaped = after.chars().next().filter(|next| r"()[]\".contains(*next));
                    // A backslash before anything else vanishes.
                    text = &after[..escaped.map_or(0, char::len_utf8)];
                    pieces.push(plain(text));
                    rest = &after[text.len()..];
                    continue;
                }
                '(' => round.push(pieces.len()),
                '[' => square.push(pieces.len()),
                ':' | ')' | ']' => {
                    let number = if first == ':' { number(after) } else { None };
                    text = &rest[..text.len() + number.map_or(0, |(length, _)| length)];
                    let (start, factor) = match (first, number) {
                        (':', Some((_, number))) => (round.pop(), number),
                        (')', _) => (round.pop(), BRACKET),
                        (']', _) => (square.pop(), 1.0 / BRACKET),
                        _ => (None, 1.0),
                    };
                    match start {
                        Some(start) => {
                            // A ratio such as (16:9) does not turn weights on.
                            has_numbers |= number.is_some() && pieces[start..].iter().any(Piece::has_words);
                            multiply(&mut pieces[start..], factor);
                        }
                        None => pieces.push(plain(text)),
                    }
                }
                _ => {
                    text = &rest[..rest.find([':', '(', ')', '[', ']', '\\']).unwrap_or(rest.len())];
                    split_at_breaks(text, &mut pieces);
                }
            }
            rest = &rest[text.len()..];
        }
        for start in round {
            multiply(&mut pieces[start..], BRACKET);
        }
        for start in square {
            multiply(&mut pieces[start..], 1.0 / BRACKET);
        }
        Self { sections: sections(pieces), has_numbers }
    }
}

fn plain(text: &str) -> Piece {
    Piece::Text(Fragment { text: text.to_owned(), weight: 1.0 })
}

fn multiply(pieces: &mut [Piece], factor: f64) {
    for piece in pieces {
        if let Piece::Text(fragment) = piece {
            fragment.weight *= factor;
        }
    }
}

/// The number at the start of `text` and its length, including the bracket that must follow.
fn number(text: &str) -> Option<(usize, f64)> {
    let end = text.find(')')?;
    let digits = text[..end].strip_prefix(['+', '-']).unwrap_or(&text[..end]);
    let only_digits = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    Some((end + 1, text[..end].parse().ok().filter(|_| only_digits)?))
}

/// Appends a text without special characters. The word BREAK, with the white space around it, ends a section.
fn split_at_breaks(text: &str, pieces: &mut Vec<Piece>) {
    const BREAK: &str = "BREAK";
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    let mut start = 0;
    for (place, _) in text.match_indices(BREAK) {
        let end = place + BREAK.len();
        if text[..place].ends_with(is_word) || text[end..].starts_with(is_word) {
            continue;
        }
        pieces.push(plain(text[start..place].trim_end()));
        pieces.push(Piece::Break);
        start = end + text[end..].len() - text[end..].trim_start().len();
    }
    pieces.push(plain(&text[start..]));
}

/// Merges neighbours of equal weight, so that a word that brackets divide is one word to the tokenizer.
fn sections(pieces: Vec<Piece>) -> Vec<Vec<Fragment>> {
    let mut sections: Vec<Vec<Fragment>> = vec![Vec::new()];
    for piece in pieces {
        match (piece, sections.last_mut()) {
            (Piece::Text(fragment), Some(section)) => match section.last_mut() {
                #[expect(clippy::float_cmp, reason = "equal products of the same factors")]
                Some(last) if last.weight == fragment.weight => last.text.push_str(&fragment.text),
                _ => section.push(fragment),
            },
            _ => sections.push(Vec::new()),
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<Vec<(String, f64)>> {
        let section = |section: Vec<Fragment>| section.into_iter().map(|part| (part.text, part.weight)).collect();
        WeightedPrompt::parse(text).sections.into_iter().map(section).collect()
    }

    /// Prompts with their parts by `tests/reference/prompt_weights.py`.
    #[test]
    fn prompts_have_the_parts_of_the_reference() {
        #[derive(serde::Deserialize)]
        struct Case {
            prompt: String,
            sections: Vec<Vec<(String, f64)>>,
        }
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../tests/data/diffusion/prompt_weights.json")).unwrap();
        assert!(cases.len() > 20);
        for Case { prompt, sections } in cases {
            let found = parse(&prompt);
            let texts = |sections: &[Vec<(String, f64)>]| -> Vec<Vec<String>> {
                sections.iter().map(|section| section.iter().map(|(text, _)| text.clone()).collect()).collect()
            };
            assert_eq!(texts(&found), texts(&sections), "{prompt:?}");
            // The last bit of a number in JSON is not exact.
            let pairs = found.iter().flatten().zip(sections.iter().flatten());
            for ((_, weight), (_, expected)) in pairs {
                assert!((weight - expected).abs() < 1e-12, "{prompt:?}: {weight}, expected {expected}");
            }
        }
    }

    #[test]
    fn only_numbers_turn_weights_on() {
        for (text, expected) in [
            ("(a:1.2)", true),
            ("((a:.5))", true),
            ("(a:+2)", true),
            ("(a)", false),
            ("a:1.2)", false),
            ("(a: 1.2)", false),
            (r"\(a:1.2\)", false),
            ("[a:1.2]", false),
            ("(a:1.2.3)", false),
            ("ratio (16:9), (two:2)", true),
            ("ratio (16:9)", false),
        ] {
            assert_eq!(WeightedPrompt::parse(text).has_numbers, expected, "{text}");
        }
    }
}
