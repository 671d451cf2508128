//! The uwsgi protocol's request head: a packet of variables, as nginx's `uwsgi_params` names them.
//!
//! It is made from a head that has been stripped and written already, so it says what hostward believes and not
//! what the client claims. A client's field only ever becomes `HTTP_…`: it can't set a variable of hostward's, nor
//! one that uWSGI obeys (`UWSGI_FILE` makes it run a file). The answer is plain HTTP/1: nothing of it is known here.

use std::borrow::Cow;

use crate::error::Failure;
use crate::message::head::RequestHead;
use crate::message::lines::FieldLines;
use crate::message::names::{self, CONTENT_TYPE, COOKIE, HOST, Name, X_FORWARDED_PORT, X_FORWARDED_PROTO, X_REAL_IP};

/// A request head as a uwsgi server reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet(Vec<u8>);

impl Packet {
    /// The packet for a request of which `length` bytes of a body follow, if it has one. `remote_port` is 0 when
    /// nobody knows it.
    ///
    /// # Errors
    ///
    /// When the path can't be decoded, or the variables don't fit.
    pub fn new(head: &RequestHead, length: Option<u64>, remote_port: u16) -> Result<Self, Failure> {
        let RequestHead { method, target, fields, .. } = head;
        let path_info = decoded(target.path().as_bytes())?;
        // As the client sees it, because the app makes URLs of it: behind a load balancer that ends TLS, it isn't
        // what is spoken here. The field is hostward's word, written in `forwarding`.
        let https = fields.get(X_FORWARDED_PROTO) == Some(b"https");
        let mut packet = Self(Vec::with_capacity(TYPICAL));
        packet.0.extend_from_slice(&[WSGI, 0, 0, 0]);

        packet.put("REQUEST_METHOD", method.as_str())?;
        let as_it_came = target.path_and_query().map_or("/", |target| target.as_str());
        // RFC 9112 §3.2.1: "If the target URI's path component is empty, the client MUST send "/" as the path within the
        // origin-form of request-target." An absolute form may leave it out.
        let slash = if as_it_came.starts_with('?') { "/" } else { "" };
        packet.put("REQUEST_URI", [slash, as_it_came].concat())?;
        packet.put("PATH_INFO", path_info)?;
        packet.put("QUERY_STRING", target.query().unwrap_or_default())?;
        packet.put("CONTENT_TYPE", joined(&Name::Known(CONTENT_TYPE), fields.get_all(CONTENT_TYPE)))?;
        packet.put("CONTENT_LENGTH", length.map(|length| length.to_string()).unwrap_or_default())?;
        // What hostward speaks to every app, whatever the client spoke: uWSGI begins its answer with this word, and
        // an answer can't be HTTP/2.0.
        packet.put("SERVER_PROTOCOL", "HTTP/1.1")?;
        packet.put("REQUEST_SCHEME", if https { "https" } else { "http" })?;
        if https {
            packet.put("HTTPS", "on")?;
        }
        // Whom hostward believes to be the client, as nginx says with its realip module. The load balancer's address,
        // which it says without, helps no app, and there is no server in between that could correct it.
        packet.put("REMOTE_ADDR", fields.get(X_REAL_IP).unwrap_or(b"127.0.0.1"))?;
        packet.put("REMOTE_PORT", remote_port.to_string())?;
        packet.put("SERVER_NAME", server_name(fields.get(HOST).unwrap_or_default()))?;
        let default_port: &[u8] = if https { b"443" } else { b"80" };
        // The client's side as well: Django compares it with a Referer's.
        packet.put("SERVER_PORT", fields.get(X_FORWARDED_PORT).unwrap_or(default_port))?;
        packet.put_fields(fields)?;

        let size = u16::try_from(packet.0.len() - HEADER).map_err(|_| Failure::VariablesTooLarge)?;
        packet.0[1..3].copy_from_slice(&size.to_le_bytes());
        Ok(packet)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The variables, in their order.
    pub fn variables(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        let mut rest = &self.0[HEADER..];
        std::iter::from_fn(move || Some((text(&mut rest)?, text(&mut rest)?)))
    }

    fn put(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), Failure> {
        self.put_length(name.len())?;
        self.0.extend_from_slice(name.as_bytes());
        self.put_length(value.as_ref().len())?;
        self.0.extend_from_slice(value.as_ref());
        Ok(())
    }

    fn put_length(&mut self, length: usize) -> Result<(), Failure> {
        let length = u16::try_from(length).map_err(|_| Failure::VariablesTooLarge)?;
        self.0.extend_from_slice(&length.to_le_bytes());
        Ok(())
    }

    fn put_fields(&mut self, fields: &FieldLines) -> Result<(), Failure> {
        let mut lines: Vec<_> = fields.iter().filter(|(name, _)| !has_own_variable(name)).collect();
        // Not each with all the others: there may be a thousand. Lines with one name stay in their order.
        lines.sort_by_key(|(name, _)| name.as_str());
        for lines in lines.chunk_by(|(one, _), (other, _)| one == other) {
            let Some((name, _)) = lines.first() else { continue };
            self.put_length(PREFIX.len() + name.as_str().len())?;
            self.0.extend_from_slice(PREFIX);
            let start = self.0.len();
            self.0.extend_from_slice(name.as_str().as_bytes());
            for byte in &mut self.0[start..] {
                *byte = if *byte == b'-' { b'_' } else { byte.to_ascii_uppercase() };
            }
            let value = joined(name, lines.iter().map(|(_, value)| *value));
            self.put_length(value.len())?;
            self.0.extend_from_slice(&value);
        }
        Ok(())
    }
}

/// Whether a field has a variable without `HTTP_`, whose twin would be read by somebody, or speaks of a connection
/// that this one is not. Names with `_` have been stripped: this keeps them from ever passing for one with `-`.
fn has_own_variable(name: &Name) -> bool {
    match name {
        Name::Known(known) => matches!(
            *known,
            CONTENT_TYPE
                | names::CONTENT_LENGTH
                | names::TRANSFER_ENCODING
                | names::TE
                | names::CONNECTION
                | names::UPGRADE
        ),
        Name::Other(name) => name.as_str().contains('_'),
    }
}

/// All lines of a field as one. A variable has one value, and none of the client's lines is better than another.
fn joined<'h>(name: &Name, mut lines: impl Iterator<Item = &'h [u8]>) -> Cow<'h, [u8]> {
    let Some(first) = lines.next() else { return Cow::Borrowed(b"") };
    let mut joined = Cow::Borrowed(first);
    // RFC 6265 §5.4: cookies are parted by a semicolon; every other list by a comma (RFC 9110 §5.3).
    let separator: &[u8] = if *name == Name::Known(COOKIE) { b"; " } else { b", " };
    for line in lines {
        let joined = joined.to_mut();
        joined.extend_from_slice(separator);
        joined.extend_from_slice(line);
    }
    joined
}

