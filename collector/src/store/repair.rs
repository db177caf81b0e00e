//! A damaged store is replaced by what is left of it, and what was lost is told.
//!
//! Damage is found when the store is opened (small stores are read whole, all are read as far as the ledger needs them),
//! while it is in use, or by the daily look. Whoever finds it while serving leaves a mark, and the collector opens the
//! store anew. The damaged files and a report are set aside in `damaged/`, never deleted; as long as something lies
//! there, an incident says so.
//!
//! What SQLite cannot find, a bit turned within a text or a number, is found by checksums of our own (`sums.rs`).

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use tickbird_shared::Timestamp;

use super::salvage::{self, Left, Lost};
use super::turn::Turn;
use super::{StoreError, Writer, log, migrate, sums};

/// A store of so many bytes is read whole at each start: some tenths of a second.
const SMALL: u64 = 64 << 20;
/// Directory of what was set aside, beside the store.
const ASIDE: &str = "damaged";
/// Within a directory of what was set aside: what was found, and what was lost.
const REPORT: &str = "report.json";
/// The files of one store; the first is the store itself.
const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];

/// What was wrong with a store, and what is left of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// When it was found.
    pub found_at: Timestamp,
    /// Where the damaged files lie: `damaged/20261121T204512Z`, beside the store.
    pub set_aside: String,
    /// The first lines of what SQLite said.
    pub said: Vec<String>,
    /// Transactions that the log of changes lost; at least so many.
    #[serde(default)]
    pub transactions: u64,
    /// Every table.
    pub tables: Vec<Left>,
}

impl Damage {
    /// What was lost, in words: `the last transactions (at least 2), findings (at least 12 rows)`.
    pub fn lost(&self) -> String {
        let word = |it: &Left| match it.lost {
            Lost::Nothing => None,
            Lost::AtLeast(0) => Some(format!("{} (perhaps)", it.table)),
            Lost::AtLeast(rows) => Some(format!("{} (at least {rows} rows)", it.table)),
        };
        let last = (self.transactions > 0).then(|| format!("the last transactions (at least {})", self.transactions));
        let words: Vec<String> = last.into_iter().chain(self.tables.iter().filter_map(word)).collect();
        if words.is_empty() { "nothing but an index, which was made anew".into() } else { words.join(", ") }
    }
}

/// How the store stands, for the collector's own incidents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// The disk is full: nothing of agents is stored.
    pub is_full: bool,
    /// What lies in `damaged/`, the newest of it.
    pub damage: Option<Damage>,
}

/// Opens a store to serve it; repairs it first where it is damaged.
///
/// # Errors
/// When it is not there, was written by a newer collector, cannot be written, or there is no room for a new one.
pub fn open_sound(path: &Path, now: Timestamp) -> Result<Writer, StoreError> {
    finish(path)?;
    let bytes = path.metadata().map_err(|_| StoreError::Missing { path: path.into() })?.len();
    // Before SQLite opens it and makes the index of its log anew: from then on only the mark tells.
    let log = verdict(path);
    if log != log::Verdict::Whole {
        log::note(log, &mark(path)).map_err(|source| StoreError::Repair { path: mark(path), source })?;
    }
    refuse_newer(path)?;
    if path.exists() {
        // Of a repair that never came to its end.
        let new = fresh(path);
        remove(&new).map_err(|source| StoreError::Repair { path: new, source })?;
    }
    if log == log::Verdict::Spent {
        tracing::warn!(store = %path.display(), "the log of changes is damaged; it goes, since all of it is in the store");
        // Whoever has it open goes on with a log that is no more.
        let _turn = Turn::alone(path)?.ok_or_else(|| StoreError::InRepair { path: path.into() })?;
        let failed = |source| StoreError::Repair { path: path.into(), source };
        log::remove(path).map_err(failed)?;
        fs::remove_file(mark(path)).map_err(failed)?;
    }
    if let log::Verdict::Cut { transactions, .. } = log {
        let said = log.said().into_iter().chain(check(path)?).collect();
        repair_all(path, said, transactions, now)?;
    }
    let mut said = if bytes <= SMALL || is_suspected(path) { check(path)? } else { list_wrong(&salvage::open(path)?)? };
    if said.is_empty() && is_suspected(path) {
        // Somebody stumbled over a row whose page is whole.
        said = salvage::malformed(&salvage::open(path)?);
    }
    if said.is_empty() {
        // Somebody was mistaken, or the damage was in a table that has gone since.
        let _ = fs::remove_file(mark(path));
    } else {
        repair(path, said, now)?;
    }
    match Writer::open(path) {
        Err(error) if error.is_damage() => {
            repair(path, vec![error.in_full()], now)?;
            Writer::open(path)
        }
        opened => opened,
    }
}

