//! Contract 3: the forwarding fields, from peers that are believed and from others.

use std::net::IpAddr;
use std::time::SystemTime;

use crate::support::app::Received;
use crate::support::hostward::Hostward;
use crate::support::http2;
use crate::support::uwsgi::UwsgiApp;
use crate::support::wire::{self, Client};
use crate::support::{Task, eventually};

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
    assert_eq!(received.all("x-forwarded-port"), ["8443"]);
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
        ("X-Forwarded-For: 203.0.113.9,\r\n", "203.0.113.9, 127.0.0.1", "203.0.113.9"),
        ("X-Forwarded-For: ,203.0.113.9 ,\t,\r\n", "203.0.113.9, 127.0.0.1", "203.0.113.9"),
        ("X-Forwarded-For: 203.0.113.9,, 10.0.0.5\r\n", "203.0.113.9, 10.0.0.5, 127.0.0.1", "203.0.113.9"),
        (
            "X-Forwarded-For: 6.6.6.6,203.0.113.9\r\nX-Forwarded-For: ,\r\n",
            "6.6.6.6,203.0.113.9, 127.0.0.1",
            "203.0.113.9",
        ),
        ("X-Forwarded-For: , ,\r\n", "127.0.0.1", "127.0.0.1"),
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
        ("https, http", "http"),
        ("http, https", "https"),
        ("", "http"),
    ] {
        let received = task.admitted(request(&format!("X-Forwarded-Proto: {given}\r\n")));
        assert_eq!(received.all("x-forwarded-proto"), [seen], "{given}");
    }
}

#[test]
fn of_several_schemes_or_ports_the_nearest_proxys_counts() {
    let task = Task::echo(&[]);
    for (name, first, last) in [("X-Forwarded-Proto", "http", "https"), ("X-Forwarded-Port", "8443", "443")] {
        for lines in [
            format!("{name}: {first}\r\n{name}: {last}\r\n"),
            format!("{name}: {first}\r\n{name}: {first},{last}\r\n"),
            format!("{name}: {last}, {first}, {last}\r\n"),
            format!("{name}: {first},{last}\r\n"),
            format!("{name}: {first} ,\t{last} \r\n"),
            format!("{name}: {first}, {last},\r\n"),
            format!("{name}: {last} , ,\r\n{name}:\r\n"),
        ] {
            assert_eq!(task.admitted(request(&lines)).all(name), [last], "{lines}");
        }
    }
}

