//! `weights.json`: what a checkpoint's files hold.

use std::io::{Error, Result};
use std::path::Path;

use half::{bf16, f16};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{about, hex, random, read};

/// The manifest's name in a case's folder.
pub const FILE: &str = "weights.json";

/// A case's weights.
#[derive(Debug, Deserialize)]
pub struct Manifest {
    /// What all tensors' streams of random numbers begin with.
    pub seed: String,
    /// The checkpoint's files of weights.
    pub files: Vec<File>,
}

/// One file of weights.
#[derive(Debug, Deserialize)]
pub struct File {
    /// Relative to the case's folder, with forward slashes. `*.safetensors`, `*.bin` for a torch archive, or `*.gguf`.
    pub path: String,
    /// SHA-256 of the bytes of all tensors, one after the other.
    pub sha256: String,
    /// In a torch archive, tensor n is storage n.
    pub tensors: Vec<Tensor>,
}

/// One tensor.
#[derive(Debug, Deserialize)]
pub struct Tensor {
    /// The tensor's name in the file.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values.
    #[serde(flatten)]
    pub values: Values,
}

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
    I64,
    #[serde(rename = "Q4_0")]
    Q40,
    #[serde(rename = "Q4_1")]
    Q41,
    #[serde(rename = "Q5_0")]
    Q50,
    #[serde(rename = "Q5_1")]
    Q51,
    #[serde(rename = "Q8_0")]
    Q80,
    #[serde(rename = "Q4_K")]
    Q4K,
    #[serde(rename = "Q5_K")]
    Q5K,
    #[serde(rename = "Q6_K")]
    Q6K,
}

/// A block of a quantised GGUF tensor.
struct Block {
    /// The number of values.
    values: usize,
    bytes: usize,
    /// The first byte of the f16 scale.
    scale: usize,
    /// What the largest value is divided by to give the scale.
    levels: f64,
    /// The f16 minimum in bytes 2 and 3 is the spread times this.
    minimum: Option<f64>,
}

impl Dtype {
    /// The layout of a quantised type's blocks, as ggml defines it.
    fn block(self) -> Option<Block> {
        let block = |values, bytes, scale, levels, minimum| Some(Block { values, bytes, scale, levels, minimum });
        match self {
            Self::F32 | Self::F16 | Self::Bf16 | Self::I64 => None,
            Self::Q40 => block(32, 18, 0, 8.0, None),
            Self::Q41 => block(32, 20, 0, 8.0, Some(-1.0)),
            Self::Q50 => block(32, 22, 0, 16.0, None),
            Self::Q51 => block(32, 24, 0, 16.0, Some(-1.0)),
            Self::Q80 => block(32, 34, 0, 127.0, None),
            Self::Q4K => block(256, 144, 0, 256.0, Some(1.0 / 32.0)),
            Self::Q5K => block(256, 176, 0, 512.0, Some(1.0 / 32.0)),
            Self::Q6K => block(256, 210, 208, 2048.0, None),
        }
    }
}

/// A tensor's values.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Values {
    /// `mean + std * x` with the random numbers x of the tensor's stream.
    Random {
        /// The standard deviation.
        std: f64,
        /// The mean.
        #[serde(default)]
        mean: f64,
        /// `(first, end, factor)`: the values of rows `first..end` are multiplied by `factor`.
        #[serde(default)]
        rows: Vec<(usize, usize, f64)>,
        /// Replaces the tensor's name in the name of its stream.
        stream: Option<String>,
    },
    /// One value for all elements.
    Constant {
        /// The value.
        value: f32,
    },
    /// Element `i` is `i`.
    Range {
        /// Always true.
        range: bool,
    },
    /// All elements.
    Listed {
        /// The values, row-major.
        values: Vec<f32>,
    },
    /// Quantised blocks of random bytes ([`random::bytes`]). Scale and minimum are those that the spread asks for, each
    /// times a random factor of 0.5 to 1.5.
    Blocks {
        /// About the largest magnitude of the values.
        spread: f64,
        /// Replaces the tensor's name in the name of its stream.
        stream: Option<String>,
    },
}

