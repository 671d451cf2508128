//! Heads, and what stands between and after them: interim answers, trailers, answers without a body.

use crate::behaviours::app::{Seen, Step, Upstream};
use crate::behaviours::client::{Answer, Door};
use crate::behaviours::rows::pseudo;
use crate::behaviours::{Case, Mark, data, fields};
use crate::support::frames::{END_STREAM, Frames, Outcome};
use crate::support::wire::text;

pub fn plain_get(case: &Case<'_>) -> Mark {
    case.will([Step::Read, Step::Head(200, fields(&[("content-length", "5"), ("x-a", "b")])), data("hello")]);
    let answer = case.ask(&case.get().with("accept", "*/*"));
    case.client("status", answer.status, 200);
    case.client("body", answer.text(), "hello");
    case.client("x-a", answer.field("x-a"), Some("b"));
    case.client("length", answer.field("content-length"), Some("5"));
    let seen = case.seen();
    case.app("method", &*seen.method, "GET");
    case.app("accept", seen.field("accept"), Some("*/*"));
    case.app("host", seen.field("host"), Some("www.example.com"));
    case.app("body", seen.body.len(), 0);
    Mark::Yes
}

pub fn path_and_query(case: &Case<'_>) -> Mark {
    case.will_say("hello");
    let ask = case.request("GET", "/a%20b/..%2F/%c3%a4//;x=1?y=%20z&&%3d=?");
    case.client("status", case.ask(&ask).status, 200);
    case.app("target", case.seen().target, ask.target);
    Mark::Yes
}

pub fn repeated_fields(case: &Case<'_>) -> Mark {
    case.will([Step::Read, Step::Head(200, fields(&[("set-cookie", "a=1"), ("set-cookie", "b=2")])), Step::End]);
    let answer = case.ask(&case.get().with("x-a", "1").with("x-a", "2").with("cookie", "c=3"));
    case.client("cookies", answer.all("set-cookie"), ["a=1", "b=2"]);
    let seen = case.seen();
    case.app("x-a", seen.all("x-a").join(", "), "1, 2");
    case.app("cookie", seen.field("cookie"), Some("c=3"));
    Mark::Yes
}

pub fn connection_fields(case: &Case<'_>) -> Mark {
    let mut back = vec![("content-length", "5"), ("x-back", "1")];
    // The app's library doesn't send what its protocol forbids.
    if case.upstream != Upstream::H2c {
        back.extend([("connection", "x-back"), ("keep-alive", "timeout=99"), ("proxy-connection", "keep-alive")]);
    }
    case.will([Step::Read, Step::Head(200, fields(&back)), data("hello")]);
    let ask = case.get().with("x-hop", "1");
    let http1 =
        [("connection", "x-hop, te"), ("connection", "keep-alive"), ("keep-alive", "timeout=99"), ("te", "gzip")];
    let answer = if case.listener.is_http2() {
        // Said in HTTP/2, it is malformed.
        let head = [&pseudo("GET", &ask.target)[..], &[("connection", "x-hop")]].concat();
        let mut frames = Frames::connect(case.door().address, &[]);
        frames.ask(1, END_STREAM, &head);
        case.client("refused", matches!(frames.outcome(1), Outcome::Reset(1) | Outcome::Answer(400)), true);
        case.app_saw_nothing();
        case.ask(&ask)
    } else {
        case.ask(&http1.iter().fold(ask, |ask, (name, value)| ask.with(name, value)))
    };
    case.client("answer", (answer.status, answer.text()), (200, "hello".to_owned()));
    let named = if case.upstream == Upstream::H2c { Some("1") } else { None };
    case.client("x-back", answer.field("x-back"), named);
    for name in ["keep-alive", "proxy-connection", "connection"] {
        case.client(name, answer.field(name), None);
    }
    let seen = case.seen();
    let named = if case.listener.is_http2() { Some("1") } else { None };
    case.app("x-hop", seen.field("x-hop"), named);
    for name in ["keep-alive", "te", "connection"] {
        case.app(name, seen.field(name), None);
    }
    Mark::Yes
}

