//! Apps that turn down what hostward gave them: real ones, each refusing, then with the remedy that hostward's line
//! names; and what a stand-in shows of pieces, codings and health checks in a row. Vite and ASP.NET Core are not
//! run here: their answers are known from their sources alone (`src/app_refusal/tests.rs`).

use serde_json::Value;

use crate::support::Task;
use crate::support::app::answer;
use crate::support::hostward::Hostward;
use crate::support::python::{Server, Site};
use crate::support::wire::{Answer, ask};

/// What hostward makes of an app's refusal, and who has to be told.
struct Case {
    server: Server,
    /// What the site is started with, beside its host.
    with: &'static [(&'static str, &'static str)],
    framework: &'static str,
    status: u16,
    /// The app's own list, as the hint has to name it.
    list: &'static str,
    /// A request; `@` stands for its host.
    request: &'static str,
}

const GET: &str = "GET / HTTP/1.1\r\nHost: @\r\nConnection: close\r\n\r\n";
/// An MCP client's first request.
const INITIALIZE: &str = "POST /mcp HTTP/1.1\r\nHost: @\r\nConnection: close\r\nAccept: application/json, \
     text/event-stream\r\nContent-Type: application/json\r\nContent-Length: 149\r\n\r\n{\"jsonrpc\":\"2.0\",\"id\":1,\
     \"method\":\"initialize\",\"params\":{\"protocolVersion\":\"2025-06-18\",\"capabilities\":{},\"clientInfo\":\
     {\"name\":\"test\",\"version\":\"1\"}}}";
const REFUSES: &str = "app refuses the host";

fn before(site: &Site, settings: &[(&str, &str)]) -> Hostward {
    let upstream = site.upstream();
    let mut all = vec![("HOSTWARD_UPSTREAM", upstream.as_str()), ("HOSTWARD_ALLOWED_HOSTS", "www.example.com")];
    all.extend(settings);
    Hostward::start(&all)
}

impl Case {
    fn site(&self, host: &str) -> Option<Site> {
        Site::start(self.server, &[self.with, &[("ALLOWED_HOSTS", host)]].concat())
    }

    fn ask(&self, hostward: &Hostward, host: &str) -> Answer {
        ask(hostward.address, self.request.replace('@', host))
    }

    /// The app refuses a probe and a user, hostward says what to do, and when it's done the app answers.
    fn is_told_and_remedied(&self) {
        let Some(strict) = self.site("inner.example.com") else { return };
        let (canonical, inner) = ("HOSTWARD_CANONICAL_HOST", "inner.example.com");

        let hostward = before(&strict, &[]);
        self.ask(&hostward, &hostward.address.to_string()).expect(self.status);
        let line = self.line(&hostward, "probe", "www.example.com");
        says(&line, &["HOSTWARD_CANONICAL_HOST=www.example.com", self.list]);
        let told = before(&strict, &[(canonical, inner)]);
        self.ask(&told, &told.address.to_string()).expect(200);

        let hostward = before(&strict, &[]);
        let refused = self.ask(&hostward, "www.example.com").expect(self.status);
        let directly = ask(strict.address, self.request.replace('@', "www.example.com"));
        // Django's debug page shows the request's fields, and hostward has added some.
        if self.with.is_empty() {
            assert_eq!(refused.body, directly.body, "the answer was changed");
        }
        let line = self.line(&hostward, "allowed", "www.example.com");
        says(&line, &[self.list, "add it", "HOSTWARD_ALLOWED_HOSTS"]);
        let rewriting = before(&strict, &[("HOSTWARD_HOST_REWRITE", "canonical"), (canonical, inner)]);
        if self.framework == "rails" {
            // It judges X-Forwarded-Host by its list as well, and that is the client's host.
            self.ask(&rewriting, "www.example.com").expect(self.status);
            says(
                &self.line(&rewriting, "allowed", inner),
                &["X-Forwarded-Host", "both have to be in Rails' config.hosts"],
            );
        } else {
            says(&line, &["HOSTWARD_HOST_REWRITE=canonical"]);
            self.ask(&rewriting, "www.example.com").expect(200);
        }
        let friendly = self.site("www.example.com").expect("what was there a moment ago");
        let told = before(&friendly, &[]);
        self.ask(&told, "www.example.com").expect(200);
        self.ask(&told, &told.address.to_string()).expect(200);
        assert_eq!(refusals(&told), 0, "{}", told.output());
    }

