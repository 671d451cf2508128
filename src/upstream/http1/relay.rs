//! An answer's body on its way out of its connection, which goes back into the pool at its end.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{Connection, Pool};
use crate::error::Failure;
use crate::io::splice::Pipe;
use crate::upstream::plain;
use crate::upstream::stream::StreamIo;

/// A response whose body still comes out of its connection.
#[derive(Debug)]
pub(in crate::upstream) struct Relay {
    pub(super) content: Content,
    /// `None` once the connection is back in the pool, or closed.
    pub(super) connection: Option<Box<Connection>>,
    pub(super) pool: Rc<Pool>,
}

#[derive(Debug)]
pub(super) enum Content {
    Hyper(Incoming),
    Plain {
        /// What has been read and not been handed out.
        read: Bytes,
        /// Bytes that have not been handed out, read or not.
        left: u64,
        keeps_alive: bool,
    },
}

impl Relay {
    /// Whether to read from the app in small pieces from now on.
    pub(in crate::upstream) fn read_little(&self, little: bool) {
        if let Some(connection) = &self.connection {
            connection.stream.read_little(little);
        }
    }

    /// Moves bytes of the body into `pipe`, as soon as there are any, and says how many. `None` when the next ones are to be
    /// had from [`Body::poll_frame`].
    pub(in crate::upstream) fn poll_splice(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Option<usize>> {
        let (Content::Plain { read, left, .. }, Some(connection)) = (&mut self.content, &self.connection) else {
            return Poll::Ready(None);
        };
        if !read.is_empty() || *left == 0 {
            return Poll::Ready(None);
        }
        let most = usize::try_from(*left).unwrap_or(usize::MAX).min(MAX_SPLICED);
        let Some(count) = ready!(connection.stream.poll_splice(cx, pipe, most)) else { return Poll::Ready(None) };
        *left -= count as u64;
        if *left == 0 {
            self.finish();
        }
        Poll::Ready(Some(count))
    }

    /// The connection has done its work: back to the pool, if it can be used again.
    fn finish(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let ended = match &self.content {
            Content::Hyper(_) => connection.settles(),
            // Something behind its end is no part of it, and who knows of what.
            Content::Plain { read, left, keeps_alive } => {
                *keeps_alive && *left == 0 && read.is_empty() && connection.read.is_empty()
            }
        };
        if ended && connection.is_request_written && !connection.stream.is_uwsgi() {
            self.pool.put_back(connection);
        }
    }

    fn poll_plain(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let Content::Plain { read, left, .. } = &mut self.content else { return Poll::Ready(None) };
        if *left > 0 && read.is_empty() {
            let terminated = Poll::Ready(Some(Err(Failure::ConnectionTerminated)));
            let Some(connection) = &mut self.connection else { return terminated };
            let mut io = StreamIo(Rc::clone(&connection.stream));
            let most = if connection.stream.reads_little() { plain::PIECE } else { plain::MAX_PIECE };
            let wanted = usize::try_from(*left).unwrap_or(usize::MAX).min(most);
            let count = ready!(plain::poll_read(&mut io, cx, &mut connection.read, wanted));
            if count.is_err() || count.is_ok_and(|count| count == 0) {
                self.connection = None;
                return terminated;
            }
            *read = connection.read.split().freeze();
        }
        let data = read.split_to(usize::try_from(*left).unwrap_or(usize::MAX).min(read.len()));
        *left -= data.len() as u64;
        if *left == 0 {
            self.finish();
        }
        Poll::Ready((!data.is_empty()).then(|| Ok(Frame::data(data))))
    }

    fn poll_hyper(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let Content::Hyper(incoming) = &mut self.content else { return Poll::Ready(None) };
        let mut idle = Context::from_waker(Waker::noop());
        // First without a waker, for what is there; only when nothing is, with the task's own. So no wake-up
        // comes from a poll of ours, and each one that comes is the socket's.
        for waker in [false, true] {
            let mut frame = Pin::new(&mut *incoming).poll_frame(&mut idle);
            let mut closed = false;
            if frame.is_pending() {
                if let Some(hyper) = self.connection.as_mut().and_then(|connection| connection.hyper.as_mut()) {
                    let cx = if waker { &mut *cx } else { &mut idle };
                    closed = hyper.driver.poll_without_shutdown(cx).is_ready();
                }
                frame = Pin::new(&mut *incoming).poll_frame(&mut Context::from_waker(Waker::noop()));
            }
            match frame {
                Poll::Ready(Some(Ok(frame))) => {
                    if closed {
                        self.connection = None;
                    } else if incoming.is_end_stream() {
                        self.finish();
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Poll::Ready(Some(Err(_))) => {
                    self.connection = None;
                    return Poll::Ready(Some(Err(Failure::ConnectionTerminated)));
                }
                Poll::Ready(None) => {
                    if closed {
                        self.connection = None;
                    } else {
                        self.finish();
                    }
                    return Poll::Ready(None);
                }
                Poll::Pending if closed => {
                    self.connection = None;
                    return Poll::Ready(Some(Err(Failure::ConnectionTerminated)));
                }
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match &self.content {
            Content::Hyper(_) => self.poll_hyper(cx),
            Content::Plain { .. } => self.poll_plain(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Hyper(incoming) => incoming.is_end_stream(),
            Content::Plain { left, .. } => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Hyper(incoming) => incoming.size_hint(),
            Content::Plain { left, .. } => SizeHint::with_exact(*left),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A response without a body is never polled. What is unread keeps the connection out of the pool.
        if self.is_end_stream() {
            self.finish();
        }
    }
}

/// Bytes to be moved at once, and left lying by a client: just below what TCP sends at once, 65,483 on the loopback. A full
/// pipe's 64 KiB would leave a tail of 53 bytes, for which the kernel sets a timer where it paces (BBR).
const MAX_SPLICED: usize = 60 * 1024;
