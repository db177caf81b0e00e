//! A table that is emptied key by key, so that what is left over is unknown.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tickbird_shared::units::{self, UnitError};
use toml::{Table, Value};

use super::Mistake;

/// Largest file that the configuration may name, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// One table and where it is.
pub(super) struct Fields {
    at: String,
    table: Table,
}

impl Fields {
    pub(super) const fn new(at: String, table: Table) -> Self {
        Self { at, table }
    }

    /// Notes that `key` of this table is wrong.
    pub(super) fn mistake(&self, key: &str, what: String, advice: &str, mistakes: &mut Vec<Mistake>) {
        mistakes.push(Mistake { at: self.path(key), what, advice: advice.into() });
    }

    /// Where it is: `receiver[0].webhook`.
    pub(super) fn at(&self) -> &str {
        &self.at
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether `key` is a table here, where something else may stand as well.
    pub(super) fn is_table(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(Value::is_table)
    }

    /// What is written in it.
    pub(super) fn keys(&self) -> Vec<String> {
        self.table.keys().cloned().collect()
    }

    /// Takes out what was said to be wrong.
    pub(super) fn ignore(&mut self, key: &str) {
        self.table.remove(key);
    }

    pub(super) fn flag(&mut self, key: &str, mistakes: &mut Vec<Mistake>) -> Option<bool> {
        match self.table.remove(key)? {
            Value::Boolean(flag) => Some(flag),
            other => self.wrong(key, &other, "true or false", "write it without quotes", mistakes),
        }
    }

    pub(super) fn text(&mut self, key: &str, mistakes: &mut Vec<Mistake>) -> Option<String> {
        match self.table.remove(key)? {
            Value::String(text) if !text.trim().is_empty() => Some(text),
            Value::String(_) => self.no(key, "is empty", "write something, or leave it out", mistakes),
            other => self.wrong(key, &other, "a text", "write it in quotes", mistakes),
        }
    }

    pub(super) fn texts(&mut self, key: &str, mistakes: &mut Vec<Mistake>) -> Option<Vec<String>> {
        let advice = "write [\"one\", \"two\"]";
        match self.table.remove(key)? {
            Value::Array(values) => {
                let texts: Option<Vec<String>> = values.iter().map(|it| it.as_str().map(str::to_owned)).collect();
                if texts.is_none() {
                    self.mistake(key, "holds something that is no text".into(), advice, mistakes);
                }
                texts
            }
            other => self.wrong(key, &other, "a list of texts", advice, mistakes),
        }
    }

    /// All that is left of the table, by its keys: texts, which may be empty.
    pub(super) fn all_texts(mut self, mistakes: &mut Vec<Mistake>) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        for (key, value) in std::mem::take(&mut self.table) {
            match value {
                Value::String(text) => drop(texts.insert(key, text)),
                other => drop(self.wrong::<()>(&key, &other, "a text", "write it in quotes", mistakes)),
            }
        }
        texts
    }

    /// A number of at least one.
    pub(super) fn count(&mut self, key: &str, mistakes: &mut Vec<Mistake>) -> Option<u32> {
        match self.table.remove(key)? {
            Value::Integer(number) => match u32::try_from(number) {
                Ok(number) if number > 0 => Some(number),
                _ => self.no(key, "is out of range", "write a number of at least 1", mistakes),
            },
            other => self.wrong(key, &other, "a number", "write a whole number", mistakes),
        }
    }

    /// A number that is not negative, whole or not.
    pub(super) fn number(&mut self, key: &str, mistakes: &mut Vec<Mistake>) -> Option<f64> {
        let value = self.table.remove(key)?;
        match number_of(&value) {
            Some(number) if number >= 0.0 => Some(number),
            Some(_) => self.no(key, "is out of range", "write a number of at least 0", mistakes),
            None => self.wrong(key, &value, "a number", "write it without quotes, like 100 or 0.8", mistakes),
        }
    }

    /// All that is left of the table, by its keys, as it is written.
    pub(super) fn all(self) -> Table {
        self.table
    }

    pub(super) fn duration(&mut self, key: &str, mistakes: &mut Vec<Mistake>) -> Option<Duration> {
        self.measured(key, units::parse_duration, "write \"90s\", \"36h\" or \"30d\"", mistakes)
    }

    pub(super) fn bytes(&mut self, key: &str, mistakes: &mut Vec<Mistake>) -> Option<u64> {
        self.measured(key, units::parse_bytes, "write \"512MiB\" or \"10GiB\"", mistakes)
    }

