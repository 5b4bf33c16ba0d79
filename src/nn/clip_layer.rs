//! The transformer layer of CLIP's image and text encoders (Radford et al., 2021).

use crate::Result;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::ops::{self, Activation, Attention, Epilogue, KeyValues, Norm};
use crate::tensor::{Matrix, Tensor};

/// The sizes and constants of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClipLayerConfig {
    pub width: usize,
    /// Width of the feed-forward part.
    pub inner: usize,
    pub heads: usize,
    pub activation: Activation,
    pub eps: f32,
    /// Causal attention, for text.
    pub causal: bool,
}

#[derive(Debug)]
pub(crate) struct ClipLayer {
    attention: Attention,
    norm_1: Norm,
    /// Query, key and value projections, stacked: [3 * width, width].
    qkv: Matrix,
    qkv_bias: Tensor,
    out: Matrix,
    out_bias: Tensor,
    norm_2: Norm,
    fc1: Matrix,
    fc1_bias: Tensor,
    activation: Activation,
    fc2: Matrix,
    fc2_bias: Tensor,
}

impl ClipLayer {
    pub(crate) async fn load(loader: &Loader, config: &ClipLayerConfig) -> Result<Self> {
        let ClipLayerConfig { width, inner, heads, activation, eps, causal } = *config;
        let heads = Attention { heads, kv_heads: heads, head_dim: width / heads, causal };
        heads.check()?;
        let attention = loader.pp("self_attn");
        let mlp = loader.pp("mlp");
        let mut qkv_bias = Vec::new();
        for name in ["q_proj.bias", "k_proj.bias", "v_proj.bias"] {
            qkv_bias.extend(attention.values(name, &[width]).await?);
        }
        let qkv = [("q_proj.weight", width), ("k_proj.weight", width), ("v_proj.weight", width)];
        Ok(Self {
            attention: heads,
            norm_1: loader.layer_norm("layer_norm1", width, eps).await?,
            qkv: attention.stacked(&qkv, width).await?,
            qkv_bias: attention.upload("qkv.bias", &[3 * width], &qkv_bias).await?,
            out: attention.matrix("out_proj.weight", width, width).await?,
            out_bias: attention.tensor("out_proj.bias", &[width]).await?,
            norm_2: loader.layer_norm("layer_norm2", width, eps).await?,
            fc1: mlp.matrix("fc1.weight", inner, width).await?,
            fc1_bias: mlp.tensor("fc1.bias", &[inner]).await?,
            activation,
            fc2: mlp.matrix("fc2.weight", width, inner).await?,
            fc2_bias: mlp.tensor("fc2.bias", &[width]).await?,
        })
    }

    /// x += Attn(LN1 x); x += fc2(act(fc1(LN2 x)))
    pub(crate) fn forward(&self, recorder: &mut Recorder, x: &Tensor) -> Result<()> {
        let bias = |bias| Epilogue { bias: Some(bias), ..Default::default() };
        let normed = ops::norm(recorder, x, &self.norm_1)?;
        let qkv = ops::linear(recorder, &normed, &self.qkv, bias(&self.qkv_bias))?;
        let attended = ops::attention(recorder, self.attention, &qkv, KeyValues::Packed)?;
        ops::linear_add(recorder, &attended, &self.out, bias(&self.out_bias), x, 0)?;

        let normed = ops::norm(recorder, x, &self.norm_2)?;
        let activated = Epilogue { activation: Some(self.activation), ..bias(&self.fc1_bias) };
        let inner = ops::linear(recorder, &normed, &self.fc1, activated)?;
        ops::linear_add(recorder, &inner, &self.fc2, bias(&self.fc2_bias), x, 0)
    }
}
