//! Towards an app that speaks HTTP/2 in plain text: a few connections with many requests on each, and the
//! sending of one of them.
//!
//! A connection has a task of its own, because its requests come from many. What says that the app did not act
//! on a request (`REFUSED_STREAM`, or a GOAWAY that leaves it out) has it sent once more.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{self, SendRequest};
use h2::{Reason, RecvStream};
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response, Uri, Version, header};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::spawn_local;

use crate::body::RequestBody;
use crate::error::Failure;
use crate::flight::{Flight, WaitingFor};
use crate::message::fields::content_length;
use crate::message::head::RequestHead;
use crate::message::{fields, interim};
use crate::metrics::{self, Count, Meter};
use crate::pump::{Pump, Stopped};
use crate::socket::Socket;
use crate::upstream::connect::Connector;

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

/// A response whose body still comes out of its stream, while the request's may still go in.
#[derive(Debug)]
pub(super) struct Relay {
    stream: RecvStream,
    data_ended: bool,
    length: Option<u64>,
    pump: Option<Pump<Replay>>,
    _lease: Lease,
}

/// Why an attempt brought no response.
enum Missed {
    /// The app has not acted on the request.
    Unprocessed,
    /// The connection broke. The app may have acted.
    Broken(Failure),
    /// Another attempt would not help.
    Final(Failure),
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
                    return Ok(relay(response, pump, lease));
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

/// The head of HTTP/1.1 as one of HTTP/2: the `Host` becomes `:authority`, and what belongs to one connection of
/// HTTP/1.1 goes.
fn translate(mut head: http::request::Parts) -> Request<()> {
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        head.headers.remove(name);
    }
    let mut request = Request::new(());
    *request.method_mut() = head.method;
    let path = head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let host = head.headers.get(header::HOST);
    let target = host.and_then(|host| {
        Uri::builder().scheme("http").authority(host.as_bytes()).path_and_query(path.clone()).build().ok()
    });
    match target {
        Some(target) => {
            head.headers.remove(header::HOST);
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = target;
        }
        // A request without a host; `h2` takes one of that version without an authority.
        None => *request.uri_mut() = path.into(),
    }
    *request.headers_mut() = head.headers;
    request
}

/// Sends the request on one stream and waits for the head of the answer.
async fn attempt(
    lease: &Lease,
    head: Request<()>,
    body: &mut Replay,
    flight: &Rc<Flight>,
    takes_interim: bool,
) -> Result<(Response<RecvStream>, Option<Pump<Replay>>), Missed> {
    let mut sender = lease.open.sender.clone().ready().await.map_err(|_| Missed::Unprocessed)?;
    let ends = body.is_end_stream();
    let (mut response, stream) = sender.send_request(head, ends).map_err(|_| Missed::Unprocessed)?;
    drop(sender);
    let mut pump = (!ends).then(|| Pump::new(std::mem::replace(body, Replay::new(RequestBody::EMPTY)), stream));
    let mut sent = ends;
    let outcome = poll_fn(|cx| {
        if let Some(pump) = pump.as_mut().filter(|_| !sent) {
            match pump.poll(cx, no_edit) {
                Poll::Ready(Err(Stopped::Body(failure))) => return Poll::Ready(Err(Missed::Final(failure))),
                // What is wrong with the stream, the response tells.
                Poll::Ready(Ok(()) | Err(Stopped::Refused)) => sent = true,
                Poll::Pending => {}
            }
        }
        while let Poll::Ready(Some(Ok(hints))) = response.poll_informational(cx) {
            if let (true, Some(bytes)) = (takes_interim, interim::write(&hints)) {
                flight.queue_interim(&bytes);
                // Who sends it on has to look again.
                cx.waker().wake_by_ref();
            }
        }
        match Pin::new(&mut response).poll(cx) {
            Poll::Ready(response) => return Poll::Ready(response.map_err(|error| why(&error))),
            Poll::Pending => {}
        }
        match flight.overdue() {
            Some(WaitingFor::Body) => Poll::Ready(Err(Missed::Final(Failure::BodyTimeout))),
            Some(WaitingFor::App) => Poll::Ready(Err(Missed::Final(Failure::ResponseTimeout))),
            _ => Poll::Pending,
        }
    })
    .await;
    match outcome {
        Ok(response) => {
            if let Some(pump) = &mut pump {
                pump.body().forget();
            }
            Ok((response, pump.filter(|_| !sent)))
        }
        Err(missed) => {
            if let Some(pump) = pump {
                *body = pump.into_body();
            }
            Err(missed)
        }
    }
}

