//! A connection to the app, between the socket and hyper, or `plain`.
//!
//! Three things happen here that neither has a place for. A reused connection that the app has closed
//! in the very moment is replaced by a new one, and what was written is written again, when nothing of it
//! can have been acted on. Interim responses are taken out of the stream and sent on to the client. And for an app that speaks
//! uwsgi, the head that hyper writes is replaced by a packet; its answer is HTTP/1, and hyper's business.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::flight::Flight;
use crate::io::memory::Held;
use crate::io::socket::Socket;
use crate::io::splice::{Moved, Pipe};
use crate::message::interim::{self, Found};
use crate::message::uwsgi::Packet;
use crate::upstream::connect::Address;
use crate::upstream::uwsgi::Exchange;

/// The shared state of a connection to the app.
pub(super) struct Stream {
    socket: RefCell<Socket>,
    address: Address,
    connect_timeout: Duration,
    request: RefCell<Request>,
    /// Whether bytes of the current response have come, or no request is under way.
    answered: Cell<bool>,
    /// Whether the app's first bytes still have to be looked at for interim responses.
    awaiting_head: Cell<bool>,
    /// Whether to read in small pieces.
    little: Cell<bool>,
    /// Whether the request was written, and the answer's beginning read, before hyper came.
    resumed: Cell<Resumed>,
    /// Bytes of the response that have been looked at and not been passed on.
    looked_at: RefCell<BytesMut>,
    /// The one exchange of a connection that speaks uwsgi.
    uwsgi: RefCell<Option<Box<Exchange>>>,
}

/// What hyper must not do a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resumed {
    /// Nothing.
    No,
    /// Write the request; and it mustn't read yet, because it takes what comes before it has written for an answer to
    /// nothing.
    Unwritten,
    /// Write the rest of it.
    Written,
}

/// The request under way, as far as a second attempt needs it.
struct Request {
    attempt: Attempt,
    /// Whether the method is idempotent (RFC 9110 §9.2.2), so that it may be sent again after it was written.
    idempotent: bool,
    /// Whether all of it is in memory, so that a long one is kept as well.
    in_memory: bool,
    /// What was written, as long as it may have to be written again.
    sent: Vec<u8>,
    /// Bytes that `sent` may have: more than [`MAX_REPEATED`] are counted in `held`.
    most: usize,
    held: Held,
    written: u64,
    client: Option<Rc<Flight>>,
}

enum Attempt {
    /// On a new connection, or the second: what fails, fails.
    Last,
    /// On a reused connection: may be repeated on a new one.
    First,
    Reconnecting(Pin<Box<dyn Future<Output = io::Result<Socket>>>>),
    /// On the new connection: how much of `sent` has been written again.
    Rewriting(usize),
}

impl Stream {
    /// The state of a new connection.
    pub(super) fn new(socket: Socket, address: Address, connect_timeout: Duration, held: Held) -> Rc<Self> {
        Rc::new(Self {
            socket: RefCell::new(socket),
            address,
            connect_timeout,
            request: RefCell::new(Request {
                attempt: Attempt::Last,
                idempotent: false,
                in_memory: false,
                sent: Vec::new(),
                most: MAX_REPEATED,
                held,
                written: 0,
                client: None,
            }),
            answered: Cell::new(true),
            awaiting_head: Cell::new(false),
            little: Cell::new(false),
            resumed: Cell::new(Resumed::No),
            looked_at: RefCell::default(),
            uwsgi: RefCell::default(),
        })
    }

    /// A request is about to be written. `in_memory`: all of it, so that it may be kept. `client` gets interim responses.
    pub(super) fn begin(&self, reused: bool, idempotent: bool, in_memory: bool, client: Option<Rc<Flight>>) {
        let mut request = self.request.borrow_mut();
        request.attempt = if reused { Attempt::First } else { Attempt::Last };
        request.idempotent = idempotent;
        request.in_memory = in_memory;
        request.sent.clear();
        request.written = 0;
        request.client = client;
        self.answered.set(false);
        self.awaiting_head.set(true);
        self.resumed.set(Resumed::No);
    }

    /// hyper is to go on with the exchange: the request has been written, and `read` is how the answer begins.
    pub(super) fn resume(&self, read: &[u8]) {
        let mut looked_at = self.looked_at.borrow_mut();
        // What may still be here stands behind it.
        let rest = std::mem::take(&mut *looked_at);
        looked_at.extend_from_slice(read);
        looked_at.unsplit(rest);
        self.awaiting_head.set(false);
        self.resumed.set(Resumed::Unwritten);
    }

    /// Reads in small pieces, or not any more.
    pub(super) fn read_little(&self, little: bool) {
        self.little.set(little);
    }

