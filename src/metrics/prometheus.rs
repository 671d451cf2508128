//! A [`Snapshot`] as text for Prometheus: `OpenMetrics` for whoever asks for it, as Prometheus does, and else the older
//! format, which is what `promtool check metrics` and simple scrapers read.
//!
//! Labels have values of ours alone, so there is a bound on the number of series, whatever clients send.

use std::fmt::{self, Write};
use std::fs;

use nix::sys::resource::{UsageWho, getrusage};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelValue, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::{Histogram, Snapshot};

/// Which text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// Prometheus' own, version 0.0.4.
    Classic,
}

impl Format {
    /// The format for whoever sends this `Accept`.
    pub fn accepted(accept: Option<&str>) -> Self {
        let open = accept.is_some_and(|accept| accept.contains("application/openmetrics-text"));
        if open { Self::OpenMetrics } else { Self::Classic }
    }

    /// The `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Everything there is, as text.
pub fn encode(snapshot: Snapshot, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    // A String takes everything.
    text::encode(&mut text, &registry).ok();
    if format == Format::OpenMetrics { text } else { classic(&text) }
}

/// In the older format a counter's name has its `_total` in the description, too, and there is neither a type
/// `info` nor a unit.
fn classic(text: &str) -> String {
    let mut classic = String::with_capacity(text.len());
    let mut lines = text.lines().peekable();
    let mut suffix = "";
    while let Some(line) = lines.next() {
        let described = |line: &str| Some(line.strip_prefix("# ")?.splitn(3, ' ').map(str::to_owned).collect());
        let written = match described(line).unwrap_or_else(Vec::new).as_slice() {
            [keyword, name, help] if keyword == "HELP" => {
                suffix = match lines.peek().and_then(|next| next.rsplit(' ').next()) {
                    Some("counter") => "_total",
                    Some("info") => "_info",
                    _ => "",
                };
                writeln!(classic, "# HELP {name}{suffix} {help}")
            }
            [keyword, name, kind] if keyword == "TYPE" => {
                writeln!(classic, "# TYPE {name}{suffix} {}", if kind == "info" { "gauge" } else { kind })
            }
            [keyword, ..] if keyword == "UNIT" || keyword == "EOF" => Ok(()),
            _ => writeln!(classic, "{line}"),
        };
        // A String takes everything.
        written.ok();
    }
    classic
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Families(encoder);
        let requests = self.requests.iter().map(|requests| {
            let labels = [("method", requests.method), ("status", requests.status), ("decision", requests.decision)];
            (labels, &requests.durations)
        });
        to.histograms("http_server_request_duration", "From a request's head to its answer's end.", requests)?;
        to.gauge(
            "http_server_active_requests",
            "Requests whose answers have not ended; WebSockets too.",
            None,
            self.active_requests,
        )?;

        let decisions = self
            .decisions
            .iter()
            .map(|decided| ([("decision", decided.decision), ("reason", decided.reason)], decided.count));
        to.counters("hostward_host_decisions", "Requests by what was decided about their host, and why.", decisions)?;
        let statuses = self.statuses.iter().map(|(status, count)| {
            let status = if *status == 0 { "other".to_owned() } else { status.to_string() };
            ([("status", status)], *count)
        });
        to.counters("hostward_responses", "Answers by status; 499: the client left before.", statuses)?;
        let errors = self.errors.iter().map(|(error, count)| ([("error", *error)], *count));
        to.counters("hostward_errors", "Requests that failed, by the log's error.", errors)?;
        to.counter("hostward_request_body", "Bytes of request bodies.", Some(&Unit::Bytes), self.bytes_in)?;
        to.counter("hostward_response_body", "Bytes of answers' bodies.", Some(&Unit::Bytes), self.bytes_out)?;

        to.counter("hostward_connections", "Connections of clients that were accepted.", None, self.connections)?;
        to.gauge("hostward_open_connections", "Connections of clients now.", None, self.open_connections)?;
        to.gauge("hostward_max_connections", "How many there may be.", None, self.max_connections)?;

        let app = self.app.iter().map(|(decision, durations)| ([("decision", *decision)], durations));
        to.histograms("hostward_upstream_response", "From sending a request to the head of the app's answer.", app)?;
        let errors = self.connect_errors.iter().map(|(kind, count)| ([("kind", *kind)], *count));
        to.counters("hostward_upstream_connect_errors", "Connections to the app that could not be made.", errors)?;
        let states = [("active", self.app_connections_active), ("idle", self.app_connections_idle)];
        let states = states.map(|(state, count)| ([("state", state)], count));
        to.gauges("hostward_upstream_connections", "Connections to the app now.", states)?;
        let sent = [("new", self.sent_over_new), ("reused", self.sent_over_reused)];
        let sent = sent.map(|(connection, count)| ([("connection", connection)], count));
        to.counters("hostward_upstream_requests", "Requests by what connection they were sent over.", sent)?;
        to.counter(
            "hostward_upstream_retries",
            "Requests sent once more, because the app had closed the connection.",
            None,
            self.repeats,
        )?;

        to.counter(
            "hostward_dropped_headers",
            "Request headers that were dropped for a character in their names.",
            None,
            self.dropped_headers,
        )?;
        let held = "Memory that connections, requests and responses take of the budget.";
        to.gauge("hostward_memory", held, Some(&Unit::Bytes), self.memory_bytes)?;
        let budget = "The memory budget, by the container's limit.";
        to.gauge("hostward_memory_limit", budget, Some(&Unit::Bytes), self.memory_limit_bytes)?;
        to.gauge("hostward_spool", "Disk space of all spooled bodies now.", Some(&Unit::Bytes), self.spool_bytes)?;
        let limit = "What HOSTWARD_BUFFER_DISK allows; 0 while nothing can be spooled.";
        to.gauge("hostward_spool_limit", limit, Some(&Unit::Bytes), self.spool_limit_bytes)?;
        to.counter("hostward_spooled_requests", "Requests whose bodies went to disk.", None, self.spooled)?;
        to.counter(
            "hostward_log_lines_dropped",
            "Log lines that the log driver didn't take in time.",
            None,
            self.log_lines_dropped,
        )?;
        to.gauge("hostward_draining", "1 once hostward has been asked to stop.", None, u64::from(self.draining))?;
        to.0.encode_descriptor("hostward_build", "The version that runs.", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        to.process(self.started)
    }
}

/// Writes one family after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counter(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: impl EncodeCounterValue + Copy,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: impl EncodeGaugeValue + Copy,
    ) -> fmt::Result {
        self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counters<V: EncodeLabelValue, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'static str, V); N], u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'static str, &'static str); N], u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn histograms<'h, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'static str, &'static str); N], &'h Histogram)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (labels, durations) in samples {
            let buckets: Vec<_> = durations.buckets().collect();
            let (sum, count) = (durations.sum().as_secs_f64(), durations.count());
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    /// What Prometheus' libraries tell of every process. What can't be found out is left out.
    fn process(&mut self, started: f64) -> fmt::Result {
        self.gauge("process_start_time", "When hostward started, since 1970.", Some(&Unit::Seconds), started)?;
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let (user, system) = (usage.user_time(), usage.system_time());
            let microseconds = (user.tv_sec() + system.tv_sec()) * 1_000_000 + user.tv_usec() + system.tv_usec();
            let seconds = std::time::Duration::from_micros(u64::try_from(microseconds).unwrap_or_default());
            self.counter("process_cpu", "CPU time, the system's too.", Some(&Unit::Seconds), seconds.as_secs_f64())?;
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB")?.trim().parse().ok());
        if let Some(kibibytes) = resident {
            let bytes: u64 = kibibytes;
            self.gauge("process_resident_memory", "Memory in use.", Some(&Unit::Bytes), bytes * 1024)?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            self.gauge("process_open_fds", "File descriptors in use.", None, open.count() as u64)?;
        }
        Ok(())
    }
}
