//! One table: behaviours in its rows, ways through hostward in its columns. Every cell plays one request with a client
//! and an app of the way's own protocols, and says "yes", or why it can't be and that what happens instead did happen.

mod app;
mod client;
mod rows;

use std::cell::{Cell, RefCell};
use std::fmt::{Debug, Write};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;

use bytes::Bytes;
use serde_json::Value;

use self::app::{App, Seen, Step, Upstream};
use self::client::{Answer, Ask, Door, Length, Listener};
use self::rows::ROWS;
use crate::support::eventually;
use crate::support::hostward::Hostward;
use crate::support::wire::Field;

/// What a cell says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Yes,
    /// Why not: neither is it so nor can it be. What happens instead has been looked at.
    No(&'static str),
}

type Row = fn(&Case<'_>) -> Mark;

/// One cell: a row's request on a column's way.
pub struct Case<'a> {
    pub listener: Listener,
    pub upstream: Upstream,
    task: &'a Task,
    /// The beginning of its paths, which are nobody else's.
    key: String,
    wrong: RefCell<Vec<String>>,
    /// How often it has looked at what the client got, and at what the app got.
    looked: Cell<(usize, usize)>,
}

/// An app with hostward before it, twice: as it is by default; and streaming request bodies, but taking in answers.
struct Task {
    app: App,
    hostward: Hostward,
    streaming: Hostward,
}

const LISTENERS: [(Listener, &str); 4] = [
    (Listener::Http1, "HTTP/1.1"),
    (Listener::H2c, "h2c"),
    (Listener::TlsHttp1, "TLS HTTP/1.1"),
    (Listener::TlsH2, "TLS h2"),
];
const UPSTREAMS: [(Upstream, &str); 5] = [
    (Upstream::HttpTcp, "http"),
    (Upstream::HttpUnix, "http+unix"),
    (Upstream::UwsgiTcp, "uwsgi"),
    (Upstream::UwsgiUnix, "uwsgi+unix"),
    (Upstream::H2c, "h2c"),
];

#[test]
fn every_behaviour_takes_every_path() {
    // Every process has two listeners, which take turns.
    let pairs = LISTENERS.chunks(2).flat_map(|pair| UPSTREAMS.map(|upstream| (pair, upstream.0)));
    let columns: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = pairs.map(|(pair, upstream)| scope.spawn(move || columns(pair, upstream))).collect();
        running.into_iter().flat_map(|columns| columns.join().unwrap()).collect()
    });
    let table = Table::new(&columns);
    println!("{}", table.text);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("behaviours.md");
    fs::write(&path, &table.text).unwrap();
    assert!(
        table.failures.is_empty(),
        "{} of {} fail:\n{}",
        table.failures.len(),
        table.cells,
        table.failures.join("\n")
    );
}

struct Column {
    listener: Listener,
    upstream: Upstream,
    cells: Vec<Result<Mark, String>>,
}

fn columns(listeners: &[(Listener, &str)], upstream: Upstream) -> Vec<Column> {
    let task = Task::start(upstream, listeners[0].0.is_tls());
    let column = |listener| {
        let cells = ROWS.iter().enumerate().map(|(number, (_, row))| {
            let key = format!("{listener:?}-{number}");
            cell(
                &Case { listener, upstream, task: &task, key, wrong: RefCell::default(), looked: Cell::default() },
                *row,
            )
        });
        Column { listener, upstream, cells: cells.collect() }
    };
    listeners.iter().map(|(listener, _)| column(*listener)).collect()
}

fn cell(case: &Case<'_>, row: Row) -> Result<Mark, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| row(case)));
    case.task.app.release(&case.key);
    let mut wrong = case.wrong.take();
    match outcome {
        Ok(mark) if wrong.is_empty() => match case.looked.get() {
            (1.., 1..) => return Ok(mark),
            looked => wrong.push(format!("looked {looked:?} times at the client and the app, which shows nothing")),
        },
        Ok(_) => {}
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            wrong.push(text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default());
        }
    }
    Err(wrong.join("; "))
}

impl Task {
    fn start(upstream: Upstream, tls: bool) -> Self {
        let app = App::start(upstream);
        let start = |requests, responses| {
            Hostward::start(&[
                ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
                ("HOSTWARD_UPSTREAM", &app.url),
                ("HOSTWARD_TLS", if tls { "self-signed" } else { "off" }),
                ("HOSTWARD_BUFFER_REQUESTS", requests),
                ("HOSTWARD_BUFFER_RESPONSES", responses),
                ("HOSTWARD_THREADS", "1"),
            ])
        };
        let (hostward, streaming) = (start("auto", "1MiB"), start("off", "16MiB"));
        Self { app, hostward, streaming }
    }
}

