//! The environment variables of Hugging Face's tools, with their meaning there.

use std::ffi::OsString;
use std::path::PathBuf;

use mgm::{Error, Result};

use crate::files::{home, io_error, with_home};

const ENDPOINT: &str = "https://huggingface.co";

/// The Hub's address, its cache folder and the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// Address of the Hub, or of a mirror (`HF_ENDPOINT`), without a slash at the end.
    pub endpoint: String,
    /// For private and gated repositories: `HF_TOKEN`, or the file that `hf auth login` writes.
    pub token: Option<String>,
    /// Folder of the cache: `HF_HUB_CACHE`, or `hub` in `HF_HOME`. `None` if there is no home folder.
    pub cache: Option<PathBuf>,
    /// `HF_HUB_OFFLINE`: use only what is in the cache.
    pub offline: bool,
}

impl Environment {
    /// Reads the variables of this process.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `HF_ENDPOINT` is not an HTTP address or the token has characters that no token
    /// has; [`Error::Io`] if the token's file cannot be read.
    pub fn read() -> Result<Self> {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let is_true = |name: &str| {
            set(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()))
        };
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::InvalidArgument(format!(
                "HF_ENDPOINT is {endpoint:?}, expected an address that starts with https://"
            )));
        }
        let user = home(|name| variable(name).map(OsString::from));
        let path = |text: String| with_home(&text, user.as_deref());
        let caches = set("XDG_CACHE_HOME").map(path).or_else(|| user.as_ref().map(|user| user.join(".cache")));
        let hf_home = set("HF_HOME").map(path).or_else(|| caches.map(|caches| caches.join("huggingface")));
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).map(path);
        let token_file = set("HF_TOKEN_PATH").map(path).or_else(|| hf_home.as_ref().map(|home| home.join("token")));
        let variable = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find_map(|name| Some((name, set(name)?)));
        let token = match (variable, token_file) {
            _ if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            (Some((name, token)), _) => clean_token(&token, name)?,
            (None, Some(file)) => match std::fs::read_to_string(&file) {
                Ok(token) => clean_token(&token, &file.display().to_string())?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                // A component of the path is a file.
                Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => None,
                Err(error) => return Err(io_error(&file, error)),
            },
            (None, None) => None,
        };
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            cache: cache.or_else(|| hf_home.map(|home| home.join("hub"))),
            offline: is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE"),
        })
    }
}

/// A token without the line end and blanks around it that files and shells add. `None` if nothing is left.
fn clean_token(token: &str, source: &str) -> Result<Option<String>> {
    let token = token.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::InvalidArgument(format!(
            "{source} has blanks or other characters that no token has; expected one such as hf_… alone"
        )));
    }
    Ok((!token.is_empty()).then(|| token.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Environment::from_variables(&find)
    }

    /// The folders that huggingface_hub 0.36 uses for the same variables.
    #[test]
    fn folders_are_those_of_huggingface_hub() {
        let cases: [(&[(&str, &str)], &str); 6] = [
            (&[("HOME", "/home/a")], "/home/a/.cache/huggingface/hub"),
            (&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/c")], "/c/huggingface/hub"),
            (&[("HOME", "/home/a"), ("HF_HOME", "/big")], "/big/hub"),
            (&[("HOME", "/home/a"), ("HF_HOME", "~/big")], "/home/a/big/hub"),
            (&[("HF_HOME", "/big"), ("HF_HUB_CACHE", "/cache")], "/cache"),
            (&[("HF_HOME", "/big"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
        ];
        for (variables, expected) in cases {
            let found = read(variables).expect("an environment").cache.expect("a folder");
            assert_eq!(found, Path::new(expected), "{variables:?}");
        }
        assert_eq!(read(&[]).expect("an environment").cache, None);
    }

    #[test]
    fn tokens_come_from_the_variable_or_the_file_of_hf_auth_login() {
        let token = |variables: &[(&str, &str)]| read(variables).map(|environment| environment.token);
        for text in ["hf_abc", "hf_abc\n", "hf_abc\r\n", "  hf_abc\t"] {
            assert_eq!(token(&[("HF_TOKEN", text)]), Ok(Some("hf_abc".to_owned())), "{text:?}");
        }
        assert_eq!(token(&[("HF_TOKEN", "\n")]), Ok(None));
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "hf_old")]), Ok(Some("hf_old".to_owned())));
        assert_eq!(token(&[("HF_TOKEN", "hf_a"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), Ok(None));
        let error = token(&[("HF_TOKEN", "hf_a\nhf_b")]).expect_err("two lines").to_string();
        assert!(error.contains("HF_TOKEN") && !error.contains("hf_a"), "{error}");

        let home = tempfile::TempDir::new().expect("a folder");
        let folder = home.path().to_str().expect("UTF-8");
        assert_eq!(token(&[("HF_HOME", folder)]), Ok(None));
        std::fs::write(home.path().join("token"), "hf_file\n").expect("a file");
        assert_eq!(token(&[("HF_HOME", folder)]), Ok(Some("hf_file".to_owned())));
        assert_eq!(token(&[("HF_HOME", folder), ("HF_TOKEN", "hf_abc")]), Ok(Some("hf_abc".to_owned())));
        let file = home.path().join("token");
        assert_eq!(token(&[("HF_TOKEN_PATH", file.to_str().expect("UTF-8"))]), Ok(Some("hf_file".to_owned())));
    }

    #[test]
    fn offline_and_the_endpoint() {
        for (value, expected) in [("1", true), ("true", true), ("ON", true), ("0", false), ("", false)] {
            assert_eq!(
                read(&[("HF_HUB_OFFLINE", value)]).map(|environment| environment.offline),
                Ok(expected),
                "{value}"
            );
        }
        assert!(read(&[("TRANSFORMERS_OFFLINE", "1")]).expect("an environment").offline);
        let endpoint = |value| read(&[("HF_ENDPOINT", value)]).map(|environment| environment.endpoint);
        assert_eq!(endpoint("https://hf-mirror.example/"), Ok("https://hf-mirror.example".to_owned()));
        assert_eq!(endpoint(""), Ok(ENDPOINT.to_owned()));
        assert!(endpoint("ftp://x").is_err());
    }
}
