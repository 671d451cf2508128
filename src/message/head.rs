//! The fields of HTTP/1.1 heads, between text and map. What delimits a message is not looked at here.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::message::names;

/// Field lines of one head, as many as hyper takes.
pub const MAX_FIELDS: usize = 100;

/// Puts the lines that httparse has found in `head` into a map, with their values where they are. `None` when one of them
/// is no field line, or `pass` says no.
pub fn read_fields(
    lines: &[httparse::Header<'_>],
    head: &Bytes,
    mut pass: impl FnMut(&HeaderName, &[u8]) -> bool,
) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(lines.len() + ADDED);
    for line in lines {
        let name = names::name(line.name.as_bytes()).ok()?;
        if !pass(&name, line.value) {
            return None;
        }
        headers.append(name, HeaderValue::from_maybe_shared(head.slice_ref(line.value)).ok()?);
    }
    Some(headers)
}

/// Writes a field line.
pub fn write_field(text: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
    text.reserve(name.len() + value.len() + ": \r\n".len());
    text.extend_from_slice(name);
    text.extend_from_slice(b": ");
    text.extend_from_slice(value);
    text.extend_from_slice(b"\r\n");
}

/// Fields that hostward may add.
const ADDED: usize = 8;
