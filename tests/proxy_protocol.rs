//! The PROXY protocol: whom a trusted peer names is the client, and nobody else's word counts.

use std::time::{Duration, Instant};

use crate::support::Task;
use crate::support::wire::Client;

const GET: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n";
const V1: &[u8] = b"PROXY TCP4 203.0.113.9 198.51.100.1 56324 443\r\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2 with this command, 203.0.113.9 as the source and 198.51.100.1 as the destination.
fn v2(command: u8, tlvs: &[u8]) -> Vec<u8> {
    let addresses = [203, 0, 113, 9, 198, 51, 100, 1, 0, 80, 1, 187];
    let length = u16::try_from(addresses.len() + tlvs.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[0x20 | command, 0x11], &length, &addresses, tlvs].concat()
}

fn task(mode: &str, settings: &[(&str, &str)]) -> Task {
    Task::echo(&[&[("HOSTWARD_PROXY_PROTOCOL", mode)], settings].concat())
}

/// The client that the app was told of, when this is sent.
fn client_of(task: &Task, bytes: &[u8]) -> Option<String> {
    let before = task.app.count();
    let mut client = task.client();
    client.send(bytes);
    let status = client.try_answer().ok()?.status;
    (status == 200 && task.app.count() > before).then(|| task.app.last().field("x-real-ip").unwrap_or("none").into())
}

#[test]
fn a_header_of_either_version_names_the_client() {
    let task = task("required", &[]);
    let tlvs: Vec<u8> = [0xea, 0, 21, 1].into_iter().chain(*b"vpce-08d2bf15fac5001c").take(24).collect();
    let long = [[4, 0x0c, 0x00].as_slice(), &[0; 0x0c00]].concat();
    for header in [V1, &v2(1, &[]), &v2(1, &tlvs), &v2(1, &long)] {
        assert_eq!(client_of(&task, &[header, GET.as_bytes()].concat()).as_deref(), Some("203.0.113.9"));
    }
    let line = task.hostward.request_line("/");
    assert_eq!((&line["client_ip"], &line["peer_ip"]), (&"203.0.113.9".into(), &"203.0.113.9".into()));
}

#[test]
fn a_health_check_of_the_load_balancer_itself_is_its_peers() {
    let task = task("required", &[]);
    for header in [v2(0, &[]), b"PROXY UNKNOWN\r\n".to_vec()] {
        assert_eq!(client_of(&task, &[&header, GET.as_bytes()].concat()).as_deref(), Some("127.0.0.1"));
        // And may be a probe, which a client that was named from outside may not.
        let probe = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", task.hostward.address);
        assert!(client_of(&task, &[&header, probe.as_bytes()].concat()).is_some());
        assert!(client_of(&task, &[V1, probe.as_bytes()].concat()).is_none());
    }
}

#[test]
fn the_named_client_is_trusted_only_if_it_is_a_trusted_proxy_itself() {
    let task = task("required", &[]);
    let request = "GET / HTTP/1.1\r\nHost: www.example.com\r\nX-Forwarded-For: 192.0.2.66\r\nConnection: close\r\n\r\n";
    assert_eq!(client_of(&task, &[V1, request.as_bytes()].concat()).as_deref(), Some("203.0.113.9"));
    let alb = b"PROXY TCP4 10.0.1.7 10.0.2.100 56324 443\r\n";
    assert_eq!(client_of(&task, &[alb.as_slice(), request.as_bytes()].concat()).as_deref(), Some("192.0.2.66"));
}

#[test]
fn optional_takes_connections_with_and_without_a_header() {
    let task = task("optional", &[]);
    assert_eq!(client_of(&task, GET.as_bytes()).as_deref(), Some("127.0.0.1"));
    assert_eq!(client_of(&task, &[V1, GET.as_bytes()].concat()).as_deref(), Some("203.0.113.9"));
    assert_eq!(client_of(&task, &[v2(1, &[]), GET.into()].concat()).as_deref(), Some("203.0.113.9"));
    // Methods that begin as a header does.
    for method in ["P", "PR", "PUT", "POST", "PROPFIND"] {
        let request = format!("{method} / HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n");
        assert_eq!(client_of(&task, request.as_bytes()).as_deref(), Some("127.0.0.1"), "{method}");
    }
    // Nor is a second one taken.
    assert_eq!(client_of(&task, &[V1, V1, GET.as_bytes()].concat()), None);
}

