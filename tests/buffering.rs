//! Request buffering: the app is asked when the body is there, whole and with a length, wherever it has waited.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request};

use crate::metrics::Metrics;
use crate::streaming::{chunked, noise};
use crate::support::app::{Conversation, Then, answer, echo};
use crate::support::hostward::Hostward;
use crate::support::http2;
use crate::support::uwsgi::UwsgiApp;
use crate::support::wire::{Client, Framing, text};
use crate::support::{PATIENCE, Task, eventually, skip};

const MIB: usize = 1 << 20;
const AUTO: (&str, &str) = ("HOSTWARD_BUFFER_REQUESTS", "auto");
const ON: (&str, &str) = ("HOSTWARD_BUFFER_REQUESTS", "on");
const OFF: (&str, &str) = ("HOSTWARD_BUFFER_REQUESTS", "off");
/// A path where nobody can make a file, root included.
pub const NOWHERE: (&str, &str) = ("HOSTWARD_BUFFER_DIR", "/dev/null/spool");

/// An app that takes bodies and says how long they were.
fn taker(settings: &[(&str, &str)]) -> Task {
    Task::start(settings, take)
}

fn take(talk: &mut Conversation<'_>) -> Then {
    let Ok(body) = talk.body() else { return Then::Close };
    if talk.send(answer("200 OK", "", &body.len().to_string())).is_ok() { Then::Keep } else { Then::Close }
}

/// The same, where hostward's memory budget is 33 MiB. `None` where there are no memory cgroups.
fn taker_with_little_memory(settings: &[(&str, &str)]) -> Option<Task> {
    Task::start_with_memory(88, settings, take)
}

fn head(target: &str, fields: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: www.example.com\r\n{fields}\r\n")
}

fn with_length(target: &str, body: &[u8]) -> Vec<u8> {
    [head(target, &format!("Content-Length: {}\r\n", body.len())).as_bytes(), body].concat()
}

fn in_chunks(target: &str, body: &[u8]) -> Vec<u8> {
    [head(target, "Transfer-Encoding: chunked\r\n").as_bytes(), &chunked(body, 70_001)].concat()
}

/// An empty directory that is gone with the test.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("buffering-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn setting(&self) -> (&str, &str) {
        ("HOSTWARD_BUFFER_DIR", self.0.to_str().unwrap())
    }

    /// How many files without a name hostward has open in here.
    pub fn spooled(&self, hostward: &Hostward) -> usize {
        let open = fs::read_dir(format!("/proc/{}/fd", hostward.pid())).unwrap();
        let links = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links
            .filter(|link| link.starts_with(&self.0))
            .inspect(|link| assert!(!link.exists(), "{}", link.display()))
            .count()
    }

    /// How many bytes these files have.
    pub fn bytes(&self, hostward: &Hostward) -> u64 {
        let open = fs::read_dir(format!("/proc/{}/fd", hostward.pid())).unwrap();
        let paths = open.filter_map(|entry| Some(entry.ok()?.path()));
        let ours = paths.filter(|path| fs::read_link(path).is_ok_and(|link| link.starts_with(&self.0)));
        ours.filter_map(|path| fs::metadata(path).ok()).map(|file| file.len()).sum()
    }
}

/// A tmpfs on `directory`; `None` where only root could make one.
fn tmpfs<'a>(directory: &'a Directory, size: &str) -> Option<Mounted<'a>> {
    let mount = as_root("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(&directory.0).output();
    if mount.is_ok_and(|output| output.status.success()) {
        return Some(Mounted(&directory.0));
    }
    skip("a small disk (tmpfs), which only root can mount, or sudo without a password");
    None
}

impl Drop for Directory {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A disk of its own on a directory.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        as_root("umount").arg("--lazy").arg(self.0).status().ok();
    }
}

/// A program as root, where the tests are root's or may be without a password.
fn as_root(program: &str) -> Command {
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["--non-interactive", program]);
    sudo
}

