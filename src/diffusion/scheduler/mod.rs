//! Schedulers: from how much noise to how much, and what a step makes of the model's output.
//!
//! Every scheduler here is a list of [`Step`]s with numbers alone, so that one kernel takes them all:
//!
//! ```text
//! output   = negative + guidance * (positive - negative)
//! denoised = clamp(denoised.sample * x + denoised.output * output)
//! x       <- next.sample * x + next.output * output + next.denoised * denoised + next.previous * previous + next.noise * noise
//! ```
//!
//! `previous` is the denoised sample of the step before. The numbers are those of diffusers' scheduler of the same class with the
//! same settings; where it computes its tables in f32, so does [`noise`].

mod ddim;
mod dpm;
mod euler;
mod lcm;
pub mod noise;

use crate::weights::sdxl::config::{PredictionType, SchedulerClass, SchedulerConfig};
use crate::{Error, Result};

/// A number for each thing that a sample is made of.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Next {
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

/// What the model's output says about the picture without noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Denoised {
    /// Of the sample before the step.
    pub sample: f32,
    /// Of the model's output.
    pub output: f32,
    /// The largest magnitude that is let through.
    pub clamp: f32,
}

/// One evaluation of the model and what is done with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The time that the model is told.
    pub timestep: f32,
    /// The sample is multiplied by this before the model sees it.
    pub input_scale: f32,
    /// The picture without noise, as far as it can be seen.
    pub denoised: Denoised,
    /// The sample after the step.
    pub next: Next,
    /// The random generator is asked for noise, even where `next.noise` is 0.
    pub draws_noise: bool,
    /// A picture and noise, times these, are a sample to start from at this step.
    pub start: [f32; 2],
}

/// The steps of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// In order. Those before the start of image-to-image are left out.
    pub steps: Vec<Step>,
    /// Noise levels of all steps, and where the last one arrives.
    pub sigmas: Vec<f32>,
    /// Unit noise times this is a sample to start from, where there is no picture.
    pub initial_scale: f32,
}

/// The most steps that make sense: as many as a model was trained with.
pub const MAX_STEPS: usize = 1000;

impl Schedule {
    /// The schedule for so many steps.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the scheduler cannot make so many.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        Self::starting_at(config, steps, 0)
    }

    /// The schedule for image-to-image: of `steps`, the last part of `strength` (above 0, to 1).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if no step is left, or as [`Self::new`].
    pub fn for_image(config: &SchedulerConfig, steps: usize, strength: f32) -> Result<Self> {
        if !(strength > 0.0 && strength <= 1.0) {
            return Err(Error::InvalidArgument(format!("strength {strength} is not above 0 and at most 1")));
        }
        // In f64 from the decimal number that was meant: 0.3 of 10 steps are 3.
        let strength: f64 = strength.to_string().parse().unwrap_or(f64::from(strength));
        let kept = ((steps as f64 * strength) as usize).min(steps);
        if kept == 0 {
            return Err(Error::InvalidArgument(format!(
                "strength {strength} of {steps} steps is less than one step: raise one of them"
            )));
        }
        Self::starting_at(config, steps, steps - kept)
    }

    fn starting_at(config: &SchedulerConfig, steps: usize, first: usize) -> Result<Self> {
        let most = config.num_train_timesteps.min(MAX_STEPS);
        if steps == 0 || steps > most {
            return Err(Error::InvalidArgument(format!("{steps} steps, expected 1 to {most}")));
        }
        let schedule = match config.class {
            SchedulerClass::Euler | SchedulerClass::EulerAncestral => euler::schedule(config, steps, first)?,
            SchedulerClass::Ddim => ddim::schedule(config, steps, first)?,
            SchedulerClass::DpmMultistep => dpm::schedule(config, steps, first)?,
            SchedulerClass::Lcm => lcm::schedule(config, steps, first)?,
        };
        let bad = |value: &f32| !value.is_finite();
        let unusable = |step: &Step| {
            let Next { sample, output, denoised, previous, noise } = step.next;
            let scale = [step.timestep, step.input_scale, step.denoised.sample, step.denoised.output];
            [sample, output, denoised, previous, noise].iter().chain(&scale).chain(&step.start).any(bad)
        };
        if schedule.steps.is_empty() || bad(&schedule.initial_scale) || schedule.steps.iter().any(unusable) {
            return Err(Error::Config {
                file: "scheduler_config.json".to_owned(),
                reason: format!("with these settings {} cannot make {steps} steps", config.class),
            });
        }
        Ok(schedule)
    }
}

impl PredictionType {
    /// Of a sample with `signal` of the picture and `noise` of unit noise: what gives the picture, and what the noise, of
    /// (sample, output).
    fn parts(self, signal: f64, noise: f64) -> ([f64; 2], [f64; 2]) {
        match self {
            Self::Epsilon => ([1.0 / signal, -noise / signal], [0.0, 1.0]),
            Self::VPrediction => ([signal, -noise], [noise, signal]),
            Self::Sample => ([0.0, 1.0], [1.0 / noise, -signal / noise]),
        }
    }
}
