//! The autoencoder's attention: one head as wide as the feature map, over all pixels. Matrix products compute the
//! scores of a block of queries at a time: the head is too wide for the attention kernels, and the scores of all pixels
//! are too large for memory.

use super::statistics::NormStats;
use crate::Result;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::nn::linear::Linear;
use crate::ops::{self, Epilogue, FeatureMap, GroupNorm};
use crate::tensor::{Matrix, Tensor};

/// Bytes of the scores of a block of queries.
const SCORE_BYTES: usize = 32 << 20;
/// Blocks are multiples of 64 pixels, so that their offsets are aligned for bindings on every device.
const BLOCK_MULTIPLE: usize = 64;

#[derive(Debug)]
pub(super) struct PixelAttention {
    norm: GroupNorm,
    query: Linear,
    key: Linear,
    /// [channels, channels] and `[channels]`. The values are computed transposed, V^T = W X^T, so the weight is the
    /// left operand.
    value: Tensor,
    value_bias: Tensor,
    out: Linear,
}

impl PixelAttention {
    pub(super) async fn load(loader: &Loader, groups: usize, eps: f32) -> Result<Self> {
        Ok(Self {
            norm: loader.group_norm("group_norm", groups, eps).await?,
            query: Linear::load(loader, "to_q").await?,
            key: Linear::load(loader, "to_k").await?,
            value: loader.tensor("to_v.weight").await?,
            value_bias: loader.tensor("to_v.bias").await?,
            out: Linear::load(loader, "to_out.0").await?,
        })
    }

    /// x += Wo softmax(q k^T / sqrt(channels)) v, for one image.
    pub(super) fn forward(&self, recorder: &mut Recorder, x: &FeatureMap) -> Result<()> {
        let (pixels, channels) = (x.height * x.width, x.channels());
        let normed = NormStats::Local.norm(recorder, x, &self.norm, false)?;
        let query = self.query.forward(recorder, &normed.values)?;
        let padded = padded_to_four(recorder, &normed.values)?;
        let keys = Matrix::from_tensor(&self.key.forward(recorder, &padded)?)?;
        let values = ops::linear(recorder, &self.value, &Matrix::from_tensor(&padded)?, Epilogue::default())?;
        let values = Matrix::from_tensor(&values)?;
        // The attention weights of a row sum to 1, so the values' bias can be added to the result.
        let biased = Epilogue { bias: Some(&self.value_bias), ..Default::default() };
        let block = (SCORE_BYTES / (4 * keys.rows()) / BLOCK_MULTIPLE).max(1) * BLOCK_MULTIPLE;
        for first in (0..pixels).step_by(block) {
            let query = query.slice_rows(first..(first + block).min(pixels));
            let scores = ops::linear(recorder, &query, &keys, Epilogue::default())?;
            ops::softmax(recorder, &scores, pixels, 1.0 / (channels as f32).sqrt())?;
            let attended = ops::linear(recorder, &scores, &values, biased)?;
            ops::linear_add(recorder, &attended, &self.out.weight, self.out.epilogue(), &x.values, first)?;
        }
        Ok(())
    }
}

/// Pads the rows to a multiple of four with copies of the first row.
fn padded_to_four(recorder: &mut Recorder, x: &Tensor) -> Result<Tensor> {
    let rows = x.rows();
    if rows.is_multiple_of(4) {
        return Ok(x.clone());
    }
    let padded = Tensor::temporary(recorder.gpu(), &[rows.next_multiple_of(4), x.columns()], "padded pixels")?;
    x.copy_to(recorder, &padded, 0);
    for row in rows..padded.rows() {
        x.slice_rows(0..1).copy_to(recorder, &padded, row);
    }
    Ok(padded)
}
