//! Who sent a request that may not enter, and what would admit it. Pure: the policy has decided already, and nothing here
//! changes that; a sender is named by what load balancers and their likes are documented to send, and by nothing that
//! could be made to admit anybody. It is one sentence and one setting, for somebody who reads the log at night.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::message::authority::{Authority, Host};
use crate::message::forwarding::{self, Peer};
use crate::message::lines::FieldLines;
use crate::message::names::{Known, USER_AGENT, VIA, X_AMZ_CF_ID};
use crate::networks::Networks;
use crate::policy::{Hosts, ProbeHosts, Refusal, Rules, check_host_name};

/// What is known of a refused request.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Why it was refused.
    pub refusal: Refusal,
    /// The authority; `None` when there was none.
    pub authority: Option<&'a Authority<'a>>,
    /// Who connected, and where.
    pub peer: &'a Peer,
    /// Whether the peer is private, or trusted.
    pub inside: bool,
    /// The fields, as they came.
    pub fields: &'a FieldLines,
}

/// Who sends requests like this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sender {
    /// An Application Load Balancer's health check, of an address that isn't known to be this task's.
    AlbProbe,
    /// A Network Load Balancer's health check: names the load balancer's own address.
    NlbProbe,
    /// A Classic Load Balancer's health check: HTTP/1.0 without a `Host`.
    ClassicProbe,
    /// Kubernetes' node agent.
    Kubelet,
    /// A Route 53 health check.
    Route53,
    /// API Gateway through a VPC link.
    ApiGateway,
    /// ECS Service Connect's Envoy.
    ServiceConnect,
    /// A `CloudFront` distribution that doesn't forward the viewer's `Host`.
    CloudFront,
    /// A client that uses the load balancer's own DNS name.
    LoadBalancerName,
    /// A client of an allowed name on a port that isn't allowed.
    OtherPort,
    /// A client of a name that lies beside the allowed ones.
    Sibling,
    /// A client of a name with an underscore, as Compose and Service Connect make them.
    Underscore,
    /// Somebody in the task itself.
    Task,
    /// Somebody who tries addresses, or imitates a health check.
    Scanner,
    /// Nobody who is known by anything.
    Unknown,
}

/// What a refused request is, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// Who sent it.
    pub sender: Sender,
    /// One sentence.
    pub what: String,
    /// The setting that would admit it, and the value that it would have to have; none when nothing should.
    pub remedy: Option<(&'static str, String)>,
    /// What to do.
    pub hint: String,
}

