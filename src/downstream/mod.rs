//! One client's connection, from accept to close: which version of HTTP it speaks, and what both versions
//! share.

mod handshake;
mod http1;
mod http2;
mod linger;
mod link;
pub mod listener;
mod parked;
mod plain;
pub mod proxy_protocol;
mod server;
pub mod wire;

use std::rc::Rc;

use tokio::net::TcpStream;

use crate::downstream::handshake::Begun;
use crate::downstream::http1::After;
use crate::downstream::linger::{Closing, linger};
use crate::drain::Stage;
use crate::io::memory::Held;
use crate::message::forwarding::Ends;
use crate::proxy::Client;

pub use parked::Parked;
pub use server::{LAST_CALL, NEW, Server};

impl Server {
    /// Shakes hands where that is to be done. `None` when the connection is over. `held` is [`NEW`] bytes of the memory
    /// budget.
    pub async fn accept(&self, stream: TcpStream, ends: Ends, held: Held) -> Option<Box<Parked>> {
        match self.begin(stream, ends.remote.ip(), held.bytes()).await {
            Begun::Ready(socket) => Some(self.arrived(socket, ends, held)),
            Begun::Plain(socket) => {
                let client = Client::new(&ends, "http", &self.proxy.policy);
                Box::pin(self.refuse_plain(socket, &client, held)).await;
                None
            }
            Begun::Over => None,
        }
    }

    /// Serves a connection until it is closed: HTTP/1.1, or HTTP/2 if it begins with the preface of HTTP/2.
    pub async fn serve(self: &Rc<Self>, mut parked: Box<Parked>) {
        let mut awake = parked.socket.reads_ahead();
        while (awake || self.park(&mut parked).await) && self.admit(&mut parked).await {
            // In boxes of their own, which a connection that is parked doesn't have.
            match Box::pin(self.serve_http1(parked)).await {
                After::Parked(again) => parked = again,
                After::Preface(found) => return Box::pin(self.serve_http2(found)).await,
                After::Closing(closing) => return Box::pin(self.close(*closing)).await,
                After::Closed => return,
            }
            awake = false;
        }
        if parked.may_be_reading() && self.stage.get() != Stage::Cut {
            return Box::pin(self.close((*parked).into())).await;
        }
        parked.socket.say_goodbye();
    }

    async fn close(&self, closing: Closing) {
        linger(|| closing.socket.borrow_mut(), &closing.timer, &self.stage, self.proxy.config.body_timeout).await;
    }
}
