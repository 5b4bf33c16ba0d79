//! Checkpoints on disk as they get left: in the Hugging Face cache, through links, without Git LFS, with pipes in place
//! of files. Every way to open the gemma-2b golden case gives the tensors of the plain folder.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use mgm::io::{DiskFile, DiskFolder, Folder};
use mgm::text::tokenizer::Tokenizer;
use mgm::weights::gguf_model::GgufModel;
use mgm::weights::mgm::{MgmCheckpoint, TowerOptions};
use mgm_test_support::goldens;
use pollster::block_on;

const CLIP: &str = "OpenAI/clip-vit-large-patch14-336";
const CONVNEXT: &str = "OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup";

/// A folder that is removed at the end, with blanks and Unicode in its path.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mgm {name} — Bücher 書 {}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn open(path: &Path) -> mgm::Result<MgmCheckpoint> {
    let folder: Rc<dyn Folder> = Rc::new(DiskFolder::new(path));
    block_on(MgmCheckpoint::open(folder, TowerOptions::default()))
}

/// A tensor of each part.
fn samples(checkpoint: &MgmCheckpoint) -> Vec<Vec<f32>> {
    let vision = checkpoint.vision.as_ref().expect("a vision side");
    let read = |weights: &mgm::weights::view::Weights, name: &str| block_on(weights.read(name)).expect("a tensor");
    vec![
        read(&checkpoint.language, "model.norm.weight"),
        read(&vision.clip, "vision_model.embeddings.position_embedding.weight"),
        read(&vision.convnext, "stem.0.weight"),
        read(&vision.mining, "query.0.weight"),
    ]
}

