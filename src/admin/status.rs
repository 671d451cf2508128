//! What `/status` says: what is true now, and what went wrong lately, for a person and for `hostward status`.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use crate::config::Config;
use crate::diagnosis::recent::Recent;
use crate::diagnosis::refusals::Refusals;
use crate::drain::Stage;
use crate::metrics::Metrics;
use crate::policy::{HostPolicy, Policy};

/// What is asked for it.
#[derive(Clone, Debug)]
pub struct Status {
    /// The settings.
    pub config: Arc<Config>,
    /// Which addresses are this task's.
    pub policy: Arc<Policy>,
    /// What has been counted.
    pub metrics: Arc<Metrics>,
    /// The hosts that were refused.
    pub refusals: Arc<Refusals>,
    /// The last failures.
    pub recent: Arc<Recent>,
    /// Where clients connect.
    pub listen: String,
    /// When hostward started.
    pub started: Instant,
}

impl Status {
    /// Everything, as JSON. `ready` is the answer of `/readyz`.
    pub fn report(&self, stage: Stage, ready: &Result<(), String>) -> Value {
        let Self { config, policy, metrics, .. } = self;
        let counted = metrics.snapshot();
        let now = Instant::now();
        let texts = |items: &[_]| items.iter().map(ToString::to_string).collect::<Vec<String>>();
        let occurred = |list: &[(&'static str, u64)]| -> Value {
            list.iter().filter(|(_, count)| *count > 0).map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": now.duration_since(self.started).as_secs(),
            "stage": match stage {
                Stage::Running => "running",
                Stage::Draining => "draining",
                Stage::Closing | Stage::Cut => "stopping",
            },
            "ready": ready.is_ok(),
            "not_ready": ready.as_ref().err(),
            "listen": self.listen,
            "upstream": config.upstream.to_string(),
            "allowed_hosts": config.rules.allowed.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "canonical_host": config.rules.canonical.as_ref().and_then(|host| host.to_str().ok()),
            "host_policy": match config.rules.mode {
                HostPolicy::Enforce => "enforce",
                HostPolicy::Report => "report",
            },
            "addresses": {
                "interfaces": texts(&policy.own().interfaces),
                "discovered": policy.own().discovered.get().map(|found| texts(found)),
            },
            "workers": metrics.workers(),
            "connections": {
                "open": counted.open_connections,
                "most": counted.max_connections,
                "accepted": counted.connections,
                "app_active": counted.app_connections_active,
                "app_idle": counted.app_connections_idle,
            },
            "requests": {
                "active": counted.active_requests,
                "by_decision": decisions(&counted.decisions),
                "by_status": counted.statuses.iter().map(|(status, count)| (status.to_string(), *count)).collect::<Value>(),
                "errors": occurred(&counted.errors),
                "sent_twice": counted.repeats,
            },
            "memory": {
                "bytes": counted.memory_bytes,
                "limit_bytes": counted.memory_limit_bytes,
            },
            "spool": {
                "bytes": counted.spool_bytes,
                "limit_bytes": counted.spool_limit_bytes,
            },
            "spooled_requests": counted.spooled,
            "log_lines_dropped": counted.log_lines_dropped,
            "refused_hosts": self.refusals.list(now),
            "last_failures": self.recent.list(),
        })
    }
}

/// How often each decision was made, whatever the reason.
fn decisions(decided: &[crate::metrics::Decided]) -> Value {
    let mut sums = serde_json::Map::new();
    for one in decided.iter().filter(|one| one.count > 0) {
        let sum = sums.get(one.decision).and_then(Value::as_u64).unwrap_or_default();
        sums.insert(one.decision.to_owned(), (sum + one.count).into());
    }
    sums.into()
}
