//! What was counted in a minute, as one line of the log that `CloudWatch` makes metrics of (its "embedded metric
//! format"): counts since the last line, and what is open or active now.
//!
//! A line that the log's queue has no room for is not lost: the next one covers its minute as well.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value, json};

use super::cells::Totals;
use super::{ERRORS, Histogram, Metrics, Snapshot};
use crate::clock;
use crate::discovery::Found;
use crate::error::Side;
use crate::log::Sink;

/// Writes the lines.
#[derive(Debug)]
pub struct Emitter {
    metrics: Arc<Metrics>,
    sink: Sink,
    place: Arc<OnceLock<Place>>,
    /// What has been told.
    told: Totals,
    since: Instant,
}

/// Where this task runs: the metrics' dimensions, under the names that Container Insights has for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The cluster's name.
    pub cluster: Option<String>,
    /// The task definition's name, without its revision.
    pub family: Option<String>,
}

impl Emitter {
    /// Tells of `metrics` through `sink`. The place may become known later.
    pub fn new(metrics: Arc<Metrics>, sink: Sink, place: Arc<OnceLock<Place>>) -> Self {
        Self { metrics, sink, place, told: Totals::zero(), since: Instant::now() }
    }

    /// Writes what hasn't been told yet. False when the log had no room for it.
    pub fn emit(&mut self) -> bool {
        let (now, elsewhere) = self.metrics.totals();
        let snapshot = self.metrics.name(&now.since(&self.told), &now, elsewhere);
        let window = self.since.elapsed();
        let line = line(&snapshot, self.place.get().unwrap_or(&Place::default()), clock::now(), window);
        let taken = self.sink.offer(format!("{line}\n").into_bytes());
        if taken {
            self.told = now;
            self.since = Instant::now();
        }
        taken
    }
}

impl Place {
    /// As far as discovery has found it out.
    pub fn of(found: &Found) -> Self {
        let family = found.task.as_deref().and_then(|task| task.split(':').next());
        // CloudWatch drops metrics with an empty dimension.
        let named = |name: Option<&str>| name.filter(|name| !name.trim().is_empty()).map(str::to_owned);
        Self { cluster: named(found.cluster.as_deref()), family: named(family) }
    }
}

/// Writes the last line, when everything has been counted. A log that has no room gets some time to make it.
pub async fn finish(emitter: &RefCell<Emitter>) {
    let deadline = Instant::now() + LAST_WORDS;
    while !emitter.borrow_mut().emit() && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
}

fn line(snapshot: &Snapshot, place: &Place, now: SystemTime, window: Duration) -> Value {
    let dimensions: Vec<_> = [("ClusterName", &place.cluster), ("TaskDefinitionFamily", &place.family)]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_ref()?)))
        .collect();
    let values = values(snapshot);
    let definitions = values.iter().map(|(name, unit, _)| json!({ "Name": name, "Unit": unit }));
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut line = Map::new();
    line.insert("time".into(), humantime::format_rfc3339_millis(clock::printable(now)).to_string().into());
    line.insert("level".into(), "INFO".into());
    line.insert("msg".into(), "metrics".into());
    line.insert(
        "_aws".into(),
        json!({
            "Timestamp": u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX),
            "CloudWatchMetrics": [{
                "Namespace": NAMESPACE,
                "Dimensions": [dimensions.iter().map(|(name, _)| *name).collect::<Vec<_>>()],
                "Metrics": definitions.collect::<Vec<_>>(),
            }],
        }),
    );
    line.extend(dimensions.into_iter().map(|(name, value)| (name.to_owned(), value.clone().into())));
    line.extend(values.into_iter().map(|(name, _, value)| (name.to_owned(), value)));
    // No metrics, which cost money, but there for queries.
    line.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    line.insert("window_s".into(), window.as_secs().into());
    let occurred = |list: &[(&str, u64)]| -> Map<String, Value> {
        list.iter().filter(|(_, count)| *count > 0).map(|(name, count)| ((*name).to_owned(), (*count).into())).collect()
    };
    line.insert("errors".into(), occurred(&snapshot.errors).into());
    line.insert("connect_errors".into(), occurred(&snapshot.connect_errors).into());
    let refused: Vec<_> = snapshot.decisions.iter().filter(|decided| decided.decision == "refused").collect();
    let refused: Vec<_> = refused.iter().map(|decided| (decided.reason, decided.count)).collect();
    line.insert("refused".into(), occurred(&refused).into());
    Value::Object(line)
}

