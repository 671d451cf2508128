//! Whatever hostward forwards is exactly one request to every reader, with an authority that the policy has admitted,
//! and it is a request that the client has sent.
//!
//! An input is a byte of settings and what a client sends over one connection. Two strict readers judge it: one reads
//! what the client sent, the other what reached the app; the list of allowed hosts is judged here anew. And it makes no
//! difference whether hostward reads and writes plain messages itself or hyper does.

#![no_main]

use std::cell::OnceCell;

use hostward_fuzz::app::{Received, Script};
use hostward_fuzz::arrived::{Mode, OWN, check_http, check_uwsgi, is_admitted};
use hostward_fuzz::compared::differ;
use hostward_fuzz::http1::{self, Read, Request};
use hostward_fuzz::proxy::{Outcome, Setup};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static SETUPS: [OnceCell<Setup>; 64] = const { [const { OnceCell::new() }; 64] };
}

fuzz_target!(|input: &[u8]| {
    let Some((mode, input)) = input.split_first() else { return };
    let number = usize::from(mode & 63);
    let mode = Mode::of(*mode);
    SETUPS.with(|setups| {
        let setup = setups[number].get_or_init(|| mode.setup());
        let http2 = PREFACE.starts_with(&input[..input.len().min(PREFACE.len())]);
        // A machine that stalls looks like a client that has left: what hostward then doesn't answer, it answers the
        // next time. A bug comes again.
        let mut outcome = setup.converse(input, !http2, Script::Serve);
        if !http2 {
            for _ in 0..3 {
                if compare(input, &outcome, mode).is_ok() {
                    break;
                }
                outcome = setup.converse(input, true, Script::Serve);
            }
            if let Err(why) = compare(input, &outcome, mode) {
                panic!("{why}\nthe client got {}", outcome.received.escape_ascii());
            }
            let mut tries = (0..4).map(|_| {
                let hyper = setup.converse_by_hyper(input, true, Script::Serve);
                differ(&setup.converse(input, true, Script::Serve), &hyper)
            });
            if let Err(why) = differ(&outcome, &setup.converse_by_hyper(input, true, Script::Serve))
                && !tries.any(|same| same.is_ok())
            {
                panic!("{why}");
            }
        }
        if let Some((why, bytes)) = outcome.record.bad.first() {
            panic!("the app got {why}: {}", bytes.escape_ascii());
        }
        for received in &outcome.record.requests {
            match received {
                Received::Http(request) => check_http(request, mode),
                Received::Uwsgi(packet) => check_uwsgi(packet, mode),
            }
        }
    });
});

/// What both messages say, whatever protocol the app speaks.
struct Seen<'r> {
    method: &'r [u8],
    target: &'r [u8],
    host: &'r [u8],
    body: &'r [u8],
}

fn seen(received: &Received) -> Seen<'_> {
    match received {
        Received::Http(request) => Seen {
            method: &request.method,
            target: &request.target,
            host: request.all("host").first().copied().unwrap_or_default(),
            body: &request.body,
        },
        Received::Uwsgi(packet) => Seen {
            method: packet.value("REQUEST_METHOD").unwrap_or_default(),
            target: packet.value("REQUEST_URI").unwrap_or_default(),
            host: packet.value("HTTP_HOST").unwrap_or_default(),
            body: &packet.body,
        },
    }
}

/// Compares what the client has sent, by the strict reader, with what the app and the client have got.
fn compare(input: &[u8], outcome: &Outcome, mode: Mode) -> Result<(), String> {
    let mut sent = Vec::new();
    let mut rest = input;
    let mut bad = None;
    loop {
        match http1::request(rest) {
            Read::Whole(request, length) => {
                sent.push(request);
                rest = &rest[length..];
            }
            Read::Torn => break,
            Read::Bad(why) => {
                bad = Some(why);
                break;
            }
        }
    }
    let record = &outcome.record;
    if !mode.streaming && !record.torn.is_empty() {
        return Err(format!("half a request reached the app: {}", record.torn[0].escape_ascii()));
    }

    let mut candidates = sent.iter();
    for (number, received) in record.requests.iter().enumerate() {
        let seen = seen(received);
        if !candidates.any(|request| is_same(request, &seen, mode)) {
            return Err(format!("request {number} at the app is none that the client has sent: {received:?}"));
        }
    }

    let answers = answers(&outcome.received)?;
    let from_app: Vec<_> = answers.iter().filter_map(|answer| answer.app.as_deref()).collect();
    let numbers: Vec<_> = (0..record.requests.len()).map(|number| number.to_string()).collect();
    if from_app != numbers {
        return Err(format!("{} requests reached the app, of which the client got {from_app:?}", numbers.len()));
    }
    if answers.len() > sent.len() + 1 {
        return Err(format!("{} answers to {} requests", answers.len(), sent.len()));
    }
    if let Some(why) = bad
        && sent.is_empty()
        && answers.is_empty()
        && rest.windows(4).any(|four| four == b"\r\n\r\n")
    {
        return Err(format!("no answer to a request that has {why}"));
    }
    if let Some(first) = sent.first() {
        if answers.is_empty() {
            return Err("no answer to a request that is whole".into());
        }
        if is_ordinary(first, input) && record.requests.is_empty() {
            return Err(format!("a request that breaks no rule was answered {}", answers[0].status));
        }
    }
    Ok(())
}

