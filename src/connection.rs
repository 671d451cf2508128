//! One client's connection, from accept to close: hyper in the middle, timeouts and stopping around it, and
//! an answer to everything that hyper would drop in silence.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::StatusCode;
use http::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::answer::{self, Recording};
use crate::drain::Stage;
use crate::error::Failure;
use crate::exchange::Exchange;
use crate::flight::{Flight, WaitingFor};
use crate::proxy::request::make_request_id;
use crate::proxy::{Client, Proxy, Silence};
use crate::socket::Socket;
use crate::timers::Timers;
use crate::wire::{Wire, WireIo};

/// What a worker needs to serve connections.
#[derive(Debug)]
pub struct Server {
    /// What answers the requests.
    pub proxy: Proxy,
    /// The worker's timers.
    pub timers: Rc<Timers>,
    /// How far stopping has come.
    pub stage: Cell<Stage>,
}

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
}

impl Server {
    /// Serves a connection until it is closed.
    pub async fn serve(&self, stream: TcpStream, remote: SocketAddr, local: SocketAddr) {
        let config = &self.proxy.config;
        let flight = Flight::new(self.timers.timer());
        let wire = Wire::new(Socket::Tcp(stream), config.max_header_size, flight, config.body_timeout);
        let client = Client::new(remote.ip(), local, &self.proxy.policy);
        let service = service_fn(|request| async {
            wire.begin_exchange();
            let mut response = self.proxy.handle(&client, &wire.flight, request).await?;
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
        if matches!(end, End::Stopping) {
            wire.flight.cut();
        }
        // Drops the exchange under way, which records it.
        let read = connection.into_parts().read_buf;

        if let Some((tunnel, recording)) = client.take_tunnel()
            && matches!(end, End::Finished(Ok(())))
        {
            let mut early = bytes::BytesMut::from(read);
            early.unsplit(wire.take_ahead());
            let cut = || self.stage.get() >= Stage::Closing;
            return tunnel.run(&wire, early, &recording.exchange, cut).await;
        }
        let failure = match end {
            End::Violation(failure) => failure,
            End::Overdue(WaitingFor::Head) => Failure::HeadTimeout,
            End::Finished(Err(error)) if error.is_parse_too_large() => Failure::HeadTooLarge,
            End::Finished(Err(error)) if error.is_parse() => Failure::Malformed("the request head can't be parsed"),
            End::BrokenBody => return linger(&wire).await,
            End::Finished(_) if wire.is_request_incomplete() => return linger(&wire).await,
            End::Finished(_) | End::Gone | End::Stopping | End::Overdue(_) => return,
        };
        self.answer_unparsed(&wire, &client, failure).await;
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

    /// Answers what never became a request for hyper.
    async fn answer_unparsed(&self, wire: &Wire, client: &Client, failure: Failure) {
        let exchange = Exchange::begin(wire.flight.last_read(), client.address(), None);
        let id = exchange.request_id.get_or_init(make_request_id).clone();
        exchange.status.set(failure.status().as_u16());
        exchange.error.set(Some(failure.token()));
        self.proxy.report(failure, &exchange, failure.status().as_u16());
        let bytes = answer::synthetic_bytes(failure, &id);
        drop(Recording::new(exchange, Rc::clone(&self.proxy.journal), Rc::clone(&wire.flight)));
        // The bytes fit a socket's empty buffer; a client that has not made room for them gets none.
        if try_write(wire, &bytes) {
            linger(wire).await;
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

/// Closes so that the answer arrives: RFC 9112 §9.6, a close in two steps. A close with bytes unread would
/// reset the connection, and the reset could overtake the answer.
async fn linger(wire: &Wire) {
    let drained = async {
        poll_fn(|cx| Pin::new(&mut *wire.socket()).poll_shutdown(cx)).await?;
        poll_fn(|cx| poll_drain(wire, cx)).await
    };
    // The peer has closed, or has had its time.
    drop(tokio::time::timeout(LINGER, drained).await);
}

/// Ready when the client has closed its side.
fn poll_drain(wire: &Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let mut space = [0; 4096];
    loop {
        let mut read = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut *wire.socket()).poll_read(cx, &mut read))?;
        if read.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
    }
}

/// Bytes; hyper's smallest sensible bound, and the most that one direction of a connection may hold.
const BUFFER: usize = 64 * 1024;
/// How long a client that is still sending gets to read the answer.
const LINGER: Duration = Duration::from_secs(2);
/// How long a connection that was accepted at the very end gets for its request.
const LAST_CALL: Duration = Duration::from_secs(1);
