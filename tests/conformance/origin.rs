//! The app of the conformance suite: it keeps every byte that reaches it, cuts requests apart with a reader of its own
//! that forgives nothing, and answers each one; `/case` with the bytes that a case says.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::support::uwsgi::{Packet, UwsgiApp};
use crate::support::{PATIENCE, eventually};

/// A running app.
pub enum Origin {
    Http { address: SocketAddr, shared: Arc<Shared> },
    Uwsgi { app: UwsgiApp, shared: Arc<Shared> },
}

/// What reached the app since it was asked last.
pub struct Arrived {
    /// Whole requests, as they came.
    pub requests: Vec<Vec<u8>>,
    /// The same in uwsgi.
    pub packets: Vec<Packet>,
    /// All bytes, also those of no whole request; in uwsgi, the requests.
    pub bytes: usize,
}

/// The answer to `/case`.
#[derive(Clone, Default)]
pub struct Script {
    /// What is sent, piece by piece.
    pub pieces: Vec<Vec<u8>>,
    /// Whether the connection stays open behind it.
    pub keep: bool,
}

#[derive(Default)]
pub struct Shared {
    script: Mutex<Script>,
    /// Whether the last script has been sent to its end, or as far as that went.
    said: AtomicBool,
    requests: Mutex<Vec<Vec<u8>>>,
    packets: Mutex<Vec<Packet>>,
    bytes: Mutex<usize>,
    smuggled: AtomicUsize,
    ended: AtomicBool,
}

impl Origin {
    pub fn http() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                thread::spawn(move || serve(stream, &shared));
            }
        });
        Self::Http { address, shared }
    }

    pub fn uwsgi() -> Self {
        let shared = Arc::<Shared>::default();
        let answering = Arc::clone(&shared);
        let app = UwsgiApp::start(move |packet, stream| {
            let target = packet.value("REQUEST_URI").unwrap_or_default();
            let head = packet.value("REQUEST_METHOD") == Some("HEAD");
            answering.packets.lock().unwrap().push(packet.clone());
            *answering.bytes.lock().unwrap() += 1;
            answer(stream, target, head, &answering);
        });
        Self::Uwsgi { app, shared }
    }

    /// The value of `HOSTWARD_UPSTREAM`.
    pub fn url(&self) -> String {
        match self {
            Self::Http { address, .. } => format!("http://{address}"),
            Self::Uwsgi { app, .. } => app.url(),
        }
    }

    /// What the next `/case` is answered.
    pub fn say(&self, script: Script) {
        let (Self::Http { shared, .. } | Self::Uwsgi { shared, .. }) = self;
        *shared.script.lock().unwrap() = script;
        shared.said.store(false, Ordering::SeqCst);
    }

    /// How many requests have come that are no requests.
    pub fn smuggled(&self) -> usize {
        let (Self::Http { shared, .. } | Self::Uwsgi { shared, .. }) = self;
        shared.smuggled.load(Ordering::SeqCst)
    }

    pub fn take(&self) -> Arrived {
        let (Self::Http { shared, .. } | Self::Uwsgi { shared, .. }) = self;
        Arrived {
            requests: std::mem::take(&mut *shared.requests.lock().unwrap()),
            packets: std::mem::take(&mut *shared.packets.lock().unwrap()),
            bytes: std::mem::take(&mut *shared.bytes.lock().unwrap()),
        }
    }

    /// Waits until the script has been sent. Whoever asks then must not get what is left of it; what comes later
    /// than the next request, nobody could tell from its answer.
    pub fn wait_said(&self) {
        let (Self::Http { shared, .. } | Self::Uwsgi { shared, .. }) = self;
        eventually("the app has sent its answer", || shared.said.load(Ordering::SeqCst).then_some(()));
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Self::Http { address, shared } = self {
            shared.ended.store(true, Ordering::SeqCst);
            TcpStream::connect_timeout(address, PATIENCE).ok();
        }
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) {
    stream.set_nodelay(true).unwrap();
    let mut input = Vec::new();
    while let Some(request) = next(&mut stream, &mut input, shared) {
        let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line).into_owned();
        let target = line.split(' ').nth(1).unwrap_or_default();
        shared.requests.lock().unwrap().push(request.clone());
        if !answer(&mut stream, target, line.starts_with("HEAD "), shared) {
            break;
        }
    }
    stream.shutdown(Shutdown::Both).ok();
}

