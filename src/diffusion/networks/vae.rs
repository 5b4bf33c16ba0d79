//! The autoencoder between images and latents (Rombach et al., 2022).
//!
//! An image's feature maps can exceed the binding limit or the memory: 1024 x 1024 pixels of 256 channels are 1 GiB. In
//! that case the layers near the pixels run in tiles, with margins as wide as the receptive field of those layers, and
//! in two passes. In the first pass each tile is normalised by its own mean and variance, and the moments of the tiles'
//! cores are added up. In the second pass all tiles are normalised by the total. Neighbouring tiles then have equal
//! values where they meet, so there are no seams and no blending.

use super::pixel_attention::PixelAttention;
use super::resnet::Resnet;
use super::statistics::{NormStats, Tile, TileSums};
use super::tiles::{TileRegion, copy, crop, tile_regions};
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::ops::{self, ConvEpilogue, ConvMode, Convolution, FeatureMap, GroupNorm, Rectangle};
use crate::tensor::{Inputs, Precision, Tensor};
use crate::weights::sdxl::config::VaeConfig;
use crate::weights::sdxl::expected;
use crate::{Error, Result};

/// The eps of all norms.
const EPS: f32 = 1e-6;
/// Under a memory limit, the largest map takes at most 1 / MEMORY_SHARE of the free memory: a residual block holds four
/// maps at a time.
const MEMORY_SHARE: u64 = 5;
/// The largest map in bytes where the memory is shared with the system, or its size unknown. At this size a tile's
/// margins cost little, but tiles are computed twice, which costs as much as the whole decoder.
pub(in crate::diffusion) const MAX_MAP: u64 = 256 << 20;

/// A layer of the up or down blocks.
#[derive(Debug)]
enum Step {
    Resnet(Box<Resnet>),
    Resample(Convolution),
    /// The last norm, SiLU and convolution.
    Out(GroupNorm, Convolution),
}

/// The mid block: attention between residual blocks.
#[derive(Debug)]
struct Mid {
    before: Resnet,
    attention: Option<PixelAttention>,
    after: Resnet,
}

/// The decoder, from latents to images.
#[derive(Debug)]
pub struct VaeDecoder {
    /// A 1 x 1 convolution that includes the latents' scale.
    unscale: Convolution,
    conv_in: Convolution,
    mid: Mid,
    steps: Vec<Step>,
}

/// The encoder, from images to means and variances of latents.
#[derive(Debug)]
pub struct VaeEncoder {
    conv_in: Convolution,
    steps: Vec<Step>,
    mid: Mid,
    out: Step,
    quant: Option<Convolution>,
    multiple: usize,
}

async fn load_resnet(loader: &Loader, index: usize, config: &VaeConfig) -> Result<Resnet> {
    Resnet::load(&loader.pp("resnets").pp(index), config.norm_num_groups, EPS).await
}

impl Step {
    /// The steps of every level: `count` residual blocks each, and a resampling convolution except in the last level.
    async fn load_levels(
        loader: &Loader,
        count: usize,
        (resample, mode): (&str, ConvMode),
        config: &VaeConfig,
    ) -> Result<Vec<Self>> {
        let mut steps = Vec::new();
        for level in 0..config.block_out_channels.len() {
            let block = loader.pp(level);
            for index in 0..count {
                steps.push(Self::Resnet(Box::new(load_resnet(&block, index, config).await?)));
            }
            if block.contains(&format!("{resample}.weight")) {
                steps.push(Self::Resample(block.convolution(resample, mode).await?));
            }
        }
        Ok(steps)
    }

    async fn out(loader: &Loader, config: &VaeConfig) -> Result<Self> {
        let norm = loader.group_norm("conv_norm_out", config.norm_num_groups, EPS).await?;
        Ok(Self::Out(norm, loader.convolution("conv_out", ConvMode::Same).await?))
    }

    fn forward(&self, recorder: &mut Recorder, x: &FeatureMap, statistics: &mut NormStats<'_>) -> Result<FeatureMap> {
        match self {
            Self::Resnet(layer) => layer.forward(recorder, x, None, statistics),
            Self::Resample(layer) => ops::convolution(recorder, x, layer, ConvEpilogue::default()),
            Self::Out(norm, layer) => {
                let narrow_inputs = statistics.fits_f16(x, norm);
                let x = statistics.norm(recorder, x, norm, true)?;
                ops::convolution(recorder, &x, layer, ConvEpilogue { narrow_inputs, ..Default::default() })
            }
        }
    }

