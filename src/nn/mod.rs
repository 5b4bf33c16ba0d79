//! Layers that several networks share.

pub(crate) mod clip_layer;
pub(crate) mod linear;
