//! Every kernel that can be dispatched, compiled for every backend: by naga to SPIR-V, MSL and HLSL
//! with nothing but WebGPU's default capabilities, and its text parsed by tint, Chrome's compiler, where that is
//! installed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use mgm::gpu::Kernel;
use mgm::ops::specialisations;
use naga::back::pipeline_constants::process_overrides;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage};

/// WebGPU's default limits.
const MAX_WORKGROUP_BYTES: u32 = 16384;
const MAX_INVOCATIONS: u32 = 256;
const MAX_STORAGE_BUFFERS: usize = 8;

fn describe(kernel: &Kernel) -> String {
    let sources: Vec<_> = kernel.sources.iter().map(|source| source.name).collect();
    format!("{} {:?} of {}", kernel.name, kernel.overrides, sources.join(" + "))
}

fn validate(kernel: &Kernel, module: &Module) -> ModuleInfo {
    // unpack2x16float and its like are part of WebGPU's core, but not of every target of naga.
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SUBGROUP, kernel.uses_subgroups());
    capabilities.set(Capabilities::SHADER_FLOAT16, kernel.uses_f16());
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, kernel.uses_cooperative_matrices());
    Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(module)
        .unwrap_or_else(|error| panic!("{}: {}", describe(kernel), error.emit_to_string(&kernel.wgsl(false))))
}

/// The module with its overrides set.
fn specialise(kernel: &Kernel, module: &Module, info: &ModuleInfo) -> (Module, ModuleInfo) {
    let overrides: HashMap<_, _> =
        kernel.overrides.iter().map(|(name, value)| ((*name).to_owned(), f64::from(*value))).collect();
    for (name, _) in &kernel.overrides {
        let known = module.overrides.iter().any(|(_, item)| item.name.as_deref() == Some(name));
        assert!(known, "{}: {name} is not an override of the shader", describe(kernel));
    }
    let entry = (ShaderStage::Compute, kernel.name);
    let (module, info) = process_overrides(module, info, Some(entry), &overrides.into_iter().collect())
        .unwrap_or_else(|error| panic!("{}: {error}", describe(kernel)));
    (module.into_owned(), info.into_owned())
}

fn compile_to_spirv(kernel: &Kernel, module: &Module, info: &ModuleInfo) {
    let options = naga::back::spv::Options {
        flags: naga::back::spv::WriterFlags::empty(),
        ..naga::back::spv::Options::default()
    };
    let pipeline =
        naga::back::spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: kernel.name.to_owned() };
    let words = naga::back::spv::write_vec(module, info, &options, Some(&pipeline))
        .unwrap_or_else(|error| panic!("{}: SPIR-V: {error}", describe(kernel)));
    assert!(words.len() > 5);
}

fn compile_to_msl(kernel: &Kernel, module: &Module, info: &ModuleInfo) {
    let lang_version = if kernel.uses_cooperative_matrices() { (2, 3) } else { (2, 1) };
    let options = naga::back::msl::Options { lang_version, ..Default::default() };
    let pipeline = naga::back::msl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, kernel.name.to_owned())),
        ..Default::default()
    };
    let (text, translation) = naga::back::msl::write_string(module, info, &options, &pipeline)
        .unwrap_or_else(|error| panic!("{}: MSL: {error}", describe(kernel)));
    assert!(
        text.contains("kernel void") && translation.entry_point_names.iter().all(Result::is_ok),
        "{}",
        describe(kernel)
    );
}

fn compile_to_hlsl(kernel: &Kernel, module: &Module, info: &ModuleInfo) {
    let shader_model =
        if kernel.uses_f16() { naga::back::hlsl::ShaderModel::V6_2 } else { naga::back::hlsl::ShaderModel::V6_0 };
    let options = naga::back::hlsl::Options { shader_model, ..Default::default() };
    let pipeline =
        naga::back::hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, kernel.name.to_owned())) };
    let mut text = String::new();
    let reflection = naga::back::hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(module, info, None)
        .unwrap_or_else(|error| panic!("{}: HLSL: {error}", describe(kernel)));
    assert!(reflection.entry_point_names.iter().all(Result::is_ok), "{}", describe(kernel));
    assert!(text.contains("numthreads"), "{}", describe(kernel));
}

