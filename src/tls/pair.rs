//! A certificate and its private key: read and checked against each other, or made in memory. And what is said of
//! them in the log.

use std::fs::{self, FileType, OpenOptions};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::crypto::aws_lc_rs;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};

use crate::clock;
use crate::config::{Mistake, Pem, Tls};
use crate::policy::{HostPattern, Hosts};

/// A certificate with its chain, and the key that fits it.
#[derive(Clone, Debug)]
pub struct Pair {
    pub(super) key: Arc<CertifiedKey>,
    /// Where it comes from.
    pub source: String,
    /// SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` prints it.
    pub fingerprint: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Pair {
    /// What the settings give, if they give a certificate.
    ///
    /// # Errors
    ///
    /// As [`Pair::read`].
    pub fn given(tls: &Tls) -> Result<Option<Self>, Vec<Mistake>> {
        match tls {
            Tls::Off | Tls::SelfSigned => Ok(None),
            Tls::Files { cert, key } => Self::read(cert, key).map(Some),
        }
    }

    /// Reads what `TLS_CERT` and `TLS_KEY` name.
    ///
    /// # Errors
    ///
    /// What is wrong with either, or with both together.
    pub fn read(cert: &Pem, key: &Pem) -> Result<Self, Vec<Mistake>> {
        let (chain, private) = (chain(cert), private_key(key));
        let (chain, private) = match (chain, private) {
            (Ok(chain), Ok(private)) => (chain, private),
            (chain, private) => return Err([chain.err(), private.err()].into_iter().flatten().collect()),
        };
        let named = |pem: &Pem, variable: &str| match pem {
            Pem::Path(_) => pem.to_string(),
            Pem::Text(_) => variable.into(),
        };
        Self::new(chain, private, named(cert, CERT)).map_err(|error| {
            vec![match error {
                Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                    let both = "the key doesn't fit the certificate; the certificate must be the first in its file";
                    mistake(KEY, key, both, "Example: the two files that were issued together.")
                }
                Error::InvalidCertificate(why) => {
                    let error = format!("the certificate can't be read ({why:?}); expected X.509 version 3");
                    mistake(CERT, cert, error, EXAMPLE_CERT)
                }
                _ => {
                    let error = "not a key that TLS can use; expected ECDSA (P-256, P-384, P-521), Ed25519, or RSA of 2048 bits or more";
                    mistake(KEY, key, error, EXAMPLE_KEY)
                }
            }]
        })
    }

    /// Makes a key, and a certificate for the hosts that may enter and for these addresses. Nobody can check it:
    /// an ALB doesn't.
    ///
    /// # Errors
    ///
    /// When the operating system gives no random numbers.
    pub fn self_signed(hosts: &[HostPattern], addresses: &[IpAddr]) -> Result<Self, Box<dyn std::error::Error>> {
        let now = SystemTime::now();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "hostward");
        params.subject_alt_names = names(hosts, addresses);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = (now - SKEW).into();
        params.not_after = (now + VALIDITY).into();
        // rcgen takes the serial number from the key's hash: as random as the key.
        let certificate = params.self_signed(&key)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Self::new(vec![certificate.der().clone()], private, "self-signed".into())?)
    }

    /// When it ends, for the log.
    pub fn expires(&self) -> String {
        humantime::format_rfc3339_seconds(clock::printable(self.not_after)).to_string()
    }

    /// What is wrong with its time, if anything: no reason not to start, because an ALB doesn't mind.
    pub fn untimely(&self) -> Option<&'static str> {
        let now = SystemTime::now();
        if now > self.not_after {
            Some("it has expired")
        } else if now < self.not_before {
            Some("it isn't valid yet; is this machine's clock right?")
        } else {
            None
        }
    }

    fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>, source: String) -> Result<Self, Error> {
        let leaf = chain.first().map(|der| der.to_vec()).unwrap_or_default();
        let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())?;
        let bad = || Error::InvalidCertificate(rustls::CertificateError::BadEncoding);
        let (not_before, not_after) = validity(&leaf).ok_or_else(bad)?;
        Ok(Self { key: Arc::new(key), source, fingerprint: fingerprint(&leaf), not_before, not_after })
    }
}

fn chain(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, Mistake> {
    let text = text(CERT, pem)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(mistake(
            CERT,
            pem,
            "there is no certificate in it; expected PEM, -----BEGIN CERTIFICATE-----",
            EXAMPLE_CERT,
        )),
        Err(_) => Err(mistake(CERT, pem, "broken PEM; was it cut off, or were its lines joined?", EXAMPLE_CERT)),
    }
}

