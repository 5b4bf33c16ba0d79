use super::MAX_VOCABULARY;
use super::json::Settings;
use crate::Result;

/// A model's `generation_config.json`: how its makers would sample from it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Ids that end an answer.
    pub eos_tokens: Vec<u32>,
    /// Nucleus sampling keeps the most likely tokens up to this total probability.
    pub top_p: Option<f32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`; `file` is its name for messages. An empty file has no settings.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if it is not JSON or a value is out of range.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        if bytes.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        let settings = Settings::parse(file, bytes)?;
        let top_p = settings.number("top_p")?.map(|top_p| top_p as f32);
        if let Some(top_p) = top_p.filter(|top_p| !(0.0..=1.0).contains(top_p)) {
            return Err(settings.file.error(format!("top_p is {top_p}, expected 0 to 1")));
        }
        Ok(Self { eos_tokens: settings.token_ids("eos_token_id", MAX_VOCABULARY)?, top_p })
    }
}
