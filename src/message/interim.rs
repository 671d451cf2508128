//! Interim responses (1xx) on their way from the app to the client. RFC 9110 §15.2: "A proxy MUST forward 1xx
//! responses unless the proxy itself requested the generation of the 1xx response."

use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::message::fields::connection_options;

/// Where an interim response at the start of `bytes` ends, if one stands there whole. `101` is final for us:
/// it ends HTTP on the connection.
pub fn find(bytes: &[u8]) -> Found {
    match bytes.get(..STATUS_LINE.len() + 3) {
        Some(start) if start.starts_with(STATUS_LINE) && start[9] == b'1' && &start[10..12] != b"01" => {
            match memchr::memmem::find(bytes, b"\r\n\r\n") {
                Some(at) => Found::Interim(at + 4),
                None => Found::Incomplete,
            }
        }
        // Too short to tell, but for the version.
        None if STATUS_LINE.starts_with(&bytes[..bytes.len().min(STATUS_LINE.len())]) => Found::Incomplete,
        Some(_) | None => Found::Final,
    }
}

/// What stands at the start of an app's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// An interim response of this many bytes.
    Interim(usize),
    /// What could become one.
    Incomplete,
    /// Something else.
    Final,
}

/// The interim response as the client gets it, without connection-specific fields. Nothing for a `100`,
/// which hostward answers itself, and for what does not parse.
pub fn rewrite(head: &[u8]) -> Option<Vec<u8>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    if !response.parse(head).is_ok_and(|status| status.is_complete()) {
        return None;
    }
    let code = response.code.filter(|code| *code != 100)?;
    let mut out = format!("HTTP/1.1 {code} {}\r\n", response.reason.unwrap_or_default()).into_bytes();
    let connection = response.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("connection"));
    let options: Vec<&[u8]> = connection.flat_map(|field| connection_options(field.value)).collect();
    for field in response.headers.iter() {
        let is_dropped = DROPPED.iter().any(|name| field.name.eq_ignore_ascii_case(name))
            || options.iter().any(|option| option.eq_ignore_ascii_case(field.name.as_bytes()));
        if !is_dropped {
            out.extend_from_slice(field.name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(field.value);
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
    Some(out)
}

/// An interim response of HTTP/2 in the words of HTTP/1.1. Nothing for a `100`, which hostward answers itself,
/// and a `101`, which HTTP/2 does not have.
pub fn write(response: &Response<()>) -> Option<Vec<u8>> {
    let status = response.status();
    if matches!(status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS) {
        return None;
    }
    let reason = status.canonical_reason().unwrap_or_default();
    let mut out = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in response.headers() {
        if !DROPPED.contains(&name.as_str()) {
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
    Some(out)
}

/// One response as [`rewrite`] wrote it, taken from the front of `bytes`: for HTTP/2, which has other words for it.
pub fn take(bytes: &mut BytesMut) -> Option<Response<()>> {
    let Found::Interim(length) = find(bytes) else { return None };
    let head = bytes.split_to(length);
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut fields);
    if !parsed.parse(&head).is_ok_and(|status| status.is_complete()) {
        return None;
    }
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(parsed.code?).ok()?;
    for field in parsed.headers.iter() {
        let (name, value) = (HeaderName::from_bytes(field.name.as_bytes()), HeaderValue::from_bytes(field.value));
        response.headers_mut().append(name.ok()?, value.ok()?);
    }
    Some(response)
}

const STATUS_LINE: &[u8] = b"HTTP/1.1 ";
/// Nobody hints at more.
const MAX_FIELDS: usize = 64;
/// Connection-specific, or without meaning in a response that has no body.
const DROPPED: [&str; 7] =
    ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te", "content-length"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interim_responses_are_told_from_final_ones() {
        assert_eq!(find(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200"), Found::Interim(40));
        assert_eq!(find(b"HTTP/1.1 103 Early Hints\r\nLink: </a>"), Found::Incomplete);
        assert_eq!(find(b"HTTP/1.1 1"), Found::Incomplete);
        assert_eq!(find(b"HT"), Found::Incomplete);
        assert_eq!(find(b""), Found::Incomplete);
        assert_eq!(find(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), Found::Final);
        assert_eq!(find(b"HTTP/1.1 200 OK\r\n\r\n"), Found::Final);
        assert_eq!(find(b"nonsense"), Found::Final);
    }

    #[test]
    fn queued_responses_are_taken_one_by_one() {
        let mut queue =
            BytesMut::from(&b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"[..]);
        assert_eq!(take(&mut queue).unwrap().status(), 100);
        let hints = take(&mut queue).unwrap();
        assert_eq!((hints.status().as_u16(), &hints.headers()["link"]), (103, &HeaderValue::from_static("</a>")));
        assert!(take(&mut queue).is_none() && queue.is_empty());
    }

    #[test]
    fn hop_by_hop_headers_and_those_that_connection_names_are_removed() {
        let hints = b"HTTP/1.1 103 Early Hints\r\nX-Foo: 1\r\nConnection: keep-alive, x-foo\r\nconnection:\tX-BAR ,, link-x\r\n\
            x-bar: 2\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\
            Upgrade: h2c\r\nLink: </a>\r\nX-Foo: 3\r\nX-Food: 4\r\n\r\n";
        let kept = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-Food: 4\r\n\r\n";
        assert_eq!(String::from_utf8(rewrite(hints).unwrap()), String::from_utf8(kept.to_vec()));
    }

    #[test]
    fn only_end_to_end_fields_go_on() {
        let hints =
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nConnection: close\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(rewrite(hints).unwrap(), b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n");
        assert_eq!(rewrite(b"HTTP/1.1 100 Continue\r\n\r\n"), None);
        assert_eq!(rewrite(b"HTTP/1.1 103 E\r\nBad Name: x\r\n\r\n"), None);
    }
}
