//! Mixture of experts: choosing experts for each token, and combining their outputs.

use bytemuck::{Pod, Zeroable};

use super::Routes;
use super::{cost, element_grid};
use crate::gpu::{Access, Kernel, Recorder, wgsl};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Experts of a layer, at most.
pub(crate) const MAX_EXPERTS: usize = 256;
/// Experts of a token, at most.
pub(crate) const MAX_TOP_K: usize = 64;

/// How the chosen experts' shares are computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shares {
    /// They are divided by their sum; else they are shares of all experts.
    pub normalised: bool,
    /// Their factor.
    pub scale: f32,
}

impl Default for Shares {
    fn default() -> Self {
        Self { normalised: true, scale: 1.0 }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RouteParams {
    tokens: u32,
    experts: u32,
    capacity: u32,
    scale: f32,
}

/// Which experts serve which tokens. A slot is token * top_k + choice.
#[derive(Debug, Clone)]
pub struct Routing {
    weights: Tensor,
    choices: Tensor,
    lists: Tensor,
    tokens: usize,
    top_k: usize,
}

impl Routing {
    /// Slots in all.
    pub fn slots(&self) -> usize {
        self.tokens * self.top_k
    }

    /// The rows of expert `expert` for [`super::linear_routed`]: reading token rows (`from_tokens`) or slot rows.
    pub fn routes(&self, expert: usize, from_tokens: bool) -> Routes<'_> {
        Routes {
            lists: &self.lists,
            base: expert * (1 + self.tokens),
            divisor: if from_tokens { self.top_k } else { 1 },
            capacity: self.tokens,
        }
    }

    /// Shares [tokens, top_k] and u32 expert numbers [tokens, top_k], for tests.
    pub fn chosen(&self) -> (&Tensor, &Tensor) {
        (&self.weights, &self.choices)
    }
}

pub(crate) fn route_kernel(top_k: usize, normalised: bool) -> Kernel {
    let mut overrides = vec![("TOP_K", top_k as u32)];
    if !normalised {
        overrides.push(("OF_ALL", 1));
    }
    Kernel {
        overrides,
        ..Kernel::new(
            "route",
            [wgsl!("language/route.wgsl")],
            &[Access::Read, Access::Write, Access::Write, Access::Write],
        )
    }
}

pub(crate) fn combine_kernel(top_k: usize) -> Kernel {
    Kernel {
        overrides: vec![("TOP_K", top_k as u32)],
        ..Kernel::new(
            "combine",
            [wgsl!("language/combine.wgsl")],
            &[Access::Read, Access::Read, Access::Read, Access::Write],
        )
    }
}

/// Softmax over the experts, the `top_k` best of each token, as `shares` says: logits [tokens, experts].
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn route(recorder: &mut Recorder, logits: &Tensor, top_k: usize, shares: Shares) -> Result<Routing> {
    let (tokens, experts) = (logits.rows(), logits.columns());
    if top_k == 0 || top_k > experts.min(MAX_TOP_K) || experts > MAX_EXPERTS {
        return Err(Error::Unsupported {
            what: "mixture of experts".to_owned(),
            found: format!("{top_k} of {experts}"),
            supported: format!("up to {MAX_EXPERTS} experts, {MAX_TOP_K} for a token"),
        });
    }
    let gpu = recorder.gpu().clone();
    let routing = Routing {
        weights: Tensor::temporary(&gpu, &[tokens, top_k], "expert weights")?,
        choices: Tensor::temporary(&gpu, &[tokens, top_k], "expert choices")?,
        lists: Tensor::temporary(&gpu, &[experts, 1 + tokens], "expert lists")?,
        tokens,
        top_k,
    };
    recorder.dispatch(
        &route_kernel(top_k, shares.normalised),
        &[logits.binding(), routing.weights.binding(), routing.lists.binding(), routing.choices.binding()],
        &RouteParams { tokens: tokens as u32, experts: experts as u32, capacity: tokens as u32, scale: shares.scale },
        [1, 1, 1],
        cost(logits.len() + routing.lists.len(), logits.len() * top_k),
    )?;
    Ok(routing)
}

/// `y[t] +=` the sum of the chosen experts' outputs [tokens * top_k, width], each times its share.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn combine(recorder: &mut Recorder, routing: &Routing, outputs: &Tensor, y: &Tensor) -> Result<()> {
    let width = y.columns();
    outputs.expect("expert outputs", &[routing.slots(), width])?;
    y.expect("residual", &[routing.tokens, width])?;
    recorder.dispatch(
        &combine_kernel(routing.top_k),
        &[outputs.binding(), routing.weights.binding(), routing.choices.binding(), y.binding()],
        &[routing.tokens as u32, width as u32, 0, 0],
        element_grid(y.len()),
        cost(outputs.len() + 2 * y.len(), 2 * outputs.len()),
    )
}

pub(crate) fn gated_add_kernel() -> Kernel {
    Kernel::new("gated_add", [wgsl!("language/gated_add.wgsl")], &[Access::Read, Access::Read, Access::Write])
}

/// `y[t] += sigmoid(gates[t]) x[t]`: x and y [tokens, width], gates [tokens, 1].
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn gated_add(recorder: &mut Recorder, x: &Tensor, gates: &Tensor, y: &Tensor) -> Result<()> {
    let (tokens, width) = (y.rows(), y.columns());
    x.expect("gated rows", &[tokens, width])?;
    gates.expect("gates", &[tokens, 1])?;
    recorder.dispatch(
        &gated_add_kernel(),
        &[x.binding(), gates.binding(), y.binding()],
        &[tokens as u32, width as u32, 0, 0],
        element_grid(y.len()),
        cost(3 * y.len(), 6 * y.len()),
    )
}
