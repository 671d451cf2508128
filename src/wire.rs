//! The client's connection, between the socket and hyper.
//!
//! hyper reads and writes through [`WireIo`]; everybody else who has a word in the connection's life (the
//! timers, the proxy, the connection's own loop) shares its [`Wire`]. What it relies on: hyper's server with
//! `half_close` reads a request and nothing beyond it until the answer has been flushed. So the wire can
//! give it exactly one request at a time ([`RequestFraming`]), and what a client sends ahead stays here.

use std::cell::{Cell, RefCell, RefMut};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::error::Failure;
use crate::message::framing::RequestFraming;
use crate::timers::Timer;

/// The shared state of a client's connection.
#[derive(Debug)]
pub struct Wire {
    stream: RefCell<TcpStream>,
    framing: RefCell<RequestFraming>,
    /// What was read beyond the current request.
    ahead: RefCell<BytesMut>,
    /// What to write before hyper's next byte: interim responses.
    interim: RefCell<BytesMut>,
    /// Why the current request can't go on. hyper sees nothing more of it.
    violation: Cell<Option<Failure>>,
    /// Whether hyper has handed a request over and its answer is hyper's business. While it hasn't, what
    /// hyper writes is an error answer of its own, and ours is better.
    answering: Cell<bool>,
    /// Whether the answer's body is still being produced.
    in_flight: Cell<bool>,
    write_blocked: Cell<bool>,
    cut: Cell<bool>,
    /// When bytes of the current request were read last.
    last_read: Cell<Instant>,
    /// Whether the client has closed its side, or asked for more, while its answer is in the making.
    peeked: Cell<Peeked>,
    /// What the timer is armed for.
    waiting_for: Cell<WaitingFor>,
    timer: Timer,
    write_timeout: Duration,
}

/// What has to happen before the timer fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitingFor {
    /// Nothing is timed.
    Nothing,
    /// The first byte of a request.
    Request,
    /// The rest of a request head.
    Head,
    /// More of the request body.
    Body,
    /// The app's response head.
    App,
    /// The client to take what was written.
    Client,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peeked {
    Nothing,
    MoreToCome,
    HalfClose,
}

impl Wire {
    /// The wire of a connection that has just been accepted. `write_timeout` bounds how long the client may
    /// leave an answer lying.
    pub fn new(stream: TcpStream, max_header_size: usize, timer: Timer, write_timeout: Duration) -> Rc<Self> {
        Rc::new(Self {
            stream: RefCell::new(stream),
            framing: RefCell::new(RequestFraming::new(max_header_size)),
            ahead: RefCell::default(),
            interim: RefCell::default(),
            violation: Cell::new(None),
            answering: Cell::new(false),
            in_flight: Cell::new(false),
            write_blocked: Cell::new(false),
            cut: Cell::new(false),
            last_read: Cell::new(Instant::now()),
            peeked: Cell::new(Peeked::Nothing),
            waiting_for: Cell::new(WaitingFor::Nothing),
            timer,
            write_timeout,
        })
    }

    /// The timer of the connection's task.
    pub fn timer(&self) -> &Timer {
        &self.timer
    }

