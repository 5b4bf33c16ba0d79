//! Prompts: text with images.

use std::fmt;
use std::ops::Range;

/// How an image is written in a prompt that is shown as text.
pub const IMAGE_PLACEHOLDER: &str = "<image>";

/// Who wrote a part of a prompt. Control tokens take effect only in the template's own text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Author {
    /// A question or a system prompt.
    User,
    /// An earlier answer.
    Model,
}

/// A part of a segment that the template did not write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DataSpan {
    /// In bytes of the segment; spans are in order and do not overlap.
    pub range: Range<usize>,
    pub author: Author,
}

/// A prompt: segments of text with an image between each two of them. It also says which parts of the text are data,
/// in which [`Tokenizer::encode_prompt`](super::Tokenizer::encode_prompt) finds no control tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Never empty.
    segments: Vec<String>,
    /// For each segment.
    data: Vec<Vec<DataSpan>>,
}

impl Default for Prompt {
    /// The empty text.
    fn default() -> Self {
        Self { segments: vec![String::new()], data: vec![Vec::new()] }
    }
}

impl Prompt {
    /// A prompt without images.
    pub(super) fn from_text(text: String, data: Vec<DataSpan>) -> Self {
        Self { segments: vec![text], data: vec![data] }
    }

    /// A prompt in the reference's notation: each `<image>` in `text` is an image, and control tokens take effect.
    #[doc(hidden)]
    pub fn with_placeholders(text: &str) -> Self {
        let segments: Vec<_> = text.split(IMAGE_PLACEHOLDER).map(str::to_owned).collect();
        Self { data: vec![Vec::new(); segments.len()], segments }
    }

    /// A prompt whose whole text a user wrote: control tokens do not take effect.
    #[doc(hidden)]
    pub fn from_user_text(text: &str) -> Self {
        let mut prompt = Self::default();
        prompt.push_data(text, Author::User);
        prompt
    }

    pub(super) fn push_text(&mut self, text: &str) {
        if let Some(segment) = self.segments.last_mut() {
            segment.push_str(text);
        }
    }

    /// Adds text that is not the template's.
    pub(super) fn push_data(&mut self, text: &str, author: Author) {
        let (Some(segment), Some(data)) = (self.segments.last_mut(), self.data.last_mut()) else { return };
        let start = segment.len();
        segment.push_str(text);
        if !text.is_empty() {
            data.push(DataSpan { range: start..segment.len(), author });
        }
    }

    pub(super) fn push_image(&mut self) {
        self.segments.push(String::new());
        self.data.push(Vec::new());
    }

    /// The segments, each with its data.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&str, &[DataSpan])> {
        self.segments.iter().map(String::as_str).zip(self.data.iter().map(Vec::as_slice))
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
