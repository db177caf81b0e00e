//! What can still be read of a damaged store, row by row, in a new one.
//!
//! A table is read in the order of its keys; where a page is damaged, behind it and from the other end. A row counts only
//! when it matches its checksum and this version can read it as what it is, so that no later query stumbles over it.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, OpenFlags, Params, Row, params_from_iter};
use serde::{Deserialize, Serialize};

use super::column::{At, Seq};
use super::{
    StoreError, Writer, acknowledgements, agents, dependencies, escalations, excesses, findings, flaps, groups, heard,
    incidents, lanes, levels, outbox, silences, sums, tallies, tokens,
};

/// Lines of SQLite's words on damage that are kept.
const MAX_SAID: usize = 20;
/// No row is shorter: a damaged tree that leads in circles yields no more rows than the file has room for.
const LEAST_ROW: u64 = 16;
/// What a query calls the number of a row, where it has one.
const ROW_NUMBER: &str = "row_number";
/// Distance of row numbers after which nothing more is sought.
const FARTHEST: i64 = 1 << 40;

/// One table: its name, its key where it has no row numbers, and whether a row can be read as what it is.
struct Table {
    name: &'static str,
    key: Option<&'static str>,
    reads: fn(&Row<'_>) -> rusqlite::Result<()>,
}

const TABLES: [Table; 23] = [
    Table { name: "agents", key: Some("tenant, id"), reads: |row| agents::read(row).map(drop) },
    Table { name: "tokens", key: Some("tenant, id"), reads: |row| tokens::read(row).map(drop) },
    Table { name: "api_tokens", key: Some("tenant, name"), reads: |row| tokens::read_api_token(row).map(drop) },
    Table { name: "incidents", key: None, reads: |row| incidents::read(row).map(drop) },
    Table {
        name: "decisions",
        key: Some("tenant, incident, receiver, state_epoch"),
        reads: |row| incidents::read_decision(row).map(drop),
    },
    Table { name: "outbox", key: None, reads: |row| outbox::read(row).map(drop) },
    Table { name: "silences", key: Some("tenant, id"), reads: |row| silences::read(row).map(drop) },
    Table {
        name: "withheld",
        key: Some("tenant, incident, receiver"),
        reads: |row| silences::read_withheld(row).map(drop),
    },
    Table {
        name: "acknowledgements",
        key: Some("tenant, incident, id"),
        reads: |row| acknowledgements::read(row).map(drop),
    },
    Table {
        name: "escalations",
        key: Some("tenant, incident, receiver"),
        reads: |row| escalations::read(row).map(drop),
    },
    Table { name: "dependencies", key: Some("tenant, agent"), reads: |row| dependencies::read(row).map(drop) },
    Table { name: "heard", key: Some("tenant, incident, receiver"), reads: |row| heard::read(row).map(drop) },
    Table { name: "flaps", key: Some("tenant, incident"), reads: |row| flaps::read(row).map(drop) },
    Table { name: "alert_groups", key: Some("tenant, id"), reads: |row| groups::read(row).map(drop) },
    Table { name: "lanes", key: Some("tenant, agent, epoch, lane"), reads: |row| lanes::read(row).map(drop) },
    Table { name: "findings", key: None, reads: |row| findings::read(row).map(drop) },
    Table {
        name: "bodies",
        key: None,
        reads: |row| sums::check("bodies", row).and_then(|()| row.get::<_, At>("received_at")).map(drop),
    },
    Table {
        name: "losses",
        key: Some("tenant, agent, epoch, lane, first"),
        reads: |row| {
            sums::check("losses", row)?;
            row.get::<_, Seq>("count").and_then(|_| row.get::<_, At>("received_at")).map(drop)
        },
    },
    Table { name: "levels", key: Some("tenant, agent"), reads: |row| levels::read_levels(row).map(drop) },
    Table {
        name: "pool_use",
        key: Some("tenant, server, application, day"),
        reads: |row| levels::read_use(row).map(drop),
    },
    Table { name: "tallies", key: Some("tenant"), reads: |row| tallies::read(row).map(drop) },
    Table { name: "excesses", key: Some("tenant, agent, \"limit\""), reads: |row| excesses::read(row).map(drop) },
    Table {
        name: "pulse",
        key: None,
        reads: |row| sums::check("pulse", row).and_then(|()| row.get::<_, At>("at")).map(drop),
    },
];

/// What was kept of one table, and what was not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Its name.
    pub table: String,
    /// Rows that are in the new store.
    pub kept: u64,
    /// Rows that are not.
    pub lost: Lost,
}

/// How many rows could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lost {
    /// The table was read from end to end.
    Nothing,
    /// So many, or more: a damaged page does not tell what was on it.
    AtLeast(u64),
}

/// Opens a store to read what is left of it; nothing is moved from its log into it.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(connection)
}

