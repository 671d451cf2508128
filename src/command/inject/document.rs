//! A task definition as JSON: what is wrong with it, what inject needs to know of it, and the edits.
//!
//! Only what inject depends on is judged; fields that it doesn't know pass, in their order. So nothing here uses
//! `Map::remove`, which puts the last field into the gap.

use serde_json::{Map, Value, json};

use super::network::Network;
use super::report::Report;
use super::{NAME, Task};
use crate::config::{Protocol, show};

/// What `describe-task-definition` prints and `register-task-definition` doesn't take.
const READ_ONLY: [&str; 9] = [
    "taskDefinitionArn",
    "revision",
    "status",
    "requiresAttributes",
    "compatibilities",
    "registeredAt",
    "registeredBy",
    "deregisteredAt",
    "deleteRequestedAt",
];

/// What inject needs to know of a container.
pub(super) struct Container {
    /// Its index.
    pub(super) at: usize,
    pub(super) name: String,
    /// The TCP ports that could move to hostward.
    pub(super) published: Vec<Published>,
    /// All the ports that it listens on, as far as the document says.
    occupied: Vec<(u16, u16)>,
    /// Its `HOSTWARD_` variables.
    pub(super) environment: Vec<(String, String)>,
    pub(super) depends_on: Vec<String>,
    /// Whether it looks like a hostward.
    pub(super) asks_hostward: bool,
}

/// A published port.
pub(super) struct Published {
    /// The index of its mapping.
    pub(super) at: usize,
    pub(super) port: u16,
    /// By its `appProtocol`.
    pub(super) protocol: Protocol,
}

impl Container {
    pub(super) fn occupies(&self, port: u16) -> bool {
        self.occupied.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }
}

/// Reads a task definition, or what `aws ecs describe-task-definition` prints.
pub(super) fn read(text: &[u8], report: &mut Report) -> Result<Task, String> {
    // PowerShell's redirection begins with a byte order mark.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let value: Value =
        serde_json::from_slice(text).map_err(|error| format!("standard input is no JSON document: {error}"))?;
    let Value::Object(mut task) = value else {
        return Err("a task definition is a JSON object, and this is none; a list of containers goes into {\"containerDefinitions\": …}".into());
    };
    if task.contains_key("taskDefinition") {
        let tags = task.shift_remove("tags");
        let Some(Value::Object(inner)) = task.shift_remove("taskDefinition") else {
            return Err("taskDefinition: expected an object".into());
        };
        task = inner;
        if let Some(tags) = tags {
            keep_tags(&mut task, tags, report)?;
        }
    }
    if task.contains_key("ContainerDefinitions") {
        return Err("this is CloudFormation's spelling (ContainerDefinitions); inject reads what `aws ecs` takes and prints (containerDefinitions)".into());
    }
    let gone: Vec<&str> = READ_ONLY.into_iter().filter(|name| task.shift_remove(*name).is_some()).collect();
    if !gone.is_empty() {
        report.did(format!("took away what can't be registered: {}", gone.join(", ")));
    }
    Ok(task)
}

/// Names that begin with `aws:` are AWS's own, and a registration with one of them is refused.
fn keep_tags(task: &mut Task, tags: Value, report: &mut Report) -> Result<(), String> {
    let Value::Array(mut tags) = tags else { return Err("tags: expected a list".into()) };
    let all = tags.len();
    tags.retain(|tag| !tag["key"].as_str().is_some_and(|key| key.starts_with("aws:")));
    if tags.len() < all {
        report.did("took away the tags of AWS's own (aws:…)".into());
    }
    if !tags.is_empty() && !task.contains_key("tags") {
        task.insert("tags".into(), Value::Array(tags));
    }
    Ok(())
}

