//! Rows of x rounded to 8 bits, for kernels that multiply bytes.

use std::cell::OnceCell;

use bytemuck::{Pod, Zeroable};

use super::shader::LhsSource;
use crate::Result;
use crate::gpu::{Access, Cost, Kernel, PipelineKey, Recorder, grid_1d, wgsl};
use crate::ops::{Norm, Routes};
use crate::tensor::{GROUP_SIZE, Precision, Tensor};

/// Rows of the layout that are next to each other.
const INTERLEAVED: usize = 32;

/// Rows x [m, k] for one product or several of one recording. Kernels that multiply bytes share what they are rounded
/// to, so nothing may write to x between these products, and all of them have the same norm (and with
/// [`Self::of_slots`] the same routes).
#[derive(Debug)]
pub struct SharedRows<'a> {
    x: &'a Tensor,
    /// Whether x has a row for each slot, of which a product takes only its expert's.
    of_slots: bool,
    /// In the order of columns that q8 has, and in that of fewer bits.
    quantized: [OnceCell<QuantizedRows>; 2],
}

/// Rows as quantize_rows.wgsl writes them.
#[derive(Debug)]
pub(super) struct QuantizedRows {
    pub bytes: Tensor,
    pub scales: Tensor,
}

/// The key of the pipeline that rounds rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Variant {
    lhs: LhsSource,
    /// The rows of one expert.
    routed: bool,
    norm: bool,
    unit_offset: bool,
    /// Even columns before odd ones.
    even_odd: bool,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    m: u32,
    k: u32,
    route_base: u32,
    route_divisor: u32,
    eps: f32,
}

impl<'a> SharedRows<'a> {
    /// The rows of a tensor.
    pub fn new(x: &'a Tensor) -> Self {
        Self { x, of_slots: false, quantized: Default::default() }
    }

    /// The rows of a tensor with one for each slot, for products with one expert's weights: only that expert's rows are
    /// rounded.
    pub fn of_slots(x: &'a Tensor) -> Self {
        Self { of_slots: true, ..Self::new(x) }
    }

    /// The tensor.
    pub fn x(&self) -> &'a Tensor {
        self.x
    }

    /// The rows, normalised and rounded, for weights of this precision.
    pub(super) fn quantized(
        &self,
        recorder: &mut Recorder,
        precision: Precision,
        norm: Option<&Norm>,
        routes: Option<Routes<'_>>,
    ) -> Result<&QuantizedRows> {
        let even_odd = precision.bits() != Some(8);
        let cell = &self.quantized[usize::from(even_odd)];
        if let Some(quantized) = cell.get() {
            return Ok(quantized);
        }
        let quantized = self.quantize(recorder, even_odd, norm, routes.filter(|_| self.of_slots))?;
        Ok(cell.get_or_init(|| quantized))
    }

    fn quantize(
        &self,
        recorder: &mut Recorder,
        even_odd: bool,
        norm: Option<&Norm>,
        routes: Option<Routes<'_>>,
    ) -> Result<QuantizedRows> {
        let Self { x, .. } = self;
        let (rows, k) = (x.rows(), x.columns());
        let (blocks, groups) = (rows.div_ceil(INTERLEAVED), k.div_ceil(GROUP_SIZE));
        let gpu = recorder.gpu().clone();
        let bytes = Tensor::temporary(&gpu, &[blocks, groups, INTERLEAVED, GROUP_SIZE / 4], "x in bytes")?;
        let scales = Tensor::temporary(&gpu, &[blocks, groups, INTERLEAVED, 2], "scales of x")?;
        let m = routes.map_or(rows, |routes| routes.capacity.min(rows));
        let unused = x.binding();
        recorder.dispatch(
            &Variant {
                lhs: LhsSource::of_rows(k),
                routed: routes.is_some(),
                norm: norm.is_some(),
                unit_offset: norm.is_some_and(|norm| norm.unit_offset),
                even_odd,
            },
            &[
                unused,
                unused,
                unused,
                unused,
                scales.binding(),
                routes.map_or(unused, |routes| routes.lists.binding()),
                norm.map_or(unused, |norm| norm.weight.binding()),
                bytes.binding(),
            ],
            &Params {
                m: m as u32,
                k: k as u32,
                route_base: routes.map_or(0, |routes| routes.base) as u32,
                route_divisor: 1,
                eps: norm.map_or(0.0, |norm| norm.eps),
            },
            grid_1d(m),
            Cost { bytes: (m * (5 * k + 8 * groups)) as f64, flops: (4 * m * k) as f64 },
        )?;
        Ok(QuantizedRows { bytes, scales })
    }
}

impl PipelineKey for Variant {
    fn kernel(&self) -> Kernel {
        const R: Access = Access::Read;
        const W: Access = Access::Write;
        let rows = if self.routed { wgsl!("matmul/rows_routed.wgsl") } else { wgsl!("matmul/rows_direct.wgsl") };
        Kernel {
            overrides: vec![
                ("NORM", u32::from(self.norm)),
                ("UNIT_OFFSET", u32::from(self.unit_offset)),
                ("EVEN_ODD", u32::from(self.even_odd)),
            ],
            ..Kernel::new(
                "quantize_rows",
                [rows, self.lhs.source(), wgsl!("common/reduce_workgroup.wgsl"), wgsl!("matmul/quantize_rows.wgsl")],
                &[R, R, R, R, W, R, R, W],
            )
        }
    }
}

/// Every shader that rounds rows, as a list of kernels.
pub(in crate::ops) fn quantize_kernels() -> Vec<Kernel> {
    let mut kernels = Vec::new();
    for lhs in [LhsSource::Scalar, LhsSource::Vec4] {
        for even_odd in [false, true] {
            for (routed, norm, unit_offset) in
                [(false, false, false), (false, true, false), (false, true, true), (true, false, false)]
            {
                kernels.push(Variant { lhs, routed, norm, unit_offset, even_odd }.kernel());
            }
        }
    }
    kernels
}
