//! Contract 1.3 and 2 from outside: which requests are probes, and what the app sees of them.

use std::net::{IpAddr, SocketAddr};

use crate::support::http2;
use crate::support::wire::{self, Client};
use crate::support::{Task, has_ipv6};

const PROBE: &str = "GET /health HTTP/1.1\r\nHost: @\r\nUser-Agent: ELB-HealthChecker/2.0\r\nConnection: close\r\n\r\n";

fn probe(host: &(impl ToString + ?Sized)) -> String {
    PROBE.replace('@', &host.to_string())
}

#[test]
fn a_probe_of_the_own_address_passes_without_any_metadata() {
    let task = Task::echo(&[]);
    for host in [&*task.hostward.address.to_string(), "127.0.0.1", "127.0.0.1:9"] {
        let received = task.admitted(probe(host));
        received.assert_fields(&[
            ("host", "www.example.com"),
            ("user-agent", "ELB-HealthChecker/2.0"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "*"),
            ("x-forwarded-host", "www.example.com"),
            ("x-real-ip", "127.0.0.1"),
            ("x-request-id", "*"),
            ("x-request-start", "*"),
        ]);
        assert_eq!(received.target, "/health");
    }
}

#[test]
fn the_user_agent_does_not_decide() {
    let task = Task::echo(&[]);
    task.turned_away(probe("10.9.9.9:8080"), 421);
    task.turned_away(probe("evil.example"), 421);
    task.admitted(probe("127.0.0.1").replace("User-Agent: ELB-HealthChecker/2.0\r\n", ""));
}

#[test]
fn the_address_of_the_very_connection_is_a_probe_host() {
    let task = Task::echo(&[("HOSTWARD_LISTEN", "0.0.0.0:0")]);
    // 127.0.0.5 is no interface's address: only the connection itself knows it.
    let address = SocketAddr::from(([127, 0, 0, 5], task.hostward.address.port()));
    let answer = wire::ask(address, probe(&address)).expect(200);
    assert_eq!(task.app.last().field("host"), Some("www.example.com"), "{}", answer.text());
    let elsewhere = SocketAddr::from(([127, 0, 0, 6], task.hostward.address.port()));
    wire::ask(elsewhere, probe(&address)).expect(421);
    assert_eq!(task.app.count(), 1);
}

#[test]
fn a_probe_over_ipv6_passes() {
    if !has_ipv6() {
        return;
    }
    let task = Task::echo(&[("HOSTWARD_LISTEN", "[::1]:0")]);
    for host in [&*task.hostward.address.to_string(), "[::1]", "[0:0::0001]:80"] {
        assert_eq!(task.admitted(probe(host)).field("host"), Some("www.example.com"));
    }
    task.turned_away(probe("[2001:db8::1]:8080"), 421);
}

#[test]
fn a_dual_stack_listener_knows_its_ipv4_address() {
    if !has_ipv6() {
        return;
    }
    let task = Task::echo(&[("HOSTWARD_LISTEN", "[::]:0")]);
    let address = SocketAddr::from(([127, 0, 0, 5], task.hostward.address.port()));
    wire::ask(address, probe(&address)).expect(200);
    let received = task.app.last();
    assert_eq!((received.field("host"), received.field("x-real-ip")), (Some("www.example.com"), Some("127.0.0.1")));
}

/// What no health check has, and what went through a proxy may have.
const RELAYED: [&str; 15] = [
    "X-Forwarded-For: 203.0.113.9",
    "x-forwarded-for: 127.0.0.1",
    "X-Forwarded-For:",
    "Forwarded: for=203.0.113.9;host=www.example.com",
    "Via: 1.1 proxy",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Port: 443",
    "X-Forwarded-Host: www.example.com",
    "X-Forwarded-Prefix: /",
    "X-Amzn-Trace-Id: Root=1-67891233-abcdef012345678912345678",
    "X-Amzn-Tls-Version: TLSv1.3",
    "X-Amz-Cf-Id: abc",
    "CloudFront-Viewer-Address: 203.0.113.9:46532",
    "CF-Connecting-IP: 203.0.113.9",
    "X-Real-IP: 203.0.113.9",
];

#[test]
fn what_went_through_a_proxy_is_no_probe() {
    let task = Task::echo(&[]);
    for field in RELAYED {
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n{field}\r\n\r\n", task.hostward.address);
        task.turned_away(request, 421);
        // Saying that the field is a connection option doesn't hide it.
        let name = field.split(':').next().unwrap();
        let request =
            format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: {name}\r\n{field}\r\n\r\n", task.hostward.address);
        task.turned_away(request, 421);
    }
    let denied = task.hostward.line(|line| line["msg"] == "request denied");
    assert_eq!(denied["peer_ip"], "127.0.0.1", "{denied}");
}

