//! One client's HTTP/1.1 connection: plain requests, hyper for the others, timeouts and stopping around both, and an
//! answer to everything that hyper would drop in silence.
//!
//! hyper keeps 16 KiB of buffers for a connection, idle or not. So a connection gets it with a request that isn't plain,
//! and loses it after the answer; and when nothing has come for [`PAUSE`], it loses the rest: it is parked.

use std::future::poll_fn;
use std::net::SocketAddr;
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

use crate::answer::{self, AnswerBody};
use crate::connection::http2::Found;
use crate::connection::parked::{Life, Parked};
use crate::connection::plain::Served;
use crate::connection::{BUFFER, LAST_CALL, Server, linger};
use crate::drain::Stage;
use crate::error::Failure;
use crate::exchange::Exchange;
use crate::flight::{Flight, WaitingFor};
use crate::incoming::Incoming;
use crate::message::head::RequestHead;
use crate::proxy::request::make_request_id;
use crate::proxy::{Client, Silence};
use crate::socket::Socket;
use crate::wire::{Wire, WireIo};

/// What hyper's part of a connection ends in.
pub(super) enum After {
    /// A pause.
    Parked(Box<Parked>),
    /// HTTP/2's preface.
    Preface(Box<Found>),
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
    /// hostward stops.
    Stopping,
    /// It is an HTTP/2 connection.
    Preface,
    /// Nothing is on its way in either direction.
    Idle,
}

