//! The README against the program: what it names exists, and what the program prints is there.
//! What the README says in sentences, no test can check.

use std::collections::BTreeSet;
use std::path::Path;

use hostward::config::SETTINGS;
use hostward::error::{Failure, Shed};
use hostward::message::authority::InvalidAuthority;
use hostward::policy::Refusal;
use serde_json::Value;

use crate::support::app::answer;
use crate::support::hostward::Hostward;
use crate::support::wire::{get, text};
use crate::support::{Task, eventually};

const README: &str = include_str!("../README.md");

/// What the name of every variable begins with.
const PREFIX: &str = "HOSTWARD_";
/// Named in the README as what nobody sets: Kubernetes makes them of a Service.
const NO_SETTINGS: [&str; 2] = ["HOSTWARD_PORT", "HOSTWARD_SERVICE_HOST"];

/// What stands between `<!-- name -->` and `<!-- /name -->`.
fn section(name: &str) -> &'static str {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let after = README.split_once(&begin).unwrap_or_else(|| panic!("no {begin}")).1;
    after.split_once(&end).unwrap_or_else(|| panic!("no {end}")).0
}

/// The cells of a table's rows, without the head.
fn rows(table: &'static str) -> Vec<Vec<&'static str>> {
    let lines = table.lines().filter(|line| line.starts_with('|')).skip(2);
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// Every longest run of characters that `part_of_word` is true of.
fn words(text: &str, part_of_word: impl Fn(char) -> bool) -> impl Iterator<Item = &str> {
    text.split(move |c| !part_of_word(c)).filter(|word| !word.is_empty())
}

fn variables(text: &str) -> BTreeSet<&str> {
    words(text, |c| c.is_ascii_uppercase() || c == '_')
        .filter(|word| word.len() > PREFIX.len() && word.starts_with(PREFIX))
        .collect()
}

fn flags(text: &str) -> BTreeSet<&str> {
    words(text, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        .filter(|word| word.strip_prefix("--").is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase())))
        .collect()
}

fn help(arguments: &[&str]) -> String {
    let output = Hostward::run(arguments, &[]);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn subcommands(help: &str) -> BTreeSet<&str> {
    let list = help.split_once("Commands:\n").expect("a list of commands").1;
    let names = list.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    // clap's own, which has no help of its own.
    names.filter(|name| *name != "help").collect()
}

/// The command lines in the README's code, each without what stands before `hostward`.
fn command_lines() -> Vec<&'static str> {
    // Code stands between backticks, be it one or three.
    let code = README.split('`').skip(1).step_by(2);
    code.flat_map(str::lines)
        .filter_map(|line| line.split_once("hostward ").filter(|(before, _)| is_prompt(before)))
        .map(|(_, arguments)| arguments)
        .collect()
}

/// Nothing, a prompt, a path, or variables for one command.
fn is_prompt(before: &str) -> bool {
    // Output is indented where it names hostward first.
    !before.starts_with(' ')
        && before.split_whitespace().all(|word| word == "$" || word.ends_with('/') || word.starts_with(PREFIX))
        && before.chars().last().is_none_or(|c| c == ' ' || c == '/')
}

#[test]
fn the_settings_table_is_what_the_program_prints() {
    let output = Hostward::run(&["config", "--format", "markdown"], &[("HOSTWARD_ALLOWED_HOSTS", "www.example.com")]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(section("settings").trim(), text(&output.stdout).trim());
}

#[test]
fn every_variable_that_is_named_is_a_setting() {
    let settings: BTreeSet<&str> = SETTINGS.iter().map(|setting| setting.variable).collect();
    let unknown: Vec<&str> = variables(README).difference(&settings).copied().collect();
    assert_eq!(unknown, NO_SETTINGS);
}

#[test]
fn every_flag_and_subcommand_that_is_named_exists() {
    let general = help(&["--help"]);
    let subcommands = subcommands(&general);
    let helps: Vec<String> = subcommands.iter().map(|name| help(&[*name, "--help"])).collect();
    let known: BTreeSet<&str> = helps.iter().chain([&general]).flat_map(|text| flags(text)).collect();
    // Cargo has flags of its own, and so have the example that it runs, and Docker.
    let ours = README.lines().filter(|line| !line.contains("cargo ") && !line.contains("docker "));
    let named: BTreeSet<&str> = ours.flat_map(flags).collect();
    assert!(named.contains("--host"), "{named:?}");
    assert!(named.is_subset(&known), "{:?}", named.difference(&known));

    let lines = command_lines();
    let mut used = BTreeSet::new();
    for line in &lines {
        let first = line.split_whitespace().next().unwrap_or_default();
        let name = words(first, |c| c.is_ascii_lowercase()).next().unwrap_or_default();
        let (command, arguments) = if first.starts_with('-') { ("run", *line) } else { (name, *line) };
        assert!(subcommands.contains(command), "hostward {line}");
        used.insert(command);
        let its = help(&[command, "--help"]);
        let (its, all) = (flags(&its), flags(&general));
        for flag in flags(arguments) {
            assert!(its.contains(flag) || all.contains(flag), "hostward {line}: no {flag}");
        }
    }
    let missing: Vec<_> = subcommands.iter().filter(|name| !used.contains(**name)).collect();
    assert!(missing.is_empty(), "the README shows no {missing:?}");
}

#[test]
fn every_event_of_the_table_is_one_that_the_source_writes() {
    let mut source = String::new();
    read_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut source);
    let events = rows(section("events"));
    assert!(events.len() > 10, "{events:?}");
    let messages: BTreeSet<&str> = events.iter().flat_map(|row| row[0].split('`').skip(1).step_by(2)).collect();
    for message in &messages {
        assert!(source.contains(&format!("\"{message}\"")), "no event {message:?} in src");
    }
    for failure in FAILURES {
        assert!(messages.contains(failure.message()), "{:?} is not in the README", failure.message());
    }
}

#[test]
fn the_table_of_answers_is_what_the_program_answers() {
    let answers: BTreeSet<(String, String, String)> = rows(section("answers"))
        .iter()
        .map(|row| (row[0].to_owned(), row[2].trim_matches('`').to_owned(), row[3].trim_matches('`').to_owned()))
        .collect();
    let given = FAILURES.iter().map(|failure| {
        (failure.status().as_str().to_owned(), failure.token().to_owned(), failure.message().to_owned())
    });
    assert_eq!(answers, given.collect());
}

#[test]
fn the_table_of_metrics_is_what_is_served() {
    let task = Task::echo(&[]);
    task.get("/").expect(200);
    let served = eventually("the request is counted", || {
        let text = get(task.hostward.admin, "localhost", "/metrics").expect(200).text();
        text.contains("hostward_upstream_response_seconds_count").then_some(text)
    });
    let mut families = Vec::<[String; 3]>::new();
    for line in served.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|help| help.split_once(' ')) {
            families.push([format!("`{name}`"), String::new(), help.to_owned()]);
        } else if let Some((_, labels)) = line.split_once('{') {
            let names = labels.split(',').filter_map(|label| label.split_once('=')).map(|(name, _)| name);
            let names: Vec<_> = names.filter(|name| *name != "le").map(|name| format!("`{name}`")).collect();
            families.last_mut().expect("HELP comes first")[1] = names.join(", ");
        }
    }
    assert_eq!(rows(section("metrics")), families);
}

