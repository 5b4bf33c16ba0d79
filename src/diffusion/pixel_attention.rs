//! The autoencoder's attention: one head as wide as the map, over all pixels. Its rows of scores are made in portions by matrix
//! products, since the head is wider than the attention kernels' and the scores of all pixels are too many to be kept.

use super::statistics::Statistics;
use super::transformer::Dense;
use crate::Result;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::ops::{self, Epilogue, FeatureMap, GroupNorm};
use crate::tensor::{Matrix, Tensor};

/// Bytes of a portion's scores.
const SCORE_BYTES: usize = 32 << 20;
/// Portions are whole 64s of pixels, so that views of them start where every device can bind them.
const PORTION: usize = 64;

#[derive(Debug)]
pub(super) struct PixelAttention {
    norm: GroupNorm,
    query: Dense,
    key: Dense,
    /// [channels, channels] and [channels]. The values are made transposed, V^T = W X^T, so that the weight takes the place
    /// of the input.
    value: Tensor,
    value_bias: Tensor,
    out: Dense,
}

impl PixelAttention {
    pub(super) async fn load(loader: &Loader, channels: usize, groups: usize, eps: f32) -> Result<Self> {
        // Files of before diffusers 0.17 have other names.
        let old = !loader.contains("to_q.weight");
        let names = if old { ["query", "key", "value", "proj_attn"] } else { ["to_q", "to_k", "to_v", "to_out.0"] };
        let square = (channels, channels);
        let value = loader.pp(names[2]);
        let weight = value.flattened("weight", channels, channels).await?;
        Ok(Self {
            norm: loader.group_norm("group_norm", channels, groups, eps).await?,
            query: Dense::load(loader, names[0], square).await?,
            key: Dense::load(loader, names[1], square).await?,
            value: value.upload("weight", &[channels, channels], &weight).await?,
            value_bias: value.tensor("bias", &[channels]).await?,
            out: Dense::load(loader, names[3], square).await?,
        })
    }

    /// x += Wo softmax(q k^T / sqrt(channels)) v, of one picture.
    pub(super) fn forward(&self, recorder: &mut Recorder, x: &FeatureMap) -> Result<()> {
        let (pixels, channels) = (x.height * x.width, x.channels());
        let normed = Statistics::Own.norm(recorder, x, &self.norm, false)?;
        let query = self.query.forward(recorder, &normed.values)?;
        let padded = in_fours(recorder, &normed.values)?;
        let keys = Matrix::from_tensor(&self.key.forward(recorder, &padded)?)?;
        let values = ops::linear(recorder, &self.value, &Matrix::from_tensor(&padded)?, Epilogue::default())?;
        let values = Matrix::from_tensor(&values)?;
        // The shares of a row make 1 together, so that the values' bias can be added behind their sum.
        let biased = Epilogue { bias: Some(&self.value_bias), ..Default::default() };
        let portion = (SCORE_BYTES / (4 * keys.rows()) / PORTION).max(1) * PORTION;
        for first in (0..pixels).step_by(portion) {
            let query = query.slice_rows(first..(first + portion).min(pixels));
            let scores = ops::linear(recorder, &query, &keys, Epilogue::default())?;
            ops::softmax(recorder, &scores, pixels, 1.0 / (channels as f32).sqrt())?;
            let attended = ops::linear(recorder, &scores, &values, biased)?;
            ops::linear_add(recorder, &attended, &self.out.weight, self.out.epilogue(), &x.values, first)?;
        }
        Ok(())
    }
}

/// The same rows, with some of them once more at the end where they are not a multiple of four.
fn in_fours(recorder: &mut Recorder, x: &Tensor) -> Result<Tensor> {
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
