//! Heads, and what is read and written of them as text. What delimits a message is not looked at here.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Uri, Version, request};

use crate::message::lines::FieldLines;
use crate::message::names::Name;

/// The head of a request.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// The request target.
    pub target: Uri,
    /// The version.
    pub version: Version,
    /// The field lines.
    pub fields: FieldLines,
}

impl From<request::Parts> for RequestHead {
    fn from(parts: request::Parts) -> Self {
        let request::Parts { method, uri: target, version, headers, .. } = parts;
        Self { method, target, version, fields: headers.into() }
    }
}

impl RequestHead {
    /// As the `http` crate has it, and without the fields here. `None` when a value is none that it takes.
    pub fn take_request<B>(&mut self, body: B) -> Option<Request<B>> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = std::mem::take(&mut self.fields).into_map()?;
        Some(request)
    }
}

/// An absolute form with the path `*`: RFC 9112 §3.2.4. The `http` crate has `/` where no path was sent.
pub fn asterisk_form(target: Uri) -> Uri {
    let mut parts = target.into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static("*"));
    Uri::from_parts(parts).unwrap_or_default()
}

/// Header lines of one head, either way.
pub const MAX_FIELDS: usize = 1000;
/// Header lines of nearly every head: as many as hyper takes unless it is asked for more, and as fit the stack.
pub const FEW_FIELDS: usize = 100;

/// Puts the lines of a response that httparse has found in `head` into a map, with their values where they are. `None` when one of them
/// is no field line, or `pass` says no.
pub fn read_fields(
    lines: &[httparse::Header<'_>],
    head: &Bytes,
    mut pass: impl FnMut(&HeaderName, &[u8]) -> bool,
) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(lines.len() + ADDED);
    for line in lines {
        let name = HeaderName::from(Name::read(line.name.as_bytes()).ok()?);
        if !pass(&name, line.value) {
            return None;
        }
        headers.append(name, HeaderValue::from_maybe_shared(head.slice_ref(line.value)).ok()?);
    }
    Some(headers)
}

/// Writes a field line.
#[inline]
pub fn write_field(text: &mut Vec<u8>, name: &str, value: &[u8]) {
    text.reserve(name.len() + value.len() + ": \r\n".len());
    text.extend_from_slice(name.as_bytes());
    text.extend_from_slice(b": ");
    text.extend_from_slice(value);
    text.extend_from_slice(b"\r\n");
}

/// Bytes of memory that a message takes with these headers: as they are, and as they are written to the other side.
pub fn memory(headers: &HeaderMap) -> usize {
    let lines = headers.iter().map(|(name, value)| HEADER_LINE + 3 * (name.as_str().len() + value.len()));
    lines.sum()
}

/// Fields that hostward may add.
const ADDED: usize = 8;
/// Bytes of memory that a header line takes besides its text.
pub const HEADER_LINE: usize = 200;
