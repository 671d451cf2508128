//! The uwsgi protocol on a connection: the packet out, and the answer in.
//!
//! A request is a packet of variables and the body's bytes; the answer is HTTP/1, to the end of the connection. So
//! hyper's client does what it does for HTTP, and only the head that it writes is thrown away here, with the packet
//! in its place. hyper must be told the body's length, or it would write chunks.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::io::socket::Socket;
use crate::message::head::RequestHead;
use crate::message::names::{CONNECTION, CONTENT_LENGTH};
use crate::message::uwsgi::Packet;

/// What is left of a head for hyper once its packet is made: the method, which says whether the answer has a body,
/// and the length of the request's.
pub fn reduce(head: &mut RequestHead, length: u64) {
    head.fields.clear();
    // The connection is used once: hyper needn't be ready for more.
    head.fields.insert(CONNECTION, HeaderValue::from_static("close"));
    if length > 0 {
        head.fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// Sends a request without a body over a connection of its own, and gives the answer's status.
///
/// # Errors
///
/// When there is none.
pub async fn ask(mut socket: Socket, packet: &Packet) -> io::Result<StatusCode> {
    socket.write_all(packet.as_bytes()).await?;
    let mut head = Vec::new();
    while head.len() < LONGEST_STATUS_LINE {
        if socket.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut response = httparse::Response::new(&mut []);
        // Without room for fields it ends with an error at the first one; the status has been read by then.
        response.parse(&head).ok();
        if let Some(status) = response.code.and_then(|code| StatusCode::from_u16(code).ok()) {
            return Ok(status);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// The one exchange of a connection.
#[derive(Debug)]
pub(super) struct Exchange {
    packet: Packet,
    /// Bytes of the packet that have been written.
    written: usize,
    /// How much of its blank line hyper's head has shown.
    request: BlankLine,
    /// And the app's.
    response: BlankLine,
    /// Bytes of the app's head that have been seen, as far as they matter.
    seen: usize,
    /// Whether that is the head of an interim response, after which there is another one.
    is_interim: bool,
}

impl Exchange {
    pub(super) fn new(packet: Packet) -> Self {
        Self {
            packet,
            written: 0,
            request: BlankLine::default(),
            response: BlankLine::default(),
            seen: 0,
            is_interim: false,
        }
    }

    /// Whether what hyper writes is the body.
    pub(super) fn is_head_sent(&self) -> bool {
        self.request.is_complete()
    }

    /// Takes hyper's head; at its end, writes the packet. Returns how many of hyper's bytes that was.
    pub(super) fn poll_head(
        &mut self,
        socket: &mut Socket,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<usize> {
        let mut seen = self.request;
        let mut taken = 0;
        for byte in slices.iter().flat_map(|slice| slice.iter()) {
            taken += 1;
            seen.feed(*byte);
            if seen.is_complete() {
                break;
            }
        }
        if seen.is_complete() {
            while let rest @ [_, ..] = &self.packet.as_bytes()[self.written..] {
                match ready!(Pin::new(&mut *socket).poll_write(cx, rest)) {
                    Ok(count) if count > 0 => self.written += count,
                    // The read says how the connection ended; the bytes go nowhere either way.
                    Ok(_) | Err(_) => break,
                }
            }
        }
        // Only now: a write that is pending is tried again with the same bytes.
        self.request = seen;
        Poll::Ready(taken)
    }

    /// Looks at the app's bytes before hyper does, which takes a bare LF for the end of a line. No uWSGI writes one: it
    /// stands in a value that an app was made to repeat, and what follows is no field of the app's.
    pub(super) fn check(&mut self, bytes: &[u8]) -> io::Result<()> {
        for byte in bytes {
            if self.response.is_complete() {
                break;
            }
            if *byte == b'\n' && !self.response.is_after_cr() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.response.feed(*byte);
            if self.seen == STATUS_AT {
                self.is_interim = *byte == b'1';
            }
            self.seen = (self.seen + 1).min(STATUS_AT + 1);
            if self.response.is_complete() && self.is_interim {
                (self.response, self.seen) = (BlankLine::default(), 0);
            }
        }
        Ok(())
    }
}

/// How much of a head's end has been seen: CR LF CR LF.
#[derive(Clone, Copy, Debug, Default)]
struct BlankLine(u8);

impl BlankLine {
    fn feed(&mut self, byte: u8) {
        self.0 = match (self.0, byte) {
            (0 | 2, b'\r') | (1 | 3, b'\n') => self.0 + 1,
            (_, b'\r') => 1,
            _ => 0,
        };
    }

    fn is_after_cr(self) -> bool {
        matches!(self.0, 1 | 3)
    }

    fn is_complete(self) -> bool {
        self.0 == 4
    }
}

/// Where the status stands: behind `HTTP/1.1 `.
const STATUS_AT: usize = 9;
/// Bytes; what is longer isn't one.
const LONGEST_STATUS_LINE: usize = 1024;

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn the_blank_line_is_found_wherever_the_bytes_are_parted() {
        for (text, at) in
            [("GET / HTTP/1.1\r\na: b\r\n\r\nbody", Some(24)), ("a\r\n\r\r\n\r\n", Some(8)), ("a\r\nb\r\n", None)]
        {
            let mut seen = BlankLine::default();
            let found = text.bytes().position(|byte| {
                seen.feed(byte);
                seen.is_complete()
            });
            assert_eq!(found.map(|at| at + 1), at, "{text:?}");
        }
    }

    #[test]
    fn a_bare_line_feed_is_an_error_in_the_head_alone() {
        let checked = |parts: &[&str]| {
            let head = Request::new(()).into_parts().0;
            let mut exchange = Exchange::new(Packet::new(&head.into(), None, 0).unwrap());
            parts.iter().try_for_each(|part| exchange.check(part.as_bytes())).is_ok()
        };
        assert!(checked(&["HTTP/1.1 200 OK\r\na: b\r\n\r\n\nbody\n"]));
        assert!(checked(&["HTTP/1.1 200 OK\r", "\na: b\r\n\r", "\n\nbody\n"]));
        assert!(!checked(&["HTTP/1.1 200 OK\n\n"]));
        assert!(!checked(&["HTTP/1.1 200 OK\r\na: b\nc: d\r\n\r\n"]));
        assert!(!checked(&["HTTP/1.1 200 OK\r\na: b", "\n\r\n"]));
    }
}
