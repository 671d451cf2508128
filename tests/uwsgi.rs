//! An app that speaks uwsgi, byte for byte: what it gets for a request, and what its answers become. A real uWSGI is in
//! `real_apps::uwsgi`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::app::App;
use crate::support::hostward::Hostward;
use crate::support::http2;
use crate::support::uwsgi::{Packet, UwsgiApp};
use crate::support::wire::{Answer, Broken, Client, Framing, ask, get, text};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const HOST: &str = "Host: www.example.com";
/// Bodies are streamed.
const OFF: (&str, &str) = ("HOSTWARD_BUFFER_REQUESTS", "off");

fn before(app: &UwsgiApp, settings: &[(&str, &str)]) -> Hostward {
    let url = app.url();
    let mut all = vec![("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", &url)];
    all.extend(settings);
    Hostward::start(&all)
}

/// What the app gets for `request`, which must be answered 200.
fn packet(request: impl AsRef<[u8]>, settings: &[(&str, &str)]) -> Packet {
    let app = UwsgiApp::answering(OK);
    let hostward = before(&app, settings);
    ask(hostward.address, request).expect(200);
    let mut received = app.received();
    assert_eq!(received.len(), 1);
    received.remove(0)
}

/// What becomes of `answer`, which is followed by the end of the connection.
fn relayed(answer: &str) -> Result<Answer, Broken> {
    let app = UwsgiApp::answering(answer);
    let hostward = before(&app, &[]);
    let mut client = Client::connect(hostward.address);
    client.send(format!("GET / HTTP/1.1\r\n{HOST}\r\n\r\n"));
    client.try_answer()
}

