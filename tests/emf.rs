//! Metrics for `CloudWatch`: lines that its specification calls valid, with everything that was counted in them, to the
//! last request before the end.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::support::app::answer;
use crate::support::metadata::{Metadata, container, network, wait_for_discovery};
use crate::support::{Task, python};

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/emf-schema.json");

/// Ends hostward in order: the lines with metrics, as they were written.
fn lines(task: &mut Task) -> Vec<Value> {
    task.hostward.terminate();
    assert!(task.hostward.wait(Duration::from_secs(10)).success());
    task.hostward.line(|line| line["_aws"].is_object());
    let lines = task.hostward.lines().into_iter().filter(|line| line["_aws"].is_object()).collect();
    for line in &lines {
        check(line);
    }
    lines
}

/// What the specification's text demands beyond its JSON schema, which Python checks below.
fn check(line: &Value) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let timestamp = u128::from(line["_aws"]["Timestamp"].as_u64().expect("milliseconds since 1970"));
    assert!(timestamp <= now && timestamp + 60_000 > now, "{timestamp}, but now is {now}");
    assert!(line.to_string().len() <= 1_000_000, "at most 1 MB");
    let [directive] = line["_aws"]["CloudWatchMetrics"].as_array().unwrap().as_slice() else { panic!("{line}") };
    assert_eq!(directive["Namespace"], "hostward");
    let mut names = BTreeSet::new();
    for set in directive["Dimensions"].as_array().unwrap() {
        let set = set.as_array().unwrap();
        assert!(set.len() <= 30, "at most 30 dimensions");
        for name in set {
            let value = line[name.as_str().unwrap()].as_str().unwrap_or_else(|| panic!("{name} has no text: {line}"));
            assert!(!value.is_empty() && value.len() <= 1024, "{value}");
        }
    }
    let metrics = directive["Metrics"].as_array().unwrap();
    assert!(!metrics.is_empty() && metrics.len() <= 100, "at most 100 metrics");
    for metric in metrics {
        let name = metric["Name"].as_str().unwrap();
        assert!(names.insert(name), "{name} twice");
        match &line[name] {
            Value::Number(_) => {}
            // The form of `PutMetricData`, whose bounds are the same.
            Value::Object(target) => {
                assert_eq!(target.keys().collect::<Vec<_>>(), ["Values", "Counts"], "{name}");
                let [values, counts] = ["Values", "Counts"].map(|key| target[key].as_array().expect(key));
                assert!(!values.is_empty() && values.len() <= 100 && values.len() == counts.len(), "{name}");
                assert!(values.iter().all(|value| value.as_f64().is_some_and(|value| value >= 0.0)), "{name}");
                assert!(counts.iter().all(|count| count.as_u64().is_some_and(|count| count > 0)), "{name}");
            }
            other => panic!("{name} is {other}"),
        }
    }
}

fn sum(lines: &[Value], name: &str) -> u64 {
    lines.iter().filter_map(|line| line[name].as_u64()).sum()
}

#[test]
fn the_last_line_tells_everything_that_was_not_told_before() {
    let settings =
        [("HOSTWARD_METRICS", "emf"), ("HOSTWARD_DRAIN_DELAY", "0s"), ("HOSTWARD_PROBE_HOSTS", "10.0.2.100")];
    let mut task = Task::start(&settings, |talk| {
        let status = if talk.request.target == "/busy" { "503 Service Unavailable" } else { "200 OK" };
        talk.reply(answer(status, "", "four"))
    });
    for _ in 0..20 {
        task.get("/").expect(200);
    }
    task.get("/busy").expect(503);
    task.ask("POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 5\r\n\r\nhello").expect(200);
    task.ask("GET / HTTP/1.1\r\nHost: 10.0.2.100\r\n\r\n").expect(200);
    task.ask("GET /busy HTTP/1.1\r\nHost: 10.0.2.100\r\n\r\n").expect(503);
    task.turned_away("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421);
    task.turned_away("nonsense\r\n\r\n", 400);
    let lines = lines(&mut task);
    for (name, count) in [
        ("Requests", 22),
        ("Responses5xx", 1),
        ("Responses4xx", 0),
        ("Probes", 2),
        ("ProbeFailures", 1),
        ("Refused", 1),
        ("Malformed", 1),
        ("BytesIn", 5),
        ("AppErrors", 0),
        ("ActiveRequests", 0),
        ("OpenConnections", 0),
    ] {
        assert_eq!(sum(&lines, name), count, "{name} in {lines:#?}");
    }
    for name in ["RequestDuration", "UpstreamDuration"] {
        let counts = lines.iter().filter_map(|line| line[name]["Counts"].as_array()).flatten();
        assert_eq!(counts.filter_map(Value::as_u64).sum::<u64>(), 22, "{name} in {lines:#?}");
    }
    assert_eq!(lines.last().unwrap()["refused"], json!({ "not_allowed": 1 }));
    let text = lines.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    let Some(valid) = python::read_metrics(&["emf", SCHEMA], &text) else { return };
    assert_eq!(valid, lines.len());
}

#[test]
fn both_ways_of_telling_work_together() {
    let settings =
        [("HOSTWARD_METRICS", "prometheus emf"), ("HOSTWARD_DRAIN_DELAY", "0s"), ("HOSTWARD_ACCESS_LOG", "off")];
    let mut task = Task::echo(&settings);
    task.get("/").expect(200);
    let metrics = crate::support::wire::get(task.hostward.admin, "localhost", "/metrics");
    metrics.expect(200);
    assert_eq!(sum(&lines(&mut task), "Requests"), 1);
}

#[test]
fn where_discovery_knows_the_place_it_becomes_the_dimensions() {
    let mut document = container(&network(&["10.0.2.100"]));
    document["Labels"] = json!({
        "com.amazonaws.ecs.cluster": "arn:aws:ecs:eu-west-1:111122223333:cluster/main",
        "com.amazonaws.ecs.task-definition-family": "shop",
        "com.amazonaws.ecs.task-definition-version": "7",
    });
    let metadata = Metadata::of(document);
    let settings = [
        ("HOSTWARD_METRICS", "emf"),
        ("HOSTWARD_DRAIN_DELAY", "0s"),
        ("ECS_CONTAINER_METADATA_URI_V4", &metadata.url()),
    ];
    let mut task = Task::echo(&settings);
    wait_for_discovery(&task);
    let line = lines(&mut task).pop().unwrap();
    let dimensions = &line["_aws"]["CloudWatchMetrics"][0]["Dimensions"];
    assert_eq!(dimensions, &json!([["ClusterName", "TaskDefinitionFamily"]]));
    assert_eq!((&line["ClusterName"], &line["TaskDefinitionFamily"]), (&json!("main"), &json!("shop")));

    let mut nowhere = Task::echo(&settings[..2]);
    let line = lines(&mut nowhere).pop().unwrap();
    assert_eq!(line["_aws"]["CloudWatchMetrics"][0]["Dimensions"], json!([[]]));
}

#[test]
fn unless_asked_for_there_are_no_such_lines() {
    let mut task = Task::echo(&[("HOSTWARD_DRAIN_DELAY", "0s")]);
    task.hostward.terminate();
    task.hostward.wait(Duration::from_secs(5));
    task.hostward.line(|line| line["msg"] == "stopped");
    assert!(!task.hostward.output().contains("_aws"), "{}", task.hostward.output());
}
