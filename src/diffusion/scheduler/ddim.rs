//! DDIM (Song and others, 2020) without new noise:
//!
//! ```text
//! x <- sqrt(abar_next) * x0 + sqrt(1 - abar_next) * epsilon
//! ```
//!
//! The sample is sqrt(abar) times the image plus sqrt(1 - abar) times unit noise.

use super::noise::{self, alphas_cumprod, times};
use super::{DenoisedCoefficients, Schedule, Step, StepCoefficients};
use crate::weights::sdxl::config::SchedulerConfig;
use crate::{Error, Result};

pub(super) fn schedule(config: &SchedulerConfig, steps: usize, first: usize) -> Result<Schedule> {
    let alphas = alphas_cumprod(config);
    let times = times(config, config.num_train_timesteps, steps, 0);
    let last = if config.set_alpha_to_one { 1.0 } else { alphas[0] };
    let distance = (config.num_train_timesteps / steps) as i64;
    let at = |time: i64| match usize::try_from(time) {
        Ok(index) => alphas.get(index).copied().map(f64::from).ok_or_else(|| {
            let reason =
                format!("timestep {time} exceeds the {} training timesteps: is steps_offset too large?", alphas.len());
            Error::Config { file: "scheduler_config.json".to_owned(), reason }
        }),
        Err(_) => Ok(f64::from(last)),
    };
    let mut list = Vec::new();
    for time in times.into_iter().map(|time| time.round_ties_even() as i64).skip(first) {
        let (now, next) = (at(time)?, at(time - distance)?);
        let (signal, noise) = (now.sqrt(), (1.0 - now).sqrt());
        let (x0, epsilon) = config.prediction_type.coefficients(signal, noise);
        let direction = (1.0 - next).sqrt();
        list.push(Step {
            timestep: time as f32,
            input_scale: 1.0,
            denoised: DenoisedCoefficients::new(x0, config.clip_sample_range),
            next: StepCoefficients {
                sample: (direction * epsilon[0]) as f32,
                output: (direction * epsilon[1]) as f32,
                denoised: next.sqrt() as f32,
                ..StepCoefficients::default()
            },
            draws_noise: false,
            start: [signal as f32, noise as f32],
        });
    }
    let trained = noise::sigmas(&alphas);
    let mut sigmas: Vec<f32> = list.iter().map(|step| trained[step.timestep as usize]).collect();
    sigmas.push(0.0);
    Ok(Schedule { steps: list, sigmas, initial_scale: 1.0 })
}
