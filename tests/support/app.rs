//! The app behind hostward: it records every request that reaches it, byte for byte, and answers as the test
//! says, well or badly. Nothing of it is shared with the product.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;

use super::tls::Stream;
use super::wire::{Broken, Field, Framing, Input, field, framing, parse_head, text};
use super::{PATIENCE, eventually};

/// A running app. Dropping it ends it and its connections.
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// Which of the app's connections it came on, counted from 0.
    pub connection: usize,
    pub head: String,
    pub method: String,
    pub target: String,
    pub version: String,
    pub fields: Vec<Field>,
    pub framing: Framing,
    /// What has been read of it.
    pub body: Vec<u8>,
    pub trailers: Vec<Field>,
    /// Whether the body was read to its end.
    pub complete: bool,
}

/// One request, while the app deals with it.
pub struct Conversation<'a> {
    /// The request; its body is empty until [`Conversation::body`] has read it.
    pub request: Received,
    /// The connection, with what came after the head.
    pub input: &'a mut Input,
    shared: &'a Shared,
    number: usize,
}

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The next request may come.
    Keep,
    /// It is closed.
    Close,
    /// It is reset.
    Reset,
}

type Behaviour = Box<dyn Fn(&mut Conversation<'_>) -> Then + Send + Sync>;

struct Shared {
    behaviour: Behaviour,
    received: Mutex<Vec<Received>>,
    connections: AtomicUsize,
    open: Mutex<HashMap<usize, TcpStream>>,
    most_open: AtomicUsize,
    ended: AtomicBool,
}

impl App {
    /// An app that answers 200 and says what it received.
    pub fn echo() -> Self {
        Self::start(echo)
    }

    /// An app that behaves.
    pub fn start(behaviour: impl Fn(&mut Conversation<'_>) -> Then + Send + Sync + 'static) -> Self {
        Self::listen(SocketAddr::from(([127, 0, 0, 1], 0)), behaviour)
    }

    /// An app at an address that [`App::nowhere`] gave.
    pub fn listen(
        address: SocketAddr,
        behaviour: impl Fn(&mut Conversation<'_>) -> Then + Send + Sync + 'static,
    ) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&address.into()).unwrap();
        // Room for thousands at once: each has to wait for a thread.
        socket.listen(4096).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            behaviour: Box::new(behaviour),
            received: Mutex::default(),
            connections: AtomicUsize::new(0),
            open: Mutex::default(),
            most_open: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &accepting));
        Self { address, shared }
    }

    /// An address where nobody listens, and where nobody else's connection can come to be.
    pub fn nowhere() -> SocketAddr {
        static LAST: AtomicU8 = AtomicU8::new(0);
        let host = [127, 0, 7, LAST.fetch_add(1, Ordering::Relaxed) + 1];
        let listener = TcpListener::bind(SocketAddr::from((host, 0))).unwrap();
        listener.local_addr().unwrap()
    }

    /// The value of `HOSTWARD_UPSTREAM`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests have reached the app.
    pub fn count(&self) -> usize {
        self.shared.received.lock().unwrap().len()
    }

    /// How many connections have reached the app.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many connections were open at the same time, at most.
    pub fn most_open(&self) -> usize {
        self.shared.most_open.load(Ordering::SeqCst)
    }

    /// Waits until this many connections are open.
    pub fn wait_open(&self, count: usize) {
        eventually("that many connections of the app are open", || {
            (self.shared.open.lock().unwrap().len() == count).then_some(())
        });
    }

    /// What has reached the app.
    pub fn requests(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    /// The request that reached the app last.
    pub fn last(&self) -> Received {
        self.shared.received.lock().unwrap().last().cloned().expect("no request reached the app")
    }

    /// How many requests have reached the app with their whole body.
    pub fn complete(&self) -> usize {
        self.shared.received.lock().unwrap().iter().filter(|request| request.complete).count()
    }

    /// Waits until this many requests have reached the app.
    pub fn wait_count(&self, count: usize) {
        eventually("that many requests reach the app", || (self.count() >= count).then_some(()));
        assert_eq!(self.count(), count, "more requests than expected reached the app");
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which may have gone already.
        TcpStream::connect_timeout(&self.address, PATIENCE).ok();
        for stream in self.shared.open.lock().unwrap().values() {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

impl Received {
    /// The value of the only field line with this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.fields, name)
    }

    /// The values of all field lines with this name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| &**value).collect()
    }

    /// Asserts that these fields arrived and no others, in whatever order. The value `*` stands for any one.
    pub fn assert_fields(&self, expected: &[(&str, &str)]) {
        let mut got: Vec<(String, &str)> =
            self.fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), &**value)).collect();
        for (name, value) in expected {
            let found = got.iter().position(|(given, arrived)| given == name && (*value == "*" || arrived == value));
            let found = found.unwrap_or_else(|| panic!("no `{name}: {value}` in\n{}", self.head));
            got.remove(found);
        }
        assert!(got.is_empty(), "nobody expected {got:?} in\n{}", self.head);
    }
}

