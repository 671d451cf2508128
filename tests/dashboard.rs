//! `docs/grafana.json` against what `/metrics` says: every name, label and value that a query asks for is there, and
//! every metric of hostward's own is asked for.

use std::collections::{BTreeMap, BTreeSet};

use hostward::error::Side;
use hostward::metrics::{CLASSES, DECISIONS, ERRORS};
use serde_json::Value;

use crate::support::wire::get;
use crate::support::{Task, eventually};

const DASHBOARD: &str = include_str!("../docs/grafana.json");

/// Put on every series by whoever scrapes it.
const OF_PROMETHEUS: [&str; 2] = ["job", "instance"];
/// What else is a word in the dashboard's `PromQL`.
const LANGUAGE: [&str; 9] = ["sum", "rate", "by", "histogram_quantile", "count", "max", "min", "increase", "le"];

/// A metric in a query, with what its labels are compared with.
struct Selector {
    metric: String,
    labels: Vec<(String, String)>,
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The selectors of a query, all of which have braces, and the labels that it groups by.
fn read(expr: &str) -> (Vec<Selector>, Vec<String>) {
    let (mut selectors, mut outside, mut rest) = (Vec::new(), String::new(), expr);
    while let Some((before, after)) = rest.split_once('{') {
        let (inside, after) = after.split_once('}').unwrap_or_else(|| panic!("no }} in {expr}"));
        let begin = before.rfind(|c| !is_word(c)).map_or(0, |at| at + 1);
        let labels = inside.split(", ").map(|matcher| {
            let (name, value) = matcher.split_once('=').unwrap_or_else(|| panic!("{matcher} in {expr}"));
            let value = value.trim_start_matches('~').trim_matches('"');
            (name.trim_end_matches('!').to_owned(), value.to_owned())
        });
        selectors.push(Selector { metric: before[begin..].to_owned(), labels: labels.collect() });
        outside.push_str(&before[..begin]);
        rest = after.strip_prefix("[$__rate_interval]").unwrap_or(after);
    }
    outside.push_str(rest);
    let groups = outside.split("by (").skip(1).map(|after| after.split_once(')').expect("an end").0.to_owned());
    let groups: Vec<String> = groups.collect();
    let words = outside.split(|c| !is_word(c)).filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()));
    for word in words {
        assert!(LANGUAGE.contains(&word) || groups.iter().any(|label| label == word), "{word} in {expr}");
    }
    (selectors, groups)
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().expect("panels").iter().filter(|panel| panel["type"] != "row")
}

fn queries(dashboard: &Value) -> Vec<&str> {
    let targets = panels(dashboard).flat_map(|panel| panel["targets"].as_array().expect("targets"));
    targets.map(|target| target["expr"].as_str().expect("an expr")).collect()
}

/// Every series' name, with its labels and their values.
fn series(text: &str) -> BTreeMap<&str, BTreeMap<&str, BTreeSet<&str>>> {
    let mut all = BTreeMap::<_, BTreeMap<_, BTreeSet<_>>>::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = series.strip_suffix('}').and_then(|series| series.split_once('{')).unwrap_or((series, ""));
        let entry = all.entry(name).or_default();
        for (label, value) in labels.split(',').filter_map(|label| label.split_once('=')) {
            entry.entry(label).or_default().insert(value.trim_matches('"'));
        }
    }
    all
}

/// What is served when each kind of thing has happened that makes a series only then.
fn everything() -> String {
    let task = Task::echo(&[]);
    task.get("/").expect(200);
    task.turned_away("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421);
    eventually("both are counted", || {
        let text = get(task.hostward.admin, "localhost", "/metrics").expect(200).text();
        (text.contains("status=\"421\"") && text.contains("hostward_upstream_response_seconds_count")).then_some(text)
    })
}

#[test]
fn every_query_asks_for_what_is_there() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let text = everything();
    let served = series(&text);
    let mut asked = BTreeSet::new();
    for expr in queries(&dashboard) {
        let (selectors, groups) = read(expr);
        assert!(!selectors.is_empty(), "{expr}");
        for Selector { metric, labels } in &selectors {
            let has = served.get(metric.as_str()).unwrap_or_else(|| panic!("no {metric} in {text}"));
            assert!(labels.iter().any(|(label, _)| label == "job"), "all jobs at once: {expr}");
            for label in labels.iter().map(|(label, _)| label).chain(&groups) {
                assert!(has.contains_key(label.as_str()) || OF_PROMETHEUS.contains(&label.as_str()), "{label}: {expr}");
            }
            for (label, values) in labels {
                let known = |value: &str| match label.as_str() {
                    "job" => value == "$job",
                    "decision" => DECISIONS.contains(&value),
                    "status" => CLASSES.contains(&value),
                    "error" => ERRORS.iter().any(|(error, _)| *error == value),
                    _ => has[label.as_str()].contains(value),
                };
                assert!(values.split('|').all(known), "{label}={values} in {expr}");
            }
            asked.insert(metric.clone());
        }
    }
    // `_sum` is what averages are made of, and nobody looks at the average.
    let ours = served.keys().filter(|name| name.starts_with("hostward_") && !name.ends_with("_sum"));
    let unused: Vec<&str> = ours.copied().filter(|name| !asked.contains(*name)).collect();
    assert_eq!(unused, ["hostward_connections_total", "hostward_upstream_response_seconds_count"]);
}

#[test]
fn every_error_is_drawn_as_the_fault_that_it_is() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panel = panels(&dashboard).find(|panel| panel["title"] == "Errors by whose fault").expect("the panel");
    let targets = panel["targets"].as_array().expect("targets");
    for (side, legend) in [(Side::App, "the app"), (Side::Hostward, "hostward"), (Side::Client, "the client")] {
        let target = targets.iter().find(|target| target["legendFormat"] == legend).expect(legend);
        let (selectors, _) = read(target["expr"].as_str().expect("an expr"));
        let (_, errors) = selectors[0].labels.iter().find(|(label, _)| label == "error").expect("its errors");
        let drawn: BTreeSet<&str> = errors.split('|').collect();
        let known = ERRORS.iter().filter(|(_, whose)| *whose == side).map(|(error, _)| *error);
        assert_eq!(drawn, known.collect(), "{legend}");
    }
}

#[test]
fn grafana_can_import_it() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    assert!(dashboard["uid"].as_str().is_some_and(|uid| !uid.is_empty() && uid.len() <= 40));
    assert!(dashboard.get("id").is_none_or(Value::is_null), "an id is another installation's");
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let variable = |name: &str| variables.iter().find(|variable| variable["name"] == name).expect("a variable");
    assert_eq!(
        (&variable("datasource")["type"], &variable("datasource")["query"]),
        (&"datasource".into(), &"prometheus".into())
    );
    assert_eq!(variable("job")["definition"], "label_values(hostward_build_info, job)");
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "the id of {title} is another's");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().expect("a number"));
        assert!(w > 0 && h > 0 && x + w <= 24, "{title} is outside");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{title} lies on another panel");
        }
    }
    for panel in panels(&dashboard) {
        let mut ids = BTreeSet::new();
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        for target in panel["targets"].as_array().expect("targets") {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{target}");
            assert!(ids.insert(target["refId"].as_str().expect("a refId")), "{target}");
        }
    }
}
