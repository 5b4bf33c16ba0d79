//! The file names after a command, as a shell reads them.

use std::path::{Path, PathBuf};

use crate::files::{home, with_home};

/// The files that a text names: separated by white space, with quotes, with `\\` before a character that stands for
/// itself (not on Windows, where it separates folders), and with `~` for the home folder. A text that is the name of a
/// file as it stands is one name.
///
/// # Errors
/// A message if a quote is not closed.
pub fn file_names(text: &str) -> Result<Vec<PathBuf>, String> {
    let text = text.trim();
    if Path::new(text).is_file() {
        return Ok(vec![text.into()]);
    }
    let words = words(text, !cfg!(windows))?;
    let home = home(|name| std::env::var_os(name));
    let path = |(word, quoted): (String, bool)| with_home(&word, home.as_deref().filter(|_| !quoted));
    Ok(words.into_iter().map(path).collect())
}

/// Words, and whether they begin with a quote or a `\\`.
fn words(text: &str, escapes: bool) -> Result<Vec<(String, bool)>, String> {
    let mut words = Vec::new();
    let mut word: Option<(String, bool)> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert((String::new(), true));
            }
            (Some(open), c) if c == open => quote = None,
            (None | Some('"'), '\\') if escapes => {
                let (word, _) = word.get_or_insert((String::new(), true));
                word.push(characters.next().unwrap_or('\\'));
            }
            (_, c) => word.get_or_insert((String::new(), false)).0.push(c),
        }
    }
    match quote {
        Some(quote) => Err(format!("a quote is not closed: expected another {quote}")),
        None => Ok(words.into_iter().chain(word).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_read_as_in_a_shell() {
        let read =
            |text: &str| -> Vec<String> { words(text, true).expect(text).into_iter().map(|(word, _)| word).collect() };
        assert_eq!(read("a.png"), ["a.png"]);
        assert_eq!(read("  a.png\tb.png "), ["a.png", "b.png"]);
        assert_eq!(read(r#""my cat.png" 'it is "b".png'"#), ["my cat.png", "it is \"b\".png"]);
        assert_eq!(read(r"my\ cat.png a\\b \~x"), ["my cat.png", r"a\b", "~x"]);
        assert_eq!(read(r#""a\"b"'c'd"#), [r#"a"bcd"#]);
        assert_eq!(read(r"'a\b'"), [r"a\b"]);
        assert_eq!(words(r"C:\a b", false), Ok(vec![(r"C:\a".to_owned(), false), ("b".to_owned(), false)]));
        assert!(words("'a b", true).expect_err("a message").contains('\''));
    }

    #[test]
    fn a_tilde_is_the_home_folder_unless_quoted() {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        if let Some(home) = home.filter(|home| !home.as_os_str().is_empty()) {
            assert_eq!(file_names("~/a.png ~"), Ok(vec![home.join("a.png"), home]));
        }
        assert_eq!(file_names("'~/a.png' ~user/b a~"), Ok(["~/a.png", "~user/b", "a~"].map(PathBuf::from).to_vec()));
    }
}