/// The network mode, if hostward can stand in it.
pub(super) fn network(task: &Task) -> Result<Network, String> {
    if let Some(family) = task.get("runtimePlatform").and_then(|platform| platform["operatingSystemFamily"].as_str())
        && family.starts_with("WINDOWS")
    {
        return Err(format!("the task runs on {}, and hostward is a Linux program", show(family)));
    }
    let fargate = match field(task, "requiresCompatibilities", "", "a list", Value::as_array)? {
        Some(list) => list.iter().any(|item| item == "FARGATE"),
        None => false,
    };
    match field(task, "networkMode", "", "text", Value::as_str)? {
        Some("awsvpc") => Ok(Network::Awsvpc),
        Some("host") => Err("networkMode is host: the app's port stays open on the instance whatever stands before it, and two tasks would want one port; use awsvpc".into()),
        Some("none") => Err("networkMode is none: nothing reaches this task".into()),
        _ if fargate => Err("requiresCompatibilities has FARGATE, which wants networkMode awsvpc".into()),
        Some("bridge") | None => Ok(Network::Bridge),
        Some(other) => Err(format!("networkMode is {}: expected awsvpc or bridge", show(other))),
    }
}

/// All containers, or what is wrong with one.
pub(super) fn containers(task: &Task) -> Result<Vec<Container>, String> {
    let list = field(task, "containerDefinitions", "", "a list", Value::as_array)?
        .ok_or("containerDefinitions is missing: this is no task definition")?;
    if list.is_empty() {
        return Err("containerDefinitions is empty: there is no app to stand before".into());
    }
    let mut containers: Vec<Container> = Vec::new();
    for (at, value) in list.iter().enumerate() {
        let path = format!("containerDefinitions[{at}]");
        let object = value.as_object().ok_or_else(|| format!("{path}: expected an object"))?;
        let container = container(at, object, &format!("{path}."))?;
        if containers.iter().any(|other| other.name == container.name) {
            return Err(format!("{path}.name: there is another container `{}`", container.name));
        }
        containers.push(container);
    }
    for name in ["cpu", "memory"] {
        field(task, name, "", "text, such as \"512\"", Value::as_str)?;
    }
    Ok(containers)
}

fn container(at: usize, object: &Map<String, Value>, path: &str) -> Result<Container, String> {
    let name = field(object, "name", path, "text", Value::as_str)?.filter(|name| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        (1..=255).contains(&name.len()) && name.bytes().all(allowed)
    });
    let name = name.ok_or_else(|| format!("{path}name: expected letters, digits, hyphens and underscores"))?;
    let mut published = Vec::new();
    let mut occupied = Vec::new();
    for (index, mapping) in objects(object, "portMappings", path)?.into_iter().enumerate() {
        let path = format!("{path}portMappings[{index}].");
        let port = |name: &str| {
            field(mapping, name, &path, "a port", |value| value.as_u64().and_then(|n| u16::try_from(n).ok()))
        };
        port("hostPort")?;
        let tcp = match field(mapping, "protocol", &path, "tcp or udp", Value::as_str)? {
            None | Some("tcp") => true,
            Some("udp") => false,
            Some(_) => return Err(format!("{path}protocol: expected tcp or udp")),
        };
        if let Some(range) = field(mapping, "containerPortRange", &path, "text", Value::as_str)? {
            let (first, last) =
                range.split_once('-').ok_or_else(|| format!("{path}containerPortRange: expected first-last"))?;
            let ends = first.parse().ok().zip(last.parse().ok());
            occupied.push(ends.ok_or_else(|| format!("{path}containerPortRange: expected two ports"))?);
            continue;
        }
        let port = port("containerPort")?
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("{path}containerPort: expected a port from 1 to 65535"))?;
        if tcp {
            occupied.push((port, port));
            let protocol = field(mapping, "appProtocol", &path, "text", Value::as_str)?;
            let http2 = matches!(protocol, Some("http2" | "grpc"));
            published.push(Published { at: index, port, protocol: if http2 { Protocol::H2c } else { Protocol::Http } });
        }
    }
    let mut environment = Vec::new();
    for (index, variable) in objects(object, "environment", path)?.into_iter().enumerate() {
        let path = format!("{path}environment[{index}].");
        let text = |name| field(variable, name, &path, "text", Value::as_str);
        if let (Some(name), Some(value)) = (text("name")?, text("value")?)
            && name.starts_with("HOSTWARD_")
        {
            environment.push((name.to_owned(), value.to_owned()));
        }
    }
    let mut depends_on = Vec::new();
    for (index, dependency) in objects(object, "dependsOn", path)?.into_iter().enumerate() {
        let name = field(dependency, "containerName", &format!("{path}dependsOn[{index}]."), "text", Value::as_str)?;
        depends_on.extend(name.map(str::to_owned));
    }
    for name in ["cpu", "memory", "memoryReservation"] {
        field(object, name, path, "a whole number", Value::as_u64)?;
    }
    let log = field(object, "logConfiguration", path, "an object", Value::as_object)?;
    if let Some(log) = log {
        let path = format!("{path}logConfiguration.");
        field(log, "logDriver", &path, "text", Value::as_str)?.ok_or_else(|| format!("{path}logDriver is missing"))?;
        field(log, "options", &path, "an object", Value::as_object)?;
    }
    let check = field(object, "healthCheck", path, "an object", Value::as_object)?;
    let command = check.and_then(|check| check.get("command")).and_then(Value::as_array);
    let checked = command.is_some_and(|words| words.iter().any(|word| word == "/hostward"));
    Ok(Container {
        at,
        name: name.to_owned(),
        published,
        occupied,
        asks_hostward: checked || !environment.is_empty(),
        environment,
        depends_on,
    })
}

