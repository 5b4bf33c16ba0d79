//! The protocol by which a model asks for a picture: ` <GEN>` after the question, `<h>prompt</h>` in the answer. The tags
//! are ordinary text, not tokens.

/// What is appended to a question to ask for a picture.
pub const REQUEST: &str = " <GEN>";

/// The picture prompt in an answer: the text before the last `</h>` and after the last `<h>` before that, trimmed. `None`
/// if there is none, which is frequent with the small models.
pub fn prompt(answer: &str) -> Option<&str> {
    let (before, _) = answer.rsplit_once("</h>")?;
    let (_, prompt) = before.rsplit_once("<h>")?;
    Some(prompt.trim()).filter(|prompt| !prompt.is_empty())
}

#[cfg(test)]
mod tests {
    use super::prompt;

    #[test]
    fn the_last_pair_counts() {
        assert_eq!(prompt("Here: <h>a cat</h> or <h> a dog </h>!"), Some("a dog"));
        assert_eq!(prompt("<h><h>a cat</h> <h>cut off"), Some("a cat"));
        assert_eq!(prompt("no tags"), None);
        assert_eq!(prompt("</h>a cat<h>"), None);
        assert_eq!(prompt("<h> </h>"), None);
    }
}
