//! One client's HTTP/1.1 connection: plain requests, hyper for the others, timeouts and stopping around both, and an
//! answer to everything that hyper would drop in silence.
//!
//! hyper keeps 16 KiB of buffers for a connection, idle or not. So a connection gets it with a request that isn't plain,
//! and loses it after the answer; and when nothing has come for [`PAUSE`], it loses the rest: it is parked.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWrite;

use crate::body::incoming::Incoming;
use crate::downstream::http2::Found;
use crate::downstream::linger::{Closing, linger};
use crate::downstream::parked::{Life, Parked};
use crate::downstream::plain::Served;
use crate::downstream::server::{ACTIVE, BUFFER, LAST_CALL, Server};
use crate::downstream::wire::{Preface, Wire, WireIo};
use crate::drain::Stage;
use crate::error::Failure;
use crate::exchange::Exchange;
use crate::io::flight::{Flight, Part, WaitingFor};
use crate::io::memory::Held;
use crate::io::socket::Socket;
use crate::io::timers::Timer;
use crate::message::forwarding::Ends;
use crate::message::head::{MAX_FIELDS, RequestHead, asterisk_form};
use crate::message::unparsed;
use crate::proxy::request::make_request_id;
use crate::proxy::response::{self, AnswerBody};
use crate::proxy::{Client, Silence};

/// What hyper's part of a connection ends in.
pub(super) enum After {
    /// A pause.
    Parked(Box<Parked>),
    /// HTTP/2's preface.
    Preface(Box<Found>),
    /// The last response, behind which the connection is closed in stages.
    Closing(Box<Closing>),
    /// The end of the connection.
    Closed,
}

/// Why a connection is over, or hyper's part of it.
enum End {
    /// hyper is done with it.
    Finished(hyper::Result<()>),
    /// An answer breaks off.
    Broken,
    /// The request's framing is broken, and nobody has answered it.
    Violation(Failure),
    /// The framing of a body is broken whose request has been answered.
    BrokenBody,
    /// The client takes too long.
    Overdue(WaitingFor),
    /// The client has left.
    Gone,
    /// The client has closed its side, and was owed nothing.
    Left,
    /// hostward stops.
    Stopping,
    /// Memory is short.
    Shed(Failure),
    /// It is an HTTP/2 connection.
    Preface,
    /// It is to be an HTTP/2 connection, and isn't.
    NoPreface,
    /// Nothing is on its way in either direction.
    Idle,
}

