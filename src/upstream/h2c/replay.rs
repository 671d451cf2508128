//! What has been sent of a request, kept for another attempt.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::body::RequestBody;
use crate::error::Failure;
use crate::http2::joined::Joined;
use crate::io::memory::{Budget, Held};

/// A request body that can be sent again while what has been sent of it is in memory.
#[derive(Debug)]
pub(super) struct Replay {
    body: RequestBody,
    kept: Option<Kept>,
    /// Whether there may be another attempt.
    repeatable: bool,
}

/// What has come out of a body.
#[derive(Debug)]
struct Kept {
    data: Joined,
    /// Which part of it is sent next; `None` when the rest of the body is.
    next: Option<usize>,
    held: Held,
    budget: Budget,
}

impl Replay {
    /// Keeps what is sent of `body`, within `budget`.
    pub(super) fn new(body: RequestBody, budget: &Budget) -> Self {
        let kept = Kept { data: Joined::default(), next: None, held: budget.hold(), budget: budget.clone() };
        Self { body, kept: Some(kept), repeatable: true }
    }

    /// No body.
    pub(super) fn empty() -> Self {
        Self { body: RequestBody::EMPTY, kept: None, repeatable: false }
    }

    /// Starts from the beginning. False when that can't be.
    pub(super) fn rewind(&mut self) -> bool {
        self.kept.as_mut().is_some_and(|kept| {
            kept.next = (kept.data.seal() > 0).then_some(0);
            true
        })
    }

    /// There will be no other attempt.
    pub(super) fn forget(&mut self) {
        self.repeatable = false;
        if self.kept.as_ref().is_some_and(|kept| kept.next.is_none()) {
            self.kept = None;
        }
    }
}

impl Kept {
    /// The part to be sent next, of those that have been sent before.
    fn next(&mut self) -> Option<Bytes> {
        let index = self.next?;
        let part = self.data.part(index);
        self.next = self.data.part(index + 1).map(|_| index + 1);
        part
    }

    /// Keeps one more part. False when it is too much.
    fn keep(&mut self, data: &Bytes) -> bool {
        self.data.push(data.clone());
        let memory = self.data.memory();
        self.held.set(memory);
        memory <= MAX_KEPT && self.budget.is_below(FULL)
    }
}

impl Body for Replay {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let replay = &mut *self;
        if let Some(part) = replay.kept.as_mut().and_then(Kept::next) {
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        if !replay.repeatable {
            replay.kept = None;
        }
        let frame = ready!(Pin::new(&mut replay.body).poll_frame(cx));
        if let (Some(Ok(frame)), Some(kept)) = (&frame, &mut replay.kept) {
            // Trailers can't be sent again.
            if !frame.data_ref().is_some_and(|data| kept.keep(data)) {
                replay.kept = None;
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.kept.as_ref().is_none_or(|kept| kept.next.is_none()) && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Bytes that are kept of one request: as many as are read into memory before the app is asked, unless a setting says
/// otherwise.
const MAX_KEPT: usize = 1 << 20;
/// Percent of the budget up to which something is kept.
const FULL: usize = 50;
