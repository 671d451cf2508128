//! Flags and environment become a [`Config`], or the list of every mistake in them.
//!
//! The environment is an argument: nothing here asks the process for it. What a single value must look like is
//! said in `settings`, `values` and `addresses`; here is what they have to do with each other.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};

use super::mistake::{Mistake, Mistakes};
use super::pem::is_pem;
use super::reader::Reader;
use super::settings::Kind;
use super::values::{self, Fault};
use super::{
    AccessLog, BufferRequests, Config, Endpoint, Flags, Loaded, LogFormat, MetadataSource, Metrics, Protocol,
    ProxyProtocol, RejectStatus, TaskIp, Upstream, addresses,
};
use crate::message::names::{Name, X_FORWARDED_FOR, X_REAL_IP};
use crate::message::{fields, forwarding};
use crate::networks::Networks;
use crate::policy::{HostPattern, HostPolicy, HostRewrite, Hosts, ProbeHosts, Rules};

/// Reads every setting.
///
/// # Errors
///
/// All the mistakes at once.
pub fn load(
    flags: &Flags,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    stdout_is_terminal: bool,
) -> Result<Loaded, Mistakes> {
    let environment: HashMap<String, OsString> =
        environment.into_iter().map(|(name, value)| (name.to_string_lossy().into_owned(), value)).collect();
    let mut reader = Reader::new(flags, &environment);
    let strict = reader.switch("HOSTWARD_STRICT", true);
    reader.refuse_unknown(&environment, strict);
    let metadata = reader.metadata(&environment);
    let config = reader.config(metadata, stdout_is_terminal);
    let Reader { sources, mistakes, warnings, .. } = reader;
    if mistakes.is_empty() {
        Ok(Loaded { config, warnings, sources })
    } else {
        Err(Mistakes { list: mistakes, sources, config: Box::new(config) })
    }
}

