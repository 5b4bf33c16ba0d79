//! Sampling the next token on the device.

use bytemuck::{Pod, Zeroable};

use super::cost;
use crate::gpu::{Access, Kernel, PipelineKey, Recorder, Source, wgsl};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// How the next token is chosen from the logits, in transformers' order: penalties, temperature, top-k, top-p, min-p.
///
/// `Sampling::default()` is [`Sampling::GREEDY`]; set the rest with methods: `Sampling::GREEDY.with_temperature(0.2)`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// Divides the logits. 0: always the most likely token (greedy).
    pub temperature: f32,
    /// Samples only from the k most likely tokens, and those that tie with the last of them; 0 for all.
    pub top_k: u32,
    /// Samples only from the most likely tokens whose probabilities sum to at least this; 1 for all.
    pub top_p: f32,
    /// Samples only from tokens with at least this fraction of the largest probability, from 0 (all) to 1.
    pub min_p: f32,
    /// Divides the positive logits of tokens that occur in the prompt or the answer, and multiplies the others: above
    /// 0, up to 2; 1 for none.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that occur in the answer: from -2 to 2.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens for each time that they occur in the answer: from -2 to 2.
    pub frequency_penalty: f32,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
    };

    /// The default of `mgm chat` and of the npm package: the temperature of the reference implementation's command
    /// line, and transformers' default top-k.
    pub const REFERENCE: Self = Self { temperature: 0.2, top_k: 50, ..Self::GREEDY };

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

    /// Sets [`Self::min_p`].
    pub const fn with_min_p(self, min_p: f32) -> Self {
        Self { min_p, ..self }
    }

    /// Sets [`Self::repetition_penalty`].
    pub const fn with_repetition_penalty(self, repetition_penalty: f32) -> Self {
        Self { repetition_penalty, ..self }
    }

    /// Sets [`Self::presence_penalty`].
    pub const fn with_presence_penalty(self, presence_penalty: f32) -> Self {
        Self { presence_penalty, ..self }
    }

    /// Sets [`Self::frequency_penalty`].
    pub const fn with_frequency_penalty(self, frequency_penalty: f32) -> Self {
        Self { frequency_penalty, ..self }
    }

    /// Whether a penalty changes logits.
    pub fn has_penalties(&self) -> bool {
        (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)
    }

    /// Checks that every value is in its range.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the first that is not.
    pub fn check(&self) -> Result<()> {
        let check = |name: &str, value: f32, fits: bool, expected: &str| match fits {
            true => Ok(()),
            false => Err(Error::InvalidArgument(format!("{name} is {value}, expected {expected}"))),
        };
        let Self { temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, .. } = *self;
        // Written so that NaN does not fit.
        check("temperature", temperature, temperature >= 0.0 && temperature.is_finite(), "a number of at least 0")?;
        check("top_p", top_p, (0.0..=1.0).contains(&top_p), "a probability from 0 to 1")?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "a probability from 0 to 1")?;
        let fits = repetition_penalty > 0.0 && repetition_penalty <= 2.0;
        check("repetition_penalty", repetition_penalty, fits, "a number above 0, up to 2")?;
        for (name, penalty) in [("presence_penalty", presence_penalty), ("frequency_penalty", frequency_penalty)] {
            check(name, penalty, (-2.0..=2.0).contains(&penalty), "a number from -2 to 2")?;
        }
        Ok(())
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

/// The parameters of a row, for the shader.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RowParams {
    top_k: u32,
    top_p: f32,
    /// 0 for argmax.
    inverse_temperature: f32,
    /// temperature * ln(min_p); `f32::MIN` for all.
    min_p: f32,
    draw: f32,
    /// 1 + its mask; 0 for none.
    mask: u32,
    padding: [u32; 2],
}

/// What decides a specialisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    /// Draws at random, instead of taking the most likely token.
    pub draws: bool,
    /// Every row has its own parameters.
    pub by_row: bool,
}

impl PipelineKey for Variant {
    fn kernel(&self) -> Kernel {
        let sources = [
            wgsl!("language/logits.wgsl"),
            wgsl!("language/reduce.wgsl"),
            parameters(self.by_row),
            wgsl!("language/sample.wgsl"),
        ];
        let bindings: &[Access] = match self.by_row {
            false => &[Access::Read, Access::Write],
            true => &[Access::Read, Access::Write, Access::Read, Access::Read],
        };
        Kernel {
            overrides: vec![("SAMPLE", u32::from(self.draws))],
            consts: vec![("PARAMS", bindings.len() as u32)],
            ..Kernel::new("sample", sources, bindings)
        }
    }
}

/// How a sampling kernel reads its parameters.
fn parameters(by_row: bool) -> Source {
    if by_row { wgsl!("language/sample_rows.wgsl") } else { wgsl!("language/sample_one.wgsl") }
}

