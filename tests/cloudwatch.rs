//! `docs/cloudwatch.md` against what hostward writes: a query that names a field or a value that no line has finds
//! nothing, and nobody is told why.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hostward::metrics::{DECISIONS, ERRORS};
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::hostward::Hostward;
use crate::support::metadata::{Metadata, container, network, wait_for_discovery};
use crate::support::wire::{get, text};
use crate::support::{Task, eventually};

const DOCUMENT: &str = include_str!("../docs/cloudwatch.md");

/// `CloudWatch`'s own fields.
const OF_CLOUDWATCH: [&str; 3] = ["@timestamp", "@message", "@logStream"];
const COMMANDS: [&str; 5] = ["fields", "filter", "stats", "sort", "limit"];
const KEYWORDS: [&str; 8] = ["by", "as", "and", "or", "not", "in", "asc", "desc"];
const FUNCTIONS: [&str; 9] = ["count", "count_distinct", "sum", "max", "pct", "latest", "bin", "coalesce", "ispresent"];

#[derive(Clone, Copy, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Text(&'a str),
    Sign(char),
}

fn tokens(query: &str) -> Vec<Token<'_>> {
    let (mut tokens, mut rest) = (Vec::new(), query.trim_start());
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => rest[1..].find('"').expect("the text's end") + 2,
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        tokens.push(match first {
            '"' => Token::Text(&token[1..length - 1]),
            c if is_word(c) => Token::Word(token),
            c => Token::Sign(c),
        });
        rest = after.trim_start();
    }
    tokens
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '@' | '.')
}

/// What a query says: the fields that it names, and the texts that it compares them with.
fn read(query: &str) -> (BTreeSet<&str>, Vec<(&str, &str)>) {
    let tokens = tokens(query);
    let follows_as = |at: usize| at > 0 && tokens[at - 1] == Token::Word("as");
    let (mut aliases, mut fields, mut compared, mut last) = (BTreeSet::new(), BTreeSet::new(), Vec::new(), "");
    for (at, token) in tokens.iter().enumerate() {
        let begins = at == 0 || tokens[at - 1] == Token::Sign('|');
        match *token {
            Token::Word(word) if begins => assert!(COMMANDS.contains(&word), "{word} is no command: {query}"),
            Token::Word(word) if tokens.get(at + 1) == Some(&Token::Sign('(')) && !KEYWORDS.contains(&word) => {
                assert!(FUNCTIONS.contains(&word), "{word} is no function: {query}");
            }
            Token::Word(word) if follows_as(at) => drop(aliases.insert(word)),
            Token::Word(word) if KEYWORDS.contains(&word) || word.starts_with(|c: char| c.is_ascii_digit()) => {}
            Token::Word(word) => {
                last = word;
                fields.insert(word);
            }
            Token::Text(text) => compared.push((last, text)),
            Token::Sign(_) => {}
        }
    }
    (&fields - &aliases, compared)
}

/// The document's code, all of which is queries.
fn queries() -> Vec<&'static str> {
    DOCUMENT.split("```\n").skip(1).step_by(2).collect()
}

/// What stands between `<!-- name -->` and `<!-- /name -->`: the cells of the table's rows.
fn rows(name: &str) -> Vec<Vec<&'static str>> {
    let after = DOCUMENT.split_once(&format!("<!-- {name} -->")).expect(name).1;
    let lines = after.split_once(&format!("<!-- /{name} -->")).expect(name).0.lines();
    let rows = lines.filter(|line| line.starts_with('|')).skip(2);
    rows.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect()).collect()
}

