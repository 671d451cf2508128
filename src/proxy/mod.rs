//! The life of one request, in one function that reads top to bottom. Only this file knows the order of the
//! steps; each step is a file of its own.

pub mod read_ahead;
pub mod request;
pub mod response;
pub mod tunnel;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Instant, SystemTime};

use http::header::{self, HeaderValue};
use http::{Response, StatusCode, Version};
use http_body::Body;

use crate::body::incoming::Incoming;
use crate::body::{Buffering, Limits, RequestBody};
use crate::clock;
use crate::config::{Config, Protocol, RejectStatus, show};
use crate::diagnosis::diagnose::{self, Diagnosis, Evidence};
use crate::diagnosis::observer::Observer;
use crate::diagnosis::recent::{Failed, Recent};
use crate::diagnosis::refusals::Refusals;
use crate::error::{Failure, Side};
use crate::exchange::{self, Exchange};
use crate::io::flight::{Flight, WaitingFor};
use crate::log::Repeats;
use crate::log::access_log::Journal;
use crate::message::fields::Removal;
use crate::message::forwarding::{self, Ends, Origin, Peer, Source};
use crate::message::head::RequestHead;
use crate::message::location::Rewritten;
use crate::message::names::{
    CONTENT_LENGTH, HOST, Name, TRACEPARENT, UPGRADE, USER_AGENT, X_AMZN_TRACE_ID, X_FORWARDED_HOST, X_FORWARDED_PORT,
};
use crate::message::uwsgi::Packet;
use crate::message::{fields, upgrade};
use crate::metrics::{Count, Meter};
use crate::policy::{HostPolicy, Policy, Refusal, Rule, Verdict};
use crate::proxy::read_ahead::Bounds;
use crate::proxy::request::{Arrival, Inbound, make_request_id};
use crate::proxy::response::{AnswerBody, Recording};
use crate::proxy::tunnel::Tunnel;
use crate::upstream::{Answer, Upstream, uwsgi};

/// What a worker needs to answer requests.
#[derive(Debug)]
pub struct Proxy {
    /// The settings.
    pub config: Arc<Config>,
    /// Who may enter.
    pub policy: Arc<Policy>,
    /// Where request bodies wait until they are whole.
    pub buffering: Arc<Buffering>,
    /// The app.
    pub upstream: Rc<Upstream>,
    /// The access log.
    pub journal: Rc<Journal>,
    /// The worker's counts.
    pub meter: Rc<Meter>,
    /// Who watches what the app answers.
    pub observer: Rc<Observer>,
    /// What has been said in the log already.
    pub repeats: Arc<Repeats>,
    /// The hosts that were refused.
    pub refusals: Arc<Refusals>,
    /// The last failures.
    pub recent: Arc<Recent>,
    /// How far answers are read ahead.
    pub bounds: Bounds,
    /// Whether plain messages of HTTP/1.1 go past hyper. Only where both ways are compared is that not so.
    pub plain: bool,
}

/// One client's connection, as far as its requests have to know.
#[derive(Debug)]
pub struct Client {
    peer: Peer,
    /// What the peer speaks to us.
    scheme: &'static str,
    /// The host that the last request was admitted with, and the rule. A connection's requests nearly always
    /// carry the same one, and whether it is allowed depends on nothing else.
    admitted: RefCell<Option<(Box<[u8]>, Rule)>>,
    /// What the connection becomes once its 101 has been sent.
    tunnel: RefCell<Option<Box<(Tunnel, Recording)>>>,
}

/// The connection is to be closed without an answer.
#[derive(Debug)]
pub struct Silence;

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no answer")
    }
}

impl std::error::Error for Silence {}

impl Client {
    /// The client of a connection, which speaks `scheme`.
    pub fn new(ends: &Ends, scheme: &'static str, policy: &Policy) -> Self {
        let peer = Peer::new(ends, &policy.trusted);
        Self { peer, scheme, admitted: RefCell::default(), tunnel: RefCell::default() }
    }

