//! The hosts that were refused, or would be: how often each came, for the log and for `/status`. Bounded, because clients
//! choose them: when there is no room, and no host that nobody has asked for in a while, a new one counts as "others".

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::diagnosis::diagnose::Sender;
use crate::log::WINDOW;
use crate::policy::Refusal;

/// What has been refused since the start.
#[derive(Debug, Default)]
pub struct Refusals {
    reasons: Mutex<HashMap<Refusal, Reason>>,
}

#[derive(Debug, Default)]
struct Reason {
    hosts: HashMap<Box<str>, Seen>,
    /// Those that nobody can do anything about share a line in the log, whatever their hosts.
    crowds: HashMap<Sender, Line>,
}

#[derive(Debug)]
struct Seen {
    count: u64,
    last: Instant,
    sender: Sender,
    line: Line,
}

/// The log's line: when it was written last, and how often it was left out since.
#[derive(Debug, Default)]
struct Line {
    written: Option<Instant>,
    left_out: u64,
}

/// One host that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// As the client sent it, in small letters; [`OTHERS`] for all that there was no room for.
    pub host: String,
    /// Why.
    pub reason: &'static str,
    /// Who seems to have sent it.
    pub sender: &'static str,
    /// How often.
    pub count: u64,
    /// How long ago the last one was.
    pub seconds_ago: u64,
}

impl Refusals {
    /// Counts a refusal. `sender` is asked when the host is new, and `tell` when there is to be a line in the log: with the
    /// number of those that were left out. Neither is asked more often than there is room for hosts, or a minute has hosts.
    pub fn count<T>(
        &self,
        refusal: Refusal,
        host: &str,
        now: Instant,
        sender: impl FnOnce() -> Sender,
        tell: impl FnOnce(u64) -> T,
    ) -> Option<T> {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let Reason { hosts, crowds } = reasons.entry(refusal).or_default();
        let host = make_room(hosts, host, now);
        if !hosts.contains_key(host) {
            let sender = if host == OTHERS { Sender::Unknown } else { sender() };
            hosts.insert(host.into(), Seen { count: 0, last: now, sender, line: Line::default() });
        }
        let seen = hosts.get_mut(host)?;
        seen.count += 1;
        seen.last = now;
        let line = match seen.sender {
            Sender::Scanner | Sender::Unknown => crowds.entry(seen.sender).or_default(),
            _ => &mut seen.line,
        };
        line.admit(now).map(tell)
    }

    /// What was left out of the log and has not come again within the window: reason, host if they had one in common, how
    /// often.
    pub fn expire(&self, now: Instant) -> Vec<(&'static str, Option<String>, u64)> {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left_out = Vec::new();
        for (refusal, Reason { hosts, crowds }) in reasons.iter_mut() {
            let crowds = crowds.values_mut().map(|line| (None, line));
            let hosts = hosts.iter_mut().map(|(host, seen)| (Some(host), &mut seen.line));
            for (host, line) in crowds.chain(hosts) {
                if let Some(count) = line.expire(now) {
                    left_out.push((refusal.name(), host.map(ToString::to_string), count));
                }
            }
        }
        left_out
    }

    /// All of them, the most frequent first.
    pub fn list(&self, now: Instant) -> Vec<Refused> {
        let reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let all = reasons.iter().flat_map(|(refusal, reason)| reason.hosts.iter().map(|host| (refusal.name(), host)));
        let mut list: Vec<_> = all
            .map(|(reason, (host, seen))| Refused {
                host: host.to_string(),
                reason,
                sender: seen.sender.name(),
                count: seen.count,
                seconds_ago: now.duration_since(seen.last).as_secs(),
            })
            .collect();
        list.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.host.cmp(&b.host)));
        list
    }
}

impl Line {
    /// Whether to write it now: the number of those that were left out.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.written.is_some_and(|written| now.duration_since(written) < WINDOW) {
            self.left_out += 1;
            return None;
        }
        self.written = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }

    fn expire(&mut self, now: Instant) -> Option<u64> {
        let over = self.written.is_some_and(|written| now.duration_since(written) >= WINDOW);
        (over && self.left_out > 0).then(|| std::mem::take(&mut self.left_out))
    }
}

