//! Writes the kernels that models run as SPIR-V, with the settings that wgpu-hal 30 uses for trusted modules.
//!
//!     isa-dump --out DIR [--kernels REGEX] [--all] [--shaders DIR]
//!
//! The list is not written down anywhere: models of the released sizes are planned on a device with the capabilities of
//! a GPU (`TestOptions::planned`), once with the kernels that mgm chooses and once with every other kernel that `mgm
//! tune` may choose. Kernels that differ only in the steps of their epilogue have the same loops; the one that computes
//! most represents them. With `--all`, REGEX selects among all specialisations instead, for kernels that no model uses
//! yet.
//!
//! WGSL is read from `--shaders` at run time, so a change of a shader needs no new build. A line for each kernel goes
//! to standard output: name, role, models, dispatches, Gflop, constants and sources, separated by tabs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::path::{Path, PathBuf};

use mgm::diffusion::{TextEncoder, Unet, VaeDecoder, VaeEncoder};
use mgm::gpu::{Capabilities, DryRunReport, Gpu, GpuOptions, Kernel, KernelUse, Source};
use mgm::language::LanguageModel;
use mgm::loader::{Loader, vision_precision};
use mgm::ops::{self, FeatureMap, MatmulKernel, MatmulShape, Tuning};
use mgm::tensor::{Precision, Tensor};
use mgm::variants::{self, Variant};
use mgm::vision::Vision;
use mgm::weights::config::{Architecture, LanguageConfig};
use mgm::weights::sdxl::config::{TextEncoderConfig, UnetConfig, VaeConfig};
use naga::back::pipeline_constants::process_overrides;
use naga::back::spv::{self, Capability};
use naga::valid::{Capabilities as Validated, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage};
use regex_lite::Regex;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A model, or a part of one, whose kernels are listed.
struct Model {
    name: &'static str,
    part: Part,
}

enum Part {
    /// Prefill and decoding.
    Language(&'static str, Precision),
    /// SmolLM2-135M.
    SmolLm2,
    /// CLIP, ConvNeXt, patch info mining and the projector.
    Vision(&'static str),
    /// Both text encoders, a step of the UNet at 1024 x 1024, and the autoencoder.
    Sdxl,
}

const MODELS: [Model; 15] = [
    Model { name: "mgm-2b.q4", part: Part::Language("mgm-2b", Precision::Q4) },
    Model { name: "mgm-2b.f16", part: Part::Language("mgm-2b", Precision::F16) },
    Model { name: "mgm-7b.q4", part: Part::Language("mgm-7b", Precision::Q4) },
    Model { name: "mgm-7b.q8", part: Part::Language("mgm-7b", Precision::Q8) },
    Model { name: "mgm-7b.q4_0", part: Part::Language("mgm-7b", Precision::Q4_0) },
    Model { name: "llama3-8b.q5_0", part: Part::Language("mgm-8b", Precision::Q5_0) },
    Model { name: "llama3-8b.q4k", part: Part::Language("mgm-8b", Precision::Q4K) },
    Model { name: "llama3-8b.q5", part: Part::Language("mgm-8b", Precision::Q5) },
    Model { name: "llama3-8b.q5k", part: Part::Language("mgm-8b", Precision::Q5K) },
    Model { name: "llama3-8b.q6", part: Part::Language("mgm-8b", Precision::Q6) },
    Model { name: "mixtral.q4", part: Part::Language("mgm-8x7b", Precision::Q4) },
    Model { name: "smollm2.q4", part: Part::SmolLm2 },
    Model { name: "vision", part: Part::Vision("mgm-7b") },
    Model { name: "vision-hd", part: Part::Vision("mgm-7b-hd") },
    Model { name: "sdxl.f16", part: Part::Sdxl },
];

#[derive(Default)]
struct Listed {
    /// Models that run it by default.
    models: BTreeSet<&'static str>,
    /// Models that would run it after `mgm tune`.
    candidates: BTreeSet<&'static str>,
    uses: KernelUse,
}

struct Options {
    out: PathBuf,
    shaders: PathBuf,
    kernels: Regex,
    all: bool,
    every: bool,
}

fn options() -> Result<Options> {
    let mut options = Options {
        out: PathBuf::from("."),
        shaders: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shaders")),
        kernels: Regex::new("")?,
        all: false,
        every: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--out" => options.out = value()?.into(),
            "--shaders" => options.shaders = value()?.into(),
            "--kernels" => options.kernels = Regex::new(&value()?)?,
            "--all" => options.all = true,
            "--every" => options.every = true,
            _ => return Err(format!("unknown option {argument}").into()),
        }
    }
    Ok(options)
}

fn smollm2() -> LanguageConfig {
    LanguageConfig {
        architecture: Architecture::Llama,
        hidden_size: 576,
        intermediate_size: 1536,
        num_layers: 30,
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        vocab_size: 49152,
        max_positions: 8192,
        tie_word_embeddings: true,
        ..released("mgm-8b").language
    }
}

fn released(name: &str) -> Variant {
    variants::released(name).expect("a released model")
}

/// A part with its weights, which take no memory.
enum Loaded {
    Language(Box<LanguageModel>),
    Vision(Box<Vision>),
    Sdxl(Box<Sdxl>),
}

struct Sdxl {
    text: Vec<TextEncoder>,
    unet: Unet,
    decoder: VaeDecoder,
    encoder: VaeEncoder,
}

impl Part {
    /// Whether to list the alternatives that `mgm tune` measures: for the formats that mgm itself writes.
    fn has_alternatives(&self) -> bool {
        match self {
            Self::Language(_, precision) => Precision::CHOICES.contains(precision),
            _ => true,
        }
    }