/// A line of `/proc/…/status`, in bytes.
fn memory(hostward: &Hostward, name: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", hostward.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn a_body_of_any_framing_reaches_the_app_whole_with_a_length() {
    for mode in [AUTO, ON] {
        let task = taker(&[mode]);
        let mut client = task.client();
        for length in [0, 1, 5, 8191, 70_000, MIB - 1, MIB, MIB + 1, 5 * MIB] {
            let body = noise(length);
            for request in [in_chunks("/", &body), with_length("/", &body)] {
                client.send(&request);
                assert_eq!(client.answer().expect(200).text(), length.to_string());
                let received = task.app.last();
                assert_eq!(received.field("content-length"), Some(length.to_string().as_str()), "{}", received.head);
                assert_eq!(received.field("transfer-encoding"), None);
                assert!(received.body == body, "{length}");
            }
        }
    }
}

#[test]
fn a_body_that_drips_arrives_whole() {
    let task = taker(&[("HOSTWARD_BUFFER_MEMORY", "1KiB")]);
    for length in [700, 3000] {
        let body = noise(length);
        let mut client = task.client();
        client.send(head("/", "Transfer-Encoding: chunked\r\n"));
        for part in body.chunks(7) {
            client.send(format!("{:x}\r\n", part.len()));
            client.send(part);
            client.send("\r\n");
        }
        client.send("0\r\n\r\n");
        assert_eq!(client.answer().expect(200).text(), length.to_string());
        assert!(task.app.last().body == body);
    }
}

#[test]
fn trailers_have_no_place_after_a_length() {
    let task = Task::echo(&[]);
    let fields = "Transfer-Encoding: chunked\r\nTE: trailers\r\nTrailer: X-Checksum\r\n";
    let received = task.admitted(head("/", fields) + "5\r\nhello\r\n0\r\nX-Checksum: 42\r\n\r\n");
    assert_eq!((received.framing, received.body.as_slice()), (Framing::Length(5), &b"hello"[..]));
    assert!(!received.head.to_lowercase().contains("x-checksum"), "{}", received.head);
    assert_eq!(received.field("te"), Some("trailers"), "what the client takes in the answer is another matter");
}

/// One connection to the app, and a client that has begun a body. Whether another one is answered meanwhile.
fn another_is_answered(mode: (&str, &str), begun: &[u8], rest: &[u8]) -> bool {
    let limits = [("HOSTWARD_UPSTREAM_MAX_CONNECTIONS", "1"), ("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT", "1s")];
    let task = taker(&[mode, limits[0], limits[1]]);
    let mut slow = task.client();
    slow.send(begun);
    if mode == OFF {
        task.app.wait_count(1);
    }
    let answered = (0..3).all(|_| task.get("/other").status == 200);
    slow.send(rest);
    if answered {
        slow.answer().expect(200);
        assert!(task.app.requests()[..3].iter().all(|request| request.target == "/other"));
    }
    answered
}

#[test]
fn a_client_that_still_sends_keeps_nobody_from_the_app() {
    for length in [10, 3 * MIB] {
        let body = noise(length);
        for request in [with_length("/slow", &body), in_chunks("/slow", &body)] {
            let (begun, rest) = request.split_at(request.len() - 3);
            assert!(another_is_answered(AUTO, begun, rest), "{length}");
            assert!(another_is_answered(ON, begun, rest), "{length}");
        }
    }
    // It is the buffer that does it.
    let request = with_length("/slow", b"0123456789");
    let (begun, rest) = request.split_at(request.len() - 3);
    assert!(!another_is_answered(OFF, begun, rest));
}

#[test]
fn a_long_body_waits_in_a_file_without_a_name_which_is_then_gone() {
    let directory = Directory::new();
    let task = taker(&[directory.setting()]);
    let body = noise(3 * MIB);
    let requests = [with_length("/", &body), in_chunks("/", &body)];
    let mut clients = [task.client(), task.client()];
    for (client, request) in clients.iter_mut().zip(&requests) {
        client.send(&request[..request.len() - 1]);
    }
    eventually("both are spooled", || (directory.spooled(&task.hostward) == 2).then_some(()));
    assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 0);
    assert_eq!(task.app.connections(), 0);
    for (client, request) in clients.iter_mut().zip(&requests) {
        client.send(&request[request.len() - 1..]);
        client.answer().expect(200);
        assert!(task.app.last().body == body);
    }
    eventually("the files are closed", || (directory.spooled(&task.hostward) == 0).then_some(()));
    // A short one needs none.
    let mut client = task.client();
    client.send(&with_length("/", &noise(MIB))[..MIB]);
    task.get("/").expect(200);
    assert_eq!(directory.spooled(&task.hostward), 0);
}

