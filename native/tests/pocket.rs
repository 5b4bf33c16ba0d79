//! The models that come with the program, end to end: pocket answers about pictures that its training never showed, and
//! pocket-sdxl draws what pocket then recognises. What is right is known from how the pictures were made (pocket/world).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

mod common;

use common::text;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The program, with the models of the repository.
fn mgm(command: &str) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_mgm"));
    program.env_remove("MGM_MODELS").arg(command).stdin(Stdio::null());
    program
}

/// The JSON report of a run that must succeed.
fn report(command: &mut Command) -> Value {
    let output = command.arg("--json").output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object and nothing else")
}

/// What `mgm chat` without a checkpoint answers to these turns.
fn answers(picture: Option<&Path>, questions: &[&str], more: &[&str]) -> Vec<String> {
    let mut chat = mgm("chat");
    chat.args(["--temperature", "0"]).args(more);
    if let Some(picture) = picture {
        chat.arg("--image").arg(picture);
    }
    for question in questions {
        chat.args(["--prompt", question]);
    }
    let turns = report(&mut chat)["turns"].as_array().expect("turns").clone();
    turns.iter().map(|turn| text(&turn["text"]).trim().to_owned()).collect()
}

/// The part of the questions in a file of tests/data/pocket that are answered rightly.
fn accuracy(file: &str, more: &[&str]) -> f64 {
    let folder = TempDir::new().expect("a temporary folder");
    let mut eval = mgm("eval");
    eval.args(["--format", "jsonl", "--data"]).arg(root().join("tests/data/pocket").join(file));
    eval.arg("--out").arg(folder.path().join("answers.jsonl")).args(more);
    report(&mut eval)["accuracy"].as_f64().expect("an accuracy")
}

#[test]
fn it_answers_about_the_examples() {
    let example = |name: &str| root().join("pocket/examples").join(name);
    let zebras = ["How many zebras are there?", "Is there a cow?"];
    assert_eq!(answers(Some(&example("zebras.png")), &zebras, &[]), ["four", "no"]);
    let shown = ["What does the text say?", "What colour is the turtle?"];
    assert_eq!(answers(Some(&example("zebras.png")), &shown, &[]), ["bus", "pink"]);
    let shark = ["Read the number.", "How many things are there?", "What colour is the cheese?"];
    assert_eq!(answers(Some(&example("shark.png")), &shark, &[]), ["113", "three", "green"]);
    assert_eq!(answers(None, &["What is your name?"], &[]), ["My name is Pocket."]);
}

/// Wanted of it are 85 % of 2,000 such questions; of these 100, those about every twentieth picture of them, a share that is reached
/// 99 times in 100 where 85 % are right.
#[test]
fn it_is_right_in_its_world() {
    let right = accuracy("held-out.jsonl", &[]);
    println!("{right} of the questions");
    assert!(right >= 0.76, "{right}");
}

/// The paper's claim in miniature: small print is read through the high-resolution view. Wanted are 75 % of 400 such questions, these
/// 30 among them.
#[test]
fn mining_reads_small_print() {
    let mined = accuracy("small-text.jsonl", &[]);
    let low = accuracy("small-text.jsonl", &["--no-high-resolution"]);
    println!("{mined} with the high-resolution view, {low} without");
    assert!(mined >= 0.75, "{mined}");
    assert!(low <= mined / 2.0, "{low}, with mining {mined}");
}

/// Expected pictures by diffusers from the exported checkpoint in f32 (tests/reference/make_pocket_pictures.py). `mgm generate` of that
/// checkpoint gives them byte for byte; weights rounded to eight bits leave 57 and 55 dB.
#[test]
fn it_draws_what_diffusers_draws() {
    let folder = TempDir::new().expect("a temporary folder");
    for (name, prompt, seed) in [("blue-dog", "a blue dog", "1"), ("red-car", "a red car on a yellow background", "2")]
    {
        let drawn = folder.path().join(format!("{name}.png"));
        let mut generate = mgm("generate");
        generate.args([
            "--prompt",
            prompt,
            "--seed",
            seed,
            "--steps",
            "20",
            "--noise",
            "f32",
            "--out",
            text_of(&drawn),
        ]);
        report(&mut generate);
        let expected = pixels(&root().join("tests/data/pocket").join(format!("{name}.png")));
        let drawn = pixels(&drawn);
        assert_eq!(drawn.len(), expected.len());
        let squares = drawn.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
        let decibels = 10.0 * (255.0 * 255.0 * expected.len() as f64 / squares.max(1e-9)).log10();
        println!("{name}: {decibels:.1} dB");
        assert!(decibels >= 50.0, "{name}: {decibels:.1} dB");
    }
}

fn pixels(file: &Path) -> Vec<u8> {
    let bytes = std::fs::read(file).expect("a picture");
    mgm::image::decode(text_of(file), &bytes).expect("a picture that can be decoded").data().to_vec()
}

#[test]
fn it_recognises_what_it_draws() {
    let folder = TempDir::new().expect("a temporary folder");
    let picture = folder.path().join("drawn.png");
    let request = ["Draw a red car on a yellow background."];
    let said = answers(None, &request, &["--gen", "--seed", "2", "--steps", "20", "--out", text_of(&picture)]);
    assert_eq!(said, ["<h>a red car on a yellow background</h>"]);
    let questions = ["What is it?", "What colour is it?", "What colour is the background?"];
    assert_eq!(answers(Some(&picture), &questions, &[]), ["a car", "red", "yellow"]);
}

#[test]
fn both_bundles_are_small_enough_to_come_along() {
    let bytes = |name: &str| -> u64 {
        let files = std::fs::read_dir(root().join("models").join(name)).expect("a bundle");
        files.map(|file| file.expect("a file").metadata().expect("its size").len()).sum()
    };
    assert!(bytes("pocket") + bytes("pocket-sdxl") <= 24 << 20);
}

fn text_of(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
