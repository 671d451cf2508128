//! Towards an app that answers in HTTP/1.1 (with the uwsgi protocol, too): a worker's connections, and the sending
//! of one request over one of them.
//!
//! A connection has no task of its own. Whoever sends a request over it polls it, inline, until the
//! response's body has ended; idle ones are looked at with every tick and when they are taken
//! out of the pool, which is enough to notice that the app has closed them. hyper's client comes to a connection with
//! the first exchange that isn't plain (`plain`).

mod relay;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use crate::body::RequestBody;
use crate::error::{Failure, Shed};
use crate::io::flight::{Flight, Part, WaitingFor};
use crate::io::memory::OpenSocket;
use crate::log::Repeats;
use crate::message::head::{MAX_FIELDS, RequestHead};
use crate::message::uwsgi::Packet;
use crate::metrics::{Count, Meter, Open};
use crate::upstream::connect::Connector;
use crate::upstream::keep_alive::KeepAlive;
use crate::upstream::plain::{self, Asking, Heard, Told};
use crate::upstream::stream::{BUFFER, Stream, StreamIo};
use crate::upstream::{Answer, Bounds, Limit, Source, Switched, check_head};

use relay::Content;
pub(super) use relay::Relay;

/// One worker's connections.
#[derive(Debug)]
pub(super) struct Pool {
    connector: Connector,
    idle_timeout: Duration,
    /// The most recently used last: it is the one least likely to be closed by the app.
    idle: RefCell<VecDeque<Idle>>,
    /// What is known of how long the app leaves them open.
    keep_alive: KeepAlive,
    limit: Option<Arc<Limit>>,
    /// Requests of this worker that wait for a connection; woken when one becomes idle.
    freed: Notify,
    waiting: Cell<usize>,
    /// Whether the app has been seen to answer twice on one connection, and not to close one right after its
    /// answer (as uWSGI's `http-socket` does, without a word).
    keeps_alive: Cell<bool>,
    /// Where plain requests are written before they are sent.
    scratch: RefCell<Vec<u8>>,
    meter: Rc<Meter>,
    bounds: Bounds,
}

/// A connection that carries no request.
#[derive(Debug)]
struct Idle {
    since: Instant,
    /// For how long it has been seen to be open.
    open_for: Duration,
    connection: Box<Connection>,
}

/// A connection to the app. At most one request is under way on it.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Rc<Stream>,
    /// What plain answers are read into.
    read: BytesMut,
    /// Bytes of the next one to be read at first: as many as the last one had.
    piece: usize,
    /// hyper's client, once there was need of it.
    hyper: Option<Box<Hyper>>,
    reused: bool,
    /// Whether the current request has been written to its end.
    is_request_written: bool,
    place: Place,
}

/// A connection's share of `UPSTREAM_MAX_CONNECTIONS`, and of the metrics, until it is closed.
#[derive(Debug)]
pub struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    _open: Open,
    _socket: OpenSocket,
}

#[derive(Debug)]
struct Hyper {
    sender: http1::SendRequest<RequestBody>,
    driver: http1::Connection<TokioIo<StreamIo>, RequestBody>,
    /// Whether it takes large response heads.
    large: bool,
}

impl Pool {
    pub(super) fn new(
        connector: Connector,
        idle_timeout: Duration,
        limit: Option<Arc<Limit>>,
        meter: Rc<Meter>,
        repeats: Arc<Repeats>,
        bounds: Bounds,
    ) -> Rc<Self> {
        Rc::new(Self {
            connector,
            idle_timeout,
            idle: RefCell::default(),
            keep_alive: KeepAlive::new(repeats),
            limit,
            freed: Notify::new(),
            waiting: Cell::new(0),
            keeps_alive: Cell::new(false),
            scratch: RefCell::default(),
            meter,
            bounds,
        })
    }

    /// An idle connection, or a new one, as soon as there may be one.
    pub(super) async fn connection(
        &self,
        idempotent: bool,
        queue_timeout: Duration,
    ) -> Result<Box<Connection>, Failure> {
        if let Some(connection) = self.take_idle(idempotent) {
            return Ok(connection);
        }
        let permit = match &self.limit {
            None => None,
            Some(limit) => match tokio::time::timeout(queue_timeout, self.queue(limit, idempotent)).await {
                Err(_) => return Err(Failure::LimitReached),
                Ok(Turn::Idle(connection)) => return Ok(connection),
                Ok(Turn::New(permit)) => permit,
            },
        };
        let (counted, buffer) = self.bounds.budget.socket();
        let connected = self.connector.connect(buffer).await;
        let (socket, address) = connected.inspect_err(|failure| self.meter.connect_failed(*failure))?;
        Ok(Box::new(Connection {
            stream: Stream::new(socket, address, self.connector.timeout(), self.bounds.budget.hold()),
            read: BytesMut::new(),
            piece: plain::PIECE,
            hyper: None,
            reused: false,
            is_request_written: true,
            place: Place {
                _socket: counted,
                _permit: permit,
                _open: self.meter.open(Count::AppConnections, Count::AppConnectionsClosed),
            },
        }))
    }

