//! Latent consistency models (Luo and others, 2023): every step goes all the way to the picture, and then back up with new noise.

use super::noise::{alphas_cumprod, linspace, sigmas};
use super::{Denoised, Next, Schedule, Step};
use crate::weights::sdxl::config::SchedulerConfig;
use crate::{Error, Result};

/// The scale of pictures that the boundary condition assumes.
const SIGMA_DATA: f64 = 0.5;

pub(super) fn schedule(config: &SchedulerConfig, steps: usize, first: usize) -> Result<Schedule> {
    let alphas = alphas_cumprod(config);
    let (original, scaling) = (config.lcm.original_inference_steps, config.lcm.timestep_scaling);
    if steps > original {
        return Err(Error::InvalidArgument(format!(
            "{steps} steps, but an LCM scheduler chooses from {original} (original_inference_steps): ask for fewer"
        )));
    }
    let distance = config.num_train_timesteps / original;
    // The training's times from the last to the first, and `steps` of them, evenly.
    let training: Vec<usize> = (1..=original).rev().map(|step| step * distance - 1).collect();
    let spacing = linspace(0.0, original as f64, steps + 1);
    let times: Vec<usize> = (0..steps).map(|step| training[spacing[step].floor() as usize]).collect();

    let mut made = Vec::new();
    for (index, time) in times.iter().enumerate().skip(first) {
        let now = f64::from(alphas[*time]);
        let (signal, noise) = (now.sqrt(), (1.0 - now).sqrt());
        let (x0, _) = config.prediction_type.parts(signal, noise);
        let scaled = *time as f64 * scaling;
        let skip = SIGMA_DATA * SIGMA_DATA / (scaled * scaled + SIGMA_DATA * SIGMA_DATA);
        let out = scaled / (scaled * scaled + SIGMA_DATA * SIGMA_DATA).sqrt();
        let (kept, new) = match times.get(index + 1) {
            Some(next) => (f64::from(alphas[*next]).sqrt(), (1.0 - f64::from(alphas[*next])).sqrt()),
            None => (1.0, 0.0),
        };
        made.push(Step {
            timestep: *time as f32,
            input_scale: 1.0,
            denoised: Denoised {
                sample: x0[0] as f32,
                output: x0[1] as f32,
                clamp: config.clip_sample_range.unwrap_or(f32::INFINITY),
            },
            next: Next {
                sample: (kept * skip) as f32,
                denoised: (kept * out) as f32,
                noise: new as f32,
                ..Next::default()
            },
            draws_noise: index + 1 < times.len(),
            start: [signal as f32, noise as f32],
        });
    }
    let trained = sigmas(&alphas);
    let mut sigmas: Vec<f32> = times.iter().skip(first).map(|time| trained[*time]).collect();
    sigmas.push(0.0);
    Ok(Schedule { steps: made, sigmas, initial_scale: 1.0 })
}
