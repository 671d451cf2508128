//! What is taken for an authority is one to every reader, and the policy reads it as a person does.

#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hostward::message::authority::{Authority, Host};
use hostward::policy::{Facts, HostPattern, HostPolicy, HostRewrite, OwnAddresses, Policy, ProbeHosts, Rules, Verdict};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let parsed = Authority::parse(input);
    if django_takes(input) && !beyond_django(input) {
        assert!(parsed.is_ok(), "Django takes it, hostward does not: {parsed:?}");
    }
    if let Ok(authority) = parsed {
        check(input, &authority);
    }
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(pattern) = text.parse::<HostPattern>()
    {
        check_pattern(&pattern);
    }
});

fn check(input: &[u8], authority: &Authority<'_>) {
    assert_eq!(authority.text.as_bytes(), input, "what is forwarded is what was sent");
    assert!(input.len() <= 261 && input.iter().all(u8::is_ascii_graphic));
    assert!(input.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:[]".contains(byte)));
    let (name, port) = split(authority.text);
    // An empty port is none.
    let port = port.filter(|digits| !digits.is_empty());
    assert_eq!(port.map(|digits| digits.parse::<u32>().expect("a number")), authority.port.map(u32::from));
    match authority.host {
        Host::Ip(address) => {
            assert_eq!(name.starts_with('['), address.is_ipv6());
            match address {
                // Leading zeros are octal to some.
                IpAddr::V4(address) => assert_eq!(name.strip_suffix('.').unwrap_or(name), address.to_string()),
                IpAddr::V6(_) => assert_eq!(name[1..name.len() - 1].parse(), Ok(address)),
            }
        }
        Host::Name(host) => {
            assert_eq!(host, name.strip_suffix('.').unwrap_or(name));
            assert!(!host.contains([':', '[', ']']) && host.split('.').all(|label| !label.is_empty()), "{host}");
            assert!(!is_address(host.as_bytes()), "an address that passes for a name");
            // An allowed host is allowed however it is written, and nothing else is.
            if let Ok(pattern) = host.parse::<HostPattern>() {
                for text in [host.to_owned(), host.to_ascii_uppercase(), format!("{host}."), format!("{host}:0")] {
                    // A name of 255 bytes has no room for a dot.
                    let Ok(other) = Authority::parse(text.as_bytes()) else { continue };
                    assert!(is_allowed(&pattern, &other), "{pattern} doesn't allow {text}");
                }
                let sub = format!("a{host}");
                if let Ok(other) = Authority::parse(sub.as_bytes()) {
                    assert!(!is_allowed(&pattern, &other), "{pattern} allows {sub}");
                }
            }
        }
    }
    let alone: HostPattern = "www.example.com".parse().expect("a host");
    let expected = ["www.example.com", "www.example.com."].iter().any(|host| name.eq_ignore_ascii_case(host));
    assert_eq!(is_allowed(&alone, authority), expected);
    let below: HostPattern = ".example.com:8443".parse().expect("a domain");
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let expected = name == "example.com" || name.ends_with(".example.com");
    assert_eq!(is_allowed(&below, authority), expected && authority.port == Some(8443));
}

/// An entry of the list is printed as it can be read again, and allows the host that it stands for.
fn check_pattern(pattern: &HostPattern) {
    let printed = pattern.to_string();
    assert_eq!(printed.parse::<HostPattern>().as_ref(), Ok(pattern), "{printed}");
    if let Some(host) = pattern.concrete() {
        let authority = Authority::parse(host.as_bytes());
        // A name of 255 bytes can have a port of six.
        let authority = authority.unwrap_or_else(|why| panic!("{printed} stands for {host}: {why}"));
        assert!(is_allowed(pattern, &authority), "{printed} doesn't allow {host}");
    }
}

fn is_allowed(pattern: &HostPattern, authority: &Authority<'_>) -> bool {
    let rules = Rules {
        allowed: vec![pattern.clone()],
        canonical: None,
        rewrite: HostRewrite::Preserve,
        mode: HostPolicy::Enforce,
        probes: ProbeHosts::default(),
        trusted: Vec::new(),
    };
    let own = OwnAddresses { interfaces: Vec::new(), discovered: std::sync::OnceLock::new() };
    let nobody = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
    let facts = Facts { authority: Some(authority), peer: nobody, direct: true, local: nobody, forwarded: false };
    match Policy::new(&rules, Arc::new(own)).judge(&facts) {
        Verdict::Allowed(_) => true,
        Verdict::Refused(_) => false,
        other => panic!("neither allowed nor refused: {other:?}"),
    }
}

fn split(text: &str) -> (&str, Option<&str>) {
    let behind = text.find(']').map_or(0, |at| at + 1);
    match text[behind..].find(':') {
        Some(colon) => (&text[..behind + colon], Some(&text[behind + colon + 1..])),
        None => (text, None),
    }
}

/// `django.http.request.host_validation_re`, by hand:
/// `^([a-z0-9.-]+|\[[a-f0-9]*:[a-f0-9.:]+\])(:[0-9]+)?$`, of the host in lower case.
fn django_takes(input: &[u8]) -> bool {
    let input = input.to_ascii_lowercase();
    let (host, port) = match input.iter().rposition(|byte| *byte == b':') {
        Some(colon) if !input[colon..].contains(&b']') => (&input[..colon], Some(&input[colon + 1..])),
        _ => (&input[..], None),
    };
    let hex = |byte: &u8| matches!(byte, b'a'..=b'f' | b'0'..=b'9' | b'.' | b':');
    let name = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
    let host_fits = match host.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")) {
        Some(literal) => literal.len() > 1 && literal.contains(&b':') && literal.iter().all(hex),
        None => !host.is_empty() && host.iter().all(name),
    };
    host_fits && port.is_none_or(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

/// What hostward refuses and Django doesn't: empty labels, ports that are none, brackets with no address, long names.
fn beyond_django(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input).into_owned();
    let (name, port) = split(&text);
    let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let name = name.strip_suffix('.').unwrap_or(name);
    input.len() > 261
        || port.is_some_and(|digits| digits.len() > 5 || digits.parse::<u16>().is_err())
        || literal.is_some_and(|literal| literal.parse::<std::net::Ipv6Addr>().is_err())
        || (literal.is_none() && (name.len() > 255 || name.split('.').any(str::is_empty)))
}

/// Four decimal numbers up to 255, each without zeros in front.
fn is_address(text: &[u8]) -> bool {
    let parts: Vec<&[u8]> = text.split(|byte| *byte == b'.').collect();
    let number = |part: &&[u8]| {
        (1..=3).contains(&part.len())
            && part.iter().all(u8::is_ascii_digit)
            && part.iter().fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0')) < 256
            && (part.len() == 1 || part[0] != b'0')
    };
    parts.len() == 4 && parts.iter().all(number)
}
