//! Defaults and limits of image requests. The command line, the npm package and the pipeline share them.

use std::ops::RangeInclusive;

use crate::{Error, Result};

/// The default number of denoising steps, as in diffusers.
pub const DEFAULT_NUM_INFERENCE_STEPS: usize = 50;
/// The default guidance scale, as in diffusers.
pub const DEFAULT_GUIDANCE_SCALE: f32 = 5.0;
/// The default strength of image-to-image.
pub const DEFAULT_STRENGTH: f32 = 0.6;
/// The default strength of inpainting, as in diffusers: the first step is left out, so that the image shows through.
pub const DEFAULT_INPAINTING_STRENGTH: f32 = 0.9999;
/// The maximum number of denoising steps: the timesteps that models are trained with.
pub const MAX_NUM_INFERENCE_STEPS: usize = 1000;
/// Guidance scales.
pub const GUIDANCE_SCALE: RangeInclusive<f32> = 0.0..=1000.0;
/// The largest width or height of an image, in pixels.
pub const MAX_SIDE: usize = 8192;

/// Checks a number of denoising steps. `max` is the scheduler's maximum, at most [`MAX_NUM_INFERENCE_STEPS`].
///
/// # Errors
/// [`Error::InvalidArgument`] with the range.
pub fn check_num_inference_steps(steps: usize, max: usize) -> Result<()> {
    let max = max.min(MAX_NUM_INFERENCE_STEPS);
    check((1..=max).contains(&steps), || format!("{steps} steps, expected 1 to {max}"))
}

/// Checks a guidance scale.
///
/// # Errors
/// [`Error::InvalidArgument`] with the range.
pub fn check_guidance_scale(scale: f32) -> Result<()> {
    check(GUIDANCE_SCALE.contains(&scale), || {
        format!("a guidance scale of {scale}, expected {} to {}", GUIDANCE_SCALE.start(), GUIDANCE_SCALE.end())
    })
}

/// Checks the strength of image-to-image.
///
/// # Errors
/// [`Error::InvalidArgument`] with the range.
pub fn check_strength(strength: f32) -> Result<()> {
    check(strength > 0.0 && strength <= 1.0, || format!("a strength of {strength}, expected above 0 and at most 1"))
}

/// Checks width and height in pixels: multiples of `multiple`, at most [`MAX_SIDE`].
///
/// # Errors
/// [`Error::InvalidArgument`] with the limits.
pub fn check_size((width, height): (usize, usize), multiple: usize) -> Result<()> {
    let fits = |side: usize| side > 0 && side.is_multiple_of(multiple) && side <= MAX_SIDE;
    check(fits(width) && fits(height), || {
        format!(
            "an image of {width} x {height} pixels, expected sides that are multiples of {multiple}, up to {MAX_SIDE}"
        )
    })
}

fn check(valid: bool, message: impl FnOnce() -> String) -> Result<()> {
    if valid { Ok(()) } else { Err(Error::InvalidArgument(message())) }
}
