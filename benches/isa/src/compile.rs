//! Compiles SPIR-V compute modules with the first Vulkan device and prints what the driver reports of each
//! (VK_KHR_pipeline_executable_properties). Meant for drivers on no-op kernel interfaces: nothing is ever executed.
//!
//!     isa-compile [--robust 0|1|2] [--isa DIR] [--start N] [--device] FILE.spv...
//!
//! Pipelines are made as wgpu-hal 30 makes them: all features that it uses are on where the device has them, parameters
//! are a dynamic uniform block, the subgroup size may vary. `--robust` sets robustBufferAccess (1) and
//! robustBufferAccess2 (2, the default, and wgpu's). Files next to a module may say more: FILE.spec has lines `ID TYPE
//! VALUE` of specialisation constants (TYPE u, i or f), FILE.subgroup the required subgroup size.
//!
//! A line for each module goes to standard output: `=`, its name and KEY=VALUE pairs, separated by tabs. What a driver
//! prints while it compiles comes before its line. Machine code goes to DIR. The number of each module goes to standard
//! error before it is compiled: a driver that crashes can be restarted after it with `--start`. `--device` prints the
//! device's features and cooperative matrices instead.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::ffi::{CStr, CString, c_char};
use std::io::Write;
use std::path::{Path, PathBuf};

use ash::{ext, khr, vk};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Options {
    robust: u32,
    isa: Option<PathBuf>,
    start: usize,
    device: bool,
    files: Vec<PathBuf>,
}

fn options() -> Result<Options> {
    let mut options = Options { robust: 2, isa: None, start: 0, device: false, files: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--robust" => options.robust = value()?.parse()?,
            "--isa" => options.isa = Some(value()?.into()),
            "--start" => options.start = value()?.parse()?,
            "--device" => options.device = true,
            file => options.files.push(file.into()),
        }
    }
    Ok(options)
}

/// What a pipeline layout needs to know of a module.
#[derive(Default)]
struct Interface {
    entry: String,
    /// (set, binding)
    bindings: BTreeMap<(u32, u32), vk::DescriptorType>,
    push_constants: bool,
    invocations: u32,
    cooperative: bool,
    half: bool,
}

