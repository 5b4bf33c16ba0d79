//! Uploads weights to the device: from a checkpoint, streamed in blocks of bounded size, or random ones of the same
//! shapes.

mod options;

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt::Display;
use std::ops::{ControlFlow, Range};
use std::rc::Rc;

use crate::gpu::Gpu;
use crate::ops::{ConvMode, Convolution, GroupNorm, Norm};
use crate::tensor::{Inputs, Matrix, MatrixBuilder, Precision, Tensor};
use crate::weights::blocks::BlockType;
use crate::weights::dtype::{Dtype, first_larger};
use crate::weights::expected::{ExpectedTensor, Storage};
use crate::weights::row_order::RowOrder;
use crate::weights::view::Weights;
use crate::{Error, Result};

pub use options::LoadOptions;

/// Bytes of a matrix that are in host memory at a time: rows as f32 or as blocks of their file, and as packed.
const BLOCK_BYTES: usize = 2 << 20;
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

/// Called after every block with the bytes written to the device since the last call. [`ControlFlow::Break`] cancels
/// loading.
pub type OnProgress = Rc<dyn Fn(u64) -> ControlFlow<()>>;

/// The precision of the vision networks if the language model has `precision`.
pub fn vision_precision(precision: Precision) -> Precision {
    precision.min(Precision::F16)
}

/// Loads the tensors of a network, at one precision. Shapes are those of the network's list ([`Loader::network`]).
/// Cheap to clone; [`Loader::pp`] goes down a level of names.
#[derive(Clone)]
pub struct Loader {
    gpu: Gpu,
    origin: Origin,
    precision: Precision,
    /// Matrices keep the quantization of their file.
    keep_quantization: bool,
    /// Inputs of the matrices.
    inputs: Inputs,
    on_progress: Option<OnProgress>,
    staged: Rc<Cell<u64>>,
    /// The tensors of the network by name.
    tensors: Rc<HashMap<String, ExpectedTensor>>,
    /// The length of the prefix that the network's names do not have.
    network_prefix: usize,
}

/// How a matrix is stored on the device.
#[derive(Debug, Clone, Copy)]
struct MatrixInfo {
    rows: usize,
    columns: usize,
    precision: Precision,
    /// The type in the file, if the matrix keeps it.
    file_dtype: Option<Dtype>,
}

/// Rows of one tensor, or of several whose rows alternate on the device.
enum Rows {
    /// The values of each tensor.
    Values(Vec<Vec<f32>>),
    /// The blocks of each tensor.
    Blocks(BlockType, Vec<Vec<u8>>),
}

impl Loader {
    /// A loader of a checkpoint's tensors.
    pub fn new(gpu: &Gpu, weights: Weights, precision: Precision, on_progress: Option<OnProgress>) -> Self {
        Self::with_origin(gpu, Origin::Checkpoint(weights), precision, on_progress)
    }

    /// A loader that returns random tensors.
    pub fn random(gpu: &Gpu, seed: u32, precision: Precision, on_progress: Option<OnProgress>) -> Self {
        Self::with_origin(gpu, Origin::Random { name: String::new(), seed }, precision, on_progress)
    }

    fn with_origin(gpu: &Gpu, origin: Origin, precision: Precision, on_progress: Option<OnProgress>) -> Self {
        let (gpu, staged, tensors) = (gpu.clone(), Rc::default(), Rc::default());
        Self {
            gpu,
            origin,
            precision,
            keep_quantization: false,
            inputs: Inputs::Any,
            on_progress,
            staged,
            tensors,
            network_prefix: 0,
        }
    }

    /// The loader of the tensors with the prefix `part.` below this one's.
    pub fn pp(&self, part: impl Display) -> Self {
        let origin = match &self.origin {
            Origin::Checkpoint(weights) => Origin::Checkpoint(weights.pp(part)),
            Origin::Random { name, seed } => Origin::Random { name: format!("{name}{part}."), seed: *seed },
        };
        Self { origin, ..self.clone() }
    }

