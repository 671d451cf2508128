//! Does the host make the difference? Of a health check that the app failed in words that hostward doesn't know, it can't
//! be seen whether the app has something against its `Host`. So the app is asked the same in the background, with a `Host`
//! that most lists of hosts admit: an app's own address on the loopback interface.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, StatusCode};
use tokio::sync::mpsc::Receiver;

use super::{Failing, say_refusal, shown_path};
use crate::config::Config;
use crate::diagnosis::app_refusal::{By, Given, Refusal};
use crate::exchange::Exchange;
use crate::log::Repeats;
use crate::upstream;
use crate::upstream::connect::Connector;

/// A health check that the app failed, to be asked again.
#[derive(Debug)]
pub struct Failed {
    method: Method,
    target: PathAndQuery,
    user_agent: Option<HeaderValue>,
    client: IpAddr,
    status: StatusCode,
    /// What the app saw.
    pub(super) host: String,
    pub(super) proto: &'static str,
    /// Whether so many in a row have failed that the log has to say so.
    pub(super) is_due: bool,
}

/// What the comparison has shown.
#[derive(Clone, Debug)]
enum Finding {
    /// With another host the app's response is another one.
    Host(Refusal),
    /// With these hosts as well, it is the same.
    Same(String),
    /// Nothing: the app didn't respond, or not in the same way to the same request.
    None,
}

/// Asks the app again, one request after the other.
#[derive(Debug)]
pub struct Comparison {
    config: Arc<Config>,
    repeats: Arc<Repeats>,
    connector: Connector,
    /// By path, of the last minute.
    found: HashMap<String, (Instant, StatusCode, Finding)>,
}

impl Failed {
    /// The health check of this record, if the app may have something against its host.
    pub(super) fn of(exchange: &Exchange, host: &str, proto: &'static str, is_due: bool) -> Option<Self> {
        let status = StatusCode::from_u16(exchange.status.get()).ok()?;
        let request = exchange.request.as_ref().filter(|_| exchange.error.get().is_none())?;
        let is_safe = matches!(request.method, Method::GET | Method::HEAD);
        if !is_safe || !matches!(status.as_u16(), 400 | 403 | 404 | 421) {
            return None;
        }
        Some(Self {
            method: request.method.clone(),
            target: request.target.path_and_query().filter(|target| target.as_str().len() <= LONGEST_TARGET)?.clone(),
            user_agent: request.user_agent.clone(),
            client: exchange.client.get(),
            status,
            host: host.to_owned(),
            proto,
            is_due,
        })
    }
}

impl Comparison {
    /// For an app that is where these settings say.
    pub fn new(config: Arc<Config>, repeats: Arc<Repeats>) -> Self {
        let connector = Connector::new(&config.upstream.endpoint, config.upstream_connect_timeout, Instant::now());
        Self { config, repeats, connector, found: HashMap::new() }
    }

    /// Compares, and says in the log what that shows, as long as there are workers.
    pub async fn run(mut self, mut failed: Receiver<Failed>) {
        while let Some(failed) = failed.recv().await {
            let finding = self.find(&failed).await;
            self.say(&failed, &finding);
        }
    }

    /// Once a minute for each path, and for so many paths at most: a client that may send health checks chooses the path.
    async fn find(&mut self, failed: &Failed) -> Finding {
        let now = Instant::now();
        self.found.retain(|_, (since, ..)| now.duration_since(*since) < WINDOW);
        if let Some((_, status, finding)) = self.found.get(failed.target.as_str()) {
            return if *status == failed.status { finding.clone() } else { Finding::None };
        }
        if self.found.len() >= MOST_PATHS {
            return Finding::None;
        }
        let finding = self.compare(failed).await;
        self.found.insert(failed.target.as_str().to_owned(), (now, failed.status, finding.clone()));
        finding
    }

    async fn compare(&self, failed: &Failed) -> Finding {
        let port = self.config.upstream.port().map_or_else(String::new, |port| format!(":{port}"));
        let mut same = Vec::new();
        for name in ["localhost", "127.0.0.1"] {
            let with = format!("{name}{port}");
            let Some(status) = self.ask(failed, &with).await else { return Finding::None };
            if status == failed.status {
                same.push(with);
                continue;
            }
            // The difference may have another reason: the app may be busy, or have started meanwhile.
            let is_steady = self.ask(failed, &failed.host).await == Some(failed.status);
            let is_other = !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS;
            return if is_steady && is_other { Finding::Host(Refusal::Other { with, status }) } else { Finding::None };
        }
        Finding::Same(same.join(" and "))
    }

    /// The status of the same request with this host, if there is a response in time.
    async fn ask(&self, failed: &Failed, host: &str) -> Option<StatusCode> {
        let client = failed.client.to_string();
        let mut request = Request::builder()
            .method(failed.method.clone())
            .uri(failed.target.clone())
            .header(header::HOST, host)
            .header("x-forwarded-for", &client)
            .header("x-forwarded-proto", failed.proto)
            // Apps with a proxy in front may take this one for the host.
            .header("x-forwarded-host", host)
            .header("x-real-ip", &client)
            .header("x-request-id", REQUEST_ID)
            .header(header::CONNECTION, "close")
            .body(())
            .ok()?;
        if let Some(agent) = &failed.user_agent {
            request.headers_mut().insert(header::USER_AGENT, agent.clone());
        }
        let asked = async {
            let (socket, _) = self.connector.connect_once(None).await.ok()?;
            upstream::ask(socket, self.config.upstream.protocol, request.into_parts().0).await.ok()
        };
        tokio::time::timeout(TIMEOUT, asked).await.ok().flatten()
    }

    fn say(&self, failed: &Failed, finding: &Finding) {
        let path = shown_path(failed.target.path());
        let given = Given { host: &failed.host, by: By::Probe(failed.proto), get: failed.method == Method::GET };
        let (framework, hint) = match finding {
            Finding::Host(refusal) => {
                say_refusal(&self.repeats, refusal, &given, failed.status, "probe", &path);
                (refusal.framework(), refusal.hint(&given))
            }
            Finding::Same(hosts) => ("-", failed.hint_without_difference(&path, hosts)),
            Finding::None => ("-", failed.hint(&path)),
        };
        if failed.is_due {
            let Failed { status, host, .. } = failed;
            Failing { status: status.as_u16(), error: "-", framework, host, path: &path, hint }.say();
        }
    }
}

impl Failed {
    /// What to do when the host was seen to decide nothing.
    fn hint_without_difference(&self, path: &str, hosts: &str) -> String {
        let Self { status, host, .. } = self;
        let what = match status.as_u16() {
            403 => format!("it wants to know who asks for {path}: give the health check a path that is open to all"),
            404 => format!("it has no {path}: correct the health check's path"),
            _ => format!("find {path} in its log; or is the health check's path another one?"),
        };
        format!(
            "the app's response to {hosts} is {} as well, so unless its own list of hosts lacks them like {host}, {what}",
            status.as_u16()
        )
    }

    /// What to do when nothing is known.
    pub(super) fn hint(&self, path: &str) -> String {
        format!(
            "find {path} in the app's log: is it the health check's path, open to all, and {} a host that the app allows?",
            self.host
        )
    }
}

/// How often a path is looked into.
const WINDOW: Duration = Duration::from_mins(1);
/// Paths in a window.
const MOST_PATHS: usize = 8;
/// Bytes.
const LONGEST_TARGET: usize = 1024;
/// For one response.
const TIMEOUT: Duration = Duration::from_secs(2);
/// So that the app's log shows where the request came from.
const REQUEST_ID: &str = "hostward-compares-hosts";
