//! LoRA files (Hu et al., 2021), merged into the weights as they are read: W + scale * alpha / rank * up * down.
//!
//! There are two naming schemes. Kohya's: `lora_unet_…`, `lora_te1_…`, `lora_te2_…` with underscores for dots,
//! `.lora_down.weight`, `.lora_up.weight`, `.alpha`, and the UNet's modules under diffusers' or the original names.
//! Diffusers' and PEFT's: `unet.….lora_A.weight`, `.lora_B.weight` or `.lora.down.weight`, `.lora.up.weight`, with the
//! modules' own names.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use super::config::{TextEncoderConfig, UnetConfig};
use super::names::UnetNames;
use crate::io::{ByteSource, LocalFuture};
use crate::weights::checkpoint::{Checkpoint, Delta};
use crate::weights::view::Weights;
use crate::{Error, Result};

/// An opened LoRA file with its pairs of matrices.
pub struct Lora {
    checkpoint: Rc<Checkpoint>,
    scale: f32,
    /// By the module's name in the file.
    pairs: BTreeMap<String, Pair>,
}

#[derive(Default)]
struct Pair {
    up: Option<String>,
    down: Option<String>,
    alpha: Option<f32>,
}

/// Suffixes after a module's name, and the role of the tensor.
const SUFFIXES: [(&str, Role); 15] = [
    (".lora_up.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_A.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_B.default_0.weight", Role::Up),
    (".lora_A.default_0.weight", Role::Down),
    (".alpha", Role::Alpha),
    (".up.weight", Role::Up),
    (".down.weight", Role::Down),
];

#[derive(Clone, Copy)]
enum Role {
    Up,
    Down,
    Alpha,
}

/// Parts of names of other kinds of adaptation, which do not add a product of two matrices.
const OTHERS: [(&str, &str); 5] = [
    (".dora_scale", "DoRA"),
    (".hada_w1_a", "LoHa"),
    (".lokr_w1", "LoKr"),
    (".lora_mid.", "a LoCon with three factors"),
    (".lora_magnitude_vector", "DoRA"),
];

/// An adapted network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Network {
    Unet,
    Text(usize),
}

impl Lora {
    /// Opens a file, with its products scaled by `scale`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another kind of adaptation; [`Error::Config`] if it is not a LoRA file.
    pub async fn open(source: Rc<dyn ByteSource>, scale: f32) -> Result<Self> {
        let checkpoint = Checkpoint::open_file(source).await?;
        let file = checkpoint.name().to_owned();
        let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
        let mut strange = Vec::new();
        for name in checkpoint.names() {
            if let Some((_, kind)) = OTHERS.iter().find(|(part, _)| name.contains(part)) {
                return Err(Error::Unsupported {
                    what: format!("{file}: tensor {name}"),
                    found: (*kind).to_owned(),
                    supported: "LoRA: the product of two matrices".to_owned(),
                });
            }
            let found = SUFFIXES.iter().find_map(|(suffix, role)| Some((name.strip_suffix(suffix)?, *role)));
            let Some((module, role)) = found else {
                strange.push(name.to_owned());
                continue;
            };
            let pair = pairs.entry(module.to_owned()).or_default();
            match role {
                Role::Up => pair.up = Some(name.to_owned()),
                Role::Down => pair.down = Some(name.to_owned()),
                Role::Alpha => pair.alpha = checkpoint.read(name).await?.first().copied(),
            }
        }
        if pairs.is_empty() || !strange.is_empty() {
            let reason = match strange.as_slice() {
                [] => "it contains no tensors".to_owned(),
                names => format!("not tensors of a LoRA: {}", shown(names)),
            };
            return Err(Error::Config { file, reason });
        }
        Ok(Self { checkpoint: Rc::new(checkpoint), scale, pairs })
    }

    /// The file's name without folder and extension, and the scale.
    pub(super) fn name_and_scale(&self) -> (String, f32) {
        let name = std::path::Path::new(self.checkpoint.name()).file_stem().unwrap_or_default();
        (name.to_string_lossy().into_owned(), self.scale)
    }