    /// The loader of a network with these tensors. Their names start after this loader's prefix.
    pub fn network(&self, tensors: Vec<ExpectedTensor>) -> Self {
        let tensors = tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        Self { tensors: Rc::new(tensors), network_prefix: self.full_name("").len(), ..self.clone() }
    }

    /// The same loader at exactly this precision, for all stored types.
    pub fn at(&self, precision: Precision) -> Self {
        Self { precision, keep_quantization: false, ..self.clone() }
    }

    /// The same loader, but matrices keep the type of their file instead of the loader's precision: blocks of GGUF
    /// files are lossless, and floats have [`Dtype::precision`].
    pub fn keep_quantization(&self) -> Self {
        Self { keep_quantization: true, ..self.clone() }
    }

    /// The same loader, for a network with such inputs.
    pub fn inputs(&self, inputs: Inputs) -> Self {
        Self { inputs, ..self.clone() }
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The precision of matrices without [`Self::keep_quantization`].
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Whether the network has such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.expected(name).is_ok()
    }

    fn full_name(&self, name: &str) -> String {
        match &self.origin {
            Origin::Checkpoint(weights) => weights.full_name(name),
            Origin::Random { name: prefix, .. } => format!("{prefix}{name}"),
        }
    }

    /// A tensor of the network's list.
    fn expected(&self, name: &str) -> Result<&ExpectedTensor> {
        let full = self.full_name(name);
        let tensor = full.get(self.network_prefix..).and_then(|name| self.tensors.get(name));
        tensor.ok_or_else(|| Error::Internal(format!("the network's list has no tensor {full}")))
    }

    /// The storage of a matrix, whose shape in the checkpoint is checked.
    fn matrix_info(&self, name: &str) -> Result<MatrixInfo> {
        let ExpectedTensor { shape, storage, .. } = self.expected(name)?;
        let [rows, columns] = flattened(shape);
        let mut file_dtype = None;
        if let Origin::Checkpoint(weights) = &self.origin {
            expect_shape(weights, name, shape)?;
            file_dtype = (self.keep_quantization && *storage != Storage::F32).then_some(weights.info(name)?.dtype);
        }
        let precision = storage.on_device(self.precision).unwrap_or(Precision::F32);
        Ok(MatrixInfo { rows, columns, precision: file_dtype.map_or(precision, Dtype::precision), file_dtype })
    }

    /// A matrix [rows, columns]: a linear layer's weight, or a convolution's with its kernel flattened into columns.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongShape`] and all errors of reading; [`Error::Unsupported`] for a value
    /// that exceeds the precision; [`Error::Cancelled`]; [device errors](crate::gpu).
    pub async fn matrix(&self, name: &str) -> Result<Matrix> {
        self.stacked(&[name]).await
    }

