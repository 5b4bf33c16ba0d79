//! A model and the conversations with it: pictures and text in, text out.

mod batch;

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use web_time::Instant;

use crate::gpu::{DryRunReport, Gpu};
use crate::image::Rgb8;
use crate::language::{Cache, Generator, Language, PREFILL_POSITIONS, Position};
use crate::load::{LoadOptions, Loader, vision_precision};
use crate::ops::Sampling;
use crate::plan::Plan;
use crate::tensor::Tensor;
use crate::text::chat_template::ChatTemplate;
use crate::text::conversation::{Conversation, PromptFormat, Template, TemplateFacts, Turn};
use crate::text::stop::StopIds;
use crate::text::stream::TextStream;
use crate::text::tokenizer::{PromptToken, Tokenizer};
use crate::vision::Vision;
use crate::weights::config::{GenerationConfig, LanguageConfig};
use crate::weights::gguf_model::GgufModel;
use crate::weights::mgm::MgmCheckpoint;
use crate::weights::model_files::ModelFiles;
use crate::weights::view::Weights;
use crate::{Error, Result};

pub use batch::Request;

/// Positions without room for which a model is not worth loading.
const LEAST_POSITIONS: usize = 256;

/// A Mini-Gemini model on a device.
#[derive(Debug)]
pub struct Model {
    gpu: Gpu,
    tokenizer: Tokenizer,
    style: PromptFormat,
    stop: StopIds,
    vision: Option<Vision>,
    language: Language,
    /// Positions a prompt may take.
    prompt_limit: usize,
    generation: GenerationConfig,
}

impl Model {
    /// Loads a model from whatever files it is in.
    pub async fn open(gpu: &Gpu, files: &ModelFiles, options: &LoadOptions) -> Result<Self> {
        match files {
            ModelFiles::Mgm(checkpoint) => Self::load(gpu, checkpoint, options).await,
            ModelFiles::Gguf(model) => Self::load_gguf(gpu, model, options).await,
        }
    }

    /// Loads a checkpoint, after checking that it fits into the memory that the user allows.
    pub async fn load(gpu: &Gpu, checkpoint: &MgmCheckpoint, options: &LoadOptions) -> Result<Self> {
        // The tokenizer first: it is small, and without it the rest is of no use.
        let tokenizer = Tokenizer::load(&*checkpoint.folder).await?;
        Plan::of_checkpoint(checkpoint, options)?.check(gpu, LEAST_POSITIONS)?;
        let config = &checkpoint.config;
        let template = match options.template {
            Some(template) => template,
            None => template_of(checkpoint, &tokenizer)?,
        };
        let stop = StopIds::new(&config.language.eos_tokens, &checkpoint.generation.eos_tokens, &tokenizer, template);
        let hidden_size = config.language.hidden_size;
        let vision = match &checkpoint.vision {
            Some(weights) => {
                let precision = vision_precision(options.precision);
                let (high, on_progress) = (options.high_resolution, options.on_progress.clone());
                Some(Vision::load(gpu, weights, hidden_size, precision, high, on_progress).await?)
            }
            None => None,
        };
        let language = load_language(gpu, &config.language, &checkpoint.language, options).await?;
        let context = config.language.max_positions;
        Ok(Self {
            gpu: gpu.clone(),
            tokenizer,
            style: PromptFormat::Builtin(template),
            stop,
            vision,
            language,
            prompt_limit: config.tokenizer_max_length.unwrap_or(context).min(context.saturating_sub(1)),
            generation: checkpoint.generation.clone(),
        })
    }

