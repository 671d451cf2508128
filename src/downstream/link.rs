//! An HTTP/2 client's socket, as the `h2` crate gets it: timed where the client leaves an answer lying, and
//! watched for frames that only keep us busy.

use std::cell::{Cell, RefCell, RefMut};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http2::pump::Gate;
use crate::http2::stream_body::Turn;
use crate::io::flight::{Flight, WaitingFor};
use crate::io::socket::Socket;
use crate::message::frames::Meter;

/// The shared state of a client's HTTP/2 connection.
pub(super) struct Link {
    /// The connection's own; each stream has one too.
    pub(super) flight: Rc<Flight>,
    socket: RefCell<Socket>,
    turn: RefCell<Turn>,
    /// What was read before it was known what it is.
    early: RefCell<BytesMut>,
    /// Bytes of the preface that the meter has not seen.
    preface: Cell<usize>,
    meter: RefCell<Meter>,
    /// What the client's frames may still cost.
    credit: Cell<u64>,
    /// Window updates that answer what was sent.
    updates_due: Cell<u64>,
    /// Bytes written that have not become credit.
    written: Cell<usize>,
    refilled: Cell<Instant>,
    exhausted: Cell<bool>,
    pub(super) gate: Rc<Gate>,
    write_timeout: Cell<Duration>,
    /// Bytes that may be read before there has to be memory for more, and whether that was wanted.
    allowance: Cell<usize>,
    starved: Cell<bool>,
}

impl Link {
    pub(super) fn new(socket: Socket, early: BytesMut, flight: Rc<Flight>, write_timeout: Duration) -> Rc<Self> {
        flight.keep_pace();
        Rc::new(Self {
            flight,
            socket: RefCell::new(socket),
            turn: RefCell::default(),
            early: RefCell::new(early),
            preface: Cell::new(PREFACE),
            meter: RefCell::default(),
            credit: Cell::new(MOST_CREDIT),
            updates_due: Cell::new(0),
            written: Cell::new(0),
            refilled: Cell::new(Instant::now()),
            exhausted: Cell::new(false),
            gate: Rc::default(),
            write_timeout: Cell::new(write_timeout),
            allowance: Cell::new(0),
            starved: Cell::new(false),
        })
    }

