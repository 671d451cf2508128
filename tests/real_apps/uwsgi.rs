//! Django under uWSGI, reached by uWSGI's own protocol: on a port and by a path.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use serde_json::Value;

use super::{alb_probe, before, get, json};
use crate::read_ahead::slow_client;
use crate::support::hostward::Hostward;
use crate::support::python::{Server, Site};
use crate::support::wire::{Client, ask};

const BOTH: [Server; 2] = [Server::UwsgiTcp, Server::UwsgiUnix];
const HOST: &str = "Host: www.example.com";

/// Does the same with both kinds of socket, or nothing where there is no uWSGI.
fn with_both(what: impl Fn(&Site, &Hostward)) {
    with_both_set(&[], what);
}

/// The same with these settings.
fn with_both_set(settings: &[(&str, &str)], what: impl Fn(&Site, &Hostward)) {
    for server in BOTH {
        let Some(site) = Site::start(server, &[]) else { return };
        // What has listened once isn't waited for.
        let hostward = before(&site, &[settings, &[("HOSTWARD_UPSTREAM_START_TIMEOUT", "0s")]].concat());
        what(&site, &hostward);
    }
}

#[test]
fn django_gets_every_variable_and_only_these_of_the_clients() {
    with_both(|_, hostward| {
        let mut client = Client::connect(hostward.address);
        let lines = [
            "Host: www.example.com:8443",
            "X-Forwarded-For: 203.0.113.5",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Port: 443",
            "X-Request-Id: id-1",
            "Accept: a",
            "Accept: b",
            "UWSGI-FILE: /etc/passwd",
            "UWSGI_SCRIPT: evil",
            "Proxy: evil",
            "Content_Length: 99",
            "Script-Name: /evil",
            "X-Forwarded-Host: evil.example",
            "X_Forwarded_Host: evil.example",
            "X-Forwarded-Ssl: evil",
            "Connection: close, x-hop",
            "X-Hop: evil",
            "Content-Type: text/x",
        ];
        let said = json(&client.ask(get("/meta/caf%C3%A9%2Fb?q=%20", &lines)).expect(200));
        assert_eq!((&said["path"], &said["meta"]["wsgi.url_scheme"]), (&"/meta/café/b".into(), &"https".into()));
        let mut meta: BTreeMap<&str, &str> = said["meta"]
            .as_object()
            .unwrap()
            .iter()
            // What uWSGI adds of its own accord.
            .filter(|(name, _)| !name.starts_with("wsgi.") && !name.starts_with("uwsgi."))
            .map(|(name, value)| (&**name, value.as_str().unwrap()))
            .collect();
        let start = meta.remove("HTTP_X_REQUEST_START");
        assert!(start.is_some_and(|start| start.starts_with("t=")), "{start:?}");
        let expected = BTreeMap::from([
            ("REQUEST_METHOD", "GET"),
            ("REQUEST_URI", "/meta/caf%C3%A9%2Fb?q=%20"),
            ("PATH_INFO", "/meta/café/b"),
            ("QUERY_STRING", "q=%20"),
            ("CONTENT_TYPE", "text/x"),
            ("CONTENT_LENGTH", ""),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("REQUEST_SCHEME", "https"),
            ("HTTPS", "on"),
            ("REMOTE_ADDR", "203.0.113.5"),
            ("REMOTE_PORT", "0"),
            ("SERVER_NAME", "www.example.com"),
            ("SERVER_PORT", "443"),
            ("SCRIPT_NAME", ""),
            ("HTTP_HOST", "www.example.com:8443"),
            ("HTTP_X_FORWARDED_FOR", "203.0.113.5, 127.0.0.1"),
            ("HTTP_X_FORWARDED_PROTO", "https"),
            ("HTTP_X_FORWARDED_PORT", "443"),
            ("HTTP_X_FORWARDED_HOST", "www.example.com:8443"),
            ("HTTP_X_REAL_IP", "203.0.113.5"),
            ("HTTP_X_REQUEST_ID", "id-1"),
            ("HTTP_ACCEPT", "a, b"),
            ("HTTP_UWSGI_FILE", "/etc/passwd"),
            ("HTTP_SCRIPT_NAME", "/evil"),
        ]);
        assert_eq!(meta, expected);
    });
}

