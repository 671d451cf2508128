//! A gRPC service on grpcio's server and grpcio's client, with hostward between them and without.

use serde_json::{Value, json};

use super::before;
use crate::support::python::{Server, Site, run_grpc_client};
use crate::support::tls::{Directory, ECDSA};

/// What comes of every kind of call. With TLS when there is a certificate to believe.
fn results(address: &str, authority: &str, root: Option<&str>) -> Value {
    let arguments: Vec<_> = [address, authority].into_iter().chain(root).collect();
    serde_json::from_str(&run_grpc_client(&arguments)).expect("JSON")
}

/// What has to come of it, when the service is told this `X-Forwarded-Host`.
fn expected(host: &str) -> Value {
    json!({
        "unary": ["cba", { "x-initial": "first" }, { "x-trailing": "last", "x-asked": "why", "x-host": host }, "OK"],
        "large": true,
        "at_once": true,
        "server_streaming": ["0", "1", "2", "3", "4"],
        "many": 20_000,
        "client_streaming": "a,b,c",
        // The client sends the next message when it has the last one's reply: nothing is held back.
        "bidirectional": [true, [], "OK"],
        "refused": ["NOT_FOUND", "no such thing: unicorn", { "x-trailing": "last" }],
        "unknown": "UNIMPLEMENTED",
        "deadline": ["DEADLINE_EXCEEDED", true],
        "cancel": ["first", "CANCELLED"],
        // The service has noticed both.
        "seen": "yes",
    })
}

#[test]
fn every_kind_of_call_is_the_same_behind_hostward() {
    let Some(site) = Site::start(Server::Grpc, &[]) else { return };
    let hostward = before(&site, &[]);
    assert_eq!(results(&site.address.to_string(), "www.example.com", None), expected(""));
    assert_eq!(results(&hostward.address.to_string(), "www.example.com", None), expected("www.example.com"));

    let line = hostward.request_line("/test.Test/Talk");
    assert_eq!((&line["proto"], &line["status"]), (&"HTTP/2".into(), &200.into()));
    // The deadline travels with the call, and the service keeps it as well: whoever is first.
    let line = hostward.request_line("/test.Test/Hang");
    assert!(line["status"] == 499 || line["status"] == 200, "{line}");
    // Answered, and then given up.
    let line = hostward.request_line("/test.Test/Drip");
    assert_eq!((&line["status"], &line["error"]), (&200.into(), &"client_gone".into()));
}

#[test]
fn every_kind_of_call_is_the_same_over_tls_with_a_certificate_that_the_client_checks() {
    let Some(site) = Site::start(Server::Grpc, &[]) else { return };
    let directory = Directory::new();
    let name = ["-addext", "subjectAltName=DNS:www.example.com"];
    let (cert, key) = directory.pair("www.example.com", &[ECDSA, &name].concat());
    let hostward = before(
        &site,
        &[("HOSTWARD_TLS", "files"), ("HOSTWARD_TLS_CERT", cert.as_str()), ("HOSTWARD_TLS_KEY", key.as_str())],
    );
    let address = hostward.address.to_string();
    assert_eq!(results(&address, "www.example.com", Some(&cert)), expected("www.example.com"));
    let line = hostward.request_line("/test.Test/Talk");
    assert_eq!((&line["proto"], &line["status"]), (&"HTTP/2".into(), &200.into()));
}
