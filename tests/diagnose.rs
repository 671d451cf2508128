//! Who is it? What load balancers and their likes send, as `diagnose` names it: the lines in `data/diagnoses.txt`. And
//! the setting that a line names does admit the request.

use std::fmt::Write;
use std::path::Path;

use crate::support::Task;
use crate::support::wire::Client;

/// One sender's request.
struct Case {
    name: &'static str,
    /// Who connects, by a PROXY header.
    peer: &'static str,
    settings: &'static [(&'static str, &'static str)],
    /// `PORT` stands for hostward's.
    request: &'static str,
}

const fn case(name: &'static str, peer: &'static str, request: &'static str) -> Case {
    Case { name, peer, settings: &[], request }
}

const CASES: [Case; 24] = [
    case(
        "ALB, another address than this task's",
        "10.0.1.7",
        "GET / HTTP/1.1\nHost: 10.0.2.100:PORT\nUser-Agent: ELB-HealthChecker/2.0",
    ),
    Case {
        settings: &[("HOSTWARD_PROBE_HOSTS", "self")],
        ..case(
            "NLB, its own address",
            "10.0.1.7",
            "GET / HTTP/1.1\nHost: 10.0.1.7:80\nUser-Agent: ELB-HealthChecker/2.0",
        )
    },
    case(
        "NLB, another node's address",
        "10.0.1.7",
        "GET / HTTP/1.1\nHost: 10.0.1.99:80\nUser-Agent: ELB-HealthChecker/2.0",
    ),
    case("Classic ELB", "10.0.1.7", "GET / HTTP/1.0\nUser-Agent: ELB-HealthChecker/1.0"),
    case("kubelet", "10.244.0.1", "GET /healthz HTTP/1.1\nHost: 10.244.0.5:8080\nUser-Agent: kube-probe/1.34"),
    case(
        "Route 53, a name",
        "15.177.2.10",
        "GET / HTTP/1.1\nHost: shop.example.org\nUser-Agent: Amazon-Route53-Health-Check-Service (ref 1; report http://amzn.to/1vsZADi)",
    ),
    case(
        "Route 53, an address",
        "15.177.2.10",
        "GET / HTTP/1.1\nHost: 198.51.100.7\nUser-Agent: Amazon-Route53-Health-Check-Service (ref 1; report http://amzn.to/1vsZADi)",
    ),
    case(
        "API Gateway, REST, VPC link",
        "10.0.1.7",
        "GET / HTTP/1.1\nHost: orders.internal.example\nUser-Agent: AmazonAPIGateway_abc123\nx-amzn-apigateway-api-id: abc123",
    ),
    case(
        "API Gateway, HTTP API",
        "10.0.1.7",
        "GET / HTTP/1.1\nHost: orders.internal.example\nUser-Agent: curl/8\nVia: HTTP/1.1 AmazonAPIGateway\nForwarded: for=203.0.113.7;host=api.example.org;proto=https",
    ),
    case(
        "Service Connect",
        "10.0.1.7",
        "GET / HTTP/1.1\nHost: orders.shop:3000\nUser-Agent: python-requests/2\nX-Envoy-Expected-Rq-Timeout-Ms: 15000\nX-Forwarded-Proto: http",
    ),
    Case {
        settings: &[("HOSTWARD_ALLOWED_HOSTS", "www.example.com:443")],
        ..case(
            "a port that the ALB appended",
            "10.0.1.7",
            "GET / HTTP/1.1\nHost: www.example.com:8443\nUser-Agent: Mozilla/5.0\nX-Forwarded-For: 203.0.113.7",
        )
    },
    case("an underscore", "10.0.1.7", "GET / HTTP/1.1\nHost: my_app:8000\nUser-Agent: python-requests/2"),
    case(
        "CloudFront",
        "10.0.1.7",
        "GET / HTTP/1.1\nHost: origin.example.net\nUser-Agent: Amazon CloudFront\nX-Amz-Cf-Id: abc\nVia: 2.0 abc.cloudfront.net (CloudFront)\nX-Forwarded-For: 203.0.113.7",
    ),
    case(
        "the load balancer's name",
        "10.0.1.7",
        "GET / HTTP/1.1\nHost: web-1234567890.eu-west-1.elb.amazonaws.com\nUser-Agent: curl/8\nX-Forwarded-For: 203.0.113.7",
    ),
    case(
        "a name beside an allowed one",
        "10.0.1.7",
        "GET / HTTP/1.1\nHost: api.example.com\nUser-Agent: Mozilla/5.0\nX-Forwarded-For: 203.0.113.7",
    ),
    case("in the task", "127.0.0.1", "GET /health HTTP/1.1\nHost: localhost:8080\nUser-Agent: curl/8"),
    case(
        "a scanner, through the ALB, by its address",
        "10.0.1.7",
        "GET / HTTP/1.1\nHost: 198.51.100.7\nUser-Agent: Mozilla/5.0 zgrab/0.x\nX-Forwarded-For: 203.0.113.7",
    ),
    case("a scanner, directly", "203.0.113.7", "GET / HTTP/1.1\nHost: 198.51.100.7"),
    case("a scanner of HTTP/1.0", "203.0.113.7", "GET / HTTP/1.0\nUser-Agent: masscan/1.3"),
    case(
        "the task's address, through the ALB",
        "10.0.1.7",
        "GET / HTTP/1.1\nHost: 127.0.0.1:PORT\nUser-Agent: ELB-HealthChecker/2.0\nX-Forwarded-For: 203.0.113.7",
    ),
    case(
        "a health check from a public address",
        "203.0.113.7",
        "GET / HTTP/1.1\nHost: 127.0.0.1:PORT\nUser-Agent: ELB-HealthChecker/2.0",
    ),
    case(
        "a host that stands for every host in other programs",
        "10.0.1.7",
        "GET / HTTP/1.1\nHost: default\nUser-Agent: Mozilla/5.0\nX-Forwarded-For: 203.0.113.7",
    ),
    case(
        "a host that is nearly an address",
        "10.0.1.7",
        "GET / HTTP/1.1\nHost: 10.0.0.256\nUser-Agent: Mozilla/5.0\nX-Forwarded-For: 203.0.113.7",
    ),
    case(
        "somebody else",
        "10.0.1.7",
        "GET / HTTP/1.1\nHost: evil.example\nUser-Agent: Mozilla/5.0\nX-Forwarded-For: 203.0.113.7",
    ),
];

