//! HTTP/2 as a library speaks it: a client, and an app that answers as the test says. Each has a runtime of its
//! own, so that tests stay plain functions.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;

use super::{PATIENCE, eventually, tls};

/// A response, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub fields: HeaderMap,
    pub body: Vec<u8>,
}

/// Runs to the end, within [`PATIENCE`].
pub fn run<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // What has been spawned may hold a connection open.
    let outcome = runtime.block_on(async { tokio::time::timeout(PATIENCE, what).await });
    runtime.shutdown_background();
    outcome.unwrap_or_else(|_| panic!("not within {PATIENCE:?}"))
}

/// Asks again and again until it is so, and lets the connections' tasks run meanwhile.
pub async fn until(mut so: impl FnMut() -> bool) {
    while !so() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A client's connection, on the runtime of the caller; with TLS where hostward speaks it.
pub async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    if !tls::is_spoken_at(address) {
        return begin(stream).await;
    }
    let name = ServerName::try_from("www.example.com").unwrap();
    let stream = TlsConnector::from(tls::config(&[b"h2"])).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    begin(stream).await
}

async fn begin(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    sender.ready().await.unwrap()
}

/// A `GET` of the allowed host.
pub fn get(path: &str) -> Request<()> {
    Request::get(format!("http://www.example.com{path}")).body(()).unwrap()
}

/// Sends a request with a body, and reads the answer.
pub async fn ask(sender: &mut SendRequest<Bytes>, request: Request<()>, body: &[u8]) -> Result<Answer, h2::Error> {
    let (response, mut stream) = sender.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        stream.send_data(Bytes::copy_from_slice(body), true)?;
    }
    read(response.await?).await
}

/// Reads an answer to its end.
pub async fn read(response: Response<RecvStream>) -> Result<Answer, h2::Error> {
    let (head, mut stream) = response.into_parts();
    let (body, _) = body(&mut stream).await?;
    Ok(Answer { status: head.status.as_u16(), fields: head.headers, body })
}

/// Reads a body and its trailer section.
pub async fn body(stream: &mut RecvStream) -> Result<(Vec<u8>, HeaderMap), h2::Error> {
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok((body, stream.trailers().await?.unwrap_or_default()))
}

/// Asks on a connection of its own.
pub fn ask_once(address: SocketAddr, request: Request<()>, body: &[u8]) -> Answer {
    run(async { ask(&mut connect(address).await, request, body).await.unwrap() })
}

/// An app that speaks HTTP/2. Dropping it ends it.
pub struct App {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    heads: Mutex<Vec<Request<()>>>,
    connections: AtomicUsize,
    end: Notify,
}

/// One request, while the app deals with it.
pub struct Conversation {
    /// Counts the app's requests from 0.
    pub number: usize,
    pub head: Request<()>,
    pub body: RecvStream,
    pub respond: SendResponse<Bytes>,
}

type Behaviour = dyn Fn(Conversation) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

impl App {
    /// An app that allows `streams` requests at once on a connection.
    pub fn start<F: Future<Output = ()> + Send + 'static>(
        streams: u32,
        behaviour: impl Fn(Conversation) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let accepting = Arc::clone(&shared);
        let behaviour: Arc<Behaviour> = Arc::new(move |talk| Box::pin(behaviour(talk)));
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            let (stream, _) = accepted.unwrap();
                            accepting.connections.fetch_add(1, Ordering::SeqCst);
                            tokio::spawn(serve(stream, streams, Arc::clone(&behaviour), Arc::clone(&accepting)));
                        }
                        () = accepting.end.notified() => return,
                    }
                }
            });
        });
        Self { address, shared }
    }

    /// The value of `HOSTWARD_UPSTREAM`.
    pub fn url(&self) -> String {
        format!("h2c://{}", self.address)
    }

    /// The heads of the requests that have come.
    pub fn heads(&self) -> Vec<Request<()>> {
        self.shared.heads.lock().unwrap().clone()
    }

    /// How many connections have come.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Waits until this many requests have come.
    pub fn wait_count(&self, count: usize) {
        eventually("that many requests reach the app", || (self.heads().len() >= count).then_some(()));
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.shared.end.notify_one();
    }
}

impl Conversation {
    /// Answers with a body.
    pub fn reply(&mut self, status: u16, body: &[u8]) {
        let mut stream = self.begin(Response::builder().status(status).body(()).unwrap());
        stream.send_data(Bytes::copy_from_slice(body), true).ok();
    }

    /// Begins an answer.
    pub fn begin(&mut self, head: Response<()>) -> SendStream<Bytes> {
        self.respond.send_response(head, false).unwrap()
    }
}

async fn serve(stream: TcpStream, streams: u32, behaviour: Arc<Behaviour>, shared: Arc<Shared>) {
    stream.set_nodelay(true).unwrap();
    let mut builder = h2::server::Builder::new();
    let Ok(mut connection) = builder.max_concurrent_streams(streams).handshake::<_, Bytes>(stream).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (head, body) = request.into_parts();
        let head = Request::from_parts(head, ());
        let number = {
            let mut heads = shared.heads.lock().unwrap();
            heads.push(head.clone());
            heads.len() - 1
        };
        if head.uri().path() == "/last" {
            connection.graceful_shutdown();
        }
        tokio::spawn(behaviour(Conversation { number, head, body, respond }));
    }
}
