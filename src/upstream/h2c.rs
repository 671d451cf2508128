//! Towards an app that speaks HTTP/2 in plain text: a worker's few connections, with many requests on each.
//!
//! A connection has a task of its own, because its requests come from many. What says that the app did not act
//! on a request (`REFUSED_STREAM`, or a GOAWAY that leaves it out) has it sent again.

mod queue;
mod relay;
mod replay;
mod sending;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::Response;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_local;

use crate::body::RequestBody;
use crate::error::Failure;
use crate::http2::pump::Gate;
use crate::http2::stream_body::{STREAM_WINDOW, Turn};
use crate::io::flight::{Flight, WaitingFor};
use crate::io::socket::Socket;
use crate::message::head::RequestHead;
use crate::metrics::{self, Count, Meter};
use crate::upstream::Bounds;
use crate::upstream::connect::Connector;

use queue::Queue;
pub(super) use relay::Relay;
use replay::Replay;
use sending::{Missed, attempt, translate};

/// One worker's connections.
#[derive(Debug)]
pub(super) struct Pool {
    connector: Connector,
    connections: RefCell<Vec<Rc<Open>>>,
    connecting: Cell<bool>,
    /// How many the app has taken at once on all of them when it refused one more.
    refused: Refused,
    /// Requests that wait for a place.
    queue: Queue,
    meter: Rc<Meter>,
    bounds: Bounds,
}

/// A connection.
struct Open {
    sender: SendRequest<Bytes>,
    gate: Rc<Gate>,
    /// Requests under way.
    streams: Cell<usize>,
    /// How many the app has taken at once when it refused one more.
    refused: Refused,
    /// Whether it has brought an answer, so that the app may mean to close it.
    used: Cell<bool>,
    idle_since: Cell<Instant>,
    closed: Cell<bool>,
    _counted: metrics::Open,
}

/// One request's place on a connection.
struct Place {
    open: Rc<Open>,
    pool: Rc<Pool>,
}

/// The right to send one request.
#[derive(Debug)]
pub(super) struct Lease {
    place: Place,
    /// Of `UPSTREAM_MAX_CONNECTIONS`.
    permit: Option<OwnedSemaphorePermit>,
}

impl Pool {
    pub(super) fn new(connector: Connector, meter: Rc<Meter>, bounds: Bounds) -> Rc<Self> {
        Rc::new(Self {
            connector,
            connections: RefCell::default(),
            connecting: Cell::new(false),
            refused: Refused::default(),
            queue: Queue::default(),
            meter,
            bounds,
        })
    }

    /// A place on a connection that takes another request, if need be on a new one, within `patience`.
    pub(super) async fn lease(
        self: &Rc<Self>,
        permit: Option<OwnedSemaphorePermit>,
        patience: Duration,
    ) -> Result<Lease, Failure> {
        if let Some(place) = self.free_place() {
            return Ok(Lease { place, permit });
        }
        let mut place = pin!(self.place());
        loop {
            match tokio::time::timeout(patience, place.as_mut()).await {
                Ok(place) => return place.map(|place| Lease { place, permit }),
                // The connector has bounds of its own.
                Err(_) if self.connecting.get() && self.connections.borrow().is_empty() => {}
                Err(_) => return Err(Failure::StreamLimit),
            }
        }
    }

    /// A place, as soon as there is one. Those who have waited longer come first.
    async fn place(self: &Rc<Self>) -> Result<Place, Failure> {
        if let Some(place) = self.free_place() {
            return Ok(place);
        }
        let place = self.queue.wait();
        self.serve_queue();
        place.await.unwrap_or(Err(Failure::Internal))
    }

    /// A place, if there is one and no other request waits.
    fn free_place(self: &Rc<Self>) -> Option<Place> {
        if self.queue.is_empty() { self.pick() } else { None }
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
        let mut body = Replay::new(body, &self.bounds.budget);
        let mut attempts = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            attempts += 1;
            let open = &lease.place.open;
            let reused = open.used.get();
            self.meter.count(if reused { Count::Reuses } else { Count::FirstUses }, 1);
            let missed = match attempt(&lease, head.clone(), &mut body, flight, takes_interim).await {
                Ok((response, pump)) => {
                    open.used.set(true);
                    return Ok(Relay::over(response, pump, lease, &self.bounds.budget));
                }
                Err(missed) => missed,
            };
            let (failure, wait) = match missed {
                Missed::Refused => (Failure::StreamRefused, !self.refused(open)),
                Missed::Unprocessed if attempts < MAX_ATTEMPTS => (Failure::ConnectionLost, attempts > 1),
                Missed::Unprocessed => return Err(Failure::ConnectionLost),
                Missed::Broken(failure) if reused && idempotent && attempts == 1 => (failure, false),
                Missed::Broken(failure) | Missed::Final(failure) => return Err(failure),
            };
            if !body.rewind() {
                return Err(failure);
            }
            let permit = lease.permit.take();
            drop(lease);
            self.meter.count(Count::Repeats, 1);
            let again = async {
                if wait {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                self.place().await
            };
            let place = in_time(again, flight, failure).await?;
            lease = Lease { place, permit };
        }
    }

