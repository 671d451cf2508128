//! The authority of a request: parsed strictly, compared loosely, never rewritten.
//!
//! A request names the host it wants in `Host`, in an absolute-form target or in `:authority`. What is
//! accepted here is RFC 3986 §3.2.2 and §3.2.3 without userinfo, ``IPvFuture``, zone identifiers, empty hosts and
//! empty labels, and in a name only what DNS names consist of. [`Authority`] borrows the client's bytes, so that
//! what is forwarded can be exactly what was sent.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A parsed `host [":" port]` that borrows the bytes it was parsed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// The authority as it was sent.
    pub text: &'a str,
    /// The host.
    pub host: Host<'a>,
    /// The port, when one was written that isn't empty.
    pub port: Option<u16>,
}

/// The host of an [`Authority`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host<'a> {
    /// A registered name, as it was sent, but for one trailing dot.
    Name(&'a str),
    /// An IP literal. Compared as an address, because the text form is not canonical.
    Ip(IpAddr),
}

impl<'a> Authority<'a> {
    /// Parses an authority, refusing everything that two readers could read differently.
    ///
    /// # Errors
    ///
    /// Says which rule of RFC 3986 §3.2 (or which of ours on top of it) was broken.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, InvalidAuthority> {
        if bytes.is_empty() {
            return Err(InvalidAuthority::Empty);
        }
        if bytes.len() > MAX_LENGTH {
            return Err(InvalidAuthority::TooLong);
        }
        // All bytes are checked to be ASCII before anything is cut, so no cut can split a character.
        let text = match std::str::from_utf8(bytes) {
            Ok(text) if text.is_ascii() => text,
            _ => return Err(InvalidAuthority::Character),
        };
        if bytes.contains(&b'@') {
            return Err(InvalidAuthority::UserInfo);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (literal, after) = rest.split_once(']').ok_or(InvalidAuthority::Brackets)?;
            let address: Ipv6Addr = literal.parse().map_err(|_| InvalidAuthority::Brackets)?;
            let port = match after.strip_prefix(':') {
                Some(digits) => parse_optional_port(digits)?,
                None if after.is_empty() => None,
                None => return Err(InvalidAuthority::Brackets),
            };
            return Ok(Self { text, host: Host::Ip(IpAddr::V6(address)), port });
        }
        let (name, port) = match text.split_once(':') {
            Some((name, digits)) => (name, parse_optional_port(digits)?),
            None => (text, None),
        };
        Ok(Self { text, host: parse_name(name)?, port })
    }
}

/// Why an authority was refused. `Display` says it in the words of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidAuthority {
    /// Nothing there, or nothing before the port.
    Empty,
    /// Longer than a DNS name and a port can be.
    TooLong,
    /// `user@host`.
    UserInfo,
    /// Square brackets that don't hold an IPv6 address.
    Brackets,
    /// A port that isn't a decimal number up to 65,535.
    Port,
    /// A character that a host can't have.
    Character,
    /// Two dots in a row, or one at the front.
    EmptyLabel,
}

impl fmt::Display for InvalidAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the host is empty",
            Self::TooLong => "the host is longer than a name can be",
            Self::UserInfo => "user information in front of the host",
            Self::Brackets => "square brackets that don't hold an IPv6 address",
            Self::Port => "the port is not a number from 0 to 65535",
            Self::Character => "a character that a host can't have",
            Self::EmptyLabel => "an empty label in the host",
        })
    }
}

impl std::error::Error for InvalidAuthority {}

/// RFC 3986 §3.2.3: `port = *DIGIT`. An empty one means the default port, as none does.
fn parse_optional_port(digits: &str) -> Result<Option<u16>, InvalidAuthority> {
    if digits.is_empty() { Ok(None) } else { parse_port(digits).map(Some) }
}

/// Parses a port that isn't empty.
///
/// # Errors
///
/// When it is anything but a decimal number up to 65,535.
pub fn parse_port(digits: &str) -> Result<u16, InvalidAuthority> {
    if digits.is_empty() || digits.len() > 5 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidAuthority::Port);
    }
    digits.parse().map_err(|_| InvalidAuthority::Port)
}

fn parse_name(name: &str) -> Result<Host<'_>, InvalidAuthority> {
    if name.is_empty() || name == "." {
        return Err(InvalidAuthority::Empty);
    }
    if !name.bytes().all(is_name_character) {
        return Err(InvalidAuthority::Character);
    }
    if name.starts_with('.') || name.contains("..") {
        return Err(InvalidAuthority::EmptyLabel);
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > MAX_NAME {
        return Err(InvalidAuthority::TooLong);
    }
    // Strictly four decimal numbers (RFC 3986 §3.2.2 `IPv4address`): `0x7f.1` and `010.0.0.1` stay names,
    // which no list of addresses matches.
    Ok(name.parse::<Ipv4Addr>().map_or(Host::Name(name), |address| Host::Ip(IpAddr::V4(address))))
}

