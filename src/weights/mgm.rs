//! A whole Mini-Gemini checkpoint: its configuration, and its parts wherever their weights are.
//!
//! A released checkpoint holds everything, yet the reference takes the high-resolution tower from a separate file and
//! starts the low-resolution one from another; [`MgmCheckpoint::open`] follows it, so that the same weights are used.

use std::future::Future;
use std::rc::Rc;

use super::bundle::CLIP_CONFIG;
use super::bundle::read::Bundle;
use super::checkpoint::{Checkpoint, MODEL_FILES, OPEN_CLIP_FILES};
use super::config::{
    Architecture, ClipConfig, GenerationConfig, LanguageConfig, MAX_CONFIG, MgmConfig, Projector, VisionConfig,
};
use super::gguf_model::GgufModel;
use super::source::{Folder, read_file};
use super::view::Weights;
use crate::tensor::Precision;
use crate::{Error, Result};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
/// What a checkpoint of the first training stage holds, beside the weights of an untouched language model.
const STAGE_ONE: &str = "mm_projector.bin";

const CLIP_PREFIXES: &[&str] = &["model.vision_tower.vision_tower."];
const CONVNEXT_PREFIXES: &[&str] = &["model.vision_tower_aux."];
const PROJECTOR_PREFIX: &str = "model.mm_projector.";
const MINING_PREFIX: &str = "model.vlm_uni_";
/// Everything of the vision side starts with one of these.
const VISION_PREFIXES: &[&str] = &["model.vision_tower.", "model.vision_tower_aux.", PROJECTOR_PREFIX, MINING_PREFIX];

/// Folders of the two towers, if the user names them. They win over every other copy.
#[derive(Clone, Default)]
pub struct TowerOptions {
    /// The low-resolution tower: a folder with CLIP's weights.
    pub clip: Option<Rc<dyn Folder>>,
    /// The high-resolution tower: a folder with OpenCLIP's ConvNeXt.
    pub convnext: Option<Rc<dyn Folder>>,
}

/// An opened Mini-Gemini checkpoint. Only headers and configurations are in memory.
pub struct MgmCheckpoint {
    /// Its folder, where the tokenizer is too.
    pub folder: Rc<dyn Folder>,
    /// Its `config.json`.
    pub config: MgmConfig,
    /// Its `generation_config.json`; empty if there is none.
    pub generation: GenerationConfig,
    /// The language model: `model.embed_tokens.weight`, `model.layers.0.…`, `model.norm.weight`, `lm_head.weight`.
    pub language: Weights,
    /// The vision side; `None` if this is a language model of its own.
    pub vision: Option<VisionWeights>,
    /// The conversation template's name, where the checkpoint says it: bundles do.
    pub conversation: Option<String>,
    /// The precision of the language model, where it was chosen when the checkpoint was made: bundles'.
    pub packed: Option<Precision>,
}

/// The weights of the vision side. Names are the same wherever they come from.
pub struct VisionWeights {
    /// Its configuration.
    pub config: VisionConfig,
    /// The low-resolution tower's configuration.
    pub clip_config: ClipConfig,
    /// The low-resolution tower: `vision_model.embeddings.…` and so on.
    pub clip: Weights,
    /// The high-resolution tower: `stem.0.weight`, `stages.0.blocks.0.gamma` and so on.
    pub convnext: Weights,
    /// Patch info mining: `query.0.weight`, `aux.1.bias`, `val.1.weight` and so on.
    pub mining: Weights,
    /// The projector: `0.weight`, `2.weight` and so on.
    pub projector: Weights,
}

impl MgmCheckpoint {
    /// Opens a checkpoint's folder and finds the towers: in the folders of `towers`; where `config.json` says, seen from
    /// the checkpoint's folder and the two around it; or inside the checkpoint.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::MissingTensor`] if a part is nowhere; whatever is wrong with the files.
    pub async fn open(folder: Rc<dyn Folder>, towers: TowerOptions) -> Result<Self> {
        let main = Checkpoint::open(&*folder, MODEL_FILES);
        Self::assemble(&folder, towers, main).await
    }

