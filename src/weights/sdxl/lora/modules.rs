//! The model's modules by the names that adapter files have for them.

use std::collections::BTreeMap;

use super::super::config::{TextEncoderConfig, UnetConfig};
use super::super::names::{OPEN_CLIP_LAYER, UnetNames};
use super::tensors::canonical;
use crate::weights::view::Weights;

/// An adapted network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Network {
    Unet,
    Text(usize),
}

const UNET: &[Network] = &[Network::Unet];
const TEXT_1: &[Network] = &[Network::Text(0)];
const TEXT_2: &[Network] = &[Network::Text(1)];
/// Names of models with one text encoder: shapes decide which one it is.
const TEXT: &[Network] = &[Network::Text(0), Network::Text(1)];
const ANY: &[Network] = &[Network::Unet, Network::Text(0), Network::Text(1)];

/// Prefixes of module names, in canonical form, and the networks that each can refer to. The first matching prefix is
/// removed, repeatedly, until a module has the name.
const PREFIXES: [(&str, &[Network]); 21] = [
    ("base_model_model_", ANY),
    ("lora_", ANY),
    ("lycoris_", ANY),
    ("model_diffusion_model_", UNET),
    ("diffusion_model_", UNET),
    ("unet_", UNET),
    ("te1_", TEXT_1),
    ("te2_", TEXT_2),
    ("te_", TEXT),
    ("text_encoder_1_", TEXT_1),
    ("text_encoder_2_", TEXT_2),
    ("text_encoder_", TEXT_1),
    ("text_encoders_", TEXT),
    ("clip_l_", TEXT_1),
    ("clip_g_", TEXT_2),
    ("conditioner_embedders_0_", TEXT_1),
    ("conditioner_embedders_1_", TEXT_2),
    ("text_model_", TEXT),
    ("transformer_", ANY),
    ("model_", ANY),
    ("module_", ANY),
];

/// The model's weights by the canonical names of their modules, for each network.
pub(super) struct Modules(BTreeMap<Network, BTreeMap<String, String>>);

impl Modules {
    pub(super) fn new(unet: &(Weights, UnetConfig), text: &[(Weights, TextEncoderConfig); 2]) -> Self {
        let mut modules = Self(BTreeMap::new());
        let names = UnetNames::new(&unet.1);
        for tensor in unet.0.names() {
            let Some(module) = tensor.strip_suffix(".weight") else { continue };
            modules.add(Network::Unet, tensor, module);
            if let Some(original) = names.original(module) {
                modules.add(Network::Unet, tensor, &original);
            }
        }
        for (index, (weights, _)) in text.iter().enumerate() {
            for tensor in weights.names() {
                let Some(module) = tensor.strip_suffix(".weight") else { continue };
                // "text_model." is a prefix that may be missing.
                let module = module.strip_prefix("text_model.").unwrap_or(module);
                modules.add(Network::Text(index), tensor, module);
                if let Some(original) = open_clip(module) {
                    modules.add(Network::Text(index), tensor, &original);
                }
            }
        }
        modules
    }

    fn add(&mut self, network: Network, tensor: &str, module: &str) {
        let module = canonical(module);
        let names = self.0.entry(network).or_default();
        // Earlier releases of diffusers: `….attn1.to_out`, `….self_attn.to_q`.
        let ends: &[(&str, &str)] = match network {
            Network::Unet => &[("_to_out_0", "_to_out")],
            Network::Text(_) => {
                &[("_q_proj", "_to_q"), ("_k_proj", "_to_k"), ("_v_proj", "_to_v"), ("_out_proj", "_to_out")]
            }
        };
        for (end, earlier) in ends {
            if let Some(start) = module.strip_suffix(end) {
                names.entry(format!("{start}{earlier}")).or_insert_with(|| tensor.to_owned());
            }
        }
        names.insert(module, tensor.to_owned());
    }

    /// The weights that the module with a canonical name can be: several if the name is one of both text encoders.
    pub(super) fn find(&self, module: &str) -> Vec<(Network, &str)> {
        let (mut name, mut networks) = (module, ANY.to_vec());
        loop {
            let found: Vec<(Network, &str)> = networks
                .iter()
                .filter_map(|network| Some((*network, self.0.get(network)?.get(name)?.as_str())))
                .collect();
            if !found.is_empty() {
                return found;
            }
            let prefix = PREFIXES.iter().find_map(|(prefix, meant)| Some((name.strip_prefix(prefix)?, meant)));
            let Some((rest, meant)) = prefix else { return Vec::new() };
            name = rest;
            networks.retain(|network| meant.contains(network));
        }
    }
}

