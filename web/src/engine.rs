//! A language model on a device, and the conversation in its cache.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::rc::Rc;

use js_sys::Function;
use mgm::gpu::Gpu;
use mgm::io::Folder;
use mgm::load::LoadOptions;
use mgm::ops::{Sampling, products};
use mgm::plan::Plan;
use mgm::session::{AnswerOptions, Chat, Event, FinishReason, Model, Picture};
use mgm::tensor::Precision;
use mgm::text::conversation::{Template, Turn};
use mgm::tuning::{TuneOptions, tune};
use mgm::weights::gguf_model::GgufModel;
use mgm::weights::mgm::TowerOptions;
use mgm::weights::model_files::ModelFiles;
use serde::{Deserialize, Serialize};
use wasm_bindgen::prelude::*;

use crate::device::Device;
use crate::pixels::{Pixels, to_rgb};
use crate::{bad_request, source, tell, to_js, to_json};

/// How a model is loaded; see `LoadOptions` of the package.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LoadRequest {
    precision: Option<String>,
    conversation: Option<String>,
}

/// What is known of a loaded model.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    precision: String,
    sees: bool,
    max_positions: usize,
    weight_bytes: u64,
}

/// A message of a conversation, its pictures taken out: they come beside, in order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: Role,
    text: String,
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
    #[serde(default)]
    begun: Vec<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AnswerReport {
    text: String,
    token_ids: Vec<u32>,
    prompt_tokens: usize,
    cached_tokens: usize,
    finish_reason: &'static str,
    vision_ms: f64,
    prefill_ms: f64,
    decode_ms: f64,
}

/// A model on a device.
#[wasm_bindgen]
pub struct Engine {
    gpu: Gpu,
    model: Rc<Model>,
    chat: RefCell<Option<Chat>>,
    precision: Precision,
    weight_bytes: u64,
}

#[wasm_bindgen]
impl Engine {
    /// Loads a model from a `Map` of paths to blobs: a bundle's files, a checkpoint's, or one GGUF file. `on_event` is
    /// called with `"total"` and then `"loaded"` bytes; it returns `false` to stop.
    pub async fn load(
        device: &Device,
        files: js_sys::Map,
        request: String,
        on_event: Function,
    ) -> Result<Engine, JsValue> {
        let request: LoadRequest = serde_json::from_str(&request).map_err(bad_request)?;
        let gpu = device.gpu.clone();
        let files = open(&files).await.map_err(to_js)?;
        let (mut precision, mut keep_stored) = files.default_precision();
        if let Some(name) = request.precision {
            precision = name.parse().map_err(to_js)?;
            keep_stored = false;
        }
        let template = request.conversation.map(|name| name.parse::<Template>()).transpose().map_err(to_js)?;
        let mut options = LoadOptions { keep_stored, template, ..LoadOptions::at(precision) };
        let weight_bytes = Plan::of_files(&files, &options).map_err(to_js)?.weights();
        tell(&on_event, "total", &(weight_bytes as f64).into());
        options.on_progress = Some(Rc::new(move |bytes| tell(&on_event, "loaded", &(bytes as f64).into())));
        let model = Model::open(&gpu, &files, &options).await.map_err(to_js)?;
        Ok(Self { gpu, model: Rc::new(model), chat: RefCell::default(), precision, weight_bytes })
    }

    /// Makes the pipelines that a conversation in text needs, one after the other. `on_event` is called with `"prepared"` and
    /// how many there are; it returns `false` to stop. Browsers do nothing else on a device while they make one, so whoever
    /// has something to ask waits for one at most.
    pub async fn prepare(&self, on_event: Function) -> Result<(), JsValue> {
        for (index, kernel) in self.model.dry_run().map_err(to_js)?.kernels.into_iter().enumerate() {
            self.gpu.prepare(kernel);
            self.gpu.flush_writes().await.map_err(to_js)?;
            if !tell(&on_event, "prepared", &(index as f64 + 1.0).into()) {
                break;
            }
        }
        Ok(())
    }

    /// What is known of the model, as JSON.
    pub fn info(&self) -> Result<String, JsValue> {
        to_json(&Info {
            precision: self.precision.to_string(),
            sees: self.model.sees(),
            max_positions: self.model.language().config().max_positions,
            weight_bytes: self.weight_bytes,
        })
    }

    /// Answers the last of the messages. `on_event` is called with `"looking"` (part done), `"dropped"` (turns), `"prefill"` (part done),
    /// `"token"` and `"text"`; it returns `false` to stop. Gives a report as JSON.
    pub async fn answer(&self, request: String, images: Vec<Pixels>, on_event: Function) -> Result<String, JsValue> {
        let request: AnswerRequest = serde_json::from_str(&request).map_err(bad_request)?;
        let images: Vec<&dyn Picture> = images.iter().map(|image| image as &dyn Picture).collect();
        let mut chat = self.chat.take().unwrap_or_else(|| self.model.chat(None));
        let result = answer(&self.model, &mut chat, request, &images, &on_event).await;
        self.chat.replace(Some(chat));
        to_json(&result.map_err(to_js)?)
    }

