//! The core's modules are in layers, and no module imports one of a higher layer: a reader of a layer needs only those below.
//!
//! The check reads the paths in the source, `use` declarations and others, that begin with `crate::` or `super::`. Tests
//! inside modules (`#[cfg(test)]`) may import anything.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// The top-level modules of `src/`, lowest layer first. Modules of one layer do not import each other.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["io"],
    &["gpu"],
    &["tensor"],
    &["ops"],
    &["image"],
    &["weights"],
    &["text"],
    &["loader"],
    &["memory_plan"],
    &["nn"],
    &["vision", "language", "diffusion"],
    &["session"],
    &["tuning"],
    &["roofline"],
    &["variants"],
];

/// Imports of higher layers that are still to be removed: (importing module, imported module). The list only shrinks.
const KNOWN: &[(&str, &str)] = &[];

/// An import of a module that is not in a lower layer.
#[derive(Debug, Clone, PartialEq)]
struct Violation {
    file: String,
    line: usize,
    importer: String,
    imported: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, importer, imported } = self;
        let relation = if layer(importer) == layer(imported) { "of the same layer" } else { "of a higher layer" };
        write!(f, "{file}:{line}: `{importer}` imports `{imported}` {relation}")
    }
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// The source without comments, strings and the bodies of `#[cfg(test)]` modules. Lines keep their numbers.
fn code_of(source: &str) -> String {
    let blanked = blank_comments_and_strings(source);
    let mut code = blanked.clone();
    for (start, _) in blanked.match_indices("#[cfg(test)]") {
        let rest = &blanked[start..];
        let Some(open) = rest.find('{').filter(|open| rest[..*open].contains("mod ")) else { continue };
        let mut depth = 0;
        for (at, character) in rest.char_indices().skip_while(|(at, _)| *at < open) {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                let body: String =
                    rest[..=at].chars().map(|character| if character == '\n' { '\n' } else { ' ' }).collect();
                code.replace_range(start..start + body.len(), &body);
                break;
            }
        }
    }
    code
}

/// The source with every character of comments, strings and character literals replaced by a space, non-ASCII ones too.
fn blank_comments_and_strings(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code: Vec<u8> = bytes.iter().map(|byte| if byte.is_ascii() { *byte } else { b' ' }).collect();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &source.as_bytes()[at..];
        let end = at
            + match rest {
                [b'/', b'/', ..] => rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
                [b'/', b'*', ..] => rest.windows(2).position(|pair| pair == b"*/").map_or(rest.len(), |end| end + 2),
                [b'r', b'#', b'"', ..] => {
                    rest.windows(2).position(|pair| pair == b"\"#").map_or(rest.len(), |end| end + 2)
                }
                [b'"', ..] => string_length(rest),
                [b'\'', b'\\', _, b'\'', ..] => 4,
                [b'\'', _, b'\'', ..] => 3,
                _ => {
                    at += 1;
                    continue;
                }
            };
        code[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        at = end;
    }
    String::from_utf8(code).expect("ASCII")
}

/// The length of the string literal that `text` begins with.
fn string_length(text: &[u8]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

/// The identifier that `text` begins with.
fn identifier(text: &str) -> &str {
    let end = text.find(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The first identifiers of what follows `crate::`: one, or those of a group in braces.
fn first_identifiers(text: &str) -> Vec<&str> {
    let Some(group) = text.strip_prefix('{') else { return vec![identifier(text)] };
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                found.push(identifier(group[start..at].trim_start()));
                start = at + 1;
                if character == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// The top-level modules that a file's code names, each with the byte where. `module` is the file's own path.
fn imports<'a>(code: &'a str, module: &[String]) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    let starts_a_path = |at: usize| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|before| !before.is_ascii_alphanumeric() && !matches!(before, '_' | ':'))
    };
    for (at, _) in code.match_indices("crate::").filter(|(at, _)| starts_a_path(*at)) {
        found.extend(first_identifiers(&code[at + "crate::".len()..]).into_iter().map(|name| (at, name)));
    }
    for (at, _) in code.match_indices("super::").filter(|(at, _)| starts_a_path(*at)) {
        let mut rest = &code[at..];
        let mut levels = 0;
        while let Some(after) = rest.strip_prefix("super::") {
            (rest, levels) = (after, levels + 1);
        }
        if levels == module.len() {
            found.extend(first_identifiers(rest).into_iter().map(|name| (at, name)));
        }
    }
    found
}

