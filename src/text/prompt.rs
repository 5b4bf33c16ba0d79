//! Prompts: text with images.

use std::fmt;

/// How an image is written in a prompt that is shown as text.
pub const IMAGE_PLACEHOLDER: &str = "<image>";

/// A prompt: segments of text with an image between each two of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Never empty.
    segments: Vec<String>,
}

impl Default for Prompt {
    /// The empty text.
    fn default() -> Self {
        Self { segments: vec![String::new()] }
    }
}

impl Prompt {
    /// A prompt without images.
    pub(super) fn from_text(text: String) -> Self {
        Self { segments: vec![text] }
    }

    /// A prompt in the reference's notation: each `<image>` in `text` is an image.
    #[doc(hidden)]
    pub fn with_placeholders(text: &str) -> Self {
        Self { segments: text.split(IMAGE_PLACEHOLDER).map(str::to_owned).collect() }
    }

    pub(super) fn push_text(&mut self, text: &str) {
        if let Some(segment) = self.segments.last_mut() {
            segment.push_str(text);
        }
    }

    pub(super) fn push_image(&mut self) {
        self.segments.push(String::new());
    }

    /// The texts before, between and after the images: one more than there are images.
    pub fn segments(&self) -> &[String] {
        &self.segments
    }

    /// The number of images.
    pub fn images(&self) -> usize {
        self.segments.len().saturating_sub(1)
    }
}

impl fmt::Display for Prompt {
    /// The prompt in the reference's notation, with images as `<image>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.segments.join(IMAGE_PLACEHOLDER))
    }
}
