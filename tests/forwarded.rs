//! Contract 3: the forwarding fields, from peers that are believed and from others.

use std::net::IpAddr;

use crate::support::Task;
use crate::support::app::Received;
use crate::support::wire::Client;

fn request(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: www.example.com:8443\r\n{fields}\r\n")
}

fn seen(received: &Received) -> [Option<&str>; 4] {
    ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip"].map(|name| received.field(name))
}

#[test]
fn a_request_without_forwarding_fields_gets_them() {
    for trusted in ["private", "none"] {
        let task = Task::echo(&[("HOSTWARD_TRUSTED_PROXIES", trusted)]);
        let received = task.admitted(request(""));
        let expected = [Some("127.0.0.1"), Some("http"), Some("www.example.com:8443"), Some("127.0.0.1")];
        assert_eq!(seen(&received), expected, "{trusted}");
    }
}

#[test]
fn a_trusted_peers_fields_are_appended_to_or_kept() {
    let task = Task::echo(&[]);
    let received = task.admitted(request(
        "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 443\r\nX-Real-IP: 6.6.6.6\r\n",
    ));
    let expected = [Some("203.0.113.9, 127.0.0.1"), Some("https"), Some("www.example.com:8443"), Some("203.0.113.9")];
    assert_eq!(seen(&received), expected);
    assert_eq!(received.field("x-forwarded-port"), Some("443"));
    // As Traefik names a WebSocket's.
    assert_eq!(task.admitted(request("X-Forwarded-Proto: wss\r\n")).field("x-forwarded-proto"), Some("wss"));
}

#[test]
fn an_untrusted_peers_fields_are_replaced() {
    let fields = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: 203.0.113.10\r\nX-Forwarded-Proto: https\r\n\
                  X-Forwarded-Port: 443\r\nX-Real-IP: 6.6.6.6\r\n";
    let task = Task::echo(&[("HOSTWARD_TRUSTED_PROXIES", "none")]);
    let received = task.admitted(request(fields));
    let expected = [Some("127.0.0.1"), Some("http"), Some("www.example.com:8443"), Some("127.0.0.1")];
    assert_eq!(seen(&received), expected);
    assert_ne!(received.field("x-forwarded-port"), Some("443"));
    assert!(!received.head.contains("203.0.113."), "{}", received.head);

    let task = Task::echo(&[("HOSTWARD_TRUSTED_PROXIES", "127.0.0.2/31 192.0.2.0/24")]);
    for (source, appended) in
        [([127, 0, 0, 1], false), ([127, 0, 0, 2], true), ([127, 0, 0, 3], true), ([127, 0, 0, 4], false)]
    {
        let mut client = Client::connect_from(source.into(), task.hostward.address);
        client.ask(request("X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n")).expect(200);
        let received = task.app.last();
        let peer = IpAddr::from(source).to_string();
        let proto = if appended { "https" } else { "http" };
        let (list, client) =
            if appended { (format!("203.0.113.9, {peer}"), "203.0.113.9".to_owned()) } else { (peer.clone(), peer) };
        let expected = [Some(&*list), Some(proto), Some("www.example.com:8443"), Some(&*client)];
        assert_eq!(seen(&received), expected);
    }
}

