//! [`Exchange`] → one line. Written by hand into a buffer of the worker's, because it is written for every
//! request: no allocation, no `tracing`. The buffer goes to the log's queue when it is full, or with the
//! next tick of the worker's timers.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use http::{Method, Version};

use crate::clock;
use crate::config::{AccessLog, LogFormat};
use crate::exchange::Exchange;
use crate::log::Sink;
use crate::message::forwarding::write_address;

/// What stands before a member's value: a number, or a string with its first quote.
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
    ($name:literal, string) => {
        concat!(",\"", $name, "\":\"")
    };
}

/// One worker's access log.
#[derive(Debug)]
pub struct Journal {
    lines: RefCell<Vec<u8>>,
    /// How long they were when they were last handed over: what the next ones will probably take.
    usual: Cell<usize>,
    time: RefCell<Time>,
    which: AccessLog,
    probes: bool,
    format: LogFormat,
    sink: Sink,
}

impl Journal {
    /// An access log that flushes into `sink`.
    pub fn new(which: AccessLog, probes: bool, format: LogFormat, sink: Sink) -> Self {
        Self {
            lines: RefCell::default(),
            usual: Cell::default(),
            time: RefCell::default(),
            which,
            probes,
            format,
            sink,
        }
    }

    /// Writes the line of an exchange that took so long, if the settings want it.
    pub fn record(&self, exchange: &Exchange, took: Duration) {
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
        if lines.capacity() == 0 {
            // A line more than usual must not copy all the others.
            lines.reserve(self.usual.get() / 4 * 5);
        }
        let mut time = self.time.borrow_mut();
        let time = time.text(clock::millis_since_1970(exchange.started + took));
        match self.format {
            LogFormat::Json => write_json(&mut lines, time, exchange, took),
            LogFormat::Text => write_text(&mut lines, time, exchange, took),
        }
        if lines.len() >= FLUSH_AT {
            self.hand_over(std::mem::take(&mut lines));
        }
    }

    /// Whether lines wait for [`Journal::flush`].
    pub fn is_empty(&self) -> bool {
        self.lines.borrow().is_empty()
    }

    /// Hands the lines to the log's queue.
    pub fn flush(&self) {
        if !self.is_empty() {
            self.hand_over(self.lines.take());
        }
    }

    fn hand_over(&self, lines: Vec<u8>) {
        self.usual.set(lines.len());
        self.sink.write(lines);
    }
}

fn write_json(line: &mut Vec<u8>, time: &[u8; TIME_LENGTH], exchange: &Exchange, took: Duration) {
    line.extend_from_slice(b"{\"time\":\"");
    line.extend_from_slice(time);
    line.extend_from_slice(b"\",\"level\":\"INFO\",\"msg\":\"request\"");
    if let Some(request) = &exchange.request {
        plain(line, key!("method", string), method(&request.method));
        if let Some(host) = &request.host {
            text(line, key!("host", string), host.as_bytes());
        }
        // Never the query: it holds tokens and addresses.
        text(line, key!("path", string), request.target.path().as_bytes());
        plain(line, key!("proto", string), version(request.version));
    }
    number(line, key!("status"), u64::from(exchange.outcome()));
    milliseconds(line, key!("duration_ms"), took);
    if let Some(upstream) = exchange.upstream.get() {
        milliseconds(line, key!("upstream_ms"), upstream);
    }
    number(line, key!("bytes_in"), exchange.bytes_in.get());
    number(line, key!("bytes_out"), exchange.bytes_out.get());
    address(line, key!("client_ip", string), exchange.client.get());
    address(line, key!("peer_ip", string), exchange.peer);
    if let Some(request) = &exchange.request {
        if let Some(agent) = &request.user_agent {
            text(line, key!("user_agent", string), agent.as_bytes());
        }
        if let Some(trace) = &request.trace {
            text(line, key!("trace_id", string), trace_id(trace.as_bytes()));
        }
    }
    if let Some(id) = exchange.request_id.get() {
        text(line, key!("request_id", string), id.as_bytes());
    }
    plain(line, key!("decision", string), exchange.decision.get());
    if !exchange.rule.get().is_empty() {
        plain(line, key!("host_rule", string), exchange.rule.get());
    }
    if let Some(error) = exchange.error.get() {
        plain(line, key!("error", string), error);
    }
    line.extend_from_slice(b"}\n");
}

