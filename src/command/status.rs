//! `hostward status`: what `/status` of the hostward in this container says, for a person.

use std::io::{self, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Format;
use super::healthcheck::{connect, read, time_left};
use crate::config::{Config, show};
use crate::diagnosis::refusals::OTHERS;

/// Prints it. Returns the exit code: 0, or 1 when nobody answers.
pub fn run(config: &Config, format: Format, out: &mut impl Write) -> u8 {
    let (code, text) = match (ask(config, PATIENCE), format) {
        (Ok(status), Format::Json) => (0, format!("{status:#}")),
        (Ok(status), Format::Text | Format::Markdown) => (0, readable(&status)),
        (Err(why), _) => (1, why),
    };
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => code,
        Err(_) => 1,
    }
}

/// What the hostward that runs here, if one does, knows of a host that it has refused.
pub fn refused(config: &Config, host: &str) -> Option<String> {
    let status = ask(config, BRIEFLY).ok()?;
    let line = status["refused_hosts"].as_array()?.iter().find(|refused| refused["host"] == host)?;
    Some(format!("{} times since hostward started here, the last {} s ago", line["count"], line["seconds_ago"]))
}

fn ask(config: &Config, patience: Duration) -> Result<Value, String> {
    let Some(address) = config.admin_listen else {
        return Err("not known: HOSTWARD_ADMIN_LISTEN is off".into());
    };
    if address.port() == 0 {
        return Err("not known: HOSTWARD_ADMIN_LISTEN has port 0, so the port is not in the settings".into());
    }
    let deadline = Instant::now() + patience;
    let (address, stream) =
        connect(address, deadline).map_err(|error| format!("no response from {address}: {error}"))?;
    let body = get(stream, deadline).map_err(|error| format!("{address}/status: {error}"))?;
    let status = serde_json::from_slice::<Value>(&body).ok().filter(is_hostward);
    status.ok_or_else(|| format!("{address}/status: something other than hostward answers there"))
}

fn get(mut stream: TcpStream, deadline: Instant) -> io::Result<Vec<u8>> {
    stream.set_write_timeout(Some(time_left(deadline)?))?;
    stream.write_all(b"GET /status HTTP/1.0\r\n\r\n")?;
    let (mut response, mut buffer) = (Vec::new(), vec![0; 16 * 1024]);
    loop {
        match read(&mut stream, &mut buffer, deadline)? {
            0 => break,
            count if response.len() + count > MOST => return Err(io::Error::other("the response is too long")),
            count => response.extend_from_slice(&buffer[..count]),
        }
    }
    let end = memchr::memmem::find(&response, b"\r\n\r\n").ok_or_else(|| io::Error::other("no HTTP response"))?;
    if !response.starts_with(b"HTTP/1.0 200") && !response.starts_with(b"HTTP/1.1 200") {
        return Err(io::Error::other("something other than hostward answers there"));
    }
    Ok(response.split_off(end + 4))
}

/// Whether this is what hostward's `/status` says, of whatever version.
fn is_hostward(status: &Value) -> bool {
    status["version"].is_string() && status["stage"].is_string() && status["refused_hosts"].is_array()
}

fn readable(status: &Value) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("{name:<16} {value}"));
        }
    };
    let ready = match &status["not_ready"] {
        Value::String(why) => format!("no: {}", show(why)),
        _ => "yes".into(),
    };
    line(
        "hostward",
        format!("{} {}, up for {}", plain(&status["version"]), plain(&status["stage"]), uptime(&status["uptime_s"])),
    );
    line("ready", ready);
    line("listens on", plain(&status["listen"]));
    line("app", plain(&status["upstream"]));
    line("allowed hosts", format!("{} ({})", list(&status["allowed_hosts"]), plain(&status["host_policy"])));
    line("canonical host", plain(&status["canonical_host"]));
    line("interfaces", list(&status["addresses"]["interfaces"]));
    line(
        "task addresses",
        match &status["addresses"]["discovered"] {
            Value::Null => "not known (yet)".into(),
            found => list(found),
        },
    );
    line("workers", plain(&status["workers"]));
    let connections = &status["connections"];
    line(
        "connections",
        format!(
            "{} of at most {}; to the app {} in use, {} idle",
            connections["open"], connections["most"], connections["app_active"], connections["app_idle"]
        ),
    );
    let requests = &status["requests"];
    line("requests", format!("{} under way; {}", requests["active"], counts(&requests["by_decision"])));
    line("statuses", counts(&requests["by_status"]));
    line("errors", counts(&requests["errors"]));
    let memory = &status["memory"];
    line("memory", format!("{} of {} bytes", memory["bytes"], memory["limit_bytes"]));
    let spool = &status["spool"];
    line(
        "disk",
        format!(
            "{} of {} bytes; {} request bodies went there",
            spool["bytes"], spool["limit_bytes"], status["spooled_requests"]
        ),
    );
    line("log", format!("{} lines dropped", status["log_lines_dropped"]));
    for refused in status["refused_hosts"].as_array().into_iter().flatten().take(SHOWN) {
        let host = plain(&refused["host"]);
        let sender = if host == OTHERS { String::new() } else { format!(" from {}", plain(&refused["sender"])) };
        line(
            "refused",
            format!(
                "{host}: {} ×{sender}, {}, the last {} s ago",
                refused["count"],
                plain(&refused["reason"]),
                refused["seconds_ago"]
            ),
        );
    }
    for failed in status["last_failures"].as_array().into_iter().flatten().take(SHOWN) {
        line(
            "failed",
            format!(
                "{} {} {}: {} ({}), request id {}",
                plain(&failed["time"]),
                failed["status"],
                plain(&failed["path"]),
                plain(&failed["msg"]),
                plain(&failed["error"]),
                plain(&failed["request_id"])
            ),
        );
    }
    lines.join("\n")
}

/// A client may have chosen it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => show(text),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn list(value: &Value) -> String {
    value.as_array().into_iter().flatten().map(plain).collect::<Vec<_>>().join(", ")
}

fn counts(value: &Value) -> String {
    value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, count)| format!("{count} {name}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn uptime(seconds: &Value) -> String {
    humantime::format_duration(Duration::from_secs(seconds.as_u64().unwrap_or_default())).to_string()
}

/// Lines of each kind; `--format json` has them all.
const SHOWN: usize = 10;
/// `/status` asks the app whether it is there, for up to 2 s.
const PATIENCE: Duration = Duration::from_secs(4);
/// For a word that can be missed.
const BRIEFLY: Duration = Duration::from_millis(500);
/// Bytes of an answer; there are at most 260 hosts and 20 failures in it.
const MOST: usize = 1 << 20;
