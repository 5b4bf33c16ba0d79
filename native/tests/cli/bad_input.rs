//! Bad input gets a clear message on standard error and exit code 2, not a panic. Unusual but valid input gets an
//! answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::common::{copy, goldens};

const SHARD: &str = "MGM-2B/model-00002-of-00002.safetensors";
const FIRST_SHARD: &str = "MGM-2B/model-00001-of-00002.safetensors";
/// What Git leaves in place of a large file that Git LFS has not downloaded.
const LFS_POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
/// A matrix in [`SHARD`].
const SOME_MATRIX: &str = "model.layers.2.mlp.up_proj.weight";
const CLIP: &str = "OpenAI/clip-vit-large-patch14-336/model.safetensors";
const CONVNEXT: &str = "OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup/open_clip_pytorch_model.bin";

fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(file)
}

/// A copy of the gemma-2b golden case for a test to damage.
fn copy_of_case() -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    copy(&goldens().join("gemma-2b"), folder.path());
    folder
}

fn chat(case: &Path, more: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    command.arg("chat").arg(case.join("MGM-2B"));
    command.args(["--prompt", "What is this?", "--max_completion_tokens", "3", "--temperature", "0"]);
    command.args(more).stdin(Stdio::null());
    command
}

fn run(mut command: Command) -> (Option<i32>, Vec<u8>, String) {
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    (status.code(), stdout, String::from_utf8_lossy(&stderr).into_owned())
}

fn replace(from: &Path, to: &Path) {
    fs::copy(from, to).expect("a copy");
}

/// A safetensors file's JSON header and the offset of its data.
fn header(bytes: &[u8]) -> (String, usize) {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    (String::from_utf8(bytes[8..8 + length].to_vec()).expect("a JSON header"), 8 + length)
}

/// Rewrites a tensor's entry in the header of a safetensors file.
fn edit_header(file: &Path, tensor: &str, from: &str, to: &str) {
    let bytes = fs::read(file).expect("a shard");
    let (text, start) = header(&bytes);
    let at = text.find(&format!("\"{tensor}\"")).unwrap_or_else(|| panic!("{tensor} in {}", file.display()));
    let (before, entry) = text.split_at(at);
    assert!(entry.contains(from), "{from} in {entry:.120}");
    let edited = format!("{before}{}", entry.replacen(from, to, 1));
    let mut out = (edited.len() as u64).to_le_bytes().to_vec();
    out.extend(edited.as_bytes());
    out.extend(&bytes[start..]);
    fs::write(file, out).expect("a shard");
}

/// Overwrites the first element of an f32 tensor.
fn poke(file: &Path, tensor: &str, value: f32) {
    let mut bytes = fs::read(file).expect("a shard");
    let (text, start) = header(&bytes);
    let json: serde_json::Value = serde_json::from_str(&text).expect("a JSON header");
    let offset = json[tensor]["data_offsets"][0].as_u64().expect("an offset") as usize;
    bytes[start + offset..][..4].copy_from_slice(&value.to_le_bytes());
    fs::write(file, bytes).expect("a shard");
}

fn edit_config(case: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let file = case.join("MGM-2B/config.json");
    let mut json = serde_json::from_slice(&fs::read(&file).expect("a configuration")).expect("JSON");
    change(&mut json);
    fs::write(file, serde_json::to_vec(&json).expect("JSON")).expect("a configuration");
}

/// One kind of bad input.
struct Row {
    what: &'static str,
    /// Damages the case.
    damage: fn(&Path),
    /// More arguments.
    arguments: Vec<String>,
    /// Parts of the expected message, in any case.
    message: &'static [&'static str],
}

