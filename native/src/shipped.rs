//! The models that come with the program: pocket, which answers, and pocket-sdxl.

use std::path::{Path, PathBuf};

/// Bundle of the model that answers.
pub const ANSWERS: &str = "pocket";
/// Bundle of the one that paints.
pub const PAINTS: &str = "pocket-sdxl";

/// The bundle of this name, if it is here: in the folder that MGM_MODELS names, in `models` beside the program or in `share/mgm`
/// beside its folder, or where the program was built.
pub fn find(name: &str) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("MGM_MODELS") {
        return bundle(Path::new(&folder), name);
    }
    let program = std::env::current_exe().and_then(|path| path.canonicalize()).unwrap_or_default();
    let beside = program.parent().unwrap_or(Path::new(""));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folders = [beside.join("models"), beside.join("../share/mgm"), source.join("models")];
    folders.iter().find_map(|folder| bundle(folder, name))
}

/// Why it is not here.
pub fn missing(name: &str) -> String {
    match std::env::var_os("MGM_MODELS") {
        Some(folder) => format!("MGM_MODELS says {}, where there is no bundle {name:?}", Path::new(&folder).display()),
        None => "no model came with this program".to_owned(),
    }
}

fn bundle(folder: &Path, name: &str) -> Option<PathBuf> {
    let path = folder.join(name);
    path.join("bundle.json").is_file().then_some(path)
}
