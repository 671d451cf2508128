//! hostward's own container definition: after the app's where the two must agree, as in the repository's
//! `task-definition.json` for the rest.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::document::Container;
use super::network::Network;
use super::report::Report;
use super::{NAME, Task};
use crate::config::Config;

/// What hostward's container is made of.
pub(super) struct Ours<'a> {
    pub(super) app: &'a Container,
    pub(super) image: Option<&'a str>,
    pub(super) network: Network,
    /// The app's port mapping, moved.
    pub(super) mapping: Value,
    pub(super) environment: Vec<(&'static str, String)>,
    pub(super) config: &'a Config,
}

/// Seconds that ECS waits after SIGTERM; on Fargate 120 at most.
const STOP_TIMEOUT: (u64, u64) = (60, 120);
/// Shares of a CPU, of 1024.
const CPU: u64 = 64;
/// MiB: kept free for it, and the most it may take.
const MEMORY: (u64, u64) = (32, 128);

/// Makes the container.
pub(super) fn build(ours: &Ours<'_>, task: &Task, report: &mut Report) -> Value {
    let app = &task["containerDefinitions"][ours.app.at];
    let placeholder = concat!("hostward:", env!("CARGO_PKG_VERSION"));
    if ours.image.is_none() {
        let platform = task.get("runtimePlatform").and_then(|platform| platform["cpuArchitecture"].as_str());
        let platform = platform.map_or_else(String::new, |name| format!(" for {name}"));
        report.remains(format!("image {placeholder} is a placeholder: push your own{platform} and give --image"));
    }
    let mut container = Map::new();
    let mut set = |name: &str, value: Value| container.insert(name.into(), value);
    set("name", NAME.into());
    set("image", ours.image.unwrap_or(placeholder).into());
    set("essential", true.into());
    if room_for_cpu(app, task, report) {
        set("cpu", CPU.into());
    }
    if room_for_memory(task, report) {
        set("memoryReservation", MEMORY.0.into());
        set("memory", MEMORY.1.into());
    }
    // ECS stops in the reverse order: hostward drains while the app still answers.
    set("dependsOn", json!([{ "containerName": ours.app.name, "condition": "START" }]));
    if ours.network == Network::Bridge {
        set("links", json!([ours.app.name]));
    }
    set("portMappings", json!([ours.mapping]));
    let variables = ours.environment.iter().map(|(name, value)| json!({ "name": name, "value": value }));
    set("environment", variables.collect());
    set(
        "healthCheck",
        json!({
            "command": ["CMD", "/hostward", "healthcheck"],
            "interval": 10,
            "timeout": 5,
            "retries": 3,
            "startPeriod": 10
        }),
    );
    set("stopTimeout", stop_timeout(ours.config, report).into());
    set("user", "65532:65532".into());
    set("readonlyRootFilesystem", true.into());
    set("linuxParameters", json!({ "capabilities": { "drop": ["ALL"] }, "initProcessEnabled": false }));
    set("ulimits", json!([{ "name": "nofile", "softLimit": 65535, "hardLimit": 65535 }]));
    if let Some(log) = log_configuration(app, report) {
        set("logConfiguration", log);
    }
    if ours.config.listen.port() < 1024 {
        report.remains(format!(
            "hostward listens on {} without any capability: where the host doesn't allow that, take a port from 1024",
            ours.config.listen.port()
        ));
    }
    Value::Object(container)
}

fn stop_timeout(config: &Config, report: &mut Report) -> u64 {
    let needed = config.drain_delay.saturating_add(config.shutdown_timeout).saturating_add(Duration::from_secs(5));
    if needed.as_secs() > STOP_TIMEOUT.1 {
        report.remains(format!(
            "HOSTWARD_DRAIN_DELAY and HOSTWARD_SHUTDOWN_TIMEOUT take longer than the {} s that Fargate waits",
            STOP_TIMEOUT.1
        ));
    }
    needed.as_secs().clamp(STOP_TIMEOUT.0, STOP_TIMEOUT.1)
}

/// Shares count against each other. Where the app has none, 64 would put it behind hostward; and a sum above the
/// task's isn't registered.
fn room_for_cpu(app: &Value, task: &Task, report: &mut Report) -> bool {
    if app["cpu"].as_u64().is_none_or(|cpu| cpu == 0) {
        return false;
    }
    let Some(whole) = size(task, "cpu", "vcpu") else { return task_says_nothing(task, "cpu") };
    let taken: u64 = containers(task).filter_map(|container| container["cpu"].as_u64()).sum();
    let room = taken.saturating_add(CPU) <= whole;
    if !room {
        report.remains(format!(
            "the containers take {taken} of the task's {whole} CPU units, so hostward got no share of its own: take {CPU} off the app's `cpu`, and give hostward `\"cpu\": {CPU}`"
        ));
    }
    room
}

