//! `Upgrade`: a WebSocket is tunnelled after a 101 that agrees; nothing else switches protocols.

use std::io::Write;
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::support::app::{Conversation, Then, answer, hang};
use crate::support::wire::{Client, text};
use crate::support::{Task, eventually};

const HANDSHAKE: &str = "GET /chat HTTP/1.1\r\nHost: www.example.com\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Protocol: chat\r\nOrigin: https://www.example.com\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n";

/// Switches, then sends everything back until the other side ends, then says so.
fn websocket(talk: &mut Conversation<'_>) -> Then {
    talk.send(format!("{SWITCH}hello")).unwrap();
    loop {
        let bytes = std::mem::take(&mut talk.input.ahead);
        if talk.send(bytes).is_err() {
            return Then::Close;
        }
        let mut buffer = [0; 4096];
        match std::io::Read::read(&mut talk.input.stream, &mut buffer) {
            Ok(0) | Err(_) => {
                talk.send("bye").ok();
                return Then::Close;
            }
            Ok(length) => talk.input.ahead.extend_from_slice(&buffer[..length]),
        }
    }
}

fn read(client: &mut Client, expected: &str) {
    let bytes = client.input.exactly(expected.len()).unwrap_or_else(|broken| panic!("no {expected:?}: {broken}"));
    assert_eq!(text(&bytes), expected);
}

#[test]
fn a_websocket_is_tunnelled_both_ways_until_both_sides_end() {
    let task = Task::start(&[], websocket);
    let mut client = task.client();
    // The first bytes come with the handshake on both sides.
    client.send(format!("{HANDSHAKE}early"));
    let switched = client.answer_head().expect(101);
    assert_eq!(switched.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert!(
        switched.field("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")),
        "{}",
        switched.head
    );
    assert!(
        switched.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")),
        "{}",
        switched.head
    );
    read(&mut client, "hello");
    read(&mut client, "early");
    for message in ["one", "\0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n", &"three".repeat(50_000)] {
        client.send(message);
        read(&mut client, message);
    }
    client.half_close();
    assert_eq!(text(&client.rest()), "bye");
    assert_eq!(task.app.count(), 1);

    let received = task.app.last();
    received.assert_fields(&[
        ("host", "www.example.com"),
        ("upgrade", "websocket"),
        ("connection", received.field("connection").unwrap_or("upgrade")),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "chat"),
        ("origin", "https://www.example.com"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-port", "*"),
        ("x-forwarded-host", "www.example.com"),
        ("x-real-ip", "127.0.0.1"),
        ("x-request-id", "*"),
        ("x-request-start", "*"),
    ]);
    assert!(
        received.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")),
        "{}",
        received.head
    );
    assert_eq!(task.hostward.request_line("/chat")["status"], 101);
}

#[test]
fn bulk_and_small_messages_pass_in_order_both_ways_at_once() {
    let task = Task::start(&[], websocket);
    let mut client = task.client();
    client.send(HANDSHAKE);
    client.answer_head().expect(101);
    read(&mut client, "hello");
    let bulk: Vec<u8> = (0..24_u32 << 18).flat_map(u32::to_be_bytes).collect();
    for round in 0..3 {
        let mut sending = client.input.stream.tcp().try_clone().unwrap();
        let sent = bulk.clone();
        // Both directions are full meanwhile: nobody reads before everything is on its way.
        let sender = thread::spawn(move || sending.write_all(&sent).unwrap());
        let came = client.input.exactly(bulk.len()).unwrap_or_else(|broken| panic!("{round}: {broken}"));
        assert!(came == bulk, "{round}: other bytes");
        sender.join().unwrap();
        client.send("small");
        read(&mut client, "small");
    }
    client.send(&bulk[..1 << 20]);
    client.half_close();
    let rest = client.rest();
    assert!(rest[..1 << 20] == bulk[..1 << 20] && rest[1 << 20..] == *b"bye", "{} bytes", rest.len());
    let line = task.hostward.request_line("/chat");
    let bytes = 3 * (bulk.len() + 5) + (1 << 20);
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&bytes.into(), &(bytes + 8).into()));
}