/// The metrics: name, unit and value. Users' requests are those that were let in and are no probes; load balancers
/// would else be most of an idle service's requests, and the fastest.
fn values(snapshot: &Snapshot) -> Vec<(&'static str, &'static str, Value)> {
    let is_user = |decision: &str| matches!(decision, "allowed" | "reported");
    let count = |decision: &dyn Fn(&str) -> bool, status: &dyn Fn(&str) -> bool| -> u64 {
        let requests = snapshot.requests.iter();
        let requests = requests.filter(|requests| decision(requests.decision) && status(requests.status));
        requests.map(|requests| requests.durations.count()).sum()
    };
    let failed = |status: &str| matches!(status, "4xx" | "5xx");
    let errors = |side: Side| -> u64 {
        let errors = snapshot.errors.iter().zip(&ERRORS);
        errors.filter(|(_, (_, whose))| *whose == side).map(|((_, count), _)| count).sum()
    };
    // A WebSocket's hours are no measure of speed.
    let users = snapshot.requests.iter().filter(|requests| is_user(requests.decision) && requests.status != "1xx");
    let app = snapshot.app.iter().filter(|(decision, _)| is_user(decision));
    let durations = [
        ("RequestDuration", Histogram::together(users.map(|requests| &requests.durations))),
        ("UpstreamDuration", Histogram::together(app.map(|(_, durations)| durations))),
    ];
    let durations = durations.into_iter().filter(|(_, histogram)| histogram.count() > 0);
    let counts = [
        ("Requests", COUNT, count(&is_user, &|_| true)),
        ("Responses4xx", COUNT, count(&is_user, &|status| status == "4xx")),
        ("Responses5xx", COUNT, count(&is_user, &|status| status == "5xx")),
        ("Probes", COUNT, count(&|decision| decision == "probe", &|_| true)),
        ("ProbeFailures", COUNT, count(&|decision| decision == "probe", &failed)),
        ("Refused", COUNT, count(&|decision| decision == "refused", &|_| true)),
        ("Malformed", COUNT, count(&|decision| decision == "malformed", &|_| true)),
        ("AppErrors", COUNT, errors(Side::App)),
        ("ProxyErrors", COUNT, errors(Side::Hostward)),
        ("UpstreamConnectErrors", COUNT, snapshot.connect_errors.iter().map(|(_, count)| count).sum()),
        ("UpstreamRetries", COUNT, snapshot.repeats),
        ("ActiveRequests", COUNT, snapshot.active_requests),
        ("OpenConnections", COUNT, snapshot.open_connections),
        ("BytesIn", BYTES, snapshot.bytes_in),
        ("BytesOut", BYTES, snapshot.bytes_out),
        ("MemoryBytes", BYTES, snapshot.memory_bytes),
        ("SpooledRequests", COUNT, snapshot.spooled),
        ("LogLinesDropped", COUNT, snapshot.log_lines_dropped),
    ];
    let counts = counts.into_iter().map(|(name, unit, count)| (name, unit, Value::from(count)));
    durations.map(|(name, histogram)| (name, "Milliseconds", distribution(&histogram))).chain(counts).collect()
}

/// Each bucket's durations as their mean, and how many they are: so sums and averages are exact, and percentiles are
/// within a bucket. The specification has numbers and arrays of numbers only; that this is taken, too, is known from
/// the exporters that AWS itself writes, and `CloudWatch`'s `PutMetricData` has it under the same names.
fn distribution(histogram: &Histogram) -> Value {
    let buckets = histogram.counts.iter().zip(&histogram.nanoseconds).filter(|(count, _)| **count > 0);
    let (values, counts): (Vec<Value>, Vec<u64>) =
        buckets.map(|(count, nanoseconds)| (milliseconds(nanoseconds / count), count)).unzip();
    json!({ "Values": values, "Counts": counts })
}

fn milliseconds(nanoseconds: u64) -> Value {
    // Nobody reads more than microseconds.
    let microseconds = Duration::from_nanos(nanoseconds).as_micros();
    let microseconds = u32::try_from(microseconds).unwrap_or(u32::MAX);
    Value::from(f64::from(microseconds) / 1000.0)
}