    /// Loads a language model from a GGUF file, with the tokenizer and the conversation template in it.
    pub async fn load_gguf(gpu: &Gpu, model: &GgufModel, options: &LoadOptions) -> Result<Self> {
        let header = &*model.header;
        let tokenizer = Tokenizer::from_gguf(header)?;
        Plan::of_gguf(model, options).check(gpu, LEAST_POSITIONS)?;
        let style = match (options.template, header.text("tokenizer.chat_template")) {
            (Some(template), _) => PromptFormat::Builtin(template),
            (None, Some(source)) => {
                let text = |id: Option<u32>| id.map(|id| tokenizer.decode(&[id], false)).unwrap_or_default();
                PromptFormat::Jinja(ChatTemplate::new(
                    &header.file,
                    source,
                    &text(tokenizer.bos()),
                    &text(tokenizer.eos()),
                )?)
            }
            (None, None) => {
                return Err(Error::Config {
                    file: header.file.clone(),
                    reason: "it has no tokenizer.chat_template; name one (--conversation vicuna_v1, gemma, \
                             mistral_instruct, chatml_direct or llama_3)"
                        .to_owned(),
                });
            }
        };
        let stop = match &style {
            // A plain Gemma or Llama 3 ends turns otherwise than Mini-Gemini's do.
            PromptFormat::Builtin(template) => {
                StopIds::new(&model.config.eos_tokens, &[], &tokenizer, *template).with_turn_ends(&tokenizer)
            }
            PromptFormat::Jinja(_) => StopIds::for_jinja_template(&model.config.eos_tokens, &tokenizer),
        };
        let language = load_language(gpu, &model.config, &model.weights, options).await?;
        Ok(Self {
            gpu: gpu.clone(),
            tokenizer,
            style,
            stop,
            vision: None,
            language,
            prompt_limit: model.config.max_positions.saturating_sub(1),
            generation: GenerationConfig::default(),
        })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How conversations are written.
    pub fn style(&self) -> &PromptFormat {
        &self.style
    }

    /// What the model's makers recommend for sampling.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Whether it can look at pictures.
    pub fn sees(&self) -> bool {
        self.vision.is_some()
    }

    /// The vision side, if it has one.
    pub fn vision(&self) -> Option<&Vision> {
        self.vision.as_ref()
    }

    /// The language model.
    pub fn language(&self) -> &Language {
        &self.language
    }

    /// The kernels and products of conversations in text, so that a host can make pipelines ahead ([`Gpu::prepare`]) and have
    /// products measured ([`crate::ops::tune`]).
    pub fn dry_run(&self) -> Result<DryRunReport> {
        self.language.dry_run(&self.gpu)
    }

    /// What patch info mining weighs in a picture. `on_step` as for [`Vision::encode`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the model has no vision side, or was loaded without the high-resolution branch;
    /// [`Error::Cancelled`] if it was stopped.
    pub async fn attention(&self, image: &Rgb8, on_step: &mut dyn FnMut(usize, usize) -> bool) -> Result<AttentionMap> {
        let Some(vision) = &self.vision else { return Err(blind()) };
        if !vision.high_resolution() {
            let reason = "this model was loaded without its high-resolution branch: nothing is mined";
            return Err(Error::InvalidArgument(reason.to_owned()));
        }
        let preprocess = vision.preprocess();
        let size = vision.cells();
        let attended = Tensor::zeros(&self.gpu, &[size * size], "weights of cells")?;
        let mut recorder = self.gpu.record();
        vision.encode(&mut recorder, &preprocess.views(image)?, Some(&attended), on_step).await?;
        let weights = attended.read_back(&mut recorder);
        recorder.submit()?;
        let (width, height) = (image.width() as f32, image.height() as f32);
        let side = if preprocess.pad { width.max(height) } else { width.min(height) };
        let (width, height) = (width / side, height / side);
        let picture = [(1.0 - width) / 2.0, (1.0 - height) / 2.0, width, height];
        Ok(AttentionMap { size, weights: weights.values().await?, picture })
    }

    /// A new conversation.
    pub fn chat(self: &Rc<Self>, system: Option<String>) -> Chat {
        let mut conversation = Conversation::new(self.style.clone());
        conversation.system = system;
        Chat {
            model: Rc::clone(self),
            conversation,
            images: Vec::new(),
            known: Vec::new(),
            cache: self.language.cache(),
            cached: Vec::new(),
            next_image: 0,
        }
    }
}

/// The conversation template that a checkpoint was trained with: the one it names, or else what its parts tell.
///
/// # Errors
/// [`Error::Unsupported`] if it names an unknown one.
pub fn template_of(checkpoint: &MgmCheckpoint, tokenizer: &Tokenizer) -> Result<Template> {
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

fn blind() -> Error {
    Error::InvalidArgument("this checkpoint has no vision side: it cannot look at images".to_owned())
}

async fn load_language(
    gpu: &Gpu,
    config: &LanguageConfig,
    weights: &Weights,
    options: &LoadOptions,
) -> Result<Language> {
    let mut loader = Loader::new(gpu, weights.clone(), options.precision, options.on_progress.clone());
    if options.keep_stored {
        loader = loader.keeping_stored();
    }
    let language = Language::from_loader(&loader, config).await?;
    gpu.flush_writes().await?;
    Ok(language)
}

fn folder_name(path: &str) -> &str {
    path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(path)
}

/// What patch info mining weighed in the square that a model sees.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionMap {
    /// Cells along a side.
    pub size: usize,
    /// [size, size] weights; those of the window of one low-resolution token sum to 1.
    pub weights: Vec<f32>,
    /// Where the picture lies in the square: left, top, width, height, in parts of the square's side. What was cropped away
    /// lies beyond it.
    pub picture: [f32; 4],
}

/// How an answer is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerOptions {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Seed of the draws. The same seed, prompt and device give the same answer.
    pub seed: u64,
    /// The most tokens to generate.
    pub max_new_tokens: usize,
    /// Tokens of the answer that were generated before, with the same options, on a device that was lost: the answer goes
    /// on behind them. They count, but are not told of again.
    pub begun: Vec<u32>,
}

