//! What the machine runs out of, and how hostward stops.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::{FIRST, GET, Outcome, Row, shown};
use crate::support::app::{App, echo, hang};
use crate::support::hostward::{Hostward, LogReader};
use crate::support::kernel::descriptors;
use crate::support::metadata::{Metadata, Reply};
use crate::support::wire::Client;
use crate::support::{Task, eventually};

pub const ROWS: &[Row] = &[
    Row {
        fault: "no file descriptor for another client",
        play: no_descriptor_for_a_client,
        expected: ("200, when others have left", "`can't accept`", 1),
    },
    Row {
        fault: "no file descriptor for a connection to the app",
        play: no_descriptor_for_the_app,
        expected: (
            "503 proxy_internal_error, then 200, when others have left",
            "503 proxy_internal_error, `can't accept`, `out of file descriptors`",
            1,
        ),
    },
    Row {
        fault: "no directory for a long body that must be whole",
        play: || {
            let task = Task::echo(&[("HOSTWARD_BUFFER_REQUESTS", "on"), NOWHERE]);
            Outcome::of(&task, upload(2 << 20))
        },
        expected: (
            "503 proxy_internal_error",
            "503 proxy_internal_error, `can't spool`, `no room on disk for a request body`",
            0,
        ),
    },
    Row {
        fault: "no directory for a long body that may be streamed",
        play: || Outcome::of(&Task::echo(&[NOWHERE, ("HOSTWARD_BUFFER_RESPONSES", "4MiB")]), upload(2 << 20)),
        expected: ("200", "`can't spool`", 1),
    },
    Row {
        fault: "no memory for another body, and no directory",
        play: no_memory,
        expected: ("503 proxy_internal_error, closed", "503 proxy_internal_error, `can't spool`, `memory short`", 0),
    },
    Row {
        fault: "the log driver stalls",
        play: log_stalls,
        expected: ("12000 × 200, and every line is written or counted", "`log lines dropped`", 12_000),
    },
    Row { fault: "the log driver has gone", play: log_is_gone, expected: ("100 × 200", "—", 100) },
    Row {
        fault: "the task metadata endpoint answers 500 for ever; a probe",
        play: || metadata(|| Reply::Body("500 Internal Server Error", "\"no\"".into())),
        expected: ("200", "`task metadata unavailable`", 1),
    },
    Row {
        fault: "the task metadata endpoint never answers; a probe",
        play: || metadata(|| Reply::Hang),
        expected: ("200", "`task metadata unavailable`", 1),
    },
    Row {
        fault: "SIGTERM while a request is under way",
        play: || stopping("20s", "TERM"),
        expected: ("200, closed; exit 0", "—", 1),
    },
    Row {
        fault: "SIGTERM, and a request takes longer than `SHUTDOWN_TIMEOUT`",
        play: || stopping("0s", "TERM"),
        expected: ("503 proxy_internal_error, closed; exit 0", "503 shutdown, `request cut by shutdown`", 1),
    },
    Row {
        fault: "SIGINT while a request is under way",
        play: || stopping("20s", "INT"),
        expected: ("503 proxy_internal_error, closed; exit 0", "503 shutdown, `request cut by shutdown`", 1),
    },
];

const DESCRIPTORS: usize = 40;
const NOWHERE: (&str, &str) = ("HOSTWARD_BUFFER_DIR", "/nowhere");