    /// The socket. Not to be held across an await.
    pub(super) fn socket(&self) -> RefMut<'_, Socket> {
        self.socket.borrow_mut()
    }

    /// Whether the client leaves what was written lying.
    pub(super) fn is_blocked(&self) -> bool {
        self.gate.is_blocked()
    }

    /// Whether more was to be read than is allowed.
    pub(super) fn is_starved(&self) -> bool {
        self.starved.get()
    }

    /// Lets so many bytes be read.
    pub(super) fn allow(&self, bytes: usize) {
        self.allowance.set(bytes);
        self.starved.set(false);
    }

    /// From now on a client that leaves lying what was written has only so long.
    pub(super) fn hurry(&self, write_timeout: Duration) {
        self.write_timeout.set(write_timeout);
    }

    /// Whether a request head is on its way.
    pub(super) fn is_in_head(&self) -> bool {
        self.meter.borrow().is_in_head()
    }

    /// Whether the client's frames have cost more than what it asked for is worth. Nothing more is read.
    pub(super) fn is_exhausted(&self) -> bool {
        self.exhausted.get()
    }

    /// Gives credit for a request that has been answered.
    pub(super) fn earn(&self, credit: u64) {
        self.credit.set((self.credit.get() + credit).min(MOST_CREDIT));
    }

    /// A response head has been handed to `h2`, which keeps it in memory until it is written.
    pub(super) fn sent_head(&self, memory: usize) {
        self.flight.hand_out(memory + STREAM_STATE);
    }

    /// So many bytes have been handed to `h2`, in so many frames. Some clients answer every frame, however small, with
    /// two window updates.
    pub(super) fn sent(&self, frames: usize, bytes: usize) {
        self.updates_due.set(self.updates_due.get() + 2 * frames as u64);
        self.flight.hand_out(bytes);
    }

    /// Looks at what has been read. Returns how many bytes of it are trailer sections.
    fn watch(&self, bytes: &[u8]) -> usize {
        let preface = self.preface.get().min(bytes.len());
        self.preface.set(self.preface.get() - preface);
        let cost = self.meter.borrow_mut().feed(&bytes[preface..]);
        let due = self.updates_due.get();
        self.updates_due.set(due.saturating_sub(cost.updates));
        let trailers = cost.trailers;
        let cost = cost.other + cost.updates.saturating_sub(due);
        if cost > self.credit.get() {
            // The clock is read only here: nearly every connection lives on what its answers earn.
            let passed = self.refilled.replace(Instant::now()).elapsed();
            self.earn(u64::try_from(passed.as_millis()).unwrap_or(MOST_CREDIT) * CREDIT_PER_SECOND / 1000);
        }
        match self.credit.get().checked_sub(cost) {
            Some(left) => self.credit.set(left),
            None => self.exhausted.set(true),
        }
        trailers
    }

    /// One attempt of `h2`'s to write.
    fn poll_write(
        &self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Socket>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let mut socket = self.socket();
        if self.gate.is_blocked() {
            // TLS may have room for more while it waits for the client: what it takes then is no sign of life.
            let flushed = Pin::new(&mut *socket).poll_flush(cx)?;
            if flushed.is_pending() {
                return self.tried(Poll::Pending);
            }
        }
        let written = self.tried(write(Pin::new(&mut *socket), cx));
        if let Poll::Ready(outcome) = &written {
            self.flight.wrote(outcome.as_ref().map_or(0, |count| *count));
            let written = self.written.get() + outcome.as_ref().map_or(0, |count| *count);
            self.earn((written / BYTES_PER_CREDIT) as u64);
            self.updates_due.set(self.updates_due.get() + (written / BYTES_PER_CREDIT) as u64);
            self.written.set(written % BYTES_PER_CREDIT);
        }
        written
    }

    /// Accounts for an attempt to write, flush or shut down. All three: at the end of an answer nothing is left to be
    /// written, and TLS still holds up to 16 KiB that the socket has not taken.
    fn tried<T>(&self, outcome: Poll<T>) -> Poll<T> {
        if outcome.is_pending() {
            self.gate.shut();
            self.flight.set_blocked(true);
            self.flight.wait(WaitingFor::Client, self.write_timeout.get());
        } else if self.gate.open() {
            self.flight.set_blocked(false);
            self.flight.arrived(WaitingFor::Client);
        }
        outcome
    }
}

/// The IO that `h2` gets.
pub(super) struct LinkIo(pub(super) Rc<Link>);

impl AsyncRead for LinkIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let link = &self.0;
        if link.exhausted.get() {
            return Poll::Pending;
        }
        if link.allowance.get() == 0 {
            link.starved.set(true);
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let mut early = link.early.borrow_mut();
        if early.is_empty() {
            let mut socket = link.socket.borrow_mut();
            ready!(link.turn.borrow_mut().poll_read(Pin::new(&mut *socket), cx, buf))?;
        } else {
            let some = early.len().min(buf.remaining());
            buf.put_slice(&early.split_to(some));
        }
        let new = &buf.filled()[before..];
        // What they take once they are decoded is charged by the streams' tasks, which have to have their turn for it.
        link.turn.borrow_mut().spend(link.watch(new) * TRAILER_GROWTH);
        link.allowance.set(link.allowance.get().saturating_sub(new.len()));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LinkIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, |socket, cx| socket.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, |socket, cx| socket.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // `h2` flushes when it has written everything that it may send.
        let flushed = Pin::new(&mut *self.0.socket()).poll_flush(cx);
        if flushed.is_ready() {
            self.0.flight.wrote_all();
        }
        self.0.tried(flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut_down = Pin::new(&mut *self.0.socket()).poll_shutdown(cx);
        self.0.tried(shut_down)
    }
}

/// How many times as much memory a trailer section may take once it is decoded: RFC 7541 has a byte for a whole line.
const TRAILER_GROWTH: usize = 100;
/// Bytes of memory that `h2` takes for a stream until everything of it is written.
const STREAM_STATE: usize = 1024;
/// Bytes of the client's connection preface: RFC 9113 §3.4.
const PREFACE: usize = 24;
/// What a client may spend in a burst: a thousand resets, pings or settings.
const MOST_CREDIT: u64 = 10_000;
/// And what it may spend for ever: a hundred of them a second.
const CREDIT_PER_SECOND: u64 = 1000;
/// A client that reads has to say so, in pings that measure the way, and in window updates for large frames.
const BYTES_PER_CREDIT: usize = 1024;