fn start(case: &Case, more: &[(&str, &str)]) -> Task {
    let mut settings = vec![("HOSTWARD_PROXY_PROTOCOL", "required")];
    settings.extend(more);
    settings.extend(case.settings.iter().filter(|(name, _)| !more.iter().any(|(given, _)| given == name)));
    Task::echo(&settings)
}

fn send(case: &Case, task: &Task) -> u16 {
    let port = task.hostward.address.port().to_string();
    let mut client = Client::connect(task.hostward.address);
    client.send(format!("PROXY TCP4 {} 127.0.0.1 40000 {port}\r\n", case.peer));
    client.send(case.request.replace("PORT", &port).replace('\n', "\r\n") + "\r\n\r\n");
    client.answer().status
}

#[test]
fn every_sender_is_named_and_what_its_line_says_admits_it() {
    let (mut text, mut wrong) = (String::new(), Vec::new());
    for case in &CASES {
        let task = start(case, &[]);
        assert_eq!(send(case, &task), 421, "{}", case.name);
        let line = task.hostward.line(|line| line["msg"] == "request denied");
        let port = format!(":{}", task.hostward.address.port());
        let said =
            |name: &str| line[name].as_str().unwrap_or_else(|| panic!("no {name} in {line}")).replace(&port, ":8080");
        let (sender, what, hint) = (said("sender"), said("what"), said("hint"));
        writeln!(
            text,
            "{}\n  reason  {}\n  sender  {sender}\n  what    {what}\n  hint    {hint}\n",
            case.name,
            said("reason")
        )
        .unwrap();
        // The setting, as it stands there.
        let words = line["hint"].as_str().unwrap().split(' ');
        match words.filter(|word| word.starts_with("HOSTWARD_")).find_map(|word| word.split_once('=')) {
            Some(setting) => {
                let status = send(case, &start(case, &[setting]));
                if status != 200 {
                    wrong.push(format!("{}: {setting:?} leads to {status}", case.name));
                }
            }
            None if hint.starts_with("nothing should admit it") => {}
            None => wrong.push(format!("{}: no setting in {hint}", case.name)),
        }
    }
    let build = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    std::fs::write(build.join("diagnoses.txt"), &text).unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let expected = include_str!("data/diagnoses.txt");
    assert!(text == expected, "not as in tests/data/diagnoses.txt; see target/diagnoses.txt:\n{text}");
}
