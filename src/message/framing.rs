//! Where one request ends and the next begins, decided before any parser builds a message from it.
//!
//! [`RequestFraming`] looks at the raw bytes of a connection and lets exactly one request at a time through
//! to hyper. It refuses whatever two readers could delimit differently (RFC 9112 §2.2, §6, §7.1, §11.2):
//! a bare LF, a length twice, `Content-Length` beside `Transfer-Encoding`, any coding but one final
//! `chunked`, a sloppy chunk. It leaves to hyper (httparse) what it does well: methods, tokens, field
//! values, bare CR and NUL, and the folding of lines, all refused there.

use http::{HeaderName, HeaderValue};
use memchr::memchr;

use crate::error::Failure;
use crate::message::fields::content_length;

/// What is known of the request that is being read.
#[derive(Debug)]
pub struct RequestFraming {
    state: State,
    /// Bytes of the head so far, and of the trailer section, which is bounded alike.
    head: usize,
    max_head: usize,
    length: Option<u64>,
    chunked: bool,
    http10: bool,
    /// Empty lines before the request line.
    empty: usize,
    /// The beginning of a line whose end has not been read yet.
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between two requests; empty lines are skipped (RFC 9112 §2.2).
    Start,
    /// Among the field lines.
    Fields,
    /// Inside a body of known length: bytes that remain.
    Length(u64),
    ChunkSize,
    /// Bytes of the chunk's data that remain.
    ChunkData(u64),
    /// The line end after a chunk's data.
    ChunkEnd,
    Trailers,
}

impl RequestFraming {
    /// Framing for a new connection whose request heads may be `max_head` bytes long.
    pub fn new(max_head: usize) -> Self {
        Self {
            state: State::Start,
            head: 0,
            max_head,
            length: None,
            chunked: false,
            http10: false,
            empty: 0,
            line: Vec::new(),
        }
    }