/// A5 over HTTP/2, with TLS and without, as an ALB speaks it to a target group of that version.
#[test]
fn what_went_through_a_proxy_is_no_probe_over_http_2_either() {
    for settings in [&[][..], &[("HOSTWARD_TLS", "self-signed")]] {
        let task = Task::echo(settings);
        let address = task.hostward.address;
        let ask = |field: Option<&str>| {
            let mut request = http::Request::get(format!("http://{address}/"));
            if let Some((name, value)) = field.and_then(|field| field.split_once(':')) {
                request = request.header(name, value.trim());
            }
            http2::ask_once(address, request.body(()).unwrap(), b"").status
        };
        assert_eq!(ask(None), 200);
        for field in RELAYED {
            assert_eq!(ask(Some(field)), 421, "{field}");
        }
        assert_eq!(task.app.count(), 1);
    }
}

#[test]
fn health_checks_as_they_are_sent_pass() {
    let task = Task::echo(&[]);
    let address = task.hostward.address;
    for head in [
        format!(
            "GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nUser-Agent: ELB-HealthChecker/2.0\r\nAccept-Encoding: gzip, compressed\r\n"
        ),
        format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nUser-Agent: ELB-HealthChecker/2.0\r\n"),
        format!(
            "GET /healthz HTTP/1.1\r\nHost: {address}\r\nUser-Agent: kube-probe/1.31\r\nAccept: */*\r\nConnection: close\r\n"
        ),
        format!("GET / HTTP/1.1\r\nHost: {address}\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n"),
        "GET / HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Wget\r\nConnection: close\r\n".to_owned(),
    ] {
        let received = task.admitted(head + "\r\n");
        assert_eq!(
            (received.field("host"), received.field("x-forwarded-proto")),
            (Some("www.example.com"), Some("https"))
        );
        assert_eq!(received.field("x-forwarded-host"), Some("www.example.com"));
    }
}

#[test]
fn localhost_is_a_probe_host_for_a_loopback_peer() {
    let task = Task::echo(&[("HOSTWARD_LISTEN", "0.0.0.0:0")]);
    for host in ["localhost", "localhost:80", "LOCALHOST:65535", "localhost."] {
        assert_eq!(task.admitted(probe(host)).field("host"), Some("www.example.com"), "{host}");
    }
    for host in ["a.localhost", "localhost.localdomain", "localhost.example.com", "ip6-localhost"] {
        task.turned_away(probe(host), 421);
    }
    task.turned_away(probe("localhost").replace("Connection: close", "X-Forwarded-For: 203.0.113.9"), 421);
    let request = http::Request::get("http://localhost:8080/health").body(()).unwrap();
    assert_eq!(
        http2::ask_once(SocketAddr::from(([127, 0, 0, 1], task.hostward.address.port())), request, b"").status,
        200
    );
    for probes in ["peer", "missing", "none", "127.0.0.0/8"] {
        Task::echo(&[("HOSTWARD_PROBE_HOSTS", probes)]).turned_away(probe("localhost"), 421);
    }
    // A client that a PROXY header names isn't this task itself, whatever its address.
    let task = Task::echo(&[("HOSTWARD_PROXY_PROTOCOL", "optional")]);
    for client in ["10.0.1.7", "127.0.0.1"] {
        task.turned_away(format!("PROXY TCP4 {client} 10.0.2.100 56324 443\r\n{}", probe("localhost")), 421);
    }
    task.admitted("PROXY UNKNOWN\r\n".to_owned() + &probe("localhost"));
}

#[test]
fn with_probe_hosts_none_no_address_is_a_probe_host() {
    let task = Task::echo(&[("HOSTWARD_PROBE_HOSTS", "none")]);
    task.turned_away(probe(&task.hostward.address), 421);
    task.turned_away("GET / HTTP/1.0\r\n\r\n", 421);
    task.admitted(probe("www.example.com"));
}

#[test]
fn a_network_load_balancers_probe_names_the_peer() {
    let source = IpAddr::from([127, 0, 0, 3]);
    for (probes, status) in [("self,peer", 200), ("peer", 200), ("self", 421), ("none", 421)] {
        let task = Task::echo(&[("HOSTWARD_PROBE_HOSTS", probes)]);
        let mut client = Client::connect_from(source, task.hostward.address);
        client.ask(probe("127.0.0.3:80")).expect(status);
        if status == 200 {
            let received = task.app.last();
            let seen = (received.field("host"), received.field("x-real-ip"), received.field("x-forwarded-proto"));
            assert_eq!(seen, (Some("www.example.com"), Some("127.0.0.3"), Some("https")));
        }
        let mut client = Client::connect_from([127, 0, 0, 4].into(), task.hostward.address);
        client.ask(probe("127.0.0.3:80")).expect(421);
        assert_eq!(task.app.count(), usize::from(status == 200));
    }
    let task = Task::echo(&[("HOSTWARD_PROBE_HOSTS", "peer")]);
    // Here peer and task have the same address: the peer's it is.
    task.admitted(probe("127.0.0.1"));
}

