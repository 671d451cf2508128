//! A task's network mode, as far as `inject` depends on it.

use crate::config::Protocol;

/// What the containers of a task share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Network {
    /// One IP and one loopback.
    Awsvpc,
    /// Nothing: each container has an address of its own, and `links` give names.
    Bridge,
}

impl Network {
    /// Where hostward reaches the app.
    pub(super) fn url(self, protocol: Protocol, app: &str, port: u16) -> String {
        let host = match self {
            Self::Awsvpc => "127.0.0.1",
            Self::Bridge => app,
        };
        format!("{}://{host}:{port}", protocol.scheme())
    }
}
