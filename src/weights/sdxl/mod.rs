//! A Stable Diffusion XL model: its networks, tokenizer folders and scheduler, from a folder in diffusers' layout or
//! from a single file.

pub mod config;
pub(crate) mod expected;
mod lora;
mod names;
mod single_file;

use std::rc::Rc;

pub use lora::{ADAPTER_CONFIG, Lora, LoraReport};

use self::config::{SchedulerConfig, SchedulerOverride, TextEncoderConfig, TrainingMarkers, UnetConfig, VaeConfig};
use super::bundle::read::Bundle;
use super::checkpoint::{Checkpoint, View};
use super::config::{MAX_CONFIG, MAX_WIDTH};
use super::dtype::Dtype;
use super::expected::ExpectedTensor;
use super::report::PartReport;
use super::safetensors::read_metadata;
use super::view::Weights;
use crate::image::Image;
use crate::io::{ByteSource, Folder, MemoryFolder, MemorySource, read_file};
use crate::tensor::Precision;
use crate::{Error, Result, Setting, json};

/// The file that identifies a folder in diffusers' layout.
pub const MODEL_INDEX: &str = "model_index.json";

/// Name of the UNet in messages and reports.
pub const UNET: &str = "UNet";
/// Name of the autoencoder.
pub const VAE: &str = "VAE";
/// Name of the first text encoder, CLIP's.
pub const TEXT_1: &str = "first text encoder";
/// Name of the second text encoder, OpenCLIP's.
pub const TEXT_2: &str = "second text encoder";

const TEXT_FOLDERS: [&str; 2] = ["text_encoder", "text_encoder_2"];
const TOKENIZER_FOLDERS: [&str; 2] = ["tokenizer", "tokenizer_2"];

/// The padding token of the second text encoder, if no file has it.
const SECOND_PAD: &str = "!";

/// Configuration files of diffusers' layout.
pub(super) const CONFIGS: [&str; 12] = [
    MODEL_INDEX,
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/added_tokens.json",
    "tokenizer_2/tokenizer_config.json",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/added_tokens.json",
];

/// Vocabulary files of diffusers' layout.
pub(super) const FILES: [&str; 6] = [
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer_2/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/tokenizer.json",
];

/// The name of one of [`FILES`] in a bundle, which has no subfolders.
pub(super) fn flat_name(file: &str) -> String {
    file.replace('/', ".")
}

/// Options for opening a model.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Prefer the files of the f16 variant.
    pub prefer_f16: bool,
    /// For a single file: the folder with tokenizers, and with configurations if the file needs them.
    pub components_dir: Option<Rc<dyn Folder>>,
    /// An autoencoder in place of the model's own.
    pub vae: Option<Vae>,
}

/// An autoencoder from a file or folder of its own.
#[derive(Clone)]
pub struct Vae {
    weights: Weights,
    config: VaeConfig,
}

impl Vae {
    /// Opens a folder with `config.json` and weights, or the folder `vae` of a model in diffusers' layout.
    ///
    /// # Errors
    /// [`Error::MissingFile`] without a configuration or weights; the errors of reading them.
    pub async fn open(folder: Rc<dyn Folder>) -> Result<Self> {
        let child = folder.child("vae");
        let folder = if child.open("config.json").await?.is_some() { child } else { folder };
        Self::open_part(&folder, &OpenOptions::default()).await
    }

    /// Opens a safetensors file with diffusers' or original names, alone or in a whole model.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] if it is another kind of model; the errors of reading it.
    pub async fn open_file(source: Rc<dyn ByteSource>) -> Result<Self> {
        let (weights, config) = single_file::vae(&Checkpoint::open_file(source).await?, None)?;
        Ok(Self { weights, config })
    }

    /// Opens the folder of the component itself.
    async fn open_part(folder: &Rc<dyn Folder>, options: &OpenOptions) -> Result<Self> {
        let (weights, file, config) = component(&**folder, VAE, NETWORK_STEM, options).await?;
        let weights = weights.with_views(|name, info| vec![(modern_vae(name), as_matrix(name, &info.shape))])?;
        Ok(Self { weights: Weights::new(Rc::new(weights)), config: VaeConfig::parse(&file, &config)? })
    }
}

