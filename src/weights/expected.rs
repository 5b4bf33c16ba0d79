//! The tensors of each network and how the device stores them: reports, memory plans and bundles all use these lists.
//!
//! Names are those of the checkpoints: transformers' for language models and CLIP, timm's for ConvNeXt. The lists of
//! Stable Diffusion XL are in [`super::sdxl`].

use super::config::{ClipConfig, ConvNextConfig, LanguageConfig, ProjectorKind, QueryKeyNormKind, VisionConfig};
use crate::tensor::Precision;

/// How the device stores a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// At the part's precision: the weight of a linear layer or of a convolution, whose kernel is flattened into
    /// columns.
    Matrix,
    /// At the part's precision, but not below this one: an embedding table or output projection.
    Table(Precision),
    /// As [`Self::Table`], but at the part's precision in bundles: small layers that are sensitive to rounding.
    AtLeast(Precision),
    /// In f32: a norm, a bias, a router, position embeddings, a depthwise convolution.
    F32,
    /// At the part's precision, after arithmetic on its f32 values. Bundles store it in f32.
    FoldedMatrix,
    /// Not at all: folded into other tensors while loading, or unused.
    NotStored,
}

impl Storage {
    /// The precision on the device if matrices of the part have `precision`; `None` if the tensor is not stored.
    pub fn on_device(self, precision: Precision) -> Option<Precision> {
        match self {
            Self::Matrix | Self::FoldedMatrix => Some(precision),
            Self::Table(least) | Self::AtLeast(least) => Some(precision.min(least)),
            Self::F32 => Some(Precision::F32),
            Self::NotStored => None,
        }
    }

    /// The precision in a bundle whose matrices have `precision`.
    pub fn in_bundle(self, precision: Precision) -> Precision {
        match self {
            Self::FoldedMatrix => Precision::F32,
            Self::AtLeast(_) => precision,
            storage => storage.on_device(precision).unwrap_or(Precision::F32),
        }
    }
}

/// A tensor that a network needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Full name.
    pub name: String,
    /// Shape in the checkpoint.
    pub shape: Vec<usize>,
    /// How the device stores it.
    pub storage: Storage,
}

/// A list of tensors under construction.
#[derive(Debug, Default)]
pub(super) struct TensorList(pub(super) Vec<ExpectedTensor>);

impl TensorList {
    pub(super) fn push(&mut self, name: impl Into<String>, shape: &[usize], storage: Storage) {
        self.0.push(ExpectedTensor { name: name.into(), shape: shape.to_vec(), storage });
    }

    /// `NAME.weight`, a matrix.
    pub(super) fn matrix(&mut self, name: &str, shape: &[usize]) {
        self.push(format!("{name}.weight"), shape, Storage::Matrix);
    }

    fn bias(&mut self, name: &str, shape: &[usize]) {
        self.push(format!("{name}.bias"), shape.get(..1).unwrap_or_default(), Storage::F32);
    }

    /// A linear layer or convolution with bias.
    pub(super) fn layer(&mut self, name: &str, shape: &[usize]) {
        self.matrix(name, shape);
        self.bias(name, shape);
    }

    /// The same with a least precision on the device.
    pub(super) fn layer_at_least(&mut self, least: Precision, name: &str, shape: &[usize]) {
        self.push(format!("{name}.weight"), shape, Storage::AtLeast(least));
        self.bias(name, shape);
    }

    /// A norm with weight and bias, or a depthwise convolution.
    pub(super) fn norm(&mut self, name: &str, shape: &[usize]) {
        self.push(format!("{name}.weight"), shape, Storage::F32);
        self.bias(name, shape);
    }
}

