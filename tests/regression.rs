//! One test for each bug that was found, named after what the user saw.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::read_ahead::resident;
use super::support::app::{App, Then, answer};
use super::support::frames::{self, Frames};
use super::support::hostward::Hostward;
use super::support::http2;
use super::support::uwsgi::UwsgiApp;
use super::support::wire::Client;
use super::support::{PATIENCE, Task, eventually, wire};

const POST: &str = "POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 1\r\n\r\nx";
const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "www.example.com"), (":path", "/")];

#[test]
fn posts_in_a_row_do_not_wait_for_the_one_connection_that_is_idle() {
    for threads in ["1", "2"] {
        let task = Task::echo(&[
            ("HOSTWARD_THREADS", threads),
            ("HOSTWARD_UPSTREAM_MAX_CONNECTIONS", "1"),
            ("HOSTWARD_UPSTREAM_IDLE_TIMEOUT", "60s"),
            ("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT", "5s"),
        ]);
        let mut clients = [task.client(), task.client()];
        let started = Instant::now();
        for _ in 0..3 {
            for client in &mut clients {
                client.ask(POST).expect(200);
            }
        }
        assert!(started.elapsed() < Duration::from_secs(4), "{threads} threads: {:?}", started.elapsed());
    }
}

#[test]
fn an_answer_to_an_upload_that_the_app_does_not_read_is_delivered() {
    for mode in ["off", "auto"] {
        let task = Task::start(&[("HOSTWARD_BUFFER_REQUESTS", mode)], |talk| {
            talk.reply("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig");
            Then::Close
        });
        for length in [100_000, 300_000, 3_000_000].repeat(3) {
            let mut client = task.client();
            client.send(format!("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: {length}\r\n\r\n"));
            // hostward may close before it has taken everything; the answer is there all the same.
            client.try_send(vec![b'x'; length]).ok();
            assert_eq!(client.answer().expect(413).text(), "big", "{length}");
        }
    }
}

