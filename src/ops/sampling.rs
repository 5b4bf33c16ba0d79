//! Sampling the next token on the device.

use bytemuck::{Pod, Zeroable};

use super::cost;
use crate::gpu::{Access, Kernel, PipelineKey, Recorder, wgsl};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// How the next token is chosen from the logits: temperature, then top-k, then top-p, as transformers orders them.
///
/// `Sampling::default()` is [`Sampling::GREEDY`]; set the rest with methods: `Sampling::GREEDY.with_temperature(0.2)`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// Divides the logits; 0 takes the best token always (greedy).
    pub temperature: f32,
    /// Only the k best tokens (and what ties with the last of them); 0 for all.
    pub top_k: u32,
    /// Only the best tokens that together have this probability; 1 for all.
    pub top_p: f32,
}

impl Sampling {
    /// The best token, always.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0 };

    /// The default of `mgm chat` and of the npm package: the temperature of the reference implementation's command
    /// line, and transformers' default top-k.
    pub const REFERENCE: Self = Self { temperature: 0.2, top_k: 50, top_p: 1.0 };

    /// Sets [`Self::temperature`].
    pub const fn with_temperature(self, temperature: f32) -> Self {
        Self { temperature, ..self }
    }

    /// Sets [`Self::top_k`].
    pub const fn with_top_k(self, top_k: u32) -> Self {
        Self { top_k, ..self }
    }

    /// Sets [`Self::top_p`].
    pub const fn with_top_p(self, top_p: f32) -> Self {
        Self { top_p, ..self }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self::GREEDY
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    vocab: u32,
    output: u32,
    top_k: u32,
    top_p: f32,
    inverse_temperature: f32,
    draw: f32,
    padding: [u32; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SplitParams {
    vocab: u32,
    chunk: u32,
    chunks: u32,
    rows: u32,
    output: u32,
    top_k: u32,
    top_p: f32,
    inverse_temperature: f32,
    draw: f32,
    histogram: u32,
    padding: [u32; 2],
}

/// What decides a specialisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    /// Not only the likeliest token.
    pub draws: bool,
}

impl PipelineKey for Variant {
    fn kernel(&self) -> Kernel {
        Kernel {
            overrides: vec![("SAMPLE", u32::from(self.draws))],
            ..Kernel::new("sample", [wgsl!("language/sample.wgsl")], &[Access::Read, Access::Write])
        }
    }
}

/// The kernels of a large vocabulary on a GPU, in the order of their dispatches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SplitKernel {
    /// The largest logit of each chunk.
    Largest,
    /// The largest of these.
    Best,
    /// A histogram of eight bits of the logits' keys: tokens per value for top-k, probability for top-p.
    Histogram,
    /// The denominator of the probabilities.
    Total,
    /// The probability that each chunk has.
    Mass,
    /// The drawn token.
    Draw,
}

impl SplitKernel {
    /// All of them.
    pub(crate) const ALL: [Self; 6] = [Self::Largest, Self::Best, Self::Histogram, Self::Total, Self::Mass, Self::Draw];
}

impl PipelineKey for SplitKernel {
    fn kernel(&self) -> Kernel {
        let name = match self {
            Self::Largest => "sample_largest",
            Self::Best => "sample_best",
            Self::Histogram => "sample_histogram",
            Self::Total => "sample_total",
            Self::Mass => "sample_mass",
            Self::Draw => "sample_draw",
        };
        Kernel::new(name, [wgsl!("language/sample_split.wgsl")], &[Access::Read, Access::Write, Access::Write])
    }
}

/// Invocations of the sampling kernels' workgroups.
const WORKGROUP: usize = 256;
/// Logits of a chunk, at least: 16 for each invocation of its workgroup.
const CHUNK: usize = 16 * WORKGROUP;
/// Histograms of eight bits, and words that are stored of each: its bins, and the cut-off.
const HISTOGRAMS: usize = 8;
const HISTOGRAM_WORDS: usize = WORKGROUP + 2;

/// Writes the token chosen from each row of logits [rows, vocab] to `sampled[slot..]` (u32). `draw` is uniform in
/// [0, 1); several rows have none, they take the likeliest token.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn sample(
    recorder: &mut Recorder,
    logits: &Tensor,
    sampling: Sampling,
    draw: f32,
    sampled: &Tensor,
    slot: usize,
) -> Result<()> {
    let (rows, vocab) = (logits.rows(), logits.columns());
    let draws = sampling.temperature > 0.0;
    if rows == 0 || slot + rows > sampled.len() || draws && rows > 1 {
        let one = if draws { "; only one row can be drawn at a time" } else { "" };
        return Err(Error::InvalidArgument(format!(
            "{rows} sampled tokens do not fit at {slot} of {}{one}",
            sampled.len()
        )));
    }
    if !recorder.gpu().is_software() && vocab > CHUNK {
        return sample_split(recorder, logits, sampling, draw, sampled, slot);
    }
    let params = Params {
        vocab: vocab as u32,
        output: slot as u32,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        inverse_temperature: if draws { 1.0 / sampling.temperature } else { 1.0 },
        draw,
        padding: [0; 2],
    };
    recorder.dispatch(
        &Variant { draws },
        &[logits.binding(), sampled.binding()],
        &params,
        [rows as u32, 1, 1],
        cost(rows * vocab, rows * vocab),
    )
}

/// The same with a workgroup for each chunk of the vocabulary.
fn sample_split(
    recorder: &mut Recorder,
    logits: &Tensor,
    sampling: Sampling,
    draw: f32,
    sampled: &Tensor,
    slot: usize,
) -> Result<()> {
    let (rows, vocab) = (logits.rows(), logits.columns());
    let Sampling { temperature, top_k, top_p } = sampling;
    let draws = temperature > 0.0;
    // The last kernel has an invocation for each chunk.
    let chunk = vocab.div_ceil(WORKGROUP).next_multiple_of(WORKGROUP).max(CHUNK);
    let chunks = vocab.div_ceil(chunk);
    let words = 2 * chunks * rows + HISTOGRAMS * HISTOGRAM_WORDS + 2 * chunks;
    let state = Tensor::temporary(recorder.gpu(), &[words], "sampling")?;
    let bindings = [logits.binding(), state.binding(), sampled.binding()];
    let mut record = |kernel: SplitKernel, histogram: u32| {
        let params = SplitParams {
            vocab: vocab as u32,
            chunk: chunk as u32,
            chunks: chunks as u32,
            rows: rows as u32,
            output: slot as u32,
            top_k,
            top_p,
            inverse_temperature: if draws { 1.0 / temperature } else { 1.0 },
            draw,
            histogram,
            padding: [0; 2],
        };
        let (grid, elements) = match kernel {
            SplitKernel::Best => ([rows as u32, 1, 1], 2 * rows * chunks),
            SplitKernel::Draw => ([1, 1, 1], chunk),
            _ => ([chunks as u32, rows as u32, 1], rows * vocab),
        };
        recorder.dispatch(&kernel, &bindings, &params, grid, cost(elements, elements))
    };
    record(SplitKernel::Largest, 0)?;
    if !draws {
        return record(SplitKernel::Best, 0);
    }
    if top_k > 0 && (top_k as usize) < vocab {
        (0..4).try_for_each(|histogram| record(SplitKernel::Histogram, histogram))?;
    }
    record(SplitKernel::Total, 0)?;
    if top_p < 1.0 {
        (4..8).try_for_each(|histogram| record(SplitKernel::Histogram, histogram))?;
    }
    record(SplitKernel::Mass, 0)?;
    record(SplitKernel::Draw, 0)
}
