//! Requests of a client: each case alone, with a second request behind it, and in pieces. What is refused is answered
//! once, closes the connection, and not one byte of it reaches the app; what is forwarded arrives byte for byte.

use crate::support::wire::{Client, text};

use super::Way;
use super::origin::{Arrived, send, split};
use super::table::Case;

/// Sends `pieces` of a case, and in them `behind` it; says what is wrong.
pub fn try_case(way: &Way, case: &Case, pieces: &[Vec<u8>], behind: bool) -> Result<(), String> {
    way.origin.take();
    let mut client = Client::connect(way.hostward.address);
    client.input.patience = std::time::Duration::from_secs(3);
    // hostward may have answered and closed before everything was sent.
    send(&mut client.input.stream, pieces);
    if case.is("eof") {
        client.half_close();
    }
    match case.outcome(way) {
        // A streaming hostward has sent the beginning of a body that breaks on its way: of that, only whole requests
        // count, also while another case is tried.
        "refused" | "broken" => {
            // A good request in front of it has been answered by the app.
            let before = usize::from(case.is("second-refused"));
            for _ in 0..before {
                client.try_answer().map_err(|broken| format!("no first answer: {broken}"))?;
            }
            let answer = client.try_answer().map_err(|broken| format!("no answer: {broken}"))?;
            if !case.statuses.contains(&answer.status) {
                return Err(format!("answered {}", answer.status));
            }
            if answer.field("proxy-status").is_none() {
                return Err("the app has answered".into());
            }
            ended(&mut client)?;
            let arrived = way.origin.take();
            let surplus = arrived.packets.is_empty() && arrived.bytes > arrived.requests.iter().map(Vec::len).sum();
            if arrived.requests.len() + arrived.packets.len() != before || (surplus && !way.streams) {
                return Err(format!("reached the app: {}", shown(&arrived)));
            }
            Ok(())
        }
        // Refused for its host alone: what is behind it is a request like any other.
        "denied" => {
            let before = usize::from(case.is("second-refused"));
            for _ in 0..before {
                client.try_answer().map_err(|broken| format!("no first answer: {broken}"))?;
            }
            let answer = client.try_answer().map_err(|broken| format!("no answer: {broken}"))?;
            if !case.statuses.contains(&answer.status) || answer.field("proxy-status").is_none() {
                return Err(format!("answered {}", answer.status));
            }
            let mut expected = before;
            if behind {
                match client.try_answer() {
                    Ok(answer) if (answer.status, &*answer.text()) == (200, "/next") => expected += 1,
                    Ok(answer) => return Err(format!("the second answer is {} {}", answer.status, answer.text())),
                    // Of a body that had not come yet, nobody waits for the rest.
                    Err(broken) if case.is("body") && broken.partial.is_empty() => {}
                    Err(broken) => return Err(format!("no second answer: {broken}")),
                }
            }
            let arrived = way.origin.take();
            if arrived.requests.len() + arrived.packets.len() == expected {
                Ok(())
            } else {
                Err(format!("reached the app: {}", shown(&arrived)))
            }
        }
        "dropped" => {
            let got = client.input.rest().map_err(|_| "the connection stays open")?;
            if !got.is_empty() && !got.starts_with(b"HTTP/1.1 400 ") {
                return Err(format!("answered {}", text(&got)));
            }
            let arrived = way.origin.take();
            if arrived.requests.len() + arrived.packets.len() == 0 && (arrived.bytes == 0 || way.streams) {
                Ok(())
            } else {
                Err(format!("reached the app: {}", shown(&arrived)))
            }
        }
        "forwarded" | "forwarded-once" => {
            let last = case.outcome(way) == "forwarded-once";
            let head = case.seen.starts_with(b"HEAD ");
            let answer = if head { Ok(client.answer_to_head()) } else { client.try_answer() };
            let answer = answer.map_err(|broken| format!("no answer: {broken}"))?;
            if answer.status != 200 {
                return Err(format!("answered {}", answer.status));
            }
            let mut expected = vec![case.seen.clone()];
            if last {
                ended(&mut client)?;
            } else if behind {
                let answer = client.try_answer().map_err(|broken| format!("no second answer: {broken}"))?;
                if (answer.status, &*answer.text()) != (200, "/next") {
                    return Err(format!("the second answer is {} {}", answer.status, answer.text()));
                }
                expected.push(b"GET /next HTTP/1.1\r\n\r\n".to_vec());
            }
            compare(way, &expected, &way.origin.take())
        }
        other => panic!("{other}: no such outcome"),
    }
}

fn ended(client: &mut Client) -> Result<(), String> {
    match client.input.rest() {
        Err(_) => Err("the connection stays open".into()),
        Ok(rest) if rest.is_empty() => Ok(()),
        Ok(rest) => Err(format!("more than one answer: {}", text(&rest))),
    }
}

