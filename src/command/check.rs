//! `hostward check`: says what the settings amount to, and with `--upstream` whether the app can be reached.
//!
//! It is given settings that are right already; the mistakes of others have been printed by then.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as unix;
use std::path::Path;
use std::time::Duration;

use crate::config::{Config, Endpoint, Loaded, RejectStatus, Tls, Upstream, is_metadata_address};
use crate::policy::{HostPolicy, HostRewrite, ProbeHosts};
use crate::tls::pair::Pair;
use crate::upstream::connect::uwsgi_name;

/// Prints what the settings amount to and returns the exit code: 1 when the app was to be reached and wasn't.
pub fn run(loaded: &Loaded, certificate: Option<&Pair>, test_upstream: bool, out: &mut impl Write) -> u8 {
    match report(loaded, certificate, test_upstream, out) {
        Ok(true) => 0,
        Ok(false) | Err(_) => 1,
    }
}

fn report(loaded: &Loaded, certificate: Option<&Pair>, test_upstream: bool, out: &mut impl Write) -> io::Result<bool> {
    let Loaded { config, warnings, .. } = loaded;
    writeln!(out, "configuration is good\n")?;
    for (name, value) in facts(config, certificate) {
        writeln!(out, "  {name:15}  {value}")?;
    }
    for warning in warnings {
        writeln!(out, "\nwarning: {} {warning}", warning.setting)?;
    }
    let reached = !test_upstream || {
        let (reached, line) = match connect(&config.upstream, config.upstream_connect_timeout) {
            Ok(address) => (true, format!("the app accepts connections on {address}")),
            Err(why) => (false, why),
        };
        writeln!(out, "\n{line}")?;
        reached
    };
    out.flush()?;
    Ok(reached)
}

fn facts(config: &Config, certificate: Option<&Pair>) -> Vec<(&'static str, String)> {
    let rules = &config.rules;
    let canonical = rules.canonical.as_ref().map_or("none", |host| host.to_str().unwrap_or_default());
    let seen = match rules.rewrite {
        HostRewrite::Preserve => "seen by the app on a probe",
        HostRewrite::Canonical => "seen by the app on every request",
    };
    let refused = match (rules.mode, config.reject_status) {
        (HostPolicy::Report, _) => "logged and forwarded, because HOSTWARD_HOST_POLICY=report".into(),
        (HostPolicy::Enforce, RejectStatus::Close) => "closed without an answer".into(),
        (HostPolicy::Enforce, RejectStatus::Answer(status)) => format!("answered {}", status.as_u16()),
    };
    vec![
        ("allowed hosts", listed(&rules.allowed)),
        ("canonical host", format!("{canonical}, {seen}")),
        ("foreign hosts", refused),
        ("probe hosts", probes(&rules.probes)),
        ("task addresses", config.task_ip.source()),
        ("trusted proxies", if rules.trusted.is_empty() { "none".into() } else { listed(&rules.trusted) }),
        ("listens on", config.listen.to_string()),
        ("tls", tls(config, certificate)),
        ("admin", config.admin_listen.map_or("off".into(), |address| address.to_string())),
        ("upstream", config.upstream.to_string()),
    ]
}

fn tls(config: &Config, certificate: Option<&Pair>) -> String {
    match (&config.tls, certificate) {
        (_, Some(Pair { source, fingerprint, .. })) => {
            let expires = certificate.map(Pair::expires).unwrap_or_default();
            format!("{source}, SHA-256 {fingerprint}, expires {expires}")
        }
        (Tls::SelfSigned, None) => "self-signed, made at the start".into(),
        (tls, None) => tls.name().into(),
    }
}

fn probes(probes: &ProbeHosts) -> String {
    let words = [(probes.own, "self"), (probes.peer, "peer"), (probes.missing, "missing")];
    let words = words.into_iter().filter(|(on, _)| *on).map(|(_, word)| word.to_owned());
    let all: Vec<String> = words.chain(probes.networks.iter().map(ToString::to_string)).collect();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}

