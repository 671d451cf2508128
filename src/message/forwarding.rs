//! Who sent a request, and what the app gets to know of it: `X-Forwarded-*`, `X-Real-IP`, `X-Request-Id`,
//! `X-Request-Start` and RFC 7239's `Forwarded`.
//!
//! The app connects to nobody but hostward and believes what it says (gunicorn trusts 127.0.0.1 by default).
//! So every one of these headers is written here: continued where the peer is a trusted proxy, replaced where
//! it isn't. They are read from the right, because only the last hops are known to tell the truth.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::message::authority::parse_port;
use crate::message::lines::{FieldLines, SHORT};
use crate::message::names::{
    FORWARDED, Known, Name, TRACEPARENT, VIA, X_AMZ_CF_ID, X_AMZN_TRACE_ID, X_FORWARDED_FOR, X_FORWARDED_HOST,
    X_FORWARDED_PORT, X_FORWARDED_PROTO, X_REAL_IP, X_REQUEST_ID, X_REQUEST_START,
};
use crate::message::trace;
use crate::networks::Networks;

/// What the settings say about these headers.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The client's scheme when no trusted peer says it; `None` is what the peer speaks to hostward.
    pub client_proto: Option<&'static str>,
    /// In which header a trusted peer says the client's address.
    pub client_ip_header: Option<Name>,
    /// Which headers pass from trusted peers though they are removed from everybody else.
    pub pass: Vec<HeaderName>,
    /// Whether a `traceparent` is derived from a trusted peer's `X-Amzn-Trace-Id`.
    pub derive_traceparent: bool,
    /// Whether the app gets an RFC 7239 `Forwarded` header.
    pub forwarded: bool,
}

/// The two ends of a client's connection.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The client's, or that of the client whom a PROXY header names.
    pub remote: SocketAddr,
    /// hostward's.
    pub local: SocketAddr,
    /// The port that the client connected to, as the PROXY header says that names the client.
    pub destination_port: Option<u16>,
}

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
    /// Whether it is the other end of the connection, and not a client that a PROXY header names.
    pub direct: bool,
    address_text: HeaderValue,
    /// As a PROXY header says it.
    destination_port: Option<HeaderValue>,
}

/// What the headers of a request say about its client, as far as the peer can be believed.
#[derive(Debug)]
pub struct Given {
    /// The client's address: the right-most one that no trusted proxy vouches for.
    pub client: IpAddr,
    /// What says so.
    pub client_from: Source,
    /// The request's id.
    pub request_id: Option<HeaderValue>,
    chain: HeaderValue,
    scheme: Option<&'static str>,
    port: Option<HeaderValue>,
    traceparent: Option<HeaderValue>,
}

/// What hostward knows of a request without its headers.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The host that the client asked for, if any; of a health check, the host that the app sees.
    pub host: Option<HeaderValue>,
    /// The scheme of a request whose scheme no trusted peer says, and where that comes from.
    pub scheme: (&'static str, Source),
    /// The scheme of a health check, whatever anybody says.
    pub probe_scheme: Option<&'static str>,
    /// When its head was read, in milliseconds since 1970.
    pub started: u64,
}

/// What a request's forwarding fields come to.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The client's address.
    pub client: IpAddr,
    /// What says so.
    pub client_from: Source,
    /// The request's id.
    pub request_id: HeaderValue,
    /// The client's scheme.
    pub scheme: &'static str,
    /// What says so.
    pub scheme_from: Source,
    /// What says which port the client connected to.
    pub port_from: Source,
}

/// Where a fact about the client comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The connection.
    Connection,
    /// The PROXY header at its start.
    ProxyHeader,
    /// A trusted peer's `X-Forwarded-For`, `-Proto` or `-Port`.
    Forwarded,
    /// The header that `CLIENT_IP_HEADER` names.
    ClientIpHeader,
    /// `CLIENT_PROTO`
    ClientProto,
    /// `PROBE_PROTO`
    ProbeProto,
    /// The port in the public host.
    Host,
    /// The scheme's default port.
    Scheme,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "the connection to hostward",
            Self::ProxyHeader => "the PROXY header",
            Self::Forwarded => "a trusted peer's X-Forwarded header",
            Self::ClientIpHeader => "a trusted peer's header that HOSTWARD_CLIENT_IP_HEADER names",
            Self::ClientProto => "HOSTWARD_CLIENT_PROTO",
            Self::ProbeProto => "HOSTWARD_PROBE_PROTO",
            Self::Host => "the public host",
            Self::Scheme => "the scheme's default",
        })
    }
}