    /// Closes idle connections whose time has come.
    pub(super) fn expire(self: &Rc<Self>, now: Instant, idle_timeout: Duration) {
        self.connections.borrow_mut().retain(|open| {
            !open.closed.get() && (open.streams.get() > 0 || now.duration_since(open.idle_since.get()) < idle_timeout)
        });
        // What was refused is forgotten with time.
        self.serve_queue();
    }

    /// Notes that the app has refused one more request on a connection. Whether it will take that when another one ends.
    fn refused(&self, open: &Open) -> bool {
        let others = open.streams.get() - 1;
        if others > 0 {
            open.refused.note(others);
            return true;
        }
        let elsewhere = self.streams().saturating_sub(1);
        if elsewhere > 0 {
            self.refused.note(elsewhere);
        }
        elsewhere > 0
    }

    /// How many requests are under way.
    fn streams(&self) -> usize {
        self.connections.borrow().iter().map(|open| open.streams.get()).sum()
    }

    /// How many connections there are.
    pub(super) fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    /// How many carry no request.
    pub(super) fn unused(&self) -> usize {
        self.connections.borrow().iter().filter(|open| open.streams.get() == 0).count()
    }

    /// A place on the first connection that the app lets have one more request.
    fn pick(self: &Rc<Self>) -> Option<Place> {
        if self.refused.above().is_some_and(|most| self.streams() >= most) {
            return None;
        }
        let mut connections = self.connections.borrow_mut();
        connections.retain(|open| open.is_usable());
        let open = Rc::clone(connections.iter().find(|open| open.streams.get() < open.limit())?);
        open.streams.set(open.streams.get() + 1);
        Some(Place { open, pool: Rc::clone(self) })
    }

    /// Gives free places to those who wait, and connects when there aren't enough.
    fn serve_queue(self: &Rc<Self>) {
        while !self.queue.is_empty() {
            match self.pick() {
                Some(place) => self.queue.give(place),
                None => return self.connect(),
            }
        }
    }

    /// Begins to connect, unless a connection is on its way already or there are enough. It goes on when the request that
    /// wanted it has left: the next one wants it too.
    fn connect(self: &Rc<Self>) {
        if self.refused.above().is_some() {
            return;
        }
        let connections = self.connections.borrow();
        // How many places a new one has, the app's settings say.
        let awaited = connections.iter().any(|open| !open.is_settled());
        if awaited || connections.len() >= MAX_CONNECTIONS || self.connecting.replace(true) {
            return;
        }
        let pool = Rc::clone(self);
        spawn_local(async move {
            let opened = async {
                let (socket, _) = pool.connector.connect(None).await?;
                open(socket, &pool).await
            };
            let opened = opened.await;
            pool.connecting.set(false);
            match opened {
                Ok(open) => {
                    pool.connections.borrow_mut().push(open);
                    pool.serve_queue();
                }
                Err(failure) => {
                    pool.meter.connect_failed(failure);
                    pool.connections.borrow_mut().retain(|open| open.is_usable());
                    // Else a place becomes free when a request ends.
                    if pool.connections.borrow().is_empty() {
                        pool.queue.fail(failure);
                    }
                }
            }
        });
    }
}

/// What comes of `again`, unless the time for the response is over.
async fn in_time<T>(
    again: impl Future<Output = Result<T, Failure>>,
    flight: &Flight,
    late: Failure,
) -> Result<T, Failure> {
    let mut again = pin!(again);
    poll_fn(|cx| match flight.overdue() {
        Some(WaitingFor::App | WaitingFor::Body) => Poll::Ready(Err(late)),
        _ => again.as_mut().poll(cx),
    })
    .await
}

