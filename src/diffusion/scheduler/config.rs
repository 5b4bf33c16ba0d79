//! `scheduler_config.json`, read as diffusers reads it: what the file leaves out has the default of its class.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::Prediction;
use crate::{Error, Result};

/// A kind of scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `EulerDiscreteScheduler`.
    Euler,
    /// `EulerAncestralDiscreteScheduler`.
    EulerAncestral,
    /// `DDIMScheduler`.
    Ddim,
    /// `DPMSolverMultistepScheduler`: DPM++ 2M, and with noise (SDE).
    DpmMultistep,
    /// `LCMScheduler`.
    Lcm,
}

/// Classes with the names that diffusers gives them.
const CLASSES: [(Class, &str); 5] = [
    (Class::Euler, "EulerDiscreteScheduler"),
    (Class::EulerAncestral, "EulerAncestralDiscreteScheduler"),
    (Class::Ddim, "DDIMScheduler"),
    (Class::DpmMultistep, "DPMSolverMultistepScheduler"),
    (Class::Lcm, "LCMScheduler"),
];

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(CLASSES.iter().find(|(class, _)| class == self).map_or("", |(_, name)| name))
    }
}

/// How the steps are laid out over the times of the training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    /// From the first time on.
    Leading,
    /// Down from the last time.
    Trailing,
    /// From the first to the last.
    Linspace,
}

/// How noise falls from the largest to the smallest, where it does not follow the training's times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigmaLine {
    /// It follows the times.
    Times,
    /// As Karras and others (2022) lay it out.
    Karras,
    /// Its logarithm falls evenly.
    Exponential,
}

/// The noise of the training's times.
#[derive(Debug, Clone, PartialEq)]
pub enum Betas {
    /// Evenly from first to last.
    Linear(f64, f64),
    /// The square roots evenly from first to last.
    ScaledLinear(f64, f64),
    /// A cosine.
    SquaredCosine,
    /// Listed one by one.
    Trained(Vec<f32>),
}

/// The settings of a scheduler.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// Its kind.
    pub class: Class,
    /// Noise of the training's times.
    pub betas: Betas,
    /// How many those are.
    pub train_steps: usize,
    /// The noise is scaled so that at the last time there is nothing but noise.
    pub zero_terminal_snr: bool,
    /// What the model's output means.
    pub prediction: Prediction,
    /// How steps are laid out.
    pub spacing: Spacing,
    /// Added to the times, with leading spacing.
    pub offset: usize,
    /// How noise falls.
    pub line: SigmaLine,
    /// Bounds of the noise, with another line than that of the times.
    pub sigma_bounds: [Option<f64>; 2],
    /// The last step arrives at the training's least noise instead of none.
    pub ends_at_least_sigma: bool,
    /// Euler: sigmas fall evenly in their logarithm between the interpolated ones.
    pub log_linear: bool,
    /// Euler: the model is told a quarter of the noise's logarithm (with velocity).
    pub continuous_times: bool,
    /// DDIM and LCM: the denoised sample's largest magnitude.
    pub clamp: Option<f32>,
    /// DDIM: the last step arrives at no noise, rather than at the noise of time 0.
    pub set_alpha_to_one: bool,
    /// LCM: the steps of the training that steps are chosen from, and the scale of times.
    pub lcm: (usize, f64),
    /// DPM++: settings of its own.
    pub dpm: Dpm,
}

/// Settings of DPM++.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dpm {
    /// How many model outputs a step looks at: 1 or 2.
    pub order: usize,
    /// New noise in every step.
    pub sde: bool,
    /// Heun's form of the second order rather than the midpoint's.
    pub heun: bool,
    /// First order at the end of fewer than 15 steps.
    pub lower_order_final: bool,
    /// First order at the end.
    pub euler_at_final: bool,
    /// Where half the logarithm of signal to noise is cut off.
    pub least_lambda: f64,
}

const FILE: &str = "scheduler_config.json";

