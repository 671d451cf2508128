//! Attacks by clients, each beside a healthy one: the limits hold, nothing is left behind, and the healthy client
//! hardly notices. `ATTACKS=full` takes the numbers that are meant (10,000 idle connections, 100,000 one after the
//! other) and minutes; without it the same attacks are smaller and shorter. Writes `target/attacks.md`.

mod table;
mod tactics;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use self::table::{Row, table};
use self::tactics::{ATTACKS, Attack, Front};
use crate::support::app::{App, answer};
use crate::support::hostward::Hostward;
use crate::support::kernel::{self, descriptors, usage};
use crate::support::wire::Client;
use crate::support::{PATIENCE, eventually};

/// How large it all is.
#[derive(Clone, Copy)]
pub struct Scale {
    pub full: bool,
    /// Quiet and beside the attack take turns, so that what else the machine does falls on both.
    rounds: usize,
    /// While the healthy client is too slow.
    most_rounds: usize,
    /// Each of them.
    window: Duration,
}

/// What is measured of healthy clients: their requests' times in the order of their size.
pub struct Times(Vec<Duration>);

/// They land on different workers, as every second connection does.
const HEALTHY_CLIENTS: usize = 2;
/// Between two requests of one of them.
const PERIOD: Duration = Duration::from_millis(4);
const SETTINGS: [(&str, &str); 2] =
    [("HOSTWARD_UPSTREAM_IDLE_TIMEOUT", "200ms"), ("HOSTWARD_MAX_CONNECTIONS", "12000")];
/// In short, and in full. Idle connections have to stay open until the last one is, and the client has asked.
const TIMEOUTS: [[(&str, &str); 3]; 2] = [
    [("HOSTWARD_HEADER_TIMEOUT", "2s"), ("HOSTWARD_BODY_TIMEOUT", "500ms"), ("HOSTWARD_IDLE_TIMEOUT", "2s")],
    [("HOSTWARD_HEADER_TIMEOUT", "2s"), ("HOSTWARD_BODY_TIMEOUT", "2s"), ("HOSTWARD_IDLE_TIMEOUT", "12s")],
];

