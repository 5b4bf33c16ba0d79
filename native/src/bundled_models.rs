//! The models that are bundled with the program: Pocket, a small Mini-Gemini, and Pocket SDXL, which generates its images.

use std::path::{Path, PathBuf};

/// Bundle of the vision-language model.
pub const POCKET: &str = "pocket";
/// Bundle of the image model.
pub const POCKET_SDXL: &str = "pocket-sdxl";

/// Finds a bundled model. The folder in MGM_MODELS is the only place searched if it is set; otherwise `models` next to the
/// program, `share/mgm` next to the program's folder, and `models` in the source tree.
pub fn find(name: &str) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("MGM_MODELS") {
        return bundle(Path::new(&folder), name);
    }
    let program = std::env::current_exe().and_then(|path| path.canonicalize()).unwrap_or_default();
    let program_folder = program.parent().unwrap_or(Path::new(""));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folders = [program_folder.join("models"), program_folder.join("../share/mgm"), source.join("models")];
    folders.iter().find_map(|folder| bundle(folder, name))
}

/// Says why a bundled model was not found.
pub fn missing(name: &str) -> String {
    match std::env::var_os("MGM_MODELS") {
        Some(folder) => format!("MGM_MODELS is {}, which has no bundle {name:?}", Path::new(&folder).display()),
        None => "no model is bundled with this installation".to_owned(),
    }
}

fn bundle(folder: &Path, name: &str) -> Option<PathBuf> {
    let path = folder.join(name);
    path.join("bundle.json").is_file().then_some(path)
}
