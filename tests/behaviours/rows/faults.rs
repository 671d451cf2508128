//! What breaks off or comes too early: the other side must be able to tell, and the log says so.

use crate::behaviours::app::{Step, Upstream};
use crate::behaviours::client::Length;
use crate::behaviours::rows::{MIB, pseudo};
use crate::behaviours::{Case, Mark, Seen, data, fields};
use crate::streaming::noise;
use crate::support::eventually;
use crate::support::frames::{DATA, END_STREAM, Frames, Outcome};
use crate::support::wire::text;

/// 413, without having read more than the head, and then nothing until the client has it.
fn too_large() -> Vec<Step> {
    vec![Step::Head(413, fields(&[("content-length", "2")])), data("no"), Step::End, Step::Hold]
}

pub fn early_answer(case: &Case<'_>) -> Mark {
    case.will(too_large());
    let mut ask = case.post();
    ask.length = Length::Told(MIB);
    let mut talk = case.streaming().open(&ask);
    talk.send(b"some");
    let answer = talk.finish();
    case.client("answer", (answer.status, answer.text()), (413, "no".to_owned()));
    case.client("broken", answer.broken, None);
    case.app("read", case.seen().whole, false);
    Mark::Yes
}

pub fn early_answer_to_a_buffered_body(case: &Case<'_>) -> Mark {
    case.will(too_large());
    let body = noise(3 * MIB);
    let mut ask = case.post();
    ask.length = Length::Told(body.len());
    let mut talk = case.door().open(&ask);
    talk.send(&body[..MIB]);
    if case.upstream == Upstream::H2c {
        let answer = talk.finish();
        case.client("answer", (answer.status, answer.text()), (413, "no".to_owned()));
        case.app("read", case.seen().whole, false);
        return Mark::No("bodies for h2c are streamed: the answer comes before the end of the body");
    }
    case.app_saw_nothing();
    talk.send(&body[MIB..]);
    talk.end(&[]);
    let answer = talk.finish();
    case.client("answer", (answer.status, answer.text()), (413, "no".to_owned()));
    case.client("broken", answer.broken, None);
    case.app("read", case.seen().whole, false);
    Mark::Yes
}

pub fn closed_before_the_head(case: &Case<'_>) -> Mark {
    case.will([Step::Read, Step::Cut]);
    let answer = case.ask(&case.post().body(b"hello"));
    case.client("status", answer.status, 502);
    let whose = answer.field("proxy-status").is_some_and(|status| status.contains("connection_terminated"));
    case.client("proxy-status", whose, true);
    case.client("line in the log", &case.logged()["error"], "connection_terminated");
    case.app("body", text(&case.seen().body), "hello");
    Mark::Yes
}

pub fn closed_within_a_length(case: &Case<'_>) -> Mark {
    closed_within(case, &[("content-length", "9")]);
    Mark::Yes
}

pub fn closed_within_a_body(case: &Case<'_>) -> Mark {
    if case.upstream.is_uwsgi() {
        case.will([Step::Read, Step::Head(200, Vec::new()), data("half"), Step::Cut]);
        let answer = case.ask(&case.get());
        case.client("answer", (answer.status, answer.text(), answer.broken), (200, "half".to_owned(), None));
        case.app("done", case.seen().done, false);
        return Mark::No("without a length, an answer over uwsgi ends with the connection, whatever that meant");
    }
    closed_within(case, &[]);
    Mark::Yes
}

fn closed_within(case: &Case<'_>, told: &[(&str, &str)]) {
    case.will([Step::Read, Step::Head(200, fields(told)), data("half"), Step::Hold, Step::Cut]);
    let mut talk = case.door().open(&case.get());
    case.client("status", talk.head().status, 200);
    case.client("first half", text(&talk.part(4)), "half");
    case.release();
    let answer = talk.finish();
    case.client("seen to be broken", answer.broken.is_some(), true);
    case.client("body", text(&answer.body), "half");
    case.client("line in the log", &case.logged()["error"], "connection_terminated");
    case.app("done", case.seen().done, false);
}