fn relay(response: Response<RecvStream>, pump: Option<Pump<Replay>>, lease: Lease) -> Response<Relay> {
    let length = response.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| content_length(length.as_bytes()));
    response.map(|stream| Relay { stream, data_ended: false, length, pump, _lease: lease })
}

fn why(error: &h2::Error) -> Missed {
    if error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM)) {
        Missed::Unprocessed
    } else if error.is_io() {
        Missed::Broken(Failure::ConnectionTerminated)
    } else if error.is_remote() {
        Missed::Final(Failure::ConnectionTerminated)
    } else {
        // What came was not HTTP/2.
        Missed::Final(Failure::ResponseMalformed)
    }
}

/// A request's trailers are edited where the body comes in.
fn no_edit(_: &mut HeaderMap) {}

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

impl Body for Relay {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let relay = &mut *self;
        if let Some(pump) = &mut relay.pump
            && let Poll::Ready(outcome) = pump.poll(cx, no_edit)
        {
            relay.pump = None;
            if let Err(Stopped::Body(failure)) = outcome {
                return Poll::Ready(Some(Err(failure)));
            }
        }
        if !relay.data_ended {
            match ready!(relay.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    if let Some(length) = &mut relay.length {
                        *length = length.saturating_sub(data.len() as u64);
                    }
                    relay.stream.flow_control().release_capacity(data.len()).ok();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(_)) => return Poll::Ready(Some(Err(Failure::ConnectionTerminated))),
                None => relay.data_ended = true,
            }
        }
        Poll::Ready(match ready!(relay.stream.poll_trailers(cx)) {
            Ok(Some(mut trailers)) => {
                fields::strip_response_trailers(&mut trailers);
                Some(Ok(Frame::trailers(trailers)))
            }
            Ok(None) => None,
            Err(_) => Some(Err(Failure::ConnectionTerminated)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.stream.is_end_stream() {
            return SizeHint::with_exact(0);
        }
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A request body that can be sent a second time while little of it has been sent.
#[derive(Debug)]
struct Replay {
    body: RequestBody,
    /// What has come out of `body`; `None` when that was too much.
    kept: Option<Vec<Bytes>>,
    /// How many of `kept` have been sent in this attempt.
    sent: usize,
}

impl Replay {
    fn new(body: RequestBody) -> Self {
        Self { body, kept: Some(Vec::new()), sent: 0 }
    }

    /// Begins anew. False when that can't be.
    fn rewind(&mut self) -> bool {
        self.sent = 0;
        self.kept.is_some()
    }

    /// There will be no second attempt.
    fn forget(&mut self) {
        if self.kept.as_ref().is_some_and(|kept| self.sent == kept.len()) {
            self.kept = None;
        }
    }
}

impl Body for Replay {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let replay = &mut *self;
        if let Some(data) = replay.kept.as_ref().and_then(|kept| kept.get(replay.sent)) {
            replay.sent += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        let frame = ready!(Pin::new(&mut replay.body).poll_frame(cx));
        if let (Some(Ok(frame)), Some(kept)) = (&frame, &mut replay.kept) {
            match frame.data_ref() {
                Some(data) if kept.iter().map(Bytes::len).sum::<usize>() + data.len() <= BUFFER => {
                    kept.push(data.clone());
                    replay.sent += 1;
                }
                _ => replay.kept = None,
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.kept.as_ref().is_none_or(|kept| kept.len() == self.sent) && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
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