#[test]
fn a_header_may_come_byte_by_byte() {
    let task = task("required", &[]);
    for header in [V1.to_vec(), v2(1, &[])] {
        let mut client = task.client();
        for byte in header.iter().chain(GET.as_bytes()) {
            client.send([*byte]);
        }
        client.answer().expect(200);
        assert_eq!(task.app.last().field("x-real-ip"), Some("203.0.113.9"));
    }
}

#[test]
fn what_is_no_header_closes_the_connection_and_is_logged_with_the_remedy() {
    let task = task("required", &[]);
    let malformed: [&[u8]; 4] = [
        b"PROXY TCP4 203.0.113.9 198.51.100.1 56324\r\n",
        b"PROXY TCP4 203.0.113.9 198.51.100.1 56324 443 and on and on and on and on and on and on and on and on and on and on",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c............",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
    ];
    for bytes in malformed {
        let mut client = task.client();
        client.send([bytes, GET.as_bytes()].concat());
        client.assert_closed();
    }
    let mut client = task.client();
    client.send(GET);
    client.assert_closed();
    for (reason, hint) in [("proxy_header_missing", "target group"), ("proxy_header_malformed", "PROXY header")] {
        let line = task.hostward.line(|line| line["reason"] == reason);
        assert!(line["msg"] == "connection refused" && line["hint"].as_str().unwrap().contains(hint), "{line}");
    }
    assert_eq!(task.app.count(), 0);
}

#[test]
fn a_peer_that_is_not_trusted_names_nobody() {
    let settings = [("HOSTWARD_TRUSTED_PROXIES", "127.0.0.1")];
    let stranger = "127.0.0.2".parse().unwrap();
    let required = task("required", &settings);
    let mut client = Client::connect_from(stranger, required.hostward.address);
    client.send([V1, GET.as_bytes()].concat());
    client.assert_closed();
    required.hostward.line(|line| line["reason"] == "untrusted_peer" && line["peer_ip"] == "127.0.0.2");
    assert_eq!(required.app.count(), 0);

    let optional = task("optional", &settings);
    let mut client = Client::connect_from(stranger, optional.hostward.address);
    client.send([V1, GET.as_bytes()].concat());
    client.answer().expect(400);
    assert_eq!(optional.app.count(), 0);
    let mut client = Client::connect_from(stranger, optional.hostward.address);
    client.ask(GET).expect(200);
    assert_eq!(optional.app.last().field("x-real-ip"), Some("127.0.0.2"));
}

/// Neither with nothing sent nor in the middle of either version's header is a peer waited for that has gone.
#[test]
fn a_peer_that_closes_before_its_header_is_over_at_once() {
    for mode in ["required", "optional"] {
        let task = task(mode, &[("HOSTWARD_HEADER_TIMEOUT", "30s"), ("HOSTWARD_IDLE_TIMEOUT", "30s")]);
        for beginning in
            [Vec::new(), V1[..1].to_vec(), V1[..20].to_vec(), v2(1, &[])[..7].to_vec(), v2(1, &[])[..20].to_vec()]
        {
            let mut client = task.client();
            let started = Instant::now();
            client.send(&beginning);
            client.half_close();
            client.assert_closed();
            assert!(started.elapsed() < Duration::from_secs(3), "{mode} {beginning:?}");
        }
        assert_eq!(task.app.count(), 0);
        client_of(&task, &[V1, GET.as_bytes()].concat()).expect("the next one is served");
    }
}

#[test]
fn a_torn_header_has_as_long_as_a_head() {
    let task = task("required", &[("HOSTWARD_HEADER_TIMEOUT", "200ms")]);
    for beginning in [V1[..20].to_vec(), v2(1, &[])[..7].to_vec(), v2(1, &[])[..20].to_vec(), Vec::new()] {
        let mut client = task.client();
        let started = Instant::now();
        client.send(&beginning);
        client.assert_closed();
        assert!(started.elapsed() < Duration::from_secs(3), "{beginning:?}");
    }
    task.hostward.line(|line| line["reason"] == "proxy_header_timeout");
}
