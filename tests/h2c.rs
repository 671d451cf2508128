//! Apps that speak HTTP/2 (`h2c://`), before clients of both versions. The app here is a library's server that does
//! what the test says; `real_apps` has a real one.

use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Request, Response, Version};
use tokio::sync::{Barrier, Notify};

use crate::support::app;
use crate::support::eventually;
use crate::support::frames::{DATA, END_STREAM, Frames, GOAWAY, Outcome, RST_STREAM, WINDOW_UPDATE};
use crate::support::hostward::Hostward;
use crate::support::http2::{App, Conversation, ask, ask_once, body, connect, get, run, until};
use crate::support::wire::{self, Client};

/// hostward before `app`.
pub fn before(app: &App, more: &[(&str, &str)]) -> Hostward {
    let url = app.url();
    let mut settings = vec![("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", url.as_str())];
    settings.extend(more);
    Hostward::start(&settings)
}

async fn here(mut talk: Conversation) {
    talk.reply(200, b"here");
}

/// Answers with what came, once it has come.
async fn echo(mut talk: Conversation) {
    if let Ok((content, _)) = body(&mut talk.body).await {
        talk.reply(200, &content);
    }
}

#[test]
fn the_app_sees_http_2_with_the_judged_host() {
    let app = App::start(100, here);
    let hostward = before(&app, &[("HOSTWARD_THREADS", "1")]);
    let request = "POST /a?b=c HTTP/1.1\r\nHost: www.example.com:81\r\nTE: trailers\r\nConnection: te, x-hop\r\n\
                   X-Hop: 1\r\nX-Forwarded-Host: evil.example\r\nContent-Length: 0\r\n\r\n";
    let answer = wire::ask(hostward.address, request).expect(200);
    assert_eq!(answer.text(), "here");
    let http2 = Request::post("http://www.example.com:81/a?b=c").header("te", "trailers").body(()).unwrap();
    assert_eq!(ask_once(hostward.address, http2, b"").body, b"here");
    // A probe.
    wire::get(hostward.address, &hostward.address.to_string(), "/").expect(200);
    let heads = app.heads();
    assert_eq!(heads.len(), 3);
    for head in &heads[..2] {
        assert_eq!((head.method().as_str(), head.version()), ("POST", Version::HTTP_2));
        assert_eq!(head.uri(), "http://www.example.com:81/a?b=c");
        let fields = head.headers();
        assert_eq!(
            (&fields["te"], &fields["x-forwarded-host"]),
            (&"trailers".parse().unwrap(), &"www.example.com:81".parse().unwrap())
        );
        for gone in ["host", "connection", "x-hop", "transfer-encoding", "upgrade"] {
            assert!(!fields.contains_key(gone), "{fields:?}");
        }
    }
    assert_eq!(heads[2].uri(), "http://www.example.com/");
    assert_eq!(heads[2].headers()["x-forwarded-proto"], "https");
    assert_eq!(app.connections(), 1);
    wire::get(hostward.address, "evil.example", "/").expect(421);
    assert_eq!(app.heads().len(), 3);
}

