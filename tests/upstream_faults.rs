//! Contract 6: an app that isn't there, leaves, hangs or babbles, and what the client is told.

use std::io::ErrorKind;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use http::Request;

use crate::buffering::{Directory, space_is_free};
use crate::support::app::{App, Then, answer, echo, hang};
use crate::support::hostward::Hostward;
use crate::support::wire::{self, Answer, Client};
use crate::support::{Task, http2};

const GET: &str = "GET /a HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
const SELF_SIGNED: (&str, &str) = ("HOSTWARD_TLS", "self-signed");
const POST: &str = "POST /a HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 5\r\n\r\nhello";

/// Asserts that this is hostward's own answer, and that it says what went wrong and no more.
fn assert_synthetic(answer: &Answer, status: u16, token: &str) {
    assert_eq!(answer.status, status, "{}{}", answer.head, answer.text());
    assert_eq!(answer.field("proxy-status"), Some(format!("hostward; error={token}").as_str()), "{}", answer.head);
    let body = answer.text();
    assert!(!body.is_empty() && body.len() < 1000, "{body}");
    assert!(!body.contains("127.0.") && !body.contains("HOSTWARD_"), "{body}");
}

fn before(address: std::net::SocketAddr, start_timeout: &str) -> Hostward {
    Hostward::start(&[
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
        ("HOSTWARD_UPSTREAM", &format!("http://{address}")),
        ("HOSTWARD_UPSTREAM_START_TIMEOUT", start_timeout),
    ])
}

#[test]
fn an_app_that_does_not_listen_is_502() {
    let hostward = before(App::nowhere(), "1s");
    let answer = wire::ask(hostward.address, GET);
    assert_synthetic(&answer, 502, "connection_refused");
    let line = hostward.request_line("/a");
    assert_eq!(
        (&line["status"], &line["error"], &line["decision"]),
        (&502.into(), &"connection_refused".into(), &"allowed".into())
    );
    assert!(answer.text().contains(line["request_id"].as_str().unwrap_or("?")), "{} {line}", answer.text());
    let event = hostward.line(|line| line["msg"] == "app refused connection");
    assert!(event["hint"].as_str().is_some_and(|hint| hint.contains("HOSTWARD_UPSTREAM")), "{event}");
    // The time to start is over: nobody waits any more, and the log doesn't repeat itself.
    let started = Instant::now();
    for _ in 0..5 {
        assert_synthetic(&wire::ask(hostward.address, POST), 502, "connection_refused");
    }
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    let events = hostward.lines().iter().filter(|line| line["msg"] == "app refused connection").count();
    assert_eq!(events, 1, "{}", hostward.output());
}

#[test]
fn what_came_of_an_answer_before_the_app_died_reaches_the_client() {
    for (head, body) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", ""),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "part"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", "part"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "4\r\npart\r\n"),
    ] {
        // In one segment with the FIN.
        let task = Task::start(&[], move |talk| {
            talk.send(format!("{head}{body}")).unwrap();
            Then::Close
        });
        let mut client = task.client();
        client.send(GET);
        client.answer_head().expect(200);
        assert_eq!(wire::text(&client.rest()), body, "{head}");
        assert_eq!(task.hostward.request_line("/a")["error"], "connection_terminated");
    }
}

#[test]
fn an_app_that_comes_up_late_gets_the_waiting_request() {
    let address = App::nowhere();
    let hostward = before(address, "20s");
    for request in [GET, POST] {
        let mut client = Client::connect(hostward.address);
        client.send(request);
        client.input.patience = Duration::from_millis(300);
        let early = client.try_answer().unwrap_err();
        assert_eq!(early.why, ErrorKind::TimedOut, "{early}");
        client.input.patience = Duration::from_secs(10);
        let app = App::listen(address, echo);
        client.answer().expect(200);
        assert_eq!(app.count(), 1);
        drop(app);
        // Its port is free again when the accepting thread has gone.
        crate::support::eventually("the app is gone", || std::net::TcpListener::bind(address).ok());
    }
}

#[test]
fn an_app_that_leaves_before_it_answers_is_502() {
    for then in [Then::Close, Then::Reset] {
        for request in [GET, POST] {
            let task = Task::start(&[], move |talk| {
                talk.body().ok();
                then
            });
            assert_synthetic(&task.ask(request), 502, "connection_terminated");
            assert_eq!(task.app.count(), 1, "a request that a new connection lost is not sent again");
            assert_eq!(task.hostward.request_line("/a")["error"], "connection_terminated");
        }
    }
}

