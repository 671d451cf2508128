//! What one worker counts. A cell has one writer, its worker's thread, which needs no more than a load and a store;
//! whoever adds the workers up reads the cells as they are.
//!
//! All cells lie in one row, so that adding up, and taking off what was there before, is the same for every kind of
//! count. What they mean is said in the constants below, and read in [`super::Snapshot`].

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{Failure, Side};
use crate::exchange::{CUT, Exchange};
use crate::policy::{Refusal, Rule};

/// Methods that have a name of their own; a client may invent others without end. The last stands for them.
pub const METHODS: [&str; 8] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "_OTHER"];
/// Classes of statuses; the last is what no class is known for.
pub const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];
/// The words of the log's `decision`.
pub const DECISIONS: [&str; 5] = ["allowed", "probe", "refused", "reported", "malformed"];
const ALLOWED: usize = 0;
const PROBE: usize = 1;
const REFUSED: usize = 2;
const REPORTED: usize = 3;
const MALFORMED: usize = 4;
/// Which decision comes with which reason, the most frequent first. The last one takes what is none of the others.
pub(super) const DECIDED: [(usize, &str); 21] = [
    (ALLOWED, Rule::Exact.name()),
    (ALLOWED, Rule::Domain.name()),
    (ALLOWED, Rule::Address.name()),
    (ALLOWED, Rule::Network.name()),
    (ALLOWED, Rule::Any.name()),
    (PROBE, Rule::Task.name()),
    (PROBE, Rule::Interface.name()),
    (PROBE, Rule::Local.name()),
    (PROBE, Rule::Localhost.name()),
    (PROBE, Rule::Peer.name()),
    (PROBE, Rule::Missing.name()),
    (PROBE, Rule::ProbeNetwork.name()),
    (REFUSED, Refusal::NotAllowed.name()),
    (REFUSED, Refusal::Missing.name()),
    (REFUSED, Refusal::Forwarded.name()),
    (REFUSED, Refusal::PublicPeer.name()),
    (REPORTED, Refusal::NotAllowed.name()),
    (REPORTED, Refusal::Missing.name()),
    (REPORTED, Refusal::Forwarded.name()),
    (REPORTED, Refusal::PublicPeer.name()),
    (MALFORMED, "malformed"),
];
/// The words of the log's `error`, and whose fault each is.
pub const ERRORS: [(&str, Side); 16] = [
    word(Failure::Malformed("")),
    word(Failure::Refused(Refusal::NotAllowed)),
    word(Failure::ClientGone),
    word(Failure::Name),
    word(Failure::Prohibited),
    word(Failure::ConnectionRefused),
    word(Failure::ConnectTimeout),
    word(Failure::Unreachable),
    word(Failure::ConnectionTerminated),
    word(Failure::ResponseTimeout),
    word(Failure::ResponseMalformed),
    word(Failure::ResponseHeadTooLarge),
    word(Failure::UpgradeFailed),
    word(Failure::LimitReached),
    word(Failure::Internal),
    (CUT, Side::Hostward),
];
/// What may go wrong with connecting to the app: these of [`ERRORS`].
pub(super) const CONNECT_ERRORS: [&str; 7] = [
    Failure::Name.token(),
    Failure::Prohibited.token(),
    Failure::ConnectionRefused.token(),
    Failure::ConnectTimeout.token(),
    Failure::Unreachable.token(),
    Failure::ConnectionTerminated.token(),
    Failure::OutOfDescriptors.token(),
];
/// Upper bounds of a histogram's buckets, in nanoseconds: those that OpenTelemetry advises for HTTP.
pub(super) const BOUNDS: [u64; 14] = [
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    75_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    750_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    7_500_000_000,
    10_000_000_000,
];
/// With the bucket of what is above every bound.
pub(super) const BUCKETS: usize = BOUNDS.len() + 1;

