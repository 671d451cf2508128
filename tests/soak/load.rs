//! What the clients have in common: their pace, and the account of what they got.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::app::Outages;
use super::clients::{Kind, Sender};
use crate::support::hostward::Hostward;

pub struct Load {
    pub address: SocketAddr,
    pub outages: Outages,
    pub stopping: AtomicBool,
    running: AtomicUsize,
    pub counts: Mutex<Counts>,
}

/// What a client got.
pub struct Got {
    /// 0 if it didn't want any.
    pub status: u16,
    /// hostward's own reason, if it was hostward's answer.
    pub error: Option<String>,
}

/// Why a client did not get what it should.
pub enum Fault {
    /// There was no answer, or only a part of it: so it is when the app goes.
    Broken(String),
    /// It was another's answer, or not what the limits promise.
    Wrong(String),
}

#[derive(Clone, Default)]
pub struct Counts {
    pub requests: u64,
    /// Answers by the first digit of their status; at 0, those who wanted none.
    pub classes: [u64; 6],
    pub turns: BTreeMap<&'static str, u64>,
    /// What the app's restarts have cost.
    pub lost: BTreeMap<String, u64>,
    pub unexplained: Vec<String>,
    /// hostward's log, by `msg`.
    pub log: BTreeMap<String, u64>,
}

impl Load {
    pub fn new(address: SocketAddr) -> Self {
        let outages = Outages::default();
        // Until the app's first start.
        outages.begin();
        Self {
            address,
            outages,
            stopping: AtomicBool::new(false),
            running: AtomicUsize::new(super::KINDS.iter().map(|kind| kind.clients).sum()),
            counts: Mutex::default(),
        }
    }

    /// Whether the clients are done.
    pub fn is_over(&self) -> bool {
        self.running.load(Ordering::SeqCst) == 0
    }

    /// One client, until the load stops.
    pub fn run(&self, kind: &'static Kind, number: usize) {
        let mut sender = Sender::new(self.address, number);
        // They don't march in step.
        let share = u32::try_from(number).unwrap() * 100 / u32::try_from(kind.clients).unwrap();
        let mut due = Instant::now() + kind.period * share / 100;
        while !self.stopping.load(Ordering::SeqCst) {
            thread::sleep(due.saturating_duration_since(Instant::now()).min(Duration::from_millis(500)));
            if due > Instant::now() {
                continue;
            }
            let begun = sender.tunnel_used.take().unwrap_or_else(Instant::now);
            let outcome = (kind.play)(&mut sender);
            self.account(kind, begun, outcome);
            sender.turn += 1;
            // What is late is left out: the pace is fixed.
            due = (due + kind.period).max(Instant::now());
        }
        drop(sender);
        self.running.fetch_sub(1, Ordering::SeqCst);
    }

    fn account(&self, kind: &Kind, begun: Instant, outcome: Result<Got, Fault>) {
        let while_away = self.outages.touch(begun, Instant::now());
        let mut counts = self.counts.lock().unwrap();
        counts.requests += 1;
        *counts.turns.entry(kind.name).or_default() += 1;
        let (what, excusable) = match outcome {
            Ok(Got { status, error }) => {
                counts.classes[usize::from(status / 100)] += 1;
                if kind.expected.contains(&status) && error.is_none() == (status < 400) {
                    return;
                }
                let error = error.unwrap_or_default();
                let excusable = matches!(error.as_str(), "connection_refused" | "connection_terminated");
                (format!("{status} {error}"), excusable)
            }
            Err(Fault::Broken(why)) => (why, true),
            Err(Fault::Wrong(why)) => (why, false),
        };
        if while_away && excusable {
            *counts.lost.entry(what).or_default() += 1;
        } else {
            counts.unexplained.push(format!("{}: {what}", kind.name));
        }
    }

    /// Reads on in hostward's log.
    pub fn read_log(&self, hostward: &Hostward) {
        let lines = hostward.take_lines();
        let mut counts = self.counts.lock().unwrap();
        for line in lines {
            let parsed = serde_json::from_str::<Value>(&line).unwrap_or_default();
            let message = parsed["msg"].as_str().unwrap_or("?");
            // A warning says what the clients or the app did, and some of these clients do nothing else.
            let fine = match (message, parsed["level"].as_str()) {
                ("app refused connection" | "app closed connection", _) => true,
                ("?" | "log lines dropped" | "can't spool", _) | (_, Some("ERROR")) => false,
                ("request", _) => {
                    parsed["status"].as_u64().is_some_and(|status| status <= 501)
                        || ["connection_refused", "connection_terminated"].iter().any(|why| parsed["error"] == *why)
                }
                _ => true,
            };
            *counts.log.entry(message.to_owned()).or_default() += 1;
            if !fine {
                counts.unexplained.push(line);
            }
        }
    }
}
