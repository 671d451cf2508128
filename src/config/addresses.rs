//! Addresses, networks, hosts and the upstream: text becomes a checked value, or a [`Fault`].
//!
//! Nothing is resolved here. A name may still lead to an address that [`is_metadata_address`] forbids: whoever
//! connects must ask again.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderValue;
use http::uri::PathAndQuery;
use ipnet::IpNet;

use super::values::Fault;
use super::{Endpoint, Protocol, Upstream};
use crate::message::authority::{Authority, Host};
use crate::policy::check_host_name;

/// Whether a task's metadata and credentials live there (169.254.0.0/16, `fd00:ec2::/32`), so that no app may.
pub fn is_metadata_address(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.segments()[..2] == [0xfd00, 0x0ec2],
    }
}

/// `10.0.0.0/16` or `10.0.0.7`.
pub(super) fn network(text: &str) -> Result<IpNet, Fault> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| Fault::new("expected an IP address or a CIDR"))?;
    let Some(prefix) = prefix else { return Ok(IpNet::from(address)) };
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = Some(prefix).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit())).and_then(|d| d.parse().ok());
    length.and_then(|length| IpNet::new(address, length).ok()).ok_or_else(|| {
        Fault::with(format!("prefix length must be 0-{most}"), format!("Example: {}.", example(address)))
    })
}

fn example(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "10.0.0.0/16" } else { "2001:db8::/56" }
}

/// `10.0.2.100`
pub(super) fn ip(text: &str) -> Result<IpAddr, Fault> {
    let address: IpAddr = text.parse().map_err(|_| Fault::new("expected an IP address"))?;
    if address.is_unspecified() {
        return Err(Fault::new("that is every address, not one"));
    }
    Ok(address.to_canonical())
}

/// `127.0.0.1:8080`, `[::]:8080` or `:8080`.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, Fault> {
    if let Some(port) = text.strip_prefix(':').and_then(|digits| port(digits).ok()) {
        return Ok(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    }
    if let Ok(port) = port(text) {
        return Err(Fault::with("expected address:port", format!("Write :{port} or 127.0.0.1:{port}.")));
    }
    // A zone (`%1`) parses, but is for link-local addresses, which neither a load balancer nor an app is on.
    match text.parse() {
        Ok(address) if !text.contains('%') => Ok(address),
        _ => Err(Fault::new("expected an IP address and a port")),
    }
}

fn port(digits: &str) -> Result<u16, ()> {
    if digits.is_empty() || digits.len() > 5 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(());
    }
    digits.parse().map_err(|_| ())
}

/// A host that a `Host` field can carry.
pub(super) fn host(text: &str) -> Result<HeaderValue, Fault> {
    if text.contains("://") {
        return Err(Fault::new("a host, not a URL: leave out the scheme and the path"));
    }
    if text.contains('*') || text.starts_with('.') {
        return Err(Fault::new("one host, not a pattern: it is what the app sees"));
    }
    if text.ends_with(':') {
        return Err(Fault::new("there is no port after the colon: leave the colon out"));
    }
    let authority = Authority::parse(text.as_bytes()).map_err(|why| Fault::new(why.to_string()))?;
    if let Host::Name(name) = authority.host {
        check_host_name(name).map_err(Fault::new)?;
    }
    HeaderValue::from_str(text).map_err(|_| Fault::new("a character that a host can't have"))
}

/// `/healthz`
pub(super) fn path(text: &str) -> Result<PathAndQuery, Fault> {
    let visible = text.bytes().all(|b| b.is_ascii_graphic());
    if !text.starts_with('/') || text.contains('#') || !visible {
        return Err(Fault::new("expected a path that begins with a slash, without a fragment or white space"));
    }
    text.parse().map_err(|_| Fault::new("expected a path"))
}

