//! The PROXY protocol, versions 1 and 2: what a trusted peer says, ahead of everything else, about who has connected
//! to it. Parsed by the `ppp` crate; here is how it is read from the socket, to the byte and within bounds, and when
//! it is believed. The specification is `HAProxy`'s `doc/proxy-protocol.txt`.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ppp::{v1, v2};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::TcpStream;

use crate::config::ProxyProtocol;
use crate::log::Repeats;

/// Why a connection has no business here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The peer is no trusted one.
    Untrusted,
    /// There is no header where there has to be one.
    Missing,
    /// It is not a header of either version.
    Malformed,
    /// It took longer than `HEADER_TIMEOUT`.
    Timeout,
    /// The peer has left before it was complete.
    Gone,
}

/// Who has connected: the client that the header at the start of `stream` names, or else `peer`, the other end of the
/// socket; and to which port, if a header says that. Takes the header's bytes off the stream, and no more.
///
/// # Errors
///
/// Why the connection is to be closed.
pub async fn client(
    stream: &mut TcpStream,
    peer: SocketAddr,
    trusted: bool,
    mode: ProxyProtocol,
    timeout: Duration,
) -> Result<(SocketAddr, Option<u16>), Refusal> {
    match (mode, trusted) {
        // What an untrusted peer sends is for the HTTP parser, which knows no such request.
        (ProxyProtocol::Off, _) | (ProxyProtocol::Optional, false) => return Ok((peer, None)),
        (ProxyProtocol::Required, false) => return Err(Refusal::Untrusted),
        (ProxyProtocol::Optional | ProxyProtocol::Required, true) => {}
    }
    let read = tokio::time::timeout(timeout, read(stream)).await.map_err(|_| Refusal::Timeout)??;
    match read {
        Header::Names(client, port) => Ok((client, Some(port))),
        Header::NamesNobody => Ok((peer, None)),
        Header::None if mode == ProxyProtocol::Optional => Ok((peer, None)),
        Header::None => Err(Refusal::Missing),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Header {
    /// The source, and the destination's port.
    Names(SocketAddr, u16),
    /// The proxy's own connection (`LOCAL`, `UNKNOWN`): a health check.
    NamesNobody,
    None,
}

/// Reads the header, if the stream begins with one.
async fn read(stream: &mut TcpStream) -> Result<Header, Refusal> {
    let mut seen = [0; V1_LONGEST];
    loop {
        // Before what has come is looked at, so that nothing can come after that.
        let ended = stream.ready(Interest::READABLE).await?.is_read_closed();
        let length = stream.peek(&mut seen).await?;
        let seen = &seen[..length];
        if length == 0 {
            return Err(Refusal::Gone);
        }
        if seen.starts_with(V2_SIGNATURE) {
            return read_v2(stream).await;
        }
        if seen.starts_with(V1_PREFIX) {
            if let Some(end) = memchr::memchr(b'\n', seen) {
                let mut line = vec![0; end + 1];
                stream.read_exact(&mut line).await?;
                return parse_v1(&line);
            }
            if length == V1_LONGEST {
                return Err(Refusal::Malformed);
            }
        } else if !V2_SIGNATURE.starts_with(seen) && !V1_PREFIX.starts_with(seen) {
            return Ok(Header::None);
        }
        if ended {
            return Err(Refusal::Gone);
        }
        // A torn header, which is rare: to wait for more than has been seen there is no event.
        tokio::time::sleep(PAUSE).await;
    }
}

async fn read_v2(stream: &mut TcpStream) -> Result<Header, Refusal> {
    let mut header = vec![0; V2_FIXED];
    stream.read_exact(&mut header).await?;
    let rest = usize::from(u16::from_be_bytes([header[V2_FIXED - 2], header[V2_FIXED - 1]]));
    if rest > V2_LONGEST {
        return Err(Refusal::Malformed);
    }
    header.resize(V2_FIXED + rest, 0);
    stream.read_exact(&mut header[V2_FIXED..]).await?;
    parse_v2(&header)
}

fn parse_v1(line: &[u8]) -> Result<Header, Refusal> {
    // `ppp` takes a CR for a space.
    let text = line.strip_suffix(b"\r\n").filter(|text| !text.contains(&b'\r')).ok_or(Refusal::Malformed)?;
    // Section 2.1: "the receiver must ignore anything presented before the CRLF is found". `ppp` reads four words of it.
    if text.strip_prefix(b"PROXY UNKNOWN").is_some_and(|rest| rest.is_empty() || rest[0] == b' ') {
        return Ok(Header::NamesNobody);
    }
    // And `+80` for a port.
    if text.contains(&b'+') {
        return Err(Refusal::Malformed);
    }
    let header = v1::Header::try_from(line).map_err(|_| Refusal::Malformed)?;
    Ok(match header.addresses {
        v1::Addresses::Tcp4(found) => named(found.source_address.into(), found.source_port, found.destination_port),
        v1::Addresses::Tcp6(found) => named(found.source_address.into(), found.source_port, found.destination_port),
        v1::Addresses::Unknown => Header::NamesNobody,
    })
}

fn parse_v2(header: &[u8]) -> Result<Header, Refusal> {
    // Section 2.2: of a LOCAL the receiver "must discard the protocol block including the family which is ignored".
    if header[V2_FIXED - 4] == V2_LOCAL {
        return Ok(Header::NamesNobody);
    }
    let header = v2::Header::try_from(header).map_err(|_| Refusal::Malformed)?;
    Ok(match (header.command, header.addresses) {
        (v2::Command::Proxy, v2::Addresses::IPv4(found)) => {
            named(found.source_address.into(), found.source_port, found.destination_port)
        }
        (v2::Command::Proxy, v2::Addresses::IPv6(found)) => {
            named(found.source_address.into(), found.source_port, found.destination_port)
        }
        // "The receiver must accept this connection as valid and must use the real connection endpoints".
        (v2::Command::Local, _) | (_, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => Header::NamesNobody,
    })
}

fn named(address: IpAddr, port: u16, destination_port: u16) -> Header {
    Header::Names(SocketAddr::new(address.to_canonical(), port), destination_port)
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl Refusal {
    /// A stable word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Untrusted => "untrusted_peer",
            Self::Missing => "proxy_header_missing",
            Self::Malformed => "proxy_header_malformed",
            Self::Timeout => "proxy_header_timeout",
            Self::Gone => "client_gone",
        }
    }

    /// What to change, and where.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Untrusted => {
                "HOSTWARD_PROXY_PROTOCOL=required admits peers in HOSTWARD_TRUSTED_PROXIES alone; is this one a load balancer?"
            }
            Self::Missing => {
                "switch the PROXY protocol on in the load balancer's target group, or set HOSTWARD_PROXY_PROTOCOL=optional or off"
            }
            Self::Malformed => "what connected sends something like a PROXY header that is none",
            Self::Timeout => "the PROXY header did not come within HOSTWARD_HEADER_TIMEOUT",
            Self::Gone => "the peer closed the connection before it had said who connected to it",
        }
    }

    /// One event in the log, unless it has been said within the minute.
    pub fn report(self, peer: IpAddr, repeats: &Repeats) {
        let message = "connection refused";
        if let Some(repeated) = repeats.admit(message, self.name(), Instant::now()) {
            let (reason, hint) = (self.name(), self.hint());
            tracing::warn!(reason, error = %self, peer_ip = %peer, repeated, hint, "{message}");
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untrusted => "the peer is no trusted proxy",
            Self::Missing => "no PROXY header",
            Self::Malformed => "the PROXY header can't be parsed",
            Self::Timeout => "the PROXY header took too long",
            Self::Gone => "the peer left",
        })
    }
}

