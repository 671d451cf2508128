//! Answers are read ahead of slow clients, within bounds, and never held back.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::buffering::{Directory, NOWHERE, space_is_free};
use crate::support::app::{App, Conversation, Then, answer};
use crate::support::hostward::Hostward;
use crate::support::http2;
use crate::support::wire::Client;
use crate::support::{Task, eventually};

const GET: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
/// More than the kernel's buffers on both sides of hostward take.
const LARGE: usize = 14 << 20;
const SELF_SIGNED: (&str, &str) = ("HOSTWARD_TLS", "self-signed");
/// What the log says where there is no file.
const HOLDS: &str = "slow client holds the app";

/// A client whose kernel takes next to nothing for it.
pub fn slow_client(address: SocketAddr) -> Client {
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
        let outcome = talk.send(head).and_then(|()| talk.send(pattern()));
        sent.store(outcome.is_ok(), Ordering::SeqCst);
        if outcome.is_ok() { Then::Keep } else { Then::Close }
    });
    (task, rid)
}

/// [`LARGE`] bytes that show when some are missing, twice there, or in the wrong place. Made once: it takes a while.
fn pattern() -> &'static [u8] {
    static PATTERN: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..LARGE).map(|at| u8::try_from(at / 251 % 251).unwrap()).collect());
    &PATTERN
}

