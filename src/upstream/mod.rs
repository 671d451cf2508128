//! Towards the app: what one request is sent over, whichever protocol the app speaks.

mod ask;
pub mod connect;
pub mod h2c;
mod http1;
mod keep_alive;
mod plain;
mod stream;
pub mod uwsgi;

pub use self::ask::ask;

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Semaphore;

use crate::body::RequestBody;
use crate::config::Protocol;
use crate::error::Failure;
use crate::io::flight::{Flight, Part};
use crate::io::memory::Budget;
use crate::io::socket::Socket;
use crate::io::splice::Pipe;
use crate::log::Repeats;
use crate::message::head::{MAX_FIELDS, RequestHead, memory};
use crate::message::uwsgi::Packet;
use crate::metrics::Meter;
use crate::upstream::connect::Connector;

pub use http1::Place;

/// The app, as one worker sees it.
#[derive(Debug)]
pub struct Upstream {
    pool: Pool,
    idle_timeout: Duration,
    limit: Option<Arc<Limit>>,
    /// Bytes of a response head.
    max_head: usize,
}

#[derive(Debug)]
enum Pool {
    Http1(Rc<http1::Pool>),
    H2c(Rc<h2c::Pool>),
}

/// What bounds the memory of an exchange with the app.
#[derive(Debug)]
pub struct Bounds {
    /// Bytes of a response head.
    pub head: usize,
    /// What long requests are kept in that may have to be sent again.
    pub budget: Budget,
}

/// `UPSTREAM_MAX_CONNECTIONS`, for all workers together.
#[derive(Debug)]
pub struct Limit {
    connections: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// What one request is sent over.
#[derive(Debug)]
pub struct Lease(Inner);

#[derive(Debug)]
enum Inner {
    Http1(Box<http1::Connection>),
    H2c(h2c::Lease),
}

/// A response whose body still comes from the app.
#[derive(Debug)]
pub struct Relay(Source);

#[derive(Debug)]
enum Source {
    Http1(http1::Relay),
    H2c(Box<h2c::Relay>),
}

/// What the app's answer to a request is.
#[derive(Debug)]
pub enum Answer {
    /// A response.
    Response(Response<Relay>),
    /// A 101, and the connection.
    Switched(Response<()>, Box<Switched>),
}

/// A connection that no longer speaks HTTP.
#[derive(Debug)]
pub struct Switched {
    /// The socket.
    pub socket: Socket,
    /// What the app has sent on it already.
    pub early: BytesMut,
    /// What the connection counts against, to be kept until it is closed.
    pub place: Place,
}

impl Limit {
    /// At most `connections` at once.
    pub fn new(connections: usize) -> Arc<Self> {
        let connections = Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { connections, waiting: AtomicUsize::new(0) })
    }
}

impl Upstream {
    /// The app behind `connector`.
    pub fn new(
        connector: Connector,
        protocol: Protocol,
        idle_timeout: Duration,
        limit: Option<Arc<Limit>>,
        meter: Rc<Meter>,
        repeats: Arc<Repeats>,
        bounds: Bounds,
    ) -> Rc<Self> {
        let max_head = bounds.head;
        let pool = match protocol {
            Protocol::Http | Protocol::Uwsgi => {
                Pool::Http1(http1::Pool::new(connector, idle_timeout, limit.clone(), meter, repeats, bounds))
            }
            Protocol::H2c => Pool::H2c(h2c::Pool::new(connector, meter, bounds)),
        };
        Rc::new(Self { pool, idle_timeout, limit, max_head })
    }

    /// A connection that is ready for a request: an idle one, or a new one. A request that is not idempotent
    /// can't be sent again once it was written, so it gets no connection that may be closing this very moment.
    ///
    /// # Errors
    ///
    /// Why there is none. The wait for one of a limited number ends when `queue_timeout` has passed.
    pub async fn connection(&self, idempotent: bool, queue_timeout: Duration) -> Result<Lease, Failure> {
        match &self.pool {
            Pool::Http1(pool) => {
                pool.connection(idempotent, queue_timeout).await.map(|connection| Lease(Inner::Http1(connection)))
            }
            Pool::H2c(pool) => {
                // What is limited is requests, because a connection carries many.
                let permit = match &self.limit {
                    None => None,
                    Some(limit) => {
                        let permit = Arc::clone(&limit.connections).acquire_owned();
                        tokio::time::timeout(queue_timeout, permit).await.map_err(|_| Failure::LimitReached)?.ok()
                    }
                };
                pool.lease(permit, queue_timeout).await.map(|lease| Lease(Inner::H2c(lease)))
            }
        }
    }

