//! The body of one HTTP/2 message on its way in. What has come is taken out of the `h2` crate at once, because there
//! each DATA frame costs some 250 bytes, however short it is, and small ones may end the connection. Flow control
//! follows what is handed on: only that is given back to the sender's window.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::{AbortHandle, spawn_local};

use crate::http2::joined::Joined;
use crate::io::memory::{Budget, Held};
use crate::message::framing::MAX_TRAILERS;
use crate::message::head::memory;

/// A message's body.
#[derive(Debug)]
pub struct StreamBody {
    inbox: Rc<RefCell<Inbox>>,
    /// The task that takes out what comes; `None` when all of it had come with the head.
    task: Option<AbortHandle>,
}

/// What has been taken out of a stream and not been handed on.
#[derive(Debug)]
struct Inbox {
    stream: RecvStream,
    data: Joined,
    data_ended: bool,
    end: End,
    /// Who waits for more.
    waiting: Option<Waker>,
    /// Bytes that were handed on, and are not yet given back to the sender's window.
    withheld: usize,
    held: Held,
}

/// What comes after the data.
#[derive(Debug)]
enum End {
    /// It isn't known yet.
    Open,
    Trailers(HeaderMap),
    Error(Error),
    Nothing,
}

/// Why a message's body is truncated.
#[derive(Debug)]
pub enum Error {
    /// The stream or the connection has ended.
    Stream(h2::Error),
    /// The trailer section has more than [`MAX_TRAILERS`] lines.
    TooManyTrailers,
}

impl StreamBody {
    /// The body that comes in on `stream`. To be called on the connection's thread.
    pub fn new(stream: RecvStream, budget: &Budget) -> Self {
        let mut inbox = Inbox {
            stream,
            data: Joined::default(),
            data_ended: false,
            end: End::Open,
            waiting: None,
            withheld: 0,
            held: budget.hold(),
        };
        let ended = inbox.poll_fill(&mut Context::from_waker(Waker::noop())).is_ready();
        let inbox = Rc::new(RefCell::new(inbox));
        let task = (!ended).then(|| {
            let inbox = Rc::clone(&inbox);
            spawn_local(std::future::poll_fn(move |cx| inbox.borrow_mut().poll_fill(cx))).abort_handle()
        });
        Self { inbox, task }
    }

    /// Whether nothing more comes, not even an error.
    pub fn is_end_stream(&self) -> bool {
        let inbox = self.inbox.borrow();
        inbox.data.is_empty() && matches!(inbox.end, End::Nothing)
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut inbox = self.inbox.borrow_mut();
        if let Some(data) = inbox.data.pop() {
            inbox.handed_on(data.len());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match std::mem::replace(&mut inbox.end, End::Nothing) {
            End::Open => {
                inbox.end = End::Open;
                inbox.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
            End::Trailers(trailers) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            End::Error(error) => Poll::Ready(Some(Err(error))),
            End::Nothing => Poll::Ready(None),
        }
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Inbox {
    /// Takes out what has come. Ready at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut came = false;
        while !self.data_ended {
            match self.stream.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => {
                    came |= !data.is_empty();
                    self.data.push(data);
                }
                Poll::Ready(Some(Err(error))) => {
                    self.data_ended = true;
                    self.end = End::Error(Error::Stream(error));
                }
                Poll::Ready(None) => self.data_ended = true,
                Poll::Pending => break,
            }
        }
        if self.data_ended && matches!(self.end, End::Open) {
            self.end = match self.stream.poll_trailers(cx) {
                Poll::Ready(Ok(Some(trailers))) if trailers.len() > MAX_TRAILERS => End::Error(Error::TooManyTrailers),
                Poll::Ready(Ok(Some(trailers))) => End::Trailers(trailers),
                Poll::Ready(Ok(None)) => End::Nothing,
                Poll::Ready(Err(error)) => End::Error(Error::Stream(error)),
                Poll::Pending => End::Open,
            };
        }
        let ended = !matches!(self.end, End::Open);
        if came || ended {
            self.charge();
        }
        if (came || ended)
            && let Some(waiting) = self.waiting.take()
        {
            waiting.wake();
        }
        if ended { Poll::Ready(()) } else { Poll::Pending }
    }

    fn charge(&mut self) {
        let trailers = if let End::Trailers(trailers) = &self.end { memory(trailers) } else { 0 };
        self.held.set((self.data.memory() + trailers).saturating_sub(COVERED));
    }

    /// Opens the window by as much again, or, when memory is short, by less.
    fn handed_on(&mut self, bytes: usize) {
        self.charge();
        self.withheld += bytes;
        let keep = if self.held.budget().is_below(ROOMY) { 0 } else { STREAM_WINDOW as usize - SMALL_WINDOW };
        let release = self.withheld.saturating_sub(keep);
        if release > 0 {
            self.withheld -= release;
            // An error says that the stream is gone, as the next poll will.
            self.stream.flow_control().release_capacity(release).ok();
        }
    }
}

/// How much of a connection `h2` may read before its streams have their turn. Until then `h2` keeps what it has read.
#[derive(Debug)]
pub struct Turn {
    left: usize,
}

impl Default for Turn {
    fn default() -> Self {
        Self { left: BYTES_PER_TURN }
    }
}

impl Turn {
    /// Counts `bytes` more than those that were read.
    pub fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// Reads from `io` as long as it is the connection's turn.
    pub fn poll_read(
        &mut self,
        io: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.left == 0 {
            self.left = BYTES_PER_TURN;
            // Behind all those that have something to take.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = io.poll_read(cx, buf);
        if read.is_pending() {
            self.left = BYTES_PER_TURN;
        } else {
            self.left = self.left.saturating_sub(buf.filled().len() - before);
        }
        read
    }
}

/// Bytes of a body that are charged with its stream.
const COVERED: usize = 1024;
/// Bytes of a message that may be under way before they are handed on.
pub const STREAM_WINDOW: u32 = 64 * 1024;
/// Bytes when memory is short.
const SMALL_WINDOW: usize = 8 * 1024;
/// Percent of the budget beyond which memory is short.
const ROOMY: usize = 25;
/// Bytes; some three thousand of the smallest DATA frames.
const BYTES_PER_TURN: usize = 32 * 1024;