/// A subset of RFC 3986 §3.2.2 `reg-name`: names of DNS, and the underscore that names of containers have. Apps compare
/// hosts with patterns, to which `*` or `'` in a subdomain can mean something else.
fn is_name_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// Bytes of a registered name: RFC 3986 §3.2.2.
const MAX_NAME: usize = 255;
/// Bytes: a name, a colon and five digits.
const MAX_LENGTH: usize = MAX_NAME + 6;

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> (String, Option<u16>) {
        match Authority::parse(text.as_bytes()).unwrap() {
            Authority { host: Host::Name(name), port, .. } => (name.to_owned(), port),
            other => panic!("{text} is not a name: {other:?}"),
        }
    }

    fn ip(text: &str) -> (IpAddr, Option<u16>) {
        match Authority::parse(text.as_bytes()).unwrap() {
            Authority { host: Host::Ip(ip), port, .. } => (ip, port),
            other => panic!("{text} is not an address: {other:?}"),
        }
    }

    #[test]
    fn names_addresses_and_ports_are_told_apart() {
        assert_eq!(name("www.example.com"), ("www.example.com".into(), None));
        assert_eq!(name("WWW.example.com:8443"), ("WWW.example.com".into(), Some(8443)));
        assert_eq!(name("example.com."), ("example.com".into(), None));
        assert_eq!(name("exa_mple"), ("exa_mple".into(), None));
        assert_eq!(ip("10.0.2.100:8080"), ("10.0.2.100".parse().unwrap(), Some(8080)));
        assert_eq!(ip("[2001:DB8::1]:65535"), ("2001:db8::1".parse().unwrap(), Some(65535)));
        assert_eq!(ip("[::1]"), ("::1".parse().unwrap(), None));
        assert_eq!(name("host:0").1, Some(0));
    }

    #[test]
    fn an_empty_port_means_none_and_stays_in_the_text() {
        assert_eq!(name("host:"), ("host".into(), None));
        assert_eq!(name("host.:"), ("host".into(), None));
        assert_eq!(ip("10.0.2.100:"), ("10.0.2.100".parse().unwrap(), None));
        assert_eq!(ip("[::1]:"), ("::1".parse().unwrap(), None));
        assert_eq!(Authority::parse(b"host:").unwrap().text, "host:");
        assert!(parse_port("").is_err());
    }

    #[test]
    fn an_address_with_a_dot_behind_it_is_no_name() {
        assert_eq!(ip("10.0.2.100.:8080"), ("10.0.2.100".parse().unwrap(), Some(8080)));
        assert_eq!(Authority::parse(b"10.0.2.100.").unwrap().text, "10.0.2.100.");
    }

    #[test]
    fn numbers_that_only_some_readers_take_for_an_address_stay_names() {
        for text in ["0x7f.1", "010.0.0.1", "127.1", "2130706433", "1.2.3.4.5", "1.2.3.256"] {
            name(text);
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        use InvalidAuthority::*;
        for (text, why) in [
            ("", Empty),
            (":80", Empty),
            (".", Empty),
            (".:80", Empty),
            (":", Empty),
            (".:", Empty),
            ("user@host", UserInfo),
            ("@", UserInfo),
            ("a:b@host", UserInfo),
            ("[::1", Brackets),
            ("[::1]x", Brackets),
            ("[fe80::1%eth0]", Brackets),
            ("[v1.x]", Brackets),
            ("[1.2.3.4]", Brackets),
            ("[]", Brackets),
            ("::1", Port),
            ("2001:db8::1", Port),
            ("host::", Port),
            ("host:65536", Port),
            ("host:080808", Port),
            ("host:000080", Port),
            ("[::1]:000443", Port),
            ("host:+80", Port),
            ("host:80:80", Port),
            ("host: 80", Port),
            ("[::1]::", Port),
            ("a,b", Character),
            ("*.example.com", Character),
            ("*", Character),
            ("a'b", Character),
            ("a;b", Character),
            ("a~b", Character),
            ("a!b", Character),
            ("a$b", Character),
            ("a&b", Character),
            ("a(b)", Character),
            ("a+b", Character),
            ("a=b", Character),
            ("a%41b", Character),
            ("a%2eb", Character),
            ("a b", Character),
            (" a", Character),
            ("a\t", Character),
            ("a/b", Character),
            ("a?b", Character),
            ("a#b", Character),
            ("a\\b", Character),
            ("a%4", Character),
            ("a%zz", Character),
            ("h\u{f6}st", Character),
            ("a\0b", Character),
            ("a\r\nb", Character),
            ("a[b", Character),
            ("<a>", Character),
            (".example.com", EmptyLabel),
            ("a..b", EmptyLabel),
            ("a..", EmptyLabel),
        ] {
            assert_eq!(Authority::parse(text.as_bytes()), Err(why), "{text:?}");
        }
        assert_eq!(Authority::parse(&[b'a'; 262]), Err(TooLong));
        // The room for a port is none for a name, which no list of names could match.
        assert_eq!(Authority::parse(&[b'a'; 256]), Err(TooLong));
        assert!(Authority::parse(&[b'a'; 255]).is_ok());
        assert_eq!(Authority::parse(b"\xff"), Err(Character));
    }
}
