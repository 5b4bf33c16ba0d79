//! Reading settings from JSON, with the file and the key in every message.
//!
//! Values come from [`crate::json`]; a derived struct would neither check ranges nor name the key of a wrong type.

use std::ops::RangeInclusive;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::tensor::Activation;
use crate::{Error, Result, json};

/// A file's name, and the checks of single values that name the file when they fail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConfigFile<'a>(pub(crate) &'a str);

impl ConfigFile<'_> {
    pub(crate) fn error(self, reason: impl Into<String>) -> Error {
        Error::Config { file: self.0.to_owned(), reason: reason.into() }
    }

    pub(crate) fn unsupported(self, key: &str, found: impl Into<String>, supported: impl Into<String>) -> Error {
        Error::Unsupported { what: format!("{}: {key}", self.0), found: found.into(), supported: supported.into() }
    }

    /// A size from 1 to `limit`.
    pub(crate) fn size(self, key: &str, value: u64, limit: usize) -> Result<usize> {
        match usize::try_from(value) {
            Ok(size) if (1..=limit).contains(&size) => Ok(size),
            _ => Err(self.error(format!("{key} is {value}, expected 1 to {limit}"))),
        }
    }

    /// A number above 0 (after rounding to f32) and at most `limit`.
    pub(crate) fn positive(self, key: &str, value: f64, limit: f64) -> Result<f32> {
        let narrow = value as f32;
        if narrow > 0.0 && value <= limit {
            Ok(narrow)
        } else {
            Err(self.error(format!("{key} is {value}, expected above 0 to {limit}")))
        }
    }
}

/// The JSON object in a configuration file. A key whose value is `null` counts as absent.
pub(crate) struct Settings<'a> {
    pub(crate) file: ConfigFile<'a>,
    object: Map<String, Value>,
}

impl<'a> Settings<'a> {
    pub(crate) fn parse(file: &'a str, bytes: &[u8]) -> Result<Self> {
        let file = ConfigFile(file);
        let object = json::from_slice(bytes)
            .map_err(|error| file.error(format!("expected a JSON object of settings: {error}")))?;
        Ok(Self { file, object })
    }

    /// The object under `key` instead of the whole, if there is one.
    pub(crate) fn nested(mut self, key: &str) -> Self {
        match self.object.remove(key) {
            Some(Value::Object(object)) => Self { file: self.file, object },
            _ => self,
        }
    }

    /// The settings whose keys `takes` accepts.
    pub(crate) fn only_keys(mut self, takes: impl Fn(&str) -> bool) -> Self {
        self.object.retain(|key, _| takes(key));
        self
    }

    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    pub(crate) fn get<T: for<'d> Deserialize<'d>>(&self, key: &str) -> Result<Option<T>> {
        let read = |value| T::deserialize(value).map_err(|error| self.file.error(format!("{key} is {value}: {error}")));
        self.value(key).map(read).transpose()
    }

    pub(crate) fn required<T: for<'d> Deserialize<'d>>(&self, key: &str) -> Result<T> {
        self.get(key)?.ok_or_else(|| self.file.error(format!("{key} is missing")))
    }

