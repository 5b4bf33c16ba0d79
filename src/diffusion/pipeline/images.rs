//! Images to latents, and latents to images.

use super::request::{DiffusionEvent, Mask, OnDiffusionEvent, emit};
use super::residency::{Networks, Part};
use crate::diffusion::networks::{MAX_MAP, VaeEncoder};
use crate::diffusion::preview::byte;
use crate::gpu::Gpu;
use crate::image::Image;
use crate::ops::FeatureMap;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// The limit of the autoencoder's feature maps when memory runs out with larger ones, in bytes.
const TIGHT_MAP: u64 = 32 << 20;

impl Networks {
    /// Encodes an image to latents, sampled with the noise `drawn`: [pixels, channels]. The pixels in `hidden` are
    /// grey.
    pub(super) async fn encode_image(
        &mut self,
        image: &Image,
        hidden: Option<&Mask>,
        drawn: &[f32],
        on_event: OnDiffusionEvent<'_>,
    ) -> Result<Vec<f32>> {
        let encoder = self.encoder(on_event).await?;
        let config = self.vae_config();
        let (height, width) = (image.height(), image.width());
        let is_hidden = |index: usize| hidden.and_then(|mask| mask.pixels.get(index)).copied().unwrap_or(false);
        let pixels: Vec<f32> = image
            .data()
            .chunks_exact(3)
            .enumerate()
            .flat_map(|(index, pixel)| {
                let value = |value| if is_hidden(index) { 0.0 } else { f32::from(value) / 127.5 - 1.0 };
                [value(pixel[0]), value(pixel[1]), value(pixel[2]), 0.0]
            })
            .collect();
        let mut largest = None;
        let moments = loop {
            match (encode(&self.gpu, &encoder, (height, width), &pixels, largest).await, self.smaller_maps(largest)) {
                (Err(Error::OutOfMemory { .. }), Some(smaller)) => {
                    self.gpu.trim();
                    largest = Some(smaller);
                }
                (moments, _) => break moments?,
            }
        };
        let channels = config.latent_channels;
        let latent = |(pixel, drawn): (&[f32], &[f32])| -> Vec<f32> {
            let (means, logs) = pixel.split_at(channels);
            (0..channels)
                .map(|channel| {
                    let deviation = (0.5 * logs[channel].clamp(-30.0, 20.0)).exp();
                    let sample = means[channel] + deviation * drawn[channel];
                    let mean = config.shift_factor + config.latents_mean.as_ref().map_or(0.0, |means| means[channel]);
                    let std = config.latents_std.as_ref().map_or(1.0, |stds| stds[channel]);
                    (sample - mean) * config.scaling_factor / std
                })
                .collect()
        };
        Ok(moments.chunks_exact(2 * channels).zip(drawn.chunks_exact(channels)).flat_map(latent).collect())
    }

    /// Decodes latents to an image. When memory runs out, feature maps become smaller, at last without other networks.
    pub(super) async fn decode(&mut self, latents: &FeatureMap, on_event: OnDiffusionEvent<'_>) -> Result<Image> {
        let mut largest = None;
        loop {
            match (self.decode_within(latents, largest, on_event).await, self.smaller_maps(largest)) {
                (Err(Error::OutOfMemory { .. }), Some(smaller)) => {
                    if smaller == TIGHT_MAP {
                        self.drop_all_but(Part::Vae);
                    }
                    self.gpu.trim();
                    largest = Some(smaller);
                }
                (decoded, _) => return decoded,
            }
        }
    }

    /// The limit of feature maps, in bytes, to try after memory ran out with `largest` (`None`: what seemed to be
    /// free); `None` after the last.
    fn smaller_maps(&self, largest: Option<u64>) -> Option<u64> {
        match largest {
            Some(TIGHT_MAP) => None,
            // Only devices with memory of their own have tried larger maps than these.
            None if self.gpu.capabilities().local_memory.is_some() => Some(MAX_MAP),
            _ => Some(TIGHT_MAP),
        }
    }

    async fn decode_within(
        &mut self,
        latents: &FeatureMap,
        largest: Option<u64>,
        on_event: OnDiffusionEvent<'_>,
    ) -> Result<Image> {
        let gpu = self.gpu.clone();
        let decoder = self.decoder(on_event).await?;
        emit(on_event, DiffusionEvent::Decoding)?;
        let mut recorder = gpu.record();
        let image = match largest {
            Some(largest) => decoder.decode_within(&mut recorder, latents, largest)?,
            None => decoder.decode(&mut recorder, latents)?,
        };
        let readback = image.values.read_back(&mut recorder);
        recorder.submit()?;
        let values = readback.values::<f32>().await?;
        // Maps of a whole image are too large to stay in the pool, next to the networks.
        if gpu.capabilities().local_memory.is_some() {
            gpu.trim();
        }
        if let Some((index, value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(Error::BadValue { name: "image".to_owned(), value: *value, index: index as u64 });
        }
        let channels = image.channels().max(1);
        let bytes = values.chunks_exact(channels).flat_map(|pixel| pixel.iter().take(3)).map(|value| byte(*value));
        Image::new(image.width, image.height, bytes.collect())
    }
}

/// Means and logarithms of variances of the latents of the `pixels` [height * width, 4], with feature maps of at most
/// `largest` bytes if that is given.
async fn encode(
    gpu: &Gpu,
    encoder: &VaeEncoder,
    (height, width): (usize, usize),
    pixels: &[f32],
    largest: Option<u64>,
) -> Result<Vec<f32>> {
    let mut recorder = gpu.record();
    let values = Tensor::upload(&mut recorder, &[height * width, 4], pixels, "image")?;
    let map = FeatureMap { height, width, values };
    let moments = match largest {
        Some(largest) => encoder.encode_within(&mut recorder, &map, largest)?,
        None => encoder.encode(&mut recorder, &map)?,
    };
    let readback = moments.values.read_back(&mut recorder);
    recorder.submit()?;
    readback.values::<f32>().await
}
