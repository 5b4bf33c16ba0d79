//! The binary `mgm`.

fn main() {}
