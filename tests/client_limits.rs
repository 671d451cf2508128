//! Contract 4: clients that are slow, large, many, or gone.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::app::{Then, answer, hang};
use crate::support::frames::{self, Frames};
use crate::support::kernel;
use crate::support::wire::Client;
use crate::support::{Task, eventually};

const GET: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";

fn assert_soon(started: Instant) {
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_millis(900) && elapsed < Duration::from_secs(4), "{elapsed:?}");
}

#[test]
fn a_head_that_does_not_end_is_408() {
    let task = Task::echo(&[("HOSTWARD_HEADER_TIMEOUT", "1s")]);
    for part in ["GET / HTTP/1.1\r\nHos", "G", "GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: b\r\n"] {
        let mut client = task.client();
        let started = Instant::now();
        client.send(part);
        let answer = client.answer().expect(408);
        assert!(answer.closes(), "{}", answer.head);
        client.assert_closed();
        assert_soon(started);
    }
    // The second request of a connection has its own time.
    let mut client = task.client();
    client.ask(GET).expect(200);
    client.send("GET / HTTP");
    client.answer().expect(408);
    assert_eq!(task.app.count(), 1);
}

#[test]
fn a_head_that_drips_is_408() {
    let task = Task::echo(&[("HOSTWARD_HEADER_TIMEOUT", "1s")]);
    let mut client = task.client();
    let started = Instant::now();
    client.input.patience = Duration::from_millis(100);
    client.send("GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: ");
    let answer = loop {
        match client.try_answer() {
            Ok(answer) => break answer,
            Err(broken) => assert_eq!(broken.why, ErrorKind::TimedOut, "{broken}"),
        }
        // hostward may answer and close at this very moment; the answer tells.
        client.try_send("a").ok();
    };
    assert_eq!(answer.status, 408);
    assert_soon(started);
}

#[test]
fn an_idle_connection_is_closed_in_silence() {
    for (idle, least) in [("1s", 900), ("200ms", 150)] {
        let task = Task::echo(&[("HOSTWARD_IDLE_TIMEOUT", idle), ("HOSTWARD_HEADER_TIMEOUT", "20s")]);
        let mut client = task.client();
        client.ask(GET).expect(200);
        let started = Instant::now();
        client.assert_closed();
        let elapsed = started.elapsed();
        assert!(elapsed >= Duration::from_millis(least) && elapsed < Duration::from_secs(4), "{elapsed:?}");
        let requests = task.hostward.lines().iter().filter(|line| line["msg"] == "request").count();
        assert!(requests <= 1, "{}", task.hostward.output());
    }
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    let task = Task::echo(&[("HOSTWARD_HEADER_TIMEOUT", "1s"), ("HOSTWARD_IDLE_TIMEOUT", "1s")]);
    let mut client = task.client();
    client.assert_closed();
    assert_eq!(task.app.connections(), 0);
}

#[test]
fn the_idle_timeout_is_not_the_head_timeout() {
    let task = Task::echo(&[("HOSTWARD_HEADER_TIMEOUT", "1s"), ("HOSTWARD_IDLE_TIMEOUT", "20s")]);
    let mut client = task.client();
    client.ask(GET).expect(200);
    client.input.patience = Duration::from_millis(1800);
    assert_eq!(client.try_answer().unwrap_err().why, ErrorKind::TimedOut);
    client.input.patience = Duration::from_secs(5);
    client.ask(GET).expect(200);
}

#[test]
fn a_body_that_pauses_is_408() {
    for mode in ["off", "auto"] {
        let task = Task::echo(&[("HOSTWARD_BODY_TIMEOUT", "1s"), ("HOSTWARD_BUFFER_REQUESTS", mode)]);
        for part in [
            "Content-Length: 10\r\n\r\nabc",
            "Content-Length: 10\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ] {
            let mut client = task.client();
            let started = Instant::now();
            client.send(format!("POST /slow HTTP/1.1\r\nHost: www.example.com\r\n{part}"));
            let answer = client.answer().expect(408);
            assert!(answer.closes(), "{}", answer.head);
            client.assert_closed();
            assert_soon(started);
            assert_eq!(task.app.complete(), 0);
        }
        // The app is rid of them too.
        task.app.wait_open(0);
        assert_eq!(task.hostward.request_line("/slow")["status"], 408);
    }
}

