//! Numbers, sizes, durations and words: text becomes a checked value, or a [`Fault`] that says how to write it.
//!
//! humantime and bytesize do the arithmetic; what they would accept and nobody means is refused first.

use std::time::Duration;

use super::settings::{Kind, show_duration};

/// What is wrong with a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// What is wrong.
    pub(super) error: String,
    /// What to write; the setting's example when there is nothing better.
    pub(super) hint: Option<String>,
}

impl Fault {
    pub(super) fn new(error: impl Into<String>) -> Self {
        Self { error: error.into(), hint: None }
    }

    pub(super) fn with(error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { error: error.into(), hint: Some(hint.into()) }
    }
}

/// `75s`, `500ms`, `1m30s`; `0` needs no unit.
pub(super) fn duration(text: &str, least: Duration, most: Duration) -> Result<Duration, Fault> {
    let number = |c: char| c.is_ascii_digit() || c == '.';
    if text == "0" {
        return within(Duration::ZERO, least, most);
    }
    if text.chars().all(number) {
        return Err(Fault::with("a duration needs a unit", format!("Write {text}s.")));
    }
    // humantime reads `5M` as five months and knows years: a typing error would become a very long timeout.
    let mut units = text.split(|c: char| number(c) || c.is_whitespace()).filter(|unit| !unit.is_empty());
    if let Some(unit) = units.find(|unit| !["ms", "s", "m", "h"].contains(unit)) {
        let unit: String = super::mistake::show(unit).chars().take(20).collect();
        return Err(Fault::new(format!("\"{unit}\" is no unit of time; expected ms, s, m or h")));
    }
    // Not longer than humantime can add up: it panics where the sum overflows by a carry.
    if text.split(|c: char| !number(c)).any(|digits| digits.len() > 12) {
        return Err(Fault::new(format!("must be {} to {}", show_duration(least), show_duration(most))));
    }
    let value = humantime::parse_duration(text).map_err(|_| Fault::new("not a duration"))?;
    within(value, least, most)
}

fn within(value: Duration, least: Duration, most: Duration) -> Result<Duration, Fault> {
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(Fault::new(format!("must be {}", Kind::Duration(least, most))))
    }
}

/// `64KiB`, `10MB` or bytes, as the [`Kind`] bounds them.
pub(super) fn size(text: &str, kind: &Kind) -> Result<u64, Fault> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    if number.is_empty() || (unit.is_empty() && number.contains('.')) {
        let word = if let Kind::SizeOr(word, ..) = kind { format!(", or {word}") } else { String::new() };
        return Err(Fault::new(format!("expected a size{word}")));
    }
    // bytesize takes `10m` for 10 MB, nginx for 10 MiB.
    if let [letter] = unit.as_bytes()
        && b"kmgtp".contains(&letter.to_ascii_lowercase())
    {
        let big = char::from(letter.to_ascii_uppercase());
        let small = if big == 'K' { 'k' } else { big };
        return Err(Fault::with(
            "a size needs a whole unit",
            format!("Write {number}{big}iB (nginx's {number}{}) or {number}{small}B.", unit.to_ascii_lowercase()),
        ));
    }
    let known = ["", "b", "kb", "mb", "gb", "tb", "pb", "kib", "mib", "gib", "tib", "pib"];
    if !known.contains(&unit.to_ascii_lowercase().as_str()) {
        return Err(Fault::new("no such unit; expected KiB, MiB, GiB, KB, MB or GB"));
    }
    // What is too large for 64 bits saturates, and is then above every bound.
    let value = text.parse::<bytesize::ByteSize>().map(|size| size.as_u64());
    match (kind, value) {
        (Kind::SizeOrNone(..), Ok(0)) => Ok(0),
        (Kind::Size(least, most) | Kind::SizeOrNone(least, most) | Kind::SizeOr(_, least, most), Ok(value))
            if (*least..=*most).contains(&value) =>
        {
            Ok(value)
        }
        _ => Err(Fault::new(format!("must be {kind}"))),
    }
}

