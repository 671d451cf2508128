//! A client's connection between two requests, or before its first: the socket, the time that is left, and nothing
//! else. Most connections are here most of the time, and what they weigh here is what a connection weighs.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};

use crate::downstream::linger::Closing;
use crate::downstream::server::{ACTIVE, LAST_CALL, Server};
use crate::drain::Stage;
use crate::io::memory::Held;
use crate::io::socket::Socket;
use crate::io::timers::Timer;
use crate::message::forwarding::Ends;

/// A connection of which nothing is under way.
#[derive(Debug)]
pub struct Parked {
    pub(super) socket: Socket,
    pub(super) ends: Ends,
    /// Armed for the end of the time that the client has for a request.
    pub(super) timer: Timer,
    pub(super) life: Life,
    /// What is taken of the memory budget.
    pub(super) held: Held,
}

impl From<Parked> for Closing {
    fn from(Parked { socket, timer, held, .. }: Parked) -> Self {
        Self { socket: socket.into(), timer, _held: held }
    }
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
    pub fn arrived(&self, socket: Socket, ends: Ends, held: Held) -> Box<Parked> {
        let timer = self.timers.timer();
        // One that has never said anything has as long as a head may take.
        timer.arm(self.proxy.config.header_timeout);
        timer.weigh(held.bytes());
        Box::new(Parked { socket, ends, timer, life: Life::New, held })
    }

    /// Waits for the client. False when the connection is to be closed instead.
    pub(super) async fn park(&self, parked: &mut Parked) -> bool {
        poll_fn(|cx| {
            let polled = self.poll_parked(parked, cx);
            if polled.is_pending() {
                parked.rest();
            }
            polled
        })
        .await
    }

    /// Takes memory for a connection that is to be served, waiting for it if need be. False when the connection is to be
    /// closed instead.
    pub(super) async fn admit(&self, parked: &mut Parked) -> bool {
        let more = (parked.socket.idle_memory() + ACTIVE).saturating_sub(parked.held.bytes());
        parked.held.take(more) || Box::pin(self.wait_for_memory(parked, more)).await
    }

    async fn wait_for_memory(&self, parked: &mut Parked, more: usize) -> bool {
        let mut held = parked.held.sibling();
        // It is not idle any more, and has nothing yet that others could get.
        parked.timer.weigh(0);
        parked.timer.pardon();
        let admitted = {
            let mut wait = pin!(held.wait(more));
            poll_fn(|cx| {
                parked.timer.register(cx.waker());
                if wait.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(true);
                }
                let over = self.stage.get() == Stage::Cut || parked.timer.expired() || parked.timer.is_shed();
                if over { Poll::Ready(false) } else { Poll::Pending }
            })
            .await
        };
        parked.held.absorb(held);
        admitted
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
        if parked.timer.expired() || parked.timer.is_shed() { Poll::Ready(false) } else { Poll::Pending }
    }
}

impl Parked {
    /// Whether the client may not have read all of its last response: it has been written, and no more is known.
    pub(super) fn may_be_reading(&self) -> bool {
        self.life == Life::Used && !self.timer.is_shed()
    }

    /// Gives back what a connection takes that is served.
    fn rest(&mut self) {
        let idle = self.socket.idle_memory();
        if self.held.bytes() > idle {
            self.held.set(idle);
            // More than nothing: it can be closed to make way for others.
            self.timer.weigh(idle.max(1));
        }
    }
}
