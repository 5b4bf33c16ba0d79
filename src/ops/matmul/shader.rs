//! Assembles the shader of a matmul.

use super::kernel::{Constant, MatmulKernel, WeightReader};
use crate::gpu::{Access, Kernel, PipelineKey, Source, wgsl};
use crate::tensor::{Activation, Precision, ScaleLayout};

/// How rows of x are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::ops) enum LhsSource {
    /// Rows of any length.
    Scalar,
    /// Rows whose length is a multiple of 4.
    Vec4,
    /// Implicit GEMM: the values of a feature map under a convolution's kernel.
    Im2col,
}

impl LhsSource {
    /// How rows of `k` values are read.
    pub(in crate::ops) fn of_rows(k: usize) -> Self {
        if k.is_multiple_of(4) { Self::Vec4 } else { Self::Scalar }
    }

    pub(super) fn source(self) -> Source {
        match self {
            Self::Scalar => wgsl!("matmul/lhs_scalar.wgsl"),
            Self::Vec4 => wgsl!("matmul/lhs_vec4.wgsl"),
            Self::Im2col => wgsl!("matmul/lhs_im2col.wgsl"),
        }
    }
}

/// What happens to the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::ops) enum OutputStage {
    /// The epilogue, row by row.
    Epilogue,
    /// The epilogue, for the rows of one expert.
    RoutedEpilogue,
    /// RoPE: queries rotated; keys, rotated, and values into a cache, in f16 if `half`.
    RopeToCache {
        /// An f16 cache.
        half: bool,
        /// Rows are at any places.
        placed: bool,
    },
}

/// The steps of an epilogue that a product has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(in crate::ops) struct EpilogueFlags {
    pub bias: bool,
    pub gamma: bool,
    pub gated: bool,
    pub accumulate: bool,
    pub residual: bool,
    pub activation: Option<Activation>,
}

impl EpilogueFlags {
    fn overrides(self) -> [(&'static str, u32); 6] {
        let activation = match self.activation {
            None => 0,
            Some(Activation::GeluErf) => 1,
            Some(Activation::GeluTanh) => 2,
            Some(Activation::Silu) => 3,
            Some(Activation::QuickGelu) => 4,
        };
        [
            ("HAS_BIAS", self.bias.into()),
            ("HAS_GAMMA", self.gamma.into()),
            ("GATED", self.gated.into()),
            ("ACCUMULATE", self.accumulate.into()),
            ("HAS_RESIDUAL", self.residual.into()),
            ("ACTIVATION", activation),
        ]
    }
}

/// The key of a product's pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    pub kernel: MatmulKernel,
    pub precision: Precision,
    pub lhs: LhsSource,
    pub output: OutputStage,
    /// With a norm before the product.
    pub norm: bool,
    /// That norm's gain is stored less one.
    pub unit_offset: bool,
    pub flags: EpilogueFlags,
}

impl PipelineKey for Variant {
    fn kernel(&self) -> Kernel {
        let spec = self.kernel.spec();
        let mut overrides = Vec::new();
        let mut sources = match self.output {
            OutputStage::Epilogue | OutputStage::RoutedEpilogue => {
                overrides.extend(self.flags.overrides());
                vec![wgsl!("matmul/epilogue.wgsl"), wgsl!("matmul/activation.wgsl")]
            }
            OutputStage::RopeToCache { half, placed } => vec![
                match placed {
                    false => wgsl!("matmul/rope_positions.wgsl"),
                    true => wgsl!("matmul/rope_places.wgsl"),
                },
                wgsl!("matmul/rope_epilogue.wgsl"),
                match half {
                    false => wgsl!("matmul/store_cache_f32.wgsl"),
                    true => wgsl!("matmul/store_cache_f16.wgsl"),
                },
            ],
        };
        sources.push(match (self.output, self.lhs) {
            (OutputStage::RoutedEpilogue, _) => wgsl!("matmul/rows_routed.wgsl"),
            (_, LhsSource::Im2col) => wgsl!("matmul/rows_im2col.wgsl"),
            _ => wgsl!("matmul/rows_direct.wgsl"),
        });
        if !spec.reads_bytes() {
            sources.push(self.lhs.source());
        }
        let (readers, mut consts) = match spec.weights {
            WeightReader::Vec4 | WeightReader::Run => weight_reader(self.precision),
            WeightReader::Block => block_reader(self.precision),
            WeightReader::Row | WeightReader::Bytes => row_reader(self.precision),
        };
        sources.extend(readers);
        if spec.fuses_norm && !spec.reads_bytes() {
            sources.push(wgsl!("matmul/fused_norm.wgsl"));
            overrides.extend([("NORM", u32::from(self.norm)), ("UNIT_OFFSET", u32::from(self.unit_offset))]);
        }
        sources.extend_from_slice(spec.parts);
        if spec.weights == WeightReader::Run {
            sources.push(match self.precision {
                Precision::F32 => wgsl!("matmul/run_f32.wgsl"),
                Precision::F16 => wgsl!("matmul/run_f16.wgsl"),
                Precision::Q8 => wgsl!("matmul/run_q8.wgsl"),
                _ => wgsl!("matmul/run_quantized.wgsl"),
            });
        }
        if spec.weights == WeightReader::Bytes {
            sources.push(byte_reader(self.precision));
        }
        sources.push(spec.file);
        for constant in spec.constants.into_iter().flatten() {
            match constant {
                Constant::Override(name, value) => overrides.push((name, value)),
                Constant::Const(name, value) => consts.push((name, value)),
            }
        }
        const R: Access = Access::Read;
        const W: Access = Access::Write;
        Kernel {
            name: spec.name,
            label: if self.lhs == LhsSource::Im2col { "convolution" } else { spec.name },
            sources,
            overrides,
            consts,
            bindings: match self.output {
                OutputStage::RopeToCache { .. } => &[R, R, R, R, W, W, R, W],
                _ => &[R, R, R, R, R, R, R, W],
            },
        }
    }
}

