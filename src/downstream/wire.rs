//! The client's connection, between the socket and hyper, or who stands in for it where a request is plain.
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
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::{Failure, Shed};
use crate::io::flight::{Flight, Part, WaitingFor};
use crate::io::socket::Socket;
use crate::io::splice::Pipe;
use crate::message::framing::RequestFraming;
use crate::message::head::HEADER_LINE;

/// The shared state of a client's connection.
#[derive(Debug)]
pub struct Wire {
    /// The exchange under way.
    pub flight: Rc<Flight>,
    socket: RefCell<Socket>,
    framing: RefCell<RequestFraming>,
    /// What was read beyond the current request.
    ahead: RefCell<BytesMut>,
    /// The first bytes of a request that hyper reads, for the log: where it refuses a head, it may have dropped them.
    begun: RefCell<Bytes>,
    /// Whether hyper has handed a request over and its answer is hyper's business. While it hasn't, what
    /// hyper writes is an error answer of its own, and ours is better.
    answering: Cell<bool>,
    /// Whether hyper has read all there was, and waits for more.
    hungry: Cell<bool>,
    /// Whether interim responses may still be with TLS.
    unflushed: Cell<bool>,
    /// Whether the client may have got a part of an interim response, behind which nothing else may come but its rest.
    interim_begun: Cell<bool>,
    /// Whether the client has closed its side, or asked for more, while its answer is in the making.
    peeked: Cell<Peeked>,
    /// Whether the connection may begin with HTTP/2's preface.
    preface: Cell<Preface>,
    write_timeout: Duration,
}

