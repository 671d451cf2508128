//! The plainest requests of an HTTP/1.1 connection, without hyper: those that have come whole, in one piece.
//!
//! That is nearly every one, and half of what it costs would be hyper's. What is taken for plain here is less than hyper
//! takes; whatever else comes goes back into the wire, and hyper reads it from its first byte. The wire lies beneath both: it
//! has delimited the request before anybody here sees it, and counts and times what is written.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::ext::ReasonPhrase;
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::body::incoming::Incoming;
use crate::downstream::server::{HYPER, Server};
use crate::downstream::wire::{Wire, WireIo};
use crate::io::flight::Part;
use crate::io::splice::Pipe;
use crate::message::fields::content_length;
use crate::message::head::{FEW_FIELDS, RequestHead, write_field};
use crate::message::lines::FieldLines;
use crate::message::names::{self, Name};
use crate::proxy::Client;
use crate::proxy::response::{self, AnswerBody};

/// Why no more plain requests are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// Another one has begun. It is in the wire.
    Other,
    /// The last answer has ended the connection.
    All,
    /// The client has closed its side.
    Left,
    /// An answer could not be brought to its end.
    Broken,
}

impl Server {
    /// Serves a connection's requests as long as they are plain.
    pub(super) async fn serve_plain(&self, client: &Client, wire: &Rc<Wire>) -> Served {
        let mut io = WireIo(Rc::clone(wire));
        let mut read = BytesMut::new();
        loop {
            // Nearly always the room of the last request, which has gone.
            read.reserve(PIECE);
            match io.read_buf(&mut read).await {
                Ok(0) => return Served::Left,
                Ok(_) => {}
                Err(_) => return Served::Broken,
            }
            let bytes = read.split().freeze();
            let plain = if wire.is_request_complete() { parse(&bytes) } else { None };
            let Some((mut head, body, closes)) = plain else {
                wire.take_back(bytes);
                wire.flight.charge_when_possible(Part::Library, HYPER).await;
                return Served::Other;
            };
            drop(bytes);
            let is_head = head.method == Method::HEAD;
            let Ok(mut response) = self.answer(client, wire, &mut head, body).await else { return Served::Broken };
            if closes {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            match write(&mut io, response, is_head).await {
                Ok(true) => {}
                Ok(false) => return Served::All,
                Err(_) => return Served::Broken,
            }
        }
    }
}

/// The request that these bytes are, if they are a plain one, and whether the client wants the connection closed.
fn parse(bytes: &Bytes) -> Option<(RequestHead, Incoming, bool)> {
    let mut lines = [const { MaybeUninit::uninit() }; FEW_FIELDS];
    let mut found = httparse::Request::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut found, bytes, &mut lines);
    let Ok(httparse::Status::Complete(head)) = parsed else { return None };
    let method = Method::from_bytes(found.method?.as_bytes()).ok()?;
    let target = found.path?;
    if found.version != Some(1) || method == Method::CONNECT || !target.starts_with('/') {
        return None;
    }
    let mut closes = false;
    let fields = FieldLines::read(found.headers, bytes, |name, value| match name {
        Name::Known(names::CONNECTION) if value.eq_ignore_ascii_case(b"close") => {
            closes = true;
            true
        }
        Name::Known(names::CONNECTION) => value.eq_ignore_ascii_case(b"keep-alive"),
        // These are about the connection, the framing or the version.
        Name::Known(names::TRANSFER_ENCODING | names::UPGRADE | names::EXPECT | names::TE | names::TRAILER) => false,
        Name::Known(_) | Name::Other(_) => true,
    })?;
    let target = Uri::from_maybe_shared(bytes.slice_ref(target.as_bytes())).ok()?;
    // The wire has seen to it that the body is as long as the fields say.
    let body = Incoming::Read(bytes.slice(head..));
    Some((RequestHead { method, target, version: Version::HTTP_11, fields }, body, closes))
}

