//! A body on disk: a file without a name, written once and then read once, in the order of the bytes.
//!
//! A disk may be slow, so nothing here touches it on a worker's own thread.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::body::blocks::Blocks;
use crate::memory::Held;

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
struct Closing(Option<File>);

impl Spool {
    /// A new file in `directory`, which nobody else can open and which is gone when it is closed.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) async fn create(directory: PathBuf) -> io::Result<Self> {
        let file = spawn_blocking(move || tempfile::tempfile_in(directory)).await??;
        Ok(Self { file: Closing(Some(file)), length: 0 })
    }

    /// Appends `blocks`, and then `data`. What is in memory stays there, paid for, until it is written.
    ///
    /// # Errors
    ///
    /// The operating system's. The file is of no use then.
    pub(super) async fn append(&mut self, mut blocks: Blocks, data: Bytes) -> io::Result<()> {
        let length = (blocks.len() + data.len()) as u64;
        if length == 0 {
            return Ok(());
        }
        let mut file = self.file.0.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (file, written) = spawn_blocking(move || {
            let mut write = || {
                while let Some(block) = blocks.pop() {
                    file.write_all(&block)?;
                }
                file.write_all(&data)
            };
            let written = write();
            (file, written)
        })
        .await?;
        self.file.0 = Some(file);
        self.length += length;
        written
    }

    /// Turns to reading. `held` pays for the pieces that are in memory, while there is room.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn read(mut self, held: Held) -> io::Result<Spooled> {
        if let Some(file) = &mut self.file.0 {
            // Moves a number in the kernel, and nothing on the disk.
            file.rewind()?;
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
                            Some(open) => open.read_exact(&mut piece).map(|()| piece),
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

impl Drop for Closing {
    fn drop(&mut self) {
        // Without a runtime the process is ending.
        if let (Some(file), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || drop(file));
        }
    }
}

/// Bytes. A way to another thread and back is some 20 µs; 256 KiB take about as long to copy.
pub(super) const PIECE: usize = 256 * 1024;
/// Bytes.
const SMALL_PIECE: usize = 16 * 1024;
