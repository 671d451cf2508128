//! The request body on its way to the app: what comes in, counted, limited and timed.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::error::Failure;
use crate::exchange::Exchange;
use crate::flight::{Flight, WaitingFor};
use crate::incoming::Incoming;
use crate::message::fields;

/// A request body as the app gets it.
#[derive(Debug)]
pub struct RequestBody(Option<Streamed>);

#[derive(Debug)]
struct Streamed {
    incoming: Incoming,
    exchange: Rc<Exchange>,
    flight: Rc<Flight>,
    limits: Limits,
}

/// What bounds a body.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes; `None` is no limit.
    pub size: Option<u64>,
    /// Between two reads.
    pub pause: Duration,
    /// How long the app has for its answer once it has the body.
    pub response: Duration,
}

impl RequestBody {
    /// No body.
    pub const EMPTY: Self = Self(None);

    /// A body that is passed on as it arrives.
    pub fn stream(incoming: Incoming, exchange: Rc<Exchange>, flight: Rc<Flight>, limits: Limits) -> Self {
        if incoming.is_end_stream() {
            return Self::EMPTY;
        }
        Self(Some(Streamed { incoming, exchange, flight, limits }))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match &mut self.0 {
            None => Poll::Ready(None),
            Some(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|body| body.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |body| body.incoming.size_hint())
    }
}

impl Streamed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                // hyper waits for bytes that are kept back: the body is broken.
                if let Some(failure) = self.flight.violation() {
                    return Poll::Ready(Some(Err(failure)));
                }
                self.flight.wait(WaitingFor::Body, self.limits.pause);
                return Poll::Pending;
            }
        };
        if self.exchange.upstream.get().is_none() {
            // What is waited for now is the app's head, until the client is waited for again.
            self.flight.progress(WaitingFor::App, self.limits.response);
        } else {
            self.flight.arrived(WaitingFor::Body);
        }
        match frame {
            None => Poll::Ready(None),
            Some(Err(failure)) => Poll::Ready(Some(Err(failure))),
            Some(Ok(mut frame)) => {
                if let Some(data) = frame.data_ref() {
                    let read = self.exchange.bytes_in.get() + data.len() as u64;
                    self.exchange.bytes_in.set(read);
                    if self.limits.size.is_some_and(|limit| read > limit) {
                        return Poll::Ready(Some(Err(Failure::BodyTooLarge)));
                    }
                } else if let Some(trailers) = frame.trailers_mut() {
                    fields::strip_trailers(trailers);
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }
}
