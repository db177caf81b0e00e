//! Finds and reads the configuration's files: one file and the fragments beside it, merged.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::reader::Notes;

/// Where the configuration comes from, as given on the command line.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// The file; `None` reads `/etc/tickbird/agent.toml` if it is there.
    pub file: Option<PathBuf>,
    /// The state directory; wins over the file's.
    pub state_dir: Option<PathBuf>,
}

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "/etc/tickbird/agent.toml";

/// Largest configuration file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

impl Place {
    /// Reads the file and its fragments (`agent.d/*.toml` beside `agent.toml`, in order of name) into one table. Lists
    /// are joined, tables are merged, and a value that two files set is a mistake.
    pub fn read(&self, notes: &Notes) -> (Table, Vec<PathBuf>) {
        let file = self.file.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        let mut whole = Table::new();
        let mut read = Vec::new();
        if self.file.is_some() || file.exists() {
            read_into(&mut whole, &file, notes, &mut read);
        }
        for fragment in fragments(&file, notes) {
            read_into(&mut whole, &fragment, notes, &mut read);
        }
        (whole, read)
    }
}

fn fragments(file: &Path, notes: &Notes) -> Vec<PathBuf> {
    let directory = file.with_extension("d");
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            notes.add(directory.display().to_string(), format!("cannot be read: {error}"), None);
            return Vec::new();
        }
    };
    let mut paths: Vec<_> =
        entries.flatten().map(|it| it.path()).filter(|it| it.extension().is_some_and(|e| e == "toml")).collect();
    paths.sort();
    paths
}

fn read_into(whole: &mut Table, path: &Path, notes: &Notes, read: &mut Vec<PathBuf>) {
    let shown = path.display().to_string();
    let text = match std::fs::metadata(path).and_then(|it| {
        if it.len() > MAX_FILE_BYTES {
            return Err(std::io::Error::other("is larger than 1 MiB"));
        }
        std::fs::read_to_string(path)
    }) {
        Ok(text) => text,
        Err(error) => {
            let advice = (error.kind() == std::io::ErrorKind::PermissionDenied)
                .then(|| "make it readable to the agent's user".to_owned());
            notes.add(shown, format!("cannot be read: {error}"), advice);
            return;
        }
    };
    match text.parse::<Table>() {
        Ok(table) => {
            merge(whole, table, &mut String::new(), &shown, notes);
            read.push(path.to_owned());
        }
        // The library's text shows line, column and the line itself; a secret never stands in this file.
        Err(error) => notes.add(shown, format!("is not TOML: {}", error.to_string().trim_end()), None),
    }
}

fn merge(whole: &mut Table, part: Table, at: &mut String, file: &str, notes: &Notes) {
    for (key, value) in part {
        let length = at.len();
        if !at.is_empty() {
            at.push('.');
        }
        at.push_str(&key);
        match (whole.get_mut(&key), value) {
            (None, value) => {
                whole.insert(key, value);
            }
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new, at, file, notes),
            (Some(Value::Array(old)), Value::Array(new)) => old.extend(new),
            (Some(_), _) => {
                notes.add(at.clone(), format!("is set again in `{file}`"), Some("set it in one file only".into()))
            }
        }
        at.truncate(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> (Table, String) {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, text).expect("written");
        }
        let notes = Notes::default();
        let place = Place { file: Some(directory.path().join("agent.toml")), state_dir: None };
        let (table, _) = place.read(&notes);
        (table, notes.take().to_string())
    }

    #[test]
    fn fragments_join_lists_and_merge_tables() {
        let (table, told) = read(&[
            ("agent.toml", "state_dir = \"/x\"\n[[app]]\nname = \"a\"\n[check.\"pool.leak\"]\nwarning = \"1s\""),
            ("agent.d/10-b.toml", "[[app]]\nname = \"b\"\n[check.\"pool.leak\"]\ncritical = \"2s\""),
        ]);
        assert!(told.starts_with("0 mistakes"), "{told}");
        assert_eq!(table["app"].as_array().map(Vec::len), Some(2));
        assert_eq!(table["check"]["pool.leak"].as_table().map(Table::len), Some(2));
    }

    #[test]
    fn a_value_set_twice_a_missing_file_and_broken_toml_are_named() {
        let (_, told) = read(&[("agent.toml", "state_dir = \"/x\""), ("agent.d/a.toml", "state_dir = \"/y\"")]);
        assert!(told.contains("state_dir: is set again"), "{told}");
        let (_, told) = read(&[("agent.toml", "state_dir = ")]);
        assert!(told.contains("is not TOML"), "{told}");
        let (_, told) = read(&[]);
        assert!(told.contains("cannot be read"), "{told}");
    }
}