impl SchedulerConfig {
    /// Reads the file's text.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is not an object; [`Error::Unsupported`] for what this program does not do;
    /// [`Error::Config`] for values that make no sense.
    pub fn parse(file: &str, bytes: &[u8], choice: Option<&Override>) -> Result<Self> {
        let values: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| Error::Malformed {
            file: file.to_owned(),
            offset: 0,
            reason: format!("not a scheduler's settings: {error}"),
        })?;
        Self::of(&Settings { file, values: &values }, choice)
    }

    /// The settings of Stable Diffusion XL as released, for files without their own.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn released(choice: Option<&Override>) -> Result<Self> {
        let text = br#"{
            "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": false,
            "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
            "set_alpha_to_one": false, "steps_offset": 1, "timestep_spacing": "leading"
        }"#;
        Self::parse(FILE, text, choice)
    }

    fn of(settings: &Settings<'_>, choice: Option<&Override>) -> Result<Self> {
        let name = settings.text("_class_name", "EulerDiscreteScheduler")?;
        let class = match choice {
            Some(choice) => choice.class,
            None => CLASSES.iter().find(|(_, known)| *known == name).map(|(class, _)| *class).ok_or_else(|| {
                let supported = CLASSES.map(|(_, name)| name).join(", ");
                Error::Unsupported {
                    what: format!("{}: _class_name", settings.file),
                    found: name.to_owned(),
                    supported: format!("{supported}; --scheduler takes one of them with this file's noise"),
                }
            })?,
        };
        for (switch, of) in [
            ("use_beta_sigmas", "beta-distributed noise levels"),
            ("use_flow_sigmas", "flow matching"),
            ("use_lu_lambdas", "Lu's noise levels"),
            ("thresholding", "dynamic thresholding"),
        ] {
            if settings.switch(switch, false)? {
                return Err(Error::Unsupported {
                    what: format!("{}: {switch}", settings.file),
                    found: of.to_owned(),
                    supported: "false".to_owned(),
                });
            }
        }
        let lcm = class == Class::Lcm;
        let (first, last, schedule) = if lcm { (0.00085, 0.012, "scaled_linear") } else { (0.0001, 0.02, "linear") };
        let (first, last) = (settings.number("beta_start", first)?, settings.number("beta_end", last)?);
        let train_steps = settings.count("num_train_timesteps", 1000, 2..=100_000)?;
        let betas = match settings.values.get("trained_betas") {
            None | Some(Value::Null) => settings.one_of(
                "beta_schedule",
                schedule,
                &[
                    ("linear", Betas::Linear(first, last)),
                    ("scaled_linear", Betas::ScaledLinear(first, last)),
                    ("squaredcos_cap_v2", Betas::SquaredCosine),
                ],
            )?,
            Some(list) => {
                let list: Vec<f32> = serde_json::from_value(list.clone())
                    .map_err(|error| settings.bad(format!("trained_betas: {error}")))?;
                if list.len() != train_steps {
                    let found = list.len();
                    return Err(settings.bad(format!("{found} trained_betas, {train_steps} num_train_timesteps")));
                }
                Betas::Trained(list)
            }
        };
        let karras = settings.switch("use_karras_sigmas", false)?;
        let exponential = settings.switch("use_exponential_sigmas", false)?;
        let line = match (choice.and_then(|choice| choice.line), karras, exponential) {
            (Some(line), ..) => line,
            (None, true, false) => SigmaLine::Karras,
            (None, false, true) => SigmaLine::Exponential,
            (None, false, false) => SigmaLine::Times,
            (None, true, true) => {
                return Err(settings.bad("both use_karras_sigmas and use_exponential_sigmas".to_owned()));
            }
        };
        let spacings =
            [("leading", Spacing::Leading), ("trailing", Spacing::Trailing), ("linspace", Spacing::Linspace)];
        let default_spacing = if matches!(class, Class::Ddim | Class::Lcm) { "leading" } else { "linspace" };
        let spacing = settings.one_of("timestep_spacing", default_spacing, &spacings)?;
        let solver = matches!(class, Class::DpmMultistep);
        Ok(Self {
            class,
            betas,
            train_steps,
            zero_terminal_snr: settings.switch("rescale_betas_zero_snr", false)?,
            prediction: settings.one_of(
                "prediction_type",
                "epsilon",
                &[
                    ("epsilon", Prediction::Epsilon),
                    ("v_prediction", Prediction::Velocity),
                    ("sample", Prediction::Sample),
                ],
            )?,
            spacing: choice.and_then(|choice| choice.spacing).unwrap_or(spacing),
            offset: settings.count("steps_offset", 0, 0..=1000)?,
            line,
            sigma_bounds: [settings.optional("sigma_min")?, settings.optional("sigma_max")?],
            ends_at_least_sigma: settings.one_of(
                "final_sigmas_type",
                "zero",
                &[("zero", false), ("sigma_min", true)],
            )?,
            log_linear: settings.one_of("interpolation_type", "linear", &[("linear", false), ("log_linear", true)])?,
            continuous_times: settings.one_of(
                "timestep_type",
                "discrete",
                &[("discrete", false), ("continuous", true)],
            )?,
            clamp: settings
                .switch("clip_sample", class == Class::Ddim)?
                .then(|| settings.number("clip_sample_range", 1.0))
                .transpose()?
                .map(|range| range as f32),
            set_alpha_to_one: settings.switch("set_alpha_to_one", true)?,
            lcm: (
                settings.count("original_inference_steps", 50, 1..=train_steps)?,
                settings.number("timestep_scaling", 10.0)?,
            ),
            dpm: if solver { Dpm::of(settings, choice)? } else { Dpm::default() },
        })
    }
}