#[test]
fn a_trusted_peers_scheme_is_kept_on_a_listener_that_speaks_tls() {
    let task = Task::echo(&[("HOSTWARD_TLS", "self-signed")]);
    for scheme in ["http", "ws", "https", "wss"] {
        let received = task.admitted(request(&format!("X-Forwarded-Proto: {scheme}\r\n")));
        assert_eq!(received.all("x-forwarded-proto"), [scheme]);
    }
    assert_eq!(task.admitted(request("")).field("x-forwarded-proto"), Some("https"));
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
fn a_request_id_that_is_no_id_is_replaced() {
    let task = Task::echo(&[]);
    let (longest, too_long) = ("i".repeat(128), "i".repeat(129));
    for id in ["", "a b", "a\tb", "a\"b", "a\\b", "<a>", "\u{e9}", &too_long] {
        let received = task.admitted(request(&format!("X-Request-Id: {id}\r\n")));
        let ids = received.all("x-request-id");
        assert!(ids.len() == 1 && ids[0] != id && ids[0].len() == 32, "{id}: {ids:?}");
    }
    for id in ["a", &longest] {
        assert_eq!(task.admitted(request(&format!("X-Request-Id: {id}\r\n"))).all("x-request-id"), [id]);
    }
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
    assert_eq!(received.all("x-forwarded-port"), ["443"]);
    // The port that clients use is the canonical host's, if it has one.
    let task =
        Task::echo(&[("HOSTWARD_PROBE_HOSTS", "10.0.2.100"), ("HOSTWARD_CANONICAL_HOST", "www.example.com:8443")]);
    let received = task.admitted("GET / HTTP/1.1\r\nHost: 10.0.2.100:8080\r\n\r\n");
    assert_eq!(received.all("x-forwarded-port"), ["8443"]);
    let task = Task::echo(&[("HOSTWARD_PROBE_HOSTS", "10.0.2.100"), ("HOSTWARD_PROBE_PROTO", "http")]);
    let received = task.admitted("GET / HTTP/1.1\r\nHost: 10.0.2.100:8080\r\n\r\n");
    assert_eq!(received.all("x-forwarded-port"), ["80"]);
}

const V1: &str = "PROXY TCP4 10.0.1.7 10.0.2.100 56324 443\r\n";
const V6: &str = "PROXY TCP6 2001:db8::9 2001:db8::1 56324 8444\r\n";

/// The scheme and the port that the app is given.
fn scheme_and_port(task: &Task, request: &str) -> (String, String) {
    let received = task.admitted(request);
    let one = |name| match received.all(name)[..] {
        [value] => value.to_owned(),
        ref values => panic!("{name}: {values:?}"),
    };
    (one("x-forwarded-proto"), one("x-forwarded-port"))
}

#[test]
fn the_port_is_the_clients_and_never_hostwards_own() {
    let get = |host: &str, fields: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
    let (https, proxy, tls) =
        (("HOSTWARD_CLIENT_PROTO", "https"), ("HOSTWARD_PROXY_PROTOCOL", "optional"), ("HOSTWARD_TLS", "self-signed"));
    let untrusting = ("HOSTWARD_TRUSTED_PROXIES", "192.0.2.0/24");
    let (port, both) = ("X-Forwarded-Port: 8445\r\n", "X-Forwarded-Port: 8445\r\nX-Forwarded-Proto: https\r\n");
    let (plain, with_port) = ("www.example.com", "www.example.com:8443");
    for (settings, request, scheme, expected) in [
        (&[][..], get(plain, ""), "http", "80"),
        (&[], get(with_port, ""), "http", "8443"),
        (&[], get(with_port, port), "http", "8445"),
        (&[], get(plain, both), "https", "8445"),
        (&[], get(plain, "X-Forwarded-Proto: https\r\n"), "https", "443"),
        (&[], get(plain, "X-Forwarded-Proto: wss\r\n"), "wss", "443"),
        (&[], get(plain, "X-Forwarded-Proto: https\r\nX-Forwarded-Port: 99999\r\n"), "https", "443"),
        (&[], get(with_port, "X-Forwarded-Port: x\r\n"), "http", "8443"),
        (&[], "GET http://www.example.com:81/ HTTP/1.1\r\nHost: x:82\r\n\r\n".into(), "http", "81"),
        (&[untrusting], get(plain, both), "http", "80"),
        (&[untrusting], get(with_port, both), "http", "8443"),
        (&[tls], get(plain, ""), "https", "443"),
        (&[tls], get(with_port, port), "https", "8445"),
        (&[https], get(plain, ""), "https", "443"),
        (&[https, untrusting], get(plain, "X-Forwarded-Proto: http\r\n"), "https", "443"),
        (&[https], get(plain, "X-Forwarded-Proto: http\r\n"), "http", "80"),
        (&[https], get(plain, "X-Forwarded-Proto: nonsense\r\n"), "https", "443"),
        (&[("HOSTWARD_CLIENT_PROTO", "http"), tls], get(plain, ""), "http", "80"),
        (&[proxy], V1.to_owned() + &get(plain, ""), "http", "443"),
        (&[proxy], V1.to_owned() + &get(with_port, ""), "http", "443"),
        (&[proxy], V1.to_owned() + &get(with_port, port), "http", "8445"),
        // This header names a client that isn't trusted.
        (&[proxy], V6.to_owned() + &get(with_port, both), "http", "8444"),
        (&[proxy, https], V6.to_owned() + &get(with_port, ""), "https", "8444"),
        (&[proxy], get(with_port, ""), "http", "8443"),
        (&[proxy], "PROXY UNKNOWN\r\n".to_owned() + &get(plain, ""), "http", "80"),
    ] {
        let task = Task::echo(settings);
        assert_eq!(scheme_and_port(&task, &request), (scheme.into(), expected.into()), "{settings:?}\n{request}");
    }
}

/// Both versions of the header; destination ports that are a scheme's own and that are not; `Host` with another port and
/// without one, so that nothing else could give the same number; and both schemes.
#[test]
fn the_port_of_a_proxy_header_counts_for_all_requests_of_the_connection() {
    for (port, high, low) in [("443", 0x01, 0xbb), ("8444", 0x20, 0xfc)] {
        let v1 = format!("PROXY TCP4 203.0.113.9 198.51.100.1 80 {port}\r\n").into_bytes();
        let addresses = [203, 0, 113, 9, 198, 51, 100, 1, 0, 80, high, low];
        let v2 = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(), &addresses].concat();
        for (header, scheme, pause) in
            [(&v1, "http", 0), (&v1, "https", 1_200), (&v2, "http", 0), (&v2, "https", 1_200)]
        {
            let task = Task::echo(&[("HOSTWARD_PROXY_PROTOCOL", "required"), ("HOSTWARD_CLIENT_PROTO", scheme)]);
            let mut client = task.client();
            client.send(header);
            for (pause, host) in [
                (0, "www.example.com:8443"),
                (0, "www.example.com"),
                // After the pause the connection is an idle one.
                (pause, "www.example.com:8443"),
                (0, "www.example.com"),
            ] {
                std::thread::sleep(std::time::Duration::from_millis(pause));
                client.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).expect(200);
                let received = task.app.last();
                let what = format!("{header:?} {host}, after {pause} ms");
                assert_eq!(received.all("x-forwarded-port"), [port], "{what}");
                assert_eq!(received.all("x-forwarded-proto"), [scheme], "{what}");
            }
        }
    }
}

