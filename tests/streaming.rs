//! Bodies of both directions: byte for byte, as they come, with back-pressure; and answers that have none.

use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use crate::buffering::NOWHERE;
use crate::support::app::{Then, answer};
use crate::support::wire::{Client, Framing, text};
use crate::support::{Task, eventually};

/// Bodies as they come: what is buffered first is in `buffering`.
const STREAM: (&str, &str) = ("HOSTWARD_BUFFER_REQUESTS", "off");
const GET: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";

/// Bytes that don't repeat.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() * 2);
    for chunk in body.chunks(size) {
        write!(bytes, "{:x}\r\n", chunk.len()).unwrap();
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

/// An app that answers with the body of the request, framed alike.
fn mirror(settings: &[(&str, &str)]) -> Task {
    Task::start(settings, |talk| {
        let Ok(body) = talk.body() else { return Then::Close };
        let (head, body) = match talk.request.framing {
            Framing::Chunked => {
                ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".into(), chunked(&body, 30_000))
            }
            _ => (format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()), body),
        };
        if talk.send(head).and_then(|()| talk.send(body)).is_ok() { Then::Keep } else { Then::Close }
    })
}

#[test]
fn ten_mebibytes_up_and_down_are_the_same_bytes() {
    let task = mirror(&[STREAM]);
    let body = noise(10 << 20);
    for (fields, bytes, framing) in [
        (format!("Content-Length: {}\r\n", body.len()), body.clone(), Framing::Length(body.len() as u64)),
        ("Transfer-Encoding: chunked\r\n".into(), chunked(&body, 70_001), Framing::Chunked),
    ] {
        let mut client = task.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: www.example.com\r\n{fields}\r\n"));
        client.send(&bytes);
        let answer = client.answer().expect(200);
        assert_eq!(answer.framing, framing);
        assert!(answer.body == body, "{} bytes came back", answer.body.len());
        let received = task.app.last();
        assert!(received.body == body && received.framing == framing, "{}", received.head);
    }
}

#[test]
fn small_bodies_of_every_length_are_the_same_bytes() {
    for settings in [&[][..], &[STREAM]] {
        let task = mirror(settings);
        let mut client = task.client();
        for length in (0..40).chain([8191, 8192, 8193, 65_535, 65_536, 65_537]) {
            let body = noise(length);
            client.send(format!("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: {length}\r\n\r\n"));
            client.send(&body);
            assert!(client.answer().expect(200).body == body, "{length}");
            client.send("POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n");
            client.send(chunked(&body, 7));
            assert!(client.answer().expect(200).body == body, "{length}");
        }
    }
}

#[test]
fn an_answer_is_relayed_while_the_app_still_writes_it() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let task = Task::start(&[], move |talk| {
        talk.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        for number in 0..3 {
            talk.send(format!("9\r\ndata: {number}\n\n\r\n")).unwrap();
            gone.lock().unwrap().recv().unwrap();
        }
        talk.send("0\r\n\r\n").unwrap();
        Then::Keep
    });
    let mut client = task.client();
    client.send("GET /events HTTP/1.1\r\nHost: www.example.com\r\nAccept: text/event-stream\r\n\r\n");
    client.answer_head().expect(200);
    for number in 0..3 {
        let event = client.input.chunk().unwrap_or_else(|broken| panic!("{broken}")).unwrap_or_default();
        assert_eq!(text(&event), format!("data: {number}\n\n"));
        // The access log waits for the end.
        assert!(task.hostward.lines().iter().all(|line| line["path"] != "/events"));
        go.send(()).unwrap();
    }
    assert_eq!(client.input.chunk().unwrap_or_else(|broken| panic!("{broken}")), None);
    assert_eq!(task.hostward.request_line("/events")["bytes_out"], 27);
}

#[test]
fn a_request_is_relayed_while_the_client_still_writes_it() {
    let (seen, see) = mpsc::channel::<Vec<u8>>();
    let seen = Mutex::new(seen);
    let task = Task::start(&[STREAM], move |talk| {
        while let Ok(Some(chunk)) = talk.input.chunk() {
            seen.lock().unwrap().send(chunk).unwrap();
        }
        talk.input.exactly(2).ok();
        talk.send(answer("200 OK", "", "done")).unwrap();
        Then::Keep
    });
    let mut client = task.client();
    client.send("POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n");
    for part in ["one", "two", "six"] {
        client.send(format!("3\r\n{part}\r\n"));
        assert_eq!(text(&see.recv_timeout(Duration::from_secs(5)).unwrap()), part);
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.answer().expect(200).text(), "done");
}

