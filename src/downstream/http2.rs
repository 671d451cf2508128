//! One client's HTTP/2 connection: the `h2` crate in the middle, a task for each stream, timeouts and stopping
//! around it. What keeps us busy without asking for anything ends with a GOAWAY that says so.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::header;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use tokio::task::spawn_local;

use crate::body::incoming::Incoming;
use crate::downstream::linger::{LINGER, linger};
use crate::downstream::link::{Link, LinkIo};
use crate::downstream::server::{BUFFER, LAST_CALL, Server};
use crate::drain::Stage;
use crate::error::{Failure, Shed};
use crate::exchange::Exchange;
use crate::http2::pump::Pump;
use crate::http2::stream_body::STREAM_WINDOW;
use crate::io::flight::{Flight, Part, WaitingFor};
use crate::io::memory::Held;
use crate::io::socket::Socket;
use crate::io::timers::TICK;
use crate::message::frames::COSTLY;
use crate::message::head::memory;
use crate::message::{fields, interim};
use crate::proxy::Client;
use crate::proxy::response::{self, AnswerBody};

/// A connection that has begun with HTTP/2's preface.
pub(super) struct Found {
    pub(super) socket: Socket,
    /// What has been read of it.
    pub(super) early: BytesMut,
    pub(super) client: Client,
    /// What is taken of the memory budget.
    pub(super) held: Held,
}

/// What a connection and its streams share.
struct Session {
    server: Rc<Server>,
    client: Client,
    link: Rc<Link>,
    /// Requests whose answers are in the making.
    open: Cell<usize>,
    life: Cell<Life>,
    /// The connection's task.
    task: RefCell<Waker>,
    /// Streams that wait for memory.
    waiting: Cell<usize>,
    /// Bytes of memory that an incomplete request head may take.
    head: Cell<usize>,
    /// Until when nothing is read, because there is no memory for it; and what has been taken for it then.
    paused: RefCell<Option<Pin<Box<dyn Future<Output = Held>>>>>,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// It has not brought a request.
    New,
    /// Nor is there much time left for one.
    LastCall,
    /// It has brought one; none has been answered.
    Asked,
    Answered,
    /// The client has been told to open no more streams.
    Leaving,
    /// The client has been told why the connection ends.
    Ended,
}

impl Server {
    /// Serves a connection until it is closed.
    pub(super) async fn serve_http2(self: &Rc<Self>, found: Box<Found>) {
        let Found { socket, early, client, held } = *found;
        let config = &self.proxy.config;
        let flight = Flight::new(self.timers.timer(), held, WaitingFor::Nothing);
        let link = Link::new(socket, early, flight, config.body_timeout);
        link.flight.wait(WaitingFor::Head, config.header_timeout);
        let is_over =
            || link.flight.overdue().is_some() || link.flight.shed().is_some() || self.stage.get() == Stage::Cut;
        {
            let mut charged = pin!(link.flight.charge_when_possible(Part::Library, CONNECTION));
            let charged = poll_fn(|cx| {
                link.flight.timer().register(cx.waker());
                match charged.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(true),
                    Poll::Pending if is_over() => Poll::Ready(false),
                    Poll::Pending => Poll::Pending,
                }
            });
            if !charged.await {
                return;
            }
        }
        link.allow(SMALL_ALLOWANCE);
        let mut builder = h2::server::Builder::new();
        builder
            .max_concurrent_streams(MAX_STREAMS)
            // Twice the setting, because `h2` adds 32 bytes to each field and tells nobody of its 431. `proxy` counts.
            .max_header_list_size(u32::try_from(config.max_header_size * 2).unwrap_or(u32::MAX))
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(BUFFER)
            .data_frame_budget(SMALL_FRAMES)
            // What is reset before anybody has seen it is the least of our costs; `Link` counts it as well.
            .max_pending_accept_reset_streams(REMEMBERED)
            .max_concurrent_reset_streams(REMEMBERED)
            .max_local_error_reset_streams(Some(MAX_ERRORS));
        let mut handshake = builder.handshake::<_, Bytes>(LinkIo(Rc::clone(&link)));
        let connection = poll_fn(|cx| {
            link.flight.timer().register(cx.waker());
            match Pin::new(&mut handshake).poll(cx) {
                Poll::Ready(connection) => Poll::Ready(connection.ok()),
                Poll::Pending if is_over() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        });
        let Some(mut connection) = connection.await else { return };
        link.flight.arrived(WaitingFor::Head);
        let session = Rc::new(Session {
            server: Rc::clone(self),
            client,
            link,
            open: Cell::new(0),
            life: Cell::new(Life::New),
            task: RefCell::new(Waker::noop().clone()),
            waiting: Cell::new(0),
            head: Cell::new(0),
            paused: RefCell::default(),
        });
        let linger_on = poll_fn(|cx| session.poll(&mut connection, cx)).await;
        drop(connection);
        if linger_on {
            let idle = session.link.socket().idle_memory();
            session.link.flight.release(idle);
            // A client that floods gets no more time than it takes to read why.
            let write_timeout = if session.life.get() == Life::Ended { LINGER } else { config.body_timeout };
            linger(|| session.link.socket(), session.link.flight.timer(), &self.stage, write_timeout).await;
        }
    }
}