/// What is known of HTTP/2's preface at a connection's begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preface {
    /// It may: what has come is the beginning of one, and waits in `ahead`.
    Possible,
    /// It must, because TLS agreed on HTTP/2.
    Required,
    /// It does not.
    Absent,
    /// It does.
    Found,
    /// It does not, and must.
    Missing,
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
    pub fn new(
        socket: Socket,
        max_header_size: usize,
        flight: Rc<Flight>,
        write_timeout: Duration,
        preface: Preface,
    ) -> Rc<Self> {
        flight.keep_pace();
        Rc::new(Self {
            flight,
            socket: RefCell::new(socket),
            framing: RefCell::new(RequestFraming::new(max_header_size)),
            ahead: RefCell::default(),
            begun: RefCell::default(),
            answering: Cell::new(false),
            hungry: Cell::new(false),
            unflushed: Cell::new(false),
            interim_begun: Cell::new(false),
            peeked: Cell::new(Peeked::Nothing),
            preface: Cell::new(preface),
            write_timeout,
        })
    }

    /// The socket, for what comes before and after hyper. Not to be held across an await.
    pub fn socket(&self) -> RefMut<'_, Socket> {
        self.socket.borrow_mut()
    }

    /// Whether the connection has begun with HTTP/2's preface. Nothing of it has been passed on.
    pub fn is_preface(&self) -> bool {
        self.preface.get() == Preface::Found
    }

    /// Whether TLS agreed on HTTP/2, and what came is something else.
    pub fn is_preface_missing(&self) -> bool {
        self.preface.get() == Preface::Missing
    }

    /// Whether the client can't read HTTP/1.1.
    pub fn is_http2_agreed(&self) -> bool {
        matches!(self.preface.get(), Preface::Required | Preface::Missing)
    }

    /// The socket, and what has been read and not been passed on.
    pub fn into_socket(self) -> (Socket, BytesMut) {
        (self.socket.into_inner(), self.ahead.into_inner())
    }

    /// hyper has handed a request over.
    pub fn begin_exchange(&self) {
        self.begun.take();
        self.answering.set(true);
        self.peeked.set(Peeked::Nothing);
    }

    /// Whether any of the next request has been read.
    pub fn has_request_begun(&self) -> bool {
        !self.framing.borrow().is_between_requests() || !self.ahead.borrow().is_empty()
    }

    /// Whether what was read last was a request's end.
    pub fn is_request_complete(&self) -> bool {
        self.framing.borrow().is_between_requests()
    }

    /// Whether the current request is an `OPTIONS` for the server as a whole, by an absolute form.
    pub fn is_asterisk(&self) -> bool {
        self.framing.borrow().is_asterisk()
    }

    /// What was read last is to be read again, and the request begins with it.
    pub fn take_back(&self, read: Bytes) {
        self.framing.borrow_mut().reset();
        let mut ahead = self.ahead.borrow_mut();
        let rest = std::mem::replace(&mut *ahead, BytesMut::from(&*read));
        self.begun.replace(read);
        ahead.unsplit(rest);
    }

    /// Whether hyper has got the current request, so that it has been answered, or will be.
    pub fn is_answered(&self) -> bool {
        self.answering.get()
    }

    /// Whether nothing is on its way: hyper has read all there was, and there was nothing since the last request's end.
    pub fn is_idle(&self) -> bool {
        self.hungry.get() && self.framing.borrow().is_untouched() && self.ahead.borrow().is_empty()
    }

    /// Whether hyper waits for bytes.
    pub fn is_hungry(&self) -> bool {
        self.hungry.get()
    }

    /// Whether the current request's body has not been read to its end.
    pub fn is_request_incomplete(&self) -> bool {
        let framing = self.framing.borrow();
        !framing.is_between_requests() && !framing.is_in_head()
    }

    /// Takes the first bytes of a request that hyper has not handed over.
    pub fn take_begun(&self) -> Bytes {
        self.begun.take()
    }

    /// Takes what the client has sent beyond its last request.
    pub fn take_ahead(&self) -> BytesMut {
        self.ahead.take()
    }

    /// Sends queued interim responses.
    ///
    /// # Errors
    ///
    /// When the client's connection is broken.
    pub fn poll_interim(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_interim(cx))?;
        // Not a flush of hyper's: it would not hear that it is done, and wait for ever.
        if self.unflushed.get() && !self.flight.is_blocked() {
            ready!(Pin::new(&mut *self.socket.borrow_mut()).poll_flush(cx))?;
            self.unflushed.set(false);
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when no interim response stands in the way of what hyper writes.
    fn poll_write_interim(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut interim = self.flight.interim.borrow_mut();
        while !interim.is_empty() {
            // The end of the last answer goes first: not into the middle of what hyper has begun to write.
            if self.flight.is_blocked() && !self.interim_begun.get() {
                return Poll::Ready(Ok(()));
            }
            self.interim_begun.set(true);
            let written = ready!(Pin::new(&mut *self.socket.borrow_mut()).poll_write(cx, &interim))?;
            interim.advance(written);
            self.unflushed.set(true);
        }
        self.interim_begun.set(false);
        Poll::Ready(Ok(()))
    }

    /// Writes for hyper, once the interim responses are out.
    fn poll_after_interim(
        &self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Socket>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_interim(cx))?;
        write(Pin::new(&mut *self.socket.borrow_mut()), cx)
    }

    /// Writes what is in `pipe`, and returns how much of it, once the interim responses are out.
    pub fn poll_splice(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        let written = self.poll_after_interim(cx, |socket, cx| pipe.poll_write(&socket, cx));
        self.wrote(written)
    }

    /// Ready when the client has left while its answer is in the making.
    ///
    /// A FIN that comes with the request is a half-close, and answered: the client has said all it has to
    /// say (RFC 9112 §9.6 lets it). One that comes later means that nobody waits any more.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.flight.is_under_way() || self.peeked.get() != Peeked::Nothing || self.has_request_begun() {
            return Poll::Pending;
        }
        let mut space = [0; 1024];
        let mut read = ReadBuf::new(&mut space);
        match ready!(Pin::new(&mut *self.socket.borrow_mut()).poll_read(cx, &mut read)) {
            Ok(()) if !read.filled().is_empty() => {
                self.ahead.borrow_mut().extend_from_slice(read.filled());
                self.peeked.set(Peeked::MoreToCome);
            }
            Ok(()) if self.flight.last_read().elapsed() < HALF_CLOSE_WINDOW => self.peeked.set(Peeked::HalfClose),
            Ok(()) | Err(_) => return Poll::Ready(()),
        }
        Poll::Pending
    }

    /// Passes on what belongs to the current request of `new` bytes at the end of `buf`, keeps the rest.
    fn admit(&self, buf: &mut ReadBuf<'_>, before: usize) -> Poll<io::Result<()>> {
        let mut framing = self.framing.borrow_mut();
        if framing.is_between_requests() && !self.flight.is_blocked() {
            self.answering.set(false);
            self.flight.charge(Part::Read, 0);
        }
        self.flight.has_read();
        match framing.feed(&buf.filled()[before..]) {
            Ok(taken) => {
                if before + taken < buf.filled().len() {
                    self.ahead.borrow_mut().extend_from_slice(&buf.filled()[before + taken..]);
                    buf.set_filled(before + taken);
                }
                // The head is here and in what was parsed of it, and goes out to the app from a third buffer.
                let large = (framing.head() * 3 + framing.lines() * HEADER_LINE).saturating_sub(COVERED);
                if large > 0 && !(self.flight.may_grow() && self.flight.charge(Part::Read, large)) {
                    self.flight.violate(Failure::MemoryFull(Shed::LargeHead));
                    buf.set_filled(before);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(()))
            }
            Err(failure) => {
                // For the line in the log, which says what it can of the request.
                self.ahead.borrow_mut().extend_from_slice(&buf.filled()[before..]);
                buf.set_filled(before);
                self.flight.violate(failure);
                Poll::Pending
            }
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.flight.violation().is_some() {
            return Poll::Pending;
        }
        if matches!(self.preface.get(), Preface::Found | Preface::Missing) {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        while matches!(self.preface.get(), Preface::Possible | Preface::Required) {
            ready!(Pin::new(&mut *self.socket.borrow_mut()).poll_read(cx, buf))?;
            if !self.detect(buf, before) {
                continue;
            }
            if self.preface.get() != Preface::Absent {
                return Poll::Pending;
            }
            if buf.filled().len() > before {
                return self.admit(buf, before);
            }
        }
        if self.ahead.borrow().is_empty() {
            ready!(self.read_some(cx, buf))?;
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

    /// Reads from the socket; little when memory is short, so that hyper's buffer doesn't grow.
    fn read_some(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.socket.borrow_mut().poll_read_at_most(cx, buf, if self.flight.has_memory() { usize::MAX } else { LITTLE })
    }

    /// Compares the connection's first bytes with HTTP/2's preface, and keeps them back while they could be one.
    /// True once it is decided. An HTTP/1.1 request nearly always is with its first byte.
    fn detect(&self, buf: &mut ReadBuf<'_>, before: usize) -> bool {
        let new = &buf.filled()[before..];
        let mut ahead = self.ahead.borrow_mut();
        let expected = &PREFACE[ahead.len()..];
        let compared = new.len().min(expected.len());
        if !new.is_empty() && new[..compared] == expected[..compared] {
            let whole = compared == expected.len();
            ahead.extend_from_slice(new);
            buf.set_filled(before);
            if whole {
                self.preface.set(Preface::Found);
            }
            return whole;
        }
        // A client that closes before its first byte breaks nothing: so a load balancer tries whether TLS works.
        let nothing = new.is_empty() && ahead.is_empty();
        let missing = self.preface.get() == Preface::Required && !nothing;
        self.preface.set(if missing { Preface::Missing } else { Preface::Absent });
        if missing || !ahead.is_empty() {
            ahead.extend_from_slice(new);
            buf.set_filled(before);
        }
        true
    }

    /// Accounts for one attempt of hyper's to flush: TLS takes what the client has not.
    fn flushed(&self, flushed: &Poll<io::Result<()>>) {
        if flushed.is_pending() {
            self.flight.set_blocked(true);
            self.flight.wait(WaitingFor::Client, self.write_timeout);
        } else if self.flight.set_blocked(false) {
            self.flight.arrived(WaitingFor::Client);
        }
    }

    /// Accounts for one attempt of hyper's to write.
    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Pending => {
                self.flight.set_blocked(true);
                self.flight.wait(WaitingFor::Client, self.write_timeout);
            }
            Poll::Ready(outcome) => {
                self.flight.wrote(*outcome.as_ref().unwrap_or(&0));
                if self.flight.set_blocked(false) {
                    self.flight.arrived(WaitingFor::Client);
                }
            }
        }
        written
    }
}

/// The IO that hyper gets.
#[derive(Debug)]
pub struct WireIo(pub Rc<Wire>);

impl AsyncRead for WireIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.0.poll_read(cx, buf);
        self.0.hungry.set(read.is_pending());
        read
    }
}

impl AsyncWrite for WireIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wire = &self.0;
        if !wire.answering.get() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = wire.poll_after_interim(cx, |socket, cx| socket.poll_write(cx, bytes));
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
        let written = wire.poll_after_interim(cx, |socket, cx| socket.poll_write_vectored(cx, slices));
        wire.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut *self.0.socket.borrow_mut()).poll_flush(cx);
        self.0.flushed(&flushed);
        flushed
    }

    /// Nothing: after hyper there may be a tunnel, or an answer of ours. The connection closes itself.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// How long after a request a FIN still counts as part of it. A client that shuts its side down does so in
/// the same breath; one that gives up has waited.
const HALF_CLOSE_WINDOW: Duration = Duration::from_millis(100);
/// Bytes of a head, in all its buffers, that are charged with the connection.
const COVERED: usize = 24 * 1024;
/// Bytes of a small read: less than hyper's buffer, which grows when a read fills it.
const LITTLE: usize = 8 * 1024 - 1;
/// RFC 9113 §3.4: how every HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
