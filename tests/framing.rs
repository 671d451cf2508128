//! Contract 3 and RFC 9112 §6: a message whose end two readers could see in different places never reaches
//! the app, and is answered.

use crate::support::Task;
use crate::support::wire::{Framing, text};

/// What would be a second request if the first were cut at the wrong place.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: www.example.com\r\n\r\n";

/// Sends bytes that must be answered with one of `statuses` and the end of the connection. What is wrong
/// instead.
fn rejected(task: &Task, bytes: &[u8], statuses: &[u16]) -> Option<String> {
    let mut client = task.client();
    // hostward may have answered and closed before everything was sent.
    client.try_send(bytes).ok();
    let shown = text(&bytes[..bytes.len().min(400)]).escape_debug().to_string();
    match client.try_answer() {
        Err(broken) => Some(format!("{shown}\n  no answer: {broken}")),
        Ok(answer) if !statuses.contains(&answer.status) => Some(format!("{shown}\n  {}", answer.status)),
        Ok(_) => match client.input.rest() {
            Err(_) => Some(format!("{shown}\n  the connection stays open")),
            Ok(rest) if rest.is_empty() => None,
            Ok(rest) => Some(format!("{shown}\n  more than one answer: {}", text(&rest))),
        },
    }
}

fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Of these, nothing at all reaches the app.
fn refused(requests: &[&[u8]], statuses: &[u16]) {
    let task = Task::echo(&[]);
    let mut wrong = Vec::new();
    for bytes in requests {
        wrong.extend(rejected(&task, bytes, statuses));
        wrong.extend(rejected(&task, &[bytes, SMUGGLED.as_bytes()].concat(), statuses));
    }
    assert_none(&wrong);
    assert_eq!(task.app.count(), 0, "{:#?}", task.app.requests());
    task.get("/").expect(200);
}

/// A `POST` with these field lines and this body.
fn post(fields: &str, body: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: www.example.com\r\n{fields}\r\n{body}").into_bytes()
}

#[test]
fn ambiguous_lengths_are_400() {
    let values = [
        "+5",
        "-5",
        "0x5",
        "5_0",
        "5,6",
        "5, 5",
        "5 5",
        "",
        "five",
        "5.0",
        "\"5\"",
        "5;a",
        "99999999999999999999",
        "18446744073709551616",
        "\x0b5",
    ];
    let mut requests: Vec<Vec<u8>> =
        values.iter().map(|value| post(&format!("Content-Length: {value}\r\n"), "hello")).collect();
    for fields in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 6\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\ncontent-length: 0\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length:\r\n",
    ] {
        requests.push(post(fields, "hello"));
    }
    refused(&requests.iter().map(Vec::as_slice).collect::<Vec<_>>(), &[400]);
}

/// RFC 9112 §6.1: an unknown coding is 501. §6.3: anything but a final `chunked` is 400.
#[test]
fn an_unknown_transfer_coding_before_a_final_chunked_is_501() {
    let codings =
        ["gzip, chunked", "GZIP,chunked", "deflate;q=1, Chunked", "identity, chunked", "cow, gzip ,\tchunked"];
    let requests: Vec<Vec<u8>> = codings
        .iter()
        .map(|coding| post(&format!("Transfer-Encoding: {coding}\r\n"), "5\r\nhello\r\n0\r\n\r\n"))
        .collect();
    refused(&requests.iter().map(Vec::as_slice).collect::<Vec<_>>(), &[501]);
}

#[test]
fn transfer_codings_other_than_one_final_chunked_are_400() {
    let codings = [
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked, gzip, chunked",
        "Transfer-Encoding: gzip, chunked, ",
        "Transfer-Encoding: gzip,, chunked",
        "Transfer-Encoding: chunked,\r\n gzip",
        "Transfer-Encoding: gzip,\r\n\tchunked",
        "Transfer-Encoding: chunked\r\n gzip",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunkedx",
        "Transfer-Encoding: chunked;a=b",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunk",
        "Transfer-Encoding:",
        "Transfer-Encoding: ,",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: chunked\x0c",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding:",
        "Transfer-Encoding: cow",
        "Transfer-Encoding:\r\n chunked",
    ];
    let requests: Vec<Vec<u8>> =
        codings.iter().map(|line| post(&format!("{line}\r\n"), "5\r\nhello\r\n0\r\n\r\n")).collect();
    refused(&requests.iter().map(Vec::as_slice).collect::<Vec<_>>(), &[400]);
}

