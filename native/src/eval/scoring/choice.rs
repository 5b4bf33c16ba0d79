//! Which option an answer names, as MMMU's evaluation finds it.

/// Signs that are stripped from both ends, one kind after another.
const SIGNS: [char; 7] = [',', '.', '!', '?', ';', ':', '\''];
/// An answer of more words than this may name an option by its text.
const WORDS: usize = 5;

/// The letter of an option.
pub fn letter(option: usize) -> String {
    char::from_u32('A' as u32 + option as u32).map(String::from).unwrap_or_default()
}

/// The option whose letter an answer begins with, a sign behind it: "B. blue".
pub fn leading(options: &[String], answer: &str) -> Option<usize> {
    let rest = |option: &usize| answer.trim_start().strip_prefix(&letter(*option));
    (0..options.len()).find(|option| rest(option).is_some_and(|rest| rest.starts_with(['.', ')', ':', ','])))
}

/// The option that an answer names: "(B)", else "B" by itself, else, in a longer answer, by its text. Of several the one that
/// comes last. `None` if it names none.
pub fn chosen(options: &[String], answer: &str) -> Option<usize> {
    let mut answer = answer;
    for sign in SIGNS {
        answer = answer.trim_matches(sign);
    }
    let answer = format!(" {answer} ");
    let last = |text: &str, name: &dyn Fn(usize) -> String| {
        let places = (0..options.len()).filter_map(|option| Some((text.rfind(&name(option))?, option)));
        // Of the same place the first option, as numpy's argmax.
        places
            .fold(None, |best: Option<(usize, usize)>, next| Some(best.filter(|best| best.0 >= next.0).unwrap_or(next)))
    };
    let by_text = || {
        let lower = answer.to_lowercase();
        let long = answer.split_whitespace().count() > WORDS;
        long.then(|| last(&lower, &|option| options[option].to_lowercase())).flatten()
    };
    let found = last(&answer, &|option| format!("({})", letter(option)))
        .or_else(|| last(&answer, &|option| format!(" {} ", letter(option))))
        .or_else(by_text);
    found.map(|(_, option)| option)
}
