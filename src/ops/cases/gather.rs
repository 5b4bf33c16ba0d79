//! Cases of the gathers.

use super::{Case, Random, read, stored};
use crate::Result;
use crate::gpu::Gpu;
use crate::io::LocalFuture;
use crate::ops::{self, NO_ROW};
use crate::tensor::{Matrix, Precision, Tensor};

/// The multiplier of all cases: Gemma's, which is no power of two.
const SCALE: f32 = 45.254_833;

/// Ids, every fourth of which is no row, and the values of y before.
fn inputs(name: &str, rows: usize, columns: usize, ids: usize, count: usize) -> (Vec<f32>, Vec<u32>, Vec<f32>) {
    let mut random = Random::new(name);
    let table = random.values(rows * columns, 1.0);
    let mut ids: Vec<u32> = (0..ids).map(|i| if i % 4 == 3 { NO_ROW } else { random.below(rows) as u32 }).collect();
    // The table's ends.
    if let Some(last) = ids.last_mut() {
        *last = rows as u32 - 1;
    }
    ids[0] = 0;
    (table, ids, random.values(count * columns, 1.0))
}

fn expected(table: &[f32], columns: usize, ids: &[u32], mut y: Vec<f32>) -> Vec<f32> {
    for (row, id) in y.chunks_exact_mut(columns).zip(ids) {
        if *id != NO_ROW {
            let from = &table[*id as usize * columns..][..columns];
            row.iter_mut().zip(from).for_each(|(y, value)| *y = (f64::from(SCALE) * f64::from(*value)) as f32);
        }
    }
    y
}

/// A product of two f32, rounded once, after weights that are products (q8) or sums of products (q4) themselves: 3
/// roundings of 2^-24.
const BOUND: f64 = 3.3e-14;

/// Rows of a weight matrix: `ops::gather`.
#[derive(Debug, Clone, Copy)]
pub struct Gather {
    /// Rows of the table.
    pub rows: usize,
    /// Its columns.
    pub columns: usize,
    /// How it is stored.
    pub precision: Precision,
    /// Ids looked up.
    pub count: usize,
    /// Ids before them that are not.
    pub start: usize,
}

impl Case for Gather {
    fn bound(&self) -> f64 {
        BOUND
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let all = self.start + self.count;
            let (table, ids, y) = inputs(&self.name(), self.rows, self.columns, all, self.count);
            let table = Matrix::new(gpu, self.precision, self.columns, &table, "table")?;
            let y = Tensor::new(gpu, &[self.count, self.columns], &y, "y")?;
            let mut recorder = gpu.record();
            let ids = Tensor::upload(&mut recorder, &[all], &ids, "ids")?;
            ops::gather(&mut recorder, &ids, self.start, &table, SCALE, &y)?;
            read(recorder, &[&y]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let (table, ids, y) = inputs(&self.name(), self.rows, self.columns, self.start + self.count, self.count);
        expected(&stored(self.precision, self.columns, &table), self.columns, &ids[self.start..], y)
    }
}

/// Rows of a tensor: [`ops::gather_rows`].
#[derive(Debug, Clone, Copy)]
pub struct GatherRows {
    /// Rows of the table.
    pub rows: usize,
    /// Its columns, a multiple of 4.
    pub columns: usize,
    /// Ids looked up.
    pub count: usize,
}

impl Case for GatherRows {
    fn bound(&self) -> f64 {
        BOUND
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let (table, ids, y) = inputs(&self.name(), self.rows, self.columns, self.count, self.count);
            let table = Tensor::new(gpu, &[self.rows, self.columns], &table, "table")?;
            let y = Tensor::new(gpu, &[self.count, self.columns], &y, "y")?;
            let mut recorder = gpu.record();
            let ids = Tensor::upload(&mut recorder, &[self.count], &ids, "ids")?;
            ops::gather_rows(&mut recorder, &ids, &table, SCALE, &y)?;
            read(recorder, &[&y]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let (table, ids, y) = inputs(&self.name(), self.rows, self.columns, self.count, self.count);
        expected(&table, self.columns, &ids, y)
    }
}
