//! Watches what the app answers, without changing or delaying it: says in the log when the app turned down what it was
//! given, and when so many health checks in a row failed that the load balancer is about to replace the task.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use http::header;
use http::{HeaderMap, Method, Response, StatusCode};

use crate::app_refusal::{self, By, ENOUGH, Given, Refusal};
use crate::config::{Config, Tls, show};
use crate::exchange::{CUT, Exchange};
use crate::log::Repeats;
use crate::policy::HostRewrite;

/// What one worker's answers are watched with.
#[derive(Debug)]
pub struct Observer {
    config: Arc<Config>,
    repeats: Arc<Repeats>,
    probes: Arc<Probes>,
}

/// The health checks of the process, whichever worker they came to.
#[derive(Debug, Default)]
pub struct Probes {
    /// In a row.
    failed: AtomicU32,
}

/// An answer that may be a refusal: its head, and of its body what has gone by.
#[derive(Debug)]
pub struct Suspect {
    status: StatusCode,
    headers: HeaderMap,
    start: Vec<u8>,
}

impl Observer {
    /// Who watches by these settings.
    pub fn new(config: Arc<Config>, repeats: Arc<Repeats>, probes: Arc<Probes>) -> Self {
        Self { config, repeats, probes }
    }

    /// The answer, if it may be a refusal; nearly none is.
    pub fn suspect<B>(&self, response: &Response<B>, exchange: &Exchange) -> Option<Box<Suspect>> {
        let status = response.status();
        if status.is_success() {
            return None;
        }
        let probe = exchange.decision.get() == PROBE;
        // What was refused only in a report is no friend's.
        if !(probe || exchange.decision.get() == ALLOWED) || !app_refusal::may_be(status, probe) {
            return None;
        }
        let headers = response.headers();
        if headers.contains_key(header::CONTENT_ENCODING) {
            return None;
        }
        Some(Box::new(Suspect { status, headers: headers.clone(), start: Vec::new() }))
    }

    /// Judges what has been seen, and says so in the log if it was a refusal.
    pub fn judge(&self, suspect: &Suspect, exchange: &Exchange) -> Option<Refusal> {
        let (host, by) = self.seen(exchange);
        let given = given(&host, by, exchange);
        let refusal = Refusal::recognise(suspect.status, &suspect.headers, &suspect.start, &given)?;
        let framework = refusal.framework();
        let message = "app refuses the host";
        if let Some(repeated) = self.repeats.admit(message, framework, Instant::now()) {
            let (hint, host, path) = (refusal.hint(&given), given.host, path(exchange));
            let (decision, status) = (exchange.decision.get(), suspect.status.as_u16());
            tracing::warn!(framework, status, host, path, decision, what = %refusal, repeated, hint, "{message}");
        }
        Some(refusal)
    }

    /// Counts a health check when it is over, and says when too many have failed.
    pub fn finish(&self, exchange: &Exchange, refusal: Option<&Refusal>) {
        if exchange.decision.get() != PROBE || exchange.error.get() == Some(CUT) {
            return;
        }
        if is_healthy(exchange) {
            // Mostly 0 already: a load leaves the other workers' cache line alone.
            if self.probes.failed.load(Ordering::Relaxed) != 0 {
                self.probes.failed.store(0, Ordering::Relaxed);
            }
            return;
        }
        if self.probes.failed.fetch_add(1, Ordering::Relaxed).saturating_add(1) != TOO_MANY {
            return;
        }
        let (host, by) = self.seen(exchange);
        let given = given(&host, by, exchange);
        let (status, error, path) = (exchange.outcome(), exchange.error.get().unwrap_or("-"), path(exchange));
        let hint = refusal.map_or_else(|| failed_probe_hint(exchange, &path), |refusal| refusal.hint(&given));
        let framework = refusal.map_or("-", Refusal::framework);
        let what = "the load balancer is about to replace this task: that many health checks in a row got another \
                    answer than 200, the last one this";
        let (failed, host) = (TOO_MANY, given.host);
        tracing::warn!(failed, status, error, framework, host, path, what, hint, "health checks fail");
    }

    /// The host that the app saw, and why.
    fn seen(&self, exchange: &Exchange) -> (String, By) {
        let rules = &self.config.rules;
        let rewritten = rules.rewrite == HostRewrite::Canonical;
        let by = match exchange.decision.get() {
            PROBE => By::Probe(self.config.probe_proto.unwrap_or(match self.config.tls {
                Tls::Off => "http",
                _ => "https",
            })),
            _ if rewritten => By::Rewritten,
            _ => By::Preserved,
        };
        let asked = exchange.request.as_ref().and_then(|request| request.host.as_ref());
        let host = if by == By::Preserved { asked } else { rules.canonical.as_ref() };
        (show(&host.map_or_else(String::new, |host| String::from_utf8_lossy(host.as_bytes()).into_owned())), by)
    }
}

impl Suspect {
    /// Some more of the body. True once it is enough to judge by.
    pub fn see(&mut self, data: &[u8]) -> bool {
        let room = ENOUGH.saturating_sub(self.start.len());
        self.start.extend_from_slice(&data[..data.len().min(room)]);
        self.start.len() >= ENOUGH
    }
}

fn given<'a>(host: &'a str, by: By, exchange: &Exchange) -> Given<'a> {
    let get = exchange.request.as_ref().is_some_and(|request| request.method == Method::GET);
    Given { host, by, get }
}

/// By what a load balancer thinks of an answer: an ALB's matcher is 200 unless somebody has set another. A body that
/// it has not read to the end is no failure.
fn is_healthy(exchange: &Exchange) -> bool {
    let status = exchange.status.get();
    let good = (200..300).contains(&status) || status == StatusCode::SWITCHING_PROTOCOLS.as_u16();
    good && exchange.error.get().is_none_or(|error| error == "client_gone")
}

/// What to do about health checks that fail, when the app hasn't refused the host.
fn failed_probe_hint(exchange: &Exchange, path: &str) -> String {
    match (exchange.outcome(), exchange.error.get()) {
        (499, _) => "the load balancer doesn't wait so long: a quicker path, or a longer timeout of the health check \
                     (mostly 5 s)"
            .to_owned(),
        (_, Some(error)) => format!("the app gave no whole answer ({error}); the `hint` of the line before says why"),
        (300..=399, None) => "an ALB takes 200 alone for healthy unless its matcher says otherwise: give the health \
                             check a path that doesn't redirect, or widen the matcher"
            .to_owned(),
        (401 | 403, None) => {
            format!("the app wants to know who asks for {path}: give the health check a path that is open to all")
        }
        (404, None) => format!("the app has no {path}: correct the health check's path"),
        (500.., None) => format!("the app itself fails: find {path} in its log"),
        _ => format!("find {path} in the app's log; or is the health check's path another one?"),
    }
}

fn path(exchange: &Exchange) -> String {
    let path = exchange.request.as_ref().map_or("-", |request| request.target.path());
    show(&String::from_utf8_lossy(&path.as_bytes()[..path.len().min(LONGEST_PATH)]))
}

/// The words of [`Exchange::decision`] that matter here.
const PROBE: &str = "probe";
const ALLOWED: &str = "allowed";
/// Failed health checks in a row. By default an ALB gives a target up after two; five at most are usual.
const TOO_MANY: u32 = 3;
/// Bytes of a path for the log.
const LONGEST_PATH: usize = 1024;