const V1_PREFIX: &[u8] = b"PROXY ";
/// Bytes of a version 1 line, CRLF included: section 2.1 of the specification, "108 bytes is always enough" with a NUL.
const V1_LONGEST: usize = 107;
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes in front of version 2's addresses, the length of the rest among them.
const V2_FIXED: usize = 16;
/// Version and command of a header that the proxy sends for itself.
const V2_LOCAL: u8 = 0x20;
/// Bytes of version 2's addresses and TLVs. A load balancer's are a few hundred.
const V2_LONGEST: usize = 4096;
const PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(version_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[version_command, family], &length, rest].concat()
    }

    #[test]
    fn a_line_of_version_1_names_a_client_or_nobody() {
        for (line, expected) in [
            ("PROXY TCP4 203.0.113.9 10.0.0.1 56324 443\r\n", Some(("203.0.113.9:56324", 443))),
            ("PROXY TCP6 2001:db8::9 2001:db8::1 56324 443\r\n", Some(("[2001:db8::9]:56324", 443))),
            ("PROXY TCP6 ::ffff:203.0.113.9 ::1 1 2\r\n", Some(("203.0.113.9:1", 2))),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN a b c d\r\n", None),
        ] {
            let expected =
                expected.map_or(Header::NamesNobody, |(text, port)| Header::Names(text.parse().unwrap(), port));
            assert_eq!(parse_v1(line.as_bytes()), Ok(expected), "{line}");
        }
        for line in [
            "PROXY \r\n",
            "PROXY TCP4 203.0.113.9 10.0.0.1 56324\r\n",
            "PROXY TCP4 203.0.113.9 10.0.0.1 56324 443\n",
            "PROXY TCP4 203.0.113.9 10.0.0.1 56324 65536\r\n",
            "PROXY TCP4 203.0.113.999 10.0.0.1 1 2\r\n",
            "PROXY TCP4 2001:db8::9 10.0.0.1 1 2\r\n",
            "PROXY UDP4 203.0.113.9 10.0.0.1 1 2\r\n",
            "PROXY tcp4 203.0.113.9 10.0.0.1 1 2\r\n",
        ] {
            assert_eq!(parse_v1(line.as_bytes()), Err(Refusal::Malformed), "{line}");
        }
    }

    #[test]
    fn a_line_that_names_nobody_ends_in_crlf_too() {
        for line in ["PROXY UNKNOWN\n", "PROXY UNKNOWN a b \n"] {
            assert_eq!(parse_v1(line.as_bytes()), Err(Refusal::Malformed), "{line}");
        }
    }

    #[test]
    fn what_else_a_header_that_names_nobody_says_is_ignored() {
        assert_eq!(parse_v1(b"PROXY UNKNOWN a b c d e f +g\xff\r\n"), Ok(Header::NamesNobody));
        assert_eq!(parse_v2(&v2(0x20, 0x51, b"x")), Ok(Header::NamesNobody));
        assert_eq!(parse_v2(&v2(0x20, 0x11, b"")), Ok(Header::NamesNobody));
    }

    #[test]
    fn the_words_of_a_line_are_parted_by_spaces_and_numbers_have_no_sign() {
        for line in ["PROXY TCP4 203.0.113.9\r10.0.0.1 1 2\r\n", "PROXY TCP4 203.0.113.9 10.0.0.1 +1 2\r\n"] {
            assert_eq!(parse_v1(line.as_bytes()), Err(Refusal::Malformed), "{line}");
        }
    }

    #[test]
    fn a_header_of_version_2_names_a_client_or_nobody() {
        let v4 = [203, 0, 113, 9, 10, 0, 0, 1, 0, 80, 1, 187];
        let tlv = [v4.as_slice(), &[0xea, 0, 3, 1, b'v', b'p']].concat();
        let mut v6 = [0; 36];
        v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        v6[15] = 9;
        for (header, expected) in [
            (v2(0x21, 0x11, &v4), Some(("203.0.113.9:80", 443))),
            (v2(0x21, 0x11, &tlv), Some(("203.0.113.9:80", 443))),
            (v2(0x21, 0x21, &v6), Some(("[2001:db8::9]:0", 0))),
            (v2(0x20, 0x11, &v4), None),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x21, 0x00, &[]), None),
        ] {
            let expected =
                expected.map_or(Header::NamesNobody, |(text, port)| Header::Names(text.parse().unwrap(), port));
            assert_eq!(parse_v2(&header), Ok(expected), "{header:?}");
        }
        for header in [v2(0x11, 0x11, &v4), v2(0x22, 0x11, &v4), v2(0x21, 0x51, &v4), v2(0x21, 0x11, &v4[..8])] {
            assert_eq!(parse_v2(&header), Err(Refusal::Malformed), "{header:?}");
        }
    }
}
