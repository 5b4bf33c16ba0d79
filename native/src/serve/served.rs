//! The model that answers requests.

use std::sync::OnceLock;

use mgm::engine::images::ImageFormat;
use mgm::ops::Sampling;
use mgm::session::ModelText;

use super::slots::Slots;
use crate::constraint::Constraints;
use crate::tools::ToolStyle;

/// A model that answers requests.
#[derive(Debug)]
pub struct Served {
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    pub text: ModelText,
    /// Tokens of the language model.
    pub vocab: usize,
    /// Width of its hidden states.
    pub hidden: usize,
    /// Positions of a sequence.
    pub context: usize,
    /// Positions of a prompt.
    pub max_prompt: usize,
    /// How images are encoded, if the model takes images.
    pub image_format: Option<ImageFormat>,
    pub precision: String,
    /// Memory that the model and its caches take.
    pub gpu_bytes: u64,
    /// Where a request says nothing.
    pub sampling: Sampling,
    /// Identifies what decides answers: the program, the model and the device.
    pub fingerprint: String,
    /// Sequences that decode together.
    pub parallel: usize,
    pub slots: Slots,
    /// Made for the first answer that has a form: it takes tenths of a second.
    pub constraints: OnceLock<Result<Constraints, mgm_grammar::Error>>,
    /// How the model calls tools.
    pub tool_style: ToolStyle,
}

impl Served {
    /// What constrains answers.
    ///
    /// # Errors
    /// [`mgm_grammar::Error::Vocabulary`]: the model's tokens cannot be constrained.
    pub fn constraints(&self) -> Result<&Constraints, &mgm_grammar::Error> {
        self.constraints.get_or_init(|| Constraints::new(&self.text, self.vocab)).as_ref()
    }
}