impl Server {
    /// Serves a connection of which something can be read, until it is idle or closed.
    pub(super) async fn serve_http1(&self, parked: Box<Parked>) -> After {
        let config = &self.proxy.config;
        let Parked { socket, ends, timer, mut life, held } = *parked;
        let client = Client::new(&ends, config.tls.scheme(), &self.proxy.policy);
        let flight = Flight::new(timer, held, WaitingFor::Request);
        // RFC 9113 §3.2: over TLS it is the handshake that says which version is spoken, if the client asked for any.
        let preface = match socket.protocol() {
            Some(b"h2") => Preface::Required,
            None if life != Life::Used => Preface::Possible,
            _ => Preface::Absent,
        };
        let wire = Wire::new(socket, config.max_header_size, flight, config.body_timeout, preface);
        let (end, whole, read) = {
            let hyper = |max_headers: Option<usize>| {
                let service = async |request: Request<_>| {
                    let (mut head, body) = request.into_parts();
                    if wire.is_asterisk() {
                        head.uri = asterisk_form(head.uri);
                    }
                    self.answer(&client, &wire, &mut head.into(), Incoming::Http1(body)).await
                };
                let mut builder = http1::Builder::new();
                // The wire has counted the head already; hyper has to be able to hold what it admits.
                builder.half_close(true).max_buf_size(config.max_header_size.max(BUFFER));
                if let Some(max_headers) = max_headers {
                    builder.max_headers(max_headers);
                }
                builder.serve_connection(TokioIo::new(WireIo(Rc::clone(&wire))), service_fn(service))
            };
            let mut max_headers = None;
            let mut plain = pin!(self.serve_plain(&client, &wire));
            let mut connection = (!self.proxy.plain).then(|| hyper(None));
            let end = poll_fn(|cx| {
                wire.flight.timer().register(cx.waker());
                let mut polled_again = false;
                loop {
                    match &mut connection {
                        None => match plain.as_mut().poll(cx) {
                            Poll::Ready(Served::Other) => {
                                connection = Some(hyper(max_headers));
                                continue;
                            }
                            Poll::Ready(Served::All) => return Poll::Ready(End::Finished(Ok(()))),
                            Poll::Ready(Served::Left) => return Poll::Ready(End::Left),
                            Poll::Ready(Served::Broken) => return Poll::Ready(End::Broken),
                            Poll::Pending => {}
                        },
                        Some(serving) => {
                            if let Poll::Ready(outcome) = Pin::new(&mut *serving).poll(cx) {
                                let too_many = outcome.as_ref().is_err_and(hyper::Error::is_parse_too_large)
                                    && !wire.is_answered();
                                if too_many
                                    && max_headers.is_none()
                                    && let Some(stopped) = connection.take()
                                {
                                    // Not from the start: so many would cost every request an allocation.
                                    max_headers = Some(MAX_FIELDS);
                                    wire.take_back(stopped.into_parts().read_buf);
                                    connection = Some(hyper(max_headers));
                                    continue;
                                }
                                return Poll::Ready(End::Finished(outcome));
                            }
                            let between = !wire.flight.is_under_way() && !wire.flight.is_blocked();
                            // hyper 1.12 may read the next request when a flush ends a response, and return without
                            // having parsed it: neither the client nor the app would wake it.
                            if between && !wire.is_hungry() && !std::mem::replace(&mut polled_again, true) {
                                continue;
                            }
                            if between && wire.is_idle() && self.proxy.plain {
                                connection = None;
                                wire.flight.charge(Part::Library, 0);
                                plain.set(self.serve_plain(&client, &wire));
                                continue;
                            }
                        }
                    }
                    let cut = (self.stage.get() == Stage::Cut).then_some(Failure::Shutdown);
                    let is_new = cut.or_else(|| wire.flight.shed()).is_some_and(|why| wire.flight.abort(why));
                    if !is_new && !wire.flight.is_to_be_asked_again() {
                        break;
                    }
                }
                if wire.flight.is_blocked() {
                    wire.flight.poll_read_ahead(cx);
                }
                if wire.is_answered() {
                    life = Life::Used;
                }
                self.poll_end(&wire, &mut life, cx)
            })
            .await;
            // Before the exchange under way is dropped: what a client has got half of must not look whole.
            let whole = match end {
                End::Finished(Ok(())) | End::Left | End::Overdue(WaitingFor::Request) => true,
                End::Stopping => !wire.flight.is_under_way(),
                _ => false,
            };
            // With this block goes the exchange under way, which is recorded.
            (end, whole, connection.map(|connection| connection.into_parts().read_buf).unwrap_or_default())
        };
        match end {
            End::Idle => {
                return Rc::into_inner(wire).map_or(After::Closed, |wire| self.rest(wire, ends, life));
            }
            End::Preface => {
                return Rc::into_inner(wire).map_or(After::Closed, |wire| self.found(wire, client));
            }
            _ => {}
        }

        if let Some((tunnel, recording)) = client.take_tunnel()
            && matches!(end, End::Finished(Ok(())))
        {
            let mut early = BytesMut::from(read);
            early.unsplit(wire.take_ahead());
            let closing = || self.stage.get() >= Stage::Closing;
            let cut = || self.stage.get() == Stage::Cut;
            tunnel.run(|| wire.socket(), &wire.flight, early, &recording.exchange, closing, cut).await;
            drop(recording);
            return self.closing(wire);
        }
        let mut head = BytesMut::from(if read.is_empty() { wire.take_begun() } else { read });
        let failure = match end {
            End::Violation(failure) => failure,
            End::NoPreface => Failure::Malformed("no HTTP/2, although TLS agreed on it"),
            End::Shed(failure) if wire.has_request_begun() && !wire.is_answered() => failure,
            End::Shed(_) if !wire.flight.is_blocked() => return self.closing(wire),
            End::Overdue(WaitingFor::Head) => Failure::HeadTimeout,
            End::Finished(Err(error)) if error.is_parse_too_large() => Failure::HeadTooLarge,
            End::Finished(Err(error)) if error.is_parse() => unparsed::fault(&head),
            End::BrokenBody | End::Finished(Ok(())) => return self.closing(wire),
            End::Finished(_) if wire.is_request_incomplete() => return self.closing(wire),
            // The client may not have read all of its last response.
            End::Stopping | End::Overdue(WaitingFor::Request)
                if whole && life == Life::Used && self.stage.get() != Stage::Cut =>
            {
                return self.closing(wire);
            }
            End::Finished(_)
            | End::Broken
            | End::Gone
            | End::Left
            | End::Stopping
            | End::Shed(_)
            | End::Overdue(_)
            | End::Preface
            | End::Idle => {
                if whole {
                    wire.socket().say_goodbye();
                }
                if matches!(end, End::Overdue(WaitingFor::Client) | End::Shed(_)) {
                    wire.socket().give_up();
                }
                return After::Closed;
            }
        };
        head.unsplit(wire.take_ahead());
        if self.answer_unparsed(&wire, &client, failure, &head) { self.closing(wire) } else { After::Closed }
    }

