//! Layers that several networks share.

pub(crate) mod clip_layer;
