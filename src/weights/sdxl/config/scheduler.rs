//! `scheduler_config.json`. As in diffusers, a missing key has the default of its scheduler class.

use std::fmt;
use std::str::FromStr;

use crate::weights::config::json::Settings;
use crate::{Error, Result, Setting};

/// The scheduler classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchedulerClass {
    /// `EulerDiscreteScheduler`.
    Euler,
    /// `EulerAncestralDiscreteScheduler`.
    EulerAncestral,
    /// `DDIMScheduler`.
    Ddim,
    /// `DPMSolverMultistepScheduler`: DPM++ 2M, and its stochastic form (SDE).
    DpmMultistep,
    /// `LCMScheduler`.
    Lcm,
}

/// Classes of [`EdmSettings`].
const EDM_CLASSES: [(SchedulerClass, &str); 2] =
    [(SchedulerClass::Euler, "EDMEulerScheduler"), (SchedulerClass::DpmMultistep, "EDMDPMSolverMultistepScheduler")];

/// The other classes with their names in diffusers.
const CLASSES: [(SchedulerClass, &str); 5] = [
    (SchedulerClass::Euler, "EulerDiscreteScheduler"),
    (SchedulerClass::EulerAncestral, "EulerAncestralDiscreteScheduler"),
    (SchedulerClass::Ddim, "DDIMScheduler"),
    (SchedulerClass::DpmMultistep, "DPMSolverMultistepScheduler"),
    (SchedulerClass::Lcm, "LCMScheduler"),
];

impl fmt::Display for SchedulerClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(CLASSES.iter().find(|(class, _)| class == self).map_or("", |(_, name)| name))
    }
}

impl SchedulerClass {
    /// Whether the class in diffusers has this setting. It ignores the others, which files for other classes contain.
    fn takes(self, key: &str, edm: bool) -> bool {
        use SchedulerClass::{Ddim, DpmMultistep, Euler, Lcm};
        match key {
            "sigma_data" | "sigma_schedule" | "rho" => edm,
            "sigma_min" | "sigma_max" if edm => true,
            "trained_betas"
            | "beta_schedule"
            | "beta_start"
            | "beta_end"
            | "timestep_spacing"
            | "steps_offset"
            | "rescale_betas_zero_snr"
            | "use_karras_sigmas"
            | "use_exponential_sigmas"
            | "use_beta_sigmas"
            | "use_flow_sigmas"
            | "interpolation_type"
            | "timestep_type"
                if edm =>
            {
                false
            }
            "use_karras_sigmas"
            | "use_exponential_sigmas"
            | "use_beta_sigmas"
            | "sigma_min"
            | "sigma_max"
            | "final_sigmas_type" => matches!(self, Euler | DpmMultistep),
            "interpolation_type" | "timestep_type" => self == Euler,
            "use_flow_sigmas" | "use_lu_lambdas" | "algorithm_type" | "solver_type" | "solver_order"
            | "lower_order_final" | "euler_at_final" | "lambda_min_clipped" => self == DpmMultistep,
            "thresholding" => matches!(self, Ddim | DpmMultistep | Lcm),
            "clip_sample" | "clip_sample_range" | "set_alpha_to_one" => matches!(self, Ddim | Lcm),
            "original_inference_steps" | "timestep_scaling" => self == Lcm,
            _ => true,
        }
    }
}

/// `timestep_spacing`: how the inference steps are spread over the training timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestepSpacing {
    /// Even steps up from the first timestep.
    Leading,
    /// Even steps down from the last timestep.
    Trailing,
    /// Evenly from the first to the last timestep.
    Linspace,
}

/// How sigmas decrease from the largest to the smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigmaSchedule {
    /// The sigmas of the chosen timesteps.
    Timesteps,
    /// Karras et al. (2022): `use_karras_sigmas`.
    Karras,
    /// Evenly in the logarithm: `use_exponential_sigmas`.
    Exponential,
}

