//! Where log lines go: through a bounded queue to one thread that writes standard output.
//!
//! A log driver that stalls blocks that thread and nothing else: lines that find the queue full are dropped
//! and counted, and the count is the first line after the stall. Events (`tracing`) and the access log
//! share the queue and the shape of their lines.

pub mod access_log;

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

use crate::clock;
use crate::config::LogFormat;

/// The way into the queue. Cheap to clone; never blocks.
#[derive(Clone, Debug)]
pub struct Sink {
    queue: SyncSender<Message>,
    /// Lines, since the last line that was written.
    dropped: Arc<AtomicU64>,
    /// Lines, ever.
    dropped_ever: Arc<AtomicU64>,
}

enum Message {
    Lines(Vec<u8>),
    Stop(SyncSender<()>),
}

impl Sink {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    ///
    /// When the operating system has no thread left.
    pub fn start(out: impl Write + Send + 'static, format: LogFormat) -> io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE_LENGTH);
        let dropped = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&dropped);
        std::thread::Builder::new().name("log".into()).spawn(move || write_lines(&lines, out, &counter, format))?;
        Ok(Self { queue, dropped, dropped_ever: Arc::default() })
    }

    /// Queues whole lines, or drops and counts them.
    pub fn write(&self, lines: Vec<u8>) {
        match self.queue.try_send(Message::Lines(lines)) {
            Ok(()) => {}
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => {
                if let Message::Lines(lines) = message {
                    let count = memchr::memchr_iter(b'\n', &lines).count() as u64;
                    self.dropped.fetch_add(count, Ordering::Relaxed);
                    self.dropped_ever.fetch_add(count, Ordering::Relaxed);
                }
            }
        }
    }

    /// Queues whole lines. False, and nothing counted, when there is no room: whoever offers them has them still.
    pub fn offer(&self, lines: Vec<u8>) -> bool {
        self.queue.try_send(Message::Lines(lines)).is_ok()
    }

    /// How many lines were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped_ever.load(Ordering::Relaxed)
    }

    /// Waits until what is queued has been written, at most for `bound`.
    pub fn stop(&self, bound: Duration) {
        let deadline = Instant::now() + bound;
        let (done, wait) = sync_channel(1);
        let mut message = Message::Stop(done);
        while let Err(TrySendError::Full(back)) = self.queue.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            message = back;
            std::thread::sleep(Duration::from_millis(5));
        }
        // Nothing to do about a log that can't be written any more.
        wait.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
    }
}

fn write_lines(lines: &Receiver<Message>, mut out: impl Write, dropped: &AtomicU64, format: LogFormat) {
    for message in lines {
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let mut fields = Map::new();
            fields.insert("lines".into(), lost.into());
            fields.insert(
                "hint".into(),
                "the log driver did not take the lines; see its `mode` and `max-buffer-size`".into(),
            );
            let line = line(format, Level::WARN, "log lines dropped", fields);
            drop(out.write_all(line.as_bytes()));
        }
        match message {
            // A closed standard output must not end the proxy.
            Message::Lines(lines) => drop(write_by_pieces(&mut out, &lines)),
            Message::Stop(done) => {
                done.send(()).ok();
                return;
            }
        }
    }
}

/// Writes whole lines, some at a time: meanwhile the workers have their turn, which may share the CPU with this thread.
fn write_by_pieces(out: &mut impl Write, mut lines: &[u8]) -> io::Result<()> {
    while !lines.is_empty() {
        let piece = &lines[..lines.len().min(PIECE)];
        // A line that is longer goes in parts.
        let end = memchr::memrchr(b'\n', piece).map_or(piece.len(), |at| at + 1);
        out.write_all(&lines[..end])?;
        out.flush()?;
        lines = &lines[end..];
        std::thread::yield_now();
    }
    Ok(())
}

/// Makes the sink the place where `tracing` events go. Only the first call of a process has an effect.
pub fn install(sink: Sink, format: LogFormat, level: Level) {
    // Only what hostward says itself: the `h2` crate has something to say about every frame.
    let own = Targets::new().with_target(env!("CARGO_CRATE_NAME"), level);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(EventWriter(sink))
        .event_format(EventFormat(format))
        .finish()
        .with(own);
    drop(tracing::subscriber::set_global_default(subscriber));
}

struct EventWriter(Sink);

/// One event's text, queued when the formatter is done with it.
struct EventLine {
    text: Vec<u8>,
    sink: Sink,
}

impl<'a> MakeWriter<'a> for EventWriter {
    type Writer = EventLine;

    fn make_writer(&'a self) -> EventLine {
        EventLine { text: Vec::new(), sink: self.0.clone() }
    }
}

impl Write for EventLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for EventLine {
    fn drop(&mut self) {
        if !self.text.is_empty() {
            self.sink.write(std::mem::take(&mut self.text));
        }
    }
}

struct EventFormat(LogFormat);

impl<S, N> FormatEvent<S, N> for EventFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        writer.write_str(&line(self.0, *event.metadata().level(), &fields.message, fields.map))
    }
}

/// An event's fields as JSON values, its message apart.
#[derive(Default)]
struct Fields {
    message: String,
    map: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.map.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field, text);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.put(field, value);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
}