/// A field of the right type; `null` is as good as none.
fn field<'a, T>(
    object: &'a Map<String, Value>,
    name: &str,
    path: &str,
    expected: &str,
    read: impl Fn(&'a Value) -> Option<T>,
) -> Result<Option<T>, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => read(value)
            .map(Some)
            .ok_or_else(|| format!("{path}{name} is {}: expected {expected}", show(&value.to_string()))),
    }
}

fn objects<'a>(object: &'a Map<String, Value>, name: &str, path: &str) -> Result<Vec<&'a Map<String, Value>>, String> {
    let list = field(object, name, path, "a list", Value::as_array)?;
    let items = list.into_iter().flatten().enumerate();
    items.map(|(at, item)| item.as_object().ok_or_else(|| format!("{path}{name}[{at}]: expected an object"))).collect()
}

/// Takes a port mapping off a container.
pub(super) fn take_mapping(task: &mut Task, container: usize, at: usize) -> Value {
    let Some(container) = task["containerDefinitions"][container].as_object_mut() else { return json!({}) };
    let mut taken = json!({});
    if let Some(Value::Array(mappings)) = container.get_mut("portMappings") {
        taken = mappings.remove(at);
        if mappings.is_empty() {
            container.shift_remove("portMappings");
        }
    }
    taken
}

/// Makes the app's mapping hostward's.
pub(super) fn move_mapping(mapping: &mut Value, port: u16, network: Network) {
    mapping["containerPort"] = port.into();
    // In awsvpc mode a host port is the container's or none. In bridge mode it is the instance's, and stays.
    if network == Network::Awsvpc && mapping.get("hostPort").is_some() {
        mapping["hostPort"] = port.into();
    }
}

/// Adds a container behind the others.
pub(super) fn push(task: &mut Task, container: Value) {
    if let Some(Value::Array(containers)) = task.get_mut("containerDefinitions") {
        containers.push(container);
    }
}

/// Gives hostward's container these variables and this image, and returns the names of what wasn't so before.
pub(super) fn update(
    task: &mut Task,
    container: usize,
    environment: &[(&'static str, String)],
    image: Option<&str>,
) -> Vec<String> {
    let ours = &mut task["containerDefinitions"][container];
    let mut changed = Vec::new();
    if let Some(image) = image
        && ours["image"] != image
    {
        ours["image"] = image.into();
        changed.push("image".into());
    }
    for (name, value) in environment {
        let found = ours["environment"].as_array_mut().and_then(|list| list.iter_mut().find(|it| it["name"] == *name));
        match found {
            Some(variable) if variable["value"].as_str().map(str::trim) == Some(value) => continue,
            Some(variable) => variable["value"] = value.as_str().into(),
            None => {
                if !ours["environment"].is_array() {
                    ours["environment"] = json!([]);
                }
                if let Some(list) = ours["environment"].as_array_mut() {
                    list.push(json!({ "name": name, "value": value }));
                }
            }
        }
        changed.push((*name).to_owned());
    }
    debug_assert!(ours["name"] == NAME, "only hostward's own container is changed");
    changed
}
