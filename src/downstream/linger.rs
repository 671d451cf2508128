//! Closing a connection so that its last response arrives. RFC 9112 §9.6: "a server typically closes a connection in
//! stages": a close with bytes unread, or bytes that arrive after it, reset the connection, and a reset discards what the
//! client has not received.

use std::cell::{Cell, RefCell, RefMut};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::drain::Stage;
use crate::io::memory::Held;
use crate::io::socket::Socket;
use crate::io::timers::Timer;

/// A connection of which nothing is left but its close.
#[derive(Debug)]
pub(super) struct Closing {
    pub(super) socket: RefCell<Socket>,
    pub(super) timer: Timer,
    /// What its socket takes of the memory budget.
    pub(super) _held: Held,
}

/// How far the close has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The end of this side is not sent yet: TLS may hold the end of the response.
    Ending,
    /// The client has not acknowledged all of the response.
    Delivering,
    /// The client has all of it, and may still be sending.
    Delivered,
}

/// Ends this side of the connection and discards what the client still sends, until it closes its side, until it has had
/// the time for that, or until the process stops. `write_timeout` bounds the delivery of the response.
pub(super) async fn linger<'a>(
    socket: impl Fn() -> RefMut<'a, Socket>,
    timer: &Timer,
    stage: &Cell<Stage>,
    write_timeout: Duration,
) {
    let mut step = Step::Ending;
    let mut discarded = 0;
    let mut deadline = Instant::now() + write_timeout;
    timer.arm(write_timeout);
    poll_fn(|cx| {
        timer.register(cx.waker());
        if stage.get() == Stage::Cut || timer.is_shed() {
            return Poll::Ready(());
        }
        loop {
            let mut socket = socket();
            if step == Step::Ending {
                match Pin::new(&mut *socket).poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => {
                        step = Step::Delivering;
                        timer.arm(LOOK);
                    }
                    Poll::Pending if !timer.expired() => return Poll::Pending,
                    Poll::Ready(Err(_)) | Poll::Pending => return Poll::Ready(()),
                }
            }
            let before = discarded;
            if poll_discard(&mut socket, &mut discarded, cx).is_ready() {
                return Poll::Ready(());
            }
            if step == Step::Delivered && discarded > before && Instant::now() < deadline {
                timer.arm(LINGER);
            }
            if !timer.expired() {
                return Poll::Pending;
            }
            match step {
                Step::Delivering if socket.has_delivered() => {
                    step = Step::Delivered;
                    discarded = 0;
                    deadline = Instant::now() + MAX_LINGER;
                    timer.arm(LINGER);
                }
                Step::Delivering if Instant::now() < deadline => timer.arm(LOOK),
                // The kernel goes on delivering.
                Step::Ending | Step::Delivering | Step::Delivered => return Poll::Ready(()),
            }
        }
    })
    .await;
}

/// Ready when the client has closed its side, or has sent too much.
fn poll_discard(socket: &mut Socket, discarded: &mut u64, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let mut space = [0; READ_SIZE];
    while *discarded < MAX_DISCARDED {
        let mut read = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut *socket).poll_read(cx, &mut read))?;
        if read.filled().is_empty() {
            break;
        }
        *discarded += read.filled().len() as u64;
    }
    Poll::Ready(Ok(()))
}

/// How often to look whether the client has acknowledged the response: the kernel doesn't say.
const LOOK: Duration = Duration::from_millis(500);
/// How long a client that has the response may be silent before the connection is closed.
pub(super) const LINGER: Duration = Duration::from_secs(2);
/// And how long it may go on sending; nginx's `lingering_time`.
const MAX_LINGER: Duration = Duration::from_secs(30);
/// Bytes of either stage: an upload that was rejected, not a stream without an end.
const MAX_DISCARDED: u64 = 256 << 20;
/// Bytes of one read.
const READ_SIZE: usize = 16 * 1024;
