//! Latent consistency models (Luo and others, 2023): every step denoises completely, then adds new noise.

use super::noise::{alphas_cumprod, linspace, sigmas};
use super::{DenoisedCoefficients, Schedule, Step, StepCoefficients};
use crate::weights::sdxl::config::SchedulerConfig;
use crate::{Error, Result};

/// The standard deviation of images that the boundary condition assumes.
const SIGMA_DATA: f64 = 0.5;

pub(super) fn schedule(config: &SchedulerConfig, steps: usize, first: usize) -> Result<Schedule> {
    let alphas = alphas_cumprod(config);
    let (original, scaling) = (config.lcm.original_inference_steps, config.lcm.timestep_scaling);
    if steps > original {
        return Err(Error::InvalidArgument(format!(
            "{steps} steps, but the LCM scheduler has at most {original} (original_inference_steps)"
        )));
    }
    let distance = config.num_train_timesteps / original;
    // The timesteps of the distillation from the last to the first, and `steps` of them at even distances.
    let training: Vec<usize> = (1..=original).rev().map(|step| step * distance - 1).collect();
    let spacing = linspace(0.0, original as f64, steps + 1);
    let times: Vec<usize> = (0..steps).map(|step| training[spacing[step].floor() as usize]).collect();

    let mut list = Vec::new();
    for (index, time) in times.iter().enumerate().skip(first) {
        let now = f64::from(alphas[*time]);
        let (signal, noise) = (now.sqrt(), (1.0 - now).sqrt());
        let (x0, _) = config.prediction_type.coefficients(signal, noise);
        let scaled = *time as f64 * scaling;
        let skip = SIGMA_DATA * SIGMA_DATA / (scaled * scaled + SIGMA_DATA * SIGMA_DATA);
        let out = scaled / (scaled * scaled + SIGMA_DATA * SIGMA_DATA).sqrt();
        let (image_scale, noise_scale) = match times.get(index + 1) {
            Some(next) => (f64::from(alphas[*next]).sqrt(), (1.0 - f64::from(alphas[*next])).sqrt()),
            None => (1.0, 0.0),
        };
        list.push(Step {
            timestep: *time as f32,
            input_scale: 1.0,
            denoised: DenoisedCoefficients::new(x0, config.clip_sample_range),
            next: StepCoefficients {
                sample: (image_scale * skip) as f32,
                denoised: (image_scale * out) as f32,
                noise: noise_scale as f32,
                ..StepCoefficients::default()
            },
            draws_noise: index + 1 < times.len(),
            start: [signal as f32, noise as f32],
        });
    }
    let trained = sigmas(&alphas);
    let mut sigmas: Vec<f32> = times.iter().skip(first).map(|time| trained[*time]).collect();
    sigmas.push(0.0);
    Ok(Schedule { steps: list, sigmas, initial_scale: 1.0 })
}
