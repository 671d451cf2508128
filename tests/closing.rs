//! The close behind the last response of a connection: RFC 9112 §9.6. Bytes that a client sends late, and bytes that
//! have not been read, must not cost it the response.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::support::app::{Conversation, Then, answer};
use crate::support::frames::{ACK, DATA, END_STREAM, Frames, GOAWAY, HEADERS, PING, RST_STREAM, WINDOW_UPDATE};
use crate::support::hostward::Hostward;
use crate::support::tls::Stream;
use crate::support::wire::Client;
use crate::support::{PATIENCE, Task, eventually, kernel};

/// More than hostward's kernel holds for a client that reads nothing.
const LENGTH: usize = 1 << 20;
const SELF_SIGNED: (&str, &str) = ("HOSTWARD_TLS", "self-signed");

/// A client whose kernel takes little for it, so that the end of a response stays in hostward's.
fn slow_client(address: SocketAddr) -> Client {
    Client::over(slow_socket(address))
}

fn slow_socket(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

fn body() -> Vec<u8> {
    (0..LENGTH).map(|at| u8::try_from(at / 251 % 251).unwrap()).collect()
}

/// One long response, with its length or in chunks.
fn long(talk: &mut Conversation<'_>) -> Then {
    let body = body();
    if talk.request.target.starts_with("/chunked") {
        let mut chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for chunk in body.chunks(50_000) {
            chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            chunked.extend_from_slice(chunk);
            chunked.extend_from_slice(b"\r\n");
        }
        return talk.reply([&chunked[..], b"0\r\n\r\n"].concat());
    }
    talk.reply([format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes(), &body].concat())
}

/// Reads the response slowly: first as much as it takes for hostward to be rid of it; then, with the connection closed as
/// far as hostward is concerned, not for longer than a close takes that doesn't look at what has arrived.
fn read_late(task: &Task, request: &str, late: &[u8]) {
    read_late_after(task, request, late, || {});
}

/// The same, and `written` happens as soon as hostward is rid of the response.
fn read_late_after(task: &Task, request: &str, late: &[u8], written: impl FnOnce()) {
    let path = request.split(' ').nth(1).unwrap();
    let mut client = slow_client(task.hostward.address);
    // In two segments where it says so.
    for part in request.split('|') {
        client.send(part);
        thread::sleep(Duration::from_millis(50));
    }
    let head = client.answer_head().expect(200);
    let mut read = Vec::new();
    while !task.hostward.lines().iter().any(|line| line["msg"] == "request" && line["path"] == path) {
        read.extend(client.input.exactly(4096).unwrap_or_else(|broken| panic!("{request:?}: {broken}")));
        thread::sleep(Duration::from_millis(10));
    }
    written();
    client.try_send(late).unwrap_or_else(|error| panic!("{request:?}: {error}"));
    thread::sleep(Duration::from_millis(2600));
    client.try_send(late).unwrap_or_else(|error| panic!("{request:?}: {error}"));
    thread::sleep(Duration::from_millis(100));
    read.extend(client.rest());
    if head.field("transfer-encoding").is_some() {
        assert!(read.ends_with(b"0\r\n\r\n") && read.len() > LENGTH, "{request:?}: {} bytes", read.len());
    } else {
        assert!(read == body(), "{request:?}: {} of {LENGTH} bytes", read.len());
    }
}

/// HTTP/1.1 that says `close`, in one segment and in two, HTTP/1.0, with a length and chunked.
const LAST_REQUESTS: [&str; 5] = [
    "GET /close HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n",
    "GET /parted HTTP/1.1\r\nHost: www.exam|ple.com\r\nConnection: close\r\n\r\n",
    "GET /chunked HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n",
    "GET /old HTTP/1.0\r\nHost: www.example.com\r\n\r\n",
    "POST /posted HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
];

#[test]
fn what_a_client_sends_after_its_last_request_does_not_cost_it_the_response() {
    for settings in [&[][..], &[SELF_SIGNED]] {
        let task = Task::start(settings, long);
        // CRLF, as old clients send it; another request, as a client that doesn't listen sends it.
        for late in [&b"\r\n"[..], b"GET /late HTTP/1.1\r\nHost: www.example.com\r\n\r\n"] {
            thread::scope(|scope| {
                for request in LAST_REQUESTS {
                    let request = request.replace(" HTTP", &format!("/{} HTTP", late.len()));
                    let task = &task;
                    scope.spawn(move || read_late(task, &request, late));
                }
            });
        }
        assert!(task.app.requests().iter().all(|request| request.target != "/late"));
    }
}

#[test]
fn a_draining_hostward_closes_in_stages_too() {
    for settings in [&[][..], &[SELF_SIGNED]] {
        let drain = [("HOSTWARD_DRAIN_DELAY", "20s"), ("HOSTWARD_SHUTDOWN_TIMEOUT", "1s")];
        let task = Task::start(&[settings, &drain[..]].concat(), long);
        task.hostward.terminate();
        task.hostward.line(|line| line["msg"] == "draining");
        thread::scope(|scope| {
            for request in [
                "GET /kept HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
                "GET /kept-parted HTTP/1.1\r\nHost: www.exam|ple.com\r\n\r\n",
                "GET /chunked HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
            ] {
                let task = &task;
                scope.spawn(move || read_late(task, request, b"\r\n"));
            }
        });
    }
}

/// A connection that is kept and then closed because hostward stops or because it is idle, while its client still reads
/// the last response: over HTTP/1.1, with TLS and without.
#[test]
fn a_kept_connection_is_closed_in_stages_behind_its_last_response() {
    thread::scope(|scope| {
        for settings in [&[][..], &[SELF_SIGNED]] {
            for (stops, setting) in [(true, ("HOSTWARD_DRAIN_DELAY", "0s")), (false, ("HOSTWARD_IDLE_TIMEOUT", "1s"))] {
                for path in ["/kept", "/chunked"] {
                    scope.spawn(move || {
                        let task = Task::start(&[settings, &[setting]].concat(), long);
                        let request = format!("GET {path} HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
                        read_late_after(&task, &request, b"\r\n", || {
                            if stops {
                                task.hostward.terminate();
                            }
                        });
                    });
                }
            }
        }
    });
}

/// When hostward is told to stop, seen from a response over HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// Before its request comes.
    Before,
    /// While it is written.
    During,
    /// When all of it is written, and most of it not yet read.
    Behind,
    /// Not at all: it is the idle timeout that ends the connection.
    Never,
}

/// A client of HTTP/2 with the largest windows, so that it is the kernels that hold a response.
struct SlowFrames {
    frames: Frames,
    /// Of the response.
    body: Vec<u8>,
    said_goaway: bool,
    /// Whether it still acknowledges PINGs, as everybody must.
    acknowledges: bool,
}

impl SlowFrames {
    fn connect(address: SocketAddr) -> Self {
        let stream = slow_socket(address);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut frames = Frames::over(Stream::offering(stream, b"h2"), &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
        frames.send(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes()).unwrap();
        Self { frames, body: Vec::new(), said_goaway: false, acknowledges: true }
    }

    /// Reads a frame. Its kind, or how the connection ends.
    fn read(&mut self) -> io::Result<u8> {
        let frame = self.frames.read()?;
        match frame.kind {
            DATA => self.body.extend_from_slice(&frame.payload),
            PING if frame.flags & ACK == 0 && self.acknowledges => self.frames.send(PING, ACK, 0, &frame.payload)?,
            GOAWAY => {
                assert_eq!(frame.payload[4..8], [0; 4], "an error: {frame:?}");
                self.said_goaway = true;
            }
            RST_STREAM => panic!("{frame:?} after {} bytes", self.body.len()),
            _ => {}
        }
        Ok(frame.kind)
    }
}

/// As [`read_late`], for two connections of HTTP/2 at once: one sends PING late, one `WINDOW_UPDATE`.
fn read_frames_late(settings: &[(&str, &str)], stop: Stop) {
    let drain = [("HOSTWARD_DRAIN_DELAY", "60s"), ("HOSTWARD_SHUTDOWN_TIMEOUT", "1s")];
    let task = Task::start(&[settings, &drain].concat(), long);
    let terminate = |when| {
        if when == stop {
            task.hostward.terminate();
            let drains = || task.hostward.lines().iter().any(|line| line["msg"] == "draining").then_some(());
            eventually("hostward drains", drains);
        }
    };
    let late = [("/ping", PING, &[0; 8][..]), ("/window", WINDOW_UPDATE, &[0, 0, 0, 1])];
    let mut clients = late.map(|_| SlowFrames::connect(task.hostward.address));
    terminate(Stop::Before);
    for (client, (path, ..)) in clients.iter_mut().zip(late) {
        let head = [(":method", "GET"), (":scheme", "http"), (":authority", "www.example.com"), (":path", path)];
        client.frames.ask(1, END_STREAM, &head);
        while client.read().unwrap() != HEADERS {}
    }
    terminate(Stop::During);
    for (client, (path, ..)) in clients.iter_mut().zip(late) {
        while !task.hostward.lines().iter().any(|line| line["msg"] == "request" && line["path"] == path) {
            client.read().unwrap_or_else(|error| panic!("{stop:?} {path}: {error}"));
            let left = LENGTH - client.body.len();
            if left < 64 << 10 {
                // On a very busy machine nothing may be left to be read late: then nothing is shown.
                return;
            }
            thread::sleep(Duration::from_millis(if left < 256 << 10 { 400 } else { 40 }));
        }
    }
    terminate(Stop::Behind);
    // Longer than hostward waits for a client that is silent and has its response.
    for pause in [2600, 2600, 100] {
        for (client, (path, kind, payload)) in clients.iter_mut().zip(late) {
            let sent = client.frames.send(kind, 0, 0, payload);
            sent.unwrap_or_else(|error| panic!("{stop:?} {path}: {error}"));
        }
        thread::sleep(Duration::from_millis(pause));
    }
    for (client, (path, ..)) in clients.iter_mut().zip(late) {
        // What it sends when it has everything may come after the close.
        client.acknowledges = false;
        let end = loop {
            if let Err(error) = client.read() {
                break error.kind();
            }
        };
        let length = client.body.len();
        assert!(client.body == body(), "{settings:?} {stop:?} {path}: {length} of {LENGTH} bytes, then {end}");
        assert_eq!((end, client.said_goaway), (ErrorKind::UnexpectedEof, true), "{settings:?} {stop:?} {path}");
    }
}

/// B2 for connections that end with a GOAWAY: with TLS and without, at each moment of a response, and because they are idle
/// as far as hostward is concerned.
#[test]
fn an_http_2_connection_that_ends_with_goaway_is_closed_in_stages_too() {
    thread::scope(|scope| {
        for settings in [&[][..], &[SELF_SIGNED]] {
            for stop in [Stop::Before, Stop::During, Stop::Behind] {
                scope.spawn(move || read_frames_late(settings, stop));
            }
            let idle = [settings, &[("HOSTWARD_IDLE_TIMEOUT", "1s")]].concat();
            scope.spawn(move || read_frames_late(&idle, Stop::Never));
        }
    });
}

#[test]
fn a_client_that_goes_on_sending_what_was_rejected_reads_why() {
    let post = "Content-Length: 1000000000\r\n\r\n";
    let limits = [("HOSTWARD_MAX_BODY_SIZE", "10"), ("HOSTWARD_MAX_HEADER_SIZE", "8KiB")];
    for settings in [&limits[..], &[limits[0], limits[1], SELF_SIGNED]] {
        let task = Task::echo(settings);
        let requests = [
            (413, format!("POST / HTTP/1.1\r\nHost: www.example.com\r\n{post}")),
            (413, format!("POST / HTTP/1.0\r\nHost: www.example.com\r\n{post}")),
            (
                413,
                "POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n".to_owned(),
            ),
            (421, format!("POST / HTTP/1.1\r\nHost: evil.example\r\n{post}")),
            (400, format!("POST / HTTP/1.1\r\nHost: www.example.com\r\nBad Name: x\r\n{post}")),
            (400, "POST / HTTP/1.1\nHost: www.example.com\n\n".to_owned()),
            (431, format!("POST / HTTP/1.1\r\nHost: www.example.com\r\nX-A: {}", "a".repeat(9000))),
        ];
        thread::scope(|scope| {
            for (status, request) in requests {
                let task = &task;
                scope.spawn(move || {
                    let mut client = task.client();
                    client.send(&request);
                    // For longer than a client that is silent would be waited for.
                    for _ in 0..35 {
                        let sent = client.try_send(vec![b'x'; 100_000]);
                        sent.unwrap_or_else(|error| panic!("{request:?}: {error}"));
                        thread::sleep(Duration::from_millis(100));
                    }
                    client.answer().expect(status);
                });
            }
        });
        assert_eq!(task.app.count(), 0);
    }
}

#[test]
fn a_client_that_does_not_close_is_not_waited_for_for_long() {
    let task = Task::start(&[("HOSTWARD_BODY_TIMEOUT", "1s")], long);
    let open = || kernel::descriptors(task.hostward.pid());
    task.get("/").expect(200);
    eventually("nothing is open but connections to the app", || {
        thread::sleep(Duration::from_millis(100));
        (open() == open()).then_some(())
    });
    let before = open();
    let request = "GET /x HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n";
    // One that has all of the response, and one that reads no more of it.
    let (mut reads, mut stalls) = (task.client(), slow_client(task.hostward.address));
    reads.send(request);
    reads.answer().expect(200);
    reads.assert_closed();
    let started = Instant::now();
    stalls.send(request);
    eventually("both are closed", || (open() <= before + 1).then_some(()));
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
}

#[test]
fn the_shutdown_timeout_ends_a_close_that_takes_long() {
    let settings = [("HOSTWARD_DRAIN_DELAY", "0s"), ("HOSTWARD_SHUTDOWN_TIMEOUT", "500ms")];
    let mut task = Task::start(&settings, |talk| talk.reply(answer("200 OK", "", "x")));
    let mut client = task.client();
    client.ask("GET /x HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n").expect(200);
    let started = Instant::now();
    task.hostward.terminate();
    assert!(task.hostward.wait(Duration::from_secs(5)).success());
    assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
}

#[test]
fn a_client_that_has_closed_is_not_lingered_for() {
    let task = Task::start(&[], |talk| talk.reply(answer("200 OK", "", "x")));
    let open = |hostward: &Hostward| kernel::descriptors(hostward.pid());
    task.get("/").expect(200);
    eventually("the first is gone", || {
        thread::sleep(Duration::from_millis(50));
        (open(&task.hostward) == open(&task.hostward)).then_some(())
    });
    let before = open(&task.hostward);
    for request in [
        "GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
    ] {
        let mut client = task.client();
        client.ask(request).expect(200);
        let started = Instant::now();
        drop(client);
        eventually("it is gone", || (open(&task.hostward) <= before).then_some(()));
        assert!(started.elapsed() < Duration::from_millis(400), "{:?}", started.elapsed());
    }
}
