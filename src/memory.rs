//! One bound on what the whole process keeps of messages that somebody else is too slow for; and the way back to the
//! kernel of what nobody keeps any more.
//!
//! Whoever wants to keep bytes asks first, and gives back by dropping its [`Held`]. It knows nothing of messages.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

/// So many bytes, shared by all workers. A clone is the same budget.
#[derive(Clone, Debug)]
pub struct Budget {
    room: Arc<Semaphore>,
    bytes: usize,
}

/// What one holder has taken of a [`Budget`]. Dropping it gives everything back.
#[derive(Debug)]
pub struct Held {
    room: Arc<Semaphore>,
    bytes: usize,
}

impl Budget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Self {
        // A semaphore counts in 32 bits at a time; 4 GiB is above every bound there is.
        let bytes = bytes.min(u32::MAX as usize).min(Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(bytes)), bytes }
    }

    /// Whether less than this much of it is taken: `share` in percent.
    pub fn is_below(&self, share: usize) -> bool {
        self.taken() < self.bytes / 100 * share
    }

    /// How much of it is taken.
    pub fn taken(&self) -> usize {
        self.bytes - self.room.available_permits().min(self.bytes)
    }

    /// The whole of it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A holder that has taken nothing yet.
    pub fn hold(&self) -> Held {
        Held { room: Arc::clone(&self.room), bytes: 0 }
    }
}

impl Held {
    /// Takes `bytes` more. False, and nothing taken, when there aren't as many.
    pub fn take(&mut self, bytes: usize) -> bool {
        let taken = u32::try_from(bytes).is_ok_and(|count| match self.room.try_acquire_many(count) {
            Ok(permit) => {
                permit.forget();
                true
            }
            Err(_) => false,
        });
        self.bytes += if taken { bytes } else { 0 };
        taken
    }

    /// Takes `bytes` more as soon as there are as many; those who have waited longer come first. Whoever waits
    /// must bound the wait: others may be waiting for what this one holds.
    pub async fn wait(&mut self, bytes: usize) {
        let count = u32::try_from(bytes).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        if let Ok(permit) = self.room.acquire_many(count).await {
            permit.forget();
            self.bytes += bytes;
        }
    }

    /// Holds `bytes`, or as many of them as there are: for what is in memory already.
    pub fn set(&mut self, bytes: usize) {
        if bytes < self.bytes {
            self.give_back(self.bytes - bytes);
        } else if !self.take(bytes - self.bytes) {
            self.take((bytes - self.bytes).min(self.room.available_permits()));
        }
    }

    /// Gives back a part.
    pub fn give_back(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.room.add_permits(bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.add_permits(self.bytes);
    }
}

/// Lets the kernel have what has been free for a while. mimalloc sees to that when it takes or frees a page of its own,
/// and then only: a process that has become idle would keep for hours what its busiest minute took. So here is a page,
/// which nobody writes to.
pub fn give_back() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(PAGE)));
}

/// How often to give back. mimalloc waits for a second before it thinks that free memory is not needed again.
pub const GIVE_BACK: Duration = Duration::from_millis(1200);

/// The bound for a container that may use `limit` bytes: a quarter, because the rest is for connections,
/// heads and the program itself. `None` is no limit.
pub fn bound(limit: Option<u64>) -> usize {
    let quarter = limit.map_or(MOST, |limit| usize::try_from(limit / 4).unwrap_or(MOST));
    quarter.clamp(LEAST, MOST)
}

/// The memory limit of this process's container, from the files of cgroup v2 or v1. Where there is no limit,
/// v2 says `max` and v1 a number beyond every machine.
pub fn container_limit() -> Option<u64> {
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok())
}

/// Bytes; more than mimalloc puts into one page with anything else.
const PAGE: usize = 2 << 20;
/// Bytes. Below this a handful of ordinary uploads would be turned away.
const LEAST: usize = 8 << 20;
/// Bytes. The container in front of an app is a small one, also where nobody has said how small.
const MOST: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_dropped_is_given_back_and_nobody_takes_more_than_there_is() {
        let budget = Budget::new(100);
        let (mut one, mut other) = (budget.hold(), budget.hold());
        assert!(one.take(60) && !other.take(41) && other.take(40) && !one.take(1));
        one.give_back(10);
        assert!(!other.take(11) && other.take(10));
        drop(other);
        assert!(one.take(50) && !one.take(1));
        // Nobody can make room that wasn't taken.
        one.give_back(1000);
        assert!(one.take(100) && !budget.hold().take(1));
    }

    #[test]
    fn what_is_in_memory_already_is_counted_as_far_as_there_is_room() {
        let budget = Budget::new(100);
        let (mut one, mut other) = (budget.hold(), budget.hold());
        one.set(60);
        other.set(50);
        assert!(budget.is_below(101) && !budget.is_below(100));
        one.set(10);
        assert!(budget.is_below(51) && !budget.is_below(50));
        drop((one, other));
        assert!(budget.is_below(1));
    }

    #[tokio::test]
    async fn whoever_waits_gets_room_when_another_is_dropped() {
        let budget = Budget::new(10);
        let (mut one, mut other) = (budget.hold(), budget.hold());
        assert!(one.take(8));
        assert!(tokio::time::timeout(Duration::from_millis(20), other.wait(5)).await.is_err());
        // A wait that was given up has taken nothing.
        assert!(one.take(2));
        drop(one);
        tokio::time::timeout(Duration::from_secs(5), other.wait(10)).await.unwrap();
        assert!(!budget.hold().take(1));
    }

    #[test]
    fn the_bound_is_a_quarter_of_the_container_within_limits() {
        let mib = 1 << 20;
        for (limit, expected) in [
            (None, 32),
            (Some(64 * mib), 16),
            (Some(100 * mib), 25),
            (Some(4 * mib), 8),
            (Some(0), 8),
            (Some(1024 * mib), 32),
            (Some(9_223_372_036_854_771_712), 32),
        ] {
            assert_eq!(bound(limit), expected << 20, "{limit:?}");
        }
    }
}