    /// Sends a request and returns the app's final response.
    pub(super) async fn send(
        self: &Rc<Self>,
        mut connection: Box<Connection>,
        head: &mut RequestHead,
        body: RequestBody,
        flight: &Rc<Flight>,
        takes_interim: bool,
        plain: bool,
    ) -> Result<Answer, Failure> {
        let idempotent = head.method.is_idempotent();
        let interim_to = takes_interim.then(|| Rc::clone(flight));
        connection.stream.begin(connection.reused, idempotent, body.is_in_memory(), interim_to);
        self.meter.count(if connection.reused { Count::Reuses } else { Count::FirstUses }, 1);
        let heard = if plain {
            self.ask_plainly(&mut connection, head, &body, flight).await?
        } else {
            Heard::Other(Bytes::new(), true)
        };
        let response = match heard {
            Heard::Plain(response) => {
                connection.piece = plain::piece(response.body().length);
                response.map(|Told { read, length, keeps_alive }| Content::Plain { read, left: length, keeps_alive })
            }
            Heard::Other(read, large) => {
                let is_counted = !read.is_empty();
                if is_counted {
                    connection.stream.resume(&read);
                }
                let most = large.then_some(self.bounds.head);
                let request = head.take_request(body).ok_or(Failure::Internal)?;
                let response = connection.ask(request, flight, most).await?;
                if !is_counted {
                    check_head(response.headers(), self.bounds.head, flight)?;
                }
                response.map(Content::Hyper)
            }
            Heard::Rejected(failure) => return Err(failure),
        };
        if connection.reused {
            self.keeps_alive.set(!connection.stream.was_repeated());
        }
        if connection.stream.was_repeated() {
            self.meter.count(Count::Repeats, 1);
            tracing::debug!(
                hint = "HOSTWARD_UPSTREAM_IDLE_TIMEOUT may be above the app's own keep-alive",
                "app closed idle connection"
            );
        }
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return connection.switch(response);
        }
        let pool = Rc::clone(self);
        let relay = |content| super::Relay(Source::Http1(Relay { content, connection: Some(connection), pool }));
        Ok(Answer::Response(response.map(relay)))
    }

    /// Sends a request and reads the answer, as far as both are plain. What isn't has nothing read of it, or the beginning.
    async fn ask_plainly(
        &self,
        connection: &mut Connection,
        head: &RequestHead,
        body: &RequestBody,
        flight: &Flight,
    ) -> Result<Heard, Failure> {
        let mut bytes = self.scratch.take();
        bytes.clear();
        let heard = if plain::write(&mut bytes, head, body) {
            let is_head = head.method == Method::HEAD;
            let mut asking = Asking::new(
                &connection.stream,
                &bytes,
                is_head,
                &mut connection.read,
                if flight.has_memory() { connection.piece } else { plain::PIECE },
                self.bounds.head,
            );
            std::future::poll_fn(|cx| match asking.poll(cx) {
                Poll::Ready(heard) => Poll::Ready(heard.map_err(|error| broken(&error))),
                Poll::Pending => {
                    // A long head waits for its end here, and is kept until the response has ended.
                    if asking.is_long() && !flight.charge(Part::Response, 3 * asking.read()) {
                        return Poll::Ready(Err(Failure::MemoryFull(Shed::Busy)));
                    }
                    overdue(flight).map_or(Poll::Pending, |failure| Poll::Ready(Err(failure)))
                }
            })
            .await
            .inspect(|_| connection.is_request_written = asking.is_written())?
        } else {
            Heard::Other(Bytes::new(), true)
        };
        bytes.shrink_to(plain::PIECE);
        self.scratch.replace(bytes);
        Ok(heard)
    }

    /// Closes idle connections whose time has come, and forgets those that the app has closed.
    pub(super) fn expire(&self, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        while idle.front().is_some_and(|first| now.duration_since(first.since) >= self.idle_timeout) {
            idle.pop_front();
        }
        idle.retain_mut(|Idle { since, open_for, connection }| {
            let idle_for = now.duration_since(*since);
            if connection.is_alive() {
                *open_for = idle_for;
                if idle_for >= PAUSE {
                    connection.read = BytesMut::new();
                }
                return true;
            }
            self.found_closed(idle_for, *open_for, now);
            false
        });
        // Another worker's request waits for what is idle here. One of this worker takes it by itself.
        if self.waiting.get() == 0 && self.limit.as_ref().is_some_and(|limit| limit.waiting.load(Ordering::Relaxed) > 0)
        {
            idle.pop_front();
        }
    }

    /// How many connections are idle.
    pub(super) fn len(&self) -> usize {
        self.idle.borrow().len()
    }

    fn take_idle(&self, idempotent: bool) -> Option<Box<Connection>> {
        loop {
            let Idle { since, open_for, connection } = if idempotent || self.keeps_alive.get() {
                self.idle.borrow_mut().pop_back()?
            } else {
                // The oldest: if the app closed connections after its answers, this one would be closed.
                let mut idle = self.idle.borrow_mut();
                if idle.front().is_none_or(|first| first.since.elapsed() < CLOSING_TIME) {
                    return None;
                }
                idle.pop_front()?
            };
            let now = Instant::now();
            let idle_for = now.duration_since(since);
            if idle_for >= self.idle_timeout {
                continue;
            }
            if connection.is_alive() {
                return Some(connection);
            }
            self.found_closed(idle_for, open_for, now);
        }
    }

    /// The app has closed a connection that was idle for so long, and open for so long.
    fn found_closed(&self, idle_for: Duration, open_for: Duration, now: Instant) {
        if idle_for < CLOSING_TIME {
            self.keeps_alive.set(false);
        }
        self.keep_alive.closed(open_for, idle_for, now);
    }

    /// Waits for one of the limited connections: one that this worker has to spare, or the right to a new one.
    async fn queue(&self, limit: &Limit, idempotent: bool) -> Turn {
        if let Ok(permit) = Arc::clone(&limit.connections).try_acquire_owned() {
            return Turn::New(Some(permit));
        }
        let _waiting = Waiting::new(&self.waiting, &limit.waiting);
        // An idle one that this request can't have gives its place away.
        self.idle.borrow_mut().pop_front();
        loop {
            tokio::select! {
                // The semaphore is never closed.
                permit = Arc::clone(&limit.connections).acquire_owned() => return Turn::New(permit.ok()),
                () = self.freed.notified() => {
                    if let Some(connection) = self.take_idle(idempotent) {
                        return Turn::Idle(connection);
                    }
                    self.idle.borrow_mut().pop_front();
                }
            }
        }
    }

    /// Takes a connection back after its response.
    fn put_back(&self, mut connection: Box<Connection>) {
        connection.stream.end();
        connection.reused = true;
        if self.idle_timeout.is_zero() {
            return;
        }
        let idle = Idle { since: Instant::now(), open_for: Duration::ZERO, connection };
        if self.waiting.get() > 0 {
            self.idle.borrow_mut().push_back(idle);
            self.freed.notify_one();
        } else if self.limit.as_ref().is_none_or(|limit| limit.waiting.load(Ordering::Relaxed) == 0) {
            self.idle.borrow_mut().push_back(idle);
        }
        // Else another worker waits for the right to connect: closing this one gives it away.
    }
}