fn literal(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// Reads the interface from SPIR-V, whose instructions are numbered in its specification.
fn reflect(words: &[u32]) -> Interface {
    const ENTRY_POINT: u32 = 15;
    const EXECUTION_MODE: u32 = 16;
    const CAPABILITY: u32 = 17;
    const TYPE_ARRAY: u32 = 28;
    const TYPE_RUNTIME_ARRAY: u32 = 29;
    const TYPE_POINTER: u32 = 32;
    const VARIABLE: u32 = 59;
    const DECORATE: u32 = 71;
    // Decorations.
    const BLOCK: u32 = 2;
    const BUFFER_BLOCK: u32 = 3;
    const BINDING: u32 = 33;
    const SET: u32 = 34;
    // Storage classes.
    const UNIFORM: u32 = 2;
    const PUSH_CONSTANT: u32 = 9;
    const STORAGE_BUFFER: u32 = 12;
    let mut found = Interface { invocations: 1, ..Default::default() };
    let (mut sets, mut numbers, mut is_uniform_block) = (HashMap::new(), HashMap::new(), HashMap::new());
    let (mut pointees, mut elements, mut variables) = (HashMap::new(), HashMap::new(), Vec::new());
    let mut at = 5;
    while at < words.len() {
        let (length, opcode) = ((words[at] >> 16) as usize, words[at] & 0xffff);
        let operands = &words[at + 1..at + length];
        match (opcode, operands) {
            (ENTRY_POINT, [_, _, name @ ..]) => found.entry = literal(name),
            (EXECUTION_MODE, [_, 17, x, y, z]) => found.invocations = x * y * z,
            (CAPABILITY, [6022]) => found.cooperative = true,
            (CAPABILITY, [9]) => found.half = true,
            (DECORATE, [id, BLOCK]) => drop(is_uniform_block.insert(*id, true)),
            (DECORATE, [id, BUFFER_BLOCK]) => drop(is_uniform_block.insert(*id, false)),
            (DECORATE, [id, BINDING, number]) => drop(numbers.insert(*id, *number)),
            (DECORATE, [id, SET, set]) => drop(sets.insert(*id, *set)),
            (TYPE_ARRAY | TYPE_RUNTIME_ARRAY, [id, element, ..]) => drop(elements.insert(*id, *element)),
            (TYPE_POINTER, [id, _, pointee]) => drop(pointees.insert(*id, *pointee)),
            (VARIABLE, [kind, id, class, ..]) => variables.push((*id, *class, *kind)),
            _ => {}
        }
        at += length;
    }
    for (id, class, pointer) in variables {
        let pointee = pointees.get(&pointer).copied().unwrap_or_default();
        let block = elements.get(&pointee).copied().unwrap_or(pointee);
        let kind = match class {
            STORAGE_BUFFER => vk::DescriptorType::STORAGE_BUFFER,
            UNIFORM if is_uniform_block.get(&block) == Some(&false) => vk::DescriptorType::STORAGE_BUFFER,
            UNIFORM => vk::DescriptorType::UNIFORM_BUFFER_DYNAMIC,
            PUSH_CONSTANT => {
                found.push_constants = true;
                continue;
            }
            _ => continue,
        };
        if let (Some(set), Some(number)) = (sets.get(&id), numbers.get(&id)) {
            found.bindings.insert((*set, *number), kind);
        }
    }
    found
}

fn text(array: &[c_char]) -> String {
    let bytes: Vec<u8> = array.iter().map(|c| *c as u8).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

struct Device {
    raw: ash::Device,
    executables: khr::pipeline_executable_properties::Device,
    push_constant_bytes: u32,
    half: bool,
    /// Cooperative matrices of 16 x 16 x 16, f16 with f32 sums: those that wgpu 30 and this project have in common.
    cooperative: bool,
}

/// Opens the first device, with features as wgpu-hal enables them.
///
/// # Safety
/// As all of Vulkan: the handles stay alive until the program ends.
unsafe fn open(options: &Options) -> Result<Device> {
    unsafe {
        let entry = ash::Entry::load()?;
        let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
        let instance =
            entry.create_instance(&vk::InstanceCreateInfo::default().application_info(&application), None)?;
        let physical = *instance.enumerate_physical_devices()?.first().ok_or("no Vulkan device")?;
        let extensions = instance.enumerate_device_extension_properties(physical)?;
        let has = |name: &CStr| extensions.iter().any(|extension| extension.extension_name_as_c_str() == Ok(name));
        let [has_robustness, has_matrices] = [ext::robustness2::NAME, khr::cooperative_matrix::NAME].map(has);

        let mut subgroups11 = vk::PhysicalDeviceVulkan11Properties::default();
        let mut subgroups13 = vk::PhysicalDeviceVulkan13Properties::default();
        let mut properties =
            vk::PhysicalDeviceProperties2::default().push_next(&mut subgroups11).push_next(&mut subgroups13);
        instance.get_physical_device_properties2(physical, &mut properties);
        let vk::PhysicalDeviceProperties { device_name, limits, .. } = properties.properties;

        let mut vulkan11 = vk::PhysicalDeviceVulkan11Features::default();
        let mut vulkan12 = vk::PhysicalDeviceVulkan12Features::default();
        let mut vulkan13 = vk::PhysicalDeviceVulkan13Features::default();
        let mut executables = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default();
        let mut robustness = vk::PhysicalDeviceRobustness2FeaturesEXT::default();
        let mut matrices = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
        let mut features = vk::PhysicalDeviceFeatures2::default()
            .push_next(&mut vulkan11)
            .push_next(&mut vulkan12)
            .push_next(&mut vulkan13)
            .push_next(&mut executables);
        let mut names = vec![khr::pipeline_executable_properties::NAME.as_ptr()];
        if has_robustness {
            features = features.push_next(&mut robustness);
            names.push(ext::robustness2::NAME.as_ptr());
        }
        if has_matrices {
            features = features.push_next(&mut matrices);
            names.push(khr::cooperative_matrix::NAME.as_ptr());
        }
        instance.get_physical_device_features2(physical, &mut features);
        // The same chain enables what it was filled with, but for what wgpu leaves off.
        let offered = features.features;
        features.features = vk::PhysicalDeviceFeatures {
            robust_buffer_access: if options.robust >= 1 { offered.robust_buffer_access } else { 0 },
            shader_int16: offered.shader_int16,
            shader_int64: offered.shader_int64,
            ..Default::default()
        };
        let mut chain = features;
        // What the chain borrows is changed through its own pointers.
        let mut next = chain.p_next.cast::<vk::BaseOutStructure<'_>>();
        while let Some(node) = next.as_mut() {
            match node.s_type {
                vk::StructureType::PHYSICAL_DEVICE_ROBUSTNESS_2_FEATURES_EXT => {
                    let node = &mut *next.cast::<vk::PhysicalDeviceRobustness2FeaturesEXT<'_>>();
                    node.null_descriptor = 0;
                    if options.robust < 2 {
                        (node.robust_buffer_access2, node.robust_image_access2) = (0, 0);
                    }
                }
                vk::StructureType::PHYSICAL_DEVICE_VULKAN_1_2_FEATURES => {
                    (*next.cast::<vk::PhysicalDeviceVulkan12Features<'_>>()).buffer_device_address_capture_replay = 0;
                }
                _ => {}
            }
            next = node.p_next;
        }
        let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(0).queue_priorities(&[1.0])];
        let create = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queues)
            .enabled_extension_names(&names)
            .push_next(&mut chain);
        let raw = instance.create_device(physical, &create, None)?;
        let loader = khr::cooperative_matrix::Instance::new(&entry, &instance);
        let shapes = match has_matrices {
            true => loader.get_physical_device_cooperative_matrix_properties(physical)?,
            false => Vec::new(),
        };
        let half_to_float = |shape: &&vk::CooperativeMatrixPropertiesKHR<'_>| {
            shape.a_type == vk::ComponentTypeKHR::FLOAT16 && shape.result_type == vk::ComponentTypeKHR::FLOAT32
        };
        let square =
            |shape: &vk::CooperativeMatrixPropertiesKHR<'_>| (shape.m_size, shape.n_size, shape.k_size) == (16, 16, 16);
        if options.device {
            let shapes: Vec<_> = shapes
                .iter()
                .filter(half_to_float)
                .map(|shape| format!("{}x{}x{}", shape.m_size, shape.n_size, shape.k_size))
                .collect();
            println!(
                "{}\tdriver={:x}\tsubgroups={}..{}\tshared={}\tinvocations={}\tf16={}\tint8={}\tdot={}\trobust2={}\tmatrices={}",
                text(&device_name),
                properties.properties.driver_version,
                subgroups13.min_subgroup_size,
                subgroups13.max_subgroup_size,
                limits.max_compute_shared_memory_size,
                limits.max_compute_work_group_invocations,
                vulkan12.shader_float16,
                vulkan12.shader_int8,
                vulkan13.shader_integer_dot_product,
                robustness.robust_buffer_access2,
                shapes.join(",")
            );
        }
        Ok(Device {
            executables: khr::pipeline_executable_properties::Device::new(&instance, &raw),
            raw,
            push_constant_bytes: limits.max_push_constants_size.min(256),
            half: vulkan12.shader_float16 != 0,
            cooperative: shapes.iter().filter(half_to_float).any(square),
        })
    }
}

