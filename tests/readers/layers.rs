//! The core's modules are in layers, and no module imports one of a higher layer: a reader of a layer needs only those
//! below. The modules of a folder do not import each other in circles either.
//!
//! The check reads the paths in the source, `use` declarations and others, that begin with `crate::`, `super::` or
//! `self::`. A name that `lib.rs` re-exports counts as its module. Tests inside modules (`#[cfg(test)]`) may import
//! anything.
//!
//! No library does this: cargo-modules is a program that every contributor would have to install, and `syn` parses
//! items but leaves paths in expressions and re-exports to its caller, who would save only the blanking of comments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

/// The top-level modules of `src/`, lowest layer first, as in ARCHITECTURE.md (Layers). Modules of one layer do not
/// import each other.
const LAYERS: &[&[&str]] = &[
    &["error", "json", "parallel"],
    &["io"],
    &["gpu"],
    &["tensor"],
    &["ops"],
    &["tuning"],
    &["image"],
    &["weights"],
    &["text"],
    &["loader"],
    &["memory_plan"],
    &["nn"],
    &["vision", "language", "diffusion"],
    &["generation"],
    &["engine"],
    &["session"],
    &["roofline"],
    &["variants"],
];

/// Imports of higher layers that are still to be removed: (importing module, imported module). The list only shrinks.
const KNOWN: &[(&str, &str)] = &[];

/// Circles that remain: the folder, and the modules that import each other.
const KNOWN_CIRCLES: &[(&str, &[&str])] = &[];

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
        if imported == ROOT {
            return write!(f, "{file}:{line}: `{importer}` imports all names of the crate's root");
        }
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

/// A path of a `use` declaration or of an expression, with the name that a declaration gives it.
#[derive(Debug, Clone, PartialEq)]
struct NamedPath<'a> {
    segments: Vec<&'a str>,
    name: &'a str,
}

/// Adds the paths that `text` begins with, after `prefix`: one, or those of a group in braces. Returns what follows
/// them.
fn expand<'a>(text: &'a str, prefix: &[&'a str], found: &mut Vec<NamedPath<'a>>) -> &'a str {
    let text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        let mut rest = group.trim_start();
        while !rest.is_empty() && !rest.starts_with('}') {
            let after = expand(rest, prefix, found).trim_start();
            let after = after.strip_prefix(',').unwrap_or(after).trim_start();
            if after.len() == rest.len() {
                return rest;
            }
            rest = after;
        }
        return rest.strip_prefix('}').unwrap_or(rest);
    }
    let name = if text.starts_with('*') { &text[..1] } else { identifier(text) };
    let segments: Vec<&str> = prefix.iter().copied().chain((!name.is_empty()).then_some(name)).collect();
    let rest = &text[name.len()..];
    if let Some(after) = rest.strip_prefix("::").filter(|_| !name.is_empty()) {
        return expand(after, &segments, found);
    }
    match rest.trim_start().strip_prefix("as ") {
        Some(alias) => {
            let name = identifier(alias);
            found.push(NamedPath { segments, name });
            &alias[name.len()..]
        }
        None => {
            found.push(NamedPath { segments, name });
            rest
        }
    }
}

/// The bytes of `code` where `word` starts a path.
fn starts_of(code: &str, word: &str) -> Vec<usize> {
    let starts_a_path = |at: &usize| {
        let before = code[..*at].chars().next_back();
        before.is_none_or(|before| !before.is_ascii_alphanumeric() && !matches!(before, '_' | ':'))
    };
    code.match_indices(word).map(|(at, _)| at).filter(starts_a_path).collect()
}

/// The names that `lib.rs` re-exports at the crate's root, each with its top-level module.
fn reexports(lib: &str) -> BTreeMap<String, String> {
    let code = code_of(lib);
    let mut found = Vec::new();
    for at in starts_of(&code, "use ") {
        expand(&code[at + "use ".len()..], &[], &mut found);
    }
    let mut modules = BTreeMap::new();
    for NamedPath { segments, name } in found {
        if let Some(module) = segments.into_iter().find(|segment| !matches!(*segment, "crate" | "self")) {
            modules.insert(name.to_owned(), module.to_owned());
        }
    }
    modules
}

