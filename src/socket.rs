//! A connected stream socket of any kind that hostward speaks over.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

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