#[test]
fn bodies_of_every_kind_go_both_ways() {
    let app = App::start(100, echo);
    let hostward = before(&app, &[]);
    let content: Vec<u8> = (0..3_u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let answer = run(async {
        let request = Request::post("http://www.example.com/").body(()).unwrap();
        ask(&mut connect(hostward.address).await, request, &content).await.unwrap()
    });
    assert!(answer.body == content, "{} bytes", answer.body.len());
    let mut client = Client::connect(hostward.address);
    client.send(format!("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: {}\r\n\r\n", content.len()));
    client.send(&content);
    assert!(client.answer().expect(200).body == content);
    client.send("POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    assert_eq!(client.answer().expect(200).text(), "abc");
    client.send("HEAD / HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
    client.answer_head().expect(200);
}

#[test]
fn trailers_and_interim_answers_pass_both_ways() {
    let app = App::start(100, |mut talk| async move {
        let hints = Response::builder().status(103).header("link", "</a>").body(()).unwrap();
        talk.respond.send_informational(hints).unwrap();
        let (_, asked) = body(&mut talk.body).await.unwrap();
        let mut stream = talk.begin(Response::new(()));
        stream.send_data(Bytes::from_static(b"here"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        trailers.insert("x-sum", asked["x-sum"].clone());
        trailers.insert("content-length", "1".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
    });
    let hostward = before(&app, &[]);
    run(async {
        let mut sender = connect(hostward.address).await;
        let request = Request::post("http://www.example.com/").body(()).unwrap();
        let (mut response, mut stream) = sender.send_request(request, false).unwrap();
        let hints = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        assert_eq!((hints.status().as_u16(), &hints.headers()["link"]), (103, &"</a>".parse().unwrap()));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "3".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
        let (content, trailers) = body(&mut response.await.unwrap().into_body()).await.unwrap();
        assert_eq!(content, b"here");
        assert_eq!(
            (&trailers["grpc-status"], &trailers["x-sum"], trailers.len()),
            (&"0".parse().unwrap(), &"3".parse().unwrap(), 2)
        );
    });
    let answer = wire::ask(
        hostward.address,
        "POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 4\r\n\r\n",
    );
    assert_eq!((answer.text().as_str(), answer.interim[0].status), ("here", 103));
}

#[test]
fn a_conversation_may_pause_for_longer_than_a_body() {
    let app = App::start(100, |mut talk| async move {
        let mut stream = talk.begin(Response::new(()));
        while let Some(Ok(data)) = talk.body.data().await {
            stream.send_data(data, false).unwrap();
        }
        stream.send_data(Bytes::new(), true).unwrap();
    });
    let hostward = before(&app, &[("HOSTWARD_BODY_TIMEOUT", "1s"), ("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT", "1s")]);
    run(async {
        let mut sender = connect(hostward.address).await;
        let request = Request::post("http://www.example.com/").body(()).unwrap();
        let (response, mut stream) = sender.send_request(request, false).unwrap();
        let mut answers = response.await.unwrap().into_body();
        for word in ["one", "two"] {
            // The pause is what is tested.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            stream.send_data(Bytes::from(word), false).unwrap();
            assert_eq!(answers.data().await.unwrap().unwrap(), word);
        }
        stream.send_data(Bytes::new(), true).unwrap();
        assert!(answers.data().await.is_none_or(|data| data.unwrap().is_empty()));
    });
}

/// Small frames cost the `h2` crate more than their bytes, and it may end a connection for it: everybody's.
#[test]
fn slow_readers_of_small_messages_do_not_end_the_others() {
    let app = App::start(100, |mut talk| async move {
        if talk.head.uri().path() == "/small" {
            let mut stream = talk.begin(Response::new(()));
            for _ in 0..6000 {
                stream.send_data(Bytes::from_static(b"ten bytes."), false).unwrap();
            }
            stream.send_data(Bytes::from_static(b"end"), true).unwrap();
        } else {
            talk.reply(200, b"here");
        }
    });
    let hostward = before(&app, &[("HOSTWARD_THREADS", "1")]);
    // SETTINGS_INITIAL_WINDOW_SIZE = 0: nothing is taken for now.
    let mut slow = Frames::connect(hostward.address, &[0, 4, 0, 0, 0, 0]);
    let streams = [1, 3, 5, 7, 9, 11];
    for stream in streams {
        let pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", "www.example.com"), (":path", "/small")];
        slow.ask(stream, END_STREAM, &pseudo);
        assert_eq!(slow.outcome(stream), Outcome::Answer(200));
    }
    for _ in 0..20 {
        assert_eq!(ask_once(hostward.address, get("/"), b"").status, 200);
    }
    for stream in [&[0][..], &streams].concat() {
        slow.send(WINDOW_UPDATE, 0, stream, &1_000_000_u32.to_be_bytes()).unwrap();
    }
    let mut left = streams.len() * 60_003;
    while left > 0 {
        let frame = slow.next().expect("the connection stays");
        assert!(!matches!(frame.kind, RST_STREAM | GOAWAY), "{frame:?}");
        left -= if frame.kind == DATA { frame.payload.len() } else { 0 };
    }
    assert_eq!(app.connections(), 1);
}

#[test]
fn a_client_that_acknowledges_every_small_message_is_no_flood() {
    const MESSAGES: usize = 20_000;
    let app = App::start(100, |mut talk| async move {
        let mut stream = talk.begin(Response::new(()));
        for _ in 0..MESSAGES {
            stream.send_data(Bytes::from_static(b"ten bytes."), false).unwrap();
        }
        stream.send_data(Bytes::from_static(b"end"), true).unwrap();
    });
    let hostward = before(&app, &[]);
    let mut frames = Frames::connect(hostward.address, &[]);
    let pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", "www.example.com"), (":path", "/")];
    frames.ask(1, END_STREAM, &pseudo);
    let mut left = MESSAGES * 10 + 3;
    while left > 0 {
        let frame = frames.next().expect("the connection stays");
        assert!(!matches!(frame.kind, RST_STREAM | GOAWAY), "{frame:?}");
        if frame.kind == DATA {
            left -= frame.payload.len();
            let length = u32::try_from(frame.payload.len()).unwrap().to_be_bytes();
            for stream in [0, 1] {
                frames.send(WINDOW_UPDATE, 0, stream, &length).unwrap();
            }
        }
    }
}

#[test]
fn many_requests_share_one_connection() {
    let together = Arc::new(Barrier::new(60));
    let app = App::start(100, move |mut talk| {
        let together = Arc::clone(&together);
        async move {
            together.wait().await;
            talk.reply(200, b"here");
        }
    });
    let hostward = before(&app, &[("HOSTWARD_THREADS", "1")]);
    run(async {
        let mut sender = connect(hostward.address).await;
        let all: Vec<_> = (0..60).map(|_| sender.send_request(get("/"), true).unwrap().0).collect();
        for one in all {
            assert_eq!(one.await.unwrap().status(), 200);
        }
    });
    assert_eq!(app.connections(), 1);
}

#[test]
fn an_app_that_allows_few_requests_gets_more_connections() {
    let together = Arc::new(Barrier::new(6));
    let app = App::start(2, move |mut talk| {
        let together = Arc::clone(&together);
        async move {
            if talk.head.uri().path() == "/together" {
                together.wait().await;
            }
            talk.reply(200, b"here");
        }
    });
    let hostward = before(&app, &[("HOSTWARD_THREADS", "1")]);
    run(async {
        let mut sender = connect(hostward.address).await;
        // The app's settings have come with this answer.
        assert_eq!(ask(&mut sender, get("/"), b"").await.unwrap().status, 200);
        let all: Vec<_> = (0..6).map(|_| sender.send_request(get("/together"), true).unwrap().0).collect();
        for one in all {
            assert_eq!(one.await.unwrap().status(), 200);
        }
    });
    assert!(app.connections() >= 3, "{}", app.connections());
}

#[test]
fn what_the_app_has_not_processed_is_sent_again() {
    let app = App::start(100, |mut talk| async move {
        match talk.head.uri().path() {
            "/always" => talk.respond.send_reset(Reason::REFUSED_STREAM),
            // A body that has come is sent again, too.
            _ if talk.number == 0 => {
                talk.body.data().await;
                talk.respond.send_reset(Reason::REFUSED_STREAM);
            }
            _ => echo(talk).await,
        }
    });
    let hostward = before(&app, &[("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT", "1s")]);
    let request = Request::post("http://www.example.com/").body(()).unwrap();
    let answer = ask_once(hostward.address, request, b"again");
    assert_eq!((answer.status, answer.body.as_slice(), app.heads().len()), (200, &b"again"[..], 2));
    let answer = ask_once(hostward.address, get("/always"), b"");
    // As long as there is time, with growing pauses.
    assert_eq!((answer.status, (5..12).contains(&app.heads().len())), (502, true), "{}", app.heads().len());
}

#[test]
fn a_connection_that_says_goaway_is_left_to_its_requests() {
    let held = Arc::new(Notify::new());
    let hold = Arc::clone(&held);
    let app = App::start(100, move |mut talk| {
        let hold = Arc::clone(&hold);
        async move {
            if talk.head.uri().path() == "/held" {
                hold.notified().await;
            }
            talk.reply(200, b"here");
        }
    });
    let hostward = before(&app, &[("HOSTWARD_THREADS", "1")]);
    run(async {
        let mut sender = connect(hostward.address).await;
        let (response, _) = sender.send_request(get("/held"), true).unwrap();
        until(|| app.heads().len() == 1).await;
        // The app's GOAWAY comes with this answer.
        assert_eq!(ask(&mut sender, get("/last"), b"").await.unwrap().status, 200);
        for _ in 0..5 {
            assert_eq!(ask(&mut sender, get("/"), b"").await.unwrap().status, 200);
        }
        held.notify_one();
        assert_eq!(response.await.unwrap().status(), 200);
    });
    assert_eq!(app.connections(), 2);
}

#[test]
fn an_idle_connection_that_the_app_has_closed_is_replaced() {
    let app = App::start(100, here);
    let address = app.address;
    let hostward = before(&app, &[("HOSTWARD_THREADS", "1"), ("HOSTWARD_UPSTREAM_START_TIMEOUT", "0s")]);
    assert_eq!(ask_once(hostward.address, get("/"), b"").status, 200);
    drop(app);
    eventually("nobody listens", || TcpListener::bind(address).ok());
    assert_eq!(ask_once(hostward.address, get("/none"), b"").status, 502);
    hostward.line(|line| line["msg"] == "app refused connection");
}

#[test]
fn an_app_s_faults_are_502_and_504() {
    let begun = Arc::new(Notify::new());
    let told = Arc::clone(&begun);
    let app = App::start(100, move |mut talk| {
        let begun = Arc::clone(&told);
        async move {
            match talk.head.uri().path() {
                "/reset" => talk.respond.send_reset(Reason::INTERNAL_ERROR),
                "/broken" => {
                    let mut stream = talk.begin(Response::new(()));
                    stream.send_data(Bytes::from_static(b"he"), false).unwrap();
                    begun.notified().await;
                    stream.send_reset(Reason::INTERNAL_ERROR);
                }
                _ => std::future::pending().await,
            }
        }
    });
    let hostward = before(&app, &[("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT", "1s")]);
    assert_eq!(wire::get(hostward.address, "www.example.com", "/reset").status, 502);
    assert_eq!(hostward.request_line("/reset")["error"], "connection_terminated");
    let started = Instant::now();
    assert_eq!(wire::get(hostward.address, "www.example.com", "/silent").status, 504);
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    run(async {
        let mut sender = connect(hostward.address).await;
        let response = sender.send_request(get("/broken"), true).unwrap().0.await.unwrap();
        begun.notify_one();
        let error = body(&mut response.into_body()).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
        assert_eq!(ask(&mut sender, get("/reset"), b"").await.unwrap().status, 502);
    });
    assert_eq!(hostward.request_line("/broken")["error"], "connection_terminated");

    // What speaks HTTP/1.1 only.
    let old = app::App::echo();
    let url = format!("h2c://{}", old.address);
    let hostward = Hostward::before(&old, &[("HOSTWARD_UPSTREAM", &url)]);
    let answer = wire::get(hostward.address, "www.example.com", "/");
    assert_eq!(answer.status, 502);
}

#[test]
fn a_client_that_gives_up_has_the_app_s_stream_reset() {
    let (app_saw, seen) = std::sync::mpsc::channel();
    let app = App::start(100, move |mut talk| {
        let app_saw = app_saw.clone();
        async move {
            let reason = std::future::poll_fn(|cx| talk.respond.poll_reset(cx)).await;
            app_saw.send(reason.ok()).ok();
        }
    });
    let hostward = before(&app, &[]);
    run(async {
        let mut sender = connect(hostward.address).await;
        let (response, mut stream) = sender.send_request(get("/two"), true).unwrap();
        until(|| app.heads().len() == 1).await;
        stream.send_reset(Reason::CANCEL);
        drop(response);
        until(|| seen.try_recv() == Ok(Some(Reason::CANCEL))).await;
    });
    let mut client = Client::connect(hostward.address);
    client.send("GET /one HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
    app.wait_count(2);
    // A reset: an end alone may come from a client that still listens.
    socket2::SockRef::from(client.input.stream.tcp()).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_eq!(seen.recv_timeout(Duration::from_secs(5)), Ok(Some(Reason::CANCEL)));
    for path in ["/one", "/two"] {
        assert_eq!(hostward.request_line(path)["status"], 499);
    }
}

#[test]
fn readiness_and_check_speak_it() {
    let app = App::start(100, |mut talk| async move {
        let well = talk.head.uri() == "http://www.example.com/healthz";
        talk.reply(if well { 200 } else { 500 }, b"");
    });
    let hostward = before(&app, &[("HOSTWARD_READY_PATH", "/healthz")]);
    wire::get(hostward.admin, "localhost", "/readyz").expect(200);
    let other = before(&app, &[("HOSTWARD_READY_PATH", "/other")]);
    wire::get(other.admin, "localhost", "/readyz").expect(503);
    let settings = [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", &app.url())];
    let output = Hostward::run(&["check", "--upstream"], &settings);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_limit_counts_requests() {
    let most = Arc::new(std::sync::Mutex::new((0, 0)));
    let counted = Arc::clone(&most);
    let app = App::start(100, move |mut talk| {
        let counted = Arc::clone(&counted);
        async move {
            {
                let mut counted = counted.lock().unwrap();
                counted.0 += 1;
                counted.1 = counted.1.max(counted.0);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            counted.lock().unwrap().0 -= 1;
            talk.reply(200, b"here");
        }
    });
    let hostward = before(&app, &[("HOSTWARD_UPSTREAM_MAX_CONNECTIONS", "3")]);
    run(async {
        let mut sender = connect(hostward.address).await;
        let all: Vec<_> = (0..40).map(|_| sender.send_request(get("/"), true).unwrap().0).collect();
        for one in all {
            assert_eq!(one.await.unwrap().status(), 200);
        }
    });
    assert_eq!(most.lock().unwrap().1, 3);
}

#[test]
fn a_path_is_spoken_to_as_well() {
    // A relay from the path to the app: nothing of HTTP.
    let app = App::start(100, here);
    let path = std::env::temp_dir().join(format!("hostward-h2c-{}.sock", std::process::id()));
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let address = app.address;
    std::thread::spawn(move || {
        for from in listener.incoming().map_while(Result::ok) {
            let to = std::net::TcpStream::connect(address).unwrap();
            let (mut back, mut answers) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut answers, &mut back).ok());
            std::thread::spawn(move || {
                let (mut from, mut to) = (from, to);
                std::io::copy(&mut from, &mut to).ok();
                to.flush().ok();
            });
        }
    });
    let url = format!("h2c+unix:{}", path.display());
    let hostward = before(&app, &[("HOSTWARD_UPSTREAM", &url)]);
    assert_eq!(ask_once(hostward.address, get("/"), b"").body, b"here");
    std::fs::remove_file(&path).ok();
}
