//! May this host enter, and what does the app see? Everything that judges a host is here, and pure:
//! `explain`, `check` and the proxy ask the same [`Policy`], so they can't disagree.
//!
//! The time of a decision does not grow with the lists: names are looked up by hash, a label at a time,
//! networks by binary search.

mod pattern;
mod verdict;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use http::HeaderValue;
use ipnet::IpNet;

use crate::message::authority::{Authority, Host};
use crate::networks::Networks;

pub use pattern::{HostPattern, Hosts, check_host_name};
pub use verdict::{Refusal, Rule, Verdict};

/// What the settings say about hosts.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Who may enter.
    pub allowed: Vec<HostPattern>,
    /// What the app sees on a probe. `None` only where `probes` is empty.
    pub canonical: Option<HeaderValue>,
    /// Whether allowed hosts are rewritten as well.
    pub rewrite: HostRewrite,
    /// Whether a refusal refuses.
    pub mode: HostPolicy,
    /// Which hosts a load balancer's probe may carry.
    pub probes: ProbeHosts,
    /// Whose forwarding fields are believed.
    pub trusted: Vec<IpNet>,
}

/// `HOSTWARD_HOST_REWRITE`: what happens to the `Host` of an allowed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRewrite {
    /// It passes byte for byte.
    Preserve,
    /// The app sees the canonical host.
    Canonical,
}

/// `HOSTWARD_HOST_POLICY`: what happens to a request that the rules don't admit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPolicy {
    /// It is refused.
    Enforce,
    /// It is forwarded unchanged, and logged as what would have been refused.
    Report,
}

impl HostPolicy {
    /// The `msg` of the event for a request that the rules don't admit.
    pub fn message(self) -> &'static str {
        match self {
            Self::Enforce => "request denied",
            Self::Report => "request would be denied",
        }
    }
}

/// `HOSTWARD_PROBE_HOSTS`: the hosts that are rewritten because nobody but a load balancer sends them.
#[derive(Clone, Debug, Default)]
pub struct ProbeHosts {
    /// Every address of this task.
    pub own: bool,
    /// The peer's own address, as in a Network Load Balancer's health check.
    pub peer: bool,
    /// No `Host` at all, as in a Classic Load Balancer's.
    pub missing: bool,
    /// Addresses named by hand.
    pub networks: Vec<IpNet>,
}

/// What is known of a request when it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The authority; `None` when an HTTP/1.0 request came without one.
    pub authority: Option<&'a Authority<'a>>,
    /// The other end of the connection.
    pub peer: IpAddr,
    /// Whether that is so, and not what a PROXY header says.
    pub direct: bool,
    /// This end of the connection.
    pub local: IpAddr,
    /// Whether the request carries a header that a proxy adds: `X-Forwarded-*`, `X-Amzn-*`, `Forwarded`, `Via`.
    pub forwarded: bool,
}

/// The addresses of this task.
#[derive(Debug, Default)]
pub struct OwnAddresses {
    /// What the network interfaces had when hostward started.
    pub interfaces: Vec<IpAddr>,
    /// What discovery found, once it has.
    pub discovered: OnceLock<Vec<IpAddr>>,
}

/// The rules, ready to be asked.
#[derive(Clone, Debug)]
pub struct Policy {
    exact: HashMap<Box<str>, Ports>,
    /// Without the leading dot; asked for every proper suffix of a host.
    suffixes: HashMap<Box<str>, Ports>,
    addresses: HashMap<IpAddr, Ports>,
    networks: Vec<(Ports, Networks)>,
    any: Ports,
    probes: ProbeHosts,
    probe_networks: Networks,
    /// `HOSTWARD_TRUSTED_PROXIES`.
    pub trusted: Networks,
    private: Networks,
    mode: HostPolicy,
    /// What an allowed request's `Host` becomes; `None` leaves it alone.
    pub rewrite_allowed: Option<HeaderValue>,
    /// What a probe's `Host` becomes.
    pub canonical: Option<HeaderValue>,
    own: Arc<OwnAddresses>,
}

