//! `hostward config`: every value and where it came from; as Markdown, the README's table of settings.

use std::io::{self, Write};

use super::Format;
use crate::config::{Default as Fallback, Given, SETTINGS, Sources, show};

/// Prints the settings, right or wrong, and returns the exit code.
pub fn run(sources: &Sources, format: Format, out: &mut impl Write) -> u8 {
    let printed = match format {
        Format::Text => text(sources, out),
        Format::Json => json(sources, out),
        Format::Markdown => markdown(out),
    };
    u8::from(printed.is_err())
}

/// The README's table, which is the same for everybody.
///
/// # Errors
///
/// When `out` can't be written.
pub fn markdown(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "| setting | default | takes | meaning |\n|---|---|---|---|")?;
    for setting in SETTINGS {
        let default = match setting.default {
            Fallback::Is(text) => format!("`{text}`"),
            Fallback::Unset(what) => what.into(),
            Fallback::Required => "required".into(),
        };
        writeln!(out, "| `{}` | {default} | {} | {} |", setting.name(), setting.kind, escaped(setting.meaning))?;
    }
    Ok(())
}

/// An asterisk is emphasis in Markdown.
fn escaped(text: &str) -> String {
    text.replace('*', "\\*")
}

fn text(sources: &Sources, out: &mut impl Write) -> io::Result<()> {
    let rows: Vec<(&Given, String)> = sources.list.iter().map(|given| (given, value(given))).collect();
    let names = rows.iter().map(|(given, _)| given.setting.variable.len()).max().unwrap_or_default();
    // One very long list shall not push every other line's source out of sight.
    let values = rows.iter().map(|(_, value)| value.chars().count()).max().unwrap_or_default().min(40);
    for (given, value) in &rows {
        writeln!(out, "{:names$}  {value:values$}  {}", given.setting.variable, given.source.name())?;
    }
    out.flush()
}

fn value(given: &Given) -> String {
    match (given.shown(), given.setting.default) {
        (Some(value), _) => show(&value),
        (None, Fallback::Unset(what)) => format!("({what})"),
        (None, _) => "(missing)".into(),
    }
}

fn json(sources: &Sources, out: &mut impl Write) -> io::Result<()> {
    let settings: serde_json::Map<_, _> = sources
        .list
        .iter()
        .map(|given| {
            let entry = serde_json::json!({ "value": given.shown(), "source": given.source.name() });
            (given.setting.variable.to_owned(), entry)
        })
        .collect();
    writeln!(out, "{:#}", serde_json::Value::Object(settings))?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, load};

    fn printed(format: Format) -> String {
        let mut flags = Flags::default();
        flags.set("HOSTWARD_IDLE_TIMEOUT", "80s".into());
        let environment = [("HOSTWARD_ALLOWED_HOSTS".into(), ".example.com".into())];
        let sources = load(&flags, environment, false).unwrap().sources;
        let mut out = Vec::new();
        assert_eq!(run(&sources, format, &mut out), 0);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_has_a_line_for_every_setting() {
        let text = printed(Format::Text);
        let words = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
            line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(text.lines().count(), SETTINGS.len());
        assert_eq!(words("HOSTWARD_ALLOWED_HOSTS"), ".example.com environment");
        assert_eq!(words("HOSTWARD_IDLE_TIMEOUT"), "80s flag");
        assert_eq!(words("HOSTWARD_CANONICAL_HOST"), "example.com default");
        assert_eq!(words("HOSTWARD_READY_PATH"), "(a TCP connect) default");
    }

    #[test]
    fn json_has_an_entry_for_every_setting() {
        let value: serde_json::Value = serde_json::from_str(&printed(Format::Json)).unwrap();
        assert_eq!(value.as_object().unwrap().len(), SETTINGS.len());
        assert_eq!(value["HOSTWARD_IDLE_TIMEOUT"], serde_json::json!({ "value": "80s", "source": "flag" }));
        assert_eq!(value["HOSTWARD_READY_PATH"], serde_json::json!({ "value": null, "source": "default" }));
    }

    #[test]
    fn markdown_has_a_row_of_four_cells_for_every_setting() {
        let text = printed(Format::Markdown);
        assert_eq!(text.lines().count(), SETTINGS.len() + 2);
        assert!(text.lines().all(|line| line.matches('|').count() == 5), "{text}");
        assert!(text.contains("| `IDLE_TIMEOUT` | `75s` | 100ms to 2h |"), "{text}");
    }

    #[test]
    fn a_closed_pipe_is_a_failure() {
        assert_eq!(run(&Sources::default(), Format::Json, &mut [].as_mut_slice()), 1);
    }
}