#[test]
fn over_http_2_and_uwsgi_the_port_is_the_same() {
    let task = Task::echo(&[("HOSTWARD_CLIENT_PROTO", "https")]);
    for (url, port) in [("http://www.example.com/", "443"), ("http://www.example.com:8443/", "8443")] {
        let answer = http2::ask_once(task.hostward.address, http::Request::get(url).body(()).unwrap(), b"");
        assert_eq!(answer.status, 200);
        let received = task.app.last();
        assert_eq!((received.all("x-forwarded-port"), received.all("x-forwarded-proto")), (vec![port], vec!["https"]));
    }
    let app = UwsgiApp::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let url = app.url();
    let hostward = Hostward::start(&[
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
        ("HOSTWARD_UPSTREAM", &url),
        ("HOSTWARD_CLIENT_PROTO", "https"),
        ("HOSTWARD_CLIENT_IP_HEADER", "CF-Connecting-IP"),
    ]);
    let get = "GET / HTTP/1.1\r\nHost: www.example.com\r\nCF-Connecting-IP: 203.0.113.9\r\nX-Queue-Start: t=1\r\nX-Request-Start: t=1\r\n\r\n";
    wire::ask(hostward.address, get).expect(200);
    let packet = app.received().remove(0);
    for (name, value) in [
        ("SERVER_PORT", Some("443")),
        ("HTTP_X_FORWARDED_PORT", Some("443")),
        ("REQUEST_SCHEME", Some("https")),
        ("HTTPS", Some("on")),
        ("REMOTE_ADDR", Some("203.0.113.9")),
        ("REMOTE_PORT", Some("0")),
        ("HTTP_X_REAL_IP", Some("203.0.113.9")),
        ("HTTP_X_QUEUE_START", None),
    ] {
        assert_eq!(packet.value(name), value, "{name}");
    }
    is_now(packet.value("HTTP_X_REQUEST_START").unwrap_or_default());
}

