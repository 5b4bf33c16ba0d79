//! An image model (SDXL). Its parts are loaded onto the device when an image needs them.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::rc::Rc;

use js_sys::{Function, Object, Reflect, Uint8Array};
use mgm::diffusion::gen_protocol;
use mgm::diffusion::png_metadata::ImageSettings;
use mgm::diffusion::{DiffusionEvent, DiffusionOptions, DiffusionPipeline, GeneratedImage};
use mgm::image::Image;
use mgm::io::Folder;
use mgm::tensor::Precision;
use mgm::text::prompt_weights::PromptWeights;
use mgm::weights::bundle::read::Bundle;
use mgm::weights::sdxl::config::{PredictionType, SchedulerOverride};
use mgm::weights::sdxl::{OpenOptions, SdxlCheckpoint};
use serde::{Deserialize, Serialize};
use wasm_bindgen::prelude::*;

use crate::device::Device;
use crate::pixels::{Pixels, to_rgb};
use crate::{bad_request, blob_source, emit, to_js, to_json};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OpenRequest {
    precision: Option<Precision>,
    /// The model's name in the settings of generated images.
    name: String,
}

/// See `ImageModelInfo` of the package.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    precision: String,
    /// Size of the training images, in pixels.
    width: usize,
    height: usize,
    /// Width and height must be multiples of this.
    multiple: usize,
    weight_bytes: u64,
}

/// See `GenerateOptions` of the package. The core has the defaults.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GenerateRequest {
    prompt: String,
    negative_prompt: Option<String>,
    steps: Option<usize>,
    guidance_scale: Option<f32>,
    width: Option<usize>,
    height: Option<usize>,
    scheduler: Option<String>,
    prediction_type: Option<String>,
    prompt_weights: Option<String>,
    seed: u64,
    strength: Option<f32>,
    #[serde(default)]
    previews: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GenerateReport {
    settings: ImageSettings,
    /// The same in the format of other Stable Diffusion programs.
    parameters: String,
    /// The end of the prompt that did not fit the text encoders' window.
    prompt_cut: Option<String>,
}

/// An image model.
#[wasm_bindgen]
pub struct ImageModel {
    diffusion: RefCell<DiffusionPipeline>,
    name: String,
    precision: Precision,
    /// Receives the progress of loading.
    listener: Rc<RefCell<Option<Function>>>,
}

#[wasm_bindgen]
impl ImageModel {
    /// Opens a model from a `Map` of paths to blobs: the files of a bundle or of a folder in diffusers' layout. Loads
    /// no weights.
    pub async fn open(device: &Device, files: js_sys::Map, request: String) -> Result<ImageModel, JsValue> {
        let request: OpenRequest = serde_json::from_str(&request).map_err(bad_request)?;
        let gpu = device.gpu.clone();
        let checkpoint = open(&files, request.precision).await.map_err(to_js)?;
        let precision = request.precision.unwrap_or_else(|| checkpoint.stored_precision());
        let listener: Rc<RefCell<Option<Function>>> = Rc::default();
        let progress_listener = Rc::clone(&listener);
        let on_progress = Rc::new(move |bytes| {
            // The callback may call back into this model, so it runs without a borrow.
            let listener = progress_listener.borrow().clone();
            match listener {
                Some(listener) => emit(&listener, "loaded", &(bytes as f64).into()),
                None => ControlFlow::Continue(()),
            }
        });
        let options = DiffusionOptions::default().with_precision(precision).with_progress(on_progress);
        let diffusion = DiffusionPipeline::open(&gpu, checkpoint, options).await.map_err(to_js)?;
        Ok(Self { diffusion: RefCell::new(diffusion), name: request.name, precision, listener })
    }

    /// Properties of the model, as JSON.
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

    /// Bytes that the next image needs in addition to what is loaded.
    #[wasm_bindgen(js_name = missingBytes)]
    pub fn missing_bytes(&self) -> Result<f64, JsValue> {
        Ok(self.diffusion.try_borrow().map_err(|_| busy())?.missing_bytes() as f64)
    }

    /// Frees the weights on the device. The next image loads them again.
    pub fn release(&self) -> Result<(), JsValue> {
        self.diffusion.try_borrow_mut().map_err(|_| busy())?.release();
        Ok(())
    }

    /// Generates an image: `{ width, height, data, report }`; with a mask, only where it is white in `image`. Calls
    /// `on_event` with `"loading"` (a part of the model), `"total"` and `"loaded"` (its bytes), `"step"` (`[done,
    /// total]`), `"preview"` (pixels) and `"decoding"`; `false` stops.
    pub async fn generate(
        &self,
        request: String,
        image: Option<Pixels>,
        mask: Option<Pixels>,
        on_event: Function,
    ) -> Result<JsValue, JsValue> {
        let request: GenerateRequest = serde_json::from_str(&request).map_err(bad_request)?;
        let read = |image: Option<Pixels>| image.map(|image| to_rgb(&image)).transpose().map_err(to_js);
        let (image, mask) = (read(image)?, read(mask)?);
        // Borrowed until the image is done, so that a concurrent call is refused.
        let mut diffusion = self.diffusion.try_borrow_mut().map_err(|_| busy())?;
        *self.listener.borrow_mut() = Some(on_event.clone());
        let result = self.run(&mut diffusion, request, (image, mask), &on_event).await;
        *self.listener.borrow_mut() = None;
        let (image, report) = result.map_err(to_js)?;
        let object = pixels_of(&image)?;
        Reflect::set(&object, &"report".into(), &to_json(&report)?.into())?;
        Ok(object.into())
    }

