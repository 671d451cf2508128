//! The Docker engine by its own command line, with a bound on every command. Decides whether the Docker tests can run,
//! and prepares for them once.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::support::skip;
use crate::support::wire::text;

/// Where the project is, and so the files that are under test.
pub const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

/// Seconds for what only asks or starts something.
const QUICK: u32 = 90;
/// Seconds for what may compile hostward.
const BUILD: u32 = 900;

/// An engine that has the base images.
pub struct Engine {
    /// `docker compose`, or the program that came before it.
    compose: &'static [&'static str],
}

impl Engine {
    /// `None` where there is no engine, or one that can't do what the tests need: the test is skipped, and the reason is
    /// on the terminal. With `CI=true` that is a failure.
    pub fn get() -> Option<&'static Self> {
        static ENGINE: OnceLock<Option<Engine>> = OnceLock::new();
        ENGINE.get_or_init(Self::prepare).as_ref()
    }

    fn prepare() -> Option<Self> {
        if let Err(why) = run(QUICK, &["docker", "version", "--format", "{{.Server.Version}}"], &[]) {
            return unavailable(&format!("a Docker engine: {why}"));
        }
        let ways: [&'static [&'static str]; 2] = [&["docker", "compose"], &["docker-compose"]];
        let compose = ways.into_iter().find(|way| run(QUICK, &[way, &["version"][..]].concat(), &[]).is_ok());
        let prepared = compose.ok_or_else(|| "there is no Docker Compose".to_owned()).and_then(|compose| {
            run(BUILD, &[concat!(env!("CARGO_MANIFEST_DIR"), "/tests/docker/prepare")], &[])?;
            Ok(Self { compose })
        });
        match prepared {
            Ok(engine) => Some(engine),
            Err(why) => unavailable(&why),
        }
    }

    /// What `docker` prints with these arguments, on either output.
    pub fn docker(&self, arguments: &[&str]) -> String {
        let all = [&["docker"], arguments].concat();
        self.must(QUICK, &all, &[])
    }

    /// What Compose does with the project's own file.
    pub fn compose(&self, name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<String, String> {
        let file = ["--file", concat!(env!("CARGO_MANIFEST_DIR"), "/docker/compose.yaml"), "--project-name", name];
        run(BUILD, &[self.compose, &file, arguments].concat(), variables)
    }

    /// What the engine knows of a container or an image.
    pub fn inspect(&self, what: &str) -> Value {
        let all: Value = serde_json::from_str(&self.docker(&["inspect", what])).expect("JSON");
        all[0].clone()
    }

    /// Runs a shell's pipeline, for what would be too large for a string.
    pub fn shell(&self, line: &str) -> String {
        self.must(QUICK, &["sh", "-c", line], &[])
    }

    #[expect(clippy::unused_self, reason = "whoever has an engine may ask it")]
    fn must(&self, seconds: u32, command: &[&str], variables: &[(&str, &str)]) -> String {
        run(seconds, command, variables).unwrap_or_else(|why| panic!("{why}"))
    }
}

fn unavailable(why: &str) -> Option<Engine> {
    skip(why);
    None
}

fn run<S: AsRef<OsStr>>(seconds: u32, command: &[S], variables: &[(&str, &str)]) -> Result<String, String> {
    let name = command.iter().map(|word| word.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
    let Output { status, stdout, stderr } = Command::new("timeout")
        .arg("--kill-after=5")
        .arg(seconds.to_string())
        .args(command)
        .current_dir(PROJECT)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if status.success() {
        return Ok(text(&[stdout, stderr].concat()).trim().to_owned());
    }
    let said = text(&[stdout, stderr].concat());
    let lines: Vec<&str> = said.lines().collect();
    Err(format!("{name}: {status}: {}", lines[lines.len().saturating_sub(15)..].join("\n")))
}
