//! What apps make of a request's origin: a client can't change the address, scheme, host, port or prefix of anything that
//! PHP, Symfony's `HttpFoundation` or Flask with `ProxyFix` generate, by whatever header it sends.
//!
//! Covered: each name of the list, spelled with capitals, small letters, dots, underscores, and some of each; HTTP/1.1
//! and HTTP/2; from a peer that isn't trusted, and through a trusted one that passes a client's headers on.

use http::{HeaderName, Request};
use serde_json::Value;

use super::{before, get, json};
use crate::support::hostward::Hostward;
use crate::support::http2;
use crate::support::python::{Server, Site};
use crate::support::wire::ask;

/// Headers that one app or another takes for a part of its own address, or for the client's.
const NAMES: [&str; 47] = [
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Path",
    "X-Forwarded-Uri",
    "X-Forwarded-Url",
    "X-Forwarded-User",
    "X-Forwarded-Ssl",
    "X-Forwarded-Scheme",
    "X-Forwarded-Protocol",
    "X-Forwarded-Server",
    "X-Forwarded-Method",
    "X-Forwarded-By",
    "X-Forwarded-Client-Cert",
    "X-Forwarded-Anything",
    "X-Forwarded",
    "Forwarded",
    "X-Real-IP",
    "X-Host",
    "X-Original-Host",
    "X-HTTP-Host-Override",
    "X-Original-URL",
    "X-Original-URI",
    "X-Rewrite-URL",
    "X-Script-Name",
    "X-Scheme",
    "X-Url-Scheme",
    "X-ProxyHost",
    "X-ProxyScheme",
    "X-ProxyContextPath",
    "X-ARR-SSL",
    "Front-End-Https",
    "X-Sendfile-Type",
    "X-Accel-Mapping",
    "X-Queue-Start",
    "Proxy",
    // Of these, what has no hyphen is like any other header: it's the other spellings that matter.
    "Script_Name",
    "Path_Info",
    "Remote_Addr",
    "Http_Host",
    "X-Forwarded-For.",
    "X-Forwarded-Host_",
    "_X-Forwarded-Host",
    "X.Forwarded-Prefix",
    "X-Forwarded_Prefix",
];

