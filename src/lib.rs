//! Mini-Gemini (MGM) vision-language models and Stable Diffusion XL on any GPU, through WebGPU: Vulkan, Metal, DX12 and
//! browsers.
//!
//! ```no_run
//! use mgm::{Gpu, Image, Model};
//!
//! # fn main() -> mgm::Result<()> {
//! # pollster::block_on(async {
//! let gpu = Gpu::open(&Default::default()).await?;
//! let model = Model::from_path(&gpu, "models/pocket").await?;
//! let mut chat = model.chat();
//! let answer = chat.ask("What is this?").image(Image::open("photo.jpg")?).await?;
//! println!("{answer}");
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! `models/pocket` is the small model in this project's [repository](https://github.com/mgm-rs/mgm/tree/main/models);
//! any Mini-Gemini checkpoint, bundle or GGUF file works. The examples run from the root of a clone.
//!
//! [`Chat::ask`] takes options and callbacks before it is awaited: `.max_new_tokens(64)`, `.temperature(0.2)`,
//! `.seed(7)`, `.on_text(|text| print!("{text}"))`. Images are generated the same way:
//!
//! ```no_run
//! # use mgm::{DiffusionPipeline, Gpu};
//! # async fn generate(gpu: &Gpu) -> mgm::Result<()> {
//! let mut pipeline = DiffusionPipeline::from_path(gpu, "models/pocket-sdxl").await?;
//! pipeline.generate("a blue dog").num_inference_steps(20).seed(7).await?.save("blue-dog.png")?;
//! # Ok(())
//! # }
//! ```
//!
//! To load a model at another precision than the stored one, open its files first:
//!
//! ```no_run
//! # use mgm::{Gpu, LoadOptions, Model, Precision, weights::model_files::ModelFiles};
//! # async fn load(gpu: &Gpu) -> mgm::Result<Model> {
//! let files = ModelFiles::from_path("models/pocket").await?;
//! let model = Model::open(gpu, &files, &LoadOptions::new(Precision::Q8)).await?;
//! # Ok(model)
//! # }
//! ```
//!
//! # Where to start
//!
//! * [`Model`], [`Chat`]: conversations about images ([`session`]).
//! * [`Model::open`] with [`LoadOptions`]: a precision other than the stored one, another conversation template, and
//!   progress.
//! * [`Ask::on_event`]: cancels an answer when the callback returns `ControlFlow::Break`.
//! * [`DiffusionPipeline`]: text to image and image to image ([`diffusion`]).
//! * [`weights`]: the readers: Mini-Gemini checkpoints, GGUF, safetensors, PyTorch, bundles.
//! * [`io`]: implement [`Folder`] and [`ByteSource`] to load weights from anywhere.
//!
//! The [examples](https://github.com/mgm-rs/mgm/tree/main/examples) are short programs: a chat, an image description,
//! image generation, a weight source of your own, and a model inside a Tokio program.
//!
//! # Async without a runtime
//!
//! Futures of this crate are not `Send`, by design: in a browser nothing is, and a model's caches belong to one thread.
//! They need no runtime. Drive them with `pollster::block_on`; in a multi-threaded program, run one thread per model
//! and send it questions over a channel (`examples/async_server.rs`, which streams answers and cancels them). The crate
//! itself uses no network and no standard output; outside of browsers it reads and packs weights on rayon's threads.
//!
//! # Features
//!
//! | feature | default | |
//! | --- | --- | --- |
//! | `gpu` | yes | runs models; needs `wgpu` |
//! | `fs` | yes | reads models and images from disk |
//! | `engine` | no | many sequences at once; unstable |
//! | `decode` | yes | decodes PNG, JPEG, WebP, GIF, TIFF and BMP, and encodes PNG |
//!
//! With `default-features = false` only the readers remain: they parse checkpoints, tokenizers and configurations
//! without wgpu.
//!
//! Modules that are not listed here (kernels, tensors, networks) are public for this project's own binary and tests.
//! They change without notice.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod diffusion;
#[cfg(feature = "engine")]
#[doc(hidden)]
pub mod engine;
pub mod error;
#[cfg(feature = "gpu")]
mod generation;
#[cfg(feature = "gpu")]
#[doc(hidden)]
pub mod gpu;
pub mod image;
pub mod io;
#[doc(hidden)]
pub mod json;
#[cfg(feature = "gpu")]
#[doc(hidden)]
pub mod language;
#[cfg(feature = "gpu")]
#[doc(hidden)]
pub mod loader;
#[cfg(feature = "gpu")]
#[doc(hidden)]
pub mod memory_plan;
#[cfg(feature = "gpu")]
mod nn;
#[cfg(feature = "gpu")]
#[doc(hidden)]
pub mod ops;
mod parallel;
#[cfg(feature = "gpu")]
#[doc(hidden)]
pub mod roofline;
#[cfg(feature = "gpu")]
pub mod session;
#[doc(hidden)]
pub mod tensor;
pub mod text;
#[cfg(feature = "gpu")]
#[doc(hidden)]
pub mod tuning;
#[cfg(feature = "gpu")]
#[doc(hidden)]
pub mod variants;
#[cfg(feature = "gpu")]
#[doc(hidden)]
pub mod vision;
pub mod weights;

#[cfg(feature = "gpu")]
#[doc(inline)]
pub use diffusion::{
    DiffusionEvent, DiffusionOptions, DiffusionPipeline, DiffusionRequest, GenerateImage, GeneratedImage,
};
pub use error::{Error, Result, Setting};
#[cfg(feature = "gpu")]
#[doc(inline)]
pub use gpu::{AdapterChoice, Gpu, GpuOptions};
#[doc(inline)]
pub use image::Image;
#[doc(inline)]
pub use io::{ByteSource, Folder};
#[cfg(feature = "gpu")]
#[doc(inline)]
pub use ops::Sampling;
#[cfg(feature = "gpu")]
#[doc(inline)]
pub use session::{
    Answer, AnswerOptions, Ask, AttentionMap, Chat, Choice, Event, FinishReason, LoadOptions, Model, StopReason,
    TokenLogprob, TokenLogprobs,
};
#[doc(inline)]
pub use tensor::Precision;