    pub(super) fn merge(
        &self,
        unet: &mut (Weights, UnetConfig),
        text: &mut [(Weights, TextEncoderConfig); 2],
    ) -> Result<()> {
        let file = self.checkpoint.name();
        let modules = Modules::new(unet, text);
        let mut unmatched = Vec::new();
        let mut merged: BTreeMap<Network, Checkpoint> = BTreeMap::new();
        for (module, pair) in &self.pairs {
            let Some((network, tensor)) = modules.find(module) else {
                unmatched.push(module.clone());
                continue;
            };
            let (Some(up), Some(down)) = (&pair.up, &pair.down) else {
                let lacks = if pair.up.is_none() { "up" } else { "down" };
                return Err(Error::Config {
                    file: file.to_owned(),
                    reason: format!("module {module} has no {lacks} matrix"),
                });
            };
            let rank = self.checkpoint.info(down).and_then(|info| info.shape.first().copied()).unwrap_or(1).max(1);
            let product = LowRank {
                checkpoint: Rc::clone(&self.checkpoint),
                up: up.clone(),
                down: down.clone(),
                scale: self.scale * pair.alpha.map_or(1.0, |alpha| alpha / rank as f32),
            };
            let weights = match network {
                Network::Unet => &unet.0,
                Network::Text(index) => &text[index].0,
            };
            product.check(&tensor, weights.shape(&tensor)?)?;
            let checkpoint = merged.entry(network).or_insert_with(|| (**weights.checkpoint()).clone());
            checkpoint.add_delta(&tensor, Rc::new(product))?;
        }
        if !unmatched.is_empty() {
            return Err(Error::Config {
                file: file.to_owned(),
                reason: format!("the model has no modules for {}", shown(&unmatched)),
            });
        }
        for (network, checkpoint) in merged {
            let weights = Weights::new(Rc::new(checkpoint));
            match network {
                Network::Unet => unet.0 = weights,
                Network::Text(index) => text[index].0 = weights,
            }
        }
        Ok(())
    }
}

/// The product `scale * up * down` of two matrices of a LoRA file.
struct LowRank {
    checkpoint: Rc<Checkpoint>,
    /// Name of the matrix [rows, rank].
    up: String,
    /// Name of the matrix [rank, columns].
    down: String,
    scale: f32,
}

impl LowRank {
    /// Fails unless the product has the shape of tensor `name`. Dimensions after the first count as columns.
    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let columns = |shape: &[usize]| shape.iter().skip(1).product::<usize>();
        let info = |name: &str| self.checkpoint.info(name).ok_or_else(|| self.checkpoint.missing(name));
        let (up, down) = (&info(&self.up)?.shape, &info(&self.down)?.shape);
        let wrong = |tensor: &str, found: &[usize], expected: String| Error::WrongShape {
            name: tensor.to_owned(),
            found: found.to_vec(),
            expected: format!("{expected}, since {name} has {shape:?}"),
        };
        if down.is_empty() || columns(down) != columns(shape) {
            return Err(wrong(&self.down, down, format!("{} elements a row", columns(shape))));
        }
        if up.first() != shape.first() || columns(up) != down[0] {
            return Err(wrong(&self.up, up, format!("{:?} rows of {}", shape.first(), down[0])));
        }
        Ok(())
    }
}

impl Delta for LowRank {
    fn add<'a>(&'a self, rows: Range<usize>, values: &'a mut [f32]) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            let count = rows.len().max(1);
            let up = self.checkpoint.read_rows(&self.up, rows).await?;
            let down = self.checkpoint.read(&self.down).await?;
            let columns = (values.len() / count).max(1);
            let rank = (up.len() / count).max(1);
            for (row, up) in values.chunks_exact_mut(columns).zip(up.chunks_exact(rank)) {
                for (up, down) in up.iter().zip(down.chunks_exact(columns)) {
                    let weight = up * self.scale;
                    row.iter_mut().zip(down).for_each(|(value, down)| *value += weight * down);
                }
            }
            Ok(())
        })
    }
}

/// The first names and the number of the others.
fn shown(names: &[String]) -> String {
    let first: Vec<&str> = names.iter().take(3).map(String::as_str).collect();
    let more = names.len().saturating_sub(first.len());
    format!("{}{}", first.join(", "), if more > 0 { format!(" and {more} more") } else { String::new() })
}

/// The model's modules, by every name that a LoRA file can have for them.
struct Modules(BTreeMap<String, (Network, String)>);

impl Modules {
    fn new(unet: &(Weights, UnetConfig), text: &[(Weights, TextEncoderConfig); 2]) -> Self {
        let mut modules = Self(BTreeMap::new());
        let names = UnetNames::new(&unet.1);
        for tensor in unet.0.names() {
            let Some(module) = tensor.strip_suffix(".weight") else { continue };
            modules.add(Network::Unet, tensor, module, &["unet.", ""], "lora_unet_");
            if let Some(original) = names.original(module) {
                modules.add(Network::Unet, tensor, &original, &[], "lora_unet_");
            }
        }
        for (index, (weights, _)) in text.iter().enumerate() {
            let (kohya, dotted) =
                [("lora_te1_", ["text_encoder.", "te1."]), ("lora_te2_", ["text_encoder_2.", "te2."])][index];
            for tensor in weights.names() {
                let Some(module) = tensor.strip_suffix(".weight") else { continue };
                modules.add(Network::Text(index), tensor, module, &dotted, kohya);
            }
        }
        modules
    }

