//! What the samples say. No figure of the report comes from anywhere else.

#![expect(clippy::cast_precision_loss, reason = "no figure here has more than 15 digits")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::app::Outages;
use super::clients::KINDS;
use super::load::{Counts, Load};
use super::picture::{Panel, picture};
use crate::support::hostward::Hostward;
use crate::support::kernel::{Usage, circumstances, usage};

/// One of them a second.
pub struct Sample {
    pub at: Duration,
    pub usage: Usage,
    pub restarts: usize,
    requests: u64,
    classes: [u64; 6],
    lost: u64,
    unexplained: usize,
}

pub struct Report {
    length: Duration,
    pub samples: Vec<Sample>,
    pub seconds_of_load: usize,
    /// When the load was over, and everything had settled.
    pub after: Vec<Usage>,
    pub descriptors_before: Kinds,
    pub descriptors_after: Kinds,
}

/// Descriptors, by kind.
pub type Kinds = BTreeMap<String, usize>;

/// A straight line through the samples after the warm-up.
pub struct Fit {
    pub from: Duration,
    pub seconds: f64,
    pub growth_kib: f64,
    /// What chance may have done to it: its standard error.
    pub error_kib: f64,
    pub requests: u64,
}

impl Sample {
    pub fn take(begun: Instant, hostward: &Hostward, load: &Load) -> Self {
        let counts = load.counts.lock().unwrap();
        Self {
            at: begun.elapsed(),
            usage: usage(hostward.pid()),
            restarts: Outages::count(&load.outages),
            requests: counts.requests,
            classes: counts.classes,
            lost: counts.lost.values().sum(),
            unexplained: counts.unexplained.len(),
        }
    }
}

impl Report {
    pub fn new(length: Duration, descriptors_before: Kinds) -> Self {
        Self {
            length,
            samples: Vec::new(),
            seconds_of_load: 0,
            after: Vec::new(),
            descriptors_before,
            descriptors_after: Kinds::new(),
        }
    }

    /// Up to here memory may grow: pools and caches fill, and the allocator keeps what the worst moment took.
    fn warm_up(&self) -> Duration {
        self.length / 2
    }

    /// The least that there was in each half of the samples after the warm-up. What clients hold at the moment lies above
    /// it; what leaks lifts it.
    pub fn floors(&self, value: impl Fn(&Usage) -> u64) -> [u64; 2] {
        let values: Vec<u64> = self.steady().map(|sample| value(&sample.usage)).collect();
        let (earlier, later) = values.split_at(values.len() / 2);
        [earlier, later].map(|half| half.iter().copied().min().unwrap_or_default())
    }

    /// The samples under load after the warm-up.
    fn steady(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().take(self.seconds_of_load).filter(|sample| sample.at >= self.warm_up())
    }

