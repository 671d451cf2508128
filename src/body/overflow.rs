//! A response that its client takes too slowly, in a file until it is taken: first in, first out.
//!
//! One thing at a time is done with the file, on a thread that may block. What isn't written yet is in memory.

use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::body::Buffering;
use crate::body::spool::{Closing, Open, SpoolError};
use crate::http2::joined::Joined;

/// Bytes of a response that are in a file, or on the way to it.
#[derive(Debug)]
pub struct Overflow {
    buffering: Arc<Buffering>,
    file: State,
    /// Where in the file what is still to be taken begins, and where it ends.
    read: u64,
    written: u64,
    /// What has been read from the file and not been taken.
    front: Option<Bytes>,
    /// What is behind the file's bytes.
    pending: Joined,
    /// Bytes that are being written.
    writing: usize,
    /// Nothing more can be written.
    full: bool,
}

#[derive(Debug)]
enum State {
    /// There is no file before there is something to write.
    Idle(Option<Closing>),
    Reading(JoinHandle<(Closing, io::Result<Vec<u8>>)>),
    Writing(JoinHandle<(Option<Closing>, Joined, Result<(), SpoolError>)>),
    /// What was in the file is lost.
    Broken,
}

impl Overflow {
    pub(super) fn new(buffering: Arc<Buffering>) -> Self {
        Self {
            buffering,
            file: State::Idle(None),
            read: 0,
            written: 0,
            front: None,
            pending: Joined::default(),
            writing: 0,
            full: false,
        }
    }

    /// Bytes of memory that this takes.
    pub fn memory(&self) -> usize {
        self.pending.memory() + self.writing + self.front.as_ref().map_or(0, Bytes::len)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        matches!(self.file, State::Idle(_))
            && self.read == self.written
            && self.front.is_none()
            && self.pending.is_empty()
    }

    /// Appends what the app has sent.
    pub fn push(&mut self, data: Bytes) {
        self.pending.push(data);
    }

    /// Writes on. Ready when there is space for more, `None` when there won't be any.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        loop {
            let file = self.poll_file(cx);
            let bytes = self.pending.memory();
            if self.full || matches!(file, Poll::Ready(Err(_))) {
                return Poll::Ready(None);
            }
            let part = if self.buffering.has_memory() { PART } else { LITTLE_PART };
            if bytes < part {
                return Poll::Ready(Some(()));
            }
            if file.is_pending() {
                return Poll::Pending;
            }
            self.write();
        }
    }

    /// Takes out what came first; `None` when there is nothing.
    pub fn poll_pop(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if let Some(front) = self.front.take() {
                return Poll::Ready(Some(Ok(front)));
            }
            if let Err(error) = ready!(self.poll_file(cx)) {
                return Poll::Ready(Some(Err(error)));
            }
            if self.front.is_some() {
                continue;
            }
            if self.read == self.written {
                // The file is used from its beginning.
                (self.read, self.written) = (0, 0);
                return Poll::Ready(self.pending.pop().map(Ok));
            }
            if let Err(error) = self.read() {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    /// Waits until nothing is being done with the file.
    fn poll_file(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.file {
            State::Idle(_) => {}
            State::Broken => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            State::Reading(reading) => {
                let ended = ready!(Pin::new(reading).poll(cx));
                self.file = State::Broken;
                let (file, data) = ended?;
                let data = data?;
                self.file = State::Idle(Some(file));
                self.read += data.len() as u64;
                self.front = Some(data.into());
            }
            State::Writing(writing) => {
                let ended = ready!(Pin::new(writing).poll(cx));
                self.file = State::Broken;
                let (file, mut data, result) = ended?;
                self.file = State::Idle(file);
                match result {
                    Ok(()) => self.written += self.writing as u64,
                    Err(error) => {
                        // It stays in memory, before what came behind it.
                        while let Some(part) = self.pending.pop() {
                            data.push(part);
                        }
                        self.pending = data;
                        self.full = true;
                        self.buffering.overflow_failed(&error);
                    }
                }
                self.writing = 0;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn write(&mut self) {
        let State::Idle(file) = &mut self.file else { return };
        let (file, mut data, at) = (file.take(), std::mem::take(&mut self.pending), self.written);
        let parts = data.seal();
        let parts: Vec<Bytes> = (0..parts).filter_map(|index| data.part(index)).collect();
        self.writing = parts.iter().map(Bytes::len).sum();
        let length = self.writing as u64;
        let buffering = Arc::clone(&self.buffering);
        self.file = State::Writing(spawn_blocking(move || {
            let (file, result) =
                match file.map_or_else(|| buffering.create_for_response().map(|open| Closing(Some(open))), Ok) {
                    Ok(mut file) => {
                        let result = append(&mut file, &parts, at, at + length, !buffering.has_memory());
                        (Some(file), result)
                    }
                    Err(error) => (None, Err(error)),
                };
            (file, data, result)
        }));
    }

    fn read(&mut self) -> io::Result<()> {
        let State::Idle(file) = &mut self.file else { return Ok(()) };
        let file = file.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (at, left) = (self.read, self.written - self.read);
        let mut data = vec![
            0;
            usize::try_from(left).unwrap_or(usize::MAX).min(if self.buffering.has_memory() {
                PART
            } else {
                LITTLE_PART
            })
        ];
        self.file = State::Reading(spawn_blocking(move || {
            let read = match &file.0 {
                Some(open) => open.file.read_exact_at(&mut data, at).map(|()| data),
                None => Err(io::ErrorKind::BrokenPipe.into()),
            };
            (file, read)
        }));
        Ok(())
    }
}

fn append(file: &mut Closing, parts: &[Bytes], at: u64, end: u64, drop_pages: bool) -> Result<(), SpoolError> {
    let Open { file, space } = file.0.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
    if !space.grow_for_response(end, file)? {
        return Err(SpoolError::DiskFull);
    }
    let mut at = at;
    for part in parts {
        file.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    if drop_pages {
        // They are memory of this container. If it fails, the kernel does it later.
        posix_fadvise(&*file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).ok();
    }
    Ok(())
}

/// Bytes that are read or written at once.
const PART: usize = 64 * 1024;
/// Bytes when memory is short.
const LITTLE_PART: usize = 16 * 1024;
