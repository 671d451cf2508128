//! `/metrics`: what happened is counted, once and under the right name; what reads it is Prometheus' own parser; and
//! no client can make it grow.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::app::{App, Then, answer, hang};
use crate::support::hostward::Hostward;
use crate::support::python;
use crate::support::wire::{Client, ask, get};
use crate::support::{PATIENCE, Task, eventually};

const OPENMETRICS: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1\r\n\r\n";

/// What the admin port serves.
pub struct Metrics(String);

impl Metrics {
    pub fn of(hostward: &Hostward) -> Self {
        Self(ask(hostward.admin, OPENMETRICS).expect(200).text())
    }

    /// The value of one series; 0 when there is none, as Prometheus has it.
    pub fn get(&self, series: &str) -> f64 {
        let value = self.0.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap_or_else(|error| panic!("{series} {value}: {error}")))
    }

    fn series(&self) -> usize {
        self.0.lines().filter(|line| !line.starts_with('#')).count()
    }
}

/// Waits until each series has its value: a request counts when its answer has been written, a moment after the client
/// may have read it.
fn counted(hostward: &Hostward, expected: &[(&str, f64)]) -> Metrics {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = Metrics::of(hostward);
        let wrong: Vec<_> = expected
            .iter()
            .map(|(series, value)| (series, value, metrics.get(series)))
            .filter(|(_, value, found)| (*value - found).abs() > 0.0)
            .collect();
        if wrong.is_empty() {
            return metrics;
        }
        assert!(Instant::now() < deadline, "series, expected, found: {wrong:#?}\n{}", metrics.0);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn every_request_is_counted_once_by_what_became_of_it() {
    let task = Task::start(&[("HOSTWARD_PROBE_HOSTS", "10.0.2.100")], |talk| {
        let status = if talk.request.target == "/busy" { "503 Service Unavailable" } else { "200 OK" };
        talk.reply(answer(status, "", "x"))
    });
    for path in ["/", "/", "/busy"] {
        task.get(path);
    }
    task.ask("POST /orders HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 5\r\n\r\nhello").expect(200);
    task.ask("GET / HTTP/1.1\r\nHost: 10.0.2.100\r\n\r\n").expect(200);
    task.turned_away("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421);
    task.turned_away("BREW / HTTP/1.1\r\nHost: user@www.example.com\r\n\r\n", 400);
    task.turned_away("nonsense\r\n\r\n", 400);
    let count = |method: &str, status: &str, decision: &str| {
        format!(
            "http_server_request_duration_seconds_count{{method=\"{method}\",status=\"{status}\",decision=\"{decision}\"}}"
        )
    };
    let metrics = counted(
        &task.hostward,
        &[
            (&count("GET", "2xx", "allowed"), 2.0),
            (&count("GET", "5xx", "allowed"), 1.0),
            (&count("POST", "2xx", "allowed"), 1.0),
            (&count("GET", "2xx", "probe"), 1.0),
            (&count("GET", "4xx", "refused"), 1.0),
            (&count("_OTHER", "4xx", "malformed"), 2.0),
            ("hostward_host_decisions_total{decision=\"allowed\",reason=\"exact\"}", 4.0),
            ("hostward_host_decisions_total{decision=\"probe\",reason=\"probe_network\"}", 1.0),
            ("hostward_host_decisions_total{decision=\"refused\",reason=\"not_allowed\"}", 1.0),
            ("hostward_host_decisions_total{decision=\"malformed\",reason=\"malformed\"}", 2.0),
            ("hostward_responses_total{status=\"200\"}", 4.0),
            ("hostward_responses_total{status=\"503\"}", 1.0),
            ("hostward_responses_total{status=\"421\"}", 1.0),
            ("hostward_responses_total{status=\"400\"}", 2.0),
            ("hostward_errors_total{error=\"http_request_denied\"}", 1.0),
            ("hostward_errors_total{error=\"http_request_error\"}", 2.0),
            ("hostward_request_body_bytes_total", 5.0),
            ("hostward_upstream_response_seconds_count{decision=\"allowed\"}", 4.0),
            ("hostward_upstream_response_seconds_count{decision=\"probe\"}", 1.0),
            ("hostward_connections_total", 8.0),
            ("http_server_active_requests", 0.0),
            ("hostward_open_connections", 0.0),
        ],
    );
    let of_users = "method=\"GET\",status=\"2xx\",decision=\"allowed\"";
    let bucket =
        |le: &str| metrics.get(&format!("http_server_request_duration_seconds_bucket{{le=\"{le}\",{of_users}}}"));
    assert!(bucket("0.005") <= bucket("10.0") && bucket("10.0") <= 2.0 && bucket("+Inf") >= 2.0, "{}", metrics.0);
    let sum = metrics.get(&format!("http_server_request_duration_seconds_sum{{{of_users}}}"));
    assert!(sum > 0.0 && sum < 10.0, "{sum}");
}

#[test]
fn prometheus_own_parsers_take_both_formats() {
    let task = Task::echo(&[]);
    task.get("/").expect(200);
    task.turned_away("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421);
    counted(&task.hostward, &[("hostward_responses_total{status=\"421\"}", 1.0)]);
    let open = ask(task.hostward.admin, OPENMETRICS).expect(200);
    assert_eq!(open.field("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(open.text().ends_with("\n# EOF\n"), "{}", open.text());
    let classic = get(task.hostward.admin, "localhost", "/metrics").expect(200);
    assert_eq!(classic.field("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));

    let Some(open) = python::read_metrics(&["openmetrics"], &open.text()) else { return };
    let Some(classic) = python::read_metrics(&["classic"], &classic.text()) else { return };
    let families = |read: &Value| -> Vec<(String, String)> {
        let text = |family: &Value, key: &str| family[key].as_str().expect(key).to_owned();
        let mut names = Vec::new();
        for family in read.as_array().expect("families") {
            let (name, kind) = (text(family, "name"), text(family, "type"));
            assert!(!text(family, "help").is_empty(), "{name} has no HELP");
            assert!(["counter", "gauge", "histogram", "info"].contains(&kind.as_str()), "{name} is of type {kind:?}");
            for sample in family["samples"].as_array().expect("samples") {
                let sample = sample[0].as_str().expect("a name");
                assert_eq!(kind == "counter", sample.ends_with("_total"), "{sample} is a {kind}");
                names.push((sample.to_owned(), if kind == "info" { "gauge".to_owned() } else { kind.clone() }));
            }
        }
        names
    };
    // The same series with the same types. Only where they were scraped between may differ: in their values.
    assert_eq!(families(&open), families(&classic));
    let units = open.as_array().expect("families").iter().filter(|family| family["unit"] == "seconds").count();
    assert!(units >= 4, "{units} families in seconds");
}

#[test]
fn clients_can_not_make_series() {
    let task = Task::echo(&[]);
    let strange = |number: usize| {
        let requests = [
            format!("GET /{number} HTTP/1.1\r\nHost: host{number}.example\r\n\r\n"),
            format!("METHOD{number} / HTTP/1.1\r\nHost: www.example.com\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nHost: user{number}@www.example.com\r\n\r\n"),
            format!("X{number}\r\n\r\n"),
        ];
        for request in requests {
            task.ask(request);
        }
    };
    let ended = |count: f64| {
        counted(
            &task.hostward,
            &[
                ("hostward_connections_total", count),
                ("http_server_active_requests", 0.0),
                ("hostward_open_connections", 0.0),
            ],
        )
    };
    strange(0);
    let before = ended(4.0);
    for number in 1..30 {
        strange(number);
    }
    let after = ended(120.0);
    assert_eq!(before.series(), after.series(), "{}", after.0);
    assert!(!after.0.contains("METHOD") && !after.0.contains("host1"), "{}", after.0);
}

#[test]
fn what_is_open_is_told_while_it_is() {
    let task = Task::start(&[("HOSTWARD_UPSTREAM_IDLE_TIMEOUT", "1h"), ("HOSTWARD_THREADS", "1")], |talk| {
        if talk.request.target == "/hang" { hang(talk) } else { talk.reply(answer("200 OK", "", "x")) }
    });
    let mut idle = task.client();
    for _ in 0..3 {
        idle.ask("GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(200);
    }
    let mut waiting = task.client();
    waiting.send("GET /hang HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
    task.app.wait_count(4);
    // The kept connection went to the request that hangs.
    counted(
        &task.hostward,
        &[
            ("hostward_open_connections", 2.0),
            ("http_server_active_requests", 1.0),
            ("hostward_upstream_connections{state=\"active\"}", 1.0),
            ("hostward_upstream_connections{state=\"idle\"}", 0.0),
            ("hostward_upstream_requests_total{connection=\"new\"}", 1.0),
            ("hostward_upstream_requests_total{connection=\"reused\"}", 3.0),
        ],
    );
    idle.ask("GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(200);
    // A reset: a FIN could mean that the client waits for the answer all the same.
    socket2::SockRef::from(waiting.input.stream.tcp()).set_linger(Some(Duration::ZERO)).unwrap();
    drop((waiting, idle));
    counted(
        &task.hostward,
        &[
            ("hostward_open_connections", 0.0),
            ("http_server_active_requests", 0.0),
            ("hostward_responses_total{status=\"499\"}", 1.0),
            ("hostward_errors_total{error=\"client_gone\"}", 1.0),
            ("hostward_upstream_connections{state=\"active\"}", 0.0),
            ("hostward_upstream_connections{state=\"idle\"}", 1.0),
        ],
    );
}

#[test]
fn the_workers_are_added_up() {
    let task = Task::echo(&[("HOSTWARD_THREADS", "3")]);
    let mut clients: Vec<Client> = (0..6).map(|_| task.client()).collect();
    for client in &mut clients {
        for _ in 0..2 {
            client.ask("GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(200);
        }
    }
    counted(&task.hostward, &[("hostward_responses_total{status=\"200\"}", 12.0), ("hostward_open_connections", 6.0)]);
}

#[test]
fn an_app_that_is_not_there_is_counted_by_what_is_wrong_with_it() {
    let address = App::nowhere();
    for scheme in ["http", "h2c"] {
        let hostward = Hostward::start(&[
            ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
            ("HOSTWARD_UPSTREAM", &format!("{scheme}://{address}")),
            ("HOSTWARD_UPSTREAM_START_TIMEOUT", "0s"),
        ]);
        get(hostward.address, "www.example.com", "/").expect(502);
        // Whoever asks whether the app is ready is no request.
        get(hostward.admin, "localhost", "/readyz").expect(503);
        counted(
            &hostward,
            &[
                ("hostward_upstream_connect_errors_total{kind=\"connection_refused\"}", 1.0),
                ("hostward_errors_total{error=\"connection_refused\"}", 1.0),
                ("hostward_responses_total{status=\"502\"}", 1.0),
                ("hostward_upstream_connections{state=\"active\"}", 0.0),
            ],
        );
    }
}

#[test]
fn a_request_that_was_sent_twice_is_counted_as_such() {
    let task = Task::start(&[("HOSTWARD_UPSTREAM_IDLE_TIMEOUT", "1h"), ("HOSTWARD_THREADS", "1")], |talk| {
        // The second request of a connection finds it closed.
        if talk.request.connection == 0 && talk.request.target == "/second" {
            return Then::Close;
        }
        talk.reply(answer("200 OK", "", "x"))
    });
    task.get("/first").expect(200);
    task.get("/second").expect(200);
    counted(
        &task.hostward,
        &[("hostward_upstream_retries_total", 1.0), ("hostward_errors_total{error=\"connection_terminated\"}", 0.0)],
    );
}

#[test]
fn bodies_in_memory_and_on_disk_are_told() {
    let task = Task::echo(&[("HOSTWARD_BUFFER_MEMORY", "1KiB")]);
    let post = |length: usize| {
        format!("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: {length}\r\n\r\n{}", "x".repeat(length))
    };
    task.ask(post(4000)).expect(200);
    task.ask(post(10)).expect(200);
    counted(
        &task.hostward,
        &[
            ("hostward_spooled_requests_total", 1.0),
            ("hostward_request_body_bytes_total", 4010.0),
            ("hostward_memory_bytes", 0.0),
            ("hostward_spool_bytes", 0.0),
        ],
    );
    let mut spooled = task.client();
    spooled.send("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 1000001\r\n\r\n");
    spooled.send("x".repeat(1_000_000));
    let disk = eventually("a body is spooled", || {
        let metrics = Metrics::of(&task.hostward);
        let disk = metrics.get("hostward_spool_bytes");
        (disk >= 500_000.0).then_some((disk, metrics.get("hostward_spool_limit_bytes")))
    });
    assert!(disk.0 <= disk.1, "{disk:?}");
    spooled.send("x");
    spooled.answer().expect(200);
    counted(&task.hostward, &[("hostward_spool_bytes", 0.0)]);
    let mut slow = task.client();
    slow.send("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 1000\r\n\r\n");
    slow.send("x".repeat(500));
    let held = eventually("a body is held", || {
        let metrics = Metrics::of(&task.hostward);
        let held = metrics.get("hostward_memory_bytes");
        (held >= 500.0).then_some((held, metrics.get("hostward_memory_limit_bytes")))
    });
    assert!(held.0 <= held.1, "{held:?}");
    slow.send("x".repeat(500));
    slow.answer().expect(200);
    counted(&task.hostward, &[("hostward_memory_bytes", 0.0)]);
}

#[test]
fn the_admin_port_says_that_hostward_is_stopping() {
    let mut task = Task::echo(&[("HOSTWARD_DRAIN_DELAY", "1m")]);
    counted(&task.hostward, &[("hostward_draining", 0.0)]);
    task.hostward.terminate();
    counted(&task.hostward, &[("hostward_draining", 1.0)]);
    task.hostward.terminate();
    task.hostward.wait(Duration::from_secs(5));
}

#[test]
fn metrics_can_be_off() {
    for (value, status) in [("off", 404), ("prometheus", 200), ("", 200)] {
        let task = Task::echo(&[("HOSTWARD_METRICS", value)]);
        get(task.hostward.admin, "localhost", "/metrics").expect(status);
    }
    let task = Task::echo(&[]);
    ask(task.hostward.admin, "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").expect(405);
    let mut client = Client::connect(task.hostward.admin);
    client.send("HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let head = client.answer_to_head().expect(200);
    assert!(head.field("content-length").is_some_and(|length| length != "0"));
}