/// Says what a refused request is. `rules` are those that refused it.
pub fn diagnose(evidence: &Evidence<'_>, rules: &Rules) -> Diagnosis {
    let sender = sender(evidence, rules);
    let host = evidence.authority.map_or("-", |authority| authority.text);
    let peer = evidence.peer.address;
    let allow = |entry: String| {
        let list = rules.allowed.iter().map(ToString::to_string).chain([entry]).collect::<Vec<_>>().join(",");
        Some((ALLOWED_HOSTS, list))
    };
    // An address is a host, too, where one may be allowed.
    let name = evidence
        .name()
        .map_or_else(|| evidence.address().map(|address| address.to_string()), |name| Some(name.to_ascii_lowercase()))
        .unwrap_or_default();
    let (what, remedy, when, rest) = match sender {
        Sender::AlbProbe => (
            format!("a load balancer's health check of {host}, which is not known to be an address of this task"),
            evidence.address().map(|address| with(&rules.probes, Token::Network(network_of(address)))),
            "",
            "narrow the network to that of your tasks or instances. If the address is this task's own, see `task metadata unavailable`",
        ),
        Sender::NlbProbe => (
            format!("a Network Load Balancer's health check, which names the load balancer's own address, {host}"),
            Some(if Some(peer) == evidence.address() {
                with(&rules.probes, Token::Peer)
            } else {
                with(&rules.probes, Token::Network(evidence.address().map_or(IpNet::from(peer), network_of)))
            }),
            "",
            if Some(peer) == evidence.address() { "" } else { "narrow the network to the load balancer's subnets" },
        ),
        Sender::ClassicProbe => (
            "a Classic Load Balancer's health check, which has no Host".into(),
            Some(with(&rules.probes, Token::Missing)),
            "if you have such a load balancer",
            "",
        ),
        Sender::Kubelet => (
            format!("a Kubernetes probe of {host}, which is not known to be this pod's address"),
            evidence.address().map_or_else(
                || allow(name.clone()),
                |address| Some(with(&rules.probes, Token::Network(network_of(address)))),
            ),
            "",
            "better, tell hostward its address: POD_IP from `fieldRef: status.podIP`",
        ),
        Sender::Route53 => (
            format!("a Route 53 health check for {host}, from the internet"),
            evidence.name().and_then(|name| allow(name.to_ascii_lowercase())),
            "if the name is yours",
            "a health check of an address has to be given an allowed domain name",
        ),
        Sender::ApiGateway => (
            format!("API Gateway through a VPC link, which sends the host of its integration's URI, {host}"),
            allow(name),
            "",
            "or have the integration overwrite Host with an allowed one",
        ),
        Sender::ServiceConnect => (
            format!("another service through ECS Service Connect, by the name that it has there, {host}"),
            allow(name),
            "",
            "if the app has a list of its own, add it there too, or set HOSTWARD_HOST_REWRITE=canonical",
        ),
        Sender::CloudFront => (
            format!("CloudFront, which sends its origin's name, {host}"),
            allow(name),
            "",
            "better, let it forward the viewer's Host (origin request policy AllViewer), which the app's links need",
        ),
        Sender::LoadBalancerName => (
            format!("a client that uses the load balancer's own name, {host}: somebody who tries it, or a scanner"),
            allow(name),
            "if anybody should use it",
            "",
        ),
        Sender::OtherPort => (
            format!(
                "an allowed name with another port, {host}: a load balancer appends the port of a listener other than 80 and 443"
            ),
            allow(host.to_ascii_lowercase()),
            "",
            "an entry without a port admits any",
        ),
        Sender::Sibling => (
            format!("{host} is beside, above or below a name that is allowed"),
            allow(name),
            "if it is yours",
            "if the app has a list of its own, add it there too",
        ),
        Sender::Underscore => (
            format!("a name with an underscore, {host}, as Compose and Service Connect make them"),
            allow(name),
            "if it is yours",
            "Django and others refuse such a name whatever their list says: HOSTWARD_HOST_REWRITE=canonical, or a name with a hyphen",
        ),
        Sender::Task => (
            format!("somebody in this task, who asks for {host}: a container's health check, or another container"),
            allow(name),
            "",
            "or ask with an allowed host; hostward's own health check is `hostward healthcheck`",
        ),
        Sender::Scanner => (
            match evidence.refusal {
                Refusal::Forwarded => {
                    format!("somebody asked for {host} through a load balancer or a proxy, which no health check does")
                }
                Refusal::PublicPeer => {
                    format!("somebody at the public address {peer} imitates a health check of {host}")
                }
                Refusal::Missing => "a client of HTTP/1.0 without a Host, from a public address".into(),
                Refusal::NotAllowed => format!("somebody who tries addresses or names, {host}"),
            },
            None,
            "",
            "",
        ),
        Sender::Unknown => (
            match evidence.refusal {
                Refusal::Missing => "a request of HTTP/1.0 without a Host".into(),
                Refusal::Forwarded => format!("a health check's host, {host}, in a request that came through a proxy"),
                Refusal::PublicPeer => format!("a health check of {host} from the public address {peer}"),
                Refusal::NotAllowed => format!("a foreign host, {host}"),
            },
            match (evidence.refusal, evidence.address()) {
                (Refusal::NotAllowed, None) => allow(name),
                (Refusal::NotAllowed, Some(address)) => Some(with(&rules.probes, Token::Network(IpNet::from(address)))),
                (Refusal::PublicPeer, _) => Some((TRUSTED_PROXIES, trusted(rules, peer))),
                (Refusal::Missing, _) => Some(with(&rules.probes, Token::Missing)),
                (Refusal::Forwarded, _) => None,
            },
            match evidence.refusal {
                Refusal::PublicPeer => "if the peer is your load balancer",
                _ => "if it is yours",
            },
            "",
        ),
    };
    let hint = hint(when, remedy.as_ref(), rest);
    Diagnosis { sender, what, remedy, hint }
}