/// Checks the workgroup against the limits and returns its memory in bytes.
fn workgroup_bytes(kernel: &Kernel, module: &Module) -> u32 {
    let point = module.entry_points.iter().find(|point| point.name == kernel.name).expect("the entry point");
    let invocations: u32 = point.workgroup_size.iter().product();
    assert!(invocations <= MAX_INVOCATIONS, "{}: {invocations} invocations in a workgroup", describe(kernel));
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).unwrap_or_else(|error| panic!("{}: {error}", describe(kernel)));
    let bytes: u32 = module
        .global_variables
        .iter()
        .filter(|(_, variable)| variable.space == AddressSpace::WorkGroup)
        .map(|(_, variable)| layouter[variable.ty].size.next_multiple_of(16))
        .sum();
    // Only devices with more memory are given these: tiles of cooperative matrices (attention with long heads keeps its
    // queries there as well), and the most rows of attention with long heads (at most 27 KiB; other devices take half
    // the rows).
    let constant = |name| kernel.consts.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    let most = match kernel.name {
        "attention_tiled" if constant("ROWS") == Some(16) && constant("HEAD4") > Some(32) => 2 * MAX_WORKGROUP_BYTES,
        "attention_decode" if constant("ROWS") == Some(8) && constant("HEAD4") > Some(40) => 2 * MAX_WORKGROUP_BYTES,
        "attention_cooperative" if constant("HEAD4") > Some(32) => 4 * MAX_WORKGROUP_BYTES,
        _ if kernel.uses_cooperative_matrices() => 3 * MAX_WORKGROUP_BYTES,
        _ => MAX_WORKGROUP_BYTES,
    };
    assert!(bytes <= most, "{}: {bytes} bytes of workgroup memory", describe(kernel));
    bytes
}

#[test]
fn every_specialisation_compiles_for_every_backend() {
    let kernels = specialisations();
    let distinct: HashSet<_> = kernels.iter().collect();
    assert_eq!(distinct.len(), kernels.len(), "a specialisation is listed twice");
    let mut by_text: HashMap<String, Vec<&Kernel>> = HashMap::new();
    for kernel in &kernels {
        by_text.entry(kernel.wgsl(false)).or_default().push(kernel);
    }
    let texts: Vec<_> = by_text.iter().collect();
    let next = AtomicUsize::new(0);
    let compile_texts = || {
        let mut summary: BTreeMap<&str, (usize, u32)> = BTreeMap::new();
        while let Some((text, kernels)) = texts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let module = naga::front::wgsl::parse_str(text)
                .unwrap_or_else(|error| panic!("{}: {}", describe(kernels[0]), error.emit_to_string(text)));
            let info = validate(kernels[0], &module);
            for kernel in *kernels {
                let entry = summary.entry(kernel.name).or_default();
                entry.0 += 1;
                entry.1 = entry.1.max(compile(kernel, &module, &info));
            }
        }
        summary
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let parts: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(compile_texts)).collect();
        workers.into_iter().map(|worker| worker.join().expect("every specialisation compiles")).collect()
    });
    let mut summary: BTreeMap<&str, (usize, u32)> = BTreeMap::new();
    for (name, (count, bytes)) in parts.into_iter().flatten() {
        let entry = summary.entry(name).or_default();
        *entry = (entry.0 + count, entry.1.max(bytes));
    }
    for (name, (count, bytes)) in summary {
        println!("{name}: {count} specialisations, at most {bytes} bytes of workgroup memory");
    }
    println!("{} specialisations of {} texts compiled to SPIR-V, MSL and HLSL", kernels.len(), texts.len());
}