#[test]
fn an_answer_that_ends_with_the_apps_connection_arrives_whole() {
    let body = noise(200_000);
    let sent = body.clone();
    let task = Task::start(&[], move |talk| {
        talk.send("HTTP/1.1 200 OK\r\n\r\n").and_then(|()| talk.send(&sent)).unwrap();
        Then::Close
    });
    for _ in 0..2 {
        let answer = task.ask(GET).expect(200);
        assert!(answer.body == body, "{} bytes", answer.body.len());
    }
    // An HTTP/1.0 client knows no chunks.
    let answer = task.ask("GET / HTTP/1.0\r\nHost: www.example.com\r\n\r\n").expect(200);
    assert!(answer.body == body && answer.framing == Framing::Close, "{}", answer.head);
}

#[test]
fn answers_without_a_body_keep_their_fields() {
    let task = Task::start(&[], |talk| {
        let head = match talk.request.target.as_str() {
            "/204" => "HTTP/1.1 204 No Content\r\nETag: \"a\"\r\n\r\n",
            "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 1234\r\n\r\n",
            "/chunked" => "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nTransfer-Encoding: chunked\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 1234\r\n\r\n",
        };
        talk.reply(head)
    });
    let mut client = task.client();
    for (method, target, status, length) in [
        ("HEAD", "/", 200, Some("1234")),
        ("HEAD", "/chunked", 200, None),
        ("GET", "/204", 204, None),
        ("HEAD", "/304", 304, Some("1234")),
        ("GET", "/304", 304, Some("1234")),
        ("HEAD", "/204", 204, None),
    ] {
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: www.example.com\r\n\r\n"));
        let answer = client.answer_to_head().expect(status);
        assert_eq!(
            (answer.field("etag"), answer.field("content-length")),
            (Some("\"a\""), length),
            "{method} {target}"
        );
    }
    // Everything stood in step on one connection, on both sides.
    assert_eq!((task.app.count(), task.app.connections()), (6, 1));
}

#[test]
fn hostwards_own_answers_to_head_have_no_body() {
    let task = Task::echo(&[]);
    let mut client = task.client();
    client.send("HEAD / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    client.answer_to_head().expect(421);
    client.assert_closed();
}

#[test]
fn interim_answers_reach_clients_that_know_them() {
    let task = Task::start(&[], |talk| {
        talk.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\n").unwrap();
        talk.reply(answer("200 OK", "", "hello"))
    });
    let answer = task.ask(GET).expect(200);
    let links: Vec<_> = answer.interim.iter().map(|interim| (interim.status, interim.field("link"))).collect();
    assert_eq!(links, [(103, Some("</a.css>; rel=preload")), (103, Some("</b.css>"))]);
    // RFC 9110 section 15.2: not to an HTTP/1.0 client.
    let answer = task.ask("GET / HTTP/1.0\r\nHost: www.example.com\r\n\r\n").expect(200);
    assert!(answer.interim.is_empty() && answer.text() == "hello", "{answer:?}");
}

#[test]
fn an_interim_100_that_nobody_asked_for_does_no_harm() {
    let task = Task::start(&[], |talk| {
        talk.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n").unwrap();
        talk.reply(answer("200 OK", "", "hello"))
    });
    let mut client = task.client();
    for _ in 0..2 {
        assert_eq!(client.ask(GET).expect(200).text(), "hello");
    }
}

#[test]
fn an_answers_trailer_section_reaches_a_client_that_wants_it() {
    let task = Task::start(&[], |talk| {
        talk.reply(
            // RFC 9110 §6.5.1: what routes or frames a message has no place there.
            "HTTP/1.1 200 OK\r\nTrailer: X-Checksum, Host, Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n\
             0\r\nHost: evil.example\r\nX-Checksum: 42\r\nContent-Length: 1\r\n\r\n",
        )
    });
    let mut client = task.client();
    let answer =
        client.ask("GET / HTTP/1.1\r\nHost: www.example.com\r\nTE: trailers\r\nConnection: TE\r\n\r\n").expect(200);
    assert_eq!(answer.text(), "hello");
    let trailers: Vec<_> =
        answer.trailers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str())).collect();
    assert_eq!(trailers, [("x-checksum".to_owned(), "42")]);
    assert_eq!(client.ask(GET).expect(200).text(), "hello");
}

