//! The second listener: `/livez` says that hostward runs, `/readyz` that it wants traffic and that the app
//! is there, `/metrics` what it has counted, `/status` how it is.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_local;

use crate::config::{Config, Protocol};
use crate::drain::Stage;
use crate::message::uwsgi::Packet;
use crate::metrics::{self, Metrics};
use crate::policy::Policy;
use crate::socket::Socket;
use crate::status::Status;
use crate::upstream::connect::Connector;
use crate::upstream::h2c;
use crate::upstream::uwsgi;

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
    /// Serves for ever. Connections are short: one that takes longer than a few seconds is closed.
    pub async fn serve(self, listener: TcpListener) {
        let admin = Rc::new(self);
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(BACK_OFF).await;
                continue;
            };
            let admin = Rc::clone(&admin);
            spawn_local(async move {
                let service = service_fn(|request| admin.answer(request));
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                // Whatever went wrong, the asker has noticed.
                drop(tokio::time::timeout(CONNECTION_TIMEOUT, connection).await);
                drop(permit);
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
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
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        Ok(response)
    }

    /// Whether traffic is wanted, or why not.
    async fn ready(&self) -> Result<(), String> {
        if *self.stage.borrow() != Stage::Running {
            return Err("hostward is stopping".into());
        }
        match tokio::time::timeout(APP_TIMEOUT, self.ask_app()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("the app did not answer within {} s", APP_TIMEOUT.as_secs())),
        }
    }

    async fn ask_app(&self) -> Result<(), String> {
        let config = &self.config;
        let connector = Connector::new(&config.upstream.endpoint, config.upstream_connect_timeout, Instant::now());
        let (socket, _) =
            connector.connect_once().await.map_err(|failure| format!("{failure} ({})", config.upstream))?;
        let Some(path) = &config.ready_path else { return Ok(()) };

        let mut request = Request::new(Empty::<Bytes>::new());
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
        let status = match config.upstream.protocol {
            Protocol::Http => ask_http1(socket, request).await.map_err(|error| format!("{path}: {error}"))?,
            Protocol::H2c => {
                h2c::ask(socket, request.into_parts().0).await.map_err(|error| format!("{path}: {error}"))?
            }
            Protocol::Uwsgi => {
                let (head, _) = request.into_parts();
                let packet = Packet::new(&head.into(), None, 0).map_err(|failure| format!("{path}: {failure}"))?;
                uwsgi::ask(socket, &packet).await.map_err(|error| format!("{path}: {error}"))?
            }
        };
        if status.is_success() || status.is_redirection() {
            Ok(())
        } else {
            Err(format!("{path}: the app answered {status}"))
        }
    }
}

async fn ask_http1(socket: Socket, request: Request<Empty<Bytes>>) -> hyper::Result<StatusCode> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    // Whatever becomes of the connection, the response tells.
    spawn_local(async { drop(connection.await) });
    Ok(sender.send_request(request).await?.status())
}

/// Scrapes and health checks, not users.
const MAX_CONNECTIONS: usize = 64;
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Below the 5 s that a container health check has by default.
const APP_TIMEOUT: Duration = Duration::from_secs(2);
const BACK_OFF: Duration = Duration::from_millis(100);