pub fn trace(case: &Case<'_>) -> Mark {
    case.client("status", case.ask(&case.request("TRACE", "/")).status, 405);
    case.app_saw_nothing();
    Mark::Yes
}

pub fn head(case: &Case<'_>) -> Mark {
    case.will([Step::Read, Step::Head(200, fields(&[("content-length", "1234")])), Step::End]);
    let answer = case.ask(&case.request("HEAD", "/"));
    case.client("status", answer.status, 200);
    case.client("length", answer.field("content-length"), Some("1234"));
    case.client("body", (answer.body.len(), &answer.broken), (0, &None::<String>));
    case.app("method", case.seen().method, "HEAD");
    Mark::Yes
}

pub fn no_content(case: &Case<'_>) -> Mark {
    let answer = without_body(case, 204, &[("etag", "\"a\"")]);
    case.client("length", answer.field("content-length"), None);
    Mark::Yes
}

pub fn not_modified(case: &Case<'_>) -> Mark {
    let answer = without_body(case, 304, &[("etag", "\"a\""), ("content-length", "1234")]);
    case.client("length", answer.field("content-length"), Some("1234"));
    Mark::Yes
}

fn without_body(case: &Case<'_>, status: u16, told: &[(&str, &str)]) -> Answer {
    case.will([Step::Read, Step::Head(status, fields(told)), Step::End]);
    let answer = case.ask(&case.get().with("if-none-match", "\"a\""));
    case.client("status", answer.status, status);
    case.client("etag", answer.field("etag"), Some("\"a\""));
    case.client("coding", answer.field("transfer-encoding"), None);
    case.client("body", (answer.body.len(), &answer.broken), (0, &None::<String>));
    case.app("condition", case.seen().field("if-none-match"), Some("\"a\""));
    case.client("line in the log", &case.logged()["error"], &serde_json::Value::Null);
    answer
}

pub fn range(case: &Case<'_>) -> Mark {
    let told = fields(&[("content-length", "4"), ("content-range", "bytes 2-5/10"), ("accept-ranges", "bytes")]);
    case.will([Step::Read, Step::Head(206, told), data("2345")]);
    let answer = case.ask(&case.get().with("range", "bytes=2-5").with("if-range", "\"a\""));
    case.client("status", answer.status, 206);
    case.client("content-range", answer.field("content-range"), Some("bytes 2-5/10"));
    case.client("body", answer.text(), "2345");
    let seen = case.seen();
    case.app("range", (seen.field("range"), seen.field("if-range")), (Some("bytes=2-5"), Some("\"a\"")));
    Mark::Yes
}

pub fn early_hints(case: &Case<'_>) -> Mark {
    let hints = Step::Interim(103, fields(&[("link", "</a.css>; rel=preload")]));
    case.will([hints, Step::Hold, Step::Read, Step::Head(200, fields(&[("content-length", "5")])), data("hello")]);
    let mut talk = case.door().open(&case.get());
    // While the app still thinks.
    case.client("interim", talk.interim(), 103);
    case.app("done", case.seen().done, false);
    case.release();
    let answer = talk.finish();
    case.client("interim answers", answer.interim, [(103, fields(&[("link", "</a.css>; rel=preload")]))]);
    case.client("answer", (answer.status, text(&answer.body)), (200, "hello".to_owned()));
    Mark::Yes
}

pub fn expect(case: &Case<'_>) -> Mark {
    case.will_say("thanks");
    let ask = case.post().with("expect", "100-continue").body(b"hello");
    let mut talk = case.door().open(&ask);
    case.client("interim", talk.interim(), 100);
    talk.send_rest(&ask);
    let answer = talk.finish();
    case.client("answer", (answer.status, answer.text()), (200, "thanks".to_owned()));
    let seen = case.seen();
    case.app("body", text(&seen.body), "hello");
    case.app("expectation", seen.field("expect"), None);
    Mark::Yes
}

pub fn expect_refused(case: &Case<'_>) -> Mark {
    let mut ask = case.post().with("expect", "100-continue").body(b"hello");
    ask.host = "evil.example".into();
    let answer = case.door().open(&ask).finish();
    case.client("answer", (answer.status, answer.interim.len()), (421, 0));
    case.app_saw_nothing();
    Mark::Yes
}

