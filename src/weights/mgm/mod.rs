//! A whole Mini-Gemini checkpoint: its configuration, and the weights of its parts.
//!
//! A released checkpoint contains everything, yet the reference loads the high-resolution tower from a separate file
//! and starts the low-resolution one from another. [`MgmCheckpoint::open`] does the same, so that the same weights are
//! used.

mod names;
mod towers;

use std::future::Future;
use std::rc::Rc;

use super::bundle::read::Bundle;
use super::checkpoint::{Checkpoint, MODEL_FILES};
use super::config::{GenerationConfig, LanguageConfig, MAX_CONFIG, MgmConfig};
use super::gguf_model::GgufModel;
use super::report::PartReport;
use super::view::Weights;
use crate::io::{Folder, read_file};
use crate::tensor::Precision;
use crate::{Error, Result};

pub use towers::{TowerOptions, VisionWeights};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
/// The weights that the first training stage saves, next to those of an unchanged language model.
const STAGE_ONE: &str = "mm_projector.bin";

/// An opened Mini-Gemini checkpoint. Only headers and configurations are in memory.
#[non_exhaustive]
pub struct MgmCheckpoint {
    /// Its folder, with the tokenizer.
    pub folder: Rc<dyn Folder>,
    /// Its `config.json`.
    pub config: MgmConfig,
    /// Its `generation_config.json`; empty if there is none.
    pub generation: GenerationConfig,
    /// The language model: `model.embed_tokens.weight`, `model.layers.0.…`, `model.norm.weight`, `lm_head.weight`.
    pub language: Weights,
    /// The vision side; `None` for a language model alone.
    pub vision: Option<VisionWeights>,
    /// Name of the conversation template, if the checkpoint has one: bundles do.
    pub conversation: Option<String>,
    /// Precision of a bundle's language model.
    pub packed: Option<Precision>,
}

impl MgmCheckpoint {
    /// Opens a checkpoint's folder and finds the towers: in the folders of `towers`; at the paths of `config.json`,
    /// relative to the checkpoint's folder and its two parents; or inside the checkpoint.
    ///
    /// # Errors
    /// [`Error::NeedsSetting`] if a tower is nowhere; [`Error::MissingFile`] without configuration or weights; the
    /// errors of reading the files.
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
                hint: "check the path; a checkpoint is a folder with config.json, weights and a tokenizer".to_owned(),
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
                // Trainers put different prefixes before "model.", or leave it out.
                let start =
                    name.find("vlm_uni_").or_else(|| name.find("mm_projector.")).or_else(|| name.find("vision_tower"));
                Some(format!("model.{}", name.get(start?..)?))
            });
            main = main.with_fallback(&stage_one);
        }
        let language = part(&main, |name| (!names::is_vision(name)).then(|| name.to_owned()));
        let vision = match &config.vision {
            None => None,
            Some(vision) => Some(VisionWeights::open(&folder, vision.clone(), &main, towers).await?),
        };
        Ok(Self { folder, config, generation, language, vision, conversation: None, packed: None })
    }

    /// Replaces the language model by one in a GGUF file. Tokenizer and template stay the checkpoint's.
    ///
    /// # Errors
    /// [`Error::Config`] if its architecture or sizes differ.
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
        // Settings that the file lacks, or has for another tokenizer, stay.
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

    /// A report on each part: what is missing, unexpected or of another shape.
    pub fn report(&self) -> Vec<PartReport> {
        let mut parts = vec![PartReport::for_language(&self.language, &self.config.language)];
        if let Some(vision) = &self.vision {
            let names = ["low-resolution tower", "high-resolution tower", "patch info mining", "projector"];
            let expected = vision.expected(self.config.language.hidden_size);
            for (name, ((_, weights), expected)) in names.into_iter().zip(vision.parts().into_iter().zip(expected)) {
                parts.push(PartReport::new(name, weights, expected));
            }
        }
        parts
    }
}