impl Policy {
    /// Builds the tables.
    pub fn new(rules: &Rules, own: Arc<OwnAddresses>) -> Self {
        let mut policy = Self {
            exact: HashMap::new(),
            suffixes: HashMap::new(),
            addresses: HashMap::new(),
            networks: Vec::new(),
            any: Ports::default(),
            probes: rules.probes.clone(),
            probe_networks: rules.probes.networks.iter().copied().collect(),
            trusted: rules.trusted.iter().copied().collect(),
            private: Networks::private().into_iter().collect(),
            mode: rules.mode,
            rewrite_allowed: match rules.rewrite {
                HostRewrite::Preserve => None,
                HostRewrite::Canonical => rules.canonical.clone(),
            },
            canonical: rules.canonical.clone(),
            own,
        };
        let mut networks: HashMap<Option<u16>, Vec<IpNet>> = HashMap::new();
        for HostPattern { hosts, port } in &rules.allowed {
            match hosts {
                Hosts::Exact(name) => policy.exact.entry(name.as_str().into()).or_default().add(*port),
                Hosts::Subdomains(name) => policy.suffixes.entry(name.as_str().into()).or_default().add(*port),
                Hosts::Domain(name) => {
                    policy.exact.entry(name.as_str().into()).or_default().add(*port);
                    policy.suffixes.entry(name.as_str().into()).or_default().add(*port);
                }
                Hosts::Address(address) => policy.addresses.entry(*address).or_default().add(*port),
                Hosts::Network(network) => networks.entry(*port).or_default().push(*network),
                Hosts::Any => policy.any.add(*port),
            }
        }
        for (port, nets) in networks {
            let mut ports = Ports::default();
            ports.add(port);
            policy.networks.push((ports, nets.into_iter().collect()));
        }
        policy
    }

    /// Decides about one request. The order is the contract's: allowed, probe, refused.
    pub fn judge(&self, facts: &Facts<'_>) -> Verdict {
        self.decide(facts, &mut |_, _| {})
    }

    /// The same, and every rule that was asked, in order, with its answer.
    pub fn trace(&self, facts: &Facts<'_>) -> (Verdict, Vec<(Rule, bool)>) {
        let mut asked = Vec::new();
        let verdict = self.decide(facts, &mut |rule, holds| asked.push((rule, holds)));
        (verdict, asked)
    }

    fn decide(&self, facts: &Facts<'_>, asked: &mut impl FnMut(Rule, bool)) -> Verdict {
        let mut holds = |rule, holds| {
            asked(rule, holds);
            holds
        };
        let refusal = match facts.authority {
            Some(authority) => {
                if let Some(rule) = self.allows(authority, &mut holds) {
                    return Verdict::Allowed(rule);
                }
                match self.probe_rule(authority, facts, &mut holds) {
                    Some(rule) => match self.probe_bar(facts) {
                        None => return Verdict::Probe(rule),
                        Some(refusal) => refusal,
                    },
                    None => Refusal::NotAllowed,
                }
            }
            None if holds(Rule::Missing, self.probes.missing) => match self.probe_bar(facts) {
                None => return Verdict::Probe(Rule::Missing),
                Some(refusal) => refusal,
            },
            None => Refusal::Missing,
        };
        match self.mode {
            HostPolicy::Enforce => Verdict::Refused(refusal),
            HostPolicy::Report => Verdict::Reported(refusal),
        }
    }

    /// This task's addresses.
    pub fn own(&self) -> &OwnAddresses {
        &self.own
    }

    /// Whether `peer` is private or trusted, as a load balancer is.
    pub fn is_inside(&self, peer: IpAddr) -> bool {
        self.private.contains(peer) || self.trusts(peer)
    }

