//! An app at a path or with an abstract name.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use crate::streaming::noise;
use crate::support::app::{App, Conversation, Then, echo};
use crate::support::hostward::Hostward;
use crate::support::python::{Server, Site};
use crate::support::unix::{SocketPath, UnixSocket, bridge};
use crate::support::wire::{Client, ask, get, text};

const HOST: &str = "www.example.com";

fn before(url: &str, settings: &[(&str, &str)]) -> Hostward {
    let mut all = vec![("HOSTWARD_ALLOWED_HOSTS", HOST), ("HOSTWARD_UPSTREAM", url)];
    all.extend(settings);
    Hostward::start(&all)
}

#[test]
fn an_app_is_reached_by_its_path() {
    let (app, path) = (App::echo(), SocketPath::new());
    let _socket = path.listen(app.address);
    let hostward = before(&path.url(), &[]);
    let mut client = Client::connect(hostward.address);
    for number in 1..=3 {
        let request = format!("POST /{number} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n\r\nhello");
        client.ask(request).expect(200);
    }
    assert_eq!((app.last().target.as_str(), app.last().body.as_slice()), ("/3", &b"hello"[..]));
    get(hostward.address, "evil.example", "/").expect(421);
    assert_eq!(app.count(), 3);
    // A path is as ready as a port.
    get(hostward.admin, "localhost", "/readyz").expect(200);
    let output = Hostward::run(
        &["check", "--upstream"],
        &[("HOSTWARD_ALLOWED_HOSTS", HOST), ("HOSTWARD_UPSTREAM", &path.url())],
    );
    assert!(output.status.success(), "{}", text(&output.stdout));
}