/// Where each kind of count begins. A histogram is a count for each bucket, and then a sum for each.
pub(super) const REQUESTS: usize = 0;
pub(super) const APP: usize = REQUESTS + METHODS.len() * CLASSES.len() * DECISIONS.len() * HISTOGRAM;
pub(super) const DECISION: usize = APP + DECISIONS.len() * HISTOGRAM;
pub(super) const STATUS: usize = DECISION + DECIDED.len();
pub(super) const ERROR: usize = STATUS + STATUSES + 1;
pub(super) const CONNECT_ERROR: usize = ERROR + ERRORS.len();
const SINGLE: usize = CONNECT_ERROR + CONNECT_ERRORS.len();
const LENGTH: usize = SINGLE + Count::LogLinesDropped as usize + 1;
pub(super) const HISTOGRAM: usize = 2 * BUCKETS;
/// 100 to 599; the next cell is for others.
pub(super) const STATUSES: usize = 500;

/// What there is one cell of.
#[derive(Clone, Copy, Debug)]
pub enum Count {
    /// Connections from clients.
    Connections,
    /// Those that were closed.
    ConnectionsClosed,
    /// Requests, from their heads on.
    Requests,
    /// Those whose answers have ended.
    RequestsEnded,
    /// Bytes of request bodies.
    BytesIn,
    /// Bytes of answers' bodies.
    BytesOut,
    /// Connections to the app.
    AppConnections,
    /// Those that were closed.
    AppConnectionsClosed,
    /// Not counted but set: those that no request is under way on.
    AppConnectionsIdle,
    /// Requests sent over a connection that had not carried one.
    FirstUses,
    /// Requests sent over one that had.
    Reuses,
    /// Requests that had to be sent a second time.
    Repeats,
    /// Request headers that were dropped for their names.
    DroppedHeaders,
    /// Bodies that went to disk. No worker's.
    Spooled,
    /// No worker's either. Has to be the last.
    LogLinesDropped,
}

/// One worker's counts, in the hands of that worker.
#[derive(Debug)]
pub struct Meter(Arc<Cells>);

/// One worker's counts.
#[derive(Debug)]
pub(super) struct Cells(Box<[AtomicU64]>);

/// The counts of all workers at one moment.
#[derive(Clone, Debug)]
pub(super) struct Totals(Vec<u64>);

/// Counts something as open as long as it lives.
#[derive(Debug)]
pub struct Open {
    meter: Rc<Meter>,
    closed: Count,
}

const fn word(failure: Failure) -> (&'static str, Side) {
    (failure.token(), failure.side())
}

impl Meter {
    pub(super) fn new(cells: Arc<Cells>) -> Self {
        Self(cells)
    }

    /// Counts an exchange that has ended, and took so long.
    pub fn record(&self, exchange: &Exchange, duration: Duration) {
        let (word, rule) = (exchange.decision.get(), exchange.rule.get());
        let decided = DECIDED.iter().position(|(decision, reason)| *reason == rule && DECISIONS[*decision] == word);
        let decided = decided.unwrap_or(DECIDED.len() - 1);
        let (decision, _) = DECIDED[decided];
        let method = exchange.request.as_ref().map_or("", |request| request.method.as_str());
        let method = METHODS.iter().position(|known| *known == method).unwrap_or(METHODS.len() - 1);
        let status = usize::from(exchange.outcome());
        let class = (status / 100).wrapping_sub(1).min(CLASSES.len() - 1);
        let kind = (method * CLASSES.len() + class) * DECISIONS.len() + decision;
        self.observe(REQUESTS + kind * HISTOGRAM, duration);
        if let Some(duration) = exchange.upstream.get() {
            self.observe(APP + decision * HISTOGRAM, duration);
        }
        self.add(DECISION + decided, 1);
        self.add(STATUS + status.wrapping_sub(100).min(STATUSES), 1);
        if let Some(error) = exchange.error.get()
            && let Some(at) = ERRORS.iter().position(|(word, _)| *word == error)
        {
            self.add(ERROR + at, 1);
        }
        self.count(Count::BytesIn, exchange.bytes_in.get());
        self.count(Count::BytesOut, exchange.bytes_out.get());
        self.count(Count::RequestsEnded, 1);
    }

