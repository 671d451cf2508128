//! HTTP/2 frame by frame, for what no client library sends: whatever the test says, right or wrong.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use super::PATIENCE;
use super::tls::Stream;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const ACK: u8 = 1;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// RFC 9113 §7: what a flood is answered with.
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// A client's connection; with TLS where hostward speaks it.
pub struct Frames {
    pub stream: Stream,
}

/// A frame that has come.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// What a stream or its connection ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this status.
    Answer(u16),
    /// The stream is reset with this code.
    Reset(u32),
    /// The connection ends with this code.
    GoAway(u32),
    /// The connection ends without a word.
    Closed,
}

impl Frames {
    /// A connection that has sent nothing.
    pub fn silent(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: Stream::offering(stream, b"h2") }
    }

    /// A connection that has begun as every one does, with these settings.
    pub fn connect(address: SocketAddr, settings: &[u8]) -> Self {
        let Self { stream } = Self::silent(address);
        Self::over(stream, settings)
    }

    /// Begins as every connection does, on this one.
    pub fn over(stream: Stream, settings: &[u8]) -> Self {
        let mut frames = Self { stream };
        frames.stream.write_all(PREFACE).unwrap();
        frames.send(SETTINGS, 0, 0, settings).unwrap();
        frames
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.stream.write_all(&frame(kind, flags, stream, payload))
    }

    /// A request head.
    pub fn ask(&mut self, stream: u32, flags: u8, fields: &[(&str, &str)]) {
        self.send(HEADERS, END_HEADERS | flags, stream, &block(fields)).unwrap();
    }

    /// The next frame; `None` at the connection's end.
    pub fn next(&mut self) -> Option<Frame> {
        match self.read() {
            Ok(frame) => Some(frame),
            Err(error) => {
                assert!(error.kind() != io::ErrorKind::WouldBlock, "nothing came within {PATIENCE:?}");
                None
            }
        }
    }

    /// The next frame; `None` at the connection's end, or when nothing comes in time.
    pub fn try_next(&mut self) -> Option<Frame> {
        self.read().ok()
    }

    /// The next frame, or how the connection ends: `UnexpectedEof` for an end that the other side has said.
    pub fn read(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head)?;
        let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        self.stream.read_exact(&mut payload)?;
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Reads until the stream or the connection has an end. A response's body is left where it is.
    pub fn outcome(&mut self, stream: u32) -> Outcome {
        while let Some(frame) = self.next() {
            match frame.kind {
                HEADERS if frame.stream == stream => match status(&frame.payload) {
                    100..200 => {}
                    status => return Outcome::Answer(status),
                },
                RST_STREAM if frame.stream == stream => return Outcome::Reset(code(&frame.payload)),
                GOAWAY => return Outcome::GoAway(code(&frame.payload[4..])),
                _ => {}
            }
        }
        Outcome::Closed
    }

    /// Reads to the connection's end. The code of its GOAWAY, if there was one.
    pub fn farewell(&mut self) -> Option<u32> {
        let mut last = None;
        while let Some(frame) = self.next() {
            if frame.kind == GOAWAY {
                last = Some(code(&frame.payload[4..]));
            }
        }
        last
    }
}

/// An app, frame by frame. `behaviour` gets each connection after its preface, and has to begin with SETTINGS.
pub fn serve(behaviour: impl Fn(Frames) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let behaviour = Arc::new(behaviour);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let behaviour = Arc::clone(&behaviour);
            thread::spawn(move || {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_nodelay(true).unwrap();
                let mut frames = Frames { stream: Stream::Plain(stream) };
                if frames.stream.read_exact(&mut [0; PREFACE.len()]).is_ok() {
                    behaviour(frames);
                }
            });
        }
    });
    address
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block of literals: RFC 7541 §6.2.2, which changes no table. One `char` of a value is one byte.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            let bytes: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
            // RFC 7541 §5.1 with a prefix of seven bits.
            let mut length = bytes.len();
            if length < 127 {
                block.push(u8::try_from(length).unwrap());
            } else {
                block.push(127);
                length -= 127;
                while length >= 128 {
                    block.push(u8::try_from(length % 128 + 128).unwrap());
                    length /= 128;
                }
                block.push(u8::try_from(length).unwrap());
            }
            block.extend(bytes);
        }
    }
    block
}

/// The status at the start of the first header block of a connection: indexed, or a literal of three digits.
fn status(block: &[u8]) -> u16 {
    match block {
        [0x88, ..] => 200,
        [0x89, ..] => 204,
        [0x8a, ..] => 206,
        [0x8b, ..] => 304,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        [0x8e, ..] => 500,
        [0x48 | 0x08, length, digits @ ..] if length & 0x80 != 0 => huffman(&digits[..usize::from(length & 0x7f)]),
        [0x48 | 0x08, 3, digits @ ..] => std::str::from_utf8(&digits[..3]).unwrap().parse().unwrap(),
        _ => panic!("no status in {block:x?}"),
    }
}

/// Three digits in the code of RFC 7541, appendix B: 0, 1 and 2 have five bits, the others six.
fn huffman(bytes: &[u8]) -> u16 {
    let mut bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1)));
    let mut number = 0;
    for _ in 0..3 {
        let five = (0..5).fold(0, |code, _| code << 1 | bits.next().unwrap());
        let digit = if five < 3 { five } else { (five << 1 | bits.next().unwrap()) - 0b01_1001 + 3 };
        number = number * 10 + digit;
    }
    number
}

fn code(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}