    /// Opens a bundle made of a checkpoint.
    ///
    /// # Errors
    /// As [`MgmCheckpoint::open`]; [`Error::Unsupported`] if it has an unknown precision.
    pub async fn open_bundle(bundle: &Bundle) -> Result<Self> {
        let folder = bundle.folder();
        let mut checkpoint = Self::assemble(&folder, TowerOptions::default(), bundle.checkpoint()).await?;
        checkpoint.conversation = bundle.manifest.conversation.clone();
        checkpoint.packed = Some(bundle.manifest.precision.parse()?);
        Ok(checkpoint)
    }

    async fn assemble(
        folder: &Rc<dyn Folder>,
        towers: TowerOptions,
        main: impl Future<Output = Result<Checkpoint>>,
    ) -> Result<Self> {
        let folder = Rc::clone(folder);
        let Some(bytes) = read_file(&*folder, CONFIG, MAX_CONFIG).await? else {
            return Err(Error::MissingFile {
                file: format!("{}/{CONFIG}", folder.name()),
                hint: "a checkpoint is a folder with config.json, weights and a tokenizer in it".to_owned(),
            });
        };
        let config = MgmConfig::parse(&format!("{}/{CONFIG}", folder.name()), &bytes)?;
        let generation = match read_file(&*folder, GENERATION_CONFIG, MAX_CONFIG).await? {
            Some(bytes) => GenerationConfig::parse(&format!("{}/{GENERATION_CONFIG}", folder.name()), &bytes)?,
            None => GenerationConfig::default(),
        };
        let mut main = main.await?;
        if let Some(source) = folder.open(STAGE_ONE).await? {
            let stage_one = Checkpoint::open_file(source).await?.renamed(|name| {
                // Trainers wrap models differently; what counts starts at "model." and that may be left out.
                let start =
                    name.find("vlm_uni_").or_else(|| name.find("mm_projector.")).or_else(|| name.find("vision_tower"));
                Some(format!("model.{}", name.get(start?..)?))
            });
            main = main.extended(&stage_one);
        }
        let language = part(&main, |name| {
            let vision = VISION_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            (!vision).then(|| name.to_owned())
        });
        let vision = match &config.vision {
            None => None,
            Some(vision) => Some(VisionWeights::open(&folder, vision.clone(), &main, towers).await?),
        };
        Ok(Self { folder, config, generation, language, vision, conversation: None, packed: None })
    }

    /// Takes the language model from a GGUF file. The tokenizer and the templates stay the checkpoint's.
    ///
    /// # Errors
    /// [`Error::Config`] if it is a model of another kind or size.
    pub fn replace_language(&mut self, model: &GgufModel) -> Result<()> {
        let (own, other) = (&self.config.language, &model.config);
        let sizes = |config: &LanguageConfig| {
            format!(
                "{:?} with {} layers of width {}, {} heads of {}, {} key/value heads, a vocabulary of {}",
                config.architecture,
                config.num_layers,
                config.hidden_size,
                config.num_heads,
                config.head_dim,
                config.num_kv_heads,
                config.vocab_size
            )
        };
        if sizes(own) != sizes(other) {
            let reason = format!("it is a {}; the checkpoint's language model is a {}", sizes(other), sizes(own));
            return Err(Error::Config { file: model.header.file.clone(), reason });
        }
        // What the file does not say, or says about another tokenizer, stays.
        self.config.language = LanguageConfig {
            max_positions: own.max_positions,
            bos_token: own.bos_token,
            eos_tokens: own.eos_tokens.clone(),
            activation: own.activation,
            ..other.clone()
        };
        self.language = model.weights.clone();
        Ok(())
    }

