//! The sizes of the released models, for memory plans and for runs with random weights.

use crate::memory_plan::VisionSizes;
use crate::ops::Rope;
use crate::tensor::Activation;
use crate::weights::config::{
    Architecture, AspectRatio, ClipConfig, ConvNextConfig, ExpertsConfig, LanguageConfig, LayerConfig, ProjectorKind,
    VisionConfig,
};

/// A released model.
#[derive(Debug, Clone)]
pub struct Variant {
    /// The name in lower case, such as `mgm-7b-hd`.
    pub name: &'static str,
    /// The language model.
    pub language: LanguageConfig,
    /// The vision side.
    pub vision: VisionSizes,
    /// Visual tokens of an image.
    pub visual_tokens: usize,
}

/// Names of all released models.
pub const NAMES: [&str; 11] = [
    "mgm-2b",
    "mgm-7b",
    "mgm-13b",
    "mgm-8b",
    "mgm-8x7b",
    "mgm-34b",
    "mgm-7b-hd",
    "mgm-13b-hd",
    "mgm-8b-hd",
    "mgm-8x7b-hd",
    "mgm-34b-hd",
];

/// The sizes of a language model.
struct Sizes {
    architecture: Architecture,
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    positions: usize,
    theta: f32,
    eps: f32,
}

fn sizes(base: &str) -> Option<Sizes> {
    let llama = Sizes {
        architecture: Architecture::Llama,
        hidden: 4096,
        inner: 11008,
        layers: 32,
        heads: 32,
        kv_heads: 32,
        head_dim: 128,
        vocab: 32000,
        positions: 4096,
        theta: 1e4,
        eps: 1e-5,
    };
    Some(match base {
        "mgm-2b" => Sizes {
            architecture: Architecture::Gemma,
            hidden: 2048,
            inner: 16384,
            layers: 18,
            heads: 8,
            kv_heads: 1,
            head_dim: 256,
            vocab: 256_000,
            positions: 8192,
            eps: 1e-6,
            ..llama
        },
        "mgm-7b" => llama,
        "mgm-13b" => Sizes { hidden: 5120, inner: 13824, layers: 40, heads: 40, kv_heads: 40, ..llama },
        "mgm-8b" => Sizes { inner: 14336, kv_heads: 8, vocab: 128_256, positions: 8192, theta: 5e5, ..llama },
        "mgm-8x7b" => Sizes {
            architecture: Architecture::Mixtral,
            inner: 14336,
            kv_heads: 8,
            positions: 32768,
            theta: 1e6,
            ..llama
        },
        "mgm-34b" => {
            Sizes { hidden: 7168, inner: 20480, layers: 60, heads: 56, kv_heads: 8, vocab: 64000, theta: 5e6, ..llama }
        }
        _ => return None,
    })
}

/// The released model of this name, ignoring case.
pub fn released(name: &str) -> Option<Variant> {
    let lower = name.to_lowercase();
    let name = *NAMES.iter().find(|known| **known == lower)?;
    let base = name.trim_end_matches("-hd");
    let hd = base != name;
    let sizes = sizes(base)?;
    let gemma = sizes.architecture == Architecture::Gemma;
    let mixtral = sizes.architecture == Architecture::Mixtral;
    let language = LanguageConfig {
        architecture: sizes.architecture,
        hidden_size: sizes.hidden,
        intermediate_size: sizes.inner,
        num_layers: sizes.layers,
        num_heads: sizes.heads,
        num_kv_heads: sizes.kv_heads,
        head_dim: sizes.head_dim,
        layer: LayerConfig::default(),
        other_layers: None,
        rms_norm_eps: sizes.eps,
        norm_unit_offset: gemma,
        rope: Rope::new(sizes.theta, sizes.head_dim),
        long_rope: None,
        embedding_scale: if gemma { (sizes.hidden as f32).sqrt() } else { 1.0 },
        logit_scale: 1.0,
        logit_cap: None,
        vocab_size: sizes.vocab,
        max_positions: sizes.positions,
        tie_word_embeddings: gemma,
        activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
        experts: mixtral.then_some(ExpertsConfig::new(8, 2)),
        bos_token: Some(if gemma { 2 } else { 1 }),
        eos_tokens: vec![if gemma { 1 } else { 2 }],
    };
    let grid = if hd { 2 } else { 1 };
    let vision = VisionSizes {
        config: VisionConfig {
            tower: None,
            high_tower: None,
            hidden_size: 1024,
            high_hidden_size: ConvNextConfig::LARGE.channels(),
            select_layer: -2,
            projector: ProjectorKind::Mlp(2),
            high_image_size: 768 * grid,
            grid,
            global: hd,
            aspect_ratio: AspectRatio::Pad,
            optimize_high_tower: false,
        },
        clip: ClipConfig {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_layers: 24,
            num_heads: 16,
            image_size: 336,
            patch_size: 14,
            activation: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        },
        convnext: ConvNextConfig::LARGE,
    };
    Some(Variant { name, language, vision, visual_tokens: if hd { 2880 } else { 576 } })
}

#[cfg(test)]
mod tests {
    use super::{NAMES, released};
    use crate::memory_plan::MemoryPlan;
    use crate::tensor::Precision;

    /// The plan at f16 against the parameter counts of the towers and of patch info mining, and against the file sizes
    /// of whole checkpoints in bf16. The tolerance is 5 % because norms and biases stay f32 and CLIP's last block is
    /// not loaded.
    #[test]
    fn plans_agree_with_the_released_sizes() {
        let gigabytes = [("mgm-2b", 7.09 - 1.05), ("mgm-7b", 14.54), ("mgm-13b", 27.08), ("mgm-8b", 17.12)];
        for (name, expected) in gigabytes {
            let variant = released(name).expect("a released name");
            let plan = MemoryPlan::new(&variant.language, Some(&variant.vision), Precision::F16);
            let found = plan.weights() as f64 / 1e9;
            assert!((found / expected - 1.0).abs() < 0.05, "{name}: {found} GB, released {expected} GB");
        }
        for name in NAMES {
            assert!(released(name).is_some_and(|variant| variant.name == name));
        }
        let plan = MemoryPlan::new(
            &released("mgm-7b").expect("known").language,
            released("mgm-7b").map(|variant| variant.vision).as_ref(),
            Precision::F32,
        );
        let part = |wanted: &str| plan.parts.iter().find(|(name, _)| *name == wanted).map_or(0, |(_, bytes)| bytes / 4);
        assert!((196_227_264..196_300_000).contains(&part("ConvNeXt")), "{}", part("ConvNeXt"));
        assert!((6_900_000..7_000_000).contains(&part("patch info mining")));
        // 303,507,456 minus the last block and the norm after it.
        let block = 4 * 1024 * 1024 + 2 * 4096 * 1024 + 13 * 1024;
        assert!(part("CLIP ViT").abs_diff(303_507_456 - block as u64) < 20_000, "{}", part("CLIP ViT"));
    }
}
