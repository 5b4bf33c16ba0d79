//! The cache of Hugging Face's tools: `mgm pull` fills it as huggingface_hub does, and every command finds models in
//! it. Several downloads at a time, kills, full disks and changed files leave it whole.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::run_for;
use crate::hub::{COMMIT, Faults, TOKEN, error_of, etag, files, golden, hub, is_weights, must};
use crate::pull::answers_as_expected;

const MODEL: &str = "someone/MGM-2B";
const CLIP: &str = "openai/clip-vit-large-patch14-336";
const CONVNEXT: &str = "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup";

/// The folder of a repository in the cache of this `HF_HOME`.
fn repo(home: &Path, name: &str) -> PathBuf {
    home.join("hub").join(format!("models--{}", name.replace('/', "--")))
}

/// The files that a pull of the golden model downloads, by repository.
fn expected_files() -> [(&'static str, BTreeMap<String, Vec<u8>>); 3] {
    let tower = |name: &str| files(&golden().join("OpenAI").join(name));
    [
        (MODEL, files(&golden().join("MGM-2B"))),
        (CLIP, tower("clip-vit-large-patch14-336")),
        (CONVNEXT, tower("openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup")),
    ]
}

/// Asserts that the cache has exactly the files of huggingface_hub's layout, and their content.
fn assert_cached(home: &Path) {
    for (name, expected) in expected_files() {
        let repo = repo(home, name);
        assert_eq!(fs::read_to_string(repo.join("refs/main")).expect("a commit"), COMMIT, "{name}");
        let snapshot = repo.join("snapshots").join(COMMIT);
        let found = files(&snapshot);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        let mut etags = Vec::new();
        for (file, bytes) in &expected {
            assert!(found[file] == *bytes, "{name}/{file} differs");
            let etag = etag(file, bytes);
            if cfg!(unix) {
                let link = fs::read_link(snapshot.join(file)).expect("a link");
                assert_eq!(link, Path::new("../../blobs").join(&etag), "{name}/{file}");
            }
            etags.push(etag);
        }
        etags.sort();
        etags.dedup();
        assert_eq!(files(&repo.join("blobs")).into_keys().collect::<Vec<_>>(), etags, "{name}");
        for etag in etags {
            let lock = home.join("hub/.locks").join(repo.file_name().expect("a name")).join(format!("{etag}.lock"));
            assert!(lock.exists(), "{}", lock.display());
        }
    }
}

/// Asserts what holds at any moment: content under its final name is complete, and every link leads to content.
fn assert_whole(home: &Path) {
    for (name, expected) in expected_files() {
        let repo = repo(home, name);
        let by_etag: BTreeMap<String, &Vec<u8>> =
            expected.iter().map(|(file, bytes)| (etag(file, bytes), bytes)).collect();
        if repo.join("blobs").exists() {
            for (blob, bytes) in files(&repo.join("blobs")) {
                let complete = by_etag.get(&blob);
                assert!(complete.map_or(blob.ends_with(".incomplete"), |complete| bytes == **complete), "{blob}");
            }
        }
        let snapshot = repo.join("snapshots").join(COMMIT);
        for entry in fs::read_dir(&snapshot).into_iter().flatten().flatten() {
            let file = entry.file_name().into_string().expect("UTF-8");
            assert!(fs::read(entry.path()).expect("content") == expected[&file], "{name}/{file}");
        }
        if repo.join("refs/main").exists() {
            assert_eq!(files(&snapshot).len(), expected.len(), "{name}: a reference to a part of the files");
        }
    }
}

#[test]
fn a_model_fills_the_shared_cache_and_is_found_by_its_name() {
    let (hub, home) = (hub(), TempDir::new().expect("a folder"));
    let chat = |home: &Path| {
        let mut command = hub.mgm(home);
        command.env("HF_HUB_OFFLINE", "1").args(["chat", MODEL]);
        command
    };
    // Without a terminal to ask on, the message says which command downloads it.
    let error =
        error_of(&hub.mgm(home.path()).args(["chat", MODEL, "--prompt", "a"]).output().expect("the binary runs"));
    assert!(error.contains("mgm pull someone/MGM-2B"), "{error}");
    let error = error_of(&chat(home.path()).args(["--prompt", "a"]).output().expect("the binary runs"));
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    assert!(hub.log().is_empty(), "{:?}", hub.log());

    let printed = must(&hub.pull_to_cache(home.path(), &[MODEL]));
    assert!(printed.contains("try: mgm chat someone/MGM-2B"), "{printed}");
    assert_cached(home.path());
    answers_as_expected(&mut chat(home.path()));
    let packed = home.path().join("bundle");
    let pack = hub.mgm(home.path()).args(["pack", MODEL, "--out"]).arg(&packed).output().expect("the binary runs");
    assert!(must(&pack).contains("MGM-2B at q4"), "{pack:?}");

    // A second pull only requests the listings. So does one into a folder, which copies.
    hub.misbehave(Faults::default());
    must(&hub.pull_to_cache(home.path(), &[MODEL]));
    let out = home.path().join("models");
    must(&hub.mgm(home.path()).args(["pull", MODEL, "--out"]).arg(&out).output().expect("the binary runs"));
    assert!(hub.log().iter().all(|(path, ..)| path.starts_with("/api/")), "{:?}", hub.log());
    for (file, bytes) in files(&golden().join("MGM-2B")) {
        assert!(fs::read(out.join("MGM-2B").join(&file)).expect("a file") == bytes, "{file} differs");
    }
    hub.misbehave(Faults::default());
    let offline = hub.mgm(home.path()).env("HF_HUB_OFFLINE", "1").args(["pull", MODEL]).output();
    assert!(must(&offline.expect("the binary runs")).contains(COMMIT));
    assert!(hub.log().is_empty(), "{:?}", hub.log());

    // A blob damaged on disk is replaced.
    let weights = files(&golden().join("MGM-2B")).into_iter().find(|(name, _)| is_weights(name)).expect("weights");
    let blob = repo(home.path(), MODEL).join("blobs").join(etag(&weights.0, &weights.1));
    let mut bytes = fs::read(&blob).expect("a file");
    bytes[100] ^= 1;
    fs::write(&blob, bytes).expect("a file");
    must(&hub.pull_to_cache(home.path(), &[MODEL]));
    assert_cached(home.path());
}

/// What huggingface_hub leaves, made here by hand: also files that mgm does not need. Then a shard is missing.
#[test]
fn files_that_other_tools_downloaded_are_used() {
    let (hub, home) = (hub(), TempDir::new().expect("a folder"));
    for (name, expected) in expected_files() {
        let repo = repo(home.path(), name);
        fs::create_dir_all(repo.join("refs")).expect("a folder");
        fs::write(repo.join("refs/main"), COMMIT).expect("a file");
        for (file, bytes) in expected.into_iter().chain([("README.md".to_owned(), b"# A model".to_vec())]) {
            let (snapshot, blobs) = (repo.join("snapshots").join(COMMIT), repo.join("blobs"));
            let etag = etag(&file, &bytes);
            fs::create_dir_all(&snapshot).expect("a folder");
            fs::create_dir_all(&blobs).expect("a folder");
            fs::write(blobs.join(&etag), bytes).expect("a file");
            #[cfg(unix)]
            std::os::unix::fs::symlink(format!("../../blobs/{etag}"), snapshot.join(file)).expect("a link");
            // As huggingface_hub does without the right to make links.
            #[cfg(not(unix))]
            fs::rename(blobs.join(etag), snapshot.join(file)).expect("a file");
        }
    }
    answers_as_expected(hub.mgm(home.path()).env("HF_HUB_OFFLINE", "1").args(["chat", MODEL]));
    answers_as_expected(hub.mgm(home.path()).env("HF_HUB_CACHE", home.path().join("hub")).args(["chat", MODEL]));
    answers_as_expected(hub.mgm(home.path()).args(["chat", &format!("{MODEL}@{COMMIT}")]));
    let inspect = hub.mgm(home.path()).args(["inspect", MODEL]).output().expect("the binary runs");
    must(&inspect);
    assert!(hub.log().is_empty(), "{:?}", hub.log());
    // mgm downloads nothing that is there.
    must(&hub.pull_to_cache(home.path(), &[MODEL]));
    assert!(hub.downloads().is_empty(), "{:?}", hub.log());
    // A model of which a shard is missing is none.
    let snapshot = repo(home.path(), MODEL).join("snapshots").join(COMMIT);
    let weights = files(&snapshot).into_keys().find(|name| is_weights(name)).expect("weights");
    fs::remove_file(snapshot.join(weights)).expect("a file");
    let error =
        error_of(&hub.mgm(home.path()).args(["chat", MODEL, "--prompt", "a"]).output().expect("the binary runs"));
    assert!(error.contains("mgm pull someone/MGM-2B"), "{error}");
}

#[test]
fn gguf_files_and_single_files_have_names_too() {
    let (hub, home) = (hub(), TempDir::new().expect("a folder"));
    let gguf = fs::read(mgm_test_support::data("gguf").join("llama.gguf")).expect("a file");
    let quants = BTreeMap::from([
        ("config.json".to_owned(), b"{}".to_vec()),
        ("model-Q4_0.gguf".to_owned(), gguf),
        ("model-Q8_0.gguf".to_owned(), b"GGUF?".to_vec()),
    ]);
    hub.state.lock().expect("the state").repos.insert("someone/llama".to_owned(), quants);
    let printed = must(&hub.pull_to_cache(home.path(), &["someone/llama:Q4_0"]));
    assert!(printed.contains("try: mgm chat someone/llama:Q4_0"), "{printed}");
    let chat = |name: &str| {
        let mut command = hub.mgm(home.path());
        command.args(["chat", name, "--prompt", "a", "--temperature", "0", "--max-new-tokens", "2", "--json"]);
        command.env("HF_HUB_OFFLINE", "1").output().expect("the binary runs")
    };
    let ids = |output: &Output| -> serde_json::Value {
        let report: serde_json::Value = serde_json::from_str(&must(output)).expect("JSON");
        report["turns"][0]["token_ids"].clone()
    };
    let expected = ids(&chat("someone/llama:Q4_0"));
    for name in ["someone/llama", "someone/llama:q4_0", "someone/llama/model-Q4_0.gguf", "hf.co/someone/llama:Q4_0"] {
        assert_eq!(ids(&chat(name)), expected, "{name}");
    }
    let error = error_of(&chat("someone/llama:Q8_0"));
    assert!(error.contains("someone/llama:Q8_0"), "{error}");
    // Two files: the name has to say which.
    must(&hub.pull_to_cache(home.path(), &["someone/llama", "--file", "model-Q8_0.gguf"]));
    let error = error_of(&chat("someone/llama"));
    assert!(error.contains("someone/llama:Q4_K_M") && error.contains("model-Q8_0.gguf"), "{error}");
}

/// Pulls at once, into a folder and into the cache: every one succeeds, and every byte is sent once.
#[test]
fn pulls_of_the_same_files_wait_for_each_other() {
    let (hub, home) = (hub(), TempDir::new().expect("a folder"));
    let out = home.path().join("models");
    for to_cache in [false, true] {
        hub.misbehave(Faults { slow: 2, ..Faults::default() });
        let pull = || {
            // Pulls into a folder have no cache to copy from.
            let mut command = hub.mgm(if to_cache { home.path() } else { Path::new("/nowhere") });
            command.args(["pull", MODEL]);
            if !to_cache {
                command.arg("--out").arg(&out);
            }
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs")
        };
        let pulls: Vec<_> = (0..4).map(|_| pull()).collect();
        for pull in pulls {
            must(&pull.wait_with_output().expect("the end"));
        }
        let mut downloads = hub.downloads();
        let count = downloads.len();
        downloads.sort();
        downloads.dedup();
        assert_eq!(downloads.len(), count, "{downloads:?}");
        if to_cache {
            assert_cached(home.path());
        } else {
            let found = files(&out.join("MGM-2B"));
            assert!(found == files(&golden().join("MGM-2B")), "{:?}", found.keys());
        }
    }
}

/// Kills at different moments lose at most what was in flight.
#[test]
fn a_killed_pull_resumes() {
    let (hub, home) = (hub(), TempDir::new().expect("a folder"));
    let out = home.path().join("models");
    for to_cache in [true, false] {
        hub.misbehave(Faults { slow: 8, ..Faults::default() });
        let mut killed = 0;
        for round in 0.. {
            assert!(round < 200, "no progress");
            let mut pull = hub.mgm(if to_cache { home.path() } else { Path::new("/nowhere") });
            pull.args(["pull", MODEL]).stdout(Stdio::null());
            if !to_cache {
                pull.arg("--out").arg(&out);
            }
            let status = run_for(&mut pull, Duration::from_millis(20 + 37 * (round % 9) + 5 * round));
            if to_cache {
                assert_whole(home.path());
            } else if out.join("MGM-2B").exists() {
                let expected = files(&golden().join("MGM-2B"));
                for (file, bytes) in files(&out.join("MGM-2B")) {
                    assert!(file.ends_with(".part") || expected[&file] == bytes, "{file}");
                }
            }
            match status {
                None => killed += 1,
                Some(status) => {
                    assert!(status.success());
                    break;
                }
            }
        }
        assert!(killed >= 5, "{killed} kills");
        assert!(hub.downloads().iter().any(|(_, first)| *first > 0), "nothing was resumed");
    }
    assert_cached(home.path());
    assert!(files(&out.join("MGM-2B")) == files(&golden().join("MGM-2B")));
}

#[cfg(unix)]
#[test]
fn a_full_disk_loses_nothing() {
    let (hub, home) = (hub(), TempDir::new().expect("a folder"));
    // No file may have more than 100 blocks of 512 bytes. By default the signal that says so ends a program.
    let limited = hub.mgm(home.path());
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -f 100; exec \"$0\" pull someone/MGM-2B"]).arg(limited.get_program());
    for (name, value) in limited.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let error = error_of(&shell.stdin(Stdio::null()).output().expect("a shell"));
    assert!(error.contains(".incomplete") && error.contains("run the command again"), "{error}");
    assert_whole(home.path());
    hub.misbehave(Faults::default());
    must(&hub.pull_to_cache(home.path(), &[MODEL]));
    assert!(hub.downloads().iter().any(|(_, first)| *first > 10_000), "{:?}", hub.downloads());
    assert_cached(home.path());
}

