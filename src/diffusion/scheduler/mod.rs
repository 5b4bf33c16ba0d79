//! Schedulers: the noise level of each step, and how a step combines the sample with the model's output.
//!
//! A scheduler is a list of [`Step`]s of coefficients, so that one kernel runs all of them:
//!
//! ```text
//! output   = negative + guidance * (positive - negative)
//! denoised = clamp(denoised.sample * x + denoised.output * output)
//! x       <- next.sample * x + next.output * output + next.denoised * denoised
//!            + next.previous * previous + next.noise * noise
//! ```
//!
//! `previous` is the denoised sample of the step before. The coefficients are those of diffusers' scheduler of the same
//! class with the same settings; where it computes its tables in f32, so does [`noise`].

mod ddim;
mod dpm;
mod euler;
mod lcm;
pub mod noise;

use crate::diffusion::limits::{check_num_inference_steps, check_strength};
use crate::weights::sdxl::config::{EdmSettings, PredictionType, SchedulerClass, SchedulerConfig};
use crate::{Error, Result};

/// The coefficients of the sample after a step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepCoefficients {
    /// Of the sample before the step.
    pub sample: f32,
    /// Of the model's output.
    pub output: f32,
    /// Of this step's denoised sample, after clamping.
    pub denoised: f32,
    /// Of the denoised sample of the step before.
    pub previous: f32,
    /// Of new noise.
    pub noise: f32,
}

/// The coefficients of the denoised sample, the estimate of the image without noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DenoisedCoefficients {
    /// Of the sample before the step.
    pub sample: f32,
    /// Of the model's output.
    pub output: f32,
    /// Values are clamped to this magnitude.
    pub clamp: f32,
}

impl DenoisedCoefficients {
    /// Those of the sample and of the model's output. `clamp` limits the magnitude.
    fn new([sample, output]: [f64; 2], clamp: Option<f32>) -> Self {
        Self { sample: sample as f32, output: output as f32, clamp: clamp.unwrap_or(f32::INFINITY) }
    }
}

/// One evaluation of the model and the update of the sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The timestep that the model receives.
    pub timestep: f32,
    /// The model's input is the sample times this.
    pub input_scale: f32,
    /// The estimate of the image without noise.
    pub denoised: DenoisedCoefficients,
    /// The sample after the step.
    pub next: StepCoefficients,
    /// Whether the step draws noise from the random generator. It may even if `next.noise` is 0.
    pub draws_noise: bool,
    /// Factors of an image and of unit noise. Their sum is a sample from which denoising can start at this step.
    pub start: [f32; 2],
}

/// The denoising steps of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// In order, without those before the start of image-to-image.
    pub steps: Vec<Step>,
    /// The noise level before each step, and after the last one.
    pub sigmas: Vec<f32>,
    /// Unit noise times this is the first sample if there is no initial image.
    pub initial_scale: f32,
}

impl Schedule {
    /// The schedule for `steps` steps.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `steps` is 0 or exceeds the scheduler's maximum; [`Error::Config`] if the settings
    /// give a coefficient that is not finite.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        Self::starting_at(config, steps, 0)
    }

    /// The schedule for image-to-image: the last `steps * strength` steps. `strength` is above 0 and at most 1.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if no step is left, or as [`Self::new`].
    pub fn for_image(config: &SchedulerConfig, steps: usize, strength: f32) -> Result<Self> {
        check_strength(strength)?;
        // In f64, from the decimal that the user wrote: 0.3 of 10 steps is 3 steps.
        let strength: f64 = strength.to_string().parse().unwrap_or(f64::from(strength));
        let count = ((steps as f64 * strength) as usize).min(steps);
        if count == 0 {
            return Err(Error::InvalidArgument(format!(
                "strength {strength} of {steps} steps is less than one step: raise one of them"
            )));
        }
        Self::starting_at(config, steps, steps - count)
    }

    fn starting_at(config: &SchedulerConfig, steps: usize, first: usize) -> Result<Self> {
        check_num_inference_steps(steps, config.num_train_timesteps)?;
        let schedule = match config.class {
            SchedulerClass::Euler | SchedulerClass::EulerAncestral => euler::schedule(config, steps, first)?,
            SchedulerClass::Ddim => ddim::schedule(config, steps, first)?,
            SchedulerClass::DpmMultistep => dpm::schedule(config, steps, first)?,
            SchedulerClass::Lcm => lcm::schedule(config, steps, first)?,
        };
        let bad = |value: &f32| !value.is_finite();
        let unusable = |step: &Step| {
            let StepCoefficients { sample, output, denoised, previous, noise } = step.next;
            let scale = [step.timestep, step.input_scale, step.denoised.sample, step.denoised.output];
            [sample, output, denoised, previous, noise].iter().chain(&scale).chain(&step.start).any(bad)
        };
        if schedule.steps.is_empty() || bad(&schedule.initial_scale) || schedule.steps.iter().any(unusable) {
            return Err(Error::Config {
                file: "scheduler_config.json".to_owned(),
                reason: format!("these settings give {} no finite schedule of {steps} steps", config.class),
            });
        }
        Ok(schedule)
    }
}

/// EDM's preconditioning (Karras et al., 2022) at a noise level: the model's input is the sample times the first
/// number; the others are the coefficients of (sample, output) that give the denoised sample.
fn preconditioning(edm: &EdmSettings, prediction: PredictionType, sigma: f64) -> (f64, [f64; 2]) {
    let data = edm.sigma_data;
    let variance = sigma * sigma + data * data;
    let (skip, out) = (data * data / variance, sigma * data / variance.sqrt());
    let denoised = match prediction {
        PredictionType::Epsilon => [skip, out],
        PredictionType::VPrediction => [skip, -out],
        PredictionType::Sample => [0.0, 1.0],
    };
    (1.0 / variance.sqrt(), denoised)
}

impl PredictionType {
    /// For a sample of `signal` times the image plus `noise` times unit noise: the coefficients of (sample, output)
    /// that give the image, and those that give the noise.
    fn coefficients(self, signal: f64, noise: f64) -> ([f64; 2], [f64; 2]) {
        match self {
            Self::Epsilon => ([1.0 / signal, -noise / signal], [0.0, 1.0]),
            Self::VPrediction => ([signal, -noise], [noise, signal]),
            Self::Sample => ([0.0, 1.0], [1.0 / noise, -signal / noise]),
        }
    }
}
