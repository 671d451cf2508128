//! `HOSTWARD_TLS`: contract 4. Every client here is a real one: rustls, OpenSSL's `s_client`, curl.

mod files;
mod handshake;
mod lying;

use std::io::ErrorKind;
use std::net::Shutdown;
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::app::{Then, answer};
use crate::support::hostward::Hostward;
use crate::support::tls::openssl;
use crate::support::wire::{Client, text};
use crate::support::{Task, eventually};

const SELF_SIGNED: (&str, &str) = ("HOSTWARD_TLS", "self-signed");
const GET: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";

/// What `openssl s_client` says about hostward, with these arguments.
fn s_client(task: &Task, arguments: &[&str]) -> String {
    let address = task.hostward.address.to_string();
    openssl(&[&["s_client", "-connect", &address, "-servername", "www.example.com"], arguments].concat(), "")
}

#[test]
fn openssl_shakes_hands_in_both_versions_and_sees_who_it_is() {
    let task =
        Task::echo(&[SELF_SIGNED, ("HOSTWARD_ALLOWED_HOSTS", "www.example.com,.example.org,*.example.net,10.0.0.9")]);
    let logged = task.hostward.line(|line| line["msg"] == "certificate in use");
    assert_eq!(logged["source"], "self-signed");
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        for (offered, chosen) in [("h2,http/1.1", "h2"), ("http/1.1,h2", "h2"), ("http/1.1", "http/1.1")] {
            let said = s_client(&task, &[version, "-alpn", offered]);
            assert!(said.contains(&format!("ALPN protocol: {chosen}\n")), "{said}");
        }
        let said = s_client(&task, &[version]);
        assert!(said.contains("No ALPN negotiated"), "{said}");
        assert!(said.contains(&format!("New, {name}")), "{said}");
        let begin = said.find("-----BEGIN CERTIFICATE").unwrap_or_else(|| panic!("{said}"));
        let certificate = openssl(
            &["x509", "-noout", "-text", "-fingerprint", "-sha256", "-enddate", "-dateopt", "iso_8601"],
            &said[begin..],
        );
        for part in [
            "id-ecPublicKey",
            "NIST CURVE: P-256",
            "DNS:www.example.com, DNS:example.org, DNS:*.example.org, DNS:*.example.net, DNS:localhost",
            "IP Address:127.0.0.1",
            "IP Address:10.0.0.9",
            "CA:FALSE",
            logged["sha256"].as_str().unwrap(),
            &logged["expires"].as_str().unwrap().replace('T', " "),
        ] {
            assert!(certificate.contains(part), "no {part:?} in {certificate}");
        }
        assert!(!certificate.contains("DNS:10.0.0.9"), "{certificate}");
    }
}

#[test]
fn two_starts_have_two_keys() {
    let fingerprint = || {
        let task = Task::echo(&[SELF_SIGNED]);
        task.hostward.line(|line| line["msg"] == "certificate in use")["sha256"].clone()
    };
    assert_ne!(fingerprint(), fingerprint());
}

#[test]
fn a_session_is_resumed() {
    let task = Task::echo(&[SELF_SIGNED]);
    let said = s_client(&task, &["-tls1_2", "-reconnect"]);
    assert_eq!(said.matches("Reused, TLSv1.2").count(), 5, "{said}");
}

#[test]
fn curl_gets_its_answer() {
    let task = Task::echo(&[SELF_SIGNED]);
    for (version, http, spoken) in [
        ("1.2", "--http1.1", "HTTP/1.1"),
        ("1.3", "--http1.1", "HTTP/1.1"),
        ("1.2", "--http2", "HTTP/2"),
        ("1.3", "--http2", "HTTP/2"),
    ] {
        let address = task.hostward.address;
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--insecure", "--max-time", "10", "--tls-max", version, http])
            .args(["--write-out", "\\nHTTP/%{http_version}"])
            .args(["--header", "Host: www.example.com", "--data", "hello", &format!("https://{address}/curl")])
            .output()
            .expect("curl is installed");
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(task.app.last().body, b"hello");
        let said = text(&output.stdout);
        assert!(said.contains("/curl") && said.ends_with(spoken), "{said}");
        assert_eq!(task.app.last().field("x-forwarded-proto"), Some("https"));
    }
}