#[test]
fn an_albs_probe_is_answered_and_strangers_are_not() {
    with_both(|site, hostward| {
        ask(hostward.address, alb_probe(&hostward.address.to_string())).expect(200);
        ask(hostward.address, get("/", &["Host: evil.example"])).expect(421);
        let answer = ask(hostward.address, get("/", &[HOST, "X-Forwarded-Proto: https"])).expect(200);
        assert_eq!(json(&answer)["url"], "https://www.example.com/");
        let answer = ask(hostward.address, get("/", &["Host: www.example.com:8443"])).expect(200);
        assert_eq!(json(&answer)["url"], "http://www.example.com:8443/");
        let hosts: Vec<_> = site.requests().iter().map(|request| request.field("host")[0].to_owned()).collect();
        assert_eq!(hosts, ["www.example.com", "www.example.com", "www.example.com:8443"]);
    });
}

#[test]
fn uwsgi_is_reached_by_an_abstract_name() {
    let Some(site) = Site::start(Server::UwsgiAbstract, &[]) else { return };
    let hostward = before(&site, &[]);
    for _ in 0..3 {
        ask(hostward.address, get("/", &[HOST])).expect(200);
    }
    let url = site.upstream();
    assert!(url.starts_with("uwsgi+unix:@"), "{url}");
    let settings = [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", &*url)];
    let output = Hostward::run(&["check", "--upstream"], &settings);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn many_requests_of_every_kind_are_answered_on_one_connection() {
    with_both(|site, hostward| {
        let mut client = Client::connect(hostward.address);
        for number in 0..20 {
            client.ask(get("/", &[HOST])).expect(200);
            let body = "x".repeat(number * 1000);
            let answer = client
                .ask(format!("POST /note HTTP/1.1\r\n{HOST}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
                .expect(200);
            assert_eq!(json(&answer)["saved"], body.as_str());
            client.send(format!("HEAD / HTTP/1.1\r\n{HOST}\r\n\r\n"));
            assert!(client.answer_to_head().expect(200).field("content-type").is_some());
            client.ask(get("/nothing-here", &[HOST])).expect(404);
        }
        assert_eq!(site.requests().len(), 80);
    });
}

#[test]
fn a_hundred_megabytes_arrive_whole_and_hostward_does_not_keep_them() {
    const SIZE: usize = 100_000_000;
    // Streamed, or by way of a file.
    for mode in ["off", "auto"] {
        upload(mode, SIZE);
    }
}

fn upload(mode: &str, size: usize) {
    with_both_set(&[("HOSTWARD_BUFFER_REQUESTS", mode)], |_, hostward| {
        let before = peak(hostward);
        let mut client = Client::connect(hostward.address);
        client.input.patience = Duration::from_mins(1);
        client.send(format!("POST /upload HTTP/1.1\r\n{HOST}\r\nContent-Length: {size}\r\n\r\n"));
        let block: Vec<u8> = (0..=255).cycle().take(1_000_000).collect();
        let mut sent = 0;
        while sent < size {
            // Every block begins where the last one has ended in the row of bytes.
            let from = sent % 256;
            let piece = &block[from..(from + size - sent).min(block.len())];
            client.input.stream.write_all(piece).unwrap();
            sent += piece.len();
        }
        let said = json(&client.answer().expect(200));
        assert_eq!(said["size"], size);
        // Of so many bytes 0, 1, 2 … 255, 0, 1 …
        assert_eq!(said["sha256"], "5775b33226f152a0b1640906a59c1081149f8832aa4f7d0113453d0a864e8a22");
        let grown = peak(hostward) - before;
        assert!(grown < 8_000, "hostward grew by {grown} kB");
    });
}

/// The most memory that hostward has had, in kB.
fn peak(hostward: &Hostward) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", hostward.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

#[test]
fn an_app_that_leaves_a_body_unread_is_heard() {
    with_both_set(&[("HOSTWARD_BUFFER_REQUESTS", "off")], |_, hostward| {
        // uWSGI closes with bytes unread, which resets the connection right behind its answer.
        let body = "x".repeat(2_000_000);
        for _ in 0..10 {
            let mut client = Client::connect(hostward.address);
            let head = format!("GET /meta HTTP/1.1\r\n{HOST}\r\nContent-Length: {}\r\n\r\n", body.len());
            // It may be answered before all of it has been taken.
            client.try_send(head + &body).ok();
            assert_eq!(json(&client.answer().expect(200))["meta"]["CONTENT_LENGTH"], "2000000");
        }
    });
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_body_frees_the_app() {
    with_both_set(&[("HOSTWARD_BUFFER_REQUESTS", "off")], |_, hostward| {
        let mut client = Client::connect(hostward.address);
        client.send(format!("POST /upload HTTP/1.1\r\n{HOST}\r\nContent-Length: 1000\r\n\r\nsome"));
        client.input.stream.shutdown(std::net::Shutdown::Both).unwrap();
        // The one worker takes the next request.
        ask(hostward.address, get("/", &[HOST])).expect(200);
    });
}

#[test]
fn a_chunked_post_arrives_in_djangos_body_whole() {
    with_both(|_, hostward| {
        let mut client = Client::connect(hostward.address);
        for length in [5_usize, 100_000, 2_000_000] {
            let body = "x".repeat(length);
            let answer = client.ask(format!(
                "POST /note HTTP/1.1\r\n{HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"
            ));
            assert!(json(&answer.expect(200))["saved"] == body.as_str());
        }
    });
}

#[test]
fn a_streamed_answer_arrives_in_pieces() {
    with_both(|site, hostward| {
        let mut client = Client::connect(hostward.address);
        client.send(get("/stream", &[HOST]));
        client.answer_head().expect(200);
        assert_eq!(client.input.chunk().unwrap().unwrap(), b"first\n");
        // The app makes the second part only now.
        site.open_gate();
        assert_eq!(client.input.chunk().unwrap().unwrap(), b"second\n");
        assert_eq!(client.input.chunk().unwrap(), None);
    });
}

#[test]
fn a_file_arrives_whole() {
    with_both(|_, hostward| {
        let answer = ask(hostward.address, get("/download", &[HOST])).expect(200);
        assert_eq!((answer.body.len(), answer.field("content-length")), (5 * 1024 * 1024, Some("5242880")));
        assert!(
            answer.body.chunks(256).all(|chunk| chunk.iter().enumerate().all(|(at, byte)| at == usize::from(*byte)))
        );
    });
}

#[test]
fn an_app_that_is_killed_in_the_middle_of_its_answer_breaks_it() {
    with_both(|site, hostward| {
        let mut client = Client::connect(hostward.address);
        client.send(get("/stream?length=13", &[HOST]));
        client.answer_head().expect(200);
        assert_eq!(client.input.exactly(6).unwrap(), b"first\n");
        site.kill();
        assert_eq!(client.rest(), b"");
        let line = hostward.request_line("/stream");
        assert_eq!((&line["status"], &line["error"]), (&Value::from(200), &Value::from("connection_terminated")));
        ask(hostward.address, get("/", &[HOST])).expect(502);
    });
}

#[test]
fn a_head_beyond_uwsgis_own_bound_is_502_and_the_hint_names_the_bound() {
    let Some(site) = Site::start(Server::UwsgiTcpOfDefaults, &[]) else { return };
    let hostward = before(&site, &[]);
    let long = format!("Cookie: {}", "x".repeat(5000));
    ask(hostward.address, get("/", &[HOST])).expect(200);
    ask(hostward.address, get("/", &[HOST, &long])).expect(502);
    let line = hostward.line(|line| line["msg"] == "app closed connection");
    assert!(line["hint"].as_str().is_some_and(|hint| hint.contains("buffer-size")), "{line}");
    // The limit is uWSGI's to raise.
    with_both(|_, hostward| {
        let long = format!("Cookie: {}", "x".repeat(50_000));
        ask(hostward.address, get("/", &[HOST, &long])).expect(200);
    });
}

#[test]
fn the_ready_path_is_asked_for_in_uwsgi() {
    for server in BOTH {
        let Some(site) = Site::start(server, &[]) else { return };
        let ready = before(&site, &[("HOSTWARD_READY_PATH", "/")]);
        ask(ready.admin, get("/readyz", &["Host: localhost"])).expect(200);
        let not = before(&site, &[("HOSTWARD_READY_PATH", "/nothing-here")]);
        ask(not.admin, get("/readyz", &["Host: localhost"])).expect(503);
    }
}

#[test]
fn a_client_that_pauses_for_longer_than_uwsgis_socket_timeout_gets_all_of_a_response_without_a_length() {
    const PART: usize = 1 << 20;
    with_both(|_, hostward| {
        let mut client = slow_client(hostward.address);
        client.send(get("/noise", &[HOST, "Connection: close"]));
        let head = client.answer_head().expect(200);
        assert_eq!(head.field("content-length"), None, "{}", head.head);
        // uWSGI's default is 4 s.
        std::thread::sleep(Duration::from_secs(6));
        let body = dechunk(&client.rest());
        assert_eq!(body.len(), 20 * PART);
        assert!(body.chunks(PART).enumerate().all(|(at, part)| part.iter().all(|byte| usize::from(*byte) == at)));
    });
}

/// The content of a chunked body, which has to be whole.
fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return body;
        }
        let data = &rest[end + 2..];
        body.extend_from_slice(&data[..size]);
        rest = &data[size + 2..];
    }
}
