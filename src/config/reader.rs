//! Hands out the settings' values one by one, and keeps every mistake in them.
//!
//! What a value must look like is said in `settings`, `values` and `addresses`; which values there are, and what
//! they have to do with each other, in `load`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::time::Duration;

use super::mistake::{Mistake, show};
use super::pem::{is_pem, shown, takes_pem};
use super::settings::{Default as Fallback, Kind, PREFIX, SETTINGS, Setting};
use super::values::{self, Fault};
use super::{Flags, Given, Source, Sources};

/// Hands out values and keeps what is wrong with them. After a mistake it hands out something harmless, which
/// nobody sees, because [`load`] then returns no [`Config`].
pub(super) struct Reader {
    pub(super) sources: Sources,
    /// Index for index what `sources` holds, where it can be read at all.
    pub(super) texts: Vec<Option<String>>,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Mistake>,
    /// Names that were probably meant by an unknown variable.
    pub(super) meant: Vec<&'static str>,
    pub(super) asked: Vec<&'static str>,
}

impl Reader {
    pub(super) fn new(flags: &Flags, environment: &HashMap<String, OsString>) -> Self {
        let mut reader = Self {
            sources: Sources::default(),
            texts: Vec::new(),
            mistakes: Vec::new(),
            warnings: Vec::new(),
            meant: Vec::new(),
            asked: Vec::new(),
        };
        for setting in SETTINGS {
            let values =
                [(flags.get(setting.variable), Source::Flag), (environment.get(setting.variable), Source::Environment)];
            // Empty is unset, so that a task definition can take a setting back.
            let found = values.into_iter().find_map(|(value, source)| {
                let value = value?;
                let blank = value.to_str().is_some_and(|text| text.trim().is_empty());
                (!blank).then_some((value, source))
            });
            let (text, source, written) = match found {
                Some((value, source)) => match value.to_str() {
                    Some(text) => (Some(text.trim().to_owned()), source, Some(text.trim().to_owned())),
                    None => (None, source, Some(value.to_string_lossy().into_owned())),
                },
                None => match setting.default {
                    Fallback::Is(text) => (Some(text.to_owned()), Source::Default, Some(text.to_owned())),
                    Fallback::Unset(_) | Fallback::Required => (None, Source::Default, None),
                },
            };
            if text.is_none()
                && let Some(value) = &written
            {
                let mut mistake =
                    Mistake::new(setting.variable, Some(&shown(setting, value)), "not UTF-8", example(setting));
                mistake.by_flag = source == Source::Flag;
                reader.mistakes.push(mistake);
            }
            reader.sources.list.push(Given { setting, value: written, source });
            reader.texts.push(text);
        }
        reader
    }

    /// An unknown variable is a setting that somebody believes to be in force.
    pub(super) fn refuse_unknown(&mut self, environment: &HashMap<String, OsString>, strict: bool) {
        let mut unknown: Vec<&String> = environment
            .iter()
            .filter(|(name, value)| {
                name.starts_with(PREFIX) && Setting::find(name).is_none() && !value.to_string_lossy().trim().is_empty()
            })
            .map(|(name, _)| name)
            .collect();
        unknown.sort();
        for name in unknown {
            let hint = match suggestion(name) {
                Some(meant) => {
                    self.meant.push(meant);
                    format!("Did you mean {meant}?")
                }
                None => "Remove it; `hostward --help` lists the settings.".into(),
            };
            // Without its value, which may be a secret of somebody else's.
            let mistake = Mistake::new(name, None, "unknown variable", hint);
            if strict {
                self.mistakes.push(mistake);
            } else {
                self.warnings.push(mistake);
            }
        }
        if !strict {
            self.meant.clear();
        }
    }

    pub(super) fn conflict(&mut self, variable: &'static str, error: String) {
        let Some(at) = position(variable) else { return };
        let text = self.texts[at].clone().unwrap_or_default();
        self.wrong_value(at, &text, Fault::new(error));
    }

    pub(super) fn duration(&mut self, variable: &'static str) -> Duration {
        let value = self.read(variable, |kind, text| match kind {
            Kind::Duration(least, most) => values::duration(text, *least, *most),
            _ => Err(other_kind()),
        });
        value.unwrap_or_default()
    }

    pub(super) fn size(&mut self, variable: &'static str) -> u64 {
        self.read(variable, |kind, text| values::size(text, kind)).unwrap_or_default()
    }

