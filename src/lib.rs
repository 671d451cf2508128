//! hostward: a reverse-proxy sidecar that judges the `Host`, lets health checks through and says why it
//! refused.
//!
//! Data flows one way, and no two files import each other, directly or through others (`tests/layers.rs`). A file uses
//! what stands on its own floor or a lower one:
//!
//! | floor | what stands there |
//! |---|---|
//! | 5 the process | `main`, [`run`] in `lib`, [`command`] |
//! | 4 clients and operators | [`downstream`], [`worker`], [`drain`], [`admin`] |
//! | 3 the life of a request | [`proxy`] |
//! | 2 the app, bodies, and what went wrong | [`upstream`], [`body`], [`diagnosis`] |
//! | 1 foundations | [`io`], [`http2`], [`tls`], [`log`], [`metrics`], [`discovery`] |
//! | 0 settings, rules and messages, without I/O | [`config`], [`policy`], [`message`], [`error`], [`exchange`], [`networks`], [`clock`] |
//!
//! *Downstream* is the client's side, *upstream* the app's. What is deliberately absent elsewhere:
//!
//! * Only `main` reads the environment, and only [`config`] knows what it means.
//! * Only [`discovery`] talks to the task metadata endpoint.
//! * Only [`policy`] judges a host, so `explain` and the proxy can't disagree.
//! * Only [`error`] maps a failure to a status, in one `match` without `_`.
//! * Only [`proxy`] knows the order of the steps of a request's life.
//! * Nothing a client sends chooses where [`upstream`] connects: the only destination is a setting.
//! * Nothing below floor 4 knows that the process is stopping.
//! * The access log line of a request is written when its response's *body* ends or is dropped.

pub mod admin;
pub mod body;
pub mod clock;
pub mod command;
pub mod config;
pub mod diagnosis;
pub mod discovery;
pub mod downstream;
pub mod drain;
pub mod error;
pub mod exchange;
pub mod http2;
pub mod io;
pub mod log;
pub mod message;
pub mod metrics;
pub mod networks;
pub mod policy;
pub mod proxy;
pub mod tls;
pub mod upstream;
pub mod worker;

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_local;

use crate::admin::Admin;
use crate::admin::status::Status;
use crate::body::Buffering;
use crate::config::{Config, Protocol, TaskIp};
use crate::diagnosis::exposure;
use crate::diagnosis::observer::{Comparison, Probes};
use crate::diagnosis::recent::Recent;
use crate::diagnosis::refusals::Refusals;
use crate::downstream::listener;
use crate::drain::{Stage, Stop};
use crate::io::memory::{Budget, Container};
use crate::log::{Repeats, Sink};
use crate::metrics::emf::{self, Emitter, Place};
use crate::metrics::{Elsewhere, Metrics};
use crate::policy::{HostPolicy, Hosts, OwnAddresses, Policy};
use crate::tls::pair::Pair;
use crate::upstream::Limit;
use crate::worker::{Shared, Workers};

