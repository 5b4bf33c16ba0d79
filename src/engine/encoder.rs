//! Encodes the images of jobs, in slices, once for all jobs that wait for them.

use std::time::Duration;

use web_time::Instant;

use super::digest::CachedPosition;
use super::image_cache::{ImageCache, ImageKey};
use super::images::{ImageFormat, JobImage};
use super::job::Job;
use crate::gpu::Gpu;
use crate::language::{ImageId, Position};
use crate::tensor::Tensor;
use crate::vision::{SlicedEncoding, Vision};
use crate::{Error, Result};

/// Operations of a slice at least, and at most: those of a submission.
const LEAST_FLOPS: f64 = 1e9;
const MOST_FLOPS: f64 = 2e11;
/// Operations of the first slice on a software adapter, before anything was measured. On a GPU they are the most.
const FIRST_FLOPS: f64 = 2e10;

/// Positions as the language model takes them, and the visual tokens of their images.
type Inputs = (Vec<Position>, Vec<(ImageId, Tensor)>);

/// The images of a sequence.
#[derive(Debug, Default)]
pub(super) struct SequenceImages {
    /// As in the job.
    images: Vec<SequenceImage>,
    /// Images that were missing when the sequence was admitted.
    to_encode: usize,
    /// Stages that were reported.
    reported: usize,
}

#[derive(Debug)]
struct SequenceImage {
    key: ImageKey,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Its positions are in the cache of keys and values.
    Unneeded,
    Missing,
    Encoded(Tensor),
}

impl SequenceImages {
    /// Whether an image must be encoded before the prompt can be computed.
    pub fn are_missing(&self) -> bool {
        self.missing() > 0
    }

    fn missing(&self) -> usize {
        self.images.iter().filter(|image| matches!(image.state, State::Missing)).count()
    }

    /// Whether one image must be.
    pub fn miss(&self, key: &ImageKey) -> bool {
        self.images.iter().any(|image| matches!(image.state, State::Missing) && image.key == *key)
    }

    /// Takes the visual tokens of an image, if it misses it.
    pub fn receive(&mut self, key: &ImageKey, tokens: &Tensor) {
        for image in &mut self.images {
            if matches!(image.state, State::Missing) && image.key == *key {
                image.state = State::Encoded(tokens.clone());
            }
        }
    }

    /// Forgets the images that none of `positions`, which are still to be computed, names.
    pub fn keep_named(&mut self, job: &Job, positions: &[CachedPosition]) {
        for (image, named) in self.images.iter_mut().zip(&job.images) {
            if !is_named(positions, named) {
                image.state = State::Unneeded;
            }
        }
    }

    /// Forgets all visual tokens: the prompt is computed.
    pub fn drop_tokens(&mut self) {
        self.images.clear();
    }

    /// Positions of `job` as the language model takes them, and the visual tokens of their images.
    ///
    /// # Errors
    /// [`Error::Internal`] if the job does not have an image.
    pub fn inputs(&self, job: &Job, positions: &[CachedPosition]) -> Result<Inputs> {
        let position = |position: &CachedPosition| match position {
            CachedPosition::Text(id) => Ok(Position::Text(*id)),
            CachedPosition::Visual { image, row } => {
                let index = job.images.iter().position(|other| other.digest == *image);
                let index = index.ok_or_else(|| Error::Internal("a job without its image".to_owned()))?;
                Ok(Position::Visual { image: ImageId(index as u32), row: *row })
            }
        };
        let inputs = positions.iter().map(position).collect::<Result<_>>()?;
        let encoded = self.images.iter().enumerate().filter_map(|(index, image)| match &image.state {
            State::Encoded(tokens) => Some((ImageId(index as u32), tokens.clone())),
            State::Unneeded | State::Missing => None,
        });
        Ok((inputs, encoded.collect()))
    }
}

fn is_named(positions: &[CachedPosition], image: &JobImage) -> bool {
    positions.iter().any(|position| match position {
        CachedPosition::Text(_) => false,
        CachedPosition::Visual { image: named, .. } => *named == image.digest,
    })
}

