//! A system clock before 1970, as a machine has it whose battery is empty and that hasn't asked for the time yet: A14.
//! The C library's clock is replaced in the child alone, by a library that is compiled here.

use std::io::ErrorKind;
use std::process::Command;
use std::time::Duration;

use http::Request;

use crate::support::app::{Conversation, Then, answer, echo};
use crate::support::tls::Directory;
use crate::support::{Task, http2, skip, wire};

/// Three billion seconds ago it was 1931.
const EARLIER: &str = r"
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    long failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        now->tv_sec -= 3000000000LL;
    }
    return (int)failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    (void)zone;
    int failed = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now) *now = precise.tv_sec;
    return precise.tv_sec;
}
";

const GET: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
const SELF_SIGNED: (&str, &str) = ("HOSTWARD_TLS", "self-signed");

/// The library; `None` where nobody can compile it.
fn library(directory: &Directory) -> Option<String> {
    let (source, library) = (directory.file("earlier.c"), directory.file("earlier.so"));
    std::fs::write(&source, EARLIER).unwrap();
    match Command::new("cc").args(["-shared", "-fPIC", "-o", &library, &source]).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            skip("a C compiler, the program cc (Debian: gcc)");
            return None;
        }
        output => {
            let output = output.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    Some(library)
}

/// An app behind a hostward that believes it is 1931.
fn start(library: &str, settings: &[(&str, &str)]) -> Task {
    let task = Task::start(&[settings, &[("LD_PRELOAD", library), ("HOSTWARD_THREADS", "1")]].concat(), behave);
    // Without this line the library had no effect, and the test would show nothing.
    let line = task.hostward.line(|line| line["msg"] == "system clock is before 1970");
    assert_eq!(line["time"].as_str().map(|time| &time[..10]), Some("1970-01-01"), "{line}");
    task
}

fn behave(talk: &mut Conversation<'_>) -> Then {
    match &*talk.request.target {
        "/chunked" => talk.reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        "/chat" => {
            talk.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").ok();
            Then::Close
        }
        "/dated" => talk.reply(answer("200 OK", "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n", "hello")),
        _ => echo(talk),
    }
}

/// Plain requests get their responses, on a new connection and on a kept one.
fn assert_serves(task: &Task) {
    let mut client = task.client();
    for _ in 0..2 {
        let response = client.ask(GET).expect(200);
        assert_eq!(response.field("date"), Some("Thu, 01 Jan 1970 00:00:00 GMT"), "{}", response.head);
    }
}

#[test]
fn before_1970_plain_requests_are_served() {
    let directory = Directory::new();
    let Some(library) = library(&directory) else { return };
    let task = start(&library, &[]);
    assert_serves(&task);
    task.turned_away("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421);
    let posted = task.admitted("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(posted.body, b"hello");
    let start: u64 = posted.field("x-request-start").unwrap()[2..].parse().unwrap();
    assert!(start < 86_400_000, "{start} is not the first of January 1970");
    let dated = task.get("/dated").expect(200);
    assert_eq!(dated.field("date"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    wire::get(task.hostward.admin, "localhost", "/livez").expect(200);
    wire::get(task.hostward.admin, "localhost", "/readyz").expect(200);
    wire::get(task.hostward.admin, "localhost", "/status").expect(200);
    wire::get(task.hostward.admin, "localhost", "/metrics").expect(200);
    let line = task.hostward.request_line("/dated");
    assert_eq!((&line["status"], line["time"].as_str().map(|time| &time[..10])), (&200.into(), Some("1970-01-01")));
}

/// What hyper's server deals with fails there, because it can't write such a date (a line at the start says so). One
/// connection is lost, without a response, and nothing else. Covered: chunked requests, HTTP/1.0, a WebSocket, with TLS and
/// without; each twice, since what fails at its first use may be broken for good.
#[test]
fn before_1970_what_hyper_serves_costs_its_own_connection_alone() {
    let directory = Directory::new();
    let Some(library) = library(&directory) else { return };
    for settings in [&[][..], &[SELF_SIGNED]] {
        let task = start(&library, settings);
        for request in [
            "POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: www.example.com\r\n\r\n",
            "GET /chat HTTP/1.1\r\nHost: www.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        ] {
            for _ in 0..2 {
                let mut beside = task.client();
                beside.ask(GET).expect(200);
                let mut client = task.client();
                client.send(request);
                let broken = client.try_answer().expect_err("a response, so that the line at the start is wrong");
                assert!(broken.why != ErrorKind::TimedOut && broken.partial.is_empty(), "{request}: {broken}");
                beside.ask(GET).expect(200);
                assert_serves(&task);
            }
        }
        // A chunked response to a plain request is none of hyper's server's business.
        assert_eq!(task.get("/chunked").expect(200).text(), "hello");
        wire::get(task.hostward.admin, "localhost", "/livez").expect(200);
    }
}

/// Certificates, tickets of TLS, and HTTP/2 with TLS and without: all of them have times in them.
#[test]
fn before_1970_tls_and_http_2_are_served() {
    let directory = Directory::new();
    let Some(library) = library(&directory) else { return };
    for settings in [&[][..], &[SELF_SIGNED]] {
        let task = start(&library, settings);
        for _ in 0..2 {
            assert_serves(&task);
            for path in ["/", "/chunked"] {
                let response = http2::ask_once(task.hostward.address, http2::get(path), b"");
                let date = response.fields.get("date").and_then(|date| date.to_str().ok());
                assert_eq!((response.status, date), (200, Some("Thu, 01 Jan 1970 00:00:00 GMT")), "{path}");
            }
            let posted = Request::post("http://www.example.com/").body(()).unwrap();
            assert_eq!(http2::ask_once(task.hostward.address, posted, b"hello").status, 200);
            assert_eq!(task.app.last().body, b"hello");
        }
    }
}

#[test]
fn before_1970_metrics_for_cloudwatch_are_written_and_the_process_ends_in_order() {
    let directory = Directory::new();
    let Some(library) = library(&directory) else { return };
    let mut task = start(&library, &[("HOSTWARD_METRICS", "emf"), ("HOSTWARD_DRAIN_DELAY", "0s")]);
    assert_serves(&task);
    task.hostward.terminate();
    assert!(task.hostward.wait(Duration::from_secs(10)).success(), "{}", task.hostward.output());
    let lines: Vec<_> = task.hostward.lines().into_iter().filter(|line| line["_aws"].is_object()).collect();
    let requests: u64 = lines.iter().filter_map(|line| line["Requests"].as_u64()).sum();
    assert_eq!((requests, &lines[0]["_aws"]["Timestamp"]), (2, &0.into()), "{lines:#?}");
}
