//! The clients: what each kind does in one turn. They are good ones, bad ones, slow ones and ones that leave.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::runtime::Runtime;

use super::app::{HUGE, LARGE};
use super::load::{Fault, Got};
use crate::streaming::chunked;
use crate::support::PATIENCE;
use crate::support::http2;
use crate::support::wire::{Answer, Broken, Client};

/// A kind of client.
pub struct Kind {
    pub name: &'static str,
    /// How many of them there are.
    pub clients: usize,
    /// How often each has its turn, at the most.
    pub period: Duration,
    pub play: fn(&mut Sender) -> Result<Got, Fault>,
    /// The statuses that it should get; 0 is none.
    pub expected: &'static [u16],
}

/// One client.
pub struct Sender {
    address: SocketAddr,
    /// Which one of its kind.
    number: usize,
    pub turn: usize,
    kept: Option<Client>,
    /// When its tunnel was last seen to be open: an app that has gone since has cut it.
    pub tunnel_used: Option<Instant>,
    http2: Option<(Runtime, SendRequest<Bytes>)>,
}

const fn kind(
    name: &'static str,
    clients: usize,
    period: u64,
    play: fn(&mut Sender) -> Result<Got, Fault>,
    expected: &'static [u16],
) -> Kind {
    Kind { name, clients, period: Duration::from_millis(period), play, expected }
}

/// 400 turns a second, in all.
pub const KINDS: &[Kind] = &[
    kind("keep-alive, of all kinds", 10, 50, keep_alive, &[200]),
    kind("a new connection each", 5, 50, new_connection, &[200]),
    kind("HTTP/2", 2, 50, http2, &[200]),
    kind("WebSocket, a message", 2, 200, websocket, &[101]),
    kind("a load balancer's probe", 1, 1000, probe, &[200]),
    kind("a foreign host", 2, 100, foreign_host, &[421]),
    kind("malformed", 2, 200, malformed, &[400, 405, 421, 431, 501]),
    kind("left in the middle", 2, 100, leave, &[0]),
    kind("a head that drips", 1, 0, drip_head, &[408]),
    kind("a body that pauses", 1, 0, pausing_body, &[408]),
    kind("a body that drips and ends", 1, 1000, dripping_body, &[200]),
    kind("an answer that nobody reads", 1, 1000, slow_read, &[200]),
    kind("a long body, spooled", 1, 500, long_body, &[200]),
    kind("idle until it is closed", 1, 0, idle, &[200]),
];

impl Sender {
    pub fn new(address: SocketAddr, number: usize) -> Self {
        Self { address, number, turn: 0, kept: None, tunnel_used: None, http2: None }
    }

    fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// A target that is nobody else's.
    fn own(&self, path: &str) -> String {
        format!("/{path}/{}/{}", self.number, self.turn)
    }

    /// Asks on the connection that it keeps, or on a new one.
    fn ask_kept(&mut self, request: impl AsRef<[u8]>) -> Result<Answer, Fault> {
        let mut client = self.kept.take().unwrap_or_else(|| self.connect());
        // What hostward has closed shows when the answer is read.
        client.try_send(request).ok();
        let answer = client.try_answer().map_err(|why| broken(&why))?;
        if !answer.closes() {
            self.kept = Some(client);
        }
        Ok(answer)
    }
}

fn broken(broken: &Broken) -> Fault {
    let part = if broken.head.is_some() { "a part of an answer" } else { "no answer" };
    Fault::Broken(format!("{part}: {}", broken.why))
}

/// What an answer is, if it is the right one.
fn got(answer: &Answer, body: impl Fn(&[u8]) -> bool) -> Result<Got, Fault> {
    if answer.status == 200 && !body(&answer.body) {
        return Err(Fault::Wrong(format!("another answer: {}{}", answer.head, answer.text())));
    }
    let error = answer.field("proxy-status").and_then(|status| status.split("error=").nth(1)).map(str::to_owned);
    Ok(Got { status: answer.status, error })
}

fn head(method: &str, target: &str, fields: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: www.example.com\r\n{fields}\r\n")
}

fn keep_alive(sender: &mut Sender) -> Result<Got, Fault> {
    let own = sender.own("echo");
    let echoed = |length: usize| move |body: &[u8]| body == format!("{own} {length}").as_bytes();
    match sender.turn % 10 {
        0 => {
            let request = head("POST", &sender.own("echo"), "Content-Length: 2000\r\n") + &"a".repeat(2000);
            got(&sender.ask_kept(request)?, echoed(2000))
        }
        1 => {
            let request = head("POST", &sender.own("echo"), "Transfer-Encoding: chunked\r\n");
            let body = chunked(&[b'a'; 5000], 700);
            got(&sender.ask_kept([request.as_bytes(), &body].concat())?, echoed(5000))
        }
        2 => got(&sender.ask_kept(head("GET", "/large", ""))?, |body| body.len() == LARGE),
        3 => got(&sender.ask_kept(head("GET", "/chunked", "TE: trailers\r\n"))?, |body| body.len() == 100),
        4 => got(&sender.ask_kept(head("GET", "/slow", ""))?, |body| body == b"slow"),
        _ => got(&sender.ask_kept(head("GET", &sender.own("echo"), "Cookie: a=b; c=d\r\n"))?, echoed(0)),
    }
}

