//! What `inject` writes is the task definition that it was given, with hostward before the app, and again the same; or it
//! writes nothing and says why.
//!
//! An input is a document. A line before it that begins with `#` holds arguments, such as `#app=web IDLE_TIMEOUT=90s`.

#![no_main]

use hostward::command::inject::{self, Inject};
use hostward::config::{Config, Flags, load};
use hostward_fuzz::first_line;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

fuzz_target!(|input: &[u8]| {
    let (arguments, document) = if input.starts_with(b"#") { first_line(&input[1..]) } else { (&b""[..], input) };
    let mut asked = Inject { app: None, image: None, set: Vec::new() };
    let arguments = String::from_utf8_lossy(arguments);
    let pairs = arguments.split_ascii_whitespace().filter_map(|pair| pair.split_once('='));
    for (name, value) in pairs.filter(|(name, _)| !name.is_empty()) {
        match name {
            // clap gives no empty ones.
            "app" | "image" if value.is_empty() => {}
            "app" => asked.app = Some(value.into()),
            "image" => asked.image = Some(value.into()),
            name => asked.set.push((format!("HOSTWARD_{name}"), value.into())),
        }
    }
    let mut flags = Flags::default();
    flags.set("HOSTWARD_ALLOWED_HOSTS", "www.example.com".into());
    let Some(once) = run(&asked, &flags, document) else { return };

    let task: Value = serde_json::from_str(&once).expect("what is written is JSON");
    let given: Value = serde_json::from_slice(document.strip_prefix(b"\xef\xbb\xbf").unwrap_or(document))
        .expect("what is no JSON is refused");
    check(&given, &task, &asked);
    assert_eq!(run(&asked, &flags, once.as_bytes()).as_ref(), Some(&once), "a second run changes something");
    // What is there counts where nothing is asked for.
    let nothing = Inject { app: None, image: None, set: Vec::new() };
    assert_eq!(run(&nothing, &Flags::default(), once.as_bytes()).as_ref(), Some(&once));
});

fn run(asked: &Inject, flags: &Flags, mut document: &[u8]) -> Option<String> {
    let (mut out, mut said) = (Vec::new(), Vec::new());
    let code = inject::run(asked, flags, &mut document, &mut out, &mut said);
    let said = String::from_utf8(said).expect("what is said is text");
    assert!(!said.chars().any(|c| c.is_control() && c != '\n'), "{said:?}");
    assert!(!said.trim().is_empty(), "nothing was said");
    match code {
        0 => Some(String::from_utf8(out).expect("JSON is text")),
        2 => {
            assert!(out.is_empty() && said.lines().all(|line| line.starts_with("hostward inject: ")), "{said}");
            None
        }
        other => panic!("exit code {other}: {said}"),
    }
}

type Object = Map<String, Value>;

fn containers(task: &Value) -> Vec<&Object> {
    let list = task["containerDefinitions"].as_array().expect("a list of containers");
    list.iter().map(|container| container.as_object().expect("a container")).collect()
}

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

fn check(given: &Value, task: &Value, asked: &Inject) {
    let wrapped = given.get("taskDefinition").is_some();
    let before = given.get("taskDefinition").unwrap_or(given);
    let (was, is) = (before.as_object().expect("an object"), task.as_object().expect("an object"));
    // Nothing but the list of containers changes, and what can't be registered goes.
    for (name, value) in was {
        let gone = READ_ONLY.contains(&name.as_str());
        if name != "containerDefinitions" && !(gone || (name == "tags" && wrapped)) {
            assert_eq!(is.get(name), Some(value), "{name}");
        }
        assert!(!gone || !is.contains_key(name), "{name}");
    }
    assert!(is.keys().all(|name| was.contains_key(name) || (name == "tags" && wrapped)));

    let (old, new) = (containers(before), containers(task));
    let ours: Vec<_> = new.iter().filter(|container| container["name"] == "hostward").collect();
    let [ours] = ours[..] else { panic!("{} hostwards", ours.len()) };
    let config = settings(ours);
    assert_ne!(config.listen.port(), 0);
    if old.iter().any(|container| container["name"] == "hostward") {
        assert_eq!(old.len(), new.len());
        for (old, new) in old.iter().zip(&new).filter(|(old, _)| old["name"] != "hostward") {
            assert_eq!(old, new);
        }
        return;
    }

    assert_eq!(old.len() + 1, new.len());
    assert_eq!(new.last().map(|container| &container["name"]), Some(&Value::from("hostward")), "it comes last");
    let app = ours["dependsOn"][0]["containerName"].as_str().expect("the app's name");
    assert!(asked.app.as_ref().is_none_or(|name| name == app));
    let mut taken = 0;
    for (old, new) in old.iter().zip(&new) {
        let same = |name: &str| old.get(name) == new.get(name);
        assert!(old.keys().chain(new.keys()).all(|name| name == "portMappings" || same(name)), "{:?}", old["name"]);
        if !same("portMappings") {
            assert_eq!(old["name"], app, "another container's ports");
            let before = old["portMappings"].as_array().map_or(0, Vec::len);
            taken += before - new.get("portMappings").and_then(Value::as_array).map_or(0, Vec::len);
        }
    }
    assert_eq!(taken, 1, "one port moves");
    let [mapping] = ours["portMappings"].as_array().expect("a list").as_slice() else { panic!("one port moves") };
    assert_eq!(mapping["containerPort"], config.listen.port());
    assert_eq!(ours["healthCheck"]["command"], serde_json::json!(["CMD", "/hostward", "healthcheck"]));
    let stop = ours["stopTimeout"].as_u64().expect("a number");
    assert!((2..=120).contains(&stop));
    if task["networkMode"] == "awsvpc" {
        check_ports(&new);
    }
}

/// The containers of a task in awsvpc mode share their ports.
fn check_ports(containers: &[&Object]) {
    let mut seen: Vec<(&Value, u64)> = Vec::new();
    for container in containers {
        for mapping in container.get("portMappings").and_then(Value::as_array).into_iter().flatten() {
            let tcp = mapping.get("protocol").is_none_or(|protocol| protocol.is_null() || protocol == "tcp");
            let Some(port) = mapping["containerPort"].as_u64().filter(|_| tcp) else { continue };
            let ours = container["name"] == "hostward";
            let clash = seen.iter().any(|(name, other)| *other == port && (ours || *name == "hostward"));
            assert!(!clash, "hostward and another container have port {port}");
            seen.push((&container["name"], port));
        }
    }
}

/// The loader's own judgement of what hostward's container will be given.
fn settings(ours: &Object) -> Config {
    let variables = ours["environment"].as_array().expect("a list of variables").iter();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let pairs = variables.map(|it| (text(&it["name"]).into(), text(&it["value"]).into()));
    load(&Flags::default(), pairs, false).unwrap_or_else(|mistakes| panic!("{:?}", mistakes.list)).config
}