    /// Least squares.
    pub fn fit(&self, value: impl Fn(&Usage) -> u64) -> Fit {
        let points: Vec<(f64, f64)> =
            self.steady().map(|sample| (sample.at.as_secs_f64(), value(&sample.usage) as f64)).collect();
        let count = points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(|point| point.0), mean(|point| point.1));
        let covariance: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
        let variance: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
        let (first, last) = (self.steady().next().unwrap(), self.steady().last().unwrap());
        let seconds = last.at.saturating_sub(first.at).as_secs_f64();
        let requests = last.requests - first.requests;
        let slope = covariance / variance;
        let left: f64 = points.iter().map(|point| (point.1 - y - slope * (point.0 - x)).powi(2)).sum();
        let error = (left / (count - 2.0) / variance).sqrt();
        Fit { from: first.at, seconds, growth_kib: slope * seconds, error_kib: error * seconds, requests }
    }

    /// `soak.csv`, `soak.md` and `soak.svg`.
    pub fn write(&self, load: &Load, directory: &Path) {
        let write = |name: &str, text: String| fs::write(directory.join(name), text).unwrap();
        write("soak.csv", self.csv());
        write("soak.md", self.text(&load.counts.lock().unwrap()));
        write("soak.svg", self.picture());
    }

    fn csv(&self) -> String {
        let mut text = String::from(
            "second,rss_kib,pss_kib,anonymous_kib,descriptors,threads,cpu_ms,app_starts,requests,no_answer_wanted,1xx,2xx,\
             3xx,4xx,5xx,lost_to_restarts,unexplained\n",
        );
        for Sample { at, usage, restarts, requests, classes, lost, unexplained } in &self.samples {
            let Usage { rss_kib, pss_kib, anonymous_kib, descriptors, threads, cpu } = usage;
            let classes = classes.map(|count| count.to_string()).join(",");
            let (at, cpu) = (at.as_secs_f64(), cpu.as_millis());
            writeln!(
                text,
                "{at:.1},{rss_kib},{pss_kib},{anonymous_kib},{descriptors},{threads},{cpu},{restarts},{requests},{classes},{lost},{unexplained}"
            )
            .unwrap();
        }
        text
    }

    /// The report as Markdown.
    pub fn text(&self, counts: &Counts) -> String {
        let last = self.samples.last().unwrap();
        let (first, warm) = (&self.samples[0], self.steady().next().unwrap());
        let of = |value: fn(&Usage) -> u64| {
            let steady: Vec<u64> = self.steady().map(|sample| value(&sample.usage)).collect();
            (*steady.iter().min().unwrap(), *steady.iter().max().unwrap())
        };
        let seconds = last.at.as_secs_f64();
        let cpu = last.usage.cpu.saturating_sub(first.usage.cpu);
        let mut text = format!(
            "# Soak\n\n\
             Made by `SOAK_SECONDS={} cargo test {}--test it soak`. {}.\n\n\
             ![Memory, descriptors and requests a second over time](soak.svg)\n\n\
             | | |\n|---|---|\n",
            self.length.as_secs(),
            if cfg!(debug_assertions) { "" } else { "--release " },
            circumstances(),
        );
        let mut row = |name: &str, value: String| writeln!(text, "| {name} | {value} |").unwrap();
        row(
            "load",
            format!("{seconds:.0} s, {} requests, {:.0} a second", counts.requests, counts.requests as f64 / seconds),
        );
        let [none, switched, good, _, refused, failed] = counts.classes;
        row(
            "answers",
            format!(
                "{good} × 2xx, {refused} × 4xx, {failed} × 5xx, {switched} × 101 and messages behind it; {none} wanted none"
            ),
        );
        let lost: Vec<String> = counts.lost.iter().map(|(why, count)| format!("{count} × {why}")).collect();
        row(
            "the app's restarts",
            format!(
                "{}; requests that were in flight or came meanwhile, and failed: {} ({})",
                last.restarts - 1,
                counts.lost.values().sum::<u64>(),
                lost.join(", ")
            ),
        );
        row("**failures that they don't explain**", format!("**{}**", counts.unexplained.len()));
        row("`internal error` in the log", counts.log.get("internal error").copied().unwrap_or(0).to_string());
        for (name, value) in
            [("RSS", (|usage| usage.rss_kib) as fn(&Usage) -> u64), ("heap and stacks", |usage| usage.anonymous_kib)]
        {
            let fit = self.fit(value);
            let (least, most) = of(value);
            row(
                name,
                format!(
                    "{} MiB after {:.0} s, {} at the end of the load, {} after it; from {} to {}",
                    mib(value(&warm.usage)),
                    warm.at.as_secs_f64(),
                    mib(value(&last.usage)),
                    mib(value(self.after.last().unwrap_or(&last.usage))),
                    mib(least),
                    mib(most),
                ),
            );
            let [earlier, later] = self.floors(value);
            row(
                &format!("{name}, the least in the last two quarters"),
                format!("{} and {} MiB", mib(earlier), mib(later)),
            );
            row(
                &format!("{name}, fitted from {:.0} s on", fit.from.as_secs_f64()),
                format!(
                    "{:+.1} KiB a minute: {:+.0} KiB in {:.0} s (standard error {:.0}), {:+.2} bytes a request",
                    fit.growth_kib / fit.seconds * 60.0,
                    fit.growth_kib,
                    fit.seconds,
                    fit.error_kib,
                    fit.growth_kib * 1024.0 / fit.requests as f64
                ),
            );
        }
        let (least, most) = of(|usage| usage.descriptors as u64);
        row(
            "descriptors",
            format!(
                "{} before, {least} to {most} under load, {} after it, of which {} are pipes that tunnels have used",
                self.descriptors_before.values().sum::<usize>(),
                self.descriptors_after.values().sum::<usize>(),
                pipes(&self.descriptors_after) - pipes(&self.descriptors_before),
            ),
        );
        let (least, most) = of(|usage| usage.threads);
        row("threads", format!("{least} to {most}"));
        row(
            "CPU",
            format!(
                "{:.1} % of a core, {:.0} µs a request",
                cpu.as_secs_f64() / seconds * 100.0,
                cpu.as_secs_f64() * 1e6 / (last.requests - first.requests) as f64
            ),
        );
        text.push_str("\n| clients | how many | turns |\n|---|--:|--:|\n");
        for kind in KINDS {
            let turns = counts.turns.get(kind.name).copied().unwrap_or(0);
            writeln!(text, "| {} | {} | {turns} |", kind.name, kind.clients).unwrap();
        }
        text.push_str("\nhostward's log:");
        for (message, count) in &counts.log {
            write!(text, " {count} × `{message}`,").unwrap();
        }
        text.pop();
        text.push_str(".\n");
        text
    }

    fn picture(&self) -> String {
        let at = |sample: &Sample| sample.at.as_secs_f64();
        let line = |value: fn(&Usage) -> f64| -> Vec<(f64, f64)> {
            self.samples.iter().map(|sample| (at(sample), value(&sample.usage))).collect()
        };
        let mut rates = Vec::new();
        let mut restarts = Vec::new();
        for pair in self.samples.windows(2) {
            let [before, after] = pair else { continue };
            rates.push((
                at(after),
                (after.requests - before.requests) as f64 / after.at.saturating_sub(before.at).as_secs_f64(),
            ));
            if after.restarts > before.restarts {
                restarts.push(at(after));
            }
        }
        let memory = [
            ("RSS", line(|usage| usage.rss_kib as f64 / 1024.0)),
            ("heap and stacks", line(|usage| usage.anonymous_kib as f64 / 1024.0)),
        ];
        picture(
            self.length.as_secs_f64(),
            &[
                Panel { title: "memory, MiB", lines: &memory },
                Panel { title: "descriptors", lines: &[("open", line(|usage| usage.descriptors as f64))] },
                Panel { title: "requests a second", lines: &[("all clients", rates)] },
            ],
            &restarts,
        )
    }
}

pub fn pipes(descriptors: &Kinds) -> usize {
    descriptors.get("pipe").copied().unwrap_or(0)
}

fn mib(kib: u64) -> String {
    format!("{:.1}", kib as f64 / 1024.0)
}