#[test]
fn without_a_directory_a_long_body_streams_and_a_short_one_does_not() {
    let task = taker(&[NOWHERE]);
    let body = noise(3 * MIB);
    for (request, framing) in
        [(in_chunks("/", &body), Framing::Chunked), (with_length("/", &body), Framing::Length(body.len() as u64))]
    {
        let before = task.app.count();
        let mut client = task.client();
        client.send(&request[..request.len() - 1]);
        // The app has it before its end.
        task.app.wait_count(before + 1);
        client.send(&request[request.len() - 1..]);
        assert_eq!(client.answer().expect(200).text(), body.len().to_string());
        let received = task.app.last();
        assert!(received.body == body && received.framing == framing, "{}", received.head);
    }
    task.ask(in_chunks("/", &body[..MIB])).expect(200);
    assert_eq!(task.app.last().framing, Framing::Length(MIB as u64));
    task.hostward.line(|line| line["msg"] == "can't spool");
    let said: Vec<_> = task.hostward.lines().into_iter().filter(|line| line["msg"] == "can't spool").collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0]["hint"].as_str().unwrap().contains("HOSTWARD_BUFFER_DIR"), "{said:?}");
}

#[test]
fn with_on_a_directory_that_cannot_be_written_costs_long_bodies_alone() {
    let task = taker(&[ON, NOWHERE]);
    for request in [with_length("/", &noise(2 * MIB)), in_chunks("/", &noise(2 * MIB))] {
        let answer = task.turned_away(&request, 503);
        assert!(answer.field("proxy-status").is_some_and(|value| value.contains("proxy_internal_error")));
        assert!(answer.field("retry-after").is_some(), "{}", answer.head);
        task.ask(with_length("/", &noise(MIB))).expect(200);
    }
    let line = task.hostward.line(|line| line["reason"] == "spool_failed");
    assert!(line["hint"].as_str().unwrap().contains("HOSTWARD_BUFFER_DIR"), "{line}");
    let line = task.hostward.line(|line| line["msg"] == "can't spool");
    assert_eq!(line["directory"], NOWHERE.1);
}

#[test]
fn with_on_a_directory_that_vanishes_is_missed_as_long_as_it_is_gone() {
    let directory = Directory::new();
    let task = taker(&[ON, directory.setting()]);
    let request = with_length("/", &noise(2 * MIB));
    task.ask(&request).expect(200);
    fs::remove_dir_all(&directory.0).unwrap();
    task.turned_away(&request, 503);
    task.get("/").expect(200);
    fs::create_dir(&directory.0).unwrap();
    task.ask(&request).expect(200);
}

#[test]
fn a_full_disk_costs_the_one_request_that_it_has_no_room_for() {
    let directory = Directory::new();
    let Some(_mounted) = tmpfs(&directory, "size=4m") else { return };
    for mode in [AUTO, ON] {
        let task = taker(&[mode, directory.setting(), ("HOSTWARD_BUFFER_DISK", "1GiB")]);
        let fits = in_chunks("/", &noise(3 * MIB));
        for _ in 0..2 {
            task.ask(&fits).expect(200);
            eventually("its file is closed", || (directory.spooled(&task.hostward) == 0).then_some(()));
            let answer = task.turned_away(in_chunks("/", &noise(6 * MIB)), 503);
            assert!(answer.text().contains("can't be stored"), "{}", answer.text());
            eventually("its file is closed", || (directory.spooled(&task.hostward) == 0).then_some(()));
            task.get("/").expect(200);
        }
        let line = task.hostward.line(|line| line["msg"] == "can't spool");
        assert!(line["error"].as_str().unwrap().contains("No space"), "{line}");
    }
}

pub fn space_is_free(hostward: &Hostward) {
    eventually("all disk space is given back", || {
        (Metrics::of(hostward).get("hostward_spool_bytes") == 0.0).then_some(())
    });
}

