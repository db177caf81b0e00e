//! Reads TOML tables key by key and collects every mistake, so that one run reports them all.
//!
//! A [`Section`] remembers which of its keys were asked for; what remains when it is dropped is an unknown key and
//! a mistake, with the nearest known key as advice.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use tickbird_shared::units::{parse_bytes, parse_duration, show_duration};
use toml::{Table, Value};

use super::files::Warning;

const DURATION_ADVICE: &str = "write \"90s\" or \"2m\"; units are ms, s, m, h, d, w";

/// One thing that is wrong in a configuration, in the operator's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where: `postgres[0].dsn_file`, or the file itself.
    pub at: String,
    /// What is wrong; never a secret.
    pub what: String,
    /// What to write instead.
    pub advice: Option<String>,
}

/// Every mistake of a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        writeln!(f, "{count} mistake{} in agent configuration", if count == 1 { "" } else { "s" })?;
        let widest = self.0.iter().map(|it| it.at.len() + it.what.len() + 2).max().unwrap_or_default().min(100);
        for Mistake { at, what, advice } in &self.0 {
            match advice {
                Some(advice) => writeln!(f, "  {:widest$} advice: {advice}", format!("{at}: {what}"))?,
                None => writeln!(f, "  {at}: {what}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// Where mistakes are collected while a configuration is read.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    mistakes: Rc<RefCell<Vec<Mistake>>>,
    warnings: Rc<RefCell<Vec<Warning>>>,
    /// Which parts of the configuration came from which fragment.
    origins: Rc<RefCell<Vec<(String, String)>>>,
}

impl Notes {
    /// Notes one mistake.
    pub fn add(&self, at: impl Into<String>, what: impl fmt::Display, advice: Option<String>) {
        self.mistakes.borrow_mut().push(Mistake { at: at.into(), what: what.to_string(), advice });
    }

    /// Remembers that `at` (`app[1]`, `check.pool.leak`) stands in a fragment.
    pub fn stands_in(&self, at: String, file: &str) {
        self.origins.borrow_mut().push((at, file.to_owned()));
    }

    /// All of them, in order, those within a fragment with its name.
    pub fn take(&self) -> Mistakes {
        let mut mistakes = self.mistakes.take();
        let origins = self.origins.borrow();
        for it in &mut mistakes {
            let at = it.at.replace('"', "");
            let is_within =
                |part: &str| at.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
            if let Some((_, file)) = origins.iter().filter(|(part, _)| is_within(part)).max_by_key(|it| it.0.len()) {
                it.what.push_str(&format!(" (in `{file}`)"));
            }
        }
        Mistakes(mistakes)
    }

    /// The warnings.
    pub fn warnings(&self) -> Vec<Warning> {
        self.warnings.take()
    }
}

/// One table of the configuration, on its way to becoming a struct.
pub struct Section {
    at: String,
    table: Table,
    asked: Vec<&'static str>,
    notes: Notes,
}

impl Section {
    /// The whole file.
    pub fn root(table: Table, notes: Notes) -> Self {
        Self { at: String::new(), table, asked: Vec::new(), notes }
    }

    /// Full name of `key`: `postgres[0].dsn_file`.
    pub fn path(&self, key: &str) -> String {
        let needs_quotes = !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let key = if needs_quotes { format!("{key:?}") } else { key.to_owned() };
        if self.at.is_empty() { key } else { format!("{}.{key}", self.at) }
    }

    /// Notes that `key` is wrong.
    pub fn wrong(&self, key: &str, what: impl fmt::Display, advice: Option<String>) {
        self.notes.add(self.path(key), what, advice);
    }

    /// Notes a mistake that was found elsewhere.
    pub fn note(&self, at: String, what: impl fmt::Display, advice: Option<String>) {
        self.notes.add(at, what, advice);
    }

    /// Notes what is no mistake.
    pub fn warn(&self, warning: Warning) {
        self.notes.warnings.borrow_mut().push(warning);
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.asked.push(key);
        self.table.remove(key)
    }

    fn mistyped(&self, key: &str, found: &Value, wanted: &str) {
        self.wrong(key, format!("is {}, not {wanted}", kind(found)), None);
    }

    /// A text.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            other => {
                self.mistyped(key, &other, "a text");
                None
            }
        }
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &'static str) -> Option<bool> {
        match self.take(key)? {
            Value::Boolean(flag) => Some(flag),
            other => {
                self.mistyped(key, &other, "true or false");
                None
            }
        }
    }

    /// A whole number from `least` to `most`.
    pub fn whole(&mut self, key: &'static str, least: i64, most: i64) -> Option<i64> {
        match self.take(key)? {
            Value::Integer(number) if (least..=most).contains(&number) => Some(number),
            Value::Integer(number) => {
                self.wrong(key, format!("{number} is not between {least} and {most}"), None);
                None
            }
            other => {
                self.mistyped(key, &other, "a whole number");
                None
            }
        }
    }

    /// A duration with its unit, from `least` to `most`.
    pub fn duration(&mut self, key: &'static str, least: Duration, most: Duration) -> Option<Duration> {
        let found = self.take(key)?;
        let parsed = match &found {
            Value::String(text) => parse_duration(text),
            Value::Integer(number) => parse_duration(&number.to_string()),
            other => {
                self.mistyped(key, other, "a duration");
                return None;
            }
        };
        match parsed {
            Ok(duration) if (least..=most).contains(&duration) => Some(duration),
            Ok(_) => {
                self.wrong(key, format!("is not between {} and {}", show_duration(least), show_duration(most)), None);
                None
            }
            Err(wrong) => {
                self.wrong(key, &wrong, Some(DURATION_ADVICE.to_owned()));
                None
            }
        }
    }

    /// A size in bytes with its unit: `64MiB`.
    pub fn bytes(&mut self, key: &'static str, least: u64, most: u64) -> Option<u64> {
        let text = self.text(key)?;
        match parse_bytes(&text) {
            Ok(bytes) if (least..=most).contains(&bytes) => Some(bytes),
            Ok(_) => {
                self.wrong(key, format!("`{text}` is not between {least} and {most} bytes"), None);
                None
            }
            Err(wrong) => {
                self.wrong(key, &wrong, Some("write \"64MiB\" or \"1GiB\"".into()));
                None
            }
        }
    }

    /// A share of one core with its sign: `5%` is 0.05.
    pub fn percent(&mut self, key: &'static str, least: f64, most: f64) -> Option<f64> {
        let text = self.text(key)?;
        match text.strip_suffix('%').and_then(|it| it.trim().parse::<f64>().ok()).map(|it| it / 100.0) {
            Some(share) if (least..=most).contains(&share) => Some(share),
            Some(_) => {
                self.wrong(key, format!("`{text}` is not between {}% and {}%", 100.0 * least, 100.0 * most), None);
                None
            }
            None => {
                self.wrong(key, format!("`{text}` is not a percentage"), Some("write \"5%\"".into()));
                None
            }
        }
    }

    /// A list of texts.
    pub fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        let Value::Array(items) = self.take(key)? else {
            self.wrong(key, "is not a list of texts", None);
            return None;
        };
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            match item {
                Value::String(text) => texts.push(text),
                other => self.wrong(key, format!("item {index} is {}, not a text", kind(&other)), None),
            }
        }
        Some(texts)
    }

    /// Any value, as it stands.
    pub fn value(&mut self, key: &'static str) -> Option<Value> {
        self.take(key)
    }

    /// A table of free keys: labels, check ids, JSON pointers.
    pub fn table(&mut self, key: &'static str) -> Option<Table> {
        match self.take(key)? {
            Value::Table(table) => Some(table),
            other => {
                self.mistyped(key, &other, "a table");
                None
            }
        }
    }

    /// A section within this one; empty when it is not there.
    pub fn section(&mut self, key: &'static str) -> Option<Self> {
        let at = self.path(key);
        let table = self.table(key)?;
        Some(Self { at, table, asked: Vec::new(), notes: self.notes.clone() })
    }

    /// The sections of a list: `[[postgres]]`.
    pub fn sections(&mut self, key: &'static str) -> Vec<Self> {
        let at = self.path(key);
        let items = match self.take(key) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => {
                self.wrong(key, "is one table, not a list", Some(format!("write [[{key}]] with two brackets")));
                return Vec::new();
            }
        };
        let mut sections = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let at = format!("{at}[{index}]");
            match item {
                Value::Table(table) => {
                    sections.push(Self { at, table, asked: Vec::new(), notes: self.notes.clone() });
                }
                other => self.notes.add(at, format!("is {}, not a table", kind(&other)), None),
            }
        }
        sections
    }

    /// The sections of a table whose keys are free: `[check."pool.leak"]`.
    pub fn named_sections(&mut self, key: &'static str) -> Vec<(String, Self)> {
        let at = self.path(key);
        let Some(table) = self.table(key) else { return Vec::new() };
        let mut sections = Vec::with_capacity(table.len());
        for (name, value) in table {
            let at = format!("{at}.{name:?}");
            match value {
                Value::Table(table) => {
                    sections.push((name, Self { at, table, asked: Vec::new(), notes: self.notes.clone() }));
                }
                other => self.notes.add(at, format!("is {}, not a table", kind(&other)), None),
            }
        }
        sections
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        for key in self.table.keys() {
            let advice = match nearest(key, &self.asked) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("known here: {}", self.asked.join(", ")),
            };
            self.notes.add(self.path(key), "is not a known key", Some(advice));
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

/// The known word that is at most two edits away from `word`.
pub fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let best = known.iter().map(|it| (distance(word, it), *it)).min()?;
    (best.0 <= 2 && best.0 < word.len()).then_some(best.1)
}

/// Levenshtein distance, for words of at most 64 bytes; longer ones are never near anything.
fn distance(left: &str, right: &str) -> usize {
    if left.len() > 64 || right.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in right.bytes().enumerate() {
            let substitute = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_mistake_is_reported_and_unknown_keys_name_their_neighbour() {
        let table: Table = "a = 1\nintervall = \"3s\"\nwait = 90\nsize = \"3 apples\"".parse().expect("valid TOML");
        let notes = Notes::default();
        let mut root = Section::root(table, notes.clone());
        assert_eq!(root.text("a"), None);
        assert_eq!(root.duration("interval", Duration::ZERO, Duration::MAX), None);
        assert_eq!(root.duration("wait", Duration::ZERO, Duration::MAX), None);
        assert_eq!(root.bytes("size", 0, 10), None);
        drop(root);
        let told = notes.take().to_string();
        assert!(told.starts_with("4 mistakes in agent configuration\n"), "{told}");
        for part in [
            "a: is a whole number, not a text",
            "wait: `90` has no unit",
            "`3 apples` has a unit that is none of B, KiB, MiB, GiB, TiB",
            "did you mean `interval`?",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            let _ = nearest(&text, &["interval", "dsn_file"]);
        }
    }
}