    /// Counts `more` of something.
    pub fn count(&self, what: Count, more: u64) {
        self.add(SINGLE + what as usize, more);
    }

    /// Sets what is no count.
    pub fn set(&self, what: Count, value: usize) {
        self.0.0[SINGLE + what as usize].store(value as u64, Ordering::Relaxed);
    }

    /// Counts something that is open until what is returned is dropped.
    pub fn open(self: &Rc<Self>, what: Count, closed: Count) -> Open {
        self.count(what, 1);
        Open { meter: Rc::clone(self), closed }
    }

    /// A connection to the app that could not be made.
    pub fn connect_failed(&self, failure: Failure) {
        if let Some(at) = CONNECT_ERRORS.iter().position(|token| *token == failure.token()) {
            self.add(CONNECT_ERROR + at, 1);
        }
    }

    fn observe(&self, histogram: usize, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = histogram + BOUNDS.partition_point(|bound| *bound < nanoseconds);
        self.add(bucket, 1);
        self.add(bucket + BUCKETS, nanoseconds);
    }

    fn add(&self, at: usize, more: u64) {
        let cell = &self.0.0[at];
        // Nobody else writes, so nothing is lost between the two.
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.meter.count(self.closed, 1);
    }
}

impl Cells {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self((0..LENGTH).map(|_| AtomicU64::new(0)).collect()))
    }
}

