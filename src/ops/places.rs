//! The places of a step's rows: which token each is, its position, and its row of the cache.

use bytemuck::{Pod, Zeroable};

use super::rope::{PlacedRows, RopeTable};
use super::{cost, element_grid};
use crate::gpu::{Access, Gpu, Kernel, PipelineKey, Recorder, wgsl};
use crate::tensor::{Rope, Tensor};
use crate::{Error, Result};

/// Rows of a cache that a float can count.
const MAX_PLACES: usize = 1 << 24;

/// A row of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which of the chosen tokens it is; [`NO_ROW`](super::NO_ROW) if the host knows it.
    pub token: u32,
    /// Its position in its sequence.
    pub position: usize,
    /// Its row of the cache.
    pub row: usize,
}

/// The places of steps, on the device.
#[derive(Debug)]
pub struct Places {
    /// [capacity, 3]: token, position, row
    steps: Tensor,
    /// [capacity] token ids
    tokens: Tensor,
    rows: PlacedRows,
    /// Positions that the table of angles must have, and tokens that must be chosen.
    positions: usize,
    chosen: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    d4: u32,
    padding: [u32; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant;

impl PipelineKey for Variant {
    fn kernel(&self) -> Kernel {
        const BINDINGS: &[Access] = &[Access::Read, Access::Read, Access::Read, Access::Write, Access::Write];
        Kernel::new("places", [wgsl!("language/places.wgsl")], BINDINGS)
    }
}

impl Places {
    /// Room for steps of up to `capacity` rows, with angles of `rope`.
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn new(gpu: &Gpu, capacity: usize, head_dim: usize, rope: &Rope) -> Result<Self> {
        let columns = RopeTable::columns(head_dim, rope);
        Ok(Self {
            steps: Tensor::zeros(gpu, &[capacity, 3], "places")?,
            tokens: Tensor::zeros(gpu, &[capacity], "tokens of a step")?,
            rows: PlacedRows {
                lines: Tensor::zeros(gpu, &[capacity, columns + 4], "angles of a step")?,
                query_factor: rope.query_factor.is_some(),
                count: 0,
                end: 0,
            },
            positions: 0,
            chosen: 0,
        })
    }

    /// Sets the rows of the steps recorded from now on. What was recorded before must be submitted.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are too many, or if a row of the cache is above 2^24.
    pub fn set(&mut self, gpu: &Gpu, places: &[Place]) -> Result<()> {
        let end = places.iter().map(|place| place.row + 1).max().unwrap_or(0);
        if places.len() > self.steps.rows() || end > MAX_PLACES {
            return Err(Error::InvalidArgument(format!(
                "{} rows in {end} rows of a cache, expected at most {} and {MAX_PLACES}",
                places.len(),
                self.steps.rows()
            )));
        }
        let words = |place: &Place| [place.token, place.position as u32, place.row as u32];
        let words: Vec<u32> = places.iter().flat_map(words).collect();
        self.steps.write(gpu, 0, bytemuck::cast_slice(&words));
        (self.rows.count, self.rows.end) = (places.len(), end);
        self.positions = places.iter().map(|place| place.position + 1).max().unwrap_or(0);
        let chosen = places.iter().filter(|place| place.token != super::NO_ROW);
        self.chosen = chosen.map(|place| place.token as usize + 1).max().unwrap_or(0);
        Ok(())
    }

    /// Looks up the tokens and the angles of the rows.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::InvalidArgument`] if `table` has too few positions, or `chosen` too few
    /// tokens.
    pub fn record(&self, recorder: &mut Recorder, table: &RopeTable, chosen: &Tensor) -> Result<()> {
        let lines = &self.rows.lines;
        let angles = table.angles();
        let fits = lines.columns() == angles.columns() + 4 && self.rows.query_factor == table.has_query_factor();
        if self.positions > angles.rows() || self.chosen > chosen.len() || !fits {
            return Err(Error::InvalidArgument(format!(
                "{} positions and {} tokens, expected at most {} and {}",
                self.positions,
                self.chosen,
                angles.rows(),
                chosen.len()
            )));
        }
        let elements = self.rows.count * lines.columns();
        let params = Params { rows: self.rows.count as u32, d4: (angles.columns() / 4) as u32, padding: [0; 2] };
        recorder.dispatch(
            &Variant,
            &[self.steps.binding(), chosen.binding(), angles.binding(), lines.binding(), self.tokens.binding()],
            &params,
            element_grid(elements / 4),
            cost(2 * elements, 0),
        )
    }

    /// The rows' angles and places, for [`linear_qkv_rope`](super::linear_qkv_rope).
    pub fn rows(&self) -> &PlacedRows {
        &self.rows
    }

    /// The rows' tokens.
    pub fn tokens(&self) -> &Tensor {
        &self.tokens
    }
}