    /// The parts, with what they lack and what they hold beyond need.
    pub fn report(&self) -> Vec<PartReport> {
        let mut parts = vec![PartReport::of_language(&self.language, &self.config.language)];
        if let Some(vision) = &self.vision {
            let config = &vision.config;
            parts.extend([
                PartReport::new("low-resolution tower", &vision.clip, clip_tensors(&vision.clip_config)),
                PartReport::new("high-resolution tower", &vision.convnext, convnext_tensors(&vision.convnext)),
                PartReport::new("patch info mining", &vision.mining, mining_tensors(config)),
                PartReport::new("projector", &vision.projector, projector_tensors(config, &self.config.language)),
            ]);
        }
        parts
    }
}

/// Gives a tensor of a part the name it has in a checkpoint.
type Naming = fn(&str) -> String;

impl VisionWeights {
    /// The parts, each with the names that its tensors have in a checkpoint.
    pub(super) fn parts(&self) -> [(Naming, &Weights); 4] {
        [
            (|name| format!("{}{name}", CLIP_PREFIXES[0]), &self.clip),
            (|name| format!("{}{name}", CONVNEXT_PREFIXES[0]), &self.convnext),
            (
                |name| {
                    let (module, rest) = name.split_once('.').unwrap_or((name, ""));
                    format!("{MINING_PREFIX}{module}_projector.{rest}")
                },
                &self.mining,
            ),
            (|name| format!("{PROJECTOR_PREFIX}{name}"), &self.projector),
        ]
    }

    async fn open(
        folder: &Rc<dyn Folder>,
        config: VisionConfig,
        main: &Checkpoint,
        towers: TowerOptions,
    ) -> Result<Self> {
        let own_clip = part(main, clip_name);
        let own_convnext = part(main, convnext_name);

        let clip_path = config.tower.as_deref().unwrap_or("clip-vit-large-patch14-336");
        let beside = match &towers.clip {
            Some(folder) => Some((Rc::clone(folder), Checkpoint::open(&**folder, MODEL_FILES).await?)),
            None => find_tower(folder, clip_path, MODEL_FILES).await?,
        };
        let separate = beside.as_ref().map(|(_, checkpoint)| part(checkpoint, clip_name));
        let own = (towers.clip.is_none() && !own_clip.checkpoint().is_empty()).then_some(own_clip);
        let clip = own.or(separate).ok_or_else(|| missing_tower(folder, "low", clip_path, "--vision-tower"))?;
        // The configuration is only ever beside the separate copy, whichever copy's weights are used.
        let clip_file = match &beside {
            Some((folder, _)) => read_file(&**folder, CONFIG, MAX_CONFIG).await?.map(|bytes| (folder.name(), bytes)),
            None => None,
        };
        let clip_file = match clip_file {
            Some(file) => Some(file),
            None => read_file(&**folder, CLIP_CONFIG, MAX_CONFIG).await?.map(|bytes| (folder.name(), bytes)),
        };
        let clip_config = match clip_file {
            Some((name, bytes)) => ClipConfig::parse(&format!("{name}/{CONFIG}"), &bytes)?,
            None => ClipConfig::from_weights(&clip)?,
        };

        let high_path =
            config.high_tower.as_deref().unwrap_or("openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup");
        let own = (!own_convnext.checkpoint().is_empty()).then_some(own_convnext);
        let convnext = match (&towers.convnext, own) {
            (Some(folder), _) => part(&Checkpoint::open(&**folder, OPEN_CLIP_FILES).await?, convnext_name),
            (None, Some(own)) if config.optimize_high_tower => own,
            (None, own) => match find_tower(folder, high_path, OPEN_CLIP_FILES).await? {
                Some((_, checkpoint)) => part(&checkpoint, convnext_name),
                None => own.ok_or_else(|| missing_tower(folder, "high", high_path, "--vision-tower-hr"))?,
            },
        };

        let mining = part(main, |name| {
            let (module, rest) = name.strip_prefix(MINING_PREFIX)?.split_once("_projector.")?;
            Some(format!("{module}.{rest}"))
        });
        let projector = part(main, |name| match name.strip_prefix(PROJECTOR_PREFIX)? {
            // A single linear layer is saved without a number.
            name @ ("weight" | "bias") => Some(format!("0.{name}")),
            name => Some(name.to_owned()),
        });

        // The high-resolution map has a stride of 4 and is cut into windows, one a low-resolution patch.
        let step = clip_config.grid().saturating_mul(config.grid).saturating_mul(4);
        if step == 0 || !config.high_image_size.is_multiple_of(step) || !config.high_image_size.is_multiple_of(32) {
            return Err(Error::Config {
                file: format!("{}/{CONFIG}", folder.name()),
                reason: format!(
                    "image_size_aux is {}, expected a multiple of 32 and of {step} (4 pixels a cell, {} patches a side, \
                     {} tiles a side)",
                    config.high_image_size,
                    clip_config.grid(),
                    config.grid
                ),
            });
        }
        Ok(Self { config, clip_config, clip, convnext, mining, projector })
    }
}

