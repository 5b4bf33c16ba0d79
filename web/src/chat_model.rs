//! A language model on a device, and the conversation in its KV cache.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Duration;

use js_sys::Function;
use mgm::gpu::{Gpu, Kernel};
use mgm::io::Folder;
use mgm::memory_plan::MemoryPlan;
use mgm::ops::{Sampling, Tuning, products, tuning};
use mgm::session::{
    AnswerOptions, Chat, Event, FinishReason, ImageSource, LoadOptions, Model, StopReason, TokenLogprob, TokenLogprobs,
};
use mgm::tensor::Precision;
use mgm::text::conversation::{Template, Turn};
use mgm::tuning::{TuneOptions, tune, tune_within};
use mgm::weights::gguf_model::GgufModel;
use mgm::weights::mgm::TowerOptions;
use mgm::weights::model_files::ModelFiles;
use serde::{Deserialize, Serialize};
use wasm_bindgen::prelude::*;

use crate::device::Device;
use crate::pixels::{Pixels, to_rgb};
use crate::{bad_request, blob_source, emit, to_js, to_json};

/// See `LoadOptions` of the package.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LoadRequest {
    precision: Option<String>,
    conversation: Option<String>,
}

/// See `ModelInfo` of the package.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    precision: String,
    vision: bool,
    max_positions: usize,
    weight_bytes: u64,
}

