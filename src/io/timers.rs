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
    /// When the timer was armed last, in ticks: since then the peer is waited for.
    since: u64,
    /// Bytes that the task holds. 0 is a task that nothing is gained by ending.
    bytes: usize,
    shed: bool,
    /// Whether it is the app that is waited for: others are ended first.
    spared: bool,
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

    /// Ends tasks because memory is short: a quarter of what all of them hold, and those first that wait for a client,
    /// hold the most, and have waited for the longest. Tasks that have waited for less than `patience` are left alone, and
    /// unless it `must`, those without a deadline: they wait for memory, or the app is at work for them. Returns how
    /// many it ends.
    pub fn shed(&self, patience: Duration, must: bool) -> usize {
        let goal = self.entries.borrow().iter().map(|entry| entry.bytes).sum::<usize>() / 4;
        let eligible = |entry: &Entry| must || entry.deadline != 0;
        // As many bytes as another's, within a factor of two, are no reason to come first.
        self.end(
            patience,
            goal,
            eligible,
            |entry| (entry.deadline != 0 && !entry.spared, entry.bytes.ilog2()),
            |entry| entry.bytes,
        )
    }

    /// Ends the tasks that have waited for their peers for the longest, to make way for as many others: one in 32. Those
    /// that have waited for less than `patience` are left alone.
    pub fn shed_oldest(&self, patience: Duration) -> usize {
        let timed = |entry: &Entry| entry.deadline != 0;
        self.end(patience, self.used.get().div_ceil(32), timed, |_| (), |_| 1)
    }

    fn end<K: Ord>(
        &self,
        patience: Duration,
        goal: usize,
        eligible: impl Fn(&Entry) -> bool,
        rank: impl Fn(&Entry) -> K,
        gain: impl Fn(&Entry) -> usize,
    ) -> usize {
        let (now, patience) = (self.now.get(), ticks(patience));
        let mut entries = self.entries.borrow_mut();
        let eligible =
            |entry: &&mut Entry| entry.bytes > 0 && !entry.shed && entry.since + patience <= now && eligible(entry);
        let mut candidates: Vec<&mut Entry> = entries.iter_mut().filter(eligible).collect();
        candidates.sort_unstable_by_key(|entry| (std::cmp::Reverse(rank(entry)), entry.since));
        let (mut gained, mut ended) = (0, 0);
        for entry in candidates {
            if gained >= goal {
                break;
            }
            gained += gain(entry);
            ended += 1;
            entry.shed = true;
            entry.waker.as_ref().inspect(|waker| waker.wake_by_ref());
        }
        ended
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
        entry.spared = false;
        entry.since = self.timers.now.get();
    }

    /// Has other tasks ended before this one when memory is short, until it is armed again: it waits for the app.
    pub fn spare(&self) {
        self.timers.entries.borrow_mut()[self.key].spared = true;
    }

    /// Says how many bytes the task holds. See [`Timers::shed`].
    pub fn weigh(&self, bytes: usize) {
        self.timers.entries.borrow_mut()[self.key].bytes = bytes;
    }

    /// Ends the task because memory is short.
    pub fn shed(&self) {
        let entry = &mut self.timers.entries.borrow_mut()[self.key];
        entry.shed = true;
        entry.waker.as_ref().inspect(|waker| waker.wake_by_ref());
    }

    /// Has the task go on though it was to end: until now its peer was not what was waited for.
    pub fn pardon(&self) {
        let entry = &mut self.timers.entries.borrow_mut()[self.key];
        entry.shed = false;
        entry.since = self.timers.now.get();
    }

    /// Whether the task has to end because memory is short.
    pub fn is_shed(&self) -> bool {
        self.timers.entries.borrow()[self.key].shed
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
    // Not through `as_millis`, which divides 128 bits.
    const PER_SECOND: u64 = 1000 / TICK.subsec_millis() as u64;
    let rest = u64::from(time.subsec_millis()) * PER_SECOND / 1000;
    (time.as_secs().saturating_mul(PER_SECOND) + rest).min(u64::MAX / 2)
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

    #[test]
    fn tasks_that_hold_the_most_for_the_slowest_peers_end_first() {
        let timers = Timers::new();
        let timer = |bytes: usize, since: u64, armed: bool| {
            let timer = timers.timer();
            timers.now.set(since);
            timer.arm(Duration::from_mins(1));
            if !armed {
                timer.disarm();
            }
            timer.weigh(bytes);
            timer
        };
        let (weightless, recent) = (timer(0, 1, true), timer(2500, 95, true));
        let (large, younger, older) = (timer(800, 50, true), timer(100, 30, true), timer(110, 20, true));
        // The app is at work for this one.
        let busy = timer(900, 1, false);
        timers.now.set(100);
        let shed = || [&large, &older, &younger, &busy, &recent, &weightless].map(Timer::is_shed);
        // A quarter of 4410.
        assert_eq!(timers.shed(TICK * 10, false), 3);
        assert_eq!(shed(), [true, true, true, false, false, false]);
        assert_eq!((timers.shed(TICK * 10, true), shed()), (1, [true, true, true, true, false, false]));
        assert_eq!((timers.shed(TICK * 10, true), timers.shed(Duration::ZERO, false)), (0, 1));
        assert_eq!(shed(), [true, true, true, true, true, false]);
        drop((large, busy, recent));
        let (waits_for_app, waits_for_client) = (timer(800, 50, true), timer(400, 60, true));
        waits_for_app.spare();
        timers.now.set(100);
        assert_eq!((timers.shed(TICK, false), waits_for_client.is_shed(), waits_for_app.is_shed()), (1, true, false));
        assert_eq!((timers.shed(TICK, false), waits_for_app.is_shed()), (1, true));
        drop((waits_for_app, waits_for_client));
        let (one, other) = (timer(400, 90, true), timer(390, 80, true));
        timers.now.set(100);
        assert_eq!((timers.shed(Duration::ZERO, false), one.is_shed(), other.is_shed()), (1, false, true));
    }

    #[test]
    fn to_make_way_the_oldest_end() {
        let timers = Timers::new();
        let all: Vec<_> = (0..64_u64)
            .map(|at| {
                let timer = timers.timer();
                timers.now.set(64 - at);
                timer.arm(Duration::from_mins(1));
                timer.weigh(1);
                timer
            })
            .collect();
        timers.now.set(64);
        assert_eq!(timers.shed_oldest(Duration::ZERO), 2);
        let shed: Vec<_> = (0..64).filter(|at| all[*at].is_shed()).collect();
        assert_eq!(shed, [62, 63]);
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
