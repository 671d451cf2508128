//! The admin port: is hostward alive, and may the load balancer send requests?

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::Task;
use crate::support::app::{App, answer, echo, hang};
use crate::support::hostward::Hostward;
use crate::support::wire::{ask, get};

#[test]
fn hostward_is_live_without_the_app_and_ready_with_it() {
    let address = App::nowhere();
    let hostward = Hostward::start(&[
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
        ("HOSTWARD_UPSTREAM", &format!("http://{address}")),
    ]);
    get(hostward.admin, "localhost", "/livez").expect(200);
    let started = Instant::now();
    get(hostward.admin, "localhost", "/readyz").expect(503);
    // A health check has no time to wait for an app to come up.
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    let app = App::listen(address, echo);
    get(hostward.admin, "localhost", "/readyz").expect(200);
    assert_eq!(app.count(), 0, "a TCP connection is no request");
    drop(app);
    crate::support::eventually("hostward is not ready", || {
        (get(hostward.admin, "localhost", "/readyz").status == 503).then_some(())
    });
    get(hostward.admin, "localhost", "/livez").expect(200);
}

#[test]
fn with_a_ready_path_the_app_is_asked_with_the_canonical_host() {
    let task = Task::start(
        &[("HOSTWARD_READY_PATH", "/health?deep=1"), ("HOSTWARD_CANONICAL_HOST", "app.internal")],
        |talk| {
            let status = if talk.request.connection == 0 { "200 OK" } else { "500 Internal Server Error" };
            talk.reply(answer(status, "Connection: close\r\n", "x"));
            crate::support::app::Then::Close
        },
    );
    get(task.hostward.admin, "localhost", "/readyz").expect(200);
    let received = task.app.last();
    assert_eq!((received.method.as_str(), received.target.as_str()), ("GET", "/health?deep=1"));
    assert_eq!(received.field("host"), Some("app.internal"));
    get(task.hostward.admin, "localhost", "/readyz").expect(503);
}

#[test]
fn an_app_that_hangs_is_not_ready() {
    let task =
        Task::start(&[("HOSTWARD_READY_PATH", "/health"), ("HOSTWARD_UPSTREAM_RESPONSE_TIMEOUT", "1s")], |talk| {
            hang(talk)
        });
    let started = Instant::now();
    get(task.hostward.admin, "localhost", "/readyz").expect(503);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    get(task.hostward.admin, "localhost", "/livez").expect(200);
}

#[test]
fn the_admin_port_serves_nothing_else() {
    let task = Task::echo(&[]);
    for path in ["/", "/livez/", "/readyz/x", "/health", "//livez", "/proxy?url=http://127.0.0.1/"] {
        get(task.hostward.admin, "www.example.com", path).expect(404);
    }
    ask(task.hostward.admin, "POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").expect(405);
    assert_eq!(task.app.count(), 0);
}

#[test]
fn the_proxy_port_leaves_these_paths_to_the_app() {
    let task = Task::echo(&[]);
    for path in ["/livez", "/readyz", "/metrics", "/status"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
        assert_eq!(task.admitted(request).target, path);
    }
}

#[test]
fn the_admin_port_survives_nonsense() {
    let task = Task::echo(&[]);
    for bytes in [&b"\0\0\0\0\r\n\r\n"[..], b"GET /livez\r\n\r\n", b"GET  /livez HTTP/1.1\r\n\r\n"] {
        let mut client = crate::support::wire::Client::connect(task.hostward.admin);
        client.send(bytes);
        client.half_close();
        client.rest();
    }
    // A connection that says nothing keeps nobody out.
    let _silent: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(task.hostward.admin).unwrap()).collect();
    get(task.hostward.admin, "localhost", "/livez").expect(200);
}

#[test]
fn the_admin_port_can_be_off() {
    let task = Task::echo(&[("HOSTWARD_ADMIN_LISTEN", "off")]);
    task.get("/").expect(200);
    assert_eq!(task.hostward.admin.port(), 0);
}
