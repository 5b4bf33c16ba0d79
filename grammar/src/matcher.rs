//! An answer that is being matched.

use std::sync::Arc;

use llguidance::api::StopReason;

use crate::Error;

/// An answer that is being matched: which tokens may follow. Cloning one copies its state.
#[derive(Clone)]
pub struct Matcher {
    inner: llguidance::Matcher,
    /// Tokens of the vocabulary.
    size: usize,
    /// Those that end an answer.
    ends: Arc<[u32]>,
    /// Whether one of them was taken.
    ended: bool,
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Matcher").field("terminated", &self.is_terminated()).finish_non_exhaustive()
    }
}

impl Matcher {
    pub(crate) fn new(inner: llguidance::Matcher, size: usize, ends: Arc<[u32]>) -> Self {
        Self { inner, size, ends, ended: false }
    }

    /// Writes the tokens that may follow: bit `id % 32` of word `id / 32`. Tokens that end the answer are among them if
    /// the text is complete, and the only ones if nothing may follow it.
    ///
    /// # Errors
    /// [`Error::TooComplex`] if the grammar needs more work than a mask may take.
    ///
    /// # Panics
    /// If `mask` has another number of words than [`Vocabulary::mask_words`](crate::Vocabulary::mask_words).
    pub fn fill_mask(&mut self, mask: &mut [u32]) -> Result<(), Error> {
        assert_eq!(mask.len(), self.size.div_ceil(32), "words of a mask");
        let allowed = self.inner.compute_mask_or_eos().map_err(|error| self.too_complex(&error))?;
        let words = allowed.as_slice();
        mask.fill(0);
        for (to, from) in mask.iter_mut().zip(words) {
            *to = *from;
        }
        Ok(())
    }

    /// How many of these tokens, from the first on, may follow. The state stays.
    ///
    /// # Errors
    /// As [`Self::fill_mask`].
    pub fn validate(&mut self, ids: &[u32]) -> Result<usize, Error> {
        let texts = ids.iter().take_while(|id| (**id as usize) < self.size && !self.ends.contains(id)).count();
        let mut allowed = 0;
        if !self.is_terminated() {
            allowed = self.inner.validate_tokens(&ids[..texts]).map_err(|error| self.too_complex(&error))?;
        }
        let is_end = ids.get(texts).is_some_and(|id| self.ends.contains(id));
        if allowed < texts || !is_end {
            return Ok(allowed);
        }
        let mut after = self.clone();
        for id in &ids[..texts] {
            after.accept(*id)?;
        }
        Ok(texts + usize::from(after.is_accepting()?))
    }

    /// Takes the next token of the answer.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] if it may not follow; [`Error::TooComplex`] as [`Self::fill_mask`].
    pub fn accept(&mut self, id: u32) -> Result<(), Error> {
        if id as usize >= self.size {
            return Err(Error::NotAllowed(id));
        }
        if self.ends.contains(&id) {
            if self.ended || !self.is_accepting()? {
                return Err(Error::NotAllowed(id));
            }
            self.ended = true;
            return Ok(());
        }
        match self.inner.try_consume_tokens(&[id]) {
            Ok(1) => Ok(()),
            Ok(_) => Err(Error::NotAllowed(id)),
            Err(error) => Err(self.too_complex(&error)),
        }
    }

    /// Takes the last `count` tokens back.
    ///
    /// # Errors
    /// [`Error::TooComplex`] if fewer were taken, or an error ended the answer before.
    pub fn rollback(&mut self, count: usize) -> Result<(), Error> {
        let end = usize::from(count > 0 && std::mem::take(&mut self.ended));
        let count = count - end;
        if count == 0 {
            return Ok(());
        }
        self.inner.rollback(count).map_err(|error| self.too_complex(&error))
    }

    /// Whether the text is complete: it may end here.
    ///
    /// # Errors
    /// As [`Self::fill_mask`].
    pub fn is_accepting(&mut self) -> Result<bool, Error> {
        if self.inner.stop_reason().is_ok() && self.is_terminated() {
            return Ok(true);
        }
        self.inner.is_accepting().map_err(|error| self.too_complex(&error))
    }

    /// Whether nothing may follow, because the text is complete or a token ended it.
    pub fn is_terminated(&self) -> bool {
        self.ended || self.inner.stop_reason() != StopReason::NotStopped
    }

    fn too_complex(&self, error: &dyn std::fmt::Display) -> Error {
        Error::TooComplex(reason(error))
    }
}

/// What an error of llguidance says, in a line: without its place in a Lark grammar that the caller did not write, and
/// without the parser's state.
pub(crate) fn reason(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("unknown error");
    // Such as "at 2(7): failed to compile JSON schema: …".
    let first = first.split_once("failed to compile JSON schema: ").map_or(first, |(_, reason)| reason);
    // The regex crate draws the expression, and says what is wrong at the end.
    match lines.find_map(|line| line.strip_prefix("error: ")) {
        Some(cause) if first.ends_with(':') => format!("{first} {cause}"),
        _ => first.to_owned(),
    }
}