/// Compiles a specialisation for every backend; returns its bytes of workgroup memory.
fn compile(kernel: &Kernel, module: &Module, info: &ModuleInfo) -> u32 {
    assert!(kernel.bindings.len() <= MAX_STORAGE_BUFFERS, "{}", describe(kernel));
    let (module, info) = specialise(kernel, module, info);
    compile_to_spirv(kernel, &module, &info);
    compile_to_msl(kernel, &module, &info);
    // DirectX has no cooperative matrices.
    if !kernel.uses_cooperative_matrices() {
        compile_to_hlsl(kernel, &module, &info);
    }
    workgroup_bytes(kernel, &module)
}

/// The size that a kernel's text and constants say is the one that compilers see.
#[test]
fn workgroups_have_the_size_of_the_compiled_module() {
    // A prime, so that all families are among them.
    for kernel in specialisations().iter().step_by(61) {
        let module = naga::front::wgsl::parse_str(&kernel.wgsl(false)).expect("WGSL");
        let info = validate(kernel, &module);
        let (module, _) = specialise(kernel, &module, &info);
        let entry = module.entry_points.iter().find(|entry| entry.name == kernel.name).expect("an entry point");
        let found = kernel.workgroup_invocations().expect("a size");
        assert_eq!(found, entry.workgroup_size.iter().product::<u32>(), "{}", describe(kernel));
    }
}

/// tint takes what browsers take (no cooperative matrices); it alone checks that control flow around barriers is
/// uniform. `make test` runs this if `tint` is on the `PATH`.
#[test]
#[ignore = "needs tint on the PATH"]
fn every_text_is_taken_by_tint() {
    let folder = std::env::temp_dir().join(format!("mgm-shaders-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let mut seen = HashSet::new();
    let mut failures = Vec::new();
    for kernel in specialisations().into_iter().filter(|kernel| !kernel.uses_cooperative_matrices()) {
        let text = kernel.wgsl(true);
        if !seen.insert(text.clone()) {
            continue;
        }
        let file = folder.join(format!("{}.wgsl", seen.len()));
        std::fs::File::create(&file).and_then(|mut file| file.write_all(text.as_bytes())).expect("a temporary file");
        let output = Command::new("tint").args(["--format", "wgsl"]).arg(&file).output().expect("tint is on the PATH");
        if !output.status.success() {
            failures.push(format!("{}:\n{}", describe(&kernel), String::from_utf8_lossy(&output.stderr)));
        }
    }
    std::fs::remove_dir_all(&folder).ok();
    assert!(failures.is_empty(), "tint refuses {} texts:\n{}", failures.len(), failures.join("\n"));
    println!("{} texts parsed by tint", seen.len());
}

/// A variable that is declared in a loop without a value is zero again in every round, but Chromium on SwiftShader
/// keeps its last value. So it is assigned before anything else happens to it.
#[test]
fn variables_in_loops_are_assigned_first() {
    let files: HashMap<_, _> = specialisations()
        .into_iter()
        .flat_map(|kernel| kernel.sources)
        .map(|source| (source.name, source.text))
        .collect();
    let (mut checked, mut faults) = (0, Vec::new());
    for (file, text) in files {
        let lines: Vec<_> = text.lines().collect();
        let indent = |line: &str| line.len() - line.trim_start().len();
        for (number, line) in lines.iter().enumerate() {
            let Some((name, _)) = line.trim_start().strip_prefix("var ").and_then(|rest| rest.split_once(':')) else {
                continue;
            };
            // The lines that enclose this one, from the inside out.
            let mut depth = indent(line);
            let in_loop = lines[..number].iter().rev().filter(|line| !line.trim().is_empty()).any(|outer| {
                let encloses = indent(outer) < depth;
                depth = depth.min(indent(outer));
                encloses && ["for ", "while ", "loop "].iter().any(|word| outer.trim_start().starts_with(word))
            });
            if !in_loop || line.split("//").next().is_some_and(|code| code.contains('=')) {
                continue;
            }
            checked += 1;
            let is_named =
                |line: &&&str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
            let next = lines[number + 1..].iter().find(is_named).map_or("", |line| line.trim_start());
            if !(next.starts_with(name)
                && next.split_once(" = ").is_some_and(|(left, _)| !left.contains(' ') || left.contains('[')))
            {
                faults.push(format!("{file}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(checked > 0 && faults.is_empty(), "{faults:#?}");
}