/// The host without its port; PEP 3333 wants it never empty.
fn server_name(host: &[u8]) -> &[u8] {
    let name = match memchr::memrchr(b':', host) {
        // The colons of `[::1]` stand before the bracket.
        Some(colon) if !host[colon..].contains(&b']') => &host[..colon],
        _ => host,
    };
    if name.is_empty() { b"localhost" } else { name }
}

/// A path without its percent-encoding. Nothing else is done to it: `//` and `..` are the app's to judge, as they are
/// over HTTP. Lengths delimit a value, so that any byte may stand in it; but C ends a text at a NUL.
fn decoded(path: &[u8]) -> Result<Cow<'_, [u8]>, Failure> {
    let Some(mut at) = memchr::memchr(b'%', path) else { return Ok(Cow::Borrowed(path)) };
    let mut decoded = path[..at].to_vec();
    while let Some(&byte) = path.get(at) {
        if byte == b'%' {
            let digit = |at: usize| path.get(at).and_then(|byte| char::from(*byte).to_digit(16));
            let (Some(high), Some(low)) = (digit(at + 1), digit(at + 2)) else {
                return Err(Failure::Malformed("a percent sign in the path that begins no escape"));
            };
            let byte = u8::try_from(high * 16 + low).unwrap_or_default();
            if byte == 0 {
                return Err(Failure::Malformed("a NUL in the path"));
            }
            decoded.push(byte);
            at += 3;
        } else {
            decoded.push(byte);
            at += 1;
        }
    }
    Ok(Cow::Owned(decoded))
}

/// Takes a text with its length from the front.
fn text<'p>(rest: &mut &'p [u8]) -> Option<Cow<'p, str>> {
    let (length, after) = rest.split_first_chunk()?;
    let (text, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    *rest = after;
    Some(String::from_utf8_lossy(text))
}