#[test]
fn the_client_is_the_right_most_address_that_is_not_trusted() {
    let task = Task::echo(&[]);
    for (fields, list, client) in [
        ("X-Forwarded-For: 6.6.6.6, 203.0.113.9\r\n", "6.6.6.6, 203.0.113.9, 127.0.0.1", "203.0.113.9"),
        ("X-Forwarded-For: 203.0.113.9, 10.0.0.5,192.168.1.1\r\n", "*", "203.0.113.9"),
        (
            "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 203.0.113.9\r\n",
            "6.6.6.6, 203.0.113.9, 127.0.0.1",
            "203.0.113.9",
        ),
        ("X-Forwarded-For: 203.0.113.9:54321\r\n", "203.0.113.9:54321, 127.0.0.1", "203.0.113.9"),
        ("X-Forwarded-For: [2001:db8::9]:54321\r\n", "[2001:db8::9]:54321, 127.0.0.1", "2001:db8::9"),
        ("X-Forwarded-For: [2001:db8::9]\r\n", "[2001:db8::9], 127.0.0.1", "2001:db8::9"),
        ("X-Forwarded-For: 2001:DB8::9\r\n", "2001:DB8::9, 127.0.0.1", "2001:db8::9"),
        ("X-Forwarded-For: ::ffff:203.0.113.9\r\n", "*", "203.0.113.9"),
        ("X-Forwarded-For: 203.0.113.9, 10.0.0.5:80, [fd00::1]:80\r\n", "*", "203.0.113.9"),
        ("X-Forwarded-For: 10.0.0.1, 10.0.0.2\r\n", "10.0.0.1, 10.0.0.2, 127.0.0.1", "10.0.0.1"),
        ("X-Forwarded-For:\r\n", "127.0.0.1", "127.0.0.1"),
    ] {
        let received = task.admitted(request(fields));
        assert_eq!(received.field("x-real-ip"), Some(client), "{fields}");
        let forwarded = received.field("x-forwarded-for");
        assert!(forwarded.is_some_and(|value| value.ends_with("127.0.0.1")), "{fields} {forwarded:?}");
        assert!(list == "*" || forwarded == Some(list), "{fields} {forwarded:?}");
    }
}

#[test]
fn an_address_that_is_none_is_never_the_client() {
    let task = Task::echo(&[]);
    for value in [
        "unknown",
        "evil.example",
        "203.0.113.9, unknown",
        "203.0.113.999",
        "203.0.113.9:x",
        "[::1",
        "_hidden",
        "<script>",
        ",,",
        "1.2.3.4 5.6.7.8",
    ] {
        let received = task.admitted(request(&format!("X-Forwarded-For: {value}\r\n")));
        let client = received.field("x-real-ip").unwrap_or_default();
        assert!(client.parse::<IpAddr>().is_ok(), "{value}: {client}");
    }
}

#[test]
fn only_http_and_https_are_schemes() {
    let task = Task::echo(&[]);
    for (given, seen) in [
        ("https", "https"),
        ("http", "http"),
        ("HTTPS", "https"),
        ("javascript", "http"),
        ("https, http", "*"),
        ("", "http"),
    ] {
        let received = task.admitted(request(&format!("X-Forwarded-Proto: {given}\r\n")));
        let proto = received.field("x-forwarded-proto").unwrap_or_default();
        assert!(["http", "https"].contains(&&*proto.to_ascii_lowercase()), "{given}: {proto}");
        assert!(seen == "*" || proto.eq_ignore_ascii_case(seen), "{given}: {proto}");
    }
}

#[test]
fn x_forwarded_host_is_always_ours() {
    for trusted in ["private", "none"] {
        let task = Task::echo(&[("HOSTWARD_TRUSTED_PROXIES", trusted)]);
        for fields in [
            "X-Forwarded-Host: evil.example\r\n",
            "X-Forwarded-Host: evil.example\r\nx-forwarded-host: www.example.com\r\n",
            "X_Forwarded_Host: evil.example\r\n",
            "X-Forwarded_Host: evil.example\r\nX-Host: evil.example\r\nX-Original-Host: evil.example\r\n",
            "X-Forwarded-Host: evil.example\r\nConnection: X-Forwarded-Host, Host\r\n",
            "Forwarded: host=evil.example\r\nX-Forwarded-Server: evil.example\r\n",
        ] {
            let received = task.admitted(request(fields));
            assert_eq!(received.all("x-forwarded-host"), ["www.example.com:8443"], "{fields}");
            assert_eq!(received.all("host"), ["www.example.com:8443"], "{fields}");
            assert!(!received.head.contains("evil"), "{}", received.head);
        }
    }
}

