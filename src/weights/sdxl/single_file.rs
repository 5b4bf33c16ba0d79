//! A whole model in one file under the names of the original code, mapped to diffusers' names. Nothing is copied:
//! OpenCLIP's fused queries, keys and values become three ranges of rows, its projection a transposed matrix.
//!
//! The file has no configuration. Sizes come from the tensors' shapes; the other settings are those of the release:
//! heads of 64 channels, 32 groups in the norms, the noise schedule. A folder of configurations overrides them.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::config::{
    EdmSettings, PredictionType, TextEncoderConfig, TrainingMarkers, UnetConfig, UnetLevel, VaeConfig,
};
use super::names::{self, OPEN_CLIP_LAYER, UnetNames};
use super::{Networks, TEXT_1, TEXT_2, Vae};
use crate::weights::checkpoint::{Checkpoint, View};
use crate::weights::view::Weights;
use crate::{Error, Result, Setting};

/// Prefix of the UNet in the file. Files of a UNet alone may lack it.
const UNET_PREFIX: &str = "model.diffusion_model.";
/// Prefixes of the text encoders in the file.
const TEXT_PREFIXES: [&str; 2] = ["conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."];
/// Prefixes of the autoencoder in the file, or in a file of its own.
const VAE_PREFIXES: [&str; 3] = ["first_stage_model.", "vae.", ""];

/// Channels of an attention head in all released models of this family.
const HEAD_DIM: usize = 64;

/// Prefixes of names that identify other models. A file with the second text encoder counts as Stable Diffusion XL,
/// whatever else it contains.
const OTHERS: [(&str, &str); 7] = [
    ("conditioner.embedders.0.model.", "the refiner of Stable Diffusion XL, which only finishes a base model's images"),
    ("cond_stage_model.", "Stable Diffusion 1 or 2"),
    ("text_encoders.", "Stable Diffusion 3 or another later model"),
    ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("model.diffusion_model.double_blocks.", "FLUX"),
    ("double_blocks.", "FLUX"),
];

/// The smallest and largest sigma in CosXL's files.
const COSXL: [&str; 2] = ["edm_vpred.sigma_min", "edm_vpred.sigma_max"];
/// Mean and standard deviation of the latents' channels in Playground's files.
const LATENTS: [&str; 2] = ["edm_mean", "edm_std"];

/// Prefix of averaged weights, whose names have no further dots.
const AVERAGED: &str = "model_ema.";

/// Checks that the names are those of a single file. Extra tensors, such as averaged weights (`model_ema.*`), are
/// ignored.
pub(super) fn check_kind(checkpoint: &Checkpoint) -> Result<()> {
    let has = |prefix: &str| checkpoint.names().any(|name| name.starts_with(prefix));
    let file = || checkpoint.name().to_owned();
    let is_sdxl = has(TEXT_PREFIXES[1]);
    if let Some((_, kind)) = OTHERS.iter().find(|(prefix, _)| has(prefix) && !is_sdxl) {
        return Err(Error::Unsupported {
            what: format!("{}: the model", file()),
            found: (*kind).to_owned(),
            supported: "a base or inpainting model of Stable Diffusion XL".to_owned(),
        });
    }
    if unet_prefix(checkpoint).is_some() {
        return Ok(());
    }
    let hint = if VAE_PREFIXES.iter().any(|prefix| has(&format!("{prefix}decoder."))) {
        ": this file has only an autoencoder; pass it in addition to a model"
    } else {
        ": a single file of Stable Diffusion XL has such tensors; of any other model pass the folder"
    };
    Err(Error::MissingTensor { name: format!("{UNET_PREFIX}*"), file: file(), hint: hint.to_owned() })
}

fn unet_prefix(checkpoint: &Checkpoint) -> Option<&'static str> {
    let has = |start: &str| checkpoint.names().any(|name| name.starts_with(start));
    if has(UNET_PREFIX) { Some(UNET_PREFIX) } else { has("input_blocks.").then_some("") }
}

/// The checkpoint with the averaged weights of the UNet as its weights, if it has no others.
pub(super) fn with_averaged_unet(checkpoint: Checkpoint) -> Checkpoint {
    if unet_prefix(&checkpoint).is_some() || !checkpoint.names().any(|name| name.starts_with(AVERAGED)) {
        return checkpoint;
    }
    let module = UNET_PREFIX.strip_prefix("model.").and_then(|prefix| prefix.strip_suffix('.')).unwrap_or_default();
    checkpoint.renamed(|name| match name.strip_prefix(AVERAGED) {
        None => Some(name.to_owned()),
        Some(averaged) => Some(format!("{UNET_PREFIX}{}", names::with_dots(averaged.strip_prefix(module)?)?)),
    })
}

