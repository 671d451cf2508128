//! What a task metadata document says. Pure, and forgiving: every field may be missing or of another type than
//! AWS documents (platform versions have dropped fields before), and what can be read is read all the same.
//!
//! Of the versions v2, v3 and v4 only fields are used that all three have.

use std::net::IpAddr;

use serde_json::Value;

/// More addresses than any task has; a document with more is not believed further.
const MOST_ADDRESSES: usize = 128;

/// What is used of a document's names, in characters: they end up in log lines.
const LONGEST_NAME: usize = 128;

/// The largest task that ECS knows, in vCPUs.
const MOST_VCPUS: f64 = 192.0;

/// One answer of the task metadata endpoint: a container's document, or a task's with its containers.
#[derive(Debug)]
pub struct Document(Value);

impl Document {
    /// `None` when this is not JSON, or JSON but no object: the endpoint's errors are JSON strings.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().filter(Value::is_object).map(Self)
    }

    /// A container's document: its own addresses. A task's: those of its `NORMAL` containers that are `RUNNING`,
    /// which leaves out the pause container, containers still being pulled, and addresses that a stopped one had.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut found = Vec::new();
        collect(&self.0, &mut found);
        if found.is_empty() {
            let running = |container: &&Value| {
                text(container, "Type") == Some("NORMAL") && text(container, "KnownStatus") == Some("RUNNING")
            };
            list(&self.0, "Containers").iter().filter(running).for_each(|container| collect(container, &mut found));
        }
        found
    }

    /// A *task* document's `Limits.CPU` in vCPUs; a container's counts in CPU units, and against shares that other
    /// containers may use as well.
    ///
    /// AWS documents vCPUs here (`0.25`), but stand-ins write the task definition's CPU units (`256`). No task has
    /// more than 192 vCPUs and almost none fewer than 256 units, so a larger number is taken as units. Between 128
    /// and 192 both are possible, and vCPUs the harmless reading: hostward runs as it would without a limit.
    pub fn task_vcpus(&self) -> Option<f64> {
        if !self.is_task() {
            return None;
        }
        let cpu = self.0.get("Limits")?.get("CPU")?.as_f64().filter(|cpu| *cpu > 0.0)?;
        Some(if cpu > MOST_VCPUS { cpu / 1024.0 } else { cpu })
    }

    /// The task definition, as `family:revision`.
    pub fn task_definition(&self) -> Option<String> {
        let label = |name| text(self.0.get("Labels")?, name);
        let family = text(&self.0, "Family").or_else(|| label("com.amazonaws.ecs.task-definition-family"))?;
        let revision = text(&self.0, "Revision").or_else(|| label("com.amazonaws.ecs.task-definition-version"));
        let name = revision.map_or_else(|| family.to_owned(), |revision| format!("{family}:{revision}"));
        presentable(&name)
    }

    /// The cluster's name, which some versions give as its ARN.
    pub(super) fn cluster(&self) -> Option<String> {
        let label = || text(self.0.get("Labels")?, "com.amazonaws.ecs.cluster");
        let cluster = text(&self.0, "Cluster").or_else(label)?;
        presentable(cluster.rsplit('/').next().unwrap_or(cluster))
    }

    /// A task document's availability zone.
    pub fn availability_zone(&self) -> Option<String> {
        text(&self.0, "AvailabilityZone").and_then(presentable)
    }

    fn is_task(&self) -> bool {
        self.0.get("Containers").is_some()
    }
}

/// Text from a document or an error body, fit for a log line: capped, and without control characters.
pub(super) fn presentable(text: &str) -> Option<String> {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut shown: String = text.trim().chars().take(LONGEST_NAME).map(clean).collect();
    if text.trim().chars().nth(LONGEST_NAME).is_some() {
        shown.push('…');
    }
    (!shown.is_empty()).then_some(shown)
}

/// Adds the addresses of one container's networks. The network mode doesn't matter: local stand-ins have their own.
fn collect(container: &Value, found: &mut Vec<IpAddr>) {
    for network in list(container, "Networks") {
        for key in ["IPv4Addresses", "IPv6Addresses"] {
            for address in list(network, key).iter().filter_map(Value::as_str).filter_map(address) {
                if found.len() < MOST_ADDRESSES && !found.contains(&address) {
                    found.push(address);
                }
            }
        }
    }
}