    /// The socket, for what comes before and after hyper. Not to be held across an await.
    pub fn stream(&self) -> RefMut<'_, TcpStream> {
        self.stream.borrow_mut()
    }

    /// Arms the timer for one thing, unless it is armed for it already.
    pub fn wait(&self, what: WaitingFor, at_most: Duration) {
        if self.waiting_for.replace(what) != what {
            self.timer.arm(at_most);
        }
    }

    /// Starts the time for `what` anew: something of it has come.
    pub fn progress(&self, what: WaitingFor, at_most: Duration) {
        self.waiting_for.set(what);
        self.timer.arm(at_most);
    }

    /// Ends the time for `what`, if it is what the timer is armed for.
    pub fn arrived(&self, what: WaitingFor) {
        if self.waiting_for.get() == what {
            self.waiting_for.set(WaitingFor::Nothing);
            self.timer.disarm();
        }
    }

    /// What did not come in time.
    pub fn overdue(&self) -> Option<WaitingFor> {
        self.timer.expired().then(|| self.waiting_for.get())
    }

    /// hyper has handed a request over.
    pub fn begin_exchange(&self) {
        self.answering.set(true);
        self.in_flight.set(true);
        self.peeked.set(Peeked::Nothing);
        self.waiting_for.set(WaitingFor::Nothing);
        self.timer.disarm();
    }

    /// The answer's body has ended, or never will.
    pub fn end_exchange(&self) {
        self.in_flight.set(false);
    }

    /// The connection is cut in the middle of whatever is under way.
    pub fn cut(&self) {
        self.cut.set(true);
    }

    /// Whether it was hostward that ended the connection.
    pub fn was_cut(&self) -> bool {
        self.cut.get()
    }

    /// Whether an answer is being produced.
    pub fn is_in_flight(&self) -> bool {
        self.in_flight.get()
    }

    /// Whether the client leaves what was written lying.
    pub fn is_write_blocked(&self) -> bool {
        self.write_blocked.get()
    }

    /// Whether any of the next request has been read.
    pub fn has_request_begun(&self) -> bool {
        !self.framing.borrow().is_between_requests() || !self.ahead.borrow().is_empty()
    }

    /// Whether hyper has got the current request, so that it has been answered, or will be.
    pub fn is_answered(&self) -> bool {
        self.answering.get()
    }

    /// Whether the current request's body has not been read to its end.
    pub fn is_request_incomplete(&self) -> bool {
        let framing = self.framing.borrow();
        !framing.is_between_requests() && !framing.is_in_head()
    }

    /// Why the current request can't go on, if it can't.
    pub fn violation(&self) -> Option<Failure> {
        self.violation.get()
    }

    /// When the current request was read.
    pub fn last_read(&self) -> Instant {
        self.last_read.get()
    }

    /// Takes what the client has sent beyond its last request.
    pub fn take_ahead(&self) -> BytesMut {
        self.ahead.take()
    }

    /// Queues an interim response, unless the client leaves too many lying: they are hints, and may be lost.
    /// Whoever calls is polled by the connection's task, which sends it.
    pub fn queue_interim(&self, response: &[u8]) {
        let mut interim = self.interim.borrow_mut();
        if interim.len() + response.len() <= MAX_INTERIM {
            interim.extend_from_slice(response);
        }
    }

    /// Sends queued interim responses.
    ///
    /// # Errors
    ///
    /// When the client's connection is broken.
    pub fn poll_interim(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut interim = self.interim.borrow_mut();
        if self.write_blocked.get() && !interim.is_empty() {
            // The end of the last answer goes first.
            return Poll::Pending;
        }
        while !interim.is_empty() {
            let written = ready!(Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, &interim))?;
            interim.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes for hyper, once the interim responses are out.
    fn poll_after_interim(
        &self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let mut interim = self.interim.borrow_mut();
        let mut stream = self.stream.borrow_mut();
        // Not into the middle of what hyper has begun to write.
        while !self.write_blocked.get() && !interim.is_empty() {
            let written = ready!(Pin::new(&mut *stream).poll_write(cx, &interim))?;
            interim.advance(written);
        }
        write(Pin::new(&mut *stream), cx)
    }

    /// Ready when the client has left while its answer is in the making.
    ///
    /// A FIN that comes with the request is a half-close, and answered: the client has said all it has to
    /// say (RFC 9112 §9.6 lets it). One that comes later means that nobody waits any more.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.in_flight.get() || self.peeked.get() != Peeked::Nothing || self.has_request_begun() {
            return Poll::Pending;
        }
        let mut byte = [0; 1];
        match ready!(self.stream.borrow_mut().poll_peek(cx, &mut ReadBuf::new(&mut byte))) {
            Ok(0) if self.last_read.get().elapsed() < HALF_CLOSE_WINDOW => self.peeked.set(Peeked::HalfClose),
            Ok(0) | Err(_) => return Poll::Ready(()),
            Ok(_) => self.peeked.set(Peeked::MoreToCome),
        }
        Poll::Pending
    }

    /// Passes on what belongs to the current request of `new` bytes at the end of `buf`, keeps the rest.
    fn admit(&self, buf: &mut ReadBuf<'_>, before: usize) -> Poll<io::Result<()>> {
        let mut framing = self.framing.borrow_mut();
        if framing.is_between_requests() && !self.write_blocked.get() {
            self.answering.set(false);
        }
        self.last_read.set(Instant::now());
        match framing.feed(&buf.filled()[before..]) {
            Ok(taken) => {
                if before + taken < buf.filled().len() {
                    self.ahead.borrow_mut().extend_from_slice(&buf.filled()[before + taken..]);
                    buf.set_filled(before + taken);
                }
                Poll::Ready(Ok(()))
            }
            Err(failure) => {
                buf.set_filled(before);
                self.violation.set(Some(failure));
                Poll::Pending
            }
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.violation.get().is_some() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if self.ahead.borrow().is_empty() {
            ready!(Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, buf))?;
            if buf.filled().len() == before {
                return Poll::Ready(Ok(()));
            }
        } else {
            let mut ahead = self.ahead.borrow_mut();
            let some = ahead.len().min(buf.remaining());
            buf.put_slice(&ahead.split_to(some));
            // `admit` puts back what belongs to a later request, in front of what is still here.
            let rest = std::mem::take(&mut *ahead);
            drop(ahead);
            let admitted = self.admit(buf, before);
            self.ahead.borrow_mut().unsplit(rest);
            return admitted;
        }
        self.admit(buf, before)
    }

    /// Accounts for one attempt of hyper's to write.
    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Pending => {
                self.write_blocked.set(true);
                self.wait(WaitingFor::Client, self.write_timeout);
            }
            Poll::Ready(_) if self.write_blocked.replace(false) => self.arrived(WaitingFor::Client),
            Poll::Ready(_) => {}
        }
        written
    }
}

/// The IO that hyper gets.
#[derive(Debug)]
pub struct WireIo(pub Rc<Wire>);

impl AsyncRead for WireIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buf)
    }
}

impl AsyncWrite for WireIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wire = &self.0;
        if !wire.answering.get() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = wire.poll_after_interim(cx, |stream, cx| stream.poll_write(cx, bytes));
        wire.wrote(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wire = &self.0;
        if !wire.answering.get() {
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        let written = wire.poll_after_interim(cx, |stream, cx| stream.poll_write_vectored(cx, slices));
        wire.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Nothing: after hyper there may be a tunnel, or an answer of ours. The connection closes itself.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Bytes of interim responses that wait for the client.
const MAX_INTERIM: usize = 64 * 1024;
/// How long after a request a FIN still counts as part of it. A client that shuts its side down does so in
/// the same breath; one that gives up has waited.
const HALF_CLOSE_WINDOW: Duration = Duration::from_millis(100);
