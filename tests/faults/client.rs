//! What clients do wrong, or slowly, or too much.

use std::io::ErrorKind;
use std::thread;
use std::time::Duration;

use super::{FIRST, GET, Outcome, POST, Row, shown};
use crate::support::app::{Then, answer, hang};
use crate::support::wire::{self, Client};
use crate::support::{Task, eventually};

pub const ROWS: &[Row] = &[
    Row {
        fault: "it says nothing",
        play: || closed(&Task::echo(&[SLOW_HEAD]), ""),
        expected: ("closed without an answer", "—", 0),
    },
    Row {
        fault: "it says nothing after an answer (keep-alive)",
        play: || closed(&Task::echo(&[("HOSTWARD_IDLE_TIMEOUT", "1s")]), FIRST),
        expected: ("200, then closed without an answer", "—", 1),
    },
    Row {
        fault: "its head never ends",
        play: || unparsed(&[SLOW_HEAD], "GET /fault HTTP/1.1\r\nHost: www.exa"),
        expected: ("408 http_request_error, closed", "408 http_request_error, `client too slow`", 0),
    },
    Row { fault: "its head comes a byte at a time, in time", play: || byte_by_byte(GET), expected: ("200", "—", 1) },
    Row { fault: "its body comes a byte at a time", play: || byte_by_byte(POST), expected: ("200", "—", 1) },
    Row {
        fault: "its body stops",
        play: || Outcome::of(&Task::echo(&[SLOW_BODY]), &POST[..POST.len() - 2]),
        expected: ("408 http_request_error, closed", "408 http_request_error, `client too slow`", 0),
    },
    Row {
        fault: "its body stops, streamed",
        play: || Outcome::of(&Task::echo(&[SLOW_BODY, STREAM]), &POST[..POST.len() - 2]),
        expected: ("408 http_request_error, closed", "408 http_request_error, `client too slow`", 1),
    },
    Row {
        fault: "it reads nothing of a long answer",
        play: never_reads,
        expected: ("200, visibly cut short", "200 client_gone", 1),
    },
    Row { fault: "it reads a long answer slowly", play: reads_slowly, expected: ("200", "—", 1) },
    Row { fault: "it ends its side after the request", play: half_close, expected: ("200", "—", 1) },
    Row {
        fault: "it ends its side within the body",
        play: || half_closed_within(POST.len() - 2),
        expected: ("closed without an answer", "499 client_gone", 0),
    },
    Row {
        fault: "it resets within the head", play: || reset_after(&GET[..20]), expected: ("reset by itself", "—", 0)
    },
    Row {
        fault: "it resets within the body",
        play: || reset_after(&POST[..POST.len() - 2]),
        expected: ("reset by itself", "499 client_gone", 0),
    },
    Row {
        fault: "it resets while the app works",
        play: || reset_after(GET),
        expected: ("reset by itself", "499 client_gone", 1),
    },
    Row {
        fault: "it resets within the answer",
        play: reset_within_answer,
        expected: ("reset by itself", "200 client_gone", 1),
    },
    Row {
        fault: "ten requests in one write (pipelining)",
        play: pipelining,
        expected: ("10 answers, in order", "—", 10),
    },
    Row {
        fault: "its head is longer than allowed",
        play: || {
            let head = format!("GET /fault HTTP/1.1\r\nHost: www.example.com\r\nX-A: {}\r\n\r\n", "a".repeat(70_000));
            unparsed(&[], &head)
        },
        expected: ("431 http_request_error, closed", "431 http_request_error, `request too large`", 0),
    },
    Row {
        fault: "10,000 fields",
        play: || {
            let fields = "A: b\r\n".repeat(10_000);
            unparsed(&[], &format!("GET /fault HTTP/1.1\r\nHost: www.example.com\r\n{fields}\r\n"))
        },
        expected: ("431 http_request_error, closed", "431 http_request_error, `too many headers`", 0),
    },
    Row {
        fault: "its body is longer than allowed",
        play: || Outcome::of(&Task::echo(&[("HOSTWARD_MAX_BODY_SIZE", "4")]), POST),
        expected: ("413 http_request_error, closed", "413 http_request_error, `request too large`", 0),
    },
    Row {
        fault: "two requests in one, for two readers (smuggling)",
        play: || {
            let both = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /poison HTTP/1.1\r\n\r\n";
            unparsed(&[], &format!("POST /fault HTTP/1.1\r\nHost: www.example.com\r\n{both}"))
        },
        expected: ("400 http_request_error, closed", "400 http_request_error, `malformed request`", 0),
    },
    Row {
        fault: "its chunks are malformed",
        play: || {
            let body = "Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n";
            unparsed(&[], &format!("POST /fault HTTP/1.1\r\nHost: www.example.com\r\n{body}"))
        },
        expected: ("400 http_request_error, closed", "400 http_request_error, `malformed request`", 0),
    },
    Row {
        fault: "1,000 requests for a foreign host",
        play: flood,
        expected: ("1000 × 421 http_request_denied", "421 http_request_denied, `request denied`", 0),
    },
    Row {
        fault: "one connection more than allowed",
        play: one_too_many,
        expected: ("200, when another has left", "—", 1),
    },
    Row {
        fault: "plain HTTP to a TLS port",
        play: plain,
        expected: ("400 http_request_error, closed", "400 http_request_error, `plain HTTP to a TLS port`", 0),
    },
    Row {
        fault: "a TLS handshake that never ends",
        play: half_a_handshake,
        expected: ("closed without an answer", "`TLS handshake failed`", 0),
    },
    Row {
        fault: "no PROXY header where one is required",
        play: no_proxy_header,
        expected: ("closed without an answer", "`connection refused`", 0),
    },
];