fn room_for_memory(task: &Task, report: &mut Report) -> bool {
    // Without a size of the task, ECS wants one of the container.
    let Some(whole) = size(task, "memory", "gb") else { return task_says_nothing(task, "memory") };
    let reserved = |container: &Value| {
        let most = container["memory"].as_u64();
        most.or(container["memoryReservation"].as_u64()).unwrap_or_default()
    };
    let taken: u64 = containers(task).map(reserved).sum();
    let room = taken.saturating_add(MEMORY.1) <= whole;
    if !room {
        report.remains(format!(
            "the containers' limits take {taken} of the task's {whole} MiB, so hostward got no limit of its own and shares what they leave: take {most} off one, and give hostward `\"memory\": {most}`, or raise the task's `memory`",
            most = MEMORY.1
        ));
    }
    room
}

fn task_says_nothing(task: &Task, name: &str) -> bool {
    task.get(name).is_none_or(Value::is_null)
}

/// `"512"`, or `"0.5 GB"` and `".5 vCPU"`, which are times 1024.
fn size(task: &Task, name: &str, unit: &str) -> Option<u64> {
    let text = task.get(name)?.as_str()?.trim().to_ascii_lowercase();
    let Some(number) = text.strip_suffix(unit) else { return text.parse().ok() };
    let (whole, part) = number.trim().split_once('.').unwrap_or((number.trim(), ""));
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let digits = u32::try_from(part.len()).ok().filter(|digits| *digits < 10)?;
    let part: u64 = if part.is_empty() { 0 } else { part.parse().ok()? };
    whole.checked_mul(1024)?.checked_add(part * 1024 / 10_u64.pow(digits))
}

fn containers(task: &Task) -> impl Iterator<Item = &Value> {
    task.get("containerDefinitions").and_then(Value::as_array).into_iter().flatten()
}

/// The app's log configuration, without what would break hostward's lines, which are one JSON object each.
fn log_configuration(app: &Value, report: &mut Report) -> Option<Value> {
    let Some(mut log) = app.get("logConfiguration").filter(|log| !log.is_null()).cloned() else {
        report.remains("the app has no logConfiguration, so hostward has none: its log stays on the host".into());
        return None;
    };
    let driver = log["logDriver"].as_str().unwrap_or_default().to_owned();
    if driver == "awslogs" {
        if !log["options"].is_object() {
            log["options"] = json!({});
        }
        if let Some(options) = log["options"].as_object_mut() {
            // They would wait for a line that begins as the app's do, and join hostward's.
            for name in ["awslogs-multiline-pattern", "awslogs-datetime-format"] {
                if options.shift_remove(name).is_some() {
                    report.did(format!("left {name} out of hostward's log configuration: its lines are JSON"));
                }
            }
            if options.get("awslogs-stream-prefix").is_some_and(|prefix| *prefix == app["name"]) {
                options.insert("awslogs-stream-prefix".into(), NAME.into());
            }
            if !options.contains_key("mode") {
                options.insert("mode".into(), "non-blocking".into());
                options.entry("max-buffer-size").or_insert_with(|| "10m".into());
            }
        }
    }
    report.did(format!("hostward logs as the app does, with {driver}"));
    if driver == "awsfirelens" {
        report.remains("hostward's log lines go through the log router with the app's options: change there what names the app, such as a service or a source".into());
    }
    Some(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_or_has_the_unit_that_ecs_takes() {
        for (text, unit, expected) in [
            ("512", "gb", Some(512)),
            ("0.5GB", "gb", Some(512)),
            ("1 GB", "gb", Some(1024)),
            (".25 vCPU", "vcpu", Some(256)),
            ("2.vcpu", "vcpu", Some(2048)),
            ("1.5 vcpu", "vcpu", Some(1536)),
            ("", "gb", None),
            ("x GB", "gb", None),
            ("1.x GB", "gb", None),
            ("-1", "gb", None),
            ("99999999999999999999 GB", "gb", None),
            ("0.99999999999999999999 GB", "gb", None),
        ] {
            let task = json!({ "size": text });
            let found = size(task.as_object().unwrap(), "size", unit);
            assert_eq!(found, expected, "{text:?}");
        }
    }
}