/// What happens while an answer is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// The oldest turns were dropped to make room for the question.
    DroppedTurns(usize),
    /// Stages of looking at a picture that are done, of all.
    Looking(usize, usize),
    /// Positions of the prompt that are done, of all that are new.
    Prefill(usize, usize),
    /// The next token of the answer.
    Token(u32),
    /// The next piece of the answer: what tokens made whole characters.
    Text(&'a str),
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it.
    Stop,
    /// As many tokens as allowed, or as fit.
    Length,
    /// The caller stopped it.
    Cancelled,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Positions of the whole prompt, visual tokens included.
    pub prompt_tokens: usize,
    /// How many of them were still in the cache from earlier turns.
    pub cached_tokens: usize,
    /// Generated ids; the one that stopped is last.
    pub token_ids: Vec<u32>,
    /// The answer's text: special tokens left out, white space trimmed.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Time spent on looking at this turn's pictures, in milliseconds.
    pub vision_ms: f64,
    /// Time from the prompt to the first token, in milliseconds.
    pub prefill_ms: f64,
    /// Time for the other tokens, in milliseconds.
    pub decode_ms: f64,
}

impl Answer {
    /// Tokens generated in a second, the first not counted; 0 if there is only one.
    pub fn decode_tokens_per_s(&self) -> f64 {
        let tokens = self.token_ids.len().saturating_sub(1) as f64;
        if self.decode_ms > 0.0 { tokens * 1000.0 / self.decode_ms } else { 0.0 }
    }
}

/// A picture as a conversation takes it. Its pixels are asked for only if it was not looked at before.
pub trait Picture {
    /// What tells it from all other pictures: a hash of its size and pixels.
    fn hash(&self) -> u64;

    /// Its pixels.
    ///
    /// # Errors
    /// Whatever keeps them from being read.
    fn pixels(&self) -> Result<Cow<'_, Rgb8>>;
}

impl Picture for Rgb8 {
    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.width(), self.height(), self.data()).hash(&mut hasher);
        hasher.finish()
    }

    fn pixels(&self) -> Result<Cow<'_, Rgb8>> {
        Ok(Cow::Borrowed(self))
    }
}

/// Pictures that are here, as conversations take them.
pub fn pictures(images: &[Rgb8]) -> Vec<&dyn Picture> {
    images.iter().map(|image| image as &dyn Picture).collect()
}

/// A picture that was looked at: its visual tokens, and the number that tells it from all others in the cache.
#[derive(Debug, Clone)]
struct Seen {
    tokens: Tensor,
    number: u32,
    /// [`Picture::hash`]: the same picture is looked at once.
    hash: u64,
}

/// A conversation with a model. The cache of keys and values is kept between turns: a turn prefills only what is new.
#[derive(Debug)]
pub struct Chat {
    model: Rc<Model>,
    conversation: Conversation,
    /// All pictures, in the order of the turns.
    images: Vec<Seen>,
    /// Pictures of the conversation before [`Chat::restore`], which may come again.
    known: Vec<Seen>,
    cache: Cache,
    /// What the cache's positions hold, pictures by [`Seen::number`].
    cached: Vec<Position>,
    next_image: u32,
}