/// Answers the first request of every connection and leaves at the second.
fn forgetful() -> Task {
    Task::start(&[("HOSTWARD_THREADS", "1")], |talk| {
        if talk.request.target == "/first" { talk.reply(answer("200 OK", "", "first")) } else { Then::Close }
    })
}

#[test]
fn a_get_that_a_reused_connection_lost_is_sent_again_once() {
    let task = Task::start(&[("HOSTWARD_THREADS", "1")], |talk| {
        if talk.request.connection == 0 && talk.request.target == "/a" {
            return Then::Close;
        }
        talk.reply(answer("200 OK", "", "here"))
    });
    let mut client = task.client();
    client.ask("GET /first HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(200);
    assert_eq!(client.ask(GET).expect(200).text(), "here");
    assert_eq!((task.app.count(), task.app.connections()), (3, 2));

    let task = forgetful();
    let mut client = task.client();
    client.ask("GET /first HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(200);
    assert_synthetic(&client.ask(GET), 502, "connection_terminated");
    assert_eq!((task.app.count(), task.app.connections()), (3, 2), "once, and on a new connection");
}

#[test]
fn a_post_that_a_reused_connection_lost_is_not_sent_again() {
    for request in [
        POST,
        "POST /a HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "PATCH /a HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 0\r\n\r\n",
    ] {
        let task = forgetful();
        let mut client = task.client();
        // Twice: the app shows that it keeps its connections open.
        for _ in 0..2 {
            client.ask("GET /first HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(200);
        }
        assert_synthetic(&client.ask(request), 502, "connection_terminated");
        assert_eq!((task.app.count(), task.app.connections()), (3, 1), "{request}");
    }
}

#[test]
fn a_connection_that_the_app_has_closed_is_not_reused() {
    let task = Task::start(&[("HOSTWARD_THREADS", "1")], |talk| {
        talk.reply(answer("200 OK", "", "bye"));
        Then::Close
    });
    let mut client = task.client();
    for number in 1..=10 {
        client.ask(POST).expect(200);
        task.app.wait_open(0);
        assert_eq!((task.app.count(), task.app.connections()), (number, number));
    }
}

#[test]
fn an_idle_connection_is_closed_before_the_app_would() {
    let task = Task::echo(&[("HOSTWARD_UPSTREAM_IDLE_TIMEOUT", "200ms")]);
    task.get("/").expect(200);
    task.app.wait_open(0);
    task.get("/").expect(200);
    assert_eq!((task.app.count(), task.app.connections()), (2, 2));
}

#[test]
fn an_app_that_hangs_is_504() {
    let task = Task::start(&[("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT", "1s")], hang);
    for request in [GET, POST] {
        let started = Instant::now();
        assert_synthetic(&task.ask(request), 504, "http_response_timeout");
        assert!(
            started.elapsed() >= Duration::from_millis(900) && started.elapsed() < Duration::from_secs(4),
            "{:?}",
            started.elapsed()
        );
    }
    assert_eq!(task.app.count(), 2);
    assert!(task.hostward.line(|line| line["msg"] == "app too slow")["hint"].is_string());
    // Its connections are closed, so that it can notice.
    task.app.wait_open(0);
}

#[test]
fn a_slow_body_is_no_slow_answer() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let task = Task::start(&[("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT", "1s")], move |talk| {
        talk.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na").unwrap();
        gone.lock().unwrap().recv().unwrap();
        talk.send("b").unwrap();
        Then::Keep
    });
    let mut client = task.client();
    client.send(GET);
    client.answer_head().expect(200);
    client.input.patience = Duration::from_millis(1500);
    assert_eq!(client.input.exactly(2).unwrap_err().why, ErrorKind::TimedOut);
    go.send(()).unwrap();
    let body = client.input.exactly(2).unwrap_or_else(|broken| panic!("{broken}"));
    assert_eq!(body, b"ab");
}

#[test]
fn an_answer_that_is_not_http_is_502() {
    let answers: [&[u8]; 16] = [
        b"garbage\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"220 mail.example.com ESMTP\r\n\r\n",
        b"HTTP/1.1 20x OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"ICY 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nNo colon\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX A: b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: b\0c\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        b"<html>hello</html>\r\n\r\n",
    ];
    let mut wrong = Vec::new();
    for bytes in answers {
        let task = Task::start(&[], move |talk| {
            talk.body().ok();
            talk.send(bytes).ok();
            Then::Keep
        });
        let mut client = task.client();
        client.send(GET);
        match client.try_answer() {
            Ok(answer) if answer.status == 502 => {
                assert_synthetic(&answer, 502, "http_protocol_error");
                task.app.wait_open(0);
            }
            Ok(answer) => wrong.push(format!("{}\n  {}", wire::text(bytes).escape_debug(), answer.status)),
            Err(broken) => wrong.push(format!("{}\n  no answer: {broken}", wire::text(bytes).escape_debug())),
        }
        assert_eq!(task.app.count(), 1);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_answer_with_a_huge_head_is_502() {
    let task = Task::start(&[], |talk| {
        talk.reply(answer("200 OK", &format!("X-A: {}\r\n", "a".repeat(4 << 20)), "hello"));
        Then::Close
    });
    assert_eq!(task.ask(GET).status, 502);
    task.get("/again").expect(502);
}

#[test]
fn surplus_bytes_after_an_answer_are_nobodys_answer() {
    let task = Task::start(&[("HOSTWARD_THREADS", "1")], |talk| {
        let own = talk.request.target.clone();
        talk.reply(answer("200 OK", "", &own) + &answer("200 OK", "", "poison"))
    });
    let mut client = task.client();
    for number in 0..10 {
        let answer = client.ask(format!("GET /{number} HTTP/1.1\r\nHost: www.example.com\r\n\r\n"));
        assert_eq!((answer.status, answer.text()), (200, format!("/{number}")));
    }
    assert_eq!(task.app.connections(), 10);
}

#[test]
fn a_truncated_answer_is_visibly_broken() {
    for bytes in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n5\r\nab",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\nxyz\r\n",
    ] {
        for then in [Then::Close, Then::Reset] {
            if then == Then::Reset && !bytes.contains("100") {
                continue; // A reset may overtake the bytes; one case of it is enough.
            }
            let task = Task::start(&[], move |talk| {
                talk.send(bytes).ok();
                then
            });
            let mut client = task.client();
            client.send(GET);
            match client.try_answer() {
                Err(broken) => assert!(broken.why != ErrorKind::TimedOut, "{bytes}\n{broken}"),
                Ok(answer) => assert_eq!(answer.status, 502, "{bytes}\n{answer:?}"),
            }
            let line = task.hostward.request_line("/a");
            assert!(line["error"].is_string(), "{line}");
            assert_eq!(task.app.count(), 1, "what has been answered in part is not asked again");
        }
    }
}

#[test]
fn an_answer_that_comes_before_the_body_is_delivered() {
    let task = Task::start(&[("HOSTWARD_BUFFER_REQUESTS", "off")], |talk| {
        talk.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlong").unwrap();
        hang(talk)
    });
    let mut client = task.client();
    client.send("POST /a HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 1000000\r\n\r\nhello");
    let answer = client.answer().expect(413);
    assert_eq!(answer.text(), "long");
    assert_eq!(answer.field("proxy-status"), None);
}

#[test]
fn one_worker_serves_others_while_the_app_hangs_for_one() {
    let task = Task::start(&[("HOSTWARD_THREADS", "1")], |talk| {
        if talk.request.target == "/hang" { hang(talk) } else { talk.reply(answer("200 OK", "", "here")) }
    });
    let mut stuck: Vec<Client> = (0..20).map(|_| task.client()).collect();
    for client in &mut stuck {
        client.send("GET /hang HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
    }
    task.app.wait_count(20);
    for _ in 0..20 {
        task.get("/").expect(200);
    }
}

#[test]
fn an_app_that_restarts_costs_only_what_it_held() {
    let address = App::nowhere();
    let hostward = before(address, "1s");
    for _ in 0..3 {
        let app = App::listen(address, echo);
        for _ in 0..5 {
            wire::ask(hostward.address, GET).expect(200);
        }
        drop(app);
        crate::support::eventually("the app is gone", || std::net::TcpListener::bind(address).ok());
    }
    thread::yield_now();
    hostward.line(|line| line["msg"] == "request");
}

#[test]
fn an_app_that_does_not_take_the_connection_is_504() {
    let (listener, waiting) = full_queue();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let hostward = Hostward::start(&[
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
        ("HOSTWARD_UPSTREAM", &format!("http://{address}")),
        ("HOSTWARD_UPSTREAM_CONNECT_TIMEOUT", "300ms"),
    ]);
    assert_synthetic(&wire::ask(hostward.address, GET), 504, "connection_timeout");
    drop(waiting);
}

/// A listener whose queue is full, and what fills it.
fn full_queue() -> (socket2::Socket, Vec<socket2::Socket>) {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let waiting = (0..3).map(|_| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.connect(&address).ok();
        socket
    });
    let waiting = waiting.collect();
    (listener, waiting)
}

#[test]
fn an_app_whose_listen_queue_is_full_for_two_seconds_is_waited_for() {
    let (listener, waiting) = full_queue();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let hostward = Hostward::start(&[
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
        ("HOSTWARD_UPSTREAM", &format!("http://{address}")),
    ]);
    let mut clients: Vec<Client> = [GET, POST]
        .map(|request| {
            let mut client = Client::connect(hostward.address);
            client.send(request);
            client
        })
        .into();
    thread::sleep(Duration::from_secs(2));
    drop(waiting);
    let listener = std::net::TcpListener::from(listener);
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut read = [0; 4096];
                // Those that filled the queue have left.
                if std::io::Read::read(&mut stream, &mut read).is_ok_and(|count| count > 0) {
                    std::io::Write::write_all(&mut stream, answer("200 OK", "", "at last").as_bytes()).ok();
                }
            });
        }
    });
    for client in &mut clients {
        assert_eq!(client.answer().expect(200).text(), "at last");
    }
}

