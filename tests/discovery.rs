//! Contract 2 from outside: the task metadata endpoint in all its moods, and hostward serving meanwhile.

use serde_json::{Value, json};

use crate::support::app::{App, Then, answer};
use crate::support::metadata::{Metadata, PATH, Reply, container, missing, network, wait_for_discovery};
use crate::support::{Task, eventually, wire};

fn probe(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: ELB-HealthChecker/2.0\r\n\r\n")
}

fn task(metadata: &Metadata) -> Task {
    Task::echo(&[("ECS_CONTAINER_METADATA_URI_V4", &metadata.url())])
}

/// Discovery goes on in the background: asks until hostward knows that `host` is its own.
fn becomes_a_probe_host(task: &Task, host: &str) {
    eventually("a probe passes", || (task.ask(probe(host)).status == 200).then_some(()));
    assert_eq!(task.app.last().field("host"), Some("www.example.com"));
}

/// The endpoint gives no address: hostward serves all the same, and says once what is wrong.
fn survives(metadata: &Metadata) {
    let task = task(metadata);
    task.get("/").expect(200);
    task.admitted(probe(&task.hostward.address.to_string()));
    task.turned_away(probe("10.0.2.100:8080"), 421);
    eventually("the endpoint is asked", || (!metadata.asked().is_empty()).then_some(()));
    let complaint = |line: &Value| line["level"] == "WARN" && line["msg"] == "task metadata unavailable";
    let line = task.hostward.line(complaint);
    assert!(line["hint"].is_string() && line["error"].is_string(), "{line}");
    task.get("/").expect(200);
    let complaints = task.hostward.lines().iter().filter(|line| complaint(line)).count();
    assert_eq!(complaints, 1, "{}", task.hostward.output());
}

#[test]
fn the_own_containers_address_becomes_a_probe_host() {
    let metadata = Metadata::of(container(&network(&["10.0.2.100"])));
    let task = task(&metadata);
    becomes_a_probe_host(&task, "10.0.2.100:8080");
    task.turned_away(probe("10.0.2.101:8080"), 421);
    let through_proxy = "GET / HTTP/1.1\r\nHost: 10.0.2.100\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n";
    task.turned_away(through_proxy, 421);
    // The task's document may be asked for as well, later: it knows the CPU limit.
    assert_eq!(metadata.asked()[0], PATH);
}

#[test]
fn addresses_are_compared_as_addresses_however_they_are_written() {
    let metadata = Metadata::of(container(&json!([
        { "NetworkMode": "bridge", "IPv4Addresses": ["172.17.0.2"] },
        { "IPv4Addresses": ["", "10.0.2.100"], "IPv6Addresses": ["2001:dB8:10b:1a00:32bf:a372:d80f:e958"], "Novelty": { "a": [1] } },
    ])));
    let task = task(&metadata);
    becomes_a_probe_host(&task, "[2001:db8:10b:1a00:32BF:a372:d80f:e958]:8080");
    task.admitted(probe("172.17.0.2"));
    task.admitted(probe("10.0.2.100"));
}

#[test]
fn the_task_is_asked_when_the_container_has_no_address() {
    for networks in [
        Value::Null,
        json!([]),
        json!([{ "NetworkMode": "awsvpc" }]),
        network(&[""]),
        json!([{ "IPv4Addresses": null }]),
    ] {
        let metadata = Metadata::start(move |path, _| {
            let mut pause = container(&network(&["10.0.2.201"]));
            pause["Type"] = "CNI_PAUSE".into();
            let mut stopped = container(&network(&["10.0.2.202"]));
            stopped["KnownStatus"] = "STOPPED".into();
            let body = match path.strip_prefix(PATH) {
                Some("") if networks.is_null() => {
                    let mut own = container(&networks);
                    own.as_object_mut().unwrap().remove("Networks");
                    own
                }
                Some("") => container(&networks),
                Some("/task") => json!({ "Containers": [pause, stopped, container(&network(&["10.0.2.100"]))] }),
                _ => return missing(),
            };
            Reply::Body("200 OK", body.to_string())
        });
        let task = task(&metadata);
        becomes_a_probe_host(&task, "10.0.2.100:8080");
        task.turned_away(probe("10.0.2.201"), 421);
        task.turned_away(probe("10.0.2.202"), 421);
    }
}

#[test]
fn an_endpoint_that_recovers_is_asked_again() {
    for fault in 0..4 {
        let metadata = Metadata::start(move |path, times| match (times, fault) {
            (0, 0) => Reply::Body("500 Internal Server Error", "\"failed to get task metadata\"".into()),
            (0, 1) => Reply::Body("429 Too Many Requests", String::new()),
            (0, 2) => Reply::Reset,
            (0, _) => Reply::Hang,
            _ if path == PATH => Reply::Body("200 OK", container(&network(&["10.0.2.100"])).to_string()),
            _ => missing(),
        });
        becomes_a_probe_host(&task(&metadata), "10.0.2.100:8080");
    }
}

#[test]
fn the_tasks_cpu_limit_sets_the_number_of_workers_and_without_one_there_are_as_many_as_cpus() {
    let cpus = std::thread::available_parallelism().unwrap().get();
    for (limits, workers) in [(Some(json!({ "CPU": 0.5 })), 1), (Some(json!({})), cpus.min(2)), (None, cpus.min(2))] {
        let document = limits.clone();
        let metadata = Metadata::start(move |path, _| match (path.strip_prefix(PATH), &document) {
            (Some(""), _) => Reply::Body("200 OK", container(&network(&["10.0.2.100"])).to_string()),
            (Some("/task"), Some(limits)) => {
                Reply::Body("200 OK", json!({ "Containers": [], "Limits": limits }).to_string())
            }
            _ => Reply::Body("500 Internal Server Error", "\"no network settings\"".into()),
        });
        let task = task(&metadata);
        wait_for_discovery(&task);
        let mut clients = [task.client(), task.client()];
        for client in &mut clients {
            client.ask(probe("www.example.com")).expect(200);
        }
        let status = wire::get(task.hostward.admin, "localhost", "/status").expect(200).text();
        let status: Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["workers"], workers, "{limits:?}");
        if limits.is_none() && cpus > 1 {
            let line = task.hostward.line(|line| line["msg"] == "task CPU limit unavailable");
            assert!(line["hint"].as_str().is_some_and(|hint| hint.contains("HOSTWARD_THREADS")), "{line}");
        }
    }
}

