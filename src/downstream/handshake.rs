//! What comes before a connection's first request: TLS, where the listener speaks it. The rest of the connection gets
//! a socket and need not know.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use tokio::net::TcpStream;

use crate::downstream::server::{LAST_CALL, Server};
use crate::drain::Stage;
use crate::io::socket::Socket;
use crate::tls::{self, Tls};

/// What a new connection turns out to be.
pub(crate) enum Begun {
    /// Fit for requests.
    Ready(Socket),
    /// Plain HTTP where TLS is spoken. None of it has been read.
    Plain(Socket),
    /// Nothing that could be answered.
    Over,
}

impl Server {
    /// Shakes hands, within `HEADER_TIMEOUT`.
    pub(crate) async fn begin(&self, stream: TcpStream, peer: IpAddr, weight: usize) -> Begun {
        let Some(tls) = &self.tls else { return Begun::Ready(Socket::Tcp(stream)) };
        let spoken = Cell::new(false);
        // In a box of its own: a connection's task is as large as it ever gets, for as long as it lives.
        let begun = Box::pin(self.in_time(self.shake_hands(tls, stream, peer, &spoken), weight)).await;
        begun.unwrap_or_else(|| {
            if spoken.get() {
                let hint = "if the client is yours, raise HOSTWARD_HEADER_TIMEOUT";
                self.report_handshake(peer, "timeout", "the handshake took too long", hint);
            }
            Begun::Over
        })
    }

    async fn shake_hands(&self, tls: &Tls, stream: TcpStream, peer: IpAddr, spoken: &Cell<bool>) -> Begun {
        let mut first = [0];
        match stream.peek(&mut first).await {
            // Who says nothing breaks nothing: so a load balancer tries whether the port is open.
            Ok(0) | Err(_) => return Begun::Over,
            // A method begins with a letter, a TLS handshake with 22 (RFC 8446 §5.1).
            Ok(_) if first[0].is_ascii_alphabetic() => return Begun::Plain(Socket::Tcp(stream)),
            Ok(_) => spoken.set(true),
        }
        match tls.accept(stream).await {
            Ok(stream) => Begun::Ready(Socket::Tls(Box::new(stream))),
            Err(error) => {
                let (reason, hint) = tls::failure(&error);
                self.report_handshake(peer, reason, &error.to_string(), hint);
                Begun::Over
            }
        }
    }

    /// `None` when it takes too long, memory is short, or hostward stops. `weight` are the bytes that it holds.
    async fn in_time<T>(&self, begin: impl Future<Output = T>, weight: usize) -> Option<T> {
        let timer = self.timers.timer();
        timer.weigh(weight);
        timer.arm(self.proxy.config.header_timeout);
        let mut begin = pin!(begin);
        let mut last_call = false;
        poll_fn(|cx| {
            timer.register(cx.waker());
            if let Poll::Ready(begun) = begin.as_mut().poll(cx) {
                return Poll::Ready(Some(begun));
            }
            if self.stage.get() == Stage::Closing && !last_call {
                last_call = true;
                timer.arm(LAST_CALL);
            }
            let over = self.stage.get() == Stage::Cut || timer.expired() || timer.is_shed();
            if over { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }

    /// One event for each reason and minute: whoever can connect could fill the log otherwise.
    fn report_handshake(&self, peer: IpAddr, reason: &'static str, error: &str, hint: &str) {
        let message = "TLS handshake failed";
        if let Some(repeated) = self.proxy.repeats.admit(message, reason, Instant::now()) {
            let peer = peer.to_canonical();
            tracing::warn!(reason, error, peer_ip = %peer, repeated, hint, "{message}");
        }
    }
}
