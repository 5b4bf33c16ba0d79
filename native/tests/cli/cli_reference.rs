//! docs/cli.md documents exactly the options that `--help` lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

type Options = BTreeSet<String>;

fn help(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_mgm")).args(arguments).arg("--help").output();
    String::from_utf8(output.expect("the binary runs").stdout).expect("UTF-8")
}

/// The words of a line that are options, without `--help`.
fn options(line: &str) -> impl Iterator<Item = String> + '_ {
    let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| word.starts_with("--") && word.len() > 2 && *word != "--help").map(str::to_owned)
}

/// The commands in the output of `mgm --help`.
fn commands() -> Vec<String> {
    let text = help(&[]);
    let lines = text.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// The options of a command, with their aliases.
fn options_of_help(command: &str) -> Options {
    let text = help(&[command]);
    let mut found = Options::new();
    for line in text.lines() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("--") || trimmed.starts_with("-h, --help") {
            found.extend(options(trimmed));
        }
        // "[alias: --max-tokens]", or "[aliases: …]" for several.
        if let Some((_, aliases)) = line.split_once("[alias") {
            found.extend(options(aliases));
        }
    }
    found
}

/// The options in each section's table, and the sections it links to after "Also takes:".
fn documented() -> BTreeMap<String, (Options, Vec<String>)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let text = std::fs::read_to_string(file).expect("docs/cli.md");
    let mut sections = BTreeMap::new();
    for section in text.split("\n## ").flat_map(|section| section.split("\n### ")).skip(1) {
        let title = section.lines().next().unwrap_or_default().to_lowercase();
        // The first column, and aliases after "also" in the second.
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        let found = rows.flat_map(|row| {
            let first = row.split(" | ").next().unwrap_or_default();
            let alias = row.split("; also `").nth(1).unwrap_or_default();
            options(first).chain(options(alias)).collect::<Vec<_>>()
        });
        let links = section.split("Also takes:").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap_or_default();
        let links = links.split("](#").skip(1).filter_map(|link| Some(link.split_once(')')?.0.replace('-', " ")));
        sections.insert(title, (found.collect(), links.collect()));
    }
    sections
}

#[test]
fn the_cli_reference_matches_the_help() {
    let documented = documented();
    let commands = commands();
    assert!(commands.len() > 8, "{commands:?}");
    for command in &commands {
        let (own, links) = documented.get(&format!("mgm {command}")).unwrap_or_else(|| panic!("no section: {command}"));
        let shared =
            links.iter().flat_map(|link| &documented.get(link).unwrap_or_else(|| panic!("no section: {link}")).0);
        let found: Options = own.iter().chain(shared).cloned().collect();
        assert_eq!(found, options_of_help(command), "docs/cli.md (left) and `mgm {command} --help` (right)");
    }
}
