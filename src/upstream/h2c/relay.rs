//! An answer's body on its way out of its stream, and the rest of the request's on its way in.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::{Response, header};
use http_body::{Body, Frame, SizeHint};

use super::sending::no_edit;
use super::{Lease, Replay};
use crate::error::Failure;
use crate::message::fields::{self, content_length};
use crate::pump::{Pump, Stopped};

/// A response whose body still comes out of its stream, while the request's may still go in.
#[derive(Debug)]
pub(in crate::upstream) struct Relay {
    stream: RecvStream,
    data_ended: bool,
    length: Option<u64>,
    pump: Option<Pump<Replay>>,
    _lease: Lease,
}

impl Relay {
    /// The body of a response, and what is left of its request's.
    pub(super) fn over(response: Response<RecvStream>, pump: Option<Pump<Replay>>, lease: Lease) -> Response<Self> {
        let length = response.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| content_length(length.as_bytes()));
        response.map(|stream| Self { stream, data_ended: false, length, pump, _lease: lease })
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
        if !relay.data_ended {
            match ready!(relay.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    if let Some(length) = &mut relay.length {
                        *length = length.saturating_sub(data.len() as u64);
                    }
                    relay.stream.flow_control().release_capacity(data.len()).ok();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(_)) => return Poll::Ready(Some(Err(Failure::ConnectionTerminated))),
                None => relay.data_ended = true,
            }
        }
        Poll::Ready(match ready!(relay.stream.poll_trailers(cx)) {
            Ok(Some(mut trailers)) => {
                fields::strip_response_trailers(&mut trailers);
                Some(Ok(Frame::trailers(trailers)))
            }
            Ok(None) => None,
            Err(_) => Some(Err(Failure::ConnectionTerminated)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.stream.is_end_stream() {
            return SizeHint::with_exact(0);
        }
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