#[test]
fn a_request_id_is_kept_from_a_trusted_peer_and_made_otherwise() {
    let task = Task::echo(&[]);
    let given = task.admitted("GET /given HTTP/1.1\r\nHost: www.example.com\r\nX-Request-Id: a-1\r\n\r\n");
    assert_eq!(given.field("x-request-id"), Some("a-1"));
    assert_eq!(task.hostward.request_line("/given")["request_id"], "a-1");
    let made: Vec<String> =
        (0..3).map(|_| task.admitted(request("")).field("x-request-id").unwrap_or_default().to_owned()).collect();
    assert!(made.iter().all(|id| id.len() >= 16) && made[0] != made[1] && made[1] != made[2], "{made:?}");

    let task = Task::echo(&[("HOSTWARD_TRUSTED_PROXIES", "none")]);
    let replaced = task.admitted("GET /replaced HTTP/1.1\r\nHost: www.example.com\r\nX-Request-Id: a-1\r\n\r\n");
    let id = replaced.field("x-request-id").unwrap_or_default();
    assert!(id.len() >= 16, "{id}");
    assert_eq!(task.hostward.request_line("/replaced")["request_id"], id);
}

#[test]
fn two_request_ids_do_not_reach_the_app() {
    let task = Task::echo(&[]);
    let received = task.admitted(request("X-Request-Id: a-1\r\nX-Request-Id: a-2\r\n"));
    assert_eq!(received.all("x-request-id").len(), 1, "{}", received.head);
}

#[test]
fn trace_fields_are_untouched() {
    let fields = [
        ("x-amzn-trace-id", "Self=1-67891234-12456789abcdef012345678;Root=1-67891233-abcdef012345678912345678"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"),
    ];
    let lines = fields.map(|(name, value)| format!("{name}: {value}\r\n")).concat();
    for trusted in ["private", "none"] {
        let task = Task::echo(&[("HOSTWARD_TRUSTED_PROXIES", trusted)]);
        let received = task.admitted(format!("GET /traced HTTP/1.1\r\nHost: www.example.com\r\n{lines}\r\n"));
        for (name, value) in fields {
            assert_eq!(received.all(name), [value]);
        }
        let trace = task.hostward.request_line("/traced")["trace_id"].to_string();
        let known = ["67891233-abcdef012345678912345678", "0af7651916cd43dd8448eb211c80319c"];
        assert!(known.iter().any(|id| trace.contains(id)), "{trace}");
    }
    // Nothing is made up.
    let task = Task::echo(&[]);
    let received = task.admitted(request(""));
    assert!(fields.iter().all(|(name, _)| received.all(name).is_empty()), "{}", received.head);
}

#[test]
fn forwarded_is_written_anew_when_asked_for() {
    let task = Task::echo(&[]);
    let received = task.admitted(request("Forwarded: for=6.6.6.6;host=evil.example\r\n"));
    assert!(received.all("forwarded").is_empty(), "{}", received.head);

    let task = Task::echo(&[("HOSTWARD_FORWARDED", "on")]);
    let received = task.admitted(request("Forwarded: for=6.6.6.6;host=evil.example\r\nX-Forwarded-Proto: https\r\n"));
    let forwarded = received.field("forwarded").unwrap_or_default().to_ascii_lowercase();
    let pairs: Vec<&str> = forwarded.split([';', ',']).map(str::trim).collect();
    // RFC 7239 §4: a value with a colon is quoted.
    for pair in ["for=127.0.0.1", "host=\"www.example.com:8443\"", "proto=https"] {
        assert!(pairs.contains(&pair), "no {pair} in {forwarded}");
    }
    assert!(!forwarded.contains("evil") && !forwarded.contains("6.6.6.6"), "{forwarded}");

    let received = task.admitted(request("X-Forwarded-For: [2001:db8::9]:54321\r\n"));
    let forwarded = received.field("forwarded").unwrap_or_default().to_ascii_lowercase();
    assert!(forwarded.contains("for=\"[2001:db8::9]"), "{forwarded}");
}

#[test]
fn a_probes_port_and_client_are_true() {
    let task = Task::echo(&[("HOSTWARD_PROBE_HOSTS", "10.0.2.100")]);
    let received = task.admitted("GET / HTTP/1.1\r\nHost: 10.0.2.100:8080\r\n\r\n");
    let expected = [Some("127.0.0.1"), Some("https"), Some("www.example.com"), Some("127.0.0.1")];
    assert_eq!(seen(&received), expected);
}
