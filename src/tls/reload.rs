//! Reads the pair of files again when one of them has changed. What is wrong with the new pair is said in the log,
//! and the old one stays. A thread of its own: a path may be on a network's file system, which can stall.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::Tls;
use super::pair::Pair;
use crate::config::Pem;

/// Says which certificate is shown, and why it won't please.
pub fn announce(pair: &Pair) {
    let (source, sha256, expires) = (&pair.source, &pair.fingerprint, pair.expires());
    tracing::info!(source, sha256, expires, "certificate in use");
    if let Some(error) = pair.untimely() {
        let hint = "an ALB doesn't mind; clients that check certificates turn away";
        tracing::warn!(source, sha256, expires, error, hint, "certificate out of its time");
    }
}

/// Watches the files for as long as the process lives.
///
/// # Errors
///
/// When the operating system has no thread left.
pub fn watch(tls: Tls, cert: Pem, key: Pem) -> io::Result<()> {
    let paths: Vec<_> = [&cert, &key].into_iter().filter_map(path).map(Path::to_owned).collect();
    if paths.is_empty() {
        return Ok(());
    }
    let stamps = move || paths.iter().map(|path| stamp(path)).collect::<Vec<_>>();
    let mut known = stamps();
    let mut last = known.clone();
    let look = move || {
        loop {
            thread::sleep(LOOK);
            let now = stamps();
            // The two files are written one after the other: not before both have been left alone for a look.
            if now != known && now == last {
                known.clone_from(&now);
                read_again(&tls, &cert, &key);
            }
            last = now;
        }
    };
    thread::Builder::new().name("certificate".into()).spawn(look).map(drop)
}

fn read_again(tls: &Tls, cert: &Pem, key: &Pem) {
    match Pair::read(cert, key) {
        Ok(pair) => {
            tls.replace(&pair);
            announce(&pair);
        }
        Err(mistakes) => {
            for mistake in mistakes {
                let hint = "the old certificate stays in use; put a pair there that fits";
                tracing::error!(
                    setting = mistake.setting,
                    value = mistake.value,
                    error = mistake.error,
                    hint,
                    "certificate refused"
                );
            }
        }
    }
}

fn path(pem: &Pem) -> Option<&Path> {
    match pem {
        Pem::Path(path) => Some(path),
        Pem::Text(_) => None,
    }
}

/// What changes with a file; of a symbolic link, as Kubernetes has them, what it leads to.
fn stamp(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let file = fs::metadata(path).ok()?;
    Some((file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
}

/// Two calls of the kernel a second, and a change is in use after two.
const LOOK: Duration = Duration::from_secs(1);
