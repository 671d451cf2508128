//! The task of `docker/compose.yaml`: who gets in, how hostward's container runs, and what an app's death does to it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::engine::Engine;
use crate::support::wire::{Answer, Client, get};

/// The task's address in the Compose file's network, where a load balancer would ask.
pub const ADDRESS: &str = "169.254.170.10:8080";
/// A stand-in's or the public image, in any case one with Python.
const PYTHON: &str = "python:3.11-slim-bookworm";
/// Bound on what a container takes to come up.
const START: Duration = Duration::from_mins(1);

/// Reads the task's IP from the metadata and asks it as an ALB's health check does; then asks the app directly.
const PROBE: &str = r#"
import http.client, json, urllib.request
metadata = json.load(urllib.request.urlopen("http://169.254.170.2/v4/hostward", timeout=5))
ip = metadata["Networks"][0]["IPv4Addresses"][0]
connection = http.client.HTTPConnection(ip, 8080, timeout=5)
connection.request("GET", "/", headers={"User-Agent": "ELB-HealthChecker/2.0"})
answer = connection.getresponse()
print(ip, answer.status, json.loads(answer.read())["host"])
try:
    http.client.HTTPConnection(ip, 8000, timeout=5).connect()
    print("the app is open to the network")
except ConnectionRefusedError:
    print("the app is hostward's alone")
"#;

/// The task, up until it is dropped. Its names are this test's own, its network is not: there is one at a time.
pub struct Task {
    /// Where it runs.
    pub engine: &'static Engine,
    /// Where its published port is.
    pub published: SocketAddr,
    name: String,
    // Unlocks last.
    _alone: File,
}

impl Task {
    /// Builds and starts what the Compose file says, and waits until the app answers. `None` where no engine answers.
    pub fn up(name: &str) -> Option<Self> {
        let engine = Engine::get()?;
        let lock = Path::new(env!("CARGO_TARGET_TMPDIR")).join("docker.lock");
        let alone = OpenOptions::new().create(true).append(true).open(lock).expect("a file to lock");
        alone.lock().expect("a lock");
        let name = format!("hostward-{name}-{}", std::process::id());
        let mut task = Self { engine, published: SocketAddr::from(([0, 0, 0, 0], 0)), name, _alone: alone };
        take_down_what_was_left(engine);
        let up = engine.compose(&task.name, &["up", "--detach", "--build"], &[("PORT", "0")]);
        up.unwrap_or_else(|why| panic!("{why}"));
        let port = engine.docker(&["port", &task.container("netns"), "8080/tcp"]);
        task.published = port.lines().next().and_then(|line| line.parse().ok()).unwrap_or_else(|| panic!("{port}"));
        // hostward itself waits for the app, so the first answer is the app's.
        task.wait_for("hostward listens", || std::net::TcpStream::connect(ADDRESS).is_ok());
        task.user().expect(200);
        Some(task)
    }

