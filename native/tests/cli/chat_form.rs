//! The form of `mgm chat`'s answers, with Pocket.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn chat(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    command.env_remove("MGM_MODELS").arg("chat").args(arguments).stdin(Stdio::null());
    command.output().expect("the binary runs")
}

/// The report of a run that must succeed.
fn report(arguments: &[&str]) -> Value {
    let output = chat(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn answers_have_the_wanted_form() {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pocket/examples/shark.png");
    // The cheese in the image is green, the number 113.
    let turns = report(&[
        "--json",
        "--temperature",
        "0",
        "--image",
        image.to_str().expect("UTF-8"),
        "--prompt",
        "What colour is the cheese?",
        "--prompt",
        "What colour is the shark?",
        "--choice",
        "red",
        "--choice",
        "green",
        "--choice",
        "blue",
    ]);
    let found: Vec<(&Value, &Value)> =
        turns["turns"].as_array().expect("turns").iter().map(|turn| (&turn["text"], &turn["finish_reason"])).collect();
    let stop = Value::from("stop");
    assert_eq!(found, [(&"green".into(), &stop), (&"blue".into(), &stop)]);

    let schema = r#"{"type": "object", "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 7}},
        "required": ["a"], "additionalProperties": false}"#;
    let answers =
        report(&["--json", "--temperature", "2", "-n", "3", "--prompt", "Who are you?", "--json-schema", schema]);
    let first = &answers["turns"][0];
    let texts =
        first["alternatives"].as_array().expect("alternatives").iter().chain([first]).map(|choice| &choice["text"]);
    for text in texts {
        let value: Value = serde_json::from_str(text.as_str().expect("a text")).expect("JSON");
        assert!(value["a"].as_i64().is_some_and(|a| (3..=7).contains(&a)), "{text}");
        assert_eq!(value.as_object().map(|fields| fields.len()), Some(1), "{text}");
    }
}

#[test]
fn forms_that_are_not_supported_are_errors() {
    for (arguments, message) in [
        (
            ["--json-schema", r#"{"properties": {"a": {"not": {}}}}"#],
            "--json-schema: Invalid schema at /properties/a: ",
        ),
        (["--json-schema", "{"], "--json-schema: the schema is not JSON"),
        (["--json-schema", "no/such/file.json"], "no/such/file.json"),
        (["--regex", "(?=a)b"], "--regex: Invalid regular expression"),
        (["--grammar", "no/such/file.lark"], "no/such/file.lark"),
    ] {
        let output = chat(&[&["--prompt", "a"], &arguments[..]].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && errors.contains(message), "{errors}");
    }
}
