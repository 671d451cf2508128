//! Uploads to Django: how hostward's buffering looks to a WSGI server that knows no chunks, or has one worker.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{before, get, json};
use crate::streaming::{chunked, noise};
use crate::support::python::{Server, Site};
use crate::support::wire::{Client, ask};

const HOST: &str = "Host: www.example.com";
const OFF: (&str, &str) = ("HOSTWARD_BUFFER_REQUESTS", "off");

fn post_chunked(target: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {target} HTTP/1.1\r\n{HOST}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    [head.as_bytes(), &chunked(body, 1000)].concat()
}

#[test]
fn chunked_json_arrives_whole_under_gunicorn() {
    chunked_json_arrives_whole(Server::GunicornSync);
}

#[test]
fn chunked_json_arrives_whole_under_uwsgi() {
    chunked_json_arrives_whole(Server::Uwsgi);
}

fn chunked_json_arrives_whole(server: Server) {
    let Some(site) = Site::start(server, &[]) else { return };
    let hostward = before(&site, &[]);
    let streaming = before(&site, &[OFF]);
    for count in [1, 500, 200_000] {
        let content = format!("{{\"numbers\": {:?}}}", (0..count).collect::<Vec<_>>());
        let request = post_chunked("/note", content.as_bytes());
        let noted = json(&ask(hostward.address, &request).expect(200));
        assert_eq!(noted["length"], content.len().to_string());
        assert!(noted["saved"] == content, "{} bytes of {}", noted["saved"].to_string().len(), content.len());
    }
    // Without the buffer Django has the request, and nothing of its body.
    let noted = json(&ask(streaming.address, post_chunked("/note", b"{}")).expect(200));
    assert_eq!((noted["saved"].as_str(), noted["length"].as_str().unwrap_or_default()), (Some(""), ""));
}

#[test]
fn a_hundred_megabytes_arrive_at_django_byte_for_byte() {
    let Some(site) = Site::start(Server::GunicornSync, &[]) else { return };
    let hostward = before(&site, &[]);
    let body = noise(100_000_000);
    let expected = sha256(&body);
    for request in [
        [format!("POST /upload HTTP/1.1\r\n{HOST}\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), &body]
            .concat(),
        post_chunked("/upload", &body),
    ] {
        let mut client = Client::connect(hostward.address);
        client.input.patience = Duration::from_mins(1);
        client.input.stream.set_write_timeout(Some(Duration::from_mins(1))).unwrap();
        client.send(&request);
        let digest = json(&client.answer().expect(200));
        assert_eq!((digest["sha256"].as_str(), digest["length"].as_str()), (Some(&*expected), Some("100000000")));
    }
}

fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// How long another client waits, at most `patience`, while fifty send a byte a second each. A body of so many bytes
/// takes longer than the test.
fn beside_fifty_slow_clients(address: SocketAddr, patience: Duration) -> Option<Duration> {
    const SLOW: usize = 50;
    let ended = AtomicBool::new(false);
    let begun: Vec<_> = (0..SLOW)
        .map(|_| {
            let mut client = Client::connect(address);
            client.send(format!("POST /note HTTP/1.1\r\n{HOST}\r\nContent-Length: 6000\r\n\r\nx"));
            client
        })
        .collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut begun = begun;
            let mut next = Instant::now();
            while !ended.load(Ordering::Relaxed) {
                if Instant::now() >= next {
                    next += Duration::from_secs(1);
                    for client in &mut begun {
                        // The app may have cut it.
                        client.try_send("x").ok();
                    }
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
        let mut waited = Some(Duration::ZERO);
        for _ in 0..10 {
            let mut client = Client::connect(address);
            client.input.patience = patience;
            let started = Instant::now();
            client.send(get("/", &[HOST, "Connection: close"]));
            match client.try_answer() {
                Ok(answer) => {
                    answer.expect(200);
                    waited = waited.map(|most| most.max(started.elapsed()));
                }
                Err(broken) => {
                    assert_eq!(broken.why, ErrorKind::TimedOut, "{broken}");
                    waited = None;
                    break;
                }
            }
            thread::sleep(Duration::from_millis(200));
        }
        ended.store(true, Ordering::Relaxed);
        waited
    })
}

#[test]
fn fifty_slow_clients_do_not_keep_another_from_the_one_worker_of_gunicorn() {
    let mut figures = String::new();
    // gunicorn's default is one sync worker. A site of its own for each, because what has hung goes on hanging.
    let mut measure = |name: &str, settings: Option<&[(&str, &str)]>| {
        let site = Site::start(Server::GunicornSync, &[])?;
        let hostward = settings.map(|settings| before(&site, settings));
        let address = hostward.as_ref().map_or(site.address, |hostward| hostward.address);
        // The first request finds everything cold.
        ask(address, get("/", &[HOST])).expect(200);
        let waited = beside_fifty_slow_clients(address, Duration::from_secs(3));
        writeln!(figures, "{name}: {}", waited.map_or("no answer in 3 s".into(), |most| format!("{most:.1?} at most")))
            .unwrap();
        Some(waited)
    };
    let Some(alone) = measure("gunicorn alone", None) else { return };
    let streamed = measure("behind hostward with BUFFER_REQUESTS=off", Some(&[OFF])).flatten();
    let memory = measure("behind hostward", Some(&[])).flatten();
    let spooled = measure("behind hostward, from its files", Some(&[("HOSTWARD_BUFFER_MEMORY", "1KiB")])).flatten();
    println!("a 51st client's wait for one sync worker:\n{figures}");
    assert_eq!((alone, streamed), (None, None), "it wouldn't show anything");
    for waited in [memory, spooled] {
        assert!(waited.is_some_and(|most| most < Duration::from_secs(1)), "{waited:?}");
    }
}
