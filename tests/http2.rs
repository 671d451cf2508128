//! HTTP/2 by prior knowledge on the listener: the same requests and answers as over HTTP/1.1, the same strictness,
//! and bounds on what a client may cost. Contract 1, 3 and 4.

use std::io::Write;
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Request};

use crate::support::app::{Then, answer, echo, hang};
use crate::support::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Frames, GOAWAY, HEADERS, Outcome, PING,
    PREFACE, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame,
};
use crate::support::http2::{ask, ask_once, body, connect, get, run, until};
use crate::support::tls::Stream;
use crate::support::{Task, skip};

/// The pseudo-fields of a request that is all right.
const GOOD: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "www.example.com"), (":path", "/")];

fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&GOOD[..], more].concat()
}

/// The good head with one pseudo-field's value changed.
fn but<'a>(name: &str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    GOOD.iter().map(|(given, good)| (*given, if *given == name { value } else { *good })).collect()
}

fn without(name: &str) -> Vec<(&'static str, &'static str)> {
    GOOD.into_iter().filter(|(given, _)| *given != name).collect()
}

#[test]
fn a_request_reaches_the_app_as_over_http_1_1() {
    let task = Task::echo(&[]);
    let request = Request::post("http://www.example.com:8080/a/b?c=d")
        .header("user-agent", "two")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("accept", "*/*")
        .header("te", "trailers")
        .header("x-forwarded-host", "evil.example")
        .header("x_forwarded_for", "1.2.3.4")
        .header("content-length", "5")
        .body(())
        .unwrap();
    let answer = ask_once(task.hostward.address, request, b"hello");
    assert_eq!(answer.status, 200);
    assert!(!answer.fields.contains_key("connection") && answer.fields.contains_key("date"), "{:?}", answer.fields);
    let received = task.app.last();
    assert_eq!((received.method.as_str(), received.target.as_str()), ("POST", "/a/b?c=d"));
    assert_eq!(received.body, b"hello");
    received.assert_fields(&[
        ("host", "www.example.com:8080"),
        ("user-agent", "two"),
        ("cookie", "a=1; b=2"),
        ("accept", "*/*"),
        ("te", "trailers"),
        ("connection", "te"),
        ("content-length", "5"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-port", "*"),
        ("x-forwarded-host", "www.example.com:8080"),
        ("x-real-ip", "127.0.0.1"),
        ("x-request-id", "*"),
        ("x-request-start", "*"),
    ]);
    let line = task.hostward.request_line("/a/b");
    assert_eq!((&line["proto"], &line["status"], &line["bytes_in"]), (&"HTTP/2".into(), &200.into(), &5.into()));
}

#[test]
fn the_authority_decides_as_the_host_does() {
    let task = Task::echo(&[]);
    let ask = |fields: &[(&str, &str)]| {
        let mut frames = Frames::connect(task.hostward.address, &[]);
        frames.ask(1, END_STREAM, fields);
        frames.outcome(1)
    };
    assert_eq!(ask(&GOOD), Outcome::Answer(200));
    assert_eq!(ask(&with(&[("host", "www.example.com")])), Outcome::Answer(200));
    let host_alone = [&without(":authority")[..], &[("host", "www.example.com")]].concat();
    assert_eq!(ask(&host_alone), Outcome::Answer(200));
    assert_eq!(task.app.last().field("host"), Some("www.example.com"));
    // A probe, with the address that it connected to.
    let own = task.hostward.address.to_string();
    assert_eq!(ask(&but(":authority", &own)), Outcome::Answer(200));
    assert_eq!(task.app.last().field("host"), Some("www.example.com"));
    assert_eq!(task.app.last().field("x-forwarded-proto"), Some("https"));
    let options = [(":method", "OPTIONS"), (":scheme", "https"), (":authority", "www.example.com"), (":path", "*")];
    assert_eq!(ask(&options), Outcome::Answer(200));
    assert_eq!(task.app.last().target, "*");
    // What follows a fragment's `#` is nobody's business.
    assert_eq!(ask(&but(":path", "/a?b#/../c")), Outcome::Answer(200));
    assert_eq!(task.app.last().target, "/a?b");
    let before = task.app.count();
    for authority in ["evil.example", "10.9.9.9", "www.example.com.evil.example"] {
        assert_eq!(ask(&but(":authority", authority)), Outcome::Answer(421), "{authority}");
    }
    assert_eq!(task.app.count(), before);
}

#[test]
fn what_nobody_means_never_reaches_the_app() {
    let task = Task::echo(&[]);
    let mut cases = vec![without(":authority")];
    // Without a method, a scheme or a path there is no request.
    cases.extend([":method", ":scheme", ":path"].map(without));
    for authority in [
        "user@www.example.com",
        "www.example.com@evil.example",
        "www.example.com:x",
        "www.example.com:65536",
        "www.example.com/x",
        "www.example.com,evil.example",
        "www.example.com evil.example",
        " www.example.com",
        "www.example.com\0",
        "www.ex\u{e4}mple.com",
        "[::1",
        "[fe80::1%25eth0]",
        ":80",
        "",
    ] {
        cases.push(but(":authority", authority));
        cases.push([&without(":authority")[..], &[("host", authority)]].concat());
    }
    for path in [
        "",
        "x",
        "*",
        "/a b",
        "/a\rb",
        "/a\nb",
        "/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "/a\0b",
        "/a\tb",
        "/a\u{7f}b",
        "/\u{c3}\u{a4}",
        "http://evil.example/",
        "?x",
    ] {
        cases.push(but(":path", path));
    }
    for scheme in ["ftp", "", "http ", "ht\rtp", "http://x"] {
        cases.push(but(":scheme", scheme));
    }
    for method in ["", "GET /x HTTP/1.1\r\nX:", "G ET", "GET\n", "CONNECT", "TRACE"] {
        cases.push(but(":method", method));
    }
    let tunnel = [(":method", "CONNECT"), (":protocol", "websocket")];
    cases.push([&tunnel[..], &GOOD[1..]].concat());
    cases.push(vec![(":method", "CONNECT"), (":authority", "www.example.com:443")]);
    for repeated in GOOD {
        cases.push(with(&[repeated]));
        cases.push([&[("x-a", "b")], &GOOD[..]].concat());
    }
    for field in [
        ("host", "evil.example"),
        ("host", "www.example.com:80"),
        ("connection", "close"),
        ("connection", "x-a"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
        (":status", "200"),
        (":unknown", "x"),
        ("X-Upper", "x"),
        ("x a", "x"),
        ("x:a", "x"),
        ("", "x"),
        ("x-a\r\nx-b", "x"),
        ("x-a", "b\r\nX-Evil: 1"),
        ("x-a", "b\nc"),
        ("x-a", "b\0c"),
        ("content-length", "5"),
        ("content-length", "-1"),
        ("content-length", "+0"),
        ("content-length", "0, 0"),
        ("expect", "200-ok"),
    ] {
        cases.push(with(&[field]));
    }
    cases.push(with(&[("content-length", "0"), ("content-length", "1")]));
    cases.push(with(&[("host", "www.example.com"), ("host", "www.example.com")]));

    let mut wrong = Vec::new();
    for case in &cases {
        let mut frames = Frames::connect(task.hostward.address, &[]);
        frames.ask(1, END_STREAM, case);
        let outcome = frames.outcome(1);
        // RFC 9113 §8.1.1: malformed is a stream error; an answer before it is allowed, and says more.
        let refused = matches!(outcome, Outcome::Answer(400..=417) | Outcome::Reset(1) | Outcome::GoAway(1 | 9));
        if !refused {
            wrong.push((case, outcome));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(task.app.count(), 0, "{:?}", task.app.requests());
    let host = |outcome: &[(&str, &str)]| {
        let mut frames = Frames::connect(task.hostward.address, &[]);
        frames.ask(1, END_STREAM, outcome);
        frames.outcome(1)
    };
    assert_eq!(host(&but(":authority", "user@www.example.com")), Outcome::Answer(400));
    assert_eq!(host(&without(":authority")), Outcome::Answer(400));
    assert_eq!(host(&but(":method", "TRACE")), Outcome::Answer(405));
}

/// A8 over HTTP/2: an allowed domain has only subdomains that DNS could have, in `:authority` and in `host`.
#[test]
fn an_authority_with_a_character_that_no_dns_name_has_is_400() {
    let task = Task::echo(&[("HOSTWARD_ALLOWED_HOSTS", ".tenant.example.com")]);
    let ask = |fields: &[(&str, &str)]| {
        let mut frames = Frames::connect(task.hostward.address, &[]);
        frames.ask(1, END_STREAM, fields);
        frames.outcome(1)
    };
    assert_eq!(ask(&but(":authority", "a-b_c.tenant.example.com")), Outcome::Answer(200));
    for character in ["*", ";", "'", "!", "$", "&", "(", ")", "+", "=", "~"] {
        for name in [format!("{character}.tenant.example.com"), format!("a{character}b.tenant.example.com")] {
            assert_eq!(ask(&but(":authority", &name)), Outcome::Answer(400), "{name}");
            let host = [&without(":authority")[..], &[("host", name.as_str())]].concat();
            assert_eq!(ask(&host), Outcome::Answer(400), "{name} in host");
        }
    }
    assert_eq!(task.app.count(), 1);
}

#[test]
fn a_body_that_does_not_fit_its_length_is_never_a_whole_request() {
    let task = Task::echo(&[]);
    for (length, data) in [("3", "hello"), ("7", "hello")] {
        let mut frames = Frames::connect(task.hostward.address, &[]);
        frames.ask(1, 0, &[&but(":method", "POST")[..], &[("content-length", length)]].concat());
        frames.send(DATA, END_STREAM, 1, data.as_bytes()).unwrap();
        assert!(matches!(frames.outcome(1), Outcome::Reset(1) | Outcome::Answer(400)), "{length}");
    }
    assert_eq!(task.app.complete(), 0);
}

#[test]
fn a_body_of_unknown_length_that_is_streamed_is_chunked_and_trailers_come_back() {
    let task = Task::start(&[("HOSTWARD_BUFFER_REQUESTS", "off")], |talk| {
        talk.reply(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Digest\r\n\r\n\
             5\r\nhello\r\n0\r\nDigest: 42\r\nConnection: x\r\n\r\n",
        )
    });
    let (answer, trailers) = run(async {
        let mut sender = connect(task.hostward.address).await;
        let request = Request::post("http://www.example.com/up").header("te", "trailers").body(()).unwrap();
        let (response, mut stream) = sender.send_request(request, false).unwrap();
        stream.send_data(Bytes::from_static(b"one"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "3".parse().unwrap());
        trailers.insert("x-forwarded-for", "1.2.3.4".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
        body(&mut response.await.unwrap().into_body()).await.unwrap()
    });
    assert_eq!((answer.as_slice(), trailers.len(), &trailers["digest"]), (&b"hello"[..], 1, &"42".parse().unwrap()));
    let received = task.app.last();
    assert_eq!((received.field("transfer-encoding"), &received.body[..]), (Some("chunked"), &b"one"[..]));
}

#[test]
fn ten_mebibytes_up_and_down_on_five_streams_are_the_same_bytes() {
    let task = Task::start(&[], |talk| {
        let Ok(body) = talk.body() else { return Then::Close };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        if talk.send(head).and_then(|()| talk.send(&body)).is_ok() { Then::Keep } else { Then::Close }
    });
    let content: Vec<u8> = (0..10_u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    run(async {
        let sender = connect(task.hostward.address).await;
        let all = (0..5).map(|number| {
            let (sender, content) = (sender.clone(), Bytes::from(content.clone()));
            tokio::spawn(async move {
                let mut sender = sender.ready().await.unwrap();
                let request = Request::post(format!("http://www.example.com/{number}")).body(()).unwrap();
                let (response, mut stream) = sender.send_request(request, false).unwrap();
                stream.send_data(content.clone(), true).unwrap();
                let (body, _) = body(&mut response.await.unwrap().into_body()).await.unwrap();
                assert!(body == content, "{number}: {} bytes", body.len());
            })
        });
        for one in all.collect::<Vec<_>>() {
            one.await.unwrap();
        }
    });
}

#[test]
fn streams_are_answered_in_whatever_order_the_app_answers() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let task = Task::start(&[], move |talk| {
        if talk.request.target == "/held" {
            gone.lock().unwrap().recv().ok();
        }
        talk.reply(answer("200 OK", "", &talk.request.target.clone()))
    });
    run(async {
        let mut sender = connect(task.hostward.address).await;
        let (held, _) = sender.send_request(get("/held"), true).unwrap();
        for number in 0..100 {
            let path = format!("/{number}");
            let answer = ask(&mut sender, get(&path), b"").await.unwrap();
            assert_eq!((answer.status, answer.body), (200, path.into_bytes()));
        }
        go.send(()).unwrap();
        assert_eq!(body(&mut held.await.unwrap().into_body()).await.unwrap().0, b"/held");
    });
}

#[test]
fn interim_answers_reach_the_client() {
    let task = Task::start(&[], |talk| {
        talk.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\n\r\n").unwrap();
        echo(talk)
    });
    run(async {
        let mut sender = connect(task.hostward.address).await;
        let request = Request::post("http://www.example.com/").header("expect", "100-continue").body(()).unwrap();
        let (mut response, mut stream) = sender.send_request(request, false).unwrap();
        let mut seen = Vec::new();
        // The client waits with its body for the 100.
        while !seen.contains(&100) {
            let interim = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
            seen.push(interim.status().as_u16());
        }
        stream.send_data(Bytes::from_static(b"body"), true).unwrap();
        while let Some(interim) = std::future::poll_fn(|cx| response.poll_informational(cx)).await {
            seen.push(interim.unwrap().status().as_u16());
        }
        seen.sort_unstable();
        assert_eq!(seen, [100, 103]);
        assert_eq!(response.await.unwrap().status(), 200);
    });
    assert_eq!(task.app.last().body, b"body");
    assert_eq!(task.app.last().field("expect"), None);
}

#[test]
fn answers_without_a_body_end_with_their_head() {
    let task = Task::start(&[], |talk| {
        let answer = match &*talk.request.target {
            "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
            "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n",
        };
        talk.reply(answer)
    });
    for (method, path, status, length) in
        [("HEAD", "/", 200, Some("7")), ("GET", "/204", 204, None), ("GET", "/304", 304, Some("7"))]
    {
        let request = Request::builder().method(method).uri(format!("http://www.example.com{path}")).body(()).unwrap();
        let answer = ask_once(task.hostward.address, request, b"");
        let given = answer.fields.get("content-length").map(|length| length.to_str().unwrap());
        assert_eq!((answer.status, given, answer.body.len()), (status, length, 0), "{method} {path}");
        assert!(task.hostward.request_line(path)["error"].is_null(), "{}", task.hostward.output());
    }
    let request = Request::head("http://evil.example/").body(()).unwrap();
    let answer = ask_once(task.hostward.address, request, b"");
    assert_eq!((answer.status, answer.body.len()), (421, 0));
}

#[test]
fn a_stream_that_is_reset_drops_its_exchange_and_no_other() {
    let task = Task::start(&[], |talk| if talk.request.target == "/gone" { hang(talk) } else { echo(talk) });
    run(async {
        let mut sender = connect(task.hostward.address).await;
        let (response, mut stream) = sender.send_request(get("/gone"), true).unwrap();
        until(|| task.app.count() == 1).await;
        stream.send_reset(Reason::CANCEL);
        drop(response);
        // The reset is on its way before this request.
        assert_eq!(ask(&mut sender, get("/here"), b"").await.unwrap().status, 200);
    });
    assert_eq!(task.hostward.request_line("/gone")["status"], 499);
    // What hangs has been told.
    task.app.wait_open(0);
}

#[test]
fn a_broken_answer_resets_its_stream() {
    let task = Task::start(&[], |talk| {
        talk.body().unwrap();
        talk.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").unwrap();
        Then::Close
    });
    let error = run(async { ask(&mut connect(task.hostward.address).await, get("/"), b"").await.unwrap_err() });
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
    assert_eq!(task.hostward.request_line("/")["error"], "connection_terminated");
}

#[test]
fn closed_without_an_answer_is_a_reset() {
    let task = Task::echo(&[("HOSTWARD_REJECT_STATUS", "444")]);
    let mut frames = Frames::connect(task.hostward.address, &[]);
    frames.ask(1, END_STREAM, &but(":authority", "evil.example"));
    assert!(matches!(frames.outcome(1), Outcome::Reset(_)));
    frames.ask(3, END_STREAM, &GOOD);
    assert_eq!(frames.outcome(3), Outcome::Answer(200));
}

#[test]
fn the_preface_may_come_in_pieces_and_may_be_none() {
    let task = Task::echo(&[("HOSTWARD_HEADER_TIMEOUT", "2s")]);
    let mut frames = Frames::silent(task.hostward.address);
    for byte in PREFACE {
        frames.stream.write_all(&[*byte]).unwrap();
    }
    frames.send(SETTINGS, 0, 0, &[]).unwrap();
    frames.ask(1, END_STREAM, &GOOD);
    assert_eq!(frames.outcome(1), Outcome::Answer(200));

    // Begins like it, and is HTTP/1.1.
    for (start, rest) in [
        ("P", "OST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 0\r\n\r\n"),
        ("PR", "OPFIND / HTTP/1.1\r\nHost: www.example.com\r\n\r\n"),
        ("PRI", "NT / HTTP/1.1\r\nHost: www.example.com\r\n\r\n"),
    ] {
        let mut client = task.client();
        client.send(start);
        client.send(rest);
        client.answer().expect(200);
    }
    let before = task.app.count();
    for broken in ["PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n", "PRI * HTTP/1.1\r\nHost: www.example.com\r\n\r\n"] {
        let mut client = task.client();
        client.send(broken);
        assert!(matches!(client.answer().status, 400 | 505), "{broken}");
    }
    // Half of one has as long as a head may take.
    let mut client = task.client();
    client.send(&PREFACE[..20]);
    client.answer().expect(408);
    assert_eq!(task.app.count(), before);
}

#[test]
fn connections_that_ask_for_nothing_end() {
    let task = Task::echo(&[("HOSTWARD_HEADER_TIMEOUT", "1s"), ("HOSTWARD_IDLE_TIMEOUT", "1s")]);
    let started = Instant::now();
    let mut nothing = Frames::connect(task.hostward.address, &[]);
    let mut preface_alone = Frames::silent(task.hostward.address);
    preface_alone.stream.write_all(PREFACE).unwrap();
    let mut half_a_head = Frames::connect(task.hostward.address, &[]);
    half_a_head.send(HEADERS, 0, 1, &block(&GOOD)).unwrap();
    let mut idle = Frames::connect(task.hostward.address, &[]);
    idle.ask(1, END_STREAM, &GOOD);
    assert_eq!(idle.outcome(1), Outcome::Answer(200));
    assert_eq!(nothing.farewell(), Some(0));
    assert_eq!(idle.farewell(), Some(0));
    assert_eq!(half_a_head.farewell(), Some(ENHANCE_YOUR_CALM));
    preface_alone.farewell();
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_millis(900) && elapsed < Duration::from_secs(6), "{elapsed:?}");
}

#[test]
fn a_head_that_is_too_large_is_431() {
    let task = Task::echo(&[("HOSTWARD_MAX_HEADER_SIZE", "16KiB")]);
    let large = "a".repeat(20_000);
    let (head, one) = (block(&GOOD), block(&[("x-large", &large[..14_000])]));
    let mut frames = Frames::connect(task.hostward.address, &[]);
    let fields = with(&[("x-large", &large)]);
    let block = block(&fields);
    frames.send(HEADERS, END_STREAM, 1, &block[..16_000]).unwrap();
    frames.send(CONTINUATION, END_HEADERS, 1, &block[16_000..]).unwrap();
    assert_eq!(frames.outcome(1), Outcome::Answer(431));
    task.hostward.line(|line| line["msg"] == "request too large" && line["reason"] == "head_too_large");
    assert_eq!(task.hostward.request_line("/")["status"], 431);
    // Beyond twice the limit nobody reads on.
    let mut frames = Frames::connect(task.hostward.address, &[]);
    frames.send(HEADERS, END_STREAM, 1, &head).unwrap();
    for flags in [0, 0, END_HEADERS] {
        frames.send(CONTINUATION, flags, 1, &one).unwrap();
    }
    assert_eq!(frames.outcome(1), Outcome::Answer(431));
    // As many headers as HTTP/1.1 may not have either.
    let many = [&GOOD[..], &vec![("x-a", "b"); 1001]].concat();
    let mut frames = Frames::connect(task.hostward.address, &[]);
    frames.ask(1, END_STREAM, &many);
    assert_eq!(frames.outcome(1), Outcome::Answer(431));
    // A bomb: one long field in the table, and one byte for each time that it is meant.
    let mut bomb = vec![0x40, 3, b'x', b'-', b'b', 127, 0x80 | 1, 30];
    bomb.extend(std::iter::repeat_n(b'b', 127 + 1 + 30 * 128));
    bomb.extend(std::iter::repeat_n(0xbe, 12_000));
    let mut frames = Frames::connect(task.hostward.address, &[]);
    frames.send(HEADERS, END_HEADERS | END_STREAM, 1, &bomb).unwrap();
    assert!(!matches!(frames.outcome(1), Outcome::Answer(200)));
    assert_eq!(task.app.count(), 0);
}

#[test]
fn a_client_that_makes_no_room_is_cut() {
    let task =
        Task::start(&[("HOSTWARD_BODY_TIMEOUT", "1s")], |talk| talk.reply(answer("200 OK", "", &"x".repeat(1 << 20))));
    // SETTINGS_INITIAL_WINDOW_SIZE = 1000, and no update ever.
    let mut frames = Frames::connect(task.hostward.address, &[0, 4, 0, 0, 0x03, 0xe8]);
    let started = Instant::now();
    frames.ask(1, END_STREAM, &GOOD);
    frames.ask(3, END_STREAM, &GOOD);
    let mut resets = 0;
    while resets < 2 {
        let frame = frames.next().expect("the connection stays");
        resets += usize::from(frame.kind == RST_STREAM);
    }
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_millis(900) && elapsed < Duration::from_secs(5), "{elapsed:?}");
    task.app.wait_open(0);
    assert_eq!(task.hostward.request_line("/")["error"], "client_gone");
}

#[test]
fn a_client_that_reads_nothing_is_cut() {
    let task =
        Task::start(&[("HOSTWARD_BODY_TIMEOUT", "1s")], |talk| talk.reply(answer("200 OK", "", &"x".repeat(16 << 20))));
    let mut frames = Frames::connect(task.hostward.address, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    frames.send(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes()).unwrap();
    frames.ask(1, END_STREAM, &GOOD);
    task.app.wait_count(1);
    task.app.wait_open(0);
    assert_eq!(task.hostward.request_line("/")["error"], "client_gone");
}

/// Sends until hostward has had enough: how much that took. The connection ends with a GOAWAY that says why, and a
/// healthy client beside it is answered all the time.
fn flood(task: &Task, name: &str, most: usize, mut part: impl FnMut(u32) -> Vec<u8>) {
    let mut healthy = task.client();
    let mut frames = Frames::connect(task.hostward.address, &[]);
    let mut reader = Frames { stream: Stream::Plain(frames.stream.tcp().try_clone().unwrap()) };
    let farewell = std::thread::spawn(move || reader.farewell());
    let mut sent = 0;
    while sent < most && !farewell.is_finished() {
        // Odd, as a client's streams are.
        if frames.stream.write_all(&part(u32::try_from(sent).unwrap() * 2 + 1)).is_err() {
            break;
        }
        sent += 1;
        if sent % 500 == 0 {
            healthy.ask("GET /healthy HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(200);
        }
    }
    let code = farewell.join().unwrap();
    assert_eq!(code, Some(ENHANCE_YOUR_CALM), "{name}: after {sent}");
    healthy.ask("GET /healthy HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(200);
}

#[test]
fn floods_end_with_a_goaway() {
    let task = Task::echo(&[]);
    // As many as the credit is good for, ten times over; what is in the sockets' buffers counts too.
    let most = 200_000;
    flood(&task, "ping", most, |_| frame(PING, 0, 0, &[0; 8]));
    flood(&task, "settings", most, |_| frame(SETTINGS, 0, 0, &[]));
    flood(&task, "priority", most, |stream| frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 1]));
    flood(&task, "window updates", most, |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]));
    flood(&task, "unknown frames", most, |_| frame(0x42, 0, 0, b"x"));
    flood(&task, "empty data", most, |stream| {
        let head = block(&but(":method", "POST"));
        if stream == 1 { frame(HEADERS, END_HEADERS, 1, &head) } else { frame(DATA, 0, 1, &[]) }
    });
    flood(&task, "continuation", most, |stream| {
        if stream == 1 { frame(HEADERS, 0, 1, &block(&GOOD)) } else { frame(CONTINUATION, 0, 1, &block(&[("a", "b")])) }
    });
    task.hostward.line(|line| line["msg"] == "client floods" && line["reason"] == "http2_flood");
}

/// CVE-2023-44487: streams that are opened and reset at once.
#[test]
fn rapid_resets_end_with_a_goaway_and_cost_the_app_little() {
    let task = Task::start(&[], |talk| if talk.request.target == "/healthy" { echo(talk) } else { hang(talk) });
    flood(&task, "rapid reset", 100_000, |stream| {
        let mut bytes = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GOOD));
        bytes.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
        bytes
    });
    // Each a moment later, when its request is on the way to the app.
    flood(&task, "reset of the one before", 100_000, |stream| {
        let mut bytes = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GOOD));
        if stream > 1 {
            bytes.extend(frame(RST_STREAM, 0, stream - 2, &[0, 0, 0, 8]));
        }
        bytes
    });
    assert!(task.app.count() < 3000, "{} requests reached the app", task.app.count());
}