#[test]
fn a_hundred_requests_use_one_connection_of_the_app() {
    let task = Task::echo(&[]);
    let mut client = task.client();
    for number in 0..100 {
        let request = format!("GET /{number} HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
        assert!(!client.ask(request).expect(200).closes());
    }
    assert_eq!((task.app.count(), task.app.connections()), (100, 1));
    // A request that can't be repeated may ask for a connection that is surely open, until one has proved itself.
    for number in 0..100 {
        let request = "POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 5\r\n\r\nhello";
        assert!(!client.ask(request).expect(200).closes(), "{number}");
    }
    assert!(task.app.connections() < 50, "{} connections for 100 requests", task.app.connections());
}

#[test]
fn an_http_1_0_client_may_keep_its_connection() {
    let task = Task::echo(&[]);
    let mut client = task.client();
    for _ in 0..2 {
        let answer =
            client.ask("GET / HTTP/1.0\r\nHost: www.example.com\r\nConnection: keep-alive\r\n\r\n").expect(200);
        assert!(
            answer.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("keep-alive")),
            "{}",
            answer.head
        );
    }
    client.ask("GET / HTTP/1.0\r\nHost: www.example.com\r\n\r\n").expect(200);
    client.assert_closed();
}

#[test]
fn a_client_that_does_not_read_stalls_the_app() {
    static WRITTEN: AtomicUsize = AtomicUsize::new(0);
    const WHOLE: usize = 512 << 20;
    // More than every socket buffer on the way together.
    const BOUND: usize = 64 << 20;
    let (stalled, stall) = mpsc::channel::<ErrorKind>();
    let stalled = Mutex::new(stalled);
    let task = Task::start(&[NOWHERE], move |talk| {
        talk.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {WHOLE}\r\n\r\n")).unwrap();
        talk.input.stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let block = vec![b'a'; 64 << 10];
        for _ in 0..WHOLE / block.len() {
            if let Err(error) = talk.send(&block) {
                stalled.lock().unwrap().send(error.kind()).unwrap();
                break;
            }
            WRITTEN.fetch_add(block.len(), Ordering::SeqCst);
        }
        Then::Close
    });
    let mut client = task.client();
    client.send(GET);
    client.answer_head().expect(200);
    let why = stall.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(matches!(why, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{why}");
    let written = WRITTEN.load(Ordering::SeqCst);
    assert!(written < BOUND, "{written} bytes");
    // The truncation is plain to see.
    let broken = client.input.exactly(WHOLE).unwrap_err();
    assert_ne!(broken.why, ErrorKind::TimedOut, "{} of {written} bytes", broken.partial.len());
}

#[test]
fn an_app_that_does_not_read_stalls_the_client() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let task = Task::start(&[STREAM], move |talk| {
        gone.lock().unwrap().recv().unwrap();
        talk.reply(answer("200 OK", "", "done"))
    });
    let mut client = task.client();
    let whole = 128 << 20;
    client.send(format!("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: {whole}\r\n\r\n"));
    client.input.stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let block = vec![b'a'; 64 << 10];
    let mut written = 0;
    while written < whole {
        match client.input.stream.write(&block[..block.len().min(whole - written)]) {
            Ok(length) => written += length,
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                break;
            }
        }
    }
    assert!(written < 64 << 20, "{written} bytes");
    go.send(()).unwrap();
    client.input.stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    while written < whole {
        written += client.input.stream.write(&block[..block.len().min(whole - written)]).unwrap();
    }
    assert_eq!(client.answer().expect(200).text(), "done");
    assert_eq!(task.app.last().body.len(), whole);
}