/// A message of a conversation. Its images are in a separate list, in order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: Role,
    text: String,
    /// Number of images.
    images: usize,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    User,
    Assistant,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AnswerRequest {
    messages: Vec<Message>,
    max_new_tokens: usize,
    temperature: f32,
    top_p: Option<f32>,
    top_k: u32,
    seed: u64,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    #[serde(default)]
    logit_bias: Vec<(u32, f32)>,
    top_logprobs: Option<usize>,
    n: Option<usize>,
    #[serde(default)]
    stop: Vec<String>,
    #[serde(default)]
    stop_token_ids: Vec<u32>,
    #[serde(default)]
    min_tokens: usize,
    #[serde(default)]
    ignore_eos: bool,
    #[serde(default)]
    allow_special_tokens: bool,
    /// Token ids of each answer that were generated on a lost device.
    #[serde(default)]
    resume_from: Vec<Vec<u32>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AnswerReport {
    choices: Vec<ChoiceReport>,
    prompt_tokens: usize,
    cached_tokens: usize,
    vision_ms: f64,
    prefill_ms: f64,
    decode_ms: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChoiceReport {
    text: String,
    token_ids: Vec<u32>,
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReport>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum StopReport {
    String(String),
    Token(u32),
}

impl ChoiceReport {
    fn new(text: String, token_ids: Vec<u32>, reason: FinishReason, stop: Option<StopReason>) -> Self {
        let stop_reason = match stop {
            Some(StopReason::String(text)) => Some(StopReport::String(text)),
            Some(StopReason::Token(id)) => Some(StopReport::Token(id)),
            _ => None,
        };
        Self { text, token_ids, finish_reason: reason.as_str(), stop_reason }
    }
}

/// A token and its log-probability. See `TokenLogprob` of the package.
#[derive(Serialize)]
struct TokenReport {
    id: u32,
    token: String,
    logprob: f32,
    bytes: Option<Vec<u8>>,
}

impl TokenReport {
    fn new(model: &Model, TokenLogprob { id, logprob, .. }: TokenLogprob) -> Self {
        let bytes = model.tokenizer().token_bytes(id).map(|bytes| bytes.into_owned());
        Self { id, token: model.tokenizer().token_text(id), logprob, bytes }
    }
}

/// A language model, with vision if the checkpoint has it.
#[wasm_bindgen]
pub struct ChatModel {
    gpu: Gpu,
    model: Model,
    chat: RefCell<Option<Chat>>,
    precision: Precision,
    weight_bytes: u64,
    /// Kernels whose pipelines are not created yet.
    kernels: Rc<RefCell<Vec<Kernel>>>,
}

#[wasm_bindgen]
impl ChatModel {
    /// Loads a model from a `Map` of paths to blobs: the files of a bundle or a checkpoint, or one GGUF file. Calls
    /// `on_event` with `"total"` (bytes), then repeatedly with `"loaded"` (bytes since the last call); `false` stops.
    pub async fn load(
        device: &Device,
        files: js_sys::Map,
        request: String,
        on_event: Function,
    ) -> Result<ChatModel, JsValue> {
        let request: LoadRequest = serde_json::from_str(&request).map_err(bad_request)?;
        let gpu = device.gpu.clone();
        let files = open(&files).await.map_err(to_js)?;
        let (mut precision, mut keep_quantization) = files.default_precision();
        if let Some(name) = request.precision {
            // Weights that are stored at this precision need no second rounding.
            precision = name.parse().map_err(to_js)?;
            keep_quantization = matches!(&files, ModelFiles::Mgm(files) if files.packed == Some(precision));
        }
        let template = request.conversation.map(|name| name.parse::<Template>()).transpose().map_err(to_js)?;
        let mut options = LoadOptions::new(precision).with_keep_quantization(keep_quantization).with_template(template);
        let weight_bytes = MemoryPlan::for_files(&files, &options).map_err(to_js)?.weights();
        if emit(&on_event, "total", &(weight_bytes as f64).into()).is_break() {
            return Err(to_js(mgm::Error::Cancelled));
        }
        // The browser compiles in another process while this one reads and packs weights. A software adapter needs the
        // processor for both, and compiles after loading.
        let kernels = Model::kernels(&gpu, &files, &options).await.map_err(to_js)?;
        let kernels = Rc::new(RefCell::new(Vec::from_iter(kernels)));
        let (waiting, device) = (kernels.clone(), gpu.clone());
        options.on_progress = Some(Rc::new(move |bytes| {
            if !device.adapter().is_software()
                && let Some(kernel) = waiting.borrow_mut().pop()
            {
                device.prepare(kernel);
            }
            emit(&on_event, "loaded", &(bytes as f64).into())
        }));
        let model = Model::open(&gpu, &files, &options).await.map_err(to_js)?;
        Ok(Self { gpu, model, chat: RefCell::default(), precision, weight_bytes, kernels })
    }

    /// Compiles the pipelines that loading did not, one after the other. Calls `on_event("prepared", count)` after
    /// each; `false` stops. A browser blocks the device while it compiles, so a request that arrives meanwhile waits
    /// for one pipeline at most.
    pub async fn prepare(&self, on_event: Function) -> Result<(), JsValue> {
        let mut count = 0;
        while let Some(kernel) = { self.kernels.borrow_mut().pop() } {
            self.gpu.prepare(kernel);
            self.gpu.flush_writes().await.map_err(to_js)?;
            count += 1;
            if emit(&on_event, "prepared", &f64::from(count).into()).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Measures, once and for about `milliseconds` in all, whether other kernels than the default ones are faster for
    /// this model, and uses them from then on: `tune_within` of the core. Does nothing if these products were measured
    /// before or the device is a software adapter. Calls `on_event` with `"measured"` after each step, which takes a
    /// few milliseconds or compiles one pipeline; `false` stops, and a later call measures the rest. Calls it with
    /// `"store"` and JSON for the next `Device::open`: at the end, and also at the start, so that the next visit does
    /// not measure again if the browser's GPU process ends meanwhile.
    #[wasm_bindgen(js_name = measureKernels)]
    pub async fn measure_kernels(&self, milliseconds: f64, on_event: Function) -> Result<(), JsValue> {
        let products = products(&self.model.dry_run().map_err(to_js)?);
        if self.gpu.adapter().is_software() || tuning(&self.gpu).covers(products.keys().copied()) {
            return Ok(());
        }
        let budget = Duration::from_secs_f64(milliseconds.max(0.0) / 1000.0);
        let on_step = |_: Option<&_>| emit(&on_event, "measured", &JsValue::NULL);
        let store = |tuning: &Tuning| {
            if let Ok(text) = to_json(tuning) {
                let _ = emit(&on_event, "store", &text.into());
            }
        };
        tune_within(&self.gpu, &products, budget, on_step, store).await.map_err(to_js)?;
        // The pipelines of the kernels that were chosen, for `prepare`.
        self.kernels.borrow_mut().extend(self.model.dry_run().map_err(to_js)?.kernels().into_keys());
        Ok(())
    }

    /// Properties of the model, as JSON.
    pub fn info(&self) -> Result<String, JsValue> {
        to_json(&Info {
            precision: self.precision.to_string(),
            vision: self.model.has_vision(),
            max_positions: self.model.language().config().max_positions,
            weight_bytes: self.weight_bytes,
        })
    }

    /// Answers the last message and returns a report as JSON. Calls `on_event` with `"encoding"` (fraction),
    /// `"dropped"` (turns), `"prefill"` (fraction), `"choice"` (the number of the answer that begins, from 1),
    /// `"token"` (id), `"logprobs"` (JSON: the token's and those of the likeliest) and `"text"`; `false` stops.
    pub async fn answer(&self, request: String, images: Vec<Pixels>, on_event: Function) -> Result<String, JsValue> {
        let request: AnswerRequest = serde_json::from_str(&request).map_err(bad_request)?;
        let images: Vec<&dyn ImageSource> = images.iter().map(|image| image as &dyn ImageSource).collect();
        let mut chat = self.chat.take().unwrap_or_else(|| self.model.chat());
        let result = answer(&self.model, &mut chat, request, &images, &on_event).await;
        self.chat.replace(Some(chat));
        to_json(&result.map_err(to_js)?)
    }

    /// Returns the attention map of patch info mining: `{ size, weights, image }`. Calls
    /// `on_event("encoding", fraction)`; `false` stops.
    #[wasm_bindgen(js_name = attentionMap)]
    pub async fn attention_map(&self, image: Pixels, on_event: Function) -> Result<JsValue, JsValue> {
        let image = to_rgb(&image).map_err(to_js)?;
        let mut on_step = |done, of| emit(&on_event, "encoding", &(done as f64 / of as f64).into());
        let map = self.model.attention_map(&image, &mut on_step).await.map_err(to_js)?;
        let object = js_sys::Object::new();
        let set = |name: &str, value: JsValue| js_sys::Reflect::set(&object, &name.into(), &value);
        set("size", (map.size as f64).into())?;
        set("weights", js_sys::Float32Array::from(&map.weights[..]).into())?;
        set("image", js_sys::Float32Array::from(&map.image[..]).into())?;
        Ok(object.into())
    }

    /// Measures which matmul kernels are the fastest for this model on this device, uses them from now on, and returns
    /// the result as JSON for the next `Device::open`. Calls `on_event` with `"measured"` and a line of text after each
    /// measurement; `false` stops. With `int8`, kernels that quantise activations to 8 bits take part.
    pub async fn tune(&self, int8: bool, on_event: Function) -> Result<String, JsValue> {
        let products = products(&self.model.dry_run().map_err(to_js)?);
        let tuning = tune(&self.gpu, products.into_keys(), TuneOptions::default().with_int8(int8), |timing| {
            let text = format!("{:?} {} {:?}", timing.shape, timing.kernel.name(), timing.microseconds);
            emit(&on_event, "measured", &text.into())
        })
        .await
        .map_err(to_js)?;
        to_json(&tuning)
    }
}

async fn open(files: &js_sys::Map) -> mgm::Result<ModelFiles> {
    let root = blob_source::folder(files);
    let paths = blob_source::paths(files);
    let is_bundle = paths.iter().any(|path| path.ends_with("bundle.json"));
    if let Some(gguf) = paths.iter().find(|path| path.ends_with(".gguf") && !is_bundle) {
        let missing = || mgm::Error::MissingFile { file: gguf.clone(), hint: "it is not a file".to_owned() };
        let model = GgufModel::open(root.open(gguf).await?.ok_or_else(missing)?).await?;
        return Ok(ModelFiles::Gguf(Box::new(model)));
    }
    let folder = blob_source::shallowest(&paths, &["bundle.json", "config.json", "model_index.json"]);
    ModelFiles::open(root.child(folder), TowerOptions::default()).await
}

async fn answer(
    model: &Model,
    chat: &mut Chat,
    request: AnswerRequest,
    images: &[&dyn ImageSource],
    on_event: &Function,
) -> mgm::Result<AnswerReport> {
    let mut on_event = |event: Event<'_>| match event {
        Event::DroppedTurns { count } => emit(on_event, "dropped", &(count as f64).into()),
        Event::EncodingImage { done, total } => emit(on_event, "encoding", &(done as f64 / total.max(1) as f64).into()),
        Event::Prefill { done, total } => emit(on_event, "prefill", &(done as f64 / total.max(1) as f64).into()),
        Event::Choice { index } => emit(on_event, "choice", &(index as f64).into()),
        Event::Token { id } => emit(on_event, "token", &id.into()),
        Event::Logprobs { logprobs: TokenLogprobs { chosen, top, .. } } => {
            let tokens: Vec<_> = [chosen].into_iter().chain(top).map(|token| TokenReport::new(model, *token)).collect();
            to_json(&tokens).map_or(ControlFlow::Break(()), |tokens| emit(on_event, "logprobs", &tokens.into()))
        }
        Event::Text { text } => emit(on_event, "text", &text.into()),
        _ => ControlFlow::Continue(()),
    };
    let Dialogue { system, turns, question, images: new } = Dialogue::from_messages(request.messages)?;
    let earlier =
        images.len().checked_sub(new).ok_or_else(|| invalid("the messages name more images than were passed"))?;
    let (earlier, new) = images.split_at(earlier);
    chat.allow_special_tokens(request.allow_special_tokens);
    chat.restore(system, turns, earlier, &mut on_event).await?;
    let sampling = Sampling::default()
        .with_temperature(request.temperature)
        .with_top_k(request.top_k)
        .with_top_p(request.top_p.or(model.generation().top_p).unwrap_or(1.0))
        .with_min_p(request.min_p.unwrap_or(0.0))
        .with_repetition_penalty(request.repetition_penalty.unwrap_or(1.0))
        .with_presence_penalty(request.presence_penalty.unwrap_or(0.0))
        .with_frequency_penalty(request.frequency_penalty.unwrap_or(0.0));
    let options = AnswerOptions::default()
        .with_sampling(sampling)
        .with_seed(request.seed)
        .with_max_new_tokens(request.max_new_tokens)
        .with_min_tokens(request.min_tokens)
        .with_stop(request.stop)
        .with_stop_token_ids(request.stop_token_ids)
        .with_ignore_eos(request.ignore_eos)
        .with_logit_bias(request.logit_bias)
        .with_top_logprobs(request.top_logprobs)
        .with_n(request.n.unwrap_or(1))
        .with_resume_from(request.resume_from);
    let answer = chat.ask(question).images(new).options(&options).on_event(&mut on_event).await?;
    let first = ChoiceReport::new(answer.text, answer.token_ids, answer.finish_reason, answer.stop_reason);
    let others = answer.alternatives.into_iter();
    let others =
        others.map(|choice| ChoiceReport::new(choice.text, choice.token_ids, choice.finish_reason, choice.stop_reason));
    Ok(AnswerReport {
        choices: [first].into_iter().chain(others).collect(),
        prompt_tokens: answer.prompt_tokens,
        cached_tokens: answer.cached_tokens,
        vision_ms: answer.vision_ms,
        prefill_ms: answer.prefill_ms,
        decode_ms: answer.decode_ms,
    })
}

fn invalid(reason: &str) -> mgm::Error {
    mgm::Error::InvalidArgument(reason.to_owned())
}

/// Messages as the core takes them.
struct Dialogue {
    system: Option<String>,
    /// Answered turns.
    turns: Vec<Turn>,
    /// The last message.
    question: String,
    /// Number of the last message's images.
    images: usize,
}

impl Dialogue {
    fn from_messages(messages: Vec<Message>) -> mgm::Result<Self> {
        let mut system = None;
        let mut turns: Vec<Turn> = Vec::new();
        for (index, message) in messages.into_iter().enumerate() {
            match message.role {
                Role::System if index == 0 && message.images == 0 => system = Some(message.text),
                Role::System => return Err(invalid("a system message must come first and have no images")),
                Role::User if turns.last().is_none_or(|turn| turn.answer.is_some()) => {
                    turns.push(Turn::new(message.text, message.images));
                }
                Role::Assistant if message.images == 0 => match turns.last_mut() {
                    Some(turn) if turn.answer.is_none() => turn.answer = Some(message.text),
                    _ => return Err(invalid("an assistant message must follow a user message")),
                },
                Role::User => return Err(invalid("two user messages in a row: join them into one")),
                Role::Assistant => return Err(invalid("only user messages can have images")),
            }
        }
        match turns.pop() {
            Some(Turn { question, images, answer: None, .. }) => Ok(Self { system, turns, question, images }),
            _ => Err(invalid("the last message must be a user message")),
        }
    }
}
