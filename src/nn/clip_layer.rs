//! The transformer layer of CLIP's image and text encoders (Radford et al., 2021).

use super::linear::Linear;
use crate::Result;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::ops::{self, Activation, Attention, Epilogue, KeyValues, Norm, Scores};
use crate::tensor::{Precision, Tensor};

/// The constants of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClipLayerConfig {
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
    qkv: Linear,
    out: Linear,
    norm_2: Norm,
    fc1: Linear,
    activation: Activation,
    fc2: Linear,
}

impl ClipLayer {
    pub(crate) async fn load(loader: &Loader, config: &ClipLayerConfig) -> Result<Self> {
        let ClipLayerConfig { heads, activation, eps, causal } = *config;
        let norm_1 = loader.layer_norm("layer_norm1", eps).await?;
        let exact = loader.precision() == Precision::F32;
        let (head_dim, scores) = (norm_1.weight.len() / heads, Scores::default());
        let attention = Attention { heads, kv_heads: heads, head_dim, causal, exact, scores };
        attention.check()?;
        let part = loader.pp("self_attn");
        let mut bias = Vec::new();
        for name in ["q_proj.bias", "k_proj.bias", "v_proj.bias"] {
            bias.extend(part.values(name).await?);
        }
        Ok(Self {
            attention,
            norm_1,
            qkv: Linear {
                weight: part.stacked(&["q_proj.weight", "k_proj.weight", "v_proj.weight"]).await?,
                bias: part.upload("qkv.bias", &[bias.len()], &bias).await?,
            },
            out: Linear::load(&part, "out_proj").await?,
            norm_2: loader.layer_norm("layer_norm2", eps).await?,
            fc1: Linear::load(loader, "mlp.fc1").await?,
            activation,
            fc2: Linear::load(loader, "mlp.fc2").await?,
        })
    }

    /// x += Attn(LN1 x); x += fc2(act(fc1(LN2 x)))
    pub(crate) fn forward(&self, recorder: &mut Recorder, x: &Tensor) -> Result<()> {
        let normed = ops::norm(recorder, x, &self.norm_1)?;
        let qkv = self.qkv.forward(recorder, &normed)?;
        let attended = ops::attention(recorder, self.attention, &qkv, KeyValues::Packed)?;
        self.out.add(recorder, &attended, x)?;

        let normed = ops::norm(recorder, x, &self.norm_2)?;
        let activated = Epilogue { activation: Some(self.activation), ..self.fc1.epilogue() };
        let inner = ops::linear(recorder, &normed, &self.fc1.weight, activated)?;
        self.fc2.add(recorder, &inner, x)
    }
}