    async fn load(&self, gpu: &Gpu) -> Result<Loaded> {
        let loader = |precision| Loader::random(gpu, 1, precision, None);
        // One layer has every kernel that the others have.
        let language = async |config: LanguageConfig, precision| -> Result<Loaded> {
            let config = LanguageConfig { num_layers: 1, ..config };
            Ok(Loaded::Language(Box::new(LanguageModel::load(&loader(precision), &config).await?)))
        };
        match self {
            Self::Language(name, precision) => language(released(name).language, *precision).await,
            Self::SmolLm2 => language(smollm2(), Precision::Q4).await,
            Self::Vision(name) => {
                let Variant { vision, language, .. } = released(name);
                let loader = loader(vision_precision(Precision::F16));
                let (config, clip, convnext) = (vision.config, &vision.clip, &vision.convnext);
                let model = Vision::random(&loader, config, clip, convnext, language.hidden_size).await?;
                Ok(Loaded::Vision(Box::new(model)))
            }
            Self::Sdxl => {
                let loader = loader(Precision::F16);
                let mut text = Vec::new();
                for (name, config) in
                    [("text_encoder", TextEncoderConfig::sdxl_1()), ("text_encoder_2", TextEncoderConfig::sdxl_2())]
                {
                    text.push(TextEncoder::load(&loader.pp(name), &config).await?);
                }
                let unet = Unet::load(&loader.pp("unet"), &UnetConfig::sdxl()).await?;
                let loader = loader.at(vision_precision(loader.precision())).pp("vae");
                let decoder = VaeDecoder::load(&loader, &VaeConfig::sdxl()).await?;
                let encoder = VaeEncoder::load(&loader, &VaeConfig::sdxl()).await?;
                Ok(Loaded::Sdxl(Box::new(Sdxl { text, unet, decoder, encoder })))
            }
        }
    }
}

impl Loaded {
    async fn plan(&self, gpu: &Gpu) -> Result<DryRunReport> {
        match self {
            Self::Language(model) => Ok(model.dry_run(gpu)?),
            Self::Vision(model) => Ok(model.dry_run(gpu).await?),
            Self::Sdxl(networks) => plan_sdxl(gpu, networks),
        }
    }
}

/// An image of 1024 x 1024 pixels with guidance: two prompts, a step, decoding; and the encoding of such an image.
fn plan_sdxl(gpu: &Gpu, Sdxl { text, unet, decoder, encoder }: &Sdxl) -> Result<DryRunReport> {
    const TOKENS: usize = 77;
    const BATCH: usize = 2;
    const SIDE: usize = 128;
    let mut recorder = gpu.dry_run();
    let config = UnetConfig::sdxl();
    let vae = VaeConfig::sdxl();
    for encoder in text {
        encoder.forward(&mut recorder, &[0; TOKENS])?;
    }
    let context = Tensor::temporary(gpu, &[BATCH * TOKENS, config.cross_attention_dim], "states")?;
    let pooled = Tensor::temporary(gpu, &[BATCH, TextEncoderConfig::sdxl_2().hidden_size], "pooled")?;
    let condition = unet.condition(&mut recorder, &context, &pooled, &[[1024.0; 6]; BATCH])?;
    let map = |batch: usize, side: usize, channels: usize| -> Result<FeatureMap> {
        let values = Tensor::temporary(gpu, &[batch * side * side, channels], "map")?;
        Ok(FeatureMap { height: side, width: side, values })
    };
    unet.forward(&mut recorder, &map(BATCH, SIDE, config.in_channels)?, 500.0, &condition)?;
    decoder.decode(&mut recorder, &map(1, SIDE, vae.latent_channels)?)?;
    let pixels = map(1, SIDE * vae.pixels_per_latent(), vae.in_channels.next_multiple_of(4))?;
    encoder.encode(&mut recorder, &pixels)?;
    Ok(recorder.into_report())
}

/// A GPU with matrix units, or with dot products of bytes and packed f16 arithmetic.
async fn open(subgroup_max_size: u32, matrices: bool) -> Result<Gpu> {
    let sizes = if matrices { vec![16] } else { vec![] };
    let hardware = Capabilities::of_hardware(subgroup_max_size, sizes);
    let planned = Capabilities { native_dots: !matrices, packed_f16: !matrices, ..hardware };
    Ok(Gpu::open(&GpuOptions::planned(planned)).await?)
}

/// The kernels of all models, by name.
async fn planned() -> Result<BTreeMap<String, (Kernel, Listed)>> {
    let mut all: HashMap<Kernel, Listed> = HashMap::new();
    for (subgroup_max_size, matrices) in [(32, true), (64, true), (32, false)] {
        let gpu = open(subgroup_max_size, matrices).await?;
        for Model { name, part } in &MODELS {
            let model = part.load(&gpu).await?;
            let report = model.plan(&gpu).await?;
            for (kernel, uses) in report.kernels() {
                let listed = all.entry(kernel).or_default();
                listed.models.insert(name);
                listed.uses.dispatches += uses.dispatches;
                listed.uses.cost.flops += uses.cost.flops;
            }
            let shapes: Vec<MatmulShape> = ops::products(&report).into_keys().collect();
            for choice in (0..).take_while(|_| part.has_alternatives()) {
                let mut tuning = Tuning::none(&gpu);
                for shape in &shapes {
                    if let Some(kernel) = MatmulKernel::candidates(&gpu, *shape).get(choice) {
                        tuning.force(*shape, *kernel);
                    }
                }
                if tuning.is_empty() {
                    break;
                }
                ops::set_tuning(&gpu, tuning);
                for (kernel, uses) in model.plan(&gpu).await?.kernels() {
                    // With RoPE, a norm or routes an alternative has the same loop as without.
                    let extra = |source: &Source| source.name.contains("rope_") || source.name.contains("rows_routed");
                    if kernel.sources.iter().any(extra) || kernel.overrides.contains(&("NORM", 1)) {
                        continue;
                    }
                    let listed = all.entry(kernel).or_default();
                    if !listed.models.contains(name) && listed.candidates.insert(name) {
                        listed.uses.cost.flops += uses.cost.flops;
                    }
                }
            }
            ops::set_tuning(&gpu, Tuning::none(&gpu));
        }
    }
    for kernel in ops::specialisations().into_iter().filter(|kernel| kernel.name.starts_with("roofline")) {
        all.entry(kernel).or_default();
    }
    Ok(represent(all))
}

/// One kernel for each name, the one with the most operations.
fn represent(all: HashMap<Kernel, Listed>) -> BTreeMap<String, (Kernel, Listed)> {
    let mut named: BTreeMap<String, (Kernel, Listed)> = BTreeMap::new();
    let mut sorted: Vec<_> = all.into_iter().collect();
    // Among equals the order of a hash map would decide.
    sorted.sort_by(|(a, listed), (b, other)| {
        other.uses.cost.flops.total_cmp(&listed.uses.cost.flops).then_with(|| describe(a).cmp(&describe(b)))
    });
    for (kernel, listed) in sorted {
        match named.entry(ops::kernel_name(&kernel)) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert((kernel, listed));
            }
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                let (_, first) = entry.get_mut();
                first.models.extend(listed.models);
                first.candidates.extend(listed.candidates);
                first.uses.dispatches += listed.uses.dispatches;
                first.uses.cost.flops += listed.uses.cost.flops;
            }
        }
    }
    named
}

