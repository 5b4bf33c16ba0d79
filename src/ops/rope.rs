//! Rotary position embedding (RoPE), fused with the product of queries, keys and values, or after it.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::attention::{Attention, KvCache};
use super::matmul::{self, EpilogueFlags, LhsSource, OutputStage, Product, SharedRows};
use super::{Norm, cost, norm};
use crate::gpu::{Access, Gpu, Kernel, PipelineKey, Recorder, wgsl};
use crate::tensor::{Matrix, QueryFactor, Rope, Tensor};
use crate::{Error, Result};

impl QueryFactor {
    fn at(self, position: usize) -> f32 {
        1.0 + self.scale * ((1 + position / self.period.max(1)) as f32).ln()
    }
}

/// Cosines and sines of the rotary embedding for the positions of a cache.
#[derive(Debug, Clone)]
pub struct RopeTable {
    /// [positions, head_dim], and 4 columns more with a query factor, which is in the first of them.
    cos_sin: Tensor,
    query_factor: bool,
}

impl RopeTable {
    /// Angles position * theta^(-2 i / rotated) / freq_factors[i] for `positions` positions, computed in f32 as the
    /// reference does. Elements that are not rotated have the angle 0.
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
        let rotated = rope.rotated.min(head_dim);
        let rows = positions.len();
        let frequencies: Vec<f32> = (0..rotated / 2)
            .map(|i| {
                let factor = rope.freq_factors.get(i).copied().unwrap_or(1.0);
                1.0 / rope.theta.powf((2 * i) as f32 / rotated as f32) / factor
            })
            .collect();
        let columns = head_dim + if rope.query_factor.is_some() { 4 } else { 0 };
        let mut cos_sin = Vec::with_capacity(rows * columns);
        for position in positions {
            for frequency in &frequencies {
                let angle = position as f32 * frequency;
                cos_sin.extend([rope.magnitude * angle.cos(), rope.magnitude * angle.sin()]);
            }
            cos_sin.extend([1.0, 0.0].iter().cycle().take(head_dim - 2 * frequencies.len()));
            if let Some(factor) = rope.query_factor {
                cos_sin.extend([factor.at(position), 0.0, 0.0, 0.0]);
            }
        }
        let cos_sin = Tensor::new(gpu, &[rows, columns], &cos_sin, "RoPE table")?;
        Ok(Self { cos_sin, query_factor: rope.query_factor.is_some() })
    }

    /// Columns of a position's angles for heads of `head_dim` elements.
    pub fn columns(head_dim: usize, rope: &Rope) -> usize {
        head_dim + if rope.query_factor.is_some() { 4 } else { 0 }
    }
}

impl RopeTable {
    /// [positions, columns]
    pub(super) fn angles(&self) -> &Tensor {
        &self.cos_sin
    }

    /// Whether the angles are followed by a query factor.
    pub(super) fn has_query_factor(&self) -> bool {
        self.query_factor
    }
}

/// Angles and rows of the cache for rows that are at any positions, such as those of several sequences.
#[derive(Debug, Clone)]
pub struct PlacedRows {
    /// [capacity, columns of the table + 4]: angles, then the row of the cache as a float
    pub(super) lines: Tensor,
    /// The angles are followed by a query factor.
    pub(super) query_factor: bool,
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
    rope.check(x.rows(), x.columns())?;
    rope.layer.expect_weight(weight, x.columns())?;
    if rope.query_factor() {
        return Err(Error::Internal("the product fused with RoPE has no query factor".to_owned()));
    }
    if norm.bias.is_some() || !matmul::fuses_norm(recorder.gpu(), x.rows(), weight) {
        let normed = norm::norm(recorder, x, norm)?;
        return rope.record(recorder, &normed, None, weight);
    }
    rope.record(recorder, x, Some(norm), weight)
}