async fn open(socket: Socket, pool: &Rc<Pool>) -> Result<Rc<Open>, Failure> {
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(BUFFER)
        // Twice the setting, because `h2` adds 32 bytes to each header; `check_head` counts.
        .max_header_list_size(u32::try_from(pool.bounds.head * 2).unwrap_or(u32::MAX))
        .initial_max_send_streams(UNSETTLED)
        // The app is no attacker. What clients give up leaves late frames behind, and those who are slow leave small
        // ones lying: neither may end a connection that others use.
        .max_local_error_reset_streams(None)
        .max_concurrent_reset_streams(REMEMBERED)
        .data_frame_budget(SMALL_FRAMES);
    let gate = Rc::<Gate>::default();
    let io = Io { socket, turn: Turn::default(), gate: Rc::clone(&gate) };
    let (sender, mut connection) = builder.handshake(io).await.map_err(|_| Failure::ConnectionLost)?;
    let open = Rc::new(Open {
        sender,
        gate,
        streams: Cell::new(0),
        refused: Refused::default(),
        used: Cell::new(false),
        idle_since: Cell::new(Instant::now()),
        closed: Cell::new(false),
        _counted: pool.meter.open(Count::AppConnections, Count::AppConnectionsClosed),
    });
    let (weak, pool) = (Rc::downgrade(&open), Rc::downgrade(pool));
    spawn_local(async move {
        let mut limit = UNSETTLED;
        // What went wrong, each of its streams is told.
        poll_fn(|cx| {
            let ended = Pin::new(&mut connection).poll(cx).map(drop);
            let before = std::mem::replace(&mut limit, connection.max_concurrent_send_streams());
            // The app's settings have come.
            if limit != before
                && let Some(pool) = pool.upgrade()
            {
                pool.serve_queue();
            }
            ended
        })
        .await;
        if let Some(open) = weak.upgrade() {
            open.closed.set(true);
        }
        if let Some(pool) = pool.upgrade() {
            pool.serve_queue();
        }
    });
    Ok(open)
}

/// What `h2` reads and writes.
struct Io {
    socket: Socket,
    turn: Turn,
    gate: Rc<Gate>,
}

impl Io {
    /// Notes whether the app takes what is written.
    fn tried<T>(&self, outcome: Poll<T>) -> Poll<T> {
        if outcome.is_pending() {
            self.gate.shut();
        } else {
            self.gate.open();
        }
        outcome
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { socket, turn, .. } = &mut *self;
        turn.poll_read(Pin::new(socket), cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.tried(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.tried(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.tried(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
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

    /// Whether the app has said how many requests it takes at once.
    fn is_settled(&self) -> bool {
        self.sender.current_max_send_streams() != UNSETTLED
    }

    /// How many requests there may be at once.
    fn limit(&self) -> usize {
        let limit = match self.sender.current_max_send_streams() {
            UNSETTLED => 1,
            limit => limit,
        };
        self.refused.above().map_or(limit, |most| limit.min(most))
    }
}

/// More requests than this at once were refused a moment ago.
#[derive(Debug, Default)]
struct Refused(Cell<Option<(usize, Instant)>>);

impl Refused {
    fn note(&self, taken: usize) {
        self.0.set(Some((taken, Instant::now())));
    }

    fn above(&self) -> Option<usize> {
        self.0.get().filter(|(_, when)| when.elapsed() < REFUSAL_TIME).map(|(taken, _)| taken)
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").field("streams", &self.streams).field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.open.fmt(f)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.streams.set(self.open.streams.get() - 1);
        self.open.idle_since.set(Instant::now());
        self.pool.serve_queue();
    }
}

/// Bytes of one request that `h2` may hold.
const BUFFER: usize = 64 * 1024;
/// Bytes for all streams together: as many as HTTP/2 knows. What bounds a stream is its own window; a bound on all would
/// have those clients who stand still keep the answers of everybody else from coming.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Connections of one worker. A second one is made only when the app allows no more requests on the first.
const MAX_CONNECTIONS: usize = 128;
/// What stands for the app's limit until its settings have come: none that a setting can name.
const UNSETTLED: usize = usize::MAX - 1;
/// For how long the app isn't sent more than it has taken when it refused.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// Attempts at one request on connections that the app doesn't use any more. What it has refused on one that it uses
/// is tried as long as there is time for the response.
const MAX_ATTEMPTS: usize = 5;
/// Between two attempts when the app takes nothing at all.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(640);
/// Streams that have been reset, and whose last frames may still come.
const REMEMBERED: usize = 1024;
/// Bytes, as `h2` counts them: 256 less its length for each small DATA frame that waits to be read. Far more than
/// comes in one [`Turn`], after which all are read.
const SMALL_FRAMES: usize = 64 * 1024 * 1024;