#[test]
fn the_app_is_told_https_unless_a_trusted_proxy_knows_better() {
    for (trusted, said, told) in [
        ("private", "", "https"),
        ("private", "X-Forwarded-Proto: http\r\n", "http"),
        ("none", "X-Forwarded-Proto: http\r\n", "https"),
    ] {
        let task = Task::echo(&[SELF_SIGNED, ("HOSTWARD_TRUSTED_PROXIES", trusted), ("HOSTWARD_FORWARDED", "on")]);
        let received = task.admitted(format!("GET / HTTP/1.1\r\nHost: www.example.com\r\n{said}\r\n"));
        assert_eq!(received.field("x-forwarded-proto"), Some(told), "{}", received.head);
        assert!(received.field("forwarded").unwrap().ends_with(&format!("proto={told}")), "{}", received.head);
        let port = if told == "https" { "443" } else { "80" };
        assert_eq!(received.field("x-forwarded-port"), Some(port), "{}", received.head);
    }
}

#[test]
fn a_connection_is_kept_and_its_end_is_said() {
    let task = Task::echo(&[SELF_SIGNED, ("HOSTWARD_IDLE_TIMEOUT", "1s")]);
    let mut client = task.client();
    for _ in 0..3 {
        client.ask(GET).expect(200);
    }
    assert_eq!(client.end(), ErrorKind::UnexpectedEof, "idle for too long");
    let mut client = task.client();
    client.ask("GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n").expect(200);
    assert_eq!(client.end(), ErrorKind::UnexpectedEof, "as the client asked");
    let mut client = task.client();
    client.send("GET / HTTP/1.1\nHost: www.example.com\n\nmore that nobody reads");
    client.answer().expect(400);
    assert_eq!(client.end(), ErrorKind::UnexpectedEof, "after a broken request");
}

#[test]
fn an_answer_that_breaks_off_does_not_look_whole() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let task = Task::start(&[SELF_SIGNED], move |talk| {
        talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").unwrap();
        gone.lock().unwrap().recv().ok();
        Then::Close
    });
    let mut client = task.client();
    // An HTTP/1.0 client knows the end of such an answer by the connection's end alone.
    client.send("GET / HTTP/1.0\r\nHost: www.example.com\r\n\r\n");
    client.answer_head().expect(200);
    go.send(()).unwrap();
    assert_eq!(client.end(), ErrorKind::ConnectionAborted);
}

#[test]
fn a_client_that_has_said_everything_gets_its_answer() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let task = Task::start(&[SELF_SIGNED], move |talk| {
        gone.lock().unwrap().recv().ok();
        talk.reply(answer("200 OK", "", "here"))
    });
    for said in [true, false] {
        let mut client = task.client();
        client.send(GET);
        if said {
            client.half_close();
        } else {
            // Without close_notify, as many a client ends.
            client.input.stream.shutdown(Shutdown::Write).unwrap();
        }
        task.app.wait_count(if said { 1 } else { 2 });
        go.send(()).unwrap();
        assert_eq!(client.answer().expect(200).text(), "here");
        assert_eq!(client.end(), ErrorKind::UnexpectedEof);
    }
}

#[test]
fn interim_answers_do_not_wait_for_the_final_one() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let task = Task::start(&[SELF_SIGNED, ("HOSTWARD_BUFFER_REQUESTS", "off")], move |talk| {
        talk.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n").unwrap();
        gone.lock().unwrap().recv().ok();
        talk.reply(answer("200 OK", "", "here"))
    });
    let mut client = task.client();
    client.send("POST / HTTP/1.1\r\nHost: www.example.com\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let mut heads = String::new();
    while !(heads.contains(" 100 ") && heads.contains(" 103 ")) {
        heads += &text(&client.input.head().unwrap_or_else(|broken| panic!("{heads}: {broken}")));
    }
    go.send(()).unwrap();
    client.send("hello");
    assert_eq!(client.answer().expect(200).text(), "here");
}