/// Bytes before the variables: modifier 1, their size in two bytes, modifier 2.
const HEADER: usize = 4;
/// Modifier 1 of a request for uWSGI's default plugin. The other numbers run code, read caches and reload servers.
const WSGI: u8 = 0;
const PREFIX: &[u8] = b"HTTP_";
/// Bytes that hold the variables of most requests of browsers.
const TYPICAL: usize = 2048;

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue, Method, Request};

    use super::*;

    fn head(method: &str, target: &str, lines: &[(&str, &str)]) -> RequestHead {
        let mut request = Request::new(());
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
        *request.uri_mut() = target.parse().unwrap();
        for (name, value) in lines {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            request.headers_mut().append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
        }
        request.into_parts().0.into()
    }

    /// A reader of its own: the protocol's words, nothing of the writer's.
    fn read(packet: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let number = |at: usize| usize::from(packet[at]) + 256 * usize::from(packet[at + 1]);
        assert_eq!((packet[0], packet[3], number(1)), (0, 0, packet.len() - 4));
        let (mut at, mut variables) = (4, Vec::new());
        while at < packet.len() {
            let mut next = || {
                let text = packet[at + 2..at + 2 + number(at)].to_vec();
                at += 2 + text.len();
                text
            };
            variables.push((next(), next()));
        }
        assert_eq!(at, packet.len());
        variables
    }

    fn variables(head: &RequestHead, length: Option<u64>) -> Vec<(String, String)> {
        let packet = Packet::new(head, length, 4711).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let read: Vec<_> = read(packet.as_bytes()).into_iter().map(|(name, value)| (text(name), text(value))).collect();
        let shown: Vec<_> = packet.variables().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        assert_eq!(read, shown);
        read
    }

    fn value(head: &RequestHead, name: &str) -> Option<String> {
        variables(head, None).into_iter().find(|(given, _)| given == name).map(|(_, value)| value)
    }

    #[test]
    fn a_request_is_told_in_nginx_s_variables() {
        let head = head(
            "POST",
            "/caf%C3%A9/x?a=%20&b",
            &[
                ("host", "www.example.com:8443"),
                ("content-type", "text/plain"),
                ("content-length", "5"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-port", "443"),
                ("x-real-ip", "203.0.113.5"),
                ("accept", "*/*"),
            ],
        );
        let expected = [
            ("REQUEST_METHOD", "POST"),
            ("REQUEST_URI", "/caf%C3%A9/x?a=%20&b"),
            ("PATH_INFO", "/café/x"),
            ("QUERY_STRING", "a=%20&b"),
            ("CONTENT_TYPE", "text/plain"),
            ("CONTENT_LENGTH", "5"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("REQUEST_SCHEME", "https"),
            ("HTTPS", "on"),
            ("REMOTE_ADDR", "203.0.113.5"),
            ("REMOTE_PORT", "4711"),
            ("SERVER_NAME", "www.example.com"),
            ("SERVER_PORT", "443"),
            ("HTTP_ACCEPT", "*/*"),
            ("HTTP_HOST", "www.example.com:8443"),
            ("HTTP_X_FORWARDED_PORT", "443"),
            ("HTTP_X_FORWARDED_PROTO", "https"),
            ("HTTP_X_REAL_IP", "203.0.113.5"),
        ];
        assert_eq!(variables(&head, Some(5)), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_is_missing_is_empty_and_https_is_absent() {
        let plain = head("GET", "/", &[("host", "[::1]:80"), ("x-forwarded-proto", "http")]);
        for (name, expected) in [
            ("CONTENT_TYPE", Some("")),
            ("CONTENT_LENGTH", Some("")),
            ("QUERY_STRING", Some("")),
            ("REQUEST_SCHEME", Some("http")),
            ("HTTPS", None),
            ("SERVER_NAME", Some("[::1]")),
            ("SERVER_PORT", Some("80")),
        ] {
            assert_eq!(value(&plain, name).as_deref(), expected, "{name}");
        }
        let hosts = [
            ("[::1]", "[::1]"),
            ("[::1]:", "[::1]"),
            ("a", "a"),
            ("a:", "a"),
            ("10.0.0.1:1", "10.0.0.1"),
            ("", "localhost"),
        ];
        for (host, expected) in hosts {
            assert_eq!(value(&head("GET", "/", &[("host", host)]), "SERVER_NAME").unwrap(), expected);
        }
        for (target, expected) in [("*", "*"), ("http://a?x", "/?x"), ("http://a", "/")] {
            assert_eq!(value(&head("OPTIONS", target, &[]), "REQUEST_URI").unwrap(), expected);
        }
    }

    #[test]
    fn a_field_never_becomes_a_variable_of_ours_or_of_uwsgi_s() {
        let names = [
            "uwsgi-file",
            "uwsgi_script",
            "https",
            "remote-addr",
            "path-info",
            "content_length",
            "content-length",
            "http-content-type",
            "x_forwarded_for",
            "upgrade",
            "connection",
            "te",
            "transfer-encoding",
        ];
        let head = head("GET", "/", &names.map(|name| (name, "evil")));
        let found: Vec<_> = variables(&head, None).into_iter().filter(|(_, value)| value == "evil").collect();
        let found: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            found,
            ["HTTP_HTTP_CONTENT_TYPE", "HTTP_HTTPS", "HTTP_PATH_INFO", "HTTP_REMOTE_ADDR", "HTTP_UWSGI_FILE"]
        );
    }

    #[test]
    fn lines_of_one_name_become_one_value() {
        let lines = [
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("accept", "x/y"),
            ("accept", "*/*"),
            ("content-type", "a/b"),
            ("content-type", "c/d"),
        ];
        let head = head("GET", "/", &lines);
        assert_eq!(value(&head, "HTTP_COOKIE").unwrap(), "a=1; b=2");
        assert_eq!(value(&head, "HTTP_ACCEPT").unwrap(), "x/y, */*");
        assert_eq!(value(&head, "CONTENT_TYPE").unwrap(), "a/b, c/d");
        assert_eq!(variables(&head, None).len(), 12 + 2);
    }

    #[test]
    fn a_path_is_decoded_and_not_normalised() {
        for (path, expected) in [
            ("/a%2Fb", "/a/b"),
            ("//a/../%2e%2e/b//", "//a/../../b//"),
            ("/%0d%0aX:%20y", "/\r\nX: y"),
            ("/%2525", "/%25"),
            ("/a+b", "/a+b"),
        ] {
            assert_eq!(value(&head("GET", path, &[]), "PATH_INFO").unwrap(), expected, "{path}");
        }
        for path in ["/%00", "/a%00b", "/%", "/%2", "/%zz", "/%+1", "/%2%30"] {
            let refused = Packet::new(&head("GET", path, &[]), None, 0);
            assert!(matches!(refused, Err(Failure::Malformed(_))), "{path}");
        }
        assert_eq!(value(&head("GET", "/?%00%zz", &[]), "QUERY_STRING").unwrap(), "%00%zz");
    }

    #[test]
    fn what_does_not_fit_is_refused_and_what_just_fits_is_not() {
        let bare = variables(&head("GET", "/", &[]), None);
        let used: usize = bare.iter().map(|(name, value)| 4 + name.len() + value.len()).sum();
        let room = 65_535 - used - 4 - "HTTP_A".len();
        for (length, fits) in [(room, true), (room + 1, false), (65_535, false), (65_536, false), (70_000, false)] {
            let packet = Packet::new(&head("GET", "/", &[("a", &"x".repeat(length))]), None, 4711);
            assert_eq!(packet.as_ref().err(), (!fits).then_some(&Failure::VariablesTooLarge), "{length}");
            if let Ok(packet) = packet {
                assert_eq!(read(packet.as_bytes()).last().unwrap().1.len(), length);
            }
        }
        let halves = "x".repeat(33_000);
        let twice = head("GET", "/", &[("a", &halves), ("a", &halves)]);
        assert_eq!(Packet::new(&twice, None, 0), Err(Failure::VariablesTooLarge));
    }

    #[test]
    fn any_head_is_read_back_as_it_was() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2_000 {
            let mut request = Request::new(());
            for _ in 0..random.usize(..20) {
                let name: String =
                    (0..random.usize(1..12)).map(|_| char::from(random.choice(*b"ab-z9!.~").unwrap())).collect();
                let value: Vec<u8> = (0..random.usize(..40)).map(|_| random.u8(b' '..)).filter(|b| *b != 127).collect();
                let value = HeaderValue::from_bytes(&value).unwrap();
                request.headers_mut().append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
            }
            let path: Vec<u8> = (0..random.usize(..20)).map(|_| random.u8(1..)).collect();
            let escaped: Vec<_> = path.iter().map(|byte| format!("%{byte:02x}")).collect();
            *request.uri_mut() = format!("/{}", escaped.concat()).parse().unwrap();
            let headers = request.headers().clone();
            let head = request.into_parts().0.into();

            let variables = read(Packet::new(&head, Some(random.u64(..)), random.u16(..)).unwrap().as_bytes());
            let (ours, fields) = variables.split_at(12);
            assert_eq!(ours[2], (b"PATH_INFO".to_vec(), [b"/", &*path].concat()));
            assert_eq!(fields.len(), headers.keys_len());
            for (name, value) in fields {
                let name = String::from_utf8(name.clone()).unwrap();
                let name = name.strip_prefix("HTTP_").unwrap().to_lowercase().replace('_', "-");
                let lines: Vec<_> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
                assert_eq!(*value, lines.join(&b", "[..]), "{name}");
            }
        }
    }
}
