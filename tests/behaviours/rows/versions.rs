//! What only HTTP/1 has: HTTP/1.0 clients, and upgrades.

use std::io::Write;

use crate::behaviours::app::{Step, Upstream};
use crate::behaviours::{Case, Mark, data};
use crate::support::frames::{Frames, Outcome};
use crate::support::wire::text;

pub fn http_1_0(case: &Case<'_>) -> Mark {
    // An interim answer and an answer without a length: an HTTP/1.0 client knows nothing of either.
    case.will([Step::Interim(103, Vec::new()), Step::Read, Step::Head(200, Vec::new()), data("hello"), Step::End]);
    if case.listener.is_http2() {
        return no_line_in_http2(case, &case.get().old().http1());
    }
    let (answer, after) = case.door().open(&case.get().old()).again(&case.get().old());
    case.client("answer", (answer.status, answer.text()), (200, "hello".to_owned()));
    case.client("interim answers", answer.interim.len(), 0);
    case.client("coding", answer.field("transfer-encoding"), None);
    case.client("connection goes on", after.is_some(), false);
    case.app("host", case.seen().field("host"), Some("www.example.com"));
    Mark::Yes
}

pub fn http_1_0_keep_alive(case: &Case<'_>) -> Mark {
    case.will_say("hello");
    let ask = case.get().old().with("connection", "keep-alive");
    if case.listener.is_http2() {
        return no_line_in_http2(case, &ask.http1());
    }
    let (answer, after) = case.door().open(&ask).again(&ask);
    case.client("answer", (answer.status, answer.text()), (200, "hello".to_owned()));
    let connection = answer.field("connection").map(str::to_ascii_lowercase);
    case.client("connection", connection.as_deref(), Some("keep-alive"));
    case.client("second answer", after.map(|after| (after.status, after.text())), Some((200, "hello".to_owned())));
    case.app("requests", case.all_seen().len(), 2);
    Mark::Yes
}

/// HTTP/1.0 where HTTP/2 has been agreed on.
fn no_line_in_http2(case: &Case<'_>, request: &str) -> Mark {
    let mut frames = Frames::connect(case.door().address, &[]);
    frames.stream.write_all(request.as_bytes()).unwrap();
    case.client("connection ends with GOAWAY", frames.farewell().is_some(), true);
    case.app_saw_nothing();
    Mark::No("HTTP/2 has other frames than lines: GOAWAY")
}

pub fn websocket(case: &Case<'_>) -> Mark {
    if case.listener.is_http2() {
        let (mut frames, target) = (Frames::connect(case.door().address, &[]), case.get().target);
        let connect = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":authority", "www.example.com"),
            (":path", &*target),
        ];
        frames.ask(1, 0, &connect);
        let outcome = frames.outcome(1);
        case.client("refused", matches!(outcome, Outcome::Answer(400..=499) | Outcome::Reset(1)), true);
        case.app_saw_nothing();
        return Mark::No("RFC 8441's CONNECT isn't offered, and refused");
    }
    let ask = case.get().with("connection", "keep-alive, Upgrade").with("upgrade", "websocket");
    let ask = ask.with("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==").with("sec-websocket-version", "13");
    if !case.upstream.is_http1() {
        case.will_say("hello");
        let answer = case.ask(&ask);
        case.client("answer", (answer.status, answer.text()), (200, "hello".to_owned()));
        case.client("upgrade", answer.field("upgrade"), None);
        let seen = case.seen();
        case.app("upgrade", (seen.field("upgrade"), seen.field("connection")), (None, None));
        return Mark::No("the app's protocol has no upgrades: it is asked without one");
    }
    case.will([Step::Switch]);
    let mut talk = case.door().open(&ask);
    case.client("status", talk.head().status, 101);
    let tunnel = talk.tunnel();
    tunnel.send("\0ping\r\n\r\n");
    let echo = tunnel.input.exactly(9).unwrap_or_else(|broken| panic!("{broken}"));
    case.client("echo", text(&echo), "\0ping\r\n\r\n");
    case.app("upgrade", case.seen().field("upgrade"), Some("websocket"));
    Mark::Yes
}

pub fn unasked_101(case: &Case<'_>) -> Mark {
    case.will([Step::Switch]);
    let answer = case.ask(&case.get());
    if case.upstream == Upstream::H2c {
        case.client("status", answer.status, 501);
        case.app("upgrade", case.seen().field("upgrade"), None);
        return Mark::No("HTTP/2 has no 101: what the app says in its place is passed on");
    }
    case.client("status", answer.status, 502);
    case.client("upgrade", answer.field("upgrade"), None);
    case.app("upgrade", case.seen().field("upgrade"), None);
    case.app_in_the_end("left alone", |seen| seen.gone);
    Mark::Yes
}
