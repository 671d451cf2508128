//! A soak: every kind of client at once, at a fixed pace, before an app that restarts every few seconds. hostward's
//! memory and descriptors stay flat, and no request fails that the app's restarts don't account for.
//!
//! Takes `SOAK_SECONDS`, or half a minute. Writes `target/soak.csv` with a sample a second, and what it says as
//! `target/soak.md` and `target/soak.svg`.

mod app;
mod clients;
mod load;
mod picture;
mod report;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use self::clients::KINDS;
use self::load::Load;
use self::report::{Kinds, Report, Sample, pipes};
use crate::support::app::App;
use crate::support::eventually;
use crate::support::hostward::Hostward;
use crate::support::kernel::{kinds_of_descriptors, usage};
use crate::support::wire::Client;

const DEFAULT: Duration = Duration::from_secs(25);
/// By how many KiB the least of the memory in the last quarter of the load may be above that of the quarter before. What
/// clients hold comes and goes, in pages and in what the allocator keeps; a leak grows with the requests. A long soak sees
/// one of 20 bytes a request, one of half a minute, among other tests, one of a few KiB.
fn most_growth(length: Duration) -> u64 {
    if length >= Duration::from_mins(10) { 2 * 1024 } else { 8 * 1024 }
}
/// A worker keeps up to 16 pipes that tunnels have used for the next ones.
const PIPES: usize = 2 * 2 * 16;
const SETTINGS: [(&str, &str); 8] = [
    ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
    ("HOSTWARD_THREADS", "2"),
    // An app that doesn't listen isn't waited for: a request that comes meanwhile fails.
    ("HOSTWARD_UPSTREAM_START_TIMEOUT", "0s"),
    ("HOSTWARD_UPSTREAM_IDLE_TIMEOUT", "1s"),
    ("HOSTWARD_HEADER_TIMEOUT", "2s"),
    ("HOSTWARD_BODY_TIMEOUT", "2s"),
    ("HOSTWARD_IDLE_TIMEOUT", "2s"),
    ("HOSTWARD_BUFFER_MEMORY", "256KiB"),
];

#[test]
fn memory_and_descriptors_stay_flat_under_mixed_load_while_the_app_restarts() {
    let length = std::env::var_os("SOAK_SECONDS").map_or(DEFAULT, |text| {
        let seconds = text.to_str().and_then(|text| text.parse().ok());
        Duration::from_secs(seconds.unwrap_or_else(|| panic!("SOAK_SECONDS={}: no number", text.display())))
    });
    let address = App::nowhere();
    let spool = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-{}", std::process::id()));
    fs::create_dir(&spool).unwrap();
    let upstream = format!("http://{address}");
    let own = [("HOSTWARD_UPSTREAM", upstream.as_str()), ("HOSTWARD_BUFFER_DIR", spool.to_str().unwrap())];
    let hostward = Hostward::start(&[&SETTINGS[..], &own].concat());
    let load = Load::new(hostward.address);
    let mut report = Report::new(length, descriptors_at_rest(&hostward, address));

    thread::scope(|scope| {
        scope.spawn(|| app::restart_again_and_again(address, &load));
        for kind in KINDS {
            for number in 0..kind.clients {
                let load = &load;
                scope.spawn(move || load.run(kind, number));
            }
        }
        let begun = Instant::now();
        for second in 1..=u32::try_from(length.as_secs()).unwrap() {
            thread::sleep((begun + Duration::from_secs(1) * second).saturating_duration_since(Instant::now()));
            report.samples.push(Sample::take(begun, &hostward, &load));
            load.read_log(&hostward);
        }
        report.seconds_of_load = report.samples.len();
        load.stopping.store(true, Ordering::SeqCst);
    });
    // What is kept for the next request goes when its time is over.
    report.descriptors_after = eventually_back(&hostward, &report.descriptors_before);
    for _ in 0..2 {
        thread::sleep(Duration::from_secs(1));
        report.after.push(usage(hostward.pid()));
    }
    load.read_log(&hostward);
    fs::remove_dir(&spool).unwrap_or_else(|error| panic!("hostward has left files: {error}"));

    report.write(&load, Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap());
    let counts = load.counts.lock().unwrap();
    println!("{}", report.text(&counts));
    assert!(counts.unexplained.is_empty(), "{:#?}", &counts.unexplained[..counts.unexplained.len().min(20)]);
    for kind in KINDS {
        assert!(counts.turns.get(kind.name).is_some_and(|turns| *turns > 0), "no {} at all", kind.name);
    }
    let (before, after) = (&report.descriptors_before, &report.descriptors_after);
    assert!(is_as_before(after, before), "descriptors: {before:?} before, {after:?} after");
    assert_eq!(counts.log.get("internal error"), None);
    let most = most_growth(length);
    let floors = [("RSS", report.floors(|usage| usage.rss_kib)), ("heap", report.floors(|usage| usage.anonymous_kib))];
    for (name, [earlier, later]) in floors {
        assert!(later < earlier + most, "{name}: at least {earlier} KiB, and then {later}");
    }
}

/// Both workers have come up, everybody has left, and nothing is kept.
fn descriptors_at_rest(hostward: &Hostward, address: SocketAddr) -> Kinds {
    let app = App::listen(address, app::behave);
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(hostward.address)).collect();
    for client in &mut clients {
        client.ask("GET /echo HTTP/1.1\r\nHost: www.example.com\r\n\r\n").expect(200);
    }
    drop(clients);
    drop(app);
    app::wait_until_free(address);
    // Longer than the app's connections are kept.
    let (mut last, mut since) = (Kinds::new(), Instant::now());
    eventually("the descriptors are at rest", || {
        let now = kinds_of_descriptors(hostward.pid());
        if now != last {
            (last, since) = (now.clone(), Instant::now());
        }
        (since.elapsed() > Duration::from_millis(1500)).then_some(now)
    })
}

/// The descriptors, once they are as before, or at the end of the patience.
fn eventually_back(hostward: &Hostward, before: &Kinds) -> Kinds {
    let begun = Instant::now();
    loop {
        let now = kinds_of_descriptors(hostward.pid());
        if is_as_before(&now, before) || begun.elapsed() > Duration::from_secs(10) {
            return now;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The same, but for pipes that are kept.
fn is_as_before(now: &Kinds, before: &Kinds) -> bool {
    let others = |kinds: &Kinds| {
        let mut kinds = kinds.clone();
        kinds.remove("pipe");
        kinds
    };
    others(now) == others(before) && (pipes(before)..=pipes(before) + PIPES).contains(&pipes(now))
}