/// What is not known here cannot be saved from it: a newer store is refused before it is looked through, damaged or not.
///
/// # Errors
/// [`StoreError::FromTheFuture`]. A store that does not even tell its schema is no newer one.
fn refuse_newer(path: &Path) -> Result<(), StoreError> {
    match salvage::open(path).and_then(|connection| migrate::check(&connection)) {
        Err(error @ StoreError::FromTheFuture { .. }) => Err(error),
        _ => Ok(()),
    }
}

/// What an earlier start made of the log and did not act on, else what it looks like now.
fn verdict(path: &Path) -> log::Verdict {
    // Without a log it was acted on, and only the mark is left.
    let noted = log::noted(&mark(path)).filter(|_| with_suffix(path, "-wal").exists());
    noted.unwrap_or_else(|| log::look(path))
}

/// For whoever would open a store that the collector has to repair first: SQLite would make its log look whole.
///
/// # Errors
/// [`StoreError::Unrepaired`].
pub(super) fn refuse_unrepaired(path: &Path) -> Result<(), StoreError> {
    verdict(path).said().map_or(Ok(()), |said| Err(StoreError::Unrepaired { path: path.into(), said }))
}

/// Reads every page, index and row; what is wrong with them, of pages and indexes in SQLite's words.
///
/// # Errors
/// When it cannot be looked through for a reason that says nothing of it.
pub fn check(path: &Path) -> Result<Vec<String>, StoreError> {
    match path.metadata() {
        // SQLite takes it for a new store.
        Ok(found) if found.len() == 0 => Ok(vec!["the file is empty".into()]),
        _ => {
            let connection = salvage::open(path)?;
            let said = salvage::wrong(&connection)?;
            if said.is_empty() { rows_wrong(&connection) } else { Ok(said) }
        }
    }
}

/// What is wrong with the rows of a store whose pages are whole.
///
/// # Errors
/// When it cannot be looked through for a reason that says nothing of it.
pub(super) fn rows_wrong(connection: &Connection) -> Result<Vec<String>, StoreError> {
    let said = list_wrong(connection)?;
    if said.is_empty() { words(sums::wrong(connection).map_err(StoreError::from)) } else { Ok(said) }
}

/// What is wrong with the list of tables, which is soon looked through however large the store is.
fn list_wrong(connection: &Connection) -> Result<Vec<String>, StoreError> {
    let altered = migrate::altered(connection);
    words(altered.map(|name| name.map(|it| format!("`{it}` is not as it was made")).into_iter().collect()))
}

/// Damage that was stumbled over is an answer too.
fn words(asked: Result<Vec<String>, StoreError>) -> Result<Vec<String>, StoreError> {
    match asked {
        Err(error) if error.is_damage() => Ok(vec![error.in_full()]),
        asked => asked,
    }
}

/// Leaves the mark that this store has to be repaired before it serves again.
pub fn suspect(path: &Path, why: &str) {
    tracing::error!(why, "the store is damaged; it is opened anew and repaired");
    if let Err(error) = File::create(mark(path)) {
        tracing::error!(%error, "the damaged store cannot be marked for repair");
    }
}

/// Whether somebody left that mark.
pub fn is_suspected(path: &Path) -> bool {
    mark(path).exists()
}

fn mark(path: &Path) -> PathBuf {
    path.with_extension("suspect")
}

