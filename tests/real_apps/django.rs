//! Django with a strict `ALLOWED_HOSTS`, under gunicorn and under uWSGI.

use std::thread;
use std::time::Duration;

use super::{alb_probe, an_allowed_host_arrives_as_it_is, before, get, json, only_hostward_gets_a_probe_in};
use crate::support::python::{Server, Site};
use crate::support::wire::{Answer, Client, ask};

const HTTPS: &str = "X-Forwarded-Proto: https";

/// Django takes capitals and one final dot, and gives back what it got.
const HOSTS: [&str; 3] = ["www.example.com", "www.example.com:8443", "WWW.Example.com.:8443"];

#[test]
fn gunicorn_gets_an_albs_probe_through_hostward_alone() {
    let Some(site) = Site::start(Server::GunicornSync, &[]) else { return };
    only_hostward_gets_a_probe_in(&site);
}

#[test]
fn uwsgi_gets_an_albs_probe_through_hostward_alone() {
    let Some(site) = Site::start(Server::Uwsgi, &[]) else { return };
    only_hostward_gets_a_probe_in(&site);
}

#[test]
fn gunicorn_gets_an_allowed_host_byte_for_byte() {
    let Some(site) = Site::start(Server::GunicornSync, &[]) else { return };
    an_allowed_host_arrives_as_it_is(&site, &HOSTS);
}

#[test]
fn uwsgi_gets_an_allowed_host_byte_for_byte() {
    let Some(site) = Site::start(Server::Uwsgi, &[]) else { return };
    an_allowed_host_arrives_as_it_is(&site, &HOSTS);
}

#[test]
fn no_stranger_reaches_gunicorn() {
    let Some(site) = Site::start(Server::GunicornSync, &[]) else { return };
    super::a_stranger_gets_nowhere(&site);
}

#[test]
fn no_stranger_reaches_uwsgi() {
    let Some(site) = Site::start(Server::Uwsgi, &[]) else { return };
    super::a_stranger_gets_nowhere(&site);
}

#[test]
fn a_django_that_believes_x_forwarded_host_is_told_the_truth_under_gunicorn() {
    // gunicorn itself drops names with underscores.
    x_forwarded_host_is_the_validated_host(Server::GunicornSync, &["X-Forwarded-Host: evil.example"]);
}

#[test]
fn a_django_that_believes_x_forwarded_host_is_told_the_truth_under_uwsgi() {
    let lies = ["X-Forwarded-Host: evil.example", "X_Forwarded_Host: evil.example"];
    x_forwarded_host_is_the_validated_host(Server::Uwsgi, &lies);
}

/// With `USE_X_FORWARDED_HOST`, every one of `lies` reaches Django's own check when hostward is not there.
fn x_forwarded_host_is_the_validated_host(server: Server, lies: &[&str]) {
    let Some(site) = Site::start(server, &[("FORWARDED_HOST", "1")]) else { return };
    let hostward = before(&site, &[]);
    let host = "Host: www.example.com:8443";
    for lie in lies {
        ask(site.address, get("/", &[host, lie])).expect(400);
        let answer = ask(hostward.address, get("/", &[host, HTTPS, lie])).expect(200);
        assert_eq!(json(&answer)["host"], "www.example.com:8443");
    }
    ask(hostward.address, alb_probe(&hostward.address.to_string())).expect(200);
}

#[test]
fn a_probe_passes_the_https_redirect_of_gunicorns_django_and_a_users_plain_request_does_not() {
    only_a_probe_passes_the_https_redirect(Server::GunicornSync);
}

#[test]
fn a_probe_passes_the_https_redirect_of_uwsgis_django_and_a_users_plain_request_does_not() {
    only_a_probe_passes_the_https_redirect(Server::Uwsgi);
}

fn only_a_probe_passes_the_https_redirect(server: Server) {
    let Some(site) = Site::start(server, &[("SSL_REDIRECT", "1")]) else { return };
    let hostward = before(&site, &[]);
    let without_proto = before(&site, &[("HOSTWARD_PROBE_PROTO", "off")]);
    let moved = |answer: Answer| {
        assert_eq!(answer.expect(301).field("location"), Some("https://www.example.com/"));
    };

    // Django has two walls: the second stands behind the first.
    ask(site.address, alb_probe(&site.address.to_string())).expect(400);
    moved(ask(site.address, alb_probe("www.example.com")));
    moved(ask(without_proto.address, alb_probe(&without_proto.address.to_string())));
    ask(hostward.address, alb_probe(&hostward.address.to_string())).expect(200);

    let host = "Host: www.example.com";
    moved(ask(hostward.address, get("/", &[host])));
    moved(ask(hostward.address, get("/", &[host, "X-Forwarded-Proto: http"])));
    ask(hostward.address, get("/", &[host, HTTPS])).expect(200);
    // Both servers believe this one from 127.0.0.1, and a client may write it.
    let lie = "X-Forwarded-Ssl: on";
    ask(site.address, get("/", &[host, lie])).expect(200);
    moved(ask(hostward.address, get("/", &[host, lie])));
}