/// What the file declares about its training: empty marker tensors, and the metadata of the model specification and of
/// kohya's trainer.
///
/// # Errors
/// Those of reading a marker.
pub(super) async fn training_markers(
    checkpoint: &Checkpoint,
    metadata: &BTreeMap<String, String>,
) -> Result<TrainingMarkers> {
    let is_true = |key: &str| metadata.get(key).is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1");
    let declared = ["modelspec.prediction_type", "prediction_type"].iter().find_map(|key| metadata.get(*key));
    let declared = declared.and_then(|name| name.parse::<PredictionType>().ok());
    let velocity = checkpoint.info("v_pred").is_some() || is_true("ss_v_parameterization");
    let edm = if checkpoint.info(LATENTS[0]).is_some() {
        Some(EdmSettings::default())
    } else if checkpoint.info(COSXL[1]).is_some() {
        let mut bounds = [EdmSettings::COSXL.sigma_min, EdmSettings::COSXL.sigma_max];
        for (bound, name) in bounds.iter_mut().zip(COSXL) {
            if checkpoint.info(name).is_some() {
                *bound = f64::from(checkpoint.read_number(name).await?);
            }
        }
        Some(
            EdmSettings { sigma_min: bounds[0], sigma_max: bounds[1], ..EdmSettings::COSXL }
                .checked(checkpoint.name())?,
        )
    } else {
        None
    };
    let velocity = velocity || edm.is_some_and(|edm| edm.sigma_data == EdmSettings::COSXL.sigma_data);
    Ok(TrainingMarkers {
        prediction_type: if velocity { Some(PredictionType::VPrediction) } else { declared },
        zero_terminal_snr: checkpoint.info("ztsnr").is_some() || is_true("ss_zero_terminal_snr"),
        edm,
    })
}

/// The autoencoder's configuration with the statistics of latents in the file, which belong to Playground's models.
///
/// # Errors
/// Those of reading them; [`Error::WrongShape`] if their number is not that of the latent channels.
pub(super) async fn with_latents(checkpoint: &Checkpoint, config: &mut VaeConfig) -> Result<()> {
    let mut found = [None, None];
    for (values, name) in found.iter_mut().zip(LATENTS) {
        if let Some(info) = checkpoint.info(name) {
            if info.elements() != Some(config.latent_channels as u64) {
                let expected = format!("{} numbers, one for each channel of a latent", config.latent_channels);
                return Err(Error::WrongShape { name: name.to_owned(), found: info.shape.clone(), expected });
            }
            *values = Some(checkpoint.read(name).await?);
        }
    }
    if let [Some(mean), Some(deviation)] = found {
        (config.latents_mean, config.latents_std, config.scaling_factor) = (Some(mean), Some(deviation), 0.5);
    }
    Ok(())
}

/// Parts for a file that lacks them, from the folder of components. `vae` also replaces the file's own.
#[derive(Default)]
pub(super) struct OtherParts {
    pub(super) vae: Option<Vae>,
    pub(super) text: [Option<(Weights, TextEncoderConfig)>; 2],
}

/// Which parts the file lacks: the autoencoder, and the text encoders.
pub(super) fn missing_parts(checkpoint: &Checkpoint) -> (bool, [bool; 2]) {
    let lacks = |prefix: &str| !checkpoint.names().any(|name| name.starts_with(prefix));
    (VAE_PREFIXES.iter().all(|prefix| lacks(&format!("{prefix}decoder."))), TEXT_PREFIXES.map(lacks))
}

