//! RFC 9112 and 9110 in raw bytes, in both directions: tables of cases in `tests/data/conformance`, each tried in
//! several ways. Counts what became of them, writes `conformance.md` beside the build, and shows every failure at once.
//! HTTP/2 has its own tests, in `http2`.

mod origin;
mod requests;
mod responses;
mod table;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;

use self::origin::Origin;
use self::table::Case;
use crate::support::Task;
use crate::support::app::{Then, answer};
use crate::support::hostward::Hostward;

/// hostward before an app that speaks in one way.
pub struct Way {
    name: &'static str,
    /// Whether bodies go on as they come.
    streams: bool,
    origin: Origin,
    hostward: Hostward,
}

/// What became of the tries of a family's cases in one way.
#[derive(Clone, Copy, Default)]
struct Count {
    cases: usize,
    tries: usize,
    refused: usize,
    forwarded: usize,
    failed: usize,
}

#[derive(Default)]
struct Outcome {
    /// By direction, family, and where that comes from.
    counts: BTreeMap<(&'static str, String, String), Count>,
    failures: Vec<String>,
    smuggled: usize,
}

impl Way {
    fn new(name: &'static str, origin: Origin, settings: &[(&str, &str)]) -> Self {
        let url = origin.url();
        let mut all = vec![
            ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
            ("HOSTWARD_UPSTREAM", &*url),
            ("HOSTWARD_THREADS", "1"),
        ];
        all.extend(settings);
        let streams = settings.contains(&("HOSTWARD_BUFFER_REQUESTS", "off"));
        Self { name, streams, hostward: Hostward::start(&all), origin }
    }

