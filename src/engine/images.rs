//! Images of jobs, as hosts prepare them.

use std::sync::Arc;

use super::digest::{CachedPosition, ImageDigest};
use crate::image::{Image, Preprocess, Views};
use crate::vision::Vision;
use crate::{Error, Result};

/// How a model encodes images: what a host needs, on any thread, to put them into jobs.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageFormat {
    preprocess: Preprocess,
    high_resolution: bool,
    tokens: usize,
}

impl ImageFormat {
    /// That of a model.
    pub fn new(vision: &Vision) -> Self {
        Self { preprocess: vision.preprocess(), high_resolution: vision.high_resolution(), tokens: vision.tokens() }
    }

    /// Visual tokens of an image.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Identifies the visual tokens of an image: they depend on its size, its pixels and this format.
    pub fn digest(&self, image: &Image) -> ImageDigest {
        ImageDigest::new(image, &format!("{:?}, high resolution: {}", self.preprocess, self.high_resolution))
    }

    /// The positions of an image in a prompt.
    pub fn positions(&self, image: ImageDigest) -> impl Iterator<Item = CachedPosition> {
        (0..self.tokens as u32).map(move |row| CachedPosition::Visual { image, row })
    }

    /// Resizes and normalises an image for a job, which takes time that the engine's thread is better without.
    ///
    /// # Errors
    /// As [`Preprocess::views`].
    pub fn prepare(&self, image: &Image) -> Result<JobImage> {
        let views = self.preprocess.views(image)?;
        Ok(JobImage { digest: self.digest(image), data: ImageData::Views(Arc::new(views)) })
    }

    /// An image for a job, which the engine resizes if it has to encode it.
    pub fn unprepared(&self, image: Arc<Image>) -> JobImage {
        JobImage { digest: self.digest(&image), data: ImageData::Pixels(image) }
    }

    pub(super) fn check(&self, image: &JobImage) -> Result<()> {
        let ImageData::Views(views) = &image.data else { return Ok(()) };
        let Preprocess { size_high, size_low, grid, global, .. } = self.preprocess;
        let (high, low) = (3 * size_high * size_high, 3 * size_low * size_low);
        let tiles = grid * grid + usize::from(global);
        if views.high.len() != high || views.low.len() != tiles || views.low.iter().any(|tile| tile.len() != low) {
            return Err(Error::InvalidArgument(format!(
                "an image has a view of {} samples and tiles of {:?}, the model takes {high} and {tiles} tiles of {low}",
                views.high.len(),
                views.low.iter().map(Vec::len).collect::<Vec<_>>(),
            )));
        }
        Ok(())
    }

    pub(super) fn views(&self, image: &ImageData) -> Result<Arc<Views>> {
        match image {
            ImageData::Pixels(image) => Ok(Arc::new(self.preprocess.views(image)?)),
            ImageData::Views(views) => Ok(views.clone()),
        }
    }
}

/// An image in a job's prompt, made by [`ImageFormat::prepare`]. Clones share the pixels.
#[derive(Debug, Clone)]
pub struct JobImage {
    /// Names it in the prompt.
    pub digest: ImageDigest,
    /// What it is encoded from, if the engine has not cached its visual tokens.
    pub data: ImageData,
}

/// The pixels of an image.
#[derive(Debug, Clone)]
pub enum ImageData {
    /// As decoded.
    Pixels(Arc<Image>),
    /// Resized and normalised for the model.
    Views(Arc<Views>),
}
