//! A rolling deployment under load: task after task is replaced, and no request fails.
//!
//! The load balancer of these tests does what an Application Load Balancer does: it keeps connections and uses them
//! again, opens new ones beside, learns late that a task is leaving, and retries nothing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::app::{App, Then, answer};
use crate::support::hostward::Hostward;
use crate::support::wire::Client;

const REPLACEMENTS: usize = 10;
/// Each asks this often: 500 requests a second in all.
const SENDERS: usize = 25;
const PERIOD: Duration = Duration::from_millis(50);
/// How long the load balancer goes on sending to a task that has got SIGTERM.
const LATE: Duration = Duration::from_millis(500);
const SETTINGS: [(&str, &str); 2] = [("HOSTWARD_DRAIN_DELAY", "2s"), ("HOSTWARD_SHUTDOWN_TIMEOUT", "5s")];

#[derive(Default)]
struct LoadBalancer {
    targets: RwLock<Vec<SocketAddr>>,
    stopping: AtomicBool,
    answered: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl LoadBalancer {
    /// One of its many senders, with idle connections of its own.
    fn send(&self, number: usize) {
        let mut idle: Vec<(SocketAddr, Client)> = Vec::new();
        let mut next = Instant::now();
        for turn in number.. {
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            let targets = self.targets.read().unwrap().clone();
            let target = targets[turn % targets.len()];
            idle.retain(|(address, _)| targets.contains(address));
            // Every fifth request on a connection of its own.
            let kept = idle.iter().position(|(address, _)| *address == target).filter(|_| turn % 5 != 0);
            let mut client = kept.map_or_else(|| Client::connect(target), |at| idle.swap_remove(at).1);
            let close = if turn % 5 == 0 { "Connection: close\r\n" } else { "" };
            // Some take their time.
            let path = if turn % 7 == 0 { "/slow" } else { "/" };
            let request = format!("GET {path} HTTP/1.1\r\nHost: www.example.com\r\n{close}\r\n");
            match client
                .try_send(request)
                .map_err(|error| error.to_string())
                .and_then(|()| client.try_answer().map_err(|broken| broken.to_string()))
            {
                Ok(answer) if answer.status == 200 => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    if !answer.closes() {
                        idle.push((target, client));
                    }
                }
                Ok(answer) => self.failed.lock().unwrap().push(format!("{target}: {}", answer.head)),
                Err(why) => self.failed.lock().unwrap().push(format!("{target}: {why}")),
            }
            next += PERIOD;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
}

#[test]
fn ten_replacements_under_500_requests_a_second_fail_none() {
    let app = App::start(|talk| {
        if talk.request.target == "/slow" {
            thread::sleep(Duration::from_millis(300));
        }
        talk.reply(answer("200 OK", "", "here"));
        Then::Keep
    });
    let mut tasks: Vec<Hostward> = (0..2).map(|_| Hostward::before(&app, &SETTINGS)).collect();
    let balancer = LoadBalancer::default();
    *balancer.targets.write().unwrap() = tasks.iter().map(|task| task.address).collect();
    let begun = Instant::now();
    thread::scope(|scope| {
        for number in 0..SENDERS {
            let balancer = &balancer;
            scope.spawn(move || balancer.send(number));
        }
        for _ in 0..REPLACEMENTS {
            let new = Hostward::before(&app, &SETTINGS);
            balancer.targets.write().unwrap().push(new.address);
            tasks.push(new);
            let mut old = tasks.remove(0);
            old.terminate();
            thread::sleep(LATE);
            balancer.targets.write().unwrap().retain(|target| *target != old.address);
            assert!(old.wait(Duration::from_secs(8)).success());
            old.line(|line| line["msg"] == "stopped" && line["clean"] == true);
        }
        balancer.stopping.store(true, Ordering::Relaxed);
    });
    let (answered, failed) = (balancer.answered.into_inner(), balancer.failed.into_inner().unwrap());
    let rate = answered as u128 * 1000 / begun.elapsed().as_millis();
    println!("{REPLACEMENTS} replacements, {answered} answers, {rate} a second, {} failed", failed.len());
    assert!(failed.is_empty(), "{} of {answered}: {:#?}", failed.len(), &failed[..failed.len().min(10)]);
    assert!(rate > 200, "{rate} requests a second are no load");
}
