//! A strict reader of HTTP/1.1, written from RFC 9112 and RFC 9110 alone. It shares no code with hostward and no crate
//! with it either, so that the two can only agree where the standard makes them. Where the standard leaves a choice
//! ("MAY parse"), this reader refuses.

/// What stands at the start of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Read<T> {
    /// A whole message, and how many bytes it has.
    Whole(T, usize),
    /// The beginning of one.
    Torn,
    /// None.
    Bad(&'static str),
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// As it was written.
    pub method: Vec<u8>,
    /// As it was written.
    pub target: Vec<u8>,
    /// Of `HTTP/1.x`.
    pub minor: u8,
    /// Names in lower case, values without the white space around them, in their order.
    pub fields: Fields,
    /// Without its chunks.
    pub body: Vec<u8>,
    /// Likewise.
    pub trailers: Fields,
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub fields: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
    /// Whether the body lasts until the connection ends.
    pub until_close: bool,
}

pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// All values of a field.
pub fn all<'f>(fields: &'f Fields, name: &str) -> Vec<&'f [u8]> {
    fields.iter().filter(|(given, _)| given == name.as_bytes()).map(|(_, value)| value.as_slice()).collect()
}

impl Request {
    /// All values of a field.
    pub fn all(&self, name: &str) -> Vec<&[u8]> {
        all(&self.fields, name)
    }
}

/// Reads one request.
pub fn request(bytes: &[u8]) -> Read<Request> {
    let mut input = Input { bytes, at: 0 };
    match read_request(&mut input) {
        Ok(request) => Read::Whole(request, input.at),
        Err(Stop::Torn) => Read::Torn,
        Err(Stop::Bad(why)) => Read::Bad(why),
    }
}

/// Reads one response, final or interim. `ended` says that nothing follows these bytes; `bodiless` that it answers a
/// `HEAD`.
pub fn response(bytes: &[u8], ended: bool, bodiless: bool) -> Read<Response> {
    let mut input = Input { bytes, at: 0 };
    match read_response(&mut input, ended, bodiless) {
        Ok(response) => Read::Whole(response, input.at),
        Err(Stop::Torn) => Read::Torn,
        Err(Stop::Bad(why)) => Read::Bad(why),
    }
}

enum Stop {
    Torn,
    Bad(&'static str),
}

struct Input<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Input<'b> {
    /// RFC 9112 §2.2: lines end in CRLF. "A sender MUST NOT generate a bare CR"; a bare LF "MAY" be taken for an end.
    fn line(&mut self) -> Result<&'b [u8], Stop> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            // What can't become a good line isn't the beginning of one.
            return match rest.iter().position(|byte| *byte == b'\r') {
                Some(at) if at + 1 < rest.len() => Err(Stop::Bad("a bare CR")),
                _ => Err(Stop::Torn),
            };
        };
        let line = rest[..end].strip_suffix(b"\r").ok_or(Stop::Bad("a bare LF"))?;
        if line.contains(&b'\r') {
            return Err(Stop::Bad("a bare CR"));
        }
        self.at += end + 1;
        Ok(line)
    }

    fn take(&mut self, count: usize) -> Result<&'b [u8], Stop> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..count)).ok_or(Stop::Torn)?;
        self.at += count;
        Ok(taken)
    }

    fn fields(&mut self) -> Result<Fields, Stop> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            fields.push(field(line)?);
        }
    }
}

/// RFC 9112 §5: `field-line = field-name ":" OWS field-value OWS`.
fn field(line: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Stop> {
    if line[0] == b' ' || line[0] == b'\t' {
        return Err(Stop::Bad("obs-fold"));
    }
    let colon = line.iter().position(|byte| *byte == b':').ok_or(Stop::Bad("a field line without a colon"))?;
    let name = &line[..colon];
    if name.is_empty() || !name.iter().all(|byte| is_tchar(*byte)) {
        return Err(Stop::Bad("a field name that is no token"));
    }
    let mut value = &line[colon + 1..];
    while let Some((b' ' | b'\t', rest)) = value.split_first() {
        value = rest;
    }
    while let Some((b' ' | b'\t', rest)) = value.split_last() {
        value = rest;
    }
    // RFC 9110 §5.5: VCHAR, obs-text, SP and HTAB.
    if value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
        return Err(Stop::Bad("a control character in a field value"));
    }
    Ok((name.to_ascii_lowercase(), value.to_vec()))
}