/// The tensors of a language model.
pub fn language(config: &LanguageConfig) -> Vec<ExpectedTensor> {
    let mut tensors = TensorList::default();
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    // Quantisation affects the embedding table and the head most, and each is read once per token: at least 8 bits.
    let table = Storage::Table(Precision::Q8);
    tensors.push("model.embed_tokens.weight", &[config.vocab_size, hidden], table);
    let layer_config = config.layer;
    let norm = |tensors: &mut TensorList, name: String| match layer_config.layer_norm {
        true => tensors.norm(&name, &[hidden]),
        false => tensors.push(format!("{name}.weight"), &[hidden], Storage::F32),
    };
    let linear = |tensors: &mut TensorList, name: String, shape: &[usize], bias: bool| {
        tensors.matrix(&name, shape);
        if bias {
            tensors.bias(&name, shape);
        }
    };
    norm(&mut tensors, "model.norm".to_owned());
    if !config.tie_word_embeddings {
        tensors.push("lm_head.weight", &[config.vocab_size, hidden], table);
    }
    let biases = layer_config.biases;
    if biases.head {
        tensors.bias("lm_head", &[config.vocab_size]);
    }
    for layer in 0..config.num_layers {
        let layer = format!("model.layers.{layer}");
        for name in layer_config.norm_names().into_iter().flatten() {
            norm(&mut tensors, format!("{layer}.{name}"));
        }
        for (name, rows) in [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)] {
            linear(&mut tensors, format!("{layer}.self_attn.{name}"), &[rows, hidden], biases.qkv);
        }
        linear(&mut tensors, format!("{layer}.self_attn.o_proj"), &[hidden, queries], biases.out);
        if let Some(kind) = layer_config.query_key_norm {
            for (name, heads) in [("q_norm", config.num_heads), ("k_norm", config.num_kv_heads)] {
                let head = config.head_dim;
                let shape = match kind {
                    QueryKeyNormKind::Head => vec![head],
                    QueryKeyNormKind::EachHead => vec![heads, head],
                    QueryKeyNormKind::Whole => vec![heads * head],
                };
                tensors.push(format!("{layer}.self_attn.{name}.weight"), &shape, Storage::F32);
            }
        }
        let Some(experts) = config.experts else {
            let mlp = format!("{layer}.mlp");
            if layer_config.gate {
                linear(&mut tensors, format!("{mlp}.gate_proj"), &[inner, hidden], biases.up);
            }
            linear(&mut tensors, format!("{mlp}.up_proj"), &[inner, hidden], biases.up);
            linear(&mut tensors, format!("{mlp}.down_proj"), &[hidden, inner], biases.down);
            continue;
        };
        let moe = format!("{layer}.block_sparse_moe");
        // The router is small and selects the experts, so it stays at full precision.
        tensors.push(format!("{moe}.gate.weight"), &[experts.count, hidden], Storage::F32);
        for expert in 0..experts.count {
            tensors.matrix(&format!("{moe}.experts.{expert}.w1"), &[inner, hidden]);
            tensors.matrix(&format!("{moe}.experts.{expert}.w2"), &[hidden, inner]);
            tensors.matrix(&format!("{moe}.experts.{expert}.w3"), &[inner, hidden]);
        }
        if let Some(shared) = experts.shared {
            let inner = shared.intermediate_size;
            tensors.matrix(&format!("{moe}.shared.gate_proj"), &[inner, hidden]);
            tensors.matrix(&format!("{moe}.shared.up_proj"), &[inner, hidden]);
            tensors.matrix(&format!("{moe}.shared.down_proj"), &[hidden, inner]);
            if shared.gated {
                tensors.push(format!("{moe}.shared_gate.weight"), &[1, hidden], Storage::F32);
            }
        }
    }
    tensors.0
}

