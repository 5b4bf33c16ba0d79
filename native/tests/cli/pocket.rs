//! The bundled models end to end: Pocket answers about images that its training never showed, and recognizes what
//! Pocket SDXL draws. The images are generated (pocket/world), so the correct answers are known.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::text;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The program with the models of the repository.
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

/// The answers of `mgm chat` without a checkpoint.
fn answers(image: Option<&Path>, questions: &[&str], more: &[&str]) -> Vec<String> {
    let mut chat = mgm("chat");
    chat.args(["--temperature", "0"]).args(more);
    if let Some(image) = image {
        chat.arg("--image").arg(image);
    }
    for question in questions {
        chat.args(["--prompt", question]);
    }
    let turns = report(&mut chat)["turns"].as_array().expect("turns").clone();
    turns.iter().map(|turn| text(&turn["text"]).trim().to_owned()).collect()
}

/// The accuracy on the questions in a file of tests/data/pocket.
fn accuracy(file: &str, more: &[&str]) -> f64 {
    let folder = TempDir::new().expect("a temporary folder");
    let mut eval = mgm("eval");
    eval.args(["--format", "jsonl", "--data"]).arg(root().join("tests/data/pocket").join(file));
    eval.arg("--out").arg(folder.path().join("answers.jsonl")).args(more);
    report(&mut eval)["accuracy"].as_f64().expect("an accuracy")
}

/// While the first answer is prepared, while the second is generated, and while an image is denoised.
#[test]
fn a_lost_device_changes_no_result() {
    let image = root().join("pocket/examples/zebras.png");
    let lost = |command: &mut Command, submission: &str| {
        let output = command.env("MGM_LOSE_DEVICE", submission).output().expect("the binary runs");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && errors.contains("opening it again"), "{submission}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for submission in ["0", "3", "10"] {
        let mut chat = mgm("chat");
        chat.args(["--prompt", "What does the text say?", "--prompt", "What colour is the turtle?"]);
        chat.args(["--temperature", "0", "--image"]).arg(&image);
        assert_eq!(lost(&mut chat, submission).split_whitespace().collect::<Vec<_>>(), ["bus", "pink"], "{submission}");
    }
    let folder = TempDir::new().expect("a temporary folder");
    let image = |name: &str, submission: Option<&str>| {
        let out = folder.path().join(name);
        let mut generate = mgm("generate");
        generate.args(["--prompt", "a blue dog", "--seed", "1", "--steps", "4", "--out"]).arg(&out);
        match submission {
            Some(submission) => drop(lost(&mut generate, submission)),
            None => assert!(generate.status().expect("the binary runs").success()),
        }
        std::fs::read(out).expect("an image")
    };
    assert!(image("lost.png", Some("5")) == image("kept.png", None), "the images differ");
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

/// The goal is 85 % of 2,000 such questions. These 100 are about every twentieth of their images; a model with 85 %
/// accuracy reaches 76 % on them with a probability of 99 %.
#[test]
fn it_answers_held_out_questions() {
    let accuracy = accuracy("held-out.jsonl", &[]);
    println!("accuracy {accuracy}");
    assert!(accuracy >= 0.76, "{accuracy}");
}

/// The paper's claim in miniature: small text is read through the high-resolution view. The goal is 75 % of 400 such
/// questions, which include these 30.
#[test]
fn mining_reads_small_text() {
    let mined = accuracy("small-text.jsonl", &[]);
    let low = accuracy("small-text.jsonl", &["--no-high-resolution"]);
    println!("{mined} with the high-resolution view, {low} without");
    assert!(mined >= 0.75, "{mined}");
    assert!(low <= mined / 2.0, "{low}, with mining {mined}");
}

/// The expected images are from diffusers with the exported checkpoint in f32 (tests/reference/make_pocket_images.py).
/// `mgm generate` reproduces them byte for byte from that checkpoint; q8 weights leave 57 and 55 dB.
#[test]
fn it_draws_the_images_of_diffusers() {
    let folder = TempDir::new().expect("a temporary folder");
    for (name, prompt, seed) in [("blue-dog", "a blue dog", "1"), ("red-car", "a red car on a yellow background", "2")]
    {
        let file = folder.path().join(format!("{name}.png"));
        let mut generate = mgm("generate");
        generate.args(["--prompt", prompt, "--seed", seed, "--steps", "20", "--noise", "f32", "--out", text_of(&file)]);
        report(&mut generate);
        let expected = pixels(&root().join("tests/data/pocket").join(format!("{name}.png")));
        let drawn = pixels(&file);
        assert_eq!(drawn.len(), expected.len());
        let squares = drawn.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
        let decibels = 10.0 * (255.0 * 255.0 * expected.len() as f64 / squares.max(1e-9)).log10();
        println!("{name}: {decibels:.1} dB");
        assert!(decibels >= 50.0, "{name}: {decibels:.1} dB");
    }
}

fn pixels(file: &Path) -> Vec<u8> {
    let bytes = std::fs::read(file).expect("an image");
    mgm::image::decode(text_of(file), &bytes).expect("a decodable image").data().to_vec()
}

#[test]
fn it_recognizes_what_it_draws() {
    let folder = TempDir::new().expect("a temporary folder");
    let image = folder.path().join("drawn.png");
    let request = ["Draw a red car on a yellow background."];
    let answer = answers(None, &request, &["--draw", "--seed", "2", "--steps", "20", "--out", text_of(&image)]);
    assert_eq!(answer, ["<h>a red car on a yellow background</h>"]);
    let questions = ["What is it?", "What colour is it?", "What colour is the background?"];
    assert_eq!(answers(Some(&image), &questions, &[]), ["a car", "red", "yellow"]);
}

#[test]
fn both_bundles_are_small_enough_to_ship() {
    let bytes = |name: &str| -> u64 {
        let files = std::fs::read_dir(root().join("models").join(name)).expect("a bundle");
        files.map(|file| file.expect("a file").metadata().expect("its size").len()).sum()
    };
    assert!(bytes("pocket") + bytes("pocket-sdxl") <= 24 << 20);
}

fn text_of(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
