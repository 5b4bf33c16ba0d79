//! Answers are not constrained in browsers: none of this exists at run time, and none of it is in the module.

use crate::Result;
use crate::gpu::Gpu;
use crate::tensor::Tensor;

/// A constraint of any kind: there is none.
#[derive(Debug, Clone, Copy)]
pub enum AnyConstraint {}

#[derive(Debug)]
pub(super) struct Constrained(AnyConstraint);

impl Constrained {
    pub(super) fn new(_: &Gpu, constraint: AnyConstraint, _: usize) -> Result<Self> {
        Ok(Self(constraint))
    }

    pub(super) fn note(&mut self, _: Option<u32>) {
        match self.0 {}
    }

    pub(super) fn take_last(&mut self) -> Result<bool> {
        match self.0 {}
    }

    pub(super) fn is_terminated(&self) -> bool {
        match self.0 {}
    }

    pub(super) fn upload(&mut self, _: &Gpu) -> Result<()> {
        match self.0 {}
    }

    pub(super) fn mask(&self) -> &Tensor {
        match self.0 {}
    }
}
