//! The access log: one JSON line for each request, when its body has ended, and nothing in it that could
//! break a line or fill a disk.

use serde_json::Value;

use crate::support::app::answer;
use crate::support::{Task, eventually};

#[test]
fn a_line_says_everything_about_a_request() {
    let task = Task::start(&[], |talk| talk.reply(answer("201 Created", "", "made it")));
    task.ask(
        "POST /orders?secret=1 HTTP/1.1\r\nHost: WWW.example.com:8443\r\nUser-Agent: curl/8.5 \"x\"\r\nContent-Length: 5\r\n\
         X-Forwarded-For: 203.0.113.9\r\nX-Request-Id: r-1\r\nX-Amzn-Trace-Id: Root=1-67891233-abcdef012345678912345678\r\n\r\nhello",
    )
    .expect(201);
    let line = task.hostward.request_line("/orders");
    for (name, value) in [
        ("level", Value::from("INFO")),
        ("msg", "request".into()),
        ("method", "POST".into()),
        ("host", "WWW.example.com:8443".into()),
        ("path", "/orders".into()),
        ("status", 201.into()),
        ("bytes_in", 5.into()),
        ("bytes_out", 7.into()),
        ("client_ip", "203.0.113.9".into()),
        ("peer_ip", "127.0.0.1".into()),
        ("proto", "HTTP/1.1".into()),
        ("user_agent", "curl/8.5 \"x\"".into()),
        ("request_id", "r-1".into()),
        ("host_rule", "exact".into()),
        ("decision", "allowed".into()),
    ] {
        assert_eq!(line[name], value, "{name} in {line}");
    }
    assert!(line["trace_id"].as_str().is_some_and(|id| id.contains("1-67891233-abcdef012345678912345678")), "{line}");
    let time = line["time"].as_str().unwrap_or_default();
    // RFC 3339, in UTC.
    assert!(time.len() >= 20 && time.as_bytes()[10] == b'T' && time.ends_with('Z'), "{time}");
    let (whole, upstream) = (line["duration_ms"].as_f64().unwrap(), line["upstream_ms"].as_f64().unwrap());
    assert!(whole >= 0.0 && upstream >= 0.0 && whole + 0.01 >= upstream && whole < 5000.0, "{line}");
    assert!(line.get("error").is_none_or(Value::is_null), "{line}");
    assert!(!task.hostward.output().contains("secret"), "{}", task.hostward.output());
}

#[test]
fn each_decision_has_its_word() {
    let task = Task::echo(&[("HOSTWARD_ACCESS_LOG_PROBES", "on"), ("HOSTWARD_PROBE_HOSTS", "10.0.2.100")]);
    for (path, host, status, decision) in [
        ("/1", "www.example.com", 200, "allowed"),
        ("/2", "10.0.2.100:8080", 200, "probe"),
        ("/3", "evil.example", 421, "refused"),
        ("/4", "user@www.example.com", 400, "malformed"),
    ] {
        task.ask(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).expect(status);
        let line = task.hostward.request_line(path);
        assert_eq!((&line["decision"], &line["status"]), (&decision.into(), &status.into()), "{line}");
        assert_eq!(line["host"], host, "{line}");
        if status >= 400 {
            assert!(line["error"].is_string(), "{line}");
        }
    }
}

