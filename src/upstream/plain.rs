//! The plainest exchanges with an app that answers in HTTP/1.1, without hyper: a request that is all there, and an answer
//! whose length is told.
//!
//! That is nearly every exchange, and half of what one costs would be hyper's: its channels, its state, the buffers of each
//! connection. What is taken for plain here is less than hyper takes; whatever else an app answers goes to hyper as it
//! came, with all that was read of it. The rest of the exchange's life, from the second attempt to the interim responses, is
//! [`Stream`]'s, beneath both.

use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::header;
use http::{Response, StatusCode};
use hyper::ext::ReasonPhrase;
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::body::RequestBody;
use crate::error::Failure;
use crate::message::fields::content_length;
use crate::message::head::{FEW_FIELDS, MAX_FIELDS, RequestHead, read_fields, write_field};
use crate::message::names::{self, Name};
use crate::upstream::stream::{BUFFER, Stream, StreamIo};

/// Writes a request, if it is plain.
pub(super) fn write(bytes: &mut Vec<u8>, head: &RequestHead, body: &RequestBody) -> bool {
    let (Some(target), Some(body)) = (head.target.path_and_query(), body.whole()) else { return false };
    if !target.as_str().starts_with('/') && target != "*" {
        return false;
    }
    for part in [head.method.as_str(), " ", target.as_str(), " HTTP/1.1\r\n"] {
        bytes.extend_from_slice(part.as_bytes());
    }
    let mut length = Length::Untold;
    for (name, value) in head.fields.iter() {
        match name {
            Name::Known(names::UPGRADE | names::EXPECT) => return false,
            Name::Known(names::TRANSFER_ENCODING) => length = Length::Unclear,
            Name::Known(names::CONTENT_LENGTH) => length.is_told(value),
            Name::Known(_) | Name::Other(_) => {}
        }
        match name {
            Name::Known(name) => {
                name.write(bytes);
                bytes.extend_from_slice(value);
                bytes.extend_from_slice(b"\r\n");
            }
            Name::Other(name) => write_field(bytes, name.as_str(), value),
        }
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    match length {
        Length::Told(length) => length == body.len() as u64,
        Length::Untold => body.is_empty(),
        Length::Unclear => false,
    }
}

/// How long a message's body is, by its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Untold,
    Told(u64),
    /// Or in a way that is hyper's to judge: chunks, several lengths.
    Unclear,
}

impl Length {
    /// A `Content-Length` says so.
    fn is_told(&mut self, value: &[u8]) {
        *self = match (*self, content_length(value)) {
            (Self::Untold, Some(length)) => Self::Told(length),
            _ => Self::Unclear,
        };
    }
}

/// The writing of a request, and the reading of its answer's head.
pub(super) struct Asking<'a> {
    io: StreamIo,
    request: &'a [u8],
    is_head: bool,
    read: &'a mut BytesMut,
    piece: usize,
    max_head: usize,
}

/// What was read of an answer.
#[derive(Debug)]
pub(super) enum Heard {
    /// A plain one's head, and the beginning of its body.
    Plain(Response<Told>),
    /// The beginning of another one, and whether its head is a large one.
    Other(Bytes, bool),
    /// One that is not accepted.
    Rejected(Failure),
}

/// How an answer goes on.
#[derive(Debug)]
pub(super) struct Told {
    /// What has been read beyond the head.
    pub(super) read: Bytes,
    /// Bytes of the whole body.
    pub(super) length: u64,
    /// Whether the app keeps the connection open after it.
    pub(super) keeps_alive: bool,
}

impl<'a> Asking<'a> {
    /// `read` is empty, and the connection's buffer; a first read takes up to `piece` bytes.
    pub(super) fn new(
        stream: &Rc<Stream>,
        request: &'a [u8],
        is_head: bool,
        read: &'a mut BytesMut,
        piece: usize,
        max_head: usize,
    ) -> Self {
        // Nearly always the room of the last answer, which has gone.
        read.reserve(piece);
        Self { io: StreamIo(Rc::clone(stream)), request, is_head, read, piece, max_head }
    }

    /// Whether all of the request has been written. An app may answer before.
    pub(super) fn is_written(&self) -> bool {
        self.request.is_empty()
    }

