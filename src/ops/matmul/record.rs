//! Recording a product: a dispatch for each shard of its weights.

use bytemuck::{Pod, Zeroable};

use super::kernel::MatmulKernel;
use super::quantized_rows::SharedRows;
use super::shader::{EpilogueFlags, LhsSource, OutputStage, Variant};
use super::shape::{MatmulShape, Products};
use crate::Result;
use crate::gpu::{Binding, Cost, Recorder};
use crate::ops::{Norm, Routes};
use crate::tensor::{Inputs, Matrix, Shard, Tensor};

/// The parameters that every product has.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub(in crate::ops) struct Params {
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub weight_stride: u32,
    pub first: u32,
    pub output_stride: u32,
    pub output_start: u32,
    pub route_base: u32,
    pub route_divisor: u32,
    pub eps: f32,
}

/// The arguments that all matmuls share.
pub(in crate::ops) struct Product<'a> {
    /// The kernel; `None` for the one in use for such products.
    pub kernel: Option<MatmulKernel>,
    /// W [n, k].
    pub weight: &'a Matrix,
    /// Rows of x.
    pub m: usize,
    pub lhs: LhsSource,
    /// x, unless it is a map.
    pub rows: Option<&'a SharedRows<'a>>,
    /// Which of its rows, for an expert.
    pub routes: Option<Routes<'a>>,
    pub output: OutputStage,
    pub norm: Option<&'a Norm>,
    pub flags: EpilogueFlags,
    /// What is known of x.
    pub inputs: Inputs,
    /// Offsets of the parameters that count positions ([`Recorder::dispatch_at_position`]).
    pub advancing: &'static [usize],
    /// The bindings of the kernel; those of the weights and scales are replaced by each shard's.
    pub bindings: [Binding<'a>; 8],
}

impl Product<'_> {
    /// Records a dispatch for each shard of the weights; an implicit GEMM with more rows than a grid holds takes
    /// several. `params(first_row, common)` gives a dispatch's parameters; `bytes(shard, rows)` the bytes it reads and
    /// writes besides the weights.
    pub(in crate::ops) fn record<P: Pod>(
        self,
        recorder: &mut Recorder,
        params: impl Fn(usize, Params) -> P,
        bytes: impl Fn(&Shard, usize) -> usize,
    ) -> Result<()> {
        let Self { kernel, weight, m, lhs, rows: shared, routes, output, norm, flags, inputs, advancing, mut bindings } =
            self;
        let [x, .., gain, _] = bindings;
        let k = weight.columns();
        for shard in weight.shards() {
            let shape = MatmulShape::of_shard(shard, m, k);
            if let Some(products) = recorder.trace::<Products>() {
                *products.0.entry(shape).or_default() += 1;
            }
            let kernel = kernel.unwrap_or_else(|| match lhs {
                LhsSource::Im2col => MatmulKernel::choose_for_im2col(recorder.gpu(), shape, inputs),
                _ => MatmulKernel::choose(recorder.gpu(), shape, inputs),
            });
            let spec = kernel.spec();
            let mut variant = Variant {
                kernel,
                precision: shard.precision,
                lhs,
                output,
                norm: norm.is_some(),
                unit_offset: norm.is_some_and(|norm| norm.unit_offset),
                flags,
            };
            [bindings[0], bindings[6]] = [x, gain];
            if let Some(shared) = shared.filter(|_| spec.reads_bytes()) {
                // The norm is that of the rounded rows.
                variant = Variant { lhs: LhsSource::Vec4, norm: false, unit_offset: false, ..variant };
                let quantized = shared.quantized(recorder, shard.precision, norm, routes)?;
                [bindings[0], bindings[6]] = [quantized.bytes.binding(), quantized.scales.binding()];
            }
            bindings[1] = shard.data.binding();
            // Without scales, another buffer that is only read.
            bindings[2] = shard.scales.as_ref().map_or(bindings[0], Tensor::binding);
            // Only an implicit GEMM has a parameter for its first row; no other product has as many rows.
            let most = if lhs == LhsSource::Im2col { spec.max_rows() } else { m.max(1) };
            for first_row in (0..m).step_by(most) {
                let rows = most.min(m - first_row);
                let common = Params {
                    m: rows as u32,
                    n: shard.rows as u32,
                    k: k as u32,
                    weight_stride: shard.precision.row_fours(k) as u32,
                    first: shard.first as u32,
                    route_divisor: 1,
                    eps: norm.map_or(0.0, |norm| norm.eps),
                    ..Params::default()
                };
                let cost = Cost {
                    bytes: Matrix::bytes_for(shard.precision, shard.rows, k) as f64 + bytes(shard, rows) as f64,
                    flops: 2.0 * rows as f64 * k as f64 * shard.rows as f64,
                };
                let grid = spec.grid(rows, shard.rows);
                recorder.dispatch_at_position(
                    &variant,
                    &bindings,
                    &params(first_row, common),
                    grid,
                    cost,
                    advancing,
                )?;
            }
        }
        Ok(())
    }
}
