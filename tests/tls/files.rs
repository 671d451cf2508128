//! `HOSTWARD_TLS=files`: what is taken, what is refused, and a pair that changes.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::GET;
use crate::support::Task;
use crate::support::hostward::Hostward;
use crate::support::tls::{Directory, ECDSA, openssl};
use crate::support::wire::text;

const HOSTS: (&str, &str) = ("HOSTWARD_ALLOWED_HOSTS", "www.example.com");

fn files<'a>(cert: &'a str, key: &'a str) -> [(&'static str, &'a str); 3] {
    [("HOSTWARD_TLS", "files"), ("HOSTWARD_TLS_CERT", cert), ("HOSTWARD_TLS_KEY", key)]
}

/// What hostward shows, as the log names certificates.
fn shown(task: &Task) -> String {
    let said = super::s_client(task, &["-showcerts"]);
    let begin = said.find("-----BEGIN CERTIFICATE").unwrap_or_else(|| panic!("{said}"));
    fingerprint(&said[begin..])
}

fn fingerprint(pem: &str) -> String {
    let said = openssl(&["x509", "-noout", "-fingerprint", "-sha256"], pem);
    said.trim().split_once('=').unwrap().1.to_owned()
}

/// The mistakes that end the start.
fn mistakes(settings: &[(&str, &str)]) -> Vec<Value> {
    let settings = [&[HOSTS], settings].concat();
    for arguments in [&[][..], &["check"]] {
        let output = Hostward::run(arguments, &settings);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {said}");
        let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        if !arguments.is_empty() {
            return lines.into_iter().filter(|line| line["msg"] == "configuration mistake").collect();
        }
    }
    unreachable!()
}

#[test]
fn every_usual_key_serves_from_files_and_from_variables() {
    let directory = Directory::new();
    let (cert, key) = directory.pair("ec", ECDSA);
    let sec1 = directory.file("sec1.key");
    openssl(&["ec", "-in", &key, "-out", &sec1], "");
    let (rsa_cert, rsa_key) = directory.pair("rsa", &["-newkey", "rsa:2048"]);
    let pkcs1 = directory.file("pkcs1.key");
    openssl(&["rsa", "-traditional", "-in", &rsa_key, "-out", &pkcs1], "");
    let (ed_cert, ed_key) = directory.pair("ed", &["-newkey", "ed25519"]);
    for (cert, key, begin) in [
        (&cert, &key, "BEGIN PRIVATE"),
        (&cert, &sec1, "BEGIN EC"),
        (&rsa_cert, &rsa_key, "BEGIN PRIVATE"),
        (&rsa_cert, &pkcs1, "BEGIN RSA"),
        (&ed_cert, &ed_key, "BEGIN PRIVATE"),
    ] {
        let (cert_text, key_text) = (fs::read_to_string(cert).unwrap(), fs::read_to_string(key).unwrap());
        assert!(key_text.contains(begin), "{key}");
        let one_line = key_text.replace('\n', "\\n");
        for (cert, key, source) in
            [(&**cert, &**key, &**cert), (&cert_text, &key_text, "HOSTWARD_TLS_CERT"), (cert, &one_line, cert)]
        {
            let task = Task::echo(&files(cert, key));
            task.get("/").expect(200);
            let logged = task.hostward.line(|line| line["msg"] == "certificate in use");
            assert_eq!((&logged["source"], &logged["sha256"]), (&source.into(), &shown(&task).into()));
            assert_eq!(logged["sha256"], fingerprint(&cert_text));
            let secret = key_text.lines().nth(1).unwrap();
            assert!(!task.hostward.output().contains(secret));
        }
    }
}

#[test]
fn the_chain_is_sent() {
    let directory = Directory::new();
    let (leaf, key) = directory.pair("leaf", ECDSA);
    let (above, _) = directory.pair("above", ECDSA);
    let chain = fs::read_to_string(&leaf).unwrap() + &fs::read_to_string(&above).unwrap();
    let task = Task::echo(&files(&chain, &key));
    let said = super::s_client(&task, &["-showcerts"]);
    assert_eq!(said.matches("-----BEGIN CERTIFICATE").count(), 2, "{said}");
    assert!(said.contains("0 s:CN = leaf") && said.contains("1 s:CN = above"), "{said}");
}