fn compare(way: &Way, expected: &[Vec<u8>], arrived: &Arrived) -> Result<(), String> {
    if !arrived.packets.is_empty() {
        let expected: Vec<_> = expected.iter().map(|request| words_of_packet(request)).collect();
        let got: Vec<_> = arrived
            .packets
            .iter()
            .map(|packet| {
                let value = |name| packet.value(name).unwrap_or_default().to_owned();
                (value("REQUEST_METHOD"), value("REQUEST_URI"), value("HTTP_HOST"), packet.body.clone())
            })
            .collect();
        return if expected == got { Ok(()) } else { Err(format!("not {expected:?}\n    but {got:?}")) };
    }
    let expected: Vec<_> = expected.iter().map(|request| plain(&whole(request))).collect();
    let got: Vec<_> = arrived.requests.iter().map(|request| plain(request)).collect();
    // Streamed, a body keeps its chunks, but not their borders: the content is compared.
    let same = if way.streams {
        let content = |requests: &[Vec<u8>]| requests.iter().map(|request| content(request)).collect::<Vec<_>>();
        content(&expected) == content(&got)
    } else {
        expected == got && arrived.bytes == arrived.requests.iter().map(Vec::len).sum::<usize>()
    };
    if same { Ok(()) } else { Err(format!("not {}\n    but {}", quoted(&expected), quoted(&got))) }
}

/// A request of the table with the fields that hostward writes on every one.
fn whole(request: &[u8]) -> Vec<u8> {
    let (head, body) = cut(request);
    let lines: Vec<&[u8]> = split(head).collect();
    let field = |name: &str| lines.iter().find_map(|line| line.strip_prefix(format!("{name}: ").as_bytes()));
    let host = text(field("host").unwrap_or(b"www.example.com"));
    let mut out = lines.join(&b"\r\n"[..]);
    for (name, value) in [
        ("host", &*host),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-port", host.rsplit_once(':').map_or("80", |(_, port)| port)),
        ("x-forwarded-host", &host),
        ("x-real-ip", "127.0.0.1"),
        ("x-request-id", "*"),
        ("x-request-start", "*"),
    ] {
        if field(name).is_none() {
            out.extend(format!("\r\n{name}: {value}").as_bytes());
        }
    }
    [&out, &b"\r\n\r\n"[..], body].concat()
}

/// A request with its fields in the order of their names, and any id and time. The order of lines of one name counts.
fn plain(request: &[u8]) -> Vec<u8> {
    let (head, body) = cut(request);
    let mut lines: Vec<Vec<u8>> = split(head).map(<[u8]>::to_vec).collect();
    for line in &mut lines {
        for name in ["x-request-id", "x-request-start"] {
            if line.starts_with(format!("{name}: ").as_bytes()) {
                *line = format!("{name}: *").into_bytes();
            }
        }
    }
    let name = |line: &Vec<u8>| line.split(|byte| *byte == b':').next().map(<[u8]>::to_vec);
    lines[1..].sort_by_key(name);
    [&lines.join(&b"\r\n"[..]), &b"\r\n\r\n"[..], body].concat()
}

/// A request without its framing, and with its chunks joined.
fn content(request: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (head, mut body) = cut(request);
    let framing = |line: &&[u8]| line.starts_with(b"content-length: ") || line.starts_with(b"transfer-encoding: ");
    let lines = split(head).filter(|line| !framing(line) && !line.is_empty()).map(<[u8]>::to_vec).collect();
    let mut joined = Vec::new();
    if !split(head).any(|line| line == b"transfer-encoding: chunked") {
        return (lines, body.to_vec());
    }
    while let Some(at) = body.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(&text(&body[..at]), 16).unwrap();
        if size == 0 {
            break;
        }
        joined.extend(&body[at + 2..at + 2 + size]);
        body = &body[at + 4 + size..];
    }
    (lines, joined)
}

/// Method, target, host and body, as uwsgi says them.
fn words_of_packet(request: &[u8]) -> (String, String, String, Vec<u8>) {
    let (head, body) = cut(request);
    let line = text(split(head).next().unwrap_or_default());
    let mut words = line.split(' ').map(str::to_owned);
    let host = split(head).find_map(|line| line.strip_prefix(b"host: ")).map_or("www.example.com".into(), text);
    (words.next().unwrap_or_default(), words.next().unwrap_or_default(), host, body.to_vec())
}

fn cut(request: &[u8]) -> (&[u8], &[u8]) {
    let end = request.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole head");
    (&request[..end], &request[end + 4..])
}

fn shown(arrived: &Arrived) -> String {
    format!("{} {:?} and {} bytes", quoted(&arrived.requests), arrived.packets, arrived.bytes)
}

fn quoted(messages: &[Vec<u8>]) -> String {
    messages.iter().map(|bytes| bytes.escape_ascii().to_string()).collect::<Vec<_>>().join(" + ")
}
