//! Towards an app that speaks HTTP/2 in plain text: a worker's few connections, with many requests on each.
//!
//! A connection has a task of its own, because its requests come from many. What says that the app did not act
//! on a request (`REFUSED_STREAM`, or a GOAWAY that leaves it out) has it sent once more.

mod relay;
mod replay;
mod sending;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::Response;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::spawn_local;

use crate::body::RequestBody;
use crate::error::Failure;
use crate::flight::Flight;
use crate::message::head::RequestHead;
use crate::metrics::{self, Count, Meter};
use crate::socket::Socket;
use crate::upstream::connect::Connector;

pub(super) use relay::Relay;
use replay::Replay;
use sending::{Missed, attempt, translate};

/// One worker's connections.
#[derive(Debug)]
pub(super) struct Pool {
    connector: Connector,
    connections: RefCell<Vec<Rc<Open>>>,
    /// The connecting under way, which everybody waits for.
    connecting: RefCell<Option<Connecting>>,
    meter: Rc<Meter>,
}

/// How a connecting ends, once it has.
type Connecting = watch::Receiver<Option<Result<(), Failure>>>;

/// A connection.
struct Open {
    sender: SendRequest<Bytes>,
    /// Requests under way.
    streams: Cell<usize>,
    /// Whether it has brought an answer, so that the app may mean to close it.
    used: Cell<bool>,
    idle_since: Cell<Instant>,
    closed: Cell<bool>,
    _counted: metrics::Open,
}

/// The right to send one request.
#[derive(Debug)]
pub(super) struct Lease {
    open: Rc<Open>,
    /// Of `UPSTREAM_MAX_CONNECTIONS`.
    permit: Option<OwnedSemaphorePermit>,
}

impl Pool {
    pub(super) fn new(connector: Connector, meter: Rc<Meter>) -> Rc<Self> {
        Rc::new(Self { connector, connections: RefCell::default(), connecting: RefCell::default(), meter })
    }

    /// A place on a connection that takes another request, if need be on a new one.
    pub(super) async fn lease(self: &Rc<Self>, permit: Option<OwnedSemaphorePermit>) -> Result<Lease, Failure> {
        loop {
            if let Some(open) = self.pick() {
                open.streams.set(open.streams.get() + 1);
                return Ok(Lease { open, permit });
            }
            let mut connecting = self.connecting();
            let outcome = connecting.wait_for(Option::is_some).await;
            outcome.map_err(|_| Failure::Internal)?.unwrap_or(Err(Failure::Internal))?;
        }
    }

    /// Sends a request and returns the app's final response.
    pub(super) async fn send(
        self: &Rc<Self>,
        mut lease: Lease,
        head: &mut RequestHead,
        body: RequestBody,
        flight: &Rc<Flight>,
        takes_interim: bool,
    ) -> Result<Response<Relay>, Failure> {
        let idempotent = head.method.is_idempotent();
        let (head, ()) = head.take_request(()).ok_or(Failure::Internal)?.into_parts();
        let head = translate(head);
        let mut body = Replay::new(body);
        let mut first = true;
        loop {
            let reused = lease.open.used.get();
            self.meter.count(if reused { Count::Reuses } else { Count::FirstUses }, 1);
            let missed = match attempt(&lease, head.clone(), &mut body, flight, takes_interim).await {
                Ok((response, pump)) => {
                    lease.open.used.set(true);
                    return Ok(Relay::over(response, pump, lease));
                }
                Err(missed) => missed,
            };
            let failure = match missed {
                Missed::Unprocessed => Failure::ConnectionTerminated,
                Missed::Broken(failure) if reused && idempotent => failure,
                Missed::Broken(failure) | Missed::Final(failure) => return Err(failure),
            };
            if !first || !body.rewind() {
                return Err(failure);
            }
            first = false;
            self.meter.count(Count::Repeats, 1);
            lease = self.lease(lease.permit.take()).await?;
        }
    }

    /// Closes idle connections whose time has come.
    pub(super) fn expire(&self, now: Instant, idle_timeout: Duration) {
        self.connections.borrow_mut().retain(|open| {
            !open.closed.get() && (open.streams.get() > 0 || now.duration_since(open.idle_since.get()) < idle_timeout)
        });
    }

    /// How many connections there are.
    pub(super) fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    /// How many carry no request.
    pub(super) fn unused(&self) -> usize {
        self.connections.borrow().iter().filter(|open| open.streams.get() == 0).count()
    }