/// `beta_schedule` with `beta_start` and `beta_end`, or `trained_betas`: the variance of the noise that each training
/// timestep adds.
#[derive(Debug, Clone, PartialEq)]
pub enum BetaSchedule {
    /// Evenly from start to end.
    Linear {
        /// `beta_start`.
        start: f64,
        /// `beta_end`.
        end: f64,
    },
    /// Evenly in the square root, from start to end.
    ScaledLinear {
        /// `beta_start`.
        start: f64,
        /// `beta_end`.
        end: f64,
    },
    /// `squaredcos_cap_v2`: from a squared cosine.
    SquaredCosine,
    /// One by one.
    Trained(Vec<f32>),
}

/// `prediction_type`: what the model's output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PredictionType {
    /// The noise in the sample.
    Epsilon,
    /// Velocity: a weighted difference of noise and image.
    VPrediction,
    /// The denoised image.
    Sample,
}

/// Names of [`PredictionType`] in `scheduler_config.json`.
const PREDICTIONS: [(&str, PredictionType); 3] = [
    ("epsilon", PredictionType::Epsilon),
    ("v_prediction", PredictionType::VPrediction),
    ("sample", PredictionType::Sample),
];

impl fmt::Display for PredictionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREDICTIONS.iter().find(|(_, kind)| kind == self).map_or("", |(name, _)| name))
    }
}

impl FromStr for PredictionType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let name = text.to_ascii_lowercase().replace('-', "_");
        let name = match name.as_str() {
            "v" | "vpred" | "v_pred" => "v_prediction",
            "eps" => "epsilon",
            name => name,
        };
        PREDICTIONS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind).ok_or_else(|| Error::Unsupported {
            what: "prediction type".to_owned(),
            found: text.to_owned(),
            supported: PREDICTIONS.map(|(name, _)| name).join(", "),
        })
    }
}

/// What a single file itself declares about its training. It overrides the scheduler's settings.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct TrainingMarkers {
    /// What the model's output is.
    pub prediction_type: Option<PredictionType>,
    /// The last training timestep is pure noise: [`SchedulerConfig::rescale_betas_zero_snr`].
    pub zero_terminal_snr: bool,
    /// Trained with the noise of Karras et al. (2022).
    pub edm: Option<EdmSettings>,
}

/// The settings of a scheduler, by their names in `scheduler_config.json`. [`Self::parse`] and [`Self::released`] make
/// one; its fields can be changed afterwards.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SchedulerConfig {
    /// `_class_name`.
    pub class: SchedulerClass,
    /// `beta_schedule` or `trained_betas`.
    pub beta_schedule: BetaSchedule,
    /// Training timesteps.
    pub num_train_timesteps: usize,
    /// Rescale betas so that the last timestep is pure noise (zero terminal SNR).
    pub rescale_betas_zero_snr: bool,
    /// What the model's output is.
    pub prediction_type: PredictionType,
    /// How the steps are spread over the timesteps.
    pub timestep_spacing: TimestepSpacing,
    /// Added to the timesteps with leading spacing.
    pub steps_offset: usize,
    /// How sigmas decrease.
    pub sigma_schedule: SigmaSchedule,
    /// The smallest sigma of [`SigmaSchedule::Karras`] and [`SigmaSchedule::Exponential`], if not that of the
    /// timesteps.
    pub sigma_min: Option<f64>,
    /// The largest sigma of the same.
    pub sigma_max: Option<f64>,
    /// `final_sigmas_type` is `sigma_min`: the last step ends at the smallest sigma of training instead of 0.
    pub final_sigma_min: bool,
    /// Euler: `interpolation_type` is `log_linear`: sigmas are interpolated in their logarithm.
    pub log_linear_interpolation: bool,
    /// Euler: `timestep_type` is `continuous`: with velocity prediction the model's timestep is 0.25 ln(sigma).
    pub continuous_timesteps: bool,
    /// DDIM and LCM: the largest magnitude of the denoised sample, if `clip_sample` is set.
    pub clip_sample_range: Option<f32>,
    /// DDIM: the last step ends without noise instead of with the noise of timestep 0.
    pub set_alpha_to_one: bool,
    /// Settings of LCM.
    pub lcm: LcmSettings,
    /// Settings of DPM++.
    pub dpm: DpmSettings,
    /// Settings of EDM's classes, in place of betas and timesteps.
    pub edm: Option<EdmSettings>,
}