fn fresh(path: &Path) -> PathBuf {
    path.with_extension("repaired")
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Puts what can be read of the store at `path` in its place, and sets it aside.
///
/// # Errors
/// When there is no room for the new one or files cannot be moved; the store is then as it was, and repaired at the next try.
pub fn repair(path: &Path, said: Vec<String>, now: Timestamp) -> Result<Damage, StoreError> {
    repair_all(path, said, 0, now)
}

fn repair_all(path: &Path, said: Vec<String>, transactions: u64, now: Timestamp) -> Result<Damage, StoreError> {
    let failed = |at: &Path| {
        let path = at.to_owned();
        move |source: io::Error| StoreError::Repair { path, source }
    };
    tracing::error!(store = %path.display(), said = said.first(), "the store is damaged; what can be read of it is saved");
    // A command that writes now is waited for, and one that comes later is refused until the new store is in its place.
    let _turn = Turn::alone(path)?;
    let new = fresh(path);
    remove(&new).map_err(failed(&new))?;
    let saved = Writer::create(&new).and_then(|mut writer| {
        let tables = salvage::salvage(path, &mut writer, &said)?;
        writer.close()?;
        Ok(tables)
    });
    // On a disk that is full half a copy would take the room that is needed to mend that.
    let tables = saved.inspect_err(|_| drop(remove(&new)))?;

    let directory = path.parent().unwrap_or(Path::new("."));
    let name = unused(&directory.join(ASIDE), &now.strftime("%Y%m%dT%H%M%SZ").to_string());
    let aside = directory.join(ASIDE).join(&name);
    DirBuilder::new().recursive(true).mode(0o700).create(&aside).map_err(failed(&aside))?;
    let damage = Damage { found_at: now, set_aside: format!("{ASIDE}/{name}"), said, transactions, tables };
    write_report(&aside.join(REPORT), &damage).map_err(failed(&aside))?;
    move_into_place(path, &aside).map_err(failed(path))?;
    let _ = fs::remove_file(mark(path));
    tracing::error!(
        lost = damage.lost(),
        set_aside = damage.set_aside,
        "the store was repaired; restore a backup if what is lost matters more than what came since"
    );
    Ok(damage)
}

/// A repair that was cut short after the damaged store was moved away is brought to its end.
fn finish(path: &Path) -> Result<(), StoreError> {
    if path.exists() || !fresh(path).exists() {
        return Ok(());
    }
    let moved = path.file_name().unwrap_or_default();
    let Some(aside) = set_aside(path).pop().filter(|it| it.join(moved).exists()) else { return Ok(()) };
    move_into_place(path, &aside).map_err(|source| StoreError::Repair { path: path.into(), source })
}

/// The log of changes must never meet a store that it is not of: so the old store goes first, and the new one comes last.
fn move_into_place(path: &Path, aside: &Path) -> io::Result<()> {
    for suffix in SUFFIXES {
        let from = with_suffix(path, suffix);
        let to = with_suffix(&aside.join(path.file_name().unwrap_or_default()), suffix);
        match fs::rename(&from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        sync(aside)?;
    }
    fs::rename(fresh(path), path)?;
    sync(path.parent().unwrap_or(Path::new(".")))
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Removes what a repair left that never came to its end.
fn remove(new: &Path) -> io::Result<()> {
    for suffix in SUFFIXES {
        match fs::remove_file(with_suffix(new, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
    }
    Ok(())
}

fn unused(directory: &Path, name: &str) -> String {
    let names = std::iter::once(name.to_owned()).chain((2..).map(|number| format!("{name}-{number}")));
    names.into_iter().find(|it| !directory.join(it).exists()).unwrap_or_default()
}

fn write_report(path: &Path, damage: &Damage) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(damage)?;
    text.push('\n');
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Directories of what was set aside and has a report, the newest last.
fn set_aside(path: &Path) -> Vec<PathBuf> {
    let aside = path.parent().unwrap_or(Path::new(".")).join(ASIDE);
    let entries = fs::read_dir(aside).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|it| it.path()).filter(|it| it.join(REPORT).is_file()).collect();
    found.sort();
    found
}

/// Looks what lies in `damaged/`; reads a report once.
#[derive(Debug)]
pub struct Aside {
    store: PathBuf,
    seen: Option<(PathBuf, Damage)>,
}

impl Aside {
    /// Beside the store at `path`.
    pub fn of(path: &Path) -> Self {
        Self { store: path.into(), seen: None }
    }

    /// The newest of what lies there.
    pub fn newest(&mut self) -> Option<Damage> {
        let newest = set_aside(&self.store).pop();
        if newest.as_ref() != self.seen.as_ref().map(|(path, _)| path) {
            let read = |path: PathBuf| {
                let report = fs::read(path.join(REPORT)).ok()?;
                Some((path, serde_json::from_slice(&report).ok()?))
            };
            self.seen = newest.and_then(read);
        }
        self.seen.as_ref().map(|(_, damage)| damage.clone())
    }
}

#[cfg(test)]
mod tests;