    /// Several matrices with the same number of columns, stacked.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub async fn stacked(&self, names: &[&str]) -> Result<Matrix> {
        let parts: Vec<_> = names.iter().map(|name| (*name, RowOrder::Plain)).collect();
        self.stacked_in_order(&parts).await
    }

    /// As [`Self::stacked`], with an order of the rows on the device for each matrix.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub async fn stacked_in_order(&self, parts: &[(&str, RowOrder)]) -> Result<Matrix> {
        let mut infos = Vec::new();
        for (name, order) in parts {
            infos.push((*name, *order, self.matrix_info(name)?));
        }
        let height = |parts: &[(&str, RowOrder, MatrixInfo)]| parts.iter().map(|(_, _, info)| info.rows).sum();
        let mut matrices = Vec::new();
        // Neighbours of the same precision become one matrix, which takes one dispatch.
        for parts in infos.chunk_by(|(_, _, a), (_, _, b)| a.precision == b.precision) {
            let (name, _, info) = parts[0];
            let info = MatrixInfo { rows: height(parts), ..info };
            let what = self.full_name(name);
            let Some(weights) = self.weights() else {
                matrices.push(self.random_matrix(&what, &info)?);
                continue;
            };
            let mut builder = MatrixBuilder::new(&self.gpu, info.precision, info.rows, info.columns, &what)?;
            for (name, order, info) in parts {
                let read = async |range| read_parts(weights, &[(*name, range)], *order, info).await;
                self.push_blocks(&mut builder, info, 1, read).await?;
            }
            matrices.push(builder.finish()?);
        }
        Ok(Matrix::stack(matrices)?.with_inputs(self.inputs))
    }

    /// The biases of two matrices of [`Self::interleaved`].
    ///
    /// # Errors
    /// As [`Self::values`].
    pub async fn interleaved_bias(&self, even: &str, odd: &str) -> Result<Tensor> {
        let parts = [self.values(even).await?, self.values(odd).await?];
        let bias = alternating(&parts, 1).concat();
        self.upload(even, &[bias.len()], &bias).await
    }

    /// Two matrices [rows, columns] with alternating rows, `even` first: the layout of gated epilogues.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub async fn interleaved(&self, even: &str, odd: &str) -> Result<Matrix> {
        let info = self.matrix_info(even)?;
        if self.matrix_info(odd)?.file_dtype != info.file_dtype {
            // No known file has two types here. f32 can represent both.
            return Box::pin(self.at(Precision::F32).interleaved(even, odd)).await;
        }
        self.alternating_rows([(even, 0), (odd, 0)], &info).await
    }

    /// A matrix [2 rows, columns], stored as all values and then all gates, with gates and values alternating: the
    /// layout of gated epilogues.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub async fn gated_halves(&self, name: &str) -> Result<Matrix> {
        let mut info = self.matrix_info(name)?;
        info.rows /= 2;
        self.alternating_rows([(name, info.rows), (name, 0)], &info).await
    }

    /// The bias of a matrix of [`Self::gated_halves`].
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub async fn gated_bias(&self, name: &str) -> Result<Tensor> {
        let values = self.values(name).await?;
        let (values, gates) = values.split_at(values.len() / 2);
        self.upload(name, &[2 * gates.len()], &alternating(&[gates, values], 1).concat()).await
    }

    /// Rows of two tensors, alternating. Each has `info.rows` of them, from a first row on.
    async fn alternating_rows(&self, parts: [(&str, usize); 2], info: &MatrixInfo) -> Result<Matrix> {
        let read = async |weights: &Weights, range: Range<usize>| {
            let parts = parts.map(|(name, first)| (name, first + range.start..first + range.end));
            read_parts(weights, &parts, RowOrder::Plain, info).await
        };
        self.build(parts[0].0, info, 2, read).await
    }

    /// A convolution:
    /// `name.weight` [out, channels, side, side], or [out, channels] with a 1 x 1 kernel, and `name.bias`. Channels are
    /// padded with zeros to a multiple of 4.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub async fn convolution(&self, name: impl Display, mode: ConvMode) -> Result<Convolution> {
        let part = self.pp(name);
        let bias = part.tensor("bias").await?;
        let info = part.matrix_info("weight")?;
        let side = part.expected("weight")?.shape.get(2).copied().unwrap_or(1);
        let taps = side * side;
        let padded = padded_channels(info.columns / taps);
        let on_device = MatrixInfo { columns: taps * padded, ..info };
        let read = async |weights: &Weights, range| {
            let rows = read_rows(weights, "weight", range, RowOrder::Plain, info.precision).await?;
            let mut last = vec![0.0; rows.len() / info.columns * on_device.columns];
            for (row, last) in rows.chunks_exact(info.columns).zip(last.chunks_exact_mut(on_device.columns)) {
                for (channel, kernel) in row.chunks_exact(taps).enumerate() {
                    for (tap, value) in kernel.iter().enumerate() {
                        last[tap * padded + channel] = *value;
                    }
                }
            }
            Ok(Rows::Values(vec![last]))
        };
        Ok(Convolution { weight: part.build("weight", &on_device, 1, read).await?, bias, channels: padded, side, mode })
    }

    /// A group norm: `name.weight` and `name.bias`.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub async fn group_norm(&self, name: impl Display, groups: usize, eps: f32) -> Result<GroupNorm> {
        let part = self.pp(name);
        let (weight, bias) = (part.values("weight").await?, part.values("bias").await?);
        let largest = |values: &[f32]| values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        Ok(GroupNorm {
            largest: [largest(&weight), largest(&bias)],
            weight: part.upload("weight", &[weight.len()], &weight).await?,
            bias: part.upload("bias", &[bias.len()], &bias).await?,
            groups,
            eps,
        })
    }

    /// A matrix whose values were computed on the host.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; [device errors](crate::gpu).
    pub async fn computed(&self, what: &str, columns: usize, values: &[f32]) -> Result<Matrix> {
        let what = self.full_name(what);
        if self.gpu.is_planned() {
            let info =
                MatrixInfo { rows: values.len() / columns, columns, precision: self.precision, file_dtype: None };
            return self.random_matrix(&what, &info);
        }
        let matrix = Matrix::new(&self.gpu, self.precision, columns, values, &what)?;
        self.wrote(matrix.bytes()).await?;
        Ok(matrix.with_inputs(self.inputs))
    }

    /// A matrix in which `info.rows` ranges over groups of `group` rows: random, or returned by `read`.
    async fn build(
        &self,
        name: &str,
        info: &MatrixInfo,
        group: usize,
        read: impl AsyncFn(&Weights, Range<usize>) -> Result<Rows>,
    ) -> Result<Matrix> {
        let (rows, what) = (group * info.rows, self.full_name(name));
        let Some(weights) = self.weights() else { return self.random_matrix(&what, &MatrixInfo { rows, ..*info }) };
        let mut builder = MatrixBuilder::new(&self.gpu, info.precision, rows, info.columns, &what)?;
        self.push_blocks(&mut builder, info, group, async |range| read(weights, range).await).await?;
        Ok(builder.finish()?.with_inputs(self.inputs))
    }

    /// Uploads `info.rows` groups of `group` rows in blocks: `read` returns the rows of a range of groups.
    async fn push_blocks(
        &self,
        builder: &mut MatrixBuilder,
        info: &MatrixInfo,
        group: usize,
        read: impl AsyncFn(Range<usize>) -> Result<Rows>,
    ) -> Result<()> {
        let columns = info.columns.max(1);
        let read_bytes = match info.file_dtype {
            Some(Dtype::Block(kind)) => kind.row_bytes(columns),
            _ => 4 * columns,
        };
        let row_bytes = read_bytes + info.precision.row_bytes(columns) + info.precision.row_scale_bytes(columns);
        let step = (BLOCK_BYTES / row_bytes / group).max(1);
        for first in (0..info.rows).step_by(step) {
            let range = first..(first + step).min(info.rows);
            let bytes = Matrix::bytes_for(info.precision, group * range.len(), info.columns);
            match read(range).await? {
                Rows::Values(parts) => builder.push_rows(&alternating(&parts, columns))?,
                Rows::Blocks(kind, parts) => {
                    let rows = alternating(&parts, kind.row_bytes(columns));
                    builder.push_with(rows.len(), |tile| kind.pack(tile, &rows))?;
                }
            }
            self.wrote(bytes).await?;
        }
        Ok(())
    }

    /// The weights to read. `None` if they are random, or if the device is planned and stores none.
    fn weights(&self) -> Option<&Weights> {
        match &self.origin {
            Origin::Checkpoint(weights) if !self.gpu.is_planned() => Some(weights),
            _ => None,
        }
    }

    fn random_matrix(&self, what: &str, info: &MatrixInfo) -> Result<Matrix> {
        let seed = match self.origin {
            Origin::Random { seed, .. } => seed,
            Origin::Checkpoint(_) => 0,
        };
        let matrix = Matrix::random(&self.gpu, info.precision, info.rows, info.columns, hash(what, seed), what)?;
        self.report(matrix.bytes())?;
        Ok(matrix.with_inputs(self.inputs))
    }

    /// A tensor's values on the host, for small tensors that are transformed before the upload.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongShape`] and all errors of reading.
    pub async fn values(&self, name: &str) -> Result<Vec<f32>> {
        let shape = &self.expected(name)?.shape;
        match &self.origin {
            Origin::Checkpoint(weights) => {
                expect_shape(weights, name, shape)?;
                match self.weights() {
                    Some(weights) => weights.read(name).await,
                    None => Ok(vec![0.0; shape.iter().product()]),
                }
            }
            Origin::Random { seed, .. } => Ok(random_values(&self.full_name(name), *seed, shape)),
        }
    }

    /// An f32 tensor, for all precisions of matrices.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub async fn tensor(&self, name: &str) -> Result<Tensor> {
        let values = self.values(name).await?;
        self.upload(name, &self.expected(name)?.shape, &values).await
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
    pub async fn layer_norm(&self, name: impl Display, eps: f32) -> Result<Norm> {
        let part = self.pp(name);
        let (weight, bias) = (part.tensor("weight").await?, Some(part.tensor("bias").await?));
        Ok(Norm { weight, bias, eps, unit_offset: false })
    }

    /// An RMS norm: `name.weight`.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub async fn rms_norm(&self, name: impl Display, eps: f32, unit_offset: bool) -> Result<Norm> {
        Ok(Norm { weight: self.pp(name).tensor("weight").await?, bias: None, eps, unit_offset })
    }

    /// Reports written bytes, and waits for the device when [`STAGED_BYTES`] are staged.
    async fn wrote(&self, bytes: u64) -> Result<()> {
        self.staged.set(self.staged.get() + bytes);
        if self.staged.get() > STAGED_BYTES {
            self.staged.set(0);
            self.gpu.flush_writes().await?;
        }
        self.report(bytes)
    }

    fn report(&self, bytes: u64) -> Result<()> {
        match &self.on_progress {
            Some(on_progress) if on_progress(bytes).is_break() => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }
}