/// How many inline modules (`mod name { … }`) surround a byte of the code.
fn inline_modules(code: &str, at: usize) -> usize {
    let surrounds = |start: &usize| {
        let after = code[*start + "mod ".len()..at].trim_start();
        let Some(body) = after[identifier(after).len()..].trim_start().strip_prefix('{') else { return false };
        let mut depth = 1;
        body.chars().all(|character| {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            depth > 0
        })
    };
    starts_of(&code[..at], "mod ").iter().filter(|start| surrounds(start)).count()
}

/// What the crate's root is called as an import.
const ROOT: &str = "crate::*";

/// The path from the crate's root of what a path in `module` names.
fn absolute<'a>(path: &NamedPath<'a>, module: &[&'a str]) -> Option<Vec<&'a str>> {
    let mut found = module.to_vec();
    for segment in &path.segments {
        match *segment {
            "crate" => found.clear(),
            "self" => {}
            "super" => drop(found.pop()?),
            name => found.push(name),
        }
    }
    Some(found)
}

/// The paths from the crate's root that a file's code uses, each with the byte where. `module` is the file's own path.
fn imports<'a>(code: &'a str, module: &[&'a str]) -> Vec<(usize, Vec<&'a str>)> {
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for at in starts_of(code, start) {
            let mut paths = Vec::new();
            expand(&code[at..], &[], &mut paths);
            let inline = inline_modules(code, at);
            let module: Vec<&str> = module.iter().copied().chain(std::iter::repeat_n("", inline)).collect();
            found.extend(paths.iter().filter_map(|path| Some((at, absolute(path, &module)?))));
        }
    }
    found
}

/// The module path of a file.
fn module_of(file: &str) -> Vec<&str> {
    let path = file.trim_end_matches(".rs");
    path.strip_suffix("/mod").unwrap_or(path).split('/').collect()
}

/// The imports of a file that are not of a lower layer. `reexports` maps names at the crate's root to their modules.
fn violations(file: &str, source: &str, reexports: &BTreeMap<String, String>) -> Vec<Violation> {
    let module = module_of(file);
    let importer = module[0].to_owned();
    let own = layer(&importer)
        .unwrap_or_else(|| panic!("src/{file}: `{importer}` is in no layer of tests/readers/layers.rs"));
    let code = code_of(source);
    let mut found = Vec::new();
    for (at, path) in imports(&code, &module) {
        let imported = path.first().filter(|name| **name != "*").map_or(ROOT, |name| name);
        let imported = reexports.get(imported).map_or(imported, String::as_str);
        // All of the root is more than any layer may import.
        let higher = imported == ROOT || layer(imported).is_some_and(|layer| layer >= own);
        if higher && imported != importer {
            let line = code[..at].matches('\n').count() + 1;
            let (file, importer, imported) = (format!("src/{file}"), importer.clone(), imported.to_owned());
            found.push(Violation { file, line, importer, imported });
        }
    }
    found
}