/// A kernel of a large vocabulary on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SplitVariant {
    pub kernel: SplitKernel,
    /// Every row has its own parameters.
    pub by_row: bool,
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

impl PipelineKey for SplitVariant {
    fn kernel(&self) -> Kernel {
        let name = match self.kernel {
            SplitKernel::Largest => "sample_largest",
            SplitKernel::Best => "sample_best",
            SplitKernel::Histogram => "sample_histogram",
            SplitKernel::Total => "sample_total",
            SplitKernel::Mass => "sample_mass",
            SplitKernel::Draw => "sample_draw",
        };
        let sources = [
            wgsl!("language/logits.wgsl"),
            wgsl!("language/reduce.wgsl"),
            parameters(self.by_row),
            wgsl!("language/sample_split.wgsl"),
        ];
        let bindings: &[Access] = match self.by_row {
            false => &[Access::Read, Access::Write, Access::Write],
            true => &[Access::Read, Access::Write, Access::Write, Access::Read, Access::Read],
        };
        Kernel { consts: vec![("PARAMS", bindings.len() as u32)], ..Kernel::new(name, sources, bindings) }
    }
}

/// Invocations of the sampling kernels' workgroups.
const WORKGROUP: usize = 256;
/// Logits of a chunk, at least: 16 for each invocation of its workgroup.
const CHUNK: usize = 16 * WORKGROUP;
/// Histograms of eight bits, and words that are stored of each: its bins, and the cut-off.
const HISTOGRAMS: usize = 8;
const HISTOGRAM_WORDS: usize = WORKGROUP + 2;

/// Writes the token chosen from each row of logits [rows, vocab] to `sampled[slot..]` (u32). `draw` is uniform in [0,
/// 1). With several rows, the temperature must be 0, unless min-p is used. Penalties have no effect here:
/// `ops::adjust` applies them.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::InvalidArgument`] if the rows do not fit.
pub fn sample(
    recorder: &mut Recorder,
    logits: &Tensor,
    sampling: Sampling,
    draw: f32,
    sampled: &Tensor,
    slot: usize,
) -> Result<()> {
    let rows = logits.rows();
    if sampling.min_p > 0.0 && sampling.temperature > 0.0 {
        let row = RowSampling { sampling, draw, mask: None };
        return sample_rows(recorder, logits, &vec![row; rows], None, sampled, slot);
    }
    let draws = sampling.temperature > 0.0;
    if rows == 0 || slot + rows > sampled.len() || draws && rows > 1 {
        let one = if draws { "; only one row can be drawn at a time" } else { "" };
        return Err(Error::InvalidArgument(format!(
            "{rows} sampled tokens do not fit at {slot} of {}{one}",
            sampled.len()
        )));
    }
    record(recorder, logits, sampling, draw, None, sampled, slot)
}

/// How the token of one row is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowSampling {
    /// Temperature and cut-offs. Penalties have no effect here: `ops::adjust` applies them.
    pub sampling: Sampling,
    /// Uniform in [0, 1). Not used if the temperature is 0.
    pub draw: f32,
    /// The row of the masks with the tokens that are allowed; `None` for all.
    pub mask: Option<usize>,
}

/// Writes the token chosen from each row of logits [rows, vocab] to `sampled[slot..]` (u32), each row with its own
/// parameters. `masks` [masks, vocab / 32 rounded up] (u32) have a bit for each token, the lowest first: tokens whose
/// bit is 0 take no part in the maximum, counts and sums. A mask needs at least one token; without one the result is
/// `u32::MAX`. If all tokens that a mask allows are forbidden by a bias, they are equal.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::InvalidArgument`] if the rows or masks do not fit.
pub fn sample_rows(
    recorder: &mut Recorder,
    logits: &Tensor,
    rows: &[RowSampling],
    masks: Option<&Tensor>,
    sampled: &Tensor,
    slot: usize,
) -> Result<()> {
    let (count, vocab) = (logits.rows(), logits.columns());
    if count == 0 || rows.len() != count || slot + count > sampled.len() {
        let (found, length) = (rows.len(), sampled.len());
        let reason = format!("parameters of {found} rows for {count} rows of logits, at {slot} of {length} tokens");
        return Err(Error::InvalidArgument(reason));
    }
    let words = vocab.div_ceil(32);
    let available = masks.map_or(0, |masks| if masks.columns() == words { masks.rows() } else { 0 });
    if let Some(missing) = rows.iter().filter_map(|row| row.mask).find(|mask| *mask >= available) {
        let found = masks.map_or(&[] as &[usize], Tensor::shape);
        let reason = format!("masks of shape {found:?}, expected [more than {missing}, {words}]");
        return Err(Error::InvalidArgument(reason));
    }
    // Kernels without masks and min-p take one draw, or greedy rows.
    let is_plain = |row: &RowSampling| row.mask.is_none() && (row.sampling.min_p <= 0.0 || row.is_greedy());
    match rows {
        [row] if is_plain(row) => return record(recorder, logits, row.sampling, row.draw, None, sampled, slot),
        rows if rows.iter().all(|row| is_plain(row) && row.is_greedy()) => {
            return record(recorder, logits, Sampling::GREEDY, 0.0, None, sampled, slot);
        }
        _ => {}
    }
    let params: Vec<RowParams> = rows.iter().map(RowSampling::params).collect();
    let uploaded = Tensor::upload(recorder, &[count, size_of::<RowParams>() / 4], &params, "sampling of rows")?;
    // The largest settings decide which kernels run.
    let mut all = Sampling::GREEDY;
    for row in rows {
        let Sampling { temperature, top_k, top_p, .. } = row.sampling;
        all.temperature = all.temperature.max(temperature);
        let cuts = !row.is_greedy() && (1..vocab).contains(&(top_k as usize));
        all.top_k = if cuts { top_k } else { all.top_k };
        all.top_p = if row.is_greedy() { all.top_p } else { all.top_p.min(top_p) };
    }
    record(recorder, logits, all, 0.0, Some((&uploaded, masks.unwrap_or(&uploaded))), sampled, slot)
}