    fn is_uwsgi(&self) -> bool {
        matches!(self.origin, Origin::Uwsgi { .. })
    }
}

#[test]
fn what_is_ambiguous_is_refused_and_everything_else_arrives_byte_for_byte() {
    let read = |texts: &[&str]| texts.iter().flat_map(|text| table::read(text)).collect::<Vec<_>>();
    let requests =
        read(&[include_str!("data/conformance/requests.txt"), include_str!("data/conformance/smuggling.txt")]);
    let responses = read(&[include_str!("data/conformance/responses.txt")]);
    let outcomes: Vec<(&str, Outcome)> = thread::scope(|scope| {
        [
            scope.spawn(|| run(&Way::new("http", Origin::http(), &[]), &requests, &responses)),
            scope.spawn(|| {
                let streaming = [("HOSTWARD_BUFFER_REQUESTS", "off")];
                run(&Way::new("http, streaming", Origin::http(), &streaming), &requests, &responses)
            }),
            scope.spawn(|| run(&Way::new("uwsgi", Origin::uwsgi(), &[]), &requests, &responses)),
        ]
        .map(|run| run.join().unwrap())
        .into()
    });
    let (report, total) = report(&outcomes);
    let build = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    std::fs::write(build.join("conformance.md"), &report).unwrap();
    println!("{report}");
    let failures: Vec<&str> = outcomes.iter().flat_map(|(_, outcome)| &outcome.failures).map(|text| &**text).collect();
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
    assert_eq!(outcomes.iter().map(|(_, outcome)| outcome.smuggled).sum::<usize>(), 0, "smuggled");
    assert_eq!(total.tries, total.refused + total.forwarded);
    assert!(total.cases >= requests.len() + responses.len() && total.refused > 0 && total.forwarded > 0);
}

/// Nor is it when the app has answered before the body came, and takes the rest afterwards.
#[test]
fn what_is_left_of_a_body_behind_an_early_answer_is_no_request() {
    for way in ["off", "auto"] {
        let task = Task::start(&[("HOSTWARD_BUFFER_REQUESTS", way), ("HOSTWARD_THREADS", "1")], |talk| {
            let own = talk.request.target.clone();
            let sent = talk.send(answer("200 OK", "", &own)).is_ok();
            if talk.body().is_ok() && sent { Then::Keep } else { Then::Close }
        });
        let body = "GET /smuggled HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
        for border in 0..body.len() {
            let mut client = task.client();
            client.send(format!(
                "POST /early HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: {}\r\n\r\n",
                body.len()
            ));
            client.send(&body[..border]);
            if way == "off" {
                assert_eq!(client.answer().expect(200).text(), "/early");
            }
            client.try_send(&body[border..]).ok();
            client.try_send("GET /next HTTP/1.1\r\nHost: www.example.com\r\n\r\n").ok();
            if way == "auto" {
                assert_eq!(client.answer().expect(200).text(), "/early");
            }
            match client.try_answer() {
                Ok(answer) => assert_eq!((answer.status, &*answer.text()), (200, "/next"), "{way} {border}"),
                // Streamed, the body isn't read to its end once the response has gone out: the connection ends in order.
                Err(broken) => {
                    let ended = (broken.why, broken.partial.len()) == (ErrorKind::UnexpectedEof, 0);
                    assert!(way == "off" && ended, "{way} {border}: {broken}");
                }
            }
            assert_eq!(task.get("/other").text(), "/other", "{way} {border}");
        }
        assert!(task.app.requests().iter().all(|request| request.target != "/smuggled"));
    }
}

/// Tries every case in one way.
fn run(way: &Way, requests: &[Case], responses: &[Case]) -> (&'static str, Outcome) {
    let mut outcome = Outcome::default();
    // The same pieces every time: a failure can be had again.
    let mut random = fastrand::Rng::with_seed(9112);
    for (direction, cases) in [("requests", requests), ("answers", responses)] {
        for case in cases {
            if way.name != "http" && case.is("http-only") {
                continue;
            }
            let count = outcome.counts.entry((direction, case.family.clone(), case.source.clone())).or_default();
            count.cases += 1;
            let mut fine = |pieces: Vec<Vec<u8>>, behind: bool| {
                let tried = catch_unwind(AssertUnwindSafe(|| {
                    if direction == "requests" {
                        requests::try_case(way, case, &pieces, behind)
                    } else {
                        responses::try_case(way, case, &pieces, behind)
                    }
                }));
                count.tries += 1;
                let wrong = match tried {
                    Ok(Ok(())) => {
                        let refused = !matches!(case.outcome(way), "forwarded" | "forwarded-once" | "relayed");
                        if refused {
                            count.refused += 1;
                        } else {
                            count.forwarded += 1;
                        }
                        return true;
                    }
                    Ok(Err(wrong)) => wrong,
                    Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
                };
                count.failed += 1;
                let shown = &case.bytes[..case.bytes.len().min(300)];
                let pieces = pieces.iter().map(Vec::len).collect::<Vec<_>>();
                outcome.failures.push(format!(
                    "{} | {} | {} | {direction}, in pieces of {pieces:?}\n    {}\n    {} {:?}: {wrong}",
                    way.name,
                    case.family,
                    case.name,
                    shown.escape_ascii(),
                    case.outcome(way),
                    case.statuses
                ));
                false
            };
            // One failure of a case is enough.
            let behind = if direction == "requests" { behind(way, case) } else { Vec::new() };
            let all = [&case.bytes[..], &behind].concat();
            if !fine(vec![case.bytes.clone()], false) || !fine(vec![all.clone()], true) {
                continue;
            }
            let mut borders: Vec<usize> = (0..3).map(|_| random.usize(1..all.len().max(2))).collect();
            borders.sort_unstable();
            borders.dedup();
            if !fine(pieces(&all, &borders), true) {
                continue;
            }
            if case.is("every") {
                for border in 1..all.len() {
                    if !fine(pieces(&all, &[border]), true) {
                        break;
                    }
                }
            }
        }
    }
    outcome.smuggled = way.origin.smuggled();
    (way.name, outcome)
}

/// What follows a case: a request of its own behind one that is forwarded, one that must never be behind any other.
fn behind(way: &Way, case: &Case) -> Vec<u8> {
    let target = match case.outcome(way) {
        _ if case.is("eof") => return Vec::new(),
        "forwarded" | "denied" => "/next",
        _ => "/smuggled",
    };
    format!("GET {target} HTTP/1.1\r\nHost: www.example.com\r\n\r\n").into_bytes()
}

fn pieces(bytes: &[u8], borders: &[usize]) -> Vec<Vec<u8>> {
    let starts = [&[0], borders].concat();
    let ends = [borders, &[bytes.len()]].concat();
    starts.iter().zip(ends).map(|(start, end)| bytes[*start..end.min(bytes.len())].to_vec()).collect()
}

fn report(outcomes: &[(&str, Outcome)]) -> (String, Count) {
    let mut text = String::from("# Conformance\n");
    let mut total = Count::default();
    for (way, outcome) in outcomes {
        write!(text, "\n## {way}\n\n| direction | family | source | cases | tries | refused | forwarded | failed |\n")
            .unwrap();
        text.push_str("|---|---|---|---|---|---|---|---|\n");
        let mut sum = Count::default();
        for ((direction, family, source), count) in &outcome.counts {
            let Count { cases, tries, refused, forwarded, failed } = *count;
            writeln!(
                text,
                "| {direction} | {family} | {source} | {cases} | {tries} | {refused} | {forwarded} | {failed} |"
            )
            .unwrap();
            sum += *count;
        }
        let Count { cases, tries, refused, forwarded, failed } = sum;
        writeln!(text, "| | all | | {cases} | {tries} | {refused} | {forwarded} | {failed} |").unwrap();
        total += sum;
    }
    let Count { cases, tries, refused, forwarded, failed } = total;
    let smuggled: usize = outcomes.iter().map(|(_, outcome)| outcome.smuggled).sum();
    writeln!(
        text,
        "\n{cases} cases, {tries} tries: {refused} refused, {forwarded} forwarded, {failed} failed, {smuggled} smuggled."
    )
    .unwrap();
    (text, total)
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.cases += other.cases;
        self.tries += other.tries;
        self.refused += other.refused;
        self.forwarded += other.forwarded;
        self.failed += other.failed;
    }
}
