//! Where one request ends and the next begins, decided before any parser builds a message from it.
//!
//! [`RequestFraming`] looks at the raw bytes of a connection and lets exactly one request at a time through
//! to hyper. It refuses whatever two readers could delimit differently (RFC 9112 §2.2, §6, §7.1, §11.2):
//! a bare LF, a folded line, a length twice, `Content-Length` with `Transfer-Encoding`, any coding but one final
//! `chunked`, a sloppy chunk. It leaves to hyper (httparse) what it does well: methods, tokens, field
//! values, bare CR and NUL, all refused there.

use http::{HeaderName, HeaderValue};
use memchr::{memchr, memmem};

use crate::error::Failure;
use crate::message::fields::content_length;
use crate::message::head::MAX_FIELDS;

/// What is known of the request that is being read.
#[derive(Debug)]
pub struct RequestFraming {
    state: State,
    /// Bytes of the head so far, and of the trailer section, which is bounded alike.
    head: usize,
    max_head: usize,
    /// Header lines, or lines of the trailer section.
    lines: usize,
    length: Option<u64>,
    /// What the `Transfer-Encoding` line says.
    coding: Option<Coding>,
    http10: bool,
    /// Whether the last request line asks for the server as a whole, by an absolute form.
    asterisk: bool,
    /// Empty lines before the request line.
    empty: usize,
    /// The beginning of a line whose end has not been read yet.
    line: Vec<u8>,
}

