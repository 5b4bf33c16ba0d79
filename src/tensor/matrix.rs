//! Weight matrices: packed, and split by rows where they exceed one binding.

use crate::gpu::{Access, Cost, Gpu, Kernel, grid_1d, wgsl};
use crate::tensor::{INTERLEAVE_ROWS, Packed, Precision, Tensor, Tile};
use crate::{Error, Result, parallel};

/// Consecutive rows of a matrix in buffers of their own.
#[derive(Debug)]
pub struct Shard {
    /// The first row's number in the whole matrix.
    pub first: usize,
    /// How many rows.
    pub rows: usize,
    /// How they are stored.
    pub precision: Precision,
    /// Packed weights, as 32-bit words.
    pub data: Tensor,
    /// Scales, for the quantised precisions, as 32-bit words.
    pub scales: Option<Tensor>,
}

/// What is known of the inputs that a matrix is multiplied with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Inputs {
    /// Nothing: kernels may round them to f16, but do not add in f16.
    #[default]
    Any,
    /// They may be larger than f16 can hold: no kernel rounds them.
    Wide,
    /// The reference has them in f16 too: kernels may also add a few products in f16.
    F16,
}

/// A weight matrix [rows, columns] on the device: the `[out, in]` of a linear layer, or a table of embeddings.
#[derive(Debug)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    shards: Vec<Shard>,
    inputs: Inputs,
}

impl Matrix {
    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The same matrix, for such inputs.
    #[must_use]
    pub fn with_inputs(mut self, inputs: Inputs) -> Self {
        self.inputs = inputs;
        self
    }

    /// What is known of the inputs of its products.
    pub fn inputs(&self) -> Inputs {
        self.inputs
    }

    /// The shards, in order of rows.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Bytes that `rows` rows of weights and scales take.
    pub fn bytes_for(precision: Precision, rows: usize, columns: usize) -> u64 {
        (precision.stored_rows(rows) as u64)
            * (precision.row_bytes(columns) + precision.row_scale_bytes(columns)) as u64
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| Self::bytes_for(shard.precision, shard.rows, self.columns)).sum()
    }

    /// Matrices with the same columns on top of each other, each with its own precision.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
    pub fn stack(parts: Vec<Self>) -> Result<Self> {
        let columns = parts.first().map_or(0, |part| part.columns);
        let inputs = parts.first().map_or(Inputs::Any, Self::inputs);
        let mut stacked = Self { rows: 0, columns, shards: Vec::new(), inputs };
        for part in parts {
            if part.columns != columns {
                return Err(Error::WrongShape {
                    name: "stacked matrices".to_owned(),
                    found: vec![part.rows, part.columns],
                    expected: format!("{columns} columns"),
                });
            }
            let moved = part.shards.into_iter().map(|shard| Shard { first: stacked.rows + shard.first, ..shard });
            stacked.shards.extend(moved);
            stacked.inputs = match (stacked.inputs, part.inputs) {
                (Inputs::Wide, _) | (_, Inputs::Wide) => Inputs::Wide,
                (Inputs::F16, Inputs::F16) => Inputs::F16,
                _ => Inputs::Any,
            };
            stacked.rows += part.rows;
        }
        Ok(stacked)
    }

    /// A matrix with these values, all at once. For small ones; a [`MatrixBuilder`] streams.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
    pub fn new(gpu: &Gpu, precision: Precision, columns: usize, values: &[f32], what: &str) -> Result<Self> {
        let mut builder = MatrixBuilder::new(gpu, precision, values.len() / columns, columns, what)?;
        builder.push(values)?;
        builder.finish()
    }

    /// A computed tensor as a matrix. Its columns are a multiple of 4.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let (rows, columns) = (tensor.rows(), tensor.columns());
        if !columns.is_multiple_of(4) {
            return Err(Error::WrongShape {
                name: "a matrix".to_owned(),
                found: vec![rows, columns],
                expected: "columns that are a multiple of 4".to_owned(),
            });
        }
        let shard =
            Shard { first: 0, rows, precision: Precision::F32, data: tensor.reshape(&[tensor.len()]), scales: None };
        Ok(Self { rows, columns, shards: vec![shard], inputs: Inputs::Any })
    }

    /// A matrix of seeded random weights made on the device, small enough that activations stay finite through a model.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
    pub fn random(gpu: &Gpu, precision: Precision, rows: usize, columns: usize, seed: u32, what: &str) -> Result<Self> {
        let builder = MatrixBuilder::new(gpu, precision, rows, columns, what)?;
        // Random sign and mantissa under a fixed exponent; random integers under a fixed scale (and minimum).
        let random = Fill { mask: !0, base: 0 };
        let fixed = |base| Some(Fill { mask: 0, base });
        let (data, scales) = match precision {
            Precision::F32 => (Fill { mask: 0x807f_ffff, base: 0x3c00_0000 }, None),
            Precision::F16 => (Fill { mask: 0x83ff_83ff, base: 0x2000_2000 }, None),
            Precision::Q8 => (random, fixed(0x068e_068e)),
            Precision::Q4 => (random, fixed(0xa3ae_1819)),
            // As an f16 scale or minimum, or as high bits.
            Precision::Q5 | Precision::Q5_0 | Precision::Q4_0 => (random, fixed(0x1819_1819)),
            // As two f16 and as scales of them. (Of the minimums, some are 0.)
            Precision::Q6 | Precision::Q5K | Precision::Q4K => (random, fixed(0x0202_0202)),
        };
        let mut recorder = gpu.record();
        for (index, shard) in builder.matrix.shards.iter().enumerate() {
            let seed = seed.wrapping_mul(31).wrapping_add(index as u32);
            data.record(&mut recorder, &shard.data, seed)?;
            if let (Some(fill), Some(tensor)) = (scales, &shard.scales) {
                fill.record(&mut recorder, tensor, seed)?;
            }
        }
        recorder.submit()?;
        Ok(builder.matrix)
    }
}