    fn line(&self, hostward: &Hostward, decision: &str, host: &str) -> Value {
        let line = hostward.line(|line| line["msg"] == REFUSES);
        assert_eq!(
            (&line["framework"], &line["status"], &line["decision"], &line["host"], &line["level"]),
            (&self.framework.into(), &self.status.into(), &decision.into(), &host.into(), &"WARN".into()),
            "{line}"
        );
        line
    }
}

fn says(line: &Value, words: &[&str]) {
    let hint = line["hint"].as_str().unwrap_or_default();
    for word in words {
        assert!(hint.contains(word), "no {word:?} in {line}");
    }
}

fn refusals(hostward: &Hostward) -> usize {
    hostward.lines().iter().filter(|line| line["msg"] == REFUSES).count()
}

#[test]
fn django_with_debug_is_told_and_remedied() {
    let (server, list) = (Server::GunicornSync, "Django's ALLOWED_HOSTS");
    Case { server, with: &[("DEBUG", "1")], framework: "django", status: 400, list, request: GET }
        .is_told_and_remedied();
}

#[test]
fn django_in_production_is_told_and_remedied() {
    let (server, list) = (Server::GunicornSync, "Django's ALLOWED_HOSTS");
    Case { server, with: &[], framework: "django", status: 400, list, request: GET }.is_told_and_remedied();
}

#[test]
fn starlette_is_told_and_remedied() {
    let (server, list) = (Server::Uvicorn, "TrustedHostMiddleware's allowed_hosts");
    Case { server, with: &[], framework: "starlette", status: 400, list, request: GET }.is_told_and_remedied();
}

#[test]
fn werkzeug_is_told_and_remedied() {
    let (server, list) = (Server::Flask, "TRUSTED_HOSTS");
    Case { server, with: &[], framework: "werkzeug", status: 400, list, request: GET }.is_told_and_remedied();
}

#[test]
fn an_mcp_server_is_told_and_remedied() {
    let (server, list) = (Server::Mcp, "the MCP server's allowed hosts");
    Case { server, with: &[], framework: "mcp", status: 421, list, request: INITIALIZE }.is_told_and_remedied();
}

#[test]
fn an_mcp_server_that_allows_localhost_alone_gets_it() {
    let Some(site) = Site::start(Server::Mcp, &[]) else { return };
    let hostward = before(&site, &[]);
    ask(hostward.address, INITIALIZE.replace('@', "www.example.com")).expect(421);
    says(&hostward.line(|line| line["msg"] == REFUSES), &["HOSTWARD_HOST_REWRITE=canonical"]);
    let rewrite = [("HOSTWARD_HOST_REWRITE", "canonical"), ("HOSTWARD_CANONICAL_HOST", "localhost:8000")];
    let told = before(&site, &rewrite);
    for host in ["www.example.com", &told.address.to_string()] {
        ask(told.address, INITIALIZE.replace('@', host)).expect(200);
    }
}

#[test]
fn rails_in_development_is_told_and_remedied() {
    let (server, list) = (Server::Rails, "Rails' config.hosts");
    Case { server, with: &[("DEBUG", "1")], framework: "rails", status: 403, list, request: GET }
        .is_told_and_remedied();
}

