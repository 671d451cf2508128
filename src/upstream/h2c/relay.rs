//! An answer's body on its way out of its stream, and the rest of the request's on its way in.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::{Response, header};
use http_body::{Body, Frame, SizeHint};

use super::sending::{broken, no_edit};
use super::{Lease, Replay};
use crate::error::Failure;
use crate::http2::pump::{Pump, Stopped};
use crate::http2::stream_body::StreamBody;
use crate::io::memory::Budget;
use crate::message::fields::{self, content_length};

/// A response whose body still comes out of its stream, while the request's may still go in.
#[derive(Debug)]
pub(in crate::upstream) struct Relay {
    body: StreamBody,
    length: Option<u64>,
    pump: Option<Pump<Replay>>,
    _lease: Lease,
}

impl Relay {
    /// The body of a response, and what is left of its request's.
    pub(super) fn over(
        response: Response<RecvStream>,
        pump: Option<Pump<Replay>>,
        lease: Lease,
        budget: &Budget,
    ) -> Response<Self> {
        let length = response.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| content_length(length.as_bytes()));
        response.map(|stream| Self { body: StreamBody::new(stream, budget), length, pump, _lease: lease })
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let relay = &mut *self;
        if let Some(pump) = &mut relay.pump
            && let Poll::Ready(outcome) = pump.poll(cx, no_edit)
        {
            relay.pump = None;
            if let Err(Stopped::Body(failure)) = outcome {
                return Poll::Ready(Some(Err(failure)));
            }
        }
        Poll::Ready(match ready!(Pin::new(&mut relay.body).poll_frame(cx)) {
            Some(Ok(mut frame)) => {
                if let (Some(data), Some(length)) = (frame.data_ref(), &mut relay.length) {
                    *length = length.saturating_sub(data.len() as u64);
                } else if let Some(trailers) = frame.trailers_mut() {
                    fields::strip_response_trailers(trailers);
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => Some(Err(broken(&error))),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() {
            return SizeHint::with_exact(0);
        }
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
