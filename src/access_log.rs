//! [`Exchange`] → one line. Written by hand into a buffer of the worker's, because it is written for every
//! request: no allocation, no `tracing`. The buffer goes to the log's queue when it is full, or with the
//! next tick of the worker's timers.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Version;

use crate::config::{AccessLog, LogFormat};
use crate::exchange::Exchange;
use crate::log::Sink;
use crate::message::forwarding::write_address;

/// What stands before a member's value.
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}
/// One worker's access log.
#[derive(Debug)]
pub struct Journal {
    lines: RefCell<Vec<u8>>,
    clock: RefCell<Clock>,
    which: AccessLog,
    probes: bool,
    format: LogFormat,
    sink: Sink,
}

impl Journal {
    /// An access log that flushes into `sink`.
    pub fn new(which: AccessLog, probes: bool, format: LogFormat, sink: Sink) -> Self {
        Self { lines: RefCell::default(), clock: RefCell::default(), which, probes, format, sink }
    }

    /// Writes the exchange's line, if the settings want it.
    pub fn record(&self, exchange: &Exchange) {
        let failed = exchange.status.get() >= 400 || exchange.error.get().is_some();
        let wanted = match self.which {
            AccessLog::Off => false,
            AccessLog::Errors => failed,
            AccessLog::On => failed || self.probes || exchange.decision.get() != "probe",
        };
        if !wanted {
            return;
        }
        let mut lines = self.lines.borrow_mut();
        let mut clock = self.clock.borrow_mut();
        let time = clock.text(SystemTime::now());
        match self.format {
            LogFormat::Json => write_json(&mut lines, time, exchange),
            LogFormat::Text => write_text(&mut lines, time, exchange),
        }
        if lines.len() >= FLUSH_AT {
            self.sink.write(std::mem::take(&mut lines));
        }
    }

    /// Whether lines wait for [`Journal::flush`].
    pub fn is_empty(&self) -> bool {
        self.lines.borrow().is_empty()
    }

    /// Hands the lines to the log's queue.
    pub fn flush(&self) {
        if !self.is_empty() {
            self.sink.write(self.lines.take());
        }
    }
}

fn write_json(line: &mut Vec<u8>, time: &[u8], exchange: &Exchange) {
    line.extend_from_slice(b"{\"time\":\"");
    line.extend_from_slice(time);
    line.extend_from_slice(b"\",\"level\":\"INFO\",\"msg\":\"request\"");
    if let Some(request) = &exchange.request {
        text(line, key!("method"), request.method.as_str().as_bytes());
        if let Some(host) = &request.host {
            text(line, key!("host"), host.as_bytes());
        }
        // Never the query: it holds tokens and addresses.
        text(line, key!("path"), request.target.path().as_bytes());
        plain(line, key!("proto"), version(request.version));
    }
    number(line, key!("status"), u64::from(exchange.outcome()));
    milliseconds(line, key!("duration_ms"), exchange.started.elapsed());
    if let Some(upstream) = exchange.upstream.get() {
        milliseconds(line, key!("upstream_ms"), upstream);
    }
    number(line, key!("bytes_in"), exchange.bytes_in.get());
    number(line, key!("bytes_out"), exchange.bytes_out.get());
    address(line, key!("client_ip"), exchange.client.get());
    address(line, key!("peer_ip"), exchange.peer);
    if let Some(request) = &exchange.request {
        if let Some(agent) = &request.user_agent {
            text(line, key!("user_agent"), agent.as_bytes());
        }
        if let Some(trace) = &request.trace {
            text(line, key!("trace_id"), trace_id(trace.as_bytes()));
        }
    }
    if let Some(id) = exchange.request_id.get() {
        text(line, key!("request_id"), id.as_bytes());
    }
    plain(line, key!("decision"), exchange.decision.get());
    if !exchange.rule.get().is_empty() {
        plain(line, key!("host_rule"), exchange.rule.get());
    }
    if let Some(error) = exchange.error.get() {
        plain(line, key!("error"), error);
    }
    line.extend_from_slice(b"}\n");
}