/// Serves until it is asked to stop, and has stopped. To be called on a [`worker::runtime`]. `given` is the
/// certificate that the settings name, if they name one.
///
/// # Errors
///
/// When an address can't be listened on, or there are no random numbers for TLS. What goes wrong later is answered
/// and logged.
pub async fn run(
    config: Config,
    given: Option<Pair>,
    sink: Sink,
    stops: UnboundedReceiver<Stop>,
) -> Result<(), StartError> {
    let started = Instant::now();
    let config = Arc::new(config);
    let bind =
        |setting, address| listener::bind(address).map_err(|source| StartError::Bind { setting, address, source });
    let listener = bind("HOSTWARD_LISTEN", config.listen)?;
    let admin = config.admin_listen.map(|address| bind("HOSTWARD_ADMIN_LISTEN", address)).transpose()?;

    let interfaces = discovery::interface_addresses();
    let own = Arc::new(OwnAddresses { interfaces, discovered: OnceLock::new() });
    let policy = Arc::new(Policy::new(&config.rules, Arc::clone(&own)));
    let tls = tls::begin(&config, given, &own.interfaces).map_err(|error| StartError::Tls(error.to_string()))?;
    let (stage, stages) = watch::channel(Stage::Running);
    let repeats = Arc::new(Repeats::default());
    let refusals = Arc::<Refusals>::default();
    let recent = Arc::<Recent>::default();
    let threads = Arc::new(AtomicUsize::new(first_threads(&config)));
    let container = Arc::new(Container::of_this_process());
    let budget = container.budget();
    let budget = Budget::new(budget - body::reserve(&config, budget));
    let buffering = Arc::new(Buffering::new(&config, budget.clone(), &container, Arc::clone(&repeats)));
    let most =
        config.max_connections.unwrap_or_else(|| listener::connections_from_fd_limit().min(container.connections()));
    let metrics = Arc::new(metrics(&sink, &buffering, &stages, most));
    let (place, full) = (Arc::<OnceLock<Place>>::default(), Arc::<AtomicBool>::default());
    let emitter = config.metrics.emf.then(|| emit(&metrics, &sink, &place));
    let (probes, failed_probes) = Probes::new();
    spawn_local(Comparison::new(Arc::clone(&config), Arc::clone(&repeats)).run(failed_probes));
    let shared = Shared {
        config: Arc::clone(&config),
        policy: Arc::clone(&policy),
        repeats: Arc::clone(&repeats),
        refusals: Arc::clone(&refusals),
        recent: Arc::clone(&recent),
        buffering: Arc::clone(&buffering),
        sink,
        metrics: Arc::clone(&metrics),
        probes: Arc::new(probes),
        limit: upstream_limit(&config).map(Limit::new),
        budget: budget.clone(),
        container,
        full: Arc::clone(&full),
        stage: stages.clone(),
        tls,
        started,
    };
    let workers = RefCell::new(Workers::start(shared, Arc::clone(&threads)));
    let permits = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));

    let address =
        |listener: &tokio::net::TcpListener| listener.local_addr().map_or_else(|_| "?".into(), |a| a.to_string());
    let admin_address = admin.as_ref().map_or_else(|| "off".into(), address);
    announce(&config, &own, &address(&listener), &admin_address, most, threads.load(Ordering::Relaxed));
    if let Some(admin) = admin {
        let status = Status {
            config: Arc::clone(&config),
            policy: Arc::clone(&policy),
            metrics: Arc::clone(&metrics),
            refusals: Arc::clone(&refusals),
            recent,
            listen: address(&listener),
            started,
        };
        spawn_local(Admin { config: Arc::clone(&config), policy, stage: stages.clone(), metrics, status }.serve(admin));
    }
    let at_start = Arc::clone(&buffering);
    spawn_local(async move { at_start.look().await });
    let app = config.upstream.clone();
    spawn_local(async move { exposure::watch(&app).await });
    spawn_local(summarise(Arc::clone(&repeats), refusals, config.rules.mode));
    let auto = config.threads.is_none();
    discovery::spawn(&config.task_ip, own, move |found| {
        place.set(Place::of(found)).ok();
        if auto {
            threads.store(usable_cpus(found.vcpus), Ordering::Relaxed);
        }
    });

    let accept = listener::accept(listener, permits, &budget, &full, stages, &repeats, |accepted| {
        workers.borrow_mut().hand_over(accepted);
    });
    let stop = drain::run(stops, &stage, config.drain_delay, config.shutdown_timeout, || workers.borrow().open());
    tokio::join!(accept, stop);
    workers.into_inner().join();
    if let Some(emitter) = emitter {
        emf::finish(&emitter).await;
    }
    Ok(())
}

/// Counts, and who is asked for what the workers don't count.
fn metrics(sink: &Sink, buffering: &Arc<Buffering>, stages: &watch::Receiver<Stage>, most: usize) -> Metrics {
    let (sink, buffering, stages) = (sink.clone(), Arc::clone(buffering), stages.clone());
    Metrics::new(move || Elsewhere {
        draining: *stages.borrow() != Stage::Running,
        max_connections: most,
        memory_bytes: buffering.held(),
        memory_limit_bytes: buffering.most(),
        spool_bytes: buffering.on_disk(),
        spool_limit_bytes: buffering.disk_limit(),
        spooled: buffering.spooled(),
        log_lines_dropped: sink.dropped(),
    })
}

