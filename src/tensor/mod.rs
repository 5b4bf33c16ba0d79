//! The formats of weights, and, where there is a device, tensors and weight matrices on it.

mod activation;
mod attention;
#[cfg(feature = "gpu")]
mod matrix;
#[cfg(feature = "gpu")]
mod on_device;
mod pack;

pub use activation::Activation;
pub use attention::{QueryFactor, Rope, Scores};
#[cfg(feature = "gpu")]
pub(crate) use matrix::fill_kernel;
#[cfg(feature = "gpu")]
pub use matrix::{Inputs, Matrix, MatrixBuilder, Shard};
#[cfg(feature = "gpu")]
pub use on_device::Tensor;
#[cfg(feature = "gpu")]
pub(crate) use pack::ScaleLayout;
pub use pack::{GROUP_SIZE, Group, INTERLEAVE_ROWS, Packed, Precision, Tile, dequantize, pack_rows};
pub(crate) use pack::{SUPERBLOCK_GROUPS, SuperScales, f16_value, saturating_f16};
