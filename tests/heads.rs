//! Long heads, both ways: up to 1,000 header lines and `MAX_RESPONSE_HEADER_SIZE` pass, whatever the app and the client
//! speak; what is beyond has a name of its own in the log.

use std::io::Write;

use http::Response;
use serde_json::Value;

use crate::support::Task;
use crate::support::app::{App, Then};
use crate::support::hostward::Hostward;
use crate::support::http2::{self, Conversation};
use crate::support::uwsgi::UwsgiApp;
use crate::support::wire::{Answer, Client};

const GET: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
/// More than stays in memory, so that the request goes out another way than one that is whole.
const SPOOLED: usize = 3 << 20;

/// So many header lines of a response, with this much in all of them together.
fn lines(count: usize, bytes: usize) -> Vec<(String, String)> {
    let each = (bytes / count).saturating_sub("x-0000: \r\n".len()).max(1);
    (0..count).map(|number| (format!("x-{number:04}"), "v".repeat(each))).collect()
}

fn written(lines: &[(String, String)]) -> String {
    lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<Vec<_>>().concat()
}

/// The ways that a response comes from an app.
const WAYS: [&str; 6] = ["length", "chunked", "close", "uploaded", "uwsgi", "h2c"];

/// What a client gets when the app answers with these lines, and the hostward whose log says why if they are rejected.
fn answered(way: &str, lines: Vec<(String, String)>, settings: &[(&str, &str)]) -> (Answer, Hostward) {
    let head = written(&lines);
    let (_apps, url): (Box<dyn std::any::Any>, String) = match way {
        "uwsgi" => {
            let app = UwsgiApp::answering(format!("HTTP/1.1 200 OK\r\n{head}\r\nhere"));
            let url = app.url();
            (Box::new(app), url)
        }
        "h2c" => {
            let app = http2::App::start(100, move |mut talk: Conversation| {
                let mut response = Response::new(());
                for (name, value) in &lines {
                    let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
                    response.headers_mut().append(name, value.parse().unwrap());
                }
                async move {
                    talk.begin(response).send_data("here".into(), true).unwrap();
                }
            });
            let url = app.url();
            (Box::new(app), url)
        }
        _ => {
            let (framing, body) = match way {
                "chunked" => ("Transfer-Encoding: chunked\r\n", "4\r\nhere\r\n0\r\n\r\n"),
                "close" => ("", "here"),
                _ => ("Content-Length: 4\r\n", "here"),
            };
            let closes = way == "close";
            let app = App::start(move |talk| {
                let sent = talk.reply(format!("HTTP/1.1 200 OK\r\n{framing}{head}\r\n{body}"));
                if closes { Then::Close } else { sent }
            });
            let url = app.url();
            (Box::new(app), url)
        }
    };
    let mut all = vec![("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", url.as_str())];
    all.extend(settings);
    let hostward = Hostward::start(&all);
    let mut client = Client::connect(hostward.address);
    if way == "uploaded" {
        let head = format!("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: {SPOOLED}\r\n\r\n");
        client.send(head + &"x".repeat(SPOOLED));
    } else {
        client.send(GET);
    }
    (client.answer(), hostward)
}

#[test]
fn long_response_heads_pass_in_every_protocol() {
    for way in WAYS {
        for (count, bytes) in [(98, 0), (101, 0), (990, 0), (1, 70_000), (3, 250_000), (990, 200_000)] {
            let sent = lines(count, bytes);
            let (answer, hostward) = answered(way, sent.clone(), &[]);
            let mut got: Vec<_> = answer.fields.iter().filter(|(name, _)| name.starts_with("x-")).cloned().collect();
            // The order is another's business.
            got.sort();
            assert_eq!(answer.status, 200, "{way} {count} {bytes}: {}\n{}", answer.text(), hostward.output());
            assert!(got == sent, "{way} {count} {bytes}: {} lines", got.len());
            assert_eq!(answer.text(), "here", "{way} {count} {bytes}");
        }
    }
}

