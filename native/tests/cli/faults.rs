//! Faults of the system: interrupts and kills, full disks, files that are none, lost devices, drivers that lack what
//! they should have. What was reported as done is not lost, nothing hangs or panics, and a second run finishes the
//! work. (The kills and full disks of `mgm pull` are in `hub_cache`, those of `mgm pack` in `pack`.)
#![cfg(unix)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{goldens, run_for};

fn mgm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    command.stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Products in the tuning file of a cache folder.
fn tuned(cache: &Path) -> usize {
    let files = fs::read_dir(cache.join("mgm")).expect("a cache").flatten().map(|entry| entry.path());
    let tuning = files.into_iter().find(|path| path.to_string_lossy().ends_with("tuning.json")).expect("a tuning file");
    let tuning: Value = serde_json::from_slice(&fs::read(tuning).expect("a file")).expect("JSON");
    tuning["products"].as_array().expect("a list").len()
}

#[test]
fn an_interrupted_or_killed_tune_keeps_what_it_measured() {
    for signal in ["INT", "KILL"] {
        let cache = TempDir::new().expect("a folder");
        let mut tune = mgm();
        tune.args(["tune"]).env("XDG_CACHE_HOME", cache.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut tune = tune.spawn().expect("the binary runs");
        let mut lines = BufReader::new(tune.stdout.take().expect("a pipe")).lines();
        lines.next().expect("an adapter").expect("a line");
        // Each line ends in a time in microseconds and a kernel; before them is the product.
        let mut products = BTreeSet::new();
        while products.len() < 3 {
            let line = lines.next().expect("a third product").expect("a line");
            products.insert(line.split_whitespace().take(6).collect::<Vec<_>>().join(" "));
        }
        let pid = tune.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().expect("kill").success());
        let printed: Vec<String> = lines.map_while(Result::ok).collect();
        let mut errors = String::new();
        tune.stderr.take().expect("a pipe").read_to_string(&mut errors).expect("UTF-8");
        let status = tune.wait().expect("the end");
        assert!(tuned(cache.path()) >= 2, "{printed:?}");
        if signal == "INT" {
            assert_eq!(status.code(), Some(130), "{errors}");
            assert!(printed.last().is_some_and(|line| line.starts_with("stopped; measured")), "{printed:?}");
            assert!(errors.contains("cancelled"), "{errors}");
        }
    }
}

#[test]
fn tune_checks_its_cache_before_it_measures() {
    // A file is no folder to write to, for root neither.
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "x").expect("a file");
    let output = run(mgm().arg("tune").env("XDG_CACHE_HOME", &file));
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    assert!(errors.contains("tuning.json") && errors.contains("XDG_CACHE_HOME"), "{errors}");
}

#[test]
fn drivers_that_the_environment_hides_are_named() {
    for name in ["VK_ICD_FILENAMES", "VK_DRIVER_FILES"] {
        let output = run(mgm().arg("info").env_remove("VK_DRIVER_FILES").env(name, "/nowhere/icd.json"));
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(name) && errors.contains("there is no /nowhere/icd.json"), "{errors}");
    }
}

