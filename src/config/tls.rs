//! `HOSTWARD_TLS` and what belongs to it: a path or the PEM itself, which nobody gets to see.
//!
//! Nothing is read here: a health check has the same settings, and must not fail because a file is being replaced.

use std::fmt;
use std::path::PathBuf;

use super::mistake::Mistake;
use super::pem::{PEM, is_pem, showable};
use super::reader::Reader;
use super::values::Fault;

/// `HOSTWARD_TLS`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// The load balancer speaks plain HTTP.
    Off,
    /// A key and a certificate are made at the start.
    SelfSigned,
    /// They are given.
    Files {
        /// The certificate, with what else is in its chain behind it.
        cert: Pem,
        /// Its private key.
        key: Pem,
    },
}

/// Where PEM comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// A file.
    Path(PathBuf),
    /// The setting itself.
    Text(String),
}

impl Tls {
    /// As the setting takes it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::SelfSigned => "self-signed",
            Self::Files { .. } => "files",
        }
    }

    /// What a client of the listener speaks.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Off => "http",
            Self::SelfSigned | Self::Files { .. } => "https",
        }
    }
}

/// Without the text, which may be a private key.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_string())
    }
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(&showable(&path.to_string_lossy())),
            Self::Text(_) => f.write_str(PEM),
        }
    }
}

impl Reader {
    pub(super) fn tls(&mut self) -> Tls {
        let mode = self.word("HOSTWARD_TLS");
        let given = ["HOSTWARD_TLS_CERT", "HOSTWARD_TLS_KEY"].map(|variable| (variable, self.read(variable, pem)));
        if mode == "files" {
            for (variable, value) in &given {
                if value.is_none() && !self.wrong(variable) {
                    let hint = "A path or the PEM itself. Example: /run/secrets/tls.pem.";
                    self.mistakes.push(Mistake::new(variable, None, "required, because HOSTWARD_TLS=files", hint));
                }
            }
        } else if !self.wrong("HOSTWARD_TLS") {
            for (variable, value) in &given {
                if value.is_some() {
                    self.conflict(
                        variable,
                        format!("HOSTWARD_TLS is {mode}, so nothing would read it: set it to files"),
                    );
                }
            }
        }
        match (mode, given.map(|(_, value)| value)) {
            ("self-signed", _) => Tls::SelfSigned,
            ("files", [Some(cert), Some(key)]) => Tls::Files { cert, key },
            _ => Tls::Off,
        }
    }
}

fn pem(_: &'static super::Kind, text: &str) -> Result<Pem, Fault> {
    if is_pem(text) {
        // Many a tool that fills in variables leaves a PEM on one line, with the ends of its lines written out.
        return Ok(Pem::Text(if text.contains('\n') { text.into() } else { text.replace("\\n", "\n") }));
    }
    if text.contains('\n') {
        return Err(Fault::new("neither a path nor PEM, which has a line -----BEGIN …-----"));
    }
    Ok(Pem::Path(text.into()))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::super::{Flags, load};
    use super::*;

    const TEXT: &str = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----";

    fn loaded(settings: &[(&str, &str)]) -> Result<Tls, Vec<Mistake>> {
        let hosts = [("ALLOWED_HOSTS", "a.example")];
        let environment =
            settings.iter().chain(&hosts).map(|(name, value)| (format!("HOSTWARD_{name}").into(), (*value).into()));
        match load(&Flags::default(), environment, false) {
            Ok(loaded) => Ok(loaded.config.tls),
            Err(mistakes) => Err(mistakes.list),
        }
    }

    #[test]
    fn a_path_and_pem_are_told_apart() {
        let path = Pem::Path("/a.pem".into());
        let files = |cert: &str, key: &str| loaded(&[("TLS", "files"), ("TLS_CERT", cert), ("TLS_KEY", key)]);
        assert_eq!(files("/a.pem", TEXT), Ok(Tls::Files { cert: path, key: Pem::Text(TEXT.into()) }));
        let one_line = TEXT.replace('\n', "\\n");
        assert!(matches!(files("a", &one_line), Ok(Tls::Files { key: Pem::Text(text), .. }) if text == TEXT));
        assert_eq!(loaded(&[]), Ok(Tls::Off));
        assert_eq!(loaded(&[("TLS", "self-signed")]), Ok(Tls::SelfSigned));
    }

    #[test]
    fn the_three_settings_fit_each_other() {
        for (settings, wrong) in [
            (&[("TLS", "files")][..], &["TLS_CERT", "TLS_KEY"][..]),
            (&[("TLS", "files"), ("TLS_CERT", "/a")], &["TLS_KEY"]),
            (&[("TLS_CERT", "/a")], &["TLS_CERT"]),
            (&[("TLS", "self-signed"), ("TLS_CERT", "/a"), ("TLS_KEY", "/b")], &["TLS_CERT", "TLS_KEY"]),
            (&[("TLS", "on"), ("TLS_CERT", "/a")], &["TLS"]),
            (&[("TLS", "files"), ("TLS_CERT", "/a"), ("TLS_KEY", "MIG\nx")], &["TLS_KEY"]),
        ] {
            let mistakes = loaded(settings).unwrap_err();
            let names: Vec<_> = mistakes.iter().map(|mistake| mistake.setting.replace("HOSTWARD_", "")).collect();
            assert_eq!(names, wrong, "{mistakes:?}");
        }
    }

    #[test]
    fn a_key_is_never_shown() {
        let bare = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg";
        for settings in [
            &[("TLS_KEY", TEXT)][..],
            &[("TLS_KEY", bare)],
            &[("TLS", TEXT)],
            &[("TLS", "files"), ("TLS_CERT", "/a"), ("TLS_KEY", bare), ("IDLE_TIMEOUT", "x")],
            &[("IDLE_TIMEOUT", TEXT)],
        ] {
            let mistakes = loaded(settings).unwrap_err();
            let said = format!("{mistakes:?}");
            assert!(!said.contains("c2VjcmV0") && !said.contains(bare), "{said}");
        }
        let tls = loaded(&[("TLS", "files"), ("TLS_CERT", "/a.pem"), ("TLS_KEY", TEXT)]).unwrap();
        assert_eq!(format!("{tls:?}"), "Files { cert: /a.pem, key: (PEM) }");
    }

    #[test]
    fn a_key_in_a_list_is_not_shown_item_by_item() {
        for setting in ["ALLOWED_HOSTS", "PROBE_HOSTS", "TRUSTED_PROXIES", "TASK_IP"] {
            let environment = [("HOSTWARD_ALLOWED_HOSTS", "a.example"), (&format!("HOSTWARD_{setting}"), TEXT)]
                .map(|(name, value)| (name.into(), value.into()));
            let mistakes = load(&Flags::default(), environment, false).unwrap_err().list;
            assert_eq!((mistakes.len(), mistakes[0].value.as_deref()), (1, Some(PEM)), "{mistakes:?}");
        }
        for text in [TEXT.as_bytes().to_vec(), [TEXT.as_bytes(), b"\xff"].concat()] {
            let environment = [("HOSTWARD_ALLOWED_HOSTS".into(), "a.example".into())];
            let pods = ("POD_IPS".into(), OsString::from_vec(text));
            let warnings = load(&Flags::default(), environment.into_iter().chain([pods]), false).unwrap().warnings;
            assert!(warnings.len() == 1 && !format!("{warnings:?}").contains("c2VjcmV0"), "{warnings:?}");
        }
    }
}