    pub(super) fn count(&mut self, variable: &'static str) -> Option<usize> {
        let value = self.read(variable, |kind, text| match kind {
            Kind::Count(word, least, most) => values::count(text, word, *least, *most),
            _ => Err(other_kind()),
        });
        value.flatten()
    }

    pub(super) fn word(&mut self, variable: &'static str) -> &'static str {
        let value = self.read(variable, |kind, text| match kind {
            Kind::Word(words) => values::word(text, words),
            _ => Err(other_kind()),
        });
        value.unwrap_or_default()
    }

    pub(super) fn switch(&mut self, variable: &'static str, otherwise: bool) -> bool {
        self.read(variable, |_, text| values::switch(text)).unwrap_or(otherwise)
    }

    /// Reads a setting as a whole. `None` when it is unset, or wrong.
    pub(super) fn read<T>(
        &mut self,
        variable: &'static str,
        parse: impl FnOnce(&'static Kind, &str) -> Result<T, Fault>,
    ) -> Option<T> {
        let (at, text) = self.text(variable)?;
        match parse(&SETTINGS[at].kind, &text) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.wrong_value(at, &text, fault);
                None
            }
        }
    }

    /// Reads a setting item by item, so that each wrong item is reported. The words in `alone` suffer no others.
    pub(super) fn each(
        &mut self,
        variable: &'static str,
        alone: &[&str],
        mut parse: impl FnMut(&str) -> Result<(), Fault>,
    ) {
        let Some((at, text)) = self.text(variable) else { return };
        let count = values::items(&text).count();
        if count == 0 {
            self.wrong_value(at, &text, Fault::new("a list without an item"));
        }
        for item in values::items(&text) {
            let lonely = count > 1 && alone.iter().any(|word| word.eq_ignore_ascii_case(item));
            let read = if lonely { Err(Fault::new("this word stands alone")) } else { parse(item) };
            if let Err(fault) = read {
                self.wrong_value(at, item, fault);
            }
        }
    }

    /// The text of a setting, unless it is unset or was never meant to be its value.
    fn text(&mut self, variable: &'static str) -> Option<(usize, String)> {
        self.asked.push(variable);
        let Some(at) = position(variable) else {
            self.mistakes.push(Mistake::new(
                variable,
                None,
                "not in hostward's own table",
                "This is a defect: report it.",
            ));
            return None;
        };
        let text = self.texts[at].clone()?;
        // As a whole: item by item, what is between its first and its last line would be shown.
        let fault = if is_pem(&text) && !takes_pem(&SETTINGS[at]) {
            Some(Fault::with("this is PEM", "A certificate or a key goes into HOSTWARD_TLS_CERT or HOSTWARD_TLS_KEY."))
        } else {
            values::misplaced(&text)
        };
        if let Some(fault) = fault {
            self.wrong_value(at, &text, fault);
            return None;
        }
        Some((at, text))
    }

    pub(super) fn wrong_value(&mut self, at: usize, value: &str, fault: Fault) {
        let setting = &SETTINGS[at];
        let hint = fault.hint.unwrap_or_else(|| example(setting));
        let mut mistake = Mistake::new(setting.variable, Some(&shown(setting, value)), fault.error, hint);
        mistake.by_flag = self.sources.list[at].source == Source::Flag;
        self.mistakes.push(mistake);
    }

    /// Whether a mistake in this setting has been found.
    pub(super) fn wrong(&self, variable: &str) -> bool {
        self.mistakes.iter().any(|mistake| mistake.setting == variable)
    }

    pub(super) fn missing(&self, variable: &str) -> bool {
        self.sources.list.iter().any(|given| given.setting.variable == variable && given.value.is_none())
    }
}

/// The setting whose name looks most like this one, if one does. The common prefix would make all look alike.
fn suggestion(variable: &str) -> Option<&'static str> {
    let name = show(variable.strip_prefix(PREFIX).unwrap_or(variable)).to_ascii_uppercase();
    SETTINGS
        .iter()
        .map(|setting| (strsim::jaro_winkler(&name, setting.name()), setting.variable))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, variable)| variable)
}

fn position(variable: &str) -> Option<usize> {
    SETTINGS.iter().position(|setting| setting.variable == variable)
}

fn example(setting: &Setting) -> String {
    format!("Example: {}.", setting.example)
}

fn other_kind() -> Fault {
    Fault::with("hostward's own table says that this is something else", "This is a defect: report it.")
}
