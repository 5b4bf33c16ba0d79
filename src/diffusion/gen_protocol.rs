//! The language model's side of drawing: how it is asked for a picture, and how its answer says which.
//!
//! ` <GEN>` behind the question asks for one; the answer then has a prompt between `<h>` and `</h>`. Where there is no such pair,
//! there is no picture.

/// What is put behind a question to ask for a picture.
pub const REQUEST: &str = " <GEN>";

/// What pictures should not be, as the reference tells Stable Diffusion XL.
pub const NEGATIVE_PROMPT: &str = "out of frame, lowres, text, error, cropped, worst quality, low quality, jpeg artifacts, ugly, duplicate, morbid, mutilated, out of frame, extra fingers, mutated hands, poorly drawn hands, poorly drawn face, mutation, deformed, blurry, dehydrated, bad anatomy, bad proportions, extra limbs, cloned face, disfigured, gross proportions, malformed limbs, missing arms, missing legs, extra arms, extra legs, fused fingers, too many fingers, long neck, username, watermark, signature";

const BEGIN: &str = "<h>";
const END: &str = "</h>";

/// Whether a question asks for a picture by itself: the reference's page looks for the word "generate" in it.
pub fn wants_image(question: &str) -> bool {
    question.to_lowercase().contains("generate")
}

/// The question with the request for a picture behind it.
pub fn with_image_request(question: &str) -> String {
    if question.trim_end().ends_with(REQUEST.trim_start()) {
        question.to_owned()
    } else {
        format!("{question}{REQUEST}")
    }
}

/// The prompt in an answer: between the last `</h>` and the last `<h>` before it.
pub fn image_prompt(answer: &str) -> Option<&str> {
    let (before, _) = answer.rsplit_once(END)?;
    let (_, prompt) = before.rsplit_once(BEGIN)?;
    let prompt = prompt.trim();
    (!prompt.is_empty()).then_some(prompt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pair_counts() {
        for (answer, prompt) in [
            ("Here: <h>a cat</h>", Some("a cat")),
            ("<h> one </h> or <h>\ntwo\n</h> then", Some("two")),
            ("<h>nested <h>inner</h>", Some("inner")),
            ("<h>a</h> b</h>", Some("a</h> b")),
            ("</h><h>turned round", None),
            ("<h>open", None),
            ("closed</h>", None),
            ("<h>  </h>", None),
            ("", None),
        ] {
            assert_eq!(image_prompt(answer), prompt, "{answer:?}");
        }
    }

    #[test]
    fn requests_are_put_behind_once() {
        assert_eq!(with_image_request("Draw it."), "Draw it. <GEN>");
        assert_eq!(with_image_request("Draw it. <GEN>"), "Draw it. <GEN>");
        assert!(wants_image("Please GENERATE a cat") && !wants_image("What is this?"));
    }
}
