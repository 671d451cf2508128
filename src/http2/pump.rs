//! A body into an HTTP/2 stream, as fast as the other side makes room. What there is no room for stays in the
//! body: one frame of it is held here, and nothing in the `h2` crate's buffers.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::HeaderMap;
use http_body::{Body, Frame};

use crate::error::Failure;

/// One message's body on its way out.
#[derive(Debug)]
pub struct Pump<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// Data that has been taken out of the body and not been sent.
    held: Bytes,
    rest: Rest,
    gate: Waiting,
    blocked: bool,
    /// Whether the connection's socket takes nothing.
    held_up: bool,
    /// Frames and bytes that have been sent since that was last asked.
    sent: (usize, usize),
}

/// What is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// More of the body.
    More,
    /// Nothing but what is held.
    Held,
    Nothing,
}

/// Why a body did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The body itself broke off.
    Body(Failure),
    /// The other side reset the stream, or the connection is gone.
    Refused,
}

impl<B: Body<Data = Bytes, Error = Failure> + Unpin> Pump<B> {
    /// Sends `body` on `stream`, whose head has been sent, and whose connection has `gate`.
    pub fn new(body: B, stream: SendStream<Bytes>, gate: Rc<Gate>) -> Self {
        Self {
            body,
            stream,
            held: Bytes::new(),
            rest: Rest::More,
            gate: Waiting { gate, waker: None },
            blocked: false,
            held_up: false,
            sent: (0, 0),
        }
    }

    /// Whether the other side leaves no room for what is to be sent.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Bytes that have been taken out of the body and not been sent.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether the body's next bytes have to wait, because of the other side.
    pub fn is_held_up(&self) -> bool {
        self.blocked || self.held_up
    }

    /// How many frames and how many bytes of data have been sent since the last call.
    pub fn take_sent(&mut self) -> (usize, usize) {
        std::mem::take(&mut self.sent)
    }

    /// Sends what there is room for. Ready when everything has been handed over, or nothing more can be.
    /// `trailers` edits the trailer section.
    pub fn poll(&mut self, cx: &mut Context<'_>, trailers: fn(&mut HeaderMap)) -> Poll<Result<(), Stopped>> {
        while self.rest != Rest::Nothing {
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Stopped::Refused));
            }
            self.held_up = self.gate.is_shut(cx);
            if self.held_up {
                return Poll::Pending;
            }
            if !self.held.is_empty() {
                ready!(self.poll_held(cx))?;
                continue;
            }
            if self.rest == Rest::Held {
                break;
            }
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            self.rest = match frame.map(|frame| frame.map(Frame::into_data)) {
                None => {
                    self.stream.send_data(Bytes::new(), true).map_err(|_| Stopped::Refused)?;
                    Rest::Nothing
                }
                Some(Err(failure)) => {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(Err(Stopped::Body(failure)));
                }
                Some(Ok(Ok(data))) => {
                    let last = self.body.is_end_stream();
                    if data.is_empty() && last {
                        self.stream.send_data(data, true).map_err(|_| Stopped::Refused)?;
                    } else {
                        self.held = data;
                    }
                    if last { Rest::Held } else { Rest::More }
                }
                Some(Ok(Err(frame))) => {
                    if let Ok(mut fields) = frame.into_trailers() {
                        trailers(&mut fields);
                        self.stream.send_trailers(fields).map_err(|_| Stopped::Refused)?;
                    }
                    Rest::Nothing
                }
            };
        }
        self.rest = Rest::Nothing;
        Poll::Ready(Ok(()))
    }

    /// The body.
    pub fn body(&mut self) -> &mut B {
        &mut self.body
    }

    /// The body, when the stream is given up.
    pub fn into_body(self) -> B {
        self.body
    }

    /// Gives the stream up.
    pub fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        self.stream.reserve_capacity(self.held.len());
        let mut room = self.stream.capacity();
        while room == 0 {
            self.blocked = true;
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(more)) => room = more,
                Some(Err(_)) | None => return Poll::Ready(Err(Stopped::Refused)),
            }
        }
        self.blocked = false;
        let now = self.held.split_to(room.min(self.held.len()));
        self.sent = (self.sent.0 + 1, self.sent.1 + now.len());
        let end = self.rest == Rest::Held && self.held.is_empty();
        Poll::Ready(self.stream.send_data(now, end).map_err(|_| Stopped::Refused))
    }
}

/// A stream that may wait for its connection's gate.
#[derive(Debug)]
struct Waiting {
    gate: Rc<Gate>,
    /// What the gate has of it.
    waker: Option<Waker>,
}

impl Waiting {
    /// Whether the socket takes nothing. Then the task is woken when it does.
    fn is_shut(&mut self, cx: &Context<'_>) -> bool {
        let shut = self.gate.shut.get();
        if shut {
            let mut waiting = self.gate.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
                self.waker = Some(cx.waker().clone());
            }
        }
        shut
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // A waker keeps its task in memory, however long the socket takes nothing.
        if let Some(waker) = &self.waker {
            self.gate.waiting.borrow_mut().retain(|waiting| !waiting.will_wake(waker));
        }
    }
}

/// Whether a connection's socket takes what is written. While it doesn't, bodies wait where they are: in the `h2`
/// crate each of their parts would cost some 200 bytes, however short it is.
#[derive(Debug, Default)]
pub struct Gate {
    shut: Cell<bool>,
    /// The streams that wait for it to open.
    waiting: RefCell<Vec<Waker>>,
}

impl Gate {
    /// The socket takes nothing.
    pub fn shut(&self) {
        self.shut.set(true);
    }

    /// The socket has taken something. Whether that is new.
    pub fn open(&self) -> bool {
        let was_shut = self.shut.replace(false);
        if was_shut {
            self.waiting.take().into_iter().for_each(Waker::wake);
        }
        was_shut
    }

    /// Whether the socket takes nothing.
    pub fn is_blocked(&self) -> bool {
        self.shut.get()
    }
}
