//! Uploads weights to the device: from a checkpoint, streamed in blocks of bounded size, or random ones of the same
//! shapes.

mod options;

use std::cell::Cell;
use std::fmt::Display;
use std::ops::{ControlFlow, Range};
use std::rc::Rc;

use crate::gpu::Gpu;
use crate::ops::{ConvMode, Convolution, GroupNorm, Norm};
use crate::tensor::{Matrix, MatrixBuilder, Packed, Precision, Tensor};
use crate::weights::dtype::Dtype;
use crate::weights::row_order::RowOrder;
use crate::weights::view::Weights;
use crate::{Error, Result};

pub use options::LoadOptions;

/// The number of f32 values of a matrix that are in host memory at a time: 4 MiB.
const BLOCK_VALUES: usize = 1 << 20;
/// Bytes in staging memory before the loader waits for the device.
const STAGED_BYTES: u64 = 16 << 20;

/// Where tensors come from.
#[derive(Clone)]
enum Origin {
    /// A checkpoint.
    Checkpoint(Weights),
    /// Seeded random values, for runs at released sizes without the released weights. `name` is the prefix of tensor
    /// names.
    Random { name: String, seed: u32 },
}

/// One of several stacked matrices: its name, its number of rows, and the order of the rows on the device.
pub type Part<'a> = (&'a str, usize, RowOrder);

/// Called after every block with the bytes written to the device since the last call. [`ControlFlow::Break`] cancels
/// loading.
pub type OnProgress = Rc<dyn Fn(u64) -> ControlFlow<()>>;

/// The precision of the vision networks if the language model has `precision`.
pub fn vision_precision(precision: Precision) -> Precision {
    precision.min(Precision::F16)
}

/// Loads the tensors of one part of a model, at one precision. Cheap to clone; [`Loader::pp`] goes down a level of
/// names.
#[derive(Clone)]
pub struct Loader {
    gpu: Gpu,
    origin: Origin,
    precision: Precision,
    /// Matrices keep the quantization of their file.
    keep_quantization: bool,
    on_progress: Option<OnProgress>,
    staged: Rc<Cell<u64>>,
}

impl Loader {
    /// A loader of a checkpoint's tensors.
    pub fn new(gpu: &Gpu, weights: Weights, precision: Precision, on_progress: Option<OnProgress>) -> Self {
        let origin = Origin::Checkpoint(weights);
        Self { gpu: gpu.clone(), origin, precision, keep_quantization: false, on_progress, staged: Rc::default() }
    }

    /// A loader that returns random tensors of the requested shapes.
    pub fn random(gpu: &Gpu, seed: u32, precision: Precision, on_progress: Option<OnProgress>) -> Self {
        let origin = Origin::Random { name: String::new(), seed };
        Self { gpu: gpu.clone(), origin, precision, keep_quantization: false, on_progress, staged: Rc::default() }
    }

    /// The loader of the tensors with the prefix `part.` below this one's.
    pub fn pp(&self, part: impl Display) -> Self {
        let origin = match &self.origin {
            Origin::Checkpoint(weights) => Origin::Checkpoint(weights.pp(part)),
            Origin::Random { name, seed } => Origin::Random { name: format!("{name}{part}."), seed: *seed },
        };
        Self { origin, ..self.clone() }
    }

    /// The same loader at exactly this precision, for all stored types.
    pub fn at(&self, precision: Precision) -> Self {
        Self { precision, keep_quantization: false, ..self.clone() }
    }

    /// The same loader at `precision`, if its own is lower. Matrices that keep the quantization of their file still do.
    pub fn at_least(&self, precision: Precision) -> Self {
        Self { precision: self.precision.min(precision), ..self.clone() }
    }

    /// The same loader, but matrices keep the type of their file instead of the loader's precision: blocks of GGUF
    /// files are lossless, and floats have [`Dtype::precision`].
    pub fn keep_quantization(&self) -> Self {
        Self { keep_quantization: true, ..self.clone() }
    }