    /// Who it is.
    pub fn address(&self) -> IpAddr {
        self.peer.address
    }

    /// The tunnel that the connection is to become, if any.
    pub fn take_tunnel(&self) -> Option<(Tunnel, Recording)> {
        self.tunnel.take().map(|both| *both)
    }
}

impl Proxy {
    /// Answers one request. What goes wrong becomes an answer too.
    ///
    /// # Errors
    ///
    /// When there is to be no answer.
    pub async fn handle(
        &self,
        client: &Client,
        flight: &Rc<Flight>,
        head: &mut RequestHead,
        body: Incoming,
    ) -> Result<Response<AnswerBody>, Silence> {
        flight.begin();
        let exchange = begin(client, flight, head);
        let recording = self.record(exchange, flight);
        let outcome = {
            let mut forward = pin!(self.forward(client, flight, &recording.exchange, head, body));
            poll_fn(|cx| {
                flight.aborted().map_or_else(|| forward.as_mut().poll(cx), |failure| Poll::Ready(Err(failure)))
            })
            .await
        };
        match outcome {
            Ok(Answer::Response(response)) => Ok(AnswerBody::relay(response, recording, &self.bounds)),
            Ok(Answer::Switched(response, app)) => {
                recording.exchange.status.set(response.status().as_u16());
                let tunnel = Tunnel::new(*app, self.config.tunnel_idle_timeout);
                client.tunnel.replace(Some(Box::new((tunnel, recording))));
                Ok(response.map(|()| AnswerBody::none()))
            }
            Err(failure) => {
                if recording.exchange.request_id.get().is_none() {
                    self.identify(client, head, &recording.exchange);
                }
                self.fail(failure, recording)
            }
        }
    }

    /// Who asks, and by which id, of a request that goes no further. Those that do are told in `rewrite`.
    fn identify(&self, client: &Client, head: &RequestHead, exchange: &Exchange) {
        let (address, _, id) =
            forwarding::origin(&head.fields, &client.peer, &self.policy.trusted, &self.config.forwarding);
        exchange.client.set(address);
        exchange.request_id.get_or_init(|| id.unwrap_or_else(make_request_id));
    }

    /// The record of an exchange that has begun in `flight`.
    pub fn record(&self, exchange: Exchange, flight: &Rc<Flight>) -> Recording {
        let (journal, meter) = (Rc::clone(&self.journal), Rc::clone(&self.meter));
        Recording::new(exchange, journal, meter, Rc::clone(flight), Rc::clone(&self.observer))
    }