fn assert_large(client: &mut Client) {
    let answer = client.answer().expect(200);
    assert!(answer.body == pattern(), "{} bytes", answer.body.len());
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

/// Sends the body of [`LARGE`] bytes, and closes when a write blocks for a second. `framing` is what says its end.
fn impatient(settings: &[(&str, &str)], framing: &'static str) -> (Task, Arc<AtomicBool>) {
    let sent_all = Arc::new(AtomicBool::new(false));
    let sent = Arc::clone(&sent_all);
    let task = Task::start(settings, move |talk| {
        if talk.request.target != "/" {
            return talk.reply(answer("200 OK", "", "small"));
        }
        talk.input.stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let head = format!("HTTP/1.1 200 OK\r\n{framing}\r\n").replace("LARGE", &LARGE.to_string());
        let is_chunked = framing.contains("chunked");
        let body = if is_chunked { crate::streaming::chunked(pattern(), 70_001) } else { pattern().to_vec() };
        let outcome = talk.send(head).and_then(|()| talk.send(body));
        sent.store(outcome.is_ok(), Ordering::SeqCst);
        Then::Close
    });
    (task, sent_all)
}

#[test]
fn what_a_slow_client_leaves_goes_to_a_file_before_the_app_loses_patience() {
    for framing in ["Content-Length: LARGE\r\n", "Transfer-Encoding: chunked\r\n", "Connection: close\r\n"] {
        // Past the fast path, and on it.
        for fields in ["", "TE: trailers\r\n"] {
            let directory = Directory::new();
            let (task, sent_all) = impatient(&[directory.setting()], framing);
            let mut slow = slow_client(task.hostward.address);
            slow.send(format!("GET / HTTP/1.1\r\nHost: www.example.com\r\n{fields}\r\n"));
            eventually("the app is rid of its response", || sent_all.load(Ordering::SeqCst).then_some(()));
            assert_eq!(directory.spooled(&task.hostward), 1, "{framing}{fields}");
            assert!(resident(&task.hostward) < 40 << 10, "{} KiB", resident(&task.hostward));
            assert_large(&mut slow);
            space_is_free(&task.hostward);
            assert_eq!(task.hostward.request_line("/")["error"], serde_json::Value::Null);
            assert_eq!(directory.spooled(&task.hostward), 0, "{framing}{fields}");
        }
    }
}

#[test]
fn a_response_in_a_file_reaches_a_client_of_http2_and_ends_with_a_client_that_leaves() {
    let directory = Directory::new();
    let (task, sent_all) = impatient(&[directory.setting()], "Transfer-Encoding: chunked\r\n");
    http2::run(async {
        let mut sender = http2::connect(task.hostward.address).await;
        let (response, _) = sender.send_request(http2::get("/"), true).unwrap();
        let body = response.await.unwrap().into_body();
        http2::until(|| sent_all.load(Ordering::SeqCst)).await;
        assert_eq!(directory.spooled(&task.hostward), 1);
        read_large(body).await;
    });
    space_is_free(&task.hostward);
    sent_all.store(false, Ordering::SeqCst);
    let mut leaves = slow_client(task.hostward.address);
    leaves.send(GET);
    eventually("the app is rid of its response", || sent_all.load(Ordering::SeqCst).then_some(()));
    drop(leaves);
    space_is_free(&task.hostward);
    eventually("the file is closed", || (directory.spooled(&task.hostward) == 0).then_some(()));
}

/// Hands [`LARGE`] bytes to an HTTP/2 client as it makes room for them, and counts them.
async fn send_large(mut talk: http2::Conversation, sent: Arc<AtomicUsize>) {
    if talk.head.uri().path() != "/" {
        return talk.reply(200, b"small");
    }
    let mut stream = talk.begin(http::Response::new(()));
    let mut body = Bytes::from_static(pattern());
    while !body.is_empty() {
        stream.reserve_capacity(body.len().min(64 << 10));
        let Some(Ok(capacity)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
        let part = body.split_to(capacity.min(body.len()));
        let length = part.len();
        if stream.send_data(part, body.is_empty()).is_err() {
            return;
        }
        sent.fetch_add(length, Ordering::SeqCst);
    }
}

/// The same as an HTTP/1.1 app does it.
fn talk_large(talk: &mut Conversation<'_>, sent: &AtomicUsize) -> Then {
    if talk.request.target != "/" {
        return talk.reply(answer("200 OK", "", "small"));
    }
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
    let mut outcome = talk.send(head);
    for part in pattern().chunks(64 << 10) {
        outcome = outcome.and_then(|()| talk.send(part));
        if outcome.is_ok() {
            sent.fetch_add(part.len(), Ordering::SeqCst);
        }
    }
    if outcome.is_ok() { Then::Keep } else { Then::Close }
}

/// An app of either protocol that sends [`LARGE`] bytes; its URL, and what of them it is rid of. It lives as long as what
/// is returned first.
fn apps() -> [(Box<dyn std::any::Any>, String, Arc<AtomicUsize>); 2] {
    let (of_http1, of_h2c) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let sent = Arc::clone(&of_http1);
    let http1 = App::start(move |talk| talk_large(talk, &sent));
    let sent = Arc::clone(&of_h2c);
    let h2c = http2::App::start(100, move |talk| send_large(talk, Arc::clone(&sent)));
    let (http1_url, h2c_url) = (http1.url(), h2c.url());
    // Before anybody waits for it.
    pattern();
    [(Box::new(http1), http1_url, of_http1), (Box::new(h2c), h2c_url, of_h2c)]
}

/// Reads all of a response over HTTP/2.
async fn read_large(mut body: h2::RecvStream) {
    let mut at = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        assert!(pattern()[at..].starts_with(&data), "{at}");
        at += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(at, LARGE);
}

/// B8 in the other protocols: before an h2c app as before one of HTTP/1.1, for clients of both versions, with TLS and
/// without.
#[test]
fn a_response_to_a_slow_client_goes_to_a_file_in_every_protocol() {
    for (_app, url, sent) in apps() {
        for (settings, over_http2) in [(&[][..], false), (&[], true), (&[SELF_SIGNED], false), (&[SELF_SIGNED], true)] {
            let directory = Directory::new();
            let needed = [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", &url)];
            let hostward = Hostward::start(&[settings, &needed, &[directory.setting()]].concat());
            let what = format!("{url} {settings:?}, HTTP/2: {over_http2}");
            sent.store(0, Ordering::SeqCst);
            let is_free = || sent.load(Ordering::SeqCst) == LARGE;
            if over_http2 {
                http2::run(async {
                    let mut sender = http2::connect(hostward.address).await;
                    let (response, _) = sender.send_request(http2::get("/"), true).unwrap();
                    let body = response.await.unwrap().into_body();
                    http2::until(is_free).await;
                    assert_eq!(directory.spooled(&hostward), 1, "{what}");
                    read_large(body).await;
                });
            } else {
                let mut slow = slow_client(hostward.address);
                slow.send(GET);
                eventually("the app is rid of its response", || is_free().then_some(()));
                assert_eq!(directory.spooled(&hostward), 1, "{what}");
                assert_large(&mut slow);
            }
            space_is_free(&hostward);
            assert_eq!(hostward.request_line("/")["error"], serde_json::Value::Null, "{what}");
            assert!(hostward.lines().iter().all(|line| line["msg"] != HOLDS), "{what}");
        }
    }
}

/// B8: where there is no file, one line a minute, however many clients are slow. A client of HTTP/1.1 and one of HTTP/2,
/// before an app of either protocol.
#[test]
fn two_slow_clients_are_one_line() {
    for (_app, url, sent) in apps() {
        let settings = [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", &*url), NOWHERE];
        let hostward = Hostward::start(&settings);
        let mut first = slow_client(hostward.address);
        first.send(GET);
        let before = stalled(&sent, 0);
        hostward.line(|line| line["msg"] == HOLDS);
        http2::run(async {
            let mut sender = http2::connect(hostward.address).await;
            let (response, _) = sender.send_request(http2::get("/"), true).unwrap();
            let body = response.await.unwrap().into_body();
            let both = stalled(&sent, before);
            assert!(before < LARGE && both - before < LARGE, "{url}: {before}, then {both}");
            read_large(body).await;
        });
        assert_large(&mut first);
        assert_eq!(hostward.lines().iter().filter(|line| line["msg"] == HOLDS).count(), 1, "{}", hostward.output());
    }
}

/// The count, once it is beyond `before` and stands still.
fn stalled(sent: &AtomicUsize, before: usize) -> usize {
    let mut last = 0;
    eventually("nothing more is sent", || {
        thread::sleep(Duration::from_millis(300));
        let now = sent.load(Ordering::SeqCst);
        (std::mem::replace(&mut last, now) == now && now > before).then_some(now)
    })
}

#[test]
fn without_disk_space_a_slow_client_is_waited_for_and_the_log_says_what_that_costs() {
    let directory = Directory::new();
    let (setting, little) = (directory.setting(), ("HOSTWARD_BUFFER_DISK", "4MiB"));
    for settings in [&[NOWHERE][..], &[setting, little]] {
        let (task, sent_all) = large(settings);
        let mut slow = slow_client(task.hostward.address);
        slow.send(GET);
        let line = task.hostward.line(|line| line["msg"] == HOLDS);
        assert!(line["hint"].as_str().is_some_and(|hint| hint.contains("socket-timeout")), "{line}");
        thread::sleep(Duration::from_millis(300));
        assert!(!sent_all.load(Ordering::SeqCst), "somebody took 14 MiB");
        assert!(directory.bytes(&task.hostward) <= 2 << 20);
        // All of it arrives, in order, out of memory, the file and the app.
        assert_large(&mut slow);
        space_is_free(&task.hostward);
        // Half of the space is for requests.
        let mut long = task.client();
        long.send(format!("POST /x HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: {}\r\n\r\n", 2 << 20));
        long.send(vec![b'x'; 2 << 20]);
        long.answer().expect(200);
    }
}

#[test]
fn what_comes_behind_a_file_keeps_its_place() {
    let directory = Directory::new();
    for (end, error) in [("0\r\nX-Checksum: 42\r\n\r\n", serde_json::Value::Null), ("", "connection_terminated".into())]
    {
        let task = Task::start(&[directory.setting()], move |talk| {
            let head = "HTTP/1.1 200 OK\r\nTrailer: X-Checksum\r\nTransfer-Encoding: chunked\r\n\r\n";
            let chunk = [format!("{LARGE:x}\r\n").into_bytes(), vec![b'~'; LARGE], b"\r\n".to_vec()].concat();
            talk.send(head).and_then(|()| talk.send(chunk)).and_then(|()| talk.send(end)).unwrap();
            Then::Close
        });
        let mut slow = slow_client(task.hostward.address);
        slow.send("GET / HTTP/1.1\r\nHost: www.example.com\r\nTE: trailers\r\nConnection: close\r\n\r\n");
        task.app.wait_open(0);
        slow.answer_head().expect(200);
        let rest = slow.rest();
        assert_eq!(rest.split(|byte| *byte == b'~').count(), LARGE + 1);
        assert_eq!(
            String::from_utf8_lossy(&rest[rest.len() - 40..]).to_lowercase().contains("x-checksum: 42"),
            !end.is_empty()
        );
        assert_eq!(task.hostward.request_line("/")["error"], error);
        space_is_free(&task.hostward);
    }
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
    let upstream = app.url();
    let settings = [
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
        ("HOSTWARD_UPSTREAM", upstream.as_str()),
        ("HOSTWARD_BUFFER_DISK", "256MiB"),
    ];
    // A budget of 48 MiB.
    let Some(hostward) = Hostward::start_with_memory(128, &settings) else { return };
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

/// Requests behind one another on one connection, the first with a long response: `fields` send it past the fast path.
fn pipelined(settings: &[(&str, &str)], fields: &str, ends: bool) {
    let task = Task::start(&[settings, &[("HOSTWARD_THREADS", "1")]].concat(), |talk| {
        let target = talk.request.target.clone();
        if target == "/long" {
            talk.reply(answer("200 OK", "", &"x".repeat(2 << 20)))
        } else {
            talk.reply(answer("200 OK", "", &target))
        }
    });
    let mut client = task.client();
    let get = |path: &str, fields: &str| format!("GET {path} HTTP/1.1\r\nHost: www.example.com\r\n{fields}\r\n");
    client.send(get("/long", fields) + &get("/second", "") + &get("/third", fields));
    if ends {
        client.half_close();
    }
    let started = Instant::now();
    // The kernels on the way take less than all of it.
    thread::sleep(Duration::from_millis(200));
    assert_eq!(client.answer().expect(200).body.len(), 2 << 20);
    for path in ["/second", "/third"] {
        assert_eq!(client.answer().expect(200).text(), path, "{fields:?}, ends: {ends}");
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{fields:?}, ends: {ends}: {:?}", started.elapsed());
    if ends {
        client.assert_closed();
    }
}

#[test]
fn what_is_pipelined_behind_a_long_response_is_answered_at_once() {
    // B1 over TLS, too: there the end of this side is a word inside, and not the kernel's.
    for settings in [&[][..], &[SELF_SIGNED]] {
        for fields in ["", "TE: trailers\r\n", "Expect: 100-continue\r\n", "Connection: keep-alive, x\r\n"] {
            for ends in [false, true] {
                pipelined(settings, fields, ends);
            }
        }
    }
}
