//! An answer that is read ahead of a slow client, so that the app's worker is free when the client is not.
//!
//! Nothing is held back: what the client can take at once never waits here. Only while it leaves bytes unread does the
//! connection call [`ReadAhead::poll_fill`](Ahead::poll_fill).
//!
//! Up to a limit the bytes are in memory, and then in a file. Once there are bytes in the file, all that come are written
//! behind them, until the client has taken the last one.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};

use crate::body::{Buffering, Overflow};
use crate::error::Failure;
use crate::http2::joined::Joined;
use crate::io::flight::{Ahead, ROOMY};
use crate::io::memory::{Budget, Held};
use crate::io::splice::Pipe;
use crate::upstream::Relay;

/// How far answers may be read ahead.
#[derive(Debug)]
pub struct Bounds {
    /// Bytes of one answer; 0 reads nothing ahead.
    pub read_ahead: usize,
    /// Of all.
    pub budget: Budget,
    /// Where the rest goes while a client is slow.
    pub buffering: Arc<Buffering>,
}

/// A response body and what has been read of it before the client wanted it.
#[derive(Debug)]
pub struct ReadAhead {
    /// `None` once the app has done its part.
    relay: RefCell<Option<Relay>>,
    queue: RefCell<Joined>,
    /// What comes after the queue, in a file.
    overflow: RefCell<Option<Box<Overflow>>>,
    /// What comes after both: trailers, or why the body is truncated.
    end: RefCell<Option<Queued>>,
    /// Bytes of memory that the queue may take.
    limit: usize,
    held: RefCell<Held>,
    budget: Budget,
    buffering: Arc<Buffering>,
    /// Whether it has been logged that the client is too slow.
    reported: Cell<bool>,
}

impl ReadAhead {
    /// Reads ahead within `bounds`.
    pub fn new(relay: Relay, bounds: &Bounds) -> Self {
        let held = RefCell::new(bounds.budget.hold());
        Self {
            relay: RefCell::new(Some(relay)),
            queue: RefCell::default(),
            overflow: RefCell::default(),
            end: RefCell::default(),
            limit: bounds.read_ahead,
            held,
            budget: bounds.budget.clone(),
            buffering: Arc::clone(&bounds.buffering),
            reported: Cell::new(false),
        }
    }

    /// The body's next frame.
    pub fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let queued = self.queue.borrow_mut().pop();
        if let Some(data) = queued {
            self.held.borrow_mut().set(self.queued());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(next) = ready!(self.poll_overflow(cx)) {
            return Poll::Ready(Some(next.map(Frame::data)));
        }
        if let Some(end) = self.end.take() {
            return Poll::Ready(Some(end));
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
            Some(app)
                if self.queue.borrow().is_empty()
                    && self.overflow.borrow().is_none()
                    && self.budget.is_below(ROOMY) =>
            {
                app.poll_splice(cx, pipe)
            }
            _ => Poll::Ready(None),
        }
    }

    /// What comes next of the file's.
    fn poll_overflow(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        let mut overflow = self.overflow.borrow_mut();
        let Some(file) = &mut *overflow else { return Poll::Ready(None) };
        let next = ready!(file.poll_pop(cx));
        if !matches!(next, Some(Ok(_))) || file.is_empty() {
            *overflow = None;
        }
        drop(overflow);
        self.held.borrow_mut().set(self.queued());
        Poll::Ready(next.map(|data| {
            data.map_err(|error| {
                tracing::error!(error = %error, "can't read a spooled body");
                // What comes after a gap must not look like its continuation.
                self.relay.replace(None);
                self.end.replace(None);
                Failure::SpoolFailed
            })
        }))
    }

    /// The first time for this response, says that its client is slow and the app waits.
    fn report(&self) {
        if !self.reported.replace(true) {
            self.buffering.report_slow_client();
        }
    }

    /// Bytes that are good to hand out at once: fewer when memory is short.
    pub fn piece(&self) -> usize {
        if self.budget.is_below(ROOMY) { PIECE } else { LITTLE_PIECE }
    }

    /// Whether nothing is left.
    pub fn is_end_stream(&self) -> bool {
        self.queue.borrow().is_empty()
            && self.overflow.borrow().as_ref().is_none_or(|overflow| overflow.is_empty())
            && self.end.borrow().is_none()
            && self.relay.borrow().as_ref().is_none_or(Body::is_end_stream)
    }
}

impl Ahead for ReadAhead {
    fn queued(&self) -> usize {
        self.queue.borrow().memory() + self.overflow.borrow().as_ref().map_or(0, |overflow| overflow.memory())
    }

    fn poll_fill(&self, cx: &mut Context<'_>) {
        let mut relay = self.relay.borrow_mut();
        while let Some(app) = &mut *relay {
            self.held.borrow_mut().set(self.queued());
            let mut overflow = self.overflow.borrow_mut();
            let is_full = self.queue.borrow().memory() >= self.limit || !self.budget.is_below(FULL);
            if overflow.is_none() && is_full {
                *overflow = self.buffering.overflow().map(Box::new);
                if overflow.is_none() {
                    self.report();
                    break;
                }
            }
            if let Some(overflow) = &mut *overflow {
                match overflow.poll_ready(cx) {
                    Poll::Pending => break,
                    Poll::Ready(None) => {
                        self.report();
                        break;
                    }
                    Poll::Ready(Some(())) if !self.budget.is_below(NEARLY_FULL) => break,
                    Poll::Ready(Some(())) => {}
                }
            }
            app.read_little(!self.budget.is_below(ROOMY));
            match Pin::new(app).poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => *relay = None,
                Poll::Ready(Some(next)) => match next.map(Frame::into_data) {
                    Ok(Ok(data)) => match &mut *overflow {
                        Some(overflow) => overflow.push(data),
                        None => self.queue.borrow_mut().push(data),
                    },
                    Ok(Err(trailers)) => *self.end.borrow_mut() = Some(Ok(trailers)),
                    Err(failure) => {
                        *relay = None;
                        *self.end.borrow_mut() = Some(Err(failure));
                    }
                },
            }
        }
    }
}

type Queued = Result<Frame<Bytes>, Failure>;

/// Bytes; as many as hyper reads from the app at once.
const PIECE: usize = 64 * 1024;
/// Bytes of one small read from the app.
const LITTLE_PIECE: usize = 8 * 1024;
/// Percent of the budget up to which answers are read ahead: the rest is for requests, without which there are no
/// answers.
const FULL: usize = 50;
/// Percent of the budget up to which they are read into files.
const NEARLY_FULL: usize = 75;