/// A whole number, or the word that stands for none.
pub(super) fn count(text: &str, word: &str, least: usize, most: usize) -> Result<Option<usize>, Fault> {
    if text.eq_ignore_ascii_case(word) {
        return Ok(None);
    }
    let expected = || Fault::new(format!("expected {least} to {most}, or {word}"));
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(expected());
    }
    match text.parse() {
        Ok(value) if (least..=most).contains(&value) => Ok(Some(value)),
        _ => Err(expected()),
    }
}

/// One of the words, in any case.
pub(super) fn word(text: &str, words: &'static [&'static str]) -> Result<&'static str, Fault> {
    let found = words.iter().find(|word| word.eq_ignore_ascii_case(text)).copied();
    // Where `on` is a word, `true` is too: nobody remembers which settings are switches and which nearly.
    let found = found.or_else(|| match switch(text) {
        Ok(on) if words.contains(&"on") => words.iter().find(|word| **word == if on { "on" } else { "off" }).copied(),
        _ => None,
    });
    found.ok_or_else(|| Fault::new(format!("expected {}", Kind::Word(words))))
}

/// `on`, `true`, `1`, `yes` and their opposites.
pub(super) fn switch(text: &str) -> Result<bool, Fault> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" | "1" | "yes" => Ok(true),
        "off" | "false" | "0" | "no" => Ok(false),
        _ => Err(Fault::new(format!("expected {}", Kind::Switch))),
    }
}

/// Words of its own for a value that nobody meant, because something before us should have replaced it.
pub(super) fn misplaced(text: &str) -> Option<Fault> {
    let dollar = |text: &str| {
        text.match_indices('$').any(|(at, _)| {
            text[at + 1..].starts_with(|c: char| c == '{' || c == '_' || c == '(' || c.is_ascii_alphabetic())
        })
    };
    if text.starts_with("arn:aws") && [":ssm:", ":secretsmanager:"].iter().any(|service| text.contains(service)) {
        return Some(Fault::with(
            "this is the name of a secret, not its value",
            "In the task definition, put it under `secrets` as `valueFrom`, not under `environment`.",
        ));
    }
    if dollar(text) || text.contains("{{") {
        return Some(Fault::with(
            "this looks like a placeholder that nothing replaced",
            "ECS does not expand variables: write the value, or use `secrets` with `valueFrom`.",
        ));
    }
    let quoted = |quote: char| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote);
    (quoted('"') || quoted('\''))
        .then(|| Fault::with("the quotation marks are part of the value", "Leave them out: env files keep them."))
}

