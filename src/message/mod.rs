//! Pure edits of HTTP messages: no sockets, no clock, no environment, no log.

pub mod authority;
pub mod fields;
pub mod forwarding;
pub mod frames;
pub mod framing;
pub mod head;
pub mod interim;
pub mod lines;
pub mod location;
pub mod names;
pub mod trace;
pub mod unparsed;
pub mod upgrade;
pub mod uwsgi;
