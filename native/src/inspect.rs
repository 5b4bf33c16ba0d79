//! `mgm inspect`: a checkpoint's parts, sizes and memory needs.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use mgm::memory_plan::MemoryPlan;
use mgm::session::{LoadOptions, ModelText};
use mgm::tensor::Precision;
use mgm::text::conversation::Template;
use mgm::weights::config::LanguageConfig;
use mgm::weights::gguf_model::GgufModel;
use mgm::weights::mgm::MgmCheckpoint;
use mgm::weights::model_files::ModelFiles;
use mgm::weights::report::{PartReport, WrongShape};
use mgm::weights::sdxl::SdxlCheckpoint;

use crate::args::CheckpointArgs;
use crate::load::{checkpoint_path, open_checkpoint};
use crate::{CliError, sdxl, verify};

/// Maximum number of names to print per list.
const SHOWN: usize = 8;

#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    /// Compare the files with their checksums first: those in bundle.json, or the names of the blobs in the Hugging
    /// Face cache; without checksums, the tensors with the total size in the index
    #[arg(long)]
    verify: bool,
}

pub async fn run(InspectArgs { checkpoint: arguments, verify }: InspectArgs) -> Result<(), CliError> {
    let path = checkpoint_path(&arguments)?;
    if verify {
        let CheckpointArgs { vision_tower, vision_tower_hr, llm, .. } = &arguments;
        let others = [vision_tower, vision_tower_hr, llm].into_iter().flatten().map(PathBuf::as_path);
        let paths: Vec<&Path> = std::iter::once(path.as_path()).chain(others).collect();
        verify::run(&paths).await?;
    }
    if sdxl::is_sdxl(&path).await? {
        return inspect_sdxl(&sdxl::open(&path).await?);
    }
    let files = open_checkpoint(&arguments).await?;
    let template = describe_template(&files).await;
    match &files {
        ModelFiles::Mgm(checkpoint) => inspect_checkpoint(checkpoint, &template),
        ModelFiles::Gguf(model) => inspect_gguf(model, &template),
    }
}

/// The conversation template, or what is wrong with it or the tokenizer.
async fn describe_template(files: &ModelFiles) -> String {
    if let ModelFiles::Gguf(model) = files
        && model.header.text("tokenizer.chat_template").is_none()
    {
        return "none".to_owned();
    }
    match ModelText::read(files, &LoadOptions::new(Precision::F16)).await {
        Ok(text) => {
            let own = if matches!(files, ModelFiles::Gguf(_)) { "in the file" } else { "the model's own" };
            let name = text.template().map_or(own, Template::name);
            text.note().map_or_else(|| name.to_owned(), |note| format!("{name}; {note}"))
        }
        // `chat` takes another one.
        Err(error) => CliError::from(error).to_string(),
    }
}

fn inspect_sdxl(checkpoint: &SdxlCheckpoint) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} (Stable Diffusion XL)", checkpoint.name)?;
    let widths: Vec<String> = checkpoint.unet.1.levels.iter().map(|level| level.channels.to_string()).collect();
    let side = checkpoint.unet.1.sample_size * checkpoint.vae.1.pixels_per_latent();
    writeln!(out, "UNet: channels {}, context {}, {side} px", widths.join("/"), checkpoint.unet.1.cross_attention_dim)?;
    for (index, (_, text)) in checkpoint.text.iter().enumerate() {
        let (layers, width, heads) = (text.num_layers, text.hidden_size, text.num_heads);
        writeln!(out, "text encoder {}: {layers} layers, hidden size {width}, {heads} heads", index + 1)?;
    }
    match checkpoint.scheduler(None) {
        Ok(scheduler) => writeln!(
            out,
            "scheduler: {}, {:?} spacing, {:?}",
            scheduler.class, scheduler.timestep_spacing, scheduler.prediction_type
        )?,
        // Images can be generated with another one.
        Err(error) => writeln!(out, "scheduler: {}", CliError::from(error))?,
    }
    let bad = print_parts(&mut out, &checkpoint.report())?;
    let plans = Precision::IMAGE_CHOICES
        .map(|precision| (precision.to_string(), MemoryPlan::for_diffusion(checkpoint, precision)));
    print_plans(&mut out, &plans)?;
    out.flush()?;
    if bad { Err(incomplete(&checkpoint.name)) } else { Ok(()) }
}

fn describe(out: &mut impl Write, language: &LanguageConfig) -> std::io::Result<()> {
    writeln!(
        out,
        "language model: {:?}, {} layers, hidden size {}, {} heads ({} KV heads) of {}, vocabulary {}, {} positions",
        language.architecture,
        language.num_layers,
        language.hidden_size,
        language.num_heads,
        language.num_kv_heads,
        language.head_dim,
        language.vocab_size,
        language.max_positions
    )
}