    /// The id of a service's container.
    pub fn container(&self, service: &str) -> String {
        let [project, service] = [("project", self.name.as_str()), ("service", service)]
            .map(|(key, value)| format!("label=com.docker.compose.{key}={value}"));
        let id =
            self.engine.docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &project, "--filter", &service]);
        assert_eq!(id.len(), 64, "{service}: {id}");
        id
    }

    /// The events in hostward's log.
    pub fn log(&self) -> Vec<Value> {
        let log = self.engine.docker(&["logs", &self.container("hostward")]);
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// A user's request to the published port.
    fn user(&self) -> Answer {
        get(self.published, "www.example.com", "/")
    }

    fn wait_for(&self, what: &str, mut happened: impl FnMut() -> bool) {
        let deadline = Instant::now() + START;
        while !happened() {
            assert!(Instant::now() < deadline, "not within {START:?}: {what}\n{:#?}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A program in a container of its own beside the task.
    fn beside(&self, options: &[&str], command: &[&str]) -> String {
        self.engine.docker(&[&["run", "--rm"], options, &[PYTHON], command].concat())
    }
}

/// A test that was killed leaves its containers, and the network that there can be only one of.
fn take_down_what_was_left(engine: &Engine) {
    let networks = engine.docker(&["network", "ls", "--filter", "name=^hostward-", "--format", "{{.Name}}"]);
    for project in networks.lines().filter_map(|network| network.strip_suffix("_task")) {
        let process = project.rsplit('-').next().and_then(|process| process.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            // Else the task itself says what is in its way.
            engine.compose(project, &["down", "--rmi", "local", "--volumes", "--timeout", "1"], &[]).ok();
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // What it built has no other name than the task's. What can't be removed must not hide why the test failed.
        if let Err(why) =
            self.engine.compose(&self.name, &["down", "--rmi", "local", "--volumes", "--timeout", "1"], &[])
        {
            writeln!(std::io::stderr(), "{why}").ok();
        }
    }
}

#[test]
fn a_user_and_a_probe_reach_django_in_the_compose_files_task_and_a_stranger_does_not() {
    let Some(task) = Task::up("answers") else { return };
    assert!(task.user().expect(200).text().contains("\"www.example.com\""));
    get(task.published, "evil.example", "/").expect(421);
    let probe = get(task.published, ADDRESS, "/").expect(200);
    assert!(probe.text().contains("https://www.example.com/"), "{}", probe.text());

    let network = format!("{}_task", task.name);
    let said = task.beside(&["--network", &network], &["python", "-c", PROBE]);
    assert_eq!(said, "169.254.170.10 200 www.example.com\nthe app is hostward's alone");
    task.wait_for("hostward reads the metadata", || {
        task.log()
            .iter()
            .any(|line| line["msg"] == "task addresses found" && line.to_string().contains("169.254.170.10"))
    });
}

#[test]
fn hostward_is_healthy_by_its_own_word_as_nobody_without_capabilities_and_writes_nothing() {
    let Some(task) = Task::up("confined") else { return };
    let hostward = task.container("hostward");
    task.wait_for("it is healthy", || task.engine.inspect(&hostward)["State"]["Health"]["Status"] == "healthy");
    assert_eq!(task.engine.inspect(&hostward)["HostConfig"]["ReadonlyRootfs"], true);

    // The container has no `cat`.
    let pid = format!("container:{hostward}");
    let status = task.beside(&["--pid", &pid, "--network", "none"], &["cat", "/proc/1/status"]);
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name}: {status}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of("Name"), "hostward");
    assert_eq!((of("Uid"), of("Gid")), ("65532 65532 65532 65532".into(), "65532 65532 65532 65532".into()));
    for capabilities in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(of(capabilities), "0000000000000000", "{capabilities}");
    }
    assert_eq!(of("NoNewPrivs"), "1");
    assert_eq!(task.engine.docker(&["diff", &hostward]), "");
}

#[test]
fn an_app_that_is_killed_and_started_again_needs_nothing_done_to_hostward() {
    let Some(task) = Task::up("killed") else { return };
    let hostward = task.container("hostward");
    let started = task.engine.inspect(&hostward)["State"]["StartedAt"].clone();
    let app = task.container("app");
    task.engine.docker(&["kill", &app]);
    // The namespace is not the app's, so hostward still accepts. It waits for an app that is late, until
    // HOSTWARD_UPSTREAM_START_TIMEOUT after its own start; from then on it says at once that nobody listens.
    let mut client = Client::connect(task.published);
    client.send("GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
    task.engine.docker(&["start", &app]);
    let answer = client.answer();
    let refused = answer.field("proxy-status") == Some("hostward; error=connection_refused");
    assert!(answer.status == 200 || (answer.status == 502 && refused), "{}", answer.head);
    task.wait_for("the app answers again", || task.user().status == 200);
    let state = task.engine.inspect(&hostward)["State"].clone();
    assert_eq!((&state["StartedAt"], &state["Running"]), (&started, &Value::Bool(true)));
}
