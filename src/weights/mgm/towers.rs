//! The vision side: finding the towers' weights, in the checkpoint or in folders of their own.

use std::rc::Rc;

use super::names::{self, TO_CHECKPOINT, ToCheckpoint};
use super::{CONFIG, part};
use crate::io::{Folder, read_file};
use crate::weights::bundle::CLIP_CONFIG;
use crate::weights::checkpoint::{Checkpoint, MODEL_FILES, OPEN_CLIP_FILES};
use crate::weights::config::{ClipConfig, ConvNextConfig, MAX_CONFIG, VisionConfig};
use crate::weights::expected::{self, ExpectedTensor};
use crate::weights::view::Weights;
use crate::{Error, Result, Setting};

/// Folders of the two towers chosen by the user. They take precedence over every other copy.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct TowerOptions {
    /// The low-resolution tower: a folder with CLIP's weights.
    pub clip: Option<Rc<dyn Folder>>,
    /// The high-resolution tower: a folder with OpenCLIP's ConvNeXt.
    pub convnext: Option<Rc<dyn Folder>>,
}

impl TowerOptions {
    /// Sets [`Self::clip`].
    pub fn with_clip(self, clip: impl Into<Option<Rc<dyn Folder>>>) -> Self {
        Self { clip: clip.into(), ..self }
    }

    /// Sets [`Self::convnext`].
    pub fn with_convnext(self, convnext: impl Into<Option<Rc<dyn Folder>>>) -> Self {
        Self { convnext: convnext.into(), ..self }
    }
}

/// The weights of the vision side, under the same names whatever files they come from.
#[non_exhaustive]
pub struct VisionWeights {
    /// Its configuration.
    pub config: VisionConfig,
    /// The low-resolution tower's configuration.
    pub clip_config: ClipConfig,
    /// The low-resolution tower: `vision_model.embeddings.…` and so on.
    pub clip: Weights,
    /// The high-resolution tower: `stem.0.weight`, `stages.0.blocks.0.gamma` and so on.
    pub convnext: Weights,
    /// Patch info mining: `query.0.weight`, `aux.1.bias`, `val.1.weight` and so on.
    pub mining: Weights,
    /// The projector: `0.weight`, `2.weight` and so on.
    pub projector: Weights,
}

impl VisionWeights {
    /// The tensors that each of [`Self::parts`] needs, for a language model of width `hidden`.
    pub(in crate::weights) fn expected(&self, hidden: usize) -> [Vec<ExpectedTensor>; 4] {
        [
            expected::clip(&self.clip_config),
            expected::convnext(&ConvNextConfig::from_incomplete_weights(&self.convnext)),
            expected::mining(&self.config),
            expected::projector(&self.config, hidden),
        ]
    }

    /// The parts, each with the map from its names to those of an MGM checkpoint.
    pub(in crate::weights) fn parts(&self) -> [(ToCheckpoint, &Weights); 4] {
        let [clip, convnext, mining, projector] = TO_CHECKPOINT;
        [(clip, &self.clip), (convnext, &self.convnext), (mining, &self.mining), (projector, &self.projector)]
    }

    pub(super) async fn open(
        folder: &Rc<dyn Folder>,
        config: VisionConfig,
        main: &Checkpoint,
        towers: TowerOptions,
    ) -> Result<Self> {
        let own_clip = part(main, names::clip);
        let own_convnext = part(main, names::convnext);

        let clip_path = config.tower.as_deref().unwrap_or("clip-vit-large-patch14-336");
        let found = match &towers.clip {
            Some(folder) => Some((Rc::clone(folder), Checkpoint::open(&**folder, MODEL_FILES).await?)),
            None => find_tower(folder, clip_path, MODEL_FILES).await?,
        };
        let separate = found.as_ref().map(|(_, checkpoint)| part(checkpoint, names::clip));
        let own = (towers.clip.is_none() && !own_clip.checkpoint().is_empty()).then_some(own_clip);
        let clip = own.or(separate).ok_or_else(|| missing_tower(folder, Setting::VisionTower, "low", clip_path))?;
        // Only the folder of the separate copy has a configuration, whichever copy's weights are used.
        let clip_file = match &found {
            Some((folder, _)) => read_file(&**folder, CONFIG, MAX_CONFIG).await?.map(|bytes| (folder.name(), bytes)),
            None => None,
        };
        let clip_file = match clip_file {
            Some(file) => Some(file),
            None => read_file(&**folder, CLIP_CONFIG, MAX_CONFIG).await?.map(|bytes| (folder.name(), bytes)),
        };
        let clip_config = match clip_file {
            Some((name, bytes)) => ClipConfig::parse(&format!("{name}/{CONFIG}"), &bytes)?,
            None => ClipConfig::from_weights(&clip)?,
        };

        let high_path =
            config.high_tower.as_deref().unwrap_or("openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup");
        let own = (!own_convnext.checkpoint().is_empty()).then_some(own_convnext);
        let convnext = match (&towers.convnext, own) {
            (Some(folder), _) => part(&Checkpoint::open(&**folder, OPEN_CLIP_FILES).await?, names::convnext),
            (None, Some(own)) if config.optimize_high_tower => own,
            (None, own) => match find_tower(folder, high_path, OPEN_CLIP_FILES).await? {
                Some((_, checkpoint)) => part(&checkpoint, names::convnext),
                None => own.ok_or_else(|| missing_tower(folder, Setting::HighResolutionTower, "high", high_path))?,
            },
        };

        let mining = part(main, names::mining);
        let projector = part(main, names::projector);

        // The high-resolution map has stride 4 and is divided into one window per low-resolution patch.
        let step = clip_config.grid().saturating_mul(config.grid).saturating_mul(4);
        if step == 0 || !config.high_image_size.is_multiple_of(step) || !config.high_image_size.is_multiple_of(32) {
            return Err(Error::Config {
                file: format!("{}/{CONFIG}", folder.name()),
                reason: format!(
                    "image_size_aux is {}, expected a multiple of 32 and of {step} (4 pixels a cell, {} patches a side, \
                     {} tiles a side)",
                    config.high_image_size,
                    clip_config.grid(),
                    config.grid
                ),
            });
        }
        Ok(Self { config, clip_config, clip, convnext, mining, projector })
    }
}