/// Noise and preconditioning of Karras et al. (2022), "EDM": `EDMEulerScheduler` and `EDMDPMSolverMultistepScheduler`.
/// The default values are those of these classes and of Playground.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct EdmSettings {
    /// The smallest sigma before 0.
    pub sigma_min: f64,
    /// The largest sigma.
    pub sigma_max: f64,
    /// Standard deviation of the data.
    pub sigma_data: f64,
    /// Karras's schedule or the exponential one.
    pub sigma_schedule: SigmaSchedule,
    /// Exponent of Karras's schedule.
    pub rho: f64,
}

impl Default for EdmSettings {
    fn default() -> Self {
        Self { sigma_min: 0.002, sigma_max: 80.0, sigma_data: 0.5, sigma_schedule: SigmaSchedule::Karras, rho: 7.0 }
    }
}

impl EdmSettings {
    /// Those of CosXL, whose output is velocity.
    pub(in super::super) const COSXL: Self = Self {
        sigma_min: 0.002,
        sigma_max: 120.0,
        sigma_data: 1.0,
        sigma_schedule: SigmaSchedule::Exponential,
        rho: 7.0,
    };

    fn read(settings: &Settings<'_>) -> Result<Self> {
        let default = Self::default();
        let schedules = [("karras", SigmaSchedule::Karras), ("exponential", SigmaSchedule::Exponential)];
        let number = |key: &str, default: f64| Ok::<_, Error>(settings.number(key)?.unwrap_or(default));
        let edm = Self {
            sigma_min: number("sigma_min", default.sigma_min)?,
            sigma_max: number("sigma_max", default.sigma_max)?,
            sigma_data: number("sigma_data", default.sigma_data)?,
            sigma_schedule: settings.one_of("sigma_schedule", "karras", &schedules)?,
            rho: number("rho", default.rho)?,
        };
        edm.checked(settings.file.0)
    }

    /// These settings, which come from `file`.
    ///
    /// # Errors
    /// [`Error::Config`] if a number is out of range.
    pub(in super::super) fn checked(self, file: &str) -> Result<Self> {
        let Self { sigma_min, sigma_max, sigma_data, rho, .. } = self;
        let positive = [sigma_min, sigma_data, rho].iter().all(|number| (1e-6..=1e3).contains(number));
        if positive && sigma_max > sigma_min && sigma_max <= 1e6 {
            return Ok(self);
        }
        Err(Error::Config {
            file: file.to_owned(),
            reason: format!(
                "sigmas from {sigma_max} to {sigma_min}, sigma_data {sigma_data} and rho {rho}: expected positive \
                 numbers, the first sigma above the last"
            ),
        })
    }
}

/// Settings of `LCMScheduler`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct LcmSettings {
    /// Steps of the distillation, from which the inference steps are chosen.
    pub original_inference_steps: usize,
    /// Scale of the timesteps in the boundary condition.
    pub timestep_scaling: f64,
}

/// Settings of `DPMSolverMultistepScheduler`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DpmSettings {
    /// Model outputs that a step uses: 1 or 2.
    pub solver_order: usize,
    /// `algorithm_type` is `sde-dpmsolver++`: every step adds noise.
    pub sde: bool,
    /// `solver_type` is `heun` instead of `midpoint`.
    pub heun: bool,
    /// First order in the last of fewer than 15 steps.
    pub lower_order_final: bool,
    /// First order in the last step.
    pub euler_at_final: bool,
    /// The smallest lambda = ln(alpha / sigma) of a usable timestep.
    pub lambda_min_clipped: f64,
}

impl SchedulerConfig {
    /// Reads `scheduler_config.json`; `file` is its name for messages. `choice` replaces the class and some settings.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not JSON or a value is out of range; [`Error::Unsupported`] for a setting that this
    /// program does not implement; [`Error::NeedsSetting`] for such a scheduler class, unless `choice` replaces it.
    pub fn parse(file: &str, bytes: &[u8], choice: Option<&SchedulerOverride>) -> Result<Self> {
        let settings = Settings::parse(file, bytes)?;
        let own = class(&settings);
        // A scheduler of another class has the model's own noise.
        let edm = own.as_ref().is_ok_and(|(_, edm)| *edm);
        let class = match choice {
            Some(choice) => choice.class,
            None => own?.0,
        };
        let settings = settings.only_keys(|key| class.takes(key, edm));
        let edm = if edm { Some(EdmSettings::read(&settings)?) } else { None };
        Self::read(&settings, class, choice)?.with_edm(file, edm, choice)
    }