/// llvmpipe on a processor without F16C cannot convert f16. On other adapters the variable has no effect.
#[test]
fn a_driver_without_f16_conversions_gives_the_same_answers() {
    let output = run(mgm().arg("doctor").env("GALLIUM_OVERRIDE_CPU_CAPS", "sse2"));
    let printed = text(&output.stdout);
    assert!(output.status.success(), "{printed}{}", text(&output.stderr));
    let mut chat = mgm();
    chat.args(["chat", "--temperature", "0", "--prompt", "What is this?", "--image"]);
    chat.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../pocket/examples/shark.png"));
    let plain = text(&run(&mut chat).stdout);
    let output = run(chat.env("GALLIUM_OVERRIDE_CPU_CAPS", "sse2"));
    assert_eq!(text(&output.stdout), plain, "{}", text(&output.stderr));
    assert!(plain.contains("shark"), "{plain}");
    // The note is there if the variable has an effect.
    assert_eq!(text(&output.stderr).contains("cannot convert f16"), printed.contains("cannot convert f16"));
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// `mgm` on a golden checkpoint.
fn golden(command: &str, checkpoint: &str) -> Command {
    let mut program = mgm();
    program.arg(command).arg(goldens().join(checkpoint));
    program
}

/// Questions, the first of them about images.
fn write_questions(folder: &Path, images: usize, count: usize) -> PathBuf {
    let mut rows = String::new();
    for index in 0..count {
        // A file with a few answers has more than 512 bytes.
        let mut row = json!({"question": "What is it? ".repeat(10), "answer": "x"});
        if index < images {
            let image = format!("{index}.png");
            image::RgbImage::from_pixel(8, 6, image::Rgb([9, 90, 40])).save(folder.join(&image)).expect("an image");
            row["image"] = image.into();
        }
        rows += &format!("{row}\n");
    }
    let data = folder.join("questions.jsonl");
    fs::write(&data, rows).expect("a file");
    data
}

/// What is in a file, if it is there.
type Content<'a> = Option<&'a [u8]>;

/// A command that writes the file `out` in a folder.
struct Job {
    name: &'static str,
    out: &'static str,
    command: fn(&Path) -> Command,
    /// Fails if a file after a kill is not what it may be, given the file before, and the one that a run alone writes.
    check: fn(before: Content<'_>, after: Content<'_>, complete: &[u8]),
}

fn eval_job(folder: &Path) -> Command {
    let data = folder.join("questions.jsonl");
    let data = if data.exists() { data } else { write_questions(folder, 0, 12) };
    let mut eval = golden("eval", "no-image/MGM-7B");
    eval.args(["--format", "jsonl", "--max-new-tokens", "8", "--batch", "1", "--no-tune", "--data"]).arg(data);
    eval.arg("--out").arg(folder.join("answers.jsonl"));
    eval
}

fn generate_job(folder: &Path) -> Command {
    let mut generate = golden("generate", "sdxl-base/sdxl");
    generate.args(["--prompt", "a gold mine", "--size", "64x64", "--steps", "3", "--seed", "7", "--out"]);
    generate.arg(folder.join("image.png"));
    generate
}

fn lines_of(bytes: Content<'_>) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(str::to_owned).collect()
}

fn jobs() -> [Job; 2] {
    [
        Job {
            name: "eval",
            out: "answers.jsonl",
            command: eval_job,
            check: |before, after, complete| {
                let (before, after, complete) = (lines_of(before), lines_of(after), lines_of(Some(complete)));
                assert!(before.is_subset(&after), "lost answers: {:?}", before.difference(&after));
                assert!(after.is_subset(&complete), "other answers: {:?}", after.difference(&complete));
            },
        },
        Job {
            name: "generate",
            out: "image.png",
            command: generate_job,
            check: |before, after, complete| {
                assert!(after == before || after == Some(complete), "neither the old image nor the new one");
            },
        },
    ]
}

/// The file that a job writes alone, its time, and a folder in which it has not run yet.
fn run_alone(job: &Job) -> (Vec<u8>, Duration, TempDir) {
    let alone = TempDir::new().expect("a folder");
    let started = Instant::now();
    must((job.command)(alone.path()));
    (fs::read(alone.path().join(job.out)).expect("a file"), started.elapsed(), TempDir::new().expect("a folder"))
}

fn must(mut command: Command) -> Output {
    let output = run(&mut command);
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    output
}

/// Kills at random moments: what was written is whole, and the next run finishes it.
#[test]
fn a_killed_eval_or_generate_is_finished_by_the_next_run() {
    for job in jobs() {
        let (complete, mut longest, folder) = run_alone(&job);
        let file = folder.path().join(job.out);
        let begin = || match job.name {
            // An image of this name from another day.
            "generate" => fs::write(&file, "an older image").expect("a file"),
            _ => drop(fs::remove_file(&file)),
        };
        begin();
        let mut random = Random(18);
        let mut kills = 0;
        for _ in 0..60 {
            let before = fs::read(&file).ok();
            let delay = Duration::from_millis(5 + random.below(longest.as_millis() as u64));
            let mut command = (job.command)(folder.path());
            let status = run_for(command.stdout(Stdio::null()).stderr(Stdio::null()), delay);
            assert!(status.is_none_or(|status| status.success()), "{}: {status:?}", job.name);
            (job.check)(before.as_deref(), fs::read(&file).ok().as_deref(), &complete);
            if status.is_none() {
                kills += 1;
            } else {
                // The first run was slower, or only the rest of the answers was missing.
                longest = longest * 3 / 4;
                begin();
            }
            if kills == 4 {
                break;
            }
        }
        assert_eq!(kills, 4, "{}", job.name);
        must((job.command)(folder.path()));
        assert!(fs::read(&file).expect("a file") == complete, "{}: another result", job.name);
    }
}

/// The command under `ulimit -f`: no file may have more than this number of blocks of 512 bytes.
fn limited(command: &Command, blocks: u32) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -f {blocks}; exec \"$0\" \"$@\"")]).arg(command.get_program());
    shell.args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// A disk that fills up: the error names the file, what was written stays, and a run with room finishes it.
