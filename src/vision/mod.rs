//! From a picture to visual tokens: both towers, patch info mining, projector, and the order of the HD models' tiles.

mod clip;
mod convnext;
mod mining;
mod projector;

use crate::gpu::{Gpu, Recorder};
use crate::image::{Preprocess, Views};
use crate::load::{Loader, OnProgress};
use crate::ops::{self, FeatureMap, MiningMap};
use crate::tensor::{Precision, Tensor};
use crate::weights::config::{AspectRatio, ClipConfig, VisionConfig};
use crate::weights::mgm::VisionWeights;
use crate::{Error, Result};

pub use clip::ClipVit;
pub use convnext::{ConvNext, ConvNextConfig};
pub use mining::{PatchInfoMining, Tile};
pub use projector::Projector;

/// The vision side of a model.
#[derive(Debug)]
pub struct Vision {
    config: VisionConfig,
    image_size: usize,
    clip: ClipVit,
    convnext: ConvNext,
    mining: PatchInfoMining,
    projector: Projector,
}

/// What a picture became on the way to visual tokens.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// CLIP's features, [patches, width] for every tile, the global one last.
    pub low: Vec<Tensor>,
    /// ConvNeXt's maps at strides 4, 8, 16 and 32.
    pub high: [FeatureMap; 4],
    /// Mined features of every tile in the order of the tokens: the global one first.
    pub mined: Vec<Tensor>,
    /// Visual tokens, [tokens, hidden_size].
    pub tokens: Tensor,
}

/// Where a vision side's loaders start.
struct Parts {
    clip: Loader,
    convnext: Loader,
    mining: Loader,
    projector: Loader,
}

impl Vision {
    /// Loads a checkpoint's vision side for a language model of width `hidden_size`.
    pub async fn load(
        gpu: &Gpu,
        weights: &VisionWeights,
        hidden_size: usize,
        precision: Precision,
        on_progress: Option<OnProgress>,
    ) -> Result<Self> {
        let loader =
            |weights: &crate::weights::view::Weights| Loader::new(gpu, weights.clone(), precision, on_progress.clone());
        let parts = Parts {
            clip: loader(&weights.clip),
            convnext: loader(&weights.convnext),
            mining: loader(&weights.mining),
            projector: loader(&weights.projector),
        };
        let convnext = ConvNextConfig::from_weights(&weights.convnext)?;
        Self::from_parts(&parts, weights.config.clone(), &weights.clip_config, &convnext, hidden_size).await
    }

    /// A vision side of these shapes with random weights.
    pub async fn random(
        loader: &Loader,
        config: VisionConfig,
        clip: &ClipConfig,
        convnext: &ConvNextConfig,
        hidden_size: usize,
    ) -> Result<Self> {
        let parts = Parts {
            clip: loader.pp("clip"),
            convnext: loader.pp("convnext"),
            mining: loader.pp("mining"),
            projector: loader.pp("projector").pp("layers"),
        };
        Self::from_parts(&parts, config, clip, convnext, hidden_size).await
    }

    async fn from_parts(
        parts: &Parts,
        config: VisionConfig,
        clip: &ClipConfig,
        convnext: &ConvNextConfig,
        hidden_size: usize,
    ) -> Result<Self> {
        let mismatch = |key: &str, found: usize, expected: usize| Error::Config {
            file: "config.json".to_owned(),
            reason: format!("{key} is {found}, but the tower's tensors say {expected}"),
        };
        if config.hidden_size != clip.hidden_size {
            return Err(mismatch("mm_hidden_size", config.hidden_size, clip.hidden_size));
        }
        if config.high_hidden_size != convnext.channels() {
            return Err(mismatch("mm_hidden_size_aux", config.high_hidden_size, convnext.channels()));
        }
        // Of all tiles; the global view's windows have as many cells, of more texels.
        let window = config.high_image_size / 4 / config.grid / clip.grid();
        ops::check_windows(window, if config.global { config.grid } else { 1 })?;
        Ok(Self {
            image_size: clip.image_size,
            clip: ClipVit::load(&parts.clip, clip, config.select_layer).await?,
            convnext: ConvNext::load(&parts.convnext, convnext).await?,
            mining: PatchInfoMining::load(&parts.mining, config.hidden_size, config.high_hidden_size).await?,
            projector: Projector::load(&parts.projector, config.projector, config.hidden_size, hidden_size).await?,
            config,
        })
    }

