//! Bodies of both directions, with a length and without, empty and huge, fast and slow.

use bytes::Bytes;

use crate::behaviours::app::{Seen, Step, Upstream};
use crate::behaviours::client::Length;
use crate::behaviours::rows::MIB;
use crate::behaviours::{Case, Mark, data, fields};
use crate::streaming::noise;
use crate::support::wire::text;

pub fn post_with_length(case: &Case<'_>) -> Mark {
    case.will_say("thanks");
    let answer = case.ask(&case.post().with("content-type", "application/json").body(b"{\"a\":1}"));
    case.client("answer", (answer.status, answer.text()), (200, "thanks".to_owned()));
    let seen = case.seen();
    case.app("length", seen.field("content-length"), Some("7"));
    case.app("type", seen.field("content-type"), Some("application/json"));
    case.app("body", text(&seen.body), "{\"a\":1}");
    Mark::Yes
}

pub fn post_of_unknown_length(case: &Case<'_>) -> Mark {
    case.will_say("thanks");
    let answer = case.ask(&case.post().unknown(b"{\"a\":1}"));
    case.client("answer", (answer.status, answer.text()), (200, "thanks".to_owned()));
    let seen = case.seen();
    case.app("body", text(&seen.body), "{\"a\":1}");
    if case.upstream != Upstream::H2c {
        case.app("length", seen.field("content-length"), Some("7"));
    }
    case.app("coding", seen.field("transfer-encoding"), None);
    Mark::Yes
}

pub fn unbuffered_post_of_unknown_length(case: &Case<'_>) -> Mark {
    case.will_say("thanks");
    let answer = case.streaming().ask(&case.post().unknown(b"{\"a\":1}"));
    if case.upstream.is_uwsgi() {
        case.client("status", answer.status, 411);
        case.app_saw_nothing();
        return Mark::No("uwsgi has no bodies of unknown length: 411");
    }
    case.client("answer", (answer.status, answer.text()), (200, "thanks".to_owned()));
    let seen = case.seen();
    case.app("body", text(&seen.body), "{\"a\":1}");
    let coding = if case.upstream.is_http1() { Some("chunked") } else { None };
    case.app("coding", seen.field("transfer-encoding"), coding);
    Mark::Yes
}

pub fn empty_bodies(case: &Case<'_>) -> Mark {
    case.will_say("");
    let answer = case.ask(&case.post().body(b""));
    case.client("status", answer.status, 200);
    case.client("body", (answer.body.len(), answer.broken.clone()), (0, None));
    case.client("length", answer.field("content-length"), Some("0"));
    let seen = case.seen();
    case.app("length", seen.field("content-length"), Some("0"));
    case.app("body", (seen.body.len(), seen.whole), (0, true));
    Mark::Yes
}

pub fn huge_body_up(case: &Case<'_>) -> Mark {
    let body = noise(4 * MIB);
    case.will_say("thanks");
    for door in [case.door(), case.streaming()] {
        case.client("answer", door.ask(&case.post().body(&body)).text(), "thanks");
    }
    case.app("bodies", bodies_are(&case.all_seen(), &body), 2);
    Mark::Yes
}

pub fn huge_body_of_unknown_length_up(case: &Case<'_>) -> Mark {
    let body = noise(4 * MIB);
    case.will_say("thanks");
    case.client("answer", case.ask(&case.post().unknown(&body)).text(), "thanks");
    case.app("bodies", bodies_are(&case.all_seen(), &body), 1);
    Mark::Yes
}

/// How many there are, if they are all this one.
fn bodies_are(seen: &[Seen], body: &[u8]) -> usize {
    if seen.iter().all(|seen| seen.whole && seen.body == body) { seen.len() } else { 0 }
}

pub fn huge_body_down(case: &Case<'_>) -> Mark {
    let told = [("content-length", &*(4 * MIB).to_string())];
    huge_down(case, &told);
    Mark::Yes
}

pub fn huge_body_of_unknown_length_down(case: &Case<'_>) -> Mark {
    huge_down(case, &[]);
    Mark::Yes
}

fn huge_down(case: &Case<'_>, told: &[(&str, &str)]) {
    let body = Bytes::from(noise(4 * MIB));
    case.will([Step::Read, Step::Head(200, fields(told)), Step::Data(body.clone()), Step::End]);
    let answer = case.ask(&case.get());
    case.client("broken", &answer.broken, &None::<String>);
    case.client("body is the same", (answer.body.len(), answer.body == body), (body.len(), true));
    case.client("length", answer.field("content-length"), told.first().map(|(_, length)| *length));
    case.app_in_the_end("rid of its answer", |seen| seen.done);
}

pub fn streamed_answer(case: &Case<'_>) -> Mark {
    let head = Step::Head(200, fields(&[("content-type", "text/event-stream")]));
    case.will([Step::Read, head, data("first"), Step::Hold, data("second"), Step::End]);
    let mut talk = case.door().open(&case.get());
    case.client("status", talk.head().status, 200);
    case.client("first part", text(&talk.part(5)), "first");
    case.app("done", case.seen().done, false);
    case.release();
    case.client("whole", talk.finish().text(), "firstsecond");
    case.app_in_the_end("done", |seen| seen.done);
    Mark::Yes
}

pub fn slow_reader(case: &Case<'_>) -> Mark {
    // More than the kernel's buffers on both sides of hostward take.
    let body = Bytes::from(noise(14 * MIB));
    case.will([Step::Read, Step::Head(200, Vec::new()), Step::Data(body.clone()), Step::End]);
    let talk = case.streaming().open_slow(&case.get());
    case.app_in_the_end("rid of an answer that nobody has read", |seen| seen.done);
    let answer = talk.finish();
    case.client("body is the same", (answer.body.len(), answer.body == body), (body.len(), true));
    Mark::Yes
}

pub fn both_at_once(case: &Case<'_>) -> Mark {
    case.will([Step::Head(200, Vec::new()), data("first"), Step::Hold, Step::Read, data("second"), Step::End]);
    let mut ask = case.post();
    ask.length = Length::Told(10);
    let mut talk = case.streaming().open(&ask);
    talk.send(b"hello");
    case.client("status", talk.head().status, 200);
    case.client("first part", text(&talk.part(5)), "first");
    case.app("whole", case.seen().whole, false);
    talk.send(b"there");
    talk.end(&[]);
    case.release();
    let answer = talk.finish();
    case.client("answer", (answer.text(), answer.broken), ("firstsecond".to_owned(), None));
    case.app_in_the_end("done", |seen| seen.done);
    case.app("body", text(&case.seen().body), "hellothere");
    Mark::Yes
}