    /// The released scheduler of Stable Diffusion XL, for models without `scheduler_config.json`.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn released(choice: Option<&SchedulerOverride>) -> Result<Self> {
        let text = br#"{
            "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": false,
            "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
            "set_alpha_to_one": false, "steps_offset": 1, "timestep_spacing": "leading"
        }"#;
        Self::parse("scheduler_config.json", text, choice)
    }

    /// As [`Self::released`], with the solver that Playground was released with, if `markers` are those of Playground.
    pub(in super::super) fn released_for(markers: TrainingMarkers, choice: Option<&SchedulerOverride>) -> Result<Self> {
        let config = Self::released(choice)?;
        let playground = choice.is_none() && markers.edm == Some(EdmSettings::default());
        Ok(if playground { Self { class: SchedulerClass::DpmMultistep, ..config } } else { config })
    }

    fn read(settings: &Settings<'_>, class: SchedulerClass, choice: Option<&SchedulerOverride>) -> Result<Self> {
        let file = settings.file;
        for (key, feature) in [
            ("use_beta_sigmas", "beta-distributed sigmas"),
            ("use_flow_sigmas", "flow matching"),
            ("use_lu_lambdas", "Lu's lambdas"),
            ("thresholding", "dynamic thresholding"),
        ] {
            if settings.flag(key, false)? {
                return Err(file.unsupported(key, feature, "false"));
            }
        }
        let num_train_timesteps = settings.count("num_train_timesteps", 1000, 2..=100_000)?;
        let default_spacing = match class {
            SchedulerClass::Ddim | SchedulerClass::Lcm => "leading",
            _ => "linspace",
        };
        let spacings = [
            ("leading", TimestepSpacing::Leading),
            ("trailing", TimestepSpacing::Trailing),
            ("linspace", TimestepSpacing::Linspace),
        ];
        let timestep_spacing = settings.one_of("timestep_spacing", default_spacing, &spacings)?;
        let config = Self {
            class,
            beta_schedule: BetaSchedule::read(settings, class, num_train_timesteps)?,
            num_train_timesteps,
            rescale_betas_zero_snr: settings.flag("rescale_betas_zero_snr", false)?,
            prediction_type: settings.one_of("prediction_type", "epsilon", &PREDICTIONS)?,
            timestep_spacing: choice.and_then(|choice| choice.timestep_spacing).unwrap_or(timestep_spacing),
            steps_offset: settings.count("steps_offset", 0, 0..=1000)?,
            sigma_schedule: SigmaSchedule::read(settings, choice)?,
            sigma_min: settings.number("sigma_min")?,
            sigma_max: settings.number("sigma_max")?,
            final_sigma_min: settings.one_of("final_sigmas_type", "zero", &[("zero", false), ("sigma_min", true)])?,
            log_linear_interpolation: settings.one_of(
                "interpolation_type",
                "linear",
                &[("linear", false), ("log_linear", true)],
            )?,
            continuous_timesteps: settings.one_of(
                "timestep_type",
                "discrete",
                &[("discrete", false), ("continuous", true)],
            )?,
            clip_sample_range: match settings.flag("clip_sample", class == SchedulerClass::Ddim)? {
                true => Some(settings.any_number("clip_sample_range")?.unwrap_or(1.0) as f32),
                false => None,
            },
            set_alpha_to_one: settings.flag("set_alpha_to_one", true)?,
            lcm: LcmSettings {
                original_inference_steps: settings.count(
                    "original_inference_steps",
                    LcmSettings::default().original_inference_steps,
                    1..=num_train_timesteps,
                )?,
                timestep_scaling: settings
                    .number("timestep_scaling")?
                    .unwrap_or(LcmSettings::default().timestep_scaling),
            },
            dpm: match class {
                SchedulerClass::DpmMultistep => DpmSettings::read(settings, choice)?,
                _ => DpmSettings::default(),
            },
            edm: None,
        };
        let zero_snr = choice.is_some_and(|choice| choice.zero_terminal_snr);
        Ok(if zero_snr { config.with_zero_terminal_snr(choice) } else { config })
    }

    /// These settings for a model that declares `markers`.
    ///
    /// # Errors
    /// [`Error::NeedsSetting`] if the model's noise needs another class.
    pub(in super::super) fn with_markers(
        self,
        markers: TrainingMarkers,
        choice: Option<&SchedulerOverride>,
    ) -> Result<Self> {
        let prediction_type = markers.prediction_type.unwrap_or(self.prediction_type);
        let config = Self { prediction_type, ..self };
        let config = if markers.zero_terminal_snr { config.with_zero_terminal_snr(choice) } else { config };
        match config.edm {
            None => config.with_edm("the model's file", markers.edm, choice),
            Some(_) => Ok(config),
        }
    }

    /// These settings with the noise of `edm` from `file`.
    fn with_edm(self, file: &str, edm: Option<EdmSettings>, choice: Option<&SchedulerOverride>) -> Result<Self> {
        let Some(edm) = edm else { return Ok(self) };
        use SchedulerClass::{DpmMultistep, Euler, EulerAncestral};
        if !matches!(self.class, Euler | EulerAncestral | DpmMultistep) {
            return Err(Error::NeedsSetting {
                setting: Setting::Scheduler,
                file: file.to_owned(),
                reason: format!(
                    "the model was trained with EDM's noise, which {} does not have: choose euler, euler-a or dpm++-2m",
                    self.class
                ),
            });
        }
        let sigma_schedule = match choice.and_then(|choice| choice.sigma_schedule) {
            Some(schedule @ (SigmaSchedule::Karras | SigmaSchedule::Exponential)) => schedule,
            Some(SigmaSchedule::Timesteps) | None => edm.sigma_schedule,
        };
        Ok(Self { edm: Some(EdmSettings { sigma_schedule, ..edm }), ..self })
    }

    /// Rescaled betas, and trailing timesteps: the first step is at the last timestep, which is pure noise.
    fn with_zero_terminal_snr(self, choice: Option<&SchedulerOverride>) -> Self {
        let timestep_spacing = choice.and_then(|choice| choice.timestep_spacing).unwrap_or(TimestepSpacing::Trailing);
        Self { rescale_betas_zero_snr: true, timestep_spacing, ..self }
    }
}

