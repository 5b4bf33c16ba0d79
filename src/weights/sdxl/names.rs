//! The two naming schemes of a UNet's modules: diffusers', and that of the original code in single files and many LoRA
//! files.

use std::collections::BTreeMap;

use super::config::UnetConfig;

/// The modules of a residual block: original, diffusers.
const RESNET: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// The modules around the blocks.
const AROUND: [(&str, &str); 7] = [
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
];

/// Diffusers' module names by original name. Modules inside a transformer have the same names in both.
#[derive(Debug)]
pub struct UnetNames(BTreeMap<String, String>);

impl UnetNames {
    /// The names of a UNet with this configuration.
    pub fn new(config: &UnetConfig) -> Self {
        let mut names = Self(AROUND.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect());
        let last = config.levels.len().saturating_sub(1);
        let mut block = 1;
        for (index, level) in config.levels.iter().enumerate() {
            for (layer, depth) in level.down.iter().enumerate() {
                names.resnet(&format!("input_blocks.{block}.0"), &format!("down_blocks.{index}.resnets.{layer}"));
                if depth.is_some() {
                    let attention = format!("down_blocks.{index}.attentions.{layer}");
                    names.0.insert(format!("input_blocks.{block}.1"), attention);
                }
                block += 1;
            }
            if index < last {
                let sampler = format!("down_blocks.{index}.downsamplers.0.conv");
                names.0.insert(format!("input_blocks.{block}.0.op"), sampler);
                block += 1;
            }
        }
        names.resnet("middle_block.0", "mid_block.resnets.0");
        if config.mid_depth.is_some() {
            names.0.insert("middle_block.1".to_owned(), "mid_block.attentions.0".to_owned());
        }
        let second = if config.mid_depth.is_some() { 2 } else { 1 };
        names.resnet(&format!("middle_block.{second}"), "mid_block.resnets.1");
        let mut block = 0;
        for (index, level) in config.levels.iter().rev().enumerate() {
            for (layer, depth) in level.up.iter().enumerate() {
                names.resnet(&format!("output_blocks.{block}.0"), &format!("up_blocks.{index}.resnets.{layer}"));
                if depth.is_some() {
                    let attention = format!("up_blocks.{index}.attentions.{layer}");
                    names.0.insert(format!("output_blocks.{block}.1"), attention);
                }
                if layer + 1 == level.up.len() && index < last {
                    let place = if depth.is_some() { 2 } else { 1 };
                    let sampler = format!("up_blocks.{index}.upsamplers.0.conv");
                    names.0.insert(format!("output_blocks.{block}.{place}.conv"), sampler);
                }
                block += 1;
            }
        }
        names
    }

    fn resnet(&mut self, original: &str, diffusers: &str) {
        for (a, b) in RESNET {
            self.0.insert(format!("{original}.{a}"), format!("{diffusers}.{b}"));
        }
    }

    /// The diffusers name of `name`, an original name that starts with a module.
    pub fn diffusers(&self, name: &str) -> Option<String> {
        rename(&self.0, name)
    }

    /// The original name of the diffusers name `name`.
    pub fn original(&self, name: &str) -> Option<String> {
        self.0.iter().find_map(|(original, diffusers)| {
            let rest = name.strip_prefix(diffusers.as_str())?;
            (rest.is_empty() || rest.starts_with('.')).then(|| format!("{original}{rest}"))
        })
    }
}

/// Replaces the module at the start of a name.
fn rename(names: &BTreeMap<String, String>, name: &str) -> Option<String> {
    let mut end = name.len();
    loop {
        if let Some(renamed) = names.get(&name[..end]) {
            return Some(format!("{renamed}{}", &name[end..]));
        }
        end = name[..end].rfind('.')?;
    }
}

/// Words of the UNet's original names, longer ones before their beginnings.
const WORDS: [&str; 30] = [
    "input_blocks",
    "middle_block",
    "output_blocks",
    "transformer_blocks",
    "skip_connection",
    "time_embed",
    "label_emb",
    "in_layers",
    "out_layers",
    "emb_layers",
    "proj_in",
    "proj_out",
    "proj",
    "attn1",
    "attn2",
    "to_out",
    "to_q",
    "to_k",
    "to_v",
    "norm1",
    "norm2",
    "norm3",
    "norm",
    "weight",
    "bias",
    "conv",
    "net",
    "out",
    "ff",
    "op",
];

/// The original name of a tensor of the UNet whose dots were removed, as the original code names averaged weights.
pub fn with_dots(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let word = WORDS.iter().find(|word| rest.starts_with(**word)).map_or(0, |word| word.len());
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        // Of two numbers in a row, the second has one digit.
        let two = matches!(parts.last(), Some(&("input_blocks" | "output_blocks" | "label_emb")));
        let end = if two { word.max(digits.saturating_sub(1)) } else { word.max(digits) };
        let (part, after) = rest.split_at_checked(end).filter(|(part, _)| !part.is_empty())?;
        parts.push(part);
        rest = after;
    }
    Some(parts.join("."))
}

