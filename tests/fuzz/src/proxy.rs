//! hostward in this process: what stands between the client's socket and the app's is all its own, and it runs on this
//! thread. The client sends an input and half-closes, so that every exchange has an end.

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hostward::body::Buffering;
use hostward::config::{Config, Endpoint, Flags, LogFormat, Protocol, load};
use hostward::diagnosis::observer::{Observer, Probes};
use hostward::downstream::Server;
use hostward::drain::Stage;
use hostward::io::memory::{Budget, Container};
use hostward::io::socket::Socket;
use hostward::io::timers::{TICK, Timers};
use hostward::log::access_log::Journal;
use hostward::log::{self, Repeats, Sink};
use hostward::message::forwarding::Ends;
use hostward::metrics::{Elsewhere, Metrics};
use hostward::policy::{OwnAddresses, Policy};
use hostward::proxy::Proxy;
use hostward::proxy::read_ahead::Bounds;
use hostward::upstream::connect::Connector;
use hostward::upstream::{self, Upstream};
use hostward::worker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::LocalRuntime;
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use crate::app::{self, Record, Script};

/// A hostward with its settings, ready to be asked.
pub struct Setup {
    pub config: Arc<Config>,
    policy: Arc<Policy>,
    repeats: Arc<Repeats>,
    buffering: Arc<Buffering>,
    budget: Budget,
    remote: SocketAddr,
}

/// What became of an input.
pub struct Outcome {
    /// What the client received until the end of the connection.
    pub received: Vec<u8>,
    pub record: Record,
}

/// The address that clients connect to, which is the task's own.
pub const LOCAL: &str = "10.0.2.100:8080";

impl Setup {
    /// With these settings, for clients at `remote`.
    pub fn new(settings: &[(&str, &str)], remote: &str) -> Self {
        let variables = settings.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        let config = load(&Flags::default(), variables, false).expect("the targets' own settings are right").config;
        let own = OwnAddresses { interfaces: Vec::new(), discovered: OnceLock::new() };
        let budget = Budget::new(8 << 20);
        let repeats = Arc::new(Repeats::default());
        Self {
            policy: Arc::new(Policy::new(&config.rules, Arc::new(own))),
            buffering: Arc::new(Buffering::new(
                &config,
                budget.clone(),
                &Container::of_this_process(),
                Arc::clone(&repeats),
            )),
            config: Arc::new(config),
            repeats,
            budget,
            remote: remote.parse().expect("an address"),
        }
    }

    /// Sends `input` over a new connection, and half-closes it: at once, or, where the end of the client's side would
    /// end what is under way, when nothing more comes.
    pub fn converse(&self, input: &[u8], half_close: bool, script: Script) -> Outcome {
        RUNTIME.with(|runtime| runtime.block_on(self.talk(input, half_close, script, true)))
    }

    /// The same, with hyper for plain messages, too.
    pub fn converse_by_hyper(&self, input: &[u8], half_close: bool, script: Script) -> Outcome {
        RUNTIME.with(|runtime| runtime.block_on(self.talk(input, half_close, script, false)))
    }

