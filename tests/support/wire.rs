//! A client that sends exactly the bytes it is given and reads exactly one answer, and the reading of HTTP/1.1
//! messages that it shares with the app. It knows as much HTTP as that takes, strictly: what it can't read
//! fails the test.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::tls::Stream;

/// A field line's name and value.
pub type Field = (String, String);

/// One connection of a client.
pub struct Client {
    /// What is read from it, with what has been read and not yet used.
    pub input: Input,
}

/// An answer, whole.
#[derive(Clone, Debug)]
pub struct Answer {
    pub head: String,
    pub status: u16,
    pub fields: Vec<Field>,
    pub body: Vec<u8>,
    pub framing: Framing,
    pub trailers: Vec<Field>,
    pub interim: Vec<Self>,
}

/// How the length of a message body was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// It has none.
    Empty,
    /// `Content-Length`
    Length(u64),
    /// `Transfer-Encoding: chunked`
    Chunked,
    /// It ends with the connection.
    Close,
}

/// Why there is no answer, and what came in its place.
#[derive(Debug)]
pub struct Broken {
    /// What happened to the connection.
    pub why: ErrorKind,
    /// The answer's head, when that came.
    pub head: Option<String>,
    /// The part of the body (or of the head) that came.
    pub partial: Vec<u8>,
}

/// Sends `request` on a new connection and reads the answer.
pub fn ask(address: SocketAddr, request: impl AsRef<[u8]>) -> Answer {
    let mut client = Client::connect(address);
    client.send(request);
    client.answer()
}

/// A `GET` for `path` with `Host: host` on a new connection.
pub fn get(address: SocketAddr, host: &str, path: &str) -> Answer {
    ask(address, format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
}

impl Client {
    /// Connects; with TLS where hostward speaks it.
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect_timeout(&address, PATIENCE).unwrap())
    }

    /// Connects from `source`, an address of this machine.
    pub fn connect_from(source: IpAddr, address: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
        socket.connect_timeout(&address.into(), PATIENCE).unwrap();
        Self::over(socket.into())
    }

    /// Takes over a connected stream.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { input: Input::new(Stream::over(stream)) }
    }

    /// Connects without TLS, whatever is spoken there.
    pub fn plain(address: SocketAddr) -> Self {
        Self { input: Input::new(Stream::Plain(TcpStream::connect_timeout(&address, PATIENCE).unwrap())) }
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    /// Sends bytes to a hostward that may have had enough.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.input.stream.write_all(bytes.as_ref())
    }

    /// Sends a request and reads its answer.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.send(request);
        self.answer()
    }

    /// Reads one answer.
    pub fn answer(&mut self) -> Answer {
        self.try_answer().unwrap_or_else(|broken| panic!("no answer: {broken}"))
    }

    /// Reads one answer to a `HEAD`.
    pub fn answer_to_head(&mut self) -> Answer {
        self.read_answer(true).unwrap_or_else(|broken| panic!("no answer: {broken}"))
    }

    /// Reads one answer, or says what is wrong with it.
    pub fn try_answer(&mut self) -> Result<Answer, Broken> {
        self.read_answer(false)
    }

    /// Reads the head of an answer (a final one, or a 101) and leaves its body where it is.
    pub fn answer_head(&mut self) -> Answer {
        self.read_head().unwrap_or_else(|broken| panic!("no answer: {broken}"))
    }

    /// Ends this side of the connection.
    pub fn half_close(&mut self) {
        self.input.stream.half_close().unwrap();
    }

    /// Everything until the connection ends.
    pub fn rest(&mut self) -> Vec<u8> {
        self.input.rest().unwrap_or_else(|broken| panic!("the connection stays open: {broken}"))
    }

    /// Asserts that nothing more comes, and that the connection ends.
    pub fn assert_closed(&mut self) {
        let rest = self.rest();
        assert!(rest.is_empty(), "after the last answer: {}", text(&rest));
    }

    /// How the connection ends: `UnexpectedEof` for an end that the other side has said. What comes before is dropped.
    pub fn end(&mut self) -> ErrorKind {
        loop {
            match self.input.more() {
                Ok(()) => self.input.ahead.clear(),
                Err(broken) => return broken.why,
            }
        }
    }

    fn read_answer(&mut self, to_head: bool) -> Result<Answer, Broken> {
        let mut answer = self.read_head()?;
        if to_head || matches!(answer.status, 101 | 204 | 304) {
            answer.framing = Framing::Empty;
            return Ok(answer);
        }
        answer.framing = framing(&answer.fields).unwrap_or(Framing::Close);
        match self.input.body(answer.framing) {
            Ok((body, trailers)) => Ok(Answer { body, trailers, ..answer }),
            Err(broken) => Err(Broken { head: Some(answer.head), ..broken }),
        }
    }

    fn read_head(&mut self) -> Result<Answer, Broken> {
        let mut interim = Vec::new();
        loop {
            let head = self.input.head()?;
            let (line, fields) = parse_head(&head);
            let status = line
                .strip_prefix("HTTP/1.1 ")
                .or_else(|| line.strip_prefix("HTTP/1.0 "))
                .and_then(|rest| rest.get(..3))
                .and_then(|digits| digits.parse().ok())
                .unwrap_or_else(|| panic!("not a status line of HTTP/1: {line:?}"));
            let head = text(&head);
            let body = Vec::new();
            let answer = Answer { head, status, fields, body, framing: Framing::Empty, trailers: Vec::new(), interim };
            if (100..200).contains(&status) && status != 101 {
                let mut answer = answer;
                interim = std::mem::take(&mut answer.interim);
                interim.push(answer);
                continue;
            }
            return Ok(answer);
        }
    }
}

