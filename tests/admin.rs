//! The admin port: is hostward alive, and may the load balancer send requests?

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::app::{App, answer, echo, hang};
use crate::support::hostward::Hostward;
use crate::support::wire::{Client, ask, get, text};
use crate::support::{PATIENCE, Task, eventually, kernel, skip};

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
    eventually("hostward is not ready", || (get(hostward.admin, "localhost", "/readyz").status == 503).then_some(()));
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
        let mut client = Client::connect(task.hostward.admin);
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

/// A client that sends nothing, or half a head, for as long as it may.
fn idle_clients(task: &Task, count: usize) -> Vec<TcpStream> {
    let connect = |number: usize| {
        let mut stream = TcpStream::connect(task.hostward.admin).unwrap();
        let head: &[u8] = if number.is_multiple_of(2) { b"" } else { b"GET /livez HTTP/1.1\r\nHost:" };
        // hostward may have closed it already, in favour of another.
        stream.write_all(head).ok();
        stream
    };
    (0..count).map(connect).collect()
}

#[test]
fn idle_connections_can_not_make_the_health_check_fail() {
    let task = Task::echo(&[]);
    let admin = task.hostward.admin.to_string();
    let settings = [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_ADMIN_LISTEN", admin.as_str())];
    for count in [64, 300] {
        let idle = idle_clients(&task, count);
        for arguments in [&["healthcheck"][..], &["healthcheck", "--ready"], &["status"]] {
            let started = Instant::now();
            let output = Hostward::run(arguments, &settings);
            assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stdout));
            assert!(started.elapsed() < Duration::from_secs(2), "{arguments:?}: {:?}", started.elapsed());
        }
        drop(idle);
    }
}

/// An address of this machine that others reach it by.
fn address_of_an_interface() -> Option<IpAddr> {
    let addresses = nix::ifaddrs::getifaddrs().unwrap().filter_map(|interface| interface.address);
    let mut addresses = addresses.filter_map(|address| Some(IpAddr::from(address.as_sockaddr_in()?.ip())));
    let found = addresses.find(|address| !address.is_loopback());
    if found.is_none() {
        skip("an IPv4 address that is none of the loopback interface");
    }
    found
}

/// A13 as it is in a task: the admin port listens on every address, and what keeps its connections busy comes from
/// elsewhere, comes again when it is closed, and is silent or sends half a head.
#[test]
fn clients_from_elsewhere_can_not_make_the_health_check_fail() {
    let Some(interface) = address_of_an_interface() else { return };
    let task = Task::echo(&[("HOSTWARD_ADMIN_LISTEN", "0.0.0.0:0")]);
    let admin = task.hostward.admin.to_string();
    let settings = [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_ADMIN_LISTEN", admin.as_str())];
    let address = SocketAddr::new(interface, task.hostward.admin.port());
    let before = kernel::descriptors(task.hostward.pid());
    let (ended, again) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let _end = Ending(&ended);
        for number in 0..72 {
            let (ended, again) = (&ended, &again);
            scope.spawn(move || {
                while !ended.load(Ordering::SeqCst) {
                    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let head: &[u8] = if number % 2 == 0 { b"" } else { b"GET /livez HTTP/1.1\r\nHost:" };
                    stream.write_all(head).ok();
                    // Until hostward closes it, in favour of another or because its time is over.
                    drop(stream.read(&mut [0]));
                    again.fetch_add(1, Ordering::SeqCst);
                    // As fast as they can, they would keep the machine busy, and not only hostward.
                    thread::sleep(Duration::from_millis(20));
                }
            });
        }
        eventually("hostward has as many connections as it takes", || {
            (kernel::descriptors(task.hostward.pid()) >= before + 60).then_some(())
        });
        for _ in 0..3 {
            for arguments in [&["healthcheck"][..], &["healthcheck", "--ready"], &["status"]] {
                // It gives itself 2 s, and fails when they are over.
                let output = Hostward::run(arguments, &settings);
                assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stdout));
            }
        }
        eventually("they come again", || (again.load(Ordering::SeqCst) > 0).then_some(()));
    });
}

/// Tells threads to end, also when the test has failed.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn an_idle_or_slow_client_of_the_admin_port_is_closed_soon() {
    let task = Task::echo(&[]);
    let started = Instant::now();
    let mut silent = Client::connect(task.hostward.admin);
    let mut half = Client::connect(task.hostward.admin);
    half.send("GET /livez HTTP/1.1\r\nHo");
    let mut kept = Client::connect(task.hostward.admin);
    kept.ask("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").expect(200);
    let mut slow = Client::connect(task.hostward.admin);
    let slow = thread::spawn(move || {
        for byte in "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-A: ".bytes().chain(std::iter::repeat(b'a')) {
            if slow.try_send([byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    });
    for client in [&mut silent, &mut half, &mut kept] {
        client.rest();
    }
    slow.join().unwrap();
    let elapsed = started.elapsed();
    assert!(elapsed > Duration::from_secs(1) && elapsed < Duration::from_secs(6), "{elapsed:?}");
}

/// Something else that listens on the port, and sends this, a byte at a time.
fn other_server(response: &'static str, pause: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let Ok((stream, _)) = listener.accept() else { return };
        let mut stream = Client::over(stream).input;
        // What was sent and not read would make the end a reset.
        stream.head().ok();
        let mut stream = stream.stream;
        for byte in response.bytes() {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(pause);
        }
    });
    address
}

#[test]
fn status_has_one_deadline_and_takes_nothing_but_hostwards_response() {
    let endless: &'static str = Box::leak("HTTP/1.1 200 OK\r\n\r\n".repeat(200).into_boxed_str());
    for (response, pause, words) in [
        ("HTTP/1.1 200 OK\r\n\r\n{}", Duration::ZERO, "something other than hostward"),
        ("HTTP/1.1 200 OK\r\n\r\n{\"status\":\"UP\"}", Duration::ZERO, "something other than hostward"),
        ("HTTP/1.1 200 OK\r\n\r\n<html>", Duration::ZERO, "something other than hostward"),
        ("HTTP/1.1 404 Not Found\r\n\r\n", Duration::ZERO, "something other than hostward"),
        ("SSH-2.0-x\r\n", Duration::ZERO, "no HTTP response"),
        (endless, Duration::from_millis(100), "timed out"),
    ] {
        let admin = other_server(response, pause).to_string();
        let settings = [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_ADMIN_LISTEN", admin.as_str())];
        let started = Instant::now();
        let output = Hostward::run(&["status"], &settings);
        let said = text(&output.stdout);
        assert!(output.status.code() == Some(1) && said.contains(words), "{response:?}: {said}");
        assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    }
}

#[test]
fn status_lists_the_addresses_that_were_given() {
    let task = Task::echo(&[("HOSTWARD_TASK_IP", "10.0.2.100,2001:db8::7")]);
    let status = eventually("the addresses are there", || {
        let status: serde_json::Value =
            serde_json::from_str(&get(task.hostward.admin, "localhost", "/status").expect(200).text()).unwrap();
        status["addresses"]["discovered"].is_array().then_some(status)
    });
    assert_eq!(status["addresses"]["discovered"], serde_json::json!(["10.0.2.100", "2001:db8::7"]));
}
