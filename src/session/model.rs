//! A model on a device.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use crate::gpu::{DryRunReport, Gpu, Kernel};
use crate::image::Image;
use crate::language::LanguageModel;
use crate::loader::{LoadOptions, Loader, vision_precision};
use crate::memory_plan::MemoryPlan;
use crate::ops::{MatmulShape, products};
use crate::tensor::Tensor;
use crate::text::chat_template::{ChatTemplate, TemplateSource};
use crate::text::conversation::{PromptFormat, Template, TemplateFacts};
use crate::text::stop::StopIds;
use crate::text::tokenizer::Tokenizer;
use crate::tuning::check_rounding_kernels;
use crate::vision::Vision;
use crate::weights::config::{GenerationConfig, LanguageConfig};
use crate::weights::gguf_model::GgufModel;
use crate::weights::mgm::MgmCheckpoint;
use crate::weights::model_files::ModelFiles;
use crate::weights::view::Weights;
use crate::{Error, Result, Setting};

/// A model is not loaded if fewer positions than this would fit into memory next to its weights.
const MIN_CONTEXT: usize = 256;

/// A Mini-Gemini model, or a language model, on a device. Clones share the weights.
#[derive(Debug, Clone)]
pub struct Model {
    parts: Rc<Parts>,
}

#[derive(Debug)]
struct Parts {
    gpu: Gpu,
    text: ModelText,
    vision: Option<Vision>,
    language: LanguageModel,
    max_prompt_tokens: usize,
    generation: GenerationConfig,
}

impl Model {
    /// Loads a model from disk at the precision that its files store: the folder of a Mini-Gemini checkpoint or of a
    /// bundle, or a GGUF file of a language model.
    ///
    /// # Errors
    /// As [`Self::open`].
    #[cfg(all(feature = "fs", any(unix, windows)))]
    pub async fn from_path(gpu: &Gpu, path: impl AsRef<std::path::Path>) -> Result<Self> {
        let files = ModelFiles::from_path(path).await?;
        Self::open(gpu, &files, &LoadOptions::as_stored(&files)).await
    }

    /// Loads a model from opened files.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if it does not fit into the memory that [`GpuOptions`](crate::gpu::GpuOptions) allows;
    /// [`Error::Cancelled`] if the progress callback stopped it; any error in the files, which name the file and the
    /// tensor.
    pub async fn open(gpu: &Gpu, files: &ModelFiles, options: &LoadOptions) -> Result<Self> {
        Self::open_with_text(gpu, files, options, ModelText::read(files, options).await?).await
    }