/// The transfer codings of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Chunked,
    /// Others, and a final `chunked`.
    Unknown,
    /// The body's end can't be found.
    Faulty,
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
            lines: 0,
            length: None,
            coding: None,
            http10: false,
            asterisk: false,
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

    /// Bytes of the head, or of the trailer section, that have been read.
    pub fn head(&self) -> usize {
        self.head + self.line.len()
    }

    /// Lines of the head, or of the trailer section, that have been read.
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// Whether a head has begun and is not complete.
    pub fn is_in_head(&self) -> bool {
        matches!(self.state, State::Start | State::Fields) && self.head > 0
    }

    /// Whether the request that was read last is an `OPTIONS` for the server as a whole, by an absolute form.
    pub fn is_asterisk(&self) -> bool {
        self.asterisk
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
                    (self.head, self.lines) = (0, 0);
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
                self.lines += 1;
                if self.lines > MAX_TRAILERS {
                    return Err(Failure::Malformed("too many trailer lines"));
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
        self.asterisk = line.strip_prefix(b"OPTIONS ").is_some_and(is_server);
        Ok(())
    }

    fn field_line(&mut self, line: &[u8]) -> Result<(), Failure> {
        self.lines += 1;
        if self.lines > MAX_FIELDS {
            return Err(Failure::TooManyHeaders);
        }
        match line[0] {
            // RFC 9112 §5.2: "A server that receives an obs-fold in a request message […] MUST either reject the message
            // by sending a 400 (Bad Request) […] or replace".
            b' ' | b'\t' => return Err(Failure::Malformed("a folded header line")),
            b'c' | b'C' => {
                if let Some(value) = value_of(line, b"content-length:") {
                    let length = content_length(value).ok_or(Failure::Malformed("Content-Length is not a number"))?;
                    if self.length.replace(length).is_some() {
                        return Err(Failure::Malformed("Content-Length twice"));
                    }
                }
            }
            b't' | b'T' => {
                if let Some(value) = value_of(line, b"transfer-encoding:")
                    && self.coding.replace(coding(value)).is_some()
                {
                    return Err(Failure::Malformed("two Transfer-Encoding lines"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn head_end(&mut self) -> Result<bool, Failure> {
        if let Some(coding) = self.coding {
            // RFC 9112 §6.3: "ought to be handled as an error".
            if self.length.is_some() {
                return Err(Failure::Malformed("Content-Length and Transfer-Encoding"));
            }
            // RFC 9112 §6.1: "MUST treat the message as if the framing is faulty".
            if self.http10 {
                return Err(Failure::Malformed("Transfer-Encoding in an HTTP/1.0 request"));
            }
            match coding {
                Coding::Chunked => self.state = State::ChunkSize,
                // RFC 9112 §6.1: "A server that receives a request message with a transfer coding it does not
                // understand SHOULD respond with 501 (Not Implemented)."
                Coding::Unknown => return Err(Failure::UnknownCoding),
                // RFC 9112 §6.3: "the server MUST respond with the 400 (Bad Request) status code and then close the
                // connection."
                Coding::Faulty => return Err(Failure::Malformed("Transfer-Encoding without one final chunked")),
            }
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
        self.line = Vec::new();
        self.state = State::Start;
        (self.head, self.lines) = (0, 0);
        self.empty = 0;
        self.length = None;
        self.coding = None;
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

/// RFC 9112 §3.2.4: whether what stands behind `OPTIONS` is an absolute form with "an empty path and no query component".
fn is_server(target: &[u8]) -> bool {
    let target = memchr(b' ', target).map_or(target, |space| &target[..space]);
    let authority = memmem::find(target, b"://").map(|at| &target[at + 3..]);
    authority.is_some_and(|authority| !authority.iter().any(|byte| matches!(byte, b'/' | b'?')))
}

/// What a `Transfer-Encoding` says. Empty list elements, which RFC 9110 §5.6.1 has a recipient ignore, are faulty here: to
/// some readers `chunked,` does not end with `chunked`.
fn coding(value: &[u8]) -> Coding {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Coding::Chunked;
    }
    let mut codings = value.rsplit(|byte| *byte == b',').map(trim_ows);
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let is_other = |coding: &[u8]| {
        let name = coding.split(|byte| *byte == b';').next().map(trim_ows);
        !is_chunked(coding) && name.is_some_and(|name| HeaderName::from_bytes(name).is_ok())
    };
    if codings.next().is_some_and(is_chunked) && codings.all(is_other) { Coding::Unknown } else { Coding::Faulty }
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

/// Lines of a trailer section: gRPC sends three.
pub const MAX_TRAILERS: usize = 100;
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
            "POST / HTTP/1.1\r\nContent-Length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\n\tX: a\r\n\r\n",
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
    fn what_is_not_one_final_chunked_is_faulty_and_other_codings_before_it_are_unknown() {
        let head = |lines: &str| feed(format!("POST / HTTP/1.1\r\n{lines}\r\n").as_bytes());
        for coding in ["gzip, chunked", "GZIP;q=1,chunked", "identity, chunked", "a, b ,\tChunked"] {
            assert_eq!(head(&format!("Transfer-Encoding: {coding}\r\n")), Err(Failure::UnknownCoding), "{coding}");
        }
        let faulty = Err(Failure::Malformed("Transfer-Encoding without one final chunked"));
        for coding in [
            "",
            ",",
            "chunked, gzip",
            "gzip",
            "identity",
            "chunked, chunked",
            "chunked, gzip, chunked",
            "chunked,",
            ",chunked",
            "gzip,,chunked",
            "gzip, chunked,",
            "xchunked",
            "chunkedx",
            "chunked;a=b",
            "\"chunked\"",
            "chunked chunked",
            "g zip, chunked",
            "\"gzip\", chunked",
            "\x0bchunked",
        ] {
            assert_eq!(head(&format!("Transfer-Encoding: {coding}\r\n")), faulty, "{coding}");
        }
        for lines in [
            "chunked\r\nTransfer-Encoding: chunked",
            "gzip\r\nTransfer-Encoding: chunked",
            "chunked\r\ntransfer-encoding:",
        ] {
            let twice = Err(Failure::Malformed("two Transfer-Encoding lines"));
            assert_eq!(head(&format!("Transfer-Encoding: {lines}\r\n")), twice, "{lines}");
        }
        for lines in ["chunked\r\n , gzip", "gzip,\r\n chunked", "\r\n chunked", "\r\n\tchunked", "gzip, chunked\r\n x"]
        {
            let folded = Err(Failure::Malformed("a folded header line"));
            assert_eq!(head(&format!("Transfer-Encoding: {lines}\r\n")), folded, "{lines}");
        }
    }

    #[test]
    fn chunk_sizes_are_hexadecimal_in_either_case_and_trailers_may_be_empty() {
        for (size, length) in [("f", 15), ("F", 15), ("1f", 31), ("fF", 255), ("A", 10)] {
            let request = format!(
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\n{}\r\n0\r\nT:\r\nU: \r\n\r\n",
                "x".repeat(length)
            );
            assert_eq!(feed(format!("{request}GET").as_bytes()), Ok(request.len()), "{size}");
        }
    }

    #[test]
    fn trailer_lines_are_counted() {
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n";
        let request = |lines: usize| format!("{chunked}{}\r\n", "T: v\r\n".repeat(lines));
        assert!(feed(request(MAX_TRAILERS).as_bytes()).is_ok());
        let too_many = Err(Failure::Malformed("too many trailer lines"));
        assert_eq!(feed(request(MAX_TRAILERS + 1).as_bytes()), too_many);
    }

    #[test]
    fn header_lines_are_counted() {
        let mut framing = RequestFraming::new(64 * 1024);
        let head = |lines: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(lines));
        assert!(framing.feed(head(MAX_FIELDS).as_bytes()).is_ok());
        assert_eq!(framing.feed(head(MAX_FIELDS + 1).as_bytes()), Err(Failure::TooManyHeaders));
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
    fn a_head_may_have_a_thousand_header_lines() {
        let with = |count: usize| {
            let bytes = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
            let mut framing = RequestFraming::new(64 * 1024);
            // Twice, and in two parts: each request has its own.
            framing.feed(bytes.as_bytes())?;
            let (first, rest) = bytes.as_bytes().split_at(bytes.len() / 2);
            framing.feed(first).and_then(|_| framing.feed(rest)).map(|_| framing.is_between_requests())
        };
        assert_eq!((with(999), with(MAX_FIELDS)), (Ok(true), Ok(true)));
        for count in [MAX_FIELDS + 1, MAX_FIELDS + 2, 5000] {
            assert_eq!(with(count), Err(Failure::TooManyHeaders), "{count}");
        }
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