    async fn talk(&self, input: &[u8], half_close: bool, script: Script, plain: bool) -> Outcome {
        // An abstract name of its own, so that nothing of one input can reach the next.
        let name = format!("\0hostward-fuzz-{}-{}", std::process::id(), NUMBER.replace(NUMBER.get() + 1));
        let listener = UnixListener::bind(&name).expect("a name of our own");
        let record = Rc::new(RefCell::new(Record::default()));
        let (stop, stopped) = oneshot::channel();
        let uwsgi = self.config.upstream.protocol == Protocol::Uwsgi;
        let app = spawn_local(app::run(listener, uwsgi, script, Rc::clone(&record), stopped));

        let server = self.server(name.into(), plain);
        let (mut client, ours) = UnixStream::pair().expect("two sockets");
        let ticking = Rc::clone(&server);
        let ticker = spawn_local(async move {
            loop {
                tokio::time::sleep(TICK).await;
                ticking.timers.tick().await;
            }
        });
        let serving = {
            let (server, remote, held) = (Rc::clone(&server), self.remote, self.budget.hold());
            spawn_local(async move {
                let local = LOCAL.parse().expect("an address");
                let ends = Ends { remote, local, destination_port: None };
                server.serve(server.arrived(Socket::Unix(ours), ends, held)).await;
            })
        };

        let mut received = Vec::new();
        let conversation = async {
            let (mut reader, mut writer) = client.split();
            let sending = async {
                // hostward may close before it has taken everything.
                writer.write_all(input).await.ok();
                if half_close {
                    writer.shutdown().await.ok();
                }
            };
            let receiving = async {
                loop {
                    let more = reader.read_buf(&mut received);
                    let more = if half_close { Ok(more.await) } else { tokio::time::timeout(QUIET, more).await };
                    if !matches!(more, Ok(Ok(1..))) {
                        break;
                    }
                }
            };
            tokio::join!(sending, receiving);
        };
        in_time("the connection", conversation).await;
        drop(client);
        in_time("hostward", serving).await.expect("a connection's task doesn't panic");
        ticker.abort();
        ticker.await.ok();
        server.proxy.journal.flush();
        // With it go the idle connections to the app, so that its own can end.
        drop(Rc::into_inner(server).expect("nobody else has the server any more"));
        stop.send(()).ok();
        in_time("the app", app).await.expect("the app's task doesn't panic");
        Outcome { received, record: Rc::into_inner(record).expect("the app has ended").into_inner() }
    }

    fn server(&self, app: PathBuf, plain: bool) -> Rc<Server> {
        let config = &self.config;
        let connector = Connector::new(&Endpoint::Unix(app), config.upstream_connect_timeout, Instant::now());
        let journal =
            Journal::new(config.access_log, config.access_log_probes, LogFormat::Json, SINK.with(Sink::clone));
        let meter = Rc::new(Metrics::new(Elsewhere::default).meter());
        let upstream = Upstream::new(
            connector,
            config.upstream.protocol,
            config.upstream_idle_timeout,
            None,
            Rc::clone(&meter),
            Arc::clone(&self.repeats),
            upstream::Bounds { head: config.max_response_header_size, budget: self.budget.clone() },
        );
        let observer = Observer::new(Arc::clone(config), Arc::clone(&self.repeats), Arc::new(Probes::new().0));
        Rc::new(Server {
            proxy: Proxy {
                upstream,
                meter,
                observer: Rc::new(observer),
                journal: Rc::new(journal),
                config: Arc::clone(config),
                policy: Arc::clone(&self.policy),
                buffering: Arc::clone(&self.buffering),
                repeats: Arc::clone(&self.repeats),
                refusals: Arc::default(),
                recent: Arc::default(),
                bounds: Bounds {
                    read_ahead: config.buffer_responses,
                    budget: self.budget.clone(),
                    buffering: Arc::clone(&self.buffering),
                },
                plain,
            },
            timers: Timers::new(),
            stage: Cell::new(Stage::Running),
            tls: None,
        })
    }
}

/// Nothing here waits for anybody else, so what takes this long never ends.
async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not come to an end"))
}

/// Where hostward's log goes: every line of it must be one JSON object, whatever clients and apps have sent.
struct Judge(Vec<u8>);

impl Write for Judge {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            let object = serde_json::from_slice::<serde_json::Value>(line).is_ok_and(|line| line.is_object());
            assert!(object, "a log line that is no JSON object: {}", line.escape_ascii());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

thread_local! {
    static RUNTIME: LocalRuntime = worker::runtime().expect("a runtime");
    static NUMBER: Cell<u64> = const { Cell::new(0) };
    static SINK: Sink = {
        let sink = Sink::start(Judge(Vec::new()), LogFormat::Json).expect("a thread");
        log::install(sink.clone(), LogFormat::Json, tracing::Level::WARN);
        sink
    };
}

const PATIENCE: Duration = Duration::from_secs(10);
/// Far longer than anything takes on one thread.
const QUIET: Duration = Duration::from_millis(20);
