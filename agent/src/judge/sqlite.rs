//! SQLite databases: who shares one, and whether it is whole.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tickbird_shared::Severity;

use super::defaults::CheckId;
use super::evidence::{Case, object};
use super::threshold::Seen;
use super::tracks::{Subject, Tracks};
use super::{GONE, Moment, words};
use crate::discover::TargetKey;
use crate::inspect::sqlite::{Holder, SqliteFile, SqliteLook};
use crate::inspect::{Reason, Value};

/// Most processes in the evidence.
const MAX_SHOWN: usize = 20;

/// Databases that were sound once.
#[derive(Debug, Default)]
pub(super) struct Databases {
    /// By device and inode: the target, and when it was last open.
    known: BTreeMap<(u64, u64), (TargetKey, Duration)>,
    has_looked: bool,
}

impl Databases {
    pub(super) fn look(&mut self, look: &SqliteLook, now: Moment, tracks: &mut Tracks) {
        self.has_looked = true;
        for file in &look.files {
            let Some(target) = self.target(file, now.mono) else { continue };
            let writers = file.writers().count() as f64;
            let damage = damage(file);
            let value = match &look.hidden {
                // Somebody else may write, who cannot be seen.
                Some(_) if writers > 0.0 => Value::Between(writers, f64::INFINITY),
                Some(reason) => Value::Unknown(reason.clone()),
                None => Value::Known(writers),
            };
            let seen = Seen {
                forced: damage.map(|_| Severity::Critical),
                words: damage.map(str::to_owned),
                ..Seen::value(value)
            };
            tracks.observe(Subject::of(CheckId::SqliteShared, &target), seen, now, || case(file, damage, &look.hidden));
        }
        self.nobody_has_open(look, now, tracks);
    }

    /// Whether a look has been taken.
    pub(super) const fn have_looked(&self) -> bool {
        self.has_looked
    }

    /// The target of a file that is a database, or was one when it was first seen.
    fn target(&mut self, file: &SqliteFile, now: Duration) -> Option<TargetKey> {
        let is_database = file.header.is_ok() && file.size > 0;
        if !is_database && !self.known.contains_key(&file.file) {
            return None;
        }
        let known = self.known.entry(file.file).or_insert_with(|| (TargetKey::sqlite(&file.path), now));
        known.1 = now;
        Some(known.0.clone())
    }

    /// A database that no process has open has no writers.
    fn nobody_has_open(&mut self, look: &SqliteLook, now: Moment, tracks: &mut Tracks) {
        let is_open = |id: &(u64, u64)| look.files.iter().any(|it| it.file == *id);
        self.known.retain(|id, (target, seen)| {
            if is_open(id) {
                return true;
            }
            let value = look.hidden.clone().map_or(Value::Known(0.0), Value::Unknown);
            tracks.observe(Subject::of(CheckId::SqliteShared, target), Seen::value(value), now, Case::default);
            now.mono.saturating_sub(*seen) < GONE
        });
        let known = &self.known;
        tracks.end("no process has had it open for 5 minutes", now, |key, _| {
            let is_here = key.target.as_str().starts_with("sqlite:");
            is_here && key.check == CheckId::SqliteShared && !known.values().any(|(target, _)| *target == key.target)
        });
    }
}

fn damage(file: &SqliteFile) -> Option<&'static str> {
    match &file.header {
        Err(what) => Some(*what),
        Ok(header) if header.lacks_pages(file.size, file.wal_size) => Some("it is shorter than its first page says"),
        Ok(_) => None,
    }
}

