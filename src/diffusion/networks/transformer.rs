//! The UNet's spatial transformers: every pixel is a position that attends to all others and to the prompt.

use super::statistics::NormStats;
use crate::Result;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::nn::linear::Linear;
use crate::ops::{self, Activation, Attention, Epilogue, FeatureMap, GroupNorm, KeyValues, Norm, Scores};
use crate::tensor::{Matrix, Precision, Tensor};

/// The norm before a transformer.
const GROUP_NORM_EPS: f32 = 1e-6;
/// The norms in the layers: torch's default.
const LAYER_NORM_EPS: f32 = 1e-5;

/// The sizes of a transformer.
#[derive(Debug, Clone, Copy)]
pub(super) struct TransformerConfig {
    pub heads: usize,
    /// Layers.
    pub depth: usize,
    pub groups: usize,
}

#[derive(Debug)]
pub(super) struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    layers: Vec<Layer>,
    proj_out: Linear,
}

#[derive(Debug)]
struct Layer {
    attention: Attention,
    norm_1: Norm,
    /// Query, key and value projections, stacked: [3 * channels, channels].
    qkv: Matrix,
    out_1: Linear,
    norm_2: Norm,
    query: Matrix,
    /// Key and value projections of the prompt: [2 * channels, context].
    key_value: Matrix,
    out_2: Linear,
    norm_3: Norm,
    /// Gates and values alternating: [2 * inner, channels].
    gate_value: Linear,
    contract: Linear,
}

impl Transformer {
    pub(super) async fn load(loader: &Loader, config: &TransformerConfig) -> Result<Self> {
        let mut layers = Vec::new();
        for index in 0..config.depth {
            layers.push(Layer::load(&loader.pp("transformer_blocks").pp(index), config.heads).await?);
        }
        Ok(Self {
            norm: loader.group_norm("norm", config.groups, GROUP_NORM_EPS).await?,
            proj_in: Linear::load(loader, "proj_in").await?,
            layers,
            proj_out: Linear::load(loader, "proj_out").await?,
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
    async fn load(loader: &Loader, heads: usize) -> Result<Self> {
        let (own, prompt, expand) = (loader.pp("attn1"), loader.pp("attn2"), loader.pp("ff.net.0.proj"));
        let norm_1 = loader.layer_norm("norm1", LAYER_NORM_EPS).await?;
        let exact = loader.precision() == Precision::F32;
        Ok(Self {
            attention: Attention {
                heads,
                kv_heads: heads,
                head_dim: norm_1.weight.len() / heads,
                causal: false,
                exact,
                scores: Scores::default(),
            },
            norm_1,
            qkv: own.stacked(&["to_q.weight", "to_k.weight", "to_v.weight"]).await?,
            out_1: Linear::load(&own, "to_out.0").await?,
            norm_2: loader.layer_norm("norm2", LAYER_NORM_EPS).await?,
            query: prompt.matrix("to_q.weight").await?,
            key_value: prompt.stacked(&["to_k.weight", "to_v.weight"]).await?,
            out_2: Linear::load(&prompt, "to_out.0").await?,
            norm_3: loader.layer_norm("norm3", LAYER_NORM_EPS).await?,
            gate_value: Linear { weight: expand.gated_halves("weight").await?, bias: expand.gated_bias("bias").await? },
            contract: Linear::load(loader, "ff.net.2").await?,
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
