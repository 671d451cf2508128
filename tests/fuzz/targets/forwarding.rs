//! What clients may not say is removed and nothing else, and what hostward says about them is true by another reading
//! of the same fields.
//!
//! An input is the peer's address on a line, and field lines.

#![no_main]

use std::net::{IpAddr, SocketAddr};

use hostward::message::fields::{Found, Sender, strip_request};
use hostward::message::forwarding::{self, Ends, Facts, Origin, Peer, Settings, Source};
use hostward::message::lines::FieldLines;
use hostward::networks::Networks;
use hostward_fuzz::first_line;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

const MADE: &str = "0123456789abcdef";
const HOST: &str = "www.example.com:8443";

fuzz_target!(|input: &[u8]| {
    let (peer, rest) = first_line(input);
    let peer: IpAddr = std::str::from_utf8(peer).ok().and_then(|text| text.parse().ok()).unwrap_or(PRIVATE);
    let mut headers = HeaderMap::new();
    for line in rest.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let trusted: Networks = Networks::private().into_iter().collect();
    let local: SocketAddr = "10.0.2.100:8080".parse().expect("an address");
    let ends = |address: IpAddr| Ends { remote: (address, 40_000).into(), local, destination_port: None };
    let peer = Peer::new(&ends(peer), &trusted);
    assert_eq!(peer.trusted, is_private(peer.address), "{}", peer.address);

    let came = headers.clone();
    let mut fields = FieldLines::from(headers);
    let mut stripped = fields.clone();
    let found = strip(&mut stripped, &peer);
    let stripped = map(&stripped);
    check_stripped(&came, &stripped, peer.trusted);
    let trailers = came.get_all("te").iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    assert_eq!(found.te_trailers, trailers);

    let origin = rewrite(&mut fields, &peer, &trusted);
    let headers = map(&fields);
    check_written(&came, &stripped, &headers, &peer, origin.client);
    assert_eq!(headers["x-request-id"], origin.request_id);

    // A second hostward behind this one, which it trusts, believes the same.
    let mut again = fields.clone();
    let second = rewrite(&mut again, &Peer::new(&ends(PRIVATE), &trusted), &trusted);
    assert_eq!((second.client, second.request_id), (origin.client, origin.request_id));
    let again = map(&again);
    assert_eq!(again["x-forwarded-proto"], headers["x-forwarded-proto"]);
    assert_eq!(again["x-forwarded-port"], headers["x-forwarded-port"]);
});

fn strip(fields: &mut FieldLines, peer: &Peer) -> Found {
    strip_request(fields, Sender { trusted: peer.trusted, pass: &[], client_ip: None }, |_, _| {})
}

/// As `proxy::request` does it.
fn rewrite(fields: &mut FieldLines, peer: &Peer, trusted: &Networks) -> Origin {
    let given = forwarding::read(fields, peer, trusted, &Settings::default(), || 1);
    strip(fields, peer);
    let host = Some(HeaderValue::from_static(HOST));
    let facts = Facts { host, scheme: ("http", Source::Connection), probe_scheme: None, started: 1_700_000_000_000 };
    let origin = forwarding::write(fields, peer, given, facts, || HeaderValue::from_static(MADE));
    forwarding::write_forwarded(fields, origin.client);
    origin
}

fn map(fields: &FieldLines) -> HeaderMap {
    fields.clone().into_map().expect("values that the library takes")
}

/// README, "What happens to a request", step 5.
const REMOVED: [&str; 49] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "expect",
    "forwarded",
    "proxy",
    "x-forwarded-host",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "x-forwarded-scheme",
    "x-forwarded-protocol",
    "x-host",
    "x-original-host",
    "x-original-url",
    "x-rewrite-url",
    "x-scheme",
    "front-end-https",
    "x-proto",
    "x-arr-ssl",
    "cf-visitor",
    "x-proxyhost",
    "x-proxyport",
    "x-url-scheme",
    "wl-proxy-ssl",
    "proxy-ssl-id",
    "x-script-name",
    "x-proxyscheme",
    "https-from-lb",
    "ssl-offloaded",
    "x-original-uri",
    "x-ingress-path",
    "x-original-path",
    "x-original-port",
    "x-sendfile-type",
    "x-accel-mapping",
    "x-proxied-https",
    "proxy-auth-cert",
    "x-original-proto",
    "x-original-scheme",
    "x-original-method",
    "x-original-prefix",
    "x-proxycontextpath",
    "x-http-host-override",
    // RFC 9110 §7.6.1, and what was sent once.
    "proxy-connection",
    "keep-alive",
];
/// What hostward writes itself.
const WRITTEN: [&str; 8] = [
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-host",
    "x-real-ip",
    "x-request-id",
    "x-request-start",
    "x-queue-start",
];
const REMOVED_FROM_STRANGERS: [&str; 3] = ["x-amzn-oidc-", "x-amzn-mtls-", "x-amzn-tls-"];

fn check_stripped(came: &HeaderMap, left: &HeaderMap, trusted: bool) {
    let options: Vec<String> = came
        .get_all("connection")
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(|option| String::from_utf8_lossy(option.trim_ascii()).to_ascii_lowercase())
        .collect();
    for name in came.keys() {
        let name = name.as_str();
        let kept = ["host", "content-length", "cookie", "authorization", "via", "traceparent", "tracestate"];
        let kept = kept.contains(&name) || name.starts_with("x-amzn-");
        let removed = REMOVED.contains(&name)
            || WRITTEN.contains(&name)
            || name == "x-forwarded"
            || name.starts_with("x-forwarded-")
            || name == "cloudfront-forwarded-proto"
            || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            || (options.iter().any(|option| option == name) && !kept)
            || (!trusted && REMOVED_FROM_STRANGERS.iter().any(|prefix| name.starts_with(prefix)));
        if removed {
            assert!(!left.contains_key(name), "{name} was left");
        } else {
            let values = |headers: &HeaderMap| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
            assert_eq!(values(came), values(left), "{name} was changed");
        }
    }
    assert!(left.keys().all(|name| came.contains_key(name)));
}

