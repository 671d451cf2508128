//! One client's HTTP/2 connection: the `h2` crate in the middle, a task for each stream, timeouts and stopping
//! around it. What keeps us busy without asking for anything ends with a GOAWAY that says so.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::header;
use http::{Method, Request, Response, StatusCode, Version, response};
use http_body::Body;
use tokio::task::spawn_local;

use crate::answer::{self, AnswerBody};
use crate::connection::link::{Link, LinkIo};
use crate::connection::{BUFFER, LAST_CALL, LINGER, Server, linger};
use crate::drain::Stage;
use crate::error::Failure;
use crate::exchange::Exchange;
use crate::flight::{Flight, WaitingFor};
use crate::incoming::Incoming;
use crate::message::frames::COSTLY;
use crate::message::{fields, interim};
use crate::proxy::Client;
use crate::pump::Pump;
use crate::socket::Socket;

/// A connection that has begun with HTTP/2's preface.
pub(super) struct Found {
    pub(super) socket: Socket,
    /// What has been read of it.
    pub(super) early: BytesMut,
    pub(super) client: Client,
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
        let Found { socket, early, client } = *found;
        let config = &self.proxy.config;
        let flight = Flight::new(self.timers.timer(), WaitingFor::Nothing);
        let link = Link::new(socket, early, flight, config.body_timeout);
        link.flight.wait(WaitingFor::Head, config.header_timeout);
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
                Poll::Pending if link.flight.overdue().is_some() || self.stage.get() == Stage::Cut => Poll::Ready(None),
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
        });
        let linger_on = poll_fn(|cx| session.poll(&mut connection, cx)).await;
        drop(connection);
        if linger_on {
            linger(|| session.link.socket()).await;
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
                    if error.is_library() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM) {
                        self.report_flood();
                    }
                    return Poll::Ready(!error.is_io());
                }
                Poll::Ready(None) => return Poll::Ready(true),
                // As soon as the streams have said their last words, which have gone out with this poll.
                Poll::Pending if self.server.stage.get() == Stage::Cut => {
                    return if self.open.get() == 0 { Poll::Ready(false) } else { Poll::Pending };
                }
                Poll::Pending => match self.poll_end(connection) {
                    // What it has to say goes out with the next poll.
                    Next::Again => {}
                    Next::Wait => return Poll::Pending,
                    Next::Drop => return Poll::Ready(false),
                },
            }
        }
    }

    /// What is due when the client has said nothing more.
    fn poll_end(&self, connection: &mut Connection<LinkIo, Bytes>) -> Next {
        let (config, flight, life) = (&self.server.proxy.config, &self.link.flight, self.life.get());
        if life != Life::Ended && self.link.is_exhausted() {
            self.report_flood();
            return self.end(connection, Reason::ENHANCE_YOUR_CALM);
        }
        match flight.overdue() {
            None => {}
            Some(WaitingFor::Client) => {
                self.link.socket().give_up();
                return Next::Drop;
            }
            Some(_) if life == Life::Ended || (life == Life::Leaving && self.open.get() == 0) => return Next::Drop,
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

    fn begin(self: &Rc<Self>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        self.open.set(self.open.get() + 1);
        if matches!(self.life.get(), Life::New | Life::LastCall) {
            self.life.set(Life::Asked);
        }
        let open = Open(Rc::clone(self));
        spawn_local(async move { open.0.answer(request, respond).await });
    }

    /// The life of one stream.
    async fn answer(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let proxy = &self.server.proxy;
        let flight = Flight::new(self.server.timers.timer(), WaitingFor::Nothing);
        let is_head = request.method() == Method::HEAD;
        let (head, stream) = request.into_parts();
        let body = Incoming::http2(stream, &head.headers, &flight);
        let mut head = head.into();
        let outcome = {
            let mut answering = pin!(proxy.handle(&self.client, &flight, &mut head, body));
            poll_fn(|cx| {
                flight.timer().register(cx.waker());
                // Then it is `handle` that answers.
                self.cut_at_the_end(&flight);
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
        let Ok(stream) = respond.send_response(Response::from_parts(head, ()), ends) else { return };
        self.answered();
        if ends {
            return;
        }
        let mut pump = Pump::new(body, stream);
        poll_fn(|cx| {
            flight.timer().register(cx.waker());
            if self.cut_at_the_end(&flight) || pump.poll(cx, fields::strip_response_trailers).is_ready() {
                return Poll::Ready(());
            }
            flight.set_blocked(pump.is_blocked());
            let sent = pump.take_sent();
            self.link.sent(sent);
            if sent > 0 || !pump.is_blocked() {
                flight.arrived(WaitingFor::Client);
            }
            if pump.is_blocked() {
                flight.wait(WaitingFor::Client, proxy.config.body_timeout);
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

    /// Cuts the exchange if everything ends here and now. Whether it does.
    fn cut_at_the_end(&self, flight: &Flight) -> bool {
        let cut = self.server.stage.get() == Stage::Cut;
        if cut {
            flight.cut();
        }
        cut
    }

    fn answered(&self) {
        // As much as one reset costs: who has got an answer may do without the rest of it.
        self.link.earn(COSTLY);
        if self.life.get() == Life::Asked {
            self.life.set(Life::Answered);
            self.task.borrow().wake_by_ref();
        }
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
fn write_head(head: &mut response::Parts, body: &AnswerBody) {
    // RFC 9113 §8.2.2: "An endpoint MUST NOT generate an HTTP/2 message containing connection-specific header
    // fields."
    fields::strip_response(&mut head.headers);
    head.version = Version::HTTP_2;
    if let (false, Some(length)) = (body.is_end_stream(), body.size_hint().exact()) {
        head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    head.headers.entry(header::DATE).or_insert_with(answer::date);
}

/// As many as an ALB opens to one target.
const MAX_STREAMS: u32 = 128;
/// Bytes of a request body that may be under way before the app takes them.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Bytes for all streams together: what bounds a connection's memory. Were it less, streams that the app leaves lying
/// would have the others wait, and those be called too slow.
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
