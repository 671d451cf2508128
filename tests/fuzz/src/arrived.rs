//! What may arrive at an app, by the README: the target `forward` runs hostward with these settings, and judges here
//! what its app got.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::http1::Request;
use crate::proxy::Setup;
use crate::uwsgi::Packet;

const ALLOWED: &str = "www.example.com, .example.org, *.example.net:8443, 10.9.0.0/16, [2001:db8::1]:80, 192.0.2.7";
const PRIVATE_PEER: &str = "10.0.1.7";
const PUBLIC_PEER: &str = "203.0.113.9";
/// The address that clients connect to.
pub const OWN: &str = "10.0.2.100";

/// The settings that an input's first byte stands for, a bit each.
#[derive(Clone, Copy)]
pub struct Mode {
    pub uwsgi: bool,
    pub streaming: bool,
    pub report: bool,
    pub public_peer: bool,
    pub canonical: bool,
    pub forwarded: bool,
}

impl Mode {
    pub fn of(byte: u8) -> Self {
        let bit = |at: u8| byte >> at & 1 == 1;
        Self {
            uwsgi: bit(0),
            streaming: bit(1),
            report: bit(2),
            public_peer: bit(3),
            canonical: bit(4),
            forwarded: bit(5),
        }
    }

    pub fn setup(self) -> Setup {
        let switch = |on: bool, yes, no| if on { yes } else { no };
        let settings = [
            ("HOSTWARD_ALLOWED_HOSTS", ALLOWED),
            ("HOSTWARD_UPSTREAM", switch(self.uwsgi, "uwsgi+unix:@app", "http+unix:@app")),
            ("HOSTWARD_BUFFER_REQUESTS", switch(self.streaming, "off", "auto")),
            ("HOSTWARD_BUFFER_MEMORY", "1KiB"),
            ("HOSTWARD_HOST_POLICY", switch(self.report, "report", "enforce")),
            ("HOSTWARD_HOST_REWRITE", switch(self.canonical, "canonical", "preserve")),
            ("HOSTWARD_FORWARDED", switch(self.forwarded, "on", "off")),
            ("HOSTWARD_UPSTREAM_IDLE_TIMEOUT", "1h"),
        ];
        Setup::new(&settings, &format!("{}:40000", self.peer()))
    }

    pub fn peer(self) -> &'static str {
        if self.public_peer { PUBLIC_PEER } else { PRIVATE_PEER }
    }
}

/// The README's list of allowed hosts, read by hand.
pub fn is_admitted(host: &[u8]) -> bool {
    let Some((name, port)) = split_port(host) else { return false };
    if let Some(literal) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let Ok(address) = literal.parse::<Ipv6Addr>() else { return false };
        return match address.to_ipv4_mapped() {
            Some(mapped) => mapped.octets()[..2] == [10, 9],
            None => address.segments() == [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1] && port == Some(80),
        };
    }
    let name = name.strip_suffix('.').unwrap_or(&name);
    if let Ok(address) = name.parse::<Ipv4Addr>() {
        return address.octets()[..2] == [10, 9] || address.octets() == [192, 0, 2, 7];
    }
    // Of labels that are not empty: `.example.org` is no subdomain of itself.
    if name.split('.').any(str::is_empty) {
        return false;
    }
    name == "www.example.com"
        || name == "example.org"
        || name.ends_with(".example.org")
        || (name.ends_with(".example.net") && port == Some(8443))
}

/// A host in lower case, and its port. `None` for what is no authority.
fn split_port(host: &[u8]) -> Option<(String, Option<u16>)> {
    let text = std::str::from_utf8(host).ok()?.to_ascii_lowercase();
    let good = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if text.is_empty() || !text.chars().all(good) {
        return None;
    }
    let behind = text.rfind(']').map_or(0, |at| at + 1);
    let Some(colon) = text[behind..].find(':') else { return Some((text, None)) };
    let (name, digits) = (&text[..behind + colon], &text[behind + colon + 1..]);
    if digits.is_empty() {
        return Some((name.to_owned(), None));
    }
    if digits.len() > 5 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((name.to_owned(), Some(digits.parse().ok()?)))
}

fn check_host(host: &[u8], mode: Mode) {
    if mode.report {
        assert!(host.is_empty() || split_port(host).is_some(), "no host: {}", host.escape_ascii());
    } else {
        assert!(is_admitted(host), "a host that is not allowed: {}", host.escape_ascii());
    }
    if mode.canonical && !mode.report {
        assert_eq!(host, b"www.example.com");
    }
}

