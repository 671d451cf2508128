//! A body on disk: a file without a name, written once and then read once, in the order of the bytes.
//!
//! A disk may be slow, so nothing here touches it on a worker's own thread.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use crate::body::blocks::Blocks;
use crate::body::disk::{Disk, Space};
use crate::io::memory::Held;

/// A file that is being written.
#[derive(Debug)]
pub(super) struct Spool {
    file: Closing,
    length: u64,
}

/// A file that is being read.
#[derive(Debug)]
pub(super) struct Spooled {
    state: State,
    left: u64,
    held: Held,
    /// Bytes of the piece that hyper has, or is being read.
    paid: usize,
}

#[derive(Debug)]
enum State {
    Idle(Closing),
    Reading(JoinHandle<(Closing, io::Result<Vec<u8>>)>),
    Broken,
}

/// A file that isn't closed on a worker's thread: to free gigabytes takes a file system its time.
#[derive(Debug, Default)]
pub(super) struct Closing(pub(super) Option<Open>);

/// The space is given back after the file is closed: in the order of the fields.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) file: File,
    pub(super) space: Space,
}

/// Why bytes aren't in a file.
#[derive(Debug)]
pub(super) enum SpoolError {
    /// They are more than `BUFFER_DISK` leaves now.
    DiskFull,
    /// They are more than it ever leaves, by the size of the file system.
    TooLong,
    /// The operating system's.
    Io(io::Error),
}

impl Spool {
    /// A new file in `directory`, which no one else can open and which is gone when it is closed. `length` bytes are
    /// expected, or more. They are taken of `disk` only when they are written, since a client may announce any number.
    ///
    /// # Errors
    ///
    /// There is no space for `length`, or the operating system's.
    pub(super) async fn create(directory: PathBuf, disk: Arc<Disk>, length: u64) -> Result<Self, SpoolError> {
        let open = spawn_blocking(move || {
            let file = tempfile::tempfile_in(directory)?;
            let limit = disk.look(&file)?;
            // A client may announce any number: of a disk that is large enough for most, only what comes counts.
            match (disk.is_auto(), disk.is_memory(limit)) {
                (true, true) if length > limit => return Err(SpoolError::TooLong),
                (false, _) if disk.lacks(length) => return Err(SpoolError::DiskFull),
                _ => {}
            }
            Ok(Open { file, space: Space::new(&disk) })
        });
        Ok(Self { file: Closing(Some(open.await??)), length: 0 })
    }

    /// Appends `blocks`, and then `data`. What is in memory stays there, paid for, until it is written. `drop_pages` has
    /// the kernel write its pages soon and drop those that are written, because they are memory of this container too.
    ///
    /// # Errors
    ///
    /// There is no space, or the operating system's. The file is of no use then.
    pub(super) async fn append(&mut self, mut blocks: Blocks, data: Bytes, drop_pages: bool) -> Result<(), SpoolError> {
        let length = (blocks.len() + data.len()) as u64;
        if length == 0 {
            return Ok(());
        }
        let mut open = self.file.0.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (open, written) = spawn_blocking(move || {
            let Open { file, space } = &mut open;
            let mut write = || {
                if !space.take(length, file)? {
                    return Err(SpoolError::DiskFull);
                }
                while let Some(block) = blocks.pop() {
                    file.write_all(&block)?;
                }
                file.write_all(&data)?;
                if drop_pages {
                    // Starts the writing, too. If it fails, the kernel does both later.
                    posix_fadvise(&*file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).ok();
                }
                Ok(())
            };
            let written = write();
            (open, written)
        })
        .await?;
        self.file.0 = Some(open);
        self.length += length;
        written
    }

    /// Turns to reading. `held` pays for the pieces that are in memory, while there is room.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn read(mut self, held: Held) -> io::Result<Spooled> {
        if let Some(open) = &mut self.file.0 {
            // Moves a number in the kernel, and nothing on the disk.
            open.file.rewind()?;
        }
        Ok(Spooled { state: State::Idle(self.file), left: self.length, held, paid: 0 })
    }
}

impl Spooled {
    /// Bytes that have not been read.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// The next piece; `None` after the last.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            match &mut self.state {
                State::Idle(_) if self.left == 0 => return Poll::Ready(None),
                State::Idle(file) => {
                    let mut file = std::mem::take(file);
                    let mut piece = vec![0; self.piece()];
                    self.state = State::Reading(spawn_blocking(move || {
                        let read = match &mut file.0 {
                            Some(open) => open.file.read_exact(&mut piece).map(|()| piece),
                            None => Err(io::ErrorKind::BrokenPipe.into()),
                        };
                        (file, read)
                    }));
                }
                State::Reading(reading) => {
                    let ended = ready!(Pin::new(reading).poll(cx));
                    // Unless it goes on: what has ended may not be polled again.
                    self.state = State::Broken;
                    let (file, read) = ended?;
                    if let Ok(piece) = &read {
                        self.state = State::Idle(file);
                        self.left -= piece.len() as u64;
                    }
                    return Poll::Ready(Some(read.map(Bytes::from)));
                }
                State::Broken => return Poll::Ready(Some(Err(io::ErrorKind::BrokenPipe.into()))),
            }
        }
    }

    /// How much to read: a large piece where there is room for it, else a small one, since a body that is on
    /// disk must get on even when others have taken all the memory.
    fn piece(&mut self) -> usize {
        self.held.give_back(self.paid);
        let large = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        self.paid = if self.held.take(large) { large } else { 0 };
        if self.paid > 0 { large } else { large.min(SMALL_PIECE) }
    }
}

impl From<io::Error> for SpoolError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<io::ErrorKind> for SpoolError {
    fn from(kind: io::ErrorKind) -> Self {
        Self::Io(kind.into())
    }
}

impl From<JoinError> for SpoolError {
    fn from(error: JoinError) -> Self {
        Self::Io(error.into())
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        // Without a runtime the process is ending.
        if let (Some(open), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || drop(open));
        }
    }
}

/// Bytes. A way to another thread and back is some 20 µs; 256 KiB take about as long to copy.
pub(super) const PIECE: usize = 256 * 1024;
/// Bytes.
const SMALL_PIECE: usize = 16 * 1024;