#[test]
fn servers_are_waited_for_as_long_as_they_ask() {
    let (hub, home) = (hub(), TempDir::new().expect("a folder"));
    hub.misbehave(Faults { busy: 1, retry_after: Some(2), ..Faults::default() });
    let started = Instant::now();
    must(&hub.pull_to_cache(home.path(), &["someone/quants:Q8_0"]));
    // Once for the listing, once for the file.
    assert!(started.elapsed() >= Duration::from_secs(4), "{:?}", started.elapsed());
    hub.misbehave(Faults { busy: 1, retry_after: Some(86_400), ..Faults::default() });
    let error = error_of(&hub.pull_to_cache(home.path(), &["someone/quants:Q8_0"]));
    assert!(error.contains("86400 s"), "{error}");
}

#[test]
fn a_file_that_changes_meanwhile_is_not_mixed() {
    let (hub, home) = (hub(), TempDir::new().expect("a folder"));
    // Without checksums only the ETag tells versions apart.
    let faults = Faults { no_checksums: true, cut_after: Some(100_000), version: 1, ..Faults::default() };
    hub.misbehave(faults);
    let state = std::sync::Arc::clone(&hub.state);
    let watcher = std::thread::spawn(move || {
        loop {
            let mut state = state.lock().expect("the state");
            if state.log.iter().any(|(path, first, _)| path.starts_with("/cdn/") && *first > 0) {
                state.faults = Faults { version: 2, ..faults };
                return;
            }
            drop(state);
            std::thread::yield_now();
        }
    });
    let pull = ["someone/MGM-2B", "--no-towers"];
    let error = error_of(&hub.pull_to_cache(home.path(), &pull));
    watcher.join().expect("a watcher");
    assert!(error.contains("changed on the server"), "{error}");
    must(&hub.pull_to_cache(home.path(), &pull));
    let snapshot = repo(home.path(), MODEL).join("snapshots").join(COMMIT);
    for (file, bytes) in files(&golden().join("MGM-2B")) {
        assert!(fs::read(snapshot.join(&file)).expect("a file") == bytes, "{file} differs");
        if is_weights(&file) && cfg!(unix) {
            assert_eq!(
                fs::read_link(snapshot.join(&file)).expect("a link"),
                Path::new("../../blobs").join(format!("v2-{file}"))
            );
        }
    }
}