#[test]
fn all_spool_files_together_are_bounded() {
    const LIMIT: (&str, &str) = ("HOSTWARD_BUFFER_DISK", "4MiB");
    let directory = Directory::new();
    for mode in [AUTO, ON] {
        let task = taker(&[mode, directory.setting(), LIMIT]);
        let body = noise(3 * MIB);
        let no_space = |request: Vec<u8>| {
            let response = task.turned_away(request, 503);
            assert!(response.field("retry-after").is_some(), "{}", response.head);
            assert!(response.text().contains("no disk space"), "{}", response.text());
            assert!(directory.bytes(&task.hostward) <= 4 * MIB as u64);
        };
        for begin in [with_length, in_chunks] {
            let begun = begin("/", &body);
            let mut slow = task.client();
            slow.send(&begun[..begun.len() - 1]);
            // What is left is less than hostward writes at once.
            eventually("all of it but the last 256 KiB is in a file", || {
                (directory.bytes(&task.hostward) + MIB as u64 / 4 + 1 >= body.len() as u64).then_some(())
            });
            // While it stays there, neither a second one fits nor one that never does; others go on.
            for request in [with_length("/", &body), in_chunks("/", &body), in_chunks("/", &noise(6 * MIB))] {
                no_space(request);
            }
            task.ask(with_length("/", &noise(MIB))).expect(200);
            http2::run(async {
                let mut sender = http2::connect(task.hostward.address).await;
                let request = Request::post("http://www.example.com/").body(()).unwrap();
                let (response, mut stream) = sender.send_request(request, false).unwrap();
                stream.send_data(Bytes::from(body.clone()), false).unwrap();
                let response = response.await.unwrap();
                assert_eq!(
                    (response.status(), response.headers().contains_key("retry-after")),
                    (503.try_into().unwrap(), true)
                );
            });
            eventually("only its file is open", || (directory.spooled(&task.hostward) == 1).then_some(()));
            slow.send(&begun[begun.len() - 1..]);
            slow.answer().expect(200);
            assert!(task.app.last().body == body);
            space_is_free(&task.hostward);
            // And by itself, what is longer than all.
            no_space(begin("/", &noise(5 * MIB)));
            space_is_free(&task.hostward);
            task.ask(begin("/", &body)).expect(200);
        }
        let line = task.hostward.line(|line| line["msg"] == "spool limit reached");
        assert_eq!(line["reason"], "spool_limit");
        assert!(line["hint"].as_str().unwrap().contains("HOSTWARD_BUFFER_DISK"), "{line}");
        assert!(task.hostward.lines().iter().all(|line| line["msg"] != "can't spool"));
    }
}

#[test]
fn a_client_that_leaves_gives_the_disk_space_back() {
    let directory = Directory::new();
    let task = taker(&[directory.setting(), ("HOSTWARD_BUFFER_DISK", "4MiB")]);
    let request = with_length("/", &noise(3 * MIB));
    for _ in 0..3 {
        let mut leaves = task.client();
        leaves.send(&request[..request.len() - 1]);
        eventually("it is spooled", || (directory.bytes(&task.hostward) > 2 * MIB as u64).then_some(()));
        drop(leaves);
        space_is_free(&task.hostward);
    }
    task.ask(&request).expect(200);
}

#[test]
fn files_on_a_tmpfs_leave_the_memory_to_others() {
    let directory = Directory::new();
    let Some(_mounted) = tmpfs(&directory, "size=1g") else { return };
    // A share of 11 MiB.
    let Some(task) = taker_with_little_memory(&[directory.setting()]) else { return };
    let mut begun = in_chunks("/", &noise(4 * MIB));
    begun.pop();
    let mut clients: Vec<_> = (0..40).map(|_| task.client()).collect();
    for client in &mut clients {
        client.try_send(&begun).ok();
        assert!(directory.bytes(&task.hostward) <= 11 * MIB as u64);
    }
    task.get("/").expect(200);
    let rejected = clients.split_off(4).into_iter().map(|mut client| {
        client.try_send(b"\n").ok();
        client.answer().status
    });
    assert!(rejected.inspect(|status| assert!([200, 503].contains(status), "{status}")).any(|status| status == 503));
    // A body that is announced to be longer than that never fits, and streams.
    task.ask(with_length("/", &noise(20 * MIB))).expect(200);
    task.hostward.line(|line| line["msg"] == "spool limit reached");
}