    /// Whether its reads are small.
    pub(super) fn reads_little(&self) -> bool {
        self.little.get()
    }

    /// The packet goes out in place of the head that hyper writes.
    pub(super) fn send_instead(&self, packet: Packet) {
        self.uwsgi.replace(Some(Box::new(Exchange::new(packet))));
    }

    /// Whether the app has said nothing since its last answer, and not closed either.
    pub(super) fn is_quiet(&self) -> bool {
        self.looked_at.borrow().is_empty() && self.socket.borrow().is_quiet()
    }

    /// Whether the connection speaks uwsgi.
    pub(super) fn is_uwsgi(&self) -> bool {
        self.uwsgi.borrow().is_some()
    }

    /// Moves up to `most` bytes of the answer into `pipe`, as soon as there are any. `None` when they are to be read
    /// instead.
    pub(super) fn poll_splice(&self, cx: &mut Context<'_>, pipe: &mut Pipe, most: usize) -> Poll<Option<usize>> {
        let socket = self.socket.borrow();
        if self.little.get() || self.is_uwsgi() || !self.looked_at.borrow().is_empty() || !socket.is_plain() {
            return Poll::Ready(None);
        }
        loop {
            if ready!(socket.poll_read_ready(cx)).is_err() {
                return Poll::Ready(None);
            }
            match pipe.read(&socket, most) {
                Ok(Moved::Some(count)) => return Poll::Ready(Some(count)),
                Ok(Moved::Nothing) => {}
                // Who reads it, says why.
                Ok(Moved::End) | Err(_) => return Poll::Ready(None),
            }
        }
    }

    /// The exchange is over: what was kept for a second attempt goes.
    pub(super) fn end(&self) {
        let mut request = self.request.borrow_mut();
        request.client = None;
        request.forget();
        self.little.set(false);
    }

    /// Whether the request had to be sent a second time.
    pub(super) fn was_repeated(&self) -> bool {
        matches!(self.request.borrow().attempt, Attempt::Rewriting(_))
    }

    /// Takes the socket, after a 101.
    pub(super) fn into_socket(self: Rc<Self>) -> Option<Socket> {
        Rc::into_inner(self).map(|stream| stream.socket.into_inner())
    }

    /// After a failure: begins the second attempt if there may be one.
    fn may_repeat(&self) -> bool {
        if self.answered.get() {
            return false;
        }
        let mut request = self.request.borrow_mut();
        // What overflowed `sent` can't be written again: `record` has made it the last attempt.
        let may = matches!(request.attempt, Attempt::First) && (request.written == 0 || request.idempotent);
        if may {
            let (address, connect_timeout) = (self.address.clone(), self.connect_timeout);
            request.attempt = Attempt::Reconnecting(Box::pin(async move {
                tokio::time::timeout(connect_timeout, address.connect(None)).await?
            }));
        }
        may
    }

