//! Settings are right in every respect that the contract names, or every mistake in them is told.
//!
//! An input is what `/proc/self/environ` would hold, variables between NULs; `--name=value` among them is a flag.

#![no_main]

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, SystemTime};

use hostward::config::{
    Config, Endpoint, Flags, Given, Loaded, Mistake, Mistakes, Pem, ProxyProtocol, RejectStatus, SETTINGS, Source,
    TaskIp, Tls, Upstream, load,
};
use hostward::message::authority::Authority;
use hostward::policy::{HostPattern, HostRewrite};
use libfuzzer_sys::fuzz_target;

/// Stands in for the inside of a private key, which nothing may repeat, wherever it was put.
const SECRET: &str = "c2VjcmV0";

fuzz_target!(|input: &[u8]| {
    let mut flags = Flags::default();
    let mut environment: Vec<(OsString, OsString)> = Vec::new();
    let mut flagged: Vec<&str> = Vec::new();
    for item in input.split(|byte| *byte == 0) {
        let Some(equals) = item.iter().position(|byte| *byte == b'=') else { continue };
        let (name, value) = (&item[..equals], OsString::from_vec(item[equals + 1..].to_vec()));
        if let Some(flag) = name.strip_prefix(b"--") {
            if let Some(setting) = SETTINGS.iter().find(|setting| setting.flag().as_bytes() == flag) {
                if !is_blank(&value) {
                    flagged.push(setting.variable);
                }
                flagged.retain(|variable| *variable != setting.variable || !is_blank(&value));
                flags.set(setting.variable, value);
            }
        } else {
            environment.push((OsString::from_vec(name.to_vec()), value));
        }
    }
    let said = match load(&flags, environment.clone(), false) {
        Ok(loaded) => {
            check(&loaded, &environment, &flagged);
            let shown: Vec<_> = loaded.sources.list.iter().map(Given::shown).collect();
            format!("{:?} {:?} {shown:?}", loaded.warnings, loaded.config.tls)
        }
        Err(mistakes) => {
            check_mistakes(&mistakes);
            let shown: Vec<_> = mistakes.sources.list.iter().map(Given::shown).collect();
            format!("{:?} {:?} {shown:?}", mistakes.list, mistakes.config.tls)
        }
    };
    if input.split(|byte| *byte == 0).all(is_key_in_pem) {
        assert!(!said.contains(SECRET), "a key in {said}");
    }
});

/// Whether the secret, where it is, can be recognised as one.
fn is_key_in_pem(item: &[u8]) -> bool {
    let text = String::from_utf8_lossy(item);
    text.find(SECRET).is_none_or(|at| text[..at].split_once('=').is_some_and(|(_, value)| value.contains("-----BEGIN")))
}

fn is_blank(value: &OsString) -> bool {
    value.to_str().is_some_and(|text| text.trim().is_empty())
}

fn check(loaded: &Loaded, environment: &[(OsString, OsString)], flagged: &[&str]) {
    let Loaded { config, warnings, sources } = loaded;
    check_hosts(config);
    check_upstream(&config.upstream);
    check_listeners(config);
    check_bounds(config);
    warnings.iter().for_each(check_mistake);
    if config.proxy_protocol != ProxyProtocol::Off {
        assert!(!config.rules.trusted.is_empty(), "a PROXY header that nobody would be believed");
    }
    if let TaskIp::Given(addresses) = &config.task_ip {
        assert!(!addresses.is_empty() && addresses.iter().all(|address| !address.is_unspecified()));
    }
    if let RejectStatus::Answer(status) = config.reject_status {
        assert!([400, 403, 404, 421].contains(&status.as_u16()));
    }
    if let Some(path) = &config.ready_path {
        let path = path.as_str();
        assert!(path.starts_with('/') && !path.contains('#') && path.bytes().all(|byte| byte.is_ascii_graphic()));
    }
    assert!(config.buffer_dir.is_absolute());
    if let Tls::Files { cert, key } = &config.tls {
        for pem in [cert, key] {
            match pem {
                Pem::Path(path) => assert!(!path.as_os_str().is_empty()),
                Pem::Text(text) => assert!(text.contains("-----BEGIN"), "PEM that is none"),
            }
        }
    }

    // Where each came from: a flag counts before a variable, and an empty one not at all.
    assert_eq!(sources.list.len(), SETTINGS.len());
    let strict = sources.list.iter().find(|given| given.setting.variable == "HOSTWARD_STRICT");
    let strict = strict.and_then(|given| given.value.as_deref()).is_none_or(is_on);
    for given in &sources.list {
        let variable = given.setting.variable;
        let last = environment.iter().rfind(|(name, _)| name == variable);
        let expected = if flagged.contains(&variable) {
            Source::Flag
        } else if last.is_some_and(|(_, value)| !is_blank(value)) {
            Source::Environment
        } else {
            Source::Default
        };
        assert_eq!(given.source, expected, "{variable}");
        let told = config.given.iter().any(|text| text.split_once('=').is_some_and(|(name, _)| name == variable));
        assert_eq!(told, expected != Source::Default);
    }
    for (name, _) in environment {
        let text = name.to_string_lossy();
        let known = SETTINGS.iter().any(|setting| setting.variable == text);
        let last = environment.iter().rfind(|(other, _)| other.to_string_lossy() == text);
        let blank = last.is_some_and(|(_, value)| value.to_string_lossy().trim().is_empty());
        assert!(known || !text.starts_with("HOSTWARD_") || blank || !strict, "{text} was not refused");
    }

    // What is true is said by what was written, and by nothing else.
    let again =
        sources.list.iter().filter_map(|given| Some((given.setting.variable.into(), given.value.clone()?.into())));
    let metadata = |name: &OsString| !name.to_string_lossy().starts_with("HOSTWARD_");
    let beside = environment.iter().filter(|(name, _)| metadata(name)).cloned();
    let again = load(&Flags::default(), again.chain(beside), false);
    let again = again.unwrap_or_else(|mistakes| panic!("not right any more: {:?}", mistakes.list)).config;
    let shown = |config: &Config| format!("{:?}", Config { given: Vec::new(), ..config.clone() });
    assert_eq!(shown(&again), shown(config));
}