fn assert_rejected(way: &str, lines: Vec<(String, String)>, settings: &[(&str, &str)], msg: &str) {
    let what = format!("{way}, {} lines, {settings:?}", lines.len());
    let (answer, hostward) = answered(way, lines, settings);
    assert_eq!(answer.status, 502, "{what}: {}", answer.head);
    let status = answer.field("proxy-status");
    assert_eq!(status, Some("hostward; error=http_response_header_section_size"), "{what}: {}", answer.head);
    let line = hostward.line(|line| line["msg"] == msg);
    let hint = line["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("HOSTWARD_MAX_RESPONSE_HEADER_SIZE"), "{what}: {line}");
    assert_eq!(line["level"], "ERROR", "{what}: {line}");
}

#[test]
fn response_heads_beyond_the_limits_are_502_with_their_own_message() {
    for way in WAYS {
        assert_rejected(way, lines(1_001, 0), &[], "too many response headers");
        assert_rejected(way, lines(2, 300_000), &[], "response head too large");
        for (setting, bytes) in [("1KiB", 1_100), ("64KiB", 70_000), ("1MiB", 1_100_000)] {
            assert_rejected(
                way,
                lines(1, bytes),
                &[("HOSTWARD_MAX_RESPONSE_HEADER_SIZE", setting)],
                "response head too large",
            );
        }
    }
}

#[test]
fn the_response_head_limit_can_be_raised_and_lowered() {
    for way in ["length", "chunked", "uploaded", "uwsgi", "h2c"] {
        for (setting, bytes) in [("1KiB", 800), ("4MiB", 1_000_000)] {
            let sent = lines(1, bytes);
            let (answer, _hostward) = answered(way, sent, &[("HOSTWARD_MAX_RESPONSE_HEADER_SIZE", setting)]);
            assert_eq!(answer.status, 200, "{way}, {bytes} bytes with {setting}: {}", answer.text());
        }
    }
}

#[test]
fn a_kept_connection_brings_long_and_short_heads_in_any_order() {
    let task = Task::start(&[("HOSTWARD_THREADS", "1")], |talk| {
        let count: usize = talk.request.target.trim_start_matches('/').parse().unwrap();
        let head = written(&lines(count, 0));
        // By turns with a length and chunked.
        if count.is_multiple_of(2) {
            talk.reply(format!("HTTP/1.1 200 OK\r\n{head}Content-Length: 4\r\n\r\nhere"))
        } else {
            talk.reply(format!("HTTP/1.1 200 OK\r\n{head}Transfer-Encoding: chunked\r\n\r\n4\r\nhere\r\n0\r\n\r\n"))
        }
    });
    let mut client = task.client();
    for count in [1, 2, 901, 3, 900, 4, 101, 150, 5] {
        let answer = client.ask(format!("GET /{count} HTTP/1.1\r\nHost: www.example.com\r\n\r\n")).expect(200);
        assert_eq!(answer.fields.iter().filter(|(name, _)| name.starts_with("x-")).count(), count);
        assert_eq!(answer.text(), "here");
    }
    assert_eq!(task.app.connections(), 1);
}

/// A request with so many header lines, in so many segments.
fn ask_with(task: &Task, count: usize, segments: usize, version: &str) -> Answer {
    // `Host` is one of them.
    let request = format!("GET / {version}\r\nHost: www.example.com\r\n{}\r\n", written(&lines(count - 1, 0)));
    let mut client = task.client();
    for part in request.as_bytes().chunks(request.len().div_ceil(segments)) {
        // hostward may have answered and closed before everything was sent.
        if client.try_send(part).is_err() {
            break;
        }
        if segments > 1 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    client.answer()
}

#[test]
fn a_request_may_have_a_thousand_header_lines_and_no_more() {
    for settings in [&[][..], &[("HOSTWARD_TLS", "self-signed")]] {
        let task = Task::echo(settings);
        for version in ["HTTP/1.1", "HTTP/1.0"] {
            for segments in [1, 2, 5] {
                for count in [99, 100, 101, 102, 500, 1_000] {
                    let answer = ask_with(&task, count, segments, version);
                    assert_eq!(
                        answer.status,
                        200,
                        "{count} lines in {segments} segments, {version}: {}",
                        answer.text()
                    );
                    let received = task.app.last();
                    let got = received.fields.iter().filter(|(name, _)| name.starts_with("x-0")).count();
                    assert_eq!(got, count - 1, "{count} lines in {segments} segments, {version}");
                }
                for count in [1_001, 1_002, 3_000] {
                    let answer = ask_with(&task, count, segments, version);
                    assert_eq!(answer.status, 431, "{count} lines in {segments} segments, {version}");
                    assert!(answer.text().contains("too many headers"), "{}", answer.text());
                }
            }
        }
        let line: Value = task.hostward.line(|line| line["msg"] == "too many headers");
        assert!(line["hint"].as_str().is_some_and(|hint| hint.contains("1,000")), "{line}");
        assert!(!task.hostward.output().contains("can't be parsed"), "{}", task.hostward.output());
    }
}

#[test]
fn a_kept_connection_takes_requests_with_many_and_with_few_header_lines() {
    let task = Task::echo(&[]);
    let mut client = task.client();
    let request = |count: usize, more: &str, body: &str| {
        format!("POST /{count} HTTP/1.1\r\nHost: www.example.com\r\n{}{more}\r\n{body}", written(&lines(count, 0)))
    };
    for count in [1, 900, 2, 150, 3] {
        client.ask(request(count, "Content-Length: 5\r\n", "hello")).expect(200);
        assert_eq!((task.app.last().body.as_slice(), task.app.last().target), (&b"hello"[..], format!("/{count}")));
        client.ask(request(count, "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n")).expect(200);
        assert_eq!(task.app.last().body, b"hello");
    }
    // And pipelined.
    let count = task.app.count();
    let all: String = [2, 400, 1, 300].iter().map(|count| request(*count, "Content-Length: 5\r\n", "hello")).collect();
    client.input.stream.write_all(all.as_bytes()).unwrap();
    for _ in 0..4 {
        client.answer().expect(200);
    }
    assert_eq!(task.app.count(), count + 4);
}

#[test]
fn an_http_2_request_has_the_same_bounds() {
    let task = Task::echo(&[]);
    let ask = |count: usize| {
        let mut request = http2::get("/");
        for (name, value) in lines(count, 0) {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        http2::ask_once(task.hostward.address, request, b"")
    };
    for count in [101, 1_000] {
        assert_eq!(ask(count).status, 200, "{count}");
        let got = task.app.last().fields.iter().filter(|(name, _)| name.starts_with("x-0")).count();
        assert_eq!(got, count.min(1_000));
    }
    assert_eq!(ask(1_001).status, 431);
    task.hostward.line(|line| line["msg"] == "too many headers");
}