    /// The size of its result.
    fn size(&self, height: usize, width: usize) -> (usize, usize) {
        match self {
            Self::Resample(layer) => layer.size(height, width),
            _ => (height, width),
        }
    }

    /// The bytes of its largest input or output map.
    fn largest(&self, height: usize, width: usize) -> u64 {
        let bytes = |(height, width): (usize, usize), channels: usize| (height * width * channels) as u64 * 4;
        let (channels, out) = match self {
            Self::Resnet(layer) => (layer.channels(), layer.channels_out()),
            Self::Resample(layer) | Self::Out(_, layer) => (layer.channels, layer.weight.rows()),
        };
        bytes((height, width), channels).max(bytes(self.size(height, width), out))
    }

    /// The radius of its receptive field, in pixels of its result.
    fn reach(&self) -> usize {
        match self {
            Self::Resnet(_) => 2,
            _ => 1,
        }
    }
}

impl Mid {
    async fn load(loader: &Loader, config: &VaeConfig) -> Result<Self> {
        Ok(Self {
            before: load_resnet(loader, 0, config).await?,
            attention: match config.mid_block_attention {
                true => Some(PixelAttention::load(&loader.pp("attentions.0"), config.norm_num_groups, EPS).await?),
                false => None,
            },
            after: load_resnet(loader, 1, config).await?,
        })
    }

    fn forward(&self, recorder: &mut Recorder, x: &FeatureMap) -> Result<FeatureMap> {
        let x = self.before.forward(recorder, x, None, &mut NormStats::Local)?;
        if let Some(attention) = &self.attention {
            attention.forward(recorder, &x)?;
        }
        self.after.forward(recorder, &x, None, &mut NormStats::Local)
    }
}

impl VaeDecoder {
    /// Loads the decoder of an autoencoder in the layout of diffusers.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub async fn load(loader: &Loader, config: &VaeConfig) -> Result<Self> {
        // SDXL's autoencoder is known to exceed f16, except after norms (`GroupNorm::fits_f16`).
        let loader = loader.network(expected::vae(config)).inputs(Inputs::Wide);
        let decoder = loader.pp("decoder");
        let resample = ("upsamplers.0.conv", ConvMode::Upsample2);
        let mut steps =
            Step::load_levels(&decoder.pp("up_blocks"), config.layers_per_block + 1, resample, config).await?;
        steps.push(Step::out(&decoder, config).await?);
        Ok(Self {
            unscale: unscale(&loader, config).await?,
            conv_in: decoder.convolution("conv_in", ConvMode::Same).await?,
            mid: Mid::load(&decoder.pp("mid_block"), config).await?,
            steps,
        })
    }

    /// Decodes the latents [height * width, latent_channels] of one image, at the UNet's scale, to pixels [.., 3] of
    /// about -1 to 1. Runs in tiles if a map would exceed a binding or the memory limit.
    ///
    /// # Errors
    /// [`Error::WrongShape`] if `latents` are not those of one image.
    pub fn decode(&self, recorder: &mut Recorder, latents: &FeatureMap) -> Result<FeatureMap> {
        let largest = largest_map(recorder);
        self.decode_within(recorder, latents, largest)
    }

    /// As [`Self::decode`], with maps of at most `largest` bytes. Tiles have at least one pixel.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_within(&self, recorder: &mut Recorder, latents: &FeatureMap, largest: u64) -> Result<FeatureMap> {
        expect_one_image(latents)?;
        let x = ops::convolution(recorder, latents, &self.unscale, ConvEpilogue::default())?;
        let x = ops::convolution(recorder, &x, &self.conv_in, ConvEpilogue::default())?;
        let mut x = self.mid.forward(recorder, &x)?;
        for (index, step) in self.steps.iter().enumerate() {
            if step.largest(x.height, x.width) > largest {
                return forward_tiled(recorder, &x, &self.steps[index..], largest, 1);
            }
            x = step.forward(recorder, &x, &mut NormStats::Local)?;
        }
        Ok(x)
    }
}