    /// How pictures are prepared for this model.
    pub fn preprocess(&self) -> Preprocess {
        Preprocess {
            size_high: self.config.high_image_size,
            size_low: self.image_size,
            grid: self.config.grid,
            global: self.config.global,
            pad: self.config.aspect_ratio == AspectRatio::Pad,
            ..Preprocess::default()
        }
    }

    /// Cells of the high-resolution map along one side.
    pub fn cells(&self) -> usize {
        self.config.high_image_size / 4
    }

    /// Visual tokens that a picture gives.
    pub fn tokens(&self) -> usize {
        let tiles = self.config.grid * self.config.grid + usize::from(self.config.global);
        tiles * self.clip.patches()
    }

    /// Visual tokens of a picture's views, computed when this returns. `attended` [cells * cells] takes the weight that each
    /// cell of the high-resolution map got from the token of its tile that mined it. `on_step` hears of stages of the work
    /// that are done, and how many there are; it gives `false` to stop.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if it was stopped.
    pub async fn encode(
        &self,
        recorder: &mut Recorder,
        views: &Views,
        attended: Option<&Tensor>,
        on_step: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Encoded> {
        let (grid, size) = (self.config.grid, self.config.high_image_size);
        let mut steps = Steps { done: 0, all: self.convnext.stages().len() + views.low.len() + 1, on_step };
        let pixels = Tensor::upload(recorder, &[3, size, size], &views.high, "high-resolution view")?;
        let mut x = self.convnext.stem(recorder, &pixels, size)?;
        let mut high = Vec::new();
        for stage in self.convnext.stages() {
            x = stage.forward(recorder, &x)?;
            high.push(x.clone());
            steps.step(recorder).await?;
        }
        let high: [FeatureMap; 4] =
            high.try_into().map_err(|_| Error::InvalidArgument("a ConvNeXt has four stages".to_owned()))?;
        let mut low = Vec::new();
        for tile in &views.low {
            let pixels = Tensor::upload(recorder, &[3, self.image_size, self.image_size], tile, "low-resolution view")?;
            low.push(self.clip.forward(recorder, &pixels)?);
            steps.step(recorder).await?;
        }

        // The global tile is last among the views and first among the tokens; it looks at the averaged map.
        let (tiles, global) = low.split_at(grid * grid);
        let mut mined = Vec::new();
        let maps = [(global, grid), (tiles, 1)];
        for (tiles, pool) in maps.into_iter().filter(|(tiles, _)| !tiles.is_empty()) {
            let map = MiningMap { stages: high.clone(), pool };
            let statistics = self.mining.statistics(recorder, &map)?;
            let tiles_wide = grid / pool;
            let cells = map.height() / tiles_wide;
            for (index, x) in tiles.iter().enumerate() {
                let tile = Tile {
                    map: &map,
                    statistics: &statistics,
                    window: cells / x.rows().isqrt(),
                    origin: (index / tiles_wide * cells, index % tiles_wide * cells),
                    // The global view's map is a smaller one.
                    attended: attended.filter(|_| pool == 1),
                };
                mined.push(self.mining.forward(recorder, x, &tile)?);
            }
        }

        let rows = mined.iter().map(Tensor::rows).sum();
        let all = Tensor::temporary(recorder.gpu(), &[rows, self.config.hidden_size], "mined features")?;
        let mut row = 0;
        for tile in &mined {
            tile.copy_to(recorder, &all, row);
            row += tile.rows();
        }
        let tokens = self.projector.forward(recorder, &all)?;
        steps.step(recorder).await?;
        Ok(Encoded { low, high, mined, tokens })
    }
}

/// Work in stages that are waited for, so that progress is true and a stop takes effect.
struct Steps<'a> {
    done: usize,
    all: usize,
    on_step: &'a mut dyn FnMut(usize, usize) -> bool,
}

impl Steps<'_> {
    async fn step(&mut self, recorder: &mut Recorder) -> Result<()> {
        recorder.finish().await?;
        self.done += 1;
        if (self.on_step)(self.done, self.all) { Ok(()) } else { Err(Error::Cancelled) }
    }
}
