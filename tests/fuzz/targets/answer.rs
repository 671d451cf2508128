//! Whatever an app answers, over HTTP or uwsgi, the client gets exactly one answer, and nothing that some reader could
//! take for another one.
//!
//! An input is a byte of settings and the app's bytes, after which it closes the connection. It makes no difference
//! whether hostward reads and writes plain messages itself or hyper does.

#![no_main]

use std::cell::OnceCell;

use hostward_fuzz::app::Script;
use hostward_fuzz::compared::answers_differ;
use hostward_fuzz::http1::{self, Fields, Read, Response};
use hostward_fuzz::proxy::Setup;
use libfuzzer_sys::fuzz_target;

/// The settings and the request that an input's first byte stands for.
#[derive(Clone, Copy)]
struct Mode {
    uwsgi: bool,
    head: bool,
    http10: bool,
    unbuffered: bool,
}

impl Mode {
    fn of(byte: u8) -> Self {
        let bit = |at: u8| byte >> at & 1 == 1;
        Self { uwsgi: bit(0), head: bit(1), http10: bit(2), unbuffered: bit(3) }
    }

    fn setup(self) -> Setup {
        let settings = [
            ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
            ("HOSTWARD_UPSTREAM", if self.uwsgi { "uwsgi+unix:@app" } else { "http+unix:@app" }),
            ("HOSTWARD_BUFFER_RESPONSES", if self.unbuffered { "0" } else { "1MiB" }),
        ];
        Setup::new(&settings, "10.0.1.7:40000")
    }

    fn request(self) -> String {
        let method = if self.head { "HEAD" } else { "GET" };
        format!("{method} / HTTP/1.{}\r\nHost: www.example.com\r\n\r\n", u8::from(!self.http10))
    }
}

thread_local! {
    static SETUPS: [OnceCell<Setup>; 16] = const { [const { OnceCell::new() }; 16] };
}

fuzz_target!(|input: &[u8]| {
    let Some((byte, said)) = input.split_first() else { return };
    let mode = Mode::of(*byte);
    SETUPS.with(|setups| {
        let setup = setups[usize::from(byte & 15)].get_or_init(|| mode.setup());
        let mut tries = 4;
        loop {
            // A machine that stalls looks like a client that has left; a bug comes again.
            let request = mode.request();
            let outcome = setup.converse(request.as_bytes(), true, Script::Say(said.into()));
            let hyper = setup.converse_by_hyper(request.as_bytes(), true, Script::Say(said.into()));
            tries -= 1;
            match compare(said, &outcome.received, mode).and_then(|()| differ(&outcome.received, &hyper.received, mode))
            {
                Err(why) if tries == 0 => panic!("{why}\nthe client got {}", outcome.received.escape_ascii()),
                Err(_) => {}
                Ok(()) => break,
            }
        }
    });
});

/// Compares what the app has said, by the strict reader, with what the client has got.
fn compare(said: &[u8], received: &[u8], mode: Mode) -> Result<(), String> {
    let (interim, answer) = final_answer(received, mode)?;
    let Some(answer) = answer else { return Err("no answer".into()) };
    if mode.http10 && interim > 0 {
        return Err("an interim answer to a client of HTTP/1.0".into());
    }
    check_fields(&answer.response.fields)?;
    check_fields(&answer.response.trailers)?;

    let app = strict(said, mode);
    let Some(app) = app else { return Ok(()) };
    let response = &answer.response;
    let ours = !http1::all(&response.fields, "proxy-status").is_empty();
    if ours && (500..600).contains(&response.status) && response.status != app.status {
        // It has refused to pass on what it could have; whether that is right, the tables of conformance say.
        return Ok(());
    }
    if response.status != app.status {
        return Err(format!("the app said {}, the client got {}", app.status, response.status));
    }
    if answer.whole && !mode.head && response.body != app.body {
        return Err(format!("the app's body was {}", app.body.escape_ascii()));
    }
    if !app.body.starts_with(&response.body) {
        return Err(format!("a body that is none of the app's: {}", response.body.escape_ascii()));
    }
    let hop_by_hop = |name: &[u8]| {
        let options = http1::all(&app.fields, "connection");
        let mut options = options.iter().flat_map(|line| line.split(|byte| *byte == b','));
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(name))
    };
    for (name, value) in &response.fields {
        // Several lines of a list may have become one.
        let said = http1::all(&app.fields, &String::from_utf8_lossy(name));
        let known = said.contains(&value.as_slice()) || said.join(&b", "[..]) == *value;
        let of_hostward = [&b"date"[..], b"connection", b"transfer-encoding", b"content-length"].contains(&&name[..]);
        if !known && !of_hostward {
            return Err(format!("a field that is none of the app's: {}", name.escape_ascii()));
        }
        if hop_by_hop(name) && !of_hostward {
            return Err(format!("a field of one connection on another: {}", name.escape_ascii()));
        }
    }
    Ok(())
}