/// The class, and whether it is one of EDM's.
fn class(settings: &Settings<'_>) -> Result<(SchedulerClass, bool)> {
    let name = settings.text("_class_name")?.unwrap_or("EulerDiscreteScheduler");
    let known = CLASSES.iter().map(|known| (known, false)).chain(EDM_CLASSES.iter().map(|known| (known, true)));
    let found = known.clone().find(|((_, known), _)| *known == name);
    found.map(|((class, _), edm)| (*class, edm)).ok_or_else(|| {
        let supported = known.map(|((_, name), _)| *name).collect::<Vec<_>>().join(", ");
        Error::NeedsSetting {
            setting: Setting::Scheduler,
            file: settings.file.0.to_owned(),
            reason: format!(
                "_class_name {name:?} is not supported; supported: {supported}; choose one of them to use it with this \
                 file's noise schedule"
            ),
        }
    })
}

impl BetaSchedule {
    fn read(settings: &Settings<'_>, class: SchedulerClass, timesteps: usize) -> Result<Self> {
        if let Some(betas) = settings.get::<Vec<f32>>("trained_betas")? {
            if betas.len() != timesteps {
                let found = betas.len();
                let reason = format!("{found} trained_betas, {timesteps} num_train_timesteps");
                return Err(settings.file.error(reason));
            }
            return Ok(Self::Trained(betas));
        }
        let (start, end, schedule) = match class {
            SchedulerClass::Lcm => (0.00085, 0.012, "scaled_linear"),
            _ => (0.0001, 0.02, "linear"),
        };
        let start = settings.number("beta_start")?.unwrap_or(start);
        let end = settings.number("beta_end")?.unwrap_or(end);
        let known = [
            ("linear", Self::Linear { start, end }),
            ("scaled_linear", Self::ScaledLinear { start, end }),
            ("squaredcos_cap_v2", Self::SquaredCosine),
        ];
        settings.one_of("beta_schedule", schedule, &known)
    }
}

