//! Watches what the app answers, without changing or delaying it: says in the log when the app turned down what it was
//! given, and when so many health checks in a row failed that the load balancer is about to replace the task.

mod compare;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use http::header;
use http::{HeaderMap, Method, Response, StatusCode};
use tokio::sync::mpsc::{Receiver, Sender, channel};

pub use self::compare::{Comparison, Failed};
use crate::config::{Config, Tls, show};
use crate::diagnosis::app_refusal::{self, By, ENOUGH, Given, Refusal};
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
#[derive(Debug)]
pub struct Probes {
    /// In a row.
    failed: AtomicU32,
    /// Those that a [`Comparison`] looks into.
    compare: Sender<Failed>,
}

impl Probes {
    /// A count of none, and the receiver of the failed health checks to look into.
    pub fn new() -> (Self, Receiver<Failed>) {
        let (compare, failed) = channel(MOST_WAITING);
        (Self { failed: AtomicU32::new(0), compare }, failed)
    }
}

/// The line that says that too many health checks in a row have failed.
#[derive(Debug)]
struct Failing<'a> {
    status: u16,
    error: &'a str,
    framework: &'a str,
    host: &'a str,
    path: &'a str,
    hint: String,
}

impl Failing<'_> {
    fn say(&self) {
        let what = "the load balancer is about to replace this task: that many health checks in a row got another \
                    answer than 200, the last one this";
        let Self { status, error, framework, host, path, hint } = self;
        tracing::warn!(failed = TOO_MANY, status, error, framework, host, path, what, hint, "health checks fail");
    }
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
        if status.is_redirection() && !probe && exchange.assumed_http.get() {
            self.report_redirect(response, exchange);
        }
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

    /// Says in the log that a client was redirected to the URL that it asked for, but by HTTPS. It may be using HTTPS
    /// already: the app was given `http` only because no trusted proxy says what the client uses.
    fn report_redirect<B>(&self, response: &Response<B>, exchange: &Exchange) {
        let location = response.headers().get(header::LOCATION);
        let (Some(location), Some(request)) = (location, &exchange.request) else { return };
        if !app_refusal::is_same_by_https(location.as_bytes(), request.host.as_ref(), &request.target) {
            return;
        }
        let (message, reason) = ("app redirects to the same URL", "https_redirect");
        if let Some(repeated) = self.repeats.admit(message, reason, Instant::now()) {
            let (status, path) = (response.status().as_u16(), path(exchange));
            let host = show(&request.host.as_ref().map_or_else(String::new, |host| text(host.as_bytes())));
            let location = show(&text(location.as_bytes()));
            let what = "the app was given X-Forwarded-Proto: http, because no trusted proxy says what the client uses, and \
                        redirects it to HTTPS; if the client uses HTTPS already, the redirects never end";
            let hint = "HOSTWARD_CLIENT_PROTO=https, if a Network Load Balancer or CloudFront ends TLS in front; if a proxy \
                        sends X-Forwarded-Proto, its network has to be in HOSTWARD_TRUSTED_PROXIES";
            tracing::warn!(reason, status, host, path, location, peer_ip = %exchange.peer, client_ip = %exchange.client.get(), what, repeated, hint, "{message}");
        }
    }

    /// Judges what has been seen, and says so in the log if it was a refusal.
    pub fn judge(&self, suspect: &Suspect, exchange: &Exchange) -> Option<Refusal> {
        let (host, by) = self.seen(exchange);
        let given = given(&host, by, exchange);
        let refusal = Refusal::recognise(suspect.status, &suspect.headers, &suspect.start, &given)?;
        say_refusal(&self.repeats, &refusal, &given, suspect.status, exchange.decision.get(), &path(exchange));
        Some(refusal)
    }

    /// Says that the app left a response to a server that isn't there.
    pub fn report_command(&self, command: &'static str, exchange: &Exchange) {
        let message = "app is set up for another server";
        if let Some(repeated) = self.repeats.admit(message, command, Instant::now()) {
            let what = "this response header asks nginx, Apache or lighttpd to send a file; it was removed, and the client \
                        got the response as it was, mostly empty";
            let hint = "let the app send its files itself: Rails config.action_dispatch.x_sendfile_header = nil, Flask \
                        USE_X_SENDFILE = False, Symfony trustXSendfileTypeHeader off, django-sendfile2's simple backend";
            let (header, path) = (command, path(exchange));
            let request_id = exchange.request_id.get().and_then(|id| id.to_str().ok()).unwrap_or("-");
            tracing::warn!(header, path, request_id, what, repeated, hint, "{message}");
        }
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
        let is_due = self.probes.failed.fetch_add(1, Ordering::Relaxed).saturating_add(1) == TOO_MANY;
        let (host, by) = self.seen(exchange);
        let given = given(&host, by, exchange);
        let path = path(exchange);
        let hint = match (refusal, by) {
            (Some(refusal), _) => refusal.hint(&given),
            (None, By::Probe(proto)) => match Failed::of(exchange, &host, proto, is_due) {
                // Whatever there is to say is said when the hosts have been compared.
                Some(failed) => match self.probes.compare.try_send(failed) {
                    Ok(()) => return,
                    Err(unsent) => unsent.into_inner().hint(&path),
                },
                None => failed_probe_hint(exchange, &path),
            },
            (None, _) => failed_probe_hint(exchange, &path),
        };
        if is_due {
            let (status, error) = (exchange.outcome(), exchange.error.get().unwrap_or("-"));
            let framework = refusal.map_or("-", Refusal::framework);
            Failing { status, error, framework, host: &host, path: &path, hint }.say();
        }
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
        (401, None) => {
            format!("the app wants to know who asks for {path}: give the health check a path that is open to all")
        }
        (500.., None) => format!("the app itself fails: find {path} in its log"),
        _ => format!("find {path} in the app's log; or is the health check's path another one?"),
    }
}

/// One line in the log, unless it has been said within the minute.
fn say_refusal(
    repeats: &Repeats,
    refusal: &Refusal,
    given: &Given<'_>,
    status: StatusCode,
    decision: &str,
    path: &str,
) {
    let (message, framework) = ("app refuses the host", refusal.framework());
    if let Some(repeated) = repeats.admit(message, framework, Instant::now()) {
        let (hint, host, status) = (refusal.hint(given), given.host, status.as_u16());
        tracing::warn!(framework, status, host, path, decision, what = %refusal, repeated, hint, "{message}");
    }
}

/// Text of a client's or an app's, not for ever.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST_PATH)]).into_owned()
}

fn path(exchange: &Exchange) -> String {
    shown_path(exchange.request.as_ref().map_or("-", |request| request.target.path()))
}

fn shown_path(path: &str) -> String {
    show(&String::from_utf8_lossy(&path.as_bytes()[..path.len().min(LONGEST_PATH)]))
}

/// The words of [`Exchange::decision`] that matter here.
const PROBE: &str = "probe";
const ALLOWED: &str = "allowed";
/// Failed health checks in a row. By default an ALB gives a target up after two; five at most are usual.
const TOO_MANY: u32 = 3;
/// Failed health checks that wait for a comparison.
const MOST_WAITING: usize = 16;
/// Bytes of a path for the log.
const LONGEST_PATH: usize = 1024;
