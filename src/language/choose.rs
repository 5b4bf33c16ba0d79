//! The choice of the next tokens from logits, by each row's own controls.

use crate::Result;
use crate::gpu::Recorder;
use crate::ops::{self, RowBias, RowPenalties, RowSampling, Sampling};
use crate::tensor::Tensor;

/// How the token after one row of logits is chosen. The default is the most likely token.
#[derive(Debug, Clone, Copy, Default)]
pub struct RowControls<'c> {
    /// Penalties, temperature and cut-offs.
    pub sampling: Sampling,
    /// Uniform in [0, 1). Not used if the temperature is 0.
    pub draw: f32,
    /// Values that are added to the logits of tokens.
    pub bias: &'c [(u32, f32)],
    /// Tokens that are not chosen, unless all others are forbidden too.
    pub forbidden: &'c [u32],
    /// Its row of [`ChosenTokens::counts`]. Needed for penalties.
    pub counts: Option<usize>,
    /// Its row of [`ChosenTokens::masks`]; `None` if all tokens are allowed.
    pub mask: Option<usize>,
}

/// Where chosen tokens go, and what the rows share.
#[derive(Debug, Clone, Copy)]
pub struct ChosenTokens<'t> {
    /// Receives the tokens (u32) of all rows, from `slot` on.
    pub sampled: &'t Tensor,
    /// The place of the first row's token.
    pub slot: usize,
    /// How often tokens occurred, [sequences, vocab] ([`ops::token_counts`]). The chosen tokens are added.
    pub counts: Option<&'t Tensor>,
    /// Allowed tokens, [masks, vocab / 32 rounded up], a bit for each.
    pub masks: Option<&'t Tensor>,
    /// Receives log-probabilities in rows `slot..`, with this many of the best tokens ([`ops::logprobs`]). They are
    /// those of the logits before bias, penalties and masks.
    pub logprobs: Option<(&'t Tensor, usize)>,
}

/// Chooses a token for each row of logits [rows, vocab], with the same number of dispatches for any number of rows.
/// The logits are changed in place, unless log-probabilities are wanted.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::InvalidArgument`](crate::Error::InvalidArgument) if rows, tokens, counts or
/// masks do not fit.
pub fn choose_tokens(
    recorder: &mut Recorder,
    logits: &Tensor,
    rows: &[RowControls<'_>],
    chosen: &ChosenTokens<'_>,
) -> Result<()> {
    let ChosenTokens { sampled, slot, counts, masks, logprobs } = *chosen;
    let mut biases = Vec::new();
    for (row, controls) in rows.iter().enumerate() {
        let forbidden = controls.forbidden.iter().map(|token| (*token, ops::FORBID));
        let all = controls.bias.iter().copied().chain(forbidden);
        biases.extend(all.map(|(token, bias)| RowBias { row, token, bias }));
    }
    let penalties = rows.iter().map(|row| RowPenalties { sampling: row.sampling, sequence: row.counts });
    let penalties: Vec<RowPenalties> = penalties.collect();
    let is_adjusted = !biases.is_empty() || rows.iter().any(|row| row.counts.is_some());
    let mut adjusted = logits.clone();
    if logprobs.is_some() && is_adjusted {
        adjusted = Tensor::temporary(recorder.gpu(), logits.shape(), "adjusted logits")?;
        logits.copy_to(recorder, &adjusted, 0);
    }
    ops::adjust(recorder, &adjusted, &biases, &penalties, counts)?;
    let sampling = |row: &RowControls<'_>| RowSampling { sampling: row.sampling, draw: row.draw, mask: row.mask };
    let samplings: Vec<RowSampling> = rows.iter().map(sampling).collect();
    ops::sample_rows(recorder, &adjusted, &samplings, masks, sampled, slot)?;
    ops::count_sampled(recorder, logits, &penalties, counts, sampled, slot)?;
    match logprobs {
        Some((output, top)) => ops::logprobs(recorder, logits, sampled, top, output, slot),
        None => Ok(()),
    }
}
