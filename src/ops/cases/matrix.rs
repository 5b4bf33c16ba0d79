//! The matrix that is streamed to the device.

use super::{Case, Random, stored};
use crate::Result;
use crate::gpu::Gpu;
use crate::io::LocalFuture;
use crate::tensor::{MatrixBuilder, Packed, Precision, dequantize};

/// Rows pushed in blocks into a [`MatrixBuilder`] and read back: every byte must be where one packing of the whole puts
/// it.
#[derive(Debug, Clone, Copy)]
pub struct MatrixRows {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// How they are stored.
    pub precision: Precision,
    /// Rows pushed at a time.
    pub block: usize,
}

impl MatrixRows {
    fn values(&self) -> Vec<f32> {
        Random::new(&self.name()).values(self.rows * self.columns, 2.0)
    }
}

impl Case for MatrixRows {
    fn bound(&self) -> f64 {
        0.0
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let mut builder = MatrixBuilder::new(gpu, self.precision, self.rows, self.columns, "matrix")?;
            for block in self.values().chunks(self.block * self.columns) {
                builder.push(block)?;
            }
            let matrix = builder.finish()?;
            let mut values = Vec::new();
            let mut first = 0;
            for shard in matrix.shards() {
                debug_assert_eq!(shard.first, first);
                first += shard.rows;
                let mut recorder = gpu.record();
                let data = shard.data.read_back(&mut recorder);
                let scales = shard.scales.as_ref().map(|scales| scales.read_back(&mut recorder));
                recorder.submit()?;
                let data = data.bytes().await?;
                let scales = match scales {
                    Some(scales) => scales.bytes().await?,
                    None => Vec::new(),
                };
                let rows = Packed { data, scales }.deinterleaved(self.precision, self.columns);
                let mut stored = dequantize(self.precision, self.columns, &rows);
                stored.truncate(shard.rows * self.columns);
                values.extend(stored);
            }
            Ok(values)
        })
    }

    fn reference(&self) -> Vec<f32> {
        stored(self.precision, self.columns, &self.values())
    }
}
