//! Settings: what was written becomes what is true ([`Config`]), or a list of every mistake ([`Mistakes`]).
//!
//! Only this module reads the environment, and only as an argument of [`load`]. One table, [`SETTINGS`], is the
//! source of the loader, of `--help`, of `hostward config` and of the README's table.

mod addresses;
mod load;
mod mistake;
mod pem;
mod reader;
mod settings;
mod tls;
mod values;

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::message::forwarding;
use crate::policy::Rules;

pub use addresses::is_metadata_address;
pub use load::load;
pub use mistake::{Mistake, Mistakes, show, visible};
pub use settings::{Default, Group, Kind, SETTINGS, Setting};
pub use tls::{Pem, Tls};

/// A good configuration.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is true.
    pub config: Config,
    /// What is strange, but no reason not to start.
    pub warnings: Vec<Mistake>,
    /// Where every value came from.
    pub sources: Sources,
}

/// What the command line gave, by the name of the variable.
#[derive(Clone, Debug, Default)]
pub struct Flags(Vec<(&'static str, OsString)>);

/// Every setting's value as it was written, in the table's order.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// One for each of [`SETTINGS`].
    pub list: Vec<Given>,
}

/// One setting's value, and where it came from.
#[derive(Clone, Debug)]
pub struct Given {
    /// The setting.
    pub setting: &'static Setting,
    /// As it was written or derived; `None` when there is none. It may be a private key.
    pub value: Option<String>,
    /// Who said so.
    pub source: Source,
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag,
    /// The environment.
    Environment,
    /// Nobody: it is the default.
    Default,
}

impl Given {
    /// The value, unless it is a key.
    pub fn shown(&self) -> Option<String> {
        self.value.as_deref().map(|value| pem::shown(self.setting, value))
    }
}

impl Flags {
    /// Takes the value of a flag; the last one counts.
    pub fn set(&mut self, variable: &'static str, value: OsString) {
        self.0.retain(|(name, _)| *name != variable);
        self.0.push((variable, value));
    }

    fn get(&self, variable: &str) -> Option<&OsString> {
        self.0.iter().find(|(name, _)| *name == variable).map(|(_, value)| value)
    }
}

impl Sources {
    fn find(&mut self, variable: &str) -> Option<&mut Given> {
        self.list.iter_mut().find(|given| given.setting.variable == variable)
    }

    /// What was given, as `NAME=value`.
    fn given(&self) -> Vec<String> {
        let given = self.list.iter().filter(|given| given.source != Source::Default);
        given.map(|given| format!("{}={}", given.setting.variable, given.shown().unwrap_or_default())).collect()
    }
}

impl Source {
    /// A stable word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::Default => "default",
        }
    }
}

/// What is true: every setting parsed, in range, and consistent with the others.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who may enter, and what the app sees.
    pub rules: Rules,
    /// What a refused request is answered.
    pub reject_status: RejectStatus,
    /// What a probe's `X-Forwarded-Proto` becomes; `None` leaves it alone.
    pub probe_proto: Option<&'static str>,
    /// Where the task's addresses come from.
    pub task_ip: TaskIp,
    /// Where the load balancer connects.
    pub listen: SocketAddr,
    /// Where `/livez` and `/readyz` are served.
    pub admin_listen: Option<SocketAddr>,
    /// Whether a PROXY header says who has connected.
    pub proxy_protocol: ProxyProtocol,
    /// Whether the load balancer speaks TLS, and by which certificate.
    pub tls: Tls,
    /// Downstream connections at once; `None` takes it from the limit on file descriptors.
    pub max_connections: Option<usize>,
    /// The app.
    pub upstream: Upstream,
    /// Bound on one attempt to connect to the app.
    pub upstream_connect_timeout: Duration,
    /// How long after hostward's start a request waits for an app that isn't listening yet.
    pub upstream_start_timeout: Duration,
    /// Bound on the wait for the app's response head.
    pub upstream_response_timeout: Duration,
    /// How long an idle connection to the app is kept.
    pub upstream_idle_timeout: Duration,
    /// Connections to the app at once; `None` is no limit.
    pub upstream_max_connections: Option<usize>,
    /// What `/readyz` asks the app for; `None` is a TCP connect.
    pub ready_path: Option<http::uri::PathAndQuery>,
    /// What the app gets to know of the client.
    pub forwarding: forwarding::Settings,
    /// Whether request bodies are read before the app is asked.
    pub buffer_requests: BufferRequests,
    /// Bytes of a request body that stay in memory.
    pub buffer_memory: usize,
    /// Where longer ones go.
    pub buffer_dir: PathBuf,
    /// Bytes of all spool files together; `None` follows the file system.
    pub buffer_disk: Option<u64>,
    /// Bytes of an answer that are read ahead of a slow client; 0 is none.
    pub buffer_responses: usize,
    /// Bytes of a request body; `None` is no limit.
    pub max_body_size: Option<u64>,
    /// Bytes of a request head.
    pub max_header_size: usize,
    /// Bytes of a response head.
    pub max_response_header_size: usize,
    /// Bound on the arrival of a whole request head.
    pub header_timeout: Duration,
    /// Bound on the wait between two reads of a request body, and on a client that doesn't take its answer.
    pub body_timeout: Duration,
    /// How long a keep-alive connection may be idle.
    pub idle_timeout: Duration,
    /// How long a tunnel may be silent.
    pub tunnel_idle_timeout: Duration,
    /// After SIGTERM: how long new connections are still accepted.
    pub drain_delay: Duration,
    /// After `drain_delay`: how long work in flight may take.
    pub shutdown_timeout: Duration,
    /// The least severe event that is logged.
    pub log_level: tracing::Level,
    /// How log lines look; `auto` has been decided.
    pub log_format: LogFormat,
    /// Which requests are logged.
    pub access_log: AccessLog,
    /// Whether probes are logged too.
    pub access_log_probes: bool,
    /// Who is told what was counted.
    pub metrics: Metrics,
    /// Worker threads; `None` is one per usable CPU.
    pub threads: Option<usize>,
    /// The variables and flags that were given (as `HOSTWARD_…=value`), for the start line.
    pub given: Vec<String>,
}