#[test]
fn tokens_come_from_the_login_and_follow_redirects_within_the_host() {
    let (hub, home) = (hub(), TempDir::new().expect("a folder"));
    fs::write(home.path().join("token"), format!("{TOKEN}\n")).expect("a file");
    let tokens = |command: &mut Command| {
        hub.misbehave(Faults::default());
        // The repository was renamed: its listing is elsewhere on the host, its weights on another host.
        must(
            &command
                .args(["pull", "someone/old-name", "--no-towers", "--out"])
                .arg(home.path())
                .output()
                .expect("it runs"),
        );
        hub.log()
    };
    let bearer = format!("Bearer {TOKEN}");
    let with_login = tokens(hub.mgm(home.path()).env_remove("HF_TOKEN"));
    let with_newline = tokens(hub.mgm(Path::new("/nowhere")).env("HF_TOKEN", format!("{TOKEN}\n")));
    for log in [with_login, with_newline] {
        assert!(log.iter().any(|(path, ..)| path.starts_with("/api/models/someone/MGM-2B")), "{log:?}");
        for (path, _, token) in log {
            let expected = (!path.starts_with("/cdn/")).then_some(&bearer);
            assert_eq!(token.as_ref(), expected, "{path}");
        }
    }
    let without = tokens(hub.mgm(home.path()).env_remove("HF_TOKEN").env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"));
    assert!(without.iter().all(|(_, _, token)| token.is_none()), "{without:?}");
}

/// A proxy that reaches the hub, whose name only it knows.
#[test]
fn proxies_of_the_environment_are_used() {
    let (hub, home) = (hub(), TempDir::new().expect("a folder"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let proxy = format!("http://{}", listener.local_addr().expect("an address"));
    let port = hub.port;
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || tunnel(client, port));
        }
    });
    let pull = |variables: &[(&str, &str)]| {
        let mut command = hub.mgm(home.path());
        command.env("HF_ENDPOINT", "http://hub.invalid").args(["pull", "someone/quants:Q8_0", "--timeout", "5"]);
        command.envs(variables.iter().copied()).output().expect("the binary runs")
    };
    must(&pull(&[("HTTP_PROXY", &proxy)]));
    let error = error_of(&pull(&[("HTTP_PROXY", &proxy), ("NO_PROXY", ".invalid")]));
    assert!(error.contains("hub.invalid"), "{error}");
    let error = error_of(&pull(&[("ALL_PROXY", "quic://localhost:1080")]));
    assert!(error.contains("ALL_PROXY") && error.contains("socks5h://"), "{error}");
}