/// An address that a load balancer could connect to. The agent writes `""` for a network without settings.
fn address(text: &str) -> Option<IpAddr> {
    let address = text.trim().parse::<IpAddr>().ok()?.to_canonical();
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    (!address.is_unspecified() && !address.is_multicast() && !broadcast).then_some(address)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(json: &str) -> Vec<String> {
        let document = Document::parse(json.as_bytes()).unwrap_or_else(|| panic!("not an object: {json}"));
        document.addresses().iter().map(ToString::to_string).collect()
    }

    fn networks(json: &str) -> Vec<String> {
        addresses(&format!(r#"{{"Name": "proxy", "Type": "NORMAL", "Networks": {json}}}"#))
    }

    #[test]
    fn a_containers_networks_give_the_addresses_of_both_families() {
        for (json, expected) in [
            (r#"[{"NetworkMode": "awsvpc", "IPv4Addresses": ["10.0.2.100"]}]"#, &["10.0.2.100"][..]),
            (r#"[{"IPv4Addresses": ["10.0.2.100", "10.0.2.101"]}]"#, &["10.0.2.100", "10.0.2.101"]),
            // IPv6 alone: there is no IPv4Addresses at all. Case and zeros are not canonical in real answers.
            (r#"[{"IPv6Addresses": ["2001:DB8:00ab::e958"]}]"#, &["2001:db8:ab::e958"]),
            (r#"[{"IPv4Addresses": ["10.0.2.1"], "IPv6Addresses": ["fd00::1"]}]"#, &["10.0.2.1", "fd00::1"]),
            // Bridge mode with two docker networks, and the same address twice.
            (
                r#"[{"NetworkMode": "a", "IPv4Addresses": ["172.17.0.2"]},
                    {"NetworkMode": "b", "IPv4Addresses": ["172.18.0.2", "172.17.0.2"]}]"#,
                &["172.17.0.2", "172.18.0.2"],
            ),
            (r#"[{"IPv6Addresses": ["::ffff:10.0.2.100"]}]"#, &["10.0.2.100"]),
            (r#"[{"IPv4Addresses": [" 10.0.2.100 "], "Added2031": {"deep": [1]}}]"#, &["10.0.2.100"]),
        ] {
            assert_eq!(networks(json), expected, "{json}");
        }
    }

    #[test]
    fn what_is_no_address_of_a_task_is_dropped_and_costs_nothing_else() {
        for json in [
            "null",
            "[]",
            "{}",
            "7",
            r#""awsvpc""#,
            "[null]",
            "[[]]",
            "[{}]",
            r#"[{"IPv4Addresses": null}]"#,
            r#"[{"IPv4Addresses": []}]"#,
            r#"[{"IPv4Addresses": "10.0.2.100"}]"#,
            r#"[{"IPv4Addresses": [""]}]"#,
            r#"[{"IPv4Addresses": ["", " "], "IPv6Addresses": [""]}]"#,
            r#"[{"IPv4Addresses": [null, 7, {}, "ten", "10.0.2", "10.0.2.0/24", "fe80::1%eth0"]}]"#,
            r#"[{"IPv4Addresses": ["0.0.0.0", "224.0.0.1", "255.255.255.255"], "IPv6Addresses": ["::", "ff02::1"]}]"#,
        ] {
            assert_eq!(networks(json), [""; 0], "{json}");
            let beside = json.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).filter(|rest| !rest.is_empty());
            if let Some(beside) = beside {
                let json = format!(r#"[{beside}, {{"IPv4Addresses": ["10.0.2.100"]}}]"#);
                assert_eq!(networks(&json), ["10.0.2.100"], "{json}");
            }
        }
        assert_eq!(addresses("{}"), [""; 0]);
        assert_eq!(addresses(r#"{"Networks": {"IPv4Addresses": ["10.0.2.100"]}}"#), [""; 0]);
    }

    #[test]
    fn of_a_task_only_normal_running_containers_count() {
        let task = |containers: &str| addresses(&format!(r#"{{"Family": "web", "Containers": {containers}}}"#));
        let container = |kind: &str, status: &str, address: &str| {
            format!(r#"{{"Type":{kind},"KnownStatus":{status},"Networks":[{{"IPv4Addresses":["{address}"]}}]}}"#)
        };
        let pause = container(r#""CNI_PAUSE""#, r#""RESOURCES_PROVISIONED""#, "10.0.2.1");
        let running_pause = container(r#""CNI_PAUSE""#, r#""RUNNING""#, "10.0.2.2");
        let pulled = r#"{"Type": "NORMAL", "KnownStatus": "PULLED"}"#;
        let stopped = container(r#""NORMAL""#, r#""STOPPED""#, "10.0.2.3");
        let app = container(r#""NORMAL""#, r#""RUNNING""#, "10.0.2.4");
        let other = container(r#""NORMAL""#, r#""RUNNING""#, "10.0.2.5");
        let wrong = container("7", "[]", "10.0.2.6");
        assert_eq!(
            task(&format!("[{pause},{running_pause},{pulled},{stopped},{wrong},null,{app},{other}]")),
            ["10.0.2.4", "10.0.2.5"]
        );
        assert_eq!(task(&format!("[{pause},{pulled},{stopped}]")), [""; 0]);
        assert_eq!(task("null"), [""; 0]);
        assert_eq!(task(&format!(r#"{{"0": {app}}}"#)), [""; 0]);
    }

    #[test]
    fn a_document_without_end_gives_a_bounded_number_of_addresses() {
        let many: Vec<String> = (0..5_000).map(|n| format!(r#""10.1.{}.{}""#, n / 250, n % 250)).collect();
        assert_eq!(networks(&format!(r#"[{{"IPv4Addresses": [{}]}}]"#, many.join(","))).len(), MOST_ADDRESSES);
    }

    #[test]
    fn an_answer_that_is_no_object_is_no_document() {
        let deep = format!("{}1{}", "[".repeat(50_000), "]".repeat(50_000));
        for body in [
            "",
            " ",
            "null",
            "[]",
            "7",
            "nonsense",
            "<html>",
            "{",
            r#"{"Networks": ["#,
            "{\"Name\": \"\u{1}\"}",
            &deep,
            r#""unable to generate metadata for container""#,
            "{} {}",
        ] {
            assert!(Document::parse(body.as_bytes()).is_none(), "{body:.40}");
        }
        assert!(Document::parse(b"{\"Name\": \"\xff\"}").is_none());
    }

    #[test]
    fn a_task_documents_cpu_limit_is_read_in_vcpus_or_in_cpu_units() {
        for (limits, expected) in [
            (r#"{"CPU": 0.25, "Memory": 512}"#, Some(0.25)),
            (r#"{"CPU": 2}"#, Some(2.0)),
            (r#"{"CPU": 16.0}"#, Some(16.0)),
            (r#"{"CPU": 192}"#, Some(192.0)),
            (r#"{"CPU": 256}"#, Some(0.25)),
            (r#"{"CPU": 512}"#, Some(0.5)),
            (r#"{"CPU": 16384}"#, Some(16.0)),
            (r#"{"CPU": 0}"#, None),
            (r#"{"CPU": -1}"#, None),
            (r#"{"CPU": "0.25"}"#, None),
            (r#"{"Memory": 512}"#, None),
            ("null", None),
            ("[]", None),
        ] {
            let task = format!(r#"{{"Containers": [], "Limits": {limits}}}"#);
            assert_eq!(Document::parse(task.as_bytes()).unwrap().task_vcpus(), expected, "{limits}");
            // A container's limit counts otherwise.
            let container = format!(r#"{{"Networks": [], "Limits": {limits}}}"#);
            assert_eq!(Document::parse(container.as_bytes()).unwrap().task_vcpus(), None, "{limits}");
        }
    }

    #[test]
    fn the_task_definition_is_named_by_either_document() {
        let name = |json: &str| Document::parse(json.as_bytes()).unwrap().task_definition();
        assert_eq!(name(r#"{"Family": "web", "Revision": "7", "Containers": []}"#).as_deref(), Some("web:7"));
        assert_eq!(name(r#"{"Family": "web", "Revision": 7}"#).as_deref(), Some("web"));
        let labels = r#"{"Labels": {"com.amazonaws.ecs.task-definition-family": "web",
                                    "com.amazonaws.ecs.task-definition-version": "7"}}"#;
        assert_eq!(name(labels).as_deref(), Some("web:7"));
        for json in ["{}", r#"{"Labels": null}"#, r#"{"Labels": []}"#, r#"{"Family": 7}"#, r#"{"Family": ""}"#] {
            assert_eq!(name(json), None, "{json}");
        }
        let zone = Document::parse(br#"{"AvailabilityZone": "eu-west-1a"}"#).unwrap().availability_zone();
        assert_eq!(zone.as_deref(), Some("eu-west-1a"));
    }

    #[test]
    fn names_in_log_lines_are_capped_and_hold_no_control_characters() {
        assert_eq!(presentable(" web\r\n\u{1b}[31m "), Some("web   [31m".into()));
        assert_eq!(presentable("\n"), None);
        let shown = presentable(&"ü".repeat(10_000)).unwrap();
        assert_eq!(shown.chars().count(), LONGEST_NAME + 1);
        assert!(shown.ends_with('…'));
        assert_eq!(presentable(&"x".repeat(LONGEST_NAME)).unwrap().len(), LONGEST_NAME);
    }

    #[test]
    fn the_cluster_is_named_by_either_document_as_a_name_or_an_arn() {
        let cluster = |json: &str| Document::parse(json.as_bytes()).unwrap().cluster();
        for json in [
            r#"{"Cluster": "main", "Containers": []}"#,
            r#"{"Cluster": "arn:aws:ecs:eu-west-1:111122223333:cluster/main"}"#,
            r#"{"Labels": {"com.amazonaws.ecs.cluster": "main"}}"#,
            r#"{"Labels": {"com.amazonaws.ecs.cluster": "arn:aws:ecs:eu-west-1:111122223333:cluster/main"}}"#,
        ] {
            assert_eq!(cluster(json).as_deref(), Some("main"), "{json}");
        }
        for json in ["{}", r#"{"Cluster": 7}"#, r#"{"Cluster": ""}"#, r#"{"Cluster": "main/"}"#, r#"{"Labels": []}"#] {
            assert_eq!(cluster(json), None, "{json}");
        }
    }
}