/// The networks' tensors under diffusers' names. Configurations in `given` override those from the shapes.
pub(super) fn networks(checkpoint: &Checkpoint, given: super::GivenConfigs, other: OtherParts) -> Result<Networks> {
    let under = |prefix: &'static str| {
        Weights::new(Rc::new(checkpoint.renamed(move |name| name.strip_prefix(prefix).map(str::to_owned))))
    };
    let (no_vae, no_text) = missing_parts(checkpoint);
    let [mut other_1, mut other_2] = other.text;
    for (index, (lacks, found)) in no_text.into_iter().zip([&mut other_1, &mut other_2]).enumerate() {
        if !lacks {
            *found = None;
        } else if found.is_none() {
            return Err(Error::NeedsSetting {
                setting: Setting::Components,
                file: checkpoint.name().to_owned(),
                reason: format!(
                    "it contains no {} ({}*): pass a folder in diffusers' layout that has it",
                    [TEXT_1, TEXT_2][index],
                    TEXT_PREFIXES[index]
                ),
            });
        }
    }
    let [text_1_config, text_2_config] = given.text;
    let text_1 = match other_1 {
        Some(part) => part,
        None => {
            let text = under(TEXT_PREFIXES[0]);
            let text = text.checkpoint().renamed(|name| (!name.ends_with("position_ids")).then(|| name.to_owned()));
            let text = Weights::new(Rc::new(text));
            let config = match text_1_config {
                Some(config) => config,
                None => text_config(&text, TextEncoderConfig::sdxl_1())?,
            };
            (text, config)
        }
    };
    let text_2 = match other_2 {
        Some(part) => part,
        None => {
            let text = Weights::new(Rc::new(open_clip(&under(TEXT_PREFIXES[1]))?));
            let config = match text_2_config {
                Some(config) => config,
                None => text_config(&text, TextEncoderConfig::sdxl_2())?,
            };
            (text, config)
        }
    };
    let unet = under(unet_prefix(checkpoint).unwrap_or(UNET_PREFIX));
    let unet_config = match given.unet {
        Some(config) => with_own_channels(config, &unet)?,
        None => self::unet_config(&unet, text_2.1.projection_dim.unwrap_or(text_2.1.hidden_size))?,
    };
    let unet_names = UnetNames::new(&unet_config);
    let unet = unet.checkpoint().renamed(|name| unet_names.diffusers(name));
    let vae = match other.vae {
        Some(Vae { weights, config }) => (weights, config),
        None if no_vae => {
            return Err(Error::NeedsSetting {
                setting: Setting::Vae,
                file: checkpoint.name().to_owned(),
                reason: "it contains no autoencoder (first_stage_model.*): pass one in a file or folder of its own"
                    .to_owned(),
            });
        }
        None => vae(checkpoint, given.vae)?,
    };
    Ok(Networks { unet: (Weights::new(Rc::new(unet)), unet_config), vae, text: [text_1, text_2] })
}

/// A configuration from a folder of components with the input channels of this file's UNet: inpainting models differ
/// from the base model in nothing else.
fn with_own_channels(config: UnetConfig, unet: &Weights) -> Result<UnetConfig> {
    let [_, in_channels, _, _] = unet.dims("input_blocks.0.0.weight")?;
    Ok(UnetConfig { in_channels, ..config })
}

/// An autoencoder under original or diffusers' names, in a whole model or in a file of its own, under diffusers' names.
pub(super) fn vae(checkpoint: &Checkpoint, given: Option<VaeConfig>) -> Result<(Weights, VaeConfig)> {
    let has = |prefix: &&str| checkpoint.names().any(|name| name.starts_with(&format!("{prefix}decoder.")));
    let Some(prefix) = VAE_PREFIXES.into_iter().find(has) else {
        return Err(Error::MissingTensor {
            name: "decoder.conv_in.weight".to_owned(),
            file: checkpoint.name().to_owned(),
            hint: ": it is not an autoencoder of Stable Diffusion XL".to_owned(),
        });
    };
    let own = checkpoint.renamed(|name| name.strip_prefix(prefix).map(str::to_owned));
    let levels = Weights::new(Rc::new(own.clone())).count("encoder.down");
    let vae = own.with_views(|name, info| {
        let renamed = match levels {
            0 => Some(super::modern_vae(name)),
            _ => names::vae(name, levels),
        };
        renamed.map(|renamed| (renamed, super::as_matrix(name, &info.shape))).into_iter().collect()
    })?;
    let vae = Weights::new(Rc::new(vae));
    let config = match given {
        Some(config) => config,
        None => vae_config(&vae)?,
    };
    Ok((vae, config))
}