/// All kernels, those of the same name with numbers.
fn numbered(kernels: Vec<Kernel>) -> BTreeMap<String, (Kernel, Listed)> {
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut name = |kernel: &Kernel| {
        let name = ops::kernel_name(kernel);
        let count = counts.entry(name.clone()).or_default();
        *count += 1;
        format!("{name}~{count}")
    };
    kernels.into_iter().map(|kernel| (name(&kernel), (kernel, Listed::default()))).collect()
}

fn describe(kernel: &Kernel) -> String {
    let pairs =
        |list: &[(&str, u32)]| list.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ");
    let sources: Vec<_> = kernel.sources.iter().map(|source| source.name).collect();
    format!("{} {} {}", pairs(&kernel.consts), pairs(&kernel.overrides), sources.join("+"))
}

/// The kernel with its WGSL as it is on disk now.
fn reread(kernel: &Kernel, shaders: &Path, texts: &mut HashMap<&'static str, &'static str>) -> Result<Kernel> {
    let mut kernel = kernel.clone();
    for source in &mut kernel.sources {
        let text = match texts.get(source.name) {
            Some(text) => text,
            None => {
                let path = shaders.join(source.name);
                let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                // A few hundred kilobytes, until the program ends.
                let text: &'static str = text.leak();
                texts.insert(source.name, text);
                text
            }
        };
        *source = Source { name: source.name, text };
    }
    Ok(kernel)
}

