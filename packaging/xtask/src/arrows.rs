//! Who may import whom: the arrows of STYLE.md, checked on the text of the sources.
//!
//! A text check sees a name and not what it resolves to. That is enough: a module that wants to break an arrow has
//! to write the other module's name.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use tickbird_tests::StageError;

/// A line that breaks an arrow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// A source file: its path within the workspace and its text.
type Source = (String, String);

/// Stages in the order that a fact crosses them; each imports only those before it.
const AGENT: [&str; 5] = ["discover", "inspect", "judge", "buffer", "ship"];
const COLLECTOR: [&str; 5] = ["store", "ingest", "aggregate", "alert", "notify"];

/// A crate or module that only some files may name, and why.
const RESERVED: [(&str, &[&str], &[&str], &str); 4] = [
    ("sled", &["agent/", "collector/"], &["agent/src/buffer/sled_queue"], "only the buffer's queue knows its engine"),
    ("rusqlite", &["agent/", "collector/"], &["collector/src/store"], "SQL stands in store/, nowhere else"),
    ("tickbird_collector", &["agent/"], &[], "agent and collector never meet"),
    ("tickbird_agent", &["collector/"], &[], "agent and collector never meet"),
];

/// Files that decide, and what deciding code never names.
const DECIDING: [&str; 4] =
    ["agent/src/judge", "collector/src/aggregate/incident", "collector/src/alert", "shared/src/"];
const UNDECIDED: [&str; 8] =
    ["tokio::", "hyper::", "sled::", "rustls::", "rusqlite::", "Instant::now", "SystemTime", "Timestamp::now"];

/// Names that say nothing of what a file holds.
const GRAB_BAGS: [&str; 6] = ["mod.rs", "util.rs", "utils.rs", "common.rs", "helpers.rs", "types.rs"];

const SHARED_DEPENDENCIES: [&str; 5] = ["jiff", "serde", "serde_json", "sha2", "thiserror"];

/// Every broken arrow of the workspace at `root`.
///
/// # Errors
/// When a source cannot be read.
pub(crate) fn broken(root: &Path) -> Result<Vec<Broken>, StageError> {
    let mut sources = Vec::new();
    for folder in ["agent/src", "collector/src", "confine/src", "shared/src", "tests", "packaging/xtask/src"] {
        gather(root, &root.join(folder), &mut sources)?;
    }
    let mut found: Vec<Broken> = sources.iter().flat_map(of_file).collect();
    for manifest in ["shared/Cargo.toml", "agent/Cargo.toml", "collector/Cargo.toml", "tests/Cargo.toml"] {
        found.extend(of_manifest(manifest, &read(&root.join(manifest))?));
    }
    Ok(found)
}

fn gather(root: &Path, folder: &Path, into: &mut Vec<Source>) -> Result<(), StageError> {
    let failed = || StageError::system(format!("read {}", folder.display()));
    for entry in std::fs::read_dir(folder).map_err(failed())? {
        let path: PathBuf = entry.map_err(failed())?.path();
        if path.is_dir() {
            gather(root, &path, into)?;
        } else if path.extension().is_some_and(|it| it == "rs") {
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            into.push((name, read(&path)?));
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, StageError> {
    std::fs::read_to_string(path).map_err(StageError::system(format!("read {}", path.display())))
}

fn of_file((file, text): &Source) -> Vec<Broken> {
    let mut found = Vec::new();
    let mut note = |line: usize, what: String| found.push(Broken { file: file.clone(), line, what });
    if GRAB_BAGS.iter().any(|name| file.rsplit('/').next() == Some(name)) {
        note(1, "the name says nothing of what the file holds".into());
    }
    // Tests at the end of a file may look left and right.
    let code = text.lines().take_while(|line| *line != "#[cfg(test)]").map(without_comment);
    for (number, line) in (1..).zip(code) {
        for (name, where_, allowed, why) in RESERVED {
            let concerns = where_.iter().any(|it| file.starts_with(it));
            if concerns && !allowed.iter().any(|it| file.starts_with(it)) && names(line, name) {
                note(number, format!("names {name}: {why}"));
            }
        }
        if DECIDING.iter().any(|it| file.starts_with(it)) {
            for name in UNDECIDED.iter().filter(|it| line.contains(**it)) {
                note(number, format!("names {name}: deciding code has no runtime, network or clock"));
            }
        }
        for later in later_stages(file).into_iter().filter(|it| names(line, &format!("crate::{it}"))) {
            note(number, format!("imports crate::{later}, a later stage: what comes next is a channel it is given"));
        }
    }
    found
}

/// The stages that come after the one this file belongs to, and the file that wires them.
fn later_stages(file: &str) -> Vec<&'static str> {
    for (folder, stages, wiring) in [("agent/src/", AGENT, "agent"), ("collector/src/", COLLECTOR, "collector")] {
        let Some(rest) = file.strip_prefix(folder) else { continue };
        let stage = rest.split(['/', '.']).next().unwrap_or_default();
        let Some(at) = stages.iter().position(|it| *it == stage) else { continue };
        return stages[at + 1..].iter().copied().chain([wiring]).collect();
    }
    Vec::new()
}

/// Whether the line names a path that begins with `name`: `sled::Db`, `use sled;`, not `unsettled::x`.
fn names(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + name.len()..];
        let starts = !before.is_some_and(|it| it.is_alphanumeric() || it == '_' || it == ':');
        let imported = line.trim_start().trim_start_matches("pub ").starts_with("use ");
        starts && (after.starts_with("::") || imported && after.starts_with([';', ',', ' ']))
    })
}