pub fn request_trailers(case: &Case<'_>) -> Mark {
    if case.upstream.is_uwsgi() {
        let mut ask = case.post().unknown(b"hello");
        ask.trailers = fields(&[("x-sum", "3")]);
        case.client("status", case.streaming().ask(&ask).status, 411);
        case.app_saw_nothing();
        return Mark::No("uwsgi has no bodies of unknown length: 411");
    }
    let seen = with_trailers(case, case.streaming());
    case.app("trailers", seen.trailers, fields(&[("x-sum", "3")]));
    Mark::Yes
}

pub fn buffered_request_trailers(case: &Case<'_>) -> Mark {
    let seen = with_trailers(case, case.door());
    if case.upstream == Upstream::H2c {
        case.app("trailers", seen.trailers, fields(&[("x-sum", "3")]));
        return Mark::Yes;
    }
    case.app("trailers", seen.trailers.clone(), fields(&[]));
    case.app("length", seen.field("content-length"), Some("5"));
    case.app("announcement", seen.field("trailer"), None);
    Mark::No("a body with a length has no trailers after it: they are dropped")
}

fn with_trailers(case: &Case<'_>, door: Door) -> Seen {
    case.will_say("thanks");
    let mut ask = case.post().with("trailer", "x-sum").unknown(b"hello");
    // Those that would be believed are dropped.
    ask.trailers = fields(&[("x-sum", "3"), ("x-forwarded-for", "6.6.6.6"), ("host", "evil.example")]);
    case.client("answer", door.ask(&ask).text(), "thanks");
    let seen = case.seen();
    case.app("body", (text(&seen.body), seen.whole), ("hello".to_owned(), true));
    case.app("x-forwarded-for", seen.field("x-forwarded-for"), Some("127.0.0.1"));
    seen
}

pub fn response_trailers(case: &Case<'_>) -> Mark {
    let trailers = Step::Trailers(fields(&[("x-sum", "3")]));
    case.will([Step::Read, Step::Head(200, fields(&[("trailer", "x-sum")])), data("hello"), trailers]);
    let ask = case.get().with("te", "trailers");
    let answer = case.ask(&if case.listener.is_http2() { ask } else { ask.with("connection", "te") });
    case.client("answer", (answer.status, answer.text()), (200, "hello".to_owned()));
    case.client("trailers", answer.trailers, fields(&[("x-sum", "3")]));
    let te = if case.upstream.is_uwsgi() { None } else { Some("trailers") };
    case.app("te", case.seen().field("te"), te);
    Mark::Yes
}

pub fn long_fields(case: &Case<'_>) -> Mark {
    let long = "long ".repeat(4000).trim_end().to_owned();
    case.will([Step::Read, Step::Head(200, fields(&[("x-long", &long), ("content-length", "5")])), data("hello")]);
    let answer = case.ask(&case.get().with("x-long", &long));
    case.client("status", answer.status, 200);
    case.client("field", answer.field("x-long"), Some(&*long));
    case.app("field", case.seen().field("x-long"), Some(&*long));
    Mark::Yes
}

pub fn beyond_ascii(case: &Case<'_>) -> Mark {
    let name = "attachment; filename=\"Füße.txt\"";
    case.will([Step::Read, Step::Head(200, fields(&[("content-disposition", name)])), data("hello")]);
    let answer = case.ask(&case.get().with("x-name", name));
    case.client("status", answer.status, 200);
    case.client("field", answer.field("content-disposition"), Some(name));
    case.app("field", case.seen().field("x-name"), Some(name));
    Mark::Yes
}

pub fn unasked_100(case: &Case<'_>) -> Mark {
    let head = Step::Head(200, fields(&[("content-length", "5")]));
    case.will([Step::Interim(100, Vec::new()), Step::Read, head, data("hello")]);
    let answer = case.ask(&case.post().body(b"hello"));
    case.client("answer", (answer.status, answer.text(), answer.broken), (200, "hello".to_owned(), None));
    case.app("body", text(&case.seen().body), "hello");
    Mark::Yes
}