/// Nothing is said about a host that the client has not named, which only the policy `report` lets pass. Where the app
/// gets the canonical host, it is the client's.
fn check_forwarded_host(said: &[&[u8]], host: &[u8], mode: Mode) {
    if mode.canonical && !mode.report {
        assert!(matches!(said, [public] if is_admitted(public)), "X-Forwarded-Host: {said:?}");
    } else {
        assert_eq!(said, (!host.is_empty()).then_some(host).as_slice(), "X-Forwarded-Host");
    }
}

fn check_target(method: &[u8], target: &[u8]) {
    assert!(
        target.starts_with(b"/") || (target == b"*" && method == b"OPTIONS"),
        "the target {}",
        target.escape_ascii()
    );
    assert!(!matches!(method, b"CONNECT" | b"TRACE"));
}

/// What README says is removed from everybody.
const NEVER: [&str; 27] = [
    "forwarded",
    "proxy",
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
    "x-forwarded-prefix",
    "x-http-host-override",
    "x-original-uri",
    "x-script-name",
    "x-url-scheme",
    "x-sendfile-type",
    "x-accel-mapping",
    "x-queue-start",
    "keep-alive",
    "proxy-connection",
    "http2-settings",
    "expect",
    "transfer-encoding",
    "upgrade",
    "te",
];
/// What is believed of a load balancer alone.
const LOAD_BALANCER: [&str; 3] = ["x-amzn-oidc-", "x-amzn-mtls-", "x-amzn-tls-"];

fn check_name(name: &str, mode: Mode) {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    assert!(plain, "a name that WSGI or PHP takes for another one: {name}");
    if mode.public_peer {
        assert!(!LOAD_BALANCER.iter().any(|prefix| name.starts_with(prefix)), "{name}");
    }
}

/// Asserts that a request may have arrived at an app.
pub fn check_http(request: &Request, mode: Mode) {
    let one = |name: &str| match request.all(name)[..] {
        [value] => value,
        ref all => panic!("{} lines of {name}", all.len()),
    };
    assert_eq!(request.minor, 1, "the app gets HTTP/1.1");
    let host = one("host");
    check_host(host, mode);
    check_target(&request.method, &request.target);
    check_forwarded_host(&request.all("x-forwarded-host"), host, mode);
    check_origin(&|name| one(name).to_vec(), mode);
    for (name, _) in &request.fields {
        let name = std::str::from_utf8(name).expect("a token is ASCII");
        check_name(name, mode);
        match name {
            "forwarded" => assert!(mode.forwarded, "a Forwarded that hostward has not written"),
            "transfer-encoding" => assert!(mode.streaming, "chunks that hostward has not counted"),
            "te" => assert_eq!(one("te"), b"trailers"),
            "upgrade" => assert_eq!(one("upgrade").to_ascii_lowercase(), b"websocket"),
            "connection" => {
                let options = one("connection").to_ascii_lowercase();
                assert!(options == b"te" || options == b"upgrade", "Connection: {}", options.escape_ascii());
                assert_eq!(request.all(&String::from_utf8_lossy(&options)).len(), 1);
            }
            _ => assert!(!NEVER.contains(&name), "{name} reached the app"),
        }
    }
    if mode.forwarded {
        let value = one("forwarded");
        assert!(value.starts_with(b"for="), "{}", value.escape_ascii());
    }
    for (name, _) in &request.trailers {
        let name = std::str::from_utf8(name).expect("a token is ASCII");
        assert!(mode.streaming, "a trailer {name} behind a body with a length");
        check_name(name, mode);
        let head_only = [
            "host",
            "content-length",
            "authorization",
            "cookie",
            "connection",
            "x-real-ip",
            "x-request-id",
            "x-request-start",
        ];
        assert!(!NEVER.contains(&name) && !head_only.contains(&name), "{name} in a trailer");
        assert!(!name.starts_with("x-forwarded-"), "{name} in a trailer");
    }
}