/// `http://host:port`, `http+unix:/path` or `http+unix:@name`; `h2c` instead of `http` for HTTP/2.
pub(super) fn upstream(text: &str) -> Result<Upstream, Fault> {
    if let Some((scheme, path)) = text.split_once("+unix:") {
        let protocol = protocol(scheme, "+unix:")?;
        return Ok(Upstream { protocol, endpoint: unix(path)? });
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(Fault::with("the scheme is missing", format!("Write http://{}.", super::mistake::show(text))));
    };
    let protocol = protocol(scheme, "://")?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err(Fault::new("a path can't be put in front of the client's: only http://host:port"));
    }
    let authority = Authority::parse(authority.as_bytes()).map_err(|why| Fault::new(why.to_string()))?;
    let port = match authority.port {
        Some(0) => return Err(Fault::new("nothing can listen on port 0")),
        Some(port) => port,
        None => return Err(Fault::new("the port is missing")),
    };
    let host = match authority.host {
        Host::Ip(address) if is_metadata_address(address) => {
            return Err(Fault::new("no app is there: the task's metadata and credentials are"));
        }
        Host::Ip(address) => address.to_string(),
        Host::Name(name) => resolvable(name)?.to_ascii_lowercase(),
    };
    Ok(Upstream { protocol, endpoint: Endpoint::Tcp { host, port } })
}

fn protocol(scheme: &str, separator: &str) -> Result<Protocol, Fault> {
    let lower = scheme.to_ascii_lowercase();
    if let Some(protocol) = PROTOCOLS.into_iter().find(|protocol| protocol.scheme() == lower) {
        return Ok(protocol);
    }
    let scheme: String = super::mistake::show(scheme).chars().take(20).collect();
    Err(Fault::new(match lower.as_str() {
        "https" => "TLS to the app isn't spoken: it is in the same task, behind localhost".into(),
        _ => format!("hostward doesn't speak \"{scheme}{separator}\" to the app, only {}", spoken()),
    }))
}

fn spoken() -> String {
    PROTOCOLS.map(|protocol| format!("{0}:// and {0}+unix:", protocol.scheme())).join(", ")
}

const PROTOCOLS: [Protocol; 3] = [Protocol::Http, Protocol::H2c, Protocol::Uwsgi];

/// `/path`, `///path` as URLs have it, or `@name` in the abstract namespace.
fn unix(path: &str) -> Result<Endpoint, Fault> {
    let path = match path.strip_prefix("//") {
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    };
    let path = match path.strip_prefix('@') {
        Some(name) if !name.is_empty() => format!("\0{name}"),
        None if path.len() > 1 && path.starts_with('/') && !path.ends_with('/') => path.into(),
        _ => return Err(Fault::new("expected an absolute path, or @ and a name in the abstract namespace")),
    };
    // sockaddr_un has 108 bytes for it, and a path ends with a NUL.
    if path.len() > 107 {
        return Err(Fault::new("a socket's path has at most 107 bytes"));
    }
    Ok(Endpoint::Unix(path.into()))
}

/// A name that the resolver takes for a name. The C library reads `0xa9fea9fe`, `2852039166` and `169.254.43518`
/// as 169.254.169.254: what ends in a number is either four decimal ones or a trick.
fn resolvable(name: &str) -> Result<&str, Fault> {
    let last = name.rsplit('.').next().unwrap_or(name);
    if last.starts_with(|c: char| c.is_ascii_digit())
        && last.bytes().all(|b| b.is_ascii_hexdigit() || b == b'x' || b == b'X')
    {
        return Err(Fault::new("an IPv4 address is four decimal numbers, without zeros in front"));
    }
    Ok(name)
}

/// Whether what connects to `upstream` arrives at `listen`: a loop.
pub(super) fn leads_to(upstream: &Upstream, listen: SocketAddr) -> bool {
    let Endpoint::Tcp { host, port } = &upstream.endpoint else { return false };
    let address = match host.parse::<IpAddr>() {
        Ok(address) => Some(address.to_canonical()),
        Err(_) if host == "localhost" || host.ends_with(".localhost") => None,
        Err(_) => return false,
    };
    let ours = listen.ip().to_canonical();
    listen.port() == *port
        && match address {
            // Connecting to the unspecified address is connecting to loopback.
            Some(address) if address.is_loopback() || address.is_unspecified() => {
                ours.is_unspecified() || ours == address || (address.is_unspecified() && ours.is_loopback())
            }
            Some(address) => ours == address,
            None => ours.is_unspecified() || ours.is_loopback(),
        }
}

