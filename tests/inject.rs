//! `hostward inject`: task definitions in the shapes that people publish, and those that it refuses. What ECS would
//! say of the results is judged here by references and ranges; types and enums are other tools' in CI.

mod refusals;

use std::fs::File;
use std::process::{Command as Process, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hostward::command::{Command, inject, parse};
use hostward::config::{Config, load};
use serde_json::{Value, json};

const ONE_CONTAINER: &str = include_str!("data/inject-one-container.json");
const LOG_ROUTER: &str = include_str!("data/inject-log-router.json");
const SECRETS: &str = include_str!("data/inject-secrets.json");
const BRIDGE: &str = include_str!("data/inject-bridge.json");
const SERVICE_CONNECT: &str = include_str!("data/inject-service-connect.json");

/// Each with the arguments that it needs, and the name of the app's container.
const PUBLISHED: [(&str, &str, &[&str]); 5] = [
    ("web", ONE_CONTAINER, &[]),
    ("app", LOG_ROUTER, &[]),
    ("billing", SECRETS, &["--set", "DRAIN_DELAY=60s", "--set", "HOSTWARD_SHUTDOWN_TIMEOUT=30s"]),
    ("intranet-app", BRIDGE, &[]),
    (
        "orders",
        SERVICE_CONNECT,
        &["--app", "orders", "--upstream", "http://127.0.0.1:3000", "--image", "example/hostward:1"],
    ),
];

struct Answer {
    code: u8,
    out: String,
    said: String,
}

impl Answer {
    fn task(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.said);
        serde_json::from_str(&self.out).unwrap()
    }

    fn ours(&self) -> Value {
        container(&self.task(), "hostward")
    }
}

fn ask_as_is(document: &str, arguments: &[&str]) -> Answer {
    let line = ["hostward", "inject"].iter().chain(arguments);
    let (Command::Inject(asked), flags) = parse(line).unwrap() else { panic!("not inject") };
    let (mut out, mut said) = (Vec::new(), Vec::new());
    let code = inject::run(&asked, &flags, &mut document.as_bytes(), &mut out, &mut said);
    Answer { code, out: String::from_utf8(out).unwrap(), said: String::from_utf8(said).unwrap() }
}

fn ask(document: &str, arguments: &[&str]) -> Answer {
    ask_as_is(document, &[&["--allowed-hosts", "www.example.com"], arguments].concat())
}

/// Asserts that nothing came out, and that the reason has these words.
fn refused(document: &Value, arguments: &[&str], words: &[&str]) {
    let answer = ask(&document.to_string(), arguments);
    assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{document}: {}", answer.said);
    for word in words {
        assert!(answer.said.contains(word), "no {word:?} in {}", answer.said);
    }
}