#[test]
fn an_app_that_ends_the_tunnel_ends_it_for_the_client() {
    let task = Task::start(&[], |talk| {
        talk.send(format!("{SWITCH}bye")).unwrap();
        Then::Close
    });
    let mut client = task.client();
    client.send(HANDSHAKE);
    client.answer_head().expect(101);
    assert_eq!(text(&client.rest()), "bye");
}

#[test]
fn a_client_that_leaves_the_tunnel_leaves_the_app() {
    let (left, leaving) = mpsc::channel::<()>();
    let left = Mutex::new(left);
    let task = Task::start(&[], move |talk| {
        talk.send(SWITCH).unwrap();
        hang(talk);
        left.lock().unwrap().send(()).unwrap();
        Then::Close
    });
    let mut client = task.client();
    client.send(HANDSHAKE);
    client.answer_head().expect(101);
    drop(client);
    leaving.recv_timeout(Duration::from_secs(5)).unwrap();
}

#[test]
fn a_silent_tunnel_ends() {
    let task = Task::start(&[("HOSTWARD_TUNNEL_IDLE_TIMEOUT", "1s")], websocket);
    let mut client = task.client();
    client.send(HANDSHAKE);
    client.answer_head().expect(101);
    read(&mut client, "hello");
    client.rest();
    task.app.wait_open(0);
}

#[test]
fn a_stranger_gets_no_tunnel() {
    let task = Task::start(&[], websocket);
    for host in ["evil.example", "10.9.9.9"] {
        task.turned_away(HANDSHAKE.replace("Host: www.example.com", &format!("Host: {host}")), 421);
    }
}

#[test]
fn an_answer_other_than_101_passes() {
    let task = Task::start(&[], |talk| talk.reply(answer("403 Forbidden", "X-A: b\r\n", "no")));
    let mut client = task.client();
    for _ in 0..2 {
        let answer = client.ask(HANDSHAKE).expect(403);
        assert_eq!((answer.text().as_str(), answer.field("x-a")), ("no", Some("b")));
    }
}

