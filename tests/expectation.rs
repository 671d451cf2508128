//! `Expect`: RFC 9110 section 10.1.1. A client that waits is never left waiting, and never told to send what nobody wants.

use std::io::ErrorKind;

use crate::support::Task;
use crate::support::wire::{Client, text};

fn expecting(task: &Task, host: &str, fields: &str) -> Client {
    let mut client = task.client();
    client.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\nExpect: 100-continue\r\n{fields}\r\n"));
    client
}

#[test]
fn a_client_that_expects_100_continue_gets_it_and_then_the_answer() {
    for (fields, body) in
        [("Content-Length: 5\r\n", "hello"), ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n")]
    {
        let task = Task::echo(&[]);
        let mut client = expecting(&task, "www.example.com", fields);
        let interim = client.input.head().unwrap_or_else(|broken| panic!("no 100: {broken}"));
        assert!(interim.starts_with(b"HTTP/1.1 100 "), "{}", text(&interim));
        client.send(body);
        client.answer().expect(200);
        assert_eq!((task.app.last().body.as_slice(), task.app.count()), (&b"hello"[..], 1));
        // The connection is in step.
        client.ask("GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(200);
    }
}

#[test]
fn a_client_whose_request_is_refused_is_not_told_to_continue() {
    let task = Task::echo(&[("HOSTWARD_MAX_BODY_SIZE", "100")]);
    let body = "GET /smuggled HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
    for (host, length, status) in
        [("evil.example", body.len(), 421), ("user@www.example.com", body.len(), 400), ("www.example.com", 101, 413)]
    {
        let mut client = expecting(&task, host, &format!("Content-Length: {length}\r\n"));
        let answer = client.answer().expect(status);
        assert!(answer.interim.is_empty(), "{:?}", answer.interim);
        // The body may be sent all the same: it is thrown away, or the connection ends, but it is no request.
        client.try_send(body).ok();
        client.try_send("GET /after HTTP/1.1\r\nHost: www.example.com\r\n\r\n").ok();
        match client.try_answer() {
            Ok(after) => assert!(!answer.closes() && after.text().contains("/after"), "{}{}", after.head, after.text()),
            Err(broken) => assert!(broken.why != ErrorKind::TimedOut && broken.head.is_none(), "{host}: {broken}"),
        }
    }
    assert!(task.app.requests().iter().all(|request| request.target == "/after"), "{:#?}", task.app.requests());
}

#[test]
fn other_expectations_are_417() {
    let task = Task::echo(&[]);
    for value in ["y 100-continue", "100-continue, x", "200-ok", "x=y"] {
        task.turned_away(
            format!("POST / HTTP/1.1\r\nHost: www.example.com\r\nExpect: {value}\r\nContent-Length: 5\r\n\r\nhello"),
            417,
        );
    }
}

/// RFC 9110 §10.1.1: `Expect` is a list, which may be empty.
#[test]
fn an_empty_expectation_is_ignored() {
    let task = Task::echo(&[]);
    for lines in ["Expect:", "Expect: ", "Expect: \t ", "Expect:\r\nExpect:", "Expect:\r\nExpect: 100-continue"] {
        let received = task
            .admitted(format!("POST / HTTP/1.1\r\nHost: www.example.com\r\n{lines}\r\nContent-Length: 5\r\n\r\nhello"));
        assert_eq!((received.field("expect"), &*received.body), (None, &b"hello"[..]), "{lines:?}");
    }
    let request = http::Request::post("http://www.example.com/").header("expect", "").body(()).unwrap();
    assert_eq!(crate::support::http2::ask_once(task.hostward.address, request, b"hello").status, 200);
    task.turned_away(
        "POST / HTTP/1.1\r\nHost: www.example.com\r\nExpect:\r\nExpect: x\r\nContent-Length: 5\r\n\r\nhello",
        417,
    );
}
