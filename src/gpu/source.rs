//! WGSL files, compiled into the crate.

/// A WGSL file. A kernel is a list of them, joined in order: first the prelude parts that it is specialised with (how
/// weights are read, how a workgroup reduces), then the kernel itself.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// The file's name, which stands for its text when kernels are compared.
    pub name: &'static str,
    /// WGSL.
    pub text: &'static str,
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
impl Eq for Source {}
impl std::hash::Hash for Source {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// The WGSL file `shaders/$name`. The wasm module has it without comments: a page loads two fifths less of it.
macro_rules! wgsl {
    ($name:literal) => {{
        const FILE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name));
        #[cfg(not(target_arch = "wasm32"))]
        const TEXT: &str = FILE;
        #[cfg(target_arch = "wasm32")]
        const TEXT: &str = {
            const BYTES: [u8; $crate::gpu::bare_length(FILE)] = $crate::gpu::bare(FILE);
            match core::str::from_utf8(&BYTES) {
                Ok(text) => text,
                Err(_) => panic!("a shader is UTF-8"),
            }
        };
        $crate::gpu::Source { name: $name, text: TEXT }
    }};
}
pub(crate) use wgsl;

/// The bytes of `text` without line comments and without indentation. Line ends stay, so that compilers' messages name
/// the lines of the file. The shaders have no block comments, and WGSL has no strings.
#[cfg(any(test, target_arch = "wasm32"))]
pub(crate) const fn bare<const LENGTH: usize>(text: &str) -> [u8; LENGTH] {
    let text = text.as_bytes();
    let mut out = [0; LENGTH];
    let (mut from, mut to) = (0, 0);
    while from < text.len() {
        from = skip(text, from);
        if from < text.len() {
            out[to] = text[from];
            to += 1;
            from += 1;
        }
    }
    out
}

/// The length of what [`bare`] returns.
#[cfg(any(test, target_arch = "wasm32"))]
pub(crate) const fn bare_length(text: &str) -> usize {
    let text = text.as_bytes();
    let (mut from, mut length) = (0, 0);
    while from < text.len() {
        from = skip(text, from);
        if from < text.len() {
            length += 1;
            from += 1;
        }
    }
    length
}

/// The first byte at or after `from` that stays: past a comment, or past the blanks that begin a line.
#[cfg(any(test, target_arch = "wasm32"))]
const fn skip(text: &[u8], mut from: usize) -> usize {
    if from == 0 || text[from - 1] == b'\n' {
        while from < text.len() && text[from] == b' ' {
            from += 1;
        }
    }
    if from + 1 < text.len() && text[from] == b'/' && text[from + 1] == b'/' {
        while from < text.len() && text[from] != b'\n' {
            from += 1;
        }
    }
    from
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_indentation_go_and_lines_stay() {
        const TEXT: &str = "// head\nfn f() { // a / b\n    // ä\n    let x = a / b;\n}\n//";
        const BARE: [u8; bare_length(TEXT)] = bare(TEXT);
        assert_eq!(std::str::from_utf8(&BARE), Ok("\nfn f() { \n\nlet x = a / b;\n}\n"));
    }

    #[test]
    fn shaders_have_no_block_comments() {
        fn files(folder: &std::path::Path, check: &mut dyn FnMut(&std::path::Path)) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { files(&path, check) } else { check(&path) }
            }
        }
        let mut count = 0;
        files(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders"), &mut |path| {
            assert!(!std::fs::read_to_string(path).unwrap().contains("/*"), "{}", path.display());
            count += 1;
        });
        assert!(count > 50, "{count} shaders");
    }
}
