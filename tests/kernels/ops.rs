//! Every op against its f64 reference, over shapes around the kernels' tiles, on several devices: with all features and
//! the kernels for hardware; with WebGPU's default limits, no features and the kernels for software adapters; and with
//! bindings so small that matrices come in several shards. Tensors lie between guard zones on all of them.
//!
//! Where the error bounds come from is said at [`mgm::ops::cases::F32`] and at each case's `bound`.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mgm::Error;
use mgm::gpu::{Capabilities, Gpu, GpuOptions, Kernel, TestOptions, Withheld};
use mgm::ops::cases::{
    Adjust, Argmax, Attention, AttentionBatched, AttentionPaged, AttentionSegments, Case, Combine, Concatenate,
    Convolution, Denoise, Depthwise, F32, GatedAdd, Gather, GatherRows, GroupNorm, Inpaint, Linear, Logprobs, Map,
    MatrixRows, Mining, MiningStats, Norm, NormAdd, Patches, PlacedRope, Random, Resize, Rope, RopeRows, Route,
    RouteOfAll, RoutedLinear, Sample, SampleRows, ScoredAttention, ScoredPaged, Softcap, Softmax, Storage, check,
    compare, self_check,
};
use mgm::ops::{
    self, Activation, AttentionSegment, BlockTables, ConvMode, Cooperative, Epilogue, MatmulKernel, MatmulShape,
    PagedForm, PagedSequence, Rounding, RowBias, RowMatvec, RowPenalties, RowSampling, Sampling, StridedRows, Tuning,
    set_tuning, specialisations, tuning,
};
use mgm::tensor::{Inputs, Matrix, Precision, Tensor};
use mgm::tuning::{Timing, TuneOptions, check_native_dots, tune, tune_within};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::common;

/// The devices, each used by one test at a time since guard zones are checked for all of a device's tensors.
struct Devices {
    full: Mutex<Gpu>,
    /// With all features too, and the kernels for software adapters: those for its subgroups, where there are such.
    software: Mutex<Gpu>,
    base: Mutex<Gpu>,
    /// With the least workgroup memory, and the kernels for hardware.
    small: Mutex<Gpu>,
    /// For hardware, and for software adapters.
    shards: [Mutex<Gpu>; 2],
}

/// The binding size of the devices that cut matrices into shards: 16 rows of 64 f32.
const SHARD_BYTES: u64 = 4096;

fn devices() -> &'static Devices {
    static DEVICES: OnceLock<Devices> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let open = |base_only: bool, software: bool, max_binding_bytes| {
            let software_adapter = Some(software);
            // The features of hardware are tested without the driver's own checks of buffer accesses.
            let unchecked = Some(!base_only && !software);
            let test = TestOptions {
                withheld: if base_only { Withheld::ALL } else { Withheld::default() },
                max_binding_bytes,
                guard_zones: true,
                software_adapter,
                unchecked,
                ..TestOptions::default()
            };
            Mutex::new(common::open_gpu_with(GpuOptions::default().with_test(test)))
        };
        Devices {
            full: open(false, false, None),
            software: open(false, true, None),
            base: open(true, true, None),
            small: open(true, false, None),
            shards: [false, true].map(|software| open(true, software, Some(SHARD_BYTES))),
        }
    })
}

/// The kernel without the constants by which products leave out parts of their epilogue: the list has products with all
/// parts.
fn but_for_its_epilogue(mut kernel: Kernel) -> Kernel {
    const PARTS: [&str; 6] = ["HAS_BIAS", "HAS_GAMMA", "GATED", "ACCUMULATE", "HAS_RESIDUAL", "ACTIVATION"];
    kernel.overrides.retain(|(name, _)| !PARTS.contains(name));
    kernel
}

/// Checks cases on one device; names all that fail, and the worst of those that do not. Also checks that the list
/// of compiled kernels (tests/kernels/shaders.rs) has every kernel that was dispatched.
fn check_on(device: &Mutex<Gpu>, what: &str, cases: &[Box<dyn Case>]) {
    check_every(1, device, what, cases);
}

/// The same for the first of every `stride` cases.
fn check_every(stride: usize, device: &Mutex<Gpu>, what: &str, cases: &[Box<dyn Case>]) {
    let gpu = device.lock().unwrap_or_else(PoisonError::into_inner);
    let mut failures = Vec::new();
    let mut worst = (0.0, String::new());
    for case in cases.iter().step_by(stride) {
        match pollster::block_on(check(&gpu, case.as_ref())) {
            Ok(report) => {
                let part = if case.bound() > 0.0 { report.nmse / case.bound() } else { 0.0 };
                if part >= worst.0 {
                    worst = (
                        part,
                        format!("{}: nmse {:.1e}, largest error {:.1e}", case.name(), report.nmse, report.max_error),
                    );
                }
            }
            Err(error) => failures.push(error.to_string()),
        }
    }
    println!(
        "{what}: {} cases on {}; nearest to its bound ({:.3}) {}",
        cases.len().div_ceil(stride),
        gpu.adapter().name,
        worst.0,
        worst.1
    );
    assert!(
        failures.is_empty(),
        "{what}: {} of {} cases failed:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
    static ALL: OnceLock<HashSet<Kernel>> = OnceLock::new();
    let all = ALL.get_or_init(|| specialisations().into_iter().map(but_for_its_epilogue).collect());
    for kernel in gpu.kernels().into_iter().map(but_for_its_epilogue) {
        assert!(all.contains(&kernel), "{} {:?} is not in ops::specialisations()", kernel.name, kernel.overrides);
    }
}

/// On all devices at a time: the driver's compiler, which takes most of the time, uses one thread for each. The tests
/// of models and commands run on a device such as `software`, therefore it has a third of the cases here.
fn check_everywhere(what: &str, cases: &[Box<dyn Case>]) {
    let Devices { full, software, base, .. } = devices();
    std::thread::scope(|scope| {
        scope.spawn(|| check_every(3, software, what, cases));
        check_on_each([full, base], what, cases);
    });
}

fn check_on_each<const N: usize>(devices: [&Mutex<Gpu>; N], what: &str, cases: &[Box<dyn Case>]) {
    std::thread::scope(|scope| {
        for device in devices {
            scope.spawn(|| check_on(device, what, cases));
        }
    });
}

fn boxed<C: Case + 'static>(cases: impl IntoIterator<Item = C>) -> Vec<Box<dyn Case>> {
    cases.into_iter().map(|case| Box::new(case) as Box<dyn Case>).collect()
}