    async fn forward(
        &self,
        client: &Client,
        flight: &Rc<Flight>,
        exchange: &Rc<Exchange>,
        head: &mut RequestHead,
        body: Incoming,
    ) -> Result<Answer, Failure> {
        let inbound = Inbound::read(head)?;
        if head.version == Version::HTTP_2 && request::head_size(head) > self.config.max_header_size {
            return Err(Failure::HeadTooLarge);
        }
        let verdict = self.judge(client, &inbound, head)?;
        exchange.decision.set(verdict.decision());
        exchange.rule.set(verdict.rule());
        if let Verdict::Refused(refusal) | Verdict::Reported(refusal) = verdict {
            self.report_refusal(refusal, client, &inbound, head, exchange);
        }
        let takes_interim = head.version >= Version::HTTP_11;
        let started = clock::millis_since_1970(exchange.started);
        let arrival = Arrival { peer: &client.peer, scheme: client.scheme, started };
        let mut dropped = None;
        let origin = request::rewrite(head, inbound, verdict, arrival, &self.config, &self.policy, |name, why| {
            if why == Removal::Name {
                self.meter.count(Count::DroppedHeaders, 1);
                dropped.get_or_insert_with(|| name.clone());
            }
        })?;
        if let Some(name) = dropped {
            self.report_dropped(&name, exchange, origin.client);
        }
        let rewritten = self.rewritten(verdict, &origin, client, head);
        exchange.assumed_http.set(origin.scheme_from != Source::Forwarded && !forwarding::is_secure(origin.scheme));
        let protocol = self.config.upstream.protocol;
        // Neither HTTP/2 nor the uwsgi protocol has upgrades.
        let websocket = protocol == Protocol::Http && head.fields.contains(UPGRADE);
        exchange.client.set(origin.client);
        exchange.request_id.set(origin.request_id).ok();

        let body = RequestBody::stream(body, Rc::clone(exchange), Rc::clone(flight), self.limits());
        // As long as the body is being read, no connection to the app is taken.
        let body = self.buffering.read(body).await?;
        body.write_framing(&mut head.fields);
        let packet =
            if protocol == Protocol::Uwsgi { Some(packet(head, &body, &client.peer, origin.client)?) } else { None };
        let connection =
            self.upstream.connection(head.method.is_idempotent(), self.config.upstream_response_timeout).await?;
        if let Some(packet) = packet {
            connection.send_instead(packet);
        }
        let asked = Instant::now();
        flight.progress(WaitingFor::App, self.config.upstream_response_timeout);
        let answer = self.upstream.send(connection, head, body, flight, takes_interim, self.plain).await;
        exchange.upstream.set(Some(asked.elapsed()));
        flight.arrived(WaitingFor::App);

        match answer? {
            Answer::Response(mut response) => {
                if !fields::is_response_framing_plain(response.headers_mut()) {
                    return Err(Failure::ResponseMalformed);
                }
                let offered = upgrade::offered(&response);
                fields::strip_response(response.headers_mut());
                upgrade::offer(response.headers_mut(), offered);
                if let Some(command) = fields::strip_server_commands(response.headers_mut()) {
                    self.observer.report_command(command, exchange);
                }
                if let Some(rewritten) = rewritten {
                    rewritten.apply(response.headers_mut());
                }
                *response.version_mut() = Version::HTTP_11;
                Ok(Answer::Response(response))
            }
            Answer::Switched(mut response, app) => {
                if !websocket || !upgrade::agrees_to_websocket(response.headers()) {
                    return Err(Failure::UpgradeFailed);
                }
                fields::strip_response(response.headers_mut());
                fields::strip_server_commands(response.headers_mut());
                upgrade::agree_to_websocket(response.headers_mut());
                Ok(Answer::Switched(response, app))
            }
        }
    }

    /// What an allowed request became, where `HOST_REWRITE=canonical` has hidden its host from the app.
    fn rewritten(
        &self,
        verdict: Verdict,
        origin: &Origin,
        client: &Client,
        head: &RequestHead,
    ) -> Option<Box<Rewritten>> {
        let canonical = self.policy.rewrite_allowed.as_ref().filter(|_| matches!(verdict, Verdict::Allowed(_)))?;
        let port = head.fields.get(X_FORWARDED_PORT).and_then(|port| std::str::from_utf8(port).ok()?.parse().ok());
        Some(Box::new(Rewritten {
            public: head.fields.value(X_FORWARDED_HOST)?,
            canonical: canonical.clone(),
            scheme: origin.scheme,
            ports: [port, self.config.upstream.port(), Some(client.peer.local.port())],
            target: head.target.path_and_query().map_or_else(String::new, ToString::to_string),
        }))
    }

    /// The policy's verdict, or what it was for the same host a moment ago.
    fn judge(&self, client: &Client, inbound: &Inbound, head: &RequestHead) -> Result<Verdict, Failure> {
        let host = inbound.host.as_ref().map(HeaderValue::as_bytes);
        if let (Some((admitted, rule)), Some(host)) = (&*client.admitted.borrow(), host)
            && **admitted == *host
        {
            return Ok(Verdict::Allowed(*rule));
        }
        let verdict = request::judge(&self.policy, &client.peer, inbound, head)?;
        if let (Verdict::Allowed(rule), Some(host)) = (verdict, host) {
            client.admitted.replace(Some((host.into(), rule)));
        }
        Ok(verdict)
    }