/// The imports of a file that are not of a lower layer.
fn violations(file: &str, source: &str) -> Vec<Violation> {
    let mut module: Vec<String> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|name| name == "mod") {
        module.pop();
    }
    let importer = module[0].clone();
    let own = layer(&importer).unwrap_or_else(|| panic!("src/{file}: `{importer}` is in no layer of tests/layers.rs"));
    let code = code_of(source);
    let mut found = Vec::new();
    for (at, imported) in imports(&code, &module) {
        // Names at the crate's root that are no modules are re-exports of `error`.
        let higher = layer(imported).is_some_and(|layer| layer >= own);
        if higher && imported != importer {
            let line = code[..at].matches('\n').count() + 1;
            let (file, importer, imported) = (format!("src/{file}"), importer.clone(), imported.to_owned());
            found.push(Violation { file, line, importer, imported });
        }
    }
    found
}

/// The `.rs` files under a folder, as paths relative to `root`.
fn rust_files(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the source") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(root, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path.strip_prefix(root).expect("a path under the root").to_owned());
        }
    }
}

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &root, &mut files);
    files.sort();
    let name = |path: &PathBuf| path.to_string_lossy().replace('\\', "/");
    let source = |path: &PathBuf| std::fs::read_to_string(root.join(path)).expect("a source file");
    files.iter().map(|path| (name(path), source(path))).filter(|(name, _)| name != "lib.rs").collect()
}

#[test]
fn no_module_imports_a_higher_layer() {
    let all: Vec<Violation> = sources().iter().flat_map(|(file, source)| violations(file, source)).collect();
    let is_known = |violation: &&Violation| KNOWN.contains(&(&violation.importer, &violation.imported));
    let (known, new): (Vec<&Violation>, Vec<&Violation>) = all.iter().partition(is_known);
    let lines: Vec<String> = new.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "imports against the order of layers (tests/layers.rs):\n{}", lines.join("\n"));
    let found: BTreeSet<(&str, &str)> =
        known.iter().map(|violation| (violation.importer.as_str(), violation.imported.as_str())).collect();
    let gone: Vec<_> = KNOWN.iter().filter(|pair| !found.contains(*pair)).collect();
    assert!(gone.is_empty(), "these imports are gone: remove them from KNOWN: {gone:?}");
}

#[test]
fn only_gpu_uses_wgpu() {
    for (file, source) in sources().iter().filter(|(file, _)| !file.starts_with("gpu/")) {
        let code = code_of(source);
        if let Some(at) = code.find("wgpu::") {
            panic!("src/{file}:{}: only src/gpu uses wgpu", code[..at].matches('\n').count() + 1);
        }
    }
}

#[test]
fn an_import_of_a_higher_layer_is_reported() {
    let report = |file: &str, source: &str| -> Vec<String> {
        violations(file, source).iter().map(ToString::to_string).collect()
    };
    let source = "//! Made up.\n\nuse crate::session::Chat;\n";
    assert_eq!(report("gpu/device.rs", source), ["src/gpu/device.rs:3: `gpu` imports `session` of a higher layer"]);
    let source = "use crate::{Error, Result, gpu::{Gpu, Buffer}, language::Language};\n";
    assert_eq!(report("tensor/mod.rs", source), ["src/tensor/mod.rs:1: `tensor` imports `language` of a higher layer"]);
    let source = "fn plan() -> super::super::session::Chat {\n    crate::vision::encode()\n}\n";
    assert_eq!(
        report("ops/norm.rs", source),
        [
            "src/ops/norm.rs:2: `ops` imports `vision` of a higher layer",
            "src/ops/norm.rs:1: `ops` imports `session` of a higher layer"
        ]
    );
    let source = "use crate::vision::Vision;\n";
    assert_eq!(
        report("language/mod.rs", source),
        ["src/language/mod.rs:1: `language` imports `vision` of the same layer"]
    );
}

#[test]
fn imports_of_lower_layers_and_in_tests_are_not_reported() {
    let source = "
        //! As [`crate::session::Chat`] does.
        use super::norm::Norm;
        use crate::gpu::Gpu;
        use crate::{Error, Result};
        /* crate::session */
        const TEXT: &str = \"crate::session::Chat\";
        fn f<'a>(x: &'a str) -> char { '{' }
        #[cfg(test)]
        mod tests {
            use crate::session::Chat;
            use super::super::super::session;
        }
    ";
    assert_eq!(violations("ops/matmul/mod.rs", source), []);
}