/// CVE-2025-8671: the client has hostward reset its streams, by window updates that overflow.
#[test]
fn resets_that_the_client_provokes_end_with_a_goaway() {
    let task = Task::start(&[], |talk| if talk.request.target == "/healthy" { echo(talk) } else { hang(talk) });
    flood(&task, "made you reset", 100_000, |stream| {
        let mut bytes = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GOOD));
        bytes.extend(frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes()));
        bytes
    });
    assert!(task.app.count() < 1500, "{} requests reached the app", task.app.count());
}

#[test]
fn more_streams_than_allowed_are_refused_and_the_others_served() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let task = Task::start(&[], move |talk| {
        gone.lock().unwrap().recv().ok();
        talk.reply(answer("200 OK", "", "here"))
    });
    let mut frames = Frames::connect(task.hostward.address, &[]);
    for stream in 0..140 {
        frames.ask(stream * 2 + 1, END_STREAM, &GOOD);
    }
    // RFC 9113 §5.1.2: REFUSED_STREAM.
    assert_eq!(frames.outcome(279), Outcome::Reset(7));
    drop(go);
    let mut answered = 0;
    while answered < 128 {
        let frame = frames.next().expect("the connection stays");
        assert!(frame.kind != GOAWAY);
        answered += usize::from(frame.kind == HEADERS);
    }
    assert_eq!(task.app.count(), 128);
}