impl Chat {
    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The conversation so far.
    pub fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// Forgets all turns and pictures. The system text stays.
    pub fn reset(&mut self) {
        self.conversation.turns.clear();
        self.images.clear();
        self.known.clear();
        self.cached.clear();
        self.cache.truncate(0);
    }

    /// Makes `turns`, all answered, the conversation so far, with all their pictures in order. What the cache has in common
    /// with it stays, and pictures of the conversation before are not looked at again.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are not as many pictures as the turns say. The conversation is as it was before.
    pub async fn restore(
        &mut self,
        system: Option<String>,
        turns: Vec<Turn>,
        images: &[&dyn Picture],
        on_event: &mut dyn FnMut(Event<'_>) -> bool,
    ) -> Result<()> {
        let expected: usize = turns.iter().map(|turn| turn.images).sum();
        if expected != images.len() || turns.iter().any(|turn| turn.answer.is_none()) {
            let found = images.len();
            return Err(Error::InvalidArgument(format!(
                "every turn of a conversation has an answer, and these turns have {expected} images, not {found}"
            )));
        }
        let before = std::mem::take(&mut self.images);
        let known = [std::mem::take(&mut self.known), before.clone()].concat();
        self.known.clone_from(&known);
        for image in images {
            match self.look(*image, on_event).await {
                Ok(picture) => self.images.push(picture),
                Err(error) => {
                    (self.images, self.known) = (before, known);
                    return Err(error);
                }
            }
        }
        self.conversation.system = system;
        self.conversation.turns = turns;
        Ok(())
    }

    /// Asks a question about these pictures (and all earlier ones), and generates the answer. `on_event` gives `false` to
    /// stop it; what was generated until then is kept as the answer.
    ///
    /// # Errors
    /// With an error the conversation is as it was before the question.
    pub async fn ask(
        &mut self,
        question: &str,
        images: &[Rgb8],
        options: &AnswerOptions,
        on_event: &mut dyn FnMut(Event<'_>) -> bool,
    ) -> Result<Answer> {
        self.ask_about(question, &pictures(images), options, on_event).await
    }

    /// The same about pictures whose pixels are elsewhere.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn ask_about(
        &mut self,
        question: &str,
        images: &[&dyn Picture],
        options: &AnswerOptions,
        on_event: &mut dyn FnMut(Event<'_>) -> bool,
    ) -> Result<Answer> {
        let before = (self.conversation.clone(), self.images.clone());
        let answer = self.try_ask(question, images, options, on_event).await;
        match &answer {
            Ok(answer) => self.conversation.answer(answer.text.clone()),
            // What the cache holds of the prompt may stay: the next turn keeps what it has in common with it.
            Err(_) => (self.conversation, self.images) = before,
        }
        answer
    }

    async fn try_ask(
        &mut self,
        question: &str,
        images: &[&dyn Picture],
        options: &AnswerOptions,
        on_event: &mut dyn FnMut(Event<'_>) -> bool,
    ) -> Result<Answer> {
        let (mut positions, vision_ms) = self.prompt(question, images, options.max_new_tokens, on_event).await?;

        let started = Instant::now();
        let prompt_tokens = positions.len();
        positions.extend(options.begun.iter().map(|id| Position::Text(*id)));
        let cached_tokens = self.keep_common_prefix(&positions);
        let context = self.model.language.config().max_positions;
        let room = options.max_new_tokens.min(context - prompt_tokens).saturating_sub(options.begun.len());
        if room == 0 {
            return Err(Error::InvalidArgument("at least one new token must be allowed".to_owned()));
        }
        let x = self.prefill(&positions[cached_tokens..], on_event).await?;
        let mut answer = Answer {
            prompt_tokens,
            cached_tokens,
            token_ids: options.begun.clone(),
            text: String::new(),
            finish_reason: FinishReason::Length,
            vision_ms,
            prefill_ms: 0.0,
            decode_ms: 0.0,
        };
        self.decode(x, room, options, on_event, started, &mut answer).await?;
        answer.text = self.model.tokenizer.answer(&answer.token_ids);
        Ok(answer)
    }

    /// The prompt of a question that is put to the conversation, and the time that looking took.
    async fn prompt(
        &mut self,
        question: &str,
        images: &[&dyn Picture],
        max_new_tokens: usize,
        on_event: &mut dyn FnMut(Event<'_>) -> bool,
    ) -> Result<(Vec<Position>, f64)> {
        self.conversation.ask(question, images.len());
        // Before pictures are looked at, which takes longest.
        let tokens = self.fit_prompt(max_new_tokens, on_event)?;
        let started = Instant::now();
        for image in images {
            let picture = self.look(*image, on_event).await?;
            self.images.push(picture);
        }
        self.known.clear();
        let vision_ms = milliseconds(started);
        Ok((self.positions(tokens)?, vision_ms))
    }

    /// Encodes a picture, if it is new.
    async fn look(&mut self, image: &dyn Picture, on_event: &mut dyn FnMut(Event<'_>) -> bool) -> Result<Seen> {
        let hash = image.hash();
        if let Some(picture) = self.images.iter().chain(&self.known).find(|picture| picture.hash == hash) {
            return Ok(picture.clone());
        }
        let Some(vision) = &self.model.vision else { return Err(blind()) };
        let mut recorder = self.model.gpu.record();
        let views = vision.preprocess().views(&*image.pixels()?)?;
        let mut on_step = |done, all| on_event(Event::Looking(done, all));
        let encoded = vision.encode(&mut recorder, &views, None, &mut on_step).await?;
        let number = self.next_image;
        self.next_image += 1;
        Ok(Seen { tokens: encoded.tokens, number, hash })
    }

    /// The prompt's tokens, after dropping the oldest turns without pictures where it would be too long or leave little room
    /// for the answer. The assistant's header at the end is never cut off.
    fn fit_prompt(
        &mut self,
        max_new_tokens: usize,
        on_event: &mut dyn FnMut(Event<'_>) -> bool,
    ) -> Result<Vec<PromptToken>> {
        let limit = self.model.prompt_limit;
        let context = self.model.language.config().max_positions;
        let roomy = limit.min(context - max_new_tokens.min(context / 4));
        let rows = self.model.vision.as_ref().map(Vision::tokens);
        let mut dropped = 0;
        loop {
            let tokens = self.model.tokenizer.encode_prompt(&self.conversation.prompt()?)?;
            let mut positions = 0;
            for token in &tokens {
                positions += match token {
                    PromptToken::Text(_) => 1,
                    PromptToken::Image => rows.ok_or_else(blind)?,
                };
            }
            let last = self.conversation.turns.len().saturating_sub(1);
            let oldest = self.conversation.turns[..last].iter().position(|turn| turn.images == 0);
            match oldest {
                Some(oldest) if positions > roomy => drop(self.conversation.turns.remove(oldest)),
                _ if positions > limit => return Err(Error::PromptTooLong { tokens: positions, limit }),
                _ => {
                    if dropped > 0 {
                        on_event(Event::DroppedTurns(dropped));
                    }
                    return Ok(tokens);
                }
            }
            dropped += 1;
        }
    }

    /// A prompt as positions, with pictures by their numbers.
    fn positions(&self, prompt: Vec<PromptToken>) -> Result<Vec<Position>> {
        let mut pictures = self.images.iter();
        let mut positions = Vec::new();
        for token in prompt {
            match token {
                PromptToken::Text(id) => positions.push(Position::Text(id)),
                PromptToken::Image => {
                    let Some(picture) = pictures.next() else {
                        return Err(Error::Internal("the prompt has more places than pictures".to_owned()));
                    };
                    let rows = picture.tokens.rows() as u32;
                    positions.extend((0..rows).map(|row| Position::Visual { image: picture.number, row }));
                }
            }
        }
        Ok(positions)
    }

    /// Cuts the cache down to what it has in common with the prompt, whose last position must run again for its logits.
    fn keep_common_prefix(&mut self, positions: &[Position]) -> usize {
        let common = self.cached.iter().zip(positions).take_while(|(cached, wanted)| cached == wanted).count();
        let kept = common.min(positions.len().saturating_sub(1)).min(self.cache.length());
        self.cache.truncate(kept);
        self.cached.truncate(kept);
        kept
    }

    /// Runs new positions through the model; gives the residual stream of the last portion.
    async fn prefill(&mut self, positions: &[Position], on_event: &mut dyn FnMut(Event<'_>) -> bool) -> Result<Tensor> {
        let model = Rc::clone(&self.model);
        let images: Vec<Tensor> = self.images.iter().map(|picture| picture.tokens.clone()).collect();
        let placed = placed(positions, &self.images);
        let mut recorder = model.gpu.record();
        self.cache.reserve(&mut recorder, self.cached.len() + positions.len())?;
        recorder.submit()?;
        let mut last = None;
        let mut done = 0;
        for portion in placed.chunks(PREFILL_POSITIONS) {
            let mut recorder = model.gpu.record();
            let x = model.language.embed(&mut recorder, portion, &images)?;
            let x = model.language.forward(&mut recorder, &x, &mut self.cache)?;
            let more = done + portion.len() < positions.len();
            let read = more.then(|| x.slice_rows(x.rows() - 1..x.rows()).read_back(&mut recorder));
            recorder.submit()?;
            self.cached.extend_from_slice(&positions[done..done + portion.len()]);
            done += portion.len();
            last = Some(x);
            if let Some(read) = read {
                // So that progress is true and a stop takes effect.
                read.bytes().await?;
            }
            if !on_event(Event::Prefill(done, positions.len())) {
                return Err(Error::Cancelled);
            }
        }
        last.ok_or_else(|| Error::InvalidArgument("the prompt is empty".to_owned()))
    }

    /// Generates tokens after x, the residual stream of the prompt's end.
    async fn decode(
        &mut self,
        x: Tensor,
        room: usize,
        options: &AnswerOptions,
        on_event: &mut dyn FnMut(Event<'_>) -> bool,
        started: Instant,
        answer: &mut Answer,
    ) -> Result<()> {
        let model = Rc::clone(&self.model);
        let mut draws = Draws::new(options.seed, self.conversation.turns.len() as u64);
        let mut stream = TextStream::new(&model.tokenizer);
        for id in &options.begun {
            draws.next();
            stream.push(*id);
        }
        let mut first_token = None;
        let draw = move || draws.next();
        let mut generator =
            Generator::new(&model.language, &model.gpu, &mut self.cache, x, room, options.sampling, draw)?;
        while let Some(id) = generator.next().await? {
            if first_token.is_none() {
                answer.prefill_ms = milliseconds(started);
                first_token = Some(Instant::now());
            }
            answer.token_ids.push(id);
            let go_on = on_event(Event::Token(id));
            if model.stop.contains(id) {
                answer.finish_reason = FinishReason::Stop;
                break;
            }
            let go_on = stream.push(id).is_none_or(|text| on_event(Event::Text(&text))) && go_on;
            if !go_on {
                answer.finish_reason = FinishReason::Cancelled;
                break;
            }
        }
        if let Some(text) = stream.finish() {
            on_event(Event::Text(&text));
        }
        answer.decode_ms = first_token.map_or(0.0, milliseconds);
        // What was computed behind the answer's end is of no use.
        let new = &answer.token_ids[options.begun.len()..];
        let fed = generator.fed().min(new.len());
        drop(generator);
        self.cached.extend(new[..fed].iter().map(|id| Position::Text(*id)));
        self.cache.truncate(self.cached.len());
        Ok(())
    }
}

/// Positions with pictures by their place in a list, as the model numbers them.
fn placed(positions: &[Position], pictures: &[Seen]) -> Vec<Position> {
    let place = |number: u32| pictures.iter().position(|picture| picture.number == number).unwrap_or(0) as u32;
    let of_position = |position: &Position| match *position {
        Position::Visual { image, row } => Position::Visual { image: place(image), row },
        text @ Position::Text(_) => text,
    };
    positions.iter().map(of_position).collect()
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Uniform numbers in [0, 1): SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Debug, Clone)]
struct Draws(u64);

impl Draws {
    /// Each turn of a conversation has its own sequence.
    fn new(seed: u64, turn: u64) -> Self {
        Self(seed ^ turn.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // 24 bits are what an f32 holds exactly.
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    }
}
