//! Requests that break HTTP: what the client gets, and what the log says of them. Contract 3 and 8.

use std::io::Write;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::support::app::{Received, answer, echo};
use crate::support::frames::{DATA, END_STREAM, Frames, GOAWAY, HEADERS, Outcome, RST_STREAM};
use crate::support::hostward::Hostward;
use crate::support::http2;
use crate::support::tls::Stream;
use crate::support::uwsgi::{Packet, UwsgiApp};
use crate::support::wire::Client;
use crate::support::{PATIENCE, Task};

/// RFC 9113 §7.
const PROTOCOL_ERROR: u32 = 1;
const HOSTS: (&str, &str) = ("HOSTWARD_ALLOWED_HOSTS", "www.example.com");

/// The header list of a request for `path`, with these changes: a name that is given twice replaces the first.
fn head<'a>(path: &'a str, changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = vec![(":method", "GET"), (":scheme", "http"), (":authority", "www.example.com"), (":path", path)];
    for (name, value) in changes {
        match fields.iter_mut().find(|(given, _)| given == name) {
            Some(field) => field.1 = value,
            None => fields.push((name, value)),
        }
    }
    fields
}

/// Sends a request that the app holds on stream 1, then this one on stream 3. What becomes of both.
fn beside_one_in_progress(fields: &[(&str, &str)], settings: &[(&str, &str)]) -> (Outcome, Option<Outcome>, Task) {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let task = Task::start(settings, move |talk| {
        if talk.request.target == "/held" {
            gone.lock().unwrap().recv_timeout(PATIENCE).ok();
        }
        talk.reply(answer("200 OK", "", "here"))
    });
    let mut frames = Frames::connect(task.hostward.address, &[]);
    frames.ask(1, END_STREAM, &head("/held", &[]));
    task.app.wait_count(1);
    frames.ask(3, END_STREAM, fields);
    let mut malformed = None;
    let first = loop {
        let Some(frame) = frames.next() else { break Outcome::Closed };
        let code = |at: usize| u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap());
        match (frame.kind, frame.stream) {
            (GOAWAY, _) => break Outcome::GoAway(code(4)),
            (RST_STREAM, 1) => break Outcome::Reset(code(0)),
            (RST_STREAM, 3) => malformed = Some(Outcome::Reset(code(0))),
            (HEADERS, 3) => malformed = Some(Outcome::Answer(400)),
            // RFC 7541, appendix A: 8 is `:status: 200`.
            (HEADERS, 1) => {
                assert_eq!(frame.payload[0], 0x88, "{fields:?}");
                break Outcome::Answer(200);
            }
            _ => {}
        }
        if malformed.is_some() {
            go.send(()).ok();
        }
    };
    go.send(()).ok();
    assert_eq!(task.app.count(), 1, "{fields:?} reached the app");
    // Whatever became of the connection, hostward goes on.
    task.get("/after").expect(200);
    (first, malformed, task)
}

/// RFC 9113 §8.1.1: "Malformed requests or responses that are detected MUST be treated as a stream error".
#[test]
fn a_malformed_request_leaves_the_other_streams_alone() {
    let base = head("/", &[]);
    let without = |name: &str| base.iter().copied().filter(|(given, _)| *given != name).collect::<Vec<_>>();
    for fields in [
        head("/", &[("connection", "close")]),
        head("/", &[("keep-alive", "timeout=5")]),
        head("/", &[("proxy-connection", "close")]),
        head("/", &[("transfer-encoding", "chunked")]),
        head("/", &[("upgrade", "h2c")]),
        head("/", &[("te", "gzip")]),
        head("/", &[(":status", "200")]),
        head("/", &[(":scheme", "ht tp")]),
        head("/", &[("content-length", "5")]),
        head("/", &[("content-length", "x")]),
        head("/", &[("content-length", " 0")]),
        head("", &[]),
        head("/a b", &[]),
        head("/", &[(":authority", "user@www.example.com")]),
        head("/", &[(":authority", "a'b.example.com")]),
        head("/", &[("content-length", "")]),
        head("/", &[("x-a", " b")]),
        head("/", &[("x-a", "b\t")]),
        without(":method"),
        without(":scheme"),
        without(":path"),
        [&base[..], &[(":path", "/x")]].concat(),
        [&[("x-a", "b")], &base[..]].concat(),
        [&base[..], &[("content-length", "0"), ("content-length", "0")]].concat(),
        [&base[..], &[("content-length", "0"), ("content-length", "1")]].concat(),
    ] {
        let (first, malformed, _) = beside_one_in_progress(&fields, &[]);
        assert_eq!(first, Outcome::Answer(200), "{fields:?}");
        let refused = [Some(Outcome::Reset(PROTOCOL_ERROR)), Some(Outcome::Answer(400))];
        assert!(refused.contains(&malformed), "{fields:?}: {malformed:?}");
    }
}