fn case(file: &SqliteFile, damage: Option<&str>, hidden: &Option<Reason>) -> Case {
    let writers: Vec<&Holder> = file.writers().collect();
    let names: Vec<String> =
        writers.iter().take(4).map(|it| format!("{} {}", words::foreign(&it.name, 32), it.pid)).collect();
    let more = writers.len().saturating_sub(names.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let summary = match damage {
        Some(what) => format!("the SQLite database {} is damaged: {what}", file.path),
        None => format!(
            "{} processes write to the SQLite database {}: {}{more}",
            writers.len(),
            file.path,
            names.join(", ")
        ),
    };
    let holders = file
        .holders
        .iter()
        .take(MAX_SHOWN)
        .map(|it| json!({ "pid": it.pid, "start": it.start, "name": it.name, "fd": it.fd, "writes": it.writes }));
    let mut not_visible = Vec::new();
    if hidden.is_some() {
        not_visible.push("processes of other users");
    }
    let mut members: Vec<u64> = writers.iter().map(|it| u64::from(it.pid)).collect();
    members.sort_unstable();
    Case {
        summary,
        evidence: object(json!({
            "path": file.path,
            "size_bytes": file.size,
            "wal_size_bytes": file.wal_size,
            "journal_mode": file.header.as_ref().ok().map(|it| it.journal_mode.as_str()),
            "writers": writers.len(),
            "holders": holders.collect::<Vec<_>>(),
            "holders_total": file.holders.len(),
            "damage": damage,
            "rule": "descriptors open for writing in /proc/<pid>/fdinfo; the file's first 100 bytes",
            "not_visible": not_visible,
        })),
        members,
        ..Case::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::inspect::Rows;
    use crate::inspect::sqlite::{Header, JournalMode};
    use crate::judge::tests::Night;

    fn open_by(pids: &[(u32, bool)]) -> SqliteFile {
        let holder = |(pid, writes): &(u32, bool)| {
            let name: Arc<str> = "python3".into();
            Holder { pid: *pid, start: 1, name, fd: 5, writes: *writes }
        };
        SqliteFile {
            path: "/srv/shop/shop.db".into(),
            file: (1, 2),
            size: 3 * 4096,
            wal_size: None,
            header: Ok(Header { page_size: 4096, journal_mode: JournalMode::Rollback, pages: Some(3) }),
            holders: pids.iter().map(holder).collect(),
        }
    }

    fn looks(night: &mut Night, count: u32, files: &[SqliteFile]) {
        for _ in 0..count {
            let look = SqliteLook { files: files.to_vec(), hidden: None };
            night.wait(30.0).rows(Rows::Sqlite(look));
        }
    }

    #[test]
    fn two_writers_are_told_with_their_names_and_one_with_readers_is_well() {
        let mut night = Night::begin();
        looks(&mut night, 5, &[open_by(&[(77, true), (78, false)])]);
        assert_eq!((night.told().as_str(), night.is("sqlite.shared", "shop.db")), ("", "ok"));
        looks(&mut night, 2, &[open_by(&[(77, true), (79, true)])]);
        assert_eq!(night.told(), "", "somebody looks at it with a shell");
        looks(&mut night, 1, &[open_by(&[(77, true), (79, true)])]);
        assert_eq!(night.told(), "240s sqlite.shared began warning");
        let summary = night.last().summary.clone();
        assert_eq!(summary, "2 processes write to the SQLite database /srv/shop/shop.db: python3 77, python3 79");
        looks(&mut night, 3, &[open_by(&[(77, true)])]);
        assert_eq!(night.told(), "330s sqlite.shared cleared warning");
    }

    #[test]
    fn a_database_that_nobody_has_open_any_more_is_over() {
        let mut night = Night::begin();
        looks(&mut night, 3, &[open_by(&[(77, true), (79, true)])]);
        assert_eq!(night.told(), "90s sqlite.shared began warning");
        looks(&mut night, 3, &[]);
        assert_eq!(night.told(), "180s sqlite.shared cleared warning");
        looks(&mut night, 12, &[]);
        assert!(night.judge.states().iter().all(|it| it.check != "sqlite.shared"));
    }

    #[test]
    fn damage_is_critical_and_a_file_that_never_was_a_database_is_none() {
        let mut night = Night::begin();
        let other =
            SqliteFile { header: Err("its first bytes are not SQLite's"), file: (1, 3), ..open_by(&[(5, true)]) };
        looks(&mut night, 5, &[open_by(&[(77, true)]), other]);
        assert_eq!(night.told(), "");
        looks(&mut night, 3, &[SqliteFile { size: 4096, ..open_by(&[(77, true)]) }]);
        assert_eq!(night.told(), "240s sqlite.shared began critical");
        assert!(night.last().summary.ends_with("is damaged: it is shorter than its first page says"));
        looks(&mut night, 3, &[open_by(&[(77, true)])]);
        assert!(night.told().ends_with("cleared critical"), "{}", night.told());
    }

    #[test]
    fn while_some_processes_are_hidden_it_is_never_called_well() {
        let mut night = Night::begin();
        let hidden = Some(Reason::Denied("the descriptors of other users' processes".into()));
        for _ in 0..4 {
            let look = SqliteLook { files: vec![open_by(&[(77, true)])], hidden: hidden.clone() };
            night.wait(30.0).rows(Rows::Sqlite(look));
        }
        assert_ne!(night.is("sqlite.shared", "shop.db"), "ok");
        for _ in 0..3 {
            let look = SqliteLook { files: vec![open_by(&[(77, true), (79, true)])], hidden: hidden.clone() };
            night.wait(30.0).rows(Rows::Sqlite(look));
        }
        assert!(night.told().ends_with("sqlite.shared began warning"), "{}", night.told());
    }
}
