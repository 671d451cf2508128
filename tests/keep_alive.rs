//! An app that closes idle connections before hostward would: what the log says, and that it is right.

use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::Task;
use crate::support::app::{Then, answer};
use crate::support::eventually;
use crate::support::hostward::Hostward;
use crate::support::python::{Server, Site};
use crate::support::wire::get;

const EARLY: &str = "app closes idle connections early";

/// The value that the hint names, in milliseconds.
fn advice(line: &Value) -> u64 {
    let hint = line["hint"].as_str().unwrap_or_default();
    let (_, value) = hint.split_once("HOSTWARD_UPSTREAM_IDLE_TIMEOUT=").unwrap_or_else(|| panic!("{line}"));
    value.split_once("ms").and_then(|(number, _)| number.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

fn early(hostward: &Hostward) -> usize {
    hostward.lines().iter().filter(|line| line["msg"] == EARLY).count()
}

/// gunicorn's threaded worker closes what was idle for two seconds; it looks once a second.
#[test]
fn gunicorns_keep_alive_is_measured_and_the_value_that_is_named_ends_the_closings() {
    let Some(site) = Site::start(Server::GunicornThreads, &[]) else { return };
    let upstream = site.upstream();
    let with = |idle: &str| {
        Hostward::start(&[
            ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
            ("HOSTWARD_UPSTREAM", &upstream),
            ("HOSTWARD_UPSTREAM_IDLE_TIMEOUT", idle),
        ])
    };
    let ask = |hostward: &Hostward, pause| {
        get(hostward.address, "www.example.com", "/").expect(200);
        thread::sleep(pause);
    };
    let long = with("60s");
    for _ in 0..3 {
        ask(&long, Duration::from_millis(4500));
    }
    let line = long.line(|line| line["msg"] == EARLY);
    let after = line["after_ms"].as_u64().unwrap_or_default();
    assert!((1900..3400).contains(&after) && line["level"] == "WARN", "{line}");
    let advice = advice(&line);
    assert!((1000..2900).contains(&advice), "{line}");

    let advised = with(&format!("{advice}ms"));
    let default = with("1500ms");
    for _ in 0..4 {
        ask(&default, Duration::ZERO);
        ask(&advised, Duration::from_millis(3500));
    }
    assert_eq!((early(&advised), early(&default)), (0, 0), "{}{}", advised.output(), default.output());
}

#[test]
fn an_app_that_closes_after_a_while_is_told_once_and_one_that_closes_at_once_never() {
    // Neither says `Connection: close`.
    let closing_after = |pause: Duration| {
        Task::start(&[("HOSTWARD_UPSTREAM_IDLE_TIMEOUT", "20s")], move |talk| {
            let sent = talk.reply(answer("200 OK", "", "x")) == Then::Keep;
            if sent {
                thread::sleep(pause);
            }
            Then::Close
        })
    };
    let (after, at_once) = (closing_after(Duration::from_secs(2)), closing_after(Duration::ZERO));
    let begun = Instant::now();
    for _ in 0..4 {
        for task in [&after, &at_once] {
            task.get("/").expect(200);
        }
        // The next request must not come to the connection that is about to be closed.
        after.app.wait_open(0);
        thread::sleep(Duration::from_millis(250));
    }
    assert!(begun.elapsed() < Duration::from_secs(19), "{:?}", begun.elapsed());
    let line = after.hostward.line(|line| line["msg"] == EARLY);
    let measured = line["after_ms"].as_u64().unwrap_or_default();
    assert!((1900..3000).contains(&measured), "{line}");
    assert!((1000..2000).contains(&advice(&line)), "{line}");
    assert_eq!((early(&after.hostward), early(&at_once.hostward)), (1, 0), "{}", at_once.hostward.output());
}

#[test]
fn a_connection_that_the_app_has_closed_is_dropped_before_its_time() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let task = Task::start(&[("HOSTWARD_UPSTREAM_IDLE_TIMEOUT", "1h")], move |talk| {
        talk.reply(answer("200 OK", "", "x"));
        gone.lock().unwrap().recv().ok();
        Then::Close
    });
    task.get("/").expect(200);
    let idle = || {
        let text = get(task.hostward.admin, "localhost", "/metrics").expect(200).text();
        let line = text
            .lines()
            .find(|line| line.starts_with("hostward_upstream_connections{state=\"idle\"}"))
            .map(str::to_owned);
        line.unwrap_or_else(|| panic!("no such gauge in\n{text}"))
    };
    eventually("the connection is idle", || idle().ends_with(" 1").then_some(()));
    go.send(()).unwrap();
    eventually("the connection is gone", || idle().ends_with(" 0").then_some(()));
}
