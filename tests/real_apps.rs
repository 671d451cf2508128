//! Apps that nobody here wrote, changed in nothing, behind hostward with one setting: who gets in and what they see.
//! The sites in `tests/apps` write down every request before their framework may refuse it.

mod django;
mod generated;
mod grpc;
mod httpx;
mod starlette;
mod uploads;
mod uwsgi;
mod websocket;

use serde_json::Value;

use crate::support::hostward::Hostward;
use crate::support::metadata::{Metadata, Reply, container, network};
use crate::support::python::Site;
use crate::support::wire::{Answer, ask};

/// The task's address when a metadata endpoint says so. No interface of this machine has it.
const TASK: &str = "10.0.2.100";

/// Encryption as far as the task, with nothing else to set.
const SELF_SIGNED: (&str, &str) = ("HOSTWARD_TLS", "self-signed");

/// hostward as its users set it up: who may enter, and where the app is.
fn before(site: &Site, more: &[(&str, &str)]) -> Hostward {
    let upstream = site.upstream();
    let mut settings = vec![("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", &upstream)];
    settings.extend(more);
    Hostward::start(&settings)
}

/// A `GET` with these field lines.
fn get(target: &str, lines: &[&str]) -> String {
    format!("GET {target} HTTP/1.1\r\n{}\r\n\r\n", lines.join("\r\n"))
}

/// The bytes of an ALB's health check. It has no `X-Forwarded-*`.
fn alb_probe(host: &str) -> String {
    get("/", &[&format!("Host: {host}"), "Connection: close", "User-Agent: ELB-HealthChecker/2.0"])
}

fn json(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.text()))
}

/// The site refuses an ALB's probe, and answers 200 to the same bytes behind hostward: without a metadata endpoint,
/// with one that answers, with one that hangs.
fn only_hostward_gets_a_probe_in(site: &Site) {
    ask(site.address, alb_probe(&format!("{TASK}:8080"))).expect(400);
    ask(site.address, alb_probe(&site.address.to_string())).expect(400);
    let refused = site.requests().len();

    let answers = Metadata::of(container(&network(&[TASK])));
    let hangs = Metadata::start(|_, _| Reply::Hang);
    let without = before(site, &[]);
    let with_one_that_answers = before(site, &[("ECS_CONTAINER_METADATA_URI_V4", &answers.url())]);
    let with_one_that_hangs = before(site, &[("ECS_CONTAINER_METADATA_URI_V4", &hangs.url())]);

    let hostwards = [&without, &with_one_that_answers, &with_one_that_hangs];
    for hostward in hostwards {
        ask(hostward.address, alb_probe(&hostward.address.to_string())).expect(200);
    }
    with_one_that_answers.line(|line| line.to_string().contains(TASK));
    ask(with_one_that_answers.address, alb_probe(&format!("{TASK}:8080"))).expect(200);
    // Nobody has told the others that this is their address.
    ask(without.address, alb_probe(&format!("{TASK}:8080"))).expect(421);
    ask(with_one_that_hangs.address, alb_probe(&format!("{TASK}:8080"))).expect(421);

    let requests = site.requests();
    assert_eq!(requests.len(), refused + hostwards.len() + 1);
    for probe in &requests[refused..] {
        assert_eq!(probe.field("host"), ["www.example.com"]);
        assert_eq!(probe.field("x-forwarded-host"), ["www.example.com"]);
        assert_eq!(probe.field("x-forwarded-proto"), ["https"]);
        assert_eq!(probe.field("user-agent"), ["ELB-HealthChecker/2.0"]);
    }
}

/// Users' requests arrive with `hosts` byte for byte.
fn an_allowed_host_arrives_as_it_is(site: &Site, hosts: &[&str]) {
    let hostward = before(site, &[]);
    for host in hosts {
        // What an ALB adds.
        let forwarded = ["X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https", "X-Forwarded-Port: 443"];
        let host_line = format!("Host: {host}");
        let lines = [&[host_line.as_str()], &forwarded[..]].concat();
        let answer = ask(hostward.address, get("/", &lines)).expect(200);
        assert_eq!(json(&answer)["url"], format!("https://{host}/"));
    }
    let requests = site.requests();
    assert_eq!(requests.len(), hosts.len());
    for (request, host) in requests.iter().zip(hosts) {
        assert_eq!(request.field("host"), [*host]);
        assert_eq!(request.field("x-forwarded-for"), ["203.0.113.7, 127.0.0.1"]);
        assert_eq!(request.field("x-forwarded-proto"), ["https"]);
        assert_eq!(request.field("x-real-ip"), ["203.0.113.7"]);
    }
}

/// Nothing that names a foreign host reaches the site, and what a friend says of one on the way doesn't either.
fn a_stranger_gets_nowhere(site: &Site) {
    let hostward = before(site, &[]);
    let own = format!("Host: {}", hostward.address);
    let allowed = "Host: www.example.com";
    for (status, target, lines) in [
        (421, "/", &["Host: 10.9.9.9"][..]),
        (421, "/", &["Host: evil.example"]),
        (421, "/", &["Host: www.example.com.evil.example"]),
        (421, "http://evil.example/", &[allowed]),
        // A client's request: a probe has passed nobody.
        (421, "/", &[&own, "X-Forwarded-For: 203.0.113.7"]),
        (421, "/", &[&own, "Forwarded: for=203.0.113.7"]),
        (421, "/", &[&own, "Via: 1.1 somebody"]),
        (400, "/", &[allowed, "Host: evil.example"]),
        (400, "/", &["Host: evil.example", allowed]),
        (400, "/", &[allowed, allowed]),
        (400, "/", &["Host: www.example.com, evil.example"]),
        (400, "/", &["Host: www.example.com@evil.example"]),
        (400, "/", &["Host: www.example.com/evil.example"]),
    ] {
        let answer = ask(hostward.address, get(target, lines));
        assert_eq!(answer.status, status, "{target} {lines:?}");
    }

    let friends = [
        get("/", &[allowed, "X-Forwarded-Host: evil.example"]),
        get("/", &[allowed, "X_Forwarded_Host: evil.example"]),
        get("/", &[allowed, "X-Forwarded_Host: evil.example", "X-Forwarded-Server: evil.example"]),
        get("/", &[allowed, "X-Host: evil.example", "X-Original-Host: evil.example"]),
        get("/", &[allowed, "Forwarded: host=evil.example"]),
        // RFC 9112, section 3.2.2: the target's authority counts and the Host line doesn't.
        get("http://www.example.com/", &["Host: evil.example"]),
    ];
    for friend in &friends {
        ask(hostward.address, friend).expect(200);
    }
    // The first requests that reach the site are the friends', so no stranger's came before them.
    let requests = site.requests();
    assert_eq!(requests.len(), friends.len(), "{requests:?}");
    for request in requests {
        assert_eq!(request.field("host"), ["www.example.com"]);
        assert_eq!(request.field("x-forwarded-host"), ["www.example.com"]);
        assert!(!request.mentions("evil.example"), "{request:?}");
    }
}
