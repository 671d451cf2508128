//! `task-definition.json` and its likes in `docker/iac` against the program: what they set exists and is accepted, and
//! ports, times and sizes go together. `tests/iac/validate.py` judges them by AWS's own models.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use hostward::config::SETTINGS;
use serde_json::{Value, json};

use crate::support::hostward::Hostward;
use crate::support::wire::text;

const TASK_DEFINITION: &str = include_str!("../task-definition.json");
const README: &str = include_str!("../README.md");

/// The same second container in other words.
const ELSEWHERE: [&str; 4] = ["cloudformation.yaml", "kubernetes.yaml", "cdk/app.py", "terraform/main.tf"];

/// What ECS allows on Fargate, in seconds.
const STOP_TIMEOUT: std::ops::RangeInclusive<u64> = 2..=120;

fn task() -> Value {
    serde_json::from_str(TASK_DEFINITION).expect("JSON")
}

fn containers(task: &Value) -> &[Value] {
    task["containerDefinitions"].as_array().expect("containers")
}

fn container<'a>(task: &'a Value, name: &str) -> &'a Value {
    containers(task).iter().find(|container| container["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

/// What the hostward of the task gets to see.
fn environment(task: &Value) -> Vec<(String, String)> {
    let list = container(task, "hostward")["environment"].as_array().expect("an environment");
    let part = |entry: &Value, key: &str| entry[key].as_str().expect("a string").to_owned();
    list.iter().map(|entry| (part(entry, "name"), part(entry, "value"))).collect()
}

/// A command of the program in the task's environment.
fn run(arguments: &[&str]) -> String {
    let environment = environment(&task());
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
    let output = Hostward::run(arguments, &environment);
    assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// What a setting comes to in the task.
fn setting(variable: &str) -> String {
    let all: Value = serde_json::from_str(&run(&["config", "--format", "json"])).expect("JSON");
    all[variable]["value"].as_str().unwrap_or_else(|| panic!("no {variable}")).to_owned()
}

fn duration(variable: &str) -> Duration {
    humantime::parse_duration(&setting(variable)).expect("a duration")
}

fn port(address: &str) -> u64 {
    address.rsplit_once(':').expect("a port").1.parse().expect("a number")
}

/// Every `HOSTWARD_…` in the text.
fn variables(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
    words.filter(|word| word.starts_with("HOSTWARD_")).collect()
}

/// Whether `part` says nothing that `whole` doesn't.
fn is_part(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            part.iter().all(|(key, value)| whole.get(key).is_some_and(|in_whole| is_part(value, in_whole)))
        }
        _ => part == whole,
    }
}

#[test]
fn every_variable_of_the_task_is_a_setting_and_its_value_is_accepted() {
    let settings: BTreeSet<&str> = SETTINGS.iter().map(|setting| setting.variable).collect();
    let used = variables(TASK_DEFINITION);
    assert!(used.contains("HOSTWARD_ALLOWED_HOSTS"), "{used:?}");
    assert!(used.is_subset(&settings), "{used:?}");
    assert!(run(&["check"]).contains("configuration is good"));
}

#[test]
fn the_other_forms_set_the_same_variables() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/iac");
    // What Kubernetes would set by itself, in the comment that says why it must not.
    let by_itself = BTreeSet::from(["HOSTWARD_PORT"]);
    for file in ELSEWHERE {
        let text = fs::read_to_string(directory.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let set: BTreeSet<&str> = variables(&text).difference(&by_itself).copied().collect();
        assert_eq!(set, variables(TASK_DEFINITION), "{file}");
        for (_, value) in environment(&task()) {
            assert!(text.contains(&value), "{file} has no {value}");
        }
    }
}

#[test]
fn the_task_asks_the_program_for_its_health() {
    let task = task();
    let command = &container(&task, "hostward")["healthCheck"]["command"];
    assert_eq!(*command, json!(["CMD", "/hostward", "healthcheck"]));
    let output = Hostward::run(&["healthcheck", "--help"], &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn the_task_publishes_the_port_that_hostward_listens_on_and_no_other() {
    let task = task();
    let publishing: Vec<&Value> = containers(&task).iter().filter(|one| one.get("portMappings").is_some()).collect();
    assert_eq!(publishing, [container(&task, "hostward")]);
    let [mapping] = publishing[0]["portMappings"].as_array().expect("a list").as_slice() else {
        panic!("one port: {publishing:?}");
    };
    assert_eq!(mapping["containerPort"], port(&setting("HOSTWARD_LISTEN")));
    assert_eq!(mapping["appProtocol"], "http");
    assert!(mapping["name"].is_string(), "Service Connect finds a port by its name: {mapping}");

    let upstream = setting("HOSTWARD_UPSTREAM");
    assert!(upstream.starts_with("http://127.0.0.1:"), "the app is in the same network namespace: {upstream}");
    let taken = [port(&setting("HOSTWARD_LISTEN")), port(&setting("HOSTWARD_ADMIN_LISTEN"))];
    assert!(!taken.contains(&port(&upstream)), "{upstream} is hostward's own port");
}

#[test]
fn hostward_stops_before_the_app_and_has_the_time_that_it_takes() {
    let task = task();
    // ECS stops in the reverse order of this.
    assert_eq!(container(&task, "hostward")["dependsOn"], json!([{ "containerName": "app", "condition": "START" }]));
    assert_eq!(container(&task, "app").get("dependsOn"), None);
    for one in containers(&task) {
        let bound = one["stopTimeout"].as_u64().expect("a number");
        assert!(STOP_TIMEOUT.contains(&bound), "{one}");
        let stopping = duration("HOSTWARD_DRAIN_DELAY") + duration("HOSTWARD_SHUTDOWN_TIMEOUT");
        assert!(one["name"] != "hostward" || Duration::from_secs(bound) > stopping, "{bound} s against {stopping:?}");
    }
}

#[test]
fn names_and_sizes_of_the_task_fit() {
    let task = task();
    let names: BTreeSet<&str> = containers(&task).iter().filter_map(|one| one["name"].as_str()).collect();
    assert_eq!(names, BTreeSet::from(["app", "hostward"]));
    for size in ["cpu", "memory"] {
        let whole: u64 = task[size].as_str().expect("text, for a task").parse().expect("a number");
        let parts = containers(&task).iter().map(|one| one[size].as_u64().expect("a number, for a container"));
        assert_eq!(parts.sum::<u64>(), whole, "{size}");
    }
    let ours = container(&task, "hostward");
    assert!(ours["memoryReservation"].as_u64() < ours["memory"].as_u64(), "{ours}");
}

#[test]
fn hostward_may_do_nothing_in_the_task_that_it_need_not() {
    let task = task();
    let ours = container(&task, "hostward");
    assert_eq!(ours["user"], "65532:65532");
    assert_eq!(ours["readonlyRootFilesystem"], true);
    assert_eq!(ours["linuxParameters"]["capabilities"], json!({ "drop": ["ALL"] }));
    for one in containers(&task) {
        // Accounts differ in the default, and a driver that blocks makes a program wait for CloudWatch.
        let options = &one["logConfiguration"]["options"];
        assert_eq!(options["mode"], "non-blocking", "{one}");
        assert!(options["max-buffer-size"].is_string(), "{one}");
    }
}

#[test]
fn what_the_readme_shows_of_the_task_is_in_it() {
    let blocks = README.split("```").skip(1).step_by(2);
    let mut shown = blocks.filter(|block| block.trim_start().starts_with('{') && block.contains("\"containerName\""));
    let block = shown.next().expect("hostward's part of the task definition in the README");
    // The numbers at the ends of lines are for the list below the block.
    let lines = block.lines().map(|line| match line.trim_end().rsplit_once('(') {
        Some((before, number)) if number.len() == 2 && number.ends_with(')') => before,
        _ => line,
    });
    let part: Value = serde_json::from_str(&lines.collect::<String>()).expect("JSON with numbers at its lines' ends");
    let task = task();
    assert!(is_part(&part, container(&task, "hostward")), "the README has {part}");
}