/// The name in OpenCLIP of a text encoder's module without `text_model.`.
fn open_clip(module: &str) -> Option<String> {
    let (layer, rest) = module.strip_prefix("encoder.layers.")?.split_once('.')?;
    let (original, _) = OPEN_CLIP_LAYER.iter().find(|(_, renamed)| *renamed == rest)?;
    Some(format!("transformer.resblocks.{layer}.{original}"))
}

#[cfg(test)]
mod tests {
    use super::super::super::expected;
    use super::super::super::names::tests::{fixture, fixture_config};
    use super::super::tensors::parse;
    use super::super::tests::{text_parts, weights};
    use super::*;

    fn find(modules: &Modules, module: &str) -> Vec<(Network, String)> {
        modules.find(&canonical(module)).into_iter().map(|(network, name)| (network, name.to_owned())).collect()
    }

    #[test]
    fn modules_are_those_of_diffusers_loader() {
        let unet = (weights(expected::unet(&fixture_config()).into_iter().map(|tensor| tensor.name)), fixture_config());
        let modules = Modules::new(&unet, &text_parts());
        for [kohya, diffusers] in fixture("lora") {
            let (module, _) = parse(&diffusers).unwrap_or_else(|| panic!("{diffusers}"));
            let found = find(&modules, &kohya);
            assert_eq!(found.len(), 1, "{kohya}");
            assert_eq!(find(&modules, module), found, "{kohya}");
        }
    }

    /// Every weight of every network, under every prefix that trainers use.
    #[test]
    fn every_prefix_leads_to_the_same_module() {
        let config = fixture_config();
        let unet = (weights(expected::unet(&config).into_iter().map(|tensor| tensor.name)), config.clone());
        let text = text_parts();
        let modules = Modules::new(&unet, &text);
        let names = UnetNames::new(&config);
        for tensor in unet.0.names() {
            let Some(module) = tensor.strip_suffix(".weight") else { continue };
            let original = names.original(module).unwrap();
            let expected = vec![(Network::Unet, tensor.to_owned())];
            for module in [module, &original] {
                for prefix in ["", "unet.", "diffusion_model.", "model.diffusion_model.", "base_model.model."] {
                    assert_eq!(find(&modules, &format!("{prefix}{module}")), expected, "{prefix}{module}");
                }
                for prefix in ["lora_unet_", "lycoris_", "lycoris_unet_"] {
                    let name = format!("{prefix}{}", module.replace('.', "_"));
                    assert_eq!(find(&modules, &name), expected, "{name}");
                }
            }
        }
        let prefixes = [
            ["lora_te1_", "text_encoder.", "te1.", "clip_l.", "conditioner.embedders.0.transformer."],
            ["lora_te2_", "text_encoder_2.", "te2.", "clip_g.transformer.", "text_encoders.clip_g.transformer."],
        ];
        for (index, (weights, _)) in text.iter().enumerate() {
            for tensor in weights.names() {
                let Some(module) = tensor.strip_suffix(".weight") else { continue };
                let expected = vec![(Network::Text(index), tensor.to_owned())];
                for prefix in prefixes[index] {
                    assert_eq!(find(&modules, &format!("{prefix}{module}")), expected, "{prefix}{module}");
                }
            }
        }
        for (module, expected) in [
            ("conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_fc", &[(Network::Text(1), 1)][..]),
            ("text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora", &[(Network::Text(0), 1)]),
            ("lora_te_text_model_encoder_layers_0_mlp_fc1", &[(Network::Text(0), 0), (Network::Text(1), 0)]),
            ("base_model.model.text_model.encoder.layers.0.mlp.fc1", &[(Network::Text(0), 0), (Network::Text(1), 0)]),
            ("lora_unet_input_blocks_99_0_in_layers_2", &[]),
            ("transformer.single_transformer_blocks.0.attn.to_q", &[]),
            ("", &[]),
        ] {
            let found = find(&modules, module);
            assert_eq!(found.len(), expected.len(), "{module}: {found:?}");
            for ((network, tensor), (expected, layer)) in found.iter().zip(expected) {
                assert!(network == expected && tensor.contains(&format!("layers.{layer}.")), "{module}: {found:?}");
            }
        }
    }
}
