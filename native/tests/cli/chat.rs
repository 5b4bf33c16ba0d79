//! `mgm chat` on the golden checkpoints: greedy ids, JSON, streaming, seeds, conversations through a pipe.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::common::{expected, goldens, text};

fn chat(case: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    command.arg("chat").arg(goldens().join(case).join(text(&expected(case)["checkpoint"])));
    command.args(["--precision", "f32"]).stdin(Stdio::null());
    command
}

/// Standard output of a run that must succeed.
fn run(mut command: Command) -> String {
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn json_has_the_golden_ids_of_every_turn() {
    for case in ["gemma-2b", "llama3-8b", "vicuna-7b", "two-images", "yi-34b"] {
        let expected = expected(case);
        let mut command = chat(case);
        command.args(["--temperature", "0", "--max-new-tokens", "24", "--json"]);
        for image in expected["images"].as_array().expect("a list") {
            command.arg("--image").arg(goldens().join(case).join(text(image)));
        }
        let turns = expected["turns"].as_array().expect("a list");
        for turn in turns {
            command.args(["--prompt", text(&turn["question"])]);
        }
        let report: Value = serde_json::from_str(&run(command)).expect("one JSON object and nothing else");
        let answers = report["turns"].as_array().expect("turns");
        assert_eq!(answers.len(), turns.len());
        for (index, (answer, turn)) in answers.iter().zip(turns).enumerate() {
            let ids = answer["token_ids"].as_array().expect("ids");
            let golden = turn["greedy_ids"].as_array().expect("ids");
            // An answer that ends with a stop token is shorter than the golden one, which has a fixed length.
            assert_eq!(ids[..], golden[..ids.len()], "{case}, turn {index}");
            let stopped = answer["finish_reason"] == "stop";
            assert!(stopped || ids.len() == golden.len(), "{case}, turn {index}: {}", answer["finish_reason"]);
            assert_eq!(answer["prompt_tokens"], turn["n_embeds"], "{case}, turn {index}");
            if ids.len() == golden.len() {
                assert_eq!(answer["text"], turn["text"], "{case}, turn {index}");
            }
        }
        for key in ["adapter", "load_ms", "vision_ms"] {
            assert!(!report[key].is_null(), "{case}: {key}");
        }
        assert!(answers[0]["timings"]["decode_tokens_per_s"].as_f64().is_some_and(|rate| rate > 0.0));
    }
}

/// A file of a checkpoint stands for its folder. That all of it was read shows in the error, which is the device's.
#[test]
fn a_file_of_a_checkpoint_is_its_folder() {
    let folder = goldens().join("gemma-2b").join(text(&expected("gemma-2b")["checkpoint"]));
    for file in ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
        command.current_dir(&folder).args(["chat", file, "--prompt", "x", "--adapter", "Voodoo 3"]);
        let output = command.stdin(Stdio::null()).output().expect("the binary runs");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && errors.contains("Voodoo 3"), "{file}: {errors}");
    }
}

/// Writes a PNG file of one colour; `orientation` is EXIF's.
#[cfg(target_os = "linux")]
fn write_png(file: &std::path::Path, (width, height): (u32, u32), colour: png::ColorType, orientation: Option<u8>) {
    let mut encoder = png::Encoder::new(std::fs::File::create(file).expect("a file"), width, height);
    encoder.set_color(colour);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().expect("a header");
    if let Some(orientation) = orientation {
        // A TIFF file with one entry.
        let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
        writer.write_chunk(png::chunk::ChunkType(*b"eXIf"), &exif).expect("a chunk");
    }
    let row = vec![120; width as usize * colour.samples()];
    let mut stream = writer.stream_writer().expect("a stream");
    for _ in 0..height {
        stream.write_all(&row).expect("a row");
    }
    stream.finish().expect("a file");
}