/// `HOSTWARD_REJECT_STATUS`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectStatus {
    /// An answer with this status.
    Answer(http::StatusCode),
    /// The connection is closed without an answer (nginx's 444).
    Close,
}

/// `HOSTWARD_PROXY_PROTOCOL`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// Nobody sends a header.
    Off,
    /// A trusted peer may send one.
    Optional,
    /// There are no other connections than a trusted peer's with a header.
    Required,
}

/// `HOSTWARD_TASK_IP`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskIp {
    /// Ask the task metadata endpoint that the environment names, if it names one.
    Auto(MetadataSource),
    /// Don't ask.
    Off,
    /// These, from the setting.
    Given(Vec<IpAddr>),
}

impl TaskIp {
    /// Where the addresses come from, in words.
    pub fn source(&self) -> String {
        let listed = |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::Off => "not asked for".into(),
            Self::Given(addresses) => listed(addresses),
            Self::Auto(source) => match (&source.v4, &source.v3, source.on_ecs) {
                (Some(_), ..) => "from the task metadata endpoint (version 4)".into(),
                (None, Some(_), _) => "from the task metadata endpoint (version 3)".into(),
                (None, None, true) => "from the task metadata endpoint (version 2)".into(),
                (None, None, false) if !source.pod.is_empty() => listed(&source.pod),
                (None, None, false) => "no task metadata endpoint here: this machine's own addresses".into(),
            },
        }
    }
}

/// What the environment says about discovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetadataSource {
    /// `ECS_CONTAINER_METADATA_URI_V4`
    pub v4: Option<String>,
    /// `ECS_CONTAINER_METADATA_URI`
    pub v3: Option<String>,
    /// Whether `AWS_EXECUTION_ENV` says ECS.
    pub on_ecs: bool,
    /// `POD_IP` and `POD_IPS`
    pub pod: Vec<IpAddr>,
}

/// `HOSTWARD_UPSTREAM`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// What the app speaks.
    pub protocol: Protocol,
    /// Where it listens.
    pub endpoint: Endpoint,
}

/// What the app speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 without TLS, known beforehand.
    H2c,
    /// uWSGI's own: the head as a packet of variables, the answer as HTTP/1.
    Uwsgi,
}

/// Where the app listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A name or an address, without brackets, and the port.
    Tcp {
        /// The name or address.
        host: String,
        /// The port.
        port: u16,
    },
    /// A path; of an abstract socket, its name with a NUL in front.
    Unix(PathBuf),
}

impl Upstream {
    /// The port, if it has one.
    pub fn port(&self) -> Option<u16> {
        match self.endpoint {
            Endpoint::Tcp { port, .. } => Some(port),
            Endpoint::Unix(_) => None,
        }
    }
}

impl Protocol {
    /// The scheme of its URLs.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::H2c => "h2c",
            Self::Uwsgi => "uwsgi",
        }
    }
}

/// As the setting takes it.
impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.protocol.scheme();
        match &self.endpoint {
            Endpoint::Tcp { host, port } if host.contains(':') => write!(f, "{scheme}://[{host}]:{port}"),
            Endpoint::Tcp { host, port } => write!(f, "{scheme}://{host}:{port}"),
            Endpoint::Unix(path) => write!(f, "{scheme}+unix:{}", path.to_string_lossy().replace('\0', "@")),
        }
    }
}

/// `HOSTWARD_BUFFER_REQUESTS`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferRequests {
    /// As far as there is room: what is too long streams.
    Auto,
    /// Always whole.
    On,
    /// Never.
    Off,
}

/// `HOSTWARD_LOG_FORMAT`, decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For a person at a terminal.
    Text,
}

/// `HOSTWARD_METRICS`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Whoever asks the admin port for `/metrics`.
    pub prometheus: bool,
    /// `CloudWatch`, through the log.
    pub emf: bool,
}

/// `HOSTWARD_ACCESS_LOG`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Every request.
    On,
    /// Those answered with 400 or more, and those that broke.
    Errors,
    /// None.
    Off,
}