    /// As [`Self::open`], with what was read before from the same files with the same options.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_with_text(gpu: &Gpu, files: &ModelFiles, options: &LoadOptions, text: ModelText) -> Result<Self> {
        match files {
            ModelFiles::Mgm(checkpoint) => Self::load_checkpoint(gpu, checkpoint, options, text).await,
            ModelFiles::Gguf(model) => Self::load_language(gpu, model, options, text).await,
        }
    }

    /// Loads a checkpoint, after checking that it fits into the memory that the user allows.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn load(gpu: &Gpu, checkpoint: &MgmCheckpoint, options: &LoadOptions) -> Result<Self> {
        // The tokenizer first: it is small, and the rest is useless without it.
        let text = ModelText(Arc::new(checkpoint_text(checkpoint, options).await?));
        Self::load_checkpoint(gpu, checkpoint, options, text).await
    }

    async fn load_checkpoint(
        gpu: &Gpu,
        checkpoint: &MgmCheckpoint,
        options: &LoadOptions,
        text: ModelText,
    ) -> Result<Self> {
        MemoryPlan::for_checkpoint(checkpoint, options)?.check(gpu, MIN_CONTEXT)?;
        check_rounding_kernels(gpu).await?;
        let config = &checkpoint.config;
        let vision = load_vision(gpu, checkpoint, options).await?;
        let language = load_language(gpu, &config.language, &checkpoint.language, options).await?;
        let context = config.language.max_positions;
        Ok(Self::new(Parts {
            gpu: gpu.clone(),
            text,
            vision,
            language,
            max_prompt_tokens: config.tokenizer_max_length.unwrap_or(context).min(context.saturating_sub(1)),
            generation: checkpoint.generation.clone(),
        }))
    }

    /// The kernels that [`Self::open`] with the same arguments will need for images and text. It reads no weights, so a
    /// host can create the pipelines ([`Gpu::prepare`]) while they are loaded.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn kernels(gpu: &Gpu, files: &ModelFiles, options: &LoadOptions) -> Result<HashSet<Kernel>> {
        check_rounding_kernels(gpu).await?;
        let planned = gpu.plan();
        let mut kernels = HashSet::new();
        if let ModelFiles::Mgm(checkpoint) = files
            && let Some(vision) = load_vision(&planned, checkpoint, &without_progress(options)).await?
        {
            kernels.extend(vision.dry_run(&planned).await?.kernels().into_keys());
        }
        kernels.extend(plan_language(&planned, files, options).await?.kernels().into_keys());
        Ok(kernels)
    }

    /// The matrix products of conversations in text with a model that [`Self::open`] with the same arguments would
    /// load, and the number of their uses in [`Self::dry_run`]. It reads no weights, so a host can measure the products
    /// ([`crate::tuning`]) while memory is free.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn products(gpu: &Gpu, files: &ModelFiles, options: &LoadOptions) -> Result<HashMap<MatmulShape, u64>> {
        check_rounding_kernels(gpu).await?;
        Ok(products(&plan_language(&gpu.plan(), files, options).await?))
    }

    /// Loads a language model from a GGUF file, with the tokenizer and the conversation template in it.
    ///
    /// # Errors
    /// As [`Self::open`]; [`Error::NeedsSetting`] if neither the file nor the options name a conversation template.
    pub async fn load_gguf(gpu: &Gpu, model: &GgufModel, options: &LoadOptions) -> Result<Self> {
        let text = ModelText(Arc::new(gguf_text(model, options)?));
        Self::load_language(gpu, model, options, text).await
    }

    async fn load_language(gpu: &Gpu, model: &GgufModel, options: &LoadOptions, text: ModelText) -> Result<Self> {
        MemoryPlan::for_gguf(model, options).check(gpu, MIN_CONTEXT)?;
        check_rounding_kernels(gpu).await?;
        let language = load_language(gpu, &model.config, &model.weights, options).await?;
        Ok(Self::new(Parts {
            gpu: gpu.clone(),
            text,
            vision: None,
            language,
            max_prompt_tokens: model.config.max_positions.saturating_sub(1),
            generation: GenerationConfig::default(),
        }))
    }

    fn new(parts: Parts) -> Self {
        Self { parts: Rc::new(parts) }
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.parts.gpu
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.parts.text.0.tokenizer
    }

    /// How conversations become prompts.
    pub fn prompt_format(&self) -> &PromptFormat {
        &self.parts.text.0.prompt_format
    }

    /// The sampling settings that the checkpoint recommends.
    pub fn generation(&self) -> &GenerationConfig {
        &self.parts.generation
    }

    /// Whether the model takes images.
    pub fn has_vision(&self) -> bool {
        self.parts.vision.is_some()
    }

    /// The vision networks, if the model takes images.
    #[doc(hidden)]
    pub fn vision(&self) -> Option<&Vision> {
        self.parts.vision.as_ref()
    }

    /// The language model.
    #[doc(hidden)]
    pub fn language(&self) -> &LanguageModel {
        &self.parts.language
    }

    pub(super) fn is_stop(&self, id: u32) -> bool {
        self.parts.text.0.stop.contains(id)
    }

    /// The tokens that end an answer.
    pub fn stop_ids(&self) -> &StopIds {
        &self.parts.text.0.stop
    }

    /// The longest prompt in positions.
    #[doc(hidden)]
    pub fn max_prompt_tokens(&self) -> usize {
        self.parts.max_prompt_tokens
    }

    /// The positions of the language model's context.
    pub(super) fn context(&self) -> usize {
        self.parts.language.config().max_positions
    }

    /// The kernels and matrix products of conversations in text, without running them: a host measures the products
    /// ([`crate::tuning::tune`]).
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn dry_run(&self) -> Result<DryRunReport> {
        self.parts.language.dry_run(&self.parts.gpu.plan())
    }

    /// The attention map of patch info mining over an image: how much each high-resolution cell contributes to the
    /// visual tokens. `on_step` as for [`Vision::encode_and_wait`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the model takes no images or was loaded without its high-resolution branch;
    /// [`Error::Cancelled`] if `on_step` stopped it.
    pub async fn attention_map(
        &self,
        image: &Image,
        on_step: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<AttentionMap> {
        let Some(vision) = &self.parts.vision else { return Err(no_vision_error()) };
        if !vision.high_resolution() {
            let reason = "the model was loaded without its high-resolution branch, so there is no attention map";
            return Err(Error::InvalidArgument(reason.to_owned()));
        }
        let preprocess = vision.preprocess();
        let size = vision.cells();
        let weights = Tensor::zeros(&self.parts.gpu, &[size * size], "attention map")?;
        let mut recorder = self.parts.gpu.record();
        vision.encode_and_wait(&mut recorder, &preprocess.views(image)?, Some(&weights), on_step).await?;
        let weights = weights.read_back(&mut recorder);
        recorder.submit()?;
        let (width, height) = (image.width() as f32, image.height() as f32);
        let side = if preprocess.pad { width.max(height) } else { width.min(height) };
        let (width, height) = (width / side, height / side);
        let image = [(1.0 - width) / 2.0, (1.0 - height) / 2.0, width, height];
        Ok(AttentionMap { size, weights: weights.values().await?, image })
    }
}

