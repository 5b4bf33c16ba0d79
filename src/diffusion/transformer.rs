//! The UNet's spatial transformers: every pixel is a position that attends to all others and to the prompt.

use super::statistics::NormStats;
use crate::Result;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::ops::{self, Activation, Attention, Epilogue, FeatureMap, GroupNorm, KeyValues, Norm};
use crate::tensor::{Matrix, Tensor};

/// The norm before a transformer.
const GROUP_NORM_EPS: f32 = 1e-6;
/// The norms in the layers: torch's default.
const LAYER_NORM_EPS: f32 = 1e-5;

/// The sizes of a transformer.
#[derive(Debug, Clone, Copy)]
pub(super) struct TransformerConfig {
    pub channels: usize,
    pub heads: usize,
    /// Layers.
    pub depth: usize,
    /// Width of the prompt's states.
    pub context: usize,
    pub groups: usize,
}

#[derive(Debug)]
pub(super) struct Transformer {
    norm: GroupNorm,
    proj_in: Dense,
    layers: Vec<Layer>,
    proj_out: Dense,
}

/// A linear layer with a bias.
#[derive(Debug)]
pub(super) struct Dense {
    pub weight: Matrix,
    pub bias: Tensor,
}

impl Dense {
    pub(super) async fn load(loader: &Loader, name: &str, (columns, rows): (usize, usize)) -> Result<Self> {
        let part = loader.pp(name);
        Ok(Self { weight: part.matrix("weight", rows, columns).await?, bias: part.tensor("bias", &[rows]).await? })
    }

    pub(super) fn epilogue(&self) -> Epilogue<'_> {
        Epilogue { bias: Some(&self.bias), ..Default::default() }
    }

    pub(super) fn forward(&self, recorder: &mut Recorder, x: &Tensor) -> Result<Tensor> {
        ops::linear(recorder, x, &self.weight, self.epilogue())
    }

    /// y += W x + b
    pub(super) fn add(&self, recorder: &mut Recorder, x: &Tensor, y: &Tensor) -> Result<()> {
        ops::linear_add(recorder, x, &self.weight, self.epilogue(), y, 0)
    }
}

#[derive(Debug)]
struct Layer {
    attention: Attention,
    norm_1: Norm,
    /// Query, key and value projections, stacked: [3 * channels, channels].
    qkv: Matrix,
    out_1: Dense,
    norm_2: Norm,
    query: Matrix,
    /// Key and value projections of the prompt: [2 * channels, context].
    key_value: Matrix,
    out_2: Dense,
    norm_3: Norm,
    /// Gates and values alternating: [2 * inner, channels].
    gate_value: Dense,
    contract: Dense,
}

impl Transformer {
    pub(super) async fn load(loader: &Loader, config: &TransformerConfig) -> Result<Self> {
        let TransformerConfig { channels, groups, .. } = *config;
        let mut layers = Vec::new();
        for index in 0..config.depth {
            layers.push(Layer::load(&loader.pp("transformer_blocks").pp(index), config).await?);
        }
        Ok(Self {
            norm: loader.group_norm("norm", channels, groups, GROUP_NORM_EPS).await?,
            proj_in: Dense::load(loader, "proj_in", (channels, channels)).await?,
            layers,
            proj_out: Dense::load(loader, "proj_out", (channels, channels)).await?,
        })
    }

    /// The prompt's keys and values for every layer. They are the same for all steps.
    pub(super) fn condition(&self, recorder: &mut Recorder, context: &Tensor) -> Result<Vec<Tensor>> {
        let project = |layer: &Layer| ops::linear(recorder, context, &layer.key_value, Epilogue::default());
        self.layers.iter().map(project).collect()
    }

    /// x + out(layers(in(GN x))), in place of x.
    pub(super) fn forward(&self, recorder: &mut Recorder, x: &FeatureMap, prompt: &[Tensor]) -> Result<()> {
        let normed = NormStats::Local.norm(recorder, x, &self.norm, false)?;
        let h = self.proj_in.forward(recorder, &normed.values)?;
        for (layer, key_values) in self.layers.iter().zip(prompt) {
            layer.forward(recorder, &h, key_values, x.images())?;
        }
        self.proj_out.add(recorder, &h, &x.values)
    }
}

impl Layer {
    async fn load(loader: &Loader, config: &TransformerConfig) -> Result<Self> {
        let TransformerConfig { channels, heads, context, .. } = *config;
        let inner = 4 * channels;
        let (own, prompt, feed_forward) = (loader.pp("attn1"), loader.pp("attn2"), loader.pp("ff.net"));
        let qkv = [("to_q.weight", channels), ("to_k.weight", channels), ("to_v.weight", channels)];
        let key_value = [("to_k.weight", channels), ("to_v.weight", channels)];
        let expand = feed_forward.pp("0.proj");
        Ok(Self {
            attention: Attention { heads, kv_heads: heads, head_dim: channels / heads, causal: false },
            norm_1: loader.layer_norm("norm1", channels, LAYER_NORM_EPS).await?,
            qkv: own.stacked(&qkv, channels).await?,
            out_1: Dense::load(&own, "to_out.0", (channels, channels)).await?,
            norm_2: loader.layer_norm("norm2", channels, LAYER_NORM_EPS).await?,
            query: prompt.matrix("to_q.weight", channels, channels).await?,
            key_value: prompt.stacked(&key_value, context).await?,
            out_2: Dense::load(&prompt, "to_out.0", (channels, channels)).await?,
            norm_3: loader.layer_norm("norm3", channels, LAYER_NORM_EPS).await?,
            gate_value: Dense {
                weight: expand.gated_halves("weight", inner, channels).await?,
                bias: expand.gated_bias("bias", inner).await?,
            },
            contract: Dense::load(&feed_forward, "2", (inner, channels)).await?,
        })
    }

    /// x += SelfAttn(LN1 x); x += CrossAttn(LN2 x, prompt); x += W2 (value * GELU(gate))(LN3 x)
    fn forward(&self, recorder: &mut Recorder, x: &Tensor, prompt: &Tensor, batch_size: usize) -> Result<()> {
        let normed = ops::norm(recorder, x, &self.norm_1)?;
        let qkv = ops::linear(recorder, &normed, &self.qkv, Epilogue::default())?;
        let attended = ops::attention_batched(recorder, self.attention, &qkv, KeyValues::Packed, batch_size)?;
        drop(qkv);
        self.out_1.add(recorder, &attended, x)?;

        let normed = ops::norm(recorder, x, &self.norm_2)?;
        let query = ops::linear(recorder, &normed, &self.query, Epilogue::default())?;
        let attended =
            ops::attention_batched(recorder, self.attention, &query, KeyValues::Separate(prompt), batch_size)?;
        self.out_2.add(recorder, &attended, x)?;

        let normed = ops::norm(recorder, x, &self.norm_3)?;
        let geglu = Epilogue { activation: Some(Activation::GeluErf), gated: true, ..self.gate_value.epilogue() };
        let inner = ops::linear(recorder, &normed, &self.gate_value.weight, geglu)?;
        self.contract.add(recorder, &inner, x)
    }
}