    /// Ready when a second attempt, if there is one, has caught up with the first.
    fn poll_repeat(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut request = self.request.borrow_mut();
        let request = &mut *request;
        loop {
            match &mut request.attempt {
                Attempt::Last | Attempt::First => return Poll::Ready(Ok(())),
                Attempt::Reconnecting(connect) => {
                    let connected = ready!(connect.as_mut().poll(cx));
                    // hyper may poll again after an error; a future that has ended may not be.
                    request.attempt = if connected.is_ok() { Attempt::Rewriting(0) } else { Attempt::Last };
                    *self.socket.borrow_mut() = connected?;
                }
                Attempt::Rewriting(done) => {
                    while *done < request.sent.len() {
                        let rest = &request.sent[*done..];
                        *done += ready!(Pin::new(&mut *self.socket.borrow_mut()).poll_write(cx, rest))?;
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// Accounts for bytes that were written.
    fn record(&self, slices: &[io::IoSlice<'_>], mut count: usize) {
        let mut request = self.request.borrow_mut();
        request.written += count as u64;
        if !matches!(request.attempt, Attempt::First) || !request.idempotent {
            return;
        }
        if request.sent.len() + count > request.most && !request.keep(count) {
            request.attempt = Attempt::Last;
            request.forget();
            return;
        }
        for slice in slices {
            let part = &slice[..slice.len().min(count)];
            request.sent.extend_from_slice(part);
            count -= part.len();
        }
    }

    fn poll_write(
        &self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
        write: impl Fn(Pin<&mut Socket>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.resumed.get() != Resumed::No {
            self.resumed.set(Resumed::Written);
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        if let Some(exchange) = &mut *self.uwsgi.borrow_mut()
            && !exchange.is_head_sent()
        {
            return exchange.poll_head(&mut self.socket.borrow_mut(), cx, slices).map(Ok);
        }
        loop {
            ready!(self.poll_repeat(cx))?;
            let written = ready!(write(Pin::new(&mut *self.socket.borrow_mut()), cx));
            match written {
                Ok(count) => {
                    self.record(slices, count);
                    return Poll::Ready(Ok(count));
                }
                Err(error) if self.may_repeat() => drop(error),
                // An app that has answered early and closed: its answer waits to be read. The read says how it
                // ended, the bytes go nowhere either way.
                Err(_) => return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum())),
            }
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.resumed.get() == Resumed::Unwritten {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        loop {
            if !self.awaiting_head.get() && !self.looked_at.borrow().is_empty() {
                let mut looked_at = self.looked_at.borrow_mut();
                let some = looked_at.len().min(buf.remaining());
                buf.put_slice(&looked_at.split_to(some));
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_repeat(cx))?;
            let read = ready!(self.read_some(cx, buf));
            let count = buf.filled().len() - before;
            match read {
                Ok(()) if count > 0 => {}
                Ok(()) if self.may_repeat() => continue,
                Err(error) if self.may_repeat() => {
                    drop(error);
                    continue;
                }
                // The stream ends in the middle of what could have become an interim response.
                Ok(()) if self.awaiting_head.replace(false) && !self.looked_at.borrow().is_empty() => continue,
                ended => return Poll::Ready(ended),
            }
            if !self.answered.replace(true) && self.request.borrow().most > MAX_REPEATED {
                self.request.borrow_mut().forget();
            }
            if let Some(exchange) = &mut *self.uwsgi.borrow_mut() {
                exchange.check(&buf.filled()[before..])?;
            }
            if !self.awaiting_head.get() {
                return Poll::Ready(Ok(()));
            }
            let mut looked_at = self.looked_at.borrow_mut();
            if looked_at.is_empty() && interim::find(&buf.filled()[before..]) == Found::Final {
                self.awaiting_head.set(false);
                return Poll::Ready(Ok(()));
            }
            looked_at.extend_from_slice(&buf.filled()[before..]);
            buf.set_filled(before);
            self.send_interim(&mut looked_at);
        }
    }

    fn read_some(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.socket.borrow_mut().poll_read_at_most(cx, buf, if self.little.get() { LITTLE } else { usize::MAX })
    }

    /// Sends on the interim responses at the start of `bytes`.
    fn send_interim(&self, bytes: &mut BytesMut) {
        loop {
            match interim::find(bytes) {
                Found::Interim(length) => {
                    let head = bytes.split_to(length);
                    if let (Some(client), Some(response)) = (&self.request.borrow().client, interim::rewrite(&head)) {
                        client.queue_interim(&response);
                    }
                }
                Found::Incomplete if bytes.len() < MAX_INTERIM => return,
                Found::Incomplete | Found::Final => return self.awaiting_head.set(false),
            }
        }
    }
}

impl Request {
    /// Lets `sent` have `count` bytes more. False when the body is not in memory anyway, or memory
    /// is short.
    fn keep(&mut self, count: usize) -> bool {
        let more = self.most.max(count);
        let kept = self.in_memory && self.held.take(more);
        if kept {
            self.most += more;
            self.sent.reserve_exact(self.most - self.sent.len());
        }
        kept
    }

    /// Nothing has to be written again.
    fn forget(&mut self) {
        self.sent.clear();
        self.sent.shrink_to(KEPT);
        self.held.give_back(usize::MAX);
        self.most = MAX_REPEATED;
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The IO that hyper gets.
#[derive(Debug)]
pub(super) struct StreamIo(pub(super) Rc<Stream>);

impl AsyncRead for StreamIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buf)
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, &[io::IoSlice::new(bytes)], |socket, cx| socket.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, slices, |socket, cx| socket.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.socket.borrow_mut()).poll_shutdown(cx)
    }
}

/// Bytes of a request that are kept for a second attempt.
const MAX_REPEATED: usize = 64 * 1024;
/// Bytes of a buffer that an idle connection keeps.
const KEPT: usize = 4 * 1024;
/// Bytes of a small piece. hyper's buffers, which begin with 8 KiB, grow when a read fills them, and shrink when
/// several don't.
const LITTLE: usize = 8 * 1024 - 1;
/// Bytes of one interim response. What is longer goes to hyper, which refuses it.
const MAX_INTERIM: usize = 16 * 1024;
/// Bytes that hyper may hold for one direction of one connection, unless a response's head is larger.
pub(super) const BUFFER: usize = 64 * 1024;
