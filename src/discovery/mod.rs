//! Which addresses does this task have? Asks the task metadata endpoint, on a thread of its own, for as long as it
//! takes. Nothing waits for it: until it has found something, probes are recognised by the address that their
//! connection came in on and by the addresses of this machine's interfaces.
//!
//! Relies on `config` for what the environment says. What the addresses permit is left to `policy`.

pub mod document;
mod endpoint;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use reqwest::{Client, Url};
use tracing::{info, warn};

use self::document::{Document, presentable};
use self::endpoint::{Endpoint, Failure, Reason};
use crate::config::{MetadataSource, TaskIp};
use crate::policy::OwnAddresses;

/// The endpoint may come up a moment after the containers do; later, all tasks of a host share its 40 requests a
/// second.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How often the task's document is asked for when the container's has the addresses: version 3 answers 500 while any
/// other container has no network yet. Three seconds, if it answers at once.
const TRIES: u32 = 6;

/// How long a reason that has been logged is kept quiet while it goes on.
const QUIET: Duration = Duration::from_mins(1);

const HINT: &str = "set HOSTWARD_TASK_IP to the task's address to do without the endpoint, or to `off` to stop asking";
const EFFECT: &str = "asks again; meanwhile probes are known by the address that their connection came in on and by \
                      this machine's interface addresses";
const EFFECT_FOR_GOOD: &str = "does not ask; probes are known by the address that their connection came in on and by \
                               this machine's interface addresses";

const HINT_ON_WORKERS: &str = "set HOSTWARD_THREADS to the task's vCPUs";
const EFFECT_ON_WORKERS: &str = "does not ask again; there may be a worker for each CPU of this machine";

/// What discovery found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// The task's addresses.
    pub addresses: Vec<IpAddr>,
    /// Who says so, for a person: `v4 container`, `v3 task`, `HOSTWARD_TASK_IP`, ….
    pub source: &'static str,
    /// The task's CPU limit, which a container on Fargate can't see by itself. Not asked for on a single CPU.
    pub vcpus: Option<f64>,
    /// The task definition, as `family:revision`.
    pub task: Option<String>,
    /// The cluster's name.
    pub cluster: Option<String>,
    /// The availability zone.
    pub availability_zone: Option<String>,
}

/// The addresses that this machine's network interfaces have. None, with a warning, when they can't be listed.
pub fn interface_addresses() -> Vec<IpAddr> {
    let interfaces = match nix::ifaddrs::getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            warn!(
                error = %error,
                effect = "probes are known by the address their connection came in on, and by what discovery finds",
                "interface addresses unavailable"
            );
            return Vec::new();
        }
    };
    let mut addresses: Vec<IpAddr> = interfaces
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip()).to_canonical()))
        })
        .filter(|address| !address.is_unspecified())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Fills in `own.discovered`: at once where the settings or the environment name addresses, else from a thread of
/// its own, which ends when it has found some and never ends the process.
///
/// `on_found` is called once: after `own.discovered` was set and the task's CPU limit asked for, or at once, with
/// nothing, when nothing can be found out. Not at all when there is nobody to ask or `TASK_IP` is `off`.
pub fn spawn(task_ip: &TaskIp, own: Arc<OwnAddresses>, on_found: impl FnOnce(&Found) + Send + 'static) {
    let source = match task_ip {
        TaskIp::Off => return,
        TaskIp::Given(addresses) => return tell(addresses, "HOSTWARD_TASK_IP", &own, on_found),
        TaskIp::Auto(source) if !source.pod.is_empty() => return tell(&source.pod, "POD_IP", &own, on_found),
        TaskIp::Auto(source) => source,
    };
    let endpoint = match endpoint(source) {
        None => return,
        Some(Ok(endpoint)) => endpoint,
        Some(Err((uri, failure))) => {
            warn_unavailable(&uri, &failure, 1);
            return on_found(&Found::default());
        }
    };
    let thread = thread::Builder::new().name("discovery".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let found = match (runtime, endpoint::client()) {
            (Ok(runtime), Ok(client)) => runtime.block_on(discover(&client, &endpoint, &own)),
            (Err(error), _) => not_started(&error),
            (_, Err(error)) => not_started(&error),
        };
        on_found(&found);
    });
    if let Err(error) = thread {
        not_started(&error);
    }
}

/// What the environment names: v4, else v3, else v2 where only ECS itself is known.
fn endpoint(source: &MetadataSource) -> Option<Result<Endpoint, (String, Failure)>> {
    let named = [("v4", &source.v4), ("v3", &source.v3)];
    let named = named.into_iter().find_map(|(version, uri)| {
        let uri = uri.as_deref().filter(|uri| !uri.trim().is_empty())?;
        Some(Endpoint::at(version, uri).map_err(|failure| (presentable(uri).unwrap_or_default(), failure)))
    });
    let fixed = || source.on_ecs.then(|| Endpoint::v2().map_err(|failure| (String::new(), failure)));
    named.or_else(fixed)
}