/// Cases drawn by proptest from a fixed seed, checked one by one so that a failure is shrunk.
fn drawn<S>(count: u32, strategy: S)
where
    S: Strategy,
    S::Value: Case + 'static,
{
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let config = Config { cases: count, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let devices = [&devices().full, &devices().software, &devices().base]
        .map(|gpu| gpu.lock().unwrap_or_else(PoisonError::into_inner));
    let result = TestRunner::new_with_rng(config, rng).run(&strategy, |case| {
        let check_on = |gpu: &Gpu| pollster::block_on(check(gpu, &case)).map(drop).map_err(|error| error.to_string());
        std::thread::scope(|scope| {
            let running = devices.each_ref().map(|gpu| scope.spawn(|| check_on(gpu)));
            running.into_iter().try_for_each(|running| running.join().unwrap_or_else(|_| Err("a panic".to_owned())))
        })
        .map_err(TestCaseError::fail)
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

fn precision() -> impl Strategy<Value = Precision> {
    prop::sample::select(Precision::ALL.to_vec())
}

const ACTIVATIONS: [Option<Activation>; 5] =
    [None, Some(Activation::GeluErf), Some(Activation::GeluTanh), Some(Activation::Silu), Some(Activation::QuickGelu)];

/// Rows of x on both sides of the step from matvec to tiles, of a tile, and of the 8 or 16 of the kernels for software
/// adapters.
const AWKWARD_M: [usize; 12] = [1, 2, 3, 4, 5, 8, 15, 17, 63, 64, 65, 131];
/// Rows of W around the four of a matvec, the 64 of a tile and the 16, 32 or 256 of the kernels for software adapters.
const AWKWARD_N: [usize; 11] = [1, 2, 3, 4, 5, 63, 64, 65, 127, 256, 261];
/// Columns around the fours of a vector, the 16 of a step, the 32 of a quantised group and the 256 of a workgroup's
/// stride.
const AWKWARD_K: [usize; 14] = [1, 2, 3, 4, 5, 15, 17, 31, 32, 33, 64, 97, 257, 1028];

#[test]
fn linear_over_awkward_shapes() {
    let mut cases = Vec::new();
    let mut random = Random::new("shapes");
    for precision in Precision::ALL {
        // Each awkward size with others drawn at random: a full product would be thousands of cases.
        let mut add = |m: usize, n: usize, k: usize| cases.push(Linear { m, n, k, precision, ..Linear::default() });
        let mut pick = |sizes: &[usize]| sizes[random.below(sizes.len())];
        for m in AWKWARD_M {
            add(m, pick(&AWKWARD_N), pick(&AWKWARD_K));
        }
        for n in AWKWARD_N {
            add(pick(&AWKWARD_M[..4]), n, pick(&AWKWARD_K));
            add(pick(&AWKWARD_M[4..]), n, pick(&AWKWARD_K));
        }
        for k in AWKWARD_K {
            add(pick(&AWKWARD_M[..4]), pick(&AWKWARD_N), k);
            add(pick(&AWKWARD_M[4..]), pick(&AWKWARD_N), k);
        }
    }
    check_everywhere("linear", &boxed(cases));
}

#[test]
fn linear_with_every_epilogue() {
    let (mut cases, mut some) = (Vec::new(), Vec::new());
    for m in [2, 66] {
        for (number, activation) in ACTIVATIONS.into_iter().enumerate() {
            for bits in 0..16u32 {
                let bit = |index: u32| bits >> index & 1 == 1;
                let case = Linear {
                    m,
                    // Gates come in pairs; a last pair alone in its four.
                    n: if bit(2) { 70 } else { 67 },
                    k: if bit(0) { 37 } else { 36 },
                    precision: Precision::ALL[cases.len() % Precision::ALL.len()],
                    activation,
                    bias: bit(0),
                    gamma: bit(1),
                    gated: bit(2),
                    accumulate: bit(3),
                    norm: !bit(3),
                };
                // All combinations of parts, and each activation with and without a gate.
                let is_some = bits as usize % ACTIVATIONS.len() == number || bits == 8 || bits == 12;
                some.extend(is_some.then_some(case));
                cases.extend((is_some || m > 4).then_some(case));
            }
        }
    }
    // Every one is a pipeline of its own, of one shader text on all devices: one of them compiles them all.
    check_on(&devices().base, "epilogues", &boxed(cases));
    check_on(&devices().full, "some epilogues", &boxed(some.clone()));
    check_on(&devices().software, "some epilogues", &boxed(some));
}

#[test]
fn linear_in_several_pieces() {
    let mut cases = Vec::new();
    for precision in Precision::ALL {
        for m in [1, 5] {
            // 16 rows of 64 f32 a shard: up to nine shards, the last one short; some cut before a gate's half.
            cases.push(Linear { m, n: 131, k: 64, precision, bias: true, ..Linear::default() });
            cases.push(Linear { m, n: 70, k: 61, precision, gamma: true, accumulate: true, ..Linear::default() });
            cases.push(Linear {
                m,
                n: 134,
                k: 62,
                precision,
                gated: true,
                activation: Some(Activation::Silu),
                ..Linear::default()
            });
        }
    }
    let mut cases = boxed(cases);
    for precision in Precision::ALL {
        cases.push(Box::new(Gather { rows: 133, columns: 61, precision, count: 16, start: 3 }));
        cases.push(Box::new(MatrixRows { rows: 133, columns: 61, precision, block: 10 }));
    }
    for device in &devices().shards {
        check_on(device, "shards", &cases);
    }
}

#[test]
fn linear_drawn() {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let strategy =
        (1..140usize, 1..140usize, 1..300usize, precision(), prop::sample::select(ACTIVATIONS.to_vec()), flags)
            .prop_map(|(m, n, k, precision, activation, (bias, gamma, gated, accumulate, norm))| {
                let n = if gated { (2 * n).min(140) } else { n };
                let norm = norm && !accumulate;
                Linear { m, n, k, precision, activation, bias, gamma, gated, accumulate, norm }
            });
    drawn(20, strategy);
}

/// Measures products on a device. `on_timing` is called with every measurement.
fn measure(
    gpu: &Gpu,
    shapes: impl IntoIterator<Item = MatmulShape>,
    options: TuneOptions,
    mut on_timing: impl FnMut(&Timing),
) -> Tuning {
    pollster::block_on(tune(gpu, shapes, options, |timing| {
        on_timing(timing);
        ControlFlow::Continue(())
    }))
    .expect("measurements")
}

/// Every kernel that a device could run, including those that only a measurement would choose.
#[test]
fn every_matmul_kernel_matches_the_reference() {
    for device in [&devices().full, &devices().software, &devices().base] {
        let gpu = device.lock().unwrap_or_else(PoisonError::into_inner);
        let shapes = Precision::ALL
            .into_iter()
            .flat_map(|precision| [1, 4, 8, 16, 128].map(|m| MatmulShape { precision, m, n: 96, k: 64 }));
        let mut kernels = HashSet::new();
        let tuning = measure(&gpu, shapes, TuneOptions::default().with_int8(true), |timing| {
            let (kernel, shape) = (timing.kernel.name(), timing.shape);
            assert!(timing.correct, "{kernel} is wrong for {shape:?} on {}", gpu.adapter().name);
            kernels.insert(kernel);
        });
        println!("{} kernels on {}", kernels.len(), gpu.adapter().name);
        assert!(!tuning.is_empty());
        pollster::block_on(gpu.check_guards()).expect("nothing around tensors is written");
        // The other tests are about what is chosen without measurements.
        set_tuning(&gpu, Tuning::none(&gpu));
    }
}

/// Has every product of 5 to 8 rows and of more than 16 with weights of this shape computed by a kernel; `false` if the
/// device cannot run it.
fn force(gpu: &Gpu, kernel: MatmulKernel, precision: Precision, n: usize, k: usize) -> bool {
    let mut forced = Tuning::none(gpu);
    for m in [8, 512] {
        forced.force(MatmulShape { precision, m, n, k }, kernel);
    }
    set_tuning(gpu, Tuning::none(gpu));
    set_tuning(gpu, forced);
    tuning(gpu).len() == 2
}

/// The kernels that round factors, which only a measurement chooses, with everything that can be around a product.
#[test]
fn rounding_kernels_over_awkward_shapes() {
    // The mean square of a few values may be above the expected one.
    const SAMPLE: f64 = 1.5;
    // Where two sums are multiplied, both are off; SiLU is up to 1.1 times as steep as the identity.
    const BOTH_SUMS: f64 = 2.5;

    let gpu = devices().full.lock().unwrap_or_else(PoisonError::into_inner);
    let capabilities = gpu.capabilities();
    let runs = |kernel: &MatmulKernel| match kernel {
        MatmulKernel::Tiled { .. } | MatmulKernel::F16Sums { .. } => capabilities.shader_f16,
        MatmulKernel::Cooperative(sizes) => {
            capabilities.cooperative_sizes.contains(&sizes.size)
                && sizes.lanes == capabilities.subgroup_max_size
                && sizes.workgroup_bytes() <= capabilities.max_workgroup_bytes
        }
        _ => true,
    };
    let kernels: Vec<_> =
        MatmulKernel::all().filter(|kernel| kernel.rounding() != Rounding::None).filter(runs).collect();
    // Two of bytes, two tiles in f16, two that add in f16, and four cooperative kernels for each size of a matrix.
    println!("{} kernels", kernels.len());

    // Which third, and the product's precision, n and k.
    type Third = (usize, Precision, usize, usize, Box<dyn Case>);
    // Every case is a pipeline of each kernel, which a driver in software compiles in about a second. Therefore each
    // kernel has a third of them: all shapes and all kinds, and the next kernel has other precisions.
    let mut cases: Vec<Third> = Vec::new();
    for (index, (m, n, k)) in
        [(5, 1, 4), (64, 64, 32), (65, 67, 36), (300, 131, 100), (130, 260, 31), (70, 6, 3), (17, 258, 1100)]
            .into_iter()
            .enumerate()
    {
        for (third, offset) in [0, 3, 5].into_iter().enumerate() {
            let precision = Precision::ALL[(index + offset) % Precision::ALL.len()];
            let base = Linear { m, n, k, precision, ..Linear::default() };
            let n = n.next_multiple_of(2);
            let gated = Linear { n, bias: true, gated: true, activation: Some(Activation::Silu), ..base };
            let added = Linear { bias: true, gamma: true, accumulate: true, ..base };
            let normed = Linear { norm: true, ..gated };
            // Of a few values the mean square is far from the expected one.
            let normed = (k > 32).then_some(normed);
            let all = [base, gated, added].into_iter().chain(normed);
            cases.extend(all.map(|case| (third, precision, case.n, k, Box::new(case) as Box<dyn Case>)));
        }
    }
    for (index, precision) in Precision::ALL.into_iter().enumerate() {
        let third = index % 3;
        for (tokens, n, k) in [(66, 64, 40), (130, 10, 68)] {
            let case = RoutedLinear { tokens, top_k: 2, n, k, precision, gated: index % 2 == 0, from_tokens: true };
            cases.push((third, precision, n, k, Box::new(case)));
            let case = RoutedLinear { from_tokens: false, ..case };
            cases.push((third, precision, n, k, Box::new(case)));
        }
        let (heads, kv_heads, head_dim, k, half) = (3, 1, 16, 68, index % 2 == 0);
        let case = Rope { heads, kv_heads, head_dim, times: 70, position: 7, k, precision, half, freq_factors: true };
        cases.push((third, precision, (heads + 2 * kv_heads) * head_dim, k, Box::new(case)));
        let mode = CONV_MODES[index % CONV_MODES.len()];
        let (channels, out) = (36, 67);
        let case = Convolution {
            height: 10,
            width: 13,
            channels,
            out,
            mode,
            precision,
            images: 2,
            biases: true,
            residual: true,
            ..Convolution::default()
        };
        cases.push((third, precision, out, 9 * channels, Box::new(case)));
    }

    for (number, kernel) in kernels.into_iter().enumerate() {
        let cases: Vec<_> = cases.iter().filter(|(third, ..)| *third == number % 3).collect();
        let (mut ran, mut rounded, mut worst) = (0, 0, 0.0f64);
        let (label, bound) = (kernel.name(), kernel.rounding().nmse());
        // Software adapters compute large tiles element by element: anything around the product takes them minutes to
        // compile.
        let plain_only =
            gpu.adapter().is_software() && matches!(kernel, MatmulKernel::Cooperative(Cooperative { tile: 128, .. }));
        for (_, precision, n, k, case) in &cases {
            if plain_only && !case.name().starts_with("Linear") {
                continue;
            }
            if force(&gpu, kernel, *precision, *n, *k) {
                let values = pollster::block_on(case.run(&gpu)).unwrap_or_else(|error| panic!("{label}: {error}"));
                let name = format!("{label}: {}", case.name());
                let report = compare(&name, &values, &case.reference()).expect("numbers");
                let bound = if name.contains("gated: true") { BOTH_SUMS * bound } else { bound };
                assert!(report.nmse <= SAMPLE * bound, "{name}: nmse {:.1e}", report.nmse);
                pollster::block_on(gpu.check_guards()).unwrap_or_else(|error| panic!("{name}: {error}"));
                worst = worst.max(report.nmse / bound);
                ran += 1;
                rounded += usize::from(report.nmse > F32);
            }
        }
        println!("{label}: {ran} cases, at most {worst:.2} of the rounding's own error");
        // Bytes are multiplied where weights are quantised, which eight of the ten precisions are, and not in
        // convolutions.
        assert!(ran >= cases.len() / 2, "{label} ran {ran} of {} cases", cases.len());
        // It is this kernel that ran, and not another that rounds nothing.
        assert!(10 * rounded >= 9 * ran, "{label}: only {rounded} of {ran} results are rounded");
    }
    set_tuning(&gpu, Tuning::none(&gpu));
}

/// Activations are rounded to 8 bits only on request.
#[test]
fn int8_kernels_run_only_on_request() {
    let gpu = devices().full.lock().unwrap_or_else(PoisonError::into_inner);
    let shape = MatmulShape { precision: Precision::Q4, m: 128, n: 96, k: 64 };
    let other = MatmulShape { precision: Precision::Q8, m: 512, n: 40, k: 80 };
    let measured = |options| {
        let mut packed = false;
        let tuning =
            measure(&gpu, [shape], options, |timing| packed |= matches!(timing.kernel, MatmulKernel::Packed { .. }));
        (packed, tuning)
    };
    assert!(measured(TuneOptions::default().with_int8(true)).0);
    // An earlier choice does not outlive the request, not even for products that are not measured again.
    assert!(force(&gpu, MatmulKernel::Packed { columns: 4 }, other.precision, other.n, other.k));
    let (tried, tuning) = measured(TuneOptions::default());
    assert!(
        !tried && tuning.kernel(other).is_none() && !matches!(tuning.kernel(shape), Some(MatmulKernel::Packed { .. }))
    );
    set_tuning(&gpu, Tuning::none(&gpu));
}

/// Where a GPU multiplies bytes, products of several rows with quantised weights do so by default, and no others.
#[test]
fn native_dots_are_used_by_default() {
    let open = |int8: bool, software: bool| {
        let test = TestOptions {
            guard_zones: true,
            software_adapter: Some(software),
            native_dots: Some(true),
            ..TestOptions::default()
        };
        common::open_gpu_with(GpuOptions::default().with_int8(int8).with_test(test))
    };
    let error = |gpu: &Gpu, m, precision| {
        let case = Linear { m, n: 67, k: 100, precision, norm: true, ..Linear::default() };
        let values = pollster::block_on(case.run(gpu)).expect("a product");
        pollster::block_on(gpu.check_guards()).expect("nothing around tensors is written");
        compare(&case.name(), &values, &case.reference()).expect("numbers").nmse
    };
    let gpu = open(true, false);
    // Nothing runs before it was checked.
    assert!(error(&gpu, 70, Precision::Q4) < F32);
    assert!(pollster::block_on(check_native_dots(&gpu)).expect("a device"));
    for precision in Precision::ALL {
        let rounds = precision.bits().is_some();
        let nmse = error(&gpu, 70, precision);
        let bound = if rounds { 1.5 * Rounding::Int8.nmse() } else { F32 };
        assert!(nmse <= bound && (nmse > F32) == rounds, "{precision:?}: {nmse:.1e}");
        assert!(error(&gpu, 4, precision) < F32, "{precision:?}");
    }
    // Without matrices to measure first, the other size and the kernel in f32 are what is measured.
    let shape = MatmulShape { precision: Precision::Q4, m: 512, n: 96, k: 64 };
    let mut measured = HashSet::new();
    let on_step = |timing: Option<&Timing>| {
        measured.extend(timing.map(|timing| timing.kernel));
        ControlFlow::Continue(())
    };
    let products = HashMap::from([(shape, 1)]);
    pollster::block_on(tune_within(&gpu, &products, Duration::from_secs(600), on_step, |_| {})).expect("measurements");
    for kernel in [
        MatmulKernel::Packed { columns: 4 },
        MatmulKernel::Packed { columns: 8 },
        MatmulKernel::Tiled { half: false, columns: 4 },
    ] {
        assert!(measured.contains(&kernel), "{} was not measured", kernel.name());
    }
    for gpu in [open(false, false), open(true, true)] {
        assert!(!pollster::block_on(check_native_dots(&gpu)).expect("a device"));
        assert!(error(&gpu, 70, Precision::Q4) < F32);
    }
}

/// What a host measures when it loads a model for the first time: as much as fits into the budget, and never twice.
#[test]
fn a_budget_limits_what_is_measured() {
    const LONG: Duration = Duration::from_secs(600);

    let gpu = devices().full.lock().unwrap_or_else(PoisonError::into_inner);
    let decoded = MatmulShape { precision: Precision::Q4, m: 1, n: 96, k: 64 };
    let prompt = MatmulShape { m: 40, ..decoded };
    // One kernel takes f32 weights and one row, and two to four rows are not measured.
    let single = MatmulShape { precision: Precision::F32, ..decoded };
    let products = HashMap::from([(prompt, 1), (decoded, 9), (single, 1), (MatmulShape { m: 3, ..decoded }, 1)]);
    let within = |budget, limit: usize| {
        let (mut timings, mut stored) = (Vec::new(), Vec::new());
        let on_step = |timing: Option<&Timing>| {
            timings.extend(timing.cloned());
            if timings.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let done = pollster::block_on(tune_within(&gpu, &products, budget, on_step, |tuning| {
            // As a host stores it.
            stored.push(serde_json::to_string(tuning).expect("JSON"));
        }));
        (done, timings, stored)
    };
    let open_with = |stored: &str| {
        set_tuning(&gpu, Tuning::none(&gpu));
        set_tuning(&gpu, serde_json::from_str(stored).expect("a tuning"));
    };
    let covered = || tuning(&gpu).covers(products.keys().copied());

    // Nothing: the products are left to their default kernels, in this run and in the next.
    set_tuning(&gpu, Tuning::none(&gpu));
    assert!(!covered());
    let (done, timings, stored) = within(Duration::ZERO, usize::MAX);
    assert!(done.is_ok() && timings.is_empty() && stored.len() == 2 && covered() && tuning(&gpu).is_empty());
    open_with(&stored[1]);
    let (done, timings, stored) = within(LONG, usize::MAX);
    assert!(done.is_ok() && timings.is_empty() && stored.is_empty() && covered() && tuning(&gpu).is_empty());

    // Stopped within the second product: the first one keeps its result, and the next run measures the second alone.
    set_tuning(&gpu, Tuning::none(&gpu));
    let (done, timings, stored) = within(LONG, 6);
    assert!(matches!(done, Err(Error::Cancelled)), "{done:?}");
    let first = timings.iter().filter(|timing| timing.shape == decoded).count();
    assert!((2..6).contains(&first) && timings[..first].iter().all(|timing| timing.shape == decoded), "{timings:?}");
    open_with(&stored[1]);
    assert!(tuning(&gpu).count([decoded, prompt]) == 1 && tuning(&gpu).covers([decoded]) && !covered());
    let (done, timings, stored) = within(LONG, usize::MAX);
    assert!(done.is_ok() && timings.len() >= 3 && timings.iter().all(|timing| timing.shape.m == 512), "{timings:?}");
    let all = tuning(&gpu);
    assert!(all.len() == 2 && all.count([decoded, prompt]) == 2 && covered());
    // Each is one of those that were measured and gave the right result.
    let kernel = all.kernel(prompt).expect("a kernel");
    assert!(timings.iter().any(|timing| timing.kernel == kernel && timing.correct), "{kernel:?}");
    open_with(&stored[1]);
    assert!(covered() && [decoded, prompt].iter().all(|shape| tuning(&gpu).kernel(*shape) == all.kernel(*shape)));

    // A run that ended during the first measurement has stored that there is nothing to measure.
    open_with(&stored[0]);
    assert!(covered() && tuning(&gpu).count([decoded, prompt]) == 1);

    // A short one: the time of one step more at most. Steps are far shorter than this even on a software adapter.
    set_tuning(&gpu, Tuning::none(&gpu));
    let (started, mut last) = (Instant::now(), Duration::ZERO);
    let mut longest = Duration::ZERO;
    let budget = Duration::from_millis(30);
    let on_step = |_: Option<&Timing>| {
        longest = longest.max(started.elapsed() - last);
        last = started.elapsed();
        ControlFlow::Continue(())
    };
    pollster::block_on(tune_within(&gpu, &products, budget, on_step, |_| ())).expect("some measurements");
    assert!(last <= budget + longest, "{last:?}, with steps of up to {longest:?}");
    pollster::block_on(gpu.check_guards()).expect("nothing around tensors is written");
    set_tuning(&gpu, Tuning::none(&gpu));
}

/// Measurements leave the kernels in use as they are until there is a result: another model may be loading or running.
#[test]
fn measurements_do_not_change_the_kernels_in_use() {
    let gpu = devices().full.lock().unwrap_or_else(PoisonError::into_inner);
    let [shape, other] = [96, 40].map(|n| MatmulShape { precision: Precision::Q4, m: 512, n, k: 64 });
    assert!(force(&gpu, MatmulKernel::Tiled { half: false, columns: 8 }, other.precision, other.n, other.k));
    let before = tuning(&gpu);
    let mut timings = 0;
    measure(&gpu, [shape], TuneOptions::default(), |_| {
        assert_eq!(tuning(&gpu), before);
        timings += 1;
    });
    assert!(timings > 1 && tuning(&gpu).len() == 3);
    set_tuning(&gpu, Tuning::none(&gpu));
}

#[test]
fn stored_measurements_count_only_where_they_hold() {
    let gpu = devices().software.lock().unwrap_or_else(PoisonError::into_inner);
    let shape = MatmulShape { precision: Precision::Q4, m: 128, n: 96, k: 64 };
    let measured = measure(&gpu, [shape], TuneOptions::default(), |_| ());
    let used = |stored: &serde_json::Value| {
        set_tuning(&gpu, Tuning::none(&gpu));
        set_tuning(&gpu, serde_json::from_value(stored.clone()).expect("measurements"));
        tuning(&gpu).len()
    };
    let stored = serde_json::to_value(&measured).expect("JSON");
    assert_eq!(serde_json::from_value::<Tuning>(stored.clone()).expect("measurements"), measured);
    assert_eq!(used(&stored), 1);
    // Kernels that do not exist, or not for this product or this device: damage, or another device that looks the same.
    for kernel in [
        MatmulKernel::Uniform(0),
        MatmulKernel::Subgroup { rows: 3, blocks: 7 },
        MatmulKernel::RowMatvec(RowMatvec { rows: 1, lanes: 8, owned: 2, workgroup: 256 }),
        MatmulKernel::Tiled { half: true, columns: 4 },
        MatmulKernel::Tiled { half: true, columns: 8 },
        MatmulKernel::F16Sums { rows: 8 },
        MatmulKernel::Cooperative(Cooperative { size: 16, tile: 64, step: 32, parts: 4, lanes: 32 }),
        MatmulKernel::Packed { columns: 4 },
        MatmulKernel::Packed { columns: 8 },
        MatmulKernel::Matvec,
    ] {
        assert!(!force(&gpu, kernel, shape.precision, shape.n, shape.k), "{}", kernel.name());
    }
    // Other kernels than these, and another adapter.
    for (key, value) in [("source_hash", serde_json::json!(1)), ("adapter", serde_json::json!("another"))] {
        let mut stored = stored.clone();
        stored[key] = value;
        assert_eq!(used(&stored), 0, "{key}");
    }
    set_tuning(&gpu, Tuning::none(&gpu));
}

/// Adding in f16 is the default on GPUs with packed f16 arithmetic and no matrix units, for many rows and inputs that
/// the reference has in f16.
#[test]
fn only_products_with_inputs_in_f16_are_added_in_f16() {
    for (sizes, packed_f16) in [(vec![], true), (vec![], false), (vec![16], true)] {
        let general = Capabilities::of_hardware(64, sizes.clone());
        let planned = Some(Capabilities { packed_f16, ..general });
        let test = TestOptions { planned, software_adapter: Some(false), ..TestOptions::default() };
        let gpu = common::open_gpu_with(GpuOptions::default().with_test(test));
        for (inputs, precision, m, fits) in [
            (Inputs::F16, Precision::F16, 77, true),
            (Inputs::F16, Precision::Q4, 4096, true),
            (Inputs::F16, Precision::F32, 77, false),
            (Inputs::F16, Precision::F16, 4, false),
            (Inputs::Any, Precision::F16, 77, false),
            (Inputs::Wide, Precision::F16, 77, false),
        ] {
            let weight = Matrix::random(&gpu, precision, 96, 64, 1, "weight").expect("a matrix").with_inputs(inputs);
            let x = Tensor::temporary(&gpu, &[m, 64], "x").expect("a tensor");
            let mut recorder = gpu.dry_run();
            ops::linear(&mut recorder, &x, &weight, Epilogue::default()).expect("a product");
            let report = recorder.into_report();
            let used = report.kernels().keys().any(|kernel| kernel.name == "matmul_f16");
            assert_eq!(used, fits && packed_f16 && sizes.is_empty(), "{inputs:?}, {precision:?}, {m} rows, {sizes:?}");
        }
    }
}

/// Values of x and sums of 32 products beyond f16 become f16's largest number, not infinity.
#[test]
fn sums_beyond_f16_are_clamped() {
    const M: usize = 70;
    const N: usize = 66;
    const K: usize = 68;
    let gpu = devices().full.lock().unwrap_or_else(PoisonError::into_inner);
    let rows: &[u32] = if gpu.capabilities().shader_f16 { &[4, 8] } else { &[] };
    println!("{} kernels", rows.len());
    for &rows in rows {
        assert!(force(&gpu, MatmulKernel::F16Sums { rows }, Precision::F16, N, K));
        // Sums of one sign; large values whose sums are small; values that are too large themselves.
        let values: [fn(usize) -> f32; 3] =
            [|_| -6e4, |column| if column % 2 == 0 { 6e4 } else { -6e4 }, |column| if column < 33 { 1e6 } else { 0.0 }];
        for (x, expected) in values.into_iter().zip([2.0 * -65504.0 - 65504.0, 0.0, 2.0 * 65504.0]) {
            let x: Vec<_> = (0..M * K).map(|index| x(index % K)).collect();
            let values = pollster::block_on(async {
                let x = Tensor::new(&gpu, &[M, K], &x, "x")?;
                let weight = Matrix::new(&gpu, Precision::F16, K, &[1.0; N * K], "weight")?;
                let mut recorder = gpu.record();
                let y = ops::linear(&mut recorder, &x, &weight, Epilogue::default())?;
                let values = y.read_back(&mut recorder);
                recorder.submit()?;
                values.values::<f32>().await
            });
            assert_eq!(values.expect("a product"), vec![expected; M * N], "{rows} rows");
        }
    }
    set_tuning(&gpu, Tuning::none(&gpu));
}

#[test]
fn routed_linear() {
    let mut cases = Vec::new();
    for (number, precision) in Precision::ALL.into_iter().enumerate() {
        let shapes = [(1, 5, 33), (4, 66, 32), (5, 64, 40), (65, 66, 31), (130, 10, 68)];
        for (index, (tokens, n, k)) in shapes.into_iter().enumerate() {
            // As the two products of an expert.
            let is_first = (index + number).is_multiple_of(2);
            let (gated, from_tokens) = (is_first, is_first);
            cases.push(RoutedLinear { tokens, top_k: 2, n: n & !1, k, precision, gated, from_tokens });
        }
    }
    cases.push(RoutedLinear {
        tokens: 7,
        top_k: 3,
        n: 9,
        k: 12,
        precision: Precision::F32,
        gated: false,
        from_tokens: true,
    });
    check_everywhere("routed linear", &boxed(cases));
}

#[test]
fn matrices_hold_what_was_pushed() {
    let mut cases = Vec::new();
    for precision in Precision::ALL {
        for (rows, columns, block) in [(1, 1, 2), (3, 31, 2), (17, 33, 4), (64, 32, 6), (5, 100, 2), (33, 4, 32)] {
            cases.push(MatrixRows { rows, columns, precision, block });
        }
    }
    check_everywhere("matrices", &boxed(cases));
}

#[test]
fn norms() {
    let mut cases = Vec::new();
    for k in [1, 2, 3, 4, 36, 63, 64, 65, 127, 255, 256, 257, 1028, 1031, 2052, 8196] {
        for rows in [1, 3] {
            for (centred, unit_offset) in [(false, false), (false, true), (true, false), (true, true)] {
                let shift = if centred { 3.0 } else { 0.0 };
                cases.push(Norm { rows, k, centred, unit_offset, eps: if centred { 1e-5 } else { 1e-6 }, shift });
            }
        }
    }
    // More rows than a grid has columns.
    cases.push(Norm { rows: 65_537, k: 2, centred: false, unit_offset: false, eps: 1e-6, shift: 0.5 });
    check_everywhere("norms", &boxed(cases.clone()));
    let added = cases.iter().step_by(5).map(|case| NormAdd(*case));
    check_everywhere("norms onto a residual", &boxed(added.collect::<Vec<_>>()));
}

#[test]
fn sampler_steps() {
    let mut cases = Vec::new();
    let plain = ops::Denoise {
        guidance_scale: None,
        denoised: [1.0, -5.9],
        limit: f32::INFINITY,
        next: [0.9, 0.3, 0.0, 0.0, 0.0],
        input_scale: 0.4,
    };
    for count in [1, 3, 63, 64, 65, 127, 1024] {
        let guided = ops::Denoise { guidance_scale: Some(7.5), ..plain };
        let all = ops::Denoise { limit: 0.8, next: [0.9, -0.3, 0.7, -0.2, 1.3], ..guided };
        for (step, copies, noise) in [(plain, 1, false), (guided, 2, false), (all, 2, true), (all, 1, true)] {
            cases.push(Denoise { count, copies, step, noise });
        }
    }
    check_everywhere("sampler steps", &boxed(cases));
    // More workgroups than a grid has columns.
    let large = Denoise { count: 64 * 65_536 + 1, copies: 1, step: plain, noise: false };
    check_on(&devices().base, "a large sampler step", &boxed([large]));
}

#[test]
fn inpainting_steps() {
    let mut cases = Vec::new();
    for pixels in [1, 3, 15, 16, 17, 63, 65, 256] {
        for (channels, copies) in [(4, 1), (4, 2), (1, 2), (3, 1)] {
            let step = ops::Inpaint { kept: [0.7, 1.9], input_scale: 0.4 };
            cases.push(Inpaint { pixels, channels, copies, step });
        }
    }
    // The last step: no noise, and input that nothing reads.
    let step = ops::Inpaint { kept: [1.0, 0.0], input_scale: 1.0 };
    cases.push(Inpaint { pixels: 33, channels: 4, copies: 2, step });
    check_everywhere("inpainting steps", &boxed(cases));
    // More workgroups than a grid has columns.
    let large = Inpaint { pixels: 16 * 65_536 + 1, channels: 4, copies: 1, step };
    check_on(&devices().base, "a large inpainting step", &boxed([large]));
}

const HEAD_DIMS: [usize; 14] = [4, 8, 12, 16, 20, 32, 40, 64, 72, 80, 96, 128, 252, 256];

#[test]
fn attention_over_awkward_shapes() {
    let (mut cases, mut on_hardware) = (Vec::new(), Vec::new());
    // Every head dimension, as a tower (packed), as prefill and as decoding.
    for (index, head_dim) in HEAD_DIMS.into_iter().enumerate() {
        let half = if index % 2 == 0 { Storage::F32 } else { Storage::F16 };
        let other = if index % 2 == 0 { Storage::F16 } else { Storage::F32 };
        let case = |heads, kv_heads, times, keys, causal, storage| Attention {
            heads,
            kv_heads,
            head_dim,
            times,
            keys,
            causal,
            storage,
            exact: true,
        };
        let forms = [
            case(2, 2, 17, 17, false, Storage::Packed),
            case(4, 2, 9, 70, true, half),
            case(3, 1, 1, 300, true, other),
        ];
        // Each is a pipeline of its own, and those are slow to make in software.
        if [4, 20, 64, 96, 256].contains(&head_dim) {
            cases.extend(forms);
        } else {
            on_hardware.extend(forms);
        }
    }
    check_on(&devices().full, "attention with every head", &boxed(on_hardware));
    // Times, keys and groups around the 64 keys of a block, the 16 rows of a workgroup and the 256 keys of a part.
    for (heads, kv_heads) in [(1, 1), (3, 3), (4, 2), (8, 1), (7, 1), (17, 1)] {
        for (times, keys) in [
            (1, 1),
            (1, 2),
            (1, 63),
            (1, 64),
            (1, 65),
            (2, 255),
            (1, 256),
            (1, 257),
            (2, 513),
            (3, 260),
            (16, 17),
            (5, 300),
            (33, 65),
        ] {
            let storage = if times % 2 == 0 { Storage::F32 } else { Storage::F16 };
            let causal = (heads + keys) % 3 != 0;
            cases.push(Attention { heads, kv_heads, head_dim: 20, times, keys, causal, storage, exact: true });
        }
    }
    for times in [1, 2, 15, 16, 17, 63, 64, 65, 130] {
        cases.push(Attention {
            heads: 2,
            kv_heads: 1,
            head_dim: 16,
            times,
            keys: times,
            causal: times % 2 == 0,
            storage: Storage::Packed,
            exact: true,
        });
    }
    check_everywhere("attention", &boxed(cases));
}

/// Scales, caps and windows, over one sequence and over block tables.
#[test]
fn attention_with_scales_caps_and_windows() {
    let forms = [
        ops::Scores { scale: Some(0.5), cap: Some(3.0), window: None },
        ops::Scores { scale: None, cap: None, window: Some(20) },
        ops::Scores { scale: Some(0.0625), cap: Some(50.0), window: Some(1) },
        ops::Scores { scale: None, cap: Some(2.0), window: Some(100) },
    ];
    let shapes = [(16, 1, 300), (24, 9, 70), (64, 70, 70), (16, 2, 700), (256, 9, 70), (24, 1, 9)];
    let mut cases = Vec::new();
    for (index, (head_dim, times, keys)) in shapes.into_iter().enumerate() {
        let storage = if index % 2 == 0 { Storage::F32 } else { Storage::F16 };
        let case = Attention { heads: 4, kv_heads: 2, head_dim, times, keys, causal: true, storage, exact: true };
        cases.extend([0, 1].map(|other| ScoredAttention(case, forms[(index + 2 * other) % forms.len()])));
    }
    let paged = [PagedForm::Decode, PagedForm::Prefill].map(|form| {
        let (sequences, scores) = match form {
            PagedForm::Decode => (vec![(1, 300), (1, 17), (1, 700)], forms[3]),
            PagedForm::Prefill => (vec![(40, 300), (17, 17), (3, 70)], forms[1]),
        };
        let half = form == PagedForm::Decode;
        ScoredPaged(AttentionPaged { heads: 4, kv_heads: 2, head_dim: 64, sequences, half, form }, scores)
    });
    check_everywhere("attention with scales, caps and windows", &boxed(cases));
    check_everywhere("the same over block tables", &boxed(paged.to_vec()));
}

/// Long heads leave workgroup memory for fewer rows on some devices.
#[test]
fn attention_with_long_heads() {
    let mut cases = Vec::new();
    for head_dim in [128, 132, 160, 164, 256] {
        for (heads, times, keys) in [(8, 1, 300), (5, 1, 65), (1, 9, 140), (2, 9, 70)] {
            for storage in [Storage::F16, Storage::F32] {
                let causal = times > 1;
                cases.push(Attention { heads, kv_heads: 1, head_dim, times, keys, causal, storage, exact: true });
            }
        }
    }
    let Devices { full, small, .. } = devices();
    check_on_each([full, small], "attention with long heads", &boxed(cases));
}

#[test]
fn attention_drawn() {
    let storage = prop::sample::select(vec![Storage::Packed, Storage::F32, Storage::F16]);
    let strategy = (1..4usize, 1..5usize, 1..20usize, 1..24usize, 0..400usize, any::<bool>(), storage).prop_map(
        |(kv_heads, group, quarter, times, before, causal, storage)| Attention {
            heads: kv_heads * group,
            kv_heads,
            head_dim: 4 * quarter,
            times,
            keys: if storage == Storage::Packed { times } else { times + before },
            causal,
            storage,
            exact: true,
        },
    );
    drawn(20, strategy);
}

#[test]
fn attention_of_several_sequences() {
    let mut cases = Vec::new();
    for (sequences, heads, head_dim, times, keys) in [
        (1, 1, 16, 1, Some(77)),
        (2, 2, 16, 35, Some(77)),
        (2, 3, 64, 64, Some(7)),
        (3, 1, 40, 2, Some(300)),
        (1, 2, 64, 130, Some(1)),
        (2, 2, 64, 300, None),
        (3, 2, 20, 5, None),
        (2, 1, 128, 33, None),
        (2, 1, 8, 1, None),
    ] {
        cases.push(AttentionBatched { sequences, heads, head_dim, times, keys, exact: true });
    }
    check_everywhere("attention of several sequences", &boxed(cases));
}

#[test]
fn attention_of_a_batch_with_one_cache() {
    let mut cases = Vec::new();
    for (heads, kv_heads, head_dim, half) in [(2, 2, 20, false), (6, 3, 64, false), (6, 3, 64, true), (8, 1, 256, true)]
    {
        let suffixes = [1, 1, 1];
        let base =
            AttentionSegments { heads, kv_heads, head_dim, prefix: 0, suffixes, generated: 0, half, exact: true };
        for (prefix, suffixes) in [(0, [1, 2, 65]), (1, [17, 3, 1]), (300, [2, 1, 40])] {
            cases.extend([0, 1, 70].map(|generated| AttentionSegments { prefix, suffixes, generated, ..base }));
        }
    }
    check_everywhere("attention of a batch", &boxed(cases));
}

/// On devices with cooperative matrices; on others the usual kernels run. Lavapipe of Mesa 26 has matrices, and is
/// treated as hardware here.
#[test]
fn attention_on_matrix_units() {
    let full = &devices().full;
    {
        let gpu = full.lock().unwrap_or_else(PoisonError::into_inner);
        pollster::block_on(mgm::tuning::check_matrix_units(&gpu)).expect("a check");
        let has_matrices = !gpu.capabilities().cooperative_sizes.is_empty();
        assert_eq!(mgm::tuning::has_attention_on_matrix_units(&gpu), has_matrices);
    }
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    // Rows and keys around blocks; heads with and without a rest, and split among subgroups; groups of heads.
    for (heads, kv_heads, head_dim, times, keys, causal, storage) in [
        (2, 2, 64, 33, 33, false, Storage::Packed),
        (4, 2, 64, 31, 129, true, Storage::F16),
        (7, 1, 72, 9, 65, true, Storage::F16),
        (3, 3, 96, 16, 96, true, Storage::F16),
        (8, 4, 128, 11, 300, true, Storage::F16),
        (8, 1, 256, 5, 47, true, Storage::F16),
        // One block of rows: the keys are split, and rows of the last splits attend to none of theirs.
        (2, 1, 64, 9, 600, true, Storage::F16),
    ] {
        let (times, keys) = if storage == Storage::Packed { (times, times) } else { (times, keys.max(times)) };
        cases.push(Box::new(Attention { heads, kv_heads, head_dim, times, keys, causal, storage, exact: false }));
    }
    let (heads, head_dim, times, keys) = (2, 64, 35, Some(77));
    cases.push(Box::new(AttentionBatched { sequences: 2, heads, head_dim, times, keys, exact: false }));
    for (prefix, suffixes, generated) in [(300, [2, 1, 40], 0), (1, [17, 3, 1], 70)] {
        let (heads, kv_heads, head_dim) = (6, 2, 64);
        let (half, exact) = (true, false);
        cases.push(Box::new(AttentionSegments { heads, kv_heads, head_dim, prefix, suffixes, generated, half, exact }));
    }
    check_on(full, "attention on matrix units", &cases);
}

/// Odd numbers of rows, keys around blocks and splits, grouped heads.
#[test]
fn attention_over_block_tables() {
    let mut cases = Vec::new();
    let decode: [&[usize]; 4] = [&[1], &[5000], &[1, 16, 17, 255, 256, 257, 1025], &[300; 16]];
    let prefill: [&[(usize, usize)]; 4] = [&[(1, 1)], &[(16, 16), (3, 35)], &[(70, 333)], &[(33, 33), (1, 64), (5, 5)]];
    for (heads, kv_heads, head_dim, half) in
        [(3, 3, 64, true), (9, 3, 64, false), (8, 1, 256, true), (7, 1, 80, false), (5, 1, 20, true)]
    {
        let base = AttentionPaged { heads, kv_heads, head_dim, sequences: Vec::new(), half, form: PagedForm::Decode };
        cases.extend(decode.map(|keys| {
            let sequences = keys.iter().map(|keys| (1, *keys)).collect();
            AttentionPaged { sequences, ..base.clone() }
        }));
        // Several queries of a sequence, such as drafts to verify.
        cases.push(AttentionPaged { sequences: vec![(3, 258), (1, 9), (5, 5)], ..base.clone() });
        cases.extend(prefill.map(|sequences| AttentionPaged {
            sequences: sequences.to_vec(),
            form: PagedForm::Prefill,
            ..base.clone()
        }));
    }
    check_everywhere("attention over block tables", &boxed(cases));
}

/// What else is in a step changes no bit of a result.
#[test]
fn attention_over_block_tables_is_the_same_in_any_step() {
    let devices = [&devices().full, &devices().software, &devices().base];
    for gpu in devices {
        let gpu = gpu.lock().unwrap_or_else(PoisonError::into_inner);
        for form in [PagedForm::Decode, PagedForm::Prefill] {
            let values = |sequences: &[(usize, usize)]| {
                let sequences = sequences.to_vec();
                let case = AttentionPaged { heads: 6, kv_heads: 2, head_dim: 64, sequences, half: true, form };
                pollster::block_on(case.run(&gpu)).expect("a result")
            };
            // A row of each sequence, of inputs that depend on its lengths only.
            let (row, others) = (6 * 64, [(1, 300), (1, 16), (1, 700)]);
            let together = values(&others);
            for (index, alone) in others.into_iter().enumerate() {
                assert_eq!(values(&[alone]), together[index * row..][..row], "{form:?} of {alone:?}");
            }
        }
    }
}

#[test]
fn block_tables_outside_the_cache_are_rejected() {
    let gpu = common::open_gpu();
    let cache = ops::KvCache::new(&gpu, 32, 8, false).expect("a cache");
    let scores = ops::Scores::default();
    let layer = ops::Attention { heads: 1, kv_heads: 1, head_dim: 8, causal: true, exact: true, scores };
    let attend = |queries: usize, keys, blocks: &[u32]| {
        let mut tables = BlockTables::new(&gpu, 1, 4, 2).expect("tables");
        tables.set(&gpu, &[PagedSequence { queries, keys, blocks }])?;
        let rows = Tensor::zeros(&gpu, &[queries, 8], "queries").expect("queries");
        ops::attention_paged(&mut gpu.record(), layer, &rows, &cache, &tables, PagedForm::Decode).map(drop)
    };
    assert!(attend(3, 20, &[1, 0]).is_ok());
    // What is after the keys is not used.
    assert!(attend(1, 16, &[1, 2]).is_ok());
    for (queries, keys, blocks) in
        [(1, 20, [1, 2].as_slice()), (1, 17, &[0]), (0, 5, &[0]), (3, 2, &[0]), (5, 17, &[0, 1])]
    {
        assert!(attend(queries, keys, blocks).is_err(), "{queries} queries over {keys} keys in {blocks:?}");
    }
}

#[test]
fn segments_outside_the_cache_are_rejected() {
    let gpu = common::open_gpu();
    let cache = ops::KvCache::new(&gpu, 10, 8, false).expect("a cache");
    let scores = ops::Scores::default();
    let layer = ops::Attention { heads: 1, kv_heads: 1, head_dim: 8, causal: true, exact: true, scores };
    let queries = Tensor::zeros(&gpu, &[3, 8], "queries").expect("queries");
    let segment = |queries, start, step, count, causal| AttentionSegment {
        queries,
        keys: StridedRows { start, step, count },
        causal,
    };
    let attend = |passes: &[Vec<AttentionSegment>]| {
        let mut recorder = gpu.record();
        ops::attention_segments(&mut recorder, layer, &queries, &cache, passes).is_ok()
    };
    assert!(attend(&[
        vec![segment(0..3, 0, 1, 10, true)],
        vec![segment(0..1, 9, 5, 1, false), segment(1..3, 1, 4, 3, false)]
    ]));
    assert!(!attend(&[]));
    assert!(!attend(&[vec![]]));
    assert!(!attend(&[vec![segment(0..2, 0, 1, 10, false)]]), "a query without a segment");
    assert!(!attend(&[vec![segment(0..2, 0, 1, 4, false), segment(1..3, 0, 1, 4, false)]]), "a query with two");
    assert!(!attend(&[vec![segment(0..4, 0, 1, 4, false)]]), "more queries than there are");
    assert!(!attend(&[vec![segment(0..3, 0, 1, 11, false)]]), "keys after the end");
    assert!(!attend(&[vec![segment(0..3, 1, 5, 3, false)]]), "keys after the end, in steps");
    assert!(!attend(&[vec![segment(0..3, 0, 1, 0, false)]]), "no keys");
    assert!(!attend(&[vec![segment(0..3, 0, 1, 2, true)]]), "a query before the first key");
}

const CONV_MODES: [ConvMode; 4] = [ConvMode::Same, ConvMode::Stride2, ConvMode::Stride2PadEnd, ConvMode::Upsample2];

#[test]
fn convolutions_over_awkward_shapes() {
    let mut cases = Vec::new();
    // Maps of one pixel and of lines, channels around the fours, the 32 of a quantised group and the 16 of a step;
    // results around the tiles' 64 and the software kernels' 32 and 256 columns.
    for (index, (height, width, channels, out)) in [
        (1, 1, 4, 1),
        (2, 2, 32, 3),
        (1, 17, 8, 65),
        (13, 2, 36, 33),
        (9, 9, 64, 4),
        (5, 7, 60, 130),
        (8, 8, 96, 64),
        (16, 33, 12, 5),
        (3, 65, 128, 31),
    ]
    .into_iter()
    .enumerate()
    {
        for (place, mode) in CONV_MODES.into_iter().enumerate() {
            let precision = Precision::ALL[(index + place) % Precision::ALL.len()];
            let base = Convolution { height, width, channels, out, mode, ..Convolution::default() };
            let several = Convolution { images: 2 + index % 2, precision, ..base };
            if mode == ConvMode::Stride2PadEnd && (height < 2 || width < 2) {
                continue;
            }
            cases.extend((index % CONV_MODES.len() == place).then_some(base));
            cases.push(Convolution { precision: Precision::F16, side: 1, ..base });
            cases.push(Convolution { biases: true, residual: place % 2 == 0, ..several });
            cases.push(Convolution {
                odd: mode == ConvMode::Upsample2,
                activation: Some(Activation::Silu),
                residual: true,
                ..several
            });
        }
    }
    check_everywhere("convolutions", &boxed(cases));
}

#[test]
fn convolutions_in_several_pieces() {
    let mut cases = Vec::new();
    for precision in Precision::ALL {
        // 16 rows of 64 columns a shard.
        cases.push(Convolution {
            images: 2,
            height: 2,
            width: 3,
            channels: 64,
            out: 70,
            side: 1,
            precision,
            biases: true,
            residual: true,
            ..Convolution::default()
        });
    }
    for device in &devices().shards {
        check_on(device, "shards of convolutions", &boxed(cases.clone()));
    }
}

#[test]
fn convolutions_drawn() {
    let shape = (1..4usize, 1..20usize, 1..20usize, 1..25usize, 1..80usize);
    let kind = (prop::sample::select(CONV_MODES.to_vec()), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let strategy = (shape, kind, precision(), prop::sample::select(ACTIVATIONS.to_vec())).prop_map(
        |((images, height, width, fours, out), (mode, wide, odd, biases, residual), precision, activation)| {
            let after = usize::from(mode == ConvMode::Stride2PadEnd);
            Convolution {
                images,
                height: height + after,
                width: width + after,
                channels: 4 * fours,
                out,
                side: if wide { 3 } else { 1 },
                mode,
                odd: odd && mode == ConvMode::Upsample2,
                precision,
                activation,
                biases,
                residual,
            }
        },
    );
    drawn(20, strategy);
}

#[test]
fn group_norms() {
    let mut cases = boxed(Vec::<GroupNorm>::new());
    for (images, height, width, channels, groups, shift) in [
        (1, 1, 2, 4, 1, 0.0),
        (2, 3, 5, 32, 32, 0.0),
        (1, 16, 16, 64, 32, 1.0),
        (3, 7, 9, 60, 6, 100.0),
        (2, 8, 8, 320, 32, 0.5),
        (1, 40, 3, 132, 33, 1000.0),
        (2, 1, 130, 960, 32, 0.0),
        // More rows than row blocks.
        (1, 600, 3, 8, 2, 2.0),
        (2, 257, 2, 4, 4, 1.0),
    ] {
        for silu in [false, true] {
            cases.push(Box::new(GroupNorm { images, height, width, channels, groups, silu, shift }));
        }
    }
    check_everywhere("group norms", &cases);
}

#[test]
fn maps_side_by_side_and_softmax() {
    let mut cases = boxed(Vec::<Concatenate>::new());
    for (pixels, channels) in [(1, [4, 4]), (127, [8, 124]), (129, [128, 4]), (300, [60, 68])] {
        cases.push(Box::new(Concatenate { pixels, channels }));
    }
    for (rows, k, stride) in [(1, 1, 1), (3, 1, 4), (2, 255, 256), (5, 257, 260), (65_537, 2, 4), (3, 4099, 4100)] {
        cases.push(Box::new(Softmax { rows, k, stride }));
    }
    check_everywhere("maps", &cases);
}

#[test]
fn rotary_embedding_after_a_product() {
    let norms = [None, Some([false, false]), Some([false, true]), Some([true, false])];
    let mut cases = Vec::new();
    for (index, (head_dim, rotated)) in
        [(8, 8), (16, 4), (24, 18), (64, 64), (80, 20), (256, 0)].into_iter().enumerate()
    {
        for norm in norms {
            for (placed, query_factor) in [(false, false), (true, true), (index % 2 == 0, index % 2 != 0)] {
                let (half, position) = (cases.len() % 3 == 0, 7);
                let (heads, kv_heads, times) = (6, 2, 5);
                cases.push(RopeRows {
                    heads,
                    kv_heads,
                    head_dim,
                    rotated,
                    times,
                    position,
                    norm,
                    query_factor,
                    half,
                    placed,
                });
            }
        }
    }
    check_everywhere("rotary after a product", &boxed(cases));
}

#[test]
fn rotary_embedding() {
    let mut cases = Vec::new();
    for head_dim in HEAD_DIMS {
        for half in [false, true] {
            let precision = Precision::ALL[cases.len() / 2 % Precision::ALL.len()];
            let case = Rope {
                heads: 3,
                kv_heads: 1,
                head_dim,
                times: 5,
                position: 7,
                k: 68,
                precision,
                half,
                freq_factors: head_dim % 8 == 0,
            };
            cases.push(Rope { k: 33, ..case });
            cases.push(Rope { heads: 2, kv_heads: 2, times: 1, position: 0, ..case });
        }
    }
    for precision in Precision::ALL {
        let case = Rope {
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            times: 1,
            position: 3,
            k: 64,
            precision,
            half: true,
            freq_factors: true,
        };
        cases.extend([case, Rope { times: 15, ..case }]);
    }
    check_everywhere("rotary", &boxed(cases.clone()));
    let placed = cases.iter().filter(|case| case.k.is_multiple_of(4)).step_by(2).map(|case| PlacedRope(*case));
    check_everywhere("rotary, rows at any place", &boxed(placed));
    for device in &devices().shards {
        check_on(device, "rotary in shards", &boxed(cases.iter().copied().filter(|case| case.k == 64)));
    }
}

#[test]
fn gathers() {
    let mut cases = Vec::new();
    for precision in Precision::ALL {
        for (rows, columns, count, start) in
            [(1, 1, 1, 0), (7, 3, 5, 2), (64, 33, 65, 0), (5, 64, 3, 1), (40, 258, 9, 4)]
        {
            cases.push(Gather { rows, columns, precision, count, start });
        }
    }
    let mut cases = boxed(cases);
    cases.extend(boxed([(1, 4, 1), (9, 36, 70)].map(|(rows, columns, count)| GatherRows { rows, columns, count })));
    check_everywhere("gather", &cases);
}

#[test]
fn convolutions() {
    let mut cases = Vec::new();
    for planar in [false, true] {
        for (height, width, channels, size, first, count) in [
            (1, 1, 1, 1, 0, 1),
            (14, 28, 3, 14, 1, 1),
            (13, 11, 3, 4, 2, 4),
            (6, 10, 5, 2, 0, 15),
            (29, 31, 2, 7, 3, 13),
        ] {
            cases.push(Patches { height, width, channels, size, planar, first, count });
        }
    }
    let mut cases = boxed(cases);
    for (height, width, channels) in
        [(1, 1, 1), (2, 3, 5), (7, 7, 4), (3, 9, 65), (11, 4, 3), (16, 17, 8), (5, 13, 1), (9, 8, 4), (4, 24, 5)]
    {
        cases.push(Box::new(Depthwise { height, width, channels }));
    }
    for (from, channels, to) in [
        ((1, 1), 1, (3, 5)),
        ((3, 5), 2, (1, 1)),
        ((7, 9), 3, (14, 18)),
        ((24, 24), 5, (11, 13)),
        ((5, 3), 65, (5, 3)),
        ((2, 40), 3, (9, 7)),
    ] {
        cases.push(Box::new(Resize { from, channels, to }));
    }
    check_everywhere("convolutions", &cases);
}

/// A map for a tile of `side` x `side` tokens at `origin`, with a border, its sides multiples of the largest ratio.
fn map(
    side: usize,
    window: usize,
    origin: (usize, usize),
    pool: usize,
    channels: [usize; 4],
    ratios: [usize; 4],
) -> Map {
    let multiple = ratios[3].max(pool);
    let height = ((origin.0 + side * window) * pool).next_multiple_of(multiple);
    let width = ((origin.1 + side * window) * pool).next_multiple_of(multiple) + multiple;
    Map { height, width, channels, ratios, pool }
}

#[test]
fn mining_against_its_definition() {
    let mut cases = boxed(Vec::<Mining>::new());
    let released = [1, 2, 4, 8];
    let mut add = |side, window, origin, pool, channels, ratios| {
        let map = map(side, window, origin, pool, channels, ratios);
        cases.push(Box::new(MiningStats { map }));
        cases.push(Box::new(Mining { map, side, window, origin }));
    };
    // Each window is a pipeline of its own, and those are slow to make in software.
    for window in [1, 2, 3, 4, 7, 8, 11, 16] {
        add(2, window, (0, 0), 1, [5, 7, 3, 2], released);
        // Not on a multiple of the window, as tiles of other grids are.
        add(1, window, (3, 5), 1, [3, 4, 5, 6], released);
        if [1, 3, 7, 8].contains(&window) {
            add(2, window, (1, 2), 2, [4, 3, 5, 7], released);
        }
    }
    // A tile inside a larger map; stages of unusual ratios; more channels than a workgroup has invocations.
    add(3, 8, (8, 16), 1, [17, 16, 33, 31], released);
    add(2, 8, (16, 0), 2, [16, 9, 8, 15], released);
    add(2, 6, (0, 6), 1, [3, 3, 3, 3], [1, 3, 6, 12]);
    add(2, 5, (1, 0), 1, [2, 3, 2, 3], [1, 1, 2, 2]);
    add(1, 4, (0, 4), 1, [257, 300, 64, 520], released);
    // Channels by fours.
    add(1, 4, (0, 4), 1, [264, 300, 64, 520], released);
    add(2, 8, (1, 2), 2, [8, 16, 4, 12], released);
    add(2, 3, (1, 2), 1, [8, 4, 4, 12], [1, 3, 6, 12]);
    check_everywhere("mining", &cases);
}

#[test]
fn routing() {
    let mut cases = boxed(Vec::<Route>::new());
    for (tokens, experts, top_k) in
        [(1, 1, 1), (1, 8, 2), (3, 6, 2), (64, 8, 2), (65, 33, 3), (131, 64, 4), (5, 64, 64), (2, 32, 5)]
    {
        cases.push(Box::new(Route { tokens, experts, top_k }));
        cases.push(Box::new(Combine { tokens, experts, top_k, width: 35 }));
        cases.push(Box::new(RouteOfAll(Route { tokens, experts, top_k })));
        cases.push(Box::new(GatedAdd { tokens, width: 3 * experts }));
        cases.push(Box::new(Softcap { count: tokens * experts, cap: 30.0 }));
    }
    cases.push(Box::new(Route { tokens: 70, experts: 256, top_k: 8 }));
    check_everywhere("routing", &cases);
}

#[test]
fn sampling() {
    let mut cases = boxed(Vec::<Argmax>::new());
    for vocab in [1, 2, 3, 255, 256, 257, 1000, 4096, 4097, 12_289, 128_256] {
        cases.extend([false, true].map(|together| Box::new(Argmax { vocab, rows: 5, together }) as Box<dyn Case>));
    }
    for (vocab, temperature, top_k, top_p) in [
        (1, 1.0, 0, 1.0),
        (2, 1.0, 0, 1.0),
        (255, 0.7, 0, 1.0),
        (257, 1.0, 1, 1.0),
        (256, 1.3, 7, 1.0),
        (1000, 0.2, 0, 0.7),
        (1000, 1.0, 50, 0.9),
        (1000, 1.0, 999, 0.5),
        (1000, 1.0, 1000, 0.999),
        (1000, 2.0, 2000, 0.1),
        (1000, 1.0, 50, 1e-6),
        (4099, 0.6, 0, 0.95),
        (4099, 0.6, 40, 1.0),
        (20_001, 0.2, 50, 1.0),
        (20_001, 1.0, 0, 1.0),
        (20_001, 1.0, 500, 0.9),
        (20_001, 0.5, 0, 0.5),
        (1_200_000, 0.8, 1000, 0.8),
    ] {
        for tied in [false, true] {
            let draws = if vocab > 1_000_000 { 4 } else { 24 };
            cases.push(Box::new(Sample { vocab, temperature, top_k, top_p, tied, draws }));
        }
    }
    for (vocab, rows) in [(1, 3), (2, 2), (31, 7), (33, 16), (1000, 7), (4097, 5), (20_001, 8), (128_256, 3)] {
        for (greedy, tied) in [(false, false), (false, true), (true, true)] {
            cases.push(Box::new(SampleRows { vocab, rows, greedy, tied, draws: if greedy { 1 } else { 6 } }));
        }
    }
    check_everywhere("sampling", &cases);
}

#[test]
fn logit_processors() {
    let mut cases = boxed(Vec::<Adjust>::new());
    for (vocab, rows, biases) in [(1, 1, 1), (2, 3, 0), (63, 5, 70), (257, 16, 3), (1000, 2, 300), (32_001, 3, 20)] {
        cases.push(Box::new(Adjust { vocab, rows, biases }));
    }
    for (vocab, rows, top) in
        [(1, 1, 20), (19, 2, 20), (255, 3, 1), (1000, 16, 5), (4096, 1, 0), (4097, 2, 20), (128_256, 3, 20)]
    {
        cases.extend([false, true].map(|tied| Box::new(Logprobs { vocab, rows, top, tied }) as Box<dyn Case>));
    }
    check_everywhere("logit processors", &cases);
}

#[derive(serde::Deserialize)]
struct Processed {
    prompt: Vec<u32>,
    answer: Vec<u32>,
    cases: Vec<ProcessedCase>,
}

#[derive(serde::Deserialize)]
#[serde(default)]
struct ProcessedCase {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    logit_bias: Vec<(u32, f32)>,
    min_tokens: usize,
    stop: Vec<u32>,
    logits: Vec<f32>,
    adjusted: Vec<Option<f32>>,
    probabilities: Vec<f64>,
}

impl Default for ProcessedCase {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            min_tokens: 0,
            stop: Vec::new(),
            logits: Vec::new(),
            adjusted: Vec::new(),
            probabilities: Vec::new(),
        }
    }
}

/// All cases of tests/reference/make_sampling.py at once, a row each: the logits after bias and penalties as
/// transformers' processors make them, and every draw in the middle of the part of a token that its warpers leave.
#[test]
fn logits_are_processed_as_by_transformers() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ops/sampling.json");
    let text = std::fs::read_to_string(file).expect("the file");
    let Processed { prompt, answer, cases } = serde_json::from_str(&text).expect("its format");
    let (rows, vocab) = (cases.len(), cases[0].logits.len());
    let sampling = |case: &ProcessedCase| {
        Sampling::GREEDY
            .with_temperature(case.temperature)
            .with_top_k(case.top_k)
            .with_top_p(case.top_p)
            .with_min_p(case.min_p)
            .with_repetition_penalty(case.repetition_penalty)
            .with_presence_penalty(case.presence_penalty)
            .with_frequency_penalty(case.frequency_penalty)
    };
    let counts = ops::token_counts(vocab, prompt, answer.iter().copied()).repeat(rows);
    let penalties: Vec<RowPenalties> = cases
        .iter()
        .enumerate()
        .map(|(row, case)| RowPenalties { sampling: sampling(case), sequence: Some(row) })
        .collect();
    let mut biases = Vec::new();
    for (row, case) in cases.iter().enumerate() {
        biases.extend(case.logit_bias.iter().map(|(token, bias)| RowBias { row, token: *token, bias: *bias }));
        let forbidden = case.stop.iter().filter(|_| answer.len() < case.min_tokens);
        biases.extend(forbidden.map(|token| RowBias { row, token: *token, bias: ops::FORBID }));
    }
    // The middle of each token's part, by row.
    let middles: Vec<Vec<(usize, f64)>> = cases
        .iter()
        .map(|case| {
            let mut sum = 0.0;
            let parts = case.probabilities.iter().enumerate().map(|(token, share)| {
                sum += share;
                (token, sum - share / 2.0, *share)
            });
            parts.filter(|(_, _, share)| *share > 1e-4).map(|(token, middle, _)| (token, middle)).collect()
        })
        .collect();
    let draws = middles.iter().map(Vec::len).max().expect("cases");
    let devices = devices();
    for device in [&devices.full, &devices.software, &devices.base] {
        let gpu = device.lock().unwrap_or_else(PoisonError::into_inner);
        let mut recorder = gpu.record();
        let logits: Vec<f32> = cases.iter().flat_map(|case| case.logits.clone()).collect();
        let logits = Tensor::upload(&mut recorder, &[rows, vocab], &logits, "logits").expect("memory");
        let counts = Tensor::upload(&mut recorder, &[rows, vocab], &counts, "counts").expect("memory");
        let sampled = Tensor::zeros(&gpu, &[draws * rows], "sampled").expect("memory");
        ops::adjust(&mut recorder, &logits, &biases, &penalties, Some(&counts)).expect("a recording");
        for draw in 0..draws {
            let row = |(case, middles): (&ProcessedCase, &Vec<(usize, f64)>)| RowSampling {
                sampling: sampling(case),
                draw: middles[draw % middles.len()].1 as f32,
                mask: None,
            };
            let rows_sampling: Vec<RowSampling> = cases.iter().zip(&middles).map(row).collect();
            ops::sample_rows(&mut recorder, &logits, &rows_sampling, None, &sampled, draw * rows).expect("a recording");
        }
        let (logits, sampled) = (logits.read_back(&mut recorder), sampled.read_back(&mut recorder));
        recorder.submit().expect("a submission");
        let logits: Vec<f32> = pollster::block_on(logits.values()).expect("logits");
        let sampled: Vec<u32> = pollster::block_on(sampled.values()).expect("ids");
        for (row, case) in cases.iter().enumerate() {
            for (token, expected) in case.adjusted.iter().enumerate() {
                let found = logits[row * vocab + token];
                let close = expected.map_or(found < -1e30, |expected| (found - expected).abs() < 4e-6);
                assert!(close, "case {row}, token {token}: {found}, expected {expected:?}");
            }
            for draw in 0..draws {
                let expected = middles[row][draw % middles[row].len()].0;
                assert_eq!(sampled[draw * rows + row] as usize, expected, "case {row}, draw {draw}");
            }
        }
    }
}

/// 20,000 draws of every control, each in its own row: a token is drawn within 5 sigma of its probability in f64.
#[test]
fn sampling_frequencies() {
    const DRAWS: usize = 20_000;
    let vocab = 37;
    let mut random = Random::new("frequencies");
    let logits = random.values(vocab, 3.0);
    let base = Sampling::GREEDY.with_temperature(0.9);
    let mask: Vec<u32> = vec![0x5a5a_3c3c, 0x15];
    let counts = ops::token_counts(vocab, [1, 2, 3, 30], [2, 2, 5, 36, 8, 8, 8]);
    let bias = [(4u32, 2.5f32), (5, -1.5), (9, ops::FORBID)];
    let settings = [
        (base, false),
        (base.with_top_k(9), false),
        (base.with_top_p(0.75), false),
        (base.with_min_p(0.08), false),
        (base, true),
        (base.with_repetition_penalty(1.4), false),
        (base.with_presence_penalty(1.1), false),
        (base.with_frequency_penalty(0.6), false),
        (
            base.with_repetition_penalty(1.2)
                .with_frequency_penalty(0.3)
                .with_top_k(20)
                .with_top_p(0.95)
                .with_min_p(0.02),
            true,
        ),
    ];
    // A row for each setting, as in a step of the engine: each with its own controls, biases and counts.
    let rows = settings.len();
    let gpu = devices().software.lock().unwrap_or_else(PoisonError::into_inner);
    let mut recorder = gpu.record();
    let adjusted = Tensor::upload(&mut recorder, &[rows, vocab], &logits.repeat(rows), "logits").expect("memory");
    let all_counts = Tensor::upload(&mut recorder, &[rows, vocab], &counts.repeat(rows), "counts").expect("memory");
    let biases: Vec<RowBias> =
        (0..rows).flat_map(|row| bias.map(|(token, bias)| RowBias { row, token, bias })).collect();
    let penalties: Vec<RowPenalties> = settings
        .iter()
        .enumerate()
        .map(|(row, (sampling, _))| RowPenalties { sampling: *sampling, sequence: Some(rows - 1 - row) })
        .collect();
    ops::adjust(&mut recorder, &adjusted, &biases, &penalties, Some(&all_counts)).expect("a recording");
    let adjusted = adjusted.read_back(&mut recorder);
    recorder.submit().expect("a submission");
    let adjusted: Vec<f32> = pollster::block_on(adjusted.values()).expect("logits");

    // Many copies of these rows at once.
    const COPIES: usize = 200;
    let mut recorder = gpu.record();
    let masks = Tensor::upload(&mut recorder, &[1, 2], &mask, "mask").expect("memory");
    let shape = [COPIES * rows, vocab];
    let many = Tensor::upload(&mut recorder, &shape, &adjusted.repeat(COPIES), "logits").expect("memory");
    let sampled = Tensor::zeros(&gpu, &[DRAWS * rows], "sampled").expect("memory");
    for part in 0..DRAWS / COPIES {
        let copies = std::iter::repeat_n(settings, COPIES).flatten();
        let controls: Vec<RowSampling> = copies
            .map(|(sampling, masked)| RowSampling { sampling, draw: random.unit() as f32, mask: masked.then_some(0) })
            .collect();
        ops::sample_rows(&mut recorder, &many, &controls, Some(&masks), &sampled, part * COPIES * rows)
            .expect("a recording");
    }
    let sampled = sampled.read_back(&mut recorder);
    recorder.submit().expect("a submission");
    let mut found = vec![vec![0usize; vocab]; rows];
    for (index, id) in pollster::block_on(sampled.values::<u32>()).expect("ids").into_iter().enumerate() {
        found[index % rows][id as usize] += 1;
    }

    for (index, ((sampling, masked), found)) in settings.into_iter().zip(found).enumerate() {
        // f64: bias, penalties, mask, temperature, cut-offs.
        let mut expected: Vec<f64> = logits.iter().copied().map(f64::from).collect();
        for (token, bias) in bias {
            expected[token as usize] += if bias <= ops::FORBID { f64::NEG_INFINITY } else { f64::from(bias) };
        }
        for (logit, seen) in expected.iter_mut().zip(&counts) {
            if *seen > 0 {
                let repetition = f64::from(sampling.repetition_penalty);
                *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            }
            let count = f64::from(seen & 0x7fff_ffff);
            let presence = if count > 0.0 { f64::from(sampling.presence_penalty) } else { 0.0 };
            *logit -= f64::from(sampling.frequency_penalty) * count + presence;
        }
        let allowed = |token: usize| !masked || mask[token / 32] >> (token % 32) & 1 == 1;
        let mut order: Vec<usize> = (0..vocab).filter(|token| allowed(*token)).collect();
        order.sort_by(|a, b| expected[*b].total_cmp(&expected[*a]));
        if sampling.top_k > 0 {
            order.truncate(sampling.top_k as usize);
        }
        let largest = expected[order[0]];
        let weight = |token: usize| ((expected[token] - largest) / f64::from(sampling.temperature)).exp();
        let total: f64 = order.iter().map(|token| weight(*token)).sum();
        let mut sum = 0.0;
        let kept = order.iter().take_while(|token| {
            let more = sum < f64::from(sampling.top_p) * total;
            sum += weight(**token);
            more
        });
        let mut kept: Vec<usize> = kept.copied().collect();
        kept.retain(|token| weight(*token) >= f64::from(sampling.min_p));
        let total: f64 = kept.iter().map(|token| weight(*token)).sum();
        for (token, found) in found.into_iter().enumerate() {
            let share = if kept.contains(&token) { weight(token) / total } else { 0.0 };
            let sigma = (DRAWS as f64 * share * (1.0 - share)).sqrt();
            let error = (found as f64 - DRAWS as f64 * share).abs();
            assert!(error <= 5.0 * sigma, "settings {index}, token {token}: {found} of {DRAWS}, expected {share}");
        }
    }
}

#[test]
fn the_self_check_passes() {
    check_everywhere("self-check", &self_check());
}