/// The name that the host counts under.
fn make_room<'a>(hosts: &mut HashMap<Box<str>, Seen>, host: &'a str, now: Instant) -> &'a str {
    if hosts.len() < MOST_HOSTS || hosts.contains_key(host) {
        return host;
    }
    let oldest = hosts.iter().filter(|(host, _)| ***host != *OTHERS).min_by_key(|(_, seen)| seen.last);
    let forgotten = oldest.filter(|(_, seen)| now.duration_since(seen.last) >= MEMORY).map(|(host, _)| host.clone());
    match forgotten {
        Some(forgotten) => {
            hosts.remove(&forgotten);
            host
        }
        None => OTHERS,
    }
}

/// Stands for the hosts that there was no room for. No host can be called so.
pub const OTHERS: &str = "(others)";
/// For each reason: as many lines a minute.
const MOST_HOSTS: usize = 64;
/// A host that comes no more gives its place to another after that time.
const MEMORY: Duration = Duration::from_hours(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn count(refusals: &Refusals, host: &str, sender: Sender, now: Instant) -> Option<u64> {
        refusals.count(Refusal::NotAllowed, host, now, || sender, |repeated| repeated)
    }

    #[test]
    fn each_host_of_a_known_sender_is_told_once_a_minute_with_the_count() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let sibling = |host, now| count(&refusals, host, Sender::Sibling, now);
        assert_eq!(sibling("a.example", start), Some(0));
        assert_eq!(sibling("a.example", start), None);
        assert_eq!(sibling("b.example", start), Some(0));
        assert_eq!(sibling("a.example", start + WINDOW), Some(1));
        assert_eq!(sibling("a.example", start + WINDOW), None);
        assert_eq!(refusals.expire(start + WINDOW), []);
        assert_eq!(refusals.expire(start + WINDOW * 2), [("not_allowed", Some("a.example".to_owned()), 1)]);
        assert_eq!(refusals.expire(start + WINDOW * 2), []);
        let list = refusals.list(start + WINDOW * 2);
        assert_eq!((&*list[0].host, list[0].count, list[0].seconds_ago), ("a.example", 4, 60));
        assert_eq!(list.len(), 2);
    }

    #[test]
    fn scanners_share_a_line_and_hide_nobody_else_s() {
        let refusals = Refusals::default();
        let start = Instant::now();
        assert_eq!(count(&refusals, "a", Sender::Scanner, start), Some(0));
        assert_eq!(count(&refusals, "b", Sender::Scanner, start), None);
        assert_eq!(count(&refusals, "10.0.2.100:8080", Sender::AlbProbe, start), Some(0));
        assert_eq!(refusals.expire(start + WINDOW), [("not_allowed", None, 1)]);
        assert_eq!(count(&refusals, "c", Sender::Scanner, start + WINDOW), Some(0));
    }

    #[test]
    fn hosts_without_end_take_no_memory_and_no_lines_without_end() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let hosts = (0..10_000).map(|number| number.to_string());
        let told = hosts.filter(|host| count(&refusals, host, Sender::Sibling, start).is_some()).count();
        assert_eq!(told, MOST_HOSTS + 1);
        let list = refusals.list(start);
        assert_eq!(list.len(), MOST_HOSTS + 1);
        assert_eq!((&*list[0].host, list[0].count), (OTHERS, 10_000 - MOST_HOSTS as u64));
        // Whoever is known goes on being counted, and in time others get a place.
        assert_eq!(count(&refusals, "1", Sender::Sibling, start + WINDOW), Some(0));
        assert_eq!(count(&refusals, "new", Sender::Sibling, start + MEMORY), Some(0));
        assert!(refusals.list(start + MEMORY).iter().any(|refused| refused.host == "new"));
    }
}
