//! [`Exchange`](crate::exchange::Exchange) → counters, and what is told of them: on the admin port for Prometheus, or
//! once a minute on standard output for `CloudWatch`.
//!
//! Counting is always on: it costs less than asking whether it is wanted would save.

mod cells;
pub mod emf;
mod prometheus;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use self::cells::{
    APP, BOUNDS, BUCKETS, CONNECT_ERROR, CONNECT_ERRORS, Cells, DECIDED, DECISION, ERROR, HISTOGRAM, REQUESTS, STATUS,
    STATUSES, Totals,
};

pub use cells::{CLASSES, Count, DECISIONS, ERRORS, METHODS, Meter, Open};
pub use prometheus::{Format, encode};

/// All counts of the process.
pub struct Metrics {
    started: SystemTime,
    workers: Mutex<Vec<Arc<Cells>>>,
    elsewhere: Box<dyn Fn() -> Elsewhere + Send + Sync>,
}

/// What others than the workers know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Elsewhere {
    /// Whether stopping has begun.
    pub draining: bool,
    /// How many connections there may be.
    pub max_connections: usize,
    /// Bytes that are taken of the memory budget.
    pub memory_bytes: usize,
    /// Bytes of the whole budget.
    pub memory_limit_bytes: usize,
    /// Bytes in spool files.
    pub spool_bytes: u64,
    /// How many there may be.
    pub spool_limit_bytes: u64,
    /// Bodies that went to disk, ever.
    pub spooled: u64,
    /// Log lines that were dropped, ever.
    pub log_lines_dropped: u64,
}

/// The counts of all workers, named. Counters are of all time, or of the time since another moment; what is open,
/// active, idle or buffered is so now.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// When hostward started, in seconds since 1970.
    pub started: f64,
    /// Whether stopping has begun.
    pub draining: bool,
    /// Connections of clients now.
    pub open_connections: u64,
    /// How many there may be.
    pub max_connections: u64,
    /// Connections that were accepted.
    pub connections: u64,
    /// Requests whose answers have not ended.
    pub active_requests: u64,
    /// What was answered, and how fast. Only kinds that have occurred.
    pub requests: Vec<Requests>,
    /// How fast the app was, by decision. Only decisions that have occurred.
    pub app: Vec<(&'static str, Histogram)>,
    /// Who was let in and who wasn't.
    pub decisions: Vec<Decided>,
    /// Answers by status. 0 stands for all that are none of 100 to 599. Only those that have occurred.
    pub statuses: Vec<(u16, u64)>,
    /// What failed, by the word of the log's `error`.
    pub errors: Vec<(&'static str, u64)>,
    /// Connections to the app that could not be made.
    pub connect_errors: Vec<(&'static str, u64)>,
    /// Connections to the app that carry a request.
    pub app_connections_active: u64,
    /// Connections to the app that don't.
    pub app_connections_idle: u64,
    /// Requests sent over a new connection.
    pub sent_over_new: u64,
    /// Requests sent over one that had carried others.
    pub sent_over_reused: u64,
    /// Requests that had to be sent a second time.
    pub repeats: u64,
    /// Bytes of request bodies.
    pub bytes_in: u64,
    /// Bytes of answers' bodies.
    pub bytes_out: u64,
    /// Bytes that are taken of the memory budget.
    pub memory_bytes: u64,
    /// Bytes of the whole budget.
    pub memory_limit_bytes: u64,
    /// Bytes in spool files.
    pub spool_bytes: u64,
    /// How many there may be.
    pub spool_limit_bytes: u64,
    /// Request headers that were dropped for their names.
    pub dropped_headers: u64,
    /// Bodies that went to disk.
    pub spooled: u64,
    /// Log lines that the log driver didn't take in time.
    pub log_lines_dropped: u64,
}

/// Requests of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct Requests {
    /// One of [`METHODS`].
    pub method: &'static str,
    /// One of [`CLASSES`].
    pub status: &'static str,
    /// One of [`DECISIONS`].
    pub decision: &'static str,
    /// From the head of the request to the end of the answer.
    pub durations: Histogram,
}

/// How often one decision was made for one reason.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Decided {
    /// One of [`DECISIONS`].
    pub decision: &'static str,
    /// The rule, or the refusal.
    pub reason: &'static str,
    /// How often.
    pub count: u64,
}

/// Durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    /// The sum of each bucket's durations.
    nanoseconds: [u64; BUCKETS],
}

impl Metrics {
    /// No counts yet. `elsewhere` is asked whenever somebody wants to know.
    pub fn new(elsewhere: impl Fn() -> Elsewhere + Send + Sync + 'static) -> Self {
        Self { started: SystemTime::now(), workers: Mutex::default(), elsewhere: Box::new(elsewhere) }
    }