/// Addresses that need no asking.
fn tell(addresses: &[IpAddr], source: &'static str, own: &OwnAddresses, on_found: impl FnOnce(&Found)) {
    let found = Found { addresses: addresses.to_vec(), source, ..Found::default() };
    publish(&found, own);
    on_found(&found);
}

/// Asks until there are addresses.
async fn discover(client: &Client, endpoint: &Endpoint, own: &OwnAddresses) -> Found {
    let mut complaints = Complaints::default();
    let mut pause = FIRST_PAUSE;
    let (mut found, task) = loop {
        match attempt(client, endpoint).await {
            Ok(found) => break found,
            Err((url, failure)) => {
                if let Some(count) = complaints.due(failure.reason, Instant::now()) {
                    warn_unavailable(&endpoint::shown(url), &failure, count);
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    };
    publish(&found, own);
    let more_than_one_cpu = thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
    let task = match (task, &endpoint.task) {
        (None, Some(url)) if more_than_one_cpu => limit(client, url).await,
        (task, _) => task,
    };
    if let Some(task) = task {
        found.vcpus = task.task_vcpus();
        found.availability_zone = task.availability_zone();
        found.task = found.task.or_else(|| task.task_definition());
        found.cluster = found.cluster.or_else(|| task.cluster());
    }
    found
}

/// Asks for the task's document until it is there, or has been asked for often enough: nothing depends on it but the
/// number of workers.
async fn limit(client: &Client, url: &Url) -> Option<Document> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        if let Ok(task) = endpoint::ask(client, url).await {
            return Some(task);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    let last = endpoint::ask(client, url).await;
    last.inspect_err(|failure| {
        warn!(uri = %endpoint::shown(url), error = %failure, effect = EFFECT_ON_WORKERS, hint = HINT_ON_WORKERS, "task CPU limit unavailable");
    })
    .ok()
}

/// Asks for addresses once: the own container's document, and the task's only when that one has none, because the
/// other containers of a task may have other addresses, and v3 answers 500 while any of them has no network yet.
async fn attempt<'a>(client: &Client, endpoint: &'a Endpoint) -> Result<(Found, Option<Document>), (&'a Url, Failure)> {
    let answer = endpoint::ask(client, &endpoint.container).await;
    let container = answer.map_err(|failure| (&endpoint.container, failure))?;
    let addresses = container.addresses();
    let (task, cluster) = (container.task_definition(), container.cluster());
    if !addresses.is_empty() {
        let source = match endpoint.version {
            "v4" => "v4 container",
            "v3" => "v3 container",
            _ => "v2 task",
        };
        // Version 2 has answered with the task's document already.
        let document = endpoint.task.is_none().then_some(container);
        return Ok((Found { addresses, source, task, cluster, ..Found::default() }, document));
    }
    let Some(url) = &endpoint.task else { return Err((&endpoint.container, Failure::no_address())) };
    let document = endpoint::ask(client, url).await.map_err(|failure| (url, failure))?;
    let addresses = document.addresses();
    if addresses.is_empty() {
        return Err((url, Failure::no_address()));
    }
    let source = if endpoint.version == "v4" { "v4 task" } else { "v3 task" };
    Ok((Found { addresses, source, task, cluster, ..Found::default() }, Some(document)))
}

fn publish(found: &Found, own: &OwnAddresses) {
    if own.discovered.set(found.addresses.clone()).is_err() {
        return; // Found before; what is in use stays.
    }
    let addresses: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
    info!(addresses = %addresses.join(", "), source = found.source, "task addresses found");
}

fn warn_unavailable(uri: &str, failure: &Failure, count: u64) {
    // The one failure that asking again can't mend.
    let effect = if failure.reason == Reason::Uri { EFFECT_FOR_GOOD } else { EFFECT };
    warn!(uri = %uri, error = %failure, count, effect, hint = HINT, "task metadata unavailable");
}

fn not_started(error: &dyn std::error::Error) -> Found {
    warn!(error = %error, effect = EFFECT_FOR_GOOD, hint = HINT, "task metadata unavailable");
    Found::default()
}

/// Which failures have been logged, so that each makes a line when it first comes and then one a minute.
#[derive(Debug, Default)]
struct Complaints(HashMap<Reason, (Instant, u64)>);

impl Complaints {
    /// Whether to log now, and how often it failed so since the last line.
    fn due(&mut self, reason: Reason, now: Instant) -> Option<u64> {
        match self.0.get_mut(&reason) {
            Some((logged, count)) if now.duration_since(*logged) < QUIET => {
                *count += 1;
                None
            }
            Some(last) => {
                let (_, quiet) = std::mem::replace(last, (now, 0));
                Some(quiet + 1)
            }
            None => {
                self.0.insert(reason, (now, 0));
                Some(1)
            }
        }
    }
}