    async fn run(
        &self,
        diffusion: &mut DiffusionPipeline,
        request: GenerateRequest,
        (image, mask): (Option<Image>, Option<Image>),
        on_event: &Function,
    ) -> mgm::Result<(Image, GenerateReport)> {
        let choice = request.scheduler.as_deref().map(str::parse::<SchedulerOverride>).transpose()?;
        let prediction_type = request.prediction_type.as_deref().map(str::parse::<PredictionType>).transpose()?;
        let prompt_weights = request.prompt_weights.as_deref().map(str::parse::<PromptWeights>).transpose()?;
        let default = diffusion.checkpoint().default_size();
        let has_size = request.width.is_some() || request.height.is_some();
        let parts = diffusion.plan().parts.clone();
        let mut prompt_cut = None;
        let mut on_event = |event: DiffusionEvent<'_>| match event {
            DiffusionEvent::PromptCut { dropped } => {
                prompt_cut = Some(dropped.to_owned());
                ControlFlow::Continue(())
            }
            DiffusionEvent::Loading { part } => {
                let bytes = parts.iter().find(|(name, _)| *name == part).map_or(0, |(_, bytes)| *bytes);
                emit(on_event, "loading", &part.into())?;
                emit(on_event, "total", &(bytes as f64).into())
            }
            DiffusionEvent::Step { done, total } => {
                emit(on_event, "step", &js_sys::Array::of2(&(done as f64).into(), &(total as f64).into()))
            }
            DiffusionEvent::Preview { image } => match pixels_of(image) {
                Ok(pixels) => emit(on_event, "preview", &pixels),
                Err(_) => ControlFlow::Break(()),
            },
            DiffusionEvent::Decoding => emit(on_event, "decoding", &JsValue::NULL),
            _ => ControlFlow::Continue(()),
        };
        let mut generate = diffusion
            .generate(request.prompt)
            .num_inference_steps(request.steps)
            .guidance_scale(request.guidance_scale)
            .scheduler(choice)
            .prediction_type(prediction_type)
            .prompt_weights(prompt_weights)
            .seed(request.seed)
            .strength(request.strength)
            .model_name(self.name.as_str())
            .previews(request.previews);
        if let Some(negative_prompt) = request.negative_prompt {
            generate = generate.negative_prompt(negative_prompt);
        }
        // Otherwise the initial image's, or the model's.
        if has_size {
            generate = generate.size(request.width.unwrap_or(default.0), request.height.unwrap_or(default.1));
        }
        if let Some(image) = image {
            generate = generate.image(image);
        }
        if let Some(mask) = mask {
            generate = generate.mask(mask);
        }
        let GeneratedImage { image, settings, .. } = generate.on_event(&mut on_event).await?;
        Ok((image, GenerateReport { parameters: settings.parameters(), settings, prompt_cut }))
    }
}

/// Appends the request for an image to a question.
#[wasm_bindgen(js_name = withImageRequest)]
pub fn with_image_request(question: &str) -> String {
    gen_protocol::with_image_request(question)
}

/// Whether a question asks for an image by its wording.
#[wasm_bindgen(js_name = wantsImage)]
pub fn wants_image(question: &str) -> bool {
    gen_protocol::wants_image(question)
}

/// The image prompt in an answer.
#[wasm_bindgen(js_name = imagePrompt)]
pub fn image_prompt(answer: &str) -> Option<String> {
    gen_protocol::image_prompt(answer).map(str::to_owned)
}

/// The negative prompt of images in conversations.
#[wasm_bindgen(js_name = chatNegativePrompt)]
pub fn chat_negative_prompt() -> String {
    gen_protocol::NEGATIVE_PROMPT.to_owned()
}

async fn open(files: &js_sys::Map, precision: Option<Precision>) -> mgm::Result<SdxlCheckpoint> {
    let root = blob_source::folder(files);
    let paths = blob_source::paths(files);
    let folder: Rc<dyn Folder> = root.child(blob_source::shallowest(&paths, &["bundle.json", "model_index.json"]));
    if let Some(bundle) = Bundle::find(&folder).await? {
        return SdxlCheckpoint::open_bundle(&bundle).await;
    }
    let prefer_f16 = precision.is_some_and(|precision| precision != Precision::F32);
    SdxlCheckpoint::open(folder, &OpenOptions::default().with_prefer_f16(prefer_f16)).await
}

/// `{ width, height, data }` for `ImageData`.
fn pixels_of(image: &Image) -> Result<Object, JsValue> {
    // Copied in strips: a whole RGBA copy would grow the wasm heap, which never shrinks.
    const STRIP: usize = 3 << 18;
    let data = Uint8Array::new_with_length((image.width() * image.height() * 4) as u32);
    let mut at = 0;
    for strip in image.data().chunks(STRIP) {
        let rgba: Vec<u8> = strip.chunks_exact(3).flat_map(|pixel| [pixel[0], pixel[1], pixel[2], 255]).collect();
        data.subarray(at, at + rgba.len() as u32).copy_from(&rgba);
        at += rgba.len() as u32;
    }
    let object = Object::new();
    Reflect::set(&object, &"width".into(), &(image.width() as f64).into())?;
    Reflect::set(&object, &"height".into(), &(image.height() as f64).into())?;
    Reflect::set(&object, &"data".into(), &js_sys::Uint8ClampedArray::new(&data.buffer()))?;
    Ok(object)
}

fn busy() -> JsValue {
    to_js(mgm::Error::InvalidArgument("an image is being generated: wait for it".to_owned()))
}
