//! The outcome of a judgement: which rule admitted a request, or why it was refused, in words for the log
//! and for a person.

use std::fmt;

/// The decision about one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Enters, its `Host` as it is (unless `HOST_REWRITE=canonical`).
    Allowed(Rule),
    /// Enters with the canonical host in place of its own.
    Probe(Rule),
    /// Does not enter.
    Refused(Refusal),
    /// Enters unchanged, because `HOST_POLICY=report`, though the rules would have refused it.
    Reported(Refusal),
}

/// The rule that let a request in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// An allowed name.
    Exact,
    /// An allowed `.example.com` or `*.example.com`.
    Domain,
    /// An allowed address.
    Address,
    /// An allowed network.
    Network,
    /// The wildcard `*`.
    Any,
    /// A probe of an address that discovery found.
    Task,
    /// A probe of an address of one of this machine's interfaces.
    Interface,
    /// A probe of the very address that the connection came in on.
    Local,
    /// A probe of `localhost` from this task itself, as a container's health check sends it.
    Localhost,
    /// A probe that names the peer's own address.
    Peer,
    /// A probe without a `Host`.
    Missing,
    /// A probe of an address that `PROBE_HOSTS` names.
    ProbeNetwork,
}

/// Why a request may not enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The host is neither allowed nor a probe host.
    NotAllowed,
    /// An HTTP/1.0 request without a `Host`, and `PROBE_HOSTS` doesn't say `missing`.
    Missing,
    /// A probe host, but the request went through another proxy: a probe would not have.
    Forwarded,
    /// A probe host, but the peer is neither private nor trusted.
    PublicPeer,
}

impl Verdict {
    /// The word for the log's `decision`.
    pub fn decision(self) -> &'static str {
        match self {
            Self::Allowed(_) => "allowed",
            Self::Probe(_) => "probe",
            Self::Refused(_) => "refused",
            Self::Reported(_) => "reported",
        }
    }

    /// The word for the log's `host_rule`.
    pub fn rule(self) -> &'static str {
        match self {
            Self::Allowed(rule) | Self::Probe(rule) => rule.name(),
            Self::Refused(refusal) | Self::Reported(refusal) => refusal.name(),
        }
    }
}

impl Rule {
    /// A stable word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Domain => "domain",
            Self::Address => "address",
            Self::Network => "network",
            Self::Any => "any",
            Self::Task => "self_task",
            Self::Interface => "self_interface",
            Self::Local => "self_local",
            Self::Localhost => "self_localhost",
            Self::Peer => "peer",
            Self::Missing => "missing",
            Self::ProbeNetwork => "probe_network",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "HOSTWARD_ALLOWED_HOSTS names it",
            Self::Domain => "HOSTWARD_ALLOWED_HOSTS names a domain that it is in",
            Self::Address => "HOSTWARD_ALLOWED_HOSTS names this address",
            Self::Network => "HOSTWARD_ALLOWED_HOSTS names a network that the address is in",
            Self::Any => "HOSTWARD_ALLOWED_HOSTS has a wildcard",
            Self::Task => "HOSTWARD_PROBE_HOSTS has `self`, and discovery found that this is the task's address",
            Self::Interface => "HOSTWARD_PROBE_HOSTS has `self`, and a network interface here has this address",
            Self::Local => "HOSTWARD_PROBE_HOSTS has `self`, and the connection came in on this very address",
            Self::Localhost => "HOSTWARD_PROBE_HOSTS has `self`, and the peer is this task itself (a container's health check)",
            Self::Peer => "HOSTWARD_PROBE_HOSTS has `peer`, and this is the peer's own address (a Network Load Balancer's health check)",
            Self::Missing => "HOSTWARD_PROBE_HOSTS has `missing`, and the request has no Host (a Classic Load Balancer's health check)",
            Self::ProbeNetwork => "HOSTWARD_PROBE_HOSTS names this address",
        })
    }
}

impl Refusal {
    /// A stable word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotAllowed => "not_allowed",
            Self::Missing => "no_host",
            Self::Forwarded => "forwarded_probe_host",
            Self::PublicPeer => "public_peer_probe_host",
        }
    }

    /// What a person can do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::NotAllowed => {
                "if the host is yours, add it to HOSTWARD_ALLOWED_HOSTS; if a load balancer's health check sends it, add it to HOSTWARD_PROBE_HOSTS"
            }
            Self::Missing => {
                "a Classic Load Balancer's health check sends no Host: add `missing` to HOSTWARD_PROBE_HOSTS (self,peer,missing) if you have one"
            }
            Self::Forwarded => {
                "somebody asked for the task's address through a proxy, which no health check does; nothing should admit it"
            }
            Self::PublicPeer => {
                "only a private or a trusted peer may probe; if this peer is your load balancer, add its network to HOSTWARD_TRUSTED_PROXIES"
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAllowed => "the host is not in HOSTWARD_ALLOWED_HOSTS, and it is no probe host",
            Self::Missing => "the request has no Host",
            Self::Forwarded => "a probe host, but the request carries a header that a proxy adds (X-Forwarded-*, X-Amzn-*, Forwarded, Via)",
            Self::PublicPeer => "a probe host, but the peer is neither private nor in HOSTWARD_TRUSTED_PROXIES",
        })
    }
}
