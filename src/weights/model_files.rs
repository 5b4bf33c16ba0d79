//! A model in any kind of files: a checkpoint's folder, a bundle, a GGUF file.

use std::rc::Rc;

use super::bundle::read::Bundle;
use super::config::LanguageConfig;
use super::gguf_model::GgufModel;
use super::mgm::{MgmCheckpoint, TowerOptions};
use super::sdxl::SdxlCheckpoint;
use crate::io::Folder;
use crate::tensor::Precision;
use crate::{Error, Result, Setting};

/// The opened files of a model. Only headers and configurations are in memory.
pub enum ModelFiles {
    /// A Mini-Gemini checkpoint, as released or as a bundle.
    Mgm(Box<MgmCheckpoint>),
    /// A language model in a GGUF file, or in a bundle of one.
    Gguf(Box<GgufModel>),
}

impl ModelFiles {
    /// Opens a path on disk: the folder of a checkpoint or of a bundle, or a GGUF file.
    ///
    /// # Errors
    /// As [`Self::open`], [`GgufModel::open`].
    #[cfg(all(feature = "fs", any(unix, windows)))]
    pub async fn from_path(path: impl AsRef<std::path::Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_file() {
            let model = GgufModel::open(Rc::new(crate::io::DiskFile::open(path)?)).await?;
            return Ok(Self::Gguf(Box::new(model)));
        }
        Self::open(Rc::new(crate::io::DiskFolder::new(path)), TowerOptions::default()).await
    }

    /// Opens a folder: a bundle if it contains one, or else a checkpoint, with its towers in the folders of `towers`.
    ///
    /// # Errors
    /// As [`MgmCheckpoint::open`], [`Bundle::find`]; [`Error::NeedsSetting`] for an image model.
    pub async fn open(folder: Rc<dyn Folder>, towers: TowerOptions) -> Result<Self> {
        let bundle = Bundle::find(&folder).await?;
        let is_image_model = match &bundle {
            Some(bundle) => SdxlCheckpoint::is_packed(bundle),
            None => SdxlCheckpoint::is_in(&*folder).await?,
        };
        if is_image_model {
            return Err(Error::NeedsSetting {
                setting: Setting::ImageModel,
                file: folder.name().to_owned(),
                reason: "it is an image model (Stable Diffusion XL), expected a chat model: open it as an image model"
                    .to_owned(),
            });
        }
        match bundle {
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
            Some(source) => Self::Gguf(Box::new(GgufModel::open(source).await?)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemoryFolder;

    #[test]
    fn image_models_are_named_as_such() {
        let root = MemoryFolder::new(vec![("sdxl/model_index.json".to_owned(), b"{}".to_vec())]);
        let opened = pollster::block_on(ModelFiles::open(root.child("sdxl"), TowerOptions::default()));
        let error = opened.err().expect("no chat model");
        assert_eq!(error.remedy(), Some(Setting::ImageModel));
        let message = error.to_string();
        assert!(
            message.contains("sdxl: it is an image model") && message.contains("expected a chat model"),
            "{message}"
        );
    }
}
