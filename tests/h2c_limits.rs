//! How many requests an HTTP/2 app takes at once, and what becomes of those that it doesn't take. Covered: limits that
//! its SETTINGS name and limits that it only shows by refusing, cold bursts of both kinds of clients, bodies, endless
//! responses, an app that never takes a request, and the words for each failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use http::{Method, Request, Response};
use tokio::sync::Notify;

use crate::h2c::before;
use crate::support::frames::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, RST_STREAM, SETTINGS};
use crate::support::http2::{App, ask, ask_once, body, connect, get, run};
use crate::support::wire::{self, Client};
use crate::support::{eventually, frames};

/// Sends this many requests at once, each with a body, and expects each one's body back.
fn burst(address: std::net::SocketAddr, requests: usize) {
    run(async {
        // hostward allows 128 streams on a connection.
        let mut senders = Vec::new();
        for _ in 0..requests.div_ceil(100) {
            senders.push(connect(address).await);
        }
        let all = (0..requests).map(|number| {
            let mut sender = senders[number / 100].clone();
            tokio::spawn(async move {
                let request = Request::post("http://www.example.com/burst").body(()).unwrap();
                let content = format!("request {number}");
                let answer = ask(&mut sender, request, content.as_bytes()).await.unwrap();
                assert_eq!((answer.status, answer.body.as_slice()), (200, content.as_bytes()));
            })
        });
        for one in all.collect::<Vec<_>>() {
            one.await.unwrap();
        }
    });
}

/// An app that sends back what came, after a while.
fn slow_echo(streams: u32) -> App {
    App::start(streams, |mut talk| async move {
        if let Ok((content, _)) = body(&mut talk.body).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
            talk.reply(200, &content);
        }
    })
}

#[test]
fn a_cold_burst_before_an_app_of_few_streams_loses_nothing() {
    for (streams, requests) in [(1, 45), (2, 300), (7, 300)] {
        let app = slow_echo(streams);
        let hostward = before(&app, &[("HOSTWARD_THREADS", "1")]);
        burst(hostward.address, requests);
        assert_eq!(app.heads().len(), requests);
        // Nothing had to be refused.
        let metrics = wire::get(hostward.admin, "localhost", "/metrics").expect(200).text();
        assert!(metrics.contains("hostward_upstream_retries_total 0\n"), "{metrics}");
    }
}

#[test]
fn a_cold_burst_of_http_1_clients_loses_nothing_either() {
    let app = slow_echo(1);
    let hostward = before(&app, &[]);
    let clients: Vec<_> = (0..45)
        .map(|number| {
            let mut client = Client::connect(hostward.address);
            client.send(format!("PUT /{number} HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 5\r\n\r\nhello"));
            client
        })
        .collect();
    for mut client in clients {
        assert_eq!(client.answer().expect(200).text(), "hello");
    }
}

/// RFC 9113 §5.1.2: an app may also show its limit by refusing.
#[test]
fn what_is_refused_without_a_limit_in_the_settings_is_sent_again() {
    for most in [1, 3] {
        let active = Arc::new(AtomicUsize::new(0));
        let app = App::start(1000, move |mut talk| {
            let active = Arc::clone(&active);
            async move {
                if active.fetch_add(1, Ordering::SeqCst) >= most {
                    talk.respond.send_reset(Reason::REFUSED_STREAM);
                } else if let Ok((content, _)) = body(&mut talk.body).await {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    talk.reply(200, &content);
                }
                active.fetch_sub(1, Ordering::SeqCst);
            }
        });
        let hostward = before(&app, &[("HOSTWARD_THREADS", "1")]);
        burst(hostward.address, 100);
    }
}

#[test]
fn an_app_that_refuses_for_a_while_is_asked_again() {
    let started = Instant::now();
    let app = App::start(100, move |mut talk| async move {
        if started.elapsed() < Duration::from_secs(2) {
            talk.respond.send_reset(Reason::REFUSED_STREAM);
        } else {
            talk.reply(200, b"here");
        }
    });
    let hostward = before(&app, &[]);
    assert_eq!(wire::get(hostward.address, "www.example.com", "/").expect(200).text(), "here");
}