impl Peer {
    /// The peer of a connection with these ends.
    pub fn new(ends: &Ends, trusted: &Networks) -> Self {
        let Ends { remote, local, destination_port } = ends;
        let address = remote.ip().to_canonical();
        let text = HeaderValue::from_maybe_shared(Bytes::from(address.to_string()));
        Self {
            address,
            local: SocketAddr::new(local.ip().to_canonical(), local.port()),
            port: remote.port(),
            trusted: trusted.contains(address),
            direct: destination_port.is_none(),
            address_text: text.unwrap_or(UNKNOWN),
            // Port 0 is none that a client can have connected to.
            destination_port: destination_port.filter(|port| *port != 0).map(HeaderValue::from),
        }
    }
}

/// Whether a proxy stands between the sender of this request and us: no health check's request says so.
pub fn is_forwarded(fields: &FieldLines) -> bool {
    fields.iter().any(|(name, _)| match name {
        Name::Known(known) => matches!(
            *known,
            X_FORWARDED_FOR
                | X_FORWARDED_HOST
                | X_FORWARDED_PORT
                | X_FORWARDED_PROTO
                | FORWARDED
                | VIA
                | X_AMZN_TRACE_ID
                | X_AMZ_CF_ID
                | X_REAL_IP
        ),
        Name::Other(name) => {
            let name = name.as_str();
            ADDED_BY_PROXIES.iter().any(|prefix| name.starts_with(prefix))
        }
    })
}

/// The client, and the id that the request brings, as far as the peer can be believed.
pub fn origin(
    fields: &FieldLines,
    peer: &Peer,
    trusted: &Networks,
    settings: &Settings,
) -> (IpAddr, Source, Option<HeaderValue>) {
    if !peer.trusted {
        return (peer.address, Source::Connection, None);
    }
    let id = fields.value(X_REQUEST_ID).filter(|id| is_request_id(id.as_bytes()));
    let named = settings.client_ip_header.as_ref().and_then(|name| named_client(fields, name));
    let (client, source) = match (named, client_address(fields, trusted)) {
        (Some(client), _) => (client, Source::ClientIpHeader),
        (None, Some(client)) => (client, Source::Forwarded),
        (None, None) => (peer.address, Source::Connection),
    };
    (client, source, id)
}

/// Reads what the headers say, before they are removed.
pub fn read(
    fields: &FieldLines,
    peer: &Peer,
    trusted: &Networks,
    settings: &Settings,
    make_parent: impl FnOnce() -> u64,
) -> Given {
    let (client, client_from, request_id) = origin(fields, peer, trusted, settings);
    let mut given = Given {
        client,
        client_from,
        request_id,
        chain: peer.address_text.clone(),
        scheme: None,
        port: None,
        traceparent: None,
    };
    if peer.trusted {
        given.chain = continued(fields, &peer.address_text);
        given.scheme = last_element(fields, X_FORWARDED_PROTO).and_then(scheme_of);
        given.port = last_element(fields, X_FORWARDED_PORT)
            .filter(|port| is_port(port))
            .and_then(|port| HeaderValue::from_bytes(port).ok());
        if settings.derive_traceparent && !fields.contains(TRACEPARENT) {
            let mut lines = fields.get_all(X_AMZN_TRACE_ID);
            if let (Some(line), None) = (lines.next(), lines.next()) {
                given.traceparent = trace::traceparent(line, make_parent);
            }
        }
    }
    given
}

