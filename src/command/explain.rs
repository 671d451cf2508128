//! `hostward explain`: what would happen to a request, by the proxy's own steps.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use http::header::{self, HeaderName, HeaderValue};
use http::{Request, Version};
use serde_json::{Value, json};

use super::{Explain, Format, status};
use crate::config::{Config, Protocol, RejectStatus};
use crate::diagnosis::diagnose::{Diagnosis, Evidence, diagnose};
use crate::discovery;
use crate::error::Failure;
use crate::message::fields::Removal;
use crate::message::forwarding::{Ends, Origin, Peer, Source};
use crate::message::framing::RequestFraming;
use crate::message::head::{MAX_FIELDS, RequestHead, asterisk_form};
use crate::message::lines::FieldLines;
use crate::message::names::X_FORWARDED_PORT;
use crate::message::unparsed;
use crate::message::uwsgi::Packet;
use crate::policy::{OwnAddresses, Policy, Rule, Verdict};
use crate::proxy::request::{self, Arrival, Inbound};

/// Prints the verdict, the rule and what the app would see. Returns the exit code: 0 enters, 3 doesn't, 2 when there is no
/// request to explain.
pub fn run(config: &Config, asked: &Explain, input: &mut impl Read, out: &mut impl Write) -> u8 {
    let head = match request(asked, input, config.max_header_size) {
        Ok(head) => head,
        Err(Unread::Input(error)) => return if writeln!(out, "no request to read: {error}").is_ok() { 2 } else { 1 },
        Err(Unread::Request(failure)) => return print(config, asked, &Explained::failed(failure), out),
    };
    let policy = Policy::new(&config.rules, own_addresses(config));
    let mut explained = Explained::of(config, &policy, asked, head);
    explained.seen = explained.host.as_deref().and_then(|host| status::refused(config, host));
    print(config, asked, &explained, out)
}

fn print(config: &Config, asked: &Explain, explained: &Explained, out: &mut impl Write) -> u8 {
    let printed = match asked.format {
        Format::Json => writeln!(out, "{:#}", explained.json(config)),
        Format::Text | Format::Markdown => explained.text(config, out),
    };
    match (printed, &explained.outcome) {
        (Err(_), _) => 1,
        (Ok(()), Ok(_)) => 0,
        (Ok(()), Err(_)) => 3,
    }
}

struct Explained {
    verdict: Option<Verdict>,
    /// The rules that were asked, in order.
    tried: Vec<(Rule, bool)>,
    outcome: Result<Seen, Failure>,
    diagnosis: Option<Diagnosis>,
    host: Option<String>,
    /// What the hostward that runs here knows of a refused host.
    seen: Option<String>,
}

/// What the app would see.
struct Seen {
    request_line: String,
    fields: FieldLines,
    /// Who the client is, by which scheme and port it came, and what says so.
    origin: Origin,
    /// The headers that it doesn't get, and why.
    removed: Vec<(String, Removal)>,
    /// What they are for an app that speaks uwsgi.
    packet: Option<Packet>,
}

/// Why there is no request to explain.
enum Unread {
    Input(io::Error),
    /// It is none, as the proxy would find.
    Request(Failure),
}

/// The request that is asked about: raw bytes, or what the flags say.
fn request(asked: &Explain, input: &mut impl Read, most: usize) -> Result<RequestHead, Unread> {
    let (head, ()) = if asked.raw {
        let mut bytes = Vec::new();
        input.take(most as u64 + 1).read_to_end(&mut bytes).map_err(Unread::Input)?;
        parse(&bytes, most).map_err(Unread::Request)?.into_parts()
    } else {
        let mut request = Request::new(());
        *request.method_mut() = asked.method.clone();
        *request.uri_mut() = asked.target.clone();
        *request.version_mut() = if asked.http10 { Version::HTTP_10 } else { Version::HTTP_11 };
        request.into_parts()
    };
    let mut head = RequestHead::from(head);
    if let Some(host) = &asked.host {
        let host = HeaderValue::from_str(host).map_err(|_| Unread::Request(CONTROL))?;
        head.fields.append(header::HOST, host);
    }
    for (name, value) in &asked.headers {
        head.fields.append(name.clone(), value.clone());
    }
    Ok(head)
}

