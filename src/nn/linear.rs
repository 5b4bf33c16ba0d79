//! A linear layer with a bias.

use std::fmt::Display;

use crate::Result;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::ops::{self, Epilogue};
use crate::tensor::{Matrix, Tensor};

#[derive(Debug)]
pub(crate) struct Linear {
    /// [out, in]
    pub weight: Matrix,
    /// `[out]`
    pub bias: Tensor,
}

impl Linear {
    /// Loads `name.weight` and `name.bias`.
    pub(crate) async fn load(loader: &Loader, name: impl Display) -> Result<Self> {
        let part = loader.pp(name);
        Ok(Self { weight: part.matrix("weight").await?, bias: part.tensor("bias").await? })
    }

    /// The same, with the bias of another layer, `other.bias`, added to its own.
    pub(crate) async fn load_with_bias_of(loader: &Loader, name: &str, other: &Loader) -> Result<Self> {
        let part = loader.pp(name);
        let mut bias = part.values("bias").await?;
        bias.iter_mut().zip(&other.values("bias").await?).for_each(|(bias, other)| *bias += other);
        Ok(Self { weight: part.matrix("weight").await?, bias: part.upload("bias", &[bias.len()], &bias).await? })
    }

    /// An epilogue that adds the bias.
    pub(crate) fn epilogue(&self) -> Epilogue<'_> {
        Epilogue { bias: Some(&self.bias), ..Default::default() }
    }

    pub(crate) fn forward(&self, recorder: &mut Recorder, x: &Tensor) -> Result<Tensor> {
        ops::linear(recorder, x, &self.weight, self.epilogue())
    }

    /// y += W x + b
    pub(crate) fn add(&self, recorder: &mut Recorder, x: &Tensor, y: &Tensor) -> Result<()> {
        ops::linear_add(recorder, x, &self.weight, self.epilogue(), y, 0)
    }
}
