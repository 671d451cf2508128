//! One bound for the bytes that all exchanges of the process hold back in memory together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What may be held. Cheap to share: every worker has a handle to the same one.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bytes: usize,
    used: AtomicUsize,
}

impl Budget {
    /// At most `bytes` in all.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Shared { bytes, used: AtomicUsize::new(0) }))
    }

    /// A share of the budget, with nothing in it yet.
    pub fn hold(&self) -> Held {
        Held { budget: self.clone(), bytes: 0 }
    }

    /// Whether no more than this much of it is used: `share` in percent.
    pub fn is_below(&self, share: usize) -> bool {
        self.0.used.load(Ordering::Relaxed) < self.0.bytes / 100 * share
    }
}

/// Bytes that are held; given back when it is dropped.
#[derive(Debug)]
pub struct Held {
    budget: Budget,
    bytes: usize,
}

impl Held {
    /// Takes `bytes` more, unless that would be beyond the bound.
    pub fn take(&mut self, bytes: usize) -> bool {
        let Shared { bytes: bound, used } = &*self.budget.0;
        let take = |used: usize| used.checked_add(bytes).filter(|sum| sum <= bound);
        let taken = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    /// Holds exactly `bytes`, within the bound or not: for what is in memory already.
    pub fn set(&mut self, bytes: usize) {
        let used = &self.budget.0.used;
        if bytes > self.bytes {
            used.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else if bytes < self.bytes {
            used.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The budget of a process whose container may use `limit` bytes of memory: a quarter, but enough to be of use and not
/// so much that an idle task is sized for it.
pub fn share_of(limit: Option<u64>) -> usize {
    let quarter = limit.map_or(MOST, |limit| usize::try_from(limit / 4).unwrap_or(MOST));
    quarter.clamp(LEAST, MOST)
}

/// The container's memory limit in bytes, from its control group (version 2, else 1).
pub fn container_limit() -> Option<u64> {
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .into_iter()
        .find_map(|file| std::fs::read_to_string(file).ok())
        // `max`, and version 1's number near 2^63, are no limits.
        .and_then(|text| text.trim().parse().ok())
        .filter(|bytes| *bytes < 1 << 60)
}

const LEAST: usize = 8 << 20;
const MOST: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is_and_all_of_it_comes_back() {
        let budget = Budget::new(100);
        let (mut one, mut other) = (budget.hold(), budget.hold());
        assert!(one.take(60) && !other.take(41) && other.take(40) && !one.take(1));
        other.set(10);
        assert!(one.take(30) && !one.take(1));
        drop(one);
        assert!(budget.is_below(11) && !budget.is_below(10));
        drop(other);
        assert!(budget.is_below(1));
    }

    #[test]
    fn the_budget_is_a_quarter_of_the_container_within_bounds() {
        assert_eq!(share_of(None), MOST);
        assert_eq!(share_of(Some(64 << 20)), 16 << 20);
        assert_eq!(share_of(Some(1 << 20)), LEAST);
        assert_eq!(share_of(Some(1 << 40)), MOST);
    }
}
