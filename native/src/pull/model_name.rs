//! Names of models on the Hub, as people write and paste them.

use mgm::{Error, Result};

/// A repository on the Hub, optionally with a revision and a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    /// `OWNER/NAME`
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: Option<String>,
    pub choice: Option<Choice>,
}

/// Which file of a repository is the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The GGUF file whose name ends with this: a quantisation such as `Q4_K_M`.
    Tag(String),
    /// The file of this name.
    File(String),
}

/// Ends of the names of weights, which are no tags.
const FILES: [&str; 3] = [".gguf", ".safetensors", ".bin"];

impl ModelName {
    /// Parses `OWNER/NAME`, optionally followed by `@REVISION`, by `:TAG` (a GGUF file) or by `/FILE` or `:FILE`; or
    /// the address of a repository's or a file's page on the Hub.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::InvalidArgument(format!("{text:?} is not a repository name; expected one such as YanweiLi/MGM-2B"))
        };
        let (name, is_address) = without_host(text);
        let name = name.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        let mut parts = name.splitn(3, '/');
        let (Some(owner), Some(second), rest) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong());
        };
        let (second, tag) = split(second, ':');
        let (second, revision) = split(second, '@');
        let mut revision = revision.map(str::to_owned);
        let is_file = |tag: &str| FILES.iter().any(|end| tag.ends_with(end));
        // In OWNER/NAME:FOLDER/FILE the tag has a slash.
        let (tag, mut rest) = match (tag, rest) {
            (Some(tag), Some(rest)) if is_file(rest) && !is_address => (Some(format!("{tag}/{rest}")), None),
            (tag, rest) => (tag.map(str::to_owned), rest),
        };
        let mut choice = tag.map(|tag| if is_file(&tag) { Choice::File(tag) } else { Choice::Tag(tag) });
        // A pull request: refs/pr/1.
        if let (false, Some("refs"), Some(more)) = (is_address, revision.as_deref(), rest) {
            let mut parts = more.splitn(3, '/');
            let name = [Some("refs"), parts.next(), parts.next()].into_iter().flatten().collect::<Vec<_>>().join("/");
            (revision, rest) = (Some(name), parts.next());
        }
        if let Some(rest) = rest {
            // As in https://huggingface.co/OWNER/NAME/blob/main/FILE.
            let page: Vec<&str> = rest.splitn(3, '/').collect();
            match page.as_slice() {
                ["tree", branch] if is_address => revision = Some((*branch).to_owned()),
                ["blob" | "resolve", branch, file] if is_address => {
                    revision = Some((*branch).to_owned());
                    choice = Some(Choice::File((*file).to_owned()));
                }
                _ if is_address || choice.is_some() => return Err(wrong()),
                _ => choice = Some(Choice::File(rest.to_owned())),
            }
        }
        let is_valid = is_part(owner) && is_part(second) && revision.as_deref().is_none_or(is_revision);
        if !is_valid || matches!(&choice, Some(Choice::Tag(tag) | Choice::File(tag)) if tag.is_empty()) {
            return Err(wrong());
        }
        Ok(Self { repo: format!("{owner}/{second}"), revision, choice })
    }

    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl std::fmt::Display for ModelName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        match &self.choice {
            Some(Choice::Tag(tag)) => write!(f, ":{tag}"),
            Some(Choice::File(file)) => write!(f, "/{file}"),
            None => Ok(()),
        }
    }
}

/// A name without the Hub's address, and whether it was one.
fn without_host(text: &str) -> (&str, bool) {
    let text = text.trim();
    let plain = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    for host in ["huggingface.co/", "www.huggingface.co/", "hf.co/"] {
        if let Some(name) = plain.strip_prefix(host) {
            return (name, true);
        }
    }
    (text.strip_prefix("hf://").or_else(|| text.strip_prefix("hf:")).unwrap_or(text), false)
}

fn split(text: &str, separator: char) -> (&str, Option<&str>) {
    text.split_once(separator).map_or((text, None), |(before, after)| (before, Some(after)))
}

/// Whether this is a valid part of a name or revision, which becomes a part of addresses and paths.
pub fn is_part(part: &str) -> bool {
    !part.is_empty() && !part.starts_with('.') && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

pub fn is_revision(revision: &str) -> bool {
    revision.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses() {
        let tag = |tag: &str| Some(Choice::Tag(tag.to_owned()));
        let file = |name: &str| Some(Choice::File(name.to_owned()));
        let cases = [
            ("a/b", None, None),
            ("hf:a/b", None, None),
            ("https://huggingface.co/a/b", None, None),
            ("https://huggingface.co/a/b/", None, None),
            ("a/b@v1.0", Some("v1.0"), None),
            ("a/b@refs/pr/1", Some("refs/pr/1"), None),
            ("a/b@refs/pr/1/c.gguf", Some("refs/pr/1"), file("c.gguf")),
            ("a/b@v1/c.gguf", Some("v1"), file("c.gguf")),
            ("a/b:Q4_K_M", None, tag("Q4_K_M")),
            ("hf.co/a/b:Q4_K_M", None, tag("Q4_K_M")),
            ("a/b:c-q8.gguf", None, file("c-q8.gguf")),
            ("a/b:c.safetensors", None, file("c.safetensors")),
            ("a/b:c/d.safetensors", None, file("c/d.safetensors")),
            ("a/b@v1:c/d/e.bin", Some("v1"), file("c/d/e.bin")),
            ("a/b@v1:Q4_K_M", Some("v1"), tag("Q4_K_M")),
            ("a/b/c/d.gguf", None, file("c/d.gguf")),
            ("https://huggingface.co/a/b/tree/dev", Some("dev"), None),
            ("https://huggingface.co/a/b/blob/main/c/d.safetensors", Some("main"), file("c/d.safetensors")),
            ("https://huggingface.co/a/b/resolve/main/d.gguf?download=true", Some("main"), file("d.gguf")),
        ];
        for (text, revision, choice) in cases {
            let expected = ModelName { repo: "a/b".to_owned(), revision: revision.map(str::to_owned), choice };
            assert_eq!(ModelName::parse(text), Ok(expected.clone()), "{text}");
            assert_eq!(ModelName::parse(&expected.to_string()), Ok(expected), "{text}");
        }
        for text in [
            "",
            "a",
            "a/",
            "/b",
            "../b",
            "a/..",
            "a b/c",
            "/tmp/model",
            "./a/b",
            "a/b:",
            "a/b@",
            "a/b@../c",
            "a/b:c/d",
            "a/b@refs/pr/..",
        ] {
            assert!(ModelName::parse(text).is_err(), "{text}");
        }
    }
}
