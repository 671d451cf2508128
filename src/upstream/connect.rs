//! Towards the app: a name or an address becomes a connected socket, or a [`Failure`] that says why not.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::config::{Upstream, is_metadata_address};
use crate::error::Failure;

/// How and for how long to connect.
#[derive(Clone, Debug)]
pub struct Connector {
    target: Upstream,
    /// When the target is an address, which needs no look-up.
    address: Option<SocketAddr>,
    /// Bound on one attempt.
    timeout: Duration,
    /// Until then a refusal means that the app isn't up yet.
    patient_until: Instant,
}

impl Connector {
    /// A connector for `target`.
    pub fn new(target: Upstream, timeout: Duration, patient_until: Instant) -> Self {
        let address = target.host.parse().ok().map(|ip| SocketAddr::new(ip, target.port));
        Self { target, address, timeout, patient_until }
    }

    /// Bound on one attempt.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Connects; while the app may still be starting, waits for it.
    ///
    /// # Errors
    ///
    /// The reason of the last attempt.
    pub async fn connect(&self) -> Result<(TcpStream, SocketAddr), Failure> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.connect_once().await {
                Err(Failure::ConnectionRefused | Failure::Name) if Instant::now() + pause < self.patient_until => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                outcome => return outcome,
            }
        }
    }

    /// One attempt at each of the target's addresses.
    ///
    /// # Errors
    ///
    /// The reason of the last one.
    pub async fn connect_once(&self) -> Result<(TcpStream, SocketAddr), Failure> {
        if let Some(address) = self.address {
            return self.attempt(address).await;
        }
        let found = tokio::net::lookup_host((self.target.host.as_str(), self.target.port));
        let found = tokio::time::timeout(self.timeout, found).await.map_err(|_| Failure::Name)?;
        let mut outcome = Err(Failure::Name);
        for address in found.map_err(|_| Failure::Name)? {
            outcome = self.attempt(address).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    async fn attempt(&self, address: SocketAddr) -> Result<(TcpStream, SocketAddr), Failure> {
        // A name may lead where no setting may: to the task's metadata, and its credentials.
        if is_metadata_address(address.ip()) {
            return Err(Failure::Prohibited);
        }
        let connected = match tokio::time::timeout(self.timeout, TcpStream::connect(address)).await {
            Err(_) => return Err(Failure::ConnectTimeout),
            Ok(connected) => connected.and_then(|socket| socket.set_nodelay(true).map(|()| socket)),
        };
        match connected {
            Ok(socket) => Ok((socket, address)),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::ConnectionRefused => Failure::ConnectionRefused,
                io::ErrorKind::TimedOut => Failure::ConnectTimeout,
                io::ErrorKind::ConnectionReset => Failure::ConnectionTerminated,
                _ => Failure::Unreachable,
            }),
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