impl SigmaSchedule {
    fn read(settings: &Settings<'_>, choice: Option<&SchedulerOverride>) -> Result<Self> {
        let karras = settings.flag("use_karras_sigmas", false)?;
        let exponential = settings.flag("use_exponential_sigmas", false)?;
        match (choice.and_then(|choice| choice.sigma_schedule), karras, exponential) {
            (Some(schedule), ..) => Ok(schedule),
            (None, true, false) => Ok(Self::Karras),
            (None, false, true) => Ok(Self::Exponential),
            (None, false, false) => Ok(Self::Timesteps),
            (None, true, true) => Err(settings.file.error("both use_karras_sigmas and use_exponential_sigmas are set")),
        }
    }
}

impl Default for LcmSettings {
    fn default() -> Self {
        Self { original_inference_steps: 50, timestep_scaling: 10.0 }
    }
}

impl Default for DpmSettings {
    fn default() -> Self {
        Self {
            solver_order: 2,
            sde: false,
            heun: false,
            lower_order_final: true,
            euler_at_final: false,
            lambda_min_clipped: f64::NEG_INFINITY,
        }
    }
}

impl DpmSettings {
    fn read(settings: &Settings<'_>, choice: Option<&SchedulerOverride>) -> Result<Self> {
        // diffusers replaces `deis` and the solver types below by its defaults.
        let algorithms = [("dpmsolver++", false), ("deis", false), ("sde-dpmsolver++", true)];
        let sde = settings.one_of("algorithm_type", "dpmsolver++", &algorithms)?;
        let solvers = [("midpoint", false), ("heun", true), ("logrho", false), ("bh1", false), ("bh2", false)];
        // -Infinity in most files.
        let lambda_min_clipped = settings.any_number("lambda_min_clipped")?.unwrap_or(f64::NEG_INFINITY);
        if lambda_min_clipped.is_nan() || lambda_min_clipped == f64::INFINITY {
            let reason = format!("lambda_min_clipped is {lambda_min_clipped}, expected a number or -Infinity");
            return Err(settings.file.error(reason));
        }
        Ok(Self {
            solver_order: settings.count("solver_order", 2, 1..=2)?,
            sde: choice.map_or(sde, |choice| choice.sde || sde),
            heun: settings.one_of("solver_type", "midpoint", &solvers)?,
            lower_order_final: settings.flag("lower_order_final", true)?,
            euler_at_final: settings.flag("euler_at_final", false)?,
            lambda_min_clipped,
        })
    }
}

/// Another scheduler with the model's own noise schedule, by a name such as `dpm++-2m-karras` or `euler-trailing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerOverride {
    class: SchedulerClass,
    sde: bool,
    sigma_schedule: Option<SigmaSchedule>,
    timestep_spacing: Option<TimestepSpacing>,
    zero_terminal_snr: bool,
}

/// The name that parses to this override: `dpm++-2m-karras`.
impl fmt::Display for SchedulerOverride {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.class, self.sde) {
            (SchedulerClass::Euler, _) => "euler",
            (SchedulerClass::EulerAncestral, _) => "euler-a",
            (SchedulerClass::Ddim, _) => "ddim",
            (SchedulerClass::DpmMultistep, false) => "dpm++-2m",
            (SchedulerClass::DpmMultistep, true) => "dpm++-2m-sde",
            (SchedulerClass::Lcm, _) => "lcm",
        })?;
        f.write_str(match self.sigma_schedule {
            Some(SigmaSchedule::Karras) => "-karras",
            Some(SigmaSchedule::Exponential) => "-exponential",
            Some(SigmaSchedule::Timesteps) | None => "",
        })?;
        f.write_str(match self.timestep_spacing {
            Some(TimestepSpacing::Leading) => "-leading",
            Some(TimestepSpacing::Trailing) => "-trailing",
            Some(TimestepSpacing::Linspace) => "-linspace",
            None => "",
        })?;
        f.write_str(if self.zero_terminal_snr { "-zsnr" } else { "" })
    }
}

