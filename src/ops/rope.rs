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

impl RopeTable {
    /// [positions, head_dim]
    pub(super) fn angles(&self) -> &Tensor {
        &self.cos_sin
    }
}

/// Angles and rows of the cache for rows that are at any positions, such as those of several sequences.
#[derive(Debug, Clone)]
pub struct PlacedRows {
    /// [capacity, head_dim + 4]: angles, then the row of the cache as a float
    pub(super) lines: Tensor,
    /// Lines in use.
    pub(super) count: usize,
    /// Rows that the cache must have.
    pub(super) end: usize,
}

/// Where the rows of a product are.
#[derive(Debug, Clone, Copy)]
pub enum RopeRows<'a> {
    /// One after the other, from row `first` of the table and of the cache on.
    From {
        /// The angles.
        table: &'a RopeTable,
        /// The first row.
        first: usize,
    },
    /// Anywhere.
    Placed(&'a PlacedRows),
}

/// How queries and keys are rotated, and where keys and values are written.
#[derive(Debug, Clone, Copy)]
pub struct QkvRope<'a> {
    /// The heads.
    pub layer: Attention,
    /// Where the rows are.
    pub rows: RopeRows<'a>,
    /// Where keys and values are written.
    pub cache: &'a KvCache,
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
        let Self { layer, rows, cache } = self;
        layer.check()?;
        if weight.columns() != x.columns() || weight.rows() != layer.packed_columns() {
            return Err(Error::WrongShape {
                name: "queries, keys and values".to_owned(),
                found: vec![weight.rows(), weight.columns()],
                expected: format!("[{}, {}]", layer.packed_columns(), x.columns()),
            });
        }
        let (end, capacity, angles) = match rows {
            RopeRows::From { table, first } => {
                (first + x.rows(), cache.capacity().min(table.cos_sin.rows()), table.cos_sin.columns())
            }
            RopeRows::Placed(rows) if rows.count == x.rows() && x.columns().is_multiple_of(4) => {
                (rows.end, cache.capacity(), rows.lines.columns() - 4)
            }
            RopeRows::Placed(rows) => {
                return Err(Error::InvalidArgument(format!(
                    "{} places for rows of shape {:?}, expected one for each row, and columns that are a multiple of 4",
                    rows.count,
                    x.shape()
                )));
            }
        };
        let columns = layer.kv_heads * layer.head_dim;
        if end > capacity || cache.columns() != columns || angles != layer.head_dim {
            let found = cache.columns();
            return Err(Error::InvalidArgument(format!(
                "positions up to {end} exceed the cache: it holds {capacity} positions of {found} columns, expected {columns} columns"
            )));
        }
        Ok(())
    }

    fn record(&self, recorder: &mut Recorder, x: &Tensor, norm: Option<&Norm>, weight: &Matrix) -> Result<Tensor> {
        let Self { layer, rows: places, cache } = self;
        let (angles, first, placed) = match places {
            RopeRows::From { table, first } => (&table.cos_sin, *first, false),
            RopeRows::Placed(rows) => (&rows.lines, 0, true),
        };
        // Rows that are anywhere do not advance.
        let advancing: &[usize] = if placed { &[] } else { &[offset_of!(Params, first_time)] };
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
            output: OutputStage::RopeToCache { half: cache.is_half(), placed },
            norm,
            flags: EpilogueFlags::default(),
            inputs: weight.inputs(),
            advancing,
            bindings: [
                x.binding(),
                unused,
                unused,
                angles.binding(),
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
                first_time: first as u32,
            },
            |shard, m| {
                let written = if cache.is_half() { 2 } else { 4 } * 2 * kv_width + 4 * query_width;
                m * (4 * k + written * shard.rows / weight.rows())
            },
        )?;
        Ok(queries)
    }
}