/// Whether two sockets can't listen on both. `[::]` takes IPv4 as well.
pub(super) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port() && one.port() != 0 && (a == b || a.is_unspecified() || b.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_cidrs_or_addresses() {
        for (text, expected) in [
            ("10.0.0.0/16", "10.0.0.0/16"),
            ("10.0.0.7", "10.0.0.7/32"),
            ("2001:db8::/56", "2001:db8::/56"),
            ("::1", "::1/128"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(network(text), Ok(expected.parse().unwrap()), "{text}");
        }
        for text in ["", "/", "10.0.0.0/", "10.0.0/8", "10.0.0.0/+8", "10.0.0.0/8/8", "x/8", "[::1]/128", "10.0.0.0/8x"]
        {
            assert!(network(text).is_err(), "{text}");
        }
        assert_eq!(network("10.0.0.0/33"), Err(Fault::with("prefix length must be 0-32", "Example: 10.0.0.0/16.")));
        assert_eq!(network("::/129").unwrap_err().error, "prefix length must be 0-128");
        assert!(network("::/256").is_err());
    }

    #[test]
    fn addresses_to_listen_on() {
        for (text, expected) in
            [(":8080", "[::]:8080"), ("[::]:8080", "[::]:8080"), ("127.0.0.1:0", "127.0.0.1:0"), (":0", "[::]:0")]
        {
            assert_eq!(socket_address(text), Ok(address(expected)), "{text}");
        }
        for text in [
            "",
            ":",
            "127.0.0.1",
            "localhost:8080",
            ":65536",
            "::1:8080x",
            "[fe80::1%1]:80",
            ":+80",
            "1.2.3.4:-1",
            "http://:80",
        ] {
            assert!(socket_address(text).is_err(), "{text}");
        }
        assert_eq!(socket_address("8080"), Err(Fault::with("expected address:port", "Write :8080 or 127.0.0.1:8080.")));
    }

    #[test]
    fn the_upstream_is_a_scheme_a_host_and_a_port() {
        for (text, host, port) in [
            ("http://127.0.0.1:8000", "127.0.0.1", 8000),
            ("HTTP://App:80/", "app", 80),
            ("http://[::1]:3000", "::1", 3000),
            ("http://my_app.local:1", "my_app.local", 1),
            ("http://app2:80", "app2", 80),
            ("http://my-app:8000", "my-app", 8000),
            ("http://app.localhost:8080", "app.localhost", 8080),
            ("http://0.0.0.0:8000", "0.0.0.0", 8000),
        ] {
            let endpoint = Endpoint::Tcp { host: host.into(), port };
            assert_eq!(upstream(text), Ok(Upstream { protocol: Protocol::Http, endpoint }), "{text}");
        }
        let endpoint = Endpoint::Tcp { host: "app".into(), port: 50051 };
        assert_eq!(upstream("h2c://app:50051"), Ok(Upstream { protocol: Protocol::H2c, endpoint }));
        assert_eq!(upstream("h2c+unix:/run/app.sock").unwrap().to_string(), "h2c+unix:/run/app.sock");
        for text in [
            "",
            "127.0.0.1:8000",
            "https://a:1",
            "h2://a:1",
            "uwsgi://a",
            "uwsgis://a:1",
            "http+unix:",
            "http+unix:x",
            "http+unix:run/app.sock",
            "http+unix:./app.sock",
            "http+unix:/",
            "http+unix:/x/",
            "http+unix:@",
            "https+unix:/x",
            "uwsgi+unix:",
            "http://",
            "http://a",
            "http://:80",
            "http://a:0",
            "http://a:",
            "http://[::1]:",
            "http://*:1",
            "http://a'b:1",
            "http://a;b:1",
            "http://~a:1",
            "http://a:65536",
            "http://a:1/x",
            "http://a:1?x",
            "http://a:1//",
            "http://u:p@a:1",
            "http://a b:1",
            "http://a%20:1",
            "http://a:1#x",
            "http://[fe80::1%25eth0]:1",
            "http://a,b:1",
        ] {
            assert!(upstream(text).is_err(), "{text}");
        }
        assert_eq!(upstream("127.0.0.1:8000").unwrap_err().hint.unwrap(), "Write http://127.0.0.1:8000.");
        assert!(upstream("fcgi://a:1").unwrap_err().error.contains("\"fcgi://\""));
        let endpoint = Endpoint::Tcp { host: "127.0.0.1".into(), port: 3031 };
        assert_eq!(upstream("uwsgi://127.0.0.1:3031"), Ok(Upstream { protocol: Protocol::Uwsgi, endpoint }));
    }

    #[test]
    fn the_upstream_may_be_a_path_or_an_abstract_name() {
        for (text, path, shown) in [
            ("http+unix:/run/app.sock", "/run/app.sock", "http+unix:/run/app.sock"),
            ("HTTP+unix:///run/app.sock", "/run/app.sock", "http+unix:/run/app.sock"),
            ("http+unix:@app", "\0app", "http+unix:@app"),
            ("uwsgi+unix:/run/app.sock", "/run/app.sock", "uwsgi+unix:/run/app.sock"),
        ] {
            let upstream = upstream(text).unwrap();
            assert_eq!(upstream.endpoint, Endpoint::Unix(path.into()), "{text}");
            assert_eq!(upstream.to_string(), shown);
        }
        assert!(upstream(&format!("http+unix:/{}", "a".repeat(106))).is_ok());
        assert!(upstream(&format!("http+unix:/{}", "a".repeat(107))).is_err());
    }

    #[test]
    fn the_upstream_is_never_where_the_credentials_are() {
        for host in [
            "169.254.170.2",
            "169.254.169.254",
            "[::ffff:169.254.170.2]",
            "[fd00:ec2::254]",
            "[fd00:0ec2:1::1]",
            "169.254.169.254.",
            "0xa9fea9fe",
            "2852039166",
            "169.254.43518",
            "0251.0376.0251.0376",
            "169.0xfea9fe",
            "0XA9FEA9FE",
            "169.0XFEA9FE",
        ] {
            assert!(upstream(&format!("http://{host}:80")).is_err(), "{host}");
        }
        assert!(upstream("http://[fd00:ec3::1]:80").is_ok());
        assert!(upstream("http://169.253.0.1:80").is_ok());
    }

    #[test]
    fn a_loop_is_noticed() {
        for (to, listen, expected) in [
            ("127.0.0.1:8080", "[::]:8080", true),
            ("[::1]:8080", "[::]:8080", true),
            ("localhost:8080", "127.0.0.1:8080", true),
            ("app.localhost:8080", "[::]:8080", true),
            ("app.localhost:8080", "[::]:18123", false),
            ("app.localhost:8080", "10.0.0.1:8080", false),
            ("localhost.example:8080", "[::]:8080", false),
            ("0.0.0.0:8080", "127.0.0.1:8080", true),
            ("127.0.0.1:8080", "0.0.0.0:8080", true),
            ("10.0.0.1:80", "10.0.0.1:80", true),
            ("127.0.0.1:8000", "[::]:8080", false),
            ("127.0.0.2:8080", "127.0.0.1:8080", false),
            ("app:8080", "[::]:8080", false),
            ("10.0.0.1:8080", "127.0.0.1:8080", false),
        ] {
            let upstream = upstream(&format!("http://{to}")).unwrap();
            assert_eq!(leads_to(&upstream, address(listen)), expected, "{to} {listen}");
        }
    }

    #[test]
    fn two_sockets_on_one_address_are_noticed() {
        for (one, other, expected) in [
            ("[::]:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("[::]:80", "[::]:81", false),
        ] {
            assert_eq!(overlap(address(one), address(other)), expected, "{one} {other}");
        }
    }

    #[test]
    fn hosts_and_paths() {
        for text in ["www.example.com", "www.example.com:8443", "[::1]:80", "10.0.0.1"] {
            assert_eq!(host(text).unwrap(), text);
        }
        for text in [
            "https://a",
            "*.a",
            ".a",
            "a b",
            "a@b",
            "h\u{f6}st",
            "",
            "a:x",
            "a:",
            "[::1]:",
            "a'b",
            "a;b",
            "~a",
            "!a",
            "_",
            "none",
            "10.0.0.256",
        ] {
            assert!(host(text).is_err(), "{text}");
        }
        for text in ["/", "/healthz?deep=1", "/a%20b"] {
            assert_eq!(path(text).unwrap(), text);
        }
        for text in ["healthz", "http://a/", "/a b", "/a#b", "/\u{f6}", "*", "/\r\n"] {
            assert!(path(text).is_err(), "{text:?}");
        }
        assert!(ip("0.0.0.0").is_err() && ip("::").is_err() && ip("localhost").is_err());
        assert_eq!(ip("::ffff:10.0.0.1"), Ok("10.0.0.1".parse().unwrap()));
    }
}
