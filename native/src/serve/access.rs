//! Who may ask: keys, host names, and origins of pages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, AUTHORIZATION, HOST, ORIGIN,
    VARY,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::error::ApiError;

/// Whose request it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Users share the device fairly. A key's number from 1, or a hash of the client's address.
    pub number: u64,
    /// The first 8 hexadecimal digits of the key's digest, for the log.
    pub name: Option<String>,
}

/// The server's rules.
#[derive(Debug)]
pub struct Access {
    /// SHA-256 of each key.
    keys: Vec<[u8; 32]>,
    /// Hosts that a request may name; `None`: any.
    hosts: Option<Vec<String>>,
    /// Origins of pages.
    origins: Vec<String>,
}

impl Access {
    /// `hosts`: names besides those of the loopback addresses that this server listens on, if it does.
    pub fn new(keys: &[String], hosts: Option<Vec<String>>, origins: Vec<String>) -> Self {
        Self { keys: keys.iter().map(|key| Sha256::digest(key).into()).collect(), hosts, origins }
    }

    /// Checks the host that a request names. A page whose name resolves to this computer would be the same origin.
    ///
    /// # Errors
    /// `host_not_allowed`.
    pub fn check_host(&self, headers: &HeaderMap, uri: &Uri) -> Result<(), ApiError> {
        let Some(hosts) = &self.hosts else { return Ok(()) };
        let mut named = headers.get_all(HOST).iter();
        let (first, more) = (named.next(), named.next());
        let header = first.and_then(|host| host.to_str().ok()).unwrap_or_default();
        let allowed = |authority: &str| {
            let host = without_port(authority).to_ascii_lowercase();
            host == "localhost" || is_loopback(&host) || hosts.iter().any(|name| name.eq_ignore_ascii_case(&host))
        };
        let in_uri = uri.authority().is_none_or(|authority| allowed(authority.as_str()));
        if more.is_none() && allowed(header) && in_uri { Ok(()) } else { Err(ApiError::host_not_allowed(header)) }
    }

    /// The user whose key a request has. Every key is compared, in constant time.
    ///
    /// # Errors
    /// `invalid_api_key`.
    pub fn user(&self, headers: &HeaderMap, client: IpAddr) -> Result<User, ApiError> {
        if self.keys.is_empty() {
            let digest = Sha256::digest(client.to_string());
            let number = digest.iter().take(8).fold(0u64, |number, byte| (number << 8) | u64::from(*byte));
            return Ok(User { number, name: None });
        }
        let bearer = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| {
            let (scheme, key) = value.split_at_checked("bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii())
        });
        let sent = bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes)).unwrap_or_default();
        let digest: [u8; 32] = Sha256::digest(sent).into();
        let (mut number, mut found) = (0u64, Choice::from(0));
        for (index, key) in self.keys.iter().enumerate() {
            let equal = key.as_slice().ct_eq(digest.as_slice());
            number.conditional_assign(&(index as u64 + 1), equal);
            found |= equal;
        }
        if !bool::from(found) {
            return Err(ApiError::invalid_api_key());
        }
        let name = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Ok(User { number, name: Some(name) })
    }

    /// The answer to a browser that asks whether a page may send a request; `None` if it may not.
    pub fn preflight(&self, headers: &HeaderMap) -> Option<Response> {
        self.allowed_origin(headers)?;
        let mut allowed = HeaderMap::new();
        allowed.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        if let Some(names) = headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
            allowed.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
        }
        allowed.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        Some((StatusCode::NO_CONTENT, allowed).into_response())
    }

    /// Checks that a form does not come from a page of another origin: browsers send forms without asking.
    ///
    /// # Errors
    /// `origin_not_allowed`.
    pub fn check_form_origin(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
        let host = headers.get(HOST).map(HeaderValue::as_bytes).unwrap_or_default();
        let schemes: [&[u8]; 2] = [b"http://", b"https://"];
        let is_own = schemes.iter().any(|scheme| origin.as_bytes().strip_prefix(*scheme) == Some(host));
        if is_own || self.allowed_origin(headers).is_some() { Ok(()) } else { Err(ApiError::origin_not_allowed()) }
    }

    /// Lets pages of allowed origins read an answer.
    pub fn allow_origin(&self, request: &HeaderMap, response: &mut HeaderMap) {
        if self.origins.is_empty() {
            return;
        }
        response.append(VARY, HeaderValue::from_static("origin"));
        if let Some(origin) = self.allowed_origin(request) {
            response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            let exposed = HeaderValue::from_static("x-request-id, x-mgm-ignored, x-should-retry, retry-after");
            response.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
    }

    fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(ORIGIN)?;
        let named = |allowed: &String| allowed.as_bytes() == origin.as_bytes();
        if self.origins.iter().any(|origin| origin == "*") {
            Some(HeaderValue::from_static("*"))
        } else {
            self.origins.iter().any(named).then(|| origin.clone())
        }
    }
}

