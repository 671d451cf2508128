//! What `inject` did, and what remains for the person, in words.

use std::io::{self, Write};

use serde_json::Value;

use super::network::Network;
use crate::config::visible;

/// Two lists of sentences.
#[derive(Debug, Default)]
pub(super) struct Report {
    did: Vec<String>,
    remains: Vec<String>,
}

impl Report {
    pub(super) fn did(&mut self, what: String) {
        self.did.push(what);
    }

    pub(super) fn remains(&mut self, what: String) {
        self.remains.push(what);
    }

    pub(super) fn moved(&mut self, app: &str, from: u16, to: u16, mapping: &Value, network: Network) {
        let names = ["name", "appProtocol"].into_iter().filter_map(|name| mapping[name].as_str());
        let names: Vec<String> = names.map(|text| format!("`{text}`")).collect();
        let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
        self.did(format!("moved the port mapping{names} from `{app}`, port {from}, to `hostward`, port {to}"));
        if network == Network::Bridge {
            self.did(format!(
                "bridge mode: the containers share no network, so hostward reaches the app by `links`, at http://{app}:{from}"
            ));
        }
        if let Some(name) = mapping["name"].as_str() {
            self.remains(format!(
                "if Service Connect offers the port `{name}`: its clients name the alias as their `Host`, so that must be in HOSTWARD_ALLOWED_HOSTS"
            ));
        }
    }

    /// The way on, once the rest is settled.
    pub(super) fn register(&mut self) {
        self.remains("register it: aws ecs register-task-definition --cli-input-json file://FILE".into());
    }

    pub(super) fn settings(&mut self, environment: &[(&'static str, String)]) {
        let list: Vec<String> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        self.did(format!("added container `hostward`, with {}", list.join(" ")));
    }

    pub(super) fn updated(&mut self, changed: &[String]) {
        if changed.is_empty() {
            self.did("hostward is there already, and nothing of it changes".into());
        } else {
            self.did(format!("hostward is there already; changed its {}", changed.join(", ")));
        }
    }

    /// What is not in a task definition.
    pub(super) fn service(&mut self, app: &str, from: u16, to: u16, network: Network) {
        let port = if from == to {
            format!("containerPort stays {to}")
        } else {
            format!("containerPort {to} instead of {from}")
        };
        self.remains(format!(
            "on the service: loadBalancers[].containerName `hostward` instead of `{app}`, {port}; both in the update that takes the new revision"
        ));
        match network {
            Network::Awsvpc => {
                self.remains(format!(
                    "the target group: ECS registers port {to} whatever the group's own port is, and a health check on `traffic-port` follows; a health check on port {from} must go to {to}"
                ));
                self.remains(format!(
                    "security groups: let the load balancer in on {to}, and nobody on {from}; if the app can listen on 127.0.0.1, let it"
                ));
            }
            Network::Bridge => {
                self.remains(
                    "the target group's port and health check stay: the instance's port is what it was".into(),
                );
                self.remains(format!(
                    "`{app}` must listen on 0.0.0.0, and sees hostward's bridge address as its peer, not 127.0.0.1"
                ));
            }
        }
    }

    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for (heading, lines) in [("done", &self.did), ("remains for you", &self.remains)] {
            if lines.is_empty() {
                continue;
            }
            writeln!(out, "{heading}:")?;
            for line in lines {
                // Names out of the document are in them.
                writeln!(out, "  * {}", visible(line.chars()))?;
            }
        }
        Ok(())
    }
}
