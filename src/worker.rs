//! The workers: one thread each with a runtime of its own, and everything of a connection on one of them.
//!
//! The first worker is the main thread; the others are started when the first connection is handed to them.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::spawn_local;

use crate::body::Buffering;
use crate::config::Config;
use crate::diagnosis::observer::{Observer, Probes};
use crate::diagnosis::recent::Recent;
use crate::diagnosis::refusals::Refusals;
use crate::downstream::listener::Accepted;
use crate::downstream::proxy_protocol::{self, Refusal};
use crate::downstream::{LAST_CALL, Parked, Server};
use crate::drain::Stage;
use crate::io::memory::{self, Budget, Container, GIVE_BACK, Held};
use crate::io::splice;
use crate::io::timers::{TICK, Timers};
use crate::log::access_log::Journal;
use crate::log::{Repeats, Sink};
use crate::message::forwarding::Ends;
use crate::metrics::{Count, Metrics};
use crate::policy::Policy;
use crate::proxy::Proxy;
use crate::proxy::read_ahead::Bounds;
use crate::tls::Tls;
use crate::upstream::connect::Connector;
use crate::upstream::{self, Limit, Upstream};

/// What all workers share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The settings.
    pub config: Arc<Config>,
    /// Who may enter.
    pub policy: Arc<Policy>,
    /// What has been said in the log already.
    pub repeats: Arc<Repeats>,
    /// The hosts that were refused.
    pub refusals: Arc<Refusals>,
    /// The last failures.
    pub recent: Arc<Recent>,
    /// Where request bodies wait until they are whole.
    pub buffering: Arc<Buffering>,
    /// Where log lines go.
    pub sink: Sink,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How the health checks go.
    pub probes: Arc<Probes>,
    /// `UPSTREAM_MAX_CONNECTIONS`.
    pub limit: Option<Arc<Limit>>,
    /// The memory that clients and the app may take.
    pub budget: Budget,
    /// The memory that there is.
    pub container: Arc<Container>,
    /// Whether all places for connections are taken.
    pub full: Arc<AtomicBool>,
    /// How far stopping has come.
    pub stage: watch::Receiver<Stage>,
    /// What the listener's TLS needs, if it speaks TLS.
    pub tls: Option<Tls>,
    /// When hostward started.
    pub started: Instant,
}

/// The workers, as the accept loop sees them.
#[derive(Debug)]
pub struct Workers {
    shared: Shared,
    first: Rc<Server>,
    first_load: Arc<AtomicUsize>,
    others: Vec<Worker>,
    /// How many there may be; grows when discovery finds out what the task may use.
    most: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Worker {
    load: Arc<AtomicUsize>,
    hand_over: UnboundedSender<(Accepted, Loaded)>,
    thread: JoinHandle<()>,
}

/// A runtime for one worker.
///
/// # Errors
///
/// The operating system's.
pub fn runtime() -> io::Result<LocalRuntime> {
    Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(DISK_THREADS)
        .build_local(LocalOptions::default())
}

impl Workers {
    /// The first worker, on this thread, and as many others as `most` says when they are needed.
    pub fn start(shared: Shared, most: Arc<AtomicUsize>) -> Self {
        let first = serve_locally(&shared);
        Self { shared, first, first_load: Arc::default(), others: Vec::new(), most }
    }

    /// Counts the connections of all workers. May be called after the workers are gone.
    pub fn open(&self) -> usize {
        let others: usize = self.others.iter().map(|worker| worker.load.load(Ordering::Relaxed)).sum();
        self.first_load.load(Ordering::Relaxed) + others
    }

    /// Gives a connection to the worker with the fewest.
    pub fn hand_over(&mut self, accepted: Accepted) {
        let least = self.others.iter().min_by_key(|worker| worker.load.load(Ordering::Relaxed));
        let load = least.map_or(usize::MAX, |worker| worker.load.load(Ordering::Relaxed));
        let first_load = self.first_load.load(Ordering::Relaxed);
        if first_load == 0 {
            return self.keep(accepted);
        }
        if load > 0 && self.others.len() + 1 < self.most.load(Ordering::Relaxed) {
            match Worker::start(self.shared.clone(), self.others.len() + 1) {
                Ok(worker) => {
                    let accepted = worker.take(accepted);
                    self.others.push(worker);
                    return accepted.map_or((), |accepted| self.keep(accepted));
                }
                Err(error) => tracing::error!(error = %error, hint = "set HOSTWARD_THREADS=1", "can't start a worker"),
            }
        }
        match least {
            Some(worker) if load < first_load => {
                if let Some(accepted) = worker.take(accepted) {
                    self.keep(accepted);
                }
            }
            _ => self.keep(accepted),
        }
    }

    /// Waits until the other workers have ended. They do, once the stage is `Cut`.
    pub fn join(self) {
        self.first.proxy.journal.flush();
        for worker in self.others {
            drop(worker.hand_over);
            // A worker that has panicked has said so.
            drop(worker.thread.join());
        }
    }