fn listed(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Connects to the app as the proxy would, or says why not and what to do.
fn connect(upstream: &Upstream, timeout: Duration) -> Result<String, String> {
    match &upstream.endpoint {
        Endpoint::Tcp { host, port } => connect_tcp(upstream, host, *port, timeout),
        Endpoint::Unix(path) => connect_unix(upstream, path),
    }
}

fn connect_unix(upstream: &Upstream, path: &Path) -> Result<String, String> {
    let url = upstream.to_string();
    let shown = url.split_once(':').map_or(url.as_str(), |(_, path)| path);
    let connect = |path: &Path| {
        let address = match path.to_string_lossy().strip_prefix('\0') {
            Some(name) => unix::SocketAddr::from_abstract_name(name),
            None => unix::SocketAddr::from_pathname(path),
        };
        address.and_then(|address| unix::UnixStream::connect_addr(&address))
    };
    let connected = connect(path).or_else(|error| uwsgi_name(path).map_or(Err(error), |name| connect(&name)));
    match connected {
        Ok(_) => Ok(shown.to_owned()),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::NotFound => format!(
                "there is no {shown}. Is the app started, and do both containers mount the volume that its socket is in?"
            ),
            io::ErrorKind::ConnectionRefused => format!("nothing listens on {shown}. Is the app started?"),
            io::ErrorKind::PermissionDenied => format!(
                "{shown} may not be opened by this user. Give both containers the same user or group, or the socket mode 666."
            ),
            _ => format!("{shown} can't be reached ({error})."),
        }),
    }
}

fn connect_tcp(upstream: &Upstream, host: &str, port: u16, timeout: Duration) -> Result<String, String> {
    let url = upstream;
    let addresses: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|error| {
            format!("the name of {url} can't be resolved ({error}). In awsvpc mode the app is on 127.0.0.1.")
        })?
        .collect();
    if let Some(address) = addresses.iter().find(|address| is_metadata_address(address.ip())) {
        return Err(format!("{url} leads to {address}, where the task's credentials are: refused."));
    }
    let mut last = None;
    for address in addresses {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(_) => return Ok(address.to_string()),
            Err(error) => last = Some((address, error)),
        }
    }
    Err(match last {
        None => format!("the name of {url} has no address."),
        Some((address, error)) if error.kind() == io::ErrorKind::ConnectionRefused => format!(
            "nothing listens on {address}. Is the app started, and is this its port? Otherwise set HOSTWARD_UPSTREAM."
        ),
        Some((address, error)) => format!(
            "{address} can't be reached ({error}). Is it in the same task? HOSTWARD_UPSTREAM_CONNECT_TIMEOUT is {timeout:?}."
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::config::{Flags, Protocol, load};

    fn checked(upstream: &str, test: bool) -> (u8, String) {
        let environment = [("ALLOWED_HOSTS", "www.example.com *"), ("UPSTREAM", upstream)]
            .map(|(name, value)| (format!("HOSTWARD_{name}").into(), value.into()));
        let loaded = load(&Flags::default(), environment, false).unwrap();
        let mut out = Vec::new();
        let code = run(&loaded, None, test, &mut out);
        (code, String::from_utf8(out).unwrap())
    }

    #[test]
    fn good_settings_are_summed_up_with_their_warnings() {
        let (code, text) = checked("http://[::1]:3000", false);
        assert_eq!(code, 0);
        assert!(text.starts_with("configuration is good\n"), "{text}");
        for fact in [
            "allowed hosts    www.example.com, *\n",
            "canonical host   www.example.com, seen by the app on a probe\n",
            "foreign hosts    answered 421\n",
            "probe hosts      self, peer\n",
            "upstream         http://[::1]:3000\n",
            "warning: HOSTWARD_ALLOWED_HOSTS \"*\": every host may enter.",
        ] {
            assert!(text.contains(fact), "{fact} is not in {text}");
        }
    }

    #[test]
    fn an_app_that_listens_is_reached_and_another_is_not() {
        let app = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", app.local_addr().unwrap());
        let (code, text) = checked(&url, true);
        assert_eq!((code, text.contains("accepts connections")), (0, true), "{text}");
        drop(app);
        let (code, text) = checked(&url, true);
        assert_eq!((code, text.contains("nothing listens on")), (1, true), "{text}");
    }

    #[test]
    fn a_path_is_reached_when_something_listens_there() {
        let name = format!("@hostward-check-{}", std::process::id());
        let address = unix::SocketAddr::from_abstract_name(&name[1..]).unwrap();
        let app = unix::UnixListener::bind_addr(&address).unwrap();
        let url = format!("http+unix:{name}");
        let (code, text) = checked(&url, true);
        assert_eq!((code, text.contains(&format!("accepts connections on {name}"))), (0, true), "{text}");
        drop(app);
        let (code, text) = checked(&url, true);
        assert_eq!((code, text.contains(&format!("nothing listens on {name}"))), (1, true), "{text}");
        let (code, text) = checked("http+unix:/nowhere/app.sock", true);
        assert_eq!((code, text.contains("there is no /nowhere/app.sock")), (1, true), "{text}");
    }

    #[test]
    fn an_address_with_credentials_is_not_even_tried() {
        let endpoint = Endpoint::Tcp { host: "::ffff:169.254.170.2".into(), port: 80 };
        let upstream = Upstream { protocol: Protocol::Http, endpoint };
        assert!(connect(&upstream, Duration::from_millis(10)).unwrap_err().ends_with("refused."));
    }
}