fn damaged(what: &'static str, damage: fn(&Path), message: &'static [&'static str]) -> Row {
    Row { what, damage, arguments: Vec::new(), message }
}

fn called(what: &'static str, arguments: &[&str], message: &'static [&'static str]) -> Row {
    Row { what, damage: |_| {}, arguments: arguments.iter().map(|word| (*word).to_owned()).collect(), message }
}

fn rows() -> Vec<Row> {
    let not_an_image = data("data/images/README.md").display().to_string();
    let long = "word ".repeat(9000);
    vec![
        damaged(
            "truncated shard",
            |case| {
                let bytes = fs::read(case.join(SHARD)).expect("a shard");
                fs::write(case.join(SHARD), &bytes[..bytes.len() / 2]).expect("a shard");
            },
            &["model-00002-of-00002.safetensors", "malformed"],
        ),
        damaged(
            "index naming a missing file",
            |case| fs::remove_file(case.join(FIRST_SHARD)).expect("a shard"),
            &["model-00001-of-00002.safetensors", "missing"],
        ),
        damaged(
            "wrong shape",
            |case| edit_header(&case.join(SHARD), "model.norm.weight", "[96]", "[48,2]"),
            &["model.norm.weight", "[48, 2]", "[96]"],
        ),
        damaged(
            "wrong element type",
            |case| edit_header(&case.join(SHARD), "model.norm.weight", "F32", "I32"),
            &["model.norm.weight", "I32"],
        ),
        damaged(
            "NaN in a norm",
            |case| poke(&case.join(SHARD), "model.norm.weight", f32::NAN),
            &["model.norm.weight", "NaN"],
        ),
        damaged(
            "infinity in CLIP",
            |case| poke(&case.join(CLIP), "vision_model.encoder.layers.0.layer_norm1.weight", f32::INFINITY),
            &["layers.0.layer_norm1.weight", "inf"],
        ),
        damaged(
            "unknown architecture",
            |case| edit_config(case, |config| *config = serde_json::json!({"model_type": "bert", "hidden_size": 96})),
            &["bert", "not supported"],
        ),
        damaged(
            "a configuration that is not JSON",
            |case| fs::write(case.join("MGM-2B/config.json"), "{").expect("a file"),
            &["config.json"],
        ),
        damaged(
            "no heads",
            |case| edit_config(case, |config| config["num_attention_heads"] = 0.into()),
            &["num_attention_heads"],
        ),
        damaged(
            "tokenizer missing",
            |case| {
                fs::remove_file(case.join("MGM-2B/tokenizer.json")).expect("a tokenizer");
                fs::remove_file(case.join("MGM-2B/tokenizer.model")).expect("a tokenizer");
            },
            &["tokenizer.model", "missing"],
        ),
        damaged(
            "towers missing",
            |case| fs::remove_dir_all(case.join("OpenAI")).expect("towers"),
            &["clip-vit-large-patch14-336", "--vision-tower DIR"],
        ),
        damaged(
            "malicious pickle",
            |case| replace(&data("data/weights/malicious.bin"), &case.join(CONVNEXT)),
            &["open_clip_pytorch_model.bin", "system"],
        ),
        damaged(
            "zip bomb",
            |case| replace(&data("data/weights/bomb.bin"), &case.join(CONVNEXT)),
            &["open_clip_pytorch_model.bin", "compressed"],
        ),
        damaged(
            "a block of ConvNeXt without one of its tensors",
            |case| {
                let (from, to) = (b"stages.2.blocks.1.conv_dw.weight", b"stages.2.blocks.1.conv_xx.weight");
                let mut bytes = fs::read(case.join(CONVNEXT)).expect("a pickle");
                let at = bytes.windows(from.len()).position(|window| window == from).expect("its name");
                bytes[at..at + to.len()].copy_from_slice(to);
                fs::write(case.join(CONVNEXT), bytes).expect("a pickle");
            },
            &["stages.2.blocks.1.conv_dw.weight", "missing"],
        ),
        damaged(
            "a layer of CLIP without one of its tensors, and no configuration",
            |case| {
                let folder = case.join(CLIP).parent().expect("a folder").to_owned();
                fs::remove_file(folder.join("config.json")).expect("a configuration");
                edit_header(&case.join(CLIP), "vision_model.encoder.layers.2.mlp.fc1.weight", "fc1", "fcx");
            },
            &["layers.2.mlp.fc1.weight", "missing"],
        ),
        damaged(
            "a weight beyond f16",
            |case| poke(&case.join(SHARD), SOME_MATRIX, 1e30),
            &[SOME_MATRIX, "f16", "65504"],
        ),
        damaged(
            "features of the class token",
            |case| edit_config(case, |config| config["mm_vision_select_feature"] = "cls_patch".into()),
            &["mm_vision_select_feature", "cls_patch"],
        ),
        damaged(
            "tiles without kernels",
            |case| {
                edit_config(case, |config| {
                    config["image_grid"] = 3.into();
                    config["image_global"] = true.into();
                    config["image_size_aux"] = 2304.into();
                });
            },
            &["patch info mining", "not supported"],
        ),
        damaged(
            "no such checkpoint",
            |case| fs::remove_dir_all(case.join("MGM-2B")).expect("a folder"),
            &["config.json", "missing"],
        ),
        called("a value for a flag without one", &["--json=yes"], &["json"]),
        called("not an image", &["--image", &not_an_image], &["README.md", "image"]),
        called("no such image", &["--image", "/nowhere/photo.jpg"], &["/nowhere/photo.jpg", "check the path"]),
        called("a folder as image", &["--image", "/"], &["image /", "a folder"]),
        called("no such decoding", &["--image-decoding", "raw"], &["raw", "corrected, reference"]),
        damaged(
            "a Git LFS pointer instead of a shard",
            |case| fs::write(case.join(SHARD), LFS_POINTER).expect("a pointer"),
            &["model-00002-of-00002.safetensors", "git lfs pull"],
        ),
        damaged(
            "a Git LFS pointer instead of a tokenizer",
            |case| {
                fs::write(case.join("MGM-2B/tokenizer.json"), LFS_POINTER).expect("a pointer");
                fs::write(case.join("MGM-2B/tokenizer.model"), LFS_POINTER).expect("a pointer");
            },
            &["MGM-2B/tokenizer.", "git lfs pull"],
        ),
        damaged(
            "a Git LFS pointer instead of a configuration",
            |case| fs::write(case.join("MGM-2B/config.json"), LFS_POINTER).expect("a pointer"),
            &["MGM-2B/config.json", "git lfs pull"],
        ),
        // Without a device: what is wrong with the files comes first.
        Row {
            what: "a tokenizer's configuration, before a GPU is opened",
            damage: |case| fs::write(case.join("MGM-2B/tokenizer_config.json"), "{").expect("a file"),
            arguments: vec!["--adapter".to_owned(), "Voodoo 3".to_owned()],
            message: &["tokenizer_config.json"],
        },
        Row {
            what: "a generation configuration, before a GPU is opened",
            damage: |case| {
                let text = "{\"top_p\": NaN}";
                fs::write(case.join("MGM-2B/generation_config.json"), text).expect("a file");
            },
            arguments: vec!["--adapter".to_owned(), "Voodoo 3".to_owned()],
            message: &["generation_config.json", "top_p"],
        },
        Row {
            what: "a tensor's shape, before a GPU is opened",
            damage: |case| edit_header(&case.join(SHARD), "model.norm.weight", "[96]", "[48,2]"),
            arguments: vec!["--adapter".to_owned(), "Voodoo 3".to_owned()],
            message: &["model.norm.weight", "[48, 2]"],
        },
        damaged(
            "a tensor that only the index has",
            |case| edit_header(&case.join(SHARD), SOME_MATRIX, "up_proj", "xp_proj"),
            &[SOME_MATRIX, "missing"],
        ),
        called("a prompt beyond the context", &["--prompt", &long], &["tokens", "context"]),
        called(
            "an adapter with little memory",
            &["--gpu-memory", "1M"],
            &["not enough GPU memory", "1.0 MiB available"],
        ),
        called("no such adapter", &["--adapter", "Voodoo 3"], &["voodoo 3"]),
        called("no such precision", &["--precision", "q3"], &["q3", "q4"]),
        called("no such template", &["--conversation", "alpaca"], &["alpaca", "vicuna_v1"]),
        called("a probability of 2", &["--top-p", "2"], &["probability"]),
    ]
}

#[test]
fn bad_input_gets_a_message_and_exit_code_2() {
    let mut failures = Vec::new();
    for Row { what, damage, arguments, message } in rows() {
        let case = copy_of_case();
        damage(case.path());
        let (code, _, errors) = run(chat(case.path(), &arguments));
        if code != Some(2) {
            failures.push(format!("{what}: exit code {code:?}: {errors}"));
        }
        let lower = errors.to_lowercase();
        if lower.contains("panicked") || !lower.contains("error: ") {
            failures.push(format!("{what}: {errors}"));
        }
        for part in message.iter().filter(|part| !lower.contains(&part.to_lowercase())) {
            failures.push(format!("{what}: {part:?} is not in {errors}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn tiny_and_huge_images_are_answered() {
    let case = copy_of_case();
    let folder = TempDir::new().expect("a temporary folder");
    for (width, height) in [(1, 1), (12000, 9000)] {
        let file = folder.path().join(format!("{width}x{height}.png"));
        image::RgbImage::from_pixel(width, height, image::Rgb([200, 40, 90])).save(&file).expect("a PNG file");
        let arguments = ["--image".to_owned(), file.display().to_string(), "--json".to_owned()];
        let (code, out, errors) = run(chat(case.path(), &arguments));
        assert_eq!(code, Some(0), "{width} x {height}: {errors}");
        let report: serde_json::Value = serde_json::from_slice(&out).expect("one JSON object");
        assert!(report["turns"][0]["prompt_tokens"].as_u64().is_some_and(|tokens| tokens > 576));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let case = copy_of_case();
    let pipe = case.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let sparse = case.path().join("sparse.png");
    fs::File::create(&sparse).and_then(|file| file.set_len(3 << 30)).expect("a long file");
    let started = std::time::Instant::now();
    for (file, message) in [
        (Path::new("/dev/zero"), "not a regular file"),
        (&pipe, "not a regular file"),
        (&sparse, "the file has 3221225472 bytes"),
    ] {
        let (code, _, errors) = run(chat(case.path(), &["--image".to_owned(), file.display().to_string()]));
        assert_eq!(code, Some(2), "{errors}");
        assert!(errors.contains(message) && errors.contains(&file.display().to_string()), "{errors}");
    }
    fs::rename(&pipe, case.path().join(SHARD)).expect("a pipe instead of a shard");
    let (code, _, errors) = run(chat(case.path(), &[]));
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("model-00002-of-00002.safetensors: this is not a regular file"), "{errors}");
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
}

#[test]
fn flipped_bits_are_found_by_their_checksums() {
    let folder = TempDir::new().expect("a temporary folder");
    let inspect = |path: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
        command.arg("inspect").arg(path).arg("--verify");
        run(command)
    };
    // A bundle.
    let bundle = folder.path().join("pocket");
    copy(&data("../models/pocket"), &bundle);
    let (code, out, errors) = inspect(&bundle);
    let out = String::from_utf8_lossy(&out).into_owned();
    assert_eq!(code, Some(0), "{errors}");
    assert!(out.contains("verified: ") && out.contains("by SHA-256 (bundle.json)"), "{out}");
    let shard = fs::read_dir(&bundle).expect("a bundle").map(|entry| entry.expect("a file").path());
    let shard = shard.filter(|path| path.extension().is_some_and(|end| end == "safetensors")).min().expect("a shard");
    let mut bytes = fs::read(&shard).expect("a shard");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&shard, bytes).expect("a shard");
    let (code, _, errors) = inspect(&bundle);
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains(&shard.display().to_string()) && errors.contains("damaged or was changed"), "{errors}");
    // A checkpoint has a total size in its index, or nothing.
    let case = copy_of_case();
    let (code, out, errors) = inspect(&case.path().join("MGM-2B"));
    let out = String::from_utf8_lossy(&out).into_owned();
    assert_eq!(code, Some(0), "{errors}");
    assert!(out.contains("verified: the total size of 1 indices"), "{out}");
    let index = case.path().join("MGM-2B/model.safetensors.index.json");
    let text = fs::read_to_string(&index).expect("an index");
    fs::write(&index, text.replacen("\"total_size\": ", "\"total_size\": 1", 1)).expect("an index");
    let (code, _, errors) = inspect(&case.path().join("MGM-2B"));
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("do not belong together"), "{errors}");
    // In the Hugging Face cache the names of blobs are checksums.
    #[cfg(unix)]
    {
        use sha2::{Digest, Sha256};
        let snapshot = case.path().join("models--a--b/snapshots/0123");
        let blobs = case.path().join("models--a--b/blobs");
        fs::create_dir_all(&blobs).expect("a folder");
        fs::create_dir_all(&snapshot).expect("a folder");
        fs::write(&index, &text).expect("an index");
        let mut last = PathBuf::new();
        for entry in fs::read_dir(case.path().join("MGM-2B")).expect("a folder") {
            let file = entry.expect("a file").path();
            let sum: String =
                Sha256::digest(fs::read(&file).expect("a file")).iter().map(|byte| format!("{byte:02x}")).collect();
            last = blobs.join(&sum);
            fs::copy(&file, &last).expect("a blob");
            let link = snapshot.join(file.file_name().expect("a name"));
            std::os::unix::fs::symlink(Path::new("../../blobs").join(sum), link).expect("a link");
        }
        copy(&case.path().join("OpenAI"), &case.path().join("models--a--b/OpenAI"));
        let (code, out, errors) = inspect(&case.path().join("models--a--b"));
        let out = String::from_utf8_lossy(&out).into_owned();
        assert_eq!(code, Some(0), "{errors}");
        assert!(out.contains("by SHA-256 (Hugging Face cache)"), "{out}");
        let mut bytes = fs::read(&last).expect("a blob");
        bytes.push(b'\n');
        fs::write(&last, bytes).expect("a blob");
        let (code, _, errors) = inspect(&snapshot);
        assert_eq!(code, Some(2), "{errors}");
        assert!(errors.contains("damaged or was changed"), "{errors}");
    }
    fs::write(&index, text.replacen("total_size", "total", 1)).expect("an index");
    let (code, _, errors) = inspect(&case.path().join("MGM-2B"));
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("nothing to verify"), "{errors}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_reported() {
    let case = copy_of_case();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has /dev/full");
    // An answer is printed even if notes cannot be.
    let mut command = chat(case.path(), &["--json".to_owned()]);
    command.stderr(full());
    let (code, out, _) = run(command);
    assert_eq!(code, Some(0));
    serde_json::from_slice::<serde_json::Value>(&out).expect("one JSON object");
    for arguments in [vec!["--json".to_owned()], vec![]] {
        let mut command = chat(case.path(), &arguments);
        command.stdout(full());
        let (code, _, errors) = run(command);
        assert_eq!(code, Some(2), "{errors}");
        assert!(errors.contains("writing the output") && !errors.contains("panicked"), "{errors}");
    }
}