/// When to set what, and what else there is to know.
fn hint(when: &str, remedy: Option<&(&'static str, String)>, rest: &str) -> String {
    let Some((setting, value)) = remedy else {
        return [NOTHING, rest].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
    };
    let set = if value.len() > LONG_VALUE {
        format!("add {} to {setting}", value.rsplit(',').next().unwrap_or_default())
    } else {
        format!("{setting}={value}")
    };
    let set = if when.is_empty() { set } else { format!("{when}: {set}") };
    if rest.is_empty() { set } else { format!("{set} ({rest})") }
}

/// Who sent it. Looks through the whole list of allowed hosts, so not to be asked at every request.
pub fn sender(evidence: &Evidence<'_>, rules: &Rules) -> Sender {
    let agent = evidence.field(USER_AGENT);
    let elb = agent.starts_with("ELB-HealthChecker/");
    let (peer, local) = (evidence.peer.address, evidence.peer.local);
    let inside = evidence.inside;
    match evidence.refusal {
        Refusal::Missing if elb || inside => return Sender::ClassicProbe,
        Refusal::PublicPeer if agent.starts_with(ROUTE_53) => return Sender::Route53,
        Refusal::PublicPeer if elb || agent.starts_with(KUBE_PROBE) => return Sender::Unknown,
        Refusal::Missing | Refusal::Forwarded | Refusal::PublicPeer => return Sender::Scanner,
        Refusal::NotAllowed => {}
    }
    let Some(authority) = evidence.authority else { return Sender::Unknown };
    // A hint is copied into the list of allowed hosts, which doesn't take every name.
    if matches!(authority.host, Host::Name(name) if check_host_name(name).is_err()) {
        return Sender::Scanner;
    }
    if agent.starts_with(KUBE_PROBE) {
        return Sender::Kubelet;
    }
    if agent.starts_with(ROUTE_53) {
        return Sender::Route53;
    }
    let forwarded = forwarding::is_forwarded(evidence.fields);
    if let Host::Ip(address) = authority.host {
        return match (elb && inside && !forwarded, authority.port) {
            // An NLB's check names the address that it comes from; an ALB's the one that it goes to, with the port that
            // it goes to.
            (true, _) if address == peer => Sender::NlbProbe,
            (true, Some(port)) if port == local.port() => Sender::AlbProbe,
            (true, _) => Sender::NlbProbe,
            (false, _) if address.to_canonical().is_loopback() || peer.is_loopback() => Sender::Task,
            (false, _) if forwarded || !inside => Sender::Scanner,
            (false, _) => Sender::Unknown,
        };
    }
    let mut names = evidence.fields.iter().map(|(name, _)| name.as_str());
    if names.any(|name| name.starts_with("x-amzn-apigateway-")) || evidence.has(VIA, "AmazonAPIGateway") {
        return Sender::ApiGateway;
    }
    if evidence.fields.contains(X_AMZ_CF_ID) || evidence.has(VIA, "(CloudFront)") {
        return Sender::CloudFront;
    }
    let Host::Name(name) = authority.host else { return Sender::Unknown };
    let name = name.to_ascii_lowercase();
    if is_allowed_on_another_port(&name, rules) {
        return Sender::OtherPort;
    }
    if evidence.fields.iter().any(|(name, _)| name.as_str() == "x-envoy-expected-rq-timeout-ms") {
        return Sender::ServiceConnect;
    }
    if name.ends_with(".elb.amazonaws.com") || name.ends_with(".elb.amazonaws.com.cn") {
        return Sender::LoadBalancerName;
    }
    // A label alone is what Compose and other orchestrators call a container.
    if name == "localhost" || peer.is_loopback() && !forwarded && !name.contains('.') {
        return Sender::Task;
    }
    if name.contains('_') {
        return Sender::Underscore;
    }
    if is_near_an_allowed_one(&name, rules) {
        return Sender::Sibling;
    }
    if elb || SCANNERS.iter().any(|word| agent.contains(word)) { Sender::Scanner } else { Sender::Unknown }
}

impl Evidence<'_> {
    fn field(&self, name: Known) -> &str {
        self.fields.get(name).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default()
    }

    fn has(&self, name: Known, part: &str) -> bool {
        self.fields.get_all(name).any(|value| std::str::from_utf8(value).is_ok_and(|value| value.contains(part)))
    }

    fn address(&self) -> Option<IpAddr> {
        match self.authority?.host {
            Host::Ip(address) => Some(address),
            Host::Name(_) => None,
        }
    }

    fn name(&self) -> Option<&str> {
        match self.authority?.host {
            Host::Name(name) => Some(name),
            Host::Ip(_) => None,
        }
    }
}

