//! The client of the table: the same request and the same answer, in HTTP/1.1 byte by byte or in HTTP/2 by a library.
//! Both shake hands first where hostward speaks TLS.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::Request;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::runtime::{Builder, Runtime};

use crate::behaviours::app::{lines, lower, map, pairs};
use crate::support::http2;
use crate::support::wire::{self, Client, Field, Framing};

/// Where a client comes in, and how it speaks.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    pub listener: Listener,
    pub address: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    Http1,
    H2c,
    TlsHttp1,
    TlsH2,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: &'static str,
    pub target: String,
    pub host: String,
    pub fields: Vec<Field>,
    pub length: Length,
    pub body: Vec<u8>,
    pub trailers: Vec<Field>,
    pub version: &'static str,
}

/// What the client says about its body's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// That there is no body.
    None,
    Told(usize),
    /// That there is a body.
    Unknown,
}

/// An answer, as far as it came.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    /// With names in lower case.
    pub fields: Vec<Field>,
    pub body: Vec<u8>,
    pub trailers: Vec<Field>,
    pub interim: Vec<(u16, Vec<Field>)>,
    /// Why it isn't whole, as the client could tell.
    pub broken: Option<String>,
}

/// A request under way. What comes of it is collected in the answer.
pub struct Talk {
    wire: Wire,
    answer: Answer,
}

enum Wire {
    Http1 {
        client: Client,
        to_head: bool,
        chunked: bool,
        framing: Framing,
    },
    Http2 {
        response: Option<ResponseFuture>,
        sending: SendStream<Bytes>,
        body: Option<RecvStream>,
        _connection: SendRequest<Bytes>,
    },
}

/// A hang becomes a failure. Twenty ways are taken at once here, so that a busy machine needs a while for one transfer.
const BOUND: Duration = Duration::from_mins(1);

/// Where HTTP/2 connections are kept going while a row does something else.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    thread::spawn(|| RUNTIME.block_on(std::future::pending::<()>()));
    Builder::new_current_thread().enable_all().build().unwrap()
});

impl Listener {
    pub fn is_http2(self) -> bool {
        matches!(self, Self::H2c | Self::TlsH2)
    }

    pub fn is_tls(self) -> bool {
        matches!(self, Self::TlsHttp1 | Self::TlsH2)
    }
}

impl Door {
    /// Asks, and reads the answer to its end.
    pub fn ask(&self, ask: &Ask) -> Answer {
        let mut talk = self.open(ask);
        talk.send_rest(ask);
        talk.finish()
    }

    /// Sends the head of a request on a connection of its own.
    pub fn open(&self, ask: &Ask) -> Talk {
        self.open_over(ask, Client::connect)
    }

    /// The same, and next to nothing of the answer is taken before it is read.
    pub fn open_slow(&self, ask: &Ask) -> Talk {
        // HTTP/2 has its window of 64 KiB.
        self.open_over(ask, |address| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            socket.connect(&address.into()).unwrap();
            Client::over(socket.into())
        })
    }

    fn open_over(&self, ask: &Ask, connect: impl FnOnce(SocketAddr) -> Client) -> Talk {
        let wire = if self.listener.is_http2() {
            let ended = ask.length == Length::None;
            run(async {
                let mut connection = http2::connect(self.address).await;
                let (response, sending) = connection.send_request(ask.http2(), ended).unwrap();
                Wire::Http2 { response: Some(response), sending, body: None, _connection: connection }
            })
        } else {
            let mut client = connect(self.address);
            client.input.patience = BOUND;
            client.send(ask.http1());
            let chunked = ask.length == Length::Unknown;
            Wire::Http1 { client, to_head: ask.method == "HEAD", chunked, framing: Framing::Empty }
        };
        Talk { wire, answer: Answer::default() }
    }
}

impl Ask {
    /// A further field.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// A body, with its length told.
    pub fn body(self, body: &[u8]) -> Self {
        Self { body: body.to_vec(), length: Length::Told(body.len()), ..self }
    }

    /// A body that ends when it ends.
    pub fn unknown(self, body: &[u8]) -> Self {
        Self { body: body.to_vec(), length: Length::Unknown, ..self }
    }

    /// As a client of HTTP/1.0.
    pub fn old(self) -> Self {
        Self { version: "HTTP/1.0", ..self }
    }

