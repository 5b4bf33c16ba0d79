//! Finds the option that an answer names, as MMMU's evaluation does.

/// Punctuation stripped from both ends, one character after the other.
const PUNCTUATION: [char; 7] = [',', '.', '!', '?', ';', ':', '\''];
/// An answer with more words than this may name an option by its text.
const MIN_WORDS: usize = 5;

/// The letter of an option.
pub fn letter(option: usize) -> String {
    char::from_u32('A' as u32 + option as u32).map(String::from).unwrap_or_default()
}

/// The option whose letter starts the answer, followed by punctuation: "B. blue".
pub fn leading(options: &[String], answer: &str) -> Option<usize> {
    let rest = |option: &usize| answer.trim_start().strip_prefix(&letter(*option));
    (0..options.len()).find(|option| rest(option).is_some_and(|rest| rest.starts_with(['.', ')', ':', ','])))
}

/// The option that an answer names: "(B)", else "B" as a word, else, in a longer answer, by its text. The last one
/// counts. `None` if the answer names none.
pub fn named(options: &[String], answer: &str) -> Option<usize> {
    let mut answer = answer;
    for character in PUNCTUATION {
        answer = answer.trim_matches(character);
    }
    let answer = format!(" {answer} ");
    let last = |text: &str, name: &dyn Fn(usize) -> String| {
        let positions = (0..options.len()).filter_map(|option| Some((text.rfind(&name(option))?, option)));
        // For equal positions the first option, as numpy's argmax.
        positions
            .fold(None, |best: Option<(usize, usize)>, next| Some(best.filter(|best| best.0 >= next.0).unwrap_or(next)))
    };
    let by_text = || {
        let lower = answer.to_lowercase();
        let long = answer.split_whitespace().count() > MIN_WORDS;
        long.then(|| last(&lower, &|option| options[option].to_lowercase())).flatten()
    };
    let found = last(&answer, &|option| format!("({})", letter(option)))
        .or_else(|| last(&answer, &|option| format!(" {} ", letter(option))))
        .or_else(by_text);
    found.map(|(_, option)| option)
}