#[test]
fn what_does_not_fit_stops_the_start_and_shows_no_key() {
    let directory = Directory::new();
    let (cert, key) = directory.pair("one", ECDSA);
    let (_, other) = directory.pair("other", ECDSA);
    let encrypted = directory.file("encrypted.key");
    openssl(&["pkcs8", "-topk8", "-passout", "pass:x", "-in", &key, "-out", &encrypted], "");
    let cert_text = fs::read_to_string(&cert).unwrap();
    let key_text = fs::read_to_string(&key).unwrap();
    let secret = key_text.lines().nth(1).unwrap();
    let cut = &key_text[..key_text.len() - 40];
    let broken = key_text.replace("\nM", "\n!");
    let nonsense = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (cert, key, name, words) in [
        (&*cert, &*other, "KEY", "doesn't fit"),
        (&cert, "/nowhere.key", "KEY", "no such file"),
        ("/nowhere.pem", &key, "CERT", "no such file"),
        (directory.path().to_str().unwrap(), &key, "CERT", "can't be read"),
        (&key, &key, "CERT", "no certificate"),
        (&cert, &cert, "KEY", "no private key"),
        (&cert, &encrypted, "KEY", "encrypted"),
        (&cert, cut, "KEY", "broken PEM"),
        (&cert, &broken, "KEY", "broken PEM"),
        (&cert_text[..cert_text.len() - 30], &key, "CERT", "broken PEM"),
        (&cert, nonsense, "KEY", "not a key"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &key, "CERT", "can't be read"),
        // The inside of a key without its first and last line: no path, and not to be shown.
        (&cert, secret, "KEY", "no such file"),
    ] {
        let found = mistakes(&files(cert, key));
        assert_eq!(found.len(), 1, "{found:#?}");
        let line = found[0].to_string();
        assert_eq!(found[0]["setting"], format!("HOSTWARD_TLS_{name}"), "{line}");
        assert!(line.contains(words) && line.contains("Example"), "{words}: {line}");
        assert!(!line.contains(secret) && !line.contains(&secret[..20]), "{line}");
    }
    // Both at once, and with others.
    let settings = [&files("/nowhere.pem", "/nowhere.key")[..], &[("HOSTWARD_IDLE_TIMEOUT", "75")]].concat();
    assert_eq!(mistakes(&settings).len(), 3);
}

#[test]
fn the_settings_belong_together() {
    for (settings, names) in [
        (&[("HOSTWARD_TLS", "files")][..], &["TLS_CERT", "TLS_KEY"][..]),
        (&[("HOSTWARD_TLS", "files"), ("HOSTWARD_TLS_CERT", "/a")], &["TLS_KEY"]),
        (&[("HOSTWARD_TLS_CERT", "/a"), ("HOSTWARD_TLS_KEY", "/b")], &["TLS_CERT", "TLS_KEY"]),
        (&[("HOSTWARD_TLS", "self-signed"), ("HOSTWARD_TLS_KEY", "/b")], &["TLS_KEY"]),
        (&[("HOSTWARD_TLS", "on")], &["TLS"]),
    ] {
        let found = mistakes(settings);
        let found: Vec<_> = found.iter().map(|line| line["setting"].as_str().unwrap()).collect();
        assert_eq!(found, names.iter().map(|name| format!("HOSTWARD_{name}")).collect::<Vec<_>>());
    }
}