fn is_on(text: &str) -> bool {
    ["on", "true", "1", "yes"].contains(&text.to_ascii_lowercase().as_str())
}

fn check_hosts(config: &Config) {
    let rules = &config.rules;
    assert!(!rules.allowed.is_empty());
    for pattern in &rules.allowed {
        assert_eq!(pattern.to_string().parse::<HostPattern>().as_ref(), Ok(pattern), "{pattern}");
    }
    let probes = &rules.probes;
    let any_probe = probes.own || probes.peer || probes.missing || !probes.networks.is_empty();
    if any_probe || rules.rewrite == HostRewrite::Canonical || config.ready_path.is_some() {
        assert!(rules.canonical.is_some(), "a rewrite to nothing");
    }
    if let Some(host) = &rules.canonical {
        assert!(Authority::parse(host.as_bytes()).is_ok(), "{host:?}");
    }
}

/// Never where the task's metadata and credentials are, however the address is written.
fn check_upstream(upstream: &Upstream) {
    match &upstream.endpoint {
        Endpoint::Tcp { host, port } => {
            assert!(*port != 0 && !host.is_empty());
            let address = host.parse::<IpAddr>().ok().or_else(|| inet_aton(host).map(|bits| bits.to_be_bytes().into()));
            if let Some(address) = address {
                assert!(host.parse::<IpAddr>().is_ok(), "{host} is {address} to the C library");
                match address.to_canonical() {
                    IpAddr::V4(address) => assert_ne!(address.octets()[..2], [169, 254]),
                    IpAddr::V6(address) => assert_ne!(address.segments()[..2], [0xfd00, 0xec2]),
                }
            } else {
                let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
                assert!(host.bytes().all(good), "{host}");
            }
        }
        Endpoint::Unix(path) => {
            let bytes = path.as_os_str().as_encoded_bytes();
            assert!((2..=107).contains(&bytes.len()) && matches!(bytes[0], 0 | b'/'), "{}", path.display());
        }
    }
    let printed = upstream.to_string();
    let settings = [("HOSTWARD_ALLOWED_HOSTS", "a"), ("HOSTWARD_UPSTREAM", printed.as_str())];
    let settings = settings.map(|(name, value)| (name.into(), value.into()));
    match load(&Flags::default(), settings, false) {
        Ok(again) => assert_eq!(again.config.upstream, *upstream, "{printed}"),
        // It may be the default of another setting.
        Err(mistakes) => {
            let conflict = mistakes.list.iter().all(|mistake| mistake.error.contains("hostward would ask itself"));
            assert!(conflict, "{printed}: {:?}", mistakes.list);
        }
    }
}