#[test]
fn the_example_of_a_line_is_as_it_is_written() {
    let example = README.lines().find(|line| line.starts_with('{') && line.contains("\"msg\":\"request\""));
    let example: Value = serde_json::from_str(example.expect("an example")).expect("JSON");
    let given = |name: &str| example[name].as_str().expect(name);
    let task = Task::start(&[], |talk| talk.reply(answer("200 OK", "", "ok\n")));
    task.ask(format!(
        "{} {}?token=1 HTTP/1.1\r\nHost: {}\r\nUser-Agent: {}\r\nX-Forwarded-For: {}\r\nX-Amzn-Trace-Id: Root={}\r\nCookie: c=1\r\n\r\n",
        given("method"),
        given("path"),
        given("host"),
        given("user_agent"),
        given("client_ip"),
        given("trace_id"),
    ))
    .expect(200);
    let mut line = task.hostward.request_line(given("path"));
    for other in ["time", "duration_ms", "upstream_ms", "request_id"] {
        line[other] = example[other].clone();
    }
    assert_eq!(line.to_string(), example.to_string());
}

fn read_sources(directory: &Path, all: &mut String) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read_sources(&path, all);
        } else {
            all.push_str(&std::fs::read_to_string(&path).expect("a source file"));
        }
    }
}

/// One of each kind that is answered: a client that has left gets nothing.
const FAILURES: [Failure; 39] = [
    Failure::Malformed(""),
    Failure::PlainHttp,
    Failure::UnknownCoding,
    Failure::InvalidHost(InvalidAuthority::Empty),
    Failure::Method,
    Failure::Expectation,
    Failure::Refused(Refusal::NotAllowed),
    Failure::HeadTooLarge,
    Failure::TooManyHeaders,
    Failure::VariablesTooLarge,
    Failure::LengthRequired,
    Failure::BodyTooLarge,
    Failure::HeadTimeout,
    Failure::BodyTimeout,
    Failure::Name,
    Failure::Prohibited,
    Failure::ConnectionRefused,
    Failure::ConnectTimeout,
    Failure::Forbidden,
    Failure::Unreachable,
    Failure::ConnectionTerminated,
    Failure::ConnectionLost,
    Failure::StreamReset,
    Failure::StreamRefused,
    Failure::StreamLimit,
    Failure::ResponseTimeout,
    Failure::ResponseMalformed,
    Failure::ResponseHeadTooLarge,
    Failure::TooManyResponseHeaders,
    Failure::UpgradeFailed,
    Failure::LimitReached,
    Failure::SpoolFailed,
    Failure::DiskFull,
    Failure::MemoryFull(Shed::LargeHead),
    Failure::MemoryFull(Shed::SlowClient),
    Failure::MemoryFull(Shed::Busy),
    Failure::OutOfDescriptors,
    Failure::Shutdown,
    Failure::Internal,
];