#[test]
fn draining_says_goaway_and_finishes_what_is_in_flight() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let mut task = Task::start(&[("HOSTWARD_DRAIN_DELAY", "4s"), ("HOSTWARD_SHUTDOWN_TIMEOUT", "5s")], move |talk| {
        if talk.request.target == "/held" {
            gone.lock().unwrap().recv().ok();
        }
        talk.reply(answer("200 OK", "", "here"))
    });
    let mut busy = Frames::connect(task.hostward.address, &[]);
    busy.ask(1, END_STREAM, &GOOD);
    assert_eq!(busy.outcome(1), Outcome::Answer(200));
    busy.ask(3, END_STREAM, &but(":path", "/held"));
    task.app.wait_count(2);
    task.hostward.terminate();
    task.hostward.line(|line| line["msg"] == "draining");
    loop {
        let frame = busy.next().expect("a GOAWAY comes first");
        match frame.kind {
            GOAWAY => break assert_eq!(frame.payload, [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
            // RFC 9113 §6.8: it marks what is still on its way.
            PING if frame.flags & ACK == 0 => busy.send(PING, ACK, 0, &frame.payload).unwrap(),
            _ => {}
        }
    }
    // A new connection is served, and told afterwards.
    let mut new = Frames::connect(task.hostward.address, &[]);
    new.ask(1, END_STREAM, &GOOD);
    assert_eq!(new.outcome(1), Outcome::Answer(200));
    let said = std::iter::from_fn(|| new.next()).any(|frame| frame.kind == GOAWAY);
    assert!(said, "no GOAWAY after the answer");
    go.send(()).unwrap();
    let mut answered = false;
    while let Some(frame) = busy.next() {
        if frame.kind == PING && frame.flags & ACK == 0 {
            busy.send(PING, ACK, 0, &frame.payload).unwrap();
        }
        answered |= frame.kind == DATA && frame.stream == 3 && frame.payload == b"here";
    }
    assert!(answered, "what was in flight has not been finished");
    drop(new);
    assert!(task.hostward.wait(Duration::from_secs(8)).success());
    assert_eq!(task.hostward.line(|line| line["msg"] == "stopped")["clean"], true);
}

#[test]
fn what_takes_longer_than_the_shutdown_timeout_is_cut_and_recorded() {
    let mut task = Task::start(&[("HOSTWARD_DRAIN_DELAY", "0s"), ("HOSTWARD_SHUTDOWN_TIMEOUT", "1s")], hang);
    let mut frames = Frames::connect(task.hostward.address, &[]);
    frames.ask(1, END_STREAM, &but(":path", "/held"));
    task.app.wait_count(1);
    task.hostward.terminate();
    assert!(task.hostward.wait(Duration::from_secs(5)).success(), "{}", task.hostward.output());
    assert_eq!(frames.outcome(1), Outcome::Answer(503));
    let line = task.hostward.request_line("/held");
    assert_eq!((&line["status"], &line["error"]), (&503.into(), &"shutdown".into()), "{line}");
}

#[test]
fn curl_speaks_it() {
    let task = Task::echo(&[]);
    let version = Command::new("curl").arg("--version").output();
    if !version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("HTTP2")) {
        skip("the program curl with HTTP/2 (Debian: curl)");
        return;
    }
    let url = format!("http://{}/curl", task.hostward.address);
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "10", "--http2-prior-knowledge", "--write-out"]);
    curl.args(["\n%{http_version} %{http_code}", "--header", "Host: www.example.com", "--data", "a=b", &url]);
    let output = curl.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with("\n2 200"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(task.app.last().body, b"a=b");
    assert_eq!(task.app.last().field("host"), Some("www.example.com"));
}

#[test]
fn a_client_that_leaves_takes_its_exchanges_with_it() {
    let task = Task::start(&[], hang);
    let mut frames = Frames::connect(task.hostward.address, &[]);
    frames.ask(1, END_STREAM, &but(":path", "/one"));
    frames.ask(3, END_STREAM, &but(":path", "/two"));
    task.app.wait_count(2);
    drop(frames);
    task.app.wait_open(0);
    for path in ["/one", "/two"] {
        assert_eq!(task.hostward.request_line(path)["status"], 499);
    }
}

#[test]
fn the_log_is_about_requests_and_not_about_frames() {
    let task = Task::echo(&[("HOSTWARD_LOG_LEVEL", "debug")]);
    let mut frames = Frames::connect(task.hostward.address, &[]);
    frames.send(PING, ACK, 0, b"not sent").unwrap();
    frames.ask(1, END_STREAM, &but(":path", "/asked"));
    assert_eq!(frames.outcome(1), Outcome::Answer(200));
    task.hostward.request_line("/asked");
    let said: Vec<_> = task.hostward.lines().iter().map(|line| line["msg"].to_string()).collect();
    assert!(said.iter().all(|msg| !msg.contains("PING") && !msg.contains("frame")), "{said:?}");
}