/// The diffusers name of a tensor of an autoencoder with `levels` levels.
pub fn vae(name: &str, levels: usize) -> Option<String> {
    let (side, rest) = match name.split_once('.')? {
        ("quant_conv" | "post_quant_conv", _) => return Some(name.to_owned()),
        (side @ ("encoder" | "decoder"), rest) => (side, rest),
        _ => return None,
    };
    let parts: Vec<&str> = rest.split('.').collect();
    let block = |level: &str| {
        let level: usize = level.parse().ok()?;
        // The original code counts the up path from the largest maps.
        Some(match side {
            "encoder" => format!("down_blocks.{level}"),
            _ => format!("up_blocks.{}", levels.checked_sub(level + 1)?),
        })
    };
    let renamed = match parts.as_slice() {
        ["conv_in" | "conv_out", ..] => rest.to_owned(),
        ["norm_out", end @ ..] => format!("conv_norm_out.{}", end.join(".")),
        ["down" | "up", level, "block", layer, end @ ..] => {
            format!("{}.resnets.{layer}.{}", block(level)?, end.join(".").replace("nin_shortcut", "conv_shortcut"))
        }
        ["down", level, "downsample", end @ ..] => format!("{}.downsamplers.0.{}", block(level)?, end.join(".")),
        ["up", level, "upsample", end @ ..] => format!("{}.upsamplers.0.{}", block(level)?, end.join(".")),
        ["mid", "block_1", end @ ..] => format!("mid_block.resnets.0.{}", end.join(".")),
        ["mid", "block_2", end @ ..] => format!("mid_block.resnets.1.{}", end.join(".")),
        ["mid", "attn_1", module, end @ ..] => {
            format!("mid_block.attentions.0.{}.{}", vae_attention(module)?, end.join("."))
        }
        _ => return None,
    };
    Some(format!("{side}.{renamed}"))
}

/// The current name of a module of the autoencoder's attention, from an earlier one.
pub fn vae_attention(module: &str) -> Option<&str> {
    Some(match module {
        "norm" => "group_norm",
        "q" | "query" => "to_q",
        "k" | "key" => "to_k",
        "v" | "value" => "to_v",
        "proj_out" | "proj_attn" => "to_out.0",
        _ => return None,
    })
}

/// The modules of a layer of OpenCLIP's text tower: original, transformers.
pub const OPEN_CLIP_LAYER: [(&str, &str); 5] = [
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
];

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn the_released_unets_blocks_have_both_names() {
        let names = UnetNames::new(&UnetConfig::sdxl());
        for (original, diffusers) in [
            ("input_blocks.0.0.weight", "conv_in.weight"),
            ("input_blocks.3.0.op.bias", "down_blocks.0.downsamplers.0.conv.bias"),
            ("input_blocks.4.0.skip_connection.weight", "down_blocks.1.resnets.0.conv_shortcut.weight"),
            (
                "input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight",
                "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k.weight",
            ),
            ("middle_block.2.out_layers.3.bias", "mid_block.resnets.1.conv2.bias"),
            ("output_blocks.2.2.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
            ("output_blocks.3.1.proj_in.weight", "up_blocks.1.attentions.0.proj_in.weight"),
            ("output_blocks.8.0.emb_layers.1.weight", "up_blocks.2.resnets.2.time_emb_proj.weight"),
            ("label_emb.0.2.weight", "add_embedding.linear_2.weight"),
        ] {
            assert_eq!(names.diffusers(original).as_deref(), Some(diffusers));
            assert_eq!(names.original(diffusers).as_deref(), Some(original));
        }
        assert_eq!(names.diffusers("input_blocks.9.0.in_layers.0.weight"), None);
    }

    /// Pairs of names that diffusers' converters made (`tests/reference/make_sdxl_names.py`).
    pub(in super::super) fn fixture(part: &str) -> Vec<[String; 2]> {
        let text = include_str!("../../../tests/data/diffusion/names.json");
        let mut parts: BTreeMap<String, Vec<[String; 2]>> = serde_json::from_str(text).unwrap();
        parts.remove(part).unwrap()
    }

    /// The UNet of the fixture.
    pub(in super::super) fn fixture_config() -> UnetConfig {
        let mut config = UnetConfig::sdxl();
        for (index, level) in config.levels.iter_mut().enumerate() {
            let depth = [None, Some(2), Some(3)][index];
            (level.channels, level.heads) = (64 << index, 1 << index);
            (level.down, level.up) = (vec![depth; 2], vec![depth; 3]);
        }
        UnetConfig {
            mid_depth: Some(3),
            cross_attention_dim: 32,
            addition_time_embed_dim: 8,
            projection_class_embeddings_input_dim: 64,
            ..config
        }
    }

    #[test]
    fn names_are_those_of_diffusers_converters() {
        let names = UnetNames::new(&fixture_config());
        for [original, diffusers] in fixture("unet") {
            assert_eq!(names.diffusers(&original), Some(diffusers.clone()));
            assert_eq!(names.original(&diffusers), Some(original));
        }
        for [original, _] in fixture("unet") {
            // As `LitEma` of the original code removes them.
            assert_eq!(with_dots(&original.replace('.', "")), Some(original));
        }
        assert_eq!(
            with_dots("input_blocks100in_layers0weight").as_deref(),
            Some("input_blocks.10.0.in_layers.0.weight")
        );
        assert_eq!((with_dots("decay"), with_dots("input_blocks")), (None, Some("input_blocks".to_owned())));
        for [original, diffusers] in fixture("vae") {
            assert_eq!(vae(&original, 4), Some(diffusers));
        }
    }

    #[test]
    fn the_autoencoders_levels_are_reversed() {
        for (original, diffusers) in [
            ("encoder.down.1.block.0.nin_shortcut.weight", "encoder.down_blocks.1.resnets.0.conv_shortcut.weight"),
            ("decoder.up.3.upsample.conv.bias", "decoder.up_blocks.0.upsamplers.0.conv.bias"),
            ("decoder.mid.attn_1.proj_out.weight", "decoder.mid_block.attentions.0.to_out.0.weight"),
            ("decoder.norm_out.bias", "decoder.conv_norm_out.bias"),
            ("post_quant_conv.weight", "post_quant_conv.weight"),
        ] {
            assert_eq!(vae(original, 4).as_deref(), Some(diffusers));
        }
        assert_eq!(vae("loss.logvar", 4), None);
    }
}
