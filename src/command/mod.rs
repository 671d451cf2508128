//! The command line: one file per subcommand, and here what was typed becomes a [`Command`] and [`Flags`].
//!
//! The flags of the settings are made from the settings' own table. They may stand before the subcommand or
//! behind it; the one behind it counts.

pub mod check;
pub mod config;
pub mod explain;
pub mod healthcheck;
pub mod inject;
pub mod status;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, value_parser};
use http::{HeaderName, HeaderValue, Method, Uri};

use self::inject::Inject;
use crate::config::{Default as Fallback, Flags, Kind, SETTINGS, Setting};

/// What hostward is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve.
    Run,
    /// Judge the settings without starting.
    Check {
        /// Also connect to the app.
        upstream: bool,
    },
    /// Print every value and where it came from.
    Config {
        /// How.
        format: Format,
    },
    /// Say what would happen to a request.
    Explain(Explain),
    /// Ask the hostward that runs in this container.
    Healthcheck {
        /// `/readyz` and not `/livez`.
        ready: bool,
    },
    /// Say how the hostward in this container is.
    Status {
        /// How to print it.
        format: Format,
    },
    /// Add hostward to a task definition.
    Inject(Inject),
}

/// A request to explain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explain {
    /// Whether it is read from standard input; what else is said of it is added.
    pub raw: bool,
    /// Its method.
    pub method: Method,
    /// Its target.
    pub target: Uri,
    /// Its `Host`, unjudged; `None` when it has none.
    pub host: Option<String>,
    /// Who sends it.
    pub peer: Option<IpAddr>,
    /// The address that it arrives on.
    pub local: Option<IpAddr>,
    /// The port that it arrives on; `None` for that of `LISTEN`.
    pub local_port: Option<u16>,
    /// Its other field lines, in order.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether it is HTTP/1.0, which may lack a `Host`.
    pub http10: bool,
    /// How to answer: text or JSON.
    pub format: Format,
}

/// How a command prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For a person.
    Text,
    /// For a program.
    Json,
    /// For the README.
    Markdown,
}