/// Whether a host is a loopback address. Those of IPv6 have brackets.
fn is_loopback(host: &str) -> bool {
    match host.strip_prefix('[') {
        Some(rest) => {
            let address = rest.strip_suffix(']').map(str::parse::<Ipv6Addr>);
            address.is_some_and(|address| address.is_ok_and(|address| address.is_loopback()))
        }
        None => host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback()),
    }
}

/// The host of `host:port`. IPv6 addresses have brackets.
fn without_port(authority: &str) -> &str {
    let end = if authority.starts_with('[') {
        authority.find(']').map_or(authority.len(), |end| end + 1)
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, rest) = authority.split_at(end);
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit());
    match rest.strip_prefix(':') {
        // Whatever it is, it is no host.
        Some(port) if !is_port(port) => authority,
        None if !rest.is_empty() => authority,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).expect("a header"));
        }
        headers
    }

    #[test]
    fn only_local_hosts_are_served_on_loopback() {
        let access = Access::new(&[], Some(vec!["box.lan".to_owned()]), Vec::new());
        let uri = Uri::from_static("/");
        let allowed = |host: &str| access.check_host(&headers(&[("host", host)]), &uri).is_ok();
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "127.1.2.3", "[::1]:8080", "[::1]", "box.lan:80"] {
            assert!(allowed(host), "{host}");
        }
        for host in [
            "",
            "evil",
            "evil.localhost.org",
            "localhost.evil",
            "127.0.0.1.evil",
            "10.0.0.1",
            "[::2]",
            "localhost:x",
            "localhost:",
            "[::1",
            "[::1]evil",
            "evil:80:localhost",
            "localhost@evil",
        ] {
            assert!(!allowed(host), "{host}");
        }
        assert!(access.check_host(&HeaderMap::new(), &uri).is_err());
        assert!(access.check_host(&headers(&[("host", "localhost"), ("host", "evil")]), &uri).is_err());
        assert!(access.check_host(&headers(&[("host", "localhost")]), &Uri::from_static("http://evil/")).is_err());
        let anywhere = Access::new(&[], None, Vec::new());
        assert!(anywhere.check_host(&HeaderMap::new(), &uri).is_ok());
    }

    #[test]
    fn a_key_is_needed_and_names_its_user() {
        let keys: Vec<String> = ["first", "second"].map(str::to_owned).to_vec();
        let access = Access::new(&keys, None, Vec::new());
        let client = IpAddr::from([127, 0, 0, 1]);
        let number =
            |fields: &[(&'static str, &str)]| access.user(&headers(fields), client).map(|user| user.number).ok();
        assert_eq!(number(&[("authorization", "Bearer first")]), Some(1));
        assert_eq!(number(&[("authorization", "bearer second")]), Some(2));
        assert_eq!(number(&[("x-api-key", "second")]), Some(2));
        let wrong = "x".repeat(10_000);
        for key in ["", "Bearer", "Bearer ", "Bearer firs", "Bearer first2", "Basic first", "first", &wrong] {
            assert_eq!(number(&[("authorization", key)]), None, "{key:?}");
        }
        assert_eq!(number(&[]), None);
        // SHA-256 of "first", by sha256sum.
        let user = access.user(&headers(&[("x-api-key", "first")]), client).expect("a user");
        assert_eq!(user.name.as_deref(), Some("a7937b64"));
    }

    #[test]
    fn pages_of_other_origins_need_permission() {
        let access = Access::new(&[], None, vec!["https://example.org".to_owned()]);
        let page = |origin: &str| headers(&[("origin", origin), ("access-control-request-headers", "x-a")]);
        let answer = access.preflight(&page("https://example.org")).expect("allowed");
        assert_eq!(answer.headers()[ACCESS_CONTROL_ALLOW_HEADERS], "x-a");
        assert!(access.preflight(&page("https://example.org.evil")).is_none());
        assert!(access.preflight(&HeaderMap::new()).is_none());
        let mut headers = HeaderMap::new();
        let is_allowed = |origin: &str| access.check_form_origin(&page(origin)).is_ok();
        assert_eq!(["https://example.org", "https://evil", "null"].map(is_allowed), [true, false, false]);
        let own = |origin| access.check_form_origin(&self::headers(&[("host", "localhost:80"), ("origin", origin)]));
        assert!(own("http://localhost:80").is_ok() && own("http://localhost:81").is_err());
        access.allow_origin(&page("https://evil"), &mut headers);
        assert!(!headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
        access.allow_origin(&page("https://example.org"), &mut headers);
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "https://example.org");
    }
}
