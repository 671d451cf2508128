//! The settings, in one table: the loader, `--help`, `hostward config` and the README's table are made from it.
//!
//! A setting is here when it works, and not before: nothing is accepted and then ignored.

use std::fmt;
use std::time::Duration;

/// One setting: a variable `HOSTWARD_NAME` and a flag `--name`.
#[derive(Debug)]
pub struct Setting {
    /// The variable's name.
    pub variable: &'static str,
    /// Where `--help` and the README list it.
    pub group: Group,
    /// What it takes.
    pub kind: Kind,
    /// The value when nothing is given, read like a given one.
    pub default: Default,
    /// A value that is right.
    pub example: &'static str,
    /// What it means, in a few words.
    pub meaning: &'static str,
}

/// What a setting is when neither a flag nor a variable gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// This text.
    Is(&'static str),
    /// Nothing; the text says what that amounts to.
    Unset(&'static str),
    /// It must be given.
    Required,
}

/// What a setting takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A number with a unit, within bounds.
    Duration(Duration, Duration),
    /// Bytes, within bounds.
    Size(u64, u64),
    /// Bytes, within bounds, or 0 for no limit.
    SizeOrNone(u64, u64),
    /// Bytes, within bounds, or a word.
    SizeOr(&'static str, u64, u64),
    /// A whole number, within bounds, or a word.
    Count(&'static str, usize, usize),
    /// One of these words.
    Word(&'static [&'static str]),
    /// `on` or `off`, and what else people write for these.
    Switch,
    /// Items between commas or white space.
    List(&'static str),
    /// Something with a parser of its own.
    Text(&'static str),
}

/// The groups, in the order of a request's way through hostward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Who may enter.
    Hosts,
    /// Towards the load balancer.
    Listening,
    /// Towards the app.
    Upstream,
    /// What is said about the client.
    Forwarding,
    /// How much and how long.
    Limits,
    /// After SIGTERM.
    Stopping,
    /// What is written down.
    Logging,
    /// The program itself.
    Process,
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
/// Below this a timeout doesn't bound a wait, it breaks ordinary traffic between two availability zones.
const LEAST_WAIT: Duration = Duration::from_millis(100);

/// Every setting there is.
pub const SETTINGS: &[Setting] = &[
    Setting {
        variable: "HOSTWARD_ALLOWED_HOSTS",
        group: Group::Hosts,
        kind: Kind::List("hosts"),
        default: Default::Required,
        example: "www.example.com",
        meaning: "who may enter: www.example.com, .example.com (with subdomains), *.example.com (subdomains only), an IP, a CIDR, or * (any); with :port only with that port",
    },
    Setting {
        variable: "HOSTWARD_CANONICAL_HOST",
        group: Group::Hosts,
        kind: Kind::Text("host"),
        default: Default::Unset("the first concrete allowed host"),
        example: "www.example.com",
        meaning: "what the app sees on a load balancer's probe",
    },
    Setting {
        variable: "HOSTWARD_HOST_REWRITE",
        group: Group::Hosts,
        kind: Kind::Word(&["preserve", "canonical"]),
        default: Default::Is("preserve"),
        example: "canonical",
        meaning: "whether an allowed host passes byte for byte or the app sees the canonical one",
    },
    Setting {
        variable: "HOSTWARD_HOST_POLICY",
        group: Group::Hosts,
        kind: Kind::Word(&["enforce", "report"]),
        default: Default::Is("enforce"),
        example: "report",
        meaning: "report forwards what would be refused, unchanged, and logs it",
    },
    Setting {
        variable: "HOSTWARD_REJECT_STATUS",
        group: Group::Hosts,
        kind: Kind::Word(&["400", "403", "404", "421", "444"]),
        default: Default::Is("421"),
        example: "403",
        meaning: "the answer to a foreign host; 444 closes the connection without one",
    },
    Setting {
        variable: "HOSTWARD_PROBE_HOSTS",
        group: Group::Hosts,
        kind: Kind::List("tokens"),
        default: Default::Is("self,peer"),
        example: "self,peer,missing",
        meaning: "which hosts are a load balancer's probe: self (this task's addresses, and localhost from the task itself), peer (the peer's own, as an NLB's), missing (no Host, as a Classic ELB's), a CIDR or IP, or none",
    },
    Setting {
        variable: "HOSTWARD_PROBE_PROTO",
        group: Group::Hosts,
        kind: Kind::Word(&["https", "http", "off"]),
        default: Default::Is("https"),
        example: "http",
        meaning: "X-Forwarded-Proto on a probe, so that an app that insists on HTTPS doesn't redirect it",
    },
    Setting {
        variable: "HOSTWARD_TASK_IP",
        group: Group::Hosts,
        kind: Kind::List("auto, off or addresses"),
        default: Default::Is("auto"),
        example: "10.0.2.100",
        meaning: "this task's addresses: auto asks the task metadata endpoint",
    },
    Setting {
        variable: "HOSTWARD_LISTEN",
        group: Group::Listening,
        kind: Kind::Text("address"),
        default: Default::Is("[::]:8080"),
        example: "0.0.0.0:8080",
        meaning: "where the load balancer connects; [::] takes IPv4 too",
    },
    Setting {
        variable: "HOSTWARD_ADMIN_LISTEN",
        group: Group::Listening,
        kind: Kind::Text("address or off"),
        default: Default::Is("127.0.0.1:9797"),
        example: "127.0.0.1:9797",
        meaning: "where /livez, /readyz, /status and /metrics are served",
    },
    Setting {
        variable: "HOSTWARD_PROXY_PROTOCOL",
        group: Group::Listening,
        kind: Kind::Word(&["off", "optional", "required"]),
        default: Default::Is("off"),
        example: "required",
        meaning: "whether trusted proxies say in a PROXY header (v1 or v2) who has connected to them, as a Network Load Balancer can; optional admits connections without one",
    },
    Setting {
        variable: "HOSTWARD_TLS",
        group: Group::Listening,
        kind: Kind::Word(&["off", "self-signed", "files"]),
        default: Default::Is("off"),
        example: "self-signed",
        meaning: "whether the load balancer speaks TLS to hostward; self-signed makes a key at the start (an ALB doesn't check it)",
    },
    Setting {
        variable: "HOSTWARD_TLS_CERT",
        group: Group::Listening,
        kind: Kind::Text("path or PEM"),
        default: Default::Unset("none"),
        example: "/run/secrets/tls.pem",
        meaning: "for TLS=files: the certificate with its chain, as a path or the PEM itself; a file is read again when it changes",
    },
    Setting {
        variable: "HOSTWARD_TLS_KEY",
        group: Group::Listening,
        kind: Kind::Text("path or PEM"),
        default: Default::Unset("none"),
        example: "/run/secrets/tls.key",
        meaning: "for TLS=files: the certificate's private key (PKCS#8, SEC 1 or PKCS#1), likewise",
    },
    Setting {
        variable: "HOSTWARD_MAX_CONNECTIONS",
        group: Group::Listening,
        // A million sockets is what a process may open where nobody limits it (fs.nr_open).
        kind: Kind::Count("auto", 1, 1 << 20),
        default: Default::Is("auto"),
        example: "10000",
        meaning: "connections at once, beyond which they wait; auto takes it from the limit on file descriptors",
    },
    Setting {
        variable: "HOSTWARD_UPSTREAM",
        group: Group::Upstream,
        kind: Kind::Text("URL"),
        default: Default::Is("http://127.0.0.1:8000"),
        example: "http://127.0.0.1:8000",
        meaning: "the app: http://host:port, h2c://host:port (HTTP/2, as gRPC needs it) or uwsgi://host:port; at a path, http+unix:/path (@name in place of the path: in the abstract namespace), h2c+unix: or uwsgi+unix:",
    },
    Setting {
        variable: "HOSTWARD_UPSTREAM_CONNECT_TIMEOUT",
        group: Group::Upstream,
        // The app is in the same task: a minute is more than a kernel tries, 10 ms less than a busy one needs.
        kind: Kind::Duration(Duration::from_millis(10), MINUTE),
        // While the app's listen queue is full, a SYN is sent again after 1, 3 and 7 s.
        default: Default::Is("10s"),
        example: "2s",
        meaning: "how long one attempt to connect to the app may take, as when its listen queue is full; 504 after it",
    },
    Setting {
        variable: "HOSTWARD_UPSTREAM_START_TIMEOUT",
        group: Group::Upstream,
        // 0s doesn't wait. ECS gives a task that starts slowly an hour at most and usually minutes.
        kind: Kind::Duration(Duration::ZERO, HOUR),
        default: Default::Is("30s"),
        example: "2m",
        meaning: "how long a request waits for an app that isn't listening yet, counted from hostward's start",
    },
    Setting {
        variable: "HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT",
        group: Group::Upstream,
        // Long polls and reports: an ALB's own bound ends at 4000 s, a Network Load Balancer has none.
        kind: Kind::Duration(LEAST_WAIT, DAY),
        default: Default::Is("60s"),
        example: "5m",
        meaning: "how long the app may take to the head of its response; 504 after it",
    },
    Setting {
        variable: "HOSTWARD_UPSTREAM_IDLE_TIMEOUT",
        group: Group::Upstream,
        // 0s reuses no connection.
        kind: Kind::Duration(Duration::ZERO, HOUR),
        default: Default::Is("1500ms"),
        example: "4s",
        meaning: "how long an idle connection to the app is kept; below gunicorn's 2 s",
    },
    Setting {
        variable: "HOSTWARD_UPSTREAM_MAX_CONNECTIONS",
        group: Group::Upstream,
        // No more ports to one destination.
        kind: Kind::Count("0", 1, 65_535),
        default: Default::Is("0"),
        example: "4",
        meaning: "connections to the app at once, WebSockets included (with h2c: requests); 0 is as many as the file descriptors allow",
    },
    Setting {
        variable: "HOSTWARD_READY_PATH",
        group: Group::Upstream,
        kind: Kind::Text("path"),
        default: Default::Unset("a TCP connect"),
        example: "/healthz",
        meaning: "what /readyz asks the app for, with the canonical host",
    },
    Setting {
        variable: "HOSTWARD_TRUSTED_PROXIES",
        group: Group::Forwarding,
        kind: Kind::List("CIDRs, private or none"),
        default: Default::Is("private"),
        example: "10.0.0.0/16",
        meaning: "whose X-Forwarded-* fields are believed",
    },
    Setting {
        variable: "HOSTWARD_FORWARDED",
        group: Group::Forwarding,
        kind: Kind::Switch,
        default: Default::Is("off"),
        example: "on",
        meaning: "whether the app gets an RFC 7239 Forwarded field too",
    },
    Setting {
        variable: "HOSTWARD_CLIENT_PROTO",
        group: Group::Forwarding,
        kind: Kind::Word(&["auto", "https", "http"]),
        default: Default::Is("auto"),
        example: "https",
        meaning: "the client's scheme when no trusted proxy says it: https behind a TLS listener of a Network Load Balancer, or CloudFront with an HTTP origin; auto is what the peer speaks to hostward",
    },
    Setting {
        variable: "HOSTWARD_CLIENT_IP_HEADER",
        group: Group::Forwarding,
        kind: Kind::Text("header name"),
        default: Default::Unset("X-Forwarded-For"),
        example: "CloudFront-Viewer-Address",
        meaning: "the header in which a trusted proxy sends the client's address, with or without a port, as CF-Connecting-IP and True-Client-IP; removed when another peer sends it",
    },
    Setting {
        variable: "HOSTWARD_PASS_HEADERS",
        group: Group::Forwarding,
        kind: Kind::List("header names"),
        default: Default::Unset("none"),
        example: "X-Forwarded-User",
        meaning: "headers that pass from trusted proxies though they are removed from everybody: X-Forwarded-User (oauth2-proxy), X-Forwarded-Prefix and the like",
    },
    Setting {
        variable: "HOSTWARD_TRACE_CONTEXT",
        group: Group::Forwarding,
        kind: Kind::Word(&["off", "derive"]),
        default: Default::Is("off"),
        example: "derive",
        meaning: "derive writes a W3C traceparent with the trace id of a trusted proxy's X-Amzn-Trace-Id when a request has none",
    },
    Setting {
        variable: "HOSTWARD_BUFFER_REQUESTS",
        group: Group::Limits,
        kind: Kind::Word(&["auto", "on", "off"]),
        default: Default::Is("auto"),
        example: "off",
        meaning: "whether a request body is read before the app is asked: auto spools a long one to BUFFER_DIR, or streams it where that can't be written; on never streams; off always does",
    },
    Setting {
        variable: "HOSTWARD_BUFFER_MEMORY",
        group: Group::Limits,
        // Below a page nothing is saved; what is above the process's own bound goes to BUFFER_DIR anyway.
        kind: Kind::Size(1 << 10, 1 << 30),
        default: Default::Is("1MiB"),
        example: "256KiB",
        meaning: "up to which length a request body stays in memory; it counts in the memory budget (three eighths of the container's memory)",
    },
    Setting {
        variable: "HOSTWARD_BUFFER_DIR",
        group: Group::Limits,
        kind: Kind::Text("directory"),
        default: Default::Is("/tmp"),
        example: "/tmp",
        meaning: "where longer ones go, in files without a name",
    },
    Setting {
        variable: "HOSTWARD_BUFFER_DISK",
        group: Group::Limits,
        // Less than BUFFER_MEMORY's default spools nothing; a pebibyte is more than a task's disk.
        kind: Kind::SizeOr("auto", 1 << 20, 1 << 50),
        default: Default::Is("auto"),
        example: "10GiB",
        meaning: "how much disk space all spooled bodies may take together, 503 beyond it; auto is half of what is free, on a tmpfs at most an eighth of the container's memory, and streams a body that is announced to be longer where BUFFER_REQUESTS=auto",
    },
    Setting {
        variable: "HOSTWARD_BUFFER_RESPONSES",
        group: Group::Limits,
        // Every slow client may take this much, up to the process's bound; a gibibyte is more than a task has.
        kind: Kind::SizeOrNone(1 << 10, 1 << 30),
        default: Default::Is("1MiB"),
        example: "256KiB",
        meaning: "how far a response is read ahead of a slow client in memory, so that the app's worker is free; the rest goes to BUFFER_DIR; 0 reads nothing ahead",
    },
    Setting {
        variable: "HOSTWARD_MAX_BODY_SIZE",
        group: Group::Limits,
        // A byte serves in tests; a pebibyte is more than a task's disk or a day's traffic.
        kind: Kind::SizeOrNone(1, 1 << 50),
        default: Default::Is("0"),
        example: "10MiB",
        meaning: "the longest request body, 413 above it; 0 is no limit",
    },
    Setting {
        variable: "HOSTWARD_MAX_HEADER_SIZE",
        group: Group::Limits,
        // 1 MiB times the connections is memory for an attacker to take.
        kind: Kind::Size(1 << 10, 1 << 20),
        default: Default::Is("64KiB"),
        example: "128KiB",
        meaning: "the longest request head, 431 above it",
    },
    Setting {
        variable: "HOSTWARD_MAX_RESPONSE_HEADER_SIZE",
        group: Group::Limits,
        // The app's heads are in memory while they are read: 4 MiB is more than any client takes.
        kind: Kind::Size(1 << 10, 4 << 20),
        default: Default::Is("256KiB"),
        example: "512KiB",
        meaning: "the longest response head that the app may send, 502 above it",
    },
    Setting {
        variable: "HOSTWARD_HEADER_TIMEOUT",
        group: Group::Limits,
        kind: Kind::Duration(LEAST_WAIT, HOUR),
        default: Default::Is("15s"),
        example: "10s",
        meaning: "how long a whole request head may take; 408 after it",
    },
    Setting {
        variable: "HOSTWARD_BODY_TIMEOUT",
        group: Group::Limits,
        kind: Kind::Duration(LEAST_WAIT, HOUR),
        default: Default::Is("60s"),
        example: "30s",
        meaning: "the wait between two reads of a request body, 408 after it; also for a client that doesn't take its answer",
    },
    Setting {
        variable: "HOSTWARD_IDLE_TIMEOUT",
        group: Group::Limits,
        // An ALB's own longest is 4000 s, but 60 s by default.
        kind: Kind::Duration(LEAST_WAIT, Duration::from_hours(2)),
        default: Default::Is("75s"),
        example: "75s",
        meaning: "how long a keep-alive connection may be idle; above the ALB's 60 s",
    },
    Setting {
        variable: "HOSTWARD_TUNNEL_IDLE_TIMEOUT",
        group: Group::Limits,
        kind: Kind::Duration(LEAST_WAIT, DAY),
        default: Default::Is("1h"),
        example: "10m",
        meaning: "how long a WebSocket may be silent",
    },
    Setting {
        variable: "HOSTWARD_DRAIN_DELAY",
        group: Group::Stopping,
        // 0s closes the listener at once. An ALB's deregistration delay is an hour at most.
        kind: Kind::Duration(Duration::ZERO, HOUR),
        default: Default::Is("5s"),
        example: "10s",
        meaning: "after SIGTERM: not ready, but still accepting",
    },
    Setting {
        variable: "HOSTWARD_SHUTDOWN_TIMEOUT",
        group: Group::Stopping,
        // 0s cuts everything.
        kind: Kind::Duration(Duration::ZERO, HOUR),
        default: Default::Is("20s"),
        example: "90s",
        meaning: "after that: how long work in flight may take; 5 + 20 stay below ECS's 30 s",
    },
    Setting {
        variable: "HOSTWARD_LOG_LEVEL",
        group: Group::Logging,
        kind: Kind::Word(&["error", "warn", "info", "debug", "trace"]),
        default: Default::Is("info"),
        example: "debug",
        meaning: "the least severe event that is logged",
    },
    Setting {
        variable: "HOSTWARD_LOG_FORMAT",
        group: Group::Logging,
        kind: Kind::Word(&["auto", "json", "text"]),
        default: Default::Is("auto"),
        example: "json",
        meaning: "auto is text on a terminal, else json",
    },
    Setting {
        variable: "HOSTWARD_ACCESS_LOG",
        group: Group::Logging,
        kind: Kind::Word(&["on", "errors", "off"]),
        default: Default::Is("on"),
        example: "errors",
        meaning: "which requests are logged; errors are those answered with 400 or more, and those that broke",
    },
    Setting {
        variable: "HOSTWARD_ACCESS_LOG_PROBES",
        group: Group::Logging,
        kind: Kind::Switch,
        default: Default::Is("off"),
        example: "on",
        meaning: "whether probes are logged too",
    },
    Setting {
        variable: "HOSTWARD_METRICS",
        group: Group::Logging,
        kind: Kind::List("prometheus, emf, or off"),
        default: Default::Is("prometheus"),
        example: "prometheus,emf",
        meaning: "prometheus serves /metrics on the admin port, emf writes a line for CloudWatch once a minute; both may be given",
    },
    Setting {
        variable: "HOSTWARD_THREADS",
        group: Group::Process,
        kind: Kind::Count("auto", 1, 1024),
        default: Default::Is("auto"),
        example: "2",
        meaning: "worker threads; auto is one for each usable CPU",
    },
    Setting {
        variable: "HOSTWARD_STRICT",
        group: Group::Process,
        kind: Kind::Switch,
        default: Default::Is("on"),
        example: "off",
        meaning: "off: an unknown HOSTWARD_ variable is a warning and not a mistake",
    },
];

/// What every variable's name begins with.
pub(super) const PREFIX: &str = "HOSTWARD_";

impl Setting {
    /// The setting that a variable's name stands for.
    pub fn find(variable: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.variable == variable)
    }

    /// `ALLOWED_HOSTS`
    pub fn name(&self) -> &'static str {
        self.variable.strip_prefix(PREFIX).unwrap_or(self.variable)
    }

    /// `allowed-hosts`
    pub fn flag(&self) -> String {
        self.name().to_ascii_lowercase().replace('_', "-")
    }
}

impl Group {
    /// The heading in `--help`.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Hosts => "Who may enter",
            Self::Listening => "Towards the load balancer",
            Self::Upstream => "Towards the app",
            Self::Forwarding => "What the app is told about the client",
            Self::Limits => "Limits",
            Self::Stopping => "Stopping",
            Self::Logging => "Logging",
            Self::Process => "The process",
        }
    }
}

