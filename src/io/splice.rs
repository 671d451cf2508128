//! Bytes in bulk from one socket to another past this process: splice(2), through a pipe that holds them meanwhile.
//!
//! Half of the CPU that copying takes, where a read brings as much as it may; for less it is not worth the pipe's two
//! descriptors. So a pipe is taken while a tunnel's direction is busy, or for a long answer, and given back after.

use std::cell::RefCell;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use tokio::io::Interest;

use crate::io::socket::Socket;

/// A pipe with bytes on their way in it.
#[derive(Debug)]
pub struct Pipe {
    ends: Option<(PipeReader, PipeWriter)>,
    inside: usize,
}

/// What became of an attempt to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes into the pipe.
    Some(usize),
    /// The socket has nothing now.
    Nothing,
    /// It never will have.
    End,
}

impl Pipe {
    /// A pipe, if there is one to be had. It is for sockets that are plain.
    pub fn take() -> Option<Self> {
        let ends = POOL.with_borrow_mut(|pool| {
            let kept = pool.idle.pop();
            if kept.is_none() && pool.taken >= MOST {
                return None;
            }
            let ends = kept.or_else(|| io::pipe().ok())?;
            pool.taken += 1;
            Some(ends)
        })?;
        Some(Self { ends: Some(ends), inside: 0 })
    }

    /// Bytes that have been read and not been written.
    pub fn inside(&self) -> usize {
        self.inside
    }

    /// Takes what `from` has, and there is room for, but no more than `most` bytes.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn read(&mut self, from: &Socket, most: usize) -> io::Result<Moved> {
        let Some((_, end)) = &self.ends else { return Ok(Moved::Nothing) };
        let read = match from {
            Socket::Tcp(socket) => socket.try_io(Interest::READABLE, || move_between(socket, end, most)),
            Socket::Unix(socket) => socket.try_io(Interest::READABLE, || move_between(socket, end, most)),
            Socket::Tls(_) => return Ok(Moved::Nothing),
        };
        match read {
            Ok(0) => Ok(Moved::End),
            Ok(count) => {
                self.inside += count;
                Ok(Moved::Some(count))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Moved::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Writes what is inside, and returns how much of it.
    pub fn poll_write(&mut self, to: &Socket, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some((end, _)) = &self.ends else { return Poll::Ready(Ok(0)) };
        loop {
            let written = match to {
                Socket::Tcp(socket) => {
                    ready!(socket.poll_write_ready(cx))?;
                    socket.try_io(Interest::WRITABLE, || move_between(end, socket, self.inside))
                }
                Socket::Unix(socket) => {
                    ready!(socket.poll_write_ready(cx))?;
                    socket.try_io(Interest::WRITABLE, || move_between(end, socket, self.inside))
                }
                Socket::Tls(_) => return Poll::Ready(Ok(0)),
            };
            match written {
                // It was not as ready as it seemed; the next turn waits.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.inside -= written.as_ref().copied().unwrap_or_default();
                    return Poll::Ready(written);
                }
            }
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            pool.taken -= 1;
            // What still has bytes in it is nobody else's.
            if self.inside == 0 {
                pool.idle.extend(self.ends.take());
            }
        })
        // A worker that ends drops what is left without a pool.
        .ok();
    }
}

/// Closes the pipes that nobody has at the moment: a worker that has become idle keeps none of its busiest minute's.
pub fn give_back() {
    POOL.with_borrow_mut(|pool| pool.idle.clear());
}

fn move_between(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    loop {
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        match splice(&from, None, &to, None, most, flags) {
            Err(Errno::EINTR) => {}
            outcome => return outcome.map_err(io::Error::from),
        }
    }
}

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<(PipeReader, PipeWriter)>,
    taken: usize,
}

thread_local! {
    /// A worker's pipes.
    static POOL: RefCell<Pool> = RefCell::default();
}

/// Pipes of one worker: half of the descriptors that are left for other things than connections.
const MOST: usize = 16;