/// OpenCLIP's text tower under transformers' names.
pub(super) fn open_clip(weights: &Weights) -> Result<Checkpoint> {
    weights.checkpoint().with_views(|name, info| {
        let whole = |name: String| vec![(name, View::Whole)];
        match name {
            "positional_embedding" => whole("text_model.embeddings.position_embedding.weight".to_owned()),
            "token_embedding.weight" => whole("text_model.embeddings.token_embedding.weight".to_owned()),
            "ln_final.weight" => whole("text_model.final_layer_norm.weight".to_owned()),
            "ln_final.bias" => whole("text_model.final_layer_norm.bias".to_owned()),
            "text_projection.weight" => whole(name.to_owned()),
            "text_projection" => vec![("text_projection.weight".to_owned(), View::Transposed)],
            _ => {
                let Some((layer, rest)) =
                    name.strip_prefix("transformer.resblocks.").and_then(|rest| rest.split_once('.'))
                else {
                    return Vec::new();
                };
                let prefix = format!("text_model.encoder.layers.{layer}");
                if let Some(kind) = rest.strip_prefix("attn.in_proj_") {
                    let rows = info.shape.first().map_or(0, |rows| rows / 3);
                    let part = |(index, part)| {
                        let name = format!("{prefix}.self_attn.{part}_proj.{kind}");
                        (name, View::Rows(index * rows..(index + 1) * rows))
                    };
                    return ["q", "k", "v"].into_iter().enumerate().map(part).collect();
                }
                let renamed = OPEN_CLIP_LAYER.iter().find_map(|(original, module)| {
                    rest.strip_prefix(original)
                        .filter(|rest| rest.starts_with('.'))
                        .map(|rest| format!("{module}{rest}"))
                });
                renamed.map(|renamed| whole(format!("{prefix}.{renamed}"))).unwrap_or_default()
            }
        }
    })
}

fn text_config(weights: &Weights, released: TextEncoderConfig) -> Result<TextEncoderConfig> {
    let [vocab_size, hidden_size] = weights.dims("text_model.embeddings.token_embedding.weight")?;
    let [max_positions, _] = weights.dims("text_model.embeddings.position_embedding.weight")?;
    let [intermediate_size, _] = weights.dims("text_model.encoder.layers.0.mlp.fc1.weight")?;
    let projection_dim = match released.projection_dim {
        Some(_) => Some(weights.dims::<2>("text_projection.weight")?[0]),
        None => None,
    };
    let num_layers = weights.count("text_model.encoder.layers");
    sensible(weights, "layers of a text encoder", num_layers > 0)?;
    Ok(TextEncoderConfig {
        hidden_size,
        intermediate_size,
        num_layers,
        num_heads: heads(weights, "text_model.embeddings.token_embedding.weight", hidden_size)?,
        vocab_size,
        max_positions,
        projection_dim,
        ..released
    })
}

fn heads(weights: &Weights, name: &str, channels: usize) -> Result<usize> {
    if channels > 0 && channels.is_multiple_of(HEAD_DIM) {
        return Ok(channels / HEAD_DIM);
    }
    Err(Error::NeedsSetting {
        setting: Setting::Components,
        file: weights.checkpoint().name().to_owned(),
        reason: format!(
            "tensor {} has shape {:?}, expected a multiple of {HEAD_DIM} channels; a model with other heads needs its \
             folder of configurations",
            weights.full_name(name),
            weights.shape(name)?
        ),
    })
}

