//! Apps that hostward doesn't know and that fail a health check: whether their own list of hosts is the cause is found out
//! by asking them again with another `Host`. Jupyter is real; the others are stand-ins, in every protocol.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::app::{Conversation, Received, Then, answer};
use crate::support::hostward::Hostward;
use crate::support::python::{Server, Site};
use crate::support::unix::SocketPath;
use crate::support::uwsgi::UwsgiApp;
use crate::support::wire::{Answer, ask};
use crate::support::{Task, eventually, http2};

const REFUSES: &str = "app refuses the host";
const FAIL: &str = "health checks fail";

fn probe(hostward: &Hostward, method: &str, path: &str) -> Answer {
    let address = hostward.address;
    let agent = "User-Agent: ELB-HealthChecker/2.0";
    ask(address, format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n{agent}\r\nConnection: close\r\n\r\n"))
}

fn lines(hostward: &Hostward, message: &str) -> Vec<Value> {
    hostward.lines().into_iter().filter(|line| line["msg"] == message).collect()
}

fn hint(line: &Value) -> &str {
    line["hint"].as_str().unwrap_or_default()
}

/// Three failed health checks; returns the lines about the host and about their number.
fn both_lines(hostward: &Hostward, path: &str, status: u16) -> (Value, Value) {
    for _ in 0..3 {
        probe(hostward, "GET", path).expect(status);
    }
    let of = |message| hostward.line(|line| line["msg"] == message && line["path"] == path);
    (of(REFUSES), of(FAIL))
}

fn assert_host_is_named(lines: &(Value, Value), with: &str, status: u16) {
    let (refuses, fail) = lines;
    for line in [refuses, fail] {
        assert_eq!((&line["framework"], &line["status"]), (&"unknown".into(), &status.into()), "{line}");
        assert_eq!(line["host"], "www.example.com", "{line}");
        for word in ["HOSTWARD_CANONICAL_HOST=www.example.com", "own list of hosts", with, "add www.example.com there"]
        {
            assert!(hint(line).contains(word), "no {word:?} in {line}");
        }
        assert!(!hint(line).contains("who asks") && !hint(line).contains("has no"), "{line}");
    }
    assert!(refuses["what"].as_str().unwrap().contains(&format!("Host: {with}")), "{refuses}");
    assert_eq!(refuses["decision"], "probe");
}

fn is_comparison(request: &Received) -> bool {
    request.field("x-request-id") == Some("hostward-compares-hosts")
}

/// The requests for `path` that no client has sent.
fn comparisons(task: &Task, path: &str) -> Vec<Received> {
    task.app.requests().into_iter().filter(|request| request.target == path && is_comparison(request)).collect()
}

/// By the first part of the path: who is admitted, and with what the others are refused.
fn strict(talk: &mut Conversation<'_>) -> Then {
    let request = talk.request.clone();
    let host = request.field("host").unwrap_or_default().to_owned();
    let is = |name: &str| host.split(':').next() == Some(name);
    let forwarded = request.field("x-forwarded-host").unwrap_or_default().to_owned();
    let admitted = match request.target.split(['/', '?']).nth(1).unwrap_or_default() {
        "mlflow" => is("localhost"),
        "address" => is("127.0.0.1"),
        // Express with `trust proxy`.
        "express" => forwarded.starts_with("localhost:"),
        "tomcat" => {
            return talk.reply(answer(
                if is("localhost") { "302 Found" } else { "404 Not Found" },
                "Location: /x\r\n",
                "",
            ));
        }
        "error" => return talk.reply(answer(if is("localhost") { "500 Oops" } else { "403 No" }, "", "")),
        "recovers" => is_comparison(&request),
        "agent" => request.field("user-agent").is_none_or(|agent| !agent.contains("ELB")),
        "slow" if is_comparison(&request) => {
            talk.input.rest().ok();
            return Then::Close;
        }
        "misdirected" => {
            return talk.reply(answer(if is("localhost") { "200 OK" } else { "421 Misdirected Request" }, "", ""));
        }
        "bad" => return talk.reply(answer(if is("localhost") { "200 OK" } else { "400 Bad Request" }, "", "")),
        // Neither of an app's own addresses on the loopback interface is in its list.
        "inner" => is("inner.example.com"),
        "inner404" if !is("inner.example.com") => return talk.reply(answer("404 Not Found", "", "")),
        "missing" => return talk.reply(answer("404 Not Found", "", "")),
        "ok" | "inner404" => true,
        _ => false,
    };
    let body = "Invalid Host header - possible DNS rebinding attack detected";
    talk.reply(if admitted { answer("200 OK", "", "") } else { answer("403 Forbidden", "", body) })
}

#[test]
fn an_unknown_list_of_hosts_is_named_with_a_host_that_is_in_it() {
    let task = Task::start(&[], strict);
    let port = task.app.address.port();
    for (path, name, status) in [
        ("/mlflow/health", "localhost", 403),
        ("/address", "127.0.0.1", 403),
        ("/express?a=b", "localhost", 403),
        ("/misdirected", "localhost", 421),
        ("/bad", "localhost", 400),
        ("/tomcat", "localhost", 404),
    ] {
        // Each kind of line is written once a minute.
        let hostward = Hostward::before(&task.app, &[]);
        for _ in 0..3 {
            probe(&hostward, "GET", path).expect(status);
        }
        let shown = path.split('?').next().unwrap();
        let of = |message| hostward.line(|line| line["msg"] == message && line["path"] == shown);
        let with = format!("{name}:{port}");
        assert_host_is_named(&(of(REFUSES), of(FAIL)), &with, status);
        // What the hint says is true: with that host the health check has another outcome.
        let remedied = Hostward::before(&task.app, &[("HOSTWARD_CANONICAL_HOST", &with)]);
        assert_ne!(probe(&remedied, "GET", path).status, status, "{path}");
        // The request was the same but for the host.
        let asked = comparisons(&task, path);
        let first = asked.first().unwrap();
        assert_eq!((first.method.as_str(), first.field("user-agent")), ("GET", Some("ELB-HealthChecker/2.0")));
        assert_eq!((first.field("x-forwarded-for"), first.field("x-real-ip")), (Some("127.0.0.1"), Some("127.0.0.1")));
        assert_eq!(first.field("x-forwarded-host"), first.field("host"));
    }
}

#[test]
fn every_protocol_is_asked() {
    let refused = |host: &str| !host.starts_with("localhost");
    let h2c = http2::App::start(10, move |mut talk| async move {
        let host = talk.head.uri().authority().map(ToString::to_string).unwrap_or_default();
        talk.reply(if refused(&host) { 403 } else { 200 }, b"");
    });
    let uwsgi = UwsgiApp::start(move |packet, stream| {
        let status = if refused(packet.value("HTTP_HOST").unwrap_or_default()) { "403 Forbidden" } else { "200 OK" };
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let http = crate::support::app::App::start(strict);
    let (for_http, for_uwsgi) = (SocketPath::new(), SocketPath::new());
    let _listening = (for_http.listen(http.address), for_uwsgi.listen(uwsgi.address));
    for (upstream, with) in [
        (h2c.url(), format!("localhost:{}", h2c.address.port())),
        (format!("uwsgi://{}", uwsgi.address), format!("localhost:{}", uwsgi.address.port())),
        (for_http.url(), "localhost".into()),
        (format!("uwsgi+unix:{}", for_uwsgi.0.display()), "localhost".into()),
    ] {
        let hostward =
            Hostward::start(&[("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", &upstream)]);
        assert_host_is_named(&both_lines(&hostward, "/mlflow", 403), &with, 403);
    }
}

#[test]
fn without_a_difference_the_host_is_not_blamed() {
    for (path, status, words) in [
        ("/secret", 403, ["wants to know who asks for /secret", "open to all"]),
        ("/missing", 404, ["it has no /missing", "correct the health check's path"]),
    ] {
        let task = Task::start(&[], strict);
        for _ in 0..3 {
            probe(&task.hostward, "GET", path).expect(status);
        }
        let line = task.hostward.line(|line| line["msg"] == FAIL);
        let port = task.app.address.port();
        let seen = format!("localhost:{port} and 127.0.0.1:{port} is {status} as well");
        for word in words.iter().copied().chain([&*seen]) {
            assert!(hint(&line).contains(word), "no {word:?} in {line}");
        }
        assert_eq!((&line["framework"], lines(&task.hostward, REFUSES).len()), (&"-".into(), 0), "{line}");
    }
}

/// F2: the two hosts that are tried are not in the app's list either, so the same responses prove nothing; the hint must
/// not name another cause without saying so. Covered: 403, 404, and that it is the host indeed.
#[test]
fn a_list_that_has_neither_of_the_hosts_that_are_tried_is_not_ruled_out() {
    for (path, status) in [("/inner", 403), ("/inner404", 404)] {
        let task = Task::start(&[], strict);
        for _ in 0..3 {
            probe(&task.hostward, "GET", path).expect(status);
        }
        let line = task.hostward.line(|line| line["msg"] == FAIL);
        for words in ["unless its own list of hosts lacks them", "www.example.com"] {
            assert!(hint(&line).contains(words), "no {words:?} in {line}");
        }
        assert_eq!((&line["framework"], lines(&task.hostward, REFUSES).len()), (&"-".into(), 0), "{line}");
        let remedied = Hostward::before(&task.app, &[("HOSTWARD_CANONICAL_HOST", "inner.example.com")]);
        probe(&remedied, "GET", path).expect(200);
    }
}

/// An app that recovers meanwhile, that refuses a `User-Agent`, that fails with the other host, or that doesn't respond.
#[test]
fn what_was_not_seen_is_not_said() {
    for path in ["/recovers", "/error", "/slow"] {
        let task = Task::start(&[], strict);
        for _ in 0..3 {
            probe(&task.hostward, "GET", path).expect(403);
        }
        // A comparison in progress delays no request.
        let started = Instant::now();
        task.get("/ok").expect(200);
        // The app is given 2 s to respond to a comparison.
        assert!(started.elapsed() < Duration::from_secs(2));
        let line = task.hostward.line(|line| line["msg"] == FAIL);
        assert_eq!(line["framework"], "-", "{line}");
        assert!(
            hint(&line).contains("is it the health check's path") && !hint(&line).contains("doesn't allow"),
            "{line}"
        );
        assert_eq!(lines(&task.hostward, REFUSES).len(), 0, "{line}");
    }
    // The comparison has the health check's own agent.
    let task = Task::start(&[], strict);
    for _ in 0..3 {
        probe(&task.hostward, "GET", "/agent").expect(403);
    }
    assert!(hint(&task.hostward.line(|line| line["msg"] == FAIL)).contains("who asks"));
}

#[test]
fn an_app_is_asked_again_once_a_minute_for_a_path_and_for_eight_paths() {
    let task = Task::start(&[], strict);
    for _ in 0..20 {
        probe(&task.hostward, "GET", "/mlflow").expect(403);
    }
    task.hostward.line(|line| line["msg"] == REFUSES);
    task.hostward.line(|line| line["msg"] == FAIL);
    assert_eq!(comparisons(&task, "/mlflow").len(), 2, "one with another host, one with the same");
    for number in 0..20 {
        probe(&task.hostward, "GET", &format!("/secret/{number}")).expect(403);
        // One by one, so that none is left out because others wait.
        eventually("the comparison is over", || {
            (number >= 7 || comparisons(&task, &format!("/secret/{number}")).len() == 2).then_some(())
        });
    }
    let paths = (0..20).filter(|number| !comparisons(&task, &format!("/secret/{number}")).is_empty()).count();
    assert_eq!(paths, 7);
}

#[test]
fn only_failed_health_checks_that_change_nothing_are_asked_again() {
    let task = Task::start(&[], strict);
    // A user, an untrusted host, a method that may change something, a success, a status that says enough.
    task.get("/mlflow").expect(403);
    ask(task.hostward.address, "GET /mlflow HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").expect(421);
    probe(&task.hostward, "DELETE", "/mlflow").expect(403);
    probe(&task.hostward, "OPTIONS", "/mlflow").expect(403);
    probe(&task.hostward, "GET", "/ok").expect(200);
    // A HEAD may be.
    let head = format!("HEAD /mlflow HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", task.hostward.address);
    let mut client = task.client();
    client.send(head);
    assert_eq!(client.answer_to_head().status, 403);
    task.hostward.line(|line| line["msg"] == REFUSES);
    let asked = comparisons(&task, "/mlflow");
    assert!(asked.len() == 2 && asked.iter().all(|request| request.method == "HEAD"), "{asked:#?}");
}

#[test]
fn jupyters_own_list_of_hosts_is_named() {
    let Some(site) = Site::start(Server::Jupyter, &[]) else { return };
    let upstream = site.upstream();
    let settings = [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", &*upstream)];
    let hostward = Hostward::start(&settings);
    let with = format!("localhost:{}", site.address.port());
    let lines = both_lines(&hostward, "/api", 403);
    assert_host_is_named(&lines, &with, 403);
    assert!(hint(&lines.0).contains("Jupyter: ServerApp.local_hostnames"), "{}", lines.0);
    let remedied = Hostward::start(&[&settings[..], &[("HOSTWARD_CANONICAL_HOST", &with)]].concat());
    probe(&remedied, "GET", "/api").expect(200);
    let site = Site::start(Server::Jupyter, &[("HOSTS", "www.example.com")]).expect("what was there a moment ago");
    let upstream = site.upstream();
    let remedied = Hostward::start(&[settings[0], ("HOSTWARD_UPSTREAM", &upstream)]);
    probe(&remedied, "GET", "/api").expect(200);
}