    /// The precision of a matrix on the device.
    fn precision_of(&self, weights: &Weights, name: &str) -> Result<Precision> {
        Ok(if self.keep_quantization { weights.info(name)?.dtype.precision() } else { self.precision })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The precision of matrices without [`Self::keep_quantization`].
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Whether the tensor exists.
    pub fn contains(&self, name: &str) -> bool {
        match &self.origin {
            Origin::Checkpoint(weights) => weights.contains(name),
            Origin::Random { .. } => true,
        }
    }

    fn full_name(&self, name: &str) -> String {
        match &self.origin {
            Origin::Checkpoint(weights) => weights.full_name(name),
            Origin::Random { name: prefix, .. } => format!("{prefix}{name}"),
        }
    }

    /// A matrix [rows, columns]: a linear layer's weight, or a convolution's with its kernel flattened into columns.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongShape`] and all errors of reading; [`Error::Unsupported`] for a value
    /// that exceeds the precision; [`Error::Cancelled`]; [device errors](crate::gpu).
    pub async fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix> {
        self.stacked(&[(name, rows)], columns).await
    }

    /// Several matrices with the same number of columns, stacked.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub async fn stacked(&self, parts: &[(&str, usize)], columns: usize) -> Result<Matrix> {
        let parts: Vec<_> = parts.iter().map(|(name, rows)| (*name, *rows, RowOrder::Plain)).collect();
        self.stacked_in_order(&parts, columns).await
    }

    /// As [`Self::stacked`], with an order of the rows for each matrix.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub async fn stacked_in_order(&self, parts: &[Part<'_>], columns: usize) -> Result<Matrix> {
        let rows = parts.iter().map(|(_, rows, _)| rows).sum();
        let what = self.full_name(parts.first().map_or("", |(name, ..)| name));
        let weights = match &self.origin {
            Origin::Checkpoint(weights) => weights,
            Origin::Random { seed, .. } => return self.random_matrix(&what, *seed, rows, columns).await,
        };
        for (name, rows, _) in parts {
            expect_flattened(weights, name, *rows, columns)?;
        }
        // Neighbours of the same precision become one matrix, which takes one dispatch.
        let mut stacked: Vec<(Precision, Vec<Part<'_>>)> = Vec::new();
        for part in parts {
            let precision = self.precision_of(weights, part.0)?;
            match stacked.last_mut() {
                Some((last, names)) if *last == precision => names.push(*part),
                _ => stacked.push((precision, vec![*part])),
            }
        }
        let mut matrices = Vec::new();
        for (precision, parts) in stacked {
            let rows = parts.iter().map(|(_, rows, _)| rows).sum();
            let mut builder = MatrixBuilder::new(&self.gpu, precision, rows, columns, &what)?;
            for (name, rows, order) in parts {
                for first in (0..rows).step_by(block_rows(columns)) {
                    let range = first..(first + block_rows(columns)).min(rows);
                    let count = range.len();
                    if self.keep_quantization && matches!(weights.info(name)?.dtype, Dtype::Block(_)) {
                        builder.push_packed(&weights.read_packed_in(name, range, order).await?)?;
                    } else {
                        builder.push(&read_rows(weights, name, range, order, precision).await?)?;
                    }
                    self.wrote(Matrix::bytes_for(precision, count, columns)).await?;
                }
            }
            matrices.push(builder.finish()?);
        }
        Matrix::stack(matrices)
    }

