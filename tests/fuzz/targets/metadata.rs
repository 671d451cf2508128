//! What is read out of a task metadata document, by another reading of the same JSON.

#![no_main]

use std::net::IpAddr;
use std::sync::Arc;

use hostward::config::{Flags, load};
use hostward::discovery::document::Document;
use hostward::message::authority::Authority;
use hostward::policy::{Facts, OwnAddresses, Policy, Rule, Verdict};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|input: &[u8]| {
    let value = serde_json::from_slice::<Value>(input).ok().filter(Value::is_object);
    let Some(document) = Document::parse(input) else { return assert!(value.is_none(), "an object that is none") };
    let value = value.expect("what was read is an object");

    let addresses = document.addresses();
    assert_eq!(addresses, expected(&value));
    assert!(addresses.len() <= 128);
    // The same document, written otherwise and with more in it.
    let mut other = value.clone();
    other["Added2031"] = serde_json::json!({ "Networks": [{ "IPv4Addresses": ["192.0.2.1"] }] });
    let other = Document::parse(format!("{other:#}").as_bytes()).expect("an object");
    assert_eq!(other.addresses(), addresses);
    assert_eq!(other.task_definition(), document.task_definition());
    // serde_json may be a bit off in a number's last digit, and so off once more when it reads what it has written.
    let vcpus = [other.task_vcpus(), document.task_vcpus()].map(Option::unwrap_or_default);
    assert!((vcpus[0] - vcpus[1]).abs() <= 1e-12 * vcpus[1], "{vcpus:?}");

    if let Some(vcpus) = document.task_vcpus() {
        assert!(vcpus > 0.0 && vcpus.is_finite());
        assert!(value.get("Containers").is_some(), "a container's limit counts in other units");
    }
    for name in [document.task_definition(), document.availability_zone()].into_iter().flatten() {
        assert!(!name.is_empty() && name.chars().count() <= 129 && !name.chars().any(char::is_control), "{name:?}");
    }
    check_probes(&addresses);
});

/// The networks of the document itself, or of its `NORMAL` containers that are `RUNNING`.
fn expected(document: &Value) -> Vec<IpAddr> {
    let own = of_networks(document, Vec::new());
    if !own.is_empty() {
        return own;
    }
    let containers = document["Containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let running = containers.iter().filter(|it| it["Type"] == "NORMAL" && it["KnownStatus"] == "RUNNING");
    running.fold(Vec::new(), |found, container| of_networks(container, found))
}

fn of_networks(container: &Value, mut found: Vec<IpAddr>) -> Vec<IpAddr> {
    let networks = container["Networks"].as_array().map(Vec::as_slice).unwrap_or_default();
    for network in networks {
        for list in [&network["IPv4Addresses"], &network["IPv6Addresses"]] {
            for text in list.as_array().map(Vec::as_slice).unwrap_or_default() {
                let Some(address) = text.as_str().and_then(|text| text.trim().parse::<IpAddr>().ok()) else { continue };
                let address = address.to_canonical();
                let nobody = address.is_unspecified() || address.is_multicast();
                if !nobody && address.to_string() != "255.255.255.255" && !found.contains(&address) && found.len() < 128
                {
                    found.push(address);
                }
            }
        }
    }
    found
}

/// Each address is a probe's host, and no other one is.
fn check_probes(addresses: &[IpAddr]) {
    let settings = [("HOSTWARD_ALLOWED_HOSTS".into(), "www.example.com".into())];
    let rules = load(&Flags::default(), settings, false).expect("right settings").config.rules;
    let own = OwnAddresses { interfaces: Vec::new(), discovered: addresses.to_vec().into() };
    let policy = Policy::new(&rules, Arc::new(own));
    let peer = IpAddr::from([10, 0, 1, 7]);
    let local = IpAddr::from([10, 0, 2, 100]);
    let judge = |address: IpAddr| {
        let text = if address.is_ipv6() { format!("[{address}]:8080") } else { format!("{address}:8080") };
        let authority = Authority::parse(text.as_bytes()).expect("an address is an authority");
        policy.judge(&Facts { authority: Some(&authority), peer, direct: true, local, forwarded: false })
    };
    for address in addresses {
        assert!(matches!(judge(*address), Verdict::Probe(Rule::Task | Rule::Local | Rule::Peer)), "{address}");
    }
    let stranger = IpAddr::from([198, 51, 100, 77]);
    assert_eq!(matches!(judge(stranger), Verdict::Probe(_)), addresses.contains(&stranger));
}