impl Answer {
    /// The value of the only field line with this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.fields, name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        text(&self.body)
    }

    /// Asserts the status, and shows the answer when it is another.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}{}", self.head, self.text());
        self
    }

    /// Whether the connection ends with this answer, by its own words.
    pub fn closes(&self) -> bool {
        self.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { why, head, partial } = self;
        let start = &partial[..partial.len().min(500)];
        write!(f, "{why}; head {head:?}; {} bytes: {}", partial.len(), text(start))
    }
}

/// The reading end of a connection.
pub struct Input {
    /// The connection.
    pub stream: Stream,
    /// What has been read and not yet used.
    pub ahead: Vec<u8>,
    /// The bound on every wait.
    pub patience: Duration,
}

impl Input {
    /// The reading end of `stream`.
    pub fn new(stream: Stream) -> Self {
        Self { stream, ahead: Vec::new(), patience: PATIENCE }
    }

    /// The bytes up to the first empty line, with it.
    pub fn head(&mut self) -> Result<Vec<u8>, Broken> {
        let mut searched = 0;
        loop {
            if let Some(end) = find(&self.ahead[searched..], b"\r\n\r\n") {
                return Ok(self.ahead.drain(..searched + end + 4).collect());
            }
            searched = self.ahead.len().saturating_sub(3);
            self.more()?;
        }
    }

    /// A message body and its trailer section.
    pub fn body(&mut self, framing: Framing) -> Result<(Vec<u8>, Vec<Field>), Broken> {
        match framing {
            Framing::Empty => Ok((Vec::new(), Vec::new())),
            Framing::Length(length) => Ok((self.exactly(usize::try_from(length).unwrap())?, Vec::new())),
            Framing::Close => Ok((self.rest()?, Vec::new())),
            Framing::Chunked => {
                let mut body = Vec::new();
                let failed = |body: &[u8], broken: Broken| Broken { partial: body.to_vec(), ..broken };
                while let Some(chunk) = self.chunk().map_err(|broken| failed(&body, broken))? {
                    body.extend(chunk);
                }
                let mut trailers = Vec::new();
                loop {
                    let line = self.text_line().map_err(|broken| failed(&body, broken))?;
                    if line.is_empty() {
                        return Ok((body, trailers));
                    }
                    trailers.push(parse_field(&line));
                }
            }
        }
    }

    /// The next chunk; none is the last.
    pub fn chunk(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        let line = self.text_line()?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("not a chunk size: {line:?}"));
        if size == 0 {
            return Ok(None);
        }
        let chunk = self.exactly(size)?;
        let end = self.exactly(2)?;
        assert_eq!(end, b"\r\n", "after a chunk of {size} bytes");
        Ok(Some(chunk))
    }

    /// So many bytes.
    pub fn exactly(&mut self, length: usize) -> Result<Vec<u8>, Broken> {
        while self.ahead.len() < length {
            self.more()?;
        }
        Ok(self.ahead.drain(..length).collect())
    }

    /// Everything until the other side ends the connection.
    pub fn rest(&mut self) -> Result<Vec<u8>, Broken> {
        loop {
            match self.more() {
                Ok(()) => {}
                Err(Broken { why: ErrorKind::TimedOut, partial, .. }) => {
                    return Err(Broken { why: ErrorKind::TimedOut, head: None, partial });
                }
                Err(Broken { partial, .. }) => {
                    self.ahead.clear();
                    return Ok(partial);
                }
            }
        }
    }

    fn text_line(&mut self) -> Result<String, Broken> {
        loop {
            if let Some(end) = find(&self.ahead, b"\r\n") {
                let line: Vec<u8> = self.ahead.drain(..end + 2).collect();
                return Ok(text(&line[..end]));
            }
            self.more()?;
        }
    }

    fn more(&mut self) -> Result<(), Broken> {
        let deadline = Instant::now() + self.patience;
        let why = loop {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                break ErrorKind::TimedOut;
            };
            let mut buffer = [0; 16 * 1024];
            let read = self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.read(&mut buffer));
            match read {
                Ok(0) => break ErrorKind::UnexpectedEof,
                Ok(length) => {
                    self.ahead.extend(&buffer[..length]);
                    return Ok(());
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                }
                Err(error) => break error.kind(),
            }
        };
        Err(Broken { why, head: None, partial: self.ahead.clone() })
    }
}

/// The first line and the field lines of a head.
pub fn parse_head(head: &[u8]) -> (String, Vec<Field>) {
    let head = text(head);
    let mut lines = head.trim_end_matches("\r\n").split("\r\n");
    let first = lines.next().unwrap_or_default().to_owned();
    (first, lines.map(parse_field).collect())
}

/// How the body after these fields is framed; `None` when they don't say.
pub fn framing(fields: &[Field]) -> Option<Framing> {
    let length = field(fields, "content-length");
    let coding = field(fields, "transfer-encoding");
    assert!(length.is_none() || coding.is_none(), "two framings: {fields:?}");
    if let Some(coding) = coding {
        assert_eq!(coding.to_ascii_lowercase(), "chunked");
        return Some(Framing::Chunked);
    }
    length.map(|length| Framing::Length(length.parse().unwrap_or_else(|_| panic!("Content-Length: {length}"))))
}

/// The value of the only field line with this name.
pub fn field<'a>(fields: &'a [Field], name: &str) -> Option<&'a str> {
    let mut values =
        fields.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str());
    let value = values.next();
    assert_eq!(values.next(), None, "a second {name} in {fields:?}");
    value
}

/// Bytes for a person's eyes.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn parse_field(line: &str) -> Field {
    let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("not a field line: {line:?}"));
    (name.to_owned(), value.trim_matches([' ', '\t']).to_owned())
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
