//! From an image to visual tokens: both towers, patch info mining, the projector, and the tiles of the HD models.

mod clip;
mod convnext;
mod mining;
mod projector;
mod slices;

use std::ops::ControlFlow;

use crate::gpu::{DryRunReport, Gpu, Recorder};
use crate::image::{Preprocess, Views};
use crate::loader::{Loader, OnProgress};
use crate::ops::{self, FeatureMap, MiningMap};
use crate::tensor::{Precision, Tensor};
use crate::weights::config::{AspectRatio, ClipConfig, ConvNextConfig, VisionConfig};
use crate::weights::mgm::VisionWeights;
use crate::{Error, Result};

pub use clip::ClipVit;
pub use convnext::ConvNext;
pub use mining::{PatchInfoMining, Tile};
pub use projector::Projector;
pub use slices::SlicedEncoding;
use slices::Stages;

/// The vision side of a model.
#[derive(Debug)]
pub struct Vision {
    config: VisionConfig,
    image_size: usize,
    clip: ClipVit,
    high: Option<HighResolution>,
    projector: Projector,
}

/// The high-resolution branch. Without it only the features of the low-resolution tower go to the projector, as if
/// every mined window were zero; the number of visual tokens stays the same. No released model was trained without it:
/// leaving it out measures the effect of mining.
#[derive(Debug)]
struct HighResolution {
    convnext: ConvNext,
    mining: PatchInfoMining,
}

/// The visual tokens of an image, and the features that they are computed from.
#[derive(Debug, Clone)]
pub struct VisionOutput {
    /// CLIP's features, [patches, width] for every tile. The global tile is last.
    pub low: Vec<Tensor>,
    /// ConvNeXt's maps at strides 4, 8, 16 and 32; `None` without the high-resolution branch.
    pub high: Option<[FeatureMap; 4]>,
    /// Mined features of every tile in the order of the tokens: the global tile is first. Without the high-resolution
    /// branch, the features of [`VisionOutput::low`] in that order.
    pub mined: Vec<Tensor>,
    /// Visual tokens, [tokens, hidden_size].
    pub tokens: Tensor,
}

impl Vision {
    /// Loads a checkpoint's vision side for a language model of width `hidden_size`. Without `high_resolution`, only
    /// the low-resolution tower and the projector.
    ///
    /// # Errors
    /// As [`Loader::matrix`]; [`Error::Config`] if the configuration and the towers differ in a size.
    pub async fn load(
        gpu: &Gpu,
        weights: &VisionWeights,
        hidden_size: usize,
        precision: Precision,
        high_resolution: bool,
        on_progress: Option<OnProgress>,
    ) -> Result<Self> {
        let parts = [&weights.clip, &weights.convnext, &weights.mining, &weights.projector]
            .map(|weights| Loader::new(gpu, weights.clone(), precision, on_progress.clone()));
        let convnext = if high_resolution { Some(ConvNextConfig::from_weights(&weights.convnext)?) } else { None };
        Self::from_parts(&parts, weights.config.clone(), &weights.clip_config, convnext.as_ref(), hidden_size).await
    }