/// Whether what the app has seen is the request that the client has sent.
fn is_same(sent: &Request, seen: &Seen<'_>, mode: Mode) -> bool {
    let (authority, target) = split_target(&sent.method, &sent.target);
    let hosts = sent.all("host");
    let Some(host) = authority.or(match hosts.as_slice() {
        [] if sent.minor == 0 && mode.report => Some(b""),
        [host] => Some(*host),
        _ => None,
    }) else {
        return false;
    };
    let probe = {
        let name = host.split(|byte| *byte == b':').next().unwrap_or_default();
        let name = name.strip_suffix(b".").unwrap_or(name);
        name == OWN.as_bytes() || name == mode.peer().as_bytes()
    };
    // IPv6 forms of an IPv4 address are many.
    let probe = probe || host.starts_with(b"[");
    let host_fits = seen.host == host || (seen.host == b"www.example.com" && (probe || mode.canonical));
    seen.method == sent.method && seen.target == target && seen.body == sent.body && host_fits
}

/// RFC 9112 §3.2.2 and §3.2.1: an absolute form's authority, and its origin form; §3.2.4: or its asterisk form.
fn split_target<'t>(method: &[u8], target: &'t [u8]) -> (Option<&'t [u8]>, Vec<u8>) {
    let rest = [&b"http://"[..], b"https://"].iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    });
    let Some(rest) = rest else { return (None, target.to_vec()) };
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if method == b"OPTIONS" && path.is_empty() {
        return (Some(authority), b"*".to_vec());
    }
    let slash: &[u8] = if path.starts_with(b"/") { b"" } else { b"/" };
    (Some(authority), [slash, path].concat())
}

/// Whether nothing about a request gives hostward a reason not to forward it.
fn is_ordinary(request: &Request, input: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._~-?=&".contains(byte);
    let [host] = request.all("host")[..] else { return false };
    request.target.starts_with(b"/")
        && request.target.iter().all(plain)
        && !matches!(request.method.as_slice(), b"CONNECT" | b"TRACE" | b"PRI")
        && request.method.len() < 100
        && is_admitted(host)
        && request.fields.len() < 90
        && request.all("expect").is_empty()
        && request.all("transfer-encoding").is_empty()
        // hostward takes 19 digits, zeros included.
        && request.all("content-length").iter().all(|digits| digits.len() < 20)
        && !input.starts_with(b"\r\n")
}

struct Answer {
    status: u16,
    /// The number that the app gave it.
    app: Option<String>,
}

/// The final answers that the client got.
fn answers(mut received: &[u8]) -> Result<Vec<Answer>, String> {
    let mut answers = Vec::new();
    while !received.is_empty() {
        // Nobody here sends a body that begins so: what follows at once answers a HEAD.
        let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Err(format!("an answer that breaks off: {}", received.escape_ascii()));
        };
        let behind = &received[end + 4..];
        let bodiless = behind.is_empty() || behind.starts_with(b"HTTP/1.");
        match http1::response(received, true, bodiless) {
            Read::Whole(response, length) => {
                if response.until_close && !bodiless {
                    return Err("an answer that only the end of the connection ends".into());
                }
                if response.status >= 200 {
                    let app =
                        http1::all(&response.fields, "x-app").first().map(|value| value.escape_ascii().to_string());
                    answers.push(Answer { status: response.status, app });
                }
                received = &received[length..];
            }
            Read::Torn => return Err(format!("an answer that breaks off: {}", received.escape_ascii())),
            Read::Bad(why) => return Err(format!("an answer with {why}: {}", received.escape_ascii())),
        }
    }
    Ok(answers)
}

/// RFC 9113 §3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
