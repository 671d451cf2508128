//! PEM in settings: what of it may be shown.

use super::settings::Setting;

/// What of a setting's value may be shown. PEM is not, wherever it was put by mistake; nor is what may be the
/// inside of one in the settings that take PEM.
pub(super) fn shown(setting: &Setting, value: &str) -> String {
    match value {
        _ if takes_pem(setting) => showable(value),
        _ if is_pem(value) => PEM.into(),
        _ => value.into(),
    }
}

/// Whether a setting's value may be PEM.
pub(super) fn takes_pem(setting: &Setting) -> bool {
    matches!(setting.variable, "HOSTWARD_TLS_CERT" | "HOSTWARD_TLS_KEY")
}

/// Whether a value is, or has, a certificate or a key.
pub(super) fn is_pem(value: &str) -> bool {
    value.contains(BEGIN)
}

pub(super) fn showable(value: &str) -> String {
    let known = ["/", "./", "../", "arn:", "$"].iter().any(|start| value.starts_with(start)) && !value.contains('\n');
    let known = known || value.len() <= SHORTER_THAN_ANY_KEY;
    if is_pem(value) {
        PEM.into()
    } else if known {
        value.into()
    } else {
        "(not shown)".into()
    }
}

pub(super) const BEGIN: &str = "-----BEGIN";
pub(super) const PEM: &str = "(PEM)";
/// Characters. The shortest key there is, Ed25519 in PKCS#8, has 64 without its first and last line.
const SHORTER_THAN_ANY_KEY: usize = 40;
