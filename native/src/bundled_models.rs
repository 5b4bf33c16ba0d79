//! The models that are bundled with the program: Pocket, a small Mini-Gemini, and Pocket SDXL, which generates its
//! images.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use mgm::Error;

/// Bundle of the vision-language model.
pub const POCKET: &str = "pocket";
/// Bundle of the image model.
pub const POCKET_SDXL: &str = "pocket-sdxl";

/// Finds a bundled model. The folder in MGM_MODELS is the only place searched if it is set; otherwise `models` next to
/// the program, `share/mgm` next to the program's folder, and `models` in the source tree.
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

/// The error for a command without a model if [`find`] found none either: `cargo install` installs the program only.
pub fn missing(name: &str) -> Error {
    Error::InvalidArgument(missing_message(name, std::env::var_os("MGM_MODELS").as_deref()))
}

fn missing_message(name: &str, folder: Option<&OsStr>) -> String {
    let reason = match folder {
        Some(folder) => format!("MGM_MODELS is {}, which has no bundle {name:?}", Path::new(folder).display()),
        None => "no model is bundled with this installation".to_owned(),
    };
    let name_one = match name {
        POCKET => {
            "name a checkpoint, such as the one that `mgm pull YanweiLi/MGM-2B` downloads (mgm chat YanweiLi/MGM-2B)"
        }
        _ => "name the folder or .safetensors file of a Stable Diffusion XL model",
    };
    format!("{reason}: {name_one}, or set MGM_MODELS to the folder `models` of a clone of the mgm repository")
}

fn bundle(folder: &Path, name: &str) -> Option<PathBuf> {
    let path = folder.join(name);
    path.join("bundle.json").is_file().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_model_is_explained() {
        let installed = missing_message(POCKET, None);
        for part in ["no model is bundled", "mgm pull", "MGM_MODELS"] {
            assert!(installed.contains(part), "{installed}");
        }
        let configured = missing_message(POCKET_SDXL, Some(OsStr::new("/models")));
        for part in ["MGM_MODELS is /models", "\"pocket-sdxl\"", "Stable Diffusion XL"] {
            assert!(configured.contains(part), "{configured}");
        }
    }
}