/// How an app that had kept a connection open deals with the request that comes on it.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    /// It has not read the body.
    AtTheHead(Then),
    /// It has read a part of it.
    InTheBody(Then),
    /// It has read all of it.
    AtTheEnd(Then),
}

fn leaving(settings: &[(&str, &str)], leaves: Leaves) -> Task {
    Task::start(&[settings, &[("HOSTWARD_THREADS", "1")]].concat(), move |talk| {
        if talk.request.target == "/first" {
            return talk.reply(answer("200 OK", "", "first"));
        }
        if talk.request.connection > 0 {
            let Ok(body) = talk.body() else { return Then::Close };
            let sent = talk.send(answer("200 OK", "", &body.len().to_string()));
            return if sent.is_ok() { Then::Keep } else { Then::Close };
        }
        match leaves {
            Leaves::AtTheHead(then) => then,
            Leaves::InTheBody(then) => {
                talk.input.exactly(40_000).ok();
                then
            }
            Leaves::AtTheEnd(then) => {
                talk.body().ok();
                then
            }
        }
    })
}

/// A body that shows when a part of it is missing, twice there, or in the wrong place.
fn numbered(length: usize) -> String {
    (0..length / 8).map(|number| format!("{number:07},")).collect::<Vec<_>>().concat()
}

