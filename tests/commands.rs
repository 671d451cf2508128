//! Contract 5: the commands beside `run`.

use std::process::Output;

use serde_json::Value;

use crate::support::app::{App, Then, answer};
use crate::support::hostward::Hostward;
use crate::support::wire::text;
use crate::support::{Task, eventually};

const HOSTS: (&str, &str) = ("HOSTWARD_ALLOWED_HOSTS", "www.example.com");

fn both(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn help_shows_every_setting_in_groups() {
    let output = Hostward::run(&["--help"], &[]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}");
    for name in [
        "allowed-hosts",
        "canonical-host",
        "probe-hosts",
        "upstream",
        "listen",
        "trusted-proxies",
        "idle-timeout",
        "drain-delay",
        "access-log",
    ] {
        assert!(said.contains(&format!("--{name}")), "no --{name} in\n{said}");
    }
    for command in ["run", "check", "config", "explain", "healthcheck"] {
        assert!(said.lines().any(|line| line.trim_start().starts_with(command)), "no {command} in\n{said}");
    }
    let headings = said.lines().filter(|line| line.ends_with(':') && !line.starts_with(' ')).count();
    assert!(headings >= 4, "{headings} groups in\n{said}");
    assert!(said.contains("HOSTWARD_ALLOWED_HOSTS"), "{said}");
    let version = Hostward::run(&["--version"], &[]);
    assert!(text(&version.stdout).contains(env!("CARGO_PKG_VERSION")), "{}", both(&version));
}

#[test]
fn a_flag_wins_over_its_variable() {
    let output =
        Hostward::run(&["config", "--allowed-hosts", "flag.example.com"], &[HOSTS, ("HOSTWARD_IDLE_TIMEOUT", "60s")]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}", both(&output));
    assert!(said.contains("flag.example.com") && !said.contains("www.example.com"), "{said}");
}

#[test]
fn config_shows_every_value_and_where_it_came_from() {
    let output = Hostward::run(&["config", "--drain-delay", "3s"], &[HOSTS, ("HOSTWARD_IDLE_TIMEOUT", "60s")]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}", both(&output));
    let line = |name: &str| {
        let found = said.lines().find(|line| line.split([' ', '=', '\t']).any(|word| word == name));
        found.unwrap_or_else(|| panic!("no {name} in\n{said}")).to_owned()
    };
    for (name, value, source) in [
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com", "environment"),
        ("HOSTWARD_IDLE_TIMEOUT", "60s", "environment"),
        ("HOSTWARD_DRAIN_DELAY", "3s", "flag"),
        ("HOSTWARD_UPSTREAM", "http://127.0.0.1:8000", "default"),
        ("HOSTWARD_REJECT_STATUS", "421", "default"),
        ("HOSTWARD_SHUTDOWN_TIMEOUT", "20s", "default"),
    ] {
        let line = line(name);
        assert!(line.contains(value) && line.contains(source), "{name}: {value}, {source}? {line}");
    }
    let output = Hostward::run(&["config"], &[HOSTS, ("HOSTWARD_IDLE_TIMEOUT", "60")]);
    assert_eq!(output.status.code(), Some(2), "{}", both(&output));
}

/// What `explain` prints, and its exit code.
fn explain(arguments: &[&str], settings: &[(&str, &str)]) -> (String, Option<i32>) {
    let output = Hostward::run(&[&["explain"], arguments].concat(), &[settings, &[HOSTS]].concat());
    (both(&output), output.status.code())
}

#[test]
fn explain_says_what_the_proxy_would_do() {
    let task_ip = ("HOSTWARD_TASK_IP", "10.0.2.100");
    let (said, code) = explain(&["--host", "10.0.2.100", "--peer", "10.0.1.7"], &[task_ip]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("probe") && said.contains("HOSTWARD_PROBE_HOSTS"), "{said}");
    // What the app would see.
    assert!(said.to_lowercase().contains("host: www.example.com") && said.contains("https"), "{said}");

    let (said, code) = explain(&["--host", "www.example.com:8443"], &[]);
    assert_eq!((code, said.to_lowercase().contains("host: www.example.com:8443")), (Some(0), true), "{said}");

    for arguments in [
        &["--host", "evil.example"][..],
        &["--host", "10.9.9.9", "--peer", "10.0.1.7"],
        &["--host", "10.0.2.100", "--peer", "203.0.113.9"],
        &["--host", "10.0.2.100", "--peer", "10.0.1.7", "--header", "X-Forwarded-For: 203.0.113.9"],
        &["--host", "user@www.example.com"],
    ] {
        let (said, code) = explain(arguments, &[task_ip]);
        assert_eq!(code, Some(3), "{arguments:?}\n{said}");
    }
    let (said, code) = explain(&["--host", "10.0.2.100", "--local", "10.0.2.100", "--peer", "10.0.1.7"], &[]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn explain_speaks_json() {
    let output = Hostward::run(
        &["explain", "--format", "json", "--host", "10.0.2.100", "--peer", "10.0.1.7"],
        &[HOSTS, ("HOSTWARD_TASK_IP", "10.0.2.100")],
    );
    let verdict: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", both(&output)));
    assert!(
        verdict.is_object() && verdict.to_string().contains("probe") && verdict.to_string().contains("www.example.com"),
        "{verdict}"
    );
    let output = Hostward::run(&["explain", "--format", "json", "--host", "evil.example"], &[HOSTS]);
    let verdict: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", both(&output)));
    assert_eq!(output.status.code(), Some(3), "{verdict}");
    assert!(verdict.to_string().contains("refused"), "{verdict}");
}

#[test]
fn explain_says_what_is_removed_and_where_facts_about_the_client_come_from() {
    let settings = [("HOSTWARD_CLIENT_IP_HEADER", "CF-Connecting-IP"), ("HOSTWARD_CLIENT_PROTO", "https"), HOSTS];
    let headers = [
        "CF-Connecting-IP: 203.0.113.9",
        "X.Forwarded.For: 6.6.6.6",
        "X-Forwarded-Prefix: //evil.example",
        "X-Forwarded-Host: evil.example",
        "Connection: x-hop",
        "X-Hop: 1",
        "Keep-Alive: 1",
        "X-Amzn-Oidc-Identity: root",
    ];
    let arguments = |peer| {
        let headers = headers.iter().flat_map(|header| ["--header", header]);
        ["explain", "--host", "www.example.com:8443", "--peer", peer].into_iter().chain(headers).collect::<Vec<_>>()
    };
    let said = text(&Hostward::run(&arguments("10.0.1.7"), &settings).stdout);
    for line in [
        "client   203.0.113.9: a trusted peer's header that HOSTWARD_CLIENT_IP_HEADER names",
        "scheme   https: HOSTWARD_CLIENT_PROTO",
        "port     8443: the public host",
        "removed  x.forwarded.for: the name has a character other than letters, digits and hyphens",
        "removed  x-forwarded-prefix: apps take it for their own host",
        "removed  x-forwarded-host: hostward writes this header itself",
        "removed  x-hop: the request's Connection header names it",
        "removed  keep-alive: it is for this connection only",
    ] {
        assert!(said.lines().any(|said| said.starts_with(line)), "no {line:?} in\n{said}");
    }
    assert!(!said.contains("removed  x-amzn-oidc-identity"), "{said}");

    let json = |arguments: &[&str], settings: &[(&str, &str)]| -> Value {
        let output = Hostward::run(&[arguments, &["--format", "json"]].concat(), settings);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", both(&output)))
    };
    let said = json(&arguments("203.0.113.1"), &settings);
    assert_eq!(said["client"], serde_json::json!({ "value": "203.0.113.1", "from": "the connection to hostward" }));
    assert_eq!((&said["scheme"]["value"], &said["port"]["value"]), (&"https".into(), &"8443".into()), "{said}");
    let why = |name: &str| {
        let removed = said["removed"].as_array().unwrap();
        let found = removed.iter().find(|removed| removed["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {said}"))["reason"].as_str().unwrap().to_owned()
    };
    for (name, reason) in [
        ("x.forwarded.for", "name"),
        ("x-forwarded-prefix", "override"),
        ("x-forwarded-host", "written"),
        ("x-hop", "connection_option"),
        ("keep-alive", "connection_specific"),
        ("x-amzn-oidc-identity", "untrusted"),
        ("cf-connecting-ip", "client_ip"),
    ] {
        assert_eq!(why(name), reason);
    }
    let forwarded = ["--header", "X-Forwarded-For: 203.0.113.9", "--header", "X-Forwarded-Proto: https"];
    let said = json(&[&["explain", "--host", "www.example.com"], &forwarded[..]].concat(), &[HOSTS]);
    let from = |name: &str| (said[name]["value"].as_str().unwrap(), said[name]["from"].as_str().unwrap());
    assert_eq!(from("client"), ("203.0.113.9", "a trusted peer's X-Forwarded header"));
    assert_eq!(from("scheme"), ("https", "a trusted peer's X-Forwarded header"));
    assert_eq!(from("port"), ("443", "the scheme's default"));
    assert_eq!(said["removed"], serde_json::json!([]));
}

#[test]
fn explain_and_the_proxy_agree() {
    let task = Task::echo(&[
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com .example.org 192.0.2.0/24 h.example:81"),
        ("HOSTWARD_TASK_IP", "10.0.2.100"),
    ]);
    let allowed = ("HOSTWARD_ALLOWED_HOSTS", "www.example.com .example.org 192.0.2.0/24 h.example:81");
    for host in [
        "www.example.com",
        "WWW.example.com.:1",
        "a.example.org",
        "xexample.org",
        "192.0.2.9:80",
        "192.0.3.9",
        "h.example:81",
        "h.example",
        "10.0.2.100:8080",
        "10.0.2.101",
        "a@b",
        "a..b",
        "[::2]",
        "[::2",
    ] {
        let admitted = task.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).status == 200;
        let output = Hostward::run(
            &["explain", "--host", host, "--peer", "127.0.0.1", "--local", "127.0.0.1"],
            &[allowed, ("HOSTWARD_TASK_IP", "10.0.2.100")],
        );
        assert_eq!(output.status.code(), Some(if admitted { 0 } else { 3 }), "{host}\n{}", both(&output));
    }
}

#[test]
fn healthcheck_tells_by_its_exit_code() {
    let task = Task::echo(&[]);
    let admin = task.hostward.admin.to_string();
    let check = |arguments: &[&str], admin: &str| Hostward::run(arguments, &[HOSTS, ("HOSTWARD_ADMIN_LISTEN", admin)]);
    for arguments in [&["healthcheck"][..], &["healthcheck", "--ready"]] {
        let output = check(arguments, &admin);
        assert_eq!(output.status.code(), Some(0), "{}", both(&output));
    }
    let nowhere = App::nowhere().to_string();
    assert_eq!(check(&["healthcheck"], &nowhere).status.code(), Some(1));
    // What was given to the hostward that runs by flags, this one doesn't know, and doesn't have to.
    for command in ["healthcheck", "status"] {
        let output = Hostward::run(&[command], &[("HOSTWARD_ADMIN_LISTEN", &admin), ("HOSTWARD_IDLE_TIMEOUT", "75")]);
        assert_eq!(output.status.code(), Some(0), "{command}: {}", both(&output));
        let output = Hostward::run(&[command], &[HOSTS, ("HOSTWARD_ADMIN_LISTEN", "9797s")]);
        assert_eq!(output.status.code(), Some(2), "{command}: {}", both(&output));
    }

    let hostward = Hostward::start(&[HOSTS, ("HOSTWARD_UPSTREAM", &format!("http://{}", App::nowhere()))]);
    let admin = hostward.admin.to_string();
    assert_eq!(check(&["healthcheck"], &admin).status.code(), Some(0));
    assert_eq!(check(&["healthcheck", "--ready"], &admin).status.code(), Some(1));
}

#[test]
fn check_judges_the_settings_and_the_app() {
    let app = App::echo();
    let url = app.url();
    for (arguments, settings, code) in [
        (&["check"][..], &[HOSTS][..], 0),
        (&["check"], &[], 2),
        (&["check", "--upstream"], &[HOSTS, ("HOSTWARD_UPSTREAM", &url)], 0),
        (&["check", "--upstream"], &[HOSTS, ("HOSTWARD_UPSTREAM", &format!("http://{}", App::nowhere()))], 1),
    ] {
        let output = Hostward::run(arguments, settings);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{}", both(&output));
    }
}

#[test]
fn explain_reads_a_raw_request_and_says_which_rules_were_tried() {
    let explain_raw = |raw: &str, arguments: &[&str]| {
        let arguments = [&["explain", "--request", "-", "--format", "json"], arguments].concat();
        let output = Hostward::run_with(&arguments, &[HOSTS], raw.as_bytes());
        let said: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", both(&output)));
        (said, output.status.code())
    };
    let raw =
        "POST /cart?x=1 HTTP/1.1\r\nHost: www.example.com\r\nX_Real_IP: 1.2.3.4\r\nContent-Length: 5\r\n\r\nhello";
    let (said, code) = explain_raw(raw, &["--peer", "10.0.1.7"]);
    assert_eq!((code, &said["verdict"], &said["rule"]), (Some(0), &"allowed".into(), &"exact".into()), "{said}");
    assert_eq!(said["app_sees"]["request_line"], "POST /cart?x=1 HTTP/1.1");
    assert!(!said["app_sees"].to_string().contains("x_real_ip"), "{said}");
    // The same refusals as the proxy's, and what else is given counts too.
    for (raw, status) in [
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        ("GET / HTTP/1.1\r\nHost: www.example.com\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: www.example.com\r\nHost: www.example.com\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: www.example.com\r\n", 400),
        ("CONNECT www.example.com:443 HTTP/1.1\r\nHost: www.example.com\r\n\r\n", 405),
    ] {
        let (said, code) = explain_raw(raw, &[]);
        assert_eq!((code, &said["status"]), (Some(3), &status.into()), "{raw}\n{said}");
    }
    let (said, code) = explain_raw(raw, &["--max-body-size", "4"]);
    assert_eq!((code, &said["verdict"], &said["status"]), (Some(3), &"allowed".into(), &413.into()), "{said}");
    let (said, _) = explain_raw(
        "GET / HTTP/1.1\r\nHost: 10.0.9.9\r\nUser-Agent: ELB-HealthChecker/2.0\r\n\r\n",
        &["--peer", "10.0.1.7", "--local", "10.0.2.100:8080"],
    );
    assert_eq!(
        said["tried"],
        serde_json::json!([
            "address",
            "network",
            "any",
            "self_local",
            "self_task",
            "self_interface",
            "peer",
            "probe_network"
        ])
    );
    assert_eq!(said["sender"], "nlb_probe");
    assert!(said["hint"].as_str().is_some_and(|hint| hint.contains("HOSTWARD_PROBE_HOSTS=")), "{said}");
    let (said, code) = explain(&["--method", "DELETE", "--target", "/a?b", "--host", "www.example.com"], &[]);
    assert!(code == Some(0) && said.contains("DELETE /a?b HTTP/1.1"), "{said}");
}

#[test]
fn status_says_what_is_so_and_what_went_wrong() {
    let task = Task::start(&[], |talk| {
        if talk.request.target == "/dies" { Then::Close } else { talk.reply(answer("200 OK", "", "here")) }
    });
    task.get("/").expect(200);
    task.get("/dies").expect(502);
    for _ in 0..3 {
        task.turned_away(
            "GET / HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: Mozilla\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n",
            421,
        );
    }
    let admin = task.hostward.admin.to_string();
    let run = |arguments: &[&str]| Hostward::run(arguments, &[HOSTS, ("HOSTWARD_ADMIN_LISTEN", &admin)]);
    let output = run(&["status"]);
    let said = both(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    for words in [
        "running, up for",
        "ready            yes",
        "api.example.com: 3 × from sibling, not_allowed",
        "502 /dies: app closed connection (connection_terminated)",
        "0 lines dropped",
        &task.app.url(),
    ] {
        assert!(said.contains(words), "no {words:?} in\n{said}");
    }
    // A request is counted when its answer has ended, a moment after the client has it.
    let status = eventually("three requests are counted as refused", || {
        let status: Value = serde_json::from_slice(&run(&["status", "--format", "json"]).stdout).unwrap();
        let requests = &status["requests"];
        (requests["by_decision"]["refused"] == 3 && requests["by_status"]["421"] == 3).then_some(status)
    });
    assert_eq!(status["refused_hosts"][0]["host"], "api.example.com", "{status:#}");
    // What runs here knows more of a refused host.
    let output = run(&["explain", "--host", "api.example.com"]);
    assert!(both(&output).contains("seen     3 times since hostward started here"), "{}", both(&output));
    // Nobody there, or nobody to ask.
    let nowhere = App::nowhere().to_string();
    for admin in [nowhere.as_str(), "off"] {
        let output = Hostward::run(&["status"], &[HOSTS, ("HOSTWARD_ADMIN_LISTEN", admin)]);
        assert_eq!(output.status.code(), Some(1), "{}", both(&output));
    }
}

#[test]
fn a_host_that_is_only_reported_is_seen_in_the_status() {
    let task = Task::echo(&[("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_HOST_POLICY", "report")]);
    for number in 0..3 {
        task.admitted(format!("GET / HTTP/1.1\r\nHost: shop{number}.example.com\r\nUser-Agent: Mozilla\r\n\r\n"));
    }
    let line = task.hostward.line(|line| line["msg"] == "request would be denied");
    assert!(line["hint"].as_str().is_some_and(|hint| hint.contains("HOSTWARD_ALLOWED_HOSTS")), "{line}");
    assert!(line["status"].is_null(), "{line}");
    let answer = crate::support::wire::get(task.hostward.admin, "localhost", "/status").expect(200);
    let status: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(status["host_policy"], "report");
    assert_eq!(status["refused_hosts"].as_array().map(Vec::len), Some(3), "{status:#}");
}
