//! One client's HTTP/1.1 connection: hyper in the middle, timeouts and stopping around it, and an answer to
//! everything that hyper would drop in silence.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use http::StatusCode;
use http::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWrite;

use crate::answer;
use crate::connection::{BUFFER, LAST_CALL, Server, linger};
use crate::drain::Stage;
use crate::error::Failure;
use crate::exchange::Exchange;
use crate::flight::{Flight, WaitingFor};
use crate::incoming::Incoming;
use crate::proxy::request::make_request_id;
use crate::proxy::{Client, Silence};
use crate::socket::Socket;
use crate::wire::{Wire, WireIo};

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    /// It has not brought a request.
    New,
    /// Nor is there much time left for one.
    LastCall,
    Used,
}

/// Why a connection is over.
enum End {
    /// hyper is done with it.
    Finished(hyper::Result<()>),
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
}

impl Server {
    /// Serves a connection until it is closed. When `detect` says that it may begin with HTTP/2's preface, and
    /// it does, the socket is given back with what was read from it.
    pub(super) async fn serve_http1(
        &self,
        socket: Socket,
        client: &Client,
        detect: bool,
    ) -> Option<(Socket, BytesMut)> {
        let config = &self.proxy.config;
        let flight = Flight::new(self.timers.timer());
        let wire = Wire::new(socket, config.max_header_size, flight, config.body_timeout, detect);
        let service = service_fn(|request: http::Request<hyper::body::Incoming>| async {
            wire.begin_exchange();
            let request = request.map(Incoming::Http1);
            let mut response = self.proxy.handle(client, &wire.flight, request).await?;
            if self.stage.get() != Stage::Running && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Silence>(response)
        });
        let mut connection = http1::Builder::new()
            .half_close(true)
            // The wire has counted the head already; hyper has to be able to hold what it admits.
            .max_buf_size(config.max_header_size.max(BUFFER))
            .serve_connection(TokioIo::new(WireIo(Rc::clone(&wire))), service);

        let mut life = Life::New;
        let end = poll_fn(|cx| {
            wire.flight.timer().register(cx.waker());
            loop {
                if let Poll::Ready(outcome) = Pin::new(&mut connection).poll(cx) {
                    return Poll::Ready(End::Finished(outcome));
                }
                if !wire.flight.is_to_be_asked_again() {
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
        if matches!(end, End::Stopping) {
            wire.flight.cut();
        }
        // Drops the exchange under way, which records it.
        let read = connection.into_parts().read_buf;
        if matches!(end, End::Preface) {
            return Rc::into_inner(wire).map(Wire::into_socket);
        }

        if let Some((tunnel, recording)) = client.take_tunnel()
            && matches!(end, End::Finished(Ok(())))
        {
            let mut early = BytesMut::from(read);
            early.unsplit(wire.take_ahead());
            let cut = || self.stage.get() >= Stage::Closing;
            tunnel.run(&wire, early, &recording.exchange, cut).await;
            return None;
        }
        let failure = match end {
            End::Violation(failure) => failure,
            End::Overdue(WaitingFor::Head) => Failure::HeadTimeout,
            End::Finished(Err(error)) if error.is_parse_too_large() => Failure::HeadTooLarge,
            End::Finished(Err(error)) if error.is_parse() => Failure::Malformed("the request head can't be parsed"),
            End::BrokenBody => return finish(&wire).await,
            End::Finished(_) if wire.is_request_incomplete() => return finish(&wire).await,
            End::Finished(_) | End::Gone | End::Stopping | End::Overdue(_) | End::Preface => {
                if whole {
                    wire.socket().say_goodbye();
                }
                if matches!(end, End::Overdue(WaitingFor::Client)) {
                    wire.socket().give_up();
                }
                return None;
            }
        };
        self.answer_unparsed(&wire, client, failure).await;
        None
    }

    /// Ready when something other than hyper ends the connection.
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
        if let Some(what) = wire.flight.overdue() {
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
        } else {
            // A connection that has never said anything has as long as a head may take.
            let new = *life == Life::New;
            wire.flight.wait(WaitingFor::Request, if new { config.header_timeout } else { config.idle_timeout });
        }
        Poll::Pending
    }

    /// Answers a client that speaks plain HTTP where TLS is spoken.
    pub(super) async fn refuse_plain(&self, socket: Socket, client: &Client) {
        let config = &self.proxy.config;
        let flight = Flight::new(self.timers.timer());
        let wire = Wire::new(socket, config.max_header_size, flight, config.body_timeout, false);
        self.answer_unparsed(&wire, client, Failure::PlainHttp).await;
    }

    /// Answers what never became a request for hyper.
    async fn answer_unparsed(&self, wire: &Wire, client: &Client, failure: Failure) {
        let exchange = Exchange::begin(wire.flight.last_read(), client.address(), None);
        let id = exchange.request_id.get_or_init(make_request_id).clone();
        exchange.status.set(failure.status().as_u16());
        exchange.error.set(Some(failure.token()));
        self.proxy.report(failure, &exchange, failure.status().as_u16());
        let bytes = answer::synthetic_bytes(failure, &id);
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

/// Closes, and gives nothing back.
async fn finish(wire: &Wire) -> Option<(Socket, BytesMut)> {
    linger(|| wire.socket()).await;
    None
}
