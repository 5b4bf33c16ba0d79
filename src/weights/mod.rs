//! What a checkpoint is: names, shapes, element types, and readers over a byte source.

pub mod source;