fn parse(kernel: &Kernel) -> Result<(Module, ModuleInfo)> {
    let text = kernel.wgsl(false);
    let module = naga::front::wgsl::parse_str(&text).map_err(|error| error.emit_to_string(&text))?;
    let mut capabilities = Validated::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Validated::SUBGROUP, kernel.uses_subgroups());
    capabilities.set(Validated::SHADER_FLOAT16, kernel.uses_f16());
    capabilities.set(Validated::COOPERATIVE_MATRIX, kernel.uses_cooperative_matrices());
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(&module)
        .map_err(|error| error.emit_to_string(&text))?;
    Ok((module, info))
}

/// SPIR-V as wgpu-hal 30 makes it on Vulkan 1.3 from a trusted module: no bounds checks, no bounded loops, no checked
/// divisions, no zeroed workgroup memory.
fn spirv(kernel: &Kernel, module: &Module, info: &ModuleInfo) -> Result<Vec<u8>> {
    let overrides: HashMap<_, _> =
        kernel.overrides.iter().map(|(name, value)| ((*name).to_owned(), f64::from(*value))).collect();
    let entry = (ShaderStage::Compute, kernel.name);
    let (module, info) = process_overrides(module, info, Some(entry), &overrides.into_iter().collect())?;
    let mut capabilities = vec![
        Capability::Shader,
        Capability::Matrix,
        Capability::Sampled1D,
        Capability::Image1D,
        Capability::ImageQuery,
        Capability::DerivativeControl,
        Capability::StorageImageExtendedFormats,
        Capability::GroupNonUniform,
        Capability::GroupNonUniformVote,
        Capability::GroupNonUniformArithmetic,
        Capability::GroupNonUniformBallot,
        Capability::GroupNonUniformShuffle,
        Capability::GroupNonUniformShuffleRelative,
        Capability::GroupNonUniformQuad,
        Capability::Float16,
        Capability::Int8,
        Capability::DotProductInputAllKHR,
        Capability::DotProductInput4x8BitKHR,
        Capability::DotProductInput4x8BitPackedKHR,
        Capability::DotProductKHR,
    ];
    if kernel.uses_cooperative_matrices() {
        // wgpu-hal adds both to every module of a device with cooperative matrices; without matrices they change
        // nothing.
        capabilities.extend([Capability::CooperativeMatrixKHR, Capability::VulkanMemoryModel]);
    }
    let options = spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        capabilities: Some(capabilities.into_iter().collect()),
        bounds_check_policies: naga::proc::BoundsCheckPolicies::default(),
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        ray_query_initialization_tracking: false,
        emit_int_div_checks: false,
        ..spv::Options::default()
    };
    let pipeline = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: kernel.name.to_owned() };
    let words = spv::write_vec(&module, &info, &options, Some(&pipeline))?;
    Ok(words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

fn main() -> Result<()> {
    let options = options()?;
    let kernels = if options.every {
        numbered(ops::specialisations())
    } else if options.all {
        represent(ops::specialisations().into_iter().map(|kernel| (kernel, Listed::default())).collect())
    } else {
        pollster::block_on(planned())?
    };
    std::fs::create_dir_all(&options.out)?;
    let mut texts = HashMap::new();
    let mut parsed: HashMap<String, (Module, ModuleInfo)> = HashMap::new();
    for (name, (kernel, listed)) in kernels.iter().filter(|(name, _)| options.kernels.is_match(name)) {
        let kernel = reread(kernel, &options.shaders, &mut texts)?;
        let text = kernel.wgsl(false);
        if !parsed.contains_key(&text) {
            let module = parse(&kernel).map_err(|error| format!("{name}: {error}"))?;
            parsed.insert(text.clone(), module);
        }
        let (module, info) = &parsed[&text];
        let bytes = spirv(&kernel, module, info).map_err(|error| format!("{name}: {error}"))?;
        std::fs::write(options.out.join(format!("{name}.spv")), bytes)?;
        let (role, models) = match listed.models.is_empty() {
            false => ("default", &listed.models),
            true => ("candidate", &listed.candidates),
        };
        let models: Vec<_> = models.iter().copied().collect();
        let KernelUse { dispatches, cost } = listed.uses;
        println!("{name}\t{role}\t{}\t{dispatches}\t{:.3}\t{}", models.join(" "), cost.flops / 1e9, describe(&kernel));
    }
    Ok(())
}