fn key_of(job: &Job, image: &JobImage) -> ImageKey {
    ImageKey { salt: job.salt.clone(), digest: image.digest }
}

/// What was done about images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageFigures {
    /// Images that were encoded.
    pub encoded: u64,
    /// Images of admitted jobs whose visual tokens were cached.
    pub cached: u64,
    /// Slices of encodings.
    pub slices: u64,
    /// Images that were dropped from the cache for want of room.
    pub evicted: u64,
    /// Bytes of the cached visual tokens.
    pub cached_bytes: u64,
}

/// Encodes one image at a time, and caches visual tokens.
#[derive(Debug)]
pub(super) struct Encoder<'a> {
    gpu: Gpu,
    model: Option<(&'a Vision, ImageFormat)>,
    cache: ImageCache<Tensor>,
    encoding: Option<Encoding<'a>>,
    /// An image whose encoding ran out of memory once.
    retried: Option<ImageKey>,
    /// The time of a slice.
    duration: Duration,
    /// Operations per second.
    rate: Option<f64>,
    figures: ImageFigures,
}

/// An image that is being encoded.
#[derive(Debug)]
struct Encoding<'a> {
    key: ImageKey,
    slices: SlicedEncoding<'a>,
}

impl<'a> Encoder<'a> {
    /// `limit`: bytes of the cache. `duration`: the time of a slice.
    pub(super) fn new(gpu: &Gpu, limit: u64, duration: Duration) -> Self {
        Self {
            gpu: gpu.clone(),
            model: None,
            cache: ImageCache::new(limit),
            encoding: None,
            retried: None,
            duration,
            rate: None,
            figures: ImageFigures::default(),
        }
    }

    pub(super) fn set_vision(&mut self, vision: &'a Vision) {
        self.model = Some((vision, ImageFormat::new(vision)));
    }

    pub(super) fn figures(&self) -> ImageFigures {
        ImageFigures { evicted: self.cache.evicted(), cached_bytes: self.cache.bytes(), ..self.figures }
    }

    /// Checks that a job has all images that its prompt names, and that the model takes them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if not.
    pub(super) fn check(&self, job: &Job) -> Result<()> {
        let mut visual = job.prompt.iter().filter_map(|position| match position {
            CachedPosition::Text(_) => None,
            CachedPosition::Visual { image, row } => Some((image, *row)),
        });
        let Some((_, format)) = &self.model else {
            if visual.next().is_none() && job.images.is_empty() {
                return Ok(());
            }
            return Err(Error::InvalidArgument("the engine has no vision networks, so it takes no images".to_owned()));
        };
        job.images.iter().try_for_each(|image| format.check(image))?;
        for (digest, row) in visual {
            let is_given = job.images.iter().any(|image| image.digest == *digest);
            if !is_given || row as usize >= format.tokens() {
                return Err(Error::InvalidArgument(format!("visual token {row} of an image is missing in a job")));
            }
        }
        Ok(())
    }

    /// The images of a job whose `positions` are to be computed.
    pub(super) fn admit(&mut self, job: &Job, positions: &[CachedPosition]) -> SequenceImages {
        let mut images = Vec::with_capacity(job.images.len());
        for image in &job.images {
            let key = key_of(job, image);
            let state = match is_named(positions, image).then(|| self.cache.get(&key)) {
                None => State::Unneeded,
                Some(None) => State::Missing,
                Some(Some(tokens)) => {
                    self.figures.cached += 1;
                    State::Encoded(tokens)
                }
            };
            images.push(SequenceImage { key, state });
        }
        let mut images = SequenceImages { images, to_encode: 0, reported: 0 };
        images.to_encode = images.missing();
        images
    }