/// RFC 9112 §6.3: it "ought to be handled as an error".
#[test]
fn a_length_beside_a_transfer_coding_is_400() {
    let mut requests = Vec::new();
    for (fields, body) in [
        ("content-length: 5\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
        ("transfer-encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
        ("Content-Length: 0\r\ntransfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("Content-Length: 5\r\nTRANSFER-ENCODING: gzip, chunked\r\n", "hello"),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("Content-Length: 60\r\nTransfer-Encoding: Chunked\r\n", "0\r\n\r\n"),
    ] {
        requests.push(post(fields, body));
    }
    refused(&requests.iter().map(Vec::as_slice).collect::<Vec<_>>(), &[400]);
}

#[test]
fn both_framings_with_a_wrong_one_are_refused() {
    refused(
        &[
            &post("Content-Length: 5\r\nTransfer-Encoding: gzip\r\n", "hello"),
            &post("Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n", "hello"),
            &post("Content-Length: 5\r\nTransfer-Encoding : chunked\r\n", "0\r\n\r\n"),
            &post("Content-Length: x\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ],
        &[400],
    );
}

/// RFC 9112 §6.1: an HTTP/1.0 message with a transfer coding has faulty framing.
#[test]
fn http_1_0_has_no_transfer_codings() {
    refused(
        &[
            b"POST / HTTP/1.0\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.0\r\nHost: www.example.com\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        ],
        &[400],
    );
}

#[test]
fn heads_that_two_readers_could_cut_differently_are_400() {
    refused(
        &[
            // A bare LF ends no line.
            b"GET / HTTP/1.1\nHost: www.example.com\n\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com\n\r\n",
            b"GET / HTTP/1.1\nHost: www.example.com\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: b\nX-C: d\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: b\r\n\n",
            // Nor does a bare CR.
            b"GET / HTTP/1.1\r\nHost: www.example.com\rX-A: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: b\rc\r\n\r\n",
            b"GET /\r HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
            // obs-fold: RFC 9112 section 5.2.
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: b\r\n c\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: b\r\n\tc\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost:\r\n www.example.com\r\n\r\n",
            b"GET / HTTP/1.1\r\n X-A: b\r\nHost: www.example.com\r\n\r\n",
            // White space around a name: RFC 9112 section 5.1.
            b"GET / HTTP/1.1\r\nHost : www.example.com\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A : b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A\t: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX A: b\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length : 5\r\n\r\nhello",
            // Names and values that are none.
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\n: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A\0: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: b\0c\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: b\x01c\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: b\x7fc\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX(A): b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX-\xc3\xa9: b\r\n\r\n",
            // Request lines.
            b"GET /a\0b HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
            b"GET  HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
            b"GE T / HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
            b"GET / / HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
            b"G\xc3\xa9T / HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
            b" GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
            b"\0\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        ],
        &[400],
    );
}

#[test]
fn other_versions_of_http_are_refused() {
    refused(
        &[
            b"GET /\r\n\r\n",
            b"GET / HTTP/0.9\r\nHost: www.example.com\r\n\r\n",
            b"GET / HTTP/1.2\r\nHost: www.example.com\r\n\r\n",
            b"GET / HTTP/2.0\r\nHost: www.example.com\r\n\r\n",
            b"GET / HTTP/1.10\r\nHost: www.example.com\r\n\r\n",
            b"GET / HTTP/11\r\nHost: www.example.com\r\n\r\n",
            b"GET / http/1.1\r\nHost: www.example.com\r\n\r\n",
            b"GET / FTP/1.1\r\nHost: www.example.com\r\n\r\n",
            b"GET / HTTP/1.1x\r\nHost: www.example.com\r\n\r\n",
        ],
        &[400, 505],
    );
}

#[test]
fn broken_chunks_are_400_and_never_reach_the_app() {
    let task = Task::echo(&[]);
    broken_chunks_are_400(&task);
    assert_eq!(task.app.count(), 0);
}

/// The app may see such a request begin; what it may not see is its end.
#[test]
fn broken_chunks_of_a_streamed_body_are_400_and_the_app_never_sees_their_end() {
    broken_chunks_are_400(&Task::echo(&[("HOSTWARD_BUFFER_REQUESTS", "off")]));
}

fn broken_chunks_are_400(task: &Task) {
    let (mut wrong, mut complete) = (Vec::new(), 0);
    for body in [
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        // The data is longer or shorter than its size.
        "5\r\nhelloo\r\n0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        // A bare LF or CR ends no line.
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5;a=\"\n\"\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\nX-A: b\n\r\n",
        "5\r\nhello\r\n0\r\nX-A\r\n\r\n",
        "5\r\nhello\r\n0\r\nX A: b\r\n\r\n",
        "5\r\nhello\r\n0\r\n X-A: b\r\n\r\n",
        ";a\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
    ] {
        wrong.extend(rejected(task, &post("Transfer-Encoding: chunked\r\n", body), &[400]));
        if task.app.complete() > complete {
            complete = task.app.complete();
            wrong.push(format!("{}\n  reached the app whole", body.escape_debug()));
        }
    }
    let extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(70_000));
    wrong.extend(rejected(task, &post("Transfer-Encoding: chunked\r\n", &extension), &[400, 413, 431]));
    assert_none(&wrong);
    assert!(task.app.requests().iter().all(|request| request.target == "/"));
}

#[test]
fn an_oversize_head_is_431() {
    let value = "a".repeat(70 * 1024);
    let many = "X-A: b\r\n".repeat(10_000);
    refused(
        &[
            format!("GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: {value}\r\n\r\n").as_bytes(),
            format!("GET / HTTP/1.1\r\nHost: www.example.com\r\n{many}\r\n").as_bytes(),
            format!("GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: {value}").as_bytes(),
        ],
        &[431],
    );
    refused(&[format!("GET /{value} HTTP/1.1\r\nHost: www.example.com\r\n\r\n").as_bytes()], &[414, 431]);
}

#[test]
fn a_good_request_in_front_of_a_bad_one_is_answered() {
    let task = Task::echo(&[]);
    let good = "GET /good HTTP/1.1\r\nHost: www.example.com\r\n\r\n".as_bytes();
    for (number, bad) in [
        post("Content-Length: 5, 6\r\n", "hello"),
        post("Transfer-Encoding: gzip\r\n", "hello"),
        b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A : b\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: user@www.example.com\r\n\r\n".to_vec(),
        b"garbage\r\n\r\n".to_vec(),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = task.client();
        client.send([good, &bad, SMUGGLED.as_bytes()].concat());
        client.answer().expect(200);
        let answer = client.answer();
        assert!([400, 501].contains(&answer.status), "{}", answer.head);
        client.assert_closed();
        assert_eq!(task.app.count(), number + 1, "{}", text(&bad));
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let task = Task::echo(&[]);
    let mut client = task.client();
    let requests: Vec<String> = (0..20)
        .map(|n| format!("POST /{n} HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 2\r\n\r\nab"))
        .collect();
    client.send(requests.concat());
    for number in 0..20 {
        let answer = client.answer().expect(200);
        assert!(answer.text().contains(&format!("\"/{number}\"")), "{}", answer.text());
    }
    assert!(task.app.requests().iter().all(|request| request.body == b"ab" && request.complete));
}

/// In one segment or in many, buffered or streamed, with and without TLS: the second request is neither lost nor taken
/// for a part of the first one's body.
#[test]
fn a_request_behind_a_body_that_came_apart_from_its_head_is_served() {
    let next = "GET /next HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
    let sized = ("Content-Length: 5\r\n", "hello");
    let chunked = ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n");
    for settings in
        [("HOSTWARD_BUFFER_REQUESTS", "auto"), ("HOSTWARD_BUFFER_REQUESTS", "off"), ("HOSTWARD_TLS", "self-signed")]
    {
        let task = Task::echo(&[settings]);
        for (field, body) in [sized, chunked] {
            let head = post(field, "");
            for (first, second) in
                [("", body), (&body[..1], &body[1..]), (&body[..body.len() - 1], &body[body.len() - 1..])]
            {
                let before = task.app.count();
                let mut client = task.client();
                client.send([&head, first.as_bytes()].concat());
                // So that the head is read without the body.
                std::thread::sleep(std::time::Duration::from_millis(20));
                client.send([second, next].concat());
                client.answer().expect(200);
                let answer = client.answer().expect(200);
                assert!(answer.text().contains("\"/next\""), "{settings:?} {field}{first:?}: {}", answer.text());
                let received = &task.app.requests()[before..];
                assert_eq!(received.len(), 2, "{received:#?}");
                assert_eq!((text(&received[0].body).as_str(), received[0].complete), ("hello", true), "{settings:?}");
                assert_eq!((received[1].target.as_str(), received[1].framing), ("/next", Framing::Empty));
            }
        }
    }
}

/// RFC 9112 §2.2: old clients send a CRLF behind a body, outside of its length. One after the other, and all at once.
#[test]
fn a_crlf_behind_each_body_is_ignored() {
    for way in ["auto", "off"] {
        let task = Task::echo(&[("HOSTWARD_BUFFER_REQUESTS", way)]);
        for request in [
            post("Content-Length: 5\r\n", "hello\r\n"),
            post("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n\r\n"),
        ] {
            let mut client = task.client();
            for _ in 0..10 {
                assert!(!client.ask(&request).expect(200).closes());
            }
            client.send(request.repeat(10));
            for _ in 0..10 {
                client.answer().expect(200);
            }
            // The last CRLF has no request behind it.
            client.half_close();
            client.assert_closed();
        }
        assert_eq!(task.app.count(), 40);
        assert!(task.app.requests().iter().all(|request| request.body == b"hello" && request.complete));
    }
}

#[test]
fn a_chunked_body_arrives_whole() {
    let task = Task::echo(&[]);
    for (body, content) in [
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("1\r\nh\r\n004\r\nello\r\n0\r\n\r\n", "hello"),
        ("5;name=value;other=\"a;b\"\r\nhello\r\n0;last\r\n\r\n", "hello"),
        ("A\r\n0123456789\r\n000\r\n\r\n", "0123456789"),
        ("f\r\n0123456789abcde\r\n0\r\n\r\n", "0123456789abcde"),
        ("F\r\n0123456789abcde\r\n0\r\n\r\n", "0123456789abcde"),
        ("1f\r\n0123456789abcdef0123456789abcde\r\n0\r\n\r\n", "0123456789abcdef0123456789abcde"),
        (&format!("fF\r\n{0}\r\n0\r\n\r\n", "x".repeat(255)), &"x".repeat(255)),
        ("5\r\nhello\r\n0\r\nT:\r\n\r\n", "hello"),
        ("0\r\n\r\n", ""),
    ] {
        for coding in ["chunked", "Chunked", " \tCHUNKED\t "] {
            let received = task.admitted(post(&format!("Transfer-Encoding: {coding}\r\n"), body));
            assert_eq!((text(&received.body).as_str(), received.complete), (content, true), "{coding} {body}");
            assert!(received.framing != Framing::Empty || content.is_empty(), "{}", received.head);
        }
    }
}

#[test]
fn a_body_with_a_length_arrives_with_that_length() {
    let task = Task::echo(&[]);
    for method in ["GET", "POST", "DELETE", "OPTIONS", "PURGE"] {
        let request = format!("{method} / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 5\r\n\r\nhello");
        let received = task.admitted(request);
        assert_eq!((received.framing, received.body.as_slice()), (Framing::Length(5), &b"hello"[..]), "{method}");
    }
    let received = task.admitted(post("Content-Length: 0\r\n", ""));
    assert_eq!(received.field("content-length"), Some("0"));
    // Leading zeros are digits too.
    assert_eq!(task.admitted(post("Content-Length: 005\r\n", "hello")).body, b"hello");
}

#[test]
fn a_trailer_section_stays_a_trailer_section() {
    let task = Task::echo(&[("HOSTWARD_BUFFER_REQUESTS", "off")]);
    let received = task.admitted(post(
        "Transfer-Encoding: chunked\r\nTrailer: X-Checksum, Host, Content-Length, X-Forwarded-For\r\n",
        "5\r\nhello\r\n0\r\nX-Checksum: 42\r\nHost: evil.example\r\nContent-Length: 3\r\nX-Forwarded-For: 6.6.6.6\r\nX_Forwarded_Host: evil.example\r\n\r\n",
    ));
    assert_eq!(received.body, b"hello");
    let expected = ("x-checksum".to_owned(), "42".to_owned());
    let trailers: Vec<_> =
        received.trailers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
    assert_eq!(trailers, [expected]);
    assert!(received.all("x-checksum").is_empty() && !received.head.contains("evil"), "{}", received.head);
}
