//! One client's connection, from accept to close: which version of HTTP it speaks, and what both versions
//! share.

mod http1;
mod http2;
mod link;
mod parked;
mod plain;

use std::cell::{Cell, RefMut};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::connection::http1::After;
use crate::drain::Stage;
use crate::handshake::Begun;
use crate::proxy::{Client, Proxy};
use crate::socket::Socket;
use crate::timers::Timers;
use crate::tls::Tls;

pub use parked::Parked;

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

impl Server {
    /// Shakes hands where that is to be done. `None` when the connection is over.
    pub async fn accept(&self, stream: TcpStream, remote: SocketAddr, local: SocketAddr) -> Option<Box<Parked>> {
        match self.begin(stream, remote.ip()).await {
            Begun::Ready(socket) => Some(self.arrived(socket, remote, local)),
            Begun::Plain(socket) => {
                let client = Client::new(remote, local, "http", &self.proxy.policy);
                Box::pin(self.refuse_plain(socket, &client)).await;
                None
            }
            Begun::Over => None,
        }
    }

    /// Serves a connection until it is closed: HTTP/1.1, or HTTP/2 if it begins with that's preface.
    pub async fn serve(self: &Rc<Self>, mut parked: Box<Parked>) {
        let mut awake = parked.socket.reads_ahead();
        while awake || self.park(&mut parked).await {
            // In boxes of their own, which a connection that is parked doesn't have.
            match Box::pin(self.serve_http1(parked)).await {
                After::Parked(again) => parked = again,
                After::Preface(found) => return Box::pin(self.serve_http2(found)).await,
                After::Closed => return,
            }
            awake = false;
        }
        parked.socket.say_goodbye();
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