    /// Two matrices [rows, columns] with alternating rows, `even` first: the layout of gated epilogues.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub async fn interleaved(&self, even: &str, odd: &str, rows: usize, columns: usize) -> Result<Matrix> {
        let what = self.full_name(even);
        let weights = match &self.origin {
            Origin::Checkpoint(weights) => weights,
            Origin::Random { seed, .. } => return self.random_matrix(&what, *seed, 2 * rows, columns).await,
        };
        weights.expect_shape(even, &[rows, columns])?;
        weights.expect_shape(odd, &[rows, columns])?;
        let precision = self.precision_of(weights, even)?;
        let blocks = self.keep_quantization && matches!(weights.info(even)?.dtype, Dtype::Block(_));
        if weights.info(odd)?.dtype != weights.info(even)?.dtype && self.keep_quantization {
            // No known file has two types here. f32 can represent both.
            return Box::pin(self.at(Precision::F32).interleaved(even, odd, rows, columns)).await;
        }
        let mut builder = MatrixBuilder::new(&self.gpu, precision, 2 * rows, columns, &what)?;
        let step = (block_rows(columns) / 2).max(1);
        for first in (0..rows).step_by(step) {
            let range = first..(first + step).min(rows);
            let count = 2 * range.len();
            if blocks {
                let evens = weights.read_packed(even, range.clone()).await?;
                let odds = weights.read_packed(odd, range).await?;
                let [data, scales] = [precision.row_bytes(columns), precision.row_scale_bytes(columns)];
                builder.push_packed(&Packed {
                    data: alternating(&evens.data, &odds.data, data),
                    scales: alternating(&evens.scales, &odds.scales, scales),
                })?;
            } else {
                let evens = read_rows(weights, even, range.clone(), RowOrder::Plain, precision).await?;
                let odds = read_rows(weights, odd, range, RowOrder::Plain, precision).await?;
                builder.push(&alternating(&evens, &odds, columns))?;
            }
            self.wrote(Matrix::bytes_for(precision, count, columns)).await?;
        }
        builder.finish()
    }

    /// A matrix [2 rows, columns], stored as all values and then all gates, with gates and values alternating: the
    /// layout of gated epilogues.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub async fn gated_halves(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix> {
        let what = self.full_name(name);
        let weights = match &self.origin {
            Origin::Checkpoint(weights) => weights,
            Origin::Random { seed, .. } => return self.random_matrix(&what, *seed, 2 * rows, columns).await,
        };
        expect_flattened(weights, name, 2 * rows, columns)?;
        let mut builder = MatrixBuilder::new(&self.gpu, self.precision, 2 * rows, columns, &what)?;
        let step = (block_rows(columns) / 2).max(1);
        for first in (0..rows).step_by(step) {
            let end = (first + step).min(rows);
            let values = weights.read_rows(name, first..end).await?;
            let gates = weights.read_rows(name, rows + first..rows + end).await?;
            builder.push(&alternating(&gates, &values, columns))?;
            self.wrote(Matrix::bytes_for(self.precision, 2 * (end - first), columns)).await?;
        }
        builder.finish()
    }

    /// The bias of a matrix of [`Self::gated_halves`].
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub async fn gated_bias(&self, name: &str, rows: usize) -> Result<Tensor> {
        let values = self.values(name, &[2 * rows]).await?;
        self.upload(name, &[2 * rows], &alternating(&values[rows..], &values[..rows], 1)).await
    }

    /// A convolution: `name.weight` [out, channels, side, side] and `name.bias`. Channels are padded with zeros to a
    /// multiple of 4.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub async fn convolution(
        &self,
        name: impl Display,
        (channels, out): (usize, usize),
        side: usize,
        sampling: ConvMode,
    ) -> Result<Convolution> {
        let part = self.pp(name);
        let bias = part.tensor("bias", &[out]).await?;
        let (taps, padded) = (side * side, channels.next_multiple_of(4));
        let columns = taps * padded;
        let what = part.full_name("weight");
        let weight = match &part.origin {
            Origin::Random { seed, .. } => part.random_matrix(&what, *seed, out, columns).await?,
            Origin::Checkpoint(weights) => {
                // Some files store 1 x 1 convolutions as matrices.
                expect_flattened(weights, "weight", out, taps * channels)?;
                let mut builder = MatrixBuilder::new(&self.gpu, self.precision, out, columns, &what)?;
                let step = block_rows(columns);
                for first in (0..out).step_by(step) {
                    let rows = weights.read_rows("weight", first..(first + step).min(out)).await?;
                    let mut packed = vec![0.0; rows.len() / (taps * channels) * columns];
                    for (row, packed) in rows.chunks_exact(taps * channels).zip(packed.chunks_exact_mut(columns)) {
                        for (channel, kernel) in row.chunks_exact(taps).enumerate() {
                            for (tap, value) in kernel.iter().enumerate() {
                                packed[tap * padded + channel] = *value;
                            }
                        }
                    }
                    builder.push(&packed)?;
                    self.wrote(Matrix::bytes_for(self.precision, packed.len() / columns, columns)).await?;
                }
                builder.finish()?
            }
        };
        Ok(Convolution { weight, bias, channels: padded, side, mode: sampling })
    }

    /// A group norm: `name.weight` and `name.bias`.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub async fn group_norm(&self, name: impl Display, channels: usize, groups: usize, eps: f32) -> Result<GroupNorm> {
        let part = self.pp(name);
        let weight = part.tensor("weight", &[channels]).await?;
        let bias = part.tensor("bias", &[channels]).await?;
        Ok(GroupNorm { weight, bias, groups, eps })
    }

    /// A matrix whose values were computed on the host.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; [device errors](crate::gpu).
    pub async fn computed(&self, what: &str, columns: usize, values: &[f32]) -> Result<Matrix> {
        let matrix = Matrix::new(&self.gpu, self.precision, columns, values, &self.full_name(what))?;
        self.wrote(matrix.bytes()).await?;
        Ok(matrix)
    }

    async fn random_matrix(&self, what: &str, seed: u32, rows: usize, columns: usize) -> Result<Matrix> {
        let matrix = Matrix::random(&self.gpu, self.precision, rows, columns, hash(what, seed), what)?;
        if let Some(on_progress) = &self.on_progress
            && on_progress(matrix.bytes()).is_break()
        {
            return Err(Error::Cancelled);
        }
        Ok(matrix)
    }

    /// A tensor's values on the host, for small tensors that are transformed before the upload.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongShape`] and all errors of reading.
    pub async fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        match &self.origin {
            Origin::Checkpoint(weights) => {
                weights.expect_shape(name, shape)?;
                weights.read(name).await
            }
            Origin::Random { seed, .. } => Ok(random_values(&self.full_name(name), *seed, shape)),
        }
    }

    /// As [`Self::values`], for a matrix or the weight of a 1 x 1 convolution.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub async fn flattened(&self, name: &str, rows: usize, columns: usize) -> Result<Vec<f32>> {
        match &self.origin {
            Origin::Checkpoint(weights) => {
                expect_flattened(weights, name, rows, columns)?;
                weights.read(name).await
            }
            Origin::Random { seed, .. } => Ok(random_values(&self.full_name(name), *seed, &[rows, columns])),
        }
    }

    /// An f32 tensor, for all precisions of matrices.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub async fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let values = self.values(name, shape).await?;
        self.upload(name, shape, &values).await
    }

    /// An f32 tensor whose values were computed on the host.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; [device errors](crate::gpu).
    pub async fn upload(&self, what: &str, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        let tensor = Tensor::new(&self.gpu, shape, values, &self.full_name(what))?;
        self.wrote(tensor.bytes()).await?;
        Ok(tensor)
    }

    /// A layer norm: `name.weight` and `name.bias`.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub async fn layer_norm(&self, name: impl Display, width: usize, eps: f32) -> Result<Norm> {
        let part = self.pp(name);
        let weight = part.tensor("weight", &[width]).await?;
        let bias = Some(part.tensor("bias", &[width]).await?);
        Ok(Norm { weight, bias, eps, unit_offset: false })
    }

    /// An RMS norm: `name.weight`.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub async fn rms_norm(&self, name: impl Display, width: usize, eps: f32, unit_offset: bool) -> Result<Norm> {
        let weight = self.pp(name).tensor("weight", &[width]).await?;
        Ok(Norm { weight, bias: None, eps, unit_offset })
    }

    /// Reports written bytes, and waits for the device when [`STAGED_BYTES`] are staged.
    async fn wrote(&self, bytes: u64) -> Result<()> {
        self.staged.set(self.staged.get() + bytes);
        if self.staged.get() > STAGED_BYTES {
            self.staged.set(0);
            self.gpu.flush_writes().await?;
        }
        match &self.on_progress {
            Some(on_progress) if on_progress(bytes).is_break() => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }
}