fn part(checkpoint: &Checkpoint, rename: impl Fn(&str) -> Option<String>) -> Weights {
    Weights::new(Rc::new(checkpoint.renamed(rename)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Setting;
    use crate::io::MemoryFolder;
    use crate::weights::checkpoint::tests::file;
    use crate::weights::config::tests::with;
    use crate::weights::report::WrongShape;

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

    /// A tower with only the tensors that determine its sizes; `mark` identifies the copy.
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
    fn towers_are_found_where_the_reference_looks() {
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
        // Under other names, and with a path as other machines write it.
        for (path, high_path) in [
            ("model_zoo/OpenAI/clip-vit-large-patch14-336/", "./openclip-convnext-large-d-320-laion2B//"),
            ("D:\\zoo\\clip-vit-large-patch14-336", "..\\zoo\\openclip-convnext-large-d-320-laion2B\\"),
            ("/data/Clip-ViT-Large-patch14-336", "/data/openclip-convnext-large-d-320-laion2B"),
        ] {
            let paths = config(json!({"mm_vision_tower": path, "mm_vision_tower_aux": high_path}));
            for (clip_folder, high_folder) in [
                ("models/clip-vit-large-patch14-336", "models/openclip-convnext-large-d-320-laion2B"),
                ("models/CLIP-ViT-large-patch14-336", "models/CLIP-convnext_large_d_320.laion2B"),
                ("models/openai/clip-vit-large-patch14-336", "laion/CLIP-convnext_large_d_320.laion2B"),
                ("models--openai--clip-vit-large-patch14-336", "models--laion--CLIP-convnext_large_d_320.laion2B"),
            ] {
                let towers = vec![
                    tensors(&format!("{clip_folder}/model.safetensors"), clip("", 2.0)),
                    tensors(&format!("{high_folder}/open_clip_model.safetensors"), convnext("", 2.0)),
                ];
                let files = [vec![paths.clone(), tensors(MAIN, vec![])], towers].concat();
                let opened = open(files, none).unwrap_or_else(|error| panic!("{path}, {clip_folder}: {error}"));
                assert_eq!(marks(&opened), (2.0, 2.0), "{path}, {clip_folder}");
            }
        }
        // Named by the user.
        let named = |root: &MemoryFolder| TowerOptions {
            clip: Some(root.child("my/clip")),
            convnext: Some(root.child("my/convnext")),
        };
        let trained = vec![config(json!({"optimize_vision_tower_aux": true})), tensors(MAIN, own())];
        assert_eq!(marks(&open([trained, separate("my")].concat(), named).unwrap()), (2.0, 2.0));
        assert!(matches!(open(alone, named), Err(Error::MissingFile { .. })));
        // Nowhere.
        let error = open(vec![config(json!({})), tensors(MAIN, vec![])], none).err().unwrap();
        assert_eq!(error.remedy(), Some(Setting::VisionTower));
        let nowhere = error.to_string();
        assert!(
            nowhere.contains("model_zoo/OpenAI/clip is missing")
                && nowhere.contains("the low-resolution tower")
                && nowhere.contains("pass its folder"),
            "{nowhere}"
        );
        let own_clip = tensors(MAIN, clip("model.vision_tower.vision_tower.", 1.0));
        let error = open(vec![config(json!({})), own_clip], none).err().unwrap();
        assert_eq!(error.remedy(), Some(Setting::HighResolutionTower), "{error}");
        assert!(error.to_string().contains("the high-resolution tower model_zoo/OpenAI/convnext is"), "{error}");
    }

    #[test]
    fn language_models_alone_open() {
        let files = vec![
            ("models/mgm/config.json".to_owned(), with(json!({})).to_string().into_bytes()),
            tensors(MAIN, vec![("model.norm.weight".into(), vec![63], 1.0), ("odd".into(), vec![1], 1.0)]),
        ];
        let checkpoint = open(files, |_| TowerOptions::default()).unwrap();
        assert!(checkpoint.vision.is_none());
        let report = checkpoint.report();
        assert_eq!((report.len(), report[0].tensors, report[0].parameters, report[0].bytes), (1, 2, 64, 256));
        assert_eq!(report[0].unexpected, ["odd"]);
        assert_eq!(
            report[0].wrong_shape,
            [WrongShape { name: "model.norm.weight".to_owned(), found: vec![63], expected: vec![64] }]
        );
        assert_eq!(report[0].missing.len(), 2 + 2 * 9);
        assert!(report[0].missing.iter().any(|name| name == "model.layers.1.self_attn.q_proj.weight"));
    }

    #[test]
    fn first_stage_checkpoints_are_merged() {
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
