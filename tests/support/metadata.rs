//! A task metadata endpoint that answers as AWS's does, or as badly as the test says.

use std::collections::HashMap;
use std::fs;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::app::{App, Then, answer, hang};
use super::{Task, eventually};

/// A stand-in for `http://169.254.170.2`.
pub struct Metadata {
    app: App,
}

/// What the endpoint does with one request.
pub enum Reply {
    /// A status and a body.
    Body(&'static str, String),
    /// Bytes as they are, and then the end of the connection.
    Raw(Vec<u8>),
    /// Nothing, ever.
    Hang,
    /// A reset.
    Reset,
}

impl Metadata {
    /// An endpoint whose reply depends on the path and on how often that was asked for before.
    pub fn start(reply: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Self {
        let asked = Mutex::new(HashMap::<String, usize>::new());
        let app = App::start(move |talk| {
            let times = {
                let mut asked = asked.lock().unwrap();
                let times = asked.entry(talk.request.target.clone()).or_default();
                *times += 1;
                *times - 1
            };
            match reply(&talk.request.target, times) {
                Reply::Body(status, body) => talk.reply(answer(status, "Content-Type: application/json\r\n", &body)),
                Reply::Raw(bytes) => {
                    talk.send(bytes).ok();
                    Then::Close
                }
                Reply::Hang => hang(talk),
                Reply::Reset => Then::Reset,
            }
        });
        Self { app }
    }

    /// An endpoint that answers 200 with the own container's document.
    pub fn of(container: Value) -> Self {
        Self::start(move |path, _| if path == PATH { Reply::Body("200 OK", container.to_string()) } else { missing() })
    }

    /// The value of `ECS_CONTAINER_METADATA_URI_V4`.
    pub fn url(&self) -> String {
        format!("http://{}{PATH}", self.app.address)
    }

    /// The paths that were asked for, in order.
    pub fn asked(&self) -> Vec<String> {
        self.app.requests().into_iter().map(|request| request.target).collect()
    }
}

/// The path of the own container's document.
pub const PATH: &str = "/v4/5f1c9a7e2b-0527074092";

/// A container's document with these networks.
pub fn container(networks: &Value) -> Value {
    json!({
        "DockerId": "5f1c9a7e2b-0527074092",
        "Name": "hostward",
        "DockerName": "hostward",
        "Image": "hostward:latest",
        "Labels": { "com.amazonaws.ecs.container-name": "hostward" },
        "DesiredStatus": "RUNNING",
        "KnownStatus": "RUNNING",
        "Limits": { "CPU": 256, "Memory": 128 },
        "Type": "NORMAL",
        "Networks": networks,
    })
}

/// One network with these IPv4 addresses.
pub fn network(addresses: &[&str]) -> Value {
    json!([{ "NetworkMode": "awsvpc", "IPv4Addresses": addresses, "AttachmentIndex": 0 }])
}

/// What AWS's endpoint says when it doesn't know the container: a JSON string.
pub fn missing() -> Reply {
    Reply::Body("404 Not Found", "\"V4 container metadata handler: unable to get container ID\"".into())
}

/// Waits until nothing more is asked: then everything that depends on it has been told.
pub fn wait_for_discovery(task: &Task) {
    task.hostward.line(|line| line["msg"] == "task addresses found");
    eventually("discovery has ended", || {
        let threads = fs::read_dir(format!("/proc/{}/task", task.hostward.pid())).unwrap();
        let mut names = threads.map_while(Result::ok).flat_map(|one| fs::read_to_string(one.path().join("comm")));
        names.all(|name| name.trim() != "discovery").then_some(())
    });
}
