//! What the connections of a worker share, and what one of them takes of the memory budget.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::drain::Stage;
use crate::io::timers::Timers;
use crate::proxy::Proxy;
use crate::tls::Tls;

/// What a worker needs to serve connections.
#[derive(Debug)]
pub struct Server {
    /// What answers the requests.
    pub proxy: Proxy,
    /// The worker's timers.
    pub timers: Rc<Timers>,
    /// How far stopping has come.
    pub stage: Cell<Stage>,
    /// What the listener's TLS needs, if it speaks TLS.
    pub tls: Option<Tls>,
}

/// Bytes of memory that a connection takes while it is served: its task, its buffers and those of a connection to the
/// app.
pub(super) const ACTIVE: usize = 24 * 1024;
/// Bytes that a new connection takes until its first response, with what its client has sent before it was accepted; as
/// many as one with TLS takes while it is served.
pub const NEW: usize = 36 * 1024;
/// Bytes that it takes in addition while hyper serves it: buffers on both sides.
pub(super) const HYPER: usize = 40 * 1024;
/// Bytes; hyper's smallest sensible bound, and the most that one direction of a connection may hold.
pub(super) const BUFFER: usize = 64 * 1024;
/// How long a connection that was accepted at the very end gets for its request.
pub const LAST_CALL: Duration = Duration::from_secs(1);