const SLOW_HEAD: (&str, &str) = ("HOSTWARD_HEADER_TIMEOUT", "500ms");
const SLOW_BODY: (&str, &str) = ("HOSTWARD_BODY_TIMEOUT", "1s");
const STREAM: (&str, &str) = ("HOSTWARD_BUFFER_REQUESTS", "off");
/// Bytes; more than all buffers on the way hold.
const LONG: usize = 32 << 20;

/// A connection that hostward closes in silence.
fn closed(task: &Task, begun: &str) -> Outcome {
    let mut client = task.client();
    let mut words = String::new();
    if !begun.is_empty() {
        words = format!("{}, then ", shown(&Ok(client.ask(begun))));
    }
    words += &shown(&client.try_answer());
    Outcome::without_line(words, &task.hostward, task.app.count())
}

/// A request that hostward answers before it has one.
fn unparsed(settings: &[(&str, &str)], request: &str) -> Outcome {
    let task = Task::echo(settings);
    let mut client = task.client();
    client.try_send(request).ok();
    let answer = shown(&client.try_answer());
    task.hostward.line(|line| line["msg"] == "request");
    Outcome::without_line(answer, &task.hostward, task.app.count())
}

fn byte_by_byte(request: &str) -> Outcome {
    let task = Task::echo(&[]);
    let mut client = task.client();
    for byte in request.as_bytes() {
        client.send([*byte]);
        thread::sleep(Duration::from_millis(2));
    }
    Outcome::answered(&mut client, &task)
}

fn long(settings: &[(&str, &str)]) -> Task {
    Task::start(settings, |talk| {
        talk.send(answer("200 OK", "", &"a".repeat(LONG))).map_or(Then::Close, |()| Then::Keep)
    })
}

fn never_reads() -> Outcome {
    let task = long(&[SLOW_BODY, ("HOSTWARD_BUFFER_RESPONSES", "0")]);
    let mut client = task.client();
    client.send(GET);
    // hostward gives it up, and says so.
    task.hostward.request_line("/fault");
    let got = client.try_answer();
    Outcome::new(shown(&got), &task.hostward, task.app.count())
}

fn reads_slowly() -> Outcome {
    let task = long(&[SLOW_BODY, ("HOSTWARD_BUFFER_RESPONSES", "0")]);
    let mut client = task.client();
    client.send(GET);
    let head = client.answer_head().expect(200);
    // For longer than what `BODY_TIMEOUT` allows to stand still.
    for _ in 0..20 {
        client.input.exactly(LONG / 40).unwrap();
        thread::sleep(Duration::from_millis(100));
    }
    let rest = client.input.exactly(LONG / 2).map(|_| head);
    Outcome::new(shown(&rest), &task.hostward, task.app.count())
}

fn half_close() -> Outcome {
    let task = Task::start(&[], |talk| {
        thread::sleep(Duration::from_millis(100));
        talk.reply(answer("200 OK", "", "here"))
    });
    let mut client = task.client();
    client.send(GET);
    client.half_close();
    Outcome::answered(&mut client, &task)
}

