//! The mean and variance that group norms use: those of the feature map itself, or, for an image that is processed in
//! tiles to save memory, those of all tiles together. With the same statistics everywhere, tiles have no visible seams.

use crate::Result;
use crate::gpu::Recorder;
use crate::ops::{self, ChannelMoments, FeatureMap, GroupNorm, Rectangle};
use crate::tensor::Tensor;

/// The statistics of a network's norms, which are called in the order of its forward pass.
#[derive(Debug)]
pub(super) enum NormStats<'a> {
    /// Normalise each map by its own statistics.
    Local,
    /// As `Local`, and add the sums over the tile's core to those of all tiles.
    Accumulate(&'a mut TileSums, Tile),
    /// Normalise by the factors of all tiles, one tensor for each norm that follows. The second value is the ratio of
    /// the image's pixels to the tile's.
    Global(std::slice::Iter<'a, Tensor>, f64),
}

/// The tile that is being processed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    /// The tile's height at the first tiled layer. Its ratio to a later map's height scales `core_in_tile`.
    pub height: usize,
    /// The pixels that belong to this tile alone, relative to the tile.
    pub core_in_tile: Rectangle,
    /// Index among all tiles.
    pub index: usize,
    /// Index of the next norm.
    pub norm: usize,
}

/// The sums of all tiles at each norm.
#[derive(Debug)]
pub(super) struct TileSums {
    cores: Vec<Rectangle>,
    norms: Vec<(ChannelMoments, GroupNorm)>,
}

/// Scales a rectangle by `ratio.0 / ratio.1`.
fn scaled(rectangle: Rectangle, ratio: (usize, usize)) -> Rectangle {
    let Rectangle { top, left, height, width } = rectangle;
    let scale = |length: usize| length * ratio.0 / ratio.1;
    Rectangle { top: scale(top), left: scale(left), height: scale(height), width: scale(width) }
}

impl TileSums {
    pub(super) fn new(cores: Vec<Rectangle>) -> Self {
        Self { cores, norms: Vec::new() }
    }

    /// Row blocks of the first `count` tiles' cores, scaled by `ratio`.
    fn row_blocks(&self, count: usize, ratio: (usize, usize)) -> usize {
        self.cores[..count].iter().map(|core| scaled(*core, ratio).row_blocks()).sum()
    }

    fn accumulate(
        &mut self,
        recorder: &mut Recorder,
        x: &FeatureMap,
        layer: &GroupNorm,
        tile: &mut Tile,
    ) -> Result<()> {
        let ratio = (x.height, tile.height);
        if self.norms.len() == tile.norm {
            let all = self.row_blocks(self.cores.len(), ratio);
            self.norms.push((ChannelMoments::new(recorder.gpu(), x.images(), all, x.channels())?, layer.clone()));
        }
        let first = self.row_blocks(tile.index, ratio);
        self.norms[tile.norm].0.add(recorder, x, scaled(tile.core_in_tile, ratio), first)?;
        tile.norm += 1;
        Ok(())
    }

    /// The factors of every norm, from the sums of all tiles.
    pub(super) fn factors(&self, recorder: &mut Recorder) -> Result<Vec<Tensor>> {
        self.norms.iter().map(|(sums, layer)| layer.factors(recorder, sums)).collect()
    }
}

impl NormStats<'_> {
    /// Whether a norm's result for the map `x`, with or without SiLU, fits f16.
    pub(super) fn fits_f16(&self, x: &FeatureMap, layer: &GroupNorm) -> bool {
        let share = if let Self::Global(_, share) = self { *share } else { 1.0 };
        layer.fits_f16((x.height * x.width) as f64 * share)
    }

    /// Applies a norm, then SiLU if `silu`.
    pub(super) fn norm(
        &mut self,
        recorder: &mut Recorder,
        x: &FeatureMap,
        layer: &GroupNorm,
        silu: bool,
    ) -> Result<FeatureMap> {
        if let Self::Accumulate(sums, tile) = self {
            sums.accumulate(recorder, x, layer, tile)?;
        }
        if let Self::Global(factors, _) = self
            && let Some(factors) = factors.next()
        {
            return ops::scale_channels(recorder, x, factors, silu);
        }
        ops::group_norm(recorder, x, layer, silu)
    }
}