/// The `h2` crate makes these errors of its HPACK decoder, which end the connection: RFC 9113 §5.4 has "an endpoint MAY
/// choose to treat a stream error as a connection error". From outside nothing can be done about it, since the state of
/// the compression is lost.
#[test]
fn a_header_that_the_decoder_refuses_ends_the_connection() {
    for (name, value) in [
        (":method", "GET?"),
        (":method", "GE T"),
        (":method", ""),
        ("", "x"),
        ("X-Foo", "x"),
        ("x foo", "x"),
        ("x-a", "b\0c"),
        ("x-a", "b\nc"),
        ("x-a", "b\rc"),
        (":unknown", "x"),
        (":path2", "/"),
    ] {
        let (first, malformed, task) = beside_one_in_progress(&head("/", &[(name, value)]), &[]);
        assert_eq!((first, malformed), (Outcome::GoAway(PROTOCOL_ERROR), None), "{name:?}: {value:?}");
        let line = task.hostward.line(|line| line["msg"] == "malformed request");
        assert!(line["error"].as_str().is_some_and(|error| error.contains("HTTP/2")), "{name:?}: {line}");
        assert_eq!(line["peer_ip"], "127.0.0.1", "{line}");
    }
}

/// The `content-length` lines of an HTTP/2 request, its body, and whether that is all right.
const LENGTHS: [(&[&str], &str, bool); 14] = [
    (&[""], "hello", false),
    (&["5", "5"], "hello", false),
    (&["5", "6"], "hello", false),
    (&["5 "], "hello", false),
    (&[" 5"], "hello", false),
    (&["\t5"], "hello", false),
    (&["5,5"], "hello", false),
    (&["+5"], "hello", false),
    (&["6"], "hello", false),
    (&["5"], "hello", true),
    (&["005"], "hello", true),
    (&[], "hello", true),
    (&["0"], "", true),
    (&[""], "", false),
];

/// Whether an app needs to be told the length of a body whose length the client didn't say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unsaid {
    /// It has been counted.
    Counted,
    /// It may be left out, or be counted.
    Streamed,
    /// It can't be asked: 411.
    Required,
}

/// The lengths that the app was told, and the body, of every request that reached it whole.
type Whole = Vec<(Vec<String>, Vec<u8>)>;

/// Sends each of [`LENGTHS`]: what is malformed never reaches the app whole, and of the rest it is told one number.
/// `heads` counts what has reached the app in part, too.
fn one_number_or_nothing(
    hostward: &Hostward,
    what: &str,
    unsaid: Unsaid,
    heads: impl Fn() -> usize,
    whole: impl Fn() -> Whole,
) {
    for (lines, data, is_valid) in LENGTHS {
        let before = whole().len();
        let mut frames = Frames::connect(hostward.address, &[]);
        let mut fields = head("/", &[(":method", "POST")]);
        fields.extend(lines.iter().map(|value| ("content-length", *value)));
        frames.ask(1, 0, &fields);
        frames.send(DATA, END_STREAM, 1, data.as_bytes()).ok();
        let outcome = frames.outcome(1);
        if !is_valid {
            let refused = [Outcome::Answer(400), Outcome::Reset(PROTOCOL_ERROR)];
            assert!(refused.contains(&outcome), "{what}, {lines:?}: {outcome:?}");
            assert_eq!(whole().len(), before, "{what}, {lines:?} reached the app");
            continue;
        }
        if lines.is_empty() && unsaid == Unsaid::Required {
            assert_eq!((outcome, whole().len()), (Outcome::Answer(411), before), "{what}");
            continue;
        }
        assert_eq!(outcome, Outcome::Answer(200), "{what}, {lines:?}");
        assert_eq!(whole().len(), before + 1, "{what}, {lines:?}");
        let (lengths, body) = whole().pop().unwrap();
        assert_eq!(body, data.as_bytes(), "{what}, {lines:?}");
        if !(lengths.is_empty() && lines.is_empty() && unsaid == Unsaid::Streamed) {
            assert_eq!(lengths, [data.len().to_string()], "{what}, {lines:?}");
        }
    }
    // That a length doesn't fit its body shows at the end of the body, when a head that is streamed has reached the app.
    assert!(heads() - whole().len() <= 1, "{what}: {} heads, {} requests", heads(), whole().len());
}