#[test]
fn connections_to_a_path_are_kept() {
    let (app, path) = (App::echo(), SocketPath::new());
    let _socket = path.listen(app.address);
    let hostward = before(&path.url(), &[("HOSTWARD_UPSTREAM_IDLE_TIMEOUT", "30s"), ("HOSTWARD_THREADS", "1")]);
    let mut client = Client::connect(hostward.address);
    for _ in 0..5 {
        client.ask(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect(200);
    }
    assert_eq!((app.count(), app.connections()), (5, 1));
}

#[test]
fn an_app_is_reached_by_its_abstract_name() {
    let app = App::echo();
    let socket = UnixSocket::named(&format!("hostward-test-{}", std::process::id()), app.address);
    let hostward = before(&format!("http+unix:{}", socket.name), &[]);
    get(hostward.address, HOST, "/abstract").expect(200);
    assert_eq!(app.last().target, "/abstract");
    drop(socket);
    // What was kept of it may still lead to the app; a new connection doesn't.
    let hostward = before("http+unix:@hostward-test-nobody", &[("HOSTWARD_UPSTREAM_START_TIMEOUT", "0s")]);
    let answer = get(hostward.address, HOST, "/").expect(502);
    assert!(answer.field("proxy-status").is_some_and(|value| value.contains("connection_refused")), "{}", answer.head);
}

#[test]
fn a_path_that_is_not_there_yet_is_waited_for() {
    let (app, path) = (App::echo(), SocketPath::new());
    let hostward = before(&path.url(), &[("HOSTWARD_UPSTREAM_START_TIMEOUT", "20s")]);
    get(hostward.admin, "localhost", "/readyz").expect(503);
    let mut client = Client::connect(hostward.address);
    client.send(format!("GET /early HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    // It isn't answered as long as nothing is there.
    client.input.patience = Duration::from_millis(300);
    assert_eq!(client.try_answer().unwrap_err().why, std::io::ErrorKind::TimedOut);
    client.input.patience = Duration::from_secs(10);
    let _socket = path.listen(app.address);
    client.answer().expect(200);
    assert_eq!(app.count(), 1);
}

#[test]
fn a_path_that_never_comes_is_502_and_says_so() {
    let path = SocketPath::new();
    let hostward = before(&path.url(), &[("HOSTWARD_UPSTREAM_START_TIMEOUT", "1s")]);
    let started = Instant::now();
    let answer = get(hostward.address, HOST, "/").expect(502);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(answer.field("proxy-status").is_some_and(|value| value.contains("connection_refused")), "{}", answer.head);
    let line = hostward.line(|line| line["msg"] == "app refused connection");
    assert_eq!(line["upstream"], path.url());
    assert!(line["hint"].as_str().is_some_and(|hint| hint.contains("path")), "{line}");
}

#[test]
fn an_app_that_is_restarted_makes_its_path_anew() {
    let (old, new, path) = (App::echo(), App::echo(), SocketPath::new());
    let socket = path.listen(old.address);
    let hostward = before(&path.url(), &[("HOSTWARD_UPSTREAM_START_TIMEOUT", "0s")]);
    get(hostward.address, HOST, "/").expect(200);
    drop(socket);
    drop(old);
    // The path is there, and nobody listens: what a killed app leaves.
    crate::support::eventually("nobody answers", || (get(hostward.address, HOST, "/").status == 502).then_some(()));
    fs::remove_file(&path.0).unwrap();
    get(hostward.address, HOST, "/").expect(502);
    let _socket = path.listen(new.address);
    for _ in 0..3 {
        get(hostward.address, HOST, "/").expect(200);
    }
    assert_eq!(new.count(), 3);
}

#[test]
fn a_path_that_may_not_be_opened_is_told_apart() {
    let (app, path) = (App::echo(), SocketPath::new());
    let _socket = path.listen(app.address);
    fs::set_permissions(&path.0, fs::Permissions::from_mode(0o000)).unwrap();
    let url = path.url();
    let settings = [("HOSTWARD_ALLOWED_HOSTS", HOST), ("HOSTWARD_UPSTREAM", &url)];
    // Nothing keeps root from opening it.
    let hostward = Hostward::start_as_nobody(&settings);
    let answer = get(hostward.address, HOST, "/").expect(502);
    let status = answer.field("proxy-status");
    assert!(status.is_some_and(|value| value.contains("destination_unavailable")), "{}", answer.head);
    let line = hostward.line(|line| line["msg"] == "app unreachable");
    assert_eq!(line["reason"], "socket_forbidden");
    assert!(line["hint"].as_str().is_some_and(|hint| hint.contains("mode 666")), "{line}");
    fs::set_permissions(&path.0, fs::Permissions::from_mode(0o666)).unwrap();
    get(hostward.address, HOST, "/").expect(200);
}

#[test]
fn an_app_whose_queue_is_full_is_waited_for() {
    let (app, path) = (App::echo(), SocketPath::new());
    let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    let address = socket2::SockAddr::unix(&path.0).unwrap();
    listener.bind(&address).unwrap();
    listener.listen(1).unwrap();
    let mut waiting = Vec::new();
    loop {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        match socket.connect(&address) {
            Ok(()) => waiting.push(socket),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                break;
            }
        }
    }
    let settings = [("HOSTWARD_UPSTREAM_CONNECT_TIMEOUT", "1s")];
    let hostward = before(&path.url(), &settings);
    let started = Instant::now();
    get(hostward.address, HOST, "/").expect(504);
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());

    let hostward = before(&path.url(), &[]);
    let mut client = Client::connect(hostward.address);
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    client.input.patience = Duration::from_secs(2);
    assert_eq!(client.try_answer().unwrap_err().why, std::io::ErrorKind::TimedOut);
    client.input.patience = Duration::from_secs(10);
    // The app takes those that came first, and then hostward's.
    let relaying = thread::spawn(move || {
        for _ in &waiting {
            listener.accept().unwrap();
        }
        let (accepted, _) = listener.accept().unwrap();
        bridge(accepted.into(), std::net::TcpStream::connect(app.address).unwrap());
        app
    });
    client.answer().expect(200);
    assert_eq!(relaying.join().unwrap().count(), 1);
}

/// Agrees to a WebSocket, sends everything back until the other side ends, then says so.
fn websocket(talk: &mut Conversation<'_>) -> Then {
    talk.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello").unwrap();
    let said = talk.input.rest().unwrap();
    talk.send(said).unwrap();
    talk.send("bye").unwrap();
    Then::Close
}

#[test]
fn a_websocket_goes_through_a_path_and_either_side_ends_by_itself() {
    let (app, path) = (App::start(websocket), SocketPath::new());
    let _socket = path.listen(app.address);
    let hostward = before(&path.url(), &[]);
    let mut client = Client::connect(hostward.address);
    client.send(format!(
        "GET /chat HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ));
    client.answer_head().expect(101);
    assert_eq!(client.input.exactly(5).unwrap(), b"hello");
    let message = "message".repeat(50_000);
    client.send(&message);
    // The app answers only now, in the direction that is still open.
    client.half_close();
    assert_eq!(text(&client.rest()), message + "bye");
}

#[test]
fn a_slow_or_large_body_goes_through_a_path() {
    let (app, path) = (App::start(echo), SocketPath::new());
    let _socket = path.listen(app.address);
    let hostward = before(&path.url(), &[]);
    let body = "x".repeat(3_000_000);
    ask(hostward.address, format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
        .expect(200);
    assert_eq!(app.last().body.len(), body.len());
}

#[test]
fn a_long_answer_comes_through_a_path() {
    let body = noise(4 << 20);
    let sent = body.clone();
    let app = App::start(move |talk| {
        talk.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", sent.len())).unwrap();
        talk.send(&sent).unwrap();
        Then::Keep
    });
    let path = SocketPath::new();
    let _socket = path.listen(app.address);
    let hostward = before(&path.url(), &[("HOSTWARD_THREADS", "1")]);
    let mut client = Client::connect(hostward.address);
    for _ in 0..3 {
        assert!(client.ask(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).expect(200).body == body);
        assert_eq!(hostward.request_line("/")["bytes_out"], body.len());
    }
    assert_eq!(app.connections(), 1);
}

#[test]
fn gunicorns_django_is_reached_by_its_path() {
    let Some(site) = Site::start(Server::GunicornUnix, &[]) else { return };
    let hostward = before(&site.upstream(), &[("HOSTWARD_UPSTREAM_START_TIMEOUT", "0s")]);
    assert!(site.upstream().starts_with("http+unix:/"));
    let probe = ask(hostward.address, format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", hostward.address)).expect(200);
    assert!(probe.text().contains("https://www.example.com/"), "{}", probe.text());
    get(hostward.address, "evil.example", "/").expect(421);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = Client::connect(hostward.address);
                for _ in 0..10 {
                    let request = format!("POST /note HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n\r\nhello");
                    assert!(client.ask(request).expect(200).text().contains("hello"));
                }
            });
        }
    });
    assert_eq!(site.requests().len(), 81);
    drop(site);
    get(hostward.address, HOST, "/").expect(502);
}
