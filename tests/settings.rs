//! Contract 4: what hostward refuses to start with, and how it says so.

use std::net::TcpListener;
use std::process::Output;

use serde_json::Value;

use crate::support::Task;
use crate::support::app::{App, hang};
use crate::support::hostward::Hostward;
use crate::support::wire::text;

const HOSTS: (&str, &str) = ("HOSTWARD_ALLOWED_HOSTS", "www.example.com");

fn both(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

/// Starts hostward with mistakes, which it must report with exit code 2 and a JSON line each, since nobody sits
/// at a terminal. The lines that name a setting.
fn mistakes(settings: &[(&str, &str)]) -> Vec<Value> {
    let output = Hostward::refused(settings);
    let said = both(&output);
    assert_eq!(output.status.code(), Some(2), "{settings:?}\n{said}");
    let lines: Vec<Value> =
        said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    lines.into_iter().filter(|line| line.to_string().contains("HOSTWARD_")).collect()
}

/// Asserts that one of the lines has all of these words in it.
fn assert_line(lines: &[Value], words: &[&str]) {
    let found = lines.iter().any(|line| words.iter().all(|word| line.to_string().contains(word)));
    assert!(found, "no line with {words:?} in\n{lines:#?}");
}

#[test]
fn all_mistakes_are_reported_at_once_each_with_its_remedy() {
    let lines = mistakes(&[
        ("HOSTWARD_ALOWED_HOSTS", "x"),
        ("HOSTWARD_IDLE_TIMEOUT", "75"),
        ("HOSTWARD_TRUSTED_PROXIES", "10.0.0.0/33"),
    ]);
    assert_line(&lines, &["HOSTWARD_ALOWED_HOSTS", "HOSTWARD_ALLOWED_HOSTS"]);
    assert_line(&lines, &["HOSTWARD_IDLE_TIMEOUT", "75s"]);
    assert_line(&lines, &["HOSTWARD_TRUSTED_PROXIES", "10.0.0.0/33", "32"]);
    // The misspelt setting is missing, too.
    assert!(lines.len() >= 3 && lines.len() <= 4, "{lines:#?}");
    assert!(lines.iter().all(|line| line["level"] == "ERROR" && line["msg"].is_string()), "{lines:#?}");
}

#[test]
fn without_allowed_hosts_nothing_starts() {
    for settings in [&[][..], &[("HOSTWARD_ALLOWED_HOSTS", "")], &[("HOSTWARD_ALLOWED_HOSTS", " , ")]] {
        let lines = mistakes(settings);
        assert_line(&lines, &["HOSTWARD_ALLOWED_HOSTS", "www.example.com"]);
        assert_eq!(lines.len(), 1, "{lines:#?}");
    }
}

#[test]
fn each_wrong_value_is_a_mistake_that_names_it() {
    for (name, values) in [
        (
            "HOSTWARD_ALLOWED_HOSTS",
            &[
                "http://www.example.com",
                "www.example.com/x",
                "user@www.example.com",
                "www.example.com:99999",
                "10.0.0.0/33",
                "www*.example.com",
                "w\u{e9}b",
                "a.example;b.example",
                "www.example.com;",
                "_",
                "~www",
                "~^(www|api)\\.example\\.com$",
                "all",
                "ANY",
                "default",
                "none",
                "off",
                "!x",
                "-www.example.com",
                "\"www.example.com",
                "[www.example.com]",
                "www.example.com:",
                "www.example.com:*",
                "*.*.example.com",
                "a'b.example.com",
                "10.0.0.256",
                "8080",
            ][..],
        ),
        (
            "HOSTWARD_CANONICAL_HOST",
            &[
                "*.example.com",
                "a b",
                "10.0.0.0/8",
                "http://a",
                "a,b",
                "a'b",
                "a;b",
                "~a",
                "a:",
                "_",
                "none",
                "10.0.0.256",
            ],
        ),
        ("HOSTWARD_HOST_REWRITE", &["yes", "off"]),
        ("HOSTWARD_HOST_POLICY", &["log", "off"]),
        ("HOSTWARD_REJECT_STATUS", &["200", "500", "abc", "4211"]),
        ("HOSTWARD_PROBE_HOSTS", &["me", "www.example.com", "none,self", "10.0.0.0/99"]),
        ("HOSTWARD_PROBE_PROTO", &["ftp", "on"]),
        ("HOSTWARD_TASK_IP", &["10.0.0.256", "10.0.0.0/8", "on", "auto,10.0.0.1"]),
        ("HOSTWARD_LISTEN", &["8080x", "localhost", "10.0.0.1", "127.0.0.1:99999"]),
        ("HOSTWARD_ADMIN_LISTEN", &["on", "127.0.0.1", "127.0.0.1:x"]),
        ("HOSTWARD_MAX_CONNECTIONS", &["-1", "many", "1.5"]),
        (
            "HOSTWARD_UPSTREAM",
            &[
                "127.0.0.1:8000",
                "https://127.0.0.1:8000",
                "http://",
                "http://127.0.0.1:8000/path",
                "http://user@127.0.0.1:8000",
                "http://127.0.0.1:99999",
                "ftp://a:1",
                "http://0XA9FEA9FE:80",
                "http://169.0XFEA9FE:80",
                "http+unix:run/app.sock",
                "http://a'b:8000",
                "http://a*:8000",
                "http://app:",
            ],
        ),
        ("HOSTWARD_UPSTREAM_CONNECT_TIMEOUT", &["1", "0s", "fast", "1x", "-1s", "99999h"]),
        ("HOSTWARD_READY_PATH", &["health", "http://a/health", "/a b"]),
        ("HOSTWARD_TRUSTED_PROXIES", &["10.0.0.0/33", "all", "www.example.com", "none,private", "10.0.0.1/x"]),
        ("HOSTWARD_FORWARDED", &["maybe", "2"]),
        ("HOSTWARD_CLIENT_PROTO", &["on", "tls", "off", "ws"]),
        (
            "HOSTWARD_CLIENT_IP_HEADER",
            &[
                "X-Forwarded-For",
                "Host",
                "Cookie",
                "X.Client.IP",
                "X_Client_IP",
                "a b",
                "X-Forwarded-Proto",
                "Proxy-Connection",
            ],
        ),
        (
            "HOSTWARD_PASS_HEADERS",
            &[
                "X-Forwarded-For",
                "X-Forwarded-Host",
                "X-Real-IP",
                "X-Request-Start",
                "X-Queue-Start",
                "Host",
                "Connection",
                "Upgrade",
                "Accept",
                "X_Forwarded_User",
                "X.Forwarded.User",
                "X-Forwarded-*",
                "*",
                "none",
            ],
        ),
        ("HOSTWARD_TRACE_CONTEXT", &["on", "w3c"]),
        ("HOSTWARD_BUFFER_REQUESTS", &["maybe", "1MiB"]),
        ("HOSTWARD_BUFFER_MEMORY", &["0", "1m", "2GiB"]),
        ("HOSTWARD_BUFFER_DISK", &["0", "half", "10g", "512KiB", "2PiB", "50%", "off"]),
        ("HOSTWARD_BUFFER_DIR", &["tmp", "./tmp", "~/tmp"]),
        ("HOSTWARD_MAX_BODY_SIZE", &["10XB", "-1", "ten"]),
        ("HOSTWARD_MAX_HEADER_SIZE", &["0", "1GiB", "x"]),
        ("HOSTWARD_MAX_RESPONSE_HEADER_SIZE", &["0", "1023", "5MiB", "x", "-1"]),
        ("HOSTWARD_IDLE_TIMEOUT", &["75", "0s"]),
        ("HOSTWARD_SHUTDOWN_TIMEOUT", &["20", "9999h"]),
        ("HOSTWARD_LOG_LEVEL", &["loud", "6"]),
        ("HOSTWARD_LOG_FORMAT", &["xml", "on"]),
        ("HOSTWARD_ACCESS_LOG", &["some"]),
        ("HOSTWARD_ACCESS_LOG_PROBES", &["some"]),
        ("HOSTWARD_METRICS", &["on", "prometheus emf statsd", "off,prometheus", "0"]),
        ("HOSTWARD_THREADS", &["0", "-1", "x", "100000"]),
        ("HOSTWARD_STRICT", &["maybe"]),
    ] {
        for value in values {
            let mut settings = vec![(name, *value)];
            if name != HOSTS.0 {
                settings.push(HOSTS);
            }
            let lines = mistakes(&settings);
            assert_line(&lines, &[name]);
            assert_eq!(lines.len(), 1, "{name}={value}\n{lines:#?}");
        }
    }
}

#[test]
fn a_placeholder_that_nobody_filled_in_has_its_own_words() {
    for value in [
        "${ALLOWED_HOSTS}",
        "$ALLOWED_HOSTS",
        "{{ hosts }}",
        "arn:aws:ssm:eu-west-1:111122223333:parameter/hosts",
        "arn:aws:secretsmanager:eu-west-1:111122223333:secret:hosts",
    ] {
        let lines = mistakes(&[("HOSTWARD_ALLOWED_HOSTS", value)]);
        assert_eq!(lines.len(), 1, "{lines:#?}");
        let line = lines[0].to_string();
        let words = if value.starts_with("arn:") {
            &["secrets", "valueFrom", "arn"][..]
        } else {
            &["substitut", "placeholder", "filled", "expand"]
        };
        assert!(words.iter().any(|word| line.to_lowercase().contains(&word.to_lowercase())), "{line}");
    }
}

#[test]
fn an_upstream_where_credentials_are_served_is_refused() {
    for upstream in [
        "http://169.254.169.254:80",
        "http://169.254.170.2:80",
        "http://169.254.1.1:8000",
        "http://[fd00:ec2::254]:80",
        "http://[::ffff:169.254.169.254]:80",
    ] {
        let lines = mistakes(&[HOSTS, ("HOSTWARD_UPSTREAM", upstream)]);
        assert_line(&lines, &["HOSTWARD_UPSTREAM"]);
    }
}

#[test]
fn probes_need_a_canonical_host() {
    for allowed in ["*", "10.0.0.0/8", "*.example.com"] {
        assert_line(&mistakes(&[("HOSTWARD_ALLOWED_HOSTS", allowed)]), &["HOSTWARD_CANONICAL_HOST"]);
        let task = Task::echo(&[("HOSTWARD_ALLOWED_HOSTS", allowed), ("HOSTWARD_PROBE_HOSTS", "none")]);
        drop(task);
    }
}

#[test]
fn with_strict_off_an_unknown_variable_only_warns() {
    let task = Task::echo(&[("HOSTWARD_STRICT", "off"), ("HOSTWARD_IDLE_TIMOUT", "75s")]);
    task.get("/").expect(200);
    let line = task.hostward.line(|line| line["level"] == "WARN" && line.to_string().contains("HOSTWARD_IDLE_TIMOUT"));
    assert!(line.to_string().contains("HOSTWARD_IDLE_TIMEOUT"), "{line}");
    assert_line(
        &mistakes(&[HOSTS, ("HOSTWARD_IDLE_TIMOUT", "75s")]),
        &["HOSTWARD_IDLE_TIMOUT", "HOSTWARD_IDLE_TIMEOUT"],
    );
}

#[test]
fn an_empty_variable_is_as_good_as_none() {
    let task = Task::echo(&[("HOSTWARD_IDLE_TIMEOUT", ""), ("HOSTWARD_PROBE_HOSTS", ""), ("HOSTWARD_THREADS", "")]);
    task.get("/").expect(200);
    task.admitted(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", task.hostward.address));
}

#[test]
fn an_address_that_is_taken_is_exit_code_3() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for name in ["HOSTWARD_LISTEN", "HOSTWARD_ADMIN_LISTEN"] {
        let other = if name == "HOSTWARD_LISTEN" { "HOSTWARD_ADMIN_LISTEN" } else { "HOSTWARD_LISTEN" };
        let output = Hostward::refused(&[HOSTS, (name, &address), (other, "127.0.0.1:0")]);
        let said = both(&output);
        assert_eq!(output.status.code(), Some(3), "{name}\n{said}");
        assert!(said.contains(&address) && said.contains(name), "{said}");
        for line in said.lines() {
            serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        }
    }
}

#[test]
fn every_line_of_the_log_is_json_when_nobody_watches() {
    let task = Task::echo(&[("HOSTWARD_LOG_FORMAT", "auto")]);
    task.get("/a").expect(200);
    task.turned_away("GET /b HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421);
    task.hostward.request_line("/b");
    for line in task.hostward.output().lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(value["time"].is_string() && value["level"].is_string() && value["msg"].is_string(), "{line}");
    }
}

/// The bound is 10 ms for an optimised build on a quiet machine; this one only shows that nothing is waited for.
#[test]
fn the_start_does_not_wait_for_the_metadata_endpoint() {
    let endpoint = App::start(hang);
    // Had it waited, each start would have taken the second that a try may take.
    let mut starts = (0..5).map(|_| {
        let started = std::time::Instant::now();
        let task = Task::echo(&[("ECS_CONTAINER_METADATA_URI_V4", &format!("{}/v4/x", endpoint.url()))]);
        task.get("/").expect(200);
        started.elapsed()
    });
    assert!(starts.any(|took| took < std::time::Duration::from_millis(900)), "none of five starts");
}

#[test]
fn log_format_text_is_for_people() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    for (format, json) in [("text", false), ("json", true), ("auto", true)] {
        let output = Hostward::refused(&[
            ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
            ("HOSTWARD_LISTEN", &listen),
            ("HOSTWARD_LOG_FORMAT", format),
        ]);
        let line = String::from_utf8(output.stdout).unwrap();
        assert!(line.contains("not starting"), "{format}: {line}");
        assert_eq!(serde_json::from_str::<Value>(&line).is_ok(), json, "{format}: {line}");
    }
}

