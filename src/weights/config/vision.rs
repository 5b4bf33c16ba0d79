use super::json::Settings;
use super::{MAX_GRID, MAX_IMAGE_SIZE, MAX_LAYERS, MAX_WIDTH};
use crate::Result;

/// How an image becomes a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AspectRatio {
    /// Padded to a square, then resized.
    Pad,
    /// Resized by its shortest edge, then cropped at the center.
    Crop,
}

/// The projector from features to embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectorKind {
    /// None: features are as wide as embeddings.
    Identity,
    /// N linear layers (at least 1) with GELU between them.
    Mlp(usize),
}

/// The vision side's settings in the model's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Path of the low-resolution tower on its author's machine.
    pub tower: Option<String>,
    /// Path of the high-resolution tower on its author's machine.
    pub high_tower: Option<String>,
    /// Width of the low-resolution features.
    pub hidden_size: usize,
    /// Width of the high-resolution features: the sum of the four stages' widths.
    pub high_hidden_size: usize,
    /// The hidden state of CLIP that is the feature; negative counts from the end.
    pub select_layer: i32,
    /// The projector.
    pub projector: ProjectorKind,
    /// Side of the high-resolution view in pixels.
    pub high_image_size: usize,
    /// Low-resolution tiles a side.
    pub grid: usize,
    /// Whether the whole image is one more tile.
    pub global: bool,
    /// How images become squares.
    pub aspect_ratio: AspectRatio,
    /// Whether training changed the high-resolution tower, so that its weights are those in the checkpoint.
    pub optimize_high_tower: bool,
}

impl VisionConfig {
    /// `None` if the configuration is that of a language model alone.
    pub(super) fn read(settings: &Settings<'_>) -> Result<Option<Self>> {
        let file = settings.file;
        let Some(high_image_size) = settings.optional_size("image_size_aux", MAX_IMAGE_SIZE)? else {
            let Some(tower) = settings.text("mm_vision_tower")? else { return Ok(None) };
            let supported = "Mini-Gemini, which has two towers (this looks like LLaVA, which has one)";
            return Err(file.unsupported("a vision tower without image_size_aux", tower, supported));
        };
        settings.only("mm_use_im_start_end", &[false.into()])?;
        // The class token has no window to mine.
        settings.only("mm_vision_select_feature", &["patch".into()])?;
        let projector = match settings.text("mm_projector_type")?.unwrap_or("linear") {
            "identity" => ProjectorKind::Identity,
            "linear" => ProjectorKind::Mlp(1),
            mlp => {
                let depth = mlp.strip_prefix("mlp").and_then(|mlp| mlp.strip_suffix("x_gelu"));
                match depth.and_then(|depth| depth.parse().ok()) {
                    Some(depth @ 1..=16) => ProjectorKind::Mlp(depth),
                    _ => return Err(file.unsupported("mm_projector_type", mlp, "linear, identity and mlpNx_gelu")),
                }
            }
        };
        let select_layer: i32 = settings.get("mm_vision_select_layer")?.unwrap_or(-2);
        if select_layer.unsigned_abs() as usize > MAX_LAYERS {
            return Err(file.error(format!("mm_vision_select_layer is {select_layer}")));
        }
        let text = |key| Ok::<_, crate::Error>(settings.text(key)?.map(str::to_owned));
        Ok(Some(Self {
            tower: text("mm_vision_tower")?,
            high_tower: text("mm_vision_tower_aux")?,
            hidden_size: settings.required_size("mm_hidden_size", MAX_WIDTH)?,
            high_hidden_size: settings.required_size("mm_hidden_size_aux", MAX_WIDTH)?,
            select_layer,
            projector,
            high_image_size,
            grid: settings.size("image_grid", 1, MAX_GRID)?,
            global: settings.flag("image_global", false)?,
            aspect_ratio: match settings.text("image_aspect_ratio")? {
                Some("pad") => AspectRatio::Pad,
                _ => AspectRatio::Crop,
            },
            optimize_high_tower: settings.flag("optimize_vision_tower_aux", false)?,
        }))
    }
}
