use crate::weights::view::Weights;
use crate::{Error, Result};

/// Depths and widths of a ConvNeXt's four stages. No file has them; the tensors do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvNextConfig {
    /// Blocks of each stage.
    pub depths: [usize; 4],
    /// Channels of each stage.
    pub widths: [usize; 4],
}

impl ConvNextConfig {
    /// ConvNeXt-L, the tower of all released models.
    pub const LARGE: Self = Self { depths: [3, 3, 27, 3], widths: [192, 384, 768, 1536] };

    /// Depths and widths from the shapes of a tower's tensors.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] if a stage has no first block; [`Error::WrongShape`] if its convolution does not
    /// have four dimensions or has no channels.
    pub fn from_weights(weights: &Weights) -> Result<Self> {
        let mut config = Self { depths: [0; 4], widths: [0; 4] };
        for stage in 0..4 {
            let stage_weights = weights.pp("stages").pp(stage);
            config.depths[stage] = stage_weights.count("blocks");
            let [width, ..] = stage_weights.dims::<4>("blocks.0.conv_dw.weight")?;
            config.widths[stage] = width;
        }
        if config.widths.contains(&0) {
            return Err(Error::WrongShape {
                name: weights.full_name("stages"),
                found: config.widths.to_vec(),
                expected: "four stages with channels".to_owned(),
            });
        }
        Ok(config)
    }

    /// The same for a report on a tower that may be incomplete: a width is 0 if no tensor has it, a depth at least 1.
    pub(crate) fn from_incomplete_weights(weights: &Weights) -> Self {
        let width = |name: &str| weights.shape(name).ok().and_then(|shape| shape.first().copied()).unwrap_or(0);
        let stages = [0, 1, 2, 3];
        Self {
            depths: stages.map(|stage| weights.pp("stages").pp(stage).count("blocks").max(1)),
            widths: stages.map(|stage| width(&format!("stages.{stage}.blocks.0.gamma"))),
        }
    }

    /// Channels of all stages together.
    pub fn channels(&self) -> usize {
        self.widths.iter().sum()
    }
}