#[test]
fn other_upgrades_are_stripped() {
    let task = Task::echo(&[]);
    for fields in [
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        "Upgrade: h2c\r\nConnection: Upgrade\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        "Upgrade: h2c\r\n",
        "Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n",
        "Upgrade: h2c, websocket\r\nConnection: Upgrade\r\n",
        "Upgrade: websocket\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n",
        "Upgrade: TLS/1.3\r\nConnection: upgrade\r\n",
        "Upgrade: foo/2\r\nConnection: close, upgrade\r\n",
        // Not an upgrade, because the connection doesn't say so.
        "Upgrade: websocket\r\n",
        "Connection: Upgrade\r\n",
    ] {
        let received = task.admitted(format!("GET / HTTP/1.1\r\nHost: www.example.com\r\n{fields}\r\n"));
        let head = received.head.to_ascii_lowercase();
        assert!(
            !head.contains("upgrade:") && !head.contains("http2-settings") && !head.contains("h2c"),
            "{fields}\n{head}"
        );
        assert!(received.all("connection").is_empty(), "{fields}\n{head}");
    }
    let received =
        task.admitted("GET / HTTP/1.0\r\nHost: www.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    assert!(received.all("upgrade").is_empty(), "{}", received.head);
}

#[test]
fn a_101_that_nobody_asked_for_is_502() {
    let plain = "GET /chat HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
    let h2c = SWITCH.replace("Upgrade: websocket", "Upgrade: h2c");
    let silent = SWITCH.replace("Upgrade: websocket\r\n", "");
    for (request, switch) in [(plain, SWITCH), (plain, &h2c), (HANDSHAKE, &h2c), (HANDSHAKE, &silent)] {
        let switch = switch.to_owned();
        let task = Task::start(&[], move |talk| {
            talk.send(format!("{switch}HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nevil!")).unwrap();
            Then::Keep
        });
        let mut client = task.client();
        client.send(request);
        let answer = client.answer().expect(502);
        assert!(
            answer.field("proxy-status").is_some_and(|value| value.contains("http_upgrade_failed")),
            "{}",
            answer.head
        );
        assert!(!answer.text().contains("evil"), "{}", answer.text());
        assert_eq!(task.app.count(), 1);
        // The connection to the app is not used again.
        task.app.wait_open(0);
    }
}

/// A tunnel is a connection to the app, for the limit and for the metrics, until it ends.
#[test]
fn tunnels_count_as_connections_to_the_app() {
    let task = Task::start(
        &[("HOSTWARD_UPSTREAM_MAX_CONNECTIONS", "5"), ("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT", "1s")],
        websocket,
    );
    let mut clients: Vec<Client> = (0..50).map(|_| task.client()).collect();
    for client in &mut clients {
        client.send(HANDSHAKE);
    }
    let (open, rejected): (Vec<_>, Vec<_>) = clients
        .into_iter()
        .map(|mut client| {
            let status = client.answer_head().status;
            (client, status)
        })
        .partition(|(_, status)| *status == 101);
    assert!(open.len() == 5 && rejected.iter().all(|(_, status)| *status == 503), "{} open", open.len());
    let metrics = || crate::support::wire::get(task.hostward.admin, "localhost", "/metrics").expect(200).text();
    let active = |count| format!("hostward_upstream_connections{{state=\"active\"}} {count}\n");
    assert!(metrics().contains(&active(5)), "{}", metrics());
    // Also for requests of other kinds.
    task.ask("GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(503);
    drop(open);
    eventually("the tunnels have ended", || metrics().contains(&active(0)).then_some(()));
    let mut client = task.client();
    client.send(HANDSHAKE);
    client.answer_head().expect(101);
}

/// RFC 9110 §15.5.22: "The server MUST send an Upgrade header field in a 426 response". §7.8: with the connection option.
#[test]
fn a_426_says_what_to_upgrade_to() {
    let task = Task::start(&[], |talk| {
        let (status, length) = match &*talk.request.target {
            "/400" => ("400 Bad Request", "Content-Length: 2\r\n"),
            "/chunked" => ("426 Upgrade Required", "Transfer-Encoding: chunked\r\n"),
            _ => ("426 Upgrade Required", "Content-Length: 2\r\n"),
        };
        let body = if talk.request.target == "/chunked" { "2\r\nno\r\n0\r\n\r\n" } else { "no" };
        talk.reply(format!(
            "HTTP/1.1 {status}\r\nUpgrade: websocket, TLS/1.0\r\nUpgrade: HTTP/3.0\r\nConnection: Upgrade, X-Hop\r\n\
             X-Hop: 1\r\n{length}\r\n{body}"
        ))
    });
    // Plain, and by hyper: with `TE`, in two segments, chunked.
    for (path, more) in [("/", ""), ("/", "TE: trailers\r\nConnection: te\r\n"), ("/chunked", "")] {
        let mut client = task.client();
        for part in [format!("GET {path} HTTP/1.1\r\nHost: www.exa"), format!("mple.com\r\n{more}\r\n")] {
            client.send(part);
        }
        let response = client.answer().expect(426);
        let offered: Vec<_> = response
            .fields
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("upgrade"))
            .map(|(_, value)| &**value)
            .collect();
        assert_eq!(offered, ["websocket, TLS/1.0", "HTTP/3.0"], "{}", response.head);
        assert_eq!(
            response.field("connection").map(str::to_ascii_lowercase).as_deref(),
            Some("upgrade"),
            "{}",
            response.head
        );
        assert_eq!((response.field("x-hop"), response.text().as_str()), (None, "no"));
        // The connection goes on.
        client.ask("GET /400 HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(400);
    }
    let other = task.get("/400").expect(400);
    assert_eq!((other.field("upgrade"), other.field("connection")), (None, None), "{}", other.head);
    let request = http::Request::get("http://www.example.com/").body(()).unwrap();
    let response = crate::support::http2::ask_once(task.hostward.address, request, b"");
    assert_eq!((response.status, response.fields.contains_key("upgrade")), (426, false), "{:?}", response.fields);
}