impl Device {
    /// Compiles a module and returns its statistics, or why there are none.
    unsafe fn compile(&self, file: &Path, isa: Option<&Path>) -> Result<String> {
        unsafe {
            let bytes = std::fs::read(file)?;
            let words: Vec<u32> =
                bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
            let interface = reflect(&words);
            if interface.cooperative && !self.cooperative {
                return Ok("skipped=no matrices of 16 x 16 x 16".to_owned());
            }
            if interface.half && !self.half {
                return Ok("skipped=no f16".to_owned());
            }
            let module = self.raw.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(&words), None)?;
            let sets = interface.bindings.keys().map(|(set, _)| set + 1).max().unwrap_or(0);
            let mut set_layouts = Vec::new();
            for set in 0..sets {
                let bindings: Vec<_> = interface
                    .bindings
                    .iter()
                    .filter(|((of, _), _)| *of == set)
                    .map(|((_, number), kind)| {
                        vk::DescriptorSetLayoutBinding::default()
                            .binding(*number)
                            .descriptor_type(*kind)
                            .descriptor_count(1)
                            .stage_flags(vk::ShaderStageFlags::COMPUTE)
                    })
                    .collect();
                let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
                set_layouts.push(self.raw.create_descriptor_set_layout(&info, None)?);
            }
            let push = [vk::PushConstantRange::default()
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
                .size(self.push_constant_bytes)];
            let mut info = vk::PipelineLayoutCreateInfo::default().set_layouts(&set_layouts);
            if interface.push_constants {
                info = info.push_constant_ranges(&push);
            }
            let layout = self.raw.create_pipeline_layout(&info, None)?;

            let (entries, data) = specialisation(file)?;
            let constants = vk::SpecializationInfo::default().map_entries(&entries).data(&data);
            let entry = CString::new(interface.entry)?;
            let required: Option<u32> =
                std::fs::read_to_string(file.with_extension("subgroup")).ok().and_then(|text| text.trim().parse().ok());
            let mut required_size = vk::PipelineShaderStageRequiredSubgroupSizeCreateInfo::default()
                .required_subgroup_size(required.unwrap_or_default());
            let mut stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(&entry);
            if !entries.is_empty() {
                stage = stage.specialization_info(&constants);
            }
            stage = match required {
                Some(_) => stage
                    .push_next(&mut required_size)
                    .flags(vk::PipelineShaderStageCreateFlags::REQUIRE_FULL_SUBGROUPS),
                None => stage.flags(vk::PipelineShaderStageCreateFlags::ALLOW_VARYING_SUBGROUP_SIZE),
            };
            let mut flags = vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR;
            if isa.is_some() {
                flags |= vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
            }
            let info = vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout).flags(flags);
            let started = processor_seconds();
            let pipeline = self
                .raw
                .create_compute_pipelines(vk::PipelineCache::null(), &[info], None)
                .map_err(|(_, error)| error)?[0];
            let seconds = processor_seconds() - started;
            let line = self.statistics(
                file,
                pipeline,
                isa,
                &format!("invocations={}\tseconds={seconds:.3}", interface.invocations),
            );
            self.raw.destroy_pipeline(pipeline, None);
            self.raw.destroy_pipeline_layout(layout, None);
            for layout in set_layouts {
                self.raw.destroy_descriptor_set_layout(layout, None);
            }
            self.raw.destroy_shader_module(module, None);
            line
        }
    }

    unsafe fn statistics(
        &self,
        file: &Path,
        pipeline: vk::Pipeline,
        isa: Option<&Path>,
        first: &str,
    ) -> Result<String> {
        unsafe {
            let of_pipeline = vk::PipelineInfoKHR::default().pipeline(pipeline);
            let executables = self.executables.get_pipeline_executable_properties(&of_pipeline)?;
            let executable = executables.first().ok_or("the driver reports no executable")?;
            let which = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(0);
            let mut line = format!("{first}\tsubgroup={}", executable.subgroup_size);
            for statistic in self.executables.get_pipeline_executable_statistics(&which)? {
                let value = match statistic.format {
                    vk::PipelineExecutableStatisticFormatKHR::BOOL32 => statistic.value.b32.to_string(),
                    vk::PipelineExecutableStatisticFormatKHR::INT64 => statistic.value.i64.to_string(),
                    vk::PipelineExecutableStatisticFormatKHR::UINT64 => statistic.value.u64.to_string(),
                    _ => statistic.value.f64.to_string(),
                };
                line.push_str(&format!("\t{}={value}", text(&statistic.name)));
            }
            if let Some(folder) = isa {
                let name = file.file_stem().ok_or("a module has no name")?.to_string_lossy();
                let texts = self.representations(&which)?;
                // Machine code is called assembly, or is the last representation.
                let code =
                    texts.iter().rev().find(|(name, _)| name.to_lowercase().contains("assembly")).or(texts.last());
                if let Some((_, text)) = code {
                    std::fs::write(folder.join(format!("{name}.txt")), text)?;
                }
            }
            Ok(line)
        }
    }

    /// Names and texts of an executable's representations.
    unsafe fn representations(&self, which: &vk::PipelineExecutableInfoKHR<'_>) -> Result<Vec<(String, String)>> {
        unsafe {
            // ash's own wrapper does not allocate the texts.
            let get = self.executables.fp().get_pipeline_executable_internal_representations_khr;
            let device = self.raw.handle();
            let mut count = 0;
            get(device, which, &mut count, std::ptr::null_mut()).result()?;
            let mut items = vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
            // The first call reports the lengths.
            let _ = get(device, which, &mut count, items.as_mut_ptr());
            let mut texts: Vec<Vec<u8>> = items.iter().map(|item| vec![0; item.data_size + 1]).collect();
            for (item, text) in items.iter_mut().zip(&mut texts) {
                item.p_data = text.as_mut_ptr().cast();
            }
            let _ = get(device, which, &mut count, items.as_mut_ptr());
            let lossy = |bytes: &[u8]| {
                String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
            };
            Ok(items.iter().zip(&texts).map(|(item, bytes)| (text(&item.name), lossy(bytes))).collect())
        }
    }
}

