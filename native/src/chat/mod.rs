//! `mgm chat`: answers prompts from the command line, or holds an interactive conversation.

mod answer_images;
mod command;
mod decoding;
mod form;
mod history;
mod lines;
mod report;
mod resident;
mod words;

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use mgm::image::ImageDecoding;
use mgm::tensor::{Activation, Precision};
use mgm::text::conversation::Template;

use crate::args::{CheckpointArgs, ProfiledDeviceArgs};
use crate::images::{output_files, read_image};
use crate::load::{load_options, open_checkpoint};
use crate::recovery::Recovery;
use crate::{CliError, bundled_models, device_cache, interrupt, load, sdxl, seed};
use answer_images::{AnswerImageArgs, AnswerImages};
use command::ChatCommand;
use decoding::DecodingArgs;
use form::FormArgs;
use resident::ResidentChat;

#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    #[command(flatten)]
    device: ProfiledDeviceArgs,
    /// Don't measure kernels before a model's first load on this GPU, which takes up to 2 seconds
    #[arg(long)]
    no_tune: bool,
    /// A question; repeat for several turns. Without it the conversation is interactive
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// An image for the first turn (PNG, JPEG, WebP, GIF, TIFF, BMP); repeat for several
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// How image files are read: corrected (as viewers show them), or reference (as Mini-Gemini's code reads them: EXIF
    /// orientation ignored, transparency dropped, 16-bit grey clipped)
    #[arg(long, value_name = "MODE", default_value_t = ImageDecoding::Corrected)]
    image_decoding: ImageDecoding,
    /// Weight precision: f32, f16, q8, q4 [default: f16; the file's own for GGUF and bundles]
    #[arg(long)]
    precision: Option<Precision>,
    #[command(flatten)]
    decoding: DecodingArgs,
    #[command(flatten)]
    form: FormArgs,
    /// Conversation template: vicuna_v1, gemma, mistral_instruct, chatml_direct, llama_3 [default: the checkpoint's]
    #[arg(long, value_name = "NAME")]
    conversation: Option<Template>,
    /// System prompt [default: the template's]
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Let control tokens in prompts and answers (such as <|im_start|>) take effect, as in the reference, instead of
    /// encoding them as ordinary text
    #[arg(long)]
    allow_special_tokens: bool,
    /// Encode images at low resolution only, without the high-resolution tower and patch info mining
    #[arg(long)]
    no_high_resolution: bool,
    /// GELU variant for Gemma: tanh or erf [default: the checkpoint's]
    #[arg(long, value_parser = ["tanh", "erf"])]
    gelu: Option<String>,
    /// Print one JSON object and nothing else on standard output
    #[arg(long, requires = "prompt")]
    json: bool,
    #[command(flatten)]
    answer_images: AnswerImageArgs,
}

pub async fn run(mut arguments: ChatArgs) -> Result<(), CliError> {
    if arguments.checkpoint.checkpoint.is_none() {
        // The bundled models go together.
        let image_model = &mut arguments.answer_images.model.image_model;
        *image_model = image_model.take().or_else(|| bundled_models::find(bundled_models::POCKET_SDXL));
    }
    // Files that may be missing come before a load that takes time.
    let decoding = arguments.image_decoding;
    let images = arguments.image.iter().map(|path| read_image(path, decoding)).collect::<mgm::Result<Vec<_>>>()?;
    let format = arguments.form.format()?;
    let image_model = match arguments.answer_images.named_model()? {
        Some((model, out)) => {
            output_files(&out, 1)?;
            let checkpoint = model.open().await?;
            let checked = sdxl::check(checkpoint, arguments.answer_images.image.scheduler.as_ref()).await?;
            Some((checked, model, out))
        }
        None => None,
    };
    let mut files = open_checkpoint(&arguments.checkpoint).await?;
    if let Some(gelu) = &arguments.gelu {
        let activation = if gelu == "erf" { Activation::GeluErf } else { Activation::GeluTanh };
        files.language_config_mut().activation = activation;
    }
    let options = load_options(&arguments.checkpoint, &files, arguments.precision)
        .with_template(arguments.conversation)
        .with_high_resolution(!arguments.no_high_resolution);
    let text = load::check(&files, &options).await?;
    if let Some(note) = text.note() {
        note!("mgm: note: {note}");
    }
    let vocab = files.language_config_mut().vocab_size;
    let constraint = format.map(|format| form::constraint(format, &text, vocab)).transpose()?;
    let started = Instant::now();
    let stop = interrupt::install()?;
    let gpu = device_cache::open_with_note(&arguments.device.options()).await?;
    let mut chat = ResidentChat::new(&gpu, files, (options, text), arguments.system, !arguments.no_tune, &stop)?;
    chat.allow_special_tokens = arguments.allow_special_tokens;
    let mut recovery = Recovery::new(arguments.device.options());
    while let Err(error) = chat.load().await.map(drop) {
        chat.move_to(&recovery.reopen(error).await?);
    }
    let gpu = chat.gpu().clone();
    let loaded = chat.load().await?;
    let (has_vision, top_p) = (loaded.model().has_vision(), loaded.model().generation().top_p);
    let vocab = loaded.model().language().config().vocab_size;
    let load_ms = started.elapsed().as_secs_f64() * 1000.0;
    // The profile leaves loading out.
    gpu.take_profile().await?;

    let seed = arguments.decoding.seed.unwrap_or_else(seed::random);
    let images_of_answers = match image_model {
        Some((checkpoint, model, out)) => {
            // 32 bits: the seed is printed, and other programs' seeds are that short.
            let seed = arguments.decoding.seed.unwrap_or(seed >> 32);
            let args = &arguments.answer_images;
            let images = AnswerImages::new(&gpu, checkpoint, &model, args, out, seed, stop.clone()).await;
            Some(images.map_err(CliError::Image)?)
        }
        None => None,
    };
    let options = arguments.decoding.options(seed, top_p);
    options.check(vocab)?;
    let mut command = ChatCommand::new(chat, images_of_answers, options, stop, recovery, arguments.json, decoding);
    command.constraint = constraint;
    let result = if arguments.prompt.is_empty() {
        command.interactive(has_vision, images).await
    } else {
        command.one_shot(&arguments.prompt, images, load_ms).await
    };
    if arguments.device.profile {
        note!("{}", command.gpu().take_profile().await?);
    }
    result
}