impl FromStr for SchedulerOverride {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::Unsupported {
            what: "scheduler".to_owned(),
            found: text.to_owned(),
            supported: "euler, euler-a, ddim, dpm++-2m, dpm++-2m-sde, lcm or turbo, with the suffixes -karras, \
                        -exponential, -leading, -trailing, -linspace and -zsnr"
                .to_owned(),
        };
        let name = text.to_ascii_lowercase().replace([' ', '_'], "-");
        let (mut rest, mut sigma_schedule, mut timestep_spacing) = (name.as_str(), None, None);
        let mut zero_terminal_snr = false;
        loop {
            let (before, last) = rest.rsplit_once('-').unwrap_or(("", ""));
            match last {
                "karras" if sigma_schedule.is_none() => sigma_schedule = Some(SigmaSchedule::Karras),
                "exponential" if sigma_schedule.is_none() => sigma_schedule = Some(SigmaSchedule::Exponential),
                "leading" if timestep_spacing.is_none() => timestep_spacing = Some(TimestepSpacing::Leading),
                "trailing" if timestep_spacing.is_none() => timestep_spacing = Some(TimestepSpacing::Trailing),
                "linspace" if timestep_spacing.is_none() => timestep_spacing = Some(TimestepSpacing::Linspace),
                "zsnr" if !zero_terminal_snr => zero_terminal_snr = true,
                _ => break,
            }
            rest = before;
        }
        let (class, sde) = match rest {
            "euler" => (SchedulerClass::Euler, false),
            "euler-a" | "euler-ancestral" => (SchedulerClass::EulerAncestral, false),
            "turbo" => {
                timestep_spacing = timestep_spacing.or(Some(TimestepSpacing::Trailing));
                (SchedulerClass::EulerAncestral, false)
            }
            "ddim" => (SchedulerClass::Ddim, false),
            "dpm++-2m" | "dpmpp-2m" | "dpm++" => (SchedulerClass::DpmMultistep, false),
            "dpm++-2m-sde" | "dpmpp-2m-sde" => (SchedulerClass::DpmMultistep, true),
            "lcm" => (SchedulerClass::Lcm, false),
            name => match CLASSES.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)) {
                Some((class, _)) => (*class, false),
                None => return Err(unknown()),
            },
        };
        if sigma_schedule.is_some() && !matches!(class, SchedulerClass::Euler | SchedulerClass::DpmMultistep) {
            return Err(Error::InvalidArgument(format!(
                "scheduler {text:?}: only euler and dpm++-2m have Karras and exponential sigmas"
            )));
        }
        Ok(Self { class, sde, sigma_schedule, timestep_spacing, zero_terminal_snr })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose_a_class_and_its_settings() {
        let parse = |text: &str| text.parse::<SchedulerOverride>().unwrap();
        assert_eq!(
            parse("DPM++ 2M Karras"),
            SchedulerOverride {
                class: SchedulerClass::DpmMultistep,
                sde: false,
                sigma_schedule: Some(SigmaSchedule::Karras),
                timestep_spacing: None,
                zero_terminal_snr: false
            }
        );
        assert_eq!(parse("turbo"), parse("euler_a-trailing"));
        assert_eq!(parse("EulerDiscreteScheduler"), parse("euler"));
        assert!(parse("dpm++-2m-sde-karras-trailing").sde);
        for name in
            ["euler", "euler-a-trailing", "ddim-linspace", "dpm++-2m-sde-exponential-leading", "lcm", "euler-zsnr"]
        {
            assert_eq!(parse(name).to_string(), name);
        }
        assert_eq!(parse("DPM++ 2M trailing Karras").to_string(), "dpm++-2m-karras-trailing");
        for bad in ["", "heun", "euler-karras-karras", "ddim-karras", "-karras", "euler-leading-trailing"] {
            assert!(bad.parse::<SchedulerOverride>().is_err(), "{bad}");
        }
    }

    #[test]
    fn zero_terminal_snr_rescales_and_starts_at_the_last_timestep() {
        let settings = br#"{"_class_name":"EulerDiscreteScheduler","timestep_spacing":"leading"}"#;
        let parse = |choice: Option<&str>, markers| {
            let choice: Option<SchedulerOverride> = choice.map(|choice| choice.parse().unwrap());
            let config = SchedulerConfig::parse("s.json", settings, choice.as_ref()).unwrap();
            let config = config.with_markers(markers, choice.as_ref()).unwrap();
            (config.rescale_betas_zero_snr, config.timestep_spacing, config.prediction_type)
        };
        let (leading, trailing) = (TimestepSpacing::Leading, TimestepSpacing::Trailing);
        let (epsilon, velocity) = (PredictionType::Epsilon, PredictionType::VPrediction);
        let none = TrainingMarkers::default();
        let markers = TrainingMarkers { prediction_type: Some(velocity), zero_terminal_snr: true, edm: None };
        assert_eq!(parse(None, none), (false, leading, epsilon));
        assert_eq!(parse(Some("ddim-zsnr"), none), (true, trailing, epsilon));
        assert_eq!(parse(None, markers), (true, trailing, velocity));
        assert_eq!(parse(Some("euler-linspace"), markers), (true, TimestepSpacing::Linspace, velocity));
        for (text, kind) in
            [("epsilon", epsilon), ("v_prediction", velocity), ("V-Prediction", velocity), ("v", velocity)]
        {
            assert_eq!(text.parse(), Ok(kind));
        }
        assert!("flow".parse::<PredictionType>().is_err());
    }

    #[test]
    fn an_unsupported_scheduler_can_be_replaced() {
        let parse = |choice| SchedulerConfig::parse("s.json", br#"{"_class_name":"PNDMScheduler"}"#, choice);
        assert_eq!(parse(None).unwrap_err().remedy(), Some(Setting::Scheduler));
        assert!(parse(Some(&"euler".parse().unwrap())).is_ok());
    }

    #[test]
    fn unsupported_settings_are_refused_by_name() {
        let error = |text: &str| SchedulerConfig::parse("s.json", text.as_bytes(), None).unwrap_err().to_string();
        for (text, reason) in [
            ("[]", "expected a JSON object of settings"),
            (r#"{"_class_name":"PNDMScheduler"}"#, "\"PNDMScheduler\" is not supported; supported: EulerDiscrete"),
            (r#"{"_class_name":"DDIMScheduler","thresholding":true}"#, "thresholding"),
            (r#"{"use_beta_sigmas":true}"#, "use_beta_sigmas"),
            (r#"{"beta_schedule":"sigmoid"}"#, "supported: linear, scaled_linear, squaredcos_cap_v2"),
            (r#"{"num_train_timesteps":0}"#, "expected a number from 2"),
            (r#"{"num_train_timesteps":"x"}"#, "expected a number from 2"),
            (r#"{"trained_betas":[0.1]}"#, "1 trained_betas, 1000"),
            (r#"{"use_karras_sigmas":true,"use_exponential_sigmas":true}"#, "both"),
            (r#"{"_class_name":"DPMSolverMultistepScheduler","solver_order":3}"#, "solver_order is 3"),
            (r#"{"_class_name":"DPMSolverMultistepScheduler","algorithm_type":"dpmsolver"}"#, "algorithm_type"),
            (r#"{"prediction_type":"flow_prediction"}"#, "prediction_type"),
        ] {
            let found = error(text);
            assert!(found.contains(reason), "{found:?} lacks {reason:?}");
        }
        let choice: SchedulerOverride = "ddim".parse().unwrap();
        let pndm = br#"{"_class_name":"PNDMScheduler","beta_start":0.001}"#;
        let config = SchedulerConfig::parse("s.json", pndm, Some(&choice)).unwrap();
        assert_eq!(
            (config.class, config.beta_schedule),
            (SchedulerClass::Ddim, BetaSchedule::Linear { start: 0.001, end: 0.02 })
        );
    }
}