/// One event as a line, with its end.
fn line(format: LogFormat, level: Level, message: &str, fields: Map<String, Value>) -> String {
    let time = humantime::format_rfc3339_millis(clock::now());
    match format {
        LogFormat::Json => {
            let mut object = Map::new();
            object.insert("time".into(), time.to_string().into());
            object.insert("level".into(), level.as_str().into());
            object.insert("msg".into(), message.into());
            object.extend(fields);
            format!("{}\n", Value::Object(object))
        }
        LogFormat::Text => {
            let mut text = format!("{time} {:5} {message}", level.as_str());
            for (name, value) in fields {
                // JSON's quotes and escapes keep a line one line, whatever the value holds.
                text.extend([" ", &name, "=", &value.to_string()]);
            }
            text.push('\n');
            text
        }
    }
}

/// Collapses repeats: one line a minute for each reason, with the count of those left out.
#[derive(Debug, Default)]
pub struct Repeats {
    /// Reasons are words of ours: there are only so many.
    seen: Mutex<HashMap<Reason, Repeat>>,
}

/// An event's `msg`, and its `reason`.
type Reason = (&'static str, &'static str);

#[derive(Debug)]
struct Repeat {
    since: Instant,
    suppressed: u64,
}

impl Repeats {
    /// Whether to write a line now: the count of lines left out since the last one, or `None` to leave this
    /// one out as well.
    pub fn admit(&self, message: &'static str, reason: &'static str, now: Instant) -> Option<u64> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get_mut(&(message, reason)) {
            Some(repeat) if now.duration_since(repeat.since) < WINDOW => {
                repeat.suppressed += 1;
                None
            }
            Some(repeat) => {
                repeat.since = now;
                Some(std::mem::take(&mut repeat.suppressed))
            }
            None => {
                seen.insert((message, reason), Repeat { since: now, suppressed: 0 });
                Some(0)
            }
        }
    }

    /// Forgets what is older than the window, and returns how often each message with its reason was left out
    /// of the log since its last line.
    pub fn expire(&self, now: Instant) -> Vec<(&'static str, &'static str, u64)> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left_out = Vec::new();
        seen.retain(|(message, reason), repeat| {
            let fresh = now.duration_since(repeat.since) < WINDOW;
            if !fresh && repeat.suppressed > 0 {
                left_out.push((*message, *reason, repeat.suppressed));
            }
            fresh
        });
        left_out
    }
}

/// Batches: at 64 KiB each, what a stalled log driver can make hostward hold is 2 MiB.
const QUEUE_LENGTH: usize = 32;
/// Bytes that are written at once, at most.
const PIECE: usize = 8 * 1024;
/// How long a reason stays silent after its line.
pub const WINDOW: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_written_once_a_minute_with_the_count() {
        let repeats = Repeats::default();
        let start = Instant::now();
        assert_eq!(repeats.admit("denied", "a", start), Some(0));
        assert_eq!(repeats.admit("denied", "a", start), None);
        assert_eq!(repeats.admit("denied", "a", start + WINDOW / 2), None);
        assert_eq!(repeats.admit("denied", "b", start), Some(0));
        assert_eq!(repeats.admit("denied", "a", start + WINDOW), Some(2));
        assert_eq!(repeats.expire(start + WINDOW), []);
        assert_eq!(repeats.admit("denied", "a", start + WINDOW), None);
        assert_eq!(repeats.expire(start + WINDOW * 3), [("denied", "a", 1)]);
    }

    #[test]
    fn an_event_is_one_flat_json_object() {
        let mut fields = Map::new();
        fields.insert("host".into(), "evil\"\n".into());
        let text = line(LogFormat::Json, Level::WARN, "request denied", fields.clone());
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&value["level"], &value["msg"], &value["host"]),
            (&"WARN".into(), &"request denied".into(), &"evil\"\n".into())
        );
        assert_eq!(text.matches('\n').count(), 1);
        assert_eq!(line(LogFormat::Text, Level::WARN, "request denied", fields).matches('\n').count(), 1);
    }

    struct Stalled(Receiver<()>, std::sync::mpsc::Sender<Vec<u8>>);
    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().ok();
            self.1.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_log_drops_and_counts_and_never_blocks() {
        let (release, gate) = sync_channel::<()>(0);
        let (sent, written) = std::sync::mpsc::channel();
        let sink = Sink::start(Stalled(gate, sent), LogFormat::Json).unwrap();
        for _ in 0..QUEUE_LENGTH + 10 {
            sink.write(b"one\ntwo\n".to_vec());
        }
        drop(release);
        sink.stop(Duration::from_secs(5));
        let all: Vec<u8> = written.try_iter().flatten().collect();
        let text = String::from_utf8(all).unwrap();
        let lost: u64 = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .map(|line| line["lines"].as_u64().unwrap())
            .sum();
        let kept = text.lines().filter(|line| *line == "one").count() as u64;
        assert!(lost >= 18, "{lost}");
        assert_eq!(sink.dropped(), lost);
        assert_eq!(kept * 2 + lost, 2 * (QUEUE_LENGTH as u64 + 10));
    }

    #[test]
    fn what_is_written_at_once_are_whole_lines_unless_one_is_too_long() {
        struct Pieces(Vec<Vec<u8>>);
        impl Write for Pieces {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.push(bytes.to_vec());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let mut lines = "a line of some length\n".repeat(2_000).into_bytes();
        lines.extend(vec![b'x'; 3 * PIECE]);
        lines.push(b'\n');
        let mut out = Pieces(Vec::new());
        write_by_pieces(&mut out, &lines).unwrap();
        assert_eq!(out.0.concat(), lines);
        assert!(out.0.iter().all(|piece| piece.len() <= PIECE) && out.0.len() < 15);
        let whole = out.0.iter().filter(|piece| piece.ends_with(b"length\n")).count();
        assert_eq!(whole, 6);
    }
}