/// `inet_aton(3)`: one to four numbers in decimal, octal or hexadecimal, the last of which fills what is left.
fn inet_aton(text: &str) -> Option<u32> {
    let parts: Vec<&str> = text.split('.').collect();
    let number = |part: &&str| -> Option<u64> {
        let lower = part.to_ascii_lowercase();
        let (digits, radix) = match (lower.strip_prefix("0x"), lower.strip_prefix('0')) {
            (Some(hex), _) => (hex, 16),
            (None, Some(octal)) if !octal.is_empty() => (octal, 8),
            _ => (lower.as_str(), 10),
        };
        let good = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
        good.then(|| u64::from_str_radix(digits, radix).ok()).flatten()
    };
    let numbers: Vec<u64> = parts.iter().map(number).collect::<Option<_>>()?;
    let (last, front) = numbers.split_last()?;
    let room = 32 - 8 * u32::try_from(front.len()).ok().filter(|count| *count < 4)?;
    if front.iter().any(|part| *part > 255) || *last >> room != 0 {
        return None;
    }
    let front = front.iter().enumerate().fold(0, |sum, (at, part)| sum | part << (24 - 8 * at));
    u32::try_from(front | last).ok()
}

fn check_listeners(config: &Config) {
    let same_port = |one: SocketAddr, other: SocketAddr| one.port() == other.port() && one.port() != 0;
    if let Some(admin) = config.admin_listen
        && same_port(config.listen, admin)
    {
        let (one, other) = (config.listen.ip().to_canonical(), admin.ip().to_canonical());
        assert!(one != other && !one.is_unspecified() && !other.is_unspecified(), "two listeners on {admin}");
    }
    let Endpoint::Tcp { host, port } = &config.upstream.endpoint else { return };
    for listen in [Some(config.listen), config.admin_listen].into_iter().flatten() {
        if listen.port() != *port {
            continue;
        }
        let ours = listen.ip().to_canonical();
        let theirs = if host == "localhost" { Some(IpAddr::from([127, 0, 0, 1])) } else { host.parse().ok() };
        let Some(theirs) = theirs.map(|address: IpAddr| address.to_canonical()) else { continue };
        assert_ne!(ours, theirs, "hostward asks itself");
        assert!(!(ours.is_unspecified() && theirs.is_loopback()), "hostward asks itself at {listen}");
    }
}

/// The README's table.
fn check_bounds(config: &Config) {
    let (ms, second, minute) = (Duration::from_millis(1), Duration::from_secs(1), Duration::from_mins(1));
    let (hour, day) = (minute * 60, minute * 60 * 24);
    for (name, value, least, most) in [
        ("connect", config.upstream_connect_timeout, ms * 10, minute),
        ("start", config.upstream_start_timeout, Duration::ZERO, hour),
        ("response", config.upstream_response_timeout, ms * 100, day),
        ("upstream idle", config.upstream_idle_timeout, Duration::ZERO, hour),
        ("header", config.header_timeout, ms * 100, hour),
        ("body", config.body_timeout, ms * 100, hour),
        ("idle", config.idle_timeout, second, hour * 2),
        ("tunnel", config.tunnel_idle_timeout, ms * 100, day),
        ("drain", config.drain_delay, Duration::ZERO, hour),
        ("shutdown", config.shutdown_timeout, Duration::ZERO, hour),
    ] {
        assert!((least..=most).contains(&value), "{name}: {value:?}");
    }
    assert!((1 << 10..=1 << 30).contains(&config.buffer_memory));
    assert!(config.buffer_responses == 0 || (1 << 10..=1 << 30).contains(&config.buffer_responses));
    assert!((1 << 10..=1 << 20).contains(&config.max_header_size));
    assert!((1 << 10..=4 << 20).contains(&config.max_response_header_size));
    assert!(config.max_body_size.is_none_or(|bytes| (1..=1 << 50).contains(&bytes)));
    assert!(config.threads.is_none_or(|count| (1..=1024).contains(&count)));
    assert!(config.max_connections.is_none_or(|count| (1..=1 << 20).contains(&count)));
    assert!(config.upstream_max_connections.is_none_or(|count| (1..=65_535).contains(&count)));
}

fn check_mistakes(mistakes: &Mistakes) {
    assert!(!mistakes.list.is_empty(), "nothing is wrong, and nothing starts");
    mistakes.list.iter().for_each(check_mistake);
    for (terminal, lines) in [(true, mistakes.list.len() + 4), (false, mistakes.list.len() + 1)] {
        let mut out = Vec::new();
        mistakes.write(&mut out, terminal, SystemTime::UNIX_EPOCH).expect("memory takes it");
        let text = String::from_utf8(out).expect("what is said is text");
        assert_eq!(text.lines().count(), lines);
        assert!(terminal || text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
}

/// Each says what, and what to do, in words that a terminal doesn't obey.
fn check_mistake(mistake: &Mistake) {
    let Mistake { setting, value, error, hint, .. } = mistake;
    assert!(!setting.is_empty() && !error.is_empty() && !hint.is_empty(), "{mistake:?}");
    for text in [Some(setting), value.as_ref(), Some(error), Some(hint)].into_iter().flatten() {
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(text.chars().count() < 8_000, "{} characters", text.chars().count());
    }
}
