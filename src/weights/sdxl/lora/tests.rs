//! Merged weights against peft and LyCORIS (`tests/reference/make_lora.py`), names against each other, and bad files.

use safetensors::tensor::{Dtype as Theirs, TensorView, serialize};

use super::super::names::UnetNames;
use super::super::names::tests::fixture_config;
use super::super::{expected, single_file};
use super::*;
use crate::io::{MemoryFolder, MemorySource};
use crate::weights::checkpoint::tests::file;

pub(super) fn weights(names: impl Iterator<Item = String>) -> Weights {
    let names: Vec<String> = names.collect();
    let tensors: Vec<(&str, &[usize], &[f32])> =
        names.iter().map(|name| (name.as_str(), &[1usize, 1][..], &[0.0f32][..])).collect();
    open(file(&tensors))
}

fn open(bytes: Vec<u8>) -> Weights {
    let source = Rc::new(MemorySource::new("file", bytes));
    Weights::new(Rc::new(pollster::block_on(Checkpoint::open_file(source)).unwrap()))
}

pub(super) fn text_parts() -> [(Weights, TextEncoderConfig); 2] {
    [TextEncoderConfig::sdxl_1(), TextEncoderConfig::sdxl_2()].map(|config| {
        let config = TextEncoderConfig { num_layers: 2, ..config };
        (weights(expected::text(&config).into_iter().map(|tensor| tensor.name)), config)
    })
}