#[test]
fn a_body_that_is_too_long_is_413() {
    let task = Task::echo(&[("HOSTWARD_MAX_BODY_SIZE", "10")]);
    let post = |rest: &str| format!("POST / HTTP/1.1\r\nHost: www.example.com\r\n{rest}");
    // At once, by its length.
    let answer = task.turned_away(post("Content-Length: 11\r\n\r\n"), 413);
    assert!(answer.field("proxy-status").is_some_and(|value| value.contains("http_request_error")), "{}", answer.head);
    task.turned_away(post("Content-Length: 9999999999999\r\n\r\nabc"), 413);
    assert_eq!(task.admitted(post("Content-Length: 10\r\n\r\n0123456789")).body, b"0123456789");
    // By count, when nobody says.
    assert_eq!(
        task.admitted(post("Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n")).body,
        b"0123456789"
    );
    let complete = task.app.complete();
    for body in ["b\r\n01234567890\r\n0\r\n\r\n", "a\r\n0123456789\r\n1\r\n0\r\n0\r\n\r\n", "ffffff\r\n0123456789012"] {
        let mut client = task.client();
        client.send(post(&format!("Transfer-Encoding: chunked\r\n\r\n{body}")));
        let answer = client.answer().expect(413);
        assert!(answer.closes(), "{}", answer.head);
        assert_eq!(task.app.complete(), complete, "{body}");
    }
}

#[test]
fn a_head_that_is_too_long_is_431() {
    for (limit, size) in [("8KiB", 8 << 10), ("1KiB", 1 << 10)] {
        let task = Task::echo(&[("HOSTWARD_MAX_HEADER_SIZE", limit)]);
        let request =
            |length: usize| format!("GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: {}\r\n\r\n", "a".repeat(length));
        let received = task.admitted(request(size - 200));
        assert_eq!(received.field("x-a").map(str::len), Some(size - 200));
        let answer = task.turned_away(request(size), 431);
        assert!(answer.closes(), "{}", answer.head);
        // The bound is on the whole head, not on one line of it.
        let lines = (0..50).map(|n| format!("X-{n}: {}\r\n", "a".repeat(size / 40))).collect::<Vec<_>>().concat();
        task.turned_away(format!("GET / HTTP/1.1\r\nHost: www.example.com\r\n{lines}\r\n"), 431);
    }
}

#[test]
fn connections_beyond_the_limit_wait() {
    let task = Task::echo(&[("HOSTWARD_MAX_CONNECTIONS", "2")]);
    let mut first = task.client();
    first.ask(GET).expect(200);
    let mut second = task.client();
    second.ask(GET).expect(200);
    let mut third = task.client();
    third.send(GET);
    third.input.patience = Duration::from_millis(300);
    assert_eq!(third.try_answer().unwrap_err().why, ErrorKind::TimedOut);
    // Those who are in are served meanwhile.
    first.ask(GET).expect(200);
    third.input.patience = Duration::from_secs(5);
    drop(second);
    third.answer().expect(200);
    assert_eq!(task.app.count(), 4);
}

