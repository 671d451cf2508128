//! What `inject` refuses: with the reason, and nothing on standard output.

use serde_json::{Value, json};

use super::{ask, ask_as_is, refused, settings, task};

#[test]
fn it_refuses_what_it_cannot_put_itself_before() {
    let two = task(&[("app", &[8000]), ("admin", &[9000])]);
    refused(&two, &[], &["`app`, `admin`", "--app app"]);
    refused(&two, &["--app", "web"], &["no container `web`", "`app`, `admin`"]);
    refused(&task(&[("app", &[])]), &[], &["no container publishes"]);
    refused(&task(&[("app", &[]), ("db", &[5432])]), &["--app", "app"], &["`app` publishes no TCP port"]);
    refused(&task(&[("app", &[8000, 9000])]), &[], &["8000 and 9000", "--upstream http://127.0.0.1:8000"]);
    refused(
        &task(&[("app", &[8000, 9000])]),
        &["--set", "UPSTREAM=http://127.0.0.1:1"],
        &["none of the ports that container `app` publishes", "http://127.0.0.1:1"],
    );
    refused(&task(&[("hostward", &[8000])]), &[], &["isn't hostward"]);
    for (mode, word) in [("host", "host"), ("none", "none"), ("default", "default"), ("vpc", "awsvpc")] {
        let mut task = task(&[("app", &[8000])]);
        task["networkMode"] = mode.into();
        refused(&task, &[], &["networkMode", word]);
    }
    let mut fargate = task(&[("app", &[8000])]);
    fargate["requiresCompatibilities"] = json!(["FARGATE"]);
    assert_eq!(ask(&fargate.to_string(), &[]).code, 0);
    fargate["networkMode"] = Value::Null;
    refused(&fargate, &[], &["FARGATE", "awsvpc"]);
    for (list, mode, code) in [
        (json!(["EC2", "FARGATE"]), Value::Null, 2),
        (json!(["FARGATE", "EC2"]), Value::Null, 2),
        (json!(["EC2", "FARGATE"]), json!("bridge"), 2),
        (json!(["EC2", "FARGATE"]), json!("awsvpc"), 0),
        (json!(["EC2"]), Value::Null, 0),
        (json!([]), Value::Null, 0),
    ] {
        (fargate["requiresCompatibilities"], fargate["networkMode"]) = (list, mode);
        assert_eq!(ask(&fargate.to_string(), &[]).code, code, "{fargate}");
    }
    (fargate["requiresCompatibilities"], fargate["networkMode"]) = (json!(["EC2", "FARGATE"]), Value::Null);
    refused(&fargate, &[], &["FARGATE", "awsvpc"]);
    if let Some(object) = fargate.as_object_mut() {
        object.shift_remove("networkMode");
    }
    refused(&fargate, &[], &["FARGATE", "awsvpc"]);
    let mut windows = task(&[("app", &[8000])]);
    windows["runtimePlatform"] = json!({ "operatingSystemFamily": "WINDOWS_SERVER_2022_CORE" });
    refused(&windows, &[], &["Linux"]);
}

#[test]
fn it_refuses_a_port_that_another_container_has() {
    let both = task(&[("app", &[8000]), ("other", &[8080])]);
    refused(&both, &["--app", "app"], &["port 8080", "`other`", "--listen :8081"]);
    assert_eq!(ask(&both.to_string(), &["--app", "app", "--listen", ":8081"]).code, 0);
    refused(&task(&[("app", &[8000])]), &["--set", "LISTEN=[::]:8000"], &["port 8000", "`app`"]);
    refused(&task(&[("app", &[8000]), ("other", &[9797])]), &["--app", "app"], &["9797", "`other`"]);
    let mut range = task(&[("app", &[8000]), ("media", &[])]);
    range["containerDefinitions"][1]["portMappings"] = json!([{ "containerPortRange": "8070-8090" }]);
    refused(&range, &[], &["port 8080", "`media`", "--listen :8091"]);
    // In bridge mode each container has ports of its own.
    let mut apart = both;
    apart["networkMode"] = "bridge".into();
    assert_eq!(ask(&apart.to_string(), &["--app", "app"]).code, 0);
    for unreachable in ["127.0.0.1:8081", ":0"] {
        refused(&task(&[("app", &[8000])]), &["--listen", unreachable], &["HOSTWARD_LISTEN"]);
    }
}