/// Reads the command line, the program's name first.
///
/// # Errors
///
/// What clap has to say, `--help` and `--version` included; its `exit_code()` is 2 for a mistake.
pub fn parse(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<(Command, Flags), clap::Error> {
    let matches = program().try_get_matches_from(args)?;
    let mut flags = Flags::default();
    take_flags(&matches, &mut flags);
    let Some((name, matches)) = matches.subcommand() else { return Ok((Command::Run, flags)) };
    take_flags(matches, &mut flags);
    let command = match name {
        "check" => Command::Check { upstream: matches.contains_id(UPSTREAM) },
        "config" => Command::Config { format: format(matches) },
        "explain" => {
            let local = matches.get_one::<(IpAddr, Option<u16>)>("local").copied();
            Command::Explain(Explain {
                raw: matches.contains_id("request"),
                method: matches.get_one::<Method>("method").cloned().unwrap_or_default(),
                target: matches.get_one::<Uri>("target").cloned().unwrap_or_default(),
                host: matches.get_one::<String>("host").cloned(),
                peer: matches.get_one::<IpAddr>("peer").copied(),
                local: local.map(|(address, _)| address),
                local_port: local.and_then(|(_, port)| port),
                headers: matches.get_many("header").map(|lines| lines.cloned().collect()).unwrap_or_default(),
                http10: matches.get_flag("http10"),
                format: format(matches),
            })
        }
        "status" => Command::Status { format: format(matches) },
        "healthcheck" => Command::Healthcheck { ready: matches.get_flag("ready") },
        "inject" => Command::Inject(Inject::taken(matches)),
        _ => Command::Run,
    };
    Ok((command, flags))
}

const UPSTREAM: &str = "HOSTWARD_UPSTREAM";

const ABOUT: &str = "The second container of an ECS task: stands in front of an app that nobody changes, judges the \
                     Host, lets the load balancer's health checks through, and forwards to localhost.";

const AFTER: &str = "A flag --allowed-hosts is the variable HOSTWARD_ALLOWED_HOSTS; a flag wins, and an empty value \
                     is none. Lists: commas or white space. Durations: 500ms, 75s, 2m, 1h. Sizes: 64KiB, 10MB, or \
                     bytes.\n\nExit codes: 0 fine, 1 failed while running, 2 configuration, 3 the address is taken.";

const AFTER_SUBCOMMAND: &str = "Every setting of `hostward --help` is a flag here too.";

/// The whole command line, for [`parse`] and for whoever wants to print its help.
pub fn program() -> clap::Command {
    let explain =
        subcommand("explain", "Say what would happen to a request, and by which rule (exit 0 enters, 3 doesn't)")
            .arg(Arg::new("host").long("host").value_name("HOST").help("Its Host; without it, the request has none"))
            .arg(address("peer").help("Who sends it"))
            .arg(
                Arg::new("local")
                    .long("local")
                    .value_name("IP[:PORT]")
                    .value_parser(local)
                    .help("The address of this task that it arrives on"),
            )
            .arg(
                Arg::new("header")
                    .long("header")
                    .value_name("NAME: VALUE")
                    .action(ArgAction::Append)
                    .value_parser(header)
                    .help("Another field line; may be given again"),
            )
            .arg(
                Arg::new("method")
                    .long("method")
                    .value_name("METHOD")
                    .value_parser(|text: &str| text.parse::<Method>().map_err(|_| "expected a method, such as GET"))
                    .help("Its method [default: GET]"),
            )
            .arg(
                Arg::new("target")
                    .long("target")
                    .value_name("PATH or URL")
                    .value_parser(|text: &str| text.parse::<Uri>().map_err(|_| "expected a path, or a URL"))
                    .help("Its target [default: /]"),
            )
            .arg(
                Arg::new("request")
                    .long("request")
                    .value_name("-")
                    .value_parser(PossibleValuesParser::new(["-"]))
                    .conflicts_with_all(["method", "target", "http10"])
                    .help("Read it from standard input, as it is on the wire"),
            )
            .arg(Arg::new("http10").long("http10").action(ArgAction::SetTrue).help("It is HTTP/1.0"))
            .arg(format_arg(["text", "json"].as_slice()));
    clap::Command::new("hostward")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .after_help(AFTER)
        .args(SETTINGS.iter().map(setting_arg))
        .subcommand(subcommand("run", "Serve; the same as no command"))
        .subcommand(subcommand("check", "Judge the settings without starting anything").defer(check))
        .subcommand(
            subcommand("config", "Print every value and where it came from")
                .arg(format_arg(["text", "json", "markdown"].as_slice())),
        )
        .subcommand(explain)
        .subcommand(
            subcommand("healthcheck", "Ask the hostward in this container whether it is live (exit 0 yes, 1 no)").arg(
                Arg::new("ready")
                    .long("ready")
                    .action(ArgAction::SetTrue)
                    .help("Whether it is ready, and not only live"),
            ),
        )
        .subcommand(
            subcommand("status", "Say how the hostward in this container is, and what it refused lately")
                .arg(format_arg(["text", "json"].as_slice())),
        )
        .subcommand(
            subcommand("inject", "Add hostward to a task definition: standard input to standard output")
                .defer(|command| inject::arguments(settings(command))),
        )
}

fn subcommand(name: &'static str, about: &'static str) -> clap::Command {
    clap::Command::new(name).about(about).after_help(AFTER_SUBCOMMAND).defer(settings)
}

/// The settings as flags of a subcommand, which gets them when it is asked for: those of all would take longer to make
/// than the rest of the start, and memory that a server keeps.
fn settings(command: clap::Command) -> clap::Command {
    command.args(SETTINGS.iter().map(|setting| setting_arg(setting).hide(true)))
}

fn check(command: clap::Command) -> clap::Command {
    // The setting and the wish to test it share a name: without a value it is the wish alone, with one both.
    settings(command).mut_arg(UPSTREAM, |arg| {
        arg.hide(false)
            .num_args(0..=1)
            .default_missing_value("")
            .help("Also connect to the app; with a URL, to that one")
    })
}

fn setting_arg(setting: &'static Setting) -> Arg {
    let takes = match setting.kind {
        Kind::Duration(..)
        | Kind::Size(..)
        | Kind::SizeOrNone(..)
        | Kind::SizeOr(..)
        | Kind::Count(..)
        | Kind::Word(_) => {
            format!("; {}", setting.kind)
        }
        Kind::Switch | Kind::List(_) | Kind::Text(_) => String::new(),
    };
    let default = match setting.default {
        Fallback::Is(text) => format!("[default: {text}]"),
        Fallback::Unset(what) => format!("[default: {what}]"),
        Fallback::Required => "[required]".into(),
    };
    Arg::new(setting.variable)
        .long(setting.flag())
        .value_name(setting.kind.placeholder())
        .value_parser(value_parser!(OsString))
        // PEM begins with hyphens, and clap would print what it takes for an unknown flag.
        .allow_hyphen_values(matches!(setting.kind, Kind::Text("path or PEM")))
        .help_heading(setting.group.heading())
        .help(format!("{}{takes} {default}", setting.meaning))
}

fn address(name: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("IP").value_parser(value_parser!(IpAddr))
}

/// An address, perhaps with a port.
fn local(text: &str) -> Result<(IpAddr, Option<u16>), &'static str> {
    let with_port = text.parse().map(|address: SocketAddr| (address.ip(), Some(address.port())));
    with_port.or_else(|_| text.parse().map(|address| (address, None))).map_err(|_| "expected an IP, or IP:PORT")
}