impl Session {
    /// Ready when the connection has ended: true when the client may not have read the last of it.
    fn poll(self: &Rc<Self>, connection: &mut Connection<LinkIo, Bytes>, cx: &mut Context<'_>) -> Poll<bool> {
        let flight = &self.link.flight;
        flight.timer().register(cx.waker());
        self.task.borrow_mut().clone_from(cx.waker());
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.begin(request, respond),
                Poll::Ready(Some(Err(error))) => {
                    match error.reason() {
                        Some(Reason::ENHANCE_YOUR_CALM) if error.is_library() => self.report_flood(),
                        Some(reason) if error.is_library() && reason != Reason::NO_ERROR => self.report_malformed(),
                        _ => {}
                    }
                    return Poll::Ready(!error.is_io());
                }
                Poll::Ready(None) => return Poll::Ready(true),
                // As soon as the streams have said their last words, which have gone out with this poll.
                Poll::Pending if self.server.stage.get() == Stage::Cut => {
                    return if self.open.get() == 0 { Poll::Ready(false) } else { Poll::Pending };
                }
                Poll::Pending if self.poll_memory(cx) => {}
                Poll::Pending => match self.poll_end(connection) {
                    // What it has to say goes out with the next poll.
                    Next::Again => {}
                    Next::Wait => return Poll::Pending,
                    Next::Linger => return Poll::Ready(true),
                    Next::Drop => return Poll::Ready(false),
                },
            }
        }
    }

    /// Takes memory for what is read next: what has been read before is charged with its stream by now. True when more
    /// can be read that couldn't be.
    fn poll_memory(&self, cx: &mut Context<'_>) -> bool {
        let (link, flight) = (&self.link, &self.link.flight);
        if !link.is_starved() {
            return false;
        }
        let budget = &self.server.proxy.bounds.budget;
        let mut paused = self.paused.borrow_mut();
        loop {
            if let Some(pause) = &mut *paused {
                let Poll::Ready(held) = pause.as_mut().poll(cx) else { return false };
                flight.absorb(Part::Read, held);
                *paused = None;
            }
            let allowance = if flight.has_memory() { ALLOWANCE } else { SMALL_ALLOWANCE };
            // A head that isn't complete is kept as it was read and as it was decoded.
            let head = if link.is_in_head() { self.head.get() + 2 * allowance } else { 0 };
            let must_wait = budget.is_overdrawn() || (budget.is_squeezed() && head > 0);
            if !must_wait && flight.charge(Part::Read, head + allowance) {
                self.head.set(head);
                link.allow(allowance);
                return true;
            }
            flight.charge(Part::Read, 0);
            let mut held = flight.sibling();
            *paused = Some(Box::pin(async move {
                if must_wait {
                    tokio::time::sleep(TICK).await;
                } else {
                    held.wait(head + allowance).await;
                }
                held
            }));
        }
    }

    /// What is due when the client has said nothing more.
    fn poll_end(&self, connection: &mut Connection<LinkIo, Bytes>) -> Next {
        let (config, flight, life) = (&self.server.proxy.config, &self.link.flight, self.life.get());
        if life != Life::Ended && self.link.is_exhausted() {
            self.report_flood();
            return self.end(connection, Reason::ENHANCE_YOUR_CALM);
        }
        if flight.shed().is_some() {
            if self.link.is_blocked() {
                // Nothing can be said to a client that reads nothing, and `h2` keeps in memory all that is for it.
                self.link.socket().give_up();
                return Next::Drop;
            }
            // Otherwise its streams end one by one.
            if life != Life::Ended && self.open.get() == 0 {
                return self.end(connection, Reason::ENHANCE_YOUR_CALM);
            }
        }
        match flight.overdue() {
            None => {}
            Some(WaitingFor::Client) => {
                self.link.socket().give_up();
                return Next::Drop;
            }
            Some(_) if life == Life::Ended => return Next::Drop,
            // It may have to read a response before it comes to the PING that it hasn't acknowledged.
            Some(_) if life == Life::Leaving && self.open.get() == 0 => return Next::Linger,
            Some(WaitingFor::Head) => {
                let exchange = Exchange::begin(Instant::now(), self.client.address(), None);
                self.server.proxy.report(Failure::HeadTimeout, &exchange, StatusCode::REQUEST_TIMEOUT.as_u16());
                return self.end(connection, Reason::ENHANCE_YOUR_CALM);
            }
            Some(_) => return self.leave(connection),
        }
        let stage = self.server.stage.get();
        if stage != Stage::Running {
            match life {
                Life::Answered => return self.leave(connection),
                // What it asked for was given up.
                Life::Asked if self.open.get() == 0 => return self.leave(connection),
                // It may have been accepted a moment ago, with its request on the way.
                Life::New if stage == Stage::Closing => {
                    self.life.set(Life::LastCall);
                    flight.progress(WaitingFor::Request, LAST_CALL);
                }
                _ => {}
            }
        }
        if self.link.is_blocked() || life == Life::Ended {
            return Next::Wait;
        }
        if self.link.is_in_head() {
            flight.wait(WaitingFor::Head, config.header_timeout);
        } else if self.open.get() > 0 {
            flight.arrived(WaitingFor::Head);
            flight.arrived(WaitingFor::Request);
        } else {
            // A connection that has never asked for anything has as long as a head may take.
            flight.wait(
                WaitingFor::Request,
                match self.life.get() {
                    Life::New | Life::LastCall => config.header_timeout,
                    Life::Leaving | Life::Ended => LINGER,
                    Life::Asked | Life::Answered => config.idle_timeout,
                },
            );
        }
        Next::Wait
    }

    /// Tells the client to open no more streams. Those that are open, or on their way, are served.
    fn leave(&self, connection: &mut Connection<LinkIo, Bytes>) -> Next {
        connection.graceful_shutdown();
        self.life.set(Life::Leaving);
        self.link.flight.progress(WaitingFor::Request, LINGER);
        Next::Again
    }

    /// Ends the connection, and says why.
    fn end(&self, connection: &mut Connection<LinkIo, Bytes>, reason: Reason) -> Next {
        connection.abrupt_shutdown(reason);
        self.link.hurry(LINGER);
        self.life.set(Life::Ended);
        self.link.flight.progress(WaitingFor::Request, LINGER);
        Next::Again
    }

    fn begin(self: &Rc<Self>, mut request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        self.open.set(self.open.get() + 1);
        if matches!(self.life.get(), Life::New | Life::LastCall) {
            self.life.set(Life::Asked);
        }
        let open = Open(Rc::clone(self));
        // Before the next one is read: a head may take a hundred times the memory that it had on the wire.
        let bytes = STREAM + memory(request.headers());
        let mut held = self.server.proxy.bounds.budget.hold();
        let is_large = bytes > STREAM + SMALL_HEAD;
        let mut wanted = None;
        if is_large && held.budget().is_squeezed() || !held.take(bytes) {
            if is_large || self.waiting.get() >= MOST_WAITING {
                *request.headers_mut() = HeaderMap::new();
            } else {
                self.waiting.set(self.waiting.get() + 1);
                wanted = Some(bytes);
            }
        }
        spawn_local(async move { open.0.answer(request, respond, held, wanted).await });
    }

    /// The life of one stream. `wanted` is the memory that it has to wait for.
    async fn answer(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        mut held: Held,
        wanted: Option<usize>,
    ) {
        let proxy = &self.server.proxy;
        let is_head = request.method() == Method::HEAD;
        let (head, stream) = request.into_parts();
        if let Some(bytes) = wanted {
            // Nothing has been taken when the time is over.
            drop(tokio::time::timeout(LONGEST_WAIT, held.wait(bytes)).await);
            self.waiting.set(self.waiting.get() - 1);
        }
        let is_admitted = held.bytes() > 0;
        let mut head = head.into();
        let flight = Flight::new(self.server.timers.timer(), held, WaitingFor::Nothing);
        if !is_admitted {
            flight.abort(Failure::MemoryFull(Shed::Busy));
        }
        let body = Incoming::http2(stream, &head, &flight, &proxy.bounds.budget);
        let outcome = {
            let mut answering = pin!(proxy.handle(&self.client, &flight, &mut head, body));
            poll_fn(|cx| {
                flight.timer().register(cx.waker());
                // Then it is `handle` that answers.
                self.ends(&flight);
                let outcome = answering.as_mut().poll(cx);
                while let Some(response) = interim::take(&mut flight.interim.borrow_mut()) {
                    // A hint may be lost; that the stream is gone, the next line tells.
                    respond.send_informational(response).ok();
                }
                match outcome {
                    Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
                    // RST_STREAM, or the connection is gone.
                    Poll::Pending => respond.poll_reset(cx).map(|_| None),
                }
            })
            .await
        };
        let response = match outcome {
            None => return,
            Some(Err(_)) => return respond.send_reset(Reason::CANCEL),
            Some(Ok(response)) => response,
        };

        let (mut head, body) = response.into_parts();
        write_head(&mut head, &body);
        let bodiless = is_head || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let ends = bodiless || body.is_end_stream();
        self.link.sent_head(memory(&head.headers));
        let Ok(stream) = respond.send_response(Response::from_parts(head, ()), ends) else { return };
        self.answered();
        if ends {
            return;
        }
        let mut pump = Pump::new(body, stream, Rc::clone(&self.link.gate));
        poll_fn(|cx| {
            flight.timer().register(cx.waker());
            if self.ends(&flight) || pump.poll(cx, fields::strip_response_trailers).is_ready() {
                return Poll::Ready(());
            }
            flight.set_unread(pump.is_held_up().then(|| pump.held()));
            let (frames, bytes) = pump.take_sent();
            self.link.sent(frames, bytes);
            if frames > 0 || !pump.is_blocked() {
                flight.arrived(WaitingFor::Client);
            }
            if pump.is_blocked() {
                flight.wait(WaitingFor::Client, proxy.config.body_timeout);
            }
            if pump.is_held_up() {
                flight.poll_read_ahead(cx);
            }
            // Not for the rest of the request: with the answer begun, it is the app that ends a conversation.
            if flight.overdue() == Some(WaitingFor::Client) {
                pump.reset(Reason::CANCEL);
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    /// Ends the exchange if everything ends here and now, or memory is short. Whether it does.
    fn ends(&self, flight: &Flight) -> bool {
        let cut = (self.server.stage.get() == Stage::Cut).then_some(Failure::Shutdown);
        let why = cut.or_else(|| flight.shed());
        if let Some(why) = why {
            flight.abort(why);
        }
        why.is_some()
    }

    fn answered(&self) {
        // As much as one reset costs: who has got an answer may do without the rest of it.
        self.link.earn(COSTLY);
        if self.life.get() == Life::Asked {
            self.life.set(Life::Answered);
            self.task.borrow().wake_by_ref();
        }
    }

    fn report_malformed(&self) {
        let failure =
            Failure::Malformed("HTTP/2 frames or headers that the protocol forbids; the connection is closed");
        let exchange = Exchange::begin(Instant::now(), self.client.address(), None);
        self.server.proxy.report(failure, &exchange, failure.status().as_u16());
    }

    fn report_flood(&self) {
        let (message, reason) = ("client floods", "http2_flood");
        if let Some(repeated) = self.server.proxy.repeats.admit(message, reason, Instant::now()) {
            let hint = "resets, pings, settings or empty frames without end: an attack, or a broken client";
            tracing::warn!(reason, peer_ip = %self.client.address(), repeated, hint, "{message}");
        }
    }
}

/// What becomes of a connection.
enum Next {
    /// It is polled again.
    Again,
    Wait,
    /// It ends when the client has read the last of it.
    Linger,
    /// It ends without a word.
    Drop,
}

/// Counts a stream as long as its task lives, also when it panics.
struct Open(Rc<Session>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        // It may have been the last.
        self.0.task.borrow().wake_by_ref();
    }
}

/// Makes an answer's head one of HTTP/2.
fn write_head(head: &mut http::response::Parts, body: &AnswerBody) {
    // RFC 9113 §8.2.2: "An endpoint MUST NOT generate an HTTP/2 message containing connection-specific header
    // fields."
    fields::strip_response(&mut head.headers);
    head.version = Version::HTTP_2;
    if let (false, Some(length)) = (body.is_end_stream(), body.size_hint().exact()) {
        head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    head.headers.entry(header::DATE).or_insert_with(response::date);
}

/// As many as an ALB opens to one target.
const MAX_STREAMS: u32 = 128;
/// Bytes for all streams together: what bounds a connection's memory. With less, streams that the app doesn't read would
/// block the others, whose clients would then count as too slow.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
/// Bytes, as `h2` counts them: 256 less its length for each small DATA frame that waits to be read. Beyond it the
/// connection ends, so that it must not be in two users' power to end a load balancer's: a slow upload in frames of
/// ten bytes costs 1.6 MB. As much memory, about, is what it stands for.
const SMALL_FRAMES: usize = 8 * 1024 * 1024;
/// Streams that have been reset, and whose last frames may still come.
const REMEMBERED: usize = 256;
/// Streams that `h2` may have to reset because the client broke the protocol, in a connection's life. Each may
/// have cost the app a request (CVE-2025-8671).
const MAX_ERRORS: usize = 1000;
/// Bytes of memory that a stream takes: its task, its record, and a connection to the app with what the kernel has
/// received on it.
const STREAM: usize = 36 * 1024;
/// Bytes of memory that a connection takes in addition to what one of HTTP/1.1 does.
const CONNECTION: usize = 32 * 1024;
/// Bytes that are read before there has to be memory for more; fewer when memory is short.
const ALLOWANCE: usize = 64 * 1024;
const SMALL_ALLOWANCE: usize = 16 * 1024;
/// Bytes of a request head that may wait for memory, and streams of a connection.
const SMALL_HEAD: usize = 8 * 1024;
const MOST_WAITING: usize = 4;
const LONGEST_WAIT: Duration = Duration::from_millis(1500);
