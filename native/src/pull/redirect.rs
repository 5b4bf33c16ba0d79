//! Redirects: where they lead, and which hosts may receive the token.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use ureq::http::Uri;

/// Characters that are invalid in a URL, but that some servers send.
const FORBIDDEN: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\').add(b'^').add(b'`').add(b'{').add(b'}').add(b'|');

/// The address of a `Location` header in a response to a request for `base` (RFC 3986, section 5.2, without dot
/// segments, which HTTP servers resolve).
pub fn resolve(base: &str, location: &str) -> Option<String> {
    let location = utf8_percent_encode(location.trim(), FORBIDDEN).to_string();
    let location = location.split('#').next().unwrap_or_default();
    let base: Uri = base.parse().ok()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let resolved = if location.contains("://") && !location.starts_with(['/', '?']) {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let uri: Uri = resolved.parse().ok()?;
    (matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()).then_some(resolved)
}

/// Whether a token for `first` may be sent to `other`: the same host and port, or the same host with TLS.
pub fn same_host(first: &str, other: &str) -> bool {
    let (Ok(first), Ok(other)) = (first.parse::<Uri>(), other.parse::<Uri>()) else { return false };
    let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    let upgraded = (first.scheme_str(), port(&first), other.scheme_str(), port(&other));
    host(&first) == host(&other)
        && (first.scheme_str() == other.scheme_str() && port(&first) == port(&other)
            || upgraded == (Some("http"), 80, Some("https"), 443))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved() {
        let base = "https://hub.example/a/b?c";
        let cases = [
            ("https://cdn.example/x?y=z%20", "https://cdn.example/x?y=z%20"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("/api/x", "https://hub.example/api/x"),
            ("x", "https://hub.example/a/x"),
            ("?x=https://y", "https://hub.example/a/b?x=https://y"),
            ("/a b#part", "https://hub.example/a%20b"),
        ];
        for (location, expected) in cases {
            assert_eq!(resolve(base, location).as_deref(), Some(expected), "{location}");
        }
        for location in ["ftp://x/y", "file:///etc/passwd"] {
            assert_eq!(resolve(base, location), None, "{location}");
        }
    }

    #[test]
    fn tokens_stay_with_their_host() {
        let cases = [
            ("https://a.example/x", "https://A.example/y", true),
            ("https://a.example/x", "https://a.example:443/y", true),
            ("http://a.example/x", "https://a.example/y", true),
            ("https://a.example/x", "http://a.example/y", false),
            ("https://a.example/x", "https://cdn.a.example/y", false),
            ("https://a.example/x", "https://a.example.evil/y", false),
            ("http://a.example:8000/x", "http://a.example:8001/y", false),
            ("http://a.example:8000/x", "http://a.example:8000/y", true),
            ("https://a.example/x", "https://a.example@evil.example/y", false),
        ];
        for (first, other, expected) in cases {
            assert_eq!(same_host(first, other), expected, "{first} {other}");
        }
    }
}