/// Writes the forwarding fields of a request from which they have been removed. `make_id` is called only when the request
/// brings no id that can be believed.
pub fn write(
    fields: &mut FieldLines,
    peer: &Peer,
    given: Given,
    facts: Facts,
    make_id: impl FnOnce() -> HeaderValue,
) -> Origin {
    let Given { client, client_from, request_id, chain, scheme, port, traceparent } = given;
    let client_text = if client == peer.address { peer.address_text.clone() } else { address_text(client) };
    let (scheme, scheme_from) = match (facts.probe_scheme, scheme) {
        (Some(scheme), _) => (scheme, Source::ProbeProto),
        (None, Some(scheme)) => (scheme, Source::Forwarded),
        (None, None) => facts.scheme,
    };
    let request_id = request_id.unwrap_or_else(make_id);
    fields.insert(X_FORWARDED_FOR, chain);
    fields.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    let host_port = facts.host.as_ref().and_then(|host| port_of(host.as_bytes()));
    let port_from = match (port, &peer.destination_port, host_port) {
        (Some(port), ..) => {
            fields.insert(X_FORWARDED_PORT, port);
            Source::Forwarded
        }
        (None, Some(port), _) => {
            fields.insert(X_FORWARDED_PORT, port.clone());
            Source::ProxyHeader
        }
        (None, None, Some(port)) => {
            fields.insert_short(X_FORWARDED_PORT, port);
            Source::Host
        }
        (None, None, None) => {
            let port = if is_secure(scheme) { "443" } else { "80" };
            fields.insert(X_FORWARDED_PORT, HeaderValue::from_static(port));
            Source::Scheme
        }
    };
    fields.insert(X_REAL_IP, client_text);
    fields.insert(X_REQUEST_ID, request_id.clone());
    write_request_start(fields, facts.started);
    if let Some(host) = facts.host {
        fields.insert(X_FORWARDED_HOST, host);
    }
    if let Some(traceparent) = traceparent {
        fields.insert(TRACEPARENT, traceparent);
    }
    Origin { client, client_from, request_id, scheme, scheme_from, port_from }
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
    for line in fields.get_all(X_FORWARDED_FOR).rev() {
        // RFC 9110 §5.6.1.2: "A recipient MUST parse and ignore a reasonable number of empty list elements".
        for element in line.rsplit(|b| *b == b',').filter(|element| !element.trim_ascii().is_empty()) {
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

/// The address in the header that `CLIENT_IP_HEADER` names; `None` when it isn't one line with an address.
fn named_client(fields: &FieldLines, name: &Name) -> Option<IpAddr> {
    let mut lines = fields.iter().filter(|(other, _)| *other == name).map(|(_, value)| value);
    let (line, None) = (lines.next()?, lines.next()) else { return None };
    let text = std::str::from_utf8(line).ok()?.trim_ascii();
    // `CloudFront-Viewer-Address` always has a port, and no brackets around an IPv6 address in front of it. Elsewhere that
    // is an IPv6 address with a port only if it can't be one without.
    let unbracketed = || {
        let (address, port) = text.rsplit_once(':')?;
        parse_port(port).ok()?;
        address.parse::<std::net::Ipv6Addr>().ok().map(IpAddr::from)
    };
    let with_port = if name.as_str() == "cloudfront-viewer-address" { unbracketed() } else { None };
    let address = with_port.or_else(|| node(line)).or_else(unbracketed)?;
    Some(address.to_canonical())
}

/// The client's `X-Forwarded-For` on one line, without empty elements, and the peer at its end.
fn continued(fields: &FieldLines, peer: &HeaderValue) -> HeaderValue {
    let is_blank = |element: &[u8]| element.trim_ascii().is_empty();
    let length: usize = fields.get_all(X_FORWARDED_FOR).map(|line| line.len() + 2).sum();
    if length == 0 {
        return peer.clone();
    }
    let mut chain = Vec::with_capacity(length + peer.len());
    for line in fields.get_all(X_FORWARDED_FOR) {
        let elements = || line.split(|byte| *byte == b',');
        let has_blank = if memchr::memchr(b',', line).is_some() { elements().any(is_blank) } else { is_blank(line) };
        if has_blank {
            // RFC 9110 §5.6.1.1: "A sender MUST NOT generate empty list elements."
            for element in elements().filter(|element| !is_blank(element)) {
                chain.extend_from_slice(element.trim_ascii());
                chain.extend_from_slice(b", ");
            }
        } else {
            chain.extend_from_slice(line);
            chain.extend_from_slice(b", ");
        }
    }
    chain.extend_from_slice(peer.as_bytes());
    HeaderValue::from_maybe_shared(Bytes::from(chain)).unwrap_or_else(|_| peer.clone())
}

/// The right-most element that isn't empty: what the nearest proxy said.
fn last_element(fields: &FieldLines, name: Known) -> Option<&[u8]> {
    let elements = fields.get_all(name).rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
    elements.map(<[u8]>::trim_ascii).find(|element| !element.is_empty())
}

/// The digits of the port in a host that has been parsed already.
fn port_of(host: &[u8]) -> Option<&[u8]> {
    let colon = host.iter().rposition(|byte| *byte == b':')?;
    let mut digits = host.get(colon + 1..)?;
    // Leading zeros are valid (RFC 3986 §3.2.3), and no app needs to know of them.
    while let [b'0', rest @ ..] = digits
        && !rest.is_empty()
    {
        digits = rest;
    }
    // In an IPv6 address without a port the last colon stands inside of the brackets.
    (!digits.is_empty() && digits.iter().all(u8::is_ascii_digit)).then_some(digits)
}

/// Whether a scheme is one of TLS.
pub fn is_secure(scheme: &str) -> bool {
    matches!(scheme, "https" | "wss")
}

/// The value of `X-Request-Start`, as Heroku's router and nginx recipes write it.
fn write_request_start(fields: &mut FieldLines, millis: u64) {
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(millis).as_bytes();
    let mut text = [0; SHORT];
    text[..2].copy_from_slice(b"t=");
    text[2..2 + digits.len()].copy_from_slice(digits);
    fields.insert_short(X_REQUEST_START, &text[..2 + digits.len()]);
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

/// How the names of headers begin that only proxies, load balancers and content delivery networks add.
const ADDED_BY_PROXIES: [&str; 7] =
    ["x-forwarded", "x-amzn-", "x-original-", "cloudfront-", "cf-", "cdn-loop", "true-client-ip"];

/// Bytes of `255.255.255.255`.
const LONGEST_V4: usize = 15;

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::message::fields::{Sender, strip_request};

    const LOCAL: &str = "10.0.2.100:8080";

    fn networks() -> Networks {
        Networks::private().into_iter().collect()
    }

    fn written(peer: &str, lines: &[(&'static str, &str)]) -> (HeaderMap, Origin) {
        let mut fields = FieldLines::default();
        for (name, value) in lines {
            fields.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        let ends = ends(peer);
        let host = HeaderValue::from_static("www.example.com:8443");
        let origin = rewritten(&mut fields, &ends, Some(&host), &Settings::default());
        (fields.into_map().unwrap(), origin)
    }

    fn ends(peer: &str) -> Ends {
        Ends {
            remote: (peer.parse::<IpAddr>().unwrap(), 0).into(),
            local: LOCAL.parse().unwrap(),
            destination_port: None,
        }
    }

    fn rewritten(fields: &mut FieldLines, ends: &Ends, host: Option<&HeaderValue>, settings: &Settings) -> Origin {
        let peer = Peer::new(ends, &networks());
        let given = read(fields, &peer, &networks(), settings, || 7);
        let sender = Sender { trusted: peer.trusted, pass: &settings.pass, client_ip: None };
        strip_request(fields, sender, |_, _| {});
        let scheme = settings.client_proto.map_or(("http", Source::Connection), |scheme| (scheme, Source::ClientProto));
        let facts = Facts { host: host.cloned(), scheme, probe_scheme: None, started: 1_700_000_000_123 };
        write(fields, &peer, given, facts, || HeaderValue::from_static("made"))
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
        assert_eq!(headers["x-forwarded-port"], "8443");
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
        assert_eq!(client("unknown, "), "10.0.1.7");
        assert_eq!(client("unknown"), "10.0.1.7");
    }

    #[test]
    fn a_port_that_no_socket_has_is_not_passed_on() {
        for (port, expected) in [("65536", "8443"), ("99999", "8443"), ("65535", "65535"), ("0443", "0443")] {
            assert_eq!(written("10.0.1.7", &[("x-forwarded-port", port)]).0["x-forwarded-port"], expected);
        }
    }

    #[test]
    fn empty_elements_of_a_list_are_ignored_and_left_out() {
        for (list, chain) in [
            ("203.0.113.5,", "203.0.113.5, 10.0.1.7"),
            ("203.0.113.5 ,\t, ", "203.0.113.5, 10.0.1.7"),
            (",203.0.113.5", "203.0.113.5, 10.0.1.7"),
            ("6.6.6.6,, 203.0.113.5,10.0.0.9,", "6.6.6.6, 203.0.113.5, 10.0.0.9, 10.0.1.7"),
            ("6.6.6.6,203.0.113.5,10.0.0.9", "6.6.6.6,203.0.113.5,10.0.0.9, 10.0.1.7"),
        ] {
            let (headers, origin) = written("10.0.1.7", &[("x-forwarded-for", list)]);
            assert_eq!(headers["x-forwarded-for"], chain);
            assert_eq!(origin.client.to_string(), "203.0.113.5");
        }
        for list in ["", ",", " , ,"] {
            let (headers, origin) = written("10.0.1.7", &[("x-forwarded-for", list)]);
            assert_eq!(headers["x-forwarded-for"], "10.0.1.7");
            assert_eq!(origin.client_from, Source::Connection);
        }
        let lines = [("x-forwarded-proto", "http, https,"), ("x-forwarded-proto", " "), ("x-forwarded-port", "443,,")];
        let (headers, origin) = written("10.0.1.7", &lines);
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-port"], "443");
        assert_eq!(
            (origin.scheme, origin.scheme_from, origin.port_from),
            ("https", Source::Forwarded, Source::Forwarded)
        );
    }

    #[test]
    fn the_port_is_the_nearest_that_is_known_and_never_hostwards_own() {
        let port = |host: Option<&'static str>, destination_port, lines: &[(&'static str, &str)], proto| {
            let mut fields = FieldLines::default();
            for (name, value) in lines {
                fields.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
            }
            let host = host.map(HeaderValue::from_static);
            let settings = Settings { client_proto: proto, ..Settings::default() };
            let ends = Ends { destination_port, ..ends("10.0.1.7") };
            let origin = rewritten(&mut fields, &ends, host.as_ref(), &settings);
            let port = fields.get(X_FORWARDED_PORT).unwrap().to_vec();
            (String::from_utf8(port).unwrap(), origin.port_from)
        };
        let forwarded = [("x-forwarded-port", "8444")];
        let text = |port: &str, source| (port.to_owned(), source);
        assert_eq!(port(Some("a:81"), Some(443), &forwarded, None), text("8444", Source::Forwarded));
        assert_eq!(port(Some("a:81"), Some(443), &[], None), text("443", Source::ProxyHeader));
        assert_eq!(port(Some("a:81"), None, &[], None), text("81", Source::Host));
        assert_eq!(port(Some("[::1]:00081"), None, &[], None), text("81", Source::Host));
        for host in [Some("a"), Some("[::1]"), Some("[2001:db8::8080]"), Some("a:"), Some("a."), None] {
            assert_eq!(port(host, None, &[], None), text("80", Source::Scheme), "{host:?}");
            assert_eq!(port(host, None, &[], Some("https")), text("443", Source::Scheme), "{host:?}");
        }
        assert_eq!(port(Some("a"), None, &[("x-forwarded-proto", "wss")], None), text("443", Source::Scheme));
        assert_eq!(port(Some("a"), None, &[("x-forwarded-proto", "ws")], Some("https")), text("80", Source::Scheme));
    }

    #[test]
    fn a_named_header_holds_the_client_in_every_form() {
        let client = |name: &'static str, lines: &[&str]| {
            let mut fields = FieldLines::default();
            for value in lines {
                fields.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
            }
            named_client(&fields, &Name::read(name.as_bytes()).unwrap()).map(|address| address.to_string())
        };
        for name in ["cf-connecting-ip", "cloudfront-viewer-address", "x-real-ip"] {
            for (value, expected) in [
                ("203.0.113.5", "203.0.113.5"),
                (" 203.0.113.5:46532 ", "203.0.113.5"),
                ("[2001:db8::5]:46532", "2001:db8::5"),
                ("[2001:db8::5]", "2001:db8::5"),
                ("2001:db8::5:46532", "2001:db8::5"),
                ("2001:db8:0:0:0:0:0:5:443", "2001:db8::5"),
                ("::ffff:203.0.113.5", "203.0.113.5"),
            ] {
                assert_eq!(client(name, &[value]).as_deref(), Some(expected), "{name}: {value}");
            }
            for value in
                ["", "unknown", "203.0.113.5, 203.0.113.6", "203.0.113.5:x", "203.0.113.5:65536", "2001:db8::g"]
            {
                assert_eq!(client(name, &[value]), None, "{name}: {value}");
            }
            assert_eq!(client(name, &["203.0.113.5", "203.0.113.5"]), None);
            assert_eq!(client(name, &[]), None);
        }
        assert_eq!(client("true-client-ip", &["2001:db8::5:443"]).as_deref(), Some("2001:db8::5:443"));
        assert_eq!(client("cloudfront-viewer-address", &["2001:db8::5:443"]).as_deref(), Some("2001:db8::5"));
    }

    #[test]
    fn the_start_of_a_request_is_in_milliseconds() {
        for (millis, text) in [(1_700_000_000_123, "t=1700000000123"), (0, "t=0"), (u64::MAX, "t=18446744073709551615")]
        {
            let mut fields = FieldLines::default();
            write_request_start(&mut fields, millis);
            assert_eq!(fields.get(X_REQUEST_START), Some(text.as_bytes()));
        }
        let (headers, _) = written("10.0.1.7", &[("x-request-start", "t=1"), ("x-queue-start", "t=1")]);
        assert_eq!(
            (&headers["x-request-start"], headers.get("x-queue-start")),
            (&"t=1700000000123".parse().unwrap(), None)
        );
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
        assert_eq!(headers["x-forwarded-port"], "8443");
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