impl OpenOptions {
    /// Sets [`Self::prefer_f16`].
    pub fn with_prefer_f16(self, prefer_f16: bool) -> Self {
        Self { prefer_f16, ..self }
    }

    /// Sets [`Self::components_dir`].
    pub fn with_components_dir(self, components_dir: impl Into<Option<Rc<dyn Folder>>>) -> Self {
        Self { components_dir: components_dir.into(), ..self }
    }

    /// Sets [`Self::vae`].
    pub fn with_vae(self, vae: impl Into<Option<Vae>>) -> Self {
        Self { vae: vae.into(), ..self }
    }
}

/// A folder with a CLIP tokenizer: `vocab.json` and `merges.txt`, or `tokenizer.json`.
#[derive(Clone)]
pub struct TokenizerFolder {
    /// The folder.
    pub folder: Rc<dyn Folder>,
    /// The padding token, if the files in the folder do not decide it.
    pub pad_token: Option<&'static str>,
}

impl TokenizerFolder {
    async fn new(folder: Rc<dyn Folder>, pad_token: Option<&'static str>) -> Result<Self> {
        if !Self::has_vocabulary(&*folder).await? {
            return Err(Error::MissingFile {
                file: format!("{}/vocab.json", folder.name()),
                hint: "a CLIP tokenizer is vocab.json and merges.txt, or tokenizer.json".to_owned(),
            });
        }
        Ok(Self { folder, pad_token })
    }

    async fn has_vocabulary(folder: &dyn Folder) -> Result<bool> {
        Ok(folder.open("vocab.json").await?.is_some() || folder.open("tokenizer.json").await?.is_some())
    }
}

/// An opened model. Only headers and configurations are in memory.
#[non_exhaustive]
pub struct SdxlCheckpoint {
    /// Its folder or file.
    pub name: String,
    /// The UNet, under diffusers' names.
    pub unet: (Weights, UnetConfig),
    /// The autoencoder.
    pub vae: (Weights, VaeConfig),
    /// The two text encoders, under transformers' names.
    pub text: [(Weights, TextEncoderConfig); 2],
    /// Where their tokenizers are.
    pub tokenizers: [TokenizerFolder; 2],
    /// `scheduler_config.json`, where there is one, with its name.
    pub scheduler: Option<(String, Vec<u8>)>,
    /// What a single file declares about its training.
    pub markers: TrainingMarkers,
    /// `force_zeros_for_empty_prompt`: without a negative prompt the states are zeros instead of those of an empty
    /// text.
    pub force_zeros_for_empty_prompt: bool,
    /// Names and scales of the LoRA files of [`Self::merge_lora`].
    pub merged_lora: Vec<(String, f32)>,
}

/// Networks with their configurations.
struct Networks {
    unet: (Weights, UnetConfig),
    vae: (Weights, VaeConfig),
    text: [(Weights, TextEncoderConfig); 2],
}

/// Configurations next to a single file.
#[derive(Default)]
struct GivenConfigs {
    unet: Option<UnetConfig>,
    vae: Option<VaeConfig>,
    text: [Option<TextEncoderConfig>; 2],
}