impl Case<'_> {
    /// Into hostward as it is by default.
    pub fn door(&self) -> Door {
        Door { listener: self.listener, address: self.task.hostward.address }
    }

    /// Into the one that streams request bodies, and reads answers far ahead.
    pub fn streaming(&self) -> Door {
        Door { listener: self.listener, address: self.task.streaming.address }
    }

    pub fn ask(&self, ask: &Ask) -> Answer {
        self.door().ask(ask)
    }

    /// A request whose path ends like this.
    pub fn request(&self, method: &'static str, rest: &str) -> Ask {
        Ask {
            method,
            target: format!("/{}{rest}", self.key),
            host: "www.example.com".into(),
            fields: Vec::new(),
            length: Length::None,
            body: Vec::new(),
            trailers: Vec::new(),
            version: "HTTP/1.1",
        }
    }

    pub fn get(&self) -> Ask {
        self.request("GET", "/")
    }

    pub fn post(&self) -> Ask {
        self.request("POST", "/")
    }

    /// What the app does with this cell's requests.
    pub fn will(&self, script: impl Into<Vec<Step>>) {
        self.task.app.will(&self.key, script.into());
    }

    /// Reads the request, and answers 200 with a body whose length is told.
    pub fn will_say(&self, body: &'static str) {
        self.will([Step::Read, Step::Head(200, fields(&[("content-length", &body.len().to_string())])), data(body)]);
    }

    pub fn release(&self) {
        self.task.app.release(&self.key);
    }

    /// What has reached the app.
    pub fn all_seen(&self) -> Vec<Seen> {
        self.task.app.seen(&self.key)
    }

    /// The one request that has reached the app.
    pub fn seen(&self) -> Seen {
        let seen = eventually("the request reaches the app", || self.all_seen().pop());
        self.app("requests", self.all_seen().len(), 1);
        seen
    }

    /// Waits until it is so of the one request.
    pub fn app_in_the_end(&self, what: &str, so: impl Fn(&Seen) -> bool) {
        eventually(what, || self.all_seen().first().is_some_and(&so).then_some(()));
        self.app(what, true, true);
    }

    /// Nothing of it may reach the app.
    pub fn app_saw_nothing(&self) {
        self.app("requests", self.all_seen().len(), 0);
    }

    /// The access log's line.
    pub fn logged(&self) -> Value {
        let path = format!("/{}/", self.key);
        let ours =
            |line: &Value| line["msg"] == "request" && line["path"].as_str().is_some_and(|at| at.starts_with(&path));
        self.task.hostward.line(ours)
    }

    /// Looks at something that the client got.
    #[expect(clippy::needless_pass_by_value, reason = "rows are easier to read")]
    pub fn client<T: PartialEq<U> + Debug, U: Debug>(&self, what: &str, got: T, expected: U) {
        let (client, app) = self.looked.get();
        self.looked.set((client + 1, app));
        self.look("the client's", what, &got, &expected, got == expected);
    }

    /// Looks at something that the app got.
    #[expect(clippy::needless_pass_by_value, reason = "rows are easier to read")]
    pub fn app<T: PartialEq<U> + Debug, U: Debug>(&self, what: &str, got: T, expected: U) {
        let (client, app) = self.looked.get();
        self.looked.set((client, app + 1));
        self.look("the app's", what, &got, &expected, got == expected);
    }

    fn look(&self, whose: &str, what: &str, got: &dyn Debug, expected: &dyn Debug, same: bool) {
        if !same {
            let shown = |value: &dyn Debug| format!("{value:?}").chars().take(300).collect::<String>();
            self.wrong.borrow_mut().push(format!("{whose} {what}: {} and not {}", shown(got), shown(expected)));
        }
    }
}

/// Field lines.
pub fn fields(fields: &[(&str, &str)]) -> Vec<Field> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub fn data(text: &'static str) -> Step {
    Step::Data(Bytes::from_static(text.as_bytes()))
}

/// The columns as Markdown.
struct Table {
    text: String,
    cells: usize,
    failures: Vec<String>,
}

impl Table {
    fn new(columns: &[Column]) -> Self {
        let name = |column: &Column| {
            let listener = LISTENERS.iter().find(|(listener, _)| *listener == column.listener).unwrap().1;
            let upstream = UPSTREAMS.iter().find(|(upstream, _)| *upstream == column.upstream).unwrap().1;
            format!("{listener} → {upstream}")
        };
        // As the listeners are named, and not as they took turns.
        let place = |column: &&Column| LISTENERS.iter().position(|(listener, _)| *listener == column.listener);
        let mut columns: Vec<_> = columns.iter().collect();
        columns.sort_by_key(place);
        let names: Vec<_> = columns.iter().map(|column| name(column)).collect();
        let mut text = format!("| behaviour | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
        let (mut notes, mut failures) = (Vec::new(), Vec::new());
        for (number, (behaviour, _)) in ROWS.iter().enumerate() {
            write!(text, "| {behaviour} |").unwrap();
            for (column, name) in columns.iter().zip(&names) {
                match &column.cells[number] {
                    Ok(Mark::Yes) => text.push_str(" yes |"),
                    Ok(Mark::No(why)) => write!(text, " — ({}) |", note(&mut notes, why)).unwrap(),
                    Err(wrong) => {
                        text.push_str(" FAILS |");
                        failures.push(format!("{behaviour}, {name}: {wrong}"));
                    }
                }
            }
            text.push('\n');
        }
        for (number, why) in notes.iter().enumerate() {
            write!(text, "\n({}) {why}.  ", number + 1).unwrap();
        }
        Self { text, cells: ROWS.len() * columns.len(), failures }
    }
}

/// The number of a footnote.
fn note(notes: &mut Vec<&'static str>, why: &'static str) -> usize {
    let known = notes.iter().position(|note| *note == why);
    known.unwrap_or_else(|| {
        notes.push(why);
        notes.len() - 1
    }) + 1
}