/// Rows of tensors of one type.
async fn read_parts(
    weights: &Weights,
    parts: &[(&str, Range<usize>)],
    order: RowOrder,
    info: &MatrixInfo,
) -> Result<Rows> {
    let (mut values, mut blocks) = (Vec::new(), Vec::new());
    for (name, rows) in parts {
        match info.file_dtype {
            Some(Dtype::Block(_)) => blocks.push(weights.read_blocks(name, rows.clone(), order).await?),
            _ => values.push(read_rows(weights, name, rows.clone(), order, info.precision).await?),
        }
    }
    Ok(match info.file_dtype {
        Some(Dtype::Block(kind)) => Rows::Blocks(kind, blocks),
        _ => Rows::Values(values),
    })
}

/// The channels on the device of a convolution's input.
pub fn padded_channels(channels: usize) -> usize {
    channels.next_multiple_of(4)
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
    match first_larger(&values, precision.largest()).and_then(|index| values.get(index)) {
        None => Ok(values),
        Some(value) => Err(Error::Unsupported {
            what: format!("a weight of {} at {precision}", weights.full_name(name)),
            found: value.to_string(),
            supported: format!("magnitudes up to {} (f32 holds larger ones)", precision.largest()),
        }),
    }
}

/// The rows of `length` elements in `parts`: the first of each, the second of each and so on.
fn alternating<T, Part: AsRef<[T]>>(parts: &[Part], length: usize) -> Vec<&[T]> {
    let rows = parts.iter().map(|part| part.as_ref().len() / length).min().unwrap_or(0);
    (0..rows).flat_map(|row| parts.iter().map(move |part| &part.as_ref()[row * length..][..length])).collect()
}

/// Rows and columns of a tensor as a matrix: all dimensions but the first are columns.
fn flattened(shape: &[usize]) -> [usize; 2] {
    [shape.first().copied().unwrap_or(1), shape.iter().skip(1).fold(1, |columns, size| columns.saturating_mul(*size))]
}

/// Checks a tensor's shape as a matrix: some files store 1 x 1 convolutions as matrices, and the other way round.
fn expect_shape(weights: &Weights, name: &str, shape: &[usize]) -> Result<()> {
    if flattened(weights.shape(name)?) == flattened(shape) { Ok(()) } else { weights.expect_shape(name, shape) }
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
