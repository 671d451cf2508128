//! What the targets share: a reader of HTTP/1.1 that owes nothing to hostward's own, one of uwsgi packets, and a
//! hostward in this process, between a client and an app.

pub mod app;
pub mod arrived;
pub mod compared;
pub mod http1;
pub mod proxy;
pub mod uwsgi;

/// An input's parts: its first line, and the rest.
pub fn first_line(input: &[u8]) -> (&[u8], &[u8]) {
    match input.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, b""),
    }
}