fn half_closed_within(length: usize) -> Outcome {
    let task = Task::echo(&[]);
    let mut client = task.client();
    client.send(&POST[..length]);
    client.half_close();
    Outcome::answered(&mut client, &task)
}

fn reset(client: Client) {
    socket2::SockRef::from(client.input.stream.tcp()).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
}

fn reset_after(begun: &str) -> Outcome {
    let task = Task::start(&[], hang);
    let mut client = task.client();
    client.send(begun);
    task.app.wait_count(usize::from(begun == GET));
    // hostward has read what there is when it answers somebody else on the same thread.
    wire::get(task.hostward.admin, "localhost", "/livez").expect(200);
    reset(client);
    // The client's request is known from its whole head on.
    if begun.contains("\r\n\r\n") {
        task.hostward.request_line("/fault");
    }
    task.app.wait_open(0);
    Outcome::without_line("reset by itself", &task.hostward, task.app.count())
}

fn reset_within_answer() -> Outcome {
    let task = long(&[]);
    let mut client = task.client();
    client.send(GET);
    client.answer_head().expect(200);
    reset(client);
    task.app.wait_open(0);
    Outcome::new("reset by itself", &task.hostward, task.app.count())
}

fn pipelining() -> Outcome {
    let task = Task::start(&[], |talk| {
        let own = talk.request.target.clone();
        talk.reply(answer("200 OK", "", &own))
    });
    let mut client = task.client();
    let targets: Vec<String> = (1..10).map(|number| format!("/{number}")).chain(["/fault".into()]).collect();
    client.send(targets.iter().map(|target| GET.replace("/fault", target)).collect::<String>());
    let answered = targets.iter().take_while(|target| client.answer().text() == **target).count();
    Outcome::new(format!("{answered} answers, in order"), &task.hostward, task.app.count())
}

fn flood() -> Outcome {
    let task = Task::echo(&[]);
    let request = GET.replace("www.example.com", "evil.example");
    let mut client = task.client();
    let mut words = Vec::new();
    for _ in 0..1000 {
        words.push(shown(&Ok(client.ask(&request))));
    }
    words.sort_unstable();
    words.dedup();
    eventually("all are logged", || {
        let lines = task.hostward.lines();
        (lines.iter().filter(|line| line["msg"] == "request").count() == 1000).then_some(())
    });
    Outcome::new(format!("1000 × {}", words.join(", ")), &task.hostward, task.app.count())
}

fn one_too_many() -> Outcome {
    let task = Task::echo(&[("HOSTWARD_MAX_CONNECTIONS", "1")]);
    let first = task.client();
    let mut second = task.client();
    second.send(GET);
    second.input.patience = Duration::from_millis(300);
    assert_eq!(second.try_answer().unwrap_err().why, ErrorKind::TimedOut);
    drop(first);
    second.input.patience = crate::support::PATIENCE;
    let answer = shown(&second.try_answer());
    Outcome::new(format!("{answer}, when another has left"), &task.hostward, task.app.count())
}

fn plain() -> Outcome {
    let task = Task::echo(&[("HOSTWARD_TLS", "self-signed")]);
    let mut client = Client::plain(task.hostward.address);
    client.send(GET);
    let answer = shown(&client.try_answer());
    task.hostward.line(|line| line["msg"] == "request");
    Outcome::without_line(answer, &task.hostward, task.app.count())
}

fn half_a_handshake() -> Outcome {
    let task = Task::echo(&[("HOSTWARD_TLS", "self-signed"), SLOW_HEAD]);
    let mut client = Client::plain(task.hostward.address);
    // A record of a handshake, 512 bytes long, of which one comes.
    client.send([22, 3, 1, 2, 0, 1]);
    let answer = shown(&client.try_answer());
    task.hostward.line(|line| line["msg"] == "TLS handshake failed");
    Outcome::without_line(answer, &task.hostward, task.app.count())
}

fn no_proxy_header() -> Outcome {
    let task = Task::echo(&[("HOSTWARD_PROXY_PROTOCOL", "required")]);
    let mut client = task.client();
    client.send(GET);
    let answer = shown(&client.try_answer());
    task.hostward.line(|line| line["msg"] == "connection refused");
    Outcome::without_line(answer, &task.hostward, task.app.count())
}