/// Asserts that this is an `X-Request-Start` of the last seconds.
fn is_now(value: &str) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let millis: u128 = value.strip_prefix("t=").and_then(|digits| digits.parse().ok()).unwrap_or_default();
    assert!(now.abs_diff(millis) < 5_000, "{value}, and it is {now}");
}

#[test]
fn the_start_of_a_request_is_always_hostwards_own() {
    for trusted in ["private", "none"] {
        let task = Task::echo(&[("HOSTWARD_TRUSTED_PROXIES", trusted)]);
        for fields in
            ["", "X-Request-Start: t=1\r\nx-request-start: 2\r\nX-Queue-Start: t=1\r\nX_Request_Start: t=1\r\n"]
        {
            let received = task.admitted(request(fields));
            let [start] = received.all("x-request-start")[..] else { panic!("{}", received.head) };
            is_now(start);
            assert!(received.all("x-queue-start").is_empty(), "{}", received.head);
        }
    }
    // It is when the head came, not when the body was complete.
    let task = Task::echo(&[]);
    let mut client = task.client();
    client.send("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 5\r\n\r\nhel");
    // On a busy machine that takes time.
    eventually("the head has come", || {
        let metrics = wire::get(task.hostward.admin, "localhost", "/metrics").expect(200).text();
        metrics.contains("\nhttp_server_active_requests 1\n").then_some(())
    });
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    client.ask("lo").expect(200);
    let start: u128 = task.app.last().field("x-request-start").unwrap()[2..].parse().unwrap();
    assert!((1_000..5_000).contains(&before.saturating_sub(start)), "{before} {start}");
}

#[test]
fn a_named_header_holds_the_clients_address_when_a_trusted_peer_sends_it() {
    let ask = |task: &Task, name: &str, fields: &str| {
        let received = task.admitted(format!("GET /named HTTP/1.1\r\nHost: www.example.com\r\n{fields}\r\n"));
        let passed = received.all(name).len();
        (received.field("x-real-ip").unwrap_or_default().to_owned(), passed)
    };
    for name in ["CloudFront-Viewer-Address", "CF-Connecting-IP", "True-Client-IP", "X-Client-IP"] {
        let task = Task::echo(&[("HOSTWARD_CLIENT_IP_HEADER", name), ("HOSTWARD_FORWARDED", "on")]);
        for (value, client) in [
            ("203.0.113.9", "203.0.113.9"),
            ("203.0.113.9:46532", "203.0.113.9"),
            ("[2001:db8::9]:46532", "2001:db8::9"),
            ("2001:db8:0:0:0:0:0:9:46532", "2001:db8::9"),
            ("2001:db8::9:46532", "2001:db8::9"),
            // A private one too: it is the peer's word.
            ("10.0.0.9", "10.0.0.9"),
        ] {
            let fields = format!("X-Forwarded-For: 198.51.100.1\r\n{}: {value}\r\n", name.to_lowercase());
            assert_eq!(ask(&task, name, &fields), (client.into(), 1), "{name}: {value}");
            let forwarded = task.app.last().field("forwarded").unwrap_or_default().to_owned();
            assert!(forwarded.contains(client), "{forwarded}");
            assert_eq!(task.app.last().field("x-forwarded-for"), Some("198.51.100.1, 127.0.0.1"));
        }
        for value in ["", "unknown", "203.0.113.9, 203.0.113.10", "203.0.113.9:99999", "203.0.113.999", "a b"] {
            let fields = format!("X-Forwarded-For: 198.51.100.1\r\n{name}: {value}\r\n");
            assert_eq!(ask(&task, name, &fields), ("198.51.100.1".into(), 0), "{name}: {value}");
        }
        let twice = format!("{name}: 203.0.113.9\r\nX-Forwarded-For: 198.51.100.1\r\n{name}: 203.0.113.9\r\n");
        assert_eq!(ask(&task, name, &twice), ("198.51.100.1".into(), 0));
        let option = format!("Connection: {name}\r\n{name}: 203.0.113.9\r\n");
        assert_eq!(ask(&task, name, &option), ("203.0.113.9".into(), 1));
        assert_eq!(ask(&task, name, ""), ("127.0.0.1".into(), 0));
        let untrusting = [("HOSTWARD_CLIENT_IP_HEADER", name), ("HOSTWARD_TRUSTED_PROXIES", "192.0.2.0/24")];
        let fields = format!("{name}: 203.0.113.9\r\n");
        assert_eq!(ask(&Task::echo(&untrusting), name, &fields), ("127.0.0.1".into(), 0));
        // Without the setting it is a header like any other.
        assert_eq!(ask(&Task::echo(&[]), name, &fields), ("127.0.0.1".into(), 1));
    }
    let task = Task::echo(&[("HOSTWARD_CLIENT_IP_HEADER", "X-Real-IP")]);
    assert_eq!(ask(&task, "x-real-ip", "X-Real-IP: 203.0.113.9\r\n"), ("203.0.113.9".into(), 1));
    assert_eq!(task.hostward.request_line("/named")["client_ip"], "203.0.113.9");
    // Of a request that is rejected, too.
    task.turned_away("GET / HTTP/1.1\r\nHost: evil.example\r\nX-Real-IP: 203.0.113.9\r\n\r\n", 421);
    let denied = task.hostward.line(|line| line["msg"] == "request denied");
    assert_eq!(denied["client_ip"], "203.0.113.9", "{denied}");
}

