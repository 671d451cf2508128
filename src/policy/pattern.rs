//! One entry of the list of allowed hosts: its forms, parsed and printed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;

use crate::message::authority::{Authority, Host, parse_port};

/// One entry of `HOSTWARD_ALLOWED_HOSTS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    /// Which hosts.
    pub hosts: Hosts,
    /// Only with this port; any port, and none, when absent.
    pub port: Option<u16>,
}

/// The hosts that a [`HostPattern`] stands for. Names are lower-case, without the trailing dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// `www.example.com`
    Exact(String),
    /// `.example.com`: the domain and every subdomain.
    Domain(String),
    /// `*.example.com`: subdomains only.
    Subdomains(String),
    /// An IP address.
    Address(IpAddr),
    /// The host is an IP address inside a network.
    Network(IpNet),
    /// `*`
    Any,
}

impl HostPattern {
    /// The host that the app is told when it is asked for this entry: none for wildcards and networks.
    pub fn concrete(&self) -> Option<String> {
        let host = match &self.hosts {
            Hosts::Exact(name) | Hosts::Domain(name) => name.clone(),
            Hosts::Address(address) => return Some(write_address(*address, self.port)),
            Hosts::Subdomains(_) | Hosts::Network(_) | Hosts::Any => return None,
        };
        Some(match self.port {
            Some(port) => format!("{host}:{port}"),
            None => host,
        })
    }
}

fn write_address(address: IpAddr, port: Option<u16>) -> String {
    match (address, port) {
        (address, Some(port)) => SocketAddr::new(address, port).to_string(),
        (IpAddr::V6(address), None) => format!("[{address}]"),
        (IpAddr::V4(address), None) => address.to_string(),
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Bare IPv6 forms, which an authority would want in brackets.
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self { hosts: Hosts::Address(address), port: None });
        }
        if text.contains("://") {
            return Err("a host, not a URL: leave out the scheme and the path".into());
        }
        // RFC 3986 §3.2.2 has it in names, and nobody else does: whoever writes it quotes an item of the list.
        if text.contains('\'') {
            return Err("the quotation marks are part of the name: leave them out".into());
        }
        if let Some((address, rest)) = text.split_once('/') {
            let (prefix, port) = match rest.split_once(':') {
                Some((prefix, port)) => (prefix, Some(parse_port(port).map_err(|why| why.to_string())?)),
                None => (rest, None),
            };
            let address: IpAddr =
                address.parse().map_err(|_| "a host has no path, and a network starts with an IP address")?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let network = prefix
                .parse()
                .ok()
                .and_then(|prefix| IpNet::new(address, prefix).ok())
                .ok_or_else(|| format!("prefix length must be 0-{most}"))?;
            return Ok(Self { hosts: Hosts::Network(network), port });
        }
        let (wildcard, rest) = match text.strip_prefix('*') {
            Some(rest) if rest.is_empty() || rest.starts_with([':', '.']) => (true, rest),
            Some(_) => return Err("a wildcard stands for whole labels: *.example.com".into()),
            None => (false, text),
        };
        if wildcard && !rest.starts_with('.') {
            let port = match rest.strip_prefix(':') {
                Some(port) => Some(parse_port(port).map_err(|why| why.to_string())?),
                None => None,
            };
            return Ok(Self { hosts: Hosts::Any, port });
        }
        let dotted = rest.strip_prefix('.');
        let authority = Authority::parse(dotted.unwrap_or(rest).as_bytes()).map_err(|why| why.to_string())?;
        let hosts = match authority.host {
            Host::Ip(address) if dotted.is_none() => Hosts::Address(address),
            Host::Ip(_) => return Err("an address has no subdomains; for a network write 10.0.0.0/16".into()),
            Host::Name(name) if name.contains('*') => {
                return Err("a wildcard stands at the front: *.example.com".into());
            }
            Host::Name(name) => {
                let name = name.to_ascii_lowercase();
                match (wildcard, dotted) {
                    (true, _) => Hosts::Subdomains(name),
                    (false, Some(_)) => Hosts::Domain(name),
                    (false, None) => Hosts::Exact(name),
                }
            }
        };
        Ok(Self { hosts, port: authority.port })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.hosts, self.port) {
            (Hosts::Exact(name), _) => write!(f, "{name}")?,
            (Hosts::Domain(name), _) => write!(f, ".{name}")?,
            (Hosts::Subdomains(name), _) => write!(f, "*.{name}")?,
            (Hosts::Network(network), _) => write!(f, "{network}")?,
            (Hosts::Any, _) => write!(f, "*")?,
            (Hosts::Address(address), port) => return f.write_str(&write_address(*address, port)),
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_printed_again() {
        for (text, printed) in [
            ("www.example.com", "www.example.com"),
            ("WWW.Example.com.", "www.example.com"),
            ("example.com:8443", "example.com:8443"),
            (".example.com", ".example.com"),
            ("*.Example.com", "*.example.com"),
            ("*.example.com:81", "*.example.com:81"),
            ("10.0.2.100", "10.0.2.100"),
            ("10.0.2.100:80", "10.0.2.100:80"),
            ("10.0.2.100.", "10.0.2.100"),
            ("2001:DB8::1", "[2001:db8::1]"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
            ("10.0.0.0/16", "10.0.0.0/16"),
            ("10.0.0.0/16:8080", "10.0.0.0/16:8080"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("*", "*"),
            ("*:8080", "*:8080"),
        ] {
            let pattern: HostPattern = text.parse().unwrap();
            assert_eq!(pattern.to_string(), printed);
            assert_eq!(printed.parse::<HostPattern>().unwrap(), pattern);
        }
    }

    #[test]
    fn what_is_no_entry_is_refused() {
        for text in [
            "",
            "http://example.com",
            "example.com/",
            "exa mple",
            "*example.com",
            "www.*.com",
            "*.10.0.0.1",
            ".10.0.0.1",
            "10.0.0.0/33",
            "2001:db8::/129",
            "10.0.0.0/16:x",
            "*:x",
            "*:+80",
            "*:",
            "example.com:99999",
            "a,b",
            "user@host",
            "[::1",
            "'example.com'",
            ".'example.com'",
            "'example.com':80",
        ] {
            assert!(text.parse::<HostPattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_concrete_host_is_one_that_an_app_can_be_told() {
        for (text, concrete) in [
            ("example.com:8443", Some("example.com:8443")),
            (".example.com", Some("example.com")),
            ("::1", Some("[::1]")),
            ("10.0.0.1:80", Some("10.0.0.1:80")),
            ("*.example.com", None),
            ("10.0.0.0/8", None),
            ("*", None),
        ] {
            assert_eq!(text.parse::<HostPattern>().unwrap().concrete().as_deref(), concrete, "{text}");
        }
    }
}