fn private_key(pem: &Pem) -> Result<PrivateKeyDer<'static>, Mistake> {
    use rustls::pki_types::pem::Error;
    let text = text(KEY, pem)?;
    // Without the parser's own words, which quote lines of the text.
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        Error::NoItemsFound if memchr::memmem::find(&text, b"ENCRYPTED PRIVATE KEY").is_some() => mistake(
            KEY,
            pem,
            "the key is encrypted; expected one without a passphrase",
            "Example: openssl pkey -in KEY -out NEW.",
        ),
        Error::NoItemsFound => {
            let error =
                "there is no private key in it; expected PEM, PKCS#8 (-----BEGIN PRIVATE KEY-----), SEC 1 or PKCS#1";
            mistake(KEY, pem, error, EXAMPLE_KEY)
        }
        _ => mistake(KEY, pem, "broken PEM; was it cut off, or were its lines joined?", EXAMPLE_KEY),
    })
}

fn text(variable: &str, pem: &Pem) -> Result<Vec<u8>, Mistake> {
    let path = match pem {
        Pem::Text(text) => return Ok(text.clone().into_bytes()),
        Pem::Path(path) => path,
    };
    let example = if variable == CERT { EXAMPLE_CERT } else { EXAMPLE_KEY };
    read_file(path).map_err(|error| {
        let error = match error.kind() {
            io::ErrorKind::NotFound => "there is no such file; expected a path or the PEM itself".into(),
            io::ErrorKind::PermissionDenied => "hostward's user may not read this file".into(),
            _ => format!("this file can't be read: {error}"),
        };
        mistake(variable, pem, error, example)
    })
}

/// Reads a regular file. Anything else may block, never end, or do something when it is opened.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    check_type(fs::metadata(path)?.file_type())?;
    // It may have been replaced since.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    check_type(file.metadata()?.file_type())?;
    let mut text = Vec::new();
    file.take(MOST).read_to_end(&mut text)?;
    Ok(text)
}

fn check_type(kind: FileType) -> io::Result<()> {
    let what = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(io::Error::other(format!("it is {what}, not a regular file")))
}

fn mistake(variable: &str, pem: &Pem, error: impl Into<String>, hint: &str) -> Mistake {
    Mistake::new(variable, Some(&pem.to_string()), error, hint)
}

/// The certificate's names. A wildcard in it stands for one label, which is as much as can be said.
fn names(hosts: &[HostPattern], addresses: &[IpAddr]) -> Vec<SanType> {
    let mut names = Vec::new();
    let mut addresses = addresses.to_vec();
    for pattern in hosts {
        match &pattern.hosts {
            Hosts::Exact(name) => names.push(name.clone()),
            Hosts::Domain(name) => names.extend([name.clone(), format!("*.{name}")]),
            Hosts::Subdomains(name) => names.push(format!("*.{name}")),
            Hosts::Address(address) => addresses.push(*address),
            Hosts::Network(_) | Hosts::Any => {}
        }
    }
    names.push("localhost".into());
    addresses.extend([IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)]);
    let mut all: Vec<SanType> = Vec::new();
    let names = names.into_iter().filter_map(|name| name.try_into().ok().map(SanType::DnsName));
    for name in names.take(MOST_NAMES).chain(addresses.into_iter().take(MOST_NAMES).map(SanType::IpAddress)) {
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all
}

fn fingerprint(der: &[u8]) -> String {
    let hash = TLS13_AES_128_GCM_SHA256.tls13().map(|suite| suite.common.hash_provider.hash(der));
    let bytes = hash.as_ref().map(AsRef::as_ref).unwrap_or_default();
    bytes.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}

/// RFC 5280 §4.1: a certificate is a sequence whose first item holds, in this order, version, serial number,
/// signature, issuer and validity.
fn validity(der: &[u8]) -> Option<(SystemTime, SystemTime)> {
    let times = yasna::parse_der(der, |reader| {
        reader.read_sequence(|reader| {
            let times = reader.next().read_sequence(|reader| {
                reader.read_optional(|reader| reader.read_tagged(yasna::Tag::context(0), skip))?;
                skip(reader.next())?;
                skip(reader.next())?;
                skip(reader.next())?;
                let times = reader.next().read_sequence(|reader| Ok((time(reader.next())?, time(reader.next())?)))?;
                while reader.read_optional(skip)?.is_some() {}
                Ok(times)
            })?;
            skip(reader.next())?;
            skip(reader.next())?;
            Ok(times)
        })
    });
    times.ok()
}