/// The circles among the modules of every folder, each with the folder.
fn circles(sources: &[(String, String)]) -> Vec<(String, Vec<String>)> {
    let codes: Vec<(Vec<&str>, String)> =
        sources.iter().map(|(file, source)| (module_of(file), code_of(source))).collect();
    let folders: BTreeSet<&[&str]> = codes.iter().map(|(module, _)| &module[..module.len() - 1]).collect();
    let mut found = Vec::new();
    for folder in folders.into_iter().filter(|folder| !folder.is_empty()) {
        let source = sources.iter().find(|(file, _)| module_of(file) == folder).map_or("", |(_, source)| source);
        let reexports = reexports(source);
        let inside: Vec<&(Vec<&str>, String)> =
            codes.iter().filter(|(module, _)| module.len() > folder.len() && module.starts_with(folder)).collect();
        let mut graph: BTreeMap<&str, BTreeSet<String>> =
            inside.iter().map(|(module, _)| (module[folder.len()], BTreeSet::new())).collect();
        for (module, code) in inside {
            for (_, path) in imports(code, module).iter().filter(|(_, path)| path.starts_with(folder)) {
                let Some(name) = path.get(folder.len()) else { continue };
                let imported = reexports.get(*name).map_or(*name, String::as_str);
                if graph.contains_key(imported) && imported != module[folder.len()] {
                    graph.entry(module[folder.len()]).or_default().insert(imported.to_owned());
                }
            }
        }
        let mut seen = BTreeSet::new();
        for module in graph.keys() {
            let circle: Vec<String> = reachable(&graph, module)
                .into_iter()
                .filter(|other| reachable(&graph, other).contains(*module))
                .collect();
            if !circle.is_empty() && seen.insert(circle.clone()) {
                found.push((folder.join("/"), circle));
            }
        }
    }
    found
}

/// The modules that a module imports, directly and through others.
fn reachable(graph: &BTreeMap<&str, BTreeSet<String>>, module: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![module.to_owned()];
    while let Some(module) = waiting.pop() {
        waiting.extend(graph[module.as_str()].iter().filter(|other| found.insert((*other).clone())).cloned());
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

/// The re-exports of this crate's `lib.rs`.
fn own_reexports() -> BTreeMap<String, String> {
    reexports(&std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).expect("src/lib.rs"))
}

/// The files of `src/`, without `lib.rs`.
fn sources() -> Vec<(String, String)> {
    sources_in("src").into_iter().filter(|(name, _)| name != "lib.rs").collect()
}

/// The Rust files of a folder of the repository: names relative to the folder, and contents.
fn sources_in(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = Vec::new();
    rust_files(&root, &root, &mut files);
    files.sort();
    let name = |path: &PathBuf| path.to_string_lossy().replace('\\', "/");
    let source = |path: &PathBuf| std::fs::read_to_string(root.join(path)).expect("a source file");
    files.iter().map(|path| (name(path), source(path))).collect()
}

#[test]
fn architecture_lists_the_same_layers() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = std::fs::read_to_string(file).expect("ARCHITECTURE.md");
    let section = text.split("\n## ").find(|section| section.starts_with("Layers\n")).expect("the section Layers");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let listed: Vec<Vec<&str>> = rows
        .map(|row| row.split('|').next().unwrap_or(row))
        .map(|modules| modules.split(',').map(|module| module.trim().trim_matches('`')).collect())
        .collect();
    assert_eq!(listed, LAYERS, "the first column of the table in ARCHITECTURE.md, and LAYERS");
}

#[test]
fn no_module_imports_a_higher_layer() {
    let reexports = own_reexports();
    let all: Vec<Violation> =
        sources().iter().flat_map(|(file, source)| violations(file, source, &reexports)).collect();
    let is_known = |violation: &&Violation| KNOWN.contains(&(&violation.importer, &violation.imported));
    let (known, new): (Vec<&Violation>, Vec<&Violation>) = all.iter().partition(is_known);
    let lines: Vec<String> = new.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "imports against the order of layers (tests/readers/layers.rs):\n{}", lines.join("\n"));
    let found: BTreeSet<(&str, &str)> =
        known.iter().map(|violation| (violation.importer.as_str(), violation.imported.as_str())).collect();
    let gone: Vec<_> = KNOWN.iter().filter(|pair| !found.contains(*pair)).collect();
    assert!(gone.is_empty(), "these imports are gone: remove them from KNOWN: {gone:?}");
}