/// Answers; true when the connection stays open.
fn answer(stream: &mut TcpStream, target: &str, head: bool, shared: &Shared) -> bool {
    if target == "/smuggled" {
        shared.smuggled.fetch_add(1, Ordering::SeqCst);
    }
    if target != "/case" {
        let body = if head { "" } else { target };
        let length = target.len();
        return write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").is_ok();
    }
    let script = shared.script.lock().unwrap().clone();
    let sent = send(stream, &script.pieces);
    shared.said.store(true, Ordering::SeqCst);
    sent && script.keep
}

/// Sends pieces so that the other side has a chance to read each alone. What comes of it is the same if it doesn't.
pub fn send(stream: &mut impl Write, pieces: &[Vec<u8>]) -> bool {
    for (number, piece) in pieces.iter().enumerate() {
        if number > 0 {
            thread::sleep(PACE);
        }
        if stream.write_all(piece).is_err() {
            return false;
        }
    }
    true
}

/// The next whole request.
fn next(stream: &mut TcpStream, input: &mut Vec<u8>, shared: &Shared) -> Option<Vec<u8>> {
    loop {
        match end(input) {
            Ok(end) => return Some(input.drain(..end).collect()),
            Err(Not::Whole) => {}
            Err(Not::Strict) => {
                // Shown with the requests, where nobody expects it.
                shared.requests.lock().unwrap().push(std::mem::take(input));
                return None;
            }
        }
        let mut buffer = [0; 16 * 1024];
        let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
        *shared.bytes.lock().unwrap() += count;
        input.extend(&buffer[..count]);
    }
}

/// Why bytes don't begin with a request.
enum Not {
    /// The rest of it has yet to come.
    Whole,
    /// hostward would never write that.
    Strict,
}

/// Where the first request ends.
fn end(input: &[u8]) -> Result<usize, Not> {
    let head = input.windows(4).position(|window| window == b"\r\n\r\n").ok_or(Not::Whole)?;
    let (mut length, mut chunked) = (None, false);
    for line in split(&input[..head]).skip(1) {
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Not::Strict)?;
        let value = std::str::from_utf8(&line[colon + 1..]).map(str::trim);
        match &line[..colon].to_ascii_lowercase()[..] {
            b"content-length" if length.is_none() => length = value.ok().map(str::parse::<usize>),
            b"transfer-encoding" if !chunked && value == Ok("chunked") => chunked = true,
            b"content-length" | b"transfer-encoding" => return Err(Not::Strict),
            _ => {}
        }
    }
    let mut at = head + 4;
    match length {
        Some(_) if chunked => return Err(Not::Strict),
        Some(length) => at += length.map_err(|_| Not::Strict)?,
        None => {}
    }
    let until = |text: &[u8], at: usize| {
        let found = input[at..].windows(text.len()).position(|window| window == text);
        found.map(|found| at + found).ok_or(Not::Whole)
    };
    if !chunked {
        return if input.len() < at { Err(Not::Whole) } else { Ok(at) };
    }
    loop {
        let line = until(b"\r\n", at)?;
        let size = std::str::from_utf8(&input[at..line]).map_err(|_| Not::Strict)?;
        let size = usize::from_str_radix(size, 16).map_err(|_| Not::Strict)?;
        if size == 0 {
            // The last chunk's own line end begins the empty line, if there are no trailers.
            return Ok(until(b"\r\n\r\n", line)? + 4);
        }
        at = line + 2 + size;
        match input.get(at..at + 2) {
            None => return Err(Not::Whole),
            Some(b"\r\n") => at += 2,
            Some(_) => return Err(Not::Strict),
        }
    }
}

/// The lines of a head.
pub fn split(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// Between two pieces.
const PACE: Duration = Duration::from_micros(300);
