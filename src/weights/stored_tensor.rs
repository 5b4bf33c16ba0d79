//! What a reader of a file format finds: each tensor's name, type, shape and place in the file.

use super::dtype::Dtype;
use super::row_order::RowOrder;

/// Element type and shape of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes of the dimensions, slowest first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of elements; `None` if more than 2^64.
    pub fn elements(&self) -> Option<u64> {
        // A dimension of size 0 makes the tensor empty even if the product of the others overflows.
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size as u64))
    }

    /// Bytes in the file; `None` if more than 2^64.
    pub fn bytes(&self) -> Option<u64> {
        self.dtype.bytes(self.elements()?)
    }
}

/// A tensor in a file. Its bytes are known to be inside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Name in the file.
    pub name: String,
    /// Element type and shape.
    pub info: TensorInfo,
    /// Offset of the first element, in bytes from the start of the file.
    pub offset: u64,
    /// Whether elements are big-endian.
    pub big_endian: bool,
    /// Order in which the rows are stored.
    pub rows: RowOrder,
}

impl StoredTensor {
    /// A little-endian tensor with its rows in plain order.
    pub fn new(name: String, info: TensorInfo, offset: u64) -> Self {
        Self { name, info, offset, big_endian: false, rows: RowOrder::Plain }
    }
}
