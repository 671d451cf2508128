//! One request without a body to the app, over a connection of its own, in whichever protocol the app speaks: outside of
//! the pools and limits that clients' requests are under.

use bytes::Bytes;
use http::request::Parts;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::task::spawn_local;

use crate::config::Protocol;
use crate::io::socket::Socket;
use crate::message::head::MAX_FIELDS;
use crate::message::uwsgi::Packet;
use crate::upstream::{h2c, uwsgi};

/// Sends a request whose target is a path, and returns the response's status. The caller bounds the time.
///
/// # Errors
///
/// Why there was no response.
pub async fn ask(socket: Socket, protocol: Protocol, head: Parts) -> Result<StatusCode, String> {
    match protocol {
        Protocol::Http => http1(socket, head).await.map_err(|error| error.to_string()),
        Protocol::H2c => h2c::ask(socket, head).await,
        Protocol::Uwsgi => {
            let packet = Packet::new(&head.into(), None, 0).map_err(|failure| failure.to_string())?;
            uwsgi::ask(socket, &packet).await.map_err(|error| error.to_string())
        }
    }
}

async fn http1(socket: Socket, head: Parts) -> hyper::Result<StatusCode> {
    let mut builder = hyper::client::conn::http1::Builder::new();
    let (mut sender, connection) = builder.max_headers(MAX_FIELDS).handshake(TokioIo::new(socket)).await?;
    // Whatever becomes of the connection, the response tells.
    spawn_local(async { drop(connection.await) });
    let request = Request::from_parts(head, Empty::<Bytes>::new());
    Ok(sender.send_request(request).await?.status())
}
