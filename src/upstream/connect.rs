//! Towards the app: a name or an address becomes a connected socket, or a [`Failure`] that says why not.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::net::{TcpSocket, UnixStream};

use crate::config::{Endpoint, is_metadata_address};
use crate::error::Failure;
use crate::io::socket::{Socket, limit_buffers};

/// How and for how long to connect.
#[derive(Clone, Debug)]
pub struct Connector {
    target: Target,
    /// Bound on one attempt, whatever the number of addresses.
    timeout: Duration,
    /// Until then a refusal means that the app isn't up yet.
    patient_until: Instant,
}

#[derive(Clone, Debug)]
enum Target {
    Known(Address),
    /// A name and a port.
    Named(String, u16),
}

/// Where a socket can be connected to without a look-up.
#[derive(Clone, Debug)]
pub enum Address {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A path; of an abstract socket, its name with a NUL in front.
    Unix(PathBuf),
}

impl Address {
    /// Connects, without a bound in time. `buffer` bytes are what each of the socket's two buffers in the kernel may have,
    /// if they are limited.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub async fn connect(&self, buffer: Option<usize>) -> io::Result<Socket> {
        match self {
            Self::Tcp(address) => {
                let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
                // Before the app hears how much it may send.
                limit_buffers(&socket, buffer);
                let socket = socket.connect(*address).await?;
                socket.set_nodelay(true)?;
                Ok(Socket::Tcp(socket))
            }
            Self::Unix(path) => {
                let mut pause = FULL_PAUSE;
                loop {
                    match connect_unix(path).await {
                        // The listen queue is full (uWSGI's has 100 places). A SYN would be sent again; here we have to.
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(pause).await,
                        connected => {
                            return connected.map(|socket| {
                                limit_buffers(&socket, buffer);
                                Socket::Unix(socket)
                            });
                        }
                    }
                    pause = (pause * 2).min(LONGEST_FULL_PAUSE);
                }
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => f.write_str(&path.to_string_lossy().replace('\0', "@")),
        }
    }
}

impl Connector {
    /// A connector for `endpoint`.
    pub fn new(endpoint: &Endpoint, timeout: Duration, patient_until: Instant) -> Self {
        let target = match endpoint {
            Endpoint::Tcp { host, port } => match host.parse() {
                Ok(ip) => Target::Known(Address::Tcp(SocketAddr::new(ip, *port))),
                Err(_) => Target::Named(host.clone(), *port),
            },
            Endpoint::Unix(path) => Target::Known(Address::Unix(path.clone())),
        };
        Self { target, timeout, patient_until }
    }

    /// Bound on one attempt.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Connects; while the app may still be starting, waits for it. `buffer` as for [`Address::connect`].
    ///
    /// # Errors
    ///
    /// The reason of the last attempt.
    pub async fn connect(&self, buffer: Option<usize>) -> Result<(Socket, Address), Failure> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.connect_once(buffer).await {
                Err(Failure::ConnectionRefused | Failure::Name) if Instant::now() + pause < self.patient_until => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                outcome => return outcome,
            }
        }
    }

    /// One attempt at each of the target's addresses. `buffer` as for [`Address::connect`].
    ///
    /// # Errors
    ///
    /// The reason of the last one.
    pub async fn connect_once(&self, buffer: Option<usize>) -> Result<(Socket, Address), Failure> {
        let (name, port) = match &self.target {
            Target::Known(address) => return attempt(address.clone(), self.timeout, buffer).await,
            Target::Named(name, port) => (name.as_str(), *port),
        };
        let deadline = Instant::now() + self.timeout;
        let found = tokio::time::timeout(self.timeout, tokio::net::lookup_host((name, port)));
        let found: Vec<_> = found.await.map_err(|_| Failure::Name)?.map_err(|_| Failure::Name)?.collect();
        let mut outcome = Err(Failure::Name);
        for (address, left) in found.iter().zip((1..=found.len()).rev()) {
            // One that doesn't answer leaves time for the others.
            let share = deadline.saturating_duration_since(Instant::now()) / u32::try_from(left).unwrap_or(u32::MAX);
            outcome = attempt(Address::Tcp(*address), share, buffer).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }
}
/// One attempt at one address.
async fn attempt(address: Address, timeout: Duration, buffer: Option<usize>) -> Result<(Socket, Address), Failure> {
    // A name may lead where no setting may: to the task's metadata, and its credentials.
    if let Address::Tcp(address) = &address
        && is_metadata_address(address.ip())
    {
        return Err(Failure::Prohibited);
    }
    match tokio::time::timeout(timeout, address.connect(buffer)).await {
        Err(_) => Err(Failure::ConnectTimeout),
        Ok(Ok(socket)) => Ok((socket, address)),
        Ok(Err(error)) if matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE)) => {
            Err(Failure::OutOfDescriptors)
        }
        Ok(Err(error)) => Err(match error.kind() {
            // A path that isn't there yet, or whose listener is gone.
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Failure::ConnectionRefused,
            io::ErrorKind::TimedOut => Failure::ConnectTimeout,
            io::ErrorKind::PermissionDenied if matches!(address, Address::Unix(_)) => Failure::Forbidden,
            io::ErrorKind::ConnectionReset => Failure::ConnectionTerminated,
            _ => Failure::Unreachable,
        }),
    }
}

async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    match (UnixStream::connect(path).await, uwsgi_name(path)) {
        (Err(error), Some(name)) if error.kind() == io::ErrorKind::ConnectionRefused => UnixStream::connect(name).await,
        (connected, _) => connected,
    }
}

/// The other form of an abstract name: uWSGI takes the NUL that ends a text in C for a part of it.
pub fn uwsgi_name(path: &Path) -> Option<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.as_encoded_bytes().starts_with(b"\0").then(|| {
        name.push("\0");
        name.into()
    })
}

/// An app that has fallen behind accepts again within milliseconds, as a rule.
const FULL_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_FULL_PAUSE: Duration = Duration::from_millis(100);
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
