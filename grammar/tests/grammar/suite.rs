//! The official JSON Schema test suite, of which PyPI's sdist of `jsonschema` has a copy.

use std::collections::BTreeMap;
use std::path::Path;

use mgm_grammar::{Error, Format, Matcher};
use serde_json::Value;

use super::vocabulary;

/// What became of a file's schemas and instances.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    supported: usize,
    refused: usize,
    /// Instances that the supported schemas describe, and those of them that answers can be.
    valid: usize,
    writable: usize,
    invalid: usize,
}

/// Whether an answer can be this text.
fn takes(mut matcher: Matcher, text: &str) -> bool {
    let takes_all = text.bytes().all(|byte| matcher.accept(byte.into()).is_ok());
    takes_all && matcher.is_accepting() == Ok(true)
}

/// Whether an error's pointer is that of a part with the keyword that the error names.
fn is_right(schema: &Value, pointer: &str, reason: &str) -> bool {
    let Some(part) = schema.pointer(pointer) else { return false };
    let named: Vec<&str> = reason.split('"').skip(1).step_by(2).collect();
    let is_list = reason.starts_with("Unimplemented keys");
    !is_list || named.iter().any(|keyword| part.get(keyword).is_some())
}

/// No answer can be an instance that its schema does not describe; what is not supported is named by its place.
/// `MGM_JSON_SCHEMA_SUITE` is the folder of a draft's tests.
#[test]
#[ignore = "needs the test suite: make json-schema"]
fn the_official_suite() {
    let folder = std::env::var("MGM_JSON_SCHEMA_SUITE").expect("MGM_JSON_SCHEMA_SUITE");
    let vocabulary = vocabulary();
    let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(Path::new(&folder)).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|end| end != "json") {
            continue;
        }
        let groups: Vec<Value> = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let count = counts.entry(name.clone()).or_default();
        for group in &groups {
            let schema = &group["schema"];
            let place = format!("{name}: {}", group["description"]);
            let tests = group["tests"].as_array().expect("tests");
            let grammar = match vocabulary.compile(&Format::JsonSchema { schema: schema.clone(), strict: true }) {
                Ok(grammar) => grammar,
                Err(Error::Schema { pointer, reason }) => {
                    count.refused += 1;
                    if !is_right(schema, &pointer, &reason) {
                        wrong.push(format!("{place}: {pointer}: {reason}"));
                    }
                    *reasons.entry(reason).or_default() += 1;
                    continue;
                }
                // Numbers of more digits than grammars may have.
                Err(Error::TooComplex(reason)) => {
                    count.refused += 1;
                    *reasons.entry(reason).or_default() += 1;
                    continue;
                }
                Err(error) => {
                    wrong.push(format!("{place}: {error}"));
                    continue;
                }
            };
            count.supported += 1;
            for test in tests {
                let text = test["data"].to_string();
                let takes = takes(grammar.matcher(), &text);
                if test["valid"] == true {
                    count.valid += 1;
                    count.writable += usize::from(takes);
                } else {
                    count.invalid += 1;
                    if takes {
                        wrong.push(format!("{place}: {} is invalid, and {text} can be written", test["description"]));
                    }
                }
            }
        }
    }
    let mut all = Counts::default();
    for (name, count) in &counts {
        println!("{name}: {count:?}");
        all.supported += count.supported;
        all.refused += count.refused;
        all.valid += count.valid;
        all.writable += count.writable;
        all.invalid += count.invalid;
    }
    println!("all: {all:?}\nrefused: {reasons:#?}");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(all.supported > 100, "{all:?}");
}