/// Flushed bytes of an event stream arrive while the answer goes on, and a long answer arrives whole.
#[test]
fn streams_flow_and_long_bodies_are_whole_both_ways() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let task = Task::start(&[SELF_SIGNED], move |talk| {
        if talk.request.method == "POST" {
            let Ok(body) = talk.body() else { return Then::Close };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            return if talk.send(head).and_then(|()| talk.send(body)).is_ok() { Then::Keep } else { Then::Close };
        }
        talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\ndata: 1\r\n").unwrap();
        gone.lock().unwrap().recv().ok();
        talk.send("7\r\ndata: 2\r\n0\r\n\r\n").unwrap();
        Then::Keep
    });
    let mut client = task.client();
    client.send(GET);
    client.answer_head().expect(200);
    assert_eq!(client.input.chunk().unwrap().unwrap(), b"data: 1");
    go.send(()).unwrap();
    assert_eq!(client.input.chunk().unwrap().unwrap(), b"data: 2");
    assert!(client.input.chunk().unwrap().is_none());
    client.input.exactly(2).unwrap();

    let body: Vec<u8> = (0..5_000_000_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let head = format!("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: {}\r\n\r\n", body.len());
    client.send([head.as_bytes(), &body].concat());
    assert!(client.answer().expect(200).body == body);
}

#[test]
fn a_client_that_leaves_its_answer_lying_is_cut_off() {
    let task = Task::start(&[SELF_SIGNED, ("HOSTWARD_BODY_TIMEOUT", "1s")], |talk| {
        let block = "x".repeat(1 << 20);
        talk.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 << 20)).ok();
        for _ in 0..64 {
            if talk.send(&block).is_err() {
                return Then::Close;
            }
        }
        Then::Keep
    });
    let mut client = task.client();
    client.send(GET);
    client.answer_head().expect(200);
    task.app.wait_open(0);
    assert_eq!(client.end(), ErrorKind::ConnectionReset);
}

/// TLS takes bytes that the client has not: what waits there is neither lost nor taken for an idle connection.
#[test]
fn a_slow_client_gets_all_of_a_long_answer() {
    let size = 8 << 20;
    let task =
        Task::start(&[SELF_SIGNED, ("HOSTWARD_IDLE_TIMEOUT", "1s"), ("HOSTWARD_BODY_TIMEOUT", "30s")], move |talk| {
            talk.reply(answer("200 OK", "", &"x".repeat(size)))
        });
    let mut client = task.client();
    client.send(GET);
    client.answer_head().expect(200);
    let begun = Instant::now();
    let mut left = size;
    // Slow at first, and whole in the end.
    while begun.elapsed() < Duration::from_millis(2500) {
        let some = 32 * 1024;
        client.input.exactly(some).unwrap();
        left -= some;
        std::thread::sleep(Duration::from_millis(25));
    }
    client.input.exactly(left).unwrap();
    assert_eq!(client.end(), ErrorKind::UnexpectedEof);
}

const HANDSHAKE: &str = "GET /chat HTTP/1.1\r\nHost: www.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[test]
fn a_tunnel_ends_side_by_side() {
    let task = Task::start(&[SELF_SIGNED], |talk| {
        talk.send(format!("{SWITCH}hello")).unwrap();
        // Everything that the client says, until it says that this was all.
        let said = talk.input.rest().unwrap();
        talk.send(said).ok();
        Then::Close
    });
    let mut client = task.client();
    client.send(HANDSHAKE);
    client.answer_head().expect(101);
    assert_eq!(client.input.exactly(5).unwrap(), b"hello");
    let message = "three".repeat(100_000);
    client.send(&message);
    client.half_close();
    assert!(client.input.exactly(message.len()).unwrap() == message.as_bytes());
    assert_eq!(client.end(), ErrorKind::UnexpectedEof);
    assert_eq!(task.hostward.request_line("/chat")["bytes_in"], message.len());
}