/// A 3 x 3 convolution, a 1 x 1 one and a linear layer against the definition in f64.
#[test]
fn products_are_added_to_what_is_read() {
    let values = |count: usize, seed: usize| -> Vec<f32> {
        (0..count).map(|index| ((index * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5).collect()
    };
    let (out, input, rank) = (5, 3, 2);
    for (side, up_shape) in [(3usize, vec![out, rank, 1, 1]), (1, vec![out, rank, 1, 1]), (0, vec![out, rank])] {
        let columns = input * side.max(1) * side.max(1);
        let shape = |rows: usize| if side == 0 { vec![rows, input] } else { vec![rows, input, side, side] };
        let (base, up, down) = (values(out * columns, 1), values(out * rank, 2), values(rank * columns, 3));
        let name = "conv_in.weight";
        let config = fixture_config();
        let mut unet = (open(file(&[(name, &shape(out), &base)])), config);
        let mut text = text_parts();
        let lora = file(&[
            ("lora_unet_conv_in.lora_up.weight", &up_shape, &up),
            ("lora_unet_conv_in.lora_down.weight", &shape(rank), &down),
            ("lora_unet_conv_in.alpha", &[], &[0.75]),
        ]);
        let lora = pollster::block_on(Lora::open(Rc::new(MemorySource::new("lora", lora)), 0.6)).unwrap();
        lora.merge(&mut unet, &mut text).unwrap();
        // Twice, as two files would be.
        lora.merge(&mut unet, &mut text).unwrap();
        let scale = 2.0 * 0.6f64 * 0.75 / rank as f64;
        let expected = |index: usize| {
            let (row, column) = (index / columns, index % columns);
            let sum: f64 =
                (0..rank).map(|r| f64::from(up[row * rank + r]) * f64::from(down[r * columns + column])).sum();
            f64::from(base[index]) + scale * sum
        };
        let whole = pollster::block_on(unet.0.read(name)).unwrap();
        let part = pollster::block_on(unet.0.read_rows(name, 2..4)).unwrap();
        assert_eq!(part, whole[2 * columns..4 * columns]);
        for (index, value) in whole.iter().enumerate() {
            // Six roundings of numbers below 1.
            assert!((f64::from(*value) - expected(index)).abs() < 4e-7, "{side} {index}");
        }
    }
}

#[test]
fn what_fits_nothing_is_named() {
    let merge = |tensors: &[(&str, &[usize], &[f32])]| {
        let mut unet = (open(file(&[("conv_in.weight", &[1, 2], &[0.0; 2])])), fixture_config());
        let lora = pollster::block_on(Lora::open(Rc::new(MemorySource::new("lora", file(tensors))), 1.0))?;
        lora.merge(&mut unet, &mut text_parts())
    };
    let down: (&str, &[usize], &[f32]) = ("lora_unet_conv_in.lora_down.weight", &[1, 2], &[1.0; 2]);
    let up: (&str, &[usize], &[f32]) = ("lora_unet_conv_in.lora_up.weight", &[1, 1], &[1.0]);
    assert_eq!(merge(&[down, up]).map(|report| report.notes()), Ok(vec![]));
    for (tensors, reason) in [
        (vec![], "no tensors"),
        (vec![("weight", &[1][..], &[1.0][..])], "not tensors of a LoRA: weight"),
        (vec![down], "lora_unet_conv_in has no up matrix"),
        (vec![down, ("lora_unet_conv_in.lora_up.weight", &[2, 1], &[1.0; 2])], "has shape [2, 1]"),
        (vec![("lora_unet_conv_in.lora_down.weight", &[1, 3], &[1.0; 3]), up], "has shape [1, 3]"),
        (vec![("lora_unet_x.lora_up.weight", &[1], &[1.0])], "no modules for lora_unet_x"),
        (vec![down, up, ("lora_unet_conv_in.diff", &[1, 2], &[1.0; 2])], "tensors of 2 kinds of adapters"),
        (vec![("lora_unet_conv_in.alpha", &[], &[1.0])], "module lora_unet_conv_in has no matrices"),
        (vec![down, up, ("lora_unet_conv_in.alpha", &[2], &[1.0; 2])], "has shape [2], expected one element"),
        (vec![down, up, ("lora_unet_conv_in.alpha", &[], &[f32::NAN])], "contains NaN"),
        (vec![down, up, ("lora_unet_conv_in.dora_scale", &[3], &[1.0; 3])], "1 norms of rows or 2 of input"),
        (
            vec![
                down,
                up,
                ("unet.conv_in.lora_A.weight", &[1, 2], &[1.0; 2]),
                ("unet.conv_in.lora_B.weight", &[1, 1], &[1.0]),
            ],
            "modules lora_unet_conv_in and unet.conv_in both change conv_in.weight",
        ),
        (
            vec![("unet.conv_in.lora_A.weight", &[1, 2], &[1.0; 2]), ("unet.conv_in.lora_down.weight", &[1], &[1.0])],
            "have the same purpose",
        ),
        (vec![("bundle_emb.style.clip_l", &[1], &[1.0])], "only embeddings"),
    ] {
        let error = merge(&tensors).unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} lacks {reason:?}");
    }
}

/// Ranges of rows and a transposed matrix, from a text tower in OpenCLIP's names.
#[test]
fn joined_queries_keys_and_values_are_taken_apart() {
    let width = 2;
    let joined: Vec<f32> = (0..12).map(|value| value as f32).collect();
    let tower = open(file(&[
        ("transformer.resblocks.0.attn.in_proj_weight", &[6, 2], &joined),
        ("transformer.resblocks.0.attn.in_proj_bias", &[6], &joined[..6]),
        ("transformer.resblocks.0.mlp.c_fc.weight", &[1, 2], &[7.0, 8.0]),
        ("text_projection", &[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
        ("logit_scale", &[], &[1.0]),
    ]));
    let tower = Weights::new(Rc::new(single_file::open_clip(&tower).unwrap()));
    let read = |name: &str| pollster::block_on(tower.read(name)).unwrap();
    for (index, part) in ["q", "k", "v"].into_iter().enumerate() {
        let name = format!("text_model.encoder.layers.0.self_attn.{part}_proj");
        assert_eq!(read(&format!("{name}.weight")), joined[4 * index..4 * index + 4]);
        assert_eq!(read(&format!("{name}.bias")), joined[2 * index..2 * index + 2]);
    }
    assert_eq!(tower.shape("text_projection.weight").unwrap(), [3, width]);
    assert_eq!(read("text_projection.weight"), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(pollster::block_on(tower.read_rows("text_projection.weight", 1..2)).unwrap(), [1.0, 4.0]);
    assert_eq!(read("text_model.encoder.layers.0.mlp.fc1.weight"), [7.0, 8.0]);
    assert!(!tower.contains("logit_scale"));
}

fn read_data(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/diffusion/lora");
    std::fs::read(format!("{folder}/{name}")).unwrap()
}

/// The golden model's UNet: one layer per block.
fn golden_config() -> UnetConfig {
    let mut config = fixture_config();
    for level in &mut config.levels {
        level.down.truncate(1);
        level.up.truncate(2);
    }
    config
}

type Unet = (Weights, UnetConfig);
type Text = [(Weights, TextEncoderConfig); 2];

/// The networks of `base.safetensors`.
fn base() -> (Unet, Text) {
    let all = open(read_data("base.safetensors"));
    let part = |prefix: &str| {
        let part = all.checkpoint().renamed(|name| name.strip_prefix(prefix).map(str::to_owned));
        Weights::new(Rc::new(part))
    };
    let text = [(part("text_1/"), TextEncoderConfig::sdxl_1()), (part("text_2/"), TextEncoderConfig::sdxl_2())];
    ((part("unet/"), golden_config()), text)
}

fn lora(name: &str, bytes: Vec<u8>, scale: f32) -> Result<Lora> {
    pollster::block_on(Lora::open(Rc::new(MemorySource::new(name, bytes)), scale))
}

/// All tensors of the networks, as NETWORK/NAME; read in ranges of rows, and as a whole, which is the same.
fn values(unet: &Unet, text: &Text) -> BTreeMap<String, Vec<f32>> {
    let networks = [("unet", &unet.0), ("text_1", &text[0].0), ("text_2", &text[1].0)];
    let mut all = BTreeMap::new();
    for (network, weights) in networks {
        for name in weights.names() {
            let whole = pollster::block_on(weights.read(name)).unwrap();
            let rows = weights.shape(name).unwrap()[0];
            let mut parts = Vec::new();
            // 5 is no multiple of the sizes of LoKr's factors.
            for start in (0..rows).step_by(5) {
                let part = pollster::block_on(weights.read_rows(name, start..rows.min(start + 5))).unwrap();
                parts.extend(part);
            }
            assert_eq!(parts, whole, "{name}");
            all.insert(format!("{network}/{name}"), whole);
        }
    }
    all
}

#[test]
fn merged_weights_are_those_of_peft_and_lycoris() {
    let cases: BTreeMap<String, Vec<Vec<serde_json::Value>>> =
        serde_json::from_slice(&read_data("cases.json")).unwrap();
    let expected = open(read_data("expected.safetensors"));
    let (unet, text) = base();
    let before = values(&unet, &text);
    for (case, files) in cases {
        let (mut unet, mut text) = base();
        for parts in files {
            let (name, scale) = (parts[0].as_str().unwrap(), parts[1].as_f64().unwrap() as f32);
            let mut lora = lora(name, read_data(name), scale).unwrap();
            if let Some(config) = parts.get(2) {
                let bytes = config.to_string().into_bytes();
                let folder = MemoryFolder::new(vec![(ADAPTER_CONFIG, bytes)]);
                lora = pollster::block_on(lora.with_config_in(&folder)).unwrap();
            }
            let report = lora.merge(&mut unet, &mut text).unwrap();
            assert_eq!(report.notes(), [""; 0], "{case}");
        }
        let mut changed = 0;
        for (name, found) in values(&unet, &text) {
            let reference = format!("{case}/{name}");
            if !expected.contains(&reference) {
                assert_eq!(found, before[&name], "{reference}");
                continue;
            }
            changed += 1;
            let reference_values = pollster::block_on(expected.read(&reference)).unwrap();
            assert_eq!(found.len(), reference_values.len(), "{reference}");
            for (index, (found, expected)) in found.iter().zip(reference_values).enumerate() {
                // Some twenty roundings of numbers below 4.
                let error = (found - expected).abs();
                assert!(error <= 2e-6, "{reference} [{index}]: {found}, not {expected}");
            }
        }
        assert!(changed > 0, "{case}");
    }
}

const Q: &str = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q";
const OUT: &str = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0";
const CONV: &str = "mid_block.resnets.0.conv1";
const TEXT: &str = "text_model.encoder.layers.0.self_attn.q_proj";

/// One LoRA under the names of every program: the merged weights are the same, bit for bit.
#[test]
fn names_do_not_change_the_result() {
    let rank = 2;
    // Eighths, which every type holds exactly.
    let numbers = |count: usize, seed: usize| -> Vec<f32> {
        (0..count).map(|index| ((index * 37 + seed * 101) % 15) as f32 / 8.0 - 0.875).collect()
    };
    // Module, shapes of up and down.
    let modules: [(&str, &str, Vec<usize>, Vec<usize>); 5] = [
        ("unet", Q, vec![12, rank], vec![rank, 12]),
        ("unet", OUT, vec![12, rank], vec![rank, 12]),
        ("unet", CONV, vec![4, rank, 1, 1], vec![rank, 6, 3, 3]),
        ("text_1", TEXT, vec![6, rank], vec![rank, 6]),
        ("text_2", TEXT, vec![8, rank], vec![rank, 8]),
    ];
    let half = |values: &[f32]| -> Vec<u8> {
        values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect()
    };
    let bfloat = |values: &[f32]| -> Vec<u8> {
        values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect()
    };
    let single = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|value| value.to_le_bytes()).collect() };
    let e5m2 = |values: &[f32]| -> Vec<u8> { half(values).chunks_exact(2).map(|bytes| bytes[1]).collect() };
    let e4m3 = |values: &[f32]| -> Vec<u8> {
        // Normal numbers: the exponent's bias is 7 in place of 127, and 3 bits of the mantissa are left.
        let byte = |bits: u32| ((bits >> 24 & 0x80) | (((bits & 0x7fff_ffff) >> 20) - (120 << 3))) as u8;
        values.iter().map(|value| if *value == 0.0 { 0 } else { byte(value.to_bits()) }).collect()
    };
    type Bytes<'a> = &'a dyn Fn(&[f32]) -> Vec<u8>;
    let types: [(Theirs, Bytes); 5] = [
        (Theirs::F32, &single),
        (Theirs::F16, &half),
        (Theirs::BF16, &bfloat),
        (Theirs::F8_E4M3, &e4m3),
        (Theirs::F8_E5M2, &e5m2),
    ];
    // The alpha of 4 in every type in which trainers write it, as a scalar and with one element.
    let alphas: [(Theirs, Vec<usize>, Vec<u8>); 7] = [
        (Theirs::F32, vec![], 4f32.to_le_bytes().to_vec()),
        (Theirs::F16, vec![1], half(&[4.0])),
        (Theirs::BF16, vec![], bfloat(&[4.0])),
        (Theirs::I64, vec![], 4i64.to_le_bytes().to_vec()),
        (Theirs::I32, vec![1], 4i32.to_le_bytes().to_vec()),
        (Theirs::U8, vec![], vec![4]),
        (Theirs::F64, vec![1, 1], 4f64.to_le_bytes().to_vec()),
    ];
    let names = UnetNames::new(&golden_config());
    let original = |module: &str| names.original(module).unwrap();
    let under = |module: &str| module.replace('.', "_");
    // How a program names a module of a network.
    type Name<'a> = &'a dyn Fn(&str, &str) -> String;
    let te = |network: &str| if network == "text_1" { "1" } else { "2" };
    let kohya = |network: &str, module: &str| match network {
        "unet" => format!("lora_unet_{}", under(&original(module))),
        _ => format!("lora_te{}_{}", te(network), under(module)),
    };
    let kohya_diffusers = |network: &str, module: &str| match network {
        "unet" => format!("lora_unet_{}", under(module)),
        _ => format!("lora_te{}_{}", te(network), under(module)),
    };
    let lycoris = |_: &str, module: &str| format!("lycoris_{}", under(module));
    let diffusers = |network: &str, module: &str| match network {
        "unet" => format!("unet.{module}"),
        "text_1" => format!("text_encoder.{module}"),
        _ => format!("text_encoder_2.{module}"),
    };
    let processors = |network: &str, module: &str| {
        let name = diffusers(network, module).replace(".attn1.to_", ".attn1.processor.to_");
        let name = name.replace(".q_proj", ".to_q").replace("to_out.0", "to_out");
        if name.contains(".to_") { format!("{name}_lora") } else { format!("{name}.lora") }
    };
    let dotted = |network: &str, module: &str| match network {
        "unet" => format!("diffusion_model.{}", original(module)),
        "text_1" => format!("conditioner.embedders.0.transformer.{module}"),
        _ => format!("clip_g.transformer.{module}"),
    };
    let bare = |_: &str, module: &str| original(module);
    let peft = |_: &str, module: &str| format!("base_model.model.{module}");
    let compiled = |_: &str, module: &str| format!("base_model.model._orig_mod.{module}");
    let one_trainer = |network: &str, module: &str| match network {
        "unet" => format!("unet.{module}"),
        _ => format!("te{}.{module}", te(network)),
    };
    // Names, ends of up and down, whether the program trains text encoders.
    let schemes: [(&str, Name, [&str; 2], bool); 16] = [
        ("kohya", &kohya, ["lora_up.weight", "lora_down.weight"], true),
        ("kohya, diffusers' modules", &kohya_diffusers, ["lora_up.weight", "lora_down.weight"], true),
        ("LyCORIS", &lycoris, ["lora_up.weight", "lora_down.weight"], false),
        ("OneTrainer", &one_trainer, ["lora_up.weight", "lora_down.weight"], true),
        ("diffusers", &diffusers, ["lora.up.weight", "lora.down.weight"], true),
        (
            "diffusers, linear layers",
            &diffusers,
            ["lora_linear_layer.up.weight", "lora_linear_layer.down.weight"],
            true,
        ),
        ("diffusers, PEFT's ends", &diffusers, ["lora_B.weight", "lora_A.weight"], true),
        ("diffusers, processors", &processors, ["up.weight", "down.weight"], true),
        ("SimpleTuner", &diffusers, ["lora_B.default.weight", "lora_A.default.weight"], true),
        ("original, dots", &dotted, ["lora_B.weight", "lora_A.weight"], true),
        ("original, dots, Kohya's ends", &dotted, ["lora_up.weight", "lora_down.weight"], true),
        ("original, bare", &bare, ["lora_up.weight", "lora_down.weight"], false),
        ("PEFT", &peft, ["lora_B.weight", "lora_A.weight"], true),
        ("PEFT, an adapter", &peft, ["lora_B.style.weight", "lora_A.style.weight"], true),
        ("PEFT, older", &peft, ["lora_B", "lora_A"], true),
        ("PEFT, compiled", &compiled, ["lora_B.weight", "lora_A.weight"], true),
    ];
    let mut results: BTreeMap<bool, BTreeMap<String, Vec<f32>>> = BTreeMap::new();
    for (index, (scheme, name, [up_end, down_end], has_text)) in schemes.into_iter().enumerate() {
        // PEFT saves the adapter of each network in a folder of its own.
        let separate = scheme.starts_with("PEFT");
        let (mut unet, mut text) = base();
        let (dtype, bytes) = types[index % types.len()];
        for network in ["unet", "text_1", "text_2"] {
            let mut tensors: Vec<(String, Theirs, Vec<usize>, Vec<u8>)> = Vec::new();
            for (seed, (of, module, up, down)) in modules.iter().enumerate() {
                let is_text = *of != "unet";
                if (is_text && !has_text) || if separate { *of != network } else { network != "unet" } {
                    continue;
                }
                let module = name(of, module);
                let (alpha, shape, alpha_bytes) = &alphas[(index + seed) % alphas.len()];
                let count = |shape: &[usize]| shape.iter().product();
                tensors.push((format!("{module}.{up_end}"), dtype, up.clone(), bytes(&numbers(count(up), seed))));
                let values = bytes(&numbers(count(down), seed + 9));
                tensors.push((format!("{module}.{down_end}"), dtype, down.clone(), values));
                if !separate {
                    let module = module.strip_suffix("_lora").unwrap_or(&module);
                    tensors.push((format!("{module}.alpha"), *alpha, shape.clone(), alpha_bytes.clone()));
                }
            }
            if tensors.is_empty() {
                continue;
            }
            let views = tensors
                .iter()
                .map(|(name, dtype, shape, bytes)| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
            let mut lora = lora(scheme, serialize(views, None).unwrap(), 0.75).unwrap();
            if separate {
                lora = lora.with_adapter_config(ADAPTER_CONFIG, br#"{"r": 2, "lora_alpha": 4}"#).unwrap();
            }
            let report = lora.merge(&mut unet, &mut text).unwrap();
            assert_eq!(report.notes(), [""; 0], "{scheme}");
        }
        let found = values(&unet, &text);
        match results.get(&has_text) {
            Some(expected) => assert_eq!(&found, expected, "{scheme}"),
            None => drop(results.insert(has_text, found)),
        }
    }
    let (all, unet_only) = (&results[&true], &results[&false]);
    let (unet, text) = base();
    for (name, before) in values(&unet, &text) {
        let adapted = modules.iter().any(|(of, module, ..)| name == format!("{of}/{module}.weight"));
        assert_eq!(all[&name] != before, adapted, "{name}");
        if name.starts_with("unet/") {
            assert_eq!(all[&name], unet_only[&name], "{name}");
        }
    }
}

/// Alphas in the metadata that diffusers writes since 0.35, for each network.
#[test]
fn alphas_may_be_in_diffusers_metadata() {
    let ones: Vec<u8> = [1f32; 24].iter().flat_map(|value| value.to_le_bytes()).collect();
    let tensors = [("unet", Q, 12), ("text_encoder", TEXT, 6), ("text_encoder_2", TEXT, 8)];
    let views: Vec<(String, TensorView)> = tensors
        .iter()
        .flat_map(|(prefix, module, width)| {
            let view = |shape: Vec<usize>| TensorView::new(Theirs::F32, shape, &ones[..8 * width]).unwrap();
            let name = format!("{prefix}.{module}");
            [
                (format!("{name}.lora_A.weight"), view(vec![2, *width])),
                (format!("{name}.lora_B.weight"), view(vec![*width, 2])),
            ]
        })
        .collect();
    let settings = r#"{"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"attn1.to_q": 6},
        "text_encoder.lora_alpha": 8, "text_encoder_2.lora_alpha": 2, "text_encoder_2.use_rslora": true}"#;
    let metadata = std::collections::HashMap::from([(METADATA_KEY.to_owned(), settings.to_owned())]);
    let (mut unet, mut text) = base();
    let before = values(&unet, &text);
    let lora = lora("lora", serialize(views, Some(metadata)).unwrap(), 1.0).unwrap();
    lora.merge(&mut unet, &mut text).unwrap();
    let after = values(&unet, &text);
    // Alpha over the rank or its root, times the two products of ones.
    for (name, added) in [
        (format!("unet/{Q}.weight"), 6.0),
        (format!("text_1/{TEXT}.weight"), 8.0),
        (format!("text_2/{TEXT}.weight"), 2.0 * 2f32.sqrt()),
    ] {
        for (before, after) in before[&name].iter().zip(&after[&name]) {
            assert!((before + added - after).abs() < 2e-6, "{name}: {after}");
        }
    }
}

/// What is not used is reported, and the rest is merged.
#[test]
fn unknown_contents_are_noted() {
    let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
    for module in [Q, "a", "b.c", "d_e", "transformer.single_transformer_blocks.0.attn.to_q"] {
        tensors.push((format!("unet.{module}.lora_A.weight"), vec![1, 12]));
        tensors.push((format!("unet.{module}.lora_B.weight"), vec![12, 1]));
    }
    for name in ["bundle_emb.cat.clip_l", "bundle_emb.cat.clip_g", "bundle_emb.old.string_to_param.*"] {
        tensors.push((name.to_owned(), vec![2, 2]));
    }
    tensors.push((format!("unet.{OUT}.oft_blocks"), vec![1]));
    tensors.push(("base_model.model.conv_in.weight".to_owned(), vec![1]));
    // The layer has no bias.
    tensors.push((format!("unet.{Q}.diff_b"), vec![12]));
    let values: Vec<Vec<f32>> = tensors.iter().map(|(_, shape)| vec![1.0; shape.iter().product()]).collect();
    let views: Vec<(&str, &[usize], &[f32])> =
        tensors.iter().zip(&values).map(|((name, shape), values)| (name.as_str(), &shape[..], &values[..])).collect();
    let (mut unet, mut text) = base();
    let before = pollster::block_on(unet.0.read(&format!("{Q}.weight"))).unwrap();
    let report = lora("mixed.safetensors", file(&views), 2.0).unwrap().merge(&mut unet, &mut text).unwrap();
    let after = pollster::block_on(unet.0.read(&format!("{Q}.weight"))).unwrap();
    assert!(before.iter().zip(after).all(|(before, after)| (before + 2.0 - after).abs() < 1e-6));
    assert_eq!(
        report.notes(),
        [
            "mixed.safetensors bundles embeddings, which are not used: cat, old".to_owned(),
            "mixed.safetensors: 4 of 5 modules are not in the model and not used: unet.a, unet.b.c, unet.d_e and 1 more"
                .to_owned(),
            format!(
                "mixed.safetensors: 3 tensors are of kinds that mgm does not read, and not used: \
                 base_model.model.conv_in.weight, unet.{OUT}.oft_blocks, unet.{Q}.diff_b"
            ),
        ]
    );
}

/// A module that cannot be used, next to one that can: the other is used. Alone it is refused.
#[test]
fn modules_that_cannot_be_used_are_noted() {
    let open_and_merge = |tensors: &[(String, Vec<usize>)], metadata: &str| {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, shape)| vec![1.0f32; shape.iter().product()].iter().flat_map(|one| one.to_le_bytes()).collect())
            .collect();
        let views = tensors
            .iter()
            .zip(&bytes)
            .map(|((name, shape), bytes)| (name.as_str(), TensorView::new(Theirs::F32, shape.clone(), bytes).unwrap()));
        let metadata = [("lora_adapter_metadata".to_owned(), metadata.to_owned())].into_iter().collect();
        let (mut unet, mut text) = base();
        let bytes = serialize(views, Some(metadata)).unwrap();
        let report = lora("mixed.safetensors", bytes, 2.0)?.merge(&mut unet, &mut text)?;
        let changed = |name: &str| pollster::block_on(unet.0.read(name)).unwrap();
        Ok::<_, Error>((report, changed(&format!("{Q}.weight")), changed(&format!("{OUT}.weight"))))
    };
    let tensors = |module: &str, all: &[(&str, &[usize])]| -> Vec<(String, Vec<usize>)> {
        all.iter().map(|(end, shape)| (format!("{module}.{end}"), shape.to_vec())).collect()
    };
    let good = tensors(&format!("unet.{Q}"), &[("lora_A.weight", &[1, 12]), ("lora_B.weight", &[12, 1])]);
    let (unet, _) = base();
    let [q, out] = [Q, OUT].map(|name| pollster::block_on(unet.0.read(&format!("{name}.weight"))).unwrap());
    let module = format!("unet.{OUT}");
    let pair: [(&str, &[usize]); 2] = [("lora_down.weight", &[1, 12]), ("lora_up.weight", &[12, 1])];
    let glora: [(&str, &[usize]); 5] = [
        ("a1.weight", &[12, 1]),
        ("a2.weight", &[1, 12]),
        ("b1.weight", &[12, 1]),
        ("b2.weight", &[1, 12]),
        ("alpha", &[]),
    ];
    type Named<'a> = &'a [(&'a str, &'a [usize])];
    let cases: [(Named<'_>, &str); 11] = [
        (&[("alpha", &[])], "has no matrices that mgm reads"),
        (&glora, "has no matrices that mgm reads"),
        (&[("oft_blocks", &[2, 6, 6]), ("alpha", &[])], "has no matrices that mgm reads"),
        (&[("dora_scale", &[12, 1])], "has no matrices that mgm reads"),
        (&[("lora_down.weight", &[1, 12])], "has no up matrix"),
        (&[("lora_up.weight", &[12, 1])], "has no down matrix"),
        (&[("lora_down.weight", &[1, 11]), pair[1]], "lora_down.weight has shape [1, 11]"),
        (&[pair[0], pair[1], ("alpha", &[2])], "alpha has shape [2]"),
        (&[pair[0], pair[1], ("dora_scale", &[5])], "dora_scale has shape [5]"),
        (&[pair[0], pair[1], ("diff", &[12, 12])], "has tensors of 2 kinds of adapters"),
        (&[pair[0], pair[1], ("lora.up.weight", &[12, 1])], "have the same purpose"),
    ];
    for (bad, reason) in cases {
        let bad = tensors(&module, bad);
        let error = open_and_merge(&bad, "{}").unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} lacks {reason:?}");
        let (report, new_q, new_out) = open_and_merge(&[&good[..], &bad].concat(), "{}").unwrap();
        assert!(q.iter().zip(&new_q).all(|(before, after)| (before + 2.0 - after).abs() < 1e-6), "{reason}");
        assert_eq!(new_out, out, "{reason}");
        let note = &report.notes()[0];
        let count = "mixed.safetensors: 1 of 2 modules cannot be used: ";
        assert!(note.starts_with(count) && note.contains(&module) && note.contains(reason), "{note}");
    }
    // An alpha that is not a number matters only to modules without their own.
    let infinite = r#"{"unet.r": 1, "unet.lora_alpha": Infinity}"#;
    let own_alpha = [&good[..], &tensors(&format!("unet.{Q}"), &[("alpha", &[])])].concat();
    let (report, new_q, _) = open_and_merge(&own_alpha, infinite).unwrap();
    assert_eq!(report.notes(), [""; 0]);
    assert!(q.iter().zip(&new_q).all(|(before, after)| (before + 2.0 - after).abs() < 1e-6));
    let error = open_and_merge(&good, infinite).unwrap_err().to_string();
    assert!(error.contains("is scaled by inf at rank Some(1)"), "{error}");
    // Some shapes of another model fit.
    let to_k = Q.replace("attn1.to_q", "attn2.to_k");
    let modules =
        [format!("unet.{OUT}"), format!("unet.{to_k}"), format!("unet.{CONV}"), format!("text_encoder.{TEXT}")];
    let foreign: Vec<_> =
        modules.iter().flat_map(|module| tensors(module, &[("lora_down.weight", &[1, 7]), pair[1]])).collect();
    let error = open_and_merge(&[&good[..], &foreign].concat(), "{}").unwrap_err().to_string();
    assert!(error.contains("4 of 5 modules do not fit") && error.contains("for another model?"), "{error}");
    assert!(open_and_merge(&[&good[..], &foreign[..6]].concat(), "{}").is_ok());
}

/// Of LoHa, LoKr and Tucker's cores: without each tensor in turn, with shapes that do not fit, and cut off anywhere.
#[test]
fn bad_files_are_refused_with_a_reason() {
    let merged = |bytes: Vec<u8>| {
        let (mut unet, mut text) = base();
        let report = lora("bad.safetensors", bytes, 1.0)?.merge(&mut unet, &mut text)?;
        values(&unet, &text);
        Ok::<_, Error>(report)
    };
    let module = |tensor: &str| tensors::parse(tensor).map(|(module, _)| module.to_owned());
    let modules = |parsed: &safetensors::SafeTensors<'_>| {
        parsed.names().into_iter().filter_map(module).collect::<BTreeSet<String>>().len()
    };
    // Of several modules the others are used.
    let names_module = |report: &LoraReport, tensor: &str| match &report.unusable[..] {
        [reason] => reason.contains(&module(tensor).unwrap()),
        _ => false,
    };
    let optional = ["alpha", "dora_scale", "diff", "diff_b", "w_norm", "b_norm"];
    for name in [
        "locon-tucker",
        "loha",
        "loha-tucker",
        "lokr",
        "lokr-both",
        "lokr-whole",
        "lokr-tucker",
        "dora-channels",
        "full",
    ] {
        let whole = read_data(&format!("{name}.safetensors"));
        let parsed = safetensors::SafeTensors::deserialize(&whole).unwrap();
        for dropped in parsed.names() {
            let others = parsed.tensors().into_iter().filter(|(name, _)| name != dropped);
            let result = merged(serialize(others, None).unwrap());
            let end = dropped.rsplit_once('.').unwrap().1;
            if optional.contains(&end) {
                assert!(result.is_ok(), "{dropped}: {result:?}");
                continue;
            }
            // Without its core, a product has the wrong shape.
            match result {
                Ok(report) => assert!(names_module(&report, dropped), "{dropped}: {report:?}"),
                Err(error) => {
                    assert_eq!(modules(&parsed), 1, "{dropped}: {error}");
                    assert!(matches!(error, Error::Config { .. } | Error::WrongShape { .. }), "{dropped}: {error}");
                }
            }
        }
        for (changed, view) in parsed.tensors() {
            if changed.ends_with(".alpha") {
                continue;
            }
            for more in [0, 1] {
                let mut shape = view.shape().to_vec();
                // One row less, and one dimension of size 0.
                shape[0] = if more == 0 { 0 } else { shape[0] - 1 };
                let size = view.data().len() / view.shape()[0] * shape[0];
                let others = parsed.tensors().into_iter().map(|(name, other)| {
                    let view = if name == changed {
                        TensorView::new(view.dtype(), shape.clone(), &view.data()[..size]).unwrap()
                    } else {
                        other
                    };
                    (name, view)
                });
                match merged(serialize(others, None).unwrap()) {
                    Ok(report) => assert!(names_module(&report, &changed), "{changed} {shape:?}: {report:?}"),
                    Err(error) => {
                        assert_eq!(modules(&parsed), 1, "{changed} {shape:?}: {error}");
                        assert!(matches!(error, Error::WrongShape { .. }), "{changed} {shape:?}: {error}");
                    }
                }
            }
        }
        for length in (0..whole.len()).step_by(7) {
            let error = merged(whole[..length].to_vec()).unwrap_err();
            assert!(matches!(error, Error::Malformed { .. }), "{name} cut after {length} bytes: {error}");
        }
    }
}