#[test]
fn a_client_that_leaves_while_it_sends_never_reaches_the_app() {
    let directory = Directory::new();
    let task = taker(&[directory.setting()]);
    let long = noise(3 * MIB);
    for (target, request) in [
        ("/a", with_length("/a", b"0123456789")),
        ("/b", in_chunks("/b", b"0123456789")),
        ("/c", with_length("/c", &long)),
        ("/d", in_chunks("/d", &long)),
    ] {
        let mut client = task.client();
        client.send(&request[..request.len() - 1]);
        if request.len() > MIB {
            eventually("it is spooled", || (directory.spooled(&task.hostward) == 1).then_some(()));
        }
        drop(client);
        let line = task.hostward.request_line(target);
        assert_eq!((&line["status"], &line["error"]), (&499.into(), &"client_gone".into()), "{line}");
        eventually("its file is closed", || (directory.spooled(&task.hostward) == 0).then_some(()));
    }
    assert_eq!(task.app.connections(), 0);
}

#[test]
fn a_body_that_breaks_off_or_grows_too_long_never_reaches_the_app() {
    let limits = [("HOSTWARD_BODY_TIMEOUT", "1s"), ("HOSTWARD_MAX_BODY_SIZE", "4MiB")];
    let task = taker(&limits);
    let long = in_chunks("/", &noise(3 * MIB));
    task.turned_away(&long[..long.len() - 1], 408);
    task.turned_away([&long[..long.len() - 5], b"0x0\r\n\r\n"].concat(), 400);
    task.turned_away(in_chunks("/", &noise(5 * MIB)), 413);
    assert_eq!(task.app.connections(), 0);
    // Time runs between two reads and not for the whole.
    let mut client = task.client();
    client.send(head("/", "Content-Length: 5\r\n"));
    for byte in ["h", "e", "l", "l", "o"] {
        thread::sleep(Duration::from_millis(500));
        client.send(byte);
    }
    client.answer().expect(200);
}

#[test]
fn a_client_that_expects_100_continue_is_told_so_by_hostward() {
    let task = Task::echo(&[]);
    let mut client = task.client();
    client.send(head("/", "Content-Length: 5\r\nExpect: 100-continue\r\n"));
    let interim = client.input.head().unwrap_or_else(|broken| panic!("no 100: {broken}"));
    assert!(interim.starts_with(b"HTTP/1.1 100 "), "{}", text(&interim));
    assert_eq!(task.app.connections(), 0);
    client.send("hello");
    client.answer().expect(200);
    let received = task.app.last();
    assert_eq!((received.field("expect"), received.body.as_slice()), (None, &b"hello"[..]));
}

#[test]
fn the_app_gets_its_time_when_it_gets_the_body() {
    let task = taker(&[("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT", "1s")]);
    let mut client = task.client();
    client.send(head("/", "Content-Length: 4\r\n"));
    for byte in ["a", "b", "c", "d"] {
        thread::sleep(Duration::from_millis(600));
        client.send(byte);
    }
    client.answer().expect(200);
    // A long body that the app is slow to read is no slow answer, and one that it doesn't read is.
    let task = Task::start(&[("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT", "3s")], |talk| {
        if talk.request.target == "/hang" {
            thread::sleep(Duration::from_secs(5));
            return Then::Close;
        }
        for _ in 0..8 {
            thread::sleep(Duration::from_millis(500));
            if talk.input.exactly(4 * MIB).is_err() {
                return Then::Close;
            }
        }
        talk.send(answer("200 OK", "", "read")).ok();
        Then::Close
    });
    let body = noise(32 * MIB);
    assert_eq!(task.ask(with_length("/", &body)).expect(200).text(), "read");
    task.ask(with_length("/hang", &body)).expect(504);
}

