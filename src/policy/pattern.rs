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
        if text.contains(['\'', '"', '`']) {
            return Err("the quotation marks are part of the name: leave them out".into());
        }
        if text.contains(';') {
            return Err("a comma or a space separates the hosts, not a semicolon".into());
        }
        if text.starts_with(['~', '^']) || text.contains(['$', '\\', '|', '(', '+']) {
            return Err("regular expressions aren't supported: .example.com is a domain with its subdomains".into());
        }
        if text.starts_with(['!', '-']) {
            return Err("a host can't be excluded: list the allowed ones".into());
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
            Some(rest) if rest.contains('*') && !rest.starts_with(':') => {
                return Err("one wildcard, at the front: *.example.com".into());
            }
            Some(rest) if rest.is_empty() || rest.starts_with([':', '.']) => (true, rest),
            Some(_) => return Err("a wildcard stands for whole labels: *.example.com".into()),
            None if text.contains('*') && !text.contains(':') => {
                return Err("a wildcard stands at the front: *.example.com".into());
            }
            None => (false, text),
        };
        if wildcard && !rest.starts_with('.') {
            let port = match rest.strip_prefix(':') {
                Some(port) => Some(parse_port(port).map_err(|why| why.to_string())?),
                None => None,
            };
            return Ok(Self { hosts: Hosts::Any, port });
        }
        if rest.ends_with(':') {
            return Err("there is no port after the colon: leave the colon out for any port".into());
        }
        let dotted = rest.strip_prefix('.');
        let authority = Authority::parse(dotted.unwrap_or(rest).as_bytes()).map_err(|why| why.to_string())?;
        let hosts = match authority.host {
            Host::Ip(address) if dotted.is_none() => Hosts::Address(address),
            Host::Ip(_) => return Err("an address has no subdomains; for a network write 10.0.0.0/16".into()),
            Host::Name(name) => {
                check_host_name(name)?;
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

/// Refuses names in the settings that no client can mean, and words that stand for something in other programs.
///
/// # Errors
///
/// Says what to write instead.
pub fn check_host_name(name: &str) -> Result<(), String> {
    let word = name.to_ascii_lowercase();
    if ANY_HOST.contains(&word.as_str()) || !word.bytes().any(|b| b.is_ascii_alphanumeric()) {
        return Err("this isn't a host; `*` in HOSTWARD_ALLOWED_HOSTS allows every host".into());
    }
    if NO_HOST.contains(&word.as_str()) {
        return Err("this isn't a host: name the hosts that clients ask for".into());
    }
    let last = word.rsplit('.').next().unwrap_or_default();
    // A URL whose host ends in a number has an IPv4 address for every browser, and this one isn't well-formed.
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return Err("an IPv4 address is four decimal numbers, a network is 10.0.0.0/16".into());
    }
    // RFC 1035 §2.3.4: "labels 63 octets or less".
    if word.split('.').any(|label| label.len() > 63 || label.starts_with('-') || label.ends_with('-')) {
        return Err("a name's labels have 1 to 63 characters, and no hyphen at their ends".into());
    }
    Ok(())
}

/// What stands for every host in nginx, Apache, Caddy or plain English.
const ANY_HOST: &[&str] = &[
    "_",
    "all",
    "any",
    "anything",
    "anywhere",
    "default",
    "default_server",
    "everyone",
    "everything",
    "on",
    "true",
    "wildcard",
    "yes",
];
/// What stands for no host, or was left by a template.
const NO_HOST: &[&str] = &["false", "nil", "no", "none", "nobody", "nothing", "null", "off", "undefined"];

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
            "example.com:",
            "[::1]:",
            "10.0.0.1:",
        ] {
            assert!(text.parse::<HostPattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_other_programs_take_is_refused_with_what_to_write_instead() {
        for (texts, says) in [
            (&["a.example;b.example", "a.example;", ";"][..], "comma"),
            (
                &["~www", "~^www\\..*$", "^www", "www\\.example\\.com", "(a|b).example", "a+.example", "$host"],
                "regular",
            ),
            (&["!x", "!www.example.com", "-www.example.com"], "excluded"),
            (&["\"a.example\"", "'a.example'", "`a`"], "quotation"),
            (&["https://a.example", "http://a.example/", "HTTP://a"], "URL"),
            (&["_", "__", "all", "ALL", "any", "default", "default_server", "_:80", "._", "*.all"], "isn't a host"),
            (&["none", "off", "null", "undefined", "None."], "isn't a host"),
            (&["*.*", "*.*.example.com", "**", "*.a*.example"], "wildcard"),
            (&["a.*", "www.*.example", "a*"], "wildcard"),
            (&["10.0.0.256", "10.0.0", "8080", "10.0.0.1-10.0.0.9", "1.2.3.4.5"], "four decimal"),
            (&["a..example", "..a"], "empty label"),
            (&["a-.example", "a.-b.example"], "hyphen"),
            (&["a.example:*", "a.example:http"], "port"),
            (&["a.example/path", "//a.example", "/"], "path"),
            (&["a@b", "user:x@b"], "user"),
            (&["[a.example]", "{a.example}", "<a.example>", "a.example%20", "a&b", "a=b", "host:a.example"], ""),
        ] {
            for text in texts {
                let error = text.parse::<HostPattern>().expect_err(text);
                assert!(error.contains(says), "{text:?}: {error}");
            }
        }
        let long = format!("{}.example", "a".repeat(64));
        assert!(long.parse::<HostPattern>().is_err() && long[1..].parse::<HostPattern>().is_ok());
    }

    #[test]
    fn names_of_one_label_are_hosts() {
        for text in
            ["localhost", "app", "my_app", "web-1", "_dmarc.example.com", "xn--bcher-kva.example", "3com.com", "0x7f"]
        {
            assert_eq!(text.parse::<HostPattern>().unwrap().hosts, Hosts::Exact(text.into()));
        }
        assert!(".localhost".parse::<HostPattern>().is_ok() && "*.internal:81".parse::<HostPattern>().is_ok());
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
