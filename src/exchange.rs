//! The plain record of one request and its answer. Whoever handles the exchange writes into it; the access
//! log reads it once, when the answer's body has ended or was dropped.

use std::cell::{Cell, OnceCell};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Uri, Version};

/// One request and its answer, as far as it has come. The cells are filled in as the exchange goes on.
#[derive(Debug)]
pub struct Exchange {
    /// When the request head had been read.
    pub started: Instant,
    /// The other end of the connection.
    pub peer: IpAddr,
    /// What was asked for; absent when no request could be parsed.
    pub request: Option<Request>,
    /// Whom we believe to have asked.
    pub client: Cell<IpAddr>,
    /// The id that the app got.
    pub request_id: OnceCell<HeaderValue>,
    /// `allowed`, `probe`, `refused`, `reported` or `malformed`.
    pub decision: Cell<&'static str>,
    /// Whether the app was given a scheme without TLS, and no trusted peer said so.
    pub assumed_http: Cell<bool>,
    /// The rule behind the decision.
    pub rule: Cell<&'static str>,
    /// The status of the answer; 0 as long as there is none.
    pub status: Cell<u16>,
    /// An RFC 9209 token, or `client_gone`.
    pub error: Cell<Option<&'static str>>,
    /// From sending the request to the app's response head.
    pub upstream: Cell<Option<Duration>>,
    /// Bytes of the request body that were read.
    pub bytes_in: Cell<u64>,
    /// Bytes of the response body that were handed to the connection.
    pub bytes_out: Cell<u64>,
}

/// The part of a request that is logged.
#[derive(Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The request target.
    pub target: Uri,
    /// The authority as it was sent: the target's, or else the `Host`.
    pub host: Option<HeaderValue>,
    /// The version.
    pub version: Version,
    /// `User-Agent`.
    pub user_agent: Option<HeaderValue>,
    /// `X-Amzn-Trace-Id`, or `traceparent`.
    pub trace: Option<HeaderValue>,
}

impl Exchange {
    /// The record of an exchange that has just begun.
    pub fn begin(started: Instant, peer: IpAddr, request: Option<Request>) -> Self {
        Self {
            started,
            peer,
            request,
            client: Cell::new(peer),
            request_id: OnceCell::new(),
            decision: Cell::new("malformed"),
            assumed_http: Cell::new(false),
            rule: Cell::new(""),
            status: Cell::new(0),
            error: Cell::new(None),
            upstream: Cell::new(None),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
        }
    }

    /// The status of what went out, or 499 when nothing did because the client left.
    pub fn outcome(&self) -> u16 {
        match self.status.get() {
            0 => CLIENT_CLOSED_REQUEST,
            status => status,
        }
    }
}

/// The log's word for what was cut at the end of `SHUTDOWN_TIMEOUT`.
pub const CUT: &str = "shutdown";
/// nginx's number for a client that left before its answer. For the log only.
const CLIENT_CLOSED_REQUEST: u16 = 499;