#[test]
fn a_healthy_client_beside_an_attack_hardly_notices() {
    let scale = match std::env::var_os("ATTACKS") {
        Some(text) if text == "full" => Scale { full: true, rounds: 3, most_rounds: 3, window: Duration::from_secs(3) },
        Some(other) => panic!("ATTACKS={}: it is `full` or not set", other.display()),
        None => Scale { full: false, rounds: 2, most_rounds: 8, window: Duration::from_millis(400) },
    };
    kernel::raise_descriptors();
    let rows: Vec<Row> = ATTACKS.iter().map(|attack| endure(attack, scale)).collect();
    let text = table(&rows, scale.full);
    println!("{text}");
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("attacks.md"), text).unwrap();
    let wrong: Vec<String> = rows.iter().flat_map(|row| row.wrong.clone()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn endure(attack: &'static Attack, scale: Scale) -> Row {
    // Made once: what an app computes for attackers is not what is measured.
    let [large, medium, small] = [14 << 20, 256 << 10, 4].map(|length| answer("200 OK", "", &"x".repeat(length)));
    let app = App::start(move |talk| match talk.request.target.as_str() {
        "/large" => talk.reply(&large),
        "/medium" => talk.reply(&medium),
        _ => talk.reply(&small),
    });
    let hostward = Hostward::before(&app, &[&SETTINGS[..], &TIMEOUTS[usize::from(scale.full)]].concat());
    let connect = || (0..HEALTHY_CLIENTS).map(|_| Client::connect(hostward.address)).collect::<Vec<_>>();
    // Workers start and caches fill outside of what counts.
    ask(&mut connect(), Duration::from_millis(200));
    let settled = settle(&hostward, None);

    let mut row = Row::new(attack, attack.size(scale.full));
    for round in 0..scale.most_rounds {
        if round >= scale.rounds && row.too_slow(scale.full).is_none() {
            break;
        }
        let mut healthy = connect();
        let before = usage(hostward.pid());
        let quiet = ask(&mut healthy, scale.window);
        row.quiet_cpu.add(&before, &usage(hostward.pid()), scale.window);

        let front = Arc::new(Front::new(hostward.address, attack.size(scale.full)));
        let attackers = Arc::clone(&front);
        let attackers = thread::Builder::new().name("attackers".into()).spawn(move || attackers.run(attack)).unwrap();
        eventually("the attack is under way", || front.is_under_way(attack).then_some(()));
        let (begun, at_first) = (Instant::now(), usage(hostward.pid()));
        let mut beside = ask(&mut healthy, scale.window);
        // An attack of so many has to come to its end beside the client.
        while attack.is_counted() && !attackers.is_finished() {
            beside.0.extend(ask(&mut healthy, scale.window / 4).0);
        }
        beside.0.sort();
        let at_last = usage(hostward.pid());
        row.beside_cpu.add(&at_first, &at_last, begun.elapsed());
        row.most_descriptors = row.most_descriptors.max(at_first.descriptors).max(at_last.descriptors);
        row.grown_kib = row.grown_kib.max(at_last.rss_kib.saturating_sub(before.rss_kib));
        drop(healthy);
        front.stop();
        attackers.join().unwrap_or_else(|_| panic!("{}: the attackers of round {round} broke", attack.name));
        row.count(front.outcomes());
        row.quiet.push(quiet);
        row.beside.push(beside);
        if scale.full {
            settle(&hostward, Some(settled));
        }
    }
    settle(&hostward, Some(settled));
    if hostward.lines().iter().any(|line| line["level"] == "ERROR") {
        row.wrong.push(format!("{}: errors in the log\n{}", attack.name, hostward.output()));
    }
    row.judge(scale.full);
    row
}

/// Waits until the descriptors are back, or at rest if nobody knows where.
fn settle(hostward: &Hostward, expected: Option<usize>) -> usize {
    let mut last = (usize::MAX, Instant::now());
    eventually(&format!("{expected:?} descriptors"), || {
        let now = descriptors(hostward.pid());
        if now != last.0 {
            last = (now, Instant::now());
        }
        // Longer than the app's connections are kept.
        let at_rest = last.1.elapsed() > Duration::from_secs(1);
        expected.map_or(at_rest, |expected| now <= expected).then_some(now)
    })
}

/// Healthy clients ask at their pace.
fn ask(healthy: &mut [Client], window: Duration) -> Times {
    let mut times = thread::scope(|scope| {
        let asking: Vec<_> = healthy.iter_mut().map(|client| scope.spawn(move || ask_one(client, window))).collect();
        asking.into_iter().flat_map(|times| times.join().unwrap()).collect::<Vec<_>>()
    });
    times.sort();
    Times(times)
}

fn ask_one(client: &mut Client, window: Duration) -> Vec<Duration> {
    let begun = Instant::now();
    let mut due = begun;
    let mut times = Vec::new();
    while due < begun + window {
        // What should have been asked while an answer was awaited counts from when it should have been, so that a
        // long wait isn't one slow answer but many. That this thread slept too long is not hostward's.
        let late = Instant::now() > due;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let asked = if late { due } else { Instant::now() };
        client.ask("GET /healthy HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(200);
        let time = asked.elapsed();
        assert!(time < PATIENCE, "{time:?}");
        times.push(time);
        due += PERIOD;
    }
    times
}

impl Times {
    /// The time that so many of a thousand don't exceed.
    pub fn permille(&self, permille: usize) -> Duration {
        self.0[(self.0.len() * permille / 1000).min(self.0.len() - 1)]
    }

    /// All of them together.
    pub fn pooled(rounds: &[Self]) -> Self {
        let mut all: Vec<Duration> = rounds.iter().flat_map(|round| round.0.iter().copied()).collect();
        all.sort();
        Self(all)
    }
}
