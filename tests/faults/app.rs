//! What the app does wrong.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use super::{FIRST, GET, Outcome, POST, Row, shown};
use crate::support::app::{App, Conversation, Then, answer, echo, hang};
use crate::support::hostward::Hostward;
use crate::support::wire::{self, Client};
use crate::support::{Task, eventually};

pub const ROWS: &[Row] = &[
    Row {
        fault: "nothing listens, and the time to start is over",
        play: || before_nothing("http://", GET),
        expected: ("502 connection_refused", "502 connection_refused, `app refused connection`", 0),
    },
    Row {
        fault: "its socket's path isn't there",
        play: || before_nothing("http+unix:/nowhere/app.sock", GET),
        expected: ("502 connection_refused", "502 connection_refused, `app refused connection`", 0),
    },
    Row { fault: "it comes up while a request waits", play: late, expected: ("200", "—", 1) },
    Row {
        fault: "it doesn't take the connection",
        play: full_backlog,
        expected: ("504 connection_timeout", "504 connection_timeout, `app too slow`", 0),
    },
    Row {
        fault: "it accepts and closes",
        play: || raw(POST, |_| {}),
        expected: ("502 connection_terminated", "502 connection_terminated, `app closed connection`", 1),
    },
    Row {
        fault: "it reads the request and closes",
        play: || Outcome::of(&Task::start(&[], |talk| talk.body().map_or(Then::Close, |_| Then::Close)), POST),
        expected: ("502 connection_terminated", "502 connection_terminated, `app closed connection`", 1),
    },
    Row {
        fault: "it reads the request and resets",
        play: || Outcome::of(&Task::start(&[], |talk| talk.body().map_or(Then::Reset, |_| Then::Reset)), POST),
        expected: ("502 connection_terminated", "502 connection_terminated, `app closed connection`", 1),
    },
    Row {
        fault: "it ends its side before it answers",
        play: || Outcome::of(&Task::start(&[], half_close), GET),
        expected: ("502 connection_terminated", "502 connection_terminated, `app closed connection`", 1),
    },
    Row {
        fault: "it dies within the head of its answer",
        play: || says("HTTP/1.1 200 OK\r\nContent-Le", Then::Close),
        expected: ("502 connection_terminated", "502 connection_terminated, `app closed connection`", 1),
    },
    Row {
        fault: "it dies within a body with a length",
        play: || says("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", Then::Close),
        expected: ("200, visibly cut short", "200 connection_terminated", 1),
    },
    Row {
        fault: "it dies within a chunked body",
        play: || says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", Then::Close),
        expected: ("200, visibly cut short", "200 connection_terminated", 1),
    },
    Row {
        fault: "its body has fewer bytes than announced, and it waits",
        play: short_body,
        expected: ("200, visibly cut short", "200 connection_terminated", 1),
    },
    Row {
        fault: "its body has more bytes than announced",
        play: || {
            twice("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        },
        expected: ("200 ok, and 200 ok on another connection", "—", 2),
    },
    Row { fault: "it restarts between two requests", play: restart, expected: ("200, then 200", "—", 2) },
    Row {
        fault: "it closes a kept connection when a GET arrives",
        play: || at_reuse(GET, true),
        expected: ("200", "—", 3),
    },
    Row {
        fault: "it does so with the new connection, too",
        play: || at_reuse(GET, false),
        expected: ("502 connection_terminated", "502 connection_terminated, `app closed connection`", 3),
    },
    Row {
        fault: "it closes a kept connection when a POST arrives",
        play: || at_reuse(POST, true),
        expected: ("502 connection_terminated", "502 connection_terminated, `app closed connection`", 3),
    },
    Row {
        fault: "it has closed a kept connection before a POST is written",
        play: closed_while_idle,
        expected: ("200", "—", 2),
    },
    Row {
        fault: "it hangs",
        play: || Outcome::of(&Task::start(&[SOON], hang), GET),
        expected: ("504 http_response_timeout", "504 http_response_timeout, `app too slow`", 1),
    },
    Row {
        fault: "the head of its answer never ends",
        play: || Outcome::of(&Task::start(&[SOON], drip), GET),
        expected: ("504 http_response_timeout", "504 http_response_timeout, `app too slow`", 1),
    },
    Row {
        fault: "the head of its answer is 4 MiB long",
        play: || says_all(format!("HTTP/1.1 200 OK\r\nX-A: {}\r\n\r\n", "a".repeat(4 << 20))),
        expected: (
            "502 http_response_header_section_size",
            "502 http_response_header_section_size, `response head too large`",
            1,
        ),
    },
    Row {
        fault: "its answer has 10,000 fields",
        play: || says_all(format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{}\r\n", "A: b\r\n".repeat(10_000))),
        expected: (
            "502 http_response_header_section_size",
            "502 http_response_header_section_size, `too many response headers`",
            1,
        ),
    },
    Row {
        fault: "100,000 interim answers, and no final one",
        play: || says_all("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(100_000)),
        expected: ("502 connection_terminated", "502 connection_terminated, `app closed connection`", 1),
    },
    Row {
        fault: "garbage",
        play: || says("220 mail.example.com ESMTP\r\n\r\n", Then::Keep),
        expected: ("502 http_protocol_error", "502 http_protocol_error, `app sent a malformed answer`", 1),
    },
    Row {
        fault: "`Content-Length` beside chunked",
        play: || {
            says("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Then::Keep)
        },
        expected: ("502 http_protocol_error", "502 http_protocol_error, `app sent a malformed answer`", 1),
    },
    Row {
        fault: "two lengths",
        play: || says("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", Then::Keep),
        expected: ("502 http_protocol_error", "502 http_protocol_error, `app sent a malformed answer`", 1),
    },
    Row {
        fault: "a CR inside of a field's value",
        play: || says("HTTP/1.1 200 OK\r\nX-A: b\rSet-Cookie: evil=1\r\nContent-Length: 0\r\n\r\n", Then::Keep),
        expected: ("502 http_protocol_error", "502 http_protocol_error, `app sent a malformed answer`", 1),
    },
    Row {
        fault: "a second answer in one write with the first (response splitting)",
        play: || {
            twice(
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 302 Found\r\nLocation: //evil.example\r\n\r\n",
            )
        },
        expected: ("200 ok, and 200 ok on another connection", "—", 2),
    },
    Row {
        fault: "a 101 that nobody asked for",
        play: || {
            says("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", Then::Keep)
        },
        expected: ("502 http_upgrade_failed", "502 http_upgrade_failed, `app sent a malformed answer`", 1),
    },
    Row {
        fault: "it answers before it has read a long body, and reads no more",
        play: early_answer,
        expected: ("413", "—", 1),
    },
    Row {
        fault: "it pauses within its body for longer than the response timeout",
        play: || Outcome::of(&Task::start(&[SOON], pause), GET),
        expected: ("200", "—", 1),
    },
    Row {
        fault: "all its connections are in use for too long",
        play: limit,
        expected: ("503 connection_limit_reached", "503 connection_limit_reached, `no connection to the app free`", 1),
    },
];

/// No wait for the app is long.
const SOON: (&str, &str) = ("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT", "1s");

fn before_nothing(scheme: &str, request: &str) -> Outcome {
    let upstream = if scheme.contains("unix") { scheme.into() } else { format!("{scheme}{}", App::nowhere()) };
    let hostward = Hostward::start(&[
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
        ("HOSTWARD_UPSTREAM", &upstream),
        ("HOSTWARD_UPSTREAM_START_TIMEOUT", "0s"),
    ]);
    Outcome::new(shown(&Ok(wire::ask(hostward.address, request))), &hostward, 0)
}

fn late() -> Outcome {
    let address = App::nowhere();
    let upstream = format!("http://{address}");
    let hostward =
        Hostward::start(&[("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", upstream.as_str())]);
    let mut client = Client::connect(hostward.address);
    client.send(GET);
    client.input.patience = Duration::from_millis(200);
    assert!(client.try_answer().is_err());
    client.input.patience = crate::support::PATIENCE;
    let app = App::listen(address, echo);
    Outcome::new(shown(&client.try_answer()), &hostward, app.count())
}

fn full_backlog() -> Outcome {
    // Nobody accepts, and the backlog is full: the kernel leaves further connections unanswered.
    let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let full = socket();
    full.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap();
    let _waiting: Vec<_> = (0..3)
        .map(|_| {
            let socket = socket();
            socket.set_nonblocking(true).unwrap();
            socket.connect(&address).ok();
            socket
        })
        .collect();
    let upstream = format!("http://{}", address.as_socket().unwrap());
    let hostward = Hostward::start(&[
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
        ("HOSTWARD_UPSTREAM", &upstream),
        ("HOSTWARD_UPSTREAM_CONNECT_TIMEOUT", "300ms"),
    ]);
    Outcome::new(shown(&Ok(wire::ask(hostward.address, GET))), &hostward, 0)
}

/// An app that does this to each connection, and counts them.
fn raw(request: &str, treat: fn(&mut std::net::TcpStream)) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    let (accepted, connections) = mpsc::channel();
    let app = thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if accepted.send(()).is_err() {
                return;
            }
            let mut stream = stream;
            treat(&mut stream);
        }
    });
    let hostward =
        Hostward::start(&[("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", upstream.as_str())]);
    let mut client = Client::connect(hostward.address);
    client.send(request);
    let outcome = Outcome::new(shown(&client.try_answer()), &hostward, connections.try_iter().count());
    drop(connections);
    // Wakes the thread, which then notices that nobody counts any more.
    wire::ask(hostward.address, GET);
    app.join().unwrap();
    outcome
}

fn says(bytes: &'static str, then: Then) -> Outcome {
    let task = Task::start(&[], move |talk| {
        talk.body().ok();
        if talk.send(bytes).is_ok() { then } else { Then::Close }
    });
    Outcome::of(&task, GET)
}

/// hostward may have had enough before everything is sent.
fn says_all(bytes: String) -> Outcome {
    let task = Task::start(&[], move |talk| {
        talk.send(&bytes).ok();
        Then::Close
    });
    Outcome::of(&task, GET)
}

fn half_close(talk: &mut Conversation<'_>) -> Then {
    talk.input.stream.half_close().unwrap();
    hang(talk)
}

fn drip(talk: &mut Conversation<'_>) -> Then {
    talk.send("HTTP/1.1 200 OK\r\n").ok();
    while talk.send("X-A: b\r\n").is_ok() {
        thread::sleep(Duration::from_millis(20));
    }
    Then::Close
}

fn pause(talk: &mut Conversation<'_>) -> Then {
    talk.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na").ok();
    thread::sleep(Duration::from_millis(1300));
    talk.send("b").map_or(Then::Close, |()| Then::Keep)
}

/// The app waits, as it were, for a reader of what it never sends, and is killed in the end.
fn short_body() -> Outcome {
    let address = App::nowhere();
    let app = App::listen(address, |talk| {
        talk.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").ok();
        hang(talk)
    });
    let hostward = Hostward::before(&app, &[]);
    let mut client = Client::connect(hostward.address);
    client.send(GET);
    client.answer_head().expect(200);
    assert_eq!(client.input.exactly(4).unwrap(), b"half");
    client.input.patience = Duration::from_millis(200);
    assert_eq!(client.input.exactly(1).unwrap_err().why, std::io::ErrorKind::TimedOut);
    let count = app.count();
    drop(app);
    client.input.patience = crate::support::PATIENCE;
    let cut = client.input.exactly(6).unwrap_err();
    assert!(cut.why != std::io::ErrorKind::TimedOut, "{cut}");
    Outcome::new("200, visibly cut short", &hostward, count)
}

fn twice(bytes: &'static str) -> Outcome {
    let task =
        Task::start(
            &[("HOSTWARD_THREADS", "1")],
            move |talk| {
                if talk.send(bytes).is_ok() { Then::Keep } else { Then::Close }
            },
        );
    let mut client = task.client();
    let [first, second] = [(); 2].map(|()| client.ask(GET));
    let apart = if task.app.connections() == 2 { "another connection" } else { "the same connection" };
    let words = format!("{} {}, and {} {} on {apart}", first.status, first.text(), second.status, second.text());
    Outcome::new(words, &task.hostward, task.app.count())
}

fn restart() -> Outcome {
    let address = App::nowhere();
    let app = App::listen(address, echo);
    let hostward = Hostward::before(&app, &[("HOSTWARD_THREADS", "1")]);
    let mut client = Client::connect(hostward.address);
    let first = client.ask(FIRST).status;
    drop(app);
    eventually("the app is gone", || TcpListener::bind(address).ok());
    let app = App::listen(address, echo);
    let second = shown(&Ok(client.ask(POST)));
    Outcome::new(format!("{first}, then {second}"), &hostward, 1 + app.count())
}

/// The app answers twice and closes when the third request comes on that connection.
fn at_reuse(request: &str, then_answers: bool) -> Outcome {
    let task = Task::start(&[("HOSTWARD_THREADS", "1")], move |talk| {
        let fault = talk.request.target == "/fault";
        if fault && (talk.request.connection == 0 || !then_answers) {
            return Then::Close;
        }
        talk.reply(answer("200 OK", "", "here"))
    });
    let mut client = task.client();
    // Twice, so that hostward has seen that the app keeps its connections; a GET needs no more than one.
    for _ in 0..if request == POST { 2 } else { 1 } {
        client.ask(FIRST).expect(200);
    }
    client.send(request);
    Outcome::answered(&mut client, &task)
}

fn closed_while_idle() -> Outcome {
    let task = Task::start(&[("HOSTWARD_THREADS", "1")], |talk| {
        talk.reply(answer("200 OK", "", "here"));
        Then::Close
    });
    let mut client = task.client();
    client.ask(FIRST).expect(200);
    task.app.wait_open(0);
    client.send(POST);
    Outcome::answered(&mut client, &task)
}

fn early_answer() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    let app = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 64];
        stream.read_exact(&mut head).unwrap();
        stream.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        // It goes when hostward has gone.
        while stream.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {}
    });
    let hostward = Hostward::start(&[
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
        ("HOSTWARD_UPSTREAM", &upstream),
        ("HOSTWARD_BUFFER_REQUESTS", "off"),
    ]);
    let mut client = Client::connect(hostward.address);
    client.send("POST /fault HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 10000000\r\n\r\nhello");
    let answer = client.try_answer().map(|mut answer| {
        // Whether it says so or not, the connection can't be used again with a body half sent.
        answer.fields.retain(|(name, _)| !name.eq_ignore_ascii_case("connection"));
        answer
    });
    let outcome = Outcome::new(shown(&answer), &hostward, 1);
    drop((client, hostward));
    app.join().unwrap();
    outcome
}

fn limit() -> Outcome {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    // It has answered in time, and goes on.
    let task = Task::start(&[SOON, ("HOSTWARD_UPSTREAM_MAX_CONNECTIONS", "1")], move |talk| {
        talk.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n").unwrap();
        gone.lock().unwrap().recv().ok();
        talk.send("x").ok();
        Then::Close
    });
    let mut first = task.client();
    first.send(FIRST);
    first.answer_head().expect(200);
    let mut client = task.client();
    client.send(GET);
    let answer = client.try_answer();
    go.send(()).unwrap();
    assert_eq!(first.input.exactly(1).unwrap_or_else(|broken| panic!("{broken}")), b"x");
    Outcome::new(shown(&answer), &task.hostward, task.app.count())
}