#[test]
fn many_clients_at_once_get_their_own_answers() {
    let task = Task::echo(&[]);
    let address = task.hostward.address;
    let clients: Vec<_> = (0..16)
        .map(|client| {
            thread::spawn(move || {
                let mut connection = Client::connect(address);
                for number in 0..50 {
                    let target = format!("/{client}/{number}");
                    let answer =
                        connection.ask(format!("GET {target} HTTP/1.1\r\nHost: www.example.com\r\n\r\n")).expect(200);
                    assert!(answer.text().contains(&format!("\"{target}\"")), "{target}: {}", answer.text());
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(task.app.count(), 800);
    eventually("every request is logged", || {
        (task.hostward.lines().iter().filter(|line| line["msg"] == "request").count() == 800).then_some(())
    });
}

/// Pipes that hostward has. Its log may be one.
fn pipes(task: &Task) -> usize {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", task.hostward.pid())).unwrap();
    let is_pipe = |path: std::path::PathBuf| path.read_link().is_ok_and(|to| to.to_string_lossy().starts_with("pipe:"));
    descriptors.filter(|descriptor| is_pipe(descriptor.as_ref().unwrap().path())).count()
}

const LONG: usize = 4 << 20;
/// What a worker has at most, and more clients than that.
const PIPES: usize = 16;
const CLIENTS: usize = 24;

/// An app that tells `LONG` bytes at every path, sends so many, and keeps its connection.
fn long(sent: usize) -> Task {
    Task::start(&[("HOSTWARD_THREADS", "1")], move |talk| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n");
        let outcome = talk.send(head).and_then(|()| talk.send(noise(sent)));
        if outcome.is_ok() && sent >= LONG { Then::Keep } else { Then::Close }
    })
}

#[test]
fn long_answers_come_whole_and_leave_no_pipe_behind() {
    let task = long(LONG);
    let before = pipes(&task);
    let mut client = task.client();
    for _ in 0..3 {
        client.send(GET);
        let answer = client.answer().expect(200);
        assert!(answer.body == noise(LONG), "{} bytes came", answer.body.len());
        assert_eq!(task.hostward.request_line("/")["bytes_out"], LONG);
    }
    assert_eq!(task.app.connections(), 1);
    eventually("the pipe is closed", || (pipes(&task) == before).then_some(()));
}

#[test]
fn long_answers_come_whole_also_when_no_pipe_is_left() {
    let gate = Arc::new(Barrier::new(CLIENTS + 1));
    let app_gate = Arc::clone(&gate);
    let task = Task::start(&[("HOSTWARD_THREADS", "1")], move |talk| {
        let body = noise(LONG);
        talk.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n")).unwrap();
        talk.send(&body[..LONG / 2]).unwrap();
        app_gate.wait();
        talk.send(&body[LONG / 2..]).unwrap();
        Then::Keep
    });
    let (before, address) = (pipes(&task), task.hostward.address);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            thread::spawn(move || {
                let mut client = Client::connect(address);
                client.send(GET);
                client.answer().expect(200).body
            })
        })
        .collect();
    eventually("all pipes are taken", || (pipes(&task) == before + 2 * PIPES).then_some(()));
    gate.wait();
    for client in clients {
        assert!(client.join().unwrap() == noise(LONG));
    }
    eventually("the pipes are closed", || (pipes(&task) == before).then_some(()));
}

#[test]
fn what_stands_behind_a_long_answer_is_no_part_of_it() {
    let task = long(LONG + 5);
    let mut client = task.client();
    for connections in 1..=3 {
        client.send(GET);
        assert!(client.answer().expect(200).body == noise(LONG));
        assert_eq!(task.app.connections(), connections);
    }
}

#[test]
fn a_long_answer_that_breaks_off_looks_so() {
    let task = long(LONG / 2);
    let mut client = task.client();
    client.send(GET);
    client.answer_head().expect(200);
    assert_eq!(client.rest().len(), LONG / 2);
    let line = task.hostward.request_line("/");
    assert_eq!((&line["error"], &line["bytes_out"]), (&"connection_terminated".into(), &(LONG / 2).into()));
}

#[test]
fn an_app_is_told_when_the_client_of_a_long_answer_leaves() {
    let task = Task::start(&[], |talk| {
        talk.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40)).unwrap();
        while talk.send(noise(1 << 20)).is_ok() {}
        Then::Close
    });
    let mut client = task.client();
    client.send(GET);
    client.answer_head().expect(200);
    client.input.exactly(LONG).unwrap_or_else(|broken| panic!("{broken}"));
    drop(client);
    task.app.wait_open(0);
    assert_eq!(task.hostward.request_line("/")["error"], "client_gone");
}
