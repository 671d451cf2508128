//! What the log can say of a request that wasn't parsed: the parts that can be read, and the part that can't.

use http::{HeaderValue, Method, Uri, Version};

use crate::error::Failure;
use crate::exchange::Request;
use crate::message::head::MAX_FIELDS;

/// Method, target and host of a head that may be broken or incomplete. `None` when it begins with no method and target.
pub fn read(head: &[u8]) -> Option<Request> {
    let mut lines = lines(head);
    let first = lines.next()?;
    let version = if first.ends_with(b" HTTP/1.0") { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut words = first.split(|byte| *byte == b' ');
    let method = Method::from_bytes(words.next()?).ok()?;
    let target = target(words.next()?)?;
    let value = |name: &[u8]| {
        let mut lines = lines.clone();
        lines.find_map(|line| {
            let (given, rest) = line.split_at_checked(name.len())?;
            let value = rest.trim_ascii_start().strip_prefix(b":")?;
            given.eq_ignore_ascii_case(name).then(|| HeaderValue::from_bytes(value.trim_ascii()).ok())?
        })
    };
    let (host, user_agent) = (value(b"host"), value(b"user-agent"));
    Some(Request { method, target, host, version, user_agent, trace: None })
}

/// What is wrong with a complete head that hyper refuses.
pub fn fault(head: &[u8]) -> Failure {
    let mut lines = vec![httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut lines);
    let what = match request.parse(head) {
        Err(httparse::Error::TooManyHeaders) => return Failure::TooManyHeaders,
        // Only a whole line is known to be folded when it is read, and the end of this one may not have come.
        Err(httparse::Error::HeaderName) if unreadable(head).is_some_and(|(_, line)| is_folded(line)) => {
            "a folded header line"
        }
        Err(httparse::Error::HeaderName) => {
            "a character that a header name can't have, or white space before its colon"
        }
        Err(httparse::Error::HeaderValue) => "a control character in a header value",
        Err(httparse::Error::NewLine) => "a CR without LF",
        Err(httparse::Error::Version) if head.starts_with(b"PRI * HTTP/2.0") => "HTTP/2 where HTTP/1.1 was agreed on",
        Err(httparse::Error::Version) => "the version is neither HTTP/1.1 nor HTTP/1.0",
        Err(_) if request.method.is_none() => "not HTTP: it doesn't begin with a method",
        Err(_) => "a character that a request target can't have",
        Ok(httparse::Status::Complete(_)) => "the request target isn't a path, a URL or *",
        // hyper has refused it, and has dropped what it had read.
        Ok(httparse::Status::Partial) => "the request head can't be parsed",
    };
    Failure::Malformed(what)
}

fn unreadable(head: &[u8]) -> Option<(usize, &[u8])> {
    lines(head).enumerate().skip(1).find(|(_, line)| !is_header(line))
}

fn is_folded(line: &[u8]) -> bool {
    line.starts_with(b" ") || line.starts_with(b"\t")
}

/// The first header line that can't be read, by its number and name. Its value may be a secret, and so may a line without
/// a name.
pub fn line(head: &[u8]) -> Option<String> {
    let (number, line) = unreadable(head)?;
    let colon = line.iter().position(|byte| *byte == b':');
    Some(match colon {
        _ if is_folded(line) => format!("header line {number}, which is folded"),
        None => format!("header line {number}, which has no colon"),
        Some(colon) => {
            let name = String::from_utf8_lossy(&line[..colon.min(LONGEST_NAME)]);
            format!("header line {number}, \"{}\"", name.escape_debug())
        }
    })
}

/// Lines of a head, without what follows it.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    let begin = head.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(head.len());
    let lines = head[begin..].split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.take_while(|line| !line.is_empty())
}

fn is_header(line: &[u8]) -> bool {
    let mut parts = line.splitn(2, |byte| *byte == b':');
    match (parts.next(), parts.next()) {
        (Some(name), Some(value)) => {
            http::HeaderName::from_bytes(name).is_ok() && HeaderValue::from_bytes(value.trim_ascii()).is_ok()
        }
        _ => false,
    }
}

