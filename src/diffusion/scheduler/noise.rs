//! The tables of all schedulers: the noise level at each training timestep, and the timesteps of the inference steps.
//!
//! diffusers computes these with torch and NumPy, some in f32 and some in f64. This module repeats its operations one
//! by one: sigmas are differences of numbers near 1, where rounding shows, and the model receives the timesteps
//! themselves.

use crate::weights::sdxl::config::{
    BetaSchedule, EdmSettings, SchedulerClass, SchedulerConfig, SigmaSchedule, TimestepSpacing,
};

/// The share of the image's variance that remains at each training timestep.
pub fn alphas_cumprod(config: &SchedulerConfig) -> Vec<f32> {
    let count = config.num_train_timesteps;
    let mut betas: Vec<f32> = match &config.beta_schedule {
        BetaSchedule::Linear { start, end } => linspace_f32(*start as f32, *end as f32, count),
        BetaSchedule::ScaledLinear { start, end } => {
            linspace_f32(start.sqrt() as f32, end.sqrt() as f32, count).into_iter().map(|beta| beta * beta).collect()
        }
        BetaSchedule::SquaredCosine => {
            let bar = |time: f64| ((time + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
            let beta = |step: usize| 1.0 - bar((step + 1) as f64 / count as f64) / bar(step as f64 / count as f64);
            (0..count).map(|step| beta(step).min(0.999) as f32).collect()
        }
        BetaSchedule::Trained(betas) => betas.clone(),
    };
    if config.rescale_betas_zero_snr {
        betas = rescaled(&betas);
    }
    // torch computes the products in f64 and stores them in f32.
    let mut product = 1.0f64;
    let mut alphas: Vec<f32> = betas
        .iter()
        .map(|beta| {
            product *= f64::from(1.0 - beta);
            product as f32
        })
        .collect();
    if config.rescale_betas_zero_snr && !matches!(config.class, SchedulerClass::Ddim | SchedulerClass::Lcm) {
        // Not 0, so that the first sigma is finite.
        if let Some(last) = alphas.last_mut() {
            *last = 2f32.powi(-24);
        }
    }
    alphas
}

/// Betas rescaled to zero terminal SNR: nothing of the image remains at the last timestep (Lin and others, 2023).
fn rescaled(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0f64;
    let mut roots: Vec<f32> = betas
        .iter()
        .map(|beta| {
            product *= f64::from(1.0 - beta);
            (product as f32).sqrt()
        })
        .collect();
    let (first, last) = (roots.first().copied().unwrap_or(1.0), roots.last().copied().unwrap_or(0.0));
    for root in &mut roots {
        *root -= last;
        *root *= first / (first - last);
    }
    let bars: Vec<f32> = roots.iter().map(|root| root * root).collect();
    let alphas = bars.iter().enumerate().map(|(index, bar)| match index.checked_sub(1) {
        Some(before) => bar / bars[before],
        None => *bar,
    });
    alphas.map(|alpha| 1.0 - alpha).collect()
}

/// The noise relative to an image of unit scale, at each training timestep.
pub fn sigmas(alphas_cumprod: &[f32]) -> Vec<f32> {
    alphas_cumprod.iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect()
}

/// The timesteps of `steps` steps out of `train_steps`, most noise first. They are spaced as for `extra` more steps, of
/// which the last ones are dropped.
pub fn times(config: &SchedulerConfig, train_steps: usize, steps: usize, extra: usize) -> Vec<f64> {
    match config.timestep_spacing {
        TimestepSpacing::Linspace => {
            let mut times = linspace(0.0, train_steps as f64 - 1.0, steps + extra);
            times.reverse();
            times.truncate(steps);
            times
        }
        TimestepSpacing::Leading => {
            let ratio = train_steps / (steps + extra);
            (extra..steps + extra).rev().map(|step| (step * ratio + config.steps_offset) as f64).collect()
        }
        TimestepSpacing::Trailing => {
            let ratio = config.num_train_timesteps as f64 / steps as f64;
            let start = train_steps as f64;
            // The length of `numpy.arange`, which rounding may increase by one.
            let count = (start / ratio).ceil() as usize;
            let delta = (start - ratio) - start;
            (0..count).map(|step| (start + step as f64 * delta).round_ties_even() - 1.0).collect()
        }
    }
}

/// The sigma at a fractional timestep.
pub fn interpolate(sigmas: &[f32], time: f64) -> f64 {
    let last = sigmas.len() - 1;
    let below = (time.max(0.0) as usize).min(last);
    let (low, high) = (f64::from(sigmas[below]), f64::from(sigmas[(below + 1).min(last)]));
    if below == last { low } else { low + (high - low) * (time - below as f64) }
}

/// The sigmas of a Karras or exponential schedule from `max` to `min`; `None` if sigmas follow the timesteps.
pub fn sigma_schedule(config: &SchedulerConfig, max: f64, min: f64, steps: usize) -> Option<Vec<f64>> {
    let max = config.sigma_max.unwrap_or(max);
    let min = config.sigma_min.unwrap_or(min);
    const RHO: f64 = 7.0;
    match config.sigma_schedule {
        SigmaSchedule::Timesteps => None,
        SigmaSchedule::Karras => {
            let (max, min) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
            Some(linspace(0.0, 1.0, steps).into_iter().map(|ramp| (max + ramp * (min - max)).powf(RHO)).collect())
        }
        SigmaSchedule::Exponential => Some(linspace(max.ln(), min.ln(), steps).into_iter().map(f64::exp).collect()),
    }
}

/// The timesteps of EDM's classes, and their sigmas without the last one.
pub fn edm_sigmas(edm: &EdmSettings, steps: usize) -> (Vec<f64>, Vec<f64>) {
    let sigmas: Vec<f32> = match edm.sigma_schedule {
        SigmaSchedule::Exponential => {
            let logs = linspace_f32(edm.sigma_min.ln() as f32, edm.sigma_max.ln() as f32, steps);
            logs.into_iter().rev().map(f32::exp).collect()
        }
        SigmaSchedule::Karras | SigmaSchedule::Timesteps => {
            let (max, min) = (edm.sigma_max.powf(1.0 / edm.rho), edm.sigma_min.powf(1.0 / edm.rho));
            let sigma = |ramp: f32| (max as f32 + ramp * (min - max) as f32).powf(edm.rho as f32);
            linspace_f32(0.0, 1.0, steps).into_iter().map(sigma).collect()
        }
    };
    (sigmas.iter().map(|sigma| f64::from(0.25 * sigma.ln())).collect(), sigmas.into_iter().map(f64::from).collect())
}

/// The fractional timestep at which the noise level is `sigma`.
pub fn time_of(sigmas: &[f32], sigma: f64) -> f64 {
    let wanted = sigma.max(1e-10).ln();
    let log = |index: usize| f64::from(sigmas[index].ln());
    let above = sigmas.iter().filter(|sigma| wanted >= f64::from(sigma.ln())).count();
    let low = above.saturating_sub(1).min(sigmas.len().saturating_sub(2));
    let weight = ((log(low) - wanted) / (log(low) - log(low + 1))).clamp(0.0, 1.0);
    (1.0 - weight) * low as f64 + weight * (low + 1) as f64
}

/// `numpy.linspace`.
pub fn linspace(start: f64, stop: f64, count: usize) -> Vec<f64> {
    let step = if count > 1 { (stop - start) / (count - 1) as f64 } else { 0.0 };
    let mut values: Vec<f64> = (0..count).map(|index| index as f64 * step + start).collect();
    if count > 1
        && let Some(last) = values.last_mut()
    {
        *last = stop;
    }
    values
}

/// `torch.linspace` in f32, which computes each half from its own end.
pub fn linspace_f32(start: f32, stop: f32, count: usize) -> Vec<f32> {
    let step = if count > 1 { (stop - start) / (count - 1) as f32 } else { 0.0 };
    let value = |index: usize| match index {
        index if index < count / 2 => start + step * index as f32,
        _ if count == 1 => start,
        index => stop - step * (count - 1 - index) as f32,
    };
    (0..count).map(value).collect()
}
