//! A copy of a store that is in use, and whether a copy is whole.

use std::path::Path;
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::repair::{refuse_unrepaired, rows_wrong};
use super::{StoreError, migrate};

/// Pages of 4 KiB between two words on how far it is.
const PAGES: i32 = 4_096;
/// Most that the system's words on damage are repeated.
const MAX_SAID: usize = 200;

/// Copies the store at `from` to the new file `to` as it was at one moment, while others write. `told` hears the share that
/// is done. Returns the schema.
///
/// # Errors
/// When the one cannot be read, or the other not be made.
pub fn copy(from: &Path, to: &Path, mut told: impl FnMut(f64)) -> Result<u32, StoreError> {
    if !from.exists() {
        return Err(StoreError::Missing { path: from.into() });
    }
    refuse_unrepaired(from)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(from, flags)?;
    source.busy_timeout(Duration::from_secs(5))?;
    let schema = migrate::check(&source)?;
    // Held to the end: without it each commit of the writer would begin the copy anew.
    let view = source.unchecked_transaction()?;
    view.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let mut copy = Connection::open(to)?;
    let backup = Backup::new(&view, &mut copy)?;
    loop {
        match backup.step(PAGES)? {
            StepResult::Done => break,
            StepResult::Busy | StepResult::Locked => std::thread::sleep(Duration::from_millis(50)),
            _ => {
                let progress = backup.progress();
                told(1.0 - f64::from(progress.remaining) / f64::from(progress.pagecount.max(1)));
            }
        }
    }
    drop(backup);
    // The log of changes stays with the original; a copy is one file.
    copy.pragma_update(None, "journal_mode", "DELETE")?;
    copy.close().map_err(|(_, error)| error)?;
    Ok(schema)
}

/// What is in a store that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// Its schema.
    pub schema: u32,
    /// Agents that are enrolled.
    pub agents: u64,
    /// Incidents, ended ones too.
    pub incidents: u64,
    /// Findings.
    pub findings: u64,
}

/// Reads every page, index and row of a store that nobody writes.
///
/// # Errors
/// [`StoreError::Damaged`] with what is wrong with it; or when a newer collector wrote it.
pub fn verify(path: &Path) -> Result<Contents, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    let damaged = |said: String| StoreError::Damaged { path: path.into(), said };
    let said: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|error| damaged(error.to_string()))?;
    if said != "ok" {
        return Err(damaged(said.chars().take(MAX_SAID).collect()));
    }
    let schema = migrate::check(&connection)?;
    if let Some(said) = rows_wrong(&connection)?.into_iter().next() {
        return Err(damaged(said));
    }
    let count = |table: &str| {
        let rows: i64 = connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?;
        Ok::<_, StoreError>(rows.unsigned_abs())
    };
    Ok(Contents { schema, agents: count("agents")?, incidents: count("incidents")?, findings: count("findings")? })
}
