//! DPM-Solver++ (Lu and others, 2022) of first and second order, deterministic or with new noise (SDE).
//!
//! A sample is alpha times the image plus sigma times unit noise, and lambda = ln(alpha / sigma). With h the change of
//! lambda in this step and r h that in the step before:
//!
//! ```text
//! D = x0 + (x0 - x0_before) / (2 r)                                 (midpoint)
//! x <- sigma_next / sigma * x + alpha_next * (1 - exp(-h)) * D
//! ```
//!
//! The SDE form has exp(-2h) instead of exp(-h), multiplies x by another exp(-h), and adds noise:
//! sigma_next * sqrt(1 - exp(-2h)).

use super::noise::{self, alphas_cumprod, interpolate, time_of, times};
use super::{DenoisedCoefficients, Schedule, Step, StepCoefficients, preconditioning};
use crate::Result;
use crate::weights::sdxl::config::{SchedulerConfig, SigmaSchedule};

pub(super) fn schedule(config: &SchedulerConfig, steps: usize, first: usize) -> Result<Schedule> {
    let alphas = alphas_cumprod(config);
    let trained = noise::sigmas(&alphas);
    // Timesteps with too much noise are numerically unstable, and not used.
    let lambda = |sigma: &f32| -f64::from(*sigma).ln();
    let usable = trained.iter().filter(|sigma| lambda(sigma) >= config.dpm.lambda_min_clipped).count();
    let mut times: Vec<f64> = times(config, usable, steps, 1).into_iter().map(f64::round_ties_even).collect();
    let bounds = (f64::from(trained[trained.len() - 1]), f64::from(trained[0]));
    let mut sigmas = match (&config.edm, noise::sigma_schedule(config, bounds.0, bounds.1, steps)) {
        (Some(edm), _) => {
            let sigmas;
            (times, sigmas) = noise::edm_sigmas(edm, steps);
            sigmas
        }
        (None, Some(sigmas)) => {
            let rounded = config.sigma_schedule == SigmaSchedule::Karras;
            let whole = |time: f64| if rounded { time.round_ties_even() } else { time.trunc() };
            times = sigmas.iter().map(|sigma| whole(time_of(&trained, *sigma))).collect();
            sigmas
        }
        (None, None) => times.iter().map(|time| interpolate(&trained, *time)).collect(),
    };
    let smallest = config.edm.as_ref().map_or(bounds.1, |edm| edm.sigma_min);
    sigmas.push(if config.final_sigma_min { smallest } else { 0.0 });
    let sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();

    let count = times.len();
    let step = |index: usize| {
        let level = |index: usize| Level::new(sigmas[index], config.edm.is_some());
        let (now, next) = (level(index), level(index + 1));
        let (input_scale, x0) = match &config.edm {
            Some(edm) => preconditioning(edm, config.prediction_type, now.noise),
            None => (1.0, config.prediction_type.coefficients(now.signal, now.noise).0),
        };
        let dpm = config.dpm;
        let at_end = index + 1 == count
            && (dpm.euler_at_final || (dpm.lower_order_final && count < 15) || !config.final_sigma_min);
        let h = next.lambda - now.lambda;
        let shrunk = if dpm.sde { (-2.0 * h).exp() } else { (-h).exp() };
        let towards = next.signal * (1.0 - shrunk);
        // The weight of the difference between this denoised sample and the one before.
        let change = if dpm.solver_order == 1 || index == first || at_end {
            0.0
        } else {
            let ratio = (now.lambda - level(index - 1).lambda) / h;
            let weight = match (dpm.heun, dpm.sde) {
                (false, _) => 0.5 * towards,
                (true, false) => next.signal * ((shrunk - 1.0) / h + 1.0),
                (true, true) => next.signal * ((1.0 - shrunk) / (-2.0 * h) + 1.0),
            };
            weight / ratio
        };
        Step {
            timestep: times[index] as f32,
            input_scale: input_scale as f32,
            denoised: DenoisedCoefficients::new(x0, None),
            next: StepCoefficients {
                sample: (next.noise / now.noise * if dpm.sde { (-h).exp() } else { 1.0 }) as f32,
                output: 0.0,
                denoised: (towards + change) as f32,
                previous: -change as f32,
                noise: if dpm.sde { (next.noise * (1.0 - shrunk).sqrt()) as f32 } else { 0.0 },
            },
            draws_noise: dpm.sde,
            start: [now.signal as f32, now.noise as f32],
        }
    };
    let steps = (first..count).map(step).collect();
    let initial_scale = config.edm.as_ref().map_or(1.0, |edm| edm.sigma_max.hypot(1.0) as f32);
    Ok(Schedule { steps, sigmas, initial_scale })
}

/// A noise level.
struct Level {
    signal: f64,
    noise: f64,
    lambda: f64,
}

impl Level {
    /// EDM's samples are the image plus noise, neither of them scaled.
    fn new(sigma: f32, edm: bool) -> Self {
        let sigma = f64::from(sigma);
        let signal = if edm { 1.0 } else { 1.0 / (sigma * sigma + 1.0).sqrt() };
        Self { signal, noise: sigma * signal, lambda: -sigma.ln() }
    }
}
