//! Proxies, from the variables that curl and Python's requests read.

use mgm::{Error, Result};
use ureq::Proxy;
use ureq::http::Uri;

/// The proxies of this process.
#[derive(Debug, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    /// Hosts that are reached directly.
    no_proxy: Vec<String>,
}

impl Proxies {
    /// Reads `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, each in capital or small letters.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a value that is not a proxy's address.
    pub fn read() -> Result<Self> {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| {
            let names = [name.to_lowercase(), name.to_owned()];
            names.into_iter().find_map(|name| variable(&name)).filter(|value| !value.is_empty())
        };
        let proxy = |name: &str| -> Result<Option<Proxy>> {
            let found = [name, "ALL_PROXY"].into_iter().find_map(|name| Some((name, set(name)?)));
            let Some((name, value)) = found else { return Ok(None) };
            let wrong = |_| {
                Error::InvalidArgument(format!(
                    "{name} is not a proxy's address; expected one such as http://proxy:3128 or socks5h://proxy:1080"
                ))
            };
            Proxy::new(&value).map(Some).map_err(wrong)
        };
        let no_proxy = set("NO_PROXY").unwrap_or_default();
        let no_proxy = no_proxy.split([',', ' ']).map(|host| host.trim().to_lowercase());
        Ok(Self {
            http: proxy("HTTP_PROXY")?,
            https: proxy("HTTPS_PROXY")?,
            no_proxy: no_proxy.filter(|host| !host.is_empty()).collect(),
        })
    }

    /// The proxy for an address, if it is not reached directly.
    pub fn of(&self, url: &str) -> Option<Proxy> {
        let uri: Uri = url.parse().ok()?;
        let proxy = if uri.scheme_str() == Some("https") { &self.https } else { &self.http };
        let host = uri.host()?.trim_matches(['[', ']']).to_lowercase();
        let with_port = uri.port_u16().map(|port| format!("{host}:{port}"));
        let direct = |entry: &String| {
            let domain = entry.trim_start_matches('*').trim_start_matches('.');
            entry == "*"
                || Some(entry) == with_port.as_ref()
                || host == domain
                || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.') && !domain.is_empty())
        };
        proxy.clone().filter(|_| !self.no_proxy.iter().any(direct))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(variables: &[(&str, &str)], url: &str) -> Option<String> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let proxies = Proxies::from_variables(&find).expect("proxies");
        proxies.of(url).map(|proxy| format!("{}:{}", proxy.host(), proxy.port()))
    }

    /// What curl does with the same variables.
    #[test]
    fn each_scheme_has_its_proxy() {
        let hub = "https://huggingface.co/a";
        assert_eq!(host(&[], hub), None);
        assert_eq!(host(&[("HTTPS_PROXY", "http://p:3128")], hub), Some("p:3128".to_owned()));
        assert_eq!(host(&[("https_proxy", "http://p:3128")], hub), Some("p:3128".to_owned()));
        assert_eq!(host(&[("ALL_PROXY", "http://p:3128")], hub), Some("p:3128".to_owned()));
        assert_eq!(host(&[("ALL_PROXY", "http://q:1"), ("HTTPS_PROXY", "http://p:2")], hub), Some("p:2".to_owned()));
        assert_eq!(host(&[("HTTP_PROXY", "http://p:3128")], hub), None);
        assert_eq!(host(&[("HTTP_PROXY", "http://p:3128")], "http://x/a"), Some("p:3128".to_owned()));
        for scheme in ["socks", "socks4", "socks4a", "socks5", "socks5h"] {
            assert_eq!(host(&[("ALL_PROXY", &format!("{scheme}://p"))], hub), Some("p:1080".to_owned()));
        }
        let find = |name: &str| (name == "HTTPS_PROXY").then(|| "quic://p:1080".to_owned());
        let error = Proxies::from_variables(&find).expect_err("another protocol").to_string();
        assert!(error.contains("HTTPS_PROXY") && error.contains("socks5h://"), "{error}");
    }

    #[test]
    fn some_hosts_are_reached_directly() {
        let with = |no_proxy: &str, url: &str| host(&[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", no_proxy)], url);
        for no_proxy in ["*", "huggingface.co", "x, huggingface.co", ".huggingface.co", "HUGGINGFACE.CO", "co"] {
            assert_eq!(with(no_proxy, "https://huggingface.co/a"), None, "{no_proxy}");
        }
        assert_eq!(with("huggingface.co", "https://cdn.huggingface.co/a"), None);
        assert_eq!(with("127.0.0.1:8000", "https://127.0.0.1:8000/a"), None);
        for no_proxy in ["", "face.co", "cdn.huggingface.co", "huggingface.co:8000"] {
            assert!(with(no_proxy, "https://huggingface.co/a").is_some(), "{no_proxy}");
        }
    }
}