fn upload(length: usize) -> String {
    let body = "a".repeat(length);
    format!("POST /fault HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// hostward with few descriptors and no bound on connections; clients take them all.
fn exhausted(app: &App) -> (Hostward, Vec<Client>) {
    let upstream = app.url();
    let hostward = Hostward::start_with_descriptors(
        DESCRIPTORS,
        &[
            ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
            ("HOSTWARD_UPSTREAM", &upstream),
            ("HOSTWARD_MAX_CONNECTIONS", "1000"),
            ("HOSTWARD_THREADS", "1"),
        ],
    );
    let clients = (0..DESCRIPTORS).map(|_| Client::connect(hostward.address)).collect();
    hostward.line(|line| line["msg"] == "can't accept");
    // Its check of the app may have had one, and given it back: the next client gets that, after a while.
    let mut full_since = Instant::now();
    eventually("no descriptor is left", || {
        if descriptors(hostward.pid()) < DESCRIPTORS {
            full_since = Instant::now();
        }
        (full_since.elapsed() > Duration::from_millis(300)).then_some(())
    });
    (hostward, clients)
}

/// Clock ticks of CPU time.
fn ticks(hostward: &Hostward) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", hostward.pid())).unwrap();
    let numbers = stat.rsplit(')').next().unwrap().split_whitespace();
    numbers.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

fn no_descriptor_for_a_client() -> Outcome {
    let app = App::echo();
    let (hostward, clients) = exhausted(&app);
    let mut waiting = Client::connect(hostward.address);
    waiting.send(GET);
    let before = ticks(&hostward);
    thread::sleep(Duration::from_secs(1));
    // Of a hundred: it doesn't spin.
    let spent = ticks(&hostward) - before;
    assert!(spent < 10, "{spent} ticks in a second");
    drop(clients);
    Outcome::new(format!("{}, when others have left", shown(&waiting.try_answer())), &hostward, app.count())
}

fn no_descriptor_for_the_app() -> Outcome {
    let app = App::echo();
    let (hostward, mut clients) = exhausted(&app);
    let refused = shown(&Ok(clients[0].ask(GET)));
    clients.truncate(1);
    let then = eventually("descriptors are free", || {
        let answer = clients[0].ask(FIRST);
        (answer.status == 200).then(|| shown(&Ok(answer)))
    });
    Outcome::new(format!("{refused}, then {then}, when others have left"), &hostward, app.count())
}

fn no_memory() -> Outcome {
    let settings = [NOWHERE, ("HOSTWARD_BODY_TIMEOUT", "5s"), ("HOSTWARD_BUFFER_MEMORY", "4MiB")];
    let task = Task::start_with_memory(88, &settings, echo).expect("a memory cgroup, which root can make");
    // Ten bodies of 4 MiB, and a budget of 33; each of them goes on, a byte at a time.
    let body = upload((4 << 20) - 1);
    let mut clients: Vec<_> = (0..10).map(|_| task.client()).collect();
    for at in 0..clients.len() {
        clients[at].input.stream.tcp().set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        // hostward doesn't read on when it has no room.
        clients[at].try_send(&body[..body.len() - 1000]).ok();
        // However long that took, none of the others has paused for the timeout.
        for earlier in &mut clients[..at] {
            earlier.try_send("a").ok();
        }
    }
    let mut answered = None;
    let answer = eventually("one is answered", || {
        for client in &mut clients {
            client.input.patience = Duration::from_millis(5);
            client.try_send("a").ok();
            if let Ok(answer) = client.try_answer() {
                answered = Some(answer);
            }
        }
        answered.take()
    });
    Outcome::new(shown(&Ok(answer)), &task.hostward, task.app.count())
}

fn log_stalls() -> Outcome {
    const REQUESTS: usize = 12_000;
    let task = Task::echo(&[("HOSTWARD_THREADS", "1")]);
    task.hostward.read_log(LogReader::Stalls);
    let mut good = 0;
    let mut client = task.client();
    // Long lines, so that pipe and queue are soon full.
    let path = format!("/fault{}", "/a".repeat(400));
    for _ in 0..REQUESTS {
        good += usize::from(client.ask(GET.replace("/fault", &path)).status == 200);
    }
    task.hostward.read_log(LogReader::Reads);
    let counted = eventually("every line is written or counted", || {
        let lines = task.hostward.lines();
        let written = lines.iter().filter(|line| line["msg"] == "request").count() as u64;
        let dropped: u64 = lines
            .iter()
            .filter(|line| line["msg"] == "log lines dropped")
            .filter_map(|line| line["lines"].as_u64())
            .sum();
        // The next line brings the count.
        client.ask(FIRST);
        (dropped > 0 && written + dropped >= REQUESTS as u64).then_some("every line is written or counted")
    });
    let mut outcome = Outcome::without_line(format!("{good} × 200, and {counted}"), &task.hostward, 0);
    outcome.app = task.app.requests().iter().filter(|request| request.target == path).count();
    outcome
}

fn log_is_gone() -> Outcome {
    let task = Task::echo(&[("HOSTWARD_THREADS", "1")]);
    task.hostward.read_log(LogReader::Leaves);
    let mut client = task.client();
    let good = (0..100)
        .filter(|_| {
            thread::sleep(Duration::from_millis(3));
            client.ask(GET).status == 200
        })
        .count();
    Outcome::without_line(format!("{good} × 200"), &task.hostward, task.app.count())
}

fn metadata(reply: fn() -> Reply) -> Outcome {
    let metadata = Metadata::start(move |_, _| reply());
    let task = Task::echo(&[("ECS_CONTAINER_METADATA_URI_V4", &metadata.url())]);
    task.hostward.line(|line| line["msg"] == "task metadata unavailable");
    // A probe, which is known by the address that it came in on.
    let answer = task.ask(GET.replace("www.example.com", &task.hostward.address.to_string()));
    Outcome::without_line(shown(&Ok(answer)), &task.hostward, task.app.count())
}

fn stopping(timeout: &str, signal: &str) -> Outcome {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let mut task =
        Task::start(&[("HOSTWARD_DRAIN_DELAY", "100ms"), ("HOSTWARD_SHUTDOWN_TIMEOUT", timeout)], move |talk| {
            if wait.lock().unwrap().recv().is_err() {
                return hang(talk);
            }
            talk.reply(crate::support::app::answer("200 OK", "", "here"))
        });
    let mut client = task.client();
    client.send(GET);
    task.app.wait_count(1);
    if signal == "INT" {
        task.hostward.interrupt();
    } else {
        task.hostward.terminate();
    }
    if timeout != "0s" && signal == "TERM" {
        task.hostward.line(|line| line["msg"] == "draining");
        go.send(()).unwrap();
    }
    let answer = shown(&client.try_answer());
    drop(go);
    let code = task.hostward.wait(crate::support::PATIENCE).code().unwrap_or(-1);
    Outcome::new(format!("{answer}; exit {code}"), &task.hostward, task.app.count())
}
