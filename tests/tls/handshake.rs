//! Handshakes that fail, take for ever, or are none.

use std::time::{Duration, Instant};

use super::{GET, SELF_SIGNED};
use crate::support::Task;
use crate::support::tls::Stream;
use crate::support::wire::{Client, text};

fn failures(task: &Task, reason: &str) -> usize {
    let lines = task.hostward.lines();
    lines.iter().filter(|line| line["msg"] == "TLS handshake failed" && line["reason"] == reason).count()
}

#[test]
fn plain_http_is_answered_in_plain_words() {
    let task = Task::echo(&[SELF_SIGNED]);
    for request in [GET, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "get / HTTP/1.1\r\n\r\n"] {
        let mut client = Client::plain(task.hostward.address);
        client.send(request);
        let answer = client.answer().expect(400);
        assert!(answer.closes() && answer.text().contains("plain HTTP to a TLS port"), "{}", answer.text());
        client.assert_closed();
    }
    assert_eq!(task.app.count(), 0);
    let line = task.hostward.line(|line| line["msg"] == "plain HTTP to a TLS port");
    assert!(line["hint"].as_str().unwrap().contains("HOSTWARD_TLS"), "{line}");
    task.hostward.line(|line| line["msg"] == "request" && line["status"] == 400);
    let lines = task.hostward.lines();
    assert_eq!(lines.iter().filter(|line| line["msg"] == "plain HTTP to a TLS port").count(), 1, "{lines:#?}");
}

#[test]
fn a_handshake_has_as_long_as_a_head() {
    let task = Task::echo(&[SELF_SIGNED, ("HOSTWARD_HEADER_TIMEOUT", "1s")]);
    let begun = Instant::now();
    let (mut silent, mut slow) = (Client::plain(task.hostward.address), Client::plain(task.hostward.address));
    slow.send(b"\x16\x03\x01\x02\x00\x01");
    // Another client is not kept waiting.
    task.get("/").expect(200);
    for client in [&mut silent, &mut slow] {
        client.rest();
    }
    let elapsed = begun.elapsed();
    assert!(elapsed >= Duration::from_millis(900) && elapsed < Duration::from_secs(5), "{elapsed:?}");
    let line = task.hostward.line(|line| line["reason"] == "timeout");
    assert!(line["hint"].as_str().unwrap().contains("HOSTWARD_HEADER_TIMEOUT"), "{line}");
    // Who said nothing may be a load balancer that only tried the port.
    assert_eq!(failures(&task, "timeout"), 1);
    // A head after the handshake has its own time.
    let mut client = task.client();
    client.send("GET / HTTP/1.1\r\n");
    client.answer().expect(408);
}

#[test]
fn a_reason_is_said_once_a_minute() {
    let task = Task::echo(&[SELF_SIGNED]);
    for _ in 0..5 {
        let mut client = Client::plain(task.hostward.address);
        client.send(b"\x16\x03\x01\x00\x05hello");
        client.rest();
    }
    task.hostward.line(|line| line["reason"] == "not_tls");
    for _ in 0..5 {
        let mut client = task.client();
        client.input.stream = Stream::tls(client.input.stream.tcp().try_clone().unwrap(), &[b"spdy/1"]);
        client.try_send(GET).unwrap_err();
    }
    task.hostward.line(|line| line["reason"] == "no_common_protocol");
    for _ in 0..5 {
        let mut client = Client::plain(task.hostward.address);
        client.send(b"\x16\x03\x01\x02\x00\x01");
        client.half_close();
        client.rest();
    }
    task.hostward.line(|line| line["reason"] == "connection_closed");
    for _ in 0..5 {
        // Connected, and gone: a load balancer's TCP check.
        drop(Client::plain(task.hostward.address));
    }
    task.get("/").expect(200);
    for reason in ["not_tls", "no_common_protocol", "connection_closed"] {
        assert_eq!(failures(&task, reason), 1, "{}", task.hostward.output());
    }
    assert!(task.hostward.lines().len() < 12, "{}", task.hostward.output());
}

#[test]
fn without_tls_a_handshake_is_a_broken_request() {
    let task = Task::echo(&[]);
    let mut client = task.client();
    client.input.stream = Stream::tls(client.input.stream.tcp().try_clone().unwrap(), &[]);
    client.try_send(GET).unwrap_err();
    task.hostward.line(|line| line["msg"] == "malformed request");
    assert!(!text(task.hostward.output().as_bytes()).contains("TLS handshake failed"));
    task.get("/").expect(200);
}
