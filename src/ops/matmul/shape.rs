//! The size of a matrix product.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::kernel::MATVEC_ROWS;
use crate::gpu::DryRunReport;
use crate::tensor::{Precision, Shard};

/// Rows of x that stand for every larger number of rows when kernels are measured: a chunk of a prompt.
const MANY_ROWS: usize = 512;

/// The properties of a matmul that select its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MatmulShape {
    /// How the weights are stored.
    pub precision: Precision,
    /// Rows of x.
    pub m: usize,
    /// Rows of W.
    pub n: usize,
    /// Columns of both.
    pub k: usize,
}

impl MatmulShape {
    /// The product of x [m, k] with a shard of a matrix.
    pub(crate) fn of_shard(shard: &Shard, m: usize, k: usize) -> Self {
        Self { precision: shard.precision, m, n: shard.rows, k }
    }

    /// The shape whose measurement stands for this one: of one row, or of many. Products of two to four rows are not
    /// measured.
    pub(crate) fn measured(self) -> Option<Self> {
        match self.m {
            1 => Some(self),
            m if m > MATVEC_ROWS => Some(Self { m: MANY_ROWS, ..self }),
            _ => None,
        }
    }
}

/// The products that a dry run recorded: its trace.
#[derive(Debug, Default)]
pub(super) struct Products(pub(super) HashMap<MatmulShape, u64>);

/// The matrix products that a dry run recorded, and how often it recorded each.
pub fn products(report: &DryRunReport) -> HashMap<MatmulShape, u64> {
    report.trace::<Products>().map(|products| products.0.clone()).unwrap_or_default()
}
