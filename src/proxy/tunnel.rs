//! After a 101: bytes both ways until both sides have closed, or nobody has said anything for too long.

use std::cell::{RefCell, RefMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::exchange::Exchange;
use crate::io::flight::{Flight, Part, WaitingFor};
use crate::io::socket::Socket;
use crate::io::splice::{Moved, Pipe};
use crate::upstream::{Place, Switched};

/// A tunnel between a client and the app.
#[derive(Debug)]
pub struct Tunnel {
    app: Socket,
    _place: Place,
    to_app: Half,
    to_client: Half,
    idle_timeout: Duration,
}

/// One direction: what has been read and not been written.
#[derive(Debug)]
struct Half {
    buffer: BytesMut,
    /// While there is much to move.
    pipe: Option<Pipe>,
    moved: u64,
    state: HalfState,
}

#[derive(Debug, PartialEq, Eq)]
enum HalfState {
    Open,
    /// The reading side has ended; what is left has to be written.
    Ended,
    /// Written, and the writing side shut down.
    Closed,
}

impl Tunnel {
    /// A tunnel to `app`.
    pub fn new(app: Switched, idle_timeout: Duration) -> Self {
        let Switched { socket, early, place } = app;
        let (to_app, to_client) = (Half::new(BytesMut::new()), Half::new(early));
        Self { app: socket, _place: place, to_app, to_client, idle_timeout }
    }

    /// Relays until the end, and counts into `exchange`. `early` is what the client has sent already. Once `closing` is
    /// true the app's side gets its end, and only what the app still sends is relayed; stops at once when `cut` is true.
    pub async fn run<'a>(
        mut self,
        client: impl Fn() -> RefMut<'a, Socket>,
        flight: &Flight,
        early: BytesMut,
        exchange: &Exchange,
        closing: impl Fn() -> bool,
        cut: impl Fn() -> bool,
    ) {
        self.to_app.buffer = early;
        flight.charge(Part::Library, 0);
        flight.charge(Part::Connection, MEMORY);
        flight.progress(WaitingFor::Client, self.idle_timeout);
        std::future::poll_fn(|cx| {
            flight.timer().register(cx.waker());
            let before = self.to_app.moved + self.to_client.moved;
            if closing() && self.to_app.state == HalfState::Open {
                self.to_app.state = HalfState::Ended;
            }
            let ended = self.poll(&mut client(), cx);
            let after = self.to_app.moved + self.to_client.moved;
            if after > before {
                flight.progress(WaitingFor::Client, self.idle_timeout);
            }
            let buffered = self.to_app.buffer.len() + self.to_client.buffer.len();
            flight.owe(Part::Unwritten, buffered);
            let short = flight.shed().is_some();
            let over = ended.is_ready() || flight.overdue().is_some();
            if over || short || cut() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        // Also when it was cut: what is spoken in a tunnel has an end of its own, and shows when that is missing.
        client().say_goodbye();
        exchange.bytes_in.set(self.to_app.moved);
        exchange.bytes_out.set(self.to_client.moved);
    }

    /// Ready when both directions have ended, or the one to the client is broken.
    fn poll(&mut self, client: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let to_app = match self.to_app.poll(client, &mut self.app, cx) {
            // An app that reads no more may have sent something before that; the other direction ends with it.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => self.to_app.abandon(),
            to_app => to_app?,
        };
        let to_client = self.to_client.poll(&mut self.app, client, cx)?;
        if to_app.is_ready() && to_client.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl Half {
    fn new(buffer: BytesMut) -> Self {
        Self { buffer, pipe: None, moved: 0, state: HalfState::Open }
    }

    /// Nothing more can be written.
    fn abandon(&mut self) -> Poll<()> {
        (self.buffer, self.pipe, self.state) = (BytesMut::new(), None, HalfState::Closed);
        Poll::Ready(())
    }

    fn poll(&mut self, from: &mut Socket, to: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Bounded, so that one busy tunnel does not keep the worker from the others.
        for _ in 0..TURNS {
            while !self.buffer.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.buffer))?;
                self.buffer.advance(written);
                self.moved += written as u64;
            }
            if let Some(pipe) = &mut self.pipe {
                while pipe.inside() > 0 {
                    self.moved += ready!(pipe.poll_write(to, cx))? as u64;
                }
                if self.state == HalfState::Open {
                    match pipe.read(from, READ)? {
                        Moved::Some(_) => continue,
                        Moved::End => self.state = HalfState::Ended,
                        // The next read is a small one, perhaps.
                        Moved::Nothing => {}
                    }
                }
                self.pipe = None;
            }
            // Before waiting for more: TLS holds back what the socket did not take.
            ready!(Pin::new(&mut *to).poll_flush(cx))?;
            let moved = match self.state {
                HalfState::Closed => return Poll::Ready(Ok(())),
                HalfState::Ended => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = HalfState::Closed;
                    return Poll::Ready(Ok(()));
                }
                HalfState::Open => SPACE.with_borrow_mut(|space| {
                    let mut read = ReadBuf::new(space);
                    ready!(Pin::new(&mut *from).poll_read(cx, &mut read))?;
                    let bytes = read.filled();
                    if bytes.is_empty() {
                        self.state = HalfState::Ended;
                        return Poll::Ready(Ok(()));
                    }
                    // Mostly all of it, and nothing has to be kept.
                    let written = match Pin::new(&mut *to).poll_write(cx, bytes) {
                        Poll::Ready(written) => written?,
                        Poll::Pending => 0,
                    };
                    self.moved += written as u64;
                    self.buffer = BytesMut::from(&bytes[written..]);
                    if bytes.len() == READ {
                        self.pipe = if from.is_plain() && to.is_plain() { Pipe::take() } else { None };
                    }
                    Poll::Ready(io::Result::Ok(()))
                }),
            };
            ready!(moved)?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

thread_local! {
    /// What all tunnels of a worker read into. A silent tunnel keeps no buffer.
    static SPACE: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

/// Bytes of memory that a tunnel takes: its task, and both sockets.
const MEMORY: usize = 12 * 1024;
/// Bytes of one read.
const READ: usize = 64 * 1024;
/// Reads in a row.
const TURNS: usize = 8;