#[test]
fn the_app_gets_these_variables_and_no_others() {
    let app = UwsgiApp::answering(OK);
    let hostward = before(&app, &[]);
    let mut client = Client::connect(hostward.address);
    let own_port = client.input.stream.tcp().local_addr().unwrap().port().to_string();
    client
        .ask(
            "POST /caf%C3%A9%2Fx?a=%20b HTTP/1.1\r\nHost: www.example.com:8443\r\nContent-Type: text/plain\r\n\
             Content-Length: 5\r\nX-One: 1\r\nx-one: 2\r\nCookie: a=1\r\nCookie: b=2\r\nConnection: x-hop\r\nX-Hop: 1\r\n\
             TE: trailers\r\n\r\nhello",
        )
        .expect(200);
    let packet = app.received().remove(0);
    assert_eq!((packet.header[0], packet.header[3], packet.body.as_slice()), (0, 0, &b"hello"[..]));
    let mut expected = vec![
        ("REQUEST_METHOD", "POST"),
        ("REQUEST_URI", "/caf%C3%A9%2Fx?a=%20b"),
        ("PATH_INFO", "/café/x"),
        ("QUERY_STRING", "a=%20b"),
        ("CONTENT_TYPE", "text/plain"),
        ("CONTENT_LENGTH", "5"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("REQUEST_SCHEME", "http"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("REMOTE_PORT", &own_port),
        ("SERVER_NAME", "www.example.com"),
        ("SERVER_PORT", "8443"),
        ("HTTP_HOST", "www.example.com:8443"),
        ("HTTP_X_ONE", "1, 2"),
        ("HTTP_COOKIE", "a=1; b=2"),
        ("HTTP_X_FORWARDED_FOR", "127.0.0.1"),
        ("HTTP_X_FORWARDED_PROTO", "http"),
        ("HTTP_X_FORWARDED_PORT", "8443"),
        ("HTTP_X_FORWARDED_HOST", "www.example.com:8443"),
        ("HTTP_X_REAL_IP", "127.0.0.1"),
    ];
    let id = packet.value("HTTP_X_REQUEST_ID").expect("an id");
    expected.push(("HTTP_X_REQUEST_ID", id));
    expected.push(("HTTP_X_REQUEST_START", packet.value("HTTP_X_REQUEST_START").expect("a time")));
    let mut got: Vec<_> = packet.variables.iter().map(|(name, value)| (&**name, &**value)).collect();
    got.sort_unstable();
    expected.sort_unstable();
    assert_eq!(got, expected);
}

#[test]
fn behind_a_load_balancer_the_app_sees_the_client_and_its_scheme() {
    let forwarded = "X-Forwarded-For: 203.0.113.5\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 443";
    let request = format!("GET / HTTP/1.1\r\n{HOST}\r\n{forwarded}\r\n\r\n");
    let seen = packet(&request, &[]);
    for (name, value) in [
        ("REMOTE_ADDR", Some("203.0.113.5")),
        ("REMOTE_PORT", Some("0")),
        ("REQUEST_SCHEME", Some("https")),
        ("HTTPS", Some("on")),
        ("SERVER_PORT", Some("443")),
        ("CONTENT_LENGTH", Some("")),
        ("CONTENT_TYPE", Some("")),
    ] {
        assert_eq!(seen.value(name), value, "{name}");
    }
    let seen = packet(&request, &[("HOSTWARD_TRUSTED_PROXIES", "none")]);
    for (name, value) in [("REMOTE_ADDR", Some("127.0.0.1")), ("REQUEST_SCHEME", Some("http")), ("HTTPS", None)] {
        assert_eq!(seen.value(name), value, "{name}");
    }
}

#[test]
fn a_client_sets_no_variable_but_its_own() {
    let lines = [
        "UWSGI-FILE: /evil",
        "UWSGI_SCRIPT: evil",
        "UWSGI_SETENV: evil",
        "Proxy: evil",
        "Content_Length: 99",
        "Content_Type: evil",
        "HTTPS: evil",
        "Remote-Addr: evil",
        "Path-Info: evil",
        "Script-Name: evil",
        "X-Forwarded-Host: evil",
        "X_Forwarded_Host: evil",
        "X-Forwarded-Ssl: evil",
        "Connection: upgrade",
        "Upgrade: evil",
        "Expect: 100-continue",
        "Content-Length: 0",
    ];
    let seen = packet(format!("POST / HTTP/1.1\r\n{HOST}\r\n{}\r\n\r\n", lines.join("\r\n")), &[]);
    let evil: Vec<_> = seen.variables.iter().filter(|(_, value)| value.contains("evil")).collect();
    let evil: Vec<_> = evil.iter().map(|(name, _)| &**name).collect();
    assert_eq!(evil, ["HTTP_HTTPS", "HTTP_PATH_INFO", "HTTP_REMOTE_ADDR", "HTTP_SCRIPT_NAME", "HTTP_UWSGI_FILE"]);
    assert_eq!(seen.value("CONTENT_LENGTH"), Some("0"));
    for name in ["HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE", "HTTP_EXPECT", "HTTP_UPGRADE", "HTTP_CONNECTION"] {
        assert_eq!(seen.value(name), None, "{name}");
    }
}

#[test]
fn a_path_that_has_no_bytes_or_no_end_is_400_and_does_not_reach_the_app() {
    let app = UwsgiApp::answering(OK);
    let hostward = before(&app, &[]);
    for path in ["/%00", "/a%00.html", "/%zz", "/%", "/%4"] {
        get(hostward.address, "www.example.com", path).expect(400);
    }
    assert!(app.received().is_empty());
    get(hostward.address, "www.example.com", "/?%00%zz").expect(200);
    get(hostward.address, "www.example.com", "//a/%2e%2e/b").expect(200);
    assert_eq!(app.received()[1].value("PATH_INFO"), Some("//a/../b"));
    ask(hostward.address, format!("OPTIONS * HTTP/1.1\r\n{HOST}\r\n\r\n")).expect(200);
    ask(hostward.address, format!("GET http://www.example.com?x=1 HTTP/1.1\r\n{HOST}\r\n\r\n")).expect(200);
    let seen = &app.received()[3];
    assert_eq!((seen.value("REQUEST_URI"), seen.value("PATH_INFO")), (Some("/?x=1"), Some("/")));
}

#[test]
fn what_the_packet_has_no_room_for_is_431() {
    let app = UwsgiApp::answering(OK);
    let hostward = before(&app, &[("HOSTWARD_MAX_HEADER_SIZE", "256KiB")]);
    let asking = |length: usize| {
        ask(hostward.address, format!("GET /long HTTP/1.1\r\n{HOST}\r\nX-Long: {}\r\n\r\n", "x".repeat(length)))
    };
    for length in [65_535, 65_536, 70_000, 200_000] {
        let answer = asking(length).expect(431);
        assert!(answer.closes(), "{}", answer.head);
    }
    assert!(app.received().is_empty());
    let line = hostward.line(|line| line["msg"] == "request too large");
    assert!(line["hint"].as_str().is_some_and(|hint| hint.contains("65,535")), "{line}");
    asking(64_000).expect(200);
    assert_eq!(app.received()[0].value("HTTP_X_LONG").map(str::len), Some(64_000));
}

#[test]
fn a_request_over_http2_becomes_the_same_variables() {
    let app = UwsgiApp::answering("HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nwhole");
    let hostward = before(&app, &[]);
    let request = http::Request::post("http://www.example.com:8443/a%20b?c")
        .header("content-length", "5")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers");
    let answer = http2::ask_once(hostward.address, request.body(()).unwrap(), b"hello");
    assert_eq!(
        (answer.status, answer.body.as_slice(), &answer.fields["x-a"]),
        (200, &b"whole"[..], &"b".parse().unwrap())
    );
    let seen = app.received().remove(0);
    for (name, value) in [
        ("REQUEST_METHOD", Some("POST")),
        ("REQUEST_URI", Some("/a%20b?c")),
        ("PATH_INFO", Some("/a b")),
        ("CONTENT_LENGTH", Some("5")),
        // uWSGI begins its answer with it.
        ("SERVER_PROTOCOL", Some("HTTP/1.1")),
        ("HTTP_HOST", Some("www.example.com:8443")),
        ("SERVER_NAME", Some("www.example.com")),
        // RFC 9113 §8.2.3: parted for compression, and put together again.
        ("HTTP_COOKIE", Some("a=1; b=2")),
        ("HTTP_TE", None),
    ] {
        assert_eq!(seen.value(name), value, "{name}");
    }
    assert_eq!(seen.body, b"hello");
    assert_eq!(http2::ask_once(hostward.address, http2::get("/"), b"").status, 200);
    assert_eq!(app.received()[1].value("CONTENT_LENGTH"), Some(""));
    // Without a length, as over HTTP/1.1.
    let request = || http::Request::post("http://www.example.com/").body(()).unwrap();
    assert_eq!(http2::ask_once(hostward.address, request(), b"hello").status, 200);
    let seen = &app.received()[2];
    assert_eq!((seen.value("CONTENT_LENGTH"), seen.body.as_slice()), (Some("5"), &b"hello"[..]));
    let hostward = before(&app, &[OFF]);
    assert_eq!(http2::ask_once(hostward.address, request(), b"hello").status, 411);
    assert_eq!(app.received().len(), 3);
}

#[test]
fn a_chunked_body_gets_its_length() {
    let app = UwsgiApp::answering(OK);
    // In memory, and beyond.
    for memory in ["1MiB", "64KiB"] {
        let hostward = before(&app, &[("HOSTWARD_BUFFER_MEMORY", memory)]);
        for length in [0, 1, 300_000] {
            let body = "x".repeat(length);
            let chunks: String = if length == 0 { String::new() } else { format!("{length:x}\r\n{body}\r\n") };
            ask(
                hostward.address,
                format!("POST / HTTP/1.1\r\n{HOST}\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n{chunks}0\r\nX: y\r\n\r\n"),
            )
            .expect(200);
            let seen = app.received().pop().unwrap();
            assert_eq!(seen.value("CONTENT_LENGTH"), Some(length.to_string().as_str()));
            assert_eq!((seen.body.len(), seen.value("HTTP_TRANSFER_ENCODING")), (length, None));
        }
    }
}

#[test]
fn a_body_of_unknown_length_is_411_without_buffering() {
    let app = UwsgiApp::answering(OK);
    let hostward = before(&app, &[OFF]);
    let answer = ask(
        hostward.address,
        format!("POST / HTTP/1.1\r\n{HOST}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    )
    .expect(411);
    assert!(answer.closes(), "{}", answer.head);
    let line = hostward.line(|line| line["msg"] == "request body of unknown length");
    assert!(line["hint"].as_str().is_some_and(|hint| hint.contains("HOSTWARD_BUFFER_REQUESTS")), "{line}");
    assert!(app.received().is_empty());
}

#[test]
fn a_client_that_expects_100_continue_gets_it() {
    let app = UwsgiApp::answering(OK);
    let hostward = before(&app, &[]);
    let mut client = Client::connect(hostward.address);
    client.send(format!("POST / HTTP/1.1\r\n{HOST}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"));
    let interim = client.input.head().unwrap_or_else(|broken| panic!("no 100: {broken}"));
    assert!(interim.starts_with(b"HTTP/1.1 100 "), "{}", text(&interim));
    client.send("hello");
    client.answer().expect(200);
    assert_eq!(app.received()[0].body, b"hello");
}

#[test]
fn every_request_has_a_connection_of_its_own_within_the_limit() {
    let (busy, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counting = (Arc::clone(&busy), Arc::clone(&most));
    let app = UwsgiApp::start(move |_, stream| {
        let (busy, most) = &counting;
        most.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        // Long enough for others to come, if they may.
        std::thread::sleep(Duration::from_millis(2));
        busy.fetch_sub(1, Ordering::SeqCst);
        stream.write_all(OK.as_bytes()).unwrap();
    });
    let hostward = before(&app, &[("HOSTWARD_UPSTREAM_MAX_CONNECTIONS", "2"), ("HOSTWARD_THREADS", "2")]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = Client::connect(hostward.address);
                for number in 0..10 {
                    // Neither method is held back by what is known of kept connections.
                    let method = if number % 2 == 0 { "GET" } else { "POST" };
                    client.ask(format!("{method} / HTTP/1.1\r\n{HOST}\r\nContent-Length: 1\r\n\r\nx")).expect(200);
                }
            });
        }
    });
    assert_eq!(app.received().len(), 80);
    assert_eq!(most.load(Ordering::SeqCst), 2);
    app.wait_closed();
}

#[test]
fn a_connection_that_the_app_leaves_open_is_closed_after_the_answer() {
    let app = UwsgiApp::start(|_, stream| {
        stream.write_all(OK.as_bytes()).unwrap();
        // Ends with hostward's side of the connection.
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    });
    let hostward = before(&app, &[("HOSTWARD_UPSTREAM_IDLE_TIMEOUT", "30s")]);
    let mut client = Client::connect(hostward.address);
    for _ in 0..3 {
        client.ask(format!("GET / HTTP/1.1\r\n{HOST}\r\n\r\n")).expect(200);
        app.wait_closed();
    }
    assert_eq!(app.received().len(), 3);
}

#[test]
fn an_answer_without_a_length_ends_with_the_connection() {
    let answer = relayed("HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nwhole").unwrap().expect(200);
    assert_eq!((answer.text().as_str(), answer.framing, answer.field("x-a")), ("whole", Framing::Chunked, Some("b")));
    let answer = relayed("HTTP/1.0 404 Gone Fishing\r\nConnection: close\r\n\r\n").unwrap().expect(404);
    assert_eq!((answer.text().as_str(), answer.closes()), ("", false));
    let answer = relayed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").unwrap();
    assert_eq!(answer.expect(200).text(), "ok");
    // For an HTTP/1.0 client, with its connection too.
    let app = UwsgiApp::answering("HTTP/1.1 200 OK\r\n\r\nwhole");
    let hostward = before(&app, &[]);
    let answer = ask(hostward.address, format!("GET / HTTP/1.0\r\n{HOST}\r\n\r\n")).expect(200);
    assert_eq!((answer.text().as_str(), answer.framing), ("whole", Framing::Close));
}

#[test]
fn an_answer_that_is_shorter_than_it_said_is_broken() {
    for answer in ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        // What has not been sent when the end is noticed is not sent any more.
        let broken = relayed(&format!("HTTP/1.1 200 OK\r\n{answer}")).unwrap_err();
        assert_ne!(broken.why, std::io::ErrorKind::TimedOut, "{broken}");
    }
}

