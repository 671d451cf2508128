//! What an attack did, and the table of all.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::Times;
use super::tactics::Attack;
use crate::support::kernel::{self, Usage};

/// One attack.
pub struct Row {
    attack: &'static Attack,
    size: usize,
    /// One each round.
    pub quiet: Vec<Times>,
    pub beside: Vec<Times>,
    pub quiet_cpu: Cpu,
    pub beside_cpu: Cpu,
    pub most_descriptors: usize,
    pub grown_kib: u64,
    outcomes: BTreeMap<String, usize>,
    /// What should not be.
    pub wrong: Vec<String>,
}

/// How much of one core hostward took.
#[derive(Default)]
pub struct Cpu {
    taken: Duration,
    of: Duration,
}

impl Cpu {
    pub fn add(&mut self, before: &Usage, after: &Usage, of: Duration) {
        self.taken += after.cpu.saturating_sub(before.cpu);
        self.of += of;
    }

    fn percent(&self) -> u128 {
        self.taken.as_millis() * 100 / self.of.as_millis()
    }
}

impl Row {
    pub fn new(attack: &'static Attack, size: usize) -> Self {
        Self {
            attack,
            size,
            quiet: Vec::new(),
            beside: Vec::new(),
            quiet_cpu: Cpu::default(),
            beside_cpu: Cpu::default(),
            most_descriptors: 0,
            grown_kib: 0,
            outcomes: BTreeMap::new(),
            wrong: Vec::new(),
        }
    }

    /// What became of a round's attackers.
    pub fn count(&mut self, outcomes: BTreeMap<String, usize>) {
        for (outcome, count) in outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
    }

    /// Finds what should not be.
    pub fn judge(&mut self, full: bool) {
        let Attack { name, expected, .. } = self.attack;
        for outcome in *expected {
            if !self.outcomes.contains_key(*outcome) {
                self.wrong.push(format!("{name}: nobody got {outcome}: {:?}", self.outcomes));
            }
        }
        for (outcome, count) in &self.outcomes {
            if !expected.contains(&outcome.as_str()) {
                self.wrong.push(format!("{name}: {count} times {outcome}"));
            }
        }
        if self.attack.holds_all && self.most_descriptors < self.size {
            self.wrong.push(format!("{name}: {} descriptors at most", self.most_descriptors));
        }
        self.wrong.extend(self.too_slow(full));
    }

    /// What the attack has cost the healthy client, if that is too much. The whole measurement keeps the promise in all
    /// its figures. A short one among other tests, each of which may take the core for longer than a request takes, can
    /// only say that the client wasn't starved: by the median of the best round, for an attack that works would work in
    /// all.
    pub fn too_slow(&self, full: bool) -> Option<String> {
        let (permille, slack) = if full { (990, SLACK) } else { (500, SLACK_AMONG_OTHERS) };
        let quiet = Times::pooled(&self.quiet).permille(permille);
        let beside = if full {
            Times::pooled(&self.beside).permille(permille)
        } else {
            self.beside.iter().map(|round| round.permille(permille)).min().unwrap_or(Duration::MAX)
        };
        (beside > (quiet * 2).max(quiet + slack)).then(|| {
            format!(
                "{}: of a healthy client's times, {permille} in 1,000 are below {beside:?} beside it, and below {quiet:?} without",
                self.attack.name
            )
        })
    }
}

/// What a healthy client may lose at most when twice its quiet time is less. On a machine with few cores the attackers
/// themselves are in its way.
const SLACK: Duration = Duration::from_millis(3);
/// The same where other tests, and whatever else keeps the machine busy, run too. A client that is starved waits for
/// seconds.
const SLACK_AMONG_OTHERS: Duration = Duration::from_millis(250);

/// The rows as Markdown.
pub fn table(rows: &[Row], full: bool) -> String {
    let mut text = format!(
        "# Attacks, and a healthy client beside them\n\n\
         Made by `{}cargo test {}--test it attacks`, which fails when a limit doesn't hold. {}.\n\n\
         Two healthy clients with 250 requests a second each, alternately alone (quiet) and beside the attack; all on one \
         machine, attackers and app included. Times are a request's, in milliseconds. CPU is hostward's, in percent of one \
         core. Memory is by how much hostward's RSS had grown at the end of a round.\n\n\
         | attack | its size | what the attackers got | p50 quiet | p50 beside | p99 quiet | p99 beside | ratio | CPU quiet | CPU \
         beside | descriptors | memory |\n\
         |---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        if full { "ATTACKS=full " } else { "" },
        if cfg!(debug_assertions) { "" } else { "--release " },
        kernel::circumstances(),
    );
    let millis = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1000.0);
    for row in rows {
        let outcomes: Vec<String> =
            row.outcomes.iter().map(|(outcome, count)| format!("{count} × {outcome}")).collect();
        let (quiet, beside) = (Times::pooled(&row.quiet), Times::pooled(&row.beside));
        writeln!(
            text,
            "| {} | {} {} | {} | {} | {} | {} | {} | {:.2} | {} | {} | {} | {:.1} MiB |",
            row.attack.name,
            row.size,
            row.attack.unit,
            outcomes.join(", "),
            millis(quiet.permille(500)),
            millis(beside.permille(500)),
            millis(quiet.permille(990)),
            millis(beside.permille(990)),
            beside.permille(990).as_secs_f64() / quiet.permille(990).as_secs_f64(),
            row.quiet_cpu.percent(),
            row.beside_cpu.percent(),
            row.most_descriptors,
            f64::from(u32::try_from(row.grown_kib).unwrap()) / 1024.0,
        )
        .unwrap();
    }
    text
}