fn part(checkpoint: &Checkpoint, rename: impl Fn(&str) -> Option<String>) -> Weights {
    Weights::new(Rc::new(checkpoint.renamed(rename)))
}

/// CLIP's name for a tensor of a checkpoint of MGM's or of its own; `None` for what is no part of the tower.
fn clip_name(name: &str) -> Option<String> {
    let name = CLIP_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    // Older files have a buffer that counts from 0 to 576.
    (name.starts_with("vision_model.") && !name.ends_with("position_ids")).then(|| name.to_owned())
}

/// timm's name for a tensor of the ConvNeXt in a checkpoint of MGM's, OpenCLIP's or timm's; `None` for what is no part
/// of the tower.
fn convnext_name(name: &str) -> Option<String> {
    let name = CONVNEXT_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    let name = name.strip_prefix("module.").unwrap_or(name);
    let name = name.strip_prefix("visual.trunk.").unwrap_or(name);
    let name = name.strip_prefix("vision_").unwrap_or(name);
    (name.starts_with("stem.") || name.starts_with("stages.")).then(|| name.to_owned())
}

/// Looks for a tower that `config.json` has at `path`, a path relative to where its author ran it: in the checkpoint's
/// folder and the two around it, with all of the path, its last two parts or only the last.
async fn find_tower(
    folder: &Rc<dyn Folder>,
    path: &str,
    candidates: &[&str],
) -> Result<Option<(Rc<dyn Folder>, Checkpoint)>> {
    let parts: Vec<&str> = path.split(['/', '\\']).filter(|part| !matches!(*part, "" | "." | "..")).collect();
    let absolute = path.starts_with('/');
    for around in ["", "../", "../../"] {
        for length in [parts.len(), 2, 1] {
            if length > parts.len() || length == 0 || (absolute && length > 2) {
                continue;
            }
            let tail = parts.get(parts.len() - length..).unwrap_or_default().join("/");
            let tower = folder.child(&format!("{around}{tail}"));
            if let Some(checkpoint) = Checkpoint::find(&*tower, candidates).await? {
                return Ok(Some((tower, checkpoint)));
            }
        }
    }
    Ok(None)
}

fn missing_tower(folder: &Rc<dyn Folder>, which: &str, path: &str, option: &str) -> Error {
    Error::MissingFile {
        file: format!("{}/{path}", folder.name()),
        hint: format!(
            "the checkpoint does not hold the {which}-resolution tower's weights, and they are neither there nor beside it; \
             download that folder, or say where it is with {option}"
        ),
    }
}

/// A tensor's name and shape.
pub type Expected = (String, Vec<usize>);