/// The networks of the released model with their tensors.
#[cfg(feature = "gpu")]
pub(crate) fn released() -> [(&'static str, Vec<ExpectedTensor>); 4] {
    [
        (TEXT_1, expected::text(&TextEncoderConfig::sdxl_1())),
        (TEXT_2, expected::text(&TextEncoderConfig::sdxl_2())),
        (UNET, expected::unet(&UnetConfig::sdxl())),
        (VAE, expected::vae(&VaeConfig::sdxl())),
    ]
}

impl SdxlCheckpoint {
    /// Whether a folder contains such a model.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read.
    pub async fn is_in(folder: &dyn Folder) -> Result<bool> {
        Ok(folder.open(MODEL_INDEX).await?.is_some())
    }

    /// Whether a bundle contains such a model.
    pub fn is_packed(bundle: &Bundle) -> bool {
        bundle.manifest.configs.contains_key(MODEL_INDEX)
    }

    /// Opens a folder in diffusers' layout.
    ///
    /// # Errors
    /// [`Error::MissingFile`] without `model_index.json`, or a network's configuration, weights or vocabulary;
    /// [`Error::Unsupported`] for another kind of pipeline; the errors of reading the files.
    pub async fn open(folder: Rc<dyn Folder>, options: &OpenOptions) -> Result<Self> {
        let file = format!("{}/{MODEL_INDEX}", folder.name());
        let Some(bytes) = read_file(&*folder, MODEL_INDEX, MAX_CONFIG).await? else {
            return Err(Error::MissingFile {
                file,
                hint:
                    "check the path; a model in diffusers' layout has it next to the folders unet, vae, text_encoder, \
                     text_encoder_2, tokenizer, tokenizer_2 and scheduler"
                        .to_owned(),
            });
        };
        let index: serde_json::Value = json::from_slice(&bytes).map_err(|error| Error::Malformed {
            file: file.clone(),
            offset: 0,
            reason: error.to_string(),
        })?;
        let class = index.get("_class_name").and_then(|name| name.as_str()).unwrap_or_default();
        const CLASSES: [&str; 3] =
            ["StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"];
        if !CLASSES.contains(&class) {
            return Err(Error::Unsupported {
                what: format!("{file}: _class_name"),
                found: class.to_owned(),
                supported: CLASSES.join(", "),
            });
        }
        check_text_encoders(&file, &index)?;
        let [first, second] = [0, 1].map(|index| text_part(&folder, index, options));
        let (first, second) = (first.await?, second.await?);
        let unet = part(&folder, "unet", UNET, NETWORK_STEM, options).await?;
        let vae = match &options.vae {
            Some(vae) => vae.clone(),
            None => Vae::open_part(&folder.child("vae"), options).await?,
        };
        let networks = Networks {
            unet: (Weights::new(Rc::new(unet.0)), UnetConfig::parse(&unet.1, &unet.2)?),
            vae: (vae.weights, vae.config),
            text: [first, second],
        };
        let tokenizers = [
            TokenizerFolder::new(folder.child(TOKENIZER_FOLDERS[0]), None).await?,
            TokenizerFolder::new(folder.child(TOKENIZER_FOLDERS[1]), None).await?,
        ];
        let zeros = index.get("force_zeros_for_empty_prompt").and_then(serde_json::Value::as_bool).unwrap_or(true);
        let scheduler = scheduler_in(&folder).await?;
        Ok(Self::new(folder.name(), networks, tokenizers, scheduler, zeros))
    }

    /// Opens a single file. The tokenizers are in [`OpenOptions::components_dir`].
    ///
    /// # Errors
    /// [`Error::NeedsSetting`] without a folder of tokenizers, or if the file needs configurations or other parts;
    /// [`Error::MissingTensor`] and [`Error::Unsupported`] if the file is another kind of model; the errors of reading
    /// it.
    pub async fn open_file(source: Rc<dyn ByteSource>, options: &OpenOptions) -> Result<Self> {
        let metadata = read_metadata(&*source).await?;
        let checkpoint = single_file::with_averaged_unet(Checkpoint::open_file(source).await?);
        single_file::check_kind(&checkpoint)?;
        let markers = single_file::training_markers(&checkpoint, &metadata).await?;
        let Some(folder) = &options.components_dir else {
            return Err(Error::NeedsSetting {
                setting: Setting::Components,
                file: checkpoint.name().to_owned(),
                reason: "it contains no vocabulary: pass a folder with CLIP's vocab.json and merges.txt, or one in \
                         diffusers' layout, or put a folder called tokenizer next to it"
                    .to_owned(),
            });
        };
        let given = given_configs(folder).await?;
        let tokenizers = tokenizers_in(folder).await?;
        let other = other_parts(&checkpoint, folder, options).await?;
        let mut networks = single_file::networks(&checkpoint, given, other)?;
        if options.vae.is_none() {
            single_file::with_latents(&checkpoint, &mut networks.vae.1).await?;
        }
        let scheduler = scheduler_in(folder).await?;
        Ok(Self { markers, ..Self::new(checkpoint.name(), networks, tokenizers, scheduler, true) })
    }

    /// Opens a bundle of a model in diffusers' layout.
    ///
    /// # Errors
    /// As [`Self::open`]; [`Error::Config`] for a bundle of another kind of model.
    pub async fn open_bundle(bundle: &Bundle) -> Result<Self> {
        let name = bundle.name();
        if !Self::is_packed(bundle) {
            return Err(Error::Config {
                file: name,
                reason: "this bundle contains no image model: pack one in diffusers' layout".to_owned(),
            });
        }
        let mut files: Vec<(String, Rc<dyn ByteSource>)> = Vec::new();
        for (file, config) in &bundle.manifest.configs {
            let bytes = config.to_string().into_bytes();
            files.push((file.clone(), Rc::new(MemorySource::new(format!("{name}: {file}"), bytes))));
        }
        for file in FILES {
            if let Some(source) = bundle.folder().open(&flat_name(file)).await? {
                files.push((file.to_owned(), source));
            }
        }
        let folder: Rc<dyn Folder> = Rc::new(MemoryFolder::from_sources(files));
        let checkpoint = bundle.checkpoint().await?;
        let part = |part: &str| {
            let prefix = format!("{part}.");
            Weights::new(Rc::new(checkpoint.renamed(|name| name.strip_prefix(&prefix).map(str::to_owned))))
        };
        let config = async |part: &str| {
            let child = folder.child(part);
            let file = format!("{part}/config.json");
            match read_file(&*child, "config.json", MAX_CONFIG).await? {
                Some(bytes) => Ok((file, bytes)),
                None => Err(Error::MissingFile { file, hint: format!("{name} lacks it; pack the model again") }),
            }
        };
        let [unet, vae] = [config("unet").await?, config("vae").await?];
        let text = [config(TEXT_FOLDERS[0]).await?, config(TEXT_FOLDERS[1]).await?];
        let networks = Networks {
            unet: (part("unet"), UnetConfig::parse(&unet.0, &unet.1)?),
            vae: (part("vae"), VaeConfig::parse(&vae.0, &vae.1)?),
            text: [
                (part(TEXT_FOLDERS[0]), TextEncoderConfig::parse(&text[0].0, &text[0].1)?),
                (part(TEXT_FOLDERS[1]), TextEncoderConfig::parse(&text[1].0, &text[1].1)?),
            ],
        };
        let tokenizers = tokenizers_in(&folder).await?;
        let index = bundle.manifest.configs.get(MODEL_INDEX);
        let zeros = index.and_then(|index| index.get("force_zeros_for_empty_prompt"));
        let zeros = zeros.and_then(serde_json::Value::as_bool).unwrap_or(true);
        let scheduler = scheduler_in(&folder).await?;
        Ok(Self::new(&name, networks, tokenizers, scheduler, zeros))
    }

    /// [`Self::networks`], each with the name of its folder.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&'static str, (&'static str, &Weights, Vec<ExpectedTensor>))> {
        [TEXT_FOLDERS[0], TEXT_FOLDERS[1], "unet", "vae"].into_iter().zip(self.networks())
    }

    fn new(
        name: &str,
        networks: Networks,
        tokenizers: [TokenizerFolder; 2],
        scheduler: Option<(String, Vec<u8>)>,
        force_zeros_for_empty_prompt: bool,
    ) -> Self {
        let Networks { unet, vae, text } = networks;
        let name = name.to_owned();
        let (merged_lora, markers) = (Vec::new(), TrainingMarkers::default());
        Self { name, unet, vae, text, tokenizers, scheduler, markers, force_zeros_for_empty_prompt, merged_lora }
    }

    /// Replaces the autoencoder.
    pub fn replace_vae(&mut self, vae: Vae) {
        self.vae = (vae.weights, vae.config);
    }

    /// The scheduler's settings: the model's, or those of the released model, changed by `choice` and by what a single
    /// file declares about its training.
    ///
    /// # Errors
    /// As [`SchedulerConfig::parse`].
    pub fn scheduler(&self, choice: Option<&SchedulerOverride>) -> Result<SchedulerConfig> {
        let config = match &self.scheduler {
            Some((file, bytes)) => SchedulerConfig::parse(file, bytes, choice)?,
            None => SchedulerConfig::released_for(self.markers, choice)?,
        };
        config.with_markers(self.markers, choice)
    }

    /// Width and height in pixels of the training images.
    pub fn default_size(&self) -> (usize, usize) {
        let side = self.unet.1.sample_size * self.vae.1.pixels_per_latent();
        (side, side)
    }

    /// Width and height in pixels for an initial image: its own, rounded down to whole latents. If it has more pixels
    /// than the training images, it is scaled down to about their pixel count, in its own proportions.
    pub fn size_for(&self, image: &Image) -> (usize, usize) {
        let unit = self.vae.1.pixels_per_latent();
        let (width, height) = (image.width() as f64, image.height() as f64);
        let (model_width, model_height) = self.default_size();
        let scale = ((model_width * model_height) as f64 / (width * height)).sqrt().min(1.0);
        let side = |side: f64| {
            let latents = side * scale / unit as f64;
            let latents = if scale < 1.0 { latents.round() } else { latents.floor() };
            (latents as usize).clamp(1, MAX_WIDTH) * unit
        };
        (side(width), side(height))
    }

    /// The precision of most of the UNet's weights in the files: the default precision on the device.
    pub fn stored_precision(&self) -> Precision {
        let checkpoint = self.unet.0.checkpoint();
        let kind = |dtype: Dtype| match dtype {
            Dtype::Block(_) => Precision::Q8,
            Dtype::F16 | Dtype::Bf16 | Dtype::F8E4M3 | Dtype::F8E5M2 => Precision::F16,
            _ => Precision::F32,
        };
        let elements = |precision: Precision| -> u64 {
            let of = checkpoint.tensors().filter(|(_, info)| kind(info.dtype) == precision);
            of.map(|(_, info)| info.elements().unwrap_or(0)).sum()
        };
        // Files do not quantise convolutions.
        let [whole, half, blocks] = [Precision::F32, Precision::F16, Precision::Q8].map(elements);
        match (blocks > 0, half > whole) {
            (true, _) => Precision::Q8,
            (false, true) => Precision::F16,
            (false, false) => Precision::F32,
        }
    }

    /// The networks with the tensors that each needs.
    pub fn networks(&self) -> [(&'static str, &Weights, Vec<ExpectedTensor>); 4] {
        let [first, second] = &self.text;
        [
            (TEXT_1, &first.0, expected::text(&first.1)),
            (TEXT_2, &second.0, expected::text(&second.1)),
            (UNET, &self.unet.0, expected::unet(&self.unet.1)),
            (VAE, &self.vae.0, expected::vae(&self.vae.1)),
        ]
    }

    /// A report on each network: missing and unexpected tensors, and wrong shapes.
    pub fn report(&self) -> Vec<PartReport> {
        let report = |(name, weights, expected)| PartReport::new(name, weights, expected);
        self.networks().into_iter().map(report).collect()
    }

    /// Checks, before anything is loaded, that every tensor exists with its shape, and that the networks fit together.
    ///
    /// # Errors
    /// As [`PartReport::check`] for each network; [`Error::Config`] if the widths or channels of two networks differ.
    pub fn check(&self) -> Result<()> {
        for part in self.report() {
            part.check()?;
        }
        let unet = &self.unet.1;
        let [first, second] = [&self.text[0].1, &self.text[1].1];
        let width = first.hidden_size + second.hidden_size;
        let bad = |reason: String| Err(Error::Config { file: self.name.clone(), reason });
        if width != unet.cross_attention_dim {
            let wanted = unet.cross_attention_dim;
            return bad(format!("the text encoders' states have width {width}, the UNet expects {wanted}"));
        }
        match second.projection_dim {
            Some(pooled) if pooled == unet.pooled_width() => {}
            pooled => {
                let wanted = unet.pooled_width();
                return bad(format!("the pooled text embedding has width {pooled:?}, the UNet expects {wanted}"));
            }
        }
        let latent = self.vae.1.latent_channels;
        if ![latent, 2 * latent + 1].contains(&unet.in_channels) || unet.out_channels != latent {
            return bad(format!(
                "the UNet has {} input and {} output channels, expected the VAE's {latent}, or {} inputs for inpainting",
                unet.in_channels,
                unet.out_channels,
                2 * latent + 1
            ));
        }
        Ok(())
    }

    /// Merges a LoRA file: it changes the weights whenever they are read from now on. Modules that the model lacks are
    /// in the report; the others are merged.
    ///
    /// # Errors
    /// [`Error::Config`] if the model has none of the file's modules, or if a module lacks a tensor;
    /// [`Error::WrongShape`] if a module's tensors do not fit its weight; [`Error::Unsupported`] if that is quantised.
    pub fn merge_lora(&mut self, lora: &Lora) -> Result<LoraReport> {
        let report = lora.merge(&mut self.unet, &mut self.text)?;
        self.merged_lora.push(lora.name_and_scale());
        Ok(report)
    }
}

const NETWORK_STEM: &str = "diffusion_pytorch_model";
const TEXT_STEM: &str = "model";

/// The folders of a model in diffusers' layout. A network's folder comes with the possible names of its weights, in
/// order of preference.
pub fn component_folders(prefer_f16: bool) -> Vec<(&'static str, Vec<String>)> {
    let plain = ["scheduler"].into_iter().chain(TOKENIZER_FOLDERS).map(|folder| (folder, Vec::new()));
    let networks =
        [("unet", NETWORK_STEM), ("vae", NETWORK_STEM), (TEXT_FOLDERS[0], TEXT_STEM), (TEXT_FOLDERS[1], TEXT_STEM)];
    plain.chain(networks.map(|(folder, stem)| (folder, candidates(stem, prefer_f16)))).collect()
}

/// Variants of weights that are read if there are no others: `diffusion_pytorch_model.bf16.safetensors`.
const RARE_VARIANTS: [&str; 3] = ["bf16", "fp32", "non_ema"];

/// File names of a network's weights, in order of preference: plain, f16 variant, rare variants, torch.
fn candidates(stem: &str, prefer_f16: bool) -> Vec<String> {
    let torch = if stem == TEXT_STEM { "pytorch_model" } else { stem };
    let plain = [format!("{stem}.safetensors.index.json"), format!("{stem}.safetensors")];
    // Both names of variant indices exist.
    let variant = [
        format!("{stem}.safetensors.index.fp16.json"),
        format!("{stem}.fp16.safetensors.index.json"),
        format!("{stem}.fp16.safetensors"),
    ];
    let torch = [format!("{torch}.bin.index.json"), format!("{torch}.bin"), format!("{torch}.fp16.bin")];
    let rare = RARE_VARIANTS.map(|variant| format!("{stem}.{variant}.safetensors"));
    let (first, second) = if prefer_f16 { (&variant[..], &plain[..]) } else { (&plain[..], &variant[..]) };
    [first, second, &rare, &torch].concat()
}

/// A network's tensors, and the name and bytes of its configuration.
async fn part(
    folder: &Rc<dyn Folder>,
    child: &str,
    what: &str,
    stem: &str,
    options: &OpenOptions,
) -> Result<(Checkpoint, String, Vec<u8>)> {
    component(&*folder.child(child), what, stem, options).await
}

/// As [`part`], from the network's own folder.
async fn component(
    folder: &dyn Folder,
    what: &str,
    stem: &str,
    options: &OpenOptions,
) -> Result<(Checkpoint, String, Vec<u8>)> {
    let file = format!("{}/config.json", folder.name());
    let Some(config) = read_file(folder, "config.json", MAX_CONFIG).await? else {
        let hint = format!("the {what} needs its configuration; is the download complete?");
        return Err(Error::MissingFile { file, hint });
    };
    let names = candidates(stem, options.prefer_f16);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Ok((Checkpoint::open(folder, &names).await?, file, config))
}

async fn text_part(
    folder: &Rc<dyn Folder>,
    index: usize,
    options: &OpenOptions,
) -> Result<(Weights, TextEncoderConfig)> {
    let what = [TEXT_1, TEXT_2][index];
    let (checkpoint, file, config) = part(folder, TEXT_FOLDERS[index], what, TEXT_STEM, options).await?;
    let weights = checkpoint.renamed(|name| (!name.ends_with("position_ids")).then(|| name.to_owned()));
    Ok((Weights::new(Rc::new(weights)), TextEncoderConfig::parse(&file, &config)?))
}

/// Checks that a folder's text encoders are those of a base model.
fn check_text_encoders(file: &str, index: &serde_json::Value) -> Result<()> {
    let class = |part: &str| index.get(part).and_then(|part| part.get(1)).and_then(|class| class.as_str());
    let unsupported = |what: String, found: &str, supported: &str| {
        Err(Error::Unsupported { what, found: found.to_owned(), supported: supported.to_owned() })
    };
    let score = index.get("requires_aesthetics_score").and_then(serde_json::Value::as_bool);
    let [first, second] = TEXT_FOLDERS.map(class);
    if score == Some(true) || (first.is_none() && second.is_some()) {
        let refiner = "the refiner of Stable Diffusion XL, which only finishes a base model's images";
        return unsupported(format!("{file}: the model"), refiner, "a base or inpainting model of Stable Diffusion XL");
    }
    for (part, class) in TEXT_FOLDERS.into_iter().zip([first, second]) {
        if let Some(class) = class
            && !class.starts_with("CLIPTextModel")
        {
            return unsupported(format!("{file}: {part}"), class, "CLIPTextModel and CLIPTextModelWithProjection");
        }
    }
    Ok(())
}

/// The parts that a single file lacks, where the folder of components has them, and the caller's autoencoder.
async fn other_parts(
    checkpoint: &Checkpoint,
    folder: &Rc<dyn Folder>,
    options: &OpenOptions,
) -> Result<single_file::OtherParts> {
    let (no_vae, no_text) = single_file::missing_parts(checkpoint);
    let mut other = single_file::OtherParts { vae: options.vae.clone(), ..Default::default() };
    let has = async |child: &str| Ok::<_, Error>(folder.child(child).open("config.json").await?.is_some());
    if no_vae && other.vae.is_none() && has("vae").await? {
        other.vae = Some(Vae::open_part(&folder.child("vae"), options).await?);
    }
    for (index, lacks) in no_text.into_iter().enumerate() {
        if lacks && has(TEXT_FOLDERS[index]).await? {
            other.text[index] = Some(text_part(folder, index, options).await?);
        }
    }
    Ok(other)
}

async fn scheduler_in(folder: &Rc<dyn Folder>) -> Result<Option<(String, Vec<u8>)>> {
    let child = folder.child("scheduler");
    let file = "scheduler_config.json";
    let bytes = read_file(&*child, file, MAX_CONFIG).await?;
    Ok(bytes.map(|bytes| (format!("{}/{file}", child.name()), bytes)))
}

async fn given_configs(folder: &Rc<dyn Folder>) -> Result<GivenConfigs> {
    let read = async |child: &str| {
        let child = folder.child(child);
        let bytes = read_file(&*child, "config.json", MAX_CONFIG).await?;
        Ok::<_, Error>(bytes.map(|bytes| (format!("{}/config.json", child.name()), bytes)))
    };
    let mut given = GivenConfigs::default();
    if let Some((file, bytes)) = read("unet").await? {
        given.unet = Some(UnetConfig::parse(&file, &bytes)?);
    }
    if let Some((file, bytes)) = read("vae").await? {
        given.vae = Some(VaeConfig::parse(&file, &bytes)?);
    }
    for (config, child) in given.text.iter_mut().zip(TEXT_FOLDERS) {
        if let Some((file, bytes)) = read(child).await? {
            *config = Some(TextEncoderConfig::parse(&file, &bytes)?);
        }
    }
    Ok(given)
}

/// Both tokenizers: in the two folders of diffusers' layout, or one vocabulary that both encoders share.
async fn tokenizers_in(folder: &Rc<dyn Folder>) -> Result<[TokenizerFolder; 2]> {
    let [first, second] = TOKENIZER_FOLDERS.map(|name| folder.child(name));
    let first = if TokenizerFolder::has_vocabulary(&*first).await? { first } else { Rc::clone(folder) };
    let second = match TokenizerFolder::has_vocabulary(&*second).await? {
        true => TokenizerFolder::new(second, None).await?,
        false => TokenizerFolder::new(Rc::clone(&first), Some(SECOND_PAD)).await?,
    };
    Ok([TokenizerFolder::new(first, None).await?, second])
}

/// The current name of a tensor of the autoencoder: earlier releases named the attention's modules differently.
fn modern_vae(name: &str) -> String {
    let Some((before, rest)) = name.split_once(".attentions.0.") else { return name.to_owned() };
    let (module, end) = rest.split_once('.').unwrap_or((rest, ""));
    match names::vae_attention(module) {
        Some(module) => format!("{before}.attentions.0.{module}.{end}"),
        None => name.to_owned(),
    }
}

/// Views the 1 x 1 convolutions of the autoencoder's attention, an earlier notation, as matrices.
fn as_matrix(name: &str, shape: &[usize]) -> View {
    match shape {
        &[rows, columns, 1, 1] if name.contains("attn_1.") || name.contains(".attentions.") => {
            View::Reshaped(vec![rows, columns])
        }
        _ => View::Whole,
    }
}