impl Reader {
    fn config(&mut self, metadata: MetadataSource, stdout_is_terminal: bool) -> Config {
        let config = Config {
            rules: self.rules(),
            reject_status: match self.word("HOSTWARD_REJECT_STATUS") {
                "444" => RejectStatus::Close,
                code => RejectStatus::Answer(
                    StatusCode::from_bytes(code.as_bytes()).unwrap_or(StatusCode::MISDIRECTED_REQUEST),
                ),
            },
            probe_proto: match self.word("HOSTWARD_PROBE_PROTO") {
                "off" => None,
                proto => Some(proto),
            },
            task_ip: self.task_ip(metadata),
            listen: self
                .read("HOSTWARD_LISTEN", |_, text| addresses::socket_address(text))
                .unwrap_or(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))),
            admin_listen: self
                .read("HOSTWARD_ADMIN_LISTEN", |_, text| {
                    if text.eq_ignore_ascii_case("off") {
                        return Ok(None);
                    }
                    addresses::socket_address(text).map(Some)
                })
                .flatten(),
            proxy_protocol: match self.word("HOSTWARD_PROXY_PROTOCOL") {
                "optional" => ProxyProtocol::Optional,
                "required" => ProxyProtocol::Required,
                _ => ProxyProtocol::Off,
            },
            tls: self.tls(),
            max_connections: self.count("HOSTWARD_MAX_CONNECTIONS"),
            upstream: self.read("HOSTWARD_UPSTREAM", |_, text| addresses::upstream(text)).unwrap_or_else(nowhere),
            upstream_connect_timeout: self.duration("HOSTWARD_UPSTREAM_CONNECT_TIMEOUT"),
            upstream_start_timeout: self.duration("HOSTWARD_UPSTREAM_START_TIMEOUT"),
            upstream_response_timeout: self.duration("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT"),
            upstream_idle_timeout: self.duration("HOSTWARD_UPSTREAM_IDLE_TIMEOUT"),
            upstream_max_connections: self.count("HOSTWARD_UPSTREAM_MAX_CONNECTIONS"),
            ready_path: self.read("HOSTWARD_READY_PATH", |_, text| addresses::path(text)),
            forwarding: self.forwarding(),
            buffer_responses: usize::try_from(self.size("HOSTWARD_BUFFER_RESPONSES")).unwrap_or(usize::MAX),
            buffer_requests: match self.word("HOSTWARD_BUFFER_REQUESTS") {
                "on" => BufferRequests::On,
                "off" => BufferRequests::Off,
                _ => BufferRequests::Auto,
            },
            buffer_memory: usize::try_from(self.size("HOSTWARD_BUFFER_MEMORY")).unwrap_or(usize::MAX),
            buffer_dir: self
                .read("HOSTWARD_BUFFER_DIR", |_, text| match Path::new(text) {
                    path if path.is_absolute() => Ok(path.to_owned()),
                    _ => Err(Fault::new("expected a directory's whole path, from /")),
                })
                .unwrap_or_default(),
            buffer_disk: self
                .read("HOSTWARD_BUFFER_DISK", |kind, text| match kind {
                    Kind::SizeOr(word, ..) if text.eq_ignore_ascii_case(word) => Ok(None),
                    _ => values::size(text, kind).map(Some),
                })
                .flatten(),
            max_body_size: Some(self.size("HOSTWARD_MAX_BODY_SIZE")).filter(|bytes| *bytes != 0),
            max_header_size: usize::try_from(self.size("HOSTWARD_MAX_HEADER_SIZE")).unwrap_or(usize::MAX),
            max_response_header_size: usize::try_from(self.size("HOSTWARD_MAX_RESPONSE_HEADER_SIZE"))
                .unwrap_or(usize::MAX),
            header_timeout: self.duration("HOSTWARD_HEADER_TIMEOUT"),
            body_timeout: self.duration("HOSTWARD_BODY_TIMEOUT"),
            idle_timeout: self.duration("HOSTWARD_IDLE_TIMEOUT"),
            tunnel_idle_timeout: self.duration("HOSTWARD_TUNNEL_IDLE_TIMEOUT"),
            drain_delay: self.duration("HOSTWARD_DRAIN_DELAY"),
            shutdown_timeout: self.duration("HOSTWARD_SHUTDOWN_TIMEOUT"),
            log_level: match self.word("HOSTWARD_LOG_LEVEL") {
                "error" => tracing::Level::ERROR,
                "warn" => tracing::Level::WARN,
                "debug" => tracing::Level::DEBUG,
                "trace" => tracing::Level::TRACE,
                _ => tracing::Level::INFO,
            },
            log_format: match self.word("HOSTWARD_LOG_FORMAT") {
                "text" => LogFormat::Text,
                "auto" if stdout_is_terminal => LogFormat::Text,
                _ => LogFormat::Json,
            },
            access_log: match self.word("HOSTWARD_ACCESS_LOG") {
                "errors" => AccessLog::Errors,
                "off" => AccessLog::Off,
                _ => AccessLog::On,
            },
            access_log_probes: self.switch("HOSTWARD_ACCESS_LOG_PROBES", false),
            metrics: self.metrics(),
            threads: self.count("HOSTWARD_THREADS"),
            given: self.sources.given(),
        };
        self.compare(&config);
        config
    }

    fn rules(&mut self) -> Rules {
        let mut allowed = Vec::new();
        self.each("HOSTWARD_ALLOWED_HOSTS", &[], |item| {
            allowed.push(item.parse::<HostPattern>().map_err(Fault::new)?);
            Ok(())
        });
        if self.missing("HOSTWARD_ALLOWED_HOSTS") && !self.meant.contains(&"HOSTWARD_ALLOWED_HOSTS") {
            let hint = "Say which hosts may enter. Example: www.example.com.";
            self.mistakes.push(Mistake::new("HOSTWARD_ALLOWED_HOSTS", None, "required", hint));
        }
        if allowed.iter().any(|pattern| pattern.hosts == Hosts::Any) {
            let hint = "Name your hosts, so that the app never sees a foreign one.";
            self.warnings.push(Mistake::new("HOSTWARD_ALLOWED_HOSTS", Some("*"), "every host may enter", hint));
        }
        let mut probes = ProbeHosts::default();
        self.each("HOSTWARD_PROBE_HOSTS", &["none"], |item| {
            match item.to_ascii_lowercase().as_str() {
                "self" => probes.own = true,
                "peer" => probes.peer = true,
                "missing" => probes.missing = true,
                "none" => {}
                other if other.starts_with(|c: char| c.is_ascii_digit()) || other.contains([':', '/']) => {
                    probes.networks.push(addresses::network(other)?);
                }
                _ => return Err(Fault::new("expected self, peer, missing, a CIDR or IP, or none")),
            }
            Ok(())
        });
        let mut trusted = Vec::new();
        self.each("HOSTWARD_TRUSTED_PROXIES", &["none"], |item| {
            match item.to_ascii_lowercase().as_str() {
                "private" => trusted.extend(Networks::private()),
                "none" => {}
                other if other.starts_with(|c: char| c.is_ascii_digit()) || other.contains([':', '/']) => {
                    trusted.push(addresses::network(other)?);
                }
                _ => return Err(Fault::new("expected CIDRs or IPs, private, or none")),
            }
            Ok(())
        });
        let canonical = self.canonical(&allowed);
        Rules {
            allowed,
            canonical,
            rewrite: match self.word("HOSTWARD_HOST_REWRITE") {
                "canonical" => HostRewrite::Canonical,
                _ => HostRewrite::Preserve,
            },
            mode: match self.word("HOSTWARD_HOST_POLICY") {
                "report" => HostPolicy::Report,
                _ => HostPolicy::Enforce,
            },
            probes,
            trusted,
        }
    }

    /// The canonical host that was given, or the first allowed host that is one host.
    fn canonical(&mut self, allowed: &[HostPattern]) -> Option<HeaderValue> {
        let given = self.read("HOSTWARD_CANONICAL_HOST", |_, text| addresses::host(text));
        if given.is_some() || self.wrong("HOSTWARD_CANONICAL_HOST") {
            return given;
        }
        let host = allowed.iter().find_map(HostPattern::concrete)?;
        let value = HeaderValue::from_str(&host).ok()?;
        if let Some(source) = self.sources.find("HOSTWARD_CANONICAL_HOST") {
            source.value = Some(host);
        }
        Some(value)
    }

    fn forwarding(&mut self) -> forwarding::Settings {
        let forwarded = self.switch("HOSTWARD_FORWARDED", false);
        let mut pass = Vec::new();
        self.each("HOSTWARD_PASS_HEADERS", &[], |item| {
            let name = header_name(item)?;
            let text = name.as_str();
            let error = if fields::is_written(text) || text == "host" || (forwarded && text == "forwarded") {
                "hostward writes this header itself"
            } else if fields::is_connection_specific(text) {
                "this header is for one connection only and never passes"
            } else if !fields::is_override(text) {
                "nothing removes this header from a trusted peer's requests"
            } else {
                pass.push(HeaderName::from(name));
                return Ok(());
            };
            Err(Fault::new(error))
        });
        let client_ip_header = self.read("HOSTWARD_CLIENT_IP_HEADER", |_, text| {
            let name = header_name(text)?;
            let is_address = match &name {
                Name::Known(X_FORWARDED_FOR) => {
                    return Err(Fault::with(
                        "X-Forwarded-For is read in any case",
                        "Remove it, or name another header.",
                    ));
                }
                Name::Known(known) => *known == X_REAL_IP,
                Name::Other(other) => {
                    !fields::is_connection_specific(other.as_str()) && !fields::is_written(other.as_str())
                }
            };
            if is_address { Ok(name) } else { Err(Fault::new("this header holds no client's address")) }
        });
        forwarding::Settings {
            client_proto: match self.word("HOSTWARD_CLIENT_PROTO") {
                "https" => Some("https"),
                "http" => Some("http"),
                _ => None,
            },
            client_ip_header,
            pass,
            derive_traceparent: self.word("HOSTWARD_TRACE_CONTEXT") == "derive",
            forwarded,
        }
    }

    fn task_ip(&mut self, metadata: MetadataSource) -> TaskIp {
        let mut off = false;
        let mut given = Vec::new();
        self.each("HOSTWARD_TASK_IP", &["auto", "off"], |item| {
            match item.to_ascii_lowercase().as_str() {
                "auto" => {}
                "off" => off = true,
                other => given.push(addresses::ip(other)?),
            }
            Ok(())
        });
        match (off, given.is_empty()) {
            (true, _) => TaskIp::Off,
            (false, true) => TaskIp::Auto(metadata),
            (false, false) => TaskIp::Given(given),
        }
    }

    fn metrics(&mut self) -> Metrics {
        let mut metrics = Metrics::default();
        self.each("HOSTWARD_METRICS", &["off"], |item| {
            match item.to_ascii_lowercase().as_str() {
                "prometheus" => metrics.prometheus = true,
                "emf" => metrics.emf = true,
                "off" => {}
                _ => return Err(Fault::new("expected prometheus, emf, or off")),
            }
            Ok(())
        });
        metrics
    }

    /// What is right alone and wrong together.
    fn compare(&mut self, config: &Config) {
        let Rules { canonical, rewrite, probes, .. } = &config.rules;
        let any_probe = probes.own || probes.peer || probes.missing || !probes.networks.is_empty();
        let wants = any_probe || *rewrite == HostRewrite::Canonical || config.ready_path.is_some();
        let unknown = ["HOSTWARD_ALLOWED_HOSTS", "HOSTWARD_CANONICAL_HOST", "HOSTWARD_PROBE_HOSTS"];
        // Without allowed hosts, or with wrong ones, that is the mistake to mend first.
        let judged = !self.missing("HOSTWARD_ALLOWED_HOSTS") && !unknown.iter().any(|variable| self.wrong(variable));
        if wants && canonical.is_none() && judged {
            self.mistakes.push(Mistake::new(
                "HOSTWARD_CANONICAL_HOST",
                None,
                "required, because HOSTWARD_ALLOWED_HOSTS names no single host that the app could see on a probe",
                if any_probe {
                    "Example: www.example.com. Or let no probe in: HOSTWARD_PROBE_HOSTS=none."
                } else {
                    "Example: www.example.com."
                },
            ));
        }
        let stopping = config.drain_delay + config.shutdown_timeout;
        if stopping > STOP_TIMEOUT {
            let error = format!(
                "with HOSTWARD_DRAIN_DELAY, stopping may take {} s; ECS kills after 30 s unless `stopTimeout` says otherwise",
                stopping.as_secs()
            );
            let hint = "Set the container's `stopTimeout` above that (Fargate: 120 at most), or lower one of the two.";
            self.warnings.push(Mistake::new("HOSTWARD_SHUTDOWN_TIMEOUT", None, error, hint));
        }
        if config.idle_timeout <= ALB_IDLE_TIMEOUT {
            let error = "not above the 60 s that an ALB keeps idle connections: it may send a request on one that hostward is closing, and answer 502";
            let hint = "75s, or more than the load balancer's own idle timeout.";
            self.warnings.push(Mistake::new("HOSTWARD_IDLE_TIMEOUT", None, error, hint));
        }
        if config.proxy_protocol != ProxyProtocol::Off
            && config.rules.trusted.is_empty()
            && !self.wrong("HOSTWARD_TRUSTED_PROXIES")
        {
            self.conflict(
                "HOSTWARD_PROXY_PROTOCOL",
                "HOSTWARD_TRUSTED_PROXIES is none, so nobody would be believed".into(),
            );
        }
        let believing = [
            ("HOSTWARD_PASS_HEADERS", !config.forwarding.pass.is_empty()),
            ("HOSTWARD_CLIENT_IP_HEADER", config.forwarding.client_ip_header.is_some()),
            ("HOSTWARD_TRACE_CONTEXT", config.forwarding.derive_traceparent),
        ];
        for (variable, _) in believing.into_iter().filter(|(_, given)| *given && config.rules.trusted.is_empty()) {
            let error = "has no effect: HOSTWARD_TRUSTED_PROXIES is none, so that no peer is believed";
            let hint = "Name the load balancer's network in HOSTWARD_TRUSTED_PROXIES.";
            self.warnings.push(Mistake::new(variable, None, error, hint));
        }
        let upstream_is_right = !self.wrong("HOSTWARD_UPSTREAM");
        let listeners = [("HOSTWARD_LISTEN", Some(config.listen)), ("HOSTWARD_ADMIN_LISTEN", config.admin_listen)];
        for (variable, listen) in listeners {
            if let Some(listen) = listen
                && upstream_is_right
                && !self.wrong(variable)
                && addresses::leads_to(&config.upstream, listen)
            {
                self.conflict("HOSTWARD_UPSTREAM", format!("that is {variable} ({listen}): hostward would ask itself"));
            }
        }
        if let Some(admin) = config.admin_listen
            && !self.wrong("HOSTWARD_LISTEN")
            && !self.wrong("HOSTWARD_ADMIN_LISTEN")
            && addresses::overlap(config.listen, admin)
        {
            self.conflict("HOSTWARD_ADMIN_LISTEN", format!("HOSTWARD_LISTEN ({}) is on this port", config.listen));
        }
    }

    /// What ECS and Kubernetes say. It isn't the operator's, so a mistake in it is a warning.
    fn metadata(&mut self, environment: &HashMap<String, OsString>) -> MetadataSource {
        let mut text = |variable: &str| {
            let value = environment.get(variable)?;
            let shown = value.to_string_lossy();
            if is_pem(&shown) {
                self.warnings.push(Mistake::new(variable, None, "this is PEM, ignored", "Set it anew."));
                return None;
            }
            let Some(text) = value.to_str() else {
                self.warnings.push(Mistake::new(variable, Some(&shown), "not UTF-8, ignored", "Set it anew."));
                return None;
            };
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let v4 = text("ECS_CONTAINER_METADATA_URI_V4");
        let v3 = text("ECS_CONTAINER_METADATA_URI");
        let on_ecs = text("AWS_EXECUTION_ENV").is_some_and(|value| value.contains("ECS"));
        let pods = ["POD_IP", "POD_IPS"].map(|variable| (variable, text(variable).unwrap_or_default()));
        let mut pod: Vec<IpAddr> = Vec::new();
        for (variable, list) in &pods {
            for item in values::items(list) {
                match addresses::ip(item) {
                    Ok(address) if pod.contains(&address) => {}
                    Ok(address) => pod.push(address),
                    Err(fault) => {
                        let hint = "Ignored. Example: 10.0.2.100.";
                        self.warnings.push(Mistake::new(variable, Some(item), fault.error, hint));
                    }
                }
            }
        }
        MetadataSource { v4, v3, on_ecs, pod }
    }
}

/// The name of a request's header that can pass at all.
fn header_name(text: &str) -> Result<Name, Fault> {
    let expected = || Fault::new("expected the name of a header: letters, digits and hyphens");
    let name = Name::read(text.as_bytes()).map_err(|_| expected())?;
    if fields::is_plain_name(name.as_str()) { Ok(name) } else { Err(expected()) }
}

/// Stands for an upstream that could not be read; nothing is started with it.
fn nowhere() -> Upstream {
    Upstream { protocol: Protocol::Http, endpoint: Endpoint::Tcp { host: String::new(), port: 0 } }
}

/// ECS kills a container that long after SIGTERM, unless its definition says otherwise.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// `idle_timeout.timeout_seconds` of an Application Load Balancer.
const ALB_IDLE_TIMEOUT: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests;