enum Turn {
    Idle(Box<Connection>),
    New(Option<OwnedSemaphorePermit>),
}

/// Counts a waiting request, in its worker and in all, as long as it waits.
struct Waiting<'a>(&'a Cell<usize>, &'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(here: &'a Cell<usize>, everywhere: &'a AtomicUsize) -> Self {
        here.set(here.get() + 1);
        everywhere.fetch_add(1, Ordering::Relaxed);
        Self(here, everywhere)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
        self.1.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    /// The packet goes out in place of the head that will be sent.
    pub(super) fn send_instead(&self, packet: Packet) {
        self.stream.send_instead(packet);
    }

    /// Whether the app has left an idle connection open, and said nothing.
    fn is_alive(&self) -> bool {
        self.stream.is_quiet()
    }

    /// Sends a request with hyper. `large` bounds the response's head, if it is or may be a large one.
    async fn ask(
        &mut self,
        request: Request<RequestBody>,
        flight: &Flight,
        large: Option<usize>,
    ) -> Result<Response<Incoming>, Failure> {
        let Hyper { sender, driver, .. } = match &mut self.hyper {
            Some(hyper) if hyper.large || large.is_none() => &mut **hyper,
            other => {
                let io = TokioIo::new(StreamIo(Rc::clone(&self.stream)));
                let mut builder = http1::Builder::new();
                builder.max_buf_size(BUFFER);
                if let Some(most) = large {
                    // Not always: so many would cost every response an allocation.
                    builder.max_buf_size(BUFFER.max(most + 1)).max_headers(MAX_FIELDS);
                }
                let (sender, driver) = builder.handshake(io).await.map_err(|_| Failure::Internal)?;
                other.insert(Box::new(Hyper { sender, driver, large: large.is_some() }))
            }
        };
        let mut response = pin!(sender.try_send_request(request));
        std::future::poll_fn(|cx| {
            // The response comes out of nothing but the driver's poll, so its own waker has nobody to wake.
            let mut idle = Context::from_waker(Waker::noop());
            // Twice: what comes before it has written, it doesn't read.
            let closed =
                driver.poll_without_shutdown(&mut idle).is_ready() || driver.poll_without_shutdown(cx).is_ready();
            if let Poll::Ready(response) = response.as_mut().poll(&mut idle) {
                return Poll::Ready(response.map_err(|error| why(error.error())));
            }
            if closed {
                return Poll::Ready(Err(Failure::ConnectionTerminated));
            }
            overdue(flight).map_or(Poll::Pending, |failure| Poll::Ready(Err(failure)))
        })
        .await
        .map_err(|failure| {
            // hyper has one error for both.
            let read = self.hyper.take().map(|hyper| hyper.driver.into_parts().read_buf).unwrap_or_default();
            let too_many = failure == Failure::ResponseHeadTooLarge && has_many_lines(&read);
            if too_many { Failure::TooManyResponseHeaders } else { failure }
        })
    }

    /// Drives what is left, hyper's way back to idle. False when the connection can't be used again.
    fn settles(&mut self) -> bool {
        let mut idle = Context::from_waker(Waker::noop());
        self.hyper
            .as_mut()
            .is_none_or(|hyper| hyper.driver.poll_without_shutdown(&mut idle).is_pending() && hyper.sender.is_ready())
    }

    fn switch(self, response: Response<Content>) -> Result<Answer, Failure> {
        let Self { hyper, stream, place, .. } = self;
        let Hyper { sender, driver, .. } = *hyper.ok_or(Failure::Internal)?;
        drop(sender);
        let parts = driver.into_parts();
        drop(parts.io);
        let socket = stream.into_socket().ok_or(Failure::Internal)?;
        let switched = Switched { socket, early: parts.read_buf.into(), place };
        Ok(Answer::Switched(response.map(drop), Box::new(switched)))
    }
}

