//! TLS towards the load balancer: one server configuration for all workers, with a certificate that can be replaced
//! while it is in use. What is read and made is in [`pair`], when a pair of files is read again in [`reload`]; the
//! handshake's place in a connection's life is floor 4's business.

pub mod pair;
pub mod reload;

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::UnixTime;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{AlertDescription, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

use self::pair::Pair;
use crate::clock;
use crate::config::{self, Config, TaskIp};

/// What the settings want of TLS: with the certificate that they give, or with one that is made now, for the hosts
/// that may enter and the addresses that are known.
///
/// # Errors
///
/// When the operating system has no random numbers or no thread left.
pub fn begin(
    config: &Config,
    given: Option<Pair>,
    interfaces: &[IpAddr],
) -> Result<Option<Tls>, Box<dyn std::error::Error>> {
    let pair = match (given, &config.tls) {
        (_, config::Tls::Off) => return Ok(None),
        (Some(pair), _) => pair,
        (None, _) => {
            let mut addresses = interfaces.to_vec();
            match &config.task_ip {
                TaskIp::Given(given) => addresses.extend(given),
                TaskIp::Auto(source) => addresses.extend(&source.pod),
                TaskIp::Off => {}
            }
            Pair::self_signed(&config.rules.allowed, &addresses)?
        }
    };
    let tls = Tls::new(&pair)?;
    reload::announce(&pair);
    if let config::Tls::Files { cert, key } = &config.tls {
        reload::watch(tls.clone(), cert.clone(), key.clone())?;
    }
    Ok(Some(tls))
}

/// What every connection's handshake needs. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
}

/// The certificate that the next handshake shows.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl Tls {
    /// Shows this certificate. TLS 1.2 too: an NLB's health check fails without it.
    ///
    /// # Errors
    ///
    /// When the operating system gives no random numbers for the keys of session tickets.
    pub fn new(pair: &Pair) -> Result<Self, rustls::Error> {
        let current = Arc::new(Current(RwLock::new(Arc::clone(&pair.key))));
        let mut config = ServerConfig::builder_with_details(Arc::new(provider()), Arc::new(Clock))
            .with_protocol_versions(rustls::DEFAULT_VERSIONS)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Current>::clone(&current));
        config.alpn_protocols = ALPN.iter().map(|name| name.to_vec()).collect();
        // The client keeps the session: no memory here for each, and no lock between the workers.
        if clock::is_set() {
            config.ticketer = aws_lc_rs::Ticketer::new()?;
        }
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), current })
    }

    /// Begins the handshake on a connection. It has no bound in time.
    pub fn accept(&self, stream: TcpStream) -> Accept<TcpStream> {
        self.acceptor.accept_with(stream, |session| session.set_buffer_limit(Some(BUFFER)))
    }

    /// Handshakes from now on show this certificate.
    pub fn replace(&self, pair: &Pair) {
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&pair.key);
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

/// The time of tickets. rustls' own panics before 1970.
#[derive(Debug)]
struct Clock;

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        clock::now().duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

impl ResolvesServerCert for Current {
    /// Whatever name the client asks for, or none: whether the host may enter is the policy's business.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// The protocol that the handshake agreed on, if the client named any.
pub fn protocol(stream: &TlsStream<TcpStream>) -> Option<&[u8]> {
    stream.get_ref().1.alpn_protocol()
}

/// Why a handshake failed: a word under which repeats are counted, and what to do.
pub fn failure(error: &io::Error) -> (&'static str, &'static str) {
    use rustls::Error;
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return ("connection_closed", "the client left in the middle of its handshake; a port scan does so");
    };
    match error {
        Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::UnsupportedCertificate,
        ) => (
            "certificate_refused",
            "the client checks certificates, which an ALB doesn't; give it one that it knows with HOSTWARD_TLS=files",
        ),
        Error::AlertReceived(_) => ("alert", "the client refused to go on; `error` is what it says"),
        Error::PeerIncompatible(_) => (
            "nothing_in_common",
            "the client offers no version or cipher that is still safe: TLS 1.2 or 1.3 with ECDHE",
        ),
        Error::NoApplicationProtocol => (
            "no_common_protocol",
            "the client wants another protocol; h2 and http/1.1 are spoken here: the target group's protocol version",
        ),
        Error::InvalidMessage(_) => ("not_tls", "what the client sent is no TLS"),
        _ => ("other", "the client breaks TLS; `error` says how"),
    }
}

fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

/// What is spoken inside, the best first. Which of them it is, the first bytes tell as they do without TLS.
pub const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

/// Bytes of what was written and the socket has not taken, per connection: one full record. rustls' own bound is
/// 64 KiB, for each slow reader.
const BUFFER: usize = 16 * 1024;
