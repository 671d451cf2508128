//! Answers are read ahead of slow clients, within bounds, and never held back.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::support::app::{App, Then, answer};
use crate::support::hostward::Hostward;
use crate::support::wire::Client;
use crate::support::{Task, eventually};

const GET: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
/// More than the kernel's buffers on both sides of hostward take.
const LARGE: usize = 14 << 20;

/// A client whose kernel takes next to nothing for it.
fn slow_client(address: SocketAddr) -> Client {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    Client::over(socket.into())
}

/// An app with one large answer at `/`, and whether it is rid of it.
fn large(settings: &[(&str, &str)]) -> (Task, Arc<AtomicBool>) {
    let rid = Arc::new(AtomicBool::new(false));
    let sent = Arc::clone(&rid);
    let task = Task::start(settings, move |talk| {
        if talk.request.target != "/" {
            return talk.reply(answer("200 OK", "", "small"));
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
        let body: Vec<u8> = (0..LARGE).map(|at| u8::try_from(at / 251 % 251).unwrap()).collect();
        let outcome = talk.send(head).and_then(|()| talk.send(body));
        sent.store(outcome.is_ok(), Ordering::SeqCst);
        if outcome.is_ok() { Then::Keep } else { Then::Close }
    });
    (task, rid)
}

fn assert_large(client: &mut Client) {
    let answer = client.answer().expect(200);
    assert_eq!(answer.body.len(), LARGE);
    assert!(answer.body.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at / 251 % 251));
}

#[test]
fn the_app_is_free_while_a_slow_client_still_reads() {
    let (task, rid) = large(&[
        ("HOSTWARD_BUFFER_RESPONSES", "16MiB"),
        ("HOSTWARD_UPSTREAM_MAX_CONNECTIONS", "1"),
        ("HOSTWARD_THREADS", "1"),
    ]);
    let mut slow = slow_client(task.hostward.address);
    slow.send(GET);
    eventually("the app is rid of its answer", || rid.load(Ordering::SeqCst).then_some(()));
    // On the only connection there may be.
    assert_eq!(task.get("/other").expect(200).text(), "small");
    assert_eq!(task.app.connections(), 1);
    assert_large(&mut slow);
    slow.send(GET);
    assert_large(&mut slow);
}

#[test]
fn nothing_is_read_ahead_when_the_setting_is_0() {
    let (task, rid) = large(&[("HOSTWARD_BUFFER_RESPONSES", "0")]);
    let mut slow = slow_client(task.hostward.address);
    slow.send(GET);
    slow.answer_head().expect(200);
    assert_eq!(task.get("/other").expect(200).text(), "small");
    thread::sleep(Duration::from_millis(300));
    assert!(!rid.load(Ordering::SeqCst), "somebody took 14 MiB");
    slow.input.exactly(LARGE).unwrap_or_else(|broken| panic!("{broken}"));
    eventually("the app is rid of its answer", || rid.load(Ordering::SeqCst).then_some(()));
}

#[test]
fn what_was_read_ahead_of_an_answer_that_breaks_off_still_arrives() {
    let task = Task::start(&[("HOSTWARD_BUFFER_RESPONSES", "16MiB")], |talk| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", LARGE + 1);
        talk.send(head).and_then(|()| talk.send(vec![b'x'; LARGE])).unwrap();
        Then::Close
    });
    let mut slow = slow_client(task.hostward.address);
    slow.send(GET);
    task.app.wait_open(0);
    slow.answer_head().expect(200);
    assert_eq!(slow.rest().len(), LARGE);
    assert_eq!(task.hostward.request_line("/")["error"], "connection_terminated");
}

/// The time from the app's write to the client's read, at the median.
fn median_delay(client: &mut Client, written: &mpsc::Receiver<Instant>, go: &mpsc::Sender<()>) -> Duration {
    client.send(GET);
    client.answer_head().expect(200);
    let mut delays: Vec<Duration> = (0..EVENTS)
        .map(|_| {
            go.send(()).unwrap();
            client.input.chunk().unwrap_or_else(|broken| panic!("{broken}"));
            written.recv().unwrap().elapsed()
        })
        .collect();
    delays.sort();
    delays[EVENTS / 2]
}

const EVENTS: usize = 200;

#[test]
fn an_event_is_delayed_by_less_than_a_millisecond() {
    let (go, gone) = mpsc::channel();
    let (write, written) = mpsc::channel();
    let channels = Mutex::new((gone, write));
    let task = Task::start(&[], move |talk| {
        talk.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        let channels = channels.lock().unwrap();
        for _ in 0..EVENTS {
            channels.0.recv().unwrap();
            let now = Instant::now();
            talk.send("9\r\ndata: 1\n\n\r\n").unwrap();
            channels.1.send(now).unwrap();
        }
        Then::Close
    });
    // What held events back would do so in every round; other tests on the same cores don't.
    let mut rounds = (0..10).map(|_| {
        let through = median_delay(&mut task.client(), &written, &go);
        let direct = median_delay(&mut Client::connect(task.app.address), &written, &go);
        println!("median delay of an event: {through:?} through hostward, {direct:?} without");
        through.saturating_sub(direct)
    });
    assert!(rounds.any(|added| added < Duration::from_millis(1)), "none of ten rounds");
}

/// Kibibytes of the process that are in memory.
pub fn resident(hostward: &Hostward) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", hostward.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_thousand_slow_readers_of_10_megabytes_take_less_than_96_mebibytes() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let readers: usize = if hard < 4096 { 200 } else { 1000 };
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(8192)), hard).unwrap();
    let body: Arc<[u8]> = vec![b'x'; 10_000_000].into();
    let app = App::start(move |talk| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        if talk.send(head).and_then(|()| talk.send(&*body)).is_ok() { Then::Keep } else { Then::Close }
    });
    let hostward = Hostward::before(&app, &[]);
    crate::support::wire::get(hostward.address, "www.example.com", "/").expect(200);
    let before = resident(&hostward);
    let clients: Vec<Client> = (0..readers)
        .map(|_| {
            let mut client = slow_client(hostward.address);
            client.send(GET);
            client.answer_head().expect(200);
            client
        })
        .collect();
    // As much as anybody will take has been taken when nothing more comes.
    let mut last = 0;
    let after = eventually("memory stays as it is", || {
        let now = resident(&hostward);
        thread::sleep(Duration::from_millis(500));
        (std::mem::replace(&mut last, now) == now).then_some(now)
    });
    drop(clients);
    println!("{readers} slow readers: {before} KiB before, {after} KiB after");
    assert!(after - before < 96 * 1024, "{before} KiB before, {after} KiB after");
}