#[test]
fn the_answer_to_head_has_no_body_whatever_the_app_sends() {
    for body in ["", "ok"] {
        let app = UwsgiApp::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{body}"));
        let hostward = before(&app, &[]);
        let mut client = Client::connect(hostward.address);
        for _ in 0..2 {
            client.send(format!("HEAD / HTTP/1.1\r\n{HOST}\r\n\r\n"));
            assert_eq!(client.answer_to_head().expect(200).field("content-length"), Some("2"));
        }
        assert_eq!(app.received()[0].value("REQUEST_METHOD"), Some("HEAD"));
    }
}

#[test]
fn an_answer_that_is_not_strictly_http_is_502() {
    for answer in [
        "Status: 200 OK\r\nContent-Type: text/plain\r\n\r\nok",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nX-A: b\nSet-Cookie: evil=1\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX-A: b\r\n folded\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX-A : b\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX-A: b\0\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "nonsense",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nevil",
    ] {
        let relayed = relayed(answer).unwrap_or_else(|broken| panic!("{answer:?}: {broken}"));
        assert_eq!(relayed.status, 502, "{answer:?}\n{}{}", relayed.head, relayed.text());
        assert!(!relayed.head.contains("evil") && !relayed.text().contains("evil"), "{answer:?}");
    }
    let app = UwsgiApp::answering("Status: 200 OK\r\n\r\nok");
    let hostward = before(&app, &[]);
    get(hostward.address, "www.example.com", "/").expect(502);
    let line = hostward.line(|line| line["msg"] == "app sent a malformed answer");
    assert!(line["hint"].as_str().is_some_and(|hint| hint.contains("uwsgi:// in HTTP/1.1")), "{line}");
}