    fn add(&mut self, network: Network, tensor: &str, module: &str, dotted: &[&str], kohya: &str) {
        let target = (network, tensor.to_owned());
        for prefix in dotted {
            self.0.entry(format!("{prefix}{module}")).or_insert_with(|| target.clone());
        }
        self.0.entry(format!("{kohya}{}", module.replace('.', "_"))).or_insert(target);
    }

    fn find(&self, module: &str) -> Option<(Network, String)> {
        let plain = module.strip_prefix("base_model.model.").unwrap_or(module);
        if let Some(found) = self.0.get(plain) {
            return Some(found.clone());
        }
        // Earlier releases of diffusers: `….attn1.processor.to_q_lora`, `….self_attn.to_q_lora`.
        let older = plain.replace(".processor.", ".");
        let older = older.strip_suffix("_lora").unwrap_or(&older);
        let (block, part) = older.rsplit_once('.')?;
        let part = match (block.ends_with(".self_attn"), part) {
            (true, "to_q") => "q_proj",
            (true, "to_k") => "k_proj",
            (true, "to_v") => "v_proj",
            (true, "to_out") => "out_proj",
            (false, "to_out") => "to_out.0",
            (_, part) => part,
        };
        self.0.get(&format!("{block}.{part}")).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::tests::{fixture, fixture_config};
    use super::super::{expected, single_file};
    use super::*;
    use crate::io::MemorySource;
    use crate::weights::checkpoint::tests::file;

    fn weights(names: impl Iterator<Item = String>) -> Weights {
        let names: Vec<String> = names.collect();
        let tensors: Vec<(&str, &[usize], &[f32])> =
            names.iter().map(|name| (name.as_str(), &[1usize, 1][..], &[0.0f32][..])).collect();
        open(file(&tensors))
    }

    fn open(bytes: Vec<u8>) -> Weights {
        let source = Rc::new(MemorySource::new("file", bytes));
        Weights::new(Rc::new(pollster::block_on(Checkpoint::open_file(source)).unwrap()))
    }

    fn text_parts() -> [(Weights, TextEncoderConfig); 2] {
        [TextEncoderConfig::sdxl_1(), TextEncoderConfig::sdxl_2()].map(|config| {
            let config = TextEncoderConfig { num_layers: 2, ..config };
            (weights(expected::text(&config).into_iter().map(|tensor| tensor.name)), config)
        })
    }

    #[test]
    fn modules_are_those_of_diffusers_loader() {
        let unet = (weights(expected::unet(&fixture_config()).into_iter().map(|tensor| tensor.name)), fixture_config());
        let modules = Modules::new(&unet, &text_parts());
        for [kohya, diffusers] in fixture("lora") {
            let module = SUFFIXES.iter().find_map(|(suffix, _)| diffusers.strip_suffix(suffix));
            let module = module.unwrap_or_else(|| panic!("{diffusers}"));
            let found = modules.find(&kohya).unwrap_or_else(|| panic!("{kohya}"));
            assert_eq!(modules.find(module), Some(found.clone()), "{kohya}");
        }
        for module in [
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora",
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora",
            "base_model.model.mid_block.resnets.0.conv1",
            "lora_unet_down_blocks_0_resnets_0_conv1",
        ] {
            assert!(modules.find(module).is_some(), "{module}");
        }
        assert!(modules.find("lora_unet_input_blocks_99_0_in_layers_2").is_none());
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
        assert_eq!(merge(&[down, up]), Ok(()));
        for (tensors, reason) in [
            (vec![], "no tensors"),
            (vec![("weight", &[1][..], &[1.0][..])], "not tensors of a LoRA: weight"),
            (vec![down], "lora_unet_conv_in has no up matrix"),
            (vec![down, ("lora_unet_conv_in.lora_up.weight", &[2, 1], &[1.0; 2])], "has shape [2, 1]"),
            (vec![("lora_unet_conv_in.lora_down.weight", &[1, 3], &[1.0; 3]), up], "has shape [1, 3]"),
            (vec![down, up, ("lora_unet_x.lora_up.weight", &[1], &[1.0])], "no modules for lora_unet_x"),
            (vec![("lora_unet_conv_in.dora_scale", &[1], &[1.0])], "DoRA"),
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
}