    /// What patch info mining weighs in a picture: `{ size, weights, picture }`. `on_event` is called with `"looking"` and the
    /// part done; it returns `false` to stop.
    pub async fn look(&self, image: Pixels, on_event: Function) -> Result<JsValue, JsValue> {
        let image = to_rgb(&image).map_err(to_js)?;
        let mut on_step = |done, of| tell(&on_event, "looking", &(done as f64 / of as f64).into());
        let map = self.model.attention(&image, &mut on_step).await.map_err(to_js)?;
        let object = js_sys::Object::new();
        let set = |name: &str, value: JsValue| js_sys::Reflect::set(&object, &name.into(), &value);
        set("size", (map.size as f64).into())?;
        set("weights", js_sys::Float32Array::from(&map.weights[..]).into())?;
        set("picture", js_sys::Float32Array::from(&map.picture[..]).into())?;
        Ok(object.into())
    }

    /// Measures which kernels are the fastest for the model on this device, and uses them from now on. `on_event` is called with
    /// `"measured"` and a product, a kernel and its microseconds as a text; it returns `false` to stop. `int8`: also kernels that round
    /// activations to 8 bits. Gives JSON for the next `Device::open`.
    pub async fn tune(&self, int8: bool, on_event: Function) -> Result<String, JsValue> {
        let products = products(&self.model.dry_run().map_err(to_js)?);
        let tuning = tune(&self.gpu, products, TuneOptions::default().with_int8(int8), |timing| {
            let text = format!("{:?} {} {:?}", timing.shape, timing.kernel.name(), timing.microseconds);
            if tell(&on_event, "measured", &text.into()) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .await
        .map_err(to_js)?;
        to_json(&tuning)
    }
}

async fn open(files: &js_sys::Map) -> mgm::Result<ModelFiles> {
    let root = source::folder(files);
    let names = source::names(files);
    if let Some(gguf) =
        names.iter().find(|name| name.ends_with(".gguf") && !names.iter().any(|name| name.ends_with("bundle.json")))
    {
        let missing = || mgm::Error::MissingFile { file: gguf.clone(), hint: "it is no file".to_owned() };
        return Ok(ModelFiles::Gguf(GgufModel::open(root.open(gguf).await?.ok_or_else(missing)?).await?));
    }
    let folder = source::shallowest(&names, &["bundle.json", "config.json"]);
    ModelFiles::open(root.child(folder), TowerOptions::default()).await
}

async fn answer(
    model: &Model,
    chat: &mut Chat,
    request: AnswerRequest,
    images: &[&dyn Picture],
    on_event: &Function,
) -> mgm::Result<AnswerReport> {
    let mut on_event = |event: Event<'_>| match event {
        Event::DroppedTurns(count) => tell(on_event, "dropped", &(count as f64).into()),
        Event::Looking(done, of) => tell(on_event, "looking", &(done as f64 / of.max(1) as f64).into()),
        Event::Prefill(done, of) => tell(on_event, "prefill", &(done as f64 / of.max(1) as f64).into()),
        Event::Token(id) => tell(on_event, "token", &id.into()),
        Event::Text(text) => tell(on_event, "text", &text.into()),
    };
    let (system, turns, question, new) = to_turns(request.messages)?;
    let earlier = images.len().checked_sub(new).ok_or_else(|| invalid("there are fewer images than messages say"))?;
    let (earlier, new) = images.split_at(earlier);
    chat.restore(system, turns, earlier, &mut on_event).await?;
    let options = AnswerOptions {
        sampling: Sampling {
            temperature: request.temperature,
            top_k: request.top_k,
            top_p: request.top_p.or(model.generation().top_p).unwrap_or(1.0),
        },
        seed: request.seed,
        max_new_tokens: request.max_new_tokens,
        begun: request.begun,
    };
    let answer = chat.ask_about(&question, new, &options, &mut on_event).await?;
    Ok(AnswerReport {
        text: answer.text,
        token_ids: answer.token_ids,
        prompt_tokens: answer.prompt_tokens,
        cached_tokens: answer.cached_tokens,
        finish_reason: match answer.finish_reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        },
        vision_ms: answer.vision_ms,
        prefill_ms: answer.prefill_ms,
        decode_ms: answer.decode_ms,
    })
}

fn invalid(reason: &str) -> mgm::Error {
    mgm::Error::InvalidArgument(reason.to_owned())
}

/// The system text, the turns that have answers, the question that has none, and its images.
#[allow(clippy::type_complexity)]
fn to_turns(messages: Vec<Message>) -> mgm::Result<(Option<String>, Vec<Turn>, String, usize)> {
    let mut system = None;
    let mut turns: Vec<Turn> = Vec::new();
    for (index, message) in messages.into_iter().enumerate() {
        match message.role {
            Role::System if index == 0 && message.images == 0 => system = Some(message.text),
            Role::System => return Err(invalid("a system message is the first, and has no images")),
            Role::User if turns.last().is_none_or(|turn| turn.answer.is_some()) => {
                turns.push(Turn { question: message.text, images: message.images, answer: None });
            }
            Role::Assistant if message.images == 0 => match turns.last_mut() {
                Some(turn) if turn.answer.is_none() => turn.answer = Some(message.text),
                _ => return Err(invalid("an assistant's message answers a user's")),
            },
            Role::User => return Err(invalid("two messages of the user follow each other: join them into one")),
            Role::Assistant => return Err(invalid("only messages of the user have images")),
        }
    }
    match turns.pop() {
        Some(Turn { question, images, answer: None }) => Ok((system, turns, question, images)),
        _ => Err(invalid("the last message must be the user's")),
    }
}