/// Memory that a phone's photo and a panorama need: their pixels once, and a second time to rotate them.
#[cfg(target_os = "linux")]
#[test]
fn large_images_take_little_more_memory_than_their_pixels() {
    use crate::common::peak_memory;
    use png::ColorType::{Rgb, Rgba};
    let folder = tempfile::TempDir::new().expect("a folder");
    let models = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let file = folder.path().join("x.png");
    let mut small = [0; 2];
    for (what, size, colour, orientation, copies) in [
        ("small", (64, 64), Rgb, None, 0.0),
        ("photo", (8064, 6048), Rgb, None, 1.0),
        ("rotated photo", (8064, 6048), Rgb, Some(6), 2.0),
        ("transparent panorama", (16_000, 4000), Rgba, None, 1.0),
    ] {
        write_png(&file, size, colour, orientation);
        let pixels = (f64::from(size.0) * f64::from(size.1) * colour.samples() as f64 / f64::from(1 << 20)).round();
        for (command, small) in ["chat", "generate"].into_iter().zip(&mut small) {
            let mut mgm = Command::new(env!("CARGO_BIN_EXE_mgm"));
            mgm.stdout(Stdio::null()).stderr(Stdio::null()).arg(command);
            match command {
                "chat" => mgm.arg(models.join("pocket")).args(["--max-new-tokens", "1", "--image"]).arg(&file),
                _ => {
                    mgm.arg(models.join("pocket-sdxl")).args(["--steps", "2", "--size", "64x64", "--out"]);
                    mgm.arg(folder.path().join("out.png")).arg("--init-image").arg(&file)
                }
            };
            let peak = peak_memory(mgm.args(["--prompt", "x"]));
            println!("{command}, {what}: {peak} MiB, pixels {pixels} MiB");
            if copies == 0.0 {
                *small = peak;
            } else {
                let bound = *small as f64 + copies * pixels + 0.25 * pixels;
                assert!(peak as f64 <= bound, "{command}, {what}: {peak} MiB, at most {bound}");
            }
        }
    }
}

#[test]
fn the_streamed_text_is_the_answer_and_a_seed_repeats_it() {
    let ask = |more: &[&str]| {
        let mut command = chat("no-image");
        command.args(["--prompt", "Who are you?", "--max-new-tokens", "12"]).args(more);
        run(command)
    };
    let report = |more: &[&str]| {
        let more: Vec<&str> = more.iter().copied().chain(["--json"]).collect();
        serde_json::from_str::<Value>(&ask(&more)).expect("JSON")["turns"][0].clone()
    };
    assert_eq!(ask(&["--temperature", "0"]).trim(), text(&report(&["--temperature", "0"])["text"]));
    let sampled = |seed| report(&["--temperature", "1", "--seed", seed])["token_ids"].clone();
    assert_eq!(sampled("7"), sampled("7"));
    assert_ne!(sampled("7"), sampled("8"));
}