    /// Whether `peer` is one of `HOSTWARD_TRUSTED_PROXIES`.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.contains(peer)
    }

    fn allows(&self, authority: &Authority<'_>, holds: &mut impl FnMut(Rule, bool) -> bool) -> Option<Rule> {
        let port = authority.port;
        match authority.host {
            Host::Ip(address) => {
                if holds(Rule::Address, self.addresses.get(&address).is_some_and(|ports| ports.allow(port))) {
                    return Some(Rule::Address);
                }
                let mut networks = self.networks.iter();
                if holds(Rule::Network, networks.any(|(ports, nets)| ports.allow(port) && nets.contains(address))) {
                    return Some(Rule::Network);
                }
            }
            Host::Name(name) => {
                let mut buffer = [0; 255];
                // A longer name than any allowed one could be: not allowed, whatever it says.
                if let Some(name) = lower_case(name, &mut buffer) {
                    if holds(Rule::Exact, self.exact.get(name).is_some_and(|ports| ports.allow(port))) {
                        return Some(Rule::Exact);
                    }
                    let mut suffixes = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
                    let below = |suffix| self.suffixes.get(suffix).is_some_and(|ports| ports.allow(port));
                    if holds(Rule::Domain, !self.suffixes.is_empty() && suffixes.any(below)) {
                        return Some(Rule::Domain);
                    }
                }
            }
        }
        holds(Rule::Any, self.any.allow(port)).then_some(Rule::Any)
    }

    /// The rule by which the host is a probe host, whoever asks.
    fn probe_rule(
        &self,
        authority: &Authority<'_>,
        facts: &Facts<'_>,
        holds: &mut impl FnMut(Rule, bool) -> bool,
    ) -> Option<Rule> {
        let address = match authority.host {
            Host::Ip(address) => address,
            Host::Name(name) => {
                let from_here = || facts.direct && facts.peer.to_canonical().is_loopback();
                let localhost = self.probes.own && name.eq_ignore_ascii_case("localhost");
                return (localhost && holds(Rule::Localhost, from_here())).then_some(Rule::Localhost);
            }
        };
        if self.probes.own {
            if holds(Rule::Local, address == facts.local.to_canonical()) {
                return Some(Rule::Local);
            }
            if holds(Rule::Task, self.own.discovered.get().is_some_and(|found| found.contains(&address))) {
                return Some(Rule::Task);
            }
            if holds(Rule::Interface, self.own.interfaces.contains(&address)) {
                return Some(Rule::Interface);
            }
        }
        if self.probes.peer && holds(Rule::Peer, address == facts.peer.to_canonical()) {
            return Some(Rule::Peer);
        }
        holds(Rule::ProbeNetwork, self.probe_networks.contains(address)).then_some(Rule::ProbeNetwork)
    }

    /// What forbids that a request with a probe host is a probe. An internet client can send the task's
    /// address through the load balancer, but not without the fields that the load balancer adds.
    fn probe_bar(&self, facts: &Facts<'_>) -> Option<Refusal> {
        if facts.forwarded {
            Some(Refusal::Forwarded)
        } else if !self.is_inside(facts.peer) {
            Some(Refusal::PublicPeer)
        } else {
            None
        }
    }
}

/// The ports that a table entry admits.
#[derive(Clone, Debug, Default)]
struct Ports {
    any: bool,
    only: Vec<u16>,
}

impl Ports {
    fn add(&mut self, port: Option<u16>) {
        match port {
            None => self.any = true,
            Some(port) => self.only.push(port),
        }
    }

    fn allow(&self, port: Option<u16>) -> bool {
        self.any || port.is_some_and(|port| self.only.contains(&port))
    }
}