/// For a person at a terminal.
fn write_text(line: &mut Vec<u8>, time: &[u8], exchange: &Exchange, took: Duration) {
    line.extend_from_slice(time);
    line.extend_from_slice(b" INFO  request");
    if let Some(request) = &exchange.request {
        line.push(b' ');
        line.extend_from_slice(method(&request.method).as_bytes());
        line.push(b' ');
        quoted(line, request.host.as_ref().map_or(b"-", |host| host.as_bytes()));
        line.push(b' ');
        quoted(line, request.target.path().as_bytes());
    }
    line.extend_from_slice(b" status=");
    digits(line, u64::from(exchange.outcome()));
    line.extend_from_slice(b" ms=");
    duration(line, took);
    line.extend_from_slice(b" decision=");
    line.extend_from_slice(exchange.decision.get().as_bytes());
    if let Some(error) = exchange.error.get() {
        line.extend_from_slice(b" error=");
        line.extend_from_slice(error.as_bytes());
    }
    line.push(b'\n');
}

// Inlined are those that write a key: it is a few moves then, and not a copy of a length that nobody knows.

#[inline]
fn text(line: &mut Vec<u8>, key: &str, value: &[u8]) {
    line.extend_from_slice(key.as_bytes());
    escaped(line, value);
    line.push(b'"');
}

/// A value of ours, or a token of HTTP's, which needs no escapes.
#[inline]
fn plain(line: &mut Vec<u8>, key: &str, value: &str) {
    line.extend_from_slice(key.as_bytes());
    line.extend_from_slice(value.as_bytes());
    line.push(b'"');
}

#[inline]
fn number(line: &mut Vec<u8>, key: &str, value: u64) {
    line.extend_from_slice(key.as_bytes());
    digits(line, value);
}

#[inline]
fn milliseconds(line: &mut Vec<u8>, key: &str, value: Duration) {
    line.extend_from_slice(key.as_bytes());
    duration(line, value);
}

