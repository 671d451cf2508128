//! httpx as a client of HTTP/2 over TLS, in front of Django under gunicorn, which speaks neither.

use serde_json::{Value, json};

use super::{SELF_SIGNED, before};
use crate::support::python::{Server, Site, run_program};

#[test]
fn httpx_agrees_on_http_2_in_the_handshake_and_asks_django() {
    let Some(site) = Site::start(Server::GunicornSync, &[]) else { return };
    let hostward = before(&site, &[SELF_SIGNED]);
    let said = run_program(&["httpx_client.py", &hostward.address.port().to_string()]);
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(
        said,
        json!({
            "alpn": "h2",
            "tls": "TLSv1.3",
            "version": "HTTP/2",
            "home": { "host": "www.example.com", "url": "https://www.example.com/" },
            "posted": true,
            // WSGI reads a body without a length as empty.
            "streamed": { "saved": "one,two,three", "length": "13" },
            "at_once": true,
            "download": true,
            "stranger": 421,
            "versions": ["HTTP/2"],
        })
    );
    let requests = site.requests();
    assert_eq!(requests.len(), 34);
    for request in requests {
        assert_eq!(request.field("host"), ["www.example.com"]);
        assert_eq!(request.field("x-forwarded-proto"), ["https"]);
    }
}