fn lower_case<'b>(name: &str, buffer: &'b mut [u8; 255]) -> Option<&'b str> {
    let lower = buffer.get_mut(..name.len())?;
    lower.copy_from_slice(name.as_bytes());
    lower.make_ascii_lowercase();
    std::str::from_utf8(lower).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "10.0.1.7";
    const LOCAL: &str = "10.0.2.100";

    fn rules(allowed: &str) -> Rules {
        Rules {
            allowed: allowed.split_whitespace().map(|entry| entry.parse().unwrap()).collect(),
            canonical: Some(HeaderValue::from_static("www.example.com")),
            rewrite: HostRewrite::Preserve,
            mode: HostPolicy::Enforce,
            probes: ProbeHosts { own: true, peer: true, missing: false, networks: Vec::new() },
            trusted: Networks::private(),
        }
    }

    fn own() -> Arc<OwnAddresses> {
        let own = OwnAddresses { interfaces: vec!["172.31.0.5".parse().unwrap()], discovered: OnceLock::new() };
        own.discovered.set(vec!["10.0.2.200".parse().unwrap(), "2001:db8::200".parse().unwrap()]).unwrap();
        Arc::new(own)
    }

    fn judge_from(rules: &Rules, host: Option<&str>, peer: &str, forwarded: bool) -> Verdict {
        let authority = host.map(|host| Authority::parse(host.as_bytes()).unwrap());
        Policy::new(rules, own()).judge(&Facts {
            authority: authority.as_ref(),
            peer: peer.parse().unwrap(),
            direct: true,
            local: LOCAL.parse().unwrap(),
            forwarded,
        })
    }

    fn judge(allowed: &str, host: &str) -> Verdict {
        judge_from(&rules(allowed), Some(host), PEER, false)
    }

    #[test]
    fn names_are_compared_without_case_and_one_trailing_dot() {
        for host in
            ["www.example.com", "WWW.EXAMPLE.com", "www.example.com.", "www.example.com:8443", "www.example.com.:1"]
        {
            assert_eq!(judge("www.example.com", host), Verdict::Allowed(Rule::Exact), "{host}");
        }
        for host in [
            "example.com",
            "a.www.example.com",
            "wwwXexample.com",
            "www.example.com.evil",
            "www.example.comm",
            "ww.example.com",
        ] {
            assert_eq!(judge("www.example.com", host), Verdict::Refused(Refusal::NotAllowed), "{host}");
        }
    }

    #[test]
    fn a_leading_dot_takes_the_domain_in_and_a_star_does_not() {
        assert_eq!(judge(".example.com", "example.com"), Verdict::Allowed(Rule::Exact));
        assert_eq!(judge(".example.com", "a.b.Example.com"), Verdict::Allowed(Rule::Domain));
        assert_eq!(judge("*.example.com", "a.b.example.com"), Verdict::Allowed(Rule::Domain));
        assert_eq!(judge("*.example.com", "example.com"), Verdict::Refused(Refusal::NotAllowed));
        assert_eq!(judge(".example.com *.example.com", "notexample.com"), Verdict::Refused(Refusal::NotAllowed));
    }

    #[test]
    fn an_entry_with_a_port_wants_that_port() {
        assert_eq!(judge("a.example:8443", "a.example:8443"), Verdict::Allowed(Rule::Exact));
        for host in ["a.example", "a.example:443"] {
            assert_eq!(judge("a.example:8443", host), Verdict::Refused(Refusal::NotAllowed), "{host}");
        }
        assert_eq!(judge("a.example:1 a.example:2", "a.example:2"), Verdict::Allowed(Rule::Exact));
        assert_eq!(judge("10.9.0.0/16:80 10.8.0.1:81 *:82", "10.9.1.1:80"), Verdict::Allowed(Rule::Network));
        assert_eq!(judge("10.9.0.0/16:80 10.8.0.1:81 *:82", "10.8.0.1:81"), Verdict::Allowed(Rule::Address));
        assert_eq!(judge("10.9.0.0/16:80 10.8.0.1:81 *:82", "any.thing:82"), Verdict::Allowed(Rule::Any));
        assert_eq!(judge("10.9.0.0/16:80 10.8.0.1:81 *:82", "10.9.1.1"), Verdict::Refused(Refusal::NotAllowed));
    }

    #[test]
    fn addresses_are_compared_as_addresses() {
        assert_eq!(judge("2001:db8::1", "[2001:DB8:0::1]:80"), Verdict::Allowed(Rule::Address));
        assert_eq!(judge("10.9.0.0/16", "10.9.255.1"), Verdict::Allowed(Rule::Network));
        assert_eq!(judge("10.9.0.0/16", "10.9.example.com"), Verdict::Refused(Refusal::NotAllowed));
        assert_eq!(judge("127.0.0.2", "0x7f.2"), Verdict::Refused(Refusal::NotAllowed));
        assert_eq!(judge("*", "anything"), Verdict::Allowed(Rule::Any));
    }

    #[test]
    fn lists_of_every_length_decide_alike() {
        for length in [1, 100, 101, 1_000] {
            let list: Vec<String> = (0..length).map(|n| format!("host{n}.example.com")).collect();
            let list = list.join(" ");
            assert_eq!(judge(&list, "HOST0.example.com"), Verdict::Allowed(Rule::Exact));
            assert_eq!(judge(&list, "host9999.example.com"), Verdict::Refused(Refusal::NotAllowed));
        }
    }

    #[test]
    fn a_probe_names_an_address_of_the_task_or_its_peer() {
        for (host, rule) in [
            ("10.0.2.100:8080", Rule::Local),
            ("10.0.2.200", Rule::Task),
            ("[2001:DB8::200]:8080", Rule::Task),
            ("172.31.0.5", Rule::Interface),
            ("10.0.1.7:80", Rule::Peer),
        ] {
            assert_eq!(judge("www.example.com", host), Verdict::Probe(rule), "{host}");
        }
        assert_eq!(judge("www.example.com", "10.9.9.9"), Verdict::Refused(Refusal::NotAllowed));
        assert_eq!(judge("10.0.2.100", "10.0.2.100"), Verdict::Allowed(Rule::Address));
    }

    #[test]
    fn localhost_is_a_probe_host_for_this_task_itself() {
        let rules = rules("www.example.com");
        for host in ["localhost", "localhost:8080", "LOCALHOST:1", "localhost."] {
            for peer in ["127.0.0.1", "127.0.0.9", "::1", "::ffff:127.0.0.1"] {
                assert_eq!(
                    judge_from(&rules, Some(host), peer, false),
                    Verdict::Probe(Rule::Localhost),
                    "{host} {peer}"
                );
                assert_eq!(judge_from(&rules, Some(host), peer, true), Verdict::Refused(Refusal::Forwarded));
            }
            for peer in [PEER, LOCAL, "203.0.113.9"] {
                assert_eq!(
                    judge_from(&rules, Some(host), peer, false),
                    Verdict::Refused(Refusal::NotAllowed),
                    "{host} {peer}"
                );
            }
        }
        for host in ["localhost.localdomain", "a.localhost", "localhosts", "local"] {
            assert_eq!(
                judge_from(&rules, Some(host), "127.0.0.1", false),
                Verdict::Refused(Refusal::NotAllowed),
                "{host}"
            );
        }
        let (policy, authority) = (Policy::new(&rules, own()), Authority::parse(b"localhost").unwrap());
        let (peer, local) = ("127.0.0.1".parse().unwrap(), LOCAL.parse().unwrap());
        let judge =
            |direct| policy.judge(&Facts { authority: Some(&authority), peer, direct, local, forwarded: false });
        assert_eq!(judge(true), Verdict::Probe(Rule::Localhost));
        // A PROXY header names this peer.
        assert_eq!(judge(false), Verdict::Refused(Refusal::NotAllowed));
        let peer_only = Rules { probes: ProbeHosts { peer: true, ..ProbeHosts::default() }, ..rules };
        let verdict = judge_from(&peer_only, Some("localhost"), "127.0.0.1", false);
        assert_eq!(verdict, Verdict::Refused(Refusal::NotAllowed));
    }

    #[test]
    fn nothing_that_came_through_a_proxy_or_from_the_internet_is_a_probe() {
        let rules = rules("www.example.com");
        assert_eq!(judge_from(&rules, Some(LOCAL), PEER, true), Verdict::Refused(Refusal::Forwarded));
        assert_eq!(judge_from(&rules, Some(LOCAL), "203.0.113.9", false), Verdict::Refused(Refusal::PublicPeer));
        let trusting = Rules { trusted: vec!["203.0.113.0/24".parse().unwrap()], ..rules.clone() };
        assert_eq!(judge_from(&trusting, Some(LOCAL), "203.0.113.9", false), Verdict::Probe(Rule::Local));
        // An allowed host may come from anywhere.
        assert_eq!(judge_from(&rules, Some("www.example.com"), "203.0.113.9", true), Verdict::Allowed(Rule::Exact));
    }

    #[test]
    fn the_tokens_of_probe_hosts_are_independent() {
        let with = |probes| Rules { probes, ..rules("www.example.com") };
        let none = with(ProbeHosts::default());
        assert_eq!(judge_from(&none, Some(LOCAL), PEER, false), Verdict::Refused(Refusal::NotAllowed));
        assert_eq!(judge_from(&none, Some(PEER), PEER, false), Verdict::Refused(Refusal::NotAllowed));
        assert_eq!(judge_from(&none, None, PEER, false), Verdict::Refused(Refusal::Missing));
        let missing = with(ProbeHosts { missing: true, ..ProbeHosts::default() });
        assert_eq!(judge_from(&missing, None, PEER, false), Verdict::Probe(Rule::Missing));
        assert_eq!(judge_from(&missing, None, PEER, true), Verdict::Refused(Refusal::Forwarded));
        let named = with(ProbeHosts { networks: vec!["10.9.0.0/16".parse().unwrap()], ..ProbeHosts::default() });
        assert_eq!(judge_from(&named, Some("10.9.1.1:80"), PEER, false), Verdict::Probe(Rule::ProbeNetwork));
    }

    #[test]
    fn reporting_refuses_nothing_and_says_what_it_would_have() {
        let report = Rules { mode: HostPolicy::Report, ..rules("www.example.com") };
        assert_eq!(judge_from(&report, Some("evil"), PEER, false), Verdict::Reported(Refusal::NotAllowed));
        assert_eq!(judge_from(&report, Some(LOCAL), PEER, false), Verdict::Probe(Rule::Local));
    }
}
