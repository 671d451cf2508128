//! Contract 5: the commands beside `run`.

use std::process::Output;

use serde_json::Value;

use crate::support::Task;
use crate::support::app::App;
use crate::support::hostward::Hostward;
use crate::support::wire::text;

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
