//! Who asked, and how the app is told: `X-Forwarded-*`, `X-Real-IP`, `X-Request-Id` and RFC 7239's `Forwarded`.
//!
//! The app connects to nobody but hostward and believes what it says (gunicorn trusts 127.0.0.1 by default).
//! So every one of these fields is written here: continued where the peer is a trusted proxy, replaced where
//! it isn't. They are read from the right, because only the last hops are known to tell the truth.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::HeaderValue;

use crate::message::authority::parse_port;
use crate::message::lines::FieldLines;
use crate::message::names::{
    FORWARDED, Known, VIA, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PORT, X_FORWARDED_PROTO, X_REAL_IP,
    X_REQUEST_ID,
};
use crate::networks::Networks;

/// The other end of a connection: what is the same for all its requests.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address; IPv4-mapped ones as IPv4.
    pub address: IpAddr,
    /// This end of the connection, likewise.
    pub local: SocketAddr,
    /// The other end's port; 0 when nobody knows it.
    pub port: u16,
    /// Whether its forwarding fields are believed.
    pub trusted: bool,
    address_text: HeaderValue,
    port_text: HeaderValue,
}

/// What a request's forwarding fields come to.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The client: the right-most address that no trusted proxy vouches for.
    pub client: IpAddr,
    /// The request's id.
    pub request_id: HeaderValue,
}

impl Peer {
    /// The peer of a connection from `remote` that was accepted at `local`.
    pub fn new(remote: IpAddr, local: SocketAddr, trusted: &Networks) -> Self {
        let address = remote.to_canonical();
        let text = |text: String| HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(UNKNOWN);
        Self {
            address,
            local: SocketAddr::new(local.ip().to_canonical(), local.port()),
            port: 0,
            trusted: trusted.contains(address),
            address_text: text(address.to_string()),
            port_text: text(local.port().to_string()),
        }
    }
}

/// Whether a proxy stands between the sender of this request and us: no probe's request says so.
pub fn is_forwarded(fields: &FieldLines) -> bool {
    [X_FORWARDED_FOR, FORWARDED, VIA].iter().any(|name| fields.contains(*name))
}

/// The client, and the id that the request brings, as far as the peer can be believed.
pub fn origin(fields: &FieldLines, peer: &Peer, trusted: &Networks) -> (IpAddr, Option<HeaderValue>) {
    if !peer.trusted {
        return (peer.address, None);
    }
    let id = fields.value(X_REQUEST_ID).filter(|id| is_request_id(id.as_bytes()));
    (client_address(fields, trusted).unwrap_or(peer.address), id)
}

/// Writes the forwarding fields of a request whose other fields have been stripped. `host` is what the app
/// sees as `Host`, if anything; `scheme` what the peer spoke to us; `make_id` is asked only when the request
/// brings no id that can be believed.
pub fn write(
    fields: &mut FieldLines,
    peer: &Peer,
    trusted: &Networks,
    host: Option<&HeaderValue>,
    scheme: &'static str,
    make_id: impl FnOnce() -> HeaderValue,
) -> Origin {
    let (client, id) = origin(fields, peer, trusted);
    let client_text = if client == peer.address { peer.address_text.clone() } else { address_text(client) };
    let mut chain = peer.address_text.clone();
    let mut proto = None;
    let mut port = None;
    if peer.trusted {
        chain = continued(fields, &peer.address_text);
        proto = last_element(fields, X_FORWARDED_PROTO).and_then(scheme_of);
        port = last_element(fields, X_FORWARDED_PORT)
            .filter(|port| is_port(port))
            .and_then(|port| HeaderValue::from_bytes(port).ok());
    }
    let request_id = id.unwrap_or_else(make_id);
    fields.insert(X_FORWARDED_FOR, chain);
    fields.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto.unwrap_or(scheme)));
    fields.insert(X_FORWARDED_PORT, port.unwrap_or_else(|| peer.port_text.clone()));
    fields.insert(X_REAL_IP, client_text);
    fields.insert(X_REQUEST_ID, request_id.clone());
    if let Some(host) = host {
        fields.insert(X_FORWARDED_HOST, host.clone());
    }
    Origin { client, request_id }
}

/// Writes the `Forwarded` field of RFC 7239 §4 from what [`write`] has written.
pub fn write_forwarded(fields: &mut FieldLines, client: IpAddr) {
    let mut text = match client {
        IpAddr::V4(address) => format!("for={address}"),
        // RFC 7239 §6: "an IPv6 address is always enclosed in square brackets", and a bracket needs quotes.
        IpAddr::V6(address) => format!("for=\"[{address}]\""),
    };
    let value =
        |name| fields.get(name).and_then(|value| std::str::from_utf8(value).ok()).filter(|value| value.is_ascii());
    if let Some(host) = value(X_FORWARDED_HOST) {
        text.push_str(";host=\"");
        // RFC 9110 §5.6.4: a host has no quotes and no backslashes (message::authority refuses them).
        text.push_str(host);
        text.push('"');
    }
    if let Some(proto) = value(X_FORWARDED_PROTO) {
        text.push_str(";proto=");
        text.push_str(proto);
    }
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(text)) {
        fields.insert(FORWARDED, value);
    }
}

