//! One table: what can go wrong around hostward, what the client got, what the log said, and how often the app was
//! asked. Every row plays its fault, and its words are made of what came; they must be the row's. What is behind a row in
//! detail is tested in `upstream_faults`, `client_limits`, `buffering`, `drain` and others.

mod app;
mod client;
mod resources;

use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::support::Task;
use crate::support::hostward::Hostward;
use crate::support::wire::{Answer, Broken, Client};

/// A fault, and what comes of it.
pub struct Row {
    fault: &'static str,
    play: fn() -> Outcome,
    /// What the client gets, what the log says, and how many requests reach the app.
    expected: (&'static str, &'static str, usize),
}

/// What came of a fault.
#[derive(Debug)]
pub struct Outcome {
    client: String,
    log: String,
    app: usize,
}

impl Outcome {
    /// Of the request for `/fault`.
    fn new(client: impl Into<String>, hostward: &Hostward, app: usize) -> Self {
        hostward.request_line("/fault");
        Self { client: client.into(), log: said(hostward), app }
    }

    /// Of requests that have no line of their own, or of a connection that brought none.
    fn without_line(client: impl Into<String>, hostward: &Hostward, app: usize) -> Self {
        Self { client: client.into(), log: said(hostward), app }
    }

    /// Of a request to `task` on a new connection.
    fn of(task: &Task, request: impl AsRef<[u8]>) -> Self {
        let mut client = task.client();
        // hostward may have answered and closed before everything was sent.
        client.try_send(request).ok();
        Self::answered(&mut client, task)
    }

    /// Of a request that `client` has sent.
    fn answered(client: &mut Client, task: &Task) -> Self {
        Self::new(shown(&client.try_answer()), &task.hostward, task.app.count())
    }
}

/// What the client got.
fn shown(answer: &Result<Answer, Broken>) -> String {
    match answer {
        Ok(answer) => {
            let token = answer.field("proxy-status").and_then(|status| status.strip_prefix("hostward; error="));
            let words = [Some(answer.status.to_string()), token.map(Into::into)].into_iter().flatten();
            words.collect::<Vec<_>>().join(" ") + if answer.closes() { ", closed" } else { "" }
        }
        Err(Broken { why: std::io::ErrorKind::TimedOut, .. }) => "nothing, the connection stays open".into(),
        Err(Broken { head: Some(head), .. }) => {
            let status = head.split(' ').nth(1).unwrap_or_default();
            format!("{status}, visibly cut short")
        }
        Err(_) => "closed without an answer".into(),
    }
}

/// What the log says: the failed requests' errors, then the events.
fn said(hostward: &Hostward) -> String {
    let (mut errors, mut events) = (Vec::new(), Vec::new());
    for line in hostward.lines() {
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        match (&*text("msg"), &*text("level")) {
            ("request", _) if line["error"].is_string() => errors.push(format!("{} {}", line["status"], text("error"))),
            // Of the row's own settings.
            ("configuration warning", _) => {}
            (message, "WARN" | "ERROR") => events.push(format!("`{message}`")),
            _ => {}
        }
    }
    // A flood has many lines in the access log, and yet one event.
    errors.dedup();
    errors.append(&mut events);
    if errors.is_empty() { "—".into() } else { errors.join(", ") }
}

#[test]
fn every_fault_has_the_outcome_that_the_table_says() {
    let sections = [("The app", app::ROWS), ("The client", client::ROWS), ("Resources", resources::ROWS)];
    let mut text = String::from("# Faults\n");
    let mut wrong = Vec::new();
    for (section, rows) in sections {
        write!(
            text,
            "\n| {section} | the client gets | the log says | requests that reach the app |\n|---|---|---|---|\n"
        )
        .unwrap();
        for (row, outcome) in rows.iter().zip(play(rows)) {
            match outcome {
                Ok(Outcome { client, log, app }) => {
                    writeln!(text, "| {} | {client} | {log} | {app} |", row.fault).unwrap();
                    if (&*client, &*log, app) != row.expected {
                        wrong.push(format!("{}:\n  {client} | {log} | {app}\n  {:?}", row.fault, row.expected));
                    }
                }
                Err(why) => wrong.push(format!("{}: {why}", row.fault)),
            }
        }
    }
    let build = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    std::fs::write(build.join("faults.md"), &text).unwrap();
    println!("{text}");
    assert!(wrong.is_empty(), "{} of the rows:\n{}", wrong.len(), wrong.join("\n"));
}

/// Plays the rows, some at a time: most of them wait.
fn play(rows: &[Row]) -> Vec<Result<Outcome, String>> {
    let next = AtomicUsize::new(0);
    let outcomes: Vec<Mutex<Option<Result<Outcome, String>>>> = rows.iter().map(|_| Mutex::default()).collect();
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = catch_unwind(AssertUnwindSafe(row.play)).map_err(|panic| {
                        let text = panic.downcast_ref::<String>().cloned();
                        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
                    });
                    let place = rows.iter().position(|other| std::ptr::eq(other, row)).unwrap();
                    *outcomes[place].lock().unwrap() = Some(outcome);
                }
            });
        }
    });
    outcomes.into_iter().map(|outcome| outcome.into_inner().unwrap().unwrap()).collect()
}

/// The requests that the rows send.
const GET: &str = "GET /fault HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
const POST: &str = "POST /fault HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 5\r\n\r\nhello";
/// One that goes well, before the fault.
const FIRST: &str = "GET /first HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
const AT_A_TIME: usize = 6;
