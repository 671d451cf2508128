//! What both sides of HTTP/2 share: bodies on their way in and out.

pub mod joined;
pub mod pump;
pub mod stream_body;
