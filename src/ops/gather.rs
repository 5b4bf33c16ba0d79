//! Rows of a table by number.

use bytemuck::{Pod, Zeroable};

use super::cost;
use super::matmul::weight_reader;
use crate::gpu::{Access, Kernel, PipelineKey, Recorder, grid_1d, wgsl};
use crate::tensor::{Matrix, Precision, Tensor};
use crate::{Error, Result};

/// An id that names no row of any table.
pub const NO_ROW: u32 = u32::MAX;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    count: u32,
    k: u32,
    weight_stride: u32,
    first: u32,
    rows: u32,
    ids_start: u32,
    accumulate: u32,
    scale: f32,
}

/// What decides a specialisation: how the table is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant(pub Precision);

impl PipelineKey for Variant {
    fn kernel(&self) -> Kernel {
        let (mut sources, consts) = weight_reader(self.0);
        sources.push(wgsl!("language/gather.wgsl"));
        Kernel {
            name: "gather",
            label: "gather",
            sources,
            overrides: vec![],
            consts,
            bindings: &[Access::Read, Access::Read, Access::Read, Access::Write],
        }
    }
}

/// A range of ids to look up, and where their rows go.
#[derive(Debug, Clone, Copy)]
struct Lookup<'a> {
    /// u32 row numbers.
    ids: &'a Tensor,
    /// The first of them.
    start: usize,
    scale: f32,
    /// Add to y instead of replacing it.
    accumulate: bool,
}

/// `y[i] = scale * table[ids[start + i]]` for `y.rows()` ids (u32) from `start`. Rows whose id is [`NO_ROW`] are left
/// unchanged.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn gather(
    recorder: &mut Recorder,
    ids: &Tensor,
    start: usize,
    table: &Matrix,
    scale: f32,
    y: &Tensor,
) -> Result<()> {
    Lookup { ids, start, scale, accumulate: false }.record(recorder, table, y)
}

/// `y[i] += table[ids[i]]` for `y.rows()` ids (u32).
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn gather_add(recorder: &mut Recorder, ids: &Tensor, table: &Matrix, y: &Tensor) -> Result<()> {
    Lookup { ids, start: 0, scale: 1.0, accumulate: true }.record(recorder, table, y)
}

/// [`gather`] with an f32 tensor [rows, columns] as the table. Columns are a multiple of 4.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn gather_rows(recorder: &mut Recorder, ids: &Tensor, table: &Tensor, scale: f32, y: &Tensor) -> Result<()> {
    let table = Matrix::from_tensor(table)?;
    gather(recorder, ids, 0, &table, scale, y)
}

impl Lookup<'_> {
    fn record(&self, recorder: &mut Recorder, table: &Matrix, y: &Tensor) -> Result<()> {
        let (count, k) = (y.rows(), table.columns());
        if self.start + count > self.ids.len() || y.columns() != k {
            return Err(Error::WrongShape {
                name: "gather".to_owned(),
                found: y.shape().to_vec(),
                expected: format!("[at most {}, {k}]", self.ids.len().saturating_sub(self.start)),
            });
        }
        let [y_groups, z_groups, _] = grid_1d(count);
        for shard in table.shards() {
            let params = Params {
                count: count as u32,
                k: k as u32,
                weight_stride: shard.precision.row_fours(k) as u32,
                first: shard.first as u32,
                rows: shard.rows as u32,
                ids_start: self.start as u32,
                accumulate: u32::from(self.accumulate),
                scale: self.scale,
            };
            let ids = self.ids.binding();
            recorder.dispatch(
                &Variant(shard.precision),
                &[ids, shard.data.binding(), shard.scales.as_ref().map_or(ids, Tensor::binding), y.binding()],
                &params,
                [k.div_ceil(256) as u32, y_groups, z_groups],
                cost(2 * count * k, count * k),
            )?;
        }
        Ok(())
    }
}