#[test]
fn a_classic_load_balancers_probe_has_no_host() {
    let task = Task::echo(&[("HOSTWARD_PROBE_HOSTS", "self,missing")]);
    let received = task.admitted("GET /health HTTP/1.0\r\nUser-Agent: ELB-HealthChecker/1.0\r\n\r\n");
    assert_eq!((received.field("host"), received.field("x-forwarded-proto")), (Some("www.example.com"), Some("https")));
    task.turned_away("GET /health HTTP/1.0\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n", 421);
    // HTTP/1.1 wants a Host from everybody.
    task.turned_away("GET /health HTTP/1.1\r\n\r\n", 400);
    task.turned_away("GET /health HTTP/1.0\r\nHost:\r\n\r\n", 400);
}

#[test]
fn probe_hosts_can_be_named_by_hand() {
    let task = Task::echo(&[("HOSTWARD_PROBE_HOSTS", "10.0.0.0/16 192.0.2.7,2001:db8::/32")]);
    for host in ["10.0.2.100:8080", "192.0.2.7", "[2001:db8::5]:80"] {
        let received = task.admitted(probe(host));
        assert_eq!(
            (received.field("host"), received.field("x-forwarded-host")),
            (Some("www.example.com"), Some("www.example.com"))
        );
    }
    for host in ["10.1.0.1", "192.0.2.8", "127.0.0.1", "[2001:db9::1]"] {
        task.turned_away(probe(host), 421);
    }
}

#[test]
fn an_allowed_host_is_no_probe_even_when_it_is_the_own_address() {
    let task = Task::echo(&[("HOSTWARD_ALLOWED_HOSTS", "www.example.com,127.0.0.1")]);
    let host = task.hostward.address.to_string();
    let received = task.admitted(probe(&host));
    assert_eq!((received.field("host"), received.field("x-forwarded-proto")), (Some(&*host), Some("http")));
}

#[test]
fn probe_proto_says_what_the_app_believes() {
    for (setting, client, seen) in [
        ("https", "auto", "https"),
        ("http", "auto", "http"),
        ("https", "http", "https"),
        ("http", "https", "http"),
        // Off: what any other request would get.
        ("off", "auto", "http"),
        ("off", "https", "https"),
    ] {
        let task = Task::echo(&[("HOSTWARD_PROBE_PROTO", setting), ("HOSTWARD_CLIENT_PROTO", client)]);
        assert_eq!(task.admitted(probe("127.0.0.1")).all("x-forwarded-proto"), [seen], "{setting} {client}");
    }
}

#[test]
fn the_canonical_host_is_the_settings() {
    for (allowed, canonical, seen) in [
        (".example.com www.example.org", "", "example.com"),
        ("*.example.com,www.example.org:8443", "", "www.example.org:8443"),
        // Where every host is allowed, an address is an allowed host and not a probe host.
        ("*", "app.internal", "10.0.2.100:8080"),
        ("*:81", "app.internal", "app.internal"),
        ("www.example.com", "app.internal:81", "app.internal:81"),
    ] {
        let task = Task::echo(&[
            ("HOSTWARD_ALLOWED_HOSTS", allowed),
            ("HOSTWARD_CANONICAL_HOST", canonical),
            ("HOSTWARD_PROBE_HOSTS", "10.0.2.100"),
        ]);
        assert_eq!(task.admitted(probe("10.0.2.100:8080")).field("host"), Some(seen), "{allowed} {canonical}");
    }
}

#[test]
fn task_ip_and_pod_ip_are_probe_hosts() {
    for (name, value) in [
        ("HOSTWARD_TASK_IP", "10.0.2.100, 2001:db8::100"),
        ("POD_IP", "10.0.2.100"),
        ("POD_IPS", "10.0.2.100,2001:db8::100"),
    ] {
        let task = Task::echo(&[(name, value)]);
        assert_eq!(task.admitted(probe("10.0.2.100:8080")).field("host"), Some("www.example.com"), "{name}");
        if value.contains("db8") {
            assert_eq!(task.admitted(probe("[2001:DB8:0::100]:80")).field("host"), Some("www.example.com"), "{name}");
        }
        task.turned_away(probe("10.0.2.101:8080"), 421);
    }
}