#[test]
fn a_body_over_http_2_waits_like_any_other() {
    let directory = Directory::new();
    let task = taker(&[directory.setting(), ("HOSTWARD_BODY_TIMEOUT", "1s")]);
    http2::run(async {
        let mut sender = http2::connect(task.hostward.address).await;
        let post = |target: &str| Request::post(format!("http://www.example.com{target}")).body(()).unwrap();
        for length in [0, 1, MIB, 3 * MIB] {
            let body = Bytes::from(noise(length));
            let (response, mut stream) = sender.send_request(post("/"), false).unwrap();
            let (first, last) = (body.slice(..length / 2), body.slice(length / 2..));
            stream.send_data(first, false).unwrap();
            stream.send_data(last, false).unwrap();
            stream.send_trailers(HeaderMap::new()).unwrap();
            assert_eq!(response.await.unwrap().status(), 200);
            let received = task.app.last();
            assert_eq!((received.framing, received.body.len()), (Framing::Length(length as u64), length));
            assert!(received.body == body);
        }
        let asked = task.app.count();
        // One stops in the middle, one is reset, and a third is answered meanwhile.
        let (stopped, mut stream) = sender.send_request(post("/stopped"), false).unwrap();
        stream.send_data(Bytes::from(noise(2 * MIB)), false).unwrap();
        let (_, mut reset) = sender.send_request(post("/reset"), false).unwrap();
        reset.send_data(Bytes::from_static(b"x"), false).unwrap();
        let (other, _) = sender.send_request(http2::get("/other"), true).unwrap();
        assert_eq!(other.await.unwrap().status(), 200);
        reset.send_reset(h2::Reason::CANCEL);
        assert_eq!(stopped.await.unwrap().status(), 408);
        assert_eq!(task.hostward.request_line("/reset")["status"], 499);
        assert_eq!(task.app.count(), asked + 1);
    });
    eventually("the files are closed", || (directory.spooled(&task.hostward) == 0).then_some(()));
}

