//! Previews of latents: colours as a linear function of the four channels, one pixel per latent.

use crate::image::Image;
use crate::{Error, Result};

/// Red, green and blue of each channel of Stable Diffusion XL's latents, fitted to the output of its VAE.
const COLOURS: [[f32; 3]; 4] =
    [[0.3651, 0.4232, 0.4341], [-0.2533, -0.0042, 0.1068], [0.1076, 0.1111, -0.0362], [-0.3165, -0.2492, -0.2188]];
/// The colour of latents that are zero.
const GREY: [f32; 3] = [0.1084, -0.0175, -0.0011];

/// A rough image of denoised latents [height, width, 4].
///
/// # Errors
/// [`Error::InvalidArgument`] if the number of latents differs.
pub fn preview(latents: &[f32], width: usize, height: usize) -> Result<Image> {
    if latents.len() != width * height * COLOURS.len() {
        let found = latents.len();
        return Err(Error::InvalidArgument(format!(
            "{found} latents for a preview of {width} x {height} pixels with 4 channels"
        )));
    }
    let pixel = |latent: &[f32]| {
        let mut colour = GREY;
        for (value, weights) in latent.iter().zip(COLOURS) {
            colour.iter_mut().zip(weights).for_each(|(colour, weight)| *colour += value * weight);
        }
        colour.map(byte)
    };
    Image::new(width, height, latents.chunks_exact(COLOURS.len()).flat_map(pixel).collect())
}

/// A value from -1 to 1 as a byte.
pub(super) fn byte(value: f32) -> u8 {
    ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_channel_is_brightness() {
        let image = preview(&[3.0, 0.0, 0.0, 0.0, -3.0, 0.0, 0.0, 0.0], 2, 1).unwrap();
        assert!(image.data()[..3].iter().all(|value| *value > 240), "{image:?}");
        assert!(image.data()[3..].iter().all(|value| *value < 15), "{image:?}");
        assert!(preview(&[0.0; 7], 2, 1).is_err());
        assert_eq!([-2.0, -1.0, 0.0, 1.0, f32::NAN].map(byte), [0, 0, 128, 255, 0]);
    }
}