fn skip(reader: yasna::BERReader<'_, '_>) -> yasna::ASN1Result<()> {
    reader.read_der().map(drop)
}

fn time(reader: yasna::BERReader<'_, '_>) -> yasna::ASN1Result<SystemTime> {
    // RFC 5280 §4.1.2.5: UTCTime until 2049, GeneralizedTime from then on.
    if reader.lookahead_tag()? == yasna::tags::TAG_UTCTIME {
        reader.read_utctime().map(|time| (*time.datetime()).into())
    } else {
        reader.read_generalized_time().map(|time| (*time.datetime()).into())
    }
}

const CERT: &str = "HOSTWARD_TLS_CERT";
const KEY: &str = "HOSTWARD_TLS_KEY";
const EXAMPLE_CERT: &str = "Example: /run/secrets/tls.pem.";
const EXAMPLE_KEY: &str = "Example: /run/secrets/tls.key.";
/// Bytes of a file. A chain with RSA-4096 keys is 10 KiB.
const MOST: u64 = 1 << 20;
/// Names, and addresses, in a certificate that is made here: it has to fit into a handshake of 64 KiB.
const MOST_NAMES: usize = 250;
/// Before now, for clients whose clock is behind.
const SKEW: Duration = Duration::from_hours(24);
/// After now: the longest that Apple's clients take of any certificate is 825 days. No task lives as long.
const VALIDITY: Duration = Duration::from_hours(24 * 730);

#[cfg(test)]
mod tests {
    use super::*;

    fn made(hosts: &[&str], addresses: &[&str]) -> Pair {
        let hosts: Vec<HostPattern> = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Pair::self_signed(&hosts, &addresses).unwrap()
    }

    #[test]
    fn a_made_certificate_is_timely_and_of_its_own() {
        let (one, other) = (made(&["*"], &[]), made(&["*"], &[]));
        assert_eq!(one.untimely(), None);
        assert_ne!(one.fingerprint, other.fingerprint);
        assert_eq!(one.fingerprint.len(), 32 * 3 - 1);
        let span = one.not_after.duration_since(one.not_before).unwrap();
        assert_eq!(span, SKEW + VALIDITY);
    }

    #[test]
    fn a_certificate_that_ended_before_1970_can_be_shown() {
        let old = Pair { not_after: SystemTime::UNIX_EPOCH - SKEW, ..made(&["*"], &[]) };
        assert_eq!(old.expires(), "1970-01-01T00:00:00Z");
        assert_eq!(old.untimely(), Some("it has expired"));
    }

    #[test]
    fn names_are_told_once_and_are_bounded() {
        let shown = |hosts: &[HostPattern], addresses: &[IpAddr]| {
            let shown = names(hosts, addresses).into_iter().map(|name| match name {
                SanType::DnsName(name) => name.to_string(),
                SanType::IpAddress(address) => address.to_string(),
                other => panic!("{other:?}"),
            });
            shown.collect::<Vec<_>>()
        };
        let hosts = ["a.example", ".a.example", "*.b.example:8443", "10.0.0.1", "10.0.0.0/8", "*", "localhost"];
        let hosts: Vec<HostPattern> = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let addresses = ["::1", "10.0.0.1"].map(|address| address.parse().unwrap());
        let expected = ["a.example", "*.a.example", "*.b.example", "localhost", "::1", "10.0.0.1", "127.0.0.1"];
        assert_eq!(shown(&hosts, &addresses), expected);

        let many: Vec<HostPattern> = (0..1000).map(|number| format!(".n{number}.example").parse().unwrap()).collect();
        assert_eq!(shown(&many, &[]).len(), MOST_NAMES + 2);
        assert!(Pair::self_signed(&many, &[]).unwrap().key.cert[0].len() < 16 << 10);
    }

    #[test]
    fn times_of_this_century_and_the_next_are_read() {
        let key = KeyPair::generate().unwrap();
        for (year, shown) in [(2049, "2049-12-31T00:00:00Z"), (2051, "2051-12-31T00:00:00Z")] {
            let mut params = CertificateParams::default();
            params.not_after = rcgen::date_time_ymd(year, 12, 31);
            let certificate = params.self_signed(&key).unwrap();
            let (_, not_after) = validity(certificate.der()).unwrap();
            assert_eq!(humantime::format_rfc3339_seconds(not_after).to_string(), shown);
        }
        for der in [&b""[..], b"\x30\x00", b"\x30\x82\xff\xff", &[0x30; 64]] {
            assert_eq!(validity(der), None);
        }
    }
}