#[test]
fn rails_in_production_is_told_on_a_probe() {
    // Its answer is empty: that is too little to say anything about a user's.
    let Some(site) = Site::start(Server::Rails, &[("ALLOWED_HOSTS", "inner.example.com")]) else { return };
    let hostward = before(&site, &[]);
    ask(hostward.address, GET.replace('@', "www.example.com")).expect(403);
    ask(hostward.address, GET.replace('@', &hostward.address.to_string())).expect(403);
    let line = hostward.line(|line| line["msg"] == REFUSES);
    assert_eq!((&line["framework"], &line["decision"]), (&"rails".into(), &"probe".into()), "{line}");
    says(&line, &["may not allow HOSTWARD_CANONICAL_HOST=www.example.com", "Rails' config.hosts"]);
    let told = before(&site, &[("HOSTWARD_CANONICAL_HOST", "inner.example.com")]);
    ask(told.address, GET.replace('@', &told.address.to_string())).expect(200);
}

/// Its `Content-Type` has another `charset` than that of an app which is put together by hand.
#[test]
fn a_generated_rails_app_in_production_is_recognised_on_a_probe() {
    let Some(site) = Site::start(Server::RailsGenerated, &[("ALLOWED_HOSTS", "inner.example.com")]) else { return };
    let directly = ask(site.address, GET.replace('@', "www.example.com")).expect(403);
    assert_eq!(directly.field("content-type"), Some("text/html; charset=UTF-8"), "{}", directly.head);
    let hostward = before(&site, &[]);
    ask(hostward.address, GET.replace('@', &hostward.address.to_string())).expect(403);
    let line = hostward.line(|line| line["msg"] == REFUSES);
    assert_eq!((&line["framework"], &line["decision"]), (&"rails".into(), &"probe".into()), "{line}");
    says(&line, &["may not allow HOSTWARD_CANONICAL_HOST=www.example.com", "Rails' config.hosts"]);
    let told = before(&site, &[("HOSTWARD_CANONICAL_HOST", "inner.example.com")]);
    ask(told.address, GET.replace('@', &told.address.to_string())).expect(200);
}

/// The tests above run the newest versions that this Python can have; these are Debian's.
#[test]
fn debians_versions_are_recognised_as_well() {
    let django = "Django's ALLOWED_HOSTS";
    for (server, with, framework, list) in [
        (Server::DebianDjango, &[("DEBUG", "1")][..], "django", django),
        (Server::DebianDjango, &[], "django", django),
        (Server::DebianFlask, &[], "werkzeug", "TRUSTED_HOSTS"),
        (Server::DebianStarlette, &[], "starlette", "TrustedHostMiddleware's allowed_hosts"),
    ] {
        Case { server, with, framework, status: 400, list, request: GET }.is_told_and_remedied();
    }
}

#[test]
fn laravel_in_production_is_told_on_a_probe() {
    let Some(site) = Site::start(Server::Laravel, &[("ALLOWED_HOSTS", "inner.example.com")]) else { return };
    let hostward = before(&site, &[]);
    // A user's 404 is a 404.
    ask(hostward.address, GET.replace('@', "www.example.com")).expect(404);
    ask(hostward.address, GET.replace('@', &hostward.address.to_string())).expect(404);
    let line = hostward.line(|line| line["msg"] == REFUSES);
    assert_eq!((&line["framework"], &line["decision"]), (&"laravel".into(), &"probe".into()), "{line}");
    says(&line, &["may not allow HOSTWARD_CANONICAL_HOST=www.example.com", "Laravel's trusted hosts"]);
    let told = before(&site, &[("HOSTWARD_CANONICAL_HOST", "inner.example.com")]);
    ask(told.address, GET.replace('@', &told.address.to_string())).expect(200);
}

#[test]
fn a_probe_that_django_sends_to_https_is_told_of_probe_proto() {
    let Some(site) = Site::start(Server::GunicornSync, &[("SSL_REDIRECT", "1")]) else { return };
    let hostward = before(&site, &[("HOSTWARD_PROBE_PROTO", "off")]);
    ask(hostward.address, GET.replace('@', &hostward.address.to_string())).expect(301);
    let line = hostward.line(|line| line["msg"] == REFUSES);
    assert_eq!(line["framework"], "https_redirect", "{line}");
    says(&line, &["HOSTWARD_PROBE_PROTO=https"]);
    let told = before(&site, &[("HOSTWARD_PROBE_PROTO", "https")]);
    ask(told.address, GET.replace('@', &told.address.to_string())).expect(200);
    // A user who comes by plain HTTP is sent to HTTPS, and that is all right.
    ask(told.address, GET.replace('@', "www.example.com")).expect(301);
    assert_eq!(refusals(&told), 0, "{}", told.output());
}

