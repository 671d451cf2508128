//! Starlette's `TrustedHostMiddleware` under uvicorn: pages, server-sent events.

use super::{a_stranger_gets_nowhere, an_allowed_host_arrives_as_it_is, before, get, only_hostward_gets_a_probe_in};
use crate::support::python::{Server, Site};
use crate::support::wire::{Client, ask, text};

#[test]
fn uvicorn_gets_an_albs_probe_through_hostward_alone() {
    let Some(site) = Site::start(Server::Uvicorn, &[]) else { return };
    only_hostward_gets_a_probe_in(&site);
}

#[test]
fn uvicorn_gets_an_allowed_host_byte_for_byte() {
    let Some(site) = Site::start(Server::Uvicorn, &[]) else { return };
    // Starlette compares with case: capitals are allowed by hostward, but not by it.
    an_allowed_host_arrives_as_it_is(&site, &["www.example.com", "www.example.com:8443"]);
}

#[test]
fn no_stranger_reaches_uvicorn() {
    let Some(site) = Site::start(Server::Uvicorn, &[]) else { return };
    a_stranger_gets_nowhere(&site);
}

#[test]
fn server_sent_events_arrive_while_the_stream_is_open() {
    let Some(site) = Site::start(Server::Uvicorn, &[]) else { return };
    let hostward = before(&site, &[]);
    let mut stream = Client::connect(hostward.address);
    stream.send(get("/events", &["Host: www.example.com"]));
    let answer = stream.answer_head().expect(200);
    assert_eq!(answer.field("content-type"), Some("text/event-stream; charset=utf-8"));
    let mut next_event = || stream.input.chunk().expect("a chunk").map(|chunk| text(&chunk));

    assert_eq!(next_event().as_deref(), Some("data: 1\n\n"));
    for number in 2..=3 {
        // The site doesn't make the next event before it is asked to: nothing can have been waiting on the way.
        ask(hostward.address, "POST /events/next HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 0\r\n\r\n")
            .expect(200);
        assert_eq!(next_event(), Some(format!("data: {number}\n\n")));
    }
    assert_eq!(next_event(), None);
}