    /// Bytes of a head that isn't complete.
    pub(super) fn read(&self) -> usize {
        self.read.len()
    }

    /// Whether that is more than a connection's usual buffer.
    pub(super) fn is_long(&self) -> bool {
        self.read.len() > PIECE
    }

    /// Ready when the answer's head has been read.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Heard>> {
        while !self.request.is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, self.request)? {
                Poll::Ready(count) => self.request = &self.request[count..],
                Poll::Pending => break,
            }
        }
        loop {
            if ready!(poll_read(&mut self.io, cx, self.read, self.piece))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let bytes = self.read.split().freeze();
            return Poll::Ready(Ok(match parse(&bytes, self.is_head, self.max_head) {
                Parsed::Partial => {
                    // Each time as much as there is already: what is parsed again stays in proportion.
                    self.piece = self.piece.max(bytes.len());
                    self.read.extend_from_slice(&bytes);
                    continue;
                }
                Parsed::Plain(response) => Heard::Plain(response),
                Parsed::Other { large } => Heard::Other(bytes, large),
                Parsed::TooLarge => Heard::Rejected(Failure::ResponseHeadTooLarge),
                Parsed::TooMany => Heard::Rejected(Failure::TooManyResponseHeaders),
            }));
        }
    }
}

/// Reads what there is, and says how many bytes that were. Makes room for `piece` bytes where there is less than half of
/// that: a block that stands behind a few bytes is memory that nobody counts.
pub(super) fn poll_read(
    io: &mut StreamIo,
    cx: &mut Context<'_>,
    read: &mut BytesMut,
    piece: usize,
) -> Poll<io::Result<usize>> {
    if read.capacity() - read.len() < piece.div_ceil(2) {
        read.reserve(piece);
    }
    pin!(io.read_buf(read)).poll(cx)
}

#[derive(Debug)]
enum Parsed {
    Partial,
    Plain(Response<Told>),
    /// `large`: with more lines or bytes than hyper takes unless it is asked to.
    Other {
        large: bool,
    },
    /// More bytes than are accepted.
    TooLarge,
    /// More lines.
    TooMany,
}

/// Reads an answer's head of up to `max_head` bytes.
fn parse(bytes: &Bytes, is_head: bool, max_head: usize) -> Parsed {
    match parse_into(&mut [const { MaybeUninit::uninit() }; FEW_FIELDS], bytes, is_head, max_head) {
        Parsed::TooMany => parse_many(bytes, is_head, max_head),
        parsed => parsed,
    }
}

/// The same for a head with more lines than nearly every one has: they go on the heap.
#[cold]
#[inline(never)]
fn parse_many(bytes: &Bytes, is_head: bool, max_head: usize) -> Parsed {
    match parse_into(&mut vec![MaybeUninit::uninit(); MAX_FIELDS], bytes, is_head, max_head) {
        Parsed::Other { .. } => Parsed::Other { large: true },
        parsed => parsed,
    }
}

#[inline]
fn parse_into<'b>(
    lines: &mut [MaybeUninit<httparse::Header<'b>>],
    bytes: &'b Bytes,
    is_head: bool,
    max_head: usize,
) -> Parsed {
    let mut found = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut found, bytes, lines);
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) if length <= max_head => length,
        Ok(httparse::Status::Partial) if bytes.len() <= max_head => return Parsed::Partial,
        Ok(httparse::Status::Complete(_) | httparse::Status::Partial) => return Parsed::TooLarge,
        Err(httparse::Error::TooManyHeaders) => return Parsed::TooMany,
        // What is wrong with it, hyper says.
        Err(_) => return Parsed::Other { large: bytes.len() >= BUFFER },
    };
    response(&found, bytes.slice(length..), bytes, is_head)
        .map_or(Parsed::Other { large: length >= BUFFER }, Parsed::Plain)
}

