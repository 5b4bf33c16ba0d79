//! Decodes the images of requests, a few at a time, and remembers the last ones.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mgm::engine::digest::Salt;
use mgm::engine::images::{ImageData, ImageFormat, JobImage};
use mgm::image::{Image, ImageDecoding, decode_mask_within, decode_within};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::caller::on_blocking_thread;
use super::error::ApiError;
use super::image_url::ImageUrl;

/// Images that are decoded at a time. One of 40 million pixels can take 320 MB meanwhile.
const DECODERS: usize = 2;
/// Bytes of the images that are remembered.
const REMEMBERED: usize = 64 << 20;

/// Whose image file it is, and which: a user must not learn from the time to an answer what others sent.
type FileKey = [u8; 32];

/// Makes of image files what the engine takes.
#[derive(Debug)]
pub struct ImageLoader {
    max_pixels: u64,
    decoders: Arc<Semaphore>,
    recent: Arc<Recent>,
}

impl ImageLoader {
    /// `max_pixels`: of an image.
    pub fn new(max_pixels: u64) -> Self {
        Self { max_pixels, decoders: Arc::new(Semaphore::new(DECODERS)), recent: Arc::default() }
    }

    /// Decodes an image and prepares it for the engine, unless it was one of the last ones.
    ///
    /// # Errors
    /// Those of [`ImageUrl::bytes`]; `invalid_image`.
    pub async fn job_image(&self, url: ImageUrl, salt: &Salt, format: &ImageFormat) -> Result<JobImage, ApiError> {
        let (max_pixels, recent) = (self.max_pixels, self.recent.clone());
        let (salt, format) = (salt.clone(), format.clone());
        self.decode(move || {
            let bytes = url.bytes()?;
            let key = file_key(&salt, &bytes);
            if let Some(image) = recent.get(&key) {
                return Ok(image);
            }
            let image = decode_image(&url.param, &bytes, max_pixels)?;
            drop(bytes);
            let image =
                format.prepare(&image).map_err(|error| ApiError::invalid_image(&url.param, error.to_string()))?;
            recent.insert(key, &image);
            Ok(image)
        })
        .await
    }

    /// Decodes an image file of the field `param`.
    ///
    /// # Errors
    /// `invalid_image`.
    pub async fn image(&self, param: &'static str, bytes: Vec<u8>) -> Result<Image, ApiError> {
        let max_pixels = self.max_pixels;
        self.decode(move || decode_image(param, &bytes, max_pixels)).await
    }

    /// Decodes a mask in the field `param`, whose transparent pixels are white.
    ///
    /// # Errors
    /// `invalid_image`.
    pub async fn mask(&self, param: &'static str, bytes: Vec<u8>) -> Result<Image, ApiError> {
        let max_pixels = self.max_pixels;
        self.decode(move || {
            let mask = decode_mask_within(param, &bytes, max_pixels);
            mask.map_err(|error| ApiError::invalid_image(param, error.to_string()))
        })
        .await
    }

    async fn decode<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        // Threads that wait for a permit would be missing for requests without images. It is never closed.
        let permit = self.decoders.clone().acquire_owned().await.map_err(|_| ApiError::draining())?;
        on_blocking_thread(move || {
            // Also if the request is dropped meanwhile.
            let _permit = permit;
            work()
        })
        .await
    }
}

fn decode_image(param: &str, bytes: &[u8], max_pixels: u64) -> Result<Image, ApiError> {
    let image = decode_within(param, bytes, ImageDecoding::Corrected, max_pixels);
    image.map_err(|error| ApiError::invalid_image(param, error.to_string()))
}

fn file_key(salt: &Salt, bytes: &[u8]) -> FileKey {
    let mut hasher = Sha256::new();
    hasher.update((salt.0.len() as u64).to_le_bytes());
    hasher.update(&salt.0);
    hasher.update(bytes);
    hasher.finalize().into()
}

/// The last images, the latest last.
#[derive(Debug, Default)]
struct Recent(Mutex<Vec<(FileKey, JobImage)>>);

impl Recent {
    fn images(&self) -> MutexGuard<'_, Vec<(FileKey, JobImage)>> {
        // No code panics while it has the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &FileKey) -> Option<JobImage> {
        let mut images = self.images();
        let index = images.iter().position(|(found, _)| found == key)?;
        let entry = images.remove(index);
        let image = entry.1.clone();
        images.push(entry);
        Some(image)
    }

    fn insert(&self, key: FileKey, image: &JobImage) {
        let mut images = self.images();
        // Two requests may have decoded it at once.
        images.retain(|(found, _)| *found != key);
        images.push((key, image.clone()));
        let mut bytes = 0;
        let fitting = images.iter().rev().take_while(|(_, image)| {
            bytes += size(image);
            bytes <= REMEMBERED
        });
        let dropped = images.len() - fitting.count();
        images.drain(..dropped);
    }
}

/// Bytes that an image takes.
fn size(image: &JobImage) -> usize {
    match &image.data {
        ImageData::Pixels(image) => image.data().len(),
        ImageData::Views(views) => {
            let values = views.high.len() + views.low.iter().map(Vec::len).sum::<usize>();
            values * size_of::<f32>()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(side: usize, colour: u8) -> JobImage {
        let image = Image::new(side, side, vec![colour; 3 * side * side]).expect("an image");
        let digest = mgm::engine::digest::ImageDigest::new(&image, "");
        JobImage { digest, data: ImageData::Pixels(Arc::new(image)) }
    }

    #[test]
    fn the_last_images_are_remembered_up_to_a_size() {
        let recent = Recent::default();
        // 27 MB each: two fit.
        let images = [0, 1, 2].map(|colour| image(3000, colour));
        let keys = [0, 1, 2].map(|index| [index; 32]);
        recent.insert(keys[0], &images[0]);
        recent.insert(keys[1], &images[1]);
        assert_eq!(recent.get(&keys[0]).map(|image| image.digest), Some(images[0].digest));
        recent.insert(keys[2], &images[2]);
        let found = keys.map(|key| recent.get(&key).is_some());
        assert_eq!(found, [true, false, true], "the least recently used one is dropped");
    }

    #[test]
    fn files_are_each_users_own() {
        let keys = [Salt(vec![1]), Salt(vec![2]), Salt::default()].map(|salt| file_key(&salt, b"a"));
        assert!(keys[0] != keys[1] && keys[1] != keys[2]);
        assert_ne!(file_key(&Salt(vec![1]), b"23"), file_key(&Salt(vec![1, b'2']), b"3"));
    }
}