impl VaeEncoder {
    /// Loads the encoder of an autoencoder in the layout of diffusers.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub async fn load(loader: &Loader, config: &VaeConfig) -> Result<Self> {
        // SDXL's autoencoder is known to exceed f16, except after norms (`GroupNorm::fits_f16`).
        let loader = loader.network(expected::vae(config)).inputs(Inputs::Wide);
        let encoder = loader.pp("encoder");
        let resample = ("downsamplers.0.conv", ConvMode::Stride2PadEnd);
        Ok(Self {
            conv_in: encoder.convolution("conv_in", ConvMode::Same).await?,
            steps: Step::load_levels(&encoder.pp("down_blocks"), config.layers_per_block, resample, config).await?,
            mid: Mid::load(&encoder.pp("mid_block"), config).await?,
            out: Step::out(&encoder, config).await?,
            quant: match config.use_quant_conv {
                true => Some(loader.convolution("quant_conv", ConvMode::Same).await?),
                false => None,
            },
            multiple: config.pixels_per_latent(),
        })
    }

    /// Encodes the pixels [height * width, 4] of one image: three channels from -1 to 1, then a channel of zeros. Sides
    /// are multiples of [`VaeConfig::pixels_per_latent`]. Returns moments [.., 2 latent_channels]: means, then
    /// logarithms of variances, before scaling by [`VaeConfig::scaling_factor`].
    ///
    /// # Errors
    /// [`Error::WrongShape`] if `pixels` are not those of one image; [`Error::InvalidArgument`] for other sides.
    pub fn encode(&self, recorder: &mut Recorder, pixels: &FeatureMap) -> Result<FeatureMap> {
        let largest = largest_map(recorder);
        self.encode_within(recorder, pixels, largest)
    }

    /// As [`Self::encode`], with maps of at most `largest` bytes where tiles can be that small.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_within(&self, recorder: &mut Recorder, pixels: &FeatureMap, largest: u64) -> Result<FeatureMap> {
        expect_one_image(pixels)?;
        let (mut height, mut width) = (pixels.height, pixels.width);
        if !height.is_multiple_of(self.multiple) || !width.is_multiple_of(self.multiple) {
            return Err(Error::InvalidArgument(format!(
                "an image of {width} x {height} pixels, expected sides that are multiples of {}",
                self.multiple
            )));
        }
        // The layers up to the last one whose map is too large run in tiles.
        let mut tiled = 0;
        for (index, step) in self.steps.iter().enumerate() {
            if step.largest(height, width) > largest {
                tiled = index + 1;
            }
            (height, width) = step.size(height, width);
        }
        let (first, rest) = self.steps.split_at(tiled);
        let mut x = if first.is_empty() {
            ops::convolution(recorder, pixels, &self.conv_in, ConvEpilogue::default())?
        } else {
            forward_tiled_from(recorder, pixels, Some(&self.conv_in), first, largest, self.multiple)?
        };
        for step in rest {
            x = step.forward(recorder, &x, &mut NormStats::Local)?;
        }
        let x = self.mid.forward(recorder, &x)?;
        let x = self.out.forward(recorder, &x, &mut NormStats::Local)?;
        match &self.quant {
            Some(quant) => ops::convolution(recorder, &x, quant, ConvEpilogue::default()),
            None => Ok(x),
        }
    }
}

/// The 1 x 1 convolution before the decoder (or an identity), which also undoes the latents' scale.
async fn unscale(loader: &Loader, config: &VaeConfig) -> Result<Convolution> {
    let channels = config.latent_channels;
    let padded = channels.next_multiple_of(4);
    let (weight, mut bias) = if config.use_post_quant_conv {
        let part = loader.pp("post_quant_conv");
        (part.values("weight").await?, part.values("bias").await?)
    } else {
        let identity = (0..channels * channels).map(|at| f32::from(u8::from(at % (channels + 1) == 0)));
        (identity.collect(), vec![0.0; channels])
    };
    // latent = (z - shift - mean) scale / std, so z = latent std / scale + mean + shift.
    let mut scaled = vec![0.0; channels * padded];
    for row in 0..channels {
        for column in 0..channels {
            let std = config.latents_std.as_ref().map_or(1.0, |std| std[column]);
            let mean = config.latents_mean.as_ref().map_or(0.0, |mean| mean[column]) + config.shift_factor;
            let value = weight[row * channels + column];
            scaled[row * padded + column] = value * std / config.scaling_factor;
            bias[row] += value * mean;
        }
    }
    Ok(Convolution {
        weight: loader.at(Precision::F32).computed("post_quant_conv", padded, &scaled).await?,
        bias: loader.upload("post_quant_conv.bias", &[channels], &bias).await?,
        channels: padded,
        side: 1,
        mode: ConvMode::Same,
    })
}