fn response(found: &httparse::Response<'_, '_>, read: Bytes, bytes: &Bytes, is_head: bool) -> Option<Response<Told>> {
    let status = StatusCode::from_u16(found.code?).ok()?;
    if found.version != Some(1) || status.is_informational() {
        return None;
    }
    let mut keeps_alive = true;
    let mut length = Length::Untold;
    let headers = read_fields(found.headers, bytes, |name, value| {
        match *name {
            header::TRANSFER_ENCODING => length = Length::Unclear,
            header::CONTENT_LENGTH => length.is_told(value),
            header::CONNECTION => {
                let mut options = value.split(|byte| *byte == b',');
                keeps_alive &= !options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"));
            }
            _ => {}
        }
        true
    })?;
    // RFC 9112 §6.3: these have none, whatever the fields say.
    let bodiless = is_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let length = match length {
        Length::Unclear => return None,
        _ if bodiless => 0,
        Length::Told(length) => length,
        Length::Untold => return None,
    };
    let mut response = Response::new(Told { read, length, keeps_alive });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    let reason = found.reason?;
    if status.canonical_reason() != Some(reason) {
        // As hyper does, which writes it.
        response.extensions_mut().insert(ReasonPhrase::try_from(reason.as_bytes()).ok()?);
    }
    Some(response)
}

/// Bytes to be read at first of an answer that is like one of this length.
pub(super) fn piece(length: u64) -> usize {
    match usize::try_from(length) {
        Ok(length @ ..=MAX_PIECE) => PIECE.max(length + TYPICAL_HEAD),
        // What follows the first piece isn't read at all, perhaps.
        _ => PIECE,
    }
}

/// Bytes to be read at least, and at most, at once; with the most, a head's beside.
pub(super) const PIECE: usize = 8 * 1024;
pub(super) const MAX_PIECE: usize = 64 * 1024;
const TYPICAL_HEAD: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(head: &str, is_head: bool) -> Option<(u64, bool, usize)> {
        match parse(&Bytes::copy_from_slice(head.as_bytes()), is_head, 64 * 1024) {
            Parsed::Plain(response) => {
                let told = response.body();
                Some((told.length, told.keeps_alive, told.read.len()))
            }
            Parsed::Partial | Parsed::Other { .. } | Parsed::TooLarge | Parsed::TooMany => None,
        }
    }

    #[test]
    fn an_answer_is_plain_when_its_length_is_told() {
        assert_eq!(heard("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", false), Some((5, true, 3)));
        assert_eq!(heard("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true), Some((0, true, 0)));
        assert_eq!(heard("HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", false), Some((0, true, 0)));
        assert_eq!(heard("HTTP/1.1 204 No Content\r\nConnection: X, Close\r\n\r\n", false), Some((0, false, 0)));
    }

    #[test]
    fn a_head_is_bounded_in_bytes_and_lines() {
        let parsed = |head: &str, most: usize| parse(&Bytes::copy_from_slice(head.as_bytes()), false, most);
        let with =
            |count: usize, framing: &str| format!("HTTP/1.1 200 OK\r\n{framing}\r\n{}\r\n", "A: b\r\n".repeat(count));
        let (plain, chunked) = ("Content-Length: 0", "Transfer-Encoding: chunked");
        for count in [0, 99, 100, 999] {
            assert!(matches!(parsed(&with(count, plain), 1 << 16), Parsed::Plain(_)), "{count}");
            let large = count >= FEW_FIELDS;
            assert!(
                matches!(parsed(&with(count, chunked), 1 << 16), Parsed::Other { large: is } if is == large),
                "{count}"
            );
        }
        for framing in [plain, chunked] {
            assert!(matches!(parsed(&with(1000, framing), 1 << 16), Parsed::TooMany));
            let head = with(200, framing);
            assert!(matches!(parsed(&head, head.len() - 1), Parsed::TooLarge));
            assert!(!matches!(parsed(&head, head.len()), Parsed::TooLarge));
            // Without its end.
            assert!(matches!(parsed(&head[..900], 900), Parsed::Partial));
            assert!(matches!(parsed(&head[..900], 899), Parsed::TooLarge));
        }
    }

    #[test]
    fn what_is_not_plain_is_hypers() {
        for head in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\n Content-Length: 5\r\n\r\n",
            "HTTP/2 200 OK\r\nContent-Length: 5\r\n\r\n",
        ] {
            assert_eq!(heard(head, false), None, "{head:?}");
        }
    }
}