/// For a person at a terminal.
fn write_text(line: &mut Vec<u8>, time: &[u8], exchange: &Exchange) {
    line.extend_from_slice(time);
    line.extend_from_slice(b" INFO  request");
    if let Some(request) = &exchange.request {
        line.push(b' ');
        line.extend_from_slice(request.method.as_str().as_bytes());
        line.push(b' ');
        quoted(line, request.host.as_ref().map_or(b"-", |host| host.as_bytes()));
        line.push(b' ');
        quoted(line, request.target.path().as_bytes());
    }
    line.extend_from_slice(b" status=");
    digits(line, u64::from(exchange.outcome()));
    line.extend_from_slice(b" ms=");
    duration(line, exchange.started.elapsed());
    line.extend_from_slice(b" decision=");
    line.extend_from_slice(exchange.decision.get().as_bytes());
    if let Some(error) = exchange.error.get() {
        line.extend_from_slice(b" error=");
        line.extend_from_slice(error.as_bytes());
    }
    line.push(b'\n');
}

fn text(line: &mut Vec<u8>, key: &str, value: &[u8]) {
    line.extend_from_slice(key.as_bytes());
    quoted(line, value);
}

/// A value of ours, which needs no escapes.
fn plain(line: &mut Vec<u8>, key: &str, value: &str) {
    line.extend_from_slice(key.as_bytes());
    line.push(b'"');
    line.extend_from_slice(value.as_bytes());
    line.push(b'"');
}

fn number(line: &mut Vec<u8>, key: &str, value: u64) {
    line.extend_from_slice(key.as_bytes());
    digits(line, value);
}

fn milliseconds(line: &mut Vec<u8>, key: &str, value: Duration) {
    line.extend_from_slice(key.as_bytes());
    duration(line, value);
}