impl Server {
    /// Serves a connection of which something can be read, until it is idle or closed.
    pub(super) async fn serve_http1(&self, parked: Box<Parked>) -> After {
        let config = &self.proxy.config;
        let Parked { socket, remote, local, timer, mut life } = *parked;
        let client = Client::new(remote, local, config.tls.scheme(), &self.proxy.policy);
        let flight = Flight::new(timer, WaitingFor::Request);
        let detect = life != Life::Used;
        let wire = Wire::new(socket, config.max_header_size, flight, config.body_timeout, detect);
        let (end, whole, read) = {
            let hyper = || {
                let service = async |request: Request<_>| {
                    let (head, body) = request.into_parts();
                    self.answer(&client, &wire, &mut head.into(), Incoming::Http1(body)).await
                };
                http1::Builder::new()
                    .half_close(true)
                    // The wire has counted the head already; hyper has to be able to hold what it admits.
                    .max_buf_size(config.max_header_size.max(BUFFER))
                    .serve_connection(TokioIo::new(WireIo(Rc::clone(&wire))), service_fn(service))
            };
            let mut plain = pin!(self.serve_plain(&client, &wire));
            let mut connection = (!self.proxy.plain).then(hyper);
            let end = poll_fn(|cx| {
                wire.flight.timer().register(cx.waker());
                loop {
                    match &mut connection {
                        None => match plain.as_mut().poll(cx) {
                            Poll::Ready(Served::Other) => {
                                connection = Some(hyper());
                                continue;
                            }
                            Poll::Ready(Served::All) => return Poll::Ready(End::Finished(Ok(()))),
                            Poll::Ready(Served::Broken) => return Poll::Ready(End::Broken),
                            Poll::Pending => {}
                        },
                        Some(hyper) => {
                            if let Poll::Ready(outcome) = Pin::new(hyper).poll(cx) {
                                return Poll::Ready(End::Finished(outcome));
                            }
                            let quiet = !wire.flight.is_under_way() && !wire.flight.is_blocked() && wire.is_idle();
                            if quiet && self.proxy.plain {
                                connection = None;
                                plain.set(self.serve_plain(&client, &wire));
                                continue;
                            }
                        }
                    }
                    let is_cut = self.stage.get() == Stage::Cut && wire.flight.cut();
                    if !is_cut && !wire.flight.is_to_be_asked_again() {
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
                End::Finished(Ok(())) | End::Overdue(WaitingFor::Request) => true,
                End::Stopping => !wire.flight.is_under_way(),
                _ => false,
            };
            // With this block goes the exchange under way, which is recorded.
            (end, whole, connection.map(|connection| connection.into_parts().read_buf).unwrap_or_default())
        };
        match end {
            End::Idle => {
                return Rc::into_inner(wire).map_or(After::Closed, |wire| self.rest(wire, remote, local, life));
            }
            End::Preface => {
                let found = |(socket, early)| After::Preface(Box::new(Found { socket, early, client }));
                return Rc::into_inner(wire).map(Wire::into_socket).map_or(After::Closed, found);
            }
            _ => {}
        }

        if let Some((tunnel, recording)) = client.take_tunnel()
            && matches!(end, End::Finished(Ok(())))
        {
            let mut early = BytesMut::from(read);
            early.unsplit(wire.take_ahead());
            let cut = || self.stage.get() >= Stage::Closing;
            tunnel.run(&wire, early, &recording.exchange, cut).await;
            return After::Closed;
        }
        let failure = match end {
            End::Violation(failure) => failure,
            End::Overdue(WaitingFor::Head) => Failure::HeadTimeout,
            End::Finished(Err(error)) if error.is_parse_too_large() => Failure::HeadTooLarge,
            End::Finished(Err(error)) if error.is_parse() => Failure::Malformed("the request head can't be parsed"),
            End::BrokenBody => return finish(&wire).await,
            End::Finished(_) if wire.is_request_incomplete() => return finish(&wire).await,
            End::Finished(_) | End::Broken | End::Gone | End::Stopping | End::Overdue(_) | End::Preface | End::Idle => {
                if whole {
                    wire.socket().say_goodbye();
                }
                if matches!(end, End::Overdue(WaitingFor::Client)) {
                    wire.socket().give_up();
                }
                return After::Closed;
            }
        };
        self.answer_unparsed(&wire, &client, failure).await;
        After::Closed
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
        let mut response = self.proxy.handle(client, &wire.flight, head, body).await?;
        if self.stage.get() != Stage::Running && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    /// Keeps of a connection what it needs while it says nothing.
    fn rest(&self, wire: Wire, remote: SocketAddr, local: SocketAddr, life: Life) -> After {
        let flight = Rc::clone(&wire.flight);
        let goes_on = flight.waits_for(WaitingFor::Request);
        let (socket, _) = wire.into_socket();
        // The app may still be taking the last request's body, and somebody be looking at the time.
        let timer = Rc::into_inner(flight).map_or_else(|| self.timers.timer(), Flight::into_timer);
        if !goes_on {
            timer.arm(self.proxy.config.idle_timeout.saturating_sub(PAUSE));
        }
        After::Parked(Box::new(Parked { socket, remote, local, timer, life }))
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
        if wire.is_preface() {
            return Poll::Ready(End::Preface);
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
    pub(super) async fn refuse_plain(&self, socket: Socket, client: &Client) {
        let config = &self.proxy.config;
        let flight = Flight::new(self.timers.timer(), WaitingFor::Nothing);
        let wire = Wire::new(socket, config.max_header_size, flight, config.body_timeout, false);
        self.answer_unparsed(&wire, client, Failure::PlainHttp).await;
    }

    /// Answers what never became a request for hyper.
    async fn answer_unparsed(&self, wire: &Wire, client: &Client, failure: Failure) {
        let exchange = Exchange::begin(wire.flight.last_read(), client.address(), None);
        exchange.request_id.get_or_init(make_request_id);
        self.proxy.report(failure, &exchange, failure.status().as_u16());
        let bytes = answer::synthetic_bytes(failure, &exchange);
        drop(self.proxy.record(exchange, &wire.flight));
        // The bytes fit a socket's empty buffer; a client that has not made room for them gets none.
        if try_write(wire, &bytes) {
            linger(|| wire.socket()).await;
        }
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

/// Closes.
async fn finish(wire: &Wire) -> After {
    linger(|| wire.socket()).await;
    After::Closed
}

/// How long a connection keeps what its next request needs. A busy one shouldn't have to get it anew.
const PAUSE: Duration = Duration::from_secs(1);