fn inspect_gguf(model: &GgufModel, template: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    let header = &model.header;
    writeln!(out, "{} ({})", header.file, header.text("general.name").unwrap_or("no name"))?;
    describe(&mut out, &model.config)?;
    for key in ["general.license", "tokenizer.ggml.model", "tokenizer.ggml.pre"] {
        if let Some(value) = header.text(key) {
            writeln!(out, "{key}: {value}")?;
        }
    }
    writeln!(out, "conversation template: {template}")?;
    let mut kinds: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for tensor in &header.tensors {
        let (count, bytes) = kinds.entry(tensor.info.dtype.name()).or_default();
        *count += 1;
        *bytes += tensor.info.bytes().unwrap_or(0);
    }
    writeln!(out, "\n{:<20} {:>8} {:>10}", "type", "tensors", "MB")?;
    for (kind, (count, bytes)) in kinds {
        writeln!(out, "{kind:<20} {count:>8} {:>10.1}", bytes as f64 / 1e6)?;
    }
    let bad = print_parts(&mut out, &[PartReport::for_language(&model.weights, &model.config)])?;
    let plan = |keep_quantization, precision| {
        MemoryPlan::for_gguf(model, &LoadOptions::new(precision).with_keep_quantization(keep_quantization))
    };
    let mut plans = vec![("as stored".to_owned(), plan(true, Precision::F16))];
    plans.extend(Precision::CHOICES.map(|precision| (precision.to_string(), plan(false, precision))));
    print_plans(&mut out, &plans)?;
    out.flush()?;
    if bad { Err(incomplete(&header.file)) } else { Ok(()) }
}

fn incomplete(file: &str) -> CliError {
    let reason = "tensors are missing or have the wrong shape (see the list above)".to_owned();
    mgm::Error::Config { file: file.to_owned(), reason }.into()
}

fn inspect_checkpoint(checkpoint: &MgmCheckpoint, template: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} ({})", checkpoint.folder.name(), checkpoint.config.model_type)?;
    describe(&mut out, &checkpoint.config.language)?;
    match &checkpoint.vision {
        Some(vision) => writeln!(
            out,
            "vision: CLIP ViT {} layers at {} px, ConvNeXt at {} px, {} x {} tiles{}",
            vision.clip_config.num_layers,
            vision.clip_config.image_size,
            vision.config.high_image_size,
            vision.config.grid,
            vision.config.grid,
            if vision.config.global { " and a global one" } else { "" }
        )?,
        None => writeln!(out, "vision: none")?,
    }
    writeln!(out, "conversation template: {template}")?;

    let bad = print_parts(&mut out, &checkpoint.report())?;
    let plans = Precision::CHOICES
        .iter()
        .map(|precision| {
            Ok((precision.to_string(), MemoryPlan::for_checkpoint(checkpoint, &LoadOptions::new(*precision))?))
        })
        .collect::<mgm::Result<Vec<_>>>()?;
    print_plans(&mut out, &plans)?;
    out.flush()?;
    if bad { Err(incomplete(checkpoint.folder.name())) } else { Ok(()) }
}

/// Prints the parts and their errors. Returns whether there are errors.
fn print_parts(out: &mut impl Write, report: &[PartReport]) -> std::io::Result<bool> {
    writeln!(out, "\n{:<20} {:>8} {:>14} {:>10}  from", "part", "tensors", "parameters", "MB")?;
    for part in report {
        writeln!(
            out,
            "{:<20} {:>8} {:>14} {:>10.1}  {}",
            part.name,
            part.tensors,
            part.parameters,
            part.bytes as f64 / 1e6,
            part.origin
        )?;
    }
    let mut bad = false;
    for part in report {
        bad |= !part.missing.is_empty() || !part.wrong_shape.is_empty();
        print_names(out, part.name, "missing", &part.missing)?;
        print_names(out, part.name, "unexpected", &part.unexpected)?;
        for WrongShape { name, found, expected } in part.wrong_shape.iter().take(SHOWN) {
            writeln!(out, "{}: {name} has shape {found:?}, expected {expected:?}", part.name)?;
        }
    }
    Ok(bad)
}

fn print_plans(out: &mut impl Write, plans: &[(String, MemoryPlan)]) -> std::io::Result<()> {
    writeln!(out, "\nGPU memory needed, in MiB")?;
    write!(out, "{:<32}", "")?;
    for (name, _) in plans {
        write!(out, "{name:>10}")?;
    }
    writeln!(out)?;
    if let Some((_, first)) = plans.first() {
        for (index, (name, _)) in first.parts.iter().enumerate() {
            print_row(out, name, plans.iter().map(|(_, plan)| plan.parts.get(index).map_or(0, |part| part.1)))?;
        }
        print_row(out, "all weights", plans.iter().map(|(_, plan)| plan.weights()))?;
        if first.cache_per_position == 0 {
            return Ok(());
        }
        let positions = first.max_positions as u64;
        let title = format!("KV cache, {positions} tokens");
        print_row(out, &title, plans.iter().map(|(_, plan)| plan.cache_per_position * positions))?;
    }
    Ok(())
}

fn print_names(out: &mut impl Write, part: &str, what: &str, names: &[String]) -> std::io::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = names.iter().take(SHOWN).map(String::as_str).collect();
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    writeln!(out, "{part}: {} {what}: {}{more}", names.len(), shown.join(", "))
}

fn print_row(out: &mut impl Write, name: &str, bytes: impl Iterator<Item = u64>) -> std::io::Result<()> {
    write!(out, "{name:<32}")?;
    for bytes in bytes {
        write!(out, "{:>10.1}", bytes as f64 / f64::from(1 << 20))?;
    }
    writeln!(out)
}
