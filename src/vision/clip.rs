//! The low-resolution tower: CLIP ViT (Radford et al., 2021), up to the hidden state that Mini-Gemini takes.

use crate::Result;
use crate::gpu::Recorder;
use crate::load::Loader;
use crate::ops::{self, Activation, Attention, Epilogue, KeyValues, Norm};
use crate::tensor::{Matrix, Tensor};
use crate::weights::config::ClipConfig;

/// A CLIP vision transformer.
#[derive(Debug)]
pub struct ClipVit {
    /// Pixels on a side of the picture.
    image_size: usize,
    patch_size: usize,
    /// [width, 3 * patch_size^2]
    patch_embedding: Matrix,
    /// Position embeddings with the class embedding already in row 0: [1 + patches, width].
    positions: Tensor,
    pre_norm: Norm,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    attention: Attention,
    norm_1: Norm,
    /// Query, key and value projections on top of each other: [3 * width, width].
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

impl ClipVit {
    /// Loads the layers that hidden state `select_layer` takes ([`ClipConfig::layers_before`]).
    pub async fn load(loader: &Loader, config: &ClipConfig, select_layer: i32) -> Result<Self> {
        let width = config.hidden_size;
        let needed = config.layers_before(select_layer)?;
        attention_heads(config).check()?;
        let model = loader.pp("vision_model");
        let embeddings = model.pp("embeddings");
        let patches = (config.image_size / config.patch_size).pow(2);
        let class = embeddings.values("class_embedding", &[width]).await?;
        let mut positions = embeddings.values("position_embedding.weight", &[1 + patches, width]).await?;
        positions.iter_mut().zip(&class).for_each(|(position, class)| *position += class);

        let mut layers = Vec::new();
        for index in 0..needed {
            layers.push(Layer::load(&model.pp("encoder.layers").pp(index), config).await?);
        }
        Ok(Self {
            image_size: config.image_size,
            patch_size: config.patch_size,
            patch_embedding: embeddings
                .matrix("patch_embedding.weight", width, 3 * config.patch_size * config.patch_size)
                .await?,
            positions: embeddings.upload("positions", &[1 + patches, width], &positions).await?,
            pre_norm: model.layer_norm("pre_layrnorm", width, config.layer_norm_eps).await?, // the checkpoints' spelling
            layers,
        })
    }

    /// Patches of a picture, each of which gives a feature.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Pixels [3, image_size, image_size] -> features [patches, width].
    pub fn forward(&self, recorder: &mut Recorder, pixels: &Tensor) -> Result<Tensor> {
        let side = self.image_size;
        let patches = ops::patches(recorder, pixels, (side, side, 3), true, self.patch_size, 0, self.patches())?;
        let embeddings = Tensor::temporary(recorder.gpu(), self.positions.shape(), "embeddings")?;
        self.positions.copy_to(recorder, &embeddings, 0);
        ops::linear_add(recorder, &patches, &self.patch_embedding, Epilogue::default(), &embeddings, 1)?;
        let x = ops::norm(recorder, &embeddings, &self.pre_norm)?;
        for layer in &self.layers {
            layer.forward(recorder, &x)?;
        }
        let features = Tensor::temporary(recorder.gpu(), &[x.rows() - 1, x.columns()], "features")?;
        x.slice_rows(1..x.rows()).copy_to(recorder, &features, 0);
        Ok(features)
    }
}

fn attention_heads(config: &ClipConfig) -> Attention {
    let heads = config.num_heads;
    Attention { heads, kv_heads: heads, head_dim: config.hidden_size / heads, causal: false }
}

impl Layer {
    async fn load(loader: &Loader, config: &ClipConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let attention = loader.pp("self_attn");
        let mlp = loader.pp("mlp");
        let mut qkv_bias = Vec::new();
        for name in ["q_proj.bias", "k_proj.bias", "v_proj.bias"] {
            qkv_bias.extend(attention.values(name, &[width]).await?);
        }
        let qkv = [("q_proj.weight", width), ("k_proj.weight", width), ("v_proj.weight", width)];
        Ok(Self {
            attention: attention_heads(config),
            norm_1: loader.layer_norm("layer_norm1", width, config.layer_norm_eps).await?,
            qkv: attention.stacked(&qkv, width).await?,
            qkv_bias: attention.upload("qkv.bias", &[3 * width], &qkv_bias).await?,
            out: attention.matrix("out_proj.weight", width, width).await?,
            out_bias: attention.tensor("out_proj.bias", &[width]).await?,
            norm_2: loader.layer_norm("layer_norm2", width, config.layer_norm_eps).await?,
            fc1: mlp.matrix("fc1.weight", inner, width).await?,
            fc1_bias: mlp.tensor("fc1.bias", &[inner]).await?,
            activation: config.activation.into(),
            fc2: mlp.matrix("fc2.weight", width, inner).await?,
            fc2_bias: mlp.tensor("fc2.bias", &[width]).await?,
        })
    }

    /// x += Attn(LN1 x); x += fc2(act(fc1(LN2 x)))
    fn forward(&self, recorder: &mut Recorder, x: &Tensor) -> Result<()> {
        let bias = |bias| Epilogue { bias: Some(bias), ..Default::default() };
        let normed = ops::norm(recorder, x, &self.norm_1)?;
        let qkv = ops::linear(recorder, &normed, &self.qkv, bias(&self.qkv_bias))?;
        let attended = ops::attention(recorder, self.attention, &qkv, KeyValues::Packed(&qkv))?;
        ops::linear_add(recorder, &attended, &self.out, bias(&self.out_bias), x, 0)?;

        let normed = ops::norm(recorder, x, &self.norm_2)?;
        let activated = Epilogue { activation: self.activation, ..bias(&self.fc1_bias) };
        let inner = ops::linear(recorder, &normed, &self.fc1, activated)?;
        ops::linear_add(recorder, &inner, &self.fc2, bias(&self.fc2_bias), x, 0)
    }
}
