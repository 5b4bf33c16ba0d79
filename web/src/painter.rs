//! A model that paints, whose parts come onto the device when they are needed, and what its pictures are made with.

use std::cell::RefCell;
use std::rc::Rc;

use js_sys::{Function, Object, Reflect, Uint8Array};
use mgm::diffusion::gen_protocol;
use mgm::diffusion::pipeline::{Diffusion, Event, LoadOptions, Request, Start};
use mgm::diffusion::png_metadata::Settings;
use mgm::diffusion::torch_rng::NoiseType;
use mgm::image::Rgb8;
use mgm::io::Folder;
use mgm::tensor::Precision;
use mgm::weights::bundle::read::Bundle;
use mgm::weights::sdxl::config::SchedulerOverride;
use mgm::weights::sdxl::{OpenOptions, SdxlCheckpoint};
use serde::{Deserialize, Serialize};
use wasm_bindgen::prelude::*;

use crate::device::Device;
use crate::pixels::{Pixels, to_rgb};
use crate::{bad_request, source, tell, to_js, to_json};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OpenRequest {
    precision: Option<Precision>,
    /// The name that goes into the settings of its pictures.
    name: String,
}

/// What is known of a model.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    precision: String,
    /// Of the pictures that it was trained on.
    width: usize,
    height: usize,
    /// Sides of pictures are multiples of this.
    multiple: usize,
    weight_bytes: u64,
}

/// What to paint; see `GenerateOptions` of the package.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PaintRequest {
    prompt: String,
    negative_prompt: Option<String>,
    steps: usize,
    guidance: f32,
    width: Option<usize>,
    height: Option<usize>,
    scheduler: Option<String>,
    seed: u64,
    strength: f32,
    previews: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PaintReport {
    settings: Settings,
    /// The same as other programs read it.
    parameters: String,
    /// The end of the prompt that found no room.
    prompt_cut: Option<String>,
}

/// A model that paints.
#[wasm_bindgen]
pub struct Painter {
    diffusion: RefCell<Diffusion>,
    name: String,
    precision: Precision,
    /// Who is told of weights that are loaded.
    listener: Rc<RefCell<Option<Function>>>,
}

#[wasm_bindgen]
impl Painter {
    /// Opens a model from a `Map` of paths to blobs: a bundle's files, or those of a folder in diffusers' layout. Nothing is loaded
    /// onto the device yet.
    pub async fn open(device: &Device, files: js_sys::Map, request: String) -> Result<Painter, JsValue> {
        let request: OpenRequest = serde_json::from_str(&request).map_err(bad_request)?;
        let gpu = device.gpu.clone();
        let checkpoint = open(&files, request.precision).await.map_err(to_js)?;
        let precision = request.precision.unwrap_or_else(|| checkpoint.stored_precision());
        let listener: Rc<RefCell<Option<Function>>> = Rc::default();
        let told = Rc::clone(&listener);
        let on_progress = Rc::new(move |bytes| {
            // The callback may do as it likes, so nothing is borrowed meanwhile.
            let listener = told.borrow().clone();
            listener.is_none_or(|listener| tell(&listener, "loaded", &(bytes as f64).into()))
        });
        let options = LoadOptions { precision, on_progress: Some(on_progress) };
        let diffusion = Diffusion::open(&gpu, checkpoint, options).await.map_err(to_js)?;
        Ok(Self { diffusion: RefCell::new(diffusion), name: request.name, precision, listener })
    }

    /// What is known of the model, as JSON.
    pub fn info(&self) -> Result<String, JsValue> {
        let diffusion = self.diffusion.try_borrow().map_err(|_| busy())?;
        let (width, height) = diffusion.checkpoint().default_size();
        to_json(&Info {
            precision: self.precision.to_string(),
            width,
            height,
            multiple: diffusion.pixels_per_latent(),
            weight_bytes: diffusion.plan().weights(),
        })
    }

    /// Bytes that the next picture needs on the device beside what is there.
    #[wasm_bindgen(js_name = missingBytes)]
    pub fn missing_bytes(&self) -> Result<f64, JsValue> {
        Ok(self.diffusion.try_borrow().map_err(|_| busy())?.missing_bytes() as f64)
    }

    /// Takes the model off the device; it comes again when it is needed.
    pub fn release(&self) -> Result<(), JsValue> {
        self.diffusion.try_borrow_mut().map_err(|_| busy())?.release();
        Ok(())
    }

    /// Paints a picture; gives its pixels and a report. `on_event` is called with `"loading"` (a part of the model), `"total"` and `"loaded"`
    /// (its bytes), `"step"` (`[done, all]`), `"preview"` (pixels) and `"decoding"`; it returns `false` to stop.
    pub async fn paint(&self, request: String, image: Option<Pixels>, on_event: Function) -> Result<JsValue, JsValue> {
        let request: PaintRequest = serde_json::from_str(&request).map_err(bad_request)?;
        let image = image.map(|image| to_rgb(&image)).transpose().map_err(to_js)?;
        // Held over the whole picture: a second call is refused, since this one is still in the middle of it.
        let mut diffusion = self.diffusion.try_borrow_mut().map_err(|_| busy())?;
        *self.listener.borrow_mut() = Some(on_event.clone());
        let result = self.painted(&mut diffusion, request, image, &on_event).await;
        *self.listener.borrow_mut() = None;
        let (picture, report) = result.map_err(to_js)?;
        let object = pixels_of(&picture)?;
        Reflect::set(&object, &"report".into(), &to_json(&report)?.into())?;
        Ok(object.into())
    }