    fn keep(&self, accepted: Accepted) {
        spawn_connection(&self.first, accepted, Loaded::new(&self.first_load), self.shared.stage.clone());
    }
}

impl Worker {
    fn start(shared: Shared, number: usize) -> io::Result<Self> {
        let (hand_over, accepted) = unbounded_channel();
        let load = Arc::<AtomicUsize>::default();
        let counter = Arc::clone(&load);
        let runtime = move || match runtime() {
            Ok(runtime) => runtime.block_on(run(shared, accepted, counter)),
            Err(error) => tracing::error!(error = %error, "can't start a worker"),
        };
        let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(runtime)?;
        Ok(Self { load, hand_over, thread })
    }

    /// Gives the connection to this worker, or gives it back.
    fn take(&self, accepted: Accepted) -> Option<Accepted> {
        self.hand_over.send((accepted, Loaded::new(&self.load))).err().map(|back| back.0.0)
    }
}

/// One worker's thread.
async fn run(shared: Shared, mut accepted: UnboundedReceiver<(Accepted, Loaded)>, load: Arc<AtomicUsize>) {
    let server = serve_locally(&shared);
    while let Some((accepted, loaded)) = accepted.recv().await {
        // The socket has to be taken out of the event queue that it was accepted in.
        let Accepted { stream, remote, local, permit, socket, held } = accepted;
        match stream.into_std().and_then(TcpStream::from_std) {
            Ok(stream) => {
                let accepted = Accepted { stream, remote, local, permit, socket, held };
                spawn_connection(&server, accepted, loaded, shared.stage.clone());
            }
            Err(error) => tracing::debug!(error = %error, "can't hand a connection over"),
        }
    }
    let deadline = Instant::now() + LAST_WORDS;
    while load.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.proxy.journal.flush();
}

/// A worker's server on this thread, with the tasks that keep its time and watch the stage.
fn serve_locally(shared: &Shared) -> Rc<Server> {
    let config = &shared.config;
    let patient_until = shared.started + config.upstream_start_timeout;
    let connector = Connector::new(&config.upstream.endpoint, config.upstream_connect_timeout, patient_until);
    let meter = Rc::new(shared.metrics.meter());
    let server = Rc::new(Server {
        proxy: Proxy {
            upstream: Upstream::new(
                connector,
                config.upstream.protocol,
                config.upstream_idle_timeout,
                shared.limit.clone(),
                Rc::clone(&meter),
                Arc::clone(&shared.repeats),
                upstream::Bounds { head: config.max_response_header_size, budget: shared.budget.clone() },
            ),
            journal: Rc::new(Journal::new(
                config.access_log,
                config.access_log_probes,
                config.log_format,
                shared.sink.clone(),
            )),
            meter,
            observer: Rc::new(Observer::new(
                Arc::clone(config),
                Arc::clone(&shared.repeats),
                Arc::clone(&shared.probes),
            )),
            config: Arc::clone(config),
            policy: Arc::clone(&shared.policy),
            buffering: Arc::clone(&shared.buffering),
            repeats: Arc::clone(&shared.repeats),
            refusals: Arc::clone(&shared.refusals),
            recent: Arc::clone(&shared.recent),
            bounds: Bounds {
                read_ahead: config.buffer_responses,
                budget: shared.budget.clone(),
                buffering: Arc::clone(&shared.buffering),
            },
            plain: true,
        },
        timers: Timers::new(),
        stage: Cell::new(*shared.stage.borrow()),
        tls: shared.tls.clone(),
    });
    spawn_local(keep_time(Rc::clone(&server), Arc::clone(&shared.container), Arc::clone(&shared.full)));
    spawn_local(watch_stage(Rc::clone(&server), shared.stage.clone()));
    server
}

/// Ticks while there is anything to time or to flush, ends connections when memory is short, and sees that free memory is
/// given back.
async fn keep_time(server: Rc<Server>, container: Arc<Container>, full: Arc<AtomicBool>) {
    let Proxy { journal, upstream, meter, .. } = &server.proxy;
    let mut given_back = Instant::now();
    let (mut short_for, mut full_for) = (0, 0);
    loop {
        if server.timers.used() == 0 && journal.is_empty() && upstream.idle() == 0 {
            let used = server.timers.wait_until_used();
            if tokio::time::timeout(GIVE_BACK, used).await.is_err() {
                give_back();
                server.timers.wait_until_used().await;
            }
        }
        tokio::time::sleep(TICK).await;
        if given_back.elapsed() >= GIVE_BACK {
            give_back();
            given_back = Instant::now();
        }
        server.timers.tick().await;
        container.look(&server.proxy.bounds.budget);
        short_for = shed(&server, short_for);
        full_for = if full.load(Ordering::Relaxed) { full_for + 1 } else { 0 };
        if full_for > PATIENT_TICKS {
            server.timers.shed_oldest(TICK * PATIENT_TICKS);
        }
        upstream.expire(Instant::now());
        meter.set(Count::AppConnectionsIdle, upstream.unused());
        journal.flush();
    }
}

/// Ends connections if memory is short, as it has been for so many ticks, and slow clients if a body waits for memory.
/// Returns for how many ticks it has been short now.
fn shed(server: &Server, short_for: u32) -> u32 {
    let Proxy { bounds, repeats, .. } = &server.proxy;
    let short = bounds.budget.is_short();
    if !short && !bounds.budget.is_wanted() {
        return 0;
    }
    // Clients that go on sending, a byte at a time, are not spared for ever.
    let must = bounds.budget.is_squeezed() || short_for > PATIENT_TICKS;
    let patience = match (must, short) {
        (true, _) => TICK * 2,
        (false, true) => TICK * 5,
        (false, false) => BODY_PATIENCE,
    };
    let ended = server.timers.shed(patience, must);
    let message = "memory short";
    if ended > 0
        && let Some(repeated) = repeats.admit(message, "", Instant::now())
    {
        let (taken, budget) = (bounds.budget.taken(), bounds.budget.bytes());
        let hint = "slow or large requests hold all memory, and the slowest and largest end with 408, 431 or 503: give hostward's container more memory (`memory` in the task definition), or lower HOSTWARD_MAX_HEADER_SIZE, HOSTWARD_BUFFER_MEMORY, HOSTWARD_HEADER_TIMEOUT or HOSTWARD_BODY_TIMEOUT";
        tracing::warn!(taken, budget, ended, repeated, hint, "{message}");
    }
    if short { short_for + 1 } else { 0 }
}

/// Lets the kernel have what a busier minute took.
fn give_back() {
    memory::give_back();
    splice::give_back();
}

async fn watch_stage(server: Rc<Server>, mut stage: watch::Receiver<Stage>) {
    while stage.changed().await.is_ok() {
        server.stage.set(*stage.borrow_and_update());
        server.timers.wake_all();
    }
}

fn spawn_connection(server: &Rc<Server>, accepted: Accepted, loaded: Loaded, stage: watch::Receiver<Stage>) {
    let server = Rc::clone(server);
    let open = server.proxy.meter.open(Count::Connections, Count::ConnectionsClosed);
    let Accepted { stream, remote, local, permit, socket, held } = accepted;
    // In a box of its own: a connection's task is as large as it ever gets, for as long as it lives.
    let arrival = Box::pin(arrive(Rc::clone(&server), stream, remote, local, held, stage));
    spawn_local(async move {
        if let Some(parked) = arrival.await {
            server.serve(parked).await;
        }
        drop((permit, socket, loaded, open));
    });
}

/// What comes before a connection's first request: a PROXY header, a handshake. `None` when nothing comes behind it.
async fn arrive(
    server: Rc<Server>,
    mut stream: TcpStream,
    remote: SocketAddr,
    local: SocketAddr,
    held: Held,
    stage: watch::Receiver<Stage>,
) -> Option<Box<Parked>> {
    let client = tokio::select! {
        biased;
        client = client(&server.proxy, &mut stream, remote) => client,
        // It has not asked for anything.
        () = last_call(stage) => return None,
    };
    match client {
        Ok((remote, destination_port)) => server.accept(stream, Ends { remote, local, destination_port }, held).await,
        Err(refusal) => {
            refusal.report(remote.ip().to_canonical(), &server.proxy.repeats);
            None
        }
    }
}

/// The end of the time that a connection without a request has when hostward stops.
async fn last_call(mut stage: watch::Receiver<Stage>) {
    // Without a sender everything has ended.
    stage.wait_for(|stage| *stage >= Stage::Closing).await.ok();
    tokio::time::sleep(LAST_CALL).await;
}

/// Who is at the other end: the peer, or the client that it names in a PROXY header, with the port it has connected to.
async fn client(proxy: &Proxy, stream: &mut TcpStream, peer: SocketAddr) -> Result<(SocketAddr, Option<u16>), Refusal> {
    let Proxy { config, policy, .. } = proxy;
    let trusted = policy.trusted.contains(peer.ip());
    proxy_protocol::client(stream, peer, trusted, config.proxy_protocol, config.header_timeout).await
}

/// Counts a connection as long as it lives, also when its task panics.
#[derive(Debug)]
struct Loaded(Arc<AtomicUsize>);

impl Loaded {
    fn new(load: &Arc<AtomicUsize>) -> Self {
        load.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(load))
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long the client of a body may pause while another body waits for memory.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// Ticks for which connections that make progress are left alone while memory is short, and idle ones while others wait to
/// be accepted.
const PATIENT_TICKS: u32 = 8;
/// A worker's threads for what blocks: spooled bodies, and the app's name if it has to be looked up. They come up
/// when they are needed and go when they are idle. More of them make no disk faster.
const DISK_THREADS: usize = 4;
/// What the connections that were cut get for writing their records.
const LAST_WORDS: Duration = Duration::from_secs(1);