#[test]
fn the_app_never_has_more_to_do_than_the_limit() {
    for threads in ["1", "2"] {
        let at_work = Arc::new(AtomicUsize::new(0));
        let most_at_work = Arc::new(AtomicUsize::new(0));
        let (working, most) = (Arc::clone(&at_work), Arc::clone(&most_at_work));
        let settings = [("HOSTWARD_UPSTREAM_MAX_CONNECTIONS", "2"), ("HOSTWARD_THREADS", threads)];
        let task = Task::start(&settings, move |talk| {
            most.fetch_max(working.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // Long enough that the others come while it lasts.
            thread::sleep(Duration::from_millis(20));
            working.fetch_sub(1, Ordering::SeqCst);
            talk.reply(answer("200 OK", "", "here"))
        });
        let address = task.hostward.address;
        let clients: Vec<_> = (0..12)
            .map(|_| {
                thread::spawn(move || {
                    let mut client = Client::connect(address);
                    for _ in 0..3 {
                        client.ask(GET).expect(200);
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        assert_eq!(task.app.count(), 36);
        assert!(most_at_work.load(Ordering::SeqCst) <= 2, "{} requests at once", most_at_work.load(Ordering::SeqCst));
        // Two workers close one for the other, and the app may notice that after the next one has come.
        if threads == "1" {
            assert!(task.app.most_open() <= 2, "{} connections at once", task.app.most_open());
        }
    }
}

#[test]
fn a_client_that_ends_its_side_gets_its_answer() {
    static GO: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
    let task = Task::start(&[], |talk| {
        let go = GO.0.lock().unwrap();
        drop(GO.1.wait_timeout_while(go, Duration::from_secs(5), |go| !*go).unwrap());
        talk.reply(answer("200 OK", "", "here"))
    });
    let mut client = task.client();
    client.send(GET);
    client.half_close();
    task.app.wait_count(1);
    *GO.0.lock().unwrap() = true;
    GO.1.notify_all();
    assert_eq!(client.answer().expect(200).text(), "here");
    client.assert_closed();
    // And when the end comes together with the request.
    let mut client = task.client();
    client.send("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 5\r\n\r\nhello");
    client.half_close();
    client.answer().expect(200);
}

#[test]
fn a_client_that_leaves_while_the_app_works_is_499_in_the_log() {
    let (left, leaving) = mpsc::channel::<()>();
    let left = Mutex::new(left);
    let task = Task::start(&[], move |talk| {
        hang(talk);
        left.lock().unwrap().send(()).unwrap();
        Then::Close
    });
    let mut client = task.client();
    client.send("GET /left HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
    task.app.wait_count(1);
    // A reset: an end alone may come from a client that still listens.
    let socket = socket2::SockRef::from(client.input.stream.tcp());
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    leaving.recv_timeout(Duration::from_secs(5)).unwrap();
    let line = task.hostward.request_line("/left");
    assert_eq!((&line["status"], &line["error"]), (&499.into(), &"client_gone".into()));
}

#[test]
fn a_client_that_leaves_during_its_upload_leaves_no_request_behind() {
    let task = Task::echo(&[("HOSTWARD_BUFFER_REQUESTS", "off")]);
    let mut client = task.client();
    client.send("POST /left HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 1000\r\n\r\nhello");
    task.app.wait_count(1);
    drop(client);
    task.app.wait_open(0);
    assert_eq!(task.app.complete(), 0);
    assert_eq!(task.hostward.request_line("/left")["error"], "client_gone");
}

#[test]
fn a_client_that_leaves_during_its_answer_frees_the_app() {
    let task = Task::start(&[], |talk| {
        talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        while talk.send(format!("2000\r\n{}\r\n", "a".repeat(0x2000))).is_ok() {}
        Then::Close
    });
    let mut client = task.client();
    client.send("GET /left HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
    client.answer_head().expect(200);
    drop(client);
    task.app.wait_open(0);
    assert_eq!(task.hostward.request_line("/left")["error"], "client_gone");
}

#[test]
fn the_kernel_takes_little_of_an_answer_that_nobody_reads() {
    let task = Task::start(&[("HOSTWARD_BODY_TIMEOUT", "60s")], |talk| {
        talk.reply(answer("200 OK", "", &"a".repeat(16 << 20)));
        Then::Close
    });
    let mut client = task.client();
    client.send(GET);
    let from = client.input.stream.tcp().local_addr().unwrap();
    let mut before = 0;
    let lying = eventually("nothing more is written", || {
        thread::sleep(Duration::from_millis(200));
        let now = kernel::unacknowledged(task.hostward.address, from);
        (std::mem::replace(&mut before, now) == now && now > 0).then_some(now)
    });
    // What the client's kernel has acknowledged isn't counted, and what is written at once goes over the bound.
    assert!(lying < 512 << 10, "{lying} bytes");
}

#[test]
fn what_a_client_has_left_lying_goes_with_its_connection() {
    let task = Task::start(&[("HOSTWARD_BODY_TIMEOUT", "1s")], |talk| {
        talk.reply(answer("200 OK", "", &"a".repeat(16 << 20)));
        Then::Close
    });
    let mut client = task.client();
    client.send(GET);
    // SETTINGS_INITIAL_WINDOW_SIZE, and WINDOW_UPDATE of the connection: more than the answer.
    let mut frames = Frames::connect(task.hostward.address, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    frames.send(frames::WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes()).unwrap();
    frames.ask(
        1,
        frames::END_STREAM,
        &[(":method", "GET"), (":scheme", "http"), (":authority", "www.example.com"), (":path", "/")],
    );
    // A plain end would come behind what the client hasn't read, and the kernel would keep all that for it.
    for (name, stream) in [("HTTP/1.1", client.input.stream.tcp()), ("HTTP/2", frames.stream.tcp())] {
        let why = eventually(name, || stream.take_error().unwrap());
        assert_eq!(why.kind(), ErrorKind::ConnectionReset, "{name}");
    }
}

#[test]
fn a_storm_of_aborted_connections_does_no_harm() {
    let task = Task::echo(&[]);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", task.hostward.pid())).map_or(0, Iterator::count);
    task.get("/").expect(200);
    let before = descriptors();
    for number in 0..300 {
        let mut client = task.client();
        if number % 2 == 0 {
            client.send(&GET[..number % GET.len()]);
        }
        let socket = socket2::SockRef::from(client.input.stream.tcp());
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }
    // A second worker may have come up, with its own.
    eventually("the descriptors are given back", || (descriptors() < before + 20).then_some(()));
    task.get("/").expect(200);
    assert!(task.hostward.lines().len() < 50, "{}", task.hostward.output());
}