impl Default for Dpm {
    fn default() -> Self {
        Self {
            order: 2,
            sde: false,
            heun: false,
            lower_order_final: true,
            euler_at_final: false,
            least_lambda: f64::NEG_INFINITY,
        }
    }
}

impl Dpm {
    fn of(settings: &Settings<'_>, choice: Option<&Override>) -> Result<Self> {
        let sde = settings.one_of(
            "algorithm_type",
            "dpmsolver++",
            &[("dpmsolver++", false), ("deis", false), ("sde-dpmsolver++", true)],
        )?;
        Ok(Self {
            order: settings.count("solver_order", 2, 1..=2)?,
            sde: choice.map_or(sde, |choice| choice.sde || sde),
            heun: settings.one_of(
                "solver_type",
                "midpoint",
                &[("midpoint", false), ("heun", true), ("logrho", false), ("bh1", false), ("bh2", false)],
            )?,
            lower_order_final: settings.switch("lower_order_final", true)?,
            euler_at_final: settings.switch("euler_at_final", false)?,
            // Python writes infinities, which JSON does not know; some files have them in quotes.
            least_lambda: match settings.values.get("lambda_min_clipped") {
                Some(Value::Number(number)) => number.as_f64().unwrap_or(f64::NEG_INFINITY),
                _ => f64::NEG_INFINITY,
            },
        })
    }
}

/// The values of a file. What is `null` is as if it were not there.
struct Settings<'a> {
    file: &'a str,
    values: &'a Map<String, Value>,
}

impl Settings<'_> {
    fn bad(&self, reason: String) -> Error {
        Error::Config { file: self.file.to_owned(), reason }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, value: &Value, expected: &str) -> Error {
        self.bad(format!("{key} is {value}, expected {expected}"))
    }

    fn text<'b>(&'b self, key: &str, default: &'b str) -> Result<&'b str> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_str().ok_or_else(|| self.wrong(key, value, "a name")),
        }
    }

    fn switch(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false")),
        }
    }

    fn optional(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|value| value.as_f64().ok_or_else(|| self.wrong(key, value, "a number"))).transpose()
    }

    fn number(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.optional(key)?.unwrap_or(default))
    }

    fn count(&self, key: &str, default: usize, range: std::ops::RangeInclusive<usize>) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok()).filter(|count| range.contains(count));
        count.ok_or_else(|| self.wrong(key, value, &format!("a number from {} to {}", range.start(), range.end())))
    }

    fn one_of<T: Clone>(&self, key: &str, default: &str, known: &[(&str, T)]) -> Result<T> {
        let found = self.text(key, default)?;
        known.iter().find(|(name, _)| *name == found).map(|(_, value)| value.clone()).ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            Error::Unsupported {
                what: format!("{}: {key}", self.file),
                found: found.to_owned(),
                supported: names.join(", "),
            }
        })
    }
}