    /// One slice of the encoding in progress; if there is none, of the first image that a job's sequence misses.
    /// Returns the image that it was the last slice of, and its visual tokens [tokens, hidden] or what is wrong with
    /// it.
    ///
    /// # Errors
    /// Those after which nothing else can be computed, such as [`Error::DeviceLost`].
    pub(super) async fn slice(
        &mut self,
        job: &Job,
        images: &SequenceImages,
    ) -> Result<Option<(ImageKey, Result<Tensor>)>> {
        let mut encoding = match self.encoding.take() {
            Some(encoding) => encoding,
            None => {
                let missing = images.images.iter().position(|image| matches!(image.state, State::Missing));
                let (Some(index), Some((vision, format))) = (missing, &self.model) else { return Ok(None) };
                let key = images.images[index].key.clone();
                match format.views(&job.images[index].data) {
                    Ok(views) => Encoding { key, slices: vision.encode_in_slices(&self.gpu, views) },
                    Err(error) => return Ok(Some((key, Err(error)))),
                }
            }
        };
        let started = Instant::now();
        let encoded = encoding.slices.slice(self.flops()).await;
        self.figures.slices += 1;
        match encoded {
            Ok(None) => {
                self.measured(encoding.slices.flops(), started.elapsed());
                self.encoding = Some(encoding);
                Ok(None)
            }
            Ok(Some(tokens)) => {
                self.retried = None;
                self.figures.encoded += 1;
                self.cache.insert(encoding.key.clone(), tokens.clone(), tokens.bytes());
                Ok(Some((encoding.key, Ok(tokens))))
            }
            Err(Error::OutOfMemory { .. }) if self.retried.as_ref() != Some(&encoding.key) => {
                // Once more from its start, with all memory that can be freed.
                let Encoding { key, slices } = encoding;
                drop(slices);
                self.cache.clear();
                self.gpu.trim();
                self.retried = Some(key);
                Ok(None)
            }
            // What is wrong with one image is no reason to end other jobs.
            Err(error @ (Error::OutOfMemory { .. } | Error::InvalidArgument(_) | Error::WrongShape { .. })) => {
                self.retried = None;
                Ok(Some((encoding.key, Err(error))))
            }
            Err(error) => Err(error),
        }
    }

    /// The stages that were computed of the images that a sequence missed, and all of them; `None` if they are those of
    /// the last call.
    pub(super) fn progress(&self, images: &mut SequenceImages) -> Option<(usize, usize)> {
        let stages = self.model.as_ref().map_or(0, |(vision, _)| vision.stages());
        let current = self.encoding.as_ref().filter(|encoding| images.miss(&encoding.key));
        let current = current.map_or(0, |encoding| encoding.slices.done());
        let done = (images.to_encode - images.missing()) * stages + current;
        (std::mem::replace(&mut images.reported, done) != done).then_some((done, images.to_encode * stages))
    }

    /// Stops the encoding in progress if no one waits for its image any more.
    pub(super) fn stop_unwanted<'j>(
        &mut self,
        mut sequences: impl Iterator<Item = &'j SequenceImages>,
        mut waiting: impl Iterator<Item = &'j Job>,
    ) {
        let Some(Encoding { key, .. }) = &self.encoding else { return };
        let is_image = |job: &Job| job.images.iter().any(|image| key_of(job, image) == *key);
        if !sequences.any(|images| images.miss(key)) && !waiting.any(is_image) {
            self.encoding = None;
        }
    }

    /// Operations that take about as long as a slice should.
    fn flops(&self) -> f64 {
        let first = if self.gpu.is_software() { FIRST_FLOPS } else { MOST_FLOPS };
        let flops = self.rate.map_or(first, |rate| rate * self.duration.as_secs_f64());
        flops.clamp(LEAST_FLOPS, MOST_FLOPS)
    }

    fn measured(&mut self, flops: f64, time: Duration) {
        // Short ones are mostly latency.
        if flops < LEAST_FLOPS {
            return;
        }
        let rate = flops / time.as_secs_f64().max(1e-6);
        // Times vary with what else the device does.
        self.rate = Some(self.rate.map_or(rate, |before| 0.5 * (before + rate)));
    }
}