/// How often a line is written.
pub const INTERVAL: Duration = Duration::from_mins(1);
const NAMESPACE: &str = "hostward";
const COUNT: &str = "Count";
const BYTES: &str = "Bytes";
/// What the last line gets.
const LAST_WORDS: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::rc::Rc;
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;
    use crate::config::LogFormat;
    use crate::exchange::Exchange;
    use crate::metrics::{Count, Elsewhere, Meter};

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Output {
        fn lines(&self) -> Vec<Value> {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    fn emitter(out: impl Write + Send + 'static) -> (Emitter, Sink, Rc<Meter>) {
        let metrics = Arc::new(Metrics::new(Elsewhere::default));
        // Lines for people don't concern CloudWatch.
        let sink = Sink::start(out, LogFormat::Text).unwrap();
        let meter = Rc::new(metrics.meter());
        (Emitter::new(metrics, sink.clone(), Arc::default()), sink, meter)
    }

    fn answer(meter: &Meter, decision: &'static str, status: u16) {
        let exchange = Exchange::begin(Instant::now(), "10.0.1.7".parse().unwrap(), None);
        exchange.decision.set(decision);
        exchange.rule.set(if decision == "probe" { "self_task" } else { "exact" });
        exchange.status.set(status);
        exchange.upstream.set(Some(Duration::from_millis(60)));
        meter.count(Count::Requests, 1);
        meter.record(&exchange, Duration::from_millis(61));
    }

    #[test]
    fn an_empty_name_is_no_dimension() {
        for (task, cluster, expected) in [
            (Some("web:3"), Some("prod"), (Some("web"), Some("prod"))),
            (Some(":1"), Some(""), (None, None)),
            (Some(""), Some(" "), (None, None)),
            (None, Some("prod"), (None, Some("prod"))),
        ] {
            let found =
                Found { task: task.map(str::to_owned), cluster: cluster.map(str::to_owned), ..Found::default() };
            let Place { cluster, family } = Place::of(&found);
            assert_eq!((family.as_deref(), cluster.as_deref()), expected);
        }
    }

    #[test]
    fn a_clock_before_1970_is_no_reason_to_panic() {
        let (_, sink, _) = emitter(Output::default());
        let metrics = Metrics::new(Elsewhere::default);
        let (now, elsewhere) = metrics.totals();
        let snapshot = metrics.name(&now, &now, elsewhere);
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        let line = line(&snapshot, &Place::default(), before, INTERVAL);
        assert_eq!((&line["time"], &line["_aws"]["Timestamp"]), (&"1970-01-01T00:00:00.000Z".into(), &0.into()));
        sink.stop(Duration::from_secs(5));
    }

    #[test]
    fn every_line_tells_what_the_ones_before_did_not() {
        let output = Output::default();
        let (mut emitter, sink, meter) = emitter(output.clone());
        let connection = meter.open(Count::Connections, Count::ConnectionsClosed);
        for status in [200, 200, 503] {
            answer(&meter, "allowed", status);
        }
        answer(&meter, "probe", 200);
        assert!(emitter.emit());
        answer(&meter, "probe", 404);
        assert!(emitter.emit());
        drop(connection);
        assert!(emitter.emit());
        sink.stop(Duration::from_secs(5));
        let lines = output.lines();
        let told = |name: &str| lines.iter().map(|line| line[name].as_u64().unwrap()).collect::<Vec<_>>();
        assert_eq!(told("Requests"), [3, 0, 0]);
        assert_eq!(told("Responses5xx"), [1, 0, 0]);
        assert_eq!((told("Probes"), told("ProbeFailures")), (vec![1, 1, 0], vec![0, 1, 0]));
        assert_eq!(told("OpenConnections"), [1, 1, 0]);
        assert_eq!(lines[0]["UpstreamDuration"], json!({ "Values": [60.0], "Counts": [3] }));
        assert_eq!(lines[1].get("UpstreamDuration"), None, "a probe's is nobody's, and an empty array no metric");
    }

    #[test]
    fn durations_keep_their_sum() {
        let (mut histogram, ms) = (Histogram::default(), 1_000_000);
        (histogram.counts[0], histogram.nanoseconds[0]) = (3, 6 * ms);
        (histogram.counts[14], histogram.nanoseconds[14]) = (2, 30_001 * ms);
        assert_eq!(distribution(&histogram), json!({ "Values": [2.0, 15_000.5], "Counts": [3, 2] }));
    }

    #[test]
    fn a_tunnel_is_a_request_without_a_duration() {
        let (emitter, _, meter) = emitter(Output::default());
        answer(&meter, "allowed", 101);
        let names: Vec<_> = values(&emitter.metrics.snapshot()).into_iter().map(|(name, ..)| name).collect();
        assert!(!names.contains(&"RequestDuration") && names.contains(&"Requests"), "{names:?}");
    }

    struct Stalled(Receiver<()>, Output);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().ok();
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_a_stalled_log_did_not_take_is_told_when_it_does() {
        let (output, (release, gate)) = (Output::default(), sync_channel::<()>(0));
        let (mut emitter, sink, meter) = emitter(Stalled(gate, output.clone()));
        let mut refused = 0;
        for _ in 0..100 {
            answer(&meter, "allowed", 200);
            refused += u32::from(!emitter.emit());
        }
        assert!(refused > 0);
        drop(release);
        finish(&RefCell::new(emitter)).await;
        sink.stop(Duration::from_secs(5));
        let lines = output.lines();
        assert_eq!(lines.iter().map(|line| line["Requests"].as_u64().unwrap()).sum::<u64>(), 100);
        assert!(lines.len() < 100, "{}", lines.len());
    }
}