/// A repository in the Hugging Face cache with the files of `from`: links into `blobs`. Returns its snapshot.
fn cache(hub: &Path, repository: &str, from: &Path) -> PathBuf {
    let root = hub.join(format!("models--{}", repository.replace('/', "--")));
    let snapshot = root.join("snapshots/0123456789abcdef0123456789abcdef01234567");
    for folder in ["blobs", "refs"] {
        fs::create_dir_all(root.join(folder)).expect("a folder");
    }
    fs::create_dir_all(&snapshot).expect("a folder");
    fs::write(root.join("refs/main"), "0123456789abcdef0123456789abcdef01234567").expect("a reference");
    for (number, entry) in fs::read_dir(from).expect("a folder").enumerate() {
        let entry = entry.expect("a file");
        let blob = format!("{number:064x}");
        fs::copy(entry.path(), root.join("blobs").join(&blob)).expect("a blob");
        symlink(Path::new("../../blobs").join(blob), snapshot.join(entry.file_name())).expect("a link");
    }
    snapshot
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("a file");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

#[test]
fn the_hugging_face_cache_is_a_folder_of_models() {
    let case = goldens().join("gemma-2b");
    let expected = samples(&open(&case.join("MGM-2B")).expect("the golden case"));
    let scratch = Scratch::new("cache");
    let hub = scratch.0.join("hub");
    let snapshot = cache(&hub, "YanweiLi/MGM-2B", &case.join("MGM-2B"));
    cache(&hub, "openai/clip-vit-large-patch14-336", &case.join(CLIP));
    cache(&hub, "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup", &case.join(CONVNEXT));
    let repository = hub.join("models--YanweiLi--MGM-2B");
    for path in [snapshot.clone(), repository.clone(), repository.join("")] {
        let checkpoint = open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(samples(&checkpoint), expected, "{}", path.display());
        assert_eq!(checkpoint.folder.name(), snapshot.display().to_string());
    }
    // If the reference has no snapshot, the only one is meant, of several none.
    fs::write(repository.join("refs/main"), "89ab").expect("a reference");
    assert_eq!(samples(&open(&repository).expect("the only snapshot")), expected);
    fs::remove_file(repository.join("refs/main")).expect("the reference");
    assert_eq!(samples(&open(&repository).expect("the only snapshot")), expected);
    fs::create_dir(repository.join("snapshots/fedc")).expect("a folder");
    assert!(open(&repository).is_err());
    // A download that stopped: the link is there, the blob is not.
    let shard = snapshot.join("model-00001-of-00002.safetensors");
    fs::remove_file(shard.canonicalize().expect("a blob")).expect("a blob");
    let error = open(&snapshot).err().expect("a blob is missing").to_string();
    assert!(error.contains("model-00001-of-00002.safetensors is a link to it"), "{error}");
}

#[test]
fn towers_are_found_next_to_a_link_and_next_to_its_target() {
    let case = goldens().join("gemma-2b");
    let expected = samples(&open(&case.join("MGM-2B")).expect("the golden case"));
    let scratch = Scratch::new("links");
    let path = |name: &str| scratch.0.join(name);
    copy(&case.join("MGM-2B"), &path("store/deep/MGM 2B"));
    fs::create_dir_all(path("models")).expect("a folder");
    symlink("../store/deep/MGM 2B", path("models/MGM-2B")).expect("a link");
    // The towers' own names on the hub, in other capitals.
    copy(&case.join(CLIP), &path("models/CLIP-ViT-large-patch14-336"));
    copy(&case.join(CONVNEXT), &path("store/deep/laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"));
    assert!(open(&path("models/MGM-2B")).is_err(), "the low-resolution tower is next to the link, by another name");
    fs::rename(path("models/CLIP-ViT-large-patch14-336"), path("models/clip-vit-large-patch14-336")).expect("a name");
    assert_eq!(samples(&open(&path("models/MGM-2B")).expect("both towers")), expected);
}

#[test]
fn pipes_and_git_lfs_pointers_are_refused_with_advice() {
    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    let case = goldens().join("gemma-2b");
    let scratch = Scratch::new("files");
    let path = |name: &str| scratch.0.join(name);
    copy(&case.join(CLIP), &path(CLIP));
    copy(&case.join(CONVNEXT), &path(CONVNEXT));
    let load = || {
        let checkpoint = open(&path("MGM-2B"))?;
        block_on(Tokenizer::load(&*checkpoint.folder)).map(drop)
    };
    let start = Instant::now();
    for file in [
        "MGM-2B/config.json",
        "MGM-2B/model.safetensors.index.json",
        "MGM-2B/model-00001-of-00002.safetensors",
        "MGM-2B/tokenizer.json",
        "MGM-2B/tokenizer_config.json",
        &format!("{CLIP}/config.json"),
        &format!("{CLIP}/model.safetensors"),
        &format!("{CONVNEXT}/open_clip_pytorch_model.bin"),
    ] {
        copy(&case.join("MGM-2B"), &path("MGM-2B"));
        load().unwrap_or_else(|error| panic!("before {file}: {error}"));
        let saved = fs::read(path(file)).expect("a file");
        fs::write(path(file), POINTER).expect("a pointer");
        let error = load().expect_err(file).to_string();
        assert!(error.contains(file) && error.contains("git lfs pull"), "{file}: {error}");
        fs::remove_file(path(file)).expect("a file");
        assert!(std::process::Command::new("mkfifo").arg(path(file)).status().expect("mkfifo").success());
        let error = load().expect_err(file).to_string();
        assert!(error.contains(file) && error.contains("not a regular file"), "{file}: {error}");
        fs::remove_file(path(file)).expect("a pipe");
        fs::write(path(file), saved).expect("a file");
    }
    fs::write(path("model.gguf"), POINTER).expect("a pointer");
    let source = Rc::new(DiskFile::open(path("model.gguf")).expect("a file"));
    let error = block_on(GgufModel::open(source)).expect_err("a pointer").to_string();
    assert!(error.contains("model.gguf") && error.contains("git lfs pull"), "{error}");
    assert!(start.elapsed().as_secs() < 60, "nothing waits: {:?}", start.elapsed());
}
