//! Image requests in a conversation: how a question requests an image, and how the answer describes it.
//!
//! A question with the suffix ` <GEN>` requests an image; the answer then has the image's prompt between `<h>` and
//! `</h>`. An answer without such a pair requests no image.

/// The suffix of a question that requests an image.
pub const REQUEST: &str = " <GEN>";

/// The reference's negative prompt for images in answers.
pub const NEGATIVE_PROMPT: &str = "out of frame, lowres, text, error, cropped, worst quality, low quality, jpeg artifacts, ugly, duplicate, morbid, mutilated, out of frame, extra fingers, mutated hands, poorly drawn hands, poorly drawn face, mutation, deformed, blurry, dehydrated, bad anatomy, bad proportions, extra limbs, cloned face, disfigured, gross proportions, malformed limbs, missing arms, missing legs, extra arms, extra legs, fused fingers, too many fingers, long neck, username, watermark, signature";

const BEGIN: &str = "<h>";
const END: &str = "</h>";

/// Whether a question without the suffix requests an image: if it contains "generate", as on the reference's demo page.
pub fn wants_image(question: &str) -> bool {
    question.to_lowercase().contains("generate")
}

/// The question with the suffix [`REQUEST`].
pub fn with_image_request(question: &str) -> String {
    if question.trim_end().ends_with(REQUEST.trim_start()) {
        question.to_owned()
    } else {
        format!("{question}{REQUEST}")
    }
}

/// The image's prompt in an answer: between the last `</h>` and the last `<h>` before it.
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
            ("</h><h>reversed", None),
            ("<h>open", None),
            ("closed</h>", None),
            ("<h>  </h>", None),
            ("", None),
        ] {
            assert_eq!(image_prompt(answer), prompt, "{answer:?}");
        }
    }

    #[test]
    fn the_suffix_is_added_once() {
        assert_eq!(with_image_request("Draw it."), "Draw it. <GEN>");
        assert_eq!(with_image_request("Draw it. <GEN>"), "Draw it. <GEN>");
        assert!(wants_image("Please GENERATE a cat") && !wants_image("What is this?"));
    }
}