/// Writes an answer. Says whether another request may follow.
async fn write(io: &mut WireIo, response: Response<AnswerBody>, is_head: bool) -> io::Result<bool> {
    let (mut head, body) = response.into_parts();
    let mut body = pin!(body);
    let framing = Framing::of(head.status, is_head, &mut head.headers, body.size_hint().exact());
    head.headers.entry(header::DATE).or_insert_with(response::date);
    let keeps_alive = head.headers.get(header::CONNECTION).is_none_or(|value| value != "close");
    let mut out = Out { head: SCRATCH.take(), at: 0, data: Bytes::new(), behind: b"" };
    let reason = head.extensions.get::<ReasonPhrase>().map(ReasonPhrase::as_bytes);
    let canonical = || head.status.canonical_reason().unwrap_or("<none>").as_bytes();
    for part in [b"HTTP/1.1 ", head.status.as_str().as_bytes(), b" ", reason.unwrap_or_else(canonical), b"\r\n"] {
        out.head.extend_from_slice(part);
    }
    for (name, value) in &head.headers {
        write_field(&mut out.head, name.as_str(), value.as_bytes());
    }
    out.head.extend_from_slice(b"\r\n");
    drop(head);

    let mut left = match framing {
        Framing::None => 0,
        Framing::Length(length) => length,
        Framing::Chunked => u64::MAX,
    };
    while left > 0 {
        if left >= LONG && framing != Framing::Chunked && out.head.is_empty() {
            left -= splice(io, &mut body, left).await?;
            if left == 0 {
                break;
            }
        }
        let frame = poll_fn(|cx| {
            let frame = body.as_mut().poll_frame(cx);
            // Meanwhile the client gets what there is.
            if frame.is_pending()
                && let Poll::Ready(Err(error)) = out.poll_flush(io, cx)
            {
                return Poll::Ready(Err(error));
            }
            frame.map(Ok)
        });
        let data = match frame.await? {
            None if framing == Framing::Chunked => break,
            // The client has been told another length.
            None | Some(Err(_)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            // Trailers are for those who have said `TE`.
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        };
        if data.is_empty() {
            continue;
        }
        out.data = data;
        if framing == Framing::Chunked {
            write!(out.head, "{:x}\r\n", out.data.len())?;
            out.behind = b"\r\n";
        } else {
            out.data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= out.data.len() as u64;
            if out.data.len() <= SMALL {
                // One piece is cheaper to send than two are.
                out.head.extend_from_slice(&out.data);
                out.data.clear();
            }
        }
        poll_fn(|cx| out.poll_write(io, cx)).await?;
    }
    if framing == Framing::Chunked {
        out.head.extend_from_slice(b"0\r\n\r\n");
    }
    poll_fn(|cx| out.poll_flush(io, cx)).await?;
    SCRATCH.set(out.head);
    Ok(keeps_alive)
}

/// Moves what it can of a long answer's body past this process, and says how many bytes that were.
async fn splice(io: &mut WireIo, body: &mut AnswerBody, left: u64) -> io::Result<u64> {
    let WireIo(wire) = io;
    let pipe = if wire.socket().is_plain() { Pipe::take() } else { None };
    let (Some(mut pipe), mut moved) = (pipe, 0) else { return Ok(0) };
    while moved < left {
        let Some(count) = poll_fn(|cx| body.poll_splice(cx, &mut pipe)).await else { break };
        moved += count as u64;
        // All of it, before anything is read that comes behind it.
        while pipe.inside() > 0 {
            if poll_fn(|cx| wire.poll_splice(cx, &mut pipe)).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
    }
    Ok(moved)
}

/// How an answer's end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// There is no body.
    None,
    Length(u64),
    Chunked,
}

impl Framing {
    /// RFC 9112 §6.3, and what the fields have to say for it. `exact` is the body's length if that is known.
    fn of(status: StatusCode, is_head: bool, headers: &mut HeaderMap, exact: Option<u64>) -> Self {
        if is_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
            // Nothing comes in which there could be one.
            headers.remove(header::TRAILER);
        }
        if status == StatusCode::NO_CONTENT {
            // RFC 9110 §8.6: "A server MUST NOT send a Content-Length header field in any response with a status code
            // of 1xx (Informational) or 204 (No Content)."
            headers.remove(header::CONTENT_LENGTH);
            return Self::None;
        }
        let told = headers.get(header::CONTENT_LENGTH).and_then(|length| content_length(length.as_bytes()));
        let length = told.or(exact);
        if is_head || status == StatusCode::NOT_MODIFIED {
            // What a GET would get, if anybody knows. An empty body says nothing here.
            if let (None, Some(length @ 1..)) = (told, length) {
                headers.insert(header::CONTENT_LENGTH, length.into());
            }
            return Self::None;
        }
        let Some(length) = length else {
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            return Self::Chunked;
        };
        if told.is_none() {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        Self::Length(length)
    }
}

/// What is to be written, in this order.
struct Out {
    head: Vec<u8>,
    /// Bytes of it that have been written.
    at: usize,
    data: Bytes,
    behind: &'static [u8],
}

impl Out {
    /// Ready when all of it has been written.
    fn poll_write(&mut self, io: &mut WireIo, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.at < self.head.len() || !self.data.is_empty() || !self.behind.is_empty() {
            let slices = [&self.head[self.at..], &self.data, self.behind].map(IoSlice::new);
            let io = Pin::new(&mut *io);
            let written = match &slices {
                [head, data, behind] if data.is_empty() && behind.is_empty() => io.poll_write(cx, head),
                slices => io.poll_write_vectored(cx, slices),
            };
            let mut count = ready!(written)?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let mut of = |length: usize| {
                let part = length.min(count);
                count -= part;
                part
            };
            self.at += of(self.head.len() - self.at);
            self.data.advance(of(self.data.len()));
            self.behind = &self.behind[of(self.behind.len())..];
        }
        self.head.clear();
        // A large head is not kept in memory as long as the body takes.
        self.head.shrink_to(PIECE);
        self.at = 0;
        Poll::Ready(Ok(()))
    }

    /// Ready when all of it is on its way.
    fn poll_flush(&mut self, io: &mut WireIo, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write(io, cx))?;
        Pin::new(io).poll_flush(cx)
    }
}

