//! Answers on their way to the client: the app's, relayed, and hostward's own. Whichever it is, the
//! exchange's record is closed when the body has ended, or was dropped.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};

use crate::clock;
use crate::diagnosis::app_refusal::Refusal;
use crate::diagnosis::observer::{Observer, Suspect};
use crate::error::Failure;
use crate::exchange::{CUT, Exchange};
use crate::io::flight::Flight;
use crate::io::splice::Pipe;
use crate::log::access_log::Journal;
use crate::message::fields::content_length;
use crate::metrics::{Count, Meter};
use crate::proxy::read_ahead::{Bounds, ReadAhead};
use crate::upstream::Relay;

/// A response body with the record that it closes.
#[derive(Debug)]
pub struct AnswerBody {
    content: Content,
    /// The length of a body that is described and not sent. hyper keeps the `Content-Length` of a 304 only for
    /// a body of that length, which it then leaves alone.
    described: Option<u64>,
    /// `None` when the record goes on, in a tunnel.
    recording: Option<Recording>,
    /// `None` when the app has nothing against the host, or has been judged.
    suspect: Option<Box<Suspect>>,
}

#[derive(Debug)]
enum Content {
    Ended,
    /// It breaks off, once what there was of it has been written: hyper would drop that.
    Broken(Failure),
    Whole(Bytes),
    Relayed(Relay),
    /// One that a slow client may leave lying.
    ReadAhead(Rc<ReadAhead>, SizeHint),
}

/// An exchange under way. Dropping it writes the record.
pub struct Recording {
    /// The record.
    pub exchange: Rc<Exchange>,
    journal: Rc<Journal>,
    meter: Rc<Meter>,
    flight: Rc<Flight>,
    observer: Rc<Observer>,
    /// What the app had against the host.
    refusal: Option<Refusal>,
}

impl Recording {
    /// The record of an exchange that has begun in `flight`.
    pub fn new(
        exchange: Exchange,
        journal: Rc<Journal>,
        meter: Rc<Meter>,
        flight: Rc<Flight>,
        observer: Rc<Observer>,
    ) -> Self {
        meter.count(Count::Requests, 1);
        Self { exchange: Rc::new(exchange), journal, meter, flight, observer, refusal: None }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.flight.end();
        if let Some(failure) = self.flight.aborted() {
            self.exchange.error.set(Some(if failure == Failure::Shutdown { CUT } else { failure.token() }));
        } else if self.exchange.status.get() == 0 && self.exchange.error.get().is_none() {
            self.exchange.error.set(Some(Failure::ClientGone.token()));
        }
        // Read once: a clock costs as much as counting does.
        let duration = self.exchange.started.elapsed();
        self.meter.record(&self.exchange, duration);
        self.journal.record(&self.exchange, duration);
        self.observer.finish(&self.exchange, self.refusal.as_ref());
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.exchange.fmt(f)
    }
}