fn container(task: &Value, name: &str) -> Value {
    let list = task["containerDefinitions"].as_array().unwrap();
    list.iter().find(|container| container["name"] == name).unwrap_or_else(|| panic!("no {name} in {task}")).clone()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The loader's own judgement of what hostward's container will be given.
fn settings(ours: &Value) -> Config {
    let variables = ours["environment"].as_array().unwrap().iter();
    let pairs = variables.map(|it| (it["name"].as_str().unwrap().into(), it["value"].as_str().unwrap().into()));
    load(&hostward::config::Flags::default(), pairs, false).unwrap().config
}

/// A small task in awsvpc mode: each container has a name and TCP ports.
fn task(containers: &[(&str, &[u16])]) -> Value {
    let containers: Vec<Value> = containers
        .iter()
        .map(|(name, ports)| {
            let mappings: Vec<Value> = ports.iter().map(|port| json!({ "containerPort": port })).collect();
            json!({ "name": name, "image": "x", "portMappings": mappings })
        })
        .collect();
    json!({ "family": "f", "networkMode": "awsvpc", "containerDefinitions": containers })
}

/// What ECS asks of a task definition and neither types nor enums say.
fn assert_registrable(task: &Value) {
    let containers = task["containerDefinitions"].as_array().unwrap();
    let names: Vec<&str> = containers.iter().map(|container| container["name"].as_str().unwrap()).collect();
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let awsvpc = task["networkMode"] == "awsvpc";
    let (mut ports, mut port_names) = (Vec::new(), Vec::new());
    for container in containers {
        let name = &container["name"];
        for dependency in container["dependsOn"].as_array().into_iter().flatten() {
            let on = dependency["containerName"].as_str().unwrap();
            assert!(names.contains(&on) && name != on, "{name} depends on {on}");
            assert!(["START", "HEALTHY"].iter().any(|condition| dependency["condition"] == *condition), "{dependency}");
        }
        for link in container["links"].as_array().into_iter().flatten() {
            assert!(!awsvpc && names.contains(&link.as_str().unwrap()), "{name} is linked to {link}");
        }
        for mapping in container["portMappings"].as_array().into_iter().flatten() {
            let port = number(&mapping["containerPort"]);
            assert!((1..=65_535).contains(&port), "{mapping}");
            let protocol = mapping["protocol"].as_str().unwrap_or("tcp");
            if awsvpc {
                assert!(mapping.get("hostPort").is_none_or(|host| number(host) == port), "{mapping}");
                assert!(!ports.contains(&(protocol, port)), "two containers have {port}");
                ports.push((protocol, port));
            }
            if let Some(name) = mapping["name"].as_str() {
                assert!(!port_names.contains(&name), "two ports are called {name}");
                port_names.push(name);
            }
        }
        if let Some(check) = container.get("healthCheck") {
            assert!(["CMD", "CMD-SHELL"].iter().any(|word| check["command"][0] == *word), "{check}");
            for (field, least, most) in
                [("interval", 5, 300), ("timeout", 2, 60), ("retries", 1, 10), ("startPeriod", 0, 300)]
            {
                assert!(check.get(field).is_none_or(|n| (least..=most).contains(&number(n))), "{check}");
            }
        }
        assert!(container.get("stopTimeout").is_none_or(|seconds| (2..=120).contains(&number(seconds))), "{name}");
        if let (Some(memory), Some(reserved)) = (container["memory"].as_u64(), container["memoryReservation"].as_u64())
        {
            assert!(memory > reserved, "{name}");
        }
        if task.get("memory").is_none() {
            assert!(number(&container["memory"]) + number(&container["memoryReservation"]) > 0, "{name} has no memory");
        }
    }
    for (size, unit) in [("cpu", "vCPU"), ("memory", "GB")] {
        let Some(whole) = task[size].as_str() else { continue };
        let whole: u64 = match whole.strip_suffix(unit) {
            Some(units) => units.trim().parse::<u64>().unwrap() * 1024,
            None => whole.parse().unwrap(),
        };
        let taken = |container: &Value| {
            let reserved = if size == "memory" { number(&container["memoryReservation"]) } else { 0 };
            number(&container[size]).max(reserved)
        };
        assert!(containers.iter().map(taken).sum::<u64>() <= whole, "more {size} than the task has");
    }
    assert!(containers.iter().any(|container| container["essential"] != false));
}

#[test]
fn every_published_shape_becomes_a_task_that_ecs_can_take() {
    for (app, document, arguments) in PUBLISHED {
        let answer = ask(document, arguments);
        let task = answer.task();
        assert_registrable(&task);
        let ours = answer.ours();
        let config = settings(&ours);
        assert_eq!(ours["portMappings"][0]["containerPort"], config.listen.port(), "{app}");
        assert_eq!(ours["dependsOn"], json!([{ "containerName": app, "condition": "START" }]));
        assert_eq!(ours["healthCheck"]["command"], json!(["CMD", "/hostward", "healthcheck"]));
        assert_eq!((&ours["essential"], &ours["user"]), (&json!(true), &json!("65532:65532")));
        assert_eq!(ours["readonlyRootFilesystem"], true);
        assert_eq!(ours["linuxParameters"]["capabilities"], json!({ "drop": ["ALL"] }));
        assert!(ours["stopTimeout"].as_u64().unwrap() > (config.drain_delay + config.shutdown_timeout).as_secs());
        let of_app = container(&task, app);
        assert_eq!(ours["logConfiguration"]["logDriver"], of_app["logConfiguration"]["logDriver"], "{app}");
        let port = config.upstream.port().expect("a port");
        let left = of_app["portMappings"].as_array().into_iter().flatten();
        assert!(left.into_iter().all(|mapping| mapping["containerPort"] != port), "{app} still publishes {port}");
        for word in ["containerName `hostward`", &format!(" {}", config.listen.port()), "target group"] {
            assert!(answer.said.contains(word), "no {word:?} in {}", answer.said);
        }
    }
}

#[test]
fn a_second_run_gives_the_same_bytes() {
    for (app, document, arguments) in PUBLISHED {
        let once = ask(document, arguments).out;
        assert!(once.starts_with("{\n  \"") && once.ends_with("\n}\n"), "{once}");
        assert_eq!(ask(&once, arguments).out, once, "{app}");
        // What is there counts where nothing is asked for, and in the other form that AWS's tool prints.
        assert_eq!(ask_as_is(&once, &[]).out, once, "{app}");
        assert_eq!(ask_as_is(&format!("{{\"taskDefinition\": {once}}}"), &["--app", app]).out, once, "{app}");
    }
}

#[test]
fn everything_else_stays_as_it_was_and_in_its_order() {
    for (app, document, arguments) in PUBLISHED {
        let mut before: Value = serde_json::from_str(document).unwrap();
        if before.get("taskDefinition").is_some() {
            before = before["taskDefinition"].take();
        }
        let after = ask(document, arguments).task();
        let gone = [
            "taskDefinitionArn",
            "revision",
            "status",
            "requiresAttributes",
            "compatibilities",
            "registeredAt",
            "registeredBy",
        ];
        let mut expected: Vec<&str> = keys(&before).into_iter().filter(|key| !gone.contains(key)).collect();
        let found: Vec<&str> = keys(&after).into_iter().filter(|key| *key != "tags").collect();
        expected.retain(|key| *key != "tags");
        assert_eq!(found, expected, "{app}");
        for key in expected.iter().filter(|key| **key != "containerDefinitions") {
            assert_eq!(after[*key], before[*key], "{app}: {key}");
        }
        let list = before["containerDefinitions"].as_array().unwrap();
        assert_eq!(after["containerDefinitions"].as_array().unwrap().len(), list.len() + 1);
        for (at, container) in list.iter().enumerate() {
            let same = &after["containerDefinitions"][at];
            let unmoved = |value: &Value| {
                let mut fields = value.as_object().unwrap().clone();
                fields.shift_remove("portMappings");
                Value::Object(fields).to_string()
            };
            assert_eq!(unmoved(same), unmoved(container), "{app}");
            if container["name"] != app {
                assert_eq!(same.to_string(), container.to_string(), "{app}");
            }
        }
    }
}

#[test]
fn what_describe_prints_loses_its_read_only_fields_and_keeps_the_tags() {
    let answer = ask(ONE_CONTAINER, &[]);
    assert_eq!(answer.task()["tags"], json!([{ "key": "team", "value": "shop" }]));
    for name in ["revision", "registeredAt", "requiresAttributes"] {
        assert!(answer.said.contains(name) && !answer.out.contains(name), "{name}: {}", answer.said);
    }
    assert!(!answer.out.contains("cloudformation") && answer.said.contains("aws:"), "{}", answer.said);
    let bare: Value = serde_json::from_str(ONE_CONTAINER).unwrap();
    // With the byte order mark that PowerShell's redirection writes.
    let bare = ask(&format!("\u{feff}{}", bare["taskDefinition"]), &[]);
    assert_eq!(bare.task()["containerDefinitions"], answer.task()["containerDefinitions"]);
}

#[test]
fn all_nine_read_only_members_of_describe_are_taken_out() {
    let read_only = [
        ("taskDefinitionArn", json!("arn:aws:ecs:eu-west-1:123456789012:task-definition/f:7")),
        ("revision", json!(7)),
        ("status", json!("INACTIVE")),
        ("requiresAttributes", json!([{ "name": "ecs.capability.task-eni" }])),
        ("compatibilities", json!(["EC2", "FARGATE"])),
        ("registeredAt", json!("2026-01-02T03:04:05.678000+00:00")),
        ("registeredBy", json!("arn:aws:iam::123456789012:user/deploy")),
        ("deregisteredAt", json!(1_767_323_045.678)),
        ("deleteRequestedAt", json!(null)),
    ];
    let bare = task(&[("app", &[8000])]);
    let mut described = bare.clone();
    for (name, value) in &read_only {
        described[*name] = value.clone();
    }
    let expected = ask(&bare.to_string(), &[]);
    for document in [json!({ "taskDefinition": described, "tags": [] }), described] {
        let answer = ask(&document.to_string(), &[]);
        assert_eq!(answer.task(), expected.task());
        let line = answer.said.lines().find(|line| line.contains("can't be registered")).expect("a line that says so");
        for (name, _) in &read_only {
            assert!(line.contains(name) && !answer.out.contains(name), "{name}: {}", answer.said);
        }
    }
}

#[test]
fn the_port_mapping_moves_with_its_names() {
    let answer = ask(SERVICE_CONNECT, PUBLISHED[4].2);
    assert_eq!(
        answer.ours()["portMappings"],
        json!([{ "name": "orders-http", "containerPort": 8080, "hostPort": 8080, "protocol": "tcp", "appProtocol": "http" }])
    );
    assert_eq!(answer.ours()["image"], "example/hostward:1");
    let left = container(&answer.task(), "orders")["portMappings"].clone();
    assert_eq!((left.as_array().unwrap().len(), &left[0]["name"]), (1, &json!("orders-metrics")));
    assert!(container(&ask(ONE_CONTAINER, &[]).task(), "web").get("portMappings").is_none());
}

#[test]
fn hostward_takes_another_port_where_the_app_has_8080() {
    let answer = ask(LOG_ROUTER, &[]);
    let config = settings(&answer.ours());
    assert_eq!((config.listen.port(), config.upstream.to_string().as_str()), (8081, "http://127.0.0.1:8080"));
    assert!(answer.said.contains("8081, because `app` has 8080"), "{}", answer.said);
    let answer = ask(&task(&[("app", &[8080]), ("other", &[8081])]).to_string(), &["--app", "app"]);
    assert_eq!(answer.ours()["portMappings"][0]["containerPort"], 8082);
}

#[test]
fn an_app_whose_port_speaks_http2_is_asked_in_http2() {
    let mut document = task(&[("app", &[50051])]);
    document["containerDefinitions"][0]["portMappings"][0]["appProtocol"] = json!("grpc");
    let upstream = |answer: &Answer| settings(&answer.ours()).upstream.to_string();
    assert_eq!(upstream(&ask(&document.to_string(), &[])), "h2c://127.0.0.1:50051");
    let answer = ask(&document.to_string(), &["--upstream", "http://127.0.0.1:50051"]);
    assert_eq!(upstream(&answer), "http://127.0.0.1:50051");
    assert!(answer.said.contains("--upstream h2c://127.0.0.1:50051"), "{}", answer.said);
    document["containerDefinitions"][0]["portMappings"][0]["appProtocol"] = json!("http");
    assert_eq!(upstream(&ask(&document.to_string(), &[])), "http://127.0.0.1:50051");
}

/// Found by fuzzing.
#[test]
fn no_name_in_the_document_obeys_a_terminal() {
    let mut document = task(&[("app", &[8000])]);
    document["containerDefinitions"][0]["portMappings"][0]["name"] = json!("ht\u{7f}t\u{202e}p\u{1b}[2J\n");
    let said = ask(&document.to_string(), &[]).said;
    assert!(said.contains(r"`ht\u{7f}t\u{202e}p\u{1b}[2J\n`"), "{said}");
    assert!(!said.contains(['\u{7f}', '\u{202e}', '\u{1b}']), "{said}");
}

#[test]
fn bridge_mode_is_wired_with_links() {
    let answer = ask(BRIDGE, &[]);
    let (ours, task) = (answer.ours(), answer.task());
    assert_eq!(ours["links"], json!(["intranet-app"]));
    assert_eq!(ours["portMappings"], json!([{ "hostPort": 0, "containerPort": 8080, "protocol": "tcp" }]));
    let config = settings(&ours);
    assert_eq!(config.upstream.to_string(), "http://intranet-app:8080");
    // A health check names the instance's IP, which is private.
    let instance: std::net::IpAddr = "10.0.2.100".parse().unwrap();
    assert!(config.rules.probes.networks.iter().any(|network| network.contains(&instance)));
    assert!(answer.said.contains("`links`") && answer.said.contains("HOSTWARD_PROBE_HOSTS"), "{}", answer.said);
    assert_eq!(container(&task, "intranet-app")["links"], json!(["redis"]));
    let document: Value = serde_json::from_str(BRIDGE).unwrap();
    refused(&document, &["--upstream", "http://localhost:3000"], &["http://intranet-app:3000"]);
    let narrow = ask(BRIDGE, &["--set", "PROBE_HOSTS=self,10.1.0.0/16"]);
    assert_eq!(settings(&narrow.ours()).rules.probes.networks.len(), 1);
}

#[test]
fn the_log_configuration_is_the_apps_without_what_would_join_lines() {
    let options = |document, arguments: &[&str]| ask(document, arguments).ours()["logConfiguration"]["options"].clone();
    let secrets = options(SECRETS, &[]);
    assert_eq!(keys(&secrets), ["awslogs-group", "awslogs-region", "awslogs-stream-prefix", "mode"]);
    assert_eq!((&secrets["awslogs-stream-prefix"], &secrets["mode"]), (&json!("hostward"), &json!("blocking")));
    let one = options(ONE_CONTAINER, &[]);
    assert_eq!((&one["awslogs-stream-prefix"], &one["mode"]), (&json!("ecs"), &json!("non-blocking")));
    let routed = ask(LOG_ROUTER, &[]);
    assert_eq!(routed.ours()["logConfiguration"], container(&routed.task(), "app")["logConfiguration"]);
    let without = ask(&task(&[("app", &[8000])]).to_string(), &[]);
    assert!(without.ours().get("logConfiguration").is_none() && without.said.contains("logConfiguration"));
}

#[test]
fn a_task_without_room_is_told_and_not_overfilled() {
    let mut full = task(&[("app", &[8000])]);
    full["cpu"] = json!("256");
    full["memory"] = json!("512");
    full["containerDefinitions"][0]["cpu"] = json!(256);
    full["containerDefinitions"][0]["memory"] = json!(512);
    let answer = ask(&full.to_string(), &[]);
    assert_registrable(&answer.task());
    assert!(answer.ours().get("memory").is_none() && answer.ours().get("cpu").is_none());
    assert!(answer.said.contains("512 of the task's 512 MiB") && answer.said.contains("256 CPU"), "{}", answer.said);
    full["cpu"] = json!("512");
    full["memory"] = json!("1 GB");
    let answer = ask(&full.to_string(), &[]);
    assert_eq!((&answer.ours()["cpu"], &answer.ours()["memory"]), (&json!(64), &json!(128)));
    assert!(!answer.said.contains("MiB"), "{}", answer.said);
}

#[test]
fn a_hostward_that_is_there_is_changed_only_as_asked() {
    let once = ask(ONE_CONTAINER, &[]);
    let arguments = ["--allowed-hosts", "a.example", "--set", "IDLE_TIMEOUT=90s", "--image", "r/hostward:2"];
    let again = ask_as_is(&once.out, &arguments);
    let ours = again.ours();
    let config = settings(&ours);
    assert_eq!((config.rules.allowed[0].to_string().as_str(), config.idle_timeout.as_secs()), ("a.example", 90));
    assert_eq!((&ours["image"], config.upstream.port()), (&json!("r/hostward:2"), Some(8000)));
    assert_eq!(ask_as_is(&again.out, &["--set", "IDLE_TIMEOUT="]).out, again.out);
    assert!(again.said.contains("changed its image, HOSTWARD_ALLOWED_HOSTS, HOSTWARD_IDLE_TIMEOUT"), "{}", again.said);
    assert_eq!(ask_as_is(&again.out, &arguments).out, again.out);

    let document: Value = serde_json::from_str(&once.out).unwrap();
    refused(&document, &["--set", "IDLE_TIMEOUT=90"], &["HOSTWARD_IDLE_TIMEOUT", "90s"]);
    refused(&document, &["--listen", ":9000"], &["8080", "9000"]);
    refused(&document, &["--app", "db"], &["no container `db`", "`web`"]);
    refused(&document, &["--app", "hostward"], &["no container `hostward`"]);
    let mut published = document;
    published["containerDefinitions"][0]["portMappings"] = json!([{ "containerPort": 8000 }]);
    assert!(ask(&published.to_string(), &[]).said.contains("go past hostward"));
}

/// By its health check, in either form of `environment`: missing, `null`, empty, and with another program's variables.
#[test]
fn a_hostward_without_settings_is_known_by_its_health_check() {
    let once: Value = serde_json::from_str(&ask(ONE_CONTAINER, &[]).out).unwrap();
    let ours = once["containerDefinitions"].as_array().unwrap().iter().position(|it| it["name"] == "hostward").unwrap();
    let other = json!({ "name": "TZ", "value": "UTC" });
    for environment in [None, Some(Value::Null), Some(json!([])), Some(json!([other]))] {
        let mut document = once.clone();
        let object = document["containerDefinitions"][ours].as_object_mut().unwrap();
        object.shift_remove("environment");
        if let Some(environment) = &environment {
            object.insert("environment".into(), environment.clone());
        }
        let answer = ask(&document.to_string(), &["--upstream", "http://127.0.0.1:8000"]);
        let changed = answer.ours();
        let config = settings(&changed);
        assert_eq!(
            (config.rules.allowed[0].to_string().as_str(), config.upstream.port()),
            ("www.example.com", Some(8000))
        );
        let kept = changed["environment"].as_array().unwrap().iter().filter(|it| **it == other).count();
        assert_eq!(kept, usize::from(environment == Some(json!([other]))), "{changed}");
        assert!(answer.said.contains("changed its HOSTWARD_ALLOWED_HOSTS, HOSTWARD_UPSTREAM"), "{}", answer.said);
        let mut rest = answer.task();
        rest["containerDefinitions"][ours]["environment"] = once["containerDefinitions"][ours]["environment"].clone();
        assert_eq!(rest, once, "nothing else changes");

        // Without the check as well, nothing says that it is one.
        document["containerDefinitions"][ours]["healthCheck"] = json!({ "command": ["CMD", "curl", "localhost"] });
        refused(&document, &["--upstream", "http://127.0.0.1:8000"], &["isn't hostward"]);
    }
}

/// The program itself: its environment is another hostward's business.
#[test]
fn the_program_needs_no_settings_of_its_own() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/inject-one-container.json");
    let expected = ask(ONE_CONTAINER, &[]);
    for environment in
        [None, Some(("HOSTWARD_IDLE_TIMEOUT", "wrong")), Some(("HOSTWARD_UPSTREAM", "http://127.0.0.1:1"))]
    {
        let mut child = Process::new(env!("CARGO_BIN_EXE_hostward"))
            .args(["inject", "--allowed-hosts", "www.example.com"])
            .env_clear()
            .envs(environment)
            .stdin(File::open(path).unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // What it writes fits into a pipe.
        let deadline = Instant::now() + Duration::from_secs(10);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                child.kill().ok();
            }
            thread::sleep(Duration::from_millis(2));
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected.out, "{environment:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), expected.said);
        assert_eq!(output.status.code(), Some(0));
    }
}