/// Has a line for `CloudWatch` written once a minute.
fn emit(metrics: &Arc<Metrics>, sink: &Sink, place: &Arc<OnceLock<Place>>) -> Rc<RefCell<Emitter>> {
    let emitter = Rc::new(RefCell::new(Emitter::new(Arc::clone(metrics), sink.clone(), Arc::clone(place))));
    let every_minute = Rc::clone(&emitter);
    spawn_local(async move {
        loop {
            tokio::time::sleep(emf::INTERVAL).await;
            // If the log has no room, the next line tells it.
            every_minute.borrow_mut().emit();
        }
    });
    emitter
}

/// Why hostward can't start with settings that are right.
#[derive(Debug)]
pub enum StartError {
    /// An address can't be listened on.
    Bind {
        /// The setting that says so.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// TLS can't be prepared; says why.
    Tls(String),
}

impl StartError {
    /// Whether somebody else listens there.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Bind { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse)
    }

    /// What to do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Bind { .. } => "is another hostward, or the app itself, on this port?",
            Self::Tls(_) => "does this machine give random numbers?",
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { setting, address, source } => write!(f, "{setting}={address}: {source}"),
            Self::Tls(why) => write!(f, "HOSTWARD_TLS: {why}"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bind { source, .. } => Some(source),
            Self::Tls(_) => None,
        }
    }
}

/// Connections to the app. An HTTP/2 client's may bring a hundred requests, each with a connection of its own to an app
/// that speaks something older: they wait for each other before they take the descriptors that accepting needs.
fn upstream_limit(config: &Config) -> Option<usize> {
    let affordable = || (config.upstream.protocol != Protocol::H2c).then(listener::connections_from_fd_limit);
    config.upstream_max_connections.or_else(affordable)
}

/// Workers at the start. On ECS the number of CPUs that a container sees says nothing about what its task may
/// use; until discovery has found that out, one it is.
fn first_threads(config: &Config) -> usize {
    config.threads.unwrap_or_else(|| if is_on_ecs(config) { 1 } else { usable_cpus(None) })
}

fn is_on_ecs(config: &Config) -> bool {
    matches!(&config.task_ip, TaskIp::Auto(source) if source.v4.is_some() || source.v3.is_some() || source.on_ecs)
}

fn usable_cpus(limit: Option<f64>) -> usize {
    let seen = std::thread::available_parallelism().map_or(1, usize::from);
    // A part of a CPU needs a whole worker.
    (1..seen)
        .find(|cpus| limit.is_some_and(|limit| limit <= f64::from(u32::try_from(*cpus).unwrap_or(u32::MAX))))
        .unwrap_or(seen)
}

/// One line with what is true, and warnings for what will hurt.
fn announce(config: &Config, own: &OwnAddresses, listen: &str, admin: &str, max_connections: usize, threads: usize) {
    let canonical = config.rules.canonical.as_ref().and_then(|host| host.to_str().ok()).unwrap_or("-");
    let threads_from = match config.threads {
        Some(_) => "HOSTWARD_THREADS",
        None if is_on_ecs(config) => "1 until the task's CPU limit is known",
        None => "this machine's CPUs",
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen,
        admin,
        tls = config.tls.name(),
        upstream = %config.upstream,
        allowed_hosts = join(&config.rules.allowed),
        canonical_host = canonical,
        interfaces = join(&own.interfaces),
        task_ip = config.task_ip.source(),
        threads,
        threads_from,
        max_connections,
        given = config.given.join(" "),
        "started"
    );
    if !clock::is_set() {
        tracing::warn!(
            hint =
                "set the host's clock; until then, HTTP/1.0 requests, WebSockets and chunked bodies fail over HTTP/1",
            "system clock is before 1970"
        );
    }
    if config.rules.allowed.iter().any(|pattern| pattern.hosts == Hosts::Any) {
        tracing::warn!(
            hint = "name the hosts in HOSTWARD_ALLOWED_HOSTS; HOSTWARD_HOST_POLICY=report shows which ones come",
            "every host may enter"
        );
    }
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Says once a minute what was left out of the log.
async fn summarise(repeats: Arc<Repeats>, refusals: Arc<Refusals>, mode: HostPolicy) {
    let window_s = log::WINDOW.as_secs();
    loop {
        tokio::time::sleep(log::WINDOW).await;
        for (message, reason, repeated) in repeats.expire(Instant::now()) {
            tracing::warn!(reason, repeated, window_s, "{message}");
        }
        for (reason, host, repeated) in refusals.expire(Instant::now()) {
            tracing::warn!(reason, host, repeated, window_s, "{}", mode.message());
        }
    }
}