#[test]
fn decoding_controls_and_what_they_report() {
    let ask = |more: &[&str]| {
        let mut command = chat("no-image");
        command.args(["--prompt", "Who are you?", "--max-new-tokens", "8"]).args(more);
        if !more.contains(&"--temperature") {
            command.args(["--temperature", "0"]);
        }
        command
    };
    let report = |more: &[&str]| {
        let report: Value = serde_json::from_str(&run(ask(&[more, &["--json"]].concat()))).expect("JSON");
        report["turns"][0].clone()
    };
    let ids = |value: &Value| -> Vec<u64> {
        value["token_ids"].as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id")).collect()
    };
    let whole = report(&[]);
    for absent in ["stop_reason", "logprobs", "alternatives"] {
        assert!(whole.get(absent).is_none(), "{absent}");
    }
    let forbidden = report(&["--logit-bias", &format!("{}=-100", ids(&whole)[0])]);
    assert!(!ids(&forbidden).contains(&ids(&whole)[0]));
    let stop: String = text(&whole["text"]).chars().skip(3).take(4).collect();
    let stopped = report(&["--stop", "no such text", "--stop", &stop]);
    assert_eq!((text(&stopped["stop_reason"]), text(&stopped["finish_reason"])), (stop.as_str(), "stop"));
    assert_eq!(text(&stopped["text"]), text(&whole["text"]).split(&stop).next().unwrap_or_default().trim());
    let several = ["--temperature", "1", "--seed", "4", "-n", "2", "--logprobs", "3", "--presence-penalty", "-0.5"];
    let several = report(&several);
    let alternatives = several["alternatives"].as_array().expect("a list");
    assert_eq!(alternatives.len(), 1);
    for answer in [&several, &alternatives[0]] {
        let entries = answer["logprobs"].as_array().expect("a list");
        assert_eq!(entries.iter().map(|entry| entry["id"].as_u64().expect("an id")).collect::<Vec<_>>(), ids(answer));
        for entry in entries {
            let logprob = |value: &Value| value["logprob"].as_f64().expect("a number");
            let top = entry["top_logprobs"].as_array().expect("a list");
            assert!(top.len() == 3 && logprob(&top[0]) >= logprob(entry) && logprob(&top[0]) <= 0.0);
        }
    }
    for (arguments, name) in [
        (["--repetition-penalty", "0"], "--repetition-penalty"),
        (["--min-p", "2"], "--min-p"),
        (["--presence-penalty", "-3"], "--presence-penalty"),
        (["--logprobs", "21"], "--logprobs"),
        (["-n", "0"], "-n"),
        (["--stop", ""], "--stop"),
        (["--logit-bias", "word=1"], "--logit-bias"),
        (["--logit-bias", "99999999=1"], "logit_bias has token 99999999"),
        (["--stop-token-id", "99999999"], "stop_token_ids has token 99999999"),
        (["--min-tokens", "9"], "min_tokens is 9"),
    ] {
        let output = ask(&[&arguments[..], &["--json"]].concat()).output().expect("the binary runs");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(name), "{arguments:?}: {message}");
    }
}

#[test]
fn a_conversation_through_a_pipe() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let copied = folder.path().join("a 'cat'.png");
    std::fs::copy(goldens().join("gemma-2b/image0.png"), &copied).expect("a copy");

    let mut command = chat("gemma-2b");
    command.args(["--temperature", "0", "--max-new-tokens", "4"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    let image = goldens().join("gemma-2b/image0.png").display().to_string();
    let lines = [
        "/image nowhere.png",
        "/nonsense",
        "/help",
        "/image 'unclosed.png",
        &format!("/image {image}"),
        &format!("/image \"{}\" nowhere2.png", copied.display()),
        &format!("/image {}", copied.display()),
        "What is it?",
        "And now?",
        "/reset",
        "//etc is a folder",
        "\u{0}bytes",
        "Hello",
        "/quit",
        "never read",
        "",
    ];
    // Latin-1.
    let input: Vec<u8> =
        lines.join("\n").bytes().flat_map(|b| if b == 0 { vec![b'n', 0xe4, 0xff] } else { vec![b] }).collect();
    child.stdin.take().expect("a pipe").write_all(&input).expect("the pipe takes it");
    let output = child.wait_with_output().expect("an end");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    for part in [
        "nowhere.png",
        "command /nonsense",
        "/draw TEXT ",
        "a quote is not closed",
        "nowhere2.png",
        "a new conversation",
        "not UTF-8",
    ] {
        assert!(errors.contains(part), "{part} in {errors}");
    }
    assert!(!errors.contains("command //etc"), "{errors}");
    // Four answers of at most four tokens each, which may contain line ends.
    assert!(String::from_utf8_lossy(&output.stdout).lines().count() >= 4, "{output:?}");
    assert!(!errors.contains("panicked") && !errors.contains("never read"), "{errors}");
}

/// Sends SIGINT once standard error contains `mark`, or after the first output without one. Returns the exit code, the
/// output and the errors.
#[cfg(unix)]
fn interrupt(mut command: Command, mark: Option<&str>) -> (Option<i32>, String, String) {
    use std::io::Read;

    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let (mut stdout, mut stderr) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
    let mut seen = String::new();
    let mut byte = [0];
    let mut errors = String::new();
    match mark {
        Some(mark) => {
            while !errors.contains(mark) && stderr.read(&mut byte).expect("a read") > 0 {
                errors.push(char::from(byte[0]));
            }
        }
        None => {
            assert_eq!(stdout.read(&mut byte).expect("a read"), 1);
            seen.push(char::from(byte[0]));
        }
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(kill.success());
    let _ = stdout.read_to_string(&mut seen);
    let _ = stderr.read_to_string(&mut errors);
    (child.wait().expect("an end").code(), seen, errors)
}

#[test]
#[cfg(unix)]
fn one_interrupt_ends_a_one_shot_chat_with_130() {
    // After the note about the adapter: while it loads, asks or answers.
    let mut early = chat("gemma-2b");
    early.args(["--prompt", "Hello", "--prompt", "And?", "--max-new-tokens", "200"]);
    let (code, _, errors) = interrupt(early, Some("software adapter"));
    assert_eq!(code, Some(130), "{errors}");
    let mut late = chat("gemma-2b");
    late.args(["--prompt", "Hello", "--prompt", "And?", "--max-new-tokens", "2000"]);
    let (code, _, errors) = interrupt(late, None);
    assert_eq!(code, Some(130), "{errors}");
}

#[test]
#[cfg(unix)]
fn one_interrupt_ends_a_conversation_that_waits_on_a_pipe() {
    let mut command = chat("gemma-2b");
    command.args(["--max-new-tokens", "4"]).stdin(Stdio::piped());
    // `kill` needs a moment to find it waiting: `/help` shows that it reads.
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"/help\n").expect("a line");
    let mut stderr = std::io::BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("Ctrl-C stops") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut stderr, &mut line).expect("a line") > 0);
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill").success());
    assert_eq!(child.wait().expect("an end").code(), Some(130));
    drop(input);
}

