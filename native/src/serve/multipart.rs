//! Bodies of the type `multipart/form-data` (RFC 7578).

use super::error::ApiError;

/// Parts at most.
const MAX_PARTS: usize = 64;
/// Bytes of the head of a part at most.
const MAX_HEAD: usize = 8 << 10;
/// Characters of a boundary at most (RFC 2046).
const MAX_BOUNDARY: usize = 70;

/// A field of a form.
#[derive(Debug, PartialEq, Eq)]
pub struct Part<'a> {
    pub name: String,
    /// Whether it has a file name.
    pub is_file: bool,
    pub bytes: &'a [u8],
}

/// The parts of a body.
///
/// # Errors
/// `invalid_form` if it is no form.
pub fn parse<'a>(content_type: &str, body: &'a [u8]) -> Result<Vec<Part<'a>>, ApiError> {
    let boundary = parameter(content_type, "boundary").filter(|boundary| (1..=MAX_BOUNDARY).contains(&boundary.len()));
    let boundary = boundary.ok_or_else(|| ApiError::invalid_form("the Content-Type has no boundary of a form"))?;
    let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
    // The first delimiter may be at the very beginning.
    let mut rest = match body.strip_prefix(&delimiter[2..]) {
        Some(rest) => rest,
        None => split(body, &delimiter).ok_or_else(|| ApiError::invalid_form("the body does not have the boundary"))?.1,
    };
    let mut parts = Vec::new();
    loop {
        if rest.starts_with(b"--") {
            return Ok(parts);
        }
        if parts.len() == MAX_PARTS {
            return Err(ApiError::invalid_form(format!("the form has more than {MAX_PARTS} fields")));
        }
        let line = split(rest, b"\r\n").filter(|(padding, _)| padding.iter().all(|byte| matches!(byte, b' ' | b'\t')));
        let (_, part) = line.ok_or_else(|| ApiError::invalid_form("the form is cut off at a boundary"))?;
        let (content, next) =
            split(part, &delimiter).ok_or_else(|| ApiError::invalid_form("the form is cut off in a field"))?;
        parts.push(parse_part(content)?);
        rest = next;
    }
}

fn parse_part(content: &[u8]) -> Result<Part<'_>, ApiError> {
    let headless = || ApiError::invalid_form("a field of the form has no head");
    // A part without any header starts with the empty line.
    let (head, bytes) = match content.strip_prefix(b"\r\n") {
        Some(_) => return Err(headless()),
        None => split(content, b"\r\n\r\n").filter(|(head, _)| head.len() <= MAX_HEAD).ok_or_else(headless)?,
    };
    let head = str::from_utf8(head).map_err(|_| ApiError::invalid_form("the head of a field is not UTF-8"))?;
    let mut lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
    let disposition = lines.find(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition"));
    let (_, disposition) = disposition.ok_or_else(headless)?;
    let name = parameter(disposition, "name").filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ApiError::invalid_form("a field of the form has no name"))?;
    Ok(Part { name, is_file: parameter(disposition, "filename").is_some(), bytes })
}

/// What is before the first `delimiter`, and after it.
fn split<'a>(bytes: &'a [u8], delimiter: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (first, others) = delimiter.split_first()?;
    let mut start = 0;
    loop {
        let found = start + bytes.get(start..)?.iter().position(|byte| byte == first)?;
        let after = &bytes[found + 1..];
        if let Some(rest) = after.strip_prefix(others) {
            return Some((&bytes[..found], rest));
        }
        start = found + 1;
    }
}

/// A parameter of a header's value: `b` of `form-data; name="b"`.
fn parameter(value: &str, wanted: &str) -> Option<String> {
    let mut rest = value.split_once(';')?.1;
    loop {
        let (name, after) = rest.split_once('=')?;
        let mut value = String::new();
        let after = after.trim_start();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut characters = quoted.char_indices();
            let end = loop {
                match characters.next()? {
                    (at, '"') => break at + 1,
                    // Browsers write quotes as %22; others escape them.
                    (_, '\\') if matches!(characters.clone().next(), Some((_, '"' | '\\'))) => {
                        value.push(characters.next()?.1);
                    }
                    (_, other) => value.push(other),
                }
            };
            rest = &quoted[end..];
        } else {
            let end = after.find(';').unwrap_or(after.len());
            value.push_str(after[..end].trim());
            rest = &after[end..];
        }
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = rest.split_once(';')?.1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its name, whether it is a file, and its bytes.
    type Field = (String, bool, Vec<u8>);

    fn form(body: &[u8]) -> Result<Vec<Field>, &'static str> {
        let parts = parse("multipart/form-data; boundary=B", body).map_err(|error| error.code())?;
        Ok(parts.into_iter().map(|part| (part.name, part.is_file, part.bytes.to_vec())).collect())
    }

    #[test]
    fn forms_are_read() {
        let body = b"--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--B\r\ncontent-type: image/png\r\n\
            content-disposition: form-data; filename=\"x\\\"; name=z.png\"; name=image\r\n\r\n\x89\r\n--\r\n-B\n\r\n--B--\r\n";
        let image = b"\x89\r\n--\r\n-B\n".to_vec();
        let expected = vec![("a".to_owned(), false, b"1".to_vec()), ("image".to_owned(), true, image)];
        assert_eq!(form(body), Ok(expected));
        assert_eq!(form(b"preamble\r\n--B--"), Ok(Vec::new()));
        // Cut off anywhere, or without anything that it needs, it is an error and no panic.
        for length in 0..body.len() - 4 {
            assert_eq!(form(&body[..length]), Err("invalid_form"), "{length} bytes");
        }
        for wrong in [
            &b"--B\r\n\r\n\r\n--B--"[..],
            b"--B\r\nContent-Disposition: form-data\r\n\r\n1\r\n--B--",
            b"--B\r\nContent-Disposition: form-data; name=\"a\r\n\r\n1\r\n--B--",
            b"--B\r\nA: b\r\n\r\n1\r\n--B--",
            b"--B\r\n\xff: b\r\n\r\n1\r\n--B--",
            b"--Bx\r\n",
        ] {
            assert_eq!(form(wrong), Err("invalid_form"), "{}", String::from_utf8_lossy(wrong));
        }
        let many =
            [b"--B\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n".repeat(65), b"--B--".to_vec()].concat();
        assert_eq!(form(&many), Err("invalid_form"));
        for content_type in ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary"] {
            assert_eq!(parse(content_type, body).map_err(|error| error.code()), Err("invalid_form"));
        }
    }
}