impl Kind {
    /// What stands for the value in `--help`.
    pub fn placeholder(&self) -> &'static str {
        match self {
            Self::Duration(..) => "DURATION",
            Self::Size(..) | Self::SizeOrNone(..) | Self::SizeOr(..) => "SIZE",
            Self::Count(..) => "NUMBER",
            Self::Word(_) => "WORD",
            Self::Switch => "on|off",
            Self::List(_) => "LIST",
            Self::Text(what) if what.starts_with("address") => "ADDRESS",
            Self::Text("URL") => "URL",
            Self::Text("path" | "directory") => "PATH",
            Self::Text("path or PEM") => "PATH|PEM",
            Self::Text("header name") => "NAME",
            Self::Text(_) => "HOST",
        }
    }
}

/// What is expected, as in "expected …".
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duration(least, most) => write!(f, "{} to {}", show_duration(*least), show_duration(*most)),
            Self::Size(least, most) => write!(f, "{} to {}", show_size(*least), show_size(*most)),
            Self::SizeOrNone(least, most) => write!(f, "{} to {}, or 0", show_size(*least), show_size(*most)),
            Self::SizeOr(word, least, most) => {
                write!(f, "{} to {}, or {word}", show_size(*least), show_size(*most))
            }
            Self::Count(word, least, most) => write!(f, "{least} to {most}, or {word}"),
            Self::Word(words) => match words.split_last() {
                Some((last, rest)) if !rest.is_empty() => write!(f, "{} or {last}", rest.join(", ")),
                _ => f.write_str(&words.concat()),
            },
            Self::Switch => f.write_str("on or off"),
            Self::List(what) | Self::Text(what) => f.write_str(what),
        }
    }
}