/// RFC 9110 §8.6, RFC 9113 §8.1.1: one number, or a malformed request. Bodies that wait to be complete, and that are
/// streamed.
#[test]
fn an_http_2_length_is_one_number_written_once() {
    for (mode, unsaid) in [("auto", Unsaid::Counted), ("on", Unsaid::Counted), ("off", Unsaid::Streamed)] {
        let task = Task::echo(&[("HOSTWARD_BUFFER_REQUESTS", mode)]);
        let whole = || {
            let complete = task.app.requests().into_iter().filter(|request| request.complete);
            let lengths = |request: &Received| request.all("content-length").into_iter().map(str::to_owned).collect();
            complete.map(|request| (lengths(&request), request.body)).collect()
        };
        one_number_or_nothing(&task.hostward, mode, unsaid, || task.app.count(), whole);
    }
}

/// The same before a uwsgi app, whose packet has one place for it, and before an HTTP/2 app, which gets frames again.
#[test]
fn an_http_2_length_is_one_number_whatever_the_app_speaks() {
    for mode in ["auto", "off"] {
        let app = UwsgiApp::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let url = app.url();
        let hostward = Hostward::start(&[HOSTS, ("HOSTWARD_UPSTREAM", &*url), ("HOSTWARD_BUFFER_REQUESTS", mode)]);
        let whole = || {
            let told = |packet: &Packet| {
                let lengths = packet.variables.iter().filter(|(name, _)| name.ends_with("CONTENT_LENGTH"));
                lengths.map(|(_, value)| value.clone()).collect()
            };
            app.received().into_iter().map(|packet| (told(&packet), packet.body)).collect()
        };
        let unsaid = if mode == "off" { Unsaid::Required } else { Unsaid::Counted };
        one_number_or_nothing(&hostward, &format!("uwsgi, {mode}"), unsaid, || app.received().len(), whole);

        let arrived = Arc::<Mutex<Whole>>::default();
        let arriving = Arc::clone(&arrived);
        let app = http2::App::start(100, move |mut talk| {
            let arriving = Arc::clone(&arriving);
            async move {
                let lengths = talk.head.headers().get_all("content-length");
                let lengths = lengths.iter().map(|value| value.to_str().unwrap().to_owned()).collect();
                let Ok((body, _)) = http2::body(&mut talk.body).await else { return };
                arriving.lock().unwrap().push((lengths, body));
                talk.reply(200, b"ok");
            }
        });
        let url = app.url();
        let hostward = Hostward::start(&[HOSTS, ("HOSTWARD_UPSTREAM", &*url), ("HOSTWARD_BUFFER_REQUESTS", mode)]);
        let whole = || arrived.lock().unwrap().clone();
        one_number_or_nothing(&hostward, &format!("h2c, {mode}"), Unsaid::Streamed, || app.heads().len(), whole);
    }
}

/// RFC 9113 §8.2.1: "A field value MUST NOT start or end with an ASCII whitespace character".
#[test]
fn white_space_around_an_http_2_value_is_malformed() {
    let task = Task::echo(&[]);
    for (name, value) in [
        ("x-a", " b"),
        ("x-a", "b "),
        ("x-a", "\tb"),
        ("x-a", " "),
        ("cookie", "a=b "),
        ("x-forwarded-for", " 6.6.6.6"),
    ] {
        let mut frames = Frames::connect(task.hostward.address, &[]);
        frames.ask(1, END_STREAM, &head("/", &[(name, value)]));
        assert_eq!(frames.outcome(1), Outcome::Answer(400), "{name}: {value:?}");
    }
    assert_eq!(task.app.count(), 0);
    let mut frames = Frames::connect(task.hostward.address, &[]);
    frames.ask(1, END_STREAM, &head("/", &[("x-a", "b c\td"), ("x-b", "")]));
    assert_eq!(frames.outcome(1), Outcome::Answer(200));
    assert_eq!((task.app.last().field("x-a"), task.app.last().field("x-b")), (Some("b c\td"), Some("")));
}