    /// What a new worker counts with.
    pub fn meter(&self) -> Meter {
        let cells = Cells::new();
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&cells));
        Meter::new(cells)
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// All that has been counted.
    pub fn snapshot(&self) -> Snapshot {
        let (totals, elsewhere) = self.totals();
        self.name(&totals, &totals, elsewhere)
    }

    fn totals(&self) -> (Totals, Elsewhere) {
        let elsewhere = (self.elsewhere)();
        let mut totals = Totals::of(self.workers.lock().unwrap_or_else(PoisonError::into_inner).iter());
        totals.set(Count::Spooled, elsewhere.spooled);
        totals.set(Count::LogLinesDropped, elsewhere.log_lines_dropped);
        (totals, elsewhere)
    }

    /// Counters from `counted`, and what is the case now from `now`.
    fn name(&self, counted: &Totals, now: &Totals, elsewhere: Elsewhere) -> Snapshot {
        // A worker may count between two reads: never below zero.
        let open = |all, closed| now.get(all).saturating_sub(now.get(closed));
        let app_connections = open(Count::AppConnections, Count::AppConnectionsClosed);
        let idle = now.get(Count::AppConnectionsIdle).min(app_connections);
        let since_1970 = self.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Snapshot {
            started: since_1970.as_secs_f64(),
            draining: elsewhere.draining,
            open_connections: open(Count::Connections, Count::ConnectionsClosed),
            max_connections: elsewhere.max_connections as u64,
            connections: counted.get(Count::Connections),
            active_requests: open(Count::Requests, Count::RequestsEnded),
            requests: requests(counted),
            app: DECISIONS
                .iter()
                .enumerate()
                .map(|(at, decision)| (*decision, Histogram::read(counted, APP + at * HISTOGRAM)))
                .filter(|(_, durations)| durations.count() > 0)
                .collect(),
            decisions: DECIDED
                .iter()
                .zip(counted.row(DECISION, DECIDED.len()))
                .map(|((decision, reason), count)| Decided { decision: DECISIONS[*decision], reason, count: *count })
                .collect(),
            statuses: (100..600)
                .chain([0])
                .zip(counted.row(STATUS, STATUSES + 1).iter().copied())
                .filter(|(_, count)| *count > 0)
                .collect(),
            errors: ERRORS.iter().map(|(word, _)| *word).zip(counted.row(ERROR, ERRORS.len()).to_vec()).collect(),
            connect_errors: CONNECT_ERRORS
                .into_iter()
                .zip(counted.row(CONNECT_ERROR, CONNECT_ERRORS.len()).to_vec())
                .collect(),
            app_connections_active: app_connections - idle,
            app_connections_idle: idle,
            sent_over_new: counted.get(Count::FirstUses),
            sent_over_reused: counted.get(Count::Reuses),
            repeats: counted.get(Count::Repeats),
            bytes_in: counted.get(Count::BytesIn),
            bytes_out: counted.get(Count::BytesOut),
            memory_bytes: elsewhere.memory_bytes as u64,
            memory_limit_bytes: elsewhere.memory_limit_bytes as u64,
            spool_bytes: elsewhere.spool_bytes,
            spool_limit_bytes: elsewhere.spool_limit_bytes,
            dropped_headers: counted.get(Count::DroppedHeaders),
            spooled: counted.get(Count::Spooled),
            log_lines_dropped: counted.get(Count::LogLinesDropped),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("started", &self.started).finish_non_exhaustive()
    }
}

fn requests(counted: &Totals) -> Vec<Requests> {
    let kinds = METHODS.iter().flat_map(|method| CLASSES.iter().map(move |status| (method, status)));
    let kinds = kinds.flat_map(|(method, status)| DECISIONS.iter().map(move |decision| (method, status, decision)));
    kinds
        .enumerate()
        .map(|(at, (method, status, decision))| Requests {
            method,
            status,
            decision,
            durations: Histogram::read(counted, REQUESTS + at * HISTOGRAM),
        })
        .filter(|requests| requests.durations.count() > 0)
        .collect()
}

impl Histogram {
    fn read(totals: &Totals, at: usize) -> Self {
        let (counts, sums) = totals.row(at, HISTOGRAM).split_at(BUCKETS);
        let mut histogram = Self::default();
        histogram.counts.copy_from_slice(counts);
        histogram.nanoseconds.copy_from_slice(sums);
        histogram
    }

    /// How many durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.iter().fold(0, |sum, more| sum.saturating_add(*more)))
    }

    fn together<'a>(histograms: impl Iterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for histogram in histograms {
            for (at, count) in histogram.counts.iter().enumerate() {
                sum.counts[at] += count;
                sum.nanoseconds[at] = sum.nanoseconds[at].saturating_add(histogram.nanoseconds[at]);
            }
        }
        sum
    }

    /// Each bucket's upper bound in seconds, and how many durations are in it and in none before.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS.iter().map(|bound| Duration::from_nanos(*bound).as_secs_f64()).chain([f64::INFINITY]);
        bounds.zip(self.counts)
    }
}
