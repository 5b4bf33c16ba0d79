//! Logit processors on the device: logit bias and penalties.

use bytemuck::{Pod, Zeroable};

use super::{Sampling, cost};
use crate::gpu::{Access, Kernel, PipelineKey, Recorder, wgsl};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// A bias of this or less forbids a token, as in OpenAI's API.
pub const FORBID: f32 = -100.0;
/// The bit of a count that is set if the token is in the prompt.
const SEEN: u32 = 1 << 31;

/// A value that [`adjust`] adds to a logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowBias {
    /// The row of the logits.
    pub row: usize,
    /// The token.
    pub token: u32,
    /// Added to the logit. [`FORBID`] or less: the token is never chosen unless all others are forbidden too.
    pub bias: f32,
}

/// The penalties of one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowPenalties {
    /// Its penalties. The rest has no effect.
    pub sampling: Sampling,
    /// The row of the counts; `None` if the row has no penalties.
    pub sequence: Option<usize>,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    vocab: u32,
    count: u32,
    output: u32,
    padding: u32,
}

/// The kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Adjust {
    Bias,
    Penalties,
    Count,
}

impl Adjust {
    pub(crate) const ALL: [Self; 3] = [Self::Bias, Self::Penalties, Self::Count];
}

impl PipelineKey for Adjust {
    fn kernel(&self) -> Kernel {
        let name = match self {
            Self::Bias => "adjust_bias",
            Self::Penalties => "adjust_penalties",
            Self::Count => "adjust_count",
        };
        Kernel::new(name, [wgsl!("language/adjust.wgsl")], &[Access::Write, Access::Read, Access::Read])
    }
}

/// How often each token occurs, for a row of the counts [sequences, vocab] (u32) of [`adjust`]: in `answer`, and
/// whether it is in `prompt`. Ids from `vocab` on are ignored.
pub fn token_counts(
    vocab: usize,
    prompt: impl IntoIterator<Item = u32>,
    answer: impl IntoIterator<Item = u32>,
) -> Vec<u32> {
    let mut counts = vec![0; vocab];
    for id in prompt {
        if let Some(count) = counts.get_mut(id as usize) {
            *count |= SEEN;
        }
    }
    for id in answer {
        if let Some(count) = counts.get_mut(id as usize) {
            *count += 1;
        }
    }
    counts
}

/// Changes logits [rows, vocab] in place, in transformers' order: adds biases, then applies the rows' penalties by the
/// counts [sequences, vocab] (u32, [`token_counts`]). A later bias of the same logit is added to an earlier one.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::InvalidArgument`] for a row, token or sequence that does not exist.
pub fn adjust(
    recorder: &mut Recorder,
    logits: &Tensor,
    biases: &[RowBias],
    penalties: &[RowPenalties],
    counts: Option<&Tensor>,
) -> Result<()> {
    let (rows, vocab) = (logits.rows(), logits.columns());
    if let Some(bias) = biases.iter().find(|bias| bias.row >= rows || bias.token as usize >= vocab) {
        let reason = format!("{bias:?} for logits of {rows} rows and {vocab} tokens");
        return Err(Error::InvalidArgument(reason));
    }
    let params = |count: usize| Params { vocab: vocab as u32, count: count as u32, output: 0, padding: 0 };
    if !biases.is_empty() {
        // One entry per logit: invocations run in parallel.
        let index = |bias: &RowBias| (bias.row * vocab) as u32 + bias.token;
        let mut at: Vec<u32> = biases.iter().map(index).collect();
        at.sort_unstable();
        at.dedup();
        let mut sums = vec![0.0f32; at.len()];
        for bias in biases {
            if let Ok(place) = at.binary_search(&index(bias)) {
                sums[place] = (sums[place] + added(bias.bias)).max(f32::MIN);
            }
        }
        let words: Vec<u32> = at.iter().zip(&sums).flat_map(|(at, sum)| [*at, sum.to_bits()]).collect();
        let count = at.len();
        let entries = Tensor::upload(recorder, &[count, 2], &words, "logit bias")?;
        let bindings = [logits.binding(), entries.binding(), entries.binding()];
        let grid = [count.div_ceil(64) as u32, 1, 1];
        recorder.dispatch(&Adjust::Bias, &bindings, &params(count), grid, cost(4 * count, count))?;
    }
    if let Some((counts, uploaded)) = upload_penalties(recorder, logits, penalties, counts)? {
        let bindings = [logits.binding(), uploaded.binding(), counts.binding()];
        let grid = [vocab.div_ceil(256) as u32, rows as u32, 1];
        recorder.dispatch(&Adjust::Penalties, &bindings, &params(rows), grid, cost(3 * rows * vocab, rows * vocab))?;
    }
    Ok(())
}

/// The number to add to a logit. The lowest f32 forbids a token: sums with it round to it, so no infinity occurs.
fn added(bias: f32) -> f32 {
    if bias <= FORBID { f32::MIN } else { bias }
}

/// Adds the tokens `sampled[slot..]` of rows to the counts [sequences, vocab] of [`adjust`].
///
/// # Errors
/// As [`adjust`].
pub fn count_sampled(
    recorder: &mut Recorder,
    logits: &Tensor,
    penalties: &[RowPenalties],
    counts: Option<&Tensor>,
    sampled: &Tensor,
    slot: usize,
) -> Result<()> {
    let (rows, vocab) = (logits.rows(), logits.columns());
    if slot + rows > sampled.len() {
        let reason = format!("{rows} sampled tokens at {slot} of {}", sampled.len());
        return Err(Error::InvalidArgument(reason));
    }
    let Some((counts, uploaded)) = upload_penalties(recorder, logits, penalties, counts)? else { return Ok(()) };
    let params = Params { vocab: vocab as u32, count: rows as u32, output: slot as u32, padding: 0 };
    let bindings = [counts.binding(), uploaded.binding(), sampled.binding()];
    recorder.dispatch(&Adjust::Count, &bindings, &params, [rows.div_ceil(64) as u32, 1, 1], cost(3 * rows, rows))
}

/// The counts, and the rows' penalties [rows, 4] on the device. `None` if no row has any.
fn upload_penalties<'c>(
    recorder: &mut Recorder,
    logits: &Tensor,
    penalties: &[RowPenalties],
    counts: Option<&'c Tensor>,
) -> Result<Option<(&'c Tensor, Tensor)>> {
    let (rows, vocab) = (logits.rows(), logits.columns());
    if penalties.iter().all(|row| row.sequence.is_none()) {
        return Ok(None);
    }
    let sequences = counts.map_or(0, |counts| if counts.columns() == vocab { counts.rows() } else { 0 });
    let fits = penalties.len() == rows && penalties.iter().filter_map(|row| row.sequence).all(|at| at < sequences);
    let Some(counts) = counts.filter(|_| fits) else {
        let (found, shape) = (penalties.len(), counts.map_or(&[] as &[usize], Tensor::shape));
        let reason = format!(
            "penalties of {found} rows with counts of shape {shape:?}, expected {rows} rows and [sequences, {vocab}]"
        );
        return Err(Error::InvalidArgument(reason));
    };
    let words: Vec<u32> = penalties
        .iter()
        .flat_map(|RowPenalties { sampling, sequence }| {
            let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = *sampling;
            let [repetition, presence, frequency] =
                [repetition_penalty, presence_penalty, frequency_penalty].map(f32::to_bits);
            [repetition, presence, frequency, sequence.map_or(0, |sequence| sequence as u32 + 1)]
        })
        .collect();
    Ok(Some((counts, Tensor::upload(recorder, &[rows, 4], &words, "penalties")?)))
}