    /// One event in the log for each refused host, unless it has been said within the minute: who sends it, and what
    /// would admit it.
    fn report_refusal(
        &self,
        refusal: Refusal,
        client: &Client,
        inbound: &Inbound,
        head: &RequestHead,
        exchange: &Exchange,
    ) {
        let Ok(authority) = inbound.authority() else { return };
        let host = authority.map_or_else(|| "-".into(), |authority| authority.text.to_ascii_lowercase());
        let (rules, peer) = (&self.config.rules, &client.peer);
        let inside = self.policy.is_inside(peer.address);
        let evidence = Evidence { refusal, authority: authority.as_ref(), peer, inside, fields: &head.fields };
        let sender = || diagnose::sender(&evidence, rules);
        self.refusals.count(refusal, &host, Instant::now(), sender, |repeated| {
            let Diagnosis { sender, what, hint, .. } = diagnose::diagnose(&evidence, rules);
            let status = match (rules.mode, self.config.reject_status) {
                // It is the app's.
                (HostPolicy::Report, _) => None,
                (HostPolicy::Enforce, RejectStatus::Answer(status)) => Some(status.as_u16()),
                (HostPolicy::Enforce, RejectStatus::Close) => Some(CLOSED_WITHOUT_ANSWER),
            };
            // What is forwarded is told its id on the way.
            if status.is_some() {
                self.identify(client, head, exchange);
            }
            let id = exchange.request_id.get().and_then(|id| id.to_str().ok());
            let (client_ip, ..) =
                forwarding::origin(&head.fields, peer, &self.policy.trusted, &self.config.forwarding);
            let (reason, sender, path) = (refusal.name(), sender.name(), capped(head.target.path().as_bytes()));
            tracing::warn!(reason, sender, what, host, path, peer_ip = %peer.address, %client_ip, status, request_id = id, repeated, hint, "{}", rules.mode.message());
        });
    }

    /// One event in the log for headers that were dropped for their names, unless it has been said within the minute.
    fn report_dropped(&self, name: &Name, exchange: &Exchange, client_ip: IpAddr) {
        let (message, reason) = ("request header dropped", Removal::Name.name());
        let Some(repeated) = self.repeats.admit(message, reason, Instant::now()) else { return };
        let (header, peer_ip, what) = (capped(name.as_str().as_bytes()), exchange.peer, Removal::Name);
        let hint = "use letters, digits and hyphens alone in the name: apps on WSGI, CGI or PHP can't tell a header with \
                    another character from the one with a hyphen";
        tracing::warn!(reason, header, %what, %peer_ip, %client_ip, repeated, hint, "{message}");
    }