fn new_connection(sender: &mut Sender) -> Result<Got, Fault> {
    let own = sender.own("echo");
    let close = if sender.turn.is_multiple_of(2) { "Connection: close\r\n" } else { "" };
    let mut client = sender.connect();
    client.try_send(head("GET", &own, close)).ok();
    got(&client.try_answer().map_err(|why| broken(&why))?, |body| body == format!("{own} 0").as_bytes())
}

fn http2(sender: &mut Sender) -> Result<Got, Fault> {
    let (runtime, mut connection) = sender.http2.take().unwrap_or_else(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let connection = runtime.block_on(http2::connect(sender.address));
        (runtime, connection)
    });
    let own = sender.own("echo");
    let body = if sender.turn.is_multiple_of(3) { &[b'a'; 3000][..] } else { &[] };
    let method = if body.is_empty() { "GET" } else { "POST" };
    let request = Request::builder().method(method).uri(format!("http://www.example.com{own}")).body(()).unwrap();
    let asked =
        runtime.block_on(async { tokio::time::timeout(PATIENCE, http2::ask(&mut connection, request, body)).await });
    let answer = asked
        .map_err(|_| Fault::Wrong(format!("not within {PATIENCE:?}")))?
        .map_err(|error| Fault::Broken(format!("HTTP/2: {error}")))?;
    if answer.status == 200 && answer.body != format!("{own} {}", body.len()).as_bytes() {
        return Err(Fault::Wrong(format!("another answer: {answer:?}")));
    }
    if sender.turn % 20 != 19 {
        sender.http2 = Some((runtime, connection));
    }
    let error = answer.fields.get("proxy-status").and_then(|status| status.to_str().ok()?.split("error=").nth(1));
    Ok(Got { status: answer.status, error: error.map(str::to_owned) })
}

/// A message of a tunnel, which is opened before the first and closed after the tenth.
fn websocket(sender: &mut Sender) -> Result<Got, Fault> {
    let turn = sender.turn % 10;
    let mut client = if let Some(client) = sender.kept.take() {
        client
    } else {
        let mut client = sender.connect();
        let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        client.try_send(head("GET", "/chat", upgrade)).ok();
        let answer = client.try_answer().map_err(|why| broken(&why))?;
        if answer.status != 101 {
            return got(&answer, |_| true);
        }
        client
    };
    // From some bytes to more than one read's.
    let message = vec![b'a'; 10 << (turn * 2 % 15)];
    client.try_send(&message).ok();
    if client.input.exactly(message.len()).map_err(|why| broken(&why))? != message {
        return Err(Fault::Wrong("other bytes in a tunnel".into()));
    }
    match turn {
        9 if sender.turn % 20 == 9 => {
            client.half_close();
            match client.end() {
                ErrorKind::TimedOut => return Err(Fault::Wrong("a tunnel that stays open".into())),
                _ => drop(client),
            }
        }
        9 => client.input.stream.tcp().set_zero_linger(),
        _ => {
            sender.kept = Some(client);
            sender.tunnel_used = Some(Instant::now());
        }
    }
    Ok(Got { status: 101, error: None })
}

/// From a load balancer that names the task's address.
fn probe(sender: &mut Sender) -> Result<Got, Fault> {
    let mut client = sender.connect();
    client.try_send(format!("GET /echo HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", sender.address)).ok();
    got(&client.try_answer().map_err(|why| broken(&why))?, |body| body == b"/echo 0")
}