/// What of a model concerns text: the tokenizer, the conversation template and the stop tokens. Clones share it, also
/// in other threads.
#[derive(Debug, Clone)]
pub struct ModelText(Arc<TextParts>);

#[derive(Debug)]
struct TextParts {
    tokenizer: Tokenizer,
    prompt_format: PromptFormat,
    stop: StopIds,
    /// Why the model's own template refuses a second question.
    one_question: Option<Error>,
}

impl ModelText {
    /// Reads the tokenizer and the conversation template of a model, and renders the template once. It needs no device:
    /// a host can report what is wrong with them before it opens one, and pass them on to [`Model::open_with_text`].
    ///
    /// # Errors
    /// As [`Model::open`].
    pub async fn read(files: &ModelFiles, options: &LoadOptions) -> Result<Self> {
        let parts = match files {
            ModelFiles::Mgm(checkpoint) => checkpoint_text(checkpoint, options).await?,
            ModelFiles::Gguf(model) => gguf_text(model, options)?,
        };
        Ok(Self(Arc::new(parts)))
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    /// The tokens that end an answer.
    pub fn stop_ids(&self) -> &StopIds {
        &self.0.stop
    }

    /// How conversations become prompts.
    pub fn prompt_format(&self) -> &PromptFormat {
        &self.0.prompt_format
    }

    /// The conversation template; `None` if it is the model's own.
    pub fn template(&self) -> Option<Template> {
        match self.0.prompt_format {
            PromptFormat::Builtin(template) => Some(template),
            PromptFormat::Jinja(_) => None,
        }
    }

    /// What the user should know about the model's own template.
    pub fn note(&self) -> Option<String> {
        let error = self.0.one_question.as_ref()?;
        Some(format!("the model's template takes one question per conversation: {error}"))
    }
}

async fn checkpoint_text(checkpoint: &MgmCheckpoint, options: &LoadOptions) -> Result<TextParts> {
    let mut tokenizer = Tokenizer::load(&*checkpoint.folder).await?;
    let own = match options.template {
        Some(_) => None,
        None => own_template(checkpoint).await?,
    };
    let (eos, generation_eos) = (&checkpoint.config.language.eos_tokens, &checkpoint.generation.eos_tokens);
    let (prompt_format, stop, one_question) = match own {
        Some(source) => {
            let stop = StopIds::for_jinja_template(&[&eos[..], generation_eos].concat(), &tokenizer);
            let (format, one_question) = jinja_format(source, &mut tokenizer)?;
            (format, stop, one_question)
        }
        None => {
            let template = match options.template {
                Some(template) => template,
                None => conversation_template(checkpoint, &tokenizer)?,
            };
            tokenizer.control_tokens(&template.markers());
            (template.into(), StopIds::new(eos, generation_eos, &tokenizer, template), None)
        }
    };
    Ok(TextParts { tokenizer, prompt_format, stop, one_question })
}

fn gguf_text(model: &GgufModel, options: &LoadOptions) -> Result<TextParts> {
    let header = &*model.header;
    let mut tokenizer = Tokenizer::from_gguf(header)?;
    let (prompt_format, one_question) = match (options.template, header.text("tokenizer.chat_template")) {
        (Some(template), _) => {
            tokenizer.control_tokens(&template.markers());
            (PromptFormat::Builtin(template), None)
        }
        (None, Some(source)) => {
            let (file, text) = (header.file.clone(), source.to_owned());
            jinja_format(TemplateSource { file, key: "tokenizer.chat_template", text }, &mut tokenizer)?
        }
        (None, None) => {
            return Err(Error::NeedsSetting {
                setting: Setting::Template,
                file: header.file.clone(),
                reason: "it has no tokenizer.chat_template; choose a conversation template: vicuna_v1, gemma, \
                         mistral_instruct, chatml_direct or llama_3"
                    .to_owned(),
            });
        }
    };
    let stop = match &prompt_format {
        // Plain Gemma and Llama 3 end a turn with other tokens than Mini-Gemini's fine-tunes.
        PromptFormat::Builtin(template) => {
            StopIds::new(&model.config.eos_tokens, &[], &tokenizer, *template).with_turn_ends(&tokenizer)
        }
        PromptFormat::Jinja(_) => StopIds::for_jinja_template(&model.config.eos_tokens, &tokenizer),
    };
    Ok(TextParts { tokenizer, prompt_format, stop, one_question })
}

/// A checkpoint's own Jinja template. `None` for Mini-Gemini, whose checkpoints still have the template of the language
/// model that they started from, and for bundles that name a template.
///
/// # Errors
/// As [`TemplateSource::find`].
#[doc(hidden)]
pub async fn own_template(checkpoint: &MgmCheckpoint) -> Result<Option<TemplateSource>> {
    let model_type = &checkpoint.config.model_type;
    let mgm = ["mgm", "mini_gemini"].iter().any(|name| model_type.contains(name));
    if mgm || checkpoint.vision.is_some() || checkpoint.conversation.is_some() {
        return Ok(None);
    }
    TemplateSource::find(&*checkpoint.folder).await
}

/// Compiles a template and renders it. `tokenizer` learns its control tokens. Also returns why the template refuses a
/// second question.
fn jinja_format(source: TemplateSource, tokenizer: &mut Tokenizer) -> Result<(PromptFormat, Option<Error>)> {
    let settings = tokenizer.template_settings(&source.text);
    let template = ChatTemplate::new(source, settings)?;
    let one_question = template.check()?;
    Ok((PromptFormat::Jinja(template), one_question))
}

/// The conversation template that a checkpoint was trained with: the one that it names, or else the one that its
/// configuration and tokenizer imply.
///
/// # Errors
/// [`Error::Unsupported`] if it names an unknown template.
pub fn conversation_template(checkpoint: &MgmCheckpoint, tokenizer: &Tokenizer) -> Result<Template> {
    if let Some(name) = &checkpoint.conversation {
        return name.parse();
    }
    let config = &checkpoint.config;
    let facts = TemplateFacts {
        model_type: &config.model_type,
        num_experts: config.language.experts.map_or(0, |experts| experts.count),
        checkpoint: folder_name(checkpoint.folder.name()),
    };
    Ok(Template::detect(facts, tokenizer))
}

pub(super) fn no_vision_error() -> Error {
    Error::InvalidArgument("this checkpoint has no vision networks, so it takes no images".to_owned())
}

async fn load_vision(gpu: &Gpu, checkpoint: &MgmCheckpoint, options: &LoadOptions) -> Result<Option<Vision>> {
    let Some(weights) = &checkpoint.vision else { return Ok(None) };
    let (precision, hidden_size) = (vision_precision(options.precision), checkpoint.config.language.hidden_size);
    let (high, on_progress) = (options.high_resolution, options.on_progress.clone());
    Ok(Some(Vision::load(gpu, weights, hidden_size, precision, high, on_progress).await?))
}

/// A dry run of the language model on a planned device.
async fn plan_language(planned: &Gpu, files: &ModelFiles, options: &LoadOptions) -> Result<DryRunReport> {
    let (config, weights) = match files {
        ModelFiles::Mgm(checkpoint) => (&checkpoint.config.language, &checkpoint.language),
        ModelFiles::Gguf(model) => (&model.config, &model.weights),
    };
    load_language(planned, config, weights, &without_progress(options)).await?.dry_run(planned)
}

fn without_progress(options: &LoadOptions) -> LoadOptions {
    LoadOptions { on_progress: None, ..options.clone() }
}

async fn load_language(
    gpu: &Gpu,
    config: &LanguageConfig,
    weights: &Weights,
    options: &LoadOptions,
) -> Result<LanguageModel> {
    let mut loader = Loader::new(gpu, weights.clone(), options.precision, options.on_progress.clone());
    if options.keep_quantization {
        loader = loader.keep_quantization();
    }
    let language = LanguageModel::load(&loader, config).await?;
    gpu.flush_writes().await?;
    Ok(language)
}

/// The name of a checkpoint's folder. In the cache of the Hugging Face Hub, the folder
/// `models--OWNER--NAME/snapshots/COMMIT` has the name two levels up.
fn folder_name(path: &str) -> &str {
    let mut parts = path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']);
    match (parts.next(), parts.next(), parts.next()) {
        (_, Some("snapshots"), Some(repo)) if repo.starts_with("models--") => repo,
        (Some(name), ..) => name,
        _ => path,
    }
}

/// The weights that patch info mining gives to the cells of an image.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AttentionMap {
    /// Cells per side of the square that the model sees.
    pub size: usize,
    /// [size, size] weights. Those in the window of one low-resolution token sum to 1.
    pub weights: Vec<f32>,
    /// The image's rectangle in the square: left, top, width, height, in units of the square's side. A cropped image
    /// extends beyond the square.
    pub image: [f32; 4],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_in_the_hubs_cache_have_the_name_of_their_repository() {
        let cases = [
            ("models/MGM-34B/", "MGM-34B"),
            ("MGM-34B", "MGM-34B"),
            (r"C:\models\MGM-34B", "MGM-34B"),
            ("/hub/models--YanweiLi--MGM-34B/snapshots/0123456789abcdef", "models--YanweiLi--MGM-34B"),
            ("/snapshots/0123", "0123"),
        ];
        for (path, name) in cases {
            assert_eq!(folder_name(path), name, "{path}");
        }
    }
}