#[test]
fn an_idempotent_request_that_is_in_memory_is_sent_again_whatever_its_length() {
    let first = "GET /first HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
    let every = [Then::Close, Then::Reset];
    let every =
        every.iter().flat_map(|then| [Leaves::AtTheHead(*then), Leaves::InTheBody(*then), Leaves::AtTheEnd(*then)]);
    for leaves in every {
        for (method, length) in [("PUT", 48_000), ("PUT", 72_000), ("DELETE", 304_000), ("PUT", 904_000)] {
            for chunked in [false, true] {
                let task = leaving(&[], leaves);
                let mut client = task.client();
                client.ask(first).expect(200);
                let body = numbered(length);
                let head = format!("{method} /a HTTP/1.1\r\nHost: www.example.com\r\n");
                let request = if chunked {
                    format!("{head}Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n")
                } else {
                    format!("{head}Content-Length: {length}\r\n\r\n{body}")
                };
                let what = format!("{leaves:?}, {method} of {length}, chunked: {chunked}");
                client.send(request);
                let got = client.try_answer().unwrap_or_else(|broken| panic!("{what}: {broken}"));
                assert_eq!((got.status, got.text()), (200, length.to_string()), "{what}");
                assert_eq!((task.app.count(), task.app.connections()), (3, 2), "{what}");
                assert!(task.app.last().body == body.as_bytes(), "{what}: another body");
            }
        }
    }
}

