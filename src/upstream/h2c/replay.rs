//! What has been sent of a request, kept for a second attempt.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::BUFFER;
use crate::body::RequestBody;
use crate::error::Failure;

/// A request body that can be sent a second time while little of it has been sent.
#[derive(Debug)]
pub(super) struct Replay {
    body: RequestBody,
    /// What has come out of `body`; `None` when that was too much.
    kept: Option<Vec<Bytes>>,
    /// How many of `kept` have been sent in this attempt.
    sent: usize,
}

impl Replay {
    pub(super) fn new(body: RequestBody) -> Self {
        Self { body, kept: Some(Vec::new()), sent: 0 }
    }

    /// Begins anew. False when that can't be.
    pub(super) fn rewind(&mut self) -> bool {
        self.sent = 0;
        self.kept.is_some()
    }

    /// There will be no second attempt.
    pub(super) fn forget(&mut self) {
        if self.kept.as_ref().is_some_and(|kept| self.sent == kept.len()) {
            self.kept = None;
        }
    }
}

impl Body for Replay {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let replay = &mut *self;
        if let Some(data) = replay.kept.as_ref().and_then(|kept| kept.get(replay.sent)) {
            replay.sent += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        let frame = ready!(Pin::new(&mut replay.body).poll_frame(cx));
        if let (Some(Ok(frame)), Some(kept)) = (&frame, &mut replay.kept) {
            match frame.data_ref() {
                Some(data) if kept.iter().map(Bytes::len).sum::<usize>() + data.len() <= BUFFER => {
                    kept.push(data.clone());
                    replay.sent += 1;
                }
                _ => replay.kept = None,
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.kept.as_ref().is_none_or(|kept| kept.len() == self.sent) && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