/// The tensors of the low-resolution tower, CLIP.
pub fn clip(config: &ClipConfig) -> Vec<ExpectedTensor> {
    let mut tensors = TensorList::default();
    let (hidden, inner, patch) = (config.hidden_size, config.intermediate_size, config.patch_size);
    let positions = config.grid() * config.grid() + 1;
    let embeddings = "vision_model.embeddings";
    // The class embedding is added to the first position's.
    tensors.push(format!("{embeddings}.class_embedding"), &[hidden], Storage::NotStored);
    tensors.matrix(&format!("{embeddings}.patch_embedding"), &[hidden, 3, patch, patch]);
    tensors.push(format!("{embeddings}.position_embedding.weight"), &[positions, hidden], Storage::F32);
    tensors.norm("vision_model.pre_layrnorm", &[hidden]);
    for end in ["weight", "bias"] {
        tensors.push(format!("vision_model.post_layernorm.{end}"), &[hidden], Storage::NotStored);
    }
    for layer in 0..config.num_layers {
        let layer = format!("vision_model.encoder.layers.{layer}");
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            tensors.layer(&format!("{layer}.self_attn.{projection}"), &[hidden, hidden]);
        }
        tensors.norm(&format!("{layer}.layer_norm1"), &[hidden]);
        tensors.norm(&format!("{layer}.layer_norm2"), &[hidden]);
        tensors.layer(&format!("{layer}.mlp.fc1"), &[inner, hidden]);
        tensors.layer(&format!("{layer}.mlp.fc2"), &[hidden, inner]);
    }
    tensors.0
}

/// The tensors of the high-resolution tower, ConvNeXt.
pub fn convnext(config: &ConvNextConfig) -> Vec<ExpectedTensor> {
    let mut tensors = TensorList::default();
    let mut input = config.widths[0];
    tensors.layer("stem.0", &[input, 3, 4, 4]);
    tensors.norm("stem.1", &[input]);
    for (stage, (width, depth)) in config.widths.into_iter().zip(config.depths).enumerate() {
        if stage > 0 {
            tensors.norm(&format!("stages.{stage}.downsample.0"), &[input]);
            tensors.layer(&format!("stages.{stage}.downsample.1"), &[width, input, 2, 2]);
        }
        let inner = width.saturating_mul(4);
        for block in 0..depth {
            let block = format!("stages.{stage}.blocks.{block}");
            tensors.push(format!("{block}.gamma"), &[width], Storage::F32);
            tensors.norm(&format!("{block}.conv_dw"), &[width, 1, 7, 7]);
            tensors.norm(&format!("{block}.norm"), &[width]);
            tensors.layer(&format!("{block}.mlp.fc1"), &[inner, width]);
            tensors.layer(&format!("{block}.mlp.fc2"), &[width, inner]);
        }
        input = width;
    }
    tensors.0
}

/// The tensors of patch info mining. Key and value projections are folded (readers in [`crate::weights`] return them as
/// stored): the keys' biases cancel in the softmax, and the values' norm is folded into the value projection.
pub fn mining(config: &VisionConfig) -> Vec<ExpectedTensor> {
    let mut tensors = TensorList::default();
    let (low, high) = (config.hidden_size, config.high_hidden_size);
    tensors.norm("query.0", &[low]);
    tensors.layer("query.1", &[low, low]);
    tensors.push("aux.0.weight", &[high], Storage::F32);
    tensors.push("aux.0.bias", &[high], Storage::NotStored);
    tensors.push("aux.1.weight", &[low, high], Storage::FoldedMatrix);
    tensors.push("aux.1.bias", &[low], Storage::NotStored);
    tensors.push("val.0.weight", &[high], Storage::NotStored);
    tensors.push("val.0.bias", &[high], Storage::NotStored);
    tensors.push("val.1.weight", &[low, high], Storage::FoldedMatrix);
    tensors.push("val.1.bias", &[low], Storage::F32);
    tensors.0
}

/// The tensors of the projector to embeddings of width `hidden`.
pub fn projector(config: &VisionConfig, hidden: usize) -> Vec<ExpectedTensor> {
    let mut tensors = TensorList::default();
    if let ProjectorKind::Mlp(depth) = config.projector {
        for layer in 0..depth {
            let columns = if layer == 0 { config.hidden_size } else { hidden };
            // The activations between the layers take the odd numbers.
            tensors.layer(&(2 * layer).to_string(), &[hidden, columns]);
        }
    }
    tensors.0
}