/// A part of a checkpoint as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartReport {
    /// The part.
    pub name: &'static str,
    /// The file or folder that its tensors are in.
    pub origin: String,
    /// How many tensors it has.
    pub tensors: usize,
    /// How many numbers are in them.
    pub parameters: u64,
    /// How many bytes they take in the files.
    pub bytes: u64,
    /// Tensors that are needed and not there.
    pub missing: Vec<String>,
    /// Tensors that are there and not needed.
    pub unexpected: Vec<String>,
    /// Tensors with another shape than needed: name, found, expected.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl PartReport {
    /// The report of a language model by itself.
    pub fn of_language(weights: &Weights, config: &LanguageConfig) -> Self {
        Self::new("language model", weights, language_tensors(config))
    }

    pub(super) fn new(name: &'static str, weights: &Weights, expected: Vec<Expected>) -> Self {
        let mut report = Self {
            name,
            origin: weights.checkpoint().name().to_owned(),
            tensors: 0,
            parameters: 0,
            bytes: 0,
            missing: Vec::new(),
            unexpected: Vec::new(),
            misshapen: Vec::new(),
        };
        for (_, info) in weights.checkpoint().tensors() {
            report.tensors += 1;
            report.parameters = report.parameters.saturating_add(info.elements().unwrap_or(u64::MAX));
            report.bytes = report.bytes.saturating_add(info.bytes().unwrap_or(u64::MAX));
        }
        let known: std::collections::HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        report.unexpected =
            weights.names().filter(|name| !known.contains(name) && !harmless(name)).map(str::to_owned).collect();
        for (name, shape) in expected {
            match weights.checkpoint().info(&name) {
                None => report.missing.push(name),
                Some(info) if info.shape != shape => report.misshapen.push((name, info.shape.clone(), shape)),
                Some(_) => {}
            }
        }
        report
    }
}

/// Tensors that some versions of the reference save and none needs.
fn harmless(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || name == "lm_head.weight" || name == "rope_freqs.weight"
}

fn language_tensors(config: &LanguageConfig) -> Vec<Expected> {
    let hidden = config.hidden_size;
    let (queries, keys) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if !config.tie_word_embeddings {
        tensors.push(("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]));
    }
    for layer in 0..config.num_layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
        add("self_attn.q_proj", &[queries, hidden]);
        add("self_attn.k_proj", &[keys, hidden]);
        add("self_attn.v_proj", &[keys, hidden]);
        add("self_attn.o_proj", &[hidden, queries]);
        let wide = config.intermediate_size;
        match (config.architecture, config.experts) {
            (Architecture::Mixtral, Some(experts)) => {
                add("block_sparse_moe.gate", &[experts.count, hidden]);
                for expert in 0..experts.count {
                    add(&format!("block_sparse_moe.experts.{expert}.w1"), &[wide, hidden]);
                    add(&format!("block_sparse_moe.experts.{expert}.w2"), &[hidden, wide]);
                    add(&format!("block_sparse_moe.experts.{expert}.w3"), &[wide, hidden]);
                }
            }
            _ => {
                add("mlp.gate_proj", &[wide, hidden]);
                add("mlp.up_proj", &[wide, hidden]);
                add("mlp.down_proj", &[hidden, wide]);
            }
        }
    }
    tensors
}

/// A tensor and its bias.
fn with_bias(tensors: &mut Vec<Expected>, name: &str, shape: &[usize]) {
    tensors.push((format!("{name}.weight"), shape.to_vec()));
    tensors.push((format!("{name}.bias"), shape.first().map(|size| vec![*size]).unwrap_or_default()));
}

fn clip_tensors(config: &ClipConfig) -> Vec<Expected> {
    let (hidden, patch) = (config.hidden_size, config.patch_size);
    let positions = config.grid() * config.grid() + 1;
    let mut tensors = vec![
        ("vision_model.embeddings.class_embedding".to_owned(), vec![hidden]),
        ("vision_model.embeddings.patch_embedding.weight".to_owned(), vec![hidden, 3, patch, patch]),
        ("vision_model.embeddings.position_embedding.weight".to_owned(), vec![positions, hidden]),
    ];
    with_bias(&mut tensors, "vision_model.pre_layrnorm", &[hidden]);
    with_bias(&mut tensors, "vision_model.post_layernorm", &[hidden]);
    for layer in 0..config.num_layers {
        let mut add = |name: &str, shape: &[usize]| {
            with_bias(&mut tensors, &format!("vision_model.encoder.layers.{layer}.{name}"), shape);
        };
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            add(&format!("self_attn.{projection}"), &[hidden, hidden]);
        }
        add("layer_norm1", &[hidden]);
        add("layer_norm2", &[hidden]);
        add("mlp.fc1", &[config.intermediate_size, hidden]);
        add("mlp.fc2", &[hidden, config.intermediate_size]);
    }
    tensors
}