/// The specialisation constants of a module.
fn specialisation(file: &Path) -> Result<(Vec<vk::SpecializationMapEntry>, Vec<u8>)> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    let Ok(text) = std::fs::read_to_string(file.with_extension("spec")) else { return Ok((entries, data)) };
    for line in text.lines() {
        let [id, kind, value] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            return Err(format!("{}: {line:?} is not ID TYPE VALUE", file.display()).into());
        };
        let word = match kind {
            "f" => value.parse::<f32>()?.to_bits(),
            "i" => value.parse::<i32>()? as u32,
            _ => value.parse::<u32>()?,
        };
        let offset = data.len() as u32;
        entries.push(vk::SpecializationMapEntry { constant_id: id.parse()?, offset, size: 4 });
        data.extend(word.to_le_bytes());
    }
    Ok((entries, data))
}

unsafe extern "C" {
    fn fflush(stream: *mut std::ffi::c_void) -> std::ffi::c_int;
    fn clock() -> std::ffi::c_long;
}

/// Processor time of this process. Unlike the time on the wall it does not depend on what else the machine does.
fn processor_seconds() -> f64 {
    // SAFETY: the function has no preconditions. POSIX fixes CLOCKS_PER_SEC at a million.
    unsafe { clock() as f64 / 1e6 }
}

fn main() -> Result<()> {
    let options = options()?;
    if let Some(folder) = &options.isa {
        std::fs::create_dir_all(folder)?;
    }
    // SAFETY: Vulkan is used as its specification requires; the modules are valid, or the driver's problem.
    let device = unsafe { open(&options)? };
    for (number, file) in options.files.iter().enumerate().skip(options.start) {
        eprintln!("@{number}");
        let name = file.file_stem().ok_or("a module has no name")?.to_string_lossy();
        // SAFETY: as above.
        let line = unsafe { device.compile(file, options.isa.as_deref()) };
        let line = line.unwrap_or_else(|error| format!("refused={error}"));
        // SAFETY: null stands for all of C's streams, where drivers print.
        unsafe { fflush(std::ptr::null_mut()) };
        println!("=\t{name}\t{line}");
        std::io::stdout().flush()?;
    }
    Ok(())
}
