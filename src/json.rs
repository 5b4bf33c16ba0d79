//! JSON as Python writes it.
//!
//! Checkpoints' JSON files come from Python's `json`, which also writes and reads `NaN`, `Infinity`, `-Infinity`,
//! numbers of any size, repeated keys (the last one counts) and halves of surrogate pairs. Editors and shells on
//! Windows add a byte-order mark, or write UTF-16. `serde_json` refuses all of these.

use serde::de::DeserializeOwned;
use serde_json::{Result, Value};

/// Reads JSON. Numbers that no f64 holds become the texts `NaN`, `Infinity` and `-Infinity` ([`number`]).
///
/// # Errors
/// Those of `serde_json`, if `bytes` are not JSON as Python reads it, or not a `T`.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    read_with(bytes, |bytes| serde_json::from_slice(bytes))
}

/// Calls `read` with `bytes`, and if that fails with their equivalent in strict JSON without repeated keys.
///
/// # Errors
/// Those of `read`.
pub fn read_with<T, E>(bytes: &[u8], read: impl Fn(&[u8]) -> std::result::Result<T, E>) -> std::result::Result<T, E> {
    let error = match read(bytes) {
        Err(error) => error,
        read => return read,
    };
    let strict = strict(bytes);
    let again = match serde_json::from_slice::<Value>(&strict) {
        Ok(value) => read(value.to_string().as_bytes()),
        Err(_) => read(&strict),
    };
    // The line in the first error is the file's.
    if strict == bytes { again.map_err(|_| error) } else { again }
}

/// A number, or the value of one of the texts `NaN`, `Infinity` and `-Infinity`.
pub fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some("NaN") => Some(f64::NAN),
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        _ => value.as_f64(),
    }
}

/// Python's JSON as strict JSON, except for repeated keys. Text that is invalid in both is copied unchanged.
pub(crate) fn strict(bytes: &[u8]) -> Vec<u8> {
    let wide: Option<fn([u8; 2]) -> u16> = match bytes {
        [0xff, 0xfe, ..] => Some(u16::from_le_bytes),
        [0xfe, 0xff, ..] => Some(u16::from_be_bytes),
        _ => None,
    };
    let text = wide.map(|unit| {
        let units: Vec<u16> = bytes.chunks_exact(2).skip(1).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units).into_bytes()
    });
    let mut rest = text.as_deref().unwrap_or(bytes);
    rest = rest.strip_prefix(b"\xef\xbb\xbf").unwrap_or(rest);
    let mut out = Vec::with_capacity(rest.len());
    while let Some(first) = rest.first() {
        let length = match first {
            b'"' => copy_string(rest, &mut out),
            b'-' | b'+' | b'.' | b'0'..=b'9' | b'I' | b'N' => copy_number(rest, &mut out),
            other => {
                out.push(*other);
                1
            }
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    out
}

/// Copies the string at the start of `rest` with U+FFFD for halves of surrogate pairs. Returns its length.
fn copy_string(rest: &[u8], out: &mut Vec<u8>) -> usize {
    let unit = |at: usize| {
        let digits = rest.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    out.push(b'"');
    let mut at = 1;
    while let Some(byte) = rest.get(at) {
        let length = match (byte, unit(at)) {
            (b'\\', Some(0xd800..=0xdbff)) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => 12,
            (b'\\', Some(0xd800..=0xdfff)) => {
                out.extend_from_slice(b"\\ufffd");
                at += 6;
                continue;
            }
            (b'\\', _) => 2,
            _ => 1,
        };
        let end = (at + length).min(rest.len());
        out.extend_from_slice(&rest[at..end]);
        at = end;
        if *byte == b'"' {
            break;
        }
    }
    at
}

/// Copies the number at the start of `rest`, as a text if no f64 holds it. Returns its length.
fn copy_number(rest: &[u8], out: &mut Vec<u8>) -> usize {
    for name in ["NaN", "Infinity", "-Infinity"] {
        if rest.starts_with(name.as_bytes()) {
            out.extend_from_slice(format!("\"{name}\"").as_bytes());
            return name.len();
        }
    }
    let digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    let length = rest.iter().take_while(|byte| digit(byte)).count().max(1);
    let text = &rest[..length];
    let value = std::str::from_utf8(text).ok().and_then(|text| text.parse::<f64>().ok());
    match value {
        Some(f64::INFINITY) => out.extend_from_slice(b"\"Infinity\""),
        Some(f64::NEG_INFINITY) => out.extend_from_slice(b"\"-Infinity\""),
        _ => out.extend_from_slice(text),
    }
    length
}