/// RFC 9110 §5.6.2.
fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn read_request(input: &mut Input<'_>) -> Result<Request, Stop> {
    let mut line = input.line()?;
    // RFC 9112 §2.2: "SHOULD ignore at least one empty line (CRLF) received prior to the request-line."
    while line.is_empty() {
        line = input.line()?;
    }
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Stop::Bad("a request line that has not three words"));
    };
    if method.is_empty() || !method.iter().all(|byte| is_tchar(*byte)) {
        return Err(Stop::Bad("a method that is no token"));
    }
    // RFC 3986 has no bytes above 127; browsers and every server do.
    if target.is_empty() || target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f || *byte == b'#') {
        return Err(Stop::Bad("a target that is none"));
    }
    let minor = version_minor(version)?;
    let fields = input.fields()?;
    // RFC 9112 §6.3: no transfer coding and no length is no body.
    let framing = framing(&fields, minor)?;
    let (body, trailers) = match framing {
        Framing::None => (Vec::new(), Vec::new()),
        Framing::Length(length) => (input.take(length)?.to_vec(), Vec::new()),
        Framing::Chunked => chunks(input)?,
    };
    Ok(Request { method: method.to_vec(), target: target.to_vec(), minor, fields, body, trailers })
}

fn version_minor(version: &[u8]) -> Result<u8, Stop> {
    match version {
        b"HTTP/1.1" => Ok(1),
        b"HTTP/1.0" => Ok(0),
        _ => Err(Stop::Bad("another version")),
    }
}

enum Framing {
    None,
    Length(usize),
    Chunked,
}

/// RFC 9112 §6: one length, or one coding that is `chunked`, and never both.
fn framing(fields: &Fields, minor: u8) -> Result<Framing, Stop> {
    match (all(fields, "content-length").as_slice(), all(fields, "transfer-encoding").as_slice()) {
        ([], []) => Ok(Framing::None),
        ([length], []) => {
            if length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
                return Err(Stop::Bad("a Content-Length that is no number"));
            }
            let digits: String = length.iter().map(|byte| char::from(*byte)).collect();
            match digits.parse::<u64>() {
                // What doesn't fit here is never whole.
                Ok(length) => Ok(Framing::Length(usize::try_from(length).unwrap_or(usize::MAX))),
                Err(_) => Err(Stop::Bad("a Content-Length that overflows")),
            }
        }
        ([], [coding]) if minor == 1 && coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        ([], [_]) => Err(Stop::Bad("a coding other than chunked")),
        _ => Err(Stop::Bad("more than one way to find the end")),
    }
}

/// RFC 9112 §7.1.
fn chunks(input: &mut Input<'_>) -> Result<(Vec<u8>, Fields), Stop> {
    let mut body = Vec::new();
    loop {
        let line = input.line()?;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        if digits == 0 || digits > 16 {
            return Err(Stop::Bad("a chunk size that is no number"));
        }
        let extension = &line[digits..];
        // `chunk-ext = *( BWS ";" BWS chunk-ext-name … )`. What is in it nobody reads; that it begins as one counts.
        let blank = extension.iter().take_while(|byte| b" \t".contains(byte)).count();
        if !extension.is_empty() && extension.get(blank) != Some(&b';') {
            return Err(Stop::Bad("a chunk size with something behind it"));
        }
        if extension.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
            return Err(Stop::Bad("a control character in a chunk extension"));
        }
        let size = line[..digits].iter().fold(0_u64, |sum, digit| {
            let value = char::from(*digit).to_digit(16).unwrap_or_default();
            sum.wrapping_shl(4) | u64::from(value)
        });
        if size == 0 {
            return Ok((body, input.fields()?));
        }
        body.extend_from_slice(input.take(usize::try_from(size).unwrap_or(usize::MAX))?);
        match input.take(2)? {
            b"\r\n" => {}
            _ => return Err(Stop::Bad("a chunk that is longer than its size")),
        }
    }
}