/// A SOCKS proxy, with and without a password, that finds the hub by its name.
#[test]
fn socks_proxies_of_the_environment_are_used() {
    let (hub, home) = (hub(), TempDir::new().expect("a folder"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let port = hub.port;
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || socks_tunnel(client, port));
        }
    });
    for (number, user) in ["", "someone:secret@"].into_iter().enumerate() {
        let mut command = hub.mgm(&home.path().join(number.to_string()));
        command.env("HF_ENDPOINT", "http://hub.invalid").env("ALL_PROXY", format!("socks5h://{user}{address}"));
        must(&command.args(["pull", "someone/quants:Q8_0", "--timeout", "5"]).output().expect("the binary runs"));
    }
}

/// Serves one client of a SOCKS proxy (RFC 1928 and 1929).
fn socks_tunnel(mut client: TcpStream, port: u16) {
    fn take(client: &mut TcpStream, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        client.read_exact(&mut bytes).expect("a client");
        bytes
    }
    fn text(client: &mut TcpStream) -> String {
        let length = take(client, 1)[0];
        String::from_utf8(take(client, length.into())).expect("UTF-8")
    }
    let greeting = take(&mut client, 2);
    let methods = take(&mut client, greeting[1].into());
    let with_password = methods.contains(&2);
    client.write_all(&[5, if with_password { 2 } else { 0 }]).expect("a client");
    if with_password {
        take(&mut client, 1);
        let (user, password) = (text(&mut client), text(&mut client));
        let refused = user != "someone" || password != "secret";
        client.write_all(&[1, refused.into()]).expect("a client");
        if refused {
            return;
        }
    }
    // CONNECT to a name or an IPv4 address, and a port.
    match take(&mut client, 4)[3] {
        3 => drop(text(&mut client)),
        _ => drop(take(&mut client, 4)),
    }
    take(&mut client, 2);
    let server = TcpStream::connect(("127.0.0.1", port)).expect("the hub");
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).expect("a client");
    relay(client, server);
}