/// The largest unit that leaves a whole number: the form that a setting takes.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, name) in [(HOUR, "h"), (MINUTE, "m"), (SECOND, "s")] {
        if millis != 0 && millis.is_multiple_of(unit.as_millis()) {
            return format!("{}{name}", millis / unit.as_millis());
        }
    }
    if millis == 0 { "0s".into() } else { format!("{}ms", millis / MS.as_millis()) }
}

/// The largest binary unit that leaves a whole number: the form that a setting takes.
pub(super) fn show_size(bytes: u64) -> String {
    for (shift, name) in [(50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{name}", bytes >> shift);
        }
    }
    if bytes == 1 { "1 byte".into() } else { format!("{bytes} bytes") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_name_of_its_own_with_the_prefix_and_a_flag() {
        for (at, setting) in SETTINGS.iter().enumerate() {
            assert!(setting.variable.starts_with(PREFIX), "{}", setting.variable);
            assert!(SETTINGS[..at].iter().all(|other| other.variable != setting.variable), "{}", setting.variable);
            assert!(setting.flag().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{}", setting.flag());
            assert!(!setting.meaning.contains('|'), "{} would break the README's table", setting.variable);
        }
    }

    #[test]
    fn bounds_are_shown_as_they_are_written() {
        for (millis, text) in
            [(0, "0s"), (1500, "1500ms"), (75_000, "75s"), (60_000, "1m"), (3_600_000, "1h"), (86_400_000, "24h")]
        {
            assert_eq!(show_duration(Duration::from_millis(millis)), text);
        }
        for (bytes, text) in [(0, "0 bytes"), (1, "1 byte"), (8192, "8KiB"), (1 << 20, "1MiB"), (1 << 50, "1PiB")] {
            assert_eq!(show_size(bytes), text);
        }
    }
}
