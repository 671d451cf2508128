//! The `websockets` package as a client, Starlette under uvicorn as the app, and every way between them: with TLS and
//! without, to a port and to a path.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{SELF_SIGNED, before, get, json};
use crate::support::eventually;
use crate::support::hostward::Hostward;
use crate::support::python::{Request, Server, Site, run_program};
use crate::support::wire::ask;

/// Runs the client: `talk` or `wait`, as if the port were `host`'s.
fn websocket(what: &str, port: u16, secure: bool, host: &str) -> Value {
    let url = format!("{}://{host}/echo", if secure { "wss" } else { "ws" });
    let said = run_program(&["websocket_client.py", what, &port.to_string(), &url]);
    serde_json::from_str(&said).expect("JSON")
}

/// hostward with these settings in front of `server`, once without TLS and once with.
fn on_every_way(settings: &[(&str, &str)], mut test: impl FnMut(&Site, Hostward, bool)) {
    for server in [Server::Uvicorn, Server::UvicornUnix] {
        for secure in [false, true] {
            let Some(site) = Site::start(server, &[]) else { return };
            let more = if secure { &[SELF_SIGNED][..] } else { &[] };
            let hostward = before(&site, &[settings, more].concat());
            test(&site, hostward, secure);
        }
    }
}

#[test]
fn messages_of_every_kind_and_closes_from_either_side_come_through() {
    on_every_way(&[], |site, hostward, secure| {
        assert_eq!(
            websocket("talk", hostward.address.port(), secure, "www.example.com:8443"),
            json!({
                "extensions": "permessage-deflate",
                "texts": [true, true, true, true],
                "bytes": [true, true, true],
                "large": [true, true],
                "pong": true,
                "interleaved": true,
                "closed": 4001,
                "closed_by_the_app": [4002, "as you wish"],
            })
        );
        let requests = site.requests();
        assert_eq!(requests.len(), 2);
        for request in &requests {
            assert_eq!(request.what(), "WEBSOCKET /echo");
            assert_eq!(request.field("host"), ["www.example.com:8443"]);
            assert_eq!(request.field("x-forwarded-proto"), [if secure { "https" } else { "http" }]);
        }
        // What the app was told by the client that closed first.
        let closes = ask(hostward.address, get("/closes", &["Host: www.example.com"])).expect(200);
        assert_eq!(json(&closes), json!([[4001, "enough"]]));
        assert_eq!(hostward.request_line("/echo")["status"], 101);
    });
}

#[test]
fn a_strangers_websocket_is_refused_by_hostward() {
    on_every_way(&[], |site, hostward, secure| {
        let refused = websocket("talk", hostward.address.port(), secure, "evil.example");
        assert_eq!(refused, json!({ "refused": 421 }));
        ask(hostward.address, get("/", &["Host: www.example.com"])).expect(200);
        let paths: Vec<_> = site.requests().iter().map(Request::what).collect();
        assert_eq!(paths, ["GET /"]);
    });
}

#[test]
fn starlette_itself_refuses_a_stranger_that_comes_past_hostward() {
    let Some(site) = Site::start(Server::Uvicorn, &[]) else { return };
    assert_eq!(websocket("talk", site.address.port(), false, "evil.example"), json!({ "refused": 400 }));
    assert_eq!(site.requests().len(), 1);
}

#[test]
fn a_silent_websocket_is_closed_after_the_idle_timeout() {
    on_every_way(&[("HOSTWARD_TUNNEL_IDLE_TIMEOUT", "1s")], |_, hostward, secure| {
        let said = websocket("wait", hostward.address.port(), secure, "www.example.com");
        assert_eq!((&said["echoed"], &said["end"]), (&true.into(), &Value::Null), "{said}");
        let seconds = said["seconds"].as_f64().expect("a number");
        assert!((0.9..4.0).contains(&seconds), "{said}");
    });
}

#[test]
fn a_websocket_lives_through_the_drain_delay_and_ends_with_it() {
    let settings = [("HOSTWARD_DRAIN_DELAY", "2s"), ("HOSTWARD_SHUTDOWN_TIMEOUT", "10s")];
    on_every_way(&settings, |site, mut hostward, secure| {
        let port = hostward.address.port();
        let client = thread::spawn(move || websocket("wait", port, secure, "www.example.com"));
        eventually("the app has been asked", || (site.requests().len() == 1).then_some(()));
        // The message and its echo have the drain delay to arrive.
        hostward.terminate();
        let begun = Instant::now();
        let said = client.join().expect("the client has something to say");
        let took = begun.elapsed();
        assert_eq!((&said["echoed"], &said["end"]), (&true.into(), &Value::Null), "{said}");
        assert!(took >= Duration::from_millis(1900) && took < Duration::from_secs(5), "{took:?}");
        assert!(hostward.wait(Duration::from_secs(3)).success(), "{}", hostward.output());
        assert_eq!(hostward.line(|line| line["msg"] == "stopped")["clean"], true);
        assert_eq!(hostward.request_line("/echo")["status"], 101);
    });
}