fn digits(line: &mut Vec<u8>, value: u64) {
    line.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Milliseconds with three decimals.
fn duration(line: &mut Vec<u8>, value: Duration) {
    let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
    digits(line, micros / 1_000);
    line.push(b'.');
    three_digits(line, u32::try_from(micros % 1_000).unwrap_or_default());
}

fn three_digits(line: &mut Vec<u8>, value: u32) {
    for divisor in [100, 10, 1] {
        line.push(b'0' + u8::try_from(value / divisor % 10).unwrap_or_default());
    }
}

fn address(line: &mut Vec<u8>, key: &str, value: IpAddr) {
    line.extend_from_slice(key.as_bytes());
    line.push(b'"');
    write_address(line, value);
    line.push(b'"');
}

/// A JSON string of text that a client chose: capped, escaped, always valid UTF-8.
fn quoted(line: &mut Vec<u8>, value: &[u8]) {
    let value = &value[..value.len().min(MAX_TEXT)];
    // No early exit: the compiler turns this into vector instructions.
    #[expect(clippy::needless_bitwise_bool, reason = "a branch for each byte is what this avoids")]
    let plain = value.iter().fold(true, |plain, b| plain & (b' '..=b'~').contains(b) & (*b != b'"') & (*b != b'\\'));
    if plain {
        line.push(b'"');
        line.extend_from_slice(value);
        line.push(b'"');
    } else {
        line.push(b'"');
        for c in String::from_utf8_lossy(value).chars() {
            match c {
                '"' | '\\' => line.extend([b'\\', c as u8]),
                // Whatever is no visible character in one place: some reader of the log would obey it.
                c if c != ' ' && c.escape_debug().len() > 1 => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        drop(write!(line, "\\u{unit:04x}"));
                    }
                }
                c => line.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        line.push(b'"');
    }
}

/// The root of `X-Amzn-Trace-Id` (`Root=1-…;Self=…`), or the trace id of a W3C `traceparent`.
fn trace_id(value: &[u8]) -> &[u8] {
    let amazon = value.split(|b| *b == b';').find_map(|part| part.trim_ascii().strip_prefix(b"Root="));
    match amazon {
        Some(root) => root,
        None => value.split(|b| *b == b'-').nth(1).unwrap_or(value),
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// RFC 3339 in UTC with milliseconds. The seconds' text is made once a second.
#[derive(Debug, Default)]
struct Clock {
    second: Cell<u64>,
    text: Vec<u8>,
}

impl Clock {
    fn text(&mut self, now: SystemTime) -> &[u8] {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.text.is_empty() || self.second.get() != since.as_secs() {
            self.second.set(since.as_secs());
            self.text.clear();
            let whole = UNIX_EPOCH + Duration::from_secs(since.as_secs());
            drop(write!(self.text, "{}", humantime::format_rfc3339_seconds(whole)));
        }
        self.text.truncate(SECONDS_LENGTH);
        self.text.push(b'.');
        three_digits(&mut self.text, since.subsec_millis());
        self.text.push(b'Z');
        &self.text
    }
}

/// Bytes of `2026-11-22T03:12:04`.
const SECONDS_LENGTH: usize = 19;
/// Bytes; a worker's buffer grows no further.
const FLUSH_AT: usize = 64 * 1024;
/// Bytes of one text that a client chose.
const MAX_TEXT: usize = 1024;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use http::{HeaderValue, Method};
    use serde_json::Value;

    use super::*;
    use crate::exchange::Request;

    fn exchange(host: &[u8], agent: &[u8]) -> Exchange {
        let request = Request {
            method: Method::GET,
            target: "/a?token=secret".parse().unwrap(),
            host: Some(HeaderValue::from_bytes(host).unwrap()),
            version: Version::HTTP_11,
            user_agent: Some(HeaderValue::from_bytes(agent).unwrap()),
            trace: Some(HeaderValue::from_static("Self=1-2;Root=1-67891233-abcdef012345678912345678;X=1")),
        };
        Exchange::begin(Instant::now(), "10.0.1.7".parse().unwrap(), Some(request))
    }

    fn json(exchange: &Exchange) -> Value {
        let mut line = Vec::new();
        write_json(&mut line, Clock::default().text(UNIX_EPOCH + Duration::from_millis(1_763_780_000_007)), exchange);
        let line = String::from_utf8(line).unwrap();
        assert_eq!(line.chars().filter(|c| c.is_control() || *c == '\u{2028}').count(), 1, "only the line's end");
        serde_json::from_str(&line).unwrap()
    }

    #[test]
    fn a_line_is_json_whatever_the_client_sent() {
        let line = json(&exchange(b"evil\"\\\t\xff\xc2\x85\xe2\x80\xa8", &[b'a'; 5_000]));
        assert_eq!(line["host"], "evil\"\\\t\u{fffd}\u{85}\u{2028}");
        assert_eq!(line["user_agent"].as_str().unwrap().len(), MAX_TEXT);
        assert_eq!(line["time"], "2025-11-22T02:53:20.007Z");
        assert_eq!(line["path"], "/a");
        assert_eq!(line["trace_id"], "1-67891233-abcdef012345678912345678");
        assert_eq!(line["status"], 499);
        assert_eq!(line["peer_ip"], "10.0.1.7");
        assert!(line["duration_ms"].is_number());
        assert!(!line.to_string().contains("secret"));
    }

    #[test]
    fn the_text_form_is_one_line_too() {
        let mut line = Vec::new();
        write_text(&mut line, b"t", &exchange(b"evil\t", b"a"));
        assert_eq!(String::from_utf8(line).unwrap().matches('\n').count(), 1);
    }

    #[test]
    fn times_carry_over_seconds() {
        let mut clock = Clock::default();
        assert_eq!(clock.text(UNIX_EPOCH + Duration::from_millis(999)), b"1970-01-01T00:00:00.999Z");
        assert_eq!(clock.text(UNIX_EPOCH + Duration::from_secs(1)), b"1970-01-01T00:00:01.000Z");
        assert_eq!(clock.text(UNIX_EPOCH + Duration::from_millis(1_010)), b"1970-01-01T00:00:01.010Z");
    }

    #[test]
    fn a_w3c_trace_id_is_found() {
        assert_eq!(
            trace_id(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            b"4bf92f3577b34da6a3ce929d0e0e4736"
        );
        assert_eq!(trace_id(b"odd"), b"odd");
    }
}