/// What hostward says about the client.
fn check_origin(one: &dyn Fn(&str) -> Vec<u8>, mode: Mode) {
    let text = |name: &str| String::from_utf8_lossy(&one(name)).into_owned();
    let chain = text("x-forwarded-for");
    assert_eq!(chain.rsplit(", ").next(), Some(mode.peer()), "X-Forwarded-For: {chain}");
    let client = text("x-real-ip").parse::<IpAddr>().expect("X-Real-IP is an address");
    if mode.public_peer {
        assert_eq!((chain.as_str(), client.to_string().as_str()), (PUBLIC_PEER, PUBLIC_PEER));
        assert_ne!(one("x-forwarded-port"), b"8080", "hostward's own port");
    }
    assert!(["http", "https"].contains(&text("x-forwarded-proto").as_str()));
    assert!(text("x-forwarded-port").parse::<u16>().is_ok(), "X-Forwarded-Port: {}", text("x-forwarded-port"));
    let start = text("x-request-start");
    assert!(
        start.strip_prefix("t=").is_some_and(|millis| millis.len() == 13 && millis.parse::<u64>().is_ok()),
        "{start}"
    );
    let id = text("x-request-id");
    assert!((1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()), "{id}");
}

/// The variables that hostward makes; every other one is a field's.
const VARIABLES: [&str; 13] = [
    "REQUEST_METHOD",
    "REQUEST_URI",
    "PATH_INFO",
    "QUERY_STRING",
    "CONTENT_TYPE",
    "CONTENT_LENGTH",
    "SERVER_PROTOCOL",
    "REQUEST_SCHEME",
    "HTTPS",
    "REMOTE_ADDR",
    "REMOTE_PORT",
    "SERVER_NAME",
    "SERVER_PORT",
];

/// Likewise, at one that speaks uwsgi.
pub fn check_uwsgi(packet: &Packet, mode: Mode) {
    let one = |name: &str| packet.value(name).unwrap_or_else(|| panic!("no {name}"));
    let of_field = |name: &str| one(&format!("HTTP_{}", name.to_ascii_uppercase().replace('-', "_"))).to_vec();
    let host = one("HTTP_HOST");
    check_host(host, mode);
    check_target(one("REQUEST_METHOD"), one("REQUEST_URI"));
    check_forwarded_host(packet.value("HTTP_X_FORWARDED_HOST").as_slice(), host, mode);
    check_origin(&of_field, mode);
    assert_eq!(one("REMOTE_ADDR"), of_field("x-real-ip"));
    assert_eq!(one("SERVER_PORT"), of_field("x-forwarded-port"));
    assert_eq!(one("REQUEST_SCHEME"), of_field("x-forwarded-proto"));
    assert_eq!(packet.value("HTTPS").is_some(), one("REQUEST_SCHEME") == b"https");
    assert_eq!(one("SERVER_PROTOCOL"), b"HTTP/1.1");

    // PEP 3333: the path is the target's, decoded once, and the query is what is behind the question mark.
    let uri = one("REQUEST_URI");
    let end = uri.iter().position(|byte| *byte == b'?').unwrap_or(uri.len());
    assert_eq!(one("PATH_INFO"), decode(&uri[..end]));
    assert_eq!(one("QUERY_STRING"), uri.get(end + 1..).unwrap_or_default());
    assert!(!one("PATH_INFO").contains(&0), "a NUL, which ends a text in C");

    for (name, _) in &packet.variables {
        let name = std::str::from_utf8(name).expect("a token is ASCII");
        assert!(packet.value(name).is_some());
        if let Some(field) = name.strip_prefix("HTTP_") {
            let field = field.to_ascii_lowercase().replace('_', "-");
            let own = ["content-type", "content-length", "connection", "transfer-encoding", "te", "upgrade"];
            let never = NEVER.contains(&field.as_str()) || own.contains(&field.as_str());
            assert!(!never || (field == "forwarded" && mode.forwarded), "{name} reached the app");
            if mode.public_peer {
                assert!(!LOAD_BALANCER.iter().any(|prefix| field.starts_with(prefix)), "{name}");
            }
        } else {
            assert!(VARIABLES.contains(&name), "a variable that a client has named: {name}");
        }
    }
}

/// Percent-decoding, where every escape is whole.
fn decode(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut bytes = path.iter();
    while let Some(byte) = bytes.next() {
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|byte| char::from(*byte).to_digit(16)).expect("an escape is whole");
        decoded.push(u8::try_from(digit() * 16 + digit()).expect("two digits"));
    }
    decoded
}
