//! Rows of a table by number.

use bytemuck::{Pod, Zeroable};

use super::linear::weight_reader;
use super::{cost, element_grid};
use crate::gpu::{Access, Binding, Kernel, Recorder, Specialise, wgsl};
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

impl Specialise for Variant {
    fn kernel(&self) -> Kernel {
        let (reader, sizes) = weight_reader(self.0);
        Kernel {
            name: "gather",
            label: "gather",
            sources: vec![reader, wgsl!("gather.wgsl")],
            constants: vec![],
            sizes,
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
    /// How many.
    count: usize,
    scale: f32,
    /// Added to what is there.
    accumulate: bool,
}

/// y[i] = scale * table[ids[start + i]] for `y.rows()` ids (u32) from `start`. Rows whose id is [`NO_ROW`] are left alone.
pub fn gather(
    recorder: &mut Recorder,
    ids: &Tensor,
    start: usize,
    table: &Matrix,
    scale: f32,
    y: &Tensor,
) -> Result<()> {
    Lookup { ids, start, count: y.rows(), scale, accumulate: false }.of_matrix(recorder, table, y)
}

/// y[i] += table[ids[i]] for `y.rows()` ids (u32).
pub fn gather_add(recorder: &mut Recorder, ids: &Tensor, table: &Matrix, y: &Tensor) -> Result<()> {
    Lookup { ids, start: 0, count: y.rows(), scale: 1.0, accumulate: true }.of_matrix(recorder, table, y)
}

/// [`gather`] with an f32 tensor [rows, columns] as the table. Columns are a multiple of 4.
pub fn gather_rows(recorder: &mut Recorder, ids: &Tensor, table: &Tensor, scale: f32, y: &Tensor) -> Result<()> {
    let lookup = Lookup { ids, start: 0, count: y.rows(), scale, accumulate: false };
    if !table.columns().is_multiple_of(4) {
        return Err(Error::WrongShape {
            name: "gather".to_owned(),
            found: table.shape().to_vec(),
            expected: "a multiple of 4 columns".to_owned(),
        });
    }
    lookup.record(recorder, Precision::F32, table.binding(), None, 0, table.rows(), table.columns(), y)
}

impl Lookup<'_> {
    fn of_matrix(&self, recorder: &mut Recorder, table: &Matrix, y: &Tensor) -> Result<()> {
        for piece in table.pieces() {
            let scales = piece.scales.as_ref().map(Tensor::binding);
            let data = piece.data.binding();
            self.record(recorder, piece.precision, data, scales, piece.first, piece.rows, table.columns(), y)?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn record(
        &self,
        recorder: &mut Recorder,
        precision: Precision,
        data: Binding<'_>,
        scales: Option<Binding<'_>>,
        first: usize,
        rows: usize,
        k: usize,
        y: &Tensor,
    ) -> Result<()> {
        if self.start + self.count > self.ids.len() || y.columns() != k {
            return Err(Error::WrongShape {
                name: "gather".to_owned(),
                found: y.shape().to_vec(),
                expected: format!("[at most {}, {k}]", self.ids.len().saturating_sub(self.start)),
            });
        }
        let params = Params {
            count: self.count as u32,
            k: k as u32,
            weight_stride: precision.row_fours(k) as u32,
            first: first as u32,
            rows: rows as u32,
            ids_start: self.start as u32,
            accumulate: u32::from(self.accumulate),
            scale: self.scale,
        };
        recorder.dispatch(
            &Variant(precision),
            &[self.ids.binding(), data, scales.unwrap_or(self.ids.binding()), y.binding()],
            &params,
            element_grid(self.count * k.div_ceil(4)),
            cost(2 * self.count * k, self.count * k),
        )
    }
}
