use serde_json::Value;

use super::json::{ConfigFile, Settings};
use super::{MAX_HEADS, MAX_IMAGE_SIZE, MAX_LAYERS, MAX_WIDTH};
use crate::tensor::Activation;
use crate::weights::view::Weights;
use crate::{Error, Result};

/// The low-resolution tower's sizes and constants.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Encoder layers.
    pub num_layers: usize,
    /// Attention heads, a divisor of `hidden_size`.
    pub num_heads: usize,
    /// Side of the image in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// The feed-forward layers' activation.
    pub activation: Activation,
    /// LayerNorm's epsilon.
    pub layer_norm_eps: f32,
}

impl ClipConfig {
    /// Reads a CLIP model's `config.json`, or the object in it under `vision_config`; `file` is its name for messages.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not JSON or a value is out of range, [`Error::Unsupported`] if the model is not CLIP.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let settings = Settings::parse(file, bytes)?.nested("vision_config");
        if let Some(other) = settings.text("model_type")?.filter(|name| !name.starts_with("clip")) {
            let key = "the low-resolution tower's model type";
            return Err(settings.file.unsupported(key, other, "clip and clip_vision_model"));
        }
        // Absent keys mean the defaults of transformers' CLIPVisionConfig.
        Self {
            hidden_size: settings.size("hidden_size", 768, MAX_WIDTH)?,
            intermediate_size: settings.size("intermediate_size", 3072, MAX_WIDTH)?,
            num_layers: settings.size("num_hidden_layers", 12, MAX_LAYERS)?,
            num_heads: settings.size("num_attention_heads", 12, MAX_HEADS)?,
            image_size: settings.size("image_size", 224, MAX_IMAGE_SIZE)?,
            patch_size: settings.size("patch_size", 32, MAX_IMAGE_SIZE)?,
            activation: settings.activation("hidden_act")?.unwrap_or(Activation::QuickGelu),
            layer_norm_eps: settings.positive("layer_norm_eps", 1e-5, 1.0)?,
        }
        .checked(settings.file)
    }

    /// The configuration of a tower without `config.json`: sizes from the shapes of its tensors, heads of width 64, and
    /// the constants of every released CLIP.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] or [`Error::WrongShape`] for the embeddings or the first layer; [`Error::Config`] if
    /// the sizes do not fit together.
    pub fn from_weights(clip: &Weights) -> Result<Self> {
        const HEAD_DIM: usize = 64;
        let file = ConfigFile("the shapes of the low-resolution tower's tensors");
        let model = clip.pp("vision_model");
        let [hidden_size, _, patch_size, _] = model.dims("embeddings.patch_embedding.weight")?;
        let [positions, _] = model.dims("embeddings.position_embedding.weight")?;
        let [intermediate_size, _] = model.dims("encoder.layers.0.mlp.fc1.weight")?;
        let size = |key, value: usize, limit| file.size(key, value as u64, limit);
        let side = positions.saturating_sub(1).isqrt();
        Self {
            hidden_size: size("hidden_size", hidden_size, MAX_WIDTH)?,
            intermediate_size: size("intermediate_size", intermediate_size, MAX_WIDTH)?,
            num_layers: size("num_hidden_layers", model.count("encoder.layers"), MAX_LAYERS)?,
            num_heads: size("num_attention_heads", hidden_size / HEAD_DIM, MAX_HEADS)?,
            image_size: size("image_size", side.saturating_mul(patch_size), MAX_IMAGE_SIZE)?,
            patch_size: size("patch_size", patch_size, MAX_IMAGE_SIZE)?,
            activation: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
        .checked(file)
    }

    /// The configuration as JSON that [`ClipConfig::parse`] reads.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "model_type": "clip_vision_model",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "hidden_act": self.activation.name(),
            "layer_norm_eps": self.layer_norm_eps,
        })
    }

    fn checked(self, file: ConfigFile) -> Result<Self> {
        if !self.hidden_size.is_multiple_of(self.num_heads) {
            let (width, heads) = (self.hidden_size, self.num_heads);
            return Err(file.error(format!("hidden_size {width} does not divide into {heads} heads")));
        }
        if !self.image_size.is_multiple_of(self.patch_size) {
            let (image, patch) = (self.image_size, self.patch_size);
            return Err(file.error(format!("image_size {image} does not divide into patches of {patch}")));
        }
        Ok(self)
    }

    /// How many layers run before hidden state `select_layer`. 0 is the embedding; negative counts from the last state.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such state.
    pub fn layers_before(&self, select_layer: i32) -> Result<usize> {
        let states = self.num_layers as i64 + 1;
        let state = if select_layer < 0 { states + i64::from(select_layer) } else { i64::from(select_layer) };
        if (0..states).contains(&state) {
            return Ok(state as usize);
        }
        Err(Error::Config {
            file: "config.json".to_owned(),
            reason: format!("mm_vision_select_layer is {select_layer}, the tower has {states} hidden states"),
        })
    }

    /// Patches a side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }
}
