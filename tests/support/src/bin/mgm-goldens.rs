//! Generates golden cases and prints their folders, one a line.
//!
//! ```text
//! mgm-goldens [CASE…] [--out DIR]
//! mgm-goldens --data FOLDER
//! ```
//!
//! No name means all cases. With `--out` the cases are written to `DIR/CASE`, otherwise to the target directory.
//! `--data` completes a folder of `tests/data` and prints where.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut cases = Vec::new();
    let mut out: Option<PathBuf> = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), argument.strip_prefix("--out=")) {
            ("--out", _) => out = arguments.next().map(PathBuf::from),
            (_, Some(folder)) => out = Some(folder.into()),
            ("--data", _) => {
                let Some(folder) = arguments.next() else {
                    eprintln!("error: --data needs a folder of tests/data");
                    return ExitCode::from(2);
                };
                println!("{}", mgm_test_support::data(&folder).display());
                return ExitCode::SUCCESS;
            }
            ("--help" | "-h", _) => {
                println!(
                    "usage: mgm-goldens [CASE…] [--out DIR] | --data FOLDER\ncases: {}",
                    mgm_test_support::names().join(", ")
                );
                return ExitCode::SUCCESS;
            }
            _ => cases.push(argument),
        }
    }
    let known = mgm_test_support::names();
    if let Some(unknown) = cases.iter().find(|case| !known.contains(case)) {
        eprintln!("error: there is no golden case {unknown}; there are {}", known.join(", "));
        return ExitCode::from(2);
    }
    for case in if cases.is_empty() { known } else { cases } {
        let folder = match &out {
            None => mgm_test_support::goldens().join(&case),
            Some(out) => {
                let folder = out.join(&case);
                if let Err(error) = mgm_test_support::generate(&case, &folder) {
                    eprintln!("error: {error}");
                    return ExitCode::from(2);
                }
                folder
            }
        };
        println!("{}", folder.display());
    }
    ExitCode::SUCCESS
}