/// A single file of Stable Diffusion XL has no vocabulary: CLIP's is downloaded too.
#[test]
fn single_files_get_their_tokenizer() {
    let (hub, home) = (hub(), TempDir::new().expect("a folder"));
    let single = |tensor: &str| {
        let header = format!(r#"{{"{tensor}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat()
    };
    let one = |name: &str, bytes: Vec<u8>| BTreeMap::from([(name.to_owned(), bytes)]);
    {
        let mut state = hub.state.lock().expect("the state");
        let unet = single("model.diffusion_model.out.2.bias");
        state.repos.insert("someone/xl".to_owned(), one("xl.safetensors", unet));
        state.repos.insert("someone/lora".to_owned(), one("lora.safetensors", single("lora_unet.alpha")));
        let mut clip = one("vocab.json", b"{}".to_vec());
        clip.extend(one("merges.txt", b"#version: 0.2".to_vec()));
        clip.extend(one("model.safetensors", vec![0; 100]));
        state.repos.insert("openai/clip-vit-large-patch14".to_owned(), clip);
    }
    let printed = must(&hub.pull_to_cache(home.path(), &["someone/xl"]));
    assert!(printed.contains("try: mgm generate someone/xl --prompt"), "{printed}");
    let clip = repo(home.path(), "openai/clip-vit-large-patch14").join("snapshots").join(COMMIT);
    assert_eq!(files(&clip).into_keys().collect::<Vec<_>>(), ["merges.txt", "vocab.json"]);
    let out = home.path().join("models");
    must(&hub.pull(&out, &["someone/xl"]));
    assert_eq!(files(&out.join("xl")).into_keys().collect::<Vec<_>>(), ["merges.txt", "vocab.json", "xl.safetensors"]);
    let printed = must(&hub.pull_to_cache(home.path(), &["someone/lora"]));
    assert!(!printed.contains("try:"), "{printed}");
}

/// Autoencoders and adapters on the hub: the folder of a network, a single file, or one of several.
#[test]
fn parts_of_an_image_model_have_names_too() {
    let (hub, home) = (hub(), TempDir::new().expect("a folder"));
    let model = crate::common::goldens().join("sdxl-base/sdxl");
    let style = fs::read(mgm_test_support::data("diffusion/images").join("style.safetensors")).expect("a file");
    let vae = files(&model.join("vae"));
    {
        let mut state = hub.state.lock().expect("the state");
        // Next to the files of other programs, as in repositories of autoencoders.
        let mut other = vae.clone();
        other.insert("sdxl_vae.safetensors".to_owned(), style.clone());
        other.insert("diffusion_pytorch_model.bin".to_owned(), b"torch".to_vec());
        state.repos.insert("someone/vae".to_owned(), other);
        let file = |name: &str| (name.to_owned(), style.clone());
        state.repos.insert("someone/style".to_owned(), BTreeMap::from([file("style.safetensors")]));
        let both = BTreeMap::from([file("kohya.safetensors"), file("pytorch_lora_weights.safetensors")]);
        state.repos.insert("someone/both".to_owned(), both);
        let several = BTreeMap::from([file("a.safetensors"), file("b/c.safetensors")]);
        state.repos.insert("someone/several".to_owned(), several);
    }
    let generate = |parts: &[&str]| {
        let out = home.path().join("x.png");
        let mut command = hub.mgm(home.path());
        command.env("HF_HUB_OFFLINE", "1").arg("generate").arg(&model).args(parts).arg("--out").arg(&out);
        let output = command.args(["--prompt", "x", "--steps", "1", "--size", "48x48", "--seed", "7"]).output();
        let output = output.expect("the binary runs");
        let pixels = || image::open(&out).expect("a PNG").into_rgb8().into_raw();
        output.status.success().then(pixels).ok_or_else(|| error_of(&output))
    };
    for name in ["someone/vae", "someone/style"] {
        let argument = if name.ends_with("vae") { "--vae" } else { "--lora" };
        let error = generate(&[argument, name]).expect_err("not downloaded");
        assert!(error.contains(name) && error.contains("HF_HUB_OFFLINE"), "{error}");
    }
    let pulled = ["someone/vae", "someone/style", "someone/both", "someone/several:b/c.safetensors"];
    pulled.iter().for_each(|name| drop(must(&hub.pull_to_cache(home.path(), &[name]))));
    let snapshot = repo(home.path(), "someone/vae").join("snapshots").join(COMMIT);
    assert_eq!(files(&snapshot).keys().collect::<Vec<_>>(), vae.keys().collect::<Vec<_>>());
    hub.misbehave(Faults::default());
    let plain = generate(&[]).expect("an image");
    assert!(generate(&["--vae", "someone/vae"]).expect("an image") == plain);
    let local = mgm_test_support::data("diffusion/images").join("style.safetensors").display().to_string();
    let styled = generate(&["--lora", &format!("{local}:0.7")]).expect("an image");
    assert!(styled != plain);
    for name in ["someone/style", "someone/both", "someone/several:b/c.safetensors", "someone/several/b/c.safetensors"]
    {
        let image = generate(&["--lora", &format!("{name}:0.7")]).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(image == styled, "{name}");
    }
    assert!(hub.log().is_empty(), "{:?}", hub.log());
}

/// `script` gives a program a terminal.
#[cfg(target_os = "linux")]
#[test]
fn a_missing_model_is_offered_on_a_terminal() {
    let (hub, home) = (hub(), TempDir::new().expect("a folder"));
    let chat = |answer: &str| {
        let mgm = hub.mgm(home.path());
        let program = mgm.get_program().to_str().expect("UTF-8").to_owned();
        let mut script = Command::new("script");
        script.arg("-qec").arg(format!("{program} chat {MODEL} --prompt a --max-new-tokens 1")).arg("/dev/null");
        for (name, value) in mgm.get_envs() {
            match value {
                Some(value) => script.env(name, value),
                None => script.env_remove(name),
            };
        }
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(answer.as_bytes()).expect("a pipe");
        let output = child.wait_with_output().expect("the end");
        drop(stdin);
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (succeeded, printed) = chat("n\n");
    assert!(
        !succeeded && printed.contains("Download 0.0 GB?") && printed.contains("mgm pull someone/MGM-2B"),
        "{printed}"
    );
    let (succeeded, printed) = chat("y\n");
    assert!(succeeded, "{printed}");
    assert_cached(home.path());
    // Now it is there.
    hub.misbehave(Faults::default());
    let (succeeded, printed) = chat("");
    assert!(succeeded && !printed.contains("Download"), "{printed}");
    assert!(hub.log().is_empty(), "{:?}", hub.log());
}

/// Serves one client of a proxy: `CONNECT`, or a request with a whole address.
fn tunnel(mut client: TcpStream, port: u16) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).is_ok_and(|count| count == 1) {
        head.push(byte[0]);
    }
    let mut server = TcpStream::connect(("127.0.0.1", port)).expect("the hub");
    let head = String::from_utf8_lossy(&head).into_owned();
    if head.starts_with("CONNECT ") {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("a client");
    } else {
        server.write_all(head.replacen("http://hub.invalid", "", 1).as_bytes()).expect("the hub");
    }
    relay(client, server);
}

