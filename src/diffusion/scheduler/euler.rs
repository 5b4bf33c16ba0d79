//! Euler's method, and its ancestral form, which replaces some of the noise by new noise in each step.
//!
//! The sample is the image plus sigma times unit noise. With x0 the denoised sample, the slope is (x - x0) / sigma:
//!
//! ```text
//! Euler:      x <- x + slope * (sigma_next - sigma)
//! ancestral:  x <- x + slope * (sigma_down - sigma) + sigma_up * noise
//! ```

use super::noise::{self, alphas_cumprod, edm_sigmas, interpolate, linspace_f32, time_of, times};
use super::{DenoisedCoefficients, Schedule, Step, StepCoefficients, preconditioning};
use crate::Result;
use crate::weights::sdxl::config::{PredictionType, SchedulerClass, SchedulerConfig, TimestepSpacing};

pub(super) fn schedule(config: &SchedulerConfig, steps: usize, first: usize) -> Result<Schedule> {
    let ancestral = config.class == SchedulerClass::EulerAncestral;
    let alphas = alphas_cumprod(config);
    let trained = noise::sigmas(&alphas);
    let mut times: Vec<f64> =
        times(config, config.num_train_timesteps, steps, 0).into_iter().map(|t| f64::from(t as f32)).collect();
    let mut sigmas: Vec<f64> = times.iter().map(|time| interpolate(&trained, *time)).collect();
    let last = trained.first().map_or(0.0, |sigma| f64::from(*sigma));
    if let Some(edm) = &config.edm {
        (times, sigmas) = edm_sigmas(edm, steps);
    } else if !ancestral {
        if config.log_linear_interpolation {
            let (first, last) = (trained[trained.len() - 1].ln(), trained[0].ln());
            sigmas = linspace_f32(first, last, steps + 1).into_iter().map(|log| f64::from(log.exp())).collect();
        }
        let bounds = (sigmas.first().copied().unwrap_or(1.0), sigmas.last().copied().unwrap_or(1.0));
        if let Some(scheduled) = noise::sigma_schedule(config, bounds.0, bounds.1, steps) {
            times = scheduled.iter().map(|sigma| time_of(&trained, *sigma)).collect();
            sigmas = scheduled;
        }
    }
    let ends_above_zero = !ancestral && config.final_sigma_min && config.edm.is_none();
    sigmas.push(if ends_above_zero { last } else { 0.0 });
    let sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
    let continuous = !ancestral && config.continuous_timesteps && config.prediction_type == PredictionType::VPrediction;

    let step = |index: usize| {
        let (sigma, next) = (f64::from(sigmas[index]), f64::from(sigmas[index + 1]));
        // The model's input is this sample times input_scale.
        let (input_scale, [denoised, output]) = match &config.edm {
            Some(edm) => preconditioning(edm, config.prediction_type, sigma),
            None => {
                let scale = 1.0 / (sigma * sigma + 1.0).sqrt();
                let denoised = match config.prediction_type {
                    PredictionType::Epsilon => [1.0, -sigma],
                    PredictionType::VPrediction => [scale * scale, -sigma * scale],
                    PredictionType::Sample => [0.0, 1.0],
                };
                (scale, denoised)
            }
        };
        let (down, up) = if ancestral {
            let up = (next * next * (sigma * sigma - next * next) / (sigma * sigma)).sqrt();
            ((next * next - up * up).max(0.0).sqrt(), up)
        } else {
            (next, 0.0)
        };
        let along = (down - sigma) / sigma;
        Step {
            timestep: if continuous { 0.25 * sigmas[index].ln() } else { times[index] as f32 },
            input_scale: input_scale as f32,
            denoised: DenoisedCoefficients::new([denoised, output], None),
            next: StepCoefficients {
                sample: (1.0 + along * (1.0 - denoised)) as f32,
                output: (-along * output) as f32,
                noise: up as f32,
                ..StepCoefficients::default()
            },
            draws_noise: ancestral,
            start: [1.0, sigma as f32],
        }
    };
    let max = sigmas.iter().copied().fold(0.0, f32::max);
    let steps = (first..times.len()).map(step).collect();
    let spread = matches!(config.timestep_spacing, TimestepSpacing::Linspace | TimestepSpacing::Trailing);
    let initial_scale = match &config.edm {
        Some(edm) => edm.sigma_max.hypot(1.0) as f32,
        None if spread => max,
        None => (max * max + 1.0).sqrt(),
    };
    Ok(Schedule { steps, initial_scale, sigmas })
}
