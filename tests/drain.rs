//! SIGTERM drains, SIGINT doesn't: contract 4, `DRAIN_DELAY` and `SHUTDOWN_TIMEOUT`.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::app::{Conversation, Then, answer, hang};
use crate::support::hostward::Hostward;
use crate::support::wire::get;
use crate::support::{Task, eventually};

const GET: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
const WEBSOCKET: &str =
    "GET /chat HTTP/1.1\r\nHost: www.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

/// An app that answers `/held` when it is told to, and other targets at once.
fn holding(settings: &[(&str, &str)]) -> (Task, Sender<()>) {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let task = Task::start(settings, move |talk| {
        if talk.request.target == "/held" {
            // An error means that the test is over.
            gone.lock().unwrap().recv().ok();
        }
        talk.reply(answer("200 OK", "", "here"))
    });
    (task, go)
}

/// What is in flight has a second to be finished.
const CUT_SOON: [(&str, &str); 2] = [("HOSTWARD_DRAIN_DELAY", "0s"), ("HOSTWARD_SHUTDOWN_TIMEOUT", "1s")];

/// Sends SIGTERM and waits until hostward says that it drains.
fn terminate(task: &Task) {
    task.hostward.terminate();
    task.hostward.line(|line| line["msg"] == "draining");
}