    /// The first connection that the app lets have one more request. When all are full, and there are enough of
    /// them, the one with the fewest, where the request waits for its turn.
    fn pick(&self) -> Option<Rc<Open>> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|open| open.is_usable());
        let free = connections.iter().find(|open| open.streams.get() < open.sender.current_max_send_streams());
        let full = || connections.iter().min_by_key(|open| open.streams.get());
        free.or_else(|| if connections.len() < MAX_CONNECTIONS { None } else { full() }).cloned()
    }

    /// The connecting under way; begins it when there is none. It goes on when whoever asked has left: the next
    /// one wants it too.
    fn connecting(self: &Rc<Self>) -> Connecting {
        let mut connecting = self.connecting.borrow_mut();
        connecting
            .get_or_insert_with(|| {
                let (outcome, receiver) = watch::channel(None);
                let pool = Rc::clone(self);
                spawn_local(async move {
                    let connected = pool.connect().await;
                    pool.connecting.take();
                    outcome.send_replace(Some(connected));
                });
                receiver
            })
            .clone()
    }

    async fn connect(&self) -> Result<(), Failure> {
        let opened = async {
            let (socket, _) = self.connector.connect().await?;
            open(socket, &self.meter).await
        };
        let open = opened.await.inspect_err(|failure| self.meter.connect_failed(*failure))?;
        self.connections.borrow_mut().push(open);
        Ok(())
    }
}

async fn open(socket: Socket, meter: &Rc<Meter>) -> Result<Rc<Open>, Failure> {
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(BUFFER)
        .max_header_list_size(MAX_HEAD)
        // The app is no attacker. What clients give up leaves late frames behind, and those who are slow leave small
        // ones lying: neither may end a connection that others use.
        .max_local_error_reset_streams(None)
        .max_concurrent_reset_streams(REMEMBERED)
        .data_frame_budget(SMALL_FRAMES);
    let (sender, connection) = builder.handshake(socket).await.map_err(|_| Failure::ConnectionTerminated)?;
    let open = Rc::new(Open {
        sender,
        streams: Cell::new(0),
        used: Cell::new(false),
        idle_since: Cell::new(Instant::now()),
        closed: Cell::new(false),
        _counted: meter.open(Count::AppConnections, Count::AppConnectionsClosed),
    });
    let weak = Rc::downgrade(&open);
    spawn_local(async move {
        // What went wrong, each of its streams is told.
        drop(connection.await);
        if let Some(open) = weak.upgrade() {
            open.closed.set(true);
        }
    });
    Ok(open)
}

/// Asks an app for one answer without a body, on a connection of its own: what readiness is.
///
/// # Errors
///
/// Why there was none.
pub async fn ask(socket: Socket, head: http::request::Parts) -> Result<http::StatusCode, String> {
    let broken = |error: h2::Error| error.to_string();
    let (sender, connection) = client::handshake(socket).await.map_err(broken)?;
    let mut connection = pin!(connection);
    let mut sender = sender.ready().await.map_err(broken)?;
    let (response, _) = sender.send_request(translate(head), true).map_err(broken)?;
    let mut response = pin!(response);
    poll_fn(|cx| {
        // Its outcome is the response's, too.
        let _closed = connection.as_mut().poll(cx).is_ready();
        response.as_mut().poll(cx)
    })
    .await
    .map(|response| response.status())
    .map_err(broken)
}

impl Open {
    fn is_usable(&self) -> bool {
        // After a GOAWAY it takes no more requests, and lives on for those that it has.
        let mut idle = Context::from_waker(Waker::noop());
        !self.closed.get() && !matches!(self.sender.clone().poll_ready(&mut idle), Poll::Ready(Err(_)))
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").field("streams", &self.streams).field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.open.streams.set(self.open.streams.get() - 1);
        self.open.idle_since.set(Instant::now());
    }
}

/// Bytes that may be held of one request, to be sent or to be sent again.
const BUFFER: usize = 64 * 1024;
/// Bytes of a response head: as much as an HTTP/1.1 app may send.
const MAX_HEAD: u32 = 64 * 1024;
/// Bytes of an answer that may be under way before the client takes them.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Bytes for all streams together: as many as HTTP/2 knows. What bounds a stream is its own window; a bound on all would
/// have those clients who stand still keep the answers of everybody else from coming.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Connections of one worker. A second one is made only when the app allows no more requests on the first.
const MAX_CONNECTIONS: usize = 16;
/// Streams that have been reset, and whose last frames may still come.
const REMEMBERED: usize = 1024;
/// Bytes, as `h2` counts them: 256 less its length for each small DATA frame that waits to be read. Forty slow
/// readers of ten-byte messages.
const SMALL_FRAMES: usize = 64 * 1024 * 1024;