    /// Turns a failure into an answer and a line in the log.
    fn fail(&self, failure: Failure, recording: Recording) -> Result<Response<AnswerBody>, Silence> {
        let exchange = &recording.exchange;
        if failure == Failure::ClientGone {
            // `Recording` writes 499.
            return Err(Silence);
        }
        let status = match (failure, self.config.reject_status) {
            (Failure::Refused(_), RejectStatus::Answer(status)) => status,
            (Failure::Refused(_), RejectStatus::Close) => {
                exchange.status.set(CLOSED_WITHOUT_ANSWER);
                exchange.error.set(Some(failure.token()));
                return Err(Silence);
            }
            _ => failure.status(),
        };
        // `report_refusal` has said more about a refused host.
        if !matches!(failure, Failure::Refused(_)) {
            self.report(failure, exchange, status.as_u16());
        }
        let close = match failure {
            Failure::Refused(_) => false,
            Failure::MemoryFull(_) => true,
            _ => failure.side() == Side::Client,
        };
        let mut response = response::synthetic(failure, status, recording);
        if close || status == StatusCode::BAD_REQUEST {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    /// One event in the log, unless it has been said within the minute; and what the app or hostward failed is
    /// remembered.
    pub fn report(&self, failure: Failure, exchange: &Exchange, status: u16) {
        self.report_part(failure, exchange, status, None);
    }

    /// The same, with the part of a request that couldn't be read.
    pub fn report_part(&self, failure: Failure, exchange: &Exchange, status: u16, part: Option<&str>) {
        let (reason, message) = (failure.reason(), failure.message());
        let repeated = self.repeats.admit(message, failure.repeats(), Instant::now());
        if repeated.is_none() && failure.side() == Side::Client {
            return;
        }
        let request = exchange.request.as_ref();
        let host = request.and_then(|request| request.host.as_ref());
        let host = host.map_or_else(|| "-".into(), |host| capped(host.as_bytes()));
        let path = request.map_or_else(|| "-".into(), |request| capped(request.target.path().as_bytes()));
        let method = request.map_or_else(|| "-".into(), |request| capped(request.method.as_str().as_bytes()));
        let id = exchange.request_id.get().and_then(|id| id.to_str().ok()).unwrap_or("-");
        let (error, hint) = (failure.to_string(), failure.hint(self.config.upstream.protocol));
        match (failure.side(), repeated) {
            (Side::Client, repeated) => {
                let (peer_ip, client_ip) = (exchange.peer, exchange.client.get());
                tracing::warn!(reason, error, part, method, host, path, %peer_ip, %client_ip, status, request_id = id, repeated, hint, "{message}");
                return;
            }
            (Side::App | Side::Hostward, Some(repeated)) => {
                let upstream = &self.config.upstream;
                tracing::error!(reason, error, %upstream, host, path, status, request_id = id, repeated, hint, "{message}");
            }
            (Side::App | Side::Hostward, None) => {}
        }
        let (time, error, request_id) = (SystemTime::now(), failure.token(), id.to_owned());
        self.recent.push(Failed { time, msg: message, error, status, host, path, request_id });
    }

    fn limits(&self) -> Limits {
        Limits {
            size: self.config.max_body_size,
            pause: self.config.body_timeout,
            response: self.config.upstream_response_timeout,
        }
    }
}

/// What a uwsgi server reads in place of the head, which is reduced to what hyper has to know.
fn packet(head: &mut RequestHead, body: &RequestBody, peer: &Peer, client: IpAddr) -> Result<Packet, Failure> {
    // The protocol has no other way to say where a body ends.
    let length = body.size_hint().exact().ok_or(Failure::LengthRequired)?;
    let told = (length > 0 || head.fields.contains(CONTENT_LENGTH)).then_some(length);
    // The port belongs to the peer's address, not to that of a client behind it.
    let packet = Packet::new(head, told, if client == peer.address { peer.port } else { 0 })?;
    uwsgi::reduce(head, length);
    Ok(packet)
}

fn begin(client: &Client, flight: &Flight, head: &RequestHead) -> Exchange {
    let RequestHead { method, target, version, fields } = head;
    let request = exchange::Request {
        method: method.clone(),
        target: target.clone(),
        // The one that counts: RFC 9112 §3.2.2.
        host: match target.authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => fields.value(HOST),
        },
        version: *version,
        user_agent: fields.value(USER_AGENT),
        trace: fields.value(X_AMZN_TRACE_ID).or_else(|| fields.value(TRACEPARENT)),
    };
    Exchange::begin(flight.last_read(), client.peer.address, Some(request))
}

/// Text of a client's for an event: not for ever, and nothing that a terminal would obey.
fn capped(text: &[u8]) -> String {
    show(&String::from_utf8_lossy(&text[..text.len().min(1024)]))
}

/// nginx's number for it. For the log only.
const CLOSED_WITHOUT_ANSWER: u16 = 444;