fn without_comment(line: &str) -> &str {
    line.find("//").map_or(line, |at| &line[..at])
}

fn of_manifest(file: &str, text: &str) -> Vec<Broken> {
    let note = |what: String| Broken { file: file.to_owned(), line: 1, what };
    let Ok(manifest) = text.parse::<toml::Table>() else { return vec![note("is not TOML".into())] };
    let table = manifest.get("dependencies").and_then(toml::Value::as_table);
    let dependencies: BTreeSet<&str> = table.into_iter().flat_map(|it| it.keys()).map(String::as_str).collect();
    let mut found = Vec::new();
    if file == "shared/Cargo.toml" && dependencies != BTreeSet::from(SHARED_DEPENDENCIES) {
        found.push(note(format!("shared depends on {dependencies:?}, not on {SHARED_DEPENDENCIES:?}")));
    }
    let forbidden: &[&str] = match file {
        "agent/Cargo.toml" => &["tickbird-collector", "rusqlite", "axum"],
        "collector/Cargo.toml" => &["tickbird-agent", "sled"],
        "tests/Cargo.toml" => &["tickbird-agent", "tickbird-collector", "tickbird-shared"],
        _ => &[],
    };
    for name in forbidden.iter().filter(|it| dependencies.contains(**it)) {
        found.push(note(format!("depends on {name}")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(file: &str, text: &str) -> Vec<String> {
        of_file(&(file.to_owned(), text.to_owned())).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn this_workspace_breaks_none() {
        let found = broken(tickbird_tests::stage::workspace()).expect("the sources can be read");
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "{}", lines.join("\n"));
    }

    #[test]
    fn an_engine_is_named_in_one_place() {
        assert_eq!(said("agent/src/buffer/sled_queue.rs", "use sled::Db;"), [""; 0]);
        let elsewhere = said("agent/src/buffer.rs", "//! sled is behind this\nuse sled::Db;");
        assert_eq!(elsewhere, ["agent/src/buffer.rs:2: names sled: only the buffer's queue knows its engine"]);
        assert_eq!(said("agent/src/ship.rs", "let x = unsettled::y; // sled::Db").len(), 0);
        assert_eq!(said("collector/src/api.rs", "fn f(c: &rusqlite::Connection)").len(), 1);
        assert_eq!(said("collector/src/store/findings.rs", "fn f(c: &rusqlite::Connection)").len(), 0);
    }

    #[test]
    fn deciding_code_has_no_runtime_and_no_clock() {
        assert_eq!(said("agent/src/judge/pool/leak.rs", "use tokio::time;\nlet now = Instant::now();").len(), 2);
        assert_eq!(said("agent/src/judge.rs", "#[cfg(test)]\nmod tests { use tokio::time; }").len(), 0);
        assert_eq!(said("agent/src/ship.rs", "use tokio::time;").len(), 0);
    }

    #[test]
    fn imports_point_left() {
        assert_eq!(said("agent/src/judge.rs", "use crate::inspect::Value;").len(), 0);
        let right = said("agent/src/inspect/host.rs", "use crate::judge::Finding;");
        assert!(right[0].contains("imports crate::judge, a later stage"), "{right:?}");
        assert_eq!(said("collector/src/store/rows.rs", "fn f() -> crate::aggregate::Incident").len(), 1);
        assert_eq!(said("agent/src/agent.rs", "use crate::ship::Shipper;").len(), 0);
    }

    #[test]
    fn names_that_say_nothing_are_refused() {
        assert_eq!(said("agent/src/inspect/util.rs", "").len(), 1);
        assert_eq!(said("agent/src/judge/mod.rs", "").len(), 1);
    }

    #[test]
    fn shared_depends_on_exactly_what_the_wire_needs() {
        let manifest = |names: &[&str]| {
            let lines: String = names.iter().map(|it| format!("{it} = \"1\"\n")).collect();
            of_manifest("shared/Cargo.toml", &format!("[dependencies]\n{lines}"))
        };
        assert_eq!(manifest(&SHARED_DEPENDENCIES), []);
        assert_eq!(manifest(&["serde", "tokio"]).len(), 1);
    }
}