/// Files with changed bytes are read or refused, and never stop the program.
#[test]
fn damaged_files_do_not_panic() {
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let cases: BTreeMap<String, Vec<Vec<serde_json::Value>>> =
        serde_json::from_slice(&read_data("cases.json")).unwrap();
    let mut merged = 0;
    for parts in cases.values().flatten() {
        let whole = read_data(parts[0].as_str().unwrap());
        let header = usize::from(u16::from_le_bytes([whole[0], whole[1]]));
        for _ in 0..40 {
            let mut bytes = whole.clone();
            for _ in 0..=random(3) {
                // Most often a digit of a shape, or a letter of a name, becomes another.
                let place = 8 + random(header);
                bytes[place] = match bytes[place] {
                    b'0'..=b'9' => b'0' + random(10) as u8,
                    b'a'..=b'z' => b'a' + random(26) as u8,
                    _ => random(256) as u8,
                };
            }
            let (mut unet, mut text) = base();
            let Ok(lora) = lora("damaged", bytes, 0.5) else { continue };
            let Ok(report) = lora.merge(&mut unet, &mut text) else { continue };
            report.notes();
            for weights in [&unet.0, &text[0].0, &text[1].0] {
                for name in weights.names() {
                    merged += usize::from(pollster::block_on(weights.read(name)).is_ok());
                }
            }
        }
    }
    assert!(merged > 0);
}