/// No configuration speaks of ConvNeXt's sizes; the first tensor of each stage and the number of blocks do.
fn convnext_tensors(weights: &Weights) -> Vec<Expected> {
    let mut tensors = Vec::new();
    let width = |name: &str| weights.shape(name).ok().and_then(|shape| shape.first().copied()).unwrap_or(0);
    let mut below = width("stem.0.weight");
    with_bias(&mut tensors, "stem.0", &[below, 3, 4, 4]);
    with_bias(&mut tensors, "stem.1", &[below]);
    for stage in 0..4 {
        let channels = width(&format!("stages.{stage}.blocks.0.gamma"));
        if stage > 0 {
            with_bias(&mut tensors, &format!("stages.{stage}.downsample.0"), &[below]);
            with_bias(&mut tensors, &format!("stages.{stage}.downsample.1"), &[channels, below, 2, 2]);
        }
        for block in 0..weights.pp("stages").pp(stage).count("blocks").max(1) {
            let block = format!("stages.{stage}.blocks.{block}");
            let wide = channels.saturating_mul(4);
            tensors.push((format!("{block}.gamma"), vec![channels]));
            with_bias(&mut tensors, &format!("{block}.conv_dw"), &[channels, 1, 7, 7]);
            with_bias(&mut tensors, &format!("{block}.norm"), &[channels]);
            with_bias(&mut tensors, &format!("{block}.mlp.fc1"), &[wide, channels]);
            with_bias(&mut tensors, &format!("{block}.mlp.fc2"), &[channels, wide]);
        }
        below = channels;
    }
    tensors
}

fn mining_tensors(config: &VisionConfig) -> Vec<Expected> {
    let mut tensors = Vec::new();
    let widths = [("query", config.hidden_size), ("aux", config.high_hidden_size), ("val", config.high_hidden_size)];
    for (module, width) in widths {
        with_bias(&mut tensors, &format!("{module}.0"), &[width]);
        with_bias(&mut tensors, &format!("{module}.1"), &[config.hidden_size, width]);
    }
    tensors
}