#[test]
fn names_of_one_label_are_hosts_and_upstreams() {
    for (name, value) in [
        ("HOSTWARD_ALLOWED_HOSTS", "localhost,app,my_app,web-1,.internal,*.local:8080"),
        ("HOSTWARD_CANONICAL_HOST", "app:8080"),
        ("HOSTWARD_UPSTREAM", "http://my-app:8000"),
        ("HOSTWARD_UPSTREAM", "http://app.localhost:8080"),
    ] {
        let mut settings = vec![(name, value), ("HOSTWARD_LISTEN", ":18123")];
        if name != HOSTS.0 {
            settings.push(HOSTS);
        }
        let output = Hostward::run(&["check"], &settings);
        assert_eq!(output.status.code(), Some(0), "{name}={value}\n{}", both(&output));
    }
}

#[test]
fn an_upstream_below_localhost_that_is_hostward_itself_is_a_mistake() {
    for upstream in
        ["http://app.localhost:8080", "http://localhost:8080", "http://a.b.LOCALHOST:8080", "http://[::1]:8080"]
    {
        let lines = mistakes(&[HOSTS, ("HOSTWARD_UPSTREAM", upstream), ("HOSTWARD_LISTEN", ":8080")]);
        assert_line(&lines, &["HOSTWARD_UPSTREAM", "HOSTWARD_LISTEN", "itself"]);
    }
}

/// What other programs take is refused with what to write here.
#[test]
fn a_wrong_allowed_host_has_an_example() {
    for (value, words) in [
        ("a.example;b.example", "comma"),
        ("_", "`*`"),
        ("all", "`*`"),
        ("none", "name the hosts"),
        ("~www", "regular expressions"),
        ("!x", "excluded"),
        ("https://www.example.com/", "URL"),
        ("'a.example',b.example", "quotation"),
    ] {
        let lines = mistakes(&[("HOSTWARD_ALLOWED_HOSTS", value)]);
        assert!(!lines.is_empty(), "{value}");
        for line in lines {
            let said = line.to_string();
            assert!(said.contains(words) && said.contains("Example: www.example.com"), "{value}: {said}");
        }
    }
}