    pub fn http1(&self) -> String {
        let Self { method, target, host, version, .. } = self;
        let framing = match self.length {
            Length::None => String::new(),
            Length::Told(length) => format!("Content-Length: {length}\r\n"),
            Length::Unknown => "Transfer-Encoding: chunked\r\n".into(),
        };
        let fields = lines(&self.fields);
        format!("{method} {target} {version}\r\nHost: {host}\r\n{fields}{framing}\r\n")
    }

    fn http2(&self) -> Request<()> {
        let uri = format!("http://{}{}", self.host, self.target);
        let mut request = Request::builder().method(self.method).uri(uri).body(()).unwrap();
        request.headers_mut().extend(map(&self.fields));
        if let Length::Told(length) = self.length {
            request.headers_mut().insert("content-length", length.into());
        }
        request
    }
}

impl Answer {
    /// The value of the only field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        wire::field(&self.fields, name)
    }

    /// The values of all fields of this name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(given, _)| given == name).map(|(_, value)| value.as_str()).collect()
    }

    pub fn text(&self) -> String {
        wire::text(&self.body)
    }
}

impl Talk {
    /// Sends a part of the body, to a hostward that may have answered and had enough.
    pub fn send(&mut self, part: &[u8]) {
        match &mut self.wire {
            Wire::Http1 { client, chunked: true, .. } => {
                client.try_send([format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat()).ok();
            }
            Wire::Http1 { client, .. } => drop(client.try_send(part)),
            Wire::Http2 { sending, .. } => drop(sending.send_data(Bytes::copy_from_slice(part), false)),
        }
    }

    /// Ends the body.
    pub fn end(&mut self, trailers: &[Field]) {
        match &mut self.wire {
            Wire::Http1 { client, chunked: true, .. } => {
                client.try_send(format!("0\r\n{}\r\n", lines(trailers))).ok();
            }
            Wire::Http1 { .. } => {}
            Wire::Http2 { sending, .. } if trailers.is_empty() => drop(sending.send_data(Bytes::new(), true)),
            Wire::Http2 { sending, .. } => drop(sending.send_trailers(map(trailers))),
        }
    }

    /// Sends the body, if there is one, and ends it.
    pub fn send_rest(&mut self, ask: &Ask) {
        if ask.length == Length::None {
            return;
        }
        for part in ask.body.chunks(300_000) {
            self.send(part);
        }
        self.end(&ask.trailers);
    }

    /// Waits for an interim answer.
    pub fn interim(&mut self) -> u16 {
        let interim = match &mut self.wire {
            Wire::Http1 { client, .. } => {
                let (line, fields) = wire::parse_head(
                    &client.input.head().unwrap_or_else(|broken| panic!("no interim answer: {broken}")),
                );
                (line[9..12].parse().unwrap(), lower(fields))
            }
            Wire::Http2 { response, .. } => {
                let response = response.as_mut().unwrap();
                let interim = run(std::future::poll_fn(|cx| response.poll_informational(cx))).unwrap().unwrap();
                (interim.status().as_u16(), pairs(interim.headers()))
            }
        };
        self.answer.interim.push(interim);
        self.answer.interim.last().unwrap().0
    }

    /// Waits for the head of the answer.
    pub fn head(&mut self) -> &Answer {
        let Self { wire, answer } = self;
        match wire {
            Wire::Http1 { client, to_head, framing, .. } => {
                let head = client.answer_head();
                (answer.status, answer.fields) = (head.status, lower(head.fields));
                answer.interim.extend(head.interim.into_iter().map(|one| (one.status, lower(one.fields))));
                let bodiless = *to_head || matches!(answer.status, 101 | 204 | 304);
                let told = wire::framing(&answer.fields).unwrap_or(Framing::Close);
                *framing = if bodiless { Framing::Empty } else { told };
            }
            Wire::Http2 { response, body, .. } => {
                let mut response = response.take().unwrap();
                let (interim, response) = run(async {
                    let mut interim = Vec::new();
                    while let Some(one) = std::future::poll_fn(|cx| response.poll_informational(cx)).await {
                        let Ok(one) = one else { break };
                        interim.push((one.status().as_u16(), pairs(one.headers())));
                    }
                    (interim, response.await)
                });
                answer.interim.extend(interim);
                match response {
                    Ok(response) => {
                        (answer.status, answer.fields) = (response.status().as_u16(), pairs(response.headers()));
                        *body = Some(response.into_body());
                    }
                    Err(error) => answer.broken = Some(error.to_string()),
                }
            }
        }
        answer
    }

    /// Waits for a next part of the answer's body.
    pub fn part(&mut self, length: usize) -> Vec<u8> {
        let from = self.answer.body.len();
        while self.answer.body.len() < from + length {
            let more = match &mut self.wire {
                Wire::Http1 { client, framing: Framing::Chunked, .. } => {
                    client.input.chunk().unwrap_or_else(|broken| panic!("no chunk: {broken}")).expect("no end")
                }
                Wire::Http1 { client, framing, .. } => {
                    if let Framing::Length(left) = framing {
                        *left -= length as u64;
                    }
                    client.input.exactly(length).unwrap_or_else(|broken| panic!("no {length} bytes: {broken}"))
                }
                Wire::Http2 { body, .. } => {
                    let body = body.as_mut().unwrap();
                    let data = run(body.data()).expect("no end").unwrap();
                    body.flow_control().release_capacity(data.len()).unwrap();
                    data.to_vec()
                }
            };
            self.answer.body.extend(more);
        }
        self.answer.body[from..].to_vec()
    }

    /// Reads the answer to its end, or as far as it comes.
    pub fn finish(mut self) -> Answer {
        self.read();
        self.answer
    }

    /// The same, and asks for something else on the same connection; nothing when that has ended.
    pub fn again(mut self, ask: &Ask) -> (Answer, Option<Answer>) {
        self.read();
        let Wire::Http1 { mut client, .. } = self.wire else { panic!("a connection of HTTP/2 is not used so") };
        if client.try_send(ask.http1()).is_err() {
            return (self.answer, None);
        }
        client.input.patience = Duration::from_secs(5);
        match client.try_answer() {
            Ok(answer) => {
                let (fields, status, body) = (lower(answer.fields), answer.status, answer.body);
                (self.answer, Some(Answer { status, fields, body, ..Answer::default() }))
            }
            Err(broken) => {
                assert_ne!(broken.why, std::io::ErrorKind::TimedOut, "neither an end nor an answer");
                (self.answer, None)
            }
        }
    }

    fn read(&mut self) {
        if self.answer.status == 0 {
            self.head();
        }
        let Self { wire, answer } = self;
        let outcome = match wire {
            Wire::Http1 { client, framing, .. } => client
                .input
                .body(*framing)
                .map(|(body, trailers)| (body, lower(trailers)))
                .map_err(|broken| (broken.partial, format!("{:?}", broken.why))),
            Wire::Http2 { body, .. } => {
                let Some(stream) = body else { return };
                run(async {
                    let mut body = Vec::new();
                    while let Some(data) = stream.data().await {
                        match data {
                            Ok(data) => {
                                stream.flow_control().release_capacity(data.len()).ok();
                                body.extend_from_slice(&data);
                            }
                            Err(error) => return Err((body, error.to_string())),
                        }
                    }
                    match stream.trailers().await {
                        Ok(trailers) => Ok((body, pairs(&trailers.unwrap_or_default()))),
                        Err(error) => Err((body, error.to_string())),
                    }
                })
            }
        };
        match outcome {
            Ok((body, trailers)) => {
                answer.body.extend(body);
                answer.trailers = trailers;
            }
            Err((body, why)) => {
                answer.body.extend(body);
                answer.broken = Some(why);
            }
        }
    }

    /// What the connection of HTTP/1.1 has become.
    pub fn tunnel(&mut self) -> &mut Client {
        match &mut self.wire {
            Wire::Http1 { client, .. } => client,
            Wire::Http2 { .. } => panic!("a stream is no tunnel"),
        }
    }

    /// Leaves, in a way that can't be mistaken for the end of what the client has to say.
    pub fn abort(self) {
        match self.wire {
            Wire::Http1 { client, .. } => {
                SockRef::from(client.input.stream.tcp()).set_linger(Some(Duration::ZERO)).unwrap();
            }
            Wire::Http2 { mut sending, .. } => sending.send_reset(Reason::CANCEL),
        }
    }

    /// Ends what the client has to say, too early.
    pub fn stop_short(&mut self) {
        match &mut self.wire {
            Wire::Http1 { client, .. } => client.half_close(),
            Wire::Http2 { .. } => panic!("a library doesn't do that"),
        }
    }
}

fn run<T>(what: impl Future<Output = T>) -> T {
    RUNTIME
        .block_on(async { tokio::time::timeout(BOUND, what).await })
        .unwrap_or_else(|_| panic!("not within {BOUND:?}"))
}