/// A raw request's head, by the proxy's own look at the bytes and the parser that hyper has.
fn parse(bytes: &[u8], most: usize) -> Result<Request<()>, Failure> {
    let mut framing = RequestFraming::new(most);
    framing.feed(bytes)?;
    let mut lines = vec![httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut lines);
    match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Failure::Malformed("the request head has no end")),
        Err(httparse::Error::TooManyHeaders) => return Err(Failure::TooManyHeaders),
        Err(_) => return Err(unparsed::fault(bytes)),
    }
    let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut request = Request::builder().version(version);
    if let (Some(method), Some(target)) = (parsed.method, parsed.path) {
        request = request.method(method).uri(target);
    }
    for line in parsed.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| UNPARSED)?;
        request = request.header(name, line.value);
    }
    let mut request = request.body(()).map_err(|_| UNPARSED)?;
    if framing.is_asterisk() {
        *request.uri_mut() = asterisk_form(std::mem::take(request.uri_mut()));
    }
    Ok(request)
}

impl Seen {
    fn port(&self) -> String {
        self.fields.get(X_FORWARDED_PORT).map_or_else(String::new, |port| String::from_utf8_lossy(port).into_owned())
    }
}

impl Explained {
    fn failed(failure: Failure) -> Self {
        Self { verdict: None, tried: Vec::new(), outcome: Err(failure), diagnosis: None, host: None, seen: None }
    }

