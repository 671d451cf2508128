//! A client's connection between two requests, or before its first: the socket, the time that is left, and nothing
//! else. Most connections are here most of the time, and what they weigh here is what a connection weighs.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use crate::connection::{LAST_CALL, Server};
use crate::drain::Stage;
use crate::socket::Socket;
use crate::timers::Timer;

/// A connection of which nothing is under way.
#[derive(Debug)]
pub struct Parked {
    pub(super) socket: Socket,
    pub(super) remote: SocketAddr,
    pub(super) local: SocketAddr,
    /// Armed for the end of the time that the client has for a request.
    pub(super) timer: Timer,
    pub(super) life: Life,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It has not brought a request.
    New,
    /// Nor is there much time left for one.
    LastCall,
    Used,
}

impl Server {
    /// A connection that has just been accepted.
    pub fn arrived(&self, socket: Socket, remote: SocketAddr, local: SocketAddr) -> Box<Parked> {
        let timer = self.timers.timer();
        // One that has never said anything has as long as a head may take.
        timer.arm(self.proxy.config.header_timeout);
        Box::new(Parked { socket, remote, local, timer, life: Life::New })
    }

    /// Waits for the client. False when the connection is to be closed instead.
    pub(super) async fn park(&self, parked: &mut Parked) -> bool {
        poll_fn(|cx| self.poll_parked(parked, cx)).await
    }

    fn poll_parked(&self, parked: &mut Parked, cx: &mut Context<'_>) -> Poll<bool> {
        parked.timer.register(cx.waker());
        if parked.socket.poll_read_ready(cx).is_ready() {
            return Poll::Ready(true);
        }
        match (self.stage.get(), parked.life) {
            (Stage::Cut, _) | (Stage::Closing, Life::Used) => return Poll::Ready(false),
            (Stage::Closing, Life::New) => {
                // It may have been accepted a moment ago, with its request on the way.
                parked.timer.arm(LAST_CALL);
                parked.life = Life::LastCall;
            }
            (Stage::Closing, Life::LastCall) | (Stage::Running | Stage::Draining, _) => {}
        }
        if parked.timer.expired() { Poll::Ready(false) } else { Poll::Pending }
    }
}