/// Rows as f32. Values that exceed `precision` are an error.
async fn read_rows(
    weights: &Weights,
    name: &str,
    rows: Range<usize>,
    order: RowOrder,
    precision: Precision,
) -> Result<Vec<f32>> {
    let values = weights.read_rows_in(name, rows, order).await?;
    match values.iter().find(|value| value.abs() > precision.largest()) {
        None => Ok(values),
        Some(value) => Err(Error::Unsupported {
            what: format!("a weight of {} at {precision}", weights.full_name(name)),
            found: value.to_string(),
            supported: format!("magnitudes up to {} (f32 holds larger ones)", precision.largest()),
        }),
    }
}

/// Alternates rows of `length` values from `even` and `odd`.
fn alternating<T: Copy>(even: &[T], odd: &[T], length: usize) -> Vec<T> {
    let pairs = even.chunks_exact(length).zip(odd.chunks_exact(length));
    pairs.flat_map(|(even, odd)| even.iter().chain(odd).copied()).collect()
}

/// Rows per block of reading.
fn block_rows(columns: usize) -> usize {
    (BLOCK_VALUES / columns.max(1)).max(1)
}

/// Checks that a tensor is [rows, ...] with `columns` elements a row.
fn expect_flattened(weights: &Weights, name: &str, rows: usize, columns: usize) -> Result<()> {
    let shape = weights.shape(name)?;
    let length = shape.iter().skip(1).try_fold(1usize, |length, size| length.checked_mul(*size));
    if shape.first() == Some(&rows) && length == Some(columns) {
        return Ok(());
    }
    weights.expect_shape(name, &[rows, columns])
}

/// FNV-1a.
fn hash(name: &str, seed: u32) -> u32 {
    name.bytes().fold(0x811c_9dc5 ^ seed, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Gains around 1, layer scales around 0.1 and other values around 0, so that activations stay bounded.
fn random_values(name: &str, seed: u32, shape: &[usize]) -> Vec<f32> {
    let mut state = hash(name, seed) | 1;
    let centre = if name.ends_with("gamma") {
        0.1
    } else if shape.len() == 1 && name.ends_with("weight") {
        1.0
    } else {
        0.0
    };
    (0..shape.iter().product())
        .map(|_| {
            // xorshift32
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            centre + (state as f32 / u32::MAX as f32 - 0.5) * 0.04
        })
        .collect()
}