fn read_response(input: &mut Input<'_>, ended: bool, bodiless: bool) -> Result<Response, Stop> {
    // RFC 9112 §4: `status-line = HTTP-version SP status-code SP [ reason-phrase ]`.
    let line = input.line()?;
    let (version, rest) = line.split_at_checked(9).ok_or(Stop::Bad("a status line that is too short"))?;
    let minor = version_minor(version.strip_suffix(b" ").ok_or(Stop::Bad("no space behind the version"))?)?;
    let (digits, reason) = rest.split_at_checked(3).ok_or(Stop::Bad("no status"))?;
    if !digits.iter().all(u8::is_ascii_digit) || !matches!(digits[0], b'1'..=b'9') {
        return Err(Stop::Bad("a status that is no number"));
    }
    let status = digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    if !reason.is_empty() && reason[0] != b' ' {
        return Err(Stop::Bad("no space behind the status"));
    }
    if reason.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
        return Err(Stop::Bad("a control character in the reason"));
    }
    let fields = input.fields()?;
    let mut response = Response { status, fields, body: Vec::new(), trailers: Vec::new(), until_close: false };
    if bodiless || status < 200 || status == 204 || status == 304 {
        // Not beyond doubt even where no body follows.
        if !matches!(framing(&response.fields, minor), Ok(_) | Err(Stop::Torn)) {
            return Err(Stop::Bad("more than one way to find the end"));
        }
        return Ok(response);
    }
    match framing(&response.fields, minor)? {
        Framing::Length(length) => response.body = input.take(length)?.to_vec(),
        Framing::Chunked => (response.body, response.trailers) = chunks(input)?,
        Framing::None => {
            // RFC 9112 §6.3: until the connection ends, so more may come as long as it hasn't.
            response.until_close = true;
            response.body = input.take(input.bytes.len() - input.at)?.to_vec();
            if !ended {
                return Err(Stop::Torn);
            }
        }
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_requests_are_read() {
        let text = b"\r\nPOST /a?b HTTP/1.1\r\nHost: a\r\nX-A:\t1 \r\nContent-Length: 2\r\n\r\nhiGET";
        let Read::Whole(read, length) = request(text) else { panic!("not read") };
        assert_eq!((read.body.as_slice(), read.target.as_slice(), length), (&b"hi"[..], &b"/a?b"[..], text.len() - 3));
        assert_eq!(read.all("x-a"), [b"1"]);
        let chunked = b"P / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n2 ;x\r\nhi\r\n00\r\nT: v\r\n\r\n";
        let Read::Whole(read, length) = request(chunked) else { panic!("not read") };
        assert_eq!((read.body.as_slice(), read.trailers.len(), length), (&b"hi"[..], 1, chunked.len()));
    }

    #[test]
    fn bad_requests_are_refused() {
        for text in [
            "GET / HTTP/1.1\n\r\n",
            "GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\0\r\n\r\n",
            "GET / HTTP/1.1\r\n A: b\r\n\r\n",
            "GET / HTTP/1.1\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\nA\r\n\r\n",
            "GET / HTTP/1.1\r\n: b\r\n\r\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET /#a HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.2\r\n\r\n",
            "G / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            "G / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx",
            "G / HTTP/1.1\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "G / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "G / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "G / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n",
            "G / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
            "G / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\r\n0\r\n\r\n",
        ] {
            assert!(matches!(request(text.as_bytes()), Read::Bad(_)), "{text:?}");
        }
        for text in ["", "GET", "GET / HTTP/1.1\r\n", "G / HTTP/1.1\r\nContent-Length: 2\r\n\r\nx"] {
            assert_eq!(request(text.as_bytes()), Read::Torn, "{text:?}");
        }
    }

    #[test]
    fn responses_are_read_to_their_ends() {
        let length = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP";
        assert!(matches!(response(length, true, false), Read::Whole(_, used) if used == length.len() - 4));
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
        assert!(matches!(response(head, true, true), Read::Whole(_, used) if used == head.len()));
        assert_eq!(response(head, true, false), Read::Torn);
        let close = b"HTTP/1.1 200 \r\n\r\nhi";
        assert!(matches!(response(close, true, false), Read::Whole(Response { until_close: true, .. }, _)));
        assert_eq!(response(close, false, false), Read::Torn);
        for text in ["HTTP/1.1 200 OK\nA: b\r\n\r\n", "HTTP/2 200 OK\r\n\r\n", "HTTP/1.1 2x0 OK\r\n\r\n"] {
            assert!(matches!(response(text.as_bytes(), true, false), Read::Bad(_)), "{text:?}");
        }
        let both = b"HTTP/1.1 304 N\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(matches!(response(both, true, false), Read::Bad(_)));
    }
}