#[test]
fn a_full_disk_is_an_error_with_the_files_name() {
    for (job, blocks) in jobs().iter().flat_map(|job| [(job, 0), (job, if job.name == "eval" { 3 } else { 20 })]) {
        let (complete, _, folder) = run_alone(job);
        let file = folder.path().join(job.out);
        // The questions are written before.
        let command = (job.command)(folder.path());
        let output = run(&mut limited(&command, blocks));
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{}, {blocks}: {errors}", job.name);
        assert!(errors.contains(job.out) && errors.contains("error: "), "{}, {blocks}: {errors}", job.name);
        (job.check)(None, fs::read(&file).ok().as_deref(), &complete);
        must((job.command)(folder.path()));
        assert!(fs::read(&file).expect("a file") == complete, "{}, {blocks}: another result", job.name);
        let parts = fs::read_dir(folder.path()).expect("a folder").flatten();
        assert!(parts.into_iter().all(|entry| !entry.file_name().to_string_lossy().ends_with(".part")));
    }
    let cache = TempDir::new().expect("a folder");
    let mut tune = mgm();
    tune.arg("tune").env("XDG_CACHE_HOME", cache.path());
    let output = run(&mut limited(&tune, 0));
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("tuning.json"), "{errors}");
    // Caches and the history are no reason to fail.
    let mut chat = golden("chat", "no-image/MGM-7B");
    chat.args(["--prompt", "Hello", "--max-new-tokens", "4", "--temperature", "0"]).env("XDG_CACHE_HOME", cache.path());
    let expected = must(limited(&chat, 1_000_000));
    let output = must(limited(&chat, 0));
    assert_eq!(text(&output.stdout), text(&expected.stdout));
}

/// `mgm chat` on a terminal, with its history in `state`.
#[cfg(target_os = "linux")]
struct Terminal {
    script: std::process::Child,
    output: BufReader<std::process::ChildStdout>,
    process: String,
}

#[cfg(target_os = "linux")]
impl Terminal {
    fn open(state: &Path) -> Self {
        let process = state.join("process");
        let _ = fs::remove_file(&process);
        let checkpoint = goldens().join("no-image/MGM-7B");
        let command = format!(
            "echo $$ > '{}'; exec '{}' chat '{}' --max-new-tokens 1 --no-tune",
            process.display(),
            env!("CARGO_BIN_EXE_mgm"),
            checkpoint.display()
        );
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]).env("XDG_STATE_HOME", state).env("TERM", "xterm");
        let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script (bsdutils)");
        let output = BufReader::new(script.stdout.take().expect("a pipe"));
        let mut terminal = Self { script, output, process: String::new() };
        terminal.wait_for("> ");
        terminal.process = fs::read_to_string(process).expect("a process").trim().to_owned();
        terminal
    }

    fn wait_for(&mut self, text: &str) {
        let mut seen = Vec::new();
        while !seen.ends_with(text.as_bytes()) {
            let mut byte = [0];
            self.output.read_exact(&mut byte).expect("more output");
            seen.push(byte[0]);
        }
    }

    fn enter(&mut self, line: &str) {
        use std::io::Write;

        let input = self.script.stdin.as_mut().expect("a pipe");
        input.write_all(format!("{line}\r").as_bytes()).expect("a line");
    }

    fn kill(mut self) {
        assert!(Command::new("kill").args(["-KILL", &self.process]).status().expect("kill").success());
        let _ = self.script.wait();
    }
}

