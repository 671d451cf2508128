//! The second listener: `/livez` says that hostward runs, `/readyz` that it wants traffic and that the app
//! is there, `/metrics` what it has counted, `/status` how it is.

pub mod status;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::timeout;

use crate::admin::status::Status;
use crate::config::Config;
use crate::drain::Stage;
use crate::message::head::{FEW_FIELDS, write_field};
use crate::metrics::{self, Metrics};
use crate::policy::Policy;
use crate::proxy::response;
use crate::upstream;
use crate::upstream::connect::Connector;

/// What the admin listener knows.
#[derive(Debug)]
pub struct Admin {
    /// The settings.
    pub config: Arc<Config>,
    /// For the host that the app is asked with.
    pub policy: Arc<Policy>,
    /// How far stopping has come.
    pub stage: watch::Receiver<Stage>,
    /// What has been counted.
    pub metrics: Arc<Metrics>,
    /// What else is known.
    pub status: Status,
}

impl Admin {
    /// Serves for ever: one request a connection, which takes a few seconds at most.
    pub async fn serve(self, listener: TcpListener) {
        let admin = Rc::new(self);
        // What comes from elsewhere can't keep the container's own health check out.
        let (mut local, mut remote) = (Connections::default(), Connections::default());
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(BACK_OFF).await;
                continue;
            };
            let connections = if peer.ip().to_canonical().is_loopback() { &mut local } else { &mut remote };
            connections.free_a_slot();
            let (admin, busy) = (Rc::clone(&admin), Rc::<Cell<bool>>::default());
            let is_busy = Rc::clone(&busy);
            // Whatever goes wrong, the client notices.
            let served = async move { drop(timeout(CONNECTION_TIMEOUT, admin.serve_connection(stream, &busy)).await) };
            let task = spawn_local(served);
            connections.0.push_back(Connection { task: task.abort_handle(), is_busy });
        }
    }

    /// Serves one request. Without hyper, whose server panics when the clock is before 1970.
    async fn serve_connection(&self, mut stream: TcpStream, busy: &Cell<bool>) -> io::Result<()> {
        let request = match timeout(HEAD_TIMEOUT, read_head(&mut stream)).await? {
            Ok(Some(request)) => request,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await?;
                return stream.shutdown().await;
            }
            Ok(None) => return Ok(()),
            Err(error) => return Err(error),
        };
        busy.set(true);
        let (head, body) = self.answer(&request).await.into_parts();
        busy.set(false);
        let mut bytes =
            format!("HTTP/1.1 {} {}\r\n", head.status.as_str(), head.status.canonical_reason().unwrap_or_default())
                .into_bytes();
        for (name, value) in &head.headers {
            write_field(&mut bytes, name.as_str(), value.as_bytes());
        }
        bytes.extend_from_slice(format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()).as_bytes());
        if request.method() != Method::HEAD {
            bytes.extend_from_slice(body.as_bytes());
        }
        stream.write_all(&bytes).await?;
        stream.shutdown().await?;
        // A close with bytes unread would be a reset, which could overtake the response.
        while stream.read(&mut [0; 1024]).await? > 0 {}
        Ok(())
    }

    async fn answer(&self, request: &Request<()>) -> Response<String> {
        let served = self.config.metrics.prometheus;
        let mut content_type = "text/plain; charset=utf-8";
        let (status, text) = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, "live\n".to_owned()),
            (&Method::GET | &Method::HEAD, "/readyz") => match self.ready().await {
                Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
                Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
            },
            (&Method::GET | &Method::HEAD, "/metrics") if served => {
                let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
                let format = metrics::Format::accepted(accept);
                content_type = format.content_type();
                (StatusCode::OK, metrics::encode(self.metrics.snapshot(), format))
            }
            (&Method::GET | &Method::HEAD, "/status") => {
                content_type = "application/json";
                let stage = *self.stage.borrow();
                (StatusCode::OK, format!("{:#}\n", self.status.report(stage, &self.ready().await)))
            }
            (_, "/livez" | "/readyz" | "/status") => (StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n".to_owned()),
            (_, "/metrics") if served => (StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n".to_owned()),
            _ => (StatusCode::NOT_FOUND, "here are /livez, /readyz, /status and /metrics\n".to_owned()),
        };
        let mut response = Response::new(text);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::DATE, response::date());
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }

    /// Whether traffic is wanted, or why not.
    async fn ready(&self) -> Result<(), String> {
        if *self.stage.borrow() != Stage::Running {
            return Err("hostward is stopping".into());
        }
        match timeout(APP_TIMEOUT, self.ask_app()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("the app did not answer within {} s", APP_TIMEOUT.as_secs())),
        }
    }

    async fn ask_app(&self) -> Result<(), String> {
        let config = &self.config;
        let connector = Connector::new(&config.upstream.endpoint, config.upstream_connect_timeout, Instant::now());
        let (socket, _) =
            connector.connect_once(None).await.map_err(|failure| format!("{failure} ({})", config.upstream))?;
        let Some(path) = &config.ready_path else { return Ok(()) };

        let mut request = Request::new(());
        *request.uri_mut() = path.clone().into();
        let headers = request.headers_mut();
        if let Some(host) = &self.policy.canonical {
            headers.insert(header::HOST, host.clone());
        }
        if let Some(proto) = config.probe_proto {
            headers.insert("x-forwarded-proto", HeaderValue::from_static(proto));
        }
        headers.insert(header::USER_AGENT, HeaderValue::from_static("hostward-readiness"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let asked = upstream::ask(socket, config.upstream.protocol, request.into_parts().0).await;
        let status = asked.map_err(|error| format!("{path}: {error}"))?;
        if status.is_success() || status.is_redirection() {
            Ok(())
        } else {
            Err(format!("{path}: the app answered {status}"))
        }
    }
}

/// Open connections, the oldest first.
#[derive(Default)]
struct Connections(VecDeque<Connection>);

struct Connection {
    task: AbortHandle,
    /// Whether a request is being answered.
    is_busy: Rc<Cell<bool>>,
}

impl Connections {
    /// Closes a connection when there are as many as may be: the oldest one that waits for its client, or else the oldest.
    fn free_a_slot(&mut self) {
        self.0.retain(|connection| !connection.task.is_finished());
        if self.0.len() >= MAX_CONNECTIONS {
            let waiting = self.0.iter().position(|connection| !connection.is_busy.get());
            if let Some(connection) = self.0.remove(waiting.unwrap_or_default()) {
                connection.task.abort();
            }
        }
    }
}

/// Reads a request's head. `None` when the client has closed before its end.
async fn read_head(stream: &mut TcpStream) -> io::Result<Option<Request<()>>> {
    let mut head = Vec::new();
    loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
        let mut lines = [httparse::EMPTY_HEADER; FEW_FIELDS];
        let mut parsed = httparse::Request::new(&mut lines);
        match parsed.parse(&head) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) if head.len() < MAX_HEAD => continue,
            Ok(httparse::Status::Partial) | Err(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
        let mut request =
            Request::builder().method(parsed.method.unwrap_or_default()).uri(parsed.path.unwrap_or_default());
        for line in parsed.headers.iter() {
            request = request.header(line.name, line.value);
        }
        return request.body(()).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
    }
}

/// Scrapes and health checks, not users. For loopback peers, and for the others.
const MAX_CONNECTIONS: usize = 64;
/// For a request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of one.
const MAX_HEAD: usize = 16 * 1024;
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Below the 5 s that a container health check has by default.
const APP_TIMEOUT: Duration = Duration::from_secs(2);
const BACK_OFF: Duration = Duration::from_millis(100);
