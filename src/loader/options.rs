//! Options of loading.

use super::OnProgress;
use crate::tensor::Precision;
use crate::text::conversation::Template;
use crate::weights::model_files::ModelFiles;

/// How a model is loaded.
#[derive(Clone)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Precision of the language model's matrices. The vision networks stay at f16 or above, as in the reference.
    pub precision: Precision,
    /// Keep the language model's matrices as a GGUF file or bundle stores them, at any `precision`.
    pub keep_quantization: bool,
    /// The conversation template. `None`: the one that the checkpoint names or was trained with.
    pub template: Option<Template>,
    /// Encode images at high resolution too. `false` omits the ConvNeXt tower and patch info mining
    /// ([`crate::vision::Vision`]).
    pub high_resolution: bool,
    /// Called with the bytes loaded since the last call. `ControlFlow::Break` cancels loading.
    pub on_progress: Option<OnProgress>,
}

impl LoadOptions {
    /// Options with the language model at `precision` and defaults for the rest.
    pub fn new(precision: Precision) -> Self {
        Self { precision, keep_quantization: false, template: None, high_resolution: true, on_progress: None }
    }

    /// The precision that the files store: quantised files stay as they are, others become f16.
    pub fn as_stored(files: &ModelFiles) -> Self {
        let (precision, keep) = files.default_precision();
        Self::new(precision).with_keep_quantization(keep)
    }

    /// Sets [`Self::keep_quantization`].
    pub fn with_keep_quantization(self, keep_quantization: bool) -> Self {
        Self { keep_quantization, ..self }
    }

    /// Sets [`Self::template`].
    pub fn with_template(self, template: impl Into<Option<Template>>) -> Self {
        Self { template: template.into(), ..self }
    }

    /// Sets [`Self::high_resolution`].
    pub fn with_high_resolution(self, high_resolution: bool) -> Self {
        Self { high_resolution, ..self }
    }

    /// Sets [`Self::on_progress`].
    pub fn with_progress(self, on_progress: OnProgress) -> Self {
        Self { on_progress: Some(on_progress), ..self }
    }
}

impl Default for LoadOptions {
    /// The language model at f16.
    fn default() -> Self {
        Self::new(Precision::F16)
    }
}