/// The log of what the document speaks of: users, strangers, probes, an app that isn't there, starts and ends.
fn lines() -> Vec<Value> {
    let mut document = container(&network(&["10.0.2.100"]));
    document["Labels"] = json!({
        "com.amazonaws.ecs.cluster": "arn:aws:ecs:eu-west-1:111122223333:cluster/main",
        "com.amazonaws.ecs.task-definition-family": "shop",
    });
    let metadata = Metadata::of(document);
    let settings = [("HOSTWARD_METRICS", "emf"), ("HOSTWARD_DRAIN_DELAY", "0s")];
    let place = ("ECS_CONTAINER_METADATA_URI_V4", metadata.url());
    let (mut here, mut report) = (settings.to_vec(), settings.to_vec());
    here.extend([(place.0, place.1.as_str()), ("HOSTWARD_ACCESS_LOG_PROBES", "on")]);
    report.push(("HOSTWARD_HOST_POLICY", "report"));
    let task = Task::echo(&here);
    wait_for_discovery(&task);
    let trace = "X-Amzn-Trace-Id: Root=1-67891233-abcdef012345678912345678";
    let user = format!("GET /a HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: curl/8\r\n{trace}\r\n\r\n");
    task.ask(&user).expect(200);
    task.turned_away("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421);
    task.ask("GET /probe HTTP/1.1\r\nHost: 10.0.2.100\r\n\r\n").expect(200);
    let reporting = Task::echo(&report);
    reporting.ask("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n").expect(200);
    let nowhere = format!("http://{}", App::nowhere());
    let mut alone = settings.to_vec();
    alone.extend([
        ("HOSTWARD_ALLOWED_HOSTS", "www.example.com"),
        ("HOSTWARD_UPSTREAM", nowhere.as_str()),
        ("HOSTWARD_UPSTREAM_START_TIMEOUT", "0s"),
    ]);
    let alone = Hostward::start(&alone);
    get(alone.address, "www.example.com", "/").expect(502);
    let mut all = Vec::new();
    for mut hostward in [task.hostward, reporting.hostward, alone] {
        hostward.terminate();
        assert!(hostward.wait(Duration::from_secs(10)).success());
        hostward.line(|line| line["msg"] == "stopped");
        eventually("the metrics", || hostward.lines().iter().any(|line| line["msg"] == "metrics").then_some(()));
        all.extend(hostward.lines());
    }
    let refused = Hostward::refused(&[("HOSTWARD_LISTEN", "nowhere"), ("HOSTWARD_LOG_FORMAT", "json")]);
    let refused = text(&refused.stdout) + &text(&refused.stderr);
    all.extend(refused.lines().filter_map(|line| serde_json::from_str(line).ok()));
    all
}

/// The names by which `CloudWatch` knows a line's members.
fn names(prefix: &str, line: &Value, into: &mut BTreeSet<String>) {
    for (name, value) in line.as_object().into_iter().flatten() {
        let name = format!("{prefix}{name}");
        names(&format!("{name}."), value, into);
        into.insert(name);
    }
}

#[test]
fn every_query_asks_for_what_some_line_has() {
    let lines = lines();
    let mut by_message = BTreeMap::<&str, BTreeSet<String>>::new();
    for line in &lines {
        names("", line, by_message.entry(line["msg"].as_str().expect("a msg")).or_default());
    }
    let queries = queries();
    assert!(queries.len() >= 10, "{queries:?}");
    for query in queries {
        let (fields, compared) = read(query);
        let (mut some, mut words) = (BTreeSet::new(), 0);
        for (field, word) in &compared {
            let known = match *field {
                "msg" => by_message.contains_key(word),
                "decision" => DECISIONS.contains(word),
                "level" => lines.iter().any(|line| line["level"] == *word),
                // What stands in for an error that isn't there is no error.
                "error" => {
                    ERRORS.iter().any(|(error, _)| error == word)
                        || query.contains("coalesce(error, \"the app itself\")")
                }
                "request_id" | "trace_id" => true,
                _ => false,
            };
            assert!(known, "{field} is never {word:?}: {query}");
            if *field == "msg" {
                some.extend(&by_message[word]);
                words += 1;
            }
        }
        if words == 0 {
            some.extend(by_message.values().flatten());
        }
        assert!(!fields.is_empty(), "{query}");
        for field in fields {
            assert!(OF_CLOUDWATCH.contains(&field) || some.iter().any(|name| *name == field), "no {field}: {query}");
        }
    }
}

#[test]
fn the_table_of_metrics_is_what_a_line_defines() {
    let lines = lines();
    let line = lines.iter().find(|line| line["RequestDuration"].is_object()).expect("a line with every metric");
    let defined = line["_aws"]["CloudWatchMetrics"][0]["Metrics"].as_array().expect("metrics").iter();
    let text = |metric: &'_ Value, key: &str| metric[key].as_str().expect(key).to_owned();
    let defined: Vec<_> = defined.map(|metric| (text(metric, "Name"), text(metric, "Unit"))).collect();
    let table = rows("emf");
    let described: Vec<_> = table.iter().map(|row| (row[0].to_owned(), row[1].to_owned())).collect();
    assert_eq!(described, defined);
    assert!(DOCUMENT.contains(&format!("at most the {} of the table", defined.len())));
    for row in rows("alarms") {
        assert!(defined.iter().any(|(name, _)| name == row[0]), "no metric {}", row[0]);
        for word in row[1..].iter().flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
            let exists = defined.iter().any(|(name, _)| name == word)
                || word.starts_with("HOSTWARD_")
                || lines.iter().any(|line| line["msg"] == word || line.get(word).is_some());
            assert!(exists, "nothing is named {word}");
        }
    }
}
