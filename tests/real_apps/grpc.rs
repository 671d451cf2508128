//! A gRPC service on grpcio's server and grpcio's client, with hostward between them and without.

use serde_json::{Value, json};

use crate::support::hostward::Hostward;
use crate::support::python::{Server, Site, run_grpc_client};

fn results(address: &str, authority: &str) -> Value {
    serde_json::from_str(&run_grpc_client(&[address, authority])).expect("JSON")
}

#[test]
fn every_kind_of_call_is_the_same_behind_hostward() {
    let Some(site) = Site::start(Server::Grpc, &[]) else { return };
    let upstream = format!("h2c://{}", site.address);
    let hostward = Hostward::start(&[("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", &upstream)]);
    let expected = |host: &str| {
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
    };
    assert_eq!(results(&site.address.to_string(), "www.example.com"), expected(""));
    assert_eq!(results(&hostward.address.to_string(), "www.example.com"), expected("www.example.com"));

    let line = hostward.request_line("/test.Test/Talk");
    assert_eq!((&line["proto"], &line["status"]), (&"HTTP/2".into(), &200.into()));
    assert_eq!(hostward.request_line("/test.Test/Hang")["status"], 499);
    // Answered, and then given up.
    let line = hostward.request_line("/test.Test/Drip");
    assert_eq!((&line["status"], &line["error"]), (&200.into(), &"client_gone".into()));
}