/// Those that every load balancer writes itself, so that no client's gets through one.
const ITS_OWN: [&str; 3] = ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Port"];
/// What an Application Load Balancer says about a client at 203.0.113.7.
const BALANCER: [(&str, &str); 3] =
    [("X-Forwarded-For", "203.0.113.7"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Port", "443")];
/// Lines in one request: below every limit.
const AT_ONCE: usize = 40;

type Header = (String, String);

/// The spellings of a name that a server or a language may take for one another.
fn spellings(name: &str) -> Vec<String> {
    let mut all = vec![
        name.to_owned(),
        name.to_ascii_lowercase(),
        name.to_ascii_uppercase(),
        name.replace('-', "."),
        name.replace('-', "_"),
        name.to_ascii_lowercase().replace('-', "."),
        name.replacen('-', "_", 1),
        name.replacen('-', ".", 1),
        name.replacen('-', "~", 1),
    ];
    all.sort();
    all.dedup();
    all
}

fn value(name: &str) -> &'static str {
    let name = name.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    if name == "forwarded" {
        "for=6.6.6.6;proto=gopher;host=evil.example:6666"
    } else if has(&["proto", "scheme"]) {
        "gopher"
    } else if has(&["ssl", "https"]) {
        "on"
    } else if has(&["port"]) {
        "6666"
    } else if has(&["prefix", "path", "url", "uri", "script"]) {
        "//evil.example/6666"
    } else if has(&["host", "server"]) {
        "evil.example:6666"
    } else {
        "6.6.6.6"
    }
}

/// Every header that a client may send, when it comes through a load balancer or not.
fn attacks(http2: bool, balanced: bool) -> Vec<Header> {
    let all = NAMES.iter().flat_map(|name| spellings(name));
    let replaced = |name: &String| balanced && ITS_OWN.iter().any(|own| own.eq_ignore_ascii_case(name));
    let sent = all.filter(|name| !replaced(name)).map(|name| (name.clone(), value(&name).to_owned()));
    // In HTTP/2 a malformed request. Options that name what hostward or the load balancer writes must remove nothing.
    let options = (!http2).then(|| ("Connection".to_owned(), NAMES[..20].join(", ") + ", Host, close"));
    sent.chain(options).collect()
}

/// The app's own words about the request, over HTTP/1.1 or HTTP/2.
fn made_of(hostward: &Hostward, http2: bool, balanced: bool, headers: &[Header]) -> Value {
    let balancer = BALANCER.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let all: Vec<Header> = balancer.filter(|_| balanced).chain(headers.iter().cloned()).collect();
    if http2 {
        let mut request: Request<()> = http2::get("/");
        for (name, value) in all {
            request.headers_mut().append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        let answer = http2::ask_once(hostward.address, request, b"");
        assert_eq!(answer.status, 200, "{headers:?}: {}", String::from_utf8_lossy(&answer.body));
        return serde_json::from_slice(&answer.body).unwrap();
    }
    let lines: Vec<String> = all.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let lines: Vec<&str> =
        ["Host: www.example.com", "Connection: close"].into_iter().chain(lines.iter().map(|line| &**line)).collect();
    json(&ask(hostward.address, get("/", &lines)).expect(200))
}

/// Asserts that no header changes what the app makes of the request, and returns that, without and with a load balancer.
fn no_client_changes_anything(site: &Site) -> [Value; 2] {
    [false, true].map(|balanced| {
        let trusted = if balanced { "private" } else { "none" };
        let hostward = before(site, &[("HOSTWARD_TRUSTED_PROXIES", trusted)]);
        let expected = made_of(&hostward, false, balanced, &[]);
        let mut wrong = Vec::new();
        for http2 in [false, true] {
            let attacks = attacks(http2, balanced);
            let is_harmless = |headers: &[Header]| made_of(&hostward, http2, balanced, headers) == expected;
            assert!(is_harmless(&[]), "HTTP/2 and HTTP/1.1 differ");
            for some in attacks.chunks(AT_ONCE).filter(|some| !is_harmless(some)) {
                let one_by_one = some.iter().filter(|header| !is_harmless(std::slice::from_ref(header)));
                let found: Vec<_> = one_by_one.map(|header| format!("{header:?} {http2} {balanced}")).collect();
                wrong.extend(if found.is_empty() { vec![format!("together: {some:?}")] } else { found });
            }
        }
        assert!(wrong.is_empty(), "{} change what the app makes of a request: {}", wrong.len(), wrong.join("\n"));
        expected
    })
}

/// That the app does believe these headers, so that the test above shows something.
fn the_app_alone_believes(site: &Site, headers: &[(&str, &str)]) {
    let plain = json(&ask(site.address, get("/", &["Host: www.example.com", "Connection: close"])).expect(200));
    for (name, value) in headers {
        let line = format!("{name}: {value}");
        let answer = ask(site.address, get("/", &["Host: www.example.com", "Connection: close", &line])).expect(200);
        assert_ne!(json(&answer), plain, "{line}");
    }
}

fn assert_is(made: &Value, expected: &[(&str, Value)]) {
    for (name, value) in expected {
        assert_eq!(made[*name], *value, "{name}: {made}");
    }
}

#[test]
fn no_client_changes_what_php_generates() {
    let Some(site) = Site::start(Server::Php, &[]) else { return };
    the_app_alone_believes(
        &site,
        &[
            ("X-Forwarded-Prefix", "//evil.example"),
            ("X.Forwarded.Host", "evil.example"),
            ("X_Forwarded_Port", "6666"),
            ("X.Real.IP", "6.6.6.6"),
        ],
    );
    let [direct, balanced] = no_client_changes_anything(&site);
    assert_is(&direct, &[("address", "127.0.0.1".into()), ("url", "http://www.example.com/page".into())]);
    assert_is(&balanced, &[("address", "203.0.113.7".into()), ("url", "https://www.example.com/page".into())]);
}

#[test]
fn no_client_changes_what_symfony_generates() {
    let Some(site) = Site::start(Server::Symfony, &[]) else { return };
    the_app_alone_believes(
        &site,
        &[
            ("X-Forwarded-Prefix", "//evil.example"),
            ("X-Forwarded-Host", "evil.example"),
            ("X.Forwarded.Port", "6666"),
            ("X_Forwarded_For", "6.6.6.6"),
            ("X-Forwarded-Proto", "https"),
        ],
    );
    let [direct, balanced] = no_client_changes_anything(&site);
    assert_is(
        &direct,
        &[
            ("address", "127.0.0.1".into()),
            ("secure", false.into()),
            ("host", "www.example.com".into()),
            ("port", 80.into()),
            ("prefix", "".into()),
            ("url", "http://www.example.com/page".into()),
        ],
    );
    assert_is(
        &balanced,
        &[
            ("address", "203.0.113.7".into()),
            ("secure", true.into()),
            ("host", "www.example.com".into()),
            ("port", 443.into()),
            ("prefix", "".into()),
            ("url", "https://www.example.com/page".into()),
        ],
    );
}

#[test]
fn no_client_changes_what_flask_generates_with_two_proxies() {
    let Some(site) = Site::start(Server::FlaskProxyFix, &[("TWO_PROXIES", "1")]) else { return };
    let [_, balanced] = no_client_changes_anything(&site);
    let url = "https://www.example.com/page";
    assert_is(&balanced, &[("address", "203.0.113.7".into()), ("host", "www.example.com".into()), ("url", url.into())]);
}

#[test]
fn no_client_changes_what_flask_with_proxy_fix_generates() {
    let Some(site) = Site::start(Server::FlaskProxyFix, &[]) else { return };
    the_app_alone_believes(
        &site,
        &[
            ("X-Forwarded-Prefix", "/evil"),
            ("X-Forwarded-Host", "evil.example"),
            ("X-Forwarded-For", "6.6.6.6"),
            ("X-Forwarded-Proto", "https"),
        ],
    );
    let [direct, balanced] = no_client_changes_anything(&site);
    let of = |scheme: &str| {
        let url = format!("{scheme}://www.example.com/page");
        // With x_for=1 it is the peer's.
        [("address", "127.0.0.1".into()), ("scheme", scheme.into()), ("prefix", "".into()), ("url", url.into())]
    };
    assert_is(&direct, &of("http"));
    assert_is(&balanced, &of("https"));
}

/// Names that PHP would read with `_` for a space, but that are no header names: RFC 9112 §5.1.
#[test]
fn a_name_with_a_space_reaches_no_app() {
    let Some(site) = Site::start(Server::Php, &[]) else { return };
    let hostward = before(&site, &[]);
    for name in ["X Forwarded For", "X-Forwarded For", "X-Forwarded-For ", "X\tForwarded\tFor", "X[Forwarded[For"] {
        let line = format!("{name}: 6.6.6.6");
        ask(hostward.address, get("/", &["Host: www.example.com", "Connection: close", &line])).expect(400);
    }
}

/// What a trusted peer adds to the right of the client's own elements decides.
#[test]
fn elements_that_a_client_puts_before_the_load_balancers_change_nothing() {
    let Some(site) = Site::start(Server::Symfony, &[]) else { return };
    let hostward = before(&site, &[]);
    for forged in ["6.6.6.6, ", "6.6.6.6,, ", "10.0.0.1, 6.6.6.6, ", "127.0.0.1, ", "unknown, ", ", "] {
        let lines = [
            "Host: www.example.com",
            "Connection: close",
            &format!("X-Forwarded-For: {forged}203.0.113.7"),
            "X-Forwarded-Proto: https",
            "X-Forwarded-Port: 443",
        ];
        let made = json(&ask(hostward.address, get("/", &lines)).expect(200));
        assert_is(&made, &[("address", "203.0.113.7".into()), ("url", "https://www.example.com/page".into())]);
    }
}