    /// The text under `key`; an error if there is a value of another type.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.file.error(format!("{key} is {other}, expected a text"))),
        }
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key) {
            None => Ok(default),
            Some(value) => {
                value.as_bool().ok_or_else(|| self.file.error(format!("{key} is {value}, expected true or false")))
            }
        }
    }

    /// A number; an error if it is NaN or infinite.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.any_number(key)? {
            Some(number) if !number.is_finite() => {
                Err(self.file.error(format!("{key} is {number}, expected a finite number")))
            }
            number => Ok(number),
        }
    }

    /// A number, which may be NaN or infinite.
    pub(crate) fn any_number(&self, key: &str) -> Result<Option<f64>> {
        let read = |value: &Value| {
            json::number(value).ok_or_else(|| self.file.error(format!("{key} is {value}, expected a number")))
        };
        self.value(key).map(read).transpose()
    }

    pub(crate) fn positive(&self, key: &str, default: f64, limit: f64) -> Result<f32> {
        self.file.positive(key, self.number(key)?.unwrap_or(default), limit)
    }

    /// A whole number within `range`.
    pub(crate) fn count(&self, key: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize> {
        let Some(value) = self.value(key) else { return Ok(default) };
        let count = whole(value).and_then(|count| usize::try_from(count).ok()).filter(|count| range.contains(count));
        count.ok_or_else(|| {
            self.file.error(format!("{key} is {value}, expected a number from {} to {}", range.start(), range.end()))
        })
    }

    /// A size from 1 to `limit`, if there is one.
    pub(crate) fn optional_size(&self, key: &str, limit: usize) -> Result<Option<usize>> {
        let size = |value: &Value| match whole(value) {
            Some(size) => self.file.size(key, size, limit),
            None => Err(self.file.error(format!("{key} is {value}, expected 1 to {limit}"))),
        };
        self.value(key).map(size).transpose()
    }

    pub(crate) fn size(&self, key: &str, default: usize, limit: usize) -> Result<usize> {
        match self.optional_size(key, limit)? {
            Some(size) => Ok(size),
            None => self.file.size(key, default as u64, limit),
        }
    }

    /// As [`Self::size`]; the default also for what is no size. For settings that only suggest a size to users.
    pub(crate) fn suggested_size(&self, key: &str, default: usize, limit: usize) -> usize {
        self.optional_size(key, limit).ok().flatten().unwrap_or(default)
    }

    pub(crate) fn required_size(&self, key: &str, limit: usize) -> Result<usize> {
        self.optional_size(key, limit)?.ok_or_else(|| self.file.error(format!("{key} is missing")))
    }

    /// The value that `known` lists for the name under `key`.
    pub(crate) fn one_of<T: Clone>(&self, key: &str, default: &str, known: &[(&str, T)]) -> Result<T> {
        let found = self.text(key)?.unwrap_or(default);
        known.iter().find(|(name, _)| *name == found).map(|(_, value)| value.clone()).ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            self.file.unsupported(key, found, names.join(", "))
        })
    }

    /// Fails unless the setting is absent or one of `allowed`.
    pub(crate) fn only(&self, key: &str, allowed: &[Value]) -> Result<()> {
        let Some(found) = self.value(key) else { return Ok(()) };
        let same =
            |allowed: &Value| allowed == found || allowed.as_f64().is_some_and(|number| found.as_f64() == Some(number));
        if allowed.iter().any(same) {
            return Ok(());
        }
        let names: Vec<_> = allowed.iter().map(Value::to_string).collect();
        let names = if names.is_empty() { "null".to_owned() } else { names.join(", ") };
        let found = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
        Err(self.file.unsupported(key, found, names))
    }

    pub(crate) fn activation(&self, key: &str) -> Result<Option<Activation>> {
        let read = |name| {
            Activation::from_name(name)
                .ok_or_else(|| self.file.unsupported(key, name, "silu, gelu, gelu_pytorch_tanh and quick_gelu"))
        };
        self.text(key)?.map(read).transpose()
    }

    /// One token id below `limit` or a list of them. -1 means none.
    pub(crate) fn token_ids(&self, key: &str, limit: usize) -> Result<Vec<u32>> {
        let values = match self.value(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let mut ids = Vec::new();
        for value in values {
            match value.as_i64() {
                Some(-1) => {}
                Some(id) if (0..limit as i64).contains(&id) => ids.push(id as u32),
                _ => return Err(self.file.error(format!("{key} holds {value}, expected token ids"))),
            }
        }
        Ok(ids)
    }
}

/// A whole number, which may be written with a decimal point.
fn whole(value: &Value) -> Option<u64> {
    let float = || value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..=9e15).contains(number));
    value.as_u64().or_else(|| float().map(|number| number as u64))
}