#[test]
fn a_websocket_is_not_asked_for() {
    let seen = packet(
        format!(
            "GET / HTTP/1.1\r\n{HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ),
        &[],
    );
    assert_eq!((seen.value("HTTP_UPGRADE"), seen.value("HTTP_CONNECTION")), (None, None));
}

#[test]
fn interim_answers_come_first() {
    let answer = relayed(&format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{OK}")).unwrap().expect(200);
    assert_eq!((answer.interim.len(), answer.interim[0].status, answer.text().as_str()), (1, 103, "ok"));
}

#[test]
fn an_app_that_answers_before_the_body_is_heard() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("uwsgi://{}", listener.local_addr().unwrap());
    let hostward = Hostward::start(&[("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", &url), OFF]);
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut header = [0; 4];
        stream.read_exact(&mut header).unwrap();
        stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").unwrap();
        // Open until the answer has arrived: what is lost in a reset is the app's affair.
        stream
    });
    let mut client = Client::connect(hostward.address);
    client.send(format!("POST / HTTP/1.1\r\n{HOST}\r\nContent-Length: 1000000\r\n\r\nsome"));
    assert_eq!(client.answer().expect(413).text(), "no");
    drop(serving.join().unwrap());
}

#[test]
fn an_app_that_is_not_there_or_hangs_up_is_502() {
    let url = format!("uwsgi://{}", App::nowhere());
    let nowhere = [
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
        ("HOSTWARD_UPSTREAM", &url),
        ("HOSTWARD_UPSTREAM_START_TIMEOUT", "0s"),
    ];
    let hostward = Hostward::start(&nowhere);
    let answer = get(hostward.address, "www.example.com", "/").expect(502);
    assert!(answer.field("proxy-status").is_some_and(|value| value.contains("connection_refused")), "{}", answer.head);

    let app = UwsgiApp::start(|_, _| {});
    let hostward = before(&app, &[]);
    for method in ["GET", "POST"] {
        let request = format!("{method} / HTTP/1.1\r\n{HOST}\r\nContent-Length: 1\r\n\r\nx");
        let answer = ask(hostward.address, request).expect(502);
        assert!(answer.field("proxy-status").is_some_and(|value| value.contains("connection_terminated")));
    }
    // A connection that is used once is no reason to ask twice.
    assert_eq!(app.received().len(), 2);
    let line = hostward.line(|line| line["msg"] == "app closed connection");
    assert!(line["hint"].as_str().is_some_and(|hint| hint.contains("buffer-size")), "{line}");
}