impl Conversation<'_> {
    /// Reads the body, records it, and gives it.
    pub fn body(&mut self) -> Result<Vec<u8>, Broken> {
        let read = self.input.body(self.request.framing);
        let mut received = self.shared.received.lock().unwrap();
        let record = &mut received[self.number];
        match read {
            Ok((body, trailers)) => {
                record.body.clone_from(&body);
                record.trailers = trailers;
                record.complete = true;
                Ok(body)
            }
            Err(broken) => {
                record.body.clone_from(&broken.partial);
                Err(broken)
            }
        }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.input.stream.write_all(bytes.as_ref())
    }

    /// Reads the body and sends `answer`; `Keep` if both went well.
    pub fn reply(&mut self, answer: impl AsRef<[u8]>) -> Then {
        if self.body().is_ok() && self.send(answer).is_ok() { Then::Keep } else { Then::Close }
    }
}

/// A behaviour: reads the body and sends what arrived, as JSON.
pub fn echo(talk: &mut Conversation<'_>) -> Then {
    let Ok(body) = talk.body() else { return Then::Close };
    let Received { method, target, fields, .. } = &talk.request;
    let echo = json!({ "method": method, "target": target, "fields": fields, "body": text(&body) }).to_string();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", echo.len());
    let content = if method == "HEAD" { "" } else { &echo };
    if talk.send(head + content).is_ok() { Then::Keep } else { Then::Close }
}

/// A behaviour: does nothing until the other side ends the connection.
pub fn hang(talk: &mut Conversation<'_>) -> Then {
    talk.input.rest().ok();
    Then::Close
}

/// The head and body of a plain answer.
pub fn answer(status: &str, fields: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming().map_while(Result::ok) {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        stream.set_nodelay(true).unwrap();
        let connection = shared.connections.fetch_add(1, Ordering::SeqCst);
        let mut open = shared.open.lock().unwrap();
        open.insert(connection, stream.try_clone().unwrap());
        shared.most_open.fetch_max(open.len(), Ordering::SeqCst);
        drop(open);
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            serve(stream, connection, &shared);
            shared.open.lock().unwrap().remove(&connection);
        });
    }
}

fn serve(stream: TcpStream, connection: usize, shared: &Shared) {
    let mut input = Input::new(Stream::Plain(stream));
    // A connection that hostward keeps idle is none of the app's business.
    input.patience = PATIENCE * 6;
    while let Ok(head) = input.head() {
        let (line, fields) = parse_head(&head);
        let mut words = line.split(' ').map(str::to_owned);
        let (method, target, version) = (words.next(), words.next(), words.next());
        let request = Received {
            connection,
            head: text(&head),
            method: method.unwrap_or_default(),
            target: target.unwrap_or_default(),
            version: version.unwrap_or_default(),
            framing: framing(&fields).unwrap_or(Framing::Empty),
            fields,
            body: Vec::new(),
            trailers: Vec::new(),
            complete: false,
        };
        let number = {
            let mut received = shared.received.lock().unwrap();
            received.push(request.clone());
            received.len() - 1
        };
        let mut talk = Conversation { request, input: &mut input, shared, number };
        match (shared.behaviour)(&mut talk) {
            Then::Keep => {}
            Then::Close => {
                input.stream.shutdown(Shutdown::Both).ok();
                return;
            }
            Then::Reset => {
                let socket = socket2::SockRef::from(input.stream.tcp());
                socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
                // The last handle resets it; the list's clone would keep it open.
                shared.open.lock().unwrap().remove(&connection);
                return;
            }
        }
    }
}