/// The right-most address of `X-Forwarded-For` that isn't a trusted proxy's; the left-most one if all are.
/// Stops at what is no address: whoever stands left of it can't be vouched for.
fn client_address(fields: &FieldLines, trusted: &Networks) -> Option<IpAddr> {
    let mut client = None;
    // Empty lines say nothing, and `continued` leaves them out: whoever comes next must find the same client.
    for line in fields.get_all(X_FORWARDED_FOR).rev().filter(|line| !line.is_empty()) {
        for element in line.rsplit(|b| *b == b',') {
            let Some(address) = node(element) else { return client };
            client = Some(address);
            if !trusted.contains(address) {
                return client;
            }
        }
    }
    client
}

/// One element of `X-Forwarded-For`, in the forms that an Application Load Balancer writes: an address,
/// `v4:port`, `[v6]:port`, `[v6]`.
fn node(element: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(element).ok()?.trim_ascii();
    let address = match text.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => match text.parse::<SocketAddr>() {
            Ok(address) => address.ip(),
            Err(_) => text.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?,
        },
    };
    Some(address.to_canonical())
}

/// The chain so far on one line, and the peer at its end.
fn continued(fields: &FieldLines, peer: &HeaderValue) -> HeaderValue {
    let lines = || fields.get_all(X_FORWARDED_FOR).filter(|line| !line.is_empty());
    let length: usize = lines().map(|line| line.len() + 2).sum();
    if length == 0 {
        return peer.clone();
    }
    let mut chain = Vec::with_capacity(length + peer.len());
    for line in lines() {
        chain.extend_from_slice(line);
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(peer.as_bytes());
    HeaderValue::from_maybe_shared(Bytes::from(chain)).unwrap_or_else(|_| peer.clone())
}

/// The right-most element of the right-most line: what the nearest proxy said.
fn last_element(fields: &FieldLines, name: Known) -> Option<&[u8]> {
    let line = fields.get_all(name).next_back()?;
    Some(memchr::memrchr(b',', line).map_or(line, |comma| line[comma + 1..].trim_ascii()))
}

/// RFC 3986 §3.1: schemes are case-insensitive, and written in lower case. Some proxies name a WebSocket's own
/// (RFC 6455 §3).
fn scheme_of(text: &[u8]) -> Option<&'static str> {
    ["https", "http", "wss", "ws"].into_iter().find(|scheme| text.eq_ignore_ascii_case(scheme.as_bytes()))
}

fn is_port(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|digits| parse_port(digits).is_ok())
}

/// An id goes into the log and perhaps into a page: visible ASCII, no quotes, and not for ever.
fn is_request_id(text: &[u8]) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && text.iter().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'<' | b'>'))
}

fn address_text(address: IpAddr) -> HeaderValue {
    let mut text = Vec::with_capacity(LONGEST_V4);
    write_address(&mut text, address);
    HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(UNKNOWN)
}

/// Writes an address as text: for IPv4 without the detour over `fmt`, because it is done for every request.
pub fn write_address(text: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            // With a dot behind the last octet, too, which is left out.
            let mut dotted = [b'.'; LONGEST_V4 + 1];
            let mut length = 0;
            for octet in address.octets() {
                let mut put = |digit| {
                    dotted[length] = b'0' + digit;
                    length += 1;
                };
                if octet > 99 {
                    put(octet / 100);
                }
                if octet > 9 {
                    put(octet / 10 % 10);
                }
                put(octet % 10);
                length += 1;
            }
            text.extend_from_slice(&dotted[..length - 1]);
        }
        IpAddr::V6(address) => text.extend_from_slice(address.to_string().as_bytes()),
    }
}

/// RFC 7239 §6.2. No address's text needs it; it saves an `unwrap`.
const UNKNOWN: HeaderValue = HeaderValue::from_static("unknown");

