//! Images that requests name by URL: of the scheme `data`, that is, in the request itself.

use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, Engine};

use super::error::ApiError;

/// Media types of images.
const MEDIA_TYPES: [&str; 6] = ["image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif", "image/bmp"];
/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// An image of a request that is not decoded yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUrl {
    /// The field that it is in.
    pub param: String,
    pub url: String,
}

impl ImageUrl {
    /// The bytes of the image file.
    ///
    /// # Errors
    /// `invalid_image` for a data URL that is damaged or of another type; `image_url_not_allowed` for other URLs.
    pub fn bytes(&self) -> Result<Vec<u8>, ApiError> {
        let Some(data) = strip_scheme(&self.url, "data:") else {
            let scheme = self.url.split_once(':').map(|(scheme, _)| scheme).filter(|scheme| scheme.len() <= 10);
            let found = match scheme {
                Some(scheme) => format!("a URL of the scheme {:?}", scheme.to_ascii_lowercase()),
                None => "no URL".to_owned(),
            };
            let message = format!(
                "{} is {found}, expected a data URL: this server does not fetch images; send them as \
                 data:image/png;base64,…",
                self.param
            );
            return Err(ApiError::image_url_not_allowed(&self.param, message));
        };
        let wrong = |reason: String| ApiError::invalid_image(&self.param, format!("{}: {reason}", self.param));
        let (head, body) =
            data.split_once(',').ok_or_else(|| wrong("the data URL has no comma before its data".to_owned()))?;
        let mut parts = head.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
        if !MEDIA_TYPES.contains(&media_type.as_str()) {
            let found: String = media_type.chars().take(40).collect();
            return Err(wrong(format!(
                "the data URL has the type {found:?}, expected one of {}",
                MEDIA_TYPES.join(", ")
            )));
        }
        if !parts.next_back().is_some_and(|last| last.eq_ignore_ascii_case("base64")) {
            return Err(wrong("the data URL is not base64, expected data:image/png;base64,…".to_owned()));
        }
        BASE64.decode(body).map_err(|error| wrong(format!("the data URL is not valid base64: {error}")))
    }
}

/// What follows a scheme, in any case.
fn strip_scheme<'a>(url: &'a str, scheme: &str) -> Option<&'a str> {
    let (start, rest) = url.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(url: &str) -> Result<Vec<u8>, &'static str> {
        ImageUrl { param: "x".to_owned(), url: url.to_owned() }.bytes().map_err(|error| error.code())
    }

    #[test]
    fn data_urls_are_decoded() {
        // RFC 4648, section 10.
        for (text, expected) in
            [("Zg==", "f"), ("Zg", "f"), ("Zm9v", "foo"), ("Zm9vYg==", "foob"), ("Zm9vYmFy", "foobar"), ("", "")]
        {
            assert_eq!(bytes(&format!("data:image/png;base64,{text}")), Ok(expected.as_bytes().to_vec()), "{text}");
        }
        assert_eq!(bytes("DATA:Image/JPEG;name=a.jpg;BASE64,Zm9v"), Ok(b"foo".to_vec()));
        for wrong in [
            "data:",
            "data:,",
            "data:image/png;base64",
            "data:image/png,Zm8=",
            "data:image/png;base64,Zm8=\n",
            "data:image/png;base64,Z",
            "data:image/png;base64,Zm9_",
            "data:image/png;base64,é",
            "data:image/svg+xml;base64,Zm8=",
            "data:text/html;base64,Zm8=",
            "data:;base64,Zm8=",
        ] {
            assert_eq!(bytes(wrong), Err("invalid_image"), "{wrong}");
        }
        for other in ["https://example.org/a.png", "http://localhost/", "file:///etc/passwd", "Zm8=", "", "é", "ftp:x"]
        {
            assert_eq!(bytes(other), Err("image_url_not_allowed"), "{other}");
        }
    }
}
