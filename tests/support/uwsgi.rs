//! A uwsgi server that records every packet byte for byte and answers whatever bytes the test says. Each connection
//! is closed after one answer, as uWSGI does it. Nothing of it is shared with the product.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::{PATIENCE, eventually};

/// A running server. Dropping it ends it.
pub struct UwsgiApp {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Modifier 1, the size, modifier 2.
    pub header: [u8; 4],
    /// In their order.
    pub variables: Vec<(String, String)>,
    /// As long as `CONTENT_LENGTH` said; empty as long as it is unread.
    pub body: Vec<u8>,
}

/// What the server does with the connection once the request has been read.
type Behaviour = Box<dyn Fn(&Packet, &mut TcpStream) + Send + Sync>;

struct Shared {
    /// Whether the body is read before it behaves.
    reads: bool,
    behaviour: Behaviour,
    received: Mutex<Vec<Packet>>,
    open: AtomicUsize,
    ended: AtomicBool,
}

impl UwsgiApp {
    /// A server that sends `answer` to everybody.
    pub fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |_, stream| stream.write_all(&answer).unwrap_or_default())
    }

    /// A server that behaves, once it has read the body.
    pub fn start(behaviour: impl Fn(&Packet, &mut TcpStream) + Send + Sync + 'static) -> Self {
        Self::begin(true, behaviour)
    }

    /// A server that behaves, and reads the body itself if it wants to.
    pub fn unread(behaviour: impl Fn(&Packet, &mut TcpStream) + Send + Sync + 'static) -> Self {
        Self::begin(false, behaviour)
    }

    fn begin(reads: bool, behaviour: impl Fn(&Packet, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            reads,
            behaviour: Box::new(behaviour),
            received: Mutex::default(),
            open: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
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
        Self { address, shared }
    }

    /// The value of `HOSTWARD_UPSTREAM`.
    pub fn url(&self) -> String {
        format!("uwsgi://{}", self.address)
    }

    /// What has arrived whole.
    pub fn received(&self) -> Vec<Packet> {
        self.shared.received.lock().unwrap().clone()
    }

    /// Waits until no connection is open.
    pub fn wait_closed(&self) {
        eventually("every connection is closed", || (self.shared.open.load(Ordering::SeqCst) == 0).then_some(()));
    }
}

impl Drop for UwsgiApp {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        TcpStream::connect_timeout(&self.address, PATIENCE).ok();
    }
}

impl Packet {
    /// The value of the only variable of this name.
    pub fn value(&self, name: &str) -> Option<&str> {
        let mut values = self.variables.iter().filter(|(given, _)| given == name);
        let value = values.next();
        assert!(values.next().is_none(), "a second {name} in {:?}", self.variables);
        value.map(|(_, value)| &**value)
    }

    /// How many bytes follow it.
    pub fn length(&self) -> usize {
        let length = self.value("CONTENT_LENGTH").filter(|length| !length.is_empty());
        length.map_or(0, |length| length.parse().unwrap())
    }

    fn read(stream: &mut TcpStream) -> std::io::Result<Self> {
        let mut header = [0; 4];
        stream.read_exact(&mut header)?;
        let mut rest = vec![0; usize::from(u16::from_le_bytes([header[1], header[2]]))];
        stream.read_exact(&mut rest)?;
        let mut rest = &rest[..];
        let mut text = || {
            let (length, after) = rest.split_at(2);
            let (text, after) = after.split_at(usize::from(u16::from_le_bytes([length[0], length[1]])));
            rest = after;
            (String::from_utf8_lossy(text).into_owned(), rest.is_empty())
        };
        let mut variables = Vec::new();
        loop {
            let (name, _) = text();
            let (value, last) = text();
            variables.push((name, value));
            if last {
                break;
            }
        }
        Ok(Self { header, variables, body: Vec::new() })
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    shared.open.fetch_add(1, Ordering::SeqCst);
    if let Ok(packet) = read(&mut stream, shared.reads) {
        shared.received.lock().unwrap().push(packet.clone());
        (shared.behaviour)(&packet, &mut stream);
    }
    shared.open.fetch_sub(1, Ordering::SeqCst);
    stream.shutdown(Shutdown::Both).ok();
}

fn read(stream: &mut TcpStream, with_body: bool) -> std::io::Result<Packet> {
    let mut packet = Packet::read(stream)?;
    if with_body {
        packet.body = vec![0; packet.length()];
        stream.read_exact(&mut packet.body)?;
    }
    Ok(packet)
}