/// Lines of a history, without its first, which is its version.
#[cfg(target_os = "linux")]
fn history(state: &Path) -> Vec<String> {
    let text = fs::read(state.join("mgm/history")).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().skip(1).map(str::to_owned).collect()
}

/// A conversation that is killed while it answers has stored its lines, and so have those before it, also in a history
/// as long as it gets, and in one that a full disk cut inside a character.
#[cfg(target_os = "linux")]
#[test]
fn a_killed_conversation_keeps_its_history() {
    let state = TempDir::new().expect("a folder");
    fs::create_dir(state.path().join("mgm")).expect("a folder");
    let mut expected: Vec<String> = (0..990).map(|index| format!("question {index}")).collect();
    fs::write(state.path().join("mgm/history"), format!("#V2\n{}\nca\u{e9}", expected.join("\n"))).expect("a file");
    let cut = fs::read(state.path().join("mgm/history")).expect("a file");
    fs::write(state.path().join("mgm/history"), &cut[..cut.len() - 1]).expect("a file");
    expected.push("ca\u{fffd}".to_owned());
    let mut random = Random(5);
    for round in 0..3 {
        let mut terminal = Terminal::open(state.path());
        for line in 0..2 {
            let line = format!("/unknown {round} {line}");
            terminal.enter(&line);
            terminal.wait_for("unknown command");
            terminal.wait_for("> ");
            expected.push(line);
        }
        // Killed while the line is read, stored or answered.
        let line = format!("What is {round}?");
        terminal.enter(&line);
        std::thread::sleep(Duration::from_millis(random.below(30)));
        terminal.kill();
        let found = history(state.path());
        if found.len() > expected.len() {
            expected.push(line);
        }
        assert_eq!(found, expected, "round {round}");
    }
}

