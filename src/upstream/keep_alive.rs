//! How long the app leaves an idle connection open, as far as its closings show: when that is less than hostward's own
//! `UPSTREAM_IDLE_TIMEOUT`, a request now and then meets the moment of the close, and the log says which value is safe.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::io::timers::TICK;
use crate::log::Repeats;

/// The last closings that one worker has seen.
#[derive(Debug)]
pub(super) struct KeepAlive {
    closings: RefCell<Vec<Closing>>,
    repeats: Arc<Repeats>,
}

#[derive(Clone, Copy, Debug)]
struct Closing {
    seen: Instant,
    /// For how long the connection was idle and open, at least.
    open_for: Duration,
    /// And at most.
    idle_for: Duration,
}

impl KeepAlive {
    pub(super) fn new(repeats: Arc<Repeats>) -> Self {
        Self { closings: RefCell::default(), repeats }
    }

    /// The app has closed a connection, after it was idle for at least `open_for` and at most `idle_for`.
    pub(super) fn closed(&self, open_for: Duration, idle_for: Duration, now: Instant) {
        // Who closes after each answer has no keep-alive to be shorter than.
        if open_for < TICK {
            return;
        }
        let mut closings = self.closings.borrow_mut();
        // Several at one moment are one event: the app's timer, or its end.
        if closings.last().is_some_and(|last| now.duration_since(last.seen) < TICK / 2) {
            return;
        }
        if closings.len() == ENOUGH {
            closings.remove(0);
        }
        closings.push(Closing { seen: now, open_for, idle_for });
        let Some((open_for, idle_for)) = measure(&closings) else { return };
        if let Some(repeated) = self.repeats.admit(MESSAGE, "keep_alive", now) {
            let after_ms = u64::try_from(idle_for.as_millis()).unwrap_or(u64::MAX);
            let hint = format!(
                "a request may meet the moment of the close: HOSTWARD_UPSTREAM_IDLE_TIMEOUT={}ms is safe, or let the \
                 app keep idle connections for longer",
                safe(open_for).as_millis()
            );
            tracing::warn!(after_ms, repeated, hint, "{MESSAGE}");
        }
    }
}

/// The shortest of the last closings' times, unless they differ so much that no timer of the app's made them: when an
/// app is restarted, it closes its connections whatever their age.
fn measure(closings: &[Closing]) -> Option<(Duration, Duration)> {
    let longest = closings.iter().map(|closing| closing.open_for).max()?;
    let shortest = closings.iter().min_by_key(|closing| closing.open_for)?;
    (closings.len() == ENOUGH && longest <= shortest.open_for * 2).then_some((shortest.open_for, shortest.idle_for))
}

/// Four fifths of it, in whole ticks.
fn safe(open_for: Duration) -> Duration {
    let ticks = (open_for * 4 / 5).as_millis() / TICK.as_millis();
    TICK * u32::try_from(ticks.max(1)).unwrap_or(u32::MAX)
}

/// Closings that make a habit.
const ENOUGH: usize = 3;
const MESSAGE: &str = "app closes idle connections early";

#[cfg(test)]
mod tests {
    use super::*;

    fn closings(ages: &[u64]) -> Vec<Closing> {
        let closing = |age: &u64| Closing {
            seen: Instant::now(),
            open_for: Duration::from_millis(*age),
            idle_for: Duration::from_millis(*age) + TICK,
        };
        ages.iter().map(closing).collect()
    }

    #[test]
    fn three_closings_after_about_the_same_time_are_the_apps_keep_alive() {
        let found = |ages: &[u64]| measure(&closings(ages)).map(|(open_for, _)| open_for.as_millis());
        assert_eq!(found(&[5000, 4900, 5100]), Some(4900));
        assert_eq!(found(&[2000, 2900, 2100]), Some(2000));
        assert_eq!(found(&[5000, 4900]), None);
        assert_eq!(found(&[5000, 400, 5100]), None);
    }

    #[test]
    fn the_value_is_below_what_was_measured() {
        for (measured, named) in [(4900, 3900), (2000, 1600), (150, 100), (60_000, 48_000)] {
            assert_eq!(safe(Duration::from_millis(measured)), Duration::from_millis(named));
        }
    }

    #[test]
    fn what_closes_after_each_answer_or_all_at_once_is_no_keep_alive() {
        let keep_alive = KeepAlive::new(Arc::default());
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        for round in 0..9 {
            keep_alive.closed(Duration::from_millis(5), Duration::from_millis(90), start + second * round);
        }
        assert!(keep_alive.closings.borrow().is_empty());
        for _ in 0..9 {
            keep_alive.closed(second * 5, second * 5 + TICK, start);
        }
        assert_eq!(keep_alive.closings.borrow().len(), 1);
    }
}
