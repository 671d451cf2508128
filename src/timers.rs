//! Coarse timers: one clock for all connections of a worker, ticking only while there are any.
//!
//! Arming a timer is a store: no allocation, no clock reading, no system call. A timer fires at most two
//! [`TICK`]s late and never early.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// All timers of one worker.
#[derive(Debug)]
pub struct Timers {
    start: Instant,
    /// Ticks since `start`, as of the last tick.
    now: Cell<u64>,
    entries: RefCell<Vec<Entry>>,
    free: RefCell<Vec<usize>>,
    used: Cell<usize>,
    /// Wakes [`Timers::wait_until_used`].
    first: Notify,
}

#[derive(Debug, Default)]
struct Entry {
    /// In ticks; 0 is not armed.
    deadline: u64,
    expired: bool,
    waker: Option<Waker>,
}

/// One task's timer: it wakes the task that it was registered by.
#[derive(Debug)]
pub struct Timer {
    timers: Rc<Timers>,
    key: usize,
}

impl Timers {
    /// Timers that count from now.
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            start: Instant::now(),
            now: Cell::new(0),
            entries: RefCell::default(),
            free: RefCell::default(),
            used: Cell::new(0),
            first: Notify::new(),
        })
    }

    /// A new timer, not armed.
    pub fn timer(self: &Rc<Self>) -> Timer {
        if self.used.get() == 0 {
            self.read_clock();
            self.first.notify_one();
        }
        self.used.set(self.used.get() + 1);
        let key = self.free.borrow_mut().pop().unwrap_or_else(|| {
            let mut entries = self.entries.borrow_mut();
            entries.push(Entry::default());
            entries.len() - 1
        });
        Timer { timers: Rc::clone(self), key }
    }

    /// How many timers there are.
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Returns once there has been a timer, even if it is gone by then.
    pub async fn wait_until_used(&self) {
        self.first.notified().await;
    }

    /// Wakes the tasks whose time has come. To be called every [`TICK`].
    pub async fn tick(&self) {
        self.read_clock();
        let mut from = 0;
        while let Some(next) = self.wake_some(from) {
            from = next;
            // Thousands that were idle together are closed together. Who has something to do need not wait for all.
            tokio::task::yield_now().await;
        }
    }

    /// Wakes some of those whose time has come, and returns where to go on.
    fn wake_some(&self, from: usize) -> Option<usize> {
        let now = self.now.get();
        let mut woken = 0;
        // A plain scan: 10,000 entries are some 10 µs ten times a second.
        for (at, entry) in self.entries.borrow_mut().iter_mut().enumerate().skip(from) {
            if entry.deadline != 0 && entry.deadline <= now {
                entry.deadline = 0;
                entry.expired = true;
                entry.waker.as_ref().inspect(|waker| waker.wake_by_ref());
                woken += 1;
                if woken == WOKEN_AT_ONCE {
                    return Some(at + 1);
                }
            }
        }
        None
    }

    /// Wakes every task: something has changed that all of them look at.
    pub fn wake_all(&self) {
        for entry in self.entries.borrow().iter() {
            entry.waker.as_ref().inspect(|waker| waker.wake_by_ref());
        }
    }

    fn read_clock(&self) {
        self.now.set(ticks(self.start.elapsed()));
    }
}

impl Timer {
    /// Wakes the registered task once `after` has passed. Replaces what was armed before.
    pub fn arm(&self, after: Duration) {
        let mut entries = self.timers.entries.borrow_mut();
        let entry = &mut entries[self.key];
        // One more for the part of a tick that had passed when `now` was read, one for rounding.
        entry.deadline = self.timers.now.get() + ticks(after) + 2;
        entry.expired = false;
    }

    /// Forgets what was armed.
    pub fn disarm(&self) {
        let mut entries = self.timers.entries.borrow_mut();
        let entry = &mut entries[self.key];
        entry.deadline = 0;
        entry.expired = false;
    }

    /// Whether the time has passed since the last [`Timer::arm`].
    pub fn expired(&self) -> bool {
        self.timers.entries.borrow()[self.key].expired
    }

    /// Says which task to wake.
    pub fn register(&self, waker: &Waker) {
        let slot = &mut self.timers.entries.borrow_mut()[self.key].waker;
        match slot {
            Some(current) if current.will_wake(waker) => {}
            _ => *slot = Some(waker.clone()),
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.timers.entries.borrow_mut()[self.key] = Entry::default();
        self.timers.free.borrow_mut().push(self.key);
        self.timers.used.set(self.timers.used.get() - 1);
    }
}

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX / 2)
}

/// Tasks: to close a connection takes some 30 µs.
const WOKEN_AT_ONCE: usize = 32;
/// How coarse the timers are.
pub const TICK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_timer_leaves_nothing_behind() {
        let timers = Timers::new();
        let (kept, freed) = (timers.timer(), timers.timer());
        freed.arm(Duration::ZERO);
        freed.register(Waker::noop());
        drop(freed);
        assert_eq!(timers.used(), 1);
        let again = timers.timer();
        assert_eq!(again.key, 1);
        assert!(!again.expired() && !kept.expired());
        assert!(timers.entries.borrow()[again.key].waker.is_none());
        assert_eq!(timers.entries.borrow()[again.key].deadline, 0);
    }

    #[tokio::test]
    async fn a_task_has_its_turn_while_thousands_are_woken() {
        let timers = Timers::new();
        let all: Vec<_> = (0..10 * WOKEN_AT_ONCE).map(|_| timers.timer()).collect();
        for timer in &all {
            timer.arm(Duration::ZERO);
            timer.register(Waker::noop());
        }
        let expired = || all.iter().filter(|timer| timer.expired()).count();
        tokio::time::sleep(TICK * 4).await;
        let seen = async {
            tokio::task::yield_now().await;
            expired()
        };
        let ((), seen) = tokio::join!(timers.tick(), seen);
        assert!((1..all.len()).contains(&seen), "{seen}");
        assert_eq!(expired(), all.len());
    }

    #[tokio::test]
    async fn a_timer_fires_within_two_ticks() {
        let timers = Timers::new();
        let timer = timers.timer();
        let start = Instant::now();
        timer.arm(TICK * 2);
        while !timer.expired() {
            tokio::time::sleep(TICK / 4).await;
            timers.tick().await;
            assert!(start.elapsed() < TICK * 20, "it never fired");
        }
        assert!(start.elapsed() >= TICK * 2, "{:?}", start.elapsed());
    }
}