fn expect_one_image(x: &FeatureMap) -> Result<()> {
    if x.images() == 1 && x.height * x.width == x.values.rows() {
        return Ok(());
    }
    Err(Error::WrongShape {
        name: "autoencoder".to_owned(),
        found: x.values.shape().to_vec(),
        expected: format!("one image of {} x {}", x.height, x.width),
    })
}

/// The largest map that fits a binding and the share [`MEMORY_SHARE`] of the free memory, in bytes: at most [`MAX_MAP`]
/// unless a discrete GPU has memory for more, so that an image of 1024 x 1024 takes one pass (maps of 1 GiB).
fn largest_map(recorder: &Recorder) -> u64 {
    let gpu = recorder.gpu();
    let memory = gpu.memory();
    let left = memory.limit.map_or(u64::MAX, |limit| limit.saturating_sub(memory.allocated));
    // A quarter of a discrete GPU's memory is left to other programs.
    let local = gpu.capabilities().local_memory.map_or(0, |bytes| (bytes / 4 * 3).saturating_sub(memory.allocated));
    gpu.capabilities().max_shard_bytes().min(left / MEMORY_SHARE).min(MAX_MAP.max(local / MEMORY_SHARE))
}

fn forward_tiled(
    recorder: &mut Recorder,
    x: &FeatureMap,
    steps: &[Step],
    largest: u64,
    multiple: usize,
) -> Result<FeatureMap> {
    forward_tiled_from(recorder, x, None, steps, largest, multiple)
}

/// Runs `first` and `steps` over a map in tiles. Tiles start at multiples of `multiple`.
fn forward_tiled_from(
    recorder: &mut Recorder,
    x: &FeatureMap,
    first: Option<&Convolution>,
    steps: &[Step],
    largest: u64,
    multiple: usize,
) -> Result<FeatureMap> {
    // The output size of a map of UNIT x UNIT pixels gives the ratio of output to input size.
    const UNIT: usize = 1 << 10;
    let (mut size, mut reach, mut bytes) = ((UNIT, UNIT), if first.is_some() { UNIT } else { 0 }, 0);
    for step in steps {
        bytes = bytes.max(step.largest(size.0, size.1));
        size = step.size(size.0, size.1);
        // In input pixels times UNIT: after halving, a pixel spans two of the input.
        reach += step.reach() * UNIT * UNIT / size.0;
    }
    let per_pixel = (bytes / (UNIT * UNIT) as u64).max(1);
    let margin = reach / UNIT + 2;
    let side = ((largest / per_pixel).isqrt() as usize).saturating_sub(2 * margin.next_multiple_of(multiple)).max(1);
    let regions = tile_regions(x.height, x.width, side, margin, multiple);
    let forward =
        |recorder: &mut Recorder, region: &TileRegion, statistics: &mut NormStats<'_>| -> Result<FeatureMap> {
            let mut tile = crop(recorder, x, region.tile)?;
            if let Some(layer) = first {
                tile = ops::convolution(recorder, &tile, layer, ConvEpilogue::default())?;
            }
            for step in steps {
                tile = step.forward(recorder, &tile, statistics)?;
            }
            Ok(tile)
        };

    let mut sums = TileSums::new(regions.iter().map(TileRegion::core_in_tile).collect());
    for (index, region) in regions.iter().enumerate() {
        let tile = Tile { height: region.tile.height, core_in_tile: region.core_in_tile(), index, norm: 0 };
        forward(recorder, region, &mut NormStats::Accumulate(&mut sums, tile))?;
    }
    let factors = sums.factors(recorder)?;
    let ratio = |length: usize| length * size.0 / UNIT;
    let (height, width) = (ratio(x.height), ratio(x.width));
    let mut whole: Option<FeatureMap> = None;
    for region in &regions {
        let share = (x.height * x.width) as f64 / (region.tile.height * region.tile.width) as f64;
        let tile = forward(recorder, region, &mut NormStats::Global(factors.iter(), share))?;
        if whole.is_none() {
            let pixels = Tensor::temporary(recorder.gpu(), &[height * width, tile.channels()], "assembled tiles")?;
            whole = Some(FeatureMap { height, width, values: pixels });
        }
        if let Some(whole) = &whole {
            let Rectangle { top, left, height, width } = region.core_in_tile();
            let part = Rectangle { top: ratio(top), left: ratio(left), height: ratio(height), width: ratio(width) };
            copy(recorder, &tile, part, whole, (ratio(region.core.top), ratio(region.core.left)));
        }
    }
    whole.ok_or_else(|| Error::Internal("a feature map without pixels".to_owned()))
}