impl QkvRope<'_> {
    fn query_factor(&self) -> bool {
        match self.rows {
            RopeRows::From { table, .. } => table.query_factor,
            RopeRows::Placed(rows) => rows.query_factor,
        }
    }

    /// Checks that there is room for rows of shape [m, k].
    fn check(&self, m: usize, k: usize) -> Result<()> {
        let Self { layer, rows, cache } = self;
        layer.check()?;
        let (end, capacity, angles) = match rows {
            RopeRows::From { table, first } => {
                (first + m, cache.capacity().min(table.cos_sin.rows()), table.cos_sin.columns())
            }
            RopeRows::Placed(rows) if rows.count == m && k.is_multiple_of(4) => {
                (rows.end, cache.capacity(), rows.lines.columns() - 4)
            }
            RopeRows::Placed(rows) => {
                return Err(Error::InvalidArgument(format!(
                    "{} places for rows of shape {:?}, expected one for each row, and columns that are a multiple of 4",
                    rows.count,
                    [m, k]
                )));
            }
        };
        let angles = angles - if self.query_factor() { 4 } else { 0 };
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

/// Norms of queries and of keys, before they are rotated.
#[derive(Debug, Clone)]
pub struct QueryKeyNorm {
    /// [(heads + kv_heads) head_dim], elements in the order of the product's columns.
    pub gain: Tensor,
    /// Added to the variance or mean square.
    pub eps: f32,
    /// Layer norm without an offset; else RMS norm.
    pub centred: bool,
    /// Over all queries and over all keys of a row; else over each head.
    pub whole: bool,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RowsParams {
    head_dim: u32,
    query_width: u32,
    kv_width: u32,
    line: u32,
    first_position: u32,
    eps: f32,
    padding: [u32; 2],
}

/// What decides a specialisation of [`rope_rows`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RowsVariant {
    /// Whether the norm is centred, and over whole rows; `None` without a norm.
    pub norm: Option<[bool; 2]>,
    pub query_factor: bool,
    pub placed: bool,
    pub half: bool,
}

impl RowsVariant {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        const NORMS: [Option<[bool; 2]>; 5] =
            [None, Some([false, false]), Some([false, true]), Some([true, false]), Some([true, true])];
        NORMS.into_iter().flat_map(|norm| {
            (0..8u32).map(move |bits| {
                let [query_factor, placed, half] = [0, 1, 2].map(|index| bits >> index & 1 == 1);
                Self { norm, query_factor, placed, half }
            })
        })
    }
}

impl PipelineKey for RowsVariant {
    fn kernel(&self) -> Kernel {
        const BINDINGS: &[Access] =
            &[Access::Read, Access::Read, Access::Read, Access::Write, Access::Write, Access::Write];
        let store = match self.half {
            false => wgsl!("matmul/store_cache_f32.wgsl"),
            true => wgsl!("matmul/store_cache_f16.wgsl"),
        };
        let (norm, whole) = self.norm.map_or((0, false), |[centred, whole]| (1 + u32::from(centred), whole));
        let sources = [wgsl!("common/reduce_workgroup.wgsl"), store, wgsl!("language/rope_rows.wgsl")];
        Kernel {
            overrides: vec![
                ("WORKGROUP", if whole { 256 } else { 64 }),
                ("NORM", norm),
                ("WHOLE", whole.into()),
                ("QUERY_FACTOR", self.query_factor.into()),
                ("PLACED", self.placed.into()),
            ],
            ..Kernel::new("rope_rows", sources, BINDINGS)
        }
    }
}

/// What [`linear_qkv_rope`] does after its product: queries [m, heads * head_dim] and keys of `qkv`
/// [m, (heads + 2 kv_heads) * head_dim] are normalised and rotated; keys and values are written to the cache. The
/// elements of heads are in the order that [`linear_qkv_rope`] describes.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn rope_rows(
    recorder: &mut Recorder,
    qkv: &Tensor,
    norm: Option<&QueryKeyNorm>,
    rope: QkvRope<'_>,
) -> Result<Tensor> {
    let QkvRope { layer, rows, cache } = rope;
    let m = qkv.rows();
    rope.check(m, qkv.columns())?;
    qkv.expect("queries, keys and values", &[m, layer.packed_columns()])?;
    let (query_width, kv_width) = (layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim);
    if let Some(norm) = norm {
        norm.gain.expect("norms of queries and keys", &[query_width + kv_width])?;
    }
    let (angles, first, placed) = match rows {
        RopeRows::From { table, first } => (&table.cos_sin, first, false),
        RopeRows::Placed(rows) => (&rows.lines, 0, true),
    };
    let advancing: &[usize] = if placed { &[] } else { &[offset_of!(RowsParams, first_position)] };
    let queries = Tensor::temporary(recorder.gpu(), &[m, query_width], "queries")?;
    let [keys, values] = cache.stored().map(Tensor::binding);
    let whole = norm.is_some_and(|norm| norm.whole);
    let parts = if whole { 3 } else { layer.heads + 2 * layer.kv_heads };
    recorder.dispatch_at_position(
        &RowsVariant {
            norm: norm.map(|norm| [norm.centred, norm.whole]),
            query_factor: rope.query_factor(),
            placed,
            half: cache.is_half(),
        },
        &[
            qkv.binding(),
            norm.map_or(qkv.binding(), |norm| norm.gain.binding()),
            angles.binding(),
            queries.binding(),
            keys,
            values,
        ],
        &RowsParams {
            head_dim: layer.head_dim as u32,
            query_width: query_width as u32,
            kv_width: kv_width as u32,
            line: angles.columns() as u32,
            first_position: first as u32,
            eps: norm.map_or(0.0, |norm| norm.eps),
            padding: [0; 2],
        },
        [parts as u32, m as u32, 1],
        cost(2 * qkv.len() + m * layer.head_dim, 8 * qkv.len()),
        advancing,
    )?;
    Ok(queries)
}