#[test]
fn a_django_that_disbelieves_hostward_is_told_of_its_own_setting() {
    // From 127.0.0.1 gunicorn itself would believe X-Forwarded-Proto, and Django gunicorn.
    let with = [("SSL_REDIRECT", "1"), ("FORWARDED_ALLOW_IPS", "192.0.2.1"), ("DISBELIEVE", "1")];
    let Some(site) = Site::start(Server::GunicornSync, &with) else { return };
    let hostward = before(&site, &[]);
    ask(hostward.address, GET.replace('@', &hostward.address.to_string())).expect(301);
    let line = hostward.line(|line| line["msg"] == REFUSES);
    assert_eq!(line["framework"], "https_redirect", "{line}");
    says(&line, &["SECURE_PROXY_SSL_HEADER"]);
    let site = Site::start(Server::GunicornSync, &with[..2]).expect("what was there a moment ago");
    let told = before(&site, &[]);
    ask(told.address, GET.replace('@', &told.address.to_string())).expect(200);
}

#[test]
fn a_probe_that_starlette_sends_to_its_www_is_told_of_the_host() {
    let Some(site) = Site::start(Server::Uvicorn, &[("WWW_REDIRECT", "1")]) else { return };
    let hostward = before(&site, &[("HOSTWARD_ALLOWED_HOSTS", "example.com www.example.com")]);
    ask(hostward.address, GET.replace('@', &hostward.address.to_string())).expect(307);
    let line = hostward.line(|line| line["msg"] == REFUSES);
    assert_eq!(line["framework"], "host_redirect", "{line}");
    says(&line, &["set HOSTWARD_CANONICAL_HOST=www.example.com"]);
    let told = before(
        &site,
        &[("HOSTWARD_ALLOWED_HOSTS", "example.com www.example.com"), ("HOSTWARD_CANONICAL_HOST", "www.example.com")],
    );
    ask(told.address, GET.replace('@', &told.address.to_string())).expect(200);
}

#[test]
fn a_refusal_in_pieces_is_recognised_and_one_in_a_coding_is_not_looked_at() {
    let task = Task::start(&[], |talk| {
        let (coding, status) = match talk.request.target.as_str() {
            "/coded" => ("Content-Encoding: gzip\r\n", "400 Bad Request"),
            "/good" => ("", "200 OK"),
            _ => ("", "400 Bad Request"),
        };
        let head = format!("HTTP/1.1 {status}\r\n{coding}Content-Length: 19\r\n\r\nInvalid ");
        let sent = talk.body().is_ok() && talk.send(head).is_ok();
        std::thread::sleep(std::time::Duration::from_millis(20));
        if sent && talk.send("host header").is_ok() {
            crate::support::app::Then::Keep
        } else {
            crate::support::app::Then::Close
        }
    });
    for (path, status) in [("/coded", 400), ("/good", 200)] {
        assert_eq!(task.get(path).expect(status).text(), "Invalid host header");
    }
    assert_eq!(task.get("/pieces").expect(400).text(), "Invalid host header");
    let line = task.hostward.line(|line| line["msg"] == REFUSES);
    assert_eq!((&line["framework"], &line["path"]), (&"starlette".into(), &"/pieces".into()), "{line}");
    for _ in 0..3 {
        task.get("/pieces").expect(400);
    }
    // Once a minute.
    assert_eq!(refusals(&task.hostward), 1, "{}", task.hostward.output());
}