#[test]
fn a_csrf_checked_form_works_under_gunicorn() {
    a_csrf_checked_form_works(Server::GunicornSync);
}

#[test]
fn a_csrf_checked_form_works_under_uwsgi() {
    a_csrf_checked_form_works(Server::Uwsgi);
}

/// Django compares `Origin` with scheme, host and port of the request: a proxy that rewrites one of them breaks this.
fn a_csrf_checked_form_works(server: Server) {
    let Some(site) = Site::start(server, &[]) else { return };
    let hostward = before(&site, &[]);
    let form = ask(hostward.address, get("/form", &["Host: www.example.com:8443", HTTPS])).expect(200);
    let token = json(&form)["token"].as_str().expect("a token").to_owned();
    let cookie = form.field("set-cookie").and_then(|cookie| cookie.split(';').next()).expect("a cookie").to_owned();
    let content = format!("note=hello&csrfmiddlewaretoken={token}");
    let post = |origin: &str, cookie: &str| {
        let length = content.len();
        let head = format!(
            "POST /form HTTP/1.1\r\nHost: www.example.com:8443\r\n{HTTPS}\r\nOrigin: {origin}\r\nCookie: {cookie}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n\r\n"
        );
        ask(hostward.address, head + &content)
    };

    let saved = post("https://www.example.com:8443", &cookie).expect(200);
    assert_eq!(json(&saved)["saved"], "hello");
    post("https://evil.example", &cookie).expect(403);
    post("https://www.example.com", &cookie).expect(403);
    post("http://www.example.com:8443", &cookie).expect(403);
    post("https://www.example.com:8443", "another=cookie").expect(403);
}

#[test]
fn fifty_requests_of_one_client_succeed_while_gunicorns_sync_worker_closes_every_connection() {
    let Some(site) = Site::start(Server::GunicornSync, &[]) else { return };
    let hostward = before(&site, &[]);
    let mut client = Client::connect(hostward.address);
    for _ in 0..50 {
        client.ask(get("/", &["Host: www.example.com"])).expect(200);
    }
    assert_eq!(site.requests().len(), 50);
}

#[test]
fn fifty_requests_around_the_moment_when_gunicorn_closes_idle_connections_succeed() {
    // A POST must not be sent twice. This doesn't show that the default idle time is needed: fifty POSTs don't hit the
    // moment between gunicorn's close and its arrival often enough to fail with a longer one.
    requests_around_gunicorns_idle_close(
        &[],
        "POST /note HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 1\r\n\r\nx",
    );
}

#[test]
fn fifty_requests_succeed_while_hostward_holds_connections_longer_than_gunicorn() {
    // gunicorn closes first here. A GET that hits the moment of the close may be sent again.
    let longer = [("HOSTWARD_UPSTREAM_IDLE_TIMEOUT", "10s")];
    requests_around_gunicorns_idle_close(&longer, &get("/", &["Host: www.example.com"]));
}

/// gunicorn's threaded worker closes a connection that was idle for two seconds. Fifty clients ask twice, with a pause
/// of 1.8 to 2.29 seconds between: at least one finds its connection on either side of that moment.
fn requests_around_gunicorns_idle_close(settings: &[(&str, &str)], request: &str) {
    let Some(site) = Site::start(Server::GunicornThreads, &[]) else { return };
    let hostward = before(&site, settings);
    thread::scope(|scope| {
        for number in 0..50 {
            let mut client = Client::connect(hostward.address);
            scope.spawn(move || {
                client.ask(request).expect(200);
                thread::sleep(Duration::from_millis(1800 + 10 * number));
                client.ask(request).expect(200);
            });
        }
    });
    // More would mean that one was sent twice for nothing; fewer that hostward answered by itself.
    assert_eq!(site.requests().len(), 100);
}