#[test]
fn no_modules_of_a_folder_import_each_other_in_a_circle() {
    let found = [circles(&sources()), circles(&sources_in("native/src"))].concat();
    let known: Vec<(String, Vec<String>)> = KNOWN_CIRCLES
        .iter()
        .map(|(folder, modules)| ((*folder).to_owned(), modules.iter().map(|module| (*module).to_owned()).collect()))
        .collect();
    assert_eq!(found, known, "circles inside folders, and those that KNOWN_CIRCLES lists");
}

#[test]
fn a_circle_inside_a_folder_is_reported() {
    let file = |name: &str, source: &str| (name.to_owned(), source.to_owned());
    let module = file("gpu/mod.rs", "mod a;\nmod b;\nmod c;\npub use a::A;\npub use b::B;");
    let c = file("gpu/c/inner.rs", "use super::super::A;\nuse crate::tensor::Tensor;");
    let no_circle =
        [module.clone(), file("gpu/a.rs", "pub struct A;"), file("gpu/b.rs", "use super::{A, c};"), c.clone()];
    assert_eq!(circles(&no_circle), []);
    let circle = [module, file("gpu/a.rs", "use super::B;"), file("gpu/b.rs", "use crate::gpu::c;"), c];
    assert_eq!(circles(&circle), [("gpu".to_owned(), ["a", "b", "c"].map(str::to_owned).to_vec())]);
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
        violations(file, source, &own_reexports()).iter().map(ToString::to_string).collect()
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
fn an_import_through_the_root_of_the_crate_is_reported() {
    let report = |file: &str, source: &str| -> Vec<String> {
        violations(file, source, &own_reexports()).iter().map(ToString::to_string).collect()
    };
    let session = ["src/gpu/device.rs:1: `gpu` imports `session` of a higher layer"];
    for source in [
        "use crate::Model;",
        "use crate::{Error, Chat as Talk};",
        "fn f(chat: &crate::Chat) {}",
        "use super::super::Model;",
        "use super::{super::session};",
        "use super::{buffer::Buffer, super::{Error, Model}};",
        "use super::{\n    buffer::{self, Buffer},\n    super::session::Chat,\n};",
        "use self::super::super::session::Chat;",
        "mod inner { use super::super::super::Model; }",
    ] {
        assert_eq!(report("gpu/device.rs", source), session, "{source}");
    }
    let root = ["src/gpu/device.rs:1: `gpu` imports all names of the crate's root"];
    for source in ["use crate::*;", "use super::super::*;", "use crate::{self as root};", "use super::{super::*};"] {
        assert_eq!(report("gpu/device.rs", source), root, "{source}");
    }
    for source in
        ["use crate::Gpu;", "use crate::ByteSource;", "use super::Model;", "mod a { use super::super::Model; }"]
    {
        assert_eq!(report("gpu/device.rs", source), [""; 0], "{source}");
    }
    let source = "use crate::DiffusionPipeline;";
    assert_eq!(
        report("vision/mod.rs", source),
        ["src/vision/mod.rs:1: `vision` imports `diffusion` of the same layer"]
    );
}

#[test]
fn reexports_have_the_module_that_they_come_from() {
    let lib = "pub mod gpu;\n/// use gpu::Text;\npub use gpu::{Gpu, buffer::{Buffer, Usage as BufferUsage},};\npub use self::io::Folder;";
    let found = reexports(lib);
    let found: Vec<(&str, &str)> = found.iter().map(|(name, module)| (name.as_str(), module.as_str())).collect();
    assert_eq!(found, [("Buffer", "gpu"), ("BufferUsage", "gpu"), ("Folder", "io"), ("Gpu", "gpu")]);
    let own = own_reexports();
    for (name, module) in
        [("Error", "error"), ("Model", "session"), ("DiffusionPipeline", "diffusion"), ("Sampling", "ops")]
    {
        assert_eq!(own.get(name).map(String::as_str), Some(module), "{name}");
    }
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
    assert_eq!(violations("ops/matmul/mod.rs", source, &own_reexports()), []);
}