/// Searches for the tower whose path on its author's machine is `path`: in the checkpoint's folder and its two parents,
/// by the whole path, its last two components or only the last; then there and in the Hugging Face cache by its name on
/// the Hub or with other capital letters.
async fn find_tower(
    folder: &Rc<dyn Folder>,
    path: &str,
    candidates: &[&str],
) -> Result<Option<(Rc<dyn Folder>, Checkpoint)>> {
    let parts: Vec<&str> = path.split(['/', '\\']).filter(|part| !matches!(*part, "" | "." | "..")).collect();
    // `/` of Unix, `C:` of Windows.
    let absolute = path.starts_with(['/', '\\']) || parts.first().is_some_and(|first| first.ends_with(':'));
    for around in ["", "../", "../../"] {
        for length in [parts.len(), 2, 1] {
            if length > parts.len() || length == 0 || (absolute && length > 2) {
                continue;
            }
            let tail = parts.get(parts.len() - length..).unwrap_or_default().join("/");
            let tower = folder.child(&format!("{around}{tail}"));
            if let Some(checkpoint) = Checkpoint::find(&*tower, candidates).await? {
                return Ok(Some((tower, checkpoint)));
            }
        }
    }
    // Browsers cannot list a folder.
    if cfg!(feature = "fs") { find_by_name(folder, &parts, candidates).await } else { Ok(None) }
}

/// Searches for the tower whose path is `parts` among the folders around the checkpoint: by its name, ignoring case,
/// and by its name on the Hub.
async fn find_by_name(
    folder: &Rc<dyn Folder>,
    parts: &[&str],
    candidates: &[&str],
) -> Result<Option<(Rc<dyn Folder>, Checkpoint)>> {
    let [before @ .., name] = parts else { return Ok(None) };
    let owners: Vec<String> = before.iter().chain(&HUB_OWNERS).map(|part| plain(part)).collect();
    // The parent of a snapshot's second parent is the cache.
    for around in [".", "..", "../..", "../../.."] {
        let around = folder.child(around);
        let mut named = Vec::new();
        for entry in around.entries().await {
            if plain(&entry) == plain(name) {
                named.push(around.child(&entry));
            } else if owners.contains(&plain(&entry)) {
                let owner = around.child(&entry);
                let towers = owner.entries().await.into_iter().filter(|entry| plain(entry) == plain(name));
                named.extend(towers.map(|entry| owner.child(&entry)));
            }
        }
        for tower in named {
            if let Some(checkpoint) = Checkpoint::find(&*tower, candidates).await? {
                return Ok(Some((tower, checkpoint)));
            }
        }
    }
    Ok(None)
}

/// Owners of the towers' repositories on the Hub.
const HUB_OWNERS: [&str; 2] = ["openai", "laion"];

/// A folder's name for comparison: letters and digits in lower case. Of the cache's `models--OWNER--NAME` only the name
/// counts. Mini-Gemini's authors put "open" before the name of OpenCLIP's repository.
fn plain(name: &str) -> String {
    let name = name.strip_prefix("models--").and_then(|name| name.split_once("--")).map_or(name, |(_, name)| name);
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    match name.strip_prefix("openclip") {
        Some(rest) => format!("clip{rest}"),
        None => name,
    }
}

fn missing_tower(folder: &Rc<dyn Folder>, setting: Setting, which: &str, path: &str) -> Error {
    Error::NeedsSetting {
        setting,
        file: folder.name().to_owned(),
        reason: format!(
            "the {which}-resolution tower {path} is missing from the checkpoint, the folders in it and those next to it; \
             download it, or pass its folder"
        ),
    }
}