fn projector_tensors(config: &VisionConfig, language: &LanguageConfig) -> Vec<Expected> {
    let mut tensors = Vec::new();
    let hidden = language.hidden_size;
    match config.projector {
        Projector::Identity => {}
        Projector::Mlp(1) => with_bias(&mut tensors, "0", &[hidden, config.hidden_size]),
        Projector::Mlp(depth) => {
            for layer in 0..depth {
                let width = if layer == 0 { config.hidden_size } else { hidden };
                // Between two linear layers there is an activation, which has a number but no weights.
                with_bias(&mut tensors, &format!("{}", 2 * layer), &[hidden, width]);
            }
        }
    }
    tensors
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::checkpoint::tests::file;
    use super::super::config::tests::with;
    use super::super::source::MemoryFolder;
    use super::*;

    type Files = Vec<(String, Vec<u8>)>;

    fn open(files: Files, options: impl FnOnce(&MemoryFolder) -> TowerOptions) -> Result<MgmCheckpoint> {
        let root = MemoryFolder::new(files);
        let towers = options(&root);
        pollster::block_on(MgmCheckpoint::open(root.child("models/mgm"), towers))
    }

    fn config(changes: Value) -> (String, Vec<u8>) {
        let mut config = json!({
            "model_type": "mgm", "image_size_aux": 768, "mm_hidden_size": 128, "mm_hidden_size_aux": 4,
            "mm_vision_tower": "model_zoo/OpenAI/clip", "mm_vision_tower_aux": "model_zoo/OpenAI/convnext"
        });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        ("models/mgm/config.json".into(), with(config).to_string().into_bytes())
    }

    /// A tower of which only what tells its sizes is there; `mark` tells copies apart.
    fn clip(prefix: &str, mark: f32) -> Vec<(String, Vec<usize>, f32)> {
        vec![
            (format!("{prefix}vision_model.embeddings.patch_embedding.weight"), vec![128, 3, 14, 14], mark),
            (format!("{prefix}vision_model.embeddings.position_embedding.weight"), vec![577, 128], mark),
            (format!("{prefix}vision_model.encoder.layers.0.mlp.fc1.weight"), vec![256, 128], mark),
        ]
    }

    fn convnext(prefix: &str, mark: f32) -> Vec<(String, Vec<usize>, f32)> {
        vec![
            (format!("{prefix}stem.0.weight"), vec![1], mark),
            (format!("{prefix}stages.0.blocks.0.gamma"), vec![1], mark),
        ]
    }

    fn tensors(path: &str, tensors: Vec<(String, Vec<usize>, f32)>) -> (String, Vec<u8>) {
        let filled: Vec<(String, Vec<usize>, Vec<f32>)> = tensors
            .into_iter()
            .map(|(name, shape, mark)| {
                let values = vec![mark; shape.iter().product()];
                (name, shape, values)
            })
            .collect();
        let views: Vec<(&str, &[usize], &[f32])> =
            filled.iter().map(|(name, shape, values)| (name.as_str(), shape.as_slice(), values.as_slice())).collect();
        (path.to_owned(), file(&views))
    }

    /// The marks of the two towers that were chosen.
    fn marks(checkpoint: &MgmCheckpoint) -> (f32, f32) {
        let vision = checkpoint.vision.as_ref().unwrap();
        let first = |weights: &Weights, name| pollster::block_on(weights.read(name)).unwrap()[0];
        let clip = first(&vision.clip, "vision_model.encoder.layers.0.mlp.fc1.weight");
        (clip, first(&vision.convnext, "stages.0.blocks.0.gamma"))
    }

    const MAIN: &str = "models/mgm/model.safetensors";

    fn own() -> Vec<(String, Vec<usize>, f32)> {
        [clip("model.vision_tower.vision_tower.", 1.0), convnext("model.vision_tower_aux.vision_", 1.0)].concat()
    }

    fn separate(root: &str) -> Files {
        vec![
            tensors(&format!("{root}/clip/model.safetensors"), clip("", 2.0)),
            tensors(&format!("{root}/convnext/open_clip_model.safetensors"), convnext("module.visual.trunk.", 2.0)),
        ]
    }

    #[test]
    fn the_copy_of_a_tower_is_the_one_that_the_reference_uses() {
        let none = |_: &MemoryFolder| TowerOptions::default();
        // Only its own.
        let alone = vec![config(json!({})), tensors(MAIN, own())];
        let checkpoint = open(alone.clone(), none).unwrap();
        assert_eq!(marks(&checkpoint), (1.0, 1.0));
        let config_of_shapes = &checkpoint.vision.unwrap().clip_config;
        assert_eq!((config_of_shapes.num_heads, config_of_shapes.grid(), config_of_shapes.num_layers), (2, 24, 1));
        // Its own and separate ones, wherever they may be.
        for root in [
            "models/mgm/model_zoo/OpenAI",
            "models/model_zoo/OpenAI",
            "model_zoo/OpenAI",
            "models/OpenAI",
            "OpenAI",
            "models",
        ] {
            let both = [alone.clone(), separate(root)].concat();
            assert_eq!(marks(&open(both, none).unwrap()), (1.0, 2.0), "{root}");
            let bare = [vec![config(json!({})), tensors(MAIN, vec![])], separate(root)].concat();
            assert_eq!(marks(&open(bare, none).unwrap()), (2.0, 2.0), "{root}");
        }
        let trained = vec![config(json!({"optimize_vision_tower_aux": true})), tensors(MAIN, own())];
        assert_eq!(marks(&open([trained, separate("models")].concat(), none).unwrap()), (1.0, 1.0));
        // Named by the user.
        let named = |root: &MemoryFolder| TowerOptions {
            clip: Some(root.child("my/clip")),
            convnext: Some(root.child("my/convnext")),
        };
        let trained = vec![config(json!({"optimize_vision_tower_aux": true})), tensors(MAIN, own())];
        assert_eq!(marks(&open([trained, separate("my")].concat(), named).unwrap()), (2.0, 2.0));
        assert!(matches!(open(alone, named), Err(Error::MissingFile { .. })));
        // Nowhere.
        let nowhere = open(vec![config(json!({})), tensors(MAIN, vec![])], none).err().unwrap().to_string();
        assert!(
            nowhere.contains("model_zoo/OpenAI/clip is missing") && nowhere.contains("--vision-tower"),
            "{nowhere}"
        );
    }

    #[test]
    fn language_models_of_their_own_open() {
        let files = vec![
            ("models/mgm/config.json".to_owned(), with(json!({})).to_string().into_bytes()),
            tensors(MAIN, vec![("model.norm.weight".into(), vec![63], 1.0), ("odd".into(), vec![1], 1.0)]),
        ];
        let checkpoint = open(files, |_| TowerOptions::default()).unwrap();
        assert!(checkpoint.vision.is_none());
        let report = checkpoint.report();
        assert_eq!((report.len(), report[0].tensors, report[0].parameters, report[0].bytes), (1, 2, 64, 256));
        assert_eq!(report[0].unexpected, ["odd"]);
        assert_eq!(report[0].misshapen, [("model.norm.weight".to_owned(), vec![63], vec![64])]);
        assert_eq!(report[0].missing.len(), 2 + 2 * 9);
        assert!(report[0].missing.iter().any(|name| name == "model.layers.1.self_attn.q_proj.weight"));
    }

    #[test]
    fn first_stage_checkpoints_bring_their_part() {
        let stage_one = vec![
            ("model.mm_projector.0.weight".to_owned(), vec![1], 3.0),
            ("base.model.vlm_uni_query_projector.1.bias".to_owned(), vec![1], 4.0),
        ];
        let files = vec![
            config(json!({})),
            tensors(MAIN, [own(), vec![("model.norm.weight".into(), vec![1], 5.0)]].concat()),
            tensors("models/mgm/mm_projector.bin", stage_one),
        ];
        let checkpoint = open(files, |_| TowerOptions::default()).unwrap();
        let vision = checkpoint.vision.unwrap();
        assert_eq!(pollster::block_on(vision.projector.read("0.weight")).unwrap(), [3.0]);
        assert_eq!(pollster::block_on(vision.mining.pp("query").read("1.bias")).unwrap(), [4.0]);
        assert_eq!(checkpoint.language.names().collect::<Vec<_>>(), ["model.norm.weight"]);
    }

    #[test]
    fn sizes_that_do_not_tile_are_refused() {
        let files = vec![config(json!({"image_size_aux": 800})), tensors(MAIN, own())];
        let error = open(files, |_| TowerOptions::default()).err().unwrap().to_string();
        assert!(error.contains("image_size_aux is 800, expected a multiple of 32 and of 96"), "{error}");
        let error = open(vec![], |_| TowerOptions::default()).err().unwrap().to_string();
        assert!(error.contains("models/mgm/config.json is missing"), "{error}");
    }
}
