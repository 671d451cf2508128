//! `Location` and `Content-Location` of an app that sees the canonical host and not the client's: where they name the
//! canonical host, the client gets its own.

use http::header::{self, Entry, HeaderMap, HeaderValue};

use crate::message::authority::{Authority, Host};
use crate::message::forwarding::is_secure;

/// What a client asked for, and what the app saw instead.
#[derive(Clone, Debug)]
pub struct Rewritten {
    /// The host that the client sent.
    pub public: HeaderValue,
    /// The host that the app saw.
    pub canonical: HeaderValue,
    /// The client's scheme.
    pub scheme: &'static str,
    /// Ports by which the app may name itself, besides that of the canonical host.
    pub ports: [Option<u16>; 3],
    /// The path and query that were asked for.
    pub target: String,
}

impl Rewritten {
    /// Puts the client's scheme and host in the place of the canonical host.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in [header::LOCATION, header::CONTENT_LOCATION] {
            if let Entry::Occupied(mut lines) = headers.entry(name) {
                for value in lines.iter_mut() {
                    if let Some(public) = self.public(value.as_bytes()) {
                        *value = public;
                    }
                }
            }
        }
    }

    /// What a reference becomes; `None` when it stays unchanged.
    fn public(&self, reference: &[u8]) -> Option<HeaderValue> {
        let (secure, rest) = match strip_prefix(reference, b"//") {
            Some(rest) => (None, rest),
            None => match strip_prefix(reference, b"https://") {
                Some(rest) => (Some(true), rest),
                None => (Some(false), strip_prefix(reference, b"http://")?),
            },
        };
        let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        if !self.names_the_app(authority, secure) {
            return None;
        }
        let client_is_secure = is_secure(self.scheme);
        let to_tls = secure == Some(true) && !client_is_secure && rest == self.target.as_bytes();
        let public = self.public.as_bytes();
        let mut value = Vec::with_capacity("https://".len() + public.len() + rest.len());
        if secure.is_some() {
            value.extend_from_slice(if client_is_secure || to_tls { b"https:" } else { b"http:" });
        }
        value.extend_from_slice(b"//");
        // An app that sends to HTTPS what was asked by HTTP means that: without the port, which is one of HTTP.
        value.extend_from_slice(if to_tls { without_port(public) } else { public });
        value.extend_from_slice(rest);
        HeaderValue::from_bytes(&value).ok()
    }

    /// Whether an authority is the canonical host, with a port by which the app may name itself.
    fn names_the_app(&self, authority: &[u8], secure: Option<bool>) -> bool {
        let (Ok(named), Ok(canonical)) = (Authority::parse(authority), Authority::parse(self.canonical.as_bytes()))
        else {
            return false;
        };
        let same = match (named.host, canonical.host) {
            (Host::Name(named), Host::Name(canonical)) => named.eq_ignore_ascii_case(canonical),
            (Host::Ip(named), Host::Ip(canonical)) => named == canonical,
            _ => false,
        };
        let is_default = |port| match secure {
            Some(true) => port == 443,
            Some(false) => port == 80,
            None => port == 443 || port == 80,
        };
        same && named
            .port
            .is_none_or(|port| is_default(port) || canonical.port == Some(port) || self.ports.contains(&Some(port)))
    }
}

/// The host without its port.
pub fn without_port(host: &[u8]) -> &[u8] {
    match memchr::memrchr(b':', host) {
        // The colons of `[::1]` stand before the bracket.
        Some(colon) if !host[colon..].contains(&b']') => &host[..colon],
        _ => host,
    }
}

/// RFC 3986 §3.1: schemes have no case.
fn strip_prefix<'r>(reference: &'r [u8], prefix: &[u8]) -> Option<&'r [u8]> {
    let (start, rest) = reference.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(scheme: &'static str, canonical: &'static str, location: &str) -> String {
        let rewritten = Rewritten {
            public: HeaderValue::from_static("www.example.com:8443"),
            canonical: HeaderValue::from_static(canonical),
            scheme,
            ports: [Some(9000), None, Some(8080)],
            target: "/asked?a=b".into(),
        };
        let mut headers = HeaderMap::new();
        headers.insert("location", HeaderValue::from_str(location).unwrap());
        rewritten.apply(&mut headers);
        headers["location"].to_str().unwrap().to_owned()
    }

    #[test]
    fn the_canonical_host_becomes_the_clients() {
        for (location, expected) in [
            ("http://localhost:8000/a?b#c", "https://www.example.com:8443/a?b#c"),
            ("https://LocalHost:8000", "https://www.example.com:8443"),
            ("HTTP://localhost/a", "https://www.example.com:8443/a"),
            ("http://localhost.:8000?x", "https://www.example.com:8443?x"),
            ("https://localhost:9000/", "https://www.example.com:8443/"),
            ("https://localhost:8080/", "https://www.example.com:8443/"),
            ("https://localhost:443/", "https://www.example.com:8443/"),
            ("//localhost:8000/a", "//www.example.com:8443/a"),
        ] {
            assert_eq!(public("https", "localhost:8000", location), expected, "{location}");
        }
        assert_eq!(public("http", "localhost:8000", "https://localhost:8000/a"), "http://www.example.com:8443/a");
        assert_eq!(public("ws", "localhost:8000", "http://localhost:8000/a"), "http://www.example.com:8443/a");
        assert_eq!(public("wss", "[::1]", "http://[0::1]/a"), "https://www.example.com:8443/a");
    }

    #[test]
    fn what_sends_a_client_to_https_still_does() {
        let location = "https://localhost:8000/asked?a=b";
        assert_eq!(public("http", "localhost:8000", location), "https://www.example.com/asked?a=b");
        assert_eq!(public("https", "localhost:8000", location), "https://www.example.com:8443/asked?a=b");
    }

    #[test]
    fn what_names_another_host_or_none_stays() {
        for location in [
            "/a",
            "a",
            "",
            "?a",
            "///localhost:8000/a",
            "http://other.example/",
            "http://localhost:8000.evil.example/",
            "http://localhost:8001/",
            "https://localhost:80/",
            "http://user@localhost:8000/",
            "http://localhost:8000@evil.example/",
            "http://localhost:8000\\@evil.example/",
            "http:/localhost:8000/",
            "ftp://localhost:8000/",
            "http://www.localhost:8000/",
            "http://",
            "http://localhost:x/",
            "/a?next=http://localhost:8000/",
        ] {
            assert_eq!(public("https", "localhost:8000", location), location);
        }
    }
}
