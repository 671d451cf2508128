//! The client's end of TLS, and certificates to try it with. It believes every certificate, as an ALB does, and tells
//! an end that was said (`close_notify`) from one that just happened.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

/// Where a hostward speaks TLS.
static SECURE: Mutex<Vec<SocketAddr>> = Mutex::new(Vec::new());

/// From now on clients shake hands there, until [`forget`].
pub fn remember(address: SocketAddr) {
    SECURE.lock().unwrap().push(address);
}

/// The port may become somebody else's.
pub fn forget(address: SocketAddr) {
    SECURE.lock().unwrap().retain(|other| *other != address);
}

/// Whether clients shake hands there.
pub fn is_spoken_at(address: SocketAddr) -> bool {
    SECURE.lock().unwrap().contains(&address)
}

/// Offers these protocols.
pub fn config(protocols: &[&[u8]]) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// A connection, with TLS or without.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// Over `tcp`; with TLS where that is spoken at the other end.
    pub fn over(tcp: TcpStream) -> Self {
        Self::offering(tcp, b"http/1.1")
    }

    /// The same, for this protocol.
    pub fn offering(tcp: TcpStream, protocol: &[u8]) -> Self {
        let secure = tcp.peer_addr().is_ok_and(is_spoken_at);
        if secure { Self::tls(tcp, &[protocol]) } else { Self::Plain(tcp) }
    }

    /// With TLS. The handshake takes place with the first bytes.
    pub fn tls(tcp: TcpStream, protocols: &[&[u8]]) -> Self {
        let name = ServerName::try_from("www.example.com").unwrap();
        let session = ClientConnection::new(config(protocols), name).unwrap();
        Self::Tls(Box::new(StreamOwned::new(session, tcp)))
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(stream) => &stream.sock,
        }
    }

    pub fn set_read_timeout(&self, bound: Option<Duration>) -> io::Result<()> {
        self.tcp().set_read_timeout(bound)
    }

    pub fn set_write_timeout(&self, bound: Option<Duration>) -> io::Result<()> {
        self.tcp().set_write_timeout(bound)
    }

    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.tcp().shutdown(how)
    }

    /// Says that nothing more comes: a FIN, or TLS's word for it.
    pub fn half_close(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.shutdown(Shutdown::Write),
            Self::Tls(stream) => {
                stream.conn.send_close_notify();
                stream.conn.complete_io(&mut stream.sock).map(drop)
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(stream) => stream.read(buffer).map_err(|error| match error.kind() {
                // Told apart from the end of a connection that was said.
                ErrorKind::UnexpectedEof => ErrorKind::ConnectionAborted.into(),
                _ => error,
            }),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// Believes every certificate.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A directory of its own, which goes with it.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static LAST: AtomicUsize = AtomicUsize::new(0);
        let name = format!("hostward-tls-{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes `name.pem` and `name.key`, with arguments for `openssl req` that say which key, and more.
    pub fn pair(&self, name: &str, arguments: &[&str]) -> (String, String) {
        let (cert, key) = (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")));
        let subject = format!("/CN={name}");
        let fixed = ["req", "-x509", "-nodes", "-subj", &subject, "-keyout", &key, "-out", &cert];
        openssl(&[&fixed, arguments].concat(), "");
        (cert, key)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Arguments for [`Directory::pair`]: the kind of key that everybody has.
pub const ECDSA: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

/// Runs `openssl` with this on its standard input; what it prints, both ways.
pub fn openssl(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("timeout")
        .args(["20", "openssl"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is installed");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "openssl {arguments:?}: {}\n{said}", output.status);
    said
}