/// What did not come in time.
fn overdue(flight: &Flight) -> Option<Failure> {
    match flight.overdue() {
        Some(WaitingFor::Body) => Some(Failure::BodyTimeout),
        Some(WaitingFor::App) => Some(Failure::ResponseTimeout),
        _ => None,
    }
}

/// What went wrong, from hyper's error.
fn why(error: &hyper::Error) -> Failure {
    let cause = std::error::Error::source(error);
    if let Some(failure) = cause.and_then(|cause| cause.downcast_ref::<Failure>()) {
        return *failure;
    }
    match cause.and_then(|cause| cause.downcast_ref::<io::Error>()) {
        Some(error) => broken(error),
        None if error.is_parse_too_large() => Failure::ResponseHeadTooLarge,
        None if error.is_parse() => Failure::ResponseMalformed,
        None => Failure::ConnectionTerminated,
    }
}

/// Whether that is more lines than a response's head may have, the status line with them.
fn has_many_lines(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).nth(MAX_FIELDS).is_some()
}

/// What went wrong, from the stream's error.
fn broken(error: &io::Error) -> Failure {
    match error.kind() {
        // Only the second attempt connects in here.
        io::ErrorKind::ConnectionRefused => Failure::ConnectionRefused,
        io::ErrorKind::TimedOut => Failure::ConnectTimeout,
        // `stream` has found it in the answer.
        io::ErrorKind::InvalidData => Failure::ResponseMalformed,
        _ => Failure::ConnectionTerminated,
    }
}

/// An app that closes its connections after each answer has done so by then.
const CLOSING_TIME: Duration = Duration::from_millis(20);
/// How long an idle connection keeps its buffer.
const PAUSE: Duration = Duration::from_secs(1);
