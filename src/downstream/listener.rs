//! Bind, accept, and hand each connection to the worker that has the fewest.
//!
//! One accept loop, because `SO_REUSEPORT` alone piles the few connections of a load balancer on one worker.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::downstream::server::NEW;
use crate::drain::Stage;
use crate::io::memory::{Budget, Held, OpenSocket};
use crate::io::socket::{limit_buffers, limit_connection};
use crate::log::Repeats;

/// A connection that has been accepted, with its share of `MAX_CONNECTIONS`.
#[derive(Debug)]
pub struct Accepted {
    /// The socket.
    pub stream: TcpStream,
    /// The other end.
    pub remote: SocketAddr,
    /// This end.
    pub local: SocketAddr,
    /// Given back when the connection is closed.
    pub permit: OwnedSemaphorePermit,
    /// Likewise.
    pub socket: OpenSocket,
    /// Memory for its first request.
    pub held: Held,
}

/// Binds a listening socket. `[::]` is dual stack, and falls back to `0.0.0.0` where there is no IPv6.
///
/// # Errors
///
/// The operating system's.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let outcome = bind_one(address);
    match (&outcome, address.ip()) {
        (Err(error), IpAddr::V6(ip)) if ip.is_unspecified() && error.kind() != io::ErrorKind::AddrInUse => {
            bind_one(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()))
        }
        _ => outcome,
    }
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // A task that is restarted must not wait for the old connections' TIME-WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    // Each accepted socket inherits it.
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.set_tcp_mss(SEGMENT)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// Raises the limit on file descriptors as far as is allowed, and returns how many connections it is good
/// for: each takes two, and some are for everything else.
pub fn connections_from_fd_limit() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, hard)| {
        let raised = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
        if raised { hard } else { soft }
    });
    let descriptors = usize::try_from(limit.unwrap_or(1024)).unwrap_or(usize::MAX);
    (descriptors.saturating_sub(OTHER_DESCRIPTORS) / 2).clamp(1, Semaphore::MAX_PERMITS)
}

/// Accepts until the stage says no, and hands connections to `hand_over`. Connections that are in the
/// backlog at the end are accepted too: their clients have been promised an answer.
///
/// A connection is handed over when there is memory for its first request. Until then, and while there is no permit, the
/// others wait in the backlog, where they take nothing of the container's memory. `full` is set while there is no permit.
pub async fn accept(
    listener: TcpListener,
    permits: Arc<Semaphore>,
    budget: &Budget,
    full: &AtomicBool,
    mut stage: watch::Receiver<Stage>,
    repeats: &Repeats,
    mut hand_over: impl FnMut(Accepted),
) {
    let mut memory = budget.hold();
    let mut limited = None;
    loop {
        let next = async {
            full.store(permits.available_permits() == 0, Ordering::Relaxed);
            let permit = Arc::clone(&permits).acquire_owned().await;
            full.store(false, Ordering::Relaxed);
            let accepted = listener.accept().await;
            if accepted.is_ok() && memory.bytes() < NEW && !memory.take(NEW) {
                // Memory for several connections: others that wait are served in between.
                memory.wait(budget.bytes() / 16 + NEW).await;
            }
            (permit, accepted)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            _ = stage.wait_for(|stage| *stage >= Stage::Closing) => break,
        };
        // The semaphore is never closed.
        let Ok(permit) = permit else { break };
        let (socket, buffer) = budget.socket();
        if buffer != limited {
            // Also of those to come: what a client sends before its connection is accepted has to fit.
            limit_buffers(&listener, Some(buffer.unwrap_or(UNLIMITED)));
            limited = buffer;
        }
        match accepted.and_then(|accepted| complete(accepted, permit, (socket, buffer), memory.split(NEW))) {
            Ok(accepted) => hand_over(accepted),
            Err(error) => {
                // Of a client that left at once there is nothing to say; of a lack there is.
                if error.kind() == io::ErrorKind::ConnectionAborted || error.kind() == io::ErrorKind::NotConnected {
                    continue;
                }
                if let Some(repeated) = repeats.admit("can't accept", "", Instant::now()) {
                    tracing::error!(error = %error, repeated, hint = "out of file descriptors or memory? raise `ulimits` in the task definition, or lower HOSTWARD_MAX_CONNECTIONS", "can't accept");
                }
                tokio::time::sleep(BACK_OFF).await;
            }
        }
        if !budget.is_short() {
            memory.set(0);
        }
    }
    // Asked of the kernel, not of the event queue, which may not have heard of the last ones yet.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, remote)) = listener.accept() {
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { break };
        if memory.bytes() < NEW && !memory.take(NEW) {
            break;
        }
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        let held = memory.split(NEW);
        if let Ok(accepted) = stream.and_then(|stream| complete((stream, remote), permit, budget.socket(), held)) {
            hand_over(accepted);
        }
    }
}

fn complete(
    (stream, remote): (TcpStream, SocketAddr),
    permit: OwnedSemaphorePermit,
    (socket, buffer): (OpenSocket, Option<usize>),
    held: Held,
) -> io::Result<Accepted> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    limit_connection(&stream, buffer);
    Ok(Accepted { stream, remote, local, permit, socket, held })
}

/// Bytes that the kernel takes ahead of what it can send to a client. Without it, it takes megabytes for each client that
/// reads nothing, and the app has to produce them at once; what is sent and not acknowledged doesn't count.
const UNSENT: u32 = 128 * 1024;
/// Bytes of a socket's buffers where nothing limits them any more: the kernel doesn't go back to tuning them. A quarter of
/// it is [`UNSENT`].
const UNLIMITED: usize = 512 * 1024;
/// Bytes of a segment at most, as on a network of jumbo frames (MTU 9001). Linux sends nothing into a window below a
/// segment but with a timer of up to minutes, and on the loopback interface a segment would be 64 KiB.
const SEGMENT: u32 = 8961;
/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// The listeners, the event queues, the log, the app's readiness check, and room for a few more.
const OTHER_DESCRIPTORS: usize = 64;
const BACK_OFF: Duration = Duration::from_millis(100);