#[test]
fn what_an_app_that_knows_no_chunks_cannot_be_streamed_is_413() {
    let app = UwsgiApp::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let url = app.url();
    let settings = [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", &url), NOWHERE];
    let hostward = Hostward::start(&settings);
    for (request, status) in [
        (in_chunks("/", &noise(MIB)), 200),
        (with_length("/", &noise(2 * MIB)), 200),
        (in_chunks("/", &noise(2 * MIB)), 413),
    ] {
        let mut client = Client::connect(hostward.address);
        client.try_send(request).ok();
        client.answer().expect(status);
    }
    assert_eq!(app.received().len(), 2);
}

#[test]
fn an_answer_that_comes_before_the_app_has_read_the_body_is_delivered() {
    let task = Task::start(&[], |talk| {
        talk.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlong").ok();
        Then::Close
    });
    for length in [100, MIB, 16 * MIB] {
        for request in [with_length("/", &noise(length)), in_chunks("/", &noise(length))] {
            let answer = task.ask(request).expect(413);
            assert_eq!((answer.text().as_str(), answer.field("proxy-status")), ("long", None));
        }
    }
    assert_eq!(task.app.count(), 6);
}

#[test]
fn draining_waits_for_a_body_and_cuts_it_in_the_end() {
    let mut task =
        taker(&[("HOSTWARD_DRAIN_DELAY", "0s"), ("HOSTWARD_SHUTDOWN_TIMEOUT", "3s"), ("HOSTWARD_THREADS", "1")]);
    let long = with_length("/long", &noise(2 * MIB));
    let (mut one, mut other) = (task.client(), task.client());
    one.send(head("/short", "Content-Length: 5\r\n") + "hell");
    other.send(&long[..long.len() - 1]);
    // Both have been read by a hostward that has answered a third.
    task.get("/").expect(200);
    task.hostward.terminate();
    task.hostward.line(|line| line["msg"] == "draining");
    one.send("o");
    assert_eq!(one.answer().expect(200).text(), "5");
    other.answer().expect(503);
    other.assert_closed();
    assert!(task.hostward.wait(PATIENCE).success());
    assert_eq!(task.hostward.request_line("/long")["error"], "shutdown");
    assert!(task.app.requests().iter().all(|request| request.target != "/long"));
}

#[test]
fn a_hundred_megabytes_pass_through_a_file_and_not_through_the_memory() {
    let body = Arc::new(noise(100_000_000));
    let expected = Arc::clone(&body);
    let task = Task::start(&[], move |talk| {
        if talk.request.method == "GET" {
            return echo(talk);
        }
        let same = expected.chunks(MIB).all(|part| talk.input.exactly(part.len()).is_ok_and(|read| read == part));
        talk.send(answer("200 OK", "", if same { "same" } else { "different" })).ok();
        Then::Close
    });
    task.get("/").expect(200);
    let before = memory(&task.hostward, "VmRSS");
    let started = Instant::now();
    for request in [with_length("/", &body), in_chunks("/", &body)] {
        let mut client = task.client();
        client.input.patience = PATIENCE * 6;
        client.input.stream.set_write_timeout(Some(PATIENCE * 6)).unwrap();
        client.send(&request);
        assert_eq!(client.answer().expect(200).text(), "same");
    }
    let grown = memory(&task.hostward, "VmHWM").saturating_sub(before);
    println!("two bodies of 100 MB: {:?}, {} KiB more at the highest", started.elapsed(), grown >> 10);
    assert!(grown < 12 * MIB, "{grown} bytes");
}

/// More than hostward has memory for, four times, each of 1 MiB less a byte.
const BODIES: usize = 128;

/// What a hostward without a directory answers to so many clients, when they hold back the last `held_back` bytes; and
/// by how much it has grown.
fn many_bodies(held_back: usize, settings: &[(&str, &str)]) -> Option<(Vec<u16>, usize)> {
    let task = taker_with_little_memory(&[settings, &[NOWHERE]].concat())?;
    task.get("/").expect(200);
    let before = memory(&task.hostward, "VmRSS");
    let request = with_length("/", &noise(MIB - 1));
    let sent = &request[..request.len() - held_back];
    let address = task.hostward.address;
    let statuses = thread::scope(|scope| {
        let clients: Vec<_> = (0..BODIES)
            .map(|_| {
                scope.spawn(move || {
                    let mut client = Client::connect(address);
                    client.input.patience = PATIENCE * 3;
                    // hostward doesn't read on when it has no room.
                    client.try_send(sent).ok();
                    let answer = client.answer();
                    assert!(answer.status != 503 || answer.field("retry-after").is_some(), "{}", answer.head);
                    answer.status
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let grown = memory(&task.hostward, "VmHWM").saturating_sub(before);
    Some((statuses, grown))
}

#[test]
fn bodies_that_the_memory_has_no_room_for_go_to_files() {
    let directory = Directory::new();
    let Some(task) = taker_with_little_memory(&[directory.setting()]) else { return };
    task.get("/").expect(200);
    let before = memory(&task.hostward, "VmRSS");
    let body = noise(MIB - 1);
    let request = with_length("/", &body);
    let mut clients: Vec<_> = (0..64).map(|_| task.client()).collect();
    for client in &mut clients {
        client.send(&request[..request.len() - 1]);
    }
    // There are 33 MiB for 64 bodies.
    eventually("half of them are spooled", || (directory.spooled(&task.hostward) >= 32).then_some(()));
    assert_eq!(task.app.connections(), 1);
    let grown = memory(&task.hostward, "VmHWM").saturating_sub(before);
    assert!(grown < 60 * MIB, "{grown} bytes");
    for client in &mut clients {
        client.send(&request[request.len() - 1..]);
        client.answer().expect(200);
        assert!(task.app.last().body == body);
    }
    eventually("the files are closed", || (directory.spooled(&task.hostward) == 0).then_some(()));
}

#[test]
fn what_all_bodies_hold_together_is_bounded() {
    let mut figures = String::new();
    for (held_back, timeout) in [(0, "20s"), (1, "2s")] {
        let started = Instant::now();
        let Some((statuses, grown)) = many_bodies(held_back, &[("HOSTWARD_BODY_TIMEOUT", timeout)]) else { return };
        let count = |status| statuses.iter().filter(|given| **given == status).count();
        let (good, slow, full) = (count(200), count(408), count(503));
        let took = started.elapsed();
        writeln!(figures, "{good} x 200, {slow} x 408, {full} x 503 in {took:.1?}, {} KiB more", grown >> 10).unwrap();
        if held_back == 0 {
            // Bodies that come to their end make room for each other, however many there are.
            assert_eq!(good, BODIES, "{statuses:?}");
        } else {
            assert!(slow > 0 && full > 0 && slow + full == BODIES, "{statuses:?}");
        }
        // 33 MiB, the connections' own buffers, and what the allocator takes its time to give back.
        assert!(held_back == 0 || took < Duration::from_secs(10), "{took:?}");
        assert!(grown < 80 * MIB, "{grown} bytes");
    }
    println!("{BODIES} bodies of 1 MiB without a directory:\n{figures}");
}
