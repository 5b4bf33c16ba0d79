//! Whose mean and variance a map is normalised with: its own; or, where a picture is too large to be in memory as a whole and
//! goes through in tiles, those of all tiles, so that no seams are left between them.

use crate::Result;
use crate::gpu::Recorder;
use crate::ops::{self, ChannelMoments, FeatureMap, GroupNorm, Rectangle};
use crate::tensor::Tensor;

/// The norms of a network, called in the order of its forward pass.
#[derive(Debug)]
pub(super) enum Statistics<'a> {
    /// Every map has its own.
    Own,
    /// Every map has its own, and what lies in the tile's middle is noted.
    Noting(&'a mut TileSums, Tile),
    /// The factors of the norms to come.
    Given(std::slice::Iter<'a, Tensor>),
}

/// A tile's middle, which is no other tile's, in the tile; and its place among all tiles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    /// The tile's height where the tiled part begins: maps further on are multiples of it.
    pub height: usize,
    pub middle: Rectangle,
    pub index: usize,
    pub norm: usize,
}

/// The sums of all tiles at each norm.
#[derive(Debug)]
pub(super) struct TileSums {
    middles: Vec<Rectangle>,
    norms: Vec<(ChannelMoments, GroupNorm)>,
}

/// A rectangle of a map `ratio.1` pixels high, in the one that it became, `ratio.0` high.
fn scaled(rectangle: Rectangle, ratio: (usize, usize)) -> Rectangle {
    let Rectangle { top, left, height, width } = rectangle;
    let scale = |length: usize| length * ratio.0 / ratio.1;
    Rectangle { top: scale(top), left: scale(left), height: scale(height), width: scale(width) }
}

impl TileSums {
    pub(super) fn new(middles: Vec<Rectangle>) -> Self {
        Self { middles, norms: Vec::new() }
    }

    /// Stretches of the first `count` tiles, where maps are larger than at the beginning by this ratio.
    fn stretches(&self, count: usize, ratio: (usize, usize)) -> usize {
        self.middles[..count].iter().map(|middle| scaled(*middle, ratio).row_blocks()).sum()
    }

    fn note(&mut self, recorder: &mut Recorder, x: &FeatureMap, layer: &GroupNorm, tile: &mut Tile) -> Result<()> {
        let ratio = (x.height, tile.height);
        if self.norms.len() == tile.norm {
            let all = self.stretches(self.middles.len(), ratio);
            self.norms.push((ChannelMoments::new(recorder.gpu(), x.images(), all, x.channels())?, layer.clone()));
        }
        let first = self.stretches(tile.index, ratio);
        self.norms[tile.norm].0.add(recorder, x, scaled(tile.middle, ratio), first)?;
        tile.norm += 1;
        Ok(())
    }

    /// Every norm's factors, from all tiles' sums.
    pub(super) fn factors(&self, recorder: &mut Recorder) -> Result<Vec<Tensor>> {
        self.norms.iter().map(|(sums, layer)| layer.factors(recorder, sums)).collect()
    }
}

impl Statistics<'_> {
    /// The norm, with SiLU behind it where `silu`.
    pub(super) fn norm(
        &mut self,
        recorder: &mut Recorder,
        x: &FeatureMap,
        layer: &GroupNorm,
        silu: bool,
    ) -> Result<FeatureMap> {
        if let Self::Noting(sums, tile) = self {
            sums.note(recorder, x, layer, tile)?;
        }
        if let Self::Given(factors) = self
            && let Some(factors) = factors.next()
        {
            return ops::scale_channels(recorder, x, factors, silu);
        }
        ops::group_norm(recorder, x, layer, silu)
    }
}