#[test]
fn every_released_model_can_be_planned() {
    for name in mgm::variants::NAMES {
        for precision in ["f32", "f16", "q8", "q4"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
            command.args(["bench", "--dry-run", "--precision", precision, "--synthetic", name]);
            let plan = run(command);
            assert!(plan.contains("all weights") && plan.contains("language model"), "{plan}");
        }
    }
}

#[test]
fn doctor_finds_every_kernel_correct() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    command.arg("doctor");
    let output = run(command);
    let kernels = output.lines().find_map(|line| line.strip_prefix("kernels")).expect("a line about kernels");
    let correct: usize = kernels.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number");
    assert!(correct > 30, "{output}");
}

#[test]
fn without_a_checkpoint_the_bundled_model_answers() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let bundled = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
        command.arg("chat").args(more).env("MGM_MODELS", folder.path()).stdin(Stdio::null());
        command.args(["--prompt", "Hello", "--temperature", "0", "--max-new-tokens", "4", "--json"]);
        command
    };
    let none = bundled(&[]).output().expect("the binary runs");
    assert_eq!(none.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&none.stderr).contains("no bundle \"pocket\""));

    let checkpoint = goldens().join("gemma-2b").join(text(&expected("gemma-2b")["checkpoint"]));
    let mut pack = Command::new(env!("CARGO_BIN_EXE_mgm"));
    pack.arg("pack").arg(&checkpoint).args(["--precision", "f32", "--out"]).arg(folder.path().join("pocket"));
    run(pack);
    let ids = |command| -> Value {
        let report: Value = serde_json::from_str(&run(command)).expect("one JSON object");
        report["turns"][0]["token_ids"].clone()
    };
    let named = checkpoint.to_str().expect("UTF-8");
    assert_eq!(ids(bundled(&[])), ids(bundled(&[named, "--precision", "f32"])));

    // No image model is bundled.
    let refused = bundled(&["--draw"]).output().expect("the binary runs");
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--image-model"));
}
