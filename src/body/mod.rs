//! The request body on its way to the app: what comes in, counted, limited and timed, as it arrives; or what
//! `buffer` has made of it before the app was asked.

mod blocks;
mod buffer;
mod disk;
pub mod incoming;
mod overflow;
mod spool;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http_body::{Body, Frame, SizeHint};

use crate::body::blocks::Blocks;
use crate::body::incoming::Incoming;
use crate::body::spool::Spooled;
use crate::error::Failure;
use crate::exchange::Exchange;
use crate::io::flight::{Flight, WaitingFor};
use crate::message::fields;
use crate::message::lines::FieldLines;
use crate::message::names::{CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING};

pub use buffer::{Buffering, reserve};
pub use overflow::Overflow;

/// A request body as the app gets it.
#[derive(Debug)]
pub struct RequestBody(Content);

/// Where it comes from. In boxes, what would make every request without a body larger.
#[derive(Debug)]
enum Content {
    Empty,
    /// The client, after what had been read when that was decided.
    Streamed(Option<Box<Blocks>>, Streamed),
    /// What it was read into, all at once.
    Read(Bytes),
    /// Memory.
    Whole(Box<Blocks>, Pace),
    /// A file.
    Spooled(Box<Spooled>, Pace),
}

/// A body that the client is still sending.
#[derive(Debug)]
struct Streamed {
    incoming: Incoming,
    pace: Pace,
}

/// Whose turn it is, and for how long.
#[derive(Debug)]
struct Pace {
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
    pub const EMPTY: Self = Self(Content::Empty);

    /// A body that is passed on as it arrives.
    pub fn stream(incoming: Incoming, exchange: Rc<Exchange>, flight: Rc<Flight>, limits: Limits) -> Self {
        if incoming.is_end_stream() {
            return Self::EMPTY;
        }
        Self(Content::Streamed(None, Streamed { incoming, pace: Pace { exchange, flight, limits } }))
    }

    /// All of it, if it is there already.
    pub fn whole(&self) -> Option<&[u8]> {
        match &self.0 {
            Content::Empty => Some(&[]),
            Content::Read(bytes) => Some(bytes),
            Content::Streamed(..) | Content::Whole(..) | Content::Spooled(..) => None,
        }
    }

    /// Whether all of it is in memory.
    pub fn is_in_memory(&self) -> bool {
        match &self.0 {
            Content::Empty | Content::Read(_) | Content::Whole(..) => true,
            Content::Streamed(..) | Content::Spooled(..) => false,
        }
    }

    /// Makes the head say how long the body is, once that is known. A length has no trailers after it.
    pub fn write_framing(&self, fields: &mut FieldLines) {
        match (&self.0, self.size_hint().exact()) {
            (Content::Empty, _) | (Content::Streamed(..), Some(_)) => {}
            (_, None) => {
                // Said outright, because hyper would send a GET of unknown length without its body.
                fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            (_, Some(length)) => {
                fields.remove(TRAILER);
                if !fields.contains(CONTENT_LENGTH) {
                    fields.insert(CONTENT_LENGTH, length.into());
                }
            }
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let (data, pace) = match &mut self.0 {
            Content::Empty => return Poll::Ready(None),
            Content::Read(bytes) => {
                let bytes = std::mem::take(bytes);
                return Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))));
            }
            Content::Streamed(ahead, body) => match ahead.as_mut().and_then(|blocks| blocks.pop()) {
                None => {
                    let frame = ready!(body.poll_next(cx));
                    body.pace.asked();
                    return Poll::Ready(frame);
                }
                Some(bytes) => (Some(Ok(bytes)), &body.pace),
            },
            Content::Whole(blocks, pace) => {
                let block = blocks.pop().map(Ok);
                pace.flight.weigh_bodies(blocks.len());
                (block, &*pace)
            }
            Content::Spooled(spooled, pace) => (ready!(spooled.poll_next(cx)), &*pace),
        };
        pace.asked();
        Poll::Ready(data.map(|data| data.map(Frame::data).map_err(|error| unreadable(&error))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Content::Empty => true,
            Content::Streamed(ahead, body) => {
                ahead.as_ref().is_none_or(|blocks| blocks.is_empty()) && body.incoming.is_end_stream()
            }
            Content::Read(bytes) => bytes.is_empty(),
            Content::Whole(blocks, _) => blocks.is_empty(),
            Content::Spooled(spooled, _) => spooled.left() == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Empty => SizeHint::with_exact(0),
            Content::Streamed(ahead, body) => {
                let ahead = ahead.as_ref().map_or(0, |blocks| blocks.len()) as u64;
                body.incoming.size_hint().exact().map_or_else(SizeHint::new, |rest| SizeHint::with_exact(ahead + rest))
            }
            Content::Read(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Whole(blocks, _) => SizeHint::with_exact(blocks.len() as u64),
            Content::Spooled(spooled, _) => SizeHint::with_exact(spooled.left()),
        }
    }
}

impl Streamed {
    /// The next bytes, before the app is asked. Trailers are dropped: they have no place after a length.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = poll_fn(|cx| {
                let frame = self.poll_next(cx);
                // While nobody is asked, nobody else looks at the time.
                if frame.is_pending() && self.pace.flight.overdue() == Some(WaitingFor::Body) {
                    return Poll::Ready(Some(Err(Failure::BodyTimeout)));
                }
                frame
            });
            match frame.await.transpose()?.map(Frame::into_data) {
                None => return Ok(None),
                Some(Ok(data)) if !data.is_empty() => return Ok(Some(data)),
                Some(_) => {}
            }
        }
    }

    /// Bytes, as far as the client has announced them.
    fn length(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    /// Whether it is known that nothing more comes.
    fn has_ended(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let Pace { exchange, flight, limits } = &self.pace;
        let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                // hyper waits for bytes that are kept back: the body is broken.
                if let Some(failure) = flight.violation() {
                    return Poll::Ready(Some(Err(failure)));
                }
                // While the client leaves its answer lying, that is what it is timed for: to wait for both in turns
                // would begin anew each time, and never end.
                if !flight.is_blocked() {
                    flight.wait(WaitingFor::Body, limits.pause);
                }
                return Poll::Pending;
            }
        };
        flight.arrived(WaitingFor::Body);
        match frame {
            None => Poll::Ready(None),
            Some(Err(failure)) => Poll::Ready(Some(Err(failure))),
            Some(Ok(mut frame)) => {
                if let Some(data) = frame.data_ref() {
                    let read = exchange.bytes_in.get() + data.len() as u64;
                    exchange.bytes_in.set(read);
                    if limits.size.is_some_and(|limit| read > limit) {
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

impl Pace {
    /// The app has been given something. What is waited for now is its head, until the client is waited for.
    fn asked(&self) {
        if self.exchange.upstream.get().is_none() {
            self.flight.progress(WaitingFor::App, self.limits.response);
        }
    }
}

/// What has been written can't be read again.
fn unreadable(error: &io::Error) -> Failure {
    tracing::error!(error = %error, "can't read a spooled body");
    Failure::SpoolFailed
}
