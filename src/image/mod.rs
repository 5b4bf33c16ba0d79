//! Pictures in: decode, pad, resize, normalise.