#[test]
fn a_tunnel_holds_nothing_back() {
    let task = Task::start(&[SELF_SIGNED], |talk| {
        talk.send(SWITCH).unwrap();
        loop {
            let Ok(said) = talk.input.exactly(4) else { return Then::Close };
            talk.send(said).unwrap();
        }
    });
    let mut client = task.client();
    client.send(HANDSHAKE);
    client.answer_head().expect(101);
    for _ in 0..50 {
        client.send("ping");
        assert_eq!(client.input.exactly(4).unwrap(), b"ping");
    }
}

#[test]
fn a_tunnel_that_is_cut_says_goodbye() {
    let task = Task::start(&[SELF_SIGNED, ("HOSTWARD_TUNNEL_IDLE_TIMEOUT", "1s")], |talk| {
        talk.send(SWITCH).unwrap();
        talk.input.rest().ok();
        Then::Close
    });
    let mut client = task.client();
    client.send(HANDSHAKE);
    client.answer_head().expect(101);
    assert_eq!(client.end(), ErrorKind::UnexpectedEof);
}

#[test]
fn a_drain_says_goodbye() {
    let settings = [SELF_SIGNED, ("HOSTWARD_DRAIN_DELAY", "0s"), ("HOSTWARD_SHUTDOWN_TIMEOUT", "10s")];
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let mut task = Task::start(&settings, move |talk| {
        if talk.request.target == "/held" {
            gone.lock().unwrap().recv().ok();
        }
        talk.reply(answer("200 OK", "", "here"))
    });
    let (mut idle, mut held, mut stalled) = (task.client(), task.client(), Client::plain(task.hostward.address));
    idle.ask(GET).expect(200);
    held.send("GET /held HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
    task.app.wait_count(2);
    // Half a handshake.
    stalled.send(b"\x16\x03\x01\x02\x00\x01");
    let begun = Instant::now();
    task.hostward.terminate();
    task.hostward.line(|line| line["msg"] == "draining");
    assert_eq!(idle.end(), ErrorKind::UnexpectedEof);
    stalled.rest();
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    go.send(()).unwrap();
    assert!(held.answer().expect(200).closes());
    assert_eq!(held.end(), ErrorKind::UnexpectedEof);
    assert!(task.hostward.wait(Duration::from_secs(5)).success());
    assert_eq!(task.hostward.line(|line| line["msg"] == "stopped")["clean"], true);
}

#[test]
fn the_admin_port_and_the_health_check_stay_as_they_are() {
    let task = Task::echo(&[SELF_SIGNED]);
    let admin = task.hostward.admin.to_string();
    let settings =
        [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), SELF_SIGNED, ("HOSTWARD_ADMIN_LISTEN", admin.as_str())];
    let output = Hostward::run(&["healthcheck", "--ready"], &settings);
    assert_eq!((output.status.code(), text(&output.stdout).trim()), (Some(0), "ready"));
    // A file that is just being replaced is no reason to end a task.
    let settings = [
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
        ("HOSTWARD_TLS", "files"),
        ("HOSTWARD_TLS_CERT", "/nowhere.pem"),
        ("HOSTWARD_TLS_KEY", "/nowhere.key"),
        ("HOSTWARD_ADMIN_LISTEN", admin.as_str()),
    ];
    let output = Hostward::run(&["healthcheck"], &settings);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
}

#[test]
fn a_storm_of_half_handshakes_leaves_nothing_behind() {
    let task = Task::echo(&[SELF_SIGNED]);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", task.hostward.pid())).map_or(0, Iterator::count);
    task.get("/").expect(200);
    let before = descriptors();
    let clients: Vec<_> = (0..300)
        .map(|number| {
            let mut client = Client::plain(task.hostward.address);
            if number % 2 == 0 {
                client.send(b"\x16\x03\x01\x02\x00\x01");
            }
            client
        })
        .collect();
    task.get("/").expect(200);
    drop(clients);
    eventually("the descriptors are given back", || (descriptors() < before + 20).then_some(()));
    assert!(task.hostward.lines().len() < 20, "{}", task.hostward.output());
}
