//! An answer that is read ahead of a slow client, so that the app's worker is free when the client is not.
//!
//! Nothing is held back: what the client can take at once never waits here. Only when it leaves bytes lying
//! does whoever serves the client call [`ReadAhead::poll_fill`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};

use crate::error::Failure;
use crate::memory::{Budget, Held};
use crate::splice::Pipe;
use crate::upstream::Relay;

/// A response body and what has been read of it before the client wanted it.
#[derive(Debug)]
pub struct ReadAhead {
    /// `None` once the app has done its part.
    relay: RefCell<Option<Relay>>,
    queue: RefCell<VecDeque<Queued>>,
    /// Bytes of memory, as [`cost`] counts them.
    queued: Cell<usize>,
    /// Bytes that may be queued.
    limit: usize,
    held: RefCell<Held>,
    budget: Budget,
}

impl ReadAhead {
    /// Reads at most `limit` bytes ahead, within `budget`.
    pub fn new(relay: Relay, limit: usize, budget: Budget) -> Self {
        let held = RefCell::new(budget.hold());
        Self { relay: RefCell::new(Some(relay)), queue: RefCell::default(), queued: Cell::new(0), limit, held, budget }
    }

    /// The body's next frame.
    pub fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if let Some(next) = self.queue.borrow_mut().pop_front() {
            self.queued.set(self.queued.get() - cost(&next));
            self.held.borrow_mut().set(self.queued.get());
            return Poll::Ready(Some(next));
        }
        let mut relay = self.relay.borrow_mut();
        let Some(app) = &mut *relay else { return Poll::Ready(None) };
        app.read_little(!self.budget.is_below(ROOMY));
        let next = ready!(Pin::new(app).poll_frame(cx));
        if !matches!(next, Some(Ok(_))) {
            *relay = None;
        }
        Poll::Ready(next)
    }

    /// Moves bytes of the body into `pipe`, as soon as there are any, and says how many. `None` when the next ones are to be
    /// had from [`poll_frame`](Self::poll_frame).
    pub fn poll_splice(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Option<usize>> {
        match &mut *self.relay.borrow_mut() {
            Some(app) if self.queue.borrow().is_empty() && self.budget.is_below(ROOMY) => app.poll_splice(cx, pipe),
            _ => Poll::Ready(None),
        }
    }

    /// Reads on while the client does not. `lying` are the bytes that it leaves lying elsewhere.
    pub fn poll_fill(&self, lying: usize, cx: &mut Context<'_>) {
        let mut relay = self.relay.borrow_mut();
        while let Some(app) = &mut *relay {
            self.held.borrow_mut().set(self.queued.get() + lying);
            if self.queued.get() >= self.limit || !self.budget.is_below(FULL) {
                break;
            }
            app.read_little(!self.budget.is_below(ROOMY));
            match Pin::new(app).poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => *relay = None,
                Poll::Ready(Some(next)) => {
                    if next.is_err() {
                        *relay = None;
                    }
                    self.queued.set(self.queued.get() + cost(&next));
                    self.queue.borrow_mut().push_back(next);
                }
            }
        }
    }

    /// Bytes that are good to hand out at once: fewer when memory is short.
    pub fn piece(&self) -> usize {
        if self.budget.is_below(ROOMY) { PIECE } else { LITTLE_PIECE }
    }

    /// Whether nothing is left.
    pub fn is_end_stream(&self) -> bool {
        self.queue.borrow().is_empty() && self.relay.borrow().as_ref().is_none_or(Body::is_end_stream)
    }
}

/// Bytes of memory that a frame takes while it is queued.
fn cost(frame: &Queued) -> usize {
    FRAME + frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len)
}

type Queued = Result<Frame<Bytes>, Failure>;

/// Bytes of a frame besides its content, of which an app that streams has sent one at a time. Twice its size, because
/// the queue doubles when it grows.
const FRAME: usize = 2 * size_of::<Queued>();

/// Bytes; as many as hyper reads from the app at once.
const PIECE: usize = 64 * 1024;
/// Bytes; one read of the app in small pieces.
const LITTLE_PIECE: usize = 8 * 1024;
/// Percent of the budget up to which answers are read ahead: the rest is for requests, without which there are no
/// answers.
const FULL: usize = 50;
/// Percent of the budget beyond which the app is read in small pieces, because each connection has a buffer too.
const ROOMY: usize = 25;