pub fn client_leaves(case: &Case<'_>) -> Mark {
    case.will([Step::Read, Step::Gone]);
    let talk = case.door().open(&case.get());
    case.seen();
    talk.abort();
    case.app_in_the_end("told that nobody waits any more", |seen| seen.gone);
    case.client("line in the log", &case.logged()["status"], 499);
    Mark::Yes
}

pub fn client_leaves_an_answer(case: &Case<'_>) -> Mark {
    case.will([Step::Read, Step::Head(200, Vec::new()), data("first"), Step::Gone]);
    let mut talk = case.door().open(&case.get());
    case.client("status", talk.head().status, 200);
    case.client("first part", text(&talk.part(5)), "first");
    talk.abort();
    case.app_in_the_end("told that nobody reads any more", |seen| seen.gone);
    case.client("line in the log", &case.logged()["error"], "client_gone");
    Mark::Yes
}

pub fn misfit(case: &Case<'_>) -> Mark {
    case.will_say("thanks");
    let mut ask = case.post();
    if case.listener.is_http2() {
        let pseudo = pseudo("POST", &ask.target);
        for length in ["3", "7"] {
            let mut frames = Frames::connect(case.door().address, &[]);
            frames.ask(1, 0, &[&pseudo[..], &[("content-length", length)]].concat());
            frames.send(DATA, END_STREAM, 1, b"hello").unwrap();
            let outcome = frames.outcome(1);
            case.client(length, matches!(outcome, Outcome::Reset(1) | Outcome::Answer(400)), true);
        }
    } else {
        ask.length = Length::Told(7);
        let mut talk = case.door().open(&ask);
        talk.send(b"hello");
        talk.stop_short();
        let answered = talk.tunnel().try_answer().map(|answer| answer.status);
        case.client("answer", answered.is_ok_and(|status| status == 200), false);
    }
    case.app("whole requests", case.all_seen().iter().filter(|seen| seen.whole).count(), 0);
    Mark::Yes
}

pub fn talks_on(case: &Case<'_>) -> Mark {
    let (head, evil) =
        (Step::Head(200, fields(&[("content-length", "5")])), "HTTP/1.1 299 Evil\r\nContent-Length: 0\r\n\r\n");
    let at_once = Step::Data(format!("hello{evil}").into());
    // In one breath, and when the connection has become idle.
    let scripts =
        [vec![Step::Read, head.clone(), at_once], vec![Step::Read, head, data("hello"), Step::Hold, data(evil)]];
    let h2c = case.upstream == Upstream::H2c;
    for mut script in scripts {
        // What has been said to the bridge before the path, hostward may not have yet; that it closes the connection
        // tells that it has.
        if matches!(case.upstream, Upstream::HttpUnix | Upstream::UwsgiUnix) {
            script.push(Step::Gone);
        }
        case.will(script);
        // A stream's answer isn't over before its end.
        if h2c {
            case.release();
        }
        let seen = case.all_seen().len();
        for _ in 0..2 {
            let answer = case.ask(&case.get());
            // In HTTP/2 it is a part of the body, which breaks; a client that was told a length may have it whole before.
            let broken = h2c && (answer.status == 502 || answer.broken.is_some());
            let whole = (answer.status, answer.text()) == (200, "hello".to_owned());
            case.client("whole or broken", broken || whole, true);
            case.release();
            // Unless its stream has been reset. What nobody waited for here, the next row's request would get.
            let said = |seen: &Seen| h2c || seen.done || seen.gone;
            eventually("the app has said it", || case.all_seen().iter().all(said).then_some(()));
        }
        case.app("requests", case.all_seen().len(), seen + 2);
    }
    if h2c { Mark::No("what an app says beyond the length breaks its answer in HTTP/2") } else { Mark::Yes }
}

pub fn says_no_more(case: &Case<'_>) -> Mark {
    case.will([Step::Read, Step::Hold, Step::Head(200, fields(&[("content-length", "5")])), data("hello")]);
    let mut talk = case.door().open(&case.get());
    // In HTTP/2 the request has said so itself.
    if !case.listener.is_http2() {
        talk.stop_short();
    }
    case.app("done", case.seen().done, false);
    case.release();
    let answer = talk.finish();
    case.client("answer", (answer.status, answer.text(), answer.broken), (200, "hello".to_owned(), None));
    case.app_in_the_end("done", |seen| seen.done);
    Mark::Yes
}
