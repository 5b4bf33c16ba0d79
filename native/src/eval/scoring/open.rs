//! Open questions, as MMMU's evaluation marks them: an answer's conclusions and the numbers in them, against what is right.

use std::sync::LazyLock;

use fancy_regex::Regex;

/// Words before a conclusion.
const INDICATORS: [&str; 8] = ["could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result "];
/// The same in an answer's last sentence, which may be an equation.
const EQUALS: &str = "=";
/// What is no conclusion.
const TRIVIAL: [&str; 7] = [":", ",", ".", "!", "?", ";", "'"];

/// Numbers with commas, in scientific notation, and plain ones.
static NUMBERS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let patterns = [
        r"-?\b\d{1,3}(?:,\d{3})+\b",
        r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
        r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
    ];
    patterns.iter().map(|pattern| Regex::new(pattern).expect("the pattern is one")).collect()
});

/// What can be compared.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Number(f64),
    Text(String),
}

/// Whether one of the right answers is in the answer.
pub fn is_right(right: &[String], answer: &str) -> bool {
    let right: Vec<Value> = right.iter().flat_map(|right| values(right)).collect();
    let said = conclusions(answer);
    let numbers = said.iter().flat_map(|text| numbers(text));
    let said: Vec<Value> = said.iter().cloned().chain(numbers).flat_map(|text| values(&text)).collect();
    said.iter().any(|said| match said {
        Value::Number(_) => right.contains(said),
        Value::Text(said) => right.iter().any(|right| matches!(right, Value::Text(right) if said.contains(right))),
    })
}

/// Of every sentence the shortest end behind an indicator; the whole answer if there are none.
fn conclusions(answer: &str) -> Vec<String> {
    let answer = answer.trim().trim_matches('.').to_lowercase();
    // In lower case no sentence begins with a capital, so that lines alone are told apart: as in the original.
    let lines: Vec<&str> = answer.split('\n').collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let indicators = INDICATORS.iter().chain((index + 1 == lines.len()).then_some(&EQUALS));
        let ends = indicators.filter_map(|indicator| Some(line.rsplit_once(indicator)?.1.trim()));
        // The first of the shortest; an empty one only until there is another.
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

/// A number, rounded to two decimals, or a text in lower case; a single letter with a space before or behind it, since it is
/// in almost everything.
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

/// What Python's float() takes: also "1_000", "inf" and "nan".
fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    let joins = |place: usize| {
        let digit = |c: Option<&u8>| c.is_some_and(u8::is_ascii_digit);
        place > 0 && digit(text.as_bytes().get(place - 1)) && digit(text.as_bytes().get(place + 1))
    };
    if !text.match_indices('_').all(|(place, _)| joins(place)) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// To two decimals, halves of the exact value to even, as Python rounds.
fn round(number: f64) -> f64 {
    // Formatting works on the exact value too.
    format!("{number:.2}").parse().unwrap_or(number)
}
