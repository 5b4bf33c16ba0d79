//! A model in any kind of files: a checkpoint's folder, a bundle, a GGUF file.

use std::rc::Rc;

use super::bundle::read::Bundle;
use super::config::LanguageConfig;
use super::gguf_model::GgufModel;
use super::mgm::{MgmCheckpoint, TowerOptions};
use crate::Result;
use crate::io::Folder;
use crate::tensor::Precision;

/// The opened files of a model. Only headers and configurations are in memory.
pub enum ModelFiles {
    /// A Mini-Gemini checkpoint, as released or as a bundle.
    Mgm(Box<MgmCheckpoint>),
    /// A language model in a GGUF file, or in a bundle of one.
    Gguf(GgufModel),
}

impl ModelFiles {
    /// Opens a folder: a bundle if it contains one, or else a checkpoint, with its towers in the folders of `towers`.
    ///
    /// # Errors
    /// As [`MgmCheckpoint::open`], [`Bundle::find`].
    pub async fn open(folder: Rc<dyn Folder>, towers: TowerOptions) -> Result<Self> {
        match Bundle::find(&folder).await? {
            Some(bundle) => Self::open_bundle(&bundle).await,
            None => Ok(Self::Mgm(Box::new(MgmCheckpoint::open(folder, towers).await?))),
        }
    }

    /// Opens a bundle.
    ///
    /// # Errors
    /// As [`MgmCheckpoint::open_bundle`], [`GgufModel::open`].
    pub async fn open_bundle(bundle: &Bundle) -> Result<Self> {
        Ok(match bundle.gguf().await? {
            Some(source) => Self::Gguf(GgufModel::open(source).await?),
            None => Self::Mgm(Box::new(MgmCheckpoint::open_bundle(bundle).await?)),
        })
    }

    /// The language model's configuration, for changes before it is loaded.
    pub fn language_config_mut(&mut self) -> &mut LanguageConfig {
        match self {
            Self::Mgm(checkpoint) => &mut checkpoint.config.language,
            Self::Gguf(model) => &mut model.config,
        }
    }

    /// The default precision, and whether matrices keep the quantisation of the file.
    pub fn default_precision(&self) -> (Precision, bool) {
        match self {
            Self::Mgm(checkpoint) => match checkpoint.packed {
                Some(precision) => (precision, true),
                None => (Precision::F16, false),
            },
            Self::Gguf(_) => (Precision::F16, true),
        }
    }
}