fn relay(mut client: TcpStream, mut server: TcpStream) {
    let (mut to_server, mut from_client) =
        (server.try_clone().expect("a stream"), client.try_clone().expect("a stream"));
    std::thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
    // Ends when the hub closes the connection.
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(std::net::Shutdown::Both);
}

/// PyPI's huggingface_hub, both ways. `make hub` installs it.
#[test]
#[ignore = "needs huggingface_hub: make hub"]
fn huggingface_hub_shares_the_cache() {
    let python = std::env::var_os("MGM_HUB_PYTHON").unwrap_or_else(|| "python3".into());
    let hub = hub();
    let run = |home: &Path, offline: &str, script: &str| {
        let mut command = Command::new(&python);
        command.args(["-c", script]).env("HF_HOME", home).env("HF_HUB_OFFLINE", offline);
        command.env("HF_ENDPOINT", format!("http://127.0.0.1:{}", hub.port)).env_remove("HF_HUB_CACHE");
        must(&command.output().expect("Python"))
    };
    // mgm downloads, Python finds every file offline, and nothing in the cache surprises it.
    let home = TempDir::new().expect("a folder");
    must(&hub.pull_to_cache(home.path(), &[MODEL]));
    for (name, expected) in expected_files() {
        let script = format!(
            "from huggingface_hub import hf_hub_download, snapshot_download\n\
             print(snapshot_download({name:?}))\n\
             for name in {:?}: print(hf_hub_download({name:?}, name))",
            expected.keys().collect::<Vec<_>>()
        );
        let printed = run(home.path(), "1", &script);
        assert_eq!(printed.lines().count(), 1 + expected.len(), "{printed}");
        for (path, bytes) in printed.lines().skip(1).zip(expected.values()) {
            assert!(fs::read(path).expect("a file") == *bytes, "{path}");
        }
    }
    let scan = "from huggingface_hub import scan_cache_dir\n\
                cache = scan_cache_dir()\n\
                print(sorted(repo.repo_id for repo in cache.repos), [str(warning) for warning in cache.warnings])";
    let expected = format!("['{CONVNEXT}', '{CLIP}', '{MODEL}'] []\n");
    assert_eq!(run(home.path(), "1", scan), expected);

    // Python downloads, mgm finds the model offline and downloads nothing.
    let home = TempDir::new().expect("a folder");
    hub.misbehave(Faults::default());
    for name in [MODEL, CLIP, CONVNEXT] {
        run(home.path(), "0", &format!("from huggingface_hub import snapshot_download\nsnapshot_download({name:?})"));
    }
    hub.misbehave(Faults::default());
    answers_as_expected(hub.mgm(home.path()).env("HF_HUB_OFFLINE", "1").args(["chat", MODEL]));
    must(&hub.pull_to_cache(home.path(), &[MODEL]));
    assert!(hub.downloads().is_empty(), "{:?}", hub.downloads());

    // Both at once.
    let home = TempDir::new().expect("a folder");
    hub.misbehave(Faults { slow: 2, ..Faults::default() });
    let pull = hub.mgm(home.path()).args(["pull", MODEL]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let unused = r#"ignore_patterns=["README.md", "training_args.bin", ".gitattributes"]"#;
    let script = format!("from huggingface_hub import snapshot_download\nsnapshot_download({MODEL:?}, {unused})");
    run(home.path(), "0", &script);
    must(&pull.expect("the binary runs").wait_with_output().expect("the end"));
    assert_cached(home.path());
}

/// Branches, tags, pull requests and commits of a repository: each snapshot has its own files, and `refs` has what
/// huggingface_hub writes there.
#[test]
fn revisions_are_snapshots_of_their_own() {
    const REPO: &str = "someone/small";
    const TAG: &str = "1111111111111111111111111111111111111111";
    const PULL_REQUEST: &str = "2222222222222222222222222222222222222222";
    let hub = hub();
    let version = |number: u8| {
        let config = format!(r#"{{"model_type": "llama", "version": {number}}}"#).into_bytes();
        let [tokenizer, weights] = [b"{}".to_vec(), vec![number; 100]];
        let files = [("config.json", config), ("tokenizer.json", tokenizer), ("model.safetensors", weights)];
        files.map(|(name, bytes)| (name.to_owned(), bytes)).into_iter().collect::<BTreeMap<String, Vec<u8>>>()
    };
    {
        let mut state = hub.state.lock().expect("the state");
        state.repos.insert(REPO.to_owned(), version(0));
        state.repos.insert(format!("{REPO}@{TAG}"), version(1));
        state.repos.insert(format!("{REPO}@{PULL_REQUEST}"), version(2));
        state.revisions.insert("v1.0".to_owned(), TAG.to_owned());
        state.revisions.insert("refs/pr/1".to_owned(), PULL_REQUEST.to_owned());
    }
    let home = TempDir::new().expect("a folder");
    let folder = repo(home.path(), REPO);
    let references = || {
        let read = |name: &str| fs::read_to_string(folder.join("refs").join(name)).ok();
        ["main", "v1.0", "refs/pr/1"].map(read)
    };
    let (at, pr) = (format!("{REPO}@v1.0"), format!("{REPO}@refs/pr/1"));
    let (both, all) = ([Some(COMMIT), Some(TAG), None], [Some(COMMIT), Some(TAG), Some(PULL_REQUEST)]);
    // Arguments, the commit, its version of the files, whether they are downloaded, and the references after it.
    for (arguments, commit, number, downloaded, expected) in [
        // A commit is its own name.
        (vec![REPO, "--revision", TAG], TAG, 1, true, [None; 3]),
        (vec![REPO], COMMIT, 0, true, [Some(COMMIT), None, None]),
        (vec![at.as_str()], TAG, 1, false, both),
        (vec![REPO, "--revision", "refs/pr/1"], PULL_REQUEST, 2, true, all),
        (vec![pr.as_str()], PULL_REQUEST, 2, false, all),
    ] {
        hub.misbehave(Faults::default());
        must(&hub.pull_to_cache(home.path(), &arguments));
        assert_eq!(references(), expected.map(|commit| commit.map(str::to_owned)), "{arguments:?}");
        assert!(files(&folder.join("snapshots").join(commit)) == version(number), "{arguments:?}");
        assert_eq!(!hub.downloads().is_empty(), downloaded, "{arguments:?}");
    }
    // Nothing else: not the commit.
    let mut names: Vec<_> =
        fs::read_dir(folder.join("refs")).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    assert_eq!(names, ["main", "refs", "v1.0"]);
    let mut snapshots: Vec<_> =
        fs::read_dir(folder.join("snapshots")).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    snapshots.sort();
    assert_eq!(snapshots, [COMMIT, TAG, PULL_REQUEST]);
    // Into a folder of the user's.
    let out = TempDir::new().expect("a folder");
    must(&hub.pull(out.path(), &[&pr]));
    assert!(files(&out.path().join("small")) == version(2));
    // Commands find each revision by its name.
    for (name, commit) in [(REPO, COMMIT), (&at, TAG), (&pr, PULL_REQUEST)] {
        let failed = hub.mgm(home.path()).args(["inspect", name]).output().expect("the binary runs");
        let error = error_of(&failed);
        assert!(error.contains(&format!("snapshots/{commit}")), "{name}: {error}");
    }
    let error = error_of(&hub.pull_to_cache(home.path(), &[REPO, "--revision", "v2.0"]));
    assert!(error.contains("v2.0") && error.contains("no such repository, revision or file"), "{error}");
}