    /// A vision side of these shapes with random weights.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn random(
        loader: &Loader,
        config: VisionConfig,
        clip: &ClipConfig,
        convnext: &ConvNextConfig,
        hidden_size: usize,
    ) -> Result<Self> {
        let parts = ["clip", "convnext", "mining", "projector.layers"].map(|part| loader.pp(part));
        Self::from_parts(&parts, config, clip, Some(convnext), hidden_size).await
    }

    /// `parts`: the loaders of CLIP, ConvNeXt, mining and projector.
    async fn from_parts(
        [clip_loader, convnext_loader, mining_loader, projector_loader]: &[Loader; 4],
        config: VisionConfig,
        clip: &ClipConfig,
        convnext: Option<&ConvNextConfig>,
        hidden_size: usize,
    ) -> Result<Self> {
        let mismatch = |key: &str, found: usize, expected: usize| Error::Config {
            file: "config.json".to_owned(),
            reason: format!("{key} is {found}, but the tower's tensors have {expected}"),
        };
        if config.hidden_size != clip.hidden_size {
            return Err(mismatch("mm_hidden_size", config.hidden_size, clip.hidden_size));
        }
        if let Some(convnext) = convnext {
            if config.high_hidden_size != convnext.channels() {
                return Err(mismatch("mm_hidden_size_aux", config.high_hidden_size, convnext.channels()));
            }
            // For all tiles: the global view's windows have the same number of cells, but more texels per cell.
            let window = config.high_image_size / 4 / config.grid / clip.grid();
            ops::check_windows(window, if config.global { config.grid } else { 1 })?;
        }
        Ok(Self {
            image_size: clip.image_size,
            clip: ClipVit::load(clip_loader, clip, config.select_layer).await?,
            high: match convnext {
                Some(convnext) => Some(HighResolution {
                    convnext: ConvNext::load(convnext_loader, convnext).await?,
                    mining: PatchInfoMining::load(mining_loader, &config).await?,
                }),
                None => None,
            },
            projector: Projector::load(projector_loader, &config, hidden_size).await?,
            config,
        })
    }

    /// The preprocessing of images for this model.
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

    /// Whether the high-resolution branch is loaded.
    pub fn high_resolution(&self) -> bool {
        self.high.is_some()
    }

    /// Cells of the high-resolution map along one side.
    pub fn cells(&self) -> usize {
        self.config.high_image_size / 4
    }

    /// Visual tokens of an image.
    pub fn tokens(&self) -> usize {
        self.tiles() * self.clip.patches()
    }

    /// Low-resolution tiles of an image.
    fn tiles(&self) -> usize {
        self.config.grid * self.config.grid + usize::from(self.config.global)
    }

    /// Submits the networks over an image's views and waits for the visual tokens. `attended` [cells * cells] receives
    /// the attention weight that each cell of the high-resolution map gets from its low-resolution token; without the
    /// high-resolution branch it is not written. `on_step` is called with the steps done and their total.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `on_step` returned [`ControlFlow::Break`].
    pub async fn encode_and_wait(
        &self,
        recorder: &mut Recorder,
        views: &Views,
        attended: Option<&Tensor>,
        on_step: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<VisionOutput> {
        self.encode(recorder, views, attended, &mut Stages::new(self.stages(), on_step)).await
    }

    async fn encode(
        &self,
        recorder: &mut Recorder,
        views: &Views,
        attended: Option<&Tensor>,
        stages: &mut Stages<'_>,
    ) -> Result<VisionOutput> {
        let high = match &self.high {
            Some(high) => Some(self.high_map(high, recorder, &views.high, stages).await?),
            None => None,
        };
        let mut low = Vec::new();
        for tile in &views.low {
            let pixels = Tensor::upload(recorder, &[3, self.image_size, self.image_size], tile, "low-resolution view")?;
            low.push(self.clip.forward(recorder, &pixels, stages).await?);
            stages.end(recorder).await?;
        }
        // The global tile is last among the views and first among the tokens.
        let (tiles, global) = low.split_at(self.config.grid * self.config.grid);
        let mined = match (&self.high, &high) {
            (Some(branch), Some(map)) => self.mine(&branch.mining, recorder, map, tiles, global, attended)?,
            _ => [global, tiles].concat(),
        };

        let rows = mined.iter().map(Tensor::rows).sum();
        let all = Tensor::temporary(recorder.gpu(), &[rows, self.config.hidden_size], "mined features")?;
        let mut row = 0;
        for tile in &mined {
            tile.copy_to(recorder, &all, row);
            row += tile.rows();
        }
        let tokens = self.projector.forward(recorder, &all)?;
        stages.end(recorder).await?;
        Ok(VisionOutput { low, high, mined, tokens })
    }

    /// Records the dispatches for an image in a prompt without running them; `gpu` is planned ([`Gpu::plan`]).
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub async fn dry_run(&self, gpu: &Gpu) -> Result<DryRunReport> {
        let Preprocess { size_high, size_low, grid, global, .. } = self.preprocess();
        let view = |side: usize| vec![0.0; 3 * side * side];
        let views = Views { high: view(size_high), low: vec![view(size_low); grid * grid + usize::from(global)] };
        let mut recorder = gpu.dry_run();
        let on_step = &mut |_, _| ControlFlow::Continue(());
        let tokens = self.encode_and_wait(&mut recorder, &views, None, on_step).await?.tokens;
        // The prompt's embeddings take the visual tokens from there.
        let rows = Tensor::zeros(gpu, &[1], "visual rows")?;
        ops::gather_rows(&mut recorder, &rows, &tokens, 1.0, &tokens.slice_rows(0..1))?;
        Ok(recorder.into_report())
    }

    /// The four stages' maps of the high-resolution view.
    async fn high_map(
        &self,
        high: &HighResolution,
        recorder: &mut Recorder,
        view: &[f32],
        stages: &mut Stages<'_>,
    ) -> Result<[FeatureMap; 4]> {
        let size = self.config.high_image_size;
        let pixels = Tensor::upload(recorder, &[3, size, size], view, "high-resolution view")?;
        let mut x = high.convnext.stem(recorder, &pixels, size)?;
        let mut maps = Vec::new();
        for stage in high.convnext.stages() {
            x = stage.forward(recorder, &x, stages).await?;
            maps.push(x.clone());
            stages.end(recorder).await?;
        }
        maps.try_into().map_err(|_| Error::Internal("a ConvNeXt has four stages".to_owned()))
    }

    /// Mined features in the order of the tokens. The global tile attends to the averaged map.
    fn mine(
        &self,
        mining: &PatchInfoMining,
        recorder: &mut Recorder,
        high: &[FeatureMap; 4],
        tiles: &[Tensor],
        global: &[Tensor],
        attended: Option<&Tensor>,
    ) -> Result<Vec<Tensor>> {
        let grid = self.config.grid;
        let mut mined = Vec::new();
        let maps = [(global, grid), (tiles, 1)];
        for (tiles, pool) in maps.into_iter().filter(|(tiles, _)| !tiles.is_empty()) {
            let map = MiningMap { stages: high.clone(), pool };
            let statistics = mining.statistics(recorder, &map)?;
            let tiles_wide = grid / pool;
            let cells = map.height() / tiles_wide;
            for (index, x) in tiles.iter().enumerate() {
                let tile = Tile {
                    map: &map,
                    statistics: &statistics,
                    window: cells / x.rows().isqrt(),
                    origin: (index / tiles_wide * cells, index % tiles_wide * cells),
                    // The averaged map of the global view has fewer cells than `attended`.
                    attended: attended.filter(|_| pool == 1),
                };
                mined.push(mining.forward(recorder, x, &tile)?);
            }
        }
        Ok(mined)
    }
}
