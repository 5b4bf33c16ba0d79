//! Rotary position embedding (RoPE), fused with the product of queries, keys and values.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::attention::{Attention, KvCache};
use super::matmul::{self, EpilogueFlags, LhsSource, OutputStage, Product, SharedRows};
use super::{Norm, norm};
use crate::gpu::{Gpu, Recorder};
use crate::tensor::{Matrix, Tensor};
use crate::{Error, Result};

/// The parameters of the rotary embedding's angles.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// Divisors of the frequencies, one for each pair of elements; empty for none.
    pub freq_factors: Vec<f32>,
}

/// Cosines and sines of the rotary embedding for the positions of a cache.
#[derive(Debug, Clone)]
pub struct RopeTable {
    cos_sin: Tensor,
}

impl RopeTable {
    /// Angles position * theta^(-2 i / head_dim) / freq_factors[i] for `positions` positions, computed in f32 as the
    /// reference does.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
    pub fn new(gpu: &Gpu, positions: usize, head_dim: usize, rope: &Rope) -> Result<Self> {
        Self::at_positions(gpu, 0..positions, head_dim, rope)
    }

    /// The same for any positions, one a row of the cache.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
    pub fn at_positions(
        gpu: &Gpu,
        positions: impl ExactSizeIterator<Item = usize>,
        head_dim: usize,
        rope: &Rope,
    ) -> Result<Self> {
        let half = head_dim / 2;
        let rows = positions.len();
        let frequencies: Vec<f32> = (0..half)
            .map(|i| {
                let factor = rope.freq_factors.get(i).copied().unwrap_or(1.0);
                1.0 / rope.theta.powf((2 * i) as f32 / head_dim as f32) / factor
            })
            .collect();
        let cos_sin: Vec<f32> = positions
            .flat_map(|position| {
                frequencies.iter().flat_map(move |frequency| {
                    let angle = position as f32 * frequency;
                    [angle.cos(), angle.sin()]
                })
            })
            .collect();
        Ok(Self { cos_sin: Tensor::new(gpu, &[rows, head_dim], &cos_sin, "RoPE table")? })
    }
}

/// How queries and keys are rotated, and where keys and values are written.
#[derive(Debug, Clone, Copy)]
pub struct QkvRope<'a> {
    /// The heads.
    pub layer: Attention,
    /// The angles.
    pub table: &'a RopeTable,
    /// Where keys and values are written.
    pub cache: &'a KvCache,
    /// The position of the first row.
    pub position: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    product: matmul::Params,
    head_dim: u32,
    query_width: u32,
    kv_width: u32,
    first_time: u32,
}

/// Queries [m, heads * head_dim] of norm(x) W^T, rotated by their positions; rotated keys and values are written to the
/// cache. x [m, k], W [(heads + 2 kv_heads) * head_dim, k]: queries, keys, values. Within the heads of queries and keys
/// the rows of W are in the order of `RowOrder::RopeInterleaved`, and so are the queries that come out.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn linear_qkv_rope(
    recorder: &mut Recorder,
    x: &Tensor,
    norm: &Norm,
    weight: &Matrix,
    rope: QkvRope<'_>,
) -> Result<Tensor> {
    rope.check(x, weight)?;
    if norm.bias.is_some() || !matmul::fuses_norm(recorder.gpu(), x.rows(), weight) {
        let normed = norm::norm(recorder, x, norm)?;
        return rope.record(recorder, &normed, None, weight);
    }
    rope.record(recorder, x, Some(norm), weight)
}

impl QkvRope<'_> {
    fn check(&self, x: &Tensor, weight: &Matrix) -> Result<()> {
        let Self { layer, table, cache, position } = self;
        layer.check()?;
        if weight.columns() != x.columns() || weight.rows() != layer.packed_columns() {
            return Err(Error::WrongShape {
                name: "queries, keys and values".to_owned(),
                found: vec![weight.rows(), weight.columns()],
                expected: format!("[{}, {}]", layer.packed_columns(), x.columns()),
            });
        }
        let (end, capacity) = (position + x.rows(), cache.capacity().min(table.cos_sin.rows()));
        let columns = layer.kv_heads * layer.head_dim;
        if end > capacity || cache.columns() != columns || table.cos_sin.columns() != layer.head_dim {
            let found = cache.columns();
            return Err(Error::InvalidArgument(format!(
                "positions up to {end} exceed the cache: it holds {capacity} positions of {found} columns, expected {columns} columns"
            )));
        }
        Ok(())
    }

    fn record(&self, recorder: &mut Recorder, x: &Tensor, norm: Option<&Norm>, weight: &Matrix) -> Result<Tensor> {
        let Self { layer, table, cache, position } = self;
        let (m, k) = (x.rows(), x.columns());
        let (query_width, kv_width) = (layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim);
        let queries = Tensor::temporary(recorder.gpu(), &[m, query_width], "queries")?;
        let [keys, values] = cache.stored().map(Tensor::binding);
        let unused = x.binding();
        let rows = SharedRows::new(x);
        Product {
            kernel: None,
            weight,
            m,
            lhs: LhsSource::of_rows(k),
            rows: Some(&rows),
            routes: None,
            output: OutputStage::RopeToCache { half: cache.is_half() },
            norm,
            flags: EpilogueFlags::default(),
            inputs: weight.inputs(),
            advancing: &[offset_of!(Params, first_time)],
            bindings: [
                x.binding(),
                unused,
                unused,
                table.cos_sin.binding(),
                keys,
                values,
                norm.map_or(unused, |norm| norm.weight.binding()),
                queries.binding(),
            ],
        }
        .record(
            recorder,
            |_, common| Params {
                product: common,
                head_dim: layer.head_dim as u32,
                query_width: query_width as u32,
                kv_width: kv_width as u32,
                first_time: *position as u32,
            },
            |shard, m| {
                let written = if cache.is_half() { 2 } else { 4 } * 2 * kv_width + 4 * query_width;
                m * (4 * k + written * shard.rows / weight.rows())
            },
        )?;
        Ok(queries)
    }
}
