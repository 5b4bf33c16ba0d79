//! `mgm inspect`: what a checkpoint holds and what it needs.

use std::io::Write;

use mgm::plan::Plan;
use mgm::tensor::Precision;

use crate::Failure;
use crate::args::InspectArgs;

/// How many names of a long list are shown.
const SHOWN: usize = 8;

pub async fn run(arguments: InspectArgs) -> Result<(), Failure> {
    let checkpoint = arguments.checkpoint.open().await?;
    let mut out = std::io::stdout().lock();
    let language = &checkpoint.config.language;
    writeln!(out, "{} ({})", checkpoint.folder.name(), checkpoint.config.model_type)?;
    writeln!(
        out,
        "language model: {:?}, {} layers, width {}, {} heads ({} for keys and values) of {}, vocabulary {}, {} positions",
        language.architecture,
        language.num_layers,
        language.hidden_size,
        language.num_heads,
        language.num_kv_heads,
        language.head_dim,
        language.vocab_size,
        language.max_positions
    )?;
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

    writeln!(out, "\n{:<20} {:>8} {:>14} {:>10}  from", "part", "tensors", "parameters", "MB")?;
    let report = checkpoint.report();
    for part in &report {
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
    for part in &report {
        bad |= !part.missing.is_empty() || !part.misshapen.is_empty();
        list(&mut out, part.name, "missing", &part.missing)?;
        list(&mut out, part.name, "unexpected", &part.unexpected)?;
        for (name, found, expected) in part.misshapen.iter().take(SHOWN) {
            writeln!(out, "{}: {name} has shape {found:?}, expected {expected:?}", part.name)?;
        }
    }

    writeln!(out, "\nGPU memory needed, in MiB")?;
    let plans = Precision::CHOICES
        .iter()
        .map(|precision| Ok((*precision, Plan::of_checkpoint(&checkpoint, *precision)?)))
        .collect::<mgm::Result<Vec<_>>>()?;
    write!(out, "{:<32}", "")?;
    for (precision, _) in &plans {
        write!(out, "{:>10}", precision.to_string())?;
    }
    writeln!(out)?;
    if let Some((_, first)) = plans.first() {
        for (index, (name, _)) in first.parts.iter().enumerate() {
            row(&mut out, name, plans.iter().map(|(_, plan)| plan.parts[index].1))?;
        }
        row(&mut out, "all weights", plans.iter().map(|(_, plan)| plan.weights()))?;
        let positions = first.max_positions as u64;
        let title = format!("keys and values, {positions} tokens");
        row(&mut out, &title, plans.iter().map(|(_, plan)| plan.cache_per_position * positions))?;
    }
    out.flush()?;
    if bad {
        return Err(mgm::Error::Config {
            file: checkpoint.folder.name().to_owned(),
            reason: "the checkpoint is not complete (see the list above)".to_owned(),
        }
        .into());
    }
    Ok(())
}

fn list(out: &mut impl Write, part: &str, what: &str, names: &[String]) -> std::io::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = names.iter().take(SHOWN).map(String::as_str).collect();
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    writeln!(out, "{part}: {} {what}: {}{more}", names.len(), shown.join(", "))
}

fn row(out: &mut impl Write, name: &str, bytes: impl Iterator<Item = u64>) -> std::io::Result<()> {
    write!(out, "{name:<32}")?;
    for bytes in bytes {
        write!(out, "{:>10.1}", bytes as f64 / f64::from(1 << 20))?;
    }
    writeln!(out)
}
