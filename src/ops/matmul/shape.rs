//! The size of a matrix product.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::kernel::FEW_ROWS;
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

    /// The shape whose measurement stands for this one: of one row, of 2, 4, 8 or 16 ([`Self::has_few_rows`]), or of
    /// many.
    pub(crate) fn measured(self) -> Self {
        let m = if self.m > FEW_ROWS { MANY_ROWS } else { self.m.next_power_of_two() };
        Self { m, ..self }
    }

    /// The shape of many rows with the same weights.
    pub(super) fn of_many(self) -> Self {
        Self { m: MANY_ROWS, ..self }
    }

    /// 2 to 16 rows: of several sequences that are decoded together. Only [`tune`](crate::tuning::tune) measures them,
    /// and only on GPUs.
    pub(crate) fn has_few_rows(self) -> bool {
        (2..=FEW_ROWS).contains(&self.m)
    }
}

/// The products that a dry run recorded: its trace.
#[derive(Debug, Default)]
pub(super) struct Products(pub(super) HashMap<MatmulShape, u64>);

/// The matrix products that a dry run recorded, and how often it recorded each.
pub fn products(report: &DryRunReport) -> HashMap<MatmulShape, u64> {
    report.trace::<Products>().map(|products| products.0.clone()).unwrap_or_default()
}
