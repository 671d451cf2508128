//! What is wrong with the settings: every mistake with its name, its value, what is expected and an example,
//! as lines for a person or as JSON for a log.
//!
//! Values come from outside, so they are capped and escaped before they are kept.

use std::fmt;
use std::io::{self, Write};
use std::time::SystemTime;

use super::{Config, Sources};
use crate::clock;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The variable's name, whichever way the value was given.
    pub setting: String,
    /// Whether the value came from the flag.
    pub by_flag: bool,
    /// What was written, capped and escaped; `None` where that isn't the point, or not fit to be shown.
    pub value: Option<String>,
    /// What is wrong with it.
    pub error: String,
    /// What to do.
    pub hint: String,
}

/// Why nothing was started: never empty.
#[derive(Clone, Debug)]
pub struct Mistakes {
    /// All of them.
    pub list: Vec<Mistake>,
    /// What was written, right or wrong, for `hostward config`.
    pub sources: Sources,
    /// What was meant, as far as it is right: more may be found wrong with it, and nothing is started with it.
    pub config: Box<Config>,
}

/// Characters of a value that a message shows; the longest sensible value is a list of hosts.
const SHOWN: usize = 200;

impl Mistake {
    /// A mistake in the value of a variable.
    pub fn new(
        setting: impl AsRef<str>,
        value: Option<&str>,
        error: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let setting = show(setting.as_ref());
        Self { setting, by_flag: false, value: value.map(show), error: error.into(), hint: hint.into() }
    }

    /// One JSON object, as the log writes them.
    pub fn to_json(&self, level: &str, msg: &str, time: SystemTime) -> String {
        let line = serde_json::json!({
            "time": humantime::format_rfc3339_millis(clock::printable(time)).to_string(),
            "level": level,
            "msg": msg,
            "setting": self.setting,
            "value": self.value,
            "error": self.error,
            "hint": self.hint,
        });
        line.to_string()
    }

    fn name(&self) -> String {
        if !self.by_flag {
            return self.setting.clone();
        }
        match super::settings::Setting::find(&self.setting) {
            Some(setting) => format!("{} (--{})", self.setting, setting.flag()),
            None => self.setting.clone(),
        }
    }
}

/// `"75": a duration needs a unit. Write 75s.`, without the name.
impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(value) = &self.value {
            write!(f, "\"{value}\": ")?;
        }
        write!(f, "{}. {}", self.error, self.hint)
    }
}

impl Mistakes {
    /// Whether there is one in these variables.
    pub fn concern(&self, variables: &[&str]) -> bool {
        self.list.iter().any(|mistake| variables.contains(&mistake.setting.as_str()))
    }

    /// Writes all of them: for a person, or one JSON object a line.
    ///
    /// # Errors
    ///
    /// When `out` can't be written.
    pub fn write(&self, out: &mut impl Write, terminal: bool, time: SystemTime) -> io::Result<()> {
        let count = self.list.len();
        let summary = format!("{count} configuration {}", if count == 1 { "problem" } else { "problems" });
        if !terminal {
            for mistake in &self.list {
                writeln!(out, "{}", mistake.to_json("ERROR", "configuration mistake", time))?;
            }
            let line = serde_json::json!({
                "time": humantime::format_rfc3339_millis(clock::printable(time)).to_string(),
                "level": "ERROR",
                "msg": "not starting",
                "error": summary,
                "hint": CLOSING,
            });
            return writeln!(out, "{line}");
        }
        writeln!(out, "hostward: {summary}, not starting (exit 2)\n")?;
        let width = self.list.iter().map(|mistake| mistake.name().chars().count()).max().unwrap_or_default();
        for mistake in &self.list {
            writeln!(out, "  {:width$}  {mistake}", mistake.name())?;
        }
        writeln!(out, "\n{CLOSING}")
    }
}

const CLOSING: &str =
    "`hostward config` shows every value and where it came from; `hostward check` tries the settings without starting.";

/// What of a value may stand in a message: the beginning, with nothing in it that a terminal or a reader of
/// the log would obey (control characters, and those that turn the direction of writing).
pub fn show(value: &str) -> String {
    let mut shown = visible(value.chars().take(SHOWN));
    if value.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// The same for a text of any length.
pub fn visible(text: impl Iterator<Item = char>) -> String {
    let mut shown = String::new();
    for c in text {
        match c {
            '"' | '\'' | '\\' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, load};

    fn two() -> Mistakes {
        let first = Mistake::new("HOSTWARD_IDLE_TIMEOUT", Some("75"), "a duration needs a unit", "Write 75s.");
        let second = Mistake { by_flag: true, ..Mistake::new("HOSTWARD_LISTEN", None, "wrong", "Example: :8080.") };
        Mistakes { list: vec![first, second], ..load(&Flags::default(), [], false).unwrap_err() }
    }

    fn written(mistakes: &Mistakes, terminal: bool) -> String {
        let mut out = Vec::new();
        mistakes.write(&mut out, terminal, SystemTime::UNIX_EPOCH).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_person_gets_aligned_lines() {
        assert_eq!(
            written(&two(), true),
            format!(
                "hostward: 2 configuration problems, not starting (exit 2)\n\n\
                 \x20 HOSTWARD_IDLE_TIMEOUT       \"75\": a duration needs a unit. Write 75s.\n\
                 \x20 HOSTWARD_LISTEN (--listen)  wrong. Example: :8080.\n\n{CLOSING}\n"
            )
        );
    }

    #[test]
    fn a_log_gets_one_object_a_line() {
        let text = written(&two(), false);
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(
            text.lines().next().unwrap(),
            r#"{"time":"1970-01-01T00:00:00.000Z","level":"ERROR","msg":"configuration mistake","setting":"HOSTWARD_IDLE_TIMEOUT","value":"75","error":"a duration needs a unit","hint":"Write 75s."}"#
        );
        assert_eq!(lines[1]["value"], serde_json::Value::Null);
        assert_eq!(lines[2]["msg"], "not starting");
    }

    #[test]
    fn a_clock_before_1970_is_no_reason_to_panic() {
        let before = SystemTime::UNIX_EPOCH - std::time::Duration::from_secs(1);
        let mut out = Vec::new();
        two().write(&mut out, false, before).unwrap();
        assert!(String::from_utf8(out).unwrap().starts_with(r#"{"time":"1970-01-01T00:00:00.000Z""#));
    }

    #[test]
    fn a_value_is_capped_and_escaped() {
        assert_eq!(show("a\r\n\u{1b}[31m\u{202e}\"b\\"), "a\\r\\n\\u{1b}[31m\\u{202e}\"b\\");
        assert_eq!(show("h\u{f6}st"), "h\u{f6}st");
        let long = show(&"x".repeat(100_000));
        assert_eq!(long.chars().count(), SHOWN + 1);
    }
}