/// The reader of four columns of a row of weights, with the constants that it needs.
pub(in crate::ops) fn weight_reader(precision: Precision) -> (Vec<Source>, Vec<(&'static str, u32)>) {
    let source = match precision {
        Precision::F32 => wgsl!("matmul/weights_f32.wgsl"),
        Precision::F16 => wgsl!("matmul/weights_f16.wgsl"),
        Precision::Q8 => wgsl!("matmul/weights_q8.wgsl"),
        _ => wgsl!("matmul/weights_quantized.wgsl"),
    };
    (after_scales(source, precision), reader_constants(precision))
}

/// The reader of 32 columns of four rows.
fn block_reader(precision: Precision) -> (Vec<Source>, Vec<(&'static str, u32)>) {
    let source = match precision {
        Precision::F32 => wgsl!("matmul/blocks_f32.wgsl"),
        Precision::F16 => wgsl!("matmul/blocks_f16.wgsl"),
        Precision::Q8 => wgsl!("matmul/blocks_q8.wgsl"),
        _ => wgsl!("matmul/blocks_quantized.wgsl"),
    };
    (vec![source], reader_constants(precision))
}

/// The reader of 32 columns of a row.
fn row_reader(precision: Precision) -> (Vec<Source>, Vec<(&'static str, u32)>) {
    let source = match precision {
        Precision::F32 | Precision::F16 => {
            let (mut sources, constants) = weight_reader(precision);
            sources.push(wgsl!("matmul/row_floats.wgsl"));
            return (sources, constants);
        }
        Precision::Q8 => wgsl!("matmul/row_q8.wgsl"),
        _ => wgsl!("matmul/row_quantized.wgsl"),
    };
    (after_scales(source, precision), reader_constants(precision))
}

/// A reader after that of the scales, where it needs one.
fn after_scales(reader: Source, precision: Precision) -> Vec<Source> {
    match precision.bits() {
        Some(bits) if bits < 8 => vec![wgsl!("matmul/scales_quantized.wgsl"), reader],
        _ => vec![reader],
    }
}

/// The reader of quantised weights as packed bytes.
fn byte_reader(precision: Precision) -> Source {
    match precision {
        Precision::Q8 => wgsl!("matmul/bytes_q8.wgsl"),
        _ => wgsl!("matmul/bytes_quantized.wgsl"),
    }
}

fn reader_constants(precision: Precision) -> Vec<(&'static str, u32)> {
    match precision.bits() {
        Some(bits) if bits < 8 => {
            let ScaleLayout { groups, words, halves, .. } = precision.scale_layout();
            vec![
                ("BITS", bits as u32),
                ("SPAN", groups as u32),
                ("SCALE_WORDS", words as u32),
                ("SCALE_HALVES", halves as u32),
            ]
        }
        _ => Vec::new(),
    }
}

/// Every shader that computes products, as a list of kernels.
pub(in crate::ops) fn all_kernels() -> Vec<Kernel> {
    const BOTH: [bool; 2] = [false, true];
    const OUTPUTS: [OutputStage; 6] = [
        OutputStage::Epilogue,
        OutputStage::RoutedEpilogue,
        OutputStage::RopeToCache { half: false, placed: false },
        OutputStage::RopeToCache { half: true, placed: false },
        OutputStage::RopeToCache { half: false, placed: true },
        OutputStage::RopeToCache { half: true, placed: true },
    ];
    // All steps of the epilogue: other combinations only remove code.
    let flags = EpilogueFlags {
        bias: true,
        gamma: true,
        gated: true,
        accumulate: true,
        residual: true,
        activation: Some(Activation::GeluErf),
    };
    let mut kernels = Vec::new();
    for kernel in MatmulKernel::all() {
        let spec = kernel.spec();
        for precision in Precision::ALL.into_iter().filter(|precision| spec.takes(*precision)) {
            let (lhs, output) = (LhsSource::Im2col, OutputStage::Epilogue);
            let convolution = Variant { kernel, precision, lhs, output, norm: false, unit_offset: false, flags };
            if spec.reads_bytes() {
                // The same shader for all x.
                let lhs = LhsSource::Vec4;
                kernels.extend(OUTPUTS.map(|output| Variant { lhs, output, ..convolution }.kernel()));
                continue;
            }
            for output in OUTPUTS {
                // An expert's product never has a norm of its own.
                let fuses_norm = spec.fuses_norm && output != OutputStage::RoutedEpilogue;
                for norm in BOTH.into_iter().filter(|norm| fuses_norm || !norm) {
                    for unit_offset in BOTH.into_iter().filter(|unit_offset| norm || !unit_offset) {
                        // Rows that are anywhere have columns that are a multiple of 4.
                        let scalar = !matches!(output, OutputStage::RopeToCache { placed: true, .. });
                        let all = [LhsSource::Vec4, LhsSource::Scalar];
                        kernels.extend(
                            all[..1 + usize::from(scalar)]
                                .iter()
                                .map(|lhs| Variant { lhs: *lhs, output, norm, unit_offset, ..convolution }.kernel()),
                        );
                    }
                }
            }
            // No convolution runs through a kernel for single rows.
            if spec.takes_many() {
                kernels.push(convolution.kernel());
            }
        }
    }
    kernels
}