fn check_written(came: &HeaderMap, stripped: &HeaderMap, written: &HeaderMap, peer: &Peer, client: IpAddr) {
    let one = |name: &str| {
        let mut values = written.get_all(name).iter();
        let value = values.next().unwrap_or_else(|| panic!("no {name}")).as_bytes();
        assert!(values.next().is_none(), "more than one {name}");
        value
    };
    let lines: Vec<&[u8]> = came.get_all("x-forwarded-for").iter().map(HeaderValue::as_bytes).collect();
    let peer_text = peer.address.to_string();

    let mut chain = if peer.trusted { elements(&lines) } else { Vec::new() };
    chain.push(peer_text.as_bytes());
    assert_eq!(elements(&[one("x-forwarded-for")]), chain);

    let expected = if peer.trusted { client_of(&lines).unwrap_or(peer.address) } else { peer.address };
    assert_eq!(client, expected);
    assert_eq!(one("x-real-ip"), client.to_string().as_bytes());
    assert_eq!(one("x-forwarded-host"), HOST.as_bytes());

    let last = |name: &str| {
        let lines: Vec<&[u8]> = came.get_all(name).iter().map(HeaderValue::as_bytes).filter(|_| peer.trusted).collect();
        std::str::from_utf8(elements(&lines).last()?).ok().map(str::to_owned)
    };
    let proto = last("x-forwarded-proto").map(|text| text.to_ascii_lowercase());
    let proto = proto.filter(|text| ["http", "https", "ws", "wss"].contains(&text.as_str()));
    assert_eq!(one("x-forwarded-proto"), proto.as_deref().unwrap_or("http").as_bytes());
    let digits = |text: &String| !text.is_empty() && text.len() <= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = last("x-forwarded-port").filter(digits).filter(|text| text.parse::<u16>().is_ok());
    assert_eq!(one("x-forwarded-port"), port.as_deref().unwrap_or("8443").as_bytes());

    let id = one("x-request-id");
    assert!(
        (1..=128).contains(&id.len()) && id.iter().all(|byte| byte.is_ascii_graphic() && !b"\"\\<>".contains(byte))
    );
    let brought = came.get("x-request-id").map(HeaderValue::as_bytes);
    assert!(id == MADE.as_bytes() || (peer.trusted && Some(id) == brought));

    let proto = String::from_utf8_lossy(one("x-forwarded-proto")).into_owned();
    let node = if client.is_ipv6() { format!("\"[{client}]\"") } else { client.to_string() };
    assert_eq!(one("forwarded"), format!("for={node};host=\"{HOST}\";proto={proto}").as_bytes());

    assert_eq!(one("x-request-start"), b"t=1700000000000");
    let own = [&WRITTEN[..], &["forwarded"]].concat();
    for name in stripped.keys().filter(|name| !own.contains(&name.as_str())) {
        assert!(stripped.get_all(name).iter().eq(written.get_all(name)), "{name} was changed");
    }
    assert!(written.keys().all(|name| stripped.contains_key(name) || own.contains(&name.as_str())));
}

/// The right-most address that is not private, or the left-most one of those that can be vouched for.
fn client_of(lines: &[&[u8]]) -> Option<IpAddr> {
    let mut client = None;
    for element in elements(lines).into_iter().rev() {
        let Some(address) = node(element) else { break };
        client = Some(address);
        if !is_private(address) {
            break;
        }
    }
    client
}

/// The elements of a list, without those that are empty.
fn elements<'l>(lines: &[&'l [u8]]) -> Vec<&'l [u8]> {
    let elements = lines.iter().flat_map(|line| line.split(|byte| *byte == b','));
    elements.map(<[u8]>::trim_ascii).filter(|element| !element.is_empty()).collect()
}

/// An address, perhaps in brackets, perhaps with a port.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let is_port = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok();
    let address = if let Some(rest) = text.strip_prefix('[') {
        let (literal, rest) = rest.split_once(']')?;
        if !rest.is_empty() && !rest.strip_prefix(':').is_some_and(is_port) {
            return None;
        }
        // A zone means nothing here, but AWS's own document has none to say what to do with one.
        let literal = if rest.is_empty() {
            literal
        } else {
            literal.split_once('%').map_or(
                literal,
                |(front, zone)| {
                    if zone.parse::<u32>().is_ok() { front } else { literal }
                },
            )
        };
        IpAddr::V6(literal.parse().ok()?)
    } else {
        match text.split_once(':') {
            Some((front, digits)) if !digits.contains(':') => {
                if !is_port(digits) {
                    return None;
                }
                IpAddr::V4(front.parse().ok()?)
            }
            _ => text.parse().ok()?,
        }
    };
    Some(address.to_canonical())
}

/// RFC 1918, RFC 6598, loopback, link-local, unique local.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            matches!((a, b), (10 | 127, _) | (172, 16..=31) | (192, 168) | (169, 254) | (100, 64..=127))
        }
        IpAddr::V6(address) => {
            let first = address.segments()[0];
            address.is_loopback() || first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfe80
        }
    }
}

const PRIVATE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 7));