/// What SQLite says is wrong with a store, the first lines of it; nothing when every page and index is whole.
///
/// # Errors
/// When it cannot be asked, which says nothing of the store: rights, memory, descriptors, a lock.
pub(super) fn wrong(connection: &Connection) -> Result<Vec<String>, StoreError> {
    let ask = || -> rusqlite::Result<Vec<String>> {
        let mut query = connection.prepare(&format!("PRAGMA integrity_check({MAX_SAID})"))?;
        let lines = query.query_map([], |row| row.get::<_, String>(0))?;
        lines.collect()
    };
    match ask().map_err(StoreError::from) {
        // One entry may be several lines.
        Ok(said) if said.iter().any(|it| it != "ok") => {
            Ok(said.iter().flat_map(|it| it.lines()).take(MAX_SAID).map(str::to_owned).collect())
        }
        Ok(_) => Ok(Vec::new()),
        Err(error) if error.is_damage() => Ok(vec![error.in_full()]),
        Err(error) => Err(error),
    }
}

/// The first row of each table that this version would not have written: a byte turned within a value leaves the page whole.
pub(super) fn malformed(connection: &Connection) -> Vec<String> {
    let first = |table: &Table| {
        let mut query = connection.prepare(&format!("SELECT * FROM {}", table.name)).ok()?;
        let mut rows = query.query([]).ok()?;
        while let Ok(Some(row)) = rows.next() {
            if let Err(error) = (table.reads)(row) {
                return Some(format!("a row of {}: {error}", table.name));
            }
        }
        None
    };
    TABLES.iter().filter_map(first).collect()
}

/// Copies every row that can be read from the store at `from` into `to`, in one transaction for each table.
///
/// # Errors
/// When the new store cannot be written; what is wrong with the old one is the answer.
pub(super) fn salvage(from: &Path, to: &mut Writer, said: &[String]) -> Result<Vec<Left>, StoreError> {
    let source = match open(from) {
        Ok(source) => Some(source),
        // Nothing at all can be read.
        Err(error) if error.is_damage() => None,
        Err(error) => return Err(error),
    };
    let bytes = from.metadata().map_or(0, |it| it.len());
    let mut left = Vec::new();
    for table in &TABLES {
        let transaction = to.transaction()?;
        let mut copied = Copied {
            to: transaction.connection(),
            table,
            room: bytes / LEAST_ROW,
            kept: 0,
            malformed: 0,
            failed: None,
        };
        let is_whole = source.as_ref().is_some_and(|source| copied.take(source));
        if let Some(error) = copied.failed {
            return Err(error.into());
        }
        let (kept, malformed) = (copied.kept, copied.malformed);
        transaction.commit()?;
        let source = source.as_ref();
        let expected = source.and_then(|it| count(it, table.name)).unwrap_or_default();
        let missed = expected.saturating_sub(kept).max(malformed);
        let is_named = source.is_none_or(|it| names(it, table.name, said));
        let lost = if is_whole && !is_named && missed == 0 { Lost::Nothing } else { Lost::AtLeast(missed) };
        left.push(Left { table: table.name.into(), kept, lost });
    }
    Ok(left)
}

/// Rows by the smallest index, which may be whole where the table is not.
fn count(source: &Connection, table: &str) -> Option<u64> {
    source.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, Seq>(0)).ok().map(|it| it.0)
}

/// Whether SQLite's words are about the pages of this table, or about none that can be told.
fn names(source: &Connection, table: &str, said: &[String]) -> bool {
    let root =
        source.query_row("SELECT rootpage FROM sqlite_schema WHERE type = 'table' AND name = ?1", [table], |row| {
            row.get::<_, i64>(0)
        });
    let Ok(root) = root else { return true };
    let tree = format!("Tree {root} ");
    said.iter().any(|line| line.starts_with(&tree) || line.contains(&format!(" {table}")))
}

/// The copying of one table.
struct Copied<'a> {
    to: &'a Connection,
    table: &'a Table,
    /// Rows that may still be read.
    room: u64,
    kept: u64,
    malformed: u64,
    /// Why the new store could not be written.
    failed: Option<rusqlite::Error>,
}

/// How a walk over rows ended.
enum End {
    /// There are no more.
    Reached,
    /// A page could not be read.
    Damaged,
}

