//! One client's connection, from accept to close: which version of HTTP it speaks, and what both versions
//! share.

mod http1;
mod http2;
mod link;

use std::cell::{Cell, RefMut};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::drain::Stage;
use crate::handshake::Begun;
use crate::proxy::{Client, Proxy};
use crate::socket::Socket;
use crate::timers::Timers;
use crate::tls::Tls;

/// What a worker needs to serve connections.
#[derive(Debug)]
pub struct Server {
    /// What answers the requests.
    pub proxy: Proxy,
    /// The worker's timers.
    pub timers: Rc<Timers>,
    /// How far stopping has come.
    pub stage: Cell<Stage>,
    /// What the listener's TLS needs, if it speaks TLS.
    pub tls: Option<Tls>,
}

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Its first bytes tell.
    Detect,
    /// HTTP/1.1 or HTTP/1.0.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Server {
    /// Shakes hands where that is to be done, and serves a connection until it is closed.
    pub async fn accept(self: &Rc<Self>, stream: TcpStream, remote: SocketAddr, local: SocketAddr) {
        match self.begin(stream, remote.ip()).await {
            Begun::Ready(socket) => self.serve(socket, remote, local, Protocol::Detect).await,
            Begun::Plain(socket) => {
                let client = Client::new(remote, local, "http", &self.proxy.policy);
                Box::pin(self.refuse_plain(socket, &client)).await;
            }
            Begun::Over => {}
        }
    }

    /// Serves a connection until it is closed.
    pub async fn serve(self: &Rc<Self>, socket: Socket, remote: SocketAddr, local: SocketAddr, protocol: Protocol) {
        let client = Client::new(remote, local, self.proxy.config.tls.scheme(), &self.proxy.policy);
        let (socket, early) = match protocol {
            Protocol::Http2 => (socket, BytesMut::new()),
            Protocol::Http1 | Protocol::Detect => {
                let detect = protocol == Protocol::Detect;
                let Some(both) = self.serve_http1(socket, &client, detect).await else { return };
                both
            }
        };
        // Boxed, so that an HTTP/1.1 connection doesn't carry its room.
        Box::pin(self.serve_http2(socket, early, client)).await;
    }
}

/// Closes so that the answer arrives: RFC 9112 §9.6, a close in two steps. A close with bytes unread would
/// reset the connection, and the reset could overtake the answer.
async fn linger<'a>(socket: impl Fn() -> RefMut<'a, Socket>) {
    let drained = async {
        poll_fn(|cx| Pin::new(&mut *socket()).poll_shutdown(cx)).await?;
        poll_fn(|cx| poll_drain(&mut socket(), cx)).await
    };
    // The peer has closed, or has had its time.
    drop(tokio::time::timeout(LINGER, drained).await);
}

/// Ready when the client has closed its side.
fn poll_drain(socket: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let mut space = [0; 4096];
    loop {
        let mut read = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut *socket).poll_read(cx, &mut read))?;
        if read.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
    }
}

/// Bytes; hyper's smallest sensible bound, and the most that one direction of a connection may hold.
const BUFFER: usize = 64 * 1024;
/// How long a client that is still sending gets to read the answer.
const LINGER: Duration = Duration::from_secs(2);
/// How long a connection that was accepted at the very end gets for its request.
pub(crate) const LAST_CALL: Duration = Duration::from_secs(1);