/// B3 over TLS and over HTTP/2, with TLS and without.
#[test]
fn an_idempotent_request_over_tls_or_http_2_is_sent_again() {
    for (settings, over_http2) in [(&[SELF_SIGNED][..], false), (&[SELF_SIGNED], true), (&[], true)] {
        for leaves in [Leaves::AtTheHead(Then::Close), Leaves::InTheBody(Then::Reset), Leaves::AtTheEnd(Then::Close)] {
            for length in [72_000, 904_000] {
                let task = leaving(settings, leaves);
                let body = numbered(length);
                let got = if over_http2 { put_over_http2(&task, &body) } else { put(&task, &body) };
                let what = format!("{settings:?}, HTTP/2: {over_http2}, {leaves:?}, {length}");
                assert_eq!(got, (200, length.to_string()), "{what}");
                assert_eq!((task.app.count(), task.app.connections()), (3, 2), "{what}");
                assert!(task.app.last().body == body.as_bytes(), "{what}: another body");
            }
        }
    }
}

/// Contract 8: a request is sent again while its body is in memory, and this one is in a file. As long as nothing of the
/// file has been read, which is a matter of chance when the app closes at once, that is as good.
#[test]
fn an_idempotent_request_that_is_in_a_file_is_sent_again_whole_or_not_at_all() {
    for (settings, over_http2) in [(&[][..], false), (&[SELF_SIGNED], false), (&[], true)] {
        for leaves in [Leaves::AtTheHead(Then::Close), Leaves::InTheBody(Then::Reset), Leaves::AtTheEnd(Then::Close)] {
            let directory = Directory::new();
            let task = leaving(&[settings, &[directory.setting()]].concat(), leaves);
            let body = numbered(3 << 20);
            let (status, told) = if over_http2 { put_over_http2(&task, &body) } else { put(&task, &body) };
            let what = format!("{settings:?}, HTTP/2: {over_http2}, {leaves:?}");
            let requests = (status, task.app.count(), task.app.connections());
            if matches!(leaves, Leaves::AtTheHead(_)) && status == 200 {
                assert_eq!((requests, told), ((200, 3, 2), body.len().to_string()), "{what}");
                assert!(task.app.last().body == body.as_bytes(), "{what}: another body");
            } else {
                assert_eq!(requests, (502, 2, 1), "{what}");
                assert_eq!(task.hostward.request_line("/a")["error"], "connection_terminated", "{what}");
            }
            space_is_free(&task.hostward);
        }
    }
}

/// A request for `/first`, and a `PUT` behind it on the same connection: its status and what the app says.
fn put(task: &Task, body: &str) -> (u16, String) {
    let mut client = task.client();
    client.ask("GET /first HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(200);
    client.send(format!("PUT /a HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let got = client.answer();
    (got.status, got.text())
}

fn put_over_http2(task: &Task, body: &str) -> (u16, String) {
    http2::run(async {
        let mut sender = http2::connect(task.hostward.address).await;
        assert_eq!(http2::ask(&mut sender, http2::get("/first"), b"").await.unwrap().status, 200);
        let request = Request::put("http://www.example.com/a").body(()).unwrap();
        let got = http2::ask(&mut sender, request, body.as_bytes()).await.unwrap();
        (got.status, wire::text(&got.body))
    })
}

#[test]
fn a_long_request_that_is_not_idempotent_is_not_sent_again() {
    for leaves in [Leaves::AtTheHead(Then::Close), Leaves::InTheBody(Then::Reset), Leaves::AtTheEnd(Then::Close)] {
        let task = leaving(&[], leaves);
        let mut client = task.client();
        // Twice: the app shows that it keeps its connections open.
        for _ in 0..2 {
            client.ask("GET /first HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(200);
        }
        let body = numbered(304_000);
        let head = format!("POST /a HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: {}\r\n\r\n", body.len());
        client.send(head + &body);
        assert_synthetic(&client.answer(), 502, "connection_terminated");
        assert_eq!((task.app.count(), task.app.connections()), (3, 1), "{leaves:?}");
    }
}

#[test]
fn a_long_head_is_sent_again_as_a_long_body_is() {
    let task = Task::start(&[("HOSTWARD_THREADS", "1"), ("HOSTWARD_MAX_HEADER_SIZE", "512KiB")], |talk| {
        if talk.request.connection == 0 && talk.request.target == "/a" {
            return Then::Close;
        }
        talk.reply(answer("200 OK", "", "here"))
    });
    let mut client = task.client();
    client.ask("GET /first HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(200);
    let long = "a".repeat(300_000);
    client.ask(format!("GET /a HTTP/1.1\r\nHost: www.example.com\r\nX-Long: {long}\r\n\r\n")).expect(200);
    assert_eq!((task.app.count(), task.app.connections()), (3, 2));
    assert_eq!(task.app.last().field("x-long").map(str::len), Some(long.len()));
}