#[test]
fn an_endpoint_that_hangs_is_survived() {
    survives(&Metadata::start(|_, _| Reply::Hang));
}

#[test]
fn a_json_string_is_survived() {
    survives(&Metadata::start(|_, _| missing()));
}

#[test]
fn a_json_string_with_200_is_survived() {
    survives(&Metadata::start(|_, _| Reply::Body("200 OK", "\"10.0.2.100\"".into())));
}

#[test]
fn garbage_is_survived() {
    survives(&Metadata::start(|_, _| Reply::Raw(b"\0\xff garbage\r\n\r\n".to_vec())));
    survives(&Metadata::start(|_, _| Reply::Body("200 OK", "<html>".into())));
    survives(&Metadata::start(|_, _| Reply::Body("200 OK", r#"{"Networks":{"IPv4Addresses":7}}"#.into())));
}

#[test]
fn empty_addresses_are_survived() {
    survives(&Metadata::start(|path, _| {
        let own = container(&network(&[""]));
        let body = if path == PATH { own } else { json!({ "Containers": [own] }) };
        Reply::Body("200 OK", body.to_string())
    }));
}

#[test]
fn an_endless_answer_is_survived() {
    survives(&Metadata::start(|_, _| {
        let mut document = container(&network(&["10.0.2.100"]));
        document["Image"] = "a".repeat(2 << 20).into();
        Reply::Body("200 OK", document.to_string())
    }));
}

#[test]
fn a_redirect_is_not_followed() {
    let elsewhere = App::echo();
    let target = elsewhere.url();
    survives(&Metadata::start(move |_, _| {
        Reply::Raw(format!("HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n").into_bytes())
    }));
    assert_eq!(elsewhere.count(), 0);
}

#[test]
fn proxy_variables_are_ignored() {
    let proxy = App::echo();
    let url = proxy.url();
    let metadata = Metadata::of(container(&network(&["10.0.2.100"])));
    let task = Task::echo(&[
        ("ECS_CONTAINER_METADATA_URI_V4", &metadata.url()),
        ("HTTP_PROXY", &url),
        ("http_proxy", &url),
        ("ALL_PROXY", &url),
    ]);
    becomes_a_probe_host(&task, "10.0.2.100:8080");
    assert_eq!((proxy.count(), task.app.requests().len()), (0, task.app.count()));
}

#[test]
fn version_3_is_asked_when_there_is_no_version_4() {
    let metadata = Metadata::of(container(&network(&["10.0.2.100"])));
    let task = Task::echo(&[("ECS_CONTAINER_METADATA_URI_V4", ""), ("ECS_CONTAINER_METADATA_URI", &metadata.url())]);
    becomes_a_probe_host(&task, "10.0.2.100:8080");
}

#[test]
fn a_url_with_a_trailing_slash_is_the_same() {
    let metadata = Metadata::start(|path, _| {
        if path.trim_end_matches('/') == PATH {
            Reply::Body("200 OK", container(&network(&["10.0.2.100"])).to_string())
        } else {
            missing()
        }
    });
    let task = Task::echo(&[("ECS_CONTAINER_METADATA_URI_V4", &format!("{}/", metadata.url()))]);
    becomes_a_probe_host(&task, "10.0.2.100:8080");
}

#[test]
fn with_task_ip_given_or_off_nobody_is_asked() {
    for (setting, status) in [("10.0.2.100", 200), ("off", 421)] {
        let metadata = Metadata::of(container(&network(&["10.0.2.100"])));
        let task = Task::echo(&[("ECS_CONTAINER_METADATA_URI_V4", &metadata.url()), ("HOSTWARD_TASK_IP", setting)]);
        task.ask(probe("10.0.2.100:8080")).expect(status);
        task.get("/").expect(200);
        assert!(metadata.asked().is_empty());
    }
}

#[test]
fn outside_ecs_and_with_an_endpoint_out_of_reach_it_simply_runs() {
    let nowhere = format!("http://{}{PATH}", App::nowhere());
    for (name, value) in
        [("AWS_EXECUTION_ENV", "AWS_ECS_FARGATE"), ("ECS_CONTAINER_METADATA_URI_V4", &*nowhere), ("HOME", "/")]
    {
        let task = Task::echo(&[(name, value)]);
        task.get("/").expect(200);
        task.admitted(probe(&task.hostward.address.to_string()));
    }
}

#[test]
fn nothing_that_the_endpoint_says_makes_a_name_a_probe_host() {
    let endpoint = App::start(|talk| match talk.request.target.as_str() {
        PATH => talk.reply(answer(
            "200 OK",
            "",
            &container(&network(&["evil.example", "10.0.2.100", "0.0.0.0/0"])).to_string(),
        )),
        _ => Then::Close,
    });
    let task = Task::echo(&[("ECS_CONTAINER_METADATA_URI_V4", &format!("{}{PATH}", endpoint.url()))]);
    becomes_a_probe_host(&task, "10.0.2.100");
    wire::get(task.hostward.address, "evil.example", "/").expect(421);
    wire::get(task.hostward.address, "10.9.9.9", "/").expect(421);
}
