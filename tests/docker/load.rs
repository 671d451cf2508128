//! `docker stop` under load, in ECS's order: hostward first, and when it has ended, the app.

use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::task::{ADDRESS, Task};
use crate::support::wire::Client;

/// Connections at once.
const CLIENTS: usize = 200;
const GET: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";

/// A load balancer's connections, and what became of their requests.
#[derive(Default)]
struct Load {
    /// The task is out of the target group: no new connections, those that are there go on.
    deregistered: AtomicBool,
    answered: AtomicUsize,
    lost: Mutex<Vec<String>>,
}

impl Load {
    /// One connection after the other, each kept until hostward says that it closes.
    fn client(&self) {
        while !self.deregistered.load(Ordering::Relaxed) {
            let mut client = match TcpStream::connect(ADDRESS) {
                Ok(stream) => Client::over(stream),
                Err(error) => return self.lose(format!("not connected: {error}")),
            };
            loop {
                if let Err(error) = client.try_send(GET) {
                    return self.lose(format!("not sent: {error}"));
                }
                match client.try_answer() {
                    Ok(answer) if answer.status == 200 => {
                        self.answered.fetch_add(1, Ordering::Relaxed);
                        if answer.closes() {
                            break;
                        }
                    }
                    Ok(answer) => return self.lose(answer.head),
                    Err(broken) => return self.lose(broken.to_string()),
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn lose(&self, how: String) {
        self.lost.lock().expect("nothing panics with this lock").push(how);
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }
}

#[test]
fn docker_stop_under_two_hundred_connections_loses_no_request() {
    let Some(task) = Task::up("stopped") else { return };
    let (hostward, app) = (task.container("hostward"), task.container("app"));
    let load = Load::default();
    let (before, stopping) = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| load.client())).collect();
        let deadline = Instant::now() + Duration::from_secs(30);
        while load.answered() < 10 * CLIENTS && Instant::now() < deadline && load.lost.lock().unwrap().is_empty() {
            thread::sleep(Duration::from_millis(20));
        }
        let before = load.answered();
        let began = Instant::now();
        let stop = scope.spawn(|| task.engine.docker(&["stop", "--time", "60", &hostward]));
        // A load balancer hears of it a little later, and hostward's DRAIN_DELAY of 5 s is there for that.
        thread::sleep(Duration::from_secs(2));
        load.deregistered.store(true, Ordering::Relaxed);
        stop.join().expect("docker stop");
        let stopping = began.elapsed();
        task.engine.docker(&["stop", "--time", "10", &app]);
        for client in clients {
            client.join().expect("a client");
        }
        (before, stopping)
    });
    let lost = load.lost.into_inner().unwrap();
    let after = load.answered.into_inner() - before;
    let count = lost.len();
    println!("{before} answers before SIGTERM, {after} after it, {count} lost; stopped in {stopping:?}");
    assert!(lost.is_empty(), "{count} requests lost, the first: {}", lost[0]);
    assert!(before >= 10 * CLIENTS && after >= CLIENTS, "{before} answers before SIGTERM, {after} after it");
    assert_eq!(task.engine.inspect(&hostward)["State"]["ExitCode"], 0);
    let stopped = task.log().into_iter().find(|line| line["msg"] == "stopped").expect("the last line");
    assert_eq!(stopped["cut_connections"], 0, "{stopped}");
}
