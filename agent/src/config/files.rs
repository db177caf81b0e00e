//! Finds and reads the configuration's files: one file and the fragments beside it, merged.

use std::os::unix::fs::PermissionsExt as _;
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

/// Something that works, and should be mended all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// What was found.
    pub what: String,
    /// What to do.
    pub advice: String,
}

/// A warning when others than the owner may read the file of a secret.
pub fn readable_by_others(path: &Path) -> Option<Warning> {
    let metadata = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let mode = metadata.permissions().mode() & 0o777;
    let who = match (mode & 0o040 != 0, mode & 0o004 != 0) {
        (false, false) => return None,
        (true, false) => "its group",
        (false, true) => "everybody",
        (true, true) => "its group and everybody",
    };
    let shown = path.display();
    Some(Warning {
        what: format!("`{shown}` holds a secret, and {who} may read it (mode {mode:04o})"),
        advice: format!("make it the agent's user's own and set mode 0600: chmod 600 {shown}"),
    })
}

impl Place {
    /// Reads the file and its fragments (`agent.d/*.toml` beside `agent.toml`, in order of name) into one table. Lists
    /// are joined, tables are merged, and a value that two files set is a mistake.
    pub fn read(&self, notes: &Notes) -> (Table, Vec<PathBuf>) {
        let file = self.file.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        let mut whole = Table::new();
        let mut read = Vec::new();
        if self.file.is_some() || file.exists() {
            read_into(&mut whole, &file, false, notes, &mut read);
        }
        for fragment in fragments(&file, notes) {
            read_into(&mut whole, &fragment, true, notes, &mut read);
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

fn read_into(whole: &mut Table, path: &Path, is_fragment: bool, notes: &Notes, read: &mut Vec<PathBuf>) {
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
            if is_fragment {
                trace(whole, &table, &mut String::new(), &shown, notes);
            }
            merge(whole, table, &mut String::new(), &shown, notes);
            read.push(path.to_owned());
        }
        // The library's own text shows the line as well. No secret belongs into this file, and some stand there all the same.
        Err(error) => {
            let before = &text[..error.span().map_or(0, |it| text.floor_char_boundary(it.start))];
            let column = before.chars().rev().take_while(|it| *it != '\n').count() + 1;
            let line = before.matches('\n').count() + 1;
            notes.add(shown, format!("is not TOML: line {line}, column {column}: {}", error.message()), None);
        }
    }
}

/// Remembers which parts of the whole come from this fragment: what it adds to a list, and every key that is new.
fn trace(whole: &Table, part: &Table, at: &mut String, file: &str, notes: &Notes) {
    for (key, value) in part {
        let length = at.len();
        if !at.is_empty() {
            at.push('.');
        }
        at.push_str(key);
        match (whole.get(key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => trace(old, new, at, file, notes),
            (old @ (None | Some(Value::Array(_))), Value::Array(new)) => {
                let first = old.and_then(Value::as_array).map_or(0, Vec::len);
                (first..first + new.len()).for_each(|index| notes.stands_in(format!("{at}[{index}]"), file));
            }
            (None, _) => notes.stands_in(at.clone(), file),
            // Set twice: that mistake names the file itself.
            (Some(_), _) => (),
        }
        at.truncate(length);
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
    fn a_mistake_in_a_fragment_names_its_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("written");
        std::fs::create_dir(directory.path().join("agent.d")).expect("made");
        write("agent.toml", "[[app]]\nname = \"a\"\ncomand = \"x\"");
        write("agent.d/10-b.toml", "[[app]]\nname = \"b\"\ncomand = \"y\"\n[check.\"pool.lek\"]\nenabled = true");
        write("agent.d/20-c.toml", "nonsense = 1");
        let place = Place { file: Some(directory.path().join("agent.toml")), state_dir: None };
        let told = crate::config::Config::load(&place).expect_err("it has mistakes").0;
        let file_of = |at: &str| {
            let found = told.iter().find(|it| it.at == at).unwrap_or_else(|| panic!("{at}: {told:?}"));
            found.what.split_once("(in `").map(|it| it.1.rsplit('/').next().unwrap_or_default().to_owned())
        };
        assert_eq!(file_of("app[0].comand"), None);
        assert_eq!(file_of("app[1].comand").as_deref(), Some("10-b.toml`)"));
        assert_eq!(file_of("nonsense").as_deref(), Some("20-c.toml`)"));
    }

    #[test]
    fn a_secret_that_others_may_read_is_warned_of_with_the_mode_to_set() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let warned = |mode: u32| {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("set");
            readable_by_others(file.path())
        };
        assert_eq!(warned(0o600), None);
        let warning = warned(0o644).expect("others may read it");
        assert!(warning.what.contains("its group and everybody may read it (mode 0644)"), "{warning:?}");
        assert!(warning.advice.contains("chmod 600 /"), "{warning:?}");
        assert!(warned(0o640).is_some_and(|it| it.what.contains("and its group may")));
    }

    #[test]
    fn a_value_set_twice_a_missing_file_and_broken_toml_are_named() {
        let (_, told) = read(&[("agent.toml", "state_dir = \"/x\""), ("agent.d/a.toml", "state_dir = \"/y\"")]);
        assert!(told.contains("state_dir: is set again"), "{told}");
        let (_, told) = read(&[("agent.toml", "state_dir = ")]);
        assert!(told.contains("is not TOML: line 1, column 13"), "{told}");
        let (_, told) = read(&[("agent.toml", "a = 1\npassword = \"hunter2")]);
        assert!(told.contains("is not TOML: line 2, column ") && !told.contains("hunter2"), "{told}");
        let (_, told) = read(&[]);
        assert!(told.contains("cannot be read"), "{told}");
    }
}
