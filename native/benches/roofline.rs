//! `cargo bench -p mgm-cli [-- NAME]`: `mgm bench --roofline`, for kernels whose name contains NAME.

use std::process::{Command, exit};

fn main() {
    let mut mgm = Command::new(env!("CARGO_BIN_EXE_mgm"));
    mgm.args(["bench", "--roofline"]);
    // Cargo adds the argument --bench.
    if let Some(name) = std::env::args().skip(1).find(|argument| !argument.starts_with("--")) {
        mgm.args(["--only", &name]);
    }
    let status = mgm.status().expect("the binary runs");
    exit(status.code().unwrap_or(2));
}
