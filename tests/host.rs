//! Contract 1: which `Host` enters, with what the app sees of it, and which doesn't.

use crate::support::Task;
use crate::support::wire::text;

fn request(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

/// Every host of `enter` reaches the app byte for byte; every one of `stay_out` is answered 421 and doesn't.
fn check(allowed: &str, enter: &[&str], stay_out: &[&str]) {
    let task = Task::echo(&[("HOSTWARD_ALLOWED_HOSTS", allowed), ("HOSTWARD_CANONICAL_HOST", "canonical.example")]);
    for host in enter {
        let received = task.admitted(request(host));
        assert_eq!(received.field("host"), Some(*host), "allowed: {allowed}");
        assert_eq!(received.field("x-forwarded-host"), Some(*host), "allowed: {allowed}");
    }
    for host in stay_out {
        task.turned_away(request(host), 421);
    }
}

#[test]
fn an_exact_host_enters_byte_for_byte_with_any_port() {
    check(
        "www.example.com",
        &[
            "www.example.com",
            "WWW.Example.COM",
            "www.example.com.",
            "www.example.com:80",
            "www.example.com:65535",
            "wWw.example.com.:8443",
        ],
        &[
            "example.com",
            "a.www.example.com",
            "www.example.com.evil.example",
            "evilwww.example.com",
            "www-example.com",
            "wwwxexample.com",
            "www.example.co",
            "evil.example",
            "localhost.localdomain",
            "10.9.9.9",
            "10.9.9.9:8080",
            "[2001:db8::1]",
        ],
    );
}

#[test]
fn a_leading_dot_allows_the_domain_and_its_subdomains() {
    check(
        ".example.com",
        &["example.com", "EXAMPLE.com:81", "www.example.com", "a.b.example.com", "a.example.com."],
        &["evilexample.com", "example.com.evil.example", "example.org", "com"],
    );
}

#[test]
fn a_star_allows_subdomains_only() {
    check(
        "*.example.com",
        &["www.example.com", "a.b.example.com:8080"],
        &["example.com", "evilexample.com", "example.com:80"],
    );
}

#[test]
fn addresses_are_compared_as_addresses() {
    check(
        "192.0.2.7 [2001:db8::7]",
        &["192.0.2.7", "192.0.2.7:8080", "[2001:db8::7]", "[2001:DB8:0::0007]:8080"],
        &["192.0.2.8", "192.0.2.07", "0xc0.0.2.7", "3221225991", "[2001:db8::8]", "192.0.2.7.evil.example"],
    );
}

#[test]
fn a_network_allows_the_addresses_in_it() {
    check(
        "192.0.2.0/25,2001:db8:1::/64",
        &["192.0.2.0", "192.0.2.127:8080", "[2001:db8:1::5]:80"],
        &["192.0.2.128", "192.0.3.0", "[2001:db8:2::5]", "a192.0.2.1"],
    );
}

#[test]
fn networks_may_overlap_and_come_in_any_order() {
    for allowed in ["10.0.0.0/16,10.0.0.0/8", "10.0.0.0/8,10.0.0.0/16", "10.128.0.0/9 10.0.0.0/9 10.3.0.0/16"] {
        check(
            allowed,
            &["10.0.0.1", "10.0.255.255", "10.1.0.0", "10.255.255.255:8080"],
            &["9.255.255.255", "11.0.0.0", "[fd00::1]"],
        );
    }
    check(
        "fd00::/8,2001:db8::/32",
        &["[fd00::1]", "[fdff:ffff::1]:80", "[2001:db8::1]", "[2001:db8:ffff::1]"],
        &["[fc00::1]", "[fe00::1]", "[2001:db7::1]", "[2001:db9::1]", "10.0.0.1"],
    );
    check("2001:db8::/32,10.0.0.0/8,fd00::/8", &["[fd00::1]", "[2001:db8::1]", "10.0.0.1"], &["[fe00::1]", "11.0.0.1"]);
}

/// RFC 3986 §3.2.3: a port may be empty, which means none.
#[test]
fn an_empty_port_means_none_and_is_forwarded() {
    check(
        "www.example.com ::1 192.0.2.7",
        &["www.example.com:", "WWW.example.com.:", "[::1]:", "192.0.2.7:"],
        &["evil.example:", "[::2]:"],
    );
    check("www.example.com:443", &["www.example.com:443"], &["www.example.com:", "www.example.com"]);
    let task = Task::echo(&[]);
    let received = task.admitted("GET http://www.example.com:/a HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    assert_eq!((received.target.as_str(), received.field("host")), ("/a", Some("www.example.com:")));
    // Also in a health check.
    let address = task.hostward.address.ip();
    assert_eq!(task.admitted(request(&format!("{address}:"))).field("host"), Some("www.example.com"));
    let http2 = http::Request::get("http://www.example.com:/b").body(()).unwrap();
    assert_eq!(crate::support::http2::ask_once(task.hostward.address, http2, b"").status, 200);
    assert_eq!(task.app.last().field("host"), Some("www.example.com:"));
}

/// Apps compare hosts with patterns: to Django, `.example.com` allows `a.example.com`, and nothing with another character.
#[test]
fn a_name_has_letters_digits_hyphens_underscores_and_dots_alone() {
    let task = Task::echo(&[("HOSTWARD_ALLOWED_HOSTS", ".example.com")]);
    for host in ["a.example.com", "A-1_b.example.com", "_.example.com", "-a.example.com", "xn--bcher-kva.example.com"] {
        assert_eq!(task.admitted(request(host)).field("host"), Some(host));
    }
    for character in "!\"#$%&'()*+,/;<=>?@[\\]^`{|}~".chars() {
        for host in [
            format!("a{character}b.example.com"),
            format!("{character}.example.com"),
            format!("a.example.com{character}"),
            format!("{character}a.example.com:80"),
        ] {
            task.turned_away(request(&host), 400);
            task.turned_away(format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n"), 400);
        }
    }
    for target in
        ["http://*.example.com/", "http://a'b.example.com/", "http://a;b.example.com", "http://a%41.example.com/"]
    {
        task.turned_away(format!("GET {target} HTTP/1.1\r\nHost: a.example.com\r\n\r\n"), 400);
    }
}

#[test]
fn a_star_alone_allows_everything_that_is_a_host() {
    check("*", &["evil.example", "10.9.9.9:8080", "[2001:db8::1]"], &[]);
    let task = Task::echo(&[("HOSTWARD_ALLOWED_HOSTS", "*"), ("HOSTWARD_PROBE_HOSTS", "none")]);
    let warned =
        task.hostward.line(|line| line["level"] == "WARN" && line.to_string().contains("HOSTWARD_ALLOWED_HOSTS"));
    assert!(warned["hint"].is_string(), "{warned}");
    task.turned_away(request("user@evil.example"), 400);
}

#[test]
fn an_entry_with_a_port_wants_that_port() {
    check(
        "www.example.com:8443 .example.org:81 192.0.2.7:82",
        &["www.example.com:8443", "WWW.example.com:8443", "a.example.org:81", "192.0.2.7:82"],
        &[
            "www.example.com",
            "www.example.com:443",
            "www.example.com:8444",
            "a.example.org",
            "a.example.org:80",
            "192.0.2.7",
        ],
    );
}

#[test]
fn a_long_list_is_as_strict_as_a_short_one() {
    for length in [1, 100, 101, 1000] {
        let list: Vec<String> = (0..length).map(|number| format!("host{number}.example.com")).collect();
        let last = format!("HOST{}.Example.com", length - 1);
        check(&list.join(","), &["host0.example.com", &last], &[&format!("host{length}.example.com"), "example.com"]);
    }
}

#[test]
fn what_is_no_host_is_400() {
    let task = Task::echo(&[("HOSTWARD_ALLOWED_HOSTS", "www.example.com,.example.com,192.0.2.0/24")]);
    let hosts: &[&[u8]] = &[
        b"",
        b" ",
        b":80",
        b".",
        b"www.example.com::",
        b"www.example.com:000080",
        b"[::1]:000443",
        b"www.example.com%2eevil.example",
        b"*.example.com",
        b"a'b.example.com",
        b"a;b.example.com",
        b"www.example.com:65536",
        b"www.example.com:080808",
        b"www.example.com:80:80",
        b"www.example.com:-1",
        b"www.example.com:+80",
        b"www.example.com:http",
        b"www.example.com: 80",
        b"user@www.example.com",
        b"user:password@www.example.com",
        b"@www.example.com",
        b"www.example.com@evil.example",
        b"www.example.com,evil.example",
        b"www.example.com, www.example.com",
        b"www.example.com evil.example",
        b"www.example.com\tevil.example",
        b"www.example.com/",
        b"www.example.com/evil.example",
        b"www.example.com?a",
        b"www.example.com#a",
        b"www.example.com\\evil",
        b"http://www.example.com",
        b"www.example.com\0",
        b"www.example.com\0.evil.example",
        b"\x01www.example.com",
        b"www.\xc3\xa9xample.com",
        b"www.example.com\xff",
        b"\xef\xbd\x97ww.example.com",
        b"www..example.com",
        b".example.com",
        b"[::1",
        b"::1]",
        b"[::1]x",
        b"[fe80::1%25eth0]",
        b"[fe80::1%eth0]",
        b"2001:db8::1",
        b"[192.0.2.1]",
        b"[]",
        b"www.example.com\x0b",
        b"www.example.com\x7f",
        b"%zz.example.com",
        b"\"www.example.com\"",
        b"<www.example.com>",
    ];
    for host in hosts {
        let mut bytes = b"GET / HTTP/1.1\r\nHost: ".to_vec();
        bytes.extend_from_slice(host);
        bytes.extend_from_slice(b"\r\n\r\n");
        let answer = task.turned_away(bytes, 400);
        assert!(answer.closes(), "Host {:?}: {}", text(host), answer.head);
    }
}

#[test]
fn exactly_one_host_line_is_wanted() {
    let task = Task::echo(&[]);
    for fields in [
        "Host: www.example.com\r\nHost: www.example.com\r\n",
        "Host: www.example.com\r\nHost: evil.example\r\n",
        "Host: evil.example\r\nHost: www.example.com\r\n",
        "Host: www.example.com\r\nhOST: 10.9.9.9\r\n",
        "Host: www.example.com\r\nAccept: */*\r\nHost:\r\n",
        "Accept: */*\r\n",
        "",
    ] {
        task.turned_away(format!("GET / HTTP/1.1\r\n{fields}\r\n"), 400);
    }
    task.turned_away("GET / HTTP/1.0\r\nHost: www.example.com\r\nHost: www.example.com\r\n\r\n", 400);
}

#[test]
fn http_1_0_needs_a_host_too() {
    let task = Task::echo(&[]);
    task.turned_away("GET / HTTP/1.0\r\n\r\n", 421);
    task.turned_away("GET / HTTP/1.0\r\nHost: evil.example\r\n\r\n", 421);
    let received = task.admitted("GET / HTTP/1.0\r\nHost: www.example.com\r\n\r\n");
    assert_eq!(received.field("host"), Some("www.example.com"));
    assert_eq!(received.version, "HTTP/1.1");
}

/// RFC 9112 §3.2.2
#[test]
fn the_authority_of_an_absolute_form_target_wins() {
    let task = Task::echo(&[]);
    for (target, origin) in [
        ("http://www.example.com/a/b?c=%2F&d", "/a/b?c=%2F&d"),
        ("http://www.example.com", "/"),
        ("HTTP://www.example.com/", "/"),
        ("https://www.example.com/x", "/x"),
    ] {
        for host in ["evil.example", "www.example.com", "10.9.9.9"] {
            let received = task.admitted(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(
                (received.target.as_str(), received.field("host")),
                (origin, Some("www.example.com")),
                "{target}"
            );
            assert_eq!(received.field("x-forwarded-host"), Some("www.example.com"), "{target}");
        }
    }
    let received = task.admitted("GET http://WWW.example.com:8443?q HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    assert_eq!((received.target.as_str(), received.field("host")), ("/?q", Some("WWW.example.com:8443")));
    for target in ["http://evil.example/", "http://10.9.9.9:80/", "http://www.example.com.evil.example/"] {
        task.turned_away(format!("GET {target} HTTP/1.1\r\nHost: www.example.com\r\n\r\n"), 421);
    }
    for target in [
        "http://user@www.example.com/",
        "http:///",
        "http://",
        "http://www.example.com:99999/",
        "http://www.example.com,x/",
    ] {
        task.turned_away(format!("GET {target} HTTP/1.1\r\nHost: www.example.com\r\n\r\n"), 400);
    }
}

#[test]
fn targets_that_name_nothing_are_400() {
    let task = Task::echo(&[]);
    for target in ["*", "foo", "www.example.com", "www.example.com:80", "?a=b", "#a", "../..", "mailto:x", "/a b"] {
        task.turned_away(format!("GET {target} HTTP/1.1\r\nHost: www.example.com\r\n\r\n"), 400);
    }
}

#[test]
fn the_target_reaches_the_app_byte_for_byte() {
    let task = Task::echo(&[]);
    for target in [
        "/",
        "//",
        "//evil.example/",
        "/a//b/../c/./d",
        "/%2e%2e/%00/%zz",
        "/a;b=c?d=e&f=%20&g[]=h",
        "/?",
        "/a?b?c",
        "/http://x/",
        "/~!$&'()*+,;=:@",
        "/a?x=http://evil.example/",
        "/%C3%A9",
    ] {
        let received = task.admitted(format!("GET {target} HTTP/1.1\r\nHost: www.example.com\r\n\r\n"));
        assert_eq!((received.target.as_str(), received.field("host")), (target, Some("www.example.com")));
    }
}

#[test]
fn options_asterisk_reaches_the_app() {
    let task = Task::echo(&[]);
    assert_eq!(task.admitted("OPTIONS * HTTP/1.1\r\nHost: www.example.com\r\n\r\n").target, "*");
    task.turned_away("OPTIONS * HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421);
}

/// RFC 9112 §3.2.4: without a path and a query, an absolute form with `OPTIONS` stands for the server as a whole.
#[test]
fn options_of_an_absolute_form_without_a_path_is_an_asterisk() {
    let task = Task::echo(&[]);
    for (method, target, origin) in [
        ("OPTIONS", "http://www.example.com", "*"),
        ("OPTIONS", "https://www.example.com:8443", "*"),
        ("OPTIONS", "http://www.example.com/", "/"),
        ("OPTIONS", "http://www.example.com?q", "/?q"),
        ("OPTIONS", "http://www.example.com/?", "/?"),
        ("OPTIONS", "http://www.example.com/a", "/a"),
        ("GET", "http://www.example.com", "/"),
        ("options", "http://www.example.com", "/"),
    ] {
        let received = task.admitted(format!("{method} {target} HTTP/1.1\r\nHost: www.example.com\r\n\r\n"));
        assert_eq!((received.method.as_str(), received.target.as_str()), (method, origin), "{target}");
    }
    task.turned_away("OPTIONS http://evil.example HTTP/1.1\r\nHost: www.example.com\r\n\r\n", 421);
}

#[test]
fn connect_and_trace_are_405() {
    let task = Task::echo(&[]);
    let answer = task.turned_away("CONNECT www.example.com:443 HTTP/1.1\r\nHost: www.example.com:443\r\n\r\n", 405);
    assert!(answer.closes(), "{}", answer.head);
    task.turned_away("CONNECT 169.254.170.2:80 HTTP/1.1\r\nHost: www.example.com\r\n\r\n", 405);
    task.turned_away("CONNECT / HTTP/1.1\r\nHost: www.example.com\r\n\r\n", 405);
    task.turned_away("TRACE / HTTP/1.1\r\nHost: www.example.com\r\n\r\n", 405);
}

#[test]
fn other_methods_pass_as_they_are() {
    let task = Task::echo(&[]);
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "get", "BREW"] {
        assert_eq!(task.admitted(format!("{method} / HTTP/1.1\r\nHost: www.example.com\r\n\r\n")).method, method);
    }
}

#[test]
fn with_host_rewrite_canonical_the_app_sees_one_host() {
    let task = Task::echo(&[("HOSTWARD_ALLOWED_HOSTS", ".example.com"), ("HOSTWARD_HOST_REWRITE", "canonical")]);
    let received = task.admitted(request("www.example.com:8443"));
    assert_eq!(received.field("host"), Some("example.com"));
    assert_eq!(received.all("x-forwarded-host"), ["www.example.com:8443"]);
    task.turned_away(request("evil.example"), 421);
}

#[test]
fn with_host_policy_report_strangers_enter_and_are_logged() {
    let task = Task::echo(&[("HOSTWARD_HOST_POLICY", "report")]);
    let received = task.admitted("GET /stranger HTTP/1.1\r\nHost: evil.example:81\r\n\r\n");
    assert_eq!(received.field("host"), Some("evil.example:81"));
    let line = task.hostward.request_line("/stranger");
    assert_eq!(
        (&line["decision"], &line["status"], &line["host"]),
        (&"reported".into(), &200.into(), &"evil.example:81".into())
    );
    // What is malformed has no host that could be forwarded.
    task.turned_away(request("user@evil.example"), 400);
    assert_eq!(
        task.admitted("GET /known HTTP/1.1\r\nHost: www.example.com\r\n\r\n").field("host"),
        Some("www.example.com")
    );
    assert_eq!(task.hostward.request_line("/known")["decision"], "allowed");
}

#[test]
fn a_stranger_gets_the_status_of_the_setting() {
    for status in ["400", "403", "404", "421"] {
        let task = Task::echo(&[("HOSTWARD_REJECT_STATUS", status)]);
        let answer = task.turned_away(request("evil.example"), status.parse().unwrap());
        let body = answer.text();
        assert!(!body.contains("evil.example") && !body.contains("www.example.com"), "{body}");
        assert!(
            answer.field("proxy-status").is_some_and(|value| value.starts_with("hostward; error=")),
            "{}",
            answer.head
        );
        let denied = task.hostward.line(|line| line["msg"] == "request denied");
        assert_eq!(denied["host"], "evil.example", "{denied}");
        assert_eq!(denied["peer_ip"], "127.0.0.1", "{denied}");
        assert!(denied["hint"].as_str().is_some_and(|hint| hint.contains("HOSTWARD_ALLOWED_HOSTS")), "{denied}");
    }
}

#[test]
fn a_stranger_gets_nothing_with_444() {
    let task = Task::echo(&[("HOSTWARD_REJECT_STATUS", "444")]);
    let mut client = task.client();
    client.send("GET /silent HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    client.assert_closed();
    assert_eq!(task.app.count(), 0);
    let line = task.hostward.request_line("/silent");
    assert_eq!((&line["status"], &line["decision"]), (&444.into(), &"refused".into()));
}

#[test]
fn each_request_of_a_connection_is_judged() {
    let task = Task::echo(&[]);
    let mut client = task.client();
    client.ask(request("www.example.com")).expect(200);
    client.ask(request("evil.example")).expect(421);
    assert_eq!(task.app.count(), 1);
    // Whether the connection goes on after a refusal is hostward's choice; another client may have the rest.
    let mut pipelined = task.client();
    pipelined.send([request("www.example.com"), request("10.9.9.9:8080")].concat());
    pipelined.answer().expect(200);
    pipelined.answer().expect(421);
    assert_eq!(task.app.count(), 2);
}
