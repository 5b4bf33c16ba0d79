//! Scores open questions as MMMU's evaluation does: compares an answer's conclusions, and the numbers in them, with the
//! ground truth.

use std::sync::LazyLock;

use fancy_regex::Regex;

/// Words that precede a conclusion.
const INDICATORS: [&str; 8] = ["could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result "];
/// Precedes a conclusion in the last sentence, which may be an equation.
const EQUALS: &str = "=";
/// Not a conclusion.
const TRIVIAL: [&str; 7] = [":", ",", ".", "!", "?", ";", "'"];

/// Numbers with commas, in scientific notation, and plain numbers. The last pattern needs lookahead, hence
/// `fancy_regex`.
static NUMBERS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let patterns = [
        r"-?\b\d{1,3}(?:,\d{3})+\b",
        r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
        r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
    ];
    patterns.iter().map(|pattern| Regex::new(pattern).expect("a valid pattern")).collect()
});

/// A value to compare.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Number(f64),
    Text(String),
}

/// Whether the answer contains one of the expected answers.
pub fn is_correct(expected: &[String], answer: &str) -> bool {
    let expected: Vec<Value> = expected.iter().flat_map(|text| values(text)).collect();
    let conclusions = conclusions(answer);
    let numbers = conclusions.iter().flat_map(|text| numbers(text));
    let found: Vec<Value> = conclusions.iter().cloned().chain(numbers).flat_map(|text| values(&text)).collect();
    found.iter().any(|value| match value {
        Value::Number(_) => expected.contains(value),
        Value::Text(text) => expected.iter().any(|value| matches!(value, Value::Text(part) if text.contains(part))),
    })
}

/// For every sentence the shortest text after an indicator; the whole answer if there is none.
fn conclusions(answer: &str) -> Vec<String> {
    let answer = answer.trim().trim_matches('.').to_lowercase();
    // The original splits sentences at capitals but lowers the case first, so only lines are split.
    let lines: Vec<&str> = answer.split('\n').collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let indicators = INDICATORS.iter().chain((index + 1 == lines.len()).then_some(&EQUALS));
        let ends = indicators.filter_map(|indicator| Some(line.rsplit_once(indicator)?.1.trim()));
        // The first of the shortest; an empty one only if there is no other.
        let shortest = ends.fold("", |shortest, end| {
            if shortest.is_empty() || end.chars().count() < shortest.chars().count() { end } else { shortest }
        });
        if !shortest.is_empty() && !TRIVIAL.contains(&shortest) {
            found.push(shortest.to_owned());
        }
    }
    if found.is_empty() { vec![answer] } else { found }
}

fn numbers(text: &str) -> Vec<String> {
    let of = |pattern: &Regex| -> Vec<String> {
        pattern.find_iter(text).filter_map(|found| Some(found.ok()?.as_str().to_owned())).collect()
    };
    NUMBERS.iter().flat_map(of).collect()
}

/// A number rounded to two decimals, or a text in lower case. A single letter gets a space before or after it, since
/// almost every text contains it.
fn values(text: &str) -> Vec<Value> {
    let text = text.trim();
    if let Some(number) = number(&text.replace(',', "")) {
        return vec![Value::Number(round(number))];
    }
    let text = text.to_lowercase();
    match text.chars().count() {
        1 => vec![Value::Text(format!(" {text}")), Value::Text(format!("{text} "))],
        _ => vec![Value::Text(text)],
    }
}

/// Parses what Python's float() accepts, including "1_000", "inf" and "nan".
fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    let joins = |index: usize| {
        let digit = |c: Option<&u8>| c.is_some_and(u8::is_ascii_digit);
        index > 0 && digit(text.as_bytes().get(index - 1)) && digit(text.as_bytes().get(index + 1))
    };
    if !text.match_indices('_').all(|(index, _)| joins(index)) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// Rounds to two decimals as Python does: half to even, on the exact value.
fn round(number: f64) -> f64 {
    // Formatting rounds the exact value too.
    format!("{number:.2}").parse().unwrap_or(number)
}