/// Sends a request whole, or so that its parts come one by one, and returns the line in the log that has `words`.
fn logged(task: &Task, request: &[u8], parts: usize, status: u16, words: &str) -> Value {
    let mut client = task.client();
    for part in request.chunks(request.len().div_ceil(parts)) {
        // hostward may have refused the request already.
        client.try_send(part).ok();
        if parts > 1 {
            // So that they are read apart; if they aren't, the test is weaker and not wrong.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    client.answer().expect(status);
    client.assert_closed();
    let line = task.hostward.line(|line| line["error"].as_str().is_some_and(|error| error.contains(words)));
    assert_eq!(
        (&line["level"], &line["status"], &line["peer_ip"]),
        (&"WARN".into(), &status.into(), &"127.0.0.1".into())
    );
    line
}

#[test]
fn a_malformed_request_is_logged_with_what_is_wrong_and_what_can_be_read() {
    let begin = "POST /path?query HTTP/1.1\r\nHost: www.example.com\r\n";
    for (rest, status, words, part) in [
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "two Transfer-Encoding lines",
            None,
        ),
        ("Transfer-Encoding: chunked, gzip\r\n\r\n", 400, "without one final chunked", None),
        ("Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "transfer coding", None),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "Content-Length and Transfer-Encoding", None),
        ("Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400, "Content-Length twice", None),
        ("Content-Length: five\r\n\r\n", 400, "Content-Length is not a number", None),
        ("X-A: b\r\n secret\r\n\r\n", 400, "folded", Some("which is folded")),
        ("X-A: b\r\nsecret\r\n\r\n", 400, "header name", Some("which has no colon")),
        ("X-A : secret\r\n\r\n", 400, "header name", Some("\"X-A \"")),
        ("X A: secret\r\n\r\n", 400, "header name", Some("\"X A\"")),
        ("X-A: secret\0\r\n\r\n", 400, "header value", Some("\"X-A\"")),
        ("X-A: b\n\r\n", 400, "LF without CR", None),
    ] {
        for parts in [1, 7] {
            let task = Task::echo(&[]);
            let line = logged(&task, format!("{begin}{rest}").as_bytes(), parts, status, words);
            assert_eq!(
                (&line["msg"], &line["method"], &line["host"], &line["path"]),
                (&"malformed request".into(), &"POST".into(), &"www.example.com".into(), &"/path".into()),
                "{line}"
            );
            let shown = line["part"].as_str();
            assert_eq!(shown.is_some(), part.is_some(), "{line}");
            assert!(part.is_none_or(|part| shown.unwrap().contains(part)), "{line}");
            assert!(!line.to_string().contains("secret") && !line.to_string().contains("query"), "{line}");
            let request = task.hostward.request_line("/path");
            assert_eq!(
                (&request["status"], &request["host"]),
                (&status.into(), &"www.example.com".into()),
                "{request}"
            );
            assert_eq!(task.app.count(), 0);
        }
    }
}

#[test]
fn a_head_that_is_too_large_one_with_too_many_headers_and_what_is_not_http_are_told_apart() {
    let task = Task::echo(&[("HOSTWARD_MAX_HEADER_SIZE", "32KiB")]);
    let begin = "GET /path HTTP/1.1\r\nHost: www.example.com\r\n";
    let large = format!("{begin}X-A: {}\r\n\r\n", "a".repeat(33_000));
    let line = logged(&task, large.as_bytes(), 1, 431, "the request head is too large");
    assert_eq!((&line["reason"], &line["path"]), (&"head_too_large".into(), &"/path".into()), "{line}");
    assert!(line["hint"].as_str().unwrap().contains("HOSTWARD_MAX_HEADER_SIZE"), "{line}");

    let many = |lines: usize| format!("{begin}{}\r\n", "X-A: b\r\n".repeat(lines));
    let line = logged(&task, many(1000).as_bytes(), 1, 431, "too many headers");
    assert_eq!((&line["reason"], &line["path"]), (&"too_many_headers".into(), &"/path".into()), "{line}");
    assert!(line["hint"].as_str().unwrap().contains("1,000"), "{line}");
    for lines in [99, 100, 101, 999] {
        assert_eq!(task.admitted(many(lines)).all("x-a").len(), lines);
    }
    let mut frames = Frames::connect(task.hostward.address, &[]);
    frames.ask(1, END_STREAM, &[&head("/", &[])[..], &vec![("x-a", "b"); 1000]].concat());
    assert_eq!(frames.outcome(1), Outcome::Answer(200));
    frames.ask(3, END_STREAM, &[&head("/", &[])[..], &vec![("x-a", "b"); 1001]].concat());
    assert_eq!(frames.outcome(3), Outcome::Answer(431));

    for (bytes, words) in [
        (&b"\x16\x03\x01\x02\x00\x01\r\n\r\n"[..], "not HTTP"),
        (b"GET / HTTP/9.9\r\nHost: www.example.com\r\n\r\n", "version"),
        (b"GET / HTTP/1.1\nHost: www.example.com\n\n", "LF without CR"),
    ] {
        let line = logged(&task, bytes, 1, 400, words);
        assert_eq!(line["msg"], "malformed request", "{line}");
    }
}

/// What the `http` crate can't hold as a target is refused after the head has been read.
#[test]
fn a_target_that_is_none_is_logged_with_what_can_be_read() {
    for target in ["foo:bar:baz", "http://", "?a=b", "http://[/x"] {
        let task = Task::echo(&[]);
        let request = format!("GET {target} HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
        let line = logged(&task, request.as_bytes(), 1, 400, "target");
        assert_eq!((&line["method"], &line["host"]), (&"GET".into(), &"www.example.com".into()), "{target}: {line}");
    }
}

/// What a client chooses in a broken request can't break the log.
#[test]
fn hostile_text_of_a_malformed_request_is_escaped_and_capped() {
    let task = Task::echo(&[]);
    let long = "a".repeat(20_000);
    let mut request = format!("GET /\"}}\\{long} HTTP/1.1\r\nHost: \"}}{long}\r\n").into_bytes();
    request.extend_from_slice(b"\xe2\x80\xae\x1b[31m\x07");
    request.extend_from_slice(format!("{long} x\r\n\r\n").as_bytes());
    let mut client = task.client();
    client.send(&request);
    client.answer().expect(400);
    task.hostward.line(|line| line["msg"] == "malformed request" && line["part"].is_string());
    for line in task.hostward.output().lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line.len() < 8192 && !line.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{line}");
    }
}

/// RFC 9113 §3.2: which version is spoken over TLS is what the handshake agreed on.
#[test]
fn bytes_of_another_version_than_tls_agreed_on_end_the_connection() {
    let task = Task::start(&[("HOSTWARD_TLS", "self-signed"), ("HOSTWARD_HEADER_TIMEOUT", "1s")], echo);
    let get = b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
    let tls = |protocols: &[&[u8]]| {
        let tcp = std::net::TcpStream::connect(task.hostward.address).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        Stream::tls(tcp, protocols)
    };
    // HTTP/1.1 where HTTP/2 was agreed on: at once, after a beginning that could be the preface, and a preface that stops.
    for bytes in [&get[..], b"POST / HTTP/1.1\r\n\r\n", b"\0", b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n", b"PRI * HT"] {
        let mut frames = Frames { stream: tls(&[b"h2"]) };
        frames.stream.write_all(bytes).unwrap();
        let settings = frames.next().expect("a frame");
        assert_eq!((settings.kind, settings.stream), (4, 0), "{bytes:?}");
        assert_eq!(frames.farewell(), Some(PROTOCOL_ERROR), "{bytes:?}");
    }
    let line = task.hostward.line(|line| line["error"].as_str().is_some_and(|error| error.contains("TLS agreed")));
    assert_eq!((&line["msg"], &line["method"]), (&"malformed request".into(), &"GET".into()), "{line}");
    // The other way round.
    let mut stream = tls(&[b"http/1.1"]);
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut client = Client { input: crate::support::wire::Input::new(stream) };
    client.answer().expect(400);
    client.assert_closed();
    assert_eq!(task.app.count(), 0);
    // Where nothing was agreed on, the first bytes say it.
    Client { input: crate::support::wire::Input::new(tls(&[])) }.ask(get).expect(200);
    let mut frames = Frames::over(tls(&[]), &[]);
    frames.ask(1, END_STREAM, &head("/", &[(":scheme", "https")]));
    assert_eq!(frames.outcome(1), Outcome::Answer(200));
    // And what was agreed on is served.
    Client { input: crate::support::wire::Input::new(tls(&[b"http/1.1"])) }.ask(get).expect(200);
    let mut frames = Frames::over(tls(&[b"h2"]), &[]);
    frames.ask(1, END_STREAM, &head("/", &[(":scheme", "https")]));
    assert_eq!(frames.outcome(1), Outcome::Answer(200));
}

/// So a load balancer tries whether TLS works.
#[test]
fn a_handshake_and_no_request_breaks_nothing() {
    let task = Task::echo(&[("HOSTWARD_TLS", "self-signed"), ("HOSTWARD_HEADER_TIMEOUT", "1s")]);
    for close in [true, false] {
        let tcp = std::net::TcpStream::connect(task.hostward.address).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut frames = Frames { stream: Stream::tls(tcp, &[b"h2"]) };
        if let Stream::Tls(stream) = &mut frames.stream {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        if close {
            frames.stream.half_close().unwrap();
        }
        assert_eq!(frames.farewell(), None);
    }
    assert!(!task.hostward.output().contains("malformed"), "{}", task.hostward.output());
}