#[test]
fn what_goes_no_further_has_its_line_too() {
    let task = Task::echo(&[]);
    let sent = "X-Forwarded-For: 6.6.6.6, 203.0.113.9\r\nX-Request-Id: given-1\r\n";
    for (path, host, status) in [("/refused", "evil.example", 421), ("/malformed", "user@www.example.com", 400)] {
        let answer = task.turned_away(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{sent}\r\n"), status);
        assert!(answer.text().contains("request id: given-1\n"), "{}", answer.text());
        let line = task.hostward.request_line(path);
        assert_eq!((&line["request_id"], &line["client_ip"]), (&"given-1".into(), &"203.0.113.9".into()), "{line}");
    }
    let denied = task.hostward.line(|line| line["msg"] == "request denied");
    assert_eq!((&denied["request_id"], &denied["client_ip"]), (&"given-1".into(), &"203.0.113.9".into()), "{denied}");
    let answer = task.turned_away("GET /version HTTP/9.9\r\nHost: www.example.com\r\n\r\n", 400);
    let line = task.hostward.request_line("/version");
    assert_eq!((&line["bytes_out"], &line["host"]), (&answer.body.len().into(), &"www.example.com".into()), "{line}");
    let answer = task.turned_away("\0\r\n\r\n", 400);
    let line = task.hostward.line(|line| line["msg"] == "request" && line["path"].is_null());
    assert_eq!(line["bytes_out"], answer.body.len(), "{line}");

    let task = Task::echo(&[("HOSTWARD_TRUSTED_PROXIES", "none")]);
    let answer = task.turned_away(format!("GET /x HTTP/1.1\r\nHost: evil.example\r\n{sent}\r\n"), 421);
    assert!(!answer.text().contains("given-1"), "{}", answer.text());
    assert_eq!(task.hostward.request_line("/x")["client_ip"], "127.0.0.1");
}

#[test]
fn probes_are_not_logged_unless_asked_for() {
    let task = Task::echo(&[]);
    task.admitted(format!("GET /probe HTTP/1.1\r\nHost: {}\r\n\r\n", task.hostward.address));
    task.get("/after").expect(200);
    task.hostward.request_line("/after");
    assert!(!task.hostward.output().contains("\"/probe\""), "{}", task.hostward.output());
}

#[test]
fn a_probe_that_fails_is_logged() {
    let task = Task::start(&[], |talk| talk.reply(answer("503 Service Unavailable", "", "not yet")));
    task.ask(format!("GET /probe HTTP/1.1\r\nHost: {}\r\n\r\n", task.hostward.address)).expect(503);
    let line = task.hostward.request_line("/probe");
    assert_eq!((&line["decision"], &line["status"]), (&"probe".into(), &503.into()));
}

#[test]
fn the_access_log_can_be_errors_only_or_off() {
    let fail = |settings: &[(&str, &str)]| {
        let task = Task::start(settings, |talk| {
            talk.reply(answer(
                if talk.request.target == "/bad" { "500 Internal Server Error" } else { "200 OK" },
                "",
                "x",
            ))
        });
        task.get("/good").expect(200);
        task.get("/bad").expect(500);
        task
    };
    let task = fail(&[("HOSTWARD_ACCESS_LOG", "errors")]);
    task.hostward.request_line("/bad");
    assert!(!task.hostward.output().contains("\"/good\""), "{}", task.hostward.output());

    let mut task = fail(&[("HOSTWARD_ACCESS_LOG", "off"), ("HOSTWARD_DRAIN_DELAY", "0s")]);
    task.hostward.terminate();
    task.hostward.wait(std::time::Duration::from_secs(5));
    task.hostward.line(|line| line["msg"] == "stopped");
    assert!(task.hostward.lines().iter().all(|line| line["msg"] != "request"), "{}", task.hostward.output());
}

#[test]
fn what_was_logged_last_is_not_lost_at_the_end() {
    let mut task = Task::echo(&[("HOSTWARD_DRAIN_DELAY", "0s")]);
    for number in 0..50 {
        task.get(&format!("/{number}")).expect(200);
    }
    task.hostward.terminate();
    task.hostward.wait(std::time::Duration::from_secs(5));
    task.hostward.line(|line| line["msg"] == "stopped");
    let logged = task.hostward.lines().iter().filter(|line| line["msg"] == "request").count();
    assert_eq!(logged, 50);
}

#[test]
fn hostile_text_is_escaped_and_capped() {
    let task = Task::echo(&[]);
    let long = "a".repeat(20_000);
    let mut request =
        format!("GET /{long} HTTP/1.1\r\nHost: www.example.com\r\nX-Request-Id: {long}\r\nUser-Agent: \"}}\\n{{\"")
            .into_bytes();
    request.extend_from_slice(b"\xff\xfe\xc2\x85\xe2\x80\xa8");
    request.extend_from_slice(format!("{long}\r\n\r\n").as_bytes());
    task.ask(request);
    let long_host = format!("GET /host HTTP/1.1\r\nHost: {}.example\r\n\r\n", "a".repeat(10_000));
    task.turned_away(long_host, 400);
    task.turned_away(format!("GET /user HTTP/1.1\r\nHost: \"}}{}@x\r\n\r\n", "\\".repeat(2000)), 400);
    task.hostward.request_line("/user");
    for line in task.hostward.output().lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(value.is_object(), "{line}");
        assert!(line.len() < 8192, "{} bytes", line.len());
        assert!(line.chars().all(|c| !c.is_control() && c != '\u{2028}'), "{line}");
    }
    let line = task.hostward.line(|line| line["path"].as_str().is_some_and(|path| path.starts_with("/aaaa")));
    assert!(line["user_agent"].as_str().is_some_and(|agent| agent.starts_with("\"}\\n{\"")), "{line}");
}

#[test]
fn refusals_collapse_to_one_event_but_are_all_in_the_access_log() {
    let task = Task::echo(&[]);
    for number in 0..30 {
        task.turned_away(format!("GET /{number} HTTP/1.1\r\nHost: evil{number}.example\r\n\r\n"), 421);
    }
    let count = |msg: &str| task.hostward.lines().iter().filter(|line| line["msg"] == msg).count();
    eventually("every refusal is logged", || (count("request") == 30).then_some(()));
    assert_eq!(count("request denied"), 1, "one line a minute per reason");
}
