//! The disk space that all spool files of the process may take together (`BUFFER_DISK`).

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::statvfs::fstatvfs;

/// How much there may be, and how much is taken. Shared by all workers.
#[derive(Debug)]
pub(super) struct Disk {
    /// Bytes; `None` follows the file system.
    given: Option<u64>,
    /// Bytes that files may take where they are memory.
    memory: u64,
    taken: AtomicU64,
    /// What the limit was when it was needed last; 0 before.
    limit: AtomicU64,
}

/// The space that one file takes. Dropping it gives the space back.
#[derive(Debug)]
pub(super) struct Space {
    disk: Arc<Disk>,
    bytes: u64,
}

impl Disk {
    /// At most `given` bytes. Without it, half of what is free, and `memory` bytes where files are memory.
    pub(super) fn new(given: Option<u64>, memory: u64) -> Arc<Self> {
        Arc::new(Self { given, memory, taken: AtomicU64::new(0), limit: AtomicU64::new(given.unwrap_or_default()) })
    }

    /// Whether this limit is that of a file system in memory.
    pub(super) fn is_memory(&self, limit: u64) -> bool {
        limit <= self.memory
    }

    /// Whether the limit follows the file system.
    pub(super) fn is_auto(&self) -> bool {
        self.given.is_none()
    }

    /// Bytes that are taken.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Bytes that may be, as of when that was needed last; 0 before.
    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Whether there was too little left for `bytes` when the limit was needed last.
    pub(super) fn lacks(&self, bytes: u64) -> bool {
        let limit = self.limit();
        limit > 0 && self.taken().saturating_add(bytes) > limit
    }

    /// The limit now, by the file system that `file` is in. It may block.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn look(&self, file: &File) -> io::Result<u64> {
        let limit = match self.given {
            Some(given) => given,
            None => self.share(file)?,
        };
        self.limit.store(limit, Ordering::Relaxed);
        Ok(limit)
    }

    fn share(&self, file: &File) -> io::Result<u64> {
        let space = fstatvfs(file)?;
        let free = space.blocks_available().saturating_mul(space.fragment_size());
        let half = free.saturating_add(self.taken()) / 2;
        if fstatfs(file)?.filesystem_type() == TMPFS_MAGIC {
            // Its pages are the container's memory, which the kernel can't take back.
            return Ok(half.min(self.memory));
        }
        // A file system of no size doesn't count its blocks (ramfs, some of FUSE's).
        Ok(if space.blocks() == 0 { self.memory } else { half })
    }
}

impl Space {
    /// None yet.
    pub(super) fn new(disk: &Arc<Disk>) -> Self {
        Self { disk: Arc::clone(disk), bytes: 0 }
    }

    /// Takes `bytes` more for `file`. False, and nothing taken, when there aren't as many. It may block.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn take(&mut self, bytes: u64, file: &File) -> io::Result<bool> {
        let limit = self.disk.look(file)?;
        Ok(self.take_within(bytes, limit))
    }

    /// Makes it `bytes` in all, for a response. Responses leave half of the limit to requests.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn grow_for_response(&mut self, bytes: u64, file: &File) -> io::Result<bool> {
        let limit = self.disk.look(file)? / 2;
        Ok(self.take_within(bytes.saturating_sub(self.bytes), limit))
    }

    fn take_within(&mut self, bytes: u64, limit: u64) -> bool {
        if bytes == 0 {
            return true;
        }
        let more = |taken: u64| taken.checked_add(bytes).filter(|taken| *taken <= limit);
        let taken = self.disk.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        self.bytes += if taken { bytes } else { 0 };
        taken
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.disk.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_share_the_limit_and_give_their_space_back() {
        let file = tempfile::tempfile().unwrap();
        let disk = Disk::new(Some(100), 0);
        let (mut one, mut other) = (Space::new(&disk), Space::new(&disk));
        assert!(one.take(60, &file).unwrap() && !other.take(41, &file).unwrap() && other.take(40, &file).unwrap());
        assert!(!one.take(1, &file).unwrap() && !one.take(u64::MAX, &file).unwrap());
        assert!(disk.lacks(1) && !disk.lacks(0));
        drop(other);
        assert_eq!((disk.taken(), disk.limit()), (60, 100));
        assert!(one.take(40, &file).unwrap());
        drop(one);
        assert_eq!(disk.taken(), 0);
    }

    #[test]
    fn without_a_limit_it_is_half_of_what_is_free_and_what_the_files_take_counts_as_free() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let disk = Disk::new(None, u64::MAX);
        assert!(!disk.lacks(u64::MAX), "nothing is known before the first look");
        let half = disk.look(&file).unwrap();
        assert!(half > 1 << 20, "{half}");
        // Taken and not written, so that it is still free as well.
        let mut space = Space::new(&disk);
        assert!(space.take(half / 2, &file).unwrap());
        let limit = disk.look(&file).unwrap();
        // Others write to this disk, too.
        assert!(limit.abs_diff(half + half / 4) < half / 8, "{half} {limit}");
    }

    #[test]
    fn on_a_tmpfs_it_is_at_most_the_share_of_the_memory() {
        let Ok(file) = tempfile::tempfile_in("/dev/shm") else { return };
        if fstatfs(&file).unwrap().filesystem_type() == TMPFS_MAGIC {
            assert_eq!(Disk::new(None, 4096).look(&file).unwrap(), 4096);
            assert_eq!(Disk::new(Some(8192), 4096).look(&file).unwrap(), 8192);
        }
    }
}
