//! Names of the vision side's tensors: in an MGM checkpoint, and in checkpoints of the towers alone.

const CLIP_PREFIX: &str = "model.vision_tower.vision_tower.";
const CONVNEXT_PREFIX: &str = "model.vision_tower_aux.";
const PROJECTOR_PREFIX: &str = "model.mm_projector.";
const MINING_PREFIX: &str = "model.vlm_uni_";

/// Whether a tensor of an MGM checkpoint belongs to the vision side.
pub(super) fn is_vision(name: &str) -> bool {
    ["model.vision_tower.", CONVNEXT_PREFIX, PROJECTOR_PREFIX, MINING_PREFIX]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// CLIP's name for a tensor of an MGM or CLIP checkpoint; `None` if it is not part of the tower.
pub(super) fn clip(name: &str) -> Option<String> {
    let name = name.strip_prefix(CLIP_PREFIX).unwrap_or(name);
    // Older files save the buffer 0..577 as `position_ids`.
    (name.starts_with("vision_model.") && !name.ends_with("position_ids")).then(|| name.to_owned())
}

/// timm's name for a tensor of an MGM, OpenCLIP or timm checkpoint; `None` if it is not part of the ConvNeXt tower.
pub(super) fn convnext(name: &str) -> Option<String> {
    let name = name.strip_prefix(CONVNEXT_PREFIX).unwrap_or(name);
    let name = name.strip_prefix("module.").unwrap_or(name);
    let name = name.strip_prefix("visual.trunk.").unwrap_or(name);
    let name = name.strip_prefix("vision_").unwrap_or(name);
    (name.starts_with("stem.") || name.starts_with("stages.")).then(|| name.to_owned())
}

/// `query.0.weight` and so on, for a tensor of patch info mining in an MGM checkpoint.
pub(super) fn mining(name: &str) -> Option<String> {
    let (module, rest) = name.strip_prefix(MINING_PREFIX)?.split_once("_projector.")?;
    Some(format!("{module}.{rest}"))
}

/// `0.weight` and so on, for a tensor of the projector in an MGM checkpoint.
pub(super) fn projector(name: &str) -> Option<String> {
    Some(match name.strip_prefix(PROJECTOR_PREFIX)? {
        // A single linear layer is saved without a number.
        name @ ("weight" | "bias") => format!("0.{name}"),
        name => name.to_owned(),
    })
}

/// Maps a part's name for a tensor to its name in an MGM checkpoint.
pub(in crate::weights) type ToCheckpoint = fn(&str) -> String;

/// The inverses of [`clip`], [`convnext`], [`mining`] and [`projector`].
pub(super) const TO_CHECKPOINT: [ToCheckpoint; 4] = [
    |name| format!("{CLIP_PREFIX}{name}"),
    |name| format!("{CONVNEXT_PREFIX}{name}"),
    |name| {
        let (module, rest) = name.split_once('.').unwrap_or((name, ""));
        format!("{MINING_PREFIX}{module}_projector.{rest}")
    },
    |name| format!("{PROJECTOR_PREFIX}{name}"),
];
