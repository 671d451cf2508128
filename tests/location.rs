//! Contract 3: what an app that sees the canonical host sends clients to; and apps that send them in circles.

use bytes::Bytes;
use http::{Request, Response};

use crate::support::Task;
use crate::support::app::{Then, answer};
use crate::support::hostward::Hostward;
use crate::support::http2::{self, ask_once};
use crate::support::uwsgi::UwsgiApp;
use crate::support::wire::{self, Answer};

const CANONICAL: [(&str, &str); 2] =
    [("HOSTWARD_HOST_REWRITE", "canonical"), ("HOSTWARD_CANONICAL_HOST", "localhost:8000")];
const SAME: &str = "app redirects to the same URL";

/// An app that answers with what the client asks for: `GET /<location>`, URL-safe as it is.
fn redirecting(settings: &[(&str, &str)]) -> Task {
    Task::start(settings, |talk| {
        let location = talk.request.target.strip_prefix("/to?").unwrap_or_default().to_owned();
        let fields = format!("Location: {location}\r\nContent-Location: {location}\r\nX-Location: {location}\r\n");
        // Chunked now and then: that goes through hyper.
        if talk.request.field("x-chunked").is_some() {
            return talk.reply(format!("HTTP/1.1 302 Found\r\n{fields}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"));
        }
        talk.reply(answer("302 Found", &fields, ""))
    })
}

fn to(task: &Task, location: &str, fields: &str) -> Answer {
    task.ask(format!("GET /to?{location} HTTP/1.1\r\nHost: www.example.com:8443\r\n{fields}\r\n"))
}

#[test]
fn under_host_rewrite_canonical_the_canonical_host_becomes_the_clients() {
    let task = redirecting(&CANONICAL);
    let https = "X-Forwarded-Proto: https\r\n";
    let (own, app) = (task.hostward.address.port(), task.app.address.port());
    for (location, fields, expected) in [
        ("http://localhost:8000/mcp/", https, "https://www.example.com:8443/mcp/"),
        ("https://localhost:8000/mcp/?a=b", https, "https://www.example.com:8443/mcp/?a=b"),
        ("http://localhost/mcp/", https, "https://www.example.com:8443/mcp/"),
        (&format!("https://localhost:{own}/mcp/"), https, "https://www.example.com:8443/mcp/"),
        (&format!("https://localhost:{app}/mcp/"), https, "https://www.example.com:8443/mcp/"),
        ("HTTP://LOCALHOST:8000/a", https, "https://www.example.com:8443/a"),
        ("http://localhost:8000/a", "", "http://www.example.com:8443/a"),
        ("https://localhost:8000/a", "", "http://www.example.com:8443/a"),
        ("//localhost:8000/a", https, "//www.example.com:8443/a"),
        ("/mcp/", https, "/mcp/"),
        ("mcp/", https, "mcp/"),
        ("http://other.example/", https, "http://other.example/"),
        ("http://localhost:8000.evil.example/", https, "http://localhost:8000.evil.example/"),
        ("http://user@localhost:8000/", https, "http://user@localhost:8000/"),
    ] {
        for chunked in ["", "X-Chunked: 1\r\n"] {
            let answer = to(&task, location, &format!("{fields}{chunked}")).expect(302);
            assert_eq!(answer.field("location"), Some(expected), "{location} {chunked}");
            assert_eq!(answer.field("content-location"), Some(expected), "{location} {chunked}");
            assert_eq!(answer.field("x-location"), Some(location));
        }
        let received = task.app.last();
        assert_eq!(received.all("host"), ["localhost:8000"]);
        assert_eq!(received.all("x-forwarded-host"), ["www.example.com:8443"]);
        assert_eq!(received.all("x-forwarded-port"), ["8443"]);
    }
    // An app that sends HTTP to HTTPS means it.
    let task = Task::start(&CANONICAL, |talk| {
        talk.reply(answer("301 Moved Permanently", "Location: https://localhost:8000/a?b\r\n", ""))
    });
    let answer = task.ask("GET /a?b HTTP/1.1\r\nHost: www.example.com:8443\r\nX-Forwarded-Proto: http\r\n\r\n");
    assert_eq!(answer.field("location"), Some("https://www.example.com/a?b"));
}

#[test]
fn a_location_passes_as_it_is_without_the_setting_and_to_health_checks() {
    let task = redirecting(&[("HOSTWARD_CANONICAL_HOST", "localhost:8000")]);
    let location = "http://localhost:8000/a";
    assert_eq!(to(&task, location, "").field("location"), Some(location));
    let task = redirecting(&CANONICAL);
    let answer = task.ask(format!("GET /to?{location} HTTP/1.1\r\nHost: {}\r\n\r\n", task.hostward.address));
    assert_eq!(answer.expect(302).field("location"), Some(location));
}