impl Copied<'_> {
    /// Copies what can be read; true when that was everything.
    fn take(&mut self, source: &Connection) -> bool {
        let name = self.table.name;
        match self.table.key {
            Some(key) => {
                if matches!(
                    self.walk(source, &format!("SELECT * FROM {name} ORDER BY {key}"), [], |_| ()),
                    End::Reached
                ) {
                    return true;
                }
                let back: Vec<String> = key.split(", ").map(|column| format!("{column} DESC")).collect();
                self.walk_back(source, &format!("SELECT * FROM {name} ORDER BY {}", back.join(", ")));
                false
            }
            None => self.take_numbered(source),
        }
    }

    /// A row number behind the damage is sought at growing distances, since a page tells not what was on it.
    fn take_numbered(&mut self, source: &Connection) -> bool {
        let name = self.table.name;
        let on = format!("SELECT *, rowid AS {ROW_NUMBER} FROM {name} NOT INDEXED WHERE rowid > ?1 ORDER BY rowid");
        let (mut last, mut gap, mut is_whole) = (i64::MIN, 0_i64, true);
        loop {
            let mut at = last;
            let from = last.saturating_add(gap);
            match self.walk(source, &on, [from], |number| at = at.max(number)) {
                End::Reached => return is_whole,
                End::Damaged => is_whole = false,
            }
            if self.failed.is_some() {
                return false;
            }
            if at != last {
                (last, gap) = (at, 1);
                continue;
            }
            if last == i64::MIN {
                // Not even the first: row numbers begin at one.
                (last, gap) = (0, 0);
                continue;
            }
            if gap > FARTHEST || self.room == 0 {
                break;
            }
            gap = (gap * 2).max(1);
        }
        self.walk_back(source, &format!("SELECT *, rowid AS {ROW_NUMBER} FROM {name} NOT INDEXED ORDER BY rowid DESC"));
        false
    }

    /// From the other end. Rows that were passed over on the way there may be met again, and count once.
    fn walk_back(&mut self, source: &Connection, sql: &str) {
        let there = std::mem::take(&mut self.malformed);
        self.walk(source, sql, [], |_| ());
        self.malformed = self.malformed.max(there);
    }

    /// Copies the rows of a query; `passed` hears the number of each.
    fn walk(&mut self, source: &Connection, sql: &str, from: impl Params, mut passed: impl FnMut(i64)) -> End {
        let mut query = match source.prepare(sql) {
            Ok(query) => query,
            Err(error) => return self.stumbles(error),
        };
        // The new store computes its checksums anew.
        let is_of_row = |name: &&str| *name != sums::COLUMN && *name != ROW_NUMBER;
        let columns: Vec<String> = query.column_names().take_while(is_of_row).map(|it| format!("\"{it}\"")).collect();
        let places = vec!["?"; columns.len()].join(", ");
        let insert = format!("INSERT OR IGNORE INTO {} ({}) VALUES ({places})", self.table.name, columns.join(", "));
        let mut rows = match query.query(from) {
            Ok(rows) => rows,
            Err(error) => return self.stumbles(error),
        };
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => return End::Reached,
                Err(error) => return self.stumbles(error),
            };
            if self.room == 0 {
                return End::Damaged;
            }
            self.room -= 1;
            if let Ok(number) = row.get(ROW_NUMBER) {
                passed(number);
            }
            let values: Option<Vec<Value>> = (0..columns.len()).map(|at| value(row, at)).collect();
            match values.filter(|_| (self.table.reads)(row).is_ok()) {
                Some(values) => self.insert(&insert, values),
                None => self.malformed += 1,
            }
            if self.failed.is_some() {
                return End::Damaged;
            }
        }
    }

    /// What is no damage of the old store ends the copying: it may be whole.
    fn stumbles(&mut self, error: rusqlite::Error) -> End {
        use rusqlite::ErrorCode::{CannotOpen, DatabaseBusy, DatabaseLocked, OutOfMemory, PermissionDenied};
        let code = error.sqlite_error_code();
        if matches!(code, Some(CannotOpen | DatabaseBusy | DatabaseLocked | OutOfMemory | PermissionDenied)) {
            self.failed = Some(error);
        }
        End::Damaged
    }

    fn insert(&mut self, sql: &str, values: Vec<Value>) {
        use rusqlite::ErrorCode::{ConstraintViolation, Unknown};
        let inserted = self.to.prepare_cached(sql).and_then(|mut it| it.execute(params_from_iter(values)));
        match inserted {
            // Nothing is inserted where the row is there already, read from the other end.
            Ok(rows) => self.kept += rows as u64,
            // `Unknown`: the damaged list of tables names a column that there never was.
            Err(error) if matches!(error.sqlite_error_code(), Some(ConstraintViolation | Unknown)) => {
                self.malformed += 1;
            }
            Err(error) => self.failed = Some(error),
        }
    }
}

/// A value as it is; nothing of a text that is none.
fn value(row: &Row<'_>, at: usize) -> Option<Value> {
    match row.get_ref(at).ok()? {
        ValueRef::Null => Some(Value::Null),
        ValueRef::Integer(number) => Some(Value::Integer(number)),
        ValueRef::Real(number) => Some(Value::Real(number)),
        ValueRef::Text(bytes) => std::str::from_utf8(bytes).ok().map(|it| Value::Text(it.into())),
        ValueRef::Blob(bytes) => Some(Value::Blob(bytes.into())),
    }
}