#[test]
fn a_get_keeps_its_chunked_body() {
    let task = Task::echo(&[]);
    task.ask("GET / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        .expect(200);
    assert_eq!(task.app.last().body, b"hello");
}

#[test]
fn a_body_with_too_many_extensions_or_trailers_is_answered() {
    let task = Task::echo(&[]);
    let head = "POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n";
    let extensions = format!("1;{}\r\nx\r\n", "e".repeat(200)).repeat(100);
    let trailers = "T: v\r\n".repeat(150);
    for body in [format!("{extensions}0\r\n\r\n"), format!("1\r\nx\r\n0\r\n{trailers}\r\n")] {
        let answer = task.ask(format!("{head}{body}")).expect(400);
        assert!(answer.closes(), "{}", answer.head);
    }
    assert_eq!(task.app.complete(), 0);
}

#[test]
fn a_client_that_stalls_its_upload_after_an_early_answer_is_cut() {
    let task = Task::start(&[("HOSTWARD_BODY_TIMEOUT", "1s"), ("HOSTWARD_BUFFER_REQUESTS", "off")], |talk| {
        talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n").ok();
        // Holds the answer open until hostward gives up.
        talk.body().ok();
        Then::Close
    });
    let mut client = task.client();
    client.send("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 10\r\n\r\nx");
    let started = Instant::now();
    let rest = wire::text(&client.rest());
    assert!(rest.contains("early") && !rest.contains("0\r\n\r\n"), "{rest}");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    task.app.wait_open(0);
}

#[test]
fn a_flood_of_interim_responses_does_not_fill_the_memory() {
    let task = Task::start(&[], |talk| {
        for number in 0..20_000 {
            if talk.send(format!("HTTP/1.1 103 Early Hints\r\nLink: </{number}-{}>\r\n\r\n", "x".repeat(500))).is_err()
            {
                return Then::Close;
            }
        }
        talk.reply(answer("200 OK", "", "late"))
    });
    let mut client = task.client();
    client.send("GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
    task.app.wait_count(1);
    // Others are answered, and the one that has not read gets its answer behind what was kept of the hints.
    let answer = client.answer().expect(200);
    assert_eq!(answer.text(), "late");
    let status = std::fs::read_to_string(format!("/proc/{}/status", task.hostward.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").trim().parse().unwrap();
    assert!(peak < 60_000, "{peak} kB");
}

#[test]
fn an_answer_does_not_begin_within_an_interim_response_that_a_slow_client_has_half_of() {
    const HINTS: usize = 5_000;
    let (said, done) = mpsc::channel();
    let task = Task::start(&[], move |talk| {
        for number in 0..HINTS {
            let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: </{number}-{}>\r\n\r\n", "x".repeat(500));
            if talk.send(hint).is_err() {
                return Then::Close;
            }
        }
        let then = talk.reply(answer("200 OK", "", "late"));
        said.send(()).unwrap();
        then
    });
    let mut client = task.client();
    client.send("GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
    done.recv_timeout(PATIENCE).unwrap();
    // More than fits between hostward and a client that doesn't read, so that one of them has been written in part.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(client.answer().expect(200).text(), "late");
}

#[test]
fn an_empty_line_after_a_body_is_no_request() {
    let task = Task::echo(&[("HOSTWARD_HEADER_TIMEOUT", "1s"), ("HOSTWARD_IDLE_TIMEOUT", "2s")]);
    let mut client = task.client();
    client.ask(format!("{POST}\r\n")).expect(200);
    let started = Instant::now();
    assert_eq!(wire::text(&client.rest()), "", "no 408 that a client could take for its next answer");
    assert!(started.elapsed() >= Duration::from_millis(1_800), "{:?}", started.elapsed());
}

#[test]
fn a_websocket_handshake_with_a_body_is_no_handshake() {
    let task = Task::echo(&[]);
    for body in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
        task.ask(format!(
            "GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{body}"
        ))
        .expect(200);
        let received = task.app.last();
        assert_eq!((received.field("upgrade"), &*received.body), (None, &b"hello"[..]), "{}", received.head);
    }
}

#[test]
fn the_log_names_the_host_that_was_judged() {
    let task = Task::echo(&[]);
    task.turned_away("GET http://evil.example/judged HTTP/1.1\r\nHost: www.example.com\r\n\r\n", 421);
    assert_eq!(task.hostward.request_line("/judged")["host"], "evil.example");
}

#[test]
fn a_request_without_a_host_that_is_only_reported_is_well_formed_at_the_app() {
    let task = Task::echo(&[("HOSTWARD_HOST_POLICY", "report")]);
    let received = task.admitted("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(received.all("host"), [""], "{}", received.head);
}

#[test]
fn a_client_that_neither_reads_nor_goes_on_sending_is_cut_in_the_middle_of_both() {
    for read_ahead in ["0", "1MiB"] {
        let task = Task::start(
            &[
                ("HOSTWARD_BODY_TIMEOUT", "1s"),
                ("HOSTWARD_BUFFER_REQUESTS", "off"),
                ("HOSTWARD_BUFFER_RESPONSES", read_ahead),
            ],
            |talk| {
                // Before the request's body has ended, and less than is read ahead.
                let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
                talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
                talk.send(chunk.repeat(8)).unwrap();
                talk.body().ok();
                Then::Close
            },
        );
        // SETTINGS_INITIAL_WINDOW_SIZE = 1000, and no update ever.
        let mut frames = Frames::connect(task.hostward.address, &[0, 4, 0, 0, 0x03, 0xe8]);
        frames.ask(1, 0, &[&[(":method", "POST")], &GET[1..]].concat());
        frames.send(frames::DATA, 0, 1, b"part").unwrap();
        task.app.wait_count(1);
        task.app.wait_open(0);
        assert_eq!(task.hostward.request_line("/")["error"], "client_gone", "{read_ahead}");
    }
}

#[test]
fn an_answer_in_tiny_pieces_takes_no_more_memory_than_others() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    // What is spooled has an end, too.
    let task = Task::start(&[("HOSTWARD_BUFFER_DISK", "1MiB")], move |talk| {
        if talk.request.target != "/" {
            return talk.reply(answer("200 OK", "", "small"));
        }
        talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        let pieces = "1\r\nx\r\n".repeat(10_000);
        while talk.send(&pieces).is_ok() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
        Then::Close
    });
    task.get("/small").expect(200);
    let before = resident(&task.hostward);
    // SETTINGS_INITIAL_WINDOW_SIZE = 1000, and no update ever.
    let mut frames = Frames::connect(task.hostward.address, &[0, 4, 0, 0, 0x03, 0xe8]);
    for stream in [1, 3] {
        frames.ask(stream, frames::END_STREAM, &GET);
    }
    // As much as anybody will take has been taken when nothing more comes.
    let mut last = 0;
    let after = eventually("the app can't send any more", || {
        let now = sent.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(500));
        (now > 0 && std::mem::replace(&mut last, now) == now).then(|| resident(&task.hostward))
    });
    assert!(after < before + 32 * 1024, "{before} KiB before, {after} KiB after");
}

#[test]
fn many_requests_on_one_connection_do_not_take_the_descriptors_of_the_others() {
    let app = App::start(|talk| {
        // Nobody is answered before the client leaves.
        talk.input.rest().ok();
        Then::Close
    });
    let url = app.url();
    let settings = [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", url.as_str())];
    // Enough for 32 connections on either side.
    let hostward = Hostward::start_with_descriptors(128, &settings);
    let mut frames = Frames::connect(hostward.address, &[]);
    for number in 0..120 {
        frames.ask(2 * number + 1, frames::END_STREAM, &GET);
    }
    app.wait_count(32);
    wire::get(hostward.address, "evil.example", "/").expect(421);
    assert_eq!(app.count(), 32);
}

#[test]
fn a_connection_that_has_not_said_who_it_is_does_not_hold_up_the_end() {
    for mode in ["optional", "required"] {
        let settings = [("HOSTWARD_PROXY_PROTOCOL", mode), ("HOSTWARD_DRAIN_DELAY", "0s")];
        let mut task = Task::echo(&settings);
        // Silent, and in the middle of its header.
        let (_silent, mut torn) = (task.client(), task.client());
        torn.send("PROXY TCP4 ");
        task.hostward.terminate();
        assert!(task.hostward.wait(Duration::from_secs(5)).success(), "{mode}");
    }
}

#[test]
fn a_uwsgi_app_s_interim_answer_does_not_open_the_way_for_a_bare_lf() {
    for interim in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"] {
        for line_end in ["\r\n", "\n"] {
            let answer = format!("{interim}HTTP/1.1 200 OK\r\nX-A: b{line_end}Set-Cookie: evil=1\r\n\r\nok");
            let app = UwsgiApp::answering(answer);
            let url = app.url();
            let settings = [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", url.as_str())];
            let hostward = Hostward::start(&settings);
            let mut client = Client::connect(hostward.address);
            client.send("GET / HTTP/1.0\r\nHost: www.example.com\r\n\r\n");
            client.answer().expect(if line_end == "\n" { 502 } else { 200 });
        }
    }
}

#[test]
fn clients_of_an_h2c_app_that_stand_still_do_not_hold_up_the_others() {
    let app = http2::App::start(200, |mut talk| async move {
        let length = if talk.head.uri().path() == "/" { 1 << 20 } else { 5 };
        talk.reply(200, &vec![b'x'; length]);
    });
    let url = app.url();
    let settings = [
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
        ("HOSTWARD_UPSTREAM", url.as_str()),
        ("HOSTWARD_BUFFER_RESPONSES", "0"),
        ("HOSTWARD_THREADS", "1"),
    ];
    let hostward = Hostward::start(&settings);
    // SETTINGS_INITIAL_WINDOW_SIZE = 1000, and no update ever.
    let mut frames = Frames::connect(hostward.address, &[0, 4, 0, 0, 0x03, 0xe8]);
    for number in 0..100 {
        frames.ask(2 * number + 1, frames::END_STREAM, &GET);
    }
    app.wait_count(100);
    for _ in 0..50 {
        assert_eq!(wire::get(hostward.address, "www.example.com", "/small").expect(200).text(), "xxxxx");
    }
    assert_eq!(app.connections(), 1);
}
