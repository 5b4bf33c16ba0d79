//! Tensors on the device.

use std::ops::Range;
use std::sync::Arc;

use crate::gpu::{Binding, Buffer, Gpu, Readback, Recorder};
use crate::{Error, Result};

/// A dense row-major tensor of 32-bit elements (f32, or u32 where an op says so) in a device buffer. Clones share it.
#[derive(Debug, Clone)]
pub struct Tensor {
    buffer: Arc<Buffer>,
    /// Start in the buffer, in bytes.
    offset: u64,
    shape: Vec<usize>,
}

impl Tensor {
    /// A tensor from the pool for results, its content undefined. It is returned when the last clone is dropped.
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn temporary(gpu: &Gpu, shape: &[usize], what: &str) -> Result<Self> {
        let (buffer, offset) = gpu.place(bytes_of(shape), false, what)?;
        Ok(Self { buffer, offset, shape: shape.to_vec() })
    }

    /// A persistent tensor with these values.
    ///
    /// # Panics
    /// If the shape does not match the number of values.
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn new(gpu: &Gpu, shape: &[usize], values: &[f32], what: &str) -> Result<Self> {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{what}");
        let tensor = Self::zeros(gpu, shape, what)?;
        tensor.write(gpu, 0, bytemuck::cast_slice(values));
        Ok(tensor)
    }

    /// A persistent tensor of zeros.
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn zeros(gpu: &Gpu, shape: &[usize], what: &str) -> Result<Self> {
        let (buffer, offset) = gpu.place(bytes_of(shape), true, what)?;
        Ok(Self { buffer, offset, shape: shape.to_vec() })
    }

    /// A temporary tensor with these values (f32 or u32) for the commands recorded after this call.
    ///
    /// # Panics
    /// If the shape does not match the number of values.
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn upload<T: bytemuck::Pod>(
        recorder: &mut Recorder,
        shape: &[usize],
        values: &[T],
        what: &str,
    ) -> Result<Self> {
        assert_eq!(shape.iter().product::<usize>() * 4, size_of_val(values), "{what}");
        let (buffer, offset) = recorder.upload(bytemuck::cast_slice(values), what)?;
        Ok(Self { buffer, offset, shape: shape.to_vec() })
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Rows of the tensor seen as a matrix: the product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    /// The last dimension.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        bytes_of(&self.shape)
    }

    /// The same elements under another shape.
    pub fn reshape(&self, shape: &[usize]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), self.len());
        Self { buffer: self.buffer.clone(), offset: self.offset, shape: shape.to_vec() }
    }

    /// Some rows, without a copy. A view can be bound only if it starts at a multiple of the device's storage alignment
    /// (64 elements at most); copies have no such limit.
    pub fn slice_rows(&self, rows: Range<usize>) -> Self {
        assert!(rows.end <= self.rows());
        Self {
            buffer: self.buffer.clone(),
            offset: self.offset + (rows.start * self.columns() * 4) as u64,
            shape: vec![rows.len(), self.columns()],
        }
    }

    /// Some elements of a tensor of one dimension, to be copied or read back.
    pub fn slice_elements(&self, range: Range<usize>) -> Self {
        self.reshape(&[self.len(), 1]).slice_rows(range)
    }

    /// The range of the buffer that it takes.
    pub fn binding(&self) -> Binding<'_> {
        Binding { buffer: &self.buffer, offset: self.offset, bytes: self.bytes() }
    }

    /// Writes bytes into a persistent tensor, from its byte `offset` on, before anything recorded later runs. `offset`
    /// and length are multiples of 4.
    pub(crate) fn write(&self, gpu: &Gpu, offset: u64, bytes: &[u8]) {
        debug_assert!(offset + bytes.len() as u64 <= self.bytes());
        gpu.write(&self.buffer, self.offset + offset, bytes);
    }

    /// Records a copy of all elements to row `row` of `target`, which has the same number of columns.
    pub fn copy_to(&self, recorder: &mut Recorder, target: &Tensor, row: usize) {
        assert_eq!(self.columns(), target.columns());
        assert!(row + self.rows() <= target.rows());
        let offset = target.offset + (row * target.columns() * 4) as u64;
        recorder.copy(self.binding(), &target.buffer, offset);
    }

    /// Records that the elements are to be read back.
    pub fn read_back(&self, recorder: &mut Recorder) -> Readback {
        recorder.read_back(self.binding())
    }

    /// Checks the shape against what an op needs.
    pub(crate) fn expect(&self, what: &str, shape: &[usize]) -> Result<()> {
        if self.shape == shape {
            return Ok(());
        }
        Err(Error::WrongShape { name: what.to_owned(), found: self.shape.clone(), expected: format!("{shape:?}") })
    }
}

fn bytes_of(shape: &[usize]) -> u64 {
    shape.iter().product::<usize>() as u64 * 4
}