#[test]
fn a_stranger_that_only_a_report_lets_in_is_none_of_the_apps_list() {
    let task = Task::start(&[("HOSTWARD_HOST_POLICY", "report")], |talk| {
        talk.reply(answer("400 Bad Request", "", "Invalid host header"))
    });
    ask(task.hostward.address, GET.replace('@', "evil.example")).expect(400);
    task.hostward.line(|line| line["msg"] == "request would be denied");
    task.get("/").expect(400);
    let line = task.hostward.line(|line| line["msg"] == REFUSES);
    assert_eq!(line["host"], "www.example.com", "{line}");
}

const FAIL: &str = "health checks fail";

fn probe(task: &Task, path: &str, status: u16) {
    let address = task.hostward.address;
    ask(address, format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")).expect(status);
}

fn failures(task: &Task) -> Vec<Value> {
    task.hostward.lines().into_iter().filter(|line| line["msg"] == FAIL).collect()
}

#[test]
fn three_failed_health_checks_in_a_row_make_one_line_until_one_succeeds() {
    let task = Task::start(&[], |talk| {
        let status = talk.request.target.trim_start_matches('/').to_owned();
        let to = if status.starts_with('3') { "Location: /login\r\n" } else { "" };
        talk.reply(answer(&format!("{status} Word"), to, "no words"))
    });
    // On one connection, so that one worker sees them in their order.
    let (mut client, host) = (task.client(), task.hostward.address);
    let mut probe = |path: &str, status: u16| {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        client.answer().expect(status);
    };
    // Neither two nor those of users are enough.
    for (path, status) in [("/500", 500), ("/500", 500), ("/200", 200), ("/500", 500), ("/404", 404)] {
        probe(path, status);
    }
    for _ in 0..3 {
        task.get("/500").expect(500);
    }
    task.hostward.line(|line| line["msg"] == "request" && line["path"] == "/500" && line["decision"] == "allowed");
    assert_eq!(failures(&task).len(), 0, "{}", task.hostward.output());

    probe("/302", 302);
    let line = task.hostward.line(|line| line["msg"] == FAIL);
    assert_eq!(
        (&line["status"], &line["path"], &line["level"]),
        (&302.into(), &"/302".into(), &"WARN".into()),
        "{line}"
    );
    assert!(line["what"].as_str().is_some_and(|what| what.contains("about to replace this task")), "{line}");
    says(&line, &["200 alone"]);
    for _ in 0..4 {
        probe("/503", 503);
    }
    probe("/204", 204);
    for _ in 0..3 {
        probe("/503", 503);
    }
    let again = task.hostward.line(|line| line["msg"] == FAIL && line["status"] == 503);
    assert_eq!(again["path"], "/503", "{again}");
    assert_eq!(failures(&task).len(), 2, "{}", task.hostward.output());
}

#[test]
fn the_line_about_health_checks_says_what_the_app_has_against_the_host() {
    let task = Task::start(&[], |talk| talk.reply(answer("400 Bad Request", "", "Invalid host header")));
    for _ in 0..3 {
        probe(&task, "/health", 400);
    }
    let line = task.hostward.line(|line| line["msg"] == FAIL);
    assert_eq!((&line["framework"], &line["host"]), (&"starlette".into(), &"www.example.com".into()), "{line}");
    says(&line, &["HOSTWARD_CANONICAL_HOST=www.example.com", "TrustedHostMiddleware's allowed_hosts"]);
}

#[test]
fn health_checks_of_an_app_that_is_not_there_fail_with_the_error() {
    let upstream = format!("http://{}", crate::support::app::App::nowhere());
    let hostward = Hostward::start(&[
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
        ("HOSTWARD_UPSTREAM", &upstream),
        ("HOSTWARD_UPSTREAM_START_TIMEOUT", "0s"),
    ]);
    for _ in 0..3 {
        ask(hostward.address, GET.replace('@', &hostward.address.to_string())).expect(502);
    }
    let line = hostward.line(|line| line["msg"] == FAIL);
    assert_eq!((&line["status"], &line["error"]), (&502.into(), &"connection_refused".into()), "{line}");
}