impl AnswerBody {
    /// The app's response.
    pub fn relay(response: Response<Relay>, recording: Recording, bounds: &Bounds) -> Response<Self> {
        recording.exchange.status.set(response.status().as_u16());
        // The head: whatever its length, it has to be written before the body may break off.
        recording.flight.hand_out(1);
        let length = response.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| content_length(length.as_bytes()));
        let described = length.filter(|_| response.status() == StatusCode::NOT_MODIFIED);
        let size = response.body().size_hint();
        let suspect = recording.observer.suspect(&response, &recording.exchange);
        response.map(|relay| {
            let content = if bounds.read_ahead == 0 || size.upper().is_some_and(|size| size <= SMALL) {
                Content::Relayed(relay)
            } else {
                let answer = Rc::new(ReadAhead::new(relay, bounds));
                let weak = Rc::downgrade(&answer);
                recording.flight.allow_read_ahead(weak);
                Content::ReadAhead(answer, size)
            };
            Self { content, described, recording: Some(recording), suspect }
        })
    }

    /// No body, and no record yet.
    pub fn none() -> Self {
        Self { content: Content::Ended, described: None, recording: None, suspect: None }
    }

    /// Moves bytes of the body into `pipe`, as soon as there are any, and says how many. `None` when the next ones are to be
    /// had from [`Body::poll_frame`].
    pub fn poll_splice(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Option<usize>> {
        let (Content::ReadAhead(answer, _), Some(recording), None) = (&self.content, &self.recording, &self.suspect)
        else {
            return Poll::Ready(None);
        };
        let Some(count) = ready!(answer.poll_splice(cx, pipe)) else { return Poll::Ready(None) };
        let out = &recording.exchange.bytes_out;
        out.set(out.get() + count as u64);
        recording.flight.hand_out(count);
        if answer.is_end_stream() {
            self.end(None);
        }
        Poll::Ready(Some(count))
    }

    fn whole(text: String, recording: Recording) -> Self {
        Self { content: Content::Whole(text.into()), described: None, recording: Some(recording), suspect: None }
    }

    /// Has the observer judge by what has gone by.
    fn judge(&mut self) {
        if let (Some(suspect), Some(recording)) = (self.suspect.take(), &mut self.recording) {
            recording.refusal = recording.observer.judge(&suspect, &recording.exchange);
        }
    }

    fn end(&mut self, error: Option<&'static str>) {
        self.judge();
        if let Some(recording) = self.recording.take()
            && error.is_some()
        {
            recording.exchange.error.set(error);
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        let frame = match &mut this.content {
            Content::Ended => return Poll::Ready(None),
            Content::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                this.content = Content::Ended;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Content::Broken(failure) => Poll::Ready(Some(Err(*failure))),
            Content::Relayed(relay) => Pin::new(relay).poll_frame(cx),
            Content::ReadAhead(answer, _) => match &this.recording {
                Some(recording) if !recording.flight.may_hand_out(answer.piece()) => Poll::Pending,
                _ => answer.poll_frame(cx),
            },
        };
        if let (Poll::Ready(Some(Err(failure))), Some(recording)) = (&frame, &this.recording)
            && !recording.flight.may_hand_out(0)
        {
            this.content = Content::Broken(*failure);
            return Poll::Pending;
        }
        match &frame {
            Poll::Pending => {}
            Poll::Ready(None) => self.end(None),
            Poll::Ready(Some(Err(failure))) => self.end(Some(failure.token())),
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(data), Some(recording)) = (frame.data_ref(), &self.recording) {
                    let out = &recording.exchange.bytes_out;
                    out.set(out.get() + data.len() as u64);
                    recording.flight.hand_out(data.len());
                }
                if let (Some(data), Some(suspect)) = (frame.data_ref(), &mut self.suspect)
                    && suspect.see(data)
                {
                    self.judge();
                }
                if self.is_end_stream() {
                    self.end(None);
                }
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        if self.described.is_some() {
            return false;
        }
        match &self.content {
            Content::Ended => true,
            Content::Broken(_) => false,
            Content::Whole(bytes) => bytes.is_empty(),
            Content::Relayed(relay) => relay.is_end_stream(),
            Content::ReadAhead(answer, _) => answer.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        if let Some(length) = self.described {
            return SizeHint::with_exact(length);
        }
        match &self.content {
            Content::Ended | Content::Broken(_) => SizeHint::with_exact(0),
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Relayed(relay) => relay.size_hint(),
            Content::ReadAhead(_, size) => *size,
        }
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        // A body that nobody may send, as after HEAD, is dropped unread and yet complete.
        let complete = match &self.content {
            Content::Broken(failure) => return self.end(Some((*failure).token())),
            Content::Ended | Content::Whole(_) => true,
            Content::Relayed(relay) => relay.is_end_stream(),
            Content::ReadAhead(answer, _) => answer.is_end_stream(),
        };
        self.end((!complete).then_some(Failure::ClientGone.token()));
    }
}

/// The `Date` of an answer that has none (RFC 9110 §6.6.1). Made once a second.
pub fn date() -> HeaderValue {
    DATE.with_borrow_mut(|(made, text)| {
        let now = clock::now();
        let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if *made != second {
            *made = second;
            *text = HeaderValue::from_maybe_shared(Bytes::from(httpdate::fmt_http_date(now))).unwrap_or(NO_DATE);
        }
        text.clone()
    })
}

thread_local! {
    static DATE: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, NO_DATE)) };
}

/// What no date's text needs; it saves an `unwrap`.
const NO_DATE: HeaderValue = HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT");

/// Bytes of an answer that is taken whole, whether the client takes it or not.
const SMALL: u64 = 64 * 1024;

/// hostward's own answer to an exchange that failed: which side it was, the request's id, and nothing else.
pub fn synthetic(failure: Failure, status: StatusCode, recording: Recording) -> Response<AnswerBody> {
    let exchange = Rc::clone(&recording.exchange);
    exchange.status.set(status.as_u16());
    exchange.error.set(Some(failure.token()));
    let text = text(failure, status, exchange.request_id.get());
    let mut response = Response::new(AnswerBody::whole(text, recording));
    *response.status_mut() = status;
    write_fields(&mut response, failure);
    response
}

/// The same as bytes, for a request that hyper has not handed over.
pub fn synthetic_bytes(failure: Failure, exchange: &Exchange) -> Vec<u8> {
    let status = failure.status();
    exchange.status.set(status.as_u16());
    exchange.error.set(Some(failure.token()));
    let text = text(failure, status, exchange.request_id.get());
    exchange.bytes_out.set(text.len() as u64);
    let mut response = Response::new(());
    write_fields(&mut response, failure);
    let mut bytes =
        format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default()).into_bytes();
    for (name, value) in response.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("content-length: {}\r\nconnection: close\r\n\r\n{text}", text.len()).as_bytes());
    bytes
}

fn text(failure: Failure, status: StatusCode, request_id: Option<&HeaderValue>) -> String {
    let id = request_id.and_then(|id| id.to_str().ok()).unwrap_or("-");
    format!("{status}: {failure}\nfault: {}\nrequest id: {id}\n", failure.side())
}

fn write_fields<B>(response: &mut Response<B>, failure: Failure) {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(value) = HeaderValue::from_str(&format!("hostward; error={}", failure.token())) {
        headers.insert("proxy-status", value);
    }
    match failure {
        // RFC 9110 §15.5.6: "The origin server MUST generate an Allow header field in a 405 response".
        Failure::Method => {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        Failure::LimitReached
        | Failure::SpoolFailed
        | Failure::DiskFull
        | Failure::MemoryFull(_)
        | Failure::OutOfDescriptors
        | Failure::Shutdown
        | Failure::StreamLimit
        | Failure::StreamRefused
        | Failure::ConnectionRefused => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
}
