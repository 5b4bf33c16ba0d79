//! Constrained decoding: which tokens an answer may continue with.

use std::fmt::Debug;

use crate::Result;

/// The state of a grammar, a schema or another rule after an answer's tokens. It is asked before each token, and gets
/// the one that was chosen.
pub trait Constraint: Debug {
    /// Sets the bits of the tokens that may come next: token `i` is bit `i % 32` of `mask[i / 32]`. All bits are 0
    /// before. Tokens that end the answer are allowed by their bits too.
    ///
    /// # Errors
    /// Any error: the answer fails with it.
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<()>;

    /// Takes the next token of the answer, one that the last mask allowed or that exists already.
    ///
    /// # Errors
    /// Any error: the answer fails with it.
    fn accept(&mut self, id: u32) -> Result<()>;

    /// Whether nothing may follow. The answer ends.
    fn is_terminated(&self) -> bool;

    /// A copy in the same state.
    fn boxed_clone(&self) -> Box<dyn Constraint>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.boxed_clone()
    }
}