    /// An address to listen on; every address of the host at `default_port` when it is left out.
    pub(super) fn address(&mut self, key: &str, default_port: u16, mistakes: &mut Vec<Mistake>) -> SocketAddr {
        let default = SocketAddr::from((Ipv6Addr::UNSPECIFIED, default_port));
        let Some(text) = self.text(key, mistakes) else { return default };
        text.parse().unwrap_or_else(|_| {
            let what = format!("`{text}` is not an address and a port");
            self.mistake(key, what, "write \"[::]:7443\" or \"127.0.0.1:7443\"", mistakes);
            default
        })
    }

    /// The text of the file that `key` names.
    pub(super) fn file(&mut self, key: &str, directory: &Path, mistakes: &mut Vec<Mistake>) -> Option<String> {
        let path = directory.join(self.text(key, mistakes)?);
        let shown = path.display();
        let advice = "make it readable to the collector's user, and no longer than 1 MiB";
        match std::fs::metadata(&path).map(|it| it.len()) {
            Ok(length) if length > MAX_FILE => self.no(key, &format!("`{shown}` is too long"), advice, mistakes),
            Err(e) => self.no(key, &format!("may not read `{shown}`: {e}"), advice, mistakes),
            Ok(_) => match std::fs::read_to_string(&path) {
                Ok(text) => Some(text),
                Err(e) => self.no(key, &format!("may not read `{shown}`: {e}"), advice, mistakes),
            },
        }
    }

    /// The table `key`; an empty one when it is left out.
    pub(super) fn table(&mut self, key: &str, mistakes: &mut Vec<Mistake>) -> Self {
        let at = self.path(key);
        match self.table.remove(key) {
            None => Self::new(at, Table::new()),
            Some(Value::Table(table)) => Self::new(at, table),
            Some(other) => {
                self.wrong::<()>(key, &other, "a table", "write its keys below a [header]", mistakes);
                Self::new(at, Table::new())
            }
        }
    }

    /// The tables `[[key]]`.
    pub(super) fn tables(&mut self, key: &str, mistakes: &mut Vec<Mistake>) -> Vec<Self> {
        let advice = "write each below a [[header]] of its own";
        let values = match self.table.remove(key) {
            None => return Vec::new(),
            Some(Value::Array(values)) => values,
            Some(other) => {
                self.wrong::<()>(key, &other, "a list of tables", advice, mistakes);
                return Vec::new();
            }
        };
        let mut tables = Vec::with_capacity(values.len());
        for (index, value) in values.into_iter().enumerate() {
            let key = format!("{key}[{index}]");
            match value {
                Value::Table(table) => tables.push(Self::new(self.path(&key), table)),
                other => drop(self.wrong::<()>(&key, &other, "a table", advice, mistakes)),
            }
        }
        tables
    }

    /// Everything that nobody asked for is a mistake.
    pub(super) fn finish(&mut self, mistakes: &mut Vec<Mistake>) {
        for key in std::mem::take(&mut self.table).keys() {
            self.mistake(key, "is not a key here".into(), "check its spelling, or leave it out", mistakes);
        }
    }

    fn measured<T>(
        &mut self,
        key: &str,
        read: fn(&str) -> Result<T, UnitError>,
        advice: &str,
        mistakes: &mut Vec<Mistake>,
    ) -> Option<T> {
        match self.table.remove(key)? {
            Value::String(text) => match read(&text) {
                Ok(value) => Some(value),
                Err(what) => self.no(key, &what.to_string(), advice, mistakes),
            },
            Value::Integer(number) => self.no(key, &format!("`{number}` has no unit"), advice, mistakes),
            other => self.wrong(key, &other, "a number with its unit", advice, mistakes),
        }
    }

    fn wrong<T>(&self, key: &str, found: &Value, wanted: &str, advice: &str, mistakes: &mut Vec<Mistake>) -> Option<T> {
        self.no(key, &format!("is not {wanted} but {} {}", article(found), found.type_str()), advice, mistakes)
    }

    fn no<T>(&self, key: &str, what: &str, advice: &str, mistakes: &mut Vec<Mistake>) -> Option<T> {
        self.mistake(key, what.into(), advice, mistakes);
        None
    }

    fn path(&self, key: &str) -> String {
        if self.at.is_empty() { key.into() } else { format!("{}.{key}", self.at) }
    }
}

/// A number, whole or not, that is finite.
pub(super) fn number_of(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Float(number) => *number,
        // A bound has fewer digits than would be lost.
        Value::Integer(number) => *number as f64,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

const fn article(value: &Value) -> &'static str {
    match value {
        Value::Integer(_) | Value::Array(_) => "an",
        _ => "a",
    }
}