fn foreign_host(sender: &mut Sender) -> Result<Got, Fault> {
    let host = format!("host-{}.evil.example", sender.turn);
    got(&sender.ask_kept(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"))?, |_| true)
}

fn malformed(sender: &mut Sender) -> Result<Got, Fault> {
    let long = head("GET", "/", &format!("X-A: {}\r\n", "a".repeat(70 << 10)));
    let many = head("GET", "/", &"X-A: b\r\n".repeat(1001));
    let requests = [
        "GET / HTTP/1.1\nHost: www.example.com\n\n",
        "GET / HTTP/1.1\r\nHost: www.example.com\r\nHost: www.example.com\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: gzip\r\n\r\n",
        "CONNECT www.example.com:443 HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: www example com\r\n\r\n",
        "\0\u{1}\u{2}\r\n\r\n",
        &long,
        &many,
    ];
    let mut client = sender.connect();
    client.try_send(requests[sender.turn % requests.len()]).ok();
    got(&client.try_answer().map_err(|why| broken(&why))?, |_| true)
}

/// A client that resets its connection, each time further on.
#[expect(clippy::unnecessary_wraps, reason = "as every kind of client")]
fn leave(sender: &mut Sender) -> Result<Got, Fault> {
    let mut client = sender.connect();
    let requests = [
        String::new(),
        "GET / HTTP/1.1\r\nHos".into(),
        head("POST", "/echo", "Content-Length: 1000\r\n") + "abc",
        head("POST", "/echo", "Content-Length: 2000000\r\n") + &"a".repeat(500_000),
        head("GET", "/slow", ""),
        head("GET", "/large", ""),
    ];
    client.try_send(&requests[sender.turn % requests.len()]).ok();
    if sender.turn % requests.len() == 5 {
        client.input.exactly(1000).ok();
    }
    client.input.stream.tcp().set_zero_linger();
    Ok(Got { status: 0, error: None })
}

fn drip_head(sender: &mut Sender) -> Result<Got, Fault> {
    let mut client = sender.connect();
    client.input.patience = Duration::from_millis(200);
    client.try_send("GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: ").ok();
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        match client.try_answer() {
            Ok(answer) => return got(&answer, |_| true),
            Err(Broken { why: ErrorKind::TimedOut, .. }) => drop(client.try_send("a")),
            Err(other) => return Err(broken(&other)),
        }
    }
    Err(Fault::Wrong("a head may drip for ever".into()))
}

fn pausing_body(sender: &mut Sender) -> Result<Got, Fault> {
    let mut client = sender.connect();
    client.try_send(head("POST", "/echo", "Content-Length: 1000\r\n") + "abc").ok();
    got(&client.try_answer().map_err(|why| broken(&why))?, |_| true)
}

fn dripping_body(sender: &mut Sender) -> Result<Got, Fault> {
    let own = sender.own("echo");
    let mut client = sender.connect();
    client.try_send(head("POST", &own, "Content-Length: 1000\r\n")).ok();
    for _ in 0..20 {
        client.try_send([b'a'; 50]).ok();
        thread::sleep(Duration::from_millis(100));
    }
    got(&client.try_answer().map_err(|why| broken(&why))?, |body| body == format!("{own} 1000").as_bytes())
}

fn slow_read(sender: &mut Sender) -> Result<Got, Fault> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&sender.address.into()).unwrap();
    let mut client = Client::over(socket.into());
    client.try_send(head("GET", "/huge", "")).ok();
    let begun = Instant::now();
    // When hostward has had enough, or the app's answer has broken off and the rest waits to be read.
    while begun.elapsed() < Duration::from_secs(4) && client.input.stream.tcp().take_error().unwrap().is_none() {
        thread::sleep(Duration::from_millis(100));
    }
    let answer = client.try_answer();
    match answer {
        Ok(answer) if answer.body.len() == HUGE => Err(Fault::Wrong("a client may leave an answer for ever".into())),
        // What is here of it, before the cut.
        Ok(answer) => got(&answer, |_| true),
        Err(Broken { why: ErrorKind::TimedOut, .. }) => Err(Fault::Wrong("a slow reader is not cut".into())),
        Err(_) => Ok(Got { status: 200, error: None }),
    }
}

fn long_body(sender: &mut Sender) -> Result<Got, Fault> {
    let own = sender.own("echo");
    let length = 2 << 20;
    let body = vec![b'a'; length];
    let request = if sender.turn.is_multiple_of(2) {
        [head("POST", &own, &format!("Content-Length: {length}\r\n")).as_bytes(), &body].concat()
    } else {
        [head("POST", &own, "Transfer-Encoding: chunked\r\n").as_bytes(), &chunked(&body, 100_000)].concat()
    };
    got(&sender.ask_kept(request)?, |body| body == format!("{own} {length}").as_bytes())
}

fn idle(sender: &mut Sender) -> Result<Got, Fault> {
    let mut client = sender.connect();
    client.try_send(head("GET", "/echo", "")).ok();
    let answer = client.try_answer().map_err(|why| broken(&why))?;
    match client.end() {
        ErrorKind::UnexpectedEof => got(&answer, |body| body == b"/echo 0"),
        other => Err(Fault::Wrong(format!("an idle connection ends with {other}"))),
    }
}

/// Makes the end of a connection a reset.
trait Reset {
    fn set_zero_linger(&self);
}

impl Reset for std::net::TcpStream {
    fn set_zero_linger(&self) {
        socket2::SockRef::from(self).set_linger(Some(Duration::ZERO)).unwrap();
    }
}
