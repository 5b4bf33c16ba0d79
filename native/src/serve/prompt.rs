//! Prompts on their way to the engine.

use mgm::engine::digest::{CachedPosition, Salt};
use mgm::engine::images::JobImage;
use mgm::text::PromptToken;

use super::error::ApiError;
use super::image_loader::ImageLoader;
use super::image_url::ImageUrl;
use super::served::Served;

/// A prompt, and the images in it.
#[derive(Debug, Default)]
pub struct Prompt {
    tokens: Vec<PromptToken>,
    urls: Vec<ImageUrl>,
    /// Those of `urls` that are decoded.
    images: Vec<JobImage>,
}

impl Prompt {
    /// `urls`: an image for each of the tokens that stand for one, at most `max_images`.
    ///
    /// # Errors
    /// `too_many_images`; `invalid_value` if the model takes none.
    pub fn new(
        tokens: Vec<PromptToken>,
        urls: Vec<ImageUrl>,
        max_images: u32,
        served: &Served,
    ) -> Result<Self, ApiError> {
        let max = max_images as usize;
        if let Some(url) = urls.first().filter(|_| served.image_format.is_none()) {
            return Err(ApiError::invalid_value(&url.param, format!("the model {:?} takes no images", served.id)));
        }
        if let Some(url) = urls.get(max) {
            let message = format!("the request has {} images, expected at most {max} (--max-images)", urls.len());
            return Err(ApiError::too_many_images(&url.param, message));
        }
        let places = tokens.iter().filter(|token| **token == PromptToken::Image).count();
        if places != urls.len() {
            return Err(ApiError::internal(format!("a prompt has {places} places for {} images", urls.len())));
        }
        Ok(Self { tokens, urls, images: Vec::new() })
    }

    /// A prompt without images.
    pub fn of_ids(ids: Vec<u32>) -> Self {
        Self { tokens: ids.into_iter().map(PromptToken::Text).collect(), ..Self::default() }
    }

    /// Positions, and those of images among them.
    pub fn count(&self, served: &Served) -> (usize, usize) {
        let of_image = served.image_format.as_ref().map_or(0, |format| format.tokens());
        let of_images = self.urls.len() * of_image;
        (self.tokens.len() - self.urls.len() + of_images, of_images)
    }

    /// Decodes the images.
    ///
    /// # Errors
    /// `invalid_image`, `image_url_not_allowed`.
    pub async fn load_images(&mut self, loader: &ImageLoader, served: &Served, salt: &Salt) -> Result<(), ApiError> {
        let Some(format) = &served.image_format else { return Ok(()) };
        for url in std::mem::take(&mut self.urls) {
            self.images.push(loader.job_image(url, salt, format).await?);
        }
        Ok(())
    }

    /// The positions, and the images that they name.
    pub fn into_job(self, served: &Served) -> (Vec<CachedPosition>, Vec<JobImage>) {
        let mut positions = Vec::with_capacity(self.tokens.len());
        let mut next = self.images.iter();
        for token in self.tokens {
            match token {
                PromptToken::Text(id) => positions.push(CachedPosition::Text(id)),
                PromptToken::Image => {
                    if let (Some(image), Some(format)) = (next.next(), &served.image_format) {
                        positions.extend(format.positions(image.digest));
                    }
                }
            }
        }
        (positions, self.images)
    }
}
