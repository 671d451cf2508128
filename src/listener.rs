//! Bind, accept, and hand each connection to the worker that has the fewest.
//!
//! One accept loop, because `SO_REUSEPORT` alone piles the few connections of a load balancer on one worker.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::drain::Stage;
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
pub async fn accept(
    listener: TcpListener,
    permits: Arc<Semaphore>,
    mut stage: watch::Receiver<Stage>,
    repeats: &Repeats,
    mut hand_over: impl FnMut(Accepted),
) {
    loop {
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            _ = stage.wait_for(|stage| *stage >= Stage::Closing) => break,
        };
        // The semaphore is never closed.
        let Ok(permit) = permit else { break };
        match accepted.and_then(|accepted| complete(accepted, permit)) {
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
    }
    // Asked of the kernel, not of the event queue, which may not have heard of the last ones yet.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, remote)) = listener.accept() {
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { break };
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        if let Ok(accepted) = stream.and_then(|stream| complete((stream, remote), permit)) {
            hand_over(accepted);
        }
    }
}

fn complete((stream, remote): (TcpStream, SocketAddr), permit: OwnedSemaphorePermit) -> io::Result<Accepted> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    Ok(Accepted { stream, remote, local, permit })
}

/// Bytes that the kernel takes ahead of what it can send to a client. Without it, it takes megabytes for each client that
/// reads nothing, and the app has to produce them at once; what is sent and not acknowledged doesn't count.
const UNSENT: u32 = 128 * 1024;
/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// The listeners, the event queues, the log, the app's readiness check, and room for a few more.
const OTHER_DESCRIPTORS: usize = 64;
const BACK_OFF: Duration = Duration::from_millis(100);