/// What is no file, or cannot be read, in place of each file that a command reads or writes.
#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_read_or_written_is_named_at_once() {
    let folder = TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let pipe = path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    fs::create_dir(path("folder")).expect("a folder");
    fs::create_dir(path("folder.png")).expect("a folder");
    let png = path("image.png");
    image::RgbImage::new(8, 8).save(&png).expect("an image");
    let data = write_questions(folder.path(), 0, 1);
    // Its length is 0, and reading it is an I/O error.
    let memory = Path::new("/proc/self/mem");
    let chat = |file: &Path| {
        let mut chat = mgm();
        chat.arg("chat").arg(file).args(["--prompt", "Hello"]);
        chat
    };
    let with_image = |file: &Path| {
        let mut chat = golden("chat", "gemma-2b/MGM-2B");
        chat.args(["--prompt", "Hello", "--image"]).arg(file);
        chat
    };
    let eval = |data: &Path, out: &Path| {
        let mut eval = golden("eval", "gemma-2b/MGM-2B");
        eval.args(["--format", "jsonl", "--data"]).arg(data).arg("--out").arg(out);
        eval
    };
    let generate = |option: &str, file: &Path| {
        let mut generate = golden("generate", "sdxl-base/sdxl");
        generate.args(["--prompt", "x", "--steps", "1", "--size", "64x64", option]).arg(file);
        generate
    };
    let pack = |out: &Path| {
        let mut pack = golden("pack", "no-image/MGM-7B");
        pack.arg("--out").arg(out);
        pack
    };
    let bundle = |file: &str| {
        let folder = path(&format!("bundle with {file}"));
        fs::create_dir_all(&folder).expect("a folder");
        assert!(Command::new("mkfifo").arg(folder.join(file)).status().expect("mkfifo").success());
        folder
    };
    let answers = path("answers.jsonl");
    let mut rows = vec![
        (chat(&pipe), "pipe"),
        (chat(memory), "/proc/self/mem"),
        (chat(&path("folder")), "folder"),
        (with_image(&pipe), "pipe"),
        (with_image(memory), "/proc/self/mem"),
        (with_image(&path("folder")), "folder"),
        (eval(&path("folder"), &answers), "folder"),
        (eval(memory, &answers), "/proc/self/mem"),
        (eval(Path::new("/dev/zero"), &answers), "/dev/zero"),
        (eval(&data, &pipe), "pipe"),
        (eval(&data, &path("folder")), "folder"),
        (eval(&data, Path::new("/dev/full")), "/dev/full"),
        (generate("--lora", &pipe), "pipe"),
        (generate("--lora", memory), "/proc/self/mem"),
        (generate("--lora", &path("folder")), "folder"),
        (generate("--init-image", &pipe), "pipe"),
        (generate("--latents", &pipe), "pipe"),
        (generate("--latents", &path("folder")), "folder"),
        (generate("--vae", &pipe), "pipe"),
        (generate("--out", &path("folder.png")), "folder.png"),
        (pack(&png), "image.png"),
        (pack(&bundle("bundle.json.part")), "bundle.json.part"),
        (pack(&bundle("tokenizer.model")), "tokenizer.model"),
        (pack(&bundle("model-00001-of-00002.safetensors")), "model-00001-of-00002.safetensors"),
        (chat(&bundle("bundle.json")), "bundle.json"),
        (chat(&bundle("config.json")), "config.json"),
    ];
    // Root may read everything.
    let unreadable = path("unreadable");
    fs::write(&unreadable, "x").expect("a file");
    fs::set_permissions(&unreadable, std::os::unix::fs::PermissionsExt::from_mode(0o0)).expect("permissions");
    if fs::File::open(&unreadable).is_err() {
        rows.extend([
            (chat(&unreadable), "unreadable"),
            (with_image(&unreadable), "unreadable"),
            (eval(&unreadable, &answers), "unreadable"),
            (eval(&data, &unreadable), "unreadable"),
            (generate("--lora", &unreadable), "unreadable"),
        ]);
    }
    let mut failures = Vec::new();
    for (command, name) in &mut rows {
        let started = Instant::now();
        let errors_file = path("errors");
        command.stdout(Stdio::null()).stderr(fs::File::create(&errors_file).expect("a file"));
        let status = run_for(command, Duration::from_secs(20));
        let errors = fs::read_to_string(&errors_file).expect("UTF-8");
        let good = status.is_some_and(|status| status.code() == Some(2))
            && errors.contains("error: ")
            && errors.contains(*name)
            && !errors.contains("panicked");
        if !good || started.elapsed() > Duration::from_secs(5) {
            failures.push(format!("{command:?}: {status:?} after {:?}: {errors}", started.elapsed()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Every file of a bundle with a flipped bit, or without its end.
#[test]
fn verify_names_the_damaged_file_of_a_bundle() {
    let folder = TempDir::new().expect("a folder");
    let bundle = folder.path().join("bundle");
    let mut pack = golden("pack", "gemma-2b/MGM-2B");
    pack.args(["--shard-size", "256K", "--out"]).arg(&bundle);
    must(pack);
    let verify = || {
        let mut inspect = mgm();
        inspect.arg("inspect").arg(&bundle).arg("--verify");
        run(&mut inspect)
    };
    assert!(verify().status.success());
    let manifest: Value = serde_json::from_slice(&fs::read(bundle.join("bundle.json")).expect("a file")).expect("JSON");
    let files = ["files", "shards"].into_iter().flat_map(|list| manifest[list].as_array().expect("a list"));
    let files: Vec<&str> = files.map(|entry| entry["file"].as_str().expect("a name")).collect();
    assert!(files.len() > 5, "{files:?}");
    let mut random = Random(3);
    for file in files {
        let whole = fs::read(bundle.join(file)).expect("a file");
        let mut flipped = whole.clone();
        flipped[random.below(whole.len() as u64) as usize] ^= 1 << random.below(8);
        let cut = whole[..random.below(whole.len() as u64) as usize].to_vec();
        for damaged in [flipped, cut] {
            fs::write(bundle.join(file), &damaged).expect("a file");
            let output = verify();
            let errors = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{file}: {errors}");
            assert!(errors.contains(file) && !errors.contains("panicked"), "{file}: {errors}");
        }
        fs::write(bundle.join(file), whole).expect("a file");
    }
    assert!(verify().status.success());
}

/// What a command prints and writes if its device is lost at every `step`th submission, and if it is lost again at
/// once. Between them these are the towers, patch info mining, prefill, decoding, text encoders, autoencoder, and
/// denoising.
#[test]
fn a_device_lost_at_any_stage_changes_no_result() {
    let folder = TempDir::new().expect("a folder");
    let data = write_questions(folder.path(), 1, 2);
    let out = folder.path().join("out");
    let init = folder.path().join("init.png");
    let pixels = (0..64 * 64 * 3).map(|at| (at * 7 % 251) as u8).collect();
    image::RgbImage::from_raw(64, 64, pixels).expect("an image").save(&init).expect("a file");
    type Make = Box<dyn Fn() -> Command>;
    let commands: [(&str, u64, Make); 3] = [
        ("chat", 7, {
            let image = goldens().join("gemma-2b/image0.png");
            Box::new(move || {
                let mut chat = golden("chat", "gemma-2b/MGM-2B");
                chat.args(["--prompt", "What is it?", "--prompt", "And?", "--max-new-tokens", "6", "--no-tune"]);
                chat.args(["--temperature", "0", "--image"]).arg(&image);
                chat
            })
        }),
        ("eval", 11, {
            let out = out.clone();
            Box::new(move || {
                let _ = fs::remove_file(&out);
                let mut eval = golden("eval", "gemma-2b/MGM-2B");
                eval.args(["--format", "jsonl", "--max-new-tokens", "3", "--batch", "2", "--no-tune", "--data"])
                    .arg(&data);
                eval.arg("--out").arg(&out);
                eval
            })
        }),
        ("generate", 2, {
            let out = out.with_extension("png");
            Box::new(move || {
                let _ = fs::remove_file(&out);
                let mut generate = golden("generate", "sdxl-base/sdxl");
                generate.args(["--prompt", "a gold mine", "--size", "64x64", "--steps", "6", "--seed", "7"]);
                generate.arg("--init-image").arg(&init).arg("--out").arg(&out);
                generate
            })
        }),
    ];
    for (name, step, command) in commands {
        let result = |lost: Option<String>| {
            let mut command = command();
            if let Some(lost) = &lost {
                command.env("MGM_LOSE_DEVICE", lost);
            }
            let output = must(command);
            let files: BTreeMap<PathBuf, Vec<u8>> = ["out", "out.png"]
                .into_iter()
                .filter_map(|file| Some((file.into(), fs::read(folder.path().join(file)).ok()?)))
                .collect();
            let printed = if name == "chat" { text(&output.stdout) } else { String::new() };
            ((printed, files), text(&output.stderr).matches("opening it again").count())
        };
        let (expected, _) = result(None);
        let mut submission = 0;
        loop {
            let (found, losses) = result(Some(submission.to_string()));
            assert!(found == expected, "{name}: submission {submission}");
            if losses == 0 {
                break;
            }
            submission += step;
        }
        println!("{name}: {submission} submissions");
        assert!(submission >= 4, "{name}: {submission} submissions");
        let (found, losses) = result(Some(format!("{},1", submission / 2)));
        assert!(found == expected && losses == 2, "{name}: {losses} losses");
    }
}