    fn of(config: &Config, policy: &Policy, asked: &Explain, mut head: RequestHead) -> Self {
        let port = asked.local_port.unwrap_or_else(|| config.listen.port());
        let local = SocketAddr::new(asked.local.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port);
        let remote = SocketAddr::new(asked.peer.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), 0);
        let peer = Peer::new(&Ends { remote, local, destination_port: None }, &policy.trusted);
        let inbound = match Inbound::read(&head) {
            Ok(inbound) => inbound,
            Err(failure) => return Self::failed(failure),
        };
        let authority = match inbound.authority() {
            Ok(authority) => authority,
            Err(failure) => return Self::failed(failure),
        };
        let (verdict, tried) = policy.trace(&request::facts(authority.as_ref(), &peer, &head));
        let diagnosis = match verdict {
            Verdict::Allowed(_) | Verdict::Probe(_) => None,
            Verdict::Refused(refusal) | Verdict::Reported(refusal) => {
                let inside = policy.is_inside(peer.address);
                let evidence =
                    Evidence { refusal, authority: authority.as_ref(), peer: &peer, inside, fields: &head.fields };
                Some(diagnose(&evidence, &config.rules))
            }
        };
        let host = authority.map(|authority| authority.text.to_ascii_lowercase());
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let started = u64::try_from(since_1970.as_millis()).unwrap_or_default();
        let arrival = Arrival { peer: &peer, scheme: config.tls.scheme(), started };
        let mut removed = Vec::new();
        let outcome = request::rewrite(&mut head, inbound, verdict, arrival, config, policy, |name, why| {
            removed.push((name.as_str().to_owned(), why));
        });
        let outcome = outcome.and_then(|origin| {
            let packet = match config.upstream.protocol {
                Protocol::Http | Protocol::H2c => None,
                Protocol::Uwsgi => Some(Packet::new(&head, None, 0)?),
            };
            let request_line = format!("{} {} {:?}", head.method, head.target, head.version);
            Ok(Seen { request_line, fields: head.fields, origin, removed, packet })
        });
        Self { verdict: Some(verdict), tried, outcome, diagnosis, host, seen: None }
    }

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

    fn hint(&self) -> Option<&str> {
        match (&self.diagnosis, &self.outcome) {
            (Some(diagnosis), _) => Some(&diagnosis.hint),
            // What becomes of a request has nothing to do with the app here.
            (None, Err(failure)) => Some(failure.hint(Protocol::Http)),
            (None, Ok(_)) => None,
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

    /// The rules that didn't hold, before the one that did.
    fn tried(&self) -> impl Iterator<Item = &'static str> {
        self.tried.iter().filter(|(_, holds)| !holds).map(|(rule, _)| rule.name())
    }

    fn text(&self, config: &Config, out: &mut impl Write) -> io::Result<()> {
        let rule = self.verdict.map_or("-", Verdict::rule);
        writeln!(out, "verdict  {}", self.decision())?;
        writeln!(out, "rule     {rule}: {}", self.why())?;
        let tried = self.tried().collect::<Vec<_>>().join(", ");
        if !tried.is_empty() {
            writeln!(out, "tried    {tried}")?;
        }
        if let Some(Diagnosis { sender, what, .. }) = &self.diagnosis {
            writeln!(out, "sender   {sender}: {what}")?;
        }
        if let Some(hint) = self.hint() {
            writeln!(out, "hint     {hint}")?;
        }
        if let Some(seen) = &self.seen {
            writeln!(out, "seen     {seen}")?;
        }
        if let Ok(seen) = &self.outcome {
            let Origin { client, client_from, scheme, scheme_from, port_from, .. } = &seen.origin;
            writeln!(out, "client   {client}: {client_from}")?;
            writeln!(out, "scheme   {scheme}: {scheme_from}")?;
            writeln!(out, "port     {}: {port_from}", seen.port())?;
            for (name, why) in &seen.removed {
                writeln!(out, "removed  {name}: {why}")?;
            }
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
            Ok(Seen { request_line, fields, packet: None, .. }) => {
                writeln!(out, "\nthe app sees\n\n  {request_line}")?;
                for (name, value) in fields.iter() {
                    writeln!(out, "  {}: {}", name.as_str(), String::from_utf8_lossy(value))?;
                }
                Ok(())
            }
        }
    }

    fn json(&self, config: &Config) -> Value {
        let fields = |fields: &FieldLines| -> Vec<Value> {
            fields.iter().map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value)])).collect()
        };
        let sees = |seen: &Seen| {
            let mut sees = json!({ "request_line": seen.request_line, "fields": fields(&seen.fields) });
            if let Some(packet) = &seen.packet {
                sees["variables"] = packet.variables().map(|(name, value)| json!([name, value])).collect();
            }
            sees
        };
        let from = |value: &str, source: Source| json!({ "value": value, "from": source.to_string() });
        let removed = |seen: &Seen| -> Vec<Value> {
            let removed = seen.removed.iter();
            removed.map(|(name, why)| json!({ "name": name, "reason": why.name(), "why": why.to_string() })).collect()
        };
        let seen = self.outcome.as_ref().ok();
        json!({
            "verdict": self.decision(),
            "rule": self.verdict.map(Verdict::rule),
            "why": self.why(),
            "tried": self.tried().collect::<Vec<_>>(),
            "sender": self.diagnosis.as_ref().map(|diagnosis| diagnosis.sender.name()),
            "what": self.diagnosis.as_ref().map(|diagnosis| &diagnosis.what),
            "hint": self.hint(),
            "seen": self.seen,
            "status": self.status(config),
            "client": seen.map(|seen| from(&seen.origin.client.to_string(), seen.origin.client_from)),
            "scheme": seen.map(|seen| from(seen.origin.scheme, seen.origin.scheme_from)),
            "port": seen.map(|seen| from(&seen.port(), seen.origin.port_from)),
            "removed": seen.map_or_else(Vec::new, removed),
            "app_sees": seen.map(sees),
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

const CONTROL: Failure = Failure::Malformed("the host has control characters");
const UNPARSED: Failure = Failure::Malformed("the request head can't be parsed");
/// For the task metadata endpoint. A person waits.
const PATIENCE: Duration = Duration::from_secs(2);