/// A target for the log. What can't stand in one is shown percent-encoded.
fn target(bytes: &[u8]) -> Option<Uri> {
    let bytes = &bytes[..bytes.len().min(LONGEST_TARGET)];
    if let Ok(target) = Uri::try_from(bytes) {
        return Some(target);
    }
    let encode = |byte: &u8| match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'/' | b'?' | b'&' | b'=' | b'%' | b'-' | b'.' | b'_' | b'~' => {
            char::from(*byte).to_string()
        }
        byte => format!("%{byte:02X}"),
    };
    let encoded: String = bytes.iter().map(encode).collect();
    encoded.parse().or_else(|_| format!("/{encoded}").parse()).ok()
}

/// Bytes of a target for the log.
const LONGEST_TARGET: usize = 1024;
/// Bytes of a name for the log.
const LONGEST_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(head: &[u8]) -> Option<(String, String, Option<String>)> {
        let request = read(head)?;
        let host = request.host.map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
        Some((request.method.to_string(), request.target.path().to_owned(), host))
    }

    #[test]
    fn what_can_be_read_of_a_broken_head_is_read() {
        let some =
            |method: &str, path: &str, host: Option<&str>| Some((method.into(), path.into(), host.map(str::to_owned)));
        for (head, expected) in [
            (&b"GET /a?b HTTP/1.1\r\nX A: b\r\nHost: a.example\r\n\r\n"[..], some("GET", "/a", Some("a.example"))),
            (b"\r\n\r\nPOST / HTTP/1.1\nhost:a\n\nHost: b", some("POST", "/", Some("a"))),
            (b"GET / HTTP/1.1\r\n\r\nHost: b\r\n", some("GET", "/", None)),
            (b"GET /a\"<b>\xff HTTP/1.1\r\nHost : a\r\n", some("GET", "/a%22%3Cb%3E%FF", Some("a"))),
            (b"GET /a", some("GET", "/a", None)),
            (b"GET foo:bar:baz HTTP/1.1\r\nhost: a\r\n", some("GET", "/foo%3Abar%3Abaz", Some("a"))),
            (b"GET", None),
            (b"", None),
            (b"G(T / HTTP/1.1\r\n", None),
            (b"\x16\x03\x01\x02\x00", None),
        ] {
            assert_eq!(shown(head), expected, "{:?}", String::from_utf8_lossy(head));
        }
    }

    #[test]
    fn the_offending_part_is_named_and_no_value_is_shown() {
        for (head, says) in [
            (&b"GET / HTTP/1.1\r\nX A: b\r\n\r\n"[..], "header name"),
            (b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n", "header value"),
            (b"GET / HTTP/3.0\r\n\r\n", "version"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"),
            (b"GET /\x01 HTTP/1.1\r\n\r\n", "target"),
            (b"\x16\x03\x01\r\n\r\n", "not HTTP"),
            (b"GET foo:bar:baz HTTP/1.1\r\n\r\n", "target"),
            (b"GET / HTTP/1.1\r\nX: a\r\n fol", "folded"),
            (b"GET / HTTP/1.1\r\nX A: b\r\n fol", "header name"),
        ] {
            assert!(fault(head).to_string().contains(says), "{}: {}", String::from_utf8_lossy(head), fault(head));
        }
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization : Bearer secret\r\n\r\nX";
        assert_eq!(line(head).unwrap(), "header line 2, \"Authorization \"");
        assert_eq!(line(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nX"), None);
        let folded = line(b"GET / HTTP/1.1\r\nAuthorization: Bearer\r\n secret:x\r\n\r\n").unwrap();
        assert_eq!(folded, "header line 2, which is folded");
        assert_eq!(line(b"GET / HTTP/1.1\r\nsecret\r\n\r\n").unwrap(), "header line 1, which has no colon");
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(fault(many.as_bytes()), Failure::TooManyHeaders);
    }
}