fn digits(line: &mut Vec<u8>, value: u64) {
    line.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Milliseconds with three decimals.
fn duration(line: &mut Vec<u8>, value: Duration) {
    // Not through `as_micros`, which divides 128 bits.
    digits(line, value.as_secs().saturating_mul(1_000).saturating_add(u64::from(value.subsec_millis())));
    let [hundreds, tens, ones] = three_digits(value.subsec_micros() % 1_000);
    line.extend_from_slice(&[b'.', hundreds, tens, ones]);
}

fn three_digits(value: u32) -> [u8; 3] {
    [100, 10, 1].map(|divisor| b'0' + (value / divisor % 10) as u8)
}

#[inline]
fn address(line: &mut Vec<u8>, key: &str, value: IpAddr) {
    line.extend_from_slice(key.as_bytes());
    write_address(line, value);
    line.push(b'"');
}

fn quoted(line: &mut Vec<u8>, value: &[u8]) {
    line.push(b'"');
    escaped(line, value);
    line.push(b'"');
}

/// What stands in a JSON string for text that a client chose: capped, escaped, always valid UTF-8.
fn escaped(line: &mut Vec<u8>, value: &[u8]) {
    let value = &value[..value.len().min(MAX_TEXT)];
    if is_plain(value) {
        return line.extend_from_slice(value);
    }
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
}

/// Whether every byte is a visible character of ASCII, or a space, and none has to be escaped. Eight at a time: most of a
/// line's text is asked.
fn is_plain(value: &[u8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    // A byte's highest bit says so of that byte; exact is only whether any does.
    let less = |word: u64, than: u8| word.wrapping_sub(ONES * u64::from(than)) & !word;
    let has = |word: u64, byte: u8| less(word ^ (ONES * u64::from(byte)), 1);
    let odd = |word: u64| word | less(word, b' ') | has(word, b'"') | has(word, b'\\') | has(word, 0x7f);
    let (words, rest) = value.as_chunks::<8>();
    let mut last = [b' '; 8];
    last[..rest.len()].copy_from_slice(rest);
    words.iter().fold(odd(u64::from_ne_bytes(last)), |odds, word| odds | odd(u64::from_ne_bytes(*word))) & HIGH == 0
}

/// Capped like all that a client chooses.
fn method(method: &Method) -> &str {
    let method = method.as_str();
    method.get(..MAX_TEXT).unwrap_or(method)
}

/// The root of `X-Amzn-Trace-Id` (`Root=1-…;Self=…`), or the trace id of a W3C `traceparent`.
fn trace_id(value: &[u8]) -> &[u8] {
    let ends = memchr::memchr_iter(b';', value).chain([value.len()]);
    let mut begin = 0;
    for end in ends {
        if let Some(root) = value[begin..end].trim_ascii().strip_prefix(b"Root=") {
            return root;
        }
        begin = end + 1;
    }
    value.split(|b| *b == b'-').nth(1).unwrap_or(value)
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// RFC 3339 in UTC with milliseconds. The seconds' text is made once a second.
#[derive(Debug)]
struct Time {
    second: u64,
    text: [u8; TIME_LENGTH],
}

impl Time {
    /// `millis`: since 1970.
    fn text(&mut self, millis: u64) -> &[u8; TIME_LENGTH] {
        let second = millis / 1000;
        if self.second != second {
            self.second = second;
            let whole = UNIX_EPOCH + Duration::from_secs(second);
            drop(write!(&mut self.text[..SECONDS_LENGTH], "{}", humantime::format_rfc3339_seconds(whole)));
        }
        self.text[SECONDS_LENGTH + 1..][..3].copy_from_slice(&three_digits((millis % 1000) as u32));
        &self.text
    }
}

impl Default for Time {
    fn default() -> Self {
        Self { second: 0, text: *b"1970-01-01T00:00:00.000Z" }
    }
}

/// Bytes of `2026-11-22T03:12:04`, and with `.007Z`.
const SECONDS_LENGTH: usize = 19;
const TIME_LENGTH: usize = SECONDS_LENGTH + 5;
/// Bytes; a worker's buffer grows no further.
const FLUSH_AT: usize = 64 * 1024;
/// Bytes of one text that a client chose.
const MAX_TEXT: usize = 1024;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use http::HeaderValue;
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
        write_json(&mut line, Time::default().text(1_763_780_000_007), exchange, Duration::from_millis(3));
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
    fn text_is_plain_when_each_of_its_bytes_is() {
        for byte in 0..=u8::MAX {
            let plain = (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\';
            for length in 1..20 {
                for at in 0..length {
                    let mut text = vec![if at % 2 == 0 { b'~' } else { b' ' }; length];
                    text[at] = byte;
                    assert_eq!(is_plain(&text), plain, "{byte:#x} at {at} of {length}");
                }
            }
        }
        assert!(is_plain(b""));
    }

    #[test]
    fn the_text_form_is_one_line_too() {
        let mut line = Vec::new();
        write_text(&mut line, b"t", &exchange(b"evil\t", b"a"), Duration::ZERO);
        assert_eq!(String::from_utf8(line).unwrap().matches('\n').count(), 1);
    }

    #[test]
    fn times_carry_over_seconds() {
        let mut time = Time::default();
        assert_eq!(time.text(999), b"1970-01-01T00:00:00.999Z");
        assert_eq!(time.text(1_000), b"1970-01-01T00:00:01.000Z");
        assert_eq!(time.text(1_010), b"1970-01-01T00:00:01.010Z");
    }

    #[test]
    fn a_w3c_trace_id_is_found() {
        assert_eq!(
            trace_id(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            b"4bf92f3577b34da6a3ce929d0e0e4736"
        );
        assert_eq!(trace_id(b"odd"), b"odd");
        assert_eq!((trace_id(b""), trace_id(b";"), trace_id(b"Self=1; Root=2;")), (&b""[..], &b";"[..], &b"2"[..]));
    }
}
