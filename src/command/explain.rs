//! `hostward explain`: what would happen to a request, by the proxy's own steps.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Uri, Version};
use serde_json::{Value, json};

use super::{Explain, Format};
use crate::config::{Config, Protocol, RejectStatus};
use crate::discovery;
use crate::error::Failure;
use crate::message::forwarding::Peer;
use crate::message::uwsgi::Packet;
use crate::policy::{OwnAddresses, Policy, Verdict};
use crate::proxy::request::{self, Inbound};

/// Prints the verdict, the rule and what the app would see. Returns the exit code: 0 enters, 3 doesn't.
pub fn run(config: &Config, asked: &Explain, out: &mut impl Write) -> u8 {
    let policy = Policy::new(&config.rules, own_addresses(config));
    let explained = explain(config, &policy, asked);
    let enters = explained.outcome.is_ok();
    let printed = match asked.format {
        Format::Json => writeln!(out, "{:#}", explained.json(config)),
        Format::Text | Format::Markdown => explained.text(config, out),
    };
    match (printed, enters) {
        (Err(_), _) => 1,
        (Ok(()), true) => 0,
        (Ok(()), false) => 3,
    }
}

struct Explained {
    verdict: Option<Verdict>,
    outcome: Result<Seen, Failure>,
}

/// What the app would see.
struct Seen {
    fields: HeaderMap,
    /// What they are for an app that speaks uwsgi.
    packet: Option<Packet>,
}

fn explain(config: &Config, policy: &Policy, asked: &Explain) -> Explained {
    let local = SocketAddr::new(asked.local.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), config.listen.port());
    let peer = Peer::new(asked.peer.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), local, &policy.trusted);
    let mut verdict = None;
    let outcome = judged(config, policy, asked, &peer, &mut verdict);
    Explained { verdict, outcome }
}

fn judged(
    config: &Config,
    policy: &Policy,
    asked: &Explain,
    peer: &Peer,
    verdict: &mut Option<Verdict>,
) -> Result<Seen, Failure> {
    let mut request = Request::new(());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = Uri::from_static("/");
    *request.version_mut() = if asked.http10 { Version::HTTP_10 } else { Version::HTTP_11 };
    if let Some(host) = &asked.host {
        let host = HeaderValue::from_str(host).map_err(|_| Failure::Malformed("the host has control characters"))?;
        request.headers_mut().append(header::HOST, host);
    }
    for (name, value) in &asked.headers {
        request.headers_mut().append(name, value.clone());
    }
    let (mut head, ()) = request.into_parts();
    let inbound = Inbound::read(&head)?;
    let decided = *verdict.insert(request::judge(policy, peer, &inbound, &head)?);
    request::rewrite(&mut head, inbound, decided, peer, config.tls.scheme(), config, policy)?;
    let packet = match config.upstream.protocol {
        Protocol::Http | Protocol::H2c => None,
        Protocol::Uwsgi => Some(Packet::new(&head, None, 0)?),
    };
    Ok(Seen { fields: head.headers, packet })
}

impl Explained {
    /// One word: what the access log would say.
    fn decision(&self) -> &'static str {
        self.verdict.map_or("malformed", Verdict::decision)
    }

    fn why(&self) -> String {
        match (self.verdict, &self.outcome) {
            (Some(Verdict::Allowed(rule) | Verdict::Probe(rule)), _) => rule.to_string(),
            (Some(Verdict::Refused(refusal) | Verdict::Reported(refusal)), _) => refusal.to_string(),
            (None, Err(failure)) => failure.to_string(),
            (None, Ok(_)) => String::new(),
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match (self.verdict, &self.outcome) {
            (Some(Verdict::Reported(refusal)), _) => Some(refusal.hint()),
            (_, Err(failure)) => Some(failure.hint()),
            _ => None,
        }
    }

    fn status(&self, config: &Config) -> Option<u16> {
        match (&self.outcome, config.reject_status) {
            (Ok(_), _) => None,
            (Err(Failure::Refused(_)), RejectStatus::Answer(status)) => Some(status.as_u16()),
            (Err(Failure::Refused(_)), RejectStatus::Close) => Some(444),
            (Err(failure), _) => Some(failure.status().as_u16()),
        }
    }

    fn text(&self, config: &Config, out: &mut impl Write) -> io::Result<()> {
        let rule = self.verdict.map_or("-", Verdict::rule);
        writeln!(out, "verdict  {}", self.decision())?;
        writeln!(out, "rule     {rule}: {}", self.why())?;
        if let Some(hint) = self.hint() {
            writeln!(out, "hint     {hint}")?;
        }
        match &self.outcome {
            Err(_) => writeln!(out, "answer   {}\n\nthe app sees nothing", self.status(config).unwrap_or_default()),
            Ok(Seen { packet: Some(packet), .. }) => {
                writeln!(out, "\nthe app sees these variables\n")?;
                for (name, value) in packet.variables() {
                    writeln!(out, "  {name}={value}")?;
                }
                Ok(())
            }
            Ok(Seen { fields, packet: None }) => {
                writeln!(out, "\nthe app sees\n\n  GET / HTTP/1.1")?;
                for (name, value) in fields {
                    writeln!(out, "  {name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
                }
                Ok(())
            }
        }
    }

    fn json(&self, config: &Config) -> Value {
        let fields = |headers: &HeaderMap| -> Vec<Value> {
            headers
                .iter()
                .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
                .collect()
        };
        let sees = |seen: &Seen| {
            let mut sees = json!({ "request_line": "GET / HTTP/1.1", "fields": fields(&seen.fields) });
            if let Some(packet) = &seen.packet {
                sees["variables"] = packet.variables().map(|(name, value)| json!([name, value])).collect();
            }
            sees
        };
        json!({
            "verdict": self.decision(),
            "rule": self.verdict.map(Verdict::rule),
            "why": self.why(),
            "hint": self.hint(),
            "status": self.status(config),
            "app_sees": self.outcome.as_ref().ok().map(sees),
        })
    }
}

/// This task's addresses, as far as they can be had at once.
fn own_addresses(config: &Config) -> Arc<OwnAddresses> {
    let own = Arc::new(OwnAddresses { interfaces: discovery::interface_addresses(), discovered: OnceLock::new() });
    let (found, wait) = sync_channel(1);
    discovery::spawn(&config.task_ip, Arc::clone(&own), move |_| {
        found.try_send(()).ok();
    });
    // Either it was found at once, or there is nobody to ask (the sender is gone), or the time is over.
    wait.recv_timeout(PATIENCE).ok();
    own
}

/// For the task metadata endpoint. A person waits.
const PATIENCE: Duration = Duration::from_secs(2);
