//! What can go wrong with one exchange: whose fault it is, which status it becomes, which RFC 9209 token
//! names it, and what a person can do about it. One exhaustive `match` for each; no other place maps a
//! failure to a status.

use std::fmt;

use http::StatusCode;

use crate::config::Protocol;
use crate::exchange;
use crate::message::authority::InvalidAuthority;
use crate::policy::Refusal;

/// Why hostward answers itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request is not well-formed HTTP; says what is wrong with it.
    Malformed(&'static str),
    /// Plain HTTP where TLS is spoken.
    PlainHttp,
    /// A transfer coding other than `chunked`.
    UnknownCoding,
    /// The host is not a host.
    InvalidHost(InvalidAuthority),
    /// `CONNECT` or `TRACE`.
    Method,
    /// An `Expect` other than `100-continue`.
    Expectation,
    /// The policy refused the host. Its status is a setting.
    Refused(Refusal),
    /// The request head is longer than `MAX_HEADER_SIZE`.
    HeadTooLarge,
    /// The request has more header lines than [`MAX_FIELDS`](crate::message::head::MAX_FIELDS).
    TooManyHeaders,
    /// The request head is longer than a uwsgi packet.
    VariablesTooLarge,
    /// A body of unknown length, for an app whose protocol has to name it.
    LengthRequired,
    /// The request body is longer than `MAX_BODY_SIZE`.
    BodyTooLarge,
    /// The request head took longer than `HEADER_TIMEOUT`.
    HeadTimeout,
    /// The request body paused for longer than `BODY_TIMEOUT`.
    BodyTimeout,
    /// The client left before its answer.
    ClientGone,
    /// The app's name has no address.
    Name,
    /// The app's name has an address that hostward must not connect to.
    Prohibited,
    /// Nothing listens where the app should be.
    ConnectionRefused,
    /// The app did not take the connection within `UPSTREAM_CONNECT_TIMEOUT`.
    ConnectTimeout,
    /// hostward's user may not open the app's socket.
    Forbidden,
    /// The app, or the way to it, failed to take a connection for another reason.
    Unreachable,
    /// The app closed or reset the connection before its answer.
    ConnectionTerminated,
    /// The app's HTTP/2 connection ended before the response did.
    ConnectionLost,
    /// The app reset the request's HTTP/2 stream.
    StreamReset,
    /// The app refused the request's HTTP/2 stream, whenever it was tried.
    StreamRefused,
    /// The app's limit of HTTP/2 streams left no place for the request.
    StreamLimit,
    /// No response head within `UPSTREAM_RESPONSE_TIMEOUT`.
    ResponseTimeout,
    /// The app sent something that is not a response of the protocol it should speak.
    ResponseMalformed,
    /// The response head is longer than `MAX_RESPONSE_HEADER_SIZE`.
    ResponseHeadTooLarge,
    /// The response has more header lines than are accepted.
    TooManyResponseHeaders,
    /// The app switched protocols without having been asked, or to something else.
    UpgradeFailed,
    /// No connection to the app became free, because of `UPSTREAM_MAX_CONNECTIONS`.
    LimitReached,
    /// The request body can't be stored, because of `BUFFER_DIR`.
    SpoolFailed,
    /// The request body is more than `BUFFER_DISK` leaves.
    DiskFull,
    /// The memory budget is used up, and this request is too large, too slow or one too many.
    MemoryFull(Shed),
    /// No file descriptor for a connection to the app.
    OutOfDescriptors,
    /// `SHUTDOWN_TIMEOUT` was over before the answer began.
    Shutdown,
    /// A bug in hostward.
    Internal,
}

/// What a request does that has to end because memory is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shed {
    /// Its head takes more memory than others'.
    LargeHead,
    /// Its client is slow to send it.
    SlowClient,
    /// It waits for the app, or for memory.
    Busy,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's.
    Client,
    /// The app's.
    App,
    /// Ours.
    Hostward,
}

