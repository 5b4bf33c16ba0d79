//! Reports on the parts of a checkpoint.

use super::config::LanguageConfig;
use super::expected::{self, ExpectedTensor};
use super::view::{Weights, configured};
use crate::{Error, Result};

/// A tensor with a shape other than expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongShape {
    /// Full name.
    pub name: String,
    /// Shape in the file.
    pub found: Vec<usize>,
    /// Shape that the configuration requires.
    pub expected: Vec<usize>,
}

/// What a part of a checkpoint has, lacks and has beyond need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartReport {
    /// The part's name.
    pub name: &'static str,
    /// The file or folder of its tensors.
    pub origin: String,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes in the files.
    pub bytes: u64,
    /// Expected tensors that are missing.
    pub missing: Vec<String>,
    /// Tensors that are not expected.
    pub unexpected: Vec<String>,
    /// Tensors with a shape other than expected.
    pub wrong_shape: Vec<WrongShape>,
    /// The shard that lacks the first missing tensor, and what of the shard, if an index lists it.
    missing_from: Option<(String, String)>,
}

impl PartReport {
    /// The report of a language model.
    pub fn for_language(weights: &Weights, config: &LanguageConfig) -> Self {
        Self::new("language model", weights, expected::language(config))
    }

    pub(in crate::weights) fn new(name: &'static str, weights: &Weights, expected: Vec<ExpectedTensor>) -> Self {
        let mut report = Self {
            name,
            origin: weights.checkpoint().name().to_owned(),
            tensors: 0,
            parameters: 0,
            bytes: 0,
            missing: Vec::new(),
            unexpected: Vec::new(),
            wrong_shape: Vec::new(),
            missing_from: None,
        };
        for (_, info) in weights.checkpoint().tensors() {
            report.tensors += 1;
            report.parameters = report.parameters.saturating_add(info.elements().unwrap_or(u64::MAX));
            report.bytes = report.bytes.saturating_add(info.bytes().unwrap_or(u64::MAX));
        }
        let known: std::collections::HashSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
        report.unexpected =
            weights.names().filter(|name| !known.contains(name) && !harmless(name)).map(str::to_owned).collect();
        for ExpectedTensor { name, shape, .. } in expected {
            match weights.checkpoint().info(&name) {
                None => {
                    if report.missing.is_empty() {
                        report.missing_from = weights.checkpoint().missing_from(&name);
                    }
                    report.missing.push(name);
                }
                Some(info) if info.shape != shape => {
                    report.wrong_shape.push(WrongShape { name, found: info.shape.clone(), expected: shape });
                }
                Some(_) => {}
            }
        }
        report
    }

    /// Fails on the first tensor that is missing or has another shape than expected.
    ///
    /// # Errors
    /// [`Error::WrongShape`], [`Error::MissingTensor`] with that tensor's name.
    pub fn check(&self) -> Result<()> {
        if let Some(WrongShape { name, found, expected }) = self.wrong_shape.first() {
            let (name, found) = (name.clone(), found.clone());
            return Err(Error::WrongShape { name, found, expected: configured(expected, &self.origin) });
        }
        let Some(name) = self.missing.first() else { return Ok(()) };
        let (file, listed) = self.missing_from.clone().unwrap_or_else(|| (self.origin.clone(), String::new()));
        let hint = match self.missing.len() - 1 {
            0 => format!("{listed}, and the {} needs it", self.name),
            more => format!("{listed}, and the {} needs it and {more} others that are missing", self.name),
        };
        Err(Error::MissingTensor { name: name.clone(), file, hint })
    }
}

/// Tensors that some versions of the reference save without need.
fn harmless(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || name == "lm_head.weight" || name == "rope_freqs.weight"
}