#[derive(Debug, Clone, Copy)]
struct Fill {
    mask: u32,
    base: u32,
}

impl Fill {
    fn record(self, recorder: &mut crate::gpu::Recorder, tensor: &Tensor, seed: u32) -> Result<()> {
        let grid = grid_1d(tensor.len().div_ceil(64));
        recorder.dispatch(
            &fill_kernel(),
            &[tensor.binding()],
            &[tensor.len() as u32, seed, self.mask, self.base],
            grid,
            Cost { bytes: tensor.bytes() as f64, flops: 0.0 },
        )
    }
}

/// The kernel of [`Matrix::random`].
pub(crate) fn fill_kernel() -> Kernel {
    Kernel::new("fill", [wgsl!("bench/fill.wgsl")], &[Access::Write])
}

/// Makes a [`Matrix`] from rows pushed in order, in blocks of any size.
#[derive(Debug)]
pub struct MatrixBuilder {
    gpu: Gpu,
    matrix: Matrix,
    precision: Precision,
    /// The rows of the last push. Of a block that is not full yet, the rows are at the beginning.
    packed: Packed,
    pushed: usize,
    what: String,
}

impl MatrixBuilder {
    /// Allocates a matrix.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
    pub fn new(gpu: &Gpu, precision: Precision, rows: usize, columns: usize, what: &str) -> Result<Self> {
        let row_bytes = precision.row_bytes(columns).max(precision.row_scale_bytes(columns)) as u64;
        // Whole blocks of rows, so that gates stay next to their partners; or 16, so that shards begin at multiples of
        // 16 bytes in every format.
        let least = if precision.bits().is_some() { INTERLEAVE_ROWS } else { 16 };
        let limit = (gpu.capabilities().max_shard_bytes() / row_bytes) as usize / least * least;
        if limit == 0 {
            return Err(Error::OutOfMemory {
                what: format!("{least} rows of {what}"),
                needed: row_bytes * least as u64,
                available: gpu.capabilities().max_shard_bytes(),
            });
        }
        let mut shards = Vec::new();
        let mut first = 0;
        while first < rows {
            let count = limit.min(rows - first);
            let words = |row_bytes: usize| precision.stored_rows(count) * row_bytes / 4;
            let scale_words = words(precision.row_scale_bytes(columns));
            shards.push(Shard {
                first,
                rows: count,
                precision,
                data: Tensor::zeros(gpu, &[words(precision.row_bytes(columns))], what)?,
                scales: if scale_words > 0 { Some(Tensor::zeros(gpu, &[scale_words], what)?) } else { None },
            });
            first += count;
        }
        let matrix = Matrix { rows, columns, shards, inputs: Inputs::Any };
        Ok(Self { gpu: gpu.clone(), matrix, precision, packed: Packed::default(), pushed: 0, what: what.to_owned() })
    }