#[test]
fn config_shows_paths_and_no_pem() {
    let directory = Directory::new();
    let (cert, key) = directory.pair("shown", ECDSA);
    let key_text = fs::read_to_string(key).unwrap();
    let settings = [&[HOSTS][..], &files(&cert, &key_text)].concat();
    for format in ["text", "json"] {
        let said = text(&Hostward::run(&["config", "--format", format], &settings).stdout);
        assert!(said.contains(&cert) && said.contains("(PEM)"), "{said}");
        assert!(!said.contains(key_text.lines().nth(1).unwrap()), "{said}");
    }
    let said = text(&Hostward::run(&["check"], &settings).stdout);
    assert!(said.contains(&fingerprint(&fs::read_to_string(&cert).unwrap())), "{said}");
    // As a flag it begins like one.
    let output = Hostward::run(&["check", "--tls-key", &key_text], &settings[..3]);
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn inject_writes_paths_and_no_key() {
    let directory = Directory::new();
    let (_, key) = directory.pair("injected", ECDSA);
    let key_text = fs::read_to_string(key).unwrap();
    let task = include_str!("../data/inject-one-container.json");
    for (key, code) in [("/mnt/certificates-of-this-service/tls.key", 0), (key_text.as_str(), 2)] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hostward"))
            .args([
                "inject",
                "--allowed-hosts",
                "www.example.com",
                "--tls",
                "files",
                "--tls-cert",
                "certificates/of/this/service/tls.pem",
            ])
            .args(["--tls-key", key])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(task.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let (written, said) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(!(said + &written).contains(key_text.lines().nth(1).unwrap()));
        assert_eq!(written.contains("\"certificates/of/this/service/tls.pem\""), code == 0, "{written}");
    }
}

#[test]
fn an_expired_certificate_is_shown_with_a_warning() {
    let directory = Directory::new();
    let (cert, key) = (directory.file("old.pem"), directory.file("old.key"));
    let made = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.not_after = (SystemTime::now() - Duration::from_hours(1)).into();
    let der = directory.file("der");
    fs::write(&der, params.self_signed(&made).unwrap().der()).unwrap();
    openssl(&["x509", "-inform", "DER", "-in", &der, "-out", &cert], "");
    fs::write(&der, made.serialize_der()).unwrap();
    openssl(&["pkey", "-inform", "DER", "-in", &der, "-out", &key], "");
    let task = Task::echo(&files(&cert, &key));
    task.get("/").expect(200);
    let line = task.hostward.line(|line| line["msg"] == "certificate out of its time");
    assert!(line["error"].as_str().unwrap().contains("expired") && line["level"] == "WARN", "{line}");
}

#[test]
fn a_new_pair_is_used_and_a_bad_one_is_not() {
    let directory = Directory::new();
    let (cert, key) = directory.pair("now", ECDSA);
    let (new_cert, new_key) = directory.pair("new", ECDSA);
    let task = Task::echo(&files(&cert, &key));
    let mut kept = task.client();
    kept.ask(GET).expect(200);
    let first = shown(&task);

    // Only one of the two.
    fs::copy(&new_cert, &cert).unwrap();
    let refused = task.hostward.line(|line| line["msg"] == "certificate refused");
    assert_eq!((&refused["setting"], &refused["level"]), (&"HOSTWARD_TLS_KEY".into(), &"ERROR".into()), "{refused}");
    assert!(refused["hint"].as_str().unwrap().contains("old certificate"), "{refused}");
    assert_eq!(shown(&task), first);

    // Now both, the last one put in its place at once, as a careful program does.
    let beside = directory.file("beside");
    fs::copy(&new_key, &beside).unwrap();
    fs::rename(&beside, &key).unwrap();
    let second = fingerprint(&fs::read_to_string(&new_cert).unwrap());
    task.hostward.line(|line| line["msg"] == "certificate in use" && line["sha256"] == second);
    assert_eq!(shown(&task), second);
    kept.ask(GET).expect(200);

    // Gone: the old one stays, and hostward too.
    fs::remove_file(&key).unwrap();
    task.hostward.line(|line| line["msg"] == "certificate refused" && line.to_string().contains("no such file"));
    assert_eq!(shown(&task), second);
    task.get("/").expect(200);
}

/// What stands where a file should be, and a word for it.
fn irregular_files(directory: &Directory) -> Vec<(String, &'static str)> {
    let fifo = directory.file("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let (linked, socket) = (directory.file("linked"), directory.file("socket"));
    std::os::unix::fs::symlink(&fifo, &linked).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    vec![
        (fifo, "a FIFO"),
        (linked, "a FIFO"),
        (directory.path().to_str().unwrap().to_owned(), "a directory"),
        ("/dev/zero".to_owned(), "a device"),
        (socket, "a socket"),
    ]
}

#[test]
fn what_is_no_regular_file_stops_the_start_and_blocks_nothing() {
    let directory = Directory::new();
    let (cert, key) = directory.pair("one", ECDSA);
    for (path, word) in irregular_files(&directory) {
        for (cert, key, name) in [(&path, &key, "CERT"), (&cert, &path, "KEY")] {
            let found = mistakes(&files(cert, key));
            let line = found[0].to_string();
            assert_eq!((found.len(), &found[0]["setting"]), (1, &format!("HOSTWARD_TLS_{name}").into()), "{line}");
            assert!(line.contains(word) && line.contains("not a regular file"), "{line}");
        }
    }
}

/// A9: either file, one after the other, and then the next good pair.
#[test]
fn what_is_no_regular_file_for_a_moment_does_not_stop_the_reloading() {
    let directory = Directory::new();
    let (cert, key) = directory.pair("now", ECDSA);
    let (new_cert, new_key) = directory.pair("new", ECDSA);
    let task = Task::echo(&files(&cert, &key));
    let first = shown(&task);
    let irregular = irregular_files(&directory);
    for (file, setting) in [(&cert, "HOSTWARD_TLS_CERT"), (&key, "HOSTWARD_TLS_KEY")] {
        let (beside, saved) = (directory.file("beside"), directory.file("saved"));
        fs::copy(file, &saved).unwrap();
        for (path, word) in &irregular {
            // By a link, which can lead to any of them.
            std::os::unix::fs::symlink(path, &beside).unwrap();
            fs::rename(&beside, file).unwrap();
            let refused = task.hostward.line(|line| {
                line["msg"] == "certificate refused" && line["setting"] == setting && line.to_string().contains(word)
            });
            assert_eq!(refused["level"], "ERROR", "{refused}");
            assert_eq!(shown(&task), first);
        }
        fs::rename(&saved, file).unwrap();
    }
    fs::copy(&new_key, &key).unwrap();
    let beside = directory.file("beside");
    fs::copy(&new_cert, &beside).unwrap();
    fs::rename(&beside, &cert).unwrap();
    let second = fingerprint(&fs::read_to_string(&new_cert).unwrap());
    task.hostward.line(|line| line["msg"] == "certificate in use" && line["sha256"] == second);
    assert_eq!(shown(&task), second);
}