    /// Sends a request and returns the app's final response. What is `plain` goes past hyper if it may.
    ///
    /// # Errors
    ///
    /// Whose fault it was that there is none: the client's, when its body broke off, else the app's.
    pub async fn send(
        &self,
        lease: Lease,
        head: &mut RequestHead,
        body: RequestBody,
        flight: &Rc<Flight>,
        takes_interim: bool,
        plain: bool,
    ) -> Result<Answer, Failure> {
        match (lease.0, &self.pool) {
            (Inner::Http1(connection), Pool::Http1(pool)) => {
                pool.send(connection, head, body, flight, takes_interim, plain).await
            }
            (Inner::H2c(lease), Pool::H2c(pool)) => {
                // Boxed, so that an exchange of HTTP/1.1 doesn't carry its room.
                let response = Box::pin(pool.send(lease, head, body, flight, takes_interim)).await?;
                check_head(response.headers(), self.max_head, flight)?;
                Ok(Answer::Response(response.map(|relay| Relay(Source::H2c(Box::new(relay))))))
            }
            (Inner::Http1(_), Pool::H2c(_)) | (Inner::H2c(_), Pool::Http1(_)) => Err(Failure::Internal),
        }
    }

    /// Closes idle connections whose time has come.
    pub fn expire(&self, now: Instant) {
        match &self.pool {
            Pool::Http1(pool) => pool.expire(now),
            Pool::H2c(pool) => pool.expire(now, self.idle_timeout),
        }
    }

    /// How many connections are idle, or may come to be without a word.
    pub fn idle(&self) -> usize {
        match &self.pool {
            Pool::Http1(pool) => pool.len(),
            Pool::H2c(pool) => pool.len(),
        }
    }

    /// How many connections carry no request.
    pub fn unused(&self) -> usize {
        match &self.pool {
            Pool::Http1(pool) => pool.len(),
            Pool::H2c(pool) => pool.unused(),
        }
    }
}

/// Whether a response's head is one that is accepted, where the bytes were not counted as they came. A large one is
/// charged to the memory budget until the exchange ends.
fn check_head(headers: &HeaderMap, most: usize, flight: &Flight) -> Result<(), Failure> {
    if headers.len() > MAX_FIELDS {
        return Err(Failure::TooManyResponseHeaders);
    }
    let lines = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    if lines.sum::<usize>() > most {
        return Err(Failure::ResponseHeadTooLarge);
    }
    flight.owe(Part::Response, memory(headers).saturating_sub(COVERED));
    Ok(())
}

/// Bytes of a response's head in memory that are charged with its connection or stream.
const COVERED: usize = 8 * 1024;

impl Lease {
    /// Makes this a connection that speaks uwsgi: the packet takes the place of the head that will be sent. It is
    /// used for one request, as uWSGI wants it.
    pub fn send_instead(&self, packet: Packet) {
        if let Inner::Http1(connection) = &self.0 {
            connection.send_instead(packet);
        }
    }
}

impl Relay {
    /// Moves bytes of the body into `pipe`, as soon as there are any, and says how many. `None` when the next ones are to be
    /// had from [`Body::poll_frame`].
    pub fn poll_splice(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Option<usize>> {
        match &mut self.0 {
            Source::Http1(relay) => relay.poll_splice(cx, pipe),
            Source::H2c(_) => Poll::Ready(None),
        }
    }

    /// Whether to read from the app in small pieces from now on, because memory is short.
    pub fn read_little(&self, little: bool) {
        match &self.0 {
            Source::Http1(relay) => relay.read_little(little),
            // HTTP/2 has a window for each stream instead.
            Source::H2c(_) => {}
        }
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match &mut self.0 {
            Source::Http1(relay) => Pin::new(relay).poll_frame(cx),
            Source::H2c(relay) => Pin::new(&mut **relay).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Http1(relay) => relay.is_end_stream(),
            Source::H2c(relay) => relay.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Http1(relay) => relay.size_hint(),
            Source::H2c(relay) => relay.size_hint(),
        }
    }
}
