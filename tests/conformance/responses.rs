//! Answers of the app: each case in one piece and in several, to a client that reads every byte until the connection
//! ends, and to one that asks again on the same connection. Behind each, somebody else asks: what is left of a case
//! must never be the next one's answer.

use crate::support::wire::{Client, text};

use super::Way;
use super::origin::{Script, split};
use super::table::Case;

/// Lets the app answer `pieces` of a case; says what is wrong.
pub fn try_case(way: &Way, case: &Case, pieces: &[Vec<u8>], again: bool) -> Result<(), String> {
    way.origin.say(Script { pieces: pieces.to_vec(), keep: !case.is("close") });
    let method = if case.is("head") { "HEAD" } else { "GET" };
    let version = if case.is("http10") { "1.0" } else { "1.1" };
    let close = if again { "" } else { "Connection: close\r\n" };
    let mut client = Client::connect(way.hostward.address);
    client.input.patience = std::time::Duration::from_secs(3);
    client.send(format!("{method} /case HTTP/{version}\r\nHost: www.example.com\r\n{close}\r\n"));
    let outcome = if again { asks_again(way, case, &mut client) } else { reads_all(way, case, &mut client) };
    way.origin.wait_said();
    let mut other = Client::connect(way.hostward.address);
    let after = other.ask("GET /after HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
    if (after.status, &*after.text()) != (200, "/after") {
        return Err(format!("somebody else was answered {} {}", after.status, after.text()));
    }
    outcome
}

fn reads_all(way: &Way, case: &Case, client: &mut Client) -> Result<(), String> {
    let got = client.input.rest().map_err(|broken| format!("the connection stays open: {broken}"))?;
    match case.outcome(way) {
        "502" => is_502(&got),
        "relayed" => {
            let (expected, got) = (unchunked(plain(&closing(case))), unchunked(plain(&got)));
            if expected == got {
                Ok(())
            } else {
                Err(format!("not {}\n    but {}", expected.escape_ascii(), got.escape_ascii()))
            }
        }
        // A 502 when hostward knew in time; else an answer that nobody can take for a whole one.
        "cut" => {
            if is_502(&got).is_ok() {
                return Ok(());
            }
            let (expected, got) = (unchunked(plain(&closing(case))), unchunked(plain(&got)));
            // What had come before the fault may have been held back with it.
            if expected.starts_with(&got) && got.windows(4).any(|window| window == b"\r\n\r\n") {
                Ok(())
            } else {
                Err(format!("not the beginning of {}\n    but {}", expected.escape_ascii(), got.escape_ascii()))
            }
        }
        other => panic!("{other}: no such outcome"),
    }
}

fn asks_again(way: &Way, case: &Case, client: &mut Client) -> Result<(), String> {
    let answer = if case.is("head") { Ok(client.answer_to_head()) } else { client.try_answer() };
    let answer = match (case.outcome(way), answer) {
        ("cut", Err(broken)) if broken.why != std::io::ErrorKind::TimedOut => return Ok(()),
        ("502" | "cut", Ok(answer)) if answer.status != 502 => return Err(format!("answered {}", answer.status)),
        (_, Ok(answer)) => answer,
        (_, Err(broken)) => return Err(format!("no answer: {broken}")),
    };
    if case.is("http10") || answer.closes() || answer.framing == crate::support::wire::Framing::Close {
        return match client.input.rest() {
            Ok(rest) if rest.is_empty() => Ok(()),
            Ok(rest) => Err(format!("behind the answer: {}", text(&rest))),
            Err(_) => Err("the connection stays open".into()),
        };
    }
    way.origin.wait_said();
    client.try_send("GET /again HTTP/1.1\r\nHost: www.example.com\r\n\r\n").map_err(|error| error.to_string())?;
    let second = client.try_answer().map_err(|broken| format!("no second answer: {broken}"))?;
    if (second.status, &*second.text()) != (200, "/again") {
        return Err(format!("the second answer is {} {}", second.status, second.text()));
    }
    Ok(())
}

fn is_502(got: &[u8]) -> Result<(), String> {
    // Hints that came before may have gone on.
    let mut whole = &*text(got);
    while whole.starts_with("HTTP/1.1 103 ") {
        whole = whole.split_once("\r\n\r\n").map_or("", |(_, rest)| rest);
    }
    let ours = whole.to_ascii_lowercase().contains("proxy-status: hostward; error=");
    if whole.starts_with("HTTP/1.1 502 ") && ours { Ok(()) } else { Err(format!("not 502 but {}", got.escape_ascii())) }
}

/// The last head of a table's answer with what hostward says about the connection.
fn closing(case: &Case) -> Vec<u8> {
    let seen = &case.seen;
    if case.is("http10") {
        return seen.clone();
    }
    let mut at = 0;
    loop {
        let Some(end) = seen[at..].windows(4).position(|window| window == b"\r\n\r\n") else { return seen.clone() };
        if seen[at..].starts_with(b"HTTP/1.1 1") {
            at += end + 4;
            continue;
        }
        return [&seen[..at + end], b"\r\nconnection: close", &seen[at + end..]].concat();
    }
}

/// An answer whose chunks have been joined, since where one ends is nobody's business: the last one is shown as `.`.
fn unchunked(bytes: Vec<u8>) -> Vec<u8> {
    let coding = b"transfer-encoding: chunked\r\n\r\n";
    let Some(head) = bytes.windows(coding.len()).position(|window| window == coding) else { return bytes };
    let (mut out, mut rest) = (bytes[..head + coding.len()].to_vec(), &bytes[head + coding.len()..]);
    while let Some(at) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(&text(&rest[..at]), 16).unwrap();
        let Some(chunk) = rest.get(at + 2..at + 4 + size) else { break };
        if size == 0 {
            out.push(b'.');
            out.extend(&rest[at + 2..]);
            return out;
        }
        out.extend(&chunk[..size]);
        rest = &rest[at + 4 + size..];
    }
    out.extend(rest);
    out
}

/// An answer with the fields of every head in the order of their names, and without the date that hostward adds.
fn plain(bytes: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), bytes);
    while let Some(end) =
        rest.windows(4).position(|window| window == b"\r\n\r\n").filter(|_| rest.starts_with(b"HTTP/1."))
    {
        let mut lines: Vec<Vec<u8>> = split(&rest[..end]).map(<[u8]>::to_vec).collect();
        lines.retain(|line| !line.starts_with(b"date: "));
        lines[1..].sort_by_key(|line| line.split(|byte| *byte == b':').next().map(<[u8]>::to_vec));
        let interim = lines[0].get(9) == Some(&b'1');
        out.extend(lines.join(&b"\r\n"[..]));
        out.extend(b"\r\n\r\n");
        rest = &rest[end + 4..];
        if !interim {
            break;
        }
    }
    out.extend(rest);
    out
}