#[test]
fn what_fails_is_said_in_words_that_fit_http_2() {
    let app = App::start(1, |mut talk| async move {
        match talk.head.uri().path() {
            "/refused" => talk.respond.send_reset(Reason::REFUSED_STREAM),
            "/reset" => talk.respond.send_reset(Reason::INTERNAL_ERROR),
            _ => std::future::pending().await,
        }
    });
    let settings = [("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT", "1s"), ("HOSTWARD_THREADS", "1")];
    let hostward = before(&app, &settings);
    for (path, status, message) in
        [("/refused", 502, "app refused stream"), ("/reset", 502, "app reset stream"), ("/silent", 504, "app too slow")]
    {
        let started = Instant::now();
        let answer = wire::get(hostward.address, "www.example.com", path).expect(status);
        assert!(started.elapsed() < Duration::from_secs(3), "{path}");
        assert_eq!(answer.field("retry-after").is_some(), path == "/refused");
        let line = hostward.line(|line| line["msg"] == message);
        let hint = line["hint"].as_str().unwrap();
        assert!(!hint.contains("uWSGI") && !hint.contains("buffer-size"), "{hint}");
    }
}

#[test]
fn what_finds_no_place_is_503_and_says_which_limit_of_the_app_it_was() {
    let app = App::start(1, |mut talk| async move {
        let stream = talk.begin(Response::new(()));
        std::future::pending::<()>().await;
        drop(stream);
    });
    let hostward = before(&app, &[("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT", "2s"), ("HOSTWARD_THREADS", "1")]);
    // Each on a connection of its own, which is as many as there may be.
    let begun: Vec<_> = (0..128)
        .map(|_| {
            let mut client = Client::connect(hostward.address);
            client.send("GET /endless HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
            client
        })
        .collect();
    app.wait_count(128);
    wire::get(hostward.address, "www.example.com", "/late").expect(503);
    let line = hostward.line(|line| line["msg"] == "app's stream limit reached");
    assert!(line["hint"].as_str().unwrap().contains("SETTINGS_MAX_CONCURRENT_STREAMS"), "{line}");
    assert_eq!(app.connections(), 128);
    drop(begun);
}

#[test]
fn a_request_takes_the_first_free_place_on_any_connection() {
    let end = Arc::new(Notify::new());
    let ended = Arc::clone(&end);
    let app = App::start(1, move |mut talk| {
        let ended = Arc::clone(&ended);
        async move {
            match talk.head.uri().path() {
                "/endless" => std::future::pending().await,
                "/long" => ended.notified().await,
                _ => {}
            }
            talk.reply(200, b"here");
        }
    });
    let hostward = before(&app, &[("HOSTWARD_THREADS", "1")]);
    let ask_for = |path: &str| {
        let mut client = Client::connect(hostward.address);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: www.example.com\r\n\r\n"));
        client
    };
    let _endless = ask_for("/endless");
    app.wait_count(1);
    // Fifteen more connections, which are idle afterwards.
    let mut long: Vec<_> = (0..15).map(|_| ask_for("/long")).collect();
    app.wait_count(16);
    end.notify_waiters();
    for client in &mut long {
        client.answer().expect(200);
    }
    for _ in 0..40 {
        let started = Instant::now();
        assert_eq!(wire::get(hostward.address, "www.example.com", "/").expect(200).text(), "here");
        assert!(started.elapsed() < Duration::from_secs(1));
    }
    assert_eq!(app.connections(), 16);
    // When all are taken, the place that becomes free first, wherever that is.
    let _more: Vec<_> = (0..126).map(|_| ask_for("/endless")).collect();
    app.wait_count(1 + 15 + 40 + 126);
    let mut last = ask_for("/long");
    app.wait_count(1 + 15 + 40 + 126 + 1);
    let mut waiting: Vec<_> = (0..5).map(|_| ask_for("/waiting")).collect();
    end.notify_waiters();
    last.answer().expect(200);
    for client in &mut waiting {
        client.answer().expect(200);
    }
}

/// An app whose SETTINGS come late: until then there may be one request.
#[test]
fn no_more_than_one_request_is_sent_before_the_app_s_settings() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let address = frames::serve(move |mut app| {
        let mut open = Vec::new();
        let begun = Instant::now();
        app.stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        while begun.elapsed() < Duration::from_millis(500) {
            match app.try_next() {
                Some(frame) if frame.kind == HEADERS => open.push(frame.stream),
                Some(_) => {}
                None => break,
            }
        }
        counter.fetch_add(open.len(), Ordering::SeqCst);
        app.stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // SETTINGS_MAX_CONCURRENT_STREAMS = 100.
        app.send(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]).ok();
        loop {
            for stream in open.drain(..) {
                app.send(HEADERS, END_HEADERS, stream, &frames::block(&[(":status", "200")])).ok();
                app.send(DATA, END_STREAM, stream, b"here").ok();
            }
            match app.try_next() {
                Some(frame) if frame.kind == HEADERS => open.push(frame.stream),
                Some(_) => {}
                None => return,
            }
        }
    });
    let url = format!("h2c://{address}");
    let settings =
        [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", url.as_str()), ("HOSTWARD_THREADS", "1")];
    let hostward = crate::support::hostward::Hostward::start(&settings);
    let mut all: Vec<_> = (0..20)
        .map(|_| {
            let mut client = Client::connect(hostward.address);
            client.send("GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
            client
        })
        .collect();
    for client in &mut all {
        assert_eq!(client.answer().expect(200).text(), "here");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

/// RFC 9110 §9.2.2: what is idempotent may be sent again when the connection broke; contract with the operator: while
/// its body is in memory.
#[test]
fn a_body_in_memory_is_sent_again_when_a_kept_connection_closes() {
    for (method, length, buffer) in [
        (Method::PUT, 5, "auto"),
        (Method::PUT, 70_000, "auto"),
        (Method::PUT, 900_000, "auto"),
        (Method::PUT, 900_000, "on"),
        (Method::DELETE, 70_000, "on"),
        (Method::GET, 0, "auto"),
    ] {
        let served = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&served);
        let address = frames::serve(move |mut app| {
            let first = counter.fetch_add(1, Ordering::SeqCst) == 0;
            // A large window for each stream, and for all.
            app.send(SETTINGS, 0, 0, &[0, 4, 0x00, 0xff, 0xff, 0xff]).ok();
            app.send(frames::WINDOW_UPDATE, 0, 0, &10_000_000_u32.to_be_bytes()).ok();
            let (mut bodies, mut received) = (0, 0);
            while let Some(frame) = app.try_next() {
                received += if frame.kind == DATA { frame.payload.len() } else { 0 };
                if first && bodies == 1 && matches!(frame.kind, HEADERS | DATA) {
                    // It had been idle, and is closed as the next request comes.
                    return;
                }
                if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                    let status = [(":status", "200"), ("x-received", &received.to_string())];
                    app.send(HEADERS, END_HEADERS | END_STREAM, frame.stream, &frames::block(&status)).ok();
                    (bodies, received) = (bodies + 1, 0);
                }
            }
        });
        let url = format!("h2c://{address}");
        let settings = [
            ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
            ("HOSTWARD_UPSTREAM", url.as_str()),
            ("HOSTWARD_THREADS", "1"),
            ("HOSTWARD_BUFFER_REQUESTS", buffer),
        ];
        let hostward = crate::support::hostward::Hostward::start(&settings);
        wire::get(hostward.address, "www.example.com", "/").expect(200);
        let content = vec![b'x'; length];
        let request =
            format!("{method} / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        let answer = wire::ask(hostward.address, [request, content.clone()].concat()).expect(200);
        assert_eq!(answer.field("x-received"), Some(length.to_string().as_str()), "{method} {length} {buffer}");
        assert_eq!(served.swap(0, Ordering::SeqCst), 2);

        let hostward = crate::support::hostward::Hostward::start(&settings);
        assert_eq!(ask_once(hostward.address, get("/"), b"").status, 200);
        let request = Request::builder().method(method).uri("http://www.example.com/").body(()).unwrap();
        let answer = ask_once(hostward.address, request, &content);
        assert_eq!((answer.status, &answer.fields["x-received"]), (200, &length.to_string().parse().unwrap()));
        assert_eq!(served.load(Ordering::SeqCst), 2);
    }
}

/// RFC 9110 §15.2: an unexpected interim response is no final one; RFC 9113 §8.6: HTTP/2 has no 101. And RFC 9110
/// §6.5.1: fields of routing have no place in a trailer section.
#[test]
fn odd_interim_responses_and_trailers_of_the_app_go_no_further() {
    let address = frames::serve(|mut app| {
        app.send(SETTINGS, 0, 0, &[]).ok();
        while let Some(frame) = app.try_next() {
            if frame.kind != HEADERS {
                continue;
            }
            let head = |app: &mut Frames, flags, fields: &[(&str, &str)]| {
                app.send(HEADERS, END_HEADERS | flags, frame.stream, &frames::block(fields)).ok();
            };
            head(&mut app, 0, &[(":status", "100")]);
            head(&mut app, 0, &[(":status", "101"), ("x-odd", "1")]);
            head(&mut app, 0, &[(":status", "103"), ("link", "</a>")]);
            head(&mut app, 0, &[(":status", "200"), ("trailer", "host, content-length, x-sum")]);
            app.send(DATA, 0, frame.stream, b"here").ok();
            head(&mut app, END_STREAM, &[("host", "evil.example"), ("content-length", "1"), ("x-sum", "3")]);
        }
    });
    let url = format!("h2c://{address}");
    let settings = [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", url.as_str())];
    let hostward = crate::support::hostward::Hostward::start(&settings);
    let mut client = Client::connect(hostward.address);
    for _ in 0..2 {
        // The connection goes on afterwards.
        client.send("GET / HTTP/1.1\r\nHost: www.example.com\r\nTE: trailers\r\nConnection: te\r\n\r\n");
        let answer = client.answer().expect(200);
        let interim: Vec<u16> = answer.interim.iter().map(|interim| interim.status).collect();
        assert_eq!((answer.text().as_str(), interim), ("here", vec![103]));
        let trailers: Vec<&str> = answer.trailers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(trailers, ["x-sum"]);
    }
    run(async {
        let mut sender = connect(hostward.address).await;
        let (mut response, _) = sender.send_request(get("/"), true).unwrap();
        let hints = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        assert_eq!(hints.status(), 103);
        let (content, trailers) = body(&mut response.await.unwrap().into_body()).await.unwrap();
        assert_eq!((content.as_slice(), trailers.len(), &trailers["x-sum"]), (&b"here"[..], 1, &"3".parse().unwrap()));
    });
}

/// An app of which one process is replaced by another, again and again.
#[test]
fn connections_that_end_with_goaway_lose_nothing() {
    let address = frames::serve(|mut app| {
        app.send(SETTINGS, 0, 0, &[]).ok();
        let mut answered = 0;
        while let Some(frame) = app.try_next() {
            if frame.kind != HEADERS {
                continue;
            }
            if answered == 3 {
                // RFC 9113 §6.8: the last stream that was processed is an earlier one.
                let last = (frame.stream - 2).to_be_bytes();
                app.send(frames::GOAWAY, 0, 0, &[last, [0; 4]].concat()).ok();
                return;
            }
            answered += 1;
            app.send(HEADERS, END_HEADERS, frame.stream, &frames::block(&[(":status", "200")])).ok();
            app.send(DATA, END_STREAM, frame.stream, b"here").ok();
        }
    });
    let url = format!("h2c://{address}");
    let settings = [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", url.as_str())];
    let hostward = crate::support::hostward::Hostward::start(&settings);
    let mut client = Client::connect(hostward.address);
    for _ in 0..20 {
        client.send("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.answer().expect(200).text(), "here");
    }
}

/// A lone `RST_STREAM` after the response has begun is that response's end, and of nothing else.
#[test]
fn a_stream_that_is_refused_after_its_head_is_not_sent_again() {
    let app = App::start(100, |mut talk| async move {
        let mut stream = talk.begin(Response::new(()));
        stream.send_data(Bytes::from_static(b"he"), false).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.send_reset(Reason::REFUSED_STREAM);
    });
    let hostward = before(&app, &[]);
    let mut frames = Frames::connect(hostward.address, &[]);
    let pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", "www.example.com"), (":path", "/")];
    frames.ask(1, END_STREAM, &pseudo);
    eventually("the stream ends", || frames.next().filter(|frame| frame.kind == RST_STREAM));
    assert_eq!(app.heads().len(), 1);
}