    async fn painted(
        &self,
        diffusion: &mut Diffusion,
        request: PaintRequest,
        image: Option<Rgb8>,
        on_event: &Function,
    ) -> mgm::Result<(Rgb8, PaintReport)> {
        let choice = request.scheduler.as_deref().map(str::parse::<SchedulerOverride>).transpose()?;
        let scheduler = diffusion.checkpoint().scheduler(choice.as_ref())?;
        let default = diffusion.checkpoint().default_size();
        let size = (request.width.unwrap_or(default.0), request.height.unwrap_or(default.1));
        let settings = Settings {
            prompt: request.prompt,
            negative_prompt: request.negative_prompt,
            steps: request.steps,
            guidance: request.guidance,
            width: size.0,
            height: size.1,
            scheduler: request.scheduler.unwrap_or_else(|| scheduler.class.to_string()),
            seed: Some(request.seed),
            strength: image.is_some().then_some(request.strength),
            model: self.name.clone(),
            precision: self.precision.to_string(),
            lora: Vec::new(),
        };
        let wanted = Request {
            prompt: settings.prompt.clone(),
            negative: settings.negative_prompt.clone(),
            scheduler,
            steps: settings.steps,
            guidance: settings.guidance,
            width: size.0,
            height: size.1,
            start: image.map_or(Start::Noise, |image| Start::image(image, size, request.strength)),
            seed: request.seed,
            noise: NoiseType::for_precision(self.precision),
            previews: request.previews,
        };
        let parts = diffusion.plan().parts.clone();
        let mut prompt_cut = None;
        let mut on_painting = |event: Event<'_>| match event {
            Event::PromptCut(dropped) => {
                prompt_cut = Some(dropped.to_owned());
                true
            }
            Event::Loading(part) => {
                let bytes = parts.iter().find(|(name, _)| *name == part).map_or(0, |(_, bytes)| *bytes);
                tell(on_event, "loading", &part.into()) && tell(on_event, "total", &(bytes as f64).into())
            }
            Event::Step(done, all) => {
                tell(on_event, "step", &js_sys::Array::of2(&(done as f64).into(), &(all as f64).into()))
            }
            Event::Preview(picture) => pixels_of(picture).is_ok_and(|pixels| tell(on_event, "preview", &pixels)),
            Event::Decoding => tell(on_event, "decoding", &JsValue::NULL),
        };
        let picture = diffusion.generate(&wanted, &mut on_painting).await?;
        Ok((picture, PaintReport { parameters: settings.parameters(), settings, prompt_cut }))
    }
}

/// What is put behind a question to ask a language model for a picture.
#[wasm_bindgen(js_name = askingForPicture)]
pub fn asking_for_picture(question: &str) -> String {
    gen_protocol::asking_for_picture(question)
}

/// Whether a question asks for a picture by itself.
#[wasm_bindgen(js_name = wantsPicture)]
pub fn wants_picture(question: &str) -> bool {
    gen_protocol::wants_picture(question)
}

/// The prompt of the picture that an answer describes.
#[wasm_bindgen(js_name = picturePrompt)]
pub fn picture_prompt(answer: &str) -> Option<String> {
    gen_protocol::picture_prompt(answer).map(str::to_owned)
}

/// What pictures of a conversation should not be.
#[wasm_bindgen(js_name = negativePrompt)]
pub fn negative_prompt() -> String {
    gen_protocol::NEGATIVE_PROMPT.to_owned()
}

async fn open(files: &js_sys::Map, precision: Option<Precision>) -> mgm::Result<SdxlCheckpoint> {
    let root = source::folder(files);
    let names = source::names(files);
    let marks = ["bundle.json", "model_index.json"];
    let folder: Rc<dyn Folder> = root.child(source::shallowest(&names, &marks));
    if let Some(bundle) = Bundle::find(&folder).await? {
        return SdxlCheckpoint::open_bundle(&bundle).await;
    }
    let prefer_f16 = precision.is_some_and(|precision| precision != Precision::F32);
    SdxlCheckpoint::open(folder, &OpenOptions { prefer_f16, beside: None }).await
}

/// `{ width, height, data }` as `ImageData` takes it.
fn pixels_of(picture: &Rgb8) -> Result<Object, JsValue> {
    // In strips, so that no copy of the whole stays in this memory, which never shrinks.
    const STRIP: usize = 3 << 18;
    let data = Uint8Array::new_with_length((picture.width() * picture.height() * 4) as u32);
    let mut at = 0;
    for strip in picture.data().chunks(STRIP) {
        let rgba: Vec<u8> = strip.chunks_exact(3).flat_map(|pixel| [pixel[0], pixel[1], pixel[2], 255]).collect();
        data.subarray(at, at + rgba.len() as u32).copy_from(&rgba);
        at += rgba.len() as u32;
    }
    let object = Object::new();
    Reflect::set(&object, &"width".into(), &(picture.width() as f64).into())?;
    Reflect::set(&object, &"height".into(), &(picture.height() as f64).into())?;
    Reflect::set(&object, &"data".into(), &js_sys::Uint8ClampedArray::new(&data.buffer()))?;
    Ok(object)
}

fn busy() -> JsValue {
    to_js(mgm::Error::InvalidArgument("one picture at a time".to_owned()))
}
