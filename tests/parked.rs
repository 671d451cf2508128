//! Connections on which nothing happens: they cost next to nothing, and nobody can tell that they do.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::support::frames::{END_STREAM, Frames, Outcome, PREFACE, SETTINGS};
use super::support::kernel::{descriptors, raise_descriptors, usage};
use super::support::wire::Client;
use super::support::{Task, eventually};

const GET: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
const PLAIN: (&str, &str) = ("HOSTWARD_TLS", "off");
const TLS: (&str, &str) = ("HOSTWARD_TLS", "self-signed");
const CONNECTIONS: u64 = 1000;
/// Longer than a connection is idle before it is parked.
const PAUSE: Duration = Duration::from_millis(1500);

/// Waits, and sees that nothing comes.
fn pause(client: &mut Client) {
    client.input.patience = PAUSE;
    assert_eq!(client.try_answer().unwrap_err().why, ErrorKind::TimedOut);
    client.input.patience = Duration::from_secs(5);
}

#[test]
fn an_idle_connection_holds_no_buffers() {
    raise_descriptors();
    let task = Task::echo(&[("HOSTWARD_THREADS", "1"), ("HOSTWARD_ACCESS_LOG", "off")]);
    let heap = || usage(task.hostward.pid()).anonymous_kib;
    let is_small = |what: &str, most: u64, before: u64| {
        eventually(what, || (heap() <= before + CONNECTIONS * most).then_some(()));
    };
    let mut first = task.client();
    first.ask(GET).expect(200);
    let before = heap();
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| task.client()).collect();
    // One more, so that all of them have been accepted.
    task.client().ask(GET).expect(200);
    is_small("connections that have said nothing are small", 3, before);
    for client in &mut clients {
        client.ask(GET).expect(200);
    }
    is_small("connections that say nothing more are small", 4, before);
    for client in &mut clients {
        client.ask(GET).expect(200);
    }
    is_small("they are small again", 4, before);
    // What is free reaches the kernel although nothing goes on any more.
    for client in &mut clients {
        client.ask(GET).expect(200);
    }
    drop((clients, first));
    is_small("closed connections hold nothing", 3, before);
}

#[test]
fn a_parked_connection_goes_on_where_it_was() {
    for tls in [PLAIN, TLS] {
        let task = Task::echo(&[tls]);
        let mut client = task.client();
        // Before its first request, between two, and with an empty line after one.
        pause(&mut client);
        client.ask(GET).expect(200);
        client.send("\r\n");
        pause(&mut client);
        client.ask(GET).expect(200);
        pause(&mut client);
        client.send(format!("{GET}{GET}GET / HTTP/1.1\r\nHo"));
        client.answer().expect(200);
        client.answer().expect(200);
        pause(&mut client);
        client.send("st: www.example.com\r\n\r\n");
        client.answer().expect(200);
        pause(&mut client);
        client.ask("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 3\r\n\r\nabc").expect(200);
        pause(&mut client);
        assert!(client.ask("GET / HTTP/1.1\r\nHost: a\nb\r\n\r\n").expect(400).closes());
        client.assert_closed();
        assert_eq!(task.app.count(), 6);
    }
}

#[test]
fn a_parked_connection_has_no_longer_than_the_idle_timeout() {
    for (tls, noise) in [(PLAIN, ""), (PLAIN, "\r\n"), (TLS, "")] {
        let task = Task::echo(&[tls, ("HOSTWARD_IDLE_TIMEOUT", "3s"), ("HOSTWARD_HEADER_TIMEOUT", "20s")]);
        let mut client = task.client();
        client.ask(GET).expect(200);
        let idle = Instant::now();
        pause(&mut client);
        client.send(noise);
        client.assert_closed();
        let elapsed = idle.elapsed();
        assert!(elapsed >= Duration::from_millis(2900) && elapsed < Duration::from_secs(5), "{elapsed:?}");
    }
}

#[test]
fn a_new_connection_that_sends_empty_lines_has_as_long_as_a_head() {
    let task = Task::echo(&[("HOSTWARD_HEADER_TIMEOUT", "2s"), ("HOSTWARD_IDLE_TIMEOUT", "20s")]);
    let mut client = task.client();
    let begun = Instant::now();
    pause(&mut client);
    client.send("\r\n");
    client.assert_closed();
    let elapsed = begun.elapsed();
    assert!(elapsed >= Duration::from_millis(1900) && elapsed < Duration::from_secs(4), "{elapsed:?}");
}

#[test]
fn a_parked_connection_is_closed_when_hostward_stops() {
    for tls in [PLAIN, TLS] {
        let mut task = Task::echo(&[tls, ("HOSTWARD_DRAIN_DELAY", "0s"), ("HOSTWARD_SHUTDOWN_TIMEOUT", "20s")]);
        let (mut used, mut new) = (task.client(), task.client());
        // With TLS a client has more to say before its first request.
        new.try_send("").unwrap();
        used.ask(GET).expect(200);
        pause(&mut used);
        task.hostward.terminate();
        used.assert_closed();
        // What says something in the last second is answered.
        new.ask(GET).expect(200);
        new.assert_closed();
        assert!(task.hostward.wait(Duration::from_secs(5)).success());
        let stopped = task.hostward.line(|line| line["msg"] == "stopped");
        assert_eq!(stopped["cut_connections"], 0, "{stopped}");
    }
}

#[test]
fn a_parked_connection_ends_with_its_client() {
    for tls in [PLAIN, TLS] {
        let task = Task::echo(&[tls]);
        task.client().ask(GET).expect(200);
        let mut clients: Vec<Client> = (0..10).map(|_| task.client()).collect();
        for client in &mut clients[..5] {
            client.ask(GET).expect(200);
        }
        pause(&mut clients[0]);
        let parked = descriptors(task.hostward.pid());
        clients[0].half_close();
        clients[0].assert_closed();
        drop(clients);
        eventually("they are gone", || (descriptors(task.hostward.pid()) <= parked - 10).then_some(()));
    }
}

#[test]
fn a_parked_connection_may_turn_out_to_speak_http_2() {
    for tls in [PLAIN, TLS] {
        let task = Task::echo(&[tls]);
        let mut client = task.client();
        let Frames { mut stream } = Frames::silent(task.hostward.address);
        pause(&mut client);
        std::io::Write::write_all(&mut stream, &PREFACE[..3]).unwrap();
        pause(&mut client);
        std::io::Write::write_all(&mut stream, &PREFACE[3..]).unwrap();
        let mut frames = Frames { stream };
        frames.send(SETTINGS, 0, 0, &[]).unwrap();
        let authority = (":authority", "www.example.com");
        frames.ask(1, END_STREAM, &[(":method", "GET"), (":scheme", "http"), authority, (":path", "/")]);
        assert_eq!(frames.outcome(1), Outcome::Answer(200));
    }
}
