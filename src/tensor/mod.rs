//! The formats of weights, and, where there is a device, tensors and weight matrices on it.

#[cfg(feature = "gpu")]
mod matrix;
#[cfg(feature = "gpu")]
mod on_device;
mod pack;

#[cfg(feature = "gpu")]
pub(crate) use matrix::fill_kernel;
#[cfg(feature = "gpu")]
pub use matrix::{Matrix, MatrixBuilder, Piece};
#[cfg(feature = "gpu")]
pub use on_device::Tensor;
pub(crate) use pack::saturating_f16;
pub use pack::{BLOCK_ROWS, GROUP, Group, Packed, Precision, dequantise, pack_rows};