#[test]
fn a_traceparent_is_derived_from_a_load_balancers_trace_when_that_is_wanted() {
    const ROOT: &str = "Root=1-67891233-abcdef012345678912345678";
    const ID: &str = "67891233abcdef012345678912345678";
    let derive = ("HOSTWARD_TRACE_CONTEXT", "derive");
    let task = Task::echo(&[derive]);
    let derived = |fields: &str| {
        let received = task.admitted(request(fields));
        received.all("traceparent").into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let [made] = &derived(&format!("X-Amzn-Trace-Id: Self=1-1-2;{ROOT}\r\n"))[..] else { panic!("no traceparent") };
    let parts: Vec<&str> = made.split('-').collect();
    assert!(parts.len() == 4 && (parts[0], parts[1], parts[3]) == ("00", ID, "00"), "{made}");
    assert!(parts[2].len() == 16 && parts[2] != "0000000000000000", "{made}");
    let [other] = &derived(&format!("X-Amzn-Trace-Id: {ROOT}\r\n"))[..] else { panic!("no traceparent") };
    assert_ne!(made, other);
    let sampled = format!("X-Amzn-Trace-Id: {ROOT};Parent=53995c3f42cd8ad8;Sampled=1\r\n");
    assert_eq!(derived(&sampled), [format!("00-{ID}-53995c3f42cd8ad8-01")]);
    let own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(derived(&format!("{sampled}traceparent: {own}\r\n")), [own]);
    for nothing in ["", "X-Amzn-Trace-Id: Self=1-2-3\r\n", "X-Amzn-Trace-Id: Root=1-2-3\r\n"] {
        assert!(derived(nothing).is_empty(), "{nothing}");
    }
    for settings in [&[][..], &[derive, ("HOSTWARD_TRUSTED_PROXIES", "192.0.2.0/24")]] {
        let received = Task::echo(settings).admitted(request(&sampled));
        assert!(received.all("traceparent").is_empty(), "{settings:?} {}", received.head);
        assert_eq!(received.all("x-amzn-trace-id").len(), 1);
    }
}