/// Whether the client has got another answer than by hyper.
fn differ(plain: &[u8], hyper: &[u8], mode: Mode) -> Result<(), String> {
    let (one, other) = (final_answer(plain, mode)?, final_answer(hyper, mode)?);
    match (&one.1, &other.1) {
        (Some(plain), Some(hyper)) if one.0 == other.0 && plain.whole == hyper.whole => {
            answers_differ(&plain.response, &hyper.response)
        }
        _ => Err("half an answer, or another number of interim ones, than by hyper".into()),
    }
}

struct Answer {
    response: Response,
    /// Whether its end is beyond doubt.
    whole: bool,
}

/// The one final answer, and how many interim ones stood before it.
fn final_answer(received: &[u8], mode: Mode) -> Result<(usize, Option<Answer>), String> {
    let (mut interim, mut rest) = (0, received);
    loop {
        match http1::response(rest, true, mode.head) {
            Read::Whole(response, length) => {
                rest = &rest[length..];
                if response.status < 200 {
                    if response.status == 101 {
                        return Err("a protocol that nobody has asked for".into());
                    }
                    interim += 1;
                    continue;
                }
                if !rest.is_empty() {
                    return Err(format!("something behind the answer: {}", rest.escape_ascii()));
                }
                let whole = !response.until_close;
                return Ok((interim, Some(Answer { response, whole })));
            }
            // hostward cuts what the app has cut; how much of it came, the lengths say.
            Read::Torn => {
                let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") else {
                    return Ok((interim, None));
                };
                let Read::Whole(response, _) = http1::response(&rest[..end + 4], true, true) else {
                    return Err("half an answer whose head is none".into());
                };
                return Ok((interim, Some(Answer { response, whole: false })));
            }
            Read::Bad(why) => return Err(format!("an answer with {why}")),
        }
    }
}

/// The app's final answer, if the strict reader finds one.
fn strict(mut said: &[u8], mode: Mode) -> Option<Response> {
    loop {
        match http1::response(said, true, mode.head) {
            Read::Whole(response, length) if response.status < 200 => {
                if response.status == 101 {
                    return None;
                }
                said = &said[length..];
            }
            Read::Whole(response, _) => return Some(response),
            Read::Torn | Read::Bad(_) => return None,
        }
    }
}

/// What belongs to one connection must not come from the other.
fn check_fields(fields: &Fields) -> Result<(), String> {
    for (name, value) in fields {
        let bad = match name.as_slice() {
            b"connection" => !(value.eq_ignore_ascii_case(b"close") || value.eq_ignore_ascii_case(b"keep-alive")),
            b"transfer-encoding" => value != b"chunked",
            b"keep-alive" | b"proxy-connection" | b"te" | b"upgrade" => true,
            _ => false,
        };
        if bad {
            return Err(format!("{}: {}", name.escape_ascii(), value.escape_ascii()));
        }
    }
    Ok(())
}
