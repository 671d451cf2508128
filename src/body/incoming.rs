//! A client's request body as it comes in: whole, hyper's or an HTTP/2 stream's, with the same reasons when it
//! breaks off.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body, Frame, SizeHint};

use crate::error::Failure;
use crate::http2::stream_body::{self, StreamBody};
use crate::io::flight::Flight;
use crate::io::memory::Budget;
use crate::message::fields::content_length;
use crate::message::head::RequestHead;
use crate::message::names;

/// A request body on its way in.
#[derive(Debug)]
pub enum Incoming {
    /// All of it, come with its head.
    Read(Bytes),
    /// Of an HTTP/1.1 connection.
    Http1(hyper::body::Incoming),
    /// Of an HTTP/2 stream.
    Http2(Streamed),
}

/// The body of one HTTP/2 request.
#[derive(Debug)]
pub struct Streamed {
    stream: StreamBody,
    /// The announced length. That the body has it is the `h2` crate's business.
    length: Option<u64>,
    /// Where a `100 Continue` is to be sent before the body is waited for, if the client asked for one.
    expecting: Option<Rc<Flight>>,
}

impl Incoming {
    /// The body of the stream whose request has this head.
    pub fn http2(stream: RecvStream, head: &RequestHead, flight: &Rc<Flight>, budget: &Budget) -> Self {
        let length = head.fields.get(names::CONTENT_LENGTH).and_then(content_length);
        let expecting = head.fields.contains(names::EXPECT).then(|| Rc::clone(flight));
        Self::Http2(Streamed { stream: StreamBody::new(stream, budget), length, expecting })
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match &mut *self {
            Self::Read(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(|error| why(&error)),
            Self::Http2(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Read(bytes) => bytes.is_empty(),
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Read(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) if body.stream.is_end_stream() => SizeHint::with_exact(0),
            Self::Http2(body) => body.length.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl Streamed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let frame = Pin::new(&mut self.stream).poll_frame(cx);
        if frame.is_pending()
            && let Some(flight) = self.expecting.take()
        {
            // The exchange's task is who polls, and who sends it.
            flight.queue_interim(CONTINUE);
            cx.waker().wake_by_ref();
        }
        let frame = ready!(frame);
        if let (Some(Ok(frame)), Some(length)) = (&frame, &mut self.length) {
            *length = length.saturating_sub(frame.data_ref().map_or(0, Bytes::len) as u64);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|error| broken(&error))))
    }
}

/// hyper's reason: the connection ended in the middle of the body, or its trailers or chunk extensions are more
/// than hyper takes.
fn why(error: &hyper::Error) -> Failure {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.map(io::Error::kind) {
        Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => {
            Failure::Malformed("the request body's chunks can't be read")
        }
        _ => Failure::ClientGone,
    }
}

/// The stream's reason. What `h2` itself objects to, it has answered with a reset.
fn broken(error: &stream_body::Error) -> Failure {
    match error {
        stream_body::Error::Stream(error) if !error.is_library() => Failure::ClientGone,
        stream_body::Error::Stream(_) => Failure::Malformed("the request's frames break HTTP/2"),
        stream_body::Error::TooManyTrailers => Failure::Malformed("too many trailer lines"),
    }
}

/// As HTTP/1.1 writes it: interim responses are queued so.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