fn unet_config(unet: &Weights, pooled: usize) -> Result<UnetConfig> {
    let released = UnetConfig::sdxl();
    let [_, in_channels, _, _] = unet.dims("input_blocks.0.0.weight")?;
    let [out_channels, _, _, _] = unet.dims("out.2.weight")?;
    let [_, added] = unet.dims("label_emb.0.0.weight")?;
    let depth = |block: &str| match unet.count(format!("{block}.transformer_blocks")) {
        0 => None,
        count => Some(count),
    };
    let mut levels = vec![UnetLevel { channels: 0, heads: 1, down: Vec::new(), up: Vec::new() }];
    for block in 1usize.. {
        let resnet = format!("input_blocks.{block}.0.out_layers.3.weight");
        if unet.contains(&format!("input_blocks.{block}.0.op.weight")) {
            levels.push(UnetLevel { channels: 0, heads: 1, down: Vec::new(), up: Vec::new() });
        } else if unet.contains(&resnet) {
            let [channels, ..] = unet.dims::<4>(&resnet)?;
            if let Some(level) = levels.last_mut() {
                level.channels = channels;
                level.down.push(depth(&format!("input_blocks.{block}.1")));
            }
        } else {
            break;
        }
    }
    let mid_depth = depth("middle_block.1");
    let mut block = 0;
    let mut context = None;
    let last = levels.len() - 1;
    for (index, level) in levels.iter_mut().enumerate().rev() {
        for _ in 0..=level.down.len() {
            level.up.push(depth(&format!("output_blocks.{block}.1")));
            block += 1;
        }
        let attends = level.down.iter().chain(&level.up).any(Option::is_some) || (index == last && mid_depth.is_some());
        if attends {
            let name = format!("output_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight", block - 1);
            level.heads = heads(unet, &name, level.channels)?;
            context = context.or(Some(unet.dims::<2>(&name)?[1]));
        }
    }
    let groups = |channels: usize| channels > 0 && channels.is_multiple_of(released.norm_num_groups);
    sensible(unet, "channels of the UNet", levels.iter().all(|level| groups(level.channels)))?;
    let sizes = added.saturating_sub(pooled);
    sensible(unet, "width of label_emb", sizes > 0 && sizes.is_multiple_of(12))?;
    Ok(UnetConfig {
        in_channels,
        out_channels,
        levels,
        mid_depth,
        cross_attention_dim: context.unwrap_or(released.cross_attention_dim),
        addition_time_embed_dim: sizes / 6,
        projection_class_embeddings_input_dim: added,
        ..released
    })
}

/// Returns an error that names `what` unless `is` holds.
fn sensible(weights: &Weights, what: &str, is: bool) -> Result<()> {
    if is {
        return Ok(());
    }
    let file = weights.checkpoint().name().to_owned();
    Err(Error::Config { file, reason: format!("the {what} are not those of a Stable Diffusion XL model") })
}

fn vae_config(vae: &Weights) -> Result<VaeConfig> {
    let first = |level: usize| format!("encoder.down_blocks.{level}.resnets.0.conv1.weight");
    let mut block_out_channels = Vec::new();
    while vae.contains(&first(block_out_channels.len())) {
        block_out_channels.push(vae.dims::<4>(&first(block_out_channels.len()))?[0]);
    }
    let groups = VaeConfig::sdxl().norm_num_groups;
    let fits = |channels: &usize| *channels > 0 && channels.is_multiple_of(groups);
    sensible(vae, "channels of the VAE", !block_out_channels.is_empty() && block_out_channels.iter().all(fits))?;
    let [_, in_channels, _, _] = vae.dims("encoder.conv_in.weight")?;
    let [out_channels, _, _, _] = vae.dims("decoder.conv_out.weight")?;
    let [_, latent_channels, _, _] = vae.dims("decoder.conv_in.weight")?;
    Ok(VaeConfig {
        in_channels,
        out_channels,
        latent_channels,
        block_out_channels,
        layers_per_block: vae.count("encoder.down_blocks.0.resnets"),
        use_quant_conv: vae.contains("quant_conv.weight"),
        use_post_quant_conv: vae.contains("post_quant_conv.weight"),
        mid_block_attention: vae.contains("decoder.mid_block.attentions.0.to_q.weight"),
        ..VaeConfig::sdxl()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemorySource;
    use crate::weights::checkpoint::tests::file;
    use crate::weights::sdxl::{OpenOptions, SdxlCheckpoint};

    #[test]
    fn what_the_file_lacks_comes_from_a_folder_of_the_caller() {
        let bytes = file(&[("model.diffusion_model.w", &[2, 80], &[0.0; 160])]);
        let source = Rc::new(MemorySource::new("model.safetensors", bytes));
        let opened = pollster::block_on(SdxlCheckpoint::open_file(source.clone(), &OpenOptions::default()));
        let error = opened.err().unwrap();
        assert_eq!(error.remedy(), Some(Setting::Components), "{error}");
        assert!(error.to_string().starts_with("model.safetensors: it contains no vocabulary"), "{error}");

        let checkpoint = pollster::block_on(Checkpoint::open_file(source)).unwrap();
        let weights = Weights::new(Rc::new(checkpoint));
        assert_eq!(heads(&weights, "model.diffusion_model.w", 128), Ok(2));
        let error = heads(&weights, "model.diffusion_model.w", 80).unwrap_err();
        assert_eq!(error.remedy(), Some(Setting::Components), "{error}");
        assert!(error.to_string().contains("has shape [2, 80], expected a multiple of 64 channels"), "{error}");
    }
}