#[test]
fn it_refuses_what_is_no_task_definition() {
    for (text, word) in [
        ("", "JSON"),
        ("{", "JSON"),
        ("family: f", "JSON"),
        ("\u{0}", "JSON"),
        ("[]", "object"),
        ("null", "object"),
        ("{}", "containerDefinitions is missing"),
        ("{\"taskDefinition\": []}", "taskDefinition"),
        ("{\"ContainerDefinitions\": []}", "CloudFormation"),
        ("{\"containerDefinitions\": []}", "empty"),
        ("{\"containerDefinitions\": {}}", "expected a list"),
        ("{\"containerDefinitions\": [1]}", "containerDefinitions[0]: expected an object"),
        ("{\"containerDefinitions\": [{}]}", "containerDefinitions[0].name"),
        ("{\"containerDefinitions\": [{\"name\": 1}]}", "containerDefinitions[0].name is 1"),
        ("{\"containerDefinitions\": [{\"name\": \"a/b\"}]}", "containerDefinitions[0].name"),
        ("{\"containerDefinitions\": [{\"name\": \"a\"}, {\"name\": \"a\"}]}", "another container `a`"),
        ("{\"memory\": 512, \"containerDefinitions\": [{\"name\": \"a\"}]}", "memory is 512"),
        ("{\"networkMode\": [], \"containerDefinitions\": [{\"name\": \"a\"}]}", "networkMode is []"),
    ] {
        let answer = ask(text, &[]);
        assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{text}");
        assert!(answer.said.contains(word), "{text}: no {word:?} in {}", answer.said);
    }
    for (field, value) in [
        ("portMappings", json!(8000)),
        ("portMappings", json!(["8000:8000"])),
        ("portMappings", json!([{}])),
        ("portMappings", json!([{ "containerPort": "8000" }])),
        ("portMappings", json!([{ "containerPort": 65_536 }])),
        ("portMappings", json!([{ "containerPort": 0 }])),
        ("portMappings", json!([{ "containerPort": 80.5 }])),
        ("portMappings", json!([{ "containerPort": 80, "hostPort": -1 }])),
        ("portMappings", json!([{ "containerPort": 80, "protocol": "http" }])),
        ("portMappings", json!([{ "containerPortRange": "80" }])),
        ("environment", json!({ "A": "b" })),
        ("environment", json!([{ "name": "A", "value": 1 }])),
        ("dependsOn", json!("db")),
        ("memory", json!("512")),
        ("cpu", json!(-1)),
        ("logConfiguration", json!([])),
        ("logConfiguration", json!({ "options": {} })),
        ("healthCheck", json!("curl")),
    ] {
        let mut task = task(&[("app", &[8000])]);
        task["containerDefinitions"][0][field] = value;
        refused(&task, &[], &[&format!("containerDefinitions[0].{field}")]);
    }
}

#[test]
fn the_settings_are_judged_by_the_loader() {
    let task = task(&[("app", &[8000])]);
    refused(
        &task,
        &["--set", "IDLE_TIMEOUT=75", "--set", "ALOWED_HOSTS=x"],
        &["HOSTWARD_IDLE_TIMEOUT", "75s", "HOSTWARD_ALLOWED_HOSTS?"],
    );
    refused(&task, &["--set", "UPSTREAM=http://169.254.170.2:80"], &["HOSTWARD_UPSTREAM"]);
    refused(&task, &["--listen", "x"], &["HOSTWARD_LISTEN"]);
    let missing = ask_as_is(&task.to_string(), &[]);
    assert_eq!((missing.code, missing.out.as_str()), (2, ""));
    assert!(missing.said.contains("HOSTWARD_ALLOWED_HOSTS"), "{}", missing.said);
    // A flag wins, and an empty value is none.
    let answer = ask(&task.to_string(), &["--idle-timeout", "80s", "--set", "IDLE_TIMEOUT=90s", "--set", "LISTEN="]);
    assert_eq!(settings(&answer.ours()).idle_timeout.as_secs(), 80);
    assert!(!answer.out.contains("HOSTWARD_LISTEN"));
}