thread_local! {
    /// Where heads are written.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes of a read. What isn't there with it is no plain request.
const PIECE: usize = 8 * 1024;
/// Bytes of a body that are worth a pipe.
const LONG: u64 = 128 * 1024;
/// Bytes of a body that are copied behind the head.
const SMALL: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn is_plain(request: &str) -> bool {
        parse(&Bytes::copy_from_slice(request.as_bytes())).is_some()
    }

    #[test]
    fn a_request_is_plain_when_it_is_about_nothing_but_itself() {
        let bytes =
            Bytes::from_static(b"POST /a?b HTTP/1.1\r\nHost: x\r\nSec-Fetch-Mode: cors\r\nContent-Length: 2\r\n\r\nhi");
        let (head, body, closes) = parse(&bytes).unwrap();
        assert!(!closes);
        assert_eq!((&head.method, head.target.to_string().as_str()), (&Method::POST, "/a?b"));
        let lines: Vec<_> = head.fields.iter().map(|(name, value)| (name.as_str(), value)).collect();
        assert_eq!(lines, [("host", &b"x"[..]), ("sec-fetch-mode", b"cors"), ("content-length", b"2")]);
        assert!(matches!(body, Incoming::Read(body) if body == "hi"));
        assert!(is_plain("GET / HTTP/1.1\r\nConnection: Keep-Alive\r\n\r\n"));
        for lines in [
            "Connection: Close",
            "Connection: keep-alive\r\nconnection: close",
            "Connection: close\r\nConnection: keep-alive",
        ] {
            let request = format!("GET / HTTP/1.1\r\n{lines}\r\n\r\n");
            let (_, _, closes) = parse(&Bytes::from(request)).unwrap();
            assert!(closes, "{lines}");
        }
    }

    #[test]
    fn what_is_not_plain_is_hypers() {
        let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n");
        for fields in [
            "Connection: close, X",
            "Connection: keep-alive, X",
            "Upgrade: websocket",
            "Expect: 100-continue",
            "TE: trailers",
            "Transfer-Encoding: chunked",
            "Trailer: X",
            " folded: x",
            "bad name: x",
            "Host : x",
            "X: a\0b",
            "X: a\rb",
        ] {
            assert!(!is_plain(&head(fields)), "{fields:?}");
        }
        for line in
            ["GET / HTTP/1.0", "CONNECT / HTTP/1.1", "GET http://x/ HTTP/1.1", "OPTIONS * HTTP/1.1", "GET  / HTTP/1.1"]
        {
            assert!(!is_plain(&format!("{line}\r\nHost: x\r\n\r\n")), "{line}");
        }
        assert!(!is_plain("\r\n") && !is_plain("GET / HTTP/1.1\r\nHo"));
        assert!(!is_plain(&head(&"X: y\r\n".repeat(FEW_FIELDS))));
    }

    #[test]
    fn how_an_answer_ends_is_told_once() {
        let of = |status: u16, is_head, told: Option<&'static str>, exact| {
            let mut headers = HeaderMap::new();
            if let Some(told) = told {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static(told));
            }
            let framing = Framing::of(StatusCode::from_u16(status).unwrap(), is_head, &mut headers, exact);
            let field = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap().to_owned());
            (framing, field(header::CONTENT_LENGTH), field(header::TRANSFER_ENCODING))
        };
        let length = |length: &str| Some(length.to_owned());
        assert_eq!(of(200, false, Some("5"), Some(5)), (Framing::Length(5), length("5"), None));
        assert_eq!(of(502, false, None, Some(5)), (Framing::Length(5), length("5"), None));
        assert_eq!(of(200, false, None, Some(0)), (Framing::Length(0), length("0"), None));
        assert_eq!(of(200, false, None, None), (Framing::Chunked, None, length("chunked")));
        assert_eq!(of(200, true, Some("5"), Some(0)), (Framing::None, length("5"), None));
        assert_eq!(of(502, true, None, Some(5)), (Framing::None, length("5"), None));
        assert_eq!(of(200, true, None, Some(0)), (Framing::None, None, None));
        assert_eq!(of(304, false, Some("5"), Some(5)), (Framing::None, length("5"), None));
        assert_eq!(of(204, false, Some("0"), Some(0)), (Framing::None, None, None));
    }
}