/// The items of a list: commas and white space separate them.
pub(super) fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_whitespace()).filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn millis(text: &str) -> Result<u128, Fault> {
        duration(text, Duration::ZERO, HOUR).map(|value| value.as_millis())
    }

    #[test]
    fn a_duration_has_a_unit_that_cannot_be_mistaken() {
        for (text, expected) in [
            ("75s", 75_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("1m30s", 90_000),
            ("1m 30s", 90_000),
            ("1.5s", 1500),
            ("0s", 0),
            ("0", 0),
        ] {
            assert_eq!(millis(text), Ok(expected), "{text}");
        }
        for text in [
            "5M",
            "75S",
            "1d",
            "1y",
            "75sec",
            "1us",
            "s",
            "-1s",
            "+1s",
            "1,5s",
            "1s1",
            "1e3s",
            "1.s",
            ".",
            "NaN",
            "75\u{a0}s!",
            "\u{661}s",
            "61m",
            "18446744073709551615s 1000ms",
            "99999999999999999999s",
            "1.0000000000000001s",
        ] {
            assert!(millis(text).is_err(), "{text}");
        }
        assert_eq!(millis("75"), Err(Fault::with("a duration needs a unit", "Write 75s.")));
        assert_eq!(duration("0s", Duration::from_millis(100), HOUR), Err(Fault::new("must be 100ms to 1h")));
        assert_eq!(duration("0", Duration::from_secs(1), HOUR), Err(Fault::new("must be 1s to 1h")));
    }

    #[test]
    fn a_size_has_a_whole_unit_or_none() {
        let kind = Kind::SizeOrNone(1, 1 << 50);
        for (text, expected) in [
            ("64KiB", 65536),
            ("10MiB", 10 << 20),
            ("10MB", 10_000_000),
            ("64kB", 64_000),
            ("64KB", 64_000),
            ("64kb", 64_000),
            ("1GB", 1_000_000_000),
            ("1gb", 1_000_000_000),
            ("1GiB", 1 << 30),
            ("1gib", 1 << 30),
            ("1TB", 1_000_000_000_000),
            ("1TiB", 1 << 40),
            ("10 MiB", 10 << 20),
            ("1.5KiB", 1536),
            ("10mib", 10 << 20),
            ("7", 7),
            ("7B", 7),
            ("0", 0),
            ("1125899906842624", 1 << 50),
            ("1PiB", 1 << 50),
        ] {
            assert_eq!(size(text, &kind), Ok(expected), "{text}");
        }
        for text in [
            "",
            "-1",
            "x",
            "KiB",
            "1.5",
            "1e9",
            "10QB",
            "1..5MB",
            "2PiB",
            "2048TiB",
            "99999999999999999999",
            "99999999TiB",
            "18446744073709551616",
            "\u{661}KiB",
            "1 0KiB",
            "10MiBMiB",
        ] {
            assert!(size(text, &kind).is_err(), "{text}");
        }
        assert_eq!(
            size("10m", &kind),
            Err(Fault::with("a size needs a whole unit", "Write 10MiB (nginx's 10m) or 10MB."))
        );
        assert_eq!(
            size("64k", &kind),
            Err(Fault::with("a size needs a whole unit", "Write 64KiB (nginx's 64k) or 64kB."))
        );
        assert_eq!(size("1KiB", &Kind::Size(8192, 1 << 20)), Err(Fault::new("must be 8KiB to 1MiB")));
        assert!(size("0", &Kind::Size(8192, 1 << 20)).is_err());
    }

    #[test]
    fn a_count_is_digits_within_bounds_or_the_word() {
        assert_eq!(count("auto", "auto", 1, 8), Ok(None));
        assert_eq!(count("AUTO", "auto", 1, 8), Ok(None));
        assert_eq!(count("0", "0", 1, 8), Ok(None));
        assert_eq!(count("8", "auto", 1, 8), Ok(Some(8)));
        for text in ["0", "9", "-1", "+1", "1.0", "x", "99999999999999999999999"] {
            assert_eq!(count(text, "auto", 1, 8), Err(Fault::new("expected 1 to 8, or auto")), "{text}");
        }
    }

    #[test]
    fn words_and_switches_take_what_people_write() {
        const WORDS: &[&str] = &["on", "errors", "off"];
        for (text, expected) in [("on", "on"), ("True", "on"), ("1", "on"), ("ERRORS", "errors"), ("no", "off")] {
            assert_eq!(word(text, WORDS), Ok(expected), "{text}");
        }
        assert_eq!(word("all", WORDS), Err(Fault::new("expected on, errors or off")));
        assert!(word("true", &["https", "http", "off"]).is_err());
        assert_eq!(switch("YES"), Ok(true));
        assert_eq!(switch("0"), Ok(false));
        assert_eq!(switch("enabled"), Err(Fault::new("expected on or off")));
    }

    #[test]
    fn what_was_never_replaced_is_told_apart() {
        for text in ["${HOST}", "$HOST", "http://$(APP):8000", "{{ host }}", "a.example,$B"] {
            assert!(misplaced(text).unwrap().error.contains("placeholder"), "{text}");
        }
        for text in ["arn:aws:ssm:eu-west-1:1:parameter/x", "arn:aws-cn:secretsmanager:cn-north-1:1:secret:x"] {
            assert!(misplaced(text).unwrap().hint.unwrap().contains("valueFrom"), "{text}");
        }
        assert!(misplaced("\"a.example\"").unwrap().error.contains("quotation"));
        for text in ["www.example.com", "*", "/price?in=$", "\"", "[::]:8080", "arn:aws:s3:::x"] {
            assert_eq!(misplaced(text), None, "{text}");
        }
    }

    #[test]
    fn lists_are_separated_by_commas_and_white_space() {
        assert_eq!(items(" a,b c\n,,\td ").collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        assert_eq!(items(" , ").count(), 0);
    }
}