#[test]
fn a_draining_hostward_is_not_ready_but_serves() {
    let (mut task, _go) = holding(&[("HOSTWARD_DRAIN_DELAY", "4s"), ("HOSTWARD_SHUTDOWN_TIMEOUT", "5s")]);
    get(task.hostward.admin, "localhost", "/readyz").expect(200);
    let mut kept = task.client();
    assert!(!kept.ask(GET).expect(200).closes());
    let started = Instant::now();
    terminate(&task);
    get(task.hostward.admin, "localhost", "/readyz").expect(503);
    get(task.hostward.admin, "localhost", "/livez").expect(200);
    for client in [&mut kept, &mut task.client()] {
        let answer = client.ask(GET).expect(200);
        assert!(answer.closes(), "{}", answer.head);
        client.assert_closed();
    }
    let answer = get(task.hostward.address, "evil.example", "/").expect(421);
    assert!(answer.closes(), "{}", answer.head);
    assert!(started.elapsed() < Duration::from_secs(4), "too slow a machine to tell: {:?}", started.elapsed());
    assert!(task.hostward.wait(Duration::from_secs(8)).success());
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_millis(3900) && elapsed < Duration::from_secs(7), "{elapsed:?}");
    task.hostward.line(|line| line["msg"] == "stopped");
    assert_eq!(TcpStream::connect(task.hostward.address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn what_is_in_flight_is_finished() {
    let (mut task, go) = holding(&[("HOSTWARD_DRAIN_DELAY", "0s"), ("HOSTWARD_SHUTDOWN_TIMEOUT", "10s")]);
    let mut client = task.client();
    client.send("GET /held HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
    task.app.wait_count(1);
    let mut idle = task.client();
    idle.ask(GET).expect(200);
    terminate(&task);
    // An idle connection has nothing to wait for.
    idle.assert_closed();
    eventually("no new connection is accepted", || TcpStream::connect(task.hostward.address).is_err().then_some(()));
    go.send(()).unwrap();
    let answer = client.answer().expect(200);
    assert_eq!((answer.text().as_str(), answer.closes()), ("here", true), "{}", answer.head);
    let started = Instant::now();
    assert!(task.hostward.wait(Duration::from_secs(5)).success());
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(task.hostward.request_line("/held")["status"], 200);
}

#[test]
fn what_takes_longer_than_the_shutdown_timeout_is_cut() {
    let (mut task, _go) = holding(&CUT_SOON);
    let mut client = task.client();
    client.send("GET /held HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
    task.app.wait_count(1);
    let started = Instant::now();
    terminate(&task);
    assert!(task.hostward.wait(Duration::from_secs(5)).success(), "{}", task.hostward.output());
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_millis(900) && elapsed < Duration::from_secs(4), "{elapsed:?}");
    let answer = client.answer().expect(503);
    assert!(answer.closes() && answer.field("retry-after").is_some(), "{}", answer.head);
    client.assert_closed();
    let line = task.hostward.request_line("/held");
    assert_eq!((&line["status"], &line["error"]), (&503.into(), &"shutdown".into()), "{line}");
    let event = task.hostward.line(|line| line["msg"] == "request cut by shutdown");
    assert_eq!(event["request_id"], line["request_id"], "{event}");
    let stopped = task.hostward.line(|line| line["msg"] == "stopped");
    assert_eq!(stopped["cut_connections"], 1, "{stopped}");
}

#[test]
fn an_answer_that_has_begun_breaks_off_at_the_shutdown_timeout() {
    let mut task = Task::start(&CUT_SOON, |talk| {
        talk.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").unwrap();
        hang(talk)
    });
    let mut client = task.client();
    client.send("GET /half HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
    client.answer_head().expect(200);
    terminate(&task);
    assert!(task.hostward.wait(Duration::from_secs(5)).success());
    assert_eq!(client.rest(), b"half");
    let line = task.hostward.request_line("/half");
    assert_eq!((&line["status"], &line["error"]), (&200.into(), &"shutdown".into()), "{line}");
}

#[test]
fn a_tunnel_is_cut_at_the_shutdown_timeout() {
    let mut task = Task::start(&CUT_SOON, |talk| {
        talk.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").unwrap();
        hang(talk)
    });
    let mut client = task.client();
    client.send(WEBSOCKET);
    client.answer_head().expect(101);
    terminate(&task);
    assert!(task.hostward.wait(Duration::from_secs(5)).success());
    assert!(client.rest().is_empty());
}

/// Agrees to a WebSocket, reads until the end that hostward gives it, and still has something to say.
fn farewell(talk: &mut Conversation<'_>) -> Then {
    talk.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").unwrap();
    let said = talk.input.rest().unwrap();
    talk.send([&said[..], b"+"].concat()).unwrap();
    thread::sleep(Duration::from_millis(500));
    talk.send("bye".repeat(100_000)).unwrap();
    Then::Close
}

#[test]
fn a_tunnels_app_hears_the_end_of_the_drain_delay_and_has_the_last_word() {
    for more in [&[][..], &[("HOSTWARD_TLS", "self-signed")]] {
        let drain = [("HOSTWARD_DRAIN_DELAY", "1s"), ("HOSTWARD_SHUTDOWN_TIMEOUT", "10s")];
        let mut task = Task::start(&[more, &drain[..]].concat(), farewell);
        // One client that says nothing, one that goes on talking, and one that has ended its side.
        let mut clients: Vec<_> = (0..3).map(|_| task.client()).collect();
        for client in &mut clients {
            client.send(WEBSOCKET);
            client.answer_head().expect(101);
        }
        let began = Instant::now();
        terminate(&task);
        clients[1].send("early");
        clients[2].send("end");
        clients[2].half_close();
        let [silent, talking, ended] = &mut clients[..] else { panic!("three") };
        // Until then it is a tunnel as always.
        assert_eq!(ended.input.exactly(4).unwrap_or_else(|broken| panic!("{broken}")), b"end+");
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!(silent.input.exactly(1).unwrap_or_else(|broken| panic!("{broken}")), b"+");
        assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
        assert_eq!(talking.input.exactly(6).unwrap_or_else(|broken| panic!("{broken}")), b"early+");
        // What is sent now is not relayed, and must not cost anything that comes from the app.
        talking.send("late".repeat(1000));
        for client in [silent, talking, ended] {
            assert_eq!(client.rest().len(), 300_000);
        }
        drop(clients);
        assert!(task.hostward.wait(Duration::from_secs(5)).success(), "{}", task.hostward.output());
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(task.hostward.line(|line| line["msg"] == "stopped")["clean"], true);
        let lines = task.hostward.lines();
        let mut sent: Vec<_> =
            lines.iter().filter(|line| line["path"] == "/chat").map(|line| line["bytes_out"].as_u64()).collect();
        sent.sort();
        assert_eq!(sent, [Some(300_001), Some(300_004), Some(300_006)]);
    }
}

#[test]
fn a_tunnel_that_is_agreed_to_late_gets_its_end_at_once() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let settings = [("HOSTWARD_DRAIN_DELAY", "0s"), ("HOSTWARD_SHUTDOWN_TIMEOUT", "10s")];
    let mut task = Task::start(&settings, move |talk| {
        gone.lock().unwrap().recv().ok();
        farewell(talk)
    });
    let mut client = task.client();
    client.send(WEBSOCKET);
    task.app.wait_count(1);
    terminate(&task);
    eventually("no new connection is accepted", || TcpStream::connect(task.hostward.address).is_err().then_some(()));
    go.send(()).unwrap();
    client.answer_head().expect(101);
    assert_eq!(client.rest().len(), 300_001);
    drop(client);
    assert!(task.hostward.wait(Duration::from_secs(5)).success(), "{}", task.hostward.output());
}

#[test]
fn sigint_ends_at_once() {
    let (mut task, _go) = holding(&[]);
    let mut client = task.client();
    client.send("GET /held HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
    task.app.wait_count(1);
    let started = Instant::now();
    task.hostward.interrupt();
    assert!(task.hostward.wait(Duration::from_secs(5)).success(), "{}", task.hostward.output());
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    client.answer().expect(503);
}

#[test]
fn sigterm_without_work_ends_after_the_drain_delay() {
    let (mut task, _go) = holding(&[("HOSTWARD_DRAIN_DELAY", "0s")]);
    let started = Instant::now();
    terminate(&task);
    assert!(task.hostward.wait(Duration::from_secs(5)).success());
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn a_second_signal_ends_the_wait() {
    for signal in [Hostward::terminate, Hostward::interrupt] {
        let (mut task, _go) = holding(&[("HOSTWARD_DRAIN_DELAY", "20s")]);
        terminate(&task);
        get(task.hostward.address, "www.example.com", "/").expect(200);
        signal(&task.hostward);
        assert!(task.hostward.wait(Duration::from_secs(3)).success(), "{}", task.hostward.output());
        task.hostward.line(|line| line["msg"] == "stopped");
    }
}
