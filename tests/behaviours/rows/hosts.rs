//! Who may enter, and what the app is told about who has.

use crate::behaviours::{Case, Mark};

pub fn foreign_host(case: &Case<'_>) -> Mark {
    let mut ask = case.get();
    ask.host = "evil.example".into();
    let answer = case.ask(&ask);
    case.client("status", answer.status, 421);
    let whose = answer.field("proxy-status").is_some_and(|status| status.contains("http_request_denied"));
    case.client("proxy-status", whose, true);
    case.app_saw_nothing();
    Mark::Yes
}

pub fn allowed_host(case: &Case<'_>) -> Mark {
    case.will_say("hello");
    let mut ask = case.get();
    ask.host = "WWW.Example.com:8443".into();
    case.client("status", case.ask(&ask).status, 200);
    let seen = case.seen();
    case.app("host", seen.field("host"), Some("WWW.Example.com:8443"));
    case.app("x-forwarded-host", seen.field("x-forwarded-host"), Some("WWW.Example.com:8443"));
    Mark::Yes
}

pub fn probe(case: &Case<'_>) -> Mark {
    case.will_say("hello");
    let mut ask = case.get();
    ask.host = case.door().address.to_string();
    case.client("status", case.ask(&ask).status, 200);
    let seen = case.seen();
    case.app("host", seen.field("host"), Some("www.example.com"));
    case.app("x-forwarded-proto", seen.field("x-forwarded-proto"), Some("https"));
    // The same with a sign that somebody relayed it.
    let answer = case.ask(&ask.with("x-forwarded-for", "203.0.113.7"));
    case.client("status of what isn't one", answer.status, 421);
    case.app("requests", case.all_seen().len(), 1);
    Mark::Yes
}

pub fn forwarded_made(case: &Case<'_>) -> Mark {
    case.will_say("hello");
    case.client("status", case.ask(&case.get()).status, 200);
    let seen = case.seen();
    let (proto, port) = if case.listener.is_tls() { ("https", "443") } else { ("http", "80") };
    for (name, value) in [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", proto),
        ("x-forwarded-port", port),
        ("x-forwarded-host", "www.example.com"),
        ("x-real-ip", "127.0.0.1"),
    ] {
        case.app(name, seen.field(name), Some(value));
    }
    case.app("x-request-id", seen.field("x-request-id").map(str::len), Some(32));
    Mark::Yes
}

pub fn forwarded_kept(case: &Case<'_>) -> Mark {
    case.will_say("hello");
    let told = [
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-port", "443"),
        ("x-request-id", "made-by-the-load-balancer"),
        ("x-amzn-trace-id", "Root=1-67891233-abcdef012345678912345678"),
    ];
    let ask = told.iter().fold(case.get(), |ask, (name, value)| ask.with(name, value));
    case.client("status", case.ask(&ask).status, 200);
    let seen = case.seen();
    case.app("x-forwarded-for", seen.field("x-forwarded-for"), Some("203.0.113.7, 127.0.0.1"));
    case.app("x-real-ip", seen.field("x-real-ip"), Some("203.0.113.7"));
    for (name, value) in &told[1..] {
        case.app(name, seen.field(name), Some(*value));
    }
    Mark::Yes
}

pub fn names_dropped(case: &Case<'_>) -> Mark {
    case.will_say("hello");
    let names = [
        "proxy",
        "x_forwarded_for",
        "x-forwarded-server",
        "x-original-url",
        "x-rewrite-url",
        "x-forwarded-ssl",
        "x-scheme",
        "front-end-https",
        "forwarded",
        "x-host",
        "x.forwarded.for",
        "x-forwarded.proto",
        "x.real.ip",
        "x-forwarded-prefix",
        "x-script-name",
    ];
    // `Forwarded` makes no difference to an allowed host.
    let ask =
        names.iter().fold(case.get().with("x-forwarded-host", "evil.example"), |ask, name| ask.with(name, "6.6.6.6"));
    case.client("status", case.ask(&ask).status, 200);
    let seen = case.seen();
    for name in names {
        case.app(name, seen.field(name), None);
    }
    case.app("values", seen.fields.iter().any(|(_, value)| value.contains("6.6.6.6") || value.contains("evil")), false);
    case.app("x-forwarded-host", seen.field("x-forwarded-host"), Some("www.example.com"));
    Mark::Yes
}
