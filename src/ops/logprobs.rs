//! Log-probabilities of tokens.

use bytemuck::{Pod, Zeroable};

use super::cost;
use crate::gpu::{Access, Kernel, PipelineKey, Recorder, wgsl};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Maximum number of tokens with log-probabilities, besides the chosen one.
pub const MAX_TOP_LOGPROBS: usize = 20;
/// Number of logits per workgroup.
const CHUNK: usize = 4096;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    vocab: u32,
    chunk: u32,
    chunks: u32,
    top: u32,
    output: u32,
    padding: [u32; 3],
}

/// The kernels, in the order of their dispatches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Logprobs {
    Chunk,
    Row,
}

impl Logprobs {
    pub(crate) const ALL: [Self; 2] = [Self::Chunk, Self::Row];
}

impl PipelineKey for Logprobs {
    fn kernel(&self) -> Kernel {
        let name = match self {
            Self::Chunk => "logprobs_chunk",
            Self::Row => "logprobs_row",
        };
        let sources = [wgsl!("language/logits.wgsl"), wgsl!("language/reduce.wgsl"), wgsl!("language/logprobs.wgsl")];
        Kernel::new(name, sources, &[Access::Read, Access::Read, Access::Write, Access::Write])
    }
}

/// Number of u32 in a row of [`logprobs`]' output.
pub fn logprob_words(top: usize) -> usize {
    1 + 2 * top
}

/// Log-probabilities, log-softmax of logits [rows, vocab], of the tokens `sampled[slot..]` and of the `top` best of
/// each row. Writes rows `slot..` of `output` [.., 1 + 2 * top] (u32): the bits of the token's log-probability, then
/// the id and the bits of the log-probability of each of the best, `u32::MAX` where the vocabulary has fewer.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::InvalidArgument`] for more than [`MAX_TOP_LOGPROBS`], and if the rows do not
/// fit.
pub fn logprobs(
    recorder: &mut Recorder,
    logits: &Tensor,
    sampled: &Tensor,
    top: usize,
    output: &Tensor,
    slot: usize,
) -> Result<()> {
    let (rows, vocab) = (logits.rows(), logits.columns());
    let fits = slot + rows <= sampled.len() && slot + rows <= output.rows() && output.columns() == logprob_words(top);
    if top > MAX_TOP_LOGPROBS || !fits || vocab == 0 {
        return Err(Error::InvalidArgument(format!(
            "{top} log-probabilities of {rows} rows at {slot} of {} tokens in an output of {:?}, expected at most \
             {MAX_TOP_LOGPROBS} and [tokens, {}]",
            sampled.len(),
            output.shape(),
            logprob_words(top)
        )));
    }
    let chunks = vocab.div_ceil(CHUNK);
    let state = Tensor::temporary(recorder.gpu(), &[rows, chunks, 2 + 2 * top], "log-probabilities")?;
    let params = Params {
        vocab: vocab as u32,
        chunk: CHUNK as u32,
        chunks: chunks as u32,
        top: top as u32,
        output: slot as u32,
        padding: [0; 3],
    };
    let bindings = [logits.binding(), sampled.binding(), state.binding(), output.binding()];
    for kernel in Logprobs::ALL {
        let grid = match kernel {
            Logprobs::Chunk => [chunks as u32, rows as u32, 1],
            Logprobs::Row => [rows as u32, 1, 1],
        };
        let elements = if kernel == Logprobs::Chunk { rows * vocab } else { state.len() };
        recorder.dispatch(&kernel, &bindings, &params, grid, cost(elements, 2 * elements))?;
    }
    Ok(())
}