#[test]
fn over_http_2_uwsgi_and_h2c_a_location_is_rewritten_too() {
    let head = "HTTP/1.1 302 Found\r\nLocation: http://localhost:8000/a\r\nContent-Length: 0\r\n\r\n";
    let uwsgi = UwsgiApp::answering(head);
    let h2c = http2::App::start(100, |mut talk| async move {
        let head = Response::builder().status(302).header("location", "http://localhost:8000/a").body(()).unwrap();
        talk.begin(head).send_data(Bytes::new(), true).ok();
    });
    let task = redirecting(&CANONICAL);
    for url in [uwsgi.url(), h2c.url(), task.app.url()] {
        let mut settings = vec![("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", url.as_str())];
        settings.extend(CANONICAL);
        let hostward = Hostward::start(&settings);
        let target = "/to?http://localhost:8000/a";
        let answer = wire::get(hostward.address, "www.example.com", target).expect(302);
        assert_eq!(answer.field("location"), Some("http://www.example.com/a"), "{url}");
        let request = Request::get(format!("http://www.example.com{target}")).header("x-forwarded-proto", "https");
        let answer = ask_once(hostward.address, request.body(()).unwrap(), b"");
        assert_eq!(answer.fields["location"], "https://www.example.com/a", "{url}");
    }
}

/// Whether hostward says that the app redirects to the same URL.
fn is_said(settings: &[(&str, &str)], location: &'static str, fields: &str) -> bool {
    let task = Task::start(settings, move |talk| {
        talk.reply(answer("301 Moved Permanently", &format!("Location: {location}\r\n"), ""));
        Then::Keep
    });
    for _ in 0..2 {
        task.ask(format!("GET /a?b=c HTTP/1.1\r\nHost: www.example.com\r\n{fields}\r\n")).expect(301);
    }
    task.hostward.request_line("/a");
    let lines = task.hostward.lines();
    let said: Vec<_> = lines.iter().filter(|line| line["msg"] == SAME).collect();
    assert!(said.len() <= 1, "{said:?}");
    for line in &said {
        let hint = line["hint"].as_str().unwrap_or_default();
        assert!(hint.contains("HOSTWARD_CLIENT_PROTO=https") && hint.contains("HOSTWARD_TRUSTED_PROXIES"), "{line}");
        assert_eq!((&line["path"], &line["host"]), (&"/a".into(), &"www.example.com".into()), "{line}");
    }
    !said.is_empty()
}

/// C2 before apps of the other protocols, for clients of both versions.
#[test]
fn an_app_of_another_protocol_that_redirects_to_the_same_url_is_named_as_well() {
    let uwsgi = UwsgiApp::answering(
        "HTTP/1.1 301 Moved Permanently\r\nLocation: https://www.example.com/a?b=c\r\nContent-Length: 0\r\n\r\n",
    );
    let h2c = http2::App::start(100, |mut talk| async move {
        let response = Response::builder().status(301).header("location", "https://www.example.com/a?b=c");
        talk.begin(response.body(()).unwrap()).send_data(Bytes::new(), true).ok();
    });
    for url in [uwsgi.url(), h2c.url()] {
        for http2 in [false, true] {
            for (proto, said) in [(None, 1), (Some("https"), 0), (Some("http"), 0)] {
                let hostward =
                    Hostward::start(&[("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", &url)]);
                for _ in 0..2 {
                    let status = if http2 {
                        let mut request = Request::get("http://www.example.com/a?b=c");
                        if let Some(proto) = proto {
                            request = request.header("x-forwarded-proto", proto);
                        }
                        ask_once(hostward.address, request.body(()).unwrap(), b"").status
                    } else {
                        let field = proto.map_or_else(String::new, |proto| format!("X-Forwarded-Proto: {proto}\r\n"));
                        let head = format!("GET /a?b=c HTTP/1.1\r\nHost: www.example.com\r\n{field}\r\n");
                        wire::ask(hostward.address, head).status
                    };
                    assert_eq!(status, 301, "{url}");
                }
                hostward.request_line("/a");
                let lines: Vec<_> = hostward.lines().into_iter().filter(|line| line["msg"] == SAME).collect();
                assert_eq!(lines.len(), said, "{url}, HTTP/2: {http2}, {proto:?}: {lines:?}");
                for line in lines {
                    let hint = line["hint"].as_str().unwrap_or_default();
                    assert!(hint.contains("HOSTWARD_CLIENT_PROTO=https") && line["path"] == "/a", "{line}");
                }
            }
        }
    }
}

#[test]
fn an_app_that_redirects_to_the_url_that_was_asked_is_named_in_the_log() {
    let same = "https://www.example.com/a?b=c";
    assert!(is_said(&[], same, ""));
    assert!(is_said(&[], "https://WWW.example.com:8123/a?b=c", ""));
    assert!(is_said(&[("HOSTWARD_TRUSTED_PROXIES", "192.0.2.0/24")], same, "X-Forwarded-Proto: https\r\n"));
    assert!(is_said(&CANONICAL, "https://localhost:8000/a?b=c", ""));
    // Elsewhere, or where it is known what the client uses.
    for location in ["https://www.example.com/a", "https://example.com/a?b=c", "http://www.example.com/a?b=c", "/a?b=c"]
    {
        assert!(!is_said(&[], location, ""), "{location}");
    }
    assert!(!is_said(&[], same, "X-Forwarded-Proto: http\r\n"));
    assert!(!is_said(&[], same, "X-Forwarded-Proto: https\r\n"));
    assert!(!is_said(&[("HOSTWARD_CLIENT_PROTO", "https")], same, ""));
    assert!(!is_said(&[("HOSTWARD_TLS", "self-signed")], same, ""));
}