#[test]
fn an_app_that_does_not_answer_is_504() {
    let app = UwsgiApp::start(|_, stream| drop(stream.read(&mut [0])));
    let hostward = before(&app, &[("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT", "1s")]);
    let started = Instant::now();
    get(hostward.address, "www.example.com", "/").expect(504);
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    app.wait_closed();
}

#[test]
fn the_ready_path_is_asked_for_in_uwsgi() {
    let answers = |packet: &Packet, stream: &mut TcpStream| {
        let status = if packet.value("PATH_INFO") == Some("/health") { "204 No Content" } else { "500 Oh" };
        write!(stream, "HTTP/1.1 {status}\r\nX-Long: {}\r\n\r\n", "x".repeat(5000)).unwrap();
    };
    let app = UwsgiApp::start(answers);
    let hostward = before(&app, &[("HOSTWARD_READY_PATH", "/health?deep=1")]);
    get(hostward.admin, "localhost", "/readyz").expect(200);
    let seen = app.received().remove(0);
    for (name, value) in [
        ("REQUEST_METHOD", "GET"),
        ("REQUEST_URI", "/health?deep=1"),
        ("HTTP_HOST", "www.example.com"),
        ("SERVER_NAME", "www.example.com"),
        ("HTTPS", "on"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("HTTP_USER_AGENT", "hostward-readiness"),
    ] {
        assert_eq!(seen.value(name), Some(value), "{name}");
    }
    let hostward = before(&app, &[("HOSTWARD_READY_PATH", "/other")]);
    assert!(get(hostward.admin, "localhost", "/readyz").expect(503).text().contains("500"));
    let silent = UwsgiApp::start(|_, _| {});
    let hostward = before(&silent, &[("HOSTWARD_READY_PATH", "/health")]);
    get(hostward.admin, "localhost", "/readyz").expect(503);
}

#[test]
fn explain_shows_the_variables() {
    let settings = [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", "uwsgi://127.0.0.1:3031")];
    let output = Hostward::run(&["explain", "--host", "www.example.com", "--header", "X-A: b"], &settings);
    let said = text(&output.stdout);
    for line in
        ["  REQUEST_METHOD=GET\n", "  HTTP_HOST=www.example.com\n", "  HTTP_X_A=b\n", "  SERVER_PROTOCOL=HTTP/1.1\n"]
    {
        assert!(said.contains(line), "{line} is not in {said}");
    }
    let output = Hostward::run(&["explain", "--format", "json", "--host", "www.example.com"], &settings);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let variables = said["app_sees"]["variables"].as_array().unwrap();
    assert!(variables.contains(&serde_json::json!(["HTTP_HOST", "www.example.com"])), "{said}");
}
