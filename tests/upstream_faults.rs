//! Contract 6: an app that isn't there, leaves, hangs or babbles, and what the client is told.

use std::io::ErrorKind;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::Task;
use crate::support::app::{App, Then, answer, echo, hang};
use crate::support::hostward::Hostward;
use crate::support::wire::{self, Answer, Client};

const GET: &str = "GET /a HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
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
    // Nobody accepts, and the backlog is full: the kernel leaves further connections unanswered.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.connect(&address.into()).ok();
            socket
        })
        .collect();
    let hostward = Hostward::start(&[
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
        ("HOSTWARD_UPSTREAM", &format!("http://{address}")),
        ("HOSTWARD_UPSTREAM_CONNECT_TIMEOUT", "300ms"),
    ]);
    assert_synthetic(&wire::ask(hostward.address, GET), 504, "connection_timeout");
    drop(waiting);
}