impl Manifest {
    /// Reads the manifest in a case's folder.
    ///
    /// # Errors
    /// If it is missing or not of this format.
    pub fn read(case: &Path) -> Result<Self> {
        let path = case.join(FILE);
        serde_json::from_slice(&read(&path)?).map_err(|error| about(&path, error))
    }
}

impl File {
    /// The bytes of every tensor, little-endian, whose digest is [`Self::sha256`].
    ///
    /// # Errors
    /// If the digest differs.
    pub fn generate(&self, seed: &str) -> Result<Vec<Vec<u8>>> {
        let tensors: Vec<Vec<u8>> = self.tensors.iter().map(|tensor| tensor.generate(seed)).collect();
        let mut hash = Sha256::new();
        for bytes in &tensors {
            hash.update(bytes);
        }
        let found = hex(&hash.finalize());
        if found != self.sha256 {
            let expected = &self.sha256;
            return Err(Error::other(format!("{}: the weights' SHA-256 is {found}, {FILE} has {expected}", self.path)));
        }
        Ok(tensors)
    }
}

impl Tensor {
    /// The number of elements.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The elements' bytes, row-major and little-endian.
    #[must_use]
    pub fn generate(&self, seed: &str) -> Vec<u8> {
        let count = self.count();
        match &self.values {
            Values::Random { std, mean, rows, stream } => {
                let stream = format!("{seed}/{}", stream.as_ref().unwrap_or(&self.name));
                let columns = count / self.shape.first().copied().unwrap_or(1).max(1);
                let factor = |row| rows.iter().find(|(first, end, _)| (*first..*end).contains(&row)).map(|row| row.2);
                let numbers = random::normal(&stream).take(count).enumerate();
                self.encode(numbers.map(|(index, x)| {
                    let value = mean + std * x;
                    if rows.is_empty() { value } else { value * factor(index / columns).unwrap_or(1.0) }
                }))
            }
            Values::Constant { value } => self.encode((0..count).map(|_| f64::from(*value))),
            Values::Range { .. } => self.encode((0..count).map(|index| index as f64)),
            Values::Listed { values } => self.encode(values.iter().map(|value| f64::from(*value))),
            Values::Blocks { spread, stream } => {
                let stream = format!("{seed}/{}", stream.as_ref().unwrap_or(&self.name));
                self.dtype.block().map_or_else(Vec::new, |block| blocks(&block, count, *spread, &stream))
            }
        }
    }

    /// Rounds to f32 and then to the tensor's type, each to nearest with ties to even.
    fn encode(&self, values: impl Iterator<Item = f64>) -> Vec<u8> {
        match self.dtype {
            Dtype::F32 => values.flat_map(|value| (value as f32).to_le_bytes()).collect(),
            Dtype::F16 => values.flat_map(|value| f16::from_f32(value as f32).to_le_bytes()).collect(),
            Dtype::Bf16 => values.flat_map(|value| bf16::from_f32(value as f32).to_le_bytes()).collect(),
            Dtype::I64 => values.flat_map(|value| (value as i64).to_le_bytes()).collect(),
            // Only blocks make these; the digest fails.
            _ => Vec::new(),
        }
    }
}

/// Random blocks of `count` values.
fn blocks(block: &Block, count: usize, spread: f64, stream: &str) -> Vec<u8> {
    let count = count / block.values;
    let mut bytes: Vec<u8> = random::bytes(stream).take(count * block.bytes).collect();
    let mut factors = random::uniform(&format!("{stream}/scales")).map(|x| 0.5 + x);
    for bytes in bytes.chunks_exact_mut(block.bytes) {
        let mut put = |at: usize, value: f64| {
            let value = value * factors.next().unwrap_or(1.0);
            bytes[at..at + 2].copy_from_slice(&f16::from_f32(value as f32).to_le_bytes());
        };
        put(block.scale, spread / block.levels);
        if let Some(minimum) = block.minimum {
            put(2, spread * minimum);
        }
    }
    bytes
}