/// Another scheduler than the model's own, which keeps the model's noise: `dpm++-2m-karras`, `euler-trailing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Override {
    class: Class,
    sde: bool,
    line: Option<SigmaLine>,
    spacing: Option<Spacing>,
}

impl FromStr for Override {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::Unsupported {
            what: "scheduler".to_owned(),
            found: text.to_owned(),
            supported:
                "euler, euler-a, ddim, dpm++-2m, dpm++-2m-sde, lcm or turbo, and behind it -karras, -exponential, \
                        -leading, -trailing or -linspace"
                    .to_owned(),
        };
        let name = text.to_ascii_lowercase().replace([' ', '_'], "-");
        let (mut rest, mut line, mut spacing) = (name.as_str(), None, None);
        loop {
            let (before, last) = rest.rsplit_once('-').unwrap_or(("", ""));
            match last {
                "karras" if line.is_none() => line = Some(SigmaLine::Karras),
                "exponential" if line.is_none() => line = Some(SigmaLine::Exponential),
                "leading" if spacing.is_none() => spacing = Some(Spacing::Leading),
                "trailing" if spacing.is_none() => spacing = Some(Spacing::Trailing),
                "linspace" if spacing.is_none() => spacing = Some(Spacing::Linspace),
                _ => break,
            }
            rest = before;
        }
        let (class, sde) = match rest {
            "euler" => (Class::Euler, false),
            "euler-a" | "euler-ancestral" => (Class::EulerAncestral, false),
            "turbo" => {
                spacing = spacing.or(Some(Spacing::Trailing));
                (Class::EulerAncestral, false)
            }
            "ddim" => (Class::Ddim, false),
            "dpm++-2m" | "dpmpp-2m" | "dpm++" => (Class::DpmMultistep, false),
            "dpm++-2m-sde" | "dpmpp-2m-sde" => (Class::DpmMultistep, true),
            "lcm" => (Class::Lcm, false),
            name => match CLASSES.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)) {
                Some((class, _)) => (*class, false),
                None => return Err(unknown()),
            },
        };
        if line.is_some() && !matches!(class, Class::Euler | Class::DpmMultistep) {
            return Err(Error::InvalidArgument(format!(
                "scheduler {text:?}: only euler and dpm++-2m have Karras and exponential noise levels"
            )));
        }
        Ok(Self { class, sde, line, spacing })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose_a_class_and_its_settings() {
        let parse = |text: &str| text.parse::<Override>().unwrap();
        assert_eq!(
            parse("DPM++ 2M Karras"),
            Override { class: Class::DpmMultistep, sde: false, line: Some(SigmaLine::Karras), spacing: None }
        );
        assert_eq!(parse("turbo"), parse("euler_a-trailing"));
        assert_eq!(parse("EulerDiscreteScheduler"), parse("euler"));
        assert!(parse("dpm++-2m-sde-karras-trailing").sde);
        for bad in ["", "heun", "euler-karras-karras", "ddim-karras", "-karras", "euler-leading-trailing"] {
            assert!(bad.parse::<Override>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let error = |text: &str| SchedulerConfig::parse("s.json", text.as_bytes(), None).unwrap_err().to_string();
        for (text, reason) in [
            ("[]", "not a scheduler's settings"),
            (r#"{"_class_name":"PNDMScheduler"}"#, "\"PNDMScheduler\" is not supported; supported: EulerDiscrete"),
            (r#"{"thresholding":true}"#, "thresholding"),
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
        let choice: Override = "ddim".parse().unwrap();
        let pndm = br#"{"_class_name":"PNDMScheduler","beta_start":0.001}"#;
        let config = SchedulerConfig::parse("s.json", pndm, Some(&choice)).unwrap();
        assert_eq!((config.class, config.betas), (Class::Ddim, Betas::Linear(0.001, 0.02)));
    }
}