    /// Answers one request, whoever has read it.
    pub(super) async fn answer(
        &self,
        client: &Client,
        wire: &Wire,
        head: &mut RequestHead,
        body: Incoming,
    ) -> Result<Response<AnswerBody>, Silence> {
        wire.begin_exchange();
        wire.flight.charge(Part::Connection, wire.socket().idle_memory() + ACTIVE);
        let mut response = self.proxy.handle(client, &wire.flight, head, body).await?;
        if self.stage.get() != Stage::Running && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    /// A connection that has begun with HTTP/2's preface.
    fn found(&self, wire: Wire, client: Client) -> After {
        let flight = Rc::clone(&wire.flight);
        let (socket, early) = wire.into_socket();
        let held = Rc::into_inner(flight).map(|flight| flight.into_parts().1);
        let held = held.unwrap_or_else(|| self.proxy.bounds.budget.hold());
        After::Preface(Box::new(Found { socket, early, client, held }))
    }

    /// Keeps of a connection what it needs while it says nothing.
    fn rest(&self, wire: Wire, ends: Ends, life: Life) -> After {
        let goes_on = wire.flight.waits_for(WaitingFor::Request);
        let (socket, timer, held) = self.take_apart(wire);
        if !goes_on {
            timer.arm(self.proxy.config.idle_timeout.saturating_sub(PAUSE));
        }
        After::Parked(Box::new(Parked { socket, ends, timer, life, held }))
    }

    /// Keeps of a connection what it takes to close it.
    fn closing(&self, wire: Rc<Wire>) -> After {
        Rc::into_inner(wire).map_or(After::Closed, |wire| {
            let (socket, timer, mut held) = self.take_apart(wire);
            let idle = socket.idle_memory();
            held.set(idle);
            // More than nothing: it can be ended to make way for others.
            timer.weigh(idle.max(1));
            After::Closing(Box::new(Closing { socket: socket.into(), timer, _held: held }))
        })
    }

    fn take_apart(&self, wire: Wire) -> (Socket, Timer, Held) {
        let flight = Rc::clone(&wire.flight);
        let (socket, _) = wire.into_socket();
        // The app may still be taking the last request's body, and somebody be looking at the time.
        let parts = Rc::into_inner(flight).map(Flight::into_parts);
        let (timer, held) = parts.unwrap_or_else(|| (self.timers.timer(), self.proxy.bounds.budget.hold()));
        (socket, timer, held)
    }

    /// Ready when something other than hyper ends the connection, or hyper's part of it.
    fn poll_end(&self, wire: &Wire, life: &mut Life, cx: &mut Context<'_>) -> Poll<End> {
        let config = &self.proxy.config;
        if matches!(wire.poll_interim(cx), Poll::Ready(Err(_))) || wire.poll_gone(cx).is_ready() {
            return Poll::Ready(End::Gone);
        }
        if self.stage.get() == Stage::Cut {
            return Poll::Ready(End::Stopping);
        }
        if let Some(failure) = wire.flight.shed() {
            return Poll::Ready(End::Shed(failure));
        }
        if wire.is_preface() {
            return Poll::Ready(End::Preface);
        }
        if wire.is_preface_missing() {
            return Poll::Ready(End::NoPreface);
        }
        if wire.flight.is_under_way() {
            return match wire.flight.overdue() {
                // Of the body: only when the answer has begun. Before, `proxy` answers 408.
                Some(what @ (WaitingFor::Client | WaitingFor::Body)) => Poll::Ready(End::Overdue(what)),
                _ => Poll::Pending,
            };
        }
        let overdue = wire.flight.overdue();
        if let Some(what) = overdue
            && what != WaitingFor::Pause
        {
            return Poll::Ready(End::Overdue(what));
        }
        if wire.flight.is_blocked() {
            return Poll::Pending;
        }
        if let Some(failure) = wire.flight.violation() {
            return Poll::Ready(if wire.is_answered() { End::BrokenBody } else { End::Violation(failure) });
        }
        if wire.has_request_begun() {
            wire.flight.wait(WaitingFor::Head, config.header_timeout);
        } else if self.stage.get() == Stage::Closing {
            match life {
                Life::Used => return Poll::Ready(End::Stopping),
                // It may have been accepted a moment ago, with its request on the way.
                Life::New => wire.flight.progress(WaitingFor::Request, LAST_CALL),
                Life::LastCall => {}
            }
            *life = Life::LastCall;
        } else if wire.flight.waits_for(WaitingFor::Request) {
            // What was read was no request, and is no reason to begin the time anew.
            return if wire.is_idle() { Poll::Ready(End::Idle) } else { Poll::Pending };
        } else if overdue.is_none() {
            wire.flight.wait(WaitingFor::Pause, config.idle_timeout.min(PAUSE));
        } else if config.idle_timeout <= PAUSE {
            return Poll::Ready(End::Overdue(WaitingFor::Request));
        } else if wire.is_idle() {
            return Poll::Ready(End::Idle);
        } else {
            wire.flight.wait(WaitingFor::Request, config.idle_timeout.saturating_sub(PAUSE));
        }
        Poll::Pending
    }

    /// Answers a client that speaks plain HTTP where TLS is spoken.
    pub(super) async fn refuse_plain(&self, socket: Socket, client: &Client, held: Held) {
        let config = &self.proxy.config;
        let flight = Flight::new(self.timers.timer(), held, WaitingFor::Nothing);
        let wire = Wire::new(socket, config.max_header_size, flight, config.body_timeout, Preface::Absent);
        if self.answer_unparsed(&wire, client, Failure::PlainHttp, b"") {
            linger(|| wire.socket(), wire.flight.timer(), &self.stage, config.body_timeout).await;
        }
    }

    /// Responds to what never became a request for hyper. `head` is what has been read of it. False when the client's socket
    /// does not take the few bytes at once.
    fn answer_unparsed(&self, wire: &Wire, client: &Client, failure: Failure, head: &[u8]) -> bool {
        let exchange = Exchange::begin(wire.flight.last_read(), client.address(), unparsed::read(head));
        exchange.request_id.get_or_init(make_request_id);
        let part = unparsed::line(head).filter(|_| matches!(failure, Failure::Malformed(_)));
        self.proxy.report_part(failure, &exchange, failure.status().as_u16(), part.as_deref());
        let mut bytes = response::synthetic_bytes(failure, &exchange);
        if wire.is_http2_agreed() {
            bytes = NOT_HTTP2.to_vec();
        }
        drop(self.proxy.record(exchange, &wire.flight));
        try_write(wire, &bytes)
    }
}

/// Writes what the socket's buffer takes at once. False when it doesn't take all.
fn try_write(wire: &Wire, bytes: &[u8]) -> bool {
    let mut idle = Context::from_waker(Waker::noop());
    let mut socket = wire.socket();
    let written = Pin::new(&mut *socket).poll_write(&mut idle, bytes);
    matches!(written, Poll::Ready(Ok(count)) if count == bytes.len())
        && Pin::new(&mut *socket).poll_flush(&mut idle).is_ready()
}

/// An empty SETTINGS frame, which comes first (RFC 9113 §3.4), and a GOAWAY with `PROTOCOL_ERROR`.
const NOT_HTTP2: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01";
/// How long a connection keeps what its next request needs. A busy one shouldn't have to get it anew.
const PAUSE: Duration = Duration::from_secs(1);
