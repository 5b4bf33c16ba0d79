//! Images of conversations.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::Result;
use crate::image::Image;
use crate::language::ImageId;
use crate::tensor::Tensor;

/// An image of a conversation. Its pixels are read only if it was not encoded before. [`Image`] implements it;
/// implement it for images whose pixels are elsewhere.
pub trait ImageSource {
    /// A hash of the size and the pixels. Images with the same hash are encoded once.
    fn content_hash(&self) -> u64;

    /// The pixels.
    ///
    /// # Errors
    /// Those of the implementation, such as [`Error::Image`](crate::Error::Image) if decoding fails.
    fn pixels(&self) -> Result<Cow<'_, Image>>;
}

impl ImageSource for Image {
    fn content_hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.width(), self.height(), self.data()).hash(&mut hasher);
        hasher.finish()
    }

    fn pixels(&self) -> Result<Cow<'_, Image>> {
        Ok(Cow::Borrowed(self))
    }
}

impl<T: ImageSource + ?Sized> ImageSource for &T {
    fn content_hash(&self) -> u64 {
        (**self).content_hash()
    }

    fn pixels(&self) -> Result<Cow<'_, Image>> {
        (**self).pixels()
    }
}

impl<T: ImageSource + ?Sized> ImageSource for Box<T> {
    fn content_hash(&self) -> u64 {
        (**self).content_hash()
    }

    fn pixels(&self) -> Result<Cow<'_, Image>> {
        (**self).pixels()
    }
}

/// Images in memory as the sources that [`Chat::restore`](super::Chat::restore) takes.
pub fn image_sources(images: &[Image]) -> Vec<&dyn ImageSource> {
    images.iter().map(|image| image as &dyn ImageSource).collect()
}

/// The visual tokens of an image.
#[derive(Debug, Clone)]
pub(super) struct EncodedImage {
    /// [tokens, hidden]
    pub tokens: Tensor,
    /// Identifies it among all images of its [`Chat`](super::Chat).
    pub id: ImageId,
    /// [`ImageSource::content_hash`]
    pub hash: u64,
}
