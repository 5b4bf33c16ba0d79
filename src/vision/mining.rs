//! Patch info mining (Mini-Gemini, section 3.2), with the key and value projections folded.
//!
//! Every low-resolution token has one query, which attends to a window: the cells of the high-resolution map at the
//! token's place. With one query per window, projecting all cells to keys and values is wasteful: q . (W_k f + b_k) =
//! (W_k^T q) . f + a constant that the softmax cancels, and the sum of p (W_v f + b_v) = W_v (the sum of p f) + b_v. So
//! the query is projected to the cells' space, and only the weighted sum of a window is projected to values: 3.4
//! instead of 217 billion multiply-adds for a tile of the released sizes, and the same result in exact arithmetic.

use crate::Result;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::nn::linear::Linear;
use crate::ops::{self, Epilogue, MiningMap, Norm};
use crate::tensor::{Matrix, Tensor};
use crate::weights::config::VisionConfig;
use crate::weights::expected;

/// The eps of all norms: PyTorch's default (ConvNeXt's differs).
const EPS: f32 = 1e-5;

/// The patch info mining module.
#[derive(Debug)]
pub struct PatchInfoMining {
    query_norm: Norm,
    query: Linear,
    /// W_k transposed: [high_width, low_width].
    key_fold: Matrix,
    /// The key norm's gain / sqrt(low_width): `[high_width]`.
    key_gain: Tensor,
    /// W_v with the value norm's gain in its columns: [low_width, high_width].
    /// The bias is b_v + W_v times the value norm's offset.
    value: Linear,
}

/// The part of the high-resolution map that the tokens of one tile attend to.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a> {
    /// The high-resolution map.
    pub map: &'a MiningMap,
    /// Its [`PatchInfoMining::statistics`].
    pub statistics: &'a Tensor,
    /// Cells along a side of a token's window.
    pub window: usize,
    /// The tile's upper left cell.
    pub origin: (usize, usize),
    /// Receives the cells' attention weights, as in [`ops::mining`].
    pub attended: Option<&'a Tensor>,
}

impl PatchInfoMining {
    /// Loads and folds the projections: `query.0`, `query.1`, `aux.…` (keys), `val.…` (values).
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub async fn load(loader: &Loader, config: &VisionConfig) -> Result<Self> {
        let (low, high) = (config.hidden_size, config.high_hidden_size);
        let loader = loader.network(expected::mining(config));
        let keys = loader.pp("aux");
        let values = loader.pp("val");

        let key = keys.values("1.weight").await?;
        let mut key_fold = vec![0.0f32; key.len()];
        for (row, weights) in key.chunks_exact(high).enumerate() {
            for (column, weight) in weights.iter().enumerate() {
                key_fold[column * low + row] = *weight;
            }
        }
        drop(key);
        let scale = 1.0 / (low as f32).sqrt();
        let gain: Vec<f32> = keys.values("0.weight").await?.iter().map(|gain| gain * scale).collect();

        let mut value = values.values("1.weight").await?;
        let value_gain = values.values("0.weight").await?;
        let offset = values.values("0.bias").await?;
        let mut value_bias = values.values("1.bias").await?;
        for (row, bias) in value.chunks_exact_mut(high).zip(&mut value_bias) {
            let folded: f64 =
                row.iter().zip(&offset).map(|(weight, offset)| f64::from(*weight) * f64::from(*offset)).sum();
            *bias += folded as f32;
            row.iter_mut().zip(&value_gain).for_each(|(weight, gain)| *weight *= gain);
        }
        Ok(Self {
            query_norm: loader.layer_norm("query.0", EPS).await?,
            query: Linear::load(&loader, "query.1").await?,
            key_fold: keys.computed("1.weight", low, &key_fold).await?,
            key_gain: keys.upload("0.weight", &[high], &gain).await?,
            value: Linear {
                weight: values.computed("1.weight", high, &value).await?,
                bias: values.upload("1.bias", &[low], &value_bias).await?,
            },
        })
    }

    /// The norm statistics of a map's cells. All tiles that attend to the map share them.
    ///
    /// # Errors
    /// [`Error::WrongShape`](crate::Error::WrongShape) if the stages do not fit together.
    pub fn statistics(&self, recorder: &mut Recorder, map: &MiningMap) -> Result<Tensor> {
        ops::mining_stats(recorder, map, EPS)
    }

    /// Adds the mined window of each token to x [tokens, low_width].
    ///
    /// # Errors
    /// [`Error::WrongShape`](crate::Error::WrongShape).
    pub fn forward(&self, recorder: &mut Recorder, x: &Tensor, tile: &Tile<'_>) -> Result<Tensor> {
        let normed = ops::norm(recorder, x, &self.query_norm)?;
        let query = self.query.forward(recorder, &normed)?;
        let fold = Epilogue { gamma: Some(&self.key_gain), ..Default::default() };
        let folded = ops::linear(recorder, &query, &self.key_fold, fold)?;
        let windows =
            ops::mining(recorder, &folded, tile.map, tile.statistics, tile.window, tile.origin, tile.attended)?;
        let mined = Tensor::temporary(recorder.gpu(), x.shape(), "mined")?;
        x.copy_to(recorder, &mined, 0);
        self.value.add(recorder, &windows, &mined)?;
        Ok(mined)
    }
}