impl RowSampling {
    fn is_greedy(&self) -> bool {
        self.sampling.temperature <= 0.0
    }

    fn params(&self) -> RowParams {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        RowParams {
            top_k,
            top_p,
            inverse_temperature: if self.is_greedy() { 0.0 } else { 1.0 / temperature },
            min_p: if min_p > 0.0 { temperature * min_p.ln() } else { f32::MIN },
            draw: self.draw,
            mask: self.mask.map_or(0, |mask| mask as u32 + 1),
            padding: [0; 2],
        }
    }
}

/// Records the kernels. `by_row`: the rows' parameters and masks.
fn record(
    recorder: &mut Recorder,
    logits: &Tensor,
    sampling: Sampling,
    draw: f32,
    by_row: Option<(&Tensor, &Tensor)>,
    sampled: &Tensor,
    slot: usize,
) -> Result<()> {
    let (rows, vocab) = (logits.rows(), logits.columns());
    if !recorder.gpu().is_software() && vocab > CHUNK {
        return record_split(recorder, logits, sampling, draw, by_row, sampled, slot);
    }
    let draws = sampling.temperature > 0.0;
    let params = Params {
        vocab: vocab as u32,
        output: slot as u32,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        inverse_temperature: if draws { 1.0 / sampling.temperature } else { 1.0 },
        draw,
        padding: [0; 2],
    };
    let mut bindings = vec![logits.binding(), sampled.binding()];
    bindings.extend(by_row.iter().flat_map(|(rows, masks)| [rows.binding(), masks.binding()]));
    recorder.dispatch(
        &Variant { draws, by_row: by_row.is_some() },
        &bindings,
        &params,
        [rows as u32, 1, 1],
        cost(rows * vocab, rows * vocab),
    )
}

/// The same with a workgroup for each chunk of the vocabulary.
fn record_split(
    recorder: &mut Recorder,
    logits: &Tensor,
    sampling: Sampling,
    draw: f32,
    by_row: Option<(&Tensor, &Tensor)>,
    sampled: &Tensor,
    slot: usize,
) -> Result<()> {
    let (rows, vocab) = (logits.rows(), logits.columns());
    let Sampling { temperature, top_k, top_p, .. } = sampling;
    let draws = temperature > 0.0;
    // The last kernel has an invocation for each chunk.
    let chunk = vocab.div_ceil(WORKGROUP).next_multiple_of(WORKGROUP).max(CHUNK);
    let chunks = vocab.div_ceil(chunk);
    let drawn_rows = if by_row.is_some() { rows } else { 1 };
    let words = 2 * chunks * rows + drawn_rows * (HISTOGRAMS * HISTOGRAM_WORDS + 2 * chunks);
    let state = Tensor::temporary(recorder.gpu(), &[words], "sampling")?;
    let mut bindings = vec![logits.binding(), state.binding(), sampled.binding()];
    bindings.extend(by_row.iter().flat_map(|(rows, masks)| [rows.binding(), masks.binding()]));
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
            SplitKernel::Draw => ([1, rows as u32, 1], rows * chunk),
            _ => ([chunks as u32, rows as u32, 1], rows * vocab),
        };
        let variant = SplitVariant { kernel, by_row: by_row.is_some() };
        recorder.dispatch(&variant, &bindings, &params, grid, cost(elements, elements))
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