/// Bytes of `255.255.255.255`.
const LONGEST_V4: usize = 15;

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName};

    use super::*;

    const LOCAL: &str = "10.0.2.100:8080";

    fn networks() -> Networks {
        Networks::private().into_iter().collect()
    }

    fn written(peer: &str, lines: &[(&'static str, &str)]) -> (HeaderMap, Origin) {
        let mut fields = FieldLines::default();
        for (name, value) in lines {
            fields.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        let peer = Peer::new(peer.parse().unwrap(), LOCAL.parse().unwrap(), &networks());
        let host = HeaderValue::from_static("www.example.com:8443");
        let origin = write(&mut fields, &peer, &networks(), Some(&host), "http", || HeaderValue::from_static("made"));
        (fields.into_map().unwrap(), origin)
    }

    fn client(xff: &str) -> String {
        written("10.0.1.7", &[("x-forwarded-for", xff)]).1.client.to_string()
    }

    #[test]
    fn an_address_is_written_as_the_standard_library_writes_it() {
        for octet in 0..=u8::MAX {
            for octets in [[octet, 0, 9, 10], [99, 100, 255, octet], [octet; 4]] {
                let mut text = Vec::new();
                write_address(&mut text, octets.into());
                assert_eq!(String::from_utf8(text).unwrap(), IpAddr::from(octets).to_string());
            }
        }
    }

    #[test]
    fn a_trusted_peer_s_fields_are_continued() {
        let (headers, origin) = written(
            "10.0.1.7",
            &[
                ("x-forwarded-for", "198.51.100.9"),
                ("x-forwarded-for", "203.0.113.5"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-port", "443"),
                ("x-request-id", "abc-1"),
            ],
        );
        assert_eq!(headers["x-forwarded-for"], "198.51.100.9, 203.0.113.5, 10.0.1.7");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-port"], "443");
        assert_eq!(headers["x-real-ip"], "203.0.113.5");
        assert_eq!(headers["x-forwarded-host"], "www.example.com:8443");
        assert_eq!(headers["x-request-id"], "abc-1");
        assert_eq!(origin.client.to_string(), "203.0.113.5");
        assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
    }

    #[test]
    fn anybody_else_s_fields_are_replaced() {
        let (headers, origin) = written(
            "203.0.113.5",
            &[
                ("x-forwarded-for", "10.0.0.1"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-port", "443"),
                ("x-real-ip", "10.0.0.1"),
                ("x-request-id", "abc-1"),
            ],
        );
        assert_eq!(headers["x-forwarded-for"], "203.0.113.5");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-port"], "8080");
        assert_eq!(headers["x-real-ip"], "203.0.113.5");
        assert_eq!(headers["x-request-id"], "made");
        assert_eq!(origin.client.to_string(), "203.0.113.5");
    }

    #[test]
    fn the_client_is_the_right_most_address_that_nobody_trusted_vouches_for() {
        assert_eq!(client("203.0.113.5"), "203.0.113.5");
        assert_eq!(client("1.2.3.4, 203.0.113.5"), "203.0.113.5");
        assert_eq!(client("203.0.113.5, 10.0.0.9"), "203.0.113.5");
        assert_eq!(client("10.0.0.8, 10.0.0.9"), "10.0.0.8");
        assert_eq!(client("203.0.113.5:4711"), "203.0.113.5");
        assert_eq!(client("[2001:db8::5]:4711"), "2001:db8::5");
        assert_eq!(client("[2001:db8::5]"), "2001:db8::5");
        assert_eq!(client("2001:db8::5,10.0.0.9"), "2001:db8::5");
        assert_eq!(client("::ffff:203.0.113.5"), "203.0.113.5");
        // What is no address, and whatever stands left of it, is nobody's word.
        assert_eq!(client("203.0.113.5, junk, 10.0.0.9"), "10.0.0.9");
        assert_eq!(client("203.0.113.5, "), "10.0.1.7");
        assert_eq!(client("unknown"), "10.0.1.7");
    }

    #[test]
    fn a_port_that_no_socket_has_is_not_passed_on() {
        for (port, expected) in [("65536", "8080"), ("99999", "8080"), ("65535", "65535"), ("0443", "0443")] {
            assert_eq!(written("10.0.1.7", &[("x-forwarded-port", port)]).0["x-forwarded-port"], expected);
        }
    }

    #[test]
    fn an_empty_line_does_not_hide_the_client() {
        let lines = [("x-forwarded-for", "203.0.113.5"), ("x-forwarded-for", "")];
        let (headers, origin) = written("10.0.1.7", &lines);
        assert_eq!(origin.client.to_string(), "203.0.113.5");
        assert_eq!(headers["x-forwarded-for"], "203.0.113.5, 10.0.1.7");
    }

    #[test]
    fn what_a_trusted_peer_passes_on_is_believed_only_when_it_makes_sense() {
        let (headers, _) = written(
            "10.0.1.7",
            &[("x-forwarded-proto", "javascript"), ("x-forwarded-port", "8x"), ("x-request-id", "a\"b")],
        );
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-port"], "8080");
        assert_eq!(headers["x-request-id"], "made");
        let (headers, _) = written("10.0.1.7", &[("x-forwarded-proto", "http, HTTPS"), ("x-forwarded-for", "")]);
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-for"], "10.0.1.7");
    }

    #[test]
    fn forwarded_says_the_same_in_the_standard_s_words() {
        let (headers, origin) =
            written("10.0.1.7", &[("x-forwarded-for", "2001:db8::5"), ("x-forwarded-proto", "https")]);
        let mut fields = FieldLines::from(headers);
        write_forwarded(&mut fields, origin.client);
        assert_eq!(
            fields.into_map().unwrap()["forwarded"],
            "for=\"[2001:db8::5]\";host=\"www.example.com:8443\";proto=https"
        );
    }

    #[test]
    fn a_mapped_peer_is_its_ipv4_address() {
        let (headers, _) = written("::ffff:10.0.1.7", &[]);
        assert_eq!(headers["x-forwarded-for"], "10.0.1.7");
    }
}
