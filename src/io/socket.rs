//! A connected stream socket of any kind that hostward speaks over.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use nix::libc;
use nix::sys::socket::sockopt::{GetU8, SetStruct};
use nix::sys::socket::{getsockopt, setsockopt};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    /// To a load balancer, or to an app with a port.
    Tcp(TcpStream),
    /// To an app with a path.
    Unix(UnixStream),
    /// To a load balancer that speaks TLS. What it takes is on its way only after a flush.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// The protocol that TLS agreed on for what is spoken inside.
    pub fn protocol(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(stream) => crate::tls::protocol(stream),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    /// Whether the peer has sent nothing that waits to be read, and not closed either. If it has, a byte of it is lost.
    pub fn is_quiet(&self) -> bool {
        // What is known may be out of date, so that only a read tells.
        let nothing = |read: io::Result<usize>| read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        self.poll_read_ready(&mut Context::from_waker(Waker::noop())).is_pending()
            || match self {
                Self::Tcp(stream) => nothing(stream.try_read(&mut [0])),
                Self::Unix(stream) => nothing(stream.try_read(&mut [0])),
                Self::Tls(_) => false,
            }
    }

    /// Whether a part of what there is to read may have been taken from the kernel: TLS reads whole records, and with
    /// the last one of the handshake perhaps the first request.
    pub fn reads_ahead(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Whether the kernel has all that is to be read, and takes all that is to be written, as it is.
    pub fn is_plain(&self) -> bool {
        !matches!(self, Self::Tls(_))
    }

    /// Ready when the kernel may have something to read, or the peer has closed.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Unix(stream) => stream.poll_read_ready(cx),
            Self::Tls(stream) => stream.get_ref().0.poll_read_ready(cx),
        }
    }

    /// Tells the peer that this is the end. Only TLS has a word for it (RFC 8446 §6.1, `close_notify`). Not to be called
    /// in the middle of an answer: without the word, the client knows that it hasn't got all of it.
    pub fn say_goodbye(&mut self) {
        if let Self::Tls(stream) = self {
            // A peer that has left no room for a few bytes goes without.
            drop(Pin::new(stream).poll_shutdown(&mut Context::from_waker(Waker::noop())));
        }
    }

    /// Bytes of memory that it takes even when nothing is under way.
    pub fn idle_memory(&self) -> usize {
        if self.is_plain() { 0 } else { TLS_SESSION }
    }

    /// Whether the peer has acknowledged all that was written, once this side has been shut down.
    pub fn has_delivered(&self) -> bool {
        let tcp = match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
            Self::Unix(_) => return true,
        };
        // What can't be asked is not to be waited for.
        !matches!(getsockopt(tcp, TcpState), Ok(FIN_WAIT_1 | CLOSING | LAST_ACK))
    }

    /// Reads at most `most` bytes.
    pub fn poll_read_at_most(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        most: usize,
    ) -> Poll<io::Result<()>> {
        if most >= buf.remaining() {
            return Pin::new(self).poll_read(cx, buf);
        }
        let mut little = ReadBuf::new(buf.initialize_unfilled_to(most));
        ready!(Pin::new(self).poll_read(cx, &mut little))?;
        let count = little.filled().len();
        buf.advance(count);
        Poll::Ready(Ok(()))
    }

    /// Makes its end a reset, which drops what the peer has not taken. After a plain close the kernel would go on
    /// offering that, for minutes, and keep some megabytes for each peer that only looks alive.
    pub fn give_up(&self) {
        let given_up = match self {
            Self::Tcp(stream) => stream.set_zero_linger(),
            Self::Tls(stream) => stream.get_ref().0.set_zero_linger(),
            // What one program has written to another goes with either of them.
            Self::Unix(_) => Ok(()),
        };
        if let Err(error) = given_up {
            tracing::debug!(error = %error, "can't reset a connection");
        }
    }
}

/// Gives each of a socket's two buffers in the kernel `bytes`, if it must be less than the kernel would choose. For a
/// socket that listens, or is not connected: its peer is to be promised no more than fits.
pub fn limit_buffers(socket: &impl AsFd, bytes: Option<usize>) {
    let Some(bytes) = bytes else { return };
    // The kernel doubles it, "to allow space for bookkeeping overhead" (socket(7)).
    let limited = SockRef::from(socket).set_recv_buffer_size(bytes / 2);
    report(limited.and_then(|()| limit_unsent(socket, bytes)));
}

/// The same for a connection: what its peer may send is not more than half of `bytes` from now on. Its receive buffer stays
/// as it is, because the peer may already send what it has been promised: the kernel would drop that, and a peer whose
/// segments are dropped while its body waits for memory sends them again after a pause that doubles, up to two minutes.
pub fn limit_connection(socket: &impl AsFd, bytes: Option<usize>) {
    let Some(bytes) = bytes else { return };
    let window = libc::c_int::try_from(bytes / 2).unwrap_or(libc::c_int::MAX);
    let limited = setsockopt(socket, WindowClamp, &window).map_err(io::Error::from);
    report(limited.and_then(|()| limit_unsent(socket, bytes)));
}

/// Of TCP only what can't be sent yet: with a send buffer below a segment, each write would wait for a delayed
/// acknowledgment.
fn limit_unsent(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let limited = u32::try_from(bytes / 4).is_ok_and(|bytes| socket.set_tcp_notsent_lowat(bytes).is_ok());
    if limited { Ok(()) } else { socket.set_send_buffer_size(bytes / 2) }
}

fn report(limited: io::Result<()>) {
    if let Err(error) = limited {
        tracing::debug!(error = %error, "can't limit a socket's buffers");
    }
}

/// Bytes of a TLS session with its buffers.
const TLS_SESSION: usize = 12 * 1024;

/// The same call, whatever the socket is.
macro_rules! each {
    ($socket:expr, $inner:ident => $call:expr) => {
        match $socket.get_mut() {
            Self::Tcp($inner) => $call,
            Self::Unix($inner) => $call,
            Self::Tls($inner) => $call,
        }
    };
}

/// The state of a TCP connection: the first byte of what `TCP_INFO` gives.
#[derive(Clone, Copy, Debug)]
struct TcpState;

nix::getsockopt_impl!(TcpState, libc::IPPROTO_TCP, libc::TCP_INFO, u8, GetU8);

/// The largest window that a TCP connection offers (tcp(7)).
#[derive(Clone, Copy, Debug)]
struct WindowClamp;

nix::setsockopt_impl!(WindowClamp, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, libc::c_int, SetStruct<'_, libc::c_int>);

/// The kernel's numbers (`net/tcp_states.h`) of the states in which the end of this side is not acknowledged.
const FIN_WAIT_1: u8 = 4;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(socket) => match Pin::new(socket).poll_read(cx, buf) {
                // A client that ends without close_notify. RFC 9112 §9.8: "Servers SHOULD be prepared to receive an
                // incomplete close from the client". Requests say themselves how long they are.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                read => read,
            },
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, socket => Pin::new(socket).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, socket => Pin::new(socket).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, socket => Pin::new(socket).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, socket => Pin::new(socket).poll_shutdown(cx))
    }
}