impl Failure {
    /// The status of the answer. For [`Failure::Refused`] the setting `REJECT_STATUS` overrules it.
    pub fn status(self) -> StatusCode {
        match self {
            // Nobody gets the one of `ClientGone`; `exchange` logs 499.
            Self::Malformed(_) | Self::PlainHttp | Self::InvalidHost(_) | Self::ClientGone => StatusCode::BAD_REQUEST,
            Self::UnknownCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::Refused(_) => StatusCode::MISDIRECTED_REQUEST,
            Self::HeadTooLarge | Self::TooManyHeaders | Self::VariablesTooLarge | Self::MemoryFull(Shed::LargeHead) => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::LengthRequired => StatusCode::LENGTH_REQUIRED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeadTimeout | Self::BodyTimeout | Self::MemoryFull(Shed::SlowClient) => StatusCode::REQUEST_TIMEOUT,
            Self::Name
            | Self::Prohibited
            | Self::ConnectionRefused
            | Self::Forbidden
            | Self::Unreachable
            | Self::ConnectionTerminated
            | Self::ConnectionLost
            | Self::StreamReset
            | Self::StreamRefused
            | Self::ResponseMalformed
            | Self::ResponseHeadTooLarge
            | Self::TooManyResponseHeaders
            | Self::UpgradeFailed => StatusCode::BAD_GATEWAY,
            Self::ConnectTimeout | Self::ResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::StreamLimit
            | Self::LimitReached
            | Self::SpoolFailed
            | Self::DiskFull
            | Self::MemoryFull(Shed::Busy)
            | Self::OutOfDescriptors
            | Self::Shutdown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The `error` of `Proxy-Status` and of the log (RFC 9209 §2.3).
    pub const fn token(self) -> &'static str {
        match self {
            Self::Malformed(_)
            | Self::PlainHttp
            | Self::UnknownCoding
            | Self::InvalidHost(_)
            | Self::Method
            | Self::Expectation
            | Self::HeadTooLarge
            | Self::TooManyHeaders
            | Self::VariablesTooLarge
            | Self::LengthRequired
            | Self::BodyTooLarge
            | Self::HeadTimeout
            | Self::BodyTimeout => "http_request_error",
            Self::Refused(_) => "http_request_denied",
            Self::ClientGone => "client_gone",
            Self::Name => "dns_error",
            Self::Prohibited => "destination_ip_prohibited",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectTimeout => "connection_timeout",
            Self::Forbidden | Self::Unreachable => "destination_unavailable",
            Self::ConnectionTerminated | Self::ConnectionLost | Self::StreamReset | Self::StreamRefused => {
                "connection_terminated"
            }
            Self::ResponseTimeout => "http_response_timeout",
            Self::ResponseMalformed => "http_protocol_error",
            Self::ResponseHeadTooLarge | Self::TooManyResponseHeaders => "http_response_header_section_size",
            Self::UpgradeFailed => "http_upgrade_failed",
            Self::StreamLimit | Self::LimitReached => "connection_limit_reached",
            Self::SpoolFailed
            | Self::DiskFull
            | Self::MemoryFull(_)
            | Self::OutOfDescriptors
            | Self::Shutdown
            | Self::Internal => "proxy_internal_error",
        }
    }

    /// Under what repeats are counted: the token, or what is more precise.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.name(),
            Self::Malformed(_) | Self::UnknownCoding | Self::Method | Self::Expectation => "malformed_request",
            Self::PlainHttp => "plain_http",
            Self::InvalidHost(_) => "malformed_host",
            Self::HeadTooLarge | Self::VariablesTooLarge => "head_too_large",
            Self::TooManyHeaders => "too_many_headers",
            Self::ResponseHeadTooLarge => "response_head_too_large",
            Self::TooManyResponseHeaders => "too_many_response_headers",
            Self::LengthRequired => "length_required",
            Self::BodyTooLarge => "body_too_large",
            Self::HeadTimeout => "head_timeout",
            Self::BodyTimeout => "body_timeout",
            Self::Forbidden => "socket_forbidden",
            Self::StreamReset => "stream_reset",
            Self::StreamRefused => "stream_refused",
            Self::StreamLimit => "stream_limit",
            Self::SpoolFailed => "spool_failed",
            Self::DiskFull => "spool_limit",
            Self::MemoryFull(_) => "memory_full",
            Self::OutOfDescriptors => "out_of_descriptors",
            Self::Shutdown => exchange::CUT,
            _ => self.token(),
        }
    }

    /// Who has to change something.
    pub const fn side(self) -> Side {
        match self {
            Self::Malformed(_)
            | Self::PlainHttp
            | Self::UnknownCoding
            | Self::InvalidHost(_)
            | Self::Method
            | Self::Expectation
            | Self::Refused(_)
            | Self::HeadTooLarge
            | Self::TooManyHeaders
            | Self::VariablesTooLarge
            | Self::LengthRequired
            | Self::BodyTooLarge
            | Self::HeadTimeout
            | Self::BodyTimeout
            | Self::ClientGone => Side::Client,
            Self::Name
            | Self::Prohibited
            | Self::ConnectionRefused
            | Self::ConnectTimeout
            | Self::Forbidden
            | Self::Unreachable
            | Self::ConnectionTerminated
            | Self::ConnectionLost
            | Self::StreamReset
            | Self::StreamRefused
            | Self::ResponseTimeout
            | Self::ResponseMalformed
            | Self::ResponseHeadTooLarge
            | Self::TooManyResponseHeaders
            | Self::UpgradeFailed => Side::App,
            Self::StreamLimit
            | Self::LimitReached
            | Self::SpoolFailed
            | Self::DiskFull
            | Self::MemoryFull(_)
            | Self::OutOfDescriptors
            | Self::Shutdown
            | Self::Internal => Side::Hostward,
        }
    }

    /// Under what repeats of its line in the log are counted: malformed requests by what is wrong with them.
    pub fn repeats(self) -> &'static str {
        match self {
            Self::Malformed(what) => what,
            _ => self.reason(),
        }
    }

    /// The stable `msg` of the event in the log.
    pub fn message(self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::UnknownCoding | Self::Method | Self::Expectation => "malformed request",
            Self::PlainHttp => "plain HTTP to a TLS port",
            Self::InvalidHost(_) => "malformed host",
            Self::Refused(_) => "request denied",
            Self::HeadTooLarge | Self::VariablesTooLarge | Self::BodyTooLarge => "request too large",
            Self::TooManyHeaders => "too many headers",
            Self::LengthRequired => "request body of unknown length",
            Self::HeadTimeout | Self::BodyTimeout => "client too slow",
            Self::ClientGone => "client gone",
            Self::Name | Self::Prohibited | Self::Forbidden | Self::Unreachable => "app unreachable",
            Self::ConnectionRefused => "app refused connection",
            Self::ConnectTimeout | Self::ResponseTimeout => "app too slow",
            Self::ConnectionTerminated | Self::ConnectionLost => "app closed connection",
            Self::StreamReset => "app reset stream",
            Self::StreamRefused => "app refused stream",
            Self::StreamLimit => "app's stream limit reached",
            Self::ResponseMalformed | Self::UpgradeFailed => "app sent a malformed answer",
            Self::ResponseHeadTooLarge => "response head too large",
            Self::TooManyResponseHeaders => "too many response headers",
            Self::LimitReached => "no connection to the app free",
            Self::SpoolFailed => "no room on disk for a request body",
            Self::DiskFull => "spool limit reached",
            Self::MemoryFull(_) => "memory short",
            Self::OutOfDescriptors => "out of file descriptors",
            Self::Shutdown => "request cut by shutdown",
            Self::Internal => "internal error",
        }
    }

    /// What to change, and where. `protocol` is the app's.
    pub fn hint(self, protocol: Protocol) -> &'static str {
        match self {
            Self::Malformed(_) | Self::UnknownCoding | Self::InvalidHost(_) | Self::Method | Self::Expectation => {
                "the client's request breaks HTTP; nothing here should admit it"
            }
            Self::PlainHttp => {
                "HOSTWARD_TLS is on, so the load balancer has to speak TLS: make its target group's protocol HTTPS"
            }
            Self::Refused(refusal) => refusal.hint(),
            Self::HeadTooLarge => "if the client is yours, raise HOSTWARD_MAX_HEADER_SIZE",
            Self::TooManyHeaders => {
                "a request may have 1,000 header lines, within HOSTWARD_MAX_HEADER_SIZE; no setting raises that"
            }
            Self::VariablesTooLarge => {
                "the uwsgi protocol has room for 65,535 bytes of fields; are there too many cookies?"
            }
            Self::LengthRequired => {
                "the uwsgi protocol needs a body's length beforehand; HOSTWARD_BUFFER_REQUESTS=auto finds it out"
            }
            Self::BodyTooLarge => "if the client is yours, raise HOSTWARD_MAX_BODY_SIZE",
            Self::HeadTimeout => "if the client is yours, raise HOSTWARD_HEADER_TIMEOUT",
            Self::BodyTimeout => "if the client is yours, raise HOSTWARD_BODY_TIMEOUT",
            Self::ClientGone => "the client did not wait; compare its timeout with the app's time",
            Self::Name => "the host in HOSTWARD_UPSTREAM has no address; in awsvpc mode the app is at 127.0.0.1",
            Self::Prohibited => "HOSTWARD_UPSTREAM leads to a link-local address, where credentials are served",
            Self::ConnectionRefused => {
                "nothing listens at HOSTWARD_UPSTREAM; is the app's container up, and does the app listen on that port or path?"
            }
            Self::ConnectTimeout => {
                "the app does not take connections; is it out of workers? HOSTWARD_UPSTREAM_CONNECT_TIMEOUT"
            }
            Self::Forbidden => {
                "hostward's user may not open the socket: give both containers one user or group, or the socket mode 666 (uWSGI: chmod-socket)"
            }
            Self::Unreachable => "HOSTWARD_UPSTREAM can't be reached from this container",
            Self::ConnectionTerminated if protocol == Protocol::Uwsgi => {
                "the app closed the connection before it answered; its own log says why (uWSGI: raise buffer-size, 4096 bytes unless set)"
            }
            Self::ConnectionTerminated => "the app closed the connection before it answered; its own log says why",
            Self::ConnectionLost => {
                "the app closed its HTTP/2 connection before its response ended; was it restarted? its own log says why"
            }
            Self::StreamReset => "the app reset the request's HTTP/2 stream (RST_STREAM); its own log says why",
            Self::StreamRefused => {
                "the app refused the HTTP/2 stream each time (REFUSED_STREAM): it is overloaded, stopping, or takes fewer streams than its SETTINGS say"
            }
            Self::StreamLimit => {
                "the app allows too few HTTP/2 streams for its response times: raise its SETTINGS_MAX_CONCURRENT_STREAMS, or give it more workers"
            }
            Self::ResponseTimeout => "the app took longer than HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT",
            Self::ResponseMalformed => {
                "what listens at HOSTWARD_UPSTREAM does not answer as its scheme says: http:// and uwsgi:// in HTTP/1.1, h2c:// in HTTP/2"
            }
            Self::ResponseHeadTooLarge => {
                "raise HOSTWARD_MAX_RESPONSE_HEADER_SIZE, or have the app send less (debug headers, many cookies?)"
            }
            Self::TooManyResponseHeaders => {
                "a response may have 1,000 header lines, within HOSTWARD_MAX_RESPONSE_HEADER_SIZE; does the app add one in a loop?"
            }
            Self::UpgradeFailed => "the app switched to a protocol that was not asked for",
            Self::LimitReached => "raise HOSTWARD_UPSTREAM_MAX_CONNECTIONS, or give the app more workers",
            Self::SpoolFailed => {
                "HOSTWARD_BUFFER_DIR can't be written: mount a volume there, with room for the bodies under way"
            }
            Self::DiskFull => {
                "all spooled bodies together reached HOSTWARD_BUFFER_DISK: raise it, give HOSTWARD_BUFFER_DIR a larger volume (a tmpfs is the container's memory), or lower HOSTWARD_MAX_BODY_SIZE"
            }
            Self::MemoryFull(_) => {
                "many slow or large requests at once: give hostward's container more memory (`memory` in the task definition), a HOSTWARD_BUFFER_DIR that can be written, or lower HOSTWARD_MAX_CONNECTIONS"
            }
            Self::OutOfDescriptors => {
                "raise `ulimits` (nofile) in the task definition, or lower HOSTWARD_MAX_CONNECTIONS"
            }
            Self::Shutdown => {
                "no answer had begun after HOSTWARD_SHUTDOWN_TIMEOUT; raise it, and the container's `stopTimeout` above it"
            }
            Self::Internal => "please report this with the log line",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => f.write_str(what),
            Self::PlainHttp => f.write_str("the client spoke plain HTTP to a TLS port"),
            Self::UnknownCoding => f.write_str("a transfer coding other than chunked"),
            Self::InvalidHost(why) => why.fmt(f),
            Self::Method => f.write_str("this method is not allowed here"),
            Self::Expectation => f.write_str("this expectation can't be met"),
            Self::Refused(_) => f.write_str("this host is not served here"),
            Self::HeadTooLarge => f.write_str("the request head is too large"),
            Self::TooManyHeaders => f.write_str("the request has too many headers"),
            Self::ResponseHeadTooLarge => f.write_str("the application's response head is too large"),
            Self::TooManyResponseHeaders => f.write_str("the application's response has too many headers"),
            Self::VariablesTooLarge => f.write_str("the request head is too large for the application's protocol"),
            Self::LengthRequired => f.write_str("the request body's length must be told beforehand"),
            Self::BodyTooLarge => f.write_str("the request body is too large"),
            Self::HeadTimeout => f.write_str("the request head took too long"),
            Self::BodyTimeout => f.write_str("the request body paused for too long"),
            Self::ClientGone => f.write_str("the client left"),
            Self::Name | Self::Prohibited | Self::Forbidden | Self::Unreachable => {
                f.write_str("the application can't be reached")
            }
            Self::ConnectionRefused => f.write_str("the application does not accept connections"),
            Self::ConnectTimeout => f.write_str("the application did not take the connection in time"),
            Self::ConnectionTerminated => f.write_str("the application closed the connection before it answered"),
            Self::ConnectionLost => f.write_str("the application closed the connection before its response ended"),
            Self::StreamReset => f.write_str("the application reset the request"),
            Self::StreamRefused => f.write_str("the application refused the request"),
            Self::ResponseTimeout => f.write_str("the application did not answer in time"),
            Self::ResponseMalformed => f.write_str("the application's answer is not well-formed HTTP"),
            Self::UpgradeFailed => f.write_str("the application switched to a protocol that was not asked for"),
            Self::StreamLimit | Self::LimitReached => f.write_str("the application is busy"),
            Self::SpoolFailed => f.write_str("the request body can't be stored"),
            Self::DiskFull => f.write_str("there is no disk space for the request body"),
            Self::MemoryFull(_) => f.write_str("the server is short of memory"),
            Self::OutOfDescriptors => f.write_str("there are too many connections"),
            Self::Shutdown => f.write_str("the server is stopping"),
            Self::Internal => f.write_str("an internal error"),
        }
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::App => "application",
            Self::Hostward => "proxy",
        })
    }
}