    /// Packs the next rows, on all cores, and writes those that fill a block.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
    pub fn push(&mut self, values: &[f32]) -> Result<()> {
        let columns = self.matrix.columns;
        self.check(values.len() / columns, values.len().is_multiple_of(columns))?;
        self.push_rows(&values.chunks_exact(columns).collect::<Vec<_>>())
    }

    /// As [`Self::push`], for rows from several places.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_rows(&mut self, rows: &[&[f32]]) -> Result<()> {
        self.check(rows.len(), rows.iter().all(|row| row.len() == self.matrix.columns))?;
        let precision = self.precision;
        self.push_with(rows.len(), |tile| tile.pack(precision, rows))
    }

    /// Calls `pack`, on all cores, with the places of the next `count` rows, and writes those that fill a block.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_with(&mut self, count: usize, pack: impl Fn(Tile<'_>) + Send + Sync) -> Result<()> {
        self.check(count, true)?;
        let (columns, precision) = (self.matrix.columns, self.precision);
        let interleave = precision.interleave();
        let waiting = self.pushed % interleave;
        let end = waiting + count;
        self.packed.resize(precision, columns, precision.stored_rows(end));
        parallel::for_each(self.packed.tiles(precision, columns, interleave, waiting..end), pack);
        let first = self.pushed - waiting;
        self.pushed += count;
        let full = if self.pushed == self.matrix.rows { end } else { end / interleave * interleave };
        self.write(first, full);
        self.packed.data.copy_within(full * precision.row_bytes(columns).., 0);
        self.packed.scales.copy_within(full * precision.row_scale_bytes(columns).., 0);
        Ok(())
    }

    fn check(&self, more: usize, whole: bool) -> Result<()> {
        let Matrix { columns, rows, .. } = self.matrix;
        if whole && self.pushed + more <= rows {
            return Ok(());
        }
        Err(Error::WrongShape {
            name: self.what.clone(),
            found: vec![self.pushed + more, columns],
            expected: format!("[{rows}, {columns}]"),
        })
    }

    /// Writes the first `count` packed rows as those from row `first` on.
    fn write(&self, first: usize, count: usize) {
        let (columns, precision) = (self.matrix.columns, self.precision);
        for shard in &self.matrix.shards {
            let (start, end) = (shard.first.max(first), (shard.first + shard.rows).min(first + count));
            if start >= end {
                continue;
            }
            let write = |tensor: &Tensor, packed: &[u8], row_bytes: usize| {
                let bytes = &packed[(start - first) * row_bytes..][..precision.stored_rows(end - start) * row_bytes];
                tensor.write(&self.gpu, ((start - shard.first) * row_bytes) as u64, bytes);
            };
            write(&shard.data, &self.packed.data, precision.row_bytes(columns));
            if let Some(scales) = &shard.scales {
                write(scales, &self.packed.scales, precision.row_scale_bytes(columns));
            }
        }
    }

    /// Returns the matrix when all rows have been pushed.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
    pub fn finish(self) -> Result<Matrix> {
        if self.pushed != self.matrix.rows {
            return Err(Error::WrongShape {
                name: self.what,
                found: vec![self.pushed, self.matrix.columns],
                expected: format!("[{}, {}]", self.matrix.rows, self.matrix.columns),
            });
        }
        Ok(self.matrix)
    }
}