impl Totals {
    /// The counts of these workers together.
    pub(super) fn of<'a>(workers: impl IntoIterator<Item = &'a Arc<Cells>>) -> Self {
        let mut all = vec![0_u64; LENGTH];
        for worker in workers {
            for (total, cell) in all.iter_mut().zip(&worker.0) {
                *total = total.wrapping_add(cell.load(Ordering::Relaxed));
            }
        }
        Self(all)
    }

    /// Nothing has been counted.
    pub(super) fn zero() -> Self {
        Self(vec![0; LENGTH])
    }

    /// What has been counted since.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self(self.0.iter().zip(&earlier.0).map(|(now, before)| now.wrapping_sub(*before)).collect())
    }

    pub(super) fn set(&mut self, what: Count, value: u64) {
        self.0[SINGLE + what as usize] = value;
    }

    pub(super) fn get(&self, what: Count) -> u64 {
        self.0[SINGLE + what as usize]
    }

    /// `count` of the cells from `from` on.
    pub(super) fn row(&self, from: usize, count: usize) -> &[u64] {
        &self.0[from..from + count]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use http::{HeaderValue, Method, Version};

    use super::*;
    use crate::exchange::Request;
    use crate::policy::Verdict;

    pub(crate) fn exchange(method: Method) -> Exchange {
        let request = Request {
            method,
            target: "/".parse().unwrap(),
            host: Some(HeaderValue::from_static("www.example.com")),
            version: Version::HTTP_11,
            user_agent: None,
            trace: None,
        };
        Exchange::begin(Instant::now(), "10.0.1.7".parse().unwrap(), Some(request))
    }

    fn total(cells: &Arc<Cells>, at: usize) -> u64 {
        Totals::of([cells]).row(at, 1)[0]
    }

    #[test]
    fn every_verdict_has_a_place_of_its_own() {
        let rules = [
            Rule::Exact,
            Rule::Domain,
            Rule::Address,
            Rule::Network,
            Rule::Any,
            Rule::Task,
            Rule::Interface,
            Rule::Local,
            Rule::Localhost,
            Rule::Peer,
            Rule::Missing,
            Rule::ProbeNetwork,
        ];
        let refusals = [Refusal::NotAllowed, Refusal::Missing, Refusal::Forwarded, Refusal::PublicPeer];
        let (allowed, probes) = rules.split_at(5);
        let verdicts = allowed.iter().map(|rule| Verdict::Allowed(*rule));
        let verdicts = verdicts.chain(probes.iter().map(|rule| Verdict::Probe(*rule)));
        let verdicts = verdicts.chain(refusals.map(Verdict::Refused)).chain(refusals.map(Verdict::Reported));
        let cells = Cells::new();
        let meter = Meter::new(Arc::clone(&cells));
        let mut seen = 0;
        for verdict in verdicts {
            let exchange = exchange(Method::GET);
            exchange.decision.set(verdict.decision());
            exchange.rule.set(verdict.rule());
            meter.record(&exchange, Duration::ZERO);
            seen += 1;
        }
        assert_eq!(Totals::of([&cells]).row(DECISION, DECIDED.len() - 1), vec![1; seen]);
        // What was never judged.
        meter.record(&exchange(Method::GET), Duration::ZERO);
        assert_eq!(total(&cells, DECISION + DECIDED.len() - 1), 1);
    }

    #[test]
    fn no_status_and_no_method_is_without_a_place() {
        let cells = Cells::new();
        let meter = Meter::new(Arc::clone(&cells));
        for status in [0, 1, 99, 100, 599, 600, 999, u16::MAX] {
            let exchange = exchange(Method::from_bytes(b"BREW").unwrap());
            exchange.status.set(status);
            exchange.error.set(Some("unheard-of"));
            meter.record(&exchange, Duration::ZERO);
        }
        meter.record(&Exchange::begin(Instant::now(), "10.0.1.7".parse().unwrap(), None), Duration::ZERO);
        assert_eq!(Totals::of([&cells]).get(Count::RequestsEnded), 9);
        assert_eq!(Totals::of([&cells]).row(STATUS, STATUSES + 1).iter().sum::<u64>(), 9);
        assert_eq!(total(&cells, STATUS + STATUSES), 5, "1, 99, 600, 999 and 65535");
        let other = (METHODS.len() - 1) * CLASSES.len() * DECISIONS.len() * HISTOGRAM;
        let (before, after) = (Totals::of([&cells]).row(0, other).to_vec(), Totals::of([&cells]));
        assert_eq!(before.iter().sum::<u64>(), 0);
        let rest = after.row(other, APP - other).chunks(HISTOGRAM);
        assert_eq!(rest.map(|histogram| histogram[..BUCKETS].iter().sum::<u64>()).sum::<u64>(), 9);
    }

    #[test]
    fn a_duration_on_a_bound_is_below_it() {
        let cells = Cells::new();
        let meter = Meter::new(Arc::clone(&cells));
        for milliseconds in [0, 5, 6, 10_000, 10_001] {
            meter.observe(APP, Duration::from_millis(milliseconds));
        }
        let totals = Totals::of([&cells]);
        let row = totals.row(APP, HISTOGRAM);
        assert_eq!((row[0], row[1], row[13], row[14]), (2, 1, 1, 1));
        assert_eq!((row[BUCKETS], row[BUCKETS + 14]), (5_000_000, 10_001_000_000));
    }

    #[test]
    fn workers_are_added_up_and_what_was_before_is_taken_off() {
        let workers = [Cells::new(), Cells::new()];
        let meters = workers.each_ref().map(|cells| Rc::new(Meter::new(Arc::clone(cells))));
        let open = meters[0].open(Count::Connections, Count::ConnectionsClosed);
        meters[1].count(Count::Connections, 2);
        let before = Totals::of(&workers);
        assert_eq!((before.get(Count::Connections), before.get(Count::ConnectionsClosed)), (3, 0));
        drop(open);
        meters[1].count(Count::Connections, 1);
        let since = Totals::of(&workers).since(&before);
        assert_eq!((since.get(Count::Connections), since.get(Count::ConnectionsClosed)), (1, 1));
    }
}