    /// Looks at bytes that have just been read, and returns how many of them belong to the current request.
    /// Fewer than all: the request is complete, and the rest belongs to the next one.
    ///
    /// # Errors
    ///
    /// What is wrong with the request. Nothing that was read after the last call may be used then.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, Failure> {
        let mut at = 0;
        while at < bytes.len() {
            match self.state {
                State::Length(remaining) => {
                    let take = count(remaining, bytes.len() - at);
                    at += take;
                    if !self.consume(remaining, take, State::Length) {
                        return Ok(at);
                    }
                }
                State::ChunkData(remaining) => {
                    let take = count(remaining, bytes.len() - at);
                    at += take;
                    if !self.consume(remaining, take, State::ChunkData) {
                        self.state = State::ChunkEnd;
                    }
                }
                State::Start | State::Fields | State::ChunkSize | State::ChunkEnd | State::Trailers => {
                    let Some(end) = memchr(b'\n', &bytes[at..]) else {
                        self.partial(&bytes[at..])?;
                        return Ok(bytes.len());
                    };
                    let complete = if self.line.is_empty() {
                        self.line_end(&bytes[at..=at + end])?
                    } else {
                        self.line.extend_from_slice(&bytes[at..=at + end]);
                        let line = std::mem::take(&mut self.line);
                        self.line_end(&line)?
                    };
                    at += end + 1;
                    if complete {
                        return Ok(at);
                    }
                }
            }
        }
        Ok(at)
    }

    /// Whether no byte of the next request has been read.
    pub fn is_between_requests(&self) -> bool {
        self.state == State::Start && self.head == 0
    }

    /// Whether nothing at all has been read since the last request, not even an empty line.
    pub fn is_untouched(&self) -> bool {
        self.is_between_requests() && self.empty == 0
    }

    /// Whether a head has begun and is not complete.
    pub fn is_in_head(&self) -> bool {
        matches!(self.state, State::Start | State::Fields) && self.head > 0
    }

    /// Keeps the beginning of a line, as long as it can still become a good one.
    fn partial(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let bound = match self.state {
            State::ChunkSize | State::ChunkEnd => MAX_CHUNK_LINE,
            _ => self.max_head - self.head.min(self.max_head),
        };
        if matches!(self.state, State::Start | State::Fields) && self.line.is_empty() && self.head == 0 {
            // So that `is_in_head` holds from the first byte on; `line_end` counts the line itself.
            self.head = 1;
        }
        if self.line.len() + bytes.len() > bound {
            return Err(match self.state {
                State::ChunkSize | State::ChunkEnd => CHUNK_LINE_TOO_LONG,
                _ => Failure::HeadTooLarge,
            });
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    /// Takes one whole line, with its end. True when the request is complete.
    fn line_end(&mut self, line: &[u8]) -> Result<bool, Failure> {
        let Some(line) = line.strip_suffix(b"\r\n") else {
            return Err(Failure::Malformed("a line ends in LF without CR"));
        };
        match self.state {
            State::Start => {
                if line.is_empty() {
                    // No request has begun by that.
                    self.head = 0;
                    self.empty += 1;
                    return if self.empty > MAX_EMPTY_LINES {
                        Err(Failure::Malformed("nothing but empty lines"))
                    } else {
                        Ok(false)
                    };
                }
                self.count_head(line)?;
                self.request_line(line)?;
                self.state = State::Fields;
            }
            State::Fields => {
                self.count_head(line)?;
                if line.is_empty() {
                    return self.head_end();
                }
                self.field_line(line)?;
            }
            State::ChunkSize => match chunk_size(line)? {
                0 => {
                    self.head = 0;
                    self.state = State::Trailers;
                }
                size => self.state = State::ChunkData(size),
            },
            State::ChunkEnd => {
                if !line.is_empty() {
                    return Err(Failure::Malformed("a chunk is longer than its size"));
                }
                self.state = State::ChunkSize;
            }
            State::Trailers => {
                self.count_head(line)?;
                if line.is_empty() {
                    self.reset();
                    return Ok(true);
                }
                // hyper would end the connection over a bad one without a word.
                if !is_field_line(line) {
                    return Err(Failure::Malformed("a trailer line is no field line"));
                }
            }
            // Counted in `feed`, never read by lines.
            State::Length(_) | State::ChunkData(_) => {}
        }
        Ok(false)
    }

    fn count_head(&mut self, line: &[u8]) -> Result<(), Failure> {
        self.head += line.len() + 2;
        if self.head > self.max_head { Err(Failure::HeadTooLarge) } else { Ok(()) }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Failure> {
        // RFC 9112 §3.2: a request target has no fragment. The `http` crate would cut it off in silence.
        // A method may have the character: it stands in tokens.
        let target = memchr(b' ', line).map_or(line, |space| &line[space..]);
        if memchr(b'#', target).is_some() {
            return Err(Failure::Malformed("a fragment in the request target"));
        }
        self.http10 = line.ends_with(b" HTTP/1.0");
        Ok(())
    }

    fn field_line(&mut self, line: &[u8]) -> Result<(), Failure> {
        match line[0] {
            b'c' | b'C' => {
                if let Some(value) = value_of(line, b"content-length:") {
                    let length = content_length(value).ok_or(Failure::Malformed("Content-Length is not a number"))?;
                    if self.length.replace(length).is_some() {
                        return Err(Failure::Malformed("Content-Length twice"));
                    }
                }
            }
            b't' | b'T' => {
                if let Some(value) = value_of(line, b"transfer-encoding:") {
                    if self.chunked {
                        return Err(Failure::Malformed("Transfer-Encoding twice"));
                    }
                    if !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Failure::UnknownCoding);
                    }
                    self.chunked = true;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn head_end(&mut self) -> Result<bool, Failure> {
        if self.chunked {
            // RFC 9112 §6.3: "ought to be handled as an error".
            if self.length.is_some() {
                return Err(Failure::Malformed("Content-Length beside Transfer-Encoding"));
            }
            // RFC 9112 §6.1: "MUST treat the message as if the framing is faulty".
            if self.http10 {
                return Err(Failure::Malformed("Transfer-Encoding in an HTTP/1.0 request"));
            }
            self.state = State::ChunkSize;
            return Ok(false);
        }
        if let Some(length @ 1..) = self.length {
            self.state = State::Length(length);
            return Ok(false);
        }
        self.reset();
        Ok(true)
    }

    /// Takes `taken` bytes off `remaining`. False when none remain; a body of known length ends the request.
    fn consume(&mut self, remaining: u64, taken: usize, state: fn(u64) -> State) -> bool {
        let left = remaining - taken as u64;
        if left > 0 {
            self.state = state(left);
            return true;
        }
        if matches!(self.state, State::Length(_)) {
            self.reset();
        }
        false
    }

    /// Forgets what has been read: a request begins.
    pub fn reset(&mut self) {
        self.line.clear();
        self.state = State::Start;
        self.head = 0;
        self.empty = 0;
        self.length = None;
        self.chunked = false;
        self.http10 = false;
    }
}

/// How many of `available` bytes belong to `remaining`.
fn count(remaining: u64, available: usize) -> usize {
    usize::try_from(remaining).map_or(available, |remaining| remaining.min(available))
}

/// The value of the field line if it has this name, which is in lower case and ends with the colon.
fn value_of<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then(|| trim_ows(value))
}

/// RFC 9112 §5: `field-line = field-name ":" OWS field-value OWS`.
fn is_field_line(line: &[u8]) -> bool {
    let Some(colon) = memchr(b':', line) else { return false };
    let value = HeaderValue::from_bytes(trim_ows(&line[colon + 1..]));
    HeaderName::from_bytes(&line[..colon]).is_ok() && value.is_ok()
}

/// RFC 9110 §5.6.3: optional white space is SP and HTAB, and nothing else.
fn trim_ows(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// RFC 9112 §7.1: `chunk-size = 1*HEXDIG`, then perhaps extensions, which mean nothing to anybody here.
fn chunk_size(line: &[u8]) -> Result<u64, Failure> {
    if line.len() > MAX_CHUNK_LINE {
        return Err(CHUNK_LINE_TOO_LONG);
    }
    let digits = line.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(line.len());
    let (size, extension) = line.split_at(digits);
    // 15 digits: 2^60 bytes, which no sum of chunks overflows.
    if size.is_empty() || size.len() > 15 {
        return Err(Failure::Malformed("a chunk's size is not a hexadecimal number"));
    }
    if !extension.is_empty() {
        let extension = trim_ows(extension);
        let clean = |b: &u8| *b == b'\t' || (*b >= b' ' && *b != 0x7f);
        if extension.first() != Some(&b';') || !extension.iter().all(clean) {
            return Err(Failure::Malformed("something other than an extension follows a chunk's size"));
        }
    }
    let digit = |b: u8| char::from(b).to_digit(16).unwrap_or_default();
    Ok(size.iter().fold(0, |sum, b| sum * 16 + u64::from(digit(*b))))
}

/// Some old clients send one after a body (RFC 9112 §2.2).
const MAX_EMPTY_LINES: usize = 8;
/// Bytes. Nobody sends chunk extensions; what is longer is an attack.
const MAX_CHUNK_LINE: usize = 256;
const CHUNK_LINE_TOO_LONG: Failure = Failure::Malformed("a chunk's size line is too long");

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the bytes whole, and again in pieces of every small size: the outcome must be the same.
    /// Returns the length of the first request.
    fn feed(bytes: &[u8]) -> Result<usize, Failure> {
        let run = |piece: usize| {
            let mut framing = RequestFraming::new(1024);
            let mut used = 0;
            for part in bytes.chunks(piece) {
                let taken = framing.feed(part)?;
                used += taken;
                let begun = bytes[..used].iter().any(|b| !b"\r\n".contains(b));
                if taken < part.len() || (begun && framing.is_between_requests()) {
                    break;
                }
            }
            Ok(used)
        };
        let whole = run(bytes.len().max(1));
        for piece in [1, 2, 3, 7, 64] {
            assert_eq!(run(piece), whole, "in pieces of {piece}: {:?}", String::from_utf8_lossy(bytes));
        }
        whole
    }

    #[test]
    fn a_request_ends_where_its_framing_says() {
        for (request, rest) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET"),
            ("\r\n\r\nGET / HTTP/1.1\r\n\r\n", "x"),
            ("#GET / HTTP/1.1\r\n\r\n", "x"),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "GET"),
            ("POST / HTTP/1.1\r\ncontent-length:\t5 \r\n\r\n\r\n\n\0x", ""),
            ("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "hello"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "GET"),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: CHUNKED\r\n\r\n5;a=b\r\nhello\r\nA \t;q=\"x\"\r\n0123456789\r\n000\r\nT: v\r\n\r\n",
                "G",
            ),
            ("GET / HTTP/1.1\r\nContent-Lengthy: x\r\nTransfer-Encodings: y\r\nX: content-length: 5\r\n\r\n", "z"),
        ] {
            let bytes = format!("{request}{rest}");
            assert_eq!(feed(bytes.as_bytes()), Ok(request.len()), "{bytes:?}");
        }
    }

    #[test]
    fn what_two_readers_could_delimit_differently_is_refused() {
        for head in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "\nGET / HTTP/1.1\r\n\r\n",
            "GET /#x HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nContent-Length: 0x5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nContent-Length: 5_0\r\n\r\nhello",
            "POST / HTTP/1.1\r\nContent-Length:\r\n\r\nhello",
            "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: \"chunked\"\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked;q=1\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding:\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(feed(head.as_bytes()).is_err(), "{head:?}");
        }
        for body in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhello!\r\n0\r\n\r\n",
            "\r\n",
            "0x5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "-5\r\n",
            "5_\r\nhello\r\n",
            " 5\r\nhello\r\n",
            "5 x\r\nhello\r\n",
            "g\r\n",
            "FFFFFFFFFFFFFFFF\r\n",
            "5;a\nb\r\nhello\r\n",
            "5;a\0\r\nhello\r\n",
            "5;a\rb\r\nhello\r\n",
            "0\r\nT: v\n\r\n",
            "0\r\n\n",
            "0\r\nT\r\n\r\n",
            "0\r\nT T: v\r\n\r\n",
            "0\r\n T: v\r\n\r\n",
            "0\r\nT: a\0b\r\n\r\n",
            "5\r\n\r\nhello\r\n",
        ] {
            let message = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
            assert!(feed(message.as_bytes()).is_err(), "{body:?}");
        }
    }

    #[test]
    fn heads_trailers_and_chunk_lines_are_bounded() {
        let long = "a".repeat(1024);
        assert_eq!(feed(format!("GET /{long} HTTP/1.1\r\n\r\n").as_bytes()), Err(Failure::HeadTooLarge));
        assert_eq!(feed(format!("GET / HTTP/1.1\r\nA: {long}").as_bytes()), Err(Failure::HeadTooLarge));
        assert!(feed("\r\n".repeat(600).as_bytes()).is_err());
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(feed(format!("{chunked}0\r\nA: {long}\r\n\r\n").as_bytes()), Err(Failure::HeadTooLarge));
        assert!(feed(format!("{chunked}5;{long}\r\n").as_bytes()).is_err());
        assert!(feed(format!("{chunked}5;{long}").as_bytes()).is_err());
    }

    #[test]
    fn the_first_byte_begins_a_head_and_the_last_ends_it() {
        let mut framing = RequestFraming::new(1024);
        assert!(framing.is_between_requests() && !framing.is_in_head());
        assert_eq!(framing.feed(b"G"), Ok(1));
        assert!(framing.is_in_head() && !framing.is_between_requests());
        assert_eq!(framing.feed(b"ET / HTTP/1.1\r\n\r"), Ok(16));
        assert!(framing.is_in_head());
        assert_eq!(framing.feed(b"\n"), Ok(1));
        assert!(framing.is_between_requests());
        assert_eq!(framing.feed(b"\r"), Ok(1));
        assert_eq!(framing.feed(b"\n"), Ok(1));
        assert!(framing.is_between_requests() && !framing.is_in_head());
    }
}
