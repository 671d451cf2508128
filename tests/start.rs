//! What hostward says at its start: what is true, and what will hurt.

use std::net::TcpListener;

use serde_json::Value;

use crate::support::Task;
use crate::support::app::{App, echo};
use crate::support::hostward::Hostward;

fn warning(hostward: &Hostward, setting: &str) -> Value {
    hostward.line(|line| line["msg"] == "configuration warning" && line["setting"] == setting)
}

#[test]
fn one_line_says_what_is_true() {
    let task = Task::echo(&[("HOSTWARD_THREADS", "2"), ("HOSTWARD_TASK_IP", "10.0.2.100")]);
    let line = task.hostward.line(|line| line["msg"] == "started");
    assert_eq!((&line["threads"], &line["threads_from"]), (&2.into(), &"HOSTWARD_THREADS".into()), "{line}");
    assert_eq!((&line["task_ip"], &line["upstream"]), (&"10.0.2.100".into(), &task.app.url().into()), "{line}");
    assert!(
        line["given"].as_str().is_some_and(|given| given.contains("HOSTWARD_ALLOWED_HOSTS=www.example.com")),
        "{line}"
    );
    assert!(line["interfaces"].as_str().is_some_and(|addresses| addresses.contains("127.0.0.1")), "{line}");
    let on_ecs = Task::echo(&[("ECS_CONTAINER_METADATA_URI_V4", "http://127.0.0.1:9/v4/x")]);
    let line = on_ecs.hostward.line(|line| line["msg"] == "started");
    assert_eq!(
        (&line["threads"], &line["threads_from"]),
        (&1.into(), &"1 until the task's CPU limit is known".into()),
        "{line}"
    );
    // Defaults hurt nobody.
    let warnings: Vec<_> = task.hostward.lines().into_iter().filter(|line| line["level"] == "WARN").collect();
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn times_that_lose_requests_are_warned_about() {
    let settings =
        [("HOSTWARD_DRAIN_DELAY", "15s"), ("HOSTWARD_IDLE_TIMEOUT", "60s"), ("HOSTWARD_ALLOWED_HOSTS", "* a.example")];
    let task = Task::echo(&settings);
    let line = warning(&task.hostward, "HOSTWARD_SHUTDOWN_TIMEOUT");
    assert!(line["error"].as_str().is_some_and(|error| error.contains("35 s")), "{line}");
    assert!(line["hint"].as_str().is_some_and(|hint| hint.contains("stopTimeout")), "{line}");
    assert!(warning(&task.hostward, "HOSTWARD_IDLE_TIMEOUT")["hint"].as_str().is_some_and(|hint| hint.contains("75s")));
    task.hostward.line(|line| line["msg"] == "every host may enter");
    // `check` says the same.
    let output = Hostward::run(&["check"], &[&settings[..], &[("HOSTWARD_UPSTREAM", &task.app.url())]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("warning: HOSTWARD_SHUTDOWN_TIMEOUT") && said.contains("warning: HOSTWARD_IDLE_TIMEOUT"),
        "{said}"
    );
}

#[test]
fn a_directory_that_cannot_be_written_is_said_at_once() {
    let task = Task::echo(&[("HOSTWARD_BUFFER_DIR", "/nowhere")]);
    let line = task.hostward.line(|line| line["msg"] == "can't spool");
    assert!(line["hint"].as_str().is_some_and(|hint| hint.contains("HOSTWARD_BUFFER_DIR")), "{line}");
    let streaming = Task::echo(&[("HOSTWARD_BUFFER_DIR", "/nowhere"), ("HOSTWARD_BUFFER_REQUESTS", "off")]);
    streaming.get("/").expect(200);
    assert!(streaming.hostward.lines().iter().all(|line| line["msg"] != "can't spool"));
}

#[test]
fn an_app_beside_hostward_that_listens_for_everybody_is_warned_about() {
    // Chosen by the kernel for every address, and then the app's.
    let address = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap();
    let upstream = format!("http://127.0.0.1:{}", address.port());
    let open = App::listen(address, echo);
    let hostward = Hostward::start(&[("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", &upstream)]);
    let line = hostward.line(|line| line["msg"] == "app is open to the network");
    assert_eq!(line["address"], address.to_string(), "{line}");
    assert!(
        line["hint"].as_str().is_some_and(|hint| hint.contains(&format!("127.0.0.1:{}", address.port()))),
        "{line}"
    );
    drop(open);
    let closed = Task::echo(&[]);
    closed.get("/").expect(200);
    assert!(closed.hostward.lines().iter().all(|line| line["msg"] != "app is open to the network"));
}
