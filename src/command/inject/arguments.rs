//! The command line of `inject`. The settings' flags are every subcommand's, and in `command` itself.

use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgAction, ArgMatches};

/// What to add, and where. The settings of hostward's container are the flags, and these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inject {
    /// The app's container; `None` is the only one that publishes a port.
    pub app: Option<String>,
    /// hostward's image.
    pub image: Option<String>,
    /// Settings, by the name of the variable.
    pub set: Vec<(String, String)>,
}

impl Inject {
    /// What was typed.
    pub(in crate::command) fn taken(matches: &ArgMatches) -> Self {
        Self {
            app: matches.get_one::<String>("app").cloned(),
            image: matches.get_one::<String>("image").cloned(),
            set: matches.get_many("set").map(|pairs| pairs.cloned().collect()).unwrap_or_default(),
        }
    }
}

const AFTER_INJECT: &str = "Reads the task definition, or what `aws ecs describe-task-definition` prints, on standard \
                            input, and writes the new one on standard output. Every setting of `hostward --help` is \
                            a flag here too, and becomes a variable of hostward's container; the environment of this \
                            command doesn't count.\n\nExit codes: 0 fine, 1 failed to read or write, 2 refused.";

/// Adds them to the subcommand.
pub(in crate::command) fn arguments(subcommand: clap::Command) -> clap::Command {
    subcommand
        .after_help(AFTER_INJECT)
        .mut_arg("HOSTWARD_ALLOWED_HOSTS", |arg| arg.hide(false).help("Who may enter"))
        .arg(text("app", "NAME").help("The app's container; may be left out where only one publishes a port"))
        .arg(text("image", "IMAGE").help("hostward's image"))
        .arg(
            Arg::new("set")
                .long("set")
                .value_name("KEY=VALUE")
                .action(ArgAction::Append)
                .value_parser(pair)
                .help("A setting of hostward's, such as IDLE_TIMEOUT=90s; may be given again"),
        )
}

fn text(name: &'static str, placeholder: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(placeholder).value_parser(NonEmptyStringValueParser::new())
}

/// `IDLE_TIMEOUT=90s`, or with `HOSTWARD_` before it.
fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected KEY=VALUE, such as IDLE_TIMEOUT=90s")?;
    let name = name.strip_prefix("HOSTWARD_").unwrap_or(name);
    if name.is_empty() {
        return Err("the name of the setting is missing".into());
    }
    Ok((format!("HOSTWARD_{name}"), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use crate::command::{Command, parse};
    use crate::config::load;

    #[test]
    fn inject_takes_a_container_an_image_and_settings() {
        let line = [
            "inject",
            "--app=web",
            "--image",
            "r/h:1",
            "--set",
            "STRICT=on",
            "--set=HOSTWARD_LISTEN=:1=",
            "--allowed-hosts",
            "a",
        ];
        let (Command::Inject(inject), flags) = parse(["hostward"].iter().chain(&line)).unwrap() else {
            panic!("not inject")
        };
        assert_eq!((inject.app.as_deref(), inject.image.as_deref()), (Some("web"), Some("r/h:1")));
        let set = [("HOSTWARD_STRICT", "on"), ("HOSTWARD_LISTEN", ":1=")];
        assert_eq!(inject.set, set.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(load(&flags, [], false).is_ok());
        for wrong in [["--set", "STRICT"], ["--set", "=on"], ["--app", ""], ["--image", ""]] {
            let refused = parse(["hostward", "inject", wrong[0], wrong[1]]).unwrap_err();
            assert_eq!(refused.exit_code(), 2, "{wrong:?}");
        }
    }
}