fn format_arg(formats: &'static [&'static str]) -> Arg {
    Arg::new("format")
        .long("format")
        .value_name("FORMAT")
        .value_parser(PossibleValuesParser::new(formats))
        .default_value("text")
        .help("How to print it")
}

fn format(matches: &ArgMatches) -> Format {
    match matches.get_one::<String>("format").map(String::as_str) {
        Some("json") => Format::Json,
        Some("markdown") => Format::Markdown,
        _ => Format::Text,
    }
}

fn header(line: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = line.split_once(':').ok_or("expected a name, a colon and a value")?;
    let name = name.parse().map_err(|_| "the name has a character that a field name can't have")?;
    let value = HeaderValue::from_str(value.trim()).map_err(|_| "a control character in the value")?;
    Ok((name, value))
}

fn take_flags(matches: &ArgMatches, flags: &mut Flags) {
    for setting in SETTINGS {
        // An empty one, such as `check --upstream` without a value, takes nothing back that stood before it.
        if let Some(value) = matches.get_one::<OsString>(setting.variable)
            && !value.is_empty()
        {
            flags.set(setting.variable, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn parsed(line: &[&str]) -> (Command, Flags) {
        parse(["hostward"].iter().chain(line)).unwrap()
    }

    fn refused(line: &[&str]) -> clap::Error {
        parse(["hostward"].iter().chain(line)).unwrap_err()
    }

    #[test]
    fn the_command_line_has_no_contradictions() {
        program().debug_assert();
    }

    #[test]
    fn no_command_is_run() {
        assert_eq!(parsed(&[]).0, Command::Run);
        assert_eq!(parsed(&["run"]).0, Command::Run);
        let (command, flags) = parsed(&["--upstream", "http://127.0.0.1:3000", "--allowed-hosts=a.example"]);
        assert_eq!(command, Command::Run);
        let config = load(&flags, [], false).unwrap().config;
        assert_eq!(config.upstream.port(), Some(3000));
    }

    #[test]
    fn every_setting_is_a_flag_of_every_command() {
        for command in ["run", "check", "config", "explain", "healthcheck", "status", "inject"] {
            for setting in SETTINGS {
                let flag = format!("--{}", setting.flag());
                let (_, flags) = parsed(&[command, &flag, setting.example]);
                let mut expected = Flags::default();
                expected.set(setting.variable, setting.example.into());
                assert_eq!(format!("{flags:?}"), format!("{expected:?}"));
            }
        }
    }

    #[test]
    fn a_flag_may_stand_on_both_sides_and_the_later_counts() {
        let (_, flags) = parsed(&["--idle-timeout", "1s", "--allowed-hosts", "a", "run", "--idle-timeout", "2s"]);
        let config = load(&flags, [], false).unwrap().config;
        assert_eq!(config.idle_timeout.as_secs(), 2);
    }

    #[test]
    fn check_takes_upstream_with_and_without_a_value() {
        let url = "http://127.0.0.1:3000";
        for (line, tested, port) in [
            (&["--allowed-hosts", "a", "check"][..], false, 8000),
            (&["--allowed-hosts", "a", "check", "--upstream"], true, 8000),
            (&["--allowed-hosts", "a", "check", "--upstream", url], true, 3000),
            (&["--allowed-hosts", "a", "--upstream", url, "check", "--upstream"], true, 3000),
            (&["--allowed-hosts", "a", "--upstream", url, "check"], false, 3000),
            (&["check", "--upstream", "--allowed-hosts", "a"], true, 8000),
        ] {
            let (command, flags) = parsed(line);
            assert_eq!(command, Command::Check { upstream: tested }, "{line:?}");
            assert_eq!(load(&flags, [], false).unwrap().config.upstream.port(), Some(port), "{line:?}");
        }
    }

    #[test]
    fn explain_takes_a_request() {
        let line = [
            "explain",
            "--host",
            "10.0.2.100",
            "--peer",
            "10.0.1.7",
            "--local",
            "::1",
            "--header",
            "X-Forwarded-For: 1.2.3.4",
            "--header",
            "x_a:",
            "--http10",
            "--format",
            "json",
        ];
        let Command::Explain(explain) = parsed(&line).0 else { panic!("not explain") };
        assert_eq!(explain.host.as_deref(), Some("10.0.2.100"));
        assert_eq!(explain.peer, Some("10.0.1.7".parse().unwrap()));
        assert_eq!(explain.headers.len(), 2);
        assert_eq!((explain.headers[0].0.as_str(), explain.headers[1].1.as_bytes()), ("x-forwarded-for", &b""[..]));
        assert!(explain.http10 && explain.format == Format::Json);
        let Command::Explain(bare) = parsed(&["explain", "--host="]).0 else { panic!("not explain") };
        assert_eq!((bare.host.as_deref(), bare.peer), (Some(""), None));
        for wrong in ["x", "a b: c", ": c", "a: b\r\nc: d"] {
            assert_eq!(refused(&["explain", "--header", wrong]).exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn mistakes_exit_with_2_and_help_with_0() {
        for line in [
            &["--alowed-hosts", "x"][..],
            &["serve"],
            &["--upstream"],
            &["explain", "--peer", "x"],
            &["config", "--format", "x"],
        ] {
            assert_eq!(refused(line).exit_code(), 2, "{line:?}");
        }
        for line in [&["--help"][..], &["--version"], &["check", "--help"]] {
            assert_eq!(refused(line).exit_code(), 0, "{line:?}");
        }
        assert!(refused(&["--alowed-hosts", "x"]).to_string().contains("--allowed-hosts"));
        assert_eq!(refused(&["--version"]).to_string(), format!("hostward {}\n", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn help_names_every_setting_in_its_group() {
        let help = refused(&["--help"]).to_string();
        for setting in SETTINGS {
            assert!(help.contains(&format!("--{} <", setting.flag())), "{}", setting.flag());
            assert!(help.contains(&format!("{}:\n", setting.group.heading())), "{}", setting.group.heading());
        }
    }
}
