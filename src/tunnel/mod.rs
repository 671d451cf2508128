//! After a 101: bytes both ways until both sides have closed, or nobody has said anything for too long.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::exchange::Exchange;
use crate::flight::WaitingFor;
use crate::socket::Socket;
use crate::splice::{Moved, Pipe};
use crate::wire::Wire;

/// A tunnel between a client and the app.
#[derive(Debug)]
pub struct Tunnel {
    app: Socket,
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
    /// A tunnel to `app`, which has sent `early` already.
    pub fn new(app: Socket, early: BytesMut, idle_timeout: Duration) -> Self {
        Self { app, to_app: Half::new(BytesMut::new()), to_client: Half::new(early), idle_timeout }
    }

    /// Relays until the end, and counts into `exchange`. `early` is what the client has sent already. Stops at
    /// once when `cut` says so.
    pub async fn run(mut self, client: &Rc<Wire>, early: BytesMut, exchange: &Exchange, cut: impl Fn() -> bool) {
        self.to_app.buffer = early;
        client.flight.progress(WaitingFor::Client, self.idle_timeout);
        std::future::poll_fn(|cx| {
            client.flight.timer().register(cx.waker());
            let before = self.to_app.moved + self.to_client.moved;
            let ended = self.poll(client, cx);
            let after = self.to_app.moved + self.to_client.moved;
            if after > before {
                client.flight.progress(WaitingFor::Client, self.idle_timeout);
            }
            if ended.is_ready() || client.flight.overdue().is_some() || cut() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        // Also when it was cut: what is spoken in a tunnel has an end of its own, and shows when that is missing.
        client.socket().say_goodbye();
        exchange.bytes_in.set(self.to_app.moved);
        exchange.bytes_out.set(self.to_client.moved);
    }

    /// Ready when both directions have ended, or one is broken.
    fn poll(&mut self, client: &Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut client = client.socket();
        let to_app = self.to_app.poll(&mut client, &mut self.app, cx)?;
        let to_client = self.to_client.poll(&mut self.app, &mut client, cx)?;
        if to_app.is_ready() && to_client.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl Half {
    fn new(buffer: BytesMut) -> Self {
        Self { buffer, pipe: None, moved: 0, state: HalfState::Open }
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
                match pipe.read(from, READ)? {
                    Moved::Some(_) => continue,
                    Moved::End => self.state = HalfState::Ended,
                    // The next read is a small one, perhaps.
                    Moved::Nothing => {}
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

/// Bytes of one read.
const READ: usize = 64 * 1024;
/// Reads in a row.
const TURNS: usize = 8;