/// What `HOSTWARD_PROBE_HOSTS` may get.
#[derive(Clone, Copy)]
enum Token {
    Peer,
    Missing,
    Network(IpNet),
}

/// `HOSTWARD_PROBE_HOSTS` as it is, and this.
fn with(probes: &ProbeHosts, token: Token) -> (&'static str, String) {
    let word = |given: bool, word: &str| given.then(|| word.to_owned());
    let (peer, missing) = (matches!(token, Token::Peer), matches!(token, Token::Missing));
    let mut items: Vec<String> =
        [word(probes.own, "self"), word(probes.peer || peer, "peer"), word(probes.missing || missing, "missing")]
            .into_iter()
            .flatten()
            .collect();
    items.extend(probes.networks.iter().map(ToString::to_string));
    if let Token::Network(network) = token {
        items.push(network.to_string());
    }
    (PROBE_HOSTS, items.join(","))
}

/// `HOSTWARD_TRUSTED_PROXIES` as it is, and this peer.
fn trusted(rules: &Rules, peer: IpAddr) -> String {
    let private = Networks::private();
    let others = rules.trusted.iter().filter(|network| !private.contains(network)).map(ToString::to_string);
    let all_private = private.iter().all(|network| rules.trusted.contains(network));
    let words = all_private.then(|| "private".to_owned()).into_iter().chain(others);
    words.chain([IpNet::from(peer).to_string()]).collect::<Vec<_>>().join(",")
}

/// The private network that an address is in, or the address alone.
fn network_of(address: IpAddr) -> IpNet {
    let address = address.to_canonical();
    Networks::private().into_iter().find(|network| network.contains(&address)).unwrap_or(IpNet::from(address))
}

fn is_allowed_on_another_port(name: &str, rules: &Rules) -> bool {
    rules.allowed.iter().any(|pattern| match &pattern.hosts {
        Hosts::Exact(allowed) => allowed == name,
        Hosts::Domain(allowed) => allowed == name || is_below(name, allowed),
        Hosts::Subdomains(allowed) => is_below(name, allowed),
        Hosts::Any => true,
        Hosts::Address(_) | Hosts::Network(_) => false,
    })
}

/// Whether a name shares all but the first label with an allowed one, or is right above it.
fn is_near_an_allowed_one(name: &str, rules: &Rules) -> bool {
    rules.allowed.iter().any(|pattern| match &pattern.hosts {
        Hosts::Exact(allowed) | Hosts::Domain(allowed) | Hosts::Subdomains(allowed) => {
            let above =
                |name: &str| name.split_once('.').map(|(_, rest)| rest.to_owned()).filter(|rest| rest.contains('.'));
            allowed == name
                || is_below(name, allowed)
                || is_below(allowed, name) && name.contains('.')
                || above(name).is_some_and(|rest| above(allowed) == Some(rest))
        }
        Hosts::Address(_) | Hosts::Network(_) | Hosts::Any => false,
    })
}

fn is_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

impl Sender {
    /// A stable word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AlbProbe => "alb_probe",
            Self::NlbProbe => "nlb_probe",
            Self::ClassicProbe => "classic_elb_probe",
            Self::Kubelet => "kubelet",
            Self::Route53 => "route53",
            Self::ApiGateway => "api_gateway",
            Self::ServiceConnect => "service_connect",
            Self::CloudFront => "cloudfront",
            Self::LoadBalancerName => "load_balancer_name",
            Self::OtherPort => "other_port",
            Self::Sibling => "sibling",
            Self::Underscore => "underscore",
            Self::Task => "task",
            Self::Scanner => "scanner",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

const ALLOWED_HOSTS: &str = "HOSTWARD_ALLOWED_HOSTS";
const PROBE_HOSTS: &str = "HOSTWARD_PROBE_HOSTS";
const TRUSTED_PROXIES: &str = "HOSTWARD_TRUSTED_PROXIES";
/// What their agents begin with: kubernetes/kubernetes `pkg/probe/http/request.go`, and the Route 53 developer guide.
const KUBE_PROBE: &str = "kube-probe/";
const ROUTE_53: &str = "Amazon-Route53-Health-Check-Service";
/// Words in the agents of programs that try addresses.
const SCANNERS: [&str; 6] = ["zgrab", "masscan", "Nmap", "CensysInspect", "Expanse", "Go-http-client"];
const NOTHING: &str = "nothing should admit it";
/// Characters; a longer list is nothing to read in a line.
const LONG_VALUE: usize = 200;
